"""Second operands of contractions in the order that the matrix unit reads: pairs of rows side by side for bf16.

Before:
    d1c.module graph {
      func @main(%x: tensor<4x3xbf16>, %y: tensor<2x3xbf16>) {
        %w = graph.const {name = "w"} : tensor<3x2xbf16>
        %t = graph.transpose(%y) {perm = [1, 0]} : tensor<3x2xbf16>
        %a = graph.fused(%x, %w) {out = "bf16"} ({
          ^(%x_1: tensor<4x3xbf16>, %w_1: tensor<3x2xbf16>):
          %i = graph.matmul(%x_1, %w_1) : tensor<4x2xf32>
          graph.yield(%i)
        }) : tensor<4x2xbf16>
        %b = graph.fused(%x, %t) {out = "bf16"} ({
          ^(%x_1: tensor<4x3xbf16>, %t_1: tensor<3x2xbf16>):
          %j = graph.matmul(%x_1, %t_1) : tensor<4x2xf32>
          graph.yield(%j)
        }) : tensor<4x2xbf16>
        graph.return(%a, %b)
      }
      constants {
        "w" = dense<[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> : 3x2xbf16
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<4x3xbf16>, %y: tensor<2x3xbf16>) {
        %t = graph.transpose(%y) {perm = [1, 0]} : tensor<3x2xbf16>
        %w = graph.const {name = "w"} : tensor<2x2x2xbf16>
        %a = graph.fused(%x, %w) {out = "bf16"} ({
          ^(%x_1: tensor<4x3xbf16>, %w_1: tensor<2x2x2xbf16>):
          %i = graph.matmul(%x_1, %w_1) {packed = true} : tensor<4x2xf32>
          graph.yield(%i)
        }) : tensor<4x2xbf16>
        %t_p = graph.pack(%t) {pair = true} : tensor<2x2x2xbf16>
        %b = graph.fused(%x, %t_p) {out = "bf16"} ({
          ^(%x_1: tensor<4x3xbf16>, %t_1: tensor<2x2x2xbf16>):
          %j = graph.matmul(%x_1, %t_1) {packed = true} : tensor<4x2xf32>
          graph.yield(%j)
        }) : tensor<4x2xbf16>
        graph.return(%a, %b)
      }
      constants {
        "w" = dense<[1.0, 3.0, 2.0, 4.0, 5.0, 0.0, 6.0, 0.0]> : 2x2x2xbf16
      }
    }

Import leaves second operands as [..., K, N]. The pass makes that [..., ceil(K / 2), N, 2] for bf16, an odd K padded
with +0, and [..., K, N, 1] for everything else: constants now, values of the run by `graph.pack`, whose operand may be
a view (without pairs a reshape does it, unless a transpose stands before it). Depthwise weights have no pair dim; those
of groups of one channel keep pairs of extent 1, because a pair must not reach into the next group.

Two guarantees about first operands and other readers: where dims were transposed and then merged by a reshape, no index
map reads through both, so a `graph.copy` stands between them; and the reduce dim of a first operand is contiguous in
storage, if need be by a `graph.copy` as well.

Large images of an odd number of channels get another one of zeros, as their weights do in pairs: rows of pixels are
then contiguous in windows too, where pairs are whole.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from d1c.ir.core import Block, Module, Op, Value
from d1c.ops.graph.contract import pack
from d1c.ops.graph.views import reshape_groups
from d1c.ops.opdef import opdef
from d1c.passes.precision import ATTENTION, anchor, retyped
from d1c.passes.rebuild import Rebuild, keeps_order, main_ops, shape, tensor
from d1c.target.dtypes import BF16
from d1c.target.numerics import slices

LARGE = 1 << 20
"""Images of so many elements get an even number of channels; for smaller ones the layer more takes longer than the
short runs of pixels whose channels are odd."""


class Packer:
    def __init__(self, module: Module) -> None:
        self.to = Rebuild(module)
        self.ops = main_ops(module)
        self.packed: dict[tuple[Value, bool], Value] = {}
        self.copied: dict[Value, Value] = {}
        self.wide: dict[tuple[Value, int], Value] = {}

    # -- second operands

    def second(self, contraction: Op, x: Value, w: Value, op: Op) -> Value:
        """The second operand [..., K, N] with its pair dim; depthwise weights as they are."""
        more = len(shape(w)) - len(shape(x)) if contraction.name == "graph.conv" else 0
        if more == -1:
            return w
        pair = tensor(w).dtype == BF16 and not (more == 1 and shape(w)[-2] == 1)
        if (w, pair) not in self.packed:
            self.packed[w, pair] = self.pack(w, pair, op)
        return self.packed[w, pair]

    def pack(self, w: Value, pair: bool, op: Op) -> Value:
        data = self.to.data(w)
        if data is not None:
            return self.to.const(pack(data, pair), w.name, op.origin)
        if pair or any(v.name == "graph.transpose" for v in self.chain(w)):
            return self.to.emit("graph.pack", (w,), like=op, label=f"{w.name}_p" if w.name else "", pair=pair)
        return self.to.reshape(w, (*shape(w), 1), op, f"{w.name}_p" if w.name else "")

    # -- channels

    def even(self, conv: Op, x: int, w: int, operands: list[Value]) -> None:
        """Put another channel behind an odd number of them, where the first operand is rounded from a tensor of the
        same shape, as images are: in windows pairs of channels are whole, and pixels would be written one by one."""
        data, cast = self.to.data(operands[w]), self.to.producer.get(operands[x])
        if conv.name != "graph.conv" or conv.attrs.groups != 1 or data is None or data.ndim != len(shape(operands[x])):
            return
        *taps, channels, _ = data.shape
        more, terms = channels + 1, prod(taps)
        if (
            data.dtype != BF16.numpy
            or channels % 2 == 0
            or slices(channels * terms, channels) != slices(more * terms, more)
        ):
            return
        if cast is None or not rounds(cast) or shape(cast.operands[0]) != shape(cast.result):
            return
        if prod(shape(cast.result)) < LARGE:
            return
        (source,), rank = cast.operands, len(shape(cast.result))
        if (cast.result, more) not in self.wide:
            hi = (*(0 for _ in range(rank - 1)), 1)
            made = self.to.emit(
                "graph.pad", (source,), like=cast, label=f"{cast.result.name}_pad", lo=(0,) * rank, hi=hi
            )
            out = Value(replace(tensor(cast.result), shape=shape(made)), f"{cast.result.name}_even")
            self.to.append(
                replace(cast, operands=(made,), results=(out,), regions=(retyped(cast.regions[0], (made,)),))
            )
            self.wide[cast.result, more] = out
        operands[x] = self.wide[cast.result, more]
        zeros = [(0, 1) if k == len(taps) else (0, 0) for k in range(data.ndim)]
        operands[w] = self.to.const(np.pad(data, zeros), operands[w].name, conv.origin)

    # -- views

    def chain(self, value: Value) -> list[Op]:
        """The views between a value and its storage, the nearest to the value first."""
        out = []
        while (op := self.to.producer.get(value)) is not None and opdef(op.name).kind == "view":
            out.append(op)
            value = op.operands[0]
        return out

    def copy(self, value: Value, op: Op) -> Value:
        if value not in self.copied:
            self.copied[value] = self.to.emit(
                "graph.copy", (value,), like=op, label=f"{value.name}_c" if value.name else ""
            )
        return self.copied[value]

    def again(self, chain: list[Op], value: Value) -> Value:
        """The views `chain` over another value."""
        for view in reversed(chain):
            attrs = {f: getattr(view.attrs, f) for f in type(view.attrs).__dataclass_fields__}
            value = self.to.emit(view.name, (value,), like=view, **attrs)
        return value

    def readable(self, value: Value, op: Op) -> Value:
        """`value`, with a copy below the lowest reshape that no index map can look through."""
        chain = self.chain(value)
        for i in range(len(chain) - 1, -1, -1):
            if chain[i].name == "graph.reshape" and any(self.mixes(chain[i], below) for below in chain[i + 1 :]):
                return self.readable(self.again(chain[: i + 1], self.copy(chain[i].operands[0], op)), op)
        return value

    def mixes(self, reshape: Op, below: Op) -> bool:
        """Whether a reshape joins dims that the view `below` does not keep together."""
        before, after = shape(reshape.operands[0]), shape(reshape.result)
        joined = joined_dims(before, after)
        if not joined or below.name == "graph.reshape":
            return False
        if below.name == "graph.transpose":
            if len(shape(below.result)) != len(before):
                return True
            return any(below.attrs.perm[i + 1] != below.attrs.perm[i] + 1 for i in joined)
        if len(shape(below.result)) != len(before):
            return True
        whole = shape(below.operands[0])
        # of joined dims only the first may be cut; an expanded one has no address
        return len(whole) != len(before) or any(whole[i + 1] != before[i + 1] for i in joined) or (
            below.name == "graph.expand" and any(whole[i] != before[i] for i in joined)
        )  # fmt: skip

    def contiguous(self, value: Value, op: Op) -> Value:
        """`value` with its last dim contiguous in storage."""
        for view in self.chain(value):
            rank = len(shape(view.result))
            moved = view.name == "graph.transpose" and view.attrs.perm[-1] != rank - 1
            strided = view.name == "graph.slice" and view.attrs.steps[-1] != 1
            if (moved and not keeps_order(shape(view.operands[0]), view.attrs.perm)) or strided:
                return self.copy(value, op)
        return value

    # -- the walk

    def operation(self, op: Op) -> None:
        kind = opdef(op.name).kind
        if kind == "view" or kind == "constant" or not op.results:
            self.to.copy(op)
            return
        first = anchor(op)
        operands = list(self.to.values(op.operands))
        if first is not None and opdef(first.name).kind == "contract":
            op, first = apart(op, first)
            operands = list(self.to.values(op.operands))
            args = op.regions[0].args
            x, w = (args.index(v) for v in first.operands)
            self.even(first, x, w, operands)
            if not first.attrs.packed:
                operands[w] = self.second(first, operands[x], operands[w], op)
                op = replace(op, regions=(packed(op.regions[0], first),))
            operands[x] = self.contiguous(operands[x], op)
        elif op.name == ATTENTION and not op.attrs.packed:
            operands[:2] = [self.contiguous(v, op) for v in operands[:2]]
            operands[2] = self.second(op, operands[0], operands[2], op)
            op = replace(op, attrs=replace(op.attrs, packed=True))
        operands = [self.readable(v, op) for v in operands]
        if op.name == ATTENTION:
            self.to.append(replace(op, operands=tuple(operands)))
            return
        regions = tuple(retyped(r, operands) for r in op.regions)
        self.to.append(replace(op, operands=tuple(operands), regions=regions))


def apart(op: Op, contraction: Op) -> tuple[Op, Op]:
    """The group with the contraction's second operand as an argument that nothing else reads (x @ x, x @ w + w)."""
    block, w = op.regions[0], contraction.operands[1]
    if sum(v is w for o in block.ops for v in o.operands) == 1:
        return op, contraction
    own = Value(w.type, w.name)
    done = replace(contraction, operands=(contraction.operands[0], own))
    block = Block((*block.args, own), tuple(done if o is contraction else o for o in block.ops))
    return replace(op, operands=(*op.operands, op.operands[block.args.index(w)]), regions=(block,)), done


def rounds(op: Op) -> bool:
    """Whether a group does nothing but store its one operand as another type."""
    if op.name != "graph.fused" or len(op.operands) != 1:
        return False
    return all(o.name == "graph.cast" for o in op.regions[0].ops[:-1])


def packed(block: Block, contraction: Op) -> Block:
    """The region with the contraction's `packed` set."""
    done = replace(contraction, attrs=replace(contraction.attrs, packed=True))
    return replace(block, ops=tuple(done if o is contraction else o for o in block.ops))


def joined_dims(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Dims i of `before` that a reshape to `after` joins with dim i + 1; dims of size 1 join nothing."""
    return [i for ins, _ in reshape_groups(before, after) for i in list(ins)[:-1] if before[i] != 1 != before[i + 1]]


def run(module: Module) -> Module:
    """Pack second operands and make every operand readable through its views."""
    packer = Packer(module)
    for op in packer.ops:
        packer.operation(op)
    return packer.to.finish()
