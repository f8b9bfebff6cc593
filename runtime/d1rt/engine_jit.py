"""The fast engine: a program's steps as native work units over the memory of all cores.

Who waits for whom in a program does not depend on data, so the order of its commands is found once, when the engine is
made (engine_schedule); a run is a list of phases: all messages of a Push, all kernel calls of a Call. Host threads
share the units of a phase (engine_native); no Python runs within one, and semaphores need no memory. Data decides only
how many rounds loops make: between rounds the engine looks at the condition.

Trapped when the engine is made: operands of calls that leave their buffers. Found then and raised by `run`: Deadlock,
and Trap for missing credits, uninitialised reads and outputs that are not written; in small programs byte for byte as
the plain engine does, in others by buffers as a whole, so that one part of a buffer cannot be told from another. A
message arrives when it is sent: a race that needs it to be late shows in the plain engine only.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from d1c.errors import D1Error, Deadlock, Trap
from d1c.target.loops import twice
from d1c.target.program import Call, Loop, Program
from d1c.target.program_check import role_cores
from d1rt.engine_alone import calls_alone
from d1rt.engine_checks import check_calls
from d1rt.engine_joint import Joints
from d1rt.engine_memory import Memory, Scatter
from d1rt.engine_native import Job, Native
from d1rt.engine_numpy import is_result
from d1rt.engine_plan import Plan, Planner, Stretch, loops, work
from d1rt.engine_schedule import Rounds, Schedule, Step
from d1rt.engine_states import Bytes, Slots, movements
from d1rt.engine_units import Units, readers
from d1rt.jit_nest import build, units_of
from d1rt.loader import Kept, Result
from d1rt.traps import Fault, trap

SMALL_EVENTS, SMALL_BYTES = 30_000, 1 << 26
"""A program with no more commands and messages on all cores, and no more bytes, is followed byte by byte."""

ALONE = 1 << 18
"""In a program with loops, stretches of less work run on one host thread: waking the others would take longer."""


def fixed_loops(program: Program, steps: Sequence[Step]) -> dict[str, set[int]]:
    """By kernel: the loops of which all of its calls make all iterations on all cores."""
    out: dict[int, set[int]] = {}
    for s in steps:
        if isinstance(c := s.command, Call):
            loops_ = enumerate(zip(program.kernels[c.kernel][1].loops, c.trips, strict=True))
            whole = {i for i, (loop, t) in loops_ if (t.of(program.mesh)[s.cores] == loop.extent).all()}
            out[c.kernel] = out.get(c.kernel, whole) & whole
    return {program.kernels[k][0]: whole for k, whole in out.items()}


class Engine:
    """See d1rt.loader.Engine.

    threads  of the host (default: as many as this process may use)
    shuffle  seed of a random order of commands, messages and calls; in small programs of parts of the cores at a time
    keep     whether every layer's results are kept
    use_dot  whether kernels use the host's bf16 dot product (default: where it exists); the bits are the same
    alias    keep equal windows once; off: every core has its own SRAM, and a message is copied to every core
    Raises Trap. `close` gives the memory back.
    """

    def __init__(
        self, program: Program, threads: int | None = None, shuffle: int | None = None, keep: bool = False,
        use_dot: bool | None = None, alias: bool = True,
    ) -> None:  # fmt: skip
        self.program, self.threads = program, threads or len(os.sched_getaffinity(0))
        self.failure: D1Error | None = None
        self._shuffle = shuffle
        self._moves = movements(program.exchanges)
        check_calls(program)
        try:
            steps, plain, small = self._order(alias)
        except (Deadlock, Trap) as e:
            self.failure = e
            return
        planner = Planner(steps, plain)
        self._plan, self._stretches = planner.plan, planner.stretches
        phase = [p for x in planner.stretches for p in x.phase]
        flat = [s for x in planner.stretches for s in x.steps]
        self.memory = Memory(program, self._moves, flat, phase, plain, copied=plain and small, loops=planner.spans)
        found = Joints(program, self.memory, *units_of(use_dot))
        together = {id(s): t for s in flat if (t := found.of(s)) is not None}
        single = {s.command.kernel for s in flat if isinstance(s.command, Call) and id(s) not in together}
        self.kernels = build(
            {program.kernels[k][0]: program.kernels[k][1] for k in sorted(single)}, use_dot=use_dot,
            joint={t.name: t.joint for t in together.values()},
            fixed=fixed_loops(program, [s for s in flat if id(s) not in together]),
        )  # fmt: skip
        self._joints = found, together
        self._inputs = [Scatter(self.memory, p) for p in program.inputs]
        self._prepare(planner.stretches, keep)
        self._outputs = [Scatter(self.memory, p) for p in program.outputs]
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def _order(self, alias: bool) -> tuple[list[Step | Rounds], bool, bool]:
        """(steps, whether memory must be kept as it is, whether the program is small)."""
        program, moves = self.program, self._moves
        commands = sum(1 for r in program.roles for t in r.threads for _ in twice(t)) * program.mesh.cores
        messages = sum(int(m.expected.sum()) for m in moves)
        size = max((b.address + b.bytes for b in program.buffers), default=0) * program.mesh.cores
        small = commands + messages <= SMALL_EVENTS and size <= SMALL_BYTES

        def rng() -> np.random.Generator | None:
            return None if self._shuffle is None else np.random.default_rng(self._shuffle)

        exact = Schedule(program, moves, Bytes(program, moves), rng(), parts=small).steps if small else None
        try:
            steps = Schedule(program, moves, Slots(program, moves), rng(), parts=small).steps
        except Trap:
            if exact is None:
                raise
            return exact, True, small  # legal, but not by whole buffers
        return steps, not alias, small

    def _prepare(self, stretches: list[Stretch], keep: bool) -> None:
        """Make the job, a part for every stretch, and the arrays [cores, elements] for copies of results to keep."""
        native = Native()
        rng = None if self._shuffle is None else np.random.default_rng(self._shuffle)
        read = readers(self.program, self._moves, [s for x in stretches for s in x.steps])
        units = Units(
            self.program, self._moves, self.memory, self.kernels, native, self.threads, rng, *self._joints, read
        )
        self._kept: list[list[tuple[int, np.ndarray, np.ndarray]]] = []
        parts = []
        looping = any(True for _ in loops(self._plan))
        units.inputs(self._inputs)
        self._placing = not self._plan or self._plan[0] is not stretches[0]
        placed = units.mark()
        for stretch in stretches:
            first, last = units.mark() if stretch.number or self._placing else 0, -1
            kept = []
            for step, number in zip(stretch.steps, stretch.phase, strict=True):
                if number != last:
                    units.phase()
                    last = number
                units.add(step)
                c = step.command
                if keep and isinstance(c, Call) and is_result(self.program, c):
                    units.phase()
                    kept.append((c.layer, step.cores, units.copy_out(c.out, step.cores)))
                    units.phase()
            parts.append((first, units.mark(), looping and work(stretch, self.program, self._moves) < ALONE))
            self._kept.append(kept)
        parts.append((0, placed, True))  # of use where the program starts with a loop
        self._native, self._parts, self._units = native, parts, units.finish()
        self._held = units.held  # the units point into these
        self._job = Job(native, *self._units, self.threads, self.kernels.scratch_bytes, parts)
        self._ran: Counter[int] = Counter()
        players = [role_cores(r, self.program.mesh) for r in self.program.roles]
        self._players = np.unique(np.concatenate(players)) if players else np.zeros(0, np.int64)
        self._conditions = {
            c.condition: self.memory.firsts(c.condition, self._players) for c in loops(self._plan) if c.condition >= 0
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> Result:
        """See d1rt.loader.Engine."""
        if self.failure is not None:
            raise self.failure
        self.memory.start()
        for s in self._inputs:
            s.put(inputs[s.port.name])
        if self._placing:
            self._stretch(self._job, len(self._parts) - 1)
        done: dict[int, None] = {}
        self._ran.clear()
        self._execute(self._plan, done)
        kept: Kept = {}
        for number in done:
            for layer, cores, rows in self._kept[number]:
                kept.setdefault(layer, {}).update(zip(cores.tolist(), rows.copy(), strict=True))
        return Result({s.port.name: s.get() for s in self._outputs}, kept)

    def _execute(self, plan: Plan, done: dict[int, None]) -> None:
        """`done`: the stretches that have run, ordered by when they did last."""
        for item in plan:
            if isinstance(item, Stretch):
                done.pop(item.number, None)
                done[item.number] = None
                self._ran[item.number] += 1
                self._stretch(self._job, item.number)
                continue
            for number in range(item.command.trips):
                if item.command.condition >= 0 and not self._goes_on(item.command):
                    break
                self._execute(item.steady if number else item.first, done)

    def calls_alone(self) -> Callable[[], None] | None:
        """What executes the kernel calls of the last run and nothing else: no message, no input, no wait between
        layers. It computes nothing of use; its time bounds a run's from below. None where calls take addresses from
        tables that messages write."""
        steps = (s.command for x in self._stretches for s in x.steps)
        if self.failure is not None or any(set(c.tables) - self.memory.fixed for c in steps if isinstance(c, Call)):
            return None
        job = calls_alone(self._native, *self._units, self.threads, self.kernels.scratch_bytes, self._parts)

        def run() -> None:
            for number, count in self._ran.items():
                for _ in range(count):
                    self._stretch(job, number)

        return run

    def _stretch(self, job: Job, number: int) -> None:
        threads, run = job.reset(number), job.run
        try:
            others = [self._pool.submit(run, i, number) for i in range(1, threads)] if self._pool else []
            if threads:
                run(0, number)
            for o in others:
                o.result()
        except BaseException:  # Ctrl-C: those that have started must not wait for those that have not
            job.abandon(number)
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = ThreadPoolExecutor(self.threads - 1)
            raise

    def _goes_on(self, c: Loop) -> bool:
        """Whether a loop has another round. Trap where the cores do not say the same."""
        values = self._conditions[c.condition]()
        if values.all() or not values.any():
            return bool(values[0])
        core = int(self._players[np.argmax(values != values[0])])
        b = self.program.buffers[c.condition]
        fault = Fault(
            f"{b.name} is not the same on all cores", b.address, b.name, "a loop's condition is equal on all cores"
        )
        raise trap(self.program, core, c, fault)

    def close(self) -> None:
        """Give the memory back. The engine cannot run again."""
        if self.failure is None:
            self.failure = D1Error("the engine is closed")
            if self._pool is not None:
                self._pool.shutdown()
            self._inputs, self._outputs, self._conditions = [], [], {}
            del self._job, self._units, self._held, self._joints, self.memory
