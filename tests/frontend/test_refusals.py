"""Refusals: all at once, before anything is lowered, at any depth; and what real files do that is no error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import d1c
from d1c.errors import ShapeUnbound, UnsupportedOp
from d1c.interp import evaluate

Build = Callable[..., onnx.ModelProto]


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedOp) as caught:
        d1c.import_onnx(model)
    return str(caught.value)


def branch(name: str, op: str, **attributes: Any) -> onnx.GraphProto:
    node = helper.make_node(op, ["x"], [f"{name}_y"], name=f"{name}_node", **attributes)
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)])


def test_nodes_in_subgraphs_and_functions_are_listed_with_those_outside(model: Build) -> None:
    """One in each branch of an If, one in a function in a function, one outside; the shapes are not even bound."""
    inner = helper.make_function(
        "mine", "Inner", ["a"], ["b"], [helper.make_node("Strange", ["a"], ["b"], name="deep", domain="vendor")],
        [helper.make_opsetid("vendor", 3)],
    )  # fmt: skip
    outer = helper.make_function(
        "mine", "Outer", ["a"], ["b"], [helper.make_node("Inner", ["a"], ["b"], name="call", domain="mine")],
        [helper.make_opsetid("mine", 1)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Outer", ["x"], ["o"], name="f", domain="mine"),
        helper.make_node("StringSplit", ["x"], ["s"], name="split"),
        helper.make_node(
            "If", ["c"], ["y"], name="if", then_branch=branch("t", "Foo", domain="vendor"),
            else_branch=branch("e", "Bar", domain="vendor"),
        ),
    ]  # fmt: skip
    inputs = {"x": ["batch"], "c": np.zeros((), np.bool_)}
    proto = model(nodes, inputs, ["o", "s", "y"], opset=20)
    proto.functions.extend([inner, outer])
    proto.opset_import.extend([helper.make_opsetid("mine", 1), helper.make_opsetid("vendor", 1)])
    text = refusal(proto)
    assert "f/call/deep: vendor.Strange (opset 3)" in text and "split: StringSplit (opset 20)" in text
    assert "vendor.Foo" in text and "vendor.Bar" in text


def test_a_branch_that_is_not_taken_may_hold_anything(model: Build) -> None:
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Bar", domain="vendor")
    )
    module = d1c.import_onnx(model([node], {"x": (2,)}, ["y"], {"c": np.array(True)}))
    assert evaluate(module, {"x": np.array([1, 2], np.float32)})["y"].tolist() == [-1, -2]


def test_strings_are_refused_wherever_they_are(model: Build) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], name="to_text", to=TensorProto.STRING),
        helper.make_node("Constant", [], ["t"], name="word", value_string="a"),
        helper.make_node("StringConcat", ["s", "names"], ["y"], name="join"),
        helper.make_node("ImageDecoder", ["x"], ["z"], name="decode"),
    ]
    proto = model(nodes, {"x": (2,)}, ["y", "z", "t"], opset=20)
    proto.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"b"]))
    proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, [2]))
    text = refusal(proto)
    for part in ("to_text: Cast", "word: Constant", "join: StringConcat", "decode: ImageDecoder", "names, words"):
        assert part in text


def test_check_of_a_rule_sees_attributes(model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule may refuse a form before anything is lowered: both nodes are named, though the first rule would run."""
    from d1c.frontend import importer
    from d1c.ops.opdef import OnnxRule

    def check(node: Any, opset: int) -> str | None:
        return "alpha is 3" if any(a.name == "alpha" and a.f == 3.0 for a in node.attribute) else None

    def build(cx: Any, node: Any) -> Any:
        raise AssertionError("lowered")

    rules = {**importer.collect_rules(), ("", "Elu"): [OnnxRule("Elu", build, check=check)]}
    monkeypatch.setattr(importer, "collect_rules", lambda: rules)
    nodes = [helper.make_node("Elu", ["x"], [f"y{i}"], name=f"n{i}", alpha=3.0) for i in range(2)]
    text = refusal(model(nodes, {"x": (2,)}, ["y0", "y1"]))
    assert "n0: Elu (opset 17), alpha is 3" in text and "n1: Elu (opset 17), alpha is 3" in text


def test_a_function_that_calls_itself(model: Build) -> None:
    body = [helper.make_node("Self", ["a"], ["b"], name="again", domain="mine")]
    proto = model([helper.make_node("Self", ["x"], ["y"], name="f", domain="mine")], {"x": (2,)}, ["y"])
    proto.functions.append(helper.make_function("mine", "Self", ["a"], ["b"], body, [helper.make_opsetid("mine", 1)]))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    assert "f/again" in refusal(proto) and "calls itself" in refusal(proto)


# ---- what real files do


def test_unsorted_nodes(model: Build) -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])]
    module = d1c.import_onnx(model(nodes, {"x": (2,)}, ["y"]))
    assert evaluate(module, {"x": np.array([-1, 2], np.float32)})["y"].tolist() == [1, 0]


@pytest.mark.parametrize("dim", [-1, "?", "", "None"])
def test_dims_that_say_nothing_are_bound_by_shape(model: Build, dim: Any) -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    place = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(dim, int):
        place.dim_value = dim
    else:
        place.dim_param = dim
    with pytest.raises(ShapeUnbound, match="--shape x=1,3"):
        d1c.import_onnx(proto)
    assert d1c.import_onnx(proto, shapes={"x": (4, 3)}).function().block.args[0].type.shape == (4, 3)


def test_shape_wins_over_fixed_dims(model: Build) -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    assert d1c.import_onnx(proto, shapes={"x": (5, 7)}).function().block.args[0].type.shape == (5, 7)


def test_unused_vendor_domains(model: Build) -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2,)}, ["y"])
    proto.opset_import.extend([helper.make_opsetid("com.vendor.x", 1), helper.make_opsetid("ai.onnx.ml", 5)])
    d1c.import_onnx(proto)


def test_empty_tensors_with_several_data_fields(model: Build) -> None:
    """Resize with `roi` and `scales` empty, one with data in the fields of another type."""
    nodes = [helper.make_node("Resize", ["x", "roi", "scales", "sizes"], ["y"], name="up")]
    proto = model(nodes, {"x": (1, 1, 2, 2)}, ["y"], {"sizes": np.array([1, 1, 4, 4])})
    for name in ("roi", "scales"):
        t = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[0], raw_data=b"")
        proto.graph.initializer.append(t)
    proto.graph.initializer[-1].int32_data.append(7)
    out = evaluate(d1c.import_onnx(proto), {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)})["y"]
    assert out.shape == (1, 1, 4, 4) and out[0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("axis", [0, 1])
def test_broadcasting_before_opset_7(model: Build, axis: int) -> None:
    """`axis` says where operand 1 starts; numpy would align it at the end."""
    node = helper.make_node("Sub", ["x", "b"], ["y"], broadcast=1, axis=axis)
    x, b = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.arange(2 + axis, dtype=np.float32)
    want = x - b.reshape((1,) * axis + (-1,) + (1,) * (2 - axis))
    module = d1c.import_onnx(model([node], {"x": x, "b": b}, ["y"], opset=6))
    assert np.array_equal(evaluate(module, {"x": x, "b": b})["y"], want)
    folded = d1c.import_onnx(model([node], {}, ["y"], {"x": x, "b": b}, opset=6))
    assert np.array_equal(evaluate(folded, {})["y"], want)
