"""What rows share: broadcasting, checks of operands, and `elementwise`, which makes a row of a body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from d1c.ir.core import NO_ATTRS, NoAttrs
from d1c.ir.structured import Dim, Entry, Map, Structured
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.onnx_rules import simple
from d1c.ops.opdef import Infer, OnnxRule, OpDef, register
from d1c.target.dtypes import BOOL, F32, DType, dtype
from d1c.target.kernel import COMPUTE_TYPE

Case: TypeAlias = "Callable[[np.random.Generator], Any]"  # text: numpy.random is imported where it is used


def tensors(types: Sequence[Type], count: int | None = None) -> tuple[TensorType, ...]:
    """`types` as tensor types; ValueError unless all are tensors and, where given, `count` of them."""
    if count is not None and len(types) != count:
        raise ValueError(f"takes {count} operand{'s' * (count != 1)}, has {len(types)}")
    out = []
    for i, t in enumerate(types):
        if not isinstance(t, TensorType):
            raise ValueError(f"operand {i} is not a tensor")
        out.append(t)
    return tuple(out)


def broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """numpy's rule: aligned at the last dim, extents equal or 1."""
    rank = max((len(s) for s in shapes), default=0)
    out = []
    for d in range(-rank, 0):
        extents = {s[d] for s in shapes if len(s) >= -d} - {1}
        if len(extents) > 1:
            listed = ", ".join(str(list(s)) for s in shapes)
            raise ValueError(f"shapes {listed} do not broadcast: {sorted(extents)} differ")
        out.append(extents.pop() if extents else 1)
    return tuple(out)


def common_dtype(dtypes: Sequence[DType]) -> DType:
    """All equal: that type. Floats of different storage: f32, in which their bodies compute. Otherwise, and for f64
    beside others, a ValueError."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    if all(COMPUTE_TYPE.get(d.name) == "f32" for d in dtypes):
        return F32
    raise ValueError(f"element types {', '.join(str(d) for d in dtypes)} do not mix: put a Cast (graph.cast) in front")


def accumulator(dtypes: Sequence[DType]) -> DType:
    """The type in which sums of products, sums and pools of these operands accumulate: f32 for floats, i32 or i64."""
    names = {COMPUTE_TYPE.get(d.name) for d in dtypes}
    name = names.pop() if len(names) == 1 else COMPUTE_TYPE.get(common_dtype(dtypes).name)
    if name is None or name == "mask" or any(d.kind == "minifloat" for d in dtypes):
        raise ValueError(f"no accumulation over {dtypes[0]}")
    return dtype(name)


def broadcast_infer(arity: int, result: DType | None = None, first_bool: bool = False, floats: bool = False) -> Infer:
    """Infer for an elementwise op: the broadcast shape with `result`, or with the operands' common type.
    `first_bool`: operand 0 is a condition and takes no part in the common type. `floats`: takes nothing else."""

    def infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
        ts = tensors(types, arity)
        values = ts[1:] if first_bool else ts
        if first_bool and ts[0].dtype != BOOL:
            raise ValueError(f"operand 0 is a condition and must be bool, is {ts[0].dtype}")
        for t in values:
            if t.dtype.name not in COMPUTE_TYPE:
                raise ValueError(f"no vector code for elements of type {t.dtype}")
            if t.dtype.kind == "minifloat" and not first_bool:
                raise ValueError(f"no arithmetic on {t.dtype}: put a Cast (graph.cast) in front")
            if floats and not t.dtype.is_float:
                raise ValueError(f"takes floats, has {t.dtype}: put a Cast (graph.cast) in front")
        common = common_dtype([t.dtype for t in values])
        return (TensorType(broadcast_shape([t.shape for t in ts]), result or common),)

    return infer


def parallel_dims(shape: Sequence[int]) -> tuple[Dim, ...]:
    """Iteration dims d0, d1, ... of a result of this shape."""
    return tuple(Dim(f"d{i}", n) for i, n in enumerate(shape))


def broadcast_map(shape: Sequence[int], rank: int) -> Map:
    """How an operand of `shape` is read by a result of `rank` dims: dims of size 1 are constant."""
    skip = rank - len(shape)
    return tuple(Entry() if n == 1 else Entry(((skip + i, 1),)) for i, n in enumerate(shape))


def elementwise_structure(types: tuple[Type, ...], attrs: Any, results: tuple[Type, ...]) -> Structured:
    """kind map over the result's dims; every operand is read by the epilogue."""
    (out,) = tensors(results, 1)
    maps = tuple(broadcast_map(t.shape, len(out.shape)) for t in tensors(types))
    return Structured(parallel_dims(out.shape), "map", maps, (None,) * len(maps), 0)


def elementwise(
    name: str,
    body: Callable[..., Any],
    arity: int,
    *,
    onnx: str | tuple[OnnxRule, ...] = (),
    attrs: type = NoAttrs,
    result: DType | None = None,
    infer: Infer | None = None,
    floats: bool = False,
    cases: tuple[Case, ...] = (),
    doc: str = "",
    facts: Mapping[str, Any] | None = None,
) -> OpDef:
    """Register the elementwise op `name`, `graph.` included.

    body    (builder, attrs, *values) -> value: vector code out of d1c.target.numerics.Builder's instructions.
    onnx    the ONNX op of which this is the one-to-one image, or rules.
    result  the element type of the result where it is not the operands' common one.
    floats  the body computes in f32 only; integers are refused.
    """
    rules = (OnnxRule(onnx, simple(name)),) if isinstance(onnx, str) else onnx
    return register(
        OpDef(
            name, "elementwise", infer or broadcast_infer(arity, result, floats=floats), attrs, body=body,
            structure=elementwise_structure, onnx=rules, cases=cases, doc=doc, facts=facts or {},
        )
    )  # fmt: skip


def unary_case(reference: Callable[..., Any], lo: float = -4, hi: float = 4, attrs: Any = NO_ATTRS) -> Case:
    """A case on uniform f32 data in [lo, hi]; `reference` is numpy's or ONNX's meaning."""

    def case(rng: np.random.Generator) -> Any:
        x = rng.uniform(lo, hi, (3, 17)).astype(np.float32)
        return attrs, [x], reference(x)

    return case


def binary_case(reference: Callable[..., Any], lo: float = -4, hi: float = 4, attrs: Any = NO_ATTRS) -> Case:
    """As unary_case, for two operands that broadcast both ways."""

    def case(rng: np.random.Generator) -> Any:
        x = rng.uniform(lo, hi, (3, 1, 17)).astype(np.float32)
        y = rng.uniform(lo, hi, (5, 1)).astype(np.float32)
        return attrs, [x, y], reference(x, y)

    return case


def integer_case(reference: Callable[..., Any], lo: int, hi: int, arity: int = 2, dtype: Any = np.int64) -> Case:
    """A case on integers in [lo, hi)."""

    def case(rng: np.random.Generator) -> Any:
        xs = [rng.integers(lo, hi, (4, 5)).astype(dtype) for _ in range(arity)]
        return NO_ATTRS, xs, reference(*xs)

    return case


def bool_case(reference: Callable[..., Any], arity: int = 2) -> Case:
    """A case on booleans."""

    def case(rng: np.random.Generator) -> Any:
        xs = [rng.integers(0, 2, (4, 5)).astype(np.bool_) for _ in range(arity)]
        return NO_ATTRS, xs, reference(*xs)

    return case
