"""The harness itself: comparison, freezing, the resumable results, the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.conformance import report, results
from tests.conformance.cases import Case
from tests.conformance.frozen import unjustified
from tests.conformance.run import Outcome, difference


@pytest.fixture
def outcomes(suite: tuple[Case, ...]) -> dict[str, Outcome]:
    """As if every tenth case were refused and every ninth folded."""
    made = {}
    for i, case in enumerate(suite):
        machine, engine = report.setting(case)
        status = "refused" if i % 10 == 0 else "folded" if i % 9 == 0 else "passed"
        made[results.key(case, machine, engine)] = Outcome(case.node, status, machine=machine, engine=engine)
    return made


def test_counts_and_page_follow_from_outcomes(suite: tuple[Case, ...], outcomes: dict[str, Outcome]) -> None:
    data = report.gather(suite, outcomes)
    rows = data["categories"].values()
    assert sum(r["cases"] for r in rows) == len(suite)
    assert sum(r["passed"] + r["folded"] + r["refused"] for r in rows) == len(suite)
    assert len(data["not_passed"]) == sum(r["folded"] + r["refused"] for r in rows)
    relu = [c for c in suite if ("", "Relu") in c.ops]
    assert data["ops"]["Relu"][2] == len(relu)
    page = report.page(data)
    assert "| plain tensors | 1865 |" in page and "onnxruntime" in page
    assert page == report.page(report.gather(suite, dict(reversed(outcomes.items()))))


def test_no_report_without_all_outcomes(suite: tuple[Case, ...], outcomes: dict[str, Outcome]) -> None:
    outcomes.popitem()
    with pytest.raises(ValueError, match="1 of"):
        report.gather(suite, outcomes)


def test_results_survive_an_interrupted_write(tmp_path: Path, suite: tuple[Case, ...]) -> None:
    first = Outcome(suite[0].node, "refused", "no", 0.5, ("axes",), (), "test", "numpy")
    results.append(tmp_path, suite[0], first)
    with (tmp_path / results.FILE).open("a") as file:
        file.write('{"key": "half')
    assert results.read(tmp_path) == {results.key(suite[0], "test", "numpy"): first}


@pytest.mark.parametrize(
    ("got", "expected", "what"),
    [
        (np.float32([1, 2]), np.float32([1, 2.0005]), ""),
        (np.float32([1, 2]), np.float32([1, 2.1]), "1 of 2"),
        (np.float32([np.nan]), np.float32([np.nan]), ""),
        (np.int64([1]), np.int64([2]), "1 of 1"),
        (np.int32([1]), np.int64([1]), "int32[1] instead of int64[1]"),
        (np.float32([[1]]), np.float32([1]), "float32[1, 1] instead of float32[1]"),
        ([np.int64(1)], [np.int64(1), np.int64(2)], "sequence of 2"),
        ([np.int64(1), np.int64(3)], [np.int64(1), np.int64(2)], "[1]"),
        (None, None, ""),
        (np.int64(1), None, "instead of nothing"),
    ],
)
def test_comparison(got: object, expected: object, what: str) -> None:
    text = difference(got, expected, 1e-3, 1e-7)
    assert text == "" if not what else what in text


def test_only_what_decides_shapes_may_be_frozen() -> None:
    nodes = [
        helper.make_node("Mul", ["s", "s"], ["t"]),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
        helper.make_node("Add", ["y", "z"], ["w"]),
    ]
    ports = [("x", TensorProto.FLOAT, [4]), ("s", TensorProto.INT64, [1]), ("z", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*p) for p in ports], [onnx.ValueInfoProto(name="w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert unjustified(model, ("s",)) == ()
    assert unjustified(model, ("s", "z")) == ("z",)
    assert unjustified(model, ("x",)) == ("x",)
