"""Losses: the score of the right class is a masked sum over classes, which needs no table on any core."""

from __future__ import annotations

import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import flag, iota, op, shape_of
from d1c.frontend.rules_math import given, log_shares, mean, reduce
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


def _loss(cx: ImportContext, node: onnx.NodeProto, x: Value) -> Value:
    """-weight[t] x[n, t, ...] with t the target, 0 where that is `ignore_index`; then the reduction. The mean is over
    the weights of those that count."""
    target, weight = given(cx, node, 1), cx.input(node, 2)
    shape = shape_of(x)
    rank, classes = len(shape), shape[1]
    ignored = cx.attr(node, "ignore_index")
    each = cx.reshape(target, (shape[0], 1, *shape[2:]))
    hit = op(cx, "equal", each, iota(cx, classes, rank, 1, tensor(target).dtype))
    counts = None
    if ignored is not None:
        counts = op(cx, "not", op(cx, "equal", each, cx.scalar(ignored, each)))
        hit = op(cx, "and", hit, counts)
    zero = cx.scalar(0, x)
    loss = op(cx, "neg", reduce(cx, "sum", op(cx, "where", hit, x, zero), (1,), False))
    scale: Value | None = None
    if weight is not None:
        table = cx.reshape(weight, (1, classes, *(1,) * (rank - 2)))
        scale = reduce(cx, "sum", op(cx, "where", hit, table, zero), (1,), False)
        loss = op(cx, "mul", loss, scale)
    elif counts is not None:
        scale = cx.reshape(flag(cx, counts, tensor(x).dtype), shape_of(loss))
    axes = tuple(range(rank - 1))
    match cx.attr(node, "reduction", "mean"):
        case "none":
            return loss
        case "sum":
            return reduce(cx, "sum", loss, axes, False)
    if scale is None:
        return mean(cx, loss, axes, False)
    return op(cx, "div", reduce(cx, "sum", loss, axes, False), reduce(cx, "sum", scale, axes, False))


def negative_log_likelihood(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return _loss(cx, node, given(cx, node))


def softmax_cross_entropy(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, Value]:
    """The loss of log softmax over the classes, and that."""
    scores = log_shares(cx, given(cx, node), (1,))
    return _loss(cx, node, scores), scores


RULES = (
    OnnxRule("NegativeLogLikelihoodLoss", negative_log_likelihood),
    OnnxRule("SoftmaxCrossEntropyLoss", softmax_cross_entropy),
)
