"""The chooser against brute force, and against an integer program solved by HiGHS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from d1c.analysis.choose import cheapest, total


def _random_graph(rng: np.random.Generator) -> tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray]]:
    n = int(rng.integers(1, 7))
    sizes = [int(rng.integers(1, 5)) for _ in range(n)]
    costs = [rng.integers(0, 20, s).astype(float) for s in sizes]
    density = rng.random()
    edges = {
        (i, j): rng.integers(0, 20, (sizes[i], sizes[j])).astype(float)
        for i, j in itertools.combinations(range(n), 2)
        if rng.random() < density
    }
    if rng.random() < 0.3:  # some that may not be, never all
        for e in edges.values():
            e[1:, 1:][rng.random(e[1:, 1:].shape) < 0.3] = np.inf
    return costs, edges


def _brute(costs: list[np.ndarray], edges: dict[tuple[int, int], np.ndarray]) -> float:
    return min(total(costs, edges, p) for p in itertools.product(*(range(len(c)) for c in costs)))


def test_brute_force() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        costs, edges = _random_graph(rng)
        found = cheapest(costs, edges)
        assert found.exact
        assert found.cost == _brute(costs, edges) == total(costs, edges, found.picks)


def test_small_tables_give_a_legal_and_near_assignment() -> None:
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(60):
        costs, edges = _random_graph(rng)
        found = cheapest(costs, edges, most=8)
        best = _brute(costs, edges)
        assert found.cost == total(costs, edges, found.picks) >= best
        assert not found.exact or found.cost == best
        if np.isfinite(found.cost):
            ratios.append(found.cost / max(best, 1))
    assert np.mean(ratios) < 1.15


def integer_program(costs: list[np.ndarray], edges: dict[tuple[int, int], np.ndarray]) -> float:
    """The same minimum by scipy's HiGHS: a binary per candidate, a relaxed one per pair of candidates."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    first = np.cumsum([0, *(len(c) for c in costs)])
    objective = [*costs]
    rows, cols, data, value, row = [], [], [], [], 0
    for i, c in enumerate(costs):
        rows += [row] * len(c)
        cols += range(first[i], first[i + 1])
        data += [1.0] * len(c)
        value.append(1.0)
        row += 1
    at = int(first[-1])
    for (i, j), e in edges.items():
        objective.append(e.reshape(-1))
        number = at + np.arange(e.size).reshape(e.shape)
        at += e.size
        for variable, lines in ((i, number), (j, number.T)):
            for k, line in enumerate(lines):
                rows += [row] * (len(line) + 1)
                cols += [*line, first[variable] + k]
                data += [1.0] * len(line) + [-1.0]
                value.append(0.0)
                row += 1
    weight = np.concatenate(objective)
    solved = milp(
        weight,
        constraints=LinearConstraint(coo_array((data, (rows, cols)), shape=(row, at)).tocsr(), value, value),
        integrality=(np.arange(at) < first[-1]).astype(int),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    assert solved.success, solved.message
    return float(solved.fun)


def test_integer_program_on_a_residual_chain() -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(3)
    n, k = 14, 5
    costs = [rng.random(k) * 100 for _ in range(n)]
    edges = {(i, i + 1): rng.random((k, k)) * 100 for i in range(n - 1)}
    edges |= {(i, i + 3): rng.random((k, k)) * 100 for i in range(0, n - 3, 3)}
    found = cheapest(costs, edges)
    assert found.exact
    assert found.cost == pytest.approx(integer_program(costs, edges), abs=1e-6)
