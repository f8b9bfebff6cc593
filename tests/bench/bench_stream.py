"""ResNet-18 and a matmul on small meshes of D1 nodes, beside what Stream 2.1.1 predicts for its own plans there.

    python tests/bench/bench_stream.py [--case resnet18:2x2] ...

Machines: tests/bench/meshes. Stream's cycles and seconds were measured with the same node, links and memory outside
(its default search; mapping given for 8x8). What it plans is bf16 at batch 1, weights streamed from outside.

Stream's time begins and ends with all tensors outside, ours with inputs and the weights that stay in SRAM: `outside` is
what reading these and writing outputs would add if nothing of it were hidden, and `ratio` counts it. Other weights are
streamed while the program runs (`streamed_bytes`). What the compiler refuses for lack of SRAM is compiled for the same
mesh with as much SRAM as it takes (`sram_factor`): no result then, a preview. Seconds are those of compiling once more,
as Stream's are those of its search alone; `first_cpu_s` is the first time, with what the process imports for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import d1c  # noqa: E402
from d1c.errors import DoesNotFit  # noqa: E402
from d1c.target.machine import Machine, machine  # noqa: E402
from d1rt.events import simulate  # noqa: E402
from d1rt.timing import layer_times  # noqa: E402
from tests import networks  # noqa: E402

STREAM: dict[str, tuple[int, float]] = {
    "resnet18:2x2": (4_547_463, 45), "resnet18:4x4": (1_496_823, 25), "matmul:2x2": (1_349_648, 5),
    "matmul:4x4": (365_840, 5), "matmul:8x8": (123_536, 13),
}  # fmt: skip
"""Cycles, and seconds of its search: of CPU for ResNet-18, the fewest seen (179 s and more on the clock)."""


def model(name: str) -> onnx.ModelProto:
    """ResNet-18 at batch 1, or 1024 x 1024 by a constant of 1024 x 1024."""
    if name == "resnet18":
        return networks.resnet18()
    f = networks.Net(0)
    x = {"x": np.zeros((1024, 1024), np.float32)}
    return f.model(x, f("MatMul", "x", f.random(1024, 1024, fan=1024)))[0]


def compiled(net: onnx.ModelProto, target: Machine) -> tuple[Any, int, float]:
    """The program, by which factor SRAM had to grow for it, and the CPU seconds of that compilation."""
    for factor in (1, 2, 4, 8, 16, 32):
        started = time.process_time()
        try:
            made = d1c.compile(net, target=dataclasses.replace(target, sram_bytes=target.sram_bytes * factor))
            return made, factor, time.process_time() - started
        except DoesNotFit as error:
            print(f"  SRAM x {factor}: {error.message}")
    raise SystemExit("does not fit")


def main() -> None:
    parser = argparse.ArgumentParser(description="Small meshes beside Stream's prediction.")
    parser.add_argument("--case", action="append", choices=list(STREAM), help="default: all")
    parser.add_argument("--layers", action="store_true", help="the closed form of every layer")
    o = parser.parse_args()
    for case in o.case or STREAM:
        name, mesh = case.split(":")
        net, target = model(name), machine(ROOT / f"tests/bench/meshes/mesh-{mesh}.toml")
        first = compiled(net, target)[2]
        made, factor, seconds = compiled(net, target)
        times, bound = layer_times(made.target), made.target.info["bounds"]
        outside = sum(times.total[f"{k}_cycles"] for k in ("weight_load", "input_load", "output_store"))
        found = simulate(made.target).total
        closed, events = found["closed_form_cycles"], found["cycles"]
        own, streamed = events, times.total["streamed_bytes"]
        cycles, their_seconds = STREAM[case]
        told = {
            "case": case, "cycles": own, "closed_form": closed, "events": events, "outside": outside,
            "streamed_bytes": streamed, "sram_factor": factor, "bound": bound, "stream_cycles": cycles,
            "ratio": round((own + outside) / cycles, 3),
            "compile_cpu_s": round(seconds, 2), "first_cpu_s": round(first, 2), "stream_s": their_seconds,
        }  # fmt: skip
        print(json.dumps(told))
        print(
            f"{case}{f' (SRAM x {factor})' if factor > 1 else ''}: {own:,} cycles "
            f"(event-driven; closed form {closed:,}; {streamed / 1e6:.1f} MB streamed), {outside:,} more to load and "
            "store, bound "
            f"{bound['cycles']:,} ({bound['binds']}), Stream {cycles:,}: {(own + outside) / cycles:.2f}x; "
            f"compiled in {seconds:.2f} s (first {first:.2f} s) against {their_seconds:.0f} s: "
            f"1/{their_seconds / seconds:.0f}"
        )
        for r in times.layers if o.layers else ():
            print(f"  {r['name'][:24]:24s} {r['cycles']:9,} compute {r['compute_cycles']:9,} move {r['move_cycles']:9,}"
                  f" {r['binds']} {r['plan'][:80]}")  # fmt: skip


if __name__ == "__main__":
    main()
