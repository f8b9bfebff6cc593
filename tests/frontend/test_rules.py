"""Every rule against onnxruntime: import, evaluate the graph by the numeric contract, compare."""

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


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 3e-6) -> Any:
    """Import and evaluate; outputs have onnxruntime's types and shapes and agree within `tolerance` of their size."""
    module = import_onnx(proto, {n: a.shape for n, a in feeds.items()})
    got = evaluate(module, feeds)
    for (name, ours), theirs in zip(got.items(), run_ort(proto, feeds), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        bound = tolerance * max(1.0, float(np.abs(theirs.astype(np.float64)).max(initial=0)))
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=bound)
    return module


# (op, input arrays, initializers, attributes, opset); the node reads the inputs, then the initializers, in order
X = rand(2, 4, 9, 8)
T = rand(2, 3, 6)
CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any], int]] = {
    "conv": ("Conv", {"x": X}, {"w": rand(6, 4, 3, 3), "b": rand(6)}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, 17),
    "conv_dilated": ("Conv", {"x": X}, {"w": rand(6, 4, 3, 2)}, {"dilations": [2, 3]}, 17),
    "conv_same_upper": ("Conv", {"x": X}, {"w": rand(5, 4, 3, 2)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 17),
    "conv_same_lower": ("Conv", {"x": X}, {"w": rand(5, 4, 2, 2)}, {"auto_pad": "SAME_LOWER", "strides": [2, 1]}, 17),
    "conv_depthwise": ("Conv", {"x": X}, {"w": rand(4, 1, 3, 3), "b": rand(4)}, {"group": 4}, 17),
    "conv_grouped": ("Conv", {"x": X}, {"w": rand(6, 2, 3, 3)}, {"group": 2}, 17),
    "conv_grouped_odd": ("Conv", {"x": rand(1, 6, 5, 5)}, {"w": rand(4, 3, 3, 3)}, {"group": 2}, 17),
    "conv_multiplier": ("Conv", {"x": X}, {"w": rand(8, 1, 3, 3)}, {"group": 4}, 17),
    "conv_1d": (
        "Conv", {"x": rand(2, 3, 20)}, {"w": rand(4, 3, 5), "b": rand(4)}, {"strides": [3], "pads": [2, 1]}, 17),
    "conv_3d": ("Conv", {"x": rand(1, 2, 4, 5, 3)}, {"w": rand(3, 2, 2, 2, 2)}, {}, 17),
    "conv_runtime_weights": ("Conv", {"x": X, "w": rand(3, 4, 2, 2)}, {}, {}, 17),
    "max_pool": ("MaxPool", {"x": X}, {}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}, 17),
    "max_pool_ceil": ("MaxPool", {"x": X}, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 17),
    "max_pool_ceil_pad": (
        "MaxPool", {"x": X}, {}, {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]}, 17),
    "average_pool": ("AveragePool", {"x": X}, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 17),
    "average_pool_include": (
        "AveragePool", {"x": X}, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 17),
    "average_pool_ceil": (
        "AveragePool", {"x": X}, {}, {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1,
        "count_include_pad": 1}, 19),
    "average_pool_same": ("AveragePool", {"x": X}, {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, 17),
    "global_average_pool": ("GlobalAveragePool", {"x": X}, {}, {}, 17),
    "global_max_pool": ("GlobalMaxPool", {"x": X}, {}, {}, 17),
    "batch_norm": (
        "BatchNormalization", {"x": X}, {"g": rand(4), "b": rand(4), "m": rand(4), "v": rand(4) ** 2},
        {"epsilon": 0.01}, 15),
    "batch_norm_9": (
        "BatchNormalization", {"x": X}, {"g": rand(4), "b": rand(4), "m": rand(4), "v": rand(4) ** 2}, {}, 9),
    "batch_norm_runtime": (
        "BatchNormalization", {"x": X, "g": rand(4), "b": rand(4), "m": rand(4), "v": rand(4) ** 2}, {}, {}, 15),
    "instance_norm": ("InstanceNormalization", {"x": X}, {"g": rand(4), "b": rand(4)}, {}, 17),
    "layer_norm": ("LayerNormalization", {"x": T}, {"g": rand(6), "b": rand(6)}, {"epsilon": 1e-3}, 17),
    "layer_norm_axis": ("LayerNormalization", {"x": T}, {"g": rand(3, 6)}, {"axis": 1}, 17),
    "gemm": ("Gemm", {"x": rand(3, 5)}, {"w": rand(4, 5), "b": rand(4)}, {"transB": 1}, 17),
    "gemm_scaled": (
        "Gemm", {"x": rand(5, 3), "w": rand(5, 4), "b": rand(1)}, {}, {"transA": 1, "alpha": 0.5, "beta": 2.0}, 17),
    "matmul": ("MatMul", {"x": T}, {"w": rand(6, 5)}, {}, 17),
    "matmul_batch": ("MatMul", {"x": rand(2, 1, 3, 5), "y": rand(4, 5, 2)}, {}, {}, 17),
    "matmul_vectors": ("MatMul", {"x": rand(5), "y": rand(5)}, {}, {}, 17),
    "matmul_left_vector": ("MatMul", {"x": rand(5), "y": rand(3, 5, 2)}, {}, {}, 17),
    "matmul_right_vector": ("MatMul", {"x": rand(3, 2, 5), "y": rand(5)}, {}, {}, 17),
    "softmax": ("Softmax", {"x": T}, {}, {}, 17),
    "softmax_axis": ("Softmax", {"x": T}, {}, {"axis": 1}, 13),
    "softmax_11": ("Softmax", {"x": T}, {}, {}, 11),
    "softmax_11_axis": ("Softmax", {"x": T}, {}, {"axis": 2}, 11),
    "log_softmax": ("LogSoftmax", {"x": T}, {}, {}, 17),
    "reduce_mean_attr": ("ReduceMean", {"x": T}, {}, {"axes": [1, -1], "keepdims": 0}, 13),
    "reduce_mean_input": ("ReduceMean", {"x": T}, {"axes": np.array([1])}, {}, 18),
    "reduce_mean_all": ("ReduceMean", {"x": T}, {}, {"keepdims": 0}, 17),
    "reduce_sum": ("ReduceSum", {"x": T}, {"axes": np.array([0, 2])}, {"keepdims": 0}, 13),
    "reduce_max": ("ReduceMax", {"x": T}, {}, {"axes": [2]}, 13),
    "reduce_min": ("ReduceMin", {"x": T}, {}, {"axes": [0]}, 13),
    "reduce_l2": ("ReduceL2", {"x": T}, {}, {"axes": [2]}, 13),
    "reduce_l1": ("ReduceL1", {"x": T}, {}, {"axes": [2]}, 13),
    "reduce_log_sum_exp": ("ReduceLogSumExp", {"x": T}, {}, {"axes": [1], "keepdims": 0}, 13),
    "clip_6": ("Clip", {"x": T}, {}, {"min": -0.5, "max": 0.25}, 6),
    "clip": ("Clip", {"x": T}, {"lo": np.float32(-0.5)}, {}, 13),
    "clip_runtime": ("Clip", {"x": T, "lo": np.array(-0.5, np.float32), "hi": np.array(0.1, np.float32)}, {}, {}, 13),
    "clip_int": ("Clip", {"x": np.arange(-5, 5)}, {"lo": np.int64(-2), "hi": np.int64(3)}, {}, 13),
    "pow_2": ("Pow", {"x": T}, {"e": np.float32(2)}, {}, 17),
    "pow_3_int": ("Pow", {"x": T}, {"e": np.array([3])}, {}, 17),
    "pow_half": ("Pow", {"x": np.abs(T)}, {"e": np.float32(0.5)}, {}, 17),
    "pow": ("Pow", {"x": np.abs(T) + 0.1, "y": T}, {}, {}, 17),
    "max": ("Max", {"x": T, "y": rand(3, 1, seed=1), "z": rand(6, seed=2)}, {}, {}, 17),
    "min": ("Min", {"x": T, "y": rand(3, 1, seed=1)}, {}, {}, 17),
    "sum": ("Sum", {"x": T, "y": rand(6), "z": rand(1)}, {}, {}, 17),
    "mean": ("Mean", {"x": T, "y": rand(6), "z": rand(1)}, {}, {}, 17),
    "prelu": ("PRelu", {"x": X}, {"s": rand(4, 1, 1)}, {}, 17),
    "prelu_one": ("PRelu", {"x": X}, {"s": rand(1)}, {}, 17),
    "leaky_relu": ("LeakyRelu", {"x": T}, {}, {"alpha": 0.3}, 17),
    "hard_sigmoid": ("HardSigmoid", {"x": T}, {}, {"alpha": 0.3}, 17),
    "hard_swish": ("HardSwish", {"x": T}, {}, {}, 17),
    "elu": ("Elu", {"x": T}, {}, {"alpha": 1.5}, 17),
    "softplus": ("Softplus", {"x": 9 * T}, {}, {}, 17),
    "softsign": ("Softsign", {"x": T}, {}, {}, 17),
    "gelu": ("Gelu", {"x": T}, {}, {}, 20),
    "gelu_tanh": ("Gelu", {"x": T}, {}, {"approximate": "tanh"}, 20),
    "reshape": ("Reshape", {"x": T}, {"s": np.array([0, -1, 2])}, {}, 17),
    "flatten": ("Flatten", {"x": X}, {}, {"axis": 2}, 17),
    "squeeze": ("Squeeze", {"x": rand(1, 3, 1, 2)}, {"a": np.array([-2])}, {}, 17),
    "squeeze_all": ("Squeeze", {"x": rand(1, 3, 1, 2)}, {}, {}, 17),
    "unsqueeze_attr": ("Unsqueeze", {"x": T}, {}, {"axes": [0, 4]}, 11),
    "transpose": ("Transpose", {"x": T}, {}, {}, 17),
    "expand": ("Expand", {"x": rand(3, 1)}, {"s": np.array([2, 1, 6])}, {}, 17),
    "tile": ("Tile", {"x": T}, {"r": np.array([2, 1, 3])}, {}, 17),
    "concat": ("Concat", {"x": T, "y": rand(2, 5, 6)}, {"z": rand(2, 1, 6)}, {"axis": -2}, 17),
    "slice": (
        "Slice", {"x": T},
        {"s": np.array([-1, 5]), "e": np.array([-99, 1]), "a": np.array([1, 2]), "t": np.array([-1, -2])},
              {}, 17),
    "slice_attr": ("Slice", {"x": T}, {}, {"starts": [1], "ends": [99], "axes": [2]}, 9),
    "gather_scalar": ("Gather", {"x": T}, {"i": np.array(-1)}, {"axis": 1}, 17),
    "gather_range": ("Gather", {"x": T}, {"i": np.array([[0, 2, 4]])}, {"axis": 2}, 17),
    "gather_list": ("Gather", {"x": T}, {"i": np.array([3, 0, 0, -1])}, {"axis": 2}, 17),
    "gather_long": ("Gather", {"x": T}, {"i": np.arange(40) * 7 % 6}, {"axis": 2}, 17),
    "gather_runtime": ("Gather", {"x": T, "i": np.array([[2, -1], [0, -3]])}, {}, {"axis": 1}, 17),
    "pad": ("Pad", {"x": T}, {"p": np.array([0, 1, 2, 1, 0, 3]), "v": np.float32(0.5)}, {}, 13),
    "pad_2": ("Pad", {"x": T}, {}, {"pads": [0, 1, 2, 1, 0, 3]}, 2),
    "pad_negative": ("Pad", {"x": T}, {"p": np.array([0, -1, 2, 0, 0, -3])}, {}, 13),
    "pad_edge": ("Pad", {"x": T}, {"p": np.array([0, 1, 2, 0, 0, 3])}, {"mode": "edge"}, 13),
    "pad_reflect": ("Pad", {"x": T}, {"p": np.array([0, 1, 2, 0, 2, 3])}, {"mode": "reflect"}, 13),
    "resize_scales": ("Resize", {"x": X}, {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 3], np.float32)},
                      {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 13),
    "resize_half_pixel": (
        "Resize", {"x": X}, {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 0.5], np.float32)}, {}, 13),
    "resize_sizes": (
        "Resize", {"x": X}, {"r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32), "n": np.array([2, 4, 18, 5])},
                     {}, 13),
    "upsample": ("Upsample", {"x": X}, {"s": np.array([1, 1, 2, 2], np.float32)}, {}, 9),
    "where": ("Where", {"c": T > 0, "x": T, "y": rand(6)}, {}, {}, 17),
    "equal": ("Equal", {"x": np.arange(6) % 3, "y": np.array([1])}, {}, {}, 17),
    "cast_int": ("Cast", {"x": 3 * T}, {}, {"to": onnx.TensorProto.INT32}, 17),
    "cast_bool": ("Cast", {"x": np.arange(4)}, {}, {"to": onnx.TensorProto.BOOL}, 17),
    "depth_to_space": ("DepthToSpace", {"x": X}, {}, {"blocksize": 2}, 17),
    "space_to_depth": ("SpaceToDepth", {"x": rand(1, 2, 4, 6)}, {}, {"blocksize": 2}, 17),
    "trilu": ("Trilu", {"x": T}, {"k": np.array(1)}, {"upper": 0}, 17),
    "div_int": ("Div", {"x": np.array([-7, 7, 5])}, {"y": np.array([2])}, {}, 17),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rule_agrees_with_onnxruntime(name: str, model: Build) -> None:
    op, inputs, constants, attributes, opset = CASES[name]
    node = helper.make_node(op, [*inputs, *constants], ["out"], name="node", **attributes)
    check(model([node], inputs, ["out"], constants, opset), inputs)


def test_split_gives_all_its_parts(model: Build) -> None:
    x = rand(2, 7)
    for attributes, constants, opset in (
        ({"split": [3, 4]}, {}, 11),
        ({}, {"s": np.array([3, 4])}, 13),
        ({"num_outputs": 2}, {}, 18),
    ):
        node = helper.make_node("Split", ["x", *constants], ["a", "b"], axis=1, **attributes)
        check(model([node], {"x": x}, ["a", "b"], constants, opset), {"x": x})


def test_layer_norm_spelled_out(model: Build) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["q"]),
        helper.make_node("ReduceMean", ["q"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["w"]),
        helper.make_node("Sqrt", ["w"], ["s"]),
        helper.make_node("Div", ["d", "s"], ["y"]),
    ]
    check(model(nodes, {"x": T}, ["y"], {"two": np.float32(2), "eps": np.float32(1e-5)}), {"x": T})


def test_transposes_of_neighbouring_convolutions_cancel(model: Build) -> None:
    """Conv, BatchNormalization, Conv: one transpose before, one after; the parameters are constants on the last dim."""
    constants = {"w": rand(5, 4, 3, 3), "v": rand(3, 5, 1, 1)} | {n: np.abs(rand(5)) for n in "gbms"}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *"gbms"], ["n"]),
        helper.make_node("Conv", ["n", "v"], ["y"]),
    ]
    module = check(model(nodes, {"x": X}, ["y"], constants), {"x": X})
    names = [op.name for op in module.function().block.ops if op.name != "graph.const"]
    assert names == [f"graph.{n}" for n in "transpose conv mul add conv transpose return".split()]
    assert module.constants["w"].shape == (3, 3, 4, 5)
