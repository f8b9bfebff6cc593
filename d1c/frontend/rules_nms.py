"""NonMaxSuppression: greedy, round by round, for all batches and classes at once.

A round takes the best box that is left and drops it and what overlaps it too much. There are as many rounds as boxes
can be selected (at most as many as there are boxes), or fewer where none is left; each takes time for every box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import flag, iota, keep, lookup, op, reduce, shape_of, sort_key, zeros
from d1c.frontend.loops import Round, loop
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import I32, I64

UNROLLED = 4
"""So few rounds follow each other in the program; more are a loop."""


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Sides of boxes, each a value [batch, 1 or classes, boxes], and their area."""

    x0: Value
    y0: Value
    x1: Value
    y1: Value
    area: Value


def _sides(cx: ImportContext, boxes: Value, center: bool) -> tuple[Value, Value, Value, Value]:
    """(x0, y0, x1, y1) of boxes [batch, n, 4], each [batch, 1, n]."""
    batch, n, _ = shape_of(boxes)
    a, b, c, d = (cx.reshape(cx.part(boxes, 2, i, 1), (batch, 1, n)) for i in range(4))
    if center:
        half_width, half_height = (op(cx, "div", v, cx.scalar(2, v)) for v in (c, d))
        return (
            op(cx, "sub", a, half_width), op(cx, "sub", b, half_height),
            op(cx, "add", a, half_width), op(cx, "add", b, half_height),
        )  # fmt: skip
    return op(cx, "min", b, d), op(cx, "min", a, c), op(cx, "max", b, d), op(cx, "max", a, c)


def _boxes(cx: ImportContext, sides: tuple[Value, Value, Value, Value]) -> _Boxes:
    x0, y0, x1, y1 = sides
    return _Boxes(*sides, op(cx, "mul", op(cx, "sub", x1, x0), op(cx, "sub", y1, y0)))


def _overlaps(cx: ImportContext, a: _Boxes, b: _Boxes, threshold: Value) -> Value:
    """Whether intersection over union exceeds the threshold; boxes without area overlap nothing (0 / 0 does not)."""
    zero = cx.scalar(0, a.area)
    width = op(cx, "sub", op(cx, "min", a.x1, b.x1), op(cx, "max", a.x0, b.x0))
    height = op(cx, "sub", op(cx, "min", a.y1, b.y1), op(cx, "max", a.y0, b.y0))
    common = op(cx, "mul", op(cx, "max", width, zero), op(cx, "max", height, zero))
    union = op(cx, "sub", op(cx, "add", a.area, b.area), common)
    return op(cx, "greater", op(cx, "div", common, union), threshold)


def non_max_suppression(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Triples (batch, class, box), of each class by falling score: a bounded result."""
    boxes, scores = given(cx, node), given(cx, node, 1)
    batch, classes, n = shape_of(scores)
    limit, iou, least = (cx.input(node, i) for i in (2, 3, 4))
    if limit is not None and cx.is_const(limit):
        rounds, limit = min(n, max(0, int(cx.array(limit).reshape(-1)[0]))), None
    else:
        rounds = 0 if limit is None else n
    if not rounds or not batch * classes:
        return zeros(cx, (0, 3), I64)
    threshold = cx.scalar(0, boxes) if iou is None else cx.reshape(cx.cast(iou, tensor(boxes).dtype), ())
    every = _boxes(cx, _sides(cx, boxes, bool(cx.attr(node, "center_point_box", 0))))
    left = op(cx, "equal", scores, scores)
    if least is not None:
        left = op(cx, "greater", scores, cx.reshape(cx.cast(least, tensor(scores).dtype), ()))
    at, done = _selected(cx, sort_key(cx, scores), every, left, threshold, rounds)
    valid = op(cx, "less", at, cx.scalar(n, at))
    if done is not None:
        valid = op(cx, "and", valid, op(cx, "less", iota(cx, rounds, 3, 2), cx.reshape(done, ())))
    if limit is not None:
        valid = op(cx, "and", valid, op(cx, "less", iota(cx, rounds, 3, 2), cx.reshape(cx.cast(limit, I64), ())))
    size = batch * classes * rounds
    first, second, _ = np.indices((batch, classes, rounds))
    columns = [cx.const(first), cx.const(second), cx.cast(at, I64)]
    rows = cx.concat([cx.reshape(v, (size, 1)) for v in columns], 1)
    kept, count = keep(cx, rows, cx.reshape(valid, (size,)), size)
    return cx.limit(kept, 0, count)


def _selected(
    cx: ImportContext, keys: Value, every: _Boxes, left: Value, threshold: Value, rounds: int
) -> tuple[Value, Value | None]:
    """The box of each round, i32 [batch, classes, rounds], and how many rounds there were (None: all)."""
    batch, classes, _ = shape_of(keys)
    if rounds <= UNROLLED:
        taken = []
        for _ in range(rounds):
            at, left = _round(cx, keys, every, left, threshold)
            taken.append(at)
        return cx.concat(taken, 2), None

    def step(number: Value, carried: list[Value]) -> Round:
        at, rest = _round(cx, keys, every, carried[0], threshold)
        more = reduce(cx, "max", flag(cx, rest), (0, 1, 2))
        return Round([rest], [at], op(cx, "greater", more, cx.scalar(0, more)))

    made = loop(cx, rounds, [left], step)
    return cx.reshape(cx.transpose(made.stacked[0], (1, 2, 0, 3)), (batch, classes, rounds)), made.rounds


def _round(cx: ImportContext, keys: Value, every: _Boxes, left: Value, threshold: Value) -> tuple[Value, Value]:
    """The best box that is left, the first of equal ones, i32 [batch, classes, 1] (n where none is), and what is left
    after it."""
    batch, _, n = shape_of(keys)
    least = cx.scalar(np.iinfo(np.int32).min, keys)
    best = reduce(cx, "max", op(cx, "where", left, keys, least), (2,), True)
    here = iota(cx, n, 3, 2, I32)
    hit = op(cx, "and", left, op(cx, "equal", keys, best))
    at = reduce(cx, "min", op(cx, "where", hit, here, cx.scalar(n, here)), (2,), True)
    tables = (cx.reshape(v, (batch, n)) for v in (every.x0, every.y0, every.x1, every.y1, every.area))
    one = _Boxes(*(lookup(cx, at, v, 1) for v in tables))
    drop = op(cx, "or", _overlaps(cx, every, one, threshold), op(cx, "equal", here, at))
    return at, op(cx, "and", left, op(cx, "not", drop))


RULES = (OnnxRule("NonMaxSuppression", non_max_suppression, since=10),)
