"""Lower bounds on a network's time, from its layers alone: no plan, schedule or order of layers can beat them.

    compute  multiply-adds over the peak of all live nodes, on the unit (matrix, vector) that needs longer
    sram     every constant of a product read once from SRAM
    noc      what a product must move between nodes however its work is shared out, over a node's four links
    hbm      the inputs, and what of the products' constants has no place in SRAM, once from the interface processors
    depth    the longest chain of products that need each other, one launch each (an attention's two share theirs, and
             count as two all the same)

Work that a constant mask makes void counts in none of them: scores to which minus infinity is added, and their share of
the product with the probabilities that are then zero (causal attention). Cycles; `cycles` is the largest and `binds`
names it. The compiler keeps them in `info["bounds"]` of the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from d1c.analysis.layers import Again, Layer, Layers, Stored, layers_of
from d1c.ir.core import Block, Module, Value
from d1c.ir.structured import Map, Structured
from d1c.ops.graph.attention import keys_of
from d1c.target.machine import Machine

LINKS = 4
"""Mesh links of a node, each way."""
MASKED = -1e30
"""What a mask adds to scores that do not count, at most: minus infinity, or a type's least number."""


@dataclass(frozen=True, slots=True)
class Product:
    """A GEMM-like layer: `batch` independent products of m x k by k x n elements, of which `share` counts. `matrix`: on
    the matrix unit. `reuse`: how often one stored element of the left side may occur in its m x k (the taps of a
    convolution), `stored`: how many it has in one product. `width`: bytes of its elements."""

    batch: int
    m: int
    n: int
    k: int
    share: float
    matrix: bool
    reuse: float
    stored: float
    width: int

    @property
    def macs(self) -> float:
        return self.share * self.batch * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class _Void:
    """A stored tensor of which only `share` counts; the rest is `zero`, or as good as minus infinity."""

    share: float
    zero: bool


def lower_bounds(module: Module, machine: Machine) -> dict[str, Any]:
    """The bounds of a graph module (behind the graph passes) as plain JSON values: cycles of each by name, `cycles`,
    `binds`, and `chain`: how many products the longest chain has."""
    layers = {f.name: layers_of(module, f.name) for f in module.functions}
    found = _main(layers, module.constants)
    nodes = machine.node_count
    macs = {True: 0.0, False: 0.0}
    for p, rounds in found.products:
        macs[p.matrix] += rounds * p.macs
    rate = machine.dip_count * min(machine.dip_bytes_per_cycle, machine.dip_edge_bytes_per_cycle)
    constants = {s.name: s for s in found.weights}
    kept, room = sum(map(_bytes, constants.values())), nodes * machine.sram_bytes
    out = {
        "compute": max(macs[True] * 2 / machine.mma_flops_per_cycle, macs[False] / machine.f32_lanes) / nodes,
        "sram": kept / (nodes * machine.load_bytes_per_cycle),
        "noc": sum(r * moved_bytes(p, nodes) for p, r in found.products) / (LINKS * machine.link_bytes_per_cycle),
        "hbm": (sum(_bytes(s) for s in layers["main"].inputs) + max(0, kept - room)) / rate if rate else 0.0,
        "depth": float(found.chain * machine.launch_cycles),
    }
    binds = max(out, key=lambda k: out[k])
    cycles = {k: round(v, 1) for k, v in out.items()}
    return {**cycles, "cycles": math.ceil(out[binds]), "binds": binds, "chain": found.chain}


def moved_bytes(p: Product, nodes: int) -> float:
    """Bytes that a node moves in or out, at least, when `nodes` share the product, with any algorithm and any memory.

    A node that does w multiply-adds of one product touches x, y, z elements of its three sides with x y z >= w^2
    (Loomis and Whitney) and with x >= w / n, y >= w / m, z >= w / k; of the left side's m x k one stored element may be
    `reuse`. The smallest x + y + z less an even share of the stored elements has to come or go. A batch gives each of
    its products a part of the nodes."""
    each = nodes / p.batch
    if each <= 1:
        return 0.0
    w = p.share * p.m * p.n * p.k / each
    least = sorted((w / p.n / p.reuse, w / p.m, w / p.k), reverse=True)
    rest, touched = w * w / p.reuse, 0.0
    for i, low in enumerate(least):
        even = rest ** (1 / (3 - i))
        if even >= low:
            touched += (3 - i) * even
            break
        touched, rest = touched + low, rest / low
    own = (min(p.stored, p.m * p.k) + p.k * p.n + p.m * p.n) / each
    return max(0.0, touched - own) * p.width


def products_of(
    layer: Layer, share: float = 1.0, constants: Mapping[str, np.ndarray] = MappingProxyType({})
) -> tuple[Product, ...]:
    """The products of matrices of which a layer consists. `constants`: data of those that are known."""
    nest = layer.nest
    if nest.kind == "attention":
        return _attention(layer, share)
    if nest.kind not in ("mac", "fma"):
        return ()
    left, right = (_dims(m) for m in nest.maps[:2])
    sizes = {"batch": 1, "m": 1, "n": 1}
    for d, dim in enumerate(nest.dims[: nest.parallel]):
        sizes["batch" if d in left and d in right else "m" if d in left else "n"] *= dim.extent
    k, reuse = _depth(nest, layer.operands[0], constants.get(layer.operands[1].name)), _reuse(nest)
    a = layer.operands[0]
    matrix = nest.kind == "mac" and a.dtype.bits == 16
    stored = math.prod(a.shape) / sizes["batch"]
    return (Product(sizes["batch"], sizes["m"], sizes["n"], k, share, matrix, reuse, stored, a.dtype.bytes),)


def _attention(layer: Layer, share: float) -> tuple[Product, ...]:
    """Queries with keys, and what comes of that with values: which need not move, so that this one counts as if it
    moved nothing."""
    nest, q = layer.nest, layer.operands[0]
    p = nest.parallel
    batch = math.prod(nest.dims[d].extent for d in range(p - 1) if d in _dims(nest.maps[1]) | _dims(nest.maps[2]))
    m = math.prod(d.extent for d in nest.dims[: p - 1]) // batch
    keys = keys_of(nest)
    depth = math.prod(d.extent for d in nest.dims[p + 4 :]) - (nest.fills[0] is not None)
    columns, matrix = nest.dims[p - 1].extent, q.dtype.bits == 16
    return (
        Product(batch, m, keys, depth, share, matrix, 1.0, m * depth, q.dtype.bytes),
        Product(batch, m, columns, keys, share, matrix, 1.0, m * keys, 0),
    )


def _dims(index: Map) -> set[int]:
    return {d for e in index for d, _ in e.terms}


def _depth(nest: Structured, left: Stored, right: np.ndarray | None) -> int:
    """Iterations of the reduction without those that odd channels are padded with, in pairs or by a channel whose
    weights (`right`, packed) are all 0."""
    reduce = {d: nest.dims[d].extent for d in range(nest.parallel, len(nest.dims))}
    k, at = math.prod(reduce.values()), 0
    if nest.kind == "mac" and reduce[len(nest.dims) - 1] > 1:
        pair = len(nest.dims) - 1
        for e in nest.maps[0]:
            inner = [d for d, _ in e.terms]
            if pair in inner and e.span == 1 and all(d in reduce for d in inner):
                whole = math.prod(reduce[d] for d in inner)
                real = min(whole, left.shape[at] - e.offset)
                padded = real == whole and right is not None and not right[..., -1, :, 1].any()
                k = k // whole * (real - padded)
            at += e.span
    return k


def _reuse(nest: Structured) -> float:
    """How many (row, tap) pairs can read one element of the left side: the overlap of the windows."""
    times = 1.0
    for e in nest.maps[0]:
        rows = [(d, c) for d, c in e.terms if d < nest.parallel]
        taps = [(d, c) for d, c in e.terms if d >= nest.parallel and nest.dims[d].extent > 1]
        if len(rows) == 1 and len(taps) == 1:
            step, spread = abs(rows[0][1]), abs(taps[0][1])
            extent = nest.dims[taps[0][0]].extent
            times *= min(-(-extent * math.gcd(step, spread) // step), nest.dims[rows[0][0]].extent)
        elif rows and taps:  # no plain window: as if all taps read the same element
            times *= math.prod(nest.dims[d].extent for d, _ in taps)
    return times


def _bytes(s: Stored) -> int:
    return math.prod(s.shape) * s.dtype.bytes


# ---- the walk over the layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """Products with how often each runs, the constants they read, and the longest chain of products."""

    products: list[tuple[Product, int]]
    weights: list[Stored]
    chain: int


def _main(layers: Mapping[str, Layers], constants: Mapping[str, np.ndarray]) -> _Found:
    products: list[tuple[Product, int]] = []
    weights: list[Stored] = []

    def walk(name: str, rounds: int, given: Sequence[int]) -> dict[str, int]:
        """Walk a function whose inputs have these depths; the depths of all that it stores."""
        of = layers[name]
        depth = {s.name: d for s, d in zip(of.inputs, given, strict=True)}
        void: dict[str, _Void] = {}
        for s in of.steps:
            if isinstance(s, Again):
                before = [depth.get(o.name, 0) for o in s.operands]
                depth.update((r.name, d) for r, d in zip(s.results, before, strict=False))
                if (again := _rounds(s)) > 0:
                    inner = walk(s.attrs.body, rounds * again, before)
                    outputs = layers[s.attrs.body].outputs
                    for i, (r, o) in enumerate(zip(s.results, outputs, strict=True)):
                        depth[r.name] = inner.get(o.name, 0) + (again - 1) * _carried(s.attrs.body, i, layers)
                    deepest.append(max(inner.values(), default=0))
                continue
            result = _result(s, void, constants)
            if result is not None and s.nest.kind != "attention":
                void[s.result.name] = result
            if made := products_of(s, _share(s, result, void), constants):
                products.extend((p, rounds) for p in made)
                weights.extend(o for o in s.operands if o.constant)
            depth[s.result.name] = _chained(s, depth)
        return depth

    deepest = [0]
    deepest += walk("main", 1, [0] * len(layers["main"].inputs)).values()
    return _Found(products, weights, max(deepest))


def _chained(layer: Layer, depth: Mapping[str, int]) -> int:
    """Products up to the layer's result. The epilogue's operands (a residual) are needed only behind its product."""
    product = len(products_of(layer))
    needs = [depth[o.name] + (i < layer.nest.n_term) * product for i, o in enumerate(layer.operands) if o.name in depth]
    return max(*needs, product, 0)


def _rounds(loop: Again) -> int:
    """How often a loop's body runs at least."""
    return 0 if loop.attrs.condition else loop.attrs.trips


def _carried(body: str, number: int, layers: Mapping[str, Layers]) -> int:
    """Products on the longest way through a body from a carried value to the same one."""
    of = layers[body]
    depth = {of.inputs[number].name: 0}
    for s in of.steps:
        have = [depth[o.name] for o in s.operands if o.name in depth]
        if have and isinstance(s, Layer):
            depth[s.result.name] = _chained(s, depth)
        elif have and isinstance(s, Again):
            depth.update((r.name, max(have)) for r in s.results)
    return depth.get(of.outputs[number].name, 0)


# ---- masks ----------------------------------------------------------------------------------------------------------


def _share(layer: Layer, result: _Void | None, void: Mapping[str, _Void]) -> float:
    """How much of a product counts: results that are void anyway do not, nor zeros on its left side."""
    left = void.get(layer.operands[0].name) if layer.operands and _whole(layer, 0) else None
    return (result.share if result else 1.0) * (left.share if left and left.zero else 1.0)


def _whole(layer: Layer, number: int) -> bool:
    """Whether the layer reads the operand whole and, of its rows and columns, every element by itself."""
    extents = [d.extent for d in layer.nest.dims]
    if layer.nest.kind == "attention":
        keys = layer.nest.parallel  # their chunks, and of a chunk all but what fills up a pair
        extents[keys + 1] = keys_of(layer.nest) // extents[keys]
    return math.prod(extents[d] for d in _dims(layer.nest.maps[number])) == math.prod(layer.operands[number].shape)


def _result(layer: Layer, void: Mapping[str, _Void], constants: Mapping[str, np.ndarray]) -> _Void | None:
    """Which part of the result, or of an attention's scores, is void for all that is known of its operands."""
    nest = layer.nest
    if nest.kind not in ("map", "mac", "attention"):
        return None
    if not layer.epilogue.ops:
        same = nest.kind == "map" and len(layer.operands) == 1 and _whole(layer, 0)
        return void.get(layer.operands[0].name) if same and layer.operands[0].shape == nest.out_shape else None
    others = layer.operands[nest.n_term :]
    skip = len(layer.epilogue.args) - len(others)
    last = [d for d in range(nest.parallel - 2, nest.parallel) if d >= 0]
    if nest.kind == "attention":
        last = [*_dims(nest.maps[0][-2:-1]), nest.parallel, nest.parallel + 1]
    inner = {d for d in last if nest.dims[d].extent > 1}
    env: dict[Value, _Void | None] = {}
    for i, o in enumerate(others if skip >= 0 else ()):
        at = i + nest.n_term
        if _whole(layer, at) and inner <= _dims(nest.maps[at]):
            known = _mask(constants[o.name]) if o.constant and o.name in constants else void.get(o.name)
            env[layer.epilogue.args[skip + i]] = known
    return _evaluate(layer.epilogue, env)


def _mask(array: np.ndarray) -> _Void | None:
    if array.dtype.kind != "f" or array.ndim < 2 or array.size < 2 or not (low := array <= MASKED).any():
        return None
    return _Void(1 - float(low.mean()), False)


def _evaluate(block: Block, env: dict[Value, _Void | None]) -> _Void | None:
    """What the block's result is where its arguments are void."""
    for op in block.ops:
        have: Sequence[_Void | None] = [env.get(v) for v in op.operands]
        name = op.name.removeprefix("graph.")
        first = have[0] if have else None
        made: _Void | None = None
        if op.name == "dist.yield":
            return first
        if name == "cast":
            made = first
        elif name == "add":
            made = next((v for v in have if v and not v.zero), None)
        elif name == "sub":
            made = first if first and not first.zero else None
        elif name == "mul":
            made = next((v for v in have if v and v.zero), None)
        elif name == "div":
            made = first if first and first.zero else None
        elif name == "exp" and first and not first.zero:
            made = _Void(first.share, True)
        env.update((r, made) for r in op.results)
    return None
