"""The right file for the wrong command, and attributes that no op has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import d1c
from d1c.cli.commands import app
from d1c.errors import ImportFailed, UsageError


@pytest.mark.parametrize("command, file, way_out", [("run", "m.onnx", "d1c compile"), ("compile", "m.d1x", "d1c run")])
def test_the_other_command_is_named(command: str, file: str, way_out: str) -> None:
    done = CliRunner().invoke(app, [command, file, "--target", "test"] if command == "compile" else [command, file])
    assert done.exit_code == UsageError.exit_code and way_out in done.stderr


def relu(domain: str = "", **attributes: float) -> onnx.ModelProto:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], "leak", domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_an_attribute_that_onnx_does_not_define() -> None:
    with pytest.raises(ImportFailed, match=r"'beta'(.|\n)*leak"):
        d1c.import_onnx(relu(alpha=0.1, beta=0.1))


def test_a_functions_attributes_are_its_own() -> None:
    model = relu("mine", beta=0.25)
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="beta", type=onnx.AttributeProto.FLOAT))
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "LeakyRelu", ["a"], ["b"], [node], opsets, ["beta"]))
    program = d1c.compile(model, target="test", precision="f32")
    got = program.run({"x": np.array([-4.0, 0.0, 2.0], np.float32)})["y"]
    assert got.tolist() == [-1.0, 0.0, 2.0]
