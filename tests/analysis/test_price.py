"""The estimated price of a movement against the exact exchange and the load that it puts on every link."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d1c.analysis.exchange import exchange, in_place
from d1c.analysis.price import moves, places
from d1c.ir.layout import Need, need_of, reading
from d1c.ir.structured import Entry
from d1c.target.machine import machine
from d1c.target.mesh import Group, Layout, LayoutError, Mesh
from d1rt.linkload import Fabric, load, pushed


def _layout(rng: np.random.Generator, shape: tuple[int, ...], spans: list[int], mesh: Mesh) -> Layout:
    """Random factors for every group of dims, as many as it has elements for; the others are held."""
    picks = rng.integers(0, len(spans) + 1, len(mesh.axes))
    groups: list[Group] = []
    held, k = [a for a, p in zip(mesh.names, picks, strict=True) if p == len(spans)], 0
    for i, span in enumerate(spans):
        n, keep = int(np.prod(shape[k : k + span])), tuple[str, ...]()
        for a in (a for a, p in zip(mesh.names, picks, strict=True) if p == i):
            if mesh.parts((*keep, a)) <= n:
                keep = (*keep, a)
            else:
                held.append(a)
        groups += [Group(span, keep, -(-n // mesh.parts(keep)))] if keep else [Group()] * span
        k += span
    return Layout(tuple(groups), tuple(held))


def _case(rng: np.random.Generator, mesh: Mesh) -> tuple[tuple[int, ...], Layout, Need]:
    """A tensor, how it lies, and what a convolution, a product of matrices, a map or a combining stage needs of it."""
    kind = int(rng.integers(4))
    flat = rng.random(2) < 0.5
    if kind == 0:
        h, c, taps, stride = (int(rng.choice(x)) for x in ([14, 28], [64, 256], [1, 3], [1, 2]))
        shape, p = (1, h, h, c), (taps - 1) // 2
        dims = (1, -(-h // stride), -(-h // stride), 64, taps, taps, c // 2, 2)
        index = (
            Entry(((0, 1),)), Entry(((1, stride), (4, 1)), -p), Entry(((2, stride), (5, 1)), -p),
            Entry(((6, 2), (7, 1))),
        )  # fmt: skip
        parallel, source, spans = 4, [3, 1] if flat[0] else [1] * 4, [3, 1] if flat[1] else [1] * 4
    elif kind == 1:
        shape = (int(rng.choice([64, 197])), int(rng.choice([64, 768])))
        dims, index = (shape[0], 256, shape[1] // 2, 2), (Entry(((0, 1),)), Entry(((2, 2), (3, 1))))
        parallel, source, spans = 2, [1, 1], [1, 1]
    elif kind == 2:
        shape = dims = (1, 28, 28, 128)
        index = tuple(Entry(((i, 1),)) for i in range(4))
        parallel, source, spans = 4, [3, 1] if flat[0] else [1] * 4, [3, 1] if flat[1] else [1] * 4
    else:
        shape = (int(rng.choice([2, 4, 8])), 1, 14, 14, 256)
        dims, index = (*shape[1:], shape[0]), (Entry(((4, 1),)), *(Entry(((i, 1),)) for i in range(4)))
        parallel, source, spans = 4, [1, 3, 1], [3, 1] if flat[1] else [1] * 4
    plan = _layout(rng, dims[:parallel], spans, mesh)
    plan = Layout((*plan.groups, *(Group() for _ in dims[parallel:])), plan.held)
    return shape, _layout(rng, shape, source, mesh), reading(dims, index, shape, plan)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("name", "count", "near"), [("d1-die", 60, 0.65), ("d1-tile", 30, 0.8), ("test", 60, 0.5)])
def test_estimates_are_near_the_exact_load(name: str, count: int, near: float, copies: bool) -> None:
    """`copies`: the tensor is replicated along factors that do not cut it and along which windows are equal."""
    target = machine(name)
    mesh, fabric, where = Mesh(target.axes), Fabric.of(target), places(target)
    everyone, rng = np.ones(mesh.cores, bool), np.random.default_rng(7)
    ratios, ways = [], []
    while len(ratios) < count:
        try:
            shape, source, need = _case(rng, mesh)
        except LayoutError:
            continue
        if copies:
            fan = set(need.plan_axes) - set(need.axes)
            source = replace(source, held=tuple(a for a in source.held if a not in fan))
        x = exchange(source, shape, need, mesh)
        found = moves([source], need, shape, 2, where)
        assert bool(found.in_place[0]) == in_place(x, source, need), f"{source} {need}"
        if not found.in_place[0]:
            x = exchange(source, shape, need.thin or need, mesh)
            exact = load(pushed(x, 2, everyone, target), fabric, bool(found.by_columns[0]))
            ratios.append(float(found.cycles[0]) / exact.cycles)
            ways.append(abs(float(found.distance[0]) - exact.distance))
    off = np.abs(np.log(ratios))
    assert (off < np.log(1.15)).mean() >= near
    assert np.median(off) < 0.05
    assert np.mean(np.array(ways) < 30) > 0.9


def test_what_lies_where_it_is_read_costs_nothing() -> None:
    target = machine("test")
    mesh, where = Mesh(target.axes), places(target)
    lies = Layout.parse("[0: dc nr nc.0-1 / 4, 1]")
    index, dims = (Entry(((0, 1),)), Entry(((2, 1),))), (64, 4, 12)
    same = need_of(dims, index, (64, 12), Layout.parse("[0: dc nr nc.0-1 / 4, 1, 2]"))
    other = need_of(dims, index, (64, 12), Layout.parse("[0: nr nc.0-1 dc / 4, 1, 2]"))
    assert moves([lies], same, (64, 12), 4, where).cycles == [0.0]
    assert moves([lies], other, (64, 12), 4, where).cycles > target.die_crossing_cycles
    assert mesh.cores == 16


def test_copies_are_read_where_they_are() -> None:
    """By cores that read what their copy has, and by no others; who makes copies gets operands everywhere."""
    where = places(machine("test"))
    mesh, shape, whole = where.mesh, (64, 1), Layout.parse("[0: dc nr / 16, 1]")  # along nc all have the same
    assert whole.copied(mesh) == ("nc.0", "nc.1")
    rows, dims = (Entry(((0, 1),)), Entry()), (64, 12)
    plans = {
        "[0: dc nr / 16, 1: nc.0-1 / 3]": True, "[0: dc nr / 16, 1: nc.0 / 6 | nc.1]": True,
        "[0: dc nr / 16, 1]": True, "[0: dc nr nc.0 / 8, 1: nc.1 / 6]": False, "[0: nr dc / 16, 1: nc.0-1 / 3]": False,
    }  # fmt: skip
    for text, here in plans.items():
        need = need_of(dims, rows, shape, Layout.parse(text))
        x = exchange(whole, shape, need, mesh)
        assert in_place(x, whole, need) == here, text
        assert (moves([whole], need, shape, 4, where).cycles == 0) == here, text
        assert x.covers()
    one = Layout.parse("[0: dc nr / 16, 1 | nc.0-1]")
    need = need_of(dims, rows, shape, Layout.parse("[0: dc nr / 16, 1]"))
    sent = exchange(one, shape, need, mesh)
    assert sent.fan_axes == ("nc.0", "nc.1") and not in_place(sent, one, need)
    assert moves([one], need, shape, 4, where).cycles > 0
