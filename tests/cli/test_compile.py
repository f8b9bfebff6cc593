"""`d1c compile`: programs, summaries, text of the levels, and every refusal that concerns files and flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import Result

from d1c.ir.text import parse

from .conftest import expected, perceptron

Cli = Callable[..., Result]


def test_the_summary_says_what_each_layer_costs_and_the_totals(cli: Cli, model: Path) -> None:
    done = cli("compile", model, "--target", "test")
    assert done.exit_code == 0, done.stderr
    for word in (
        "product",
        "nodes",
        "SRAM",
        "cycles",
        "bound",
        "binds",
        "NoC",
        "inferences/s",
        "% of peak",
        "% of the bound",
        "cold weight load",
        "DIP HBM",
        "host ops: none",
    ):
        assert word in done.stdout, word
    assert done.stderr == "", "no progress where stderr is no terminal"


def test_the_json_has_the_documented_keys_and_consistent_numbers(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("compile", model, "--target", "test", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads((tmp_path / "s.json").read_text())
    assert {"nodes_used", "host_ops", "sram_peak_bytes", "flops", "cycles", "layers", "passes"} <= set(summary)
    assert {"folded", "target", "precision", "version"} <= set(summary)
    assert summary["host_ops"] == []
    assert (summary["target"], summary["precision"], summary["batch"]) == ("test", "bf16", 4)
    assert summary["flops"] == 2 * 4 * 5 * 6, "one multiply-add counts two"
    assert summary["cycles"] == sum(x["cycles"] for x in summary["layers"])
    assert summary["time_us"] == pytest.approx(summary["cycles"] / 2e9 * 1e6, rel=1e-3)
    assert 0 < summary["nodes_used"] <= 16 and all(x["nodes_used"] <= 16 for x in summary["layers"])
    assert summary["sram_peak_bytes"] <= summary["sram_bytes"] == 65_536
    assert all(x["cycles"] >= x["bound_cycles"] >= 0 for x in summary["layers"])
    names = [p["name"] for p in summary["passes"]]
    assert names[0] == "import" and names[-2:] == ["distribute", "lower-tile"] and "fuse" in names
    assert all(p["seconds"] >= 0 for p in summary["passes"])


def test_compile_and_run_in_one_command(cli: Cli, model: Path, inputs: Path, tmp_path: Path) -> None:
    done = cli(
        "compile",
        model,
        "-o",
        tmp_path / "p.d1x",
        "--target",
        "test",
        "--precision",
        "f32",
        "--run",
        "--inputs",
        inputs,
        "--outputs",
        tmp_path / "out.npz",
        "--engine",
        "numpy",
    )
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "p.d1x").exists()
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected(np.load(inputs)["x"]), atol=1e-5)


def test_the_same_command_writes_the_same_bytes(cli: Cli, model: Path, tmp_path: Path) -> None:
    for name in ("a.d1x", "b.d1x"):
        assert cli("compile", model, "-o", tmp_path / name, "--target", "test").exit_code == 0
    assert (tmp_path / "a.d1x").read_bytes() == (tmp_path / "b.d1x").read_bytes()


@pytest.mark.parametrize("level", ["graph", "dist", "tile", "kern"])
def test_emit_prints_a_module_that_parses_to_the_same_text(cli: Cli, model: Path, level: str) -> None:
    done = cli("compile", model, "--target", "test", "--emit", level)
    assert done.exit_code == 0, done.stderr
    module = parse(done.stdout)
    assert module.level == level
    assert str(module).strip() == done.stdout.strip()


def test_stop_after_prints_the_module_of_that_point(cli: Cli, model: Path) -> None:
    early, late = (cli("compile", model, "--target", "test", "--stop-after", name) for name in ("import", "fuse"))
    assert early.exit_code == late.exit_code == 0, early.stderr + late.stderr
    assert "graph.fused" not in early.stdout and "graph.fused" in late.stdout
    assert parse(early.stdout).level == parse(late.stdout).level == "graph"


def test_print_after_prints_in_between(cli: Cli, model: Path) -> None:
    done = cli("compile", model, "--target", "test", "--print-after", "fuse", "--print-after", "distribute")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.index("// after fuse") < done.stdout.index("// after distribute")


def test_symbolic_dimensions_are_bound_by_either_flag(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "symbolic.onnx"
    onnx.save(perceptron("batch"), path)
    by_dim = cli("compile", path, "--target", "test", "--dim", "batch=2", "--emit", "graph")
    by_shape = cli("compile", path, "--target", "test", "--shape", "x=2,6", "--emit", "graph")
    assert by_dim.exit_code == by_shape.exit_code == 0, by_dim.stderr + by_shape.stderr
    assert by_dim.stdout == by_shape.stdout


def test_a_machine_from_a_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text('base = "test"\nsram_bytes = 32768\n')
    done = cli("compile", model, "--target", tmp_path / "small.toml", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["sram_bytes"] == 32768


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(done: Result, code: int, *words: str) -> None:
    """A refusal: exit code, one block on stderr with these words and a remedy, nothing on stdout, no traceback."""
    assert done.exit_code == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr and "bug of d1c" not in done.stderr
    for word in (*words, "remedy"):
        assert word in done.stderr, f"{word!r} is not in\n{done.stderr}"


def test_a_file_that_is_not_onnx(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text("These are not the layers that you are looking for.\n")
    refused(cli("compile", path), 3, "notes.onnx", "not an ONNX file")


def test_a_missing_file(cli: Cli, tmp_path: Path) -> None:
    refused(cli("compile", tmp_path / "none.onnx"), 3, "none.onnx")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file(cli: Cli, model: Path, share: float) -> None:
    data = model.read_bytes()
    model.write_bytes(data[: int(len(data) * share)])
    refused(cli("compile", model), 3, "truncated")


def test_an_unknown_op_names_the_node(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(perceptron(op="Frobnicate", domain="com.example"), path)
    refused(cli("compile", path), 4, "Frobnicate", "last")


def test_an_unbound_dimension_shows_the_flag(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "symbolic.onnx"
    onnx.save(perceptron("batch"), path)
    refused(cli("compile", path), 5, "x[batch,6]", "--dim batch=")


def test_a_model_that_does_not_fit_says_what_how_much_and_where(cli: Cli, tmp_path: Path) -> None:
    w = numpy_helper.from_array(np.zeros((2048, 2048), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "wide")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2048])],
        [w],
    )
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (tmp_path / "far.toml").write_text('base = "test"\ndip_count = 0\n')  # nothing to stream from
    done = cli("compile", path, "--target", tmp_path / "far.toml", "-o", tmp_path / "wide.d1x")
    refused(done, 9, "does not fit", "amounts", "far")
    assert not (tmp_path / "wide.d1x").exists()


def test_a_machine_without_a_second_thread(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('base = "test"\nthreads = 1\n')
    refused(cli("compile", model, "--target", tmp_path / "one.toml"), 9, "3 threads", "machine one")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "d2"], ["d2", "d1-tile"]),
        (["--precision", "f8"], ["f8", "bf16"]),
        (["--shape", "x:1,2"], ["NAME=NUMBERS"]),
        (["--shape", "x=4"], ["x=4", "the model's input has 2: 4,6"]),
        (["--shape", "x=-1,6"], ["at least 0"]),
        (["--engine", "abacus"], ["numpy"]),
        (["--dim", "batch=many"], ["NAME=NUMBER"]),
        (["--dim", "batch=2"], ["batch"]),
        (["--emit", "llvm"], ["llvm", "graph"]),
        (["--stop-after", "fold"], ["fold", "fold-constants"]),
        (["--run"], ["--inputs"]),
        (["-o", "/nowhere/at/all/p.d1x"], ["/nowhere/at/all"]),
    ],
)
def test_wrong_flags(cli: Cli, model: Path, flags: list[str], words: list[str]) -> None:
    done = cli("compile", model, *flags)
    assert done.exit_code == 2, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr


def test_errors_as_json(cli: Cli, tmp_path: Path) -> None:
    done = cli("compile", tmp_path / "none.onnx", "--error-format", "json")
    assert done.exit_code == 3
    error = json.loads(done.stderr)
    assert (error["error"], error["exit_code"]) == ("ImportFailed", 3)
    assert "none.onnx" in error["message"] and error["remedy"]


def test_an_unexpected_error_is_reported_as_a_bug(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("d1c.api.compile", broken)
    done = cli("compile", model)
    assert done.exit_code == 1
    assert "bug of d1c" in done.stderr and "ZeroDivisionError" in done.stderr and "--debug" in done.stderr
    assert "Traceback" not in done.stderr
    assert isinstance(cli("compile", model, "--debug").exception, ZeroDivisionError)


def test_freeze(cli: Cli, tmp_path: Path) -> None:
    """What decides shapes is given with --freeze; the refusal without it says how."""
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], name="view")]
    infos = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 6]),
        onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name="y")])
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    refused = cli("compile", path, "--target", "test")
    assert refused.exit_code == 4 and "--freeze shape=..." in refused.stderr
    np.save(tmp_path / "s.npy", np.array([3, 4]))
    (tmp_path / "empty.npy").touch()
    for value in ("3,4", "[3,-1]", tmp_path / "s.npy"):
        done = cli("compile", path, "--target", "test", "--freeze", f"shape={value}", "--stop-after", "import")
        assert done.exit_code == 0 and "tensor<3x4xf32>" in done.stdout, done.stderr
    for value in ("3,x", "none.npy", "3.5,1", "[[3,4]]", tmp_path / "empty.npy"):
        assert cli("compile", path, "--target", "test", "--freeze", f"shape={value}").exit_code == 2
