"""Arithmetic, element by element, with numpy's broadcasting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.core import NO_ATTRS
from d1c.ir.types import Type
from d1c.ops.graph.family import (
    binary_case,
    broadcast_infer,
    elementwise,
    integer_case,
    tensors,
    unary_case,
)
from d1c.target import numerics
from d1c.target.kernel import COMPUTE_TYPE
from d1c.target.remainder import fmod, fmod64


@dataclass(frozen=True, slots=True)
class ModAttrs:
    """`fmod`: the sign of the dividend, as C; otherwise that of the divisor."""

    fmod: bool = False


def _mod(b: Any, attrs: ModAttrs, x: Any, y: Any) -> Any:
    if (kind := b.type_of(x)) in ("f32", "f64"):
        r = fmod(b, x, y) if kind == "f32" else fmod64(b, x, y)
        if attrs.fmod:
            return r
        size = 32 if kind == "f32" else 64
        sign = b.bits(b.and_(b.bits(y, f"i{size}"), -(2 ** (size - 1))), kind)
        wrong_sign = b.ne(b.lt(r, 0.0), b.lt(y, 0.0))
        return b.select(b.eq(r, 0.0), sign, b.select(wrong_sign, b.add(r, y), r))
    r = b.rem(x, y)
    if attrs.fmod:
        return r
    wrong_sign = b.and_(b.ne(r, 0), b.lt(b.xor(r, y), 0))
    return b.select(wrong_sign, b.add(r, y), r)


def _sign(b: Any, attrs: Any, x: Any) -> Any:
    return b.select(b.lt(0, x), 1, b.select(b.lt(x, 0), -1, x))


def _int_infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    if any(t.dtype.kind not in ("int", "uint") for t in tensors(types, 2)):
        raise ValueError("takes integers")
    return broadcast_infer(2)(types, attrs)


def _mod_infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    if any(COMPUTE_TYPE.get(t.dtype.name) not in ("i32", "i64", "f32", "f64") for t in tensors(types, 2)):
        raise ValueError("takes integers or floats")
    return broadcast_infer(2)(types, attrs)


def _int_pow(b: Any, attrs: Any, x: Any, y: Any) -> Any:
    """Square and multiply over six bits of the exponent, exact modulo 2^bits for exponents below 64. Beyond, powers
    of even numbers are 0, those of 1 and -1 need the last bit only, and those of other odd numbers mean nothing."""
    power, square = b.const(1, b.type_of(x)), x
    for i in range(6):
        power = b.select(b.eq(b.and_(b.shr(y, i), 1), 1), b.mul(power, square), power)
        if i < 5:
            square = b.mul(square, square)
    none = b.const(0, b.type_of(x))
    power = b.select(b.and_(b.lt(63, y), b.eq(b.and_(x, 1), 0)), none, power)
    unit = b.or_(b.eq(x, 1), b.eq(x, -1))
    return b.select(b.and_(b.lt(y, 0), b.eq(unit, b.const(0, "mask"))), none, power)


def _pow(b: Any, attrs: Any, x: Any, y: Any) -> Any:
    return numerics.pow(b, x, y)


def _positive_power(rng: np.random.Generator) -> Any:
    x, y = rng.uniform(0.1, 4, (3, 5)).astype(np.float32), rng.uniform(-2, 3, (5,)).astype(np.float32)
    return NO_ATTRS, [x, y], np.power(x, y)


elementwise("graph.add", lambda b, a, x, y: b.add(x, y), 2, onnx="Add", doc="Sum.",
            cases=(binary_case(np.add), integer_case(np.add, -99, 99)))  # fmt: skip
elementwise("graph.sub", lambda b, a, x, y: b.sub(x, y), 2, onnx="Sub", doc="Difference.",
            cases=(binary_case(np.subtract), integer_case(np.subtract, -99, 99)))  # fmt: skip
elementwise("graph.mul", lambda b, a, x, y: b.mul(x, y), 2, onnx="Mul", doc="Product.",
            cases=(binary_case(np.multiply), integer_case(np.multiply, -99, 99)))  # fmt: skip
elementwise("graph.div", lambda b, a, x, y: b.div(x, y), 2, onnx="Div",
            doc="Quotient, correctly rounded; of integers truncated towards zero.",
            cases=(binary_case(np.divide), integer_case(np.floor_divide, 1, 99)))  # fmt: skip
elementwise("graph.mod", _mod, 2, attrs=ModAttrs, infer=_mod_infer,
            doc="Remainder: exact, but results below 2^-126 are 0.",
            cases=(lambda rng: _mod_case(rng, False), lambda rng: _mod_case(rng, True),
                   lambda rng: _float_mod_case(rng, False), lambda rng: _float_mod_case(rng, True)))  # fmt: skip
elementwise("graph.pow", _pow, 2, onnx="Pow", floats=True, doc="Power; a negative base needs an integral exponent.",
            cases=(_positive_power,))  # fmt: skip
elementwise("graph.int_pow", _int_pow, 2, infer=_int_infer,
            doc="Power of integers, modulo 2^bits; 0 for a negative exponent unless the base is 1 or -1.",
            cases=(lambda rng: _int_pow_case(rng),))  # fmt: skip
elementwise("graph.max", lambda b, a, x, y: b.max(x, y), 2, doc="Larger of two; NaN wins.",
            cases=(binary_case(np.maximum), integer_case(np.maximum, -9, 9)))  # fmt: skip
elementwise("graph.min", lambda b, a, x, y: b.min(x, y), 2, doc="Smaller of two; NaN wins.",
            cases=(binary_case(np.minimum), integer_case(np.minimum, -9, 9)))  # fmt: skip
elementwise("graph.neg", lambda b, a, x: b.neg(x), 1, onnx="Neg", doc="Negation.",
            cases=(unary_case(np.negative), integer_case(np.negative, -9, 9, 1)))  # fmt: skip
elementwise("graph.abs", lambda b, a, x: b.abs(x), 1, onnx="Abs", doc="Absolute value.",
            cases=(unary_case(np.abs), integer_case(np.abs, -9, 9, 1)))  # fmt: skip
elementwise("graph.sign", _sign, 1, onnx="Sign", doc="-1, 0 or 1; a NaN stays.",
            cases=(unary_case(np.sign), integer_case(np.sign, -3, 3, 1)))  # fmt: skip
elementwise("graph.sqrt", lambda b, a, x: b.sqrt(x), 1, onnx="Sqrt", floats=True, doc="Square root, correctly rounded.",
            cases=(unary_case(np.sqrt, 0, 9),))  # fmt: skip
elementwise("graph.reciprocal", lambda b, a, x: b.div(1.0, x), 1, onnx="Reciprocal",
            floats=True, doc="1 / x.",
            cases=(unary_case(np.reciprocal, 0.1, 9),))  # fmt: skip
elementwise("graph.floor", lambda b, a, x: b.floor(x), 1, onnx="Floor", floats=True, doc="Largest integer <= x.",
            cases=(unary_case(np.floor),))  # fmt: skip
elementwise("graph.ceil", lambda b, a, x: b.ceil(x), 1, onnx="Ceil", floats=True, doc="Smallest integer >= x.",
            cases=(unary_case(np.ceil),))  # fmt: skip
elementwise("graph.round", lambda b, a, x: b.rint(x), 1, onnx="Round",
            floats=True, doc="Nearest integer, ties to even.",
            cases=(unary_case(np.rint),))  # fmt: skip


def _float_mod_case(rng: np.random.Generator, fmod: bool) -> Any:
    x = np.ldexp(rng.normal(size=(8, 9)), rng.integers(-20, 60, (8, 9))).astype(np.float32)
    y = np.ldexp(rng.normal(size=9), rng.integers(-20, 20, 9)).astype(np.float32)
    return ModAttrs(fmod), [x, y], (np.fmod if fmod else np.mod)(x, y)


def _int_pow_case(rng: np.random.Generator) -> Any:
    x, y = rng.integers(-9, 9, (6, 8)), np.array([0, 1, 2, 3, 7, 19, 40, 63])
    with np.errstate(over="ignore"):
        return NO_ATTRS, [x, y], x**y


def _mod_case(rng: np.random.Generator, fmod: bool) -> Any:
    x, y = rng.integers(-50, 50, (4, 5)), rng.integers(1, 9, (5,)) * rng.choice([-1, 1], 5)
    return ModAttrs(fmod), [x, y], (np.fmod if fmod else np.mod)(x, y)
