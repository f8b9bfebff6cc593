"""Contractions whose second operand is read by something else too."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import d1c

NETS = {
    "x @ x": [("MatMul", ["x", "x"], "y")],
    "x @ x + x": [("MatMul", ["x", "x"], "z"), ("Add", ["z", "x"], "y")],
    "x @ x.T + x.T": [("Transpose", ["x"], "t"), ("MatMul", ["x", "t"], "z"), ("Add", ["z", "t"], "y")],
}


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_second_operand_with_other_readers(name: str, precision: str, rng: np.random.Generator) -> None:
    nodes = [helper.make_node(op, ins, [out]) for op, ins, out in NETS[name]]
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, 5]) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", port[:1], port[1:]), ir_version=8)
    x = rng.standard_normal((5, 5)).astype(np.float32)
    got = d1c.compile(model, target="test", precision=precision).run({"x": x}, engine="numpy")["y"]
    want = {"x @ x": x @ x, "x @ x + x": x @ x + x, "x @ x.T + x.T": x @ x.T + x.T}[name]
    np.testing.assert_allclose(got.astype(np.float32), want, atol=1e-5 if precision == "f32" else 0.1)
