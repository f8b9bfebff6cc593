"""Contractions: matrix product and convolution (channels last) on the matrix unit, depthwise ones on the vector unit.

Operand 1 comes packed (graph.pack): its last dim e is the pair, extent 2 for bf16 and 1 for f32. Before the pass that
packs (`packed` false) that dim is absent: [..., K, N]; depthwise weights have none in either case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import accumulator, broadcast_map, broadcast_shape, tensors
from d1c.ops.opdef import OpDef, register
from d1c.target.numerics import slices


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """Per spatial dim, `pads` first all low sides, then all high sides."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    packed: bool = False


@dataclass(frozen=True, slots=True)
class MatmulAttrs:
    """`packed`: whether operand 1 has its pair dim."""

    packed: bool = False


def windows(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    """Spatial extents of the result of a sliding window; ValueError where a window does not fit."""
    r = len(shape)
    if not (len(kernel) == len(strides) == len(dilations) == r and len(pads) == 2 * r):
        raise ValueError(f"kernel, strides, dilations need {r} values, pads {2 * r}")
    if min(strides + dilations, default=1) < 1:
        raise ValueError("strides and dilations must be positive")
    out = []
    for i in range(r):
        room = shape[i] + pads[i] + pads[r + i] - dilations[i] * (kernel[i] - 1) - 1
        if room < 0:
            raise ValueError(f"spatial dim {i}: a window of {kernel[i]} does not fit in {shape[i]} with its padding")
        out.append(room // strides[i] + 1)
    return tuple(out)


def window_entries(attrs: Any, first_tap: int) -> tuple[Entry, ...]:
    """Input index s*h + d*kh - p per spatial dim; spatial dims are dims 1.., taps dims first_tap.. ."""
    rows = zip(attrs.strides, attrs.dilations, attrs.pads, strict=False)
    return tuple(Entry(((1 + i, s), (first_tap + i, d)), -p) for i, (s, d, p) in enumerate(rows))


def spatial_dims(extents: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(Dim(f"s{i}", n) for i, n in enumerate(extents))


def tap_dims(kernel: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(Dim(f"t{i}", n, True) for i, n in enumerate(kernel))


def with_pair(w: TensorType, packed: bool) -> TensorType:
    """Operand 1 as if packed: unpacked is the same order as packed without pairs."""
    return w if packed else TensorType((*w.shape, 1), w.dtype)


def conv_form(x: TensorType, w: TensorType) -> str:
    """dense, grouped or depthwise, by the rank of the packed weights."""
    return {-1: "depthwise", 1: "dense", 2: "grouped"}.get(len(w.shape) - len(x.shape), "wrong")


def _conv_infer(types: tuple[Type, ...], attrs: ConvAttrs) -> tuple[Type, ...]:
    x, w = tensors(types, 2)
    r = len(x.shape) - 2
    if r < 1:
        raise ValueError(f"operand 0 needs dims N, spatial..., C, has shape {list(x.shape)}")
    if len(w.shape) > r + 1:
        w = with_pair(w, attrs.packed)
    channels, form = x.shape[-1], conv_form(x, w)
    if form == "depthwise":
        taps, out, good = w.shape[:r], channels, attrs.groups == channels == w.shape[-1]
    elif form == "dense":
        taps, out, per = w.shape[:r], w.shape[-2], channels
        good = attrs.groups == 1 and w.shape[-3] == -(-per // w.shape[-1])
    elif form == "grouped":
        taps, out, per = w.shape[1 : r + 1], attrs.groups * w.shape[-2], channels // attrs.groups
        good = attrs.groups == w.shape[0] and per * attrs.groups == channels and per == w.shape[-3] * w.shape[-1]
        # A pair that reaches past its group would meet the next group's channels, not zeros.
        good = good or (attrs.groups == w.shape[0] and per == 1 and w.shape[-3] == 1 and w.shape[-1] == 1)
    else:
        good, taps, out = False, (), 0
    if not good or (form != "depthwise" and w.shape[-1] not in (1, 2)):
        raise ValueError(f"packed weights {list(w.shape)} do not fit {channels} channels in {attrs.groups} groups")
    spatial = windows(x.shape[1:-1], taps, attrs.strides, attrs.pads, attrs.dilations)
    return (TensorType((x.shape[0], *spatial, out), accumulator([x.dtype, w.dtype])),)


def _conv_structure(types: tuple[Type, ...], attrs: ConvAttrs, results: tuple[Type, ...]) -> Structured:
    (x, w), (out,) = tensors(types, 2), tensors(results, 1)
    r = len(x.shape) - 2
    if len(w.shape) > r + 1:
        w = with_pair(w, attrs.packed)
    form = conv_form(x, w)
    head = (Dim("n", x.shape[0]), *spatial_dims(out.shape[1:-1]))
    if form == "depthwise":
        dims = (*head, Dim("ch", out.shape[-1]), *tap_dims(w.shape[:r]))
        a = (Entry(((0, 1),)), *window_entries(attrs, r + 2), Entry(((r + 1, 1),)))
        b = (*(Entry(((r + 2 + i, 1),)) for i in range(r)), Entry(((r + 1, 1),)))
        return Structured(dims, "fma", (a, b), (0.0, None), 2)
    *_, pairs, width, e = w.shape
    grouped = form == "grouped"
    taps = w.shape[grouped : grouped + r]
    columns = (Dim("g", attrs.groups), Dim("o", width)) if grouped else (Dim("o", width),)
    first = len(head) + len(columns)
    dims = (*head, *columns, *tap_dims(taps), Dim("c", pairs, True), Dim("e", e, True))
    c, per = first + r, x.shape[-1] // attrs.groups
    channel = ((c, e), (c + 1, 1))
    a = (
        Entry(((0, 1),)),
        *window_entries(attrs, first),
        Entry(((r + 1, per), *channel) if grouped else channel),
    )
    b = (
        *((Entry(((r + 1, 1),)),) if grouped else ()),
        *(Entry(((first + i, 1),)) for i in range(r)),
        Entry(((c, 1),)),
        Entry(((first - 1, 1),)),
        *((Entry(((c + 1, 1),)),) if attrs.packed else ()),
    )
    cut = slices(per * math.prod(taps), per)[1] // e
    return Structured(dims, "mac", (a, b), (0.0, None), 2, c, cut)


def _matmul_infer(types: tuple[Type, ...], attrs: MatmulAttrs) -> tuple[Type, ...]:
    a, b = tensors(types, 2)
    b = with_pair(b, attrs.packed)
    if len(a.shape) < 2 or len(b.shape) < 3:
        raise ValueError(f"needs [..., M, K] and packed [..., K', N, e], has {list(a.shape)} and {list(b.shape)}")
    e = b.shape[-1]
    if e not in (1, 2) or -(-a.shape[-1] // e) != b.shape[-3]:
        raise ValueError(f"packed operand {list(b.shape)} does not fit K = {a.shape[-1]}")
    batch = broadcast_shape([a.shape[:-2], b.shape[:-3]])
    return (TensorType((*batch, a.shape[-2], b.shape[-2]), accumulator([a.dtype, b.dtype])),)


def _matmul_structure(types: tuple[Type, ...], attrs: MatmulAttrs, results: tuple[Type, ...]) -> Structured:
    (a, b), (out,) = tensors(types, 2), tensors(results, 1)
    b = with_pair(b, attrs.packed)
    r = len(out.shape) - 2
    m, n, k, e = range(r, r + 4)
    pairs, _, width = b.shape[-3:]
    batch = tuple(Dim(f"b{i}", extent) for i, extent in enumerate(out.shape[:-2]))
    dims = (*batch, Dim("m", out.shape[-2]), Dim("n", out.shape[-1]), Dim("k", pairs, True), Dim("e", width, True))
    rows = (*broadcast_map(a.shape[:-2], r), Entry(((m, 1),)), Entry(((k, width), (e, 1))))
    packed = (*broadcast_map(b.shape[:-3], r), Entry(((k, 1),)), Entry(((n, 1),)))
    packed += (Entry(((e, 1),)),) if attrs.packed else ()
    cut = slices(a.shape[-1], a.shape[-1])[1] // width
    return Structured(dims, "mac", (rows, packed), (0.0, None), 2, k, cut)


def pack(w: np.ndarray, pair: bool) -> np.ndarray:
    """[..., K, N] -> [..., ceil(K / 2), N, 2], or [..., K, N, 1]; an odd K is padded with zeros."""
    if not pair:
        return w[..., None]
    *batch, k, n = w.shape
    full = np.zeros((*batch, k + k % 2, n), w.dtype)
    full[..., :k, :] = w
    return np.ascontiguousarray(np.swapaxes(full.reshape(*batch, -1, 2, n), -1, -2))


def _matmul_case(pair: bool, a: tuple[int, ...], b: tuple[int, ...]) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x, y = (rng.normal(size=s).astype(np.float32) for s in (a, b))
        return MatmulAttrs(True), [x, pack(y, pair)], x @ y

    return case


def conv_reference(x: np.ndarray, w: np.ndarray, attrs: ConvAttrs) -> np.ndarray:
    """ONNX's convolution on channels-last x and unpacked w [taps..., C per group, O], in float64, in loops."""
    r = x.ndim - 2
    lo, hi = attrs.pads[:r], attrs.pads[r:]
    x = np.pad(x.astype(np.float64), [(0, 0), *zip(lo, hi, strict=True), (0, 0)])
    spatial = windows(x.shape[1:-1], w.shape[:r], attrs.strides, (0,) * 2 * r, attrs.dilations)
    per, width = w.shape[-2], w.shape[-1] // attrs.groups
    out = np.zeros((x.shape[0], *spatial, w.shape[-1]))
    for place in np.ndindex(*spatial):
        for tap in np.ndindex(*w.shape[:r]):
            rows = zip(place, attrs.strides, tap, attrs.dilations, strict=True)
            v = x[(slice(None), *(p * s + t * d for p, s, t, d in rows))]
            for g in range(attrs.groups):
                o = slice(g * width, g * width + width)
                out[(slice(None), *place, o)] += v[:, g * per : g * per + per] @ w[tap][:, o]
    return out


def pack_conv(w: np.ndarray, groups: int, pair: bool) -> np.ndarray:
    """Weights [taps..., C per group, O] in the order that graph.conv takes (dense, or grouped)."""
    if groups == 1:
        return pack(w, pair)
    parts = np.moveaxis(w.reshape(*w.shape[:-1], groups, -1), -2, 0)
    return pack(parts, pair)


def _conv_case(x: tuple[int, ...], w: tuple[int, ...], attrs: ConvAttrs, pair: bool, depthwise: bool = False) -> Any:
    def case(rng: np.random.Generator) -> Any:
        v, k = rng.normal(size=x).astype(np.float32), rng.normal(size=w).astype(np.float32)
        packed = k[..., 0, :] if depthwise else pack_conv(k, attrs.groups, pair)
        return replace(attrs, packed=True), [v, packed], conv_reference(v, k, attrs).astype(np.float32)

    return case


register(OpDef(
    "graph.matmul", "contract", _matmul_infer, MatmulAttrs, structure=_matmul_structure,
    doc="[..., M, K] times packed [..., K/2, N, 2]; batch dims broadcast; f32 (or integer) accumulators.",
    cases=(_matmul_case(True, (3, 5), (5, 4)), _matmul_case(False, (2, 1, 3, 150), (4, 150, 2)),
           _matmul_case(True, (1, 2, 4, 260), (3, 1, 260, 5))),
))  # fmt: skip
register(OpDef(
    "graph.conv", "contract", _conv_infer, ConvAttrs, structure=_conv_structure,
    doc="Convolution, channels last, weights packed. The result is the f32 (or integer) accumulator.",
    cases=(_conv_case((2, 6, 7, 5), (3, 3, 5, 4), ConvAttrs((2, 1), (1, 0, 1, 2), (1, 2)), True),
           _conv_case((1, 9, 40), (3, 40, 6), ConvAttrs((1,), (1, 1), (1,)), False),
           _conv_case((1, 5, 5, 12), (3, 3, 4, 6), ConvAttrs((1, 1), (1, 1, 1, 1), (1, 1), 3), True),
           _conv_case((1, 4, 4, 3), (2, 2, 1, 6), ConvAttrs((1, 1), (0, 0, 0, 0), (1, 1), 3), False),
           _conv_case((1, 5, 6, 7), (3, 3, 1, 7), ConvAttrs((2, 2), (1, 1, 1, 1), (1, 1), 7), False, True),
           _conv_case((1, 3, 4, 3, 4), (2, 2, 2, 4, 3), ConvAttrs((1,) * 3, (0, 1, 0, 1, 0, 1), (1,) * 3), True)),
))  # fmt: skip
