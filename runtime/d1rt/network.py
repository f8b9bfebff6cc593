"""The network between the cores at message level: who holds which port, link and die edge, and when messages arrive.

Messages go along their row first, or all of a movement along their column first; the two orders have buffers of their
own, and from the trunk of a tree along columns copies go on in those of the others. A message goes in trains of as
many packets as a router's input can hold. A train of p packets holds its sender's port, every link of its route or
tree, and each receiver's port for p packets' time, and p places of the buffer behind each link, from when it takes that
until its last copy begins to leave. It takes a link when that is free and the buffer behind it has room; whoever asks
first is served first; the head goes on one hop later (cut-through). A die edge is one server for all its links: it
delays a train where it carries the packets later than the link does.
docs/timing.md says how far that is from a network of flits.
"""

from __future__ import annotations

import math

import numpy as np

from d1c.target.machine import Machine
from d1c.target.movement import ragged
from d1rt.dips import dip_of, rate
from d1rt.event_data import (
    BUSY,
    CONTEXT,
    EDGE,
    ENTRY,
    FIELDS,
    FIRST,
    FREE,
    FULL,
    INTO,
    LOGGED,
    NODE,
    NOW,
    OUT_OF,
    PART,
    PAUSED,
    PLACES,
    ROOM,
    SIZE,
    STATES,
    WINDOW,
    Code,
    Net,
    Queue,
    Routes,
)
from d1rt.event_loop import run, start_all
from d1rt.linkload import Fabric, bands

EVENTS = 4_000_000
"""Events between two looks at signals: some tenths of a second."""


class Network:
    """The links of a machine and until when they are taken.

    `fabric`: where its cores are. `net`: the state (see event_loop.Net), kept from call to call."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.fabric = machine, Fabric.of(machine)
        self.net = empty(self.fabric)

    def reset(self) -> None:
        """Nothing has been sent yet."""
        self.net = empty(self.fabric)

    def send(
        self,
        start: np.ndarray,
        src: np.ndarray,
        first: np.ndarray,
        targets: np.ndarray,
        packets: np.ndarray,
        accesses: np.ndarray | None = None,
        by_columns: bool = False,
        classes: np.ndarray | None = None,
    ) -> np.ndarray:
        """[targets] the cycle when each receiver has its whole message, the last of them where it gets several.

        Message m starts at cycle start[m] (whole cycles) on core src[m], has packets[m] packets and goes to the cores
        targets[first[c]:first[c + 1]], which differ; c is classes[m], or m. Messages that start in the same cycle start
        by their numbers. It holds ports for accesses[m] cycles (default: a cycle a packet), and goes along its row
        first, or `by_columns` along its column. What earlier calls have reserved stays so.
        """
        begin, size = np.asarray(start, np.int64), np.asarray(packets, np.int64)
        ports = size if accesses is None else np.asarray(accesses, np.int64)
        order = np.argsort(begin, kind="stable")
        made, owner, at = routes(
            self.fabric, np.asarray(src, np.int64)[order], order if classes is None else classes[order], size[order],
            ports[order], np.asarray(first, np.int64), np.asarray(targets, np.int64), by_columns,
        )  # fmt: skip
        times = begin[order][owner]
        queue = new_queue(len(times) + 4096, int(times[0]) if len(times) else 0)
        start_all(queue, times)
        arrival = np.zeros(max(len(at), 1), np.int64)
        handle(queue, self.net, made, no_code(), arrival)
        out = np.zeros(len(at), np.int64)
        out[at] = arrival[: len(at)]
        return out

    @property
    def links(self) -> np.ndarray:
        """[4, rows, columns] packets that have left each router to the right, left, down, up."""
        return self.net.links[:, BUSY].reshape(2, 6, *self.fabric.shape)[0, :4]

    @property
    def ports(self) -> tuple[np.ndarray, np.ndarray]:
        """[cores] cycles of each core's port out of SRAM, and of the one into it."""
        at = self.fabric.row * self.fabric.shape[1] + self.fabric.col
        busy = self.net.links[:, BUSY].reshape(2, 6, -1)[0]
        return busy[OUT_OF, at], busy[INTO, at]

    @property
    def edges(self) -> np.ndarray:
        """[edges] packets over each boundary of two dies, one direction each; see `die_edges`."""
        return np.asarray(self.net.edges[:, 1])


def die_edges(fabric: Fabric) -> tuple[np.ndarray, int]:
    """([links] the die edge that each link crosses or -1, how many edges): right, left, down, up, row-major."""
    m, (rows, cols) = fabric.machine, fabric.shape
    r, c = np.indices((rows, cols))
    down, right = m.die_rows - 1, m.die_cols - 1
    of = np.full((4, rows, cols), -1)
    total = 0
    for way, (at, size, here, last) in enumerate(
        ((c, m.site_cols, 1, right), (c, m.site_cols, 0, right), (r, m.site_rows, 1, down), (r, m.site_rows, 0, down))
    ):
        boundary = (at + here) // size - 1  # before which boundary of dies the link is, where it crosses one
        crosses = ((at + here) % size == 0) & (boundary >= 0) & (boundary < last)
        other = r // m.site_rows if way < 2 else c // m.site_cols
        of[way][crosses] = (total + other * last + boundary)[crosses]
        total += last * (m.die_rows if way < 2 else m.die_cols)
    return of.reshape(-1), total


def empty(fabric: Fabric) -> Net:
    """The network with nothing on it."""
    m, (rows, cols) = fabric.machine, fabric.shape
    edge_of, edges = die_edges(fabric)
    lines = np.zeros((2 * 6 * rows * cols, 8), np.int64)
    lines[:, SIZE] = lines[:, PLACES] = np.tile(_buffers(fabric, edge_of), 2)
    lines[:, [FIRST, EDGE]] = -1
    lines[: len(edge_of), EDGE] = edge_of
    rates = np.array([m.packet_bytes / x for x in (m.link_bytes_per_cycle, m.die_edge_bytes_per_cycle, rate(m))])

    return Net(
        np.stack([fabric.row, fabric.col], 1), (np.arange(len(fabric.row)) >= m.cores).astype(np.int64),
        lines, np.zeros((edges, 2), np.int64), np.zeros((max(m.dip_count, 1), 2)), dip_of(m),
        np.array([m.hop_cycles, m.die_crossing_cycles, m.inject_cycles, m.eject_cycles, m.hbm_latency_cycles,
                  m.dip_latency_cycles]),
        np.round(rates[:2] * PART).astype(np.int64), rates, np.array(fabric.shape),
    )  # fmt: skip


def _buffers(fabric: Fabric, edge_of: np.ndarray) -> np.ndarray:
    """[links] packets that fit behind each link: the virtual channels' places at a router's input, and at least what a
    link carries until a credit is back. SRAM is endless; so are all buffers where the ways round dead routers are not
    along the row, then the column: their channels keep them apart, which this model does not know."""
    m, cells = fabric.machine, len(edge_of) // 4
    way = np.full(6 * cells, m.hop_cycles)
    way[OUT_OF * cells :] = m.inject_cycles
    way[: 4 * cells][edge_of >= 0] += m.die_crossing_cycles
    rate = m.link_bytes_per_cycle / m.packet_bytes
    size = np.maximum(train_packets(m), np.ceil(2 * way * rate)).astype(np.int32)
    size[INTO * cells : OUT_OF * cells] = 1 << 30
    if fabric.detours is not None:
        size[:] = 1 << 30
    return size


def train_packets(machine: Machine) -> int:
    """The places of a router's input."""
    return machine.virtual_channels * machine.channel_packets


TRAINS = 16
"""Trains of one message, at most."""


def trains(packets: np.ndarray, accesses: np.ndarray, machine: Machine) -> tuple[np.ndarray, ...]:
    """Messages cut into trains that a router's input can hold, evenly: per train the message, packets, port cycles,
    whether it is the message's last. Messages of more than TRAINS of them have longer trains."""
    count = np.clip(-(-packets // train_packets(machine)), 1, TRAINS)
    owner, i = ragged(count)
    k, p, a = count[owner], packets[owner], accesses[owner]
    return owner, (i + 1) * p // k - i * p // k, (i + 1) * a // k - i * a // k, i + 1 == k


def routes(
    fabric: Fabric, src: np.ndarray, cls: np.ndarray, packets: np.ndarray, accesses: np.ndarray, first: np.ndarray,
    targets: np.ndarray, by_columns: bool = False,
) -> tuple[Routes, np.ndarray, np.ndarray]:  # fmt: skip
    """Routes of messages to classes of receivers, class c being targets[first[c]:first[c + 1]]; with them per train the
    message it stands for (where the machine has no multicast tree every receiver gets its own), and the place in
    `targets` of every receiver. `by_columns`: along the column first; past dead routers ways are what they are."""
    by_columns = by_columns and fabric.detours is None
    owner = np.arange(len(src))
    if fabric.machine.multicast != "tree":
        owner, i = ragged(np.diff(first)[cls])
        src, packets, accesses, cls = src[owner], packets[owner], accesses[owner], first[cls[owner]] + i
        first = np.arange(len(targets) + 1)
    count = len(first) - 1
    of = np.repeat(np.arange(count), np.diff(first))
    row, col = fabric.row[targets], fabric.col[targets]
    if by_columns:
        row, col = col, row
    found = bands(of, col, fabric.machine.site_rows if by_columns else 0)
    at = np.arange(len(targets)) if len(targets) == count else np.lexsort((col, row, found.of))
    row, col, of = row[at], col[at], of[at]
    new = np.diff(found.of[at], prepend=-1) != 0
    begin = np.flatnonzero(new)
    ends = new + 2 * np.append(new[1:], True)[: len(at)]
    limits = np.stack([found.low, found.high, found.die, begin], 1)
    tree, branch = _trees(fabric, src, cls, first, targets[at])
    inside = fabric.row[src] % fabric.machine.site_rows * by_columns
    of_train, size, ports, last = trains(packets, accesses, fabric.machine)
    owner = owner[of_train]
    made = Routes(
        np.stack(
            [src[of_train], size, ports, cls[of_train], tree[of_train], last, np.full(len(last), by_columns),
             inside[of_train]], 1
        ).astype(np.int32),
        np.searchsorted(of[begin], np.arange(count + 1)),
        np.concatenate([limits, [[0, 0, 0, len(at)]]]).astype(np.int32),
        np.stack([row, col, targets[at], ends, found.of[at]], 1).astype(np.int32), branch,
    )  # fmt: skip
    return made, owner, at


def _trees(
    fabric: Fabric, src: np.ndarray, cls: np.ndarray, first: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Routes.branch, and per message its root or -1: where routers are dead and the way is not row, then column."""
    root, found, total = np.full(len(src), -1), [np.zeros((0, 6), np.int32)], 0
    if fabric.detours is not None:
        cols = fabric.shape[1]
        cells = fabric.shape[0] * cols
        for part, made in fabric.detours.branches(src, cls, first, targets):
            # A message's root comes before its branches: branch b of message i is node b + i + 1.
            lengths, fan = np.diff(made.first), np.diff(first)[cls[part]]
            of, (end, k) = np.repeat(np.arange(len(lengths)), lengths), ragged(fan)
            roots = made.first[:-1] + np.arange(len(lengths))
            node = np.arange(len(of)) + of + 1
            branch = np.full((len(of) + len(roots), 6), -1)
            branch[roots, 0] = fabric.row[src[part]] * cols + fabric.col[src[part]]
            way, at = made.link // cells, made.link % cells
            branch[node, 0] = at + np.array([1, -1, cols, -cols])[way]
            above = np.where(made.parent < 0, roots[of], made.parent + of + 1)
            branch[above, 1 + way] = node
            branch[np.where(made.arrives < 0, roots[end], made.arrives + end + 1), 5] = first[cls[part]][end] + k
            kept = np.repeat(~made.plain, lengths + 1)
            number = np.append(total + np.cumsum(kept) - 1, -1)
            branch[:, 1:5] = number[branch[:, 1:5]]
            root[part] = np.where(made.plain, -1, number[roots])
            found.append(branch[kept].astype(np.int32))
            total += int(kept.sum())
    return root, np.concatenate(found)


# ---- running the loop ----------------------------------------------------------------------------------------------


def new_queue(room: int, now: int = 0) -> Queue:
    """An empty queue at cycle `now` for `room` events."""
    state = np.zeros(STATES, np.int64)
    state[NOW] = now
    queue = Queue(
        state, np.full(WINDOW, -1, np.int32), np.full(WINDOW, -1, np.int32), np.zeros((0, NODE), np.int32),
        np.zeros((0, 3), np.int64),
    )  # fmt: skip
    return _larger(queue, room)


def _larger(q: Queue, room: int) -> Queue:
    """The same queue with places for `room` events more."""
    old = len(q.node)
    node = np.zeros((old + room, NODE), np.int32)
    node[:old] = q.node
    node[old:, 0] = np.arange(old + 1, old + room + 1)
    node[-1, 0] = q.state[FREE] if old else -1
    q.state[FREE] = old
    q.state[ROOM] += room
    far = np.zeros((old + room, 3), np.int64)
    far[:old] = q.far
    return q._replace(node=node, far=far)


def no_code() -> Code:
    """No threads."""

    def none(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    return Code(
        none(1, FIELDS), none(1, 1), none(1, 1), none(1, CONTEXT), none(1, 1), none(2), none(1), none(1), none(1, 1),
        none(1, 1), none(1), none(1), none(1, ENTRY), none(3),
    )  # fmt: skip


def handle(queue: Queue, net: Net, made: Routes, code: Code, arrival: np.ndarray) -> tuple[Queue, Code]:
    """Run the event loop to the end; between portions of it Python looks at signals. The queue and the log as they are
    in the end: they grow."""
    while (result := run(queue, net, made, code, arrival, EVENTS)) in (PAUSED, FULL):
        if result == FULL and queue.state[ROOM] < int(code.options[2]) + 16:
            queue = _larger(queue, len(queue.node) + int(code.options[2]) + 16)
        elif result == FULL:
            log = np.zeros((math.ceil(len(code.log) * 1.5) + 1024, ENTRY), np.int64)
            log[: queue.state[LOGGED]] = code.log[: queue.state[LOGGED]]
            code = code._replace(log=log)
    return queue, code
