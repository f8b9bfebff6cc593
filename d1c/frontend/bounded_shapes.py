"""Arithmetic of shapes of which some extents are run-time counts: Shape, Size, and what is made in such a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from d1c.frontend.bounded import limit
from d1c.frontend.context import ImportContext
from d1c.frontend.indexing import op, shape_of
from d1c.ir.core import Value
from d1c.target.dtypes import I64


@dataclass(frozen=True, slots=True)
class Extent:
    """An extent that is known at run time only: `count` (i64 [1]) of at most `most`."""

    count: Value
    most: int


Extents = list["int | Extent"]


def extents(cx: ImportContext, value: Value | None) -> Extents | None:
    """The elements of a vector of integers that was made of constants and counts; None for any other."""
    if value is None:
        return None
    if cx.is_const(value):
        return [int(n) for n in cx.array(value).reshape(-1)]
    if (most := cx.most(value)) is not None:
        return [Extent(value, most)]
    made = cx.producer(value)
    if made is None or len(shape_of(value)) > 1:
        return None
    match made.name:
        case "graph.concat":
            parts = [extents(cx, v) for v in made.operands]
            return None if None in parts else [e for part in parts for e in part or ()]
        case "graph.reshape" | "graph.cast":
            return extents(cx, made.operands[0])
        case "graph.slice":
            inner, a = extents(cx, made.operands[0]), made.attrs
            return None if inner is None else [inner[a.starts[0] + i * a.steps[0]] for i in range(a.sizes[0])]
    return None


def shape_value(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Shape of a bounded value: run-time counts among constants."""
    x = cx.input(node, 0)
    parts = [cx.counts(x).get(d, cx.const(np.array([n]))) for d, n in enumerate(shape_of(x))]
    parts = parts[slice(cx.attr(node, "start", 0), cx.attr(node, "end"))]
    return cx.concat(parts, 0) if parts else cx.const(np.zeros(0, np.int64))


def size_value(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Size of a bounded value."""
    x = cx.input(node, 0)
    counts = cx.counts(x)
    number = cx.const(np.array([math.prod(n for d, n in enumerate(shape_of(x)) if d not in counts)]))
    for count in counts.values():
        number = op(cx, "mul", number, cx.cast(count, I64))
    return cx.reshape(number, ())


def filled(cx: ImportContext, shape: Sequence[int | Extent], fill: np.ndarray) -> Value:
    """A tensor of one value in a shape with run-time extents."""
    whole = [n.most if isinstance(n, Extent) else n for n in shape]
    value = cx.const(np.full(whole, fill.reshape(-1)[0], fill.dtype))
    return limit(cx, value, {d: n.count for d, n in enumerate(shape) if isinstance(n, Extent)})


def expanded(cx: ImportContext, x: Value, shape: Sequence[int | Extent]) -> Value | None:
    """`x` broadcast with a shape with run-time extents; None where extents meet that are not known to fit."""
    rank = max(len(shape_of(x)), len(shape))
    wanted = [*(1 for _ in range(rank - len(shape))), *shape]
    whole, counts = [], {}
    for d, n in enumerate(wanted):
        own = d - rank + len(shape_of(x))
        have = shape_of(x)[own] if own >= 0 else 1
        count = cx.counts(x).get(own)
        if isinstance(n, Extent) and (count is n.count or (count is None and have == 1)):
            whole.append(max(have, n.most if count is None else 1))
            counts[d] = n.count
        elif n == 1:
            whole.append(have)
            if count is not None:
                counts[d] = count
        elif isinstance(n, int) and count is None and have in (1, n):
            whole.append(n)
        else:
            return None
    return limit(cx, cx.expand(x, whole), counts)
