"""Whatever sites of a die are dead, and whether their routers are too: the bits of a network do not depend on it."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

import d1c
import d1rt
from d1c.errors import UsageError
from d1c.interp import evaluate
from d1c.target.embedding import embed
from d1c.target.machine import PRESETS, Machine
from d1rt.linkload import Fabric
from d1rt.timing import layer_times
from tests.runtime.test_same_bits import DIGITS, images

DIE = PRESETS["d1-die"]
SMALL = dataclasses.replace(
    DIE, name="small", die_rows=1, die_cols=2, site_rows=5, site_cols=6, dead=(), grid_rows=4, grid_cols=6,
    row_factors=(2, 2), col_factors=(2, 3),
)  # fmt: skip


def some(base: Machine, count: int, dead: int, forwards: bool = True, first: int = 1) -> list[Machine]:
    """The first `count` masks of `dead` sites a die; with dead routers those that leave a die in one piece."""
    found: list[Machine] = []
    seed = first
    while len(found) < count:
        try:
            found.append(dataclasses.replace(base.masked(seed, dead), dead_router_forwards=forwards))
        except UsageError as e:
            assert not forwards and "cut die" in str(e)
        seed += 1
    return found


@cache
def expected() -> dict[str, bytes]:
    shapes = {k: v.shape for k, v in images().items()}
    module = d1c.compile(DIGITS / "digits.onnx", target="test", precision="bf16", shapes=shapes).module("graph")
    return {name: y.tobytes() for name, y in evaluate(module, images()).items()}


def check(machine: Machine) -> None:
    shapes = {k: v.shape for k, v in images().items()}
    program = d1c.compile(DIGITS / "digits.onnx", target=machine, precision="bf16", shapes=shapes)
    sites = embed(machine).reshape(machine.dies, -1, 2)
    for die, dead in enumerate(machine.dead):
        assert not set(dead) & {(int(r), int(c)) for r, c in sites[die]}
    with d1rt.load(program.target) as loaded:
        assert {name: y.tobytes() for name, y in loaded.run(images()).items()} == expected()


@pytest.mark.parametrize("machine", some(SMALL, 8, 6), ids=range(8))
def test_random_masks(machine: Machine) -> None:
    assert machine.cores == SMALL.cores
    check(machine)


@pytest.mark.parametrize("machine", [m for dead in (7, 9, 14, 20) for m in some(SMALL, 1, dead)], ids=range(4))
def test_masks_that_take_a_smaller_grid(machine: Machine) -> None:
    assert machine.cores < SMALL.cores and machine.wanted_grid == (4, 6)
    check(machine)


@pytest.mark.parametrize("machine", some(SMALL, 4, 6, forwards=False), ids=range(4))
def test_dead_routers(machine: Machine) -> None:
    assert Fabric.of(machine).detours is not None
    check(machine)


def test_the_summary_says_that_the_grid_is_smaller() -> None:
    machine = SMALL.masked(1, 9)
    program = d1c.compile(DIGITS / "digits.onnx", target=machine, shapes={k: v.shape for k, v in images().items()})
    assert program.summary()["grid"] == [machine.grid_rows, machine.grid_cols]
    assert f"a grid of {machine.grid_rows} x {machine.grid_cols} nodes a die" in str(program)


def test_detours_take_time_and_no_more_than_that() -> None:
    machine = some(SMALL, 1, 6, forwards=False)[0]
    program = d1c.compile(DIGITS / "digits.onnx", target=machine, shapes={k: v.shape for k, v in images().items()})
    free = {**program.target.machine, "dead_router_forwards": True}
    blocked, direct = layer_times(program.target), layer_times(dataclasses.replace(program.target, machine=free))
    for key in ("compute_cycles", "launch_cycles", "packets", "noc_bytes"):
        assert blocked.total[key] == direct.total[key]
    assert blocked.total["cycles"] >= direct.total["cycles"]


@pytest.mark.slow
@pytest.mark.parametrize("machine", some(DIE, 50, 6), ids=range(50))
def test_fifty_masks_of_six(machine: Machine) -> None:
    assert machine.cores == DIE.cores
    check(machine)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [m for dead in range(9, 39, 3) for m in some(DIE, 1, dead)], ids=range(10))
def test_ten_masks_that_take_a_smaller_grid(machine: Machine) -> None:
    assert machine.cores < DIE.cores and machine.wanted_grid == (16, 22)
    check(machine)


@pytest.mark.slow
@pytest.mark.parametrize("machine", some(DIE, 10, 6, forwards=False), ids=range(10))
def test_ten_masks_with_dead_routers(machine: Machine) -> None:
    check(machine)


@pytest.mark.slow
@pytest.mark.parametrize("dead, forwards", [(6, True), (12, True), (6, False)])
def test_the_tile(dead: int, forwards: bool) -> None:
    for machine in some(PRESETS["d1-tile"], 2, dead, forwards):
        check(machine)
