"""How graph passes make their new module: walk the old operations in order and emit new ones.

Values are shared between the old and the new module (they are immutable); an operation whose operands did not change is
shared too. Nothing is deleted: `finish` keeps what the results need, in order, and drops constants that nobody names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.rewrite import dead_code
from d1c.ir.types import TensorType
from d1c.ops.opdef import opdef
from d1c.target.dtypes import from_numpy

CONST = "graph.const"
RETURN = "graph.return"


def tensor(value: Value) -> TensorType:
    """The tensor type of a graph value."""
    assert isinstance(value.type, TensorType)
    return value.type


def shape(value: Value) -> tuple[int, ...]:
    """The shape of a graph value."""
    return tensor(value).shape


def main_ops(module: Module) -> tuple[Op, ...]:
    """The operations of `main`, terminator last."""
    return module.function().block.ops


def users(ops: Sequence[Op]) -> dict[Value, list[Op]]:
    """Who reads each value, in order; an op that reads it twice stands once. The terminator is a reader."""
    out: dict[Value, list[Op]] = {}
    for op in ops:
        for v in dict.fromkeys(op.operands):
            out.setdefault(v, []).append(op)
    return out


def keeps_order(extents: Sequence[int], perm: Sequence[int]) -> bool:
    """True where transposing a tensor of these extents by `perm` moves dims of size 1 only: a reshape does it."""
    moved = [p for p in perm if extents[p] != 1]
    return moved == sorted(moved)


class Rebuild:
    """The operations emitted so far for the new `main`, and the constants with their data."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.constants: dict[str, np.ndarray] = dict(module.constants)
        self.ops: list[Op] = []
        self.producer: dict[Value, Op] = {}
        self.new: dict[Value, Value] = {}
        self._wishes: dict[str, str] = {}

    def value(self, old: Value) -> Value:
        """What stands for a value of the old module."""
        return self.new.get(old, old)

    def values(self, old: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(self.value(v) for v in old)

    def append(self, op: Op) -> Op:
        """Add a finished operation."""
        self.ops.append(op)
        for r in op.results:
            self.producer[r] = op
        return op

    def copy(self, op: Op) -> Op:
        """Emit an old operation on the new operands; types are inferred again where an operand's type changed."""
        operands = self.values(op.operands)
        if all(a is b for a, b in zip(operands, op.operands, strict=True)):
            return self.append(op)
        results = op.results
        if results and any(a.type != b.type for a, b in zip(operands, op.operands, strict=True)):
            types = opdef(op.name).infer(tuple(v.type for v in operands), op.attrs)
            results = tuple(r if r.type == t else Value(t, r.name) for r, t in zip(results, types, strict=True))
            self.new.update(zip(op.results, results, strict=True))
        return self.append(replace(op, operands=operands, results=results))

    def emit(self, name: str, operands: Sequence[Value], *, like: Op, label: str = "", **attrs: Any) -> Value:
        """Emit `name` on new values; the type is inferred, the origin and (without `label`) the result's name come from
        `like`."""
        row = opdef(name)
        made = row.attrs(**attrs)
        (t,) = row.infer(tuple(v.type for v in operands), made)
        out = Value(t, label or (like.results[0].name if like.results else ""))
        self.append(Op(name, tuple(operands), made, (out,), (), like.origin))
        return out

    def const(self, data: np.ndarray, name: str, origin: str = "") -> Value:
        """A constant with this data, called `name` in the end if no older constant is, otherwise with a number."""
        unique, i = name or "constant", 1
        while unique in self.constants:
            unique, i = f"{name or 'constant'}_{i}", i + 1
        data = np.ascontiguousarray(data).reshape(data.shape)
        self.constants[unique] = data
        self._wishes[unique] = name or "constant"
        out = Value(TensorType(tuple(data.shape), from_numpy(data.dtype)), name)
        self.append(Op(CONST, (), opdef(CONST).attrs(name=unique), (out,), (), origin))
        return out

    def data(self, value: Value) -> np.ndarray | None:
        """The data of a new value that is a constant, otherwise None."""
        op = self.producer.get(value)
        return self.constants.get(op.attrs.name) if op is not None and op.name == CONST else None

    def reshape(self, value: Value, to: Sequence[int], like: Op, label: str = "") -> Value:
        """`value` with another shape: itself where equal, for a constant a new one, never a reshape of a reshape."""
        to = tuple(to)
        if shape(value) == to:
            return value
        if (data := self.data(value)) is not None:
            return self.const(data.reshape(to), value.name, like.origin)
        op = self.producer.get(value)
        if op is not None and op.name == "graph.reshape":
            return self.reshape(op.operands[0], to, like, label)
        return self.emit("graph.reshape", (value,), like=like, label=label, shape=to)

    def transpose(self, value: Value, perm: Sequence[int], like: Op, label: str = "") -> Value:
        """`value` transposed: a reshape where only dims of size 1 move, a new constant for a constant, and never a
        transpose of a transpose."""
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return value
        if (data := self.data(value)) is not None:
            return self.const(data.transpose(perm), value.name, like.origin)
        if keeps_order(shape(value), perm):
            return self.reshape(value, [shape(value)[p] for p in perm], like, label)
        op = self.producer.get(value)
        if op is not None and op.name == "graph.transpose":
            return self.transpose(op.operands[0], [op.attrs.perm[p] for p in perm], like, label)
        return self.emit("graph.transpose", (value,), like=like, label=label, perm=perm)

    def finish(self, attrs: Mapping[str, Any] | None = None) -> Module:
        """The new module: operations that the terminator needs, constants that they name, `attrs` added."""
        f = self.module.function()
        kept = dead_code(replace(f, block=Block(f.block.args, tuple(self.ops)))).block.ops
        names = [o.attrs.name for o in kept if o.name == CONST]
        final = {n: n for n in names if n not in self._wishes}
        taken = set(final)
        for n in names:
            if n not in final:
                final[n] = n if self._wishes[n] in taken else self._wishes[n]
                taken.add(final[n])
        ops = tuple(
            o if o.name != CONST or final[o.attrs.name] == o.attrs.name else self._renamed(o, final) for o in kept
        )
        constants = {final[n]: self.constants[n] for n in names if n in self.constants}
        block = Block(f.block.args, ops)
        functions = tuple(replace(g, block=block) if g is f else g for g in self.module.functions)
        return replace(
            self.module, functions=functions, constants=constants, attrs={**self.module.attrs, **(attrs or {})}
        )

    def _renamed(self, op: Op, names: Mapping[str, str]) -> Op:
        return replace(op, attrs=replace(op.attrs, name=names[op.attrs.name]))


def nbytes(value: Value) -> int:
    """Bytes of a graph value as stored."""
    t = tensor(value)
    return prod(t.shape) * t.dtype.bytes
