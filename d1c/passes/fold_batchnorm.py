"""Scales and shifts per output channel behind a contraction move into its weights and into one addition.

Before:
    d1c.module graph {
      func @main(%x: tensor<4x2xf32>) {
        %w = graph.const {name = "w"} : tensor<2x2xf32>
        %b = graph.const {name = "b"} : tensor<2xf32>
        %s = graph.const {name = "s"} : tensor<2xf32>
        %h = graph.matmul(%x, %w) : tensor<4x2xf32>
        %i = graph.add(%h, %b) : tensor<4x2xf32>
        %y = graph.mul(%i, %s) : tensor<4x2xf32>
        graph.return(%y)
      }
      constants {
        "b" = dense<[1.0, -1.0]> : 2xf32
        "s" = dense<[2.0, 0.5]> : 2xf32
        "w" = dense<[1.0, 2.0, 3.0, 4.0]> : 2x2xf32
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<4x2xf32>) {
        %w = graph.const {name = "w"} : tensor<2x2xf32>
        %h = graph.matmul(%x, %w) : tensor<4x2xf32>
        %y_shift = graph.const {name = "y_shift"} : tensor<2xf32>
        %y = graph.add(%h, %y_shift) : tensor<4x2xf32>
        graph.return(%y)
      }
      constants {
        "w" = dense<[2.0, 1.0, 6.0, 2.0]> : 2x2xf32
        "y_shift" = dense<[2.0, -0.5]> : 2xf32
      }
    }

This is a BatchNormalization after import: the chain of add, sub, mul and div by constants is composed in float64 and
rounded once. Values change in the last places, by the graph alone. A chain that has no factor and at most one shift
stays as it is, and so does one that ends in an infinity or a NaN. Weights are not packed yet: [..., K, N], of grouped
convolutions [G, taps..., Cg, Og], of depthwise ones [taps..., C].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from d1c.ir.core import Module, Op, Value
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import CONST, Rebuild, main_ops, shape, users


@dataclass(frozen=True, slots=True)
class Chain:
    """y = scale * contraction + shift, per channel in float64; `last` computes y, `shifts` and `scales` count steps."""

    ops: tuple[Op, ...]
    scale: np.ndarray
    shift: np.ndarray
    scales: int = 0
    shifts: int = 0


def _step(chain: Chain, op: Op, value: Value, constant: np.ndarray) -> Chain | None:
    """The chain with `op`, one operand of which is the chain's `value`; None where it is not affine in it."""
    first = op.operands[0] is value
    scale, shift, scales, shifts = chain.scale, chain.shift, chain.scales, chain.shifts
    match op.name:
        case "graph.add":
            shift, shifts = shift + constant, shifts + 1
        case "graph.sub" if first:
            shift, shifts = shift - constant, shifts + 1
        case "graph.sub":
            scale, shift, scales, shifts = -scale, constant - shift, scales + 1, shifts + 1
        case "graph.mul":
            scale, shift, scales = scale * constant, shift * constant, scales + 1
        case "graph.div" if first:
            scale, shift, scales = scale / constant, shift / constant, scales + 1
        case _:
            return None
    return Chain((*chain.ops, op), scale, shift, scales, shifts)


class Folder:
    def __init__(self, module: Module) -> None:
        self.to = Rebuild(module)
        self.ops = main_ops(module)
        self.readers = users(self.ops)
        named = {op.result: op.attrs.name for op in self.ops if op.name == CONST}
        self.data = {v: module.constants[n] for v, n in named.items() if n in module.constants}

    def channel_constant(self, value: Value, out: Value) -> np.ndarray | None:
        """A constant that depends on the last dim of `out` alone, as float64 of shape () or [channels]."""
        data = self.data.get(value)
        if data is None or data.dtype != np.float32 or data.ndim > len(shape(out)):
            return None
        if data.size == 1:
            return data.reshape(()).astype(np.float64)
        return data.reshape(-1).astype(np.float64) if data.shape[-1:] == shape(out)[-1:] == (data.size,) else None

    def chain(self, contraction: Op) -> Chain:
        """The longest chain of affine operations with one reader each."""
        zero = np.zeros(shape(contraction.result)[-1:], np.float64)
        found = Chain((contraction,), zero + 1, zero)
        while True:
            value = found.ops[-1].result
            reader, *others = self.readers.get(value, [None])
            if reader is None or others or len(reader.operands) != 2 or reader.operands[0] is reader.operands[1]:
                return found
            other = reader.operands[reader.operands[0] is value]
            constant = self.channel_constant(other, value)
            with np.errstate(all="ignore"):
                longer = None if constant is None else _step(found, reader, value, constant)
            if longer is None:
                return found
            found = longer

    def fold(self, chain: Chain) -> bool:
        """Emit the folded chain; False where it stays as it is."""
        contraction, last = chain.ops[0], chain.ops[-1]
        weights = self.data[contraction.operands[1]]
        with np.errstate(all="ignore"):
            spread = _spread(chain.scale, weights.shape, len(shape(contraction.operands[0])), contraction)
            scaled = (weights.astype(np.float64) * spread).astype(np.float32)
            shift = chain.shift.astype(np.float32)
        if not (np.isfinite(scaled).all() and np.isfinite(shift).all()):
            return False
        w = self.to.const(scaled, contraction.operands[1].name, contraction.origin)
        x = self.to.value(contraction.operands[0])
        result = Value(contraction.result.type, contraction.result.name if chain.shifts else last.result.name)
        self.to.append(replace(contraction, operands=(x, w), results=(result,)))
        if chain.shifts:
            bias = self.to.const(shift, f"{last.result.name or contraction.operands[1].name}_shift", last.origin)
            result = self.to.emit("graph.add", (result, bias), like=last)
        self.to.new[last.result] = result
        return True


def _spread(scale: np.ndarray, weights: tuple[int, ...], x_rank: int, contraction: Op) -> np.ndarray:
    """Scales of the output channels, shaped to multiply the weights."""
    if contraction.name == "graph.conv" and len(weights) == x_rank + 1:
        return scale.reshape(weights[0], *(1,) * (len(weights) - 2), weights[-1])
    return scale


def run(module: Module) -> Module:
    """Fold every chain behind a contraction with constant weights that nothing else reads."""
    f = Folder(module)
    gone: set[Op] = set()
    for op in f.ops:
        if op in gone:
            continue
        foldable = opdef(op.name).kind == "contract" and not op.attrs.packed and op.operands[1] in f.data
        if foldable and f.data[op.operands[1]].dtype == np.float32:
            chain = f.chain(op)
            if (chain.scales or chain.shifts > 1) and f.fold(chain):
                gone.update(chain.ops)
                continue
        f.to.copy(op)
    return f.to.finish()
