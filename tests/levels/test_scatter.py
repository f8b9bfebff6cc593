"""Scatters through every level: graph, priced and random plans, both engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import d1rt
from d1c.interp import evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.text import parse
from d1c.ir.verify import verify
from d1c.passes import distribute, fuse, lower_tile, precision
from d1c.target.machine import machine

TEXT = """
d1c.module graph {outputs = ["y", "z"]} {
  func @main(%x: tensor<V?f32>, %i: tensor<Uxi64>, %w: tensor<U?f32>) {
    %c = graph.const {name = "c"} : tensor<1xf32>
    %d = graph.mul(%x, %c) : tensor<V?f32>
    %v = graph.neg(%w) : tensor<U?f32>
    %s = graph.scatter(%d, %i, %v) {reduce = "REDUCE"} : tensor<V?f32>
    %y = graph.add(%s, %c) : tensor<V?f32>
    %z = graph.scatter(%x, %i, %w) {reduce = "none"} : tensor<V?f32>
    graph.return(%y, %z)
  }
}"""


@pytest.mark.parametrize("policy", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("reduce", "shape", "count"),
    [("add", (9, 3, 20), 40), ("max", (33,), 50), ("none", (1, 70), 3), ("mul", (20, 1), 30), ("min", (6, 2, 3, 4), 1)],
)
def test_scatter_keeps_its_bits(reduce: str, shape: tuple[int, ...], count: int, policy: str) -> None:
    text = TEXT.replace("?", "x".join(["", *map(str, shape[1:]), ""])).replace("REDUCE", reduce)
    text = text.replace("V", str(shape[0])).replace("U", str(count))
    rng = np.random.default_rng(count)
    module = replace(parse(text), constants={"c": np.full(1, 1.5, np.float32)})
    rows = rng.integers(-1, shape[0] + 1, count)
    x, w = (rng.normal(size=s).astype(np.float32) for s in (shape, (count, *shape[1:])))
    inputs: dict[str, Any] = {"x": x, "i": rows, "w": w}
    module = precision.run(fuse.run(module), policy)
    verify(module)
    want = evaluate(module, inputs)
    last = {int(r): k for k, r in enumerate(rows)}
    moved = np.stack([w[last[r]] if r in last else x[r] for r in range(shape[0])])
    np.testing.assert_array_equal(want["z"], moved)
    target = machine("test")
    for seed in (None, *range(5)):
        dist = distribute.run(module, target, seed=seed)
        verify(dist)
        got = evaluate_dist(dist, inputs)
        assert all(got[k].tobytes() == want[k].tobytes() for k in want), seed
        if seed in (None, 3):
            assert str(parse(str(dist), constants=dist.constants)) == str(dist)
            program = lower_tile.run(dist, target).program
            for engine in ("jit", "numpy"):
                out = d1rt.load(program).run(inputs, engine=engine)
                assert all(out[k].tobytes() == want[k].tobytes() for k in want), engine
