"""The one exchange rule: what every core sends to every other so that each holds what it needs, exactly once.

An exchange is a product over components. Each component is a relation between owned and needed linear intervals, kept
as arrays of pieces, never as layout pairs or per-core lists; `expand` multiplies them out to messages (strided boxes from
one core to a rectangle of cores) when a program is emitted or evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from d1c.ir.layout import Component, Group, Layout, LayoutError, Mesh, Need


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [n]: (owner index, index within the owner) of sum(counts) items."""
    owner = np.repeat(np.arange(len(counts)), counts)
    start = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - np.repeat(start, counts)


@dataclass(frozen=True)
class Pieces:
    """Runs of one component: target position `t` gets `count` runs of `length` elements from source position `s`, the i-th from
    local offset soff + i * sstep to window offset doff + i * dstep. Sorted by t, then doff."""

    t: np.ndarray
    s: np.ndarray
    soff: np.ndarray
    doff: np.ndarray
    length: np.ndarray
    count: np.ndarray
    sstep: np.ndarray
    dstep: np.ndarray

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True)
class ComponentExchange:
    """One component: factors of target and source positions, extents of window and owned buffer (elements), pieces, and per
    target position how many real elements it needs and how long its whole window is (the rest is padding)."""

    target_axes: tuple[str, ...]
    source_axes: tuple[str, ...]
    window: int
    owned: int
    pieces: Pieces
    real: np.ndarray
    length: np.ndarray

    @cached_property
    def first(self) -> np.ndarray:
        """[targets + 1] start of each target position's pieces."""
        return np.searchsorted(self.pieces.t, np.arange(len(self.real) + 1))

    def covers(self) -> bool:
        """Every real element of every need arrives exactly once: the pieces tile it without gap or overlap."""
        p = self.pieces
        o, i = ragged(p.count)
        at, n = p.doff[o] + i * p.dstep[o], p.length[o]
        t = p.t[o]
        order = np.lexsort((at, t))
        at, n, t = at[order], n[order], t[order]
        if len(at) and (n.min() <= 0 or at.min() < 0 or (at + n).max() > self.window):
            return False
        if np.any((t[1:] == t[:-1]) & (at[1:] < at[:-1] + n[:-1])):
            return False
        return bool(np.array_equal(np.bincount(t, n, len(self.real)).astype(np.int64), self.real))


@dataclass(frozen=True)
class Exchange:
    """The product of its components; `target_held` and `source_held` are factors held at 0 on either side."""

    mesh: Mesh
    components: tuple[ComponentExchange, ...]
    source_held: tuple[str, ...]
    target_held: tuple[str, ...]
    plan_axes: tuple[str, ...]

    @cached_property
    def keyed(self) -> tuple[str, ...]:
        """Factors that a window's content depends on, in mesh order."""
        used = {a for c in self.components for a in c.target_axes}
        return tuple(a for a in self.mesh.names if a in used)

    @cached_property
    def fan_axes(self) -> tuple[str, ...]:
        """Plan factors on which no need depends: a message goes to all their coordinates (multicast)."""
        return tuple(a for a in self.mesh.names if a in self.plan_axes and a not in self.keyed)

    def covers(self) -> bool:
        return all(c.covers() for c in self.components)

    @cached_property
    def window_elements(self) -> int:
        return math.prod(c.window for c in self.components)

    @property
    def padded(self) -> bool:
        """Some window holds elements outside the tensor."""
        return any(bool((c.real != c.length).any()) for c in self.components)

    @cached_property
    def local(self) -> bool:
        """Every core needs only what it owns, in the order in which it owns it: no message, the kernel reads the owned buffer."""
        if self.padded or self.fan_axes or any(len(c.pieces) != np.count_nonzero(c.real) for c in self.components):
            return False
        if any((c.pieces.count != 1).any() for c in self.components):
            return False
        src = {a for c in self.components for a in c.source_axes}
        if set(self.keyed) - src - set(self.source_held):  # replicated source factors would be fine, but nothing replicates
            return False
        for c in self.components:
            mine = self.mesh.core_offset(c.target_axes, c.pieces.t)
            theirs = self.mesh.core_offset(c.source_axes, c.pieces.s)
            if not np.array_equal(mine, theirs):
                return False
        return True

    def messages(self) -> Messages:
        """All messages, one target class at a time; see Messages."""
        mesh, keyed = self.mesh, self.keyed
        classes = mesh.core_offset(keyed, np.arange(mesh.parts(keyed)))  # core number of each class's representative
        cls = np.arange(len(classes))
        picks: list[np.ndarray] = []
        for c in self.components:
            t = mesh.position(c.target_axes, classes)[cls]
            owner, i = ragged(c.first[t + 1] - c.first[t])
            cls = cls[owner]
            picks = [p[owner] for p in picks]
            picks.append(c.first[t][owner] + i)
        src = np.zeros(len(cls), np.int64)
        split = {a for c in self.components for a in c.source_axes}
        same = [a for a in mesh.names if a not in split and a not in self.source_held]  # replicated: own coordinate
        for a in same:
            src += mesh.coords[classes[cls], mesh.index[a]] * mesh.stride[a]
        for c, p in zip(self.components, picks, strict=True):
            src += mesh.core_offset(c.source_axes, c.pieces.s[p])
        soff, doff = np.zeros(len(cls), np.int64), np.zeros(len(cls), np.int64)
        sizes, sstr, dstr = [], [], []
        s_stride = d_stride = 1
        one = np.ones(len(cls), np.int64)
        for c, p in zip(reversed(self.components), reversed(picks), strict=True):
            q = c.pieces
            soff += q.soff[p] * s_stride
            doff += q.doff[p] * d_stride
            sizes += [q.length[p], q.count[p]]
            sstr += [one * s_stride, q.sstep[p] * s_stride]
            dstr += [one * d_stride, q.dstep[p] * d_stride]
            s_stride *= c.owned
            d_stride *= c.window
        empty = np.zeros((0, len(cls)), np.int64)
        return Messages(
            classes, cls, src, soff, doff,
            np.array(sizes, np.int64) if sizes else empty, np.array(sstr, np.int64) if sizes else empty,
            np.array(dstr, np.int64) if sizes else empty,
        )  # fmt: skip


@dataclass(frozen=True)
class Messages:
    """Messages of an exchange, sorted by target class. `classes`: core number of each class's representative (the other cores
    of a class differ along the exchange's fan factors). Message m goes from core `src[m]` to class `cls[m]`; it moves
    prod(sizes[:, m]) elements, innermost first, by the strides (elements) on either side."""

    classes: np.ndarray
    cls: np.ndarray
    src: np.ndarray
    soff: np.ndarray
    doff: np.ndarray
    sizes: np.ndarray
    sstride: np.ndarray
    dstride: np.ndarray

    def __len__(self) -> int:
        return len(self.cls)

    @cached_property
    def elements(self) -> np.ndarray:
        return np.asarray(self.sizes.prod(axis=0)) if len(self.sizes) else np.ones(len(self.cls), np.int64)


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
            _component([w for a, _, w in wanted if k <= a < end], [g for a, _, g in owned if k <= a < end], shape[k:end], mesh)
        )
        k = end
    return Exchange(mesh, tuple(comps), source.held, need.held, need.plan_axes)


def _component(wanted: list[Component], owned: list[Group], shape: tuple[int, ...], mesh: Mesh) -> ComponentExchange:
    t, lin, doff, n, real, length, window = _needed_runs(wanted, mesh)
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
        tuple(a for c in wanted for a in c.axes), axes, window, math.prod(blocks), _grouped(t, s, soff, doff, n), real, length
    )


def _needed_runs(wanted: list[Component], mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Runs of real elements: target position, linear index in the tensor's dims, window offset, length; per position the
    number of real elements and of window elements; the window's extent."""
    t = np.zeros(1, np.int64)
    lin, doff = np.zeros(1, np.int64), np.zeros(1, np.int64)
    n = np.ones(1, np.int64)
    real, length, window = np.ones(1, np.int64), np.ones(1, np.int64), 1
    for c in wanted:
        lo, hi = c.intervals(mesh)
        ct, clin, cdoff, cn = _component_runs(c, lo, hi)
        size, width = math.prod(c.shape), int((hi - lo).max())
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
        real, length, window = np.repeat(real, cpos) * np.tile(per, pos), np.repeat(length, cpos) * np.tile(hi - lo, pos), window * width
    return t, lin, doff, n, real, length, window


def _component_runs(c: Component, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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


def _grouped(t: np.ndarray, s: np.ndarray, soff: np.ndarray, doff: np.ndarray, n: np.ndarray) -> Pieces:
    """Runs with the same ends, equal lengths and constant steps become one piece of several runs."""
    order = np.lexsort((doff, t))
    t, s, soff, doff, n = t[order], s[order], soff[order], doff[order], n[order]
    m = len(t)
    if m == 0:
        z = np.zeros(0, np.int64)
        return Pieces(t, s, soff, doff, n, z, z, z)
    # touching runs first become one longer run
    glue = (t[1:] == t[:-1]) & (s[1:] == s[:-1]) & (soff[1:] == soff[:-1] + n[:-1]) & (doff[1:] == doff[:-1] + n[:-1])
    head = np.flatnonzero(np.concatenate(([True], ~glue)))
    n = np.add.reduceat(n, head)
    t, s, soff, doff = t[head], s[head], soff[head], doff[head]
    m = len(t)
    same = (t[1:] == t[:-1]) & (s[1:] == s[:-1]) & (n[1:] == n[:-1])
    ds, dd = np.diff(soff), np.diff(doff)
    joined = np.zeros(m, bool)  # run i continues the piece of run i - 1
    # a piece goes on while its steps stay those of its first two runs
    go = same & np.concatenate(([True], ~(same[:-1] & same[1:]) | ((ds[1:] == ds[:-1]) & (dd[1:] == dd[:-1])))) if m > 1 else same
    joined[1:] = go
    head = np.flatnonzero(~joined)
    count = np.diff(np.append(head, m))
    step = np.minimum(head, max(m - 2, 0))
    multi = count > 1
    zero = np.zeros(len(head), np.int64)
    sstep = np.where(multi, ds[step], 0) if m > 1 else zero
    dstep = np.where(multi, dd[step], 0) if m > 1 else zero
    return Pieces(t[head], s[head], soff[head], doff[head], n[head], count, sstep, dstep)
