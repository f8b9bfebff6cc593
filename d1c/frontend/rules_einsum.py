"""Einsum and Det."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import accumulating, iota, op, reduce, shape_of
from d1c.frontend.rules_index import extreme_at
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

Labels = tuple[str, ...]
"""A name per dim. Those of an ellipsis are numbers, counted from its last dim; others are letters."""


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the result. ValueError for what is no equation of operands of these ranks."""
    text = "".join(equation.split())
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"equation {equation!r} is of {len(terms)} operands, given are {len(ranks)}")
    operands = [_labels(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    dots = max((sum(x.isdigit() for x in labels) for labels in operands), default=0)
    wide = tuple(str(i) for i in reversed(range(dots)))
    if arrow:
        before, dot, after = right.partition("...")
        result = (*before, *(wide if dot else ()), *after)
    else:
        every = [x for labels in operands for x in labels if not x.isdigit()]
        result = (*wide, *sorted(x for x in set(every) if every.count(x) == 1))
    known = {x for labels in operands for x in labels}
    if len(set(result)) != len(result) or not known.issuperset(result) or not all(map(str.isalnum, result)):
        raise ValueError(f"the result of equation {equation!r} has unknown or repeated dims")
    return operands, result


def _labels(term: str, rank: int) -> Labels:
    before, dots, after = term.partition("...")
    wide = rank - len(before) - len(after) if dots else 0
    labels = (*before, *(str(i) for i in reversed(range(wide))), *after)
    if wide < 0 or len(labels) != rank or (not (before + after).isalpha() and before + after):
        raise ValueError(f"term {term!r} does not name {rank} dims")
    return labels


def einsum(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Diagonals, sums over dims that one operand alone has, then products of two operands from the left."""
    values = [given(cx, node, i) for i in range(len(node.input))]
    operands, result = parse(str(cx.attr(node, "equation", "")), [len(shape_of(v)) for v in values])
    kind = tensor(values[0]).dtype
    extents: dict[str, int] = {}
    for value, labels in zip(values, operands, strict=True):
        for label, n in zip(labels, shape_of(value), strict=True):
            if n != 1:
                if extents.get(label, 1) not in (1, n):
                    raise ValueError(f"dim {label!r} has extents {extents[label]} and {n}")
                extents[label] = n
            extents.setdefault(label, 1)
    parts = [_plain(cx, v, labels, extents) for v, labels in zip(values, operands, strict=True)]
    done, names = parts[0]
    for i in range(1, len(parts) + 1):
        later = {x for _, labels in parts[i + 1 :] for x in labels} | set(result)
        if i == len(parts):
            done, names = _sum_others(cx, done, names, set(result))
            break
        done, names = _product(cx, (done, names), parts[i], later)
    if missing := tuple(x for x in result if x not in names):  # extent 1 everywhere
        done, names = cx.reshape(done, (*shape_of(done), *(1 for _ in missing))), (*names, *missing)
    return cx.cast(cx.transpose(done, [names.index(x) for x in result]), kind)


def _plain(cx: ImportContext, x: Value, labels: Labels, extents: dict[str, int]) -> tuple[Value, Labels]:
    """Repeated labels become one dim, the diagonal; dims that are broadcast, of extent 1, are left out."""
    kept = [i for i, (label, n) in enumerate(zip(labels, shape_of(x), strict=True)) if n == extents[label]]
    x, names = cx.reshape(x, [shape_of(x)[i] for i in kept]), [labels[i] for i in kept]
    while repeated := [label for label in names if names.count(label) > 1]:
        a = names.index(repeated[0])
        b = names.index(repeated[0], a + 1)
        rest = [d for d in range(len(names)) if d not in (a, b)]
        n, outer = shape_of(x)[a], [shape_of(x)[d] for d in rest]
        square = cx.reshape(cx.transpose(x, (*rest, a, b)), (*outer, n * n))
        x, names = cx.part(square, len(rest), 0, n, n + 1), [*(names[d] for d in rest), repeated[0]]
    return x, tuple(names)


def _sum_others(cx: ImportContext, x: Value, names: Labels, wanted: set[str]) -> tuple[Value, Labels]:
    """Dims that are not wanted are summed over."""
    gone = [d for d, label in enumerate(names) if label not in wanted]
    if gone:
        x = cx.cast(reduce(cx, "sum", accumulating(cx, x), gone), tensor(accumulating(cx, x)).dtype)
    return x, tuple(label for label in names if label in wanted)


def _product(
    cx: ImportContext, a: tuple[Value, Labels], b: tuple[Value, Labels], later: set[str]
) -> tuple[Value, Labels]:
    """A product of matrices: dims of both that are needed later are batch dims, of both that are not are summed."""
    x, left = _sum_others(cx, *a, later | set(b[1]))
    y, right = _sum_others(cx, *b, later | set(left))
    both = [label for label in left if label in right]
    batch, summed = [x for x in both if x in later], [x for x in both if x not in later]
    rows, columns = [x for x in left if x not in both], [x for x in right if x not in both]
    n = dict(zip((*left, *right), (*shape_of(x), *shape_of(y)), strict=True))
    names = (*batch, *rows, *columns)

    def arranged(value: Value, labels: Labels, order: list[str], shape: Sequence[int]) -> Value:
        return cx.reshape(cx.transpose(value, [labels.index(label) for label in order]), shape)

    outer, k = [n[label] for label in batch], math.prod(n[label] for label in summed)
    m, p = math.prod(n[label] for label in rows), math.prod(n[label] for label in columns)
    whole = [n[label] for label in names]
    kind = tensor(x).dtype
    if kind.is_float and kind.bits <= 32 and summed:
        u = arranged(x, left, [*batch, *rows, *summed], (*outer, m, k))
        v = arranged(cx.cast(y, kind), right, [*batch, *summed, *columns], (*outer, k, p))
        return cx.reshape(cx.emit("graph.matmul", [u, v], packed=False), whole), names
    u = accumulating(cx, arranged(x, left, [*batch, *rows, *summed], (*outer, m, 1, k)))
    v = accumulating(cx, arranged(y, right, [*batch, *columns, *summed], (*outer, 1, p, k)))
    terms = op(cx, "mul", u, v)
    done = reduce(cx, "sum", terms, (len(outer) + 2,)) if summed else terms
    return cx.reshape(done, whole), names


def det(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Elimination with the largest pivot of each column, unrolled: a few kernels per row."""
    x = given(cx, node)
    *outer, n, columns = shape_of(x)
    if n != columns:
        raise ValueError(f"takes square matrices, has {n} x {columns}")
    batch = math.prod(outer)
    kind = tensor(x).dtype
    a = accumulating(cx, cx.reshape(x, (batch, n, n)))
    zero, one = cx.scalar(0, a), cx.scalar(1, a)
    total = cx.const(np.ones((batch, 1, 1), tensor(a).dtype.numpy))
    for size in range(n, 0, -1):
        column = cx.part(a, 2, 0, 1)
        if size == 1:
            total = op(cx, "mul", total, column)
            break
        at = extreme_at(cx, op(cx, "abs", column), 1, "max")
        chosen = op(cx, "equal", iota(cx, size, 3, 1), at)
        row = cx.cast(reduce(cx, "sum", op(cx, "where", chosen, a, zero), (1,), True), tensor(a).dtype)
        pivot = cx.part(row, 2, 0, 1)
        # A row moved to the front past `at` others: each exchange changes the sign.
        odd = op(cx, "equal", cx.emit("graph.mod", [at, cx.scalar(2, at)]), cx.scalar(1, at))
        total = op(cx, "mul", total, op(cx, "where", odd, op(cx, "neg", pivot), pivot))
        safe = op(cx, "where", op(cx, "equal", pivot, zero), one, pivot)
        rest = cx.part(a, 2, 1, size - 1)
        factor = op(cx, "div", column, safe)
        rest = op(cx, "sub", rest, op(cx, "mul", factor, cx.part(row, 2, 1, size - 1)))
        upper, lower = cx.part(rest, 1, 0, size - 1), cx.part(rest, 1, 1, size - 1)
        a = op(cx, "where", op(cx, "less", iota(cx, size - 1, 3, 1), at), upper, lower)
    return cx.cast(cx.reshape(total, outer), kind)


RULES = (OnnxRule("Einsum", einsum), OnnxRule("Det", det))
