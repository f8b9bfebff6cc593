"""Work that is done some at a time: compiled loops and much of numpy run outside the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")

THREADS = 4
"""How much is done at a time at most: what needs the lock has to wait."""


def at_a_time(work: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """The results, in order; what was raised first, if anything was."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(mine, len(work), THREADS)
    if workers < 2:
        return [x() for x in work]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda x: x(), work))
