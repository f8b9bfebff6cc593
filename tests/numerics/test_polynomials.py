"""Elementary functions against float64: measured ulp bounds over their whole ranges, and special values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d1c.target import numerics, polynomials
from d1c.target.numerics import NumpyBuilder, Recorder, run_body

B = NumpyBuilder()
N = 100_000
_erf = np.vectorize(math.erf, otypes=[np.float64])


def uniform(lo: float, hi: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(lo, hi, N).astype(np.float32)


def spread(lo: float, hi: float) -> np.ndarray:
    """Both signs, magnitudes uniform in their logarithm."""
    rng = np.random.default_rng(1)
    return (np.exp(rng.uniform(lo, hi, N)) * rng.choice([-1.0, 1.0], N)).astype(np.float32)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error in ulp of the f32 result, over normal results."""
    normal = (np.abs(want) >= 2.0**-126) & (np.abs(want) < 3.4028234e38)
    with np.errstate(all="ignore"):
        ulp = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
        return float((np.abs(got.astype(np.float64) - want) / ulp)[normal].max())


def sigmoid64(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("name", "reference", "x", "bound"),
    [
        ("exp", np.exp, uniform(-87.3365, 88.7228), 1.25),
        ("log", np.log, np.abs(spread(-87, 88)), 0.9),
        ("log", np.log, uniform(0.5, 2), 0.9),
        ("tanh", np.tanh, uniform(-12, 12), 5),
        ("tanh", np.tanh, spread(-86, 2), 5),
        ("erf", _erf, uniform(-5, 5), 6),
        ("erf", _erf, spread(-86, 2), 6),
        ("sigmoid", sigmoid64, uniform(-87, 30), 3.2),
        ("atan", np.arctan, uniform(-9, 9), 3),
        ("atan", np.arctan, spread(-86, 86), 3),
        ("log1p", np.log1p, np.abs(spread(-86, 86)), 3),
        ("log1p", np.log1p, -np.exp(uniform(-86, -0.001)), 3),
        ("expm1", np.expm1, uniform(-20, 88.7), 4),
        ("expm1", np.expm1, spread(-86, 4), 4),
    ],
)
def test_accuracy(name, reference, x, bound):
    assert error(getattr(numerics, name)(B, x), reference(x.astype(np.float64))) < bound


@pytest.mark.parametrize(("name", "reference"), [("sin", np.sin), ("cos", np.cos)])
def test_sine_and_cosine_have_a_small_absolute_error(name, reference):
    for x in (uniform(-10, 10), uniform(-65536, 65536), spread(-80, 5)):
        assert np.abs(getattr(numerics, name)(B, x) - reference(x.astype(np.float64))).max() < 2e-7
    huge = getattr(numerics, name)(B, spread(12, 88))
    assert np.isfinite(huge).all() and np.abs(huge).max() <= 1


def test_power():
    x = np.abs(spread(-80, 80))
    y = (uniform(-80, 80, 2) / np.log(x.astype(np.float64))).astype(np.float32)
    assert error(numerics.pow(B, x, y), np.power(x.astype(np.float64), y.astype(np.float64))) < 9
    x, y = uniform(0.1, 10), uniform(-10, 10, 3)
    assert error(numerics.pow(B, x, y), np.power(x.astype(np.float64), y.astype(np.float64))) < 2
    for n in (2.0, 3.0, 0.5, -1.0):
        assert error(numerics.pow(B, x, np.full_like(x, n)), np.power(x.astype(np.float64), n)) < 2


def test_power_has_the_special_cases_of_ieee_754():
    s = [0.0, -0.0, 1, -1, math.inf, -math.inf, math.nan, 2, -2, 3, -3, 0.5, -0.5, 1e30, -1e30, 1e-30, 1e8, 3e38, 1e-40]
    x, y = (a.ravel() for a in np.meshgrid(np.array(s, np.float32), np.array(s, np.float32)))
    # Inputs are read with subnormals as zeros, results flushed.
    p, q = (np.where(np.abs(v) < 2.0**-126, np.copysign(0, v), v).astype(np.float64) for v in (x, y))
    with np.errstate(all="ignore"):
        want = np.power(p, q).astype(np.float32)
    want = np.where(np.abs(want) < 2.0**-126, np.copysign(np.float32(0), want), want)
    got = numerics.pow(B, x, y)
    same = (np.signbit(got) == np.signbit(want)) & ((got == want) | np.isclose(got, want, rtol=1e-6, atol=0))
    assert (same | (np.isnan(got) & np.isnan(want))).all(), [
        (x[i], y[i], got[i], want[i]) for i in np.flatnonzero(~same)
    ]


def test_special_values():
    inf, nan = math.inf, math.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 1e-40, -1e-40, 88.73, -87.34, 3e38, -3e38], np.float32)
    want = {
        "exp": [1, 1, inf, 0, nan, 1, 1, inf, 0, inf, 0],
        "log": [-inf, -inf, inf, nan, nan, -inf, -inf, math.log(88.73), nan, math.log(3e38), nan],
        "tanh": [0.0, -0.0, 1, -1, nan, 0.0, -0.0, 1, -1, 1, -1],
        "erf": [0.0, -0.0, 1, -1, nan, 0.0, -0.0, 1, -1, 1, -1],
        "sigmoid": [0.5, 0.5, 1, 0, nan, 0.5, 0.5, 1, 0, 1, 0],
    }
    for name, values in want.items():
        got = getattr(numerics, name)(B, x)
        w = np.array(values, np.float32)
        assert np.allclose(got, w, rtol=2e-3, atol=0, equal_nan=True), (name, got, w)
        signed = ~np.isnan(w)
        assert (np.signbit(got) == np.signbit(w))[signed].all(), name


def test_every_exponent_and_a_grid_of_mantissas_stays_in_range():
    bits = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x1234)
    x = bits.view(np.float32)
    x = x[~np.isnan(x)]
    assert (numerics.exp(B, x) >= 0).all()
    for name in ("tanh", "erf"):
        y = getattr(numerics, name)(B, x)
        assert (np.abs(y) <= 1).all() and (np.signbit(y) == np.signbit(x)).all()
    y = numerics.sigmoid(B, x)
    assert ((y >= 0) & (y <= 1)).all()
    # No result is a subnormal.
    for name in ("exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"):
        y = np.abs(getattr(numerics, name)(B, x))
        assert not ((y > 0) & (y < 2.0**-126)).any(), name


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"])
def test_recorded_bodies_are_the_same_function(name):
    r = Recorder("f32")
    body = r.body(getattr(numerics, name)(r, r.inputs[0]))
    x = spread(-90, 88)[:2000]
    got, want = run_body(body, [x]), getattr(numerics, name)(B, x)
    assert np.array_equal(got, want, equal_nan=True)
    assert len(body.instrs) < 60


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        ("atan", [0.0, -0.0, math.inf, -math.inf, math.nan], [0.0, -0.0, math.pi / 2, -math.pi / 2, math.nan]),
        ("log1p", [0.0, -1.0, math.inf, -2.0, math.nan], [0.0, -math.inf, math.inf, math.nan, math.nan]),
        ("expm1", [0.0, -math.inf, math.inf, -200.0, math.nan], [0.0, -1.0, math.inf, -1.0, math.nan]),
    ],
)
def test_special_values_of_the_newer_functions(name, x, want):
    got = getattr(numerics, name)(B, np.array(x, np.float32))
    np.testing.assert_array_equal(got, np.array(want, np.float32))
    assert np.array_equal(np.signbit(got)[:2], np.signbit(np.array(want, np.float32))[:2])


def test_exp_falling_has_the_bits_of_exp() -> None:
    """All f32 up to 0 at random, around the least with a normal result, and those that are special."""
    rng = np.random.default_rng(0)
    near = np.arange(-87.34, -87.33, 7.6e-6, dtype=np.float32)
    x = rng.integers(1 << 31, 1 << 32, 400_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, -np.inf, np.nan, -1e-45, -1e-38, -3.4028235e38], np.float32)
    for some in (x, near, special, uniform(-90, 0)):
        got, want = polynomials.exp_falling(B, some), numerics.exp(B, some)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(got[~np.isnan(got)].view(np.uint32), want[~np.isnan(want)].view(np.uint32))
