"""How long a program takes in closed form: the critical path over its commands and cores, without queues.

Every thread of every core runs its commands in order, at once for all cores that are equally far: a call takes its
cycles, a wait ends when the last of its messages is there. When the messages of a command are there is a formula: the
later of the longest way, and what ports, links and die edges have to carry from the first arrival on, behind what is
left of movements that began to arrive before. What it does not know: on which link messages of several commands meet,
buffers that fill up, kernels of other threads. docs/timing.md says how far that is from event-driven times.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from d1rt import event_data as ev
from d1rt.dips import dip_of, rate
from d1rt.event_program import Prepared
from d1rt.linkload import Fabric, Flows, Load, load

Backlog = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Per movement [cores]: from when to when it is on the ways to each core, and for how many cycles."""
BACKLOG = 256
FAR = 2.0**62
"""When nothing comes."""
SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def finished(made: Prepared) -> tuple[np.ndarray, int]:
    """([places] the cycle when each of Prepared.places is over, -1 where nothing is done; the last cycle of all)."""
    run = _Run(made)
    run.all()
    return run.done, int(np.ceil(run.end))


class _Movement:
    """The trains `first` to `end` of a program, sent by one command, and when they are there.

    A distance is the largest of four signed sums of coordinates, so the largest of start + distance over the senders of
    a class is four maxima over senders, then four per receiver; of the smallest they are a bound (the distance from the
    senders' bounding box)."""

    def __init__(self, made: Prepared, trains: np.ndarray) -> None:
        routes, fabric = made.routes, made.fabric
        message = routes.message[trains].astype(np.int64)
        order = np.argsort(message[:, 3], kind="stable")
        self.src, self.packets, self.accesses, cls = (message[order, i] for i in range(4))
        machine = fabric.machine
        passing = machine.packet_bytes / machine.link_bytes_per_cycle
        self.cores = len(fabric.row)
        # Of each train what its sender sends before it (in the order of the program), and how long it takes itself.
        by = np.argsort(message[:, 0], kind="stable")
        sent = message[by, 2]
        total = np.cumsum(sent) - sent
        head = np.flatnonzero(np.diff(message[by, 0], prepend=-1))
        before = np.empty(len(by), np.int64)
        before[by] = total - np.repeat(total[head], np.diff(head, append=len(by)))
        self.before = before[order]
        self.lasts = np.maximum(self.accesses, self.packets * passing)
        self.ports = np.bincount(self.src, self.accesses, self.cores)
        kinds, self.starts, self.of = np.unique(cls, return_index=True, return_inverse=True)
        low, high = routes.column[routes.first[kinds], 1], routes.column[routes.first[kinds + 1], 1]
        self.kind = np.repeat(np.arange(len(kinds)), high - low)
        at = np.arange(len(self.kind)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[self.kind]
        self.to = routes.receiver[at, 2].astype(np.int64)
        self.counts = np.bincount(self.of, message[order, 5], len(kinds))[self.kind]
        y, x = fabric.depth
        self.signed = [sy * y + sx * x for sy, sx in SIGNS]
        self.overhead = fabric.overhead
        moved = load(
            Flows(self.src, self.of, self.packets, self.accesses, 0 * self.packets, self.to, self.kind), fabric
        )
        links = _links(moved, fabric)[fabric.row, fabric.col]
        self.received, self.links = np.zeros((2, self.cores))
        self.received[self.to], self.links = moved.received[self.to], links

    def there(self, begin: np.ndarray, backlog: Backlog) -> np.ndarray:
        """[receivers, as `to`] when each has all, if the trains begin to leave at the cycles `begin`. `backlog`: what
        movements before it keep the receivers busy with; this one is added."""
        last = np.full(len(self.to), -np.inf)
        first, any_first = np.full(len(self.to), -np.inf), np.full(self.cores, -np.inf)
        for v in self.signed:
            far = np.maximum.reduceat(begin + self.lasts - v[self.src], self.starts)[self.kind] + v[self.to]
            near = np.minimum.reduceat(begin - v[self.src], self.starts)[self.kind] + v[self.to]
            last, first = np.maximum(last, far), np.maximum(first, near)
            any_first = np.maximum(any_first, (begin - v[self.src]).min() + v)
        earliest = np.full(self.cores, FAR)
        np.minimum.at(earliest, self.to, first)
        earliest = np.where(earliest < FAR, earliest, any_first)  # others' links carry it past here
        ended = np.maximum(earliest + self.received, any_first + self.links)
        busy = ended - earliest
        for began, until, other in backlog:
            rest = np.minimum(until - earliest, other)
            ended += np.where((began <= earliest) & (rest > 0), rest, 0)
        backlog.append((earliest, ended, busy))
        del backlog[:-BACKLOG]
        return np.asarray(np.maximum(last, ended[self.to]) + self.overhead)


def _links(moved: Load, fabric: Fabric) -> np.ndarray:
    """[rows, columns] cycles of the busiest link or die edge on the ways to each router: of its column's links without
    a gap from above and below, and of the rows' links to where they turn into the column."""
    m = fabric.machine
    passing, (rows, cols) = m.packet_bytes / m.link_bytes_per_cycle, fabric.shape

    def along(links: np.ndarray) -> np.ndarray:
        """[n + 1, ...] from links [n, ...] that follow each other, the busiest up to each end."""
        out = np.zeros((len(links) + 1, *links.shape[1:]))
        for i, x in enumerate(links):
            out[i + 1] = np.where(x > 0, np.maximum(out[i], x), 0)
        return out

    def both(forth: np.ndarray, back: np.ndarray) -> np.ndarray:
        return np.asarray(np.maximum(along(forth), along(back[::-1])[::-1]))

    column = both(moved.down[: rows - 1], moved.up[: rows - 1]) * passing
    row = both(moved.right[:, : cols - 1].T, moved.left[:, : cols - 1].T).T * passing
    busy = np.maximum(column, row.max(0))
    if m.dies > 1:
        share = m.packet_bytes / m.die_edge_bytes_per_cycle
        down, up = (x[m.site_rows - 1 : rows - 1 : m.site_rows] for x in (moved.down, moved.up))
        vertical = both(*(x.reshape(m.die_rows - 1, m.die_cols, m.site_cols).sum(2) for x in (down, up)))
        right, left = (x[:, m.site_cols - 1 : cols - 1 : m.site_cols] for x in (moved.right, moved.left))
        across = both(*(x.reshape(m.die_rows, m.site_rows, m.die_cols - 1).sum(1).T for x in (right, left))).T
        edges = np.maximum(vertical, across.max(0)) * share
        busy = np.maximum(busy, np.repeat(np.repeat(edges, m.site_rows, 0), m.site_cols, 1))
    return np.asarray(busy)


@dataclass(slots=True)
class _Group:
    """Cores of one thread (`at`: by their numbers in it) that are equally far: the next command, rounds of the loops
    around it, and whether the wait there has been counted already."""

    at: np.ndarray
    pc: int
    rounds: list[int] = field(default_factory=list)
    round: int = 0
    counted: bool = False


class _Run:
    def __init__(self, made: Prepared) -> None:
        self.made, self.code, self.routes = made, made.code, made.routes
        self.done, self.end = np.full(len(made.code.done), -1.0), 0.0
        cores, semaphores = made.code.counts.shape
        self.cores = cores
        self.counts = np.zeros((cores, semaphores), np.int64)
        self.waited = np.zeros((cores, semaphores), np.int64)
        self.arrived: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self.moves: dict[tuple[int, bytes], _Movement] = {}
        self.backlog: Backlog = []
        self.dips = np.zeros(max(made.fabric.machine.dip_count, 1))
        n = len(made.code.context)
        self.time, self.last, self.asked = np.zeros(n), np.full(n, -1), np.zeros(n, bool)
        self.need = np.zeros(n, np.int64)

    def all(self) -> None:
        groups = [[_Group(np.arange(len(t.cores)), t.first)] for t in self.made.threads]
        split = False
        while any(groups):
            moved = False
            for number, mine in enumerate(groups):
                i = 0
                while i < len(mine):
                    before = mine[i].pc, len(mine[i].at), tuple(mine[i].rounds)
                    rest = self.go_on(number, mine[i], split)
                    if rest is not None:
                        mine.append(rest)
                    moved |= rest is not None or before != (mine[i].pc, len(mine[i].at), tuple(mine[i].rounds))
                    i += 1
                    if moved and split:
                        break
                groups[number] = [g for g in mine if g.pc >= 0]
                if moved and split:
                    break
            if not moved and split:
                break  # the event loop says what is wrong
            split = not moved

    def finish(self, pc: int, g: _Group, ends: np.ndarray) -> None:
        place = self.code.commands[pc, ev.PLACE]
        if place >= 0 and len(ends):
            self.done[place + g.round] = max(self.done[place + g.round], ends.max())

    def go_on(self, number: int, g: _Group, split: bool) -> _Group | None:
        """Run a group until it must wait or has ended (pc -1). Where only some of it need to wait, and `split`: these
        are a group of their own."""
        code, thread = self.code, self.made.threads[number]
        commands, values = code.commands, code.values
        while True:
            pc = g.pc
            op, a, b, c, semaphore, _, layer = (int(v) for v in commands[pc])
            x, cores = thread.base + g.at, thread.cores[g.at]
            if op in (ev.CALL, ev.FILL):
                cycles = values[a][cores]
                on = cycles > 0
                y, cycles = x[on], cycles[on]
                if op == ev.CALL:
                    pays = (self.last[y] != layer) & (self.asked[y] | bool(b))
                    cycles = cycles + code.options[ev.LAUNCH] * pays
                    self.last[y], self.asked[y] = layer, False
                self.time[y] += cycles
                self.finish(pc, g, self.time[y])
            elif op in (ev.SEND, ev.POST, ev.FETCH):
                who = np.zeros(0, np.int64)
                if a >= 0:
                    who = self.send(op, a, b, semaphore, x, cores)
                if op == ev.POST and b >= 0:
                    own = values[b][cores] > 0
                    self.count(semaphore, cores[own], np.ones(own.sum(), np.int64), self.time[x[own]])
                self.finish(pc, g, self.time[x[who]])
            elif op == ev.WAIT:
                if not g.counted:
                    count = values[a][cores]
                    if b:
                        self.waited[cores, semaphore] += count
                        self.need[x] = np.where((count > 0) | (b == 2), self.waited[cores, semaphore], 0)
                    else:
                        self.need[x] = count
                    if c:
                        self.asked[x] |= count > 0
                    g.counted = True
                ready = self.counts[cores, semaphore] >= self.need[x]
                rest = None
                if not ready.all():
                    if not split or not ready.any():
                        return None
                    rest = _Group(g.at[~ready], pc, g.rounds[:], g.round, True)
                    g.at = g.at[ready]
                    x, cores = thread.base + g.at, thread.cores[g.at]
                self.time[x] = np.maximum(self.time[x], self.when(semaphore, cores, self.need[x]))
                self.finish(pc, g, self.time[x])
                g.counted = False
                if rest is not None:
                    g.pc = pc + 1
                    return rest
            elif op == ev.LOOP:
                if a == 0:
                    g.pc = b
                    continue
                g.rounds.append(0)
                g.round *= a
            elif op == ev.BACK:
                g.rounds[-1] += 1
                if g.rounds[-1] < a:
                    g.round += 1
                    g.pc = b
                    continue
                g.rounds.pop()
                g.round //= a
            else:
                self.end = max(self.end, self.time[x].max(initial=0))
                g.pc = -1
                return None
            g.pc = pc + 1

    def send(self, op: int, a: int, b: int, semaphore: int, x: np.ndarray, cores: np.ndarray) -> np.ndarray:
        """Send messages; which of the group have any."""
        first = self.code.sends[a]
        many = first[cores + 1] - first[cores]
        who = np.flatnonzero(many)
        if not len(who):
            return who
        key = a, cores[who].tobytes()
        if key not in self.moves:
            each = many[who]
            trains = np.repeat(first[cores[who]] - (np.cumsum(each) - each), each) + np.arange(each.sum())
            self.moves[key] = _Movement(self.made, trains)
        move = self.moves[key]
        start = np.zeros(move.cores)
        start[cores[who]] = self.time[x[who]]
        begin = self.fetched(move, start, self.code.values[b]) if op == ev.FETCH else start[move.src] + move.before
        there = move.there(begin, self.backlog)
        self.count(semaphore, move.to, move.counts, there)
        self.end = max(self.end, there.max(initial=0))
        self.time[x[who]] += move.ports[cores[who]] if op == ev.SEND else op == ev.FETCH
        return who

    def fetched(self, move: _Movement, start: np.ndarray, way: np.ndarray) -> np.ndarray:
        """When an interface processor sends each train, to cores that ask at `start`: in order of the questions."""
        m, fabric = self.made.fabric.machine, self.made.fabric
        asks = move.to[move.of]
        ready = start[asks] + way[asks] + m.hbm_latency_cycles + m.dip_latency_cycles
        dip = dip_of(m)[fabric.row[move.src]]
        order = np.lexsort((ready, dip))
        ready, dip, load = ready[order], dip[order], move.packets[order] * m.packet_bytes / rate(m)
        begin = np.empty(len(order))
        for d in np.unique(dip):
            mine = np.flatnonzero(dip == d)
            before = np.cumsum(load[mine]) - load[mine]
            at = before + np.maximum.accumulate(np.maximum(ready[mine], self.dips[d]) - before)
            begin[order[mine]] = at
            self.dips[d] = at[-1] + load[mine[-1]]
        return begin + m.dip_latency_cycles - m.inject_cycles

    def count(self, semaphore: int, cores: np.ndarray, counts: np.ndarray, time: np.ndarray) -> None:
        """Messages arrive; of one command's all count when its last is there."""
        many = np.bincount(cores, counts, self.cores).astype(np.int64)
        when = np.full(self.cores, -np.inf)
        np.maximum.at(when, cores, time)
        self.counts[:, semaphore] += many
        self.arrived[semaphore].append((many, when))

    def when(self, semaphore: int, cores: np.ndarray, need: np.ndarray) -> np.ndarray:
        """When each of `cores` has its count."""
        out, before = np.full(len(cores), -np.inf), np.zeros(len(cores), np.int64)
        for many, when in self.arrived[semaphore]:
            out = np.where((before < need) & (many[cores] > 0), np.maximum(out, when[cores]), out)
            before += many[cores]
        return out
