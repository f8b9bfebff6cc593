"""Kernels of kind mac for many cores in one call: cores whose rows or whose columns are the same ones.

A core's block may be a few rows by a few columns; together, those of the cores that share rows and columns are a large
product. Its rows are tabulated, those of all cores behind each other; its columns are a copy of the cores' constants,
in panels of 16 lanes (d1rt.engine_joint makes it). Blocks of rows x panels accumulate as those of one core do; one
epilogue then takes every core's share of the accumulators to that core's buffers. Which products are added up in which
order does not change, and so no bit does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from d1c.target.kernel import Nest
from d1rt.jit_ir import Function, Module, Value, element, vec
from d1rt.jit_loops import Frame, Pointers, acc_type, levels
from d1rt.jit_reduce import combine, reduce_order
from d1rt.jit_vector import LANES, load_raw

WORDS = ("panels", "count", "segments", "sets", "arguments", "segment_stride", "set_stride")
"""int64 words of a call: the packed columns and how many panels; how many cores share a set of rows (segments), how
many sets there are; the argument array of the first core, and the bytes to that of the next segment, the next set."""
MOST_LANES = 512
"""Columns of a call, at most."""
MOST_ROWS = 128
"""Rows of a call, at most, unless one core has more."""
_PITCH = 4 * (MOST_LANES + LANES)
"""Bytes between rows of accumulators."""
_PANEL = 4 * LANES
"""Bytes of a panel's row: 16 pairs of bf16, or 16 f32."""


@dataclass(frozen=True, slots=True)
class Joint:
    """A nest to be run for many cores: blocks of `rows` x `vectors` panels; `depth`: rows of a panel; `strides`: per
    loop how many of them an iteration of a reduce loop steps over; `dot`: use the host's bf16 dot product."""

    nest: Nest
    rows: int
    vectors: int
    depth: int
    strides: tuple[int, ...]
    dot: bool


def joint_strides(nest: Nest) -> tuple[int, tuple[int, ...]] | None:
    """(depth, strides) of a nest whose columns can be packed in panels, else None: a product of bf16 pairs or of f32,
    whose matrix is [depth, columns] or [depth, columns, pair]."""
    if nest.kind != "mac" or nest.n_term != 2:
        return None
    lane, last = nest.parallel - 1, len(nest.loops) - 1
    a, b = nest.operands[:2]
    n = nest.loops[lane].extent
    pair = nest.loops[last].extent == 2
    if not (a.dtype == b.dtype and b.dtype == ("bf16" if pair else "f32")) or any(t is not None for t in b.tables):
        return None
    e = 2 if pair else 1
    if pair and not a.strides[last] == b.strides[last] == 1:
        return None
    if b.strides[lane] != e or a.strides[lane] != 0 or a.tables[lane] is not None or any(b.strides[:lane]):
        return None
    strides, depth = [0] * len(nest.loops), 1
    for i in range(nest.parallel, last + (not pair)):
        whole, rest = divmod(b.strides[i], n * e)
        if nest.loops[i].extent > 1 and (rest or whole < 0):
            return None
        strides[i] = whole if nest.loops[i].extent > 1 else 0
        depth += strides[i] * (nest.loops[i].extent - 1)
    return depth, tuple(strides)


def most_rows(nest: Nest) -> int:
    """The most rows that one core has."""
    return prod(nest.loops[i].extent for i in range(nest.parallel - 1))


def _columns(nest: Nest) -> tuple[dict[int, int], int]:
    """Columns of the row table by slot, for the output and the epilogue's operands, and how many there are: the first
    two hold the address of the row and that of the core's arguments."""
    known: dict[tuple[object, ...], int] = {}
    slots = (nest.out, *nest.operands)
    columns = {}
    for s in (0, *range(1 + nest.n_term, len(slots))):
        o = slots[s]
        key = (o.dtype, *((o.strides[i], o.tables[i]) for i in range(nest.parallel - 1)))
        columns[s] = known.setdefault(key, 2 + len(known))
    return columns, 2 + len(known)


def joint_scratch(j: Joint) -> tuple[int, int, int]:
    """Byte offsets of the tree's stack and of the row table in the scratch, and the bytes in all."""
    stack = j.rows * _PITCH
    table = stack + levels(j.nest) * j.rows * j.vectors * _PANEL
    return stack, table, table + 8 * _columns(j.nest)[1] * (max(most_rows(j.nest), MOST_ROWS) + j.rows)


def joint_text(j: Joint) -> str:
    """The LLVM module; its function is called `kernel`."""
    module = Module()
    fn = Function(module, "kernel", ["ptr noalias", "ptr noalias"])
    words, scratch = fn.args
    kinds = ("ptr", "i64", "i64", "i64", "ptr", "i64", "i64")
    panels, count, segments, sets, arguments, segment_stride, set_stride = (
        fn.load(t, words + 8 * i) for i, t in enumerate(kinds)
    )
    _, at_table, _ = joint_scratch(j)
    table, entry = scratch + at_table, 8 * _columns(j.nest)[1]
    end, rows = _fill_table(fn, j, table, sets, arguments, set_stride)
    for i in range(entry // 8):  # a block may read beyond the last row
        x = fn.load("i64", end + (8 * i - entry))
        for k in range(j.rows - 1):
            fn.store(x, end + (8 * i + k * entry))
    block, epilogue = _emit_block(module, j), _emit_epilogue(module, j)

    def turn(row: Value) -> None:
        entries = table + row * entry

        def panel(p: Value) -> None:
            fn.call("void", block, arguments, scratch, entries, panels + p * (j.depth * _PANEL), scratch + p * _PANEL)

        fn.loop(0, count, j.vectors, [], panel)
        left = rows - row
        valid = left.compare("slt", j.rows).select(left, fn.const("i64", j.rows))
        fn.call("void", epilogue, scratch, entries, valid, segments, segment_stride)

    fn.loop(0, rows, j.rows, [], turn)
    fn.raw("ret void")
    return str(module)


def _fill_table(
    fn: Function, j: Joint, table: Value, sets: Value, arguments: Value, stride: Value
) -> tuple[Value, Value]:
    """Write an entry for every row of every set; where they end, and how many there are."""
    nest = j.nest
    loops = range(nest.parallel - 1)
    columns, width = _columns(nest)
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


def _packed(j: Joint) -> Nest:
    """The nest with the matrix as panels have it: strides in elements, the pair's and the lanes' left out."""
    a, b = j.nest.operands[:2]
    e = _PANEL // (2 if b.dtype == "bf16" else 4)
    strides = tuple(s * e for s in j.strides)
    panel = replace(b, strides=strides, tables=(None,) * len(strides))
    return replace(j.nest, operands=(a, panel, *j.nest.operands[2:]))


def _emit_block(module: Module, j: Joint) -> str:
    """The function that accumulates a block and stores it: (arguments of a core, scratch, table entries, panel, where
    the accumulators go)."""
    nest, width = _packed(j), 8 * _columns(j.nest)[1]
    fn = Function(module, "block", ["ptr noalias"] * 5, local=True)
    args, scratch, entries, b, out = fn.args
    frame = Frame(fn, nest, args, scratch)
    rows = [fn.load("ptr", entries + i * width) for i in range(j.rows)]
    bases = [b + k * (j.depth * _PANEL) for k in range(j.vectors)]
    zero = fn.const("i64", 0)
    pair = nest.operands[1].dtype == "bf16"
    types = [acc_type(nest)] * (j.rows * j.vectors)

    def step(p: Pointers, acc: Sequence[Value]) -> Sequence[Value]:
        return _multiply(fn, j, [x + p[1] for x in rows], [x + p[2] for x in bases], list(acc))

    def partial(lo: Value, hi: Value) -> Sequence[Value]:
        order = [i for i in reduce_order(frame) if not pair or i != len(nest.loops) - 1]
        spans = [(i, lo, hi) if i == nest.cut else (i, zero, frame.trips[i]) for i in order]
        return frame.fold(spans, [zero] * len(frame.slots), (1, 2), [fn.zero(t) for t in types], step)

    acc = frame.sliced(types, scratch + joint_scratch(j)[0], partial, lambda x, y: combine(frame, x, y))
    for i in range(j.rows):
        for k in range(j.vectors):
            fn.store(acc[i * j.vectors + k], out + (i * _PITCH + k * _PANEL))
    fn.raw("ret void")
    return "block"


def _multiply(fn: Function, j: Joint, rows: Sequence[Value], bases: Sequence[Value], acc: list[Value]) -> list[Value]:
    """One step of the innermost reduce loop: every row times every vector, the odd one of a pair first."""
    f32, i32, v = vec(LANES, "float"), vec(LANES, "i32"), j.vectors
    if j.nest.operands[1].dtype == "f32":
        loaded = [fn.load(f32, b) for b in bases]
        for i, p in enumerate(rows):
            x = fn.splat(fn.load("float", p), LANES)
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
        words = [load_raw(fn, 4, b, 4, LANES, None, volatile=True) for b in bases]
        bs = [((w & -65536) if odd else (w << 16)).bitcast(f32) for w in words]
        for i, p in enumerate(rows):
            w = fn.splat(fn.load("i32" if odd else "float", p), LANES).bitcast(i32)
            x = ((w & -65536) if odd else (w << 16)).bitcast(f32)
            for k in range(v):
                acc[i * v + k] = fn.intrinsic("fma", x, bs[k], acc[i * v + k])
    return acc


def _emit_epilogue(module: Module, j: Joint) -> str:
    """The function that takes a block of accumulators to the cores' buffers: (scratch, table entries, rows, segments,
    segment stride)."""
    nest = j.nest
    columns, width = _columns(nest)
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

            frame.lane_blocks(lane, pointers, 1, block, list(columns))
            return [start + frame.trips[lane]]

        fn.loop(0, segments, 1, [fn.const("i64", 0)], segment)

    fn.loop(0, rows, 1, [], row)
    fn.raw("ret void")
    return "epilogue"
