"""ai.onnx.ml's preprocessing, linear models and tree ensembles against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import d1c
from d1c.errors import UnsupportedOp
from d1c.interp import evaluate

from .conftest import run_ort

f32 = np.float32
X = np.random.default_rng(3).normal(size=(7, 4)).astype(f32)


def check(
    op: str, *arrays: np.ndarray, outputs: int = 1, skip: tuple[str, ...] = (), **attributes: Any
) -> dict[str, np.ndarray]:
    """What d1c gives, after a comparison with onnxruntime. Of two outputs the first one holds integers."""
    feeds = {f"x{i}": a for i, a in enumerate(arrays)}
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, list(feeds), names, "node", domain="ai.onnx.ml", **attributes)
    kinds = {k: helper.np_dtype_to_tensor_dtype(a.dtype) for k, a in feeds.items()}
    infos = [helper.make_tensor_value_info(k, kinds[k], a.shape) for k, a in feeds.items()]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=n) for n in names])
    opsets = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    got = evaluate(d1c.import_onnx(model), feeds)
    if outputs == 2:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    for name, expected in zip(names, run_ort(model, feeds), strict=True):
        assert got[name].dtype == expected.dtype and got[name].shape == expected.shape
        if name not in skip:
            np.testing.assert_allclose(got[name], expected, rtol=2e-6, atol=2e-6)
    return got


@pytest.mark.parametrize("x", [X, X.astype(np.float64), np.arange(28).reshape(7, 4), X[0]])
def test_scaler(x: np.ndarray) -> None:
    check("Scaler", x, offset=[0.5, 1, 2, -1], scale=[2.0, 3, 0.5, 1])
    check("Scaler", x, offset=[0.5], scale=[2.0])


@pytest.mark.parametrize("norm", ["L1", "L2", "MAX"])
def test_normalizer(norm: str) -> None:
    x = np.concatenate([np.abs(X), np.zeros((1, 4), f32)])
    check("Normalizer", x, norm=norm)
    check("Normalizer", (10 * x).astype(np.int64), norm=norm)


def test_imputer() -> None:
    gaps = X.copy()
    gaps[1, 2] = gaps[3, 0] = np.nan
    check("Imputer", gaps, imputed_value_floats=[1.0, 2, 3, 4], replaced_value_float=float("nan"))
    check("Imputer", gaps, imputed_value_floats=[9.0], replaced_value_float=float("nan"))
    check("Imputer", np.array([[1, -1], [-1, 2]]), imputed_value_int64s=[5, 6], replaced_value_int64=-1)


def test_feature_vectorizer_and_one_hot() -> None:
    check("FeatureVectorizer", X, X[:, :2], inputdimensions=[4, 2])
    check("FeatureVectorizer", X.astype(np.float64), X.astype(np.float64), inputdimensions=[3, 5])
    check("OneHotEncoder", np.array([[1, 7], [3, 4]]), cats_int64s=[3, 1, 4], zeros=1)
    check("OneHotEncoder", np.array([1, 3], f32), cats_int64s=[3, 1, 4])
    with pytest.raises(UnsupportedOp, match="cats_strings"):
        check("OneHotEncoder", X, cats_strings=["a"])


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear(transform: str, rng: np.random.Generator) -> None:
    fields = {"coefficients": rng.normal(size=12).tolist(), "post_transform": transform}
    check("LinearRegressor", X, targets=3, intercepts=[0.5, 0, -1.0], **fields)
    check("LinearRegressor", X, targets=3, **fields)
    labels = {"classlabels_ints": [7, 3, 11], "multi_class": 1}
    check("LinearClassifier", X, outputs=2, intercepts=[0.5, 0, -1.0], **labels, **fields)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
def test_svm_regressor(kernel: str, rng: np.random.Generator) -> None:
    """Five support vectors, for one class too; a linear one without."""
    for more in ({}, {"one_class": 1}):
        check(
            "SVMRegressor", X, kernel_type=kernel, kernel_params=[0.4, 0.3, 3.0], n_supports=5, rho=[0.1], **more,
            support_vectors=rng.normal(size=20).tolist(), coefficients=rng.normal(size=5).tolist(),
        )  # fmt: skip
    check("SVMRegressor", X, kernel_params=[0.0] * 3, coefficients=rng.normal(size=4).tolist(), rho=[0.1])


def test_refused_forms() -> None:
    with pytest.raises(UnsupportedOp, match="post_transform PROBIT"):
        check("LinearRegressor", X, coefficients=[1.0] * 4, post_transform="PROBIT")
    with pytest.raises(UnsupportedOp, match="classlabels_strings"):
        check("LinearClassifier", X, outputs=2, coefficients=[1.0] * 8, classlabels_strings=["a", "b"])


def forest(rng: np.random.Generator, depths: tuple[int, ...], modes: tuple[str, ...]) -> dict[str, list[Any]]:
    """Complete trees with nodes in an order of their own; depth 0 is a leaf alone."""
    fields: dict[str, list[Any]] = {}

    def add(**of: Any) -> None:
        for key, value in of.items():
            fields.setdefault(f"nodes_{key}", []).append(value)

    for tree, depth in enumerate(depths):
        for i in range(2 ** (depth + 1) - 1):
            inner = i < 2**depth - 1
            add(
                treeids=tree, nodeids=i, featureids=int(rng.integers(4)), values=float(rng.normal() if inner else 0),
                modes=str(rng.choice(modes)) if inner else "LEAF", truenodeids=2 * i + 1 if inner else 0,
                falsenodeids=2 * i + 2 if inner else 0, missing_value_tracks_true=int(rng.integers(2)),
            )  # fmt: skip
    return fields


def leaves(fields: dict[str, list[Any]]) -> list[tuple[int, int]]:
    nodes = zip(fields["nodes_treeids"], fields["nodes_nodeids"], fields["nodes_modes"], strict=True)
    return [(tree, node) for tree, node, mode in nodes if mode == "LEAF"]


COMPARISONS = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")


@pytest.mark.parametrize("modes", [COMPARISONS[:1], COMPARISONS])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_tree_regressor(aggregate: str, modes: tuple[str, ...], rng: np.random.Generator) -> None:
    """Three trees, one of them a leaf; two targets for which every leaf votes; NaNs."""
    fields = forest(rng, (3, 0, 2), modes)
    votes = [(tree, node, target) for tree, node in leaves(fields) for target in (0, 1)]
    x = X.copy()
    x[2, 1] = x[4, 3] = np.nan
    for more in ({}, {"base_values": [0.5, -2.0]}):
        check(
            "TreeEnsembleRegressor", x, n_targets=2, aggregate_function=aggregate, **fields,
            target_treeids=[v[0] for v in votes], target_nodeids=[v[1] for v in votes],
            target_ids=[v[2] for v in votes], target_weights=rng.normal(size=len(votes)).tolist(), **more,
        )  # fmt: skip


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("classes", "ids"), [(3, [0, 1, 2]), (2, [0, 1]), (2, [0]), (2, [1])])
def test_tree_classifier(
    classes: int, ids: list[int], positive: bool, transform: str, rng: np.random.Generator
) -> None:
    """Votes for all classes, or for one of two. Of two that both have votes onnxruntime gives 0 or 1 for a label, by
    the second score's sign: not compared."""
    fields = forest(rng, (3, 2, 1), ("BRANCH_LEQ",))
    votes = [(tree, node, c) for tree, node in leaves(fields) for c in ids]
    weights = rng.uniform(0 if positive else -1, 0.4, len(votes))
    got = check(
        "TreeEnsembleClassifier", X, outputs=2, skip=("y0",) if ids == [0, 1] else (),
        classlabels_int64s=[5, 2, 9][:classes], post_transform=transform,
        class_treeids=[v[0] for v in votes], class_nodeids=[v[1] for v in votes], class_ids=[v[2] for v in votes],
        class_weights=weights.tolist(), **fields, **({"base_values": [0.125]} if ids == [0] else {}),
    )  # fmt: skip
    if len(ids) == classes:
        assert np.array_equal(got["y0"], np.array([5, 2, 9])[got["y1"].argmax(1)])
