"""Rules of bitwise ops that are no one-to-one image of a row."""

from __future__ import annotations

import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


def bit_shift(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, direction = given(cx, node), cx.attr(node, "direction")
    if direction not in ("LEFT", "RIGHT"):
        raise cx.refuse(f"BitShift with direction {direction!r}", rule="it is LEFT or RIGHT")
    name = f"graph.shift_{direction.lower()}"
    out: Value = cx.emit(name, [x, given(cx, node, 1)], type=tensor(x).dtype.name)
    return out


def bit_cast(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, to = given(cx, node), cx.element_type(cx.attr(node, "to"))
    if tensor(x).dtype == to:
        return x
    out: Value = cx.emit("graph.bitcast", [x], source=tensor(x).dtype.name, to=to.name)
    return out


RULES = (OnnxRule("BitShift", bit_shift), OnnxRule("BitCast", bit_cast))
