"""The all-reduce of a batch normalisation over the whole tile: sum and sum of squares of 512 columns, f32.

    python tests/bench/bench_allreduce.py [--form flat|staged|joined|grid] [--rows 8800] [--target d1-tile]

Rows are spread over all cores; every core needs both results, with which it normalises its rows. The model says in
which steps they are added, since the order of a sum is part of its result (docs/numerics.md):

    flat    one ReduceSum over all rows: 16 slices, each added row by row
    staged  within a core's rows, within a die, over dies
    joined  the same, with sum and sum of squares side by side from the second step on
    grid    joined, with the rows and the columns of a die's cores one after the other

Prints the closed form of each layer alone, the event-driven time of the whole, the arithmetic on the rows included, and
its critical path. `all-reduce` is all but that arithmetic: the layers of the rows' own size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import d1c  # noqa: E402
from d1c.target.machine import Machine, machine  # noqa: E402
from d1rt.timing import layer_times  # noqa: E402
from tests import networks  # noqa: E402
from tests.bench.times import critical_path  # noqa: E402

GOAL_US = 5.0
FORMS = ("flat", "staged", "joined", "grid")


def normalisation(rows: int, columns: int, target: Machine, form: str) -> onnx.ModelProto:
    """`x` [rows, columns] less its mean over the root of its mean square, the cores of `target` sharing the rows."""
    f, dies, cores, grid = networks.Net(0), target.dies, target.cores, (target.grid_rows, target.grid_cols)

    def total(x: str) -> str:
        if form == "flat":
            return f("ReduceSum", x, f.ints(0), keepdims=0)
        own = f("ReduceSum", f("Reshape", x, f.ints(cores, rows // cores, columns)), f.ints(1), keepdims=0)
        return own if form in ("joined", "grid") else over_cores(own, columns)

    def over_cores(x: str, width: int) -> str:
        sides = (dies, *(grid if form == "grid" else (cores // dies,)))
        x = f("Reshape", x, f.ints(*sides, width))
        for axis in reversed(range(len(sides))):
            x = f("ReduceSum", x, f.ints(axis), keepdims=0)
        return x

    sums = [total("x"), total(f("Mul", "x", "x"))]
    if form in ("joined", "grid"):
        both = over_cores(f("Concat", *sums, axis=1), 2 * columns)
        sums = [f("Slice", both, f.ints(i * columns), f.ints((i + 1) * columns)) for i in range(2)]
    mean, square = (f("Div", x, f.scalar(rows)) for x in sums)
    y = f("Div", f("Sub", "x", mean), f("Sqrt", f("Add", square, f.scalar(1e-5))))
    return f.model({"x": np.zeros((rows, columns), np.float32)}, y)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A batch normalisation's all-reduce over the tile.")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--rows", type=int, default=8800)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--target", default="d1-tile")
    o = parser.parse_args()
    target = machine(o.target)
    for form in o.form or FORMS:
        model = normalisation(o.rows, o.columns, target, form)
        made = d1c.compile(model, target=target, precision="f32")
        times, size = layer_times(made.target), o.rows * o.columns
        closed = 0
        for r in times.layers:
            shape = made.target.layers[r["layer"]]["shape"] if r["kind"] != "barrier" else []
            closed += r["cycles"] if np.prod(shape) < size else r["move_cycles"]
            terms = {k: v for k, v in r["terms"].items() if v}
            print(
                f"  {r['name'][:16]:16s} {shape!s:18s} {r['cycles']:7,} on {r['cores_used']:5} {r['plan'][:60]} {terms}"
            )
        events, path = critical_path(made.target)
        for line in path:
            print(f"  {line}")
        us = target.seconds(closed) * 1e6
        print(json.dumps({"form": form, "closed_form": times.total["cycles"], "all_reduce": closed, "events": events}))
        whole = target.seconds(events) * 1e6
        print(
            f"{form}: the whole normalisation event-driven {events:,} cycles = {whole:.2f} us, goal {GOAL_US} us",
            end="; ",
        )
        print(f"its all-reduce, each layer alone, {closed:,} = {us:.2f} us, all layers {times.total['cycles']:,}")


if __name__ == "__main__":
    main()
