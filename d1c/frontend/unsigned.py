"""u64 in ops whose kernels compute with it as i64: order and quotients of values from 2^63 on.

Turning the top bit maps the order of u64 to that of i64. ImportContext.emit comes here: no rule need think of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d1c.ir.core import Value
from d1c.target.dtypes import BOOL, I64, U64

if TYPE_CHECKING:
    from d1c.frontend.context import ImportContext

_TOP = np.array(-(2**63), np.int64)


def _turned(cx: ImportContext, x: Value) -> Value:
    out: Value = cx.emit("graph.bit_xor", [cx.cast(x, I64), cx.const(_TOP)])
    return out


def _ordered(name: str, back: bool) -> Callable[..., Value]:
    """The op on turned operands; `back`: its result is one of them."""

    def build(cx: ImportContext, values: Sequence[Value], attrs: Any) -> Value:
        out: Value = cx.emit(name, [_turned(cx, v) for v in values], attrs)
        return cx.cast(cx.emit("graph.bit_xor", [out, cx.const(_TOP)]), U64) if back else out

    return build


def _parts(cx: ImportContext, values: Sequence[Value]) -> tuple[Value, Value, Value]:
    """(quotient, remainder, whether the divisor is 0) as i64. The quotient of half the dividend is at most one short
    of half the quotient; a divisor from 2^63 on goes in once or not at all."""
    a, b = (cx.cast(v, I64) for v in values)
    zero, one = cx.scalar(0, a), cx.scalar(1, a)

    def not_less(x: Value) -> Value:
        turned = [cx.emit("graph.bit_xor", [v, cx.const(_TOP)]) for v in (x, b)]
        out: Value = cx.emit("graph.greater_equal", turned)
        return out

    half = cx.emit("graph.bit_and", [cx.emit("graph.shift_right", [a, one], type="i64"), cx.const(~_TOP)])
    halved = cx.emit("graph.div", [half, b])
    low = cx.emit("graph.add", [halved, halved])
    low = cx.emit("graph.where", [cx.emit("graph.less", [b, zero]), zero, low])
    rest = cx.emit("graph.sub", [a, cx.emit("graph.mul", [low, b])])
    more = not_less(rest)
    quotient = cx.emit("graph.where", [more, cx.emit("graph.add", [low, one]), low])
    rest = cx.emit("graph.where", [more, cx.emit("graph.sub", [rest, b]), rest])
    return quotient, rest, cx.emit("graph.equal", [b, zero])


def _divided(remainder: bool) -> Callable[..., Value]:
    def build(cx: ImportContext, values: Sequence[Value], attrs: Any) -> Value:
        *parts, nothing = _parts(cx, values)
        return cx.cast(cx.emit("graph.where", [nothing, cx.scalar(0, parts[0]), parts[remainder]]), U64)

    return build


def _same(cx: ImportContext, values: Sequence[Value], attrs: Any) -> Value:
    return values[0]


def _sign(cx: ImportContext, values: Sequence[Value], attrs: Any) -> Value:
    return cx.cast(cx.cast(values[0], BOOL), U64)


REWRITES: dict[str, Callable[..., Value]] = {
    **{f"graph.{n}": _ordered(f"graph.{n}", False) for n in ("less", "less_equal", "greater", "greater_equal")},
    **{f"graph.{n}": _ordered(f"graph.{n}", True) for n in ("max", "min", "reduce_max", "reduce_min", "max_pool")},
    "graph.div": _divided(False), "graph.mod": _divided(True), "graph.abs": _same, "graph.relu": _same,
    "graph.sign": _sign,
}  # fmt: skip
"""By op: (context, operands, of which one is u64, attributes) -> the result."""
