"""Elementary functions of f64 as straight-line vector code; d1c.target.polynomials calls them for f64 values.

As there: no branches, special cases are selects at the end. There is no fused multiply-add in f64: where a product is
needed exactly it is split (Dekker). Accuracy in ulp is measured by tests/numerics/test_polynomials64.py; the methods,
and the coefficients of exp, log, sin and cos, are those of fdlibm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from d1c.target.vector import Builder

V = TypeVar("V")

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""ln 2; the first part has 21 zero bits at its end, so that its product with an exponent is exact."""
_ROOT_HALF = 0x3FE6A09E667F3BCD
_EXP = (4.13813679705723846039e-08, -1.65339022054652515390e-06, 6.61375632143793436117e-05,
        -2.77777777770155933842e-03, 1.66666666666666019037e-01)  # fmt: skip
_LOG_ODD = (1.479819860511658591e-01, 1.818357216161805012e-01, 2.857142874366239149e-01, 6.666666666666735130e-01)
_LOG_EVEN = (1.531383769920937332e-01, 2.222219843214978396e-01, 3.999999999940941908e-01)
_SIN = (1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
        -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01)  # fmt: skip
_COS = (-1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
        2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02)  # fmt: skip
_HALF_PI = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624871116645580e-21,
            8.47842766036889956997e-32)  # fmt: skip
"""pi / 2 in parts of 33 bits."""
_ATANH = tuple(2.0 / (2 * k + 3) for k in reversed(range(13)))
_ERF = tuple((-1.0) ** k * 2 / math.sqrt(math.pi) / (math.factorial(k) * (2 * k + 1)) for k in reversed(range(22)))
_ERFC = (
    0.20196598791223083, 0.147884835533987, 0.05188222158351388, 0.01752570996486754, 0.0057218024174782185,
    0.0018109803028143287, 0.0005570714353927206, 0.00016689473052527014, 4.878565911492426e-05, 1.393593285983325e-05,
    3.895514595204236e-06, 1.0668392337256785e-06, 2.865502572794478e-07, 7.555861078650025e-08, 1.9575863446658766e-08,
    4.987110221316149e-09, 1.250187115983681e-09, 3.085884996536018e-10, 7.504477221934036e-11, 1.7990337301473924e-11,
    4.253567637002576e-12, 9.92231904278773e-13, 2.285227129056322e-13, 5.190609227156973e-14, 1.1572195918983945e-14,
    2.5099713973908423e-15, 5.741067343745244e-16,
)  # fmt: skip
"""Chebyshev coefficients of e^(x^2) erfc(x), x = 3.5 - 2.5 t, t from -1 to 1."""


def _horner(b: Builder[V], x: V, coefficients: Sequence[float]) -> V:
    y = b.const(coefficients[0], "f64")
    for c in coefficients[1:]:
        y = b.add(b.mul(y, x), c)
    return y


def power_of_two(b: Builder[V], n: V) -> V:
    """2^n for i64 n of -1022 to 1023."""
    return b.bits(b.shl(b.add(n, 1023), 52), "f64")


def _with_sign(b: Builder[V], magnitude: V, sign: V) -> V:
    bits = b.or_(b.and_(b.bits(sign, "i64"), -(2**63)), b.bits(b.abs(magnitude), "i64"))
    return b.bits(bits, "f64")


def _exponential(b: Builder[V], x: V, low: V) -> V:
    """e^(x + low), `low` far below x."""
    n = b.rint(b.mul(x, 1.4426950408889634))
    high = b.sub(x, b.mul(n, _LN2_HIGH))
    rest = b.sub(b.mul(n, _LN2_LOW), low)
    r = b.sub(high, rest)
    z = b.mul(r, r)
    c = b.sub(r, b.mul(z, _horner(b, z, _EXP)))
    y = b.sub(1.0, b.sub(b.sub(rest, b.div(b.mul(r, c), b.sub(2.0, c))), high))
    k = b.min(b.max(b.cvt(n, "i64"), -1100), 1100)
    # In two steps, so that only the last multiplication can overflow or be subnormal.
    first = b.sar(k, 1)
    y = b.mul(b.mul(y, power_of_two(b, first)), power_of_two(b, b.sub(k, first)))
    y = b.select(b.lt(x, -746.0), 0.0, y)
    # Also NaN goes to the sum: the comparison is false.
    return b.select(b.le(x, 710.0), y, b.add(x, math.inf))


def exp(b: Builder[V], x: V) -> V:
    """e^x, 1 ulp."""
    return _exponential(b, x, b.const(0.0, "f64"))


def _reduced(b: Builder[V], x: V) -> tuple[V, V]:
    """x = 2^e * m, m from sqrt(1/2) to sqrt(2): (e as f64, m), for positive finite x."""
    tiny = b.lt(x, 2.0**-1022)
    u = b.bits(b.select(tiny, b.mul(x, 2.0**54), x), "i64")
    e = b.sar(b.sub(u, _ROOT_HALF), 52)
    m = b.bits(b.sub(u, b.shl(e, 52)), "f64")
    n = b.cvt(e, "f64")
    return b.select(tiny, b.sub(n, 54.0), n), m


def log(b: Builder[V], x: V) -> V:
    """ln x, 1 ulp; -inf at zero, NaN below."""
    n, m = _reduced(b, x)
    f = b.sub(m, 1.0)
    s = b.div(f, b.add(f, 2.0))
    z = b.mul(s, s)
    w = b.mul(z, z)
    r = b.add(b.mul(z, _horner(b, w, _LOG_ODD)), b.mul(w, _horner(b, w, _LOG_EVEN)))
    half = b.mul(b.mul(f, f), 0.5)
    y = b.add(b.mul(s, b.add(half, r)), b.mul(n, _LN2_LOW))
    y = b.sub(b.mul(n, _LN2_HIGH), b.sub(b.sub(half, y), f))
    y = b.select(b.lt(x, math.inf), y, x)
    y = b.select(b.lt(x, 0.0), math.nan, y)
    return b.select(b.eq(x, 0.0), -math.inf, y)


def expm1(b: Builder[V], x: V) -> V:
    """e^x - 1, 3 ulp, relative also near zero: (u - 1) x / ln u with u = e^x."""
    u = exp(b, x)
    d = b.sub(u, 1.0)
    y = b.select(b.eq(d, 0.0), x, b.mul(d, b.div(x, log(b, u))))
    return b.select(b.lt(b.abs(x), 40.0), y, d)


def tanh(b: Builder[V], x: V) -> V:
    """tanh x, 4 ulp."""
    a = b.abs(x)
    t = expm1(b, b.add(a, a))
    y = b.select(b.lt(22.0, a), 1.0, b.div(t, b.add(t, 2.0)))
    return _with_sign(b, y, x)


def erf(b: Builder[V], x: V) -> V:
    """erf x, 3 ulp: its series up to 1, then 1 - erfc."""
    a = b.abs(x)
    z = b.mul(x, x)
    near = b.mul(a, _horner(b, z, _ERF))
    t = b.div(b.sub(3.5, b.min(a, 6.0)), 2.5)
    twice = b.add(t, t)
    last, y = b.const(0.0, "f64"), b.const(0.0, "f64")
    for c in reversed(_ERFC[1:]):
        last, y = y, b.add(b.sub(b.mul(twice, y), last), c)
    y = b.add(b.sub(b.mul(t, y), last), _ERFC[0])
    far = b.sub(1.0, b.mul(exp(b, b.neg(z)), y))
    y = b.select(b.lt(a, 1.0), near, b.select(b.lt(6.0, a), 1.0, far))
    return _with_sign(b, b.select(b.ne(x, x), x, y), x)


def _split(b: Builder[V], x: V) -> tuple[V, V]:
    """x as a sum of two halves of 26 bits."""
    c = b.mul(x, 134217729.0)
    high = b.sub(c, b.sub(c, x))
    return high, b.sub(x, high)


def product(b: Builder[V], x: V, y: V) -> tuple[V, V]:
    """x * y as a rounded product and the rest, exactly."""
    p = b.mul(x, y)
    (a, c), (d, e) = _split(b, x), _split(b, y)
    rest = b.sub(b.mul(c, e), b.sub(b.sub(b.sub(p, b.mul(a, d)), b.mul(c, d)), b.mul(a, e)))
    return p, rest


def pow(b: Builder[V], x: V, y: V) -> V:
    """x^y, 2 ulp; special cases as IEEE 754: ln |x| as a sum of two f64."""
    a = b.abs(x)
    n, m = _reduced(b, b.select(b.lt(a, math.inf), a, 1.0))
    # ln m = 2 atanh s, s = (m - 1) / (m + 1) as high + low.
    f, d = b.sub(m, 1.0), b.add(m, 1.0)
    s = b.div(f, d)
    p, p_low = product(b, s, d)
    s_low = b.div(b.sub(b.sub(b.sub(f, p), p_low), b.mul(s, b.sub(m, b.sub(d, 1.0)))), d)
    # 2 atanh s = 2 s + 2/3 s^3 + s^5 p(s^2), the first two terms in full.
    z, z_low = product(b, s, s)
    cube, cube_low = product(b, z, s)
    cube_low = b.add(cube_low, b.mul(s, b.add(z_low, b.mul(b.mul(s, s_low), 3.0))))
    third, tail = product(b, cube, b.const(_ATANH[-1], "f64"))
    tail = b.add(tail, b.add(b.mul(cube_low, _ATANH[-1]), b.mul(cube, 3.700743415417188e-17)))
    tail = b.add(tail, b.mul(b.mul(cube, z), _horner(b, z, _ATANH[:-1])))
    whole, twice = b.mul(n, _LN2_HIGH), b.add(s, s)
    high = b.add(whole, twice)
    low = b.sub(twice, b.sub(high, whole))
    total = b.add(high, third)
    low = b.add(low, b.sub(third, b.sub(total, high)))
    high = total
    low = b.add(low, b.add(b.add(b.add(s_low, s_low), b.mul(n, _LN2_LOW)), tail))
    total = b.add(high, low)
    low = b.sub(low, b.sub(total, high))
    # Larger exponents than 1e20 overflow, or vanish, as 1e20 does.
    limited = b.min(b.max(y, -1e20), 1e20)
    w, w_low = product(b, limited, total)
    power = _exponential(b, w, b.add(w_low, b.mul(limited, low)))
    grows = b.lt(0.0, y)
    power = b.select(b.eq(a, 0.0), b.select(grows, b.const(0.0, "f64"), math.inf), power)
    power = b.select(b.eq(a, math.inf), b.select(grows, b.const(math.inf, "f64"), 0.0), power)
    power = b.select(b.eq(a, 1.0), 1.0, power)
    # Signs: only an integer power of a negative base is a number.
    integer = b.eq(b.floor(y), y)
    half = b.mul(y, 0.5)
    odd = b.and_(integer, b.ne(b.floor(half), half))
    power = b.select(odd, _with_sign(b, power, x), power)
    negative = b.and_(b.lt(x, 0.0), b.lt(-math.inf, x))
    power = b.select(integer, power, b.select(negative, math.nan, power))
    power = b.select(b.ne(y, y), y, b.select(b.ne(x, x), x, power))
    return b.select(b.or_(b.eq(y, 0.0), b.eq(x, 1.0)), 1.0, power)


def _sine(b: Builder[V], x: V, shift: int) -> V:
    # x = r - low + n * pi / 2. Products with the parts are exact while n has at most 20 bits.
    n = b.rint(b.mul(x, 0.6366197723675814))
    r = b.sub(x, b.mul(n, _HALF_PI[0]))
    low = b.const(0.0, "f64")
    for part in _HALF_PI[1:]:
        w = b.add(low, b.mul(n, part))
        y = b.sub(r, w)
        r, low = y, b.sub(w, b.sub(r, y))
    inside = b.lt(b.abs(x), 2.0**31)
    r, low = b.select(inside, r, 0.0), b.select(inside, low, 0.0)
    quadrant = b.add(b.cvt(n, "i64"), shift)
    z = b.mul(r, r)
    cube = b.mul(z, r)
    half = b.mul(z, 0.5)
    first = b.sub(1.0, half)
    sine = b.add(r, b.sub(b.mul(cube, _horner(b, z, _SIN)), b.mul(low, first)))
    rest = b.add(b.sub(b.sub(1.0, first), half), b.add(b.mul(b.mul(z, z), _horner(b, z, _COS)), b.mul(r, low)))
    cosine = b.add(first, rest)
    y = b.select(b.eq(b.and_(quadrant, 1), 0), sine, cosine)
    y = b.select(b.eq(b.and_(quadrant, 2), 0), y, b.neg(y))
    # x - x is NaN for infinities and NaN.
    return b.select(b.lt(b.abs(x), math.inf), y, b.sub(x, x))


def sin(b: Builder[V], x: V) -> V:
    """sin x: 1 ulp for |x| < 1.6e6, absolute error growing to 1e-10 at 2^31; beyond, the result is 0, 1 or -1."""
    return b.select(b.lt(b.abs(x), 1e-8), x, _sine(b, x, 0))


def cos(b: Builder[V], x: V) -> V:
    """cos x: as sin."""
    return _sine(b, x, 1)
