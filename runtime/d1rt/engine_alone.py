"""A program's kernel calls without its messages: what the host's time would be if everything else were free."""

from __future__ import annotations

import numpy as np

from d1rt.engine_native import CALLS, UNIT, Job, Native


def calls_alone(
    native: Native, units: np.ndarray, starts: np.ndarray, threads: int, scratch_bytes: int,
    parts: list[tuple[int, int, bool]],
) -> Job:  # fmt: skip
    """The job of the calls among `units`, in their order, each part as one phase: no copies, and nobody waits for
    anybody within a part. What they compute is of no use: operands are what memory happens to hold."""
    phase, thread = np.divmod(np.repeat(np.arange(len(starts) - 1), np.diff(starts)), threads)
    call = units[:, CALLS.index("function")] == native.calls
    picks, begins = [np.zeros(0, np.int64)], []
    count = 0
    for lo, hi, _ in parts:
        inside = np.flatnonzero(call & (phase >= lo) & (phase < hi))
        inside = inside[np.argsort(thread[inside], kind="stable")]
        begins.append(count + np.searchsorted(thread[inside], np.arange(threads)))
        picks.append(inside)
        count += len(inside)
    chosen = units[np.concatenate(picks)].reshape(-1, UNIT)
    first = np.concatenate([*begins, np.array([count])])
    alone = [(i, i + 1, p[2]) for i, p in enumerate(parts)]
    return Job(native, chosen, first, threads, scratch_bytes, alone)
