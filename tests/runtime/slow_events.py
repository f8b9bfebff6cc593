"""The timing rules once more: one event at a time from a heap, routes walked link by link, generators for threads.

Independent of the engine's code; it shares the definitions of calls' cycles, of movements and of the barrier's tree.
Loops run all their rounds.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict

import numpy as np

from d1c.target.barrier import barrier_axes, middle
from d1c.target.dtypes import dtype
from d1c.target.machine import Machine
from d1c.target.program import Arrive, Barrier, Call, Fill, Free, Loop, Post, Program, Push, Send, Wait, every
from d1c.target.program_check import role_cores
from d1rt.command_cycles import call_work, fill_work
from d1rt.engine_numpy import reach
from d1rt.linkload import Fabric
from d1rt.state import Movement


def slow_cycles(program: Program) -> int:
    return _Slow(program).run()


class _Slow:
    def __init__(self, program: Program) -> None:
        self.p, self.m, self.mesh = program, Machine.from_dict(program.machine), program.mesh
        self.fabric = Fabric.of(self.m)
        self.heap: list = []
        self.number = itertools.count()
        self.free: dict = defaultdict(int)
        self.held: dict = defaultdict(int)
        self.queues: dict = defaultdict(list)
        self.called: set = set()
        self.counts: dict = defaultdict(int)
        self.waited: dict = defaultdict(int)
        self.blocked: dict = defaultdict(list)
        self.now = self.end = 0
        self.moves = [Movement(x) for x in program.exchanges]
        self.work: dict = {}
        self.remote = {
            c.semaphore for r in program.roles for t in r.threads for c in every(t)
            if isinstance(c, Push | Send) or (isinstance(c, Post) and c.to)
        }  # fmt: skip

    def at(self, time, what):
        heapq.heappush(self.heap, (time, next(self.number), what))

    def run(self) -> int:
        left = 0
        for role in self.p.roles:
            for thread in range(len(role.threads)):
                for core in role_cores(role, self.mesh):
                    g = self.steps(int(core), role.threads[thread], {"layer": -1, "waited": False})
                    left += 1
                    self.at(0, lambda g=g: self.resume(g))
        while self.heap:
            self.now, _, what = heapq.heappop(self.heap)
            what()
        return self.end

    def resume(self, g) -> None:
        """A thread yields (cycle,) to sleep until then, (core, messages, semaphore, order) to send and to sleep until
        all have left, or (core, semaphore, count) to wait."""
        self.end = max(self.end, self.now)
        for want in g:
            if len(want) == 1:
                self.at(want[0], lambda: self.resume(g))
                return
            if isinstance(want[1], list):
                core, messages, semaphore, order = want
                self.message(core, messages, semaphore, lambda end: self.at(end, lambda: self.resume(g)), order)
                return
            core, semaphore, count = want
            if self.counts[core, semaphore] < count:
                self.blocked[core, semaphore].append((count, g))
                return

    def post(self, core, semaphore) -> None:
        self.end = max(self.end, self.now)
        self.counts[core, semaphore] += 1
        for item in self.blocked[core, semaphore][:]:
            if self.counts[core, semaphore] >= item[0]:
                self.blocked[core, semaphore].remove(item)
                self.at(self.now, lambda g=item[1]: self.resume(g))

    # ---- messages ---------------------------------------------------------------------------------------------------

    def message(self, src, messages, semaphore, then=None, order=0) -> None:
        """`messages`: (targets, packets, accesses); `then` gets the cycle when the last of them has left. `order` 1:
        along columns first."""
        place = int(self.fabric.row[src]), int(self.fabric.col[src])
        most = self.m.virtual_channels * self.m.channel_packets
        trains = []
        for targets, packets, accesses in messages:
            count = min(16, max(1, -(-packets // most)))
            p = np.diff(np.arange(count + 1) * packets // count)
            a = np.diff(np.arange(count + 1) * accesses // count)
            for whole in [list(targets)] if self.m.multicast == "tree" else [[t] for t in targets]:
                group = self.trunks(place[0], whole) if order else [(t, -1) for t in whole]
                trains += [(group, int(x), int(y), i == count - 1) for i, (x, y) in enumerate(zip(p, a, strict=True))]
        link = place, "out"

        def leave(rest=tuple(trains)) -> None:
            group, packets, accesses, last = rest[0]
            self.free[link] = self.now + accesses
            self.held[link, order] += packets
            head = self.now + self.m.inject_cycles
            self.at(head, lambda: self.router(place, link, group, packets, accesses, last, semaphore, order))
            if len(rest) > 1:
                self.queues[link, 0].insert(0, (rest[1][1], order, lambda: leave(rest[1:])))
            elif then:
                then(self.now + accesses)

        self.queues[link, 0].append((trains[0][1], order, leave))
        self.call(link, order)

    def trunks(self, row, targets):
        """The targets of a tree along columns first, each with the row of its trunk: of rows of a die that follow each
        other, and all have targets, the sender's in its own die, if it is not the first or the last, or one in turn."""
        rows, found = {int(self.fabric.row[t]) for t in targets}, []
        for t in targets:
            first = last = int(self.fabric.row[t])
            while first % self.m.site_rows and first - 1 in rows:
                first -= 1
            while (last + 1) % self.m.site_rows and last + 1 in rows:
                last += 1
            inner = range(first, last + 1)[1:-1] or [first, last]
            want = first // self.m.site_rows * self.m.site_rows + row % self.m.site_rows
            found.append((t, want if want in inner else inner[row % self.m.site_rows % len(inner)]))
        return found

    def queue(self, link, order):
        """Each order has its own queues between routers; ports have one."""
        return link, order if link[1] not in ("in", "out") else 0

    def room(self, link, packets, order) -> bool:
        """All channels' places of an order; what a link carries until a credit is back, if that is more; endless in
        SRAM."""
        _, way = link
        if way == "in":
            return True
        cycles = self.m.inject_cycles if way == "out" else self.m.hop_cycles
        rate = self.m.packet_bytes / self.m.link_bytes_per_cycle
        size = max(self.m.virtual_channels * self.m.channel_packets, int(np.ceil(2 * cycles / rate)))
        return self.held[link, order] + min(packets, size) <= size

    def call(self, link, order) -> None:
        """The first in the queue of a link goes when that is free, if there is room behind it."""
        queue = self.queue(link, order)
        if self.queues[queue] and queue not in self.called and self.room(link, *self.queues[queue][0][:2]):
            self.called.add(queue)
            _, _, go = self.queues[queue].pop(0)

            def woken() -> None:
                if self.free[link] > self.now:  # one of the other order was first
                    self.at(int(np.ceil(self.free[link])), woken)
                    return
                self.called.discard(queue)
                go()
                if link[1] not in ("in", "out"):  # the orders take turns
                    self.call(link, 1 - order)
                if (link, 1 - order) not in self.called:
                    self.call(link, order)

            self.at(max(self.now, int(np.ceil(self.free[link]))), woken)

    def router(self, here, came, targets, packets, accesses, last, semaphore, order) -> None:
        """The head of a train that came over a link is at site `here` on its way to the targets, each with the row of
        its trunk. `order` 2: it has left that, and goes in the buffers of those along rows first."""
        ways: dict = defaultdict(list)
        for t, trunk in targets:
            r, c = int(self.fabric.row[t]), int(self.fabric.col[t])
            along, across = (0, 1 if c > here[1] else -1), (1 if r > here[0] else -1, 0)
            if order == 1 and here[0] != trunk:
                across = 1 if trunk > here[0] else -1, 0
            if (r, c) == here and (order != 1 or here[0] == trunk):
                way = "in", order
            elif order == 1:
                way = (across, 1) if here[0] != trunk else (along, 1) if c != here[1] else (across, 2)
            else:
                way = (along if c != here[1] else across, order)
            ways[way].append((t, trunk))
        waiting = []

        def leaves() -> None:
            self.held[came, order % 2] -= packets
            self.call(came, order % 2)

        def take(way, begin, order) -> None:
            link, group = (here, way), ways[way, order]
            rate = self.m.packet_bytes / self.m.link_bytes_per_cycle
            if way == "in":
                self.free[link] = self.now + accesses
                tail = self.now + int(np.ceil(max(accesses, packets * rate))) + self.m.eject_cycles
                if last:
                    self.at(tail, lambda: self.post(group[0][0], semaphore))
                return
            self.free[link] = begin + packets * rate
            self.held[link, order % 2] += packets
            to, head = (here[0] + way[0], here[1] + way[1]), self.now + self.m.hop_cycles
            self.at(head, lambda: self.router(to, link, group, packets, accesses, last, semaphore, order))

        def later(way, order) -> None:
            free = self.free[here, way]
            take(way, free if self.now - 1 < free else self.now, order)
            waiting.remove((way, order))
            if not waiting:
                leaves()

        sides = [("in", order), *((w, order) for w in ((0, 1), (0, -1), (1, 0), (-1, 0))), ((1, 0), 2), ((-1, 0), 2)]
        for way, lane in dict.fromkeys(side for side in sides if side in ways):
            link, buffer = (here, way), lane % 2
            queue = self.queue(link, buffer)
            called = queue in self.called or (link, 1 - buffer) in self.called
            idle = not self.queues[queue] and not called and self.free[link] <= self.now
            if idle and self.room(link, packets, buffer):
                take(way, self.now, lane)
                continue
            waiting.append((way, lane))
            self.queues[queue].append((packets, buffer, lambda way=way, lane=lane: later(way, lane)))
            self.call(link, buffer)
        if not waiting:
            leaves()

    # ---- threads ----------------------------------------------------------------------------------------------------

    def steps(self, core, commands, state):
        behind = 0
        for c in commands:
            left, behind = behind, c.spread if isinstance(c, Push) else 0
            match c:
                case Loop():
                    for _ in range(c.trips):
                        yield from self.steps(core, c.body, state)
                case Call() | Fill():
                    yield from self.compute(core, c, state)
                case Push():
                    move, width = self.moves[c.exchange], dtype(self.p.buffers[c.source].dtype).bytes
                    packets, accesses = move.messages.packets(width, self.m)
                    mine = [(move.reached(i), int(packets[i]), int(accesses[i])) for i in move.sent_by(core)]
                    if mine:
                        turn = core * 40503 % 65536
                        pause = left - left * turn // 65536 + c.spread * turn // 65536
                        if pause:
                            yield (self.now + pause,)
                        yield core, mine, c.semaphore, int(c.by_columns)
                case Send():
                    targets = reach(self.mesh, core, c.to)
                    size = int(c.elements.of(self.mesh)[core]) * dtype(self.p.buffers[c.source].dtype).bytes
                    if targets:
                        packets = max(1, -(-size // self.m.packet_bytes))
                        yield core, [(targets, packets, packets)], c.semaphore, 0
                case Post():
                    yield from self.posts(core, reach(self.mesh, core, c.to), c.semaphore)
                case Arrive():
                    expected = int(self.moves[c.exchange].expected[core])
                    self.waited[core, c.semaphore] += expected
                    if expected:
                        state["waited"] = True
                        yield core, c.semaphore, self.waited[core, c.semaphore]
                case Wait():
                    count = int(c.count.of(self.mesh)[core])
                    state["waited"] |= count > 0 and c.semaphore in self.remote
                    if c.relative:
                        self.waited[core, c.semaphore] += count
                        count = self.waited[core, c.semaphore]
                    yield core, c.semaphore, count
                case Barrier():
                    yield from self.barrier(core, c, state)
                case Free():
                    pass

    def posts(self, core, targets, semaphore):
        others = [t for t in targets if t != core]
        if others:
            self.message(core, [(others, 1, 1)], semaphore)
        if core in targets:
            self.post(core, semaphore)
        if others:
            yield (self.now,)

    def compute(self, core, c, state):
        if id(c) not in self.work:
            everyone = np.ones(self.mesh.cores, bool)
            work = (call_work if isinstance(c, Call) else fill_work)(self.p, c, everyone, self.m)
            full = np.zeros(self.mesh.cores, int)
            full[work.active] = work.cycles
            self.work[id(c)] = full
        cycles = int(self.work[id(c)][core])
        if not cycles:
            return
        if isinstance(c, Call):
            product = self.p.kernels[c.kernel][1].kind in ("mac", "fma")
            if c.layer != state["layer"] and (product or state["waited"]):
                cycles += self.m.launch_cycles
            state["layer"], state["waited"] = c.layer, False
        begin = max(self.now, self.free["kernel", core])
        self.free["kernel", core] = begin + cycles
        yield (begin + cycles,)

    def barrier(self, core, c, state):
        state["waited"] = True
        for factors, semaphore in reversed(list(zip(barrier_axes(self.mesh), c.up, strict=True))):
            here, center = int(self.mesh.position(factors, np.array([core]))[0]), middle(self.mesh, factors)
            if here != center:
                own, head = self.mesh.core_offset(factors, np.array([here, center]))
                yield from self.posts(core, [core + int(head - own)], semaphore)
                break
            self.waited[core, semaphore] += self.mesh.parts(factors) - 1
            yield core, semaphore, self.waited[core, semaphore]
        else:
            yield from self.posts(core, list(range(self.mesh.cores)), c.release)
        self.waited[core, c.release] += 1
        yield core, c.release, self.waited[core, c.release]
