"""An attention layer as the computes of one core: what its structured op, of kind attention, stands for.

Every core has some rows of some heads and goes through all of their keys, a chunk at a time (N10): the scores of a
chunk, their maximum, exp of what they are below it, the sum of that, its rounding, its product with the values; then
chunks are joined in N6's tree. Scores and all the rest lie in the core's own memory, cut as the plan cuts the layer, so
that only queries, keys, values and the region's operands move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.analysis.layers import Layer, Stored
from d1c.analysis.shares import Read, call_of
from d1c.ir.core import Block, Op, Value
from d1c.ir.layout import need_of
from d1c.ir.structured import Dim, Entry, Map, Outside, Structured
from d1c.ir.types import TensorType
from d1c.ops.graph.attention import CHUNK, LEAST
from d1c.ops.opdef import opdef
from d1c.target.dtypes import F32, DType
from d1c.target.isa import nest_cycles
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import Group, Layout, Mesh
from d1c.target.nest_numpy import LANES
from d1c.target.numerics import slices

_Read = tuple[Stored, Map, Outside]
"""What a compute reads, through which map, and what it sees outside."""


@dataclass(frozen=True, slots=True)
class Part:
    """One compute. `dims`: per iteration dim that of the whole layer, None where it has its whole extent."""

    layer: Layer
    dims: tuple[int | None, ...]

    def plan(self, whole: Layout) -> Layout:
        """Its plan where the layer's is `whole`, which flattens nothing. Cores that have other columns of the values
        get what does not depend on columns from the first."""
        groups = tuple(whole.groups[d] if d is not None else Group() for d in self.dims)
        named = {a for g in groups for a in g.axes}
        return Layout(groups, (*whole.held, *(a for g in whole.groups for a in g.axes if a not in named)))


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the tree: maximum and sum per row, product with the values."""

    m: Stored
    total: Stored
    o: Stored


def parts(layer: Layer, name: Callable[[str], str] = str) -> list[Part]:
    """The computes of an attention in order; the last one's result is the layer's. `name` makes names of tensors
    unique."""
    return _Parts(layer, name).run()


class _Parts:
    """Makes the computes. Iteration dims of every one: rows (batch dims and rows of the layer, in its order), then what
    it goes through besides."""

    def __init__(self, layer: Layer, name: Callable[[str], str]) -> None:
        self.layer, self.nest, self.name = layer, layer.nest, name
        self.made: list[Part] = []
        p = self.nest.parallel
        self.rows = p - 1
        self.n, self.j, self.f, self.k, self.e = range(p, p + 5)
        self.columns = self.nest.dims[p - 1]
        self.pair = self.nest.dims[self.f].extent
        self.own = tuple(Entry(((i, 1),)) for i in range(self.rows))
        self.along = (*self.own, Entry(((self.rows, 1),)))

    def run(self) -> list[Part]:
        keys = self.nest.slice
        stack: list[tuple[int, _Node]] = []  # nodes that wait for their right sibling, with how many chunks they have
        for i, lo in enumerate(range(0, keys, CHUNK)):
            count = min(CHUNK, keys - lo)
            stack.append((1, self.chunk(str(i), lo, count, keys <= CHUNK)))
            last = lo + count == keys
            while len(stack) > 1 and (last or stack[-1][0] == stack[-2][0]):
                (b, right), (a, left) = stack.pop(), stack.pop()
                stack.append((a + b, self.join(f"{i}_{a + b}", left, right, last and not stack)))
        return self.made

    def compute(
        self, name: str, kind: str, extra: Sequence[tuple[Dim, int | None]], reads: Sequence[_Read], code: Block,
        terms: int = 0, out: DType = F32, cut: tuple[int | None, int] = (None, 0), lanes: bool = False,
    ) -> Stored:  # fmt: skip
        """Add a compute over the rows and `extra` dims, each with the layer's dim that it is; "" is the layer's result.
        `code`: its epilogue; `cut`: which dim, and the slices."""
        dims = (*self.nest.dims[: self.rows], *(d for d, _ in extra))
        maps, fills = tuple(m for _, m, _ in reads), tuple(f for _, _, f in reads)
        nest = Structured(dims, kind, maps, fills, terms, *cut, lanes)
        result = (
            Stored(self.name(f"{self.layer.result.name}.{name}"), nest.out_shape, out) if name else self.layer.result
        )
        layer = Layer(result, nest, tuple(o for o, _, _ in reads), Block(), _again(code), self.layer.origin)
        self.made.append(Part(layer, (*range(self.rows), *(d for _, d in extra))))
        return result

    # ---- one chunk --------------------------------------------------------------------------------------------------

    def chunk(self, number: str, lo: int, count: int, single: bool) -> _Node:
        """Keys lo .. lo + count - 1; `single`: there are no others."""
        values, r = self.layer.operands[2], self.rows
        scores = self.scores(number, lo, count)
        wide = Dim("n", scores.shape[-1])
        keys = ((Dim("n", count, True), None),)
        cut = r, slices(count, count, LANES)[1]
        m = self.compute(f"m{number}", "max", keys, [(scores, self.along, None)], Block(), 1, cut=cut, lanes=True)
        below = _below(2, wide.extent > count)
        p = self.compute(
            f"p{number}", "map", [(wide, None)], [(scores, self.along, None), (m, self.own, None)], below
        )  # fmt: skip
        total = self.compute(f"l{number}", "sum", keys, [(p, self.along, None)], Block(), 1, cut=cut, lanes=True)
        if values.dtype != F32:
            p = self.compute(f"q{number}", "map", [(wide, None)], [(p, self.along, None)], Block(), out=values.dtype)
        place = {**{d: d for d in range(r + 1)}, self.j: r + 1, self.f: r + 2}
        dims = ((self.columns, r), (Dim("j", wide.extent // self.pair, True), None), (self.nest.dims[self.f], None))
        reads: list[_Read] = [
            (p, (*self.own, Entry(((r + 1, self.pair), (r + 2, 1)))), None),
            (values, _moved(self.nest.maps[2], place, {self.j: lo // self.pair}), None),
        ]
        if not single:
            return _Node(m, total, self.compute(f"o{number}", "mac", dims, reads, Block(), 2))
        reads.append((total, self.own, None))
        o = self.compute("", "mac", dims, reads, _code(2, lambda c, x, y: c("div", x, y)), 2, self.layer.result.dtype)
        return _Node(m, total, o)

    def scores(self, number: str, lo: int, count: int) -> Stored:
        """The scores of a chunk, those of a pair's missing key too."""
        nest, r = self.nest, self.rows
        wide = -(-count // self.pair) * self.pair
        place = {**{d: d for d in range(r)}, self.n: r, self.k: r + 1, self.e: r + 2}
        depth = nest.dims[self.k].extent * nest.dims[self.e].extent - (nest.fills[0] is not None)
        odd = wide > count
        keys = 0.0 if odd or nest.fills[0] is not None else None
        outside: list[Outside] = [nest.fills[0], keys, *([0.0 if odd else None] * (len(nest.maps) - 3))]
        used = [i for i in range(len(nest.maps)) if i != 2]
        reads = [
            (self.layer.operands[i], _moved(nest.maps[i], place, {self.n: lo}), f)
            for i, f in zip(used, outside, strict=True)
        ]
        k, e = nest.dims[self.k], nest.dims[self.e]
        cut = r + 1, slices(depth, depth)[1] // e.extent
        dims = [(Dim("n", wide), None), (k, None), (e, None)]
        return self.compute(f"s{number}", "mac", dims, reads, self.layer.epilogue, 2, cut=cut)

    # ---- the tree ---------------------------------------------------------------------------------------------------

    def join(self, number: str, a: _Node, b: _Node, root: bool) -> _Node:
        """Two nodes as one; at the root the result."""
        own, along = self.own, self.along
        columns = [(self.columns, self.rows)]
        scale = _code(2, lambda c, x, y: c("exp", c("sub", x, c("clip", c("max", x, y), lo=LEAST))))
        s, t = (
            self.compute(f"{k}{number}", "map", (), [(x.m, own, None), (y.m, own, None)], scale)
            for k, x, y in (("s", a, b), ("t", b, a))
        )

        def joined(c: _Code, x: Value, y: Value, u: Value, v: Value, *total: Value) -> Value:
            both = c("add", c("mul", x, u), c("mul", y, v))
            return c("div", both, *total) if total else both

        scales = [(s, own, None), (t, own, None)]
        total = self.compute(
            f"l{number}", "map", (), [(a.total, own, None), (b.total, own, None), *scales], _code(4, joined)
        )  # fmt: skip
        reads = [(a.o, along, None), (b.o, along, None), *scales]
        if root:
            o = self.compute("", "map", columns, [*reads, (total, own, None)], _code(5, joined),
                             out=self.layer.result.dtype)  # fmt: skip
            return _Node(a.m, total, o)
        o = self.compute(f"o{number}", "map", columns, reads, _code(4, joined))
        m = self.compute(
            f"m{number}", "map", (), [(a.m, own, None), (b.m, own, None)], _code(2, lambda c, x, y: c("max", x, y))
        )  # fmt: skip
        return _Node(m, total, o)


def _moved(index: Map, place: Mapping[int, int], start: Mapping[int, int]) -> Map:
    """A map over other dims: `place` of each, and where in the old one it starts."""
    return tuple(
        Entry(
            tuple(sorted((place[d], c) for d, c in e.terms)), e.offset + sum(c * start.get(d, 0) for d, c in e.terms),
            e.span,
        )
        for e in index
    )  # fmt: skip


def _again(block: Block) -> Block:
    """The same code with values of its own."""
    new = {v: Value(v.type, v.name) for v in (*block.args, *(r for op in block.ops for r in op.results))}
    ops = (
        Op(op.name, tuple(new[v] for v in op.operands), op.attrs, tuple(new[r] for r in op.results), (), op.origin)
        for op in block.ops
    )
    return Block(tuple(new[a] for a in block.args), tuple(ops))


class _Code:
    """Scalar f32 code of graph ops."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def __call__(self, name: str, *values: Value, **attrs: Any) -> Value:
        row = opdef(f"graph.{name}")
        out = Value(TensorType((), F32))
        self.ops.append(Op(row.name, values, row.attrs(**attrs), (out,)))
        return out


def _code(inputs: int, write: Callable[..., Value]) -> Block:
    """The block that `write(code, *inputs)` says."""
    args, code = tuple(Value(TensorType((), F32)) for _ in range(inputs)), _Code()
    result = write(code, *args)
    return Block(args, (*code.ops, Op("dist.yield", (result,))))


def _below(inputs: int, odd: bool) -> Block:
    """exp(score - m). A score that only fills up a pair may be the larger one: it meets a value of 0, but is no key."""

    def write(c: _Code, s: Value, m: Value) -> Value:
        x = c("sub", s, c("clip", m, lo=LEAST))
        return c("exp", c("clip", x, hi=0.0) if odd else x)

    return _code(inputs, write)


# ---- what it takes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calls:
    """The kernels of an attention that nothing cuts; of each the layer's iteration dim of every loop, None where it has
    its whole extent, and how often it is called."""

    layer: Layer
    kernels: tuple[tuple[Nest, tuple[int | None, ...], int], ...]

    def cycles(self, trips: np.ndarray, machine: Machine) -> np.ndarray:
        """[n] cycles of all calls of a core with trips [n, iteration dims of the layer], without their launch; infinite
        where the columns are cut, for then the cores of a row would send each other its weights."""
        out = np.zeros(len(trips))
        for nest, loops, count in self.kernels:
            own = [
                np.full(len(trips), x.extent) if d is None else trips[:, d]
                for x, d in zip(nest.loops, loops, strict=True)
            ]
            out += count * nest_cycles(nest, np.stack(own, axis=1), machine)
        column = self.layer.nest.parallel - 1
        return np.where(trips[:, column] < self.layer.nest.dims[column].extent, np.inf, out)


def calls(layer: Layer) -> Calls:
    """What an attention calls."""
    found: dict[tuple[Nest, tuple[int | None, ...]], int] = {}
    for part in parts(layer):
        nest = part.layer.nest
        extents = tuple(d.extent for d in nest.dims)
        whole = Layout(tuple(Group() for _ in extents))
        reads = [
            Read(o.shape, o.dtype, need_of(extents, m, o.shape, whole))
            for o, m in zip(part.layer.operands, nest.maps, strict=True)
        ]
        out, code = part.layer.result.dtype, part.layer.epilogue
        kernel = call_of(nest, whole, out, reads, Block(), code, Mesh(())).nest
        dim = {d.name: of for d, of in zip(nest.dims, part.dims, strict=True)}
        key = kernel, tuple(dim[x.name] for x in kernel.loops)
        found[key] = found.get(key, 0) + 1
    return Calls(layer, tuple((nest, loops, count) for (nest, loops), count in found.items()))


def scratch_bytes(layer: Layer, trips: np.ndarray) -> np.ndarray:
    """[n] bytes of what a core keeps of chunks: scores and weights, these also rounded, and a node of every level."""
    p = layer.nest.parallel
    rows, keys = trips[:, : p - 1].prod(axis=1, dtype=np.float64), layer.nest.dims[p].extent
    levels = 2 + max(0, -(-keys // CHUNK) - 1).bit_length()
    return np.asarray(
        rows * (min(CHUNK, keys) * (8 + layer.operands[2].dtype.bytes) + levels * 4 * (2 + trips[:, p - 1]))
    )
