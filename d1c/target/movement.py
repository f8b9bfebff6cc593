"""Movements as the binary holds them: products of one-dimensional relations, expanded to messages where needed.

A movement turns a tensor that is owned in parts into windows, one for every core of a plan. Each component is a
relation between owned and needed linear intervals, kept as arrays of pieces; `messages` multiplies them out to strided
boxes from one core to a class of cores (those that differ only along factors on which no window depends: a multicast).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from d1c.target.machine import Machine
from d1c.target.mesh import Mesh

Range = tuple[int, int]
"""From the first to before the second."""


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [n]: (owner index, index within the owner) of sum(counts) items."""
    owner = np.repeat(np.arange(len(counts)), counts)
    start = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - np.repeat(start, counts)


def turns(spread: int, cores: int) -> np.ndarray:
    """[cores] cycles that each waits before it sends what is to begin over `spread` cycles: number times the golden
    ratio, the part behind the point. So neighbours are far apart, and any stretch of cores begins evenly."""
    return (np.arange(cores) * 40503 % (1 << 16)) * spread >> 16


@dataclass(frozen=True)
class Pieces:
    """Runs of one component: target position `t` gets `count` runs of `length` elements from source position `s`, the
    i-th from local offset soff + i * sstep to window offset doff + i * dstep. Sorted by t, then doff."""

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


def grouped(t: np.ndarray, s: np.ndarray, soff: np.ndarray, doff: np.ndarray, n: np.ndarray) -> Pieces:
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
    go = (
        same & np.concatenate(([True], ~(same[:-1] & same[1:]) | ((ds[1:] == ds[:-1]) & (dd[1:] == dd[:-1]))))
        if m > 1
        else same
    )
    joined[1:] = go
    head = np.flatnonzero(~joined)
    count = np.diff(np.append(head, m))
    step = np.minimum(head, max(m - 2, 0))
    multi = count > 1
    zero = np.zeros(len(head), np.int64)
    sstep = np.where(multi, ds[step], 0) if m > 1 else zero
    dstep = np.where(multi, dd[step], 0) if m > 1 else zero
    return Pieces(t[head], s[head], soff[head], doff[head], n[head], count, sstep, dstep)


@dataclass(frozen=True)
class ComponentExchange:
    """One component: factors of target and source positions, extents of window and owned buffer (elements), pieces, and
    per target position how many real elements it needs and how long its whole window is (the rest is padding)."""

    target_axes: tuple[str, ...]
    source_axes: tuple[str, ...]
    window: int
    owned: int
    pieces: Pieces
    real: np.ndarray
    length: np.ndarray

    def cut(self, owned: Range, window: Range) -> ComponentExchange:
        """What goes from elements `owned` of the owned buffers to elements `window` of the windows."""
        p = self.pieces
        o, i = ragged(p.count)
        soff, doff = p.soff[o] + i * p.sstep[o], p.doff[o] + i * p.dstep[o]
        lo = np.maximum(np.maximum(owned[0] - soff, window[0] - doff), 0)
        hi = np.minimum(np.minimum(owned[1] - soff, window[1] - doff), p.length[o])
        k = np.flatnonzero(lo < hi)
        lo, hi, o = lo[k], hi[k], o[k]
        real = np.bincount(p.t[o], hi - lo, len(self.real)).astype(np.int64)
        pieces = grouped(p.t[o], p.s[o], soff[k] + lo, doff[k] + lo, hi - lo)
        return replace(self, pieces=pieces, real=real)

    @cached_property
    def first(self) -> np.ndarray:
        """[targets + 1] start of each target position's pieces."""
        return np.searchsorted(self.pieces.t, np.arange(len(self.real) + 1))

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for equal components."""
        p = self.pieces
        arrays = (self.real, self.length, p.t, p.s, p.soff, p.doff, p.length, p.count, p.sstep, p.dstep)
        data = tuple(np.asarray(a, np.int64).tobytes() for a in arrays)
        return self.target_axes, self.source_axes, self.window, self.owned, data

    def covers(self) -> bool:
        """As many elements as every need has real ones arrive, none twice, none outside the window.

        Where a window has no padding (real == length == window) that is all of it: the runs tile it without gap or
        overlap. In a padded window it says how many elements arrive, not that they lie where the tensor does: a run
        moved into the padding passes. Nor does it say that a run comes from the right source element, padded or not:
        pieces do not hold the tensor's shape and layout, from which both follow. Those the compiler has, which makes
        the pieces from them (d1c.analysis.exchange); a program as text has them too. Memory is safe either way: what
        does not arrive is what `Fill` writes, and what nobody writes traps where it is read.
        """
        return self._covers

    @cached_property
    def _covers(self) -> bool:
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


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a movement: elements `owned` of the first component whose owned buffers have more than one element,
    elements `window` of the first whose windows have: these are ranges of rows of what is sent, and of the windows."""

    owned: Range
    window: Range


@dataclass(frozen=True)
class Exchange:
    """The product of its components; `target_held` and `source_held` are factors held at 0 on either side, `plan_axes`
    those along which cores receive: that the plan cuts by, or has copies along. With a `cut` it brings a part of its
    windows: other exchanges bring what is missing."""

    mesh: Mesh
    components: tuple[ComponentExchange, ...]
    source_held: tuple[str, ...]
    target_held: tuple[str, ...]
    plan_axes: tuple[str, ...]
    cut: Cut | None = None

    @property
    def rows(self) -> tuple[int, int]:
        """Components that a cut means: the first with more than one owned element, the first with such windows."""
        n = len(self.components)
        owned = next((k for k, c in enumerate(self.components) if c.owned > 1), n)
        return owned, next((k for k, c in enumerate(self.components) if c.window > 1), n)

    @property
    def row_elements(self) -> tuple[int, int]:
        """Elements of a row of what is owned, and of a window."""
        a, b = self.rows
        return math.prod(c.owned for c in self.components[a + 1 :]), math.prod(
            c.window for c in self.components[b + 1 :]
        )

    def part(self, cut: Cut) -> Exchange:
        """The part that `cut` says."""
        every = (0, 1 << 62)
        a, b = self.rows
        components = tuple(
            c.cut(cut.owned if k == a else every, cut.window if k == b else every) if k in (a, b) else c
            for k, c in enumerate(self.components)
        )
        return replace(self, components=components, cut=cut)

    @cached_property
    def keyed(self) -> tuple[str, ...]:
        """Factors that a window's content depends on, or whom it comes from: along replicated factors every core is
        served by the copy at its own coordinate. In mesh order."""
        used = {a for c in self.components for a in c.target_axes}
        return tuple(a for a in self.mesh.names if a in used or (a in self.plan_axes and a in self.copied))

    @cached_property
    def copied(self) -> tuple[str, ...]:
        """Factors along which the tensor is replicated."""
        split = {a for c in self.components for a in c.source_axes}
        return tuple(a for a in self.mesh.names if a not in split and a not in self.source_held)

    @cached_property
    def fan_axes(self) -> tuple[str, ...]:
        """Plan factors on which neither depends: a message goes to all their coordinates (multicast)."""
        return tuple(a for a in self.mesh.names if a in self.plan_axes and a not in self.keyed)

    def covers(self) -> bool:
        return all(c.covers() for c in self.components)

    @cached_property
    def window_elements(self) -> int:
        return math.prod(c.window for c in self.components)

    def real_elements(self, cores: np.ndarray) -> np.ndarray:
        """How many elements of the tensor the window of each of `cores` holds; the others are padding."""
        out = np.ones(len(cores), np.int64)
        for c in self.components:
            out *= c.real[self.mesh.position(c.target_axes, cores)]
        return out

    @property
    def padded(self) -> bool:
        """Some window holds elements outside the tensor; a part of a movement does not say."""
        return self.cut is None and any(bool((c.real != c.length).any()) for c in self.components)

    @cached_property
    def local(self) -> bool:
        """Every core needs only what it owns, in that order: no message, the kernel reads the owned buffer."""
        if self.padded or self.fan_axes or any(len(c.pieces) != np.count_nonzero(c.real) for c in self.components):
            return False
        if any((c.pieces.count != 1).any() for c in self.components):
            return False
        used = {a for c in self.components for a in c.target_axes}
        if used & set(self.copied):  # windows that differ where the copies do not; nothing asks for it
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
        copy = np.zeros(len(classes), np.int64)
        for a in self.copied:
            copy += mesh.coords[classes, mesh.index[a]] * mesh.stride[a]
        src = copy[cls]
        soff, doff = np.zeros(len(cls), np.int64), np.zeros(len(cls), np.int64)
        sizes, sstr, dstr = (np.empty((2 * len(picks), len(cls)), np.int64) for _ in range(3))
        s_stride = d_stride = 1
        for k, (c, p) in enumerate(zip(reversed(self.components), reversed(picks), strict=True)):
            q = c.pieces
            src += mesh.core_offset(c.source_axes, q.s)[p]
            soff += (q.soff * s_stride)[p]
            doff += (q.doff * d_stride)[p]
            sizes[2 * k], sizes[2 * k + 1] = q.length[p], q.count[p]
            sstr[2 * k], sstr[2 * k + 1] = s_stride, (q.sstep * s_stride)[p]
            dstr[2 * k], dstr[2 * k + 1] = d_stride, (q.dstep * d_stride)[p]
            s_stride *= c.owned
            d_stride *= c.window
        return Messages(classes, cls, src, soff, doff, sizes, sstr, dstr)


@dataclass(frozen=True)
class Messages:
    """Messages of an exchange, sorted by target class. `classes`: core number of each class's representative (the other
    cores of a class differ along the exchange's fan factors). Message m goes from core `src[m]` to class `cls[m]`; it
    moves prod(sizes[:, m]) elements, innermost first, by the strides (elements) on either side."""

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

    @cached_property
    def run(self) -> np.ndarray:
        """[messages] elements of the longest runs that are contiguous on both sides; a message consists of them."""
        run = np.ones(len(self), np.int64)
        whole = np.ones(len(self), bool)
        for size, s, d in zip(self.sizes, self.sstride, self.dstride, strict=True):
            joins = whole & (s == run) & (d == run)
            whole &= joins | (size == 1)
            run = np.where(joins, run * size, run)
        return run

    def packets(self, width: int, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
        """`packed` for elements of `width` bytes: [messages] packets, cycles of the SRAM ports."""
        return packed(self.elements * width, self.run * width, machine)


def packed(size: np.ndarray, run: np.ndarray, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """How messages of `size` bytes in runs of `run` bytes (both [n]) travel: packets on every link, and the cycles for
    which each holds the SRAM ports at its ends.

    A run has packets to itself, or a header of `run_header_bytes` in packets that it shares: whichever takes fewer. A
    port reads or writes one run a cycle, of a long run `packet_bytes` a cycle.
    """
    run = np.maximum(run, 1)
    count = size // run
    accesses = count * -(-run // machine.packet_bytes)
    shared = -(-(size + count * machine.run_header_bytes) // machine.packet_bytes)
    return np.minimum(accesses, shared), accesses
