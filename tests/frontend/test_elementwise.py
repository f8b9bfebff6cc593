"""Functions that decompose at import, against numpy in double precision, special values included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, math.inf, -math.inf, math.nan, 30.0, -30.0, 88.9, -88.9, 1e20]
DENSE = np.concatenate([np.linspace(-6, 6, 4001), np.geomspace(1e-30, 1e30, 500), -np.geomspace(1e-30, 1e30, 500)])
X = np.concatenate([SPECIAL, DENSE]).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "reference"),
    [
        ("Asin", np.arcsin), ("Acos", np.arccos), ("Atan", np.arctan), ("Sinh", np.sinh), ("Cosh", np.cosh),
        ("Asinh", np.arcsinh), ("Acosh", np.arccosh), ("Atanh", np.arctanh), ("Sign", np.sign),
    ],
)  # fmt: skip
def test_within_a_few_ulp_of_double_precision(model, op, reference):
    module = import_onnx(model([helper.make_node(op, ["x"], ["y"])], {"x": X}, ["y"], opset=22))
    with np.errstate(all="ignore"):
        want = reference(X.astype(np.float64)).astype(np.float32)
    got = evaluate(module, {"x": X})["y"]
    normal = np.isfinite(want) & (np.abs(want) >= 2.0**-126)
    np.testing.assert_array_equal(got[~np.isfinite(want)], want[~np.isfinite(want)])
    error = np.abs(got[normal].astype(np.float64) - want[normal])
    assert (error <= 8 * np.spacing(np.abs(want[normal]))).all()


def test_tangent(model):
    module = import_onnx(model([helper.make_node("Tan", ["x"], ["y"])], {"x": X}, ["y"], opset=22))
    x = np.linspace(-1.5, 1.5, X.size).astype(np.float32)
    np.testing.assert_allclose(evaluate(module, {"x": x})["y"], np.tan(x.astype(np.float64)), rtol=2e-6)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_is_inf_looks_for_the_signs_that_it_is_asked_for(model, up, down):
    node = helper.make_node("IsInf", ["x"], ["y"], detect_positive=up, detect_negative=down)
    got = evaluate(import_onnx(model([node], {"x": X}, ["y"], opset=20)), {"x": X})["y"]
    np.testing.assert_array_equal(got, (bool(up) & (X == math.inf)) | (bool(down) & (X == -math.inf)))


def test_is_nan(model):
    got = evaluate(import_onnx(model([helper.make_node("IsNaN", ["x"], ["y"])], {"x": X}, ["y"], opset=20)), {"x": X})
    np.testing.assert_array_equal(got["y"], np.isnan(X))
