"""The printer of all four levels. What it prints, d1c.ir.text parses; print -> parse -> print is a fixed point.

No op has a syntax of its own: attributes print from the fields of the op's attribute dataclass, in order and without
those that have their default.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from d1c.ir.attributes import fields_of, kind_of
from d1c.ir.core import Function, Module, NoAttrs, Op, Value
from d1c.ir.types import BufferType, ScalarType, TensorType, Type, WindowType
from d1c.target.dtypes import DType, from_numpy

INLINE_ELEMENTS = 16
"""A constant of at most so many elements prints with its data, a larger one with its digest."""


class Constants(dict[str, np.ndarray]):
    """Constants of a parsed module. `missing`: what the text says of those whose data nobody gave, by name."""

    missing: dict[str, str]

    def __init__(self, known: Mapping[str, np.ndarray], missing: Mapping[str, str]) -> None:
        super().__init__(known)
        self.missing = dict(missing)


_NAME = re.compile(r"[A-Za-z_][\w.$-]*")
_KEY = re.compile(r"(?!(?:func|constants|attributes|loc)$)[A-Za-z_]\w*$")


def is_plain_name(text: str) -> bool:
    """Whether a value may be called so: other wishes are numbered, names of inputs quoted."""
    return _NAME.fullmatch(text) is not None


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@lru_cache(maxsize=4096)
def print_type(t: Type) -> str:
    """The text of a type, e.g. `tensor<2x3xbf16>`."""
    match t:
        case TensorType():
            layout = "" if t.layout is None else f", {t.layout}"
            return f"tensor<{_shaped(t.shape, t.dtype)}{layout}>"
        case WindowType():
            return f"window<{_shaped(t.shape, t.dtype)}, {t.need}>"
        case BufferType():
            return f"buffer<{_shaped((t.elements,), t.dtype)} @ {t.address}>"
        case ScalarType():
            return str(t.dtype)


def _shaped(shape: tuple[int, ...], element: DType) -> str:
    return "x".join([*map(str, shape), element.name])


def print_attr(value: Any) -> str:
    """The text of one attribute value; TypeError for a class that is neither plain nor registered."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return repr(float(value))
        case str():
            return _quote(value)
        case DType():
            return _quote(value.name)
        case tuple() | list():
            return f"[{', '.join(map(print_attr, value))}]"
        case np.generic():
            return print_attr(value.item())
        case Mapping():
            return _print_dict([(str(k), print_attr(v)) for k, v in value.items()])
    cls: type = type(value)
    kind = kind_of(cls)
    if kind is None:
        raise TypeError(f"no text form for {cls.__name__}: register it in d1c.ir.attributes.ATTRIBUTES")
    return f"#{kind}{_quote(str(value))}"


def _print_dict(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{k if _KEY.match(k) else _quote(k)} = {v}" for k, v in pairs) + "}"


def _print_attrs(attrs: Any) -> str:
    """` {...}` with the fields that differ from their default, or nothing. Compared as text: -0.0 is not 0.0."""
    if type(attrs) is NoAttrs:
        return ""
    pairs = []
    cls: Any = type(attrs)
    for f in fields_of(cls):
        text = print_attr(f.normal(getattr(attrs, f.name)))
        if f.required or text != print_attr(f.default):
            pairs.append((f.name, text))
    return " " + _print_dict(pairs) if pairs else ""


class _Names:
    """Names of the values in scope: a wish is kept where it is free and an identifier, others are numbered."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.taken: set[str] = set()
        self.next = 0

    def define(self, value: Value, keep: bool = False) -> str:
        """Name a new value; `keep` also takes wishes that need quotes (the model's input names)."""
        plain = _NAME.fullmatch(value.name)
        wish = f"%{value.name}" if plain else f"%{_quote(value.name)}"
        if value.name and (plain or keep) and wish not in self.taken:
            text = wish
            self.taken.add(wish)
        else:
            text = f"%{self.next}"
            self.next += 1
        self.of[id(value)] = text
        return text

    def uses(self, values: tuple[Value, ...]) -> str:
        return ", ".join([self.of.get(id(v), f"%<undefined {v.name}>") for v in values])

    def params(self, values: tuple[Value, ...], keep: bool = False) -> str:
        return ", ".join([f"{self.define(v, keep)}: {print_type(v.type)}" for v in values])


def _print_op(op: Op, names: _Names, indent: str) -> Iterator[str]:
    results = ", ".join([names.define(r) for r in op.results])
    operands = f"({names.uses(op.operands)})" if op.operands else ""
    head = f"{indent}{results}{' = ' if results else ''}{op.name}{operands}{_print_attrs(op.attrs)}"
    tail = ""
    if op.results:
        types = ", ".join([print_type(r.type) for r in op.results])
        tail = f" : {types}" if len(op.results) == 1 else f" : ({types})"
    if op.origin:
        tail += f" loc({_quote(op.origin)})"
    if not op.regions:
        yield head + tail
        return
    opening = f"{head} ({{"
    for region in op.regions:
        yield opening
        taken, next_number = set(names.taken), names.next
        if region.args:
            yield f"{indent}  ^({names.params(region.args)}):"
        for inner in region.ops:
            yield from _print_op(inner, names, indent + "  ")
        names.taken, names.next = taken, next_number  # a sibling may use the same names again
        opening = f"{indent}}}, {{"
    yield f"{indent}}}){tail}"


def print_function(function: Function, indent: str = "") -> str:
    """The text of one function."""
    names = _Names()
    symbol = function.name if _NAME.fullmatch(function.name) else _quote(function.name)
    attrs = _print_attrs(function.attrs)
    params = names.params(function.block.args, keep=True)
    head = f"{indent}func @{symbol}({params}){' attributes' if attrs else ''}{attrs}"
    lines = [line for op in function.block.ops for line in _print_op(op, names, indent + "  ")]
    return "\n".join([head + " {", *lines, indent + "}"])


def print_op(op: Op) -> str:
    """The text of one op by itself, for messages: its operands and results are named by their wishes."""
    names = _Names()
    for value in op.operands:
        if id(value) not in names.of:
            names.define(value)
    return next(_print_op(op, names, ""))


def print_module(module: Module) -> str:
    """The text of a module; constants sorted by name."""
    attrs = _print_dict([(k, print_attr(v)) for k, v in module.attrs.items()]) + " " if module.attrs else ""
    lines = [f"d1c.module {module.level} {attrs}{{"]
    lines += [print_function(f, "  ") for f in module.functions]
    constants = dict(getattr(module.constants, "missing", {}))
    constants |= {name: _print_constant(array) for name, array in module.constants.items()}
    if constants:
        lines += ["  constants {", *(f"    {_quote(n)} = {constants[n]}" for n in sorted(constants)), "  }"]
    return "\n".join([*lines, "}"]) + "\n"


def _print_constant(array: np.ndarray) -> str:
    element = from_numpy(array.dtype)
    shape = _shaped(array.shape, element)
    if array.size > INLINE_ELEMENTS:
        return f"external<{digest(array)}> : {shape}"
    with np.errstate(invalid="ignore"):
        has_nan = element.is_float and bool(np.isnan(array.astype(np.float64)).any())
    if has_nan:  # the payload and the sign of a NaN have no decimal text
        return f"raw<{array.tobytes().hex()}> : {shape}"
    return f"dense<[{', '.join([_print_element(x, element) for x in array.reshape(-1)])}]> : {shape}"


def _print_element(x: Any, element: DType) -> str:
    if not element.is_float:
        return print_attr(x.item())
    short = f"{float(x):.9g}" if element.bits < 64 else repr(float(x))
    for digits in range(1, 9):
        trial = f"{float(x):.{digits}g}"
        if np.array(float(trial)).astype(element.numpy) == x:
            short = trial
            break
    return short if re.search(r"[.en]", short) else short + ".0"


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
