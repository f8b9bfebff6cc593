"""What the compiled loops of `price` work on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPREAD, CORNERS = 192, 96
"""Samples that carry the weight, and samples for the longest way."""

BITS = 40
"""Of the inverses that stand for divisions: exact for numbers below 2 ** 20, which those of cores are."""


class Grid(NamedTuple):
    """Physical row and column of the cores, cycles to rows and columns, rows and columns of dies and of sites of a die,
    bytes of a packet and of a run's header, cycles that a packet takes on a link and on a die edge; per mesh factor its
    size, stride and kind (0 dr, 1 dc, 2 nr, 3 nc); evenly spread numbers [12, samples]; `snake`: every second row of
    dies is numbered from right to left; `tree`: whether messages branch; `trunks`: whether to columns side by side in
    one way along all of them."""

    row: np.ndarray
    col: np.ndarray
    down: np.ndarray
    right: np.ndarray
    die_rows: int
    die_cols: int
    site_rows: int
    site_cols: int
    packet: int
    header: int
    link: float
    edge: float
    size: np.ndarray
    inverse: np.ndarray
    stride: np.ndarray
    kind: np.ndarray
    even: np.ndarray
    snake: bool
    tree: bool
    trunks: bool


class Form(NamedTuple):
    """A need without its factors. `dims` [rank, 6]: extent, elements before it, padded extent; the tensor's extent, the
    first element of those that the need is about, and their step; `components` [n, 7]; `parts` [n, 3]: group of the
    plan, first and last + 1 of `terms` [n, 2]: extent, coefficient."""

    dims: np.ndarray
    components: np.ndarray
    parts: np.ndarray
    terms: np.ndarray


class Cut(NamedTuple):
    """How groups are cut over factors. `groups` [n, 4]: first and last + 1 of `axes` (numbers of factors), block,
    extent; `fan`: factors along which the content is the same."""

    groups: np.ndarray
    axes: np.ndarray
    fan: np.ndarray


class Source(NamedTuple):
    """A layout of the tensor. `groups` [n, 5]: first dim, last + 1, block (0: not cut), first and last + 1 of `axes`;
    `copies`: replicated factors."""

    groups: np.ndarray
    axes: np.ndarray
    copies: np.ndarray
