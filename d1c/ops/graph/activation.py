"""Activations and transcendental functions, element by element, in f32 (N11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ops.graph.family import binary_case, elementwise, integer_case, unary_case


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


def _exp(b: Any, attrs: Any, x: Any) -> Any:
    from d1c.target import numerics

    return numerics.exp(b, x)


def _log(b: Any, attrs: Any, x: Any) -> Any:
    from d1c.target import numerics

    return numerics.log(b, x)


def _tanh(b: Any, attrs: Any, x: Any) -> Any:
    from d1c.target import numerics

    return numerics.tanh(b, x)


def _erf(b: Any, attrs: Any, x: Any) -> Any:
    from d1c.target import numerics

    return numerics.erf(b, x)


def _sigmoid(b: Any, attrs: Any, x: Any) -> Any:
    from d1c.target import numerics

    one = b.const(1.0, "f32")
    return b.div(one, b.add(numerics.exp(b, b.neg(x)), one))


def _unit(b: Any, x: Any) -> Any:
    return b.max(b.min(x, 1.0), 0.0)


def _clip(b: Any, attrs: ClipAttrs, x: Any) -> Any:
    if attrs.lo is not None:
        x = b.max(x, attrs.lo)
    return x if attrs.hi is None else b.min(x, attrs.hi)


_vector_erf = np.vectorize(math.erf, otypes=[np.float32])

elementwise("graph.exp", _exp, 1, onnx="Exp", doc="e to the power x.", cases=(unary_case(np.exp, -20, 20),))
elementwise("graph.log", _log, 1, onnx="Log", doc="Natural logarithm.", cases=(unary_case(np.log, 1e-3, 50),))
elementwise("graph.tanh", _tanh, 1, onnx="Tanh", doc="Hyperbolic tangent.", cases=(unary_case(np.tanh),))
elementwise("graph.erf", _erf, 1, onnx="Erf", doc="Error function.", cases=(unary_case(_vector_erf),))
elementwise("graph.sigmoid", _sigmoid, 1, onnx="Sigmoid", doc="1 / (1 + exp(-x)).",
            cases=(unary_case(lambda x: 1 / (1 + np.exp(-x)), -20, 20),))  # fmt: skip
elementwise("graph.relu", lambda b, a, x: b.max(x, 0), 1, onnx="Relu", doc="max(x, 0).",
            cases=(unary_case(lambda x: np.maximum(x, 0)), integer_case(lambda x: np.maximum(x, 0), -9, 9, 1)))  # fmt: skip
elementwise("graph.leaky_relu", lambda b, a, x: b.select(b.lt(x, 0.0), b.mul(x, a.alpha), x), 1, attrs=LeakyReluAttrs,
            doc="x < 0: alpha * x, otherwise x.",
            cases=(unary_case(lambda x: np.where(x < 0, x * np.float32(0.1), x), attrs=LeakyReluAttrs(0.1)),))  # fmt: skip
elementwise("graph.prelu", lambda b, a, x, slope: b.select(b.lt(x, 0.0), b.mul(x, slope), x), 2,
            doc="x < 0: slope * x, otherwise x; the slope broadcasts.",
            cases=(binary_case(lambda x, s: np.where(x < 0, x * s, x)),))  # fmt: skip
elementwise("graph.clip", _clip, 1, attrs=ClipAttrs, doc="min(max(x, lo), hi).",
            cases=(unary_case(lambda x: np.clip(x, -1, 2), attrs=ClipAttrs(-1.0, 2.0)),
                   unary_case(lambda x: np.maximum(x, 0.5), attrs=ClipAttrs(lo=0.5))))  # fmt: skip
elementwise("graph.hard_sigmoid", lambda b, a, x: _unit(b, b.add(b.mul(x, a.alpha), a.beta)), 1, attrs=HardSigmoidAttrs,
            doc="max(0, min(1, alpha * x + beta)).",
            cases=(unary_case(lambda x: np.clip(0.2 * x + 0.5, 0, 1), attrs=HardSigmoidAttrs()),))  # fmt: skip
elementwise("graph.hard_swish", lambda b, a, x: b.mul(x, _unit(b, b.add(b.mul(x, 1 / 6), 0.5))), 1, onnx="HardSwish",
            doc="x * max(0, min(1, x / 6 + 1/2)).",
            cases=(unary_case(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),))  # fmt: skip
