"""Rules of ops that read an image at computed positions: rows of channels are looked up and summed with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given, reduce, wide
from d1c.frontend.rules_nn import to_first, to_last
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule
from d1c.target.dtypes import F32, I32

_CUBIC = -0.75
"""The coefficient of cubic interpolation; GridSample fixes it."""
_DENSE = 64
"""Elements of an image for each sample along a region's row up to which RoiAlign's mean is two matrix products: about
what a core's matrix unit does while it looks one element of every sample up."""


@dataclass(frozen=True)
class _Image:
    """A table of rows [positions, C], positions row-major over `extents` with `stride` rows per element of the last
    dim; `padding` and `align` as GridSample has them."""

    rows: Value
    extents: tuple[int, ...]
    stride: int = 1
    padding: str = "zeros"
    align: bool = False

    def steps(self) -> tuple[int, ...]:
        """Rows between neighbours, per dim."""
        return tuple(self.stride * math.prod(self.extents[i + 1 :]) for i in range(len(self.extents)))


def _binary(cx: ImportContext, name: str, a: Value, b: Value | float) -> Value:
    """One elementwise op; a number is a constant of a's type."""
    out: Value = cx.emit(f"graph.{name}", [a, b if isinstance(b, Value) else cx.scalar(b, a)])
    return out


def _clip(cx: ImportContext, x: Value, last: int) -> Value:
    """x within 0 .. last."""
    return _binary(cx, "min", _binary(cx, "max", x, 0), last)


def _folded(cx: ImportContext, x: Value, n: int, align: bool) -> Value:
    """Positions reflected at the borders until they are inside: at the centres of the outermost elements (align), or
    at their outer edges."""
    if align and n == 1:
        return _binary(cx, "mul", x, 0)
    period, shift = (2 * (n - 1), 0.0) if align else (2 * n, 0.5)
    x = cx.emit("graph.abs", [_binary(cx, "add", x, shift)])
    rounds = cx.emit("graph.floor", [_binary(cx, "div", x, period)])
    x = _binary(cx, "sub", x, _binary(cx, "mul", rounds, period))
    back = _binary(cx, "add", _binary(cx, "mul", x, -1), period)
    return _binary(cx, "sub", _binary(cx, "min", x, back), shift)


def _kept(cx: ImportContext, image: _Image, x: Value, n: int, cubic: bool) -> Value:
    """A position along a dim of extent n, by the padding mode."""
    if image.padding == "reflection":
        return _folded(cx, x, n, image.align)
    if image.padding == "border":
        # Cubic weights reach over the border: the elements there repeat, the position stays. Beyond n + 3 all are one.
        return _binary(cx, "min", _binary(cx, "max", x, -4), n + 3) if cubic else _clip(cx, x, n - 1)
    return x


def _row(cx: ImportContext, image: _Image, places: Sequence[Value], base: Value | None) -> Value:
    """The table row of integer positions; -1, which reads zeros, outside an image that zeros surround."""
    total, inside = base, None
    for i, n, step in zip(places, image.extents, image.steps(), strict=True):
        if image.padding == "zeros":
            here = _binary(cx, "and", _binary(cx, "greater_equal", i, 0), _binary(cx, "less", i, n))
            inside = here if inside is None else _binary(cx, "and", inside, here)
        elif image.padding == "reflection":
            i = cx.cast(_folded(cx, cx.cast(i, F32), n, image.align), I32)
        if image.padding != "zeros":
            i = _clip(cx, i, n - 1)
        i = _binary(cx, "mul", i, step) if step != 1 else i
        total = i if total is None else _binary(cx, "add", total, i)
    assert total is not None
    if inside is not None:
        total = cx.emit("graph.where", [inside, total, cx.scalar(-1, total)])
    return total


def _nearest(cx: ImportContext, image: _Image, at: Sequence[Value], base: Value | None) -> Value:
    """[*S, 1, C]: the rows nearest to positions [*S, 1], ties to even."""
    places = []
    for x, n in zip(at, image.extents, strict=True):
        places.append(cx.cast(_kept(cx, image, cx.emit("graph.round", [x]), n, False), I32))
    out: Value = cx.emit("graph.lookup", [_row(cx, image, places, base), image.rows])
    return out


def _taps(
    cx: ImportContext, image: _Image, at: Sequence[Value], base: Value | None, cubic: bool
) -> tuple[Value, Value]:
    """The rows around positions [*S, 1], and their weights: [*S, taps, C] and [*S, taps]."""
    reach = np.arange(-1, 3) if cubic else np.arange(2)
    taps = np.array(list(np.ndindex(*(len(reach),) * len(at))))
    places, weight = [], None
    for d, (x, n) in enumerate(zip(at, image.extents, strict=True)):
        x = _kept(cx, image, x, n, cubic)
        low = cx.emit("graph.floor", [x])
        part = _binary(cx, "sub", x, low)
        places.append(_binary(cx, "add", cx.cast(low, I32), cx.const(reach[taps[:, d]].astype(np.int32))))
        w = _polynomial(cx, part, _coefficients(cubic)[:, taps[:, d]])
        weight = w if weight is None else _binary(cx, "mul", weight, w)
    assert weight is not None
    return cx.emit("graph.lookup", [_row(cx, image, places, base), image.rows]), weight


def _coefficients(cubic: bool) -> np.ndarray:
    """[degree, tap]: the weight of each tap as a polynomial of the fraction, highest degree first."""
    if not cubic:
        return np.array([[-1.0, 1.0], [1.0, 0.0]])
    a = _CUBIC
    rows = [[a, -2 * a, a, 0], [a + 2, -(a + 3), 0, 1], [-(a + 2), 2 * a + 3, -a, 0], [-a, a, 0, 0]]
    return np.array(rows).T


def _polynomial(cx: ImportContext, x: Value, coefficients: np.ndarray) -> Value:
    kind = tensor(x).dtype.numpy
    out = cx.const(coefficients[0].astype(kind))
    for c in coefficients[1:]:
        out = _binary(cx, "add", _binary(cx, "mul", out, x), cx.const(c.astype(kind)))
    return out


def _column(cx: ImportContext, x: Value) -> Value:
    """[...] as [..., 1]."""
    return cx.reshape(x, (*tensor(x).shape, 1))


def _blend(cx: ImportContext, rows: Value, weights: Value) -> Value:
    """The weighted sum of rows over the taps: [*S, taps, C] -> [*S, C]."""
    axis = len(tensor(weights).shape) - 1
    return reduce(cx, "sum", _binary(cx, "mul", cx.cast(rows, wide(weights)), _column(cx, weights)), (axis,), False)


def grid_sample(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Rows looked up around every position, summed with weights."""
    x, grid = given(cx, node), given(cx, node, 1)
    n, channels, *extents = tensor(x).shape
    _, *out, r = tensor(grid).shape
    grid = cx.cast(grid, wide(grid))
    mode = cx.attr(node, "mode", "linear" if cx.opset >= 20 else "bilinear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding, align = cx.attr(node, "padding_mode", "zeros"), bool(cx.attr(node, "align_corners", 0))
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise cx.refuse(f"GridSample with mode {mode!r} and padding_mode {padding!r}")
    size = math.prod(extents)
    image = _Image(cx.reshape(to_last(cx, x), (n * size, channels)), tuple(extents), 1, padding, align)
    at = []
    for d, extent in enumerate(extents):
        g = cx.reshape(cx.part(grid, r + 1, r - 1 - d, 1), (n, math.prod(out), 1))
        g = _binary(cx, "add", g, 1)
        if align:
            at.append(_binary(cx, "mul", _binary(cx, "div", g, 2), extent - 1))
        else:
            at.append(_binary(cx, "div", _binary(cx, "sub", _binary(cx, "mul", g, extent), 1), 2))
    base = cx.const((np.arange(n) * size).astype(np.int32).reshape(n, 1, 1)) if n > 1 else None
    if mode == "nearest":
        y = _nearest(cx, image, at, base)
    else:
        y = cx.cast(_blend(cx, *_taps(cx, image, at, base, mode == "cubic")), tensor(x).dtype)
    return to_first(cx, cx.reshape(y, (n, *out, channels)))


def deform_conv(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Columns [N out..., taps C] of sampled and masked elements, then one product with the weights."""
    x, w, offset = given(cx, node), given(cx, node, 1), given(cx, node, 2)
    bias, mask = cx.input(node, 3), cx.input(node, 4)
    n, channels, *extents = tensor(x).shape
    width, per, *kernel = tensor(w).shape
    offset, out = cx.cast(offset, wide(offset)), tensor(offset).shape[2:]
    r, taps, kind = len(kernel), math.prod(kernel), tensor(x).dtype
    groups, banks = cx.attr(node, "group", 1), cx.attr(node, "offset_group", 1)
    strides, dilations = (cx.attr(node, name) or (1,) * r for name in ("strides", "dilations"))
    pads = cx.attr(node, "pads") or (0,) * 2 * r
    if per * groups != channels or width % groups or channels % banks:
        raise ValueError(f"weights {list(tensor(w).shape)}, {groups} and {banks} groups do not fit {channels} channels")
    size = math.prod(extents)
    rows = cx.reshape(to_last(cx, x), (n * size * banks, channels // banks))
    image = _Image(rows, tuple(extents), banks)
    # [N, out..., taps..., banks], so that the rows are the columns' elements in order.
    moved = (0, *range(r + 3, 2 * r + 3), *range(2, r + 2), 1, r + 2)
    apart = cx.reshape(offset, (n, banks, *kernel, r, *out))
    at = []
    for d in range(r):
        o = cx.transpose(cx.reshape(cx.part(apart, r + 2, d, 1), (n, banks, *kernel, 1, *out)), moved)
        o = cx.reshape(o, (n, *out, *kernel, banks, 1))
        start = (np.arange(out[d]) * strides[d] - pads[d]).reshape(-1, *(1,) * (2 * r + 1 - d))
        tap = (np.arange(kernel[d]) * dilations[d]).reshape(-1, *(1,) * (r + 1 - d))
        at.append(_binary(cx, "add", o, cx.const((start + tap).astype(tensor(o).dtype.numpy))))
    image_base = (np.arange(n) * size * banks).reshape(n, *(1,) * (2 * r + 2)) + np.arange(banks)[:, None]
    found, weights = _taps(cx, image, at, cx.const(image_base.astype(np.int32)), False)
    if mask is not None:
        m = cx.cast(cx.reshape(mask, (n, banks, *kernel, 1, *out)), wide(weights))
        m = cx.reshape(cx.transpose(m, moved), (n, *out, *kernel, banks, 1))
        weights = _binary(cx, "mul", weights, m)
    columns = cx.cast(_blend(cx, found, weights), kind)
    places = n * math.prod(out)
    columns = cx.reshape(columns, (places, taps, groups, per))
    columns = cx.reshape(cx.transpose(columns, (2, 0, 1, 3)), (groups, places, taps * per))
    w = cx.reshape(w, (groups, width // groups, per, taps))
    w = cx.reshape(cx.transpose(w, (0, 3, 2, 1)), (groups, taps * per, width // groups))
    if groups == 1:
        columns, w = cx.reshape(columns, (places, taps * per)), cx.reshape(w, (taps * per, width))
    y = cx.cast(cx.emit("graph.matmul", [columns, w], packed=False), kind)
    if groups > 1:
        y = cx.transpose(y, (1, 0, 2))
    y = cx.reshape(y, (n, *out, width))
    return to_first(cx, y if bias is None else _binary(cx, "add", y, bias))


def _grid(
    cx: ImportContext, first: Value, length: Value, bins: int, ratio: int, extent: int
) -> tuple[Value, Value, Value]:
    """Sampling positions [R, bins, samples] of regions, whether each is there (as 1.0 or 0.0), and the number of
    samples per bin [R, 1, 1]. Adaptive sampling (ratio 0) has at most extent + 3 samples in the image, and those
    outside count as zeros: only samples from the first inside on are looked at. `first`, `length`: [R, 1, 1]."""
    kind = wide(first).numpy
    step = _binary(cx, "div", length, bins)
    number = cx.const(np.arange(bins, dtype=kind).reshape(bins, 1))
    start = _binary(cx, "add", first, _binary(cx, "mul", step, number))
    if ratio > 0:
        count = cx.const(np.full((1, 1, 1), ratio, kind))
        index = cx.const(np.arange(ratio, dtype=kind))
        at = _binary(cx, "add", index, 0.5)
        at = _binary(cx, "add", start, _binary(cx, "div", _binary(cx, "mul", at, step), count))
        there = None
    else:
        count = cx.emit("graph.ceil", [step])
        divisor = _binary(cx, "max", count, 1)
        spacing = _binary(cx, "max", _binary(cx, "div", step, divisor), 1e-6)
        before = _binary(cx, "div", _binary(cx, "sub", cx.scalar(-1, start), start), spacing)
        skipped = _binary(cx, "max", cx.emit("graph.floor", [_binary(cx, "sub", before, 0.5)]), 0)
        index = _binary(cx, "add", skipped, cx.const(np.arange(extent + 4, dtype=kind)))
        at = _binary(cx, "div", _binary(cx, "mul", _binary(cx, "add", index, 0.5), step), divisor)
        at = _binary(cx, "add", start, at)
        there = _binary(cx, "less", index, count)
        count = divisor
    inside = _binary(cx, "and", _binary(cx, "greater_equal", at, -1), _binary(cx, "less_equal", at, extent))
    inside = inside if there is None else _binary(cx, "and", inside, there)
    return _clip(cx, at, extent - 1), cx.cast(inside, wide(first)), count


def roi_align(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The mean is separable: per region a matrix for rows and one for columns, both of few non-zeros, and two products.
    Means of large images, and the maximum over samples and over the four weighted neighbours of each, as ONNX has it,
    look their elements up."""
    x, rois, images = given(cx, node), given(cx, node, 1), given(cx, node, 2)
    n, channels, h, w = tensor(x).shape
    rois, count, kind = cx.cast(rois, wide(rois)), tensor(rois).shape[0], tensor(x).dtype
    bins = (cx.attr(node, "output_height", 1), cx.attr(node, "output_width", 1))
    ratio, mode = cx.attr(node, "sampling_ratio", 0), cx.attr(node, "mode", "avg")
    shifted = cx.attr(node, "coordinate_transformation_mode", "half_pixel" if cx.opset >= 16 else "output_half_pixel")
    if mode not in ("avg", "max") or shifted not in ("half_pixel", "output_half_pixel"):
        raise cx.refuse(f"RoiAlign with mode {mode!r} and coordinate_transformation_mode {shifted!r}")
    if mode == "max" and ratio <= 0:
        raise cx.refuse("RoiAlign of maxima with adaptive sampling", remedy="give sampling_ratio")
    scaled = _binary(cx, "mul", rois, cx.attr(node, "spatial_scale", 1.0))
    if shifted == "half_pixel":
        scaled = _binary(cx, "sub", scaled, 0.5)
    grids = []
    for low, high, parts, extent in ((1, 3, bins[0], h), (0, 2, bins[1], w)):
        first, last = (cx.reshape(cx.part(scaled, 1, i, 1), (count, 1, 1)) for i in (low, high))
        length = _binary(cx, "sub", last, first)
        length = length if shifted == "half_pixel" else _binary(cx, "max", length, 1)
        grids.append(_grid(cx, first, length, parts, ratio, extent))
    images = cx.cast(cx.reshape(images, (count,)), I32)
    if mode == "max" or (ratio > 0 and n * h * w > _DENSE * bins[1] * ratio**2):
        return _sampled(cx, x, images, grids, bins, ratio, mode)
    rows, columns = (_shares(cx, g, extent) for g, extent in zip(grids, (h, w), strict=True))
    # The image of a region is a factor of its matrix of rows: [R, 1, N, 1] and [R, bins, 1, H].
    mine = _binary(cx, "equal", cx.reshape(images, (count, 1, 1, 1)), cx.const(np.arange(n, dtype=np.int32)[:, None]))
    rows = _binary(cx, "mul", cx.reshape(rows, (count, bins[0], 1, h)), cx.cast(mine, wide(rois))) if n > 1 else rows
    flat = cx.reshape(cx.cast(to_last(cx, x), wide(rois)), (n * h, w * channels))
    y = cx.emit("graph.matmul", [cx.reshape(rows, (count * bins[0], n * h)), flat], packed=False)
    y = cx.reshape(y, (count, bins[0], w, channels))
    y = cx.emit("graph.matmul", [cx.reshape(columns, (count, 1, bins[1], w)), y], packed=False)
    return to_first(cx, cx.cast(y, kind))


def _shares(cx: ImportContext, grid: tuple[Value, Value, Value], extent: int) -> Value:
    """[R, bins, extent]: the mean over a bin's samples of how much each element has of the sample."""
    at, inside, count = grid
    # The whole part as an integer: the fraction alone may be rounded.
    low = cx.emit("graph.floor", [at])
    part, whole = _column(cx, _binary(cx, "sub", at, low)), _column(cx, cx.cast(low, I32))
    away = cx.cast(_binary(cx, "sub", whole, cx.const(np.arange(extent, dtype=np.int32))), wide(at))
    distance = cx.emit("graph.abs", [_binary(cx, "add", away, part)])
    share = _binary(cx, "max", _binary(cx, "add", _binary(cx, "mul", distance, -1), 1), 0)
    total = reduce(cx, "sum", _binary(cx, "mul", share, _column(cx, inside)), (2,), False)
    return _binary(cx, "div", total, count)


def _sampled(
    cx: ImportContext, x: Value, images: Value, grids: Sequence[tuple[Value, Value, Value]], bins: tuple[int, int],
    ratio: int, mode: str,
) -> Value:  # fmt: skip
    """The mean or the maximum over samples that are looked up."""
    n, channels, h, w = tensor(x).shape
    count = tensor(images).shape[0]
    image = _Image(cx.reshape(to_last(cx, x), (n * h * w, channels)), (h, w), 1, "border")
    shapes = (count, bins[0], 1, ratio, 1, 1), (count, 1, bins[1], 1, ratio, 1)
    (y, in_y), (x_, in_x) = ([cx.reshape(v, s) for v in g[:2]] for g, s in zip(grids, shapes, strict=True))
    base = cx.reshape(_binary(cx, "mul", images, h * w), (count, 1, 1, 1, 1, 1))
    rows, weights = _taps(cx, image, [y, x_], base, False)
    weights = _binary(cx, "mul", weights, _binary(cx, "mul", in_y, in_x))
    terms = _binary(cx, "mul", cx.cast(rows, wide(weights)), _column(cx, weights))
    if mode == "max":
        y = reduce(cx, "max", terms, (3, 4, 5), False)
    else:
        y = _binary(cx, "div", reduce(cx, "sum", terms, (3, 4, 5), False), ratio**2)
    return to_first(cx, cx.cast(y, tensor(x).dtype))


def col2im(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Each pixel is the sum of the column elements that cover it; which these are is constant."""
    x = given(cx, node)
    image, kernel = cx.static_ints(node, 1, "image_shape"), cx.static_ints(node, 2, "block_shape")
    if image is None or kernel is None:
        raise ValueError("image_shape and block_shape are not given")
    r, taps = len(image), math.prod(kernel)
    strides, dilations = (cx.attr(node, name) or (1,) * r for name in ("strides", "dilations"))
    pads = cx.attr(node, "pads") or (0,) * 2 * r
    n, rows, blocks = tensor(x).shape
    places = [
        (image[i] + pads[i] + pads[r + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(r)
    ]
    if math.prod(places) != blocks or rows % taps:
        raise ValueError(f"{blocks} blocks of {rows} elements, expected {places} of a multiple of {taps}")
    pixel, inside = np.zeros((1,) * 2 * r, np.int64), np.ones((1,) * 2 * r, np.bool_)
    for i in range(r):
        tap = (np.arange(kernel[i]) * dilations[i] - pads[i]).reshape(-1, *(1,) * (2 * r - i - 1))
        at = tap + (np.arange(places[i]) * strides[i]).reshape(-1, *(1,) * (r - i - 1))
        inside = inside & (at >= 0) & (at < image[i])
        pixel = pixel * image[i] + at
    of, source = pixel[inside], np.flatnonzero(inside)
    order = np.argsort(of, kind="stable")
    of, source = of[order], source[order]
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    index = np.full((int(rank.max(initial=0)) + 1, math.prod(image)), -1)
    index[rank, of] = source
    channels = rows // taps
    table = cx.transpose(cx.reshape(x, (n, channels, taps, blocks)), (2, 3, 0, 1))
    table = cx.reshape(table, (taps * blocks, n * channels))
    found = cx.emit("graph.lookup", [cx.const(index), table])
    y = reduce(cx, "sum", found, (0,), False) if len(index) > 1 else cx.reshape(found, tensor(found).shape[1:])
    return cx.reshape(cx.transpose(y, (1, 0)), (n, channels, *image))


RULES = (
    OnnxRule("GridSample", grid_sample, 16), OnnxRule("DeformConv", deform_conv, 19),
    OnnxRule("RoiAlign", roi_align, 10), OnnxRule("Col2Im", col2im, 18, static=(1, 2)),
)  # fmt: skip
