"""How long the fast engine takes to start, and how fast it is with and without the host's bf16 dot product.

    python tests/bench/bench_engine.py PROGRAM.d1x INPUTS.npz [--model MODEL.onnx] [--rounds 15]

Reading and checking the program, compiling its kernels into an empty cache, taking them from there; then runs in turns
on one thread, with the dot product, without it, and (`--model`) onnxruntime's in f32: medians, ratios to onnxruntime's,
and whether both ways have the same bits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]


def kernels_made(program: Any) -> tuple[float, int]:
    """Seconds of making the kernels of an engine, and how many of them were compiled."""
    from d1rt import engine_jit

    made: list[tuple[float, int]] = []
    build = engine_jit.build

    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        kernels = build(*args, **options)
        made.append((time.perf_counter() - started, kernels.misses))
        return kernels

    engine_jit.build = timed
    try:
        engine_jit.Engine(program, 1).close()
    finally:
        engine_jit.build = build
    return made[0]


def onnxruntime_run(model: Path, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start and speed of the fast engine.")
    parser.add_argument("program", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        import d1rt
        from d1rt.engine_jit import Engine
        from d1rt.jit_nest import dot_works

        dot_works()  # its own test compiles too
        started = time.perf_counter()
        loaded = d1rt.load(o.program)
        print(f"read and checked in {time.perf_counter() - started:.2f} s")
        for _ in range(2):
            seconds, compiled = kernels_made(loaded.program)
            print(f"kernels in {seconds:.3f} s, {compiled} of them compiled")
        given = dict(np.load(o.inputs))
        inputs = loaded.check_inputs(given)
        engines = {f"dot {x}": Engine(loaded.program, 1, use_dot=x) for x in (True, False) if dot_works() or not x}
        runs: dict[str, Callable[[], Any]] = {k: (lambda e=e: e.run(inputs).outputs) for k, e in engines.items()}  # type: ignore[misc]
        if o.model is not None:
            runs["onnxruntime"] = onnxruntime_run(o.model, given)
        results = {k: run() for k, run in runs.items()}
        seconds_of: dict[str, list[float]] = {k: [] for k in runs}
        for _ in range(o.rounds):
            for k, run in runs.items():
                started = time.perf_counter()
                run()
                seconds_of[k].append(time.perf_counter() - started)
        medians = {k: statistics.median(x) for k, x in seconds_of.items()}
        for k, x in medians.items():
            told = f", ratio {medians['onnxruntime'] / x:.2f}" if "onnxruntime" in medians else ""
            print(f"{k:12} {1000 * x:8.2f} ms{told}")
        bits = [{k: v.tobytes() for k, v in results[e].items()} for e in engines]
        print("the same bits" if all(b == bits[0] for b in bits) else "DIFFERENT BITS")


if __name__ == "__main__":
    main()
