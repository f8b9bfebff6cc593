"""Is the choice of plans the best one, and how long does it take?

    python tests/bench/bench_choice.py MODEL.onnx ... [--target d1-tile]

For every model (named dimensions are 1), the cost tables of the last choice that planning makes, solved once more as an
integer program (HiGHS, which scipy has). Prints layers and inputs, edges, how many choices were made, the longest and
all in seconds, both costs, and HiGHS's seconds. Exits with 1 where the costs differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import d1c
from d1c.analysis import planner

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.analysis.test_choose import integer_program

Problem = tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray], float, float]


def named(model: str) -> dict[str, int]:
    """The named dimensions of a model's inputs, all 1."""
    inputs = onnx.load(model, load_external_data=False).graph.input
    return {d.dim_param: 1 for i in inputs for d in i.type.tensor_type.shape.dim if d.dim_param}


def problems(model: str, target: str) -> list[Problem]:
    """(costs, edges, least cost, seconds) of every choice that compiling `model` makes."""
    found: list[Problem] = []
    choose = planner.cheapest

    def recorded(costs: list[np.ndarray], edges: dict[tuple[int, int], np.ndarray]) -> Any:
        start = time.process_time()
        result = choose(costs, edges)
        found.append((costs, dict(edges), result.cost, time.process_time() - start))
        return result

    planner.cheapest = recorded
    try:
        d1c.compile(model, target=target, dims=named(model), stop_after="distribute")
    finally:
        planner.cheapest = choose
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="+")
    arguments.add_argument("--target", default="d1-tile")
    given = arguments.parse_args()
    wrong = 0
    titles = f"{'choices':>8} {'s each':>7} {'s all':>6} {'cost':>12} {'HiGHS':>12} {'s':>7}"
    print(f"{'model':28} {'layers':>7} {'edges':>6} {titles}")
    for model in given.models:
        made = problems(model, given.target)
        costs, edges, cost, _ = made[-1]
        start = time.process_time()
        best = integer_program(costs, edges)
        spent = time.process_time() - start
        wrong += abs(best - cost) > 1e-6 * abs(best) + 1e-6
        each, all_ = max(seconds for *_, seconds in made), sum(seconds for *_, seconds in made)
        counts = f"{len(costs):7} {len(edges):6} {len(made):8} {each:7.3f} {all_:6.2f}"
        print(f"{Path(model).stem:28} {counts} {cost:12,.1f} {best:12,.1f} {spent:7.1f}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
