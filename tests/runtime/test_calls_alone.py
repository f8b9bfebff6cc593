"""A program's kernel calls without its messages: which run, how often, and that runs after them are as before."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from d1rt.engine_alone import calls_alone
from d1rt.engine_jit import Engine
from d1rt.engine_native import CALLS, UNIT, Native
from tests.runtime.loop_programs import doubling, doubling_reference, nested, nested_reference
from tests.runtime.programs import halo, halo_reference

X = np.arange(16, dtype=np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_all_calls_of_a_part_run_once_and_nothing_else_does(threads: int) -> None:
    seen: list[int] = []
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(lambda args, _: seen.append(args))
    native = Native()
    rng = np.random.default_rng(1)
    units = np.zeros((40, UNIT), np.int64)
    call = rng.random(40) < 0.6
    units[:, 0] = np.where(call, native.calls, 0)  # a copy would jump to address 0
    units[:, CALLS.index("kernel")] = ctypes.cast(kernel, ctypes.c_void_p).value
    units[:, CALLS.index("arguments")] = 1 + np.arange(40)
    units[:, CALLS.index("count")] = 1
    phases = 5
    starts = np.sort(np.concatenate([[0], rng.integers(0, 41, phases * threads - 1), [40]]))
    parts = [(0, 2, False), (2, 2, False), (2, 5, threads > 1)]
    job = calls_alone(native, units, starts, threads, 64, parts)
    for number, (lo, hi, _) in enumerate(parts):
        seen.clear()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i, n=number: job.run(i, n), range(job.reset(number))))
        inside = np.arange(starts[lo * threads], starts[hi * threads])
        assert sorted(seen) == [1 + i for i in inside if call[i]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_behind_it_is_as_before(threads: int) -> None:
    x = np.array([1, 2, 3, 4], np.float32)
    for p, inputs, want in (
        (halo(3), X, halo_reference(X, 3)),
        (doubling(5), x, doubling_reference(x, 5)),
        (nested(3, 2), X, nested_reference(X, 3, 2)),
    ):
        engine = Engine(p, threads)
        for _ in range(2):
            np.testing.assert_array_equal(engine.run({"x": inputs}).outputs["y"], want)
            alone = engine.calls_alone()
            assert alone is not None
            alone()
        engine.close()
        assert engine.calls_alone() is None
