"""The program that compiler and runtime exchange: roles of cores, their threads' commands, buffers, kernels, movements.

`save` and `load` map it to the .d1x container (d1c.target.binary). `load` checks everything that can be checked without
running: references, addresses against SRAM, counts, semaphores, movements; what it cannot prove the engines trap.

How a program runs: every core of a role runs the role's threads, in order, one command after another; commands of
different threads and cores meet only through buffers and semaphores. Semaphore counts start at 0 and never reset.
Memory of a buffer is free, filling or full: `Push`, `Send` and `Fetch` write into free bytes only, `Free` makes bytes
free again.

Loops: a Loop of one thread has its counterpart in every thread of every role, in the same order and nesting, with the
same trips and condition. What the condition holds is equal on all cores, so that all make the same number of rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d1c.target.counts import Counts
from d1c.target.dtypes import dtype
from d1c.target.kernel import Nest
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.movement import Exchange


@dataclass(frozen=True, slots=True)
class Buffer:
    """A range of SRAM, at the same address on every core. kind: owned (a tensor's share), window (what an exchange
    delivers), constant, table (row offsets of a kernel)."""

    name: str
    dtype: str
    elements: int
    address: int
    kind: str

    @property
    def bytes(self) -> int:
        return self.elements * dtype(self.dtype).bytes


@dataclass(frozen=True, slots=True)
class To:
    """Whom a command reaches, factor by factor: mode "+" adds `value` to the sender's coordinate, "=" sets it, "*"
    takes all. Factors that are not named keep the sender's coordinate. A coordinate outside the mesh reaches nobody."""

    axis: str
    mode: str
    value: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """Run kernel `kernel` on this core's share, or a part of it. Buffers by number: the result (from element `out_base`
    on), the operands (each from element `bases[i]` on), the tables. A core whose coordinate along a factor of `held` is
    not 0, or one of whose trip counts is 0, skips it. Reading a byte that nothing has written traps."""

    kernel: int
    out: int
    operands: tuple[int, ...]
    bases: tuple[CoreInt, ...]
    tables: tuple[int, ...]
    trips: tuple[CoreInt, ...]
    scalars: tuple[CoreInt, ...]
    held: tuple[str, ...]
    layer: int = -1
    origin: str = ""
    out_base: int = 0


@dataclass(frozen=True, slots=True)
class Push:
    """Send this core's part of movement `exchange` from buffer `source` to buffer `target` of the cores that need it;
    each message, when wholly written, adds 1 to `semaphore` of every core it reaches. `by_columns`: its way is along
    the column first, then along the row (to many cores a tree with trunks, docs/timing.md). `spread`: cycles over
    which the cores that send begin, each at its own turn (target/movement.py); directly behind another Push with a
    spread, they are counted from that one's end."""

    source: int
    target: int
    exchange: int
    semaphore: int
    layer: int = -1
    origin: str = ""
    by_columns: bool = False
    spread: int = 0


@dataclass(frozen=True, slots=True)
class Arrive:
    """Wait until all messages of movement `exchange` for this core have come, counted by `semaphore` (on top of what
    earlier Arrives of this core on that semaphore have waited for). Cores outside the movement go on at once."""

    exchange: int
    semaphore: int
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """One message of `elements` elements from `source` (element `source_offset` on) to `target` (element
    `target_offset` on) of the cores `to`; adds 1 to their `semaphore`."""

    source: int
    target: int
    to: tuple[To, ...]
    source_offset: CoreInt
    target_offset: CoreInt
    elements: CoreInt
    semaphore: int
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read row `index` of weight tensor `array` from the memory of the interface processor nearest to this core into
    buffer `target`, from its first element on; when it is wholly written, that adds 1 to `semaphore` of this core. An
    index of -1: this core reads nothing."""

    target: int
    array: str
    index: CoreInt
    semaphore: int
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until this core's `semaphore` has reached `count`; `relative`: on top of what earlier Arrives, Barriers and
    relative Waits of this core on that semaphore have waited for."""

    semaphore: int
    count: CoreInt
    layer: int = -1
    origin: str = ""
    relative: bool = False


@dataclass(frozen=True, slots=True)
class Post:
    """Add 1 to `semaphore` of the cores `to` (empty: this core)."""

    semaphore: int
    to: tuple[To, ...] = ()
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Free:
    """The buffers' bytes are free on this core: the credit for whoever writes them next."""

    buffers: tuple[int, ...]
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Fill:
    """Write `value` into the elements of window `buffer` that movement `exchange` does not deliver to this core
    (padding); into the whole buffer where `exchange` is -1."""

    buffer: int
    exchange: int
    value: float
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Barrier:
    """All cores of the mesh meet. A tree: along every axis of the mesh in turn (the factors that share a name before
    the dot, last axis first) the cores post to the one at position n // 2 of n, each axis on its semaphore of `up`
    (first axis first); the last one multicasts the release on `release`. Counts go on from barrier to barrier."""

    up: tuple[int, ...]
    release: int
    layer: int = -1
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Loop:
    """Run `body` again and again, `trips` times at most; where `condition` is a buffer (>= 0), only while its element 0
    on this core is true (bool), looked at before every round. Whoever waits in a body for a semaphore that a body
    counts does so by Arrive, Barrier or relative Wait."""

    body: tuple[Command, ...]
    trips: int
    condition: int = -1
    layer: int = -1
    origin: str = ""


Command = Call | Push | Arrive | Send | Fetch | Wait | Post | Free | Fill | Barrier | Loop
COMMANDS: dict[str, type] = {
    c.__name__: c for c in (Call, Push, Arrive, Send, Fetch, Wait, Post, Free, Fill, Barrier, Loop)
}


def numbered(commands: Iterable[Command], path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Command]]:
    """All commands of a thread with their places, bodies right behind their loop: (4, 0) is the first of loop 4."""
    for i, c in enumerate(commands):
        yield (*path, i), c
        if isinstance(c, Loop):
            yield from numbered(c.body, (*path, i))


def every(commands: Iterable[Command]) -> Iterator[Command]:
    """All commands of a thread, those in loops too."""
    return (c for _, c in numbered(commands))


def place_text(path: tuple[int, ...]) -> str:
    """`4.0` for the first command of loop 4."""
    return ".".join(map(str, path))


@dataclass(frozen=True, slots=True)
class Role:
    """A set of cores (per named factor a half-open range; others whole) and their threads (at most machine.threads)."""

    name: str
    cores: tuple[tuple[str, int, int], ...]
    threads: tuple[tuple[Command, ...], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What a buffer holds before the program starts: row `index` of weight tensor `array` [rows, elements], per core;
    index -1: nothing. `held`: cores with a coordinate other than 0 along these factors hold nothing."""

    buffer: int
    array: str
    index: CoreInt
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the model: its name there, shape, element type, and the owned buffer with its layout.

    `counts`: of an output, per dim whose extent is known at run time only, the dim and the output (one i64) that holds
    it; `shape` has the largest extents. Outputs that hold extents are not handed out."""

    name: str
    buffer: int
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    counts: Counts = ()


@dataclass(frozen=True)
class Program:
    """One compiled program. `weights`: the arrays that placements and Fetches name. `layers`: per layer a record for
    reports (plain JSON values; commands name them by number). `info`: model name, precision, numerics version, compile
    summary (plain JSON)."""

    machine: Mapping[str, Any]
    mesh: Mesh
    buffers: tuple[Buffer, ...]
    kernels: tuple[tuple[str, Nest], ...]
    exchanges: tuple[Exchange, ...]
    roles: tuple[Role, ...]
    placements: tuple[Placement, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
