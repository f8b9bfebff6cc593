"""Branches that are alike run side by side: as one layer each, with the bits that they have one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest

import d1c
import d1rt
from d1c.analysis.branches import Beside, beside, has_branches
from d1c.analysis.layers import layers_of
from d1c.check import check_program
from d1c.errors import DoesNotFit
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Module
from d1c.ir.verify import verify
from d1c.passes import distribute, lower_tile
from d1c.target.machine import machine
from d1c.target.program_io import load, save
from d1rt.events import simulate
from tests.networks import Net

TEST = machine("test")


def net(inputs: str, outputs: str, body: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model with weights of these shapes."""
    args = ", ".join([inputs, *(f"float[{','.join(map(str, n))}] {k}" for k, n in weights.items())])
    text = f'<ir_version: 8, opset_import: ["" : 18]>\nf ({args}) => ({outputs}) {{\n{body}\n}}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(len(body))
    for name, shape in weights.items():
        scale = np.sqrt(np.prod(shape[1:]))
        array = (rng.standard_normal(shape) / scale).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del model.graph.input[len(model.graph.input) - len(weights) :]
    onnx.checker.check_model(model)
    return model


def each(count: int, body: str) -> str:
    """The body for every branch, # being its number."""
    return "".join(body.replace("#", str(i)) for i in range(count))


CAMERA = """
    a# = Conv <pads = [1, 1, 1, 1]> (x#, w#)
    b# = Relu (a#)
    c# = Conv <pads = [1, 1, 1, 1]> (b#, v#)
    d# = Add (b#, c#)
    e# = Relu (d#)
    g# = GlobalAveragePool (e#)"""
"""Two convolutions with a residual connection, and the means of the channels."""
OWN = each(3, CAMERA) + "\ny = Concat <axis = 1> (g0, g1, g2)"
SHARED = each(2, CAMERA.replace("w#", "w").replace("v#", "v")) + "\ny = Concat <axis = 1> (g0, g1)"
SLICES = "x0, x1, x2 = Split <axis = 0, num_outputs = 3> (x)" + OWN
HEADS = each(2, """
    a# = Conv (x, w#)
    b# = Relu (a#)
    y# = Conv (b#, v#)""")  # fmt: skip
PRODUCTS = each(2, """
    a# = MatMul (x#, w#)
    b# = Tanh (a#)
    c# = MatMul (b#, a#)""") + """
    d = MatMul (c0, c1)
    e = MatMul (c1, x0)
    y = Add (d, e)"""  # fmt: skip
SKIPS = each(2, """
    a# = Conv <pads = [1, 1, 1, 1]> (x#, w#)
    b# = Add (a#, x#)
    c# = Conv <pads = [1, 1, 1, 1]> (b#, v)""") + "\ny = Sub (c0, c1)"  # fmt: skip
APART = """
    a0 = MatMul (x, w0)
    b0 = Relu (a0)
    c0 = MatMul (b0, v0)
    a1 = MatMul (x, w1)
    b1 = Relu (a1)
    c1 = Softmax (b1)
    y = Concat <axis = 1> (c0, c1)
"""
W, V = (8, 3, 3, 3), (8, 8, 3, 3)
NETS: dict[str, tuple[onnx.ModelProto, int]] = {
    # with how many layers of several branches there are
    "cameras with their own weights": (
        net(
            ", ".join(f"float[1,3,9,8] x{i}" for i in range(3)), "float[1,24,1,1] y", OWN,
            **{f"w{i}": W for i in range(3)}, **{f"v{i}": V for i in range(3)},
        ), 4,
    ),
    "cameras that share weights": (
        net("float[1,3,9,8] x0, float[1,3,9,8] x1", "float[1,16,1,1] y", SHARED, w=W, v=V), 4
    ),
    "cameras of one batch": (
        net(
            "float[3,3,9,8] x", "float[1,24,1,1] y", SLICES, **{f"w{i}": W for i in range(3)},
            **{f"v{i}": V for i in range(3)},
        ), 4,
    ),
    "heads on one map": (
        net("float[1,8,6,6] x", "float[1,4,4,4] y0, float[1,4,4,4] y1", HEADS,
            w0=(8, 8, 3, 3), w1=(8, 8, 3, 3), v0=(4, 8, 1, 1), v1=(4, 8, 1, 1)), 2,
    ),
    "products of branches": (
        net("float[8,8] x0, float[8,8] x1", "float[8,8] y", PRODUCTS, w0=(8, 8), w1=(8, 8)), 4
    ),
    "skips past the first layer": (
        net("float[1,8,6,6] x0, float[1,8,6,6] x1", "float[1,4,6,6] y", SKIPS,
            w0=(8, 8, 3, 3), w1=(8, 8, 3, 3), v=(4, 8, 3, 3)), 2,
    ),
    "nothing follows": (net("float[6,8] x", "float[6,16] y", APART, w0=(8, 8), w1=(8, 8), v0=(8, 8)), 0),
}  # fmt: skip


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {k: rng.standard_normal(n).astype(np.float32) for k, n in shapes.items()}


@cache
def graph(name: str, precision: str) -> Module:
    return d1c.compile(NETS[name][0], precision=precision, target="test", stop_after="pack-operands").module("graph")


def sides(module: Module) -> Mapping[str, tuple[str, ...]]:
    found = beside(Beside({"main": layers_of(module)}, module.constants))
    return found.branches if found is not None else {}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_bits_are_those_of_branches_apart(name: str, precision: str):
    module, (model, count) = graph(name, precision), NETS[name]
    assert len(sides(module)) >= count and has_branches(layers_of(module)) == (count > 0)
    inputs, want = feeds(model), onnxruntime.InferenceSession(model.SerializeToString())
    plain = lower_tile.run(distribute.run(module, TEST, branches=False), TEST).program
    values = d1rt.load(plain).run(inputs)
    for k, v in zip(values, want.run(list(values), inputs), strict=True):
        assert np.allclose(values[k], v, rtol=0, atol=(2e-6 if precision == "f32" else 3e-2) * np.abs(v).max())
    for seed in range(6):
        dist = distribute.run(module, TEST, seed=seed)
        verify(dist)
        assert bool(dist.attrs.get("branches")) == (count > 0)
        of_dist, of_program = evaluate_dist(dist, inputs), d1rt.load(lower_tile.run(dist, TEST).program).run(inputs)
        for k, v in values.items():
            assert of_dist[k].tobytes() == of_program[k].tobytes() == v.tobytes(), seed


def test_a_branch_is_a_dim_that_plans_may_cut():
    """One launch for three cameras, their weights behind each other, and the means read as slices."""
    module = graph("cameras with their own weights", "f32")
    found = beside(Beside({"main": layers_of(module)}, module.constants))
    assert found is not None
    layers = {x.result.name: x for x in found.layers["main"].layers}
    assert len(layers) == len(layers_of(module).layers) - 2 * len(found.branches) + 1  # the images are put together
    first = next(layers[n] for n, of in found.branches.items() if of[0].startswith("b0"))
    assert first.nest.dims[0].name == "branch" and first.nest.dims[0].extent == 3 == first.result.shape[0]
    weights = first.operands[1]
    products = (x for x in layers_of(module).layers if x.nest.kind == "mac")
    alone = {x.result.name: module.constants[x.operands[1].name] for x in products}
    assert weights.constant
    assert np.array_equal(found.constants[weights.name], np.stack([alone[f"b{i}"] for i in range(3)]))


def test_what_is_cheaper_is_chosen():
    """Depth is what branches save: three small cameras take less together than one after the other."""
    model, _ = NETS["cameras with their own weights"]
    together = d1c.compile(model)
    records = [x for x in together.target.layers if x.get("branches")]
    assert len(records) >= 4 and all(len(x["branches"]) == 3 for x in records)
    apart = lower_tile.run(
        distribute.run(together.module("graph"), together.machine, branches=False), together.machine
    ).program
    both = [simulate(p).total["cycles"] for p in (together.target, apart)]
    assert both[0] < 0.7 * both[1]


def test_where_all_at_once_do_not_fit_they_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    model, _ = NETS["cameras with their own weights"]
    told = list[bool]()
    run = lower_tile.run

    def full(module: Module, *args: object, **options: object) -> object:
        told.append(bool(module.attrs.get("branches")))
        if told[-1]:
            raise DoesNotFit("full")
        return run(module, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lower_tile, "run", full)
    made = d1c.compile(model)
    assert told == [True, False] and not any(x.get("branches") for x in made.target.layers)


def test_every_branch_is_checked_by_its_name(tmp_path: Path):
    model, _ = NETS["cameras with their own weights"]
    onnx.save(model, tmp_path / "m.onnx")
    save(d1c.compile(tmp_path / "m.onnx").target, tmp_path / "m.d1x")
    report = check_program(load(tmp_path / "m.d1x"), tmp_path / "m.onnx", feeds(model))
    assert {f"e{i}" for i in range(3)} <= {x.name for x in report.layers if x.accumulated is not None}
    assert report.first("accumulated") is None


def test_names_stay_apart():
    """A constant that has the name which branches would give theirs."""
    module = graph("heads on one map", "f32")
    plain = beside(Beside({"main": layers_of(module)}, module.constants))
    assert plain is not None
    name = next(k for k in plain.constants if k not in module.constants)
    taken = replace(module, constants={**module.constants, name: np.zeros(1, np.float32)})
    found = beside(Beside({"main": layers_of(taken)}, taken.constants))
    assert found is not None and found.constants[name].size == 1 and f"{name}.1" in found.constants


def random_branches(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Two to four branches of one to five random steps over images or rows, with weights of their own or shared, now
    and then a step that differs, and a random end."""
    rng = np.random.default_rng(seed)
    f = Net(seed)
    count, images = int(rng.integers(2, 5)), bool(rng.integers(2))
    channels = int(rng.integers(2, 6))
    shape = (1, channels, *map(int, rng.integers(3, 7, 2))) if images else (int(rng.integers(2, 9)), channels)
    given = ("own", "one", "slices")[int(rng.integers(3))]
    if given == "slices":
        inputs = {"x": f.data(count * shape[0], *shape[1:])}
        starts = [(f.ints(i * shape[0]), f.ints((i + 1) * shape[0])) for i in range(count)]
        xs = [f("Slice", "x", a, b, f.ints(0)) for a, b in starts]
    else:
        inputs = {f"x{i}": f.data(*shape) for i in range(count if given == "own" else 1)}
        xs = [f"x{i if given == 'own' else 0}" for i in range(count)]
    before = list(xs)
    for _ in range(int(rng.integers(1, 6))):
        step, shared, odd = int(rng.integers(7)), bool(rng.integers(2)), bool(rng.random() < 0.15)
        kernel = (channels, channels, 3, 3) if images else (channels, channels)
        weights = [f.random(*kernel, fan=kernel[1] * 9) for _ in range(1 if shared else count)]
        bias = [f.random(*(channels, 1, 1)[: 3 if images else 1]) for _ in range(count)]
        made = []
        for i, x in enumerate(xs):
            w = weights[i % len(weights)]
            if odd and i == count - 1:
                made.append(f("Sigmoid", x))
            elif step < 2:
                made.append(f("Conv", x, w, pads=[1, 1, 1, 1]) if images else f("MatMul", x, w))
            elif step == 2:
                made.append(f("Add", f("Relu", x), before[i]))
            elif step == 3:
                made.append(f("Softmax", x, axis=1))
            elif step == 4:
                made.append(f("Mul", x, bias[i]))
            elif step == 5:
                made.append(f("Sub", x, f("ReduceMean", x, f.ints(-1), keepdims=1)))
            else:
                made.append(f("MatMul", x, f("MatMul", f("Transpose", x, perm=[0, 1, 3, 2] if images else [1, 0]), x)))
        xs = made
    end = int(rng.integers(3))
    outputs = xs if end == 0 else [f("Concat", *xs, axis=1)] if end == 1 else [f("Sum", *xs), xs[-1]]
    return f.model(inputs, *outputs)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=[pytest.mark.slow] * (s >= 12)) for s in range(120)])
def test_random_branches(seed: int):
    model, inputs = random_branches(seed)
    precision = ("f32", "bf16")[seed % 2]
    module = d1c.compile(model, precision=precision, target="test", stop_after="pack-operands").module("graph")
    plain = d1rt.load(lower_tile.run(distribute.run(module, TEST, branches=False), TEST).program).run(inputs)
    for plans in (None, seed, seed + 1):
        dist = distribute.run(module, TEST, seed=plans)
        of_dist, of_program = evaluate_dist(dist, inputs), d1rt.load(lower_tile.run(dist, TEST).program).run(inputs)
        for k, v in plain.items():
            assert of_dist[k].tobytes() == of_program[k].tobytes() == v.tobytes(), (k, plans)
