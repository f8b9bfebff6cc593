"""Steps to work units of the native loop (engine_native): argument arrays of calls, records of messages and fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from d1c.target.dtypes import dtype, fill_value
from d1c.target.movement import ragged
from d1c.target.program import Call, Fetch, Fill, Loop, Program, Push, Send, every
from d1rt.engine_arguments import arguments
from d1rt.engine_joint import Joints, Together
from d1rt.engine_memory import Memory, Scatter
from d1rt.engine_native import CALLS, COPY, UNIT, Native
from d1rt.engine_records import Boxes, Group, boxes, chunks, groups
from d1rt.engine_schedule import Step
from d1rt.engine_states import Movement, holders
from d1rt.jit_nest import Kernels

COPIED = 96 << 10
"""Bytes of a copy unit, about, so that threads are done with a phase at the same time; a run counts for RUN more."""
RUN = 64
"""A run takes about as long as so many bytes of it."""
PIECES = 32
"""Units into which a thread's share of a call is cut, so that others can take some."""


_Copies = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Units of copies: their shares, records [n, 2] and of each unit the first, how many, and the words that do not depend
on where the buffers are."""


class Units:
    """Collects units phase by phase. `held`: arrays that the units point into. `read`: see `readers`."""

    def __init__(
        self, program: Program, moves: list[Movement], memory: Memory, kernels: Kernels, native: Native, threads: int,
        rng: np.random.Generator | None, joints: Joints, together: Mapping[int, Together],
        read: Mapping[int, np.ndarray],
    ) -> None:  # fmt: skip
        self._joints, self._together, self._read = joints, together, read
        self.program, self.mesh, self.moves, self.memory = program, program.mesh, moves, memory
        self.kernels, self.native, self.threads, self.rng = kernels, native, threads, rng
        self.held: list[np.ndarray] = []
        self._boxes: dict[Movement, Boxes] = {}
        self._pushes: dict[tuple[object, ...], _Copies] = {}
        self._pads: dict[tuple[Movement, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._done: list[np.ndarray] = []  # units of finished phases
        self._starts: list[np.ndarray] = []
        self._count = 0
        self._units: list[np.ndarray] = []  # of this phase
        self._share: list[np.ndarray] = []  # 0..1: which thread's they are

    def phase(self) -> None:
        """Start a phase; an empty one is dropped."""
        if not self._units:
            return
        units, share = np.concatenate(self._units), np.concatenate(self._share)
        if self.rng is not None:
            share = self.rng.permutation(share)
        thread = np.minimum((share * self.threads).astype(np.int64), self.threads - 1)
        order = np.argsort(thread, kind="stable")
        if self.rng is not None:
            mixed = self.rng.permutation(len(order))
            order = mixed[np.argsort(thread[mixed], kind="stable")]
        self._done.append(units[order])
        self._starts.append(self._count + np.searchsorted(thread[order], np.arange(self.threads)))
        self._count += len(order)
        self._units, self._share = [], []

    def mark(self) -> int:
        """End the phase; how many there have been."""
        self.phase()
        return len(self._starts)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(units, starts) as engine_native.Job takes them."""
        self.phase()
        units = np.concatenate(self._done) if self._done else np.zeros((0, UNIT), np.int64)
        return units, np.concatenate([*self._starts, np.array([self._count])])

    def add(self, step: Step) -> None:
        c = step.command
        if isinstance(c, Call):
            self.call(step, c)
        elif isinstance(c, Push):
            self.push(step, c)
        elif isinstance(c, Fetch):
            self.fetch(step, c)
        elif isinstance(c, Fill):
            self.fill(step, c)
        else:
            self.send(step, c)

    def emit(self, name: tuple[str, ...], share: np.ndarray, **words: np.ndarray | int) -> None:
        unit = np.zeros((len(share), UNIT), np.int64)
        for k, v in words.items():
            unit[:, name.index(k)] = v
        self._units.append(unit)
        self._share.append(share)

    # ---- calls ------------------------------------------------------------------------------------------------------

    def call(self, step: Step, c: Call) -> None:
        if (t := self._together.get(id(step))) is not None:
            self.call_together(t)
            return
        name = self.program.kernels[c.kernel][0]
        cores, rooms = step.cores, self.memory.rooms
        # cores that read the same rows of the largest shared operand go one after another: it stays in the host's cache
        size, key = 0, cores
        for b in c.operands:
            shared = rooms[b].classes is not None or b in self.memory.fixed
            if shared and rooms[b].stride > size:
                size, key = rooms[b].stride, rooms[b].row[cores]
        order = np.lexsort((cores, key))
        if self.rng is not None:
            order = self.rng.permutation(order)
        args = np.ascontiguousarray(arguments(self.program, self.memory, c, cores)[order])
        self.held.append(args)
        n = len(cores)
        _, start, count = chunks([n], max(1, n // (self.threads * PIECES)))
        stride = args.shape[1] * 8
        self.emit(
            CALLS, start / n, function=self.native.calls, kernel=self.kernels.address(name),
            arguments=args.ctypes.data + start * stride, count=count, stride=stride,
        )  # fmt: skip

    def call_together(self, t: Together) -> None:
        words = self._joints.calls(t, self.threads * PIECES)
        self.held += [t.arguments, words]
        n = len(words)
        self.emit(
            CALLS, np.arange(n) / n, function=self.native.calls, kernel=self.kernels.address(t.name),
            arguments=words.ctypes.data + np.arange(n) * words.shape[1] * 8, count=1, stride=0,
        )  # fmt: skip

    # ---- copies -----------------------------------------------------------------------------------------------------

    def copies(self, made: list[Group], source: int, target: int) -> None:
        """Units of record groups; offsets are from the host addresses `source` and `target`."""
        if made:
            self.place(self.gathered(made), source, target)

    def gathered(self, made: list[Group]) -> _Copies:
        if self.rng is not None:
            made = [Group(g.bytes, g.repeat, g.sstep, g.tstep, self.rng.permutation(g.records)) for g in made]
        records = np.concatenate([g.records for g in made])
        self.held.append(records)
        wide = records.dtype == np.int64
        counts = [len(g.records) for g in made]
        first = np.cumsum([0, *counts[:-1]])
        share = [max(1, COPIED // (g.repeat * (g.bytes + RUN))) for g in made]
        group, start, count = chunks(counts, share)
        facts = np.array(
            [(self.native.copy(g.bytes, wide), g.repeat, g.sstep, g.tstep, g.bytes) for g in made], np.int64
        )
        return start / np.array(counts)[group], records, first[group] + start, count, facts[group]

    def place(self, copies: _Copies, source: int, target: int) -> None:
        share, records, at, count, facts = copies
        function, repeat, sstep, tstep, size = facts.T
        self.emit(
            COPY, share, function=function, records=records.ctypes.data + at * records.itemsize * 2, count=count,
            repeat=repeat, source_step=sstep, target_step=tstep, source=source, target=target, bytes=size,
        )  # fmt: skip

    def inputs(self, ports: Sequence[Scatter]) -> None:
        """Phases that spread the inputs over their owners, and then over those who hold the same."""
        for s in ports:
            array = s.staged()
            self.held.append(array)
            source, target, size = s.runs()
            none = np.zeros(len(size), np.int64)
            self.copies(groups(source, target, size, none + 1, none, none), array.ctypes.data, s.room.base)
        self.phase()
        for s in ports:
            source, target = (row * s.room.stride for row in s.copies)
            none = np.zeros(len(source), np.int64)
            size = none + self.program.buffers[s.port.buffer].bytes
            self.copies(groups(source, target, size, none + 1, none, none), s.room.base, s.room.base)
        self.phase()

    def push(self, step: Step, c: Push) -> None:
        move, source, target = self.moves[c.exchange], self.memory.rooms[c.source], self.memory.rooms[c.target]
        m, size = move.messages, dtype(self.program.buffers[c.source].dtype).bytes
        # a network repeats its blocks: equal movements between buffers that lie alike have the same records
        key = move, size, *((id(r.row), r.stride, r.classes is None) for r in (source, target))
        if step.messages is None and self.rng is None and key in self._pushes:
            self.place(self._pushes[key], source.base, target.base)
            return
        if step.messages is not None:
            b = boxes(m, step.messages)
        elif move in self._boxes:
            b = self._boxes[move]
        else:
            b = self._boxes[move] = boxes(m, None)
        number = b.owner if step.messages is None else step.messages[b.owner]
        soff = source.row[m.src[number]] * source.stride + b.soff * size
        toff = b.toff * size
        boxed = [b.inner * size, b.repeat, b.sstep * size, b.tstep * size]
        if target.classes is not None:
            toff = toff + m.cls[number] * target.stride
        else:  # a row for every core of the class
            inside = np.flatnonzero(move.class_of >= 0)
            inside = inside[np.argsort(move.class_of[inside], kind="stable")]
            first = np.cumsum(move.size) - move.size
            o, i = ragged(move.size[m.cls[number]])
            core = inside[first[m.cls[number]][o] + i]
            soff, toff, boxed = soff[o], toff[o] + target.row[core] * target.stride, [x[o] for x in boxed]
        made = groups(soff, toff, *boxed)
        if made:
            copies = self.gathered(made)
            if step.messages is None:
                self._pushes[key] = copies
            self.place(copies, source.base, target.base)

    def send(self, step: Step, c: Send) -> None:
        assert step.targets is not None
        who, to = step.targets.T
        core = step.cores[who]
        source, target = self.memory.rooms[c.source], self.memory.rooms[c.target]
        size = dtype(self.program.buffers[c.source].dtype).bytes
        elements = c.elements.of(self.mesh)[core]
        soff = source.row[core] * source.stride + c.source_offset.of(self.mesh)[core] * size
        toff = target.row[to] * target.stride + c.target_offset.of(self.mesh)[core] * size
        on = elements > 0
        none = np.zeros(int(on.sum()), np.int64)
        self.copies(groups(soff[on], toff[on], elements[on] * size, none + 1, none, none), source.base, target.base)

    def fetch(self, step: Step, c: Fetch) -> None:
        rows, room = np.ascontiguousarray(self.program.weights[c.array]), self.memory.rooms[c.target]
        self.held.append(rows)
        size = rows.shape[1] * rows.itemsize
        soff, toff = c.index.of(self.mesh)[step.cores] * size, room.row[step.cores] * room.stride
        none = np.zeros(len(soff), np.int64)
        self.copies(groups(soff, toff, none + size, none + 1, none, none), rows.ctypes.data, room.base)

    def fill(self, step: Step, c: Fill) -> None:
        b, room = self.program.buffers[c.buffer], self.memory.rooms[c.buffer]
        d = dtype(b.dtype).numpy
        pattern = np.full(b.elements, fill_value(c.value, d), d)
        self.held.append(pattern)
        rows = np.unique(room.row[step.cores])
        if not self.memory.plain:
            rows = np.intersect1d(rows, room.row[self._read[c.buffer]])
        row, lo, inner = rows, np.zeros(len(rows), np.int64), np.full(len(rows), b.bytes)
        if c.exchange >= 0:
            pads = self.pads(c, rows)
            # Before anything is delivered the whole rows may be written: quicker where they are mostly padding.
            if step.late or self.memory.plain or RUN * len(pads[2]) + pads[2].sum() < RUN * len(inner) + inner.sum():
                row, lo, inner = pads
        none = np.zeros(len(lo), np.int64)
        self.copies(groups(lo, row * room.stride + lo, inner, none + 1, none, none), pattern.ctypes.data, room.base)

    def pads(self, c: Fill, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs of some rows of a window that its movement does not deliver: (row, first byte, bytes)."""
        move, room, b = self.moves[c.exchange], self.memory.rooms[c.buffer], self.program.buffers[c.buffer]
        key = move, b.elements  # a network repeats its blocks: equal movements are one
        if key not in self._pads:
            self._pads[key] = gaps(move, b.elements)
        cls, lo, hi = self._pads[key]
        of = np.zeros(int(room.row.max(initial=-1)) + 1, np.int64)
        of[room.row[room.row >= 0]] = move.class_of[room.row >= 0]
        of = of[rows]
        size = np.bincount(cls, minlength=len(move.size))
        r, k = ragged(size[of])
        at = (np.cumsum(size) - size)[of][r] + k
        width = dtype(b.dtype).bytes
        return rows[r], lo[at] * width, (hi[at] - lo[at]) * width

    def copy_out(self, buffer: int, cores: np.ndarray) -> np.ndarray:
        """A phase's copies of a buffer aside: the array [cores, elements] that they fill."""
        b, room = self.program.buffers[buffer], self.memory.rooms[buffer]
        out = np.zeros((len(cores), b.elements), dtype(b.dtype).numpy)
        self.held.append(out)
        none = np.zeros(len(cores), np.int64)
        made = groups(
            room.row[cores] * room.stride, np.arange(len(cores)) * b.bytes, none + b.bytes, none + 1, none, none
        )
        self.copies(made, room.base, out.ctypes.data)
        return out


def readers(program: Program, moves: Sequence[Movement], steps: Sequence[Step]) -> dict[int, np.ndarray]:
    """Per buffer [cores] who reads it: nothing need be filled for others, such as cores without work."""
    out = {i: np.zeros(program.mesh.cores, bool) for i in range(len(program.buffers))}
    for step in steps:
        c = step.command
        if isinstance(c, Call):
            for b in {*c.operands, *c.tables}:
                out[b][step.cores] = True
        elif isinstance(c, Push):
            out[c.source][moves[c.exchange].messages.src] = True
        elif isinstance(c, Send):
            out[c.source][step.cores] = True
    for port in program.outputs:
        out[port.buffer][holders(port, program)] = True
    for role in program.roles:
        for thread in role.threads:
            for command in every(thread):
                if isinstance(command, Loop) and command.condition >= 0:
                    out[command.condition][:] = True
    return out


def gaps(move: Movement, elements: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of a window of so many elements that a movement does not deliver: (class, first element, behind the last
    one)."""
    m = move.messages
    short = np.bincount(m.cls, m.sizes.prod(axis=0), len(move.size)) < elements  # most windows have no gaps
    picks = np.flatnonzero(short[m.cls])
    x = boxes(m, picks)
    o, i = ragged(x.repeat)
    none = np.flatnonzero(short)  # an empty run at the end of each
    cls = np.concatenate([m.cls[picks][x.owner[o]], none])
    start = np.concatenate([x.toff[o] + i * x.tstep[o], none * 0 + elements])
    end = start + np.concatenate([x.inner[o], none * 0])
    order = np.lexsort((start, cls))
    cls, start, end = cls[order], start[order], end[order]
    before = np.where(np.diff(cls, prepend=-1) == 0, np.roll(end, 1), 0)
    gap = before < start
    return cls[gap], before[gap], start[gap]
