"""Rules of the ops that move data: views, concatenation, padding, gathering, nearest resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis, reshape_target, slice_plan, squeezed, unsqueezed
from d1c.frontend.context import ImportContext, tensor
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

_GATHER_PARTS = 16
"""A constant gather of at most this many elements that are not evenly spaced becomes slices; beyond, a lookup."""


def _first(cx: ImportContext, node: onnx.NodeProto) -> Value:
    value = cx.input(node, 0)
    if value is None:
        raise ValueError("operand 0 is left out")
    return value


def identity(cx: ImportContext, node: onnx.NodeProto) -> Value:
    return _first(cx, node)


def dropout(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """At inference nothing is dropped; the mask, if read, is all true."""
    training = cx.static(node, 2, "training_mode")
    if training is not None and bool(training.item()):
        raise cx.refuse("Dropout in training mode", rule="a compiled model is deterministic")
    x = _first(cx, node)
    return (x, cx.const(np.ones(tensor(x).shape, np.bool_))) if cx.wants(node, 1) else (x,)


def reshape(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    wanted = cx.static_ints(node, 1, "shape") or ()
    return cx.reshape(x, reshape_target(tensor(x).shape, wanted, bool(cx.attr(node, "allowzero", 0)), cx.origin))


def flatten(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    shape = tensor(x).shape
    axis = cx.attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return cx.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def squeeze(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    return cx.reshape(x, squeezed(tensor(x).shape, cx.static_ints(node, 1, "axes"), cx.origin))


def unsqueeze(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    return cx.reshape(x, unsqueezed(tensor(x).shape, cx.static_ints(node, 1, "axes") or (), cx.origin))


def transpose(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    return cx.transpose(x, cx.attr(node, "perm", tuple(reversed(range(len(tensor(x).shape))))))


def expand(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = _first(cx, node)
    return cx.expand(x, np.broadcast_shapes(tensor(x).shape, cx.static_ints(node, 1, "shape") or ()))


def tile(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """[d0, d1] repeated (r0, r1) times = [1, d0, 1, d1] expanded to [r0, d0, r1, d1]."""
    x = _first(cx, node)
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
    x = _first(cx, node)
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
    x = _first(cx, node)
    starts, ends = cx.static_ints(node, 1, "starts") or (), cx.static_ints(node, 2, "ends") or ()
    axes, steps = cx.static_ints(node, 3, "axes"), cx.static_ints(node, 4, "steps")
    return cx.slice(x, *slice_plan(tensor(x).shape, starts, ends, axes, steps, cx.origin))


def gather(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Constant indices become slices where that is cheap, others a lookup in the table with `axis` in front."""
    x, index = _first(cx, node), cx.input(node, 1)
    if index is None:
        raise ValueError("no indices")
    shape = tensor(x).shape
    axis = normal_axis(cx.attr(node, "axis", 0), len(shape), cx.origin)
    rows = shape[axis]
    if cx.is_const(index):
        at = cx.array(index).astype(np.int64)
        at = np.where(at < 0, at + rows, at)
        if at.size and (at.min() < 0 or at.max() >= rows):
            raise ValueError(f"index {int(at.max())} of {rows} rows")
        out = shape[:axis] + at.shape + shape[axis + 1 :]
        taken = take(cx, x, axis, at.reshape(-1).tolist())
        if taken is not None:
            return cx.reshape(taken, out)
        index = cx.const(at)
    else:
        # ONNX counts negative indices from the end; the table lookup of the machine does not.
        negative = cx.emit("graph.less", [index, cx.scalar(0, index)])
        wrapped = cx.emit("graph.add", [index, cx.scalar(rows, index)])
        index = cx.emit("graph.where", [negative, wrapped, index])
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


def pad(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Constant padding is one graph.pad; edge, reflect and wrap are slices put around; negative pads cut."""
    x = _first(cx, node)
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
            size = tensor(x).shape[a] + min(lo[a], 0) + min(hi[a], 0)
            x = cx.part(x, a, max(-lo[a], 0), size)
            lo[a], hi[a] = max(lo[a], 0), max(hi[a], 0)
    if not any(lo) and not any(hi):
        return x
    if mode == "constant":
        given = cx.static(node, 2, "constant_value")
        fill = cx.attr(node, "value", 0.0) if given is None or not given.size else given.reshape(-1)[0].item()
        value: Value = cx.emit("graph.pad", [x], lo=tuple(lo), hi=tuple(hi), value=float(fill))
        return value
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


def resize(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Nearest only: per axis the source index of every result element, as repeats or slices."""
    x = _first(cx, node)
    shape = tensor(x).shape
    mode = cx.attr(node, "mode", "nearest")
    old = cx.opset == 10 or node.op_type == "Upsample"
    given = cx.static(node, 1 if old else 2, "scales") if len(node.input) > 1 else None
    sizes = None if old else cx.static(node, 3, "sizes")
    attribute = cx.attr(node, "scales")
    scales = list(attribute or ()) if given is None or not given.size else [float(s) for s in given.reshape(-1)]
    axes = list(cx.attr(node, "axes", tuple(range(len(shape)))))
    if scales:
        out = [math.floor(n * s) for n, s in zip((shape[a] for a in axes), scales, strict=True)]
    elif sizes is not None and sizes.size:
        if cx.attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            raise cx.refuse("Resize that keeps the aspect ratio")
        out = [int(n) for n in sizes.reshape(-1)]
        scales = [n / shape[a] for n, a in zip(out, axes, strict=True)]
    else:
        raise ValueError("neither scales nor sizes")
    transform = "asymmetric" if old else cx.attr(node, "coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else cx.attr(node, "nearest_mode", "round_prefer_floor")
    for a, n, scale in zip(axes, out, scales, strict=True):
        if n == shape[a] and scale == 1.0:
            continue
        if mode != "nearest":
            raise cx.refuse(f"Resize mode {mode!r}", rule="only nearest is supported")
        at = _nearest(cx, transform, rounding, shape[a], n, scale)
        x = _repeat(cx, x, a, at)
    return x


def _nearest(cx: ImportContext, transform: str, rounding: str, n: int, out: int, scale: float) -> list[int]:
    i = np.arange(out, dtype=np.float64)
    match transform:
        case "asymmetric":
            at = i / scale
        case "half_pixel" | "half_pixel_symmetric":
            at = (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            at = (i + 0.5) / scale - 0.5 if out > 1 else i * 0
        case "align_corners":
            at = i * (n - 1) / (out - 1) if out > 1 else i * 0
        case _:
            raise cx.refuse(f"Resize with coordinate_transformation_mode {transform!r}")
    match rounding:
        case "floor":
            at = np.floor(at)
        case "ceil":
            at = np.ceil(at)
        case "round_prefer_floor":
            at = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            at = np.floor(at + 0.5)
        case _:
            raise cx.refuse(f"Resize with nearest_mode {rounding!r}")
    return [int(j) for j in np.clip(at, 0, n - 1)]


def _repeat(cx: ImportContext, x: Value, axis: int, at: list[int]) -> Value:
    """x's elements `at` along `axis`: repeats as a broadcast, evenly spaced ones as a slice, others as a lookup."""
    shape = tensor(x).shape
    times = len(at) // shape[axis]
    if times > 1 and at == [i // times for i in range(times * shape[axis])]:
        apart = cx.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        whole = cx.expand(apart, (*shape[: axis + 1], times, *shape[axis + 1 :]))
        return cx.reshape(whole, (*shape[:axis], shape[axis] * times, *shape[axis + 1 :]))
    taken = take(cx, x, axis, at)
    if taken is not None:
        return taken
    order = (axis, *(d for d in range(len(shape)) if d != axis))
    found = cx.emit("graph.lookup", [cx.const(np.array(at, np.int64)), cx.transpose(x, order)])
    return cx.transpose(found, tuple(int(i) for i in np.argsort(order)))


RULES = (
    OnnxRule("Identity", identity), OnnxRule("Dropout", dropout), OnnxRule("Reshape", reshape),
    OnnxRule("Flatten", flatten),
    OnnxRule("Squeeze", squeeze), OnnxRule("Unsqueeze", unsqueeze), OnnxRule("Transpose", transpose),
    OnnxRule("Expand", expand), OnnxRule("Tile", tile, 6), OnnxRule("Concat", concat), OnnxRule("Split", split),
    OnnxRule("Slice", slice_), OnnxRule("Gather", gather), OnnxRule("Pad", pad), OnnxRule("Resize", resize, 10),
    OnnxRule("Upsample", resize, 7),
)  # fmt: skip
