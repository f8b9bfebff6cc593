"""Ops that copy: pad, concat, pack; and the lookup of table rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.contract import pack
from d1c.ops.graph.family import common_dtype, parallel_dims, tensors
from d1c.ops.opdef import OpDef, register


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """Elements put before and after each dim (negative: taken away), and their value."""

    lo: tuple[int, ...]
    hi: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """`axis`: the dim along which the operands follow each other (>= 0)."""

    axis: int


@dataclass(frozen=True, slots=True)
class PackAttrs:
    """`pair`: two adjacent rows side by side (bf16); otherwise the pair dim has extent 1."""

    pair: bool


@dataclass(frozen=True, slots=True)
class LookupAttrs:
    """`batch`: how many leading dims the indices and the table have in common, each with tables of its own."""

    batch: int = 0


def _pad_infer(types: tuple[Type, ...], attrs: PadAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if not len(x.shape) == len(attrs.lo) == len(attrs.hi):
        raise ValueError(f"needs lo and hi for each of {len(x.shape)} dims")
    shape = tuple(lo + n + hi for lo, n, hi in zip(attrs.lo, x.shape, attrs.hi, strict=True))
    if min(shape, default=0) < 0:
        raise ValueError(f"takes more away than {list(x.shape)} has")
    return (TensorType(shape, x.dtype),)


def _pad_structure(types: tuple[Type, ...], attrs: PadAttrs, results: tuple[Type, ...]) -> Structured:
    (out,) = tensors(results, 1)
    read = tuple(Entry(((i, 1),), -lo) for i, lo in enumerate(attrs.lo))
    return Structured(parallel_dims(out.shape), "map", (read,), (attrs.value,), 0)


def _pad_eval(attrs: PadAttrs, results: tuple[Type, ...], x: np.ndarray) -> np.ndarray:
    sides = list(zip(attrs.lo, attrs.hi, strict=True))
    widths = [(max(0, lo), max(0, hi)) for lo, hi in sides]
    out = np.full([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)], attrs.value, x.dtype)
    out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
    return out[tuple(slice(max(0, -lo), n - max(0, -hi)) for n, (lo, hi) in zip(out.shape, sides, strict=True))]


def _concat_infer(types: tuple[Type, ...], attrs: ConcatAttrs) -> tuple[Type, ...]:
    ts = tensors(types)
    if not ts:
        raise ValueError("takes at least one operand")
    axis, shape = attrs.axis, ts[0].shape
    if not 0 <= axis < len(shape):
        raise ValueError(f"axis {axis} is not a dim of {list(shape)}")
    if any(t.shape[:axis] + t.shape[axis + 1 :] != shape[:axis] + shape[axis + 1 :] for t in ts):
        raise ValueError(f"shapes {', '.join(str(list(t.shape)) for t in ts)} differ beside dim {axis}")
    total = sum(t.shape[axis] for t in ts)
    return (TensorType((*shape[:axis], total, *shape[axis + 1 :]), common_dtype([t.dtype for t in ts])),)


def _concat_structure(types: tuple[Type, ...], attrs: ConcatAttrs, results: tuple[Type, ...]) -> Structured:
    """Each operand is 0 outside its part; the parts are or-ed (row.body)."""
    (out,), maps, start = tensors(results, 1), [], 0
    for t in tensors(types):
        maps.append(tuple(Entry(((i, 1),), -start if i == attrs.axis else 0) for i in range(len(t.shape))))
        start += t.shape[attrs.axis]
    return Structured(parallel_dims(out.shape), "map", tuple(maps), (0.0,) * len(maps), 0)


def or_bits(b: Any, attrs: Any, *values: Any) -> Any:
    """Bitwise or; of operands of which all but one are 0."""
    kind = b.type_of(values[0])
    bits = {"f32": "i32", "f64": "i64"}.get(kind)
    out = b.bits(values[0], bits) if bits else values[0]
    for v in values[1:]:
        out = b.or_(out, b.bits(v, bits) if bits else v)
    return b.bits(out, kind) if bits else out


def _concat_eval(attrs: ConcatAttrs, results: tuple[Type, ...], *xs: np.ndarray) -> np.ndarray:
    (out,) = tensors(results, 1)
    return np.concatenate([x.astype(out.dtype.numpy) for x in xs], attrs.axis)


def _pack_infer(types: tuple[Type, ...], attrs: PackAttrs) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if len(x.shape) < 2:
        raise ValueError(f"needs [..., K, N], has {list(x.shape)}")
    e = 2 if attrs.pair else 1
    return (TensorType((*x.shape[:-2], -(-x.shape[-2] // e), x.shape[-1], e), x.dtype),)


def _pack_structure(types: tuple[Type, ...], attrs: PackAttrs, results: tuple[Type, ...]) -> Structured:
    (x,), (out,) = tensors(types, 1), tensors(results, 1)
    r, e = len(x.shape) - 2, out.shape[-1]
    read = (*(Entry(((i, 1),)) for i in range(r)), Entry(((r, e), (r + 2, 1))), Entry(((r + 1, 1),)))
    return Structured(parallel_dims(out.shape), "map", (read,), (0.0 if x.shape[-2] % e else None,), 0)


def _lookup_infer(types: tuple[Type, ...], attrs: LookupAttrs) -> tuple[Type, ...]:
    indices, table = tensors(types, 2)
    n = attrs.batch
    if len(table.shape) <= n or indices.dtype.kind not in ("int", "uint"):
        raise ValueError(f"takes integers, then a table; has {indices.dtype}, then {list(table.shape)}")
    if n < 0 or indices.shape[:n] != table.shape[:n]:
        raise ValueError(f"indices {list(indices.shape)} and table {list(table.shape)} have {n} leading dims in common")
    return (TensorType((*indices.shape, *table.shape[n + 1 :]), table.dtype),)


def _lookup_structure(types: tuple[Type, ...], attrs: LookupAttrs, results: tuple[Type, ...]) -> Structured:
    """Any split of the table is canonical: every row but one contributes 0."""
    (indices, table), (out,) = tensors(types, 2), tensors(results, 1)
    r, rank, n = len(indices.shape), len(out.shape), attrs.batch
    dims = (*parallel_dims(out.shape), Dim("v", table.shape[n], True))
    own = tuple(Entry(((i, 1),)) for i in range(rank))
    return Structured(dims, "lookup", (own[:r], (*own[:n], Entry(((rank, 1),)), *own[r:])), (None, None), 2, rank, 1)


def _lookup_eval(attrs: LookupAttrs, results: tuple[Type, ...], indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    inside = (indices >= 0) & (indices < table.shape[attrs.batch])
    grid = np.ix_(*(np.arange(n) for n in indices.shape[: attrs.batch]), *([[0]] * (indices.ndim - attrs.batch)))
    out = table[(*grid[: attrs.batch], np.where(inside, indices, 0))]
    out[~inside] = 0
    return out


def _pad_case(rng: np.random.Generator) -> Any:
    x = rng.normal(size=(3, 4)).astype(np.float32)
    return PadAttrs((1, -1), (0, 2), 0.5), [x], np.pad(x[:, 1:], ((1, 0), (0, 2)), constant_values=0.5)


def _cut_off_case(rng: np.random.Generator) -> Any:
    x = rng.normal(size=(3, 4)).astype(np.float32)
    return PadAttrs((-5, 2), (4, -5), 0.5), [x], np.array([[0.5], [0.5]], np.float32)


def _concat_case(dtype: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        xs = [(rng.normal(size=(2, n, 3)) * 9).astype(dtype) for n in (1, 4, 2)]
        return ConcatAttrs(1), xs, np.concatenate(xs, 1)

    return case


def _pack_case(pair: bool) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = rng.normal(size=(2, 5, 3)).astype(np.float32)
        return PackAttrs(pair), [x], pack(x, pair)

    return case


def _lookup_case(rng: np.random.Generator) -> Any:
    table, i = rng.normal(size=(7, 3, 2)).astype(np.float32), rng.integers(0, 7, (2, 4))
    return LookupAttrs(), [i, table], np.take(table, i, axis=0)


def _batched_lookup_case(rng: np.random.Generator) -> Any:
    table, i = rng.normal(size=(3, 2, 7, 5)).astype(np.float32), rng.integers(-1, 8, (3, 2, 4, 6))
    held = np.take_along_axis(table, np.clip(i, 0, 6).reshape(3, 2, 24, 1), 2).reshape(3, 2, 4, 6, 5)
    return LookupAttrs(2), [i, table], np.where(((i >= 0) & (i < 7))[..., None], held, 0)


register(OpDef(
    "graph.pad", "map", _pad_infer, PadAttrs, _pad_eval, structure=_pad_structure, cases=(_pad_case, _cut_off_case),
    doc="A constant border.",
))  # fmt: skip
register(OpDef(
    "graph.concat", "map", _concat_infer, ConcatAttrs, _concat_eval, body=or_bits, structure=_concat_structure,
    cases=(_concat_case(np.float32), _concat_case(np.int64)), doc="Operands one after another along `axis`.",
))  # fmt: skip
register(OpDef(
    "graph.pack", "map", _pack_infer, PackAttrs, lambda a, r, x: pack(x, a.pair), structure=_pack_structure,
    cases=(_pack_case(True), _pack_case(False)), doc="The order in which the matrix unit reads its second operand.",
))  # fmt: skip
register(OpDef(
    "graph.lookup", "lookup", _lookup_infer, LookupAttrs, _lookup_eval, structure=_lookup_structure,
    cases=(_lookup_case, _batched_lookup_case),
    doc="Rows of a table (operand 1) by run-time indices (operand 0); an index outside gives zeros. With `batch`,"
    " leading dims in common have tables of their own.",
))  # fmt: skip
