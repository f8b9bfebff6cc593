"""`d1c check-model`: what stands in the way of a model, all at once, and the exit code of what compile would refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from typer.testing import Result

from tests.cli.conftest import perceptron

Cli = Callable[..., Result]


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[object]]], **weights: np.ndarray
) -> Path:
    """A model whose last node gives y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, d) for n, (t, d) in inputs.items()],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_model_that_can_be_compiled(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("check-model", model, "--target", "test", "--precision", "f32", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.stderr
    assert "MatMul" in done.stdout and "can be compiled" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["exit_code"] == 0 and report["refused"] == [] and report["import"] is None
    assert {u["op"]: u["cores"] for u in report["ops"]} == {"MatMul": 1, "Add": 1, "Relu": 1}
    assert report["fit"]["weight_bytes"] == 4 * (6 * 5 + 5)
    assert report["fit"]["largest_activation_bytes"] == 4 * 4 * 6
    assert report["fit"]["sram_bytes"] == 16 * 65536 and report["fit"]["exact"]


def test_dimensions_to_bind(cli: Cli, tmp_path: Path) -> None:
    onnx.save(perceptron(batch="batch"), tmp_path / "m.onnx")
    done = cli("check-model", tmp_path / "m.onnx")
    assert done.exit_code == 5
    assert "x[batch,6]" in done.stdout and "--dim batch=1" in done.stdout
    assert cli("check-model", tmp_path / "m.onnx", "--dim", "batch=3").exit_code == 0
    assert cli("check-model", tmp_path / "m.onnx", "--shape", "x=3,6").exit_code == 0


def test_all_refused_nodes_are_named_before_open_dimensions(cli: Cli, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Fancy", ["x"], ["a"], "/first/Fancy", domain="acme"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Plain", ["b"], ["y"], "third", domain="acme"),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, ["n", 4])})
    done = cli("check-model", path, "--json", tmp_path / "r.json")
    assert done.exit_code == 4
    assert "first" in done.stdout and "third" in done.stdout and "second" not in done.stdout
    assert "--dim n=1" in done.stdout, "everything at once"
    report = json.loads((tmp_path / "r.json").read_text())
    assert [r["node"] for r in report["refused"]] == ["/first/Fancy", "third"]
    assert {u["op"]: u["refused"] for u in report["ops"]} == {"Fancy": 1, "Plain": 1, "Relu": 0}


def test_operands_to_freeze(cli: Cli, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["s", "two"], ["t"], "arithmetic"),
        helper.make_node("Reshape", ["x", "t"], ["y"], "view"),
    ]
    ports = {"x": (TensorProto.FLOAT, [4, 6]), "s": (TensorProto.INT64, [2])}
    path = save(tmp_path / "m.onnx", nodes, ports, two=np.array([2, 3], np.int64))  # type: ignore[arg-type]
    done = cli("check-model", path)
    assert done.exit_code == 4
    assert "view" in done.stdout and "--freeze s=" in done.stdout
    assert cli("check-model", path, "--freeze", "s=4,1").exit_code == 0
    wrong = cli("check-model", path, "--freeze", "s=4,2")
    assert wrong.exit_code in (3, 6) and "the import refuses it" in wrong.stdout


def test_shapes_taken_from_shapes_need_no_freezing(cli: Cli, tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["z"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    ports = {"x": (TensorProto.FLOAT, [4, 6]), "z": (TensorProto.FLOAT, [8, 3])}
    assert cli("check-model", save(tmp_path / "m.onnx", nodes, ports)).exit_code == 0  # type: ignore[arg-type]


def test_a_model_that_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "big")]
    weights = np.zeros((600, 1000), np.float32)
    path = save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [1, 600])}, w=weights)
    done = cli("check-model", path, "--target", "test", "--precision", "f32")
    assert done.exit_code == 9 and "DOES NOT FIT" in done.stdout
    assert cli("check-model", path, "--target", "test", "--precision", "bf16").exit_code == 9
    assert cli("check-model", path, "--target", "d1-die").exit_code == 0


def test_what_is_no_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    done = cli("check-model", tmp_path / "m.onnx")
    assert done.exit_code == 3 and done.stdout == ""
    assert cli("check-model", tmp_path / "m.onnx", "--precision", "f8").exit_code == 2
