"""Sequences and optionals: lists that the importer keeps, so that nothing of them is left in the program.

Their lengths and positions are known at compile time; the tensors in them are ordinary values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import Absent, ImportContext, Item, ValueList, tensor
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import DType


def _list(cx: ImportContext, node: onnx.NodeProto, index: int = 0) -> ValueList:
    item = cx.input(node, index)
    if not isinstance(item, ValueList):
        raise ValueError(f"operand {index} is no sequence")
    return item


def _dtype(items: ValueList) -> DType | None:
    return tensor(items.items[0]).dtype if items.items else items.dtype


def construct(cx: ImportContext, node: onnx.NodeProto) -> ValueList:
    return ValueList(tuple(cx.inputs(node)))


def empty(cx: ImportContext, node: onnx.NodeProto) -> ValueList:
    return ValueList((), cx.element_type(cx.attr(node, "dtype", onnx.TensorProto.FLOAT)))


def length(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return cx.const(np.array(len(_list(cx, node).items), np.int64))


def _position(cx: ImportContext, node: onnx.NodeProto, index: int, count: int, default: int) -> int:
    """The position that operand `index` says, counted from 0; it must be below `count`."""
    given = cx.static(node, index, "position")
    position = default if given is None else int(given.reshape(-1)[0])
    if not -count <= position < count:
        raise ValueError(f"position {position} of {count}")
    return position % count


def at(cx: ImportContext, node: onnx.NodeProto) -> Value:
    items = _list(cx, node).items
    return items[_position(cx, node, 1, len(items), 0)]


def insert(cx: ImportContext, node: onnx.NodeProto) -> ValueList:
    """Before the position; without one, at the end."""
    items, new = _list(cx, node).items, cx.input(node, 1)
    given = cx.static(node, 2, "position")
    position = len(items) if given is None else int(given.reshape(-1)[0])
    if not -len(items) <= position <= len(items):
        raise ValueError(f"position {position} of {len(items)}")
    position += len(items) if position < 0 else 0
    return ValueList((*items[:position], new, *items[position:]))


def erase(cx: ImportContext, node: onnx.NodeProto) -> ValueList:
    whole = _list(cx, node)
    position = _position(cx, node, 1, len(whole.items), -1)
    return ValueList(whole.items[:position] + whole.items[position + 1 :], _dtype(whole))


def split(cx: ImportContext, node: onnx.NodeProto) -> ValueList:
    """Parts of `axis`: of one size (a scalar), of listed sizes, or without `split` single elements."""
    x = cx.input(node, 0)
    shape = tensor(x).shape
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    extent = shape[axis]
    given = cx.static(node, 1, "split")
    if given is None:
        sizes = [1] * extent
    elif given.ndim == 0:
        each = int(given)
        sizes = [min(each, extent - i * each) for i in range(math.ceil(extent / each))]
    else:
        sizes = [int(n) for n in given]
    if sum(sizes) != extent:
        raise ValueError(f"parts {sizes} of an extent of {extent}")
    starts = np.cumsum([0, *sizes])
    parts = [cx.part(x, axis, int(s), n) for s, n in zip(starts, sizes, strict=False)]
    if given is None and not cx.attr(node, "keepdims", 1):
        parts = [cx.reshape(p, shape[:axis] + shape[axis + 1 :]) for p in parts]
    return ValueList(tuple(parts), tensor(x).dtype)


def concat(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Along `axis`, or with `new_axis` along a dim that is put there."""
    items = _list(cx, node).items
    if not items:
        raise ValueError("an empty sequence")
    rank, new = len(tensor(items[0]).shape), bool(cx.attr(node, "new_axis", 0))
    axis = normal_axis(cx.attr(node, "axis"), rank + new, cx.origin)
    if new:
        items = tuple(cx.reshape(v, (*tensor(v).shape[:axis], 1, *tensor(v).shape[axis:])) for v in items)
    return cx.concat(items, axis)


def map_(cx: ImportContext, node: onnx.NodeProto) -> tuple[ValueList, ...]:
    """The body once for each element of the first sequence, with the elements of the others at the same position;
    tensors are the same for all."""
    inputs = cx.inputs(node)
    count = len(_list(cx, node).items)
    body: onnx.GraphProto = cx.attr(node, "body")
    rows = []
    for i in range(count):
        rows.append(cx.subgraph(body, [v.items[i] if isinstance(v, ValueList) else v for v in inputs]))
    types = [o.type.tensor_type.elem_type for o in body.output]
    return tuple(
        ValueList(tuple(_value(row[j]) for row in rows), cx.element_type(types[j]) if types[j] else None)
        for j in range(len(body.output))
    )


def _value(item: Item) -> Value:
    if not isinstance(item, Value):
        raise ValueError("a sequence in a sequence")
    return item


def optional(cx: ImportContext, node: onnx.NodeProto) -> Any:
    """Its operand, or nothing where that is left out."""
    given = cx.input(node, 0)
    return Absent() if given is None else given


def has_element(cx: ImportContext, node: onnx.NodeProto) -> Value:
    given = cx.input(node, 0)
    return cx.const(np.array(not (given is None or isinstance(given, Absent))))


def get_element(cx: ImportContext, node: onnx.NodeProto) -> Any:
    given = cx.input(node, 0)
    if given is None or isinstance(given, Absent):
        raise ValueError("the optional has no value")
    return given


RULES = (
    OnnxRule("SequenceConstruct", construct), OnnxRule("SequenceEmpty", empty), OnnxRule("SequenceLength", length),
    OnnxRule("SequenceAt", at, static=(1,)), OnnxRule("SequenceInsert", insert, static=(2,)),
    OnnxRule("SequenceErase", erase, static=(1,)), OnnxRule("SplitToSequence", split, static=(1,)),
    OnnxRule("ConcatFromSequence", concat), OnnxRule("SequenceMap", map_),
    OnnxRule("Optional", optional), OnnxRule("OptionalHasElement", has_element),
    OnnxRule("OptionalGetElement", get_element),
)  # fmt: skip
