"""Constants, fused groups and terminators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d1c.ir.core import Block, Op, Value
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import tensors
from d1c.ops.opdef import OpDef, opdef, register
from d1c.target.dtypes import dtype


@dataclass(frozen=True, slots=True)
class ConstAttrs:
    """`name`: the key in Module.constants."""

    name: str


@dataclass(frozen=True, slots=True)
class FusedAttrs:
    """`out`: the element type to which the group's result is rounded."""

    out: str


def fused_type(block: Block, attrs: FusedAttrs) -> TensorType:
    """The result type of graph.fused with this region: the yielded shape, stored as `out`."""
    (value,) = tensors([v.type for v in block.ops[-1].operands], 1)
    return TensorType(value.shape, dtype(attrs.out))


def _check_fused(op: Op) -> None:
    """The region's shape: closed, elementwise but for one anchor, which only as a reduction has anything in front."""
    (block,) = op.regions
    if tuple(a.type for a in block.args) != tuple(v.type for v in op.operands):
        raise ValueError("the region's arguments have the operands' types")
    if not block.ops or block.ops[-1].name != "graph.yield" or len(block.ops[-1].operands) != 1:
        raise ValueError("the region yields one value")
    inside = set(block.args)
    anchor: Op | None = None
    computed: set[Value] = set()
    for inner in block.ops[:-1]:
        kind = opdef(inner.name).kind
        if kind not in ("elementwise", "contract", "reduce"):
            raise ValueError(f"{inner.name} cannot be part of a fused group")
        if not inside.issuperset(inner.operands):
            raise ValueError(f"{inner.name} reads a value from outside the group")
        if kind != "elementwise":
            if anchor is not None:
                raise ValueError(f"{anchor.name} and {inner.name}: a group has one anchor")
            if kind == "contract" and computed.intersection(inner.operands):
                raise ValueError(f"{inner.name} reads a value computed in its group; only reductions may")
            anchor = inner
        computed.update(inner.results)
        inside.update(inner.results)
    if not inside.issuperset(block.ops[-1].operands):
        raise ValueError("the region yields a value from outside the group")


def _stated(what: str) -> Any:
    def infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
        raise ValueError(f"the result type follows from {what}, not from operands")

    return infer


register(OpDef(
    "graph.const", "constant", _stated("the constant's data"), ConstAttrs, doc="The constant `name` of the module.",
))  # fmt: skip
register(OpDef(
    "graph.fused", "structural", _stated("the region (fused_type)"), FusedAttrs,
    doc="One kernel: at most one anchor (contraction, reduction, pool), elementwise ops after it, before a reduction "
    "also before it. Interior values are f32 (integers, masks: compute types); the result is rounded to `out`, once.",
    facts={"infer_op": lambda op: (fused_type(op.regions[0], op.attrs),), "check": _check_fused},
))  # fmt: skip
register(OpDef("graph.yield", "structural", lambda types, attrs: (), doc="The result of a region."))
register(OpDef("graph.return", "structural", lambda types, attrs: (), doc="The results of the function."))
