"""The ops of the fuzzer: per op a function that picks operands and attributes and appends a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.build import INTS, Build, F, Tensor
from tests.fuzz.oracle import Reject

Maker = Callable[[Build], Any]
OPS: dict[str, Maker] = {}
SOME = lambda t: t.array.size > 0  # noqa: E731
FINITE = lambda t: all(np.isfinite(v).all() for v in t.versions)  # noqa: E731
NO_NAN = lambda t: not any(np.isnan(v).any() for v in t.versions)  # noqa: E731
ULP, ELEMENTARY, SUM = 1.0, 12.0, 4.0
"""Errors in units of the last place; those of sums are relative to the terms' magnitudes."""


def op(*names: str) -> Callable[[Callable[[Build, str], Any]], Callable[[Build, str], Any]]:
    """Register a maker for these ops."""

    def add(maker: Callable[[Build, str], Any]) -> Callable[[Build, str], Any]:
        for name in names:
            OPS[name] = lambda b, name=name: maker(b, name)
        return maker

    return add


def tame(limit: float) -> Callable[[Tensor], bool]:
    """Finite and below the limit in every version."""
    return lambda t: all(np.isfinite(v).all() and np.abs(v.astype("f8")).max(initial=0) <= limit for v in t.versions)


# ---- elementwise -----------------------------------------------------------------------------------------------------


@op("Neg", "Abs", "Identity")
def exact_unary(b: Build, name: str) -> None:
    kinds = (*F, "i4", "i8", "i1", "i2") if name != "Identity" else (*F, *INTS, "b1")
    b.node(name, [b.operand(kinds)])


@op("Relu", "Sign", "Floor", "Ceil", "Round")
def stepwise(b: Build, name: str) -> None:
    b.node(name, [b.operand(F, where=NO_NAN)])


@op("Sqrt", "Reciprocal", "HardSwish", "HardSigmoid", "LeakyRelu", "ThresholdedRelu", "Softsign", "Shrink")
def arithmetic_unary(b: Build, name: str) -> None:
    attrs = {}
    if b.chance(0.5):
        attrs = {
            "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "LeakyRelu": {"alpha": 0.125},
            "ThresholdedRelu": {"alpha": 0.5}, "Shrink": {"lambd": 0.75, "bias": 0.25},
        }.get(name, {})  # fmt: skip
    x = b.operand(F, where=NO_NAN if name != "Sqrt" else SOME)
    if name == "HardSwish" and x.kind == "f8":
        raise Reject("onnxruntime's factor of 1/6 is f32's")
    _rough(x)
    b.node(name, [x], attrs, noise=3 * ULP)


@op(
    "Exp", "Log", "Sigmoid", "Tanh", "Erf", "Elu", "Selu", "Celu", "Softplus", "Mish", "Gelu", "Sinh", "Cosh",
    "Asinh", "Atan",
)  # fmt: skip
def elementary(b: Build, name: str) -> None:
    attrs = {}
    if name == "Gelu" and b.chance(0.5):
        attrs = {"approximate": "tanh"}
    if name in ("Elu", "Celu") and b.chance(0.5):
        attrs = {"alpha": 0.75}
    x = b.operand(F, where=NO_NAN if name not in ("Exp", "Tanh", "Log") else SOME)
    _rough(x)
    b.node(name, [x], attrs, noise=ELEMENTARY)


def _rough(x: Tensor) -> None:
    """Reject f64 values out of the range of f32, in which onnxruntime computes some of these ops."""
    if x.kind == "f8" and not tame(1e30)(x):
        raise Reject("f64 beyond f32")


@op("Sin", "Cos", "Tan")
def periodic(b: Build, name: str) -> None:
    b.node(name, [b.operand(F, where=tame(100))], noise=40 * ULP)


@op("Asin", "Acos", "Atanh", "Acosh")
def bounded(b: Build, name: str) -> None:
    x = b.operand(F, where=NO_NAN, style="unit" if name != "Acosh" else "positive")
    b.node(name, [x], noise=2 * ELEMENTARY)


@op("IsNaN", "IsInf")
def tests(b: Build, name: str) -> None:
    b.node(name, [b.operand(F)])


@op("Not")
def negation(b: Build, name: str) -> None:
    b.node(name, [b.operand(("b1",))])


@op("BitwiseNot")
def bit_negation(b: Build, name: str) -> None:
    b.node(name, [b.operand(INTS)])


@op("Add", "Sub", "Mul")
def arithmetic(b: Build, name: str) -> None:
    x = b.operand((*F, *F, *INTS))
    pair = [x, b.partner(x)]
    b.rng.shuffle(pair)
    b.node(name, pair, noise=ULP)


@op("Div")
def division(b: Build, name: str) -> None:
    x = b.operand((*F, *F, "i4", "i8", "u1", "i1"))
    y = b.partner(x, style="positive")
    if y.array.dtype.kind != "f":
        _divides(x, y)
    b.node(name, [x, y], noise=ULP)


def _divides(x: Tensor, y: Tensor) -> None:
    """Reject divisions by 0 and of the least number by -1."""
    if any((v == 0).any() for v in y.versions):
        raise Reject("division by zero")
    if x.array.dtype.kind == "i" and any((v == np.iinfo(v.dtype).min).any() for v in x.versions):
        raise Reject("the quotient may overflow")


@op("Mod")
def modulo(b: Build, name: str) -> None:
    fmod = b.chance(0.5)
    x = b.operand(("f4", "f4", "f8") if fmod and b.chance(0.5) else ("i4", "i8", "u1", "i1", "u4"), where=tame(1e18))
    y = b.partner(x, style="positive")
    if not tame(1e18)(y):
        raise Reject("not finite")
    _divides(x, y)
    if x.array.dtype.kind == "f":
        fmod = True
        if np.abs(x.array).max(initial=0) > 1e4 * np.abs(y.array).min(initial=1e9):
            raise Reject("the quotient has more bits than the significand")
    b.node(name, [x, y], {"fmod": int(fmod)}, noise=2 * ULP)


@op("Pow")
def power(b: Build, name: str) -> None:
    if b.chance(0.8):
        x = b.operand(("f4", "f4", "f8"), style="positive")
        y = b.given(np.asarray(b.choice((2, 3, 0.5, -1, 0, 1, -0.5)), x.kind)) if b.chance(0.5) else b.partner(x)
        b.node(name, [x, y], noise=ELEMENTARY)
    else:
        x = b.operand(("i4", "i8"), where=tame(9))
        b.node(name, [x, b.given(np.asarray(b.choice((0, 1, 2, 3)), x.kind))])


@op("Max", "Min")
def extremes(b: Build, name: str) -> None:
    x = b.operand((*F, "i4", "i8", "u4", "u8"), where=NO_NAN)
    others = [b.partner(x) for _ in range(b.choice((0, 1, 1, 1, 2)))]
    if not all(NO_NAN(t) for t in others):
        raise Reject("NaN")
    b.node(name, [x, *others])


@op("Sum", "Mean")
def variadic(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "f8"))
    b.node(name, [x, *(b.partner(x) for _ in range(b.choice((0, 1, 1, 2))))], noise=SUM)


@op("And", "Or", "Xor")
def logic(b: Build, name: str) -> None:
    x = b.operand(("b1",))
    b.node(name, [x, b.partner(x)])


@op("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def comparison(b: Build, name: str) -> None:
    x = b.operand((*F, *INTS, *(("b1",) if name == "Equal" else ())))
    b.node(name, [x, b.partner(x)])


@op("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(b: Build, name: str) -> None:
    x = b.operand(INTS)
    b.node(name, [x, b.partner(x)])


@op("BitShift")
def shift(b: Build, name: str) -> None:
    x = b.operand(("u1", "u4", "u8", "u2"))
    y = b.partner(x, style="positive")
    if (y.array >= 8 * y.array.itemsize).any():
        raise Reject("more than the width")
    b.node(name, [x, y], {"direction": b.choice(("LEFT", "RIGHT"))})


@op("PRelu")
def prelu(b: Build, name: str) -> None:
    x = b.operand(F, where=NO_NAN)
    slope = b.fresh(x.kind, [d if b.chance(0.6) else 1 for d in x.shape][b.rng.randint(0, x.rank) :], "tame")
    b.node(name, [x, slope], noise=ULP)


@op("Where")
def where(b: Build, name: str) -> None:
    x = b.operand((*F, *INTS, "b1"))
    b.node(name, [b.fresh("b1", b.broadcastable(x.shape)), x, b.partner(x)])


@op("Clip")
def clip(b: Build, name: str) -> None:
    x = b.operand((*F, "i4", "i8", "i1", "u1"), where=NO_NAN)
    low, high = sorted(b.data(x.kind, (2,), "tame").tolist())
    bounds = [b.given(np.asarray(v, x.kind)) if b.chance(0.75) else None for v in (low, high)]
    b.node(name, [x, *bounds])


@op("Cast")
def cast(b: Build, name: str) -> None:
    import onnx

    x = b.operand((*F, *INTS, "b1"))
    to = np.dtype(b.choice((*F, *INTS, "b1")))
    if x.array.dtype.kind == "f" and to.kind in "iu":
        top = min(float(np.iinfo(to).max), 2.0**31)
        for v in x.versions:
            wide = v.astype(np.float64)
            inside = np.isfinite(wide) & (wide < top) & (wide > max(float(np.iinfo(to).min), -(2.0**31)) - 0.5)
            if not inside.all():
                raise Reject("not representable")
    if to == np.float16 and not tame(3e4)(x):
        raise Reject("next to the limits of f16")
    b.node(name, [x], {"to": onnx.helper.np_dtype_to_tensor_dtype(to)}, noise=ULP if to.kind == "f" else 0)


# ---- reductions ------------------------------------------------------------------------------------------------------


def axes_of(b: Build, rank: int) -> list[int]:
    """Some axes, some counted from the end, in any order."""
    axes = [a - rank if b.chance(0.4) else a for a in b.some(range(rank), 1 if rank else 0)]
    b.rng.shuffle(axes)
    return axes


@op(
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
def reduction(b: Build, name: str) -> None:
    whole = ("i4", "i8") if name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1") else ()
    tests: Callable[[Tensor], bool] = (
        SOME if name not in ("ReduceMax", "ReduceMin", "ReduceLogSumExp") else lambda t: SOME(t) and NO_NAN(t)
    )
    x = b.operand(("f4", "f4", "f4", "f8", *whole), where=tests)
    if (x.kind[0] == "i" or name == "ReduceProd") and not tame(1e6)(x):
        raise Reject("may overflow: onnxruntime saturates integers, and products depend on their order")
    if x.kind[0] == "i" and name == "ReduceProd" and not all(_product(v) < 2**31 for v in x.versions):
        raise Reject("an overflow: onnxruntime saturates integers")
    if name == "ReduceLogSum" and any((v < 0).any() and (v > 0).any() for v in x.versions):
        raise Reject("the logarithm of what cancels is the order of the sum")
    attrs: dict[str, Any] = {"keepdims": int(b.chance(0.5))}
    axes = axes_of(b, x.rank)
    operand_since = 13 if name == "ReduceSum" else 18
    operands: list[Tensor | None] = [x]
    if b.opset >= operand_since:
        if b.chance(0.2):
            attrs["noop_with_empty_axes"] = int(b.chance(0.5))
            axes = [] if b.chance(0.5) else axes
        if axes or b.chance(0.3):
            operands.append(b.ints(axes))
    elif axes:
        attrs["axes"] = axes
    noise = {"ReduceMax": 0, "ReduceMin": 0, "ReduceProd": 40, "ReduceLogSum": 40, "ReduceLogSumExp": 40}.get(name, SUM)
    b.node(name, operands, attrs, noise=noise)


def _product(x: np.ndarray) -> float:
    """Of the magnitudes above 1: no partial product is larger."""
    return float(np.maximum(np.abs(x.astype(np.float64)), 1).prod())


@op("ArgMax", "ArgMin")
def arg(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "f8", "i4", "i8", "u1"), lambda r: r > 0, lambda t: SOME(t) and NO_NAN(t))
    attrs = {"axis": b.axis(x.rank), "keepdims": int(b.chance(0.5)), "select_last_index": int(b.chance(0.3))}
    b.node(name, [x], attrs)


@op("Softmax", "LogSoftmax", "Hardmax")
def softmax(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "f8", "f2"), lambda r: r > 0, lambda t: SOME(t) and FINITE(t))
    b.node(name, [x], {"axis": b.axis(x.rank)}, noise=0 if name == "Hardmax" else 40)


@op("CumSum")
def cumsum(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "i4", "i8", "f8"), lambda r: r > 0, SOME)
    axis = b.ints(b.axis(x.rank), b.choice(("i8", "i4")))  # type: ignore[arg-type]
    b.node(name, [x, axis], {"exclusive": int(b.chance(0.4)), "reverse": int(b.chance(0.4))}, noise=SUM)


@op("LayerNormalization", "RMSNormalization")
def layernorm(b: Build, name: str) -> None:
    x = b.operand(("f4",), lambda r: r > 0, lambda t: SOME(t) and tame(1e4)(t), style="tame")
    axis = b.axis(x.rank)
    inner = x.shape[axis % x.rank :]
    operands = [x, b.fresh("f4", inner, "tame")]
    if name == "LayerNormalization" and b.chance(0.6):
        operands.append(b.fresh("f4", inner, "tame"))
    b.node(name, operands, {"axis": axis, "epsilon": 1e-3}, noise=400)


@op("BatchNormalization", "InstanceNormalization")
def norm(b: Build, name: str) -> None:
    x = b.operand(("f4",), lambda r: r in (3, 4), lambda t: SOME(t) and tame(1e4)(t), "tame", b.shape(b.choice((3, 4))))
    c = (x.shape[1],)
    operands = [x, b.fresh("f4", c, "tame"), b.fresh("f4", c, "tame")]
    if name == "BatchNormalization":
        operands += [b.fresh("f4", c, "tame"), b.fresh("f4", c, "positive")]
    b.node(name, operands, {"epsilon": 1e-3}, noise=400)
