"""Kernels as the binary holds them: one loop nest a kernel, over SRAM operands, with straight-line vector bodies.

This is d1c's own virtual ISA, not Tesla's encoding (which is not public). A nest has no branches. Strides are
constants of the record, trip counts arguments of the call, so that one kernel serves every core of every similar layer.
Meaning: d1c.target.numerics.run_nest, in numpy; d1rt translates the same records with llvmlite.

A call passes, in this order: the output, the operands (each an SRAM address), the tables (SRAM addresses of u32
element offsets), the trip counts of `loops` (one per loop), the scalars.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop. `extent`: the largest trip count on any core; the trip count itself is an argument of the call."""

    name: str
    extent: int


@dataclass(frozen=True, slots=True)
class Operand:
    """An SRAM operand: element type by name, per loop a stride in elements (0: the operand does not depend on it) and
    `tables`: per loop the number of the call's table whose entry is added instead, or None. The address is
    base + bytes * (sum(stride_l * i_l) + sum(table_l[i_l]))."""

    dtype: str
    strides: tuple[int, ...]
    tables: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Instr:
    """One vector instruction of a body. `args` number the body's values: inputs first, then results of instructions.
    `type` is the result's: f32, f64, i32, i64 or mask. `imm`: the value of `const`."""

    op: str
    args: tuple[int, ...]
    type: str
    imm: float | int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """Straight-line vector code: types of the inputs, instructions, and the number of the value that is the result."""

    inputs: tuple[str, ...]
    instrs: tuple[Instr, ...]
    result: int


@dataclass(frozen=True, slots=True)
class Nest:
    """out = epilogue(combine over the reduce loops of term(operands)).

    loops     parallel ones first, outer to inner, the last of them the lane loop; then the reduce loops in canonical
              order (d1c.ir.structured.Structured.dims), so that the reduction's order is fixed by the record alone.
    kind      as Structured.kind.
    cut       the loop number that is cut in canonical slices of `slice` iterations (the core's own share starts on a
              slice boundary); within a slice the other reduce loops run outside it, in order. None: one slice.
    lanes     16 interleaved lanes along the last reduce loop, then the aligned tree over the lanes that exist.
    term      body over operands[:n_term] (None: for mac and fma the product; otherwise operand 0 itself).
    epilogue  body over (accumulator, operands[n_term:]) (for kind map: over all the operands); None: store as it is.
    For kind scatter the first loop counts rows and the one reduce loop updates; the out starts as operand 0, which has
    its type, and for every update u in order the row r = operand1[u] - scalar, if there is one, becomes
    term(out[r], operand2[u]), or operand2[u] without a term, and is stored. Operand 1 moves with the reduce loop only.
    A kernel in which an f64 occurs does no arithmetic in f32: it may move, select, compare by min and max, and convert.
    Bodies see every operand converted to its compute type: bf16, f16, f32 -> f32; f64; i8..i32, u8, u16 -> i32;
    u32, i64 -> i64; bool -> mask. The result is converted to out.dtype with one RNE rounding; integers keep their low
    bits; a NaN that is stored is the canonical one. A map without epilogue and with equal dtypes moves bits unchanged.
    """

    kind: str
    loops: tuple[Loop, ...]
    parallel: int
    operands: tuple[Operand, ...]
    out: Operand
    n_term: int
    term: Body | None = None
    epilogue: Body | None = None
    cut: int | None = None
    slice: int = 0
    lanes: bool = False

    @property
    def tables(self) -> int:
        """How many tables a call passes."""
        used = [t for o in (self.out, *self.operands) for t in o.tables if t is not None]
        return max(used, default=-1) + 1

    @property
    def scalars(self) -> int:
        """How many scalars a call passes: for a lookup or scatter, the row that this core's share starts with."""
        return 1 if self.kind in ("lookup", "scatter") else 0


COMPUTE_TYPE = {
    "bf16": "f32", "f16": "f32", "f32": "f32", "f64": "f64",
    "i8": "i32", "i16": "i32", "i32": "i32", "u8": "i32", "u16": "i32",
    "u32": "i64", "i64": "i64", "u64": "i64", "bool": "mask",
    **dict.fromkeys(("i4", "u4", "i2", "u2"), "i32"),
    # Minifloats are seen as their bits: nothing but casts and moves takes them.
    **dict.fromkeys(
        ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f6e2m3", "f6e3m2", "f4e2m1"), "i32"
    ),
}  # fmt: skip
"""The type in which a body sees an operand of a storage type."""

INSTRUCTIONS = {
    # name: (number of operands, what it means)
    "const": (0, "imm, splat over the lanes"),
    "add": (2, "sum: f32 RNE with DAZ/FTZ; f64 RNE with subnormals, as everywhere; integers modulo 2^bits"),
    "sub": (2, "difference"),
    "mul": (2, "product"),
    "div": (2, "floats: correctly rounded quotient; integers: truncated, as C; x / 0 = 0"),
    "rem": (2, "integers: remainder of the truncated quotient; x % 0 = 0"),
    "fma": (3, "a * b + c, f32: rounded once; f64: the product, then the sum"),
    "sqrt": (1, "floats, correctly rounded"),
    "min": (2, "NaN wins, -0 < +0"),
    "max": (2, "NaN wins, -0 < +0"),
    "rint": (1, "floats to the nearest integer, ties to even"),
    "floor": (1, "floats"),
    "ceil": (1, "floats"),
    "neg": (1, "floats: sign flipped, bits kept; integers: 0 - x"),
    "abs": (1, "floats: sign cleared, bits kept; integers"),
    "and": (2, "bits (integers, masks)"),
    "or": (2, "bits (integers, masks)"),
    "xor": (2, "bits (integers, masks)"),
    "shl": (2, "integers, by the second operand"),
    "shr": (2, "integers, logical"),
    "sar": (2, "integers, arithmetic"),
    "eq": (2, "mask; f32: inputs DAZ, false with NaN"),
    "ne": (2, "mask; f32: true with NaN"),
    "lt": (2, "mask; signed"),
    "le": (2, "mask; signed"),
    "select": (3, "mask ? b : c, bits kept"),
    "bits": (1, "reinterpret f32 as i32, f64 as i64, or back, by the result type"),
    "cvt": (1, "convert by value: floats -> i32/i64 truncates and saturates, NaN -> 0; to f32, f64 RNE, subnormals "
               "kept; i32 <-> i64; mask -> 0/1; to mask: x != 0"),
}  # fmt: skip
"""The vector instructions of bodies: operand count and meaning. Costs are in d1c.target.isa."""
