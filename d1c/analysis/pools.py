"""Which plans of a layer are worth considering.

All ways to give the mesh factors to dims are priced at once: cycles of the fullest core by the formulas of the machine
(target/isa.py), bytes of its windows and its result. Those that may be worth it are looked at more closely: what would
their operands' movements cost if the layers before were cut alike (price_ways)? Then those are kept that are cheapest
among plans that use dies and columns alike: what the neighbours really pay only the whole graph knows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from d1c.analysis.attention import scratch_bytes
from d1c.analysis.candidates import (
    Candidate,
    Like,
    cycles_of,
    idle_price,
    joins_of,
    kernel_of,
    made,
    needs_of,
    parallel_groups,
    signature,
    split,
)  # fmt: skip
from d1c.analysis.layers import Layer
from d1c.analysis.native import Native
from d1c.analysis.plans import accumulator_type, assignments, combine_layout, combined, dim_ranges, layout_from, windows
from d1c.analysis.price import Places, form_of
from d1c.ir.layout import reading
from d1c.ir.structured import Structured
from d1c.target.mesh import Layout, LayoutError

_stage_moves, _operand_moves = Native("price_ways", "joined"), Native("price_ways", "settled")

POOL = 5
"""Plans of a layer that are kept, for each that `Places.first` starts with."""
QUOTAS = ((3, 12), (8, 5), (16, 3))
"""Of these, how many may use dies alike: 12 for each of the three ways of using them that are best, and so on; 1 for
others."""
LIKE = 6
"""How many are looked at of those that cut all dims in equally many parts."""
LOOKED = 6
"""How many times as many of each family are looked at with the movements that plans alike would cause."""
FEW = 16
"""They are found among so many times as many of the cheapest."""
BYTES = (0.0, 0.1)
"""Cycles that a byte of constants counts when plans are looked at: where SRAM is plenty, and where it is scarce."""
DEAR = 2.0
"""A plan that takes longer than this many times the fastest, and twice the way over the machine with its launches, is
not worth its better place."""


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


@dataclass(frozen=True, slots=True)
class _Row:
    """A plan that is looked at: `price` with the movements that plans alike would cause; bytes of constants that it
    holds; the `kind` of its use of dies; which of the ways; `to`: the range of `combined`, None: nothing is split; its
    own `cycles`."""

    price: float
    held: float
    kind: object
    ways: _Ways
    number: int
    to: int | None
    cycles: float
    figures: _Figures


NARROW = 8
"""With fewer columns all three rows may be cut: there is nothing to gain from cutting the columns of an image."""


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
    if len(rows) == 3 and nest.dims[last[0]].extent < NARROW:
        yield tuple(rows)
    if len(rows) <= 2:
        yield (*rows, last)
    else:
        for pair in itertools.combinations(rows, 2):
            yield (*pair, last)


def _splits(nest: Structured) -> bool:
    return nest.cut is not None and nest.dims[nest.cut].extent > nest.slice


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
    way, parts = assignments(mesh.axes, len(ranges))
    size = np.array(sizes)
    idle = loose or nest.kind == "attention"  # heads are few, and a second one on a core costs as much as the first
    spare = cut and nest.kind not in ("mac", "attention")  # slices come in powers of two, and those of vector work few
    most = np.where(idle | (spare & (np.arange(len(size)) == targets)), 2 * size, size)
    keep = _all((parts <= most) | (parts == 1))
    way, parts = way[keep], parts[keep]
    found = [(way, parts)]
    for name in ("dr", "dc"):
        if name not in mesh.index:
            continue
        factor, so_far = mesh.index[name], list(found)
        for fewer in range(2, mesh.sizes[factor]):
            for w, p in so_far:
                target = w[:, factor]
                leading = (target < targets) & _all(w[:, :factor] != target[:, None])
                at = np.flatnonzero(leading)
                less = p[at]
                less[np.arange(len(at)), target[at]] = (
                    less[np.arange(len(at)), target[at]] // mesh.sizes[factor] * fewer
                )
                found.append((w[at], less))
    way, parts = np.concatenate([w for w, _ in found]), np.concatenate([p for _, p in found])
    blocks = -(-size // parts)
    last = targets - 1
    step = machine.mma_n if nest.kind in ("mac", "attention") else machine.f32_lanes
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
    keep = _all(loose | (used * 5 >= parts * 2))
    if cut:
        assert nest.cut is not None
        keep &= (parts[:, -1] == 1) | ((used[:, -1] > 1) & (spare | (used[:, -1] == parts[:, -1])))
        if nest.kind == "attention":  # whose cores have equally many chunks
            keep &= (parts[:, -1] == 1) | (extents[nest.cut] % blocks[:, -1] == 0)
        blocks[:, -1] = np.where(parts[:, -1] > 1, blocks[:, -1] * nest.slice, extents[nest.cut])
    kept = np.flatnonzero(keep)
    return _Ways(ranges, cut, way.take(kept, 0), blocks.take(kept, 0), used.take(kept, 0))


def _product(table: np.ndarray) -> np.ndarray:
    """Of every row."""
    out = np.ones(len(table), np.int64)
    for column in table.T:
        out *= column
    return out


def _all(table: np.ndarray) -> np.ndarray:
    """Of every row; `np.all` is slow along short rows."""
    out = np.ones(len(table), bool)
    for column in table.T:
        out &= column
    return out


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


def pool_of(layer: Layer, where: Places, room: float) -> Pool:
    """The pool of a layer: plans whose windows and result take at most `room` bytes of a core, or nearly all of its
    SRAM where there is none. Raises LayoutError where that is too little too."""
    for limit, most, loose in ((room, 3, False), (0.95 * where.machine.data_bytes, 4, True)):
        rows = _looked(layer, where, limit, most, loose)
        if rows:
            return Pool(layer, where, rows)
    raise LayoutError("no plan's windows fit SRAM")


@dataclass
class Pool:
    """The plans of a layer that were looked at."""

    layer: Layer
    where: Places
    rows: list[_Row]
    made: dict[int, Candidate | None] = field(default_factory=dict)

    def at(self, byte: float) -> list[Candidate]:
        """Those worth considering where a byte of constants counts `byte` cycles."""
        found: dict[tuple[Layout, Layout | None], Candidate] = {}
        picked = _picked(self.rows, POOL * self.where.first, byte)
        new = [r for r in picked if id(r) not in self.made]
        joins = _joins(self.layer, new, self.where)
        for r in new:
            try:
                self.made[id(r)] = _candidate(self.layer, r, joins.get(id(r)), self.where)
            except LayoutError:  # an operand does not go with the combining stage
                self.made[id(r)] = None
        for r in picked:
            c = self.made[id(r)]
            if c is not None:
                found.setdefault((c.plan, c.combine), c)
        return list(found.values())


def _looked(layer: Layer, where: Places, room: float, most: int, loose: bool) -> list[_Row]:
    nest, mesh, m = layer.nest, where.mesh, where.machine
    kernel, dims = kernel_of(Like(signature(layer), layer))
    rows: list[_Row] = []
    kept = POOL * where.first
    if most > 3:
        ranges = dim_ranges(nest, layer, False, most)
        assert ranges is not None
        listed: list[tuple[tuple[int, int], ...]] = [tuple(ranges)]
    else:
        listed = list(families(layer, most))
    dies = [mesh.index[a] for a in ("dr", "dc") if a in mesh.index]
    for family in listed:
        w = _ways(layer, family, where, loose)
        trips = _trips(nest, w)
        cycles = cycles_of(kernel, dims, trips, where)
        count = _product(trips[:, : nest.parallel]).astype(np.float64)
        divided = w.used[:, -1] > 1 if w.cut else np.zeros(len(cycles), bool)
        try:
            sizes = [
                windows(nest, index, o, w.ranges, w.blocks) * o.dtype.bytes
                for index, o in zip(nest.maps, layer.operands, strict=True)
            ]
        except LayoutError:  # an operand does not go with these flat dims
            continue
        figures = _Figures(cycles, [*sizes, count * layer.result.dtype.bytes])
        node = accumulator_type(layer).bytes if w.cut else 0
        taken = count * np.where(divided, 2 * node, layer.result.dtype.bytes) + sum(sizes)
        if nest.kind == "attention":
            taken += scratch_bytes(layer, trips)
        nothing = np.zeros(len(cycles))
        held = sum((x for x, o in zip(sizes, layer.operands, strict=True) if o.constant), nothing)
        moved = sum((x for x, o in zip(sizes, layer.operands, strict=True) if not o.constant), nothing)
        # A part of what a core reads is where it is; how much, depends on the neighbours.
        idle = idle_price(cycles, _product(w.used), where)
        price = cycles + idle + moved / m.link_bytes_per_cycle
        price += np.where(divided, count * node / m.link_bytes_per_cycle + 2 * m.launch_cycles, 0)
        fits = np.flatnonzero(taken <= room)
        if not len(fits):
            continue
        fits = _worth(price, held, fits, np.concatenate([w.way[:, dies], w.used], axis=1), LOOKED * kept, where)
        price = cycles[fits] + idle[fits] + _settled(layer, w, fits, where)
        parts = []
        columns = (fits, price, held[fits], cycles[fits], w.way[fits][:, dies], w.used[fits])
        for i, cost, bytes_, own, by, used in zip(*(x.tolist() for x in columns), strict=True):
            kind = (family, *by, *(used[j] for j in sorted({t for t in by if t < len(family)})))
            parts.append(_Row(cost, bytes_, kind, w, i, None, own, figures))
        rows += [r for r in parts if not divided[r.number]]
        cut = [r for r in parts if divided[r.number]]
        first = {r.number: r for byte in BYTES for r in _cheapest(cut, byte)[:kept]}
        cut = [first[i] for i in sorted(first)]
        if cut:
            for to, more in enumerate(_joined(layer, w, np.array([r.number for r in cut]), where)):
                made = ((r, c) for r, c in zip(cut, more.tolist(), strict=True) if c < math.inf)
                rows += [replace(r, price=r.price + c, cycles=r.cycles + c, to=to) for r, c in made]
    return rows


def _worth(
    price: np.ndarray, held: np.ndarray, fits: np.ndarray, keys: np.ndarray, count: int, where: Places
) -> np.ndarray:
    """Of the ways `fits` some `count` that are cheap, at one of BYTES or another; of equal `keys` LIKE each."""
    slack = 2 * (where.across + 2 * where.machine.launch_cycles)
    bytes_ = BYTES if held.any() else BYTES[:1]
    out = []
    for byte in bytes_:
        cost = price[fits] + held[fits] * byte
        close = cost <= DEAR * cost.min() + slack
        near, cost = fits[close], cost[close]
        if len(near) > FEW * count:
            cheap = np.sort(np.argpartition(cost, FEW * count)[: FEW * count])
            near, cost = near[cheap], cost[cheap]
        near = near[np.argsort(cost, kind="stable")]
        out.append(near[_firsts(keys[near], LIKE)][: count // len(bytes_)])
    return np.unique(np.concatenate(out))


def _cheapest(rows: Sequence[_Row], byte: float) -> list[_Row]:
    return sorted(rows, key=lambda r: r.price + r.held * byte)


def _picked(rows: Sequence[_Row], count: int, byte: float) -> list[_Row]:
    """The cheapest: many of those few kinds that use dies best, few of the others."""
    kinds: dict[object, int] = {}
    taken: dict[object, int] = {}
    picked: list[_Row] = []
    for r in _cheapest(rows, byte):
        kind = kinds.setdefault(r.kind, len(kinds))
        quota = next((q for upto, q in QUOTAS if kind < upto), 1)
        if taken.get(r.kind, 0) >= quota:
            continue
        alike = (r.kind, r.to, *r.ways.used[r.number, -1 - r.ways.cut :].tolist())
        if taken.get(alike, 0) < 2:
            taken[r.kind], taken[alike] = taken.get(r.kind, 0) + 1, taken.get(alike, 0) + 1
            picked.append(r)
            if len(picked) == count:
                break
    return picked


def _joined(layer: Layer, w: _Ways, which: np.ndarray, where: Places) -> Iterator[np.ndarray]:
    """For each range to which `combined` may give the factors of the cut, then for none: [which] cycles from the first
    stage of a split reduction to the result; inf for those that an earlier choice has too."""
    nest, m = layer.nest, where.machine
    ranges = w.ranges[:-1]
    extents = [math.prod(d.extent for d in nest.dims[a:b]) for a, b in ranges]
    way, blocks, slots = w.way[which].astype(np.int64), w.blocks[which], w.used[which, -1]
    dims, of, d = list[int](), list[int](), 0
    for r, (a, b) in sorted(enumerate(ranges), key=lambda t: t[1]):
        dims, of = [*dims, *(x.extent for x in nest.dims[d:a]), extents[r]], [*of, *(-1 for _ in range(d, a)), r]
        d = b
    kernel, loops = joins_of(layer, int(slots.max()))
    stages = [combined(extents, way, blocks, to, where.mesh) for to in range(len(ranges) + 1)]
    new = np.ones((len(stages), len(way)), bool)
    for t, (mine, _) in enumerate(stages):
        for earlier, _ in stages[:t]:
            new[t] &= np.any(mine != earlier, axis=1)
    after, cuts = (np.concatenate([x[k][at] for x, at in zip(stages, new, strict=True)]) for k in (0, 1))
    asked = np.tile(np.concatenate([way, blocks, slots[:, None]], axis=1), (len(stages), 1))[new.ravel()]
    first, inverse = _distinct(np.concatenate([asked, after, cuts], axis=1))
    same = np.all(asked[first[1:]] == asked[first[:-1]], axis=1)
    factors, parts = way.shape[1], blocks.shape[1]
    asked = asked[first]
    found = np.empty(len(first))
    _stage_moves(
        np.array(dims, np.int64), np.array(of, np.int64), asked[:, :factors].copy(),
        asked[:, factors : factors + parts].copy(), after[first], cuts[first], asked[:, -1].copy(),
        np.concatenate([[0], same]), where.grid, accumulator_type(layer).bytes, found,
    )  # fmt: skip
    out = np.full(new.shape, math.inf)
    out[new] = found[inverse]
    for to, (_, mine) in enumerate(stages):
        cycles = out[to]
        waits = 1 + (nest.kind == "attention" and to == len(ranges) - 1)  # for the weights, from where column 0 is
        cycles += np.where(cycles > 0, waits * m.launch_cycles + m.inject_cycles + m.eject_cycles, 0)
        stage = _Ways(ranges, False, way, mine, -(-np.array(extents) // mine))
        trips = np.concatenate([_trips(nest, stage)[:, : nest.parallel], slots[:, None]], axis=1)
        yield cycles + cycles_of(kernel, loops, trips, where)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of rows that differ from all before them, in some order that brings equal starts together; of each
    row, which of those it equals."""
    if not rows.shape[1]:  # a machine of one core has no factors
        return np.zeros(1, np.int64), np.zeros(len(rows), np.int64)
    whole = np.ascontiguousarray(rows, np.int64).view(np.dtype((np.void, 8 * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return first, inverse


def _firsts(keys: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the first `count` rows of every kind, in order."""
    code = np.zeros(len(keys), np.int64)
    for column in keys.T:
        code = code * (int(column.max()) + 1) + column
    _, kind = np.unique(code, return_inverse=True)
    order = np.argsort(kind, kind="stable")
    starts = np.flatnonzero(np.diff(kind[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < count])


def _settled(layer: Layer, w: _Ways, which: np.ndarray, where: Places) -> np.ndarray:
    """[which] cycles of the movements of a layer's operands if they lay as plans like these leave them."""
    nest, m = layer.nest, where.machine
    extents = tuple(d.extent for d in nest.dims)
    plan = layout_from(nest, w.ranges, [(f"t{i}",) for i in range(len(w.ranges))], [1] * len(w.ranges), ())
    sizes = np.array([math.prod(extents[a:b]) for a, b in w.ranges])
    out = np.zeros(len(which))
    done: set[tuple[object, ...]] = set()
    for o, index in zip(layer.operands, nest.maps, strict=True):
        if o.constant or (o.name and (o.name, index) in done):
            continue
        done.add((o.name, index))
        need = reading(extents, index, o.shape, plan)
        form, groups = form_of(need.moved)
        ranges = [int(axes[0][1:]) for axes, _, _ in groups]
        lies, rest = list[list[int]](), -1
        for k, (a, b, _, _, _, first, end) in enumerate(form.components.tolist()):
            tied = ranges[form.parts[first, 0]] if end > first else -2
            if tied == -2 or (w.cut and tied == len(w.ranges) - 1):
                tied = -2
                if rest < 0 or math.prod(o.shape[a:b]) >= math.prod(o.shape[lies[rest][0] : lies[rest][1]]):
                    rest = k
            lies.append([a, b, tied])
        if rest >= 0:
            lies[rest][2] = -1
        way, blocks = w.way[which].astype(np.int64), w.blocks[which]
        first, inverse = _distinct(np.concatenate([way, blocks[:, ranges]], axis=1))
        found = np.empty(len(first))
        _operand_moves(
            form, np.array(ranges, np.int64), np.array(lies, np.int64).reshape(-1, 3), way[first], blocks[first],
            sizes, len(w.ranges) - 1 if w.cut else -1, where.grid, o.dtype.bytes, found,
        )  # fmt: skip
        found = found[inverse]
        out += np.where(found > 0, found + m.inject_cycles + m.eject_cycles, 0)
    return out


def _joins(layer: Layer, rows: Sequence[_Row], where: Places) -> dict[int, tuple[list[int], list[int]]]:
    """What `combined` says of the rows that split the reduction, by their ids: those of one kind at a time."""
    kinds: dict[tuple[int, int], list[_Row]] = {}
    for r in rows:
        if r.to is not None:
            kinds.setdefault((id(r.ways), r.to), []).append(r)
    out: dict[int, tuple[list[int], list[int]]] = {}
    for (_, to), alike in kinds.items():
        w, at = alike[0].ways, [r.number for r in alike]
        sizes = [math.prod(d.extent for d in layer.nest.dims[a:b]) for a, b in w.ranges[:-1]]
        after, cuts = combined(sizes, w.way[at], w.blocks[at], to, where.mesh)
        out |= {id(r): (x, y) for r, x, y in zip(alike, after.tolist(), cuts.tolist(), strict=True)}
    return out


def _candidate(layer: Layer, row: _Row, join: tuple[list[int], list[int]] | None, where: Places) -> Candidate:
    """The candidate of a row; `join`: see _joins. Raises LayoutError where an operand does not allow its plan."""
    nest, w, mesh = layer.nest, row.ways, where.mesh
    way = w.way[row.number].tolist()
    axes = [[a for a, t in zip(mesh.names, way, strict=True) if t == k] for k in range(len(w.ranges))]
    held = [a for a, t in zip(mesh.names, way, strict=True) if t == len(w.ranges)]
    blocks = w.blocks[row.number].tolist()
    plan = layout_from(nest, w.ranges, axes, blocks, held)
    if join is None:
        needs = needs_of(layer.operands, nest, plan)
        sizes = [int(x[row.number]) for x in row.figures.sizes]
        result = Layout(plan.groups[: parallel_groups(nest, plan)], plan.held)
        return made(layer, plan, None, needs, result, row.cycles, sizes)
    combine = combine_layout(nest, w.ranges[:-1], axes, held, *join, mesh)
    return split(layer, plan, combine, row.cycles, where)
