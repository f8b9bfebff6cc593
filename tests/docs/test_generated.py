"""docs/ops.md and docs/passes.md are what `python -m d1c.docgen` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from d1c.docgen import PAGES, op_rows, pass_rows
from d1c.ops.opdef import load_all

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_fresh(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run python -m d1c.docgen"


def test_every_row_is_on_the_page() -> None:
    page = (DOCS / "ops.md").read_text(encoding="utf-8")
    assert [name for name in load_all() if f"| `{name}` |" not in page] == []


def test_element_types_are_what_the_bodies_take() -> None:
    types = {r.name: set(r.dtypes) for r in op_rows()}
    assert types["graph.exp"] == {"f32", "bf16", "f16"}
    assert types["graph.and"] == {"bool"}
    assert {"i8", "u64", "f32"} < types["graph.add"] and "bool" not in types["graph.add"]
    assert "i32" not in types["graph.hard_swish"]  # 1/6 is no integer


def test_every_row_has_a_line() -> None:
    assert [r.name for r in op_rows() if not r.doc] == []


def test_the_architecture_lists_the_passes_in_order() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \| (\w+) \| ([\w-]+) \| ([\w, ]+) \|", page, re.M)
    assert found == [(str(r.place), r.level_in, r.name, r.level_out) for r in pass_rows() if r.place]


def test_the_architecture_counts_the_graph_ops() -> None:
    assert f"whole tensors, {len(op_rows())} ops" in (DOCS / "architecture.md").read_text(encoding="utf-8")
