"""The Python interface: compile, lower, parse, save, run, and the example that walks through the levels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1c
import d1rt
from d1c.errors import ShapeUnbound, UsageError
from d1c.interp_dist import evaluate_dist
from d1c.target.machine import machine

ROOT = Path(__file__).resolve().parents[2]


def chain(batch: int | str = 4) -> onnx.ModelProto:
    """y = softmax(relu(x @ w0) @ w1), seeded."""
    rng = np.random.default_rng(3)
    w0 = numpy_helper.from_array(rng.standard_normal((12, 16)).astype(np.float32), "w0")
    w1 = numpy_helper.from_array(rng.standard_normal((16, 10)).astype(np.float32), "w1")
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w1"], ["c"], "second"),
        helper.make_node("Softmax", ["c"], ["y"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [w0, w1],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def exact(x: np.ndarray) -> np.ndarray:
    """`chain` in float64."""
    rng = np.random.default_rng(3)
    w0, w1 = rng.standard_normal((12, 16)).astype(np.float32), rng.standard_normal((16, 10)).astype(np.float32)
    c = np.maximum(x.astype(np.float64) @ w0, 0) @ w1
    e = np.exp(c - c.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((4, 12)).astype(np.float32)


@pytest.mark.parametrize("target", ["d1-node", "test"])
def test_a_program_computes_what_the_model_says(x: np.ndarray, target: str) -> None:
    program = d1c.compile(chain(), target=target, precision="f32")
    np.testing.assert_allclose(program.run({"x": x}, engine="numpy")["y"], exact(x), atol=1e-6)


def test_saved_and_loaded_programs_give_the_same_bits(x: np.ndarray, tmp_path: Path) -> None:
    program = d1c.compile(chain(), target="test")
    program.save(tmp_path / "p.d1x")
    direct = program.run({"x": x}, engine="numpy")["y"]
    assert d1rt.load(tmp_path / "p.d1x").run({"x": x}, engine="numpy")["y"].tobytes() == direct.tobytes()


def test_models_come_as_files_bytes_and_protos(x: np.ndarray, tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    given = (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), chain(), chain().SerializeToString())
    printed = {str(d1c.compile(m, target="test", stop_after="distribute").module("dist")) for m in given}
    assert len({p.replace(', model = "m.onnx"', "") for p in printed}) == 1


def test_dimensions_are_bound_by_name_or_shape() -> None:
    with pytest.raises(ShapeUnbound):
        d1c.import_onnx(chain("n"))
    by_dim, by_shape = d1c.import_onnx(chain("n"), dims={"n": 3}), d1c.import_onnx(chain("n"), shapes={"x": [3, 12]})
    assert str(by_dim) == str(by_shape)


def test_lowering_step_by_step_gives_what_compile_gives() -> None:
    program = d1c.compile(chain(), target="test", precision="bf16")
    graph = d1c.lower(d1c.import_onnx(chain()), to="graph", precision="bf16", target="test")
    dist = d1c.lower(graph, to="dist", target="test")
    assert str(graph) == str(program.module("graph"))
    assert str(dist) == str(program.module("dist"))
    for level in ("tile", "kern"):
        assert str(d1c.lower(dist, to=level, target="test")) == str(program.module(level))


@pytest.mark.parametrize("level", ["graph", "dist", "tile", "kern"])
def test_print_parse_print_is_a_fixed_point(level: str) -> None:
    text = str(d1c.compile(chain(), target="test").module(level))
    assert str(d1c.parse(text)) == text


def test_lower_goes_down_only() -> None:
    module = d1c.compile(chain(), target="test").module("dist")
    with pytest.raises(UsageError, match="graph"):
        d1c.lower(module, to="graph")
    with pytest.raises(UsageError, match="levels are"):
        d1c.lower(module, to="machine code")


def test_a_machine_may_be_an_object_or_a_name() -> None:
    one, other = (d1c.compile(chain(), target=t).summary() for t in ("test", machine("test")))
    one.pop("passes"), other.pop("passes")
    assert one == other and one["target"] == "test"


def test_progress_tells_every_stage_once() -> None:
    told: list[str] = []
    program = d1c.compile(chain(), target="test", progress=told.append)
    assert told == list(d1c.api.STAGES) == [p["name"] for p in program.passes]


def test_a_stopped_compilation_has_no_program() -> None:
    program = d1c.compile(chain(), target="test", stop_after="fuse")
    assert program.compiled is None and program.module().level == "graph"
    assert "graph.fused" in str(program)
    with pytest.raises(UsageError, match="stopped after fuse"):
        _ = program.target


def test_wrong_options_are_refused() -> None:
    for options in ({"precision": "f8"}, {"stop_after": "nothing"}, {"target": "d1-nope"}, {"print_after": ["x"]}):
        with pytest.raises(UsageError):
            d1c.compile(chain(), **options)  # type: ignore[arg-type]


def test_printing_a_program_prints_its_summary() -> None:
    shown = str(d1c.compile(chain(), target="test"))
    assert "first" in shown and "inferences/s" in shown


def test_the_lowering_example_runs() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/lowering.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same bits as graph") == 3
    for level in ("graph", "dist", "tile", "kern"):
        assert f"d1c.module {level}" in done.stdout


def model(nodes: list[onnx.NodeProto], outputs: list[list[int]], shape: list[int], **constants: object) -> bytes:
    """A model of input x and outputs y0, y1, ... of these shapes, serialised."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, s) for i, s in enumerate(outputs)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("target", ["test", "d1-node"])
@pytest.mark.parametrize("engine", ["jit", "numpy"])
def test_scalar_results_have_no_dims(target: str, engine: str, tmp_path: Path, rng: np.random.Generator) -> None:
    reduce = helper.make_node("ReduceSum", ["x"], ["y0"], keepdims=0)
    keep = helper.make_node("ReduceSum", ["x"], ["k"], keepdims=1)
    nodes = [reduce, keep, helper.make_node("Reshape", ["k", "one"], ["y1"]), helper.make_node("Neg", ["y0"], ["y2"])]
    program = d1c.compile(model(nodes, [[], [1], []], [3, 70], one=[1]), target=target, precision="f32")
    x = {"x": rng.integers(-9, 9, (3, 70)).astype(np.float32)}
    program.save(tmp_path / "p.d1x")
    for run in (program.run, d1rt.load(tmp_path / "p.d1x").run):
        out = run(x, engine=engine)
        assert [out[f"y{i}"].shape for i in range(3)] == [(), (1,), ()]
        assert out["y0"] == out["y1"][0] == -out["y2"] == x["x"].sum()
    assert [p.shape for p in program.target.outputs] == [(), (1,), ()]
    assert evaluate_dist(program.module("dist"), x)["y0"].shape == ()
