"""The comparison with onnxruntime: what counts as the same, and which tensors are matched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import d1c
from d1c import check

from .test_api import chain


def test_differences_are_measured_against_the_largest_value() -> None:
    d = check.compare(np.array([1.0, 2.0, 4.1]), np.array([1.0, 2.0, 4.0]))
    assert d.error == pytest.approx(0.025) and d.finite and d.correlation > 0.99 and not d.scaled
    assert check.compare(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])).finite
    assert not check.compare(np.array([np.nan, 1.0]), np.array([0.0, 1.0])).finite
    assert check.compare(np.array([3.0, 6.0, 9.0]), np.array([1.0, 2.0, 3.0])).scaled


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_all_named_layers_agree(precision: str, tmp_path: object, rng: np.random.Generator) -> None:
    pytest.importorskip("onnxruntime")
    path = f"{tmp_path}/m.onnx"
    onnx.save(chain(), path)
    program = d1c.compile(path, target="test", precision=precision)
    x = rng.standard_normal((4, 12)).astype(np.float32)
    report = check.check_program(program.target, path, {"x": x}, engine="numpy")
    by_name = {r.name: r for r in report.layers}
    assert {"b", "c", "y"} <= set(by_name)
    assert report.first("isolated") is None and report.first("accumulated") is None
    assert all(by_name[n].accumulated is not None and by_name[n].isolated is not None for n in ("b", "c", "y"))
    report.raise_for_divergence()


def test_an_isolated_error_is_found_where_it_is(
    tmp_path: object, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference interpreter is made wrong for one layer: that one diverges, those behind it do not."""
    pytest.importorskip("onnxruntime")
    path = f"{tmp_path}/m.onnx"
    onnx.save(chain(), path)
    program = d1c.compile(path, target="test", precision="f32")
    real = check.eval_op

    def wrong(op: object, *args: object) -> object:
        results = real(op, *args)  # type: ignore[arg-type]
        return [r + np.float32(1) for r in results] if op.result.name == "b" else results  # type: ignore[attr-defined]

    monkeypatch.setattr(check, "eval_op", wrong)
    x = rng.standard_normal((4, 12)).astype(np.float32)
    report = check.check_program(program.target, path, {"x": x}, engine="numpy")
    first = report.first("isolated")
    assert first is not None and first.name == "b" and report.first("accumulated") is None
    assert [r.name for r in report.layers if "isolated" in r.diverges] == ["b"]
    with pytest.raises(d1c.errors.D1Error, match="layer b diverges"):
        report.raise_for_divergence()
