"""Rules of pooling: windows of channels-last data, the places of maxima, and the way back."""

from __future__ import annotations

import math

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given, mean, reduce
from d1c.frontend.rules_nn import Window, to_first, to_last, window
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import F32, I32, I64

_SAVED_TAPS = 12
"""A maximum is taken along one dim after the other where that reads so many elements less per result."""


def _pool(cx: ImportContext, name: str, x: Value, win: Window) -> Value:
    """graph.`name` over the windows of channels-last x."""
    x, win = _thinned(cx, x, win)
    r = len(win.kernel)
    if name == "graph.max_pool" and math.prod(win.kernel) - sum(win.kernel) >= _SAVED_TAPS:
        for i in range(r):
            x = _window_op(cx, name, x, _alone(win, i, tensor(x).shape[1:-1]))
        return x
    return _window_op(cx, name, x, win)


def _window_op(cx: ImportContext, name: str, x: Value, win: Window) -> Value:
    out: Value = cx.emit(name, [x], kernel=win.kernel, strides=win.strides, pads=win.pads, dilations=win.dilations)
    return out


def _alone(win: Window, i: int, extent: tuple[int, ...]) -> Window:
    """The window along spatial dim i, one element wide along the others."""
    r = len(extent)

    def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(values[j] if j == i else other for j in range(r))

    return Window(
        extent, only(win.kernel, 1), only(win.strides, 1), only(win.lo, 0), only(win.hi, 0), only(win.dilations, 1)
    )


def _thinned(cx: ImportContext, x: Value, win: Window) -> tuple[Value, Window]:
    """Without the rows that no window reads, where stride and dilation have a common factor."""
    for i in range(len(win.kernel)):
        g = math.gcd(win.strides[i], win.dilations[i])
        extent = win.extent[i]
        if g == 1:
            continue
        first = -win.lo[i] % g
        if first >= extent:
            continue
        count = (extent - first - 1) // g + 1
        x = cx.part(x, i + 1, first, count, g)
        places, kernel = win.out[i], win.kernel[i]
        stride, dilation, lo = win.strides[i] // g, win.dilations[i] // g, (win.lo[i] + first) // g
        hi = max(0, (places - 1) * stride + dilation * (kernel - 1) + 1 - count - lo)
        new = zip(
            (win.extent, win.kernel, win.strides, win.lo, win.hi, win.dilations),
            (count, kernel, stride, lo, hi, dilation),
            strict=True,
        )
        win = Window(*((*old[:i], value, *old[i + 1 :]) for old, value in new))
    return x, win


def max_pool(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, ...]:
    """Large windows one dim after the other; indices by comparing every tap with the maximum."""
    x = given(cx, node)
    win = window(cx, node, tensor(x).shape[2:], cx.attr(node, "kernel_shape"))
    last = to_last(cx, x)
    y = cx.cast(_pool(cx, "graph.max_pool", last, win), tensor(x).dtype)
    if not cx.wants(node, 1):
        return (to_first(cx, y),)
    places = _places(cx, last, y, win, bool(cx.attr(node, "storage_order", 0)))
    return to_first(cx, y), to_first(cx, places)


def _places(cx: ImportContext, x: Value, y: Value, win: Window, column_major: bool) -> Value:
    """Where the first of each window's largest elements is, counted over the whole operand as ONNX has it (channels
    first): each tap from the last to the first overwrites what those behind it said."""
    if not tensor(x).dtype.is_float:
        x, y = cx.cast(x, F32), cx.cast(y, F32)  # a border above every integer
    n, *extent, channels = tensor(x).shape
    r = len(extent)
    if any(win.pads):
        # A tap in the border must not be taken for the largest; -inf, as the pool has it, may be one.
        x = cx.emit("graph.pad", [x], lo=(0, *win.lo, 0), hi=(0, *win.hi, 0), value=math.inf)
    steps = [math.prod(extent[:i]) if column_major else math.prod(extent[i + 1 :]) for i in range(r)]
    corner = np.zeros((1, *win.out), np.int64)
    for i in range(r):
        at = np.arange(win.out[i]) * win.strides[i] - win.lo[i]
        corner = corner + at.reshape(-1, *(1,) * (r - i - 1)) * steps[i]
    plane = (np.arange(n)[:, None] * channels + np.arange(channels)[None, :]) * math.prod(extent)
    best: Value | None = None
    for tap in reversed(list(np.ndindex(*win.kernel))):
        starts = [t * d for t, d in zip(tap, win.dilations, strict=True)]
        part = cx.slice(x, (0, *starts, 0), (1, *win.strides, 1), (n, *win.out, channels))
        offset = cx.const(np.array(sum(s * f for s, f in zip(starts, steps, strict=True)), np.int32))
        if best is None:
            best = cx.expand(offset, tensor(y).shape)
        best = cx.emit("graph.where", [cx.emit("graph.equal", [part, y]), offset, best])
    assert best is not None
    out = cx.emit("graph.add", [cx.cast(best, I64), cx.const(corner[..., None])])
    found: Value = cx.emit("graph.add", [out, cx.const(plane.reshape(n, *(1,) * r, channels))])
    return found


def average_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The sum of each window over the number of elements that count in it: padding only if the node says so, and never
    what ceil_mode adds."""
    x = given(cx, node)
    r = len(tensor(x).shape) - 2
    win = window(cx, node, tensor(x).shape[2:], cx.attr(node, "kernel_shape"))
    y = _pool(cx, "graph.sum_pool", to_last(cx, x), win)
    padded = bool(cx.attr(node, "count_include_pad", 0))
    auto = cx.attr(node, "auto_pad", "NOTSET")
    stated = win.pads if auto.startswith("SAME") else (auto == "NOTSET" and cx.attr(node, "pads")) or (0,) * 2 * r
    counts = np.ones((1,) * (r + 2))
    for i in range(r):
        first, last = (-win.lo[i], win.extent[i] + stated[r + i]) if padded else (0, win.extent[i])
        places = np.arange(win.out[i])[:, None] * win.strides[i] - win.lo[i]
        places = places + np.arange(win.kernel[i])[None, :] * win.dilations[i]
        inside = ((places >= first) & (places < last)).sum(1)
        counts = counts * inside.reshape((1,) * (i + 1) + (-1,) + (1,) * (r - i))
    if (counts == counts.flat[0]).all():
        divisor = cx.scalar(float(counts.flat[0]), y)
    else:
        divisor = cx.const(np.maximum(counts, 1).astype(tensor(y).dtype.numpy))
    return to_first(cx, cx.cast(cx.emit("graph.div", [y, divisor]), tensor(x).dtype))


def _power(cx: ImportContext, x: Value, p: float) -> Value:
    """|x| to the power p."""
    out: Value
    if p == 2:
        out = cx.emit("graph.mul", [x, x])
    else:
        out = cx.emit("graph.abs", [x])
        out = out if p == 1 else cx.emit("graph.pow", [out, cx.scalar(p, out)])
    return out


def _root(cx: ImportContext, x: Value, p: float) -> Value:
    out: Value = x
    if p == 2:
        out = cx.emit("graph.sqrt", [x])
    elif p != 1:
        out = cx.emit("graph.pow", [x, cx.scalar(1 / p, x)])
    return out


def lp_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The root of the sum of the powers of each window."""
    x, p = given(cx, node), float(cx.attr(node, "p", 2))
    win = window(cx, node, tensor(x).shape[2:], cx.attr(node, "kernel_shape"))
    total = _pool(cx, "graph.sum_pool", _power(cx, to_last(cx, x), p), win)
    return to_first(cx, cx.cast(_root(cx, total, p), tensor(x).dtype))


def _spatial(cx: ImportContext, node: onnx.NodeProto) -> tuple[Value, tuple[int, ...]]:
    x = to_last(cx, given(cx, node))
    return x, tuple(range(1, len(tensor(x).shape) - 1))


def global_average_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The mean over the spatial dims."""
    x, axes = _spatial(cx, node)
    return to_first(cx, mean(cx, x, axes, True))


def global_max_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The maximum over the spatial dims."""
    x, axes = _spatial(cx, node)
    return to_first(cx, reduce(cx, "max", x, axes, True))


def global_lp_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The root of the sum of the powers over the spatial dims."""
    (x, axes), p = _spatial(cx, node), float(cx.attr(node, "p", 2))
    return to_first(cx, _root(cx, reduce(cx, "sum", _power(cx, x, p), axes, True), p))


def max_unpool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Elements go where the indices say, in the operand that the pool once had; the rest is 0. `output_shape` puts more
    zeros behind that."""
    x, places = given(cx, node), given(cx, node, 1)
    n, channels, *extent = tensor(x).shape
    kernel = cx.attr(node, "kernel_shape")
    r = len(kernel)
    strides, pads = cx.attr(node, "strides") or (1,) * r, cx.attr(node, "pads") or (0,) * 2 * r
    rows = zip(extent, kernel, strides, pads[:r], pads[r:], strict=True)
    shape = (n, channels, *((e - 1) * s - lo - hi + k for e, k, s, lo, hi in rows))
    count = tensor(x).size
    empty = cx.expand(cx.scalar(0, x), (math.prod(shape),))
    y = cx.emit("graph.scatter", [empty, cx.reshape(places, (count,)), cx.reshape(x, (count,))], reduce="none")
    y = cx.reshape(y, shape)
    wanted = cx.static_ints(node, 2, "output_shape")
    if wanted is None or tuple(wanted) == shape:
        return y
    hi = tuple(w - s for w, s in zip(wanted, shape, strict=True))
    if min(hi) < 0:
        raise cx.refuse(f"MaxUnpool of {list(shape)} to {list(wanted)}", rule="output_shape is no smaller")
    out: Value = cx.emit("graph.pad", [y], lo=(0,) * len(shape), hi=hi, value=0.0)
    return out


def max_roi_pool(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The largest element of each bin of each region, first over the columns of the bin, then over its rows. A region
    covers whole elements; an empty bin gives 0."""
    x, rois = to_last(cx, given(cx, node)), given(cx, node, 1)
    (n, h, w, channels), count = tensor(x).shape, tensor(rois).shape[0]
    bins = cx.attr(node, "pooled_shape")
    scaled = cx.emit("graph.mul", [rois, cx.scalar(cx.attr(node, "spatial_scale", 1.0), rois)])
    away = cx.emit("graph.add", [cx.emit("graph.abs", [scaled]), cx.scalar(0.5, scaled)])
    whole = cx.emit("graph.floor", [away])
    negative = cx.emit("graph.less", [scaled, cx.scalar(0, scaled)])
    whole = cx.emit("graph.where", [negative, cx.emit("graph.neg", [whole]), whole])
    image = cx.reshape(cx.cast(cx.part(rois, 1, 0, 1), I64), (count,))
    found = cx.emit("graph.lookup", [image, cx.reshape(x, (n, h * w * channels))])
    y = cx.reshape(found, (count, h, w, channels))
    for axis, first, parts, extent in ((2, 1, bins[1], w), (1, 2, bins[0], h)):
        inside = _bins(cx, cx.part(whole, 1, first, 1), cx.part(whole, 1, first + 2, 1), parts, extent)
        shape = tensor(y).shape
        apart = cx.reshape(y, (*shape[:axis], 1, *shape[axis:]))
        mask = cx.reshape(inside, (count, *(1,) * (axis - 1), parts, extent, *(1,) * (len(shape) - axis - 1)))
        kept = cx.emit("graph.where", [mask, apart, cx.scalar(-math.inf, y)])
        y = reduce(cx, "max", kept, (axis + 1,), False)
    none = cx.emit("graph.equal", [y, cx.scalar(-math.inf, y)])
    y = cx.emit("graph.where", [none, cx.scalar(0, y), y])
    return to_first(cx, y)


def _bins(cx: ImportContext, first: Value, last: Value, parts: int, extent: int) -> Value:
    """[regions, parts, extent]: which elements each bin of a region from `first` to `last` [regions, 1] has."""
    count = tensor(first).shape[0]
    length = cx.emit("graph.add", [cx.emit("graph.sub", [last, first]), cx.scalar(1, first)])
    length = cx.emit("graph.max", [length, cx.scalar(1, length)])
    size = cx.emit("graph.div", [length, cx.scalar(parts, length)])
    number = np.arange(parts, dtype=np.float32)
    lo = cx.emit("graph.floor", [cx.emit("graph.mul", [size, cx.const(number)])])
    hi = cx.emit("graph.ceil", [cx.emit("graph.mul", [size, cx.const(number + 1)])])
    lo, hi = (cx.cast(cx.emit("graph.add", [v, first]), I32) for v in (lo, hi))
    lo, hi = (cx.reshape(v, (count, parts, 1)) for v in (lo, hi))
    place = cx.const(np.arange(extent, dtype=np.int32))
    begun = cx.emit("graph.less_equal", [lo, place])
    inside: Value = cx.emit("graph.and", [begun, cx.emit("graph.less", [place, hi])])
    return inside


def lrn(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """x / (bias + alpha / size * s)^beta, s the sum of the squares of `size` neighbouring channels."""
    x, size = to_last(cx, given(cx, node)), cx.attr(node, "size")
    rank, channels = len(tensor(x).shape), tensor(x).shape[-1]
    none = (0,) * (rank - 1)
    square = cx.emit("graph.mul", [x, x])
    lo, hi = min((size - 1) // 2, channels), min(size // 2, channels)
    padded = cx.emit("graph.pad", [square], lo=(*none, lo), hi=(*none, hi), value=0.0)
    total = cx.part(padded, rank - 1, 0, channels)
    for i in range(1, lo + hi + 1):
        total = cx.emit("graph.add", [total, cx.part(padded, rank - 1, i, channels)])
    scaled = cx.emit("graph.mul", [total, cx.scalar(cx.attr(node, "alpha", 1e-4) / size, x)])
    base = cx.emit("graph.add", [scaled, cx.scalar(cx.attr(node, "bias", 1.0), x)])
    beta = cx.attr(node, "beta", 0.75)
    if beta in (0.5, 0.75):  # roots are cheaper than a power
        power = cx.emit("graph.sqrt", [base])
        power = power if beta == 0.5 else cx.emit("graph.mul", [power, cx.emit("graph.sqrt", [power])])
    else:
        power = cx.emit("graph.pow", [base, cx.scalar(beta, x)])
    return to_first(cx, cx.emit("graph.div", [x, power]))


RULES = (
    OnnxRule("MaxPool", max_pool), OnnxRule("AveragePool", average_pool), OnnxRule("LpPool", lp_pool),
    OnnxRule("GlobalAveragePool", global_average_pool), OnnxRule("GlobalMaxPool", global_max_pool),
    OnnxRule("GlobalLpPool", global_lp_pool), OnnxRule("MaxUnpool", max_unpool, static=(2,)),
    OnnxRule("MaxRoiPool", max_roi_pool), OnnxRule("LRN", lrn),
)  # fmt: skip
