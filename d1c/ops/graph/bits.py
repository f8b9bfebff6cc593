"""Operations on the bits of integers, element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.core import NO_ATTRS
from d1c.ir.types import Type
from d1c.ops.graph.family import broadcast_infer, elementwise, integer_case, tensors
from d1c.ops.opdef import Infer
from d1c.target.dtypes import dtype


@dataclass(frozen=True, slots=True)
class ShiftAttrs:
    """`type`: the element type, whose width and sign decide."""

    type: str


def _infer(arity: int) -> Infer:
    def infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
        for t in tensors(types, arity):
            if t.dtype.kind not in ("int", "uint"):
                raise ValueError(f"takes integers, has {t.dtype}")
        return broadcast_infer(arity)(types, attrs)

    return infer


def _shift_infer(types: tuple[Type, ...], attrs: ShiftAttrs) -> tuple[Type, ...]:
    out = _infer(2)(types, attrs)
    if tensors(types, 2)[0].dtype.name != attrs.type:
        raise ValueError(f"type = {attrs.type!r} of operands of {tensors(types, 2)[0].dtype}")
    return out


def _shift(left: bool) -> Callable[..., Any]:
    def body(b: Any, attrs: ShiftAttrs, x: Any, n: Any) -> Any:
        """A count that is negative or at least the width leaves nothing but sign bits. u64 counts above 2^63 are
        negative here."""
        t = dtype(attrs.type)
        outside = b.or_(b.lt(n, 0), b.le(b.const(t.bits, b.type_of(n)), n))
        if left or t.kind == "uint":
            return b.select(outside, b.const(0, b.type_of(x)), b.shl(x, n) if left else b.shr(x, n))
        return b.select(outside, b.sar(x, 63 if b.type_of(x) == "i64" else 31), b.sar(x, n))

    return body


def _shift_case(left: bool, of: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        info = np.iinfo(of)
        x = rng.integers(info.min, info.max, (6, 10), of)
        n = np.array([0, 1, 2, 3, 7, 8, 9, 15, 31, 100]).astype(of)
        wide = [[int(v) for v in row] for row in x]
        want = [[v << int(k) if left else v >> int(k) for v, k in zip(row, n, strict=True)] for row in wide]
        low = np.array([[v & (2**info.bits - 1) for v in row] for row in want], np.dtype(f"u{info.bits // 8}"))
        return ShiftAttrs(f"{'i' if info.min < 0 else 'u'}{info.bits}"), [x, n], low.view(of)

    return case


def _bits_case(f: Callable[..., Any], of: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        info = np.iinfo(of)
        xs = [rng.integers(info.min, info.max, (4, 5), of) for _ in range(2)]
        return NO_ATTRS, xs, f(*xs)

    return case


elementwise("graph.bit_and", lambda b, a, x, y: b.and_(x, y), 2, onnx="BitwiseAnd", infer=_infer(2), doc="Bitwise and.",
            cases=(integer_case(np.bitwise_and, -99, 99), _bits_case(np.bitwise_and, np.uint64)))  # fmt: skip
elementwise("graph.bit_or", lambda b, a, x, y: b.or_(x, y), 2, onnx="BitwiseOr", infer=_infer(2), doc="Bitwise or.",
            cases=(integer_case(np.bitwise_or, -99, 99), _bits_case(np.bitwise_or, np.int8)))  # fmt: skip
elementwise("graph.bit_xor", lambda b, a, x, y: b.xor(x, y), 2, onnx="BitwiseXor", infer=_infer(2),
            doc="Bitwise exclusive or.",
            cases=(integer_case(np.bitwise_xor, -99, 99), _bits_case(np.bitwise_xor, np.uint16)))  # fmt: skip
elementwise("graph.bit_not", lambda b, a, x: b.xor(x, -1), 1, onnx="BitwiseNot", infer=_infer(1), doc="Bits turned.",
            cases=(integer_case(np.bitwise_not, -99, 99, 1),
                   integer_case(np.bitwise_not, 0, 99, 1, np.uint8)))  # fmt: skip
elementwise("graph.shift_left", _shift(True), 2, attrs=ShiftAttrs, infer=_shift_infer,
            doc="x 2^n; 0 for n outside 0..bits-1.",
            cases=(_shift_case(True, np.uint8), _shift_case(True, np.int32), _shift_case(True, np.uint64)))  # fmt: skip
elementwise("graph.shift_right", _shift(False), 2, attrs=ShiftAttrs, infer=_shift_infer,
            doc="Floor of x / 2^n; nothing but sign bits for n outside 0..bits-1.",
            cases=(_shift_case(False, np.uint8), _shift_case(False, np.int16), _shift_case(False, np.uint32),
                   _shift_case(False, np.int64), _shift_case(False, np.uint64)))  # fmt: skip
