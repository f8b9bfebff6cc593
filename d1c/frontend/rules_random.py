"""Random ops: counter-based, so that the same model gives the same numbers on every machine, plan and run.

A node's key is its `seed` (0 where it has none), its stream the number of random nodes before it, its counter the
element's index. All numbers are made on the cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.expr import Expr
from d1c.frontend.indexing import prefix
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import Importer, OnnxRule
from d1c.target.dtypes import F32, I64


def _key(cx: ImportContext, node: onnx.NodeProto) -> tuple[int, int]:
    """The node's seed and stream."""
    seed = float(cx.attr(node, "seed", 0.0))
    key = int(seed) if seed == int(seed) else int(np.float32(seed).view(np.uint32))
    return key % 2**64, cx.next_stream()


def words(cx: ImportContext, node: onnx.NodeProto, shape: tuple[int, ...], count: int = 1) -> list[Expr]:
    """`count` independent uniform values in [0, 1) per element, multiples of 2^-24, f32."""
    seed, stream = _key(cx, node)
    index = cx.const(np.arange(math.prod(shape), dtype=np.int64).reshape(shape))
    out = []
    for word in range(count):
        bits = cx.emit("graph.philox", [index], seed=seed, stream=stream, word=word)
        high = cx.cast(cx.emit("graph.div", [bits, cx.scalar(256, bits)]), F32)
        out.append(Expr(cx, high) * 2.0**-24)
    return out


def _uniform(cx: ImportContext, node: onnx.NodeProto, shape: tuple[int, ...]) -> Expr:
    low, high = float(cx.attr(node, "low", 0.0)), float(cx.attr(node, "high", 1.0))
    return words(cx, node, shape)[0] * (high - low) + low


def _normal(cx: ImportContext, node: onnx.NodeProto, shape: tuple[int, ...]) -> Expr:
    """Box and Muller's method; 1 - u is in (0, 1]."""
    u, v = words(cx, node, shape, 2)
    radius = ((1.0 - u).log() * -2.0).sqrt()
    return radius * (v * (2 * math.pi)).cos() * float(cx.attr(node, "scale", 1.0)) + float(cx.attr(node, "mean", 0.0))


def _draw(build: Callable[[ImportContext, onnx.NodeProto, tuple[int, ...]], Expr], like: bool) -> Importer:
    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        code = cx.attr(node, "dtype")
        if like:
            x = tensor(given(cx, node))
            shape, kind = x.shape, x.dtype if code is None else cx.element_type(code)
        else:
            shape, kind = tuple(cx.attr(node, "shape")), F32 if code is None else cx.element_type(code)
        return cx.cast(build(cx, node, shape).value, kind)

    return rule


def bernoulli(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    code = cx.attr(node, "dtype")
    drawn = words(cx, node, tensor(x).shape)[0] < Expr(cx, cx.cast(x, F32))
    return cx.cast(drawn.value, tensor(x).dtype if code is None else cx.element_type(code))


def multinomial(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """[N, classes] log probabilities -> [N, sample_size] class numbers: how many cumulative sums are at most u."""
    logits = given(cx, node)
    rows, classes = tensor(logits).shape
    code, size = cx.attr(node, "dtype", onnx.TensorProto.INT32), int(cx.attr(node, "sample_size", 1))
    x = Expr(cx, cx.cast(logits, F32))
    weight = (x - Expr(cx, cx.emit("graph.reduce_max", [x.value], axes=(1,), keepdims=True))).exp().value
    cumulative = prefix(cx, weight, 1, "sum")
    total = cx.part(cumulative, 1, classes - 1, 1)
    u = words(cx, node, (rows, size))[0] * Expr(cx, total)
    sums, drawn = cx.reshape(cumulative, (rows, 1, classes)), cx.reshape(u.value, (rows, size, 1))
    passed = cx.emit("graph.less_equal", [sums, drawn])
    counted = cx.emit("graph.reduce_sum", [cx.cast(passed, I64)], axes=(2,), keepdims=False)
    last = cx.emit("graph.min", [counted, cx.scalar(classes - 1, counted)])
    return cx.cast(last, cx.element_type(code))


def dropout(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """At inference nothing is dropped, and the mask, if read, is all true (below opset 10 of x's type). In training
    each element stays with probability 1 - ratio and is scaled by its inverse."""
    x = given(cx, node)
    kind, shape = tensor(x).dtype, tensor(x).shape
    training = cx.static(node, 2, "training_mode")
    ratio = cx.input(node, 1)
    if training is None or not bool(training.item()):
        return (x, cx.const(np.ones(shape, np.bool_ if cx.opset >= 10 else kind.numpy))) if cx.wants(node, 1) else (x,)
    part = Expr(cx, cx.reshape(ratio, ())) if ratio is not None else Expr(cx, cx.scalar(0.5, x))
    mask = words(cx, node, shape)[0].call("greater_equal", Expr(cx, cx.cast(part.value, F32)))
    scaled = Expr(cx, x) / Expr(cx, cx.cast((1.0 - part).value, kind))
    return mask.where(scaled, 0.0).value, mask.value


RULES = (
    OnnxRule("RandomUniform", _draw(_uniform, False)), OnnxRule("RandomUniformLike", _draw(_uniform, True)),
    OnnxRule("RandomNormal", _draw(_normal, False)), OnnxRule("RandomNormalLike", _draw(_normal, True)),
    OnnxRule("Bernoulli", bernoulli), OnnxRule("Multinomial", multinomial),
    OnnxRule("Dropout", dropout, static=(2,)),
)  # fmt: skip
