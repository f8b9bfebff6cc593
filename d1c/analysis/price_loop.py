"""The samples of one movement, added up: the inner loop of `price`. Compiled (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Samples(NamedTuple):
    """A probe's samples as arrays; see `price.Probe`. `flags` [components, 2]: whole, lined; `lines` [2, components,
    samples]; `first` [samples + 1] into `ends`, `each`."""

    target: np.ndarray
    element: np.ndarray
    weight: np.ndarray
    box: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lines: np.ndarray
    flags: np.ndarray
    starts: np.ndarray
    shape: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    each: np.ndarray


class Grid(NamedTuple):
    """Physical row and column of the cores, cycles to rows and columns, sites of a die, and bytes of a packet and of a
    run's header."""

    row: np.ndarray
    col: np.ndarray
    down: np.ndarray
    right: np.ndarray
    site_rows: int
    site_cols: int
    packet: int
    header: int


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def _linear(p, s, first, end):  # type: ignore[no-untyped-def]
    """(row-major index of sample `s` in dims first..end - 1, their extent)."""
    index, extent = np.int64(0), np.int64(1)
    for d in range(first, end):
        index = index * p.shape[d] + p.element[d, s]
        extent *= p.shape[d]
    return index, extent


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def add_up(  # type: ignore[no-untyped-def]
    p, g, groups, table, replicated, width, fan, copies, row_share, column_share
):
    """Over all samples, for the source layout `groups` [groups, 4] (first dim, last dim + 1, block or 0, offset in
    `table`, which has the core offset of every position) and `replicated` [factors, 2] (stride, size):

    (accesses of ports, packets of the busiest row link, column link and die edge, longest way, whether every element is
    where it is needed). `row_share` [rows of dies] and `column_share` [columns of dies]: how much of the traffic of all
    its lines of sites the busiest one has.
    """
    row_load = np.zeros((2, len(row_share), len(column_share) * g.site_cols))
    column_load = np.zeros((2, len(column_share), len(row_share) * g.site_rows))
    samples, rank, components = len(p.target), len(p.shape), len(p.starts)
    accesses, longest, still = 0.0, 0, True
    for s in range(samples):
        core = np.int64(0)
        for k in range(len(groups)):
            if groups[k, 2] > 0:
                linear, _ = _linear(p, s, groups[k, 0], groups[k, 1])
                core += table[groups[k, 3] + linear // groups[k, 2]]
        for k in range(len(replicated)):
            stride = replicated[k, 0]
            core += p.target[s] // stride % replicated[k, 1] * stride
        y, x = g.row[core], g.col[core]
        y0, y1, x0, x1 = p.box[0, s], p.box[1, s], p.box[2, s], p.box[3, s]
        moved = fan > 1 or core != p.target[s]
        if moved:
            still = False
            way = max(abs(g.down[y] - g.down[y0]), abs(g.down[y] - g.down[y1]))
            way += max(abs(g.right[x] - g.right[x0]), abs(g.right[x] - g.right[x1]))
            longest = max(longest, way)
        weight = p.weight[s]
        if weight == 0.0:
            continue

        # Elements around this one that lie on both sides, dim by dim from the innermost: their product is the message;
        # those as far as both sides hold whole rows are the run.
        run, size, joined = np.int64(1), np.int64(1), True
        end, k, c = rank, len(groups) - 1, components - 1
        new_source, new_target = True, True
        slo, shi, tlo, thi = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        while end > 0:
            a, first = groups[k, 0], p.starts[c]
            lined = new_target and p.flags[c, 1] == 1
            inner = end - 1 if lined else max(a, first)
            if new_source:
                linear, extent = _linear(p, s, a, end)
                if groups[k, 2] > 0:
                    slo = linear // groups[k, 2] * groups[k, 2] - linear
                    shi = min(slo + groups[k, 2], extent - linear)
                else:
                    slo, shi = -linear, extent - linear
                joined_source = groups[k, 2] == 0 or groups[k, 2] == extent
            if new_target:
                tlo, thi = p.low[c, s], p.high[c, s]
            at, row = _linear(p, s, inner, end)
            stop, start = min(shi, thi, row - at), max(slo, tlo, -at)
            common = stop - start if stop > start else np.int64(1)
            size = size * common
            if joined:
                run = run * common
            joined = joined and inner == a and inner == first and p.flags[c, 0] == 1 and joined_source
            new_source = inner == a
            if new_source:
                k -= 1
            else:
                linear, _ = _linear(p, s, a, end)
                slo = (linear + slo) // row - linear // row
                shi = (linear + shi - 1) // row + 1 - linear // row
            new_target = inner == first
            if new_target:
                c -= 1
            elif lined:
                tlo, thi = p.lines[0, c, s], p.lines[1, c, s]
            else:
                linear, _ = _linear(p, s, first, end)
                tlo = (linear + tlo) // row - linear // row
                thi = (linear + thi - 1) // row + 1 - linear // row
            end = inner

        # As `movement.packed`: a run has packets to itself, or a header in packets that it shares.
        count = size // run
        access = count * ((run * width + g.packet - 1) // g.packet)
        shared = (size * width + count * g.header + g.packet - 1) // g.packet
        accesses += weight * access / size
        if not moved:
            continue
        load = weight * min(access, shared) / size * copies
        die = y // g.site_rows
        if x1 > x:
            row_load[0, die, x] += load
            row_load[0, die, x1] -= load
        if x0 < x:
            row_load[1, die, x0] += load
            row_load[1, die, x] -= load
        for e in range(p.first[s], p.first[s + 1]):
            die, ways = p.ends[e], load * p.each[e]
            if y1 > y:
                column_load[0, die, y] += ways
                column_load[0, die, y1] -= ways
            if y0 < y:
                column_load[1, die, y0] += ways
                column_load[1, die, y] -= ways
    row, row_edge = _busiest(row_load, row_share, g.site_cols)
    column, column_edge = _busiest(column_load, column_share, g.site_rows)
    return accesses, row, column, max(row_edge, column_edge), longest, still


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def _busiest(load, share, sites):  # type: ignore[no-untyped-def]
    """Of changes of the load along lines [2, lines, positions]: the busiest link and the busiest die edge."""
    link, edge = 0.0, 0.0
    for way in range(2):
        for line in range(load.shape[1]):
            at = 0.0
            for k in range(load.shape[2]):
                at += load[way, line, k]
                link = max(link, at * share[line])
                if k % sites == sites - 1:
                    edge = max(edge, at)
    return link, edge
