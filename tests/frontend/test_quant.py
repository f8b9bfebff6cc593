"""Quantised models against onnxruntime and onnx's reference: integers agree exactly, the engines bit for bit."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import d1c
from d1rt.loader import load

from .conftest import build

onnxruntime = pytest.importorskip("onnxruntime")


def model(
    nodes: list[Any], inputs: dict[str, Any], constants: dict[str, Any], outputs: list[str], opset: int = 21
) -> Any:
    """A model; the types of its outputs are left to inference."""
    return onnx.shape_inference.infer_shapes(build(nodes, inputs, outputs, constants, opset))


def both(m: Any, inputs: dict[str, Any], **options: Any) -> list[np.ndarray]:
    """The outputs on the emulator; the engines must agree bit for bit."""
    program = d1c.compile(m, target="test", precision="f32", **options)
    a, b = (program.run(inputs, engine=engine) for engine in ("numpy", "jit"))
    for name in a:
        assert a[name].tobytes() == b[name].tobytes()
    return [a[o.name] for o in m.graph.output]


def against_runtime(m: Any, inputs: dict[str, Any]) -> None:
    session = onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(both(m, inputs), session.run(None, inputs), strict=True):
        assert got.dtype == want.dtype
        if got.dtype == np.float32:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("groups", [2, 6])
def test_qlinear_conv_per_channel(rng: np.random.Generator, groups: int) -> None:
    x = rng.integers(0, 256, (2, 6, 7, 8)).astype(np.uint8)
    # Seven bits: with eight, onnxruntime's products of u8 and i8 saturate at 16 bits on hosts without VNNI.
    w = rng.integers(-63, 64, (6, 6 // groups, 3, 3)).astype(np.int8)
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(117), "w": w, "ws": rng.uniform(0.001, 0.01, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8), "ys": np.float32(0.05), "yz": np.uint8(120),
        "b": rng.integers(-2000, 2000, 6).astype(np.int32),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], group=groups, pads=[1, 0, 1, 2], strides=[2, 1])
    against_runtime(model([node], {"x": x}, constants, ["y"]), {"x": x})


def test_conv_integer_with_zero_points(rng: np.random.Generator) -> None:
    x, w = rng.integers(0, 256, (1, 3, 6, 6)).astype(np.uint8), rng.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8)
    node = helper.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], pads=[1, 1, 1, 1])
    m = model([node], {"x": x}, {"w": w, "xz": np.uint8(3), "wz": np.uint8(200)}, ["y"], 10)
    against_runtime(m, {"x": x})


def test_matmul_integer_of_run_time_operands(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 256, (2, 5, 70)).astype(np.uint8), rng.integers(-128, 128, (2, 70, 9)).astype(np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    m = model([node], {"a": a, "b": b}, {"az": np.uint8(7), "bz": np.int8(-3)}, ["y"], 10)
    want = (a.astype(np.int32) - 7) @ (b.astype(np.int32) + 3)
    np.testing.assert_array_equal(both(m, {"a": a, "b": b})[0], want)


def test_matmul_integer_per_row_and_column(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 256, (5, 30)).astype(np.uint8), rng.integers(0, 256, (30, 9)).astype(np.uint8)
    az, bz = rng.integers(0, 256, 5).astype(np.uint8), rng.integers(0, 256, 9).astype(np.uint8)
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    m = model([node], {"a": a}, {"b": b, "az": az, "bz": bz}, ["y"], 10)
    want = (a.astype(np.int32) - az[:, None]) @ (b.astype(np.int32) - bz)
    np.testing.assert_array_equal(both(m, {"a": a})[0], want)


def test_qlinear_matmul(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 256, (4, 33)).astype(np.uint8), rng.integers(0, 256, (33, 5)).astype(np.uint8)
    constants = {
        "as": np.float32(0.01), "az": np.uint8(113), "b": b, "bs": np.float32(0.02), "bz": np.uint8(99),
        "ys": np.float32(0.1), "yz": np.uint8(118),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    against_runtime(model([node], {"a": a}, constants, ["y"], 10), {"a": a})


def test_quantised_convolution_as_float_ops_between_q_and_dq(rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    w = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    constants = {
        "s": np.float32(0.03), "z": np.int8(5), "w": w, "ws": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    m = model(nodes, {"x": x}, constants, ["y"])
    (got,) = both(m, {"x": x})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = onnxruntime.InferenceSession(m.SerializeToString(), options).run(None, {"x": x})[0]
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
    assert (got != want).mean() < 0.01


@pytest.mark.parametrize("t", [np.uint8, np.int16, ml_dtypes.int4, ml_dtypes.uint2])
def test_blocked_quantisation_and_back(rng: np.random.Generator, t: Any) -> None:
    from onnx.reference import ReferenceEvaluator

    x = rng.normal(scale=40, size=(3, 7, 4)).astype(np.float32)
    s = rng.uniform(0.2, 9, (3, 3, 4)).astype(np.float32)
    z = np.ones((3, 3, 4), np.int8).astype(t)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1, block_size=3),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1, block_size=3),
    ]
    m = model(nodes, {"x": x, "s": s}, {"z": z}, ["q", "y"], 25)
    want = ReferenceEvaluator(m).run(None, {"x": x, "s": s})
    got = both(m, {"x": x, "s": s})
    assert got[0].dtype == np.dtype(t)
    np.testing.assert_array_equal(got[0].astype(np.int32), want[0].astype(np.int32))
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6)


@pytest.mark.parametrize("t", ["FLOAT8E4M3FN", "FLOAT8E5M2FNUZ", "FLOAT4E2M1"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_quantisation_to_minifloats(rng: np.random.Generator, t: str, saturate: int) -> None:
    from onnx.reference import ReferenceEvaluator

    x = np.ldexp(rng.normal(size=(6, 9)), rng.integers(-6, 12, 9)).astype(np.float32)
    code = getattr(TensorProto, t)
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], axis=0, output_dtype=code, saturate=saturate)
    back = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0)
    m = model([node, back], {"x": x}, {"s": rng.uniform(0.5, 2, 6).astype(np.float32)}, ["q", "y"], 25)
    want = ReferenceEvaluator(m).run(None, {"x": x})
    got = both(m, {"x": x})
    assert got[0].dtype == want[0].dtype
    np.testing.assert_array_equal(got[0].astype(np.float32), want[0].astype(np.float32))
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_dynamic_quantisation(rng: np.random.Generator, shift: float) -> None:
    x = (rng.normal(size=(3, 5)) + shift).astype(np.float32)
    m = model([helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])], {"x": x}, {}, ["y", "s", "z"])
    against_runtime(m, {"x": x})


@pytest.mark.parametrize("t", [ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn])
def test_narrow_tables_survive_the_file(rng: np.random.Generator, tmp_path: Any, t: Any) -> None:
    w = rng.integers(-2, 2, (9, 5)).astype(t)
    indices = np.array([3, 0, 8], np.int64)
    nodes = [helper.make_node("Gather", ["w", "i"], ["g"]), helper.make_node("DequantizeLinear", ["g", "s"], ["y"])]
    m = model(nodes, {"i": indices}, {"w": w, "s": np.float32(0.5)}, ["g", "y"], 25)
    program = d1c.compile(m, target="test", precision="f32")
    program.save(tmp_path / "p.d1x")
    for p in (program, load(tmp_path / "p.d1x")):
        out = p.run({"i": indices})
        assert out["g"].dtype == np.dtype(t)
        assert out["g"].tobytes() == w[indices].tobytes()
        np.testing.assert_array_equal(out["y"], w[indices].astype(np.float32) * 0.5)


@pytest.mark.parametrize("t", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.int4])
def test_narrow_types_move(rng: np.random.Generator, t: Any) -> None:
    x, y = (rng.integers(1, 6, (3, 4, 5)).astype(np.float32).astype(t) for _ in range(2))
    c = rng.integers(0, 2, (3, 4, 5)).astype(np.bool_)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
        helper.make_node("Concat", ["x", "y"], ["j"], axis=1),
        helper.make_node("Where", ["c", "x", "y"], ["w"]),
        helper.make_node("Gather", ["x", "i"], ["g"], axis=1),
        helper.make_node("Slice", ["x", "i", "e", "a", "s"], ["p"]),
    ]
    constants = {k: np.array([v], np.int64) for k, v in (("i", -1), ("e", -9), ("a", 2), ("s", -2))}
    m = model(nodes, {"x": x, "y": y, "c": c}, constants, ["t", "j", "w", "g", "p"])
    want = [x.transpose(2, 0, 1), np.concatenate([x, y], 1), np.where(c, x, y), x[:, [-1]], x[:, :, ::-2]]
    for a, b in zip(both(m, {"x": x, "y": y, "c": c}), want, strict=True):
        assert a.dtype == np.dtype(t)
        assert a.tobytes() == np.ascontiguousarray(b).tobytes()
