"""`d1c run`: outputs, inputs that do not fit, damaged programs, the comparison with onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import Result

from d1c.cli.shell import write_file
from d1c.errors import UsageError

from .conftest import expected, perceptron
from .test_compile import refused

Cli = Callable[..., Result]


@pytest.mark.parametrize("extra", [[], ["--shuffle", 3], ["--engine", "jit", "--threads", 2]])
def test_the_outputs_are_the_models(cli: Cli, program: Path, inputs: Path, tmp_path: Path, extra: list[object]) -> None:
    out = tmp_path / "out.npz"
    done = cli("run", program, "--inputs", inputs, "--outputs", out, "--engine", "numpy", *extra)
    assert done.exit_code == 0, done.stderr
    y = np.load(out)
    assert y.files == ["y"] and y["y"].dtype == np.float32
    np.testing.assert_allclose(y["y"], expected(np.load(inputs)["x"]), atol=1e-5)
    assert done.stderr == ""


def test_the_json_has_times_and_the_summary(cli: Cli, program: Path, inputs: Path, tmp_path: Path) -> None:
    done = cli("run", program, "--inputs", inputs, "--engine", "numpy", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["cycles"] > 0 and report["run"]["engine"] == "numpy"
    assert report["run"]["run_seconds"] > 0 and report["run"]["peak_memory_bytes"] > 1 << 20


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros((4, 6), np.float32)}, ["'z'", "x f32[4, 6]"]),
        ({}, ["'x'"]),
        ({"x": np.zeros((3, 6), np.float32)}, ["'x'", "[3, 6]", "[4, 6]"]),
        ({"x": np.zeros((4, 6), np.float64)}, ["'x'", "float64", "float32"]),
    ],
)
def test_wrong_inputs(cli: Cli, program: Path, tmp_path: Path, arrays: dict[str, np.ndarray], words: list[str]) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    done = cli(
        "run", program, "--inputs", tmp_path / "wrong.npz", "--outputs", tmp_path / "out.npz", "--engine", "numpy"
    )
    refused(done, 12, *words)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not really", b"hello"])
def test_inputs_that_are_no_npz(cli: Cli, program: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "wrong.npz").write_bytes(data)
    refused(cli("run", program, "--inputs", tmp_path / "wrong.npz"), 12, "wrong.npz", "savez")
    refused(cli("run", program, "--inputs", tmp_path / "none.npz"), 12, "none.npz")


def test_a_program_that_is_not_there(cli: Cli, inputs: Path, tmp_path: Path) -> None:
    done = cli("run", tmp_path / "none.d1x", "--inputs", inputs)
    assert done.exit_code in (2, 11) and "none.d1x" in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_program(cli: Cli, program: Path, inputs: Path, share: float) -> None:
    data = program.read_bytes()
    program.write_bytes(data[: int(len(data) * share)])
    refused(cli("run", program, "--inputs", inputs, "--engine", "numpy"), 11, program.name)


def test_corrupt_programs_are_refused_or_harmless(cli: Cli, program: Path, inputs: Path) -> None:
    """One byte changed anywhere: refused as corrupt (checksums cover all content)."""
    data = program.read_bytes()
    for position in np.linspace(0, len(data) - 1, 23).astype(int):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        program.write_bytes(bytes(damaged))
        done = cli("run", program, "--inputs", inputs, "--engine", "numpy")
        assert done.exit_code == 11, f"byte {position}: {done.exit_code} {done.stdout}{done.stderr}"
        assert "remedy" in done.stderr


def test_inputs_in_an_npy(cli: Cli, program: Path, tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros((4, 6), np.float32))
    refused(cli("run", program, "--inputs", tmp_path / "x.npz"), 12, "x.npz", "one array without a name", "savez")


def test_an_output_never_replaces_an_input_another_output_or_a_device(
    cli: Cli, model: Path, program: Path, inputs: Path, tmp_path: Path
) -> None:
    before = [path.read_bytes() for path in (model, program, inputs)]
    for flags in (["-o", model], ["--json", model.parent / "." / model.name]):
        refused(cli("compile", model, "--target", "test", *flags), 2, "this command reads it")
    for path in (program, inputs):
        refused(cli("run", program, "--inputs", inputs, "--outputs", path), 2, "this command reads it")
    assert [path.read_bytes() for path in (model, program, inputs)] == before
    both = tmp_path / "both"
    refused(cli("compile", model, "--target", "test", "-o", both, "--json", both), 2, "another output")
    refused(cli("compile", model, "--target", "test", "--json", "/dev/null"), 2, "a device")
    assert not both.exists()


def test_an_output_that_is_a_folder_is_refused_first(cli: Cli, program: Path, inputs: Path, tmp_path: Path) -> None:
    for flag in ("--outputs", "--json"):
        refused(cli("run", program, "--inputs", inputs, flag, tmp_path), 2, "it is a folder")


def test_a_file_that_cannot_be_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_file(tmp_path, lambda file: file.write(b"x"))
    assert list(tmp_path.parent.glob("*.part")) == []


def test_check_with_another_model(cli: Cli, program: Path, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = ("run", program, "--inputs", inputs, "--engine", "numpy", "--check")
    refused(cli(*run, tmp_path / "none.onnx"), 2, "none.onnx", "compiled from")
    (tmp_path / "text.onnx").write_text("not a model")
    done = cli(*run, tmp_path / "text.onnx")
    assert done.exit_code == 3 and "not an ONNX file" in done.stderr
    import onnx

    other = perceptron()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    onnx.save(other, tmp_path / "other.onnx")
    done = cli(*run, tmp_path / "other.onnx")
    assert done.exit_code == 2 and "other.onnx" in done.stderr and "compiled from" in done.stderr


def test_check_of_a_model_with_a_frozen_input(cli: Cli, tmp_path: Path) -> None:
    opsets = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.parser.parse_graph("g (float[2, 3] x, int64[1] to) => (float[6] y) { y = Reshape(x, to) }")
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    out = tmp_path / "m.d1x"
    assert not cli("compile", tmp_path / "m.onnx", "--target", "test", "--freeze", "to=6", "-o", out).exit_code
    done = cli("run", out, "--inputs", tmp_path / "x.npz", "--check", tmp_path / "m.onnx")
    assert done.exit_code == 2 and "no input to" in done.stderr and "initializers" in done.stderr


def test_wrong_flags(cli: Cli, program: Path, inputs: Path) -> None:
    done = cli("run", program)
    assert done.exit_code == 2 and "--inputs" in done.stderr
    done = cli("run", program, "--inputs", inputs, "--engine", "abacus")
    assert done.exit_code == 2 and "abacus" in done.stderr and "numpy" in done.stderr
    assert cli("run", program, "--inputs", inputs, "--shuffle", "-1").exit_code == 2


def test_check_agrees_with_onnxruntime(cli: Cli, program: Path, model: Path, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = cli("run", program, "--inputs", inputs, "--engine", "numpy", "--check", model, "--json", tmp_path / "c.json")
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "isolated: no layer diverges" in done.stdout and "accumulated: no layer diverges" in done.stdout
    check = json.loads((tmp_path / "c.json").read_text())["check"]
    assert check["compared"] >= 1
    (last,) = (x for x in check["layers"] if x["name"] == "y")
    assert last["accumulated"]["error"] < 1e-6 and last["isolated"]["error"] < 1e-6


def test_check_names_the_first_layer_that_diverges(cli: Cli, program: Path, model: Path, inputs: Path) -> None:
    """The model's weights change after compiling: the program's first layer is then wrong."""
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import numpy_helper

    other = onnx.load(model)
    w = other.graph.initializer[0]
    w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w) * 1.05 + 0.1, "w"))
    onnx.save(other, model)
    done = cli("run", program, "--inputs", inputs, "--engine", "numpy", "--check", model)
    assert done.exit_code == 1
    assert "accumulated: first divergence at y" in done.stdout
    assert "diverges" in done.stderr and "layer y" in done.stderr
