"""Memory that a layer of several computes uses again within itself: what one of them makes, and only others read.

Nobody but the computing thread touches it, so that it needs no credit, and no epoch ends before it is used again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from d1c.analysis.epochs import Buffer
from d1c.ir.core import Block, Op, Value
from d1c.ir.types import TensorType

WASTE = 4
"""A buffer may be so many times larger than what is put there: else the next large result would want another one."""


class Scratch:
    """The buffers of one layer's computes that are free again, while its block is walked: `take` one for a result, then
    `give` back those of what is read for the last time."""

    def __init__(self, block: Block) -> None:
        last: dict[Value, int] = {}
        kept: set[Value] = set()
        self.free: list[int] = []
        self.layer = ""
        inner: dict[Value, str] = {}
        for i, op in enumerate(block.ops):
            of = _layer(op)
            for v in op.operands:
                last[v] = i
                if inner.get(v) != of or not of:
                    kept.add(v)
            if of:
                inner[op.result] = of
        self.ends = {v: last[v] for v in inner if v in last and v not in kept}

    def take(self, op: Op, buffers: Sequence[Buffer]) -> int | None:
        """A buffer for the op's result that was used before; None where it needs a new one."""
        if _layer(op) != self.layer:
            self.layer, self.free = _layer(op), []
        t = op.result.type
        assert isinstance(t, TensorType) and t.layout is not None
        size = math.prod(t.layout.local_shape(t.shape))
        fits = [b for b in self.free if buffers[b].dtype == t.dtype and size <= buffers[b].elements <= WASTE * size]
        if op.result not in self.ends or not fits:
            return None
        best = min(fits, key=lambda b: (buffers[b].elements, b))
        self.free.remove(best)
        return best

    def give(self, number: int, op: Op, of: Mapping[Value, int]) -> None:
        """After op `number` of the block: what it read last is free."""
        self.free += [of[v] for v in dict.fromkeys(op.operands) if self.ends.get(v) == number]


def _layer(op: Op) -> str:
    return str(op.attrs.of) if op.name == "dist.compute" else ""
