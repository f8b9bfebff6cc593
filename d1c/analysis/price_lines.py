"""How much of the traffic of all lines of sites the busiest one has: parts of `price_loop`. Compiled (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import BITS


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def add_cores(positions, first, end, axes, g, out):  # type: ignore[no-untyped-def]
    """Add to `out` the cores at `positions` along axes[first:end] (which have as many places at least), at 0 along all
    others. The positions are lost."""
    count = len(out)
    for j in range(end - 1, first, -1):
        a = axes[j]
        size, inverse, stride = g.size[a], g.inverse[a], g.stride[a]
        for s in range(count):
            rest = positions[s] * inverse >> BITS
            out[s] += (positions[s] - rest * size) * stride
            positions[s] = rest
    if end > first:
        stride = g.stride[axes[first]]
        for s in range(count):
            out[s] += positions[s] * stride


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def take_positions(numbers, used, out):  # type: ignore[no-untyped-def]
    """`out`: of numbers of joint positions those along the last group, of which so many are `used`; the numbers become
    those along the groups before it."""
    inverse = ((1 << BITS) + used - 1) // used
    for s in range(len(numbers)):
        rest = numbers[s] * inverse >> BITS
        out[s] = numbers[s] - rest * used
        numbers[s] = rest


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _even(total, count):  # type: ignore[no-untyped-def]
    """So many numbers below `total`, evenly spread."""
    out = np.empty(count, np.int64)
    for s in range(count):
        out[s] = np.int64((s + 0.5) * total / count)
    return out


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _fullest(counts, dies):  # type: ignore[no-untyped-def]
    """Of every line of dies, the share that the busiest of its lines of sites has."""
    out, sites = np.empty(dies), len(counts) // dies
    for k in range(dies):
        most, total = 0.0, 0.0
        for i in range(k * sites, (k + 1) * sites):
            most, total = max(most, counts[i]), total + counts[i]
        out[k] = most / max(total, 1.0)
    return out


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def column_shares(cut, g, most):  # type: ignore[no-untyped-def]
    """[columns of dies] of all messages down each, the share that its busiest column of sites has, of those to up to
    `most` receivers. With trunks, the column of a band is any between its outermost (d1rt.linkload.bands)."""
    cuts, size, kind, col = cut.groups, g.size, g.kind, g.col
    counts = np.zeros(g.die_cols * g.site_cols)
    mark = np.full(g.die_cols * g.site_cols, -1, np.int64)
    live, wide = np.int64(1), np.int64(1)
    for k in range(len(cuts)):
        live *= (cuts[k, 3] + cuts[k, 2] - 1) // cuts[k, 2]
    axes = np.empty(len(cut.fan), np.int64)
    n = 0
    for a in cut.fan:
        if kind[a] % 2 == 1 or (g.snake and kind[a] == 0) or (g.trunks and kind[a] == 2):
            wide *= size[a]
            axes[n] = a
            n += 1
    beside = np.zeros(wide, np.int64)
    add_cores(np.arange(wide), 0, n, axes, g, beside)
    classes = min(live, max(1, most // wide))
    numbers, at, cores = _even(live, classes), np.empty(classes, np.int64), np.zeros(classes, np.int64)
    for k in range(len(cuts) - 1, -1, -1):
        take_positions(numbers, (cuts[k, 3] + cuts[k, 2] - 1) // cuts[k, 2], at)
        add_cores(at, cuts[k, 0], cuts[k, 1], cut.axes, g, cores)
    for s in range(classes):
        low, high = len(mark), 0
        for w in range(wide):
            x = col[cores[s] + beside[w]]
            if mark[x] != s:  # two receivers in one column of sites share its links
                mark[x] = s
                low, high = min(low, x), max(high, x + 1)
                if not g.trunks:
                    counts[x] += 1
        x = low
        while g.trunks and x < high:
            end = x
            while end < high and mark[end] == s and (end == x or end % g.site_cols):
                end += 1
            inner = 1 if end - x > 2 else 0
            for i in range(x + inner, end - inner):
                counts[i] += 1 / (end - x - 2 * inner)
            x = max(end, x + 1)
    return _fullest(counts, g.die_cols)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def row_shares(source, extents, g, most):  # type: ignore[no-untyped-def]
    """[rows of dies] of the tensor's elements in each, the share that its busiest row of sites owns, of those of up to
    `most` owners. `extents`: of the layout's groups."""
    lies, row = source.groups, g.row
    counts = np.zeros(g.die_rows * g.site_rows)
    owners = np.int64(1)
    for k in range(len(lies)):
        if lies[k, 2] > 0:
            owners *= (extents[k] + lies[k, 2] - 1) // lies[k, 2]
    counted = min(owners, most)
    numbers, at, cores = _even(owners, counted), np.empty(counted, np.int64), np.zeros(counted, np.int64)
    elements = np.ones(counted, np.int64)
    for k in range(len(lies) - 1, -1, -1):
        block = lies[k, 2]
        if block > 0:
            take_positions(numbers, (extents[k] + block - 1) // block, at)
            for s in range(counted):
                elements[s] *= min(block, extents[k] - at[s] * block)
            add_cores(at, lies[k, 3], lies[k, 4], source.axes, g, cores)
    for s in range(counted):
        counts[row[cores[s]]] += elements[s]
    return _fullest(counts, g.die_rows)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def rows_to(source, extents, g, most, out):  # type: ignore[no-untyped-def]
    """`row_shares` in `out`."""
    out[:] = row_shares(source, extents, g, most)
