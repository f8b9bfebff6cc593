"""Tensors without elements, constants as outputs, and freezing, through compiler and emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import d1c
from d1c import backend
from d1c.errors import InputError, NotStatic, UsageError

Build = Callable[..., onnx.ModelProto]


def empty(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


REDUCTIONS = {"ReduceSum": 0.0, "ReduceProd": 1.0, "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceMean": np.nan}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_nothing_give_the_identity(model: Build, op: str) -> None:
    """x stays an input without elements; z keeps the program from being a constant."""
    nodes = [helper.make_node(op, ["x", "axes"], ["r"], keepdims=0), helper.make_node("Mul", ["r", "z"], ["y"])]
    graph = model(nodes, {"x": (2, 0), "z": (2,)}, ["y"], {"axes": np.array([1])}, opset=18)
    program = d1c.compile(graph, target="test", precision="f32")
    out = program.run({"x": empty(2, 0), "z": np.array([1, 2], np.float32)}, engine="numpy")
    assert np.array_equal(out["y"], np.array([1, 2], np.float32) * np.float32(REDUCTIONS[op]), equal_nan=True)


CASES: list[tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]], np.ndarray]] = [
    ([helper.make_node("Relu", ["x"], ["y"])], {"x": (0, 4)}, empty(0, 4)),
    ([helper.make_node("MatMul", ["x", "z"], ["y"])], {"x": (2, 0), "z": (0, 3)}, empty(2, 3)),
    ([helper.make_node("MatMul", ["x", "z"], ["y"])], {"x": (0, 3), "z": (3, 5)}, empty(0, 5)),
    ([helper.make_node("Concat", ["x", "z"], ["y"], axis=0)], {"x": (0, 3), "z": (2, 3)}, np.ones((2, 3), np.float32)),
    ([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], {"x": (3, 0)}, empty(3, 0)),
    ([helper.make_node("Transpose", ["x"], ["y"])], {"x": (3, 0, 2)}, empty(2, 0, 3)),
]


@pytest.mark.parametrize("n", [3, 0])
@pytest.mark.parametrize(("lo", "hi"), [(5, -4), (-4, 5), (5, -5), (-1, 2)])
def test_a_cut_that_takes_padding_too(model: Build, n: int, lo: int, hi: int) -> None:
    """A negative pad may be larger than the extent, as long as the other end makes up for it."""
    x = np.arange(1, n + 1, dtype=np.float32)
    pads = {"p": np.array([lo, hi]), "v": np.array(7, np.float32)}
    proto = model([helper.make_node("Pad", ["x", "p", "v"], ["y"])], {"x": x}, ["y"], pads, opset=18)
    out = d1c.compile(proto, target="test", precision="f32").run({"x": x}, engine="numpy")["y"]
    whole = np.pad(x, [(max(lo, 0), max(hi, 0))], constant_values=7)
    assert np.array_equal(out, whole[max(-lo, 0) : len(whole) - max(-hi, 0)])


@pytest.mark.parametrize("engine", ["numpy", "jit"])
@pytest.mark.parametrize(("nodes", "inputs", "want"), CASES, ids=[c[0][0].op_type for c in CASES])
def test_ops_without_elements(model: Build, nodes: Any, inputs: Any, want: np.ndarray, engine: str) -> None:
    program = d1c.compile(model(nodes, inputs, ["y"]), target="test", precision="f32")
    x = {name: np.ones(shape, np.float32) for name, shape in inputs.items()}
    out = program.run(x, engine=engine)["y"]
    assert out.dtype == np.float32 and np.array_equal(out, want) and out.shape == want.shape
    with pytest.raises(InputError, match="x"):
        program.run({**x, "x": np.zeros((1, 1), np.float32)}, engine=engine)


def test_an_empty_output_survives_saving(model: Build, tmp_path: Any) -> None:
    import d1rt

    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["z"], ["w"])]
    program = d1c.compile(model(nodes, {"x": (0, 4), "z": (3,)}, ["y", "w"]), target="test")
    program.save(tmp_path / "p.d1x")
    out = d1rt.load(tmp_path / "p.d1x").run({"x": empty(0, 4), "z": np.ones(3, np.float32)}, engine="numpy")
    assert out["y"].shape == (0, 4) and out["w"].tolist() == [1, 1, 1]


def test_constant_outputs_and_whether_all_is_folded(model: Build) -> None:
    constants = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    program = d1c.compile(
        model([helper.make_node("Neg", ["a"], ["y"])], {}, ["y"], constants), target="test", precision="f32"
    )
    assert program.folded
    assert np.array_equal(program.run({}, engine="numpy")["y"], -constants["a"])
    other = d1c.compile(model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2,)}, ["y"]), target="test")
    assert not other.folded


# ---- freezing


def typed(inputs: dict[str, tuple[int, tuple[int, ...]]], nodes: list[onnx.NodeProto], out: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, code, shape) for n, (code, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=out)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def reshaping() -> onnx.ModelProto:
    """y = reshape(x, [first, rest]), where the shape is computed from two inputs; `scale` decides no shape."""
    f, i = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    nodes = [
        helper.make_node("Add", ["first", "one"], ["more"]),
        helper.make_node("Concat", ["more", "rest"], ["shape"], axis=0),
        helper.make_node("Mul", ["x", "scale"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["y"], name="view"),
    ]
    inputs = {"x": (f, (2, 6)), "scale": (f, (1,)), "first": (i, (1,)), "rest": (i, (1,)), "one": (i, (1,))}
    return typed(inputs, nodes, "y")


def test_what_is_not_static_names_the_inputs_that_decide_it() -> None:
    with pytest.raises(NotStatic, match="view") as caught:
        d1c.import_onnx(reshaping())
    assert set(caught.value.inputs) == {"first", "one", "rest"}
    assert "--freeze first=..." in caught.value.remedy


def test_the_backend_freezes_exactly_what_decides_shapes() -> None:
    rep = backend.prepare(reshaping(), target="test", engine="numpy")
    x, scale, one = np.arange(12, dtype=np.float32).reshape(2, 6), np.array([2], np.float32), np.array([1])
    (y,) = rep.run([x, scale, np.array([2]), np.array([4]), one])
    assert set(rep.frozen) == {"first", "one", "rest"} and np.array_equal(y, 2 * x.reshape(3, 4))
    (y,) = rep.run([x, scale + 1, np.array([2]), np.array([4]), one])
    assert len(rep.programs) == 1 and np.array_equal(y, 3 * x.reshape(3, 4))
    (y,) = rep.run([x, scale, np.array([1]), np.array([-1]), one])
    assert len(rep.programs) == 2 and np.array_equal(y, 2 * x.reshape(2, 6))


def test_freeze_takes_inputs_of_the_right_type_only() -> None:
    with pytest.raises(UsageError, match="no input"):
        d1c.import_onnx(reshaping(), freeze={"axes": np.array([1])})
    with pytest.raises(UsageError, match="int32"):
        d1c.import_onnx(reshaping(), freeze={"first": np.array([1], np.int32)})
    module = d1c.import_onnx(reshaping(), freeze={n: np.array([v]) for n, v in (("first", 2), ("rest", 4), ("one", 1))})
    assert module.attrs["frozen"] == ("first", "one", "rest") and module.attrs["folded"] == 2
    assert [a.name for a in module.function().block.args] == ["x", "scale"]


def test_the_value_of_a_pad_decides_no_shape() -> None:
    """It is an input like any other, while the pads are frozen; an i64 that f64 does not have stays exact."""
    i = onnx.TensorProto.INT64
    proto = typed(
        {"x": (i, (2,)), "pads": (i, (2,)), "v": (i, ())}, [helper.make_node("Pad", ["x", "pads", "v"], ["y"])], "y"
    )
    rep = backend.prepare(proto, target="test", engine="numpy")
    for v in (7, 2**60 + 1):
        (y,) = rep.run([np.array([3, 4]), np.array([1, 2]), np.array(v)])
        assert y.tolist() == [v, 3, 4, v, v] and rep.frozen == ("pads",) and len(rep.programs) == 1
    big = np.array(2**60 + 1)
    constant = typed({"x": (i, (2,))}, [helper.make_node("Pad", ["x", "p", "v"], ["y"])], "y")
    constant.graph.initializer.extend(
        [onnx.numpy_helper.from_array(np.array([1, 0]), "p"), onnx.numpy_helper.from_array(big, "v")]
    )
    (y,) = backend.run_model(constant, [np.array([3, 4])], target="test", engine="numpy")
    assert y.tolist() == [2**60 + 1, 3, 4]


def test_shapes_of_what_is_no_element_are_refused() -> None:
    """A sequence's elements count from 0, a tensor has none."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (seq(float) s, float[2] x) => (float[2] y) { one = ConcatFromSequence <axis = 0> (s) y = Add(one, x) }"""
    proto = onnx.parser.parse_model(text)
    assert [a.name for a in d1c.import_onnx(proto, shapes={"s.0": (1,), "s.1": (1,)}).function().block.args] == [
        "s.0", "s.1", "x",
    ]  # fmt: skip
    for shapes, word in (({"s.0": (2,), "s.2": (1,)}, "not s.1"), ({"s.0": (2,), "x.0": (2,)}, "no input")):
        with pytest.raises(UsageError, match=word):
            d1c.import_onnx(proto, shapes=shapes)
