"""The samples of one need: receivers and elements of their windows. Compiled (numba).

Loops go over all samples one thing at a time: what is the same for all of them is then looked up once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import CORNERS, SPREAD
from d1c.analysis.price_lines import add_cores, take_positions

TARGET, TOP, BOTTOM, LEFT, RIGHT, EACH, FIELDS = range(7)
"""Of a sample: the receiver (fan coordinates 0), of all its receivers the first and last row and column, and in how
many columns of sites of a die they are; then the element [rank], and of every component LOW, HIGH, LINE_LOW and
LINE_HIGH: first and last + 1 element of the window in the component's linear index, relative to the element; of a
padded component of several dims in its last dim, and its lines."""
LOW, HIGH, LINE_LOW, LINE_HIGH, WINDOW = range(5)

KNOWN = 64
"""Blocks that `receive` keeps in mind."""

START, END, LINED, REST_LOW, REST_HIGH, PART, PARTS_END = range(7)
"""Columns of `Form.components`: its first dim, last + 1; 1 if it is padded and of several dims; bounds of the rest; its
parts."""


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def _value(linear, terms, begin, end):  # type: ignore[no-untyped-def]
    """The component offset of the share's element with this linear index."""
    out = np.int64(0)
    for t in range(end - 1, begin, -1):
        rest = linear // terms[t, 0]
        out += (linear - rest * terms[t, 0]) * terms[t, 1]
        linear = rest
    return out + linear * terms[begin, 1] if end > begin else out


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _reach(terms, begin, end, block, total):  # type: ignore[no-untyped-def]
    """How far apart the first and the last element of a share lie, at most (of up to 512 shares)."""
    shares = (total + block - 1) // block
    step, count = 1, shares
    if end - begin == 1:
        shares = 1
    elif shares > 512:
        step = shares // 512
    most = np.int64(0)
    if end - begin != 2:
        for p in range(0, shares, step):
            stop = min((p + 1) * block, total) - 1
            most = max(most, abs(_value(stop, terms, begin, end) - _value(p * block, terms, begin, end)))
        return most
    # Two dims, by far the most frequent: (row, column) of a share's ends without divisions.
    wide, rows, columns = terms[begin + 1, 0], terms[begin, 1], terms[begin + 1, 1]
    down, right = step * block // wide, step * block % wide
    more_down, more_right = (block - 1) // wide, (block - 1) % wide
    y, x = np.int64(0), np.int64(0)
    for p in range(0, shares, step):
        dy, dx = more_down, more_right
        if p == count - 1:
            dy, dx = (total - 1) // wide - y, (total - 1) % wide - x
        elif x + dx >= wide:
            dy, dx = dy + 1, dx - wide
        most = max(most, abs(dy * rows + dx * columns))
        y, x = y + down, x + right
        if x >= wide:
            y, x = y + 1, x - wide
    return most


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def per(a, b):  # type: ignore[no-untyped-def]
    """a // b of numbers that are not negative, without what makes it true of others."""
    return np.int64(np.uint64(a) // np.uint64(b))


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _values(linear, terms, begin, end, out):  # type: ignore[no-untyped-def]
    """`_value` for many, `linear`, which are lost."""
    count = len(out)
    out[:] = 0
    for t in range(end - 1, begin, -1):
        extent, coef = terms[t, 0], terms[t, 1]
        for s in range(count):
            rest = per(linear[s], extent)
            out[s] += (linear[s] - rest * extent) * coef
            linear[s] = rest
    coef = terms[begin, 1]
    for s in range(count):
        out[s] += linear[s] * coef


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _positions(cut, used, live, g, every, at, ok):  # type: ignore[no-untyped-def]
    """`at` [groups, samples]: positions of the receivers along the groups, evenly spread, then those at the corners of
    dies; `ok` [samples]: whether a corner is a receiver."""
    groups, axes, even = cut.groups, cut.axes, g.even
    count, spread = len(ok), SPREAD // every
    number = np.empty(spread, np.int64)
    for i in range(spread):
        number[i] = np.int64((i * every + even[11, i * every]) * live / SPREAD)
    for k in range(len(groups) - 1, -1, -1):
        mine, size = at[k], used[k]
        take_positions(number, size, mine)
        mine[spread:] = 0
        for j in range(groups[k, 0], groups[k, 1]):
            a = axes[j]
            n, kind = g.size[a], g.kind[a]
            if kind >= 2:  # the borders of dies: all node coordinates of a direction first or last
                drawn = even[3 + kind]
                for i in range(spread, count):
                    mine[i] = mine[i] * n + (n - 1 if drawn[i * every] < 0.5 else 0)
            else:
                drawn = even[7 + a % 4]
                for i in range(spread, count):
                    mine[i] = mine[i] * n + np.int64(drawn[i * every] * n)
        for i in range(spread, count):
            ok[i] = ok[i] and mine[i] < size


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def receive(form, cut, g, ints, weights, every, known):  # type: ignore[no-untyped-def]
    """Make the samples of a need: columns of `ints` [fields, samples] and `weights` in elements (0: for the way only,
    they come last). (how many, elements of a window that are of the tensor, which components' windows hold all of it).
    `every`: of so many samples only one is made; it divides SPREAD and CORNERS. `known` [parts, KNOWN, 2]: of blocks of
    this form what `_reach` said, at first 0."""
    dims, lying, parts, terms, cuts = form.dims, form.components, form.parts, form.terms, cut.groups
    components, groups = len(lying), len(cuts)
    used = np.empty(groups, np.int64)
    live = np.int64(1)
    for k in range(groups):
        used[k] = (cuts[k, 3] + cuts[k, 2] - 1) // cuts[k, 2]
        live *= used[k]
    whole = np.zeros(components, np.bool_)
    window = 1.0
    for c in range(components):
        widest = lying[c, REST_HIGH] - lying[c, REST_LOW] + 1
        if widest <= 0 and lying[c, PART] == lying[c, PARTS_END]:
            return 0, 0.0, whole
        for p in range(lying[c, PART], lying[c, PARTS_END]):
            k = parts[p, 0]
            block = min(cuts[k, 2], cuts[k, 3])
            if known[p, block % KNOWN, 0] != block:
                known[p, block % KNOWN, 0] = block
                known[p, block % KNOWN, 1] = _reach(terms, parts[p, 1], parts[p, 2], block, cuts[k, 3])
            widest += known[p, block % KNOWN, 1]
        window *= widest
        extent = np.int64(1)
        for d in range(lying[c, START], lying[c, END]):
            extent *= dims[d, 0]
        whole[c] = lying[c, LINED] == 0 and widest == extent

    count, spread = (SPREAD + CORNERS) // every, SPREAD // every
    at, ok, core = np.empty((groups, count), np.int64), np.ones(count, np.bool_), np.zeros(count, np.int64)
    _positions(cut, used, live, g, every, at, ok)
    of = np.empty((6, count), np.int64)
    lo, hi, first, last, begin, end = of[0], of[1], of[2], of[3], of[4], of[5]
    for k in range(groups):
        first[:] = at[k]
        add_cores(first, cuts[k, 0], cuts[k, 1], cut.axes, g, core)
    for s in range(count):
        weights[s] = live * every / SPREAD if s < spread else 0.0
    for c in range(components):
        lo[:] = lying[c, REST_LOW]
        hi[:] = lying[c, REST_HIGH] + 1
        for p in range(lying[c, PART], lying[c, PARTS_END]):
            k = parts[p, 0]
            mine, block, extent = at[k], cuts[k, 2], cuts[k, 3]
            for s in range(count):
                begin[s] = mine[s] * block
                end[s] = min(begin[s] + block, extent) - 1
            _values(begin, terms, parts[p, 1], parts[p, 2], first)
            _values(end, terms, parts[p, 1], parts[p, 2], last)
            for s in range(count):
                lo[s] += min(first[s], last[s])
                hi[s] += max(first[s], last[s])
        _elements(dims, lying, c, g.even[min(c, 4)], every, lo, hi, first, ints, weights, ok)
    kept = _collected(cut, g, ints, weights, ok, core, spread)
    return kept[0], window * kept[1] * every / SPREAD, whole


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _elements(dims, lying, c, even, every, lo, hi, at, ints, weights, ok):  # type: ignore[no-untyped-def]
    """An element of component `c` in the windows [lo, hi), its indices and the window around it."""
    count, spread, rank = len(ok), SPREAD // every, len(dims)
    for s in range(count):
        size = hi[s] - lo[s]
        ok[s] = ok[s] and size > 0
        weights[s] *= size
        u, corner = even[s * every], s * every - SPREAD
        if corner >= 0 and corner % 5 != 4:
            u = 0.999999 * ((corner >> c) & 1 if c < 3 else corner & 1)
        at[s] = lo[s] + np.int64(u * size)
    a, b = lying[c, START], lying[c, END]
    base = FIELDS + rank + WINDOW * c
    low, high = ints[base + LOW], ints[base + HIGH]
    if b - a == 1:
        n, index = dims[a, 0], ints[FIELDS + a]
        for s in range(count):
            v = at[s] if s < spread else min(max(at[s], 0), n - 1)
            ok[s] = ok[s] and v >= 0 and v < n
            index[s], low[s], high[s] = v, max(lo[s], 0) - v, min(hi[s], n) - v
        return
    if lying[c, LINED]:
        padded, before, extent = dims[b - 1, 2], dims[b - 1, 1], dims[b - 1, 0]
        line_low, line_high = ints[base + LINE_LOW], ints[base + LINE_HIGH]
        for s in range(count):
            line = at[s] // padded
            begin = line * padded + before
            low[s] = max(lo[s], begin) - at[s]
            high[s] = min(hi[s], begin + extent) - at[s]
            line_low[s] = lo[s] // padded - line
            line_high[s] = (hi[s] + padded - 1) // padded - line
    else:
        for s in range(count):
            low[s], high[s] = lo[s] - at[s], hi[s] - at[s]
    for d in range(b - 1, a - 1, -1):
        padded, before, extent, index = dims[d, 2], dims[d, 1], dims[d, 0], ints[FIELDS + d]
        for s in range(count):
            rest = per(at[s], padded)  # of a negative number: too much, which is not 0 in the end
            x = at[s] - rest * padded - before
            at[s] = rest
            ok[s] = ok[s] and x >= 0 and x < extent
            index[s] = x
    for s in range(count):
        ok[s] = ok[s] and at[s] == 0


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def _collected(cut, g, ints, weights, ok, core, spread):  # type: ignore[no-untyped-def]
    """Leave the samples that are `ok`, and say where their receivers are. (how many, how many with a weight)."""
    far, wide, turn = np.int64(0), np.int64(1), np.int64(0)
    for a in cut.fan:
        far += (g.size[a] - 1) * g.stride[a]
        if g.kind[a] == 3:
            wide *= g.size[a]
        if g.snake and g.kind[a] == 0:
            turn = g.stride[a]
    rows, columns, count, heavy = g.row, g.col, 0, 0
    for s in range(len(ok)):
        if not ok[s]:
            continue
        if count < s:
            for f in range(FIELDS, len(ints)):
                ints[f, count] = ints[f, s]
            weights[count] = weights[s]
        here = core[s]
        end = here + far
        ints[TARGET, count] = here
        ints[TOP, count], ints[BOTTOM, count] = min(rows[here], rows[end]), max(rows[here], rows[end])
        left, right = min(columns[here], columns[end]), max(columns[here], columns[end])
        if turn:  # the second and the last but one are where the others are not
            left = min(left, columns[here + turn], columns[end - turn])
            right = max(right, columns[here + turn], columns[end - turn])
        ints[LEFT, count], ints[RIGHT, count] = left, right
        ints[EACH, count] = min(max(right % g.site_cols - left % g.site_cols + 1, 1), wide)
        count += 1
        heavy += s < spread
    return count, heavy
