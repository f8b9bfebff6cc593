"""The micro-benchmark measures work that is really done."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.bench.bench_native import BLOCKS, MANY, descriptors, medians, products


def test_every_descriptor_is_executed() -> None:
    keep: list[Any] = []
    runs, count = descriptors(keep)
    rows = next(x for x in keep if isinstance(x, np.ndarray) and x.ndim == 3)
    rows[0] = np.random.default_rng(0).integers(0, 256, rows[0].shape)
    for run in runs.values():
        run()
    np.testing.assert_array_equal(rows[1], rows[0])
    assert set(count.values()) == {MANY}
    assert all(0 < s < 1 for s in medians(runs, 1).values())


def test_flops_are_those_of_the_products() -> None:
    runs, flops = products(False, keep := [])
    for m, n, k in BLOCKS:
        assert flops[f"{m} x {n} x {k}"] % (2 * m * n * k) == 0
    assert set(runs) == set(flops) and len(keep) > 4
