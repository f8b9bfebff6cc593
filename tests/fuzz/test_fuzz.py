"""Graphs that once failed, run for ever; and random ones. `python -m tests.fuzz` runs as many as you like."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import d1c.backend
from d1c.errors import UnsupportedOp
from tests.fuzz.check import BAD, check, make, shrink
from tests.fuzz.found import FOLDER, load
from tests.fuzz.ops import OPS
from tests.fuzz.oracle import evaluate_graph, mismatch
from tests.fuzz.spec import Graph, Node

FOUND = sorted(FOLDER.glob("*.onnx"))
EXAMPLES = 60


@pytest.mark.parametrize("engine", ["numpy", "jit"])
@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_what_once_failed(path: Path, engine: str) -> None:
    model, inputs, want = load(path)
    rep = d1c.backend.D1Rep(model, "test", "f32", engine)
    for name, got in zip(rep.outputs, rep.run(inputs), strict=True):
        assert not mismatch(np.asarray(got), want[name]), model.doc_string


@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_graphs(seed: int) -> None:
    graph = make(random.Random(seed))
    verdict = check(graph, seed)
    note(f"python -m tests.fuzz --seed {seed} --count 1\n{graph}")
    assert verdict.status not in BAD, verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_many_random_graphs(block: int) -> None:
    for seed in range(1_000_000 + 250 * block, 1_000_000 + 250 * (block + 1)):
        graph = make(random.Random(seed))
        verdict = check(graph, seed, "jit" if seed % 10 == 0 else "numpy")
        assert verdict.status not in BAD, f"seed {seed}: {verdict.reason}\n{graph}"


def test_a_seed_gives_one_graph() -> None:
    assert str(make(random.Random(5))) == str(make(random.Random(5)))


def test_every_op_is_drawn() -> None:
    rng = random.Random(0)
    for op in OPS:
        assert any(n.op == op for _ in range(20) for n in make(rng, (op,)).nodes), op


def test_the_tolerance_covers_cancellation_and_no_more() -> None:
    """(x + 1e4) - 1e4 may lose 13 bits, a plain sum none."""
    x = np.array([0.123456], np.float32)
    big = np.array([1e4], np.float32)
    nodes = (Node("Add", ("x", "b"), ("s",), noise=1.0), Node("Sub", ("s", "b"), ("y",), noise=1.0))
    want = evaluate_graph(Graph(21, nodes, {"x": x}, {"b": big}, ("y",)), 0)
    assert 1e-4 < float(want["y"].tolerance[0]) < 1e-1
    assert not mismatch(x, want["y"])
    assert mismatch(x + 1, want["y"])


def test_comparisons_of_nearly_equal_numbers_are_not_compared() -> None:
    x = np.array([1.0, 2.0], np.float32)
    nodes = (
        Node("Exp", ("x",), ("e",), noise=12.0),
        Node("Log", ("e",), ("l",), noise=12.0),
        Node("Less", ("l", "x"), ("y",)),
        Node("Less", ("x", "two"), ("z",)),
    )
    graph = Graph(21, nodes, {"x": x}, {"two": np.array([2.0], np.float32)}, ("y", "z"))
    want = evaluate_graph(graph, 0, versions=24)
    assert want["y"].undefined.all() and not want["z"].undefined.any()


def test_a_failing_graph_is_cut_down() -> None:
    """A pretended bug: everything with a Neg of a negative number fails."""
    rng = random.Random(3)
    graph = make(rng, ("Neg", "Add", "Transpose", "Concat"))
    while not (len(graph.nodes) >= 4 and _pretended(graph)):
        graph = make(rng, ("Neg", "Add", "Transpose", "Concat"))
    small = shrink(graph, _pretended)
    assert [n.op for n in small.nodes] == ["Neg"]
    assert sum(a.size for a in (*small.inputs.values(), *small.constants.values())) <= 4


def _pretended(graph: Graph) -> bool:
    values = evaluate_graph(graph, 0, versions=2)
    return any(n.op == "Neg" and (values[n.outputs[0]].value > 0).any() for n in graph.nodes)


def test_verdicts_tell_refusals_from_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(21, (Node("Neg", ("x",), ("y",)),), {"x": np.ones(2, np.float32)}, {}, ("y",))
    assert check(graph).status == "same"
    answers = {"refused": UnsupportedOp("no"), "crash": KeyError("no"), "wrong": None}
    for status, error in answers.items():

        def run(self: object, inputs: object, error: Exception | None = error) -> list[np.ndarray]:
            if error is not None:
                raise error
            return [np.ones(2, np.float32)]

        monkeypatch.setattr(d1c.backend.D1Rep, "run", run)
        assert check(graph).status == status
    assert "refused" not in BAD and {"crash", "wrong"} <= set(BAD)
