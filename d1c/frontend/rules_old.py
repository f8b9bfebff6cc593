"""Forms that ops had in the first op sets only: attributes for what became operands, and names for types."""

from __future__ import annotations

import onnx
from onnx import helper

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given
from d1c.frontend.rules_resize import resize
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


def cast(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """`to` is a type's name."""
    name = cx.attr(node, "to")
    if name not in onnx.TensorProto.DataType.keys():
        raise ValueError(f"no type {name!r}")
    return cx.cast(given(cx, node), cx.element_type(onnx.TensorProto.DataType.Value(name)))


def tile(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """`tiles` copies one after the other along one axis."""
    x = given(cx, node)
    tiles, axis = (cx.static_ints(node, i, name) for i, name in ((1, "tiles"), (2, "axis")))
    if not tiles or not axis:
        raise ValueError("tiles or axis is left out")
    return cx.concat([x] * tiles[0], normal_axis(axis[0], len(tensor(x).shape), cx.origin))


def upsample(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Scales of the last two of four dims, as attributes."""
    scales = [1.0, 1.0, cx.attr(node, "height_scale"), cx.attr(node, "width_scale")]
    return resize(cx, helper.make_node("Upsample", node.input, node.output, mode=cx.attr(node, "mode"), scales=scales))


RULES = (
    OnnxRule("Cast", cast), OnnxRule("Tile", tile, static=(1, 2)), OnnxRule("Upsample", upsample),
)  # fmt: skip
