"""The network at message level: times by hand, and link use against the closed form's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from d1c.target.machine import PRESETS
from d1rt.linkload import Flows, load
from d1rt.network import Network
from tests.runtime.test_timing import BENT, SQUARE

TWO = dataclasses.replace(
    PRESETS["test"], name="two", die_rows=1, die_cols=2, site_rows=4, site_cols=4, dead=(), grid_rows=4, grid_cols=4,
    row_factors=(4,), col_factors=(4,),
)  # fmt: skip
"""Two dies of 4 x 4 sites side by side: cores 0 to 15 row by row, then 16 to 31."""


def sent(machine, *messages):
    """Arrivals of messages (start, source, targets, packets)."""
    start, src, to, packets = zip(*messages, strict=True)
    first = np.cumsum([0, *map(len, to)])
    found = Network(machine).send(
        np.array(start), np.array(src), first, np.array([t for ts in to for t in ts]), np.array(packets)
    )
    return found.tolist()


def test_a_message_by_itself():
    # 4 to inject, a hop for each site, 4 to eject, then a cycle for each packet.
    assert sent(SQUARE, (0, 0, [15], 5)) == [4 + 6 + 4 + 5]
    assert sent(SQUARE, (10, 5, [5], 3)) == [10 + 8 + 3]  # to itself: the ports only
    # From die to die: 200 cycles more. The edge passes 15 packets a cycle: the link's packet is later.
    assert sent(TWO, (0, 0, [16 + 3], 5)) == [4 + 7 + 200 + 4 + 5]


def test_who_asks_first_is_served_first():
    # Both want the link from site 1 to site 2: message 0 is there at 5 with 10 packets, message 1 at 4.
    assert sent(SQUARE, (0, 0, [2], 10), (0, 1, [2], 7)) == [4 + 2 + 4 + 10 + 6, 4 + 1 + 4 + 7]
    # The same cycle: by number. One port to send, one to receive.
    assert sent(SQUARE, (0, 0, [1], 10), (0, 0, [4], 3)) == [19, 10 + 9 + 3]
    assert sent(SQUARE, (0, 1, [0], 10), (0, 4, [0], 3)) == [19, 19 + 3]
    # A message on its way from far does not hold back one that is near: both use the link from site 2 to site 3.
    far = sent(TWO, (0, 16 + 3, [0], 5), (1, 1, [0], 5))
    assert far == [4 + 7 + 200 + 4 + 5, 1 + 4 + 1 + 4 + 5]


def test_a_multicast_is_a_tree():
    tree = sent(SQUARE, (0, 5, [0, 2, 3, 7, 10, 13, 5], 4))
    hops = [2, 2, 3, 2, 2, 2, 0]
    assert tree == [12 + h for h in hops]
    # Without trees one after the other.
    alone = dataclasses.replace(SQUARE, multicast="none")
    assert sent(alone, (0, 5, [0, 2], 4)) == [14, 18]


def test_a_die_edge_is_shared():
    # 4 links of 1 packet a cycle share an edge of half a packet a cycle.
    slow = dataclasses.replace(TWO, die_edge_bytes_per_cycle=32)
    times = sent(slow, *((0, 4 * r + 3, [16 + 4 * r], 10) for r in range(4)))
    assert times == [4 + 1 + 200 + 4 + 20 * (r + 1) for r in range(4)]


def test_columns_first_is_rows_first_on_the_machine_turned_over(rng):
    # Core 4 r + c of the square stands where core 4 c + r does; of two dies side by side two on top of each other.
    over = dataclasses.replace(TWO, die_rows=2, die_cols=1)
    for machine, turned, dies in ((SQUARE, SQUARE, 1), (TWO, over, 2)):
        number = np.arange(16 * dies).reshape(dies, 4, 4).transpose(0, 2, 1).ravel()
        src = rng.integers(0, 16 * dies, 200)
        # Receivers in one column of sites, turned over in one row: such trees have no trunk beside which others stand.
        targets = np.concatenate([16 * rng.integers(dies) + rng.integers(4) + 4 * rng.permutation(4)[:3] for _ in src])
        start, first, packets = rng.integers(0, 50, 200), np.arange(0, 601, 3), rng.integers(1, 40, 200)
        rows, columns = Network(machine), Network(turned)
        want = rows.send(start, src, first, targets, packets)
        # Who comes first where two want a link in one cycle may differ: the last arrivals hardly do.
        got = columns.send(start, number[src], first, number[targets], packets, by_columns=True)
        assert abs(got.max() - want.max()) <= 0.05 * want.max() and abs(got.mean() - want.mean()) <= 0.02 * want.mean()
        for a, b in zip(rows.links, columns.links[[2, 3, 0, 1]], strict=True):
            assert np.array_equal(a, b.T)


def test_a_tree_along_columns_has_one_trunk_for_rows_side_by_side():
    def tree(machine, src, to, packets=4):
        net = Network(machine)
        arrival = net.send(
            np.zeros(1), np.array([src]), np.array([0, len(to)]), np.array(to), np.array([packets]), by_columns=True
        )
        right, left, down, up = (x // packets for x in net.links)
        return arrival.tolist(), right, left, down, up

    # Rows 0 to 2 of the square: the trunk is in row 1, not at the border. From core 12 (row 3, column 0) up to row 1,
    # along it to column 3, from there up to core 3 and down to core 11; core 6 is on the trunk.
    arrival, right, left, down, up = tree(SQUARE, 12, [3, 11, 6])
    assert arrival == [12 + 2 + 3 + 1, 12 + 2 + 3 + 1, 12 + 2 + 2]
    assert np.argwhere(right).tolist() == [[1, 0], [1, 1], [1, 2]] and not left.any()
    assert np.argwhere(up).tolist() == [[1, 3], [2, 0], [3, 0]] and np.argwhere(down).tolist() == [[1, 3]]
    # The sender's row, where it is one of the band's and not at its border; of others one in turn; with a gap two.
    assert np.argwhere(tree(SQUARE, 8, [2, 6, 10, 14])[1]).tolist() == [[2, 0], [2, 1]]
    assert np.argwhere(tree(SQUARE, 12, [2, 6])[1]).tolist() == [[1, 0], [1, 1]]
    assert np.argwhere(tree(SQUARE, 12, [2, 10])[1]).tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    # Past a die's border a band ends: two dies on top of each other, in the other die the same row as in the sender's.
    over = dataclasses.replace(TWO, die_rows=2, die_cols=1)
    assert np.argwhere(tree(over, 8, [1, 5, 9, 13, 17, 21, 25, 29])[1]).tolist() == [[2, 0], [6, 0]]


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("multicast", ["tree", "none"])
@pytest.mark.parametrize("base", [SQUARE, BENT, PRESETS["test"]])
def test_links_carry_what_the_closed_form_says(rng, base, multicast, by_columns):
    machine = dataclasses.replace(base, multicast=multicast)
    fan, classes, messages = 6, 4, 60
    classes_of = [rng.choice(machine.cores, fan, replace=False) for _ in range(classes)]
    src, cls = rng.integers(0, machine.cores, messages), rng.integers(0, classes, messages)
    packets = rng.integers(1, 9, messages)
    ports = packets + rng.integers(0, 5, messages)
    net = Network(machine)
    want = load(
        Flows(src, cls, packets, ports, packets * 64, np.concatenate(classes_of), np.repeat(np.arange(classes), fan)),
        net.fabric, by_columns,
    )  # fmt: skip
    first = np.arange(0, fan * messages + 1, fan)
    targets = np.concatenate([classes_of[c] for c in cls])
    arrival = net.send(rng.integers(0, 50, messages), src, first, targets, packets, ports, by_columns)
    right, left, down, up = net.links
    assert np.array_equal(right, want.right) and np.array_equal(down, want.down)
    assert np.array_equal(left[:, 1:], want.left[:, :-1]) and np.array_equal(up[1:], want.up[:-1])
    assert np.array_equal(net.ports[0], want.sent) and np.array_equal(net.ports[1], want.received)
    assert net.edges.max(initial=0) == want.edge_packets
    assert arrival.max() >= want.cycles - want.distance + 8 and (arrival > 8).all()
    again = net.send(np.zeros(1), src[:1], first[:2], targets[:fan], packets[:1])
    net.reset()
    assert (again >= net.send(np.zeros(1), src[:1], first[:2], targets[:fan], packets[:1])).all()
