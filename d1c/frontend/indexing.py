"""Index arithmetic that rules share: counting, wrapping, flat positions, gathers, masked selection.

Gathers are `graph.lookup`s in a flattened table; counts and positions are reductions over comparisons with constants,
which fuse, so that a tensor of n x n comparisons is never stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from d1c.frontend.context import ImportContext, tensor
from d1c.ir.core import Value
from d1c.target.dtypes import BOOL, F32, I32, I64, U64, DType, dtype

CHUNK_BYTES = 1 << 17
"""How much of a scatter's updates and indices is read at once."""


def op(cx: ImportContext, name: str, *operands: Value) -> Value:
    """The elementwise op graph.`name`, without attributes."""
    value: Value = cx.emit(f"graph.{name}", operands)
    return value


def iota(cx: ImportContext, n: int, rank: int, dim: int, kind: DType = I64, step: int = 1) -> Value:
    """0, step, 2 step, ... along `dim` of a constant of `rank` dims, the others of extent 1."""
    shape = [1] * rank
    shape[dim] = n
    return cx.const((np.arange(n, dtype=np.int64) * step).astype(kind.numpy).reshape(shape))


def shape_of(value: Value) -> tuple[int, ...]:
    return tensor(value).shape


def front(cx: ImportContext, value: Value, axis: int) -> Value:
    """`value` with dim `axis` first."""
    return cx.transpose(value, (axis, *(d for d in range(len(shape_of(value))) if d != axis)))


def last(cx: ImportContext, value: Value, axis: int) -> Value:
    """`value` with dim `axis` last."""
    return cx.transpose(value, (*(d for d in range(len(shape_of(value))) if d != axis), axis))


def from_front(cx: ImportContext, value: Value, axis: int) -> Value:
    """The opposite of `front`: dim 0 goes to place `axis`."""
    rank = len(shape_of(value))
    return cx.transpose(value, (*range(1, axis + 1), 0, *range(axis + 1, rank)))


def from_last(cx: ImportContext, value: Value, axis: int) -> Value:
    """The opposite of `last`: the last dim goes to place `axis`."""
    rank = len(shape_of(value))
    return cx.transpose(value, (*range(axis), rank - 1, *range(axis, rank - 1)))


def wrap(cx: ImportContext, index: Value, extent: int | Value) -> Value:
    """Negative indices counted from the end, as ONNX does; `extent` a number or a value that broadcasts."""
    if tensor(index).dtype.kind == "uint":
        index = cx.cast(index, I64)
    n = cx.scalar(extent, index) if isinstance(extent, int) else extent
    return op(cx, "where", op(cx, "less", index, cx.scalar(0, index)), op(cx, "add", index, n), index)


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def reduce(cx: ImportContext, kind: str, x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
    """graph.reduce_`kind`; the result in the type that accumulates."""
    value: Value = cx.emit(f"graph.reduce_{kind}", [x], axes=tuple(sorted(axes)), keepdims=keepdims)
    return value


def flag(cx: ImportContext, mask: Value, kind: DType = I32) -> Value:
    """A bool as 0 or 1."""
    return cx.cast(mask, kind)


def lookup(cx: ImportContext, index: Value, table: Value, batch: int = 0) -> Value:
    """Rows of the table; index dims, then the table's but the first. `batch`: leading dims in common, with tables of
    their own."""
    value: Value = cx.emit("graph.lookup", [cx.cast(index, I32), table], batch=batch)
    return value


def ordered(cx: ImportContext, x: Value) -> Value:
    """Values with the order of `x` in a type whose comparisons are exact: u64 is seen as i64 by kernels, bool as a
    mask."""
    kind = tensor(x).dtype
    if kind == BOOL:
        return cx.cast(x, I32)
    if kind == U64:
        moved = cx.cast(x, I64)
        return op(cx, "add", moved, cx.const(np.array(np.iinfo(np.int64).min)))
    return x


def sort_key(cx: ImportContext, x: Value) -> Value:
    """Signed integers with the order of `x`; NaN is the largest, -0 is 0."""
    kind = tensor(x).dtype
    if kind.is_float:
        return op(cx, "sort_key", x)
    return ordered(cx, x) if kind.bits > 32 or kind == BOOL else cx.cast(x, I64 if kind.name == "u32" else I32)


def accumulating(cx: ImportContext, x: Value) -> Value:
    """`x` in the type in which its sums accumulate (f32, f64, i32 or i64)."""
    kind = tensor(x).dtype
    if kind.is_float:
        return x if kind.bits >= 32 else cx.cast(x, F32)
    return cx.cast(x, "i64" if kind.name in ("u32", "u64", "i64") else "i32")


def flat_index(cx: ImportContext, shape: Sequence[int], at: dict[int, Value], like: Sequence[int]) -> Value:
    """Row-major positions in a tensor of `shape`, for a result of shape `like` of the same rank: along dim d the
    given index (any value of `like`'s rank), or the result's own coordinate."""
    steps, total, rank = strides(shape), None, len(shape)
    for d, index in at.items():
        term = index if steps[d] == 1 else op(cx, "mul", index, cx.scalar(steps[d], index))
        total = term if total is None else op(cx, "add", total, term)
    assert total is not None
    for d, n in enumerate(like):
        if d not in at and n > 1:
            total = op(cx, "add", total, iota(cx, n, rank, d, tensor(total).dtype, steps[d]))
    return cx.expand(total, like)


def running_count(cx: ImportContext, mask: Value) -> Value:
    """How many of mask[0 .. i-1] are true: i32 [n] for a bool [n]."""
    return prefix(cx, flag(cx, mask), 0, "sum", exclusive=True)


BLOCK = 64
"""A prefix longer than this is taken in blocks: of the elements of each, then of the blocks' totals."""


def prefix(cx: ImportContext, x: Value, axis: int, kind: str, exclusive: bool = False, reverse: bool = False) -> Value:
    """Running sums or products along `axis`, for `x` in a type that accumulates: O(n BLOCK) terms."""
    out = from_last(cx, _prefix(cx, last(cx, x, axis), kind, exclusive, reverse), axis)
    return out


def _prefix(cx: ImportContext, x: Value, kind: str, exclusive: bool, reverse: bool) -> Value:
    """Along the last dim."""
    *outer, n = shape_of(x)
    if n > BLOCK:
        return _blocks(cx, x, kind, exclusive, reverse)
    rank = len(outer) + 2
    read, here = iota(cx, n, rank, rank - 1, I32), iota(cx, n, rank, rank - 2, I32)
    before = ("greater" if exclusive else "greater_equal") if reverse else ("less" if exclusive else "less_equal")
    mask = op(cx, before, read, here)
    terms = op(cx, "where", mask, cx.reshape(x, (*outer, 1, n)), cx.scalar(int(kind == "prod"), x))
    return cx.cast(reduce(cx, kind, terms, (rank - 1,)), tensor(x).dtype)


def _blocks(cx: ImportContext, x: Value, kind: str, exclusive: bool, reverse: bool) -> Value:
    *outer, n = shape_of(x)
    m = -(-n // BLOCK)
    if m * BLOCK > n:
        zero = (0,) * len(outer)
        x = cx.emit("graph.pad", [x], lo=(*zero, 0), hi=(*zero, m * BLOCK - n), value=float(kind == "prod"))
    parts = cx.reshape(x, (*outer, m, BLOCK))
    within = _prefix(cx, parts, kind, exclusive, reverse)
    totals = cx.cast(reduce(cx, kind, parts, (len(outer) + 1,)), tensor(x).dtype)
    before = cx.reshape(_prefix(cx, totals, kind, True, reverse), (*outer, m, 1))
    both = op(cx, "mul" if kind == "prod" else "add", within, before)
    return cx.part(cx.reshape(both, (*outer, m * BLOCK)), len(outer), 0, n)


def zeros(cx: ImportContext, shape: Sequence[int], kind: DType | str) -> Value:
    """A constant of zeros."""
    return cx.const(np.zeros(tuple(shape), (dtype(kind) if isinstance(kind, str) else kind).numpy))


def scatter(cx: ImportContext, data: Value, index: Value, updates: Value, how: str = "none", batch: int = 0) -> Value:
    """graph.scatter: rows of `updates` into rows of `data`; indices outside are left out. `batch`: how many dims of
    data behind its first have indices of their own.

    Every core goes through all updates of its rows; more than CHUNK_BYTES come in turns, so that they need not all be
    in SRAM at once. Updates are applied in order, so that this changes no bit."""
    if tensor(data).dtype == U64 and how in ("max", "min"):
        top = cx.const(np.array(np.iinfo(np.int64).min))
        made = scatter(cx, ordered(cx, data), index, ordered(cx, updates), how, batch)
        return cx.cast(op(cx, "add", made, top), U64)
    count = shape_of(index)[-1]
    each = I32.bytes + tensor(updates).dtype.bytes * math.prod(shape_of(updates)[batch + 1 :])
    turn = max(1, CHUNK_BYTES // each)
    index = cx.cast(index, I32)
    for first in range(0, count, turn):
        part = (cx.part(v, batch, first, min(turn, count - first)) for v in (index, updates))
        data = cx.emit("graph.scatter", [data, *part], reduce=how, batch=batch)
    return data


def keep(cx: ImportContext, rows: Value, mask: Value, most: int) -> tuple[Value, Value]:
    """The rows (dim 0) where `mask` is true, moved up, in at most `most` rows; and their number, i64 [1].

    What stands behind the last of them is 0."""
    n = shape_of(mask)[0]
    place = op(cx, "where", mask, running_count(cx, mask), cx.const(np.array(most, np.int32)))
    count = cx.reshape(reduce(cx, "sum", flag(cx, mask, I64), (0,)) if n else zeros(cx, (1,), I64), (1,))
    return scatter(cx, zeros(cx, (most, *shape_of(rows)[1:]), tensor(rows).dtype), place, rows), count
