"""A model that does not fit: what a core would have to hold, and which other compilations fit."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import d1c
from d1c.cli.commands import app
from d1c.errors import DoesNotFit
from d1c.target.machine import machine


def layer(batch: str | int, k: int, n: int) -> onnx.ModelProto:
    """relu(x @ w), x [batch, k], w [k, n]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "product"), helper.make_node("Relu", ["h"], ["y"], "relu")],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((k, n), np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused(model: onnx.ModelProto, **options: object) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        d1c.compile(model, **{"target": "test", **options})  # type: ignore[arg-type]
    return caught.value


def test_a_smaller_batch_and_a_larger_target() -> None:
    """The failing compilation tries nothing by itself; what it offers has been compiled."""
    model = layer("batch", 64, 64)
    error = refused(model, precision="f32", dims={"batch": 4096})
    assert error.remedies is None and "fits:" not in str(error)
    said: list[str] = []
    found = error.try_remedies(said.append)
    assert tuple(said) == error.tried and found == error.remedies
    changes = {r["change"]: r for r in found}
    assert "batch 1" in changes and "--target d1-die" in changes and "--precision bf16" in error.tried
    assert "--target d1-tile" not in error.tried  # a smaller one fits
    again = d1c.compile(model, target="test", precision="f32", dims={"batch": 1}).summary()
    assert again["cycles"] == changes["batch 1"]["cycles"]
    assert again["sram_peak_bytes"] == changes["batch 1"]["sram_peak_bytes"]
    assert f"batch 1: {again['cycles']:,} cycles" in str(error)


def test_errors_travel() -> None:
    error = refused(layer("batch", 64, 64), precision="f32", dims={"batch": 4096})
    assert "product" in error.where
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == str(error) and other.to_json() == error.to_json()


def test_constants_beyond_all_cores() -> None:
    """Refused before anything is lowered, where nothing can stream them; bf16 halves them."""
    error = refused(layer(1, 640, 640), precision="f32", target=replace(machine("test"), dip_count=0))
    assert error.tensors[0]["bytes"] == 640 * 640 * 4 and "product" in error.where
    assert f"{640 * 640 * 4:,} B  constant" in str(error)
    assert error.amounts["constants, bytes"] >= 640 * 640 * 4 > error.amounts["SRAM for data of all cores, bytes"]


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer("batch", 64, 64), path)
    command = ["compile", str(path), "--target", "test", "--precision", "f32", "--dim", "batch=4096"]
    quick = CliRunner().invoke(app, [*command, "--no-remedies", "--error-format", "json"])
    assert quick.exit_code == DoesNotFit.exit_code
    assert json.loads(quick.stderr)["remedies"] == [] == json.loads(quick.stderr)["tried"]
    tried = CliRunner().invoke(app, [*command, "--error-format", "json"])
    assert tried.exit_code == DoesNotFit.exit_code
    assert {r["change"] for r in json.loads(tried.stderr)["remedies"]} >= {"batch 1", "--target d1-die"}
