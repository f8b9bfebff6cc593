"""Textual LLVM IR: typed SSA values with Python operators, structured loops and conditionals.

No pass pipeline runs over this text, so callers write it as they want it executed: no allocas for variables, values
carried through loops as phis, constants folded where that is cheap. `llvmlite.ir` has no bfloat type and is slower.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

FLOATS = ("float", "double")
"""LLVM element types of the float types of bodies."""


def vec(width: int, element: str) -> str:
    """The vector type `<width x element>`."""
    return f"<{width} x {element}>"


def element(type_: str) -> str:
    """The element type of a vector type, or the type itself."""
    return type_[1:-1].split(" x ")[1] if type_[0] == "<" else type_


def width(type_: str) -> int:
    """The number of elements of a vector type, 1 for a scalar."""
    return int(type_[1:-1].split(" x ")[0]) if type_[0] == "<" else 1


def like(type_: str, new: str) -> str:
    """`type_` with its element type replaced by `new`."""
    return vec(width(type_), new) if type_[0] == "<" else new


def _scalar(type_: str, c: float | int) -> str:
    if type_ == "double":
        return f"0x{struct.unpack('<Q', struct.pack('<d', c))[0]:016X}"
    if type_ in ("float", "half"):
        single = struct.unpack("<f", struct.pack("<f", c))[0] if abs(c) < 3.5e38 else c
        return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
    if type_ == "i1":
        return "true" if c else "false"
    return str(int(c))


class Value:
    """One SSA value (or constant) of a function: `type` is its LLVM type, `name` its text. Operators emit instructions;
    Python numbers are accepted on the right-hand side. Pointers add byte offsets."""

    __slots__ = ("fn", "name", "type")

    def __init__(self, fn: Function, type_: str, name: str) -> None:
        self.fn, self.type, self.name = fn, type_, name

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def literal(self) -> int | None:
        """The value of an integer constant, else None."""
        return int(self.name) if self.name.lstrip("-").isdigit() else None

    def binary(self, op: str, other: Value | float) -> Value:
        """`op self, other`, where `op` is an LLVM instruction name."""
        return self.fn.op(self.type, f"{op} {self}, {self.fn.const(self.type, other).name}")

    def _arith(self, op: str, other: Value | float) -> Value:
        return self.binary(("f" if element(self.type) in FLOATS else "") + op, other)

    def __add__(self, other: Value | float) -> Value:
        if self.type == "ptr":
            return self.fn.gep(self, other)
        a, b = self.literal, other.literal if isinstance(other, Value) else other
        if self.type == "i64" and b == 0:
            return self
        if self.type == "i64" and a == 0 and isinstance(other, Value):
            return other
        return self._arith("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._arith("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        a, b = self.literal, other.literal if isinstance(other, Value) else other
        if self.type == "i64" and (a == 0 or b == 0):
            return self.fn.const("i64", 0)
        if self.type == "i64" and b == 1:
            return self
        return self._arith("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self.binary("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self.binary("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self.binary("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self.binary("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self.binary("lshr", other)

    def bitcast(self, type_: str) -> Value:
        """The same bits as another type."""
        return self if type_ == self.type else self.fn.op(type_, f"bitcast {self} to {type_}")

    def cast(self, how: str, type_: str) -> Value:
        """A conversion instruction: zext, sext, trunc, fpext, fptrunc, sitofp."""
        return self.fn.op(type_, f"{how} {self} to {type_}")

    def compare(self, predicate: str, other: Value | float) -> Value:
        """`icmp` or `fcmp` by the operand type; the result is i1 or a vector of them."""
        kind = "fcmp" if element(self.type) in (*FLOATS, "half") else "icmp"
        right = self.fn.const(self.type, other)
        return self.fn.op(like(self.type, "i1"), f"{kind} {predicate} {self}, {right.name}")

    def select(self, yes: Value, no: Value | float) -> Value:
        """self ? yes : no."""
        return self.fn.op(yes.type, f"select {self}, {yes}, {self.fn.const(yes.type, no)}")


Body = Callable[..., Sequence[Value] | None]


class Function:
    """One function under construction. `args` are its parameters' values; `loop`, `while_` and `if_` create blocks."""

    def __init__(
        self, module: Module, name: str, params: Sequence[str], ret: str = "void", local: bool = False
    ) -> None:
        self.module, self.name, self.ret = module, name, ret
        self.lines: list[str] = []
        self.count, self.label = 0, "entry"
        self.args = [Value(self, p.removesuffix(" noalias"), f"%a{i}") for i, p in enumerate(params)]
        listed = ", ".join(f"{p} %a{i}" for i, p in enumerate(params))
        self.head = f"define {'internal ' if local else ''}{ret} @{name}({listed}) nounwind {{\nentry:"
        module.functions.append(self)

    def raw(self, line: str) -> None:
        """Emit one line as it stands."""
        self.lines.append("  " + line)

    def op(self, type_: str, text: str) -> Value:
        """Emit `%new = text` and return the new value."""
        self.count += 1
        self.raw(f"%v{self.count} = {text}")
        return Value(self, type_, f"%v{self.count}")

    def const(self, type_: str, c: Value | float) -> Value:
        """`c` as a value of the type (splat for vectors); a Value is returned unchanged."""
        if isinstance(c, Value):
            return c
        if type_[0] == "<":
            return Value(self, type_, f"splat ({element(type_)} {_scalar(element(type_), c)})")
        return Value(self, type_, _scalar(type_, c))

    def opaque(self, v: Value) -> Value:
        """A constant float splat that LLVM cannot see through: it takes x * 1, x - 0 and x / 1 for x, which is wrong
        where subnormals are flushed."""
        name = "@opaque_" + "".join(c for c in v.name.split()[-1] if c.isalnum())
        scalar = v.name.split()[-1].rstrip(")")
        self.module.declarations.add(f"{name} = internal global {element(v.type)} {scalar}")
        x = self.op(element(v.type), f"load {element(v.type)}, ptr {name}, align 4")
        return self.splat(x, width(v.type))

    def zero(self, type_: str) -> Value:
        return Value(self, type_, "zeroinitializer") if type_[0] == "<" else self.const(type_, 0)

    def vector(self, type_: str, constants: Sequence[int]) -> Value:
        """A vector of integer constants."""
        return Value(self, type_, "<" + ", ".join(f"{element(type_)} {c}" for c in constants) + ">")

    def gep(self, p: Value, offset: Value | float) -> Value:
        """p plus `offset` bytes."""
        o = self.const("i64", offset)
        return p if o.literal == 0 else self.op("ptr", f"getelementptr i8, {p}, {o}")

    def load(self, type_: str, p: Value, volatile: bool = False) -> Value:
        return self.op(type_, f"load {'volatile ' if volatile else ''}{type_}, {p}, align 1")

    def store(self, v: Value, p: Value) -> None:
        self.raw(f"store {v}, {p}, align 1")

    def splat(self, x: Value, n: int) -> Value:
        """x in every lane of a vector of n."""
        t = vec(n, x.type)
        one = self.op(t, f"insertelement {t} poison, {x}, i32 0")
        return self.op(t, f"shufflevector {one}, {t} poison, <{n} x i32> zeroinitializer")

    def shuffle(self, a: Value, b: Value, index: Sequence[int]) -> Value:
        """Lanes of a (0..n-1) and b (n..2n-1) by constant index."""
        picks = ", ".join(f"i32 {i}" for i in index)
        return self.op(vec(len(index), element(a.type)), f"shufflevector {a}, {b}, <{len(index)} x i32> <{picks}>")

    def insert(self, v: Value, x: Value, lane: int) -> Value:
        return self.op(v.type, f"insertelement {v}, {x}, i32 {lane}")

    def extract(self, v: Value, lane: int) -> Value:
        return self.op(element(v.type), f"extractelement {v}, i32 {lane}")

    def call(self, ret: str, name: str, *args: Value) -> Value:
        """Call by name; declares what the module does not define (intrinsics, external functions)."""
        if not any(f.name == name for f in self.module.functions):
            self.module.declarations.add(f"declare {ret} @{name}({', '.join(a.type for a in args)})")
        text = f"call {ret} @{name}({', '.join(map(str, args))})"
        if ret == "void":
            self.raw(text)
            return self.const("i64", 0)
        return self.op(ret, text)

    def intrinsic(self, base: str, *args: Value | float) -> Value:
        """`llvm.base` overloaded on (and returning) the first argument's type."""
        first = args[0]
        assert isinstance(first, Value)
        return self.call(first.type, f"llvm.{base}.{mangle(first.type)}", *[self.const(first.type, a) for a in args])

    def loop(
        self, lo: Value | int, hi: Value | int, step: Value | int, init: Sequence[Value], body: Body
    ) -> list[Value]:
        """for i in range(lo, hi, step), signed: body(i, *carried) -> next carried values. Any trip count, also zero.
        Returns the carried values after the last iteration."""
        start, end, by = (self.const("i64", x) for x in (lo, hi, step))
        first = start.compare("slt", end)

        def turn(*state: Value) -> tuple[Value, Sequence[Value]]:
            carried = body(*state) or ()
            after = self.op("i64", f"add nsw {state[0]}, {by.name}")
            return after.compare("slt", end), [after, *carried]

        return self._rotated(first, [start, *init], turn)[1:]

    def while_(
        self, first: Value, init: Sequence[Value], body: Callable[..., tuple[Value, Sequence[Value]]]
    ) -> list[Value]:
        """If `first`: do body(*carried) -> (go on, next carried values) while it says so. Returns them."""
        return self._rotated(first, init, body)

    def _rotated(
        self, first: Value, init: Sequence[Value], body: Callable[..., tuple[Value, Sequence[Value]]]
    ) -> list[Value]:
        self.count += 1
        name, before = f"L{self.count}", self.label
        self.raw(f"br {first}, label %{name}, label %{name}x")
        self._block(name)
        phis = [Value(self, v.type, f"%{name}p{i}") for i, v in enumerate(init)]
        at = len(self.lines)
        again, out = body(*phis)
        self.raw(f"br {again}, label %{name}, label %{name}x")
        latch = self.label
        self.lines[at:at] = [
            f"  {p.name} = phi {p.type} [ {v.name}, %{before} ], [ {o.name}, %{latch} ]"
            for p, v, o in zip(phis, init, out, strict=True)
        ]
        self._block(f"{name}x")
        return [
            self.op(v.type, f"phi {v.type} [ {v.name}, %{before} ], [ {o.name}, %{latch} ]")
            for v, o in zip(init, out, strict=True)
        ]

    def if_(self, condition: Value, then: Body, otherwise: Sequence[Value] | Body = ()) -> list[Value]:
        """Run `then()` when the condition holds; returns its values, or those of `otherwise` (values or a function)."""
        self.count += 1
        name, before = f"I{self.count}", self.label
        target = f"{name}e" if callable(otherwise) else f"{name}x"
        self.raw(f"br {condition}, label %{name}, label %{target}")
        self._block(name)
        yes, end = then() or (), self.label
        self.raw(f"br label %{name}x")
        no: Sequence[Value]
        if callable(otherwise):
            self._block(target)
            no = otherwise() or ()
            before = self.label
            self.raw(f"br label %{name}x")
        else:
            no = otherwise
        self._block(f"{name}x")
        return [
            self.op(a.type, f"phi {a.type} [ {a.name}, %{end} ], [ {b.name}, %{before} ]")
            for a, b in zip(yes, no, strict=True)
        ]

    def block(self, name: str) -> None:
        """Go on in a block of this name."""
        self.raw(f"br label %{name}")
        self._block(name)

    def _block(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.label = name

    def __str__(self) -> str:
        return "\n".join([self.head, *self.lines, "}"])


def mangle(type_: str) -> str:
    """The suffix of an overloaded intrinsic's name for a type."""
    e = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(element(type_), element(type_))
    return f"v{width(type_)}{e}" if type_[0] == "<" else e


class Module:
    """Functions and the declarations that they need; `str` gives the text that LLVM parses."""

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self.declarations: set[str] = set()  # and globals

    def __str__(self) -> str:
        return "\n".join([*sorted(self.declarations), *map(str, self.functions), ""])
