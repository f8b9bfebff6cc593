"""The ways of messages in closed form: what each finds on the links of its tree, and when it is there (numba).

A link, a port, a die edge is a fluid: each slot of SLOT cycles has that much to give, and a train that is there takes
what is left of the slots from then on, until it has its cycles; but its command has a turn of every slot, and what
others had taken of that before is missing later. So is the buffer behind a link: a train that comes in needs room
there, and holds its places until its last copy goes on. Trains are looked at one after the other, with all of their
ways, so nobody is asked what comes later, and what a train holds for longer than there was room is let pass.

Compiled code is kept by this file: who changes event_data or event_routers touches it too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from d1rt.event_data import EDGE, INTO, LEG, OUT_OF, RIGHT, SIZE, SOURCE, Net, Routes
from d1rt.event_queue import inline, jit
from d1rt.event_routers import ahead

SLOT, SLOTS = 16, 1024
"""Cycles of a slot, and how many follow each other before their places are used again."""
TIME, PLACES, LAST = 0, 1, 3
"""What there is of a slot: its time, of which a part is taken from somewhere on; packets x cycles of the buffer, for
either order of ways; the command whose train was there last, and what its trains have had."""
QUEUES = 8
"""Queues of a link: four inputs in either order of ways. A command's trains get this part of a slot whoever started
before: they wait for the heads of the other queues, not for all that is still on its way to the link."""
PARTS, BITS = 16, 10
"""Of the time there stands how much is taken, and from where on, in parts of a cycle: BITS each; of LAST the command's
last BITS and what it had. Above these, and above TAKEN bits of the places: which round of all slots it is."""
MASK, ROUNDS, TAKEN = (1 << BITS) - 1, 1 << 31 - 2 * BITS, 2 * BITS
MOST = (1 << TAKEN) - 1


class Ways(NamedTuple):
    """`slots` [links and, behind them, die edges; SLOTS; TIME, PLACES and those for columns first, LAST]; `debts`
    [links and edges] cycles that were taken twice; `routers` [n, 4] that a tree has still to go to: how it comes there,
    coordinate, cursor, the link; `heads` [n, 2]: when it is there, since when it holds that link's buffer."""

    slots: np.ndarray
    debts: np.ndarray
    routers: np.ndarray
    heads: np.ndarray


def idle(net: Net) -> Ways:
    """Nothing is taken."""
    most = 4 * int(net.shape[0] * net.shape[1]) + 4
    slots = np.zeros((len(net.links) // 2 + len(net.edges), SLOTS, 4), np.int32)
    return Ways(slots, np.zeros(len(slots)), np.zeros((most, 4), np.int64), np.zeros((most, 2)))


@inline
def _take(slots: np.ndarray, debts: np.ndarray, place: int, of: int, time: float, cycles: float) -> float:
    """When a train of command `of` that is at a link, port or edge at `time` goes: as late as if it had had its cycles
    without a break in the end."""
    slot, mine = int(time) // SLOT, of & MASK
    at, rest = time - slot * SLOT, cycles
    while True:
        i, round_ = slot % SLOTS, slot // SLOTS % ROUNDS
        used, first, seen = 0.0, at, int(slots[place, i, TIME])
        if seen >> TAKEN == round_ and seen & MASK:
            used, first = (seen & MASK) / PARTS, min(at, (seen >> BITS & MASK) / PARTS)
        had, seen = 0.0, int(slots[place, i, LAST])
        if seen >> TAKEN == round_ and seen & MASK == mine:
            had = (seen >> BITS & MASK) / PARTS
        begin = at if first == at else max(at, first + used)
        free = min(SLOT - used, SLOT - at)
        paid = min(free, float(debts[place]))
        debts[place] -= paid
        used, free = used + paid, free - paid
        give = min(rest, max(free, min(SLOT / QUEUES - had, SLOT - at)))  # at least the turn
        if give > free:
            debts[place] += give - free
            begin = at
        rest -= give
        slots[place, i, TIME] = (round_ << BITS | int(first * PARTS)) << BITS | min(
            int((used + give) * PARTS + 0.5), SLOT * PARTS
        )
        slots[place, i, LAST] = (round_ << BITS | int((had + give) * PARTS + 0.5)) << BITS | mine
        if rest <= 0:
            return slot * SLOT + min(begin + give, SLOT) - cycles
        slot += 1
        at = 0.0


@inline
def _room(slots: np.ndarray, places: int, time: float, packets: float, size: float) -> float:
    """When a train that is there at `time` finds room in the buffer."""
    slot, most = int(time) // SLOT, (size - packets) * SLOT
    while True:
        seen = int(slots[slot % SLOTS, places])
        if seen >> TAKEN != slot // SLOTS % ROUNDS or (seen & MOST) <= most:
            return max(time, float(slot * SLOT))
        slot += 1


@inline
def _hold(slots: np.ndarray, places: int, begin: float, end: float, packets: float) -> None:
    """A train is in the buffer from `begin` to `end`."""
    slot = int(begin) // SLOT
    while slot * SLOT < end:
        i, round_ = slot % SLOTS, slot // SLOTS % ROUNDS
        used, seen = 0, int(slots[i, places])
        if seen >> TAKEN == round_:
            used = seen & MOST
        used += int(packets * (min(end, slot * SLOT + SLOT) - max(begin, slot * SLOT)) + 0.5)
        slots[i, places] = round_ << TAKEN | min(used, MOST)
        slot += 1


@jit
def walk(
    ways: Ways, net: Net, routes: Routes, trains: np.ndarray, begin: np.ndarray, slot: np.ndarray, known: np.ndarray,
    when: np.ndarray, left: np.ndarray,
) -> float:  # fmt: skip
    """Trains in this order want to leave at the cycles `begin`. For slot[i] of train i: messages that are there
    (`known` [slots, cores], counted up) and the last of them (`when`); `left` [trains]: when each has
    left its core's SRAM. Returns the last of all."""
    cols = net.shape[1]
    cells, links = net.shape[0] * cols, len(net.links) >> 1
    slots, debts, routers, heads, latest = ways.slots, ways.debts, ways.routers, ways.heads, 0.0
    for n in range(len(trains)):
        m, to = trains[n], slot[n]
        src, p, last = routes.message[m, 0], routes.message[m, 1], routes.message[m, 5]
        order = routes.message[m, 6]
        passing, accesses, share = p * net.rates[0], float(routes.message[m, 2]), p * net.rates[1]
        packets, time, behind = float(p), begin[n], -1
        if net.gate[src] == 0:
            behind = OUT_OF * cells + net.place[src, 0] * cols + net.place[src, 1]
            size = float(net.links[behind, SIZE])
            time = _room(slots[behind], PLACES + order, time, min(packets, size), size)
            time = _take(slots, debts, behind, to, time, accesses)
            left[n] = time + accesses
        routers[0, 0], routers[0, 1], routers[0, 2], routers[0, 3] = SOURCE, 0, 0, behind
        heads[0, 0], heads[0, 1] = time + net.costs[2], time
        top = 1
        while top > 0:
            top -= 1
            now, since, behind = heads[top, 0], heads[top, 1], routers[top, 3]
            kind, at, cursor = routers[top, 0], routers[top, 1], routers[top, 2]
            mine = PLACES + order * (cursor < LEG)  # of the buffer that it is in
            r, c, right, left_, down, up, here, beside, across = ahead(net, routes, kind, at, m, cursor)
            site, goes = r * cols + c, now
            if here >= 0:
                time = _take(slots, debts, INTO * cells + site, to, now, accesses)
                goes = max(goes, time)
                end = time + max(accesses, passing) + net.costs[3]
                core = routes.receiver[here, 2]
                known[to, core] += last
                when[to, core] = max(when[to, core], end)
                latest = max(latest, end)
            for j in range(6):
                i = j if j < 4 else j - 2
                cursor = right if j == 0 else left_ if j == 1 else down if j == 2 else up
                cursor = cursor if j < 4 else beside if j == 4 else across
                if cursor < 0:
                    continue
                link = i * cells + site
                size = float(net.links[link, SIZE])
                time = _room(slots[link], PLACES + order * (cursor < LEG), now, min(packets, size), size)
                time = _take(slots, debts, link, to, time, passing)
                goes = max(goes, time)
                head, edge = time + net.costs[0], net.links[link, EDGE]
                if edge >= 0:
                    over = _take(slots, debts, links + edge, to, time, share) + share
                    head += max(0.0, over - time - max(passing, accesses)) + net.costs[1]
                routers[top, 0], routers[top, 2], routers[top, 3] = RIGHT + i, cursor, link
                routers[top, 1] = c + 1 if i == 0 else c - 1 if i == 1 else r + 1 if i == 2 else r - 1
                heads[top, 0], heads[top, 1] = head, time
                top += 1
            if behind >= 0:
                _hold(slots[behind], mine, since, goes, min(packets, float(net.links[behind, SIZE])))
    return latest


@jit
def known_by(
    cores: np.ndarray, need: np.ndarray, slots: np.ndarray, base: np.ndarray, known: np.ndarray, when: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """`out` [cores]: when each has the count that it needs, of `base` [cores] and what the commands of `slots`, in
    order, have brought; -1: that is not known yet."""
    for i in range(len(cores)):
        c = cores[i]
        have, time = base[c], 0.0
        for j in range(len(slots)):
            if have >= need[i]:
                break
            if known[slots[j], c] > 0:
                have += known[slots[j], c]
                time = max(time, when[slots[j], c])
        out[i] = time if have >= need[i] else -1.0
