"""The rules that every module keeps, before and after each pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from d1c.errors import VerifyError
from d1c.ir.core import LEVELS, NO_ATTRS, Block, Function, Module, Op, Value
from d1c.ir.printer import print_op, print_type
from d1c.ir.types import TensorType, Type
from d1c.target.dtypes import from_numpy


def verify(module: Module, after: str = "") -> None:
    """Check `module`; VerifyError names the op, its origin and the pass `after` which the module came out like this.

    Rules: values are defined once and before use; ops have a row, belong to the module's level (in regions of dist ops
    also elementwise graph ops and graph.yield) and have the operands, attributes and results that their row says;
    functions end in LEVEL.return, regions in LEVEL.yield, and neither stands elsewhere; constants are as typed.

    A row's `facts` may hold `infer_op`: (op) -> result types, for ops whose result depends on their regions, and
    `check`: (op) -> None, raising ValueError, for rules beyond types; `check_in`: (op, module) -> None, the same;
    `callee`: (op) -> the name of the function that it runs.
    """
    if module.level not in LEVELS:
        raise VerifyError(f"unknown level {module.level}", after=after, rule=f"levels are {', '.join(LEVELS)}")
    names: set[str] = set()
    for function in module.functions:
        if function.name in names:
            raise VerifyError(f"function @{function.name} is defined twice", after=after)
        names.add(function.name)
        _Check(module, function, after).block(function.block, set(), region=False)
    if len(module.functions) > 1 and "main" in names and module.level in ("graph", "dist"):
        _bodies(module, after)


def _bodies(module: Module, after: str) -> None:
    """Where functions run others (`callee`), every function but main is the body of one op, and none of itself."""
    from d1c.ops.opdef import opdef  # the registry imports this package

    run: dict[str, list[str]] = {}
    for f in module.functions:
        rows = ((op, opdef(op.name)) for op in f.block.ops)
        run[f.name] = [row.facts["callee"](op) for op, row in rows if "callee" in row.facts]
    if not any(run.values()):
        return
    order, rule = ["main"], "a function is main or the body of one loop"
    for name in order:
        for body in run[name]:
            if body in order:
                raise VerifyError(f"function @{body} is the body of two loops, or of itself", after=after, rule=rule)
            order.append(body)
    if idle := [name for name in run if name not in order]:
        raise VerifyError(f"no loop runs function @{idle[0]}", after=after, rule=rule)


@dataclass(slots=True)
class _Check:
    module: Module
    function: Function
    after: str
    defined: set[Value] = field(default_factory=set)

    def fail(self, op: Op, message: str, rule: str) -> VerifyError:
        where = op.origin or f"func @{self.function.name}"
        return VerifyError(f"{op.name}: {message}", op=print_op(op), after=self.after, rule=rule, where=where)

    def block(self, block: Block, scope: set[Value], region: bool, dist: bool = False) -> None:
        """`scope`: the values of the enclosing blocks; `dist`: inside an op of the dist level."""
        here = set(scope)
        for arg in block.args:
            if arg in self.defined:
                message = f"argument %{arg.name} of @{self.function.name} is defined twice"
                raise VerifyError(message, after=self.after, where=f"func @{self.function.name}")
            self.defined.add(arg)
            here.add(arg)
        ends = (f"{self.module.level}.yield", *(("graph.yield",) if dist else ())) if region else (
            f"{self.module.level}.return",
        )  # fmt: skip
        last = block.ops[-1] if block.ops else None
        if last is None or last.name not in ends:
            what = f"a region of @{self.function.name}" if region else f"func @{self.function.name}"
            message = f"{what} does not end in {ends[0]}"
            raise VerifyError(
                message, op=print_op(last) if last else "", after=self.after, rule="every block ends in its terminator",
                where=(last.origin if last else "") or f"func @{self.function.name}",
            )  # fmt: skip
        for op in block.ops:
            if op is not last and op.name.endswith((".return", ".yield")):
                raise self.fail(op, "a terminator inside a block", "terminators stand last")
            self.op(op, here, dist)

    def op(self, op: Op, scope: set[Value], dist: bool) -> None:
        from d1c.ops.opdef import opdef  # the registry imports this package

        try:
            row = opdef(op.name)
        except KeyError:
            raise self.fail(op, "unknown op", "every op has a row in the registry") from None
        borrowed = dist and op.level == "graph" and (row.kind == "elementwise" or op.name == "graph.yield")
        if op.level != self.module.level and not borrowed:
            raise self.fail(op, f"not an op of level {self.module.level}", "a module holds ops of its own level")
        for number, value in enumerate(op.operands):
            if value not in scope:
                message = f"operand {number} (%{value.name or '?'}) is not defined before this op"
                raise self.fail(op, message, "values are defined before use, in the block or an enclosing one")
        if not isinstance(op.attrs, row.attrs):
            message = f"attributes are a {type(op.attrs).__name__}, not a {row.attrs.__name__}"
            raise self.fail(replace(op, attrs=NO_ATTRS), message, "attributes are the row's dataclass")
        inner = dist or op.level == "dist"
        for region in op.regions:
            self.block(region, scope, region=True, dist=inner and self.module.level == "dist")
        for value in op.results:
            if value in self.defined:
                raise self.fail(op, f"result %{value.name or '?'} is defined twice", "values are defined once")
            self.defined.add(value)
            scope.add(value)
        self.results(op)

    def results(self, op: Op) -> None:
        from d1c.ops.opdef import opdef

        row = opdef(op.name)
        try:
            if "check" in row.facts:
                row.facts["check"](op)
            if "check_in" in row.facts:
                row.facts["check_in"](op, self.module)
            if "infer_op" in row.facts:
                expected: tuple[Type, ...] = row.facts["infer_op"](op)
            elif row.kind == "constant":
                return self.constant(op)
            elif op.regions:
                return  # the result follows from the region, and the row does not say how
            else:
                expected = row.infer(tuple(v.type for v in op.operands), op.attrs)
        except NotImplementedError:
            return  # the op states its result types
        except (ValueError, AttributeError, IndexError) as error:
            types = ", ".join(print_type(v.type) for v in op.operands)
            raise self.fail(op, f"does not accept ({types})", str(error)) from error
        found = tuple(r.type for r in op.results)
        if found != expected:
            texts = [f"({', '.join(print_type(t) for t in types)})" for types in (found, expected)]
            raise self.fail(op, f"has results {texts[0]}", f"its operands and attributes give {texts[1]}")

    def constant(self, op: Op) -> None:
        name = getattr(op.attrs, "name", None)
        array = self.module.constants.get(name) if name is not None else None
        if array is None:
            return  # data that the text names by digest and nobody gave
        t = op.result.type
        if not isinstance(t, TensorType) or (t.shape, t.dtype) != (array.shape, from_numpy(array.dtype)):
            data = print_type(TensorType(array.shape, from_numpy(array.dtype)))
            raise self.fail(op, f"has type {print_type(t)}", f"the data of constant {name} is {data}")
