"""What the fast engine runs, in which order: stretches of phases, and loops of them.

A stretch is a list of steps that run one after another, without a loop among them. Its steps are put into phases;
numbers of phases go on from stretch to stretch, in the order in which they stand: a loop's first round, its others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d1c.target.program import Call, Fetch, Fill, Loop, Program, Push, Send
from d1rt.engine_memory import touches, written
from d1rt.engine_schedule import Rounds, Step
from d1rt.engine_states import Movement


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Steps, and the number of each one's phase. `number`: which stretch it is."""

    number: int
    steps: list[Step]
    phase: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """A loop: its first round, any other; and phase numbers that enclose those of both, and belong to no step."""

    command: Loop
    first: Plan
    steady: Plan
    span: tuple[int, int]


Plan = list["Stretch | Repeat"]


class Planner:
    """Makes a Plan of the steps that a Schedule found. `plain`: memory is kept as it is, so that no step may move.
    `stretches`: all of them, by number; `phases`: the numbers used are below."""

    def __init__(self, items: Sequence[Step | Rounds], plain: bool) -> None:
        self.plain, self.phases = plain, 0
        self.stretches: list[Stretch] = []
        self.plan = self._plan(items)

    def _plan(self, items: Sequence[Step | Rounds]) -> Plan:
        out: Plan = []
        run: list[Step] = []
        for item in items:
            if isinstance(item, Step):
                run.append(item)
                continue
            out += self._stretch(run)
            run, lo = [], self.phases
            self.phases += 1
            first, steady = self._plan(item.first), self._plan(item.steady)
            self.phases += 1
            out.append(Repeat(item.command, first, steady, (lo, self.phases - 1)))
        return out + self._stretch(run)

    def _stretch(self, steps: list[Step]) -> Plan:
        if not steps:
            return []
        steps = steps if self.plain else late_fills(steps)
        phase = list(range(len(steps))) if self.plain else phases(steps)
        stretch = Stretch(len(self.stretches), steps, [self.phases + p for p in phase])
        self.phases = stretch.phase[-1] + 1
        self.stretches.append(stretch)
        return [stretch]

    @property
    def spans(self) -> list[tuple[int, int, set[int]]]:
        """Per outermost loop the phases that enclose it, and the conditions looked at within."""
        return [
            (*x.span, {c.condition for c in loops([x]) if c.condition >= 0}) for x in self.plan if isinstance(x, Repeat)
        ]


def loops(plan: Plan) -> Iterator[Loop]:
    """All loops of a plan, those in others too."""
    for x in plan:
        if isinstance(x, Repeat):
            yield x.command
            yield from loops(x.first)
            yield from loops(x.steady)


def work(stretch: Stretch, program: Program, moves: Sequence[Movement]) -> int:
    """About how much a stretch does: iterations of calls, elements moved."""
    mesh, total = program.mesh, 0
    for step in stretch.steps:
        c = step.command
        if isinstance(c, Call):
            points = np.ones(len(step.cores), np.int64)
            for t in c.trips:
                points *= t.of(mesh)[step.cores]
            total += int(points.sum())
        elif isinstance(c, Push):
            total += int(moves[c.exchange].messages.elements.sum())
        elif isinstance(c, Send):
            total += int(c.elements.of(mesh)[step.cores].sum())
        elif isinstance(c, Fetch):
            total += program.weights[c.array].shape[1] * len(step.cores)
        else:
            total += program.buffers[c.buffer].elements * len(step.cores)
    return total


def late_fills(steps: list[Step]) -> list[Step]:
    """Fills put right before what first touches their window, so that it takes memory no longer than needed; and the
    same fill of several groups of cores as one. Those whose window nothing touches here stand last."""
    waiting: dict[int, Step] = {}  # by command
    out: list[Step] = []
    for step in steps:
        if isinstance(step.command, Fill):
            old = waiting.get(id(step.command))
            cores = step.cores if old is None else np.union1d(old.cores, step.cores)
            late = step.late or (old is not None and old.late)
            waiting[id(step.command)] = Step(step.command, cores, late=late)
            continue
        uses = touches(step)
        now = [f for f in waiting.values() if written(f) in uses]
        if now:
            waiting = {k: f for k, f in waiting.items() if written(f) not in uses}
            # before the step that precedes this one, whose phase it can share
            at = len(out) - 1 if out and not any(written(f) in touches(out[-1]) for f in now) else len(out)
            out[at:at] = now
        out.append(step)
    return [*out, *waiting.values()]


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
