"""Views of views become one view; views that change nothing go.

Before:
    d1c.module graph {
      func @main(%x: tensor<2x6xf32>) {
        %a = graph.reshape(%x) {shape = [3, 4]} : tensor<3x4xf32>
        %b = graph.reshape(%a) {shape = [12, 1]} : tensor<12x1xf32>
        %c = graph.transpose(%b) {perm = [1, 0]} : tensor<1x12xf32>
        %d = graph.slice(%c) {starts = [0, 2], steps = [1, 1], sizes = [1, 8]} : tensor<1x8xf32>
        %e = graph.slice(%d) {starts = [0, 6], steps = [1, -2], sizes = [1, 3]} : tensor<1x3xf32>
        %f = graph.expand(%e) {shape = [1, 3]} : tensor<1x3xf32>
        graph.return(%f)
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<2x6xf32>) {
        %c = graph.reshape(%x) {shape = [1, 12]} : tensor<1x12xf32>
        %e = graph.slice(%c) {starts = [0, 8], steps = [1, -2], sizes = [1, 3]} : tensor<1x3xf32>
        graph.return(%e)
      }
    }
"""

from __future__ import annotations

from collections.abc import Callable

from d1c.ir.core import Module, Op, Value
from d1c.passes.rebuild import Rebuild, main_ops, shape


def _reshape(to: Rebuild, op: Op, x: Value) -> Value:
    return to.reshape(x, op.attrs.shape, op)


def _transpose(to: Rebuild, op: Op, x: Value) -> Value:
    return to.transpose(x, op.attrs.perm, op)


def _slice(to: Rebuild, op: Op, x: Value) -> Value:
    starts, steps, sizes = op.attrs.starts, op.attrs.steps, op.attrs.sizes
    if shape(x) == tuple(sizes) and all(k == 1 or n == 1 for k, n in zip(steps, sizes, strict=True)):
        return x
    before = to.producer.get(x)
    if before is not None and before.name == "graph.slice":
        a = before.attrs
        starts = tuple(s + k * t for s, k, t in zip(a.starts, a.steps, starts, strict=True))
        steps = tuple(k * t for k, t in zip(a.steps, steps, strict=True))
        x = before.operands[0]
    return to.emit("graph.slice", (x,), like=op, starts=starts, steps=steps, sizes=sizes)


def _expand(to: Rebuild, op: Op, x: Value) -> Value:
    if shape(x) == tuple(op.attrs.shape):
        return x
    before = to.producer.get(x)
    if before is not None and before.name == "graph.expand":
        x = before.operands[0]
    return to.emit("graph.expand", (x,), like=op, shape=op.attrs.shape)


RULES: dict[str, Callable[[Rebuild, Op, Value], Value]] = {
    "graph.reshape": _reshape,
    "graph.transpose": _transpose,
    "graph.slice": _slice,
    "graph.expand": _expand,
}


def run(module: Module) -> Module:
    """Simplify every view of `main`."""
    to = Rebuild(module)
    for op in main_ops(module):
        if rule := RULES.get(op.name):
            to.new[op.result] = rule(to, op, to.value(op.operands[0]))
        else:
            to.copy(op)
    return to.finish()
