"""Bounded tensors: an extent that is known at run time only is a maximum at compile time, with a run-time count.

A value that `cx.limit(value, dim, count)` marks has only its first `count` elements along `dim`; what stands behind
them is unspecified. NonZero, Compress, Unique and NonMaxSuppression make such values. An op that reads one has to say
d1c.frontend.bounded_ops what it does with it: elements that are not real may be computed and ignored, or have to be
masked. The default is refusal, never a wrong value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from d1c.frontend.context import ImportContext, ValueList
from d1c.frontend.indexing import iota, op, shape_of
from d1c.frontend.load import outer_names
from d1c.ir.core import Value

Counts = Mapping[int, Value]


def touched(cx: ImportContext, node: onnx.NodeProto) -> bool:
    """Whether the node, or a subgraph of it, reads a bounded value."""
    return any(_is_bounded(cx, cx.find(n)) for n in outer_names(node))


def _is_bounded(cx: ImportContext, item: Any) -> bool:
    if isinstance(item, ValueList):
        return any(_is_bounded(cx, v) for v in item.items)
    return isinstance(item, Value) and bool(cx.counts(item))


def refusal(cx: ImportContext, node: onnx.NodeProto, why: str) -> Exception:
    """The error for a node that cannot take its bounded operand."""
    name, dim = "", 0
    for n in outer_names(node):
        value = cx.find(n)
        if isinstance(value, Value) and cx.counts(value):
            name, dim = n, next(iter(cx.counts(value)))
            break
    return cx.refuse(
        f"{node.op_type} of {name!r}, of which dim {dim} has an extent that is known at run time only",
        rule=f"{why}; extents that data decides (NonZero, Compress, Unique, NonMaxSuppression) go through elementwise "
        "ops, reductions, transposes and Gather",
        remedy=f"make {name!r} an output and do the rest outside, or select with masks (Where) instead of extents",
    )


def outputs(
    cx: ImportContext, names: Sequence[str], results: Sequence[Value]
) -> tuple[tuple[str, ...], list[Value], tuple[tuple[str, int, str], ...]]:
    """Names and values of the outputs with hidden ones that hold counts, and which count cuts which (output, dim)."""
    taken, hidden, rows = list(names), dict[Value, str](), []
    for name, value in zip(names, results, strict=True):
        for dim, count in cx.counts(value).items():
            if count not in hidden:
                hidden[count] = _fresh(f"{name}.count", taken)
            rows.append((name, dim, hidden[count]))
    return tuple(taken), [*results, *hidden], tuple(rows)


def _fresh(wish: str, taken: list[str]) -> str:
    name, n = wish, 0
    while name in taken:
        n += 1
        name = f"{wish}{n}"
    taken.append(name)
    return name


# ---- masks ----------------------------------------------------------------------------------------------------------


def real(cx: ImportContext, value: Value, dim: int, count: Value) -> Value:
    """A bool that broadcasts to the value: which of its elements along `dim` are real."""
    rank = len(shape_of(value))
    return op(cx, "less", iota(cx, shape_of(value)[dim], rank, dim), cx.reshape(count, (1,) * rank))


def masked(cx: ImportContext, value: Value, dims: Sequence[int], fill: float | int | bool) -> Value:
    """The value with `fill` wherever it is not real along one of `dims`; still bounded along the others."""
    counts, out = cx.counts(value), value
    for dim in dims:
        if dim in counts:
            out = op(cx, "where", real(cx, out, dim, counts[dim]), out, cx.scalar(fill, out))
    return limit(cx, out, {d: c for d, c in counts.items() if d not in dims})


def limit(cx: ImportContext, value: Value, counts: Counts) -> Value:
    for dim, count in counts.items():
        value = cx.limit(value, dim, count)
    return value
