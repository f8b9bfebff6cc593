"""Integer semantics of every width against numpy, on both engines: u64 from 2^63 on, shifts, remainders, powers."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import d1c

from .conftest import build

INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def run(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], opset: int = 28) -> list[np.ndarray]:
    """The outputs of a model of these nodes. The engines must agree; types of no other compute type are left out."""
    program = d1c.compile(build(nodes, inputs, outputs, opset=opset), target="test", precision="f32")
    a = program.run(inputs, engine="numpy")
    if next(iter(inputs.values())).dtype not in (np.uint8, np.int16, np.uint16, np.int64):
        b = program.run(inputs, engine="jit")
        assert all(a[n].tobytes() == b[n].tobytes() for n in outputs)
    return [a[n] for n in outputs]


def edges(t: Any, rng: np.random.Generator, count: int = 24) -> np.ndarray:
    """Extremes, numbers around zero and around the middle of the range, and random bits."""
    info = np.iinfo(t)
    middle = (int(info.max) + 1) // 2
    chosen = [info.min, info.max, 0, 1, 2, 3, info.max - 1, middle, middle - 1, middle + 1]
    chosen += [-1, -2, -3] if info.min < 0 else []
    return np.concatenate(
        [np.array(chosen, t), rng.integers(info.min, info.max, count - len(chosen), t, endpoint=True)]
    )


@pytest.mark.parametrize("t", INTEGERS)
def test_order_quotients_and_extremes(t: Any, rng: np.random.Generator) -> None:
    x, y = edges(t, rng), rng.permutation(edges(t, rng))
    y[y == 0] = 7
    y[(y == -1) & (x == np.iinfo(t).min)] = 1  # numpy's quotient is undefined there
    binary = {
        "Less": x < y, "GreaterOrEqual": x >= y, "Max": np.maximum(x, y), "Min": np.minimum(x, y),
        "Mod": np.mod(x, y), "Add": x + y, "Mul": x * y, "Sub": x - y,
    }  # fmt: skip
    wide_x, wide_y = (v.astype(object) for v in (x, y))
    pairs = zip(wide_x, wide_y, strict=True)
    binary["Div"] = np.array([abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) for a, b in pairs], t)
    nodes = [helper.make_node(op, ["x", "y"], [op]) for op in binary]
    nodes += [helper.make_node("Mod", ["x", "y"], ["fmod"], fmod=1), helper.make_node("Abs", ["x"], ["Abs"])]
    nodes += [helper.make_node("Sign", ["x"], ["Sign"]), helper.make_node("Clip", ["x", "low", "high"], ["Clip"])]
    low, high = np.array(3, t), np.array(np.iinfo(t).max - 3, t)
    want = {**binary, "fmod": np.fmod(x, y), "Abs": np.abs(x), "Sign": np.sign(x), "Clip": np.clip(x, low, high)}
    got = run(nodes, {"x": x, "y": y, "low": low, "high": high}, list(want))
    for (op, expected), value in zip(want.items(), got, strict=True):
        assert value.dtype == expected.dtype, op
        np.testing.assert_array_equal(value, expected, op)


@pytest.mark.parametrize("t", [np.int8, np.uint16, np.uint64])
def test_reductions_to_extremes(t: Any, rng: np.random.Generator) -> None:
    x = edges(t, rng).reshape(4, 6)
    nodes = [helper.make_node(f"Reduce{k}", ["x", "axes"], [k], keepdims=0) for k in ("Max", "Min", "Sum")]
    nodes.insert(0, helper.make_node("Constant", [], ["axes"], value_ints=[1]))
    got = run(nodes, {"x": x}, ["Max", "Min", "Sum"])
    for value, want in zip(got, (x.max(1), x.min(1), x.sum(1, dtype=t)), strict=True):
        np.testing.assert_array_equal(value, want)


@pytest.mark.parametrize("t", INTEGERS)
def test_bits_and_shifts(t: Any, rng: np.random.Generator) -> None:
    x, y = edges(t, rng), rng.permutation(edges(t, rng))
    bits = np.iinfo(t).bits
    n = np.array([0, 1, 2, bits - 2, bits - 1, bits, bits + 1, 100] * 3).astype(t)
    wide = [(int(v), int(k)) for v, k in zip(x, n, strict=True)]
    inside = [0 <= k < bits for _, k in wide]
    left = [(v << k) & (2**bits - 1) if ok else 0 for (v, k), ok in zip(wide, inside, strict=True)]
    right = [v >> k if ok else -(v < 0) for (v, k), ok in zip(wide, inside, strict=True)]
    want = {
        "BitwiseAnd": x & y, "BitwiseOr": x | y, "BitwiseXor": x ^ y, "BitwiseNot": ~x,
        "LEFT": np.array(left, f"u{bits // 8}").view(t), "RIGHT": np.array(right, t),
    }  # fmt: skip
    nodes = [helper.make_node(op, ["x", "y"][: 1 + (op != "BitwiseNot")], [op]) for op in list(want)[:4]]
    nodes += [helper.make_node("BitShift", ["x", "n"], [d], direction=d) for d in ("LEFT", "RIGHT")]
    got = run(nodes, {"x": x, "y": y, "n": n}, list(want))
    for (op, expected), value in zip(want.items(), got, strict=True):
        np.testing.assert_array_equal(value, expected, op)


@pytest.mark.parametrize("t", [np.float32, np.float16])
def test_remainders_of_floats(t: Any, rng: np.random.Generator) -> None:
    x = np.ldexp(rng.normal(size=200), rng.integers(-14, 15, 200)).astype(t)
    y = np.ldexp(rng.normal(size=200), rng.integers(-14, 15, 200)).astype(t)
    special = np.array([0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan], t)
    x, y = np.concatenate([x, np.repeat(special, 7)]), np.concatenate([y, np.tile(special, 7)])
    if t is np.float32:
        x, y = np.concatenate([x, [3e38, 1e30, -3e38]]).astype(t), np.concatenate([y, [1.7e-30, 3, 1.3e-30]]).astype(t)
    nodes = [helper.make_node("Mod", ["x", "y"], [n], fmod=int(n == "fmod")) for n in ("mod", "fmod")]
    mod, fmod = run(nodes, {"x": x, "y": y}, ["mod", "fmod"])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(fmod, np.fmod(x, y))
        np.testing.assert_array_equal(mod, np.mod(x, y))


def test_powers_of_mixed_types(rng: np.random.Generator) -> None:
    x, n = rng.integers(-5, 6, 32), rng.integers(0, 9, 32).astype(np.int32)
    roots = np.array([0.5, 2.0, 1 / 3, 3.0] * 8, np.float32)
    squares = np.array([4, 3, 27, 5, 49, -7, 1000, 0] * 4, np.int32)
    f = rng.uniform(0.5, 3, 32).astype(np.float32)
    nodes = [helper.make_node("Pow", list(p), ["".join(p)]) for p in (("x", "n"), ("s", "r"), ("f", "n"), ("n", "x"))]
    inputs = {"x": x, "n": n, "s": squares, "r": roots, "f": f}
    xn, sr, fn, nx = run(nodes, inputs, ["xn", "sr", "fn", "nx"])
    np.testing.assert_array_equal(xn, x ** n.astype(np.int64))
    np.testing.assert_array_equal(sr, [2, 9, 3, 125, 7, 49, 10, 0] * 4)
    np.testing.assert_allclose(fn, f**n, rtol=2e-6)
    negative = [1 if v == 1 else (-1) ** int(k) if v == -1 else 0 for v, k in zip(n, x, strict=True)]
    np.testing.assert_array_equal(nx, np.where(x >= 0, n.astype(np.int64) ** np.maximum(x, 0), negative))


@pytest.mark.parametrize("t", INTEGERS)
def test_conversion_to_floats(t: Any, rng: np.random.Generator) -> None:
    x = edges(t, rng)
    (y,) = run([helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)], {"x": x}, ["y"])
    np.testing.assert_array_equal(y, x.astype(np.float32))
