"""What a product of many cores in one call looks like: its matrix, its blocks, the words of a call (see jit_joint)."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from d1c.target.kernel import Nest
from d1rt.jit_vector import LANES

WORDS = ("panels", "count", "segments", "sets", "arguments", "segment_stride", "set_stride")
"""int64 words of a call: the packed columns, where there are, and how many panels; how many cores share a set
of rows (segments), how many sets there are; the argument array of the first core, and the bytes to that of the next
segment, and of the next set."""
MOST_LANES = 512
"""Columns of a call, at most."""
MOST_ROWS = 512
"""Rows of a call, at most, unless one core has more."""
EXPAND_LANES = 16
"""Columns from which on it is worth while to take rows to f32 first."""
ALONE_ROWS, ALONE_PRODUCTS = 24, 1 << 14
"""Rows and products (of pairs or of f32) of one core's block from which on it is worth while to pack its columns."""
WASTE = 0.02
"""Share of rows too many from which on blocks of two heights are worth their code."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Operand 1 of a product as rows of words of 4 bytes, a pair of bf16 or an f32 each: `depth` rows, `pitch` words
    apart; per loop how many rows an iteration of it goes on (`steps`, of reduce loops); `outer`: the other loops that
    move it, but for the lanes: each of their iterations is a product by itself. `across`: words between columns, 1
    unless each column lies by itself, its words side by side."""

    depth: int
    pitch: int
    steps: tuple[int, ...]
    outer: tuple[int, ...]
    across: int = 1


@dataclass(frozen=True, slots=True)
class Joint:
    """A nest to be run for many cores: blocks of `rows` x `vectors` panels. `width`: lanes of a panel that are used;
    `lanes`: 0, or how many columns a call has at most, which it then packs itself; `expand`: take the rows of a block
    to f32 first; `whole`: every core has all columns that the nest may have; `dot`: use the host's bf16 dot product;
    `alone`: of one core, called with its arguments instead of the words; `uneven`: blocks of one row less make up for
    what the last one would have too many."""

    nest: Nest
    matrix: Matrix
    rows: int
    vectors: int
    width: int
    lanes: int
    expand: bool
    whole: bool
    dot: bool
    alone: bool = False
    uneven: bool = False


def registers(wide: bool, dot: bool, rows: int, lanes: int) -> tuple[int, int, int]:
    """Of a block for products of so many rows and columns: its rows, panels, and lanes used of a panel. `wide`: for 32
    registers of 64 bytes, else for 16 of 32."""
    width = LANES if dot or lanes > 8 else 8 if lanes > 4 else 4
    room = 24 if wide else 12 if width < LANES else 6  # for accumulators, of so many lanes
    high, vectors = min(rows, 12 if width < LANES else 6), 1
    while 2 * vectors * high <= room and 2 * vectors * LANES <= lanes:
        vectors *= 2
    return high, vectors, width


def uneven(rows: int, high: int) -> bool:
    """Whether blocks of `high` rows make up many more than so many."""
    return high > 4 and rows > high * high and -rows % high >= WASTE * rows


def alone(nest: Nest, wide: bool, dot: bool) -> Joint | None:
    """How one core's block is run on panels that the call packs; None where it has too few rows for that, or cannot
    be. The dot product takes its columns as they lie as fast."""
    m = matrix(nest)
    if m is None or m.outer or (dot and nest.operands[1].dtype == "bf16"):
        return None
    rows, lanes = most_rows(nest), nest.loops[nest.parallel - 1].extent
    if rows < ALONE_ROWS or not LANES <= lanes <= MOST_LANES or rows * m.depth * lanes < ALONE_PRODUCTS:
        return None
    high, vectors, width = registers(wide, False, rows, lanes)
    unit = LANES * vectors
    expand, most = lanes >= EXPAND_LANES and expandable(nest, m), -(-lanes // unit) * unit
    return Joint(nest, m, high, vectors, width, most, expand, False, False, True, uneven(rows, high))


def matrix(nest: Nest) -> Matrix | None:
    """The matrix of a product of bf16 pairs or of f32 whose columns can be packed in panels, else None."""
    if nest.kind != "mac" or nest.n_term != 2:
        return None
    lane, last = nest.parallel - 1, len(nest.loops) - 1
    a, b = nest.operands[:2]
    pair = nest.loops[last].extent == 2 and b.dtype == "bf16"
    e = 2 if pair else 1
    if a.dtype != b.dtype or (b.dtype != "f32" and not pair) or any(t is not None for t in b.tables[lane:]):
        return None
    if pair and not a.strides[last] == b.strides[last] == 1:
        return None
    if a.strides[lane] != 0 or a.tables[lane] is not None:
        return None
    outer = tuple(i for i in range(lane) if b.tables[i] is not None or (b.strides[i] and nest.loops[i].extent > 1))
    inner = [i for i in range(nest.parallel, last + (not pair)) if nest.loops[i].extent > 1]
    if any(b.strides[i] < 0 for i in inner):
        return None
    pitch, across, lanes = gcd(*(b.strides[i] for i in inner)), b.strides[lane], nest.loops[lane].extent
    if across == e:
        pitch = pitch or lanes * e
    steps = tuple(b.strides[i] // pitch if i in inner else 0 for i in range(len(nest.loops)))
    depth = 1 + sum(s * (loop.extent - 1) for s, loop in zip(steps, nest.loops, strict=True))
    by_rows = across == e and pitch % e == 0 and pitch >= lanes * e
    if not by_rows and not (pitch == e and across % e == 0 and across >= depth * e):
        return None
    return Matrix(depth, pitch // e, steps, outer, across // e)


def most_rows(nest: Nest) -> int:
    """The most rows that one core has."""
    return prod(nest.loops[i].extent for i in range(nest.parallel - 1))


def row_columns(nest: Nest) -> tuple[dict[int, int], int]:
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


def run_of(nest: Nest) -> int | None:
    """The reduce loop over words of the rows that lie side by side; at least eight."""
    a = nest.operands[0]
    e = 2 if a.dtype == "bf16" else 1
    for i in range(nest.parallel, len(nest.loops) - (e - 1)):
        if a.strides[i] == e and a.tables[i] is None and nest.loops[i].extent >= 8:
            return i
    return None


def expandable(nest: Nest, m: Matrix) -> bool:
    """Whether rows can be taken to f32 with some profit: pairs of bf16, long runs of which lie side by side, as the
    matrix' rows do."""
    run = run_of(nest)
    return nest.operands[0].dtype == "bf16" and m.depth <= 4096 and run is not None and m.steps[run] == 1
