"""Rules that read and write by index: gathers are lookups in flattened tables, scatters one graph.scatter."""

from __future__ import annotations

import math

import numpy as np
import onnx

from d1c.frontend import bounded_shapes
from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import (
    accumulating,
    flat_index,
    from_front,
    from_last,
    front,
    iota,
    keep,
    last,
    lookup,
    op,
    prefix,
    reduce,
    scatter,
    shape_of,
    sort_key,
    strides,
    wrap,
    zeros,
)  # fmt: skip
from d1c.frontend.load import tensor_array
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import Importer, OnnxRule
from d1c.target.dtypes import BOOL, I32, I64


def gather_elements(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Along `axis` the given index, along the other dims the result's own coordinates: one lookup for each of these."""
    x, index = given(cx, node), given(cx, node, 1)
    shape, like = shape_of(x), shape_of(index)
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    if not math.prod(like):
        return cx.const(np.zeros(like, tensor(x).dtype.numpy))
    read = tuple(shape[d] if d == axis else n for d, n in enumerate(like))
    table = last(cx, cx.slice(x, (0,) * len(shape), (1,) * len(shape), read), axis)
    at = last(cx, wrap(cx, cx.cast(index, I32), shape[axis]), axis)
    others = math.prod(like) // like[axis]
    found = lookup(cx, cx.reshape(at, (others, like[axis])), cx.reshape(table, (others, shape[axis])), 1)
    return from_last(cx, cx.reshape(found, shape_of(at)), axis)


def gather_nd(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The last dim of the indices holds a position in the dims behind the `batch_dims` first."""
    x, index = given(cx, node), given(cx, node, 1)
    shape, like, batch = shape_of(x), shape_of(index), cx.attr(node, "batch_dims", 0)
    end = batch + like[-1]
    table = cx.reshape(x, (*shape[:batch], math.prod(shape[batch:end]), *shape[end:]))
    return lookup(cx, _position(cx, index, shape[batch:end]), table, batch)


def _position(cx: ImportContext, index: Value, extents: tuple[int, ...]) -> Value:
    """Row-major positions, of the dims of `index` but the last, which holds a coordinate for each of `extents`."""
    index = cx.cast(index, I64)
    wrapped = wrap(cx, index, cx.const(np.array(extents, np.int64)))
    terms = op(cx, "mul", wrapped, cx.const(np.array(strides(extents), np.int64)))
    return reduce(cx, "sum", terms, (len(shape_of(index)) - 1,))


def _reduction(cx: ImportContext, node: onnx.NodeProto) -> str:
    how = cx.attr(node, "reduction", "none")
    if how not in ("none", "add", "mul", "max", "min"):
        raise cx.refuse(f"{node.op_type} with reduction {how!r}", rule="reductions: none, add, mul, max, min")
    return str(how)


def scatter_elements(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Each update goes to its own coordinates, along `axis` to the given index."""
    x, index, updates = given(cx, node), given(cx, node, 1), given(cx, node, 2)
    shape, like = shape_of(x), shape_of(index)
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    if not math.prod(like):
        return x
    at = wrap(cx, cx.cast(index, I64), shape[axis])
    if all(m == n for d, (m, n) in enumerate(zip(like, shape, strict=True)) if d != axis):
        table, others = front(cx, x, axis), math.prod(like) // like[axis]
        flat = cx.reshape(table, (shape[axis], others))
        at, updates = (cx.reshape(last(cx, v, axis), (others, like[axis])) for v in (at, updates))
        made = scatter(cx, flat, at, updates, _reduction(cx, node), 1)
        return from_front(cx, cx.reshape(made, shape_of(table)), axis)
    at = flat_index(cx, shape, {axis: at}, like)
    size, count = math.prod(shape), math.prod(like)
    flat = scatter(
        cx, cx.reshape(x, (size,)), cx.reshape(at, (count,)), cx.reshape(updates, (count,)), _reduction(cx, node)
    )
    return cx.reshape(flat, shape)


def scatter_nd(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The last dim of the indices holds the position of a slice."""
    x, index, updates = given(cx, node), given(cx, node, 1), given(cx, node, 2)
    shape, like = shape_of(x), shape_of(index)
    rows, inner = shape[: like[-1]], shape[like[-1] :]
    count = math.prod(like[:-1])
    if not count or not math.prod(shape):
        return x
    at = cx.reshape(_position(cx, index, rows), (count,))
    table, parts = cx.reshape(x, (math.prod(rows), *inner)), cx.reshape(updates, (count, *inner))
    return cx.reshape(scatter(cx, table, at, parts, _reduction(cx, node)), shape)


def tensor_scatter(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Updates of a cache from each batch's position on; circular: positions count on from 0 behind the end."""
    cache, update, begin = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    shape, like, mode = shape_of(cache), shape_of(update), cx.attr(node, "mode", "linear")
    axis = normal_axis(cx.attr(node, "axis", -2), len(shape), cx.origin)
    if axis == 0 or mode not in ("linear", "circular"):
        raise cx.refuse(f"TensorScatter on axis {axis} with mode {mode!r}", rule="axis > 0; modes linear, circular")
    n, outer = shape[axis], axis + 1
    at = iota(cx, like[axis], outer, axis)
    if begin is not None:
        at = op(cx, "add", at, cx.reshape(cx.cast(begin, I64), (like[0], *(1,) * axis)))
    if mode == "circular":
        at = cx.emit("graph.mod", [at, cx.scalar(n, at)])
    rows, count = math.prod(shape[:outer]), math.prod(like[:outer])
    place = flat_index(cx, shape[:outer], {axis: at}, like[:outer])
    inside = op(cx, "less", at, cx.scalar(n, at))
    place = op(cx, "where", cx.expand(inside, like[:outer]), place, cx.scalar(rows, place))
    table, parts = cx.reshape(cache, (rows, *shape[outer:])), cx.reshape(update, (count, *like[outer:]))
    return cx.reshape(scatter(cx, table, cx.reshape(place, (count,)), parts), shape)


def one_hot(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """values[1] where the index is the coordinate along the new axis, elsewhere values[0]."""
    index, depth, values = given(cx, node), cx.static(node, 1, "depth"), given(cx, node, 2)
    if depth is None:
        raise ValueError("no depth")
    n, shape = int(depth.reshape(-1)[0]), shape_of(index)
    axis = normal_axis(cx.attr(node, "axis", -1), len(shape) + 1, cx.origin)
    at = cx.reshape(wrap(cx, cx.cast(index, I64), n), (*shape[:axis], 1, *shape[axis:]))
    hit = op(cx, "equal", at, iota(cx, n, len(shape) + 1, axis))
    off, on = (cx.reshape(cx.part(values, 0, i, 1), ()) for i in (0, 1))
    return op(cx, "where", hit, on, off)


def eye_like(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """A constant: only the shape of the operand counts."""
    x = given(cx, node)
    if len(shape_of(x)) != 2:
        raise ValueError(f"takes a matrix, has {list(shape_of(x))}")
    code = cx.attr(node, "dtype")
    kind = tensor(x).dtype if code is None else cx.element_type(code)
    rows, columns = shape_of(x)
    return cx.const(np.eye(rows, columns, k=int(cx.attr(node, "k", 0))).astype(kind.numpy))


def reverse_sequence(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The first lens[b] elements along the time axis in the opposite order."""
    x, lens = given(cx, node), given(cx, node, 1)
    rank = len(shape_of(x))
    batch = normal_axis(cx.attr(node, "batch_axis", 1), rank, cx.origin)
    time = normal_axis(cx.attr(node, "time_axis", 0), rank, cx.origin)
    order = (batch, time, *(d for d in range(rank) if d not in (batch, time)))
    moved = cx.transpose(x, order)
    b, t, *_ = shape_of(moved)
    length = cx.reshape(cx.cast(lens, I64), (b, 1))
    here = iota(cx, t, 2, 1)
    there = op(cx, "sub", op(cx, "sub", length, cx.scalar(1, length)), here)
    at = op(cx, "where", op(cx, "less", here, length), there, here)
    found = lookup(cx, at, moved, 1)
    return cx.transpose(found, tuple(int(i) for i in np.argsort(order)))


def trilu(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Elements on and above (upper) or below diagonal k; k may be a run-time value."""
    x, k = given(cx, node), cx.input(node, 1)
    *_, rows, columns = shape_of(x)
    apart = op(cx, "sub", iota(cx, columns, 2, 1), iota(cx, rows, 2, 0))
    at = cx.const(np.array(0)) if k is None else cx.reshape(cx.cast(k, I64), ())
    inside = op(cx, "greater_equal" if cx.attr(node, "upper", 1) else "less_equal", apart, at)
    return op(cx, "where", inside, x, cx.scalar(0, x))


def constant_of_shape(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Folded where the shape is known; extents that data decides give a bounded value."""
    shape = bounded_shapes.extents(cx, cx.input(node, 0))
    if shape is None:
        cx.static(node, 0, "shape")
        raise ValueError("no shape")
    value = cx.attr(node, "value")
    return bounded_shapes.filled(cx, shape, np.zeros(1, np.float32) if value is None else tensor_array(value, None))


def range_(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Folded where the operands are known; others are refused."""
    for i, name in enumerate(("start", "limit", "delta")):
        cx.static(node, i, name)
    raise ValueError("constant operands that were not folded")


def compress(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The slices along `axis` (of the flattened tensor without one) where the condition is true: a bounded result."""
    x, condition = given(cx, node), given(cx, node, 1)
    shape, axis = shape_of(x), cx.attr(node, "axis")
    if axis is None:
        x, axis = cx.reshape(x, (math.prod(shape),)), 0
    axis = normal_axis(axis, len(shape_of(x)), cx.origin)
    most = min(shape_of(condition)[0], shape_of(x)[axis])
    condition = cx.part(condition, 0, 0, most)
    rows = cx.part(x, axis, 0, most)
    if cx.is_const(condition):
        at = cx.const(np.flatnonzero(cx.array(condition)).astype(np.int64))
        return from_front(cx, lookup(cx, at, front(cx, rows, axis)), axis)
    kept, count = keep(cx, front(cx, rows, axis), condition, most)
    return cx.limit(from_front(cx, kept, axis), axis, count)


def extreme_at(cx: ImportContext, x: Value, axis: int, kind: str, latest: bool = False) -> Value:
    """Where along `axis` the largest ("max") or smallest ("min") element is, the first or the latest: i64, with the
    axis kept. NaN counts as the largest and as the smallest."""
    key = sort_key(cx, x)  # integers, which no precision policy rounds between the reduction and the comparison
    if tensor(x).dtype.is_float and kind == "min":
        low = cx.scalar(np.iinfo(tensor(key).dtype.numpy).min, key)
        key = op(cx, "where", op(cx, "equal", x, x), key, low)
    x = key
    n, rank = shape_of(x)[axis], len(shape_of(x))
    best = cx.cast(reduce(cx, kind, x, (axis,), True), tensor(x).dtype)
    hit = op(cx, "equal", x, best)
    at = iota(cx, n, rank, axis, I32)
    chosen = op(cx, "where", hit, at, cx.scalar(-1 if latest else n, at))
    return cx.cast(reduce(cx, "max" if latest else "min", chosen, (axis,), True), I64)


def _arg(kind: str) -> Importer:
    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        x = given(cx, node)
        rank = len(shape_of(x))
        axis = normal_axis(cx.attr(node, "axis", 0), rank, cx.origin)
        if not rank:
            return cx.const(np.array(0))
        at = extreme_at(cx, x, axis, kind, bool(cx.attr(node, "select_last_index", 0)))
        if cx.attr(node, "keepdims", 1):
            return at
        return cx.reshape(at, [n for d, n in enumerate(shape_of(x)) if d != axis])

    return rule


def hardmax(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """1 at the first largest element, elsewhere 0; before opset 13 of all dims from `axis` on together."""
    x = given(cx, node)
    shape = shape_of(x)
    axis = normal_axis(cx.attr(node, "axis", -1 if cx.opset >= 13 else 1), len(shape), cx.origin)
    if cx.opset >= 13:
        rows = last(cx, x, axis)
    else:
        rows = cx.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    rank, n = len(shape_of(rows)), shape_of(rows)[-1]
    hit = op(cx, "equal", extreme_at(cx, rows, rank - 1, "max"), iota(cx, n, rank, rank - 1))
    y = op(cx, "where", hit, cx.scalar(1, x), cx.scalar(0, x))
    return from_last(cx, y, axis) if cx.opset >= 13 else cx.reshape(y, shape)


def _cumulative(kind: str) -> Importer:
    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        x, axis = given(cx, node), cx.static(node, 1, "axis")
        if axis is None:
            raise ValueError("no axis")
        at = normal_axis(int(axis.reshape(-1)[0]), len(shape_of(x)), cx.origin)
        exclusive, reverse = bool(cx.attr(node, "exclusive", 0)), bool(cx.attr(node, "reverse", 0))
        return cx.cast(prefix(cx, accumulating(cx, x), at, kind, exclusive, reverse), tensor(x).dtype)

    return rule


def nonzero(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The coordinates of what is not 0, row-major: a bounded result [rank, size]."""
    x = given(cx, node)
    shape = shape_of(x) or (1,)
    size = math.prod(shape)
    mask = x if tensor(x).dtype == BOOL else op(cx, "not", op(cx, "equal", x, cx.scalar(0, x)))
    places = np.indices(shape).reshape(len(shape), size).T.astype(np.int64)
    if not size:
        return zeros(cx, (len(shape), 0), I64)
    kept, count = keep(cx, cx.const(places), cx.reshape(mask, (size,)), size)
    return cx.limit(cx.transpose(kept, (1, 0)), 1, count)


RULES = (
    OnnxRule("GatherElements", gather_elements), OnnxRule("GatherND", gather_nd),
    OnnxRule("Scatter", scatter_elements), OnnxRule("ScatterElements", scatter_elements),
    OnnxRule("ScatterND", scatter_nd), OnnxRule("TensorScatter", tensor_scatter),
    OnnxRule("OneHot", one_hot, static=(1,)), OnnxRule("EyeLike", eye_like),
    OnnxRule("ReverseSequence", reverse_sequence), OnnxRule("Trilu", trilu),
    OnnxRule("ConstantOfShape", constant_of_shape, static=(0,)), OnnxRule("Range", range_, static=(0, 1, 2)),
    OnnxRule("Shape", bounded_shapes.shape_value), OnnxRule("Size", bounded_shapes.size_value),
    OnnxRule("Compress", compress), OnnxRule("ArgMax", _arg("max")), OnnxRule("ArgMin", _arg("min")),
    OnnxRule("Hardmax", hardmax), OnnxRule("CumSum", _cumulative("sum"), static=(1,)),
    OnnxRule("CumProd", _cumulative("prod"), static=(1,)), OnnxRule("NonZero", nonzero),
)  # fmt: skip
