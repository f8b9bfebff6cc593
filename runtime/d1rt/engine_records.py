"""Messages as the native loop copies them: groups of records with the same box, each record two byte offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d1c.target.movement import Messages, ragged


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes to copy: `inner` contiguous elements, `repeat` times, `sstep` and `tstep` elements apart, from element
    offsets `soff` and `toff` of message `owner`'s source and target."""

    owner: np.ndarray
    soff: np.ndarray
    toff: np.ndarray
    inner: np.ndarray
    repeat: np.ndarray
    sstep: np.ndarray
    tstep: np.ndarray


def boxes(m: Messages, picks: np.ndarray | None) -> Boxes:
    """The messages (those numbered `picks`; default all) with contiguous dims joined and at most one other dim left:
    further ones become boxes of their own."""
    take = slice(None) if picks is None else picks
    soff, toff = m.soff[take], m.doff[take]
    n = len(soff)
    inner, owner = np.ones(n, np.int64), np.arange(n)
    dims: list[list[np.ndarray]] = []  # size (1: none), source step, target step
    for j in range(len(m.sizes)):
        size = m.sizes[j][take]
        if not n or size.max() == 1:
            continue
        s, t = m.sstride[j][take], m.dstride[j][take]
        left = size > 1
        joined = left & (s == inner) & (t == inner)
        inner = np.where(joined, inner * size, inner)
        left &= ~joined
        for d in dims:  # a dim that goes on where another ends
            joined = left & (d[0] > 1) & (s == d[1] * d[0]) & (t == d[2] * d[0])
            d[0] = np.where(joined, d[0] * size, d[0])
            left &= ~joined
        if left.any():
            dims.append([np.where(left, size, 1), np.where(left, s, 0), np.where(left, t, 0)])
    loop = [np.ones(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)]
    rest = []
    for d in dims:  # the longest dim is the loop
        longer = d[0] > loop[0]
        rest.append([np.where(longer, a, b) for a, b in zip(loop, d, strict=True)])
        loop = [np.where(longer, b, a) for a, b in zip(loop, d, strict=True)]
    while rest:
        d = rest.pop()
        if not n or d[0].max() == 1:
            continue
        o, i = ragged(d[0])
        soff, toff = soff[o] + i * d[1][o], toff[o] + i * d[2][o]
        owner, inner = owner[o], inner[o]
        loop = [x[o] for x in loop]
        rest = [[x[o] for x in e] for e in rest]
    return Boxes(owner, soff, toff, inner, *loop)


@dataclass(frozen=True, slots=True)
class Group:
    """Records with the same box: `bytes` contiguous, `repeat` times, steps in bytes. `records` [n, 2]: byte offsets."""

    bytes: int
    repeat: int
    sstep: int
    tstep: int
    records: np.ndarray


def groups(
    source: np.ndarray, target: np.ndarray, inner: np.ndarray, repeat: np.ndarray, sstep: np.ndarray, tstep: np.ndarray
) -> list[Group]:
    """Records (all in bytes) by box, in their order within each; offsets of 32 bits where they fit."""
    if not len(source):
        return []
    wide = int(max(source.max(), target.max())) >= 1 << 32
    records = np.stack([source, target], axis=1).astype(np.int64 if wide else np.uint32)
    columns = [inner, repeat, sstep, tstep]
    key = np.zeros(len(source), np.int64)
    for c in columns:
        low = int(c.min())
        span = int(c.max()) - low + 1
        if int(key.max(initial=0)) >= (1 << 62) // span:
            key = np.unique(key, return_inverse=True)[1].reshape(-1)
        key = key * span + (c - low)
    order = np.argsort(key, kind="stable")
    sorted_ = key[order]
    first = np.flatnonzero(np.concatenate(([True], sorted_[1:] != sorted_[:-1])))
    records = records[order]
    out = []
    for lo, hi in zip(first, [*first[1:], len(order)], strict=True):
        size, times, s, t = (int(c[order[lo]]) for c in columns)
        out.append(Group(size, times, s, t, records[lo:hi]))
    return out


def chunks(counts: Sequence[int], size: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of `counts` records in pieces of at most `size` (of each group): (group, first record, records) of each
    piece."""
    n, most = np.array(counts, np.int64), np.broadcast_to(np.array(size, np.int64), len(counts))
    group, i = ragged(-(-n // most))
    start = i * most[group]
    return group, start, np.minimum(n[group] - start, most[group])
