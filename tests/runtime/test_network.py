"""d1rt's network at message level against a network of flits with code and formulas of its own; that by hand counts.

docs/timing.md has the figures. A message of the product's network goes in trains of packets and waits for room in the
next router's buffer; in the network of flits each packet does, for a virtual channel's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.flits import FIRST, OLDEST, RIGHT, TURNS, Mesh, Message, simulate
from tests.runtime.traffic import PATTERNS, SIZES, events, flits, machine, uniform

LINE = Mesh((1, 8))
UNICAST = ("neighbour shift", "transpose", "row reduce", "chain of sums")


def arrivals(mesh: Mesh, messages: list[Message], compiled: bool = True) -> list[list[int]]:
    return [a.tolist() for a in simulate(mesh, messages, compiled).arrival]


# ---- the flit model against hand counts: inject 4 + hops + packets + eject 4 ----------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
def test_one_message(compiled: bool) -> None:
    assert arrivals(LINE, [Message(0, (7,), 1)], compiled) == [[4 + 7 + 1 + 4]]
    assert arrivals(LINE, [Message(7, (2,), 20, start=30)], compiled) == [[30 + 4 + 5 + 20 + 4]]
    assert arrivals(Mesh((4, 4)), [Message(1, (14,), 3)], compiled) == [[4 + 4 + 3 + 4]]
    assert arrivals(LINE, [Message(3, (3,), 5)], compiled) == [[4 + 5 + 4]]


@pytest.mark.parametrize("compiled", [True, False])
def test_messages_that_cross_do_not_meet(compiled: bool) -> None:
    both = arrivals(LINE, [Message(0, (7,), 10), Message(7, (0,), 10)], compiled)
    assert both == [[4 + 7 + 10 + 4]] * 2
    corner = arrivals(Mesh((3, 3)), [Message(3, (5,), 10), Message(1, (7,), 10)], compiled)
    assert corner == [[4 + 2 + 10 + 4]] * 2


def test_a_shared_link_carries_one_after_the_other_or_both_in_turns() -> None:
    """Core 0 and core 1 to cores 5 and 6, ten packets each: the link from 1 to 2 is common. The packets of core 0 are
    at router 1 one cycle later than those of core 1."""
    two = [Message(0, (5,), 10), Message(1, (6,), 10)]
    # In turns: core 1 has cycles 4, 6, 8, ..., 22, core 0 has 5, 7, ..., 23; then 5 or 4 hops.
    assert arrivals(Mesh((1, 8), choice=TURNS), two) == [[23 + 4 + 1 + 4], [22 + 5 + 1 + 4]]
    # Oldest first: after one packet of core 1 core 0 has the link to itself from 5 to 14, then core 1 from 15 to 23.
    assert arrivals(LINE, two) == [[14 + 4 + 1 + 4], [23 + 5 + 1 + 4]]
    # First come, first served: the last packet of core 0 came last.
    assert arrivals(Mesh((1, 8), choice=FIRST), two)[0] == [23 + 4 + 1 + 4]


def test_inject_and_eject_ports_take_a_packet_a_cycle() -> None:
    assert arrivals(LINE, [Message(0, (1,), 10), Message(0, (2,), 10)]) == [[4 + 1 + 10 + 4], [10 + 4 + 2 + 10 + 4]]
    ends = arrivals(LINE, [Message(0, (3,), 10), Message(6, (3,), 10)])
    assert max(ends) == [4 + 3 + 20 + 4]


def test_a_chain_waits_for_arrivals() -> None:
    chain = [Message(2, (1,), 6), Message(1, (0,), 6, after=0)]
    assert arrivals(LINE, chain) == [[15], [30]]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_tree_carries_every_packet_once(compiled: bool) -> None:
    mesh = Mesh((4, 4))
    result = simulate(mesh, [Message(5, tuple(i for i in range(16) if i != 5), 12)], compiled)
    hops = [abs(i // 4 - 1) + abs(i % 4 - 1) for i in range(16) if i != 5]
    assert result.arrival[0].tolist() == [4 + h + 12 + 4 for h in hops]
    assert result.busy[:, :4].sum() == 12 * 15 and result.ports.sum() == 12


def test_a_die_edge_is_as_far_as_it_says_and_as_narrow() -> None:
    """Two dies: 200 cycles more; eight lanes, of which the edge carries 3 packets in 2 cycles (96 B/cycle)."""
    narrow = 4 + 1 + 200 + 8 * 30 * 64 // 96 + 4
    wide = Mesh((8, 4), (1, 2))
    lanes = [Message(8 * r + 3, (8 * r + 4,), 30) for r in range(8)]
    assert arrivals(wide, lanes) == [[4 + 1 + 200 + 30 + 4]] * 8
    assert narrow - 8 < min(arrivals(Mesh((8, 4), (1, 2), edge_bytes=96), lanes))[0]
    assert max(arrivals(Mesh((8, 4), (1, 2), edge_bytes=96), lanes)) == [narrow]
    down = [Message(24 + c, (32 + c,), 30) for c in range(8)]
    assert max(arrivals(Mesh((4, 8), (2, 1), edge_bytes=96), down)) == [narrow]


def test_buffers_behind_a_crossing_that_do_not_cover_the_round_trip() -> None:
    """Three channels of 8 packets: 24 packets, then nothing until the first credit is back after 2 x 201 cycles."""
    small = Mesh((1, 4), (1, 2), crossing_depth=8)
    assert arrivals(small, [Message(3, (4,), 24)]) == [[4 + 201 + 24 + 4]]
    assert arrivals(small, [Message(3, (4,), 25)]) == [[4 + 402 + 201 + 1 + 4]]
    assert arrivals(small, [Message(3, (4,), 24 * 5)]) == [[4 + 4 * 402 + 201 + 24 + 4]]
    assert arrivals(Mesh((1, 4), (1, 2)), [Message(3, (4,), 2000)]) == [[4 + 201 + 2000 + 4]]


def test_full_buffers_hold_back_what_is_behind_them() -> None:
    """One channel. Core 4 (older) fills core 3's port; core 0's packets for 3 fill routers 3, 2 and 1 and
    hold back those that core 0 sends after them to core 1, though that port is free."""
    messages = [Message(4, (3,), 100), Message(0, (3,), 40, start=1), Message(0, (1,), 1, start=1)]
    deep = arrivals(Mesh((1, 8), depth=64, channels=1), messages)
    shallow = arrivals(Mesh((1, 8), depth=5, channels=1), messages)
    # 1 + 40 packets at the inject port. In the mesh there is room for 20 of them (routers 0 to 3); the others come only
    # when core 4's last packet has left router 4 (cycle 103) and core 3's port is theirs: 20 more, one a cycle.
    assert deep[:2] == shallow[:2] == [[4 + 1 + 100 + 4], [4 + 1 + 100 + 40 + 4]]
    assert deep[2] == [1 + 40 + 4 + 1 + 1 + 4]
    assert 104 + 20 < shallow[2][0] < 149


@pytest.mark.parametrize("choice", [OLDEST, TURNS, FIRST])
def test_every_packet_takes_the_links_of_its_route(choice: int) -> None:
    mesh = Mesh((4, 4), (1, 2), choice=choice, edge_bytes=128)
    messages = PATTERNS["uniform random"](4, 8, 10, 3)
    result = simulate(mesh, messages)
    hops = sum(3 * (abs(m.src // 8 - m.dst[0] // 8) + abs(m.src % 8 - m.dst[0] % 8)) for m in messages)
    assert result.busy[:, :4].sum() == hops
    assert result.busy[:, 4].sum() == result.ports.sum() == 3 * len(messages)
    over = sum(3 * (m.src % 8 < 4 <= m.dst[0] % 8) for m in messages)
    assert result.busy[3::8, RIGHT].sum() == over
    for m, a in zip(messages, result.arrival, strict=True):
        apart = abs(m.src // 8 - m.dst[0] // 8) + abs(m.src % 8 - m.dst[0] % 8)
        assert a[0] >= 4 + apart + 3 + 4 + 200 * ((m.src % 8 < 4) != (m.dst[0] % 8 < 4))


# ---- d1rt's network against the flit model --------------------------------------------------------------------------

MESHES = {
    "one die": machine((8, 8)),
    "two dies": machine((8, 4), (1, 2)),
    "narrow edge": machine((8, 4), (1, 2), die_edge_bytes_per_cycle=384),
}


BOUNDS = {
    "neighbour shift": 0.10,
    "transpose": 0.10,
    "row multicast": 0.10,
    "row reduce": 0.10,
    "chain of sums": 0.10,
    "uniform random": 0.20,
    "block multicast": 0.20,
    "band multicast": 0.20,
}
"""Of the last arrival. The five patterns that must be near, and three harder ones."""


def off(mesh: str, name: str, size: int, count: int) -> list[tuple[float, float]]:
    """How far last and mean arrival are off routers that serve the oldest message first, and such that take turns."""
    messages = PATTERNS[name](8, 8, count, size)
    told = events(MESHES[mesh], messages)
    return [told.off(flits(MESHES[mesh], messages, choice=choice)) for choice in (OLDEST, TURNS)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", UNICAST)
def test_where_one_link_or_port_binds(name: str, mesh: str) -> None:
    """1 % of the last arrival, 5 % of the mean."""
    for last, mean in off(mesh, name, 8, 48):
        assert abs(last) < 0.01 and abs(mean) < 0.05


@pytest.mark.parametrize("mesh", ["one die", "two dies"])
@pytest.mark.parametrize("name", ["row multicast", "band multicast", "uniform random"])
def test_where_buffers_are_full(name: str, mesh: str) -> None:
    for size, count in SIZES.items():
        for last, _ in off(mesh, name, size, count):
            assert abs(last) < BOUNDS[name], size


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", PATTERNS)
def test_all_sizes_and_loads(name: str, mesh: str) -> None:
    """Every size of message, few of them and many: docs/timing.md has the figures, and says how far off few multicasts
    over a die edge are, whose copies wait for each other longer than they take."""
    few = name in ("row multicast", "band multicast") and mesh != "one die"
    for size, count in SIZES.items():
        for load in (count // 2, count, 3 * count) if few else (count // 8, count // 2, count, 3 * count):
            oldest, turns = off(mesh, name, size, load)
            assert abs(oldest[0]) < BOUNDS[name], (size, load)
            assert abs(turns[0]) < BOUNDS[name] + 0.02 * few, (size, load)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_random_traffic_of_other_seeds_and_mixed_sizes(mesh: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for sizes in ((3, 3), (24, 24), (1, 100)):
            packets = iter(rng.integers(*sizes, 24 * 64, endpoint=True))
            messages = [replace(m, packets=int(next(packets))) for m in uniform(8, 8, 24, 1, seed)]
            told = events(MESHES[mesh], messages)
            for choice in (OLDEST, TURNS):
                last, _ = told.off(flits(MESHES[mesh], messages, choice=choice))
                assert abs(last) < BOUNDS["uniform random"], (seed, sizes)
