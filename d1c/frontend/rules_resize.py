"""Resize and Upsample: per axis a constant matrix of weights, applied as repeats, as a convolution, or as a product.

The position of every result element in the operand, and so the weights, are constant at import. Nearest only moves
data. A matrix whose rows repeat (scales like 2 or 1/2) and that reads few elements per result is a depthwise
convolution, of two axes at once; any other is a matrix product along its axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given, wide
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

_MOST_WORK = 16
"""A convolution reads at most this many elements per result, and repeats its operand at most so often."""
_MOST_PARTS = 4
"""Nearest elements of a block are slices up to this many."""
_SAME = 1e-7
"""Weights closer than this are the same: they come from positions that differ by rounding only."""


@dataclass(frozen=True)
class _Axis:
    """One resized axis: its number, extents before and after, the scale, and the region for tf_crop_and_resize."""

    number: int
    n: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class _How:
    """The attributes: `simple` is the nearest mode of opset 10 and before."""

    mode: str
    transform: str
    nearest: str
    cubic: float = -0.75
    exclude: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


def resize(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """All modes and transformations; scales, sizes and roi are known at compile time."""
    x, axes = given(cx, node), _axes(cx, node)
    old = cx.opset == 10 or node.op_type == "Upsample"
    mode = cx.attr(node, "mode", "nearest")
    how = _How(
        {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode),
        "asymmetric" if old else cx.attr(node, "coordinate_transformation_mode", "half_pixel"),
        "simple" if old else cx.attr(node, "nearest_mode", "round_prefer_floor"),
        cx.attr(node, "cubic_coeff_a", -0.75),
        bool(cx.attr(node, "exclude_outside", 0)),
        bool(cx.attr(node, "antialias", 0)),
        cx.attr(node, "extrapolation_value", 0.0),
    )
    if how.mode not in ("nearest", "linear", "cubic"):
        raise cx.refuse(f"Resize mode {mode!r}", rule="modes: nearest, linear, cubic")
    axes = [a for a in axes if a.n != a.out or not math.isclose(a.scale, 1.0) or (_crops(how) and a.roi != (0.0, 1.0))]
    kind = tensor(x).dtype
    if not axes:
        return x
    # Channels last wherever they are not resized: the transposes cancel against those of the neighbours.
    rank = len(tensor(x).shape)
    last = rank > 2 and all(a.number > 1 for a in axes)
    if last:
        x = cx.transpose(x, (0, *range(2, rank), 1))
    if how.mode != "nearest":
        x = cx.cast(x, wide(x))
    x = _resized(cx, x, [(a.number - last, a) for a in axes], how, last)
    if kind != tensor(x).dtype:
        x = _narrowed(cx, x, kind)
    return cx.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x


def _narrowed(cx: ImportContext, x: Value, kind: object) -> Value:
    """x as the operand's type: integers are rounded to the nearest, ties to even, and saturate."""
    name = str(kind)
    if name.lstrip("ui").isdigit():
        info = np.iinfo(name.replace("u", "uint") if name[0] == "u" else name.replace("i", "int"))
        x = cx.emit("graph.round", [x])
        if info.bits < 32:
            x = cx.emit("graph.clip", [x], lo=float(info.min), hi=float(info.max))
    return cx.cast(x, name)


def _crops(how: _How) -> bool:
    return how.transform == "tf_crop_and_resize"


def _axes(cx: ImportContext, node: onnx.NodeProto) -> list[_Axis]:
    """The axes with their extents and scales."""
    shape = tensor(given(cx, node)).shape
    old = cx.opset == 10 or node.op_type == "Upsample"
    given_scales = cx.static(node, 1 if old else 2, "scales")
    given_sizes = None if old else cx.static(node, 3, "sizes")
    roi = None
    if cx.attr(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        roi = cx.static(node, 1, "roi")
    numbers = [normal_axis(a, len(shape), cx.origin) for a in cx.attr(node, "axes", tuple(range(len(shape))))]
    extents = [shape[a] for a in numbers]
    if given_sizes is not None and given_sizes.size:
        out = [int(s) for s in given_sizes.reshape(-1)]
        scales = [o / n for o, n in zip(out, extents, strict=True)]
        policy = cx.attr(node, "keep_aspect_ratio_policy", "stretch")
        if policy not in ("stretch", "not_larger", "not_smaller"):
            raise ValueError(f"keep_aspect_ratio_policy {policy!r}")
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            scales = [scale] * len(out)
            out = [int(scale * n + 0.5) for n in extents]
    else:
        raw = cx.attr(node, "scales") if given_scales is None or not given_scales.size else given_scales.reshape(-1)
        if raw is None:
            raise ValueError("neither scales nor sizes")
        scales = [float(s) for s in raw]
        # The product in f32, as ONNX's shape inference and onnxruntime have it: 0.7 times 10 is 7.
        out = [math.floor(np.float32(s) * np.float32(n)) for s, n in zip(scales, extents, strict=True)]
    regions = [(0.0, 1.0)] * len(out)
    if roi is not None and roi.size:
        r = roi.reshape(2, -1).astype(np.float64)
        regions = [(float(r[0, i]), float(r[1, i])) for i in range(len(out))]
    if any(o < 1 <= n for o, n in zip(out, extents, strict=True)):
        raise cx.refuse(f"Resize to {out}", rule="extents are positive")
    return [_Axis(*row) for row in zip(numbers, extents, out, scales, regions, strict=True)]


def _positions(cx: ImportContext, a: _Axis, how: _How) -> np.ndarray:
    """Where in the operand each result element is."""
    i = np.arange(a.out, dtype=np.float64)
    width = a.scale * a.n
    match how.transform:
        case "asymmetric":
            return i / a.scale
        case "half_pixel":
            return (i + 0.5) / a.scale - 0.5
        case "tf_half_pixel_for_nn":  # in opset 11 only
            return (i + 0.5) / a.scale
        case "pytorch_half_pixel":
            return (i + 0.5) / a.scale - 0.5 if a.out > 1 else i * 0
        case "half_pixel_symmetric":
            return a.n / 2 * (1 - a.out / width) + (i + 0.5) / a.scale - 0.5
        case "align_corners":
            return i * 0 if width == 1 else i * (a.n - 1) / (width - 1)
        case "tf_crop_and_resize":
            lo, hi = a.roi
            step = i * 0 + (hi - lo) * (a.n - 1) / 2 if width == 1 else i * (hi - lo) * (a.n - 1) / (width - 1)
            return step + lo * (a.n - 1)
    raise cx.refuse(f"Resize with coordinate_transformation_mode {how.transform!r}")


def _resized(cx: ImportContext, x: Value, axes: Sequence[tuple[int, _Axis]], how: _How, image: bool) -> Value:
    """x resized along axes of x as it is here. `image`: that is [N, spatial..., C]."""
    jobs: list[tuple[int, np.ndarray]] = []
    masks: list[tuple[int, np.ndarray]] = []
    for axis, a in axes:
        at = _positions(cx, a, how)
        outside = (at < 0) | (at > a.n - 1) if _crops(how) else np.zeros(a.out, np.bool_)
        masks.append((axis, outside))
        at = np.where(outside, 0, at)
        if how.mode == "nearest":
            index = np.clip(_nearest(cx, at, a.scale, how.nearest), 0, a.n - 1)
            x = repeat(cx, x, axis, [int(j) for j in index])
        else:
            jobs.append((axis, _weights(at, a, how)))
    x = _weighted(cx, x, jobs, image)
    for axis, outside in masks:
        if outside.any():
            mask = cx.const(outside.reshape(-1, *(1,) * (len(tensor(x).shape) - axis - 1)))
            x = cx.emit("graph.where", [mask, cx.scalar(how.extrapolation, x), x])
    return x


def _nearest(cx: ImportContext, at: np.ndarray, scale: float, rounding: str) -> np.ndarray:
    rounded: np.ndarray
    match rounding:
        case "simple":  # before opset 11: up when the axis shrinks, down when it grows
            rounded = np.ceil(at) if scale < 1 else np.floor(at)
        case "floor":
            rounded = np.floor(at)
        case "ceil":
            rounded = np.ceil(at)
        case "round_prefer_floor":
            rounded = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            rounded = np.floor(at + 0.5)
        case _:
            raise cx.refuse(f"Resize with nearest_mode {rounding!r}")
    return rounded


def _weights(at: np.ndarray, a: _Axis, how: _How) -> np.ndarray:
    """The matrix [out, n] of weights; outside the operand its border continues."""
    shrink = min(a.scale, 1.0) if how.antialias else 1.0
    reach = 2 if how.mode == "cubic" else 1
    first = math.floor(-reach / shrink) + 1
    taps = np.arange(first, 2 - first)
    base = np.floor(at).astype(np.int64)
    distance = np.abs(taps[None, :] - (at - base)[:, None]) * shrink
    if how.mode == "linear":
        coefs = np.clip(1 - distance, 0, 1)
    else:
        d, c = distance, how.cubic
        near = ((c + 2) * d - (c + 3)) * d * d + 1
        far = ((c * d - 5 * c) * d + 8 * c) * d - 4 * c
        coefs = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    index = base[:, None] + taps[None, :]
    if how.exclude:
        coefs = np.where((index < 0) | (index >= a.n), 0.0, coefs)
    if how.exclude or how.antialias:
        total = coefs.sum(1, keepdims=True)
        coefs = coefs / np.where(total == 0, 1.0, total)
    matrix = np.zeros((a.out, a.n))
    np.add.at(matrix, (np.arange(a.out)[:, None], np.clip(index, 0, a.n - 1)), coefs)
    return matrix


@dataclass(frozen=True)
class _Blocks:
    """A matrix [out, n] whose rows repeat: result b * each + i is edge[b, i] times the sum over t of
    weights[i, t] * x[b * step + first + t], where x is 0 beyond its ends."""

    weights: np.ndarray
    edge: np.ndarray
    step: int
    first: int

    @property
    def each(self) -> int:
        return int(self.weights.shape[0])

    @property
    def taps(self) -> int:
        return int(self.weights.shape[1])


def _blocks_of(matrix: np.ndarray) -> _Blocks | None:
    """That form with the least step; None where there is none."""
    out, n = matrix.shape
    count = math.gcd(out, n)
    step, each = n // count, out // count
    rows, columns = np.nonzero(np.abs(matrix) > _SAME)
    block = rows // each
    away = columns - block * step
    first, taps = int(away.min()), int(np.ptp(away)) + 1
    weights = np.zeros((count, each, taps))
    weights[block, rows % each, away - first] = matrix[rows, columns]
    middle = weights[count // 2]
    place = np.arange(count)[:, None] * step + first + np.arange(taps)
    inside = middle * ((place >= 0) & (place < n))[:, None, :]
    total = inside.sum(2)
    edge = weights.sum(2) / np.where(np.abs(total) < _SAME, 1.0, total)
    same = np.abs(edge[:, :, None] * inside - weights).max() < _SAME
    return _Blocks(middle, edge, step, first) if same else None


def _weighted(cx: ImportContext, x: Value, jobs: Sequence[tuple[int, np.ndarray]], image: bool) -> Value:
    """The product of a matrix [out, n] with x along each of some axes. `image`: x is [N, spatial..., C]."""
    group: list[tuple[int, _Blocks]] = []
    for axis, matrix in jobs:
        blocks = _blocks_of(matrix) if image else None
        if blocks is None or max(blocks.taps, blocks.each) > _MOST_WORK:
            x = along(cx, x, axis, matrix)
            continue
        together = [*group, (axis, blocks)]
        if max(math.prod(b.taps for _, b in together), math.prod(b.each for _, b in together)) > _MOST_WORK:
            x, together = _convolved(cx, x, group), [(axis, blocks)]
        group = together
    return _convolved(cx, x, group) if group else x


def _convolved(cx: ImportContext, x: Value, jobs: Sequence[tuple[int, _Blocks]]) -> Value:
    """A depthwise convolution over the axes, its channels repeated once for each place in a block; views put these in
    their places, with the factors of the edges."""
    n, *extent, channels = tensor(x).shape
    r, blocks = len(extent), dict(jobs)
    spatial = [blocks.get(d + 1) for d in range(r)]
    each = [b.each if b else 1 for b in spatial]
    copies = math.prod(each)
    count = [len(b.edge) if b else extent[d] for d, b in enumerate(spatial)]
    weights, lo, hi, strides = np.ones((1,) * 2 * r), [0] * r, [0] * r, [1] * r
    for d, b in enumerate(spatial):
        if b is None:
            continue
        strides[d] = b.step
        after = (count[d] - 1) * b.step + b.first + b.taps - extent[d]
        if b.first > 0 or after < 0:
            x = cx.part(x, d + 1, max(b.first, 0), extent[d] - max(b.first, 0) + min(after, 0))
        lo[d], hi[d] = max(-b.first, 0), max(after, 0)
        shape = [1] * 2 * r
        shape[d], shape[r + d] = b.taps, b.each
        weights = weights * b.weights.T.reshape(shape)
    if copies > 1:
        held = tensor(x).shape
        x = cx.expand(cx.reshape(x, (*held[:-1], 1, channels)), (*held[:-1], copies, channels))
        x = cx.reshape(x, (*held[:-1], copies * channels))
    taps = weights.shape[:r]
    every = np.repeat(weights.reshape(*taps, copies, 1), channels, -1).reshape(*taps, copies * channels)
    y = cx.emit(
        "graph.conv", [x, cx.const(every.astype(tensor(x).dtype.numpy))], strides=tuple(strides), pads=(*lo, *hi),
        dilations=(1,) * r, groups=copies * channels, packed=False,
    )  # fmt: skip
    y = cx.reshape(y, (n, *count, *each, channels))
    y = cx.transpose(y, (0, *(i for d in range(r) for i in (1 + d, 1 + r + d)), 2 * r + 1))
    for d, b in enumerate(spatial):
        if b is not None and (np.abs(b.edge - 1) > _SAME).any():
            edge = b.edge.astype(tensor(y).dtype.numpy).reshape(*b.edge.shape, *(1,) * (2 * (r - d) - 1))
            y = cx.emit("graph.mul", [y, cx.const(edge)])
    return cx.reshape(y, (n, *(c * e for c, e in zip(count, each, strict=True)), channels))


def along(cx: ImportContext, x: Value, axis: int, matrix: np.ndarray) -> Value:
    """The product of a constant [out, n] with every vector of x along `axis`: [.., out, ..]."""
    shape, matrix = tensor(x).shape, matrix.astype(tensor(x).dtype.numpy)
    batch, inner = shape[:axis], math.prod(shape[axis + 1 :])
    out: Value
    if inner == 1:
        rows = cx.reshape(x, (math.prod(batch), shape[axis]))
        out = cx.emit("graph.matmul", [rows, cx.const(matrix.T)], packed=False)
    else:
        columns = cx.reshape(x, (math.prod(batch), shape[axis], inner))
        out = cx.emit("graph.matmul", [cx.const(matrix), columns], packed=False)
    return cx.reshape(out, (*batch, matrix.shape[0], *shape[axis + 1 :]))


def repeat(cx: ImportContext, x: Value, axis: int, at: Sequence[int]) -> Value:
    """x's elements `at` along `axis`: repeats as a broadcast, evenly spaced ones as a slice, few of every block as
    slices, others as a lookup."""
    shape, at = tensor(x).shape, list(at)
    times = len(at) // shape[axis]
    if times > 1 and at == [i // times for i in range(times * shape[axis])]:
        apart = cx.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        whole = cx.expand(apart, (*shape[: axis + 1], times, *shape[axis + 1 :]))
        return cx.reshape(whole, (*shape[:axis], shape[axis] * times, *shape[axis + 1 :]))
    steps = {b - a for a, b in pairwise(at)}
    if len(steps) <= 1 and steps != {0}:
        return cx.part(x, axis, at[0], len(at), steps.pop() if steps else 1)
    blocks = math.gcd(len(at), shape[axis])
    each, step = len(at) // blocks, shape[axis] // blocks
    if each <= _MOST_PARTS and all(j == at[i % each] + i // each * step for i, j in enumerate(at)):
        parts = [cx.part(x, axis, at[i], blocks, step) for i in range(each)]
        parts = [cx.reshape(v, (*shape[:axis], blocks, 1, *shape[axis + 1 :])) for v in parts]
        return cx.reshape(cx.concat(parts, axis + 1), (*shape[:axis], len(at), *shape[axis + 1 :]))
    order = (axis, *(d for d in range(len(shape)) if d != axis))
    found = cx.emit("graph.lookup", [cx.const(np.array(at, np.int64)), cx.transpose(x, order)])
    return cx.transpose(found, tuple(int(i) for i in np.argsort(order)))


RULES = (
    OnnxRule("Resize", resize, 10, static=(1,)), OnnxRule("Resize", resize, 11, static=(1, 2, 3)),
    OnnxRule("Upsample", resize, 7, static=(1,)),
)  # fmt: skip
