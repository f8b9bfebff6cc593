"""Ways round dead routers, each walked link by link: live routers only, no cycle of waiting links, every load exact."""

from __future__ import annotations

import dataclasses
from collections import Counter
from graphlib import TopologicalSorter
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from d1c.errors import UsageError
from d1c.target.machine import PRESETS, Machine, Mask, random_mask
from d1rt.linkload import Fabric, Flows, load
from d1rt.network import Network
from tests.runtime.test_timing import loaded

STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def broken(dies: tuple[int, int], sites: tuple[int, int], dead: Mask, multicast: str = "tree") -> Machine:
    """All live sites are cores, one after the other: the grid has one row."""
    cores = sites[0] * sites[1] - max(map(len, dead))
    return dataclasses.replace(
        PRESETS["test"], name="broken", die_rows=dies[0], die_cols=dies[1], site_rows=sites[0], site_cols=sites[1],
        dead=dead, grid_rows=1, grid_cols=cores, row_factors=(1,), col_factors=(cores,), dead_router_forwards=False,
        multicast=multicast,
    )  # fmt: skip


def random_machines(count: int) -> list[Machine]:
    """Masks that leave every die in one piece."""
    shapes = [((1, 1), (4, 4), 5), ((1, 1), (6, 7), 6), ((2, 2), (4, 4), 3), ((1, 3), (3, 4), 2), ((3, 1), (5, 3), 4)]
    found: list[Machine] = []
    for seed in range(10 * count):
        dies, sites, dead = shapes[seed % len(shapes)]
        try:
            found.append(broken(dies, sites, random_mask(seed, dies[0] * dies[1], *sites, dead)))
        except UsageError:
            continue
        if len(found) == count:
            break
    return found


# A corner that only leads out east, west, east, and its mirror images: more turns than two stretches have.
CORNER = (((0, 2), (1, 0), (1, 2), (2, 2), (3, 1), (4, 4)),)
MACHINES = [
    *random_machines(20),
    broken((1, 1), (6, 6), CORNER),
    broken((1, 1), (6, 6), (tuple((r, 5 - c) for r, c in CORNER[0]),)),
    broken((1, 1), (6, 6), (tuple((5 - r, c) for r, c in CORNER[0]),)),
    broken((1, 1), (6, 6), (tuple((c, r) for r, c in CORNER[0]),)),
    broken((1, 1), (6, 5), (((2, 0), (3, 4)),)),
]


def dead_routers(m: Machine) -> set[tuple[int, int]]:
    return {
        (die // m.die_cols * m.site_rows + r, die % m.die_cols * m.site_cols + c)
        for die, sites in enumerate(m.dead)
        for r, c in sites
    }


def cost(m: Machine, a: tuple[int, int], b: tuple[int, int]) -> int:
    dies = [(r // m.site_rows, c // m.site_cols) for r, c in (a, b)]
    return m.hop_cycles + (m.die_crossing_cycles if dies[0] != dies[1] else 0)


Way = list[tuple[tuple[int, int], tuple[int, int], int]]


def ways(fabric: Fabric) -> dict[tuple[int, int], Way]:
    """From every core to every core: the links (from site, to site, channel), and that their cycles add up."""
    assert fabric.detours is not None
    cores, cols = len(fabric.row), fabric.shape[1]
    src, dst = (a.reshape(-1) for a in np.indices((cores, cores)))
    found: dict[tuple[int, int], Way] = {}
    distance = fabric.distance(src, dst)
    for part, made in fabric.detours.branches(src, np.arange(len(src)), np.arange(len(src) + 1), dst):
        for i, m in enumerate(range(part.start, part.stop)):
            way: Way = []
            for b in range(made.first[i], made.first[i + 1]):
                r, c = divmod(int(made.link[b]) % (fabric.shape[0] * cols), cols)
                dr, dc = STEPS[made.link[b] // (fabric.shape[0] * cols)]
                way.append(((r, c), (r + dr, c + dc), int(made.channel[b])))
                assert made.parent[b] == (b - 1 if b > made.first[i] else -1)
            cycles = sum(cost(fabric.machine, a, b) for a, b, _ in way)
            assert not way or made.cycles[made.first[i + 1] - 1] == cycles
            assert distance[m] == (cycles + fabric.overhead if way else 0)
            found[int(src[m]), int(dst[m])] = way
    return found


@pytest.mark.parametrize("m", MACHINES, ids=range(len(MACHINES)))
def test_every_way_is_live_short_and_free_of_cycles(m: Machine) -> None:
    fabric, dead = Fabric.of(m), dead_routers(m)
    place = [(int(r), int(c)) for r, c in zip(fabric.row, fabric.col, strict=True)]
    waits: dict[object, set[object]] = {}
    found = ways(fabric)
    for (src, dst), way in found.items():
        stops = [place[src], *(b for _, b, _ in way)]
        assert [a for a, _, _ in way] == stops[:-1] and stops[-1] == place[dst]
        assert not dead & set(stops) and len(set(stops)) == len(stops)
        channels = [c for *_, c in way]
        assert channels == sorted(channels) and set(channels) <= set(range(m.virtual_channels))
        for one, next_ in pairwise(way):
            waits.setdefault(next_, set()).add(one)
        (r, c), (to_r, to_c) = place[src], place[dst]
        row_first = [(r, x) for x in range(c, to_c, 1 if to_c > c else -1)]
        row_first += [(y, to_c) for y in range(r, to_r, 1 if to_r > r else -1)] + [(to_r, to_c)]
        if not dead & set(row_first):
            assert stops == row_first
    tuple(TopologicalSorter(waits).static_order())  # raises where links wait for each other in a circle
    shortest = _shortest(fabric, dead)
    lengths = np.array(
        [[sum(cost(m, a, b) for a, b, _ in found[s, d]) for d in range(m.cores)] for s in range(m.cores)]
    )
    assert (lengths >= shortest).all() and (lengths == shortest).mean() > 0.75


@pytest.mark.parametrize("m", MACHINES, ids=range(len(MACHINES)))
def test_a_tree_leaves_no_place_twice_by_one_link(m: Machine) -> None:
    """Whatever the channel: the network model has one branch a link there, and would lose a message."""
    fabric = Fabric.of(m)
    assert fabric.detours is not None
    every = np.arange(m.cores)
    cells = fabric.shape[0] * fabric.shape[1]
    for _, made in fabric.detours.branches(every, np.zeros(m.cores, int), np.array([0, m.cores]), every):
        for a, b in pairwise(made.first):
            left = list(zip(made.parent[a:b].tolist(), (made.link[a:b] // cells).tolist(), strict=True))
            assert len(set(left)) == len(left)


def _shortest(fabric: Fabric, dead: set[tuple[int, int]]) -> np.ndarray:
    rows, cols = fabric.shape
    links = [
        (r * cols + c, (r + dr) * cols + c + dc, cost(fabric.machine, (r, c), (r + dr, c + dc)))
        for r in range(rows)
        for c in range(cols)
        for dr, dc in STEPS
        if 0 <= r + dr < rows and 0 <= c + dc < cols and not {(r, c), (r + dr, c + dc)} & dead
    ]
    a, b, w = np.array(links).T
    at = fabric.row * cols + fabric.col
    return np.asarray(shortest_path(coo_array((w, (a, b)), (rows * cols, rows * cols)).tocsr()))[np.ix_(at, at)]


@pytest.mark.parametrize("multicast", ["tree", "none"])
@pytest.mark.parametrize("at", range(0, 25, 4))
def test_loads_are_the_ways_of_all_receivers(at: int, multicast: str, rng: np.random.Generator) -> None:
    m = dataclasses.replace(MACHINES[at], multicast=multicast)
    fabric = Fabric.of(m)
    walked = ways(fabric)
    fan, messages = min(5, m.cores), 30
    targets = np.concatenate([rng.choice(m.cores, fan, replace=False) for _ in range(6)])
    packets = rng.integers(1, 9, messages)
    flows = Flows(
        rng.integers(0, m.cores, messages), rng.integers(0, 6, messages), packets, packets, packets * 64, targets,
        np.repeat(np.arange(6), fan),
    )  # fmt: skip
    links: Counter = Counter()
    longest = 0
    for src, cls, n in zip(flows.src, flows.cls, packets, strict=True):
        taken = [walked[int(src), int(t)] for t in flows.targets[flows.classes == cls]]
        longest = max(longest, *(sum(cost(m, a, b) for a, b, _ in way) for way in taken))
        for a, b, _ in {x for way in taken for x in way} if multicast == "tree" else [x for way in taken for x in way]:
            links[a, b] += int(n)
    found = load(flows, fabric)
    assert loaded(found) == links and found.distance == longest + fabric.overhead


def test_routers_that_forward_need_no_detours() -> None:
    assert Fabric.of(PRESETS["test"]).detours is None
    assert Fabric.of(dataclasses.replace(MACHINES[0], dead_router_forwards=True)).detours is None
    assert Fabric.of(broken((1, 1), (3, 3), ((),))).detours is None


@pytest.mark.parametrize("multicast", ["tree", "none"])
def test_messages_take_the_same_links_and_their_time(multicast: str, rng: np.random.Generator) -> None:
    for base in MACHINES[::6]:
        m = dataclasses.replace(base, multicast=multicast)
        net, walked, fan, messages = Network(m), ways(Fabric.of(m)), 4, 20
        targets = np.concatenate([rng.choice(m.cores, fan, replace=False) for _ in range(messages)])
        src, packets, each = rng.integers(0, m.cores, messages), rng.integers(1, 9, messages), np.arange(messages)
        net.send(np.zeros(messages), src, np.arange(0, len(targets) + 1, fan), targets, packets)
        flows = Flows(src, each, packets, packets, packets * 64, targets, np.repeat(each, fan))
        want = load(flows, net.fabric)
        right, left, down, up = net.links
        assert np.array_equal(right, want.right) and np.array_equal(down, want.down)
        assert np.array_equal(left[:, 1:], want.left[:, :-1]) and np.array_equal(up[1:], want.up[:-1])
        assert net.edges.max(initial=0) == want.edge_packets
        # By itself a message takes the cycles of its way and its packets: a tree to all cores at once.
        net.reset()
        others = np.delete(np.arange(m.cores), src[0])
        if multicast == "tree":
            found = net.send(np.zeros(1), src[:1], np.array([0, len(others)]), others, np.array([3]))
            lengths = [sum(cost(m, a, b) for a, b, _ in walked[int(src[0]), int(t)]) for t in others]
            assert found.tolist() == [length + net.fabric.overhead + 3 for length in lengths]
