"""Who precedes whom: the tree of a barrier, and what posts and waits of a core's threads say about its barriers."""

from __future__ import annotations

import numpy as np
import pytest

from d1c.target.barrier import barrier_axes, levels, root
from d1c.target.machine import machine
from d1c.target.mesh import CoreInt, Mesh
from d1c.target.order import events
from d1c.target.program import Barrier, Command, Free, Loop, Post, Role, To, Wait

ONE = CoreInt.const(1)
MEET = Barrier((8, 9), 10)


@pytest.mark.parametrize("axes", [machine("test").axes, (("r", 3), ("c.0", 2), ("c.1", 4)), (("r", 1), ("c", 1))])
def test_every_core_reaches_the_root_in_the_middle(axes: tuple[tuple[str, int], ...]) -> None:
    mesh = Mesh(axes)
    posts = {}
    for _, cores, to in levels(mesh):
        posts.update({int(a): int(b) for a, b in zip(cores, to, strict=True) if a != b})
    assert set(posts) == set(range(mesh.cores)) - {root(mesh)}
    for core in range(mesh.cores):
        steps = 0
        while core in posts:
            core, steps = posts[core], steps + 1
        assert core == root(mesh) and steps <= len(barrier_axes(mesh))
    middle = [mesh.parts(a) // 2 for a in barrier_axes(mesh)]
    assert [int(mesh.position(a, np.array([root(mesh)]))[0]) for a in barrier_axes(mesh)] == middle


def order(*threads: tuple[Command, ...], others: tuple[Role, ...] = ()) -> list[tuple[int, int, int]]:
    """(number, after, before) of every Free, by number."""
    found = events(Role("all", (), threads), others)
    return sorted((e.command.buffers[0], e.after, e.before) for e in found if isinstance(e.command, Free))


def test_posts_and_waits_order_commands_round_barriers() -> None:
    compute = (Free((0,)), Post(1), Free((1,)), Wait(2, ONE, relative=True), Free((2,)))
    meet = (Free((3,)), Wait(1, ONE, relative=True), MEET, Post(2), Free((4,)), MEET)
    # 1 and 2 are over before no barrier of which the thread knows; 2 follows the first by the second semaphore
    assert order(compute, meet) == [(0, 0, 0), (1, 0, 2), (2, 1, 2), (3, 0, 0), (4, 1, 1)]


def test_rounds_of_a_loop_follow_each_other() -> None:
    compute = (Loop((Free((0,)), Post(1), Wait(2, ONE, relative=True)), 5),)
    meet = (Loop((Wait(1, ONE, relative=True), MEET, Post(2)), 5),)
    assert order(compute, meet) == [(0, 0, 0), (0, 1, 1)]


@pytest.mark.parametrize("spoilt", ["remote", "two posters", "other role"])
def test_semaphores_that_others_count_tell_nothing(spoilt: str) -> None:
    to = (To("nr", "=", 0),)
    compute = (Free((0,)), Post(1, to if spoilt == "remote" else ()))
    third = ((Post(1),),) if spoilt == "two posters" else ()
    others = (Role("other", (), ((Post(1, to),),)),) if spoilt == "other role" else ()
    assert order(compute, (Wait(1, ONE), MEET), *third, others=others) == [(0, 0, 1)]
    assert order(compute[:1] + (Post(1),), (Wait(1, ONE), MEET)) == [(0, 0, 0)]
