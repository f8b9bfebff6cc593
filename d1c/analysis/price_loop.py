"""The samples of one movement, made and added up: the inner loops of `price`. Compiled (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit

from d1c.analysis.price_forms import BITS, CORNERS, SPREAD, Cut, Form, Source
from d1c.analysis.price_lines import core_of

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


@njit(nogil=True)  # type: ignore[misc, unused-ignore]
def receive(form, cut, g, ints, weights, every, known):  # type: ignore[no-untyped-def]
    """Make the samples of a need: rows of `ints` [samples, fields] and `weights` in elements (0: for the way only).
    (how many, elements of a window that are of the tensor, which components' windows hold all of it). `every`: of so
    many samples only one is made. `known` [parts, KNOWN, 2]: of blocks of this form what `_reach` said, at first 0."""
    dims, lying, parts, terms = form.dims, form.components, form.parts, form.terms
    cuts, axes, fan = cut.groups, cut.axes, cut.fan
    size_of, inverse_of, stride, kind_of, even, rows, columns = (
        g.size,
        g.inverse,
        g.stride,
        g.kind,
        g.even,
        g.row,
        g.col,
    )
    rank, components, groups = len(dims), len(lying), len(cuts)
    used, inverse = np.empty(groups, np.int64), np.empty(groups, np.int64)
    live = np.int64(1)
    for k in range(groups):
        used[k] = (cuts[k, 3] + cuts[k, 2] - 1) // cuts[k, 2]
        inverse[k] = ((1 << BITS) + used[k] - 1) // used[k]
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
    far, wide, turn = np.int64(0), np.int64(1), np.int64(0)
    for a in fan:
        far += (size_of[a] - 1) * stride[a]
        if kind_of[a] == 3:
            wide *= size_of[a]
        if g.snake and kind_of[a] == 0:
            turn = stride[a]
    at = np.empty(groups, np.int64)
    count, kept = 0, 0
    for s in range(0, SPREAD + CORNERS, every):
        ok, core = True, np.int64(0)
        corner = s - SPREAD
        if corner < 0:
            number = np.int64((s + even[11, s]) * live / SPREAD)
            for k in range(groups - 1, -1, -1):
                rest = number * inverse[k] >> BITS
                at[k] = number - rest * used[k]
                number = rest
        else:
            for k in range(groups):
                position = np.int64(0)
                for j in range(cuts[k, 0], cuts[k, 1]):
                    a = axes[j]
                    n, kind = size_of[a], kind_of[a]
                    if kind >= 2:  # the borders of dies: all node coordinates of a direction first or last
                        coordinate = n - 1 if even[3 + kind, s] < 0.5 else 0
                    else:
                        coordinate = np.int64(even[7 + a % 4, s] * n)
                    position = position * n + coordinate
                at[k] = position
                ok = ok and position < used[k]
        if not ok:
            continue
        for k in range(groups):
            core += core_of(at[k], cuts[k, 0], cuts[k, 1], axes, size_of, inverse_of, stride)
        weight = live * every / SPREAD if corner < 0 else 0.0
        for c in range(components):
            lo, hi = lying[c, REST_LOW], lying[c, REST_HIGH] + 1
            for p in range(lying[c, PART], lying[c, PARTS_END]):
                k = parts[p, 0]
                start = at[k] * cuts[k, 2]
                first = _value(start, terms, parts[p, 1], parts[p, 2])
                last = _value(min(start + cuts[k, 2], cuts[k, 3]) - 1, terms, parts[p, 1], parts[p, 2])
                lo += min(first, last)
                hi += max(first, last)
            size = hi - lo
            if size <= 0:
                ok = False
                break
            weight *= size
            u = even[min(c, 4), s]
            if corner >= 0 and corner % 5 != 4:
                u = 0.999999 * ((corner >> c) & 1 if c < 3 else corner & 1)
            v = lo + np.int64(u * size)
            a, b = lying[c, START], lying[c, END]
            base = FIELDS + rank + WINDOW * c
            if b - a == 1:
                n = dims[a, 0]
                if corner >= 0:
                    v = min(max(v, 0), n - 1)
                ok = ok and v >= 0 and v < n
                ints[count, FIELDS + a] = v
                ints[count, base + LOW], ints[count, base + HIGH] = max(lo, 0) - v, min(hi, n) - v
                continue
            rest = v
            for d in range(b - 1, a - 1, -1):
                x = rest % dims[d, 2] - dims[d, 1]
                rest //= dims[d, 2]
                if d == a:
                    ok = ok and rest == 0
                ok = ok and x >= 0 and x < dims[d, 0]
                ints[count, FIELDS + d] = x
            if lying[c, LINED]:
                padded = dims[b - 1, 2]
                line = v // padded
                begin = line * padded + dims[b - 1, 1]
                ints[count, base + LOW] = max(lo, begin) - v
                ints[count, base + HIGH] = min(hi, begin + dims[b - 1, 0]) - v
                ints[count, base + LINE_LOW] = lo // padded - line
                ints[count, base + LINE_HIGH] = (hi + padded - 1) // padded - line
            else:
                ints[count, base + LOW], ints[count, base + HIGH] = lo - v, hi - v
        if not ok:
            continue
        end = core + far
        ints[count, TARGET] = core
        ints[count, TOP], ints[count, BOTTOM] = min(rows[core], rows[end]), max(rows[core], rows[end])
        left, right = min(columns[core], columns[end]), max(columns[core], columns[end])
        if turn:  # the second and the last but one are where the others are not
            left = min(left, columns[core + turn], columns[end - turn])
            right = max(right, columns[core + turn], columns[end - turn])
        ints[count, LEFT], ints[count, RIGHT] = left, right
        each = ints[count, RIGHT] % g.site_cols - ints[count, LEFT] % g.site_cols + 1
        ints[count, EACH] = min(max(each, 1), wide)
        weights[count] = weight
        count += 1
        kept += corner < 0
    return count, window * kept * every / SPREAD, whole


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def _linear(dims, ints, s, first, end):  # type: ignore[no-untyped-def]
    """(row-major index of sample `s` in dims first..end - 1, their extent)."""
    index, extent = np.int64(0), np.int64(1)
    for d in range(first, end):
        index = index * dims[d, 0] + ints[s, FIELDS + d]
        extent *= dims[d, 0]
    return index, extent


@njit(nogil=True, forceinline=True)  # type: ignore[misc, unused-ignore]
def _stored(dims, ints, s, first, end):  # type: ignore[no-untyped-def]
    """Row-major index of sample `s` in the tensor's dims first..end - 1."""
    index = np.int64(0)
    for d in range(first, end):
        index = index * dims[d, 3] + dims[d, 4] + ints[s, FIELDS + d] * dims[d, 5]
    return index


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
    dims, lying, fan_axes = form.dims, form.components, cut.fan
    groups, axes, copied = source.groups, source.axes, source.copies
    size_of, inverse_of, stride, kind_of = g.size, g.inverse, g.stride, g.kind
    rows, columns, south, east = g.row, g.col, g.down, g.right
    rank, components, last = len(dims), len(lying), len(groups) - 1
    fan, across, down, dies = np.int64(1), False, False, len(column_share)
    for a in fan_axes:
        fan *= size_of[a]
        across = across or (kind_of[a] == 1 and size_of[a] > 1)
        down = down or (g.snake and kind_of[a] == 0)
    # Of every group: its extent, that of the tensor, how many elements are skipped for one.
    extents, stored, skips = np.ones(last + 1, np.int64), np.ones(last + 1, np.int64), np.ones(last + 1, np.int64)
    unbroken = np.empty(last + 1, np.bool_)
    # Index of the sample, and its owner's block in relation to it.
    index, low, high = np.empty(last + 1, np.int64), np.empty(last + 1, np.int64), np.empty(last + 1, np.int64)
    for k in range(last + 1):
        for d in range(groups[k, 0], groups[k, 1]):
            extents[k] *= dims[d, 0]
            stored[k] *= dims[d, 3]
            skips[k] *= dims[d, 5]
        unbroken[k] = groups[k, 2] == 0 or groups[k, 2] == stored[k]
    accesses, longest, still = 0.0, 0, True
    for s in range(samples):
        core = np.int64(0)
        for k in range(last + 1):
            linear, block = ints[s, FIELDS + groups[k, 0]], groups[k, 2]
            for d in range(groups[k, 0] + 1, groups[k, 1]):
                linear = linear * dims[d, 0] + ints[s, FIELDS + d]
            index[k] = linear
            if skips[k] > 1:
                linear = _stored(dims, ints, s, groups[k, 0], groups[k, 1])
            low[k], high[k] = -linear, stored[k] - linear
            if block > 0:
                position = linear // block
                low[k] = position * block - linear
                high[k] = min(low[k] + block, high[k])
                core += core_of(position, groups[k, 3], groups[k, 4], axes, size_of, inverse_of, stride)
            if skips[k] > 1:
                low[k], high[k] = -(-low[k] // skips[k]), (high[k] + skips[k] - 1) // skips[k]
        target = ints[s, TARGET]
        for a in copied:
            core += target // stride[a] % size_of[a] * stride[a]
        y, x = rows[core], columns[core]
        y0, y1, x0, x1 = ints[s, TOP], ints[s, BOTTOM], ints[s, LEFT], ints[s, RIGHT]
        moved = fan > 1 or core != target
        if moved:
            still = False
            way = max(abs(south[y] - south[y0]), abs(south[y] - south[y1]))
            way += max(abs(east[x] - east[x0]), abs(east[x] - east[x1]))
            longest = max(longest, way)
        weight = weights[s]
        if weight == 0.0:
            continue

        # Elements around this one that lie on both sides, dim by dim from the innermost: their product is the message;
        # those as far as both sides hold whole rows are the run.
        run, size, joined = np.int64(1), np.int64(1), True
        end, k, c = rank, last, components - 1
        new_source, new_target, joined_source = True, True, True
        slo, shi, tlo, thi = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        while end > 0:
            a, first = groups[k, 0], lying[c, START]
            base = FIELDS + rank + WINDOW * c
            lined = new_target and lying[c, LINED] == 1
            inner = end - 1 if lined else max(a, first)
            if new_source:
                slo, shi = low[k], high[k]
                joined_source = unbroken[k]
            if new_target:
                tlo, thi = ints[s, base + LOW], ints[s, base + HIGH]
            if inner == a and new_source:
                at, row = index[k], extents[k]
            else:
                at, row = _linear(dims, ints, s, inner, end)
            stop, start = min(shi, thi, row - at), max(slo, tlo, -at)
            common = stop - start if stop > start else np.int64(1)
            size = size * common
            for d in range(inner, end):
                joined = joined and dims[d, 5] == 1
            if joined:
                run = run * common
            joined = joined and inner == a and inner == first and whole[c] and joined_source
            if inner == a:
                k -= 1
            else:
                linear = index[k] if new_source else _linear(dims, ints, s, a, end)[0]
                slo = (linear + slo) // row - linear // row
                shi = (linear + shi - 1) // row + 1 - linear // row
            new_source = inner == a
            new_target = inner == first
            if new_target:
                c -= 1
            elif lined:
                tlo, thi = ints[s, base + LINE_LOW], ints[s, base + LINE_HIGH]
            else:
                linear, _ = _linear(dims, ints, s, first, end)
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
        # A message has a way of its own in every column of dies with receivers, and there one per column of sites.
        here = columns[target] // g.site_cols
        ways = load * ints[s, EACH]
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
def estimates(form, cut, needs, g, source, sources, rows, columns, pairs, ends, width, out):  # type: ignore[no-untyped-def]
    """`out` [pairs, 6]: cycles of the busiest port, row link, column link and die edge, longest way, and 1 where
    nothing moves. `form`, `cut`: of all needs, each up to `needs` [needs, arrays]; `source`: all of them, each up to
    `sources` [sources, arrays]. `pairs` [pairs, 2]: the source and how many cores own anything, those of need k up to
    `ends[k]`; `rows` [sources, rows of dies], `columns` [needs, columns of dies]: see add_up."""
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
        ints = np.empty((SPREAD + CORNERS, FIELDS + len(one.dims) + WINDOW * len(one.components)), np.int64)
        known = np.zeros((len(one.parts), KNOWN, 2), np.int64)
        samples, window, whole = receive(one, how, g, ints, weights, np.int64(1), known)
        elements, fan = max(weights[:samples].sum(), 1e-9), np.int64(1)
        for a in how.fan:
            fan *= g.size[a]
        many = np.int64(1) if g.tree else fan
        while pair < ends[k]:
            j, owners = pairs[pair]
            s0, s1 = sources[j - 1] if j else first, sources[j]
            lies = Source(source.groups[s0[0] : s1[0]], source.axes[s0[1] : s1[1]], source.copies[s0[2] : s1[2]])
            if samples == 0:
                out[pair, 5] = 1
            else:
                accesses, row, column, edge, way, still = add_up(
                    one, how, g, ints, weights, samples, whole, lies, width, many, rows[j], columns[k]
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
