"""Plans of one layer: which there are, and what each costs in closed form.

A plan gives every mesh factor to one of the layer's dims (rows, columns, the cut of the reduction) or to nothing. The
price is the first, simple one: issue cycles of the fullest core, packets that it receives and sends, launch; no
overlap. Everything is vectorised over all assignments of factors; nothing is searched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from d1c.analysis.exchange import exchange_of, in_place
from d1c.analysis.layers import Layer
from d1c.analysis.shares import trace
from d1c.ir.core import Block, Op, Value
from d1c.ir.layout import need_of
from d1c.ir.structured import Map, Structured
from d1c.ir.types import TensorType
from d1c.target.dtypes import F32, DType, dtype
from d1c.target.isa import body_cycles
from d1c.target.kernel import COMPUTE_TYPE
from d1c.target.machine import Machine
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

IDLE = 0.6
"""How much dearer a plan is held to be that uses no core than one that uses all, in a layer with work for all of them:
what its readers pay for finding the result in few places."""
MESSAGE = 4.0
"""Cycles that a core spends on one message beyond its packets, roughly."""
READERS = 4.0
"""How often a result is read again, roughly: rows are gathered by several columns of cores and with their halos."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, and for a split reduction the plan of the combining stage. `cycles` is its price."""

    plan: Layout
    combine: Layout | None
    cycles: float


@cache
def _assignments(axes: tuple[tuple[str, int], ...], targets: int) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
    """Every way to give the factors to `targets` dims or to nothing (number `targets`); equal neighbours of one axis
    are interchangeable. Returns per way the target of every factor, and [ways, targets] how many parts each target
    gets."""
    runs: list[list[int]] = []
    for i, (name, size) in enumerate(axes):
        if (
            runs
            and axes[runs[-1][0]] == (axes[runs[-1][0]][0], size)
            and axes[runs[-1][0]][0].split(".")[0] == name.split(".")[0]
        ):
            runs[-1].append(i)
        else:
            runs.append([i])
    per = [list(itertools.combinations_with_replacement(range(targets + 1), len(r))) for r in runs]
    ways = [tuple(itertools.chain(*w)) for w in itertools.product(*per)]
    parts = np.ones((len(ways), targets + 1), np.int64)
    table = np.array(ways).reshape(len(ways), len(axes))
    for i, (_, size) in enumerate(axes):
        parts[np.arange(len(ways)), table[:, i]] *= size
    return tuple(ways), parts[:, :targets]


@cache
def _axis_parts(axes: tuple[tuple[str, int], ...], targets: int, names: tuple[str, ...]) -> np.ndarray:
    """[ways, targets] how many parts each target gets from the factors of these axes alone."""
    ways, _ = _assignments(axes, targets)
    table = np.array(ways).reshape(len(ways), len(axes))
    parts = np.ones((len(ways), targets + 1), np.int64)
    for i, (name, size) in enumerate(axes):
        if name.split(".")[0] in names:
            parts[np.arange(len(ways)), table[:, i]] *= size
    return parts[:, :targets]


def _link_cycles(packets: np.ndarray, keyed: set[int], axes: Mapping[str, np.ndarray], machine: Machine) -> np.ndarray:
    """The busiest link's packets when every window takes `packets`: windows that differ along node rows share the
    column links that a multicast over rows fills from end to end; those of one die share its row links and edges.
    `keyed`: the targets on which the window depends; `axes`: parts of every target on node rows, node columns, dies."""
    key, fan = {}, {}
    for name, parts in axes.items():
        mine = [i for i in range(parts.shape[1]) if i in keyed]
        key[name] = parts[:, mine].prod(axis=1)
        fan[name] = np.where(parts.prod(axis=1) > key[name], 1.0, 0.25)  # a window for one place needs part of the way
    die = packets * key["row"] * key["col"]
    edge = machine.die_edge_bytes_per_cycle / machine.packet_bytes
    row, col = packets * key["row"] * fan["row"], die / machine.grid_rows * fan["col"]
    busiest: np.ndarray = np.maximum(np.maximum(row, col), die / edge * fan["die"])
    return busiest


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


def _weight(block: Block, machine: Machine) -> float:
    """Issue cycles of a region's ops for one vector of elements."""
    return sum(
        _op_cycles(o.name, o.attrs, tuple(COMPUTE_TYPE[_scalar(v).dtype.name] for v in o.operands), machine)
        for o in block.ops[:-1]
    )


def _term_weight(layer: Layer, machine: Machine) -> float:
    """Of a layer's term, with what a step of its reduction takes in f64 beyond the one cycle of other types."""
    weight = _weight(layer.term, machine)
    if layer.nest.kind in ("map", "lookup", "scatter") or accumulator_type(layer).name != "f64":
        return weight
    steps = 2 if layer.nest.kind in ("mac", "fma") else 1
    return weight + steps * machine.f64_slots * machine.f32_lanes / machine.i64_lanes - 1


@cache
def _op_cycles(name: str, attrs: Any, kinds: tuple[str, ...], machine: Machine) -> float:
    """Of one elementwise op on operands of these compute types: what the body that its row records costs. At least 1: a
    cast issues nothing itself, but the store behind it rounds."""
    args, result = tuple(Value(TensorType((), F32)) for _ in kinds), Value(TensorType((), F32))
    block = Block(args, (Op(name, args, attrs, (result,)), Op("dist.yield", (result,))))
    return max(1.0, body_cycles(trace(block, kinds), machine))


def _scalar(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def idle_weight(nest: Structured, machine: Machine) -> float:
    """IDLE, less for a layer whose work, spread over all cores, takes less than its launch."""
    rate = machine.mma_flops_per_cycle / 2 if nest.kind == "mac" else machine.f32_lanes
    ideal = math.prod(d.extent for d in nest.dims) / (rate * machine.cores)
    return IDLE * min(1.0, ideal / machine.launch_cycles)


def work_cycles(
    nest: Structured,
    pair: bool,
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    term: float,
    epilogue: float,
    machine: Machine,
) -> np.ndarray:
    """Issue cycles of one core that computes m rows x n columns with k reduce iterations (pairs counted twice). `term`,
    `epilogue`: cycles of these bodies for one vector."""
    vectors = m * -(-n // machine.f32_lanes)
    main: np.ndarray
    if nest.kind == "mac" and pair:
        main = -(-m // machine.mma_m) * -(-n // machine.mma_n) * -(-k // machine.mma_k) * machine.mma_cycles
    elif nest.kind == "lookup":
        main = vectors * 2
    elif nest.kind == "scatter":  # every update is looked at; those of the core's own rows, about its share, are done
        main = vectors + k * (2 + (1 + term) * vectors / nest.dims[0].extent)
    elif nest.lanes:
        main = m * n * -(-k // machine.f32_lanes) * (1 + term)
    elif nest.kind == "map":
        main = vectors
    else:
        main = vectors * k * (1 + term)
    return np.asarray(main + vectors * (epilogue + 1))


def choose(
    layer: Layer, layouts: Sequence[Layout | None], machine: Machine, mesh: Mesh, resident_bytes: float, share: float
) -> Plan:
    """The cheapest plan. `layouts`: of every operand, None for constants. `resident_bytes`: how large a constant's
    window may be to stay in SRAM for good; larger ones are priced as gathered. `share`: how much of SRAM the windows
    and the result of a layer may take, if some plan gets along with that. Raises LayoutError where no plan fits."""
    best: Plan | None = None
    room = share * machine.data_bytes
    for flat in (True, False):
        targets = dim_ranges(layer.nest, layer, flat)
        if targets is not None:
            found = _family(layer, targets, layouts, machine, mesh, resident_bytes, room)
            if found is not None and (best is None or found.cycles < best.cycles):
                best = found
    if best is None:  # more dims to cut, cores without a share, in the end nearly all of SRAM
        targets = dim_ranges(layer.nest, layer, False, 4)
        for most in (room, 0.95 * machine.data_bytes):
            if targets is not None and best is None:
                best = _family(layer, targets, layouts, machine, mesh, resident_bytes, most, tight=True)
    for layout in dict.fromkeys(x for x in layouts if x is not None):
        like = _inherit(layer.nest, layout)
        if like is None:
            continue
        try:
            found = _exact(layer, like, layouts, machine, mesh, resident_bytes, room)
        except LayoutError:
            continue
        if found is not None and (best is None or found.cycles < best.cycles):
            best = found
    if best is None:
        raise LayoutError("no plan's windows fit SRAM")
    return best


def _inherit(nest: Structured, layout: Layout) -> Layout | None:
    """The plan that computes where an operand of the same leading dims lives."""
    if not layout.groups or sum(g.span for g in layout.groups) != nest.parallel:
        return None
    plan = Layout((*layout.groups, *(Group() for _ in range(len(nest.dims) - nest.parallel))), layout.held)
    spans = plan.spans(tuple(d.extent for d in nest.dims))
    if any(b - a > 1 and a <= d < b for a, b, _, _ in spans for d in nest.alone):
        return None
    return None if any(g.axes and g.block > max(n, 1) for _, _, g, n in spans) else plan


def _exact(
    layer: Layer,
    plan: Layout,
    layouts: Sequence[Layout | None],
    machine: Machine,
    mesh: Mesh,
    resident_bytes: float,
    room: float,
) -> Plan | None:
    """The price of one given plan, with exact windows and without the movements that are none."""
    nest = layer.nest
    extents = tuple(d.extent for d in nest.dims)
    plan.check(extents, mesh)
    sizes = {a: g.block if g.axes else n for a, _, g, n in plan.spans(extents)}  # by each group's first dim
    comm, sram = 0.0, 0.0
    for index, o, lay in zip(nest.maps, layer.operands, layouts, strict=True):
        need = need_of(extents, index, o.shape, plan)
        size = math.prod(need.local_shape(mesh)) * o.dtype.bytes
        if lay is None:
            sram += size
            comm += size / machine.link_bytes_per_cycle if size > resident_bytes else 0
            continue
        if lay.axes and in_place(exchange_of(lay, o.shape, need, mesh), lay, need):
            continue
        sram += size
        comm += machine.launch_cycles + 2 * size / machine.link_bytes_per_cycle
    last = max(d for d in sizes if d < nest.parallel)
    rows = math.prod(v for d, v in sizes.items() if d < last)
    kk = math.prod(v for d, v in sizes.items() if d >= nest.parallel)
    if sram + rows * sizes[last] * layer.result.dtype.bytes > room:
        return None
    pair = nest.kind == "mac" and nest.dims[-1].extent == 2
    m, n, k = np.array([rows]), np.array([sizes[last]]), np.array([kk])
    cycles = work_cycles(nest, pair, m, n, k, _term_weight(layer, machine), _weight(layer.epilogue, machine), machine)
    used = math.prod(-(-n // sizes[a]) for a, _, _, n in plan.spans(extents))
    total = float(cycles[0]) + comm + machine.launch_cycles
    return Plan(plan, None, total * (1 + idle_weight(nest, machine) * (1 - used / mesh.cores)))


def _family(
    layer: Layer,
    targets: list[tuple[int, int]],
    layouts: Sequence[Layout | None],
    machine: Machine,
    mesh: Mesh,
    resident_bytes: float,
    room: float,
    tight: bool = False,
) -> Plan | None:
    """The cheapest assignment of factors to these targets and, where the reduction may be cut, to its cut, with at most
    `room` bytes of windows and result. `tight`: also with idle cores."""
    nest = layer.nest
    extents = tuple(d.extent for d in nest.dims)
    cut = nest.cut is not None and not nest.lanes and nest.kind in ("mac", "lookup") and extents[nest.cut] > nest.slice
    ways, parts = _assignments(mesh.axes, len(targets) + cut)
    sizes = [math.prod(extents[a:b]) for a, b in targets]
    blocks = np.stack([-(-n // parts[:, i]) for i, n in enumerate(sizes)], axis=1)
    ok = np.all(
        (parts[:, : len(targets)] - 1) * blocks < np.array(sizes)[None, :] + blocks * (parts[:, : len(targets)] == 1),
        axis=1,
    )
    ok |= np.all(parts == 1, axis=1)
    if tight:
        ok |= np.all(parts[:, : len(targets)] <= np.array(sizes)[None, :], axis=1)
    k_total = math.prod(extents[nest.parallel :])
    if cut:
        assert nest.cut is not None
        slices = -(-extents[nest.cut] // nest.slice)
        per = 2 ** np.ceil(np.log2(np.maximum(1, -(-slices // parts[:, -1])))).astype(np.int64)
        kblock = np.where(parts[:, -1] > 1, per * nest.slice, extents[nest.cut])
        ok &= (parts[:, -1] == 1) | ((parts[:, -1] <= slices) & (per * (parts[:, -1] - 1) < slices))
        k = k_total // extents[nest.cut] * np.minimum(kblock, extents[nest.cut])
    else:
        kblock = np.zeros(len(ways), np.int64)
        k = np.full(len(ways), k_total)
    index = np.flatnonzero(ok)
    if not len(index):
        return None
    blocks, kblock, k, parts = blocks[index], kblock[index], k[index], parts[index]
    fixed = math.prod(
        d.extent for i, d in enumerate(nest.dims[: nest.parallel]) if not any(a <= i < b for a, b in targets)
    )
    m, n = blocks[:, :-1].prod(axis=1) * fixed, blocks[:, -1]
    pair = nest.kind == "mac" and nest.dims[-1].extent == 2
    split = parts[:, -1] > 1 if cut else np.zeros(len(index), bool)
    epi = _weight(layer.epilogue, machine)
    cycles = work_cycles(nest, pair, m, n, k, _term_weight(layer, machine), 0, machine).astype(np.float64)
    vectors = m * -(-n // machine.f32_lanes)
    cycles += np.where(split, vectors, vectors * (epi + 1)) + machine.launch_cycles
    sram = (m * n * np.where(split, 4, layer.result.dtype.bytes)).astype(np.float64)
    classes = parts.prod(axis=1)
    axes_of = {"row": ("nr",), "col": ("nc",), "die": ("dr", "dc")}
    parts_of = {k: _axis_parts(mesh.axes, len(targets) + cut, v)[index] for k, v in axes_of.items()}
    for index_map, o, lay in zip(nest.maps, layer.operands, layouts, strict=True):
        size, run, keyed = _windows(nest, index_map, o.shape, targets, blocks, kblock if cut else None)
        size = size * o.dtype.bytes
        run = run * o.dtype.bytes
        sram += size
        if lay is None:
            cycles += np.where(
                size > resident_bytes, size / machine.link_bytes_per_cycle, size / machine.link_bytes_per_cycle / 64
            )
            continue
        own = math.prod(lay.local_shape(o.shape)) * o.dtype.bytes
        tail = lay.groups[-1].block * o.dtype.bytes if lay.groups and lay.groups[-1].axes else 1 << 30
        run = np.minimum(run, tail)
        packets = size / machine.packet_bytes * np.maximum(1, machine.packet_bytes / np.maximum(run, 1))
        messages = np.minimum(size / max(own, 1) + 1, size / o.dtype.bytes)
        if lay.groups and lay.groups[-1].axes:
            messages = np.maximum(messages, np.minimum(size, o.dtype.bytes * extents[-1]) / np.maximum(run, 1))
        links = _link_cycles(packets, keyed, parts_of, machine)
        cycles += machine.launch_cycles + np.maximum(packets, links) + MESSAGE * messages
        cycles += np.where(classes > 1, 100, 0)
    # a split reduction sends f32 nodes to a second stage
    nodes = m * n * 4 / machine.packet_bytes
    cycles += np.where(
        split, machine.launch_cycles * 2 + nodes * 2 + 8 * (parts[:, -1] if cut else 1) + vectors * (epi + 2), 0
    )
    # whoever reads the result gathers whole rows: short runs of columns cost it a packet each
    row = np.where(parts[:, len(targets) - 1] > 1, n, 1 << 20) * layer.result.dtype.bytes
    short = np.maximum(machine.packet_bytes / row, 1) - 1
    cycles += READERS * m * sizes[-1] * layer.result.dtype.bytes / machine.packet_bytes * short
    used = (-(-np.array(sizes)[None, :] // blocks)).prod(axis=1) * np.where(split, -(-k_total // np.maximum(k, 1)), 1)
    cycles = np.where(sram > room, np.inf, cycles)
    price = cycles * (1 + idle_weight(nest, machine) * (1 - np.minimum(used / mesh.cores, 1)))
    at = int(np.argmin(price))
    if not np.isfinite(cycles[at]):
        return None
    way = ways[int(index[at])]
    axes = [[a for a, w in zip(mesh.names, way, strict=True) if w == i] for i in range(len(targets) + cut)]
    held = [a for a, w in zip(mesh.names, way, strict=True) if w == len(targets) + cut]
    rows = [*targets]
    sizes_at = [int(b) for b in blocks[at]]
    combine = None
    if cut:
        assert nest.cut is not None
        rows.append((nest.cut, nest.cut + 1))
        sizes_at.append(int(kblock[at]))
        if axes[-1]:
            combine = combine_plan(nest, targets, axes[:-1], axes[-1], held, mesh)
    return Plan(layout_from(nest, rows, axes, sizes_at, held), combine, float(price[at]))


def combine_plan(
    nest: Structured,
    targets: Sequence[tuple[int, int]],
    axes: Sequence[Sequence[str]],
    cut_axes: Sequence[str],
    held: Sequence[str],
    mesh: Mesh,
) -> Layout:
    """The plan of the stage that adds the nodes of a split reduction: its factors go to columns, to rows, or idle."""
    extents = tuple(d.extent for d in nest.dims)
    stage = Structured((*nest.dims[: nest.parallel], nest.dims[-1]), "sum", (), (), 1)  # any kind
    chosen = [list(a) for a in axes]
    idle = list(held)
    for a in cut_axes:
        n = mesh.sizes[mesh.index[a]]
        room = [math.prod(extents[x:y]) // mesh.parts(tuple(c)) for (x, y), c in zip(targets, chosen, strict=True)]
        if room[-1] >= 16 * n:
            chosen[-1].append(a)
        elif room[0] >= n:
            chosen[0].append(a)
        else:  # fewer columns a core would make whoever reads the result gather short runs
            idle.append(a)
    blocks = [-(-math.prod(extents[x:y]) // mesh.parts(tuple(c))) for (x, y), c in zip(targets, chosen, strict=True)]
    return layout_from(stage, list(targets), chosen, blocks, idle)


def _windows(
    nest: Structured,
    index: Map,
    shape: tuple[int, ...],
    targets: Sequence[tuple[int, int]],
    blocks: np.ndarray,
    kblock: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Per candidate: elements of the operand's window and of its innermost component; the targets it depends on."""
    extents = tuple(d.extent for d in nest.dims)
    ranges = list(targets)
    if kblock is not None and nest.cut is not None:
        ranges = [*ranges, (nest.cut, nest.cut + 1)]
    groups: list[Group] = []
    d = 0
    for i, (a, b) in sorted(enumerate(ranges), key=lambda t: t[1]):
        groups += [Group() for _ in range(d, a)]
        groups.append(Group(b - a, (f"t{i}",), 1))
        d = b
    groups += [Group() for _ in range(d, len(extents))]
    need = need_of(extents, index, shape, Layout(tuple(groups)))
    size = np.ones(len(blocks), np.float64)
    keyed: set[int] = set()
    length = np.ones(len(blocks), np.float64)
    for comp in need.components:
        length = np.full(len(blocks), comp.rest_hi - comp.rest_lo + 1, np.float64)
        for part in comp.parts:
            i = int(part.axes[0][1:])
            if kblock is not None and i == len(targets):
                block = np.minimum(kblock, extents[ranges[i][0]])
            else:
                block = blocks[:, i]
            distinct, inverse = np.unique(block, return_inverse=True)
            length += np.array([_reach(part.extents, part.coefs, int(b)) for b in distinct])[inverse]
            keyed.add(i)
        limit = math.prod(x for _, x in comp.pads) if comp.span > 1 else np.inf
        length = np.minimum(length, limit)
        size *= length
    return size, length, keyed


@cache
def _reach(extents: tuple[int, ...], coefs: tuple[int, ...], block: int) -> int:
    """How far apart the first and the last element of a share of `block` are in the component, at most."""
    n = math.prod(extents)
    start = np.arange(-(-n // block)) * block
    stop = np.minimum(start + block, n) - 1

    def value(x: np.ndarray) -> np.ndarray:
        out, rest = np.zeros_like(x), x
        for e, c in zip(reversed(extents), reversed(coefs), strict=True):
            out, rest = out + c * (rest % e), rest // e
        return out

    return int(np.abs(value(stop) - value(start)).max())


def spread(shape: tuple[int, ...], mesh: Mesh) -> Layout:
    """How inputs and gathered constants are kept: all dims but the last, flat, over all factors."""
    if not shape:
        return Layout((), mesh.names)
    span = max(1, len(shape) - 1)
    n = math.prod(shape[:span])
    tail = tuple(Group() for _ in shape[span:])
    return Layout((Group(span, mesh.names, -(-n // mesh.cores)), *tail))


def accumulator_type(layer: Layer) -> DType:
    """The element type of the nodes of a split reduction."""
    if layer.nest.kind == "lookup":
        return layer.result.dtype
    if layer.term.ops:
        return dtype(COMPUTE_TYPE[_scalar(layer.term.ops[-1].operands[0]).dtype.name])
    return dtype(COMPUTE_TYPE[layer.operands[0].dtype.name])
