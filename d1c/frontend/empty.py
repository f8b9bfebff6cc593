"""Ops on tensors without elements: their results are known at import, so that none of them reaches the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from d1c.ir.core import Value
from d1c.ir.types import TensorType
from d1c.target.dtypes import DType


def lowest(dtype: DType) -> Any:
    """The identity of max: -inf, or the smallest integer."""
    return -np.inf if dtype.is_float else np.iinfo(dtype.numpy).min if dtype.kind != "bool" else False


def highest(dtype: DType) -> Any:
    """The identity of min: inf, or the largest integer."""
    return np.inf if dtype.is_float else np.iinfo(dtype.numpy).max if dtype.kind != "bool" else True


def resolve(
    name: str, operands: Sequence[Value], attrs: Any, results: Sequence[TensorType]
) -> tuple[np.ndarray | Value, ...] | None:
    """The results of op `name` if an operand or a result has no elements: arrays, or an operand itself. None: not so.

    Sums over nothing are 0, products 1, minima and maxima the other's identity; what gathers finds zeros.
    Raises ValueError for an op that has no such meaning.
    """
    if all(r.size == 0 for r in results):
        return tuple(np.zeros(r.shape, r.dtype.numpy) for r in results)
    types = [v.type for v in operands]
    if not any(isinstance(t, TensorType) and t.size == 0 for t in types):
        return None
    (out,) = results
    match name:
        case "graph.reduce_sum" | "graph.matmul" | "graph.conv" | "graph.sum_pool" | "graph.lookup":
            fill: Any = 0
        case "graph.reduce_prod":
            fill = 1
        case "graph.reduce_max" | "graph.max_pool":
            fill = lowest(out.dtype)
        case "graph.reduce_min":
            fill = highest(out.dtype)
        case "graph.pad":
            fill = attrs.value
        case "graph.scatter":
            return (operands[0],)
        case _:
            raise ValueError("an operand has no elements")
    return (np.full(out.shape, fill, out.dtype.numpy),)
