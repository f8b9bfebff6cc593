"""ConvTranspose as one convolution of stride 1 whose result channels are the phases of the output.

The output position s j + r (stride s, phase r) reads operand positions j + delta with s delta = r + pad - dilation k
for the taps k for which that is whole. All phases share one window of deltas; a tap that a phase does not have is 0.
The phases are channels of the convolution, and views put them in their places, as depth-to-space does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given
from d1c.frontend.rules_nn import even_groups, to_first, to_last
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


@dataclass(frozen=True)
class _Phases:
    """One spatial dim: stride, extent of the result, and `taps` [phase, window]: which tap is read, -1 for none;
    `first`: the delta of the window's first element."""

    stride: int
    out: int
    taps: np.ndarray
    first: int

    @property
    def window(self) -> int:
        return int(self.taps.shape[1])

    @property
    def places(self) -> int:
        """How many outputs each phase has."""
        return -(-self.out // self.stride)


def _phases(stride: int, out: int, kernel: int, dilation: int, pad: int) -> _Phases:
    r, k = np.arange(stride)[:, None], np.arange(kernel)[None, :]
    reach = r + pad - dilation * k
    phase, tap = np.nonzero(reach % stride == 0)
    delta = reach[phase, tap] // stride
    first = int(delta.min())
    taps = np.full((stride, int(delta.max()) - first + 1), -1)
    taps[phase, delta - first] = tap
    return _Phases(stride, out, taps, first)


def _dims(cx: ImportContext, node: onnx.NodeProto, extent: tuple[int, ...], kernel: tuple[int, ...]) -> list[_Phases]:
    """The spatial dims, with auto_pad and output_shape turned into padding."""
    r = len(extent)
    strides, dilations = (cx.attr(node, name) or (1,) * r for name in ("strides", "dilations"))
    extra = cx.attr(node, "output_padding") or (0,) * r
    pads = cx.attr(node, "pads") or (0,) * 2 * r
    wanted = cx.attr(node, "output_shape")
    auto = cx.attr(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise cx.refuse(f"ConvTranspose with auto_pad {auto!r}")
    wanted = wanted[-r:] if wanted else None
    dims = []
    for i in range(r):
        whole = strides[i] * (extent[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        if wanted or auto.startswith("SAME"):
            out = wanted[i] if wanted else extent[i] * strides[i]
            total = max(0, whole - out)
            lo = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            lo = 0 if auto == "VALID" else pads[i]
            out = whole if auto == "VALID" else whole - lo - pads[r + i]
        if out < 1:
            raise cx.refuse(f"ConvTranspose with {out} elements along spatial dim {i}", rule="extents are positive")
        dims.append(_phases(strides[i], out, kernel[i], dilations[i], lo))
    return dims


def conv_transpose(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """One convolution of stride 1 with the phases of the output as channels, which views put in their places."""
    x, w, bias = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    (n, channels, *extent), (rows, width, *kernel) = tensor(x).shape, tensor(w).shape
    groups = cx.attr(node, "group", 1)
    if rows != channels or channels % groups:
        raise ValueError(f"weights {list(tensor(w).shape)} and {groups} groups do not fit {channels} channels")
    dims = _dims(cx, node, tuple(extent), tuple(kernel))
    r, per = len(dims), channels // groups
    strides = tuple(d.stride for d in dims)
    phases = math.prod(strides)
    x, pads = _padded(cx, to_last(cx, x), dims)
    # [windows..., strides..., C, O per group]
    w = _weights(cx, w, dims)
    taps = tuple(d.window for d in dims)
    depthwise = per == width == 1
    order: tuple[int, ...]
    if depthwise:
        spatial = tensor(x).shape[1:-1]
        if phases > 1:
            x = cx.expand(cx.reshape(x, (n, *spatial, 1, channels)), (n, *spatial, phases, channels))
            x = cx.reshape(x, (n, *spatial, phases * channels))
        w = cx.reshape(w, (*taps, phases * channels))
        order, conv_groups = (phases, channels), phases * channels
    elif groups == 1:
        w = cx.reshape(w, (*taps, phases, channels, width))
        w = cx.reshape(cx.transpose(w, (*range(r), r + 1, r, r + 2)), (*taps, channels, phases * width))
        order, conv_groups = (phases, width), 1
    else:
        w = cx.reshape(w, (*taps, phases, groups, per, width))
        w = cx.transpose(w, (r + 1, *range(r), r + 2, r, r + 3))
        w = cx.reshape(w, (groups, *taps, per, phases * width))
        if per % 2 and per > 1:
            x, w = even_groups(cx, x, w, groups, per)
        order, conv_groups = (groups, phases, width), groups
    y = cx.emit(
        "graph.conv", [x, w], strides=(1,) * r, pads=pads, dilations=(1,) * r, groups=conv_groups, packed=False
    )  # fmt: skip
    y = cx.cast(y, tensor(x).dtype)
    places = tuple(d.places for d in dims)
    if bias is not None:
        shape = (groups, 1, width) if len(order) == 3 else (1, groups * width)
        every = cx.reshape(cx.expand(cx.reshape(bias, shape), order), (math.prod(order),))
        y = cx.emit("graph.add", [y, every])
    return to_first(cx, _placed(cx, y, (n, *places), order, strides, [d.out for d in dims]))


def _padded(cx: ImportContext, x: Value, dims: list[_Phases]) -> tuple[Value, tuple[int, ...]]:
    """x without what no output reads, and the padding of the convolution."""
    lo, hi = [], []
    for i, d in enumerate(dims):
        before = -d.first
        after = d.places + d.window - 1 - tensor(x).shape[i + 1] - before
        keep = tensor(x).shape[i + 1] + min(before, 0) + min(after, 0)
        if keep < 1:  # every output lies in the padding: one element stays, out of reach
            raise cx.refuse("ConvTranspose whose result lies in the padding only")
        x = cx.part(x, i + 1, max(-before, 0), keep)
        lo.append(max(before, 0))
        hi.append(max(after, 0))
    return x, (*lo, *hi)


def _weights(cx: ImportContext, w: Value, dims: list[_Phases]) -> Value:
    """[C, O, taps...] as [windows..., strides..., C, O], 0 where a phase has no tap."""
    channels, width, *kernel = tensor(w).shape
    r = len(dims)
    index = np.zeros((), np.int64)
    for i, d in enumerate(dims):
        shape = [1] * (2 * r)
        shape[i], shape[r + i] = d.window, d.stride
        mine = d.taps.T.reshape(shape)
        index = np.where((index < 0) | (mine < 0), -1, index * kernel[i] + mine)
    rows = cx.reshape(cx.transpose(w, (*range(2, r + 2), 0, 1)), (math.prod(kernel), channels, width))
    if cx.is_const(rows):
        return cx.const(np.where(index[..., None, None] < 0, 0, cx.array(rows)[np.maximum(index, 0)]))
    out: Value = cx.emit("graph.lookup", [cx.const(index), rows])
    return out


def _placed(
    cx: ImportContext, y: Value, places: tuple[int, ...], order: tuple[int, ...], strides: tuple[int, ...],
    out: list[int],
) -> Value:  # fmt: skip
    """[N, places..., groups, phases, O] as [N, out..., groups O]."""
    n, *j = places
    r, groups, width = len(j), order[0] if len(order) == 3 else 1, order[-1]
    y = cx.reshape(y, (n, *j, groups, *strides, width))
    pairs = [p for i in range(r) for p in (1 + i, r + 2 + i)]
    y = cx.transpose(y, (0, *pairs, r + 1, 2 * r + 2))
    y = cx.reshape(y, (n, *(a * s for a, s in zip(j, strides, strict=True)), groups * width))
    for i, size in enumerate(out):
        y = cx.part(y, i + 1, 0, size)
    return y


RULES = (OnnxRule("ConvTranspose", conv_transpose),)
