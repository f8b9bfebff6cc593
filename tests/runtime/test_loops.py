"""Loops in programs: both engines against numpy, in several orders; broken loops are refused."""

from __future__ import annotations

import numpy as np
import pytest

import d1rt
from d1c.target.program import Program
from tests.runtime.loop_programs import doubling, doubling_reference, halo_loop, nested, nested_reference, ring
from tests.runtime.programs import halo_reference

X = np.random.default_rng(0).normal(size=16).astype(np.float32)
ENGINES = [("numpy", None), ("numpy", 1), ("numpy", 2)]


def run(p: Program, engine: str, shuffle: int | None, threads: int | None = None, **inputs: np.ndarray) -> np.ndarray:
    with d1rt.load(p) as loaded:
        return loaded.run(inputs, engine=engine, shuffle=shuffle, threads=threads)["y"]


def shifted(x: np.ndarray, rounds: int) -> np.ndarray:
    return np.roll(x.reshape(2, 2, 4), rounds, axis=1).reshape(16)


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_counted_loops(engine: str, shuffle: int | None, rounds: int) -> None:
    np.testing.assert_array_equal(run(ring(rounds), engine, shuffle, x=X), shifted(X, rounds))
    np.testing.assert_array_equal(run(halo_loop(rounds), engine, shuffle, x=X), halo_reference(X, rounds))


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize("trips", [0, 1, 3, 100])
@pytest.mark.parametrize("first", [1.0, 600.0, 5000.0])
def test_the_data_says_how_many_rounds(engine: str, shuffle: int | None, trips: int, first: float) -> None:
    x = np.array([first, 2, 3, 4], np.float32)
    np.testing.assert_array_equal(run(doubling(trips), engine, shuffle, x=x), doubling_reference(x, trips))


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize(("outer", "inner"), [(0, 3), (3, 0), (1, 1), (3, 2), (2, 4)])
def test_nested_loops(engine: str, shuffle: int | None, outer: int, inner: int) -> None:
    np.testing.assert_array_equal(run(nested(outer, inner), engine, shuffle, x=X), nested_reference(X, outer, inner))
