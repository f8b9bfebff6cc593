"""An op is added by one file: those of docs/adding-an-op.md, from ONNX to emulated bits, with nothing else edited."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import d1c
import d1c.ops.graph as folder
from d1c.docgen import op_rows
from d1c.frontend.support import onnx_ops
from d1c.interp import eval_op, evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Op, Value
from d1c.ir.text import parse
from d1c.ir.types import TensorType
from d1c.ops import opdef
from d1c.target.dtypes import from_numpy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-op.md"
FILES = dict(re.findall(r"`d1c/ops/graph/(\w+)\.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.S))
NODES = {"mish": ("Mish", 18, {}), "thresholded_relu": ("ThresholdedRelu", 10, {"alpha": 0.75})}


@pytest.fixture(params=NODES)
def added(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an op whose file lies in a temporary folder that continues d1c/ops/graph."""
    opdef.load_all()
    before = dict(opdef.REGISTRY)
    name: str = request.param
    (tmp_path / f"{name}.py").write_text(FILES[name])
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    monkeypatch.setattr(opdef, "_LOADED", False)
    importlib.invalidate_caches()
    yield name
    opdef.REGISTRY.clear()
    opdef.REGISTRY.update(before)
    sys.modules.pop(f"d1c.ops.graph.{name}", None)
    if hasattr(folder, name):
        delattr(folder, name)


def model_of(name: str) -> onnx.ModelProto:
    """A product, the op behind it, so that it joins the product's kernel, and the op by itself."""
    op_type, opset, attrs = NODES[name]
    w = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node(op_type, ["h"], ["y"], name="first", **attrs),
        helper.make_node(op_type, ["x"], ["z"], name="second", **attrs),
    ]
    tensors = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [6, 12]), ("y", [6, 8]), ("z", [6, 12]))]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [onnx.numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_the_page_has_both_files() -> None:
    assert set(FILES) == set(NODES)
    assert not {f"graph.{name}" for name in NODES} & set(opdef.load_all()), "the page adds ops that d1c does not have"


def test_its_cases_hold(added: str) -> None:
    row = opdef.opdef(f"graph.{added}")
    for case in row.cases:
        attrs, arrays, expected = case(np.random.default_rng(0))
        types = tuple(TensorType(a.shape, from_numpy(a.dtype)) for a in arrays)
        op = Op(row.name, tuple(map(Value, types)), attrs, tuple(map(Value, row.infer(types, attrs))))
        np.testing.assert_allclose(eval_op(op, arrays, {})[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_from_onnx_to_emulated_bits(added: str, precision: str) -> None:
    model = model_of(added)
    x = np.random.default_rng(2).normal(size=(6, 12)).astype(np.float32) * 3
    program = d1c.compile(model, target="test", precision=precision)
    graph, dist = program.module("graph"), program.module("dist")
    bits = evaluate(graph, {"x": x})
    sharded = evaluate_dist(dist, {"x": x})
    emulated = [program.run({"x": x}, engine=engine) for engine in ("numpy", "jit")]
    expected = dict(zip("yz", ReferenceEvaluator(model).run(None, {"x": x}), strict=True))
    for name in "yz":
        tolerance = (1e-5 if precision == "f32" else 2e-2) * np.abs(expected[name]).max()
        np.testing.assert_allclose(bits[name].astype(np.float32), expected[name], rtol=0, atol=tolerance)
        assert sharded[name].tobytes() == bits[name].tobytes()
        assert [outputs[name].tobytes() for outputs in emulated] == [bits[name].tobytes()] * 2


def test_its_text_and_its_lines_in_the_lists(added: str) -> None:
    text = str(d1c.import_onnx(model_of(added)))
    assert f"graph.{added}(" in text and str(parse(text)) == text
    assert added != "thresholded_relu" or "{alpha = 0.75}" in text
    op_type, opset, _ = NODES[added]
    (row,) = [r for r in op_rows() if r.name == f"graph.{added}"]
    assert row.onnx == ((op_type, opset),) and set(row.dtypes) >= {"f32", "bf16"} and row.doc
    assert op_type in {o.name for o in onnx_ops()}


def test_without_the_file_the_node_is_onnx_s_definition() -> None:
    names = {op.name for op in d1c.import_onnx(model_of("mish")).function().block.ops}
    assert "graph.mish" not in names and "graph.tanh" in names
