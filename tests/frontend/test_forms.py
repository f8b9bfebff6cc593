"""Rare forms of common ops, against onnxruntime: narrow floats, integers, minifloats, defaults of old op sets, and
forms that are refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from d1c.errors import D1Error, ImportFailed, UnsupportedOp
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

RNG = np.random.default_rng(8)
LONG = np.full((1, 1000), 100, np.float16)  # whose sum float16 cannot hold
PARAMETERS = {name: np.abs(RNG.standard_normal(3)).astype(np.float32) for name in "sbmv"}
HALF = RNG.standard_normal((2, 3, 4)).astype(np.float16)
COUNTS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


@pytest.mark.parametrize("emulate", [False, True])
@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes", "outputs", "opset"),
    [
        ("ReduceMean", {"x": LONG}, {"a": np.array([1])}, {}, 1, 21),
        ("GlobalAveragePool", {"x": LONG.reshape(1, 1, 1000)}, {}, {}, 1, 21),
        ("LayerNormalization", {"x": np.arange(1000).reshape(1, 1000).astype(np.float16)},
         {"s": np.ones(1000, np.float16)}, {}, 3, 21),
        ("BatchNormalization", {"x": HALF, **PARAMETERS}, {}, {}, 1, 21),
        ("BatchNormalization", {"x": HALF, **PARAMETERS}, {}, {"training_mode": 1}, 3, 21),
        ("InstanceNormalization", {"x": HALF},
         {"s": np.ones(3, np.float16), "b": np.zeros(3, np.float16)}, {}, 1, 21),
        ("Celu", {"x": np.array([-3, -0.5, 0, 2], np.float32)}, {}, {"alpha": -1.5}, 1, 21),
        ("ReduceL2", {"x": COUNTS}, {"a": np.array([1])}, {}, 1, 18),
        ("ReduceLogSum", {"x": COUNTS}, {"a": np.array([1])}, {}, 1, 18),
        ("ReduceLogSumExp", {"x": COUNTS}, {"a": np.array([1])}, {}, 1, 18),
        ("Clip", {"x": np.array([np.inf, -np.inf, 1], np.float32)}, {}, {"min": -2.0}, 1, 6),
        ("AveragePool", {"x": RNG.standard_normal((1, 1, 6, 6)).astype(np.float32)}, {},
         {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID", "ceil_mode": 1, "count_include_pad": 1},
         1, 21),
        ("Pow", {"x": np.array([4, 2, -0.0, 0, -np.inf, np.inf, -1, np.nan], np.float32)},
         {"y": np.array(0.5, np.float32)}, {}, 1, 21),
        ("LpNormalization", {"x": np.array([[1e-33], [0], [-2]], np.float32)}, {}, {}, 1, 21),
        ("Resize", {"x": np.zeros((0, 1, 4, 5), np.float32)},
         {"roi": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}, 1, 21),
        ("TfIdfVectorizer", {"x": np.array([[1, 2, 3, 1, 2]])}, {},
         {"mode": "TFIDF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 2, "ngram_counts": [0, 2],
          "ngram_indexes": [1, 0, 2], "pool_int64s": [1, 3, 1, 2], "weights": [1.0, 2.0, 3.0]}, 1, 20),
    ],
)  # fmt: skip
def test_is_what_onnxruntime_computes(model, against_ort, op, inputs, constants, attributes, outputs, opset, emulate):
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, [*inputs, *constants], names, **attributes)
    proto = model([node], inputs, names, constants, opset)
    if next(iter(inputs.values())).size or emulate:
        against_ort(proto, inputs, 1e-3 if np.float16 in {a.dtype.type for a in inputs.values()} else 1e-6, emulate)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(("op", "reference"), [("IsNaN", np.isnan), ("IsInf", np.isinf)])
def test_minifloats_are_looked_at_as_f32(model, kind, op, reference):
    x = np.array([1, np.nan, np.inf, -np.inf], np.float32).astype(kind)
    got = evaluate(import_onnx(model([helper.make_node(op, ["x"], ["y"])], {"x": x}, ["y"], opset=20)), {"x": x})["y"]
    np.testing.assert_array_equal(got, reference(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes", "error", "says"),
    [
        ("Gemm", {"a": COUNTS, "b": COUNTS.T}, {}, {"alpha": 0.5}, UnsupportedOp, "alpha = 0.5"),
        ("LpNormalization", {"x": np.ones((2, 3), np.float32)}, {}, {"p": 3}, UnsupportedOp, "p = 3"),
        ("Transpose", {"x": np.ones((2, 3, 4), np.float32)}, {}, {"perm": [0, 1]}, ImportFailed, r"perm \[0, 1\]"),
        ("Unsqueeze", {"x": np.ones(3, np.float32)}, {"a": np.array([0, -3])}, {}, ImportFailed, "an axis twice"),
        ("Gather", {"x": np.ones(3, np.float32)}, {"i": np.array([1, -4])}, {}, ImportFailed, "index -4 of 3"),
    ],
)
def test_refusals_say_what_is_wrong(model, op, inputs, constants, attributes, error, says):
    node = helper.make_node(op, [*inputs, *constants], ["y"], **attributes)
    with pytest.raises(error, match=says) as caught:
        import_onnx(model([node], inputs, ["y"], constants, 21))
    assert isinstance(caught.value, D1Error) and op in str(caught.value)
