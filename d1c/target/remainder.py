"""The exact remainder of f32 division, as integer vector code without a loop."""

from __future__ import annotations

import math
from typing import Any

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
