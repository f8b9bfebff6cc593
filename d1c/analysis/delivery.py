"""What an exchange delivers: the windows of every core, from what their owners hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.lib.stride_tricks import as_strided

from d1c.analysis.exchange import exchange_of
from d1c.errors import Trap
from d1c.ir.layout import Need
from d1c.target.dtypes import fill_value
from d1c.target.mesh import Group, Layout, Mesh
from d1c.target.movement import Exchange

_AT_ONCE = 1 << 22  # elements of messages that are moved by one numpy call
_LARGE = 1 << 8  # elements of a message from which a call of its own is cheaper than indices of its elements


def fill_windows(array: np.ndarray, need: Need, fill: float, mesh: Mesh) -> dict[int, np.ndarray]:
    """Windows of a constant, cut from the whole array."""
    layout = Layout(tuple(Group() for _ in array.shape), mesh.names)
    return deliver(
        {0: np.ascontiguousarray(array).reshape(-1)}, layout, array.shape, need, fill, array.dtype, mesh, "constant"
    )


def deliver(
    held: Mapping[int, np.ndarray], layout: Layout, shape: tuple[int, ...], need: Need, fill: float, dtype: np.dtype,
    mesh: Mesh, origin: str,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Perform an exchange: the window of every class of cores. Traps unless every real element arrives exactly once."""
    x = exchange_of(layout, shape, need, mesh)
    if not x.covers():
        raise Trap(f"exchange at {origin} does not cover its windows")
    return receive(x, held, fill, dtype, origin)


def receive(
    x: Exchange, held: Mapping[int, np.ndarray], fill: float, dtype: np.dtype, origin: str
) -> dict[int, np.ndarray]:
    """Send every message of `x` from the owned buffers. Traps where an element arrives twice, or some do not arrive."""
    m = x.messages()
    windows = np.full((len(m.classes), x.window_elements), fill_value(fill, dtype), dtype)
    arrived = np.zeros(windows.shape, np.bool_)
    sent = np.zeros(len(windows), np.int64)
    senders, row = np.unique(m.src, return_inverse=True)
    if len(senders) == 1:  # a whole constant: not copied
        sources = held[int(senders[0])][None]
    else:
        sources = np.stack([held[int(c)] for c in senders]) if len(senders) else np.zeros((0, 0), dtype)
    # messages of one shape differ in their offsets only
    shapes, kind = np.unique(np.concatenate((m.sizes, m.sstride, m.dstride)), axis=1, return_inverse=True)
    for k, (sizes, sstrides, dstrides) in enumerate(zip(*np.split(shapes.T, 3, axis=1), strict=True)):
        group = np.flatnonzero(kind.reshape(-1) == k)
        if (size := int(sizes.prod())) >= _LARGE:
            read, write = _strided(sizes, sstrides, sources.strides), _strided(sizes, dstrides, windows.strides)
            mark = _strided(sizes, dstrides, arrived.strides)
            _inside(m.doff[group], sizes, dstrides, windows.shape[1], origin)
            _inside(m.soff[group], sizes, sstrides, sources.shape[1], origin)
            for i in group.tolist():
                c = int(m.cls[i])
                mark(arrived, c, int(m.doff[i]))[...] = True
                write(windows, c, int(m.doff[i]))[...] = read(sources, int(row.reshape(-1)[i]), int(m.soff[i]))
                sent[c] += size
            continue
        take, put = _box(sizes, sstrides), _box(sizes, dstrides)
        for at in np.array_split(group, -(-len(group) * len(take) // _AT_ONCE)):
            target = m.cls[at, None], m.doff[at, None] + put
            arrived[target] = True
            sent += len(take) * np.bincount(m.cls[at], minlength=len(windows))
            windows[target] = sources[row.reshape(-1)[at, None], m.soff[at, None] + take]
    there = np.count_nonzero(arrived, axis=1)
    if (twice := np.flatnonzero(sent > there)).size:
        raise Trap(f"exchange at {origin}: core {m.classes[twice[0]]} receives an element twice")
    if not np.array_equal(there, x.real_elements(m.classes)):
        raise Trap(f"exchange at {origin}: an element of a window does not arrive")
    return dict(zip(m.classes.tolist(), windows, strict=True))


def _strided(
    sizes: np.ndarray, strides: np.ndarray, steps: tuple[int, ...]
) -> Callable[[np.ndarray, int, int], np.ndarray]:
    """(rows, row, offset) -> the box that begins there, as a view, for rows of these `steps` in bytes."""
    shape = tuple(int(n) for n in sizes[::-1])
    each = tuple(int(n) * steps[1] for n in strides[::-1])
    return lambda rows, row, offset: as_strided(rows[row, offset:], shape, each)


def _inside(offsets: np.ndarray, sizes: np.ndarray, strides: np.ndarray, extent: int, origin: str) -> None:
    """Trap unless the boxes at `offsets` lie within rows of `extent` elements: views do not check that themselves."""
    reach = (sizes - 1) * strides
    low, high = int(np.minimum(reach, 0).sum()), int(np.maximum(reach, 0).sum())
    if offsets.min() + low < 0 or offsets.max() + high >= extent:
        raise Trap(f"exchange at {origin}: a message leaves its buffer")


def _box(sizes: np.ndarray, strides: np.ndarray) -> np.ndarray:
    """Offsets of a strided box, innermost size first."""
    out = np.zeros(1, np.int64)
    for n, stride in zip(sizes, strides, strict=True):
        out = (np.arange(n)[:, None] * stride + out).ravel()
    return out
