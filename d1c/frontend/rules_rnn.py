"""RNN, GRU and LSTM: the products with the input for all steps at once, then a loop over time for what recurs.

Values are [directions, batch, ...], of one direction [batch, ...]; the reverse direction goes through time backwards,
in the same rounds. What lies behind a sequence's end leaves its state alone and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.expr import Expr
from d1c.frontend.loops import Round, loop, row
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

Function = Callable[[Expr], Expr]

_ALPHA = {
    "affine": 1.0, "leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0, "hardsigmoid": 0.2, "elu": 1.0,
}  # fmt: skip
_BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}


def _function(name: str, alpha: float, beta: float) -> Function | None:
    """ONNX's activation function of that name (lower case); None where there is none."""
    functions: dict[str, Function] = {
        "relu": lambda x: x.call("relu"),
        "tanh": lambda x: x.call("tanh"),
        "sigmoid": lambda x: x.call("sigmoid"),
        "affine": lambda x: x * alpha + beta,
        "leakyrelu": lambda x: (x < 0.0).where(x * alpha, x),
        "thresholdedrelu": lambda x: x.call("greater_equal", alpha).where(x, 0.0),
        "scaledtanh": lambda x: (x * beta).call("tanh") * alpha,
        "hardsigmoid": lambda x: (x * alpha + beta).call("max", 0.0).call("min", 1.0),
        "elu": lambda x: (x < 0.0).where(x.call("min", 0.0).call("expm1") * alpha, x),
        "softsign": lambda x: x / (x.call("abs") + 1.0),
        "softplus": lambda x: x.call("relu") + (-x.call("abs")).call("exp").call("log1p"),
    }
    return functions.get(name)


@dataclass(frozen=True)
class _Net:
    """A node's operands and attributes in common form.

    x [T, B, I]; w [D, G*H, I] and r [D, G*H, H], with G gates; bias of input and recurrence [D, G*H] each or None;
    p [D, 3*H] or None; starts: the initial states, [..., B, H], where ... is D, or nothing if D is 1; lengths [B] or
    None. `functions`: per gate function one for each direction. All floats are of one type.
    """

    cx: ImportContext
    node: onnx.NodeProto
    x: Value
    w: Value
    r: Value
    bias: tuple[Value, Value] | None
    p: Value | None
    starts: tuple[Value, ...]
    lengths: Value | None
    functions: tuple[tuple[Function, ...], ...]
    hidden: int
    reverse: tuple[bool, ...]
    batch_first: bool

    @property
    def lead(self) -> tuple[int, ...]:
        """The dims of a state in front of the batch."""
        return (len(self.reverse),) if len(self.reverse) > 1 else ()

    def expr(self, value: Value) -> Expr:
        return Expr(self.cx, value)

    def part(self, value: Value, first: int, count: int = 1) -> Value:
        """Gates `first` and on of the last dim."""
        return self.cx.part(value, len(tensor(value).shape) - 1, first * self.hidden, count * self.hidden)

    def activate(self, number: int, x: Expr, clipped: bool = True) -> Expr:
        """Gate function `number` of the clipped argument."""
        clip = self.cx.attr(self.node, "clip")
        if clip and clipped:
            x = x.call("max", -float(clip)).call("min", float(clip))
        functions = self.functions[number]
        if len(set(functions)) == 1:
            return functions[0](x)
        parts = [f(self.expr(self.cx.part(x.value, 0, i, 1))) for i, f in enumerate(functions)]
        return self.expr(self.cx.concat([y.value for y in parts], 0))

    def recur(self, h: Value, first: int, count: int) -> Expr:
        """The product of a state with the recurrent weights of some gates, [..., B, count*H]."""
        cx, h_size = self.cx, self.hidden
        weights = cx.transpose(cx.part(self.r, 1, first * h_size, count * h_size), (0, 2, 1))
        weights = cx.reshape(weights, (*self.lead, h_size, count * h_size))
        return self.expr(cx.emit("graph.matmul", [h, weights], packed=False))

    def projected(self, recurrent_bias: int) -> Value:
        """The products of all inputs with the input weights, [T, ..., B, G*H], the reverse direction's last step first,
        plus the input's biases and those of the recurrence of the first so many gates."""
        cx, (steps, batch, size) = self.cx, tensor(self.x).shape
        flat = cx.reshape(self.x, (steps * batch, size))
        columns = []
        for d, back in enumerate(self.reverse):
            weights = cx.transpose(cx.reshape(cx.part(self.w, 0, d, 1), tensor(self.w).shape[1:]), (1, 0))
            made = self.expr(cx.emit("graph.matmul", [flat, weights], packed=False))
            if self.bias is not None:
                own, other = (cx.reshape(cx.part(b, 0, d, 1), tensor(b).shape[1:]) for b in self.bias)
                gates = tensor(own).shape[0] // self.hidden
                joined = self.expr(own)
                if recurrent_bias == gates:
                    joined = joined + self.expr(other)
                elif recurrent_bias:
                    n = recurrent_bias
                    head = self.expr(self.part(own, 0, n)) + self.expr(self.part(other, 0, n))
                    joined = self.expr(cx.concat([head.value, self.part(own, n, gates - n)], 0))
                made = made + joined
            value = cx.reshape(made.value, (steps, 1, batch, tensor(made.value).shape[-1]))
            columns.append(cx.part(value, 0, steps - 1, steps, -1) if back else value)
        joint = cx.concat(columns, 1)
        return cx.reshape(joint, (steps, *self.lead, batch, tensor(joint).shape[-1]))

    def real(self, number: Value) -> Expr | None:
        """[..., B, 1]: whether the round's step is inside the sequence; None where all are equally long."""
        if self.lengths is None:
            return None
        cx, last = self.cx, tensor(self.x).shape[0] - 1
        sign = np.array([-1 if b else 1 for b in self.reverse], np.int64).reshape(*self.lead, 1, 1)
        first = np.array([last if b else 0 for b in self.reverse], np.int64).reshape(*self.lead, 1, 1)
        step = self.expr(cx.const(first)) + self.expr(cx.const(sign)) * self.expr(number)
        return step < self.expr(cx.reshape(self.lengths, (tensor(self.lengths).shape[0], 1)))

    def run(
        self, recurrent_bias: int, cell: Callable[[Expr, tuple[Expr, ...]], tuple[Expr, ...]]
    ) -> tuple[Value | None, ...]:
        """Y and the last states, in the node's layout. `cell`: (projections of a step [..., B, G*H], states) -> new
        states, the first of which is the output."""
        cx, (steps, batch, _), wanted = self.cx, tensor(self.x).shape, self.cx.wants(self.node, 0)
        inputs = self.projected(recurrent_bias)

        def step(number: Value, states: list[Value]) -> Round:
            old = tuple(self.expr(s) for s in states)
            new = cell(self.expr(row(cx, inputs, number)), old)
            real, out = self.real(number), new[0]
            if real is not None:
                new = tuple(real.where(n, o) for n, o in zip(new, old, strict=True))
                out = real.where(out, 0.0)
            each = [cx.part(out.value, 0, d, 1) for d in range(len(self.reverse))] if self.lead else [out.value]
            rows = [cx.reshape(v, (batch, self.hidden)) for v in each]
            return Round([n.value for n in new], rows if wanted else ())

        result = loop(cx, steps, self.starts, step, None, [d for d, back in enumerate(self.reverse) if back])
        kind = tensor(cx.inputs(self.node)[0]).dtype
        shape = (len(self.reverse), batch, self.hidden)
        states = [cx.reshape(cx.cast(s, kind), shape) for s in result.carried]
        y = None
        if wanted:
            stacks = [cx.reshape(s, (steps, 1, *tensor(s).shape[1:])) for s in result.stacked]
            y = cx.cast(cx.concat(stacks, 1), kind)
        if not self.batch_first:
            return (y, *states)
        return (None if y is None else cx.transpose(y, (2, 0, 1, 3)), *(cx.transpose(s, (1, 0, 2)) for s in states))


def _net(cx: ImportContext, node: onnx.NodeProto, gates: int, states: int, defaults: Sequence[str]) -> _Net:
    b, lengths, *more = [*cx.inputs(node), *[None] * 8][3:8]
    direction = str(cx.attr(node, "direction", "forward")).lower()
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    if direction not in ways:
        raise ValueError(f"direction {direction!r} is none of {', '.join(ways)}")
    reverse, batch_first = ways[direction], bool(cx.attr(node, "layout", 0))
    wide = "f64" if tensor(given(cx, node)).dtype.name == "f64" else "f32"
    x, w, r = (cx.cast(given(cx, node, i), wide) for i in range(3))
    b, *more = [v if v is None else cx.cast(v, wide) for v in (b, *more)]
    if batch_first:
        x = cx.transpose(x, (1, 0, 2))
    _, batch, _ = tensor(x).shape
    hidden, d = tensor(r).shape[2], len(reverse)
    starts = []
    for start in more[:states]:
        if start is None:
            start = cx.const(np.zeros((d, batch, hidden), tensor(x).dtype.numpy))
        elif batch_first:
            start = cx.transpose(start, (1, 0, 2))
        starts.append(cx.reshape(start, (d, batch, hidden) if d > 1 else (batch, hidden)))
    bias = None
    if b is not None:
        bias = (cx.part(b, 1, 0, gates * hidden), cx.part(b, 1, gates * hidden, gates * hidden))
    if lengths is not None:
        lengths = cx.cast(lengths, "i64")
        if cx.is_const(lengths) and (cx.array(lengths) >= tensor(x).shape[0]).all():
            lengths = None
    return _Net(
        cx, node, x, w, r, bias, more[2], tuple(starts), lengths, _functions(cx, node, d, defaults), hidden, reverse,
        batch_first,
    )  # fmt: skip


def _functions(
    cx: ImportContext, node: onnx.NodeProto, directions: int, defaults: Sequence[str]
) -> tuple[tuple[Function, ...], ...]:
    """Per gate function one for each direction, the same object where they are the same."""
    names = [n.lower() for n in _texts(cx.attr(node, "activations")) or [*defaults] * directions]
    alphas, betas = (list(cx.attr(node, f"activation_{k}") or ()) for k in ("alpha", "beta"))
    if len(names) != len(defaults) * directions:
        raise ValueError(f"has {len(names)} activations, not {len(defaults) * directions}")
    made: dict[tuple[str, float, float], Function] = {}
    functions = []
    for name in names:
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
        f = _function(name, float(alpha), float(beta))
        if f is None:
            raise cx.refuse(f"activation {name!r}", rule=f"{node.op_type} has ONNX's activation functions")
        functions.append(made.setdefault((name, alpha, beta), f))
    n = len(defaults)
    return tuple(tuple(functions[d * n + i] for d in range(directions)) for i in range(n))


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values or ()]


def rnn(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value | None, ...]:
    """h = f(x W + h R + b)."""
    net = _net(cx, node, 1, 1, ("tanh",))
    return net.run(1, lambda x, s: (net.activate(0, x + net.recur(s[0].value, 0, 1)),))


def gru(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value | None, ...]:
    """Update gate z, reset gate r, candidate n: h = (1 - z) n + z h. The reset is applied to the state, or with
    linear_before_reset to its product with the weights."""
    net = _net(cx, node, 3, 1, ("sigmoid", "tanh"))
    after = bool(cx.attr(node, "linear_before_reset", 0))

    def cell(x: Expr, states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        (h,) = states

        def gate(value: Expr, number: int) -> Expr:
            return net.expr(net.part(value.value, number))

        product = net.recur(h.value, 0, 3 if after else 2)
        z, r = (net.activate(0, gate(x, i) + gate(product, i)) for i in range(2))
        if after:
            inner = gate(product, 2)
            if net.bias is not None:
                own = net.part(net.bias[1], 2)
                inner = inner + net.expr(cx.reshape(own, (*net.lead, 1, net.hidden)))
            inner = r * inner
        else:
            inner = net.recur((r * h).value, 2, 1)
        n = net.activate(1, gate(x, 2) + inner)
        return ((1.0 - z) * n + z * h,)

    return net.run(2 if after else 3, cell)


def lstm(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value | None, ...]:
    """Input, output and forget gates i, o, f, which may see the cell (peepholes): c = f c + i g, h = o h(c). With
    input_forget, f is 1 - i."""
    net = _net(cx, node, 4, 2, ("sigmoid", "tanh", "tanh"))
    coupled = bool(cx.attr(node, "input_forget", 0))

    def cell(x: Expr, states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        h, c = states
        total = (x + net.recur(h.value, 0, 4)).value

        def gate(number: int, seen: Expr | None = None) -> Expr:
            out = net.expr(net.part(total, number))
            if net.p is not None and seen is not None:
                peep = cx.reshape(net.part(net.p, number), (*net.lead, 1, net.hidden))
                out = out + net.expr(peep) * seen
            return out

        i = net.activate(0, gate(0, c))
        f = 1.0 - i if coupled else net.activate(0, gate(2, c))
        c = f * c + i * net.activate(1, gate(3))
        o = net.activate(0, gate(1, c))
        return o * net.activate(2, c, clipped=False), c  # onnxruntime's reading: the gates' arguments are clipped

    return net.run(4, cell)


RULES = (OnnxRule("RNN", rnn), OnnxRule("GRU", gru), OnnxRule("LSTM", lstm))
