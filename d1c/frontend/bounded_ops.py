"""What ops do with bounded operands: which of their elements are masked, and how far the results are real."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from d1c.frontend.bounded import Counts, limit, masked, real, refusal
from d1c.frontend.bounded_shapes import expanded, extents
from d1c.frontend.consteval import normal_axis, slice_plan
from d1c.frontend.context import ImportContext, Item, tensor
from d1c.frontend.empty import highest, lowest
from d1c.frontend.indexing import (
    from_front,
    from_last,
    front,
    iota,
    last,
    op,
    reduce,
    scatter,
    shape_of,
    sort_key,
    wrap,
    zeros,
)
from d1c.frontend.rules_sort import best, take_along
from d1c.ir.core import Value
from d1c.ops.opdef import Importer
from d1c.target.dtypes import I64

Results = list[Any]
Handler = Callable[[ImportContext, onnx.NodeProto, Importer], Any]


def lower(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Any:
    """What `build` makes of a node that reads bounded values, marked. Raises UnsupportedOp where that is not known."""
    handler = HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if handler is None:
        raise refusal(cx, node, "the op is not known to ignore what is not real")
    return handler(cx, node, build)


def _with(cx: ImportContext, node: onnx.NodeProto, operands: Mapping[int, Value]) -> onnx.NodeProto:
    """The node with other operands."""
    other = onnx.NodeProto()
    other.CopyFrom(node)
    for i, value in operands.items():
        other.input[i] = f"{cx.origin}\0{i}"
        cx.bind(other.input[i], value)
    return other


def _results(built: Any) -> Results:
    return [built] if isinstance(built, Item) else list(built)


def _built(cx: ImportContext, node: onnx.NodeProto, build: Importer, counts: Callable[[Value], Counts]) -> Results:
    """The node's results, each marked with what `counts` gives for it."""
    return [v if v is None else limit(cx, v, counts(v)) for v in _results(build(cx, node))]


def _operand(cx: ImportContext, node: onnx.NodeProto, index: int = 0) -> Value:
    value = cx.input(node, index)
    if not isinstance(value, Value):
        raise ValueError(f"operand {index} is left out")
    return value


def _others_static(cx: ImportContext, node: onnx.NodeProto, allowed: Sequence[int] = (0,)) -> None:
    """Refuse where an operand that is not among `allowed` is bounded."""
    for i in range(len(node.input)):
        if i not in allowed and cx.counts(cx.input(node, i)):
            raise refusal(cx, node, f"operand {i} must have a known extent")


def _elementwise(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Aligned at the last dim; operands that are bounded along a dim of the result have the same count there."""
    values = [v for v in cx.inputs(node) if isinstance(v, Value)]
    rank = max(len(shape_of(v)) for v in values)
    counts: dict[int, Value] = {}
    for v in values:
        for dim, count in cx.counts(v).items():
            at = dim + rank - len(shape_of(v))
            if counts.setdefault(at, count) is not count:
                raise refusal(cx, node, "operands that are bounded along one dim have the same count")
    for v in values:
        for at, count in counts.items():
            dim = at - rank + len(shape_of(v))
            if dim >= 0 and shape_of(v)[dim] != 1 and cx.counts(v).get(dim) is not count:
                raise refusal(cx, node, "an operand beside it must be broadcast along the bounded dim")
            if dim >= 0 and cx.counts(v).get(dim) is count and shape_of(v)[dim] == 1 and len(values) > 1:
                if any(len(shape_of(w)) >= rank - at and shape_of(w)[at - rank] != 1 for w in values):
                    raise refusal(cx, node, "a dim of at most one element is not broadcast")
    return _built(cx, node, build, lambda out: counts if len(shape_of(out)) == rank else {})


def _first_elementwise(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Results of operand 0's shape; the other operands are scalars or only say a type."""
    x = _operand(cx, node)
    return _built(cx, node, build, lambda out: cx.counts(x) if shape_of(out) == shape_of(x) else {})


def _transpose(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    x = _operand(cx, node)
    perm = cx.attr(node, "perm", tuple(reversed(range(len(shape_of(x))))))
    return _built(cx, node, build, lambda out: {i: cx.counts(x)[p] for i, p in enumerate(perm) if p in cx.counts(x)})


def _regrouped(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Squeeze, Unsqueeze, Flatten, Reshape: the bounded dim stays, or takes in the dims behind it (and the count is
    multiplied). A Reshape must leave its extent open (-1 or 0)."""
    x = _operand(cx, node)
    old = shape_of(x)
    results = _results(build(cx, node))
    (out,) = results
    new, wanted = shape_of(out), None
    if node.op_type == "Reshape":
        wanted = cx.static_ints(node, 1, "shape") or ()
    for dim, count in cx.counts(x).items():
        before, rest = math.prod(old[:dim]), math.prod(old[dim:])
        fits = [o for o in range(len(new)) if math.prod(new[:o]) == before and math.prod(new[o:]) == rest]
        fits = [o for o in fits if old[dim] and new[o] % old[dim] == 0 and (new[o] > 1 or old[dim] == 1)]
        if node.op_type == "Squeeze" and old[dim] == 1 and len(new) < len(old):
            fits = []  # the dim itself may be the one that goes
        if node.op_type == "Unsqueeze" and old[dim] == 1:
            axes = {normal_axis(a, len(new), cx.origin) for a in cx.static_ints(node, 1, "axes") or ()}
            fits = [[o for o in range(len(new)) if o not in axes][dim]]
        if wanted is not None:
            fits = [o for o in fits if wanted[o] == -1 or (wanted[o] == 0 and o == dim and new[o] == old[dim])]
        if len(fits) != 1 or (len(cx.counts(x)) > 1 and new[fits[0]] != old[dim]):
            raise refusal(cx, node, "a bounded dim stays or takes in dims behind it, and a Reshape leaves it open (-1)")
        factor = new[fits[0]] // old[dim]
        count = count if factor == 1 else op(cx, "mul", count, cx.scalar(factor, count))
        out = cx.limit(out, fits[0], count)
    return [out]


def _gather(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Bounded indices or data; negative indices count from the end of what is real."""
    x, index = _operand(cx, node), _operand(cx, node, 1)
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape_of(x)), cx.origin)
    inner = len(shape_of(index))
    counts = {axis + d: c for d, c in cx.counts(index).items()}
    counts |= {d if d < axis else d + inner - 1: c for d, c in cx.counts(x).items() if d != axis}
    if axis in cx.counts(x) and not (cx.is_const(index) and cx.array(index).min(initial=0) >= 0):
        extent = cx.reshape(cx.cast(cx.counts(x)[axis], tensor(index).dtype), ())
        node = _with(cx, node, {1: wrap(cx, index, extent)})
    return _built(cx, node, build, lambda out: counts)


def _gather_nd(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    _others_static(cx, node, (1,))
    index = _operand(cx, node, 1)
    if cx.attr(node, "batch_dims", 0) or len(shape_of(index)) - 1 in cx.counts(index):
        raise refusal(cx, node, "GatherND takes indices that are bounded in a dim of positions, without batch_dims")
    return _built(cx, node, build, lambda out: cx.counts(index))


def _scatter_nd(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Updates that are not real get a position outside, where they are left out."""
    _others_static(cx, node, (1, 2))
    index, updates = _operand(cx, node, 1), _operand(cx, node, 2)
    counts = cx.counts(index)
    if len(shape_of(index)) - 1 in counts or any(counts.get(d) is not c for d, c in cx.counts(updates).items()):
        raise refusal(cx, node, "indices and updates are bounded alike, in dims of positions")
    outside = math.prod(shape_of(_operand(cx, node)))
    return _results(build(cx, _with(cx, node, {1: masked(cx, index, tuple(counts), outside)})))


def _slice(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Other dims as they are; the bounded one from a start on, in steps of 1, up to an end that is not negative."""
    _others_static(cx, node)
    x = _operand(cx, node)
    shape, starts, ends = shape_of(x), cx.static_ints(node, 1, "starts") or (), cx.static_ints(node, 2, "ends") or ()
    given = cx.static_ints(node, 3, "axes")
    axes = tuple(range(len(starts))) if given is None else given
    steps = cx.static_ints(node, 4, "steps") or (1,) * len(starts)
    dims = [normal_axis(a, len(shape), cx.origin) for a in axes]
    chosen = {d: part for d, *part in zip(dims, starts, ends, steps, strict=True)}
    counts = dict(cx.counts(x))
    first, _, sizes = slice_plan(shape, starts, ends, axes, steps, cx.origin)
    for d, count in counts.items():
        lo, hi, step = chosen.get(d, [0, shape[d], 1])
        if lo < 0 or hi < 0 or step != 1:
            raise refusal(
                cx, node, "along a bounded dim, Slice takes starts and ends that are not negative, steps of 1"
            )
        if first[d] or sizes[d] < shape[d]:
            less = op(cx, "sub", count, cx.scalar(first[d], count))
            counts[d] = op(cx, "max", op(cx, "min", less, cx.scalar(sizes[d], count)), cx.scalar(0, count))
    return _built(cx, node, build, lambda out: counts)


def _reduction(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """What is not real becomes what does not change the result; a mean divides by the count."""
    x = _operand(cx, node)
    counts, rank, kind = cx.counts(x), len(shape_of(x)), tensor(x).dtype
    axes = cx.static_ints(node, 1, "axes")
    if not axes and cx.attr(node, "noop_with_empty_axes", 0):
        return _built(cx, node, build, lambda out: counts)
    gone = sorted({normal_axis(a, rank, cx.origin) for a in axes}) if axes else list(range(rank))
    keep = bool(cx.attr(node, "keepdims", 1))
    kept = {d if keep else sum(e not in gone for e in range(d)): c for d, c in counts.items() if d not in gone}
    over = [d for d in gone if d in counts]
    fill = {"ReduceMax": lowest(kind), "ReduceMin": highest(kind), "ReduceProd": 1}.get(node.op_type, 0)
    clean = masked(cx, x, gone, fill)
    if node.op_type != "ReduceMean" or not over:
        return _built(cx, _with(cx, node, {0: clean}), build, lambda out: kept)
    total = cx.cast(reduce(cx, "sum", clean, gone, keep), kind)
    number = cx.const(np.array([math.prod(shape_of(x)[d] for d in gone if d not in counts)]))
    for d in over:
        number = op(cx, "mul", number, counts[d])
    return [limit(cx, op(cx, "div", total, cx.reshape(cx.cast(number, kind), ())), kept)]


def _softmax(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    x = _operand(cx, node)
    if cx.opset < 13:
        raise refusal(cx, node, "before opset 13 dims are joined")
    axis = normal_axis(cx.attr(node, "axis", -1), len(shape_of(x)), cx.origin)
    clean = masked(cx, x, (axis,), -math.inf)
    return _built(cx, _with(cx, node, {0: clean}), build, lambda out: cx.counts(x))


def _arg(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Ties go to the first, which is real as far as there is one."""
    x = _operand(cx, node)
    rank, kind, counts = len(shape_of(x)), tensor(x).dtype, cx.counts(x)
    axis = normal_axis(cx.attr(node, "axis", 0), rank, cx.origin)
    if axis in counts and cx.attr(node, "select_last_index", 0):
        raise refusal(cx, node, "the last of equal elements is looked for")
    keep = bool(cx.attr(node, "keepdims", 1))
    kept = {d if keep or d < axis else d - 1: c for d, c in counts.items() if d != axis}
    clean = masked(cx, x, (axis,), lowest(kind) if node.op_type == "ArgMax" else highest(kind))
    return _built(cx, _with(cx, node, {0: clean}), build, lambda out: kept)


def _top_k(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """What is not real comes last; that k elements are real is the model's affair, as it is ONNX's rule."""
    _others_static(cx, node)
    x = _operand(cx, node)
    kind, counts = tensor(x).dtype, cx.counts(x)
    axis = normal_axis(cx.attr(node, "axis", -1), len(shape_of(x)), cx.origin)
    lowest_rank = math.nan if kind.is_float else highest(kind)
    largest = bool(cx.attr(node, "largest", 1))
    clean = masked(cx, x, (axis,), lowest(kind) if largest else lowest_rank)
    kept = {d: c for d, c in counts.items() if d != axis}
    k = cx.input(node, 1)
    if k is None or cx.is_const(k) or cx.sources(k) is not None:
        return _built(cx, _with(cx, node, {0: clean}), build, lambda out: kept)
    rows = last(cx, clean, axis)
    place = best(cx, sort_key(cx, rows), min(_most(cx, k), shape_of(x)[axis]), largest)
    kept[axis] = cx.reshape(cx.cast(k, I64), (1,))
    return [limit(cx, from_last(cx, v, axis), kept) for v in (take_along(cx, rows, place), cx.cast(place, I64))]


def _most(cx: ImportContext, value: Value) -> int:
    """What a run-time integer is at most: a constant in a minimum, or the largest extent that it counts."""
    if cx.is_const(value):
        return int(cx.array(value).max())
    if (most := cx.most(value)) is not None:
        return most
    made = cx.producer(value)
    if made is not None and made.name in ("graph.min", "graph.reduce_min", "graph.reshape", "graph.cast"):
        return min(_most(cx, v) for v in made.operands)
    return 1 << 62


def _suppression(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """NonMaxSuppression: what is not real has the score NaN, which is never selected."""
    _others_static(cx, node, (0, 1))
    boxes, scores = _operand(cx, node), _operand(cx, node, 1)
    if set(cx.counts(boxes)) - {1} or set(cx.counts(scores)) - {2}:
        raise refusal(cx, node, "NonMaxSuppression takes a number of boxes that is bounded")
    counts = {*cx.counts(boxes).values(), *cx.counts(scores).values()}
    if len(counts) > 1:
        raise refusal(cx, node, "as many boxes as scores are real")
    (count,) = counts
    clean = op(cx, "where", real(cx, scores, 2, count), scores, cx.scalar(math.nan, scores))
    boxes = op(cx, "where", real(cx, boxes, 1, count), boxes, cx.scalar(0, boxes))
    return _results(build(cx, _with(cx, node, {0: boxes, 1: clean})))


def _expand(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    _others_static(cx, node)
    shape = extents(cx, cx.input(node, 1))
    out = None if shape is None else expanded(cx, _operand(cx, node), shape)
    if out is None:
        raise refusal(cx, node, "Expand leaves the bounded dim as it is")
    return [out]


def _one_hot(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    _others_static(cx, node)
    x = _operand(cx, node)
    axis = normal_axis(cx.attr(node, "axis", -1), len(shape_of(x)) + 1, cx.origin)
    counts = {d if d < axis else d + 1: c for d, c in cx.counts(x).items()}
    return _built(cx, node, build, lambda out: counts)


def _concat(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Of values that are bounded alike along other dims; along the axis each follows what is real of those before."""
    values = [v for v in cx.inputs(node) if isinstance(v, Value)]
    axis = normal_axis(cx.attr(node, "axis", 1), len(shape_of(values[0])), cx.origin)
    counts = {d: c for d, c in cx.counts(values[0]).items() if d != axis}
    if any({d: c for d, c in cx.counts(v).items() if d != axis} != counts for v in values):
        raise refusal(cx, node, "Concat takes operands that are bounded alike along other dims than its axis")
    if not any(axis in cx.counts(v) for v in values):
        return _built(cx, node, build, lambda out: counts)
    total = sum(shape_of(v)[axis] for v in values)
    rest = [n for d, n in enumerate(shape_of(values[0])) if d != axis]
    out, begin = zeros(cx, (total, *rest), tensor(values[0]).dtype), cx.const(np.zeros(1, np.int64))
    for v in values:
        n = shape_of(v)[axis]
        if not n:
            continue
        place = op(cx, "add", iota(cx, n, 1, 0), begin)
        count = cx.counts(v).get(axis, cx.const(np.array([n])))
        place = op(cx, "where", op(cx, "less", iota(cx, n, 1, 0), count), place, cx.scalar(total, place))
        out = scatter(cx, out, place, front(cx, v, axis))
        begin = op(cx, "add", begin, count)
    return [limit(cx, from_front(cx, out, axis), {**counts, axis: begin})]


def _split(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    x = _operand(cx, node)
    if normal_axis(cx.attr(node, "axis", 0), len(shape_of(x)), cx.origin) in cx.counts(x):
        raise refusal(cx, node, "Split goes along another axis than the bounded one")
    return _built(cx, node, build, lambda out: cx.counts(x))


def _matmul(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """Rows that are not real give rows that are not."""
    _others_static(cx, node)
    x, y = _operand(cx, node), _operand(cx, node, 1)
    rank, counts = len(shape_of(x)), cx.counts(x)
    if rank - 1 in counts or len(shape_of(y)) > 2:
        raise refusal(cx, node, "MatMul takes rows that are bounded, times a known matrix")
    return _built(cx, node, build, lambda out: counts)


def _only_real(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """NonZero: what is not real counts as 0; coordinates do not depend on extents."""
    x = _operand(cx, node)
    return _results(build(cx, _with(cx, node, {0: masked(cx, x, tuple(cx.counts(x)), 0)})))


def _shape(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    return _results(build(cx, node))


def _control(cx: ImportContext, node: onnx.NodeProto, build: Importer) -> Results:
    """If, Loop and Scan: nodes of the subgraphs see by themselves what they read from outside."""
    _others_static(cx, node, ())
    return _results(build(cx, node))


_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu "
    "Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("CastLike", "Clip"), _first_elementwise),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _regrouped),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare",
         "ReduceLogSum"), _reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax), **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Shape", "Size"), _shape),
    **dict.fromkeys(("If", "Loop", "Scan"), _control),
    "Transpose": _transpose, "Gather": _gather, "GatherND": _gather_nd, "ScatterND": _scatter_nd, "Slice": _slice,
    "TopK": _top_k, "OneHot": _one_hot, "Concat": _concat, "Split": _split, "MatMul": _matmul, "NonZero": _only_real,
    "Expand": _expand, "NonMaxSuppression": _suppression,
}  # fmt: skip
"""What ops do with bounded operands, by ONNX op."""
