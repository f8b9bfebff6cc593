"""The one exchange rule: what every core sends to every other so that each holds what it needs, exactly once.

An exchange is a product over components. Each component is a relation between owned and needed linear intervals, kept
as arrays of pieces, never as layout pairs or per-core lists; `expand` multiplies them out to messages (strided boxes
from one core to a rectangle of cores) when a program is emitted or evaluated.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from d1c.ir.layout import Component, Need
from d1c.target.mesh import Group, Layout, LayoutError, Mesh
from d1c.target.movement import ComponentExchange, Exchange, grouped, ragged


def exchange(source: Layout, shape: tuple[int, ...], need: Need, mesh: Mesh) -> Exchange:
    """The exchange that turns a tensor of `shape` owned as `source` into the windows of `need`."""
    comps: list[ComponentExchange] = []
    owned = [(a, b, g) for a, b, g, _ in source.spans(shape)]
    wanted, k = [], 0
    for c in need.components:
        wanted.append((k, k + c.span, c))
        k += c.span
    if k != len(shape):
        raise LayoutError(f"a need of {k} dims for a tensor of rank {len(shape)}")
    k = 0
    while k < len(shape):
        end, grow = k + 1, True
        while grow:
            reach = max([b for a, b, _ in [*owned, *wanted] if a < end and b > k])
            grow, end = reach > end, reach
        comps.append(
            _component(
                [w for a, _, w in wanted if k <= a < end], [g for a, _, g in owned if k <= a < end], shape[k:end], mesh
            )
        )
        k = end
    receive = tuple(a for a in mesh.names if a not in need.held)  # those that the plan cuts, and those of its copies
    return Exchange(mesh, tuple(comps), source.held, need.held, receive)


@lru_cache(maxsize=4096)
def exchange_of(source: Layout, shape: tuple[int, ...], need: Need, mesh: Mesh) -> Exchange:
    """`exchange`, remembered: layers of equal shapes ask the same."""
    return exchange(source, shape, need, mesh)


def in_place(x: Exchange, source: Layout, need: Need) -> bool:
    """Whether the kernel can read the owned buffer itself: nothing moves, and window and buffer are addressed alike."""
    if not x.local or [g.span for g in source.groups] != [c.span for c in need.components]:
        return False
    return all(np.array_equal(c.pieces.soff, c.pieces.doff) and c.window <= c.owned for c in x.components)


def _component(wanted: list[Component], owned: list[Group], shape: tuple[int, ...], mesh: Mesh) -> ComponentExchange:
    t, lin, doff, n, real, length, window = _needed_runs(wanted, shape, mesh)
    inner = math.prod(shape)
    extents, k = [], 0
    for g in owned:
        extents.append(math.prod(shape[k : k + g.span]))
        k += g.span
    blocks = [g.block if g.axes else e for g, e in zip(owned, extents, strict=True)]
    for g, e, b in zip(owned, extents, blocks, strict=True):  # split runs where the owner of their first element ends
        inner //= e
        period = inner * b if g.axes else 0
        if len(owned) > 1 and inner > 1:  # an outer group: a run lies within one of its indices
            t, lin, doff, n = _split(t, lin, doff, n, inner)
        elif period:
            # the innermost group: blocks restart with every index of the group outside it
            t, lin, doff, n = _split(t, lin, doff, n, period, within=inner * e)
    inner, stride = math.prod(shape), math.prod(blocks)
    soff, s = np.zeros(len(t), np.int64), np.zeros(len(t), np.int64)
    for g, e, b in zip(owned, extents, blocks, strict=True):
        inner //= e
        stride //= b
        idx = (lin // inner) % e
        pos = idx // b
        s = s * (mesh.parts(g.axes) if g.axes else 1) + pos
        soff = soff + (idx - pos * b) * stride
    axes = tuple(a for g in owned for a in g.axes)
    return ComponentExchange(
        tuple(a for c in wanted for a in c.axes),
        axes,
        window,
        math.prod(blocks),
        grouped(t, s, soff, doff, n),
        real,
        length,
    )


def _needed_runs(
    wanted: list[Component], shape: tuple[int, ...], mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Runs of real elements: target position, linear index in the tensor's dims, window offset, length; per position
    the number of real elements and of window elements; the window's extent."""
    t = np.zeros(1, np.int64)
    lin, doff = np.zeros(1, np.int64), np.zeros(1, np.int64)
    n = np.ones(1, np.int64)
    real, length, window = np.ones(1, np.int64), np.ones(1, np.int64), 1
    dim = 0
    for c in wanted:
        lo, hi = c.intervals(mesh)
        ct, clin, cdoff, cn = _component_runs(c, lo, hi)
        extents, dim = shape[dim : dim + c.span], dim + c.span
        if c.every:
            ct, clin, cdoff, cn = _apart(c, extents, ct, clin, cdoff, cn)
        size, width = math.prod(extents), int((hi - lo).max())
        per = np.bincount(ct, cn, len(lo)).astype(np.int64)
        # elements of the outer components, one by one, times runs of this one
        o, i = ragged(n)
        outer = np.lexsort((doff[o] + i, t[o]))
        ot, olin, odoff = t[o][outer], (lin[o] + i)[outer], (doff[o] + i)[outer]
        first = np.searchsorted(ct, np.arange(len(lo) + 1))
        pos, cpos = len(real), len(lo)
        counts = np.bincount(ot, minlength=pos)
        base = np.cumsum(counts) - counts
        pt, pc = np.divmod(np.arange(pos * cpos), cpos)  # joint positions
        runs = first[pc + 1] - first[pc]
        joint, k = ragged(counts[pt] * runs)
        which, r = np.divmod(k, np.maximum(runs[joint], 1))
        e = base[pt[joint]] + which
        q = first[pc[joint]] + r
        t, lin = joint, olin[e] * size + clin[q]
        doff, n = odoff[e] * width + cdoff[q], cn[q]
        real, length, window = (
            np.repeat(real, cpos) * np.tile(per, pos),
            np.repeat(length, cpos) * np.tile(hi - lo, pos),
            window * width,
        )
    return t, lin, doff, n, real, length, window


def _component_runs(
    c: Component, lo: np.ndarray, hi: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of the real elements of one component's intervals: position, linear index, window offset, length."""
    position = np.arange(len(lo))
    if all(b == 0 and x == e for (b, x), e in zip(c.pads, c.shape, strict=True)):
        a, b = np.maximum(lo, 0), np.minimum(hi, math.prod(c.shape))
        ok = a < b
        return position[ok], a[ok], (a - lo)[ok], (b - a)[ok]
    # padded: line by line of the innermost dim; a line is real if all outer indices are inside
    (before, ext), width = c.pads[-1], c.shape[-1]
    first, last = lo // ext, -(-hi // ext)
    p, i = ragged(np.where(hi > lo, last - first, 0))
    line = first[p] + i
    rest, lin, scale = line, np.zeros_like(line), width
    inside = np.ones(len(line), bool)
    for (b, x), e in zip(reversed(c.pads[:-1]), reversed(c.shape[:-1]), strict=True):
        outer, idx = rest // x, rest % x - b
        inside &= (idx >= 0) & (idx < e)
        lin, scale, rest = lin + idx * scale, scale * e, outer
    inside &= rest == 0
    a = np.maximum(lo[p], line * ext + before)
    b = np.minimum(hi[p], line * ext + before + width)
    ok = inside & (a < b)
    return p[ok], (lin + a - line * ext - before)[ok], (a - lo[p])[ok], (b - a)[ok]


def _apart(
    c: Component, extents: tuple[int, ...], t: np.ndarray, lin: np.ndarray, doff: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of those elements that a component is about, as runs of the tensor's dims of these extents."""
    last = max(k for k, (_, step) in enumerate(c.every) if step > 1)
    t, lin, doff, n = _split(t, lin, doff, n, math.prod(c.shape[last + 1 :]))
    out, rest, scale = np.zeros_like(lin), lin, 1
    for extent, whole, (first, step) in zip(reversed(c.shape), reversed(extents), reversed(c.every), strict=True):
        out, rest, scale = out + (first + rest % extent * step) * scale, rest // extent, scale * whole
    return t, out, doff, n


def _split(
    t: np.ndarray, lin: np.ndarray, doff: np.ndarray, n: np.ndarray, period: int, within: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs cut at multiples of `period` of the linear index (counted anew from every multiple of `within`)."""
    if within and within % period:
        t, lin, doff, n = _split(t, lin, doff, n, within)
        base = lin - lin % within
    else:
        base = np.zeros_like(lin)
    a, b = (lin - base) // period, (lin - base + n - 1) // period
    o, i = ragged(b - a + 1)
    block = a[o] + i
    start = np.maximum(lin[o], base[o] + block * period)
    stop = np.minimum(lin[o] + n[o], base[o] + (block + 1) * period)
    return t[o], start, doff[o] + start - lin[o], stop - start
