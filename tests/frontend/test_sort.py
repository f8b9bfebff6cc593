"""TopK, Unique and NonMaxSuppression against onnxruntime and numpy: ties, NaN, long rows, empty results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import d1c
from d1c.frontend.importer import import_onnx

Build = Callable[..., onnx.ModelProto]
Compare = Callable[..., list[np.ndarray]]
RNG = np.random.default_rng(5)


def few(*shape: int, kind: Any = np.float32) -> np.ndarray:
    """Data with many ties."""
    return RNG.integers(0, 6, shape).astype(kind)


def top_k(model: Build, x: np.ndarray, k: int, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("TopK", ["x", "k"], ["values", "indices"], **attributes)
    return model([node], {"x": x}, ["values", "indices"], {"k": np.array([k])}, 11)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(
    ("x", "k", "axis"),
    [
        (few(3, 20), 5, -1),
        (few(3, 20), 20, 1),
        (few(7, 4, 2), 3, 0),
        (few(2, 30, kind=np.int64) - 3, 4, 1),
        (few(2, 30, kind=np.int32), 1, 1),
        (RNG.standard_normal((2, 700)).astype(np.float32), 6, 1),
        (few(700), 40, 0),
        (np.array([[np.inf, -np.inf, 0.0, -0.0, np.inf]], np.float32), 5, 1),
    ],
    ids=["ties", "sort", "axis", "i64", "i32", "long", "long_ties", "infinite"],
)
def test_top_k(x: np.ndarray, k: int, axis: int, largest: int, model: Build, against_ort: Compare) -> None:
    against_ort(top_k(model, x, k, axis=axis, largest=largest), {"x": x})


def test_nan_is_the_largest(model: Build, against_ort: Compare) -> None:
    x = np.array([[1, np.nan, 3, -np.inf, np.nan, np.inf]], np.float32)
    down, up = np.array([[1, 4, 5, 2, 0, 3]]), np.array([[3, 0, 2, 5, 1, 4]])
    for largest, order in ((1, down), (0, up)):
        proto = top_k(model, x, 6, axis=1, largest=largest)
        against_ort(proto, {"x": x}, want=[np.take_along_axis(x, order, 1), order])


def test_top_k_of_opset_1_has_k_as_an_attribute(model: Build, against_ort: Compare) -> None:
    x = few(3, 8)
    node = helper.make_node("TopK", ["x"], ["v", "i"], k=2, axis=1)
    against_ort(model([node], {"x": x}, ["v", "i"], {}, 9), {"x": x})


@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize("op", ["TopK", "Unique"])
def test_comparisons_are_not_stored(op: str, kind: Any, model: Build) -> None:
    """Ranking n elements compares n * n pairs inside a reduction: no value of that size is between two groups."""
    x = few(90, kind=kind)
    proto = top_k(model, x, 30, axis=0) if op == "TopK" else unique(model, x)
    program = d1c.compile(proto, target="test", precision="f32", stop_after="pack-operands")
    sizes = [r.type.size for op in program.module("graph").function().block.ops for r in op.results]  # type: ignore[union-attr]
    assert max(sizes) <= 90


def unique(model: Build, x: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    names = ["y", "first", "inverse", "counts"]
    return model([helper.make_node("Unique", ["x"], names, **attributes)], {"x": x}, names, {}, 11)


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (few(13), None),
        (few(3, 4, kind=np.int64) - 2, None),
        (few(6, 2) // 3, 0),
        (few(2, 9, 2) // 4, 1),
        (np.full((5,), 2.5, np.float32), None),
        (np.arange(7, dtype=np.int64)[::-1].copy(), None),
        (few(1), None),
    ],
    ids=["flat", "matrix", "rows", "columns", "one", "all", "single"],
)
def test_unique(x: np.ndarray, axis: int | None, in_order: int, model: Build, against_ort: Compare) -> None:
    attributes = {} if axis is None else {"axis": axis}
    against_ort(unique(model, x, sorted=in_order, **attributes), {"x": x})


def test_unique_on_the_machine(model: Build, against_ort: Compare) -> None:
    x = few(3, 7)
    against_ort(unique(model, x), {"x": x}, emulate=True)


def nms(model: Build, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], **attributes: Any) -> Any:
    names = [n if n in feeds or n in constants else "" for n in ("boxes", "scores", "most", "iou", "score")]
    node = helper.make_node("NonMaxSuppression", names, ["y"], **attributes)
    return model([node], feeds, ["y"], constants, 11)


def scene(batch: int, classes: int, n: int, center: bool = False) -> dict[str, np.ndarray]:
    """Boxes that overlap, some turned around, and scores with ties."""
    corner = RNG.uniform(0, 4, (batch, n, 2))
    size = RNG.uniform(0.5, 2, (batch, n, 2))
    boxes = np.concatenate([corner, size if center else corner + size], 2).astype(np.float32)
    if not center:
        boxes[:, ::3] = boxes[:, ::3][..., [2, 3, 0, 1]]
    scores = (RNG.integers(0, 9, (batch, classes, n)) / 8).astype(np.float32)
    return {"boxes": boxes, "scores": scores}


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("most", [1, 4, 50])
def test_non_max_suppression(center: int, most: int, model: Build, against_ort: Compare) -> None:
    feeds = scene(2, 3, 12, bool(center))
    constants = {"most": np.array([most]), "iou": np.array([0.2], np.float32), "score": np.array([0.3], np.float32)}
    against_ort(nms(model, feeds, constants, center_point_box=center), feeds)


def test_run_time_limits(model: Build, against_ort: Compare) -> None:
    feeds = scene(1, 2, 8)
    for most, least in ((3, 0.1), (0, 0.1), (20, 2.0)):
        limits = {"most": np.array(most), "iou": np.array(0.5, np.float32), "score": np.array(least, np.float32)}
        against_ort(nms(model, feeds | limits, {}), feeds | limits)


def test_thresholds_may_be_left_out(model: Build, against_ort: Compare) -> None:
    feeds = scene(1, 1, 6)
    against_ort(nms(model, feeds, {"most": np.array([5])}), feeds)
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["y"])
    proto = model([node], feeds, ["y"], {}, 11)
    (y,) = d1c.compile(proto, target="test", precision="f32").run(feeds).values()
    assert y.shape == (0, 3)


def test_suppression_on_the_machine(model: Build, against_ort: Compare) -> None:
    feeds = scene(1, 2, 7)
    constants = {"most": np.array([5]), "iou": np.array([0.3], np.float32)}
    against_ort(nms(model, feeds, constants), feeds, emulate=True)


def test_many_rounds_are_a_loop(model: Build, against_ort: Compare) -> None:
    """It ends when no box is left."""
    feeds = scene(1, 2, 300)
    constants = {"most": np.array([200]), "iou": np.array([0.05], np.float32)}
    proto = nms(model, feeds, constants)
    (y,) = against_ort(proto, feeds)
    assert len(y) < 100
    assert [f.name for f in import_onnx(proto).functions][1:]


@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_rounding_of_stored_values_hides_no_maximum(precision: str, model: Build) -> None:
    """What is compared with the maximum is the value that the maximum was taken of, not one rounded in between."""
    x = RNG.uniform(-1, 1, (3, 40)).astype(np.float32)
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]), helper.make_node("ArgMax", ["e"], ["most"], axis=1),
        helper.make_node("ArgMin", ["e"], ["least"], axis=1), helper.make_node("Hardmax", ["e"], ["hard"]),
    ]  # fmt: skip
    program = d1c.compile(model(nodes, {"x": x}, ["most", "least", "hard"], {}, 13), target="test", precision=precision)
    results = program.run({"x": x}, engine="numpy")
    for name, f in (("most", np.max), ("least", np.min)):
        at = results[name]
        assert (at >= 0).all() and (at < 40).all()
        np.testing.assert_allclose(np.take_along_axis(x, at, 1), f(x, 1, keepdims=True), atol=0.02)
    assert results["hard"].astype(np.float32).sum(1).tolist() == [1, 1, 1]
