"""Where the fast engine keeps what the cores' SRAM holds.

Either as it is (`plain`): SRAM after SRAM, every buffer at its address. Or buffer by buffer: the rows of all cores
behind each other, one row for a class of cores whose windows are equal, in memory that later buffers use again. A
program cannot tell the difference, because it reads only what was written to the buffer that it names; and a layer's
data stays in the host's cache. Constants are read where the program's weights are.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.program import Call, Fetch, Fill, Port, Program, Push
from d1rt.engine_schedule import Step, unaliased
from d1rt.engine_states import Movement, holders, placed

LINE = 64
PAD = 320
"""Bytes between the SRAMs of neighbours: without them equal addresses would fall into the same cache sets."""
TAIL = 4096


@dataclass(frozen=True, slots=True)
class Room:
    """A buffer's memory: row `row[core]` (-1: the core has none) at `base` + row * `stride`, bytes. `classes`: the
    movement whose classes share rows, None where every core has its own."""

    base: int
    stride: int
    row: np.ndarray
    classes: int | None = None

    def at(self, cores: np.ndarray) -> np.ndarray:
        """Host addresses of the buffer on these cores."""
        return np.asarray(self.base + self.row[cores] * self.stride)


class Memory:
    """Memory of a program whose `steps` run in the phases `phase` (one number a step). `rooms`: one per buffer;
    `plain`: how it is kept, an SRAM every `stride` bytes, with constants in there too where `copied`; `bytes`: how much
    is mapped. `loops`: from which phase to which there is one, and the conditions read there: what it uses is used in
    all of its rounds."""

    def __init__(
        self, program: Program, moves: list[Movement], steps: list[Step], phase: list[int], plain: bool, copied: bool,
        loops: Sequence[tuple[int, int, set[int]]] = (),
    ) -> None:  # fmt: skip
        self.program, self.mesh, self.plain = program, program.mesh, plain
        self.rooms = [Room(0, 0, np.full(self.mesh.cores, -1, np.int64))] * len(program.buffers)
        self._copied: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._arrays: dict[int, np.ndarray] = {}
        for buffer, index, weights in placed(program):
            if copied:
                self._copied.append((buffer, index, weights))
            else:
                array = np.ascontiguousarray(weights)
                self._arrays[buffer] = array
                self.rooms[buffer] = Room(array.ctypes.data, array.shape[1] * array.itemsize, index)
        self.fixed = set() if copied else {p.buffer for p in program.placements}
        if plain:
            self.stride = -(-int(program.machine["sram_bytes"]) // LINE) * LINE + PAD
            self.bytes = self.stride * self.mesh.cores + TAIL
            self._map()
            for i, b in enumerate(program.buffers):
                if i not in self.fixed:
                    self.rooms[i] = Room(self._base + b.address, self.stride, np.arange(self.mesh.cores))
        else:
            self._compact(moves, steps, phase, unaliased(steps, moves), loops)

    def _map(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        pages = mmap.mmap(-1, self.bytes, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE") and not self.plain:
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.view = np.frombuffer(pages, np.uint8)  # unmapped when the last view of it goes
        self._base = self.view.ctypes.data

    def start(self) -> None:
        """What SRAM holds before a run, besides inputs."""
        for buffer, index, weights in self._copied:
            holds = np.flatnonzero(index >= 0)
            self.array(buffer)[holds, : weights.shape[1]] = weights[index[holds]]

    def constant(self, buffer: int) -> np.ndarray:
        """[rows, elements] what a buffer in `fixed` holds."""
        return self._arrays[buffer]

    def firsts(self, buffer: int, cores: np.ndarray) -> Callable[[], np.ndarray]:
        """What reads element 0 of a buffer on these cores: the values, one per core."""
        rows = self.rooms[buffer].row[cores]
        if buffer in self.fixed:
            weights = [array for b, _, array in placed(self.program) if b == buffer][-1]
            return lambda: np.asarray(weights[rows, 0])
        array = self.array(buffer)
        return lambda: np.asarray(array[rows, 0])

    def _compact(
        self, moves: list[Movement], steps: list[Step], phase: list[int], own: set[int],
        loops: Sequence[tuple[int, int, set[int]]],
    ) -> None:  # fmt: skip
        buffers, cores = self.program.buffers, self.mesh.cores
        touched: dict[int, list[int]] = {}
        rows = {i: np.zeros(cores, bool) for i, b in enumerate(buffers) if i not in self.fixed}
        via: dict[int, set[int]] = {}
        for step, p in zip(steps, phase, strict=True):
            for b in touches(step):
                if b in rows:
                    touched.setdefault(b, []).append(p)
            c = step.command
            if isinstance(c, Call):
                rows[c.out][step.cores] = True
            elif isinstance(c, Fetch):
                rows[c.target][step.cores] = True
            elif isinstance(c, Push):
                rows[c.target] |= moves[c.exchange].class_of >= 0
                via.setdefault(c.target, set()).add(c.exchange)
            elif isinstance(c, Fill):
                rows[c.buffer][step.cores] = True
                if c.exchange >= 0:
                    via.setdefault(c.buffer, set()).add(c.exchange)
            elif step.targets is not None:
                rows[c.target][step.targets[:, 1]] = True
        for port in self.program.inputs:
            touched.setdefault(port.buffer, []).append(-1)
            rows[port.buffer][holders(port, self.program)] = True
        for port in self.program.outputs:
            touched.setdefault(port.buffer, []).append(max([-1, *phase, *(hi for _, hi, _ in loops)]) + 1)
        for lo, hi, conditions in loops:
            for b in conditions & rows.keys():
                touched.setdefault(b, []).append(lo)
            for when in touched.values():
                if any(lo <= p <= hi for p in when):
                    when += [lo, hi]
        spans: dict[int, tuple[int, int]] = {}
        size: dict[int, int] = {}
        stride: dict[int, int] = {}
        row: dict[int, np.ndarray] = {}
        classes: dict[int, int | None] = {}
        same: dict[bytes, np.ndarray] = {}
        for b, when in touched.items():
            spans[b] = (min(when), max(when))
            stride[b] = -(-buffers[b].bytes // LINE) * LINE
            shared = {moves[x].exchange.keyed + ("|",) + moves[x].exchange.fan_axes for x in via.get(b, ())}
            if len(shared) == 1 and b not in own:
                x = classes[b] = next(iter(via[b]))
                row[b] = moves[x].class_of
                count = len(moves[x].size)
            else:
                classes[b] = None
                row[b] = np.where(rows[b], np.cumsum(rows[b]) - 1, -1)
                count = int(rows[b].sum())
            row[b] = same.setdefault(row[b].tobytes(), row[b])
            size[b] = stride[b] * count
        at, self.bytes = first_fit(spans, size)
        self.bytes += TAIL
        self._map()
        for b, a in at.items():
            self.rooms[b] = Room(self._base + a, stride[b], row[b], classes[b])

    def array(self, buffer: int) -> np.ndarray:
        """[rows, elements] the memory of a buffer that is no constant."""
        b, room = self.program.buffers[buffer], self.rooms[buffer]
        d = dtype(b.dtype).numpy
        n = int(room.row.max(initial=-1)) + 1
        return np.ndarray((n, b.elements), d, self.view.data, room.base - self._base, (room.stride, d.itemsize))

    def flat(self, buffer: int) -> np.ndarray:
        """The memory from the first row of a buffer to the end, as its elements: rows lie whole elements apart."""
        d, room = dtype(self.program.buffers[buffer].dtype).numpy, self.rooms[buffer]
        start = room.base - self._base
        return np.ndarray((self.bytes - start) // d.itemsize, d, self.view.data, start)


def touches(step: Step) -> tuple[int, ...]:
    """Buffers that a step reads or writes."""
    c = step.command
    if isinstance(c, Call):
        return (c.out, *c.operands, *c.tables)
    if isinstance(c, Fill):
        return (c.buffer,)
    if isinstance(c, Fetch):
        return (c.target,)
    return (c.source, c.target)


def written(step: Step) -> int:
    """The buffer that a step writes."""
    c = step.command
    return c.out if isinstance(c, Call) else c.buffer if isinstance(c, Fill) else c.target


def first_fit(spans: Mapping[int, tuple[int, int]], size: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """Addresses of things in use over (first, last), largest first, each in the lowest gap; and how much that takes."""
    at: dict[int, int] = {}
    for b in sorted(size, key=lambda b: (-size[b], b)):
        busy = sorted((at[o], at[o] + size[o]) for o in at if spans[o][0] <= spans[b][1] and spans[b][0] <= spans[o][1])
        place = 0
        for lo, hi in busy:
            if place + size[b] <= lo:
                break
            place = max(place, hi)
        at[b] = place
    return at, max((at[b] + size[b] for b in at), default=0)


class Scatter:
    """A port's elements in memory, in the array's order."""

    def __init__(self, memory: Memory, port: Port) -> None:
        mesh, room = memory.mesh, memory.rooms[port.buffer]
        spans = port.layout.spans(port.shape)
        local = port.layout.local_shape(port.shape)
        shape = [n for _, _, _, n in spans]
        core, element = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        stride = 1
        for k in reversed(range(len(spans))):
            _, _, g, n = spans[k]
            i = np.arange(n)
            block = g.block if g.axes else max(n, 1)
            side = (-1,) + (1,) * (len(spans) - 1 - k)
            core += mesh.core_offset(g.axes, i // block).reshape(side)
            element += (i % block * stride).reshape(side)
            stride *= local[k]
        self.port, self.room, self._flat = port, room, memory.flat(port.buffer)
        self._size = dtype(memory.program.buffers[port.buffer].dtype).bytes
        self._at = room.row[core.reshape(-1)] * (room.stride // self._size) + element.reshape(-1)
        cores, axes = holders(port, memory.program), port.layout.axes
        first = mesh.core_offset(axes, mesh.position(axes, cores))  # whose bits a replica's are
        other = cores != first
        self.copies = room.row[first[other]], room.row[cores[other]]

    def staged(self) -> np.ndarray:
        """An array of the port's elements from which units spread what is put there (`runs`)."""
        self._staged = np.zeros(len(self._at), self._flat.dtype)
        return self._staged

    def runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What lies side by side in the array and in memory: (offset in the array, offset in the buffer's memory,
        bytes)."""
        n = len(self._at)
        begin = np.flatnonzero(np.concatenate((np.ones(min(n, 1), bool), np.diff(self._at) != 1)))
        return begin * self._size, self._at[begin] * self._size, np.diff(np.append(begin, n)) * self._size

    def put(self, value: np.ndarray) -> None:
        """Lay a whole array of the port's shape where the units take it from."""
        self._staged[:] = value.reshape(-1)

    def get(self) -> np.ndarray:
        """A whole array from its owners' memory."""
        return np.asarray(self._flat[self._at]).reshape(self.port.shape)
