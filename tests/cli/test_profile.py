"""`d1c compile --profile`: the passes' times, and what was seen within them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from d1c.cli.profile import Node, Sampler, profile, text
from d1c.errors import D1Error

Cli = Callable[..., Result]


def test_every_pass_is_in_the_table_and_the_json(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    done = cli("compile", model, "--target", "test", "--profile", "--json", out, "-o", tmp_path / "m.d1x")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(out.read_text())
    names = [p["name"] for p in summary["profile"]]
    assert names[:1] == ["import"] and names[-3:] == ["start", "write", "summary"]
    assert names[: -len(["start", "write", "summary"])] == [p["name"] for p in summary["passes"]]
    lines = done.stdout[done.stdout.index("pass  ") :].splitlines()
    assert {"import", "fuse", "distribute", "lower-tile", "all"} <= {x.split()[0] for x in lines}
    rows = sum(p["seconds"] + p["verify_seconds"] for p in summary["profile"])
    assert float(lines[-1].split()[-1]) == pytest.approx(rows, abs=1e-3)


def test_stopped_early(cli: Cli, model: Path) -> None:
    done = cli("compile", model, "--target", "test", "--profile", "--stop-after", "fuse")
    assert done.exit_code == 0 and "fuse" in done.stdout and "lower-tile" not in done.stdout.split("pass  ")[-1]


def test_without_it_nothing_is_added(cli: Cli, model: Path) -> None:
    done = cli("compile", model, "--target", "test")
    assert done.exit_code == 0 and "verifier" not in done.stdout


def test_steps_are_the_larger_callees_and_chains_are_one() -> None:
    tree = Node()
    tree.add(["p", "a", "b", "c"], 6.0)
    tree.add(["p", "a", "b"], 2.0)
    tree.add(["p", "d"], 1.5)
    tree.add(["p", "e"], 0.5)
    rows = profile(tree, [{"name": "p", "seconds": 6.0}, {"name": "p", "seconds": 4.0}], {"write": 1.0})
    assert [(r["name"], r["runs"], r["seconds"]) for r in rows] == [("p", 2, 10.0), ("write", 1, 1.0)]
    assert [(s["depth"], s["name"], s["seconds"]) for s in rows[0]["steps"]] == [
        (0, "b", 8.0), (1, "c", 6.0), (0, "d", 1.5),
    ]  # fmt: skip
    assert "p (2 times)" in text(rows) and "90.9%" in text(rows)


def test_the_sampler_sees_where_time_goes() -> None:
    def busy() -> None:
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            D1Error("a frame of this package").to_json()

    with Sampler(0.001) as sampler:
        busy()
    assert 0.1 < sampler.tree.seconds < 2  # none of it in a pass
    assert not sampler.tree.below
