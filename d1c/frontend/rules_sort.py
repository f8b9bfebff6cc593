"""Rules that sort: an element's rank is the number of elements before it, counted by a fused reduction.

The n x n comparisons of a ranking are never stored, but they are made: TopK of long rows ranks within blocks first, and
Unique is quadratic. NaN counts as larger than all numbers and equal to itself, as numpy sorts it; ties go to the lowest
index.
"""

from __future__ import annotations

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import (
    flag,
    from_front,
    from_last,
    front,
    iota,
    last,
    lookup,
    op,
    reduce,
    shape_of,
    sort_key,
)  # fmt: skip
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import I32, I64

SHORT_ROW = 256
"""A row of at most this many elements is ranked as a whole; of longer ones, blocks first."""


def ranks(cx: ImportContext, key: Value, largest: bool) -> Value:
    """Per element of integers [..., n] how many come before it: i32.

    Keys of 32 bits and the places of their elements are one number of 64 bits, so that one comparison decides."""
    *outer, n = shape_of(key)
    dims = len(outer) + 2
    place = iota(cx, n, len(outer) + 1, len(outer), I64)
    narrow = tensor(key).dtype.bits <= 32
    wide = cx.cast(key, I64)
    if narrow:
        wide = op(cx, "add", op(cx, "mul", wide, cx.scalar(-n if largest else n, wide)), place)
    else:
        # As constants the places would be compared at compile time, n x n of them.
        place = op(cx, "where", op(cx, "equal", key, key), place, cx.scalar(-1, place))

    def sides(x: Value) -> tuple[Value, Value]:
        return cx.reshape(x, (*outer, 1, n)), cx.reshape(x, (*outer, n, 1))

    other, own = sides(wide)
    before = op(cx, "greater" if largest and not narrow else "less", other, own)
    if not narrow:
        there, here = sides(place)
        before = op(cx, "or", before, op(cx, "and", op(cx, "equal", other, own), op(cx, "less", there, here)))
    return reduce(cx, "sum", flag(cx, before), (dims - 1,))


def chosen(cx: ImportContext, rank: Value, k: int, where: Value | None = None) -> Value:
    """Per rank 0 .. k - 1 the place in [..., n] of the element that has it (0 where none has): i32 [..., k].

    `where` leaves elements out."""
    *outer, n = shape_of(rank)
    dims = len(outer) + 2
    hit = op(cx, "equal", cx.reshape(rank, (*outer, 1, n)), iota(cx, k, dims, dims - 2, I32))
    if where is not None:
        hit = op(cx, "and", hit, cx.reshape(where, (*outer, 1, n)))
    place = iota(cx, n, dims, dims - 1, I32)
    return reduce(cx, "sum", op(cx, "where", hit, place, cx.scalar(0, place)), (dims - 1,))


def take_along(cx: ImportContext, x: Value, place: Value) -> Value:
    """x[..., place] for [..., n] and [..., k]."""
    return lookup(cx, place, x, len(shape_of(x)) - 1)


def best(cx: ImportContext, key: Value, k: int, largest: bool) -> Value:
    """The places of the first k of [..., n] in sorted order: i32 [..., k].

    n * n comparisons, or of long rows with small k: the best of every block, then the best of these."""
    *outer, n = shape_of(key)
    block = max(SHORT_ROW // 2, 4 * k)
    if n <= max(SHORT_ROW, 2 * block):
        return chosen(cx, ranks(cx, key, largest), k)
    axis, many = len(outer), n // block
    parts = cx.reshape(cx.part(key, axis, 0, many * block), (*outer, many, block))
    inner = best(cx, parts, k, largest)
    places = [cx.reshape(op(cx, "add", inner, iota(cx, many, axis + 2, axis, I32, block)), (*outer, many * k))]
    if rest := n - many * block:
        inner = best(cx, cx.part(key, axis, many * block, rest), min(k, rest), largest)
        places.append(op(cx, "add", inner, cx.scalar(many * block, inner)))
    # Candidates of equal value stand in the order of their places, so that ties among them are the ties of the row.
    candidates = cx.concat(places, axis)
    return take_along(cx, candidates, best(cx, take_along(cx, key, candidates), k, largest))


def top_k(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, Value]:
    """Values and indices of the k first along `axis`, always sorted. k is an attribute before opset 10."""
    x = given(cx, node)
    ks = cx.static_ints(node, 1, "k") if cx.opset >= 10 else (cx.attr(node, "k"),)
    if not ks:
        raise ValueError("no k")
    k, rank = int(ks[0]), len(shape_of(x))
    axis = normal_axis(cx.attr(node, "axis", -1), rank, cx.origin)
    if not 0 <= k <= shape_of(x)[axis]:
        raise ValueError(f"k = {k} of an extent of {shape_of(x)[axis]}")
    rows = last(cx, x, axis)
    place = best(cx, sort_key(cx, rows), k, bool(cx.attr(node, "largest", 1)))
    values = take_along(cx, rows, place)
    return from_last(cx, values, axis), from_last(cx, cx.cast(place, I64), axis)


def unique(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """The different elements, or slices along `axis`: in sorted or in first order; with the place of the first, per
    element the number of its kind, and per kind its count. All but the inverse are bounded."""
    x, axis = given(cx, node), cx.attr(node, "axis")
    if axis is None:
        rows = cx.reshape(x, (tensor(x).size,))
    else:
        axis = normal_axis(axis, len(shape_of(x)), cx.origin)
        rows = front(cx, x, axis)
    n = shape_of(rows)[0]
    less, same = _compare(cx, cx.reshape(sort_key(cx, rows), (n, tensor(rows).size // max(n, 1))))
    # `less` and `same` [i, j] compare row j with row i.
    j = iota(cx, n, 2, 1, I32)
    first = reduce(cx, "min", op(cx, "where", same, j, cx.scalar(n, j)), (1,))
    leads = op(cx, "equal", first, iota(cx, n, 1, 0, I32))
    ahead = less
    if not cx.attr(node, "sorted", 1):
        ahead = op(cx, "less", j, cx.reshape(first, (n, 1)))
    number = reduce(cx, "sum", flag(cx, op(cx, "and", ahead, cx.reshape(leads, (1, n)))), (1,))
    place = cx.cast(chosen(cx, number, n, leads), I64)
    kind = op(cx, "equal", cx.reshape(number, (1, n)), iota(cx, n, 2, 0, I32))
    counts = reduce(cx, "sum", flag(cx, kind, I64), (1,))
    total = cx.reshape(reduce(cx, "sum", flag(cx, leads, I64), (0,)), (1,))
    y = lookup(cx, place, rows)
    y = cx.limit(y, 0, total) if axis is None else cx.limit(from_front(cx, y, axis), axis, total)
    return y, cx.limit(place, 0, total), cx.cast(number, I64), cx.limit(counts, 0, total)


def _compare(cx: ImportContext, rows: Value) -> tuple[Value, Value]:
    """Of rows [n, d], per [i, j]: whether row j is less than row i, in lexicographic order, and whether they are equal.

    With one column nothing is stored; of several, an n x n table of where the rows differ first."""
    n, d = shape_of(rows)
    inner = () if d == 1 else (d,)
    own, other = cx.reshape(rows, (n, 1, *inner)), cx.reshape(rows, (1, n, *inner))
    less, more = op(cx, "less", other, own), op(cx, "less", own, other)
    if d == 1:
        return less, op(cx, "equal", other, own)
    column = iota(cx, d, 3, 2, I32, 2)
    end = cx.const(np.array(2 * d, np.int32))
    odd = op(cx, "add", column, cx.const(np.array(1, np.int32)))
    code = reduce(cx, "min", op(cx, "where", less, column, op(cx, "where", more, odd, end)), (2,))
    parity: Value = cx.emit("graph.mod", [code, cx.scalar(2, code)])
    differ = op(cx, "less", code, end)
    return op(cx, "and", differ, op(cx, "equal", parity, cx.scalar(0, parity))), op(cx, "not", differ)


RULES = (OnnxRule("TopK", top_k, static=(1,)), OnnxRule("Unique", unique))
