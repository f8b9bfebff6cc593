"""Memory over time: the epoch of every step, the epochs through which every buffer lives, and addresses.

Within an epoch no byte is used twice. The body of a loop has epochs of its own: it begins and ends with one, what it
reads of the values around it lives to its end, and its own values are free again in the next round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from d1c.ir.core import Op
from d1c.target.dtypes import DType

ALIGN = 64


@dataclass
class Buffer:
    """A buffer before it has an address: it lives from epoch `first` to epoch `last`."""

    name: str
    dtype: DType
    elements: int
    kind: str
    first: int = 0
    last: int = 0

    @property
    def bytes(self) -> int:
        return -(-self.elements * self.dtype.bytes // ALIGN) * ALIGN


@dataclass(eq=False)
class Step:
    """A step of the program, in order. `op` is a dist.compute, or the dist.loop of which the step is a part:

    compute       a call, with the exchanges `fetch` that it is the first to wait for.
    start, carry  a call that copies a carried value's initial or new value into its buffer.
    test          only the exchange in `fetch`: all cores learn whether the condition holds.
    begin, end    of a loop's body.
    `new` and `reads` are buffers by number, `layer` is the number of the layer's record.
    """

    op: Op
    kind: Literal["compute", "start", "carry", "test", "begin", "end"] = "compute"
    fetch: list[Op] = field(default_factory=list)
    new: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    layer: int = 0
    epoch: int = 0


def last_uses(steps: Sequence[Step], outputs: Iterable[int]) -> dict[int, int]:
    """Per buffer the number of the step that touches it last, len(steps) for those in `outputs`. What a loop touches
    that was there before it is needed to its end."""
    ends: dict[int, int] = {}
    open_: list[int] = []
    for i, s in enumerate(steps):
        if s.kind == "begin":
            open_.append(i)
        elif s.kind == "end":
            ends[open_.pop()] = i
    inside: list[int] = []  # the loops around the step, outermost first
    home: dict[int, tuple[int, ...]] = {}
    last: dict[int, int] = {}
    for i, s in enumerate(steps):
        if s.kind == "begin":
            inside.append(i)
        elif s.kind == "end":
            inside.pop()
        for b in (*s.new, *s.reads):
            around = home.setdefault(b, tuple(inside) if b in s.new else ())
            deeper = [x for x in inside if x not in around]
            last[b] = max(last.get(b, 0), ends[deeper[0]] if deeper else i)
    return {**last, **dict.fromkeys(outputs, len(steps))}


def cut(
    steps: Sequence[Step], buffers: Sequence[Buffer], inputs: Iterable[int], outputs: Iterable[int], capacity: float,
    arrivals: int,
) -> int | None:  # fmt: skip
    """Cut the steps into epochs whose buffers take at most `capacity` bytes and whose exchanges at most `arrivals`
    semaphores, and say which epochs each buffer lives through; the number of epochs, None where one step alone does
    not fit."""
    last = last_uses(steps, outputs)
    live = set(inputs)
    epoch, used, count = 0, sum(buffers[b].bytes for b in live), 0
    if used > capacity:
        return None
    born = dict.fromkeys(live, 0)
    border = False
    for i, s in enumerate(steps):
        new = {b for b in s.new if b not in live}
        size = sum(buffers[b].bytes for b in new)
        if border or used + size > capacity or count + len(s.fetch) > arrivals:
            live = {b for b in live if last.get(b, -1) >= i}
            epoch, used, count = epoch + 1, sum(buffers[b].bytes for b in live), 0
            if used + size > capacity or len(s.fetch) > arrivals:
                return None
        live |= new
        for b in new:
            born.setdefault(b, epoch)
        used, count, s.epoch = used + size, count + len(s.fetch), epoch
        border = s.kind in ("begin", "end")
    for b, buffer in enumerate(buffers):
        if buffer.kind in ("constant", "table"):
            buffer.first, buffer.last = 0, epoch
        else:
            end = last.get(b, -1)
            buffer.first = born.get(b, 0)
            buffer.last = epoch if end >= len(steps) else steps[end].epoch if end >= 0 else buffer.first
    return epoch + 1


def pack(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Addresses by size, largest first, each in the lowest gap that is free over its epochs; and the peak."""
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].bytes * (buffers[i].last - buffers[i].first + 1), i))
    address = [0] * len(buffers)
    done: list[int] = []
    for i in order:
        b = buffers[i]
        busy = sorted(
            (address[j], address[j] + buffers[j].bytes)
            for j in done
            if buffers[j].first <= b.last and b.first <= buffers[j].last
        )
        at = 0
        for lo, hi in busy:
            if at + b.bytes <= lo:
                break
            at = max(at, hi)
        address[i] = at
        done.append(i)
    return address, max((address[i] + b.bytes for i, b in enumerate(buffers)), default=0)
