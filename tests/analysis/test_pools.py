"""What plans are looked at by, for many at once, against the price of each one by itself."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from d1c.analysis.candidates import priced, used_cores
from d1c.analysis.layers import Layer, layers_of
from d1c.analysis.plans import combine_plan, layout_from, stages
from d1c.analysis.pools import _joined, _settled, pool_of
from d1c.analysis.price import Places, moves, places
from d1c.analysis.ways import Ways, families, ways_of
from d1c.frontend.importer import import_onnx
from d1c.ir.layout import need_of
from d1c.ops.dist.compute import ComputeAttrs, compute_type
from d1c.pipeline import run_pipeline
from d1c.target.machine import machine
from d1c.target.mesh import Group, Layout
from tests.levels.nets import GRAPH
from tests.networks import Net

WAYS = 40


def _layers() -> dict[str, Layer]:
    """A product, a convolution, a sum along rows and one over pixels."""
    f = Net(1)
    rows = f("ReduceSum", "x", f.ints(1))
    conv = f("Conv", "i", f.random(128, 64, 3, 3), pads=[1, 1, 1, 1])
    pixels = f("ReduceMean", conv, f.ints(2, 3))
    data = {"x": np.zeros((200, 768), np.float32), "i": np.zeros((2, 64, 32, 24), np.float32)}
    proto, _ = f.model(data, f("MatMul", "x", f.random(768, 512)), rows, pixels, conv)
    found = layers_of(run_pipeline(import_onnx(proto), GRAPH, options={"policy": "bf16"}).module).layers
    names = {
        "mac": lambda x: "conv" if len(x.out_shape) > 2 else "matmul",
        "sum": lambda x: "rows" if x.lanes else "pixels",
    }
    return {names[x.nest.kind](x.nest): x for x in found if x.nest.kind in names}


LAYERS = _layers()


def _drawn(layer: Layer, where: Places, cut: bool) -> list[tuple[Ways, np.ndarray]]:
    """Of every family some ways, those that cut the reduction or all."""
    rng, found = np.random.default_rng(3), []
    for family in families(layer):
        w = ways_of(layer, family, where, False)
        at = np.flatnonzero(w.used[w.kind, -1] > 1) if cut else np.arange(len(w.way))
        found.append((w, np.sort(rng.permutation(at)[:WAYS])))
    return found


def _axes(w: Ways, i: int, where: Places) -> tuple[list[list[str]], list[str]]:
    """Of every range its factors, and those that idle."""
    way = w.way[i].tolist()
    axes = [[a for a, t in zip(where.mesh.names, way, strict=True) if t == k] for k in range(len(w.ranges) + 1)]
    return axes[:-1], axes[-1]


def _near(got: list[float], want: list[float], part: float) -> None:
    """Nothing where there is nothing, and `part` of the others within 20%."""
    a, b = np.array(got), np.array(want)
    assert len(a) > 20
    assert (a == 0).tolist() == (b == 0).tolist()
    off = np.abs(np.log(a[b > 0] / b[b > 0]))
    assert (off < np.log(1.2)).mean() >= part and np.median(off) < 0.06, (np.median(off), (off < np.log(1.2)).mean())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", ["test", "d1-die", "d1-tile"])
def test_combining_stages(name: str, target: str) -> None:
    """Which plan each has, its movement, its launch where it waits, its kernel."""
    layer, where = LAYERS[name], places(machine(target))
    nest, got, want = layer.nest, list[float](), list[float]()
    for w, which in _drawn(layer, where, True):
        seen: list[set[Layout]] = [set() for _ in which]
        for to, cycles in enumerate(_joined(layer, w, which, where)):
            for k, i in enumerate(which.tolist()):
                axes, held = _axes(w, i, where)
                blocks = w.blocks[w.kind[i]].tolist()
                plan = layout_from(nest, w.ranges, axes, blocks, held)
                combine = combine_plan(nest, w.ranges[:-1], axes, blocks, held, to, where.mesh)
                assert (cycles[k] == math.inf) == (combine in seen[k])
                if combine in seen[k]:
                    continue
                seen[k].add(combine)
                lies = compute_type(ComputeAttrs(nest, plan, "f32"))
                assert lies.layout is not None and lies.shape[0] == w.used[w.kind[i], -1]
                _, second = stages(layer, lies.shape[0])
                index, extents = second.nest.maps[0], tuple(d.extent for d in second.nest.dims)
                found = moves([lies.layout], need_of(extents, index, lies.shape, combine), lies.shape, 4, where)
                moved = 0 if found.in_place[0] else found.cycles[0] + where.machine.launch_cycles
                want.append(float(moved))
                got.append(float(cycles[k] - priced(second, combine, where).cycles))
    _near(got, want, 0.8)


@pytest.mark.parametrize("target", ["d1-node", "test", "d1-die", "d1-tile"])
@pytest.mark.parametrize("loose", [False, True])
def test_kinds_are_those_of_their_ways(target: str, loose: bool) -> None:
    """The parts of a range are as many as its factors have places, or fewer lines of dies; they cover it."""
    where, rng = places(machine(target)), np.random.default_rng(5)
    for layer in LAYERS.values():
        for family in families(layer):
            w = ways_of(layer, family, where, loose)
            assert sorted(set(w.kind.tolist())) == list(range(len(w.blocks)))
            for i in rng.permutation(len(w.way))[:WAYS].tolist():
                axes, _ = _axes(w, i, where)
                for (a, b), names, block, used in zip(
                    w.ranges, axes, w.blocks[w.kind[i]].tolist(), w.used[w.kind[i]].tolist(), strict=True
                ):
                    extent = math.prod(d.extent for d in layer.nest.dims[a:b])
                    assert -(-extent // block) == used <= where.mesh.parts(tuple(names))
                    assert used > 1 or block == extent


@pytest.mark.parametrize("target", ["test", "d1-die", "d1-tile"])
def test_operands_that_lie_alike(target: str) -> None:
    """The first operand's rows are cut as the layer's, its columns by the factors of the cut, then by those of the
    layer's columns, of as many as there is room for. Plans are looked at by ways along rows first."""
    where = places(dataclasses.replace(machine(target), routing="rows"))
    got, want = list[float](), list[float]()
    mesh = where.mesh
    drawn = ((LAYERS[name], *x) for name in ("matmul", "rows") for x in _drawn(LAYERS[name], where, False))
    for layer, w, which in drawn:
        nest, (x, *_) = layer.nest, layer.operands
        got += _settled(layer, w, which, where).tolist()
        for i in which.tolist():
            axes, held = _axes(w, i, where)
            rows, behind = next(k for k, r in enumerate(w.ranges) if r[0] == 0), list[str]()
            for a in (*axes[-1], *(a for k, names in enumerate(axes[:-1]) if k != rows for a in names)):
                if mesh.parts((*behind, a)) <= 2 * x.shape[1]:
                    behind.append(a)
            cuts = [-(-n // mesh.parts(tuple(a))) for n, a in zip(x.shape, (axes[rows], behind), strict=True)]
            lies = Layout(
                tuple(Group(1, tuple(a), c) if a else Group() for a, c in zip((axes[rows], behind), cuts, strict=True))
            )
            plan = layout_from(nest, w.ranges, axes, w.blocks[w.kind[i]].tolist(), held)
            need = need_of(tuple(d.extent for d in nest.dims), nest.maps[0], x.shape, plan)
            found = moves([lies], need, x.shape, x.dtype.bytes, where)
            want.append(0.0 if found.in_place[0] else float(found.cycles[0]))
    _near(got, want, 0.6)


def test_images_queries_and_heads_are_cut_together() -> None:
    """Four images of 64 tokens and twelve heads on 352 cores: no two of them are enough for all."""
    f = Net(2)
    q, k, v = (f("Transpose", f("Reshape", name, f.ints(4, 64, 12, 64)), perm=[0, 2, 1, 3]) for name in "qkv")
    scores = f("Softmax", f("MatMul", q, f("Transpose", k, perm=[0, 1, 3, 2])))
    data = {name: np.zeros((4, 64, 768), np.float32) for name in "qkv"}
    proto, _ = f.model(data, f("Transpose", f("MatMul", scores, v), perm=[0, 2, 1, 3]))
    found = layers_of(run_pipeline(import_onnx(proto), GRAPH, options={"policy": "bf16"}).module).layers
    (attention,) = (x for x in found if x.nest.kind == "attention")
    where = places(machine("d1-die"))
    made = pool_of(attention, where, 0.5 * where.machine.data_bytes).at(0.0)
    extents = [d.extent for d in attention.nest.dims]
    assert extents[:3] == [4, 64, 12]
    used = [used_cores(attention, c.plan) for c in made]
    assert max(used) > 4 * 64 and any(sum(bool(g.axes) for g in c.plan.groups[:3]) == 3 for c in made)
