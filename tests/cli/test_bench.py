"""`d1c bench`: what it reports, and what it refuses before anything runs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from d1c.cli.bench import made_up
from d1c.cli.bench_sides import Emulated, Side
from d1c.errors import D1Error
from d1c.target.mesh import Layout
from d1c.target.program import Port

from .test_compile import refused

Cli = Callable[..., Result]
SMALL = ("--target", "test", "--precision", "f32", "--rounds", 3, "--threads", 1)


def test_the_report_and_the_json(cli: Cli, model: Path, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "r.json"
    done = cli("bench", model, "--inputs", inputs, "--against", "onnxruntime", "--json", out, *SMALL)
    assert done.exit_code == 0, done.stderr
    r = json.loads(out.read_text())
    assert r["ratio"] == pytest.approx(r["peer_ms"] / r["d1c_ms"])
    for side in ("d1c", "bound", "peer"):
        assert 0 < r[f"{side}_ms_min"] <= r[f"{side}_ms"] <= r[f"{side}_ms_max"]
    assert r["peak_rss_bytes"] > 1 << 24 and r["threads"] == 1 and r["rounds"] == 3
    assert r["host"]["cpu"] and r["target"] == "test" and r["precision"] == "f32" and r["batch"] == 4
    for words in ("emulator", "its kernels alone", "onnxruntime", "ratio", "peak memory", r["host"]["cpu"]):
        assert words in done.stdout


def test_without_a_peer_and_inputs(cli: Cli, model: Path, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = cli("bench", model, "--program", program, "--rounds", 2, "--threads", 1, "--json", out)
    assert done.exit_code == 0, done.stderr
    r = json.loads(out.read_text())
    assert r["ratio"] is None and r["peer_ms"] is None and r["inputs_made_up"] and "compile_seconds" not in r
    assert "ratio" not in done.stdout and "inputs made up" in done.stdout


def test_a_missing_peer_names_the_extra(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(cli("bench", model, "--against", "onnxruntime", *SMALL), 2, "d1c[bench]")


def test_refusals(cli: Cli, model: Path, program: Path, inputs: Path, tmp_path: Path) -> None:
    refused(cli("bench", model, "--against", "elsewhere"), 2, "elsewhere", "onnxruntime")
    refused(cli("bench", program), 2, "--program")
    refused(cli("bench", model, "--program", program, "--dim", "batch=4"), 2, "--program")
    refused(cli("bench", tmp_path / "none.onnx", "--target", "test"), 3, "none.onnx")
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 6), np.float32))
    refused(cli("bench", model, "--program", program, "--inputs", tmp_path / "wrong.npz"), 12, "[3, 6]", "[4, 6]")


def test_made_up_inputs_suit_their_ports() -> None:
    ports = {n: Port(n, 0, (3,), n, Layout.parse("[0]")) for n in ("f32", "i64", "bool")}
    arrays = made_up(ports)
    assert {str(a.dtype) for a in arrays.values()} == {"float32", "int64", "bool"}
    assert not arrays["i64"].any() and arrays["f32"].std() > 0


def test_a_side_that_refuses_is_told(tmp_path: Path) -> None:
    side = Side(Emulated(tmp_path / "none.d1x", tmp_path / "none.npz", 1))
    try:
        with pytest.raises(D1Error, match=r"none\.d1x"):
            side.start()
    finally:
        side.kill()
