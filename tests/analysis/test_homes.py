"""Where gathered constants lie, against the windows that they are gathered into."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d1c.analysis.homes import Home, homes, hull
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.target.machine import machine
from d1c.target.mesh import Layout, Mesh

WEIGHTS = (Entry(((2, 1),)), Entry(((1, 1),)), Entry(((3, 1),)))  # [K / 2, N, 2] of a product of matrices


@pytest.mark.parametrize(
    "plan",
    ["[0: dr nr.0-1 / 26, 1: dc nr.2-3 nc.0 / 16, 2, 3 | nc.1]", "[0: dr nc.0 / 52, 1: nc.1 / 24, 2: nr / 24, 3]"],
)
def test_the_nearest_homes_are_parts_of_the_windows(plan: str) -> None:
    mesh, dims = Mesh(machine("d1-tile").axes), (520, 264, 384, 2)
    plan = plan.replace("nr /", "nr.0-3 /")
    need, shape = need_of(dims, WEIGHTS, (384, 264, 2), Layout.parse(plan)), (384, 264, 2)
    found = homes(shape, need, mesh)
    assert [a for a in mesh.names if a not in found[0].axes], "the first one has copies"
    sizes = [math.prod(x.local_shape(shape)) for x in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < math.prod(need.local_shape())
    for home in found[:-1]:
        home.check(shape, mesh)
        assert not home.held
        for (a, _, g, n), c in zip(home.spans(shape), need.components, strict=True):
            lo, hi = c.intervals(mesh)
            first, last = lo[mesh.position(c.axes)], hi[mesh.position(c.axes)]
            start = np.minimum(mesh.position(g.axes) * g.block, n) if g.axes else np.zeros(mesh.cores, np.int64)
            stop = np.minimum(start + g.block, n) if g.axes else np.full(mesh.cores, n)
            owns = (start < stop) & (first < last)
            assert (start[owns] >= first[owns]).all() and (stop[owns] <= last[owns]).all(), f"dim {a} of {home}"
    assert not [a for a in mesh.names if a not in found[-1].axes and a not in found[-1].held], "one copy at last"


def test_hull_keeps_what_is_cheapest_at_some_price() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        ways = [Home(1000, 0.0, None)]
        ways += [
            Home(int(b), float(c), None) for b, c in zip(rng.integers(1, 999, 6), rng.integers(1, 500, 6), strict=True)
        ]
        kept = hull(ways)
        assert kept[0] is ways[0]
        for price in np.geomspace(1e-3, 1e3, 200):
            assert min(w.bytes * price + w.cycles for w in kept) == min(w.bytes * price + w.cycles for w in ways)
