"""Rules of convolution and normalisation: channels-first nodes as channels-last ops between transposes.

The transposes cancel against those of the neighbours, here where they touch and in the pass that sinks them elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given, normalise, reduce
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


def to_last(cx: ImportContext, x: Value) -> Value:
    """[N, C, spatial...] -> [N, spatial..., C]."""
    rank = len(tensor(x).shape)
    return cx.transpose(x, (0, *range(2, rank), 1))


def to_first(cx: ImportContext, x: Value) -> Value:
    """[N, spatial..., C] -> [N, C, spatial...]."""
    rank = len(tensor(x).shape)
    return cx.transpose(x, (0, rank - 1, *range(1, rank - 1)))


@dataclass(frozen=True)
class Window:
    """A sliding window over `extent`: per spatial dim kernel, stride, padding on both sides, dilation."""

    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def pads(self) -> tuple[int, ...]:
        return self.lo + self.hi

    @property
    def out(self) -> tuple[int, ...]:
        """How many windows fit."""
        rows = zip(self.extent, self.kernel, self.strides, self.lo, self.hi, self.dilations, strict=True)
        return tuple((n + lo + hi - d * (k - 1) - 1) // s + 1 for n, k, s, lo, hi, d in rows)


def window(cx: ImportContext, node: onnx.NodeProto, extent: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window with auto_pad and ceil_mode turned into padding."""
    r = len(extent)
    strides = cx.attr(node, "strides") or (1,) * r
    dilations = cx.attr(node, "dilations") or (1,) * r
    pads = cx.attr(node, "pads") or (0,) * 2 * r
    lo, hi = list(pads[:r]), list(pads[r:])
    auto = cx.attr(node, "auto_pad", "NOTSET")
    ceil = bool(cx.attr(node, "ceil_mode", 0))
    for i in range(r):
        reach = dilations[i] * (kernel[i] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-extent[i] // strides[i])
            total = max((count - 1) * strides[i] + reach - extent[i], 0)
            small, large = total // 2, total - total // 2
            lo[i], hi[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            lo[i] = hi[i] = 0
        elif auto != "NOTSET":
            raise cx.refuse(f"{node.op_type} with auto_pad {auto!r}")
        if ceil:
            count = -(-(extent[i] + lo[i] + hi[i] - reach) // strides[i]) + 1
            if (count - 1) * strides[i] >= extent[i] + lo[i]:
                count -= 1  # a window that starts in the padding after the input does not exist
            hi[i] = max(hi[i], (count - 1) * strides[i] + reach - extent[i] - lo[i])
    return Window(tuple(extent), tuple(kernel), tuple(strides), tuple(lo), tuple(hi), tuple(dilations))


def conv(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """graph.conv on channels-last data, then the bias, then back."""
    x, w, bias = given(cx, node), given(cx, node, 1), cx.input(node, 2)
    y = cx.cast(convolution(cx, node, x, w), tensor(x).dtype)
    if bias is not None:
        y = cx.emit("graph.add", [y, bias])
    return to_first(cx, y)


def convolution(cx: ImportContext, node: onnx.NodeProto, x: Value, w: Value) -> Value:
    """The accumulators of a convolution of x [N, C, spatial...] and w [O, C per group, taps...], channels last."""
    channels, (out, per, *taps) = tensor(x).shape[1], tensor(w).shape
    groups = cx.attr(node, "group", 1)
    if per * groups != channels or out % groups:
        raise ValueError(f"weights {list(tensor(w).shape)} and {groups} groups do not fit {channels} channels")
    win = window(cx, node, tensor(x).shape[2:], taps)
    x = to_last(cx, x)
    r = len(taps)
    if groups == 1:
        w = cx.transpose(w, (*range(2, r + 2), 1, 0))
    elif groups == channels == out:
        w = cx.transpose(cx.reshape(w, (out, *taps)), (*range(1, r + 1), 0))
    else:
        w = cx.transpose(cx.reshape(w, (groups, out // groups, per, *taps)), (0, *range(3, r + 3), 2, 1))
        if per % 2 and per > 1:
            x, w = even_groups(cx, x, w, groups, per)
    y: Value = cx.emit(
        "graph.conv", [x, w], strides=win.strides, pads=win.pads, dilations=win.dilations, groups=groups, packed=False
    )  # fmt: skip
    return y


def even_groups(cx: ImportContext, x: Value, w: Value, groups: int, per: int) -> tuple[Value, Value]:
    """A zero channel at the end of every group: a pair of channels must not reach into the next group."""
    n, *spatial, _ = tensor(x).shape
    apart = cx.reshape(x, (n, *spatial, groups, per))
    none = (0,) * (len(spatial) + 2)
    apart = cx.emit("graph.pad", [apart], lo=(*none, 0), hi=(*none, 1), value=0.0)
    x = cx.reshape(apart, (n, *spatial, groups * (per + 1)))
    rank = len(tensor(w).shape)
    hi = tuple(int(i == rank - 2) for i in range(rank))
    if cx.is_const(w):
        return x, cx.const(np.pad(cx.array(w), [(0, h) for h in hi]))
    return x, cx.emit("graph.pad", [w], lo=(0,) * rank, hi=hi, value=0.0)


def _per_channel(cx: ImportContext, x: Value) -> tuple[Value, bool]:
    """x with its channels last if that costs nothing (it comes from there), and whether they are."""
    op = cx.producer(x)
    rank = len(tensor(x).shape)
    last = rank > 2 and op is not None and op.name == "graph.transpose"
    last = last and op is not None and op.attrs.perm == (0, rank - 1, *range(1, rank - 1))
    return (to_last(cx, x), True) if last or rank == 2 else (x, False)


def _batch_norm_training(cx: ImportContext, node: onnx.NodeProto, x: Value) -> tuple[Value, ...]:
    """By the batch's own mean and variance; the running ones move towards them."""
    rank, kind, momentum = len(tensor(x).shape), tensor(x).dtype, cx.attr(node, "momentum", 0.9)
    axes = (0, *range(2, rank))
    shape = (tensor(x).shape[1], *(1,) * (rank - 2))
    y, m, var, _ = normalise(cx, x, axes, cx.attr(node, "epsilon", 1e-5))
    y = cx.emit("graph.mul", [y, cx.reshape(given(cx, node, 1), shape)])
    out = [cx.cast(cx.emit("graph.add", [y, cx.reshape(given(cx, node, 2), shape)]), kind)]
    for index, now in ((3, m), (4, var)):
        old, new = given(cx, node, index), cx.reshape(now, shape[:1])
        kept = cx.emit("graph.mul", [old, cx.scalar(momentum, old)])
        moved = cx.emit("graph.add", [kept, cx.emit("graph.mul", [new, cx.scalar(1 - momentum, new)])])
        out.append(cx.cast(moved, tensor(old).dtype))
    return tuple(out)


def batch_norm(cx: ImportContext, node: onnx.NodeProto) -> Value | tuple[Value, ...]:
    """x * scale + shift with constants computed in float64; with run-time parameters the definition, step by step."""
    x = given(cx, node)
    if cx.attr(node, "training_mode", 0):
        return _batch_norm_training(cx, node, x)
    parameters = [given(cx, node, i) for i in range(1, 5)]
    epsilon = cx.attr(node, "epsilon", 1e-5)
    last, is_last = _per_channel(cx, x)
    shape = (-1,) if is_last else (-1, *(1,) * (len(tensor(x).shape) - 2))
    if not cx.attr(node, "spatial", 1):  # before opset 9: parameters for every element of a sample
        last, is_last, shape = x, False, tensor(x).shape[1:]
    if all(cx.is_const(p) for p in parameters):
        gamma, beta, mu, var = (cx.array(p).astype(np.float64) for p in parameters)
        factor = gamma / np.sqrt(var + epsilon)
        numpy = tensor(x).dtype.numpy
        scale, shift = (cx.const(a.astype(numpy).reshape(shape)) for a in (factor, beta - mu * factor))
        y = cx.emit("graph.add", [cx.emit("graph.mul", [last, scale]), shift])
    else:
        shape = (tensor(parameters[0]).shape[0], *shape[1:])  # the first is -1, or is that already
        scale, bias, center, variance = (cx.reshape(p, shape) for p in parameters)
        deviation = cx.emit("graph.sqrt", [cx.emit("graph.add", [variance, cx.scalar(epsilon, variance)])])
        y = cx.emit("graph.div", [cx.emit("graph.sub", [last, center]), deviation])
        y = cx.cast(cx.emit("graph.add", [cx.emit("graph.mul", [y, scale]), bias]), tensor(x).dtype)
    return to_first(cx, y) if is_last else y


def instance_norm(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """Every channel of every sample normalised over its spatial dims."""
    x = to_last(cx, given(cx, node))
    y, *_ = normalise(cx, x, tuple(range(1, len(tensor(x).shape) - 1)), cx.attr(node, "epsilon", 1e-5))
    y = cx.emit("graph.add", [cx.emit("graph.mul", [y, given(cx, node, 1)]), given(cx, node, 2)])
    return to_first(cx, cx.cast(y, tensor(x).dtype))


def prelu(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """The slope broadcasts to x (before opset 7 it is one per channel); one per channel goes with x where its channels
    are last."""
    x, slope = given(cx, node), given(cx, node, 1)
    if cx.opset < 7 and len(tensor(slope).shape) == 1 and len(tensor(x).shape) > 2:
        slope = cx.reshape(slope, (*tensor(slope).shape, *(1,) * (len(tensor(x).shape) - 2)))
    last, is_last = _per_channel(cx, x)
    rank, shape = len(tensor(x).shape), tensor(slope).shape
    if is_last and rank > 2 and (len(shape) == rank - 1 or (len(shape) == rank and shape[0] == 1)):
        aligned = cx.reshape(slope, (1,) * (rank - len(shape)) + shape)
        y: Value = cx.emit("graph.prelu", [last, to_last(cx, aligned)])
        return to_first(cx, y)
    if is_last and rank > 2 and math.prod(shape) == 1:
        y = cx.emit("graph.prelu", [last, cx.reshape(slope, ())])
        return to_first(cx, y)
    y = cx.emit("graph.prelu", [x, slope])
    return y


def depth_to_space(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, b = given(cx, node), cx.attr(node, "blocksize")
    n, c, h, w = tensor(x).shape
    if cx.attr(node, "mode", "DCR") == "DCR":
        apart = cx.transpose(cx.reshape(x, (n, b, b, c // (b * b), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        apart = cx.transpose(cx.reshape(x, (n, c // (b * b), b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return cx.reshape(apart, (n, c // (b * b), h * b, w * b))


def space_to_depth(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x, b = given(cx, node), cx.attr(node, "blocksize")
    n, c, h, w = tensor(x).shape
    order = (0, 3, 5, 1, 2, 4) if cx.attr(node, "mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    apart = cx.transpose(cx.reshape(x, (n, c, h // b, b, w // b, b)), order)
    return cx.reshape(apart, (n, c * b * b, h // b, w // b))


def lp_normalization(cx: ImportContext, node: onnx.NodeProto) -> Value:
    x = given(cx, node)
    axes = (normal_axis(cx.attr(node, "axis", -1), len(tensor(x).shape), cx.origin),)
    p = cx.attr(node, "p", 2)
    if p not in (1, 2):
        raise cx.refuse(f"LpNormalization with p = {p}", rule="p is 1 or 2")
    if p == 1:
        length = reduce(cx, "sum", cx.emit("graph.abs", [x]), axes, True)
    else:
        length = cx.emit("graph.sqrt", [reduce(cx, "sum", cx.emit("graph.mul", [x, x]), axes, True)])
    # Where the length is 0, or so small that its square is, the result is 0.
    zero = cx.emit("graph.equal", [length, cx.scalar(0, length)])
    out: Value = cx.emit("graph.where", [zero, cx.scalar(0, x), cx.emit("graph.div", [x, length])])
    return out


RULES = (
    OnnxRule("Conv", conv),
    OnnxRule("BatchNormalization", batch_norm), OnnxRule("InstanceNormalization", instance_norm),
    OnnxRule("PRelu", prelu), OnnxRule("DepthToSpace", depth_to_space), OnnxRule("SpaceToDepth", space_to_depth),
    OnnxRule("LpNormalization", lp_normalization),
)  # fmt: skip
