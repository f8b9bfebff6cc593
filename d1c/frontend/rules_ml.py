"""Rules of ai.onnx.ml's ops on numbers, and of TfIdfVectorizer: tables and trees as comparisons and masked sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import flag, lookup, op, reduce
from d1c.frontend.load import attribute, tensor_array
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import F32, I64

ML = "ai.onnx.ml"


def _data(node: onnx.NodeProto, name: str) -> np.ndarray | None:
    """A tensor attribute."""
    value = attribute(node, name)
    return None if value is None else tensor_array(value, None)


def feature_extractor(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """x[..., y]; a vector has one row."""
    x, index = given(cx, node), given(cx, node, 1)
    shape = tensor(x).shape
    if len(shape) == 1:
        x, shape = cx.reshape(x, (1, *shape)), (1, *shape)
    rank = len(shape)
    index = cx.reshape(index, (tensor(index).size,))
    found = lookup(cx, index, cx.transpose(x, (rank - 1, *range(rank - 1))))
    return cx.transpose(found, (*range(1, rank), 0))


def binarizer(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """x > threshold: 1, otherwise 0."""
    x = given(cx, node)
    above = op(cx, "greater", x, cx.scalar(cx.attr(node, "threshold", 0.0), x))
    return op(cx, "where", above, cx.scalar(1, x), cx.scalar(0, x))


_LABELS = {"int64s": np.int64, "floats": np.float32}
_DEFAULTS = {"int64s": -1, "floats": -0.0}


def label_encoder(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The value of the last key that equals x (NaN equals NaN), or the default. One comparison per key."""
    x = given(cx, node)
    keys, values = _data(node, "keys_tensor"), _data(node, "values_tensor")
    default: Any = _data(node, "default_tensor")
    for name, kind in _LABELS.items():
        if attribute(node, f"keys_{name}") is not None:
            keys = np.array(attribute(node, f"keys_{name}"), kind)
        if attribute(node, f"values_{name}") is not None:
            values = np.array(attribute(node, f"values_{name}"), kind)
            default = attribute(node, f"default_{name[:-1]}", _DEFAULTS[name])
    if keys is None or values is None or len(keys) != len(values):
        raise ValueError("keys and values do not match")
    if default is None:
        default = -1 if values.dtype.kind in "iu" else -0.0
    y = cx.const(np.array(np.asarray(default).reshape(-1)[0], values.dtype))
    for key, value in zip(keys, values, strict=True):
        same = op(cx, "not", op(cx, "equal", x, x)) if key != key else op(cx, "equal", x, cx.scalar(key, x))
        y = op(cx, "where", same, cx.const(np.array(value, values.dtype)), y)
    return cx.expand(y, tensor(x).shape)


def _text_labels(node: onnx.NodeProto, opset: int) -> str | None:
    text = [a.name for a in node.attribute if a.name.endswith("_strings") and a.name != "default_string"]
    return f"{', '.join(text)}: text has no form on the machine" if text or opset < 2 else None


_MODES = ("less_equal", "less", "greater_equal", "greater", "equal", "not_equal", "member")


def tree_ensemble(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """TreeEnsemble: each leaf votes for one target."""
    weights, where = _data(node, "leaf_weights"), np.array(cx.attr(node, "leaf_targetids"))
    assert weights is not None
    votes = where[:, None] == np.arange(cx.attr(node, "n_targets"))
    x = given(cx, node)
    return cx.cast(ensemble(cx, node, x, votes, np.where(votes, weights[:, None], 0)), tensor(x).dtype)


def ensemble(cx: ImportContext, node: onnx.NodeProto, x: Value, votes: np.ndarray, weights: np.ndarray) -> Value:
    """The aggregated votes of the trees that TreeEnsemble's attributes of `node` describe: [rows, targets].

    votes, weights  [leaves, targets]: for which targets each leaf votes, and how.
    All decisions of a tree are taken at once; the leaf reached is the one on whose path none went elsewhere.
    """
    rows = tensor(x).shape[0]
    kind = cx.attr(node, "aggregate_function", 1)
    total: Value | None = None
    roots = cx.attr(node, "tree_roots")
    for root in roots:
        steps, paths = _paths(node, root)
        leaves = [leaf for leaf, _ in paths]
        decided = cx.reshape(_decisions(cx, node, x, steps), (rows, 1, len(steps)))
        want = np.zeros((len(leaves), len(steps)), np.bool_)
        on = np.zeros((len(leaves), len(steps)), np.bool_)
        for i, (_, path) in enumerate(paths):
            for step, taken in path:
                on[i, steps.index(step)], want[i, steps.index(step)] = True, taken
        elsewhere = op(cx, "and", op(cx, "xor", decided, cx.const(want)), cx.const(on))
        missed = reduce(cx, "max", flag(cx, elsewhere), [2], True)  # [rows, leaves, 1]
        reached = op(cx, "equal", missed, cx.scalar(0, missed))
        idle = _identity(kind, weights.dtype)
        mine = op(cx, "and", reached, cx.const(votes[leaves]))
        chosen = op(cx, "where", mine, cx.const(weights[leaves]), cx.const(idle))
        one = reduce(cx, ("sum", "sum", "min", "max")[kind], chosen, [1])
        total = one if total is None else op(cx, ("add", "add", "min", "max")[kind], total, one)
    assert total is not None
    if kind == 0:
        total = op(cx, "div", total, cx.scalar(len(roots), total))
    return total


def _identity(kind: int, of: np.dtype) -> np.ndarray:
    number = 0.0 if kind < 2 else np.finfo(of).max if kind == 2 else np.finfo(of).min
    return np.array(number, of)


def _paths(node: onnx.NodeProto, root: int) -> tuple[list[int], list[tuple[int, list[tuple[int, bool]]]]]:
    """The interior nodes of a tree, and per leaf the decisions on the way to it."""
    sides = [
        (True, attribute(node, "nodes_truenodeids"), attribute(node, "nodes_trueleafs")),
        (False, attribute(node, "nodes_falsenodeids"), attribute(node, "nodes_falseleafs")),
    ]
    if all(leafs[root] for _, _, leafs in sides) and sides[0][1][root] == sides[1][1][root]:
        return [root], [(sides[0][1][root], [])]
    steps: list[int] = []
    paths: list[tuple[int, list[tuple[int, bool]]]] = []
    stack: list[tuple[int, list[tuple[int, bool]]]] = [(root, [])]
    while stack:
        at, path = stack.pop()
        if at in steps:
            raise ValueError(f"node {at} is reached twice")
        steps.append(at)
        for taken, ids, leafs in sides:
            (paths if leafs[at] else stack).append((ids[at], [*path, (at, taken)]))
    return steps, paths


def _decisions(cx: ImportContext, node: onnx.NodeProto, x: Value, steps: list[int]) -> Value:
    """[rows, steps]: which way the interior nodes send each row."""
    features = np.array(attribute(node, "nodes_featureids"), np.int64)[steps]
    modes, splits = _data(node, "nodes_modes"), _data(node, "nodes_splits")
    assert modes is not None and splits is not None
    read = cx.transpose(lookup(cx, cx.const(features), cx.transpose(x, (1, 0))), (1, 0))
    result: Value | None = None
    bound = cx.const(splits[steps].astype(tensor(x).dtype.numpy))
    for mode in sorted(set(modes[steps].tolist())):
        name = _MODES[mode]
        if name == "member":
            one = _member(cx, node, read, modes, steps)
        elif name == "not_equal":
            one = op(cx, "not", op(cx, "equal", read, bound))
        else:
            one = op(cx, name, read, bound)
        result = one if result is None else op(cx, "where", cx.const(modes[steps] == mode), one, result)
    assert result is not None
    tracks = attribute(node, "nodes_missing_value_tracks_true")
    if tracks is not None and any(tracks):
        missing = op(cx, "not", op(cx, "equal", read, read))
        result = op(cx, "or", result, op(cx, "and", missing, cx.const(np.array(tracks, np.bool_)[steps])))
    return result


def _member(cx: ImportContext, node: onnx.NodeProto, read: Value, modes: np.ndarray, steps: list[int]) -> Value:
    """Whether each feature is in its node's set; the sets are listed one after the other, each ended by a NaN."""
    values = _data(node, "membership_values")
    if values is None:
        raise ValueError("no membership_values")
    ends = np.flatnonzero(np.isnan(values))
    starts = np.concatenate([[0], ends[:-1] + 1])
    of = {int(n): values[a:b] for n, a, b in zip(np.flatnonzero(modes == 6), starts, ends, strict=True)}
    widest = max((len(of[s]) for s in steps if s in of), default=0)
    table = np.full((len(steps), max(widest, 1)), np.nan, tensor(read).dtype.numpy)
    for i, step in enumerate(steps):
        table[i, : len(of.get(step, ()))] = of.get(step, ())
    rows = tensor(read).shape[0]
    same = op(cx, "equal", cx.reshape(read, (rows, len(steps), 1)), cx.const(table))
    found = reduce(cx, "max", flag(cx, same), [2])
    return op(cx, "equal", found, cx.scalar(1, found))


def _tree_forms(node: onnx.NodeProto, opset: int) -> str | None:
    return "post_transform is not NONE" if attribute(node, "post_transform", 0) else None


def tfidf(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Counts of n-grams of numbers: per gram and skip, the places where its items follow each other so far apart."""
    x = cx.cast(given(cx, node), I64)
    shape = tensor(x).shape
    rows, length = (shape[0], shape[1]) if len(shape) == 2 else (1, tensor(x).size)
    x = cx.reshape(x, (rows, length, 1))
    starts, pool = list(cx.attr(node, "ngram_counts")), np.array(cx.attr(node, "pool_int64s"), np.int64)
    places = cx.attr(node, "ngram_indexes")
    low, high = cx.attr(node, "min_gram_length"), cx.attr(node, "max_gram_length")
    columns = max(places) + 1
    total = cx.const(np.zeros((rows, columns), np.int32))
    before = 0
    for size, (first, last) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), start=1):
        grams = pool[first:last].reshape(-1, size)
        at, before = places[before : before + len(grams)], before + len(grams)
        if not len(grams) or not low <= size <= high:
            continue
        # Grams in the order of their columns, so that counting gives [rows, grams] and one lookup spreads them.
        spread = np.full(columns, len(grams), np.int64)
        spread[list(at)] = np.arange(len(grams))
        for skip in range(1 if size == 1 else cx.attr(node, "max_skip_count") + 1):
            reach = length - (size - 1) * (skip + 1)
            if reach <= 0:
                break
            hits = [op(cx, "equal", cx.part(x, 1, k * (skip + 1), reach), cx.const(grams[:, k])) for k in range(size)]
            for other in hits[1:]:
                hits[0] = op(cx, "and", hits[0], other)
            counts = cx.transpose(reduce(cx, "sum", flag(cx, hits[0]), [1]), (1, 0))
            total = op(cx, "add", total, cx.transpose(lookup(cx, cx.const(spread), counts), (1, 0)))
    return cx.reshape(_weighted(cx, node, total), (*shape[:-1], columns) if len(shape) == 2 else (columns,))


def _weighted(cx: ImportContext, node: onnx.NodeProto, counts: Value) -> Value:
    """TF: the counts. IDF: the weights where there is one. TFIDF: their product."""
    mode, weights = cx.attr(node, "mode", "TF"), cx.attr(node, "weights")
    number = cx.cast(counts, F32)
    if mode == "IDF":
        number = cx.cast(op(cx, "less", cx.scalar(0, counts), counts), F32)
    if mode == "TF" or not weights:
        return number
    scale = np.zeros(tensor(counts).shape[1], np.float32)
    scale[list(cx.attr(node, "ngram_indexes"))] = weights  # they are listed by gram, counts stand by column
    return op(cx, "mul", number, cx.const(scale))


def _text_grams(node: onnx.NodeProto, opset: int) -> str | None:
    return "pool_strings: text has no form on the machine" if attribute(node, "pool_strings") else None


RULES = (
    OnnxRule("ArrayFeatureExtractor", feature_extractor, domain=ML), OnnxRule("Binarizer", binarizer, domain=ML),
    OnnxRule("LabelEncoder", label_encoder, domain=ML, check=_text_labels),
    OnnxRule("TreeEnsemble", tree_ensemble, 5, domain=ML, check=_tree_forms),
    OnnxRule("TfIdfVectorizer", tfidf, check=_text_grams),
)  # fmt: skip
