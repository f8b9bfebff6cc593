"""Forms that ops had in op sets 7 to 18, against onnxruntime: real files are full of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from .conftest import build, compare, run_ort

f32 = np.float32
TOLERANCE = 3e-6
X = np.random.default_rng(5).normal(size=(2, 3, 4, 5)).astype(f32)
M = X[0, 0]
C = [np.random.default_rng(i).uniform(0.5, 2, 3).astype(f32) for i in range(4)]
BN = dict(zip("sbmv", C, strict=True))

GRID = np.random.default_rng(8).uniform(-1.2, 1.2, (2, 3, 2, 2)).astype(f32)
ROIS = {"r": np.array([[0, 0.5, 3, 3], [1, 0, 4, 2.5]], f32), "b": np.array([1, 0])}
W = np.random.default_rng(9).normal(size=(3, 3, 3, 3)).astype(f32)

# name: op, opset, attributes, constants (its operands behind x), x
CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, np.ndarray], np.ndarray]] = {
    "softmax 11 flattens": ("Softmax", 11, {}, {}, X),
    "softmax 11, axis": ("Softmax", 11, {"axis": 2}, {}, X),
    "softmax 8, last axis": ("Softmax", 8, {"axis": -1}, {}, X),
    "log softmax 7": ("LogSoftmax", 7, {"axis": 1}, {}, X),
    "hardmax 11 flattens": ("Hardmax", 11, {"axis": 2}, {}, X),
    "batch norm 9": ("BatchNormalization", 9, {"epsilon": 1e-3, "momentum": 0.5}, BN, X),
    "batch norm 7": ("BatchNormalization", 7, {"spatial": 1}, BN, X),
    "upsample 9": ("Upsample", 9, {}, {"s": np.array([1, 1, 2, 3], f32)}, X),
    "upsample 9, linear": ("Upsample", 9, {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], f32)}, X),
    "upsample 7": ("Upsample", 7, {"scales": [1.0, 1.0, 1.5, 2.0]}, {}, X),
    "resize 10": ("Resize", 10, {}, {"s": np.array([1, 1, 0.5, 2.5], f32)}, X),
    "resize 10, linear": ("Resize", 10, {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], f32)}, X),
    "dropout 7": ("Dropout", 7, {"ratio": 0.3}, {}, X),
    "dropout 10": ("Dropout", 10, {"ratio": 0.3}, {}, X),
    "clip 6": ("Clip", 7, {"min": -0.5, "max": 0.25}, {}, X),
    "clip 6, one side": ("Clip", 10, {"min": -0.5}, {}, X),
    "slice 1": ("Slice", 9, {"starts": [1, -3], "ends": [99, -1], "axes": [2, 3]}, {}, X),
    "slice 1, first axes": ("Slice", 7, {"starts": [0, 1], "ends": [1, -1]}, {}, X),
    "slice 10": ("Slice", 10, {}, {k: np.array([n]) for k, n in zip("abcd", (4, -99, 3, -2), strict=True)}, X),
    "pad 2": ("Pad", 7, {"pads": [0, 1, 0, 2, 0, 0, 3, -1], "value": 2.5}, {}, X),
    "pad 2, reflect": ("Pad", 10, {"pads": [0, 0, 2, 1, 0, 0, 1, 3], "mode": "reflect"}, {}, X),
    "pad 2, edge": ("Pad", 10, {"pads": [0, 0, 2, 1, 0, 0, 1, 3], "mode": "edge"}, {}, X),
    "gemm 7": ("Gemm", 7, {"alpha": 0.5, "beta": 2.0, "transB": 1}, {"b": M[:3], "c": C[0]}, M),
    "squeeze 1": ("Squeeze", 11, {"axes": [0, -2]}, {}, X[:1, :, :1]),
    "squeeze 1, all": ("Squeeze", 7, {}, {}, X[:1, :, :1]),
    "unsqueeze 1": ("Unsqueeze", 7, {"axes": [0, 3]}, {}, X),
    "unsqueeze 11": ("Unsqueeze", 11, {"axes": [-1, 0]}, {}, X),
    "reduce sum 11": ("ReduceSum", 11, {"axes": [1, -1], "keepdims": 0}, {}, X),
    "reduce mean 7": ("ReduceMean", 7, {}, {}, X),
    "arg max 7": ("ArgMax", 7, {"axis": 2, "keepdims": 0}, {}, np.round(X)),
    "average pool 7": ("AveragePool", 7, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, {}, X),
    "average pool 10, ceil": ("AveragePool", 10, {"kernel_shape": [2, 2], "strides": [3, 2], "ceil_mode": 1}, {}, X),
    "max pool 8, same": ("MaxPool", 8, {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER"}, {}, X),
    "average pool 7, same": ("AveragePool", 7, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, {}, X),
    "lp pool 2": ("LpPool", 7, {"kernel_shape": [2, 2], "p": 2}, {}, X),
    "flatten 9": ("Flatten", 9, {"axis": 2}, {}, X),
    "depth to space 1": ("DepthToSpace", 7, {"blocksize": 2}, {}, np.concatenate([X, X, X, X], 1)),
    "depth to space 11, CRD": ("DepthToSpace", 11, {"blocksize": 2, "mode": "CRD"}, {}, np.concatenate([X] * 4, 1)),
    "scatter 9": ("Scatter", 9, {"axis": 1}, {"i": np.array([[0, 3]] * 4), "u": M[:, :2].copy()}, M),
    "gather 1": ("Gather", 7, {"axis": 3}, {"i": np.array([[0, 4], [2, 1]])}, X),
    "one hot 9": ("OneHot", 9, {}, {"d": np.array([4]), "v": np.array([2, 7], f32)}, np.array([[0, 3], [9, 1]])),
    "equal 7": ("Equal", 7, {}, {"b": np.array([1, 2, 3])}, np.array([[1, 5, 3], [0, 2, 3]])),
    "cumsum 11": ("CumSum", 11, {"reverse": 1, "exclusive": 1}, {"a": np.array(2, np.int32)}, X),
    "mod 10": ("Mod", 10, {"fmod": 1}, {"b": C[0][:1]}, X),
    "prelu 7": ("PRelu", 7, {}, {"b": C[0][:, None, None]}, X),
    "sum 8": ("Sum", 8, {}, {"b": M, "c": C[0][:, None, None]}, X),
    "mean 8": ("Mean", 8, {}, {"b": M}, X),
    "expand 8": ("Expand", 8, {}, {"s": np.array([2, 1, 1, 1, 5])}, X),
    "tile 6": ("Tile", 7, {}, {"s": np.array([1, 2, 1, 3])}, X),
    "lrn 1": ("LRN", 7, {"size": 3, "alpha": 0.1, "bias": 2.0}, {}, X),
    "instance norm 6": ("InstanceNormalization", 7, {}, {"s": C[0], "b": C[1]}, X),
    "mean variance 9": ("MeanVarianceNormalization", 9, {}, {}, X),
    "lp norm 1": ("LpNormalization", 7, {"axis": 1, "p": 1}, {}, X),
    "pad 11": ("Pad", 11, {"mode": "reflect"}, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, X),
    "clip 11": ("Clip", 11, {}, {"a": np.array(-0.5, f32), "b": np.array(0.25, f32)}, X),
    "split 18": ("Split", 18, {"axis": 3, "num_outputs": 2}, {}, X),
    "reduce max 13": ("ReduceMax", 13, {"axes": [2], "keepdims": 0}, {}, X),
    "log sum exp 11": ("ReduceLogSumExp", 11, {"axes": [-1]}, {}, X),
    "softmax 13": ("Softmax", 13, {}, {}, X),
    "hardmax 13": ("Hardmax", 13, {}, {}, X),
    "batch norm 14": ("BatchNormalization", 14, {}, BN, X),
    "roi align 10": ("RoiAlign", 10, {"output_height": 2, "output_width": 3}, ROIS, X),
    "roi align 16": ("RoiAlign", 16, {"output_height": 2, "output_width": 3}, ROIS, X),
    "roi align 16, old": (
        "RoiAlign", 16, {"mode": "max", "coordinate_transformation_mode": "output_half_pixel", "sampling_ratio": 2},
        ROIS, X,
    ),
    "grid sample 16": ("GridSample", 16, {"mode": "bilinear", "align_corners": 1}, {"g": GRID}, X),
    "grid sample 16, cubic": ("GridSample", 16, {"mode": "bicubic", "padding_mode": "border"}, {"g": GRID}, X),
    "dft 17": ("DFT", 17, {"axis": 2}, {}, X[..., :1].copy()),
    "resize 11": ("Resize", 11, {"mode": "cubic"}, {"r": np.zeros(0, f32), "s": np.array([1, 1, 2, 1.5], f32)}, X),
    "resize 11, crop": (
        "Resize", 11, {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        {"r": np.array([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2], f32), "s": np.array([1, 1, 2, 3], f32)}, X,
    ),
    "resize 11, tf": (
        "Resize", 11, {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
        {"r": np.zeros(0, f32), "s": np.array([1, 1, 0.6, 1.7], f32)}, X,
    ),
    "resize 13": (
        "Resize", 13, {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"r": np.zeros(0, f32), "s": np.zeros(0, f32), "n": np.array([2, 3, 7, 3])}, X,
    ),
    "average pool 11, ceil": (
        "AveragePool", 11, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1,
                            "pads": [1, 1, 0, 0]}, {}, X,
    ),
    "max pool 11, ceil": ("MaxPool", 11, {"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1}, {}, X),
    "scatter elements 11": (
        "ScatterElements", 11, {"axis": 1}, {"i": np.array([[0, -1]] * 4), "u": M[:, :2].copy()}, M,
    ),
    "quantize 10": ("QuantizeLinear", 10, {}, {"s": np.array(0.1, f32), "z": np.array(120, np.uint8)}, X),
    "quantize 13": ("QuantizeLinear", 13, {}, {"s": C[0], "z": np.array([1, -2, 3], np.int8)}, X),
    "dequantize 10": (
        "DequantizeLinear", 10, {}, {"s": np.array(0.1, f32), "z": np.array(120, np.uint8)},
        np.arange(256, dtype=np.uint8),
    ),
    "conv 1": ("Conv", 7, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"w": W}, X),
    "conv transpose 1": (
        "ConvTranspose", 7, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"w": W.transpose(1, 0, 2, 3).copy()}, X,
    ),
    "conv transpose 1, shape": (
        "ConvTranspose", 7, {"output_shape": [9, 11], "strides": [2, 2]}, {"w": W.transpose(1, 0, 2, 3).copy()}, X,
    ),
    "global lp pool 2": ("GlobalLpPool", 7, {"p": 1}, {}, X),
    "max roi pool 1": (
        "MaxRoiPool", 7, {"pooled_shape": [2, 2]}, {"r": np.array([[0, 0, 0, 3, 3], [1, 1, 0, 4, 2]], f32)}, X,
    ),
    "bit shift 11": ("BitShift", 11, {"direction": "RIGHT"}, {"n": np.array([3], np.uint8)}, np.arange(9, dtype="u1")),
    "shape 15": ("Shape", 15, {"start": -2}, {}, X),
    "thresholded relu 10": ("ThresholdedRelu", 10, {"alpha": 0.3}, {}, X),
    "hard sigmoid 6": ("HardSigmoid", 7, {}, {}, X),
    "shrink 9": ("Shrink", 9, {"lambd": 0.4, "bias": 0.1}, {}, X),
    "eye like 9": ("EyeLike", 9, {"k": 1}, {}, M),
    "is nan 9": ("IsNaN", 9, {}, {}, X),
    "constant of shape 9": ("ConstantOfShape", 9, {}, {}, np.array([2, 3])),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_form(name: str) -> None:
    op, opset, attributes, constants, x = CASES[name]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, ["x", *constants], outputs, **attributes)
    if op == "ConstantOfShape":
        compare(build([node], {}, ["y"], {"x": x}, opset), {}, TOLERANCE)
    else:
        compare(build([node], {"x": x}, outputs, constants, opset), {"x": x}, TOLERANCE)


@pytest.mark.parametrize(("opset", "attributes", "k"), [(7, {"k": 3}, None), (10, {}, 3), (11, {"largest": 0}, 2)])
def test_top_k(opset: int, attributes: dict[str, Any], k: int | None) -> None:
    reads, constants = (["x"], {}) if k is None else (["x", "k"], {"k": np.array([k])})
    node = helper.make_node("TopK", reads, ["y", "i"], axis=-1, **attributes)
    compare(build([node], {"x": X}, ["y", "i"], constants, opset), {"x": X}, TOLERANCE)


@pytest.mark.parametrize(("opset", "op"), [(7, "Split"), (11, "Split")])
def test_split(opset: int, op: str) -> None:
    node = helper.make_node(op, ["x"], ["a", "b"], axis=-1 if opset > 10 else 3, split=[2, 3])
    compare(build([node], {"x": X}, ["a", "b"], opset=opset), {"x": X}, TOLERANCE)


@pytest.mark.parametrize("opset", [7, 10, 12])
def test_dropout_with_its_mask(opset: int) -> None:
    """Nothing is dropped. Below opset 10 the mask has the type of the data, later it is bool; onnxruntime fills it from
    opset 12 on."""
    proto = build([helper.make_node("Dropout", ["x"], ["y", "m"])], {"x": X}, ["y", "m"], opset=opset)
    y, mask = run_ort(proto, {"x": X})
    compare(proto, {"x": X}, want=[y, np.ones_like(mask)])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_7(op: str, direction: str, rng: np.random.Generator) -> None:
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    constants = {
        "w": rng.normal(size=(ways, gates * 3, 5)).astype(f32),
        "r": rng.normal(size=(ways, gates * 3, 3)).astype(f32),
    }
    node = helper.make_node(op, ["x", *constants], ["y", "h"], hidden_size=3, direction=direction)
    x = rng.normal(size=(4, 2, 5)).astype(f32)
    compare(build([node], {"x": x}, ["y", "h"], constants, 7), {"x": x}, TOLERANCE)


def test_an_initializer_that_is_also_an_input() -> None:
    """As files below IR version 4 have them: not fed, it is a constant."""
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], {"x": X, "w": C[0][:, None, None]}, ["y"],
                  {"w": C[0][:, None, None]}, 7)  # fmt: skip
    proto.ir_version = 3
    compare(proto, {"x": X}, TOLERANCE)
