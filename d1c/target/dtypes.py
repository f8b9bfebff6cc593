"""Element types: their names in the text form, their width and how numpy holds them.

Types of less than a byte (i4, u4, i2, u2, f4e2m1, f6e2m3, f6e3m2) take a byte of SRAM each; the unused high bits are 0,
as ml_dtypes holds them. Minifloats (ONNX's float8, float6 and float4 types) are stored, moved and cast: kernels see
their bits (d1c.target.lowprecision decodes and encodes them).

CFloat types carry their exponent bias in the type (machine.md, section 5); they exist so that types can
be written down, no kernel computes with them yet.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. `kind` is float, minifloat, cfloat, int, uint or bool; `bits` its width in SRAM."""

    name: str
    bits: int
    kind: str

    def __str__(self) -> str:
        return self.name

    @property
    def bytes(self) -> int:
        """Bytes of one element in SRAM (a bool takes one)."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def numpy(self) -> np.dtype:
        """The numpy type with the same storage bits."""
        return _NUMPY[self.name] if self.name in _NUMPY else np.dtype(np.uint8 if self.bits == 8 else np.uint16)


F64 = DType("f64", 64, "float")
F32 = DType("f32", 32, "float")
BF16 = DType("bf16", 16, "float")
F16 = DType("f16", 16, "float")
I64, I32, I16, I8 = (DType(f"i{n}", n, "int") for n in (64, 32, 16, 8))
U64, U32, U16, U8 = (DType(f"u{n}", n, "uint") for n in (64, 32, 16, 8))
BOOL = DType("bool", 8, "bool")
I4, I2 = (DType(f"i{n}", n, "int") for n in (4, 2))
U4, U2 = (DType(f"u{n}", n, "uint") for n in (4, 2))
MINIFLOATS = (
    *(DType(n, 8, "minifloat") for n in ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0")),
    *(DType(n, 6, "minifloat") for n in ("f6e2m3", "f6e3m2")), DType("f4e2m1", 4, "minifloat"),
)  # fmt: skip
PLAIN = (F64, F32, BF16, F16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)
NARROW = (I4, U4, I2, U2, *MINIFLOATS)
_BY_NAME = {d.name: d for d in (*PLAIN, *NARROW)}
_NUMPY = {
    "f64": np.dtype(np.float64), "f32": np.dtype(np.float32), "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(np.bool_),
    **{f"{k}{n}": np.dtype(f"{'u' if k == 'u' else ''}int{n}") for k in "iu" for n in (8, 16, 32, 64)},
    "i4": np.dtype(ml_dtypes.int4), "u4": np.dtype(ml_dtypes.uint4), "i2": np.dtype(ml_dtypes.int2),
    "u2": np.dtype(ml_dtypes.uint2), "f8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz), "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz), "f8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f6e2m3": np.dtype(ml_dtypes.float6_e2m3fn), "f6e3m2": np.dtype(ml_dtypes.float6_e3m2fn),
    "f4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}  # fmt: skip
_CFLOAT = re.compile(r"(cf8_143|cf8_152|cf16_shp)<(\d+)>|(cf16_uhp)")


@cache
def dtype(name: str) -> DType:
    """The type called `name`: a plain one, or `cf8_143<bias>`, `cf8_152<bias>`, `cf16_shp<bias>` (bias 0..63),
    `cf16_uhp`."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    match = _CFLOAT.fullmatch(name)
    if not match or (match[2] and not 0 <= int(match[2]) <= 63):
        raise ValueError(f"unknown element type {name!r}")
    return DType(name, 8 if name.startswith("cf8") else 16, "cfloat")


def fill_value(value: float, t: np.dtype) -> np.ndarray:
    """What a window of numpy type `t` is filled with outside its tensor: for 0 zero bits, also where a type has no
    zero (f8e8m0), as parts of a concatenation are or-ed."""
    return np.zeros((), t) if value == 0 and math.copysign(1, value) > 0 else np.asarray(value).astype(t)


def from_numpy(t: np.dtype) -> DType:
    """The element type that has numpy's type `t`."""
    for name, n in _NUMPY.items():
        if n == np.dtype(t):
            return _BY_NAME[name]
    raise ValueError(f"no element type for numpy {t}")
