"""Cutting a layer's calls and movements into parts, so that movements are under way while cores compute.

A call is cut along its kernel's first loop, its rows: every core computes rows up to a bound that is the same on all
cores, says that they are there, then the others. A movement from or to a call that is cut has parts: what one part of
the rows makes, and the rows of the windows that one part of the rows is the first to read. Rows of a result are whole,
and reductions stay as they are: the bits of results do not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from d1c.analysis.shares import Shares
from d1c.target.isa import nest_cycles
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import CoreInt, Mesh
from d1c.target.movement import Cut, Exchange, ragged
from d1c.target.program import Call

END = 1 << 30
"""Behind the last row."""
GAIN = 1
"""So many times what the parts of a call cost more than the whole is to be hidden behind them."""
AS_MUCH = 1.15
"""By how much the parts of a call may compute longer than the whole: rows fill matrix steps less well."""


@dataclass(frozen=True, slots=True)
class Part:
    """`exchange`: a part of a movement, that goes when part `after` of its source has been computed, and that part
    `before` of the call that reads it waits for."""

    exchange: Exchange
    after: int
    before: int


def by_rows(nest: Nest) -> bool:
    """Whether a kernel's first loop is one over rows of its result, one behind the other, each computed by itself."""
    out, n = nest.out, nest.parallel
    if (
        nest.kind in ("lookup", "scatter")
        or n < 2
        or nest.loops[0].extent < 2
        or any(t is not None for t in out.tables)
    ):
        return False
    inner = sum(s * (loop.extent - 1) for s, loop in zip(out.strides[1:n], nest.loops[1:n], strict=True))
    return out.strides[0] > inner and min(out.strides[:n]) >= 0


def bounds(c: Shares, count: int, machine: Machine) -> tuple[int, ...]:
    """Where the rows of a call are cut into `count` parts at most: the first row of each, and the end."""
    extent = c.nest.loops[0].extent if c.nest.loops else 1
    whole: tuple[int, ...] = (0, extent)
    if count < 2 or not by_rows(c.nest):
        return whole
    count = min(count, extent)
    best, least = whole, math.inf
    for shift in range(-2, 3):
        inner = [round(extent * k / count) + shift for k in range(1, count)]
        cut = (0, *inner, extent)
        if min(np.diff(cut), default=0) > 0 and (cost := cycles(c, cut, machine) + extent * abs(shift) / 1000) < least:
            best, least = cut, cost
    return best if least <= AS_MUCH * cycles(c, whole, machine) + (count - 1) * machine.call_cycles else whole


def pays(
    c: Shares, rows: Sequence[int], windows: Sequence[tuple[int, float]], sent: Sequence[float], machine: Machine
) -> bool:
    """Whether it pays to cut a call at `rows`. `windows`: per operand that is a window its number, and the cycles that
    it takes to come; `sent`: cycles of the movements of the result. What one half of the rows brings or sends is hidden
    behind the other half's computing, if that takes as long."""
    moving = [n for k, n in windows if c.nest.operands[k].strides[0] or c.nest.operands[k].tables[0] is not None]
    whole = cycles(c, (0, c.nest.loops[0].extent), machine)
    gain = min(whole, sum(moving)) / 2 + min(whole, max(sent, default=0.0)) / 2
    return gain >= GAIN * (cycles(c, rows, machine) - whole)


def arrival(x: Exchange, width: int, machine: Machine) -> float:
    """Cycles that the largest window of elements of `width` bytes takes to come in by a port, at the least."""
    return math.prod(int(c.real.max(initial=0)) for c in x.components) * width / machine.packet_bytes


def cycles(c: Shares, rows: Sequence[int], machine: Machine) -> float:
    """Of the slowest core, all parts."""
    key = np.zeros(len(c.trips), np.int64)
    for n, loop in zip(c.trips.T, c.nest.loops, strict=True):
        key = key * (loop.extent + 1) + n
    shares = c.trips[np.unique(key, return_index=True)[1]]  # most cores have as much to do
    total = np.zeros(len(shares))
    for a, b in pairwise(rows):
        trips = shares.copy()
        trips[:, 0] = np.clip(trips[:, 0] - a, 0, b - a)
        total += np.where(trips[:, 0] > 0, nest_cycles(c.nest, trips, machine), 0)
    return float(total.max(initial=0))


def reach(c: Shares, operand: int, rows: int) -> int:
    """How many of its first elements the first `rows` rows of a call read of an operand, on any core."""
    nest, last = c.nest, c.bases[:, operand].astype(np.int64)
    o = nest.operands[operand]
    for i, (stride, table) in enumerate(zip(o.strides, o.tables, strict=True)):
        n = np.minimum(c.trips[:, i], rows) if i == 0 else c.trips[:, i]
        if table is not None:
            most = np.maximum.accumulate(c.tables[table].astype(np.int64), axis=1)
            last = last + most[c.table_rows[:, table], n - 1]
        else:
            last = last + np.maximum(stride * (n - 1), 0)
    return int(last.max(initial=-1)) + 1


def parts(
    x: Exchange, source: tuple[Shares, Sequence[int]] | None, reader: tuple[Shares, Sequence[int]] | None,
    operands: Sequence[int],
) -> list[Part]:  # fmt: skip
    """A movement in parts. `source`: the call that makes it, and its rows; `reader`: the call that reads it, and its
    rows; `operands`: which of that call's are the windows."""
    (outer, inner), (owned, window) = x.rows, x.row_elements
    last = 0 if source is None else len(source[1]) - 2
    whole = [Part(x, last, 0)]
    if max(outer, inner) >= len(x.components):
        return whole
    made, read = [0], [0]
    if source is not None:
        starts = [row * source[0].nest.out.strides[0] for row in source[1][1:-1]]
        made += [n // owned for n in starts] if all(n % owned == 0 for n in starts) else []
    p = x.components[inner].pieces
    o, i = ragged(p.count)
    begin = p.doff[o] + i * p.dstep[o]
    end, before = begin + p.length[o], [0]
    for number, row in enumerate(reader[1][1:-1] if reader is not None and operands else (), 1):
        assert reader is not None
        upto = -(-max(reach(reader[0], k, row) for k in operands) // window)
        if bool(np.any((begin < upto) & (end > read[-1])) and end.max() > upto):
            read.append(upto)
            before.append(number)
    if len(made) == 1 and len(read) == 1:
        return whole
    found = []
    for turn, window_rows in zip(before, pairwise([*read, END]), strict=True):
        for after, owned_rows in enumerate(pairwise([*made, END])):
            part = x.part(Cut(owned_rows, window_rows))
            if all(len(k.pieces) for k in part.components):
                found.append(Part(part, after if len(made) > 1 else last, turn))
    if len(found) > 1:
        return found
    return [replace(p, exchange=x) for p in found] or whole  # the whole says what is padding


def split(
    whole: Call, c: Shares, rows: Sequence[int], tables: Sequence[tuple[int, ...]], axes: tuple[str, ...], mesh: Mesh
) -> tuple[Call, ...]:
    """A call in parts. `tables`: the tables' buffers of each part; `axes`: of the plan."""
    if len(rows) == 2:
        return (replace(whole, tables=tables[0]),)
    out = []
    for (a, b), numbers in zip(pairwise(rows), tables, strict=True):
        trips = np.clip(c.all_trips[:, 0] - a, 0, b - a)
        there = trips > 0
        bases = []
        for o, base in zip(c.nest.operands, c.bases.T, strict=True):
            first = np.zeros(len(trips), np.int64)
            first[c.positions] = base + (a * o.strides[0] if o.tables[0] is None else 0)
            bases.append(CoreInt.over(axes, np.where(there, first, 0), mesh))
        cut = (CoreInt.over(axes, trips, mesh), *whole.trips[1:])
        base = a * c.nest.out.strides[0]
        out.append(replace(whole, trips=cut, bases=tuple(bases), tables=numbers, out_base=base))
    return tuple(out)
