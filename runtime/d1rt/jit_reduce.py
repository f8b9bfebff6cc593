"""Kernels of kind sum, prod, max, min, or, fma, and mac in f64: reductions on the vector unit."""

from __future__ import annotations

from collections.abc import Sequence

from d1rt.jit_ir import FLOATS, Value, element, vec, width
from d1rt.jit_loops import Frame, Pointers, acc_type, only_first
from d1rt.jit_vector import LANES, emit_body, first, key, load_raw, multiply_add, store_raw, widen

WIDE = 4
"""Vectors that a block accumulates side by side: one chain of dependent adds leaves most of the unit idle."""


def emit_reduce(frame: Frame) -> None:
    """Any reduction but the matrix unit's."""
    if frame.nest.kind == "or":
        _emit_or(frame)
    elif frame.nest.lanes:
        _emit_lanes(frame)
    else:
        _emit_columns(frame)


def combine(frame: Frame, left: Value, right: Value) -> Value:
    """One step of the reduction, left before right."""
    kind = frame.nest.kind
    if kind in ("max", "min"):
        if element(left.type) == "i1":
            return left | right if kind == "max" else left & right
        return frame.fn.intrinsic("smax" if kind == "max" else "smin", left, right)
    return left * right if kind == "prod" else left + right


def _ordered(frame: Frame, x: Value) -> Value:
    """A term of max or min as the integer that is accumulated: floats by their order, NaN beyond all."""
    if element(x.type) not in FLOATS or frame.nest.kind not in ("max", "min"):
        return x
    order = key(x)
    bits = int(element(order.type)[1:])
    return x.compare("uno", x).select(frame.fn.const(order.type, _bounds(bits)[frame.nest.kind == "max"]), order)


def _value(frame: Frame, acc: Value) -> Value:
    """What `_ordered` stands for."""
    t = acc_type(frame.nest, width(acc.type))
    return acc if acc.type == t else key(acc).bitcast(t)


def _bounds(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def start(frame: Frame, w: int) -> Value:
    """The accumulator before the first term: for sum, prod, max and min the neutral element, +0 for products."""
    t, kind = acc_type(frame.nest, w), frame.nest.kind
    scalar = element(t)
    if kind == "sum" and scalar in FLOATS:
        return frame.fn.const(t, -0.0)
    if kind == "prod":
        return frame.fn.const(t, 1)
    if kind in ("fma", "mac", "sum"):
        return frame.fn.zero(t)
    if scalar == "i1":
        return frame.fn.const(t, int(kind == "min"))
    if scalar in FLOATS:
        infinity = frame.fn.const(t, float("-inf") if kind == "max" else float("inf"))
        return key(infinity)
    return frame.fn.const(t, _bounds(int(scalar[1:]))[kind == "min"])


def _term(frame: Frame, acc: Value, values: Sequence[Value], w: int) -> Value:
    nest, fn = frame.nest, frame.fn
    if nest.kind in ("fma", "mac") and nest.term is None:
        return multiply_add(fn, values[0], values[1], acc)
    x = emit_body(fn, nest.term, values, w) if nest.term is not None else values[0]
    return combine(frame, acc, _ordered(frame, x))


def reduce_order(frame: Frame) -> list[int]:
    """The reduce loops, outer to inner: the cut one runs inside the others."""
    nest = frame.nest
    loops = list(range(nest.parallel, len(nest.loops)))
    if nest.cut is not None:
        loops.remove(nest.cut)
        loops.append(nest.cut)
    return loops


def _emit_columns(frame: Frame) -> None:
    """Lanes along the last parallel loop, each accumulating sequentially."""
    nest, lane = frame.nest, frame.nest.parallel - 1
    terms, order = range(1, 1 + nest.n_term), reduce_order(frame)

    def block(pointers: Pointers, w: int, n: Value | None, u: int, _: Value) -> None:
        def partial(lo: Value, hi: Value) -> Sequence[Value]:
            def body(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
                loaded = [[frame.load(s, lane, p[s], w, n, j) for s in terms] for j in range(u)]
                return [_term(frame, a, x, w) for a, x in zip(acc, loaded, strict=True)]

            spans = [(i, lo, hi) if i == nest.cut else (i, 0, frame.trips[i]) for i in order]
            return frame.fold(spans, pointers, terms, [start(frame, w)] * u, body)

        types = [acc_type(nest, w)] * u
        acc = frame.sliced(types, frame.scratch, partial, lambda a, b: combine(frame, a, b))
        for j in range(u):
            frame.finish(lane, pointers, _value(frame, acc[j]), n, j)

    wide = WIDE if nest.loops[lane].extent >= WIDE * LANES else 1
    frame.over(range(lane), frame.bases(), lambda p: frame.lane_blocks(lane, p, wide, block))


def _emit_or(frame: Frame) -> None:
    """The bitwise or of the operand's storage bits, moved as they are if there is no epilogue."""
    nest, fn, lane = frame.nest, frame.fn, frame.nest.parallel - 1
    size = frame.sizes[1]
    moved = nest.epilogue is None and nest.operands[0].dtype == nest.out.dtype

    def block(pointers: Pointers, w: int, n: Value | None, _: int, __: Value) -> None:
        def body(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
            return [acc[0] | load_raw(fn, size, p[1], frame.stride(1, lane) if w > 1 else size, w, n)]

        spans = [(i, 0, frame.trips[i]) for i in reduce_order(frame)]
        acc = frame.fold(spans, pointers, (1,), [fn.zero(vec(w, f"i{8 * size}"))], body)[0]
        if moved:
            store_raw(fn, acc, pointers[0], frame.stride(0, lane) if w > 1 else size, n)
        else:
            frame.finish(lane, pointers, widen(fn, acc, nest.operands[0].dtype), n)

    frame.over(range(lane), frame.bases(), lambda p: frame.lane_blocks(lane, p, 1, block))


def _emit_lanes(frame: Frame) -> None:
    """16 interleaved lanes along the last reduce loop, then the aligned tree over those that are present."""
    nest, fn = frame.nest, frame.fn
    last = len(nest.loops) - 1
    terms = range(1, 1 + nest.n_term)
    outer = [i for i in reduce_order(frame) if i != last]
    packed = all(frame.dense(s, last) for s in terms)
    t = acc_type(nest)

    def some(pointers: Pointers, acc: Value, i: Value, n: Value | None) -> Value:
        p = frame.step(pointers, last, i, terms)
        if packed or n is None:
            values = [_along(frame, s, last, p[s], pointers[s], i, n) for s in terms]
        else:
            values = [frame.gather(s, last, pointers[s], i, n) for s in terms]
        return only_first(fn, n, _term(frame, acc, values, LANES), acc)

    def block(pointers: Pointers) -> None:
        def partial(lo: Value, hi: Value) -> Sequence[Value]:
            begin, end = (lo, hi) if nest.cut == last else (fn.const("i64", 0), frame.trips[last])

            def row(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
                full = fn.loop(begin, end - (LANES - 1), LANES, acc, lambda i, a: [some(p, a, i, None)])
                n = (end - begin) & (LANES - 1)
                return fn.if_(n.compare("ne", 0), lambda: [some(p, full[0], end - n, n)], full)

            spans = [(i, lo, hi) if i == nest.cut else (i, fn.const("i64", 0), frame.trips[i]) for i in outer]
            return [_tree(frame, frame.fold(spans, pointers, terms, [start(frame, LANES)], row)[0], end - begin)]

        acc = frame.sliced([t], frame.scratch, partial, lambda a, b: combine(frame, a, b))[0]
        frame.finish(nest.parallel - 1, pointers, _value(frame, fn.shuffle(acc, acc, [0])), None)

    frame.over(range(nest.parallel), frame.bases(), block)


def _along(frame: Frame, slot: int, loop: int, p: Value, base: Value, i: Value, n: Value | None) -> Value:
    """16 elements of a slot along a reduce loop, from iteration i."""
    if frame.table(slot, loop) is None:
        return frame.load(slot, loop, p, LANES, n)
    offsets = [frame.offset(slot, loop, i + frame.fn.const("i64", j)) for j in range(LANES)]
    raw = load_raw(frame.fn, frame.sizes[slot], base, offsets, LANES, None)
    return widen(frame.fn, raw, frame.slots[slot].dtype)


def _tree(frame: Frame, acc: Value, count: Value) -> Value:
    """The aligned tree over the first min(count, 16) lanes, in lane 0."""
    fn = frame.fn
    for s in (1, 2, 4, 8):
        right = fn.shuffle(acc, acc, [min(i + s, LANES - 1) for i in range(LANES)])
        acc = first(fn, count - s, LANES).select(combine(frame, acc, right), acc)
    return acc
