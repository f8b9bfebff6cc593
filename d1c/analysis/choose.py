"""The cheapest assignment of a graph of choices: exact min-sum by variable elimination.

A variable has a vector of costs, one per candidate; a pair of variables that touch has a matrix of costs. Eliminating a
variable replaces all tables that it is in by one over its neighbours, so the work grows with the domain to the power of
the graph's width, which is 2 for residual networks. Where a table would become too large, one of its variables
is held at its best known candidate for this round, and the rounds take turns: then the result is a local optimum, and
`exact` says so.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TABLE = 1 << 22
"""Entries of the largest table that elimination makes: 32 MB."""
ROUNDS = 6
"""Of improvement, at most, where elimination is not exact."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Per variable the number of its candidate; the sum of all costs; whether no other assignment is cheaper."""

    picks: tuple[int, ...]
    cost: float
    exact: bool


def cheapest(costs: Sequence[np.ndarray], edges: Mapping[tuple[int, int], np.ndarray], most: int = TABLE) -> Choice:
    """The assignment of least cost. `costs` [variables] of [candidates]; `edges`: (i, j), i < j, to [candidates of i,
    candidates of j]. inf is a candidate or a pair that may not be. Ties go to the first candidates."""
    exact, picks = _eliminate(costs, edges, None, most)
    cost = total(costs, edges, picks)
    if exact:
        return Choice(picks, cost, True)
    for round_ in range(ROUNDS):
        _, found = _eliminate(costs, edges, picks, most, round_)
        value = total(costs, edges, found)
        if value < cost:
            picks, cost = found, value
        elif round_ > 1:
            break
    return Choice(picks, cost, False)


def total(costs: Sequence[np.ndarray], edges: Mapping[tuple[int, int], np.ndarray], picks: Sequence[int]) -> float:
    """The cost of an assignment."""
    own = sum(float(c[p]) for c, p in zip(costs, picks, strict=True))
    return own + sum(float(e[picks[i], picks[j]]) for (i, j), e in edges.items())


def _eliminate(
    costs: Sequence[np.ndarray],
    edges: Mapping[tuple[int, int], np.ndarray],
    known: Sequence[int] | None,
    most: int,
    turn: int = 0,
) -> tuple[bool, tuple[int, ...]]:
    """Eliminate all variables, then read the assignment backwards. `known`: an assignment that variables are held at
    where a table would take more than `most` entries; without one, they are held where their own cost is least. `turn`:
    which of the variables of such a table."""
    domain = [len(c) for c in costs]
    tables: list[dict[int, tuple[tuple[int, ...], np.ndarray]]] = [{} for _ in costs]  # by variable: tables, by number
    near: list[set[int]] = [set() for _ in costs]
    held: dict[int, int] = {}
    count = 0

    def add(scope: tuple[int, ...], table: np.ndarray) -> None:
        nonlocal count
        for v in scope:
            tables[v][count] = (scope, table)
            near[v] |= {w for w in scope if w != v}
        count += 1

    for v, c in enumerate(costs):
        add((v,), np.asarray(c, np.float64))
    for (i, j), e in sorted(edges.items()):
        add((i, j), np.asarray(e, np.float64))
    trace: list[tuple[int, tuple[int, ...], np.ndarray]] = []
    keys = [_key(v, near, domain) for v in range(len(costs))]
    heap = sorted(keys)  # with some that are out of date
    left = set(range(len(costs)))
    while left:
        key = heapq.heappop(heap)
        v = key[-1]
        if v not in left or key != keys[v]:
            continue
        changed = set(near[v])
        while _size(v, near, domain) > most:
            wide = sorted((w for w in near[v] if domain[w] > 1), key=lambda w: (-domain[w], w))
            if not wide:
                break
            w = wide[turn % len(wide)]
            held[w] = known[w] if known is not None else int(np.argmin(costs[w]))
            for number, (scope, table) in list(tables[w].items()):
                at = scope.index(w)
                cut = table.take([held[w]], axis=at)
                for u in scope:
                    tables[u][number] = (scope, cut)
            domain[w] = 1
            changed |= near[w]
        scope = (v, *sorted(near[v]))
        joint = np.zeros([domain[w] for w in scope])
        for inner, table in tables[v].values():
            order = sorted(range(len(inner)), key=lambda k: scope.index(inner[k]))
            shape = [domain[w] if w in inner else 1 for w in scope]
            joint += table.transpose(order).reshape(shape)
        trace.append((v, scope[1:], joint))
        for w in near[v]:
            tables[w] = {n: t for n, t in tables[w].items() if v not in t[0]}
            near[w].discard(v)
        if len(scope) > 1:
            add(scope[1:], joint.min(axis=0))
        left.remove(v)
        for w in (changed | set().union(*(near[w] for w in scope[1:]))) & left:
            keys[w] = _key(w, near, domain)
            heapq.heappush(heap, keys[w])
    picks = [0] * len(costs)
    for v, others, joint in reversed(trace):
        picks[v] = int(np.argmin(joint[(slice(None), *(picks[w] for w in others))]))
    return not held, tuple(held.get(v, p) for v, p in enumerate(picks))


def _key(v: int, near: Sequence[set[int]], domain: Sequence[int]) -> tuple[int, int, int]:
    """The variable of the least is eliminated next."""
    return _fill(v, near), _size(v, near, domain), v


def _size(v: int, near: Sequence[set[int]], domain: Sequence[int]) -> int:
    return domain[v] * math.prod(domain[w] for w in near[v])


def _fill(v: int, near: Sequence[set[int]]) -> int:
    """How many pairs of neighbours become neighbours."""
    around = sorted(near[v])
    return sum(w not in near[u] for k, u in enumerate(around) for w in around[k + 1 :])
