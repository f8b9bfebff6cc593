"""What many plans of a layer would pay for one operand if it lay as plans like them leave it. Compiled (numba).

Which plans of a layer are worth having depends on where its operands are, and that on the plans of other layers. Before
any is chosen, this is the best guess: the producer cuts the dims that both have alike, and its columns, which are what
the layer reduces over, by the factors of the layer's columns and of its cut.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import CORNERS, SPREAD, Cut, Form, Source
from d1c.analysis.price_lines import column_shares, row_shares
from d1c.analysis.price_loop import add_up
from d1c.analysis.price_samples import FIELDS, KNOWN, WINDOW, receive

EVERY, MOST = 3, 128
"""One of so many samples is taken; receivers and owners that are counted to find the fullest lines of sites."""
CLOSE = 1, 1024
"""The same for nodes on their way to the second stage: on short ways few samples would meet by chance only."""


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def settled(form, ranges, lies, ways, blocks, extents, cut_range, g, width, out):  # type: ignore[no-untyped-def]
    """`out` [n]: cycles of the movement for `ways` [n, factors] (of each factor the range; other numbers: idle) and
    `blocks` [n, ranges]. `ranges`: of the form's groups the range; `lies` [dims, 3]: first dim, last + 1 and range
    of the operand's groups (-1: it has what the others leave, -2: it is not cut); `extents` of the ranges;
    `cut_range`: that of the reduction (-1: none)."""
    count, factors = ways.shape
    groups, parts = len(ranges), blocks.shape[1]
    ints = np.empty((FIELDS + len(form.dims) + WINDOW * len(form.components), SPREAD + CORNERS), np.int64)
    weights = np.empty(SPREAD + CORNERS)
    known = np.zeros((len(form.parts), KNOWN, 2), np.int64)
    uses = np.zeros(parts, np.bool_)
    for r in ranges:
        uses[r] = True
    total = np.empty(len(lies), np.int64)
    for k in range(len(lies)):
        total[k] = 1
        for d in range(lies[k, 0], lies[k, 1]):
            total[k] *= form.dims[d, 0]
    table, axes = np.empty((len(lies), 5), np.int64), np.empty(factors, np.int64)
    source, rows = Source(table, axes, axes[:0]), np.empty(0)
    for i in range(count):
        way = ways[i]
        cut = Cut(np.empty((groups, 4), np.int64), np.empty(factors, np.int64), np.empty(factors, np.int64))
        n = 0
        for k in range(groups):
            cut.groups[k, 0] = n
            for a in range(factors):
                if way[a] == ranges[k]:
                    cut.axes[n] = a
                    n += 1
            cut.groups[k, 1], cut.groups[k, 2], cut.groups[k, 3] = n, blocks[i, ranges[k]], extents[ranges[k]]
        fans = 0
        for a in range(factors):
            if way[a] < parts and not uses[way[a]]:
                cut.fan[fans] = a
                fans += 1
        cut = Cut(cut.groups, cut.axes, cut.fan[:fans])
        if i == 0 or np.any(way != ways[i - 1]):
            n = 0
            for k in range(len(lies)):
                first, shares = n, np.int64(1)
                if lies[k, 2] != -2:
                    for turn in range(2):  # factors of the cut first: a core then owns of what it reads
                        for a in range(factors):
                            mine = way[a] == lies[k, 2]
                            if lies[k, 2] == -1 and way[a] < parts:
                                mine = way[a] == cut_range or not uses[way[a]]
                            if mine and (turn == 0) == (way[a] == cut_range) and shares * g.size[a] <= 2 * total[k]:
                                axes[n] = a
                                shares *= g.size[a]
                                n += 1
                block = (total[k] + shares - 1) // shares
                table[k, 0], table[k, 1], table[k, 2] = lies[k, 0], lies[k, 1], block if n > first else 0
                table[k, 3], table[k, 4] = first, n
            rows = row_shares(source, total, g, np.int64(MOST))  # typed: what is called is compiled again for literals
        out[i] = _cycles(
            form, cut, source, total, g, width, ints, weights, np.int64(EVERY), np.int64(MOST), known, rows
        )


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _cycles(form, cut, source, extents, g, width, ints, weights, every, most, known, rows):  # type: ignore[no-untyped-def]
    """Cycles of one movement. `extents`: of the source's groups; `known`: see `receive`; `rows`: see `row_shares`."""
    samples, window, whole = receive(form, cut, g, ints, weights, every, known)
    if samples == 0:
        return 0.0
    columns = column_shares(cut, g, most)
    fan, owners = np.int64(1), np.int64(1)
    for a in cut.fan:
        fan *= g.size[a]
    for k in range(len(extents)):
        if source.groups[k, 2] > 0:
            owners *= (extents[k] + source.groups[k, 2] - 1) // source.groups[k, 2]
    copies = np.int64(1) if g.tree else fan
    accesses, row, column, edge, way, still = add_up(
        form, cut, g, ints, weights, samples, whole, source, width, copies, rows, columns
    )
    if still and fan == 1:
        return 0.0
    elements = max(weights[:samples].sum(), 1e-9)
    busiest = max(accesses * copies / owners, accesses / elements * window)
    return way + max(busiest, max(row, column) * g.link, edge * g.edge)


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def joined(extents, ranges, ways, blocks, after, cuts, slots, same, g, width, out):  # type: ignore[no-untyped-def]
    """`out` [n]: cycles of the movement between the stages of a split reduction. `extents`, `ranges` [dims]: of the
    result's dims (ranges as one), and the range of each, -1 where it is not cut. `ways`, `blocks`: of the first
    stage; `after` [n, factors], `cuts` [n, ranges]: of the second, in which factors of the cut come behind a
    range's own, or are for copies (the number behind those of the ranges, the cut and idle factors). `slots`: [n].
    `same` [n]: the first stage is that of the number before. `width`: bytes of a node."""
    count, factors = ways.shape
    cut_range, rank = blocks.shape[1] - 1, len(extents) + 1
    ints = np.empty((FIELDS + rank + WINDOW * rank, SPREAD + CORNERS), np.int64)
    weights = np.empty(SPREAD + CORNERS)
    parts = 0
    for r in ranges:
        parts += r >= 0
    form = Form(
        np.zeros((rank, 6), np.int64), np.zeros((rank, 7), np.int64), np.zeros((parts, 3), np.int64),
        np.ones((parts, 2), np.int64),
    )  # fmt: skip
    total = np.empty(rank, np.int64)
    p = 0
    for d in range(rank):
        total[d] = extents[d - 1] if d else 1
        form.dims[d, 0] = form.dims[d, 2] = form.dims[d, 3] = total[d]
        form.dims[d, 5] = 1
        form.components[d, 0], form.components[d, 1], form.components[d, 4] = d, d + 1, total[d] - 1
        form.components[d, 5] = p
        if d and ranges[d - 1] >= 0:
            form.components[d, 4] = 0
            form.parts[p, 0], form.parts[p, 1], form.parts[p, 2] = p, p, p + 1
            form.terms[p, 0] = total[d]
            p += 1
        form.components[d, 6] = p
    rows, fan = np.empty(0), np.empty(factors, np.int64)
    known = np.zeros((parts, KNOWN, 2), np.int64)
    for i in range(count):
        total[0] = form.dims[0, 0] = form.dims[0, 2] = form.dims[0, 3] = slots[i]
        form.components[0, 4] = slots[i] - 1
        cut = Cut(np.empty((parts, 4), np.int64), np.empty(factors, np.int64), np.empty(0, np.int64))
        table, axes = np.zeros((rank, 5), np.int64), np.empty(factors, np.int64)
        n, m, p = 0, 0, 0
        for d in range(rank):
            r = ranges[d - 1] if d else cut_range
            table[d, 0], table[d, 1], table[d, 3] = d, d + 1, m
            for a in range(factors):
                if r >= 0 and ways[i, a] == r:
                    axes[m] = a
                    m += 1
            table[d, 4] = m
            if m > table[d, 3]:
                table[d, 2] = blocks[i, r] if d else 1
            if d == 0 or r < 0:
                continue
            cut.groups[p, 0] = n
            for turn in range(2):
                for a in range(factors):
                    if after[i, a] == r and (ways[i, a] == r) == (turn == 0):
                        cut.axes[n] = a
                        n += 1
            cut.groups[p, 1], cut.groups[p, 2], cut.groups[p, 3] = n, cuts[i, r], total[d]
            p += 1
        fans = 0
        for a in range(factors):
            if after[i, a] == cut_range + 2:
                fan[fans] = a
                fans += 1
        cut = Cut(cut.groups, cut.axes, fan[:fans])
        source = Source(table, axes, axes[:0])
        if not same[i]:
            rows = row_shares(source, total, g, np.int64(CLOSE[1]))
        out[i] = _cycles(
            form, cut, source, total, g, width, ints, weights, np.int64(CLOSE[0]), np.int64(CLOSE[1]),
            known, rows,
        )  # fmt: skip
