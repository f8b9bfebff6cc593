"""The kern level: one function per kernel, holding one `kern.nest`, one to one with the records of the binary.

```
func @k0() {
  kern.nest {kind = "mac", loops = [["m", 4], ["n", 8], ["k", 16], ["e", 2]], parallel = 2, out = "bf16[8*m + n]",
             operands = ["bf16[32*m + 2*k + e]", "bf16[16*k + 2*n + e]", "f32[n]"], n_term = 2, cut = "k", slice = 16,
             bodies = ["epilogue"]} ({
    ^(%acc: f32, %x2: f32):
    %0 = kern.add(%acc, %x2) : f32
    kern.yield(%0)
  })
  kern.return
}
```
An address is the operand's base plus what stands in brackets: strides in elements times loop counters, and `t0[m]`, the
m-th entry of the call's table 0. Masks have type `bool`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d1c.ir.core import NO_ATTRS, Block, Function, Module, Op, Value
from d1c.ir.structured import KINDS
from d1c.ir.types import ScalarType, Type
from d1c.ops.opdef import OpDef, register
from d1c.target.dtypes import BOOL, F32, dtype
from d1c.target.kernel import INSTRUCTIONS, Body, Instr, Loop, Nest, Operand

BODIES = ("term", "epilogue")


@dataclass(frozen=True, slots=True)
class NestAttrs:
    """The fields of d1c.target.kernel.Nest. `loops`: (name, extent). `bodies` names the regions, in order."""

    kind: str
    loops: tuple[tuple[str, int], ...]
    parallel: int
    out: str
    operands: tuple[str, ...]
    n_term: int
    cut: str | None = None
    slice: int = 0
    lanes: bool = False
    bodies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImmediateAttrs:
    """`value`: the number that is splat over the lanes."""

    value: float | int | bool


def to_module(kernels: Mapping[str, Nest]) -> Module:
    """A kern module with one function per kernel, in order."""
    functions = []
    for name, nest in kernels.items():
        ops = (_nest_op(nest), Op("kern.return"))
        functions.append(Function(name, Block((), ops)))
    return Module("kern", tuple(functions))


def from_module(module: Module) -> dict[str, Nest]:
    """The kernels of a kern module, the exact inverse of `to_module`; ValueError if a function is not one nest."""
    return {f.name: _nest(f) for f in module.functions}


def _labels(names: tuple[str, ...]) -> tuple[str, ...]:
    """What addresses call the loops: their names where these are unique identifiers, else `$` and their number."""
    plain = [re.fullmatch(r"[A-Za-z_]\w*", n) and names.count(n) == 1 for n in names]
    return tuple(n if ok else f"${i}" for i, (n, ok) in enumerate(zip(names, plain, strict=True)))


def _operand_text(operand: Operand, labels: tuple[str, ...]) -> str:
    terms = [
        label if stride == 1 else f"{stride}*{label}"
        for stride, label in zip(operand.strides, labels, strict=True)
        if stride
    ]
    terms += [f"t{t}[{label}]" for t, label in zip(operand.tables, labels, strict=True) if t is not None]
    return f"{operand.dtype}[{' + '.join(terms)}]"


_TERM = re.compile(r"t(?P<table>\d+)\[(?P<index>[\w$]+)\]|(?:(?P<stride>-?\d+)\*)?(?P<loop>[\w$]+)")


def _operand(text: str, labels: tuple[str, ...]) -> Operand:
    """The operand that `text` says; ValueError if it is not DTYPE[TERM + TERM ...] over the loops."""
    element, bracket, inside = text.partition("[")
    if not bracket or not inside.endswith("]"):
        raise ValueError(f"{text!r} is not DTYPE[TERM + TERM ...]")
    dtype(element)
    strides, tables = [0] * len(labels), [None] * len(labels)  # type: tuple[list[int], list[int | None]]
    for term in inside[:-1].split(" + ") if inside != "]" else ():
        match = _TERM.fullmatch(term)
        label = (match["index"] or match["loop"]) if match else None
        if match is None or label not in labels:
            raise ValueError(f"{term!r} in {text!r} is not STRIDE*LOOP or tN[LOOP] over loops {', '.join(labels)}")
        number = labels.index(label)
        if match["table"]:
            tables[number] = int(match["table"])
        else:
            strides[number] = int(match["stride"] or 1)
    return Operand(element, tuple(strides), tuple(tables))


def _nest_op(nest: Nest) -> Op:
    labels = _labels(tuple(loop.name for loop in nest.loops))
    bodies = {name: body for name, body in zip(BODIES, (nest.term, nest.epilogue), strict=True) if body is not None}
    attrs = NestAttrs(
        nest.kind,
        tuple((loop.name, loop.extent) for loop in nest.loops),
        nest.parallel,
        _operand_text(nest.out, labels),
        tuple(_operand_text(o, labels) for o in nest.operands),
        nest.n_term,
        None if nest.cut is None else labels[nest.cut],
        nest.slice,
        nest.lanes,
        tuple(bodies),
    )
    regions = tuple(_region(body, _input_names(name, nest)) for name, body in bodies.items())
    return Op("kern.nest", attrs=attrs, regions=regions)


def _input_names(body: str, nest: Nest) -> list[str]:
    """Operands are x0, x1, ... in both bodies; the accumulator is acc."""
    if body == "term":
        return [f"x{i}" for i in range(nest.n_term)]
    if nest.kind == "map":
        return [f"x{i}" for i in range(len(nest.operands))]
    return ["acc", *(f"x{i}" for i in range(nest.n_term, len(nest.operands)))]


def _scalar(type_name: str) -> ScalarType:
    return ScalarType(BOOL if type_name == "mask" else dtype(type_name))


def _type_name(t: Type) -> str:
    if not isinstance(t, ScalarType):
        raise ValueError("values of kernel bodies are scalars")
    return "mask" if t.dtype == BOOL else t.dtype.name


def _region(body: Body, names: list[str]) -> Block:
    names += [""] * (len(body.inputs) - len(names))
    values = [Value(_scalar(t), name) for t, name in zip(body.inputs, names, strict=False)]
    args = tuple(values)
    ops = []
    for instr in body.instrs:
        if (instr.imm is not None) != (instr.op == "const"):
            raise ValueError(f"{instr.op}: const, and nothing else, has an immediate")
        attrs = NO_ATTRS if instr.imm is None else ImmediateAttrs(instr.imm)
        result = Value(_scalar(instr.type))
        ops.append(Op(f"kern.{instr.op}", tuple(values[a] for a in instr.args), attrs, (result,)))
        values.append(result)
    return Block(args, (*ops, Op("kern.yield", (values[body.result],))))


def _body(block: Block) -> Body:
    number = {value: i for i, value in enumerate(block.args)}
    instrs = []
    for op in block.ops[:-1]:
        imm = op.attrs.value if isinstance(op.attrs, ImmediateAttrs) else None
        instrs.append(Instr(op.name[5:], tuple(number[v] for v in op.operands), _type_name(op.result.type), imm))
        number[op.result] = len(number)
    (result,) = block.ops[-1].operands
    return Body(tuple(_type_name(a.type) for a in block.args), tuple(instrs), number[result])


def _nest(function: Function) -> Nest:
    nests = [op for op in function.block.ops if op.name == "kern.nest"]
    if len(nests) != 1 or len(function.block.ops) != 2:
        raise ValueError(f"kernel @{function.name} must be one kern.nest and kern.return")
    return nest_of(nests[0])


def nest_of(op: Op) -> Nest:
    """The record that a `kern.nest` op says; ValueError names what is wrong with it."""
    a: NestAttrs = op.attrs
    labels = _labels(tuple(name for name, _ in a.loops))
    if a.kind not in KINDS:
        raise ValueError(f"kind {a.kind!r} is none of {', '.join(KINDS)}")
    if a.cut is not None and a.cut not in labels:
        raise ValueError(f"cut {a.cut!r} is none of the loops {', '.join(labels)}")
    if len(a.bodies) != len(op.regions) or list(a.bodies) != [b for b in BODIES if b in a.bodies]:
        raise ValueError(f"bodies {list(a.bodies)} must name the {len(op.regions)} regions, as term or epilogue")
    if not 0 <= a.parallel <= len(a.loops) or not 0 <= a.n_term <= len(a.operands):
        raise ValueError("parallel counts loops and n_term operands, from the front")
    bodies = {name: _body(region) for name, region in zip(a.bodies, op.regions, strict=True)}
    return Nest(
        a.kind,
        tuple(Loop(name, extent) for name, extent in a.loops),
        a.parallel,
        tuple(_operand(text, labels) for text in a.operands),
        _operand(a.out, labels),
        a.n_term,
        bodies.get("term"),
        bodies.get("epilogue"),
        None if a.cut is None else labels.index(a.cut),
        a.slice,
        a.lanes,
    )


# ----------------------------------------------------------------------------------------------------------- rows

_COMPARISONS = ("eq", "ne", "lt", "le")
_FLOAT_ONLY = ("fma", "sqrt", "rint", "floor", "ceil")
_SHIFTS = ("shl", "shr", "sar")


def _infer(name: str, count: int) -> Any:
    def infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
        if len(types) != count:
            raise ValueError(f"{name} takes {count} operands, not {len(types)}")
        if any(not isinstance(t, ScalarType) for t in types):
            raise ValueError(f"{name} takes scalars")
        if name in ("const", "bits", "cvt"):
            raise NotImplementedError  # the op states its result type
        if name == "select":
            if types[0] != ScalarType(BOOL) or types[1] != types[2]:
                raise ValueError("select takes a mask and two values of one type")
            return (types[1],)
        if name not in _SHIFTS and any(t != types[0] for t in types):
            raise ValueError(f"{name} takes operands of one type")
        if name in _FLOAT_ONLY and types[0] != ScalarType(F32):
            raise ValueError(f"{name} takes f32")
        return (ScalarType(BOOL),) if name in _COMPARISONS else (types[0],)

    return infer


def _nothing(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    return ()


def _check_nest(op: Op) -> None:
    nest_of(op)


for _name, (_count, _doc) in INSTRUCTIONS.items():
    _attrs = {"attrs": ImmediateAttrs} if _name == "const" else {}
    register(OpDef(f"kern.{_name}", "instruction", _infer(_name, _count), doc=_doc, **_attrs))  # type: ignore[arg-type]
register(OpDef(
    "kern.nest", "nest", _nothing, NestAttrs, doc="One loop nest over SRAM operands; regions: the bodies it names.",
    facts={"infer_op": lambda op: (), "check": _check_nest},
))  # fmt: skip
register(OpDef("kern.yield", "structural", _nothing, doc="The result of a body."))
register(OpDef("kern.return", "structural", _nothing, doc="The end of a kernel."))
