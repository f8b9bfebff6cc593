"""Elementwise operations join the contraction, reduction or pool that feeds them, or each other: one group, one kernel.

Before:
    d1c.module graph {
      func @main(%x: tensor<4x8xf32>) {
        %m = graph.reduce_max(%x) {axes = [1], keepdims = true} : tensor<4x1xf32>
        %d = graph.sub(%x, %m) : tensor<4x8xf32>
        %e = graph.exp(%d) : tensor<4x8xf32>
        %s = graph.reduce_sum(%e) {axes = [1], keepdims = true} : tensor<4x1xf32>
        %y = graph.div(%e, %s) : tensor<4x8xf32>
        graph.return(%y)
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<4x8xf32>) {
        %m = graph.fused(%x) {out = "f32"} ({
          ^(%0: tensor<4x8xf32>):
          %1 = graph.reduce_max(%0) {axes = [1], keepdims = true} : tensor<4x1xf32>
          graph.yield(%1)
        }) : tensor<4x1xf32>
        %s = graph.fused(%x, %m) {out = "f32"} ({
          ^(%0: tensor<4x8xf32>, %1: tensor<4x1xf32>):
          %d = graph.sub(%0, %1) : tensor<4x8xf32>
          %e = graph.exp(%d) : tensor<4x8xf32>
          %2 = graph.reduce_sum(%e) {axes = [1], keepdims = true} : tensor<4x1xf32>
          graph.yield(%2)
        }) : tensor<4x1xf32>
        %y = graph.fused(%x, %m, %s) {out = "f32"} ({
          ^(%0: tensor<4x8xf32>, %1: tensor<4x1xf32>, %2: tensor<4x1xf32>):
          %d = graph.sub(%0, %1) : tensor<4x8xf32>
          %e = graph.exp(%d) : tensor<4x8xf32>
          %3 = graph.div(%e, %2) : tensor<4x8xf32>
          graph.yield(%3)
        }) : tensor<4x8xf32>
        graph.return(%y)
      }
    }

Every operation with a kernel of its own ends up in a `graph.fused`; copies (pad, concat, pack, lookup) stay outside.
Interior values are f32 and never stored. In this order:

- an anchor takes the elementwise operations behind it, of its own shape, as far as exactly one value leaves the group;
  the last anchor that feeds an operation takes it, so that the values of the others stand ready;
- a group takes elementwise producers that only it reads;
- a reduction takes the elementwise operations in front of it. One with other readers is computed once for each of them,
  if that reads no more large tensors than the stored value would be (softmax's exp(x - m), layernorm's x - mean);
- what is left becomes groups without an anchor, from the results upwards, by the same two rules.

A group computes its floats in one type, f32 or f64. It reads at most 8 tensors, constants of one element not counted,
so that its windows fit beside each other.
Only shapes and the graph decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.rewrite import dead_code
from d1c.ops.graph.structural import FusedAttrs, fused_type
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import CONST, Rebuild, main_ops, shape, tensor, users

MOST_TENSORS = 8
MOST_OPS = 32
RECOMPUTED_OPS = 8
"""The longest chain that is computed again for another reader."""
FULL_WIDTH = frozenset({"f32", "f64", "f16", "bf16", "i32", "i64", "bool"})
"""Element types of values inside groups. Narrow integers wrap where they are stored, so they are results; narrow floats
are f32 inside: where their rounding is the model's, a graph.round_to stands (pass round-declared)."""


@dataclass(eq=False, slots=True)
class Group:
    """Operations of one kernel. `result` is the only value that leaves; `anchor` None: elementwise only."""

    result: Value
    anchor: Op | None = None
    members: dict[Op, None] = field(default_factory=dict)


class Fuser:
    def __init__(self, module: Module) -> None:
        self.ops = main_ops(module)
        self.index = {op: i for i, op in enumerate(self.ops)}
        self.readers = users(self.ops)
        self.producer = {r: op for op in self.ops for r in op.results}
        self.kind = {op: opdef(op.name).kind for op in self.ops}
        self.precision = {op: _precision(op) for op in self.ops}
        self.home: dict[Op, Group] = {}  # the group that an operation's result belongs to; recomputations have none
        self.stored: set[Value] = set()
        self._cones: dict[Op, tuple[list[Op], set[Value]] | None] = {}

    # -- questions

    def elementwise(self, op: Op | None) -> bool:
        return op is not None and self.kind[op] == "elementwise"

    def interior(self, value: Value) -> bool:
        """Whether a value may stay inside a group."""
        return tensor(value).dtype.name in FULL_WIDTH

    def scalar(self, value: Value) -> bool:
        op = self.producer.get(value)
        return op is not None and op.name == CONST and tensor(value).size == 1

    def operands(self, members: Iterable[Op]) -> list[Value]:
        """What a group reads, anchor's operands first, then in order of use."""
        chosen = sorted(members, key=lambda o: (self.kind[o] == "elementwise", self.index[o]))
        inside = {r for op in chosen for r in op.results}
        return list(dict.fromkeys(v for op in chosen for v in op.operands if v not in inside))

    def small(self, members: Iterable[Op]) -> bool:
        members = list(members)
        if len({self.precision[op] for op in members} - {""}) > 1:
            return False
        return len(members) <= MOST_OPS and sum(not self.scalar(v) for v in self.operands(members)) <= MOST_TENSORS

    # -- growing

    def leaving(self, members: dict[Op, None]) -> list[Value]:
        """Members' results that others read."""
        return [r for op in members for r in op.results if any(u not in members for u in self.readers.get(r, ()))]

    def downwards(self, anchor: Op) -> Group:
        """The anchor with the longest run of operations behind it that one value leaves."""
        group = Group(anchor.result, anchor, {anchor: None})
        members = dict(group.members)
        queue: list[int] = []

        def push(value: Value) -> None:
            for reader in self.readers.get(value, ()):
                if reader not in members and self.index[reader] not in queue:
                    heappush(queue, self.index[reader])

        push(anchor.result)
        while queue:
            op = self.ops[heappop(queue)]
            good = self.elementwise(op) and op not in self.home and shape(op.result) == shape(anchor.result)
            good = good and all(self.interior(v) for v in op.operands if self.producer.get(v) in members)
            if not good or not self.small([*members, op]):
                break
            members[op] = None
            push(op.result)
            leaving = self.leaving(members)
            if len(leaving) == 1:
                group.members, group.result = dict(members), leaving[0]
        return group

    # -- upwards

    def free(self, value: Value, wanted: tuple[int, ...]) -> Op | None:
        """The elementwise producer of a value of shape `wanted`, where a group may take it; otherwise None."""
        op = self.producer.get(value)
        good = op is not None and self.elementwise(op) and op not in self.home
        return op if good and shape(value) == wanted and self.interior(value) else None

    def cone(self, op: Op) -> tuple[list[Op], set[Value]] | None:
        """The operations that compute `op` again from at most one tensor of its shape, and that tensor; None where it
        takes more, or where a view, copy or contraction reads the result, which is stored then."""
        if op not in self._cones:
            self._cones[op] = self._cone(op)
        return self._cones[op]

    def _cone(self, op: Op) -> tuple[list[Op], set[Value]] | None:
        if any(self.kind[u] not in ("elementwise", "reduce") for u in self.readers[op.result]):
            return None
        wanted = shape(op.result)
        large = [v for v in dict.fromkeys(op.operands) if tensor(v).size == tensor(op.result).size]
        ops, leaves = [op], set[Value]()
        for v in large:
            p = self.free(v, wanted)
            more = self.cone(p) if p is not None else None
            ops += more[0] if more else []
            leaves |= more[1] if more else {v}
        ops = list(dict.fromkeys(ops))
        if len(leaves) > 1 or len(ops) > RECOMPUTED_OPS:
            ops, leaves = [op], set(large)
        return (ops, leaves) if len(leaves) <= 1 else None

    def upwards(self, group: Group, readers: Iterable[Op], again: bool) -> None:
        """Take producers of what `readers` (members) read: those that only the group reads, and with `again` also
        those that are cheap to compute again, unless their value is stored already."""
        start = set(group.members)
        queue: list[tuple[int, int]] = []

        def push(reader: Op) -> None:
            wanted = shape(reader.operands[0] if reader is group.anchor else reader.result)
            for v in reader.operands:
                p = self.free(v, wanted)
                if p is not None and p not in group.members and v not in self.stored:
                    heappush(queue, (-self.index[p], self.index[p]))  # the last first: its readers are decided

        for reader in readers:
            push(reader)
        root = self.index[self.producer[group.result]]
        while queue:
            op = self.ops[heappop(queue)[1]]
            if op in group.members:
                continue
            around = [u for u in self.readers[op.result] if u not in group.members]
            if group.anchor is not None and any(u in start and u is not group.anchor for u in self.readers[op.result]):
                if again:
                    continue  # the epilogue cannot read what stands in front of the reduction
            if group.anchor is not None and not again and op.result in group.anchor.operands:
                continue  # a contraction reads stored values only
            if group.anchor is None:  # later readers are decided: had they needed the value, it would be stored
                around = [u for u in around if u not in self.home and self.index[u] < root]
            cone = self.cone(op) if around and again else None
            more = cone[0] if cone else [] if around else [op]
            if more and self.small([*group.members, *more]):
                group.members.update(dict.fromkeys(more))
                for m in more:
                    push(m)

    # -- the whole

    def run(self) -> dict[Op, Group]:
        """The groups, by the operation that computes the result."""
        anchors = [op for op in self.ops if self.kind[op] in ("contract", "reduce")]
        groups = []
        for op in reversed(anchors):
            group = self.downwards(op)
            groups.append(group)
            self.home.update(dict.fromkeys(group.members, group))
        for group in groups:
            anchor = group.anchor
            assert anchor is not None
            if hasattr(anchor.attrs, "axes"):
                self.upwards(group, [anchor], again=True)
            else:
                self.upwards(group, [m for m in group.members if m is not anchor], again=False)
        for group in groups:
            self.stored.update(self.operands(group.members))
        for op in self.ops:
            if op not in self.home and not self.elementwise(op):
                self.stored.update(op.operands)
        for op in reversed(self.ops):
            if self.elementwise(op) and op not in self.home and op.result in self.stored:
                group = Group(op.result, None, {op: None})
                self.home[op] = group
                self.upwards(group, [op], again=True)
                self.stored.update(self.operands(group.members))
                groups.append(group)
        return {self.producer[g.result]: g for g in groups}


def _precision(op: Op) -> str:
    """The type in which an operation computes its floats, "" without any: a kernel with f64 does no f32 arithmetic."""
    types = [tensor(v).dtype for v in (*op.operands, *op.results)]
    if any(t.name == "f64" for t in types):
        return "f64"
    return "f32" if any(t.kind in ("float", "minifloat") for t in types) else ""


def emit(to: Rebuild, group: Group, operands: list[Value], ops: list[Op], root: Op) -> None:
    """Write one graph.fused with copies of `ops`; a result that is recomputed elsewhere is another value there."""
    args = tuple(Value(v.type, v.name) for v in operands)
    inner = dict(zip(operands, args, strict=True))
    body = []
    for op in ops:
        result = Value(op.result.type, op.result.name)
        body.append(Op(op.name, tuple(inner[v] for v in op.operands), op.attrs, (result,), (), op.origin))
        inner[op.result] = result
    body.append(Op("graph.yield", (inner[group.result],)))
    attrs = FusedAttrs(tensor(group.result).dtype.name)
    block = Block(args, tuple(body))
    made = Value(fused_type(block, attrs), group.result.name)
    origin = (group.anchor or root).origin
    to.append(Op("graph.fused", to.values(operands), attrs, (made,), (block,), origin))
    to.new[group.result] = made


def run(module: Module) -> Module:
    """Put every elementwise operation, contraction, reduction and pool in a group."""
    module = replace(module, functions=tuple(dead_code(f) for f in module.functions))  # dead readers would split groups
    fuser = Fuser(module)
    groups = fuser.run()
    to = Rebuild(module)
    for op in fuser.ops:
        if group := groups.get(op):
            members = sorted(group.members, key=lambda o: fuser.index[o])
            emit(to, group, fuser.operands(members), members, op)
        elif op not in fuser.home and not fuser.elementwise(op):
            to.copy(op)
    return to.finish()
