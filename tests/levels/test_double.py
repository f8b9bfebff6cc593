"""f64 through every level: graph against numpy, priced and random plans, both engines, both policies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import d1rt
from d1c.interp import evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.text import parse
from d1c.passes import distribute, fuse, lower_tile, precision
from d1c.target.machine import machine

TEXT = """
d1c.module graph {outputs = ["y", "z", "n"]} {
  func @main(%x: tensor<6x300xf64>, %s: tensor<6x5xf32>) {
    %w = graph.const {name = "w"} : tensor<300x5x1xf64>
    %b = graph.const {name = "b"} : tensor<5xf64>
    %m = graph.matmul(%x, %w) {packed = true} : tensor<6x5xf64>
    %a = graph.add(%m, %b) : tensor<6x5xf64>
    %e = graph.mul(%s, %s) : tensor<6x5xf32>
    %t = graph.tanh(%e) : tensor<6x5xf32>
    %d = graph.cast(%t) {to = "f64"} : tensor<6x5xf64>
    %y = graph.mul(%a, %d) : tensor<6x5xf64>
    %h = graph.exp(%y) : tensor<6x5xf64>
    %q = graph.reduce_sum(%h) {axes = [1], keepdims = true} : tensor<6x1xf64>
    %z = graph.div(%h, %q) : tensor<6x5xf64>
    %r = graph.reduce_prod(%x) {axes = [0], keepdims = false} : tensor<300xf64>
    %k = graph.reduce_max(%x) {axes = [0], keepdims = false} : tensor<300xf64>
    %o = graph.div(%r, %k) : tensor<300xf64>
    %n = graph.cast(%o) {to = "f32"} : tensor<300xf32>
    graph.return(%y, %z, %n)
  }
}"""


@pytest.mark.parametrize("policy", ["f32", "bf16"])
def test_double_keeps_its_bits(policy: str) -> None:
    rng = np.random.default_rng(0)
    w, b, x = (rng.normal(size=s) for s in ((300, 5, 1), 5, (6, 300)))
    s = rng.normal(size=(6, 5)).astype(np.float32)
    module = precision.run(fuse.run(replace(parse(TEXT), constants={"w": w, "b": b})), policy)
    inputs = {"x": x, "s": s}
    want = evaluate(module, inputs)
    exact = (x @ w[..., 0] + b) * np.tanh(s * s).astype(np.float64)
    rough = 1e-6 if policy == "f32" else 1e-2  # the factor is computed in f32, and stored as the policy says
    np.testing.assert_allclose(want["y"], exact, rtol=rough)
    h = np.exp(want["y"])
    np.testing.assert_allclose(want["z"], h / h.sum(1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(want["n"], x.prod(0) / x.max(0), rtol=1e-6)
    target = machine("test")
    for seed in (None, *range(5)):
        dist = distribute.run(module, target, seed=seed)
        got = evaluate_dist(dist, inputs)
        assert all(got[k].tobytes() == want[k].tobytes() for k in want), seed
        if seed in (None, 3):
            program = lower_tile.run(dist, target).program
            for engine in ("jit", "numpy"):
                out = d1rt.load(program).run(inputs, engine=engine)
                assert all(out[k].tobytes() == want[k].tobytes() for k in want), engine
