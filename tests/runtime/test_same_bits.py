"""One network, one answer: the example's bits do not depend on engine, machine, grid, dead nodes, threads or order.

The reference is the graph interpreter, which knows neither cores nor kernels. test_same_bits_large.py in tests/slow has
the longer runs of the same.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import d1c
import d1rt
from d1c.interp import evaluate
from d1c.target.embedding import die_column, embed, global_position
from d1c.target.machine import PRESETS, Machine
from d1rt.engine_jit import Engine
from d1rt.jit_nest import build, dot_works
from tests.runtime.calls import different_bytes, distinct_calls

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
IMAGES = 2
TEST, DIE, TILE = PRESETS["test"], PRESETS["d1-die"], PRESETS["d1-tile"]


def grid(base: Machine, rows: tuple[int, ...], cols: tuple[int, ...]) -> Machine:
    """The machine with another logical grid, of these factors."""
    sizes = {"grid_rows": int(np.prod(rows)), "grid_cols": int(np.prod(cols))}
    return dataclasses.replace(base, row_factors=rows, col_factors=cols, **sizes)


MACHINES = {
    "test": TEST,
    "d1-die": DIE,
    "d1-tile": TILE,
    "tile of 18 x 19 a die": grid(TILE, (2, 9), (19,)),
    "tile of 16 x 20 a die": grid(TILE, (4, 4), (5, 4)),
    "tile, mask 1": TILE.masked(1),
    "tile, mask 2": TILE.masked(2),
}


@cache
def images() -> dict[str, np.ndarray]:
    return {name: x[:IMAGES] for name, x in np.load(DIGITS / "heldout.npz").items()}


@cache
def compiled(name: str) -> d1c.Program:
    shapes = {k: v.shape for k, v in images().items()}
    return d1c.compile(DIGITS / "digits.onnx", target=MACHINES[name], precision="bf16", shapes=shapes)


@cache
def expected() -> dict[str, np.ndarray]:
    return evaluate(compiled("test").module("graph"), images())


def assert_expected(outputs: dict[str, np.ndarray]) -> None:
    assert outputs.keys() == expected().keys()
    for name, want in expected().items():
        assert outputs[name].dtype == want.dtype and outputs[name].shape == want.shape
        assert np.isfinite(want.astype(np.float64)).all()
        assert outputs[name].tobytes() == want.tobytes(), name


RUNS = [
    ("test", 1, None),
    ("test", 2, 1),
    ("test", 1, 2),
    ("test", 2, 3),
    ("d1-die", 2, 1),
    ("d1-tile", 1, None),
    ("d1-tile", 2, 1),
    ("d1-tile", 1, 2),
    ("d1-tile", 2, 3),
    *((name, 2, None) for name in MACHINES if name not in PRESETS),
]


@pytest.mark.parametrize("name, threads, shuffle", RUNS)
def test_jit_engine(name: str, threads: int, shuffle: int | None) -> None:
    """Targets, grids and masks; threads of the host; orders of cores, threads and messages."""
    with d1rt.load(compiled(name).target) as loaded:
        assert_expected(loaded.run(images(), threads=threads, shuffle=shuffle))


def test_numpy_engine() -> None:
    """The definition, with a seed that also decides which message arrives when."""
    with d1rt.load(compiled("test").target) as loaded:
        assert_expected(loaded.run(images(), engine="numpy", shuffle=1))


def test_copied_multicast() -> None:
    """Every core with an SRAM of its own, instead of one copy of equal windows."""
    engine = Engine(compiled("d1-tile").target, 2, alias=False)
    assert_expected(engine.run(images()).outputs)
    engine.close()


@pytest.mark.parametrize("use_dot", [False, pytest.param(True, marks=pytest.mark.skipif(
    not dot_works(), reason="MISSING: the host has no bf16 dot product (avx512bf16)"))])  # fmt: skip
def test_the_hosts_dot_product(use_dot: bool) -> None:
    engine = Engine(compiled("d1-tile").target, 2, use_dot=use_dot)
    assert engine.kernels.dot == use_dot
    assert_expected(engine.run(images()).outputs)
    engine.close()


@pytest.mark.parametrize("name", ["test", "d1-die", "d1-tile"])
def test_every_kernel_with_its_trip_counts(name: str, rng: np.random.Generator) -> None:
    """Both engines' kernels on random operands, for every call that any core makes."""
    program = compiled(name).target
    cases = list(distinct_calls(program))
    assert {c.kernel for c in cases} == {k for k, _ in program.kernels}
    kernels = build(dict(program.kernels))
    assert [(c.kernel, c.trips) for c in cases if different_bytes(kernels, c, rng)] == []


@pytest.mark.parametrize("name", MACHINES)
def test_no_dead_node_is_used_and_sram_suffices(name: str) -> None:
    program = compiled(name).target
    machine = Machine.from_dict(program.machine)
    assert dataclasses.replace(machine, die_order="any") == MACHINES[name]
    sites = embed(machine).reshape(machine.dies, -1, 2)
    for die, dead in enumerate(machine.dead):
        assert dead and not set(dead) & {(int(r), int(c)) for r, c in sites[die]}
    rows, cols = (side.ravel() for side in np.indices((machine.die_rows, machine.die_cols)))
    places = global_position(machine).reshape(machine.dies, -1, 2)
    for die, (row, col) in enumerate(zip(rows, die_column(machine, rows, cols), strict=True)):
        dead = machine.dead[int(row) * machine.die_cols + int(col)]
        corner = np.array([row * machine.site_rows, col * machine.site_cols])
        assert not set(dead) & {(int(r), int(c)) for r, c in places[die] - corner}
    assert program.mesh.cores == machine.cores == len(np.unique(places.reshape(-1, 2), axis=0))
    # every buffer has the same address on every core, so that one number is every core's peak
    data = max(b.address + b.bytes for b in program.buffers)
    assert data <= program.info["sram_data_bytes"]
    assert program.info["sram_data_bytes"] + program.info["sram_code_bytes"] == program.info["sram_peak_bytes"]
    assert program.info["sram_peak_bytes"] <= machine.sram_bytes


def test_the_masks_differ() -> None:
    tables = [embed(MACHINES[name]).tobytes() for name in ("d1-tile", "tile, mask 1", "tile, mask 2")]
    assert len(set(tables)) == 3


@pytest.mark.parametrize("level", ["graph", "dist", "tile", "kern"])
@pytest.mark.parametrize("name", ["test", "d1-die", "d1-tile"])
def test_text_is_a_fixed_point(name: str, level: str) -> None:
    text = str(compiled(name).module(level))
    assert str(d1c.parse(text)) == text
