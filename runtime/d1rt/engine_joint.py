"""Which calls of many cores the fast engine makes as one: those whose cores share rows, or columns, of a product.

Cores that read the same window and hold different columns of the weights make a product with more columns; cores that
hold the same columns and read different windows make one with more rows. Their weights are copied once, in the panels
that d1rt.jit_joint takes. Only constants are: what a program writes is read where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.kernel import Nest
from d1c.target.program import Call, Program
from d1rt.engine_memory import Memory
from d1rt.engine_schedule import Step
from d1rt.jit_joint import MOST_LANES, MOST_ROWS, WORDS, Joint, joint_strides, most_rows
from d1rt.jit_vector import LANES

PANEL_BYTES = 160 << 10
"""Columns of a call are at most as many as make this many bytes, so that they stay in the host's second cache."""
FEW_ROWS = 24
"""Rows of a call, at least, where there are more: fewer read the columns too often."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Cores in sets that read the same windows, each set with a segment of the columns per core. `cores` [sets,
    segments]: positions in the step's cores; `rows` [sets]; `lanes` [segments]."""

    cores: np.ndarray
    rows: np.ndarray
    lanes: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """How a step's call is made for many cores at a time: by which kernel (`name`), for which groups."""

    name: str
    joint: Joint
    groups: list[Group]


class Joints:
    """Finds what steps can be made so, and packs their constants. `held`: the packed ones, which calls point into."""

    def __init__(self, program: Program, memory: Memory, wide: bool, dot: bool) -> None:
        self.program, self.memory, self.mesh = program, memory, program.mesh
        self._wide, self._dot = wide, dot
        self._packed: dict[tuple[object, ...], np.ndarray] = {}

    @property
    def held(self) -> list[np.ndarray]:
        return list(self._packed.values())

    def of(self, step: Step) -> Together | None:
        """How the cores of a step are called together; None where each is called by itself."""
        c = step.command
        if not isinstance(c, Call) or self.memory.plain or len(step.cores) < 2:
            return None
        nest = self.program.kernels[c.kernel][1]
        if nest.kind != "mac" or c.operands[1] not in self.memory.fixed:
            return None
        known, n = joint_strides(nest), nest.loops[nest.parallel - 1].extent
        lane = nest.parallel - 1
        if known is None or n > MOST_LANES or most_rows(nest) > MOST_ROWS:
            return None
        if self.memory.constant(c.operands[1]).nbytes < 4 * known[0] * n * len(self.memory.constant(c.operands[1])):
            return None
        cores, rooms = step.cores, self.memory.rooms
        bases = [v.of(self.mesh)[cores] for v in c.bases]
        trips = np.stack([v.of(self.mesh)[cores] for v in c.trips], axis=1)
        if bases[1].any():
            return None
        size = dtype(nest.operands[0].dtype).bytes
        reading = [rooms[b].at(cores) for b in c.tables]  # tables that differ mean rows that do
        window = np.stack(
            [rooms[c.operands[0]].at(cores) + bases[0] * size, *trips[:, :lane].T, *trips[:, lane + 1 :].T, *reading], 1
        )
        columns = np.stack([rooms[c.operands[1]].row[cores], trips[:, lane]], axis=1)
        reduced = trips[:, lane + 1 :]
        if (reduced != reduced[0]).any() or any((t != t[0]).any() for t in self._inner_tables(c, cores)):
            return None
        groups = grouped(window, columns, trips[:, :lane].prod(axis=1), trips[:, lane])
        if 2 * len(groups) > len(cores):
            return None
        joint = self._shape(nest, *known, groups)
        return Together(f"{self.program.kernels[c.kernel][0]} for {joint.rows} x {joint.vectors}", joint, groups)

    def _inner_tables(self, c: Call, cores: np.ndarray) -> list[np.ndarray]:
        """Per table of a reduce loop its address on every core: a call has one for all."""
        nest = self.program.kernels[c.kernel][1]
        used = {t for t in nest.operands[0].tables[nest.parallel :] if t is not None}
        return [self.memory.rooms[c.tables[t]].at(cores) for t in used]

    def _shape(self, nest: Nest, depth: int, strides: tuple[int, ...], groups: Sequence[Group]) -> Joint:
        """Blocks that fit the host's registers and the largest group."""
        rows = max(int(g.rows.sum()) for g in groups)
        lanes = max(int(g.lanes.sum()) for g in groups)
        high, vectors = min(rows, 6), 1
        while 2 * vectors * high <= (24 if self._wide else 6) and 2 * vectors * LANES <= lanes:
            vectors *= 2
        return Joint(nest, high, vectors, depth, strides, self._dot and nest.operands[1].dtype == "bf16")

    # ---- calls ------------------------------------------------------------------------------------------------------

    def calls(self, c: Call, t: Together, args: np.ndarray, step: Step, pieces: int) -> np.ndarray:
        """The words of a step's calls [calls, words]. `args`: argument arrays of the step's cores in their order,
        which are put into the order of the groups; `pieces`: about how many calls there should be."""
        order = np.concatenate([g.cores.reshape(-1) for g in t.groups])
        args[:] = args[order]
        width, first, made = args.shape[1] * 8, 0, []
        weights = self.memory.rooms[c.operands[1]].row[step.cores]
        whole = sum(int(g.rows.sum()) * len(self._chunks(t, g)) for g in t.groups)
        for g in t.groups:
            sets, segments = g.cores.shape
            cuts = _cuts(g.rows, min(max(whole // pieces, FEW_ROWS), MOST_ROWS))
            for lo, hi in self._chunks(t, g):
                panels, count = self._pack(c.operands[1], t.joint, weights[g.cores[0, lo:hi]], g.lanes[lo:hi])
                for begin, end in cuts:
                    at = args.ctypes.data + (first + begin * segments + lo) * width
                    made.append((panels, count, hi - lo, end - begin, at, width, segments * width))
            first += sets * segments
        out = np.array(made, np.int64)
        assert out.shape[1] == len(WORDS)
        return out

    def _chunks(self, t: Together, g: Group) -> list[tuple[int, int]]:
        """Segments of a group in runs of which each is one call's: full panels where there are such."""
        j, out, lo = t.joint, [], 0
        unit = LANES * j.vectors
        limit = min(MOST_LANES, max(unit, PANEL_BYTES // (4 * j.depth)))
        ends = np.cumsum(g.lanes)
        while lo < len(ends):
            before = int(ends[lo - 1]) if lo else 0
            lanes = ends[lo:] - before
            fits = max(1, int(np.searchsorted(lanes, limit, "right")))
            if lo + fits == len(ends):
                hi = len(ends)
            else:
                share = lanes[:fits] / (-(-lanes[:fits] // unit) * unit)
                hi = lo + 1 + int(fits - 1 - np.argmax(share[::-1]))
            out.append((lo, hi))
            lo = hi
        return out

    def _pack(self, buffer: int, j: Joint, rows: np.ndarray, lanes: np.ndarray) -> tuple[int, int]:
        """The address of these rows' columns in panels, and how many panels they are."""
        key = (buffer, j.depth, j.vectors, rows.tobytes(), lanes.tobytes())
        count = -(-int(lanes.sum()) // (LANES * j.vectors)) * j.vectors
        if key not in self._packed:
            b = j.nest.operands[1]
            array = self.memory.constant(buffer)
            pair = 2 if b.dtype == "bf16" else 1
            n = j.nest.loops[j.nest.parallel - 1].extent
            words = array[:, : j.depth * n * pair].view(np.uint32).reshape(len(array), j.depth, n)
            columns = np.zeros((j.depth, count * LANES), np.uint32)
            at = 0
            for row, width in zip(rows.tolist(), lanes.tolist(), strict=True):
                columns[:, at : at + width] = words[row, :, :width]
                at += width
            self._packed[key] = np.ascontiguousarray(columns.reshape(j.depth, count, LANES).transpose(1, 0, 2))
        return self._packed[key].ctypes.data, count


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
