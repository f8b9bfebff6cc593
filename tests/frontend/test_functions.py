"""Functions, ONNX's own and the model's: lowered node by node, against onnxruntime or the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import d1c
import d1c.backend
from d1c.interp import evaluate

Build = Callable[..., onnx.ModelProto]
f32 = np.float32


def close(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    want = ReferenceEvaluator(model).run(None, feeds)
    got = evaluate(d1c.import_onnx(model), feeds)
    for out, expected in zip(model.graph.output, want, strict=True):
        np.testing.assert_allclose(got[out.name], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Celu", {"alpha": 2.0}, 12), ("Celu", {}, 28), ("Selu", {}, 22), ("Selu", {"alpha": 1.0, "gamma": 2.0}, 6),
        ("Shrink", {"lambd": 1.5, "bias": 1.5}, 9), ("ThresholdedRelu", {"alpha": 0.5}, 22), ("Mish", {}, 22),
        ("Swish", {"alpha": 0.5}, 24), ("MeanVarianceNormalization", {"axes": [0, 1]}, 13),
    ],
)  # fmt: skip
def test_of_one_operand(
    model: Build, rng: np.random.Generator, op: str, attributes: dict[str, Any], opset: int
) -> None:
    """Attributes given, attributes by default, bodies written for a later opset than the model's."""
    x = rng.uniform(-4, 4, (3, 5)).astype(f32)
    close(model([helper.make_node(op, ["x"], ["y"], **attributes)], {"x": x}, ["y"], opset=opset), {"x": x})


def test_rms_normalization(model: Build, rng: np.random.Generator) -> None:
    """A body that depends on the operands' types."""
    x, scale = rng.normal(size=(2, 3, 8)).astype(f32), rng.normal(size=8).astype(f32)
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1e-3)
    close(model([node], {"x": x, "scale": scale}, ["y"], opset=23), {"x": x, "scale": scale})


@pytest.mark.parametrize(
    "attributes",
    [{}, {"is_causal": 1}, {"scale": 0.25, "softcap": 2.0}, {"q_num_heads": 4, "kv_num_heads": 2}],
    ids=["plain", "causal", "softcap", "3d-gqa"],
)
def test_attention(model: Build, rng: np.random.Generator, attributes: dict[str, Any]) -> None:
    flat = "q_num_heads" in attributes
    shapes = [(2, 5, 32), (2, 7, 16), (2, 7, 16)] if flat else [(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)]
    feeds = {n: rng.normal(size=s).astype(f32) for n, s in zip("qkv", shapes, strict=True)}
    mask = rng.normal(size=(5, 7)).astype(f32)
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], name="attn", **attributes)
    proto = model([node], {**feeds, "mask": mask}, ["y"], opset=23)
    close(proto, {**feeds, "mask": mask})
    origins = {op.origin for op in d1c.import_onnx(proto).function().block.ops if op.name == "graph.matmul"}
    assert origins and all(o.startswith("attn/") for o in origins)


def own(nodes: list[onnx.NodeProto], name: str = "F", **fields: Any) -> onnx.FunctionProto:
    return helper.make_function(
        "mine",
        name,
        ["a", "b"],
        ["c", "d"],
        nodes,
        [helper.make_opsetid("", 13), helper.make_opsetid("mine", 1)],
        **fields,
    )


def test_the_models_functions(model: Build) -> None:
    """Nested, with an attribute passed on and one by default; their names do not meet those outside; an operand left
    out and an output that nobody reads; the op set is the function's own (Softmax-13 in a model of opset 11)."""
    scale = helper.make_node("Constant", [], ["k"])
    scale.attribute.add(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    axis = helper.make_node("Softmax", ["a"], ["s"])
    axis.attribute.add(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    inner = own(
        [axis, scale, helper.make_node("Mul", ["s", "k"], ["c"]), helper.make_node("Clip", ["c", "", "b"], ["d"])],
        "Inner", attributes=["factor"], attribute_protos=[helper.make_attribute("axis", -1)],
    )  # fmt: skip
    call = helper.make_node("Inner", ["y", "b"], ["c", ""], domain="mine", name="call")
    call.attribute.add(name="factor", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    outer = own([helper.make_node("Neg", ["a"], ["y"]), call, helper.make_node("Abs", ["c"], ["d"])], "Outer",
                attributes=["factor"])  # fmt: skip
    nodes = [
        helper.make_node("Outer", ["x"], ["y", "z"], domain="mine", name="f", factor=2.0),
        helper.make_node("Add", ["y", "x"], ["c"]),
    ]
    proto = model(nodes, {"x": (2, 3, 4)}, ["c", "z"], opset=11)
    proto.functions.extend([inner, outer])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    x = np.linspace(-2, 2, 24, dtype=f32).reshape(2, 3, 4)
    got = evaluate(d1c.import_onnx(proto), {"x": x})
    e = np.exp(-x)
    want = 2 * e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(got["c"], want + x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["z"], want, rtol=1e-5)


def test_a_function_of_constants_is_folded(model: Build) -> None:
    constants = {"start": np.array(1.0, f32), "limit": np.array(4.0, f32), "delta": np.array(1.5, f32)}
    nodes = [helper.make_node("Range", list(constants), ["r"]), helper.make_node("Mul", ["x", "r"], ["y"])]
    module = d1c.import_onnx(model(nodes, {"x": (2,)}, ["y"], constants, opset=27))
    assert [op.name for op in module.function().block.ops] == ["graph.const", "graph.mul", "graph.return"]


# ---- sequences and optionals


def sequence_info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)


def listed(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_sequences_in_and_out() -> None:
    """The elements of an input sequence are ports of their own; an output sequence is a list again."""
    body = helper.make_graph(
        [helper.make_node("Mul", ["e", "x"], ["m"])], "body",
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("m", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("SequenceInsert", ["s", "x"], ["longer"]),
        helper.make_node("SequenceMap", ["longer"], ["y"], body=body),
        helper.make_node("SequenceErase", ["y"], ["z"]),
        helper.make_node("SequenceLength", ["z"], ["n"]),
    ]
    proto = listed(nodes, [sequence_info("s"), helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], ["y", "n"])
    shapes = {"s.0": (3, 2), "s.1": (1, 2)}
    program = d1c.compile(proto, target="test", precision="f32", shapes=shapes)
    s, x = [np.full(shape, i + 1, f32) for i, shape in enumerate(shapes.values())], np.array([2, 3], f32)
    out = program.run({"s": s, "x": x}, engine="numpy")
    assert [a.tolist() for a in out["y"]] == [(a * x).tolist() for a in (*s, x)] and out["n"] == 2
    assert {p.name for p in program.target.inputs} == {"x", "s.0", "s.1"}


@pytest.mark.parametrize("given", [True, False])
def test_optionals(given: bool) -> None:
    """What an If asks of an optional is known at compile time."""

    def graph(name: str, nodes: list[onnx.NodeProto], out: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=out)])

    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    nodes = [
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        helper.make_node(
            "If", ["has"], ["y"],
            then_branch=graph("t", [helper.make_node("OptionalGetElement", ["o"], ["e"])], "e"),
            else_branch=graph("f", [helper.make_node("Neg", ["x"], ["e2"])], "e2"),
        ),
        helper.make_node("Relu", ["y"], ["r"]),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    proto = listed(nodes, [helper.make_value_info("o", kind), x], ["r"])
    rep = d1c.backend.prepare(proto, target="test", engine="numpy")
    value = np.array([1, -1], f32) if given else None
    (r,) = rep.run([value, np.array([3, -4], f32)])
    assert r.tolist() == ([1, 0] if given else [0, 4])


def test_empty_and_absent_outputs() -> None:
    nodes = [
        helper.make_node("SequenceEmpty", [], ["s"]),
        helper.make_node("Optional", [], ["o"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    proto = listed(nodes, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], ["s", "o", "y"])
    out = d1c.compile(proto, target="test").run({"x": np.ones(2, f32)}, engine="numpy")
    assert out["s"] == [] and out["o"] is None and out["y"].tolist() == [1, 1]
