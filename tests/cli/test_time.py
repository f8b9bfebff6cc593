"""`d1c time` from the command line: report, JSON, trace, sweep, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Cli = Callable[..., Result]


@pytest.fixture
def binary(cli: Cli, model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.d1x"
    assert cli("compile", model, "--target", "test", "-o", path).exit_code == 0
    return path


def test_report_json_and_trace(cli: Cli, binary: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "time.json", tmp_path / "trace.json"
    done = cli("time", binary, "--json", out, "--trace", trace, "--sweep", "c0=50,100,200", "--sweep", "hop=4")
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert {"cycles", "closed_form_cycles", "lower_bound_cycles", "layers", "resources", "path"} <= set(found)
    assert sum(x["cycles"] for x in found["layers"]) == found["cycles"] >= found["lower_bound_cycles"] > 0
    c0 = [x["cycles"] for x in found["sweep"] if x["field"] == "launch_cycles"]
    assert c0[0] < c0[1] == found["cycles"] < c0[2]
    assert found["sweep"][3]["field"] == "hop_cycles" and found["sweep"][3]["cycles"] >= found["cycles"]
    for words in ("closed form", "critical path:", "matrix", "launch_cycles", "event-driven"):
        assert words in done.stdout
    events = json.loads(trace.read_text())["traceEvents"]
    assert any(e["ph"] == "X" and "product" in e["name"] for e in events)  # named by ONNX node


def test_refusals(cli: Cli, binary: Path, tmp_path: Path) -> None:
    for flag in ("c0", "c0=", "c0=a", "name=3", "sram_bytes=3", "nothing=1"):
        assert cli("time", binary, "--sweep", flag).exit_code == 2, flag
    for value in ("hop=-1", "link=0", "c0=0.5"):
        assert cli("time", binary, "--sweep", value).exit_code == 2, value
    assert cli("time", binary, "--json", binary).exit_code == 2
    assert cli("time", binary, "--trace", tmp_path / "none" / "x.json").exit_code == 2
    broken = tmp_path / "broken.d1x"
    broken.write_bytes(binary.read_bytes()[:200])
    refused = cli("time", broken, "--error-format", "json")
    assert refused.exit_code == 11 and json.loads(refused.stderr)["error"] == "LoadError"
