"""What a core holds while a program runs: SRAM with the state of every byte, and semaphores; and expanded movements."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.movement import Exchange
from d1c.target.program import Buffer
from d1rt.traps import FREE_BYTES, INSIDE, WRITTEN_BYTES, Fault

FREE, FILLING, FULL = 0, 1, 2
"""States of a byte: nothing in it; a message is on its way to it; written."""
MAYBE = 3
"""Written in some runs only: data decides whether. The plain engine knows better."""
_STATES = ("free", "being filled by a message on its way", "full", "written in some runs only")


class Core:
    """One core. `counts`: semaphores; `waited`: per semaphore how much the core's Arrives and Barriers have waited for.

    Offsets are arrays of element numbers of a buffer. Methods raise Fault."""

    def __init__(self, number: int, sram_bytes: int) -> None:
        self.number, self._bytes = number, sram_bytes
        self.counts: dict[int, int] = defaultdict(int)
        self.waited: dict[int, int] = defaultdict(int)

    @cached_property
    def sram(self) -> np.ndarray:
        return np.zeros(self._bytes, np.uint8)

    @cached_property
    def state(self) -> np.ndarray:
        return np.zeros(self._bytes, np.uint8)

    def values(self, b: Buffer) -> np.ndarray:
        """The buffer's elements, a view of SRAM."""
        return self.sram[b.address : b.address + b.bytes].view(dtype(b.dtype).numpy)

    def read(self, b: Buffer, offsets: np.ndarray) -> np.ndarray:
        """A copy of elements that have been written."""
        self.require_full(b, offsets)
        return np.asarray(self.values(b)[offsets])

    def write(self, b: Buffer, offsets: np.ndarray, values: np.ndarray | float) -> None:
        """Write elements and mark them as full; what state they must have had the caller has checked."""
        self.values(b)[offsets] = values
        self.mark(b, offsets, FULL)

    def mark(self, b: Buffer, offsets: np.ndarray, state: int) -> None:
        self._states(b)[offsets] = state

    def free(self, b: Buffer) -> None:
        states = self._states(b)
        if np.any(states == FILLING):
            first = int(np.argmax(np.any(states == FILLING, axis=1)))
            raise self._fault(b, first, "buffer {} is freed while a message is on its way to it", FREE_BYTES)
        states[:] = FREE

    def require_full(self, b: Buffer, offsets: np.ndarray) -> None:
        self._inside(b, offsets, "read")
        bad = np.any(self._states(b)[offsets] != FULL, axis=1)
        if bad.any():
            first = int(offsets[np.argmax(bad)])
            state = int(self._states(b)[first].min())
            raise self._fault(
                b, first, f"uninitialised read: element {first} of {{}} is {_STATES[state]}", WRITTEN_BYTES
            )

    def require_free(self, b: Buffer, offsets: np.ndarray) -> None:
        self._inside(b, offsets, "written")
        bad = np.any(self._states(b)[offsets] != FREE, axis=1)
        if bad.any():
            first = int(offsets[np.argmax(bad)])
            state = int(self._states(b)[first].max())
            raise self._fault(b, first, f"missing credit: element {first} of {{}} is {_STATES[state]}", FREE_BYTES)

    def _states(self, b: Buffer) -> np.ndarray:
        """[elements, bytes of an element] view of the states."""
        return self.state[b.address : b.address + b.bytes].reshape(b.elements, -1)

    def _inside(self, b: Buffer, offsets: np.ndarray, verb: str) -> None:
        if offsets.size and (offsets.min() < 0 or offsets.max() >= b.elements):
            first = int(offsets.min() if offsets.min() < 0 else offsets.max())
            raise self._fault(
                b, first, f"out of bounds: element {first} of {{}} is {verb}, it has {b.elements}", INSIDE
            )

    def _fault(self, b: Buffer, element: int, message: str, rule: str) -> Fault:
        return Fault(message.format(b.name), b.address + element * dtype(b.dtype).bytes, b.name, rule)


class Movement:
    """An exchange multiplied out: who sends what to whom, how many messages each core gets, what is padding."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, mesh = exchange, exchange.mesh
        self.messages = m = exchange.messages()
        fan = exchange.fan_axes
        self.fan = np.sort(mesh.core_offset(fan, np.arange(mesh.parts(fan))))
        self.class_of = np.full(mesh.cores, -1)
        self.class_of[m.classes[:, None] + self.fan] = np.arange(len(m.classes))[:, None]
        arrivals = np.bincount(m.cls, minlength=len(m.classes))
        self.expected = np.where(self.class_of >= 0, arrivals[self.class_of], 0)
        self._order = np.argsort(m.src, kind="stable")
        self._first = np.searchsorted(m.src[self._order], np.arange(mesh.cores + 1))
        self._boxes: dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray] = {}
        self._padding: dict[int, np.ndarray] = {}

    def sent_by(self, core: int) -> list[int]:
        """Numbers of the messages that `core` sends."""
        return [int(i) for i in self._order[self._first[core] : self._first[core + 1]]]

    def reached(self, message: int) -> list[int]:
        """The cores to which a message goes."""
        return [int(c) for c in self.messages.classes[self.messages.cls[message]] + self.fan]

    def source(self, message: int) -> np.ndarray:
        m = self.messages
        return int(m.soff[message]) + self._box(m.sizes[:, message], m.sstride[:, message])

    def target(self, message: int) -> np.ndarray:
        m = self.messages
        return int(m.doff[message]) + self._box(m.sizes[:, message], m.dstride[:, message])

    def padding(self, core: int) -> np.ndarray:
        """Window elements that no message delivers to `core`; none where the core has no part in the movement."""
        cls = int(self.class_of[core])
        if cls < 0:
            return np.zeros(0, np.int64)
        if cls not in self._padding:
            rest = np.ones(self.exchange.window_elements, bool)
            for i in np.flatnonzero(self.messages.cls == cls):
                rest[self.target(int(i))] = False
            self._padding[cls] = np.flatnonzero(rest)
        return self._padding[cls]

    def _box(self, sizes: np.ndarray, strides: np.ndarray) -> np.ndarray:
        """Offsets of a strided box, innermost dimension first."""
        key = tuple(sizes.tolist()), tuple(strides.tolist())
        if key not in self._boxes:
            self._boxes[key] = box(*key)
        return self._boxes[key]


def box(sizes: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Offsets of the elements of a strided box, innermost dimension first and fastest."""
    out = np.zeros(1, np.int64)
    for n, s in zip(sizes, strides, strict=True):
        out = (np.arange(n)[:, None] * s + out).ravel()
    return out
