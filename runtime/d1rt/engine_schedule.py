"""An order in which a program's commands can run, found without running them: waiting does not depend on data.

The cores' threads are simulated with their semaphores and the states of memory, many cores at a time. The result is a
list of steps (a command and the cores that perform it), each legal where it stands.

All threads of all cores meet before and behind every round of a loop. Two rounds are simulated: where the second leaves
memory and semaphores as the first did, all that follow can go like the second. What follows a loop that data may end
before its first round must be legal both ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from d1c.errors import Deadlock, Trap
from d1c.target.mesh import Mesh
from d1c.target.program import (
    Arrive,
    Barrier,
    Call,
    Command,
    Fetch,
    Fill,
    Free,
    Loop,
    Post,
    Program,
    Push,
    Role,
    Send,
    To,
    Wait,
    every,
    place_text,
)
from d1c.target.program_check import role_cores
from d1rt.command_cycles import active
from d1rt.engine_states import Memory, Movement
from d1rt.traps import command_text, core_text, deadlock, rounds_text

SHOWN, POSTERS = 10, 3
"""How many waiting threads a report of a deadlock has, and how many who could help for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """`cores` (ascending) perform `command` together. Calls: only the cores that have work. Pushes: `messages` are the
    numbers of those they send (None: all of the movement). Sends: `targets` [n, 2], (index into cores, core). Fetches:
    only the cores that read something. Fills: `late` if messages may have come first."""

    command: Call | Push | Send | Fetch | Fill
    cores: np.ndarray
    messages: np.ndarray | None = None
    targets: np.ndarray | None = None
    late: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """A loop: what happens in its first round, and in every other."""

    command: Loop
    first: list[Step | Rounds]
    steady: list[Step | Rounds]


@dataclass(frozen=True, slots=True, eq=False)
class _Thread:
    """One thread of all cores of a role, or a loop's body there. `path`: the place of the loop; `rounds`: which rounds
    of the loops around, from 1."""

    role: Role
    number: int
    commands: tuple[Command, ...]
    cores: np.ndarray
    path: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()


@dataclass(eq=False)
class _Context:
    """Commands `first` to `last` of a thread, between two loops. `pc`: the one each core is at; `entered`: it has
    entered that barrier."""

    of: _Thread
    first: int
    last: int
    pc: np.ndarray
    entered: np.ndarray

    @cached_property
    def everyone(self) -> np.ndarray:
        return np.arange(len(self.pc))

    @property
    def commands(self) -> tuple[Command, ...]:
        return self.of.commands

    @property
    def cores(self) -> np.ndarray:
        return self.of.cores

    def at(self, number: int) -> str:
        return place_text((*self.of.path, number))


def reached(to: tuple[To, ...], cores: np.ndarray, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """(index into `cores`, core reached) pairs of a Send or Post."""
    who, at = np.arange(len(cores)), mesh.coords[cores].copy()
    for t in to:
        i = mesh.index[t.axis]
        if t.mode == "*":
            n = mesh.sizes[i]
            who, at = np.repeat(who, n), np.repeat(at, n, axis=0)
            at[:, i] = np.tile(np.arange(n), len(at) // n)
        else:
            at[:, i] = t.value + (at[:, i] if t.mode == "+" else 0)
    ok = np.all((at >= 0) & (at < np.array(mesh.sizes)), axis=1)
    return who[ok], at[ok] @ np.array([mesh.stride[n] for n in mesh.names], np.int64)


class Schedule:
    """Simulates a program; `steps` is the order. Raises Deadlock, and Trap where `memory` does.

    rng    seed of a random order (None: threads in turn, each as far as it gets)
    parts  with rng: also a random part of the cores at a time
    """

    def __init__(
        self, program: Program, moves: list[Movement], memory: Memory, rng: np.random.Generator | None, parts: bool
    ) -> None:
        self.program, self.mesh, self.moves, self.memory = program, program.mesh, moves, memory
        self.rng, self.parts = rng, parts
        self.steps: list[Step | Rounds] = []
        semaphores = int(program.machine["semaphores"])
        self.counts = np.zeros((semaphores, self.mesh.cores), np.int64)
        self.waited = np.zeros_like(self.counts)
        self._active: dict[int, np.ndarray] = {}
        self._reached: dict[tuple[tuple[To, ...], bytes], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._met: dict[tuple[tuple[int, ...], int], np.ndarray] = defaultdict(
            lambda: np.zeros(self.mesh.cores, np.int64)
        )
        self.players = np.zeros(0, np.int64)
        threads = []
        for role in program.roles:
            cores = role_cores(role, self.mesh)
            self.players = np.union1d(self.players, cores)
            threads += [_Thread(role, i, commands, cores) for i, commands in enumerate(role.threads)]
        self.sequence(threads)
        for port in program.outputs:
            memory.output(port)

    # ---- loops ------------------------------------------------------------------------------------------------------

    def sequence(self, threads: list[_Thread]) -> None:
        """All commands of the threads: between two loops each as far as it gets, then all of them round by round."""
        cuts = [[*(i for i, c in enumerate(t.commands) if isinstance(c, Loop)), len(t.commands)] for t in threads]
        start = [0] * len(threads)
        for ends in zip(*cuts, strict=True):
            self.stretch(
                [
                    _Context(t, a, b, np.full(len(t.cores), a), np.zeros(len(t.cores), bool))
                    for t, a, b in zip(threads, start, ends, strict=True)
                ]
            )
            if ends[0] < len(threads[0].commands):
                self.loop(threads, ends)
            start = [e + 1 for e in ends]

    def loop(self, threads: list[_Thread], at: tuple[int, ...]) -> None:
        """Two rounds of the loops at these places of the threads, and what memory is like behind them."""
        loops = [c for t, i in zip(threads, at, strict=True) if isinstance(c := t.commands[i], Loop)]
        c, outer = loops[0], self.steps
        if not c.trips:
            return
        touched = sorted({b for loop in loops for inner in every(loop.body) for b in _buffers(inner)})
        before = self.memory.state(touched) if c.condition >= 0 else None
        surplus = self.counts - self.waited

        def round_(number: int) -> list[Step | Rounds]:
            if c.condition >= 0:
                self.memory.condition(c, self.players)
            self.steps = []
            self.sequence(
                [
                    _Thread(t.role, t.number, x.body, t.cores, (*t.path, i), (*t.rounds, number))
                    for t, i, x in zip(threads, at, loops, strict=True)
                ]
            )
            return self.steps

        first = round_(1)
        steady: list[Step | Rounds] = []
        if c.trips > 1:
            after, left = self.memory.state(touched), self.counts - self.waited
            steady = round_(2)
            self.same(c, left, "the second round of a loop leaves every semaphore as the first one did")
            if (odd := self.memory.changed(after)) is not None:
                core, b = odd[0], self.program.buffers[odd[1]]
                raise self.unsteady(
                    c, core, f"{b.name} is not as the first round left it",
                    "the second round of a loop leaves every buffer free or written as the first one did",
                )  # fmt: skip
        if before is not None:
            if c.trips > 1:
                self.memory.condition(c, self.players)
            self.same(c, surplus, "no round of a loop that data may end changes what a semaphore is ahead of its waits")
            self.memory.join(before)
        outer.append(Rounds(c, first, steady))
        self.steps = outer

    def same(self, c: Loop, surplus: np.ndarray, rule: str) -> None:
        """Trap where semaphores are not as far ahead of what has been waited for as `surplus` says."""
        now = self.counts - self.waited
        if not np.array_equal(now, surplus):
            core, semaphore = (int(x[0]) for x in np.nonzero((now != surplus).T))
            more = int(now[semaphore, core] - surplus[semaphore, core])
            raise self.unsteady(c, core, f"semaphore {semaphore} is {more:+d} counts off after a round", rule)

    def unsteady(self, c: Loop, core: int, message: str, rule: str) -> Trap:
        return Trap(
            message, core=core_text(self.mesh, core), op=command_text(self.program, c), where=c.origin, rule=rule,
            remedy="the program is wrong: if d1c compiled it, report this text as a bug of d1c",
        )  # fmt: skip

    def stretch(self, contexts: list[_Context]) -> None:
        """Commands without loops, to their ends."""
        order = np.arange(len(contexts))
        moved = True
        while moved:
            if self.rng is not None:
                order = self.rng.permutation(order)
            moved = False
            for k in order:
                moved |= self.advance(contexts[k], last=self.rng is None)
            if not moved and self.rng is None:  # let some cores run ahead only where those behind all wait
                moved = any(self.advance(c, last=False) for c in contexts)
        if any((c.pc < c.last).any() for c in contexts):
            raise self.deadlock(contexts)

    def advance(self, c: _Context, last: bool) -> bool:
        """Run a context; whether it did anything. `last`: those cores that are furthest behind, as far as they get; so
        that many do the same together. Otherwise all cores, one command each."""
        moved = False
        while True:
            done = False
            for at in (int(c.pc.min()),) if last else np.unique(c.pc):
                if at == c.last:
                    break
                command = c.commands[at]
                here = c.everyone if c.pc.max() == at and last else np.flatnonzero(c.pc == at)
                mask = self.ready(c, command, here)
                ready = here if mask.all() else here[mask]
                if self.parts and self.rng is not None and len(ready) and not isinstance(command, Barrier):
                    ready = np.sort(self.rng.permutation(ready)[: int(self.rng.integers(1, len(ready) + 1))])
                if len(ready):
                    every_one = len(ready) == len(c.pc)
                    self.perform(command, c.cores if every_one else c.cores[ready])
                    c.pc[slice(None) if every_one else ready] += 1
                    done = True
                if last:
                    break
            moved |= done
            if not (last and done):
                return moved

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def wanted(self, command: Command, cores: np.ndarray) -> tuple[int, np.ndarray] | None:
        """The semaphore and the counts for which the cores wait."""
        if isinstance(command, Wait):
            count = command.count.of(self.mesh)[cores]
            return command.semaphore, count + self.waited[command.semaphore][cores] if command.relative else count
        if isinstance(command, Arrive):
            expected = self.moves[command.exchange].expected[cores]
            return command.semaphore, np.where(expected > 0, self.waited[command.semaphore][cores] + expected, 0)
        return None

    def ready(self, c: _Context, command: Command, here: np.ndarray) -> np.ndarray:
        """Mask over `here` (indices into the context's cores): who can go on."""
        cores = c.cores if len(here) == len(c.cores) else c.cores[here]
        if isinstance(command, Barrier):
            met = self._met[command.up, command.release]
            met[c.cores[here[~c.entered[here]]]] += 1
            ready = np.asarray(met[cores] <= met.min())
            c.entered[here] = ~ready
            return ready
        want = self.wanted(command, cores)
        return np.ones(len(here), bool) if want is None else np.asarray(self.counts[want[0]][cores] >= want[1])

    def deadlock(self, contexts: list[_Context]) -> Deadlock:
        stuck = [
            (int(c.cores[i]), c.of.number, c, int(c.pc[i])) for c in contexts for i in np.flatnonzero(c.pc < c.last)
        ]
        stuck.sort(key=lambda s: s[:2])
        return deadlock(tuple(self.explain(s, stuck) for s in stuck[:SHOWN]), len(stuck))

    def explain(self, one: tuple[int, int, _Context, int], stuck: Sequence[tuple[int, int, _Context, int]]) -> str:
        """Who waits for what, and which commands that others have not reached could still post it."""
        core, thread, c, at = one
        command = c.commands[at]
        line = (
            f"core {core_text(self.mesh, core)}, role {c.of.role.name}, thread {thread}, "
            f"command {c.at(at)}{rounds_text(c.of.rounds)} {command_text(self.program, command)}"
        )
        want = self.wanted(command, np.array([core]))
        if want is None:
            return f"{line}: some core has not come"
        line += f": semaphore {want[0]} has {self.counts[want[0], core]}, needs {int(want[1][0])}"
        if command.origin:
            line += f" (for {command.origin})"
        posters: list[str] = []
        for other, number, o, start in stuck:
            for k in range(start, o.last):
                if self.may_post(other, o.commands[k], core, want[0]) and (other, number) != (core, thread):
                    text = command_text(self.program, o.commands[k])
                    where = f"core {core_text(self.mesh, other)} thread {number} (now at {o.at(start)})"
                    posters.append(f"{where} by command {o.at(k)} {text}")
                    break
            if len(posters) == POSTERS:
                break
        if posters:
            return f"{line}; could be posted by {'; '.join(posters)}"
        when = " before the next loop" if c.last < len(c.commands) else " in this round" if c.of.rounds else ""
        return f"{line}; nobody will post it{when}"

    def may_post(self, core: int, c: Command, target: int, semaphore: int) -> bool:
        """Whether command `c` of `core` posts `semaphore` of core `target`."""
        if isinstance(c, Push) and c.semaphore == semaphore:
            m, cls = self.moves[c.exchange].messages, self.moves[c.exchange].class_of[target]
            return bool(np.any((m.src == core) & (m.cls == cls)))
        if isinstance(c, Fetch) and c.semaphore == semaphore:
            return target == core and bool(c.index.of(self.mesh)[core] >= 0)
        if isinstance(c, (Send, Post)) and c.semaphore == semaphore:
            return target in reached(c.to, np.array([core]), self.mesh)[1]
        return False

    # ---- commands ---------------------------------------------------------------------------------------------------

    def perform(self, c: Command, cores: np.ndarray) -> None:
        match c:
            case Call():
                if id(c) not in self._active:
                    self._active[id(c)] = active(c, self.mesh)
                cores = cores[self._active[id(c)][cores]]
                if len(cores):
                    self.memory.call(c, cores)
                    self.steps.append(Step(c, cores))
            case Push():
                self.push(c, cores)
            case Arrive():
                self.waited[c.semaphore][cores] += self.moves[c.exchange].expected[cores]
            case Wait():
                if c.relative:
                    self.waited[c.semaphore][cores] += c.count.of(self.mesh)[cores]
            case Send():
                who, to, posts = self.reached(c.to, cores)
                if len(who):
                    self.memory.send(c, cores, who, to)
                    self.counts[c.semaphore] += posts
                    self.steps.append(Step(c, cores, targets=np.stack([who, to], axis=1)))
            case Fetch():
                cores = cores[c.index.of(self.mesh)[cores] >= 0]
                if len(cores):
                    self.memory.fetch(c, cores)
                    self.counts[c.semaphore][cores] += 1
                    self.steps.append(Step(c, cores))
            case Post():
                self.counts[c.semaphore] += self.reached(c.to, cores)[2]
            case Free():
                self.memory.free(c, cores)
            case Fill():
                if c.exchange >= 0:
                    cores = cores[self.moves[c.exchange].class_of[cores] >= 0]
                if len(cores):
                    self.steps.append(Step(c, cores, late=self.memory.fill(c, cores)))

    def reached(self, to: tuple[To, ...], cores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `reached`; and how often each core is."""
        key = to, cores.tobytes()
        if key not in self._reached:
            who, at = reached(to, cores, self.mesh)
            self._reached[key] = who, at, np.bincount(at, minlength=self.mesh.cores)
        return self._reached[key]

    def push(self, c: Push, cores: np.ndarray) -> None:
        move = self.moves[c.exchange]
        sends = np.zeros(self.mesh.cores, bool)
        sends[cores] = True
        mask = sends[move.messages.src]
        if not mask.any():
            return
        picks = None if mask.all() else np.flatnonzero(mask)
        self.memory.push(c, cores, picks)
        cls = move.messages.cls if picks is None else move.messages.cls[picks]
        self.counts[c.semaphore] += move.per_core(np.bincount(cls, minlength=len(move.size)))
        self.steps.append(Step(c, cores, picks))


def _buffers(c: Command) -> tuple[int, ...]:
    """Buffers whose states a command changes."""
    match c:
        case Call():
            return (c.out,)
        case Push() | Send() | Fetch():
            return (c.target,)
        case Fill():
            return (c.buffer,)
        case Free():
            return c.buffers
    return ()


def unaliased(steps: list[Step], moves: list[Movement]) -> set[int]:
    """Buffers that cores of one class need not hold equally: written by calls, Sends or Fetches, or filled by a part of
    a class."""
    out = set()
    for s in steps:
        c = s.command
        if isinstance(c, Call):
            out.add(c.out)
        elif isinstance(c, (Send, Fetch)):
            out.add(c.target)
        elif isinstance(c, Fill):
            if c.exchange < 0:
                out.add(c.buffer)
                continue
            cls, count = np.unique(moves[c.exchange].class_of[s.cores], return_counts=True)
            if not np.array_equal(count, moves[c.exchange].size[cls]):
                out.add(c.buffer)
    return out
