"""Kernels of kind mac: register-blocked products of rows (operand 0) with a packed matrix (operand 1).

The parallel loops on which the matrix depends run outside. The others, but for the lane loop, are flattened: their row
addresses are tabulated once a call, so a block takes any rows. A block (its own function) keeps rows x vectors
accumulators in registers over the whole reduction and leaves them in the scratch, from where one epilogue takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from d1c.target.kernel import Nest
from d1rt.jit_ir import Function, Value, element, vec, width
from d1rt.jit_loops import Frame, Pointers, acc_type, accumulator, levels
from d1rt.jit_reduce import combine, reduce_order
from d1rt.jit_vector import LANES, SIZE, load_raw, widen

MOST = 24
"""Accumulator vectors of the largest block."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """`shapes`: the register blocks, widest first: (vectors, rows, rows of the block for few rows), the last for fewer
    than 16 lanes; `one_row`: the same where no call has more than one row; `dot`: use the host's bf16 dot product."""

    shapes: tuple[tuple[int, int, int], ...]
    one_row: tuple[tuple[int, int, int], ...]
    dot: bool


def blocking(wide: bool, dot: bool) -> Blocking:
    """Blocks for 32 registers of 64 bytes (`wide`) or 16 of 32."""
    if wide:
        return Blocking(((4, 6, 3), (2, 8, 4), (1, 8, 4)), ((8, 1, 1), (2, 1, 1), (1, 1, 1)), dot)
    return Blocking(((1, 6, 4), (1, 6, 4)), ((4, 1, 1), (1, 1, 1), (1, 1, 1)), dot)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one nest maps on blocks: loop numbers by role and the row table's columns by slot. `words`: pairs of bf16 are
    adjacent in both operands, `packed`: and so are the pairs of neighbouring columns."""

    outer: tuple[int, ...]
    rows: tuple[int, ...]
    columns: dict[int, int]
    pair: bool
    packed: bool
    words: bool

    @property
    def entry(self) -> int:
        """Bytes of a row of the table."""
        return 8 * (1 + max(self.columns.values()))


def _shape(nest: Nest) -> _Shape:
    lane, last = nest.parallel - 1, len(nest.loops) - 1
    a, b = nest.operands[:2]

    def moves(o: int, loop: int) -> bool:
        return nest.operands[o].strides[loop] != 0 or nest.operands[o].tables[loop] is not None

    if moves(0, lane):
        raise ValueError("the rows of a mac must not depend on its lane loop")
    outer = tuple(i for i in range(lane) if moves(1, i))
    rows = tuple(i for i in range(lane) if i not in outer)
    used = [1, 0, *range(1 + nest.n_term, 1 + len(nest.operands))]
    slots = (nest.out, *nest.operands)
    columns: dict[int, int] = {}
    known: dict[tuple[object, ...], int] = {}
    for s in used:
        o = slots[s]
        size = SIZE[o.dtype]
        key = tuple((o.strides[i] * size, None) if o.tables[i] is None else (size, o.tables[i]) for i in rows)
        columns[s] = known.setdefault(key, len(known))
    pair = nest.loops[last].extent == 2
    words = (
        pair and a.dtype == b.dtype == "bf16" and a.strides[last] == b.strides[last] == 1
        and a.tables[last] is b.tables[last] is b.tables[lane] is None
    )  # fmt: skip
    return _Shape(outer, rows, columns, pair, words and b.strides[lane] == 2, words)


def scratch_layout(nest: Nest) -> tuple[int, int, int]:
    """Byte offsets of the tree's stack and of the row table in the scratch, and the bytes in all."""
    shape = _shape(nest)
    block = MOST * LANES * (8 if accumulator(nest) == "i64" else 4)
    table = block * (1 + levels(nest))
    rows = prod(nest.loops[i].extent for i in shape.rows)
    return block, table, table + shape.entry * (rows + 8)


def emit_mac(frame: Frame, blocks: Blocking) -> None:
    """out[r, n] = epilogue(sum over k of a[r, k] * b[k, n])."""
    nest, fn, shape = frame.nest, frame.fn, _shape(frame.nest)
    lane = nest.parallel - 1
    _, at_table, _ = scratch_layout(nest)
    table = frame.scratch + at_table
    rows = _fill_table(frame, shape, table)
    most = prod(nest.loops[i].extent for i in shape.rows)
    shapes = blocks.shapes if most > 1 else blocks.one_row
    extent = nest.loops[lane].extent
    ragged = extent % LANES != 0
    epilogue = _emit_epilogue(frame, shape)
    terms = [s for s in range(len(frame.slots)) if s != 2 and s in shape.columns]

    def column(pointers: Pointers, start: Value, n: Value | None, v: int, mr: int, half: int) -> None:
        """All rows of v vectors of columns from `start`."""
        b = pointers[2] + frame.offset(2, lane, start)
        mr, half = min(mr, most), min(half, most)

        def block(row: Value, r: int) -> None:
            name = _emit_block(frame, shape, blocks.dot, r, v, n is not None)
            entries = table + row * shape.entry
            fn.call("void", name, frame.args, frame.scratch, entries, pointers[1], b, *([n] if n is not None else []))
            left = rows - row
            valid = left.compare("slt", r).select(left, fn.const("i64", r))
            count = n if n is not None else fn.const("i64", v * LANES)
            others = [pointers[s] for s in terms]
            fn.call(
                "void", epilogue, frame.args, frame.scratch, entries, valid, start, count, fn.const("i64", v), *others
            )

        done: Value = fn.const("i64", 0)
        if n is not None and not ragged:
            mr = half  # seldom run: a smaller block compiles faster
        few = 0 < most % mr <= half < mr
        if most > half or not few:

            def full(row: Value, _: Value) -> Sequence[Value]:
                block(row, mr)
                return [row + fn.const("i64", mr)]

            done = fn.loop(0, rows - half if few else rows, mr, [done], full)[0]
        if few:
            fn.if_(done.compare("slt", rows), lambda: block(done, half))

    def columns(pointers: Pointers) -> None:
        trip = frame.trips[lane]
        done: Value = fn.const("i64", 0)
        rest = extent
        for v, mr, half in shapes[:-1]:
            # Only blocks that the largest call needs: the last shape covers what other trip counts leave.
            if rest >= v * LANES:
                fn.loop(
                    done, trip - (v * LANES - 1), v * LANES, [],
                    lambda i, a=(v, mr, half): column(pointers, i, None, *a),
                )  # fmt: skip
                done = done + (trip - done & -(v * LANES))
                rest %= v * LANES

        def tail(i: Value) -> None:
            left = trip - i
            column(pointers, i, left.compare("slt", LANES).select(left, fn.const("i64", LANES)), *shapes[-1])

        fn.loop(done, trip, LANES, [], tail)

    frame.over(shape.outer, frame.bases(), columns)


def _fill_table(frame: Frame, shape: _Shape, table: Value) -> Value:
    """Write the byte offsets of every row, in the order of the row loops, and repeat the last row so that a block may
    read beyond. Returns the number of rows."""
    fn = frame.fn
    slot_of = {column: s for s, column in reversed(shape.columns.items())}

    def fill(loops: Sequence[int], sums: Sequence[Value], cursor: Value) -> Value:
        if not loops:
            for j, x in enumerate(sums):
                fn.store(x, cursor + 8 * j)
            return cursor + shape.entry

        def turn(i: Value, at: Value) -> Sequence[Value]:
            return [fill(loops[1:], [x + frame.offset(slot_of[j], loops[0], i) for j, x in enumerate(sums)], at)]

        return fn.loop(0, frame.trips[loops[0]], 1, [cursor], turn)[0]

    end = fill(shape.rows, [fn.const("i64", 0)] * len(slot_of), table)
    rows = fn.const("i64", 1)
    for i in shape.rows:
        rows = rows * frame.trips[i] if rows.literal != 1 else frame.trips[i]

    def repeat() -> None:
        for j in range(len(slot_of)):
            x = fn.load("i64", end + (8 * j - shape.entry))
            for k in range(8):
                fn.store(x, end + (8 * j + k * shape.entry))

    fn.if_(rows.compare("sgt", 0), repeat)
    return rows


def _emit_block(outer: Frame, shape: _Shape, dot: bool, r: int, v: int, tail: bool) -> str:
    """The function that accumulates r rows x v vectors and stores them to the scratch; `tail`: n lanes only."""
    nest, module = outer.nest, outer.fn.module
    name = f"block_{r}x{v}{'_tail' if tail else ''}"
    if any(f.name == name for f in module.functions):
        return name
    fn = Function(module, name, ["ptr noalias"] * 5 + ["i64"] * tail, local=True)
    frame = Frame(fn, nest, fn.args[0], fn.args[1])
    entries, a, b = fn.args[2:5]
    n = fn.args[5] if tail else None
    row = [a + fn.load("i64", entries + (i * shape.entry + 8 * shape.columns[1])) for i in range(r)]
    pointers = [fn.const("i64", 0) if s == 1 else b for s in range(len(frame.slots))]
    stack, _, _ = scratch_layout(nest)
    t = acc_type(nest)
    if tail and shape.packed and not dot:  # few lanes: narrower vectors
        extent = nest.loops[nest.parallel - 1].extent
        t = vec(4 if extent <= 4 else 8 if extent <= 8 else LANES, element(t))

    def step(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
        return _multiply(frame, shape, dot, [x + p[1] for x in row], p[2], list(acc), v, n)

    def partial(lo: Value, hi: Value) -> Sequence[Value]:
        order = [i for i in reduce_order(frame) if i != len(nest.loops) - 1]
        spans = [(i, lo, hi) if i == nest.cut else (i, fn.const("i64", 0), frame.trips[i]) for i in order]
        return frame.fold(spans, pointers, (1, 2), [fn.zero(t)] * (r * v), step)

    acc = frame.sliced([t] * (r * v), frame.scratch + stack, partial, lambda x, y: combine(frame, x, y))
    size = 8 if element(t) == "i64" else 4
    for i, x in enumerate(acc):
        fn.store(x, frame.scratch + i * LANES * size)
    fn.raw("ret void")
    return name


def _multiply(
    frame: Frame, shape: _Shape, dot: bool, rows: Sequence[Value], b: Value, acc: list[Value], v: int, n: Value | None
) -> list[Value]:
    """One step of the innermost reduce loop (but the pair): every row times v vectors, the odd one of a pair first."""
    fn, nest = frame.fn, frame.nest
    lane, last = nest.parallel - 1, len(nest.loops) - 1
    if shape.words:
        if dot or not shape.packed:
            words = [_words(frame, shape, b, lane, j, n) for j in range(v)]
        if dot:
            brain = vec(2 * LANES, "bfloat")
            for i, p in enumerate(rows):
                x = fn.splat(fn.load("i32", p), LANES).bitcast(brain)
                for j in range(v):
                    acc[i * v + j] = fn.call(
                        acc[0].type, "llvm.x86.avx512bf16.dpbf16ps.512", acc[i * v + j], x, words[j].bitcast(brain)
                    )
            return acc
        # A bf16 is the upper half of its f32: element 2j is the lower half of the word. Each half is loaded anew: 16
        # registers hold the accumulators and little more. Volatile and two types keep LLVM from sharing loads.
        lanes = width(acc[0].type)
        for odd in (1, 0):
            if shape.packed:
                words = [load_raw(fn, 4, b + 64 * j, 4, lanes, n, volatile=True) for j in range(v)]
            bs = [((w & -65536) if odd else (w << 16)).bitcast(acc[0].type) for w in words]
            for i, p in enumerate(rows):
                w = fn.splat(fn.load("i32" if odd else "float", p), lanes).bitcast(vec(lanes, "i32"))
                x = ((w & -65536) if odd else (w << 16)).bitcast(acc[0].type)
                for j in range(v):
                    acc[i * v + j] = fn.intrinsic("fma", x, bs[j], acc[i * v + j])
        return acc
    if frame.table(2, lane) is not None:
        raise ValueError("the packed operand of a mac has no table along the lanes")
    for e in (1, 0) if shape.pair else (0,):
        i64 = fn.const("i64", e)
        at = b + frame.offset(2, last, i64)
        if n is not None and not frame.dense(2, lane):
            bs = [frame.gather(2, lane, at, fn.const("i64", 0), n)]
        else:
            bs = [frame.load(2, lane, at, LANES, n, j) for j in range(v)]
        for i, p in enumerate(rows):
            one = load_raw(fn, frame.sizes[1], p + frame.offset(1, last, i64), 0, 1, None)
            x = fn.splat(fn.extract(widen(fn, one, nest.operands[0].dtype), 0), LANES)
            for j in range(v):
                old = acc[i * v + j]
                acc[i * v + j] = fn.intrinsic("fma", x, bs[j], old) if element(x.type) == "float" else old + x * bs[j]
    return acc


def _words(frame: Frame, shape: _Shape, b: Value, lane: int, j: int, n: Value | None) -> Value:
    """Pairs of bf16 of 16 columns, vector number j."""
    fn = frame.fn
    if shape.packed:
        return load_raw(fn, 4, b + 64 * j, 4, LANES, n)
    stride = frame.stride(2, lane)
    if n is None:
        return load_raw(fn, 4, b + LANES * j * stride, stride, LANES, None)

    def put(i: Value, v: Value) -> Sequence[Value]:
        x = fn.load("i32", b + frame.offset(2, lane, i))
        return [fn.op(v.type, f"insertelement {v}, {x}, {i}")]

    return fn.loop(0, n, 1, [fn.zero(vec(LANES, "i32"))], put)[0]


def _emit_epilogue(outer: Frame, shape: _Shape) -> str:
    """The function that takes a block of accumulators from the scratch through the epilogue to the output:
    (args, scratch, table entries, rows, first lane, lanes, vectors of a row of the block, addresses of the slots)."""
    nest = outer.nest
    slots = [s for s in range(len(outer.slots)) if s != 2 and s in shape.columns]
    fn = Function(outer.fn.module, "epilogue", ["ptr"] * 3 + ["i64"] * 4 + ["ptr"] * len(slots), local=True)
    frame = Frame(fn, nest, fn.args[0], fn.args[1])
    entries, rows, start, lanes, pitch = fn.args[2:7]
    given = dict(zip(slots, fn.args[7:], strict=True))
    used = [s for s in slots if s != 1]
    t = acc_type(nest)
    size = 8 if element(t) == "i64" else 4
    lane = nest.parallel - 1

    def block(pointers: Pointers, w: int, n: Value | None, _: int, at: Value) -> None:
        accs = frame.scratch + at * size

        def row(i: Value) -> None:
            entry = entries + i * shape.entry
            offset = {c: fn.load("i64", entry + 8 * c) for c in {shape.columns[s] for s in used}}
            placed = [p + offset[shape.columns[s]] if s in used else p for s, p in enumerate(pointers)]
            acc = fn.load(vec(w, element(t)), accs + i * pitch * (LANES * size))
            frame.finish(lane, placed, acc, n)

        fn.loop(0, rows, 1, [], row)

    bases = [given.get(s, frame.scratch) for s in range(len(frame.slots))]
    frame.lane_blocks(lane, bases, 1, block, used, start, lanes)
    fn.raw("ret void")
    return "epilogue"
