"""The model's inputs and outputs as the program's ports: tensors without elements, sequences and optionals have none.

A tensor with no element is a constant inside and only checked, or made, at the program's border. The elements of a
sequence `s` are the ports `s.0`, `s.1`, ...; an optional without a value has no port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d1c.frontend import bounded
from d1c.frontend.context import Absent, ImportContext, Item, ValueList, tensor
from d1c.frontend.shapes import Declared
from d1c.ir.core import Value
from d1c.ir.types import TensorType


def bind_inputs(cx: ImportContext, types: Mapping[str, Declared]) -> tuple[list[Value], dict[str, Any]]:
    """Bind every input; main's arguments, and the module attributes that say which inputs are none of them."""
    args: list[Value] = []
    empty: list[tuple[Any, ...]] = []

    def argument(name: str, type_: TensorType) -> Value:
        if type_.size:
            args.append(Value(type_, name))
            return args[-1]
        empty.append((name, type_.dtype.name, *type_.shape))
        return cx.const(np.zeros(type_.shape, type_.dtype.numpy), name)

    for name, declared in types.items():
        item: Item
        if isinstance(declared, TensorType):
            item = argument(name, declared)
        elif declared is None:
            item = Absent()
        else:
            item = ValueList(tuple(argument(f"{name}.{i}", t) for i, t in enumerate(declared.items)), declared.dtype)
        cx.bind(name, item)
    return args, {"empty_inputs": tuple(empty)} if empty else {}


def results_of(cx: ImportContext, outputs: Sequence[str]) -> tuple[list[Value], dict[str, Any]]:
    """What main returns, and the module attributes: "outputs" names of the results; where there are such, "lists"
    (name, length; -1: an optional without a value), "empty_outputs" (name, type, dims...) and "counts" (name, dim,
    result that holds the extent)."""
    names: list[str] = []
    results: list[Value] = []
    empty: list[tuple[Any, ...]] = []
    lists: list[tuple[str, int]] = []

    def result(name: str, value: Value) -> None:
        value = _with_elements(cx, value)
        t = tensor(value)
        if t.size:
            names.append(name)
            results.append(value)
        else:
            empty.append((name, t.dtype.name, *t.shape))

    for name in outputs:
        item = cx.bound(name)
        if isinstance(item, ValueList):
            lists.append((name, len(item.items)))
            for i, value in enumerate(item.items):
                result(f"{name}.{i}", value)
        elif isinstance(item, Absent):
            lists.append((name, -1))
        else:
            result(name, item)
    hidden, results, counts = bounded.outputs(cx, names, results)
    attrs: dict[str, Any] = {"outputs": hidden}
    if counts:
        attrs["counts"] = counts
    if empty:
        attrs["empty_outputs"] = tuple(empty)
    if lists:
        attrs["lists"] = tuple(lists)
    return results, attrs


def _with_elements(cx: ImportContext, value: Value) -> Value:
    """A tensor without elements of which run time decides another extent: one of more, cut to none."""
    t, counts = tensor(value), cx.counts(value)
    if t.size or not counts:
        return value
    shape = tuple(max(n, 1) for n in t.shape)
    none = cx.const(np.zeros(1, np.int64))
    made = cx.const(np.zeros(shape, t.dtype.numpy))
    return bounded.limit(cx, made, {**{d: none for d, n in enumerate(t.shape) if n == 0}, **counts})
