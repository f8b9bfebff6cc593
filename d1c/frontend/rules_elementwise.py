"""Rules of elementwise functions that decompose into a few graph ops: trigonometry, tests of values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.expr import Expr
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import Importer, OnnxRule
from d1c.target.dtypes import F16, F32

LARGE = 1e15
"""Beyond, x^2 + 1 is x^2 in both f32 and f64, and far below the overflow of f32's squares."""


def _large(x: Expr) -> float:
    """LARGE, or what does as much in f16, which has no such number."""
    return 200.0 if tensor(x.value).dtype == F16 else LARGE


def formula(build: Callable[[Expr], Expr]) -> Importer:
    """The rule of an op of one operand that is this formula."""

    def rule(cx: ImportContext, node: onnx.NodeProto) -> Value:
        return build(Expr(cx, given(cx, node))).value

    return rule


def _signed(x: Expr, magnitude: Expr) -> Expr:
    return (x < 0.0).where(-magnitude, magnitude)


def _sinh(x: Expr) -> Expr:
    """With e = exp(|x|) - 1: (e + e / (e + 1)) / 2; far from zero exp(|x| / 2) twice, which overflows no sooner."""
    a = x.abs()
    e, half = a.expm1(), (a * 0.5).exp()
    near = (e + e / (e + 1.0)) * 0.5
    return _signed(x, (a > 20.0).where(half * 0.5 * half, near))


def _cosh(x: Expr) -> Expr:
    half = (x.abs() * 0.5).exp()
    return half * 0.5 * half + (half * half).reciprocal() * 0.5


def _asinh(x: Expr) -> Expr:
    a = x.abs()
    square = a * a
    near = (a + square / ((square + 1.0).sqrt() + 1.0)).log1p()
    return _signed(x, (a > _large(a)).where(a.log() + math.log(2), near))


def _acosh(x: Expr) -> Expr:
    t = x - 1.0
    near = (t + t.sqrt() * (t + 2.0).sqrt()).log1p()
    return (x > _large(x)).where(x.log() + math.log(2), near)


def _atanh(x: Expr) -> Expr:
    a = x.abs()
    return _signed(x, ((a + a) / (1.0 - a)).log1p() * 0.5)


def _asin(x: Expr) -> Expr:
    return (x / ((1.0 - x) * (x + 1.0)).sqrt()).atan()


def _acos(x: Expr) -> Expr:
    return ((1.0 - x) / (x + 1.0)).sqrt().atan() * 2.0


def _float(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The operand; a minifloat, of which nothing is computed, as f32, which has all its values."""
    x = given(cx, node)
    return cx.cast(x, F32) if tensor(x).dtype.kind == "minifloat" else x


def is_inf(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _float(cx, node)
    up, down = (bool(cx.attr(node, f"detect_{side}", 1)) for side in ("positive", "negative"))
    if up and down:
        x = cx.emit("graph.abs", [x])
    if not up and not down:
        return cx.expand(cx.const(np.array(False)), tensor(x).shape)
    out: Value = cx.emit("graph.equal", [x, cx.scalar(math.inf if up else -math.inf, x)])
    return out


def is_nan(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _float(cx, node)
    out: Value = cx.emit("graph.not", [cx.emit("graph.equal", [x, x])])
    return out


RULES = (
    OnnxRule("Tan", formula(lambda x: x.sin() / x.cos())),
    OnnxRule("Asin", formula(_asin)), OnnxRule("Acos", formula(_acos)),
    OnnxRule("Sinh", formula(_sinh)), OnnxRule("Cosh", formula(_cosh)),
    OnnxRule("Asinh", formula(_asinh)), OnnxRule("Acosh", formula(_acosh)), OnnxRule("Atanh", formula(_atanh)),
    OnnxRule("IsInf", is_inf), OnnxRule("IsNaN", is_nan),
)  # fmt: skip
