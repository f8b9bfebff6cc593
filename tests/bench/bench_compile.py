"""Compile time against depth and against the number of cores.

    python tests/bench/bench_compile.py [--repeats 3]

Depth: one residual block of three convolutions, repeated 1, 4, 16 and 64 times, for one die; the exponent is the slope
between the ends of log time against log repeats, and between the last two. Cores: the same network for `d1-die` and for
`d1-tile`. Seconds are of CPU (this process), the least of the repeats, import of the model included; every pass apart.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import d1c  # noqa: E402
from tests import networks  # noqa: E402

DEPTHS = (1, 4, 16, 64)


def blocks(count: int, channels: int = 64, side: int = 28) -> onnx.ModelProto:
    """`count` bottleneck blocks behind each other: 1x1, 3x3, 1x1 convolutions and the sum."""
    f, x, mid = networks.Net(0), "image", channels // 2
    for _ in range(count):
        y = f("Relu", f.conv(x, channels, mid, 1, 1, bias=True))
        y = f("Relu", f.conv(y, mid, mid, 3, 3, bias=True, pads=[1] * 4))
        x = f("Relu", f("Add", x, f.conv(y, mid, channels, 1, 1, bias=True)))
    return f.model({"image": np.zeros((1, channels, side, side), np.float32)}, x)[0]


def seconds(model: onnx.ModelProto, target: str, repeats: int) -> tuple[float, dict[str, float]]:
    """The least CPU time of a compilation, and which share of it each of the dearer passes had."""
    best, passes = math.inf, dict[str, float]()
    for _ in range(repeats):
        started = time.process_time()
        program = d1c.compile(model, target=target)
        taken = time.process_time() - started
        if taken < best:
            best = taken
            whole = sum(p["seconds"] + p.get("verify_seconds", 0) for p in program.passes)
            passes = {p["name"]: round(p["seconds"] / whole, 2) for p in program.passes if p["seconds"] > 0.05 * whole}
    return best, passes


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile time against depth and cores.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", default="d1-die", help="for the depths")
    parser.add_argument("--network", default="resnet50", help="for the cores: a builder of tests/networks.py")
    o = parser.parse_args()
    seconds(blocks(1), o.target, 1)  # imports
    times = []
    for n in DEPTHS:
        taken, passes = seconds(blocks(n), o.target, o.repeats)
        times.append(taken)
        print(f"{n:3} blocks: {taken:7.2f} s {passes}", flush=True)
    slope = [math.log(times[-1] / times[i]) / math.log(DEPTHS[-1] / DEPTHS[i]) for i in (0, -2)]
    print(f"exponent {slope[0]:.2f} from 1 to 64 blocks, {slope[1]:.2f} from 16 to 64", flush=True)
    model = getattr(networks, o.network)()
    die, tile = (seconds(model, t, o.repeats) for t in ("d1-die", "d1-tile"))
    for name, (taken, passes) in (("d1-die", die), ("d1-tile", tile)):
        print(f"{o.network} for {name}: {taken:.2f} s {passes}")
    print(f"8,800 cores cost {tile[0] / die[0]:.2f} times as much as 352")
    told = {"depths": DEPTHS, "seconds": times, "exponents": slope, "die_s": die[0], "tile_s": tile[0]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
