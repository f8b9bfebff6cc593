"""The plain engine: the definition of what a program does, one command of one core at a time.

Every thread of every core is a Python generator that yields after each command, or while it must wait. Messages and
posts to other cores are in flight until they are delivered; a message captures its data when it is sent, is written
as a whole and only then posts its semaphore. Round robin by default; a `shuffle` seed decides who is next and what
arrives.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from d1c.errors import Trap
from d1c.target.barrier import barrier_axes, middle
from d1c.target.dtypes import dtype, fill_value
from d1c.target.kernel import Nest, Operand
from d1c.target.mesh import Mesh, place, whole
from d1c.target.numerics import run_nest
from d1c.target.program import (
    Arrive,
    Barrier,
    Call,
    Command,
    Fetch,
    Fill,
    Free,
    Loop,
    Port,
    Post,
    Program,
    Push,
    Send,
    To,
    Wait,
    numbered,
    place_text,
)
from d1c.target.program_check import role_cores
from d1rt.loader import Kept, Result
from d1rt.state import FILLING, FULL, Core, Movement
from d1rt.traps import WRITTEN_BYTES, Fault, command_text, core_text, deadlock, rounds_text, trap

_T = TypeVar("_T")
Waiting = tuple[int, int]
"""(semaphore, count that it must reach)."""


class Engine:
    """Runs one program. `threads` is ignored (there is one host thread); `shuffle`: seed of the order of events."""

    def __init__(
        self, program: Program, threads: int | None = None, shuffle: int | None = None, keep: bool = False
    ) -> None:
        self.program, self.shuffle, self.keep = program, shuffle, keep
        self.movements = [Movement(x) for x in program.exchanges]
        self._tables: dict[int, tuple[np.ndarray, ...]] = {}
        self._footprints: dict[tuple[object, ...], np.ndarray] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> Result:
        """See d1rt.loader.Engine."""
        return _Run(self, inputs).run()

    def close(self) -> None:
        """Nothing is held between runs but tables."""

    def table(self, command: Call | Send | Fetch | Wait) -> tuple[np.ndarray, ...]:
        """A command's per-core integers for all cores, in the order of its fields; for a Call: bases [cores, operands],
        trips, scalars, and which cores run it."""
        key = id(command)  # commands live as long as the program
        if key not in self._tables:
            mesh = self.program.mesh
            match command:
                case Call():
                    made = [
                        np.stack([v.of(mesh) for v in column], axis=1)
                        if column
                        else np.zeros((mesh.cores, 0), np.int64)
                        for column in (command.bases, command.trips, command.scalars)
                    ]
                    held = [mesh.index[a] for a in command.held]
                    active = np.all(mesh.coords[:, held] == 0, axis=1) & np.all(made[1] > 0, axis=1)
                    self._tables[key] = (*made, active)
                case Send():
                    fields = (command.source_offset, command.target_offset, command.elements)
                    self._tables[key] = tuple(v.of(mesh) for v in fields)
                case Fetch():
                    self._tables[key] = (command.index.of(mesh),)
                case Wait():
                    self._tables[key] = (command.count.of(mesh),)
        return self._tables[key]

    def footprint(self, operand: Operand, loops: int, trips: tuple[int, ...], tables: list[np.ndarray]) -> np.ndarray:
        """The different element offsets, ascending, that an operand has over the first `loops` loops."""
        key = (
            operand, trips[:loops], tuple(tables[t].tobytes() for t in operand.tables[:loops] if t is not None)
        )  # fmt: skip
        if key not in self._footprints:
            out = np.zeros(1, np.int64)
            for stride, table, n in zip(operand.strides, operand.tables, trips[:loops], strict=False):
                if table is not None:
                    out = np.unique(tables[table][:n].astype(np.int64)[:, None] + out)
                elif stride:
                    out = np.unique(np.arange(n)[:, None] * stride + out)
            self._footprints[key] = out
        return self._footprints[key]


@dataclass(slots=True, eq=False)
class _Thread:
    """A thread of a core: `at` is the place of the command that it is at (in a loop: behind the loop's), `rounds` which
    rounds of the loops around it, from 1."""

    core: Core
    role: int
    number: int
    steps: Iterator[Waiting | None]
    at: tuple[int, ...] = (0,)
    rounds: tuple[int, ...] = ()
    waits: Waiting | None = None


@dataclass(frozen=True, slots=True)
class _Message:
    """On its way to `core`: data for elements `offsets` of buffer `target` (-1: none), then +1 on `semaphore`."""

    core: int
    semaphore: int
    target: int
    offsets: np.ndarray
    data: np.ndarray
    command: Command


_NOTHING = np.zeros(0, np.int64)
_FIRST = np.zeros(1, np.int64)


class _Run:
    def __init__(self, engine: Engine, inputs: Mapping[str, np.ndarray]) -> None:
        self.engine, self.program, self.mesh = engine, engine.program, engine.program.mesh
        self.inputs = inputs
        self.kept: Kept = {}
        size = max((b.address + b.bytes for b in self.program.buffers), default=0)
        self.cores = [Core(i, size) for i in range(self.mesh.cores)]
        self.rng = random.Random(engine.shuffle) if engine.shuffle is not None else None
        self.flying: deque[_Message] = deque()
        self.ready: deque[_Thread] = deque()
        self.blocked: dict[tuple[int, int], list[_Thread]] = defaultdict(list)

    def run(self) -> Result:
        for p in self.program.placements:
            self.place_weights(p.buffer, self.program.weights[p.array], p.index.of(self.mesh), p.held)
        for port in self.program.inputs:
            self.place_input(port)
        for number, role in enumerate(self.program.roles):
            for core in role_cores(role, self.mesh):
                for t in range(len(role.threads)):
                    thread = _Thread(self.cores[core], number, t, iter(()))
                    thread.steps = self.steps(thread, role.threads[t], ())
                    self.ready.append(thread)
        self.schedule()
        return Result({p.name: self.output(p) for p in self.program.outputs}, self.kept)

    # ---- before and after -------------------------------------------------------------------------------------------

    def place_weights(self, buffer: int, array: np.ndarray, index: np.ndarray, held: tuple[str, ...]) -> None:
        b, holds = self.program.buffers[buffer], index >= 0
        for a in held:
            holds &= self.mesh.coords[:, self.mesh.index[a]] == 0
        offsets = np.arange(array.shape[1])
        for core in np.flatnonzero(holds):
            self.cores[core].write(b, offsets, array[index[core]])

    def place_input(self, port: Port) -> None:
        """Every core that owns a share, replicas too, gets it; padding of short shares stays unwritten."""
        b, layout = self.program.buffers[port.buffer], port.layout
        shares = place(self.inputs[port.name], layout, self.mesh)
        real = {c: np.flatnonzero(m) for c, m in place(np.ones(port.shape, bool), layout, self.mesh).items()}
        owners = self.mesh.core_offset(layout.axes, self.mesh.position(layout.axes))
        holds = np.all(self.mesh.coords[:, [self.mesh.index[a] for a in layout.held]] == 0, axis=1)
        for core in np.flatnonzero(holds):
            owner = int(owners[core])
            if owner in shares:
                self.cores[core].write(b, real[owner], shares[owner][real[owner]])

    def output(self, port: Port) -> np.ndarray:
        b, layout = self.program.buffers[port.buffer], port.layout
        shares = {}
        for core, mask in place(np.ones(port.shape, bool), layout, self.mesh).items():
            values = self.cores[core].values(b)[: len(mask)].copy()
            try:
                self.cores[core].require_full(b, np.flatnonzero(mask))
            except Fault as e:
                raise Trap(
                    f"output {port.name!r} is not written: {e.message}", core=core_text(self.mesh, core),
                    address=e.address, buffer=b.name, op="output", rule=WRITTEN_BYTES,
                ) from None  # fmt: skip
            shares[core] = values
        return whole(shares, layout, port.shape, self.cores[0].values(b).dtype, self.mesh)

    # ---- the scheduler ----------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        while self.ready or self.flying:
            if self.flying and (self.rng is None or not self.ready or self.rng.random() < 0.5):
                self.deliver(self.take(self.flying))
                continue
            thread = self.take(self.ready)
            try:
                thread.waits = next(thread.steps)
            except StopIteration:
                continue
            if thread.waits is None:
                self.ready.append(thread)
            else:
                self.blocked[thread.core.number, thread.waits[0]].append(thread)
        stuck = [t for threads in self.blocked.values() for t in threads]
        if stuck:
            stuck.sort(key=lambda t: (t.core.number, t.number))
            raise deadlock(tuple(self.explain(t, stuck) for t in stuck[:10]), len(stuck))

    def take(self, queue: deque[_T]) -> _T:
        if self.rng is not None:
            i = self.rng.randrange(len(queue))
            queue[0], queue[i] = queue[i], queue[0]
        return queue.popleft()

    def deliver(self, m: _Message) -> None:
        if m.target >= 0:
            self.cores[m.core].write(self.program.buffers[m.target], m.offsets, m.data)
        self.post(m.core, m.semaphore)

    def post(self, core: int, semaphore: int) -> None:
        counts = self.cores[core].counts
        counts[semaphore] += 1
        waiting = self.blocked.pop((core, semaphore), None)
        for t in waiting or ():
            assert t.waits is not None
            if counts[semaphore] >= t.waits[1]:
                self.ready.append(t)
            else:
                self.blocked[core, semaphore].append(t)

    def send(self, cores: list[int], c: Push | Send | Fetch, offsets: np.ndarray, data: np.ndarray) -> None:
        """Put a message in flight; its bytes must be free when it is sent, since a credit precedes every message."""
        b = self.program.buffers[c.target]
        for core in cores:
            try:
                self.cores[core].require_free(b, offsets)
            except Fault as e:
                raise trap(self.program, core, c, e) from None
            self.cores[core].mark(b, offsets, FILLING)
            self.flying.append(_Message(core, c.semaphore, c.target, offsets, data, c))

    # ---- commands ---------------------------------------------------------------------------------------------------

    def steps(self, thread: _Thread, commands: tuple[Command, ...], path: tuple[int, ...]) -> Iterator[Waiting | None]:
        """Run `commands`, a thread's or those of a loop whose place is `path`."""
        core = thread.core
        for at, command in enumerate(commands):
            thread.at = (*path, at)
            try:
                if isinstance(command, Loop):
                    yield from self.loop(thread, command)
                else:
                    yield from self.command(core, command)
            except Fault as e:
                raise trap(self.program, core.number, command, e) from None
            yield None

    def loop(self, thread: _Thread, c: Loop) -> Iterator[Waiting | None]:
        path, rounds = thread.at, thread.rounds
        for n in range(c.trips):
            if c.condition >= 0 and not thread.core.read(self.program.buffers[c.condition], _FIRST)[0]:
                break
            thread.rounds = (*rounds, n + 1)
            yield from self.steps(thread, c.body, path)
            yield None
        thread.at, thread.rounds = path, rounds

    def command(self, core: Core, c: Command) -> Iterator[Waiting]:
        buffers = self.program.buffers
        match c:
            case Call():
                self.call(core, c)
            case Push():
                moves = self.engine.movements[c.exchange]
                for i in moves.sent_by(core.number):
                    data = core.read(buffers[c.source], moves.source(i))
                    self.send(moves.reached(i), c, moves.target(i), data)
            case Send():
                source, target, n = (int(v[core.number]) for v in self.engine.table(c))
                cores = reach(self.mesh, core.number, c.to)
                if cores:
                    data = core.read(buffers[c.source], source + np.arange(n))
                    self.send(cores, c, target + np.arange(n), data)
            case Fetch():
                row = int(self.engine.table(c)[0][core.number])
                if row >= 0:
                    data = self.program.weights[c.array][row]
                    self.send([core.number], c, np.arange(len(data)), data)
            case Arrive():
                expected = int(self.engine.movements[c.exchange].expected[core.number])
                core.waited[c.semaphore] += expected
                if expected:
                    yield from wait(core, c.semaphore, core.waited[c.semaphore])
            case Wait():
                count = int(self.engine.table(c)[0][core.number])
                if c.relative:
                    count += core.waited[c.semaphore]
                    core.waited[c.semaphore] = count
                yield from wait(core, c.semaphore, count)
            case Post():
                for other in reach(self.mesh, core.number, c.to):
                    self.remote_post(core, other, c.semaphore, c)
            case Free():
                for b in c.buffers:
                    core.free(buffers[b])
            case Fill():
                window = buffers[c.buffer]
                offsets = np.arange(window.elements)
                if c.exchange >= 0:
                    offsets = self.engine.movements[c.exchange].padding(core.number)
                core.require_free(window, offsets)
                core.write(window, offsets, fill_value(c.value, dtype(window.dtype).numpy))
            case Barrier():
                yield from self.barrier(core, c)

    def remote_post(self, core: Core, other: int, semaphore: int, c: Command) -> None:
        """A core sees its own posts at once, those of others when they have arrived."""
        if other == core.number:
            self.post(other, semaphore)
        else:
            self.flying.append(_Message(other, semaphore, -1, _NOTHING, _NOTHING, c))

    def barrier(self, core: Core, c: Barrier) -> Iterator[Waiting]:
        axes = barrier_axes(self.mesh)
        here = np.array([core.number])
        for factors, semaphore in reversed(list(zip(axes, c.up, strict=True))):
            position, center = self.mesh.position(factors, here), middle(self.mesh, factors)
            if position[0] != center:
                own, head = self.mesh.core_offset(factors, np.array([position[0], center]))
                self.remote_post(core, core.number + int(head - own), semaphore, c)
                break
            core.waited[semaphore] += self.mesh.parts(factors) - 1
            yield from wait(core, semaphore, core.waited[semaphore])
        else:
            for other in range(self.mesh.cores):
                self.remote_post(core, other, c.release, c)
        core.waited[c.release] += 1
        yield from wait(core, c.release, core.waited[c.release])

    def call(self, core: Core, c: Call) -> None:
        bases, trips_of, scalars, active = (t[core.number] for t in self.engine.table(c))
        if not active:
            return
        nest, buffers = self.program.kernels[c.kernel][1], self.program.buffers
        trips = tuple(int(t) for t in trips_of)
        tables = []
        for k, number in enumerate(c.tables):
            loops = [i for o in (nest.out, *nest.operands) for i, t in enumerate(o.tables) if t == k]
            entries = np.arange(max((trips[i] for i in loops), default=0))
            tables.append(core.read(buffers[number], entries))
        out, target = buffers[c.out], c.out_base + self.engine.footprint(nest.out, nest.parallel, trips, tables)
        core.require_free(out, target)
        for k, (operand, number) in enumerate(zip(nest.operands, c.operands, strict=True)):
            offsets = int(bases[k]) + self.engine.footprint(operand, reading_loops(nest, k), trips, tables)
            core.require_full(buffers[number], offsets)
        nest, tables, shifts = ascending(nest, trips, tables)
        operands = [
            core.values(buffers[number])[int(base) + shift :]
            for number, base, shift in zip(c.operands, bases, shifts, strict=True)
        ]
        run_nest(nest, core.values(out)[c.out_base :], operands, tables, trips, [int(s) for s in scalars])
        core.mark(out, target, FULL)
        if self.engine.keep and is_result(self.program, c):
            self.kept.setdefault(c.layer, {})[core.number] = core.values(out).copy()

    # ---- deadlock ---------------------------------------------------------------------------------------------------

    def explain(self, t: _Thread, stuck: list[_Thread]) -> str:
        """Who `t` is, what it waits for, and which commands that others have not reached could still post it."""
        assert t.waits is not None
        semaphore, need = t.waits
        command = next(c for at, c in numbered(self.program.roles[t.role].threads[t.number]) if at == t.at)
        line = (
            f"core {core_text(self.mesh, t.core.number)}, role {self.program.roles[t.role].name}, thread {t.number}, "
            f"command {place_text(t.at)}{rounds_text(t.rounds)} {command_text(self.program, command)}: "
            f"semaphore {semaphore} has {t.core.counts[semaphore]}, needs {need}"
        )
        if command.origin:
            line += f" (for {command.origin})"
        posters = []
        for other in stuck:
            for at, c in numbered(self.program.roles[other.role].threads[other.number]):
                # what it has passed comes again where it is in a loop
                to_come = at >= other.at or (len(other.at) > 1 and at[0] == other.at[0])
                mine = other is t and at == t.at
                if to_come and not mine and self.may_post(other.core.number, c, t.core.number, semaphore):
                    where = f"core {core_text(self.mesh, other.core.number)} thread {other.number}"
                    where += f" (now at {place_text(other.at)})"
                    posters.append(f"{where} by command {place_text(at)} {command_text(self.program, c)}")
                    break
            if len(posters) == 3:
                break
        return f"{line}; could be posted by {'; '.join(posters)}" if posters else f"{line}; nobody will post it"

    def may_post(self, core: int, c: Command, target: int, semaphore: int) -> bool:
        """Whether command `c` of `core` posts `semaphore` of core `target`."""
        match c:
            case Push() if c.semaphore == semaphore:
                moves = self.engine.movements[c.exchange]
                return any(target in moves.reached(i) for i in moves.sent_by(core))
            case Post() | Send() if c.semaphore == semaphore:
                return target in reach(self.mesh, core, c.to)
            case Fetch() if c.semaphore == semaphore:
                return target == core and bool(self.engine.table(c)[0][core] >= 0)
            case Barrier():
                return semaphore in (*c.up, c.release) and core != target
        return False


def wait(core: Core, semaphore: int, count: int) -> Iterator[Waiting]:
    while core.counts[semaphore] < count:
        yield semaphore, count


def reach(mesh: Mesh, core: int, to: tuple[To, ...]) -> list[int]:
    """Numbers of the cores that `to` means for the sender `core`, ascending."""
    cores = [core]
    for t in to:
        i = mesh.index[t.axis]
        here, stride, size = int(mesh.coords[core, i]), mesh.stride[t.axis], mesh.sizes[i]
        if t.mode == "*":
            places = range(size)
        else:
            place = here + t.value if t.mode == "+" else t.value
            places = range(place, place + 1) if 0 <= place < size else range(0)
        cores = [c + (p - here) * stride for c in cores for p in places]
    return sorted(cores)


def is_result(program: Program, c: Call) -> bool:
    """Whether the call makes the result of its layer, not something on the way to it."""
    if c.layer < 0:
        return False
    return bool(program.layers[c.layer].get("buffer", c.out) == c.out)


def reading_loops(nest: Nest, k: int) -> int:
    """How many of the loops, from the first on, operand `k` is read along: all for operands of the term."""
    in_term = k < nest.n_term and not (nest.kind == "lookup" and k == 0)
    return len(nest.loops) if nest.kind == "map" or in_term else nest.parallel


def ascending(
    nest: Nest, trips: tuple[int, ...], tables: list[np.ndarray]
) -> tuple[Nest, list[np.ndarray], list[int]]:  # fmt: skip
    """The same addresses without negative strides, which run_nest does not take: the nest with tables in their place,
    all tables, and per operand by how much its base moves."""
    if not any(s < 0 for o in nest.operands for s in o.strides):
        return nest, tables, [0] * len(nest.operands)
    tables, operands, shifts = list(tables), [], []
    for o in nest.operands:
        numbers, shift = list(o.tables), 0
        for i, (stride, table) in enumerate(zip(o.strides, o.tables, strict=True)):
            if stride < 0 and table is None:
                first = -stride * (trips[i] - 1)
                numbers[i] = len(tables)
                tables.append((first + stride * np.arange(trips[i])).astype(np.uint32))
                shift -= first
        operands.append(replace(o, tables=tuple(numbers)))
        shifts.append(shift)
    return replace(nest, operands=tuple(operands)), tables, shifts
