"""What a kernel costs on a node: issue cycles of one call in closed form, and bytes of code.

A node issues to five pipes side by side (matrix, vector, load, store, scalar); a call lasts as long as its busiest
pipe, plus its start. Rates come from the machine description; which instruction takes how many issue slots is assumed,
as no instruction set of Dojo is public (docs/machine.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.encoding import code_bytes
from d1c.target.kernel import COMPUTE_TYPE, INSTRUCTIONS, Body, Nest, Operand
from d1c.target.machine import Machine

__all__ = ["COST", "SPECIAL", "Pipes", "body_cycles", "code_bytes", "nest_cycles", "nest_pipes"]

SPECIAL = frozenset(("div", "rem", "sqrt"))
"""Instructions that issue at machine.special_function_rate."""

COST = {name: 0 if name in ("const", "bits") else 1 for name in INSTRUCTIONS}
"""Issue slots of one vector instruction of the SIMD pipe (assumed): constants stay in registers, `bits` only renames;
those in SPECIAL take 1 / special_function_rate instead. Integers of 64 bits take twice as many vectors; f64, which the
SIMD pipe does not compute, takes f64_slots instructions of integer code for one vector of 64-bit lanes."""


_MOVING = frozenset(("const", "bits", "select", "neg", "abs"))
"""Instructions that only move bits of floats."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """Busy cycles of each pipe in one call; every field is an array of the trips' leading shape."""

    matrix: np.ndarray
    vector: np.ndarray
    load: np.ndarray
    store: np.ndarray
    scalar: np.ndarray

    @property
    def binding(self) -> np.ndarray:
        """The busiest pipe's cycles."""
        return np.asarray(np.max([self.matrix, self.vector, self.load, self.store, self.scalar], axis=0))


def body_cycles(body: Body | None, machine: Machine) -> float:
    """Issue cycles of a body for one vector of machine.f32_lanes elements."""
    if body is None:
        return 0.0
    cycles = 0.0
    for i in body.instrs:
        slots = 1 / machine.special_function_rate if i.op in SPECIAL else COST[i.op]
        types = {i.type, *(_type(body, a) for a in i.args)}
        vectors = machine.f32_lanes / machine.i64_lanes if types & {"i64", "f64"} else 1
        cycles += slots * vectors * (machine.f64_slots if "f64" in types and i.op not in _MOVING else 1)
    return cycles


def _type(body: Body, number: int) -> str:
    inputs = len(body.inputs)
    return body.inputs[number] if number < inputs else body.instrs[number - inputs].type


def nest_cycles(nest: Nest, trips: np.ndarray | Sequence[int], machine: Machine) -> np.ndarray:
    """Cycles of one call for trips [..., loops] (int): int64 of the leading shape. No work still costs the start."""
    pipes = nest_pipes(nest, trips, machine)
    return np.asarray(np.ceil(pipes.binding).astype(np.int64) + machine.call_cycles)


def nest_pipes(nest: Nest, trips: np.ndarray | Sequence[int], machine: Machine) -> Pipes:
    """Busy cycles of each pipe for one call with trips [..., loops]."""
    t = np.asarray(trips, np.float64)
    if t.shape[-1] != len(nest.loops):
        raise ValueError(f"{t.shape[-1]} trip counts for {len(nest.loops)} loops")
    p = nest.parallel
    lane = t[..., p - 1] if p else np.ones(t.shape[:-1])
    rows = t[..., : max(p - 1, 0)].prod(-1)
    reduce = t[..., p:].prod(-1)
    elements = rows * lane
    live = (elements > 0).astype(np.float64)

    if nest.kind == "mac" and _narrow(nest):
        parts = _matrix(nest, t, lane, reduce, machine)
    elif nest.kind in ("map", "lookup"):
        parts = _map(nest, rows, lane, machine)
    elif nest.kind == "scatter":
        parts = _scatter(nest, t, rows, lane, machine)
    else:
        parts = _reduction(nest, t, rows, lane, reduce, machine)
    matrix, vector, load, scalar = parts
    if nest.kind not in ("map", "lookup", "scatter"):
        vectors = rows * np.ceil(lane / machine.f32_lanes)
        if nest.cut is not None and nest.slice > 0:
            vector = vector + vectors * np.maximum(np.ceil(t[..., nest.cut] / nest.slice) - 1, 0)
        vector = vector + vectors * (body_cycles(nest.epilogue, machine) + _convert(nest.out, machine))
        load = load + sum(_load(nest, o, rows, lane, machine) for o in nest.operands[nest.n_term :])
    stored = elements + (t[..., 1:].prod(-1) if nest.kind == "scatter" else 0)
    store = stored * dtype(nest.out.dtype).bytes / machine.store_bytes_per_cycle
    store = np.maximum(store, _scattered(nest, nest.out, stored, machine))
    return Pipes(*(np.asarray(x * live) for x in (matrix, vector, load, store, scalar)))


_Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _matrix(nest: Nest, t: np.ndarray, lane: np.ndarray, reduce: np.ndarray, machine: Machine) -> _Parts:
    """bf16 matrix steps. Rows of a step share operand 1, so loops that move it (batch, groups) repeat whole steps."""
    weights = nest.operands[1]
    m, repeats = np.ones(t.shape[:-1]), np.ones(t.shape[:-1])
    for loop in range(nest.parallel - 1):
        if weights.strides[loop] or weights.tables[loop] is not None:
            repeats = repeats * t[..., loop]
        else:
            m = m * t[..., loop]
    blocks = repeats * np.ceil(m / machine.mma_m) * np.ceil(lane / machine.mma_n)
    steps = blocks * np.ceil(reduce / machine.mma_k)
    width = dtype(weights.dtype).bytes
    load = steps * (machine.mma_m + machine.mma_n) * machine.mma_k * width / machine.load_bytes_per_cycle
    # One accumulator tile is one list-parser entry: the steps inside it are a hardware sequence.
    return steps * machine.mma_cycles, np.zeros_like(steps), load, blocks * machine.loop_cycles


def _reduction(
    nest: Nest, t: np.ndarray, rows: np.ndarray, lane: np.ndarray, reduce: np.ndarray, machine: Machine
) -> _Parts:
    """Terms combined on the SIMD pipe: lanes along the last parallel loop, or along the last reduce loop."""
    width = machine.f32_lanes
    if nest.lanes:
        inner = t[..., -1]
        outer = rows * lane * np.where(inner > 0, reduce / np.maximum(inner, 1), 0)
        vectors = outer * np.ceil(inner / width)
        tail = rows * lane * np.log2(width)  # the tree over the lanes
    else:
        inner = lane
        outer = rows * reduce
        vectors = outer * np.ceil(lane / width)
        tail = np.zeros_like(rows)
    combine = np.ceil(width / machine.i64_lanes) if _wide(nest) else 1.0
    if any(o.dtype == "f64" for o in nest.operands[: nest.n_term]):
        combine = combine * machine.f64_slots * (2 if nest.kind in ("mac", "fma") else 1)  # a product, then a sum
    term = body_cycles(nest.term, machine)
    vector = vectors * (term + combine + sum(_convert(o, machine) for o in nest.operands[: nest.n_term])) + tail
    load = np.zeros_like(rows)
    for o in nest.operands[: nest.n_term]:
        load = load + _load(nest, o, outer, inner, machine, len(nest.loops) - 1 if nest.lanes else None)
    return np.zeros_like(rows), vector, load, outer * machine.loop_cycles


def _map(nest: Nest, rows: np.ndarray, lane: np.ndarray, machine: Machine) -> _Parts:
    """Elementwise, copies and lookups: one pass over the parallel loops."""
    if nest.epilogue is None and nest.operands[-1].dtype == nest.out.dtype:
        vectors = rows * np.ceil(lane * dtype(nest.out.dtype).bytes / machine.simd_bytes)
        vector = vectors
    else:
        vectors = rows * np.ceil(lane / machine.f32_lanes)
        convert = sum(_convert(o, machine) for o in (*nest.operands, nest.out))
        vector = vectors * (body_cycles(nest.epilogue, machine) + convert)
    if nest.kind == "lookup":
        vector = vector + rows * np.ceil(lane / machine.f32_lanes)  # row in range?
    load = np.zeros_like(rows)
    for o in nest.operands:
        load = load + _load(nest, o, rows, lane, machine)
    return np.zeros_like(rows), vector, load, rows * machine.loop_cycles


def _scatter(nest: Nest, t: np.ndarray, rows: np.ndarray, lane: np.ndarray, machine: Machine) -> _Parts:
    """The copy of operand 0, then every update as if the core held its row: data decides, and time does not know it."""
    p = nest.parallel
    vectors = rows * np.ceil(lane * dtype(nest.out.dtype).bytes / machine.simd_bytes)
    load = _load(nest, nest.operands[0], rows, lane, machine)
    updates, inner = t[..., p], lane if p > 1 else np.ones_like(lane)
    outer = updates * t[..., 1 : max(p - 1, 1)].prod(-1)
    convert = sum(_convert(o, machine) for o in (nest.out, nest.operands[2], nest.out))
    vectors = vectors + outer * np.ceil(inner / machine.f32_lanes) * (1 + body_cycles(nest.term, machine) + convert)
    for o in (nest.operands[2], *([nest.out] if nest.term is not None else [])):
        load = load + _load(nest, o, outer, inner, machine)
    return np.zeros_like(rows), vectors, load, (rows + updates + outer) * machine.loop_cycles


def _narrow(nest: Nest) -> bool:
    """Both operands of the product are 16-bit floats: the matrix unit takes them; f32 goes to the SIMD pipe."""
    return all(dtype(o.dtype).bits == 16 and dtype(o.dtype).is_float for o in nest.operands[:2])


def _wide(nest: Nest) -> bool:
    return any(COMPUTE_TYPE[o.dtype] in ("i64", "f64") for o in nest.operands[: nest.n_term])


def _convert(operand: Operand, machine: Machine) -> float:
    """Issue cycles to convert one vector between storage and compute type; none where both have 32 bits."""
    bits = dtype(operand.dtype).bits
    return machine.f32_lanes / machine.bf16_lanes if bits < 32 else 0.0


def _load(
    nest: Nest, o: Operand, rows: np.ndarray, lane: np.ndarray, machine: Machine, along: int | None = None
) -> np.ndarray:
    """Load cycles of an operand read once per row of lanes: adjacent elements at the port's width, one element where it
    stays the same along the lanes, gathered otherwise. `along`: the lane loop (default: the last parallel one)."""
    loop = nest.parallel - 1 if along is None else along
    if loop < 0 or (o.strides[loop] == 0 and o.tables[loop] is None):
        return rows * dtype(o.dtype).bytes / machine.load_bytes_per_cycle
    port = rows * lane * dtype(o.dtype).bytes / machine.load_bytes_per_cycle
    return np.asarray(np.maximum(port, _scattered(nest, o, rows * lane, machine, loop)))


def _scattered(nest: Nest, o: Operand, elements: np.ndarray, machine: Machine, loop: int | None = None) -> np.ndarray:
    """Cycles of the gather engine; none where the lanes are adjacent, or the same element."""
    at = nest.parallel - 1 if loop is None else loop
    if at < 0 or (o.tables[at] is None and abs(o.strides[at]) <= 1):
        return np.zeros_like(elements)
    return np.asarray(elements / machine.gather_per_cycle)
