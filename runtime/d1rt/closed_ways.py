"""The ways of messages in closed form: what each finds on the links of its tree, and when it is there (numba).

A link, a port, a die edge is a fluid: each slot of SLOT cycles has that much to give, and a train that is there takes
what is left of the slots from then on, until it has its cycles. Trains are looked at one after the other, with all of
their ways. So nobody is asked what comes later, and no train waits for room in a buffer.

Compiled code is kept by this file: who changes event_data or event_routers touches it too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from d1rt.event_data import EDGE, INTO, OUT_OF, RIGHT, SOURCE, Net, Routes
from d1rt.event_queue import inline, jit
from d1rt.event_routers import ahead

SLOT, SLOTS = 32, 512
"""Cycles of a slot, and how many follow each other before their places are used again."""
PARTS, BITS = 16, 10
"""Of a slot there stands how much of it is taken, and from where on, in parts of a cycle: BITS each. Above these: which
round of all slots it is."""
MASK, ROUNDS = (1 << BITS) - 1, 1 << 31 - 2 * BITS


class Ways(NamedTuple):
    """`taken` [links and, behind them, die edges; SLOTS]; `stack`, `heads`: routers that a tree has still to go to."""

    taken: np.ndarray
    stack: np.ndarray
    heads: np.ndarray


def idle(net: Net) -> Ways:
    """Nothing is taken."""
    most = 4 * int(net.shape[0] * net.shape[1]) + 4
    taken = np.zeros((len(net.links) + len(net.edges), SLOTS), np.int32)
    return Ways(taken, np.zeros((most, 3), np.int64), np.zeros(most))


@inline
def _take(taken: np.ndarray, time: float, cycles: float) -> float:
    """When a train that is there at `time` goes: as late as if it had had its cycles without a break in the end."""
    slot = int(time) // SLOT
    at, rest = time - slot * SLOT, cycles
    while True:
        i, round_ = slot % SLOTS, slot // SLOTS % ROUNDS
        used, first, seen = 0.0, at, int(taken[i])
        if seen >> 2 * BITS == round_ and seen & MASK:
            used, first = (seen & MASK) / PARTS, min(at, (seen >> BITS & MASK) / PARTS)
        begin = at if first == at else max(at, first + used)
        give = min(rest, SLOT - used, SLOT - at)
        rest -= give
        taken[i] = (round_ << BITS | int(first * PARTS)) << BITS | min(int((used + give) * PARTS + 0.5), SLOT * PARTS)
        if rest <= 0:
            return slot * SLOT + min(begin + give, SLOT) - cycles
        slot += 1
        at = 0.0


@jit
def walk(
    ways: Ways, net: Net, routes: Routes, trains: np.ndarray, begin: np.ndarray, slot: np.ndarray, known: np.ndarray,
    when: np.ndarray, left: np.ndarray,
) -> float:  # fmt: skip
    """Trains in this order want to leave at the cycles `begin`. For slot[i] of train i: messages that are there
    (`known` [slots, cores], counted up) and the last of them (`when`); `left` [trains]: when each has
    left its core's SRAM. Returns the last of all."""
    cols = net.shape[1]
    cells, links = net.shape[0] * cols, len(net.links)
    stack, heads, latest = ways.stack, ways.heads, 0.0
    for n in range(len(trains)):
        m, to = trains[n], slot[n]
        src, p, last = routes.message[m, 0], routes.message[m, 1], routes.message[m, 5]
        passing, accesses, share = p * net.rates[0], float(routes.message[m, 2]), p * net.rates[1]
        time = begin[n]
        if net.gate[src] == 0:
            time = _take(ways.taken[OUT_OF * cells + net.place[src, 0] * cols + net.place[src, 1]], time, accesses)
            left[n] = time + accesses
        stack[0, 0], stack[0, 1], stack[0, 2] = SOURCE, 0, 0
        heads[0] = time + net.costs[2]
        top = 1
        while top > 0:
            top -= 1
            now = heads[top]
            r, c, right, left_, down, up, here = ahead(net, routes, stack[top, 0], stack[top, 1], m, stack[top, 2])
            site = r * cols + c
            if here >= 0:
                end = _take(ways.taken[INTO * cells + site], now, accesses) + max(accesses, passing) + net.costs[3]
                core = routes.receiver[here, 2]
                known[to, core] += last
                when[to, core] = max(when[to, core], end)
                latest = max(latest, end)
            for i in range(4):
                cursor = right if i == 0 else left_ if i == 1 else down if i == 2 else up
                if cursor < 0:
                    continue
                link = i * cells + site
                time = _take(ways.taken[link], now, passing)
                head, edge = time + net.costs[0], net.links[link, EDGE]
                if edge >= 0:
                    over = _take(ways.taken[links + edge], time, share) + share
                    head += max(0.0, over - time - max(passing, accesses)) + net.costs[1]
                stack[top, 0], stack[top, 2] = RIGHT + i, cursor
                stack[top, 1] = c + 1 if i == 0 else c - 1 if i == 1 else r + 1 if i == 2 else r - 1
                heads[top] = head
                top += 1
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
