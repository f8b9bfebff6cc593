"""The text form of all four levels: one grammar, one printer (d1c.ir.printer).

Attributes are read into the op's attribute dataclass through the registry; faults say line and column and show a caret.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from d1c.errors import ParseError
from d1c.ir.attributes import ATTRIBUTES, fields_of, parse_custom, register_attribute
from d1c.ir.core import LEVELS, NO_ATTRS, Block, Function, Module, NoAttrs, Op, Value
from d1c.ir.printer import Constants, digest, print_attr, print_function, print_module, print_op, print_type
from d1c.ir.types import BufferType, ScalarType, TensorType, Type, WindowType
from d1c.target.dtypes import DType, dtype

__all__ = [
    "ATTRIBUTES", "FUNCTION_ATTRS", "Constants", "parse", "parse_modules", "print_attr", "print_function",
    "print_module", "print_op", "print_type", "register_attribute",
]  # fmt: skip

FUNCTION_ATTRS: dict[str, type] = {}
"""Attribute dataclass of the functions of a level, where they have any."""

GRAMMAR = r"""
start: module+
module: "d1c.module" NAME [attrs] "{" functions [constants] "}"
functions: function*
function: "func" SYMBOL "(" [params] ")" ["attributes" attrs] "{" ops "}"
params: VALUE ":" TYPE ("," VALUE ":" TYPE)*
ops: op*
op: [values "="] OP ["(" values ")"] [attrs] [regions] [":" types] ["loc" "(" STRING ")"]
values: VALUE ("," VALUE)*
types: TYPE | "(" TYPE ("," TYPE)* ")"
regions: "(" "{" region "}" ("," "{" region "}")* ")"
region: ["^" "(" [params] ")" ":"] ops
attrs: "{" pair ("," pair)* "}"
pair: (NAME | STRING) "=" value
?value: NUMBER -> number
      | STRING -> string
      | INTS -> ints
      | CUSTOM -> custom
      | "true" -> true
      | "false" -> false
      | "none" -> none
      | "[" "]" -> sequence
      | "[" value ("," value)* "]" -> sequence
      | attrs -> mapping
      | "{" "}" -> mapping
constants: "constants" "{" constant* "}"
constant: STRING "=" data ":" TYPE
data: "dense" "<" value ">" -> dense
    | EXTERNAL
    | RAW

NAME: /[A-Za-z_]\w*/
OP: /[a-z]\w*(\.\w+)+/
SYMBOL: /@([A-Za-z_][\w.$-]*|"(\\.|[^"\\\n])*")/
VALUE: /%([\w.$-]+|"(\\.|[^"\\\n])*")/
TYPE: /(tensor|window|buffer)<([^<>"]|<\d+>)*>|\w+(<\d+>)?/
NUMBER: /-?(\d+(\.\d*)?([eE][+-]?\d+)?|inf|nan)/
INTS.2: /\[\s*-?\d+(\s*,\s*-?\d+)*\s*\]/
STRING: /"(\\.|[^"\\\n])*"/
CUSTOM: /#\w+"(\\.|[^"\\\n])*"/
EXTERNAL: /external<[0-9a-f]+>/
RAW: /raw<[0-9a-f]*>/
%ignore /[ \t\r\n\f]+/
%ignore /\/\/[^\n]*/
"""

_WORDS = {
    "NAME": "a name", "OP": "an op", "SYMBOL": "@name", "VALUE": "%value", "TYPE": "a type", "NUMBER": "a number",
    "INTS": "'['", "STRING": "a string", "CUSTOM": '#kind"text"', "$END": "the end", "EXTERNAL": "'external<'",
    "RAW": "'raw<'", "LPAR": "'('", "RPAR": "')'", "LBRACE": "'{'", "RBRACE": "'}'", "LSQB": "'['", "RSQB": "']'",
    "COMMA": "','", "COLON": "':'", "EQUAL": "'='", "CIRCUMFLEX": "'^'", "LESSTHAN": "'<'", "MORETHAN": "'>'",
}  # fmt: skip


class _Fault(Exception):
    """A fault at a token; `parse` adds the file and the line's text."""

    def __init__(self, token: Token, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.token, self.message, self.remedy = token, message, remedy


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


class _Tree(Transformer[Token, Any]):
    """Turns each rule into a tuple as soon as it is read; values are resolved by `_Builder`, which knows the scopes."""

    start = module = function = op = region = constant = pair = tuple
    functions = ops = values = types = regions = attrs = params = constants = sequence = tuple

    def number(self, items: list[Token]) -> int | float:
        text = items[0]
        return int(text) if text.lstrip("-").isdigit() else float(text)

    def string(self, items: list[Token]) -> str:
        return _unquote(items[0])

    def ints(self, items: list[Token]) -> tuple[int, ...]:
        return tuple(map(int, items[0][1:-1].split(",")))

    def custom(self, items: list[Token]) -> Any:
        kind = items[0][1:].partition('"')[0]
        try:
            return parse_custom(kind, _unquote(items[0], 1 + len(kind)))
        except (ValueError, KeyError) as error:
            raise _Fault(items[0], f"attribute #{kind}: {error.args[0] if error.args else error}") from error

    def true(self, items: list[Token]) -> bool:
        return True

    def false(self, items: list[Token]) -> bool:
        return False

    def none(self, items: list[Token]) -> None:
        return None

    def mapping(self, items: list[Any]) -> Mapping[str, Any]:
        return {_key(k): v for k, v in items[0]} if items else {}

    def dense(self, items: list[Any]) -> Any:
        return items[0]

    def data(self, items: list[Token]) -> Token:
        return items[0]


def _key(token: Token) -> str:
    return _unquote(token) if token.startswith('"') else str(token)


def _unquote(token: Token, start: int = 0) -> str:
    try:
        return str(json.loads(token[start:]))
    except ValueError as error:
        raise _Fault(token, f"bad escape in string: {error}") from error


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", transformer=_Tree(), maybe_placeholders=True)


class _Builder:
    """Resolves names: values by scope, ops and attributes by the registry, types by their text."""

    def __init__(self, filename: str, origins: bool) -> None:
        self.filename = filename
        self.origins = origins
        self.types: dict[str, Type] = {}
        self.scopes: list[dict[str, tuple[Value, Token]]] = []

    def type_of(self, token: Token) -> Type:
        found = self.types.get(token)
        if found is None:
            try:
                found = self.types[str(token)] = _type(token)
            except ValueError as error:
                raise _Fault(token, f"bad type: {error}") from error
        return found

    def define(self, token: Token, type_token: Token) -> Value:
        name = token[1:]
        for scope in self.scopes:
            if name in scope:
                raise _Fault(token, f"value {token} is defined twice, first in line {scope[name][1].line}")
        wish = _unquote(token, 1) if name.startswith('"') else "" if name.isdigit() else str(name)
        value = Value(self.type_of(type_token), wish)
        self.scopes[-1][str(name)] = (value, token)
        return value

    def use(self, token: Token) -> Value:
        name = token[1:]
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name][0]
        known = [f"%{n}" for scope in self.scopes for n in scope]
        raise _Fault(token, f"undefined value {token}", _nearest(token, known))

    def block(self, params: tuple[Token, ...] | None, ops: tuple[Any, ...]) -> Block:
        self.scopes.append({})
        args = tuple([self.define(v, t) for v, t in zip(params[::2], params[1::2], strict=True)]) if params else ()
        block = Block(args, tuple([self.op(*op) for op in ops]))
        self.scopes.pop()
        return block

    def op(self, results: Any, name: Token, operands: Any, attrs: Any, regions: Any, types: Any, loc: Any) -> Op:
        row = _row(name)
        results, types = results or (), types or ()
        if len(results) != len(types):
            raise _Fault(name, f"{name} has {len(results)} results but {len(types)} result types")
        used = tuple([self.use(v) for v in operands]) if operands else ()
        typed = self.attrs(row.attrs, attrs or (), name, str(name)) if attrs or row.attrs is not NoAttrs else NO_ATTRS
        # Results are not in scope in the regions, but their names are taken there: the printer counts the same way.
        blocks = tuple([self.block(*region) for region in regions]) if regions else ()
        made = tuple([self.define(v, t) for v, t in zip(results, types, strict=True)])
        origin = _unquote(loc) if loc else f"{self.filename}:{name.line}" if self.origins else ""
        return Op(str(name), used, typed, made, blocks, origin)

    def attrs(self, cls: type, pairs: tuple[tuple[Token, Any], ...], owner: Token, what: str) -> Any:
        fields = {f.name: f for f in fields_of(cls)}
        values: dict[str, Any] = {}
        for token, value in pairs:
            name = _key(token)
            if name not in fields:
                names = f"its attributes: {', '.join(fields)}" if fields else "it has no attributes"
                raise _Fault(token, f"{what} has no attribute {name}", _nearest(name, fields) or names)
            if name in values:
                raise _Fault(token, f"attribute {name} of {what} is given twice")
            try:
                values[name] = fields[name].convert(value)
            except TypeError as error:
                message = f"attribute {name} of {what} must be {fields[name].words}, not {print_attr(value)}"
                raise _Fault(token, message) from error
        for name, f in fields.items():
            if f.required and name not in values:
                raise _Fault(owner, f"{what} needs attribute {name}, of type {f.words}")
        try:
            return cls(**values)
        except ValueError as error:
            raise _Fault(owner, f"{what}: {error}") from error

    def module(
        self, level: Token, attrs: Any, functions: Any, constants: Any, given: Mapping[str, np.ndarray]
    ) -> Module:
        if level not in LEVELS:
            raise _Fault(level, f"unknown level {level}", f"levels: {', '.join(LEVELS)}")
        made: dict[str, Function] = {}
        for symbol, params, attributes, ops in functions:
            name = _unquote(symbol, 1) if symbol[1] == '"' else str(symbol[1:])
            if name in made:
                raise _Fault(symbol, f"function {symbol} is defined twice")
            cls = FUNCTION_ATTRS.get(level, NoAttrs)
            typed = self.attrs(cls, attributes or (), symbol, f"func {symbol}")
            made[name] = Function(name, self.block(params, ops), typed)
        known: dict[str, np.ndarray] = {}
        missing: dict[str, str] = {}
        for key, data, shape in constants or ():
            name = _key(key)
            if name in known or name in missing:
                raise _Fault(key, f"constant {key} is given twice")
            array = self.constant(key, data, shape, given.get(name))
            if array is None:
                missing[name] = f"{data} : {shape}"
            else:
                known[name] = array
        data_of = Constants(known, missing) if missing else known
        return Module(str(level), tuple(made.values()), data_of, {_key(k): v for k, v in attrs or ()})

    def constant(self, key: Token, data: Any, shape: Token, given: np.ndarray | None) -> np.ndarray | None:
        """The data of one entry; None for external data that nobody gave."""
        dims, element = _split_shape(shape)
        if isinstance(data, Token) and data.startswith("external<"):
            if given is None:
                return None
            if given.shape != dims or given.dtype != element.numpy or digest(given) != data[9:-1]:
                message = f"the data given for constant {key} is not what the text names"
                raise _Fault(key, message, "give the data of the model that the text was printed from")
            return given
        try:
            if isinstance(data, Token):
                return np.frombuffer(bytes.fromhex(data[4:-1]), element.numpy).reshape(dims)
            wide = np.float64 if element.is_float else element.numpy
            return np.array(data, wide).astype(element.numpy).reshape(dims)
        except (ValueError, OverflowError, TypeError) as error:
            raise _Fault(shape, f"data of constant {key} does not fit its type: {error}") from error


def _row(token: Token) -> Any:
    from d1c.ops.opdef import REGISTRY, opdef  # the registry imports this package

    try:
        return opdef(str(token))
    except KeyError as error:
        raise _Fault(token, f"unknown op {token}", _nearest(token, REGISTRY)) from error


def _split_shape(token: str) -> tuple[tuple[int, ...], DType]:
    match = re.fullmatch(r"((?:\d+x)*)([a-z]\w*(?:<\d+>)?)", token)
    if not match:
        raise ValueError(f"{token} is not DIMxDIMx...ELEMENT")
    return tuple(int(d) for d in match[1].split("x")[:-1]), dtype(match[2])


def _type(text: str) -> Type:
    """The type that `text` says; ValueError says what is wrong."""
    head, _, body = text.partition("<")
    if head == "buffer" and body:
        if not (match := re.fullmatch(r"(\d+x[a-z]\w*(?:<\d+>)?) *@ *(\d+)", body[:-1])):
            raise ValueError(f"{text} is not buffer<ELEMENTSxDTYPE @ ADDRESS>")
        (elements,), element = _split_shape(match[1])
        return BufferType(element, elements, int(match[2]))
    if head not in ("tensor", "window") or not body:
        return ScalarType(dtype(text))
    shaped, comma, placed = body[:-1].partition(",")
    shape, element = _split_shape(shaped.strip())
    if head == "tensor" and not comma:
        return TensorType(shape, element)
    from d1c.ir.layout import Need  # only types of the lower levels need it
    from d1c.target.mesh import Layout

    if head == "tensor":
        return TensorType(shape, element, Layout.parse(placed.strip()))
    if not comma:
        raise ValueError("a window needs a second part, [need]")
    return WindowType(shape, element, Need.parse(placed.strip()))


def parse(
    text: str, filename: str = "<text>", constants: Mapping[str, np.ndarray] | None = None, origins: bool = False
) -> Module:
    """The module that `text` says, or ParseError with line, column and caret.

    constants  data of the constants whose text is a digest only; those not given are left out of the module's constants
               (their names are in its `Constants.missing`).
    origins    ops without loc(...) get `filename:line`, for programs written by hand.
    """
    modules = parse_modules(text, filename, constants, origins)
    if len(modules) > 1:
        message = f"one module is expected here, the text has {len(modules)}: {', '.join(m.level for m in modules)}"
        second = list(re.finditer(r"^\s*d1c\.module\b", text, re.M))[1:2]
        line = text.count("\n", 0, second[0].end()) + 1 if second else 1
        raise _error(text, filename, line, 1, message, "give each module its own text, or assemble a program")
    return modules[0]


def parse_modules(
    text: str, filename: str = "<text>", constants: Mapping[str, np.ndarray] | None = None, origins: bool = False
) -> tuple[Module, ...]:
    """All modules of a text that has one or more (a tile module and the kern module that it calls); else as `parse`."""
    try:
        trees: Any = _parser().parse(text)
        given = constants or {}
        return tuple(
            [
                _Builder(filename, origins).module(level, attrs, functions, entries, given)
                for level, attrs, functions, entries in trees
            ]
        )
    except _Fault as fault:
        token = fault.token
        raise _error(text, filename, token.line or 1, token.column or 1, fault.message, fault.remedy) from fault
    except UnexpectedInput as error:
        raise _syntax_error(text, filename, error) from None


def _syntax_error(text: str, filename: str, error: UnexpectedInput) -> ParseError:
    expected: Iterable[str] = ()
    line, column = error.line, error.column
    if isinstance(error, UnexpectedToken):
        expected = error.accepts or error.expected
        found = f"unexpected {error.token}" if error.token.type != "$END" else "unexpected end of the text"
        if error.token.type == "$END":
            line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    elif isinstance(error, UnexpectedCharacters):
        expected = error.allowed or ()
        found = f"unexpected character {text[error.pos_in_stream or 0]!r}"
    else:
        found = "unexpected end of the text"
    words = sorted({_WORDS.get(t, f"'{t.lower()}'") for t in expected if not t.startswith("__")})
    return _error(text, filename, line, column, found, f"expected {' or '.join(words)}" if words else "")


def _error(text: str, filename: str, line: int, column: int, message: str, remedy: str) -> ParseError:
    lines = text.split("\n")
    source = lines[line - 1] if 0 < line <= len(lines) else ""
    return ParseError(message, filename=filename, line=line, column=column, source=source, remedy=remedy)
