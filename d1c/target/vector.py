"""The vector instructions of kernels: a builder of straight-line code, its numpy meaning and its recorder.

docs/numerics.md is the contract in words. Nothing here depends on whether the host thread has FTZ or DAZ set:
subnormals are recognised by their bits, and roundings that may end below 2^-126 are decided in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ml_dtypes
import numpy as np

from d1c.target.dtypes import DType, dtype, from_numpy
from d1c.target.kernel import COMPUTE_TYPE, INSTRUCTIONS, Body, Instr

V = TypeVar("V")

TYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "mask": np.dtype(np.bool_),
}
"""How numpy holds the values of bodies."""
_NAMES = {n: name for name, n in TYPES.items()}

TINY = 2.0**-126
"""The smallest normal f32."""
FLUSH = 2.0**-126 * (1 - 2.0**-25)
"""Results whose exact magnitude is below this are flushed: they do not round to 2^-126 with an unbounded exponent."""
_SIGN, _EXPONENT, _MAGNITUDE = np.int32(-(2**31)), np.int32(0x7F800000), np.int32(0x7FFFFFFF)


# ---- f32 arithmetic -------------------------------------------------------------------------------------------------


def flush(x: np.ndarray) -> np.ndarray:
    """f32 with every subnormal replaced by a zero of its sign (DAZ for an input, FTZ for an exact result)."""
    bits = x.view(np.int32)
    zero = (bits & _EXPONENT) == 0
    if not np.any(zero & (bits & _MAGNITUDE != 0)):
        return x
    return np.where(zero, bits & _SIGN, bits).view(np.float32)


def round_f64(x: np.ndarray) -> np.ndarray:
    """float64 to f32 by one RNE rounding, flushed after rounding. `x` is exact or rounded to odd."""
    magnitude = np.abs(x)
    small = magnitude < TINY
    if np.any(small & (magnitude > 0)):
        x = np.where(small, np.copysign(np.where(magnitude < FLUSH, 0.0, TINY), x), x)
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float64).astype(np.float32)


def _odd_sum(p: np.ndarray, c: np.ndarray) -> np.ndarray:
    """p + c in float64 rounded to odd, so that one more rounding to f32 is the rounding of the exact sum."""
    with np.errstate(all="ignore"):
        s = np.asarray(p + c)
        t = s - p
        e = np.asarray((p - (s - t)) + (c - t))
    bits = s.view(np.int64)
    inexact = np.isfinite(s) & np.isfinite(e) & (e != 0) & (bits & 1 == 0)
    if not np.any(inexact):
        return s
    step = np.where((e > 0) == (s > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of f32 arrays (broadcast), rounded once, DAZ and FTZ."""
    with np.errstate(all="ignore"):
        p = flush(np.asarray(a)).astype(np.float64) * flush(np.asarray(b))
    return round_f64(_odd_sum(np.asarray(p), flush(np.asarray(c)).astype(np.float64)))


def fma_short(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fma_f32 for f32 arrays whose products have at most 24 significant bits (bf16 or f16 values): there the float64
    sum is exact wherever a rounding or the flush could turn on it."""
    with np.errstate(all="ignore"):
        s = flush(np.asarray(a)).astype(np.float64) * flush(np.asarray(b)) + flush(np.asarray(c))
    return round_f64(np.asarray(s))


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float32:
        return np.asarray(a + b)
    # A sum of normal f32 is a multiple of 2^-149: below 2^-126 it is exact, so the flush can follow the rounding.
    return flush(np.asarray(flush(a) + flush(b)))


def _sub(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float32:
        return np.asarray(a - b)
    return flush(np.asarray(flush(a) - flush(b)))


def _mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float32:
        return np.asarray(a * b)
    return round_f64(flush(a).astype(np.float64) * flush(b))


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Truncated integer quotient; 0 where b is 0; wraps for MIN / -1."""
    b1 = np.where(b == 0, np.ones_like(b), b)
    q = a // b1
    r = a - q * b1
    q = q + ((r != 0) & ((a < 0) != (b1 < 0))).astype(a.dtype)
    return np.asarray(np.where(b == 0, np.zeros_like(q), q))


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return fma_f32(a, b, c) if a.dtype == np.float32 else np.asarray(a * b + c)


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype == np.float64:
        return np.asarray(a / b)
    if a.dtype != np.float32:
        return _quotient(a, b)
    # 53 >= 2 * 24 + 2 bits: rounding the float64 quotient again is innocent, and it never meets FLUSH unless equal.
    return round_f64(flush(a).astype(np.float64) / flush(b))


def _rem(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b == 0, np.zeros_like(b), a - _quotient(a, b) * b)


def _key(x: np.ndarray) -> np.ndarray:
    """Integers that order like the floats do, with -0 below +0."""
    bits = x.view(f"i{x.itemsize}")
    return np.asarray(bits ^ ((bits >> (8 * x.itemsize - 1)) & np.iinfo(bits.dtype).max))


def _max(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind != "f":
        return np.asarray(np.maximum(a, b))
    return np.where(np.isnan(a) | (~np.isnan(b) & (_key(a) >= _key(b))), a, b)


def _min(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind != "f":
        return np.asarray(np.minimum(a, b))
    return np.where(np.isnan(a) | (~np.isnan(b) & (_key(a) <= _key(b))), a, b)


def _daz(x: np.ndarray) -> np.ndarray:
    return flush(x) if x.dtype == np.float32 else x


def _neg(x: np.ndarray) -> np.ndarray:
    bits = x.view(f"i{x.itemsize}") if x.dtype.kind == "f" else None
    return -x if bits is None else np.asarray(bits ^ np.iinfo(bits.dtype).min).view(x.dtype)


def _abs(x: np.ndarray) -> np.ndarray:
    bits = x.view(f"i{x.itemsize}") if x.dtype.kind == "f" else None
    return np.abs(x) if bits is None else np.asarray(bits & np.iinfo(bits.dtype).max).view(x.dtype)


def _count(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    return n & (x.dtype.itemsize * 8 - 1)


def _shr(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.asarray((x.view(unsigned) >> _count(x, n).astype(unsigned)).view(x.dtype))


def _cvt(x: np.ndarray, to: np.dtype) -> np.ndarray:
    if to == np.bool_:
        return np.asarray(_daz(x) != 0)
    if x.dtype.kind != "f" or to.kind == "f":
        with np.errstate(all="ignore"):
            return x.astype(to)
    y = np.where(np.isnan(x), np.float64(0), x.astype(np.float64))
    limit = np.iinfo(to)
    inside = (y >= float(limit.min)) & (y < float(limit.max) + (1.0 if to == np.int32 else 0.0))
    return np.where(inside, np.where(inside, y, 0.0).astype(to), np.where(y < 0, limit.min, limit.max).astype(to))


_EXECUTE: dict[str, Callable[..., np.ndarray]] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "rem": _rem, "fma": _fma,
    "sqrt": lambda x: np.sqrt(_daz(x)), "min": _min, "max": _max,
    "rint": lambda x: np.rint(_daz(x)), "floor": lambda x: np.floor(_daz(x)), "ceil": lambda x: np.ceil(_daz(x)),
    "neg": _neg, "abs": _abs, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": lambda x, n: x << _count(x, n), "shr": _shr, "sar": lambda x, n: x >> _count(x, n),
    "eq": lambda a, b: _daz(a) == _daz(b), "ne": lambda a, b: _daz(a) != _daz(b),
    "lt": lambda a, b: _daz(a) < _daz(b), "le": lambda a, b: _daz(a) <= _daz(b), "select": np.where,
}  # fmt: skip


def execute(op: str, args: Sequence[np.ndarray], type: str, imm: float | int | None = None) -> np.ndarray:
    """One vector instruction on arrays of the types in TYPES (broadcast)."""
    if op == "const":
        assert imm is not None
        with np.errstate(all="ignore"):
            return np.asarray(imm).astype(TYPES[type])
    if op == "bits":
        return np.asarray(args[0]).view(TYPES[type])
    if op == "cvt":
        return _cvt(np.asarray(args[0]), TYPES[type])
    with np.errstate(all="ignore"):
        return np.asarray(_EXECUTE[op](*map(np.asarray, args)))


# ---- builders -------------------------------------------------------------------------------------------------------


class Builder(ABC, Generic[V]):
    """Vector code by name: one method per entry of INSTRUCTIONS. V is the builder's value: an array, a body's value.

    Where a value is expected a Python number stands for a constant of the other operands' type."""

    @abstractmethod
    def emit(self, op: str, args: tuple[V, ...], type: str, imm: float | int | None = None) -> V:
        """One instruction with a result of `type`."""

    @abstractmethod
    def type_of(self, value: V) -> str:
        """f32, f64, i32, i64 or mask."""

    def const(self, value: float | int, type: str = "f32") -> V:
        """A constant. For f32 it is rounded (RNE) here; NaN and infinities are allowed."""
        if type == "f32":
            value = _f32(value)
            if value == 0 and math.copysign(1, value) < 0:
                # -0.0 == 0.0 would make two different records equal.
                return self.bits(self.const(-(2**31), "i32"), "f32")
            return self.emit("const", (), type, value)
        if type == "f64":
            value = math.nan if value != value else float(value)
            if value == 0 and math.copysign(1, value) < 0:
                return self.bits(self.const(-(2**63), "i64"), "f64")
            return self.emit("const", (), type, value)
        value = int(value)
        if type == "mask":
            return self.emit("const", (), type, int(value != 0))
        half = 1 << (31 if type == "i32" else 63)
        return self.emit("const", (), type, (value + half) % (2 * half) - half)

    def _values(self, operands: Sequence[V | float | int]) -> tuple[tuple[V, ...], str]:
        types = {self.type_of(x) for x in operands if not isinstance(x, (int, float))}
        if len(types) != 1:
            raise TypeError(f"operands of one type expected, got {sorted(types) or 'numbers only'}")
        t = types.pop()
        return tuple(self.const(x, t) if isinstance(x, (int, float)) else x for x in operands), t

    def _op(self, op: str, *operands: V | float | int) -> V:
        values, t = self._values(operands)
        return self.emit(op, values, t)

    def _compare(self, op: str, *operands: V | float | int) -> V:
        return self.emit(op, self._values(operands)[0], "mask")

    def add(self, a: V | float, b: V | float) -> V:
        return self._op("add", a, b)

    def sub(self, a: V | float, b: V | float) -> V:
        return self._op("sub", a, b)

    def mul(self, a: V | float, b: V | float) -> V:
        return self._op("mul", a, b)

    def div(self, a: V | float, b: V | float) -> V:
        return self._op("div", a, b)

    def rem(self, a: V | float, b: V | float) -> V:
        return self._op("rem", a, b)

    def fma(self, a: V | float, b: V | float, c: V | float) -> V:
        return self._op("fma", a, b, c)

    def sqrt(self, x: V) -> V:
        return self._op("sqrt", x)

    def min(self, a: V | float, b: V | float) -> V:
        return self._op("min", a, b)

    def max(self, a: V | float, b: V | float) -> V:
        return self._op("max", a, b)

    def rint(self, x: V) -> V:
        return self._op("rint", x)

    def floor(self, x: V) -> V:
        return self._op("floor", x)

    def ceil(self, x: V) -> V:
        return self._op("ceil", x)

    def neg(self, x: V) -> V:
        return self._op("neg", x)

    def abs(self, x: V) -> V:
        return self._op("abs", x)

    def and_(self, a: V | float, b: V | float) -> V:
        return self._op("and", a, b)

    def or_(self, a: V | float, b: V | float) -> V:
        return self._op("or", a, b)

    def xor(self, a: V | float, b: V | float) -> V:
        return self._op("xor", a, b)

    def shl(self, a: V | float, b: V | float) -> V:
        return self._op("shl", a, b)

    def shr(self, a: V | float, b: V | float) -> V:
        return self._op("shr", a, b)

    def sar(self, a: V | float, b: V | float) -> V:
        return self._op("sar", a, b)

    def eq(self, a: V | float, b: V | float) -> V:
        return self._compare("eq", a, b)

    def ne(self, a: V | float, b: V | float) -> V:
        return self._compare("ne", a, b)

    def lt(self, a: V | float, b: V | float) -> V:
        return self._compare("lt", a, b)

    def le(self, a: V | float, b: V | float) -> V:
        return self._compare("le", a, b)

    def select(self, mask: V, a: V | float, b: V | float) -> V:
        """mask ? a : b, bits kept; two numbers are f32."""
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            a = self.const(a)
        values, t = self._values((a, b))
        return self.emit("select", (mask, *values), t)

    def bits(self, x: V, type: str) -> V:
        """f32 reinterpreted as i32, f64 as i64, or back."""
        return self.emit("bits", (x,), type)

    def cvt(self, x: V, type: str) -> V:
        """Conversion by value; nothing if `x` has the type already."""
        return x if self.type_of(x) == type else self.emit("cvt", (x,), type)


def _f32(value: float) -> float:
    """A Python number rounded to f32; every NaN is the one object math.nan, so that equal records compare equal."""
    with np.errstate(all="ignore"):
        y = float(np.float32(value))
    return math.nan if y != y else y


class NumpyBuilder(Builder[np.ndarray]):
    """Executes at once, on arrays of f32, i32, i64 and bool (numpy broadcasting)."""

    def emit(self, op: str, args: tuple[np.ndarray, ...], type: str, imm: float | int | None = None) -> np.ndarray:
        return execute(op, args, type, imm)

    def type_of(self, value: np.ndarray) -> str:
        return _NAMES[value.dtype]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A value of a body that is being recorded: its number and type."""

    number: int
    type: str


class Recorder(Builder[Recorded]):
    """Records a Body; equal instructions (constants above all) are recorded once.

    >>> r = Recorder("f32", "f32")
    >>> body = r.body(r.add(r.inputs[0], r.inputs[1]))
    """

    def __init__(self, *inputs: str) -> None:
        self.inputs = tuple(Recorded(i, t) for i, t in enumerate(inputs))
        self._instrs: dict[Instr, Recorded] = {}

    def emit(self, op: str, args: tuple[Recorded, ...], type: str, imm: float | int | None = None) -> Recorded:
        if len(args) != INSTRUCTIONS[op][0]:
            raise TypeError(f"{op} takes {INSTRUCTIONS[op][0]} operands, got {len(args)}")
        instr = Instr(op, tuple(a.number for a in args), type, imm)
        return self._instrs.setdefault(instr, Recorded(len(self.inputs) + len(self._instrs), type))

    def type_of(self, value: Recorded) -> str:
        return value.type

    def body(self, result: Recorded) -> Body:
        """What was recorded so far, with its result."""
        return Body(tuple(v.type for v in self.inputs), tuple(self._instrs), result.number)


def run_body(body: Body, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The body's result on arrays of its input types (broadcast)."""
    values: list[np.ndarray] = list(arrays)
    for i in body.instrs:
        values.append(execute(i.op, [values[a] for a in i.args], i.type, i.imm))
    return values[body.result]


# ---- storage --------------------------------------------------------------------------------------------------------


def widen(storage: np.ndarray) -> np.ndarray:
    """A storage array (any numpy type that d1c.target.dtypes names) in its compute type; exact, subnormals kept."""
    if storage.dtype == ml_dtypes.bfloat16:
        return (storage.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if storage.dtype == np.bool_:
        return np.asarray(storage.view(np.uint8) != 0)
    t = from_numpy(storage.dtype)
    if t.bits < 8 or t.kind == "minifloat":
        return _unpack(storage.view(np.uint8), t)
    return storage.astype(TYPES[COMPUTE_TYPE[t.name]], copy=False)


def _unpack(storage: np.ndarray, t: DType) -> np.ndarray:
    """The low bits of bytes as i32: an integer's value, a minifloat's bits."""
    low = (storage & np.uint8((1 << t.bits) - 1)).astype(np.int32)
    return np.asarray((low ^ (1 << (t.bits - 1))) - (1 << (t.bits - 1))) if t.kind == "int" else low


_PIECE = 1 << 15
_NAN = {"f16": 0x7E00, "f32": 0x7FC00000, "f64": 0x7FF8 << 48}


def _bf16(x: np.ndarray) -> np.ndarray:
    """The bits of f32 rounded to bf16, piece by piece: what is between is in cache."""
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.empty(len(flat), np.uint16)
    for at in range(0, len(flat), _PIECE):
        u = flat[at : at + _PIECE].view(np.uint32)
        rounded = u >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += u
        rounded >>= np.uint32(16)
        out[at : at + _PIECE] = rounded
        nan = np.isnan(flat[at : at + _PIECE])
        if nan.any():
            out[at : at + _PIECE][nan] = 0x7FC0
    return out.reshape(x.shape)


def round_to(values: np.ndarray, to: DType | str) -> np.ndarray:
    """A compute array as storage of type `to`: one RNE rounding to floats (subnormal results kept), low bits of
    integers, NaN canonical. A value of another compute type is converted (`cvt`) to that of `to` first."""
    t = dtype(to) if isinstance(to, str) else to
    x, compute = np.asarray(values), TYPES[COMPUTE_TYPE[t.name]]
    if x.dtype != compute:
        x = _cvt(x, compute)
    if t.bits < 8 or t.kind == "minifloat":
        return (x & ((1 << t.bits) - 1)).astype(np.uint8).view(t.numpy)
    if not t.is_float:
        return x.astype(t.numpy)
    if t.name == "bf16":
        return _bf16(x).view(t.numpy)
    nan = np.isnan(x)
    canonical = np.asarray(_NAN[t.name], f"u{t.bytes}").view(t.numpy)
    with np.errstate(all="ignore"):
        return np.where(nan, canonical, x.astype(t.numpy))
