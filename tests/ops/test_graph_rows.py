"""Every graph row on its small cases, against numpy's or ONNX's meaning; inference, views and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from d1c.interp import eval_op, evaluate
from d1c.ir.core import NO_ATTRS, Block, Function, Module, Op, Value
from d1c.ir.types import TensorType
from d1c.ops.graph.activation import HardSigmoidAttrs, LeakyReluAttrs
from d1c.ops.graph.cast import CastAttrs
from d1c.ops.graph.contract import ConvAttrs, MatmulAttrs, pack_conv
from d1c.ops.graph.reduce import PoolAttrs, ReduceAttrs
from d1c.ops.graph.structural import ConstAttrs, FusedAttrs, fused_type
from d1c.ops.graph.views import ShapeAttrs, SliceAttrs, TransposeAttrs
from d1c.ops.opdef import OpDef, ViewMap, load_all, opdef
from d1c.target.dtypes import BF16, F32, I32, from_numpy
from d1c.target.numerics import round_to, widen

ROWS = {name: row for name, row in load_all().items() if name.startswith("graph.")}
CASES = [pytest.param(row, i, id=f"{name}-{i}") for name, row in ROWS.items() for i in range(len(row.cases))]


def tensor(x: np.ndarray) -> TensorType:
    return TensorType(x.shape, from_numpy(x.dtype))


def run(name: str, attrs: Any, *arrays: np.ndarray) -> np.ndarray:
    """One op on storage arrays; checks that the result has the inferred type."""
    operands = tuple(Value(tensor(x)) for x in arrays)
    (out,) = opdef(name).infer(tuple(v.type for v in operands), attrs)
    (y,) = eval_op(Op(name, operands, attrs, (Value(out),)), arrays, {})
    assert tensor(y) == out
    return y


@pytest.mark.parametrize(("row", "i"), CASES)
def test_case(row: OpDef, i: int) -> None:
    attrs, arrays, expected = row.cases[i](np.random.default_rng(i))
    y = run(row.name, attrs, *arrays)
    assert y.shape == expected.shape
    if y.dtype == np.float32:
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
    else:
        np.testing.assert_array_equal(y, expected)


def test_every_row_has_cases() -> None:
    bare = {name for name, row in ROWS.items() if not row.cases}
    assert bare == {"graph.attention", "graph.const", "graph.fused", "graph.loop", "graph.yield", "graph.return"}


ONE_TO_ONE = {rule.op_type: row for row in ROWS.values() for rule in row.onnx}


def onnx_reference(op_type: str, arrays: list[np.ndarray], opset: int = 22, **attrs: Any) -> np.ndarray:
    names = [f"x{i}" for i in range(len(arrays))]
    kinds = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in arrays]
    infos = [helper.make_tensor_value_info(n, k, x.shape) for n, k, x in zip(names, kinds, arrays, strict=True)]
    node = helper.make_node(op_type, names, ["y"], **attrs)
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize("op_type", sorted(ONE_TO_ONE))
def test_one_to_one_rows_are_the_onnx_op(op_type: str) -> None:
    row = ONE_TO_ONE[op_type]
    for case in row.cases:
        attrs, arrays, _ = case(np.random.default_rng(5))
        y = run(row.name, attrs, *arrays)
        np.testing.assert_allclose(y, onnx_reference(op_type, arrays), rtol=1e-5, atol=2e-5)


def test_activations_with_attributes_are_the_onnx_op() -> None:
    x = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32) * 4
    for name, attrs, op_type, kw in (
        ("graph.leaky_relu", LeakyReluAttrs(0.25), "LeakyRelu", {"alpha": 0.25}),
        ("graph.hard_sigmoid", HardSigmoidAttrs(0.3, 0.4), "HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ):
        np.testing.assert_allclose(run(name, attrs, x), onnx_reference(op_type, [x], **kw), rtol=1e-5, atol=1e-6)


def test_conv_and_pool_are_the_onnx_op() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 6, 9, 8)).astype(np.float32), rng.normal(size=(4, 3, 3, 2)).astype(np.float32)
    attrs = ConvAttrs((2, 1), (1, 0, 1, 2), (1, 2), 2, True)
    want = onnx_reference("Conv", [x, w], strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2], group=2)
    packed = pack_conv(w.transpose(2, 3, 1, 0), 2, False)
    y = run("graph.conv", attrs, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), packed)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), want, rtol=1e-5, atol=1e-5)
    pool = PoolAttrs((3, 2), (2, 2), (1, 1, 0, 0), (1, 1))
    want = onnx_reference("MaxPool", [x], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 0, 0])
    y = run("graph.max_pool", pool, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(y.transpose(0, 3, 1, 2), want)


def test_special_values() -> None:
    x = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-40], np.float32)
    zero = np.zeros(6, np.float32)
    larger = run("graph.max", NO_ATTRS, x, zero)
    assert larger.view(np.uint32).tolist() == [0x7FC00000, 0, 0, 0x7F800000, 0, x.view(np.uint32)[5]]
    assert run("graph.less", NO_ATTRS, zero, x).tolist() == [False, False, False, True, False, False]
    assert run("graph.add", NO_ATTRS, x, zero)[5] == 0  # subnormals count as zero in arithmetic
    ints = run("graph.cast", CastAttrs("i32"), np.array([np.nan, 1e20, -2.7], np.float32))
    assert ints.tolist() == [0, 2**31 - 1, -2]


def test_mixed_storage_of_floats() -> None:
    x = np.array([1.5, 2.0], np.float32)
    b = round_to(np.array([0.25, 3.0], np.float32), BF16)
    assert run("graph.add", NO_ATTRS, x, b).dtype == np.float32
    assert run("graph.add", NO_ATTRS, b, b).dtype == b.dtype
    with pytest.raises(ValueError, match="put a Cast"):
        run("graph.add", NO_ATTRS, x, np.array([1, 2]))


@pytest.mark.parametrize(
    ("name", "attrs", "shapes", "message"),
    [
        ("graph.add", NO_ATTRS, [(2, 3), (4,)], "do not broadcast"),
        ("graph.add", NO_ATTRS, [(2, 3)], "takes 2 operands, has 1"),
        ("graph.not", NO_ATTRS, [(2,)], "must be bool"),
        ("graph.matmul", MatmulAttrs(True), [(2, 5), (2, 4, 2)], "does not fit K = 5"),
        ("graph.conv", ConvAttrs((1,), (0, 0), (1,), 1, True), [(1, 2, 4), (3, 2, 5, 2)], "does not fit in 2"),
        ("graph.conv", ConvAttrs((1,), (0, 0), (1,), 2, True), [(1, 9, 4), (3, 2, 5, 2)], "in 2 groups"),
        ("graph.reshape", ShapeAttrs((7,)), [(2, 3)], "6 elements"),
        ("graph.slice", SliceAttrs((0,), (2,), (4,)), [(6,)], "leaves 0 .. 5"),
        ("graph.transpose", TransposeAttrs((0, 0)), [(6, 2)], "does not order"),
        ("graph.reduce_sum", ReduceAttrs((1, 0)), [(6, 2)], "must ascend"),
    ],
)
def test_inference_says_what_is_wrong(name: str, attrs: Any, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opdef(name).infer(tuple(TensorType(s, F32) for s in shapes), attrs)


def read_view(view: ViewMap, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The view's meaning in plain loops."""
    out = np.zeros(shape, x.dtype)
    for index in np.ndindex(*shape):
        at, d = [], 0
        for e in view.entries:
            linear = e.offset + sum(c * index[k] for k, c in e.terms)
            at += [int(i) for i in np.unravel_index(linear, x.shape[d : d + e.span])]
            d += e.span
        assert d == x.ndim
        out[index] = x[tuple(at)]
    return out


def random_shape(rng: np.random.Generator, factors: list[int]) -> tuple[int, ...]:
    shape: list[int] = []
    for f in rng.permutation(factors):
        if shape and rng.random() < 0.5:
            shape[-1] *= int(f)
        else:
            shape.append(int(f))
    for _ in range(int(rng.integers(0, 3))):
        shape.insert(int(rng.integers(0, len(shape) + 1)), 1)
    return tuple(shape)


@pytest.mark.parametrize("seed", range(25))
def test_chains_of_views(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.arange(120, dtype=np.int32).reshape(random_shape(rng, [2, 3, 4, 5]))
    for _ in range(6):
        name = rng.choice(["reshape", "transpose", "slice", "expand"])
        if name == "reshape":
            primes = [p for n in x.shape for p in _factors(n)]
            attrs: Any = ShapeAttrs(random_shape(rng, primes))
            want = x.reshape(attrs.shape)
        elif name == "transpose":
            attrs = TransposeAttrs(tuple(int(i) for i in rng.permutation(x.ndim)))
            want = x.transpose(attrs.perm)
        elif name == "slice":
            rows = []
            for n in x.shape:
                start, step = int(rng.integers(0, n)), int(rng.choice([-2, -1, 1, 1, 3]))
                rows.append((start, step, (n - 1 - start) // step + 1 if step > 0 else start // -step + 1))
            attrs = SliceAttrs(*(tuple(r[i] for r in rows) for i in range(3)))
            want = x[tuple(slice(s, s + n * k if s + n * k >= 0 else None, k) for s, k, n in rows)]
        else:
            small = x.size < 500
            attrs = ShapeAttrs((2, *(3 if n == 1 else n for n in x.shape)) if small else x.shape)
            want = np.broadcast_to(x, attrs.shape)
        y = run(f"graph.{name}", attrs, x)
        np.testing.assert_array_equal(y, want)
        view = opdef(f"graph.{name}").view
        assert view is not None
        entries = view((tensor(x),), attrs, (tensor(y),))
        assert entries is not None
        np.testing.assert_array_equal(read_view(entries, x, y.shape), want)
        x = np.ascontiguousarray(want)


def _factors(n: int) -> list[int]:
    out = []
    for p in (2, 3, 5):
        while n % p == 0:
            out.append(p)
            n //= p
    return out + ([n] if n > 1 else [])


def test_fused_group_rounds_once() -> None:
    rng = np.random.default_rng(3)
    x, w, bias = (round_to(rng.normal(size=s).astype(np.float32), BF16) for s in ((4, 6), (3, 5, 2), (5,)))
    args = tuple(Value(tensor(v)) for v in (x, w, bias))
    acc, summed, out = (Value(TensorType((4, 5), F32)) for _ in range(3))
    block = Block(args, (
        Op("graph.matmul", args[:2], MatmulAttrs(True), (acc,)), Op("graph.add", (acc, args[2]), NO_ATTRS, (summed,)),
        Op("graph.relu", (summed,), NO_ATTRS, (out,)), Op("graph.yield", (out,)),
    ))  # fmt: skip
    attrs = FusedAttrs("bf16")
    result = Value(fused_type(block, attrs), "y")
    outer = tuple(Value(v.type, n) for v, n in zip(args, ("x", "w", "b"), strict=True))
    fused = Op("graph.fused", outer, attrs, (result,), (block,))
    const = Op("graph.const", (), ConstAttrs("w"), (outer[1],))
    main = Block((outer[0], outer[2]), (const, fused, Op("graph.return", (result,))))
    module = Module("graph", (Function("main", main),), {"w": w}, {"outputs": ("y",)})
    dense = widen(x).astype(np.float64) @ widen(w).transpose(0, 2, 1).reshape(6, 5)
    want = np.maximum(dense.astype(np.float32) + widen(bias), 0)
    y = evaluate(module, {"x": x, "b": widen(bias)})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_allclose(widen(y), want, rtol=2**-8)
    with pytest.raises(ValueError, match="'b' is missing"):
        evaluate(module, {"x": x})


def test_integers_wrap_and_accumulate() -> None:
    x = np.array([[2**31 - 1, 1]], np.int32)
    assert run("graph.reduce_sum", ReduceAttrs((1,)), x).tolist() == [-(2**31)]
    packed = np.array([3, 5], np.int8).reshape(1, 1, 2)
    y = run("graph.matmul", MatmulAttrs(True), np.array([[100, 100]], np.int8), packed)
    assert tensor(y).dtype == I32 and y.tolist() == [[800]]


def _group(*names: str) -> Op:
    """graph.fused over f32 [2, 2] tensors: unary ops and matmuls in a chain."""
    t = TensorType((2, 2), F32)
    args = (Value(t), Value(t))
    ops, last = [], args[0]
    for name in names:
        out = Value(t)
        operands = (last, args[1]) if name == "graph.matmul" else (last,)
        ops.append(Op(name, operands, MatmulAttrs() if name == "graph.matmul" else NO_ATTRS, (out,)))
        last = out
    block = Block(args, (*ops, Op("graph.yield", (last,))))
    return Op("graph.fused", (Value(t), Value(t)), FusedAttrs("f32"), (Value(t),), (block,))


def test_fused_groups_have_one_anchor() -> None:
    check = opdef("graph.fused").facts["check"]
    check(_group("graph.matmul", "graph.relu"))
    for names, message in (
        (("graph.relu", "graph.matmul"), "only reductions may"),
        (("graph.matmul", "graph.relu", "graph.matmul"), "one anchor"),
        (("graph.copy",), "cannot be part"),
    ):
        with pytest.raises(ValueError, match=message):
            check(_group(*names))


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "floor", "pow", "hard_swish", "leaky_relu"])
def test_functions_of_reals_refuse_integers(name: str) -> None:
    row = opdef(f"graph.{name}")
    types = (TensorType((3,), I32),) * (2 if name == "pow" else 1)
    with pytest.raises(ValueError, match="takes floats, has i32"):
        row.infer(types, row.attrs())
