"""The exchange rule against brute force: every core's window, element by element, from the definitions alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from d1c.analysis.exchange import exchange
from d1c.ir.layout import Need, need_of, thin_of
from d1c.ir.structured import Entry
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

MESH = Mesh((("dr", 2), ("nr.0", 2), ("nr.1", 2), ("nc", 3)))


def own(array: np.ndarray, layout: Layout, mesh: Mesh) -> dict[int, np.ndarray]:
    """Each core's owned buffer, filled element by element; -1 where nothing is owned."""
    shape = array.shape
    out = {}
    for core in range(mesh.cores):
        if any(mesh.coords[core, mesh.index[a]] for a in layout.held):
            continue
        buf = np.full(layout.local_shape(shape), -1, np.int64)
        starts = []
        for (_, _, g, n), b in zip(layout.spans(shape), buf.shape, strict=True):
            p = int(mesh.position(g.axes, np.array([core]))[0]) if g.axes else 0
            starts.append((p * b, min(p * b + b, n)))
        for idx in itertools.product(*(range(a, max(a, b)) for a, b in starts)):
            full = []
            for i, (a, b, _, _) in zip(idx, layout.spans(shape), strict=True):
                full += list(np.unravel_index(i, shape[a:b]))
            buf[tuple(i - s for i, (s, _) in zip(idx, starts, strict=True))] = array[tuple(full)]
        out[core] = buf.ravel()
    return out


def share(dims, plan, mesh, core):
    """All iteration points of a core's share."""
    per = []
    for a, b, g, n in plan.spans(dims):
        p = int(mesh.position(g.axes, np.array([core]))[0]) if g.axes else 0
        lo, hi = (p * g.block, min(p * g.block + g.block, n)) if g.axes else (0, n)
        per.append([np.unravel_index(i, dims[a:b]) for i in range(lo, hi)])
    return [tuple(int(x) for part in point for x in part) for point in itertools.product(*per)]


def address(need: Need, mesh: Mesh, core: int, index, point) -> int:
    """Where the window of `core` holds the element that `point` reads (row-major over component intervals)."""
    out, k, e = 0, 0, 0
    for c, w in zip(need.components, need.local_shape(), strict=True):
        lo, _ = c.intervals(mesh)
        pos = int(mesh.position(c.axes, np.array([core]))[0]) if c.axes else 0
        lin, covered, entries = 0, 0, []
        while covered < c.span:
            entries.append(index[e])
            covered += index[e].span
            e += 1
        d = 0
        for entry in entries:
            raw = entry.offset + sum(f * point[i] for i, f in entry.terms)
            if c.every and entry.span == 1:
                first, step = c.every[d]
                assert (raw - first) % step == 0
                raw = (raw - first) // step
            if len(entries) == 1:
                lin = raw
            elif entry.span == 1:
                before, ext = c.pads[d]
                lin = lin * ext + raw + before
            else:
                lin = lin * math.prod(c.shape[d : d + entry.span]) + raw
            d += entry.span
        assert 0 <= lin - lo[pos] < w
        out = out * w + lin - int(lo[pos])
        k += c.span
    return out


def check(dims, index, shape, plan, source, mesh=MESH, need_of=need_of):
    array = np.arange(math.prod(shape)).reshape(shape)
    plan.check(dims, mesh)
    source.check(shape, mesh)
    need = need_of(dims, index, shape, plan)
    assert Need.parse(str(need)) == need and Layout.parse(str(plan)) == plan
    x = exchange(source, shape, need, mesh)
    assert x.covers()
    bufs = own(array, source, mesh)
    m = x.messages()
    windows = {int(c): np.full(x.window_elements, -2, np.int64) for c in m.classes}
    for i in range(len(m)):
        src, win = bufs[int(m.src[i])], windows[int(m.classes[m.cls[i]])]
        for idx in itertools.product(*(range(int(n)) for n in m.sizes[:, i])):
            s = m.soff[i] + sum(a * b for a, b in zip(idx, m.sstride[:, i], strict=True))
            d = m.doff[i] + sum(a * b for a, b in zip(idx, m.dstride[:, i], strict=True))
            assert win[d] == -2, "an element arrives twice"
            assert src[s] >= 0, "a message reads what its source does not own"
            win[d] = src[s]
    for core in range(mesh.cores):
        if any(mesh.coords[core, mesh.index[a]] for a in plan.held):
            continue
        cls = int(mesh.core_offset(x.keyed, mesh.position(x.keyed, np.array([core])))[0])
        for point in share(dims, plan, mesh, core):
            at, k = [], 0
            inside = True
            for e in index:
                raw = e.offset + sum(f * point[i] for i, f in e.terms)
                ext = shape[k : k + e.span]
                inside = inside and 0 <= raw < math.prod(ext)
                if inside:
                    at += list(np.unravel_index(raw, ext))
                k += e.span
            got = windows[cls][address(need, mesh, core, index, point)]
            assert got == (array[tuple(at)] if inside else -2), (core, point)
    return x, need


def E(*terms, off=0, span=1):
    return Entry(tuple(terms), off, span)


def test_matmul_rows_and_columns_multicast():
    dims = (6, 9, 4)  # m, n, k
    plan = Layout((Group(1, ("dr", "nr.0"), 2), Group(1, ("nc",), 3), Group()), ("nr.1",))
    a, _ = check(
        dims,
        (E((0, 1)), E((2, 1))),
        (6, 4),
        plan,
        Layout((Group(1, ("nr.1", "dr"), 2), Group(1, ("nc",), 2)), ("nr.0",)),
    )
    assert a.keyed == ("dr", "nr.0") and a.fan_axes == ("nc",)
    check(
        dims,
        (E((2, 1)), E((1, 1))),
        (4, 9),
        plan,
        Layout((Group(1, ("nr.0",), 2), Group(1, ("dr", "nc"), 2)), ("nr.1",)),
    )


@pytest.mark.parametrize("flat", [False, True])
def test_conv_stride_2_pad_1_halo(flat):
    n, h, w, c, o = 2, 8, 6, 3, 5
    dims = (n, h // 2, w // 2, o, 3, 3, c)
    index = (E((0, 1)), E((1, 2), (4, 1), off=-1), E((2, 2), (5, 1), off=-1), E((6, 1)))
    one = (Group(), Group(), Group())
    if flat:
        plan = Layout((Group(3, ("nc", "dr"), 4), Group(1, ("nr.0",), 3), *one), ("nr.1",))
    else:
        plan = Layout((Group(), Group(1, ("dr", "nr.1"), 1), Group(1, ("nc",), 1), Group(1, ("nr.0",), 3), *one))
    for source in (
        Layout((Group(3, ("dr", "nc"), 16), Group(1, ("nr.0",), 2)), ("nr.1",)),
        Layout((Group(1, ("dr",), 1), Group(1, ("nr.0", "nr.1"), 2), Group(1, ("nc",), 2), Group())),
        Layout((Group(1, ("dr",), 1), Group(2, ("nr.0", "nc"), 8), Group(1, ("nr.1",), 2))),
    ):
        x, _ = check(dims, index, (n, h, w, c), plan, source)
        assert x.padded


def test_conv_flat_hull_matches_the_worked_case():
    # 3x3 stride 2 pad 1, 56 -> 28, two images, shares of 98 pixels: first and last pixel give the hull
    dims = (2, 28, 28, 1, 3, 3, 1)
    index = (E((0, 1)), E((1, 2), (4, 1), off=-1), E((2, 2), (5, 1), off=-1), E((6, 1)))
    mesh = Mesh((("nr", 16),))
    plan = Layout((Group(3, ("nr",), 98), Group(), Group(), Group(), Group()))
    ((hull, _),) = [c.intervals(mesh) for c in need_of(dims, index, (2, 56, 56, 1), plan).components[:1]]
    first = [np.unravel_index(p * 98, (2, 28, 28)) for p in range(16)]
    assert [int(v) for v in hull] == [((nn * 57 + 2 * hh) * 57) + 2 * ww for nn, hh, ww in first]


def test_views_address_several_dims_linearly():
    # (B,T,HD) read as heads: entry h*D+d of one dim; and (h, d) dims read at a linear index
    dims = (2, 4, 3, 5)  # b, h, t, d
    plan = Layout((Group(1, ("dr",), 1), Group(1, ("nr.0", "nr.1"), 1), Group(1, ("nc",), 1), Group()))
    check(
        dims,
        (E((0, 1)), E((2, 1)), E((1, 5), (3, 1))),
        (2, 3, 20),
        plan,
        Layout((Group(2, ("dr", "nc"), 1), Group(1, ("nr.0",), 10)), ("nr.1",)),
    )
    dims = (3, 20)
    plan = Layout((Group(1, ("nc",), 1), Group(1, ("nr.0", "dr"), 5)), ("nr.1",))
    check(
        dims,
        (E((0, 1)), E((1, 1), span=2)),
        (3, 4, 5),
        plan,
        Layout((Group(), Group(1, ("dr", "nc"), 1), Group(1, ("nr.1",), 3)), ("nr.0",)),
    )


def test_concat_and_broadcast_and_flip():
    dims = (4, 12)
    plan = Layout((Group(1, ("nr.0",), 2), Group(1, ("nc", "dr"), 2)), ("nr.1",))
    check(
        dims,
        (E((0, 1)), E((1, 1), off=-7)),
        (4, 5),
        plan,
        Layout((Group(), Group(1, ("nc",), 2)), ("dr", "nr.0", "nr.1")),
    )
    check(dims, (E((1, 1)),), (12,), plan, Layout((Group(1, ("nr.0", "nr.1"), 3),), ("dr", "nc")))
    check(dims, (E((0, 1)), E((1, -1), off=11)), (4, 12), plan, Layout((Group(2, ("nc", "nr.1", "dr"), 4),), ("nr.0",)))
    check(
        dims,
        (E(off=3), E((0, 2), off=1)),
        (5, 9),
        plan,
        Layout((Group(1, ("nc",), 2), Group(1, ("dr",), 5)), ("nr.0", "nr.1")),
    )


def test_same_place_needs_no_message():
    dims = (6, 8)
    plan = Layout((Group(1, ("dr", "nr.0"), 2), Group(1, ("nc",), 3)), ("nr.1",))
    x, _ = check(dims, (E((0, 1)), E((1, 1))), dims, plan, plan)
    assert x.local
    y, _ = check(
        dims, (E((0, 1)), E((1, 1))), dims, plan, Layout((Group(1, ("nr.0", "dr"), 2), Group(1, ("nc",), 3)), ("nr.1",))
    )
    assert not y.local


def test_random_plans_of_a_conv():
    rng = np.random.default_rng(5)
    shape, dims = (2, 5, 4, 3), (2, 3, 2, 4, 3, 3, 3)
    index = (E((0, 1)), E((1, 2), (4, 1), off=-1), E((2, 2), (5, 1), off=-1), E((6, 1)))
    done = 0
    for _ in range(12):
        plan = random_layout(rng, dims[:4], MESH, flat=bool(rng.random() < 0.6))
        plan = Layout((*plan.groups, Group(), Group(), Group()), plan.held)
        source = random_layout(rng, shape, MESH, flat=bool(rng.random() < 0.6))
        check(dims, index, shape, plan, source)
        done += 1
    assert done == 12


def random_layout(rng, shape, mesh, flat):
    """Every factor goes to a random group or is held; blocks may be larger than needed; any order of factors."""
    spans = [3, *[1] * (len(shape) - 3)] if flat else [1] * len(shape)
    pick = [int(rng.integers(0, len(spans) + 1)) for _ in mesh.axes]
    groups, k = [], 0
    for i, s in enumerate(spans):
        axes = [a for a, p in zip(mesh.names, pick, strict=True) if p == i]
        rng.shuffle(axes)
        n = math.prod(shape[k : k + s])
        b = -(-n // mesh.parts(tuple(axes))) if axes else 0
        groups.append(Group(s, tuple(axes), b + int(rng.integers(0, 2)) if axes else 0))
        k += s
    return Layout(tuple(groups), tuple(a for a, p in zip(mesh.names, pick, strict=True) if p == len(spans)))


STEPS = {
    "both dims": ((2, 3, 2, 4, 1, 1, 3), (E((1, 2), (4, 1)), E((2, 2), (5, 1)))),
    "one dim": ((2, 2, 4, 4, 1, 1, 3), (E((1, 3), (4, 1)), E((2, 1), (5, 1)))),
    "from the second": ((2, 2, 2, 4, 1, 1, 3), (E((1, 2), (4, 1), off=1), E((2, 2), (5, 1), off=1))),
    "into the padding": ((2, 4, 3, 4, 1, 1, 3), (E((1, 2), (4, 1), off=-2), E((2, 2), (5, 1)))),
    "several taps": ((2, 2, 1, 4, 2, 2, 3), (E((1, 2), (4, 2)), E((2, 2), (5, 2)))),
}
"""Iteration dims, and how they read the height and the width of an image of 5 x 4 pixels."""


@pytest.mark.parametrize("name", STEPS)
def test_windows_with_steps_bring_only_what_is_read(name):
    rng = np.random.default_rng(6)
    shape, (dims, rows) = (2, 5, 4, 3), STEPS[name]
    index = (E((0, 1)), *rows, E((6, 1)))
    smaller = 0
    for k in range(8):
        plan = random_layout(rng, dims[:4], MESH, flat=bool(k % 2))
        plan = Layout((*plan.groups, Group(), Group(), Group()), plan.held)
        source = random_layout(rng, shape, MESH, flat=bool(rng.random() < 0.6))
        x, need = check(dims, index, shape, plan, source, need_of=thin_of)
        assert any(step > 1 for c in need.components for _, step in c.every)
        elements, hull = (
            x.window_elements,
            exchange(source, shape, need_of(dims, index, shape, plan), MESH).window_elements,
        )
        assert elements <= hull
        smaller += elements < hull
    assert smaller > 0
    assert thin_of(dims[:1], index[:1], shape[:1], Layout((Group(),))) is None


def test_rules_are_refused_by_name():
    with pytest.raises(LayoutError, match="twice"):
        Layout((Group(1, ("dr",), 3), Group(1, ("dr",), 1))).check((6, 1), MESH)
    with pytest.raises(LayoutError, match="do not cover"):
        Layout((Group(1, ("dr",), 2),)).check((6,), MESH)
    with pytest.raises(LayoutError, match="monotone"):
        need_of((4, 4), (E((1, 1)), E((0, 1))), (4, 4), Layout((Group(2, ("dr", "nc"), 3),)))


def test_what_covering_proves_and_what_not() -> None:
    """docs/runtime.md: tiling where there is no padding, counts where there is."""
    plan = Layout((Group(1, ("nc",), 4), Group()))
    halo = need_of((12, 3), (Entry(((0, 1), (1, 1)), -1),), (12,), plan)
    x = exchange(Layout((Group(1, ("nc",), 4),)), (12,), halo, MESH)
    (c,) = x.components
    assert x.covers() and x.padded and c.real.tolist() == [5, 6, 5] and c.pieces.doff[0] == 1

    def with_offsets(doff: np.ndarray) -> bool:
        return replace(c, pieces=replace(c.pieces, doff=doff)).covers()

    first, middle = c.pieces.t == 0, c.pieces.t == 1
    assert with_offsets(c.pieces.doff - first)  # into the padding in front: only the counts are checked
    assert not with_offsets(c.pieces.doff - 2 * first)  # out of the window
    assert middle.sum() == 3
    for run in np.flatnonzero(middle):  # a window without padding: no run may move at all
        for by in (-1, 1):
            moved = c.pieces.doff.copy()
            moved[run] += by
            assert not with_offsets(moved)
