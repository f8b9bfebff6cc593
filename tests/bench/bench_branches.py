"""What running branches side by side saves: several cameras' convolutions, and two towers on one map.

    python tests/bench/bench_branches.py [--target d1-tile]

A row per network: cycles by events with branches one after the other, and side by side where the compiler chose that;
seconds of compiling.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import onnx  # noqa: E402

import d1c  # noqa: E402
from d1c.passes import distribute, lower_tile  # noqa: E402
from d1rt.events import Simulator  # noqa: E402
from tests.networks import Net  # noqa: E402


def cameras(count: int, size: int = 64, width: int = 32, blocks: int = 4) -> onnx.ModelProto:
    """Cameras with weights of their own: a stem, residual blocks, the means of the channels; one product joins them."""
    f = Net(1)
    seen = []
    for i in range(count):
        x = f("Relu", f.conv(f"camera{i}", 3, width, 3, 3, bias=True, pads=[1, 1, 1, 1], strides=[2, 2]))
        for _ in range(blocks):
            y = f("Relu", f.conv(x, width, width, 3, 3, bias=True, pads=[1, 1, 1, 1]))
            x = f("Relu", f("Add", x, f.conv(y, width, width, 3, 3, bias=True, pads=[1, 1, 1, 1])))
        seen.append(f("Flatten", f("GlobalAveragePool", x)))
    joined = f("Concat", *seen, axis=1) if count > 1 else seen[0]
    images = {f"camera{i}": f.data(1, 3, size, size) for i in range(count)}
    return f.model(images, f.linear(joined, count * width, 64))[0]


def towers(count: int, size: int = 32, width: int = 64, depth: int = 4) -> onnx.ModelProto:
    """Towers of convolutions on one map, each with a head of its own size, as detectors have for classes and boxes."""
    f = Net(2)
    heads = []
    for i in range(count):
        x = "map"
        for _ in range(depth):
            x = f("Relu", f.conv(x, width, width, 3, 3, bias=True, pads=[1, 1, 1, 1]))
        heads.append(f.conv(x, width, 4 * (i + 1), 3, 3, bias=True, pads=[1, 1, 1, 1]))
    return f.model({"map": f.data(1, width, size, size)}, *heads)[0]


NETWORKS = {
    **{f"{n} cameras": (cameras, n) for n in (1, 2, 4, 6, 8)}, **{f"{n} towers": (towers, n) for n in (1, 2, 3)},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="d1-tile")
    o = parser.parse_args()
    print("| network | layers | one after the other | side by side | | seconds |\n|---|---|---|---|---|---|")
    for name, (make, count) in NETWORKS.items():
        started = time.perf_counter()
        beside = d1c.compile(make(count), target=o.target)
        seconds = time.perf_counter() - started
        dist = distribute.run(beside.module("graph"), beside.machine, branches=False)
        apart = lower_tile.run(dist, beside.machine).program
        layers, cycles = zip(*((len(p.layers), Simulator(p).cycles()) for p in (apart, beside.target)), strict=True)
        told = f"{cycles[1] / cycles[0]:.2f}x" if any(x.get("branches") for x in beside.target.layers) else "apart"
        of = f"{layers[0]}, {layers[1]} | {cycles[0]:,} | {cycles[1]:,}"
        print(f"| {name} | {of} | {told} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
