"""Values that a model declares f16 or bf16 are rounded to that type where an ONNX node hands them on (policy f32).

Before:
    d1c.module graph {
      func @main(%x: tensor<2x4xf16>, %y: tensor<2x4xf16>) {
        %p = graph.mul(%x, %y) : tensor<2x4xf16> loc("scale")
        %s = graph.add(%p, %y) : tensor<2x4xf16> loc("scale")
        %r = graph.relu(%s) : tensor<2x4xf16> loc("act")
        %e = graph.exp(%r) : tensor<2x4xf16> loc("exp")
        graph.return(%e)
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<2x4xf16>, %y: tensor<2x4xf16>) {
        %p = graph.mul(%x, %y) : tensor<2x4xf16> loc("scale")
        %s = graph.add(%p, %y) : tensor<2x4xf16> loc("scale")
        %s_f16 = graph.round_to(%s) {to = "f16"} : tensor<2x4xf16> loc("scale")
        %r = graph.relu(%s_f16) : tensor<2x4xf16> loc("act")
        %e = graph.exp(%r) : tensor<2x4xf16> loc("exp")
        %e_f16 = graph.round_to(%e) {to = "f16"} : tensor<2x4xf16> loc("exp")
        graph.return(%e_f16)
      }
    }

What one node computes is computed in f32, as if in one go: in the example the product, which only the node "scale"
reads, is not rounded. Its result is, once, as the model's author saw it. Ops that only choose or move values (views,
copies, relu, max, where, ...) keep values of the type as they are and need no rounding behind them. A rounding is an
elementwise op like any other: it joins the kernel of the op in front of it, and the value stays f32 there.

Under policy bf16 the pass does nothing: there the policy says what is rounded, and where.
Operations without an origin stand for a node each.
"""

from __future__ import annotations

from collections.abc import Sequence

from d1c.ir.core import Module, Op, Value
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import CONST, Rebuild, main_ops, tensor, users

ROUNDED = ("f16", "bf16")
EXACT = frozenset(
    "graph." + name
    for name in (
        "neg abs max min relu clip where floor ceil round sign copy pad concat pack lookup "
        "reduce_max reduce_min max_pool"
    ).split()
)
"""Ops that give a value of the type, exactly, from values of the type (views as well)."""


def exact(op: Op, found: Sequence[str | None]) -> str | None:
    """The type whose values the op's results certainly are, given that of each float operand; None if none is known."""
    if op.name == "graph.round_to":
        return str(op.attrs.to)
    kept = opdef(op.name).kind == "view" or op.name in EXACT or op.name == "graph.cast"
    return found[0] if kept and len(set(found)) == 1 else None


class Rounder:
    def __init__(self, module: Module) -> None:
        self.to = Rebuild(module)
        self.ops = main_ops(module)
        self.readers = users(self.ops)
        self.grid: dict[Value, str] = {a: tensor(a).dtype.name for a in module.function().block.args}
        self.maker: dict[Value, Op] = {r: op for op in self.ops for r in op.results}
        self.rounded: dict[Value, Value] = {}  # old value -> new, rounded

    def leaves(self, value: Value, reader: Op) -> bool:
        """Whether `reader` belongs to another node than what computed the value."""
        origin = self.maker[value].origin
        return not origin or reader.origin != origin

    def operation(self, op: Op) -> None:
        plain = {v: self.to.value(v) for v in op.operands if v in self.rounded and self.leaves(v, op)}
        for v in plain:
            self.to.new[v] = self.rounded[v]
        self.to.copy(op)
        self.to.new.update(plain)
        floats = [v for v in op.operands if tensor(v).dtype.is_float]
        found = [tensor(v).dtype.name if v in plain else self.grid.get(v) for v in floats]
        for r in op.results:
            name = tensor(r).dtype.name
            whole = op.name == CONST or opdef(op.name).kind == "loop"  # what a loop's body returns is rounded there
            if (on := name if whole else exact(op, found)) is not None:
                self.grid[r] = on
            if name in ROUNDED and on != name and any(self.leaves(r, u) for u in self.readers.get(r, ())):
                new = self.to.value(r)
                label = f"{r.name}_{name}" if r.name else ""
                self.rounded[r] = self.to.emit("graph.round_to", (new,), like=op, label=label, to=name)


def run(module: Module, policy: str = "f32") -> Module:
    """Round what nodes hand on, in main."""
    if policy != "f32" or not any(
        tensor(r).dtype.name in ROUNDED for op in main_ops(module) for r in op.results if op.name != CONST
    ):
        return module
    rounder = Rounder(module)
    for op in rounder.ops:
        rounder.operation(op)
    return rounder.to.finish()
