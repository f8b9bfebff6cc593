"""Kernels in numpy: the definition of every kind, vectorised over the parallel loops and slow over the reduce ones.

Reduce loops run one iteration at a time in canonical order, so that this reads as the definition of the bits:
slices of the cut loop ascending, each with a fresh accumulator, then N6's aligned tree (docs/numerics.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TypeVar

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.kernel import COMPUTE_TYPE, Body, Loop, Nest, Operand
from d1c.target.vector import TINY, TYPES, execute, flush, fma_f32, fma_short, round_to, run_body, widen

T = TypeVar("T")

LANES = 16
"""Interleaved lanes of a sum along a contiguous dimension (N7)."""
_SHORT = {"bf16", "f16"}

Index = int | np.ndarray


# ---- the rules that do not need a kernel ----------------------------------------------------------------------------


def slices(total: int, extent: int, multiple: int = 4) -> tuple[int, int]:
    """N5's cut of a reduce dim of `extent` in an op that adds up `total` terms: (number of slices, length of each but
    the last). `multiple` is 16 for sums in lanes."""
    parts = 1
    while parts < 16 and parts * 2 * 64 <= total:
        parts *= 2
    length = -(-extent // (parts * multiple)) * multiple
    return -(-extent // length), length


def tree(values: Mapping[int, T], combine: Callable[[T, T], T]) -> T:
    """N6: the aligned binary tree over numbered values: level by level node 2i with 2i + 1, a missing one skipped."""
    level = dict(values)
    if not level:
        raise ValueError("a tree needs at least one value")
    while len(level) > 1:
        above: dict[int, T] = {}
        for i in sorted(level):
            above[i // 2] = combine(above[i // 2], level[i]) if i // 2 in above else level[i]
        level = above
    return next(iter(level.values()))


def mac_pairs(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """N3: acc + a * b over the last dim of a and b (the pair, or of extent 1), odd before even; f32 or integer arrays
    of compute types, `acc` broadcasts with a[..., 0] * b[..., 0]."""
    for e in reversed(range(a.shape[-1])):
        acc = _multiply_add(a[..., e], b[..., e], acc, False)
    return acc


def sum_axes(x: np.ndarray, axes: Sequence[int], kind: str = "sum", pool: bool = False) -> np.ndarray:
    """N7's sum (or `prod`, `max`, `min`) of a compute array over `axes` (ascending), which go.

    `pool`: one slice, no lanes (N8)."""
    kept = [i for i in range(x.ndim) if i not in axes]
    order = [*kept, *axes]
    shape = [x.shape[i] for i in order]
    lanes = not pool and axes[-1] == x.ndim - 1
    cut = None if pool else len(order) - 1 if lanes else len(kept)
    length = 0
    if cut is not None:
        length = slices(math.prod(x.shape[i] for i in axes), shape[cut], LANES if lanes else 4)[1]
    names = {n: t for t, n in TYPES.items()}
    element = names[x.dtype]
    strides = [math.prod(x.shape[i + 1 :]) for i in order]
    target = [math.prod(shape[i + 1 : len(kept)]) for i in range(len(kept))] + [0] * len(axes)
    none = (None,) * len(order)
    nest = Nest(
        kind, tuple(Loop(f"d{i}", n) for i, n in enumerate(shape)), len(kept),
        (Operand(element, tuple(strides), none),), Operand(element, tuple(target), none), 1,
        cut=cut, slice=length, lanes=lanes,
    )  # fmt: skip
    out = np.zeros(math.prod(shape[: len(kept)]), x.dtype)
    run_nest(nest, out, [np.ascontiguousarray(x).reshape(-1)], [], shape, [])
    return out.reshape(shape[: len(kept)])


def _multiply_add(a: np.ndarray, b: np.ndarray, acc: np.ndarray, short: bool) -> np.ndarray:
    if acc.dtype != np.float32:
        with np.errstate(all="ignore"):
            return np.asarray(acc + a * b)
    return (fma_short if short else fma_f32)(a, b, acc)


# ---- whole kernels --------------------------------------------------------------------------------------------------


class _Call:
    """One call of a nest: addresses, and the arrays they select with the parallel loops as leading axes and one axis
    behind them, of the lanes (1 without)."""

    def __init__(self, nest: Nest, operands: Sequence[np.ndarray], tables: Sequence[np.ndarray], trips: Sequence[int]):
        self.nest, self.trips = nest, [int(t) for t in trips]
        self.tables = [np.asarray(t).view(np.uint32).astype(np.int64) for t in tables]
        self.operands = [_as(o, x) for o, x in zip(nest.operands, operands, strict=True)]
        self._parallel = [self._offsets(o, dict(enumerate(self._axes()))) for o in nest.operands]

    def _axes(self) -> list[np.ndarray]:
        p = self.nest.parallel
        return [np.arange(self.trips[i]).reshape((-1,) + (1,) * (p - i)) for i in range(p)]

    def _offsets(self, operand: Operand, index: Mapping[int, Index]) -> np.ndarray:
        offset = np.zeros((1,) * (self.nest.parallel + 1), np.int64)
        for loop, i in index.items():
            table = operand.tables[loop]
            if table is not None:
                offset = offset + self.tables[table][i]
            elif operand.strides[loop] != 0:
                offset = offset + operand.strides[loop] * i
        return offset

    def raw(self, k: int, index: Mapping[int, Index]) -> np.ndarray:
        """Operand k in storage form at the given iterations of the reduce loops."""
        return np.asarray(self.operands[k][_checked(self._parallel[k] + self._offsets(self.nest.operands[k], index))])

    def value(self, k: int, index: Mapping[int, Index]) -> np.ndarray:
        """Operand k in its compute type."""
        return widen(self.raw(k, index))

    def term(self, index: Mapping[int, Index]) -> np.ndarray:
        if self.nest.term is None:
            return self.value(0, index)
        return run_body(self.nest.term, [self.value(k, index) for k in range(self.nest.n_term)])

    def rows(self, row: np.ndarray) -> np.ndarray:
        """Offsets of the output for iterations `row` of the first loop and all of the other parallel loops."""
        index: dict[int, Index] = {i: row if i == 0 else a for i, a in enumerate(self._axes())}
        shape = (1, *self.trips[1 : self.nest.parallel], 1)
        return _checked(np.broadcast_to(self._offsets(self.nest.out, index), shape))

    def places(self) -> np.ndarray:
        """Offsets of the output, one per iteration of the parallel loops."""
        offset = self._offsets(self.nest.out, dict(enumerate(self._axes())))
        shape = (*self.trips[: self.nest.parallel], 1)
        return _checked(np.broadcast_to(offset, shape))[..., 0]


def _as(operand: Operand, array: np.ndarray) -> np.ndarray:
    return array.view(dtype(operand.dtype).numpy)


def _checked(offsets: np.ndarray) -> np.ndarray:
    if offsets.size and offsets.min() < 0:
        raise IndexError("an operand is addressed below its base")
    return offsets


def run_nest(
    nest: Nest, out: np.ndarray, operands: Sequence[np.ndarray], tables: Sequence[np.ndarray], trips: Sequence[int],
    scalars: Sequence[int],
) -> None:  # fmt: skip
    """Run a kernel: writes into `out`. `out` and `operands` are one-dimensional and start at their base address, of the
    storage type that the nest names (or of another with equal width); tables hold u32 element offsets; `trips` has one
    count a loop. Raises IndexError for an address outside an array, ValueError for a term that the kind cannot have."""
    if nest.term is not None and nest.kind in ("map", "mac", "fma", "or", "lookup"):
        raise ValueError(f"a kernel of kind {nest.kind} has no term")
    if 0 in [int(t) for t in trips[: nest.parallel]]:
        return
    call = _Call(nest, operands, tables, trips)
    if nest.kind == "scatter":
        return _scatter(call, _as(nest.out, out), int(scalars[0]))
    places, target = call.places(), _as(nest.out, out)
    if nest.kind == "map":
        if nest.epilogue is None:
            result, moved = call.raw(0, {}), nest.operands[0].dtype == nest.out.dtype
        else:
            result, moved = run_body(nest.epilogue, [call.value(k, {}) for k in range(len(operands))]), False
    else:
        result, moved = _accumulate(call, [int(s) for s in scalars])
    if not moved:
        if nest.kind != "map" and nest.epilogue is not None:
            others = [call.value(k, {}) for k in range(nest.n_term, len(operands))]
            result = run_body(nest.epilogue, [result, *others])
        elif nest.kind == "map" and nest.epilogue is None:
            result = widen(result)
        result = round_to(result, nest.out.dtype)
    target[places] = np.broadcast_to(result, (*places.shape, 1))[..., 0]


def _accumulate(call: _Call, scalars: Sequence[int]) -> tuple[np.ndarray, bool]:
    """The accumulators before the epilogue, and whether they are storage bits to be moved."""
    nest = call.nest
    if nest.kind in ("or", "lookup"):
        raw = _lookup(call, scalars[0]) if nest.kind == "lookup" else _or(call)
        moved = nest.epilogue is None and raw.dtype == dtype(nest.out.dtype).numpy
        return (raw, True) if moved else (widen(raw), False)
    if nest.kind in ("max", "min"):
        acc = _start(nest)
        for index in _iterations(nest, call.trips, 0, _extent(nest, call.trips)):
            acc = execute(nest.kind, [acc, call.term(index)], "")
        return acc, False
    part = _products if nest.kind in ("mac", "fma") else _lanes if nest.lanes else _sum
    extent = _extent(nest, call.trips)
    length = nest.slice if nest.cut is not None and nest.slice > 0 else max(extent, 1)
    starts = range(0, max(extent, 1), length)
    parts = {i: part(call, lo, min(lo + length, extent)) for i, lo in enumerate(starts)}
    return tree(parts, _combiner(nest)), False


def _extent(nest: Nest, trips: Sequence[int]) -> int:
    """Iterations of the cut loop; 1 where nothing is cut."""
    return 1 if nest.cut is None else trips[nest.cut]


def _combiner(nest: Nest) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """How two partial sums, or products, become one."""
    op = "mul" if nest.kind == "prod" else "add"
    return lambda a, b: execute(op, [a, b], "")


def _start(nest: Nest) -> np.ndarray:
    """What the accumulators of a slice start with: for sum, prod, max and min the neutral element, so that the first
    term comes out as it is."""
    kind = nest.kind
    if nest.term is None or kind in ("mac", "fma"):
        t = TYPES[COMPUTE_TYPE[nest.operands[0].dtype]]
    else:
        t = TYPES[_result_type(nest.term)]
    value: float = {"sum": -0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}.get(kind, 0.0)
    if t.kind != "f" and math.isinf(value):
        bounds = (False, True) if t == np.bool_ else (int(np.iinfo(t).min), int(np.iinfo(t).max))
        value = bounds[value > 0]
    return np.asarray(value).astype(t).reshape((1,) * (nest.parallel + 1))


def _result_type(body: Body) -> str:
    inputs = len(body.inputs)
    return body.inputs[body.result] if body.result < inputs else body.instrs[body.result - inputs].type


def _iterations(
    nest: Nest, trips: Sequence[int], lo: int, hi: int, inner: int | None = None, backwards: bool = False
) -> Iterable[dict[int, Index]]:
    """Iterations of a slice lo..hi of the cut loop in order: the other reduce loops outside, then the cut one, then
    `inner` (a loop that is kept innermost; -1: leave out the last loop), descending if `backwards`."""
    loops = list(range(nest.parallel, len(nest.loops)))
    last = [inner] if inner is not None else []
    outer = [i for i in loops if i != nest.cut and i not in last]
    order = [*outer, *([nest.cut] if nest.cut is not None and nest.cut not in last else []), *last]
    ranges: list[Sequence[int]] = [range(lo, hi) if i == nest.cut else range(trips[i]) for i in order]
    if backwards:
        ranges[-1] = ranges[-1][::-1]
    for point in product(*ranges):
        yield dict(zip(order, point, strict=True))


def _products(call: _Call, lo: int, hi: int) -> np.ndarray:
    """mac and fma: acc = a * b + acc from +0."""
    nest, acc = call.nest, _start(call.nest)
    short = nest.operands[0].dtype in _SHORT and nest.operands[1].dtype in _SHORT
    plain = short and _never_tiny(call)
    pair = len(nest.loops) - 1 if nest.kind == "mac" else None
    for index in _iterations(nest, call.trips, lo, hi, pair, nest.kind == "mac"):
        if plain:
            with np.errstate(all="ignore"):
                a = flush(call.value(0, index)).astype(np.float64)
                acc = (a * flush(call.value(1, index)) + acc).astype(np.float32)
            continue
        acc = _multiply_add(call.value(0, index), call.value(1, index), acc, short)
    return acc


def _never_tiny(call: _Call) -> bool:
    """Whether no sum of products of the two operands can be flushed: every product is a multiple of 2^-126."""
    least = 1.0
    for x in call.operands[:2]:
        with np.errstate(invalid="ignore"):  # signalling NaNs in memory that the call may not read
            magnitude = np.abs(flush(widen(x)).astype(np.float64))
        least *= float(np.min(magnitude, initial=1.0, where=magnitude > 0))
    return least >= TINY * 2.0**20  # bf16 and f16 have at most 10 bits behind the first


def _sum(call: _Call, lo: int, hi: int) -> np.ndarray:
    acc, add = _start(call.nest), _combiner(call.nest)
    for index in _iterations(call.nest, call.trips, lo, hi):
        acc = add(acc, call.term(index))
    return acc


def _lanes(call: _Call, lo: int, hi: int) -> np.ndarray:
    """16 accumulators along the last reduce loop; each runs over the other reduce loops, its own terms innermost."""
    nest, add = call.nest, _combiner(call.nest)
    last = len(nest.loops) - 1
    start, stop = (lo, hi) if nest.cut == last else (0, call.trips[last])
    lanes: list[np.ndarray] = [_start(nest)] * min(LANES, max(stop - start, 1))
    blocks = range(start, stop, LANES)
    others = [i for i in range(nest.parallel, last) if i != nest.cut]
    if nest.cut is not None and nest.cut != last:
        others.append(nest.cut)
    ranges = [range(lo, hi) if i == nest.cut else range(call.trips[i]) for i in others]
    for point in product(*ranges):
        index: dict[int, Index] = dict(zip(others, point, strict=True))
        for block in blocks:
            terms = call.term(index | {last: np.arange(block, min(block + LANES, stop))})
            for lane in range(min(LANES, stop - block)):
                lanes[lane] = add(lanes[lane], terms[..., lane : lane + 1] if terms.shape[-1] > 1 else terms)
    return tree(dict(enumerate(lanes)), add)


def _or(call: _Call) -> np.ndarray:
    """The bitwise or of the operand's storage bits."""
    storage = dtype(call.nest.operands[0].dtype)
    acc = np.zeros((1,) * (call.nest.parallel + 1), f"u{storage.bytes}")
    for index in _iterations(call.nest, call.trips, 0, _extent(call.nest, call.trips)):
        acc = acc | call.raw(0, index).view(acc.dtype)
    return acc.view(storage.numpy)


def _scatter(call: _Call, target: np.ndarray, first: int) -> None:
    """Operand 0, then the updates in order, each read from and stored to the output."""
    nest, places = call.nest, call.places()
    update_loop, count = nest.parallel, call.trips[nest.parallel]
    target[places] = np.broadcast_to(call.raw(0, {}), (*places.shape, 1))[..., 0]
    rows = call.value(1, {update_loop: np.arange(count)}).astype(np.int64) - first
    rows = np.broadcast_to(rows, (*rows.shape[:-1], count))
    holds = (rows >= 0) & (rows < call.trips[0])
    for u in np.flatnonzero(holds.any(axis=tuple(range(holds.ndim - 1)))).tolist():
        row, held = rows[..., u : u + 1], holds[..., u : u + 1]
        at = call.rows(np.where(held, row, 0))
        chosen = np.broadcast_to(held, at.shape)
        update = np.broadcast_to(call.raw(2, {update_loop: u}), at.shape)[chosen]
        at = at[chosen]
        if nest.term is not None:
            update = round_to(run_body(nest.term, [widen(target[at]), widen(update)]), nest.out.dtype)
        elif update.dtype != target.dtype:
            update = round_to(widen(update), nest.out.dtype)
        target[at] = update


def _lookup(call: _Call, first: int) -> np.ndarray:
    """Row operand0 - first of operand 1 where this share holds it, else zero bits."""
    nest = call.nest
    rows = call.trips[nest.parallel]
    row = call.value(0, {}).astype(np.int64) - first
    held = (row >= 0) & (row < rows)
    storage = dtype(nest.operands[1].dtype)
    bits = np.dtype(f"u{storage.bytes}")
    if rows == 0:
        return np.zeros(row.shape, bits).view(storage.numpy)
    values = call.raw(1, {nest.parallel: np.where(held, row, 0)}).view(bits)
    return np.where(held, values, bits.type(0)).view(storage.numpy)
