"""Twenty-eight broken or unsupported models (S4 of docs/evidence.md): each gives one message that says where, which
rule is broken and what to do about it, in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import d1c
from d1c.cli.commands import app
from d1c.errors import D1Error, DoesNotFit, ImportFailed, NotStatic, ShapeUnbound, TypeMismatch, UnsupportedOp
from d1c.frontend.importer import Importer

from .conftest import build

f32, i64 = np.float32, np.int64
X = {"x": (2, 3)}
Model = onnx.ModelProto | bytes


def node(op: str, reads: str = "x", gives: str = "y", name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, [r.strip("_") for r in reads.split()], gives.split(), name=name or f"my_{op.lower()}", **attributes
    )


def graph(*nodes: onnx.NodeProto, inputs: tuple[Any, ...] = (), outputs: tuple[str, ...] = ("y",)) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs]
    return helper.make_graph(list(nodes), "body", infos, [onnx.ValueInfoProto(name=o) for o in outputs])


def one(op: str, inputs: Any = X, constants: Any = None, opset: int = 20, reads: str = "x", **attributes: Any) -> Model:
    return build([node(op, reads, **attributes)], inputs, ["y"], constants, opset)


def typed(model: onnx.ModelProto, index: int, kind: int) -> onnx.ModelProto:
    model.graph.input[index].type.tensor_type.elem_type = kind
    return model


def everywhere() -> Model:
    """Unsupported nodes outside, in a branch of an If and in the model's own function."""
    inner = [helper.make_node("Odd", ["a"], ["b"], name="inside", domain="vendor")]
    opsets = [helper.make_opsetid("vendor", 2)]
    nodes = [
        helper.make_node("Mine", ["x"], ["m"], name="call", domain="own"),
        node("If", "c", "i", then_branch=graph(node("StringSplit", "x", "t"), outputs=("t",)),
             else_branch=graph(node("Neg", "x", "e"), outputs=("e",))),
        node("Strange", "x", "s", domain="vendor"),
    ]  # fmt: skip
    model = build(nodes, {**X, "c": np.zeros((), np.bool_)}, ["m", "i", "s"], opset=20)
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], inner, opsets))
    model.opset_import.extend([*opsets, helper.make_opsetid("own", 1)])
    return model


def cycle() -> Model:
    return build([node("Add", "x b", "a", "first"), node("Neg", "a", "b", "second")], X, ["b"])


def external(location: str) -> Model:
    model = build([node("Add", "x w")], X, ["y"], {"w": np.ones(3, f32)})
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    return model


def loop(condition: bool) -> Model:
    """Stacks a result of every round, as many as an input says: by a condition, or by a count."""
    body = graph(
        node("Neg", "v", "w"), node("Identity", "c", "d"), node("Abs", "v", "a"),
        inputs=(("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [2, 3])),
        outputs=("d", "w", "a"),
    )  # fmt: skip
    reads, number = ("_ c x", np.zeros((), np.bool_)) if condition else ("n _ x", np.zeros((), i64))
    inputs = {**X, "c" if condition else "n": number}
    return build([node("Loop", reads, "z y", body=body)], inputs, ["y"], opset=20)


def through_sin() -> Model:
    domain = "ai.onnx.preview.training"
    nodes = [node("Sin", "x", "s"), node("Gradient", "x", "y", domain=domain, xs=["x"], y="s")]
    model = build(nodes, {"x": ()}, ["y"])
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def ragged() -> Model:
    nodes = [node("SplitToSequence", "x s", "q", axis=0), node("ConcatFromSequence", "q", axis=1)]
    return build(nodes, {"x": (5, 3)}, ["y"], {"s": np.array([2, 3])}, opset=20)


def too_big() -> Model:
    return build([node("MatMul", "x w")], {"x": (1, 4096)}, ["y"], {"w": np.zeros((4096, 4096), f32)})


def twice() -> Model:
    return build([node("Neg", "x", "y", "first"), node("Abs", "x", "y", "second")], X, ["y"])


def unbound() -> Model:
    return build([node("Concat", "a b", axis=0)], {"a": ["n", 3], "b": ["m", "k"]}, ["y"])


def different() -> Model:
    branches = [graph(node(op, "x", "o", **a), outputs=("o",)) for op, a in (("Neg", {}), ("Transpose", {}))]
    return build(
        [node("If", "c", then_branch=branches[0], else_branch=branches[1])],
        {**X, "c": np.zeros((), np.bool_)}, ["y"],
    )  # fmt: skip


def counted() -> Model:
    """NonZero's output has as many columns as there are nonzeros: a convolution cannot take it."""
    nodes = [
        node("NonZero", "x", "z"), node("Cast", "z", "f", to=1), node("Unsqueeze", "f a", "u"), node("Conv", "u w"),
    ]  # fmt: skip
    return build(nodes, X, ["y"], {"a": np.array([0]), "w": np.ones((1, 2, 3), f32)}, opset=20)


# name: the model, the class of the refusal, and what its text names
def shape_of_a_sequence() -> onnx.ModelProto:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), node("Shape", "s")]
    return build(nodes, {"x": (2,)}, ["y"])


CASES: dict[str, tuple[Callable[[], Model], type[D1Error], tuple[str, ...]]] = {
    "string tensors": (lambda: typed(one("Identity"), 0, TensorProto.STRING), UnsupportedOp, ("x", "string")),
    "image decoder": (lambda: typed(one("ImageDecoder", {"x": (9,)}), 0, 2), UnsupportedOp, ("my_imagedecoder",)),
    "several at once": (
        everywhere, UnsupportedOp,
        ("call/inside: vendor.Odd (opset 2)", "my_if/my_stringsplit: StringSplit", "my_strange: vendor.Strange"),
    ),
    "unknown domain": (lambda: one("Gelu", domain="com.nobody"), UnsupportedOp, ("my_gelu", "com.nobody.Gelu")),
    "unknown op": (lambda: one("Reluu"), UnsupportedOp, ("my_reluu", "Reluu")),
    "opset 0": (lambda: one("Neg", opset=0), UnsupportedOp, ("opset 0",)),
    "opset 999": (lambda: one("Neg", opset=999), UnsupportedOp, ("opset 999",)),
    "truncated file": (lambda: one("Neg").SerializeToString()[:-7], ImportFailed, ("truncated",)),
    "no model at all": (lambda: b"\x93NUMPY not a model", ImportFailed, ("not an ONNX file",)),
    "Gemm of wrong shapes": (
        lambda: one("Gemm", {"x": (2, 3), "b": (4, 5)}, reads="x b"), TypeMismatch,
        ("my_gemm", "Gemm", "[2, 3]", "[4, 5]"),
    ),
    "Concat of wrong shapes": (
        lambda: one("Concat", {"x": (2, 3), "b": (3, 4)}, reads="x b", axis=0), TypeMismatch,
        ("my_concat", "[2, 3]", "[3, 4]"),
    ),
    "missing initializer": (lambda: one("Add", reads="x w"), ImportFailed, ("my_add", "'w'")),
    "cycle": (cycle, ImportFailed, ("first", "cycle")),
    "two producers": (twice, ImportFailed, ("second", "'y'")),
    "external data missing": (lambda: external("gone.bin"), ImportFailed, ("'w'", "gone.bin")),
    "external data elsewhere": (lambda: external("../../etc/passwd"), ImportFailed, ("'w'", "outside")),
    "unbound dims": (unbound, ShapeUnbound, ("n", "m", "k", "--dim")),
    "bounded into Conv": (counted, UnsupportedOp, ("my_conv",)),
    "shape at run time": (
        lambda: one("Reshape", {"x": (2, 3), "s": np.zeros(2, i64)}, reads="x s"), NotStatic, ("my_reshape", "'s'"),
    ),
    "branches of different shapes": (different, D1Error, ("my_if", "different shapes", "--freeze c=")),
    "Loop by a condition": (lambda: loop(True), UnsupportedOp, ("my_loop",)),
    "Loop by a run-time count": (lambda: loop(False), NotStatic, ("my_loop", "'n'")),
    "complex numbers": (lambda: typed(one("Neg"), 0, TensorProto.COMPLEX64), UnsupportedOp, ("input x", "COMPLEX64")),
    "Gradient through Sin": (through_sin, UnsupportedOp, ("my_gradient", "graph.sin")),
    "unknown mode": (
        lambda: build([node("Resize", "x _ s", mode="foo")], {"x": (1, 1, 2, 2)}, ["y"], {"s": np.ones(4, f32)}),
        D1Error, ("my_resize", "'foo'"),
    ),
    "ragged sequence": (ragged, D1Error, ("my_concatfromsequence",)),
    "Shape of a sequence": (shape_of_a_sequence, ImportFailed, ("Shape", "my_shape")),
    "constants that do not fit": (
        lambda: build([helper.make_node("Concat", ["c", "c"], ["y"], axis=3)], {}, ["y"], {"c": np.ones(2, f32)}),
        ImportFailed, ("Concat_0", "axis 3"),
    ),
    "output twice": (lambda: build([node("Neg")], {"x": (2,)}, ["y", "y"]), ImportFailed, ("'y'", "twice")),
    "too big": (too_big, DoesNotFit, ("my_matmul", "SRAM")),
    "unknown type": (lambda: typed(one("Neg"), 0, 99), UnsupportedOp, ("x", "99")),
}  # fmt: skip


def path_of(name: str, folder: Path) -> Path:
    model = CASES[name][0]()
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize("name", CASES)
def test_one_message_says_where_why_and_what_to_do(name: str, tmp_path: Path) -> None:
    _, kind, words = CASES[name]
    with pytest.raises(kind) as caught:
        d1c.compile(path_of(name, tmp_path), target="test", precision="f32")
    error = caught.value
    assert all(word in str(error) for word in words), str(error)
    assert error.rule and error.remedy, str(error)
    assert error.where or "file" in error.message, str(error)


BEFORE_LOWERING = (
    "string tensors", "image decoder", "several at once", "unknown domain", "unknown op", "opset 0", "opset 999",
    "missing initializer", "cycle", "two producers", "external data missing", "external data elsewhere", "unbound dims",
    "complex numbers", "unknown type",
)  # fmt: skip


@pytest.mark.parametrize("name", BEFORE_LOWERING)
def test_no_node_has_been_lowered_by_then(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(*args: object) -> None:
        raise AssertionError("lowered")

    monkeypatch.setattr(Importer, "lower", lower)
    with pytest.raises(CASES[name][1]):
        d1c.import_onnx(path_of(name, tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_says_the_same(name: str, tmp_path: Path) -> None:
    path, program = path_of(name, tmp_path), tmp_path / "model.d1x"
    done = CliRunner().invoke(
        app, ["compile", str(path), "-o", str(program), "--target", "test", "--precision", "f32",
              "--error-format", "json", "--no-remedies"],
    )  # fmt: skip
    with pytest.raises(D1Error) as caught:
        d1c.compile(path, target="test", precision="f32")
    assert done.exit_code == caught.value.exit_code and not program.exists()
    assert json.loads(done.stderr) == json.loads(json.dumps(caught.value.to_json()))
