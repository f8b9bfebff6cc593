"""How long a program takes in closed form: the critical path over its commands and cores, without a queue of events.

Every thread of every core runs its commands in order, those together that are equally far: a call takes its cycles, a
wait ends when the last of its messages is there. When that is, closed_ways says: links are fluids that messages fill
in the order of their starts, looked at in steps of STEP cycles. What it does not know: trains that wait for room in
a buffer and hold up what is behind them, kernels of other threads. docs/timing.md says how far that is from
event-driven times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d1c.target.movement import ragged
from d1rt import event_data as ev
from d1rt.closed_ways import idle, known_by, walk
from d1rt.dips import dip_of, rate
from d1rt.event_program import Prepared
from d1rt.network import empty

STEP = 256
"""Of messages that start no further apart than this many cycles, none is looked at too late for another."""


def finished(made: Prepared) -> tuple[np.ndarray, int]:
    """([places] the cycle when each of Prepared.places is over, -1 where nothing is done; the last cycle of all)."""
    run = _Run(made)
    run.all()
    return run.done, int(np.ceil(run.end))


Key = tuple[int, tuple[int, ...], int]
"""Where some cores of a thread wait: the command, rounds of the loops around it, and which round of all."""


@dataclass(slots=True)
class _Sent:
    """Trains that are under way, [n] each: when they start, their numbers in Prepared.routes, the slot of their
    command in _Run.known, the context that waits until they have left SRAM (-1: none)."""

    begin: np.ndarray
    train: np.ndarray
    slot: np.ndarray
    context: np.ndarray


class _Run:
    def __init__(self, made: Prepared) -> None:
        self.made, self.code, self.routes = made, made.code, made.routes
        self.done, self.end = np.full(len(made.code.done), -1.0), 0.0
        self.cores, semaphores = made.code.counts.shape
        self.net = empty(made.fabric)
        self.ways = idle(self.net)
        self.waited, self.consumed, self.base = np.zeros((3, semaphores, self.cores), np.int64)
        self.slots: dict[tuple[int, int], int] = {}  # of a command that sends, and the round of it
        self.of: list[np.ndarray] = [np.zeros(0, np.int64)] * semaphores  # slots whose messages count there
        self.known, self.when = np.zeros((64, self.cores), np.int32), np.zeros((64, self.cores))
        self.open: list[int] = []  # per slot: cores that have not been there, trains under way
        self.semaphore: list[int] = []  # of each slot
        self.news: set[object] = set()  # semaphores that have been counted, and who waits since
        self.sent: list[_Sent] = []
        self.parked: list[dict[Key, np.ndarray]] = [{} for _ in made.threads]
        self.dips = np.zeros(max(made.fabric.machine.dip_count, 1))
        n = len(made.code.context)
        self.time, self.last, self.asked = np.zeros(n), np.full(n, -1), np.zeros(n, bool)
        self.need = np.zeros(n, np.int64)

    def all(self) -> None:
        for number, t in enumerate(self.made.threads):
            self.go_on(number, np.arange(len(t.cores)), t.first, [], 0)
        while True:
            while self.news:
                now, self.news = self.news, set()
                for number, parked in enumerate(self.parked):
                    for key in list(parked):
                        if int(self.code.commands[key[0], ev.SEMAPHORE]) in now or (number, key) in now:
                            self.look(number, key)
            if not self.sent:
                break  # all have ended, or the event loop says what is wrong
            self.resolve()
        self.end = max(self.end, self.time.max(initial=0))

    def look(self, number: int, key: Key) -> None:
        """Let those go on that know now when their wait ends."""
        at, thread = self.parked[number].pop(key), self.made.threads[number]
        semaphore = int(self.code.commands[key[0], ev.SEMAPHORE])
        x, cores = thread.base + at, thread.cores[at]
        when = np.empty(len(at))
        known_by(cores, self.need[x], self.of[semaphore], self.base[semaphore], self.known, self.when, when)
        ready = when >= 0
        if not ready.all():
            self.parked[number][key] = at[~ready]
        if not ready.any():
            return
        x = x[ready]
        self.time[x] = np.maximum(self.time[x], when[ready])
        self.consumed[semaphore, cores[ready]] = np.maximum(self.consumed[semaphore, cores[ready]], self.need[x])
        self.finish(key[0], key[2], self.time[x])
        self.go_on(number, at[ready], key[0] + 1, list(key[1]), key[2])

    def finish(self, pc: int, round_: int, ends: np.ndarray) -> None:
        place = self.code.commands[pc, ev.PLACE]
        if place >= 0 and len(ends):
            self.done[place + round_] = max(self.done[place + round_], ends.max())

    def go_on(self, number: int, at: np.ndarray, pc: int, rounds: list[int], round_: int) -> None:
        """Run cores `at` of a thread until they wait or have ended."""
        code, thread = self.code, self.made.threads[number]
        commands, values = code.commands, code.values
        x, cores = thread.base + at, thread.cores[at]
        while True:
            op, a, b, c, semaphore, _, layer = (int(v) for v in commands[pc])
            if op in (ev.CALL, ev.FILL):
                cycles = values[a][cores]
                on = cycles > 0
                y, cycles = x[on], cycles[on]
                if op == ev.CALL:
                    pays = (self.last[y] != layer) & (self.asked[y] | bool(b))
                    cycles = cycles + code.options[ev.LAUNCH] * pays
                    self.last[y], self.asked[y] = layer, False
                self.time[y] += cycles
                self.finish(pc, round_, self.time[y])
            elif op == ev.PAUSE:
                self.time[x] += values[a][cores]
            elif op in (ev.SEND, ev.POST, ev.FETCH):
                slot = self.slot(pc, round_, semaphore, len(thread.cores))
                self.open[slot] -= len(at)
                if a >= 0:
                    self.send(op, a, b, slot, x, cores)
                if op == ev.POST and b >= 0:
                    own = values[b][cores] > 0
                    self.news.add(semaphore)
                    self.known[slot, cores[own]] += 1
                    self.when[slot, cores[own]] = np.maximum(self.when[slot, cores[own]], self.time[x[own]])
                self.finish(pc, round_, self.time[x])
            elif op == ev.WAIT:
                count = values[a][cores]
                if b:
                    self.waited[semaphore, cores] += count
                    count = np.where((count > 0) | (b == 2), self.waited[semaphore, cores], 0)
                self.need[x] = count
                if c:
                    self.asked[x] |= values[a][cores] > 0
                key = pc, tuple(rounds), round_
                others = self.parked[number].get(key)
                self.news.add((number, key))
                self.parked[number][key] = at if others is None else np.concatenate([others, at])
                return
            elif op == ev.LOOP:
                if a == 0:
                    pc = b
                    continue
                rounds.append(0)
                round_ *= a
            elif op == ev.BACK:
                rounds[-1] += 1
                if rounds[-1] < a:
                    round_ += 1
                    pc = b
                    continue
                rounds.pop()
                round_ //= a
            else:
                return
            pc += 1

    def slot(self, pc: int, round_: int, semaphore: int, cores: int) -> int:
        """Where the messages of a command are counted, which `cores` of its thread will have done."""
        key = pc, round_
        if key not in self.slots:
            slot = self.slots[key] = len(self.open)
            self.open.append(cores)
            self.semaphore.append(semaphore)
            self.of[semaphore] = np.append(self.of[semaphore], slot)
            if slot == len(self.known):
                self.known = np.concatenate([self.known, np.zeros_like(self.known)])
                self.when = np.concatenate([self.when, np.zeros_like(self.when)])
        return self.slots[key]

    def send(self, op: int, a: int, b: int, slot: int, x: np.ndarray, cores: np.ndarray) -> None:
        """Send the messages of these cores."""
        first = self.code.sends[a]
        owner, i = ragged(first[cores + 1] - first[cores])
        if not len(owner):
            return
        train = first[cores][owner] + i
        start, ports = self.time[x], self.routes.message[train, 2].astype(np.int64)
        before = np.cumsum(ports) - ports
        total = np.bincount(owner, ports, len(cores))
        before = before - (np.cumsum(total) - total)[owner]  # what the core sends before it
        begin = start[owner] + before
        if op == ev.FETCH:
            begin = self.fetched(train, start[owner], self.code.values[b][cores][owner])
        waits = x[owner] if op == ev.SEND else np.full(len(owner), -1)
        self.sent.append(_Sent(begin, train, np.full(len(owner), slot), waits))
        self.open[slot] += len(owner)
        if op != ev.POST:
            self.time[x] += total if op == ev.SEND else total > 0

    def resolve(self) -> None:
        """Take the ways of what starts next."""
        begin, train, slot, context = (
            np.concatenate([getattr(s, name) for s in self.sent]) for name in ("begin", "train", "slot", "context")
        )
        now = begin <= begin.min() + STEP
        later = ~now
        self.sent = [_Sent(begin[later], train[later], slot[later], context[later])] if later.any() else []
        at = np.flatnonzero(now)
        at = at[np.argsort(begin[at], kind="stable")]
        left = np.zeros(len(at))
        end = walk(self.ways, self.net, self.routes, train[at], begin[at], slot[at], self.known, self.when, left)
        self.end = max(self.end, end)
        waits = context[at] >= 0
        np.maximum.at(self.time, context[at][waits], left[waits])
        for s, n in zip(*np.unique(slot[at], return_counts=True), strict=True):
            self.open[s] -= int(n)
            self.news.add(self.semaphore[s])
        self.forget()

    def forget(self) -> None:
        """What has been waited for by all cores is only counted."""
        for semaphore, slots in enumerate(self.of):
            while len(slots) > 1 and not self.open[slots[0]]:
                base = self.base[semaphore] + self.known[slots[0]]
                if (base > self.consumed[semaphore]).any():
                    break
                self.base[semaphore], slots = base, slots[1:]
            self.of[semaphore] = slots

    def fetched(self, train: np.ndarray, asked: np.ndarray, way: np.ndarray) -> np.ndarray:
        """When an interface processor sends each train, to cores that ask at `asked`, `way` cycles from it: in order
        of the questions."""
        m, fabric = self.made.fabric.machine, self.made.fabric
        ready = asked + way + m.hbm_latency_cycles + m.dip_latency_cycles
        dip = dip_of(m)[fabric.row[self.routes.message[train, 0]]]
        order = np.lexsort((ready, dip))
        ready, dip, load = ready[order], dip[order], self.routes.message[train, 1][order] * m.packet_bytes / rate(m)
        begin = np.empty(len(order))
        for d in np.unique(dip):
            mine = np.flatnonzero(dip == d)
            before = np.cumsum(load[mine]) - load[mine]
            at = before + np.maximum.accumulate(np.maximum(ready[mine], self.dips[d]) - before)
            begin[order[mine]] = at
            self.dips[d] = at[-1] + load[mine[-1]]
        return begin + m.dip_latency_cycles - m.inject_cycles
