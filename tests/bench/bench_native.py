"""What the fast engine reaches on this host beside what the host can do, one thread:

    python tests/bench/bench_native.py [--rounds 15]

- products of blocks in SRAM (bf16, bias, relu) as a share of the peak of the host's bf16 dot product, or of its FMA
  unit where it has no such instruction; of FMA also where it has, with the kernels for hosts that do not
- native descriptors per second: kernel calls of an empty kernel, messages of 64 bytes between rows in cache, and units
  of one call each (which threads would grab one by one)

Rounds are interleaved; medians of CPU time. Prints lines, then all of it as one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

from d1rt.engine_native import CALLS, COPY, UNIT, Job, Native  # noqa: E402
from d1rt.jit_ir import Function, Module  # noqa: E402
from d1rt.jit_nest import aligned, build, dot_works  # noqa: E402
from d1rt.jit_object import Library, ObjectCache, compile_all, host  # noqa: E402
from tests.bench.bench_nests import PEAK_STEPS, arguments, helpers, matmul, work  # noqa: E402

BLOCKS = ((56, 64, 576), (64, 64, 256), (96, 96, 128), (128, 128, 512))
"""Rows, columns and depth of the products."""
MANY = 10_000
Run = Callable[[], None]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of CPU of each, in turns; a turn repeats its run for at least 20 ms."""
    count = {}
    for name, run in runs.items():
        run()
        started = time.process_time()
        run()
        count[name] = 1 + int(0.02 / max(time.process_time() - started, 1e-6))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            for _ in range(count[name]):
                run()
            seconds[name].append((time.process_time() - started) / count[name])
    return {name: statistics.median(s) for name, s in seconds.items()}


def products(dot: bool, keep: list[Any]) -> tuple[dict[str, Run], dict[str, float]]:
    """Runs of the kernels, and of the peak's instruction alone; and floating-point operations of each."""
    nests = {f"{m} x {n} x {k}": matmul(m, n, k) for m, n, k in BLOCKS}
    kernels = build(nests, use_dot=dot, cached=False)
    library = helpers(dot)
    repeat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        library.address("repeat")
    )
    peak = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(library.address("peak"))
    scratch, ones = aligned(kernels.scratch_bytes), aligned(64).view(np.float32)
    ones[:] = 1e-3
    keep += [kernels, library, scratch, ones]
    lanes = 16 if dot or host().has("avx512f") else 8
    runs: dict[str, Run] = {"peak": lambda: peak(100_000, ones.ctypes.data)}
    flops = {"peak": 100_000.0 * PEAK_STEPS * lanes * (4 if dot else 2)}
    for name, nest in nests.items():
        args = arguments(nest, keep)
        keep.append(args)
        count = 1 + int(2e8 / work(nest))
        flops[name] = work(nest) * count

        def run(f: int = kernels.address(name), a: int = args.ctypes.data, n: int = count) -> None:
            before = kernels.enter()
            repeat(f, a, scratch.ctypes.data, n)
            kernels.leave(before)

        runs[name] = run
    return runs, flops


def descriptors(keep: list[Any]) -> tuple[dict[str, Run], dict[str, float]]:
    """Runs of the native loop, and how many descriptors each takes."""
    module = Module()
    Function(module, "nothing", ["ptr", "ptr"]).raw("ret void")
    (data,) = compile_all([str(module)], host(), ObjectCache(None))
    library, native = Library({"nothing": ("nothing", data)}), Native()
    rows = np.zeros((2, 512, 64), np.uint8)
    records = np.stack([np.arange(MANY) % 512 * 64] * 2, axis=1).astype(np.uint32)
    arrays = np.zeros((MANY, 8), np.int64)
    keep += [library, native, rows, records, arrays]
    call = dict(
        function=native.calls, kernel=library.address("nothing"), arguments=arrays.ctypes.data, count=MANY, stride=64
    )
    copy = dict(
        function=native.copy(64, False), records=records.ctypes.data, count=MANY, repeat=1, source=rows[0].ctypes.data,
        target=rows[1].ctypes.data, bytes=64,
    )  # fmt: skip
    runs: dict[str, Run] = {}
    for name, words, layout, count in (
        ("kernel calls", call, CALLS, 1), ("messages of 64 B", copy, COPY, 1),
        ("units", call | {"count": 1}, CALLS, MANY),
    ):  # fmt: skip
        unit = np.zeros((count, UNIT), np.int64)
        for word, value in words.items():
            unit[:, layout.index(word)] = value
        job = Job(native, unit, np.array([0, count]), 1, 64)

        def run(job: Job = job) -> None:
            job.reset()
            job.run(0)

        runs[name] = run
    return runs, {name: float(MANY) for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels and descriptors of the fast engine beside the host's peak.")
    parser.add_argument("--rounds", type=int, default=15)
    o = parser.parse_args()
    keep: list[Any] = []
    result: dict[str, Any] = {"cpu": host().cpu, "bf16_dot": dot_works()}
    if not dot_works():
        print(f"{host().cpu} has no bf16 dot product: shares are of the FMA unit's peak")
    for dot in (True, False) if dot_works() else (False,):
        runs, flops = products(dot, keep)
        seconds = medians(runs, o.rounds)
        peak = flops["peak"] / seconds["peak"]
        title = "bf16 dot" if dot else "FMA"
        print(f"{title} peak {peak / 1e9:.1f} GFLOP/s")
        shares = {name: flops[name] / seconds[name] / peak for name in runs if name != "peak"}
        for name, share in shares.items():
            print(f"  {name:16} {share * peak / 1e9:7.1f} GFLOP/s {share:6.1%}")
        result["dot" if dot else "fma"] = {"peak_gflops": peak / 1e9, "shares": shares}
    runs, count = descriptors(keep)
    seconds = medians(runs, o.rounds)
    result["per_second"] = {name: count[name] / seconds[name] for name in runs}
    for name, value in result["per_second"].items():
        print(f"{name:18} {value / 1e6:7.1f} M/s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
