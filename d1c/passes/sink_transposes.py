"""Channels last everywhere: transposes move down to the first operation that needs its operand in the written order.

Before:
    d1c.module graph {
      func @main(%x: tensor<1x2x3x4xf32>) {
        %k = graph.const {name = "k"} : tensor<2x1x1xf32>
        %a = graph.transpose(%x) {perm = [0, 2, 3, 1]} : tensor<1x3x4x2xf32>
        %b = graph.relu(%a) : tensor<1x3x4x2xf32>
        %c = graph.transpose(%b) {perm = [0, 3, 1, 2]} : tensor<1x2x3x4xf32>
        %d = graph.mul(%c, %k) : tensor<1x2x3x4xf32>
        %e = graph.transpose(%d) {perm = [0, 2, 3, 1]} : tensor<1x3x4x2xf32>
        %f = graph.reduce_sum(%e) {axes = [1, 2], keepdims = true} : tensor<1x1x1x2xf32>
        %g = graph.transpose(%f) {perm = [0, 3, 1, 2]} : tensor<1x2x1x1xf32>
        graph.return(%g)
      }
      constants {
        "k" = dense<[2.0, 3.0]> : 2x1x1xf32
      }
    }

After:
    d1c.module graph {
      func @main(%x: tensor<1x2x3x4xf32>) {
        %k = graph.const {name = "k"} : tensor<2x1x1xf32>
        %b = graph.relu(%x) : tensor<1x2x3x4xf32>
        %d = graph.mul(%b, %k) : tensor<1x2x3x4xf32>
        %f = graph.reduce_sum(%d) {axes = [2, 3], keepdims = true} : tensor<1x2x1x1xf32>
        graph.return(%f)
      }
      constants {
        "k" = dense<[2.0, 3.0]> : 2x1x1xf32
      }
    }

One walk from the inputs to the results. Every old value is kept as a pair (new value, permutation still owed), and
each kind of operation has a rule that passes the debt on: elementwise operations take the permutation of their largest
operands (constants and the others are permuted to match), reductions, concatenations, paddings and slices renumber
their axes, reshapes pass it where the dims that they join or split stay together. Everything else pays: a transpose is
written in front of it, or a reshape where only dims of size 1 move. Inverse pairs cancel because debts compose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from d1c.ir.core import Module, Op, Value
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import Rebuild, main_ops, shape

Perm = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Owed:
    """An old value v: v = transpose(value, perm)."""

    value: Value
    perm: Perm

    @property
    def shape(self) -> tuple[int, ...]:
        """The old value's shape."""
        return tuple(shape(self.value)[p] for p in self.perm)


def identity(rank: int) -> Perm:
    return tuple(range(rank))


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes `perm`."""
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)


class Sink:
    """The walk's state: what is owed for each old value, and transposes that were already paid."""

    def __init__(self, module: Module) -> None:
        self.to = Rebuild(module)
        self.owed: dict[Value, Owed] = {}
        self.paid: dict[tuple[Value, Perm], Value] = {}
        self.inputs = set(module.function().block.args)

    def get(self, old: Value) -> Owed:
        return self.owed.get(old) or Owed(self.to.value(old), identity(len(shape(old))))

    def pay(self, owed: Owed, like: Op) -> Value:
        """The value in the old order; one transpose however many consumers pay."""
        key = (owed.value, owed.perm)
        if key not in self.paid:
            self.paid[key] = self.to.transpose(
                owed.value, owed.perm, like, f"{owed.value.name}_t" if owed.value.name else ""
            )
        return self.paid[key]

    def default(self, op: Op) -> None:
        """Pay every operand and keep the operation."""
        operands = tuple(self.pay(self.get(v), op) for v in op.operands)
        same = all(a is b for a, b in zip(operands, op.operands, strict=True))
        self.to.append(op if same else replace(op, operands=operands))

    def emit(self, op: Op, operands: Sequence[Value], perm: Perm, attrs: object) -> None:
        """Emit `op` on permuted operands: its result owes `perm`."""
        (t,) = opdef(op.name).infer(tuple(v.type for v in operands), attrs)
        result = op.result
        if t != result.type or perm != identity(len(perm)):
            result = Value(t, result.name)
        self.to.append(replace(op, operands=tuple(operands), attrs=attrs, results=(result,)))
        self.owed[op.result] = Owed(result, perm)

    def vote(self, owed: Sequence[Owed], rank: int) -> Perm:
        """The permutation that most elements owe. Constants have no vote; inputs, which are transposed once, at the
        boundary, and values for which every order is the same have one only where nobody else votes."""
        weight: dict[Perm, int] = {}
        for o in owed:
            if self.to.data(o.value) is None and len(o.perm) == rank:
                free = o.value in self.inputs or sum(n != 1 for n in o.shape) <= 1
                weight[o.perm] = weight.get(o.perm, 0) + (0 if free else prod(o.shape))
        return max(weight, key=lambda p: weight[p]) if weight else identity(rank)

    def padded(self, owed: Owed, rank: int, like: Op) -> Owed:
        """`owed` with leading dims of size 1 up to `rank`."""
        more = rank - len(owed.perm)
        if not more:
            return owed
        value = self.to.reshape(owed.value, (1,) * more + shape(owed.value), like, owed.value.name)
        return Owed(value, identity(more) + tuple(p + more for p in owed.perm))

    def matched(self, owed: Owed, perm: Perm, like: Op) -> Value:
        """The value that owes `perm` and stands for `owed`, which may have a smaller rank (it is broadcast)."""
        if prod(owed.shape) == 1 or perm == identity(len(perm)):
            return self.pay(owed, like)
        wide = self.padded(owed, len(perm), like)
        value = self.pay(Owed(wide.value, tuple(wide.perm[i] for i in inverse(perm))), like)
        if self.to.data(value) is None or len(owed.perm) == len(perm):
            return value
        extents = list(shape(value))  # a bias [C, 1, 1] becomes [C], not [1, 1, 1, C]
        while len(extents) > 1 and extents[0] == 1:
            extents.pop(0)
        return self.to.reshape(value, extents, like, value.name)


def _elementwise(s: Sink, op: Op) -> None:
    rank = len(shape(op.result))
    owed = [s.get(v) for v in op.operands]
    perm = s.vote([o if prod(o.shape) == 1 else s.padded(o, rank, op) for o in owed], rank)
    s.emit(op, [s.matched(o, perm, op) for o in owed], perm, op.attrs)


def _transpose(s: Sink, op: Op) -> None:
    o = s.get(op.operands[0])
    s.owed[op.result] = Owed(o.value, tuple(o.perm[i] for i in op.attrs.perm))


def _reduce(s: Sink, op: Op) -> None:
    o = s.get(op.operands[0])
    rank = len(o.perm)
    axes = {a % rank for a in op.attrs.axes}
    perm = o.perm
    if not op.attrs.keepdims:
        left = sorted(o.perm[i] for i in range(rank) if i not in axes)
        perm = tuple(left.index(o.perm[i]) for i in range(rank) if i not in axes)
    s.emit(op, [o.value], perm, replace(op.attrs, axes=tuple(sorted(o.perm[a] for a in axes))))


def _concat(s: Sink, op: Op) -> None:
    owed = [s.get(v) for v in op.operands]
    rank = len(shape(op.result))
    perm = s.vote(owed, rank)
    s.emit(op, [s.matched(o, perm, op) for o in owed], perm, replace(op.attrs, axis=perm[op.attrs.axis % rank]))


def _per_dim(*names: str) -> Callable[[Sink, Op], None]:
    """Operations with one operand whose attributes `names` have an entry per dim."""

    def rule(s: Sink, op: Op) -> None:
        o = s.padded(s.get(op.operands[0]), len(shape(op.result)), op)
        back = inverse(o.perm)
        moved = {n: tuple(getattr(op.attrs, n)[i] for i in back) for n in names}
        s.emit(op, [o.value], o.perm, replace(op.attrs, **moved))

    return rule


def dim_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dims of a reshape correspond: the finest split of both shapes in runs of equal product. Dims of size 1 of
    `before` are left out; those of `after` join the run that precedes them, and leading ones are in no group."""
    left = [i for i, n in enumerate(before) if n != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while j < len(after) and after[j] == 1:
        j += 1
    while i < len(left):
        ins, a, b = [left[i]], before[left[i]], 1
        outs: list[int] = []
        i += 1
        while a != b or not outs:
            if b < a:
                outs.append(j)
                b *= after[j]
                j += 1
            else:
                ins.append(left[i])
                a *= before[left[i]]
                i += 1
        while j < len(after) and after[j] == 1:
            outs.append(j)
            j += 1
        groups.append((ins, outs))
    return groups


def _moved_units(before: Sequence[int], after: Sequence[int]) -> Perm | None:
    """The permutation that does what a reshape does which only moves dims of size 1; None for other reshapes."""
    if len(before) != len(after) or [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    units = iter(i for i, n in enumerate(before) if n == 1)
    others = iter(i for i, n in enumerate(before) if n != 1)
    return tuple(next(units if n == 1 else others) for n in after)


def _reshape(s: Sink, op: Op) -> None:
    o, to = s.get(op.operands[0]), shape(op.result)
    if (moved := _moved_units(o.shape, to)) is not None:
        s.owed[op.result] = Owed(o.value, tuple(o.perm[i] for i in moved))
        return
    if 0 in to or prod(to) == 1 or o.perm == identity(len(o.perm)):
        s.owed[op.result] = Owed(s.to.reshape(s.pay(o, op), to, op), identity(len(to)))
        return
    groups = dim_groups(o.shape, to)
    stored = [p for p, n in enumerate(shape(o.value)) if n != 1]
    places = [[stored.index(o.perm[i]) for i in ins] for ins, _ in groups]
    if any(p != list(range(p[0], p[0] + len(p))) for p in places):
        s.owed[op.result] = Owed(s.to.reshape(s.pay(o, op), to, op), identity(len(to)))
        return
    in_order = sorted(range(len(groups)), key=lambda g: places[g][0])
    dims = [d for g in in_order for d in groups[g][1]]
    dims = [*range(len(to) - len(dims)), *dims]  # the result's dims in stored order
    s.owed[op.result] = Owed(s.to.reshape(o.value, [to[d] for d in dims], op), inverse(tuple(dims)))


RULES: dict[str, Callable[[Sink, Op], None]] = {
    "graph.transpose": _transpose,
    "graph.reshape": _reshape,
    "graph.reduce_sum": _reduce,
    "graph.reduce_prod": _reduce,
    "graph.reduce_max": _reduce,
    "graph.reduce_min": _reduce,
    "graph.concat": _concat,
    "graph.pad": _per_dim("lo", "hi"),
    "graph.slice": _per_dim("starts", "steps", "sizes"),
    "graph.expand": _per_dim("shape"),
}


def run(module: Module) -> Module:
    """Sink every transpose; values of results and inputs keep their order."""
    s = Sink(module)
    for op in main_ops(module):
        rule = RULES.get(op.name) or (_elementwise if opdef(op.name).kind == "elementwise" else Sink.default)
        rule(s, op)
    return s.to.finish()
