"""Which calls of many cores the fast engine makes as one: those whose cores share rows, or columns, of a product.

Cores that read the same window and hold different columns of the weights make a product with more columns; cores that
hold the same columns and read different windows make one with more rows. Constants are copied once into the panels that
d1rt.jit_joint takes; columns that the program writes are packed in every call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.kernel import Nest, Operand
from d1c.target.movement import ragged
from d1c.target.program import Call, Program
from d1rt.engine_arguments import arguments
from d1rt.engine_memory import Memory
from d1rt.engine_schedule import Step
from d1rt.jit_joint_shape import (
    EXPAND_LANES,
    MOST_LANES,
    MOST_ROWS,
    WORDS,
    Joint,
    Matrix,
    expandable,
    matrix,
    most_rows,
    registers,
    uneven,
)
from d1rt.jit_vector import LANES

PANEL_BYTES, FULL_PANEL_BYTES = 160 << 10, 400 << 10
"""Columns of a call are at most as many as make this many bytes, so that they stay in the host's second cache; of
constants so many where fewer would leave panels largely empty."""
WORTH = 0.9
"""Share of the lanes, at most, for which that is worth while."""
PIECE = 4 << 20
"""Words of packed columns that are allocated together."""
FEW_ROWS = 24
"""Rows of a call, at least, where there are more: fewer read the columns too often."""
PACKED_ROWS = (12, 2)
"""Rows of a group, on average, from which on it is worth while to pack columns in every run: those of cores with whole
vectors of columns, and those of others."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Cores in sets that read the same windows, each set with a segment of the columns per core. `cores` [sets,
    segments]: positions in the step's cores; `rows` [sets]; `lanes` [segments]."""

    cores: np.ndarray
    rows: np.ndarray
    lanes: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """How a step's call is made for many cores at a time: by which kernel (`name`), for which groups; `arguments`:
    those of the cores, in the groups' order; `constant`: the buffer that has the columns, None where it is written."""

    name: str
    joint: Joint
    groups: list[Group]
    arguments: np.ndarray
    constant: int | None


class Joints:
    """Finds what steps can be made so, and packs their constants. `held`: the packed ones, which calls point into."""

    def __init__(self, program: Program, memory: Memory, wide: bool, dot: bool) -> None:
        self.program, self.memory = program, memory
        self._wide, self._dot = wide, dot
        self._packed: dict[tuple[object, ...], np.ndarray] = {}
        self._rows = self._free = np.zeros(0, np.uint32)

    @property
    def held(self) -> list[np.ndarray]:
        return list(self._packed.values())

    def of(self, step: Step) -> Together | None:
        """How the cores of a step are called together; None where each is called by itself."""
        c = step.command
        if not isinstance(c, Call) or self.memory.plain:
            return None
        name, nest = self.program.kernels[c.kernel]
        m, lane = matrix(nest), nest.parallel - 1
        if m is None or nest.loops[lane].extent > MOST_LANES:
            return None
        args = arguments(self.program, self.memory, c, step.cores)
        if (unrolled := self._unrolled(c, m, args, step.cores)) is None:
            return None
        nest, args = unrolled
        if len(args) < 2 or most_rows(nest) > MOST_ROWS:
            return None
        first = 1 + len(nest.operands)
        trips = args[:, first + nest.tables : first + nest.tables + len(nest.loops)]
        reduced, tables = trips[:, lane + 1 :], args[:, first : first + nest.tables]
        inner = sorted({t for t in nest.operands[0].tables[nest.parallel :] if t is not None})
        if (reduced != reduced[0]).any() or (tables[:, inner] != tables[0, inner]).any():
            return None
        window = np.concatenate([args[:, 1:2], trips[:, :lane], tables], axis=1)
        columns = np.stack([args[:, 2], trips[:, lane]], axis=1)
        groups = grouped(window, columns, trips[:, :lane].prod(axis=1), trips[:, lane])
        constant = c.operands[1] if c.operands[1] in self.memory.fixed else None
        rows = sum(int(g.rows.sum()) for g in groups)
        worth = PACKED_ROWS[nest.loops[lane].extent < LANES] * len(groups)
        if 2 * len(groups) > len(args) or (constant is None and rows < worth):
            return None
        joint = self._shape(nest, m, groups, constant is None)
        args = args[np.concatenate([g.cores.reshape(-1) for g in groups])]
        j = joint
        how = j.rows, j.vectors, j.width, j.lanes, j.expand, j.whole, j.uneven  # what tells kernels apart
        return Together(f"{name} {how}", joint, groups, args, constant)

    def _unrolled(self, c: Call, m: Matrix, args: np.ndarray, cores: np.ndarray) -> tuple[Nest, np.ndarray] | None:
        """The nest without loops that move rows and columns alike, and arguments for each of their iterations. None
        where their steps are in a table that the program writes."""
        nest = self.program.kernels[c.kernel][1]
        slots = (nest.out, *nest.operands)
        first = len(slots) + nest.tables
        for i in m.outer:
            owner, number = ragged(args[:, first + i])
            args, cores = args[owner], cores[owner]
            args[:, first + i] = 1
            for s, o in enumerate(slots):
                step = number * o.strides[i]
                if (t := o.tables[i]) is not None:
                    if c.tables[t] not in self.memory.fixed:
                        return None
                    entries = self.memory.constant(c.tables[t]).view(np.uint32)
                    step = entries[self.memory.rooms[c.tables[t]].row[cores], number].astype(np.int64)
                args[:, s] += step * dtype(o.dtype).bytes
        if m.outer:
            loops = tuple(replace(x, extent=1) if i in m.outer else x for i, x in enumerate(nest.loops))
            out, *operands = (_without(o, m.outer) for o in slots)
            nest = replace(nest, loops=loops, operands=tuple(operands), out=out)
            args = np.concatenate([args[:, : len(slots) + nest.tables], args[:, first:]], axis=1)
        return nest, args

    def _shape(self, nest: Nest, m: Matrix, groups: Sequence[Group], packs: bool) -> Joint:
        """Blocks that fit the host's registers and the largest group."""
        rows = max(int(g.rows.sum()) for g in groups)
        lanes = max(int(g.lanes.sum()) for g in groups)
        dot = self._dot and nest.operands[1].dtype == "bf16"
        high, vectors, width = registers(self._wide, dot, rows, lanes)
        unit = LANES * vectors
        most = -(-max(_limit(m, unit), nest.loops[nest.parallel - 1].extent) // unit) * unit if packs else 0
        expand = not dot and lanes >= EXPAND_LANES and expandable(nest, m)
        whole = all((g.lanes == nest.loops[nest.parallel - 1].extent).all() for g in groups)
        call = min(rows, MOST_ROWS)
        return Joint(nest, m, high, vectors, width, most, expand, whole, dot, uneven=uneven(call, high))

    # ---- calls ------------------------------------------------------------------------------------------------------

    def calls(self, t: Together, pieces: int) -> np.ndarray:
        """The words of a step's calls [calls, words]. `pieces`: about how many calls there should be."""
        args, first, made = t.arguments, 0, []
        width, chunks = args.shape[1] * 8, [self._chunks(t, g) for g in t.groups]
        whole = sum(int(g.rows.sum()) * len(c) for g, c in zip(t.groups, chunks, strict=True))
        few = FEW_ROWS if t.constant is not None else MOST_ROWS
        for g, cut in zip(t.groups, chunks, strict=True):
            sets, segments = g.cores.shape
            cuts = _cuts(g.rows, min(max(whole // pieces, few), MOST_ROWS))
            for lo, hi in cut:
                panels, lanes = 0, g.lanes[lo:hi]
                unit = LANES * t.joint.vectors
                count = -(-int(lanes.sum()) // unit) * t.joint.vectors
                if t.constant is not None:
                    panels = self._pack(t.constant, t.joint, args[first + lo : first + hi, 2], lanes, count)
                for begin, end in cuts:
                    at = args.ctypes.data + (first + begin * segments + lo) * width
                    made.append((panels, count, hi - lo, end - begin, at, width, segments * width))
            first += sets * segments
        out = np.array(made, np.int64)
        assert out.shape[1] == len(WORDS)
        return out

    def _chunks(self, t: Together, g: Group) -> list[tuple[int, int]]:
        """Segments of a group in runs of which each is one call's."""
        unit = LANES * t.joint.vectors
        out, lanes = _runs(g.lanes, unit, _limit(t.joint.matrix, unit))
        if t.constant is not None:  # else the scratch has no room for more
            longer, fewer = _runs(g.lanes, unit, _limit(t.joint.matrix, unit, FULL_PANEL_BYTES))
            if fewer <= WORTH * lanes:
                return longer
        return out

    def _pack(self, buffer: int, j: Joint, columns: np.ndarray, lanes: np.ndarray, count: int) -> int:
        """The address of the constants at these addresses, so many lanes of each, in `count` panels."""
        array, m = self.memory.constant(buffer), j.matrix
        offsets = columns - array.ctypes.data
        key = (buffer, m.depth, m.pitch, m.across, count, offsets.tobytes(), lanes.tobytes())
        if key not in self._packed:
            data = array.reshape(-1).view(np.uint8).data
            words = self._wide_rows(m.depth * count * LANES).reshape(m.depth, count * LANES)
            at = 0
            for offset, width in zip(offsets.tolist(), lanes.tolist(), strict=True):
                steps = 4 * m.pitch, 4 * m.across
                words[:, at : at + width] = np.ndarray((m.depth, width), np.uint32, data, offset, steps)
                at += width
            words[:, at:] = 0
            packed = self._packed[key] = self._place(words.size).reshape(count, m.depth, LANES)
            packed[:] = words.reshape(m.depth, count, LANES).transpose(1, 0, 2)
        return self._packed[key].ctypes.data

    def _wide_rows(self, words: int) -> np.ndarray:
        """Memory to use again and again: new pages cost more than what is written to them."""
        if len(self._rows) < words:
            self._rows = np.empty(words, np.uint32)
        return self._rows[:words]

    def _place(self, words: int) -> np.ndarray:
        """Memory for packed columns, on a line of the cache: of large pieces, which have large pages."""
        words = -(-words // LANES) * LANES
        if len(self._free) < words:
            raw = np.empty(max(PIECE, words) + LANES, np.uint32)
            self._free = raw[-(raw.ctypes.data // 4) % LANES :]
        out, self._free = self._free[:words], self._free[words:]
        return out


def _limit(m: Matrix, unit: int, size: int = PANEL_BYTES) -> int:
    """Columns of a call, at most, unless one core has more."""
    return min(MOST_LANES, max(unit, size // (4 * m.depth)))


def _runs(lanes: np.ndarray, unit: int, limit: int) -> tuple[list[tuple[int, int]], int]:
    """Segments of so many lanes in runs of at most `limit` lanes, full panels where there are such; how many lanes the
    panels have in all."""
    out, lo, padded = [], 0, 0
    ends = np.cumsum(lanes)
    while lo < len(ends):
        some = ends[lo:] - (int(ends[lo - 1]) if lo else 0)
        many = max(1, int(np.searchsorted(some, limit, "right")))
        whole = -(-some // unit) * unit
        if lo + many < len(ends):
            many -= int(np.argmax((some / whole)[:many][::-1]))
        out.append((lo, lo + many))
        padded += int(whole[many - 1])
        lo += many
    return out, padded


def _without(o: Operand, loops: Collection[int]) -> Operand:
    """The operand when it no longer moves with these loops. Tables keep their numbers."""
    strides = tuple(0 if i in loops else x for i, x in enumerate(o.strides))
    return replace(o, strides=strides, tables=tuple(None if i in loops else t for i, t in enumerate(o.tables)))


def grouped(window: np.ndarray, columns: np.ndarray, rows: np.ndarray, lanes: np.ndarray) -> list[Group]:
    """Cores [n] with what tells their windows and their columns apart, in groups: all pairs of some windows and some
    columns. Cores that have both in common are in different sets."""
    n = len(rows)
    a, b = ranks(window), ranks(columns)
    pair = a * n + b
    order = np.argsort(pair, kind="stable")
    new = np.concatenate(([True], pair[order][1:] != pair[order][:-1]))
    nth = np.zeros(n, np.int64)  # of the cores with the same pair
    nth[order] = np.arange(n) - np.maximum.accumulate(np.where(new, np.arange(n), 0))
    order = np.lexsort((b, nth, a))
    sets = np.flatnonzero(
        np.concatenate(([True], (a[order][1:] != a[order][:-1]) | (nth[order][1:] != nth[order][:-1])))
    )
    marks = np.random.default_rng(0).integers(1 << 63, size=int(b.max()) + 1, dtype=np.uint64)
    told = np.add.reduceat(marks[b[order]], sets)  # which columns a set has
    size = np.diff(np.append(sets, n))
    kind = ranks(np.stack([told.view(np.int64), size], 1))
    out = []
    for k in range(int(kind.max()) + 1):
        of = np.flatnonzero(kind == k)
        cores = order[sets[of][:, None] + np.arange(size[of[0]])]
        out.append(Group(cores, rows[cores[:, 0]], lanes[cores[0]]))
    return out


def ranks(rows: np.ndarray) -> np.ndarray:
    """[n] numbers from 0 of the different rows of [n, columns] int64, in their lexicographic order."""
    out = np.zeros(len(rows), np.int64)
    for column in rows.T:
        if (column == column[0]).all():
            continue
        values = np.unique(column, return_inverse=True)[1]
        out = np.unique(out * (int(values.max()) + 1) + values, return_inverse=True)[1] if out.any() else values
    return out


def _cuts(rows: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Sets of so many rows in runs of at most `most` rows (but at least one set)."""
    out, lo = [], 0
    ends = np.cumsum(rows)
    while lo < len(ends):
        before = int(ends[lo - 1]) if lo else 0
        hi = max(lo + 1, int(np.searchsorted(ends, before + most, "right")))
        out.append((lo, hi))
        lo = hi
    return out
