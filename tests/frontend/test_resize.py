"""Resize and Upsample against onnxruntime and ONNX's reference: every mode and transformation, odd extents."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from d1c.errors import D1Error
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

from .conftest import run_ort

MODES = ("nearest", "linear", "cubic")
TRANSFORMS = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize_model(x: np.ndarray, opset: int, op: str = "Resize", *, roi: Any = None, scales: Any = None,
                 sizes: Any = None, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    tensors = {
        "roi": np.asarray([] if roi is None else roi, np.float32),
        "scales": np.asarray([] if scales is None else scales, np.float32),
    }
    if opset < 11 or op == "Upsample":
        del tensors["roi"]
    if sizes is not None:
        tensors["sizes"] = np.asarray(sizes, np.int64)
    names = ["x", *(n if a.size else "" for n, a in tensors.items())]
    while not names[-1]:
        names.pop()
    node = helper.make_node(op, names, ["y"], name="r", **attributes)
    info = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    constants = [numpy_helper.from_array(a, n) for n, a in tensors.items() if a.size]
    graph = helper.make_graph([node], "g", [info], [onnx.ValueInfoProto(name="y")], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ours(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return evaluate(import_onnx(model, {"x": x.shape}), {"x": x})["y"]


def by_reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    outputs: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(outputs[0])


def by_ort(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run_ort(model, {"x": x})[0]


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=0, atol=8e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(10, 14), (5, 4), (13, 9), (1, 3), (2, 1)])
def test_sizes(mode: str, transform: str, sizes: tuple[int, int]) -> None:
    x = image(2, 3, 5, 7)
    model = resize_model(x, 19, sizes=(2, 3, *sizes), mode=mode, coordinate_transformation_mode=transform)
    if transform == "pytorch_half_pixel" and 1 in sizes:  # ONNX's text says position 0, its reference -0.5
        same(ours(model, x), by_ort(model, x))
    else:
        same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scales", [(2, 3), (0.5, 0.6), (1.5, 1), (3.3, 0.3)])
def test_scales(mode: str, transform: str, scales: tuple[float, float]) -> None:
    x = image(1, 2, 6, 10)
    model = resize_model(x, 19, scales=(1, 1, *scales), mode=mode, coordinate_transformation_mode=transform)
    same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nearest_modes(transform: str, rounding: str) -> None:
    x = image(1, 1, 6, 9)
    model = resize_model(
        x, 19, sizes=(1, 1, 9, 4), mode="nearest", coordinate_transformation_mode=transform, nearest_mode=rounding
    )
    same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(3, 5), (4, 3), (11, 9), (1, 2)])
@pytest.mark.parametrize("exclude", [0, 1])
def test_antialias(mode: str, sizes: tuple[int, int], exclude: int) -> None:
    x = image(1, 2, 9, 10)
    model = resize_model(x, 18, sizes=(1, 2, *sizes), mode=mode, antialias=1, exclude_outside=exclude)
    same(ours(model, x), by_reference(model, x))


def test_cubic_coefficient_and_outside() -> None:
    x = image(1, 1, 5, 6)
    model = resize_model(x, 13, scales=(1, 1, 1.6, 0.8), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
    same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_crop(mode: str) -> None:
    x = image(1, 1, 6, 7)
    model = resize_model(
        x, 13, roi=(0, 0, 0.3, -0.2, 1, 1, 0.8, 1.1), sizes=(1, 1, 4, 5), mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.5,
    )  # fmt: skip
    got = ours(model, x)
    assert (got == 7.5).any()
    same(got, by_reference(model, x))


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_aspect_ratio_of_some_axes(policy: str) -> None:
    x = image(2, 6, 8, 3)
    model = resize_model(x, 18, sizes=(9, 7), axes=[2, 1], mode="linear", keep_aspect_ratio_policy=policy)
    same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 0.6, 0.6), (1, 1, 1.5, 2.5)])
def test_opset_10(mode: str, scales: tuple[float, ...]) -> None:
    x = image(1, 2, 4, 6)
    model = resize_model(x, 10, scales=scales, mode=mode)
    same(ours(model, x), by_ort(model, x))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    x = image(1, 2, 4, 6)
    model = resize_model(x, 9, "Upsample", scales=(1, 1, 2, 1.5), mode=mode)
    same(ours(model, x), by_ort(model, x))
    node = helper.make_node("Upsample", ["x"], ["y"], mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
    info = helper.make_tensor_value_info("x", 1, x.shape)
    graph = helper.make_graph([node], "g", [info], [onnx.ValueInfoProto(name="y")])
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=8)
    same(ours(old, x), by_ort(resize_model(x, 9, "Upsample", scales=(1, 1, 2, 3), mode=mode), x))


def test_other_ranks() -> None:
    for shape, sizes in (((5,), (8,)), ((3, 4), (6, 2)), ((1, 2, 7), (1, 2, 3)), ((1, 2, 3, 4, 5), (1, 2, 6, 3, 8))):
        x = image(*shape)
        model = resize_model(x, 13, sizes=sizes, mode="linear")
        same(ours(model, x), by_reference(model, x))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.float16, np.float64])
def test_types(kind: Any) -> None:
    x = (np.random.default_rng(0).integers(0, 120, (1, 1, 5, 6))).astype(kind)
    for mode in MODES:
        model = resize_model(x, 13, sizes=(1, 1, 8, 9), mode=mode)
        got, wanted = ours(model, x), by_reference(model, x)
        assert got.dtype == wanted.dtype
        # One unit in the last place of the type: the reference computes in float64.
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=1e-3, atol=1)


def test_integer_scales_are_one_convolution() -> None:
    x = image(1, 8, 6, 6)
    for scales in ((1, 1, 2, 2), (1, 1, 0.5, 3)):
        module = import_onnx(resize_model(x, 13, scales=scales, mode="linear"), {"x": x.shape})
        names = [op.name for op in module.function().block.ops]
        assert names.count("graph.conv") == 1 and "graph.matmul" not in names


@pytest.mark.parametrize("scales", [(2, 2), (4, 1), (3, 0.5), (0.5, 0.25), (1.5, 2), (8, 8), (5, 4)])
@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_scales_of_images(mode: str, transform: str, scales: tuple[float, float]) -> None:
    x = image(2, 5, 8, 4)
    model = resize_model(x, 13, scales=(1, 1, *scales), mode=mode, coordinate_transformation_mode=transform)
    same(ours(model, x), by_reference(model, x))
    volume = image(1, 3, 4, 4, 6)
    model = resize_model(volume, 13, scales=(1, 1, *scales, 2), mode=mode, coordinate_transformation_mode=transform)
    same(ours(model, volume), by_reference(model, volume))


def test_refusals() -> None:
    x = image(1, 1, 4, 4)
    for attributes in ({"mode": "quintic"}, {"coordinate_transformation_mode": "sideways"}):
        with pytest.raises(D1Error, match="Resize"):
            ours(resize_model(x, 13, sizes=(1, 1, 3, 3), **attributes), x)
