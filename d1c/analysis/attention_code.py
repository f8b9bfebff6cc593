"""Scalar code of the computes of which an attention consists (N10)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from d1c.ir.core import Block, Op, Value
from d1c.ir.types import TensorType
from d1c.ops.graph.attention import LEAST
from d1c.ops.opdef import opdef
from d1c.target.dtypes import F32


def again(block: Block) -> Block:
    """The same code with values of its own."""
    new = {v: Value(v.type, v.name) for v in (*block.args, *(r for op in block.ops for r in op.results))}
    ops = (
        Op(op.name, tuple(new[v] for v in op.operands), op.attrs, tuple(new[r] for r in op.results), (), op.origin)
        for op in block.ops
    )
    return Block(tuple(new[a] for a in block.args), tuple(ops))


class _Code:
    """Scalar f32 code of elementwise ops."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def __call__(self, name: str, *values: Value, **attrs: Any) -> Value:
        row = opdef(name if "." in name else f"graph.{name}")
        out = Value(TensorType((), F32))
        self.ops.append(Op(row.name, values, row.attrs(**attrs), (out,)))
        return out


def _code(inputs: int, write: Callable[..., Value]) -> Block:
    """The block that `write(code, *inputs)` says."""
    args, code = tuple(Value(TensorType((), F32)) for _ in range(inputs)), _Code()
    result = write(code, *args)
    return Block(args, (*code.ops, Op("dist.yield", (result,))))


def below(odd: bool) -> Block:
    """exp(score - m). A score that only fills up a pair may be the larger one: it meets a value of 0, but is no key."""

    def write(c: _Code, s: Value, m: Value) -> Value:
        x = c("sub", s, m)
        return c("dist.exp_falling", c("clip", x, hi=0.0) if odd else x)

    return _code(2, write)


@cache
def clipped() -> Block:
    """The larger of a maximum and the least finite number: what is below that by -inf has weight 0."""
    return _code(1, lambda c, m: c("clip", m, lo=LEAST))


@cache
def scale() -> Block:
    """exp(m - m of both) of a node's maximum m and another one's."""
    return _code(2, lambda c, m, other: c("dist.exp_falling", c("sub", m, c("max", m, other))))


@cache
def larger() -> Block:
    return _code(2, lambda c, m, other: c("max", m, other))


@cache
def product() -> Block:
    return _code(2, lambda c, x, s: c("mul", x, s))


@cache
def quotient() -> Block:
    """The result of a product with the values and its sum."""
    return _code(2, lambda c, o, total: c("div", o, total))


@cache
def joined(divided: bool = False) -> Block:
    """x * s + y * t, divided by a fifth input or not."""

    def write(c: _Code, x: Value, y: Value, s: Value, t: Value, *total: Value) -> Value:
        both = c("add", c("mul", x, s), c("mul", y, t))
        return c("div", both, *total) if divided else both

    return _code(5 if divided else 4, write)
