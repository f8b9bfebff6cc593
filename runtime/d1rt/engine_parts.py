"""What is known of buffers that come into being part by part: by calls on rows of a result, by parts of a movement.

Rows come in order: what is known of a result on a core is how many of its first elements are written; of a window, how
many of its first parts have wholly come. What a call or a message reads is looked up by the last element that it may
address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from d1c.target.kernel import Nest
from d1c.target.movement import Exchange, Messages
from d1c.target.program import Call, Command, Fill, Port, Program, Push, Send, every
from d1rt.command_cycles import active, participants
from d1rt.engine_checks import placed_tables, reach
from d1rt.engine_numpy import reading_loops

if TYPE_CHECKING:
    from d1rt.engine_states import Movement


class Reads:
    """Elements that commands read, as far as the last one: [cores], 0 where a core reads nothing."""

    def __init__(self, program: Program) -> None:
        self.program, self.mesh = program, program.mesh
        self.tables = placed_tables(program)
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def call(self, c: Call, buffer: int) -> np.ndarray:
        """Of `buffer` by a call on the cores that have work."""

        def find() -> np.ndarray:
            nest, out = self.program.kernels[c.kernel][1], np.zeros(self.mesh.cores, np.int64)
            cores = np.flatnonzero(active(c, self.mesh))
            trips = np.array([t.of(self.mesh)[cores] for t in c.trips], np.int64).reshape(len(c.trips), len(cores)).T
            for k, b in enumerate(c.operands):
                if b == buffer and len(cores):
                    base, loops = c.bases[k].of(self.mesh)[cores], reading_loops(nest, k)
                    most = reach(nest.operands[k], loops, base, trips, c, self.tables, self.mesh, cores)[1]
                    out[cores] = np.maximum(out[cores], most + 1)
            return out

        return self._once(c, buffer, find)

    def push(self, c: Push, m: Messages) -> np.ndarray:
        """Of its source by the senders of a movement."""

        def find() -> np.ndarray:
            out = np.zeros(self.mesh.cores, np.int64)
            last = m.soff + ((m.sizes - 1) * np.maximum(m.sstride, 0)).sum(axis=0)
            np.maximum.at(out, m.src, last + 1)
            return out

        return self._once(c, c.source, find)

    def send(self, c: Send) -> np.ndarray:
        """Of its source by a Send."""
        return np.asarray(c.source_offset.of(self.mesh) + c.elements.of(self.mesh))

    def output(self, port: Port) -> np.ndarray:
        """Of its buffer by those who hold shares of an output."""
        out, stride = np.zeros(self.mesh.cores, np.int64), 1
        local = port.layout.local_shape(port.shape)
        for (_, _, g, n), size in zip(reversed(port.layout.spans(port.shape)), reversed(local), strict=True):
            held = np.clip(n - self.mesh.position(g.axes) * g.block, 1, g.block) if g.axes else np.int64(max(n, 1))
            out, stride = out + (held - 1) * stride, stride * size
        return out + 1

    def _once(self, c: Command, buffer: int, find: Callable[[], np.ndarray]) -> np.ndarray:
        key = id(c), buffer
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


class Results:
    """Results that calls write part by part. `upto` [cores] of each: so many of the first elements are written."""

    def __init__(self, program: Program) -> None:
        self.program = program
        outs = {c.out for c in _commands(program) if isinstance(c, Call) and c.out_base}
        self.upto = {b: np.zeros(program.mesh.cores, np.int64) for b in outs}

    def write(self, c: Call, cores: np.ndarray) -> np.ndarray:
        """A call on `cores`; [cores] who cannot be let do it: what it writes does not follow what is written, or not
        only that."""
        nest, upto = self.program.kernels[c.kernel][1], self.upto[c.out]
        bad = np.zeros(len(upto), bool)
        rows = c.trips[0].of(self.program.mesh)[cores] if c.trips else np.ones(len(cores), np.int64)
        bad[cores] = (upto[cores] != c.out_base) | (not _by_rows(nest))
        upto[cores] = c.out_base + rows * nest.out.strides[0] if nest.parallel else 1
        return bad


def _by_rows(nest: Nest) -> bool:
    """Whether a kernel's result has its rows, the iterations of the first loop, one behind the other."""
    out, n = nest.out, nest.parallel
    inner = sum(s * (loop.extent - 1) for s, loop in zip(out.strides[1:n], nest.loops[1:n], strict=True))
    return n > 0 and not any(t is not None for t in out.tables[:n]) and min(out.strides[:n]) >= 0 and (
        out.strides[0] > inner
    )  # fmt: skip


class Window:
    """A window that parts of a movement bring. `number`: the first of their exchanges; `exchanges`: per part of the
    rows, in order, those that bring it; `begins`: its first element; `whole` [cores]: whether together they bring all
    that is needed, so that each brings all of its rows (once they are padded where `padded`); `come`: messages so far,
    by exchange."""

    def __init__(self, program: Program, exchanges: set[int], fill: int, known: _Known) -> None:
        mesh = program.mesh
        ranges = sorted({_cut(program.exchanges[x]) for x in exchanges})
        self.number = min(exchanges)
        first = program.exchanges[self.number]
        self.exchanges = [sorted(x for x in exchanges if _cut(program.exchanges[x]) == r) for r in ranges]
        self.begins = np.array([lo * first.row_elements[1] for lo, _ in ranges], np.int64)
        self.come = {x: np.zeros(mesh.cores, np.int64) for x in exchanges}
        need = _elements(first, "length", known)
        self.padded = np.zeros(mesh.cores, bool)
        if fill >= 0:
            real = _elements(program.exchanges[fill], "real", known)
            self.padded, need = real != need, real
        alike = all(_windows(program.exchanges[x]) == _windows(first) for x in (*exchanges, *([fill] * (fill >= 0))))
        follow = all(lo == end for (lo, _), end in zip(ranges, [0, *(hi for _, hi in ranges)], strict=False))
        brought = sum(_elements(program.exchanges[x], "real", known) for x in exchanges)
        self.whole = (brought == need) & participants(first) & (alike and follow)

    def ready(self, part: int, filled: np.ndarray, moves: Sequence[Movement]) -> np.ndarray:
        """[cores] whether a part of the window is wholly written."""
        done = self.whole & (filled | ~self.padded)
        for x in self.exchanges[part]:
            done = done & (self.come[x] == moves[x].expected)
        return np.asarray(done)


_Known = dict[tuple[object, ...], np.ndarray]


def _elements(x: Exchange, what: Literal["real", "length"], known: _Known) -> np.ndarray:
    """[cores] how many elements of the windows are real, or there; `known`: of other movements, maybe equal ones."""
    key = what, *(c.key for c in x.components)
    if key not in known:
        known[key] = np.ones(x.mesh.cores, np.int64)
        for c in x.components:
            known[key] *= getattr(c, what)[x.mesh.position(c.target_axes)]
    return known[key]


def _cut(x: Exchange) -> tuple[int, int]:
    return x.cut.window if x.cut is not None else (0, 1 << 31)


def _windows(x: Exchange) -> tuple[object, ...]:
    return x.plan_axes, x.target_held, [(c.window, c.target_axes, c.length.tolist()) for c in x.components]


def _commands(program: Program) -> Iterator[Command]:
    return (c for r in program.roles for t in r.threads for c in every(t))


def windows(program: Program) -> dict[int, Window]:
    """Per buffer that parts of a movement fill what is known of it."""
    parts: dict[int, set[int]] = {}
    fills: dict[int, int] = {}
    for c in _commands(program):
        if isinstance(c, Push) and program.exchanges[c.exchange].cut is not None:
            parts.setdefault(c.target, set()).add(c.exchange)
        elif isinstance(c, Fill) and c.exchange >= 0:
            fills[c.buffer] = c.exchange
    known: _Known = {}
    return {b: Window(program, x, fills.get(b, -1), known) for b, x in parts.items()}
