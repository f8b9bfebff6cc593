"""Scalar factors of a matmul's operands move behind the matmul, where they cost no pass over the operand.

Before:
    d1c.module graph {
      func @main(%q: tensor<4x8xf32>, %k: tensor<6x8xf32>) {
        %s = graph.const {name = "s"} : tensor<f32>
        %a = graph.mul(%q, %s) : tensor<4x8xf32>
        %b = graph.mul(%k, %s) : tensor<6x8xf32>
        %t = graph.transpose(%b) {perm = [1, 0]} : tensor<8x6xf32>
        %y = graph.matmul(%a, %t) : tensor<4x6xf32>
        graph.return(%y)
      }
      constants {
        "s" = dense<[0.5]> : f32
      }
    }

After:
    d1c.module graph {
      func @main(%q: tensor<4x8xf32>, %k: tensor<6x8xf32>) {
        %t = graph.transpose(%k) {perm = [1, 0]} : tensor<8x6xf32>
        %0 = graph.matmul(%q, %t) : tensor<4x6xf32>
        %y_scale = graph.const {name = "y_scale"} : tensor<f32>
        %y = graph.mul(%0, %y_scale) : tensor<4x6xf32>
        graph.return(%y)
      }
      constants {
        "y_scale" = dense<[0.25]> : f32
      }
    }

This is attention, whose exporters scale queries and keys by the fourth root of the head size. Several factors are
multiplied in float64 and rounded once; operands stored as bf16 are then rounded once instead of twice. Only factors
that nothing else reads move, through views, and only finite ones that are not 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from d1c.ir.core import Module, Op, Value
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import CONST, Rebuild, main_ops, shape, tensor, users


class Hoist:
    def __init__(self, module: Module) -> None:
        self.to = Rebuild(module)
        self.ops = main_ops(module)
        self.readers = users(self.ops)
        self.producer = {r: op for op in self.ops for r in op.results}
        self.factors: dict[Op, tuple[Value, float]] = {}  # a scaling operation: what it scales, by how much

    def scaling(self, op: Op) -> tuple[Value, float] | None:
        """The value that `op` multiplies or divides by one finite number, and the factor."""
        if op.name not in ("graph.mul", "graph.div") or tensor(op.result).dtype.name != "f32":
            return None
        for i in (1, 0) if op.name == "graph.mul" else (1,):
            made, other = self.producer.get(op.operands[i]), op.operands[1 - i]
            if made is None or made.name != CONST or shape(other) != shape(op.result):
                continue
            data = self.to.constants.get(made.attrs.name)
            if data is None or data.size != 1:
                continue
            number = float(data.reshape(()))
            if math.isfinite(number) and number:
                return other, number if op.name == "graph.mul" else 1 / number
        return None

    def find(self, value: Value) -> float:
        """The factor of an operand of a matmul, 1 where none can move; notes the operation that goes."""
        factor = 1.0
        while (op := self.producer.get(value)) is not None and len(self.readers[value]) == 1:
            if (found := self.scaling(op)) is not None:
                self.factors[op] = found
                value, factor = found[0], factor * found[1]
            elif opdef(op.name).kind == "view":
                value = op.operands[0]
            else:
                break
        return factor

    def run(self) -> Module:
        scales = {}
        for op in self.ops:
            if op.name == "graph.matmul":
                factor = math.prod(self.find(v) for v in dict.fromkeys(op.operands))
                scales[op] = factor if op.operands[0] is not op.operands[1] else factor**2
        for op in self.ops:
            if op in self.factors:
                self.to.new[op.result] = self.to.value(self.factors[op][0])
            elif scales.get(op, 1.0) == 1.0:
                self.to.copy(op)
            else:
                result = Value(op.result.type)
                self.to.append(replace(op, operands=self.to.values(op.operands), results=(result,)))
                name = f"{op.result.name or 'matmul'}_scale"
                scale = self.to.const(np.array(scales[op], np.float32), name, op.origin)
                self.to.new[op.result] = self.to.emit("graph.mul", (result, scale), like=op)
        return self.to.finish()


def run(module: Module) -> Module:
    """Move every such factor."""
    return Hoist(module).run()
