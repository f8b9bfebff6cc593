"""A border of zeros in front of a convolution becomes the convolution's own padding.

Before:
    d1c.module graph {
      func @main(%x: tensor<1x5x6x2xf32>, %w: tensor<3x3x2x4xf32>) {
        %p = graph.pad(%x) {lo = [0, 1, 0, 0], hi = [0, 1, 2, 0]} : tensor<1x7x8x2xf32>
        %y = graph.conv(%p, %w) {strides = [2, 2], pads = [0, 0, 0, 1], dilations = [1, 1]} : tensor<1x3x4x4xf32>
        graph.return(%y)
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<1x5x6x2xf32>, %w: tensor<3x3x2x4xf32>) {
        %y = graph.conv(%x, %w) {strides = [2, 2], pads = [1, 0, 1, 3], dilations = [1, 1]} : tensor<1x3x4x4xf32>
        graph.return(%y)
      }
    }

The same for sum pools, and for max pools behind a border of -inf. Window taps outside the input read exactly that
value, so no bit changes. A border that anything else reads, or that lies on other dims than the spatial ones, stays.
"""

from __future__ import annotations

import math
from dataclasses import replace

from d1c.ir.core import Module, Op
from d1c.passes.rebuild import Rebuild, main_ops, users

OUTSIDE = {"graph.conv": 0.0, "graph.sum_pool": 0.0, "graph.max_pool": -math.inf}
"""What windows read outside their operand."""


def _padding(pad: Op, window: Op) -> tuple[int, ...] | None:
    """The window's `pads` with the border added, or None where they do not go together."""
    if window.name not in OUTSIDE or window.operands[0] is not pad.result:
        return None
    lo, hi, pads = pad.attrs.lo, pad.attrs.hi, window.attrs.pads
    if pad.attrs.value != OUTSIDE[window.name] or min(lo + hi) < 0 or lo[0] or lo[-1] or hi[0] or hi[-1]:
        return None
    return tuple(a + b for a, b in zip(pads, lo[1:-1] + hi[1:-1], strict=True))


def run(module: Module) -> Module:
    """Fold every such border."""
    to = Rebuild(module)
    ops = main_ops(module)
    readers = users(ops)
    made = {op.result: op for op in ops if op.name == "graph.pad"}
    for op in ops:
        pad = made.get(op.operands[0]) if op.name in OUTSIDE else None
        pads = _padding(pad, op) if pad is not None else None
        if pad is None or pads is None or any(_padding(pad, r) is None for r in readers[pad.result]):
            to.copy(op)
            continue
        operands = (to.value(pad.operands[0]), *to.values(op.operands[1:]))
        to.append(replace(op, operands=operands, attrs=replace(op.attrs, pads=pads)))
    return to.finish()
