"""Changes of element type: by value, by bits, and rounding to a narrower float that stays in its compute type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import elementwise, tensors
from d1c.target import lowprecision
from d1c.target.dtypes import DType, dtype, from_numpy
from d1c.target.kernel import COMPUTE_TYPE
from d1c.target.vector import NumpyBuilder, round_to, widen

_MIN64 = -(2**63)


@dataclass(frozen=True, slots=True)
class CastAttrs:
    """`to`: the name of the element type. `source`: that of the operand, where its compute type does not say all
    (minifloats, u64). `saturate`, `round_mode`: of casts to minifloats, as ONNX's Cast has them. `odd`: f64 to f32, an
    inexact result with its last bit set, so that rounding it again to a narrower type is as rounding once."""

    to: str
    source: str = ""
    saturate: bool = True
    round_mode: str = "up"
    odd: bool = False


@dataclass(frozen=True, slots=True)
class BitcastAttrs:
    """`source`, `to`: the names of the element types, of equal width."""

    source: str
    to: str


@dataclass(frozen=True, slots=True)
class RoundAttrs:
    """`to`: f16 or bf16."""

    to: str


def cast_attrs(source: DType, to: DType, saturate: bool = True, round_mode: str = "up") -> CastAttrs:
    """The attributes of a cast; what does not matter for these types is left at its default."""
    named = source.name if source.kind == "minifloat" or source.name == "u64" else ""
    if to.kind != "minifloat":
        return CastAttrs(to.name, named)
    return CastAttrs(to.name, named, saturate, round_mode if to.name == lowprecision.SCALE else "up")


def twice(source: DType, to: DType) -> bool:
    """Whether a cast goes by f32 (rounded to odd): kernels round f64 to nothing narrower."""
    return source.name == "f64" and (to.kind == "minifloat" or (to.is_float and to.bits < 32))


def cast_array(x: np.ndarray, to: DType, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """What graph.cast makes of a storage array."""
    if twice(from_numpy(x.dtype), to):
        x = np.asarray(_cast(NumpyBuilder(), CastAttrs("f32", odd=True), x))
    attrs = cast_attrs(from_numpy(x.dtype), to, saturate, round_mode)
    return round_to(_cast(NumpyBuilder(), attrs, widen(x)), to)


def _infer(types: tuple[Type, ...], attrs: CastAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    to = dtype(attrs.to)
    for t in (x.dtype, to):
        if t.name not in COMPUTE_TYPE:
            raise ValueError(f"no vector code for elements of type {t}")
    if attrs.round_mode not in lowprecision.ROUND_MODES:
        raise ValueError(f"round_mode is one of {', '.join(lowprecision.ROUND_MODES)}")
    if attrs.source != x.dtype.name and (attrs.source or x.dtype.kind == "minifloat"):
        raise ValueError(f"source = {attrs.source!r} of an operand of {x.dtype}")
    if twice(x.dtype, to):
        raise ValueError(f"f64 to {to} goes by f32, rounded to odd")
    if attrs.odd and (x.dtype.name, to.name) != ("f64", "f32"):
        raise ValueError("odd is for f64 to f32")
    return (TensorType(x.shape, to),)


def _cast(b: Any, attrs: CastAttrs, x: Any) -> Any:
    """By value to the target's compute type; what is left (narrower storage) is the store's."""
    to, compute = dtype(attrs.to), COMPUTE_TYPE[attrs.to]
    if attrs.odd:
        near = b.cvt(x, "f32")
        back, bits = b.cvt(near, "f64"), b.bits(near, "i32")
        below = b.select(b.lt(b.abs(x), b.abs(back)), b.sub(bits, 1), bits)
        below = b.or_(below, b.cvt(b.ne(back, x), "i32"))
        return b.select(b.eq(x, x), b.bits(below, "f32"), near)
    if attrs.source and dtype(attrs.source).kind == "minifloat":
        if attrs.source == attrs.to:
            return x
        if attrs.source == lowprecision.SCALE and compute == "mask":
            return b.ne(x, -1)  # a power of two, or NaN
        x = lowprecision.decode(b, x, attrs.source)
    if to.kind == "minifloat":
        wide = _unsigned_to_float(b, x, "f32") if attrs.source == "u64" else b.cvt(x, "f32")
        return lowprecision.encode(b, wide, attrs.to, attrs.saturate, attrs.round_mode)
    if attrs.source == "u64" and to.is_float:
        return _unsigned_to_float(b, x, compute)
    if attrs.to == "u64" and b.type_of(x) in ("f32", "f64"):
        high = b.xor(b.cvt(b.sub(x, 2.0**63), "i64"), _MIN64)
        return b.select(b.le(b.const(2.0**63, b.type_of(x)), x), high, b.cvt(x, "i64"))
    return b.cvt(x, compute)


def _unsigned_to_float(b: Any, x: Any, to: str) -> Any:
    """u64 (held as i64) to a float, rounded once: where the top bit is set, half of it with a sticky last bit."""
    half = b.cvt(b.or_(b.shr(x, 1), b.and_(x, 1)), to)
    return b.select(b.lt(x, 0), b.add(half, half), b.cvt(x, to))


def _bitcast_infer(types: tuple[Type, ...], attrs: BitcastAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    source, to = dtype(attrs.source), dtype(attrs.to)
    if source.bits != to.bits or to.name not in COMPUTE_TYPE or source.name not in COMPUTE_TYPE:
        raise ValueError(f"{source} has {source.bits} bits, {to} {to.bits}: bits are reinterpreted at equal width")
    if x.dtype != source and not (x.dtype.is_float and source.is_float):
        raise ValueError(f"source = {attrs.source!r} of an operand of {x.dtype}")
    return (TensorType(x.shape, to),)


def _bitcast(b: Any, attrs: BitcastAttrs, x: Any) -> Any:
    """Through the bits as an integer. Narrow floats are held as f32, so they are encoded and decoded."""
    match attrs.source:
        case "f64":
            x = b.bits(x, "i64")
        case "f32":
            x = b.bits(x, "i32")
        case "bf16":
            x = b.shr(b.bits(lowprecision.round_bf16(b, x), "i32"), 16)
        case "f16":
            x = lowprecision.encode(b, x, "f16", saturate=False)
        case "bool":
            x = b.cvt(x, "i32")
    match attrs.to:
        case "f64":
            return b.bits(b.cvt(x, "i64"), "f64")
        case "f32":
            return b.bits(b.cvt(x, "i32"), "f32")
        case "bf16":
            return b.bits(b.shl(b.cvt(x, "i32"), 16), "f32")
        case "f16":
            return lowprecision.decode(b, b.and_(b.cvt(x, "i32"), 0xFFFF), "f16")
    return b.cvt(x, COMPUTE_TYPE[attrs.to])


def _round_infer(types: tuple[Type, ...], attrs: RoundAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if not x.dtype.is_float or COMPUTE_TYPE.get(x.dtype.name) != "f32":
        raise ValueError(f"takes floats that compute as f32, has {x.dtype}")
    if attrs.to not in ("f16", "bf16"):
        raise ValueError(f"rounds to f16 or bf16, not {attrs.to!r}")
    return (x,)


def _round(b: Any, attrs: RoundAttrs, x: Any) -> Any:
    return (lowprecision.round_f16 if attrs.to == "f16" else lowprecision.round_bf16)(b, x)


def _cast_case(source: Any, to: str, lo: float = -50, hi: float = 50, named: str = "") -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = rng.uniform(lo, hi, (4, 6)).astype(source)
        return CastAttrs(to, named), [x], x.astype(dtype(to).numpy)

    return case


def _bitcast_case(source: Any, to: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = rng.uniform(-9, 9, (3, 7)).astype(source)
        return BitcastAttrs(from_numpy(x.dtype).name, from_numpy(np.dtype(to)).name), [x], x.view(to)

    return case


def _round_case(to: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = np.ldexp(rng.normal(size=(3, 40)), rng.integers(-26, 18, 40)).astype(np.float32)
        with np.errstate(over="ignore"):
            return RoundAttrs(from_numpy(np.dtype(to)).name), [x], x.astype(to).astype(np.float32)

    return case


elementwise(
    "graph.cast", _cast, 1, attrs=CastAttrs, infer=_infer,
    doc="Conversion by value: rounds to narrower floats (RNE), truncates floats to integers.",
    cases=(_cast_case(np.float32, "bf16"), _cast_case(np.float32, "i64"), _cast_case(np.float32, "i8"),
           _cast_case(np.int64, "f32"), _cast_case(np.int64, "bool", -2, 2), _cast_case(np.int32, "i64"),
           _cast_case(np.bool_, "f32", 0, 2), _cast_case(np.float32, "u8", 0, 99), _cast_case(np.int32, "i4"),
           _cast_case(np.float32, "f8e4m3fn"), _cast_case(np.float32, "f4e2m1", -6, 6),
           _cast_case(ml_dtypes.float8_e5m2, "f32", named="f8e5m2"), _cast_case(ml_dtypes.uint4, "i32", 0, 15)),
)  # fmt: skip
elementwise(
    "graph.bitcast", _bitcast, 1, attrs=BitcastAttrs, infer=_bitcast_infer,
    doc="The same bits as an element of another type of equal width.",
    cases=(_bitcast_case(np.float32, np.int32), _bitcast_case(np.int32, np.float32), _bitcast_case(np.int8, np.uint8),
           _bitcast_case(np.float16, np.int16), _bitcast_case(np.int16, np.uint16),
           _bitcast_case(np.float16, ml_dtypes.bfloat16)),
)  # fmt: skip
elementwise(
    "graph.round_to", _round, 1, attrs=RoundAttrs, infer=_round_infer,
    doc="Rounded to a value of f16 or bf16 (RNE), in the operand's type.",
    cases=(_round_case(np.float16), _round_case(ml_dtypes.bfloat16)),
)  # fmt: skip
