"""Which plans of a layer are worth considering.

All ways to give the mesh factors to dims are priced at once: cycles of the fullest core by the formulas of the machine
(target/isa.py), bytes of its windows and its result. Those that may be worth it are looked at more closely: what would
their operands' movements cost if the layers before were cut alike (price_ways)? Then those are kept that are cheapest
among plans that use dies and columns alike: what the neighbours really pay only the whole graph knows.
"""

from __future__ import annotations

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
from d1c.analysis.plans import (
    accumulator_type,
    combine_layout,
    combined,
    different,
    dim_ranges,
    layout_from,
    stages,
    windows,
)
from d1c.analysis.price import Places, form_of
from d1c.analysis.ways import Ways, families, product, trips_of, ways_of
from d1c.ir.layout import reading
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
ANYHOW = 4
"""And so many of each way to use dies, or to leave rows or columns of them idle: beside others of its kind each saves
crossings, of which nobody knows before the choice."""
BYTES = (0.0, 0.1)
"""Cycles that a byte of constants counts when plans are looked at: where SRAM is plenty, and where it is scarce."""
DEAR = 2.0
"""A plan that takes longer than this many times the fastest, and twice the way over the machine with its launches, is
not worth its better place."""


@dataclass(frozen=True)
class _Figures:
    """Per kind of ways of a family: cycles, bytes of the operands' windows and last of the result."""

    cycles: np.ndarray
    sizes: list[np.ndarray]


@dataclass(slots=True)  # not frozen: there are thousands
class _Row:
    """A plan that is looked at: `price` with the movements that plans alike would cause; bytes of constants that it
    holds; its `use` of dies; which of the ways; `to`: the range of `combined`, None: nothing is split; its
    own `cycles`."""

    price: float
    held: float
    use: object
    ways: Ways
    number: int
    to: int | None
    cycles: float
    figures: _Figures


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
    stages: dict[int, tuple[Layer, Layer]] = field(default_factory=dict)

    def at(self, byte: float) -> list[Candidate]:
        """Those worth considering where a byte of constants counts `byte` cycles."""
        found: dict[tuple[Layout, Layout | None], Candidate] = {}
        picked = _picked(self.rows, POOL * self.where.first, byte)
        new = [r for r in picked if id(r) not in self.made]
        joins = _joins(self.layer, new, self.where)
        for r in new:
            try:
                self.made[id(r)] = self.candidate(r, joins.get(id(r)))
            except LayoutError:  # an operand does not go with the combining stage
                self.made[id(r)] = None
        for r in picked:
            c = self.made[id(r)]
            if c is not None:
                found.setdefault((c.plan, c.combine), c)
                if (same := self.everywhere(c)) is not None:
                    found.setdefault((same.plan, None), same)
        return list(found.values())

    def everywhere(self, c: Candidate) -> Candidate | None:
        """The candidate of a sum, product or extreme whose idle cores (of dies that are not) compute the same, so that
        each has the result where it is read."""
        nest, held = self.layer.nest, tuple(a for a in c.plan.held if a in ("dr", "dc"))
        other = nest.cut is None or nest.kind in ("mac", "attention", "lookup")
        if other or c.combine is not None or held == c.plan.held:
            return None
        plan = Layout(c.plan.groups, held)
        needs = needs_of(self.layer.operands, nest, plan)
        return replace(c, plan=plan, needs=needs, result=Layout(c.result.groups, held))

    def candidate(self, row: _Row, join: tuple[list[int], list[int]] | None) -> Candidate:
        """The candidate of a row; `join`: see _joins. Raises LayoutError where an operand does not allow its plan."""
        layer, nest, w, mesh = self.layer, self.layer.nest, row.ways, self.where.mesh
        way, kind = w.way[row.number].tolist(), w.kind[row.number]
        axes = [[a for a, t in zip(mesh.names, way, strict=True) if t == k] for k in range(len(w.ranges))]
        held = [a for a, t in zip(mesh.names, way, strict=True) if t == len(w.ranges)]
        blocks = w.blocks[kind].tolist()
        plan = layout_from(nest, w.ranges, axes, blocks, held)
        if join is None:
            needs = needs_of(layer.operands, nest, plan)
            sizes = [int(x[kind]) for x in row.figures.sizes]
            result = Layout(plan.groups[: parallel_groups(nest, plan)], plan.held)
            return made(layer, plan, None, needs, result, row.cycles, sizes)
        combine = combine_layout(nest, w.ranges[:-1], axes, held, *join, mesh)
        slots = int(w.used[kind, -1])
        if nest.kind != "attention" and slots not in self.stages:
            self.stages[slots] = stages(layer, slots)
        return split(layer, plan, combine, row.cycles, self.where, self.stages.get(slots))


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
        w = ways_of(layer, family, where, loose)
        trips = trips_of(nest, w.ranges, w.blocks, w.used)
        cycles = cycles_of(kernel, dims, trips, where)
        count = product(trips[:, : nest.parallel]).astype(np.float64)
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
        idle = idle_price(cycles, product(w.used), where)
        price = cycles + idle + moved / m.link_bytes_per_cycle
        price += np.where(divided, count * node / m.link_bytes_per_cycle + 2 * m.launch_cycles, 0)
        fits = np.flatnonzero((taken <= room)[w.kind])
        if not len(fits):
            continue
        fits = _worth(price, held, fits, w, dies, LOOKED * kept, where)
        kind = w.kind[fits]
        price = cycles[kind] + idle[kind] + _settled(layer, w, fits, where)
        parts, uses = list[_Row](), dict[tuple[int, ...], list[int]]()
        columns = (fits, price, held[kind], cycles[kind], w.way[fits][:, dies], w.used[kind])
        for i, cost, bytes_, own, by, used in zip(*(x.tolist() for x in columns), strict=True):
            of = tuple(by)
            if of not in uses:
                uses[of] = sorted({t for t in by if t < len(family)})
            use = (family, *by, *[used[j] for j in uses[of]])
            parts.append(_Row(cost, bytes_, use, w, i, None, own, figures))
        whole = ~divided[kind]
        rows += [r for r, x in zip(parts, whole.tolist(), strict=True) if x]
        cut = [r for r, x in zip(parts, whole.tolist(), strict=True) if not x]
        first = {r.number: r for byte in BYTES for r in _cheapest(cut, byte)[:kept]}
        cut = [first[i] for i in sorted(first)]
        if cut:
            for to, more in enumerate(_joined(layer, w, np.array([r.number for r in cut]), where)):
                made = ((r, c) for r, c in zip(cut, more.tolist(), strict=True) if c < math.inf)
                rows += [_Row(r.price + c, r.held, r.use, w, r.number, to, r.cycles + c, figures) for r, c in made]
    return rows


def _worth(
    price: np.ndarray, held: np.ndarray, fits: np.ndarray, w: Ways, dies: Sequence[int], count: int, where: Places
) -> np.ndarray:
    """Of the ways `fits` some `count` that are cheap, at one of BYTES or another, LIKE of those that cut all dims in
    equally many parts, and by the same of the factors `dies`; and ANYHOW. `price`, `held`: by kind."""
    slack = 2 * (where.across + 2 * where.machine.launch_cycles)
    bytes_ = BYTES if held.any() else BYTES[:1]
    out, kind = [], w.kind[fits]
    for byte in bytes_:
        cost = (price + held * byte)[kind]
        close = np.flatnonzero(cost <= DEAR * cost.min() + slack)
        near, cost = fits[close], cost[close]
        order = np.argsort(cost, kind="stable")
        out.append(near[order[_firsts(w.way[near[order]][:, dies], ANYHOW)]])
        if len(near) > FEW * count:
            cheap = np.sort(np.argpartition(cost, FEW * count)[: FEW * count])
            near, cost = near[cheap], cost[cheap]
        near = near[np.argsort(cost, kind="stable")]
        keys = np.concatenate([w.way[near][:, dies], w.used[w.kind[near]]], axis=1)
        out.append(near[_firsts(keys, LIKE)][: count // len(bytes_)])
    return different(np.concatenate(out))


def _cheapest(rows: Sequence[_Row], byte: float) -> list[_Row]:
    return sorted(rows, key=lambda r: r.price + r.held * byte)


def _picked(rows: Sequence[_Row], count: int, byte: float) -> list[_Row]:
    """The cheapest: many of those few kinds that use dies best, few of the others."""
    kinds: dict[object, int] = {}
    taken: dict[object, int] = {}
    picked: list[_Row] = []
    for r in _cheapest(rows, byte):
        kind = kinds.setdefault(r.use, len(kinds))
        quota = next((q for upto, q in QUOTAS if kind < upto), 1)
        if taken.get(r.use, 0) >= quota:
            continue
        alike = (r.use, r.to, *r.ways.used[r.ways.kind[r.number], -1 - r.ways.cut :].tolist())
        if taken.get(alike, 0) < 2:
            taken[r.use], taken[alike] = taken.get(r.use, 0) + 1, taken.get(alike, 0) + 1
            picked.append(r)
            if len(picked) == count:
                break
    return picked


def _joined(layer: Layer, w: Ways, which: np.ndarray, where: Places) -> Iterator[np.ndarray]:
    """For each range to which `combined` may give the factors of the cut, then for idle ones, then for copies: [which]
    cycles from the first stage of a split reduction to the result; inf for those that an earlier choice has too."""
    nest, m = layer.nest, where.machine
    ranges = w.ranges[:-1]
    extents = [math.prod(d.extent for d in nest.dims[a:b]) for a, b in ranges]
    kind = w.kind[which]
    way, blocks, slots = w.way[which].astype(np.int64), w.blocks[kind], w.used[kind, -1]
    dims, of, d = list[int](), list[int](), 0
    for r, (a, b) in sorted(enumerate(ranges), key=lambda t: t[1]):
        dims, of = [*dims, *(x.extent for x in nest.dims[d:a]), extents[r]], [*of, *(-1 for _ in range(d, a)), r]
        d = b
    kernel, loops = joins_of(layer, int(slots.max()))
    stages = [combined(extents, way, blocks, to, where.mesh) for to in range(len(ranges) + 2)]
    new = np.ones((len(stages), len(way)), bool)
    for t, (mine, _) in enumerate(stages):
        for earlier, _ in stages[:t]:
            new[t] &= np.any(mine != earlier, axis=1)
    after, cuts = (np.concatenate([x[k][at] for x, at in zip(stages, new, strict=True)]) for k in (0, 1))
    asked = np.tile(np.concatenate([way, blocks, slots[:, None]], axis=1), (len(stages), 1))[new.ravel()]
    first, inverse = _distinct_rows(np.concatenate([asked, after, cuts], axis=1))
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
        columns = to < len(ranges) and ranges[to][1] == nest.parallel
        waits = 1 + (nest.kind == "attention" and columns)  # for the weights, from where column 0 is
        cycles += np.where(cycles > 0, waits * m.launch_cycles + m.inject_cycles + m.eject_cycles, 0)
        trips = trips_of(nest, ranges, mine, -(-np.array(extents) // mine))
        trips = np.concatenate([trips[:, : nest.parallel], slots[:, None]], axis=1)
        yield cycles + cycles_of(kernel, loops, trips, where)


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _settled(layer: Layer, w: Ways, which: np.ndarray, where: Places) -> np.ndarray:
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
        way, blocks = w.way[which].astype(np.int64), w.blocks[w.kind[which]]
        first, inverse = _distinct_rows(np.concatenate([way, blocks[:, ranges]], axis=1))
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
        kind = w.kind[at]
        sizes = [math.prod(d.extent for d in layer.nest.dims[a:b]) for a, b in w.ranges[:-1]]
        after, cuts = combined(sizes, w.way[at], w.blocks[kind], to, where.mesh)
        out |= {id(r): (x, y) for r, x, y in zip(alike, after.tolist(), cuts.tolist(), strict=True)}
    return out
