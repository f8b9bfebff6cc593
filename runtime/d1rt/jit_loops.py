"""The frame that kernels of every kind share: arguments, addresses of operands, loops over them, canonical slices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from d1c.target.kernel import COMPUTE_TYPE, Body, Nest
from d1rt.jit_ir import Function, Value, element, vec, width
from d1rt.jit_vector import LANES, LLVM, SIZE, emit_body, first, load_raw, narrow, store_raw, widen

Pointers = list[Value]
MOST_TURNS = 16
"""Iterations of loops that are written out, at most."""
MOST_PIECES = 2
"""Narrow vectors, at most, that stand in for a part of a wide one: each is code."""


class Frame:
    """One function's view of a call: `args` is the int64 array [out, operands, tables, trip counts, scalars]. `tables`:
    how many it has, where the nest does not use them all; `fixed`: loops of which every call makes all iterations."""

    def __init__(
        self, fn: Function, nest: Nest, args: Value, scratch: Value, tables: int | None = None,
        fixed: Collection[int] = (),
    ) -> None:  # fmt: skip
        self.fn, self.nest, self.args, self.scratch = fn, nest, args, scratch
        self.slots = (nest.out, *nest.operands)
        self.sizes = [SIZE[o.dtype] for o in self.slots]
        tables = nest.tables if tables is None else tables
        count = len(self.slots) + tables
        self._tables = [self.argument("ptr", len(self.slots) + t) for t in range(tables)]
        self.trips = [self.argument("i64", count + i) for i in range(len(nest.loops))]
        self.fixed = fixed
        self._unrolled = unrolled(nest, fixed)
        self.scalars = [self.argument("i64", count + len(nest.loops) + i) for i in range(nest.scalars)]

    def argument(self, type_: str, index: int) -> Value:
        return self.fn.load(type_, self.args + 8 * index)

    def bases(self) -> Pointers:
        """The addresses of the output and the operands, in this order (as everywhere below: slot 0 is the output)."""
        return [self.argument("ptr", i) for i in range(len(self.slots))]

    def stride(self, slot: int, loop: int) -> int:
        """Bytes between iterations of a loop, where the slot has no table for it."""
        return self.slots[slot].strides[loop] * self.sizes[slot]

    def table(self, slot: int, loop: int) -> int | None:
        return self.slots[slot].tables[loop]

    def moves(self, slot: int, loop: int) -> bool:
        """Whether the slot's address depends on the loop."""
        return self.table(slot, loop) is not None or self.stride(slot, loop) != 0

    def offset(self, slot: int, loop: int, i: Value) -> Value:
        """The byte offset of iteration i."""
        table = self.table(slot, loop)
        if table is None:
            return i * self.stride(slot, loop)
        entry = self.fn.load("i32", self._tables[table] + i * 4).cast("zext", "i64")
        return entry * self.sizes[slot]

    def step(self, pointers: Pointers, loop: int, i: Value, slots: Iterable[int] | None = None) -> Pointers:
        """The addresses at iteration i of a loop, for the given slots (default: all)."""
        chosen = range(len(self.slots)) if slots is None else set(slots)
        return [p + self.offset(s, loop, i) if s in chosen else p for s, p in enumerate(pointers)]

    def over(self, loops: Sequence[int], pointers: Pointers, body: Callable[[Pointers], None]) -> None:
        """Nested loops, outer to inner, around body(addresses)."""
        if not loops:
            return body(pointers)

        def turn(i: Value) -> None:
            self.over(loops[1:], self.step(pointers, loops[0], i), body)

        self.fn.loop(0, self.trips[loops[0]], 1, [], turn)

    def fold(
        self, loops: Sequence[tuple[int, Value | int, Value]], pointers: Pointers, slots: Sequence[int],
        state: Sequence[Value], body: Callable[[Pointers, Sequence[Value]], Sequence[Value]],
    ) -> Sequence[Value]:  # fmt: skip
        """Nested loops (loop, from, to) with a carried state: body(addresses, state) -> next state."""
        if not loops:
            return body(pointers, state)
        loop, lo, hi = loops[0]
        if loop in self._unrolled:
            for i in range(self.nest.loops[loop].extent):
                at = self.step(pointers, loop, self.fn.const("i64", i), slots)
                state = self.fold(loops[1:], at, slots, state, body)
            return state

        def turn(i: Value, *carried: Value) -> Sequence[Value]:
            return self.fold(loops[1:], self.step(pointers, loop, i, slots), slots, carried, body)

        return self.fn.loop(lo, hi, 1, state, turn)

    # ---- lanes ------------------------------------------------------------------------------------------------------

    def dense(self, slot: int, loop: int) -> bool:
        """Whether 16 iterations of the loop are one vector or one splat."""
        return self.table(slot, loop) is None and self.stride(slot, loop) in (0, self.sizes[slot])

    def lane_blocks(
        self, loop: int, pointers: Pointers, wide: int, body: Callable[[Pointers, int, Value | None, int, Value], None],
        slots: Sequence[int] | None = None, origin: Value | int = 0, trip: Value | None = None, all_of: bool = False,
    ) -> None:  # fmt: skip
        """Cover `trip` iterations of a parallel loop from `origin` by vectors:
        body(addresses, width, count of the valid lanes or None, vectors, first iteration counted from origin).
        `wide`: how many vectors the large blocks have; `slots`: those that the body uses; `all_of`: every call makes
        all iterations of the loop."""
        fn, whole = self.fn, trip is None
        all_of = all_of or (whole and loop in self.fixed)
        trip = trip or self.trips[loop]
        used = range(len(self.slots)) if slots is None else slots
        begin = fn.const("i64", origin)

        def cover(start: Value, w: int, n: Value | None, u: int) -> None:
            body(self.step(pointers, loop, begin + start, used), w, n, u, start)

        done: Value = fn.const("i64", 0)
        packed = all(self.dense(s, loop) for s in used)
        if packed and wide > 1:
            fn.loop(0, trip - (wide * LANES - 1), wide * LANES, [], lambda i: cover(i, LANES, None, wide))
            done = trip - fn.op("i64", f"srem {trip}, {wide * LANES}")
        if packed or all(self.table(s, loop) is None for s in used):
            fn.loop(done, trip - (LANES - 1), LANES, [], lambda i: cover(i, LANES, None, 1))
            done = trip & -LANES
        rest = trip - done
        if packed:

            def some() -> None:
                fn.if_(rest.compare("sgt", 0), lambda: cover(done, LANES, rest, 1))

            extent = self.nest.loops[loop].extent
            exact = [w for w in (8, 4, 2, 1) if extent & w]
            if not whole or not (all_of or 0 < len(exact) <= MOST_PIECES):
                some()
                return

            def pieces() -> None:
                at = extent & -LANES
                for w in exact:
                    cover(fn.const("i64", at), w, None, 1)
                    at += w

            if all_of:
                pieces()
                return
            # most calls make all iterations: narrow vectors are faster than a wide one in part
            fn.if_(trip.compare("eq", extent), pieces, some)
        else:
            fn.loop(done, trip, 1, [], lambda i: cover(i, 1, None, 1))

    def load(self, slot: int, loop: int, p: Value, w: int, n: Value | None, u: int = 0) -> Value:
        """Vector number u of a slot along a loop, in its compute type."""
        stride = self.stride(slot, loop) if w > 1 else self.sizes[slot]
        raw = load_raw(self.fn, self.sizes[slot], p + u * w * stride, stride, w, n)
        return widen(self.fn, raw, self.slots[slot].dtype)

    def gather(self, slot: int, loop: int, base: Value, i: Value, n: Value) -> Value:
        """The n < 16 elements of a slot from iteration i of a loop, wherever they lie; the other lanes are 0."""
        fn, scalar = self.fn, f"i{8 * self.sizes[slot]}"

        def put(j: Value, v: Value) -> Sequence[Value]:
            x = fn.load(scalar, base + self.offset(slot, loop, i + j))
            return [fn.op(v.type, f"insertelement {v}, {x}, {j}")]

        raw = fn.loop(0, n, 1, [fn.zero(vec(LANES, scalar))], put)[0]
        return widen(fn, raw, self.slots[slot].dtype)

    def store(self, loop: int, p: Value, v: Value, n: Value | None, u: int = 0) -> None:
        """Store a value of a body to the output."""
        w = width(v.type)
        stride = self.stride(0, loop) if w > 1 else self.sizes[0]
        store_raw(self.fn, narrow(self.fn, v, self.nest.out.dtype), p + u * w * stride, stride, n)

    def finish(self, loop: int, pointers: Pointers, acc: Value, n: Value | None, u: int = 0) -> None:
        """The epilogue on one vector of accumulators, and its store."""
        w, k = width(acc.type), 1 + self.nest.n_term
        body = self.nest.epilogue
        if body is not None:
            others = [self.load(s, loop, pointers[s], w, n, u) for s in range(k, len(self.slots))]
            acc = emit_body(self.fn, body, [acc, *others], w)
        self.store(loop, pointers[0], acc, n, u)

    # ---- slices -----------------------------------------------------------------------------------------------------

    @property
    def cut_once(self) -> bool:
        """Whether no call has more than one canonical slice (max, min and or give the same bits in any order)."""
        return levels(self.nest) == 0

    def sliced(
        self, types: Sequence[str], stack: Value, partial: Callable[[Value, Value], Sequence[Value]],
        combine: Callable[[Value, Value], Value],
    ) -> Sequence[Value]:  # fmt: skip
        """partial(from, to) of every canonical slice of the cut loop, combined in the aligned binary tree.

        A binary counter: when slice s is done it is added to the finished nodes of the trailing ones of s; at the last
        slice to those of all its ones. `stack` holds levels(nest) entries of len(types) vectors."""
        fn, nest = self.fn, self.nest
        if self.cut_once:
            hi = self.trips[nest.cut] if nest.cut is not None else fn.const("i64", 0)
            return partial(fn.const("i64", 0), hi)
        assert nest.cut is not None
        trip = self.trips[nest.cut]
        size = [width(t) * (8 if element(t) in ("i64", "double") else 4) for t in types]
        places = [sum(size[:j]) for j in range(len(size))]
        count = fn.op("i64", f"sdiv {trip + (nest.slice - 1)}, {nest.slice}")
        count = count.compare("sgt", 1).select(count, 1)

        def at(level: Value) -> list[Value]:
            base = stack + level * sum(size)
            return [base + p for p in places]

        def trailing(x: Value) -> Value:
            return fn.op("i64", f"call i64 @llvm.cttz.i64({x}, i1 false)")

        fn.module.declarations.add("declare i64 @llvm.cttz.i64(i64, i1)")

        def turn(s: Value, *_: Value) -> Sequence[Value]:
            lo = s * nest.slice
            hi = lo + fn.const("i64", nest.slice)
            acc = partial(lo, hi.compare("slt", trip).select(hi, trip))
            after = s + fn.const("i64", 1)
            last = after.compare("sge", count)
            nodes = last.select(s, s & (after ^ -1))

            def add(left: Value, *right: Value) -> tuple[Value, Sequence[Value]]:
                new = [combine(fn.load(t, p), r) for t, p, r in zip(types, at(trailing(left)), right, strict=True)]
                rest = left & (left - 1)
                return rest.compare("ne", 0), [rest, *new]

            acc = fn.while_(nodes.compare("ne", 0), [nodes, *acc], add)[1:]

            def keep() -> None:
                for v, p in zip(acc, at(trailing(s ^ -1)), strict=True):
                    fn.store(v, p)

            fn.if_(last ^ 1, keep)
            return acc

        return fn.loop(0, count, 1, [fn.zero(t) for t in types], turn)


def unrolled(nest: Nest, fixed: Collection[int]) -> tuple[int, ...]:
    """Reduce loops that are written out: inner ones, of which every call makes all iterations, while they are few."""
    out: list[int] = []
    count = 1
    for i in reversed(range(nest.parallel, len(nest.loops))):
        count *= nest.loops[i].extent
        if nest.lanes or i not in fixed or count > MOST_TURNS or (i == nest.cut and levels(nest)):
            break
        out.append(i)
    return tuple(out)


def levels(nest: Nest) -> int:
    """How many nodes the stack of `Frame.sliced` must hold."""
    if nest.cut is None or nest.slice <= 0 or nest.kind in ("max", "min", "or"):
        return 0
    return max(0, -(-nest.loops[nest.cut].extent // nest.slice) - 1).bit_length()


def body_type(body: Body) -> str:
    """The type of a body's result."""
    k = len(body.inputs)
    return body.inputs[body.result] if body.result < k else body.instrs[body.result - k].type


def accumulator(nest: Nest) -> str:
    """The compute type in which a nest accumulates."""
    if nest.term is not None:
        return body_type(nest.term)
    return COMPUTE_TYPE[nest.operands[0].dtype]


def acc_type(nest: Nest, w: int = LANES) -> str:
    return vec(w, LLVM[accumulator(nest)])


def only_first(fn: Function, n: Value | None, new: Value, old: Value) -> Value:
    """The lanes below n from `new`, the others from `old`."""
    return new if n is None else first(fn, n, width(new.type)).select(new, old)
