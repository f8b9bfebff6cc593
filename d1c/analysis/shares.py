"""What each core's kernel call of a distributed compute is: the nest, and per core trip counts, addresses, tables.

A core's operand buffers are dense: the product of its linear intervals. Every iteration dim therefore has one stride
per operand, the same on all cores; only a flat share that is not dense in an operand (rows of an image, a broadcast)
goes through a table of offsets, and many cores have the same table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d1c.ir.core import Block, Op, Value
from d1c.ir.layout import Need, linear, need_of, thinned
from d1c.ir.structured import Entry, Structured
from d1c.ir.types import TensorType, WindowType
from d1c.ops.opdef import opdef
from d1c.target.dtypes import DType
from d1c.target.kernel import COMPUTE_TYPE, Body, Loop, Nest, Operand
from d1c.target.mesh import Layout, Mesh
from d1c.target.numerics import Recorder


@dataclass(frozen=True, slots=True)
class Read:
    """One operand: its tensor's shape and type, its need, the owner's layout where the owned buffer is read."""

    shape: tuple[int, ...]
    dtype: DType
    need: Need
    in_place: Layout | None = None


@dataclass(frozen=True)
class Shares:
    """The kernel call of every active core. `cores`: their numbers; `trips` [cores, loops]; `bases` [cores, operands]:
    first element that the kernel addresses; `tables`: per table the distinct rows [n, loop extent]; `table_rows`
    [cores, tables]: which row a core uses; `scalars` [cores, n]. `positions`: the cores' positions along the plan's
    factors; `all_trips` [positions, loops] also those of positions whose share is empty (some trip count is 0)."""

    nest: Nest
    cores: np.ndarray
    trips: np.ndarray
    bases: np.ndarray
    tables: tuple[np.ndarray, ...]
    table_rows: np.ndarray
    scalars: np.ndarray
    positions: np.ndarray
    all_trips: np.ndarray


def trace(block: Block, inputs: Sequence[str]) -> Body | None:
    """The vector code of a region of elementwise ops, None for an empty one. `inputs`: its compute types."""
    if not block.ops:
        return None
    r = Recorder(*inputs)
    env = dict(zip(block.args, r.inputs, strict=True))
    for op in block.ops[:-1]:
        row = opdef(op.name)
        assert row.body is not None
        env[op.result] = row.body(r, op.attrs, *(env[v] for v in op.operands))
    return r.body(env[block.ops[-1].operands[0]])


def call_of(
    nest: Structured, plan: Layout, out: DType, reads: Sequence[Read], term: Block, epilogue: Block, mesh: Mesh
) -> Shares:
    """The calls of a compute with this nest and plan. Raises ValueError where a map cannot be addressed."""
    extents = tuple(d.extent for d in nest.dims)
    groups = plan.spans(extents)
    cores = mesh.core_offset(plan.axes, np.arange(mesh.parts(plan.axes)))
    starts, trips = [], []
    for _, _, g, n in groups:
        p = mesh.position(g.axes, cores)
        starts.append(p * g.block)
        trips.append(np.clip(n - p * g.block, 0, g.block) if g.axes else np.full(len(cores), n))
    everywhere = trips
    alive = np.all(np.array(trips) > 0, axis=0)
    cores, starts, trips = cores[alive], [s[alive] for s in starts], [t[alive] for t in trips]
    keep = []
    for i, (a, b, g, n) in enumerate(groups):
        # a share may be empty: its trip count of 0 is how a core knows
        varies = (g.block if g.axes else n) > 1 or everywhere[i].min() == 0
        inner = nest.kind == "mac" and a >= max(nest.parallel, len(extents) - 2)
        addressed = nest.kind == "scatter" and (a == 0 or nest.dims[a].reduce)  # rows and updates
        if varies or b == nest.parallel or a == nest.cut or inner or addressed:
            keep.append(i)
    lanes_last = nest.lanes and len(groups) - 1 not in keep
    if lanes_last:
        keep.append(len(groups) - 1)
    loops = tuple(
        Loop("_".join(nest.dims[d].name for d in range(a, b)), g.block if g.axes else n)
        for a, b, g, n in (groups[i] for i in keep)
    )
    tables: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    operands, bases = [], []
    for read, index in zip(reads, nest.maps, strict=True):
        strides, base, wants = _addressing(nest, plan, read, index, mesh, cores, starts, keep)
        numbers: list[int | None] = []
        for i, coefs in zip(keep, wants, strict=True):
            if coefs is None:
                numbers.append(None)
                continue
            a, b, g, n = groups[i]
            table, row = _table(coefs, extents[a:b], starts[i], trips[i], g.block if g.axes else n)
            numbers.append(len(tables))
            tables.append(table)
            rows.append(row)
        operands.append(Operand(read.dtype.name, tuple(strides), tuple(numbers)))
        bases.append(base)
    out_strides = []
    stride = 1
    for a, _, g, n in reversed(groups):
        out_strides.append(0 if nest.dims[a].reduce else stride)
        stride *= 1 if nest.dims[a].reduce else (g.block if g.axes else n)
    out_strides.reverse()
    target = Operand(out.name, tuple(out_strides[i] for i in keep), (None,) * len(keep))
    kinds = [COMPUTE_TYPE[r.dtype.name] for r in reads]
    joined = [COMPUTE_TYPE[out.name], kinds[2]] if nest.kind == "scatter" else kinds[: nest.n_term]
    bodies = (
        trace(term, joined),
        trace(epilogue, kinds if nest.kind == "map" else [_accumulator(nest, term, kinds), *kinds[nest.n_term :]]),
    )
    cut = None if nest.cut is None else next(j for j, i in enumerate(keep) if groups[i][0] == nest.cut)
    parallel = sum(not nest.dims[groups[i][0]].reduce for i in keep)
    scalars = np.zeros((len(cores), 0), np.int64)
    if nest.kind in ("lookup", "scatter"):
        counted = nest.cut if nest.kind == "lookup" else 0
        scalars = starts[next(i for i, g in enumerate(groups) if g[0] == counted)][:, None]
    made = Nest(
        nest.kind,
        loops,
        parallel,
        tuple(operands),
        target,
        nest.n_term,
        *bodies,
        cut,
        nest.slice if cut is not None else 0,
        nest.lanes,
    )
    return Shares(
        made, cores, _columns([trips[i] for i in keep], len(cores)), _columns(bases, len(cores)), tuple(tables),
        _columns(rows, len(cores)), scalars, np.flatnonzero(alive),
        _columns([everywhere[i] for i in keep], len(alive)),
    )  # fmt: skip


def _columns(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """[rows, columns], also where there is no column."""
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), np.int64)


def _accumulator(nest: Structured, term: Block, kinds: list[str]) -> str:
    """The compute type of what the reduction hands to the epilogue."""
    if term.ops:
        t = term.ops[-1].operands[0].type
        return COMPUTE_TYPE[t.dtype.name]
    return kinds[1] if nest.kind == "lookup" else kinds[0]


def window_of(read: Read, mesh: Mesh) -> list[int]:
    """Elements per component of the buffer that the kernel reads: the window, or the owned buffer itself."""
    if read.in_place is None:
        return list(read.need.local_shape())
    return list(read.in_place.local_shape(read.shape))


def _addressing(
    nest: Structured, plan: Layout, read: Read, index: tuple[Entry, ...], mesh: Mesh, cores: np.ndarray,
    starts: list[np.ndarray], keep: list[int],
) -> tuple[list[int], np.ndarray, list[tuple[int, ...] | None]]:  # fmt: skip
    """Per kept loop the stride, the base of every core, and per loop the coefficients that need a table (or None)."""
    extents = tuple(d.extent for d in nest.dims)
    groups = plan.spans(extents)
    lengths = window_of(read, mesh)
    total: dict[int, int] = {}  # coefficient of every iteration dim, in buffer elements
    base = np.zeros(len(cores), np.int64)
    at, stride = 0, math.prod(lengths)
    for c, (comp, length) in enumerate(zip(read.need.components, lengths, strict=True)):
        stride //= max(length, 1)
        entries = []
        covered = 0
        while covered < comp.span:
            entries.append(index[at])
            covered += index[at].span
            at += 1
        if comp.every:
            thin = thinned(extents, index, read.shape)
            assert thin is not None
            entries = list(thin[0][at - len(entries) : at])
        const, coefs = linear(entries, comp.pads)
        for d, f in coefs.items():
            total[d] = total.get(d, 0) + f * stride
        if read.in_place is None:
            lo = comp.intervals(mesh)[0][mesh.position(comp.axes, cores)]
        else:
            g = read.in_place.groups[c]
            lo = mesh.position(g.axes, cores) * g.block
        base += (const - lo) * stride
    for (a, b, g, _), s in zip(groups, starts, strict=True):
        if g.axes:
            base += _value(tuple(total.get(d, 0) for d in range(a, b)), extents[a:b], s)
    strides, wants = [], []
    for i in keep:
        a, b, _, _ = groups[i]
        coefs_i = tuple(total.get(d, 0) for d in range(a, b))
        unit = coefs_i[-1]
        dense = all(extents[d] == 1 or total.get(d, 0) == unit * math.prod(extents[d + 1 : b]) for d in range(a, b))
        strides.append(unit if dense else 0)
        wants.append(None if dense else coefs_i)
    return strides, base, wants


def _value(coefs: tuple[int, ...], extents: tuple[int, ...], linear_index: np.ndarray) -> np.ndarray:
    out, rest = np.zeros_like(linear_index), linear_index
    for c, n in zip(reversed(coefs), reversed(extents), strict=True):
        out = out + c * (rest % n)
        rest = rest // n
    return out


def _table(
    coefs: tuple[int, ...], extents: tuple[int, ...], start: np.ndarray, trip: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct offset tables of a flat loop and which of them each core uses."""
    first, inverse = np.unique(start, return_inverse=True)
    i = np.arange(block)
    linear_index = np.minimum(first[:, None] + i, math.prod(extents) - 1)
    offsets = _value(coefs, extents, linear_index) - _value(coefs, extents, first)[:, None]
    rows, which = np.unique(offsets, axis=0, return_inverse=True)
    return rows, which.reshape(-1)[inverse.reshape(-1)]


def read_of(value: Value, need: Need) -> Read:
    """How a compute reads this operand."""
    t = value.type
    if isinstance(t, WindowType):
        return Read(t.shape, t.dtype, t.need)
    assert isinstance(t, TensorType) and t.layout is not None
    return Read(t.shape, t.dtype, need, t.layout)


def compute_call(op: Op, mesh: Mesh) -> Shares:
    """The kernel calls of a dist.compute."""
    a = op.attrs
    extents = tuple(d.extent for d in a.nest.dims)
    regions = dict(zip(a.regions, op.regions, strict=True))
    reads = []
    for v, m in zip(op.operands, a.nest.maps, strict=True):
        assert isinstance(v.type, TensorType | WindowType)
        reads.append(read_of(v, need_of(extents, m, v.type.shape, a.plan)))
    term, epilogue = (regions.get(n, Block()) for n in ("term", "epilogue"))
    return call_of(a.nest, a.plan, op.result.type.dtype, reads, term, epilogue, mesh)
