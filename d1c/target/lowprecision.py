"""Minifloats in vector code: one decoder and one encoder for all formats, and rounding of f32 to bf16 and f16.

Straight-line integer code on a builder's values, the same on every engine. Codes are i32, values f32. Bit for bit what
ml_dtypes gives, but for NaN, which is always stored with sign 0 (which NaN an instruction gives is not specified).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from d1c.target.vector import Builder


@dataclass(frozen=True, slots=True)
class Format:
    """A format of sign, `exponent` and `mantissa` bits.

    most   the code of the largest finite magnitude.
    inf    the code of infinity, None where there is none.
    nan    the code of NaN, None where there is none.
    fnuz   finite, no negative zero: the code of -0 is the only NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    most: int
    inf: int | None = None
    nan: int | None = None
    fnuz: bool = False

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.exponent + self.mantissa)


FORMATS = {
    "f8e4m3fn": Format(4, 3, 7, 0x7E, nan=0x7F),
    "f8e4m3fnuz": Format(4, 3, 8, 0x7F, nan=0x80, fnuz=True),
    "f8e5m2": Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    "f8e5m2fnuz": Format(5, 2, 16, 0x7F, nan=0x80, fnuz=True),
    "f6e2m3": Format(2, 3, 1, 0x1F),
    "f6e3m2": Format(3, 2, 3, 0x1F),
    "f4e2m1": Format(2, 1, 1, 0x07),
    "f16": Format(5, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
}
"""By the name of the element type. f8e8m0, a bare exponent, has functions of its own."""
SCALE = "f8e8m0"
ROUND_MODES = ("up", "down", "nearest")
_INF = 0x7F800000


def decode(b: Builder[Any], code: Any, name: str) -> Any:
    """The f32 value of a code of type `name`; exact."""
    if name == SCALE:
        normal = b.select(b.eq(code, 0), b.const(0x00400000, "i32"), b.shl(code, 23))
        return b.bits(b.select(b.eq(code, 255), b.const(0x7FC00000, "i32"), normal), "f32")
    f = FORMATS[name]
    magnitude = b.and_(code, f.sign - 1)
    normal = b.add(b.shl(magnitude, 23 - f.mantissa), (127 - f.bias) << 23)
    tiny = b.mul(b.cvt(magnitude, "f32"), 2.0 ** (1 - f.bias - f.mantissa))
    bits = b.select(b.lt(magnitude, 1 << f.mantissa), b.bits(tiny, "i32"), normal)
    if f.inf is not None:
        bits = b.select(b.eq(magnitude, f.inf), b.const(_INF, "i32"), bits)
        bits = b.select(b.lt(f.inf, magnitude), b.const(0x7FC00000, "i32"), bits)
    bits = b.or_(bits, b.shl(b.shr(code, f.exponent + f.mantissa), 31))
    if f.inf is None and f.nan is not None:
        seen = code if f.fnuz else magnitude
        bits = b.select(b.eq(seen, f.nan), b.const(0x7FC00000, "i32"), bits)
    return b.bits(bits, "f32")


def encode(b: Builder[Any], x: Any, name: str, saturate: bool = True, round_mode: str = "up") -> Any:
    """The code of f32 `x` in type `name`, rounded to nearest even.

    saturate     too large and infinite values become the largest finite one; otherwise infinity, or NaN where there is
                 none. Types without either always saturate; of them NaN gives -0.
    round_mode   of f8e8m0: up (away from zero), down (towards it) or nearest (ties up).
    """
    if name == SCALE:
        return _exponent(b, x, saturate, round_mode)
    f = FORMATS[name]
    bits = b.bits(x, "i32")
    magnitude = b.and_(bits, 0x7FFFFFFF)
    shift = 23 - f.mantissa
    odd = b.and_(b.shr(magnitude, shift), 1)
    rounded = b.shr(b.add(magnitude, b.add(odd, (1 << (shift - 1)) - 1)), shift)
    normal = b.sub(rounded, (127 - f.bias) << f.mantissa)
    # Below the smallest normal number a sum with 2^23 of the format's steps rounds to a multiple of one step.
    magic = 2.0 ** (1 - f.bias + shift)
    tiny = b.sub(b.bits(b.add(b.bits(magnitude, "f32"), magic), "i32"), _bits_of_power(1 - f.bias + shift))
    code = b.select(b.lt(magnitude, (128 - f.bias) << 23), tiny, normal)
    sign = b.shl(b.shr(bits, 31), f.exponent + f.mantissa)
    limited = f.inf is None and f.nan is None
    if saturate or limited:
        code = b.min(code, f.most)
    if f.fnuz:
        sign = b.select(b.eq(code, 0), b.const(0, "i32"), sign)
    result = b.or_(code, sign)
    if not saturate and not limited:
        over = f.inf if f.inf is not None else f.nan
        assert over is not None
        beyond = b.const(over, "i32") if f.fnuz else b.or_(sign, over)
        result = b.select(b.lt(f.most, code), beyond, result)
    return b.select(b.lt(_INF, magnitude), b.const(f.sign if f.nan is None else f.nan, "i32"), result)


def _bits_of_power(n: int) -> int:
    return (127 + n) << 23


def _exponent(b: Builder[Any], x: Any, saturate: bool, round_mode: str) -> Any:
    """f8e8m0: the biased exponent, the sign ignored."""
    magnitude = b.and_(b.bits(x, "i32"), 0x7FFFFFFF)
    e = b.shr(magnitude, 23)
    fraction = b.and_(magnitude, 0x7FFFFF)
    if round_mode == "up":
        e = b.add(e, b.cvt(b.ne(fraction, 0), "i32"))
    elif round_mode == "nearest":
        # The ties of subnormals, whose first bit is the fraction's, go down.
        half = b.select(b.eq(e, 0), b.const(0x400001, "i32"), b.const(0x400000, "i32"))
        e = b.add(e, b.cvt(b.le(half, fraction), "i32"))
    elif round_mode != "down":
        raise ValueError(f"round_mode {round_mode!r}, not one of {', '.join(ROUND_MODES)}")
    if saturate:
        e = b.min(e, 254)
    else:
        e = b.select(b.lt(magnitude, 0x400000), b.const(255, "i32"), b.min(e, 255))
    return b.select(b.lt(_INF, magnitude), b.const(255, "i32"), e)


def round_bf16(b: Builder[Any], x: Any) -> Any:
    """f32 rounded to a value of bf16 (RNE), still f32."""
    bits = b.bits(x, "i32")
    odd = b.and_(b.shr(bits, 16), 1)
    rounded = b.bits(b.and_(b.add(bits, b.add(odd, 0x7FFF)), -0x10000), "f32")
    return b.select(b.ne(x, x), b.const(math.nan), rounded)


def round_f16(b: Builder[Any], x: Any) -> Any:
    """f32 rounded to a value of f16 (RNE, subnormals kept), still f32."""
    bits = b.bits(x, "i32")
    magnitude = b.and_(bits, 0x7FFFFFFF)
    odd = b.and_(b.shr(magnitude, 13), 1)
    normal = b.and_(b.add(magnitude, b.add(odd, 0xFFF)), -0x2000)
    normal = b.select(b.lt(normal, (127 + 16) << 23), normal, b.const(_INF, "i32"))
    tiny = b.bits(b.sub(b.add(b.bits(magnitude, "f32"), 0.5), 0.5), "i32")  # steps of 2^-24
    rounded = b.select(b.lt(magnitude, (127 - 14) << 23), tiny, normal)
    signed = b.bits(b.or_(rounded, b.and_(bits, -(2**31))), "f32")
    return b.select(b.ne(x, x), b.const(math.nan), signed)
