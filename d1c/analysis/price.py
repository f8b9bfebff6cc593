"""What a movement costs, estimated from samples: the price of an edge between a layout and a need.

The truth is what `exchange` makes and the network then carries; it takes milliseconds per pair, and planning asks for
tens of thousands of pairs. Here a few hundred (receiver, element of its window) pairs stand for all of them. Each is a
message with a sender (the element's owner), a set of receivers (those that need the same) and a weight in packets. Sums
over them give the traffic through ports, over every column of row links of each row of dies (spread over the rows of
sites that send), likewise over column links, and over die edges; a part of the samples is taken from the corners of
windows at the borders of dies, where ways are longest. Tests hold the estimate to the exact load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from d1c.ir.layout import Component, Need
from d1c.target.embedding import global_position
from d1c.target.machine import Machine
from d1c.target.mesh import Layout, Mesh

if TYPE_CHECKING:
    from d1c.analysis.price_loop import Grid, Samples

SPREAD, CORNERS = 192, 96
"""Samples that carry the weight, and samples for the longest way."""

_STEPS = np.modf(np.sqrt(np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0])))[0]
"""Of one irrational each: multiples modulo 1 spread evenly and independently."""


def _even(which: int, count: int) -> np.ndarray:
    """`count` evenly spread numbers in [0, 1); another sequence for every `which`."""
    return np.asarray(np.modf(0.5 + np.arange(count) * _STEPS[which % len(_STEPS)])[0])


@dataclass(frozen=True)
class Places:
    """Where the cores of a machine are: [cores] physical row and column."""

    machine: Machine

    @cached_property
    def mesh(self) -> Mesh:
        return Mesh(self.machine.axes)

    @cached_property
    def _sites(self) -> np.ndarray:
        return np.asarray(global_position(self.machine).reshape(-1, 2).astype(np.int64))

    @cached_property
    def row(self) -> np.ndarray:
        return np.ascontiguousarray(self._sites[:, 0])

    @cached_property
    def col(self) -> np.ndarray:
        return np.ascontiguousarray(self._sites[:, 1])

    @cached_property
    def grid(self) -> Grid:
        from d1c.analysis.price_loop import Grid

        m = self.machine
        y, x = np.arange(m.die_rows * m.site_rows), np.arange(m.die_cols * m.site_cols)
        return Grid(
            self.row, self.col, y * m.hop_cycles + y // m.site_rows * m.die_crossing_cycles,
            x * m.hop_cycles + x // m.site_cols * m.die_crossing_cycles, m.site_rows, m.site_cols, m.packet_bytes,
            m.run_header_bytes,
        )  # fmt: skip

    @property
    def across(self) -> float:
        """Cycles from corner to corner."""
        return float(self.grid.down[-1] + self.grid.right[-1])

    @property
    def first(self) -> int:
        """With how many plans of a layer the choice begins: there are the more, the more factors the mesh has."""
        return min(16, self.machine.cores.bit_length() + 2)


@lru_cache(maxsize=8)
def places(machine: Machine) -> Places:
    return Places(machine)


@dataclass(frozen=True)
class Probe:
    """The samples of one need. Per sample: the receiver `target` (fan coordinates 0), the tensor's `element`
    [rank, samples], the `weight` in elements (0: for the way only), and of all its receivers the first and last row and
    column (`box`). `low`, `high` [components, samples]: first and last + 1 element of the window in the component's
    linear index, relative to the element; of a padded component of several dims (`lined`) in its last dim, and `lines`
    counts lines. `whole`: the window holds all of the component. `starts`: each component's first dim. `ends`, `each`:
    columns of dies in which the receivers are, and how many columns of sites of each. `window`: elements of a window.
    `fan`: receivers of a message. `columns`: per column of dies the share of all ways down that the busiest column of
    sites takes."""

    samples: Samples
    window: float
    fan: int
    columns: np.ndarray


@lru_cache(maxsize=1 << 14)
def _intervals(c: Component, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return c.intervals(mesh)


def window_elements(need: Need, mesh: Mesh) -> int:
    """Elements of the window that every core holds for a need."""
    out = 1
    for c in need.components:
        lo, hi = _intervals(c, mesh)
        out *= int((hi - lo).max())
    return out


@lru_cache(maxsize=1 << 12)
def _offsets(axes: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """Per position along `axes` the core number, all other coordinates 0."""
    return mesh.core_offset(axes, np.arange(mesh.parts(axes)))


@lru_cache(maxsize=1 << 12)
def _position(axes: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    return mesh.position(axes)


@lru_cache(maxsize=1 << 12)
def _corner_cores(keyed: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """Receivers at the borders of dies: all node coordinates of a direction first or last."""
    out = np.zeros(CORNERS, np.int64)
    ends = {"nr": _even(5, CORNERS) < 0.5, "nc": _even(6, CORNERS) < 0.5}
    for k, a in enumerate(keyed):
        n, kind = mesh.sizes[mesh.index[a]], a.split(".")[0]
        if kind in ends:
            coordinate = np.where(ends[kind], n - 1, 0)
        else:
            coordinate = (_even(7 + k, CORNERS) * n).astype(np.int64)
        out += coordinate * mesh.stride[a]
    return out


@lru_cache(maxsize=512)
def probe(need: Need, shape: tuple[int, ...], where: Places) -> Probe | None:
    """The samples of a need; None where no core needs anything."""
    from d1c.analysis.price_loop import Samples

    mesh = where.mesh
    used = set(need.axes)
    keyed = tuple(a for a in mesh.names if a in used)
    fan_axes = tuple(a for a in mesh.names if a in need.plan_axes and a not in used)
    classes = _offsets(keyed, mesh)
    spans = [_intervals(c, mesh) for c in need.components]
    alive = np.ones(len(classes), bool)
    for c, (lo, hi) in zip(need.components, spans, strict=True):
        if c.axes:
            alive &= (hi > lo)[_position(c.axes, mesh)[classes]]
        elif hi[0] <= lo[0]:
            return None
    live = classes if alive.all() else classes[alive]
    if not len(live):
        return None
    rng = (np.arange(SPREAD) + 0.5) * len(live) / SPREAD
    target = np.concatenate([live[rng.astype(np.int64)], _corner_cores(keyed, mesh)])
    count = SPREAD + CORNERS
    weight = np.full(count, len(live) / SPREAD)
    weight[SPREAD:] = 0
    ok = np.ones(count, bool)
    index = np.empty((len(shape), count), np.int64)
    low, high = np.empty((len(spans), count), np.int64), np.empty((len(spans), count), np.int64)
    lines = np.zeros((2, len(spans), count), np.int64)
    flags, starts, window, k = np.zeros((len(spans), 2), np.int64), [], 1.0, 0
    corner = np.arange(CORNERS)
    for i, (c, (lo, hi)) in enumerate(zip(need.components, spans, strict=True)):
        at = _position(c.axes, mesh)[target] if c.axes else np.zeros(count, np.int64)
        a, b = lo[at], hi[at]
        ok &= b > a
        size = b - a
        weight *= size
        window *= float((hi - lo).max())
        u = _even(i, count)
        pick = (corner >> i) & 1 if i < 3 else corner % 2
        u[SPREAD:] = np.where(corner % 5 == 4, u[SPREAD:], pick * 0.999999)
        v = a + (u * size).astype(np.int64)
        padded = c.span > 1 and any(p != (0, n) for p, n in zip(c.pads, c.shape, strict=True))
        if c.span == 1:
            n = c.shape[0]
            v[SPREAD:] = np.clip(v[SPREAD:], 0, n - 1)
            ok &= (v >= 0) & (v < n)
            index[k] = v
            low[i], high[i] = np.maximum(a, 0) - v, np.minimum(b, n) - v
            flags[i, 0] = int((hi - lo).max()) == n
        else:
            rest = v
            for d in reversed(range(c.span)):
                before, extent = c.pads[d]
                x = rest % extent - before
                rest = rest // extent
                if d == 0:
                    ok &= rest == 0
                ok &= (x >= 0) & (x < c.shape[d])
                index[k + d] = x
            if padded:
                before, extent = c.pads[-1]
                line = v // extent
                base = line * extent + before
                low[i] = np.maximum(a, base) - v
                high[i] = np.minimum(b, base + c.shape[-1]) - v
                lines[:, i] = a // extent - line, -(-b // extent) - line
            else:
                low[i], high[i] = a - v, b - v
            flags[i, 0] = not padded and int((hi - lo).max()) == math.prod(c.shape)
        flags[i, 1] = padded
        starts.append(k)
        k += c.span
    spread = ok[:SPREAD].mean()
    if not ok.all():
        target, index, weight = target[ok], index[:, ok], weight[ok]
        low, high = low[:, ok], high[:, ok]
        lines = lines[:, :, ok]
    if not len(target):
        return None
    last = sum((mesh.sizes[mesh.index[a]] - 1) * mesh.stride[a] for a in fan_axes)
    far = target + last
    rows, cols = where.row, where.col
    m = where.machine
    box = np.array([
        np.minimum(rows[target], rows[far]), np.maximum(rows[target], rows[far]),
        np.minimum(cols[target], cols[far]), np.maximum(cols[target], cols[far]),
    ])  # fmt: skip
    # Columns of receivers: a message has one of its own in every column of dies, and there one per fan coordinate.
    ends, per = cols[target] // m.site_cols, 1
    wide = _count(mesh, fan_axes, "nc")
    each = np.ones(len(target), np.int64)
    if wide > 1:
        each = np.clip(box[3] % m.site_cols - box[2] % m.site_cols + 1, 1, wide)
    if _count(mesh, fan_axes, "dc") > 1:
        ends, each, per = np.tile(np.arange(m.die_cols), len(target)), np.repeat(each, m.die_cols), m.die_cols
    column_axes = tuple(a for a in fan_axes if a.startswith(("dc", "nc")))
    columns = cols[live[:, None] + _offsets(column_axes, mesh)]
    if columns.shape[1] > 1:  # two receivers in one column of sites share its links
        taken = np.zeros((len(live), m.die_cols * m.site_cols), bool)
        taken[np.arange(len(live))[:, None], columns] = True
        ways = taken.sum(0)
    else:
        ways = np.bincount(columns.reshape(-1), minlength=m.die_cols * m.site_cols)
    samples = Samples(
        target, index, weight, box, low, high, lines, flags, np.array(starts, np.int64), np.array(shape, np.int64),
        np.arange(len(target) + 1) * per, ends, each,
    )  # fmt: skip
    return Probe(samples, window * float(spread), mesh.parts(fan_axes), _fullest(ways, m.die_cols))


def _count(mesh: Mesh, axes: Sequence[str], kind: str) -> int:
    return mesh.parts(tuple(a for a in axes if a.split(".")[0] == kind))


def _fullest(counts: np.ndarray, dies: int) -> np.ndarray:
    """Of every line of dies, the share that the busiest of its lines of sites has."""
    lines = counts.reshape(dies, -1)
    return np.asarray(lines.max(axis=1) / np.maximum(lines.sum(axis=1), 1))


@lru_cache(maxsize=1 << 13)
def _row_shares(layout: Layout, shape: tuple[int, ...], where: Places) -> np.ndarray:
    """Of every row of dies, the share of the tensor's elements there that the busiest row of sites owns."""
    cores, counts = np.zeros(1, np.int64), np.ones(1)
    for _, _, g, n in layout.spans(shape):
        if g.axes:
            at = _offsets(g.axes, where.mesh)
            cores = (cores[:, None] + at).reshape(-1)
            counts = (counts[:, None] * np.clip(n - np.arange(len(at)) * g.block, 0, g.block)).reshape(-1)
    m = where.machine
    return _fullest(np.bincount(where.row[cores], counts, m.die_rows * m.site_rows), m.die_rows)


@lru_cache(maxsize=1 << 13)
def _source(
    layout: Layout, shape: tuple[int, ...], where: Places
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """A layout as the loop wants it: groups, core offsets, replicated factors; then `_row_shares`, and how many cores
    own anything."""
    mesh, owners, offset = where.mesh, 1, 0
    groups, tables = [], [np.zeros(1, np.int64)]
    for a, b, g, n in layout.spans(shape):
        groups.append((a, b, g.block if g.axes else 0, offset + 1))
        if g.axes:
            tables.append(_offsets(g.axes, mesh))
            offset += len(tables[-1])
            owners *= -(-n // g.block)
    named = {*layout.axes, *layout.held}
    copies = [(mesh.stride[a], mesh.sizes[mesh.index[a]]) for a in mesh.names if a not in named]
    return (
        np.array(groups, np.int64).reshape(-1, 4), np.concatenate(tables), np.array(copies, np.int64).reshape(-1, 2),
        _row_shares(layout, shape, where), owners,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moves:
    """Of one need from several layouts [sources]: cycles of the busiest port, row link, column link and die edge, the
    longest way, and whether nothing moves at all."""

    port: np.ndarray
    row: np.ndarray
    column: np.ndarray
    edge: np.ndarray
    distance: np.ndarray
    in_place: np.ndarray

    @property
    def cycles(self) -> np.ndarray:
        busiest = np.max([self.port, self.row, self.column, self.edge], axis=0)
        return np.where(self.in_place > 0, 0.0, busiest + self.distance)


def moves(sources: Sequence[Layout], need: Need, shape: tuple[int, ...], width: int, where: Places) -> Moves:
    """The estimate for all `sources` of a tensor of `shape` and `width` bytes an element."""
    from d1c.analysis.price_loop import add_up

    out = np.zeros((len(sources), 6))
    p = probe(need, shape, where)
    if p is None:
        out[:, 5] = 1
        return Moves(*out.T)
    m = where.machine
    elements = max(float(p.samples.weight.sum()), 1e-9)
    copies = 1 if m.multicast == "tree" else p.fan
    rate, edge_rate = m.packet_bytes / m.link_bytes_per_cycle, m.packet_bytes / m.die_edge_bytes_per_cycle
    for i, s in enumerate(sources):
        groups, table, replicated, rows, owners = _source(s, shape, where)
        accesses, row, column, edge, way, still = add_up(
            p.samples, where.grid, groups, table, replicated, width, p.fan, copies, rows, p.columns
        )
        if still and p.fan == 1 and stays(s, shape, need, where.mesh):
            out[i, 5] = 1
            continue
        out[i] = (
            max(accesses * copies / owners, accesses / elements * p.window), row * rate, column * rate,
            edge * edge_rate, way + m.inject_cycles + m.eject_cycles, 0,
        )  # fmt: skip
    return Moves(*out.T)


def stays(source: Layout, shape: tuple[int, ...], need: Need, mesh: Mesh) -> bool:
    """Whether the kernel can read the owned buffer itself: what `in_place` says of the exchange, without making it."""
    if [g.span for g in source.groups] != [c.span for c in need.components]:
        return False
    used = set(need.axes)
    if set(need.plan_axes) - used or used - set(source.axes) - set(source.held):
        return False
    for (_, _, g, n), c in zip(source.spans(shape), need.components, strict=True):
        if c.span > 1 and any(p != (0, e) for p, e in zip(c.pads, c.shape, strict=True)):
            return False
        lo, hi = _intervals(c, mesh)
        at = np.flatnonzero(hi > lo)
        a, b = lo[at], hi[at]
        block = g.block if g.axes else n
        position = a // block
        if (a < 0).any() or (b > n).any() or (a != position * block).any() or (b > (position + 1) * block).any():
            return False
        if not np.array_equal(_offsets(c.axes, mesh)[at], _offsets(g.axes, mesh)[position]):
            return False
    return True
