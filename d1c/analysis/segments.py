"""Layers whose constants are too large to be fetched at once, cut into segments of columns.

A segment computes some columns of a layer's result from the columns of the constant that they need, which are streamed
while the segment before computes; one more layer joins the segments. No bit depends on it: columns are independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from d1c.analysis.layers import Layer, Layers, Stored, identity, merging
from d1c.ir.core import Block, Value
from d1c.ir.structured import Dim, Entry, Map, Structured
from d1c.ir.types import TensorType


def segmented(layers: Layers, most: float, columns: int) -> Layers:
    """The layers, those with a constant of more than `most` bytes in segments with less, if their columns allow it, and
    with a multiple of `columns` columns, if there are more."""
    steps: list[object] = []
    names = {s.name for s in (*layers.inputs, *layers.constants, *(x.result for x in layers.layers))}
    for step in layers.steps:
        width = _width(step, most, columns) if isinstance(step, Layer) else 0
        if isinstance(step, Layer) and width:
            steps += _cut(step, width, names)
        else:
            steps.append(step)
    return replace(layers, steps=tuple(steps))  # type: ignore[arg-type]


def _width(layer: Layer, most: float, columns: int) -> int:
    """Columns of a segment; 0: the layer stays whole."""
    nest = layer.nest
    last = nest.parallel - 1
    if nest.kind == "scatter" or last < 0:
        return 0
    extent = nest.dims[last].extent
    sizes = [
        math.prod(o.shape) * o.dtype.bytes
        for o, m in zip(layer.operands, nest.maps, strict=True)
        if o.constant and any(d == last for e in m for d, _ in e.terms)
    ]
    size = max(sizes, default=0)
    if size <= most:
        return 0
    width = -(-extent // math.ceil(size / most))
    width = -(-width // columns) * columns if width >= columns else width
    return width if width < extent else 0


def _cut(layer: Layer, width: int, names: set[str]) -> Iterator[Layer]:
    nest = layer.nest
    last = nest.parallel - 1
    parts: list[Stored] = []
    starts = range(0, nest.dims[last].extent, width)
    for start in starts:
        extent = min(width, nest.dims[last].extent - start)
        dims = tuple(replace(d, extent=extent) if i == last else d for i, d in enumerate(nest.dims))
        cut = replace(nest, dims=dims, maps=tuple(_moved(m, last, start) for m in nest.maps))
        name = unused(f"{layer.result.name}.{len(parts)}", names)
        parts.append(replace(layer.result, name=name, shape=cut.out_shape))
        yield replace(
            layer, result=parts[-1], nest=cut, term=copied(layer.term), epilogue=copied(layer.epilogue)
        )  # fmt: skip
    whole = identity(nest.out_shape)
    maps = tuple((*whole[:last], Entry(((last, 1),), -start)) for start in starts)
    yield joined(layer.result, parts, maps, layer.origin)


def joined(result: Stored, parts: Sequence[Stored], maps: Sequence[Map], origin: str) -> Layer:
    """A layer that copies parts to where they belong in `result`: each element is inside one of them, by its map."""
    dims = tuple(Dim(f"d{i}", n) for i, n in enumerate(result.shape))
    nest = Structured(dims, "map", tuple(maps), (0.0,) * len(parts), 0)
    args = tuple(Value(TensorType((), result.dtype), p.name) for p in parts)
    return Layer(result, nest, tuple(parts), Block(), merging(args, result.dtype, origin), origin)


def _moved(index: Map, dim: int, start: int) -> Map:
    """The map for iterations of `dim` that begin at `start`."""
    return tuple(replace(e, offset=e.offset + start * sum(c for d, c in e.terms if d == dim)) for e in index)


def copied(block: Block) -> Block:
    """The same ops on values of their own."""
    new = {v: Value(v.type, v.name) for v in (*block.args, *(r for o in block.ops for r in o.results))}
    ops = tuple(
        replace(o, operands=tuple(new[v] for v in o.operands), results=tuple(new[v] for v in o.results))
        for o in block.ops
    )
    return Block(tuple(new[v] for v in block.args), ops)


def unused(wish: str, names: set[str]) -> str:
    """`wish`, with a number where that name is taken; it is from then on."""
    name, k = wish, 1
    while name in names:
        name, k = f"{wish}.{k}", k + 1
    names.add(name)
    return name
