"""Activations and transcendental functions, element by element, in f32 (N11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ops.graph.family import Case, binary_case, elementwise, integer_case, unary_case
from d1c.target import numerics


@dataclass(frozen=True, slots=True)
class LeakyReluAttrs:
    """`alpha`: the slope below 0."""

    alpha: float = 0.01


@dataclass(frozen=True, slots=True)
class HardSigmoidAttrs:
    """y = max(0, min(1, alpha * x + beta))."""

    alpha: float = 0.2
    beta: float = 0.5


@dataclass(frozen=True, slots=True)
class ClipAttrs:
    """Bounds, either may be absent."""

    lo: float | None = None
    hi: float | None = None


def _unit(b: Any, x: Any) -> Any:
    return b.max(b.min(x, 1.0), 0.0)


def _clip(b: Any, attrs: ClipAttrs, x: Any) -> Any:
    if attrs.lo is not None:
        x = b.max(x, attrs.lo)
    return x if attrs.hi is None else b.min(x, attrs.hi)


_vector_erf = np.vectorize(math.erf, otypes=[np.float32])


def _function(name: str, onnx: str, reference: Any, lo: float, hi: float, doc: str) -> None:
    """A row whose body is the function of the same name in d1c.target.numerics."""
    f = getattr(numerics, name)
    cases: tuple[Case, ...] = (unary_case(reference, lo, hi),)
    elementwise(f"graph.{name}", lambda b, a, x: f(b, x), 1, onnx=onnx or (), doc=doc, cases=cases, floats=True)


_function("exp", "Exp", np.exp, -20, 20, "e to the power x.")
_function("log", "Log", np.log, 1e-3, 50, "Natural logarithm.")
_function("tanh", "Tanh", np.tanh, -4, 4, "Hyperbolic tangent.")
_function("erf", "Erf", _vector_erf, -4, 4, "Error function.")
_function("sigmoid", "Sigmoid", lambda x: 1 / (1 + np.exp(-x)), -20, 20, "1 / (1 + exp(-x)).")
_function("sin", "Sin", np.sin, -9, 9, "Sine.")
_function("cos", "Cos", np.cos, -9, 9, "Cosine.")
_function("atan", "Atan", np.arctan, -9, 9, "Arc tangent.")
_function("log1p", "", np.log1p, -0.9, 9, "ln(1 + x).")
_function("expm1", "", np.expm1, -9, 9, "exp(x) - 1.")

elementwise("graph.relu", lambda b, a, x: b.max(x, 0), 1, onnx="Relu", doc="max(x, 0).",
            cases=(unary_case(lambda x: np.maximum(x, 0)),
                   integer_case(lambda x: np.maximum(x, 0), -9, 9, 1)))  # fmt: skip
elementwise("graph.leaky_relu", lambda b, a, x: b.select(b.lt(x, 0.0), b.mul(x, a.alpha), x), 1, attrs=LeakyReluAttrs,
            floats=True, doc="x < 0: alpha * x, otherwise x.",
            cases=(unary_case(lambda x: np.where(x < 0, x * np.float32(0.1), x),
                              attrs=LeakyReluAttrs(0.1)),))  # fmt: skip
elementwise("graph.prelu", lambda b, a, x, slope: b.select(b.lt(x, 0.0), b.mul(x, slope), x), 2,
            doc="x < 0: slope * x, otherwise x; the slope broadcasts.",
            cases=(binary_case(lambda x, s: np.where(x < 0, x * s, x)),))  # fmt: skip
elementwise("graph.clip", _clip, 1, attrs=ClipAttrs, doc="min(max(x, lo), hi).",
            cases=(unary_case(lambda x: np.clip(x, -1, 2), attrs=ClipAttrs(-1.0, 2.0)),
                   unary_case(lambda x: np.maximum(x, 0.5), attrs=ClipAttrs(lo=0.5))))  # fmt: skip
elementwise("graph.hard_sigmoid", lambda b, a, x: _unit(b, b.add(b.mul(x, a.alpha), a.beta)), 1, attrs=HardSigmoidAttrs,
            floats=True, doc="max(0, min(1, alpha * x + beta)).",
            cases=(unary_case(lambda x: np.clip(0.2 * x + 0.5, 0, 1), attrs=HardSigmoidAttrs()),))  # fmt: skip
elementwise("graph.hard_swish", lambda b, a, x: b.mul(x, _unit(b, b.add(b.mul(x, 1 / 6), 0.5))), 1, onnx="HardSwish",
            floats=True, doc="x * max(0, min(1, x / 6 + 1/2)).",
            cases=(unary_case(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),))  # fmt: skip
