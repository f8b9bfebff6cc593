"""Sums, products and extremes that are cut over cores have the graph's bits: any type, any plan, both engines."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest

import d1rt
from d1c.analysis.layers import layers_of
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Module
from d1c.ir.text import parse
from d1c.passes import distribute, lower_tile
from d1c.pipeline import run_pipeline
from d1c.target.machine import machine
from tests.levels.nets import GRAPH
from tests.networks import Inputs, Net

TARGET = replace(machine("test"), sram_bytes=1 << 20)  # random plans take much
SEEDS = range(4)


def _floats(rng: np.random.Generator, shape: tuple[int, ...], kind: type[np.floating] = np.float32) -> np.ndarray:
    """Wide ranges, zeros of both signs, subnormals; every 50th row has an infinity, another one a NaN."""
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 20, shape)
    x = np.where(rng.random(shape) < 0.05, rng.choice([0.0, -0.0, 1e-40, -1e-40], shape), x).astype(kind)
    flat = x.reshape(-1)
    flat[rng.integers(0, flat.size, 3)] = [np.inf, -np.inf, np.nan]
    return x


def _sums() -> tuple[onnx.ModelProto, Inputs]:
    """Lanes or not, one reduced dim or several, in front, in the middle, at the end; extents that nothing divides."""
    f = Net(1)
    y = [
        f("ReduceSum", "y", f.ints(1), keepdims=0),
        f("ReduceMean", "y", f.ints(1)),
        f("ReduceSum", "x", f.ints(0), keepdims=0),
        f("ReduceMean", "x", f.ints(0, 1), keepdims=0),
        f("ReduceSum", "x", f.ints(0, 2)),
        f("ReduceSum", "x", f.ints(0, 1, 2)),
        f("ReduceProd", f("Add", f("Mul", "y", f.scalar(1e-3)), f.scalar(1.0)), f.ints(1), keepdims=0),
        f("ReduceProd", f("Add", f("Mul", "y", f.scalar(1e-3)), f.scalar(1.0)), f.ints(0), keepdims=0),
    ]
    return f.model({"x": _floats(f.rng, (130, 3, 51)), "y": f.data(129, 150)}, *y)


def _terms() -> tuple[onnx.ModelProto, Inputs]:
    """Terms in front of the sum, of one operand or of several, and more behind it than a division."""
    f = Net(2)
    mean = f("ReduceMean", "x", f.ints(1))
    d = f("Sub", "x", mean)
    var = f("ReduceMean", f("Mul", d, d), f.ints(1))
    y = f("Div", d, f("Sqrt", f("Add", var, f.scalar(1e-5))))
    most = [f("ReduceLogSumExp", "x", f.ints(1)), f("ReduceL1", "x", f.ints(0)), f("Softmax", "x", axis=1)]
    gate = f("Sigmoid", f("Mul", f("ReduceSum", f("Mul", "x", "y"), f.ints(1)), f.random(129, 1)))
    return f.model({"x": f.data(129, 263), "y": f.data(1, 263)}, y, *most, gate)


def _extremes() -> tuple[onnx.ModelProto, Inputs]:
    """NaN wins; the order of max and min is free, that of zeros is not."""
    f = Net(3)
    y = [f(op, "x", f.ints(a), keepdims=0) for op in ("ReduceMax", "ReduceMin") for a in (0, 1)]
    x = _floats(f.rng, (131, 270))
    x[:, 7], x[11] = -0.0, np.nan
    return f.model({"x": x}, *y)


def _types() -> tuple[onnx.ModelProto, Inputs]:
    """Integers that wrap, doubles, truth values."""
    f = Net(4)
    rng, y = f.rng, list[str]()
    data: Inputs = {"b": rng.random((129, 197)) < 0.99, "d": _floats(rng, (129, 197), np.float64)}
    for name, kind in (("i", np.int32), ("l", np.int64), ("u", np.uint64), ("s", np.int8), ("v", np.uint32)):
        data[name] = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (129, 197), kind, endpoint=True)
    for axis in (0, 1):
        y += [f(op, n, f.ints(axis), keepdims=0) for n in "dilu" for op in ("ReduceSum", "ReduceProd", "ReduceMax")]
        y += [f(op, n, f.ints(axis)) for n in "bs" for op in ("ReduceMax", "ReduceMin")]
        y += [f(op, "v", f.ints(axis)) for op in ("ReduceSum", "ReduceMin")]
        y += [f("ReduceMax", f("Less", "i", f.const(np.array(9, np.int32))), f.ints(axis))]
    return f.model(data, *y)


CASES = {f.__name__[1:]: f for f in (_sums, _terms, _extremes, _types)}
RUNS = [(name, policy) for name in CASES for policy in ("f32", "bf16") if name != "types" or policy == "f32"]


@cache
def _graph(name: str, policy: str) -> tuple[Module, Inputs]:
    proto, inputs = CASES[name]()
    return run_pipeline(import_onnx(proto), GRAPH, options={"policy": policy}).module, inputs


def _cut(dist: Module) -> set[str]:
    """The results of stages that add nodes of a sum that is cut."""
    computes = [op for op in dist.function().block.ops if op.name == "dist.compute"]
    return {op.result.name for op in computes if any(d.name == "slot" and d.extent > 1 for d in op.attrs.nest.dims)}


@pytest.mark.parametrize(("name", "policy"), RUNS)
def test_random_plans(name: str, policy: str) -> None:
    module, inputs = _graph(name, policy)
    want, cut = evaluate(module, inputs), set[str]()
    layers = [x for x in layers_of(module).layers if x.nest.cut is not None]
    some = {x.result.name for x in layers if x.nest.dims[x.nest.cut or 0].extent > x.nest.slice}
    for seed in SEEDS:
        dist = distribute.run(module, TARGET, seed=seed)
        cut |= _cut(dist)
        got = evaluate_dist(dist, inputs)
        for output, value in want.items():
            assert got[output].tobytes() == value.tobytes(), f"{output} differs under seed {seed}"
        if seed:
            continue
        text = str(dist)
        assert str(parse(text, constants=dist.constants)) == text
        with d1rt.load(lower_tile.run(dist, TARGET).program) as loaded:
            for engine in ("numpy", "jit"):
                for output, value in loaded.run(inputs, engine=engine).items():
                    assert value.tobytes() == want[output].tobytes(), f"{output}, {engine}"
    assert cut <= some and len(cut) > 0.8 * len(some) > 0.6 * len(layers)
