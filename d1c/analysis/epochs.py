"""Memory over time: the epoch of every step, and the epochs through which every buffer lives.

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
    """A buffer before it has an address: its bytes are its own from epoch `first` to epoch `last`. It is used last in
    epoch `died`: that before, where the bytes are given back while the next epoch runs."""

    name: str
    dtype: DType
    elements: int
    kind: str
    first: int = 0
    last: int = 0
    died: int = 0

    @property
    def bytes(self) -> int:
        return -(-self.elements * self.dtype.bytes // ALIGN) * ALIGN


@dataclass(eq=False)
class Step:
    """A step of the program, in order. `op` is a dist.compute, or the dist.loop of which the step is a part:

    compute       a call, with the exchanges `fetch` and the constants `streams` that it is the first to wait for.
    start, carry  a call that copies a carried value's initial or new value into its buffer.
    test          only the exchange in `fetch`: all cores learn whether the condition holds.
    begin, end    of a loop's body.
    `parts`: in how many parts, that are waited for one after another, each of `fetch` comes. `new` and `reads` are
    buffers by number, `layer` is the number of the layer's record. `again`: the result's buffer held something else of
    this layer, which is dead.
    """

    op: Op
    kind: Literal["compute", "start", "carry", "test", "begin", "end"] = "compute"
    fetch: list[Op] = field(default_factory=list)
    streams: list[Op] = field(default_factory=list)
    new: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    layer: int = 0
    epoch: int = 0
    parts: list[int] = field(default_factory=list)
    again: bool = False


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
    arrivals: int, shared: bool,
) -> tuple[bool, ...] | None:  # fmt: skip
    """Cut the steps into epochs whose buffers take at most `capacity` bytes and whose exchanges at most `arrivals`
    semaphores (`shared`: one for all exchanges of a step; one more for what is streamed for it), and say which epochs
    each buffer lives through. An epoch uses neither bytes nor semaphores of the one before, which are given back while
    it runs; except where it would not fit otherwise, and at the borders of loops: there it waits. Per epoch whether it
    does; None where one step alone does not fit."""
    last = last_uses(steps, outputs)
    wanted = [(max(s.parts, default=0) if shared else sum(s.parts)) + bool(s.streams) for s in steps]
    ahead = _ahead(steps, buffers, wanted)
    live = set(inputs)
    born = dict.fromkeys(live, 0)
    sync = [True]
    # Bytes in use; those of them that lived when the epoch began; bytes and semaphores that are new in it; semaphores
    # of the epoch before that are not free yet.
    used = carried = sum(buffers[b].bytes for b in live)
    fresh = count = before = 0
    border = False
    for i, s in enumerate(steps):
        new = {b for b in s.new if b not in live}
        size, n = sum(buffers[b].bytes for b in new), wanted[i]
        fits = used + size <= capacity and before + count + n <= arrivals
        to_border = used + ahead[i][0] <= capacity and before + count + ahead[i][1] <= arrivals
        half = fresh + size <= (capacity - carried) / 2 and count + n <= arrivals // 2
        if border or not fits or not (to_border or half or not fresh + count):
            gone = {b for b in live if last.get(b, -1) < i}
            live -= gone
            carried = sum(buffers[b].bytes for b in live)
            used, before = carried + sum(buffers[b].bytes for b in gone), count
            wait = border or used + size > capacity or before + n > arrivals
            if wait:
                used, before = carried, 0
            sync.append(wait)
            fresh = count = 0
        if used + size > capacity or before + count + n > arrivals:
            return None
        live |= new
        for b in new:
            born.setdefault(b, len(sync) - 1)
        used, fresh, count, s.epoch = used + size, fresh + size, count + n, len(sync) - 1
        border = s.kind in ("begin", "end")
    end = len(sync) - 1
    for b, buffer in enumerate(buffers):
        if buffer.kind in ("constant", "table"):
            buffer.first, buffer.last, buffer.died = 0, end, end
        else:
            use = last.get(b, -1)
            buffer.first = born.get(b, 0)
            buffer.died = end if use >= len(steps) else steps[use].epoch if use >= 0 else buffer.first
            buffer.last = buffer.died + (buffer.died < end and not sync[buffer.died + 1])
    return tuple(sync)


def _ahead(steps: Sequence[Step], buffers: Sequence[Buffer], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Per step the bytes and semaphores that are new from it on to the next border of a loop."""
    out: list[tuple[int, int]] = []
    size = count = 0
    for s, n in zip(reversed(steps), reversed(wanted), strict=True):
        if s.kind in ("begin", "end"):
            size = count = 0
        size, count = size + sum(buffers[b].bytes for b in s.new), count + n
        out.append((size, count))
    return out[::-1]
