"""A copy: what its operand's views describe, stored in row-major order."""

from __future__ import annotations

from typing import Any

import numpy as np

from d1c.ir.core import NO_ATTRS
from d1c.ir.types import Type
from d1c.ops.graph.family import elementwise_structure, tensors
from d1c.ops.opdef import OpDef, register


def _infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    return (tensors(types, 1)[0],)


def _case(rng: np.random.Generator) -> Any:
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    return NO_ATTRS, [x], x


register(OpDef(
    "graph.copy", "map", _infer, eval=lambda a, r, x: x, structure=elementwise_structure, cases=(_case,),
    doc="The operand, stored in the order of its dims.",
))  # fmt: skip
