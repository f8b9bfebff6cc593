"""Addresses for buffers that live through ranges of epochs: a peak near the bytes that are alive at once.

Finding the lowest peak is NP-hard. Buffers that always live take the lowest addresses, which costs nothing; for the
others a few greedy orders, and where none reaches the bound a search in the order of addresses, cut off after a number
of steps. Deterministic: the same buffers get the same addresses.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Protocol

STEPS = 200_000
"""Boxes that the search looks at, at most: some tenths of a second."""


class Lifetime(Protocol):
    """A buffer: how large it is, and its first and last epoch."""

    @property
    def bytes(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


Box = tuple[int, int, int]
"""Bytes, first and last epoch."""


def live_bytes(buffers: Sequence[Lifetime]) -> int:
    """The bytes alive in the fullest epoch: no addresses have a lower peak."""
    change: dict[int, int] = {}
    for b in buffers:
        change[b.first] = change.get(b.first, 0) + b.bytes
        change[b.last + 1] = change.get(b.last + 1, 0) - b.bytes
    most = now = 0
    for epoch in sorted(change):
        now += change[epoch]
        most = max(most, now)
    return most


def pack(buffers: Sequence[Lifetime], steps: int = STEPS) -> tuple[list[int], int]:
    """An address for every buffer, such that no two that live in the same epoch overlap; and the peak. `steps`: how
    long to search for a lower one."""
    start, end = min((b.first for b in buffers), default=0), max((b.last for b in buffers), default=0)
    address, base = [0] * len(buffers), 0
    some: list[int] = []
    for i, b in enumerate(buffers):
        if b.first == start and b.last == end:
            address[i], base = base, base + b.bytes
        else:
            some.append(i)
    boxes = [(buffers[i].bytes, buffers[i].first - start, buffers[i].last - start) for i in some]
    bound = live_bytes(buffers) - base
    best, peak = _greedy(boxes, bound)
    if peak > bound:
        found = _search(boxes, bound, peak, steps)
        best, peak = found or (best, peak)
    for i, at in zip(some, best, strict=True):
        address[i] = base + at
    return address, base + peak


def _greedy(boxes: Sequence[Box], bound: int) -> tuple[list[int], int]:
    """The best of a few orders, each box in the lowest gap that is free over its epochs."""
    orders = (
        lambda b: (b[1] - b[2], -b[0]),
        lambda b: (-b[0] * (b[2] - b[1] + 1), -b[0]),
        lambda b: (-b[0], b[1] - b[2]),
        lambda b: (b[1], -b[2], -b[0]),
        lambda b: (-b[2], b[1], -b[0]),
    )
    best: tuple[list[int], int] | None = None
    for key in orders:
        order = sorted(range(len(boxes)), key=lambda i: (key(boxes[i]), i))
        address = _first_fit(boxes, order)
        peak = max((at + b[0] for at, b in zip(address, boxes, strict=True)), default=0)
        if best is None or peak < best[1]:
            best = address, peak
        if peak <= bound:
            break
    assert best is not None
    return best


def _first_fit(boxes: Sequence[Box], order: Sequence[int]) -> list[int]:
    address = [0] * len(boxes)
    done: list[tuple[int, int, int, int]] = []  # address, end, first and last epoch, by address
    for i in order:
        size, first, last = boxes[i]
        at = 0
        for low, high, start, end in done:
            if start <= last and first <= end:
                if at + size <= low:
                    break
                at = max(at, high)
        address[i] = at
        insort(done, (at, at + size, first, last))
    return address


def _search(boxes: Sequence[Box], bound: int, peak: int, steps: int) -> tuple[list[int], int] | None:
    """A placement with a lower peak than `peak`, the lowest that `steps` allow.

    Boxes are placed in the order of their addresses, each on top of what was placed before it in its epochs: some order
    gives the lowest peak. A box is not placed where another one fits below it whole.
    """
    epochs = max(b[2] for b in boxes) + 1
    height, left = [0] * epochs, [0] * epochs
    for size, first, last in boxes:
        for e in range(first, last + 1):
            left[e] += size
    best: tuple[list[int], int] | None = None
    address = [0] * len(boxes)
    unplaced = set(range(len(boxes)))

    def choices(floor: int) -> list[tuple[int, int]]:
        """(address, box) to place next, the most promising last."""
        at = {i: max(height[boxes[i][1] : boxes[i][2] + 1]) for i in unplaced}
        least = min(a + boxes[i][0] for i, a in at.items())
        same = set()
        found = []
        for i in sorted(unplaced):
            if floor <= at[i] < least and boxes[i] not in same:
                same.add(boxes[i])
                found.append((at[i], i))

        # the lowest first; there the fullest epochs, the longest lives, the largest boxes
        def key(choice: tuple[int, int]) -> tuple[int, ...]:
            size, first, last = boxes[choice[1]]
            return (
                -choice[0],
                max(height[e] + left[e] for e in range(first, last + 1)),
                last - first,
                size,
                -choice[1],
            )

        return sorted(found, key=key)

    def put(i: int, at: int) -> list[int]:
        size, first, last = boxes[i]
        before = height[first : last + 1]
        address[i] = at
        unplaced.discard(i)
        for e in range(first, last + 1):
            height[e] = at + size
            left[e] -= size
        return before

    def take(i: int, before: list[int]) -> None:
        size, first, last = boxes[i]
        unplaced.add(i)
        height[first : last + 1] = before
        for e in range(first, last + 1):
            left[e] += size

    stack: list[tuple[list[tuple[int, int]], tuple[int, list[int]] | None]] = [(choices(0), None)]
    while stack and steps > 0:
        options, placed = stack[-1]
        if not options:
            stack.pop()
            if placed is not None:
                take(*placed)
            continue
        at, i = options.pop()
        before = put(i, at)
        steps -= 1 + len(unplaced)
        if max(h + r for h, r in zip(height, left, strict=True)) >= peak:
            take(i, before)
        elif unplaced:
            stack.append((choices(at), (i, before)))
        else:
            peak = max(height)
            best = list(address), peak
            take(i, before)
            if peak <= bound:
                break
    return best
