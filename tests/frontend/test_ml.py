"""ai.onnx.ml on numbers, and TfIdfVectorizer, against the reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import d1c
from d1c.errors import UnsupportedOp
from d1c.interp import evaluate

f32 = np.float32


def check(op: str, x: np.ndarray, domain: str = "ai.onnx.ml", want: Any = None, **attributes: Any) -> np.ndarray:
    node = helper.make_node(op, ["x"], ["y"], domain=domain, **attributes)
    info = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    graph = helper.make_graph([node], "g", [info], [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("ai.onnx.ml", 5), helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if want is None:
        (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    got = evaluate(d1c.import_onnx(model), {"x": x})["y"]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    return got


def test_label_encoder() -> None:
    """Missing keys, NaN as a key (of which the reference knows nothing), a key that occurs twice (the last counts)."""
    x = np.array([[1, np.nan], [3, 7]], f32)
    labels = {"keys_floats": [1.0, np.nan, 3.0], "values_int64s": [10, 20, 30], "default_int64": -5}
    check("LabelEncoder", x, want=[[10, 20], [30, -5]], **labels)
    keys = numpy_helper.from_array(np.array([1, 2, 1], np.int64))
    values = numpy_helper.from_array(np.array([0.5, 1.5, 2.5], f32))
    default = numpy_helper.from_array(np.array([9], f32))
    y = check("LabelEncoder", np.array([1, 2, 3]), keys_tensor=keys, values_tensor=values, default_tensor=default)
    assert y.tolist() == [2.5, 1.5, 9.0]
    with pytest.raises(UnsupportedOp, match="keys_strings"):
        check("LabelEncoder", np.array([1, 2]), keys_strings=["a"], values_int64s=[1])


@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
def test_tree_ensemble(rng: np.random.Generator, aggregate: int) -> None:
    """Two trees, of depth 2 and 1, with every comparison, NaNs that go left or right, and two targets."""
    fields = {
        "tree_roots": [0, 3], "nodes_featureids": [0, 1, 2, 1], "nodes_trueleafs": [0, 1, 1, 1],
        "nodes_falseleafs": [0, 1, 1, 1], "nodes_truenodeids": [1, 0, 2, 4], "nodes_falsenodeids": [2, 1, 3, 5],
        "nodes_missing_value_tracks_true": [1, 0, 0, 1], "leaf_targetids": [0, 1, 0, 1, 1, 0], "n_targets": 2,
    }  # fmt: skip
    x = rng.integers(-2, 3, (17, 3)).astype(f32)
    x[3, 0] = x[5, 1] = np.nan
    for modes in ([0, 1, 2, 3], [4, 5, 0, 6]):
        member = {"membership_values": numpy_helper.from_array(np.array([-1, 2, np.nan], f32))} if 6 in modes else {}
        check(
            "TreeEnsemble", x, aggregate_function=aggregate, **fields, **member,
            nodes_modes=numpy_helper.from_array(np.array(modes, np.uint8)),
            nodes_splits=numpy_helper.from_array(np.array([0, 1, -1, 0], f32)),
            leaf_weights=numpy_helper.from_array(rng.normal(size=6).astype(f32)),
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("shape", [(11,), (3, 9), (2, 2)])
def test_tfidf(rng: np.random.Generator, mode: str, shape: tuple[int, ...]) -> None:
    """Grams of one, two and three items; gaps in the columns. The counts against the reference; weights are listed in
    the order of the grams, which the reference takes for that of the columns."""
    x = rng.integers(1, 4, shape)
    grams = {1: [[1], [3]], 2: [[1, 2], [2, 2], [3, 1]], 3: [[1, 1, 1], [2, 1, 3]]}
    starts = np.cumsum([0, *(n * len(g) for n, g in grams.items())])[:-1]
    columns, weights = [0, 3, 1, 8, 5, 6, 2], rng.uniform(0.5, 2, 7).astype(f32)
    fields: dict[str, Any] = {
        "min_gram_length": 1, "max_gram_length": 3, "max_skip_count": 2, "ngram_counts": starts.tolist(),
        "ngram_indexes": columns, "pool_int64s": [i for g in grams.values() for row in g for i in row],
    }  # fmt: skip
    counts = check("TfIdfVectorizer", x, "", mode="TF", **fields)
    factor = np.zeros(9, f32)
    factor[columns] = weights
    want = {"TF": counts, "IDF": (counts > 0) * factor, "TFIDF": counts * factor}[mode]
    check("TfIdfVectorizer", x, "", want, mode=mode, weights=weights.tolist(), **fields)


def test_features_and_binarizer(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 5)).astype(f32)
    check("Binarizer", x, threshold=0.25)
    node = helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")
    infos = [helper.make_tensor_value_info("x", 1, [3, 5]), helper.make_tensor_value_info("i", 7, [3])]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    index = np.array([4, 0, 4])
    assert np.array_equal(evaluate(d1c.import_onnx(model), {"x": x, "i": index})["y"], x[:, index])
