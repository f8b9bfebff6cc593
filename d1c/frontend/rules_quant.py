"""Rules of quantisation: y = saturate(round(x / scale) + zero point) and back, and products of quantised tensors.

Products are exact: operands less their zero points, as integers as narrow as they fit, into a product that accumulates
in 32 bits; scale, rounding and zero point follow it in one kernel. Rounding is to nearest, ties to even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import op
from d1c.frontend.rules_math import given, product, reduce
from d1c.frontend.rules_nn import convolution, to_first
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import F32, I8, I16, I32, U8, DType


def _limits(t: DType) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    return (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1) if t.kind == "int" else (0, (1 << t.bits) - 1)


def _is_zero(cx: ImportContext, value: Value | None) -> bool:
    return value is None or (cx.is_const(value) and not cx.array(value).astype(np.float32).any())


def _in_precision(cx: ImportContext, value: Value, t: DType) -> Value:
    """A float as a value of type `t`: rounded to it, also where the policy computes wider."""
    value = cx.cast(value, t)
    if t.is_float and t.bits == 16 and not cx.is_const(value):
        rounded: Value = cx.emit("graph.round_to", [value], to=t.name)
        return rounded
    return value


# ---- granularity ----------------------------------------------------------------------------------------------------


def _spread(cx: ImportContext, node: onnx.NodeProto, parameter: Value, x: Value) -> Value:
    """A scale or zero point in a shape that broadcasts to x: for all of it, along `axis`, or per block of it."""
    shape, given_shape = tensor(x).shape, tensor(parameter).shape
    if math.prod(given_shape) == 1:
        return cx.reshape(parameter, ())
    rank, block = len(shape), cx.attr(node, "block_size", 0)
    axis = 0 if rank == 1 else normal_axis(cx.attr(node, "axis", 1), rank, cx.origin)
    if len(given_shape) == 1 and not block:
        if given_shape[0] != shape[axis]:
            raise ValueError(f"{given_shape[0]} scales for {shape[axis]} elements along axis {axis}")
        return cx.reshape(parameter, [given_shape[0] if d == axis else 1 for d in range(rank)])
    blocks = given_shape[axis] if len(given_shape) == rank else 0
    others = [n for d, n in enumerate(given_shape) if d != axis] == [n for d, n in enumerate(shape) if d != axis]
    if not block and blocks:
        block = -(-shape[axis] // blocks)
    if not blocks or not others or -(-shape[axis] // block) != blocks:
        raise ValueError(f"scales {list(given_shape)} for {list(shape)} in blocks of {block} along axis {axis}")
    if cx.is_const(parameter):
        data = np.repeat(cx.array(parameter), block, axis)
        return cx.const(np.take(data, np.arange(shape[axis]), axis))
    apart = (*given_shape[: axis + 1], 1, *given_shape[axis + 1 :])
    wide = cx.expand(cx.reshape(parameter, apart), (*apart[: axis + 1], block, *apart[axis + 2 :]))
    return cx.part(cx.reshape(wide, (*shape[:axis], blocks * block, *shape[axis + 1 :])), axis, 0, shape[axis])


# ---- values and codes -----------------------------------------------------------------------------------------------


def _code(cx: ImportContext, ratio: Value, zero: Value | None, t: DType, saturate: bool = True) -> Value:
    """saturate(round(ratio) + zero) as type `t`; a float type rounds in its cast."""
    ratio = cx.cast(ratio, F32)
    if t.kind == "minifloat":
        shifted = ratio if zero is None or _is_zero(cx, zero) else op(cx, "add", ratio, cx.cast(zero, F32))
        return cx.cast(shifted, t, saturate)
    lo, hi = _limits(t)
    value = op(cx, "round", ratio)
    if zero is not None and not _is_zero(cx, zero):
        value = op(cx, "add", value, cx.cast(zero, F32))
    clipped: Value = cx.emit("graph.clip", [value], lo=float(lo), hi=float(hi))
    return cx.cast(clipped, t)


def quantize(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, scale, zero = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    wanted = cx.attr(node, "output_dtype", 0)
    t = tensor(zero).dtype if zero is not None else cx.element_type(wanted) if wanted else U8
    if t.kind not in ("int", "uint", "minifloat") or t.bits > 16:
        raise cx.refuse(f"{node.op_type} to {t}", rule="integers up to 16 bits, float8, float6 and float4")
    asked = cx.attr(node, "precision", 0)
    precision = cx.element_type(asked) if asked else tensor(scale).dtype
    if not precision.is_float:  # a power of two, or integers
        precision = tensor(x).dtype if tensor(x).dtype.is_float else F32
    scale = _spread(cx, node, _in_precision(cx, scale, precision), x)
    zero = None if zero is None or _is_zero(cx, zero) else _spread(cx, node, zero, x)
    ratio = _in_precision(cx, op(cx, "div", _in_precision(cx, x, precision), scale), precision)
    return _code(cx, ratio, zero, t, bool(cx.attr(node, "saturate", 1)))


def dequantize(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """(x - zero) scale, the difference exact, the product in f32 and rounded to the result's type."""
    x, scale, zero = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    wanted = cx.attr(node, "output_dtype", 0)
    t = cx.element_type(wanted) if wanted else tensor(scale).dtype
    number = F32 if tensor(x).dtype.kind == "minifloat" else I32
    value = cx.cast(x, number)
    if zero is not None and not _is_zero(cx, zero):
        value = op(cx, "sub", value, cx.cast(_spread(cx, node, zero, x), number))
    wide = F32 if t.bits <= 32 else t
    return cx.cast(op(cx, "mul", cx.cast(value, wide), _spread(cx, node, cx.cast(scale, wide), x)), t)


def dynamic_quantize(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, Value, Value]:
    """To u8 by the range of the values and 0; a range of 0 has scale 1."""
    x = given(cx, node)
    axes = tuple(range(len(tensor(x).shape)))
    nothing = cx.scalar(0, x)
    top = op(cx, "max", reduce(cx, "max", x, axes, False), nothing)
    bottom = op(cx, "min", reduce(cx, "min", x, axes, False), nothing)
    width = op(cx, "div", op(cx, "sub", top, bottom), cx.scalar(255, x))
    scale = op(cx, "where", op(cx, "equal", top, bottom), cx.scalar(1, x), width)
    zero = _code(cx, op(cx, "div", op(cx, "neg", bottom), scale), None, U8)
    return _code(cx, op(cx, "div", x, scale), zero, U8), scale, zero


# ---- products -------------------------------------------------------------------------------------------------------


def _shifted(cx: ImportContext, x: Value, zero: Value | None) -> Value:
    """x less its zero point: itself where that is 0, otherwise in the narrowest type that holds every difference."""
    t = tensor(x).dtype
    if t.kind == "minifloat":
        value = cx.cast(x, F32)
        return value if _is_zero(cx, zero) or zero is None else op(cx, "sub", value, cx.cast(zero, F32))
    if zero is None or _is_zero(cx, zero):
        return x
    if cx.is_const(x) and cx.is_const(zero):
        data = cx.array(x).astype(np.int32) - cx.array(zero).astype(np.int32)
        least, most = data.min(initial=0), data.max(initial=0)
        fits = (f for f in (I8, U8, I16, I32) if _limits(f)[0] <= least and most <= _limits(f)[1])
        return cx.const(data.astype(next(fits).numpy))
    difference = op(cx, "sub", cx.cast(x, I32), cx.cast(zero, I32))
    return cx.cast(difference, I16 if t.bits <= 8 else I32)


def _rows(cx: ImportContext, parameter: Value | None, operand: Value) -> Value | None:
    """A parameter of operand A of a product: a vector goes along its rows."""
    if parameter is None or len(tensor(operand).shape) < 2 or len(tensor(parameter).shape) != 1:
        return parameter
    return cx.reshape(parameter, () if tensor(parameter).shape == (1,) else (*tensor(parameter).shape, 1))


def _accumulated(cx: ImportContext, a: Value, b: Value) -> Value:
    """numpy's matmul of narrow integers as i32."""
    return product(cx, a, b, I32 if tensor(a).dtype.kind in ("int", "uint") else F32)


def matmul_integer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    a, b = given(cx, node), given(cx, node, 1)
    return _accumulated(cx, _shifted(cx, a, _rows(cx, cx.input(node, 2), a)), _shifted(cx, b, cx.input(node, 3)))


def _requantized(cx: ImportContext, total: Value, scales: Sequence[Value], zero: Value) -> Value:
    """The accumulators times scale a scale b / scale y, as the type of the zero point."""
    of_a, of_b, of_y = (cx.cast(s, F32) for s in scales)
    factor = op(cx, "div", op(cx, "mul", of_a, of_b), of_y)
    return _code(cx, op(cx, "mul", cx.cast(total, F32), factor), zero, tensor(zero).dtype)


def qlinear_matmul(cx: ImportContext, node: onnx.NodeProto) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (given(cx, node, i) for i in range(8))
    total = _accumulated(cx, _shifted(cx, a, _rows(cx, a_zero, a)), _shifted(cx, b, b_zero))
    scales = [_rows(cx, a_scale, a), b_scale, _rows(cx, y_scale, a)]
    zero = _rows(cx, y_zero, a)
    assert zero is not None
    return cx.reshape(_requantized(cx, total, [s for s in scales if s is not None], zero), tensor(total).shape)


def _per_filter(cx: ImportContext, zero: Value | None, w: Value) -> Value | None:
    """The zero point of weights [out, in, taps...], one or one per output channel."""
    if zero is None or math.prod(tensor(zero).shape) == 1:
        return None if zero is None else cx.reshape(zero, ())
    return cx.reshape(zero, (-1 if cx.is_const(zero) else tensor(zero).shape[0], *(1,) * (len(tensor(w).shape) - 1)))


def _conv_total(
    cx: ImportContext, node: onnx.NodeProto, x: Value, x_zero: Value | None, w: Value, w_zero: Value | None
) -> Value:
    """The accumulators of the integer convolution, channels last. Padding is the zero point: 0 after the difference."""
    x_zero = None if x_zero is None else cx.reshape(x_zero, ())
    return convolution(cx, node, _shifted(cx, x, x_zero), _shifted(cx, w, _per_filter(cx, w_zero, w)))


def conv_integer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, w = given(cx, node), given(cx, node, 1)
    return to_first(cx, _conv_total(cx, node, x, cx.input(node, 2), w, cx.input(node, 3)))


def qlinear_conv(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (given(cx, node, i) for i in range(8))
    total = _conv_total(cx, node, x, x_zero, w, w_zero)
    if (bias := cx.input(node, 8)) is not None:
        total = op(cx, "add", total, bias)
    scales = [cx.reshape(s, ()) if math.prod(tensor(s).shape) == 1 else s for s in (x_scale, w_scale, y_scale)]
    return to_first(cx, _requantized(cx, total, scales, cx.reshape(y_zero, ())))


RULES = (
    OnnxRule("QuantizeLinear", quantize), OnnxRule("DequantizeLinear", dequantize),
    OnnxRule("DynamicQuantizeLinear", dynamic_quantize), OnnxRule("MatMulInteger", matmul_integer),
    OnnxRule("ConvInteger", conv_integer), OnnxRule("QLinearMatMul", qlinear_matmul),
    OnnxRule("QLinearConv", qlinear_conv),
)  # fmt: skip
