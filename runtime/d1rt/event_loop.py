"""The event loop of the timing engine: messages over links and threads over commands in order of time (numba).

Pools do not grow here: `run` returns FULL and goes on when it is called again with larger ones.
"""

from __future__ import annotations  # noqa: I001 (a name a line would be too long a file)

from typing import Any

import numpy as np

from d1rt.event_data import (
    BACK, BLOCKED, CALL, CORE, DEPTH, DONE, END, EVENTS, FAR, FETCH, FILL, FINISHED, FULL, LAST, LAUNCH, LAYER,
    LEAVE, LOGGED, LOGS, LOOP, MOST, NEAR, NEED, NOW, OP, PAUSE, PAUSED, PC, POST, ROOM, ROUND, SEMAPHORE, SEND, SINCE,
    START, TAIL, THREAD, WAIT, WAITED, WAKE, WINDOW, A, B, C, Code, Net, Queue, Routes,
)  # fmt: skip
from d1rt.event_queue import drop, finish, jit, log, nearer, schedule
from d1rt.event_routers import fetch, inject, move, send, taken, wake


# ---- threads -------------------------------------------------------------------------------------------------------


@jit
def _arrive(q: Queue, code: Code, now: int, core: int, semaphore: int, by: int, src: int, wait: int, sent: int) -> None:
    """Count 1 on a semaphore of `core`, and let those go on who have waited for it."""
    code.counts[core, semaphore] += 1
    for i in range(code.core_first[core], code.core_first[core + 1]):
        x = code.by_core[i]
        t = code.context[x]
        if t[BLOCKED] == semaphore and code.counts[core, semaphore] >= t[NEED]:
            t[BLOCKED] = -1
            log(q, code, x, t[PC], t[SINCE], now, by, src, wait, sent)
            finish(code, x, t[PC], t[SINCE], now)
            t[PC] += 1
            schedule(q, now, THREAD, 0, 0, 0, x, 0, 0)


@jit
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
                log(q, code, x, pc, begin, end, -1, core, launch, 0)
                finish(code, x, pc, begin, end)
                t[PC] = pc + 1
                schedule(q, end, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == SEND or op == POST:
            first = end = 0
            if c[A] >= 0:
                first, end = code.sends[c[A], core], code.sends[c[A], core + 1]
            if first < end:
                send(q, net, routes, now, core, first, end, pc, x if op == SEND else -1)
            if op == POST and c[B] >= 0 and code.values[c[B], core] > 0:
                _arrive(q, code, now, core, c[SEMAPHORE], pc, core, 0, now)
            if first < end and op == SEND:
                return
            if first < end:
                finish(code, x, pc, now, now)
                t[PC] = pc + 1
                schedule(q, now, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == PAUSE:
            end = now + code.values[c[A], core]
            if end > now:
                log(q, code, x, pc, now, end, -1, core, 0, 0)
                finish(code, x, pc, now, end)
                t[PC] = pc + 1
                schedule(q, end, THREAD, 0, 0, 0, x, 0, 0)
                return
        elif op == FETCH:
            first, last = code.sends[c[A], core], code.sends[c[A], core + 1]
            if first < last:
                begin, end = fetch(q, net, routes, now, code.values[c[B], core], first, last, pc)
                log(q, code, x, pc, now, now + 1, -1, core, begin - now, end)
                finish(code, x, pc, now, now + 1)
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
            finish(code, x, pc, now, now)
        t[PC] = pc + 1


# ---- the loop ------------------------------------------------------------------------------------------------------


@jit
def run(q: Queue, net: Net, routes: Routes, code: Code, arrival: np.ndarray, events: int) -> int:
    """Handle at most `events` events. With `arrival` [receivers] (not empty) there are no threads: it gets the cycle
    when each receiver has the whole message."""
    s, node = q.state, q.node
    plain = len(arrival) > 0
    margin = code.options[MOST] + 16
    for _ in range(events):
        if s[ROOM] < margin or (code.options[LOGS] and s[LOGGED] + margin > len(code.log)):
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
            nearer(q)
            b = s[NOW] & (WINDOW - 1)
            n = q.head[b]
        now = s[NOW]
        q.head[b] = node[n, 0]
        s[NEAR] -= 1
        s[EVENTS] += 1
        kind, at = node[n, 1] & 15, node[n, 1] >> 4
        m, command, cursor, wait = node[n, 2], node[n, 3], node[n, 4], node[n, 5]
        sent: Any = np.int64(node[n, 7]) << 31 | np.int64(node[n, 6])
        if kind == LEAVE:
            inject(q, net, routes, code, now, node[n, 10], n)
            continue
        link, shared, since = node[n, 10], node[n, 9], node[n, 8]
        if kind == WAKE and taken(q, net, now, n, link):  # by the other order, whose turn it was
            continue
        drop(q, n)
        if kind == THREAD:
            _thread(q, net, routes, code, now, cursor)
        elif kind == WAKE:
            wake(q, net, routes, now, link, at, shared, since, m, command, cursor, wait, sent)
        elif kind == START:
            send(q, net, routes, now, routes.message[m, 0], m, cursor, command, -1)
        elif kind != TAIL:
            move(q, net, routes, now, kind, at, m, command, cursor, wait, sent)
        elif plain:
            arrival[cursor] = now
        else:
            s[END] = max(s[END], now)
            core, src = routes.receiver[cursor, 2], routes.message[m, 0]
            if src >= len(code.busy):  # a gate: the core has asked itself
                src = core
            _arrive(q, code, now, core, code.commands[command, SEMAPHORE], command, src, wait, sent)
    return PAUSED


@jit
def start_all(q: Queue, time: np.ndarray) -> None:
    """Trains 0, 1, ... start at these cycles, which ascend."""
    for m in range(len(time)):
        schedule(q, time[m], START, 0, m, 0, m + 1, 0, 0)


@jit
def start_threads(q: Queue, contexts: int) -> None:
    for x in range(contexts):
        schedule(q, 0, THREAD, 0, 0, 0, x, 0, 0)
