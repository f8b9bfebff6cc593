"""All ways to cut the dims of a layer over the factors of the mesh, as arrays.

Ways are many, but most of them cut the dims in equally many parts by other factors. What a core computes then is the
same, and worked out once for each such kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from d1c.analysis.layers import BRANCH, Layer
from d1c.analysis.plans import dim_ranges, distinct
from d1c.analysis.price import Places
from d1c.ir.structured import Structured

MANY = 0.9
"""Columns are cut evenly too where whole ones leave less than this part of the cores any."""

NARROW = 8
"""With fewer columns all three rows may be cut: there is nothing to gain from cutting the columns of an image. So may
images, queries and heads of an attention, whose columns are no work of their own."""
_Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Ways:
    """Ways of one family: `ranges` of dims that may be cut (the last one the cut of the reduction if `cut`),
    `way` [n, factors] the range of every factor (len(ranges): none), `kind` [n]; [kinds, ranges] blocks and parts that
    are used."""

    ranges: tuple[tuple[int, int], ...]
    cut: bool
    way: np.ndarray
    kind: np.ndarray
    blocks: np.ndarray
    used: np.ndarray


def families(layer: Layer, most: int = 3) -> Iterator[tuple[tuple[int, int], ...]]:
    """Ranges of parallel dims that may be cut: rows (flat, in pairs of the largest, or partly flat), then columns. Of
    branches all three, so that one can lie in its region as it would lie on a machine of its own."""
    nest = layer.nest
    single = dim_ranges(nest, layer, False, most)
    assert single is not None
    rows, last = single[:-1], single[-1]
    flat = dim_ranges(nest, layer, True)
    if flat is not None:
        yield tuple(flat)
        if len(rows) == 3 and rows[0][1] == rows[1][0] and rows[1][1] == rows[2][0]:
            yield ((rows[0][0], rows[1][1]), rows[2], last)
    if len(rows) == 3 and nest.dims[rows[0][0]].name == BRANCH:
        yield (*rows, last)
    if len(rows) == 3 and (nest.dims[last[0]].extent < NARROW or nest.kind == "attention"):
        yield tuple(rows)
    if len(rows) <= 2:
        yield (*rows, last)
    else:
        for pair in itertools.combinations(rows, 2):
            yield (*pair, last)


@cache
def part_counts(axes: _Axes) -> np.ndarray:
    """In how many parts a dim may be cut, in order: by some of the factors, by fewer lines of dies than there are."""
    counts = {1}
    for name, n in axes:
        counts |= {c * k for c in counts for k in (range(2, n + 1) if name in ("dr", "dc") else (n,))}
    return np.array(sorted(counts))


@cache
def assignments(axes: _Axes, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """[ways, factors] every way to give the factors to `targets` dims or to nothing (number `targets`), equal
    neighbours of one axis being interchangeable; [targets, ways] in which of `part_counts` each is cut."""
    runs: list[list[int]] = []
    for i, (name, size) in enumerate(axes):
        last = axes[runs[-1][0]] if runs else ("", 0)
        if size == last[1] and name.split(".")[0] == last[0].split(".")[0]:
            runs[-1].append(i)
        else:
            runs.append([i])
    per = [np.array(list(itertools.combinations_with_replacement(range(targets + 1), len(r))), np.int8) for r in runs]
    count = [len(x) for x in per]
    at = np.indices(count).reshape(len(per), math.prod(count))
    table = np.concatenate(
        [np.empty((math.prod(count), 0), np.int8), *(x[k] for x, k in zip(per, at, strict=True))], axis=1
    )
    parts = np.ones((targets, len(table)), np.int64)
    for (_, n), column in zip(axes, table.T, strict=True):
        for i in range(targets):
            parts[i][column == i] *= n
    return table, np.searchsorted(part_counts(axes), parts).astype(np.int16)


def ways_of(layer: Layer, ranges: tuple[tuple[int, int], ...], where: Places, loose: bool) -> Ways:
    """All assignments that leave few parts idle, and those that use fewer lines of dies. Columns are rounded up to
    whole vectors or matrix steps where that takes no longer, and to whole packets; or not, where that leaves many
    cores without any. `loose`: however many are idle."""
    nest, mesh, machine = layer.nest, where.mesh, where.machine
    extents = tuple(d.extent for d in nest.dims)
    cut = nest.cut is not None and extents[nest.cut] > nest.slice
    targets = len(ranges)
    sizes = [math.prod(extents[a:b]) for a, b in ranges]
    if cut:
        assert nest.cut is not None
        ranges = (*ranges, (nest.cut, nest.cut + 1))
        sizes.append(-(-extents[nest.cut] // nest.slice))
    size = np.array(sizes)
    idle = loose or nest.kind == "attention"  # heads are few, and a second one on a core costs as much as the first
    spare = cut and nest.kind not in ("mac", "attention")  # slices come in powers of two, and those of vector work few
    most = np.where(idle | (spare & (np.arange(len(size)) == targets)), 2 * size, size)
    if ranges[0] == (0, 1) and nest.dims[0].name == BRANCH:  # a line of dies may be for few of them
        most[0] = max(2 * size[0], *(n for a, n in mesh.axes if a in ("dr", "dc")), 0)
    table, rows, parts, kind = _kinds(mesh.axes, most, targets)

    blocks = -(-size // parts)
    last = targets - 1
    step = machine.mma_n if nest.kind in ("mac", "attention") else machine.f32_lanes
    several = (parts[:, last] > 1) & (blocks[:, last] > step // 2) & (ranges[last][1] == nest.parallel)
    exact = blocks[:, last].copy()
    blocks[:, last] = np.where(several, -(-blocks[:, last] // step) * step, blocks[:, last])
    full = max(1, machine.packet_bytes // layer.result.dtype.bytes)
    partly = several & (blocks[:, last] % full != 0) & (size[last] > full)
    few = several & ~partly & (-(-size[last] // blocks[:, last]) < MANY * -(-size[last] // exact))
    more = np.flatnonzero(partly | few)
    wide = blocks[more]
    wide[:, last] = np.where(few[more], exact[more], -(-wide[:, last] // full) * full)
    twin = np.full(len(parts), -1)
    twin[more] = len(parts) + np.arange(len(more))
    again = np.flatnonzero(twin[kind] >= 0)
    rows, kind = np.concatenate([rows, rows[again]]), np.concatenate([kind, twin[kind[again]]])
    parts = np.concatenate([parts, parts[more]])
    blocks = np.minimum(np.concatenate([blocks, wide]), size)
    if cut:
        power = 2 ** np.ceil(np.log2(blocks[:, -1])).astype(np.int64)
        blocks[:, -1] = np.where(parts[:, -1] > 1, power, blocks[:, -1])
    used = -(-size // blocks)
    keep = np.all(loose | (used * 5 >= parts * 2), axis=1)
    if cut:
        assert nest.cut is not None
        keep &= (parts[:, -1] == 1) | ((used[:, -1] > 1) & (spare | (used[:, -1] == parts[:, -1])))
        if nest.kind == "attention":  # whose cores have equally many chunks
            keep &= (parts[:, -1] == 1) | (extents[nest.cut] % blocks[:, -1] == 0)
        blocks[:, -1] = np.where(parts[:, -1] > 1, blocks[:, -1] * nest.slice, extents[nest.cut])
    kept = np.flatnonzero(keep[kind])
    number = np.cumsum(keep) - 1
    return Ways(ranges, cut, table.take(rows[kept], 0), number[kind[kept]], blocks[keep], used[keep])


def _kinds(axes: _Axes, most: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The assignments to dims that may be cut in up to `most` parts, and those of them where the dies' factors that
    come first in one of the first `targets` dims have fewer lines: the table of assignments, [n] which of them,
    [kinds, dims] in how many parts each kind cuts, [n] of which kind."""
    table, levels = assignments(axes, len(most))
    counts = part_counts(axes)
    room = np.searchsorted(counts, most, side="right")
    fits = np.ones(len(table), bool)
    for level, most_of in zip(levels, room, strict=True):
        fits &= level < most_of
    rows = np.flatnonzero(fits)
    found = [(rows, levels.take(rows, axis=1))]
    for factor, (name, n) in enumerate(axes):
        if name not in ("dr", "dc"):
            continue
        so_far, goes = list(found), table[:, factor].astype(np.int64)
        leads = goes < targets
        for before in table.T[:factor]:
            leads &= before != goes
        for fewer in range(2, n):
            less = np.searchsorted(counts, counts // n * fewer).astype(np.int16)
            for rows, level in so_far:
                at = np.flatnonzero(leads.take(rows))
                rows, level = rows.take(at), level.take(at, axis=1)
                flat, mine = level.reshape(-1), goes.take(rows) * len(at) + np.arange(len(at))
                flat[mine] = less.take(flat.take(mine))
                found.append((rows, level))
    code = np.zeros(sum(len(rows) for rows, _ in found), np.int64)
    for column, most_of in zip(np.concatenate([level for _, level in found], axis=1), room.tolist(), strict=True):
        code = code * most_of + column
    codes, kind = distinct(code)
    parts = np.empty((len(codes), len(most)), np.int64)
    for i in range(len(most) - 1, -1, -1):
        codes, level = np.divmod(codes, room[i])
        parts[:, i] = counts[level]
    return table, np.concatenate([rows for rows, _ in found]), parts, kind


def product(table: np.ndarray) -> np.ndarray:
    """Of every row."""
    out = np.ones(len(table), np.int64)
    for column in table.T:
        out *= column
    return out


def trips_of(nest: Structured, ranges: Sequence[tuple[int, int]], blocks: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[n, iteration dims] trips of the fullest core; those of a flat share all in its last dim."""
    trips = np.tile(np.array([d.extent for d in nest.dims]), (len(blocks), 1))
    for i, (a, b) in enumerate(ranges):
        if b - a == 1:
            trips[:, a] = np.minimum(blocks[:, i], trips[:, a])
        else:
            whole = (used[:, i] == 1)[:, None]
            trips[:, a:b] = np.where(whole, trips[:, a:b], 1)
            trips[:, b - 1] = np.where(whole[:, 0], trips[:, b - 1], blocks[:, i])
    return trips
