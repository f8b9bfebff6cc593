"""Kernels of kind mac for many cores in one call: cores whose rows or whose columns are the same ones.

A core's block may be a few rows by a few columns; together, those of the cores that share rows and columns are a large
product. Its rows are tabulated, those of all cores behind each other; its columns are a copy of the cores' constants,
in panels of 16 lanes (d1rt.engine_joint makes it). Blocks of rows x panels accumulate as those of one core do; one
epilogue then takes every core's share of the accumulators to that core's buffers. Which products are added up in which
order does not change, and so no bit does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d1c.target.kernel import Nest
from d1rt.jit_ir import Function, Module, Value, element, vec
from d1rt.jit_joint_shape import MOST_LANES, MOST_ROWS, Joint, most_rows, row_columns, run_of
from d1rt.jit_loops import Frame, Pointers, acc_type, levels
from d1rt.jit_reduce import combine, reduce_order
from d1rt.jit_vector import LANES, SIZE, load_raw

_PITCH = 4 * (MOST_LANES + LANES)
"""Bytes between rows of accumulators."""
_LINE = 64
_PANEL = 4 * LANES
"""Bytes of a panel's row: 16 pairs of bf16, or 16 f32."""


def _row_pitch(j: Joint) -> int:
    """Bytes between rows in f32: the odd ones of all pairs, then the even ones."""
    return 8 * j.matrix.depth + 64


def joint_scratch(j: Joint) -> tuple[int, int, int, int]:
    """Byte offsets of the tree's stack (behind it rows in f32), of the panels and of the row table in the scratch, and
    the bytes in all."""
    stack = j.rows * _PITCH
    panels = _expanded(j) + j.rows * _row_pitch(j) * j.expand
    table = panels + -(-j.lanes // LANES) * j.matrix.depth * _PANEL
    return stack, panels, table, table + 8 * row_columns(j.nest)[1] * (max(most_rows(j.nest), MOST_ROWS) + 2 * j.rows)


def _expanded(j: Joint) -> int:
    return j.rows * _PITCH + levels(j.nest) * j.rows * j.vectors * _PANEL


def joint_text(j: Joint) -> str:
    """The LLVM module; its function is called `kernel`."""
    module = Module()
    fn = Function(module, "kernel", ["ptr noalias", "ptr noalias"])
    words, scratch = fn.args
    if j.alone:
        unit, none = LANES * j.vectors, fn.const("i64", 0)
        trip = Frame(fn, j.nest, words, scratch).trips[j.nest.parallel - 1]
        segments = sets = fn.const("i64", 1)
        panels, count, arguments = scratch, (trip + (unit - 1) & -unit) >> 4, words
        segment_stride = set_stride = none
    else:
        kinds = ("ptr", "i64", "i64", "i64", "ptr", "i64", "i64")
        panels, count, segments, sets, arguments, segment_stride, set_stride = (
            fn.load(t, words + 8 * i) for i, t in enumerate(kinds)
        )
    _, at_panels, at_table, _ = joint_scratch(j)
    if j.lanes:
        panels = scratch + at_panels
        _pack(fn, j, panels, segments, arguments, segment_stride)
    table, entry = scratch + at_table, 8 * row_columns(j.nest)[1]
    end, rows = _fill_table(fn, j, table, sets, arguments, set_stride)
    for i in range(entry // 8):  # a block may read beyond the last row, and brings the next block's near
        x = fn.load("i64", end + (8 * i - entry))
        for k in range(2 * j.rows - 1):
            fn.store(x, end + (8 * i + k * entry))
    rows_near, results_near = _emit_rows_near(module, j), _emit_results_near(module, j)
    epilogue = _emit_epilogue(module, j)
    expand = _emit_expand(module, j) if j.expand else None

    def turn(row: Value, high: int, block: str) -> None:
        entries = table + row * entry
        if rows_near is not None:
            fn.call("void", rows_near, arguments, scratch, entries + high * entry)
        if results_near is not None:
            fn.call("void", results_near, scratch, entries, fn.const("i64", high), segments, segment_stride)
        if expand is not None:
            fn.call("void", expand, arguments, scratch, entries, fn.const("i64", high))

        def panel(p: Value) -> None:
            fn.call(
                "void", block, arguments, scratch, entries, panels + p * (j.matrix.depth * _PANEL), scratch + p * _PANEL
            )

        fn.loop(0, count, j.vectors, [], panel)
        left = rows - row
        valid = left.compare("slt", high).select(left, fn.const("i64", high))
        fn.call("void", epilogue, scratch, entries, valid, segments, segment_stride)

    whole: Value = rows
    if j.uneven:  # as many blocks, so many of them lower
        blocks = (rows + (j.rows - 1)).binary("udiv", j.rows)
        lower = blocks * j.rows - rows
        lower = lower.compare("slt", blocks).select(lower, blocks)
        whole = (blocks - lower) * j.rows
    name = _emit_block(module, j, j.rows)
    fn.loop(0, whole, j.rows, [], lambda row: turn(row, j.rows, name))
    if j.uneven:
        low = _emit_block(module, j, j.rows - 1)
        fn.loop(whole, rows, j.rows - 1, [], lambda row: turn(row, j.rows - 1, low))
    fn.raw("ret void")
    return str(module)


def _pack(fn: Function, j: Joint, panels: Value, segments: Value, arguments: Value, stride: Value) -> None:
    """Copy the columns of the segments into panels, as many lanes at a time as divide a segment."""
    lane, m = j.nest.parallel - 1, j.matrix
    most = next(w for w in (8, 4, 2, 1) if j.nest.loops[lane].extent % w == 0 and (w == 1 or m.across == 1))
    rows = 8 if m.across > 1 else 1

    def segment(s: Value, start: Value) -> Sequence[Value]:
        frame = Frame(fn, j.nest, arguments + s * stride, panels)
        source, trip = frame.argument("ptr", 2), frame.trips[lane]
        depth = fn.const("i64", 1)  # of what is there
        for i, steps in enumerate(m.steps):
            if steps:
                depth = depth + (frame.trips[i] - 1) * steps

        def copy(w: int) -> None:
            t = vec(w, "i32") if w > 1 else "i32"

            def lanes(i: Value) -> None:
                at = start + i
                to = panels + (at >> 4) * (m.depth * _PANEL) + (at & (LANES - 1)) * 4

                def row(k: Value, count: int = 1) -> None:
                    word, place = source + i * (4 * m.across) + k * (4 * m.pitch), to + k * _PANEL
                    for u in range(count):
                        fn.store(fn.load(t, word + 4 * m.pitch * u), place + _PANEL * u)

                if rows > 1:
                    fn.loop(0, depth - (rows - 1), rows, [], lambda k: row(k, rows))
                fn.loop(depth & -rows if rows > 1 else 0, depth, 1, [], row)

            fn.loop(0, trip, w, [], lanes)

        if most == 1:
            copy(1)
        else:
            even = ((trip | start) & (most - 1)).compare("eq", 0)
            fn.if_(even, lambda: copy(most), lambda: copy(1))
        return [start + trip]

    fn.loop(0, segments, 1, [fn.const("i64", 0)], segment)


def _fill_table(
    fn: Function, j: Joint, table: Value, sets: Value, arguments: Value, stride: Value
) -> tuple[Value, Value]:
    """Write an entry for every row of every set; where they end, and how many there are."""
    nest = j.nest
    loops = range(nest.parallel - 1)
    columns, width = row_columns(nest)
    slot_of = {column: s for s, column in reversed(columns.items())}

    def one(s: Value, cursor: Value, done: Value) -> Sequence[Value]:
        own = arguments + s * stride
        frame = Frame(fn, nest, own, own)

        def fill(rest: Sequence[int], row: Value, sums: dict[int, Value], at: Value) -> Value:
            if not rest:
                fn.store(row, at)
                fn.store(own, at + 8)
                for column, x in sums.items():
                    fn.store(x, at + 8 * column)
                return at + 8 * width

            def turn(i: Value, place: Value) -> Sequence[Value]:
                there = {c: x + frame.offset(slot_of[c], rest[0], i) for c, x in sums.items()}
                return [fill(rest[1:], row + frame.offset(1, rest[0], i), there, place)]

            return fn.loop(0, frame.trips[rest[0]], 1, [at], turn)[0]

        zero = fn.const("i64", 0)
        end = fill(loops, frame.argument("ptr", 1), dict.fromkeys(slot_of, zero), cursor)
        rows = fn.const("i64", 1)
        for i in loops:
            rows = rows * frame.trips[i] if rows.literal != 1 else frame.trips[i]
        return [end, done + rows]

    end, rows = fn.loop(0, sets, 1, [table, fn.const("i64", 0)], one)
    return end, rows


def _near(fn: Function, start: Value, size: Value, write: bool = False) -> None:
    """Ask for so many bytes to be brought to the second cache. Messages write and read them in runs too short for the
    host to look ahead by itself, and there are more of them than its caches hold."""

    def line(at: Value) -> None:
        hints = (fn.const("i32", x) for x in (int(write), 2, 1))
        fn.call("void", "llvm.prefetch.p0", start + at, *hints)

    fn.loop(0, size, _LINE, [], line)


def _emit_rows_near(module: Module, j: Joint) -> str | None:
    """The function that brings the rows of a block near: (arguments of a core, scratch, table entries). None for rows
    of short runs."""
    nest, width, run = j.nest, 8 * row_columns(j.nest)[1], run_of(j.nest)
    if run is None:
        return None
    last = len(nest.loops) - (nest.operands[0].dtype == "bf16")  # a pair is one word
    loops = [i for i in range(nest.parallel, last) if i != run and nest.loops[i].extent > 1]
    fn = Function(module, "rows_near", ["ptr"] * 3, local=True)
    args, scratch, entries = fn.args
    frame = Frame(fn, nest, args, scratch)

    def over(rest: Sequence[int], source: Value) -> None:
        if rest:
            fn.loop(0, frame.trips[rest[0]], 1, [], lambda i: over(rest[1:], source + frame.offset(1, rest[0], i)))
        else:
            _near(fn, source, frame.trips[run] * 4)

    def row(i: Value) -> None:
        over(loops, fn.load("ptr", entries + i * width))

    fn.loop(0, j.rows, 1, [], row)
    fn.raw("ret void")
    return "rows_near"


def _emit_results_near(module: Module, j: Joint) -> str | None:
    """The function that brings near what the epilogue of a block reads and writes: (scratch, table entries, rows,
    segments, segment stride). None where no lanes of it lie side by side."""
    nest, lane = j.nest, j.nest.parallel - 1
    columns, width = row_columns(nest)
    slots = (nest.out, *nest.operands)
    dense = [
        k for k in columns
        if slots[k].strides[lane] == 1 and slots[k].tables[lane] is None and any(slots[k].strides[:lane])
    ]  # fmt: skip
    if not dense:
        return None
    fn = Function(module, "results_near", ["ptr", "ptr", "i64", "i64", "i64"], local=True)
    scratch, entries, rows, segments, stride = fn.args

    def row(i: Value) -> None:
        entry = entries + i * (8 * width)
        own = fn.load("ptr", entry + 8)
        offsets = {k: fn.load("i64", entry + 8 * columns[k]) for k in dense}

        def segment(s: Value) -> None:
            frame = Frame(fn, nest, own + s * stride, scratch)
            for k in dense:
                size = frame.trips[lane] * SIZE[slots[k].dtype]
                _near(fn, frame.argument("ptr", k) + offsets[k], size, write=k == 0)

        fn.loop(0, segments, 1, [], segment)

    fn.loop(0, rows, 1, [], row)
    fn.raw("ret void")
    return "results_near"


def _emit_expand(module: Module, j: Joint) -> str:
    """The function that writes the rows of a block in f32 as the panels have theirs: (arguments of a core, scratch,
    table entries, rows)."""
    nest, m, width = j.nest, j.matrix, 8 * row_columns(j.nest)[1]
    fn = Function(module, "expand", ["ptr"] * 3 + ["i64"], local=True)
    args, scratch, entries, high = fn.args
    frame = Frame(fn, nest, args, scratch)
    run = run_of(nest)
    assert run is not None
    loops = [i for i in range(nest.parallel, len(nest.loops) - 1) if i != run and nest.loops[i].extent > 1]
    w = 8 if nest.loops[run].extent % 8 == 0 or nest.loops[run].extent >= 32 else 4

    def pairs(source: Value, target: Value, t: str) -> None:
        word = fn.load(t, source)
        fn.store(word & -65536, target)
        fn.store(word << 16, target + 4 * m.depth)

    def over(rest: Sequence[int], source: Value, target: Value) -> None:
        if rest:

            def turn(i: Value) -> None:
                over(rest[1:], source + frame.offset(1, rest[0], i), target + i * (4 * m.steps[rest[0]]))

            fn.loop(0, frame.trips[rest[0]], 1, [], turn)
            return
        trip = frame.trips[run]
        fn.loop(0, trip - (w - 1), w, [], lambda i: pairs(source + i * 4, target + i * 4, vec(w, "i32")))
        fn.loop(trip & -w, trip, 1, [], lambda i: pairs(source + i * 4, target + i * 4, "i32"))

    def row(r: Value) -> None:
        over(loops, fn.load("ptr", entries + r * width), scratch + _expanded(j) + r * _row_pitch(j))

    fn.loop(0, high, 1, [], row)
    fn.raw("ret void")
    return "expand"


def _packed(j: Joint) -> Nest:
    """The nest with the matrix as panels have it, and rows as `expand` leaves them: strides in elements, the pair's and
    the lanes' left out."""
    a, b = j.nest.operands[:2]
    e = _PANEL // (2 if b.dtype == "bf16" else 4)
    none = (None,) * len(b.tables)
    panel = replace(b, strides=tuple(s * e for s in j.matrix.steps), tables=none)
    rows = replace(a, dtype="f32", strides=j.matrix.steps, tables=none) if j.expand else a
    return replace(j.nest, operands=(rows, panel, *j.nest.operands[2:]))


def _emit_block(module: Module, j: Joint, high: int) -> str:
    """The function that accumulates a block of `high` rows and stores it: (arguments of a core, scratch, table entries,
    panel, where the accumulators go)."""
    nest, width = _packed(j), 8 * row_columns(j.nest)[1]
    name = f"block_{high}"
    fn = Function(module, name, ["ptr noalias"] * 5, local=True)
    args, scratch, entries, b, out = fn.args
    frame = Frame(fn, nest, args, scratch, j.nest.tables)
    if j.expand:
        rows = [scratch + (_expanded(j) + i * _row_pitch(j)) for i in range(high)]
    else:
        rows = [fn.load("ptr", entries + i * width) for i in range(high)]
    bases = [b + k * (j.matrix.depth * _PANEL) for k in range(j.vectors)]
    zero = fn.const("i64", 0)
    pair = nest.operands[1].dtype == "bf16"
    types = [acc_type(nest, j.width)] * (high * j.vectors)

    def step(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
        return _multiply(fn, j, [x + p[1] for x in rows], [x + p[2] for x in bases], list(acc))

    def partial(lo: Value, hi: Value) -> Sequence[Value]:
        order = [i for i in reduce_order(frame) if not pair or i != len(nest.loops) - 1]
        spans = [(i, lo, hi) if i == nest.cut else (i, zero, frame.trips[i]) for i in order]
        return frame.fold(spans, [zero] * len(frame.slots), (1, 2), [fn.zero(t) for t in types], step)

    acc = frame.sliced(types, scratch + joint_scratch(j)[0], partial, lambda x, y: combine(frame, x, y))
    for i in range(high):
        for k in range(j.vectors):
            fn.store(acc[i * j.vectors + k], out + (i * _PITCH + k * _PANEL))
    fn.raw("ret void")
    return name


def _multiply(fn: Function, j: Joint, rows: Sequence[Value], bases: Sequence[Value], acc: list[Value]) -> list[Value]:
    """One step of the innermost reduce loop: every row times every vector, the odd one of a pair first."""
    w, v = j.width, j.vectors
    f32, i32 = vec(w, "float"), vec(w, "i32")
    if j.nest.operands[1].dtype == "f32":
        loaded = [fn.load(f32, b) for b in bases]
        for i, p in enumerate(rows):
            x = fn.splat(fn.load("float", p), w)
            for k in range(v):
                acc[i * v + k] = fn.intrinsic("fma", x, loaded[k], acc[i * v + k])
        return acc
    if j.dot:
        brain = vec(2 * LANES, "bfloat")
        words = [fn.load(i32, b).bitcast(brain) for b in bases]
        for i, p in enumerate(rows):
            x = fn.splat(fn.load("i32", p), LANES).bitcast(brain)
            for k in range(v):
                acc[i * v + k] = fn.call(f32, "llvm.x86.avx512bf16.dpbf16ps.512", acc[i * v + k], x, words[k])
        return acc
    for odd in (1, 0):  # as in jit_mac: each half is loaded anew
        words = [load_raw(fn, 4, b, 4, w, None, volatile=True) for b in bases]
        bs = [((x & -65536) if odd else (x << 16)).bitcast(f32) for x in words]
        for i, p in enumerate(rows):
            if j.expand:
                x = fn.splat(fn.load("float", p + (0 if odd else 4 * j.matrix.depth)), w)
            else:
                word = fn.splat(fn.load("i32" if odd else "float", p), w).bitcast(i32)
                x = ((word & -65536) if odd else (word << 16)).bitcast(f32)
            for k in range(v):
                acc[i * v + k] = fn.intrinsic("fma", x, bs[k], acc[i * v + k])
    return acc


def _emit_epilogue(module: Module, j: Joint) -> str:
    """The function that takes a block of accumulators to the cores' buffers: (scratch, table entries, rows, segments,
    segment stride)."""
    nest = j.nest
    columns, width = row_columns(nest)
    fn = Function(module, "epilogue", ["ptr", "ptr", "i64", "i64", "i64"], local=True)
    scratch, entries, rows, segments, stride = fn.args
    lane = nest.parallel - 1

    def row(i: Value) -> None:
        entry = entries + i * (8 * width)
        own = fn.load("ptr", entry + 8)
        offsets = {c: fn.load("i64", entry + 8 * c) for c in set(columns.values())}
        accs = scratch + i * _PITCH

        def segment(s: Value, start: Value) -> Sequence[Value]:
            frame = Frame(fn, nest, own + s * stride, scratch)
            pointers = [
                frame.argument("ptr", k) + offsets[columns[k]] if k in columns else scratch
                for k in range(len(frame.slots))
            ]

            def block(p: Pointers, w: int, n: Value | None, _: int, at: Value) -> None:
                acc = fn.load(vec(w, element(acc_type(nest))), accs + (start + at) * 4)
                frame.finish(lane, p, acc, n)

            frame.lane_blocks(lane, pointers, 1, block, list(columns), all_of=j.whole)
            return [start + frame.trips[lane]]

        fn.loop(0, segments, 1, [fn.const("i64", 0)], segment)

    fn.loop(0, rows, 1, [], row)
    fn.raw("ret void")
    return "epilogue"
