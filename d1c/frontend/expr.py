"""A value with arithmetic operators, so that a rule reads as its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from d1c.frontend.context import ImportContext
from d1c.ir.core import Value


class Expr:
    """A value with arithmetic operators, so that a rule reads as its formula. Numbers become constants of its type."""

    def __init__(self, cx: ImportContext, value: Value) -> None:
        self.cx, self.value = cx, value

    def call(self, name: str, *others: Any) -> Expr:
        """graph.`name` of this and the others."""
        values = [o.value if isinstance(o, Expr) else self.cx.scalar(o, self.value) for o in others]
        return Expr(self.cx, self.cx.emit(f"graph.{name}", [self.value, *values]))

    def number(self, x: float) -> Expr:
        return Expr(self.cx, self.cx.scalar(x, self.value))

    def where(self, yes: Any, no: Any) -> Expr:
        """This (a condition) ? yes : no, one of which is an Expr."""
        like = yes if isinstance(yes, Expr) else no
        a, b = (o if isinstance(o, Expr) else like.number(o) for o in (yes, no))
        return Expr(self.cx, self.cx.emit("graph.where", [self.value, a.value, b.value]))

    def __add__(self, other: Any) -> Expr:
        return self.call("add", other)

    def __sub__(self, other: Any) -> Expr:
        return self.call("sub", other)

    def __rsub__(self, other: float) -> Expr:
        return self.number(other) - self

    def __mul__(self, other: Any) -> Expr:
        return self.call("mul", other)

    def __truediv__(self, other: Any) -> Expr:
        return self.call("div", other)

    def __neg__(self) -> Expr:
        return self.call("neg")

    def __lt__(self, other: Any) -> Expr:
        return self.call("less", other)

    def __gt__(self, other: Any) -> Expr:
        return self.call("greater", other)

    def __getattr__(self, name: str) -> Callable[[], Expr]:
        """x.sqrt() is graph.sqrt."""
        return lambda: self.call(name)
