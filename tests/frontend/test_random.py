"""Random ops: distribution, shape and type, the same numbers for the same seed, others for another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper

from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

N = 4000


def draw(model: Any, op: str, feeds: dict[str, np.ndarray] | None = None, nodes: int = 1, **attrs: Any) -> Any:
    """The outputs of `nodes` equal nodes of this op."""
    feeds = feeds or {}
    made = [helper.make_node(op, list(feeds), [f"y{i}"], **attrs) for i in range(nodes)]
    # A model without inputs is none: the result goes past one that is added.
    outputs = [f"z{i}" for i in range(nodes)]
    made += [helper.make_node("Identity", [f"y{i}"], [f"z{i}"]) for i in range(nodes)]
    got = evaluate(import_onnx(model(made, feeds, outputs, opset=22), {n: a.shape for n, a in feeds.items()}), feeds)
    return [got[n] for n in outputs]


def test_uniform_numbers_are_uniform(model):
    (y,) = draw(model, "RandomUniform", shape=[N], low=-1.0, high=3.0, seed=7.0)
    assert y.dtype == np.float32 and y.shape == (N,) and -1 <= y.min() and y.max() < 3
    counts = np.histogram(y, 16, (-1, 3))[0]
    assert ((counts - N / 16) ** 2 / (N / 16)).sum() < 40  # chi squared with 15 degrees of freedom: p = 5e-4


def test_normal_numbers_are_normal(model):
    (y,) = draw(model, "RandomNormal", shape=[2, N], mean=1.0, scale=2.0, seed=7.0)
    x = (y.astype(np.float64) - 1) / 2
    assert abs(x.mean()) < 0.04 and abs(x.var() - 1) < 0.06 and abs((x**3).mean()) < 0.12
    assert abs((x**4).mean() - 3) < 0.35 and abs(np.corrcoef(x)[0, 1]) < 0.06


def test_like_takes_shape_and_type(model):
    x = np.zeros((3, 5), np.float16)
    (y,) = draw(model, "RandomUniformLike", {"x": x})
    assert y.dtype == np.float16 and y.shape == (3, 5)
    (y,) = draw(model, "RandomNormalLike", {"x": np.zeros((3, 5), np.int32)}, dtype=TensorProto.FLOAT)
    assert y.dtype == np.float32 and y.shape == (3, 5)


def test_a_seed_gives_its_numbers_and_every_node_its_own(model):
    a, b = draw(model, "RandomUniform", nodes=2, shape=[50], seed=3.0)
    assert not np.any(a == b)
    np.testing.assert_array_equal(a, draw(model, "RandomUniform", shape=[50], seed=3.0)[0])
    assert not np.array_equal(a, draw(model, "RandomUniform", shape=[50], seed=4.0)[0])
    assert not np.array_equal(a, draw(model, "RandomUniform", shape=[50], seed=3.5)[0])


def test_bernoulli(model):
    p = np.repeat(np.array([0.0, 0.3, 1.0], np.float32), N)
    (y,) = draw(model, "Bernoulli", {"x": p}, seed=1.0)
    assert not y[:N].any() and y[2 * N :].all() and abs(y[N : 2 * N].mean() - 0.3) < 0.03
    assert set(np.unique(y)) == {0.0, 1.0}


def test_multinomial(model):
    p = np.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        (y,) = draw(model, "Multinomial", {"x": np.log(p).astype(np.float32)}, sample_size=N, seed=2.0)
    assert y.dtype == np.int32 and y.shape == (2, N)
    for row, want in zip(y, p, strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=4) / N, want, atol=0.03)
    assert not (y[0] == 1).any()


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_dropout_in_training(model, ratio):
    x = np.ones((40, 100), np.float32)
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y", "m"], seed=5)
    proto = model([node], {"x": x}, ["y", "m"], {"r": np.array(ratio, np.float32), "t": np.array(True)}, opset=22)
    got = evaluate(import_onnx(proto), {"x": x})
    assert abs(got["m"].mean() - (1 - ratio)) < 0.03
    np.testing.assert_allclose(got["y"], np.where(got["m"], x / (1 - ratio), 0), rtol=1e-6)


def test_batch_normalization_in_training(model):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (3, 4, 5, 6)).astype(np.float32)
    scale, bias, mean, var = (rng.uniform(0.5, 2, 4).astype(np.float32) for _ in range(4))
    node = helper.make_node(
        "BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "rm", "rv"], training_mode=1, momentum=0.8
    )
    feeds = {"x": x, "s": scale, "b": bias, "m": mean, "v": var}
    proto = model([node], feeds, ["y", "rm", "rv"], opset=15)
    got = evaluate(import_onnx(proto), feeds)
    want = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    for name, w in zip(("y", "rm", "rv"), want, strict=True):
        np.testing.assert_allclose(got[name], w, rtol=2e-5, atol=2e-5)
