"""Gradient against differences: a step of each element of each x, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1c
from d1c.errors import UnsupportedOp
from d1c.interp import evaluate

DOMAIN = "ai.onnx.preview.training"


def gradient_model(nodes: list[onnx.NodeProto], xs: dict[str, Any], y: str, constants: Any = None) -> onnx.ModelProto:
    """The gradients `d_x`, and y."""
    nodes = [*nodes, helper.make_node("Gradient", list(xs), [f"d_{x}" for x in xs], "g", domain=DOMAIN, xs=xs, y=y)]
    infos = [helper.make_tensor_value_info(k, TensorProto.DOUBLE, v.shape) for k, v in xs.items()]
    weights = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    outputs = [onnx.ValueInfoProto(name=n) for n in (*(f"d_{x}" for x in xs), y)]
    graph = helper.make_graph(nodes, "g", infos, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)])


def check(nodes: list[onnx.NodeProto], xs: dict[str, np.ndarray], y: str, constants: Any = None) -> None:
    module = d1c.import_onnx(gradient_model(nodes, xs, y, constants))
    got = evaluate(module, xs)
    for name, x in xs.items():
        assert got[f"d_{name}"].shape == x.shape
        for i in np.ndindex(x.shape):
            step = np.zeros(x.shape)
            step[i] = 1e-5
            two = [evaluate(module, {**xs, name: x + s})[y].item() for s in (step, -step)]
            assert got[f"d_{name}"][i] == pytest.approx((two[0] - two[1]) / 2e-5, rel=1e-6, abs=1e-8)


def node(op: str, reads: str, gives: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), [gives], f"my_{op.lower()}", **attributes)


def test_broadcasting_and_reuse(rng: np.random.Generator) -> None:
    """x is read three times, b is broadcast along two dims, u not read at all."""
    nodes = [
        node("Mul", "x x", "p"), node("Sub", "p b", "q"), node("Div", "q x", "r"), node("Neg", "r", "s"),
        node("Exp", "s", "e"), node("ReduceSum", "e", "y", keepdims=0),
    ]  # fmt: skip
    xs = {"x": rng.uniform(0.5, 2, (2, 3)), "b": rng.normal(size=(1,)), "u": rng.normal(size=(2,))}
    check(nodes, xs, "y")


def test_linear_layers(rng: np.random.Generator) -> None:
    """Gemm with a bias, a batched product, a transpose and a mean, whose y is no output of another node."""
    nodes = [
        node("Gemm", "x w b", "h", transB=1), node("Reshape", "h s", "t"), node("MatMul", "t v", "m"),
        node("Transpose", "m", "n", perm=[2, 0, 1]), node("Log", "n", "l"), node("ReduceMean", "l", "y", keepdims=0),
    ]  # fmt: skip
    xs = {k: rng.uniform(0.5, 1, s) for k, s in {"x": (4, 3), "w": (2, 3), "b": (2,), "v": (2, 2)}.items()}
    check(nodes, xs, "y", {"s": np.array([2, 2, 2])})


def test_what_is_no_gradient_is_refused() -> None:
    x = {"x": np.ones(2)}
    with pytest.raises(UnsupportedOp, match="several elements"):
        d1c.import_onnx(gradient_model([node("Neg", "x", "y")], x, "y"))
    with pytest.raises(UnsupportedOp, match="Gradient through"):
        d1c.import_onnx(gradient_model([node("Cos", "x", "c"), node("ReduceSum", "c", "y")], x, "y"))
    other = gradient_model([node("ReduceSum", "x", "y"), node("Neg", "x", "z")], x, "y")
    other.graph.node[-1].input[0] = "z"
    with pytest.raises(UnsupportedOp, match="other values"):
        d1c.import_onnx(other)
