"""Rules of arithmetic: products, normalisations, reductions, activations that decompose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.ir.core import Value
from d1c.ops.opdef import Importer, OnnxRule
from d1c.target.dtypes import BF16, BOOL, F16, F32, F64, I32, I64, DType


def given(cx: ImportContext, node: onnx.NodeProto, index: int = 0) -> Value:
    """Operand `index`, which must be there."""
    value = cx.input(node, index)
    if not isinstance(value, Value):
        raise ValueError(f"operand {index} is left out" if value is None else f"operand {index} is no tensor")
    return value


def wide(x: Value) -> DType:
    """The type in which constants meet x: f64 for f64, f32 for all others."""
    return F64 if tensor(x).dtype == F64 else F32


def matmul(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return product(cx, given(cx, node), given(cx, node, 1))


def product(cx: ImportContext, a: Value, b: Value, to: DType | None = None) -> Value:
    """numpy's matmul: a vector is a row on the left, a column on the right, and leaves no dim behind. The result has
    type `to`, without it that of `a`."""
    left, right = tensor(a).shape, tensor(b).shape
    if len(left) == 1:
        a = cx.reshape(a, (1, *left))
    if len(right) == 1:
        b = cx.reshape(b, (*right, 1))
    out = cx.cast(cx.emit("graph.matmul", [a, b], packed=False), to or tensor(a).dtype)
    shape = list(tensor(out).shape)
    if len(right) == 1:
        del shape[-1]
    if len(left) == 1:
        del shape[-1 if len(right) == 1 else -2]
    return cx.reshape(out, shape)


def gemm(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """alpha A B + beta C; factors of 1 leave nothing behind."""
    a, b, c = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    if cx.attr(node, "transA", 0):
        a = cx.transpose(a, (1, 0))
    if cx.attr(node, "transB", 0):
        b = cx.transpose(b, (1, 0))
    alpha, beta = cx.attr(node, "alpha", 1.0), cx.attr(node, "beta", 1.0)
    y = _times(cx, product(cx, a, b), alpha, "alpha")
    if c is None or beta == 0.0:
        return y
    total: Value = cx.emit("graph.add", [y, _times(cx, c, beta, "beta")])
    return total


def _times(cx: ImportContext, x: Value, factor: float, name: str) -> Value:
    """x times an attribute of Gemm."""
    if factor == 1.0:
        return x
    if not tensor(x).dtype.is_float and factor != int(factor):
        raise cx.refuse(f"Gemm of {tensor(x).dtype} with {name} = {factor:g}", rule="integers have integer factors")
    if cx.is_const(x):
        return cx.const(cx.array(x) * np.asarray(factor, cx.array(x).dtype))
    out: Value = cx.emit("graph.mul", [x, cx.scalar(factor, x)])
    return out


def reduce(cx: ImportContext, kind: str, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """graph.reduce_`kind` over `axes` (counted from 0); over none it is x itself."""
    if not axes:
        return x
    if tensor(x).dtype == BOOL:
        return cx.cast(reduce(cx, kind, cx.cast(x, I32), axes, keepdims), BOOL)
    out: Value = cx.emit(f"graph.reduce_{kind}", [x], axes=tuple(sorted(axes)), keepdims=keepdims)
    return cx.cast(out, tensor(x).dtype)


def mean(cx: ImportContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """Sum divided by the count (a division, not a product with the reciprocal: N8), in the type that accumulates."""
    total = cx.emit("graph.reduce_sum", [x], axes=tuple(sorted(axes)), keepdims=keepdims) if axes else x
    count = math.prod(tensor(x).shape[a] for a in axes)
    return cx.cast(cx.emit("graph.div", [total, cx.scalar(count, total)]), tensor(x).dtype)


def _axes(cx: ImportContext, node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    axes = cx.static_ints(node, 1, "axes")
    if not axes:
        return () if cx.attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({normal_axis(a, rank, cx.origin) for a in axes}))


def _reduction(
    build: Callable[[ImportContext, Value, tuple[int, ...], bool], Value],
) -> Importer:
    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        x = given(cx, node)
        return build(cx, x, _axes(cx, node, len(tensor(x).shape)), bool(cx.attr(node, "keepdims", 1)))

    return rule


def _square(cx: ImportContext, x: Value) -> Value:
    out: Value = cx.emit("graph.mul", [x, x])
    return out


def _real(
    build: Callable[[ImportContext, Value, tuple[int, ...], bool], Value],
) -> Importer:
    """A reduction with a root or a logarithm: of integers in f64, whose result is truncated."""

    def rule(cx: ImportContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
        kind = tensor(x).dtype
        return cx.cast(build(cx, x if kind.is_float else cx.cast(x, F64), axes, keepdims), kind)

    return _reduction(rule)


def _log_sum_exp(cx: ImportContext, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """log(sum(exp(x - m))) + m, m the maximum, brought back to the finite numbers where it is infinite (inf - inf)."""
    top = reduce(cx, "max", x, axes, True)
    if tensor(x).dtype.is_float:
        limit = float(ml_dtypes.finfo(tensor(x).dtype.numpy).max)  # type: ignore[no-untyped-call]
        top = cx.emit("graph.max", [cx.emit("graph.min", [top, cx.scalar(limit, top)]), cx.scalar(-limit, top)])
    total = reduce(cx, "sum", cx.emit("graph.exp", [cx.emit("graph.sub", [x, top])]), axes, True)
    out: Value = cx.emit("graph.add", [cx.emit("graph.log", [total]), top])
    kept = [n for i, n in enumerate(tensor(x).shape) if i not in axes]
    return out if keepdims else cx.reshape(out, kept)


def _softmax_parts(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, tuple[int, ...]]:
    """The operand and the axes that one distribution spans: before opset 13 all from `axis` on, then it alone."""
    x = given(cx, node)
    rank = len(tensor(x).shape)
    axis = cx.attr(node, "axis", -1 if cx.opset >= 13 else 1)
    if cx.opset >= 13:
        return x, (normal_axis(axis, rank, cx.origin),)
    return x, tuple(range(axis + rank if axis < 0 else axis, rank))


def softmax(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """m = max; e = exp(x - m); y = e / sum(e) (N9). In f16 and bf16 every step is rounded, as those of ONNX's function
    of the op are."""
    x, axes = _softmax_parts(cx, node)
    narrow = tensor(x).dtype in (F16, BF16)

    def step(value: Value) -> Value:
        out: Value = cx.emit("graph.round_to", [value], to=tensor(x).dtype.name) if narrow else value
        return out

    e = step(cx.emit("graph.exp", [step(cx.emit("graph.sub", [x, reduce(cx, "max", x, axes, True)]))]))
    out: Value = cx.emit("graph.div", [e, step(reduce(cx, "sum", e, axes, True))])
    return out


def log_softmax(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return log_shares(cx, *_softmax_parts(cx, node))


def log_shares(cx: ImportContext, x: Value, axes: tuple[int, ...]) -> Value:
    """x - m - log(sum(exp(x - m))), m the maximum over `axes`."""
    d = cx.emit("graph.sub", [x, reduce(cx, "max", x, axes, True)])
    total = reduce(cx, "sum", cx.emit("graph.exp", [d]), axes, True)
    out: Value = cx.emit("graph.sub", [d, cx.emit("graph.log", [total])])
    return out


def normalise(cx: ImportContext, x: Value, axes: tuple[int, ...], epsilon: float) -> tuple[Value, ...]:
    """(d / sqrt(var + eps), mean, var, sqrt(var + eps)) with d = x - mean and var = mean(d d): two passes (N8). In f32,
    also of narrower floats."""
    x = cx.cast(x, wide(x))
    m = mean(cx, x, axes, True)
    d = cx.emit("graph.sub", [x, m])
    var = mean(cx, _square(cx, d), axes, True)
    deviation = cx.emit("graph.sqrt", [cx.emit("graph.add", [var, cx.scalar(epsilon, var)])])
    return cx.emit("graph.div", [d, deviation]), m, var, deviation


def layer_norm(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    x, scale, bias = given(cx, node), cx.input(node, 1), cx.input(node, 2)
    kind, rank = tensor(x).dtype, len(tensor(x).shape)
    axes = tuple(range(normal_axis(cx.attr(node, "axis", -1), rank, cx.origin), rank))
    y, m, _, deviation = normalise(cx, x, axes, cx.attr(node, "epsilon", 1e-5))
    y = cx.cast(y, kind)
    if scale is not None:
        y = cx.emit("graph.mul", [y, scale])
    if bias is not None:
        y = cx.emit("graph.add", [y, bias])
    if not (cx.wants(node, 1) or cx.wants(node, 2)):
        return (y,)
    stash = cx.element_type(cx.attr(node, "stash_type", onnx.TensorProto.FLOAT))
    return y, cx.cast(m, stash), cx.cast(cx.emit("graph.reciprocal", [deviation]), stash)


def gelu(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """0.5 x (1 + erf(x / sqrt 2)), or with approximate="tanh" the tanh of a cubic."""
    x = given(cx, node)
    if cx.attr(node, "approximate", "none") == "tanh":
        cube = cx.emit("graph.mul", [_square(cx, x), x])
        inner = cx.emit("graph.add", [x, cx.emit("graph.mul", [cube, cx.scalar(0.044715, x)])])
        bent = cx.emit("graph.tanh", [cx.emit("graph.mul", [inner, cx.scalar(math.sqrt(2 / math.pi), x)])])
    else:
        bent = cx.emit("graph.erf", [cx.emit("graph.mul", [x, cx.scalar(math.sqrt(0.5), x)])])
    half = cx.emit("graph.mul", [x, cx.scalar(0.5, x)])
    out: Value = cx.emit("graph.mul", [half, cx.emit("graph.add", [bent, cx.scalar(1.0, x)])])
    return out


def clip(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Bounds are attributes up to opset 10, then operands; bounds known only at run time become max and min."""
    x = given(cx, node)
    bounds = [cx.input(node, 1), cx.input(node, 2)] if cx.opset >= 11 else [None, None]
    fixed = all(b is None or cx.is_const(b) for b in bounds)
    if fixed and tensor(x).dtype.is_float:
        numbers: list[float | None] = [None if b is None else float(cx.array(b).reshape(-1)[0]) for b in bounds]
        if cx.opset < 11:
            most = float(np.finfo(np.float32).max) if cx.opset >= 6 else None  # what opset 6 to 10 names as default
            numbers = [cx.attr(node, "min", None if most is None else -most), cx.attr(node, "max", most)]
        lo, hi = numbers
        if lo is None and hi is None:
            return x
        out: Value = cx.emit("graph.clip", [x], lo=lo, hi=hi)
        return out
    for name, bound in zip(("graph.max", "graph.min"), bounds, strict=True):
        if bound is not None:
            x = cx.emit(name, [x, cx.reshape(bound, ())])
    return x


def power(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Small constant exponents as products, roots and reciprocals, which are rounded correctly; others by graph.pow."""
    x, y = given(cx, node), given(cx, node, 1)
    if cx.is_const(y) and cx.array(y).size == 1 and len(tensor(y).shape) <= len(tensor(x).shape):
        match float(cx.array(y).reshape(-1)[0]):
            case 1.0:
                return x
            case 2.0:
                return _square(cx, x)
            case 3.0:
                cube: Value = cx.emit("graph.mul", [_square(cx, x), x])
                return cube
            case 4.0:
                return _square(cx, _square(cx, x))
            case 0.5 if tensor(x).dtype.is_float:
                # unlike a root, the power of -inf is inf and that of -0 is 0
                root = cx.emit("graph.sqrt", [cx.emit("graph.add", [x, cx.scalar(0.0, x)])])
                lowest = cx.emit("graph.equal", [x, cx.scalar(-math.inf, x)])
                return cx.emit("graph.where", [lowest, cx.scalar(math.inf, x), root])  # type: ignore[no-any-return]
            case -1.0 if tensor(x).dtype.is_float:
                inverse: Value = cx.emit("graph.reciprocal", [x])
                return inverse
    if tensor(x).dtype.is_float:
        wide = tensor(x).dtype if tensor(x).dtype.bits == 64 or tensor(y).dtype == tensor(x).dtype else F32
        return cx.cast(cx.emit("graph.pow", [cx.cast(x, wide), cx.cast(y, wide)]), tensor(x).dtype)
    exact = cx.emit("graph.int_pow", [cx.cast(x, I64), cx.cast(y, I64)])
    if not tensor(y).dtype.is_float:
        return cx.cast(exact, tensor(x).dtype)
    # An exponent that is no integer: what lies within the error of graph.pow around an integer is that integer.
    y = cx.cast(y, F32)
    p = cx.emit("graph.pow", [cx.cast(x, F32), y])
    near = cx.emit("graph.round", [p])
    off = cx.emit("graph.abs", [cx.emit("graph.sub", [p, near])])
    close = cx.emit("graph.less_equal", [off, cx.emit("graph.mul", [p, cx.scalar(1e-6, p)])])
    rough = cx.cast(cx.emit("graph.where", [close, near, p]), I64)
    whole = cx.emit("graph.equal", [cx.emit("graph.floor", [y]), y])
    return cx.cast(cx.emit("graph.where", [whole, exact, rough]), tensor(x).dtype)


def _fold_operands(name: str) -> Importer:
    """Max, Min, Sum: any number of operands, combined from the left."""

    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        first, *others = (v for v in cx.inputs(node) if v is not None)
        total: Value = first
        for other in others:
            total = cx.emit(name, [total, other])
        return total

    return rule


def mean_of(cx: ImportContext, node: onnx.NodeProto) -> Value:
    total: Value = _fold_operands("graph.add")(cx, node)
    out: Value = cx.emit("graph.div", [total, cx.scalar(len(node.input), total)])
    return out


def cast(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return _cast(cx, node, cx.element_type(cx.attr(node, "to")))


def cast_like(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return _cast(cx, node, tensor(given(cx, node, 1)).dtype)


def _cast(cx: ImportContext, node: onnx.NodeProto, to: DType) -> Value:
    return cx.cast(given(cx, node), to, bool(cx.attr(node, "saturate", 1)), cx.attr(node, "round_mode", "up"))


def leaky_relu(cx: ImportContext, node: onnx.NodeProto) -> Any:
    return cx.emit("graph.leaky_relu", [given(cx, node)], alpha=cx.attr(node, "alpha", 0.01))


def hard_sigmoid(cx: ImportContext, node: onnx.NodeProto) -> Any:
    x = given(cx, node)
    return cx.emit("graph.hard_sigmoid", [x], alpha=cx.attr(node, "alpha", 0.2), beta=cx.attr(node, "beta", 0.5))


def modulo(cx: ImportContext, node: onnx.NodeProto) -> Any:
    return cx.emit("graph.mod", [given(cx, node), given(cx, node, 1)], fmod=bool(cx.attr(node, "fmod", 0)))


def elu(cx: ImportContext, node: onnx.NodeProto) -> Any:
    """x < 0: alpha (exp(x) - 1), otherwise x."""
    return _bent(cx, given(cx, node), cx.attr(node, "alpha", 1.0))


def celu(cx: ImportContext, node: onnx.NodeProto) -> Any:
    """x < 0: alpha (exp(x / alpha) - 1), otherwise x."""
    alpha = cx.attr(node, "alpha", 1.0)
    return _bent(cx, given(cx, node), alpha, over=alpha)


def selu(cx: ImportContext, node: onnx.NodeProto) -> Any:
    """gamma times Elu; before opset 6 the numbers were shorter."""
    alpha, gamma = (1.6732, 1.0507) if cx.opset < 6 else (1.6732632423543772, 1.0507009873554805)
    y = _bent(cx, given(cx, node), cx.attr(node, "alpha", alpha))
    return cx.emit("graph.mul", [y, cx.scalar(cx.attr(node, "gamma", gamma), y)])


def _bent(cx: ImportContext, x: Value, alpha: float, over: float = 1.0) -> Value:
    """x < 0: alpha (exp(x / over) - 1), otherwise x."""
    below = cx.emit("graph.min", [x, cx.scalar(0.0, x)])
    below = below if over == 1.0 else cx.emit("graph.div", [below, cx.scalar(over, x)])
    below = cx.emit("graph.mul", [cx.emit("graph.expm1", [below]), cx.scalar(alpha, x)])
    out: Value = cx.emit("graph.where", [cx.emit("graph.less", [x, cx.scalar(0.0, x)]), below, x])
    return out


def softplus(cx: ImportContext, node: onnx.NodeProto) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    x = given(cx, node)
    e = cx.emit("graph.exp", [cx.emit("graph.neg", [cx.emit("graph.abs", [x])])])
    tail = cx.emit("graph.log1p", [e])
    return cx.emit("graph.add", [cx.emit("graph.relu", [x]), tail])


def softsign(cx: ImportContext, node: onnx.NodeProto) -> Any:
    x = given(cx, node)
    return cx.emit("graph.div", [x, cx.emit("graph.add", [cx.emit("graph.abs", [x]), cx.scalar(1.0, x)])])


RULES = (
    OnnxRule("MatMul", matmul), OnnxRule("Gemm", gemm), OnnxRule("Softmax", softmax),
    OnnxRule("LogSoftmax", log_softmax),
    OnnxRule("LayerNormalization", layer_norm), OnnxRule("Gelu", gelu), OnnxRule("Gelu", gelu, domain="com.microsoft"),
    OnnxRule("Clip", clip), OnnxRule("Pow", power), OnnxRule("Cast", cast, 6), OnnxRule("CastLike", cast_like),
    OnnxRule("Max", _fold_operands("graph.max")), OnnxRule("Min", _fold_operands("graph.min")),
    OnnxRule("Sum", _fold_operands("graph.add")), OnnxRule("Mean", mean_of),
    OnnxRule("LeakyRelu", leaky_relu), OnnxRule("HardSigmoid", hard_sigmoid), OnnxRule("Mod", modulo),
    OnnxRule("Elu", elu), OnnxRule("Celu", celu), OnnxRule("Selu", selu), OnnxRule("Softplus", softplus),
    OnnxRule("Softsign", softsign),
    OnnxRule("ReduceMean", _reduction(mean), static=(1,)),
    OnnxRule("ReduceSum", _reduction(lambda cx, x, axes, keep: reduce(cx, "sum", x, axes, keep)), static=(1,)),
    OnnxRule("ReduceProd", _reduction(lambda cx, x, axes, keep: reduce(cx, "prod", x, axes, keep)), static=(1,)),
    OnnxRule("ReduceMax", _reduction(lambda cx, x, axes, keep: reduce(cx, "max", x, axes, keep)), static=(1,)),
    OnnxRule("ReduceMin", _reduction(lambda cx, x, axes, keep: reduce(cx, "min", x, axes, keep)), static=(1,)),
    OnnxRule("ReduceSumSquare", _reduction(
        lambda cx, x, axes, keep: reduce(cx, "sum", _square(cx, x), axes, keep)), static=(1,)),
    OnnxRule("ReduceL1", _reduction(
        lambda cx, x, axes, keep: reduce(cx, "sum", cx.emit("graph.abs", [x]), axes, keep)), static=(1,)),
    OnnxRule("ReduceL2", _real(
        lambda cx, x, axes, keep: cx.emit("graph.sqrt", [reduce(cx, "sum", _square(cx, x), axes, keep)])), static=(1,)),
    OnnxRule("ReduceLogSum", _real(
        lambda cx, x, axes, keep: cx.emit("graph.log", [reduce(cx, "sum", x, axes, keep)])), static=(1,)),
    OnnxRule("ReduceLogSumExp", _real(_log_sum_exp), static=(1,)),
)  # fmt: skip
