"""What a rule works with: the values so far, constants with their data, and views that fold and skip no-ops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from d1c.errors import NotStatic, TypeMismatch, UnsupportedOp
from d1c.frontend import unsigned
from d1c.frontend.alike import Alike
from d1c.frontend.bodies import with_bodies
from d1c.frontend.empty import resolve
from d1c.frontend.load import attribute
from d1c.frontend.shapes import element_type
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.types import TensorType, Type
from d1c.ops.evaluate import evaluate
from d1c.ops.graph.cast import cast_array, cast_attrs, twice
from d1c.ops.opdef import OnnxRule, opdef
from d1c.target.dtypes import U64, DType, dtype, from_numpy

MISFIT = "check --shape and --dim, and the model with onnx.checker and its shape inference"
"""What to do about operands that do not fit their node."""


@dataclass(frozen=True, eq=False)
class ValueList:
    """A sequence: a list of tensors that the importer knows the length of (nothing of it remains in the program).

    dtype   of the elements of an empty one, where it is known.
    """

    items: tuple[Value, ...]
    dtype: DType | None = None


@dataclass(frozen=True, eq=False)
class Absent:
    """An optional without a value."""


Item = Value | ValueList | Absent
"""What a name of the ONNX graph may stand for. Rules of tensor ops meet values only."""


PARTS = 8
"""Parts of one graph.concat."""


class ImportContext:
    """Builds one graph function. Rules get it as `cx`; only d1c.frontend.importer makes one.

    opset   the version of ONNX's own op set that the model (or the function that is being lowered) asks for.
    origin  what ops emitted now carry: the ONNX node's name.
    rule    the rule at work; only the operands that it declares may be asked for with `static`.
    subgraph  (graph, items for its inputs) -> items of its outputs: lowers the nodes of a subgraph here and now. It
              sees the names bound outside; its own names end with it.
    """

    subgraph: Callable[[onnx.GraphProto, Sequence[Item]], list[Item]]

    def __init__(self, opsets: Mapping[str, int], read: frozenset[str]) -> None:
        self.opsets = dict(opsets)
        self.origin = ""
        self.prefix = ""
        self.rule: OnnxRule | None = None
        self._read = read
        self._inside = False
        self._env: dict[str, Any] = {}
        self._outside: dict[Value, Value] = {}
        self._arrays: dict[Value, np.ndarray] = {}
        self._producers: dict[Value, Op] = {}
        self._ops: list[Op] = []
        self._names: dict[Value, str] = {}
        self._named: set[Value] = set()
        self._constants: dict[str, np.ndarray] = {}
        self._wishes: dict[str, str] = {}
        self._streams = 0
        self._bodies: dict[str, Function] = {}
        self._counts: dict[Value, dict[int, Value]] = {}
        self._alike = Alike(self._producers, self._arrays)

    # Names of the ONNX graph.

    @property
    def opset(self) -> int:
        return self.opsets.get("", 1)

    def bind(self, name: str, value: Any) -> None:
        """Tensor (or sequence) `name` of the ONNX graph is `value` from here on."""
        self._env[name] = value
        if isinstance(value, Value):
            self._named.add(value)
            if not self._inside:
                self._names.setdefault(value, name)

    def bound(self, name: str) -> Any:
        return self._env[name]

    def find(self, name: str) -> Any:
        """What `name` stands for here; None where it is not bound."""
        return self._env.get(name)

    @contextmanager
    def scope(
        self, names: Mapping[str, Any], read: frozenset[str], opsets: Mapping[str, int] | None = None
    ) -> Iterator[None]:
        """Lower something nested: `names` are bound in it, `read` are those that something in it reads.

        With `opsets` it is a function, which sees no other names; without, a subgraph, which sees those outside.
        The origin of what it emits starts with the present one.
        """
        saved = (self._env, self._read, self.opsets, self.origin, self.prefix, self.rule, self._inside)
        self._env = dict(names) if opsets is not None else {**self._env, **names}
        self._read = read
        self.opsets = self.opsets if opsets is None else dict(opsets)
        self.prefix = f"{self.origin}/" if self.origin else ""
        self._inside = True
        try:
            yield
        finally:
            self._env, self._read, self.opsets, self.origin, self.prefix, self.rule, self._inside = saved

    def names(self) -> set[str]:
        """The names bound so far, as far as they are seen here."""
        return set(self._env)

    def inputs(self, node: onnx.NodeProto) -> list[Any]:
        """The node's operands, None where an optional one is left out."""
        return [self._env[name] if name else None for name in node.input]

    def input(self, node: onnx.NodeProto, index: int) -> Any:
        """Operand `index`, None where it is left out."""
        return self._env[node.input[index]] if index < len(node.input) and node.input[index] else None

    def wants(self, node: onnx.NodeProto, index: int) -> bool:
        """Whether anything reads the node's output `index`."""
        return index < len(node.output) and node.output[index] in self._read

    def attr(self, node: onnx.NodeProto, name: str, default: Any = None) -> Any:
        """The node's attribute as a Python value, lists as tuples."""
        return attribute(node, name, default)

    def refuse(self, message: str, rule: str = "", remedy: str = "") -> UnsupportedOp:
        """The error for a node whose op is known but not in this form; raise it."""
        return UnsupportedOp(
            message, where=self.origin,
            rule=rule or "d1c takes this op, but not in this form",
            remedy=remedy or "write the node in another form, or end the program before it",
        )  # fmt: skip

    def next_stream(self) -> int:
        """A number of its own for every random node: 0, 1, ... in the order of import."""
        self._streams += 1
        return self._streams - 1

    # Constants.

    def const(self, array: np.ndarray, name: str = "") -> Value:
        """A graph.const with this data. The name is made unique."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        base = name or f"{self.origin or 'const'}.c"
        unique, n = base, 0
        while unique in self._constants:
            n += 1
            unique = f"{base}.{n}"
        try:
            value = Value(TensorType(array.shape, from_numpy(array.dtype)), unique)
        except ValueError as error:
            raise UnsupportedOp(
                f"constant {base!r}: {error}", where=self.origin or base,
                rule="tensors have element types of the machine", remedy="cast it to one of docs/numerics.md",
            ) from error  # fmt: skip
        self._constants[unique] = array
        self._wishes[unique] = base
        self._arrays[value] = array
        self._ops.append(Op("graph.const", (), opdef("graph.const").attrs(name=unique), (value,), origin=self.origin))
        self._producers[value] = self._ops[-1]
        return value

    def scalar(self, number: float | int | bool, like: Value) -> Value:
        """A rank-0 constant of the element type of `like`."""
        return self.const(np.array(number).astype(tensor(like).dtype.numpy))

    def is_const(self, value: Any) -> bool:
        return value in self._arrays

    def array(self, value: Value) -> np.ndarray:
        """The data of a constant."""
        return self._arrays[value]

    def static(self, node: onnx.NodeProto, index: int, what: str) -> np.ndarray | None:
        """The data of operand `index` (None if left out), which must be known. Raises UnsupportedOp if it is not."""
        value = self.input(node, index)
        if value is None:
            return None
        if self.rule is not None and self.rule.op_type == node.op_type and index not in self.rule.static:
            raise ValueError(f"the rule does not declare operand {index} static")
        return self.known(value, f"{node.op_type}: {what} ({node.input[index]!r})")

    def known(self, value: Value, what: str) -> np.ndarray:
        """The data of a value that must be known. Raises NotStatic, with the model's inputs that decide it."""
        if value not in self._arrays:
            inputs = self.sources(value)
            freeze = " ".join(f"--freeze {name}=..." for name in inputs or ())
            remedy = f"give the value when compiling: {freeze}" if inputs else "make it an initializer"
            if inputs is None:
                remedy = "end the program at the result (of NonZero, say) whose extent decides it, do the rest outside"
            raise NotStatic(
                f"{what} is known at run time only",
                where=self.origin,
                rule="what decides shapes is constant at compile time",
                remedy=remedy,
                inputs=inputs or (),
            )
        return self._arrays[value]

    def evaluated(self, value: Value) -> np.ndarray | None:
        """The data of a value that is made of constants by ops with a meaning in numpy; None for others."""
        if value in self._arrays:
            return self._arrays[value]
        op = self._producers.get(value)
        if op is None or len(op.results) != 1 or op.regions or not opdef(op.name).facts.get("fold", True):
            return None
        arrays = []
        for operand in op.operands:
            array = self.evaluated(operand)
            if array is None:
                return None
            arrays.append(array)
        out = evaluate(op, arrays)
        if out is not None:
            self._arrays[value] = out
        return out

    def sources(self, value: Value) -> tuple[str, ...] | None:
        """The names of the model's inputs on which `value` depends, in no particular order but always the same; None
        where it depends on the run-time extent of a bounded value, which is data and no parameter."""
        counted = {count for counts in self._counts.values() for count in counts.values()}
        found: dict[str, None] = {}
        seen: set[Value] = set()
        stack = [value]
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            if v in counted:
                return None
            if v in self._outside:
                stack.append(self._outside[v])
            elif (op := self._producers.get(v)) is not None:
                stack += reversed(op.operands)
            elif v not in self._arrays:
                found[v.name] = None
        return tuple(found)

    def static_ints(self, node: onnx.NodeProto, index: int, name: str) -> tuple[int, ...] | None:
        """Integers given as operand `index` (newer opsets) or as attribute `name` (older ones); None if neither."""
        given = self.static(node, index, name)
        if given is not None:
            return tuple(int(i) for i in given.reshape(-1))
        value = attribute(node, name)
        return None if value is None else tuple(value)

    # Bounded values: their extent is a maximum, see d1c.frontend.bounded.

    def limit(self, value: Value, dim: int, count: Value) -> Value:
        """The value of which only the first `count` (i64 [1]) along `dim` are real; the others are unspecified.

        It is `value` itself where that is the result of an op that no name stands for yet, otherwise a view."""
        count = self._alike.of(count)
        known = self._counts.get(value, {})
        if known.get(dim) is count:
            return value
        if dim in known or value in self._named or value in self._arrays or value not in self._producers:
            value = self._one(self.emit("graph.reshape", [value], shape=tensor(value).shape))
        self._counts[value] = {**known, dim: count}
        return value

    def counts(self, value: Any) -> Mapping[int, Value]:
        """The dims of which only so many are real, each with the run-time count (i64 [1])."""
        return self._counts.get(value, {})

    def most(self, count: Value) -> int | None:
        """The largest extent that `count` counts; None for a value that is no count."""
        found = [tensor(v).shape[dim] for v, counts in self._counts.items() for dim, c in counts.items() if c is count]
        return min(found, default=None)

    # Operations.

    def emit(self, name: str, operands: Sequence[Value | None], attrs: Any = None, **fields: Any) -> Any:
        """Append op `name`; its attributes are `attrs` or the row's dataclass made of `fields`.

        Returns its result, or the tuple of several. Raises TypeMismatch if the row refuses the operands.
        """
        row = opdef(name)
        values = tuple(v for v in operands if v is not None)
        attrs = row.attrs(**fields) if attrs is None else attrs
        if name in unsigned.REWRITES and any(tensor(v).dtype == U64 for v in values):
            return unsigned.REWRITES[name](self, values, attrs)
        try:
            types = row.infer(tuple(v.type for v in values), attrs)
        except ValueError as error:
            shapes = ", ".join(f"{t.dtype}{list(t.shape)}" for t in (tensor(v) for v in values))
            node = f"{self.rule.op_type}: " if self.rule is not None else ""
            raise TypeMismatch(
                f"{node}{name} does not take ({shapes})", where=self.origin, rule=str(error), remedy=MISFIT
            ) from error
        if (known := self._without_elements(name, values, attrs, types)) is not None:
            return known[0] if len(known) == 1 else known
        results = tuple(Value(t) for t in types)
        op = Op(name, values, attrs, results, origin=self.origin)
        self._ops.append(op)
        self._producers.update({r: op for r in results})
        return results[0] if len(results) == 1 else results

    def _without_elements(
        self, name: str, values: Sequence[Value], attrs: Any, types: Sequence[Type]
    ) -> tuple[Value, ...] | None:
        """The results where tensors without elements decide them (they are constants always), else None."""
        tensors = [t for t in types if isinstance(t, TensorType)]
        if not types or all(t.size for t in (*tensors, *(tensor(v) for v in values))):
            return None
        try:
            made = resolve(name, values, attrs, tensors)
        except ValueError as error:
            raise self.refuse(f"{name} on a tensor without elements", rule=str(error)) from error
        return None if made is None else tuple(m if isinstance(m, Value) else self.const(m) for m in made)

    def producer(self, value: Value) -> Op | None:
        """The op that made `value`; None for an argument."""
        return self._producers.get(value)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """`value` row-major as `shape`."""
        shape = tuple(int(d) for d in shape)
        if value in self._arrays:
            return (
                value
                if tensor(value).shape == shape
                else self.const(self._arrays[value].reshape(shape), self._names.get(value, ""))
            )
        while (op := self._producers.get(value)) and (
            op.name == "graph.reshape" or (op.name == "graph.transpose" and _keeps_order(op))
        ):
            value = op.operands[0]
        return value if tensor(value).shape == shape else self._one(self.emit("graph.reshape", [value], shape=shape))

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        """Dim i of the result is dim perm[i] of `value`."""
        perm = tuple(int(p) for p in perm)
        op = self._producers.get(value)
        if op is not None and op.name == "graph.transpose":
            value, perm = op.operands[0], tuple(op.attrs.perm[p] for p in perm)
        if perm == tuple(range(len(perm))):
            return value
        if value in self._arrays:
            return self.const(self._arrays[value].transpose(perm), self._names.get(value, ""))
        return self._one(self.emit("graph.transpose", [value], perm=perm))

    def slice(self, value: Value, starts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> Value:
        """Per dim, `sizes` elements from `starts` on, `steps` apart (may be negative)."""
        starts, steps, sizes = tuple(map(int, starts)), tuple(map(int, steps)), tuple(map(int, sizes))
        if sizes == tensor(value).shape and all(s == 1 or n <= 1 for s, n in zip(steps, sizes, strict=True)):
            return value
        if value in self._arrays:
            index = np.ix_(*(f + s * np.arange(n) for f, s, n in zip(starts, steps, sizes, strict=True)))
            return self.const(self._arrays[value][index])
        return self._one(self.emit("graph.slice", [value], starts=starts, steps=steps, sizes=sizes))

    def part(self, value: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
        """A slice along one axis."""
        shape = tensor(value).shape
        starts, steps, sizes = [0] * len(shape), [1] * len(shape), list(shape)
        starts[axis], steps[axis], sizes[axis] = start, step, size
        return self.slice(value, starts, steps, sizes)

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """`value` broadcast to `shape`, which numpy's rule must allow."""
        shape = tuple(int(d) for d in shape)
        if tensor(value).shape == shape:
            return value
        value = self.reshape(value, (1,) * (len(shape) - len(tensor(value).shape)) + tensor(value).shape)
        return value if tensor(value).shape == shape else self._one(self.emit("graph.expand", [value], shape=shape))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """The values one after the other along `axis` (counted from 0); empty ones are left out. More than PARTS are
        joined in groups first: every part is a movement, and a core counts those of a layer on semaphores."""
        some = [v for v in values if tensor(v).shape[axis]] or list(values[:1])
        while len(some) > PARTS:
            some = [self.concat(some[i : i + PARTS], axis) for i in range(0, len(some), PARTS)]
        return some[0] if len(some) == 1 else self._one(self.emit("graph.concat", some, axis=axis))

    def cast(self, value: Value, to: DType | str, saturate: bool = True, round_mode: str = "up") -> Value:
        """`value` converted to another element type. `saturate`, `round_mode`: to minifloats, as in ONNX's Cast."""
        to = dtype(to) if isinstance(to, str) else to
        if tensor(value).dtype == to:
            return value
        if value in self._arrays:
            data = cast_array(self._arrays[value], to, saturate, round_mode)
            return self.const(data, self._names.get(value, ""))
        if twice(tensor(value).dtype, to):
            value = self._one(self.emit("graph.cast", [value], to="f32", odd=True))
        return self._one(self.emit("graph.cast", [value], cast_attrs(tensor(value).dtype, to, saturate, round_mode)))

    def element_type(self, code: int) -> DType:
        """The element type of ONNX's number `code`."""
        return element_type(code, self.origin)

    def _one(self, value: Any) -> Value:
        assert isinstance(value, Value)
        return value

    # Loops, see d1c.frontend.loops.

    @contextmanager
    def apart(self, args: Mapping[Value, Value]) -> Iterator[list[Op]]:
        """Ops emitted in it go to the list that it gives instead of here. `args`: values that no op makes, and what
        they stand for outside."""
        saved, self._ops = (self._ops, self._alike), []
        self._alike = self._alike.copy()
        self._outside.update(args)
        try:
            yield self._ops
        finally:
            self._ops, self._alike = saved

    def include(self, ops: Sequence[Op]) -> None:
        """Append ops that were emitted apart."""
        self._ops += ops

    def function(self, block: Block) -> str:
        """A name for a new function of the module, the body of a loop."""
        name = f"loop{len(self._bodies)}"
        self._bodies[name] = Function(name, block)
        return name

    # The end.

    def module(self, args: Sequence[Value], results: Sequence[Value], attrs: Mapping[str, Any]) -> Module:
        """The graph module: what `results` do not depend on is dropped, values take their ONNX names."""
        live = set(results)
        kept: list[Op] = []
        for op in reversed(self._ops):
            if live.intersection(op.results):
                live.update(op.operands)
                kept.append(op)
        renamed: dict[Value, Value] = {a: a for a in args}
        ops: list[Op] = []
        constants: dict[str, np.ndarray] = {}
        taken = {op.attrs.name for op in kept if op.name == "graph.const"}
        kept.sort(key=lambda op: op.name == "graph.const")
        for op in reversed(kept):
            if op.name == "graph.const":
                # What a permuted initializer came from is gone as a rule: it takes over the name.
                old, wish = op.attrs.name, self._wishes[op.attrs.name]
                name = old if wish in constants or wish in taken else wish
                constants[name] = self._constants[old]
                self._names.setdefault(op.result, name)
                op = replace(op, attrs=replace(op.attrs, name=name))
            for r in op.results:
                renamed[r] = Value(r.type, _identifier(self._names.get(r, r.name)))
            ops.append(
                replace(
                    op, operands=tuple(renamed[v] for v in op.operands), results=tuple(renamed[r] for r in op.results)
                )
            )
        ops.append(Op("graph.return", tuple(renamed[r] for r in results)))
        main = Module("graph", (Function("main", Block(tuple(args), tuple(ops))),), constants, dict(attrs))
        return with_bodies(main, self._bodies, self._constants) if self._bodies else main


def tensor(value: Value) -> TensorType:
    """The value's type; every value of a graph is a tensor."""
    assert isinstance(value.type, TensorType)
    return value.type


def _keeps_order(op: Op) -> bool:
    """Whether a transpose moves dims of size 1 only, so that the data stays in its order."""
    shape = tensor(op.operands[0]).shape
    moved = [p for p in op.attrs.perm if shape[p] != 1]
    return moved == sorted(moved) or math.prod(shape) == 0


def _identifier(name: str) -> str:
    """The name with what the text form does not allow in a value's name replaced."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
