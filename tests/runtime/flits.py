"""A mesh of routers packet by packet and cycle by cycle: slow, plain, and independent of the product's network model.

A packet of 64 B carries its own header beside its payload, so it is one flit: a router forwards every packet by itself,
packets of different messages take turns on a link, and wormhole and cut-through switching are the same thing. In one
cycle a link moves one packet each way, a core's inject port takes one and its eject port gives one.

- Routers: a buffer of `depth` packets per input and virtual channel; a hop takes `hop` cycles, the buffer included. Per
  cycle one packet leaves each input (to any number of outputs), one goes to each output. An output chooses the message
  that was injected first (OLDEST: each core gets its share however far it is; of equals the smaller number), its inputs
  in turn (TURNS), or the packet that came first (FIRST): the machine's description leaves that open. A packet takes the
  virtual channel of the next input that has most credits.
- Credits travel back as long as packets travel forward (one cycle from a router to its inject port).
- Routes: along the row, then along the column; or along the column to one row, the trunk, along that, and up and down
  from there (`Message.trunk`). What has left its trunk has channels of its own. A packet to several cores is copied
  where their routes part; it stays at the head of its buffer until every copy has gone, each copy goes when it can.
- Between dies a hop takes `crossing` cycles more, the lanes of an edge share `edge_bytes` a cycle in turns, and the
  buffers behind it hold `crossing_depth` packets (0: as many as keep a lane busy during the round trip of a credit).
- A message of n packets over h hops with nothing in its way is in memory after inject + h x hop + n + eject cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit

RIGHT, LEFT, DOWN, UP, HERE = range(5)
STEP = ((0, 1), (0, -1), (1, 0), (-1, 0))
OLDEST, TURNS, FIRST = range(3)


@dataclass(frozen=True)
class Mesh:
    """`dies` x `sites` (rows, columns) routers; times in cycles, depths in packets."""

    sites: tuple[int, int]
    dies: tuple[int, int] = (1, 1)
    hop: int = 1
    inject: int = 4
    eject: int = 4
    crossing: int = 200
    packet_bytes: int = 64
    edge_bytes: int = 960
    channels: int = 3
    depth: int = 8
    crossing_depth: int = 0
    choice: int = OLDEST

    @property
    def shape(self) -> tuple[int, int]:
        return self.sites[0] * self.dies[0], self.sites[1] * self.dies[1]


@dataclass(frozen=True)
class Message:
    """`packets` from node `src` to every node of `dst` (numbered row by row), not before `start` and not before message
    number `after` has arrived everywhere. A core sends its messages in the order of their numbers. `trunk`: the row
    along which it goes, along columns first; -1: along rows first."""

    src: int
    dst: tuple[int, ...]
    packets: int
    start: int = 0
    after: int = -1
    trunk: int = -1


def routes(mesh: Mesh, messages: Sequence[Message]) -> np.ndarray:
    """[2, message, node] bits of the outputs by which a packet leaves a router, on its way to the trunk and along it
    (or by rows first), and past it: walked receiver by receiver."""
    rows, cols = mesh.shape
    out = np.zeros((2, len(messages), rows * cols), np.int8)
    for m, message in enumerate(messages):
        for dst in message.dst:
            place = np.array(divmod(message.src, cols))
            legs = [(1, dst % cols), (0, dst // cols)]
            if message.trunk >= 0:
                legs.insert(0, (0, message.trunk))
            past = 0
            for i, (axis, end) in enumerate(legs):
                while place[axis] != end:
                    way = 2 * (1 - axis) + int(end < place[axis])
                    out[past, m, place[0] * cols + place[1]] |= 1 << way
                    place += STEP[way]
                    past = int(i == 2)
            out[past, m, dst] |= 1 << HERE
    return out


def links(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Per node and way out: the next node or -1, cycles of the link, number of its die edge or -1; and how many die
    edges there are (one for each pair of neighbouring dies and direction)."""
    rows, cols = mesh.shape
    to = np.full((rows * cols, 5), -1, np.int64)
    wire = np.full((rows * cols, 5), mesh.hop, np.int64)
    edge = np.full((rows * cols, 5), -1, np.int64)
    edges: dict[tuple[int, int, int], int] = {}
    for r in range(rows):
        for c in range(cols):
            for way, (dr, dc) in enumerate(STEP):
                if not (0 <= r + dr < rows and 0 <= c + dc < cols):
                    continue
                n = r * cols + c
                to[n, way] = (r + dr) * cols + c + dc
                die = r // mesh.sites[0], c // mesh.sites[1]
                if die != ((r + dr) // mesh.sites[0], (c + dc) // mesh.sites[1]):
                    wire[n, way] += mesh.crossing
                    edge[n, way] = edges.setdefault((*die, way), len(edges))
    return to, wire, edge, len(edges)


@dataclass(frozen=True)
class Result:
    """`arrival` [message][receiver] cycle at which the last packet is in memory; `busy` [node, way] packets per link
    (way HERE: ejected); `ports` [node] packets injected."""

    arrival: list[np.ndarray]
    busy: np.ndarray
    ports: np.ndarray

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self.arrival)


def simulate(mesh: Mesh, messages: Sequence[Message], compiled: bool = True) -> Result:
    """Runs until every message has arrived; AssertionError if nothing moves any more (must not happen: along the row,
    then along the column cannot deadlock). `compiled=False` runs the same lines as ordinary Python."""
    rows, cols = mesh.shape
    assert mesh.hop >= 1 and mesh.inject >= 1
    to, wire, edge, edges = links(mesh)
    into = np.full((rows * cols, 5), mesh.hop, np.int64)  # cycles of the link into an input; input HERE: inject port
    into[:, HERE] = mesh.inject
    for n, way in zip(*np.nonzero(to >= 0), strict=True):
        into[to[n, way], way] = wire[n, way]
    back = into.copy()
    back[:, HERE] = 1
    depth = np.full((rows * cols, 5), mesh.depth, np.int64)
    depth[into > mesh.hop] = mesh.crossing_depth or 2 * (mesh.hop + mesh.crossing)
    depth[:, HERE] = mesh.depth
    order = np.argsort([m.src for m in messages], kind="stable")
    first = np.searchsorted([messages[i].src for i in order], np.arange(rows * cols + 1))
    target = np.full((len(messages), rows * cols), -1, np.int64)
    begin = np.cumsum([0] + [len(m.dst) for m in messages])
    for m, message in enumerate(messages):
        target[m, list(message.dst)] = begin[m] + np.arange(len(message.dst))
    arrival = np.full(begin[-1], -1, np.int64)
    busy = np.zeros((rows * cols, 5), np.int64)
    ports = np.zeros(rows * cols, np.int64)
    run = _run if compiled else _run.py_func
    ok = run(
        to, edge, into, back, depth, routes(mesh, messages), target, order, first,
        np.array([m.packets for m in messages], np.int64), np.array([m.start for m in messages], np.int64),
        np.array([m.after for m in messages], np.int64), np.array([len(m.dst) for m in messages], np.int64),
        np.array([mesh.channels, mesh.eject, mesh.packet_bytes, mesh.edge_bytes, edges, mesh.choice, cols], np.int64),
        np.array([m.trunk for m in messages], np.int64), arrival, busy, ports,
    )  # fmt: skip
    assert ok, "nothing moves, messages are missing"
    return Result([arrival[a:b] for a, b in pairwise(begin)], busy, ports)


@njit(cache=True)
def _most_credits(credits: np.ndarray, node: int, port: int, first: int, end: int) -> int:
    """The virtual channel of an input, of those from `first` on, with most free places, -1 if all are full."""
    best, most = -1, 0
    for v in range(first, end):
        if credits[node, port, v] > most:
            best, most = v, credits[node, port, v]
    return best


@njit(cache=True)
def _run(
    to: np.ndarray, edge: np.ndarray, into: np.ndarray, back: np.ndarray, depth: np.ndarray, out: np.ndarray,
    target: np.ndarray, order: np.ndarray, first: np.ndarray, packets: np.ndarray, start: np.ndarray,
    after: np.ndarray, waiting: np.ndarray, numbers: np.ndarray, trunk: np.ndarray, arrival: np.ndarray,
    busy: np.ndarray, ports: np.ndarray,
) -> bool:  # fmt: skip
    plain, eject, packet_bytes, edge_bytes, edges, choice, cols = numbers
    channels = 2 * plain if trunk.max() >= 0 else plain
    nodes, messages = len(to), len(packets)
    slots = max(into.max(), back.max()) + 1
    # Packets and credits on their way to (from) an input: by the cycle in which they come, modulo slots.
    flying = np.full((nodes, 5, slots), -1, np.int64)
    channel = np.zeros((nodes, 5, slots), np.int64)
    returning = np.full((nodes, 5, slots), -1, np.int64)
    # Input buffers: rings of messages. `left`: outputs that the head packet still has to go to.
    buffer = np.zeros((nodes, 5, channels, depth.max()), np.int64)
    came = np.zeros((nodes, 5, channels, depth.max()), np.int64)
    head = np.zeros((nodes, 5, channels), np.int64)
    count = np.zeros((nodes, 5, channels), np.int64)
    left = np.zeros((nodes, 5, channels), np.int64)
    credits = np.zeros((nodes, 5, channels), np.int64)
    for n in range(nodes):
        for port in range(5):
            credits[n, port, :] = depth[n, port]
    turn = np.zeros((nodes, 5), np.int64)
    budget = np.zeros(edges, np.int64)
    lanes = np.full((edges, nodes), -1, np.int64)  # per die edge: the routers before it
    lane_way = np.zeros(edges, np.int64)
    lane = np.zeros(edges, np.int64)  # whose turn it is
    lane_open = np.zeros((nodes, 4), np.bool_)
    for n in range(nodes):
        for way in range(4):
            if edge[n, way] >= 0:
                lanes[edge[n, way], n] = n
                lane_way[edge[n, way]] = way
    wanted = np.zeros(nodes, np.int64)  # outputs that the packets at the heads of a router's buffers want
    current = first[:-1].copy()  # per node: its message that is injected
    sent = np.zeros(messages, np.int64)
    born = np.full(messages, -1, np.int64)
    last = np.zeros(messages, np.int64)  # latest arrival of a message so far
    missing = np.zeros(len(arrival), np.int64)
    for m in range(messages):
        for n in range(nodes):
            if target[m, n] >= 0:
                missing[target[m, n]] = packets[m]
    open_targets, quiet, now = len(arrival), 0, -1
    patience = 2 * slots + eject + start.max() + 10
    used = np.zeros(5, np.int64)  # per input: the channel that sends in this cycle, -1 none yet
    while open_targets > 0:
        now += 1
        quiet += 1
        if quiet > patience:
            return False
        slot = now % slots
        for n in range(nodes):
            for port in range(5):
                m = flying[n, port, slot]
                if m >= 0:
                    v = channel[n, port, slot]
                    place = (head[n, port, v] + count[n, port, v]) % depth[n, port]
                    buffer[n, port, v, place] = m
                    came[n, port, v, place] = now
                    count[n, port, v] += 1
                    flying[n, port, slot] = -1
                v = returning[n, port, slot]
                if v >= 0:
                    credits[n, port, v] += 1
                    returning[n, port, slot] = -1
        # Inject ports.
        for n in range(nodes):
            if current[n] == first[n + 1]:
                continue
            m = order[current[n]]
            a = after[m]
            if start[m] > now or (a >= 0 and (waiting[a] > 0 or last[a] > now)):
                continue
            v = _most_credits(credits, n, 4, 0, plain)
            if v < 0:
                continue
            quiet = 0
            if sent[m] == 0:
                born[m] = now * messages + m
            flying[n, 4, (now + into[n, 4]) % slots] = m
            channel[n, 4, (now + into[n, 4]) % slots] = v
            credits[n, 4, v] -= 1
            ports[n] += 1
            sent[m] += 1
            if sent[m] == packets[m]:
                current[n] += 1
        # A die edge may save what is less than a packet, no more.
        # Its lanes that have packets and credits take turns.
        wanted[:] = 0
        for n in range(nodes):
            for port in range(5):
                for v in range(channels):
                    if count[n, port, v] > 0:
                        if left[n, port, v] == 0:
                            left[n, port, v] = out[int(v >= plain), buffer[n, port, v, head[n, port, v]], n]
                        wanted[n] |= left[n, port, v]
        for e in range(edges):
            budget[e] = min(budget[e] + edge_bytes, edge_bytes + packet_bytes - 1)
            may, begin, way = budget[e] // packet_bytes, lane[e], lane_way[e]
            for i in range(lanes.shape[1]):
                x = (begin + i) % lanes.shape[1]
                n = lanes[e, x]
                if n < 0:
                    continue
                free = _most_credits(credits, to[n, way], way, 0, channels)
                lane_open[n, way] = may > 0 and wanted[n] >> way & 1 and free >= 0
                if lane_open[n, way]:
                    may -= 1
                    lane[e] = (x + 1) % lanes.shape[1]
        for n in range(nodes):
            used[:] = -1
            for j in range(5):
                way = (now + j) % 5
                if not wanted[n] >> way & 1:
                    continue
                room, aside = 0, 0
                if way < 4:
                    if edge[n, way] >= 0 and not lane_open[n, way]:
                        continue
                    room = _most_credits(credits, to[n, way], way, 0, plain)
                    aside = _most_credits(credits, to[n, way], way, plain, channels)
                    if room < 0 and aside < 0:
                        continue
                best, best_age = -1, 0
                for i in range(5 * channels):
                    x = (turn[n, way] + i) % (5 * channels)
                    port, v = x // channels, x % channels
                    if count[n, port, v] == 0 or not left[n, port, v] >> way & 1 or used[port] not in (-1, v):
                        continue
                    m = buffer[n, port, v, head[n, port, v]]
                    if (aside if v >= plain or (way >= 2 and trunk[m] == n // cols) else room) < 0 and way < 4:
                        continue
                    age = 0
                    if choice == OLDEST:
                        age = born[buffer[n, port, v, head[n, port, v]]]
                    elif choice == FIRST:
                        age = came[n, port, v, head[n, port, v]]
                    if best < 0 or age < best_age:
                        best, best_age = x, age
                if best < 0:
                    continue
                quiet = 0
                turn[n, way] = (best + 1) % (5 * channels)
                port, v = best // channels, best % channels
                m = buffer[n, port, v, head[n, port, v]]
                used[port] = v
                busy[n, way] += 1
                if way == 4:
                    i = target[m, n]
                    missing[i] -= 1
                    if missing[i] == 0:
                        arrival[i] = now + 1 + eject
                        last[m] = max(last[m], arrival[i])
                        waiting[m] -= 1
                        open_targets -= 1
                else:
                    d = to[n, way]
                    room = aside if v >= plain or (way >= 2 and trunk[m] == n // cols) else room
                    when = (now + into[d, way]) % slots
                    flying[d, way, when] = m
                    channel[d, way, when] = room
                    credits[d, way, room] -= 1
                    if edge[n, way] >= 0:
                        budget[edge[n, way]] -= packet_bytes
                left[n, port, v] &= ~(1 << way)
                if left[n, port, v] == 0:
                    head[n, port, v] = (head[n, port, v] + 1) % depth[n, port]
                    count[n, port, v] -= 1
                    returning[n, port, (now + back[n, port]) % slots] = v
    return True
