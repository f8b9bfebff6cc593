"""A pass is added by one file and its line in the registry: the file of docs/adding-a-pass.md, run in the pipeline."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import d1c.passes as folder
from d1c.interp import evaluate
from d1c.ir.text import parse
from d1c.pipeline import GRAPH_PASSES, PASSES, Pass, run_pipeline

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-pass.md"
NAME = "drop_double_neg"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pass]:
    """The page's pass, registered, its file in a folder that continues d1c/passes."""
    found = re.search(rf"`d1c/passes/{NAME}\.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert found
    (tmp_path / f"{NAME}.py").write_text(found[1])
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    made = Pass(NAME.replace("_", "-"), "graph", "graph")
    monkeypatch.setitem(PASSES, made.name, made)
    yield made
    sys.modules.pop(f"d1c.passes.{NAME}", None)
    if hasattr(folder, NAME):
        delattr(folder, NAME)


def test_example_of_the_docstring(added: Pass) -> None:
    example = re.search(r"Before:\n(.*?)\nAfter:\n(.*?)\nExact", added.doc, re.S)
    assert example
    before, after = map(textwrap.dedent, example.groups())
    assert str(added.run(parse(before))).strip() == after.strip()


def test_in_the_pipeline_it_runs_and_keeps_the_bits(added: Pass) -> None:
    module = parse("""
    d1c.module graph {outputs = ["y"]} {
      func @main(%x: tensor<4xf32>) {
        %a = graph.neg(%x) : tensor<4xf32>
        %b = graph.neg(%a) : tensor<4xf32>
        %y = graph.exp(%b) : tensor<4xf32>
        graph.return(%y)
      }
    }""")
    order = ("fold-constants", added.name, *GRAPH_PASSES[1:])
    both = (run_pipeline(module, names, options={"policy": "f32"}).module for names in (order, GRAPH_PASSES))
    with_it, without = both
    assert "graph.neg" in str(without) and "graph.neg" not in str(with_it)
    x = {"x": np.array([1.5, -0.0, np.inf, -3], np.float32)}
    assert evaluate(with_it, x)["y"].tobytes() == evaluate(without, x)["y"].tobytes()
