"""One small network through the four levels, by the Python interface: what each level says, and that all agree.

    python examples/lowering.py [--target test]

graph says what is computed, dist where each part of it lies, tile when which core does what, kern how one core does it.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

import d1c
from d1c.interp import evaluate
from d1c.interp_dist import evaluate_dist

SOURCE = """
d1c.module graph {outputs = ["y"]} {
  func @main(%x: tensor<8x16xf32>) {
    %w = graph.const {name = "w"} : tensor<16x12xf32>
    %b = graph.const {name = "b"} : tensor<12xf32>
    %h = graph.matmul(%x, %w) : tensor<8x12xf32>
    %i = graph.add(%h, %b) : tensor<8x12xf32>
    %y = graph.relu(%i) : tensor<8x12xf32>
    graph.return(%y)
  }
}
"""


def show(title: str, text: str, lines: int = 14) -> None:
    """The first lines of a module."""
    shown = text.rstrip().split("\n")
    print(f"\n== {title}")
    print("\n".join(line if len(line) <= 150 else line[:147] + "..." for line in shown[:lines]))
    if len(shown) > lines:
        print(f"   ... {len(shown) - lines} more lines")


def main() -> None:
    parser = argparse.ArgumentParser(description="Walk one network through graph, dist, tile and kern.")
    parser.add_argument("--target", default="test")
    parser.add_argument("--engine", default="numpy", choices=["numpy", "jit"])
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 16)).astype(np.float32)
    weights = {
        "w": rng.standard_normal((16, 12)).astype(np.float32),
        "b": rng.standard_normal(12).astype(np.float32),
    }

    # Text is a module: print and parse are inverses at every level. Modules are immutable; `replace` makes another one.
    written = dataclasses.replace(d1c.parse(SOURCE), constants=weights)
    show("graph, as written", str(written))

    # graph passes: fuse, choose the storage types, pack the weights for the matrix unit. Here the bits are decided.
    graph = d1c.lower(written, to="graph", precision="bf16", target=args.target)
    show("graph, after its passes: one fused layer, bf16 storage", str(graph))

    # dist: every layer has a plan, and every movement is an exchange. The types say where each element lies.
    dist = d1c.lower(graph, to="dist", target=args.target)
    show("dist: where", str(dist))

    # tile and kern: threads of commands per role of cores, and one loop nest per kernel.
    show("tile: when", str(d1c.lower(dist, to="tile", target=args.target)), 24)
    show("kern: how", str(d1c.lower(dist, to="kern", target=args.target)))

    # The same in one step, and its summary.
    program = d1c.compile(written, target=args.target, precision="bf16")
    print(f"\n== the program\n{program}")

    # Every level means the same: the graph on whole arrays, dist in shares, the program on the emulated cores.
    results = {
        "graph": evaluate(graph, {"x": x})["y"],
        "dist": evaluate_dist(dist, {"x": x})["y"],
        "program": program.run({"x": x}, engine=args.engine)["y"],
    }
    exact = np.maximum(x.astype(np.float64) @ weights["w"] + weights["b"], 0)
    print("\n== results")
    for name, y in results.items():
        same = "the same bits as graph" if y.tobytes() == results["graph"].tobytes() else "OTHER BITS THAN graph"
        print(f"{name:8} {same}; {np.abs(y - exact).max() / exact.max():.1e} from exact arithmetic (bf16 operands)")
    if len({y.tobytes() for y in results.values()}) > 1:
        raise SystemExit("the levels disagree")


if __name__ == "__main__":
    main()
