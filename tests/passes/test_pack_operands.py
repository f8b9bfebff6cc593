"""Contractions whose second operand is read by something else too."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1c
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.passes import pack_operands
from d1c.passes.rebuild import shape as shape_of
from d1c.pipeline import GRAPH_PASSES, run_pipeline

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


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_large_images_get_an_even_number_of_channels(
    channels: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as with pairs filled up in windows, also beside what is not finite; five channels of 25 taps would
    be summed in other slices."""
    shape = [4, channels, 5, 5]
    x, w = rng.standard_normal((1, channels, 9, 8)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    x[0, 0, 4, 4], x[0, -1, 6, 2] = np.inf, np.nan
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("y", None))]
    graph = helper.make_graph([conv], "g", ports[:1], ports[1:], [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    last = GRAPH_PASSES.index("pack-operands")
    module = run_pipeline(import_onnx(model), GRAPH_PASSES[:last], options={"policy": "bf16"}).module
    small = run_pipeline(module, ["pack-operands"]).module
    assert all(op.name != "graph.pad" for op in small.function().block.ops)
    monkeypatch.setattr(pack_operands, "LARGE", 0)
    large = run_pipeline(module, ["pack-operands"]).module
    (want,), (got,) = (evaluate(m, {"x": x}).values() for m in (small, large))
    np.testing.assert_array_equal(got, want)
    ops = large.function().block.ops
    (found,) = (o for op in ops for r in op.regions for o in r.ops if o.name == "graph.conv")
    assert shape_of(found.operands[0])[-1] == (channels if channels == 5 else channels + 1)
    assert sum(op.name == "graph.pad" for op in ops) == (channels != 5)
