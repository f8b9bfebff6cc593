"""What a set of messages puts on the network: cycles of every core's ports, packets over every link and die edge.

Routes go along the row first, then along the column, on physical coordinates; or all of them along the column first. A
message to several cores is one tree: the row of its sender as far as the outermost columns of the receivers, then each
of those columns; every link carries it once. Along the column first one row, the trunk, stands for all rows side by
side that have receivers (`bands`). All of it is arithmetic on difference arrays: no route is ever walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from d1c.target.embedding import global_position
from d1c.target.machine import Machine
from d1c.target.movement import Exchange, ragged

if TYPE_CHECKING:
    from d1rt.detours import Detours


@dataclass(frozen=True)
class Fabric:
    """Where the cores of a machine are: [cores] physical row and column."""

    machine: Machine
    row: np.ndarray
    col: np.ndarray

    @classmethod
    def of(cls, machine: Machine) -> Fabric:
        place = global_position(machine).reshape(-1, 2).astype(np.int64)
        return cls(machine, place[:, 0], place[:, 1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of sites of the whole machine."""
        m = self.machine
        return m.die_rows * m.site_rows, m.die_cols * m.site_cols

    @cached_property
    def depth(self) -> tuple[np.ndarray, np.ndarray]:
        """[cores] cycles from row 0 and from column 0, die crossings included: distances are differences of these."""
        m = self.machine
        return (
            self.row * m.hop_cycles + self.row // m.site_rows * m.die_crossing_cycles,
            self.col * m.hop_cycles + self.col // m.site_cols * m.die_crossing_cycles,
        )

    @cached_property
    def detours(self) -> Detours | None:
        """The ways round dead routers; None where there are none, and every way goes along the row, then the column."""
        if self.machine.dead_router_forwards or not any(self.machine.dead):
            return None
        from d1rt.detours import Detours  # compiles

        return Detours(self.machine, self.row * self.shape[1] + self.col)

    @property
    def overhead(self) -> int:
        return self.machine.inject_cycles + self.machine.eject_cycles

    def distance(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Cycles of one packet from cores `src` to cores `dst` on an empty network; 0 from a core to itself."""
        if self.detours is not None:
            cycles = self.detours.cycles(src, dst) + self.overhead
            return np.where(src == dst, 0, cycles)
        y, x = self.depth
        cycles = np.abs(y[src] - y[dst]) + np.abs(x[src] - x[dst]) + self.overhead
        return np.where(src == dst, 0, cycles)


@dataclass(frozen=True, slots=True)
class Flows:
    """Messages from core src[m] to every core of class cls[m]: packets, cycles of the SRAM ports at both ends, payload
    bytes. Core targets[i] belongs to class classes[i]; both ascend by class. A message to its own sender uses the
    ports, but no link."""

    src: np.ndarray
    cls: np.ndarray
    packets: np.ndarray
    accesses: np.ndarray
    payload: np.ndarray
    targets: np.ndarray
    classes: np.ndarray


def fingerprint(exchange: Exchange) -> tuple[object, ...]:
    """Equal for movements with the same messages: the layers of a network repeat."""
    out: list[object] = [exchange.source_held, exchange.target_held, exchange.plan_axes]
    for c in exchange.components:
        p = c.pieces
        arrays = (p.t, p.s, p.soff, p.doff, p.length, p.count, p.sstep, p.dstep)
        out += [c.target_axes, c.source_axes, c.window, c.owned, len(c.real), *(a.tobytes() for a in arrays)]
    return tuple(out)


def pushed(exchange: Exchange, width: int, cores: np.ndarray, machine: Machine) -> Flows:
    """The messages that `cores` send in a movement of elements of `width` bytes."""
    mesh, messages = exchange.mesh, exchange.messages()
    packets, accesses = messages.packets(width, machine)
    fan = mesh.core_offset(exchange.fan_axes, np.arange(mesh.parts(exchange.fan_axes)))
    targets = (messages.classes[:, None] + fan).reshape(-1)
    classes = np.repeat(np.arange(len(messages.classes)), len(fan))
    keep = cores[messages.src] & (messages.elements > 0)
    return Flows(
        messages.src[keep], messages.cls[keep], packets[keep], accesses[keep], messages.elements[keep] * width, targets,
        classes,
    )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """Cycles of each core's SRAM ports (`sent`, `received` [cores]) and packets over each link: `right` [rows, cols]
    those from column c to c + 1, `left` back, `down` from row r to r + 1, `up` back. `distance`: cycles of the longest
    way. `bytes`: payload that leaves a core, counted once for all receivers of a tree."""

    machine: Machine
    sent: np.ndarray
    received: np.ndarray
    right: np.ndarray
    left: np.ndarray
    down: np.ndarray
    up: np.ndarray
    distance: int
    messages: int
    packets: int
    bytes: int

    def __add__(self, other: Load) -> Load:
        """Both at once: loads add, the longer way counts."""
        return Load(
            self.machine, self.sent + other.sent, self.received + other.received, self.right + other.right,
            self.left + other.left, self.down + other.down, self.up + other.up, max(self.distance, other.distance),
            self.messages + other.messages, self.packets + other.packets, self.bytes + other.bytes,
        )  # fmt: skip

    @property
    def port_cycles(self) -> float:
        """The busiest port: one packet or run a cycle out of SRAM, one into it."""
        return float(max(self.sent.max(initial=0), self.received.max(initial=0)))

    @property
    def _packet_cycles(self) -> float:
        return self.machine.packet_bytes / self.machine.link_bytes_per_cycle

    @property
    def row_cycles(self) -> float:
        """The busiest link along a row."""
        return float(max(self.right.max(), self.left.max())) * self._packet_cycles

    @property
    def column_cycles(self) -> float:
        """The busiest link along a column."""
        return float(max(self.down.max(), self.up.max())) * self._packet_cycles

    @cached_property
    def edge_packets(self) -> int:
        """Packets over the busiest edge between two dies, one direction."""
        m, most = self.machine, 0.0
        for links in (self.right, self.left):
            edge = links[:, m.site_cols - 1 : -1 : m.site_cols]
            most = max(most, edge.reshape(m.die_rows, m.site_rows, -1).sum(1).max(initial=0))
        for links in (self.down, self.up):
            edge = links[m.site_rows - 1 : -1 : m.site_rows]
            most = max(most, edge.reshape(-1, m.die_cols, m.site_cols).sum(2).max(initial=0))
        return int(most)

    @property
    def edge_cycles(self) -> float:
        """The busiest die edge; packets that are not full take a whole slot."""
        return self.edge_packets * self.machine.packet_bytes / self.machine.die_edge_bytes_per_cycle

    @property
    def cycles(self) -> float:
        """The busiest of ports, links and die edges, then the longest way."""
        return max(self.port_cycles, self.row_cycles, self.column_cycles, self.edge_cycles) + self.distance


def load(flows: Flows, fabric: Fabric, by_columns: bool = False) -> Load:
    """The load of all the messages at once. Where the machine's multicast is not `tree`, every receiver gets a message
    of its own. `by_columns`: along columns first; past dead routers ways are what they are."""
    machine, cores = fabric.machine, len(fabric.row)
    tree = machine.multicast == "tree"
    src, cls, packets = flows.src, flows.cls, flows.packets
    count = int(flows.classes[-1]) + 1 if len(flows.classes) else 0
    first = np.searchsorted(flows.classes, np.arange(count + 1))
    fan = np.diff(first)
    receivers, senders = np.sort(flows.classes * cores + flows.targets), cls * cores + src
    own = np.append(receivers, -1)[np.searchsorted(receivers, senders)] == senders  # np.isin imports numpy.ma
    copies = np.ones(len(src), np.int64) if tree else fan[cls]
    leaving = np.minimum(copies, fan[cls] - own)
    received = np.bincount(cls, flows.accesses, count)[flows.classes]

    sent, got = np.bincount(src, flows.accesses * copies, cores), np.bincount(flows.targets, received, cores)
    payload = int((flows.payload * leaving).sum())
    if fabric.detours is not None:
        right, left, down, up, longest = _along_detours(flows, fabric, fabric.detours, first)
        return Load(
            machine, sent, got, right, left, down, up, longest, len(src), int((packets * copies).sum()), payload
        )
    row, col, shape = fabric.row, fabric.col, fabric.shape
    if by_columns:
        row, col, shape = col, row, shape[::-1]
    tr, tc = row[flows.targets], col[flows.targets]
    if by_columns and tree:
        right, left, down, up, longest = _along_trunks(flows, fabric, first)
        return Load(
            machine, sent, got, right, left, down, up, longest, len(src), int(packets.sum()), payload
        )  # fmt: skip
    column = _columns(flows.classes, tr, tc, shape[1])
    sr, sc = row[src], col[src]
    # Along the row of the sender.
    if tree:
        at, low, high, weight = np.arange(len(src)), *_extent(tc, first, cls), packets
    else:
        at, low, high, weight = _each(cls, column, packets)
    r, c = sr[at], sc[at]
    right = _segments(shape, r, r + 1, c, np.maximum(high, c), weight)
    left = _segments(shape, r, r + 1, np.minimum(low, c), c, weight)
    # Down and up the receivers' columns: all senders of one row look alike.
    total = np.bincount(cls * shape[0] + sr, packets, count * shape[0])
    key = np.flatnonzero(total)
    if tree:
        to = column
    else:
        to = _Columns(flows.classes, tc, tr, tr, np.ones(len(tr), np.int64))
    start = np.searchsorted(to.cls, np.arange(count + 1))
    owner, i = ragged(np.diff(start)[key // shape[0]])
    i += start[key // shape[0]][owner]
    r, weight = (key % shape[0])[owner], total[key][owner]
    c = to.col[i]
    down = _segments(shape, r, np.maximum(to.high[i], r), c, c + 1, weight)
    up = _segments(shape, np.minimum(to.low[i], r), r, c, c + 1, weight)
    if by_columns:
        right, left, down, up = down.T, up.T, right.T, left.T
    return Load(
        machine, sent, got, right, left, down, up, _longest(flows, fabric, first), len(src),
        int((packets * copies).sum()), payload,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bands:
    """Lines of sites side by side, without a gap, in which a class of receivers has some in one die. `of` [receivers]
    the band of each, the classes' one after the other. Of each band the least and the last line in which a trunk may
    be, so that no receiver is far from it, and the first line of the die."""

    of: np.ndarray
    low: np.ndarray
    high: np.ndarray
    die: np.ndarray


def bands(classes: np.ndarray, line: np.ndarray, sites: int) -> Bands:
    """Of receivers (their class, ascending, and line). `sites`: lines of a die; 0: every line is a band of its own."""
    if not len(line):
        return Bands(line, line, line, line)
    order = np.lexsort((line, classes))
    at, cls = line[order], classes[order]
    new = np.diff(cls, prepend=-1) != 0
    new[1:] |= (np.diff(at) > 1) | (np.diff(at // sites) != 0) if sites else np.diff(at) != 0
    of = np.empty(len(line), np.int64)
    of[order] = np.cumsum(new) - 1
    begin = np.flatnonzero(new)
    low, high = at[begin], at[np.append(begin[1:], len(at)) - 1]
    wide = high - low > 1
    return Bands(of, low + wide, high - wide, low // sites * sites if sites else low)


def _along_trunks(
    flows: Flows, fabric: Fabric, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """right, left, down, up as in Load and the longest way, of trees along columns first: the sender's column, in every
    band of receivers one trunk along a row, and from there up and down to receivers in others of the band's rows."""
    src, cls, packets, (rows, cols) = flows.src, flows.cls, flows.packets, fabric.shape
    y, x = fabric.row[flows.targets], fabric.col[flows.targets]
    band = bands(flows.classes, y, fabric.machine.site_rows)
    count = len(band.low)
    of_class = np.empty(count, np.int64)
    of_class[band.of] = flows.classes
    start = np.searchsorted(of_class, np.arange(len(first)))
    # Per message and band its trunk.
    at, i = ragged(np.diff(start)[cls])
    i += start[cls[at]]
    inside = (fabric.row[src] % fabric.machine.site_rows)[at]
    low, high, own = band.low[i], band.high[i], band.die[i] + inside
    trunk = np.where((low <= own) & (own <= high), own, low + inside % (high - low + 1))
    sy, sx, shape = fabric.row[src], fabric.col[src], (cols, rows)
    has = np.flatnonzero(np.diff(start)[cls])
    begin = np.flatnonzero(np.diff(at, prepend=-1))
    least, most = sy.copy(), sy.copy()
    if len(begin):
        least[has] = np.minimum(np.minimum.reduceat(trunk, begin), sy[has])
        most[has] = np.maximum(np.maximum.reduceat(trunk, begin), sy[has])
    down = _segments(shape, sx, sx + 1, sy, most, packets)
    up = _segments(shape, sx, sx + 1, least, sy, packets)
    longest = _farthest(fabric, src[at], trunk, band.of, flows.targets, i)
    # Trunks: all with one row and one column to start from look alike.
    order = np.argsort(band.of, kind="stable")
    edges = np.flatnonzero(np.diff(band.of[order], prepend=-1))
    nearest, farthest = (f.reduceat(x[order], edges) if count else x for f in (np.minimum, np.maximum))
    key, weight = _summed((i * rows + trunk) * cols + sx[at], packets[at])
    i, trunk, c = key // (rows * cols), key // cols % rows, key % cols
    right = _segments(shape, c, np.maximum(farthest[i], c), trunk, trunk + 1, weight)
    left = _segments(shape, np.minimum(nearest[i], c), c, trunk, trunk + 1, weight)
    # Beside the trunks: per band and column the outermost receivers.
    legs, weight = _summed(i * rows + trunk, weight)
    beside = _columns(band.of, y, x, cols)
    start = np.searchsorted(beside.cls, np.arange(count + 1))
    owner, k = ragged(np.diff(start)[legs // rows])
    k += start[legs // rows][owner]
    trunk, weight, c = (legs % rows)[owner], weight[owner], beside.col[k]
    down += _segments(shape, c, c + 1, trunk, np.maximum(beside.high[k], trunk), weight)
    up += _segments(shape, c, c + 1, np.minimum(beside.low[k], trunk), trunk, weight)
    return right.T, left.T, down.T, up.T, longest


def _farthest(
    fabric: Fabric, src: np.ndarray, trunk: np.ndarray, of: np.ndarray, targets: np.ndarray, band: np.ndarray
) -> int:
    """The longest way from senders `src` down to a trunk's row and along it to any receiver of a band (`of`: that of
    each of the targets). As in `_longest`, from where the trunk begins."""
    if not len(src):
        return 0
    y, x = fabric.depth
    order = np.argsort(of, kind="stable")
    start = np.flatnonzero(np.diff(of[order], prepend=-1))
    m, rows = fabric.machine, np.arange(fabric.shape[0])
    line = rows * m.hop_cycles + rows // m.site_rows * m.die_crossing_cycles
    spine, reach = np.abs(y[src] - line[trunk]), np.zeros(len(src), np.int64)
    for sy, sx in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        far = np.maximum.reduceat(-(sy * y + sx * x)[targets[order]], start)
        reach = np.maximum(reach, sy * line[trunk] + sx * x[src] + far[band])
    return int((spine + reach).max()) + fabric.overhead


def _summed(key: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, and of each the sum of its weights."""
    different, inverse = np.unique(key, return_inverse=True)
    return different, np.bincount(inverse, weight, len(different))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Per class and column that has receivers: their first and last row and how many they are."""

    cls: np.ndarray
    col: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def _columns(cls: np.ndarray, row: np.ndarray, col: np.ndarray, cols: int) -> _Columns:
    key = cls * cols + col
    order = np.argsort(key, kind="stable")
    key, row = key[order], row[order]
    start = np.flatnonzero(np.diff(key, prepend=-1))
    if not len(start):
        return _Columns(key, key, key, key, key)
    return _Columns(
        key[start] // cols, key[start] % cols, np.minimum.reduceat(row, start), np.maximum.reduceat(row, start),
        np.diff(start, append=len(key)),
    )  # fmt: skip


def _extent(col: np.ndarray, first: np.ndarray, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last column of each message's receivers."""
    if not len(cls):
        return cls, cls
    return np.minimum.reduceat(col, first[:-1])[cls], np.maximum.reduceat(col, first[:-1])[cls]


def _each(cls: np.ndarray, to: _Columns, packets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Without trees: per message and column of receivers (message, column, column, packets of all receivers there)."""
    start = np.searchsorted(to.cls, cls)
    at, i = ragged(np.searchsorted(to.cls, cls, "right") - start)
    i += start[at]
    return at, to.col[i], to.col[i], packets[at] * to.count[i]


def _segments(
    shape: tuple[int, int], r0: np.ndarray, r1: np.ndarray, c0: np.ndarray, c1: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """[rows, cols] sum of the weights of all rectangles [r0, r1) x [c0, c1) over each site."""
    rows, cols = shape
    d = np.zeros((rows + 1) * (cols + 1))
    for r, c, sign in ((r0, c0, 1), (r1, c0, -1), (r0, c1, -1), (r1, c1, 1)):
        d += sign * np.bincount(r * (cols + 1) + c, weight, d.size)
    return np.asarray(d.reshape(rows + 1, cols + 1).cumsum(0).cumsum(1)[:rows, :cols])


def _longest(flows: Flows, fabric: Fabric, first: np.ndarray) -> int:
    """The longest way of any message to any of its receivers: |y - y'| + |x - x'| is the largest of its four signed
    forms, and each of these splits into a maximum over senders and one over receivers."""
    if not len(flows.src):
        return 0
    y, x = fabric.depth
    order = np.argsort(flows.cls, kind="stable")
    src, cls = flows.src[order], flows.cls[order]
    start = np.flatnonzero(np.diff(cls, prepend=-1))
    longest = 0
    for sy, sx in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        v = sy * y + sx * x
        far = np.maximum.reduceat(-v[flows.targets], first[:-1])[cls[start]]
        longest = max(longest, int((np.maximum.reduceat(v[src], start) + far).max()))
    return longest + fabric.overhead


def _along_detours(
    flows: Flows, fabric: Fabric, detours: Detours, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """right, left, down, up as in Load and the longest way, branch by branch."""
    src, cls, packets, (rows, cols) = flows.src, flows.cls, flows.packets, fabric.shape
    if fabric.machine.multicast != "tree":
        at, i = ragged(np.diff(first)[cls])
        src, packets, cls = src[at], packets[at], first[cls[at]] + i
        first = np.arange(len(flows.targets) + 1)
    total, longest = np.zeros(4 * rows * cols), -fabric.overhead if not len(src) else 0
    for part, made in detours.branches(src, cls, first, flows.targets):
        total += np.bincount(made.link, np.repeat(packets[part], np.diff(made.first)), len(total))
        longest = max(longest, int(made.cycles.max(initial=0)))
    right, left, down, up = total.reshape(4, rows, cols)
    # Load counts a link back where it ends, branches where it begins.
    return right, np.roll(left, -1, axis=1), down, np.roll(up, -1, axis=0), longest + fabric.overhead
