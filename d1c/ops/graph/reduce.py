"""Reductions over whole dims, and pools over windows (channels last)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.contract import spatial_dims, tap_dims, window_entries, windows
from d1c.ops.graph.family import accumulator, tensors
from d1c.ops.opdef import OpDef, register
from d1c.target.dtypes import F32
from d1c.target.nest_numpy import LANES
from d1c.target.numerics import slices


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """`axes`: the dims that go, ascending; `keepdims` leaves them with extent 1."""

    axes: tuple[int, ...]
    keepdims: bool = False


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """Per spatial dim, `pads` first all low sides, then all high sides."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


def _reduce_infer(types: tuple[Type, ...], attrs: ReduceAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    axes = attrs.axes
    if not axes or list(axes) != sorted(set(axes)) or axes[0] < 0 or axes[-1] >= len(x.shape):
        raise ValueError(f"axes {list(axes)} must ascend within 0 .. {len(x.shape) - 1}")
    kept = [1 if i in axes else n for i, n in enumerate(x.shape) if attrs.keepdims or i not in axes]
    return (TensorType(tuple(kept), accumulator([x.dtype])),)


def _reduce_structure(kind: str) -> Callable[..., Structured]:
    def structure(types: tuple[Type, ...], attrs: ReduceAttrs, results: tuple[Type, ...]) -> Structured:
        (x,), (out,) = tensors(types, 1), tensors(results, 1)
        axes, rank = attrs.axes, len(out.shape)
        dims = [Dim(f"d{i}", n) for i, n in enumerate(out.shape)]
        dims += [Dim(f"r{i}", x.shape[a], True) for i, a in enumerate(axes)]
        kept = [i for i in range(len(x.shape)) if i not in axes]
        number = {a: rank + i for i, a in enumerate(axes)}
        number |= {a: (a if attrs.keepdims else i) for i, a in enumerate(kept)}
        lanes = axes[-1] == len(x.shape) - 1
        cut = len(dims) - 1 if lanes else rank
        total = math.prod(x.shape[a] for a in axes)
        length = slices(total, dims[cut].extent, LANES if lanes else 4)[1]
        read = tuple(Entry(((number[i], 1),)) for i in range(len(x.shape)))
        return Structured(tuple(dims), kind, (read,), (None,), 1, cut, length, lanes)

    return structure


def _pool_infer(types: tuple[Type, ...], attrs: PoolAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if len(x.shape) < 3:
        raise ValueError(f"operand 0 needs dims N, spatial..., C, has shape {list(x.shape)}")
    spatial = windows(x.shape[1:-1], attrs.kernel, attrs.strides, attrs.pads, attrs.dilations)
    return (TensorType((x.shape[0], *spatial, x.shape[-1]), accumulator([x.dtype])),)


def _pool_structure(kind: str) -> Callable[..., Structured]:
    def structure(types: tuple[Type, ...], attrs: PoolAttrs, results: tuple[Type, ...]) -> Structured:
        (x,), (out,) = tensors(types, 1), tensors(results, 1)
        r = len(attrs.kernel)
        dims = (Dim("n", x.shape[0]), *spatial_dims(out.shape[1:-1]), Dim("ch", x.shape[-1]), *tap_dims(attrs.kernel))
        read = (Entry(((0, 1),)), *window_entries(attrs, r + 2), Entry(((r + 1, 1),)))
        lowest = -math.inf if x.dtype.is_float else float(np.iinfo(x.dtype.numpy).min)
        return Structured(dims, kind, (read,), (lowest if kind == "max" else 0.0,), 1)

    return structure


def _reduce_case(f: Callable[..., Any], shape: tuple[int, ...], attrs: ReduceAttrs) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = rng.normal(size=shape).astype(np.float32)
        return attrs, [x], f(x.astype(np.float64), axis=attrs.axes, keepdims=attrs.keepdims).astype(np.float32)

    return case


def _pool_case(f: Callable[..., Any], fill: float, shape: tuple[int, ...], attrs: PoolAttrs) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x, r = rng.normal(size=shape).astype(np.float32), len(attrs.kernel)
        padded = np.pad(x, [(0, 0), *zip(attrs.pads[:r], attrs.pads[r:], strict=True), (0, 0)], constant_values=fill)
        out = np.zeros(_pool_infer((TensorType(shape, F32),), attrs)[0].shape, np.float32)  # type: ignore[union-attr]
        for place in np.ndindex(*out.shape[1:-1]):
            rows = zip(place, attrs.strides, attrs.kernel, attrs.dilations, strict=True)
            window = (slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in rows)
            part = padded[(slice(None), *window)]
            out[(slice(None), *place)] = f(part, axis=tuple(range(1, r + 1)))
        return attrs, [x], out

    return case


def _cases(f: Callable[..., Any]) -> tuple[Any, ...]:
    return (
        _reduce_case(f, (3, 5, 700), ReduceAttrs((2,), True)),
        _reduce_case(f, (2, 9, 30, 4), ReduceAttrs((1, 2))),
        _reduce_case(f, (5, 3, 7), ReduceAttrs((0, 2))),
    )


_PADDED = PoolAttrs((3, 2), (2, 1), (1, 0, 1, 1), (1, 2))
_WINDOW = PoolAttrs((3,), (2,), (0, 0), (1,))

register(OpDef(
    "graph.reduce_sum", "reduce", _reduce_infer, ReduceAttrs, structure=_reduce_structure("sum"), cases=_cases(np.sum),
    doc="Sum over `axes` (N7). The mean is this and a division.",
))  # fmt: skip
register(OpDef(
    "graph.reduce_prod", "reduce", _reduce_infer, ReduceAttrs, structure=_reduce_structure("prod"),
    cases=_cases(np.prod), doc="Product over `axes`, in the order of a sum (N7).",
))  # fmt: skip
register(OpDef(
    "graph.reduce_max", "reduce", _reduce_infer, ReduceAttrs, structure=_reduce_structure("max"), cases=_cases(np.max),
    doc="Largest over `axes`; NaN wins.",
))  # fmt: skip
register(OpDef(
    "graph.reduce_min", "reduce", _reduce_infer, ReduceAttrs, structure=_reduce_structure("min"), cases=_cases(np.min),
    doc="Smallest over `axes`; NaN wins.",
))  # fmt: skip
register(OpDef(
    "graph.max_pool", "reduce", _pool_infer, PoolAttrs, structure=_pool_structure("max"),
    cases=(_pool_case(np.max, -np.inf, (2, 7, 6, 3), _PADDED), _pool_case(np.max, -np.inf, (1, 9, 4), _WINDOW)),
    doc="Largest of each window; outside the input is -inf.",
))  # fmt: skip
register(OpDef(
    "graph.sum_pool", "reduce", _pool_infer, PoolAttrs, structure=_pool_structure("sum"),
    cases=(_pool_case(np.sum, 0, (2, 7, 6, 3), _PADDED), _pool_case(np.sum, 0, (1, 9, 4), _WINDOW)),
    doc="Sum of each window, taps row-major, one after another (N8). The average pool is this and a division.",
))  # fmt: skip
