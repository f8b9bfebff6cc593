"""Which plans of a layer are worth considering, and what each costs by itself.

All ways to give the mesh factors to dims are priced at once: cycles of the fullest core by the formulas of the machine
(target/isa.py), bytes of its windows and its result. Then those are kept that are cheapest among plans that use dies
and columns alike: what the neighbours pay decides between them, and that only the whole graph knows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from d1c.analysis.layers import Layer
from d1c.analysis.plans import assignments, combine_plan, dim_ranges, layout_from, stages, windows
from d1c.analysis.price import Places, moves, window_elements
from d1c.analysis.shares import Read, call_of
from d1c.ir.core import Block
from d1c.ir.layout import Need, need_of
from d1c.ir.structured import Structured
from d1c.ir.types import TensorType
from d1c.ops.dist.compute import ComputeAttrs, compute_type
from d1c.target.isa import nest_pipes
from d1c.target.kernel import Nest
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

POOL = 5
"""Plans of a layer that are kept, for each that `Places.first` starts with."""
ALIKE = 4
"""Of these, how many may use dies alike."""
SPLITS = 12
"""And how many may split the reduction: each comes with several plans of its combining stage."""
DEAR = 2.0
"""A plan that takes longer than this many times the fastest, and twice the way over the machine with its launches, is
not worth its better place."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan. `needs`: per operand; `result`: where the result comes to be. `cycles`: what it takes without its
    movements (with that between the stages of a split reduction). `bytes`: of windows of operands that are no constants
    and of results; `constants`: of windows of constants, by operand."""

    plan: Layout
    combine: Layout | None
    needs: tuple[Need, ...]
    result: Layout
    cycles: float
    bytes: int
    constants: tuple[int, ...]


@dataclass(frozen=True)
class _Ways:
    """Candidates of one family as arrays: `ranges` of dims that may be cut (the last one the cut of the reduction if
    `cut`), [n, factors] the range of every factor (len(ranges): none), [n, ranges] blocks and parts that are used."""

    ranges: tuple[tuple[int, int], ...]
    cut: bool
    way: np.ndarray
    blocks: np.ndarray
    used: np.ndarray


@dataclass(frozen=True)
class _Figures:
    """Per candidate of a family: cycles, bytes of the operands' windows and last of the result."""

    cycles: np.ndarray
    sizes: list[np.ndarray]


def _whole(layer: Layer, plan: Layout, figures: _Figures, i: int) -> Candidate:
    """The candidate of a plan that does not split the reduction."""
    extents = tuple(d.extent for d in layer.nest.dims)
    needs = tuple(need_of(extents, m, o.shape, plan) for m, o in zip(layer.nest.maps, layer.operands, strict=True))
    sizes = [int(x[i]) for x in figures.sizes]
    constants = tuple(x if o.constant else 0 for x, o in zip(sizes, layer.operands, strict=False))
    result = Layout(plan.groups[: _parallel_groups(layer.nest, plan)], plan.held)
    return Candidate(plan, None, needs, result, float(figures.cycles[i]), sum(sizes) - sum(constants), constants)


def _parallel_groups(nest: Structured, plan: Layout) -> int:
    """How many of a plan's groups cover the parallel dims."""
    ends = itertools.accumulate(g.span for g in plan.groups)
    return next((k + 1 for k, end in enumerate(ends) if end == nest.parallel), 0)


def signature(layer: Layer) -> tuple[object, ...]:
    """Equal for layers that differ in names only."""
    return (
        layer.nest, tuple((o.shape, o.dtype, o.constant) for o in layer.operands), layer.result.dtype,
        _text(layer.term), _text(layer.epilogue),
    )  # fmt: skip


def _text(block: Block) -> tuple[object, ...]:
    number = {v: i for i, v in enumerate((*block.args, *(r for o in block.ops for r in o.results)))}
    return tuple((o.name, o.attrs, *(number[v] for v in o.operands)) for o in block.ops)


@dataclass(frozen=True, slots=True)
class Like:
    """A layer that equals those of its signature."""

    signature: tuple[object, ...]
    layer: Layer = field(compare=False)


@lru_cache(maxsize=512)
def kernel_of(like: Like) -> tuple[Nest, list[int]]:
    """The kernel of a layer that nothing cuts, and the iteration dim of each of its loops."""
    layer, nest = like.layer, like.layer.nest
    extents = tuple(d.extent for d in nest.dims)
    whole = Layout(tuple(Group() for _ in extents))
    reads = [
        Read(o.shape, o.dtype, need_of(extents, m, o.shape, whole))
        for o, m in zip(layer.operands, nest.maps, strict=True)
    ]
    made = call_of(nest, whole, layer.result.dtype, reads, layer.term, layer.epilogue, Mesh(())).nest
    names = {d.name: i for i, d in enumerate(nest.dims)}
    return made, [names[x.name] for x in made.loops]


def cycles_of(kernel: Nest, dims: Sequence[int], trips: np.ndarray, where: Places) -> np.ndarray:
    """[n] cycles of one call with trips [n, iteration dims], and its launch if the kernel is like a GEMM: work on
    vectors that waits for nobody goes on after what was before it."""
    m = where.machine
    launch = m.launch_cycles if kernel.kind in ("mac", "fma") else 0
    return np.asarray(np.ceil(nest_pipes(kernel, trips[:, dims], m).binding) + m.call_cycles + launch)


def families(layer: Layer, most: int = 3) -> Iterator[tuple[tuple[int, int], ...]]:
    """Ranges of parallel dims that may be cut: rows (flat, in pairs of the largest, or partly flat), then columns."""
    nest = layer.nest
    single = dim_ranges(nest, layer, False, most)
    assert single is not None
    rows, last = single[:-1], single[-1]
    flat = dim_ranges(nest, layer, True)
    if flat is not None:
        yield tuple(flat)
        if len(rows) == 3 and rows[0][1] == rows[1][0] and rows[1][1] == rows[2][0]:
            yield ((rows[0][0], rows[1][1]), rows[2], last)
    if len(rows) <= 2:
        yield (*rows, last)
    else:
        for pair in itertools.combinations(rows, 2):
            yield (*pair, last)


def _splits(nest: Structured) -> bool:
    cut = nest.cut
    return cut is not None and not nest.lanes and nest.kind in ("mac", "lookup") and nest.dims[cut].extent > nest.slice


def _ways(layer: Layer, ranges: tuple[tuple[int, int], ...], where: Places, loose: bool) -> _Ways:
    """All assignments that leave few parts idle, and those that use fewer lines of dies. Columns are rounded up to
    whole vectors or matrix steps where that takes no longer, and to whole packets. `loose`: however many are idle."""
    nest, mesh, machine = layer.nest, where.mesh, where.machine
    extents = tuple(d.extent for d in nest.dims)
    cut = _splits(nest)
    targets = len(ranges)
    sizes = [math.prod(extents[a:b]) for a, b in ranges]
    if cut:
        assert nest.cut is not None
        ranges = (*ranges, (nest.cut, nest.cut + 1))
        sizes.append(-(-extents[nest.cut] // nest.slice))
    way = assignments(mesh.axes, len(ranges))
    parts = np.stack([
        np.where(way == i, np.array(mesh.sizes, np.int64), 1).prod(axis=1) for i in range(len(ranges))
    ], axis=1)  # fmt: skip
    size = np.array(sizes)
    keep = np.all((parts <= size) | (parts == 1), axis=1) if not loose else np.all(parts <= 2 * size, axis=1)
    way, parts = way[keep], parts[keep]
    found = [(way, parts)]
    for name in ("dr", "dc"):
        if name not in mesh.index:
            continue
        factor, so_far = mesh.index[name], list(found)
        for fewer in range(2, mesh.sizes[factor]):
            for w, p in so_far:
                target = w[:, factor]
                leading = (target < targets) & np.all(w[:, :factor] != target[:, None], axis=1)
                at = np.flatnonzero(leading)
                less = p[at]
                less[np.arange(len(at)), target[at]] = (
                    less[np.arange(len(at)), target[at]] // mesh.sizes[factor] * fewer
                )
                found.append((w[at], less))
    way, parts = np.concatenate([w for w, _ in found]), np.concatenate([p for _, p in found])
    blocks = -(-size // parts)
    last = targets - 1
    step = machine.mma_n if nest.kind == "mac" else machine.f32_lanes
    several = (parts[:, last] > 1) & (blocks[:, last] > step // 2)
    blocks[:, last] = np.where(several, -(-blocks[:, last] // step) * step, blocks[:, last])
    full = max(1, machine.packet_bytes // layer.result.dtype.bytes)
    more = np.flatnonzero(several & (blocks[:, last] % full != 0) & (size[last] > full))
    wide = blocks[more]
    wide[:, last] = -(-wide[:, last] // full) * full
    way, parts = np.concatenate([way, way[more]]), np.concatenate([parts, parts[more]])
    blocks = np.minimum(np.concatenate([blocks, wide]), size)
    if cut:
        assert nest.cut is not None
        power = 2 ** np.ceil(np.log2(blocks[:, -1])).astype(np.int64)
        blocks[:, -1] = np.where(parts[:, -1] > 1, power, blocks[:, -1])
    used = -(-size // blocks)
    keep = np.all(loose | (used * 5 >= parts * 2), axis=1)
    if cut:
        assert nest.cut is not None
        keep &= (parts[:, -1] == 1) | (used[:, -1] == parts[:, -1])
        blocks[:, -1] = np.where(parts[:, -1] > 1, blocks[:, -1] * nest.slice, extents[nest.cut])
    return _Ways(ranges, cut, way[keep], blocks[keep], used[keep])


def _trips(nest: Structured, w: _Ways) -> np.ndarray:
    """[n, iteration dims] trips of the fullest core; those of a flat share all in its last dim."""
    trips = np.tile(np.array([d.extent for d in nest.dims]), (len(w.blocks), 1))
    for i, (a, b) in enumerate(w.ranges):
        if b - a == 1:
            trips[:, a] = np.minimum(w.blocks[:, i], trips[:, a])
        else:
            whole = (w.used[:, i] == 1)[:, None]
            trips[:, a:b] = np.where(whole, trips[:, a:b], 1)
            trips[:, b - 1] = np.where(whole[:, 0], trips[:, b - 1], w.blocks[:, i])
    return trips


def candidates(layer: Layer, where: Places, room: float) -> list[Candidate]:
    """The pool of a layer: plans whose windows and result take at most `room` bytes of a core, or nearly all of its
    SRAM where there is none. Raises LayoutError where that is too little too."""
    for limit, most, loose in ((room, 3, False), (0.95 * where.machine.data_bytes, 4, True)):
        found = _pool(layer, where, limit, most, loose)
        if found:
            return found
    raise LayoutError("no plan's windows fit SRAM")


def _pool(layer: Layer, where: Places, room: float, most: int, loose: bool) -> list[Candidate]:
    nest, mesh, m = layer.nest, where.mesh, where.machine
    kernel, dims = kernel_of(Like(signature(layer), layer))
    rows: list[tuple[float, tuple[object, ...], _Ways, int, _Figures]] = []
    kept = POOL * where.first
    if most > 3:
        ranges = dim_ranges(nest, layer, False, most)
        assert ranges is not None
        listed: list[tuple[tuple[int, int], ...]] = [tuple(ranges)]
    else:
        listed = list(families(layer, most))
    for family in listed:
        w = _ways(layer, family, where, loose)
        trips = _trips(nest, w)
        cycles = cycles_of(kernel, dims, trips, where)
        count = trips[:, : nest.parallel].prod(axis=1, dtype=np.float64)
        split = w.used[:, -1] > 1 if w.cut else np.zeros(len(cycles), bool)
        try:
            sizes = [
                windows(nest, index, o.shape, w.ranges, w.blocks) * o.dtype.bytes
                for index, o in zip(nest.maps, layer.operands, strict=True)
            ]
        except LayoutError:  # an operand does not go with these flat dims
            continue
        figures = _Figures(cycles, [*sizes, count * layer.result.dtype.bytes])
        taken = count * np.where(split, 8, layer.result.dtype.bytes) + sum(sizes)
        moved = sum((x for x, o in zip(sizes, layer.operands, strict=True) if not o.constant), np.zeros(len(cycles)))
        # A part of what a core reads is where it is; how much, depends on the neighbours.
        price = cycles + moved / m.link_bytes_per_cycle + np.where(split, count * 4 / m.link_bytes_per_cycle + 200, 0)
        fits = np.flatnonzero(taken <= room)
        if not len(fits):
            continue
        fits = fits[price[fits] <= DEAR * price[fits].min() + 2 * (where.across + 2 * m.launch_cycles)]
        dies = [mesh.index[a] for a in ("dr", "dc") if a in mesh.index]
        for i in fits[np.argsort(price[fits], kind="stable")][: 8 * kept]:
            cut = sorted({int(t) for t in w.way[i, dies] if t < len(family)})
            key = (family, *(int(w.way[i, d]) for d in dies), *(int(w.used[i, j]) for j in cut))
            rows.append((float(price[i]), key, w, int(i), figures))
    rows.sort(key=lambda r: r[0])
    found: dict[tuple[Layout, Layout | None], Candidate] = {}
    seen: dict[tuple[object, ...], int] = {}
    stages_ = 0
    for _, key, w, i, figures in rows:
        columns = (key, int(w.used[i, -1 - w.cut]), int(w.used[i, -1]) if w.cut else 1)
        splits = bool(w.cut and w.used[i, -1] > 1)
        if splits and stages_ >= SPLITS:
            continue
        if seen.get(key, 0) >= ALIKE or seen.get(columns, 0) >= 2 or len(found) >= kept:
            continue
        stages_ += splits
        seen[key], seen[columns] = seen.get(key, 0) + 1, seen.get(columns, 0) + 1
        for plan, combine in _layouts(layer, w, i, mesh):
            if (plan, combine) not in found:
                try:
                    found[plan, combine] = (
                        _whole(layer, plan, figures, i) if combine is None else priced(layer, plan, combine, where)
                    )
                except LayoutError:
                    continue
    return sorted(found.values(), key=lambda c: c.cycles)


def _layouts(layer: Layer, w: _Ways, i: int, mesh: Mesh) -> Iterator[tuple[Layout, Layout | None]]:
    """The plan of a way and, where it splits the reduction, the plans that the combining stage may have: its factors go
    to columns or to rows, or they are idle."""
    nest = layer.nest
    axes = [[a for a, t in zip(mesh.names, w.way[i], strict=True) if t == k] for k in range(len(w.ranges))]
    held = [a for a, t in zip(mesh.names, w.way[i], strict=True) if t == len(w.ranges)]
    blocks = [int(b) for b in w.blocks[i]]
    plan = layout_from(nest, w.ranges, axes, blocks, held)
    if not (w.cut and axes[-1]):
        yield plan, None
        return
    ranges = w.ranges[:-1]
    combines = (
        combine_plan(nest, ranges, axes[:-1], blocks[:-1], axes[-1], held, to, mesh) for to in range(len(ranges) + 1)
    )
    for combine in dict.fromkeys(combines):
        yield plan, combine


def priced(layer: Layer, plan: Layout, combine: Layout | None, where: Places) -> Candidate:
    """A given plan with its exact windows. Raises LayoutError where an operand does not allow it."""
    if combine is None:
        cycles, needs, result, sizes = _stage(layer, plan, where)
    else:
        made = _result(layer.nest, plan, "f32")
        slots = made.shape[0]
        first, second = stages(layer, slots)
        cycles, needs, _, sizes = _stage(first, plan, where)
        more, joined, result, added = _stage(second, combine, where)
        assert made.layout is not None
        between = moves([made.layout], joined[0], made.shape, first.result.dtype.bytes, where)
        cycles += more + float(between.cycles[0])
        if not between.in_place[0]:
            cycles += where.machine.launch_cycles
        needs, sizes = (*needs, *joined[1:]), (*sizes[:-1], *added[1:-1], sizes[-1] + added[0] + added[-1])
    constants = tuple(s if o.constant else 0 for o, s in zip(layer.operands, sizes, strict=False))
    return Candidate(plan, combine, needs, result, cycles, sum(sizes) - sum(constants), constants)


def _result(nest: Structured, plan: Layout, out: str) -> TensorType:
    try:
        return compute_type(ComputeAttrs(nest, plan, out))
    except ValueError as e:
        raise LayoutError(str(e)) from e


def _stage(layer: Layer, plan: Layout, where: Places) -> tuple[float, tuple[Need, ...], Layout, tuple[int, ...]]:
    """Cycles, needs, the result's layout; bytes of the windows and last of the result."""
    nest, mesh = layer.nest, where.mesh
    extents = tuple(d.extent for d in nest.dims)
    plan.check(extents, mesh)
    needs = tuple(need_of(extents, m, o.shape, plan) for m, o in zip(nest.maps, layer.operands, strict=True))
    trips = np.array([extents])
    for a, b, g, n in plan.spans(extents):
        if g.axes and g.block < n:
            trips[0, a:b] = 1
            trips[0, b - 1] = g.block
    kernel, dims = kernel_of(Like(signature(layer), layer))
    cycles = float(cycles_of(kernel, dims, trips, where)[0])
    result = _result(nest, plan, layer.result.dtype.name).layout
    assert result is not None
    sizes = [window_elements(n, mesh) * o.dtype.bytes for n, o in zip(needs, layer.operands, strict=True)]
    own = trips[0, : nest.parallel].prod()
    return cycles, needs, result, (*sizes, int(own) * layer.result.dtype.bytes)
