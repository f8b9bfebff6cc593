"""Vector instructions against exact rational arithmetic, storage conversions against ml_dtypes, builders."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from d1c.target import numerics
from d1c.target.dtypes import dtype
from d1c.target.kernel import Instr
from d1c.target.numerics import NumpyBuilder, Recorder, execute, fma_f32, fma_short, round_to, run_body, widen
from d1c.target.vector import round_f64
from tests.numerics import scalar
from tests.numerics.scalar import hard_floats, value32

B = NumpyBuilder()


def stored(x: np.ndarray) -> np.ndarray:
    return round_to(x, "f32").view(np.uint32)


def check(op, reference, *operands):
    """An instruction on arrays agrees in every bit with a scalar reference, up to which NaN."""
    got = stored(execute(op, operands, "f32"))
    for i, row in enumerate(zip(*(o.tolist() for o in operands), strict=True)):
        want = scalar.bits32(reference(*row))
        assert got[i] == want, (op, row, hex(got[i]), hex(want))


@pytest.mark.parametrize("op", ["add", "mul", "div", "fma"])
def test_arithmetic_is_exact_rational_arithmetic_rounded_once(op):
    rng = np.random.default_rng(1)
    operands = [hard_floats(rng, 4000) for _ in range(3 if op == "fma" else 2)]
    check(op, getattr(scalar, op), *operands)


def test_sub_is_add_of_the_negation():
    rng = np.random.default_rng(2)
    a, b = hard_floats(rng, 4000), hard_floats(rng, 4000)
    check("sub", lambda x, y: scalar.add(x, -y), a, b)


def test_products_and_quotients_around_the_flush_threshold():
    rng = np.random.default_rng(3)
    a = (1 + rng.integers(0, 2**23, 4000) / 2**23).astype(np.float32)
    b = (np.float64(2.0**-126) / a * (1 + rng.integers(-4, 5, 4000) * 2.0**-24)).astype(np.float64)
    b = (b * 2.0**60).astype(np.float32)
    check("mul", scalar.mul, (a * np.float32(2.0**-60)).astype(np.float32), b)
    check("div", scalar.div, (b * np.float32(2.0**-60)).astype(np.float32), np.float32(1) / a)
    below, at = 2.0**-126 * (1 - 2.0**-25 - 2.0**-40), 2.0**-126 * (1 - 2.0**-25)
    assert stored(round_f64(np.array([below, -below, at, -at]))).tolist() == [0, 0x80000000, 0x800000, 0x80800000]


def crafted_fma(rng, n):
    """a * b + c where products of 46 to 48 bits meet sums of any alignment."""
    a = (2**23 + rng.integers(0, 2**23, n)).astype(np.float64)
    b = (2**23 + rng.integers(0, 2**23, n)).astype(np.float64)
    product = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    shift = rng.integers(20, 32, n)
    c = np.array([float(np.float32((1 << int(s) + 46) + (int(m) << int(s) + 23))) for s, m in
                  zip(shift, rng.integers(0, 2**23, n), strict=True)])  # fmt: skip
    assert all(p < 2**48 for p in product)
    sign = np.where(rng.integers(0, 2, n) == 1, -1.0, 1.0)
    scale = np.exp2(rng.integers(-60, 0, n))
    return (a * sign).astype(np.float32), (b * scale).astype(np.float32), (c * scale).astype(np.float32)


def test_fma_next_to_midpoints():
    rng = np.random.default_rng(4)
    a, b, c = crafted_fma(rng, 3000)
    check("fma", scalar.fma, a, b, c)
    # Half an ulp of c less j^2 2^-70, with c odd: float64 sees the midpoint and rounds up.
    hair = np.arange(1, 200) * 2.0**-23
    a, b = ((1 + hair) * 2.0**-24).astype(np.float32), (1 - hair).astype(np.float32)
    c = np.full(199, 1 + 2.0**-23, np.float32)
    check("fma", scalar.fma, a, b, c)
    plain = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (plain != fma_f32(a, b, c)).all(), "the cases do not need round-to-odd"


def test_short_fma_is_the_fma_for_bf16_operands():
    rng = np.random.default_rng(5)
    n = 6000
    a, b = (widen(round_to(hard_floats(rng, n), "bf16")) for _ in range(2))
    c = hard_floats(rng, n)
    # Also accumulators of the size of the product, and of its 2^-24th part.
    with np.errstate(all="ignore"):
        near = (
            -a.astype(np.float64) * b * (1 + rng.integers(-3, 4, n) * 2.0**-23) * np.exp2(rng.choice([0, 24, -24], n))
        )
        c = np.where(rng.integers(0, 2, n) == 1, c, near.astype(np.float32))
    assert np.array_equal(stored(fma_short(a, b, c)), stored(fma_f32(a, b, c)))
    check("fma", scalar.fma, a, b, c)


def test_square_root_and_roundings():
    x = hard_floats(np.random.default_rng(6), 3000)

    def root(v):
        v = scalar.daz(v)
        if not v > 0 or math.isinf(v):
            return v if v == 0 or v != v or v > 0 else math.nan
        f = Fraction(v)
        k = 2 * (60 + max(0, -math.frexp(v)[1]))  # 2^k f is an integer with far more than 48 bits
        r = Fraction(math.isqrt(int(f * 4**k)), 2**k)
        return scalar.round32(r if r * r == f else r + Fraction(1, 2 ** (k + 1)))

    check("sqrt", root, x)
    for op, f in (("rint", round), ("floor", math.floor), ("ceil", math.ceil)):

        def whole(v, f=f):
            v = scalar.daz(v)
            return math.copysign(float(f(v)), v) if math.isfinite(v) else v

        check(op, whole, x)


def test_extrema_order_zeros_keep_subnormals_and_propagate_nan():
    rng = np.random.default_rng(7)
    a, b = hard_floats(rng, 4000), hard_floats(rng, 4000)
    check("max", scalar.larger, a, b)
    check("min", scalar.smaller, a, b)


def test_sign_operations_keep_bits():
    x = hard_floats(np.random.default_rng(8), 1000)
    assert np.array_equal(B.neg(x).view(np.uint32), x.view(np.uint32) ^ 0x80000000)
    assert np.array_equal(B.abs(x).view(np.uint32), x.view(np.uint32) & 0x7FFFFFFF)
    mask = np.arange(1000) % 2 == 0
    assert np.array_equal(
        B.select(mask, x, x[::-1]).view(np.uint32), np.where(mask, x.view(np.uint32), x[::-1].view(np.uint32))
    )


def test_compares_read_subnormals_as_zero():
    rng = np.random.default_rng(9)
    a, b = hard_floats(rng, 4000), hard_floats(rng, 4000)
    p, q = ([scalar.daz(v) for v in x.tolist()] for x in (a, b))
    for op, f in (("eq", "__eq__"), ("ne", "__ne__"), ("lt", "__lt__"), ("le", "__le__")):
        assert execute(op, [a, b], "mask").tolist() == [getattr(x, f)(y) for x, y in zip(p, q, strict=True)]


def test_conversion_to_integers_saturates():
    x = np.array(
        [1.9, -1.9, 2.0**31, -(2.0**31), 3e38, -np.inf, np.inf, np.nan, 1e-40, 2.0**63, -(2.0**63), 2147483520],
        np.float32,
    )
    low, high = -(2**31), 2**31 - 1
    assert B.cvt(x, "i32").tolist() == [1, -1, high, low, high, low, high, 0, 0, high, low, 2147483520]
    low, high = -(2**63), 2**63 - 1
    assert B.cvt(x, "i64").tolist() == [1, -1, 2**31, -(2**31), high, low, high, 0, 0, high, low, 2147483520]
    assert B.cvt(x, "mask").tolist() == [True] * 8 + [False] + [True] * 3
    assert B.cvt(np.array([2**24 + 1, 2**62 + 1]), "f32").tolist() == [2.0**24, 2.0**62]
    assert B.cvt(np.array([2**40 + 5]), "i32").tolist() == [5]


def test_integer_division_shifts_and_wrapping():
    a = np.array([7, -7, 7, -7, -(2**31), 5], np.int32)
    b = np.array([2, 2, -2, -2, -1, 0], np.int32)
    assert B.div(a, b).tolist() == [3, -3, -3, 3, -(2**31), 0]
    assert B.rem(a, b).tolist() == [1, -1, 1, -1, 0, 0]
    assert B.shr(np.array([-1], np.int32), 28).tolist() == [15]
    assert B.sar(np.array([-256], np.int32), 4).tolist() == [-16]
    assert B.shl(np.array([3], np.int32), 31).tolist() == [-(2**31)]
    assert B.add(np.array([2**31 - 1], np.int32), 1).tolist() == [-(2**31)]
    assert B.abs(np.array([-(2**31), -4], np.int32)).tolist() == [-(2**31), 4]


def test_stores_round_like_ml_dtypes_and_write_one_nan():
    x = hard_floats(np.random.default_rng(10), 20000)
    with np.errstate(all="ignore"):
        bf16, f16 = x.astype(ml_dtypes.bfloat16).view(np.uint16), x.astype(np.float16).view(np.uint16)
    nan = np.isnan(x)
    assert np.array_equal(round_to(x, "bf16").view(np.uint16), np.where(nan, 0x7FC0, bf16))
    assert np.array_equal(round_to(x, "f16").view(np.uint16), np.where(nan, 0x7E00, f16))
    assert np.array_equal(round_to(x, "f32").view(np.uint32), np.where(nan, 0x7FC00000, x.view(np.uint32)))
    assert round_to(np.array([300, -1], np.int32), "u8").tolist() == [44, 255]


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_widening_is_exact_for_every_value(name):
    storage = np.arange(2**16, dtype=np.uint16).view(dtype(name).numpy)
    wide = widen(storage)
    with np.errstate(all="ignore"):
        assert np.array_equal(wide, storage.astype(np.float32), equal_nan=True)
    keeps = ~np.isnan(wide)
    assert np.array_equal(round_to(wide, name).view(np.uint16)[keeps], storage.view(np.uint16)[keeps])


def test_recorder_shares_constants_and_runs_like_the_builder():
    r = Recorder("f32", "f32")
    x, y = r.inputs
    body = r.body(numerics.tanh(r, r.add(numerics.exp(r, x), numerics.exp(r, y))))
    constants = [(i.type, i.imm) for i in body.instrs if i.op == "const"]
    assert len(constants) == len(set(constants))
    a, b = hard_floats(np.random.default_rng(11), 500), hard_floats(np.random.default_rng(12), 500)
    want = numerics.tanh(B, B.add(numerics.exp(B, a), numerics.exp(B, b)))
    assert np.array_equal(stored(run_body(body, [a, b])), stored(want))


def test_constants_of_both_zero_signs_and_nan_make_comparable_records():
    def body(*values):
        r = Recorder("f32")
        x = r.inputs[0]
        for v in values:
            x = r.add(x, r.mul(x, v))
        return r.body(x)

    assert body(0.0) != body(-0.0)
    assert body(float("nan")) == body(np.float32("nan").item())
    assert body(0.1).instrs[0] == Instr("const", (), "f32", value32(0x3DCCCCCD))
    assert run_body(body(-0.0), [np.float32(1)]) == 1
    with pytest.raises(TypeError):
        B.add(np.float32(1).reshape(1), np.zeros(1, np.int32))
