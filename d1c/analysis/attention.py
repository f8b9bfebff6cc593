"""An attention layer as the computes of one core: what its structured op, of kind attention, stands for.

Every core has some rows of some heads and goes through keys, some chunks of them at a time (N10): the chunks' scores,
their maxima, exp of what scores are below these, the sums of that, its rounding, its products with the values; then
chunks are joined in N6's tree. Scores and all the rest lie in the core's own memory, cut as the plan cuts the layer, so
that only queries, keys, values and the region's operands move.

Where the plan cuts the keys too, a core makes the node of its own 2^j chunks, and a second stage, cut as the plan's
combining stage, joins the nodes of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from d1c.analysis.attention_code import again, below, clipped, joined, larger, product, quotient, scale
from d1c.analysis.layers import Layer, Stored
from d1c.analysis.plans import Plan
from d1c.analysis.shares import Read, call_of
from d1c.ir.core import Block
from d1c.ir.layout import need_of
from d1c.ir.structured import Dim, Entry, Map, Outside, Structured
from d1c.ops.graph.attention import CHUNK, keys_of
from d1c.target.dtypes import F32, DType
from d1c.target.isa import nest_cycles
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import Group, Layout, Mesh
from d1c.target.nest_numpy import LANES
from d1c.target.numerics import slices

NONE = Block()
SLOT = -1
"""Instead of a layer's dim: the node of a core that has some of the keys."""
AT_ONCE = 1 << 16
"""Bytes that the scores of the chunks may take that a core goes through in one call of every kernel."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a plan the computes depend on: how many chunks a core has at most, whether in a stage of its own, and how
    many it goes through at once."""

    chunks: int
    cut: bool
    at_once: int


@dataclass(frozen=True, slots=True)
class Part:
    """One compute. `dims`: per iteration dim that of the whole layer, SLOT, or None where it has its whole extent.
    `joins`: it is of the second stage."""

    layer: Layer
    dims: tuple[int | None, ...]
    joins: bool

    def plan(self, whole: Plan) -> Layout:
        """Its plan where the layer's is `whole`, which flattens nothing. Cores that have other columns of the values
        get what does not depend on columns from the first."""
        of = whole.combine if self.joins else whole.plan
        assert of is not None
        groups = tuple(_group(of, d, self.layer.nest, i) for i, d in enumerate(self.dims))
        named = {a for g in groups for a in g.axes}
        return Layout(groups, (*of.held, *(a for g in of.groups for a in g.axes if a not in named)))


def _group(plan: Layout, d: int | None, nest: Structured, i: int) -> Group:
    if d is None:
        return Group()
    if d != SLOT:
        return plan.groups[d]
    cut = next(k for k in range(len(plan.groups) - 1, -1, -1) if plan.groups[k].axes)  # reduce dims come last
    return Group(1, plan.groups[cut].axes, 1)


def shape_of(layer: Layer, plan: Layout) -> Shape:
    """The shape of the computes under a plan."""
    local, p, cut = plan.local_shape(tuple(d.extent for d in layer.nest.dims)), layer.nest.parallel, layer.nest.cut
    rows = int(np.prod(local[: p - 1]))
    return _shape(layer, rows, local[p], cut is not None and bool(plan.groups[cut].axes))


def _shape(layer: Layer, rows: int, chunks: int, cut: bool) -> Shape:
    whole = max(1, keys_of(layer.nest) // CHUNK)
    most = min(whole if not cut else chunks, max(1, AT_ONCE // (_chunk_bytes(layer) * max(rows, 1))))
    return Shape(chunks, cut, 1 << most.bit_length() - 1)


def _chunk_bytes(layer: Layer) -> int:
    """Of one row: scores and weights, these also rounded."""
    return min(CHUNK, keys_of(layer.nest)) * (8 + layer.operands[2].dtype.bytes)


def parts(layer: Layer, shape: Shape, name: Callable[[str], str] = str) -> list[Part]:
    """The computes of an attention in order; the last one's result is the layer's. `name` makes names of tensors
    unique."""
    return _Parts(layer, shape, name).run()


_Index = Mapping[str, int]
"""What an operand's dim is read at: coefficients of iteration dims by name, the offset by ""."""
_Read = tuple[Stored, Sequence[_Index], Outside]
"""What a compute reads, where, and what it sees outside."""
_Dims = Sequence[tuple[Dim, int | None]]
"""Iteration dims, each with the layer's dim that it is."""


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Nodes of the tree side by side: maximum and sum per row, product with the values. They are numbers `first` and on
    along the dim behind `before` and in front of `behind`."""

    m: Stored
    total: Stored
    o: Stored
    before: tuple[_Index, ...] = ()
    behind: tuple[_Index, ...] = ()
    first: int = 0

    def at(self, where: _Index, offset: int = 0) -> tuple[_Index, ...]:
        return (*self.before, {**where, "": self.first + offset}, *self.behind)


class _Parts:
    """Makes the computes. Iteration dims of every one: the slot where keys are cut, which of some nodes, rows (batch
    dims and rows of the layer, the longest last), then what it goes through besides."""

    def __init__(self, layer: Layer, shape: Shape, name: Callable[[str], str]) -> None:
        self.layer, self.nest, self.shape, self.name = layer, layer.nest, shape, name
        self.made: list[Part] = []
        self.joins = False
        dims, p = layer.nest.dims, layer.nest.parallel
        self.chunk, self.key, self.pair, self.width, *self.depth = ((dims[d], d) for d in range(p, len(dims)))
        self.out: _Dims = [(dims[d], d) for d in range(p)]
        longest = max(self.out[:-1], key=lambda x: x[0].extent)
        self.rows: _Dims = [*(x for x in self.out[:-1] if x is not longest), longest]
        self.column: _Dims = [(dims[p - 1], p - 1)]
        self.slots = -(-dims[p].extent // shape.chunks) if shape.cut else 1
        self.front: _Dims = [(Dim("slot", self.slots), SLOT)] if shape.cut else []

    def run(self) -> list[Part]:
        count, cut = keys_of(self.nest), self.shape.cut
        full = self.shape.chunks if cut else count // CHUNK
        pieces = [(lo, n, CHUNK) for lo, n in _pieces(full, self.shape.at_once)]
        if not cut and count % CHUNK:
            pieces.append((full, 1, count % CHUNK))
        if not cut and len(pieces) == 1 and pieces[0][1] == 1:
            self.chunks(*pieces[0], single=True)
            return self.made
        nodes = self.fold([(x[1], partial(self.chunks, *x)) for x in pieces], not cut)
        if cut:
            self.joins, self.front = True, []
            slot = partial(replace, nodes, before=(), behind=({},))
            self.fold([(n, partial(slot, first=lo)) for lo, n in _pieces(self.slots, self.slots)], True)
        return self.made

    def fold(self, pieces: Sequence[tuple[int, Callable[[], _Nodes]]], root: bool) -> _Nodes:
        """The node of pieces of 2^j nodes each, none longer than the one before it; at the root the result."""
        stack: list[tuple[int, _Nodes]] = []  # nodes that wait for their right sibling, and of how many they are
        for i, (count, make) in enumerate(pieces):
            last, nodes = i == len(pieces) - 1, make()
            if count > 1:
                nodes = self.tree(str(i), nodes, count, root and last and not stack)
            stack.append((count, nodes))
            while len(stack) > 1 and (last or stack[-1][0] == stack[-2][0]):
                (b, right), (a, left) = stack.pop(), stack.pop()
                stack.append((a + b, self.join(f"{i}_{a + b}", left, right, root and last and not stack)))
        if root and len(pieces) == 1 and pieces[0][0] == 1:
            self.divided(stack[0][1])
        return stack[0][1]

    def compute(
        self, name: str, kind: str, dims: _Dims, reads: Sequence[_Read], code: Block = NONE, terms: int = 0,
        cut: tuple[int | None, int] = (None, 0), term: Block = NONE, out: DType = F32,
    ) -> Stored:  # fmt: skip
        """Add a compute. `code`: its epilogue; `cut`: which dim, and the slices: in lanes, unless it is a product. The
        result, of type `out`, is the layer's where it has no name."""
        number = {d.name: i for i, (d, _) in enumerate(dims)}
        maps = tuple(tuple(_entry(x, number) for x in index) for _, index, _ in reads)
        lanes = kind != "mac" and cut[0] is not None
        nest = Structured(tuple(d for d, _ in dims), kind, maps, tuple(f for _, _, f in reads), terms, *cut, lanes)
        result = self.layer.result
        if name:
            unique = self.name(f"{result.name}.{name}{'j' * self.joins}")
            result = Stored(unique, nest.out_shape, out)
        layer = Layer(result, nest, tuple(o for o, _, _ in reads), again(term), again(code), self.layer.origin)
        self.made.append(Part(layer, tuple(d for _, d in dims), self.joins))
        return result

    # ---- chunks -----------------------------------------------------------------------------------------------------

    def chunks(self, lo: int, count: int, keys: int, single: bool = False) -> _Nodes:
        """`count` chunks of a core from number `lo` on, each of so many `keys`; `single`: there are no others, and the
        result is made."""
        values, width = self.layer.operands[2], self.width[0].extent
        wide = -(-keys // width) * width
        outer: _Dims = [*self.front, (Dim("c", count), None)]
        number = f"{lo}_{count}"
        scores = self.scores(number, lo, outer, wide, keys)
        key: _Dims = [(Dim("n", keys, True), None)]
        cut = len(outer) + len(self.rows), slices(keys, keys, LANES)[1]
        each, along = _own(outer, self.rows), {"n": 1}
        m = self.compute(
            f"m{number}", "max", [*outer, *self.rows, *key], [(scores, (*each, along), None)], clipped(), 1, cut
        )  # fmt: skip
        inner: _Dims = [*outer, *self.rows, (Dim("n", wide), None)]
        p = self.compute(f"p{number}", "map", inner, [(scores, (*each, along), None), (m, each, None)],
                         below(wide > keys))  # fmt: skip
        total = self.compute(
            f"l{number}", "sum", [*outer, *self.rows, *key], [(p, (*each, along), None)], NONE, 1, cut
        )  # fmt: skip
        if values.dtype != F32:
            p = self.compute(f"q{number}", "map", inner, [(p, (*each, along), None)], out=values.dtype)
        dims = [*outer, *self.rows, *self.column, (Dim("j", wide // width, True), None), (self.width[0], None)]
        reads: list[_Read] = [
            (p, (*each, {"j": width, "f": 1}), None), (values, self.moved(self.nest.maps[2], lo), None),
        ]  # fmt: skip
        before = _own(self.front)
        if not single:
            o = self.compute(f"o{number}", "mac", dims, reads, NONE, 2)
            return _Nodes(m, total, o, before)
        reads.append((total, each, None))
        o = self.compute("", "mac", [*self.out, *dims[-2:]], reads, quotient(), 2, out=self.layer.result.dtype)
        return _Nodes(m, total, o, before)

    def scores(self, number: str, lo: int, outer: _Dims, wide: int, keys: int) -> Stored:
        """The scores of chunks, those of a pair's missing key too."""
        nest, odd = self.nest, wide > keys
        depth = self.depth[0][0].extent * self.depth[1][0].extent - (nest.fills[0] is not None)
        fill = 0.0 if odd or nest.fills[0] is not None else None
        outside: list[Outside] = [nest.fills[0], fill, *([0.0 if odd else None] * (len(nest.maps) - 3))]
        used = [i for i in range(len(nest.maps)) if i != 2]
        reads = [(self.layer.operands[i], self.moved(nest.maps[i], lo), f) for i, f in zip(used, outside, strict=True)]
        cut = len(outer) + len(self.rows) + 1, slices(depth, depth)[1] // self.width[0].extent
        dims = [*outer, *self.rows, (Dim("n", wide), None), *((d, None) for d, _ in self.depth)]
        return self.compute(f"s{number}", "mac", dims, reads, self.layer.epilogue, 2, cut)

    def moved(self, index: Map, lo: int) -> list[_Index]:
        """An operand's map over the layer's dims as one over those of chunks from `lo` on."""
        out: list[_Index] = []
        for e in index:
            at = {"": e.offset}
            for d, c in e.terms:
                if d in (self.key[1], self.pair[1]):
                    step = CHUNK if d == self.key[1] else CHUNK // self.width[0].extent
                    at |= {"slot": c * step * self.shape.chunks, "c": c * step, self.nest.dims[d].name: c}
                    at[""] += c * step * lo
                elif d != self.chunk[1]:
                    at[self.nest.dims[d].name] = c
            out.append(at)
        return out

    # ---- the tree ---------------------------------------------------------------------------------------------------

    def tree(self, piece: str, x: _Nodes, count: int, root: bool) -> _Nodes:
        """The node of `count` nodes, level by level each of two neighbours h; at the root the result. First what there
        is one of per row: cores that have other columns wait for it."""
        row, h = _own(self.rows), [(Dim("h", 2, True), None)]
        levels: list[tuple[str, _Dims, _Read]] = []
        front, m, total, half = _own(self.front), x, x.total, count // 2
        while half:
            end, number = root and half == 1, f"{piece}_{half}"
            outer: _Dims = [*self.front, *([] if end else [(Dim("i", half), None)])]
            two: _Dims = [(Dim("h", 2), None)]
            first, other = m.at({"i": 2, "h": 1}), m.at({"i": 2, "h": -1}, 1)
            s = self.compute(
                f"s{number}", "map", [*outer, *two, *self.rows],
                [(m.m, (*first, *row), None), (m.m, (*other, *row), None)], scale(),
            )  # fmt: skip
            by: _Read = s, (*_own(outer, two), *row), None
            dims = [*outer, *self.rows, *h]
            total = self.compute(
                f"l{number}", "sum", dims, [(m.total, (*first, *row), None), by], terms=2, term=product()
            )  # fmt: skip
            largest = m.m
            if not end:
                largest = self.compute(f"m{number}", "max", dims, [(m.m, (*first, *row), None)], terms=1)
            m = _Nodes(largest, total, x.o, front)
            levels.append((number, outer, by))
            half //= 2
        for number, outer, (s, at, _) in levels:
            reads: list[_Read] = [(x.o, (*x.at({"i": 2, "h": 1}), *row, {"v": 1}), None), (s, at, None)]
            dims = [*outer, *self.rows, *self.column, *h]
            if root and number == levels[-1][0]:
                reads.append((total, row, None))
                o = self.compute(
                    "", "sum", [*self.out, *h], reads, quotient(), 2, term=product(), out=self.layer.result.dtype
                )
            else:
                o = self.compute(f"o{number}", "sum", dims, reads, terms=2, term=product())
            x = _Nodes(m.m, total, o, front)
        return x

    def join(self, number: str, a: _Nodes, b: _Nodes, root: bool) -> _Nodes:
        """Two nodes of different numbers of chunks, or made apart, as one; at the root the result."""
        outer: _Dims = [*self.front, *([] if root else [(Dim("i", 1), None)])]
        row, column = _own(self.rows), {"v": 1}
        inner: _Dims = [*outer, *self.rows]
        u, v = a.at({}), b.at({})
        s, t = (
            self.compute(f"{k}{number}", "map", inner, [(x.m, (*i, *row), None), (y.m, (*j, *row), None)], scale())
            for k, x, y, i, j in (("s", a, b, u, v), ("t", b, a, v, u))
        )
        own = _own(outer)
        scales: list[_Read] = [(s, (*own, *row), None), (t, (*own, *row), None)]
        total = self.compute(
            f"l{number}", "map", inner, [(a.total, (*u, *row), None), (b.total, (*v, *row), None), *scales], joined()
        )  # fmt: skip
        reads: list[_Read] = [(a.o, (*u, *row, column), None), (b.o, (*v, *row, column), None), *scales]
        dims = [*outer, *self.rows, *self.column]
        if root:
            o = self.compute("", "map", self.out, [*reads, (total, row, None)], joined(True),
                             out=self.layer.result.dtype)  # fmt: skip
            return _Nodes(a.m, total, o)
        o = self.compute(f"o{number}", "map", dims, reads, joined())
        m = self.compute(
            f"m{number}", "map", inner, [(a.m, (*u, *row), None), (b.m, (*v, *row), None)],
            larger(),
        )  # fmt: skip
        return _Nodes(m, total, o, _own(self.front))

    def divided(self, x: _Nodes) -> None:
        """The result of the only node."""
        reads: list[_Read] = [
            (x.o, (*x.at({}), *_own(self.rows), {"v": 1}), None), (x.total, (*x.at({}), *_own(self.rows)), None),
        ]  # fmt: skip
        self.compute("", "map", self.out, reads, quotient(), out=self.layer.result.dtype)


def _pieces(count: int, most: int) -> list[tuple[int, int]]:
    """0 .. count - 1 in pieces of powers of two, none longer than `most` or the one before: (first, length)."""
    out, lo = list[tuple[int, int]](), 0
    while lo < count:
        n = min(most, 1 << (count - lo).bit_length() - 1)
        out.append((lo, n))
        lo += n
    return out


def _own(*dims: _Dims) -> tuple[_Index, ...]:
    """Every dim by itself."""
    return tuple({d.name: 1} for some in dims for d, _ in some)


def _entry(index: _Index, number: Mapping[str, int]) -> Entry:
    """Dims that an index names and the iteration has not are of extent 1."""
    terms = sorted((number[d], c) for d, c in index.items() if d in number and c)
    return Entry(tuple(terms), index.get("", 0))


# ---- what it takes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """A kernel; of each of its loops the layer's iteration dim, SLOT, or None where it has its whole extent; how often
    it is called."""

    nest: Nest
    loops: tuple[int | None, ...]
    count: int


@dataclass(frozen=True)
class Calls:
    """The kernels of an attention: of the whole, of the stage that makes the nodes of cut keys, or (`joins`) of the one
    that joins these."""

    layer: Layer
    joins: bool = False
    known: dict[Shape, list[_Call]] = field(default_factory=dict, compare=False)

    def cycles(self, trips: np.ndarray, machine: Machine) -> np.ndarray:
        """[n] cycles of all calls of a core with trips [n, iteration dims of the layer] (`joins`: its parallel dims,
        then slots), without their launch; infinite where the columns are cut, for then the cores of a row would send
        each other its weights. Only where nodes are joined, of which that is little."""
        out = np.zeros(len(trips))
        p = self.layer.nest.parallel
        whole = self.layer.nest.dims[p].extent
        rows = trips[:, : p - 1].prod(axis=1)
        if self.joins:
            shapes = [Shape(whole // n, True, 1) for n in trips[:, p].tolist()]
        else:
            each = zip(rows.tolist(), trips[:, p].tolist(), strict=True)
            shapes = [_shape(self.layer, r, c, c < whole) for r, c in each]
        number = {s: i for i, s in enumerate(dict.fromkeys(shapes))}
        of = np.array([number[s] for s in shapes])
        for s, i in number.items():
            at = np.flatnonzero(of == i)
            for call in self.kernels(s):
                own = [
                    np.ones(len(at)) if d == SLOT else np.full(len(at), x.extent) if d is None else trips[at, d]
                    for x, d in zip(call.nest.loops, call.loops, strict=True)
                ]
                out[at] += call.count * nest_cycles(call.nest, np.stack(own, axis=1), machine)
        column = p - 1
        return out if self.joins else np.where(trips[:, column] < self.layer.nest.dims[column].extent, np.inf, out)

    def kernels(self, shape: Shape) -> list[_Call]:
        if shape not in self.known:
            found: dict[tuple[Nest, tuple[int | None, ...]], int] = {}
            for part in parts(self.layer, shape):
                if part.joins == self.joins:
                    key = _kernel(part)
                    found[key] = found.get(key, 0) + 1
            self.known[shape] = [_Call(nest, loops, count) for (nest, loops), count in found.items()]
        return self.known[shape]


def _kernel(part: Part) -> tuple[Nest, tuple[int | None, ...]]:
    """The kernel of a compute that nothing cuts, and what its loops are."""
    nest = part.layer.nest
    extents = tuple(d.extent for d in nest.dims)
    whole = Layout(tuple(Group() for _ in extents))
    reads = [
        Read(o.shape, o.dtype, need_of(extents, m, o.shape, whole))
        for o, m in zip(part.layer.operands, nest.maps, strict=True)
    ]
    made = call_of(nest, whole, part.layer.result.dtype, reads, part.layer.term, part.layer.epilogue, Mesh(())).nest
    dim = {d.name: of for d, of in zip(nest.dims, part.dims, strict=True)}
    return made, tuple(dim[x.name] for x in made.loops)


def scratch_bytes(layer: Layer, trips: np.ndarray) -> np.ndarray:
    """[n] bytes of what a core keeps of chunks: scores and weights, these also rounded, and nodes."""
    p = layer.nest.parallel
    rows, keys = trips[:, : p - 1].prod(axis=1, dtype=np.float64), keys_of(layer.nest)
    chunks = np.minimum(trips[:, p], max(1, keys // CHUNK)) if layer.nest.cut is not None else max(1, keys // CHUNK)
    at_once = np.clip(AT_ONCE // (_chunk_bytes(layer) * rows), 1, chunks)
    levels = 2 + max(0, -(-keys // CHUNK) - 1).bit_length()
    node = 4 * (2 + trips[:, p - 1])
    return np.asarray(rows * (at_once * (_chunk_bytes(layer) + 2 * node) + levels * node))
