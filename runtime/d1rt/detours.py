"""Routes where routers are dead: short ways, row first where that is free, in an order of turns that cannot lock.

A way has up to three stretches, each in a virtual channel of its own: west (and up and down columns), then east (and up
and down columns), then by ranks of the routers, first to lower ones, then to higher ones. Inside a stretch no cycle of
links can wait for each other: the first two never turn back along rows, and ranks only fall, then only rise. The
channels are taken in that order. The ranks come from a search over the live routers, so that whatever is connected has
a way; nearly all ways need one or two stretches, and a way that meets no dead router is row first, then column. Others
come back to the row of their sender soon, by the side that the sender's place says.

All ways from one sender make a tree of (router, channel): a multicast takes the branches to its receivers, each once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from d1c.target.machine import Machine

RIGHT, LEFT, DOWN, UP, SAME, NOWHERE = range(6)
"""How a way comes to a router: over a link, from the channel before at the same router, not at all."""
WEST, EAST, FALLING, RISING = range(4)
"""Stretches of a way; the last two share a virtual channel."""
CHANNELS = 3
ROOM = 1 << 20
"""Branches made at a time."""
AWAY = 1
"""A step along another row than the sender's costs so much more: behind a dead router a multicast goes on in its own
row, from where all columns take their branches, and not in the rows above and below as well."""
_FAR = 1 << 60


class Sites(NamedTuple):
    """The routers of a machine, row by row: `alive` [cells]; `across` [columns] and `along` [rows]: the price of the
    step to the next column and row; `order` [live]: routers by rank, `rank` [cells] its inverse; `cost` [2, 2] cycles
    of a hop inside a die, between dies; `die` [2] rows and columns of a die."""

    alive: np.ndarray
    across: np.ndarray
    along: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    cycles_across: np.ndarray
    cycles_along: np.ndarray


class Branches(NamedTuple):
    """Trees of messages. Message m has branches first[m] to first[m + 1], every one behind its parent: a link
    ((way x rows + row) x columns + column of the router that it leaves, ways right, left, down, up), its virtual
    channel, its parent (-1: leaves the sender), the cycles from the sender to its end. `arrives`: for the receivers of
    all messages, one after the other, the branch that ends at them, -1 where that is the sender. `plain` [m]: all ways
    go along the row of the sender, then along the columns of the receivers."""

    first: np.ndarray
    plain: np.ndarray
    link: np.ndarray
    channel: np.ndarray
    parent: np.ndarray
    cycles: np.ndarray
    arrives: np.ndarray


class Detours:
    """The ways over a machine with dead routers. `cell` [cores]: the router of each core, row by row."""

    def __init__(self, machine: Machine, cell: np.ndarray) -> None:
        self.cell = cell
        self.shape = (machine.die_rows * machine.site_rows, machine.die_cols * machine.site_cols)
        self.sites = _sites(machine, self.shape)
        cells = self.shape[0] * self.shape[1]
        # [senders, cells] how a way comes to a router in each stretch, 3 bits each, and at bit 12 its last stretch.
        # Rows are filled when their sender first sends; what is never touched takes no memory.
        self._ways = np.zeros((cells, cells), np.int16)
        self._known = np.zeros(cells, bool)

    def branches(
        self, src: np.ndarray, cls: np.ndarray, first: np.ndarray, targets: np.ndarray
    ) -> Iterator[tuple[slice, Branches]]:
        """Trees from core src[m] to the cores targets[first[cls[m]]:first[cls[m] + 1]], for slices of the messages."""
        cell = self.cell
        for sender in np.unique(cell[src]):
            if not self._known[sender]:
                _grow(self.sites, int(sender), self._ways[sender])
                self._known[sender] = True
        fan = np.diff(first)[cls]
        begin, room = 0, max(ROOM, 4 * len(self.sites.alive))
        while begin < len(src):
            made = Branches(
                np.zeros(len(src) - begin + 1, np.int64),
                np.ones(len(src) - begin, np.bool_),
                np.zeros(room, np.int32),
                np.zeros(room, np.int32),
                np.zeros(room, np.int32),
                np.zeros(room, np.int32),
                np.zeros(int(fan[begin:].sum()), np.int64),
            )
            done, n, ends = _collect(
                self._ways, self.sites, self.shape[1], cell[src[begin:]], cls[begin:], first, cell[targets], made, room
            )
            part = slice(begin, begin + done)
            yield (
                part,
                Branches(
                    made.first[: done + 1], made.plain[:done], made.link[:n], made.channel[:n], made.parent[:n],
                    made.cycles[:n], made.arrives[:ends],
                ),
            )  # fmt: skip
            begin += done

    def cycles(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Cycles on the links of the ways from cores `src` to cores `dst`."""
        out, each = np.zeros(len(src), np.int64), np.arange(len(src))
        for part, made in self.branches(np.asarray(src), each, np.arange(len(src) + 1), np.asarray(dst)):
            out[part] = np.where(made.arrives < 0, 0, np.append(made.cycles, 0)[made.arrives])
        return out


def _sites(machine: Machine, shape: tuple[int, int]) -> Sites:
    rows, cols = shape
    alive = np.ones(shape, bool)
    for die, dead in enumerate(machine.dead):
        for r, c in dead:
            alive[die // machine.die_cols * machine.site_rows + r, die % machine.die_cols * machine.site_cols + c] = 0
    cycles = []
    for lines, size in ((cols, machine.site_cols), (rows, machine.site_rows)):
        edge = (np.arange(lines) + 1) % size == 0
        cycles.append(machine.hop_cycles + np.where(edge, machine.die_crossing_cycles, 0))
    order, seen = [], ~alive
    # From the east: the next is the easternmost of those that have a neighbour with a rank.
    start = max(((int(c), -int(r)) for r, c in zip(*np.nonzero(alive), strict=True)), default=(0, 0))
    front = [(-start[0], -start[1])]
    seen[-start[1], start[0]] = True
    while front:
        c, r = heapq.heappop(front)
        order.append(r * cols - c)
        for nr, nc in ((r, -c - 1), (r, -c + 1), (r - 1, -c), (r + 1, -c)):
            if 0 <= nr < rows and 0 <= nc < cols and not seen[nr, nc]:
                seen[nr, nc] = True
                heapq.heappush(front, (-nc, nr))
    rank = np.full(rows * cols, -1, np.int64)
    rank[order] = np.arange(len(order))
    # A step always has a price, so that no way goes round in circles.
    return Sites(
        alive.reshape(-1), np.maximum(cycles[0], 1), np.maximum(cycles[1], 1), np.array(order, np.int64), rank, *cycles
    )


@njit(cache=True)
def _spread(sites: Sites, rows: int, cols: int, c: int, sender: int, dist: np.ndarray, came: np.ndarray) -> None:
    """Up and down column `c` from what its routers have; a tie with the way along the row goes to the column's way from
    the sender's row. Of two ways that are alike every second sender takes the other."""
    home = sender // cols
    for half in range(2):
        if (half + sender // cols + sender % cols) % 2 == 0:
            for r in range(1, rows):
                i = r * cols + c
                if sites.alive[i]:
                    d = dist[i - cols] + sites.along[r - 1]
                    if d < dist[i] or (d == dist[i] and r > home and came[i] <= LEFT):
                        dist[i], came[i] = d, DOWN
        else:
            for r in range(rows - 2, -1, -1):
                i = r * cols + c
                if sites.alive[i]:
                    d = dist[i + cols] + sites.along[r]
                    if d < dist[i] or (d == dist[i] and r < home and came[i] <= LEFT):
                        dist[i], came[i] = d, UP


@njit(cache=True)
def _sweep(sites: Sites, rows: int, cols: int, sender: int, east: bool, dist: np.ndarray, came: np.ndarray) -> None:
    """One of the first two stretches: column by column, from what `dist` and `came` say already."""
    home = sender // cols
    for k in range(cols):
        c = k if east else cols - 1 - k
        if k > 0:
            back = -1 if east else 1
            ahead = sites.across[c - 1] if east else sites.across[c]
            for r in range(rows):
                i = r * cols + c
                price = ahead if r == home else ahead + AWAY
                if sites.alive[i] and dist[i + back] + price < dist[i]:
                    dist[i], came[i] = dist[i + back] + price, RIGHT if east else LEFT
        _spread(sites, rows, cols, c, sender, dist, came)


@njit(cache=True)
def _climb(sites: Sites, rows: int, cols: int, home: int, falling: bool, dist: np.ndarray, came: np.ndarray) -> None:
    """Along ranks that fall, or rise. Prices are those of `_sweep`, or a link would be in two channels of a tree."""
    n = len(sites.order)
    for k in range(n):
        i = sites.order[n - 1 - k if falling else k]
        r, c = i // cols, i % cols
        away = 0 if r == home else AWAY
        for way in range(4):
            if way == RIGHT:
                if c == 0:
                    continue
                j, price = i - 1, sites.across[c - 1] + away
            elif way == LEFT:
                if c == cols - 1:
                    continue
                j, price = i + 1, sites.across[c] + away
            elif way == DOWN:
                if r == 0:
                    continue
                j, price = i - cols, sites.along[r - 1]
            else:
                if r == rows - 1:
                    continue
                j, price = i + cols, sites.along[r]
            if sites.alive[j] and (sites.rank[j] > sites.rank[i]) == falling and dist[j] + price < dist[i]:
                dist[i], came[i] = dist[j] + price, way


@njit(cache=True)
def _grow(sites: Sites, sender: int, ways: np.ndarray) -> None:
    """Fill [cells] `ways` of one sender."""
    rows, cols = len(sites.along), len(sites.across)
    cells = rows * cols
    home = sender // cols
    dist = np.full((4, cells), _FAR, np.int64)
    came = np.full((4, cells), NOWHERE, np.int64)
    dist[0, sender] = 0
    stretches = EAST + 1  # the others, where some router needs them
    for stretch in range(4):
        if stretch == FALLING:
            for i in range(cells):
                if sites.alive[i] and dist[EAST, i] >= _FAR:
                    stretches = RISING + 1
        if stretch >= stretches:
            break
        if stretch > 0:
            for i in range(cells):
                if dist[stretch - 1, i] < _FAR:
                    dist[stretch, i], came[stretch, i] = dist[stretch - 1, i], SAME
        if stretch < FALLING:
            _sweep(sites, rows, cols, sender, stretch == EAST, dist[stretch], came[stretch])
        else:
            _climb(sites, rows, cols, home, stretch == FALLING, dist[stretch], came[stretch])
    for i in range(cells):
        last = 0
        word = came[0, i]
        for stretch in range(1, stretches):
            word |= came[stretch, i] << 3 * stretch
            if dist[stretch, i] < dist[last, i]:
                last = stretch
        ways[i] = word | last << 12


@njit(cache=True)
def _collect(
    ways: np.ndarray, sites: Sites, cols: int, src: np.ndarray, cls: np.ndarray, first: np.ndarray,
    targets: np.ndarray, made: Branches, room: int,
) -> Any:  # fmt: skip
    """Follow every receiver's way back to a branch that the message has already, or to the sender. Returns how many
    messages fitted, their branches and receivers."""
    cells = len(sites.alive)
    at = np.zeros(CHANNELS * 4 * cells, np.int64)  # by channel and link: the branch that took it last
    trail = np.zeros(4 * cells, np.int64)
    n = ends = 0
    for m in range(len(src)):
        start = n
        if n + 4 * cells > room:
            return m, n, ends
        for t in range(first[cls[m]], first[cls[m] + 1]):
            i = targets[t]
            column = i % cols
            stretch = int(ways[src[m], i]) >> 12
            length, parent = 0, -1
            while True:
                way = int(ways[src[m], i]) >> 3 * stretch & 7
                if way == NOWHERE:
                    break
                if way == SAME:
                    stretch -= 1
                    continue
                if way == RIGHT:
                    i -= 1
                elif way == LEFT:
                    i += 1
                elif way == DOWN:
                    i -= cols
                else:
                    i += cols
                if i // cols != src[m] // cols if way <= LEFT else i % cols != column:
                    made.plain[m] = False
                key = (min(stretch, CHANNELS - 1) * 4 + way) * cells + i
                b = at[key]
                if start <= b < n and made.link[b] == key % (4 * cells) and made.channel[b] == key // (4 * cells):
                    parent = b
                    break
                trail[length] = key
                length += 1
            for k in range(length - 1, -1, -1):
                key = trail[k]
                link = key % (4 * cells)
                r, c = link % cells // cols, link % cols
                way = link // cells
                if way == RIGHT:
                    step = sites.cycles_across[c]
                elif way == LEFT:
                    step = sites.cycles_across[c - 1]
                elif way == DOWN:
                    step = sites.cycles_along[r]
                else:
                    step = sites.cycles_along[r - 1]
                made.link[n], made.channel[n], made.parent[n] = link, key // (4 * cells), parent
                made.cycles[n] = step + (made.cycles[parent] if parent >= 0 else 0)
                at[key] = n
                parent = n
                n += 1
            made.arrives[ends] = parent
            ends += 1
        made.first[m + 1] = n
    return len(src), n, ends
