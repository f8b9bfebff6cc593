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
    """`reduce`: none (the last update of a row stays), add, mul, max or min."""

    reduce: str = "none"


def _infer(types: tuple[Type, ...], attrs: ScatterAttrs) -> tuple[Type, ...]:
    data, indices, updates = tensors(types, 3)
    if attrs.reduce not in COMBINE:
        raise ValueError(f"reduce {attrs.reduce!r} is none of {', '.join(COMBINE)}")
    if not data.shape or len(indices.shape) != 1 or indices.dtype.kind not in ("int", "uint"):
        raise ValueError(f"takes data, then integers of one dim; has {list(data.shape)}, then {indices}")
    if updates.shape != (*indices.shape, *data.shape[1:]):
        raise ValueError(f"updates have shape {list(updates.shape)}, not {[*indices.shape, *data.shape[1:]]}")
    common = common_dtype([data.dtype, updates.dtype])
    if attrs.reduce != "none" and (common == BOOL or common.name not in COMPUTE_TYPE):
        raise ValueError(f"no arithmetic on {common}")
    return (data,)


def _structure(types: tuple[Type, ...], attrs: ScatterAttrs, results: tuple[Type, ...]) -> Structured:
    """Rows may be cut anywhere: every core goes through all updates and takes those of its rows."""
    (_, indices, _), (out,) = tensors(types, 3), tensors(results, 1)
    rank = len(out.shape)
    dims = (Dim("v", out.shape[0]), *parallel_dims(out.shape[1:]), Dim("u", indices.shape[0], True))
    data = tuple(Entry(((i, 1),)) for i in range(rank))
    updates = (Entry(((rank, 1),)), *data[1:])
    return Structured(dims, "scatter", (data, (Entry(((rank, 1),)),), updates), (None,) * 3, 3)


def _eval(
    attrs: ScatterAttrs, results: tuple[Type, ...], data: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    (t,), name, b = tensors(results, 1), COMBINE[attrs.reduce], NumpyBuilder()
    body = opdef(name).body if name else None
    if body is not None:
        updates = widen(updates)
    elif updates.dtype != data.dtype:
        updates = round_to(widen(updates), t.dtype)
    out = data.copy()
    for row, update in zip(indices.tolist(), updates, strict=True):
        if 0 <= row < len(out):
            held = np.asarray(out[row])
            out[row] = update if body is None else round_to(body(b, None, widen(held), np.asarray(update)), t.dtype)
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


register(OpDef(
    "graph.scatter", "scatter", _infer, ScatterAttrs, _eval, structure=_structure,
    facts={"combine": lambda attrs: COMBINE[attrs.reduce]},
    cases=(
        _case("none", lambda a, b: b, np.float32), _case("add", np.add, np.float32),
        _case("mul", np.multiply, np.float32, (9,), 20), _case("max", np.maximum, np.int32, (1, 4)),
        _case("min", np.minimum, np.int64), _case("none", lambda a, b: b, np.int64, (40, 2, 1, 3), 1),
    ),
    doc="Rows of data (operand 0) replaced by, or combined with, updates (operand 2) at run-time row numbers (operand"
    " 1), one after another, each stored in data's type; a number outside is passed over.",
))  # fmt: skip
