"""f16 and bf16 models: every ONNX node's result is a value of the declared type (policy f32), in as few kernels."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import d1c
from d1c.pipeline import run_pipeline

TYPES = {"f16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def model(code: int, nodes: list[Any], outputs: tuple[str, ...] = ("y",)) -> Any:
    inputs = [helper.make_tensor_value_info(n, code, [4, 8]) for n in ("a", "b")]
    infos = [onnx.ValueInfoProto(name=n) for n in outputs]
    graph = helper.make_graph(nodes, "g", inputs, infos)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


CHAIN = (
    helper.make_node("Mul", ["a", "b"], ["p"], name="n0"), helper.make_node("Add", ["p", "b"], ["s"], name="n1"),
    helper.make_node("Div", ["s", "a"], ["q"], name="n2"), helper.make_node("Sub", ["q", "p"], ["y"], name="n3"),
)  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_every_node_rounds(name: str, rng: np.random.Generator) -> None:
    code, t = TYPES[name]
    a, b = (rng.uniform(0.5, 3, (4, 8)).astype(t) for _ in range(2))
    program = d1c.compile(model(code, list(CHAIN)), target="test", precision="f32")
    p = a * b
    want = (p + b) / a - p
    for engine in ("numpy", "jit"):
        got = program.run({"a": a, "b": b}, engine=engine)["y"]
        assert got.dtype == np.dtype(t)
        np.testing.assert_array_equal(got.view(np.int16), want.view(np.int16))


def test_roundings_stay_inside_one_kernel() -> None:
    module = run_pipeline(d1c.import_onnx(model(TensorProto.FLOAT16, list(CHAIN))), stop_after="fuse").module
    (group,) = [op for op in module.function().block.ops if op.name == "graph.fused"]
    names = [op.name for op in group.regions[0].ops]
    assert names.count("graph.round_to") == 4


def test_policy_bf16_rounds_where_it_stores() -> None:
    text = str(d1c.lower(d1c.import_onnx(model(TensorProto.BFLOAT16, list(CHAIN))), "graph", precision="bf16"))
    assert "round_to" not in text


def test_a_cast_rounds(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT, name="n0"),
        helper.make_node("Sqrt", ["h"], ["r"], name="n1"),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT16, name="n2"),
        helper.make_node("Cast", ["f"], ["y"], to=TensorProto.FLOAT, name="n3"),
    ]
    a = rng.uniform(0, 9, (4, 8)).astype(np.float16)
    b = np.zeros((4, 8), np.float16)
    got = d1c.compile(model(TensorProto.FLOAT16, nodes), target="test", precision="f32").run({"a": a, "b": b})["y"]
    np.testing.assert_array_equal(got, np.sqrt(a.astype(np.float32)).astype(np.float16).astype(np.float32))


def test_values_that_only_move_are_not_rounded_again() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["r"], name="n0"), helper.make_node("Transpose", ["r"], ["t"], name="n1"),
        helper.make_node("Max", ["t", "t"], ["m"], name="n2"), helper.make_node("Neg", ["m"], ["y"], name="n3"),
    ]  # fmt: skip
    module = run_pipeline(d1c.import_onnx(model(TensorProto.FLOAT16, nodes)), stop_after="round-declared").module
    assert "round_to" not in str(module)
