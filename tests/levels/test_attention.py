"""Attention: its bits are N10's, its plans, engines and texts agree, and its scores are nowhere stored whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from d1c.analysis.attention import Calls
from d1c.analysis.layers import layers_of
from d1c.analysis.plans import Plan
from d1c.analysis.random_plans import random_plan
from d1c.emit.modules import from_modules, to_modules
from d1c.errors import DoesNotFit
from d1c.frontend.importer import import_onnx
from d1c.interp import eval_op, evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.text import parse
from d1c.ir.types import TensorType
from d1c.ir.verify import verify
from d1c.ops.graph.attention import AttentionAttrs, attention_type
from d1c.ops.graph.contract import pack
from d1c.passes import distribute, lower_tile
from d1c.pipeline import run_pipeline
from d1c.target.dtypes import BF16, F32, from_numpy
from d1c.target.machine import machine
from d1c.target.mesh import Group, Layout
from d1c.target.numerics import NumpyBuilder, exp, round_to, widen
from d1c.target.program import Call, every
from d1rt.launches import launches
from d1rt.loader import load
from d1rt.timing import layer_times
from tests.levels.nets import GRAPH
from tests.networks import Inputs, Net

ROOMY = replace(machine("test"), sram_bytes=1 << 20)


def network(
    tokens: int, heads: int, depth: int, mask: str = "", batch: int = 1, keys: int = 0
) -> tuple[onnx.ModelProto, Inputs]:
    """Self attention with projections; with `keys` other tokens are looked at. Masks: causal, padding (of the run)."""
    f, d = Net(tokens + heads), heads * depth
    inputs = {"x": f.data(batch, tokens, d)}
    if keys:
        inputs["z"] = f.data(batch, keys, d)

    def split(x: str) -> str:
        return f("Transpose", f("Reshape", x, f.ints(0, -1, heads, depth)), perm=[0, 2, 1, 3])

    q, k, v = (split(f.linear(x, d, d)) for x in ("x", *("zz" if keys else "xx")))
    s = f("Mul", f("MatMul", q, f("Transpose", k, perm=[0, 1, 3, 2])), f.scalar(depth**-0.5))
    if mask == "causal":
        s = f("Add", s, f.const(np.where(np.tri(tokens, dtype=bool), 0, -np.inf).astype(np.float32)))
    elif mask == "padding":
        inputs["seen"] = (
            np.arange(keys or tokens)[None, None, None] < np.array([5, keys or tokens])[:, None, None, None]
        )
        s = f("Where", "seen", s, f.scalar(-1e9))
    o = f("Transpose", f("MatMul", f("Softmax", s, axis=-1), v), perm=[0, 2, 1, 3])
    return f.model(inputs, f.linear(f("Reshape", o, f.ints(0, 0, d)), d, d))


NETWORKS: dict[str, tuple[int, int, int, str, int, int]] = {
    "one chunk": (21, 2, 6, "", 2, 0),
    "causal": (136, 1, 4, "causal", 1, 0),
    "odd": (9, 3, 5, "", 1, 261),
    "padding": (8, 2, 4, "padding", 2, 131),
    "cut": (9, 3, 4, "", 1, 512),
    "cut in three": (8, 1, 5, "", 2, 384),
}


@cache
def graph_of(name: str, policy: str) -> tuple[Module, Inputs]:
    proto, inputs = network(*NETWORKS[name])
    module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": policy}).module
    assert [op.name for op in module.function().block.ops].count("graph.attention") == 1
    return module, inputs


# ---- the bits -------------------------------------------------------------------------------------------------------


def by_the_contract(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """N10 row by row for one head: q [M, D], k [N, D], v [N, V] of one storage type, D at most 127."""
    b = NumpyBuilder()
    f, one = np.float32, from_numpy(v.dtype)
    pair = 2 if one == BF16 else 1

    def dot(x: np.ndarray, y: np.ndarray) -> np.float32:
        """Pairs, the odd one first; products of bf16 and their sums with f32 are exact in f64 before rounding."""
        acc = f(0)
        for i in range(0, len(x), pair):
            for j in reversed(range(i, min(i + pair, len(x)))):
                if pair == 2:
                    acc = f(np.float64(x[j]) * np.float64(y[j]) + np.float64(acc))
                else:
                    acc = f(b.fma(*(np.array(z, f) for z in (x[j], y[j], acc))))
        return acc

    def lanes(x: np.ndarray) -> np.float32:
        """N7: slices of 64 of a whole chunk (of all that is shorter than two), 16 lanes each, an aligned tree."""
        length = 64 if len(x) == 128 else -(-len(x) // 16) * 16
        parts = []
        for s in range(0, len(x), length):
            part = x[s : s + length]
            sums = [f(-0.0)] * min(16, len(part))
            for i, value in enumerate(part):
                sums[i % 16] = f(sums[i % 16] + value)
            while len(sums) > 1:
                sums = [f(sums[i] + sums[i + 1]) if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)]
            parts.append(sums[0])
        return f(parts[0] + parts[1]) if len(parts) == 2 else parts[0]

    qs, ks, vs = (widen(x) for x in (q, k, v))
    out = np.zeros((len(q), v.shape[1]), f)
    for row, x in enumerate(qs):
        level: list[tuple[np.float32, np.float32, np.ndarray]] = []
        for lo in range(0, len(ks), 128):
            s = np.array([f(dot(x, y) * f(scale)) for y in ks[lo : lo + 128]])
            m = s.max()
            p = exp(b, s - m) if m > -np.inf else np.zeros_like(s)
            kept = widen(round_to(p, one))
            level.append((m, lanes(p), np.array([dot(kept, c) for c in vs[lo : lo + 128].T])))
        while len(level) > 1:
            above: list[tuple[np.float32, np.float32, np.ndarray]] = []
            for i in range(0, len(level), 2):
                if i + 1 == len(level):
                    above.append(level[i])
                    continue
                (m1, l1, o1), (m2, l2, o2) = level[i], level[i + 1]
                m = max(m1, m2)
                s1, s2 = (exp(b, np.array(n - m, f)) if n > -np.inf else f(0) for n in (m1, m2))
                above.append((m, f(f(l1 * s1) + f(l2 * s2)), (o1 * s1).astype(f) + (o2 * s2).astype(f)))
            level = above
        out[row] = level[0][2] / level[0][1]
    return out


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """The op's own meaning."""
    arrays = [q, k, pack(v, v.dtype == BF16.numpy), np.array(scale, np.float32)]
    operands = tuple(Value(TensorType(x.shape, from_numpy(x.dtype))) for x in arrays)
    attrs = AttentionAttrs("f32", (0, 1), True)
    acc, by = Value(TensorType((len(q), len(k)), F32)), Value(operands[3].type)
    scaled = Value(acc.type)
    region = Block((acc, by), (Op("graph.mul", (acc, by), results=(scaled,)), Op("graph.yield", (scaled,))))
    made = Value(attention_type(tuple(v.type for v in operands), attrs))
    return eval_op(Op("graph.attention", operands, attrs, (made,), (region,)), arrays, {})[0]


@pytest.mark.parametrize("storage", [F32, BF16], ids=str)
@pytest.mark.parametrize(("keys", "depth"), [(5, 6), (128, 5), (129, 8), (330, 4), (517, 2)])
def test_the_op_means_what_the_contract_says(storage: object, keys: int, depth: int) -> None:
    rng = np.random.default_rng(keys)
    q, k, v = (round_to(rng.normal(size=s).astype(np.float32), storage) for s in ((2, depth), (keys, depth), (keys, 2)))  # type: ignore[arg-type]
    assert attend(q, k, v, 0.7).tobytes() == by_the_contract(q, k, v, 0.7).tobytes()


def test_masked_chunks_count_nothing_and_rows_without_keys_are_nan() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((2, 4), (300, 4), (300, 3)))
    q[:, :] = 1.0
    k[:130] = -np.inf  # scores of -inf in the whole first chunk and in a part of the second
    got = attend(q, k, v, 1.0)
    s = q @ k[130:].T
    p = np.exp(s - s.max(axis=1, keepdims=True))
    np.testing.assert_allclose(got, p @ v[130:] / p.sum(axis=1, keepdims=True), rtol=2e-6)
    k[:] = -np.inf
    assert np.isnan(attend(q, k, v, 1.0)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_onnxruntime(name: str) -> None:
    proto, inputs = network(*NETWORKS[name])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, inputs)
    for policy, limit in (("f32", 1e-6), ("bf16", 0.02)):
        module, _ = graph_of(name, policy)
        (got,) = evaluate(module, inputs).values()
        assert np.abs(got - want).max() <= limit * np.abs(want).max()


# ---- plans and engines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["f32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_plan_and_no_engine_changes_a_bit(name: str, policy: str) -> None:
    module, inputs = graph_of(name, policy)
    want = evaluate(module, inputs)
    program = None
    for seed in (None, 0, 1):
        dist = distribute.run(module, ROOMY, seed=seed)
        verify(dist)
        assert str(parse(str(dist), constants=dist.constants)) == str(dist)
        got = evaluate_dist(dist, inputs)
        assert all(got[n].tobytes() == want[n].tobytes() for n in want), seed
        try:
            tile = lower_tile.run(dist, ROOMY)
        except DoesNotFit:  # a drawn plan may leave all to one core
            continue
        values, program = got, tile.program
    assert program is not None
    one, two = to_modules(tile)
    back = from_modules(parse(str(one), constants=one.constants), parse(str(two)))
    assert [str(m) for m in to_modules(back)] == [str(one), str(two)]
    with load(program) as loaded:
        for engine in ("jit", "numpy") if policy == "bf16" else ("jit",):
            result = loaded.run(inputs, engine=engine, shuffle=3, keep=True)
            assert all(result[n].tobytes() == want[n].tobytes() for n in want), engine
            for number, layer in enumerate(program.layers):
                assert loaded.layer_value(loaded.kept, number).tobytes() == values[str(layer["name"])].tobytes()


def test_it_is_one_layer_that_is_launched_once_and_uses_its_memory_again() -> None:
    """Four chunks at a time. Twice as many keys need no more memory but for keys, values and one more level of the
    tree."""
    sizes, one = [], machine("d1-node")
    for tokens in (1024, 2048):
        proto, _ = network(8, 1, 8, keys=tokens)
        module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": "bf16"}).module
        (layer,) = (x for x in layers_of(module).layers if x.nest.kind == "attention")
        program = lower_tile.run(distribute.run(module, one), one, chunks=1).program
        number = next(i for i, x in enumerate(program.layers) if x["name"] == layer.result.name)
        calls = [c for t in program.roles[0].threads for c in every(t) if isinstance(c, Call) and c.layer == number]
        pieces = tokens // 512
        assert len(calls) == (6 + 2 * 4) * pieces + 5 * (pieces - 1) - 1
        assert launches(program, one)[number] == one.launch_cycles
        own = {c.out for c in calls} - {program.layers[number]["buffer"]}
        sizes.append(sum(program.buffers[b].bytes for b in own))
    assert sizes[1] - sizes[0] < 0.15 * sizes[0]


@pytest.mark.parametrize(("name", "chunks", "slots"), [("cut", 1, 4), ("cut", 2, 2), ("cut in three", 1, 3)])
def test_keys_are_cut_over_cores(name: str, chunks: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each core makes the node of its own chunks; nodes are joined where the combining stage is."""
    module, inputs = graph_of(name, "bf16")
    want = evaluate(module, inputs)
    (nest,) = (x.nest for x in layers_of(module).layers if x.nest.kind == "attention")
    p, whole = nest.parallel, [Group() for _ in nest.dims]
    rows = next(i for i, d in enumerate(nest.dims) if d.name == "m")
    joins = [Group() for _ in range(p + 1)]
    whole[p], joins[rows] = Group(1, ("nr", "nc.0"), chunks), Group(1, ("nr", "dc"), 3)
    joins[p - 1] = Group(1, ("nc.0",), 3)  # columns too
    plan = Plan(Layout(tuple(whole), ("dc", "nc.1")), Layout(tuple(joins), ("nc.1",)))
    monkeypatch.setattr(
        distribute, "random_plan", lambda x, *a: plan if x.nest.kind == "attention" else random_plan(x, *a)
    )
    dist = distribute.run(module, ROOMY, seed=0)
    parts = [op for op in dist.function().block.ops if op.name == "dist.compute" and op.attrs.of]
    assert {op.attrs.of.endswith(".nodes") for op in parts} == {True, False}
    assert parts[0].attrs.nest.dims[0].extent == slots
    got = evaluate_dist(dist, inputs)
    assert all(got[n].tobytes() == want[n].tobytes() for n in want)
    program = lower_tile.run(dist, ROOMY, chunks=1).program
    times = {str(program.layers[r["layer"]]["name"]): r["compute_cycles"] for r in layer_times(program).layers}
    (layer,) = (x for x in layers_of(module).layers if x.nest.kind == "attention")
    first = np.array([[d.extent for d in nest.dims]])
    first[0, p] = chunks
    second = np.array([[*(d.extent for d in nest.dims[:p]), slots]])
    second[0, [rows, p - 1]] = 3
    nodes = next(op.result.name for op in reversed(parts) if op.attrs.of.endswith(".nodes"))
    fills = 49 if nest.fills[0] is not None else 0  # what odd windows hold outside their tensors
    assert Calls(layer).cycles(first, ROOMY)[0] + fills == pytest.approx(times[nodes], abs=1)
    assert Calls(layer, True).cycles(second, ROOMY)[0] == pytest.approx(times[layer.result.name], abs=1)


def test_the_price_of_a_plan_is_what_its_calls_take() -> None:
    one = machine("d1-node")
    module = run_pipeline(import_onnx(network(40, 2, 16, keys=260)[0]), GRAPH, options={"policy": "bf16"}).module
    (layer,) = (x for x in layers_of(module).layers if x.nest.kind == "attention")
    whole = np.array([[d.extent for d in layer.nest.dims]])
    program = lower_tile.run(distribute.run(module, one), one, chunks=1).program
    number = next(i for i, x in enumerate(program.layers) if x["name"] == layer.result.name)
    found = next(r for r in layer_times(program).layers if r["layer"] == number)
    assert Calls(layer).cycles(whole, one)[0] == pytest.approx(found["compute_cycles"], abs=1)
    cut = whole.copy()
    cut[0, layer.nest.parallel - 1] = 8
    assert math.isinf(Calls(layer).cycles(cut, one)[0])


# ---- what becomes one -----------------------------------------------------------------------------------------------

Write = Callable[[Net, str, str, str], str]


def plain(f: Net, q: str, k: str, v: str) -> str:
    return f("MatMul", f("Softmax", f("MatMul", q, k), axis=-1), v)


def capped(f: Net, q: str, k: str, v: str) -> str:
    s = f("Mul", f("Tanh", f("Div", f("MatMul", q, k), f.scalar(5.0))), f.scalar(5.0))
    return f("MatMul", f("Softmax", f("Where", f.const(np.tri(9, 12, dtype=bool)), s, f.scalar(-1e9))), v)


def outside(f: Net, q: str, k: str, v: str) -> str:
    s = f("MatMul", q, k)
    return f("Add", f("MatMul", f("Softmax", s), v), f("ReduceSum", s, f.ints(3)))


def weights_outside(f: Net, q: str, k: str, v: str) -> str:
    p = f("Softmax", f("MatMul", q, k))
    return f("Add", f("MatMul", p, v), f("ReduceSum", p, f.ints(3)))


def other_axis(f: Net, q: str, k: str, v: str) -> str:
    return f("MatMul", f("Softmax", f("MatMul", q, k), axis=2), v)


def few_rows(f: Net, q: str, k: str, v: str) -> str:
    return plain(f, f("Slice", q, f.ints(0), f.ints(7), f.ints(2)), k, v)


@pytest.mark.parametrize(
    ("write", "forms"),
    [(plain, True), (capped, True), (outside, False), (weights_outside, False), (other_axis, False), (few_rows, False)],
)
def test_what_becomes_attention(write: Write, forms: bool) -> None:
    f = Net(7)
    inputs = {"q": f.data(2, 3, 9, 4), "k": f.data(1, 3, 4, 12), "v": f.data(3, 12, 5)}
    proto, _ = f.model(inputs, write(f, "q", "k", "v"))
    module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": "f32"}).module
    assert ("graph.attention" in {op.name for op in module.function().block.ops}) == forms
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,), (want,) = evaluate(module, inputs).values(), session.run(None, inputs)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
