"""Random plans of one layer, which tests draw to find errors that priced plans would never meet."""

from __future__ import annotations

import math

import numpy as np

from d1c.analysis.layers import Layer
from d1c.analysis.plans import Plan, combine_plan, dim_ranges, layout_from
from d1c.ir.layout import need_of
from d1c.target.mesh import Group, Layout, LayoutError, Mesh


def random_plan(layer: Layer, rng: np.random.Generator, mesh: Mesh) -> Plan:
    """A plan drawn to find errors: idle factors, copies, blocks too large, any factor order, split reductions, flat
    rows."""
    nest = layer.nest
    extents = tuple(d.extent for d in nest.dims)
    for _ in range(20):
        flat = bool(rng.random() < 0.6)
        targets = dim_ranges(nest, layer, flat) or dim_ranges(nest, layer, False)
        assert targets is not None
        if not flat:
            targets = [(d, d + 1) for d in range(nest.parallel)]
        cut = nest.cut is not None
        picks = rng.integers(0, len(targets) + cut + 2, len(mesh.axes))  # the last: named nowhere, copies
        axes = [[a for a, p in zip(mesh.names, picks, strict=True) if p == i] for i in range(len(targets) + cut)]
        for names in axes:
            rng.shuffle(names)
        held = [a for a, p in zip(mesh.names, picks, strict=True) if p == len(targets) + cut]
        blocks = []
        for (a, b), ax in zip(targets, axes, strict=False):
            n = math.prod(extents[a:b])
            least = -(-n // mesh.parts(tuple(ax)))
            blocks.append(int(rng.integers(least, n + 1)) if rng.random() < 0.3 else least)
        rows, combine = list(targets), None
        if cut:
            assert nest.cut is not None
            slices = -(-extents[nest.cut] // nest.slice)
            per = 1 << max(0, -(-slices // mesh.parts(tuple(axes[-1]))) - 1).bit_length()
            if nest.kind == "attention" and axes[-1] and slices % per:
                continue
            rows.append((nest.cut, nest.cut + 1))
            blocks.append(per * nest.slice)
            if axes[-1]:
                to = int(rng.integers(len(targets) + 2))
                combine = combine_plan(nest, targets, axes, blocks, held, to, mesh)
        plan = layout_from(nest, rows, axes, blocks, held)
        try:
            for m, o in zip(nest.maps, layer.operands, strict=True):
                need_of(extents, m, o.shape, plan)
        except LayoutError:
            continue
        return Plan(plan, combine)
    return Plan(Layout(tuple(Group() for _ in nest.dims), mesh.names), None)
