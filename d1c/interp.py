"""What a graph means: evaluation on whole arrays, bit for bit by the numeric contract (docs/numerics.md).

`evaluate` runs a module. Everything that reduces goes through `eval_box`, which works on any box of an iteration
space, so that a sharded evaluation is the same code on other intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.structured import Entry, Structured
from d1c.ir.types import TensorType
from d1c.ops.graph import loop
from d1c.ops.graph.attention import CHUNK, LEAST
from d1c.ops.graph.contract import MatmulAttrs, pack
from d1c.ops.graph.reduce import ReduceAttrs
from d1c.ops.opdef import OpDef, opdef
from d1c.target.counts import by_output, trim
from d1c.target.dtypes import fill_value, from_numpy
from d1c.target.nest_numpy import LANES
from d1c.target.numerics import NumpyBuilder, exp, fma_f32, round_to, tree, widen
from d1c.target.vector import flush, round_f64

Box = tuple[tuple[int, int], ...]
"""Per iteration dim a half-open interval; that of the cut dim starts on a slice boundary."""
Term = Callable[..., np.ndarray]
"""Compute arrays (f32, i32, i64, bool) to a compute array, element by element."""

_B = NumpyBuilder()
_STACK = 1 << 16  # accumulators evaluated at once; more do not pay


# ---- modules --------------------------------------------------------------------------------------------------------


def evaluate(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph module by name, in their storage types. ValueError: inputs that do not fit."""
    block = module.function().block
    values = evaluate_all(module, inputs)
    results = block.ops[-1].operands
    names = module.attrs.get("outputs") or tuple(v.name for v in results)
    outputs = {name: values[v] for name, v in zip(names, results, strict=True)}
    return trim(outputs, by_output(module.attrs.get("counts", ())))


def evaluate_all(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[Value, np.ndarray]:
    """Every value of `main` (interiors of fused groups have no storage and are left out)."""
    block = module.function().block
    return _block(module, block, {arg: _input(arg, inputs) for arg in block.args})


def _block(module: Module, block: Block, values: dict[Value, np.ndarray]) -> dict[Value, np.ndarray]:
    """`values`, those of the arguments, with every other value of a function's block added."""
    for op in block.ops[:-1]:
        arrays = [values[v] for v in op.operands]
        again = opdef(op.name).kind == "loop"
        results = eval_loop(op, arrays, module) if again else eval_op(op, arrays, module.constants)
        values.update(zip(op.results, results, strict=True))
    return values


def eval_loop(op: Op, arrays: Sequence[np.ndarray], module: Module) -> list[np.ndarray]:
    """The results of a graph.loop on storage arrays."""

    def run(body: Function, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        values = _block(module, body.block, dict(zip(body.block.args, args, strict=True)))
        return [values[v] for v in body.block.ops[-1].operands]

    return loop.evaluate(op, module, arrays, run, lambda x: bool(x.item()))


def _input(arg: Value, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    t = arg.type
    assert isinstance(t, TensorType)
    if arg.name not in inputs:
        raise ValueError(f"input {arg.name!r} is missing; given: {', '.join(sorted(inputs)) or 'none'}")
    x = np.asarray(inputs[arg.name])
    if x.shape != t.shape:
        raise ValueError(f"input {arg.name!r} has shape {list(x.shape)}, the model takes {list(t.shape)}")
    if x.dtype == t.dtype.numpy:
        return x
    if from_numpy(x.dtype).is_float and t.dtype.is_float:
        return round_to(x.astype(np.float32), t.dtype)
    raise ValueError(f"input {arg.name!r} has type {x.dtype}, the model takes {t.dtype}")


def eval_op(op: Op, arrays: Sequence[np.ndarray], constants: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The results of one graph op on storage arrays."""
    if op.name == "graph.const":
        return [constants[op.attrs.name]]
    out = op.result.type
    assert isinstance(out, TensorType)
    if op.name == "graph.fused":
        return [round_to(_eval_fused(op, arrays), out.dtype)]
    if op.name == "graph.attention":
        return [round_to(_eval_attention(op, arrays), out.dtype)]
    row = opdef(op.name)
    if row.eval is not None:
        return [np.asarray(row.eval(op.attrs, (out,), *arrays))]
    return [round_to(_compute(row, op, arrays), out.dtype)]


def _compute(row: OpDef, op: Op, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The compute array of an elementwise or reducing op, before it is rounded to storage."""
    if row.kind == "elementwise":
        assert row.body is not None
        return np.asarray(row.body(_B, op.attrs, *(widen(x) for x in arrays)))
    if row.structure is None:
        raise ValueError(f"{op.name} has no meaning at the graph level")
    types = tuple(v.type for v in op.operands)
    out = op.result.type
    assert isinstance(out, TensorType)
    st = row.structure(types, op.attrs, (out,))
    return reduce_structured(st, arrays).reshape(out.shape)


def _eval_fused(op: Op, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The yielded value of the region: operands in storage, everything else in compute types, nothing rounded."""
    (block,) = op.regions
    return _elementwise(block, dict(zip(block.args, arrays, strict=True)))


def _elementwise(block: Block, values: dict[Value, np.ndarray]) -> np.ndarray:
    """What a region yields, given its arguments in `values`."""
    for inner in block.ops[:-1]:
        values[inner.result] = _compute(opdef(inner.name), inner, [values[v] for v in inner.operands])
    return widen(values[block.ops[-1].operands[0]])


def _eval_attention(op: Op, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """N10: chunks of keys, each with its maximum m, sum l and product o, joined in N6's tree."""
    (block,), attrs = op.regions, op.attrs
    q, keys, values, *others = arrays
    packed, count = MatmulAttrs(attrs.packed), keys.shape[-2]
    pair = values.shape[-1] if attrs.packed else 1
    chunks: dict[int, _Chunk] = {}
    for i, lo in enumerate(range(0, count, CHUNK)):
        hi = min(lo + CHUNK, count)
        k = np.swapaxes(keys[..., lo:hi, :], -1, -2)
        k = pack(k, pair == 2) if attrs.packed else k
        v = np.take(values, np.arange(lo // pair, -(-hi // pair)), -3 if attrs.packed else -2)
        env = {block.args[0]: _structured("graph.matmul", packed, q, k)}
        for a, x in zip(block.args[1:], others, strict=True):
            env[a] = x[..., lo:hi] if x.ndim and x.shape[-1] == count else x
        s = _elementwise(block, env)
        m = _structured("graph.reduce_max", ReduceAttrs((s.ndim - 1,), True), s)
        p = exp(_B, _B.sub(s, _B.max(m, LEAST)))
        total = _structured("graph.reduce_sum", ReduceAttrs((s.ndim - 1,), True), p)
        o = _structured("graph.matmul", packed, round_to(p, from_numpy(values.dtype)), v, one_slice=True)
        chunks[i] = m, total, o
    _, total, o = tree(chunks, _joined)
    return np.asarray(_B.div(o, total)).transpose(attrs.order)


_Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]


def _joined(a: _Chunk, b: _Chunk) -> _Chunk:
    """Two nodes (m, l, o) of attention's tree as one."""
    m = _B.max(a[0], b[0])
    s, t = (exp(_B, _B.sub(x[0], _B.max(m, LEAST))) for x in (a, b))
    total, o = (_B.add(_B.mul(x, s), _B.mul(y, t)) for x, y in zip(a[1:], b[1:], strict=True))
    return m, total, o


def _structured(name: str, attrs: Any, *arrays: np.ndarray, one_slice: bool = False) -> np.ndarray:
    """The f32 result of a contraction or reduction; `one_slice`: its reduction is not cut."""
    row = opdef(name)
    assert row.structure is not None
    types = tuple(TensorType(x.shape, from_numpy(x.dtype)) for x in arrays)
    (out,) = row.infer(types, attrs)
    assert isinstance(out, TensorType)
    st = row.structure(types, attrs, (out,))
    return reduce_structured(replace(st, cut=None, slice=0) if one_slice else st, arrays).reshape(out.shape)


# ---- iteration spaces -----------------------------------------------------------------------------------------------


def whole(st: Structured) -> Box:
    """The box of the whole iteration space."""
    return tuple((0, d.extent) for d in st.dims)


def interval(entry: Entry, box: Box) -> tuple[int, int]:
    """First and last-but-one index that an entry takes on a box without empty dims."""
    lo = hi = entry.offset
    for d, c in entry.terms:
        ends = c * box[d][0], c * (box[d][1] - 1)
        lo, hi = lo + min(ends), hi + max(ends)
    return lo, hi + 1


def dense(st: Structured, i: int, box: Box, array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """What a box reads of operand `i`, given the whole operand: an array with one axis per entry of its map (a span of
    dims is one axis), filled where it leaves the tensor, and the index with which each axis starts."""
    entries, fill = st.maps[i], st.fills[i]
    shape, d = [], 0
    for e in entries:
        shape.append(math.prod(array.shape[d : d + e.span]))
        d += e.span
    array = array.reshape(shape)
    bounds = [interval(e, box) for e in entries]
    inside = tuple(slice(max(lo, 0), max(0, min(hi, n))) for (lo, hi), n in zip(bounds, shape, strict=True))
    starts = tuple(lo for lo, _ in bounds)
    if all(0 <= lo and hi <= n for (lo, hi), n in zip(bounds, shape, strict=True)):
        return array[inside], starts
    if fill is None:
        raise ValueError(f"operand {i} is read outside its shape {shape}: {bounds}")
    out = np.full([hi - lo for lo, hi in bounds], fill_value(fill, array.dtype), array.dtype)
    part = array[inside]
    places = zip(inside, starts, part.shape, strict=True)
    out[tuple(slice(s.start - lo, s.start - lo + n) for s, lo, n in places)] = part
    return out, starts


def operand(st: Structured, i: int, box: Box, array: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Operand `i` as a read-only view over all dims of the box (those it does not depend on have stride 0).

    array   one axis per entry of the operand's map, covering at least the interval of the box, fills included;
    start   the index of its first element per axis (negative in padding).
    """
    flat = np.ascontiguousarray(array)
    base, strides = 0, [0] * len(box)
    for axis, (entry, first) in enumerate(zip(st.maps[i], start, strict=True)):
        lo, hi = interval(entry, box)
        end = first + flat.shape[axis]
        if lo < first or hi > end:
            raise ValueError(f"operand {i}, axis {axis}: reads {lo}..{hi - 1}, holds {first}..{end - 1}")
        step = flat.strides[axis]
        base += (entry.offset - first + sum(c * box[d][0] for d, c in entry.terms)) * step
        for d, c in entry.terms:
            strides[d] += c * step
    origin = flat.reshape(-1)[base // flat.itemsize :]
    shape = [hi - lo for lo, hi in box]
    return np.lib.stride_tricks.as_strided(origin, shape, strides, writeable=False)


def combiner(kind: str) -> Callable[[Any, Any], Any]:
    """How two partial results of a Structured.kind become one."""
    if kind in ("or", "lookup"):
        return _or
    return {"max": _B.max, "min": _B.min, "prod": _B.mul}.get(kind, _B.add)


def _or(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The bits of both, floats included."""
    if a.dtype.kind == "f":
        bits = f"i{a.itemsize}"
        return np.asarray(np.bitwise_or(a.view(bits), b.view(bits)).view(a.dtype))
    return np.asarray(np.bitwise_or(a, b))


def reduce_structured(st: Structured, arrays: Sequence[np.ndarray], term: Term | None = None) -> np.ndarray:
    """The whole iteration space on whole storage arrays; see eval_box."""
    if not all(d.extent for d in st.dims if not d.reduce):
        return np.zeros(st.out_shape, widen(arrays[0]).dtype)
    box = whole(st)
    read = arrays if st.kind == "map" else arrays[: st.n_term]
    pairs = [dense(st, i, box, np.asarray(a)) for i, a in enumerate(read)]
    return eval_box(st, box, [a for a, _ in pairs], [s for _, s in pairs], term)


def eval_box(
    st: Structured, box: Box, arrays: Sequence[np.ndarray], starts: Sequence[Sequence[int]], term: Term | None = None
) -> np.ndarray:
    """The accumulators of a box, over its parallel dims, in the compute type (f32, i32, i64, bool), without epilogue.

    arrays, starts  as in `operand`, storage arrays, for operands 0 .. n_term - 1 (kind map: all).
    term            as Structured's term; for kind map the epilogue over all the operands. None: the kind's default.
    The slices of the cut dim are combined in the aligned tree by their number in the whole iteration space, so that
    boxes of 2^j slices give exactly that tree's nodes.
    """
    if st.kind == "map":
        views = [operand(st, i, box, widen(a), s) for i, (a, s) in enumerate(zip(arrays, starts, strict=True))]
        return np.array(term(*views) if term else views[0])
    if st.kind == "lookup":
        return _lookup(st, box, arrays, starts)
    if st.kind == "scatter":
        raise ValueError("a scatter stores after every step: its row evaluates it")
    return np.asarray(tree(eval_slices(st, box, arrays, starts, term), combiner(st.kind)))


def eval_slices(
    st: Structured, box: Box, arrays: Sequence[np.ndarray], starts: Sequence[Sequence[int]], term: Term | None = None
) -> dict[int, np.ndarray]:
    """The slices of a box by number, not yet combined; arguments as eval_box."""
    step = _Step(st, arrays, term)
    storage = list(zip(arrays, starts, strict=True))[: st.n_term]
    held = [operand(st, i, box, step.prepare(widen(a)), s) for i, (a, s) in enumerate(storage)]
    out: dict[int, np.ndarray] = {}
    size = math.prod(hi - lo for d, (lo, hi) in zip(st.dims, box, strict=True) if not d.reduce)
    for first, count, length in _segments(st, box, max(1, _STACK // max(1, size))):
        views = [_stacked(st, box, v, first, count, length) for v in held]
        sums = _accumulate(st, views, step)
        out.update((first + j, sums[j]) for j in range(count))
    return out


class _Step:
    """How one more term enters the accumulators: `prepare` an operand once, `first` accumulators, then `add` terms."""

    def __init__(self, st: Structured, arrays: Sequence[np.ndarray], term: Term | None) -> None:
        self.product = term is None and st.kind in ("mac", "fma")
        self.term, self.kind, self.combine = term, st.kind, combiner(st.kind)
        short = all(a.dtype.itemsize == 2 and widen(a[:0]).dtype == np.float32 for a in arrays[: st.n_term])
        # The product of two bf16 or f16 values and its sum with an f32 are safe in float64 (fma_short).
        self.short = self.product and short

    def prepare(self, x: np.ndarray) -> np.ndarray:
        if not self.product or x.dtype != np.float32:
            return x
        return flush(x).astype(np.float64) if self.short else flush(x)

    def first(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        if self.kind in ("max", "min"):
            low = self.kind == "max"
            if dtype.kind == "f":
                return np.full(shape, -np.inf if low else np.inf, dtype)
            if dtype == np.bool_:
                return np.full(shape, not low)
            return np.full(shape, np.iinfo(dtype).min if low else np.iinfo(dtype).max, dtype)
        if self.kind == "prod":
            return np.ones(shape, dtype)
        if self.short:
            return np.zeros(shape, np.float32)
        # -0 is neutral: the first term of a sum comes out as it is. Products start from +0 (N3).
        return np.full(shape, -0.0 if dtype.kind == "f" and not self.product else 0, dtype)

    def add(self, acc: np.ndarray, *xs: np.ndarray) -> np.ndarray:
        if self.short:
            with np.errstate(all="ignore"):
                return round_f64(xs[0] * xs[1] + acc)
        if self.product:
            with np.errstate(all="ignore"):
                return fma_f32(xs[0], xs[1], acc) if acc.dtype == np.float32 else acc + xs[0] * xs[1]
        x = np.asarray(self.term(*xs)) if self.term else xs[0]
        return np.asarray(self.combine(acc, x))


def _segments(st: Structured, box: Box, most: int) -> Iterator[tuple[int, int, int]]:
    """The cut dim of the box as runs of (first slice, how many, length): at most `most` at once, the tail apart."""
    if st.cut is None:
        yield 0, 1, 0
        return
    lo, hi = box[st.cut]
    if lo % st.slice:
        raise ValueError(f"a box of dim {st.dims[st.cut].name} starts at {lo}, inside a slice of {st.slice}")
    i, end = lo // st.slice, hi // st.slice
    while i < end:
        yield i, min(most, end - i), st.slice
        i += min(most, end - i)
    if hi % st.slice or hi == lo:
        yield end, 1, hi % st.slice


def _stacked(st: Structured, box: Box, view: np.ndarray, first: int, count: int, length: int) -> np.ndarray:
    """A view over (count, dims...) in which the cut dim is one slice; for no cut, count is 1."""
    shape, strides = list(view.shape), list(view.strides)
    if st.cut is None:
        return view[None]
    begin = first * st.slice - box[st.cut][0]
    origin = view[(slice(None),) * st.cut + (slice(begin, None),)]
    shape[st.cut] = length
    return np.lib.stride_tricks.as_strided(
        origin, [count, *shape], [strides[st.cut] * st.slice, *strides], writeable=False
    )


def _accumulate(st: Structured, views: Sequence[np.ndarray], step: _Step) -> np.ndarray:
    """Terms in canonical order: the cut dim inside the other reduce dims, a pair's second before its first (N3); or in
    16 lanes along the last dim (N7)."""
    rank = 1 + st.parallel
    parallel, extents = views[0].shape[:rank], views[0].shape[rank:]
    dtype = views[0].dtype
    if step.term is not None:
        one = (slice(0, 1),) * views[0].ndim
        dtype = np.asarray(step.term(*(v[one] for v in views))).dtype
    inner = [len(extents) - 1] if st.lanes or st.kind == "mac" else []
    cut = [st.cut - st.parallel] if st.cut is not None and st.cut - st.parallel not in inner else []
    order = [i for i in range(len(extents)) if i not in (*cut, *inner)] + cut + inner
    ranges: list[Sequence[Any]] = [range(extents[i]) for i in order]
    shape: tuple[int, ...] = parallel
    if st.lanes:
        ranges[-1] = [slice(k, k + LANES) for k in range(0, extents[-1], LANES)]
        shape = (*parallel, min(LANES, max(1, extents[-1])))
    elif st.kind == "mac":
        ranges[-1] = ranges[-1][::-1]
    # Reduce dims in front and in the order of accumulation, so that a point selects one contiguous step.
    axes = [rank + i for i in order]
    views = [v.transpose(*axes, *range(rank)) for v in views]
    if not st.lanes:
        acc = step.first(shape, dtype)
        for point in product(*ranges):
            acc = step.add(acc, *(v[point] for v in views))
        return acc
    acc = step.first(shape, dtype)
    for point in product(*ranges):
        xs = [np.moveaxis(v[point], 0, -1) for v in views]
        n = xs[0].shape[-1]
        acc[..., :n] = step.add(acc[..., :n], *xs)
    return np.asarray(tree({i: acc[..., i] for i in range(shape[-1])}, step.combine))


def _lookup(st: Structured, box: Box, arrays: Sequence[np.ndarray], starts: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of the table part that the box covers; zeros where the index is outside it."""
    index = operand(st, 0, box, widen(arrays[0]), starts[0])[..., :1].astype(np.int64)
    table = operand(st, 1, box, widen(arrays[1]), starts[1])
    lo, hi = box[-1]
    inside = (index >= lo) & (index < hi)
    rows = np.take_along_axis(table, np.where(inside, index - lo, 0), -1)
    return np.where(inside, rows, np.zeros((), rows.dtype))[..., 0]
