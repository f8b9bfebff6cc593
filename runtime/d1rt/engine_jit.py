"""The fast engine: a program's steps as native work units over the memory of all cores.

Who waits for whom in a program does not depend on data, so the order of its commands is found once, when the engine is
made (engine_schedule); a run is a list of phases: all messages of a Push, all kernel calls of a Call. Host threads
share the units of a phase (engine_native); no Python runs within one, and semaphores need no memory.

Trapped when the engine is made: operands of calls that leave their buffers. Found then and raised by `run`: Deadlock,
and Trap for missing credits, uninitialised reads and outputs that are not written; in small programs byte for byte as
the plain engine does, in others by buffers as a whole, so that one part of a buffer cannot be told from another. A
message arrives when it is sent: a race that needs it to be late shows in the plain engine only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from d1c.errors import D1Error, Deadlock, Trap
from d1c.target.program import Call, Fill, Program
from d1rt.engine_checks import check_calls
from d1rt.engine_memory import Memory, Scatter, touches, written
from d1rt.engine_native import Job, Native
from d1rt.engine_schedule import Schedule, Step
from d1rt.engine_states import Bytes, Slots, movements
from d1rt.engine_units import Units
from d1rt.jit_nest import build
from d1rt.loader import Kept, Result

SMALL_EVENTS, SMALL_BYTES = 30_000, 1 << 26
"""A program with no more commands and messages on all cores, and no more bytes, is followed byte by byte."""


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
        steps = steps if plain else late_fills(steps)
        phase = list(range(len(steps))) if plain else phases(steps)
        self.memory = Memory(program, self._moves, steps, phase, plain, copied=plain and small)
        self.kernels = build(dict(program.kernels), use_dot=use_dot)
        self._prepare(steps, phase, keep)
        self._inputs = [Scatter(self.memory, p) for p in program.inputs]
        self._outputs = [Scatter(self.memory, p) for p in program.outputs]
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def _order(self, alias: bool) -> tuple[list[Step], bool, bool]:
        """(steps, whether memory must be kept as it is, whether the program is small)."""
        program, moves = self.program, self._moves
        commands = sum(len(t) for r in program.roles for t in r.threads) * program.mesh.cores
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

    def _prepare(self, steps: list[Step], phase: list[int], keep: bool) -> None:
        """Make the job, and the arrays [cores, elements] into which it copies results that are kept."""
        native = Native()
        rng = None if self._shuffle is None else np.random.default_rng(self._shuffle)
        units = Units(self.program, self._moves, self.memory, self.kernels, native, self.threads, rng)
        self._kept: list[tuple[int, np.ndarray, np.ndarray]] = []
        last = -1
        for step, number in zip(steps, phase, strict=True):
            if number != last:
                units.phase()
                last = number
            units.add(step)
            c = step.command
            if keep and isinstance(c, Call) and c.layer >= 0:
                units.phase()
                self._kept.append((c.layer, step.cores, units.copy_out(c.out, step.cores)))
                units.phase()
        table, starts = units.finish()
        self._held = units.held  # the units point into these
        self._job = Job(native, table, starts, self.threads, self.kernels.scratch_bytes)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Result:
        """See d1rt.loader.Engine."""
        if self.failure is not None:
            raise self.failure
        self.memory.start()
        for s in self._inputs:
            s.put(inputs[s.port.name])
        self._job.reset()
        others = [self._pool.submit(self._job.run, i) for i in range(1, self.threads)] if self._pool else []
        self._job.run(0)
        for o in others:
            o.result()
        kept: Kept = {}
        for layer, cores, rows in self._kept:
            kept.setdefault(layer, {}).update(zip(cores.tolist(), rows.copy(), strict=True))
        return Result({s.port.name: s.get() for s in self._outputs}, kept)

    def close(self) -> None:
        """Give the memory back. The engine cannot run again."""
        if self.failure is None:
            self.failure = D1Error("the engine is closed")
            if self._pool is not None:
                self._pool.shutdown()
            self._inputs, self._outputs = [], []
            del self._job, self._held, self.memory


def late_fills(steps: list[Step]) -> list[Step]:
    """Fills put right before what first touches their window, so that it takes memory no longer than needed; and the
    same fill of several groups of cores as one."""
    waiting: dict[int, Step] = {}  # by command
    out: list[Step] = []
    for step in steps:
        if isinstance(step.command, Fill):
            old = waiting.get(id(step.command))
            cores = step.cores if old is None else np.union1d(old.cores, step.cores)
            waiting[id(step.command)] = Step(step.command, cores)
            continue
        uses = touches(step)
        now = [f for f in waiting.values() if written(f) in uses]
        if now:
            waiting = {k: f for k, f in waiting.items() if written(f) not in uses}
            # before the step that precedes this one, whose phase it can share
            at = len(out) - 1 if out and not any(written(f) in touches(out[-1]) for f in now) else len(out)
            out[at:at] = now
        out.append(step)
    return out


def phases(steps: list[Step]) -> list[int]:
    """Per step the number of its phase: a step joins the phase before where neither touches what the other writes."""
    out: list[int] = []
    touching: set[int] = set()
    writing: set[int] = set()
    for step in steps:
        uses, makes = set(touches(step)), written(step)
        if uses & writing or makes in touching or not out:
            out.append(out[-1] + 1 if out else 0)
            touching, writing = set(), set()
        else:
            out.append(out[-1])
        touching |= uses
        writing.add(makes)
    return out
