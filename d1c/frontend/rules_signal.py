"""Rules of Fourier transforms: products with constant matrices, long ones in two steps."""

from __future__ import annotations

import math

import numpy as np
import onnx

from d1c.frontend.consteval import evaluate, normal_axis
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.rules_math import given, wide
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule

_DENSE = 1024
"""Transforms of at most this length are one product; longer ones are split in two factors where there are any."""
_MOST_WEIGHTS = 1 << 28
"""The largest matrix that a transform of prime length may need."""


def _matrix(rows: int, length: int, bins: int, parts: int, sign: int) -> np.ndarray:
    """[parts, rows, 2, bins]: what element n (real, and imaginary if parts is 2) adds to both parts of bin k, which is
    exp(sign 2 pi i k n / length)."""
    angle = 2 * np.pi * (np.arange(rows)[:, None] * np.arange(bins)[None, :] % length) / length
    c, s = np.cos(angle), sign * np.sin(angle)
    return np.stack([np.stack([c, s], 1), np.stack([-s, c], 1)][:parts])


def _split(length: int) -> int:
    """The factor of `length` nearest to its root from below; 1 for primes."""
    return next(f for f in range(math.isqrt(length), 0, -1) if length % f == 0)


def _transform(cx: ImportContext, x: Value, length: int, bins: int, sign: int) -> Value:
    """[B, parts, n] -> [B, 2, bins], the first bins of the transform of that length; n <= length."""
    (batch, parts, n), kind = tensor(x).shape, tensor(x).dtype.numpy
    factor = _split(length)
    if length <= _DENSE or factor == 1:
        if parts * n * 2 * bins > _MOST_WEIGHTS:
            raise cx.refuse(f"DFT of length {length}", rule="long transforms have a length with factors")
        m = _matrix(n, length, bins, parts, sign).reshape(parts * n, 2 * bins)
        rows = cx.reshape(x, (batch, parts * n))
        y = cx.emit("graph.matmul", [rows, cx.const(m.astype(kind))], packed=False)
        return cx.reshape(y, (batch, 2, bins))
    # Element n = b n1 + n2 and bin k = k1 + a k2: transforms over n1, turned by n2 k1, then transforms over n2.
    a, b = factor, length // factor
    if n < length:
        x = cx.emit("graph.pad", [x], lo=(0, 0, 0), hi=(0, 0, length - n), value=0.0)
    x = cx.transpose(cx.reshape(x, (batch, parts, a, b)), (0, 3, 1, 2))
    x = _transform(cx, cx.reshape(x, (batch * b, parts, a)), a, a, sign)
    x = cx.reshape(x, (batch, b, 2, a))
    angle = 2 * np.pi * (np.arange(b)[:, None, None] * np.arange(a)) / length
    turn = sign * np.sin(angle) * np.array([-1.0, 1.0])[:, None]
    kept = cx.emit("graph.mul", [x, cx.const(np.cos(angle).astype(kind))])
    turned = cx.emit("graph.mul", [cx.part(x, 2, 1, 2, -1), cx.const(turn.astype(kind))])
    x = cx.transpose(cx.emit("graph.add", [kept, turned]), (0, 3, 2, 1))
    x = _transform(cx, cx.reshape(x, (batch * a, 2, b)), b, b, sign)
    x = cx.transpose(cx.reshape(x, (batch, a, 2, b)), (0, 2, 3, 1))
    return cx.part(cx.reshape(x, (batch, 2, length)), 2, 0, bins)


def _real(cx: ImportContext, x: Value, length: int) -> Value:
    """[B, 2, n] -> [B, 1, length]: the inverse transform of a spectrum of which the first half is given."""
    (batch, _, n), kind = tensor(x).shape, tensor(x).dtype.numpy
    half = length // 2 + 1
    n = min(n, half)
    x = cx.part(x, 2, 0, n)
    if length <= _DENSE or _split(length) == 1:
        twice = np.where((np.arange(n) == 0) | (2 * np.arange(n) == length), 1, 2) / length
        m = _matrix(n, length, length, 2, 1)[:, :, 0] * twice[:, None]
        rows = cx.reshape(x, (batch, 2 * n))
        y = cx.emit("graph.matmul", [rows, cx.const(m.reshape(2 * n, length).astype(kind))], packed=False)
        return cx.reshape(y, (batch, 1, length))
    if n < half:
        x = cx.emit("graph.pad", [x], lo=(0, 0, 0), hi=(0, 0, half - n), value=0.0)
    # Both ends are real by definition, whatever is given.
    ends = np.ones((2, half), kind)
    ends[1, 0] = 0
    ends[1, -1] = length % 2
    x = cx.emit("graph.mul", [x, cx.const(ends)])
    rest = length - half
    mirrored = cx.emit("graph.mul", [cx.part(x, 2, rest, rest, -1), cx.const(np.array([[1], [-1]], kind))])
    y = _transform(cx, cx.concat([x, mirrored], 2), length, length, 1)
    y = cx.part(y, 1, 0, 1)
    out: Value = cx.emit("graph.div", [y, cx.scalar(length, y)])
    return out


def _dft(cx: ImportContext, node: onnx.NodeProto, axis: int) -> Value:
    x, given_length = given(cx, node), cx.static_ints(node, 1, "dft_length")
    shape, kind = tensor(x).shape, tensor(x).dtype
    rank = len(shape)
    axis = normal_axis(axis, rank, cx.origin)
    if axis == rank - 1 or shape[-1] not in (1, 2):
        raise ValueError(f"axis {axis} of {list(shape)}: the last dim holds real and imaginary parts")
    inverse, onesided = bool(cx.attr(node, "inverse", 0)), bool(cx.attr(node, "onesided", 0))
    if inverse and onesided and shape[-1] != 2:
        raise ValueError("the inverse of a half spectrum takes complex numbers")
    length = given_length[0] if given_length else 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    if length < 1:
        raise cx.refuse(f"DFT of length {length}", rule="extents are positive")
    others = [d for d in range(rank - 1) if d != axis]
    batch = math.prod(shape[d] for d in others)
    x = cx.reshape(cx.transpose(cx.cast(x, wide(x)), (*others, rank - 1, axis)), (batch, shape[-1], shape[axis]))
    if inverse and onesided:
        y = _real(cx, x, length)
    else:
        bins = length // 2 + 1 if onesided else length
        y = _transform(cx, cx.part(x, 2, 0, min(length, shape[axis])), length, bins, 1 if inverse else -1)
        if inverse:
            y = cx.emit("graph.div", [y, cx.scalar(length, y)])
    _, parts, bins = tensor(y).shape
    y = cx.reshape(y, (*(shape[d] for d in others), parts, bins))
    perm = [*range(rank - 2)]
    perm.insert(axis, rank - 1)
    return cx.cast(cx.transpose(y, (*perm, rank - 2)), kind)


def dft_17(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """A product with a constant matrix; long transforms in two steps."""
    return _dft(cx, node, cx.attr(node, "axis", 1))


def dft_20(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """A product with a constant matrix; long transforms in two steps."""
    axis = cx.static_ints(node, 2, "axis")
    return _dft(cx, node, axis[0] if axis else -2)


def stft(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """A convolution with the windowed transform as its weights: samples that frames share whole are its channels."""
    x, window = given(cx, node), cx.input(node, 2)
    step, given_length = cx.static_ints(node, 1, "frame_step"), cx.static_ints(node, 3, "frame_length")
    kind = tensor(x).dtype
    if len(tensor(x).shape) == 2:
        x = cx.reshape(x, (*tensor(x).shape, 1))
    batch, samples, parts = tensor(x).shape
    length = given_length[0] if given_length else samples if window is None else tensor(window).shape[0]
    if not step or step[0] < 1 or not 0 < length <= samples or (window and tensor(window).shape != (length,)):
        raise ValueError(f"frames of {length} every {step} of {samples} samples, window {window and window.type}")
    frames, bins = (samples - length) // step[0] + 1, length // 2 + 1 if cx.attr(node, "onesided", 1) else length
    if parts * length * 2 * bins > _MOST_WEIGHTS:
        raise cx.refuse(f"STFT with frames of {length}", rule="the transform of a frame is one matrix")
    # [length, parts, bins, 2]
    m = _matrix(length, length, bins, parts, -1).transpose(1, 0, 3, 2).astype(wide(x).numpy)
    w = cx.const(m.reshape(length, parts, 2 * bins))
    if window is not None and cx.is_const(window):
        w = cx.const((cx.array(window).astype(np.float64)[:, None, None] * cx.array(w)).astype(wide(x).numpy))
    elif window is not None:
        w = cx.emit("graph.mul", [w, cx.reshape(cx.cast(window, wide(x)), (length, 1, 1))])
    common = math.gcd(length, step[0])
    used = (frames - 1) * step[0] + length
    x = cx.reshape(cx.part(cx.cast(x, wide(x)), 1, 0, used), (batch, used // common, common * parts))
    w = cx.reshape(w, (length // common, common * parts, 2 * bins))
    y = cx.emit(
        "graph.conv", [x, w], strides=(step[0] // common,), pads=(0, 0), dilations=(1,), groups=1, packed=False
    )  # fmt: skip
    return cx.cast(cx.reshape(y, (batch, frames, bins, 2)), kind)


def mel_weights(cx: ImportContext, node: onnx.NodeProto) -> Value:
    """A constant."""
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    known = [cx.static(node, i, name) for i, name in enumerate(names)]
    return cx.const(evaluate(node, known, {"": cx.opset})[0])


RULES = (
    OnnxRule("DFT", dft_17, 17, static=(1,)), OnnxRule("DFT", dft_20, 20, static=(1, 2)),
    OnnxRule("STFT", stft, 17, static=(1, 3)), OnnxRule("MelWeightMatrix", mel_weights, 17, static=(0, 1, 2, 3, 4)),
)  # fmt: skip
