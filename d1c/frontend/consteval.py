"""Evaluation on the host of nodes whose inputs are all known at import: shape arithmetic and the decoding of weights.

The common ops are in numpy here; those of `_REFERENCE`, and those without a rule, go to onnx's reference evaluator, as
a model of one node. All others are lowered by their rules and evaluated as graph ops (the reference
evaluator answers wrongly now and then: OneHot, LRN, Resize, GlobalMaxPool, and more on old opsets).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from d1c.errors import ImportFailed
from d1c.frontend.context import MISFIT
from d1c.frontend.load import attribute, tensor_array
from d1c.frontend.shapes import element_type
from d1c.ops.graph.cast import cast_array
from d1c.target.dtypes import from_numpy

Arrays = Sequence[np.ndarray | None]

# Never folded: random values, training, and ops of which the reference evaluator is wrong on old opsets.
_NOT_FOLDED = frozenset(
    "Bernoulli RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Dropout "
    "BatchNormalization Softmax LogSoftmax Hardmax If Loop Scan Optional OptionalGetElement "
    "OptionalHasElement SequenceConstruct SequenceEmpty SequenceAt SequenceInsert SequenceErase "
    "SequenceLength SequenceMap SplitToSequence ConcatFromSequence ImageDecoder StringConcat "
    "StringNormalizer StringSplit RegexFullMatch TfIdfVectorizer LabelEncoder".split()
)


def foldable(node: onnx.NodeProto) -> bool:
    """Whether the node may be evaluated at import once its inputs are known."""
    return node.op_type not in _NOT_FOLDED and node.domain in ("", "ai.onnx")


def direct(node: onnx.NodeProto) -> bool:
    """Whether `evaluate` is to be used although the op has a rule."""
    return node.op_type in _NUMPY or node.op_type in _REFERENCE


_OF_ONE_TYPE = frozenset(
    "ReduceSum ReduceMean ReduceProd ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare MatMul Gemm Conv".split()
)
_REFERENCE = _OF_ONE_TYPE | {"NonZero", "Compress", "NonMaxSuppression"}  # the rules of these give bounded extents
"""Ops of which onnx's reference evaluator is right, and which become graph ops that have no meaning row by row."""


def evaluate(node: onnx.NodeProto, inputs: Arrays, opsets: dict[str, int]) -> tuple[np.ndarray, ...]:
    """The node's outputs from its inputs (None: an optional one left out). Raises ImportFailed with its name."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing
            if node.op_type in _NUMPY:
                result = _NUMPY[node.op_type](node, inputs, opsets.get("", 1))
            else:
                result = _reference(node, inputs, opsets)
    except ImportFailed:
        raise
    except Exception as error:  # numpy and the reference raise whatever they like on inputs that break an op's rules
        raise ImportFailed(
            f"{node.op_type} on constants fails: {type(error).__name__}: {error}",
            where=node.name,
            rule="ONNX's definition of the op",
            remedy=MISFIT,
        ) from error
    arrays = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(a) for a in arrays)


def _reference(node: onnx.NodeProto, inputs: Arrays, opsets: dict[str, int]) -> tuple[np.ndarray, ...]:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: a for name, a in zip(node.input, inputs, strict=True) if a is not None}
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    graph = onnx.helper.make_graph([node], "one", infos, outputs)
    imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items() if d in ("", node.domain)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    by_name = dict(zip([n for n in node.output if n], ReferenceEvaluator(model).run(None, feeds), strict=True))
    if node.op_type in _OF_ONE_TYPE:  # numpy sums squares of i32 as i64
        by_name = {n: a.astype(next(iter(feeds.values())).dtype, copy=False) for n, a in by_name.items()}
    return tuple(by_name.get(n, np.zeros(0, np.float32)) for n in node.output)


def constant_value(node: onnx.NodeProto) -> np.ndarray:
    """What a Constant node holds."""
    for a in node.attribute:
        match a.name:
            case "value":
                return tensor_array(a.t, None)
            case "value_int" | "value_ints":
                return np.array(onnx.helper.get_attribute_value(a), np.int64)
            case "value_float" | "value_floats":
                return np.array(onnx.helper.get_attribute_value(a), np.float32)
            case _:
                raise ImportFailed(
                    f"a Constant with attribute {a.name} is no dense number tensor", where=node.name,
                    rule="tensors are dense and hold numbers", remedy="save the model with dense constants",
                )  # fmt: skip
    raise ImportFailed(
        "a Constant without a value", where=node.name, rule="a Constant has one attribute: its value",
        remedy="the file is damaged: export it again",
    )  # fmt: skip


def normal_axis(axis: int, rank: int, where: str) -> int:
    """The axis counted from 0. Raises ImportFailed if it is none of `rank` axes."""
    if not -rank <= axis < max(rank, 1):
        raise ImportFailed(
            f"axis {axis} of a tensor of rank {rank}", where=where, rule=f"-{rank} <= axis < {rank}",
            remedy=MISFIT,
        )  # fmt: skip
    return axis + rank if axis < 0 else axis


def reshape_target(shape: tuple[int, ...], wanted: Sequence[int], allowzero: bool, where: str) -> tuple[int, ...]:
    """The shape that ONNX's Reshape gives: 0 copies the input's dim unless `allowzero`, -1 is what is left."""
    out = [shape[i] if d == 0 and not allowzero and i < len(shape) else int(d) for i, d in enumerate(wanted)]
    if out.count(-1) == 1:
        rest = math.prod(d for d in out if d != -1)
        out[out.index(-1)] = math.prod(shape) // rest if rest else 0
    if math.prod(out) != math.prod(shape) or any(d < 0 for d in out):
        raise ImportFailed(
            f"shape {list(shape)} does not reshape to {[int(d) for d in wanted]}",
            where=where,
            rule="the number of elements stays",
            remedy="the model was exported for other input shapes: bind those with --shape, or export it dynamic",
        )
    return tuple(out)


def slice_plan(
    shape: tuple[int, ...],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
    where: str,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(starts, steps, sizes), one per dim, of ONNX's Slice, with its clamping."""
    rank = len(shape)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    first, step, size = [0] * rank, [1] * rank, list(shape)
    for a, lo, hi, s in zip(axes, starts, ends, steps, strict=True):
        d = normal_axis(int(a), rank, where)
        if s == 0:
            raise ImportFailed("Slice with step 0", where=where, rule="steps are not 0", remedy=MISFIT)
        lo, hi, s = slice(int(lo), int(hi), int(s)).indices(shape[d])
        # Python reads an end below -extent as "before the first", as ONNX does for negative steps; a start not.
        lo = 0 if lo < 0 < shape[d] else lo
        first[d], step[d], size[d] = lo, s, len(range(lo, hi, s))
        if size[d] == 0:
            first[d] = 0
    return tuple(first), tuple(step), tuple(size)


def squeezed(shape: tuple[int, ...], axes: Sequence[int] | None, where: str) -> tuple[int, ...]:
    """The shape without `axes` (None: without all dims of size 1)."""
    if axes is None:
        return tuple(d for d in shape if d != 1)
    gone = {normal_axis(int(a), len(shape), where) for a in axes}
    if any(shape[a] != 1 for a in gone):
        raise ImportFailed(
            f"Squeeze of axes {sorted(gone)} of shape {list(shape)}",
            where=where,
            rule="they have size 1",
            remedy=MISFIT,
        )
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def unsqueezed(shape: tuple[int, ...], axes: Sequence[int], where: str) -> tuple[int, ...]:
    """The shape with dims of size 1 put in at `axes` (positions in the result)."""
    rank = len(shape) + len(axes)
    new = {normal_axis(int(a), rank, where) for a in axes}
    if len(new) < len(axes):
        raise ImportFailed(
            f"Unsqueeze at {list(axes)}: an axis twice", where=where, rule="axes are different", remedy=MISFIT
        )
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def ints(node: onnx.NodeProto, inputs: Arrays, index: int, name: str) -> tuple[int, ...] | None:
    """Integers that newer opsets give as input `index` and older ones as attribute `name`; None if neither."""
    given = inputs[index] if index < len(inputs) else None
    if given is not None:
        return tuple(int(i) for i in given.reshape(-1))
    value = attribute(node, name)
    return None if value is None else tuple(value)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ONNX's Div: integers truncate toward 0."""
    if np.issubdtype(a.dtype, np.integer):
        q = a // np.where(b == 0, 1, b)
        return np.where(b == 0, 0, q + ((q < 0) & (q * b != a))).astype(a.dtype)
    return np.asarray(a / b)


def _cast(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    assert x[0] is not None
    to = element_type(attribute(node, "to"), node.name) if node.op_type == "Cast" else from_numpy(_present(x)[1].dtype)
    return cast_array(x[0], to, bool(attribute(node, "saturate", 1)), attribute(node, "round_mode", "up"))


def _slice(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (data,) = _present(x[:1])
    starts, ends = ints(node, x, 1, "starts") or (), ints(node, x, 2, "ends") or ()
    first, step, size = slice_plan(data.shape, starts, ends, ints(node, x, 3, "axes"), ints(node, x, 4, ""), node.name)
    return _take(data, first, step, size)


def _take(data: np.ndarray, first: tuple[int, ...], step: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    for axis, (f, s, n) in enumerate(zip(first, step, size, strict=True)):
        if (f, s, n) != (0, 1, data.shape[axis]):
            data = np.take(data, f + s * np.arange(n), axis)
    return data


def _concat(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    return np.concatenate(_present(x), attribute(node, "axis", 1))


def _constant_of_shape(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (shape,) = _present(x)
    value = attribute(node, "value")
    fill = np.zeros(1, np.float32) if value is None else tensor_array(value, None)
    return np.full(tuple(int(d) for d in shape), fill.reshape(-1)[0], fill.dtype)


def _reshape(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (data,) = _present(x[:1])
    wanted = ints(node, x, 1, "shape") or ()
    return data.reshape(reshape_target(data.shape, wanted, bool(attribute(node, "allowzero", 0)), node.name))


def _squeeze(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (data,) = _present(x[:1])
    return data.reshape(squeezed(data.shape, ints(node, x, 1, "axes"), node.name))


def _unsqueeze(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (data,) = _present(x[:1])
    return data.reshape(unsqueezed(data.shape, ints(node, x, 1, "axes") or (), node.name))


def _gather(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    data, index = _present(x)
    return np.take(data, index, attribute(node, "axis", 0))


def _transpose(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    (data,) = _present(x)
    return np.array(np.transpose(data, attribute(node, "perm")), order="C")


def _range(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    start, limit, delta = _present(x)
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return np.asarray(start + np.arange(count) * delta).astype(start.dtype)


def _expand(node: onnx.NodeProto, x: Arrays, opset: int) -> np.ndarray:
    data, shape = _present(x)
    return np.array(np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(int(d) for d in shape))), order="C")


def _unique(node: onnx.NodeProto, x: Arrays, opset: int) -> tuple[np.ndarray, ...]:
    (data,) = _present(x)
    axis = attribute(node, "axis")
    if axis is None:
        data, axis = data.reshape(-1), 0
    found = np.unique(data, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    values, first, inverse, counts = (np.asarray(a) for a in found)
    order = np.arange(len(first)) if attribute(node, "sorted", 1) else np.argsort(first)
    out = (np.take(values, order, axis), first[order], np.argsort(order)[inverse.reshape(-1)], counts[order])
    return out[: len(node.output)]


def _present(x: Arrays) -> list[np.ndarray]:
    return [a for a in x if a is not None]


def _plain(function: Callable[..., Any]) -> Callable[[onnx.NodeProto, Arrays, int], Any]:
    """An op that is one numpy function of its inputs."""
    return lambda node, x, opset: function(*_present(x))


_NUMPY: dict[str, Callable[[onnx.NodeProto, Arrays, int], Any]] = {
    "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _plain(divide),
    "Neg": _plain(np.negative), "Sqrt": _plain(np.sqrt), "Exp": _plain(np.exp), "Equal": _plain(np.equal),
    "Less": _plain(np.less), "Greater": _plain(np.greater), "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and), "Or": _plain(np.logical_or), "Where": _plain(np.where),
    "Floor": _plain(np.floor), "Ceil": _plain(np.ceil), "Cast": _cast, "CastLike": _cast, "Slice": _slice,
    "Concat": _concat, "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Gather": _gather, "Transpose": _transpose,
    "Range": _range, "Expand": _expand, "Unique": _unique,
    "Constant": lambda node, x, opset: constant_value(node),
    "Shape": lambda node, x, opset: shape_value(node, x[0].shape if x[0] is not None else ()),
    "Size": lambda node, x, opset: np.array(_present(x)[0].size, np.int64),
}  # fmt: skip


def shape_value(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    """What a Shape node gives for a tensor of this shape."""
    start, end = attribute(node, "start", 0), attribute(node, "end")
    return np.array(shape[slice(start, end)], np.int64)
