"""Rules of the ops that move data: views, concatenation, padding, gathering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx

from d1c.frontend import bounded_shapes
from d1c.frontend.consteval import normal_axis, reshape_target, slice_plan, squeezed, unsqueezed
from d1c.frontend.context import ImportContext, Item, tensor
from d1c.frontend.indexing import wrap
from d1c.frontend.rules_math import given
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

_GATHER_PARTS = 16
"""A constant gather of at most this many elements that are not evenly spaced becomes slices; beyond, a lookup."""


def identity(cx: ImportContext, node: onnx.NodeProto) -> Item:
    """Of sequences and optionals too."""
    item: Item = cx.input(node, 0)
    return item


def reshape(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    wanted = cx.static_ints(node, 1, "shape") or ()
    return cx.reshape(x, reshape_target(tensor(x).shape, wanted, bool(cx.attr(node, "allowzero", 0)), cx.origin))


def flatten(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    shape = tensor(x).shape
    axis = cx.attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return cx.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def squeeze(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    return cx.reshape(x, squeezed(tensor(x).shape, cx.static_ints(node, 1, "axes"), cx.origin))


def unsqueeze(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    return cx.reshape(x, unsqueezed(tensor(x).shape, cx.static_ints(node, 1, "axes") or (), cx.origin))


def transpose(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    rank = len(tensor(x).shape)
    perm = cx.attr(node, "perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise ValueError(f"perm {list(perm)} is no order of {rank} dims")
    return cx.transpose(x, perm)


def expand(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    counted = bounded_shapes.extents(cx, cx.input(node, 1))
    if counted is not None and (out := bounded_shapes.expanded(cx, x, counted)) is not None:
        return out
    return cx.expand(x, np.broadcast_shapes(tensor(x).shape, cx.static_ints(node, 1, "shape") or ()))


def tile(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """[d0, d1] repeated (r0, r1) times = [1, d0, 1, d1] expanded to [r0, d0, r1, d1]."""
    x = given(cx, node)
    shape, repeats = tensor(x).shape, cx.static_ints(node, 1, "repeats") or ()
    if len(repeats) != len(shape):
        raise ValueError(f"{len(repeats)} repeats for rank {len(shape)}")
    apart = cx.reshape(x, [n for d in shape for n in (1, d)])
    whole = cx.expand(apart, [n for r, d in zip(repeats, shape, strict=True) for n in (r, d)])
    return cx.reshape(whole, [r * d for r, d in zip(repeats, shape, strict=True)])


def concat(cx: ImportContext, node: onnx.NodeProto) -> Value:
    values = [v for v in cx.inputs(node) if v is not None]
    return cx.concat(values, normal_axis(cx.attr(node, "axis", 1), len(tensor(values[0]).shape), cx.origin))


def split(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    x = given(cx, node)
    shape = tensor(x).shape
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    sizes = cx.static_ints(node, 1, "split")
    if sizes is None:
        count = cx.attr(node, "num_outputs", len(node.output))
        each = -(-shape[axis] // count)
        sizes = tuple(max(0, min(each, shape[axis] - i * each)) for i in range(count))
    if sum(sizes) != shape[axis]:
        raise ValueError(f"parts {sizes} of an extent of {shape[axis]}")
    starts = np.cumsum((0, *sizes[:-1]))
    return tuple(cx.part(x, axis, int(s), n) for s, n in zip(starts, sizes, strict=True))


def slice_(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    starts, ends = cx.static_ints(node, 1, "starts") or (), cx.static_ints(node, 2, "ends") or ()
    axes, steps = cx.static_ints(node, 3, "axes"), cx.static_ints(node, 4, "steps")
    return cx.slice(x, *slice_plan(tensor(x).shape, starts, ends, axes, steps, cx.origin))


def gather(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Constant indices become slices where that is cheap, others a lookup in the table with `axis` in front."""
    x, index = given(cx, node), cx.input(node, 1)
    if index is None:
        raise ValueError("no indices")
    shape = tensor(x).shape
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    rows = shape[axis]
    if cx.is_const(index):
        at = cx.array(index).astype(np.int64)
        at = np.where(at < 0, at + rows, at)
        if at.size and (at.min() < 0 or at.max() >= rows):
            bad = [i for i in cx.array(index).reshape(-1).tolist() if not -rows <= i < rows]
            raise ValueError(f"index {bad[0]} of {rows} rows")
        out = shape[:axis] + at.shape + shape[axis + 1 :]
        taken = take(cx, x, axis, at.reshape(-1).tolist())
        if taken is not None:
            return cx.reshape(taken, out)
        index = cx.const(at)
    else:
        index = wrap(cx, index, rows)
    rank, inner = len(shape), len(tensor(index).shape)
    front = cx.transpose(x, (axis, *(d for d in range(rank) if d != axis)))
    found = cx.emit("graph.lookup", [index, front])
    # found: index dims, then x's dims without the axis; the index dims go where the axis was.
    perm = [*range(inner, inner + axis), *range(inner), *range(inner + axis, inner + rank - 1)]
    return cx.transpose(found, perm)


def take(cx: ImportContext, x: Value, axis: int, at: Sequence[int]) -> Value | None:
    """The elements `at` of `axis` as slices; None where that would need too many."""
    if not at:
        return cx.part(x, axis, 0, 0)
    steps = {b - a for a, b in pairwise(at)}
    if len(steps) <= 1 and steps != {0}:
        return cx.part(x, axis, at[0], len(at), steps.pop() if steps else 1)
    if len(at) <= _GATHER_PARTS:
        return cx.concat([cx.part(x, axis, i, 1) for i in at], axis)
    return None


def _filled(
    cx: ImportContext, x: Value, lo: tuple[int, ...], hi: tuple[int, ...], value: Value | None, fill: float
) -> Value:
    """Padding with a number, or with what `value` holds; one that is known at run time only is put in by a mask."""
    if value is not None and cx.is_const(value) and cx.array(value).size:
        item = cx.array(value).reshape(-1)[0].item()
        fill, value = float(item), None if float(item) == item or item != item else value
    padded: Value = cx.emit("graph.pad", [x], lo=lo, hi=hi, value=fill if value is None else 0.0)
    if value is None or not tensor(value).size:
        return padded
    inside = np.pad(np.ones(tensor(x).shape, np.bool_), list(zip(lo, hi, strict=True)))
    out: Value = cx.emit("graph.where", [cx.const(inside), padded, cx.reshape(value, ())])
    return out


def pad(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Constant padding is one graph.pad; edge, reflect and wrap are slices put around; negative pads cut."""
    x = given(cx, node)
    rank = len(tensor(x).shape)
    pads = cx.static_ints(node, 1, "pads") or cx.attr(node, "paddings", ())
    axes = cx.static_ints(node, 3, "")
    where = list(range(rank)) if axes is None else [normal_axis(a, rank, cx.origin) for a in axes]
    lo, hi = [0] * rank, [0] * rank
    for i, a in enumerate(where):
        lo[a], hi[a] = pads[i], pads[i + len(where)]
    mode = cx.attr(node, "mode", "constant")
    for a in range(rank):
        if lo[a] < 0 or hi[a] < 0:
            n = tensor(x).shape[a]
            size = n + min(lo[a], 0) + min(hi[a], 0)  # below 0, the cut at one end takes padding of the other
            if size < 0 and (mode != "constant" or n + lo[a] + hi[a] < 0):
                raise ValueError(f"pads {lo[a]} and {hi[a]} cut more than an extent of {n}")
            x = cx.part(x, a, min(max(-lo[a], 0), n), max(size, 0))
            lo[a], hi[a] = max(lo[a] + min(size, 0), 0), max(hi[a] + min(size, 0), 0)
    if not any(lo) and not any(hi):
        return x
    if mode == "constant":
        return _filled(cx, x, tuple(lo), tuple(hi), cx.input(node, 2), cx.attr(node, "value", 0.0))
    for a in range(rank):
        n = tensor(x).shape[a]
        if mode == "edge":
            before, after = [cx.part(x, a, 0, 1)] * lo[a], [cx.part(x, a, n - 1, 1)] * hi[a]
        elif mode == "reflect":
            if max(lo[a], hi[a]) >= n:
                raise cx.refuse(
                    f"Pad reflect by {max(lo[a], hi[a])} of an extent of {n}",
                    rule="reflect pads are shorter than the extent",
                )
            before = [cx.part(x, a, lo[a], lo[a], -1)] if lo[a] else []
            after = [cx.part(x, a, n - 2, hi[a], -1)] if hi[a] else []
        elif mode == "wrap" and max(lo[a], hi[a]) <= n:
            before = [cx.part(x, a, n - lo[a], lo[a])] if lo[a] else []
            after = [cx.part(x, a, 0, hi[a])] if hi[a] else []
        else:
            raise cx.refuse(
                f"Pad mode {mode!r} in this form", rule="modes: constant, edge, reflect, wrap by at most the extent"
            )
        x = cx.concat([*before, x, *after], a)
    return x


RULES = (
    OnnxRule("Identity", identity), OnnxRule("Reshape", reshape, static=(1,)),
    OnnxRule("Flatten", flatten),
    OnnxRule("Squeeze", squeeze, static=(1,)), OnnxRule("Unsqueeze", unsqueeze, static=(1,)),
    OnnxRule("Transpose", transpose),
    OnnxRule("Expand", expand, static=(1,)), OnnxRule("Tile", tile, 6, static=(1,)),
    OnnxRule("Concat", concat), OnnxRule("Split", split, static=(1,)),
    OnnxRule("Slice", slice_, static=(1, 2, 3, 4)), OnnxRule("Gather", gather), OnnxRule("Pad", pad, static=(1, 3)),
)  # fmt: skip
