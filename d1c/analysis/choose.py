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
from functools import lru_cache

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
    pairs = sorted(edges)
    tables = [np.asarray(c, np.float64) for c in costs] + [np.asarray(edges[p], np.float64) for p in pairs]
    held: dict[int, int] = {}
    trace: list[tuple[_Step, np.ndarray]] = []
    for step in _steps(tuple(len(c) for c in costs), tuple(pairs), most, turn):
        for w, cuts in step.held:
            held[w] = known[w] if known is not None else int(np.argmin(costs[w]))
            for number, axis in cuts:
                tables[number] = tables[number].take([held[w]], axis=axis)
        joint = np.zeros(step.shape)
        for number, order, shape in step.terms:
            joint += tables[number].transpose(order).reshape(shape)
        trace.append((step, joint))
        if len(step.scope) > 1:
            tables.append(joint.min(axis=0))
    picks = [0] * len(costs)
    for step, joint in reversed(trace):
        picks[step.scope[0]] = int(np.argmin(joint[(slice(None), *(picks[w] for w in step.scope[1:]))]))
    return not held, tuple(held.get(v, p) for v, p in enumerate(picks))


@dataclass(frozen=True, slots=True)
class _Step:
    """Of an elimination: the variables that are held from now on, and of each the (table, axis) pairs that are cut; the
    variable that goes and its neighbours; the shape of their joint table; the tables that it is the sum of, each with
    the transposition and the shape in which it is added. The table that remains gets the next number."""

    held: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    scope: tuple[int, ...]
    shape: tuple[int, ...]
    terms: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]


@lru_cache(maxsize=16)
def _steps(sizes: tuple[int, ...], pairs: tuple[tuple[int, int], ...], most: int, turn: int) -> list[_Step]:
    """The steps of an elimination; they depend on which tables there are, not on what is in them. `sizes`: candidates
    per variable, whose own tables are the first ones; `pairs`: of the tables that follow."""
    domain = list(sizes)
    tables: list[dict[int, tuple[int, ...]]] = [{} for _ in sizes]  # by variable: scopes of tables, by number
    near: list[set[int]] = [set() for _ in sizes]
    count = 0

    def add(scope: tuple[int, ...]) -> None:
        nonlocal count
        for v in scope:
            tables[v][count] = scope
            near[v] |= {w for w in scope if w != v}
        count += 1

    for v in range(len(sizes)):
        add((v,))
    for pair in pairs:
        add(pair)
    steps: list[_Step] = []
    keys = [_key(v, near, domain) for v in range(len(sizes))]
    heap = sorted(keys)  # with some that are out of date
    left = set(range(len(sizes)))
    while left:
        key = heapq.heappop(heap)
        v = key[-1]
        if v not in left or key != keys[v]:
            continue
        changed, held = set(near[v]), list[tuple[int, tuple[tuple[int, int], ...]]]()
        while _size(v, near, domain) > most:
            wide = sorted((w for w in near[v] if domain[w] > 1), key=lambda w: (-domain[w], w))
            if not wide:
                break
            w = wide[turn % len(wide)]
            held.append((w, tuple((number, scope.index(w)) for number, scope in tables[w].items())))
            domain[w] = 1
            changed |= near[w]
        scope = (v, *sorted(near[v]))
        terms = []
        for number, inner in tables[v].items():
            order = sorted(range(len(inner)), key=[scope.index(w) for w in inner].__getitem__)
            terms.append((number, tuple(order), tuple(domain[w] if w in inner else 1 for w in scope)))
        steps.append(_Step(tuple(held), scope, tuple(domain[w] for w in scope), tuple(terms)))
        for w in near[v]:
            tables[w] = {n: t for n, t in tables[w].items() if v not in t}
            near[w].discard(v)
        if len(scope) > 1:
            add(scope[1:])
        left.remove(v)
        for w in (changed | set().union(*(near[w] for w in scope[1:]))) & left:
            keys[w] = _key(w, near, domain)
            heapq.heappush(heap, keys[w])
    return steps


def _key(v: int, near: Sequence[set[int]], domain: Sequence[int]) -> tuple[int, int, int]:
    """The variable of the least is eliminated next."""
    return _fill(v, near), _size(v, near, domain), v


def _size(v: int, near: Sequence[set[int]], domain: Sequence[int]) -> int:
    return domain[v] * math.prod(domain[w] for w in near[v])


def _fill(v: int, near: Sequence[set[int]]) -> int:
    """How many pairs of neighbours become neighbours."""
    around = sorted(near[v])
    return sum(w not in near[u] for k, u in enumerate(around) for w in around[k + 1 :])
