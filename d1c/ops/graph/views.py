"""Views: they move no data, a consumer reads through them (ViewMap)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.structured import Entry
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import broadcast_map, tensors
from d1c.ops.opdef import OpDef, ViewMap, register


@dataclass(frozen=True, slots=True)
class ShapeAttrs:
    """The result's shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransposeAttrs:
    """Result dim j is operand dim perm[j]."""

    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """Per dim the first index (>= 0), the step (may be negative) and how many."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    sizes: tuple[int, ...]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def reshape_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[range, range]]:
    """The finest pairs of adjacent dims of `old` and of `new` with equal products. Dims of size 1 stand alone, against
    an empty range, unless they lie within a pair. Both shapes have the same size, not 0."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        if i < len(old) and old[i] == 1:
            groups.append((range(i, i + 1), range(j, j)))
            i += 1
        elif j < len(new) and new[j] == 1:
            groups.append((range(i, i), range(j, j + 1)))
            j += 1
        else:
            i0, j0, p, q = i, j, old[i], new[j]
            i, j = i + 1, j + 1
            while p != q:
                if p < q:
                    p, i = p * old[i], i + 1
                else:
                    q, j = q * new[j], j + 1
            groups.append((range(i0, i), range(j0, j)))
    return groups


def _reshape_infer(types: tuple[Type, ...], attrs: ShapeAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if min(attrs.shape, default=1) < 0 or math.prod(attrs.shape) != x.size:
        raise ValueError(f"{list(x.shape)} has {x.size} elements, {list(attrs.shape)} has not")
    return (TensorType(attrs.shape, x.dtype),)


def _reshape_view(types: tuple[Type, ...], attrs: ShapeAttrs, results: tuple[Type, ...]) -> ViewMap | None:
    (x,) = tensors(types, 1)
    if not x.size:
        return None
    entries = []
    for old, new in reshape_groups(x.shape, attrs.shape):
        if old:
            strides = row_major(tuple(attrs.shape[j] for j in new))
            terms = tuple((j, s) for j, s in zip(new, strides, strict=True) if attrs.shape[j] != 1)
            entries.append(Entry(terms, 0, len(old)))
    return ViewMap(tuple(entries))


def _transpose_infer(types: tuple[Type, ...], attrs: TransposeAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if sorted(attrs.perm) != list(range(len(x.shape))):
        raise ValueError(f"perm {list(attrs.perm)} does not order {len(x.shape)} dims")
    return (TensorType(tuple(x.shape[p] for p in attrs.perm), x.dtype),)


def _transpose_view(types: tuple[Type, ...], attrs: TransposeAttrs, results: tuple[Type, ...]) -> ViewMap:
    return ViewMap(tuple(Entry(((attrs.perm.index(i), 1),)) for i in range(len(attrs.perm))))


def _slice_infer(types: tuple[Type, ...], attrs: SliceAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if not len(x.shape) == len(attrs.starts) == len(attrs.steps) == len(attrs.sizes):
        raise ValueError(f"needs a start, a step and a size for each of {len(x.shape)} dims")
    for d, (n, start, step, size) in enumerate(zip(x.shape, attrs.starts, attrs.steps, attrs.sizes, strict=True)):
        if size < 0 or step == 0:
            raise ValueError(f"dim {d}: size {size}, step {step}")
        if size and not (0 <= start < n and 0 <= start + (size - 1) * step < n):
            raise ValueError(f"dim {d}: {start} .. {start + (size - 1) * step} leaves 0 .. {n - 1}")
    return (TensorType(attrs.sizes, x.dtype),)


def _slice_view(types: tuple[Type, ...], attrs: SliceAttrs, results: tuple[Type, ...]) -> ViewMap:
    rows = zip(attrs.starts, attrs.steps, attrs.sizes, strict=True)
    return ViewMap(tuple(Entry(((i, k),) if n != 1 else (), s) for i, (s, k, n) in enumerate(rows)))


def _slice_eval(attrs: SliceAttrs, results: tuple[Type, ...], x: np.ndarray) -> np.ndarray:
    rows = zip(attrs.starts, attrs.steps, attrs.sizes, strict=True)
    index = [np.arange(n) * k + s for s, k, n in rows]
    return x[np.ix_(*index)] if index else x


def _expand_infer(types: tuple[Type, ...], attrs: ShapeAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    skip = len(attrs.shape) - len(x.shape)
    if skip < 0 or any(n not in (1, m) for n, m in zip(x.shape, attrs.shape[skip:], strict=True)):
        raise ValueError(f"{list(x.shape)} does not broadcast to {list(attrs.shape)}")
    return (TensorType(attrs.shape, x.dtype),)


def _expand_view(types: tuple[Type, ...], attrs: ShapeAttrs, results: tuple[Type, ...]) -> ViewMap:
    (x,) = tensors(types, 1)
    return ViewMap(broadcast_map(x.shape, len(attrs.shape)))


def _f32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _reshape_case(rng: np.random.Generator) -> Any:
    x = _f32(rng, 4, 6, 1, 5)
    return ShapeAttrs((2, 12, 5, 1)), [x], x.reshape(2, 12, 5, 1)


def _transpose_case(rng: np.random.Generator) -> Any:
    x = _f32(rng, 2, 3, 4)
    return TransposeAttrs((2, 0, 1)), [x], x.transpose(2, 0, 1)


def _slice_case(rng: np.random.Generator) -> Any:
    x = _f32(rng, 5, 8)
    return SliceAttrs((4, 1), (-2, 3), (3, 2)), [x], x[::-2, 1:6:3]


def _expand_case(rng: np.random.Generator) -> Any:
    x = _f32(rng, 3, 1)
    return ShapeAttrs((2, 3, 4)), [x], np.broadcast_to(x, (2, 3, 4))


register(OpDef(
    "graph.reshape", "view", _reshape_infer, ShapeAttrs, lambda a, r, x: x.reshape(a.shape), view=_reshape_view,
    cases=(_reshape_case,), doc="The same elements in row-major order under another shape.",
))  # fmt: skip
register(OpDef(
    "graph.transpose", "view", _transpose_infer, TransposeAttrs, lambda a, r, x: x.transpose(a.perm),
    view=_transpose_view, cases=(_transpose_case,), doc="Dims in another order.",
))  # fmt: skip
register(OpDef(
    "graph.slice", "view", _slice_infer, SliceAttrs, _slice_eval, view=_slice_view, cases=(_slice_case,),
    doc="A regular part: start, step and size per dim.",
))  # fmt: skip
register(OpDef(
    "graph.expand", "view", _expand_infer, ShapeAttrs, lambda a, r, x: np.broadcast_to(x, a.shape), view=_expand_view,
    cases=(_expand_case,), doc="Dims of size 1 repeated, dims put in front.",
))  # fmt: skip
