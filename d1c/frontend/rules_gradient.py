"""ai.onnx.preview.training.Gradient: reverse mode over the graph ops that lead from xs to y."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.indexing import op, reduce
from d1c.frontend.rules_math import product
from d1c.frontend.rules_training import DOMAIN
from d1c.ir.core import Op, Value
from d1c.ops.opdef import OnnxRule

Pull = Callable[[ImportContext, Op, Value], Sequence[Value]]
"""The gradients of the op's operands, still of its result's shape where operands broadcast, from that of its result."""


def _turned(cx: ImportContext, x: Value) -> Value:
    """The last two dims change places."""
    rank = len(tensor(x).shape)
    return cx.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


def _quotient(cx: ImportContext, o: Op, g: Value) -> tuple[Value, Value]:
    a = op(cx, "div", g, o.operands[1])
    return a, op(cx, "neg", op(cx, "mul", a, o.results[0]))


def _kept(cx: ImportContext, o: Op, g: Value) -> tuple[Value]:
    """Of a sum over dims: the same for all of them, which broadcasting does."""
    shape = tensor(o.operands[0]).shape
    return (cx.reshape(g, [1 if d in o.attrs.axes else n for d, n in enumerate(shape)]),)


PULLS: dict[str, Pull] = {
    "graph.add": lambda cx, o, g: (g, g),
    "graph.sub": lambda cx, o, g: (g, op(cx, "neg", g)),
    "graph.neg": lambda cx, o, g: (op(cx, "neg", g),),
    "graph.mul": lambda cx, o, g: (op(cx, "mul", g, o.operands[1]), op(cx, "mul", g, o.operands[0])),
    "graph.div": _quotient,
    "graph.exp": lambda cx, o, g: (op(cx, "mul", g, o.results[0]),),
    "graph.log": lambda cx, o, g: (op(cx, "div", g, o.operands[0]),),
    "graph.matmul": lambda cx, o, g: (
        product(cx, g, _turned(cx, o.operands[1])), product(cx, _turned(cx, o.operands[0]), g)
    ),
    "graph.reduce_sum": _kept,
    "graph.reshape": lambda cx, o, g: (cx.reshape(g, tensor(o.operands[0]).shape),),
    "graph.transpose": lambda cx, o, g: (cx.transpose(g, [int(i) for i in np.argsort(o.attrs.perm)]),),
}  # fmt: skip
_MERGED = ("graph.reshape", "graph.transpose", "graph.slice", "graph.expand", "graph.cast")
"""Ops that others may pass over, so that not everything that reads their result says so."""


def gradient(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """dy/dx for every x of `xs`; zeros for one that y does not depend on."""
    names = [n.decode() for n in cx.attr(node, "xs")]
    xs, y = [cx.find(name) for name in names], cx.find(cx.attr(node, "y"))
    if cx.inputs(node)[: len(xs)] != xs or len(set(xs)) < len(xs):
        raise cx.refuse("Gradient at other values than those of xs", remedy="give the node the tensors that xs names")
    for name, x in zip(names, xs, strict=True):
        made = cx.producer(x)
        if made is not None and (cx.is_const(x) or made.name in _MERGED):
            raise cx.refuse(f"Gradient for {name!r}, which is a constant or a view", remedy="make it an input")
    if tensor(y).size != 1:
        raise cx.refuse("Gradient of a tensor of several elements", remedy="add them up before")
    path = _path(cx, y, set(xs))
    if other := sorted({o.name for o in path if o.name not in PULLS}):
        raise cx.refuse(f"Gradient through {', '.join(other)}", rule=f"differentiated are {', '.join(PULLS)}")
    flows = {y: cx.const(np.ones(tensor(y).shape, tensor(y).dtype.numpy))}
    for o in reversed(path):
        for x, g in zip(o.operands, PULLS[o.name](cx, o, flows[o.results[0]]), strict=True):
            g = _fitting(cx, g, x)
            flows[x] = op(cx, "add", flows[x], g) if x in flows else g
    return tuple(flows.get(x) or cx.const(np.zeros(tensor(x).shape, tensor(x).dtype.numpy)) for x in xs)


def _path(cx: ImportContext, y: Value, xs: set[Value]) -> list[Op]:
    """The ops between xs and y, each after those whose results it reads."""
    leads: dict[Value, bool] = {x: True for x in xs}
    path: list[Op] = []
    stack = [] if y in xs else [y]
    while stack:
        value = stack[-1]
        made = cx.producer(value)
        unseen = [v for v in made.operands if v not in leads] if made is not None else []
        if unseen:
            stack += unseen
            continue
        stack.pop()
        if value not in leads:
            leads[value] = made is not None and any(leads[v] for v in made.operands)
            if made is not None and leads[value]:
                path.append(made)
    return path


def _fitting(cx: ImportContext, g: Value, x: Value) -> Value:
    """The gradient in the shape of the operand: summed where that was broadcast, spread where `g` is one for all."""
    want, rank = tensor(x).shape, len(tensor(g).shape)
    shape = (1,) * (rank - len(want)) + want
    if axes := [d for d, (n, m) in enumerate(zip(shape, tensor(g).shape, strict=True)) if n == 1 and m > 1]:
        g = reduce(cx, "sum", g, axes, True)
    return cx.cast(cx.reshape(cx.expand(g, shape), want), tensor(x).dtype)


RULES = (OnnxRule("Gradient", gradient, domain=DOMAIN),)
