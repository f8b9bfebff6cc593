"""The exact remainder of division, as vector code without a loop."""

from __future__ import annotations

import math
from typing import Any

from d1c.target.polynomials64 import power_of_two, product
from d1c.target.vector import Builder

_STEP = 39
"""Bits of the quotient that one remainder of 63-bit integers takes off: 24 bits shifted by so many."""


def fmod(b: Builder[Any], x: Any, y: Any) -> Any:
    """x - trunc(x / y) y with the sign of x, exact; results below 2^-126 are flushed, subnormal operands zeros.

    NaN where x is infinite or y is 0; x where y is infinite."""
    ax, ay = (b.and_(b.bits(v, "i32"), 0x7FFFFFFF) for v in (x, y))
    ex, ey = b.shr(ax, 23), b.shr(ay, 23)
    mx, my = (b.cvt(b.or_(b.and_(a, 0x7FFFFF), 0x800000), "i64") for a in (ax, ay))
    left = b.sub(ex, ey)
    rest = b.rem(mx, my)
    for i in range(-(-253 // _STEP)):
        count = b.min(b.max(b.sub(left, i * _STEP), 0), _STEP)
        rest = b.rem(b.shl(rest, b.cvt(count, "i64")), my)
    # rest 2^(ey - 150): a normal power of two times a number from 2^-23 on.
    scale = b.bits(b.shl(ey, 23), "f32")
    result = b.mul(b.mul(b.cvt(rest, "f32"), 2.0**-23), scale)
    result = b.bits(b.or_(b.bits(result, "i32"), b.and_(b.bits(x, "i32"), -(2**31))), "f32")
    result = b.select(b.lt(left, 0), x, result)
    good = b.and_(b.and_(b.lt(ex, 255), b.le(ay, 0x7F800000)), b.lt(0, ey))
    return b.select(good, result, b.const(math.nan))


_STEP64 = 52
"""Bits of the quotient of f64 that one division takes off: it is exact, or one too large."""


def fmod64(b: Builder[Any], x: Any, y: Any) -> Any:
    """As fmod, of f64, subnormals included. Mantissas are integers in f64."""
    ax, ay = (b.and_(b.bits(v, "i64"), 2**63 - 1) for v in (x, y))
    (ex, mx), (ey, my) = _parts64(b, ax), _parts64(b, ay)
    left = b.sub(ex, ey)
    rest = mx
    for i in range(-1, -(-2046 // _STEP64)):
        if i >= 0:
            count = b.min(b.max(b.sub(left, i * _STEP64), 0), _STEP64)
            rest = b.mul(rest, power_of_two(b, count))
        p, low = product(b, b.floor(b.div(rest, my)), my)
        rest = b.sub(b.sub(rest, p), low)
        rest = b.select(b.lt(rest, 0.0), b.add(rest, my), rest)
    # rest 2^(ey - 1075), in two exact steps.
    first = b.sar(b.sub(ey, 1075), 1)
    result = b.mul(b.mul(rest, power_of_two(b, first)), power_of_two(b, b.sub(b.sub(ey, 1075), first)))
    result = b.bits(b.or_(b.bits(result, "i64"), b.and_(b.bits(x, "i64"), -(2**63))), "f64")
    result = b.select(b.or_(b.lt(left, 0), b.eq(ay, 0x7FF << 52)), x, result)
    good = b.and_(b.and_(b.lt(ax, 0x7FF << 52), b.le(ay, 0x7FF << 52)), b.lt(0, ay))
    return b.select(good, result, b.const(math.nan, "f64"))


def _parts64(b: Builder[Any], bits: Any) -> tuple[Any, Any]:
    """Exponent, and mantissa as f64: the magnitude is mantissa 2^(exponent - 1075)."""
    e, m = b.shr(bits, 52), b.and_(bits, 2**52 - 1)
    return b.max(e, 1), b.cvt(b.select(b.eq(e, 0), m, b.or_(m, 1 << 52)), "f64")
