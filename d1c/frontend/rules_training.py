"""Rules of ONNX's optimizers (domain ai.onnx.preview.training): one step for any number of tensors.

Operands are R (learning rate), T (how many updates came before), then X1..Xn, G1..Gn and the states, kind by kind;
results are the new X1..Xn, then the new states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.expr import Expr
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import Importer, OnnxRule

Attribute = Callable[[str, float], float]
Step = Callable[[Attribute, Expr, Expr, Sequence[Expr]], Sequence[Expr]]
DOMAIN = "ai.onnx.preview.training"


def _optimizer(states: int, step: Step) -> Importer:
    """`step`: (attributes by name and default, R, T as a float, (X, G, states...)) -> (new X, new states...)."""

    def rule(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
        n = (len(node.input) - 2) // (2 + states)
        out: list[list[Value]] = []
        for i in range(n):
            values = [Expr(cx, given(cx, node, 2 + i + k * n)) for k in range(2 + states)]
            kind = tensor(values[0].value).dtype
            rate, count = (Expr(cx, cx.cast(given(cx, node, k), kind)) for k in (0, 1))
            made = step(lambda name, default: float(cx.attr(node, name, default)), rate, count, values)
            out.append([e.value for e in made])
        return tuple(made[k] for k in range(1 + states) for made in out)

    return rule


def _adagrad(attr: Attribute, rate: Expr, count: Expr, values: Sequence[Expr]) -> Sequence[Expr]:
    x, g, h = values
    g = g + x * attr("norm_coefficient", 0.0)
    h = h + g * g
    decayed = rate / (count * attr("decay_factor", 0.0) + 1.0)
    return x - decayed * g / (h.sqrt() + attr("epsilon", 1e-6)), h


def _adam(attr: Attribute, rate: Expr, count: Expr, values: Sequence[Expr]) -> Sequence[Expr]:
    x, g, v, h = values
    alpha, beta = attr("alpha", 0.9), attr("beta", 0.999)
    g = g + x * attr("norm_coefficient", 0.0)
    v = v * alpha + g * (1 - alpha)
    h = h * beta + g * g * (1 - beta)
    # The states start at 0: what they lack in the first steps is made up by the rate.
    lacking = [1.0 - rate.number(m).call("pow", count) for m in (alpha, beta)]
    rate = (count > 0.0).where(rate * lacking[1].sqrt() / lacking[0], rate)
    x = x - rate * v / (h.sqrt() + attr("epsilon", 0.0))
    return x * (1.0 - attr("norm_coefficient_post", 0.0)), v, h


def _momentum(nesterov: bool) -> Step:
    def step(attr: Attribute, rate: Expr, count: Expr, values: Sequence[Expr]) -> Sequence[Expr]:
        x, g, v = values
        alpha = attr("alpha", 0.0)
        g = g + x * attr("norm_coefficient", 0.0)
        v = v * alpha + g * (count > 0.0).where(count.number(attr("beta", 0.0)), 1.0)
        return x - rate * (g + v * alpha if nesterov else v), v

    return step


def momentum(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """V = alpha V + beta G; X - R V, or with mode "nesterov" X - R (G + alpha V)."""
    mode = cx.attr(node, "mode", "standard")
    if mode not in ("standard", "nesterov"):
        raise cx.refuse(f"Momentum with mode {mode!r}", rule="modes are standard and nesterov")
    out: tuple[Value, ...] = _optimizer(1, _momentum(mode == "nesterov"))(cx, node)
    return out


RULES = (
    OnnxRule("Adagrad", _optimizer(1, _adagrad), domain=DOMAIN),
    OnnxRule("Adam", _optimizer(2, _adam), domain=DOMAIN),
    OnnxRule("Momentum", momentum, domain=DOMAIN),
)
