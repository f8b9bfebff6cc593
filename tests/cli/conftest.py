"""Small models written with onnx.helper, and a runner of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from d1c.cli.commands import app


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Runs `d1c ARGS...` in this process."""

    def run(*args: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in args])

    return run


def perceptron(batch: int | str = 4, op: str = "Relu", domain: str = "") -> onnx.ModelProto:
    """y = op(x @ w + b), x [batch, 6], w [6, 5]; seeded weights."""
    rng = np.random.default_rng(7)
    w = numpy_helper.from_array(rng.standard_normal((6, 5)).astype(np.float32), "w")
    b = numpy_helper.from_array(rng.standard_normal(5).astype(np.float32), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Add", ["h", "b"], ["i"], "bias"),
        helper.make_node(op, ["i"], ["y"], "last", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [w, b],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def expected(x: np.ndarray) -> np.ndarray:
    """What `perceptron` computes, in float64."""
    rng = np.random.default_rng(7)
    w, b = rng.standard_normal((6, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    return np.maximum(x.astype(np.float64) @ w.astype(np.float64) + b, 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`perceptron` with batch 4, as a file."""
    path = tmp_path / "model.onnx"
    onnx.save(perceptron(), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """x [4, 6] as an .npz."""
    path = tmp_path / "in.npz"
    np.savez(path, x=rng.standard_normal((4, 6)).astype(np.float32))
    return path


@pytest.fixture
def program(tmp_path: Path, model: Path, cli: Callable[..., Result]) -> Path:
    """The model compiled for the test machine in f32."""
    path = tmp_path / "model.d1x"
    done = cli("compile", model, "-o", path, "--target", "test", "--precision", "f32")
    assert done.exit_code == 0, done.stderr
    return path
