"""Elementary functions of f64 against the host's libm, in ulp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from d1c.target import numerics
from d1c.target.numerics import NumpyBuilder

B = NumpyBuilder()
RNG = np.random.default_rng(0)
WIDE = np.concatenate([np.ldexp(RNG.normal(size=4000), RNG.integers(-60, 5, 4000)), RNG.uniform(-9, 9, 4000)])
POSITIVE = np.abs(np.concatenate([WIDE, np.ldexp(RNG.normal(size=4000), RNG.integers(-1060, 1000, 4000))]))


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.max(np.abs(got - want) / np.spacing(np.abs(want))))


@pytest.mark.parametrize(
    ("name", "reference", "x", "bound"),
    [
        ("exp", np.exp, np.concatenate([WIDE, RNG.uniform(-700, 709, 4000)]), 1.5),
        ("log", np.log, POSITIVE, 1.5),
        ("log", np.log, RNG.uniform(0.5, 2, 4000), 1.5),
        ("tanh", np.tanh, WIDE, 5),
        ("erf", np.vectorize(math.erf), np.concatenate([WIDE, RNG.uniform(0.8, 1.5, 2000)]), 4),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), RNG.uniform(-30, 30, 4000), 4),
        ("sin", np.sin, np.concatenate([WIDE, RNG.uniform(-1e6, 1e6, 4000), np.arange(1, 99) * math.pi]), 2),
        ("cos", np.cos, np.concatenate([WIDE, RNG.uniform(-1e6, 1e6, 4000), np.arange(1, 99) * math.pi / 2]), 2),
        ("log1p", np.log1p, WIDE[WIDE > -0.99], 5),
        ("expm1", np.expm1, WIDE, 4),
        ("atan", np.arctan, WIDE, 4),
    ],
)
def test_functions(name: str, reference: Callable[[np.ndarray], Any], x: np.ndarray, bound: float) -> None:
    assert ulps(getattr(numerics, name)(B, x), np.asarray(reference(x))) <= bound


def test_pow() -> None:
    x, y = np.abs(RNG.normal(size=20000)) * 3, RNG.normal(size=20000) * 4
    near = np.abs(y * np.log(x)) < 20
    got = numerics.pow(B, x, y)
    assert ulps(got[near], np.power(x, y)[near]) <= 2
    y = RNG.uniform(-700, 700, 20000) / np.log(x)
    assert ulps(numerics.pow(B, x, y), np.power(x, y)) <= 2
    base = -np.floor(np.abs(RNG.normal(size=2000)) * 9)
    power = RNG.integers(-9, 9, 2000).astype(np.float64)
    with np.errstate(all="ignore"):
        want = np.power(base, power)
    got = numerics.pow(B, base, power)
    assert np.array_equal(np.signbit(got), np.signbit(want))
    np.testing.assert_allclose(got, want, rtol=1e-15)


def test_special_values() -> None:
    special = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 3.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e308, -1e300])
    for name, f in (("exp", np.exp), ("log", np.log), ("tanh", np.tanh), ("expm1", np.expm1), ("log1p", np.log1p),
                    ("atan", np.arctan), ("sin", np.sin), ("cos", np.cos),
                    ("erf", np.vectorize(math.erf))):  # fmt: skip
        x = special if name not in ("sin", "cos") else special[:12]
        with np.errstate(all="ignore"):
            want = f(x)
        np.testing.assert_allclose(getattr(numerics, name)(B, x), want, rtol=1e-15, atol=0, err_msg=name)
    x, y = (v.reshape(-1) for v in np.meshgrid(special, special))
    with np.errstate(all="ignore"):
        want = np.power(x, y)
    np.testing.assert_allclose(numerics.pow(B, x, y), want, rtol=1e-13)
