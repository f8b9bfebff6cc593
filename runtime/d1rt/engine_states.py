"""What the fast engine knows of memory while it orders a program's commands: which bytes are free, which are written.

`Bytes` knows every byte of every core, as the plain engine does, and raises the same traps; it is for small programs.
`Slots` knows buffers as a whole, for all cores at once. It is stricter: what it cannot prove it traps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from d1c.errors import Trap
from d1c.target.mesh import place
from d1c.target.movement import Exchange, Messages, ragged
from d1c.target.program import Buffer, Call, Command, Fetch, Fill, Free, Loop, Port, Program, Push, Send
from d1rt import engine_numpy, state
from d1rt.command_cycles import participants
from d1rt.engine_parts import Reads, Results, windows
from d1rt.state import MAYBE
from d1rt.traps import FREE_BYTES, WRITTEN_BYTES, Fault, core_text, trap


class Movement:
    """What the cores know of one exchange. `class_of` [cores]: a core's class, -1 outside the movement; `size`
    [classes]: cores of each class; `counts` [classes] and `expected` [cores]: messages that arrive; `padded` [cores]:
    whether the window has elements that none delivers."""

    def __init__(self, exchange: Exchange) -> None:
        mesh = exchange.mesh
        self.exchange, self.mesh = exchange, mesh
        self.messages: Messages = exchange.messages()
        inside = participants(exchange)
        self.class_of = np.where(inside, mesh.position(exchange.keyed), -1)
        classes = self.messages.classes
        self.size = np.bincount(self.class_of[inside], minlength=len(classes))
        self.counts = np.bincount(self.messages.cls, minlength=len(classes))
        self.expected = self.per_core(self.counts)
        real, length = np.ones(len(classes), np.int64), np.ones(len(classes), np.int64)
        for c in exchange.components:
            position = mesh.position(c.target_axes, classes)
            real, length = real * c.real[position], length * c.length[position]
        self.padded = self.per_core(real != length)

    def per_core(self, per_class: np.ndarray) -> np.ndarray:
        """[cores] from [classes]; 0 outside the movement."""
        return np.where(self.class_of >= 0, per_class[self.class_of], np.zeros(1, per_class.dtype))


def movements(exchanges: Sequence[Exchange]) -> list[Movement]:
    """One per exchange; equal exchanges (a network repeats its blocks) share theirs."""
    known: dict[tuple[object, ...], Movement] = {}
    out = []
    for x in exchanges:
        key = x.mesh.axes, x.source_held, x.target_held, x.plan_axes, *(c.key for c in x.components)
        if key not in known:
            known[key] = Movement(x)
        out.append(known[key])
    return out


class Memory(Protocol):
    """States of memory. Methods are the commands, for the given cores; they raise Trap."""

    def call(self, c: Call, cores: np.ndarray) -> None: ...

    def push(self, c: Push, cores: np.ndarray, picks: np.ndarray | None) -> None: ...

    def send(self, c: Send, cores: np.ndarray, who: np.ndarray, to: np.ndarray) -> None: ...

    def fetch(self, c: Fetch, cores: np.ndarray) -> None: ...

    def fill(self, c: Fill, cores: np.ndarray) -> bool:
        """Whether messages may have come first."""

    def free(self, c: Free, cores: np.ndarray) -> None: ...

    def condition(self, c: Loop, cores: np.ndarray) -> None: ...

    def output(self, port: Port) -> None: ...

    def state(self, buffers: Sequence[int]) -> Any:
        """What is known of these buffers now."""

    def changed(self, state: Any) -> tuple[int, int] | None:
        """(core, buffer) of a buffer of which something else is known now than in `state`; None: there is none."""

    def join(self, state: Any) -> None:
        """Know only what is true both now and in `state`: written in both, or free in both, or neither."""


def holders(port: Port, program: Program) -> np.ndarray:
    """All cores that hold a share of a port, replicas too."""
    mesh = program.mesh
    holds = np.ones(mesh.cores, bool)
    for a in port.layout.held:
        holds &= mesh.coords[:, mesh.index[a]] == 0
    for _, _, g, n in port.layout.spans(port.shape):
        if g.axes:
            holds &= mesh.position(g.axes) * g.block < n
    return np.flatnonzero(holds)


def placed(program: Program) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Per placement: buffer, its row index on every core (-1: none), the weights."""
    out = []
    for p in program.placements:
        index = p.index.of(program.mesh)
        for a in p.held:
            index = np.where(program.mesh.coords[:, program.mesh.index[a]] == 0, index, -1)
        out.append((p.buffer, index, program.weights[p.array]))
    return out


def overlaps(buffers: tuple[Buffer, ...]) -> list[list[int]]:
    """Per buffer the others whose addresses overlap with it."""
    out: list[list[int]] = [[] for _ in buffers]
    order = sorted(range(len(buffers)), key=lambda i: buffers[i].address)
    for k, i in enumerate(order):
        end = buffers[i].address + buffers[i].bytes
        for j in order[k + 1 :]:
            if buffers[j].address >= end:
                break
            out[i].append(j)
            out[j].append(i)
    return out


_UNKNOWN = -2
"""A movement, or none: data decides which fills the buffer."""


class Slots:
    """Buffers as a whole, or in parts of rows (`results`, `parts`). A buffer is written when a call has written to it,
    all its messages have come (and its padding is filled), or it is placed or an input; live from the first write
    until Free."""

    def __init__(self, program: Program, moves: list[Movement]) -> None:
        self.program, self.moves, self.buffers = program, moves, program.buffers
        self.near = overlaps(program.buffers)
        shape = len(program.buffers), program.mesh.cores
        self.written, self.live, self.filled = (np.zeros(shape, bool) for _ in range(3))
        self.arrived, self.filling = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        self.sent: dict[int, np.ndarray] = {}  # [cores, elements] of buffers that Sends write
        self.reads, self.results, self.parts = Reads(program), Results(program), windows(program)
        for port in program.inputs:
            cores = holders(port, program)
            self.written[port.buffer, cores] = self.live[port.buffer, cores] = True
        for buffer, index, _ in placed(program):
            self.written[buffer] |= index >= 0
            self.live[buffer] |= index >= 0

    def call(self, c: Call, cores: np.ndarray) -> None:
        for b in dict.fromkeys((*c.operands, *c.tables)):
            self.require_written(c, b, cores, partial(self.reads.call, c, b))
        if c.out in self.results.upto:
            self.require_free(c, c.out, self.results.write(c, cores))
        else:
            self.require_free(c, c.out, self.mask(cores) & self.live[c.out])
            self.written[c.out, cores] = True
        self.require_near(c, c.out, self.mask(cores))
        self.live[c.out, cores] = True

    def push(self, c: Push, cores: np.ndarray, picks: np.ndarray | None) -> None:
        move, b = self.moves[c.exchange], c.target
        m = move.messages
        senders = np.flatnonzero(self.mask(m.src if picks is None else m.src[picks]))
        self.require_written(c, c.source, senders, lambda: self.reads.push(c, m))
        counts = move.counts if picks is None else np.bincount(m.cls[picks], minlength=len(move.counts))
        new = move.per_core(counts).astype(np.int32)
        to = new > 0
        part = self.parts[b] if move.exchange.cut is not None else None
        number, come = (c.exchange, self.arrived[b]) if part is None else (part.number, part.come[c.exchange])
        other = (self.filling[b] != number) & (self.filling[b] != -1)
        self.require_free(c, b, to & (other | (come + new > move.expected)))
        self.require_free(c, b, to & (self.filling[b] == -1) & self.live[b] & ~self.filled[b])
        self.require_near(c, b, to)
        come += new
        self.filling[b, to] = number
        self.live[b] |= to
        if part is None:
            self.written[b] |= to & (self.arrived[b] == move.expected) & (self.filled[b] | ~move.padded)

    def send(self, c: Send, cores: np.ndarray, who: np.ndarray, to: np.ndarray) -> None:
        self.require_written(c, c.source, cores[np.unique(who)], lambda: self.reads.send(c))
        mesh, b = self.program.mesh, c.target
        filled = self.sent.setdefault(b, np.zeros((mesh.cores, self.buffers[b].elements), bool))
        owner, i = ragged(c.elements.of(mesh)[cores][who])
        places = to[owner] * filled.shape[1] + c.target_offset.of(mesh)[cores][who][owner] + i
        order = np.sort(places)
        twice = order[1:][order[1:] == order[:-1]] // filled.shape[1]
        self.require_free(c, b, self.mask(np.concatenate([twice, to[owner[filled.reshape(-1)[places]]]])))
        self.require_free(c, b, self.mask(to) & self.live[b] & ~filled.any(axis=1))
        self.require_near(c, b, self.mask(to))
        filled.reshape(-1)[places] = True
        self.live[b, to] = True
        self.written[b, to] = filled[to].all(axis=1)

    def fetch(self, c: Fetch, cores: np.ndarray) -> None:
        self.require_free(c, c.target, self.mask(cores) & self.live[c.target])
        self.require_near(c, c.target, self.mask(cores))
        self.live[c.target, cores] = True
        whole = self.program.weights[c.array].shape[1] == self.buffers[c.target].elements
        self.written[c.target, cores] = whole

    def fill(self, c: Fill, cores: np.ndarray) -> bool:
        b = c.buffer
        number = self.parts[b].number if b in self.parts else c.exchange
        early = (self.filling[b] == number) & ~self.filled[b] & (c.exchange >= 0)  # messages came first
        self.require_free(c, b, self.mask(cores) & self.live[b] & ~early)
        self.require_near(c, b, self.mask(cores))
        self.live[b, cores] = self.filled[b, cores] = True
        if c.exchange < 0:
            self.written[b, cores] = True
            self.filled[b, cores] = False  # nothing is left for messages
        elif b not in self.parts:
            self.written[b, cores] = self.arrived[b, cores] == self.moves[c.exchange].expected[cores]
        return bool(early[cores].any())

    def free(self, c: Free, cores: np.ndarray) -> None:
        at: Any = slice(None) if len(cores) == self.program.mesh.cores else cores
        for b in c.buffers:
            self.written[b, at] = self.live[b, at] = self.filled[b, at] = False
            self.arrived[b, at], self.filling[b, at] = 0, -1
        for b in set(c.buffers) & set(self.sent):
            self.sent[b][cores] = False
        for rows in self.in_parts(c.buffers):
            rows[cores] = 0

    def in_parts(self, buffers: Sequence[int]) -> list[np.ndarray]:
        """How much is there of those that come in parts: arrays over the cores."""
        results = [self.results.upto[b] for b in buffers if b in self.results.upto]
        return results + [come for b in buffers if b in self.parts for come in self.parts[b].come.values()]

    def condition(self, c: Loop, cores: np.ndarray) -> None:
        self.require_written(c, c.condition, cores, lambda: np.ones(self.program.mesh.cores, np.int64))

    def state(self, buffers: Sequence[int]) -> Any:
        rows = np.array(buffers, np.int64)
        known = [a[rows] for a in (self.written, self.live, self.filled, self.arrived, self.filling)]
        parts = [(x, x.copy()) for x in self.in_parts(buffers)]
        return rows, known, {b: self.sent[b].copy() for b in buffers if b in self.sent}, parts

    def changed(self, state: Any) -> tuple[int, int] | None:
        rows, known, sent, parts = state
        new = (self.written, self.live, self.filled, self.arrived, self.filling)
        odd = np.any([a[rows] != old for a, old in zip(new, known, strict=True)], axis=0)
        for i, b in enumerate(rows.tolist()):
            if b in self.sent:
                odd[i] |= np.any(self.sent[b] != sent.get(b, False), axis=1)
        for now, old in parts:
            odd[0] |= now != old
        at, core = np.nonzero(odd)
        return (int(core[0]), int(rows[at[0]])) if len(at) else None

    def join(self, state: Any) -> None:
        rows, (written, live, filled, arrived, filling), sent, parts = state
        for now, old in parts:  # rows that are surely there
            np.minimum(now, old, out=now)
        self.written[rows] &= written
        self.live[rows] |= live
        self.filled[rows] &= filled
        self.arrived[rows] = np.maximum(self.arrived[rows], arrived)
        self.filling[rows] = np.where(self.filling[rows] == filling, filling, _UNKNOWN)
        for b in rows.tolist():
            if b in self.sent:  # until it is freed, no more may come where it is not known what has
                odd = np.any(self.sent[b] != sent.get(b, False), axis=1)
                self.sent[b][odd] = True

    def output(self, port: Port) -> None:
        bad = holders(port, self.program)
        bad = bad[self.unwritten(port.buffer, bad, lambda: self.reads.output(port))]
        if len(bad):
            b, core = self.buffers[port.buffer], core_text(self.program.mesh, int(bad[0]))
            raise Trap(
                f"output {port.name!r} is not written", core=core, address=b.address, buffer=b.name, op="output",
                rule=WRITTEN_BYTES,
            )  # fmt: skip

    def mask(self, cores: np.ndarray) -> np.ndarray:
        out = np.zeros(self.program.mesh.cores, bool)
        out[cores] = True
        return out

    def unwritten(self, buffer: int, cores: np.ndarray, need: Callable[[], np.ndarray]) -> np.ndarray:
        """Mask over `cores`: of whom the first need() elements of a buffer may not be written."""
        missing = ~self.written[buffer]
        if buffer in self.results.upto:
            missing = missing & (self.results.upto[buffer] < need())
        elif buffer in self.parts:
            part, wanted = self.parts[buffer], need()
            ready = np.ones(len(missing), bool)
            for i, first in enumerate(part.begins.tolist()):
                ready &= (wanted <= first) | part.ready(i, self.filled[buffer], self.moves)
            missing = missing & ~ready
        return np.asarray(missing[cores])

    def require_written(self, c: Command, buffer: int, cores: np.ndarray, need: Callable[[], np.ndarray]) -> None:
        bad = cores[self.unwritten(buffer, cores, need)]
        if len(bad):
            b = self.buffers[buffer]
            fault = Fault(f"uninitialised read: {b.name} is not wholly written", b.address, b.name, WRITTEN_BYTES)
            raise trap(self.program, int(bad[0]), c, fault)

    def require_free(self, c: Command, buffer: int, bad: np.ndarray) -> None:
        if bad.any():
            b = self.buffers[buffer]
            fault = Fault(f"missing credit: {b.name} is not free", b.address, b.name, FREE_BYTES)
            raise trap(self.program, int(np.argmax(bad)), c, fault)

    def require_near(self, c: Command, buffer: int, to: np.ndarray) -> None:
        for o in self.near[buffer]:
            if (to & self.live[o]).any():
                self.require_free(c, o, to & self.live[o])


class Bytes:
    """Every byte of every core."""

    def __init__(self, program: Program, moves: list[Movement]) -> None:
        self.program, self.mesh, self.buffers = program, program.mesh, program.buffers
        self.moves = [state.Movement(x) for x in program.exchanges]
        self.tables = engine_numpy.Engine(program)
        size = max((b.address + b.bytes for b in program.buffers), default=0)
        self.cores = [state.Core(i, size) for i in range(self.mesh.cores)]
        for buffer, index, weights in placed(program):
            for core in np.flatnonzero(index >= 0):
                self.cores[core].write(self.buffers[buffer], np.arange(weights.shape[1]), weights[index[core]])
        for port in program.inputs:
            real = self.real(port)
            first = self.first(port)
            for core in holders(port, program):
                self.cores[core].mark(self.buffers[port.buffer], real[first[core]], state.FULL)

    def first(self, port: Port) -> np.ndarray:
        """Per core the first replica of its share of a port."""
        axes = port.layout.axes
        return self.mesh.core_offset(axes, self.mesh.position(axes))

    def real(self, port: Port) -> dict[int, np.ndarray]:
        """Per first replica the elements of its buffer that are elements of the tensor."""
        return {c: np.flatnonzero(m) for c, m in place(np.ones(port.shape, bool), port.layout, self.mesh).items()}

    def fault(self, core: int, c: Command, f: Fault) -> NoReturn:
        raise trap(self.program, int(core), c, f) from None

    def call(self, c: Call, cores: np.ndarray) -> None:
        nest, buffers = self.program.kernels[c.kernel][1], self.buffers
        bases, trips_of, _, _ = self.tables.table(c)
        for number in cores.tolist():
            core, trips = self.cores[number], tuple(trips_of[number].tolist())
            try:
                tables = []
                for k, b in enumerate(c.tables):
                    loops = [i for o in (nest.out, *nest.operands) for i, t in enumerate(o.tables) if t == k]
                    tables.append(core.read(buffers[b], np.arange(max((trips[i] for i in loops), default=0))))
                target = c.out_base + self.tables.footprint(nest.out, nest.parallel, trips, tables)
                core.require_free(buffers[c.out], target)
                for k, (operand, b) in enumerate(zip(nest.operands, c.operands, strict=True)):
                    reads = self.tables.footprint(operand, engine_numpy.reading_loops(nest, k), trips, tables)
                    core.require_full(buffers[b], bases[number, k] + reads)
                core.mark(buffers[c.out], target, state.FULL)
            except Fault as f:
                self.fault(number, c, f)

    def push(self, c: Push, cores: np.ndarray, picks: np.ndarray | None) -> None:
        moves = self.moves[c.exchange]
        for number in cores.tolist():
            for i in moves.sent_by(number):
                self.deliver(c, number, moves.source(i), moves.reached(i), moves.target(i))

    def send(self, c: Send, cores: np.ndarray, who: np.ndarray, to: np.ndarray) -> None:
        source, target, elements = self.tables.table(c)
        for i, core in enumerate(cores.tolist()):
            n = np.arange(elements[core])
            self.deliver(c, core, source[core] + n, to[who == i].tolist(), target[core] + n)

    def deliver(self, c: Push | Send, core: int, reads: np.ndarray, to: list[int], writes: np.ndarray) -> None:
        try:
            self.cores[core].require_full(self.buffers[c.source], reads)
            for core in to:
                self.cores[core].require_free(self.buffers[c.target], writes)
                self.cores[core].mark(self.buffers[c.target], writes, state.FULL)
        except Fault as f:
            self.fault(core, c, f)

    def fetch(self, c: Fetch, cores: np.ndarray) -> None:
        writes = np.arange(self.program.weights[c.array].shape[1])
        for number in cores.tolist():
            try:
                self.cores[number].require_free(self.buffers[c.target], writes)
                self.cores[number].mark(self.buffers[c.target], writes, state.FULL)
            except Fault as f:
                self.fault(number, c, f)

    def fill(self, c: Fill, cores: np.ndarray) -> bool:
        window = self.buffers[c.buffer]
        for core in cores.tolist():
            offsets = np.arange(window.elements) if c.exchange < 0 else self.moves[c.exchange].padding(core)
            try:
                self.cores[core].require_free(window, offsets)
                self.cores[core].mark(window, offsets, state.FULL)
            except Fault as f:
                self.fault(core, c, f)
        return True

    def free(self, c: Free, cores: np.ndarray) -> None:
        for core in cores.tolist():
            for b in c.buffers:
                self.cores[core].free(self.buffers[b])

    def condition(self, c: Loop, cores: np.ndarray) -> None:
        for core in cores.tolist():
            try:
                self.cores[core].require_full(self.buffers[c.condition], np.zeros(1, np.int64))
            except Fault as f:
                self.fault(core, c, f)

    def state(self, buffers: Sequence[int]) -> Any:
        return buffers, [core.state.copy() for core in self.cores]

    def changed(self, state: Any) -> tuple[int, int] | None:
        buffers, old = state
        for core, was in zip(self.cores, old, strict=True):
            for b in map(int, buffers):
                span = slice(self.buffers[b].address, self.buffers[b].address + self.buffers[b].bytes)
                if not np.array_equal(core.state[span], was[span]):
                    return core.number, b
        return None

    def join(self, state: Any) -> None:
        for core, was in zip(self.cores, state[1], strict=True):
            core.state[core.state != was] = MAYBE

    def output(self, port: Port) -> None:
        b = self.buffers[port.buffer]
        for core, elements in self.real(port).items():
            try:
                self.cores[core].require_full(b, elements)
            except Fault as f:
                raise Trap(
                    f"output {port.name!r} is not written: {f.message}", core=core_text(self.mesh, core),
                    address=f.address, buffer=b.name, op="output", rule=WRITTEN_BYTES,
                ) from None  # fmt: skip
