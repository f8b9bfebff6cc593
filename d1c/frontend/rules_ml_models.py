"""Rules of ai.onnx.ml's preprocessing of features, linear models and tree ensembles, as far as they are on numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import iota, op, reduce
from d1c.frontend.load import attribute, tensor_array
from d1c.frontend.rules_math import given, product
from d1c.frontend.rules_ml import ML, ensemble
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import F32, F64, I64


def _numbers(node: onnx.NodeProto, name: str) -> np.ndarray | None:
    """A list of floats, given as such or as a tensor `name`_as_tensor."""
    if (tensor_ := attribute(node, f"{name}_as_tensor")) is not None:
        return tensor_array(tensor_, None)
    values = attribute(node, name)
    return np.array(values, np.float32) if values else None


def _features(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The operand as floats: [rows, features]."""
    x = given(cx, node)
    x = x if tensor(x).dtype == F64 else cx.cast(x, F32)
    return x if len(tensor(x).shape) > 1 else cx.reshape(x, (1, tensor(x).size))


def scaler(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """(x - offset) * scale."""
    x = cx.cast(given(cx, node), F32)
    for name, step in (("offset", "sub"), ("scale", "mul")):
        if (values := _numbers(node, name)) is not None:
            x = op(cx, step, x, cx.const(values))
    return x


def normalizer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Rows by their maximum, their sum of magnitudes or their length; by nothing where that is zero."""
    x = cx.cast(given(cx, node), F32)
    kind, axis = cx.attr(node, "norm", "MAX"), len(tensor(x).shape) - 1
    if kind == "MAX":
        size = reduce(cx, "max", x, [axis], True)
    elif kind == "L1":
        size = reduce(cx, "sum", op(cx, "abs", x), [axis], True)
    elif kind == "L2":
        size = op(cx, "sqrt", reduce(cx, "sum", op(cx, "mul", x, x), [axis], True))
    else:
        raise cx.refuse(f"Normalizer norm {kind!r}", rule="norms: MAX, L1, L2")
    none = op(cx, "equal", size, cx.scalar(0, size))
    return op(cx, "div", x, op(cx, "where", none, cx.scalar(1, size), size))


def imputer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Another value where x is the replaced one (NaN equals NaN)."""
    x = given(cx, node)
    floats = tensor(x).dtype in (F32, F64)
    name, kind = ("imputed_value_floats", "replaced_value_float") if floats else (
        "imputed_value_int64s", "replaced_value_int64")  # fmt: skip
    old, new = cx.attr(node, kind, 0), cx.attr(node, name)
    if not new:
        raise ValueError(f"no {name}")
    missing = op(cx, "not", op(cx, "equal", x, x)) if old != old else op(cx, "equal", x, cx.scalar(old, x))
    return op(cx, "where", missing, cx.const(np.array(new, tensor(x).dtype.numpy)), x)


def feature_vectorizer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """All operands as floats beside each other, each in `inputdimensions[i]` columns: cut, or filled with zeros."""
    parts = []
    for i, wide in enumerate(cx.attr(node, "inputdimensions")):
        x = cx.cast(given(cx, node, i), F32)
        shape = tensor(x).shape
        x = cx.reshape(x, (1, shape[0]) if len(shape) == 1 else (shape[0], tensor(x).size // shape[0]))
        rows, have = tensor(x).shape
        parts.append(cx.part(x, 1, 0, min(wide, have)))
        if wide > have:
            parts.append(cx.const(np.zeros((rows, wide - have), np.float32)))
    return cx.concat(parts, 1)


def one_hot_encoder(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """1 in the column of x's category, in a dim of their own behind x's. A value without category has zeros, also where
    `zeros` asks for an error, which a program cannot give."""
    x = cx.cast(given(cx, node), I64)
    same = op(cx, "equal", cx.reshape(x, (*tensor(x).shape, 1)), cx.const(np.array(cx.attr(node, "cats_int64s"))))
    return cx.cast(same, F32)


def _transformed(cx: ImportContext, node: onnx.NodeProto, y: Value) -> Value:
    match attribute(node, "post_transform", "NONE"):
        case "LOGISTIC":
            return op(cx, "sigmoid", y)
        case "SOFTMAX":
            e = op(cx, "exp", op(cx, "sub", y, reduce(cx, "max", y, [1], True)))
            return op(cx, "div", e, reduce(cx, "sum", e, [1], True))
    return y


def _linear(cx: ImportContext, node: onnx.NodeProto, targets: int) -> Value:
    """x C^T + b: [rows, targets]."""
    x = cx.cast(_features(cx, node), F32)
    weights = np.array(cx.attr(node, "coefficients"), np.float32).reshape(targets, -1)
    y = product(cx, x, cx.const(weights.T))
    bias = _numbers(node, "intercepts")
    return y if bias is None else op(cx, "add", y, cx.const(bias))


def linear_regressor(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return _transformed(cx, node, _linear(cx, node, cx.attr(node, "targets", 1)))


def linear_classifier(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, Value]:
    labels = np.array(cx.attr(node, "classlabels_ints"), np.int64)
    scores = _linear(cx, node, len(labels))
    return _label(cx, scores, labels), _transformed(cx, node, scores)


def _label(cx: ImportContext, scores: Value, labels: np.ndarray) -> Value:
    """The label of each row's first largest score."""
    n = tensor(scores).shape[1]
    largest = op(cx, "equal", scores, reduce(cx, "max", scores, [1], True))
    at = op(cx, "where", largest, iota(cx, n, 2, 1), cx.const(np.array(n)))
    first: Value = cx.emit("graph.lookup", [reduce(cx, "min", at, [1]), cx.const(labels)])
    return first


def svm_regressor(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """sum_j c_j k(x, s_j) + rho over support vectors s, or k(x, c) + rho without; for one class its sign."""
    x = cx.cast(_features(cx, node), F32)
    wide = tensor(x).shape[1]
    weights, rho = _numbers(node, "coefficients"), _numbers(node, "rho")
    supports = cx.attr(node, "n_supports", 0)
    assert weights is not None and rho is not None
    vectors = np.array(cx.attr(node, "support_vectors"), np.float32) if supports else weights
    y = _kernel(cx, node, x, vectors.reshape(-1, wide))
    if supports:
        y = product(cx, y, cx.const(weights.reshape(supports, 1)))
    y = op(cx, "add", y, cx.const(rho[:1]))
    if not cx.attr(node, "one_class", 0):
        return _transformed(cx, node, y)
    return op(cx, "where", op(cx, "less", cx.scalar(0, y), y), cx.scalar(1, y), cx.scalar(-1, y))


def _kernel(cx: ImportContext, node: onnx.NodeProto, x: Value, vectors: np.ndarray) -> Value:
    """k(x_i, v_j): [rows, vectors]."""
    kind = cx.attr(node, "kernel_type", "LINEAR")
    gamma, shift, degree = cx.attr(node, "kernel_params") or (0.0, 0.0, 0.0)
    if kind == "RBF":
        apart = op(cx, "sub", cx.reshape(x, (tensor(x).shape[0], 1, vectors.shape[1])), cx.const(vectors))
        total = reduce(cx, "sum", op(cx, "mul", apart, apart), [2])
        return op(cx, "exp", op(cx, "mul", total, cx.scalar(-gamma, total)))
    y = product(cx, x, cx.const(vectors.T))
    if kind == "LINEAR":
        return y
    y = op(cx, "add", op(cx, "mul", y, cx.scalar(gamma, y)), cx.scalar(shift, y))
    return op(cx, "tanh", y) if kind == "SIGMOID" else op(cx, "pow", y, cx.scalar(degree, y))


_MODES = {"BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5}
_KINDS = {"AVERAGE": 0, "SUM": 1, "MIN": 2, "MAX": 3}


def _trees(node: onnx.NodeProto, kind: str, votes: str, targets: int) -> tuple[onnx.NodeProto, np.ndarray, np.ndarray]:
    """The node in the newer form of TreeEnsemble, with the votes and weights of its leaves: [leaves, targets].

    votes  prefix of the attributes that say them: "target" or "class".
    """
    modes: list[str] = [m.decode() if isinstance(m, bytes) else m for m in attribute(node, "nodes_modes")]
    keys = list(zip(attribute(node, "nodes_treeids"), attribute(node, "nodes_nodeids"), strict=True))
    leaf = {key: i for i, key in enumerate(k for k, m in zip(keys, modes, strict=True) if m == "LEAF")}
    roots = {tree: key for tree, key in reversed([(k[0], k) for k in keys])}
    alone = [root for root in roots.values() if root in leaf]  # they get a step both sides of which are the leaf
    step = {key: i for i, key in enumerate([*(k for k in keys if k not in leaf), *alone])}
    values, tracks = (
        _numbers(node, "nodes_values"),
        attribute(node, "nodes_missing_value_tracks_true", (0,) * len(keys)),
    )
    assert values is not None
    fields: dict[str, list[Any]] = {name: [] for name in ("featureids", "modes", "splits", "tracks")}
    sides: dict[str, Any] = {n: [] for n in ("truenodeids", "trueleafs", "falsenodeids", "falseleafs")}
    place = {key: i for i, key in enumerate(keys)}
    for i in [place[key] for key in step]:
        inner = keys[i] not in leaf
        fields["featureids"].append(attribute(node, "nodes_featureids")[i])
        fields["modes"].append(_MODES[modes[i]] if inner else 0)
        fields["splits"].append(values[i])
        fields["tracks"].append(tracks[i] if inner else 0)
        for side in ("true", "false"):
            to = (keys[i][0], attribute(node, f"nodes_{side}nodeids")[i]) if inner else keys[i]
            sides[f"{side}leafs"].append(int(to in leaf))
            sides[f"{side}nodeids"].append(leaf[to] if to in leaf else step[to])
    found = _numbers(node, f"{votes}_weights")
    assert found is not None
    on, weights = np.zeros((len(leaf), targets), np.bool_), np.zeros((len(leaf), targets), found.dtype)
    where = zip(attribute(node, f"{votes}_treeids"), attribute(node, f"{votes}_nodeids"), strict=True)
    for key, target, weight in zip(where, attribute(node, f"{votes}_ids"), found, strict=True):
        on[leaf[key], target] = True
        weights[leaf[key], target] += weight
    new = helper.make_node(
        "TreeEnsemble", list(node.input), list(node.output), aggregate_function=_KINDS[kind],
        tree_roots=[step[key] for key in roots.values()], nodes_featureids=fields["featureids"],
        nodes_modes=numpy_helper.from_array(np.array(fields["modes"], np.uint8)),
        nodes_splits=numpy_helper.from_array(np.array(fields["splits"], values.dtype)),
        nodes_missing_value_tracks_true=fields["tracks"], **{f"nodes_{k}": v for k, v in sides.items()},
    )  # fmt: skip
    return new, on, weights


def _based(cx: ImportContext, node: onnx.NodeProto, y: Value) -> Value:
    base = _numbers(node, "base_values")
    return cx.cast(y if base is None else op(cx, "add", y, cx.const(base.astype(tensor(y).dtype.numpy))), F32)


def tree_regressor(cx: ImportContext, node: onnx.NodeProto) -> Value:
    kind = cx.attr(node, "aggregate_function", "SUM")
    trees, votes, weights = _trees(node, kind, "target", cx.attr(node, "n_targets", 1))
    y = ensemble(cx, trees, _features(cx, node), votes, weights)
    return _transformed(cx, node, _based(cx, node, y))


def tree_classifier(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, Value]:
    """Votes for classes. If all are for one of two classes, they say how likely the second one is: above a half where
    no vote is negative, above zero otherwise. onnxruntime's meaning, as ONNX gives none."""
    labels = np.array(cx.attr(node, "classlabels_int64s"), np.int64)
    ids = sorted(set(cx.attr(node, "class_ids")))
    trees, votes, weights = _trees(node, "SUM", "class", len(labels))
    x = _features(cx, node)
    if len(labels) != 2 or len(ids) != 1:
        y = _based(cx, node, ensemble(cx, trees, x, votes, weights))
        return _label(cx, y, labels), _transformed(cx, node, y)
    y = _based(cx, node, ensemble(cx, trees, x, votes[:, ids], weights[:, ids]))
    if tensor(y).shape[1] != 1:
        raise cx.refuse("TreeEnsembleClassifier with two base_values and votes for one class")
    positive = bool((weights >= 0).all())
    above = op(cx, "less", cx.scalar(0.5 if positive else 0.0, y), y)
    label = cx.reshape(op(cx, "where", above, cx.const(labels[1]), cx.const(labels[0])), (tensor(y).shape[0],))
    if ids == [1]:
        return label, _transformed(cx, node, cx.concat([cx.const(np.zeros(tensor(y).shape, np.float32)), y], 1))
    logistic = cx.attr(node, "post_transform", "NONE") == "LOGISTIC"
    other = op(cx, "sub", cx.scalar(1, y), y) if positive and not logistic else op(cx, "neg", y)
    scores = cx.concat([other, y], 1)
    return label, op(cx, "sigmoid", scores) if logistic else scores


def _check(*text: str, transforms: tuple[str, ...] = ("NONE", "LOGISTIC", "SOFTMAX")) -> Any:
    def check(node: onnx.NodeProto, opset: int) -> str | None:
        if strings := [a.name for a in node.attribute if a.name in text and a.strings]:
            return f"{strings[0]}: text has no form on the machine; take the numbers of the classes for labels"
        kind = attribute(node, "post_transform", "NONE")
        return None if kind in transforms else f"post_transform {kind}; {', '.join(transforms)} are taken"

    return check


RULES = (
    OnnxRule("Scaler", scaler, domain=ML), OnnxRule("Normalizer", normalizer, domain=ML),
    OnnxRule("Imputer", imputer, domain=ML), OnnxRule("FeatureVectorizer", feature_vectorizer, domain=ML),
    OnnxRule("OneHotEncoder", one_hot_encoder, domain=ML, check=_check("cats_strings")),
    OnnxRule("LinearRegressor", linear_regressor, domain=ML, check=_check()),
    OnnxRule("LinearClassifier", linear_classifier, domain=ML, check=_check("classlabels_strings")),
    OnnxRule("SVMRegressor", svm_regressor, domain=ML, check=_check()),
    OnnxRule("TreeEnsembleRegressor", tree_regressor, domain=ML, check=_check()),
    OnnxRule("TreeEnsembleClassifier", tree_classifier, domain=ML, check=_check("classlabels_strings")),
)  # fmt: skip
