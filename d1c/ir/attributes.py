"""Typed attributes: the fields of an attribute dataclass and the conversion of plain values to their types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from d1c.target.dtypes import DType, dtype

ATTRIBUTES: dict[str, Any] = {}
"""Classes of attributes that print as `#kind"text"`: they have `__str__` and a classmethod `parse(str)`."""


def register_attribute(kind: str, cls: type) -> None:
    """Let values of `cls` print as `#kind"text"`; ValueError when the kind is taken by another class."""
    if ATTRIBUTES.setdefault(kind, cls) is not cls:
        raise ValueError(f"attribute kind {kind} is registered twice")


def _load_rows() -> None:
    # Kinds are registered where their classes live: the layouts here, others by the op files that use them.
    from d1c.ir.layout import Need
    from d1c.ops.opdef import load_all
    from d1c.target.mesh import Layout

    ATTRIBUTES.setdefault("layout", Layout)
    ATTRIBUTES.setdefault("need", Need)
    load_all()


def kind_of(cls: type) -> str | None:
    """The kind that `cls` is registered as."""
    for attempt in range(2):
        for kind, registered in ATTRIBUTES.items():
            if registered is cls:
                return kind
        if attempt == 0:
            _load_rows()
    return None


def parse_custom(kind: str, text: str) -> Any:
    """The value that `#kind"text"` says; KeyError for an unknown kind, ValueError as its `parse` raises it."""
    if kind not in ATTRIBUTES:
        _load_rows()
    if kind not in ATTRIBUTES:
        raise KeyError("unknown kind")
    return ATTRIBUTES[kind].parse(text)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an attribute dataclass. `convert` raises TypeError for a value of another type, named by `words`."""

    name: str
    required: bool
    default: Any
    convert: Callable[[Any], Any]
    words: str

    def normal(self, value: Any) -> Any:
        """The value as parsing its text would give it (an int in a float field becomes a float)."""
        try:
            return self.convert(value)
        except TypeError:
            return value


@cache
def fields_of(cls: type) -> tuple[Field, ...]:
    """The fields of an attribute dataclass that its constructor takes."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a type that is imported for checking only: take its values as they are
        hints = {}
    fields = []
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        hint = hints.get(f.name, Any)
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        convert = converter(hint)
        default = None
        if f.default is not dataclasses.MISSING:
            default = convert(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            default = convert(f.default_factory())
        fields.append(Field(f.name, required, default, convert, type_words(hint)))
    return tuple(fields)


def type_words(hint: Any) -> str:
    """How a message names a field's type."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


@cache
def converter(hint: Any) -> Callable[[Any], Any]:
    """The function that takes a plain or already typed value to the type `hint`, or raises TypeError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _same
    if hint is float:
        return _to_float
    if hint is int:
        return _to_int
    if hint is DType:
        return _to_dtype
    if hint in (None, type(None)):
        return _exactly(type(None))
    if origin in (typing.Union, types.UnionType):
        return _any_of(tuple(converter(a) for a in args))
    if origin is typing.Literal:
        return _literal(args)
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return _sequence(converter(args[0]))
    if origin is tuple:
        return _fixed(tuple(converter(a) for a in args))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(converter(args[1]) if len(args) == 2 else _same)
    if isinstance(hint, type) and hint is not object:
        return _exactly(tuple if hint is list else hint)
    return _same


def _same(value: Any) -> Any:
    return tuple(_same(v) for v in value) if isinstance(value, (list, tuple)) else value


def _to_int(value: Any) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise TypeError


def _to_float(value: Any) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise TypeError


def _to_dtype(value: Any) -> DType:
    if isinstance(value, DType):
        return value
    if isinstance(value, str):
        try:
            return dtype(value)
        except ValueError as error:
            raise TypeError from error
    raise TypeError


def _exactly(cls: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        raise TypeError

    return convert


def _any_of(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        # An exact member first: in `float | int`, 1 stays an int.
        loose: list[Any] = []
        for option in options:
            try:
                converted = option(value)
            except TypeError:
                continue
            if type(converted) is type(value):
                return converted
            loose.append(converted)
        if not loose:
            raise TypeError
        return loose[0]

    return convert


def _literal(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if any(type(value) is type(a) and value == a for a in allowed):
            return value
        raise TypeError

    return convert


def _sequence(element: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> tuple[Any, ...]:
        if isinstance(value, (tuple, list)):
            return tuple([element(v) for v in value])
        raise TypeError

    return convert


def _fixed(elements: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    def convert(value: Any) -> tuple[Any, ...]:
        if isinstance(value, (tuple, list)) and len(value) == len(elements):
            return tuple(e(v) for e, v in zip(elements, value, strict=True))
        raise TypeError

    return convert


def _mapping(element: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {str(k): element(v) for k, v in value.items()}
        raise TypeError

    return convert
