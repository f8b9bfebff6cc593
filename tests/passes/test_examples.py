"""The Before/After examples in the passes' docstrings are executed."""

from __future__ import annotations

import re
import textwrap
from itertools import pairwise

import pytest

from d1c.errors import UsageError
from d1c.ir.text import parse
from d1c.ir.verify import verify
from d1c.passes import distribute
from d1c.pipeline import LOWERINGS, PASSES, PIPELINE, run_pipeline
from d1c.target.machine import machine

EXAMPLE = re.compile(r"^Before:\n((?:    .*\n|\n)+?)\nAfter:\n((?:    .*\n|\n)+?)(?=\n?^\S|\Z)", re.M)
OPTIONS = {"precision": {"policy": "bf16"}}
GRAPH = [p for p in PASSES.values() if p.level_in == p.level_out == "graph"]


@pytest.mark.parametrize("chosen", GRAPH, ids=lambda p: p.name)
def test_example_of_the_docstring(chosen) -> None:
    examples = EXAMPLE.findall(chosen.doc + "\n")
    assert examples, f"{chosen.name} has no Before/After example"
    for before, after in examples:
        module = parse(textwrap.dedent(before))
        verify(module)
        result = chosen.run(module, **OPTIONS.get(chosen.name, {}))
        verify(result, after=chosen.name)
        assert str(result).strip() == textwrap.dedent(after).strip()


def test_example_of_distribute() -> None:
    """Distribution takes a machine, and its lines are too long for a docstring: they may be broken where spaces are."""
    ((before, after),) = EXAMPLE.findall((distribute.__doc__ or "") + "\n")
    module = parse(textwrap.dedent(before))
    verify(module)
    result = distribute.run(module, machine("test"))
    verify(result, after="distribute")
    assert str(result).split() == after.split()


def test_the_pipeline_names_passes_and_their_levels_meet() -> None:
    steps = [PASSES[name] for name in PIPELINE]
    assert all(a.level_out == b.level_in for a, b in pairwise(steps))
    assert all(p.summary for p in steps)


def test_the_lowerings_are_passes_like_others() -> None:
    ((before, _),) = EXAMPLE.findall((distribute.__doc__ or "") + "\n")
    module, target = parse(textwrap.dedent(before)), machine("test")
    printed: list[tuple[str, str]] = []
    done = run_pipeline(
        module, LOWERINGS, options={"machine": target}, print_after=("lower-tile",),
        on_print=lambda name, m: printed.append((name, m.level)),
    )  # fmt: skip
    stopped = run_pipeline(module, LOWERINGS, options={"machine": target}, stop_after="distribute")
    assert str(done.module) == str(stopped.module) and stopped.program is None
    assert done.module.level == "dist" and done.program is not None
    assert [m.level for m in done.modules()] == ["tile", "kern"]
    assert printed == [("lower-tile", "tile"), ("lower-tile", "kern")]
    with pytest.raises(UsageError, match="needs a machine"):
        run_pipeline(module, LOWERINGS)
    with pytest.raises(UsageError, match="at level tile"):
        run_pipeline(module, (*LOWERINGS, "fuse"), options={"machine": target})
