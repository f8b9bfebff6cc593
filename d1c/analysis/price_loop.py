"""The samples of a movement, added up: the inner loops of `price`. Compiled (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import CORNERS, SPREAD, Cut, Form, Source
from d1c.analysis.price_lines import add_cores, column_shares
from d1c.analysis.price_samples import (
    BOTTOM,
    EACH,
    FIELDS,
    HIGH,
    KNOWN,
    LEFT,
    LINE_HIGH,
    LINE_LOW,
    LINED,
    LOW,
    RIGHT,
    START,
    TARGET,
    TOP,
    WINDOW,
    per,
    receive,
)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _linear(dims, ints, first, end, out):  # type: ignore[no-untyped-def]
    """`out` [samples]: row-major index in dims first..end - 1; their extent."""
    out[:] = ints[FIELDS + first, : len(out)]
    extent = dims[first, 0]
    for d in range(first + 1, end):
        n, index = dims[d, 0], ints[FIELDS + d]
        extent *= n
        for s in range(len(out)):
            out[s] = out[s] * n + index[s]
    return extent


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _owners(dims, ints, source, g, of, core):  # type: ignore[no-untyped-def]
    """Of every sample and every group of the source the index, and the owner's block in relation to it: of [3, groups,
    samples]; `core` [samples]: the owner. (extent of every group, whether it lies in one piece)."""
    groups, count = source.groups, len(core)
    extents, unbroken = np.ones(len(groups), np.int64), np.empty(len(groups), np.bool_)
    position, stored = np.empty(count, np.int64), np.empty(count, np.int64)
    core[:] = 0
    for k in range(len(groups)):
        first, end, block = groups[k, 0], groups[k, 1], groups[k, 2]
        index, low, high = of[0, k], of[1, k], of[2, k]
        extents[k] = _linear(dims, ints, first, end, index)
        total, skips = np.int64(1), np.int64(1)
        for d in range(first, end):
            total *= dims[d, 3]
            skips *= dims[d, 5]
        unbroken[k] = block == 0 or block == total
        stored[:] = index
        if skips > 1:
            stored[:] = 0
            for d in range(first, end):
                for s in range(count):
                    stored[s] = stored[s] * dims[d, 3] + dims[d, 4] + ints[FIELDS + d, s] * dims[d, 5]
        if block > 0:
            for s in range(count):
                position[s] = per(stored[s], block)
                low[s] = position[s] * block - stored[s]
                high[s] = min(low[s] + block, total - stored[s])
            add_cores(position, groups[k, 3], groups[k, 4], source.axes, g, core)
        else:
            for s in range(count):
                low[s], high[s] = -stored[s], total - stored[s]
        if skips > 1:  # in elements that the need is about
            for s in range(count):
                low[s], high[s] = -(-low[s] // skips), (high[s] + skips - 1) // skips
    for a in source.copies:
        size, stride = g.size[a], g.stride[a]
        for s in range(count):
            core[s] += per(ints[TARGET, s], stride) % size * stride
    return extents, unbroken


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _messages(form, ints, whole, source, of, extents, unbroken, size, run):  # type: ignore[no-untyped-def]
    """Elements around every sample that lie on both sides, dim by dim from the innermost: their product is the message,
    `size` [samples]; those as far as both sides hold whole rows are the `run` [samples]. `of` (see _owners) is lost."""
    dims, lying, groups, count = form.dims, form.components, source.groups, len(size)
    rank = len(dims)
    size[:] = 1
    run[:] = 1
    tlo, thi, at = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    end, k, c = rank, len(groups) - 1, len(lying) - 1
    joined, new_source, new_target, joined_source = True, True, True, True
    while end > 0:
        a, first = groups[k, 0], lying[c, START]
        base = FIELDS + rank + WINDOW * c
        lined = new_target and lying[c, LINED] == 1
        inner = end - 1 if lined else max(a, first)
        slo, shi = of[1, k], of[2, k]
        if new_source:
            joined_source = unbroken[k]
        if new_target:
            tlo[:] = ints[base + LOW, :count]
            thi[:] = ints[base + HIGH, :count]
        if inner == a and new_source:
            at[:] = of[0, k]
            row = extents[k]
        else:
            row = _linear(dims, ints, inner, end, at)
        for d in range(inner, end):
            joined = joined and dims[d, 5] == 1
        for s in range(count):
            common = max(min(shi[s], thi[s], row - at[s]) - max(slo[s], tlo[s], -at[s]), 1)
            size[s] *= common
            if joined:
                run[s] *= common
        joined = joined and inner == a and inner == first and whole[c] and joined_source
        new_source, new_target = inner == a, inner == first
        if new_source:
            k -= 1
        else:
            _linear(dims, ints, a, end, at)
            _lines(at, row, slo, shi)
        if new_target:
            c -= 1
        elif lined:
            tlo[:] = ints[base + LINE_LOW, :count]
            thi[:] = ints[base + LINE_HIGH, :count]
        else:
            _linear(dims, ints, first, end, at)
            _lines(at, row, tlo, thi)
        end = inner


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _lines(at, row, low, high):  # type: ignore[no-untyped-def]
    """[low, high) around elements `at` as lines of `row` elements, around the line of each."""
    for s in range(len(low)):
        line = per(at[s], row)
        low[s] = (at[s] + low[s]) // row - line
        high[s] = (at[s] + high[s] - 1) // row + 1 - line


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def add_up(  # type: ignore[no-untyped-def]
    form, cut, g, ints, weights, samples, whole, source, width, copies, row_share, column_share
):
    """Over all samples, for one source:

    (accesses of ports, packets of the busiest row link, column link and die edge, longest way, whether every element is
    where it is needed). `row_share` [rows of dies] and `column_share` [columns of dies]: how much of the traffic of all
    its lines of sites the busiest one has. `copies`: messages for each sample, 1 where a tree delivers them.
    """
    row_load = np.zeros((2, len(row_share), len(column_share) * g.site_cols))
    column_load = np.zeros((2, len(column_share), len(row_share) * g.site_rows))
    rows, columns, south, east = g.row, g.col, g.down, g.right
    fan, across, down, dies = np.int64(1), False, False, len(column_share)
    for a in cut.fan:
        fan *= g.size[a]
        across = across or (g.kind[a] == 1 and g.size[a] > 1)
        down = down or (g.snake and g.kind[a] == 0)
    heavy = 0
    while heavy < samples and weights[heavy] > 0:
        heavy += 1
    core = np.empty(samples, np.int64)
    of = np.empty((3, len(source.groups), samples), np.int64)
    extents, unbroken = _owners(form.dims, ints, source, g, of, core)
    sizes, runs = np.empty(heavy, np.int64), np.empty(heavy, np.int64)
    _messages(form, ints, whole, source, of[:, :, :heavy], extents, unbroken, sizes, runs)
    accesses, longest, still = 0.0, 0, True
    for s in range(samples):
        target = ints[TARGET, s]
        y, x = rows[core[s]], columns[core[s]]
        y0, y1, x0, x1 = ints[TOP, s], ints[BOTTOM, s], ints[LEFT, s], ints[RIGHT, s]
        moved = fan > 1 or core[s] != target
        if moved:
            still = False
            way = max(abs(south[y] - south[y0]), abs(south[y] - south[y1]))
            way += max(abs(east[x] - east[x0]), abs(east[x] - east[x1]))
            longest = max(longest, way)
        if s >= heavy:
            continue

        # As `movement.packed`: a run has packets to itself, or a header in packets that it shares.
        weight, size, run = weights[s], sizes[s], runs[s]
        count = per(size, run)
        access = count * per(run * width + g.packet - 1, g.packet)
        shared = per(size * width + count * g.header + g.packet - 1, g.packet)
        accesses += weight * access / size
        if not moved:
            continue
        load = weight * min(access, shared) / size * copies
        die = per(y, g.site_rows)
        if x1 > x:
            row_load[0, die, x] += load
            row_load[0, die, x1] -= load
        if x0 < x:
            row_load[1, die, x0] += load
            row_load[1, die, x] -= load
        # A message has a way of its own in every column of dies with receivers, and there one per column of sites.
        here = per(columns[target], g.site_cols)
        ways = load * ints[EACH, s]
        for die in range(dies):
            if not across and die != here and not (down and die == dies - 1 - here):
                continue
            if y1 > y:
                column_load[0, die, y] += ways
                column_load[0, die, y1] -= ways
            if y0 < y:
                column_load[1, die, y0] += ways
                column_load[1, die, y] -= ways
    row, row_edge = _busiest(row_load, row_share, g.site_cols)
    column, column_edge = _busiest(column_load, column_share, g.site_rows)
    return accesses, row, column, max(row_edge, column_edge), longest, still


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def estimates(  # type: ignore[no-untyped-def]
    form, cut, needs, g, source, sources, rows, lines, fans, pairs, ends, most, width, out
):
    """`out` [pairs, 6]: cycles of the busiest port, row link, column link and die edge, longest way, and 1 where
    nothing moves. `form`, `cut`: of all needs, each up to `needs` [needs, arrays]; `source`: all of them, each up to
    `sources` [sources, arrays]. `pairs` [pairs, 2]: the source and how many cores own anything, those of need k up to
    `ends[k]`; `rows` [sources, rows of dies]: see add_up. `lines` [fans, cores]: in how many columns of sites of a die
    the receivers are that need what a core needs; `fans` [needs]: which of them. `most`: receivers that are counted to
    find the fullest columns."""
    out[:] = 0
    weights = np.empty(SPREAD + CORNERS)
    begin, first, pair = np.zeros(needs.shape[1], np.int64), np.zeros(sources.shape[1], np.int64), 0
    for k in range(len(needs)):
        end = needs[k]
        one = Form(
            form.dims[begin[0] : end[0]], form.components[begin[1] : end[1]], form.parts[begin[2] : end[2]],
            form.terms[begin[3] : end[3]],
        )  # fmt: skip
        how = Cut(cut.groups[begin[4] : end[4]], cut.axes[begin[5] : end[5]], cut.fan[begin[6] : end[6]])
        begin = end
        ints = np.empty((FIELDS + len(one.dims) + WINDOW * len(one.components), SPREAD + CORNERS), np.int64)
        known = np.zeros((len(one.parts), KNOWN, 2), np.int64)
        samples, window, whole = receive(one, how, g, ints, weights, np.int64(1), known)
        for s in range(samples):
            ints[EACH, s] = lines[fans[k], ints[TARGET, s]]
        elements, fan = max(weights[:samples].sum(), 1e-9), np.int64(1)
        for a in how.fan:
            fan *= g.size[a]
        many = np.int64(1) if g.tree else fan
        columns = column_shares(how, g, most)
        while pair < ends[k]:
            j, owners = pairs[pair]
            s0, s1 = sources[j - 1] if j else first, sources[j]
            lies = Source(source.groups[s0[0] : s1[0]], source.axes[s0[1] : s1[1]], source.copies[s0[2] : s1[2]])
            if samples == 0:
                out[pair, 5] = 1
            else:
                accesses, row, column, edge, way, still = add_up(
                    one, how, g, ints, weights, samples, whole, lies, width, many, rows[j], columns
                )
                out[pair, 0] = max(accesses * many / owners, accesses / elements * window)
                out[pair, 1], out[pair, 2], out[pair, 3] = row * g.link, column * g.link, edge * g.edge
                out[pair, 4], out[pair, 5] = way, still and fan == 1
            pair += 1


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _busiest(load, share, sites):  # type: ignore[no-untyped-def]
    """Of changes of the load along lines [2, lines, positions]: the busiest link and the busiest die edge."""
    link, edge = 0.0, 0.0
    for line in range(load.shape[1]):
        there, back = 0.0, 0.0
        for start in range(0, load.shape[2], sites):
            most = 0.0
            for k in range(start, start + sites):
                there += load[0, line, k]
                back += load[1, line, k]
                most = max(most, max(there, back))
            link = max(link, most * share[line])
            edge = max(edge, max(there, back))
    return link, edge
