"""The large networks on the whole tile: every exchange proved by intervals, texts, and how many cores work.

Their values are too many to be evaluated box by box; what is checked instead is that each exchange brings each element
of each window from its one owner. The proof runs over the components' intervals, never over cores times elements.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import groupby

import numpy as np
import pytest

import d1c
from d1c.analysis.exchange import exchange_of
from d1c.analysis.shares import compute_call
from d1c.ir.layout import Component, Need
from d1c.ir.text import parse
from d1c.target.machine import machine
from d1c.target.mesh import Layout, Mesh
from d1c.target.movement import ComponentExchange, Exchange, ragged
from tests.networks import NETWORKS

pytestmark = pytest.mark.slow

MESH = Mesh(machine("d1-tile").axes)


@cache
def compiled(name: str, batch: int) -> d1c.Program:
    return d1c.compile(NETWORKS[name](batch), target="d1-tile", precision="bf16")


def real_indices(
    c: Component, lo: np.ndarray, hi: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every window element inside the tensor: position, offset in the window, index in the tensor's dims, of `shape`,
    that the component is about."""
    position, offset = ragged(hi - lo)
    at = lo[position] + offset
    index, stride, inside = np.zeros_like(at), 1, np.ones(len(at), bool)
    every = c.every or tuple((0, 1) for _ in shape)
    for (before, extent), n, whole, (first, step) in zip(
        reversed(c.pads), reversed(c.shape), reversed(shape), reversed(every), strict=True
    ):
        alone = c.span == 1  # a single dim is addressed by its raw index, which may be negative
        i = at if alone else at % extent - before
        at = np.zeros_like(at) if alone else at // extent
        inside &= (i >= 0) & (i < n)
        index, stride = index + (first + i * step) * stride, stride * whole
    inside &= at == 0
    return position[inside], offset[inside], index[inside]


def prove(x: Exchange, source: Layout, shape: tuple[int, ...], need: Need) -> None:
    """Each component: its pieces are one to one with the real elements of the windows, and come from their owners."""
    assert x.covers()
    groups = source.spans(shape)
    g = k = 0
    wanted = list(need.components)
    for component in x.components:
        # the need's components and the layout's groups that this component joins
        end = k
        cover, owners = [], []
        while True:
            reach = k + sum(c.span for c in cover)
            held = k + sum(o[1] - o[0] for o in owners)
            if cover and owners and reach == held and component_done(component, cover, owners):
                end = reach
                break
            if reach <= held:
                cover.append(wanted.pop(0))
            else:
                owners.append(groups[g])
                g += 1
        check_component(component, cover, owners, shape[k:end])
        k = end
    assert k == len(shape) and not wanted and g == len(groups)


def component_done(component: ComponentExchange, cover: list[Component], owners: list[tuple]) -> bool:
    axes = tuple(a for c in cover for a in c.axes), tuple(a for _, _, o, _ in owners for a in o.axes)
    return axes == (component.target_axes, component.source_axes)


def check_component(x: ComponentExchange, cover: list[Component], owners: list[tuple], shape: tuple[int, ...]) -> None:
    # windows of the joined need, element by element along this component only
    position, offset, index = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    dim = 0
    for c in cover:
        lo, hi = c.intervals(MESH)
        extents, dim = shape[dim : dim + c.span], dim + c.span
        p, o, i = real_indices(c, lo, hi, extents)
        width = int((hi - lo).max())
        a, b = (v.reshape(-1) for v in np.meshgrid(np.arange(len(position)), np.arange(len(p)), indexing="ij"))
        position, offset = position[a] * len(lo) + p[b], offset[a] * width + o[b]
        index = index[a] * math.prod(extents) + i[b]
    # what the pieces bring: runs, each from one owner's share
    q = x.pieces
    run, r = ragged(q.count)
    element, e = ragged(q.length[run])
    run, r = run[element], r[element]
    target = q.t[run], q.doff[run] + r * q.dstep[run] + e
    share, local = q.s[run], q.soff[run] + r * q.sstep[run] + e
    found, stride = np.zeros(len(run), np.int64), 1
    for _, _, o, n in reversed(owners):
        block = o.block if o.axes else n
        parts = MESH.parts(o.axes)
        i = local % block + (share % parts) * block
        assert np.all(i < n), "a message reads beyond its owner's share"
        found, stride = found + i * stride, stride * n
        local, share = local // block, share // parts
    assert not local.any() and not share.any()
    got, want = np.lexsort((target[1], target[0])), np.lexsort((offset, position))
    assert len(got) == len(want), "elements arrive twice or not at all"
    assert np.array_equal(target[0][got], position[want]) and np.array_equal(target[1][got], offset[want])
    assert np.array_equal(found[got], index[want]), "an element comes from another place of the tensor"


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_exchange_covers_its_windows(name: str, batch: int) -> None:
    seen = set()
    for op in compiled(name, batch).module("dist").function().block.ops:
        if op.name == "dist.exchange":
            (value,), need = op.operands, op.result.type.need
            case = value.type.layout, value.type.shape, need
            if case not in seen:
                seen.add(case)
                prove(exchange_of(*case, MESH), *case)
    assert seen


@pytest.mark.parametrize("level", ["graph", "dist"])
@pytest.mark.parametrize("name", NETWORKS)
def test_text_is_a_fixed_point(name: str, level: str) -> None:
    module = compiled(name, 16).module(level)
    text = str(module)
    assert str(parse(text, constants=module.constants)) == text


@pytest.mark.parametrize("name", NETWORKS)
def test_most_work_is_on_most_cores(name: str) -> None:
    """S3: at batch 16 the layers that run on at least 8,000 cores hold at least 80% of the operations."""
    program = compiled(name, 16)
    computes = [op for op in program.module("dist").function().block.ops if op.name == "dist.compute"]
    # What a fused attention was made of names its layer, and has its plan.
    layers = [next(g) for _, g in groupby(computes, key=lambda op: op.attrs.of or op)]
    wide = total = 0
    for op, record in zip(layers, program.compiled.program.layers, strict=True):
        total += record["flops"]
        wide += record["flops"] * (len(compute_call(op, MESH).cores) >= 8000)
    print(f"{name}, batch 16: {100 * wide / total:.1f}% of {total / 1e9:.0f} GFLOP on at least 8,000 cores")
    assert wide >= 0.8 * total
