"""Two products with a softmax between them become one attention, which never stores its scores whole.

Before:
    d1c.module graph {
      func @main(%q: tensor<2x8x4xf32>, %k: tensor<2x4x9xf32>, %v: tensor<2x9x4xf32>, %mask: tensor<8x9xf32>) {
        %c = graph.const {name = "c"} : tensor<f32>
        %a = graph.matmul(%q, %k) : tensor<2x8x9xf32>
        %b = graph.mul(%a, %c) : tensor<2x8x9xf32>
        %s = graph.add(%b, %mask) : tensor<2x8x9xf32>
        %m = graph.reduce_max(%s) {axes = [2], keepdims = true} : tensor<2x8x1xf32>
        %d = graph.sub(%s, %m) : tensor<2x8x9xf32>
        %e = graph.exp(%d) : tensor<2x8x9xf32>
        %l = graph.reduce_sum(%e) {axes = [2], keepdims = true} : tensor<2x8x1xf32>
        %p = graph.div(%e, %l) : tensor<2x8x9xf32>
        %o = graph.matmul(%p, %v) : tensor<2x8x4xf32>
        %y = graph.transpose(%o) {perm = [1, 0, 2]} : tensor<8x2x4xf32>
        graph.return(%y)
      }
      constants {
        "c" = dense<[0.5]> : f32
      }
    }

After:
    d1c.module graph {
      func @main(%q: tensor<2x8x4xf32>, %k: tensor<2x4x9xf32>, %v: tensor<2x9x4xf32>, %mask: tensor<8x9xf32>) {
        %c = graph.const {name = "c"} : tensor<f32>
        %k_t = graph.transpose(%k) {perm = [0, 2, 1]} : tensor<2x9x4xf32>
        %y = graph.attention(%q, %k_t, %v, %c, %mask) {out = "f32", order = [1, 0, 2]} ({
          ^(%a: tensor<2x8x9xf32>, %0: tensor<f32>, %1: tensor<8x9xf32>):
          %b = graph.mul(%a, %0) : tensor<2x8x9xf32>
          %s = graph.add(%b, %1) : tensor<2x8x9xf32>
          graph.yield(%s)
        }) : tensor<8x2x4xf32>
        graph.return(%y)
      }
      constants {
        "c" = dense<[0.5]> : f32
      }
    }

Whatever is elementwise between the first product and the softmax goes into the region: scale, mask, a cap. Nothing else
may read what is inside. Keys are read in rows, as the queries are. A transpose behind that leaves the last dim in its
place, and that alone reads the result, says in which order the result is stored. Products of fewer than 8 rows, as in
decoding, stay as they are: their keys are worth spreading over cores. Only shapes and the graph decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d1c.ir.core import Block, Module, Op, Value
from d1c.ops.graph.attention import AttentionAttrs, attention_type
from d1c.ops.opdef import opdef
from d1c.passes.fuse import FULL_WIDTH, MOST_OPS, MOST_TENSORS
from d1c.passes.rebuild import Rebuild, main_ops, shape, tensor, users
from d1c.target.dtypes import F32

LEAST_ROWS = 8
"""Rows of queries, at least: one step of the matrix unit."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The two products, what is elementwise between the first one and `scores`, and the transpose behind."""

    first: Op
    last: Op
    between: Sequence[Op]
    scores: Value
    transpose: Op | None


class _Matcher:
    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.index = {op: i for i, op in enumerate(ops)}
        self.readers = users(ops)
        self.producer = {r: op for op in ops for r in op.results}

    def made_by(self, value: Value, name: str, readers: int) -> Op | None:
        """The op `name` that makes the f32 `value`, if it has so many readers."""
        op = self.producer.get(value)
        good = op is not None and op.name == name and len(self.readers[value]) == readers
        return op if good and tensor(value).dtype == F32 else None

    def attention(self, last: Op) -> _Found | None:
        """The attention that ends in this product."""
        if last.name != "graph.matmul" or last.attrs.packed or tensor(last.operands[1]).dtype != F32:
            return None
        p = self.made_by(last.operands[0], "graph.div", 1)
        e = self.made_by(p.operands[0], "graph.exp", 2) if p else None
        d = self.made_by(e.operands[0], "graph.sub", 1) if e else None
        if p is None or e is None or d is None:
            return None
        x = d.operands[0]
        rank = len(shape(x))
        along = {"axes": (rank - 1,), "keepdims": True}
        m, total = (
            self.made_by(d.operands[1], "graph.reduce_max", 1),
            self.made_by(p.operands[1], "graph.reduce_sum", 1),
        )
        if m is None or total is None or m.operands[0] is not x or total.operands[0] is not e.result:
            return None
        if any({k: getattr(r.attrs, k) for k in along} != along for r in (m, total)):
            return None
        if any(shape(r.result) != shape(x) for r in (d, e, p)) or shape(last.result)[:-1] != shape(x)[:-1]:
            return None
        made = self.between(x, {d, m})
        if made is None:
            return None
        first, between = made
        if shape(x)[-2] < LEAST_ROWS:
            return None
        return _Found(first, last, between, x, self.transpose(last.result))

    def between(self, scores: Value, behind: set[Op]) -> tuple[Op, list[Op]] | None:
        """The product of which `scores`, read by `behind`, are made element by element, and those ops in order."""
        wanted, inside = shape(scores), set[Op]()
        first: Op | None = None
        queue = [scores]
        while queue:
            op = self.producer.get(queue.pop())
            if op is None or op in inside or shape(op.result) != wanted:
                continue
            if op.name == "graph.matmul":
                if first is not None and op is not first:
                    return None
                first = op
            elif opdef(op.name).kind == "elementwise":
                inside.add(op)
                queue += op.operands
        if first is None or first.attrs.packed or any(tensor(v).dtype != F32 for v in (*first.operands, first.result)):
            return None
        depends = {first.result}
        chain: list[Op] = []
        for op in sorted(inside, key=self.index.__getitem__):
            if depends.intersection(op.operands):
                depends.update(op.results)
                chain.append(op)
        known = {*chain, *behind}
        if scores not in depends or tensor(scores).dtype != F32 or len(chain) > MOST_OPS:
            return None
        if any(r not in known for v in depends for r in self.readers[v]):
            return None
        if any(tensor(v).dtype.name not in FULL_WIDTH for op in chain for v in (*op.operands, *op.results)):
            return None
        if any(tensor(v).dtype.name == "f64" for op in chain for v in (*op.operands, *op.results)):
            return None
        others = {v for op in chain for v in op.operands} - depends
        return (first, chain) if len([v for v in others if tensor(v).size > 1]) <= MOST_TENSORS else None

    def transpose(self, result: Value) -> Op | None:
        """The one reader of the result, if it is a transpose that keeps the last dim last."""
        (reader, *more) = self.readers[result]
        rank = len(shape(result))
        good = not more and reader.name == "graph.transpose" and reader.attrs.perm[-1] == rank - 1
        return reader if good else None


def _emit(to: Rebuild, found: _Found) -> None:
    first, last = found.first, found.last
    inside = {r for op in found.between for r in op.results} | {first.result}
    others = list(dict.fromkeys(v for op in found.between for v in op.operands if v not in inside))
    acc = Value(first.result.type, first.result.name)
    args = tuple(Value(to.value(v).type, v.name) for v in others)
    env = {first.result: acc, **dict(zip(others, args, strict=True))}
    body = []
    for op in found.between:
        result = Value(op.result.type, op.result.name)
        body.append(Op(op.name, tuple(env[v] for v in op.operands), op.attrs, (result,), (), op.origin))
        env[op.result] = result
    block = Block((acc, *args), (*body, Op("graph.yield", (env[found.scores],))))
    end = found.transpose or last
    order = found.transpose.attrs.perm if found.transpose else tuple(range(len(shape(last.result))))
    q, k, v = to.values((*first.operands, last.operands[1]))
    rank = len(shape(k))
    k = to.transpose(k, (*range(rank - 2), rank - 1, rank - 2), first, f"{k.name}_t" if k.name else "")
    operands = (q, k, v, *to.values(others))
    attrs = AttentionAttrs("f32", tuple(order))
    made = Value(attention_type(tuple(v.type for v in operands), attrs), end.result.name)
    to.append(Op("graph.attention", operands, attrs, (made,), (block,), last.origin))
    to.new[end.result] = made


def run(module: Module) -> Module:
    """Form every attention."""
    ops = main_ops(module)
    matcher = _Matcher(ops)
    found = {op: a for op in ops if (a := matcher.attention(op)) is not None}
    gone = {a.transpose for a in found.values()}
    to = Rebuild(module)
    for op in ops:
        if op in found:
            _emit(to, found[op])
        elif op not in gone:
            to.copy(op)
    return to.finish()
