"""The event loop of the timing engine: messages over links and threads over commands in order of time (numba).

Times are whole cycles. Events of one cycle are handled in the order in which they were made: a queue per cycle for the
next WINDOW cycles, a heap for what lies further ahead. An event of a message is its head at a router; there it takes
what it leaves by, whoever asks first is served first. Pools do not grow in here: `run` returns FULL and goes on when it
is called again with larger ones.
"""

from __future__ import annotations  # noqa: I001 (a name a line would be too long a file)

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from d1rt.event_data import (
    BACK, BLOCKED, CALL, COLUMN, CORE, DEPTH, DIE_EDGE, DIP, DONE, DOWN, EDGE, END, EVENTS, FAR, FETCH, FILL,
    FINISHED, FREE, FULL, LAST, LAUNCH, LAYER, LEFT, LOG, LOGGED, LOGS, LOOP, MADE, MOST, NEAR, NEED, NOW, OP,
    PAUSED, PC, PLACE, PORT, POST, RIGHT, ROOM, ROUND, ROW, SEMAPHORE, SEND, SINCE, SOURCE, START, TAIL, THREAD, UP,
    WAIT, WAITED, WINDOW, A, B, C, Code, Net, Queue, Routes,
)  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
"""Nothing in here makes arrays, so nothing counts references (_nrt)."""


def _jit(function: _F) -> _F:
    return cast(_F, njit(**_OPTIONS)(function))


def _inline(function: _F) -> _F:
    """Handing tuples of arrays to a function costs more than most of these do."""
    return cast(_F, njit(forceinline=True, **_OPTIONS)(function))


# ---- the queue -----------------------------------------------------------------------------------------------------


@_inline
def _less(far: np.ndarray, a: int, b: int) -> Any:
    return far[a, 0] < far[b, 0] or (far[a, 0] == far[b, 0] and far[a, 1] < far[b, 1])


@_inline
def _swap(far: np.ndarray, a: int, b: int) -> None:
    for i in range(3):
        far[a, i], far[b, i] = far[b, i], far[a, i]


@_inline
def _append(q: Queue, n: int, time: int) -> None:
    """To the list of a cycle within the window."""
    b = time & (WINDOW - 1)
    q.node[n, 0] = -1
    if q.head[b] < 0:
        q.head[b] = n
    else:
        q.node[q.tail[b], 0] = n
    q.tail[b] = n
    q.state[NEAR] += 1


@_jit
def _nearer(q: Queue) -> None:
    """Move what has come into the window from the heap to the lists, in order."""
    s, far = q.state, q.far
    while s[FAR] > 0 and far[0, 0] < s[NOW] + WINDOW:
        _append(q, far[0, 2], far[0, 0])
        s[FAR] -= 1
        last = s[FAR]
        _swap(far, 0, last)
        i = 0
        while True:
            child = 2 * i + 1
            if child >= last:
                break
            if child + 1 < last and _less(far, child + 1, child):
                child += 1
            if not _less(far, child, i):
                break
            _swap(far, i, child)
            i = child


@_jit
def _later(q: Queue, n: int, time: int) -> None:
    """To the heap."""
    s, far = q.state, q.far
    i = s[FAR]
    far[i, 0], far[i, 1], far[i, 2] = time, s[MADE], n
    s[MADE] += 1
    s[FAR] += 1
    while i and _less(far, i, (i - 1) // 2):
        _swap(far, i, (i - 1) // 2)
        i = (i - 1) // 2


@_inline
def schedule(
    q: Queue, time: int, kind: int, coordinate: int, message: int, command: int, cursor: int, wait: int, sent: int
) -> None:
    """Make an event."""
    s, node = q.state, q.node
    n = s[FREE]
    s[FREE] = node[n, 0]
    s[ROOM] -= 1
    node[n, 1] = kind | coordinate << 4
    node[n, 2] = message
    node[n, 3] = command
    node[n, 4] = cursor
    node[n, 5] = wait
    node[n, 6] = sent & 0x7FFFFFFF
    node[n, 7] = sent >> 31
    if time < s[NOW] + WINDOW:
        _append(q, n, time)
    else:
        _later(q, n, time)


# ---- messages ------------------------------------------------------------------------------------------------------


@_inline
def _longer(wait: int, cycles: float, what: int) -> int:
    """The longest single wait so far: 8 x cycles + what for."""
    return max(wait, int(min(cycles, 2.5e8)) << 3 | what)


@_inline
def _inject(q: Queue, net: Net, routes: Routes, now: int, m: int, command: int) -> int:
    """Reserve the sender's port from `now` on; when it is free again."""
    core, cycles = routes.message[m, 0], routes.message[m, 2]
    begin = max(net.out[core, 0], now)
    net.out[core, 0] = begin + cycles
    net.out[core, 1] += cycles
    schedule(q, begin + net.costs[2], SOURCE, 0, m, command, 0, _longer(0, begin - now, PORT), now)
    return int(begin + cycles)


@_inline
def _fetch(q: Queue, net: Net, routes: Routes, now: int, way: int, m: int, command: int) -> Any:
    """Ask an interface processor, `way` cycles from here to the edge, for message `m`: from when to when it sends."""
    p = routes.message[m, 1]
    d = net.dip_of[net.place[routes.message[m, 0], 0]]
    ready = now + way + net.costs[5] + net.costs[4]
    begin = max(net.dips[d, 0], float(ready))
    net.dips[d, 0] = begin + p * net.rates[2]
    net.dips[d, 1] += p
    start = int(np.ceil(begin))
    schedule(q, start + net.costs[5], SOURCE, 0, m, command, 0, _longer(0, start - ready, DIP), now)
    return start, int(np.ceil(begin + p * net.rates[2]))


@_inline
def _cross(
    q: Queue, net: Net, routes: Routes, now: int, edge: int, way: int, to: int, m: int, command: int, cursor: int,
    wait: int, sent: int,
) -> None:  # fmt: skip
    """Over a die edge: it holds the message up only where it carries its packets later than the link does."""
    p = routes.message[m, 1]
    end = max(net.edges[edge, 0], float(now)) + p * net.rates[1]
    net.edges[edge, 0] = end
    net.edges[edge, 1] += p
    late = int(np.ceil(max(0.0, end - (now + max(p * net.rates[0], float(routes.message[m, 2]))))))
    wait = _longer(wait, late, DIE_EDGE)
    schedule(q, now + late + net.costs[0] + net.costs[1], RIGHT + way, to, m, command, cursor, wait, sent)


@_inline
def _leave(
    q: Queue, net: Net, routes: Routes, now: int, way: int, r: int, c: int, m: int, command: int, cursor: int,
    wait: int, sent: int,
) -> None:  # fmt: skip
    """Take the link from router (r, c) along `way`."""
    link = (way * net.shape[0] + r) * net.shape[1] + c
    to = c if way < 2 else r
    to += 1 if way % 2 == 0 else -1
    p = routes.message[m, 1]
    begin = max(net.links[link, 0], float(now))
    net.links[link, 0] = begin + p * net.rates[0]
    net.links[link, 1] += p
    start = int(np.ceil(begin))
    if start > now:
        wait = _longer(wait, start - now, ROW if way < 2 else COLUMN)
    edge = net.edge_of[link]
    if edge < 0:
        schedule(q, start + net.costs[0], RIGHT + way, to, m, command, cursor, wait, sent)
    elif start > now:
        schedule(q, start, EDGE + way, to, m, command, cursor, wait, sent)
    else:
        _cross(q, net, routes, now, edge, way, to, m, command, cursor, wait, sent)


@_inline
def _deliver(
    q: Queue, net: Net, routes: Routes, now: int, target: int, m: int, command: int, wait: int, sent: int
) -> None:
    core, p, cycles = routes.receiver[target, 2], routes.message[m, 1], routes.message[m, 2]
    begin = max(net.into[core, 0], now)
    net.into[core, 0] = begin + cycles
    net.into[core, 1] += cycles
    end = begin + int(np.ceil(max(float(cycles), p * net.rates[0]))) + net.costs[3]
    schedule(q, end, TAIL, 0, m, command, target, _longer(wait, begin - now, PORT), sent)


@_inline
def _move(
    q: Queue, net: Net, routes: Routes, now: int, kind: int, at: int, m: int, command: int, cursor: int, wait: int,
    sent: int,
) -> None:  # fmt: skip
    """The head of message `m` is at a router (or wants a die edge): it goes to the receiver here and on to others."""
    tree, cols = routes.message[m, 4], net.shape[1]
    if kind >= EDGE:
        way = kind - EDGE
        back = at - 1 if way % 2 == 0 else at + 1
        if tree >= 0:
            r, c = routes.branch[cursor, 0] // cols, routes.branch[cursor, 0] % cols
        else:
            r, c = net.place[routes.message[m, 0], 0], routes.receiver[cursor, 1]
        r, c = (r, back) if way < 2 else (back, c)
        edge = net.edge_of[(way * net.shape[0] + r) * net.shape[1] + c]
        _cross(q, net, routes, now, edge, way, at, m, command, cursor, wait, sent)
        return
    right = left = down = up = here = -1  # where each way leads to: a receiver's column, a receiver
    if tree >= 0:
        branch = routes.branch[tree if kind == SOURCE else cursor]
        r, c = branch[0] // cols, branch[0] % cols
        right, left, down, up, here = branch[1], branch[2], branch[3], branch[4], branch[5]
    elif kind == DOWN or kind == UP:
        r, c = at, routes.receiver[cursor, 1]
        if routes.receiver[cursor, 0] != r:
            down, up = (cursor, -1) if kind == DOWN else (-1, cursor)
        else:
            here = cursor
            if kind == DOWN and routes.receiver[cursor, 3] < 2:
                down = cursor + 1
            elif kind == UP and routes.receiver[cursor, 3] % 2 == 0:
                up = cursor - 1
    else:
        r, cls = net.place[routes.message[m, 0], 0], routes.message[m, 3]
        low, high = routes.first[cls], routes.first[cls + 1]
        c = at
        if kind == SOURCE:
            c = net.place[routes.message[m, 0], 1]
            cursor = low
            while cursor < high and routes.column[cursor, 0] < c:
                cursor += 1
        found = cursor < high and routes.column[cursor, 0] == c
        if kind != LEFT:
            right = cursor + 1 if found else cursor
            right = right if right < high else -1
        if kind != RIGHT:
            left = cursor if kind == LEFT and not found else cursor - 1
            left = left if left >= low else -1
        if found:
            first, end = routes.column[cursor, 1], routes.column[cursor + 1, 1]
            t = first
            while t < end and routes.receiver[t, 0] < r:
                t += 1
            up = t - 1 if t > first else -1
            if t < end and routes.receiver[t, 0] == r:
                here = t
                t += 1
            down = t if t < end else -1
    if here >= 0:
        _deliver(q, net, routes, now, here, m, command, wait, sent)
    for way in range(4):
        to = right if way == 0 else left if way == 1 else down if way == 2 else up
        if to >= 0:
            _leave(q, net, routes, now, way, r, c, m, command, to, wait, sent)


# ---- threads -------------------------------------------------------------------------------------------------------


@_inline
def _write(
    q: Queue, code: Code, x: int, command: int, begin: int, end: int, by: int, core: int, wait: int, sent: int
) -> None:
    """Log what context `x` did, or waited for, from `begin` to `end`; `by`: the command of `core` that ended a wait."""
    if code.options[LOGS] == 0:
        return
    n = q.state[LOGGED]
    q.state[LOGGED] = n + 1
    e = code.log[n]
    e[0] = code.context[x, LOG]
    e[1] = command
    e[2], e[3] = begin, end
    e[4] = by << 32 | core if by >= 0 else -1
    e[5], e[6] = wait, sent
    code.context[x, LOG] = n


@_jit
def _arrive(q: Queue, code: Code, now: int, core: int, semaphore: int, by: int, src: int, wait: int, sent: int) -> None:
    """Count 1 on a semaphore of `core`, and let those go on who have waited for it."""
    code.counts[core, semaphore] += 1
    for i in range(code.core_first[core], code.core_first[core + 1]):
        x = code.by_core[i]
        t = code.context[x]
        if t[BLOCKED] == semaphore and code.counts[core, semaphore] >= t[NEED]:
            t[BLOCKED] = -1
            _write(q, code, x, t[PC], t[SINCE], now, by, src, wait, sent)
            _finish(code, x, t[PC], t[SINCE], now)
            t[PC] += 1
            schedule(q, now, THREAD, 0, 0, 0, x, 0, 0)


@_inline
def _finish(code: Code, x: int, pc: int, begin: int, now: int) -> None:
    place = code.commands[pc, PLACE]
    if place >= 0:
        place += code.context[x, ROUND]
        code.done[place] = max(code.done[place], now)
        code.begun[place] = min(code.begun[place], begin)


@_jit
def _thread(q: Queue, net: Net, routes: Routes, code: Code, now: int, x: int) -> None:
    """Run context `x` until it waits, computes, sends or ends."""
    t = code.context[x]
    core = t[CORE]
    while True:
        pc = t[PC]
        c = code.commands[pc]
        op = c[OP]
        if op == CALL or op == FILL:
            cycles = code.values[c[A], core]
            if cycles > 0:
                launch = 0
                if op == CALL:
                    if c[LAYER] != t[LAST] and (c[B] or t[WAITED]):
                        launch = code.options[LAUNCH]
                    t[LAST], t[WAITED] = c[LAYER], 0
                begin = max(now, code.busy[core])
                end = begin + launch + cycles
                code.busy[core] = end
                _write(q, code, x, pc, begin, end, -1, core, launch, 0)
                _finish(code, x, pc, begin, end)
                t[PC] = pc + 1
                schedule(q, end, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == SEND or op == POST:
            end = now
            if c[A] >= 0:
                for m in range(code.sends[c[A], core], code.sends[c[A], core + 1]):
                    end = max(end, _inject(q, net, routes, now, m, pc))
            if op == POST:
                if c[B] >= 0 and code.values[c[B], core] > 0:
                    _arrive(q, code, now, core, c[SEMAPHORE], pc, core, 0, now)
                end = now
            if c[A] >= 0 and code.sends[c[A], core] < code.sends[c[A], core + 1]:
                if op == SEND:
                    _write(q, code, x, pc, now, end, -1, core, 0, 0)
                _finish(code, x, pc, now, end)
                t[PC] = pc + 1
                schedule(q, end, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == FETCH:
            m = code.sends[c[A], core]
            if m < code.sends[c[A], core + 1]:
                begin, end = _fetch(q, net, routes, now, code.values[c[B], core], m, pc)
                _write(q, code, x, pc, now, now + 1, -1, core, begin - now, end)
                _finish(code, x, pc, now, now + 1)
                t[PC] = pc + 1
                schedule(q, now + 1, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == WAIT:
            count = code.values[c[A], core]
            s = c[SEMAPHORE]
            if c[B]:
                code.waited[core, s] += count
                count = code.waited[core, s] if count or c[B] == 2 else 0
            if c[C] and code.values[c[A], core] > 0:
                t[WAITED] = 1
            if code.counts[core, s] < count:
                t[BLOCKED], t[NEED], t[SINCE] = s, count, now
                return
        elif op == LOOP:
            if c[A] == 0:
                t[PC] = c[B]
                continue
            code.rounds[x, t[DEPTH]] = 0
            t[DEPTH] += 1
            t[ROUND] *= c[A]
        elif op == BACK:
            r = code.rounds[x, t[DEPTH] - 1] + 1
            if r < c[A]:
                code.rounds[x, t[DEPTH] - 1] = r
                t[ROUND] += 1
                t[PC] = c[B]
                continue
            t[DEPTH] -= 1
            t[ROUND] //= c[A]
        else:
            t[FINISHED] = 1
            q.state[END] = max(q.state[END], now)
            return
        if op != LOOP and op != BACK:
            _finish(code, x, pc, now, now)
        t[PC] = pc + 1


# ---- the loop ------------------------------------------------------------------------------------------------------


@_jit
def run(q: Queue, net: Net, routes: Routes, code: Code, arrival: np.ndarray, events: int) -> int:
    """Handle at most `events` events. With `arrival` [receivers] (not empty) there are no threads: it gets the cycle
    when each receiver has the whole message."""
    s, node = q.state, q.node
    plain = len(arrival) > 0
    margin = code.options[MOST] + 16
    for _ in range(events):
        if s[ROOM] < margin or (code.options[LOGS] and s[LOGGED] + 16 > len(code.log)):
            return FULL
        b = s[NOW] & (WINDOW - 1)
        n = q.head[b]
        while n < 0:
            if s[NEAR] > 0:
                s[NOW] += 1
            elif s[FAR] > 0:
                s[NOW] = q.far[0, 0]
            else:
                return DONE
            _nearer(q)
            b = s[NOW] & (WINDOW - 1)
            n = q.head[b]
        now = s[NOW]
        q.head[b] = node[n, 0]
        s[NEAR] -= 1
        s[EVENTS] += 1
        kind, at = node[n, 1] & 15, node[n, 1] >> 4
        m, command, cursor, wait = node[n, 2], node[n, 3], node[n, 4], node[n, 5]
        sent: Any = np.int64(node[n, 7]) << 31 | np.int64(node[n, 6])
        node[n, 0] = s[FREE]
        s[FREE] = n
        s[ROOM] += 1
        if kind == THREAD:
            _thread(q, net, routes, code, now, cursor)
        elif kind == START:
            _inject(q, net, routes, now, m, command)
        elif kind != TAIL:
            _move(q, net, routes, now, kind, at, m, command, cursor, wait, sent)
        elif plain:
            arrival[cursor] = now
        else:
            s[END] = max(s[END], now)
            core, src = routes.receiver[cursor, 2], routes.message[m, 0]
            if src >= len(code.busy):  # a gate: the core has asked itself
                src = core
            _arrive(q, code, now, core, code.commands[command, SEMAPHORE], command, src, wait, sent)
    return PAUSED


@_jit
def start_all(q: Queue, time: np.ndarray) -> None:
    """Messages 0, 1, ... start at these cycles, which ascend."""
    for m in range(len(time)):
        schedule(q, time[m], START, 0, m, 0, 0, 0, 0)


@_jit
def start_threads(q: Queue, contexts: int) -> None:
    for x in range(contexts):
        schedule(q, 0, THREAD, 0, 0, 0, x, 0, 0)
