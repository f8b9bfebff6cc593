"""The `dist` level: still pure, but every value has a layout, and every movement is an exchange.

Four ops say it all: constants, `exchange` (the one data movement), `compute` (one structured op under a plan) and the
terminators. A compute reads windows, which exchanges deliver, or a tensor itself where every core owns just what it
needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d1c.ir.attributes import register_attribute
from d1c.ir.core import Op
from d1c.ir.layout import need_of, thin_of
from d1c.ir.structured import Structured
from d1c.ir.types import TensorType, Type, WindowType
from d1c.ops.graph.move import or_bits
from d1c.ops.opdef import OpDef, register
from d1c.target.dtypes import dtype
from d1c.target.mesh import Group, Layout
from d1c.target.polynomials import exp_falling

register_attribute("nest", Structured)


@dataclass(frozen=True, slots=True)
class DistConstAttrs:
    """`name`: the key in Module.constants; its data is placed before the program starts, or (`streamed`) a window of it
    is read for its first use from the interface processors' memories. `fill`: what a window holds outside the
    tensor."""

    name: str
    fill: float = 0.0
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class ExchangeAttrs:
    """`fill`: what the window holds outside the tensor. `by_columns`: its messages go along columns first."""

    fill: float = 0.0
    by_columns: bool = False


@dataclass(frozen=True, slots=True)
class ComputeAttrs:
    """`nest`: what is computed. `plan`: a layout over the iteration dims. `out`: the result's element type. `regions`:
    which of "term" and "epilogue" the op has, in this order. `of`: the layer of which the compute is a part; the parts
    of a layer follow each other, start as one, and use its memory again once nothing in it reads what is there."""

    nest: Structured
    plan: Layout
    out: str
    regions: tuple[str, ...] = ()
    of: str = ""


def compute_type(attrs: ComputeAttrs) -> TensorType:
    """The result: the parallel dims laid out as the plan cuts them. Where the plan splits the reduction, a leading dim
    of tree nodes ("slot") comes first, one node for every position along the cut's factors."""
    nest, plan = attrs.nest, attrs.plan
    groups: list[Group] = []
    shape = nest.out_shape
    k = 0
    for g in plan.groups:
        if g.axes and not nest.flat(k, k + g.span):
            raise ValueError(f"the plan {plan} flattens dims {k} to {k + g.span - 1}, of which one must be on its own")
        if k < nest.parallel:
            groups.append(g)
        elif g.axes:
            if k != nest.cut or g.span != 1:
                raise ValueError(f"the plan {plan} splits reduce dim {k}, only the cut dim {nest.cut} may be split")
            blocks, extent = g.block, nest.dims[k].extent
            if blocks % nest.slice or (blocks // nest.slice) & (blocks // nest.slice - 1):
                raise ValueError(f"a block of {blocks} is not a power of two of slices of {nest.slice}")
            shape = (-(-extent // blocks), *shape)
            groups.insert(0, Group(1, g.axes, 1))
        k += g.span
    return TensorType(shape, dtype(attrs.out), Layout(tuple(groups), plan.held))


def _infer_compute(op: Op) -> tuple[Type, ...]:
    attrs: ComputeAttrs = op.attrs
    extents = tuple(d.extent for d in attrs.nest.dims)
    if len(op.operands) != len(attrs.nest.maps):
        raise ValueError(f"has {len(op.operands)} operands, its nest reads {len(attrs.nest.maps)}")
    for i, (v, m) in enumerate(zip(op.operands, attrs.nest.maps, strict=True)):
        if isinstance(v.type, WindowType) and all(
            v.type.need != of(extents, m, v.type.shape, attrs.plan) for of in (need_of, thin_of)
        ):
            raise ValueError(f"operand {i} is a window for another plan or map")
    return (compute_type(attrs),)


def _stated(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    raise ValueError("the result type is stated, not inferred")


def _check_const(op: Op) -> None:
    if op.attrs.streamed and not isinstance(op.result.type, WindowType):
        raise ValueError("only windows are streamed")


def _check_exchange(op: Op) -> None:
    (x,), w = op.operands, op.result.type
    if not isinstance(x.type, TensorType) or x.type.layout is None:
        raise ValueError("moves a tensor with a layout")
    if not isinstance(w, WindowType) or (w.shape, w.dtype) != (x.type.shape, x.type.dtype):
        raise ValueError("results in a window of the same tensor")


register(OpDef(
    "dist.const", "constant", _stated, DistConstAttrs,
    facts={"infer_op": lambda op: tuple(v.type for v in op.results), "check": _check_const},
    doc="A constant: a tensor with a layout (sharded), or a window, resident where it is needed or read for its use.",
))  # fmt: skip
register(OpDef(
    "dist.exchange", "exchange", _stated, ExchangeAttrs,
    facts={"infer_op": lambda op: tuple(v.type for v in op.results), "check": _check_exchange},
    doc="Every core receives its window of the operand, each element exactly once.",
))  # fmt: skip
register(OpDef(
    "dist.compute", "compute", _stated, ComputeAttrs, facts={"infer_op": _infer_compute},
    doc="One structured op, each core its share of the iteration space under `plan`.",
))  # fmt: skip
register(OpDef(
    "dist.merge", "elementwise", lambda types, attrs: (types[0],), body=or_bits,
    doc="Bitwise or of operands of which all but one are 0: how a concatenation's parts join.",
))  # fmt: skip
register(OpDef(
    "dist.exp_falling", "elementwise", lambda types, attrs: (types[0],), body=lambda b, attrs, x: exp_falling(b, x),
    doc="`graph.exp` of f32 values no larger than 0, or NaN, in fewer instructions.",
))  # fmt: skip
register(OpDef("dist.yield", "structural", lambda types, attrs: (), doc="The result of a region."))
register(OpDef("dist.return", "structural", lambda types, attrs: (), doc="The results of the function."))
