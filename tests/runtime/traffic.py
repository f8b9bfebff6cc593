"""Traffic on a small mesh, through the flit model and d1rt's network; `python -m tests.runtime.traffic` compares.

All messages are ready at cycle 0 and a core sends one after the other, so the network is as full as it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from d1c.target.machine import PRESETS, Machine
from d1rt.network import Network
from tests.runtime.flits import TURNS, Mesh, Message, simulate

SIZES = {1: 192, 8: 48, 64: 12}
"""Packets of a message, and how many messages a core sends: enough to forget the beginning and the end."""


def shift(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Every core to its right neighbour; the last of a row to its first."""
    return [
        Message(r * cols + c, (r * cols + (c + 1) % cols,), packets)
        for _ in range(count)
        for r in range(rows)
        for c in range(cols)
    ]


def transpose(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Core (r, c) to core (c, r); the diagonal is silent. `rows` = `cols`."""
    return [
        Message(r * cols + c, (c * cols + r,), packets)
        for _ in range(count)
        for r in range(rows)
        for c in range(cols)
        if r != c
    ]


def row_multicast(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Every core to all others of its row."""
    return [
        Message(r * cols + c, tuple(r * cols + d for d in range(cols) if d != c), packets)
        for _ in range(count)
        for r in range(rows)
        for c in range(cols)
    ]


def block_multicast(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Every core to all others at most two rows and two columns away: trees with branches."""
    half = [
        (r, c, [i * cols + j for i in range(rows) for j in range(cols) if abs(i - r) <= 2 and abs(j - c) <= 2])
        for r in range(rows)
        for c in range(cols)
    ]
    return [
        Message(r * cols + c, tuple(d for d in around if d != r * cols + c), packets)
        for _ in range(count)
        for r, c, around in half
    ]


def band_multicast(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Every core to all others of two or three rows side by side, in turn, along columns first. `rows` = 8."""
    bands = ((0, 3), (3, 5), (5, 8))
    out: list[Message] = []
    for i in range(count):
        low, high = bands[i % 3]
        for src in range(rows * cols):
            row = src // cols
            trunk = (low + high - 1) // 2 if high - low == 3 else row if low <= row < high else low + row % 2
            dst = tuple(d for d in range(low * cols, high * cols) if d != src)
            out.append(Message(src, dst, packets, trunk=trunk))
    return out


def row_reduce(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Every core to column 0 of its row."""
    return [
        Message(r * cols + c, (r * cols,), packets) for _ in range(count) for r in range(rows) for c in range(1, cols)
    ]


def chain(rows: int, cols: int, count: int, packets: int) -> list[Message]:
    """Partial sums: from column to column towards 0, each when the one before it has come."""
    out: list[Message] = []
    for _ in range(count):
        for r in range(rows):
            for c in range(cols - 1, 0, -1):
                out.append(
                    Message(r * cols + c, (r * cols + c - 1,), packets, after=-1 if c == cols - 1 else len(out) - 1)
                )
    return out


def uniform(rows: int, cols: int, count: int, packets: int, seed: int = 4) -> list[Message]:
    """Every message to any other core."""
    rng = np.random.default_rng(seed)
    n = rows * cols
    return [Message(s, (int(s + rng.integers(1, n)) % n,), packets) for _ in range(count) for s in range(n)]


PATTERNS: dict[str, Callable[[int, int, int, int], list[Message]]] = {
    "neighbour shift": shift,
    "transpose": transpose,
    "row multicast": row_multicast,
    "block multicast": block_multicast,
    "band multicast": band_multicast,
    "row reduce": row_reduce,
    "chain of sums": chain,
    "uniform random": uniform,
}


def machine(sites: tuple[int, int], dies: tuple[int, int] = (1, 1), **fields: int) -> Machine:
    """A tile of dies without dead sites, every site a core; all other numbers are the D1 tile's."""
    return replace(
        PRESETS["d1-tile"], name="flits", die_rows=dies[0], die_cols=dies[1], site_rows=sites[0], site_cols=sites[1],
        grid_rows=sites[0], grid_cols=sites[1], row_factors=(sites[0],), col_factors=(sites[1],), dead=(), **fields,
    )  # fmt: skip


def mesh_of(m: Machine, **fields: int) -> Mesh:
    """The same machine for the flit model, as plain numbers."""
    assert m.link_bytes_per_cycle == m.packet_bytes
    mesh = Mesh(
        (m.site_rows, m.site_cols), (m.die_rows, m.die_cols), m.hop_cycles, m.inject_cycles, m.eject_cycles,
        m.die_crossing_cycles, m.packet_bytes, m.die_edge_bytes_per_cycle, m.virtual_channels, m.channel_packets,
    )  # fmt: skip
    return replace(mesh, **fields)


def by_events(m: Machine, messages: list[Message]) -> list[np.ndarray]:
    """Arrivals in d1rt's network, as the flit model gives them. Messages that wait for others go in later calls."""
    network = Network(m)
    cols = m.die_cols * m.site_cols
    core = np.zeros(m.cores, np.int64)
    core[network.fabric.row * cols + network.fabric.col] = np.arange(m.cores)
    wave: list[int] = []
    for message in messages:
        wave.append(0 if message.after < 0 else wave[message.after] + 1)
    arrival: list[np.ndarray] = [np.zeros(0)] * len(messages)
    for w in range(max(wave) + 1):
        at = [i for i, x in enumerate(wave) if x == w]
        out = network.send(
            np.array([max([messages[i].start, *(arrival[messages[i].after] if w else ())]) for i in at]),
            core[[messages[i].src for i in at]],
            np.cumsum([0] + [len(messages[i].dst) for i in at]),
            core[[d for i in at for d in messages[i].dst]],
            np.array([messages[i].packets for i in at]),
            by_columns=messages[at[0]].trunk >= 0,
        )
        ends = np.cumsum([0] + [len(messages[i].dst) for i in at])
        for i, a, b in zip(at, ends[:-1], ends[1:], strict=True):
            arrival[i] = out[a:b]
    return arrival


@dataclass(frozen=True)
class Times:
    """Cycles of the last arrival, and of all arrivals on average."""

    last: float
    mean: float

    @classmethod
    def of(cls, arrival: list[np.ndarray]) -> Times:
        every = np.concatenate(arrival)
        return cls(float(every.max()), float(every.mean()))

    def off(self, truth: Times) -> tuple[float, float]:
        """How far these are from the true ones: 0.1 is 10 % too late."""
        return self.last / truth.last - 1, self.mean / truth.mean - 1


def flits(m: Machine, messages: list[Message], **fields: int) -> Times:
    """The flit model's times; `fields` change its mesh."""
    return Times.of(simulate(mesh_of(m, **fields), messages).arrival)


def events(m: Machine, messages: list[Message]) -> Times:
    """The times of d1rt's network."""
    return Times.of(by_events(m, messages))


def table(m: Machine, sizes: dict[int, int], variants: dict[str, dict[str, int]]) -> None:
    """Prints a line per pattern and size: cycles of the last arrival by events, and how far events are from the flit
    model, last / mean arrival, for several meshes."""
    rows, cols = m.die_rows * m.site_rows, m.die_cols * m.site_cols
    print(f"| pattern | packets x messages | events | {' | '.join(variants)} |")
    print("|---|---|---|" + "---|" * len(variants))
    for name, pattern in PATTERNS.items():
        for size, count in sizes.items():
            messages = pattern(rows, cols, count, size)
            told = events(m, messages)
            offs = [told.off(flits(m, messages, **fields)) for fields in variants.values()]
            cells = " | ".join(f"{last:+.1%} / {mean:+.1%}" for last, mean in offs)
            print(f"| {name} | {size} x {count} | {told.last:,.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    print("8 x 8 cores, one die: events off by, last / mean arrival\n")
    table(machine((8, 8)), SIZES, {"oldest first": {}, "in turns": {"choice": TURNS}, "deep buffers": {"depth": 1024}})
    for edge in (960, 384):
        print(f"\n8 x 8 cores, two dies of 8 x 4, {edge} B/cycle between them\n")
        table(
            machine((8, 4), (1, 2), die_edge_bytes_per_cycle=edge), SIZES,
            {"oldest first": {}, "in turns": {"choice": TURNS}},
        )  # fmt: skip
