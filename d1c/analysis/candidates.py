"""A plan of one layer with what it costs by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from d1c.analysis.attention import Calls
from d1c.analysis.layers import Layer, Stored
from d1c.analysis.plans import operand_need, stages
from d1c.analysis.price import Places
from d1c.analysis.shares import Read, call_of
from d1c.ir.core import Block
from d1c.ir.layout import Need, need_of
from d1c.ir.structured import Structured
from d1c.ir.types import TensorType
from d1c.ops.dist.compute import ComputeAttrs, compute_type
from d1c.target.dtypes import F32
from d1c.target.isa import nest_pipes
from d1c.target.kernel import Nest
from d1c.target.keys import hashed_once
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

IDLE, BRIEF = 5.0, 4
"""Most work should be on most cores, as far as that costs little time: cycles beyond BRIEF launches count this much
more on the share of cores that idle."""


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


def signature(layer: Layer) -> tuple[object, ...]:
    """Equal for layers that differ in names only."""
    return (
        layer.nest, tuple((o.shape, o.dtype, o.constant) for o in layer.operands), layer.result.dtype,
        _text(layer.term), _text(layer.epilogue),
    )  # fmt: skip


def _text(block: Block) -> tuple[object, ...]:
    number = {v: i for i, v in enumerate((*block.args, *(r for o in block.ops for r in o.results)))}
    return tuple((o.name, o.attrs, *(number[v] for v in o.operands)) for o in block.ops)


@hashed_once
@dataclass(frozen=True)
class Like:
    """A layer that equals those of its signature."""

    signature: tuple[object, ...]
    layer: Layer = field(compare=False)


@lru_cache(maxsize=512)
def kernel_of(like: Like) -> tuple[Nest | Calls, list[int]]:
    """The kernel of a layer that nothing cuts (an attention: its calls), and the iteration dim of each of its loops."""
    layer, nest = like.layer, like.layer.nest
    if nest.kind == "attention":
        return Calls(layer), []
    extents = tuple(d.extent for d in nest.dims)
    whole = Layout(tuple(Group() for _ in extents))
    reads = [
        Read(o.shape, o.dtype, need_of(extents, m, o.shape, whole))
        for o, m in zip(layer.operands, nest.maps, strict=True)
    ]
    made = call_of(nest, whole, layer.result.dtype, reads, layer.term, layer.epilogue, Mesh(())).nest
    names = {d.name: i for i, d in enumerate(nest.dims)}
    return made, [names[x.name] for x in made.loops]


def joins_of(layer: Layer, slots: int) -> tuple[Nest | Calls, list[int]]:
    """`kernel_of` for the stage that joins up to so many nodes of a split reduction; its dims are the parallel ones and
    the slots."""
    if layer.nest.kind == "attention":
        return Calls(layer, True), []
    second = stages(layer, slots)[1]
    return kernel_of(Like(signature(second), second))


def cycles_of(kernel: Nest | Calls, dims: Sequence[int], trips: np.ndarray, where: Places) -> np.ndarray:
    """[n] cycles of one call with trips [n, iteration dims], and its launch if the kernel is like a GEMM: work on
    vectors that waits for nobody goes on after what was before it."""
    m = where.machine
    if isinstance(kernel, Calls):
        return kernel.cycles(trips, m) + (0 if kernel.joins else m.launch_cycles)
    launch = m.launch_cycles if kernel.kind in ("mac", "fma") else 0
    return np.asarray(np.ceil(nest_pipes(kernel, trips[:, dims], m).binding) + m.call_cycles + launch)


def priced(layer: Layer, plan: Layout, where: Places) -> Candidate:
    """A given plan that splits no reduction. Raises LayoutError where an operand does not allow it."""
    nest, mesh = layer.nest, where.mesh
    extents = tuple(d.extent for d in nest.dims)
    plan.check(extents, mesh)
    needs = needs_of(layer.operands, nest, plan)
    trips = np.array([extents])
    for a, b, g, n in plan.spans(extents):
        if g.axes and g.block < n:
            trips[0, a:b] = 1
            trips[0, b - 1] = g.block
    kernel, dims = kernel_of(Like(signature(layer), layer))
    cycles = float(cycles_of(kernel, dims, trips, where)[0])
    sizes = window_bytes(layer.operands, needs)
    result = _result(nest, plan, layer.result.dtype.name).layout
    assert result is not None
    return made(layer, plan, None, needs, result, cycles, [*sizes, _own(layer, plan) * layer.result.dtype.bytes])


def split(
    layer: Layer, plan: Layout, combine: Layout, cycles: float, where: Places, both: tuple[Layer, Layer] | None
) -> Candidate:
    """The candidate of a split reduction that takes `cycles`. `both`: its stages; an attention has none."""
    mesh = where.mesh
    if both is None:
        return _split_keys(layer, plan, combine, cycles, where)
    needs, sizes, results = list[Need](), list[int](), 0
    for k, (stage, p) in enumerate(zip(both, (plan, combine), strict=True)):
        extents = tuple(d.extent for d in stage.nest.dims)
        p.check(extents, mesh)
        mine = needs_of(stage.operands, stage.nest, p)
        bytes_ = window_bytes(stage.operands, mine)
        results += sum(bytes_[:k]) + _own(stage, p) * stage.result.dtype.bytes
        needs, sizes = [*needs, *mine[k:]], [*sizes, *bytes_[k:]]
    result = _result(both[1].nest, combine, layer.result.dtype.name).layout
    assert result is not None
    return made(layer, plan, combine, tuple(needs), result, cycles, [*sizes, results])


def _split_keys(layer: Layer, plan: Layout, combine: Layout, cycles: float, where: Places) -> Candidate:
    """`split` for an attention, whose operands are all read before its nodes are joined."""
    nest, mesh = layer.nest, where.mesh
    extents = tuple(d.extent for d in nest.dims)
    plan.check(extents, mesh)
    combine.check((*extents[: nest.parallel], 1), mesh)
    needs = needs_of(layer.operands, nest, plan)
    sizes = window_bytes(layer.operands, needs)
    slots = _result(nest, plan, "f32").shape[0]
    local = [p.local_shape((*extents[: nest.parallel], *x))[: nest.parallel]
             for p, x in ((plan, extents[nest.parallel :]), (combine, (1,)))]  # fmt: skip
    nodes, joined = (math.prod(n[:-1]) * (n[-1] + 2) * F32.bytes for n in local)
    results = nodes + joined * slots + math.prod(local[1]) * layer.result.dtype.bytes
    result = Layout(combine.groups[: nest.parallel], combine.held)
    return made(layer, plan, combine, needs, result, cycles, [*sizes, results])


def needs_of(operands: Sequence[Stored], nest: Structured, plan: Layout) -> tuple[Need, ...]:
    """Per operand its need. Raises LayoutError where an operand does not allow the plan."""
    extents = tuple(d.extent for d in nest.dims)
    pairs = zip(nest.maps, operands, strict=True)
    return tuple(operand_need(extents, m, o, plan) for m, o in pairs)


def window_bytes(operands: Sequence[Stored], needs: Sequence[Need]) -> list[int]:
    """Per operand the bytes of its window on every core."""
    return [math.prod(n.moved.local_shape()) * o.dtype.bytes for n, o in zip(needs, operands, strict=True)]


def idle_price(cycles: np.ndarray | float, used: np.ndarray | int, where: Places) -> np.ndarray:
    """What a plan that takes so many cycles on so many cores counts more for the others."""
    m = where.machine
    long = np.where(np.isfinite(cycles), np.maximum(cycles - BRIEF * m.launch_cycles, 0), 0)  # not finite: ruled out
    return np.asarray(IDLE * long * (1 - used / m.cores))


def used_cores(layer: Layer, plan: Layout) -> int:
    """How many cores compute under a plan."""
    spans = plan.spans(tuple(d.extent for d in layer.nest.dims))
    return math.prod(-(-n // g.block) for _, _, g, n in spans if g.axes)


def made(
    layer: Layer, plan: Layout, combine: Layout | None, needs: tuple[Need, ...], result: Layout, cycles: float,
    sizes: Sequence[int],
) -> Candidate:  # fmt: skip
    """`sizes`: bytes of the operands' windows, then of results."""
    constants = tuple(s if o.constant else 0 for o, s in zip(layer.operands, sizes, strict=False))
    return Candidate(plan, combine, needs, result, float(cycles), sum(sizes) - sum(constants), constants)


def parallel_groups(nest: Structured, plan: Layout) -> int:
    """How many of a plan's groups cover the parallel dims."""
    ends = itertools.accumulate(g.span for g in plan.groups)
    return next((k + 1 for k, end in enumerate(ends) if end == nest.parallel), 0)


def _own(layer: Layer, plan: Layout) -> int:
    """Elements of the result that the fullest core has."""
    return math.prod(plan.local_shape(tuple(d.extent for d in layer.nest.dims))[: parallel_groups(layer.nest, plan)])


def _result(nest: Structured, plan: Layout, out: str) -> TensorType:
    try:
        return compute_type(ComputeAttrs(nest, plan, out))
    except ValueError as e:
        raise LayoutError(str(e)) from e
