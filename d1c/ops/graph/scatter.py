"""Writes at run-time rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import Type
from d1c.ops.graph.family import common_dtype, parallel_dims, tensors
from d1c.ops.opdef import OpDef, opdef, register
from d1c.target.dtypes import BOOL
from d1c.target.kernel import COMPUTE_TYPE
from d1c.target.numerics import NumpyBuilder, round_to, widen

COMBINE = {"none": None, "add": "graph.add", "mul": "graph.mul", "max": "graph.max", "min": "graph.min"}
"""`reduce` to the elementwise op by which an update joins what is there (None: it takes its place)."""


@dataclass(frozen=True, slots=True)
class ScatterAttrs:
    """`reduce`: none (the last update of a row stays), add, mul, max or min. `batch`: how many dims behind data's first
    are also the leading ones of indices and updates, each with row numbers of its own."""

    reduce: str = "none"
    batch: int = 0


def _infer(types: tuple[Type, ...], attrs: ScatterAttrs) -> tuple[Type, ...]:
    data, indices, updates = tensors(types, 3)
    if attrs.reduce not in COMBINE:
        raise ValueError(f"reduce {attrs.reduce!r} is none of {', '.join(COMBINE)}")
    n = attrs.batch
    if not data.shape or len(indices.shape) != n + 1 or indices.dtype.kind not in ("int", "uint"):
        raise ValueError(f"takes data, then integers of {n + 1} dims; has {list(data.shape)}, then {indices}")
    if indices.shape[:n] != data.shape[1 : n + 1]:
        raise ValueError(f"indices have leading dims {list(indices.shape[:n])}, not {list(data.shape[1 : n + 1])}")
    if updates.shape != (*indices.shape, *data.shape[n + 1 :]):
        raise ValueError(f"updates have shape {list(updates.shape)}, not {[*indices.shape, *data.shape[n + 1 :]]}")
    common = common_dtype([data.dtype, updates.dtype])
    if attrs.reduce != "none" and (common == BOOL or common.name not in COMPUTE_TYPE):
        raise ValueError(f"no arithmetic on {common}")
    return (data,)


def _structure(types: tuple[Type, ...], attrs: ScatterAttrs, results: tuple[Type, ...]) -> Structured:
    """Rows may be cut anywhere: every core goes through all updates and takes those of its rows."""
    (_, indices, _), (out,) = tensors(types, 3), tensors(results, 1)
    rank, n = len(out.shape), attrs.batch
    dims = (Dim("v", out.shape[0]), *parallel_dims(out.shape[1:]), Dim("u", indices.shape[-1], True))
    data, turn = tuple(Entry(((i, 1),)) for i in range(rank)), Entry(((rank, 1),))
    numbers = (*data[1 : n + 1], turn)
    return Structured(dims, "scatter", (data, numbers, (*numbers, *data[n + 1 :])), (None,) * 3, 3)


def _eval(
    attrs: ScatterAttrs, results: tuple[Type, ...], data: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    (t,), name, b = tensors(results, 1), COMBINE[attrs.reduce], NumpyBuilder()
    body = opdef(name).body if name else None
    if body is not None:
        updates = widen(updates)
    elif updates.dtype != data.dtype:
        updates = round_to(widen(updates), t.dtype)
    out, n = data.copy(), attrs.batch
    for u in range(indices.shape[-1]):
        rows = indices[..., u].reshape(-1)
        inside = np.flatnonzero((rows >= 0) & (rows < len(out)))  # one row of every batch
        at = np.unravel_index(inside, indices.shape[:-1]) if n else ()
        place = (rows[inside], *at)
        update = np.moveaxis(updates, n, 0)[u][at] if n else np.moveaxis(updates, n, 0)[[u] * len(inside)]
        out[place] = update if body is None else round_to(body(b, None, widen(out[place]), update), t.dtype)
    return out


def _case(
    reduce: str, f: Callable[..., Any], dtype: Any, shape: tuple[int, ...] = (7, 3, 5), count: int = 12
) -> Callable[[np.random.Generator], Any]:
    def case(rng: np.random.Generator) -> Any:
        data, updates = (rng.uniform(-3, 3, s).astype(dtype) for s in (shape, (count, *shape[1:])))
        indices = rng.integers(-2, shape[0] + 2, count)
        expected = data.copy()
        for i, row in enumerate(indices):
            if 0 <= row < shape[0]:
                expected[row] = f(expected[row], updates[i])
        return ScatterAttrs(reduce), [data, indices, updates], expected

    return case


def _batched_case(rng: np.random.Generator) -> Any:
    data, updates = (rng.uniform(-3, 3, s).astype(np.float32) for s in ((6, 2, 3, 4), (2, 3, 9, 4)))
    indices = rng.integers(-1, 7, (2, 3, 9))
    expected = data.copy()
    for i, j, u in np.ndindex(2, 3, 9):
        if 0 <= indices[i, j, u] < 6:
            expected[indices[i, j, u], i, j] += updates[i, j, u]
    return ScatterAttrs("add", 2), [data, indices, updates], expected


register(OpDef(
    "graph.scatter", "scatter", _infer, ScatterAttrs, _eval, structure=_structure,
    facts={"combine": lambda attrs: COMBINE[attrs.reduce]},
    cases=(
        _case("none", lambda a, b: b, np.float32), _case("add", np.add, np.float32),
        _case("mul", np.multiply, np.float32, (9,), 20), _case("max", np.maximum, np.int32, (1, 4)),
        _case("min", np.minimum, np.int64), _case("none", lambda a, b: b, np.int64, (40, 2, 1, 3), 1), _batched_case,
    ),
    doc="Rows of data (operand 0) replaced by, or combined with, updates (operand 2) at run-time row numbers (operand"
    " 1), one after another, each stored in data's type; a number outside is passed over. Dims of"
    " data behind the first may have row numbers of their own (`batch`).",
))  # fmt: skip
