"""Elementary functions as straight-line vector code, the same instructions for every engine.

Each takes a builder and f32 values; d1c.target.polynomials64 has the code for f64. No branches: special cases are
selects at the end, so a lane may compute garbage on the way as long as it is not selected. Accuracy
(tests/numerics/test_polynomials.py measures it) is given in ulp of the f32 result; results below 2^-126 are flushed,
subnormal inputs read as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from d1c.target import polynomials64

if TYPE_CHECKING:
    from d1c.target.vector import Builder

V = TypeVar("V")

_SIGN = -(2**31)
_MAGIC = 12582912.0
"""1.5 * 2^23: adding it rounds to the nearest integer, which then is in the low bits."""
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.428606765330187e-06
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
_TANH_P = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
           1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
          -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
          -1.42647390514189e-02)  # fmt: skip
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def _horner(b: Builder[V], x: V, coefficients: Sequence[float]) -> V:
    y = b.const(coefficients[0])
    for c in coefficients[1:]:
        y = b.fma(y, x, c)
    return y


def _with_sign(b: Builder[V], magnitude: V, sign: V) -> V:
    """`magnitude` (positive) with the sign bit of `sign`."""
    return b.bits(b.or_(b.and_(b.bits(sign, "i32"), _SIGN), b.bits(magnitude, "i32")), "f32")


def _exp_reduced(b: Builder[V], r: V) -> V:
    """e^r for |r| <= 0.35."""
    return b.fma(_horner(b, r, _EXP), b.mul(r, r), b.add(r, 1.0))


def exp(b: Builder[V], x: V) -> V:
    """e^x, 1.2 ulp."""
    if b.type_of(x) == "f64":
        return polynomials64.exp(b, x)
    y = _exp_small(b, x)
    # Also NaN goes to the sum: the comparison is false.
    return b.select(b.le(x, 88.72283), y, b.add(x, math.inf))


def exp_falling(b: Builder[V], x: V) -> V:
    """The bits of `exp` for f32 no larger than 0, or NaN, which the result's maximum with x keeps."""
    return b.max(_exp_small(b, x), x)


def _exp_small(b: Builder[V], x: V) -> V:
    """e^x for f32 up to 88.72283."""
    shifted = b.fma(x, 1.4426950408889634, _MAGIC)
    n = b.sub(shifted, _MAGIC)
    r = b.fma(n, -_LN2_LOW, b.fma(n, -_LN2_HIGH, x))
    y = _exp_reduced(b, r)
    y = b.bits(b.add(b.bits(y, "i32"), b.shl(b.bits(shifted, "i32"), 23)), "f32")
    return b.select(b.lt(x, -87.33654), 0.0, y)


def log(b: Builder[V], x: V) -> V:
    """ln x, 0.7 ulp; -inf at zero (and subnormals), NaN below."""
    if b.type_of(x) == "f64":
        return polynomials64.log(b, x)
    u = b.bits(x, "i32")
    e = b.sar(b.sub(u, 0x3F3504F3), 23)
    f = b.sub(b.bits(b.sub(u, b.shl(e, 23)), "f32"), 1.0)
    n = b.cvt(e, "f32")
    z = b.mul(f, f)
    y = b.mul(b.mul(_horner(b, f, _LOG), z), f)
    y = b.fma(n, -2.12194440e-4, y)
    y = b.add(f, b.fma(z, -0.5, y))
    y = b.fma(n, 0.693359375, y)
    y = b.select(b.lt(x, math.inf), y, x)
    y = b.select(b.lt(x, 0.0), math.nan, y)
    return b.select(b.eq(x, 0.0), -math.inf, y)


def tanh(b: Builder[V], x: V) -> V:
    """tanh x, 4 ulp."""
    if b.type_of(x) == "f64":
        return polynomials64.tanh(b, x)
    a = b.abs(x)
    z = b.mul(x, x)
    y = b.div(b.mul(_horner(b, z, _TANH_P), x), _horner(b, z, _TANH_Q))
    y = b.select(b.lt(a, 0.0004), b.mul(x, 1.0), y)
    return b.select(b.lt(7.90531110763549805, a), _with_sign(b, b.const(1.0), x), y)


def erf(b: Builder[V], x: V) -> V:
    """erf x, 5 ulp, relative also near zero."""
    if b.type_of(x) == "f64":
        return polynomials64.erf(b, x)
    a = b.abs(x)
    z = b.mul(x, x)
    y = b.div(b.mul(_horner(b, z, _ERF_P), x), _horner(b, z, _ERF_Q))
    y = b.select(b.lt(a, 0.0004), b.mul(x, 1.1283791670955126), y)
    return b.select(b.lt(4.0, a), _with_sign(b, b.const(1.0), x), y)


def sigmoid(b: Builder[V], x: V) -> V:
    """1 / (1 + e^-x), 3 ulp."""
    return b.div(1.0, b.add(exp(b, b.neg(x)), 1.0))


def pow(b: Builder[V], x: V, y: V) -> V:
    """x^y, 9 ulp, special cases as IEEE 754: log2 |x| as a sum of two f32, then 2 to the power of the product."""
    if b.type_of(x) == "f64":
        return polynomials64.pow(b, x, y)
    a = b.abs(x)
    u = b.bits(a, "i32")
    e = b.sar(b.sub(u, 0x3F3504F3), 23)
    f = b.sub(b.bits(b.sub(u, b.shl(e, 23)), "f32"), 1.0)
    # ln(1 + f) = f - f^2 / 2 + f^3 p(f) as high + low.
    square = b.mul(f, f)
    half = b.mul(square, 0.5)
    high = b.sub(f, half)
    low = b.sub(b.sub(f, high), half)
    low = b.fma(b.fma(f, f, b.neg(square)), -0.5, low)
    low = b.fma(b.mul(square, f), _horner(b, f, _LOG), low)
    total = b.add(high, low)
    high, low = total, b.add(b.sub(high, total), low)
    # Times log2 e = 1.44269502 + 1.92596303e-8, plus e.
    t = b.mul(high, 1.44269502162933349609375)
    t_low = b.fma(high, 1.44269502162933349609375, b.neg(t))
    t_low = b.add(b.fma(high, 1.925963033500011e-08, t_low), b.mul(low, 1.4426950408889634))
    n = b.cvt(e, "f32")
    log2 = b.add(n, t)
    log2_low = b.add(b.add(b.sub(n, log2), t), t_low)
    log2 = b.select(b.eq(a, 0.0), -math.inf, b.select(b.lt(a, math.inf), log2, a))
    # 2^(y * log2), scaled in two steps so that only the last multiplication can overflow or flush.
    w = b.mul(y, log2)
    w_low = b.fma(y, log2_low, b.fma(y, log2, b.neg(w)))
    k = b.rint(w)
    r = b.mul(b.add(b.sub(w, k), w_low), 0.6931471805599453)
    scale = b.min(b.max(b.cvt(k, "i32"), -300), 300)
    first = b.sar(scale, 1)
    power = _exp_reduced(b, r)
    for part in (first, b.sub(scale, first)):
        # Powers outside the exponent's range only occur for lanes that the next selects replace.
        power = b.mul(power, b.bits(b.shl(b.add(part, 127), 23), "f32"))
    power = b.select(b.lt(w, -150.0), 0.0, power)
    power = b.select(b.le(w, 130.0), power, b.add(w, math.inf))
    power = b.select(b.eq(a, 1.0), 1.0, power)
    # Signs: only an integer power of a negative base is a number.
    integer = b.eq(b.floor(y), y)
    half_y = b.mul(y, 0.5)
    odd = b.and_(integer, b.ne(b.floor(half_y), half_y))
    power = b.select(odd, _with_sign(b, power, x), power)
    negative = b.and_(b.lt(x, 0.0), b.lt(-math.inf, x))
    power = b.select(integer, power, b.select(negative, math.nan, power))
    power = b.select(b.ne(y, y), y, power)
    return b.select(b.or_(b.eq(y, 0.0), b.eq(x, 1.0)), 1.0, power)


def _sine(b: Builder[V], x: V, shift: int) -> V:
    # x = r + n * pi / 2. The first step is exact while n has at most 22 bits: both terms are multiples of 2^-23.
    n = b.rint(b.mul(x, 0.6366197723675814))
    r = x
    for part in (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15):
        r = b.fma(n, -part, r)
    r = b.select(b.lt(b.abs(x), 4194304.0), r, 0.0)
    quadrant = b.add(b.cvt(n, "i32"), shift)
    z = b.mul(r, r)
    sine = b.fma(b.mul(_horner(b, z, _SIN), z), r, r)
    cosine = b.fma(_horner(b, z, _COS), b.mul(z, z), b.fma(z, -0.5, 1.0))
    y = b.select(b.eq(b.and_(quadrant, 1), 0), sine, cosine)
    y = b.select(b.eq(b.and_(quadrant, 2), 0), y, b.neg(y))
    # x - x is NaN for infinities and NaN.
    return b.select(b.lt(b.abs(x), math.inf), y, b.sub(x, x))


def sin(b: Builder[V], x: V) -> V:
    """sin x: absolute error 2e-7 for |x| < 2^16, growing to 2^22; beyond, the result is 0, 1 or -1."""
    if b.type_of(x) == "f64":
        return polynomials64.sin(b, x)
    return b.select(b.lt(b.abs(x), 0.0004), b.mul(x, 1.0), _sine(b, x, 0))


def cos(b: Builder[V], x: V) -> V:
    """cos x: as sin."""
    if b.type_of(x) == "f64":
        return polynomials64.cos(b, x)
    return _sine(b, x, 1)


def log1p(b: Builder[V], x: V) -> V:
    """ln(1 + x), 3 ulp, relative also near zero: the rounding of 1 + x is taken back by a factor."""
    u = b.add(x, 1.0)
    d = b.sub(u, 1.0)
    y = b.mul(log(b, u), b.div(x, d))
    y = b.select(b.eq(d, 0.0), x, y)
    # x / d is NaN at infinity; u itself is there what its logarithm is.
    return b.select(b.eq(x, math.inf), x, y)


def expm1(b: Builder[V], x: V) -> V:
    """e^x - 1, 4 ulp, relative also near zero: (u - 1) x / ln u with u = e^x."""
    if b.type_of(x) == "f64":
        return polynomials64.expm1(b, x)
    u = exp(b, x)
    d = b.sub(u, 1.0)
    y = b.mul(d, b.div(x, log(b, u)))
    y = b.select(b.eq(d, 0.0), x, y)
    # Far from zero u - 1 is as good, and the quotient of infinities is not.
    return b.select(b.lt(b.abs(x), 20.0), y, d)


_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_ATAN64_P = (-8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1,
             -1.228866684490136173410e2, -6.485021904942025371773e1)  # fmt: skip
_ATAN64_Q = (1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2,
             4.853903996359136964868e2, 1.945506571482613964425e2)  # fmt: skip


def atan(b: Builder[V], x: V) -> V:
    """Arc tangent, 3 ulp: of 1/x or (x - 1) / (x + 1) where the magnitude is above tan(3 pi/8) or tan(pi/8)."""
    wide = b.type_of(x) == "f64"
    one, a = b.const(1.0, b.type_of(x)), b.abs(x)
    large, middle = b.lt(2.414213562373095, a), b.lt(0.66 if wide else 0.4142135623730950, a)
    bent = b.div(b.sub(a, one), b.add(a, one))
    t = b.select(large, b.neg(b.div(one, a)), b.select(middle, bent, a))
    base = b.select(large, math.pi / 2, b.select(middle, math.pi / 4, b.mul(one, 0.0)))
    z = b.mul(t, t)
    if wide:
        p, q = (_horner64(b, z, c) for c in (_ATAN64_P, _ATAN64_Q))
        y = b.add(base, b.fma(b.div(b.mul(z, p), q), t, t))
    else:
        y = b.add(base, b.fma(b.mul(_horner(b, z, _ATAN), z), t, t))
    y = b.select(b.lt(x, 0.0), b.neg(y), y)
    # Zeros and subnormals keep their sign; a NaN stays one.
    return b.select(b.eq(x, 0.0), x, b.select(b.ne(x, x), x, y))


def _horner64(b: Builder[V], x: V, coefficients: Sequence[float]) -> V:
    y = b.const(coefficients[0], "f64")
    for c in coefficients[1:]:
        y = b.fma(y, x, c)
    return y
