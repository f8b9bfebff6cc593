"""How much of the traffic of all lines of sites the busiest one has: parts of `price_loop`. Compiled (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import BITS


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def core_of(position, first, end, axes, size, inverse, stride):  # type: ignore[no-untyped-def]
    """The core at `position` along axes[first:end] (which have as many places at least), at 0 along all others."""
    core = np.int64(0)
    for k in range(end - 1, first, -1):
        a = axes[k]
        rest = position * inverse[a] >> BITS
        core += (position - rest * size[a]) * stride[a]
        position = rest
    if end > first:
        core += position * stride[axes[first]]
    return core


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def digits(number, used, out):  # type: ignore[no-untyped-def]
    """A number as positions along groups of which so many are `used`, the last one fastest."""
    for k in range(len(used) - 1, -1, -1):
        out[k] = number % used[k]
        number //= used[k]


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _tables(used, spans, axes, count, size, inverse, stride):  # type: ignore[no-untyped-def]
    """(where the table of every group begins, -1: none because it has more positions than are counted; the cores at
    their positions). `spans` [groups, 2]: first and last + 1 of `axes`."""
    begin, total = np.empty(len(used), np.int64), 0
    for k in range(len(used)):
        begin[k] = total if used[k] <= count else -1
        total += used[k] if used[k] <= count else 0
    cores = np.empty(total, np.int64)
    for k in range(len(used)):
        if begin[k] >= 0:
            for p in range(used[k]):
                cores[begin[k] + p] = core_of(np.int64(p), spans[k, 0], spans[k, 1], axes, size, inverse, stride)
    return begin, cores


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def _advance(at, step, used, more):  # type: ignore[no-untyped-def]
    """Add `step` (digits) and `more` (0 or 1) to the positions `at`."""
    for k in range(len(used) - 1, -1, -1):
        p = at[k] + step[k] + more
        more = p >= used[k]
        at[k] = p - used[k] if more else p


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
    `most` receivers."""
    cuts, ordered, size, inverse, stride, kind, col = cut.groups, cut.axes, g.size, g.inverse, g.stride, g.kind, g.col
    counts = np.zeros(g.die_cols * g.site_cols)
    mark = np.full(g.die_cols * g.site_cols, -1, np.int64)
    groups, live, wide = len(cuts), np.int64(1), np.int64(1)
    used, at, step = np.empty(groups, np.int64), np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    for k in range(groups):
        used[k] = (cuts[k, 3] + cuts[k, 2] - 1) // cuts[k, 2]
        live *= used[k]
    axes = np.empty(len(cut.fan), np.int64)
    n = 0
    for a in cut.fan:
        if kind[a] % 2 == 1 or (g.snake and kind[a] == 0):
            wide *= size[a]
            axes[n] = a
            n += 1
    beside = np.empty(wide, np.int64)
    for w in range(wide):
        beside[w] = core_of(np.int64(w), 0, n, axes, size, inverse, stride)
    classes = min(live, max(1, most // wide))
    begin, cores = _tables(used, cuts, ordered, classes, size, inverse, stride)
    digits(live // classes, used, step)
    last, usual = np.int64(0), live // classes
    for s in range(classes):
        number = np.int64((s + 0.5) * live / classes)
        if s == 0:
            digits(number, used, at)
        else:
            _advance(at, step, used, number - last - usual)
        last, core = number, np.int64(0)
        for k in range(groups):
            if begin[k] >= 0:
                core += cores[begin[k] + at[k]]
            else:
                core += core_of(at[k], cuts[k, 0], cuts[k, 1], ordered, size, inverse, stride)
        for w in range(wide):
            x = col[core + beside[w]]
            if mark[x] != s:  # two receivers in one column of sites share its links
                mark[x] = s
                counts[x] += 1
    return _fullest(counts, g.die_cols)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def row_shares(source, extents, g, most):  # type: ignore[no-untyped-def]
    """[rows of dies] of the tensor's elements in each, the share that its busiest row of sites owns, of those of up to
    `most` owners. `extents`: of the layout's groups."""
    lies, axes, size, inverse, stride, row = source.groups, source.axes, g.size, g.inverse, g.stride, g.row
    counts = np.zeros(g.die_rows * g.site_rows)
    groups, owners = 0, np.int64(1)
    spans = np.empty((len(lies), 2), np.int64)
    sizes = np.empty((len(lies), 2), np.int64)  # block, extent
    used = np.empty(len(lies), np.int64)
    for k in range(len(lies)):
        block = lies[k, 2]
        if block > 0:
            spans[groups, 0], spans[groups, 1] = lies[k, 3], lies[k, 4]
            sizes[groups, 0], sizes[groups, 1] = block, extents[k]
            used[groups] = (extents[k] + block - 1) // block
            owners *= used[groups]
            groups += 1
    used = used[:groups]
    at, step = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    counted = min(owners, most)
    begin, cores = _tables(used, spans, axes, counted, size, inverse, stride)
    digits(owners // counted, used, step)
    last, usual = np.int64(0), owners // counted
    for s in range(counted):
        number = np.int64((s + 0.5) * owners / counted)
        if s == 0:
            digits(number, used, at)
        else:
            _advance(at, step, used, number - last - usual)
        last, core, elements = number, np.int64(0), np.int64(1)
        for k in range(groups):
            p = at[k]
            if begin[k] >= 0:
                core += cores[begin[k] + p]
            else:
                core += core_of(p, spans[k, 0], spans[k, 1], axes, size, inverse, stride)
            elements *= min(sizes[k, 0], sizes[k, 1] - p * sizes[k, 0])
        counts[row[core]] += elements
    return _fullest(counts, g.die_rows)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def columns_to(cut, g, most, out):  # type: ignore[no-untyped-def]
    """`column_shares` in `out`."""
    out[:] = column_shares(cut, g, most)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def rows_to(source, extents, g, most, out):  # type: ignore[no-untyped-def]
    """`row_shares` in `out`."""
    out[:] = row_shares(source, extents, g, most)
