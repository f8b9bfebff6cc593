"""Constants, fused groups and terminators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d1c.ir.core import Block
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import tensors
from d1c.ops.opdef import OpDef, register
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
))  # fmt: skip
register(OpDef("graph.yield", "structural", lambda types, attrs: (), doc="The result of a region."))
register(OpDef("graph.return", "structural", lambda types, attrs: (), doc="The results of the function."))
