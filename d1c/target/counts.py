"""Outputs whose extent is known at run time only: computed at their largest extent, cut when they are handed out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

Counts = tuple[tuple[int, str], ...]
"""Of one output, per dim that is cut: the dim, and the hidden output (one i64) that holds its extent."""


def trim(outputs: Mapping[str, np.ndarray], counts: Mapping[str, Counts]) -> dict[str, np.ndarray]:
    """The outputs cut to their extents, without the hidden ones. `counts`: of the outputs that are cut, by name."""
    hidden = {name for cut in counts.values() for _, name in cut}
    out = {}
    for name, array in outputs.items():
        if name in hidden:
            continue
        for dim, count in counts.get(name, ()):
            extent = int(outputs[count].reshape(-1)[0])
            array = array[(slice(None),) * dim + (slice(0, max(0, extent)),)]
        out[name] = np.ascontiguousarray(array) if name in counts else array
    return out


def by_output(rows: Iterable[tuple[str, int, str]]) -> dict[str, Counts]:
    """A module's attribute `counts`, (output, dim, hidden output) each, by output."""
    out: dict[str, Counts] = {}
    for name, dim, hidden in rows:
        out[name] = (*out.get(name, ()), (dim, hidden))
    return out
