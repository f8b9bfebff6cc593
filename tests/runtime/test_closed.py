"""The closed form's critical path: exact where nothing queues, close to the events where something does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from d1c.target.mesh import CoreInt
from d1c.target.program import Loop, To
from d1rt.closed_ways import SLOT, idle, walk
from d1rt.events import simulate
from d1rt.network import Network, routes
from tests.runtime.flits import Message
from tests.runtime.flits import simulate as simulate_flits
from tests.runtime.test_events import (
    COPY,
    RIGHT,
    TILE,
    call,
    product,
    program,
    random_program,
    roles,
    send,
    transposed,
    wait,
)
from tests.runtime.test_fetch import MACHINE, alone
from tests.runtime.traffic import PATTERNS, SIZES, TURNS, flits, machine, mesh_of


def both(p) -> tuple[int, int]:
    total = simulate(p).total
    return total["closed_form_cycles"], total["cycles"]


def test_one_message_and_what_waits_for_it():
    # 4 + 1 + 4 and 7 packets, a launch, the product.
    p = roles(program(), ((send(RIGHT, 100),),), ((wait(1), product()),), ((),))
    assert both(p) == (16 + 100 + TILE,) * 2


def test_a_receivers_port_takes_one_after_the_other():
    # Ten packets from each column to column 3: its own are there first, at 4, then its port has 40 to take.
    p = program(send((To("nc", "=", 3),), 160), wait(CoreInt(("nc",), (0, 0, 0, 4))), call(0, 4, 64))
    closed, events = both(p)
    assert events == 4 + 40 + 4 + 100 + COPY
    assert events - SLOT < closed <= events  # nothing is known of where in a slot the port has nothing to do


def test_a_layer_that_does_not_wait_runs_beside():
    # Column 0 computes for two products while column 1 waits for a message of column 2: nobody waits for both.
    p = roles(
        program(layers=2), ((product(), product(1)),), ((wait(1), product(1)),),
        ((send((To("nc", "=", 1),), 1600),),), ((),),
    )  # fmt: skip
    found = simulate(p)
    assert both(p) == (2 * (100 + TILE),) * 2
    assert [x["closed_form_cycles"] for x in found.layers] == [x["cycles"] for x in found.layers]


@pytest.mark.parametrize("rounds", [0, 1, 3, 8, 1000])
def test_loops(rounds):
    body = (send(RIGHT, 160), wait(CoreInt(("nc",), (0, 1, 1, 1))), product(), product(1))
    closed, events = both(program(Loop(body, rounds), layers=2))
    assert closed == events


def test_a_chain_along_the_cores():
    """Column 1 goes on when column 0 has sent, and so on: cores of one thread are not equally far."""
    chain = (wait(CoreInt(("nc",), (0, 1, 1, 1))), call(0, 4, 64), send(RIGHT, 16))
    assert both(program(*chain)) == (4 * COPY + 3 * (4 + 1 + 4 + 1) + 3 * 100,) * 2


def test_interface_processors_serve_one_after_the_other():
    for slow in (16, 64):
        closed, events = both(alone(dataclasses.replace(MACHINE, dip_bytes_per_cycle=slow), 16))
        assert abs(closed / events - 1) < 0.02


def test_movements_and_barriers():
    closed, events = both(transposed())
    assert abs(closed / events - 1) < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed):
    closed, events = both(random_program(np.random.default_rng(seed)))
    assert abs(closed / events - 1) < 0.3


# ---- messages on links as fluids, against the network of flits ------------------------------------------------------


def arrivals(m, messages, commands) -> np.ndarray:
    """[commands] when the last message of each is there; a core sends one after the other, none before its start."""
    network = Network(m)
    fabric, cols = network.fabric, m.die_cols * m.site_cols
    core = np.zeros(m.cores, np.int64)
    core[fabric.row * cols + fabric.col] = np.arange(m.cores)
    src, packets = core[[x.src for x in messages]], np.array([x.packets for x in messages])
    first = np.cumsum([0] + [len(x.dst) for x in messages])
    made, of, _ = routes(
        fabric, src, np.arange(len(src)), packets, packets, first, core[[d for x in messages for d in x.dst]],
        messages[0].trunk >= 0,
    )
    begin, before = np.zeros(len(made.message)), np.zeros(m.cores)
    for i, ((sender, _, cycles, *_), number) in enumerate(zip(made.message, of, strict=True)):
        begin[i] = max(before[sender], messages[number].start)
        before[sender] = begin[i] + cycles
    order = np.argsort(begin, kind="stable")
    known, when = np.zeros((2, max(commands) + 1, m.cores))
    known, left = known.astype(np.int32), np.zeros(len(order))
    slot = np.array(commands)[of][order]
    end = walk(idle(network.net), network.net, made, order, begin[order], slot, known, when, left)
    assert known.sum() == first[-1] and end == when.max()
    return when.max(axis=1)


FLUID = {
    "neighbour shift": 0.02, "transpose": 0.02, "row reduce": 0.02, "row multicast": 0.12, "band multicast": 0.2,
    "uniform random": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("mesh", [machine((8, 8)), machine((8, 4), (1, 2))])
@pytest.mark.parametrize("name", FLUID)
def test_patterns_against_flits(name, mesh):
    """Of the last arrival: where one link or port binds, and where buffers are full."""
    for size, count in SIZES.items():
        messages = PATTERNS[name](8, 8, count, size)
        off = arrivals(mesh, messages, [0] * len(messages))[0] / flits(mesh, messages).last - 1
        assert abs(off) < FLUID[name], size


@pytest.mark.parametrize("start", [0, 50, 200])
def test_what_comes_late_waits_for_heads_only(start):
    """A row sends much to its last core; what the core below sends it meanwhile gets its turn."""
    mesh = machine((8, 8))
    messages = [*(Message(c, (7,), 64) for c in range(7)), Message(15, (7,), 4, start)]
    *flood, late = (float(x[0]) for x in simulate_flits(mesh_of(mesh, choice=TURNS), messages).arrival)
    all_, of_late = arrivals(mesh, messages, [0] * 7 + [1])
    assert late < start + 20 < max(flood) / 2  # behind all that was sent before it came 461 cycles
    assert abs(of_late - late) < 10 and abs(all_ - max(flood)) < 10
