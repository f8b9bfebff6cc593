"""What the benchmark scripts of time print, and the all-reduce that they measure."""

from __future__ import annotations

import pytest

import d1c
from d1c.target.machine import machine
from tests.bench.bench_allreduce import GOAL_US, normalisation
from tests.bench.bench_time_model import compared, table
from tests.bench.times import critical_path


def test_the_closed_form_is_close_to_the_events() -> None:
    """An all-reduce on a small machine, and the table's row of it."""
    small = machine("test")
    made = d1c.compile(normalisation(8 * small.cores, 64, small, "grid"), target=small, precision="f32")
    row = compared("small", made.target)
    assert 0 < row["events"] and abs(row["off"]) < 0.10
    assert row["layers_off"] <= row["layers"] <= len(made.target.layers)
    assert "| small |" in table([row])


@pytest.mark.slow
def test_an_all_reduce_over_25_dies_takes_5_us() -> None:
    """2 x 512 f32 over the whole tile, with the arithmetic on the rows before and behind it."""
    tile = machine("d1-tile")
    made = d1c.compile(normalisation(8800, 512, tile, "grid"), target=tile, precision="f32")
    cycles, path = critical_path(made.target)
    assert tile.seconds(cycles) * 1e6 <= GOAL_US
    assert any("distance" in line for line in path)
