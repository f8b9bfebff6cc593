"""Evaluate at compile time what depends on constants alone, and drop what nobody reads.

Before:
    d1c.module graph {
      func @main(%x: tensor<2x2xf32>) {
        %a = graph.const {name = "a"} : tensor<2x2xf32>
        %t = graph.transpose(%a) {perm = [1, 0]} : tensor<2x2xf32>
        %s = graph.neg(%t) : tensor<2x2xf32>
        %y = graph.add(%x, %s) : tensor<2x2xf32>
        graph.return(%y)
      }
      constants {
        "a" = dense<[1.0, 2.0, 3.0, 4.0]> : 2x2xf32
      }
    }

After:
    d1c.module graph {folded_ops = 2, folded_bytes = 32} {
      func @main(%x: tensor<2x2xf32>) {
        %s = graph.const {name = "s"} : tensor<2x2xf32>
        %y = graph.add(%x, %s) : tensor<2x2xf32>
        graph.return(%y)
      }
      constants {
        "s" = dense<[-1.0, -3.0, -2.0, -4.0]> : 2x2xf32
      }
    }

The values are those of the emulator's vector instructions, so folding never changes a bit. What would make the binary
larger is left alone: results of more than a megabyte that are also larger than their operands. So are random numbers,
which are the cores' to draw.
Module attributes `folded_ops` and `folded_bytes` say how much was evaluated, over all runs of the pass.
"""

from __future__ import annotations

from d1c.ir.core import Module
from d1c.ops.evaluate import evaluate
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import Rebuild, main_ops, nbytes

LARGE_BYTES = 1 << 20


def run(module: Module) -> Module:
    """Fold until nothing is left to fold (one walk does it: operands come before their readers)."""
    to = Rebuild(module)
    ops = folded_bytes = 0
    for op in main_ops(module):
        arrays = [to.data(v) for v in to.values(op.operands)]
        known = [a for a in arrays if a is not None]
        kept = op.regions or not opdef(op.name).facts.get("fold", True)
        if not arrays or len(known) < len(arrays) or len(op.results) != 1 or kept:
            to.copy(op)
            continue
        size = nbytes(op.result)
        out = None if size > max(LARGE_BYTES, sum(a.nbytes for a in known)) else evaluate(op, known)
        if out is None:
            to.copy(op)
            continue
        to.new[op.result] = to.const(out, op.result.name, op.origin)
        ops += 1
        folded_bytes += size
    attrs = module.attrs
    return to.finish({
        "folded_ops": attrs.get("folded_ops", 0) + ops, "folded_bytes": attrs.get("folded_bytes", 0) + folded_bytes,
    })  # fmt: skip
