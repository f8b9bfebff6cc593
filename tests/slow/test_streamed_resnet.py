"""ResNet-18 on small meshes whose SRAM does not hold its weights: the same bits as on a die, and behind compute."""

from __future__ import annotations

import numpy as np
import pytest

import d1c
from d1c.target.machine import machine
from d1rt.events import Simulator, simulate
from tests import networks
from tests.bench.bench_stream import ROOT, STREAM

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mesh", ["2x2", "4x4"])
def test_resnet18_is_streamed(mesh: str) -> None:
    net, target = networks.resnet18(), machine(ROOT / f"tests/bench/meshes/mesh-{mesh}.toml")
    made = d1c.compile(net, target=target)
    x = {p.name: np.random.default_rng(0).standard_normal(p.shape).astype(np.float32) for p in made.target.inputs}
    for name, want in d1c.compile(net, target="d1-die").run(x).items():
        np.testing.assert_array_equal(made.run(x)[name], want, strict=True)
    found = simulate(made.target)
    assert found.total["streamed_bytes"] > 20e6
    assert found.total["cycles"] <= 0.5 * STREAM[f"resnet18:{mesh}"][0]
    assert found.total["closed_form_cycles"] == pytest.approx(found.total["cycles"], rel=0.1)
    # What comes from outside is hidden: with endlessly fast memories it would take little less.
    values = {**target.to_dict(), "dip_bytes_per_cycle": 1 << 20, "dip_edge_bytes_per_cycle": 1 << 20}
    values |= {"dip_latency_cycles": 0, "hbm_latency_cycles": 0}
    assert found.total["cycles"] < 1.02 * Simulator(made.target).cycles(type(target).from_dict(values))
