"""The event-driven times: programs small enough to work out by hand, and a plain simulation of the same rules."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from d1c.errors import Deadlock
from d1c.target.mesh import CoreInt
from d1c.target.program import Arrive, Barrier, Loop, Post, Push, Role, Send, To, Wait
from d1rt.events import Simulator, simulate
from d1rt.linkload import load
from d1rt.timing import layer_times
from d1rt.trace import trace_events
from tests.runtime.slow_events import slow_cycles
from tests.runtime.test_timing import COL, ROW, SQUARE, Group, Layout, call, movement, program

ONE = CoreInt.const(1)
RIGHT = (To("nc", "+", 1),)
COPY = 20 + 16
"""One call of kernel 0 on 4 x 64 f32: 1,024 B at 64 B a cycle to store, 20 to start."""
TILE = 20 + 512
"""One call of the product on 64 x 64 x 64: 8 x 8 x 16 matrix steps are 1,024; 32 x 64 x 64 half of it."""


def send(to: tuple[To, ...], elements: int, semaphore: int = 3, layer: int = 0) -> Send:
    return Send(0, 1, to, CoreInt.const(0), CoreInt.const(0), CoreInt.const(elements), semaphore, layer)


def wait(count: int | CoreInt, semaphore: int = 3, layer: int = 0) -> Wait:
    return Wait(semaphore, count if isinstance(count, CoreInt) else CoreInt.const(count), layer, relative=True)


def product(layer: int = 0):
    return dataclasses.replace(call(2, 32, 64, 64, layer=layer), operands=(0, 0))


def roles(p, *threads_of):
    """Column 0 of the cores plays the first role, and so on; the last has all other columns."""
    edges = [*range(len(threads_of)), 4]
    made = (Role(f"r{i}", (("nc", edges[i], edges[i + 1]),), threads) for i, threads in enumerate(threads_of))
    return dataclasses.replace(p, roles=tuple(made))


def cycles(p) -> int:
    return simulate(p).total["cycles"]


def test_two_cores_and_one_message():
    # Column 0 sends 100 f32 (7 packets) one column on, where a product waits for it: 4 + 1 + 4 + 7, launch, product.
    p = roles(program(), ((send(RIGHT, 100),),), ((wait(1), product()),), ((),))
    found = simulate(p)
    assert found.total["cycles"] == 16 + 100 + TILE
    assert [(s.what, s.begin, s.end) for s in found.path] == [
        ("SRAM port", 0, 7), ("distance", 7, 16), ("launch", 16, 116), ("compute/matrix", 116, 116 + TILE)
    ]  # fmt: skip
    assert found.path[0].core == 1 and found.path[0].source == 0
    assert found.layers[0]["binds"] == "compute/matrix"


def test_two_messages_on_one_link():
    # Columns 0 and 1 send 10 packets to column 3: the link from 2 to 3 takes one after the other. Column 1's are there
    # at 4 + 1, column 0's at 4 + 2: they wait until 15.
    p = roles(
        program(), ((send((To("nc", "=", 3),), 160),),), ((send((To("nc", "=", 3),), 160),),), ((),), ((wait(2),),)
    )
    assert cycles(p) == 5 + 10 + 1 + 4 + 10
    net = Simulator(p)._simulate(SQUARE, False).net
    assert net.links[:, 1].reshape(2, 6, 4, 4)[0, 0].tolist() == [[10, 20, 20, 0]] * 4


def test_a_multicast_arrives_by_distance():
    everyone = send((To("nc", "*"),), 160)
    for to, hops in ((0, 0), (1, 1), (3, 3)):
        waits = [((wait(1), product()),) if i == to else ((),) for i in range(4)]
        first = (everyone, *waits[0][0])
        p = roles(program(), (first,), *waits[1:])
        assert cycles(p) == 18 + hops + 100 + TILE


def test_a_launch_is_paid_where_work_does_not_just_go_on():
    copy, again = call(0, 4, 64), call(0, 4, 64, layer=1)
    assert cycles(program(copy)) == COPY  # vector work on data in place
    assert cycles(program(copy, again)) == 2 * COPY
    assert cycles(program(product(), copy)) == 100 + TILE + COPY  # the same layer
    assert cycles(program(product(), product(1))) == 2 * (100 + TILE)
    # Behind a wait for another core it is a launch; behind one for a post of its own core it is not.
    own = program(Post(5), wait(1, 5), copy)
    assert cycles(own) == COPY
    other = program(send(RIGHT, 16), wait(CoreInt(("nc",), (0, 1, 1, 1))), copy)
    assert cycles(other) == 4 + 1 + 4 + 1 + 100 + COPY
    for p in (own, other):
        assert layer_times(p).total["launch_cycles"] == simulate(p).total["critical_path"].get("launch", 0)


def test_threads_share_a_core():
    # One kernel at a time; a thread that sends does not hold up the one that computes.
    p = program()
    two = dataclasses.replace(p, roles=(Role("main", (), ((product(),), (call(0, 4, 64),))),))
    assert cycles(two) == 100 + TILE + COPY
    two = dataclasses.replace(p, roles=(Role("main", (), ((product(),), (send(RIGHT, 160),))),))
    assert cycles(two) == 100 + TILE


def test_barrier():
    # To position 2 of each axis of 4: the neighbours' posts are at its port at 5, one of them waits until 6, that from
    # two hops away until 7: 7 + 1 + 4. Twice, then the release from (2, 2) over 4 hops: 13.
    p = program(Barrier((0, 1), 2))
    assert cycles(p) == slow_cycles(p) == 2 * 12 + 13
    uneven = roles(p, ((product(), Barrier((0, 1), 2)),), ((Barrier((0, 1), 2),),))
    assert cycles(uneven) == 100 + TILE + 11 + 12 + 13


def test_loops():
    body = (send(RIGHT, 160), wait(CoreInt(("nc",), (0, 1, 1, 1))), product(), product(1))
    round_ = 200 + 2 * TILE
    for rounds in (0, 1, 3, 8, 20, 1000):
        found = simulate(program(Loop(body, rounds)))
        # A round of column 0 has 10 packets to send besides; each column is 9 cycles behind the one to its left.
        assert found.total["cycles"] == rounds * (round_ + 10) + 9 * min(rounds, 3)
        assert found.total["extrapolated"] == (rounds > 8)
        if rounds <= 8:
            assert found.total["cycles"] == slow_cycles(program(Loop(body, rounds)))
    nest = simulate(program(Loop((Loop((product(), product(1)), 10), call(0, 4, 64, layer=2)), 10)))
    assert nest.total["cycles"] == 10 * (10 * round_ + COPY) and nest.total["extrapolated"]
    assert [x["cycles"] for x in nest.layers] == [100 * (100 + TILE), 100 * (100 + TILE), 10 * COPY]


def test_deadlock_is_refused():
    with pytest.raises(Deadlock, match="semaphore 3 has 0, needs 1") as e:
        simulate(program(wait(1)))
    assert e.value.amounts["waiting_threads"] == 16


def transposed():
    source = Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 16)))
    x = movement((64, 64), source, (COL, ROW), (64, 64), source)
    return program(
        Push(0, 1, 0, 3, 0), Arrive(0, 3, 0), product(), Barrier((0, 1), 2, 1), Push(0, 1, 0, 4, 1), Arrive(0, 4, 1),
        call(1, 8, 64, layer=1), exchanges=(x,), layers=2,
    )  # fmt: skip


def test_a_plain_simulation_of_the_same_rules_agrees():
    p = transposed()
    found = simulate(p)
    assert found.total["cycles"] == slow_cycles(p)
    assert sum(x["cycles"] for x in found.layers) == found.total["cycles"]
    for machine in (dataclasses.replace(SQUARE, multicast="none"), dataclasses.replace(SQUARE, hop_cycles=3)):
        moved = dataclasses.replace(p, machine=machine.to_dict())
        assert simulate(moved).total["cycles"] == slow_cycles(moved) == Simulator(p).cycles(machine)


@pytest.mark.parametrize("places", [24, 3, 1])
def test_two_orders_of_ways_share_links_but_no_buffers(places):
    """A transpose by rows first and one by columns first at the same time, as messages of many packets and as trees."""
    source = Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 16)))
    moves = tuple(movement((64, 64), source, needs, (64, 64), source) for needs in ((COL, ROW), (ROW, COL)))
    machine = dataclasses.replace(SQUARE, virtual_channels=1, channel_packets=places)
    for first, second in ((False, True), (True, True), (True, False)):
        threads = (
            (Push(0, 1, 0, 3, 0, by_columns=first), Arrive(0, 3, 0), product(), Push(0, 1, 1, 5, 1, by_columns=first),
             Arrive(1, 5, 1)),
            (Push(0, 1, 1, 4, 0, by_columns=second), Push(0, 1, 0, 6, 0, by_columns=second), Arrive(1, 4, 0)),
        )  # fmt: skip
        p = dataclasses.replace(roles(program(exchanges=moves, layers=2), threads), machine=machine.to_dict())
        assert simulate(p).total["cycles"] == slow_cycles(p)


def random_program(rng: np.random.Generator, products: float = 0.0):
    """Two threads that send, wait and compute three layers; `products`: how often the work is like a GEMM."""
    threads = []
    semaphores = iter(range(5, 16))
    for _ in range(2):
        commands = []
        for layer in range(3):
            s = next(semaphores)
            axis, mode = str(rng.choice(["nr", "nc"])), str(rng.choice(["*", "="]))
            value = 0 if mode == "*" else int(rng.integers(0, 4))
            commands += [send((To(axis, mode, value),), int(rng.integers(1, 900)), s, layer)]
            counts = (4,) * 4 if mode == "*" else tuple(4 if i == value else 0 for i in range(4))
            commands += [wait(CoreInt((axis,), counts), s, layer)]
            like_gemm = products and rng.random() < products
            commands += [product(layer) if like_gemm else call(0, int(rng.integers(1, 9)), 64, layer=layer)]
        threads.append(tuple(commands))
    return dataclasses.replace(program(layers=3), roles=(Role("main", (), tuple(threads)),))


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_agree_with_the_plain_simulation(seed):
    p = random_program(np.random.default_rng(seed), products=0.5)
    assert cycles(p) == slow_cycles(p)


def test_records_are_plain_and_the_trace_is_valid():
    p = transposed()
    found = simulate(p)
    json.dumps([found.layers, found.total, found.resources])
    assert found.path[0].begin == 0 and found.path[-1].end == found.total["cycles"]
    assert all(a.end == b.begin for a, b in zip(found.path, found.path[1:], strict=False))
    t = json.loads(json.dumps(trace_events(p, found)))["traceEvents"]
    named = {(e["pid"], e["tid"]) for e in t if e["ph"] == "M" and e["name"] == "thread_name"}
    slices = [e for e in t if e["ph"] == "X"]
    assert {e["ph"] for e in t} == {"M", "X"} and slices
    for e in slices:
        assert e["ts"] >= 0 and e["dur"] > 0 and e["name"] and (e["pid"], e["tid"]) in named
    last: dict = {}
    for e in slices:  # the slices of a track do not overlap
        assert e["ts"] >= last.get((e["pid"], e["tid"]), 0) - 1e-9
        last[e["pid"], e["tid"]] = e["ts"] + e["dur"]


def test_links_carry_what_the_closed_form_says():
    from d1rt.linkload import Fabric, pushed

    p = transposed()
    net = Simulator(p)._simulate(SQUARE, False).net
    want = load(pushed(p.exchanges[0], 4, np.ones(16, bool), SQUARE), Fabric.of(SQUARE))
    right = net.links[:, 1].reshape(2, 6, 4, 4)[0, 0]
    # Besides the movement, twice: three posts along each row to column 2, and one tree.
    assert (right >= 2 * want.right).all() and (right - 2 * want.right).sum() <= 4 * 3 + 3
