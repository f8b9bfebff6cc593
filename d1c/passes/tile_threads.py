"""The commands of a core's threads, step by step: who computes, who sends, who meets the other cores, who fetches
weights, and what they tell each other.

Thread 0 computes. Thread 1 sends what has been computed as soon as it is there, though its reader's turn may be much
later: within an epoch every window has space. Thread 2 ends epochs: when the first two are through with one, it frees
what is dead and meets the other cores at a barrier, while they go on with the next epoch. Thread 3 sends weights to the
windows that want them, some layers ahead of their use, and asks for those that are streamed from outside the mesh; its
sources are constants, so it waits for space only. What an epoch wants of the memory and the semaphores of the one
before the last was given back while the last one ran; an epoch that is `sync` begins when the one before it has been
given back.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from d1c.analysis.epochs import Buffer, Step
from d1c.ir.core import Op, Value
from d1c.target.mesh import CoreInt, Mesh
from d1c.target.movement import Exchange
from d1c.target.program import Arrive, Barrier, Call, Command, Fetch, Fill, Free, Loop, Post, Push, Wait

AHEAD = 2
"""So many layers' weights are on their way, or have come, before their turn."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Semaphores by which the threads of a core meet, -1 where a program does without. From whom to whom:

    ready   0 to 1: a tensor is there              sent    1 to 0: what reads a carried value has gone
    pace    0 to 3: a layer with weights is over    done    0 to 2, drained 1 to 2, fetched 3 to 2: is through
    space   2 to 0: this core's dead are free       credit  2 to 1, stock 2 to 3: everybody's are
            (stock: this core's are, where thread 3 sends nothing)
    `up`, `release`: of the barrier; `arrival`: the first of those that count arrivals."""

    ready: int
    sent: int
    pace: int
    done: int
    drained: int
    fetched: int
    space: int
    credit: int
    stock: int
    up: tuple[int, ...]
    release: int
    arrival: int

    @staticmethod
    def of(axes: int, meets: bool, carries: bool, fetches: bool) -> Signals:
        """`axes` of the mesh; whether there is more than one epoch, a loop, a thread for weights."""
        wanted = {
            "ready": True, "sent": carries, "pace": fetches, "done": meets, "drained": meets, "space": meets,
            "fetched": fetches and carries, "credit": meets, "stock": fetches and meets,
        }  # fmt: skip
        taken = [k for k, w in wanted.items() if w]
        up = len(taken) + (axes if meets else 0)
        numbers = {k: taken.index(k) if k in taken else -1 for k in wanted}
        return Signals(**numbers, up=tuple(range(len(taken), up)), release=up, arrival=up + meets)


class Plan(Protocol):
    """What the threads are made from."""

    mesh: Mesh
    buffers: list[Buffer]
    steps: list[Step]
    of: dict[Value, int]
    movements: dict[Value, int]
    exchanges: list[Exchange]
    parts: dict[Value, list[tuple[int, int, int]]]
    """Per window its movement's parts: number, part of the source behind which it goes, part of the call that waits."""
    conditions: dict[Op, int]
    streamed: dict[Op, tuple[str, CoreInt]]
    """Per constant that is streamed its array, and the row of every core."""
    signals: Signals
    sync: tuple[bool, ...]
    """Per epoch whether it begins when all before it has been given back."""


@dataclass(slots=True)
class _Thread:
    """`commands` so far, those of outer loops in `outer`; and how many counts of each semaphore it has waited for."""

    commands: list[Command] = field(default_factory=list)
    outer: list[list[Command]] = field(default_factory=list)
    waited: dict[int, int] = field(default_factory=dict)

    def wait(self, semaphore: int, need: int, s: Step) -> None:
        """Wait until `need` counts have been posted since the program's start."""
        if semaphore >= 0 and need > self.waited.get(semaphore, 0):
            count = CoreInt.const(need - self.waited.get(semaphore, 0))
            self.commands.append(Wait(semaphore, count, s.layer, s.op.origin, relative=True))
            self.waited[semaphore] = need


class Threads:
    """Makes the commands of all steps. Waits are relative, and a loop's border is passed when all posts before it have
    been waited for: a body then waits in every round for what is posted in that round.

    What the next epoch begins with: `ended`: thread 2 frees what was born in epoch `first` or later and died in `last`;
    in a new round that is what the body made in the round before. `tested`: and the window of the condition; `border`:
    all threads say first that they are out of the last epoch.
    """

    def __init__(self, plan: Plan, semaphores: int, fetches: bool) -> None:
        self.p, self.at = plan, plan.signals
        self.pool = semaphores - self.at.arrival
        self.shared = self.at.done >= 0  # where they are used again, a step's movements share one
        self.compute, self.send, self.meet, self.fetch = (_Thread() for _ in range(4))
        self.all = (self.compute, self.send, self.meet, self.fetch) if fetches else (self.compute, self.send, self.meet)
        self.fetches = fetches
        self.constants = {b for b, x in enumerate(plan.buffers) if x.kind == "constant"}
        # What thread 3 asks for comes to its own core, what it sends to others: these must have space too.
        self.alone = not any(self.by_fetch(f) for s in plan.steps for f in s.fetch)
        self.sources = {f.operands[0] for s in plan.steps for f in s.fetch if not self.by_fetch(f)}
        self.posted: dict[int, int] = {}
        self.ready_at: dict[tuple[Value, int], int] = {}
        self.awaited = {
            (f.operands[0], after) for s in plan.steps for f in s.fetch for _, after, _ in plan.parts[f.result]
        }
        self.epoch, self.closed, self.credit = -1, 0, 0
        self.border, self.ended, self.tested = False, [(0, 0)], set[int]()
        self.arrival, self.undrained, self.unsent = 0, False, False
        self.pushes: list[tuple[int, Step, Push]] = []
        self.paces: deque[int] = deque(maxlen=AHEAD)
        self.filled: set[Value] = set()
        self.before: list[int] = []

    def by_fetch(self, f: Op) -> bool:
        """Whether a movement is thread 3's."""
        return self.fetches and self.p.of[f.operands[0]] in self.constants

    def run(self, calls: Sequence[Sequence[Call]]) -> tuple[tuple[Command, ...], ...]:
        """The threads; `calls`: of each step, part by part, none where it is no compute."""
        for i, (s, mine) in enumerate(zip(self.p.steps, calls, strict=True)):
            after = self.p.steps[i + 1] if i + 1 < len(self.p.steps) else None
            self.step(s, mine, after if after is not None and after.epoch == s.epoch else None)
        self.sends()
        return tuple(tuple(t.commands) for t in self.all if t.commands or t is self.compute)

    def step(self, s: Step, calls: Sequence[Call], after: Step | None) -> None:
        """Add a step; `after`: the next one of its epoch, whose windows are padded while this one's are awaited."""
        if s.epoch != self.epoch:
            self.begin(s)
        if s.kind == "carry" and self.unsent:
            self.sends()
            self.post(self.send, self.at.sent, s)
            self.compute.wait(self.at.sent, self.posted[self.at.sent], s)
            self.unsent = False
        self.fill(s)
        if after is not None:
            self.fill(after)
        weights = [f for f in s.fetch if self.by_fetch(f)]
        if weights and len(self.paces) == AHEAD:
            self.fetch.wait(self.at.pace, self.paces[0], s)
        arrive: dict[int, list[Command]] = defaultdict(list)
        for f, parts in zip(s.fetch, s.parts, strict=True):
            self.push(f, s, arrive)
            self.arrival += 0 if self.shared else parts
        self.arrival += max(s.parts, default=0) if self.shared else 0
        self.compute.commands += arrive.pop(0, ())
        if s.streams:
            self.stream(s)
        if s.kind in ("begin", "end"):
            self.loop(s)
        elif s.kind == "test":
            for semaphore, tells in ((self.at.ready, True), (self.at.done, True), (self.at.pace, self.fetches)):
                if tells:
                    self.post(self.compute, semaphore, s)
            self.meet.wait(self.at.done, self.posted[self.at.done], s)
        for k, call in enumerate(calls):
            if s.kind == "carry" or (s.again and k == 0):
                self.compute.commands.append(Free((call.out,), s.layer, s.op.origin))
            self.compute.commands += arrive.pop(k, ())
            self.compute.commands.append(call)
            if s.op.result in self.sources and (s.op.result, k) in self.awaited:
                self.ready_at[s.op.result, k] = self.post(self.compute, self.at.ready, s)
        if weights:
            self.paces.append(self.post(self.compute, self.at.pace, s))

    # ---- epochs -----------------------------------------------------------------------------------------------------

    def begin(self, s: Step) -> None:
        """End the epoch before, if there is one, and begin that of `s`."""
        sync = self.p.sync[s.epoch]
        if self.epoch >= 0:
            self.close(s)
            self.credit = self.closed - (0 if sync else 1)
            self.compute.wait(self.at.space, self.credit, s)
        if sync:
            self.arrival, self.unsent = 0, False
        self.epoch, self.ended, self.tested, self.border = s.epoch, [(0, s.epoch)], set(), False

    def close(self, s: Step) -> None:
        """Thread 2 waits until the others are through, frees what is dead, and meets the other cores."""
        self.sends()
        through = [(self.compute, self.at.done)]
        if self.undrained or self.border:
            through.append((self.send, self.at.drained))
        if self.fetches and self.border:
            through.append((self.fetch, self.at.fetched))
        for thread, semaphore in through:
            self.meet.wait(semaphore, self.post(thread, semaphore, s), s)
        alive = ((b, x) for b, x in enumerate(self.p.buffers) if x.kind in ("owned", "window"))
        dead = {b for b, x in alive if any(x.died == last and x.first >= first for first, last in self.ended)}
        if dead | self.tested:
            self.meet.commands.append(Free(tuple(sorted(dead | self.tested)), s.layer))
        self.post(self.meet, self.at.space, s)
        if self.fetches and self.alone:
            self.post(self.meet, self.at.stock, s)
        self.meet.commands.append(Barrier(self.at.up, self.at.release, s.layer))
        self.post(self.meet, self.at.credit, s)
        if self.fetches and not self.alone:
            self.post(self.meet, self.at.stock, s)
        self.closed, self.undrained = self.closed + 1, False

    # ---- movements --------------------------------------------------------------------------------------------------

    def fill(self, s: Step) -> None:
        """Write the padding of a step's windows: what no message brings, so that it does not matter which is first."""
        for f in s.fetch:
            m = self.p.movements[f.result]
            if f.result not in self.filled and self.p.exchanges[m].padded:
                self.filled.add(f.result)
                command = Fill(self.p.of[f.result], m, f.attrs.fill, s.layer, s.op.origin)
                self.compute.commands.append(command)

    def push(self, f: Op, s: Step, arrive: dict[int, list[Command]]) -> None:
        """Send a window's parts; `arrive` gets what waits for them, by the part of the call that does."""
        x, w = f.operands[0], f.result
        for movement, after, before in self.p.parts[w]:
            semaphore = self.at.arrival + (self.arrival + before) % self.pool
            push = Push(self.p.of[x], self.p.of[w], movement, semaphore, s.layer, s.op.origin, f.attrs.by_columns)
            if self.by_fetch(f):
                self.fetch.wait(self.at.stock, self.credit, s)
                self.fetch.commands.append(push)
            else:
                self.pushes.append((self.ready_at.get((x, after), 0), s, push))
                self.undrained = self.unsent = True
            arrive[before].append(Arrive(movement, semaphore, s.layer, s.op.origin))

    def stream(self, s: Step) -> None:
        """Ask for a step's streamed constants as soon as there is space, and wait for all of them together."""
        semaphore, count = self.at.arrival + self.arrival % self.pool, np.zeros(self.p.mesh.cores, np.int64)
        self.arrival += 1
        self.fetch.wait(self.at.stock, self.credit, s)
        for op in s.streams:
            array, index = self.p.streamed[op]
            count += index.of(self.p.mesh) >= 0
            self.fetch.commands.append(Fetch(self.p.of[op.result], array, index, semaphore, s.layer, s.op.origin))
        wanted = CoreInt.over(self.p.mesh.names, count, self.p.mesh)
        self.compute.commands.append(Wait(semaphore, wanted, s.layer, s.op.origin, relative=True))

    def sends(self) -> None:
        """What thread 1 sends since it was last settled: first what is ready first, then what is wanted first."""
        for need, s, push in sorted(self.pushes, key=lambda x: x[0]):
            self.send.wait(self.at.credit, self.credit, s)
            self.send.wait(self.at.ready, need, s)
            self.send.commands.append(push)
        self.pushes.clear()

    def post(self, thread: _Thread, semaphore: int, s: Step) -> int:
        """Count a semaphore; how often that has been done."""
        thread.commands.append(Post(semaphore, layer=s.layer, origin=s.op.origin))
        self.posted[semaphore] = self.posted.get(semaphore, 0) + 1
        return self.posted[semaphore]

    # ---- loops ------------------------------------------------------------------------------------------------------

    def loop(self, s: Step) -> None:
        """Begin or end a body; the next step begins an epoch."""
        self.sends()
        self.compute.wait(self.at.space, self.closed, s)
        self.send.wait(self.at.credit, self.closed, s)
        self.send.wait(self.at.ready, self.posted.get(self.at.ready, 0), s)
        if self.fetches:
            self.fetch.wait(self.at.stock, self.closed, s)
            self.fetch.wait(self.at.pace, self.posted.get(self.at.pace, 0), s)
            self.paces.clear()
        if s.kind == "begin":
            for t in self.all:
                t.outer.append(t.commands)
                t.commands = []
            end = next(x for x in self.p.steps if x.op is s.op and x.kind == "end")
            self.before.append(self.epoch)
            self.ended = [(0, self.epoch), (self.epoch + 1, end.epoch)]
            self.tested = {self.p.conditions[s.op]} if s.op in self.p.conditions else set()
        else:
            trips, condition = s.op.attrs.trips, self.p.conditions.get(s.op, -1)
            for t in self.all:
                body, t.commands = tuple(t.commands), t.outer.pop()
                t.commands.append(Loop(body, trips, condition, s.layer, s.op.origin))
            self.ended = [(0, self.before.pop()), (0, self.epoch)]
        self.border = True
