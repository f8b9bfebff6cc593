"""What the benchmark scripts build: meshes that load, all-reduces that are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import d1c
from d1c.target.machine import machine
from tests.bench.bench_allreduce import FORMS, normalisation


@pytest.mark.parametrize("side", [2, 4, 8])
def test_meshes_are_whole_and_have_a_link_per_row(side: int) -> None:
    mesh = machine(Path(__file__).parent / f"meshes/mesh-{side}x{side}.toml")
    assert (mesh.dies, mesh.cores, mesh.node_count) == (1, side**2, side**2)
    assert mesh.dip_count * mesh.dip_edge_bytes_per_cycle == 64 * side


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_all_reduce_normalises(form: str) -> None:
    target = machine("test")
    x = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    program = d1c.compile(normalisation(64, 48, target, form), target=target, precision="f32")
    (y,) = program.run({"x": x}, engine="numpy").values()
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt((x * x).mean(0) + 1e-5), rtol=1e-5, atol=1e-6)
