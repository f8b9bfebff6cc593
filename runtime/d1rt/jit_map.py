"""Kernels of kind map, lookup and scatter: element by element, copies, rows read or written by a run-time index."""

from __future__ import annotations

from d1rt.jit_ir import Value, vec
from d1rt.jit_loops import Frame, Pointers
from d1rt.jit_vector import LANES, emit_body, load_raw, narrow, store_raw, widen


def emit_map(frame: Frame) -> None:
    """out[p] = epilogue(operands[p])."""
    nest = frame.nest
    if nest.epilogue is None and nest.operands[0].dtype == nest.out.dtype:
        return _emit_copy(frame)
    lane = nest.parallel - 1
    _flatten(frame)

    def block(pointers: Pointers, w: int, n: Value | None, u: int, _: Value) -> None:
        for j in range(u):
            values = [frame.load(s, lane, pointers[s], w, n, j) for s in range(1, len(frame.slots))]
            if nest.epilogue is not None:
                result = emit_body(frame.fn, nest.epilogue, values, w)
            else:
                result = values[0]
            frame.store(lane, pointers[0], result, n, j)

    frame.over(range(lane), frame.bases(), lambda p: frame.lane_blocks(lane, p, 1, block))


def _flatten(frame: Frame) -> None:
    """Merge outer loops into the lane loop where the call's trip counts make every operand run on without a gap."""
    fn, lane = frame.fn, frame.nest.parallel - 1
    slots = range(len(frame.slots))
    if not all(frame.dense(s, lane) for s in slots):
        return
    moving = [s for s in slots if frame.moves(s, lane)]
    joined: Value | None = None
    for loop in reversed(range(lane)):
        pitch = {frame.slots[s].strides[loop] for s in moving}
        if any(frame.table(s, loop) is not None for s in slots) or len(pitch) != 1:
            return
        if any(frame.stride(s, loop) for s in slots if s not in moving):
            return
        meets = frame.trips[lane].compare("eq", pitch.pop())
        joined = meets if joined is None else joined & meets
        frame.trips[lane] = joined.select(frame.trips[lane] * frame.trips[loop], frame.trips[lane])
        frame.trips[loop] = joined.select(fn.const("i64", 1), frame.trips[loop])


def _emit_copy(frame: Frame) -> None:
    """Equal types and no body: bits move unchanged, two adjacent elements of the lane loop as one where they can."""
    nest, fn, lane = frame.nest, frame.fn, frame.nest.parallel - 1
    size = frame.sizes[0]
    dense = all(frame.table(s, lane) is None for s in (0, 1))
    unit = dense and nest.out.strides[lane] == 1 == nest.operands[0].strides[lane]
    outer = list(range(lane))

    def run(pointers: Pointers) -> None:
        if unit:
            count = frame.trips[lane] * size
            fn.call("void", "llvm.memcpy.p0.p0.i64", pointers[0], pointers[1], count, fn.const("i1", 0))
        else:
            _strided(frame, lane, size, pointers)

    def every() -> None:
        frame.over(outer, frame.bases(), run)

    if unit and lane > 0 and nest.loops[lane].extent == 2 and size <= 4:

        def pairs() -> None:
            frame.over(outer[:-1], frame.bases(), lambda p: _strided(frame, lane - 1, 2 * size, p))

        fn.if_(frame.trips[lane].compare("eq", 2), pairs, every)
        return
    if unit:
        _flatten(frame)
    every()


def _strided(frame: Frame, loop: int, size: int, pointers: Pointers) -> None:
    """Move elements of `size` bytes one by one along a loop, as vectors where one side is dense."""
    fn, trip = frame.fn, frame.trips[loop]
    done: Value = fn.const("i64", 0)
    if all(frame.table(s, loop) is None for s in (0, 1)):

        def vector(i: Value) -> None:
            p = frame.step(pointers, loop, i)
            values = load_raw(fn, size, p[1], frame.stride(1, loop), LANES, None)
            store_raw(fn, values, p[0], frame.stride(0, loop), None)

        fn.loop(0, trip - (LANES - 1), LANES, [], vector)
        done = trip & -LANES

    def single(i: Value) -> None:
        p = frame.step(pointers, loop, i)
        fn.store(fn.load(f"i{8 * size}", p[1]), p[0])

    fn.loop(done, trip, 1, [], single)


def _find(frame: Frame, slot: int, pointers: Pointers, rows: int) -> tuple[Value, Value]:
    """The row number at a slot, counted from the first row of this core's share, and whether the share (the trips of
    loop `rows`) has it."""
    fn = frame.fn
    raw = load_raw(fn, frame.sizes[slot], pointers[slot], 0, 1, None)
    index = fn.extract(widen(fn, raw, frame.slots[slot].dtype), 0)
    if index.type != "i64":
        index = index.cast("sext", "i64")
    at = index - frame.scalars[0]
    return at.compare("ult", frame.trips[rows]), at


def emit_lookup(frame: Frame) -> None:
    """out[p] = epilogue(table[index[p] - start, p]); 0 where this core's share has no such row."""
    nest, fn, lane = frame.nest, frame.fn, frame.nest.parallel - 1
    row = nest.parallel

    def finish(pointers: Pointers, w: int, n: Value | None, found: bool) -> None:
        raw_type = vec(w, f"i{8 * frame.sizes[2]}")
        stride = frame.stride(2, lane) if w > 1 else frame.sizes[2]
        raw = load_raw(fn, frame.sizes[2], pointers[2], stride, w, n) if found else fn.zero(raw_type)
        if nest.epilogue is None and nest.operands[1].dtype == nest.out.dtype:
            store_raw(fn, raw, pointers[0], frame.stride(0, lane) if w > 1 else frame.sizes[0], n)
        else:
            frame.finish(lane, pointers, widen(fn, raw, nest.operands[1].dtype), n)

    def write(pointers: Pointers, lanes: bool) -> None:
        inside, at = _find(frame, 1, pointers, row)

        def go(p: Pointers, found: bool) -> None:
            if lanes:
                frame.lane_blocks(lane, p, 1, lambda q, w, n, *_: finish(q, w, n, found))
            else:
                finish(p, 1, None, found)

        # Outside the share nothing is read: neither the table nor its offset table.
        fn.if_(inside, lambda: go(frame.step(pointers, row, at, (2,)), True), lambda: go(pointers, False))

    def rows(pointers: Pointers) -> None:
        if frame.moves(1, lane):
            frame.over([lane], pointers, lambda p: write(p, False))
        else:
            write(pointers, True)

    frame.over(range(lane), frame.bases(), rows)


def emit_scatter(frame: Frame) -> None:
    """out = operand 0; then, in order, out[index[u] - start] = term(out[index[u] - start], update[u])."""
    nest, fn, lane, updates = frame.nest, frame.fn, frame.nest.parallel - 1, frame.nest.parallel
    size = frame.sizes[0]
    out, data, index, update = range(4)

    def move(p: Pointers, w: int, n: Value | None, *_: object) -> None:
        raw = load_raw(fn, size, p[data], frame.stride(data, lane) if w > 1 else size, w, n)
        store_raw(fn, raw, p[out], frame.stride(out, lane) if w > 1 else size, n)

    def join(p: Pointers, w: int, n: Value | None, *_: object) -> None:
        new = load_raw(fn, frame.sizes[update], p[update], frame.stride(update, lane) if w > 1 else size, w, n)
        stride = frame.stride(out, lane) if w > 1 else size
        if nest.term is not None:
            held = widen(fn, load_raw(fn, size, p[out], stride, w, n), nest.out.dtype)
            new = emit_body(fn, nest.term, [held, widen(fn, new, nest.operands[2].dtype)], w)
            new = narrow(fn, new, nest.out.dtype)
        elif nest.operands[2].dtype != nest.out.dtype:
            new = narrow(fn, widen(fn, new, nest.operands[2].dtype), nest.out.dtype)
        store_raw(fn, new, p[out], stride, n)

    own = [k for k in range(1, lane + 1) if frame.moves(index, k)]  # every iteration of these has an index of its own
    shared = [k for k in range(1, lane + 1) if k not in own]

    def row(pointers: Pointers) -> None:
        if lane in shared:
            frame.over(shared[:-1], pointers, lambda p: frame.lane_blocks(lane, p, 1, join, (out, update)))
        else:
            frame.over(shared, pointers, lambda p: join(p, 1, None))

    def write(pointers: Pointers) -> None:
        inside, at = _find(frame, index, pointers, 0)
        fn.if_(inside, lambda: row(frame.step(pointers, 0, at, (out,))))

    def turn(u: Value) -> None:
        frame.over(own, frame.step(pointers, updates, u), write)

    pointers = frame.bases()
    frame.over(range(lane), pointers, lambda p: frame.lane_blocks(lane, p, 1, move, (out, data)))
    fn.loop(0, frame.trips[updates], 1, [], turn)
