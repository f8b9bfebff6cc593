"""How far the closed form is from the event-driven time, per network and per layer.

    python tests/bench/bench_time_model.py NETWORK.d1x|NETWORK.onnx ... [--target d1-tile] [--json FILE]

A row per network: cycles by events, in closed form and as the sum of the layers alone; of the layers above 1 % of the
time (by either) how many are off by more than 15 %, and the worst; seconds of CPU that this took. A layer's cycles are
by how much it puts off the end, in both (docs/timing.md). The goal is 10 % per network and 15 % per layer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import d1c  # noqa: E402
from d1c.target import program_io  # noqa: E402
from d1c.target.program import Program  # noqa: E402
from d1rt.events import simulate  # noqa: E402

NETWORK, LAYER, SHARE = 0.10, 0.15, 0.01


def compared(name: str, program: Program) -> dict[str, Any]:
    """One network's row."""
    started = time.process_time()
    found = simulate(program)
    seconds = time.process_time() - started
    total = found.total
    cycles, closed = total["cycles"], total["closed_form_cycles"]
    off = {}
    for layer in found.layers:
        a, b = layer["cycles"], layer["closed_form_cycles"]
        if max(a / max(cycles, 1), b / max(closed, 1)) > SHARE:
            off[layer["layer"], layer["name"]] = (b - a) / a if a else float("inf")
    worst = max(off, key=lambda k: abs(off[k]), default=(-1, ""))
    return {
        "name": name, "events": cycles, "closed_form": closed, "alone": total["alone_cycles"],
        "off": closed / cycles - 1 if cycles else 0.0, "layers": len(off),
        "layers_off": sum(abs(v) > LAYER for v in off.values()), "worst_layer": worst[1],
        "worst_off": off.get(worst, 0.0), "seconds": round(seconds, 1),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| network | events | closed form | off | alone | above {SHARE:.0%} | of them off by {LAYER:.0%} | worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        more = " !" * (abs(r["off"]) > NETWORK)
        lines.append(
            f"| {r['name']} | {r['events']:,} | {r['closed_form']:,} | {r['off']:+.1%}{more} "
            f"| {r['alone']:,} | {r['layers']} | {r['layers_off']} | {r['worst_off']:+.0%} {r['worst_layer']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The closed form against the event-driven time.")
    parser.add_argument("network", nargs="+", type=Path)
    parser.add_argument("--target", default="d1-tile")
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    rows = []
    for path in o.network:
        program = program_io.load(path) if path.suffix == ".d1x" else d1c.compile(path, target=o.target).target
        rows.append(compared(path.stem, program))
        print(f"{path.stem}: {rows[-1]['seconds']} s", file=sys.stderr)
    print(table(rows))
    if o.json:
        o.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
