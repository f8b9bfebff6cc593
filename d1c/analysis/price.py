"""What a movement costs, estimated from samples: the price of an edge between a layout and a need.

The truth is what `exchange` makes and the network then carries; it takes milliseconds per pair, and planning asks for
tens of thousands of pairs. Here a few hundred (receiver, element of its window) pairs stand for all of them. Each is a
message with a sender (the element's owner), a set of receivers (those that need the same) and a weight in packets. Sums
over them give the traffic through ports, over every column of row links of each row of dies (spread over the rows of
sites that send), likewise over column links, and over die edges; a part of the samples is taken from the corners of
windows at the borders of dies, where ways are longest. Tests hold the estimate to the exact load.

A movement may go along columns first: then rows and columns change places in all of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from d1c.analysis.native import Native
from d1c.analysis.plans import different
from d1c.analysis.price_forms import BITS, CORNERS, SPREAD, Cut, Form, Grid, Source
from d1c.ir.layout import Component, Need
from d1c.target.embedding import global_position
from d1c.target.keys import hashed_once
from d1c.target.machine import Machine
from d1c.target.mesh import Layout, Mesh

_STEPS = np.modf(np.sqrt(np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0])))[0]
"""Of one irrational each: multiples modulo 1 spread evenly and independently."""

MOST = 1 << 12
"""Receivers and owners that are counted to find the fullest lines of sites."""

NEAR = 0.1
"""Ways along columns first are looked at where links take longer than ports by this part of all that a movement
takes."""

_rows = Native("price_lines", "rows_to", short=True)
_estimates = Native("price_loop", "estimates")
_KINDS = {"dr": 0, "dc": 1, "nr": 2, "nc": 3}


@hashed_once
@dataclass(frozen=True)
class Places:
    """Where the cores of a machine are: [cores] physical row and column. `beside`: part of the rows beside a tree's
    trunk that counts as if each had a way of its own."""

    machine: Machine
    beside: float = 0.0

    @cached_property
    def mesh(self) -> Mesh:
        return Mesh(self.machine.axes)

    @cached_property
    def grid(self) -> Grid:
        m, mesh = self.machine, self.mesh
        sites = global_position(m).reshape(-1, 2).astype(np.int64)
        y, x = np.arange(m.die_rows * m.site_rows), np.arange(m.die_cols * m.site_cols)
        even = 0.5 + np.concatenate([np.arange(SPREAD), np.arange(CORNERS)]) * _STEPS[:, None]
        return Grid(
            row=np.ascontiguousarray(sites[:, 0]),
            col=np.ascontiguousarray(sites[:, 1]),
            down=y * m.hop_cycles + y // m.site_rows * m.die_crossing_cycles,
            right=x * m.hop_cycles + x // m.site_cols * m.die_crossing_cycles,
            die_rows=m.die_rows,
            die_cols=m.die_cols,
            site_rows=m.site_rows,
            site_cols=m.site_cols,
            packet=m.packet_bytes,
            header=m.run_header_bytes,
            link=m.packet_bytes / m.link_bytes_per_cycle,
            edge=m.packet_bytes / m.die_edge_bytes_per_cycle,
            size=np.array(mesh.sizes, np.int64),
            inverse=-(-(1 << BITS) // np.array(mesh.sizes, np.int64)),
            stride=np.array(list(mesh.stride.values()), np.int64),
            kind=np.array([_KINDS[a.split(".")[0]] for a in mesh.names], np.int64),
            even=np.modf(even)[0],
            snake=m.die_order == "snake",
            tree=m.multicast == "tree",
            trunks=False,
        )

    @cached_property
    def turned(self) -> Grid:
        """`grid` with rows for columns."""
        g = self.grid
        return g._replace(
            row=g.col, col=g.row, down=g.right, right=g.down, die_rows=g.die_cols, die_cols=g.die_rows,
            site_rows=g.site_cols, site_cols=g.site_rows, kind=g.kind ^ 1, trunks=g.tree,
        )  # fmt: skip

    def order(self, by_columns: bool) -> Grid:
        return self.turned if by_columns else self.grid

    @property
    def either(self) -> bool:
        """Whether movements may go along columns first, and the price of that is known."""
        return self.machine.routing == "either" and self.machine.die_order != "snake"

    @cached_property
    def across(self) -> float:
        """Cycles from corner to corner."""
        return float(self.grid.down[-1] + self.grid.right[-1])

    @property
    def first(self) -> int:
        """With how many plans of a layer the choice begins: there are the more, the more factors the mesh has."""
        return min(16, self.machine.cores.bit_length() + 2)


@lru_cache(maxsize=8)
def places(machine: Machine, beside: float = 0.0) -> Places:
    return Places(machine, beside)


@lru_cache(maxsize=1 << 14)
def _intervals(c: Component, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return c.intervals(mesh)


def _table(rows: Sequence[Sequence[int]], columns: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, columns)


_Group = tuple[tuple[str, ...], int, int]
"""Axes, block and extent of a plan's group."""


class _Forms:
    """Needs as the loops want them, behind each other, and how they are cut."""

    def __init__(self) -> None:
        self.form: tuple[list[list[int]], ...] = [], [], [], []
        self.groups, self.axes, self.fan = list[list[int]](), list[int](), list[int]()
        self.ends: list[list[int]] = []

    def add(self, need: Need, shape: Sequence[int]) -> list[_Group]:
        """The groups of the plan that the parts of a need name. `shape`: of the tensor; without it, it is taken to
        have those elements only that the need is about."""
        dims, components, parts, terms = self.form
        d0, p0, t0 = len(dims), len(parts), len(terms)
        groups: dict[_Group, int] = {}
        for c in need.components:
            k = len(dims) - d0
            lined = c.span > 1 and any(p != (0, n) for p, n in zip(c.pads, c.shape, strict=True))
            at = len(parts) - p0
            components.append([k, k + c.span, lined, c.rest_lo, c.rest_hi, at, at + len(c.parts)])
            if shape and c.every:
                rows = zip(c.shape, c.pads, shape[k : k + c.span], c.every, strict=True)
                dims += [[n, before, extent, m, first, step] for n, (before, extent), m, (first, step) in rows]
            else:
                dims += [[n, before, extent, n, 0, 1] for n, (before, extent) in zip(c.shape, c.pads, strict=True)]
            for p in c.parts:
                key = p.axes, p.block, math.prod(p.extents)
                at = len(terms) - t0
                parts.append([groups.setdefault(key, len(groups)), at, at + len(p.extents)])
                terms += [list(t) for t in zip(p.extents, p.coefs, strict=True)]
        return list(groups)

    def cut(self, groups: Sequence[_Group], fan: Sequence[str], mesh: Mesh) -> None:
        """The need that was added is cut so; `fan`: factors along which contents are the same."""
        a0 = len(self.axes)
        for names, block, extent in groups:
            _fits(names, block, extent, mesh)
            at = len(self.axes) - a0
            self.groups.append([at, at + len(names), block, extent])
            self.axes += [mesh.index[a] for a in names]
        self.fan += [mesh.index[a] for a in fan]
        self.ends.append([*(len(x) for x in self.form), len(self.groups), len(self.axes), len(self.fan)])

    def tables(self) -> tuple[Form, Cut]:
        """Of all needs."""
        form = Form(*(_table(x, columns) for x, columns in zip(self.form, (6, 7, 3, 2), strict=True)))
        return form, Cut(_table(self.groups, 4), np.array(self.axes, np.int64), np.array(self.fan, np.int64))


def form_of(need: Need) -> tuple[Form, list[_Group]]:
    """A need as the loops want it, and the groups of the plan that its parts name."""
    forms = _Forms()
    groups = forms.add(need, ())
    return forms.tables()[0], groups


def _fits(axes: Sequence[str], block: int, extent: int, mesh: Mesh) -> None:
    """The compiled loops do not look whether a position is a core's."""
    if -(-extent // block) > mesh.parts(tuple(axes)):
        raise ValueError(f"{extent} elements in blocks of {block} are more than {' '.join(axes)} has places for")


@lru_cache(maxsize=1 << 10)
def _lines(fan: tuple[str, ...], where: Places, by_columns: bool) -> np.ndarray:
    """[cores] in how many columns of sites of its die those are that differ from a core along `fan` only: the grid's
    rows and columns are bent round dead sites. `by_columns`: in how many rows, or bands of these."""
    mesh, grid = where.mesh, where.order(by_columns)
    first = np.arange(mesh.cores)
    for a in fan:
        if _KINDS[a.split(".")[0]] >= 2:
            first = first - mesh.coords[:, mesh.index[a]] * mesh.stride[a]
    sites = grid.die_cols * grid.site_cols
    lines = different(first * sites + grid.col)
    count = np.bincount(lines // sites, minlength=mesh.cores)[first]
    if grid.trunks:
        bands = lines[(np.diff(lines, prepend=-2) > 1) | (lines % grid.site_cols == 0)]
        trunks = np.bincount(bands // sites, minlength=mesh.cores)[first]
        count = np.rint(trunks + where.beside * (count - trunks)).astype(np.int64)
    return count


@lru_cache(maxsize=1 << 13)
def _source(
    layout: Layout, shape: tuple[int, ...], where: Places, by_columns: bool
) -> tuple[Source, np.ndarray, int, tuple[str, ...]]:
    """A layout as the loop wants it; of every row of dies, the share of the tensor's elements there that the busiest
    row of sites owns; how many cores own anything, copies apart; the factors along which there are copies.
    `by_columns`: with rows for columns."""
    mesh, owners = where.mesh, 1
    table, axes, extents = list[list[int]](), list[int](), list[int]()
    for a, b, g, n in layout.spans(shape):
        table.append([a, b, g.block if g.axes else 0, len(axes), len(axes) + len(g.axes)])
        axes += [mesh.index[x] for x in g.axes]
        extents.append(n)
        if g.axes:
            _fits(g.axes, g.block, n, mesh)
            owners *= -(-n // g.block)
    copies = layout.copied(mesh)
    numbers = [mesh.index[a] for a in copies]
    source = Source(_table(table, 5), np.array(axes, np.int64), np.array(numbers, np.int64))
    table.append([0, 0, 1, len(axes), len(axes) + len(copies)])  # each copy by itself
    each = Source(_table(table, 5), np.array(axes + numbers, np.int64), source.copies)
    extents.append(mesh.parts(copies))
    grid = where.order(by_columns)
    rows = np.empty(grid.die_rows)
    _rows(each, np.array(extents, np.int64), grid, MOST, rows)
    return source, rows, owners, copies


@dataclass(frozen=True, slots=True)
class Moves:
    """Of one need from several layouts [sources]: cycles of the busiest port, row link, column link and die edge, the
    longest way, whether nothing moves at all, and whether all this is of ways along columns first."""

    port: np.ndarray
    row: np.ndarray
    column: np.ndarray
    edge: np.ndarray
    distance: np.ndarray
    in_place: np.ndarray
    by_columns: np.ndarray

    @property
    def cycles(self) -> np.ndarray:
        busiest = np.max([self.port, self.row, self.column, self.edge], axis=0)
        return np.where(self.in_place > 0, 0.0, busiest + self.distance)


class Moved(NamedTuple):
    """What one movement takes: cycles; whether anything moves at all; whether it goes along columns first."""

    cycles: float
    any: bool
    by_columns: bool


def moves(sources: Sequence[Layout], need: Need, shape: tuple[int, ...], width: int, where: Places) -> Moves:
    """The estimate for all `sources` of a tensor of `shape` and `width` bytes an element: of what `need` has `thin`, if
    it has, unless everything is in place; along columns first where that is better."""
    return all_moves(sources, [(need, range(len(sources)))], shape, width, where)


def all_moves(
    sources: Sequence[Layout], asked: Sequence[tuple[Need, Sequence[int]]], shape: tuple[int, ...], width: int,
    where: Places,
) -> Moves:  # fmt: skip
    """`moves` of several needs of one tensor, each from those of `sources` that it names, behind each other."""
    found = _priced(sources, asked, shape, width, where, False)
    bound = found[:, 1:4].max(1) > found[:, 0] + NEAR * (found[:, 0] + found[:, 4])
    if where.either and bound.any():
        left = iter(bound.tolist())
        again = [(need, mine) for need, numbers in asked if (mine := [j for j in numbers if next(left)])]
        used = {j: i for i, j in enumerate(sorted({j for _, mine in again for j in mine}))}
        some = [(need, [used[j] for j in mine]) for need, mine in again]
        other, at = _priced([sources[j] for j in used], some, shape, width, where, True), np.flatnonzero(bound)
        better = other[:, :4].max(1) < found[at, :4].max(1)
        found[at[better]] = other[better]
    return Moves(*found.T)


def _priced(
    sources: Sequence[Layout], asked: Sequence[tuple[Need, Sequence[int]]], shape: tuple[int, ...], width: int,
    where: Places, by_columns: bool,
) -> np.ndarray:  # fmt: skip
    """[movements, 7] what `Moves` names."""
    mesh, m, forms = where.mesh, where.machine, _Forms()
    known = [_source(s, shape, where, by_columns) for s in sources]
    named = [{*s.axes, *s.held} for s in sources]
    fans, fan_of, first = dict[tuple[str, ...], int](), list[int](), 0
    pairs, ends, to = list[tuple[int, int]](), list[int](), list[int]()
    for need, numbers in asked:
        uses = {*need.axes}
        same = [a for a in mesh.names if a not in need.held and a not in uses]
        parted: dict[tuple[str, ...], list[int]] = {}
        for k, j in enumerate(numbers):  # copies along factors with equal windows: each sends to those beside it only
            parted.setdefault(tuple(a for a in same if a not in named[j]), []).append(k)
        for apart, at in parted.items():
            groups = forms.add(need.moved, shape)
            mine = {a for axes, _, _ in groups for a in axes}
            fan = tuple(a for a in mesh.names if a not in need.held and a not in mine and a not in apart)
            if apart:
                groups.append((apart, 1, mesh.parts(apart)))
            forms.cut(groups, fan, mesh)
            fan_of.append(fans.setdefault(fan, len(fans)))
            for k in at:
                _, _, owners, copies = known[numbers[k]]
                pairs.append((numbers[k], owners * mesh.parts(tuple(a for a in copies if a not in need.held))))
                to.append(first + k)
            ends.append(len(pairs))
        first += len(numbers)
    form, cut = forms.tables()
    parts = [x[0] for x in known]
    found = np.empty((len(pairs), 6))
    _estimates(
        form, cut, np.array(forms.ends), where.order(by_columns),
        Source(*(np.concatenate(x) for x in zip(*parts, strict=True))),
        np.cumsum([[len(p.groups), len(p.axes), len(p.copies)] for p in parts], axis=0),
        np.array([x[1] for x in known]), np.array([_lines(fan, where, by_columns) for fan in fans]), np.array(fan_of),
        np.array(pairs), np.array(ends), MOST, width, found,
    )  # fmt: skip
    found[:, 4] += m.inject_cycles + m.eject_cycles
    if by_columns:
        found[:, [1, 2]] = found[:, [2, 1]]
    out = np.full((len(pairs), 7), float(by_columns))
    out[to, :6] = found
    if out[:, 5].any():
        which = [(need, j) for need, numbers in asked for j in numbers]
        for i in np.flatnonzero(out[:, 5]).tolist():
            out[i, 5] = stays(sources[which[i][1]], shape, which[i][0], mesh)
    return out


@lru_cache(maxsize=1 << 12)
def _offsets(axes: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """Per position along `axes` the core number, all other coordinates 0."""
    return mesh.core_offset(axes, np.arange(mesh.parts(axes)))


def stays(source: Layout, shape: tuple[int, ...], need: Need, mesh: Mesh) -> bool:
    """Whether the kernel can read the owned buffer itself: what `in_place` says of the exchange, without making it."""
    if [g.span for g in source.groups] != [c.span for c in need.components]:
        return False
    used, copies = set(need.axes), set(source.copied(mesh))
    if set(mesh.names) - used - copies - set(need.held) or used & copies:
        return False
    for (_, _, g, n), c in zip(source.spans(shape), need.components, strict=True):
        if c.span > 1 and any(p != (0, e) for p, e in zip(c.pads, c.shape, strict=True)):
            return False
        lo, hi = _intervals(c, mesh)
        at = np.flatnonzero(hi > lo)
        a, b = lo[at], hi[at]
        block = g.block if g.axes else n
        position = a // block
        if (a < 0).any() or (b > n).any() or (a != position * block).any() or (b > (position + 1) * block).any():
            return False
        if not np.array_equal(_offsets(c.axes, mesh)[at], _offsets(g.axes, mesh)[position]):
            return False
    return True
