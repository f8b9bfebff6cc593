"""Losses against the reference evaluator: weights, targets to ignore, all reductions, dims behind the classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import d1c
from d1c.interp import evaluate

Build = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize("op", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignore", [None, 1, -5])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(
    model: Build, rng: np.random.Generator, op: str, reduction: str, ignore: int | None, weighted: bool
) -> None:
    for shape in ((4, 3), (2, 3, 5, 2)):
        x = rng.normal(size=shape).astype(np.float32)
        target = rng.integers(0, 3, (shape[0], *shape[2:])).astype(np.int32)
        if ignore is not None:
            target.flat[0] = ignore
        feeds = {"x": x, "t": target} | ({"w": rng.uniform(0.5, 2, 3).astype(np.float32)} if weighted else {})
        outputs = ["y", "p"] if op.startswith("Soft") else ["y"]
        attributes = {} if ignore is None else {"ignore_index": ignore}
        node = helper.make_node(op, list(feeds), outputs, reduction=reduction, **attributes)
        proto = model([node], feeds, outputs, opset=13)
        got = evaluate(d1c.import_onnx(proto), feeds)
        for name, want in zip(outputs, ReferenceEvaluator(proto).run(None, feeds), strict=True):
            np.testing.assert_allclose(got[name], want, rtol=2e-5, atol=1e-5)
            assert got[name].shape == np.shape(want)
