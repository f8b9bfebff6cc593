"""What ops meant in the first op sets, which onnxruntime does not take: against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import d1c
from d1c.interp import evaluate

Build = Callable[..., onnx.ModelProto]
f32 = np.float32
X = np.random.default_rng(5).normal(size=(2, 3, 4, 5)).astype(f32)
C = np.random.default_rng(6).uniform(0.5, 2, 3).astype(f32)
E = np.random.default_rng(7).uniform(0.5, 2, (4, 3, 4, 5)).astype(f32)

CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, np.ndarray], np.ndarray]] = {
    "add_suffix": ("Add", 6, {"broadcast": 1}, {"b": X[0, 0]}, X + X[0, 0]),
    "mul_at": ("Mul", 1, {"broadcast": 1, "axis": 1}, {"b": C}, X * C[:, None, None]),
    "div_front": ("Div", 6, {"broadcast": 1, "axis": 0}, {"b": E[:2, :, 0, 0]}, X / E[:2, :, 0, 0, None, None]),
    "prelu": ("PRelu", 6, {}, {"b": C}, np.where(X < 0, X * C[:, None, None], X)),
    "cast": ("Cast", 1, {"to": "INT32"}, {}, X.astype(np.int32)),
    "tile": ("Tile", 1, {}, {"t": np.array([2]), "a": np.array([1])}, np.concatenate([X, X], 1)),
    "upsample": ("Upsample", 1, {"height_scale": 2.0, "width_scale": 3.0}, {}, X.repeat(2, 2).repeat(3, 3)),
    "reshape": ("Reshape", 1, {"shape": [0, -1]}, {}, X.reshape(2, -1)),
    "pad": ("Pad", 1, {"paddings": [0, 0, 1, 0, 0, 0, 0, 2], "value": 3.0}, {},
            np.pad(X, [(0, 0), (0, 0), (1, 0), (0, 2)], constant_values=3)),
    "concat": ("Concat", 1, {}, {"b": X}, np.concatenate([X, X], 1)),
    "clip": ("Clip", 1, {"max": 0.5}, {}, np.minimum(X, 0.5)),
    "batch_norm": ("BatchNormalization", 7, {"spatial": 0, "epsilon": 0.0},
                   dict(zip("sbmv", E, strict=True)), (X - E[2]) / np.sqrt(E[3]) * E[0] + E[1]),
    "softmax": ("Softmax", 1, {}, {}, np.exp(X) / np.exp(X).sum((1, 2, 3), keepdims=True)),
    "split": ("Split", 2, {"axis": 3, "split": [2, 3]}, {}, X[..., :2]),
    "selu": ("Selu", 1, {}, {}, 1.0507 * np.where(X > 0, X, 1.6732 * (np.exp(X) - 1))),
}  # fmt: skip


@pytest.mark.parametrize("static", [True, False], ids=["constants", "inputs"])
@pytest.mark.parametrize("name", CASES)
def test_old_form(model: Build, name: str, static: bool) -> None:
    op, opset, attributes, others, want = CASES[name]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, ["x", *others], outputs, **attributes)
    if static or name == "tile":
        module = d1c.import_onnx(model([node], {"x": X}, outputs, others, opset=opset))
        got = evaluate(module, {"x": X})["y"]
    else:
        got = evaluate(d1c.import_onnx(model([node], {"x": X, **others}, outputs, opset=opset)), {"x": X, **others})[
            "y"
        ]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    assert got.dtype == want.dtype
