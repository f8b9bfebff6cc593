"""Nodes whose operands are all constant: evaluated at import, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

from .conftest import run_ort

Build = Callable[..., onnx.ModelProto]

I32 = np.array([[3, 1, 3], [0, 1, 0], [3, 1, 3]], np.int32)
CASES: dict[str, tuple[str, dict[str, Any], np.ndarray, int]] = {
    "sum of squares keeps i32": ("ReduceSumSquare", {"axes": [0]}, I32, 1),
    "sum keeps i32": ("ReduceSum", {"keepdims": 0}, I32, 1),
    "unique, in order": ("Unique", {}, I32.astype(np.float32), 4),
    "unique, as met": ("Unique", {"sorted": 0}, I32.astype(np.int64), 4),
    "unique rows, as met": ("Unique", {"sorted": 0, "axis": 0}, I32.astype(np.int64), 4),
    "unique columns": ("Unique", {"axis": -1}, I32.astype(np.float32), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_constants_as_onnxruntime_has_them(name: str, model: Build) -> None:
    op, attributes, x, count = CASES[name]
    node = helper.make_node(op, ["x"], outputs := [f"y{i}" for i in range(count)], **attributes)
    module = import_onnx(model([node], {}, outputs, {"x": x}, 11))
    assert module.attrs["folded"] == 1
    wants = run_ort(model([node], {"x": x}, outputs, {}, 11), {"x": x})
    for got, want in zip(evaluate(module, {}).values(), wants, strict=True):
        assert got.dtype == want.dtype and np.array_equal(got, want)


def test_identity_of_a_constant_is_that_constant(model: Build) -> None:
    """Weights that layers share stand behind Identity in some exporters' files."""
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    module = import_onnx(model(nodes, {"x": (2, 4)}, ["y"], {"w": np.eye(4, dtype=np.float32)}))
    assert list(module.constants) == ["w"] and module.attrs["folded"] == 1
