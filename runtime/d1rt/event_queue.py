"""The queue of the timing engine's events, in order of time, and the log of what happened (numba).

Times are whole cycles. Events of one cycle are handled in the order in which they were made: a list per cycle for the
next WINDOW cycles, a heap for what lies further ahead. There are always nodes left: event_loop.run
sees to that.

Compiled code is kept by the file of the function that was called: who changes this file, event_data or event_routers
touches event_loop too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from d1rt.event_data import FAR, FREE, LOG, LOGGED, LOGS, MADE, NEAR, NOW, PLACE, ROOM, ROUND, WINDOW, Code, Queue

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
"""Nothing in here makes arrays, so nothing counts references (_nrt)."""


def jit(function: _F) -> _F:
    return cast(_F, njit(**_OPTIONS)(function))


def inline(function: _F) -> _F:
    """Handing tuples of arrays to a function costs more than most of these do."""
    return cast(_F, njit(forceinline=True, **_OPTIONS)(function))


# ---- the queue -----------------------------------------------------------------------------------------------------


@inline
def _less(far: np.ndarray, a: int, b: int) -> Any:
    return far[a, 0] < far[b, 0] or (far[a, 0] == far[b, 0] and far[a, 1] < far[b, 1])


@inline
def _swap(far: np.ndarray, a: int, b: int) -> None:
    for i in range(3):
        far[a, i], far[b, i] = far[b, i], far[a, i]


@inline
def append(q: Queue, n: int, time: int) -> None:
    """To the list of a cycle within the window."""
    b = time & (WINDOW - 1)
    q.node[n, 0] = -1
    if q.head[b] < 0:
        q.head[b] = n
    else:
        q.node[q.tail[b], 0] = n
    q.tail[b] = n
    q.state[NEAR] += 1


@jit
def nearer(q: Queue) -> None:
    """Move what has come into the window from the heap to the lists, in order."""
    s, far = q.state, q.far
    while s[FAR] > 0 and far[0, 0] < s[NOW] + WINDOW:
        append(q, far[0, 2], far[0, 0])
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


@jit
def later(q: Queue, n: int, time: int) -> None:
    """To the heap."""
    s, far = q.state, q.far
    i = s[FAR]
    far[i, 0], far[i, 1], far[i, 2] = time, s[MADE], n
    s[MADE] += 1
    s[FAR] += 1
    while i and _less(far, i, (i - 1) // 2):
        _swap(far, i, (i - 1) // 2)
        i = (i - 1) // 2


@inline
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
        append(q, n, time)
    else:
        later(q, n, time)


@inline
def new_node(q: Queue) -> int:
    n = q.state[FREE]
    q.state[FREE] = q.node[n, 0]
    q.state[ROOM] -= 1
    return int(n)


@inline
def drop(q: Queue, n: int) -> None:
    q.node[n, 0] = q.state[FREE]
    q.state[FREE] = n
    q.state[ROOM] += 1


# ---- what has happened ---------------------------------------------------------------------------------------------


@inline
def log(
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


@inline
def finish(code: Code, x: int, pc: int, begin: int, now: int) -> None:
    place = code.commands[pc, PLACE]
    if place >= 0:
        place += code.context[x, ROUND]
        code.done[place] = max(code.done[place], now)
        code.begun[place] = min(code.begun[place], begin)
