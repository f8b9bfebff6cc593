"""What dead nodes cost: event-driven times of one network over many masks, as a table.

    python tests/bench/bench_yield.py resnet50 [--target d1-tile] [--batch 1] [--dead 6] [--masks 50] [--smaller 10]
                                      [--routers 10] [--recompile] [--closed-form] [--values]

The network (of tests/all_networks.py, or an .onnx file with static shapes) is compiled for the target's grid with every
site live; that time is 1. The same program then runs on masks of `dead` sites a die, and on such masks whose routers
are dead too; with --recompile every mask has a program of its own. Masks that leave fewer nodes than the grid has are
always compiled, for the largest grid that fits. Prints the table, then a line of JSON. With --values every mask's own
program runs on the emulator instead, and the table says on how many masks the outputs have the bits that they have with
every site live; exits with 1 where they do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import d1c  # noqa: E402
import d1rt  # noqa: E402
from d1c.cli.bench import made_up  # noqa: E402
from d1c.errors import UsageError  # noqa: E402
from d1c.target.machine import Machine, machine  # noqa: E402
from d1c.target.program import Program  # noqa: E402
from d1rt.events import Simulator  # noqa: E402
from d1rt.timing import layer_times  # noqa: E402


class Bench:
    """Times of one network on machines, in cycles."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o = o
        if o.name.endswith(".onnx"):
            self.model, self.shapes, self.inputs = Path(o.name), None, None
        else:
            from tests.all_networks import network

            got = network(o.name, o.batch)
            if got is None:
                raise SystemExit(f"MISSING: the package with {o.name} cannot be had here")
            self.model, self.inputs, self.shapes = *got, {k: v.shape for k, v in got[1].items()}

        @lru_cache(maxsize=1)  # masks of one grid follow each other, and a program takes memory
        def simulator(m: Machine) -> Simulator:
            return Simulator(self.compiled(m))

        self._simulator = simulator

    def compiled(self, m: Machine) -> Program:
        """The program for machine `m`."""
        return d1c.compile(self.model, target=m, precision=self.o.precision, shapes=self.shapes).target

    def cycles(self, m: Machine) -> int:
        """On machine `m`, of the program for it, or for its grid with every site live."""
        own = m if self.o.recompile else dataclasses.replace(m, dead=(), dead_router_forwards=True)
        simulator = self._simulator(own)
        m = dataclasses.replace(m, die_order=simulator.machine.die_order)  # the compiler's choice
        if self.o.closed_form:
            return int(layer_times(dataclasses.replace(simulator.program, machine=m.to_dict())).total["cycles"])
        return simulator.cycles(m)

    def values(self, m: Machine) -> dict[str, bytes]:
        """The outputs of the program for machine `m`."""
        with d1rt.load(self.compiled(m)) as loaded:
            inputs = made_up(loaded.inputs) if self.inputs is None else self.inputs
            return {name: y.tobytes() for name, y in loaded.run(inputs).items()}


def masks(base: Machine, count: int, dead: int, forwards: bool = True) -> list[Machine]:
    """`count` random masks; with dead routers those that do not cut a die."""
    found: list[Machine] = []
    for seed in range(1, 1 + 20 * count):
        try:
            found.append(dataclasses.replace(base.masked(seed, dead), dead_router_forwards=forwards))
        except UsageError:
            continue
        if len(found) == count:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What dead nodes cost one network.")
    parser.add_argument("name", help="a network of tests/all_networks.py, or an .onnx file")
    parser.add_argument("--target", default="d1-tile")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "f32"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dead", type=int, default=6, help="dead sites of a die")
    parser.add_argument("--masks", type=int, default=50)
    parser.add_argument("--smaller", type=int, default=10, help="masks that leave fewer nodes than the grid has")
    parser.add_argument("--routers", type=int, default=10, help="masks with dead routers")
    parser.add_argument("--recompile", action="store_true")
    parser.add_argument("--closed-form", action="store_true")
    parser.add_argument("--values", action="store_true", help="compare outputs instead of times")
    o = parser.parse_args()
    base, bench = machine(o.target), Bench(o)
    live = dataclasses.replace(base, dead=(), dead_router_forwards=True)
    spare = base.site_rows * base.site_cols - base.grid_rows * base.grid_cols
    groups = [
        ("every site live", [live]),
        ("the target's own mask", [base]),
        (f"{o.dead} dead a die", masks(base, o.masks, o.dead)),
        (f"{o.dead} dead a die, routers too", masks(base, o.routers, o.dead, False)),
    ]
    for dead in sorted({spare + 1 + 3 * i for i in range(o.smaller)}):
        (m,) = masks(base, 1, dead)
        groups.append((f"{dead} dead a die, grid {m.grid_rows} x {m.grid_cols}", [m]))
    print(f"{o.name} batch {o.batch} {o.precision} on {o.target}, {base.grid_rows} x {base.grid_cols} nodes a die")
    raise SystemExit(compare(bench, groups) if o.values else time(bench, groups))


def time(bench: Bench, groups: list[tuple[str, list[Machine]]]) -> int:
    """Print the table of times."""
    print(f"{'sites':36} {'masks':>5} {'least':>7} {'median':>7} {'90 %':>7} {'most':>7}   cycles of the median")
    told = {k: getattr(bench.o, k) for k in ("name", "target", "precision", "batch", "recompile", "closed_form")}
    found: dict[str, list[int]] = {}
    live = 0
    for name, machines in groups:
        found[name] = cycles = [bench.cycles(m) for m in machines]
        live = live or cycles[0]
        if cycles:
            slow = np.quantile(np.array(cycles) / live, [0, 0.5, 0.9, 1])
            shown = " ".join(f"{s:7.3f}" for s in slow)
            print(f"{name:36} {len(cycles):5} {shown}   {np.median(cycles):,.0f}", flush=True)
    print(json.dumps({**told, "cycles": found}))
    return 0


def compare(bench: Bench, groups: list[tuple[str, list[Machine]]]) -> int:
    """Print on how many masks the outputs are those of the first group's; 1 where there is one with others."""
    print(f"{'sites':36} {'masks':>5} {'the same bits':>14}")
    want, wrong = bench.values(groups[0][1][0]), 0
    for name, machines in groups[1:]:
        same = sum(bench.values(m) == want for m in machines)
        wrong += len(machines) - same
        print(f"{name:36} {len(machines):5} {same:14}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    main()
