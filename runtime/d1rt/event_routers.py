"""What the routers of the timing engine do with trains of packets (numba).

A train wants the links on from its router, all at once, each as soon as that is free and has room behind it. Those that
wait for a link go in the order in which they came; who finds it free, with nobody waiting, goes at once. Its places in
the buffer where it is are free for others when its last copy begins to leave.
"""

from __future__ import annotations  # noqa: I001 (a name a line would be too long a file)

from typing import Any

import numpy as np

from d1rt.event_data import (
    BITS, BUSY, CALLED, COLUMN, DIE_EDGE, DIP, DOWN, EDGE, FINAL, FIRST, FREED, INTO, LEAVE, LEFT, LEG, NOW, OUT_OF,
    PART, PC, PLACES, PORT, RIGHT, ROW, SIZE, SOURCE, TAIL, THREAD, UP, WAKE, WINDOW, Code, Net, Queue, Routes,
)  # fmt: skip
from d1rt.event_queue import append, drop, finish, inline, later, log, new_node, schedule


@inline
def _longer(wait: int, cycles: float, what: int) -> int:
    """The longest single wait so far: 8 x cycles + what for."""
    return max(wait, int(min(cycles, 2.5e8)) << 3 | what)


@inline
def _up(time: int) -> int:
    """The first whole cycle from a time in PARTs of a cycle on."""
    return time + PART - 1 >> BITS


@inline
def behind(net: Net, routes: Routes, link: int, m: int, to: int) -> Any:
    """The number of the buffer behind a link that train `m` goes into on its way `to`."""
    return link + routes.message[m, 6] * (to < LEG) * (len(net.links) >> 1)


@inline
def _queue_of(net: Net, link: int, buffer: int) -> Any:
    """The number of the queue of a link before this buffer: at ports all trains have the same."""
    return buffer if link < INTO * net.shape[0] * net.shape[1] else link


@inline
def _fits(line: np.ndarray, packets: int) -> Any:
    """Whether a buffer has room for a train; one longer than the buffer needs all of it."""
    return line[PLACES] >= min(packets, line[SIZE])


@inline
def _call_next(q: Queue, net: Net, routes: Routes, now: int, link: int, queue: int) -> None:
    """Let the first in a link's queue go as soon as the link is free, if there is room for it."""
    line = net.links[queue]
    n = line[FIRST]
    if n >= 0 and line[CALLED] == 0:
        m = q.node[n, 2]
        buffer = queue if link < INTO * net.shape[0] * net.shape[1] else behind(net, routes, link, m, 0)
        if not _fits(net.links[buffer], routes.message[m, 1]):
            return
        line[CALLED], line[FIRST] = 1, q.node[n, 0]
        time = max(now, _up(net.links[link, FREED]))
        if time < q.state[NOW] + WINDOW:
            append(q, n, time)
        else:
            later(q, n, time)


@inline
def _leaves(q: Queue, net: Net, routes: Routes, now: int, buffer: int, m: int) -> None:
    """Train `m` begins to leave a buffer: as fast as its places get free another can come in."""
    if buffer >= 0:
        half = len(net.links) >> 1
        link = buffer - half if buffer >= half else buffer
        line, queue = net.links[buffer], _queue_of(net, link, buffer)
        line[PLACES] += min(routes.message[m, 1], line[SIZE])
        if net.links[queue, FIRST] >= 0:
            _call_next(q, net, routes, now, link, queue)


@inline
def _queue_up(q: Queue, line: np.ndarray, n: int) -> None:
    q.node[n, 0] = -1
    if line[FIRST] < 0:
        line[FIRST] = n
    else:
        q.node[line[FINAL], 0] = n
    line[FINAL] = n


@inline
def _takes(
    q: Queue, net: Net, routes: Routes, now: int, begin: int, link: int, way: int, coordinate: int, m: int,
    command: int, to: int, wait: int, sent: int,
) -> None:  # fmt: skip
    """Train `m` goes over a link along `way` to a coordinate, and has the link's time from `begin` (PARTs) on; or it
    goes into a receiver's SRAM."""
    p, cycles = routes.message[m, 1], routes.message[m, 2]
    line, passing = net.links[link], p * net.parts[0]
    if way == INTO:
        line[FREED] = (now + cycles) * PART
        line[BUSY] += cycles
        if routes.message[m, 5]:
            end = now + max(cycles, _up(passing)) + net.costs[3]
            schedule(q, end, TAIL, 0, m, command, to, wait, sent)
        return
    line[FREED] = begin + passing
    line[BUSY] += p
    buffer = net.links[behind(net, routes, link, m, to)]
    buffer[PLACES] -= min(p, buffer[SIZE])
    head, edge = now + net.costs[0], line[EDGE]
    if edge >= 0:  # it holds a train up only where it carries the packets later than the link does
        end = max(net.edges[edge, 0], now * PART) + p * net.parts[1]
        net.edges[edge, 0] = end
        net.edges[edge, 1] += p
        late = max(0, end - (now * PART + max(passing, cycles * PART)))
        wait = _longer(wait, _up(late), DIE_EDGE)
        line[FREED] += late
        head += _up(late) + net.costs[1]
    schedule(q, head, RIGHT + way, coordinate, m, command, to, wait, sent)


@inline
def _trunk(routes: Routes, band: int, inside: int) -> Any:
    """The column of a band along which a train goes: that in which its sender is in its die, or one of the others in
    turn."""
    low, high, own = routes.band[band, 0], routes.band[band, 1], routes.band[band, 2] + inside
    return own if low <= own <= high else low + inside % (high - low + 1)


@inline
def _stop(routes: Routes, t: int, c: int) -> Any:
    """What a trunk in column `c` has at the row of receiver `t`: the first receiver there and that behind the last;
    the receiver here, the nearest to the right and to the left, or -1."""
    r = routes.receiver[t, 0]
    begin = t
    while routes.receiver[begin, 3] % 2 == 0 and routes.receiver[begin - 1, 0] == r:
        begin -= 1
    here = right = left = -1
    end = begin
    while True:
        col = routes.receiver[end, 1]
        if col < c:
            left = LEG + end
        elif col == c:
            here = end
        elif right < 0:
            right = LEG + end
        end += 1
        if routes.receiver[end - 1, 3] > 1 or routes.receiver[end, 0] != r:
            return begin, end, here, right, left


@inline
def ahead(net: Net, routes: Routes, kind: int, at: int, m: int, cursor: int) -> Any:
    """Row and column of the router that a train is at, and the cursors of what lies to the right, left, down, up, of
    the receiver here, and of those down and up beside the trunk; -1: nothing. Of a train that goes along the column
    first all of it with rows for columns."""
    tree, cols, src, turned = routes.message[m, 4], net.shape[1], routes.message[m, 0], routes.message[m, 6]
    if turned and kind != SOURCE:
        kind ^= RIGHT ^ DOWN
    right = left = down = up = here = beside = across = -1
    if tree >= 0:
        branch = routes.branch[tree if kind == SOURCE else cursor]
        r, c = branch[0] // cols, branch[0] % cols
        right, left, down, up, here = branch[1], branch[2], branch[3], branch[4], branch[5]
    elif cursor >= LEG:
        t = cursor - LEG
        r, c = routes.receiver[t, 0], at
        if routes.receiver[t, 1] != c:
            beside, across = (cursor, -1) if kind == RIGHT else (-1, cursor)
        else:
            here = t
            if kind == RIGHT and routes.receiver[t, 3] < 2 and routes.receiver[t + 1, 0] == r:
                beside = cursor + 1
            elif kind == LEFT and routes.receiver[t, 3] % 2 == 0 and routes.receiver[t - 1, 0] == r:
                across = cursor - 1
    elif kind == DOWN or kind == UP:
        r, c = at, _trunk(routes, routes.receiver[cursor, 4], routes.message[m, 7])
        if routes.receiver[cursor, 0] != r:
            down, up = (cursor, -1) if kind == DOWN else (-1, cursor)
        else:
            begin, end, here, beside, across = _stop(routes, cursor, c)
            if kind == DOWN and routes.receiver[end - 1, 3] < 2:
                down = end
            elif kind == UP and routes.receiver[begin, 3] % 2 == 0:
                up = begin - 1
    else:
        r, cls, inside = net.place[src, turned], routes.message[m, 3], routes.message[m, 7]
        low, high = routes.first[cls], routes.first[cls + 1]
        c = at
        if kind == SOURCE:
            c = net.place[src, 1 - turned]
            cursor = low
            while cursor < high and _trunk(routes, cursor, inside) < c:
                cursor += 1
        found = cursor < high and _trunk(routes, cursor, inside) == c
        if kind != LEFT:
            right = cursor + 1 if found else cursor
            right = right if right < high else -1
        if kind != RIGHT:
            left = cursor if kind == LEFT and not found else cursor - 1
            left = left if left >= low else -1
        if found:
            first, end = routes.band[cursor, 3], routes.band[cursor + 1, 3]
            t = first
            while t < end and routes.receiver[t, 0] < r:
                t += 1
            up = t - 1 if t > first else -1
            if t < end and routes.receiver[t, 0] == r:
                _, t, here, beside, across = _stop(routes, t, c)
            down = t if t < end else -1
    if turned:
        return c, r, down, up, right, left, here, beside, across
    return r, c, right, left, down, up, here, beside, across


@inline
def move(
    q: Queue, net: Net, routes: Routes, now: int, kind: int, at: int, m: int, command: int, cursor: int, wait: int,
    sent: int,
) -> None:  # fmt: skip
    """The head of train `m` is at a router: it goes to the receiver here and on to others, or waits for that. It keeps
    its places in the buffer until all copies have begun to leave."""
    cols, src, p = net.shape[1], routes.message[m, 0], routes.message[m, 1]
    cells = net.shape[0] * cols
    r, c, right, left, down, up, here, beside, across = ahead(net, routes, kind, at, m, cursor)
    site = r * cols + c
    before = site - 1 if kind == RIGHT else site + 1 if kind == LEFT else site - cols if kind == DOWN else site + cols
    came = behind(net, routes, (kind - RIGHT) * cells + before, m, cursor)
    if kind == SOURCE:
        came = behind(net, routes, OUT_OF * cells + site, m, 0) if net.gate[src] == 0 else -1
    waiting, shared = -1, -1
    for i in range(7):
        way = INTO if i == 0 else i - 1 if i < 5 else i - 3
        to = here if i == 0 else right if i == 1 else left if i == 2 else down if i == 3 else up
        to = to if i < 5 else beside if i == 5 else across
        if to < 0:
            continue
        link = way * cells + site
        buffer = behind(net, routes, link, m, to)
        queue, line, room = _queue_of(net, link, buffer), net.links[link], net.links[buffer]
        called = line[CALLED] + net.links[link + (len(net.links) >> 1), CALLED]
        if net.links[queue, FIRST] < 0 and called == 0 and line[FREED] <= now * PART and _fits(room, p):
            coordinate = c + 1 if i == 1 else c - 1 if i == 2 else r + 1 if i == 3 or i == 5 else r - 1
            _takes(q, net, routes, now, now * PART, link, way, coordinate, m, command, to, wait, sent)
            continue
        n = new_node(q)
        node = q.node[n]
        node[1], node[2], node[3], node[4], node[5] = WAKE | came << 4, m, command, to, wait
        node[6], node[7], node[8], node[10] = sent & 0x7FFFFFFF, sent >> 31, now & 0x7FFFFFFF, link
        if waiting >= 0 and shared < 0:
            shared = new_node(q)
            q.node[shared, 2] = 1
            q.node[waiting, 9] = shared
        node[9] = shared
        if shared >= 0:
            q.node[shared, 2] += 1
        waiting = n
        _queue_up(q, net.links[queue], n)
        _call_next(q, net, routes, now, link, queue)
    if waiting < 0:
        _leaves(q, net, routes, now, came, m)


@inline
def taken(q: Queue, net: Net, now: int, n: int, link: int) -> Any:
    """Whether a train of the other order has gone over a link first: then its node is called again when that has."""
    free = net.links[link, FREED]
    if free <= now * PART:
        return False
    if _up(free) < q.state[NOW] + WINDOW:
        append(q, n, _up(free))
    else:
        later(q, n, _up(free))
    return True


@inline
def wake(
    q: Queue, net: Net, routes: Routes, now: int, link: int, came: int, shared: int, since: int, m: int, command: int,
    to: int, wait: int, sent: int,
) -> None:  # fmt: skip
    """The first that has waited for a link goes."""
    line, cells, cols = net.links[link], net.shape[0] * net.shape[1], net.shape[1]
    way = link // cells
    coordinate = (link - way * cells) // cols
    if way < 2:
        coordinate = link - way * cells - coordinate * cols
    coordinate += 1 if way == 0 or way == 2 else -1
    queue = _queue_of(net, link, behind(net, routes, link, m, to))
    net.links[queue, CALLED] = 0
    wait = _longer(wait, (now & 0x7FFFFFFF) - since, PORT if way == INTO else ROW if way < 2 else COLUMN)
    begin = max(line[FREED], (now - 1) * PART + 1)  # a link that gets free within a cycle goes on at once
    begin = begin if begin == line[FREED] else now * PART
    _takes(q, net, routes, now, begin, link, way, coordinate, m, command, to, wait, sent)
    if shared >= 0:
        q.node[shared, 2] -= 1
    if shared < 0 or q.node[shared, 2] == 0:
        _leaves(q, net, routes, now, came, m)
        if shared >= 0:
            drop(q, shared)
    half = len(net.links) >> 1
    other = queue + half if queue < half else queue - half
    if link < INTO * cells:  # the orders take turns
        _call_next(q, net, routes, now, link, other)
    if net.links[other, CALLED] == 0:
        _call_next(q, net, routes, now, link, queue)


@inline
def inject(q: Queue, net: Net, routes: Routes, code: Code, now: int, link: int, n: int) -> None:
    """The next train of a core's first command that sends leaves SRAM; with the last one its thread goes on."""
    node, line = q.node[n], net.links[link]
    line[CALLED] = 0
    m, command, x = node[2], node[3], node[4]
    sent: Any = np.int64(node[7]) << 31 | np.int64(node[6])
    core, p, cycles = routes.message[m, 0], routes.message[m, 1], routes.message[m, 2]
    line[FREED] = (now + cycles) * PART
    line[BUSY] += cycles
    buffer = net.links[behind(net, routes, link, m, 0)]
    buffer[PLACES] -= min(p, buffer[SIZE])
    schedule(q, now + net.costs[2], SOURCE, 0, m, command, 0, _longer(0, now - sent, PORT), sent)
    node[2] = m + 1
    if m + 1 < node[9]:  # still the first
        node[0] = line[FIRST]
        line[FINAL] = n if line[FIRST] < 0 else line[FINAL]
        line[FIRST] = n
    else:
        drop(q, n)
        if x >= 0:
            end = now + cycles
            log(q, code, x, command, sent, end, -1, core, 0, 0)
            finish(code, x, command, sent, end)
            code.context[x, PC] = command + 1
            schedule(q, end, THREAD, 0, 0, 0, x, 0, 0)
    _call_next(q, net, routes, now, link, link)


@inline
def send(q: Queue, net: Net, routes: Routes, now: int, core: int, first: int, end: int, command: int, x: int) -> None:
    """Trains `first` to `end` of a core want to leave; context `x` (-1: nobody) waits until they have."""
    link = (OUT_OF * net.shape[0] + net.place[core, 0]) * net.shape[1] + net.place[core, 1]
    n = new_node(q)
    node = q.node[n]
    node[1], node[2], node[3], node[4], node[9], node[10] = LEAVE, first, command, x, end, link
    node[6], node[7] = now & 0x7FFFFFFF, now >> 31
    _queue_up(q, net.links[link], n)
    _call_next(q, net, routes, now, link, link)


@inline
def fetch(q: Queue, net: Net, routes: Routes, now: int, way: int, first: int, last: int, command: int) -> Any:
    """Ask an interface processor, `way` cycles from here to the edge, for trains: from when to when it sends."""
    d = net.dip_of[net.place[routes.message[first, 0], 0]]
    ready = now + way + net.costs[5] + net.costs[4]
    begin = max(net.dips[d, 0], float(ready))
    start, end = int(np.ceil(begin)), begin
    for m in range(first, last):
        p = routes.message[m, 1]
        at = int(np.ceil(end))
        end += p * net.rates[2]
        net.dips[d, 1] += p
        schedule(q, at + net.costs[5], SOURCE, 0, m, command, 0, _longer(0, start - ready, DIP), now)
    net.dips[d, 0] = end
    return start, int(np.ceil(end))
