"""Plans of one layer: how they are made of assignments of mesh factors to dims, and the stages of a split reduction.

A plan gives every mesh factor to one of the layer's dims (rows, columns, the cut of the reduction) or to nothing.
`candidates` lists those worth considering, `planner` chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from d1c.analysis.layers import Layer, Stored
from d1c.ir.core import Block, Value
from d1c.ir.layout import Need, need_of, reach, reading
from d1c.ir.structured import Dim, Entry, Map, Structured
from d1c.ir.types import TensorType
from d1c.target.dtypes import DType, dtype
from d1c.target.kernel import COMPUTE_TYPE
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

SHORT = 8
"""Columns that a part of a combining stage has at least: fewer would be short runs for whoever reads them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, and for a split reduction the plan of the combining stage."""

    plan: Layout
    combine: Layout | None


def dim_ranges(nest: Structured, layer: Layer, flat: bool, most: int = 2) -> list[tuple[int, int]] | None:
    """Dim ranges that factors may go to: rows (flat, or the `most` largest dims), columns; None: flat is not
    possible."""
    last = nest.parallel - 1
    rows = [d for d in range(last) if nest.dims[d].extent > 1]
    if flat:
        rows = [d for d in rows if d not in nest.alone]
        if len(rows) < 2:
            return None
        a, b = rows[0], rows[-1] + 1
        probe = Layout(
            (*(Group() for _ in range(a)), Group(b - a, ("probe",), 1), *(Group() for _ in range(len(nest.dims) - b)))
        )
        try:
            for m, o in zip(nest.maps, layer.operands, strict=True):
                need_of(tuple(d.extent for d in nest.dims), m, o.shape, probe)
        except LayoutError:
            return None
        return [(a, b), (last, last + 1)]
    rows = sorted(sorted(rows, key=lambda d: -nest.dims[d].extent)[:most])
    return [*((d, d + 1) for d in rows), (last, last + 1)]


def layout_from(
    nest: Structured,
    targets: Sequence[tuple[int, int]],
    axes: Sequence[Sequence[str]],
    blocks: Sequence[int],
    held: Sequence[str],
) -> Layout:
    """The plan that cuts target i in `blocks[i]` over `axes[i]`."""
    groups: list[Group] = []
    d = 0
    for (a, b), ax, bl in sorted(zip(targets, axes, blocks, strict=True), key=lambda t: t[0]):
        groups += [Group() for _ in range(d, a)]
        groups += [Group(b - a, tuple(ax), int(bl))] if ax else [Group() for _ in range(a, b)]
        d = b
    groups += [Group() for _ in range(d, len(nest.dims))]
    return Layout(tuple(groups), tuple(held))


def _scalar(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def inherited(nest: Structured, layout: Layout) -> Layout | None:
    """The plan that computes where an operand of the same leading dims lives."""
    if not layout.groups or sum(g.span for g in layout.groups) != nest.parallel:
        return None
    plan = Layout((*layout.groups, *(Group() for _ in range(len(nest.dims) - nest.parallel))), layout.held)
    spans = plan.spans(tuple(d.extent for d in nest.dims))
    if not all(nest.flat(a, b) for a, b, _, _ in spans):
        return None
    return None if any(g.axes and g.block > max(n, 1) for _, _, g, n in spans) else plan


def combined(
    ranges: Sequence[int], way: np.ndarray, blocks: np.ndarray, to: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """How the stages that add the nodes of split reductions are cut: [n, factors] of each factor the range and
    [n, ranges] blocks, as the first stages' `way` and `blocks`. The factors of the reduction (range len(ranges)) go to
    range `to` while there is enough of it, or are idle (len(ranges) + 1); where `to` is len(ranges) + 1, all their
    places add up the same (len(ranges) + 2). `ranges`: their extents, columns last."""
    after, cuts = way.astype(np.int64), blocks[:, : len(ranges)].copy()
    rest = len(ranges) + 1 + (to > len(ranges))
    if to < len(ranges):
        parts = np.where(way == to, mesh.sizes, 1).prod(axis=1)
        short = SHORT if to == len(ranges) - 1 else 1
    for a, n in enumerate(mesh.sizes):
        mine = way[:, a] == len(ranges)
        after[mine, a] = rest
        if to < len(ranges):
            grows = mine & (ranges[to] // parts >= n * short)
            parts[grows] *= n
            after[grows, a] = to
            cuts[grows, to] = -(-ranges[to] // parts[grows])
    return after, cuts


def combine_plan(
    nest: Structured,
    ranges: Sequence[tuple[int, int]],
    axes: Sequence[Sequence[str]],
    blocks: Sequence[int],
    held: Sequence[str],
    to: int,
    mesh: Mesh,
) -> Layout:
    """The plan of the stage that adds the nodes of a split reduction, whose first stage cuts `ranges`, and behind them
    the reduction, in `blocks` over `axes`: what `combined` says."""
    number = {a: r for r, names in enumerate((*axes, held)) for a in names}
    way = np.array([[number.get(a, len(ranges) + 2) for a in mesh.names]])
    sizes = [math.prod(d.extent for d in nest.dims[a:b]) for a, b in ranges]
    after, cuts = combined(sizes, way, np.array([blocks]), to, mesh)
    return combine_layout(nest, ranges, axes, held, after[0].tolist(), cuts[0].tolist(), mesh)


def combine_layout(
    nest: Structured,
    ranges: Sequence[tuple[int, int]],
    axes: Sequence[Sequence[str]],
    held: Sequence[str],
    after: Sequence[int],
    cuts: Sequence[int],
    mesh: Mesh,
) -> Layout:
    """`combine_plan` where what `combined` says of the way is known: `after`, by factor, and `cuts`, by range."""
    goes = dict(zip(mesh.names, after, strict=True))
    mine = [[*own, *(a for a in axes[-1] if goes[a] == r)] for r, own in enumerate(axes[:-1])]
    idle = [*held, *(a for a in axes[-1] if goes[a] == len(ranges) + 1)]
    stage = Structured((*nest.dims[: nest.parallel], nest.dims[-1]), "sum", (), (), 1)  # any kind
    return layout_from(stage, ranges, mine, cuts, idle)


def operand_need(dims: tuple[int, ...], index: Map, o: Stored, plan: Layout) -> Need:
    """The need of an operand; a constant is placed just as it is read. Raises LayoutError where it does not allow the
    plan."""
    return (need_of if o.constant else reading)(dims, index, o.shape, plan)


def windows(
    nest: Structured, index: Map, operand: Stored, ranges: Sequence[tuple[int, int]], blocks: np.ndarray
) -> np.ndarray:
    """[candidates] elements of the operand's window where dims `ranges[i]` are cut in `blocks[:, i]`. Raises
    LayoutError where flat dims are not monotone in the operand."""
    extents = tuple(d.extent for d in nest.dims)
    groups: list[Group] = []
    d = 0
    for i, (a, b) in sorted(enumerate(ranges), key=lambda t: t[1]):
        groups += [Group() for _ in range(d, a)]
        groups.append(Group(b - a, (f"t{i}",), 1))
        d = b
    groups += [Group() for _ in range(d, len(extents))]
    size = np.ones(len(blocks), np.float64)
    for comp in operand_need(extents, index, operand, Layout(tuple(groups))).moved.components:
        length = np.full(len(blocks), comp.rest_hi - comp.rest_lo + 1, np.float64)
        for part in comp.parts:
            block = np.minimum(blocks[:, int(part.axes[0][1:])], math.prod(part.extents))
            different, which = distinct(block)
            length += np.array([reach(part.extents, part.coefs, int(b)) for b in different])[which]
        size *= np.minimum(length, math.prod(x for _, x in comp.pads)) if comp.span > 1 else length
    return size


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values (0 or more) that occur, in order, and of each value which it is."""
    if 16 * len(values) < values.max(initial=0):
        return np.unique(values, return_inverse=True)
    number = np.zeros(values.max(initial=0) + 1, np.int64)  # a table takes less time than sorting
    number[values] = 1
    found = np.flatnonzero(number)
    number[found] = np.arange(len(found))
    return found, number[values]


def different(values: np.ndarray) -> np.ndarray:
    """The values (0 or more) that occur, in order. To sort takes a fourth of the time of np.unique's hashes, which also
    import numpy.ma."""
    found = np.sort(values)
    return found[np.diff(found, prepend=-1) > 0]


def spread(shape: tuple[int, ...], mesh: Mesh) -> Layout:
    """How inputs and gathered constants are kept: all dims but the last, flat, over all factors."""
    if not shape:
        return Layout((), mesh.names)
    span = max(1, len(shape) - 1)
    n = math.prod(shape[:span])
    tail = tuple(Group() for _ in shape[span:])
    return Layout((Group(span, mesh.names, -(-n // mesh.cores)), *tail))


def stages(layer: Layer, slots: int) -> tuple[Layer, Layer]:
    """A layer with a split reduction as two: the first makes `slots` nodes, the second combines them and goes on as the
    layer does."""
    nest = layer.nest
    nodes = Stored(f"{layer.result.name}.nodes", (slots, *nest.out_shape), accumulator_type(layer))
    first = replace(nest, maps=nest.maps[: nest.n_term], fills=nest.fills[: nest.n_term])
    own = tuple(Entry(((d, 1),)) for d in range(nest.parallel))
    stage = Structured(
        (*nest.dims[: nest.parallel], Dim("slot", slots, True)),
        {"mac": "sum", "lookup": "or"}.get(nest.kind, nest.kind),
        ((Entry(((nest.parallel, 1),)), *own), *nest.maps[nest.n_term :]), (None, *nest.fills[nest.n_term :]), 1,
        nest.parallel, 1,
    )  # fmt: skip
    return (
        replace(layer, nest=first, operands=layer.operands[: nest.n_term], epilogue=Block(), result=nodes),
        replace(layer, nest=stage, operands=(nodes, *layer.operands[nest.n_term :]), term=Block()),
    )


def accumulator_type(layer: Layer) -> DType:
    """The element type of the nodes of a split reduction."""
    if layer.nest.kind == "lookup":
        return layer.result.dtype
    term = layer.term.ops
    name = COMPUTE_TYPE[_scalar(term[-1].operands[0]).dtype.name if term else layer.operands[0].dtype.name]
    return dtype("bool" if name == "mask" else name)
