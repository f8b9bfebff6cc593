"""How the movements of a program are best sent, found by sending each alone through the network.

A movement takes what its busiest link carries, unless its messages wait in full buffers for each other: then those
behind them wait too, though their links are free, and a movement can take five times as long. Where that happens,
either the other order of ways is better, or the cores begin one after the other, over about as many cycles as the
busiest link takes: nothing piles up then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.machine import Machine
from d1c.target.movement import Exchange, turns
from d1c.target.program import Command, Loop, Program, Push, every
from d1rt.engine_states import Movement
from d1rt.event_program import outgoing
from d1rt.events import Simulator
from d1rt.linkload import Load, fingerprint, load, pushed
from d1rt.network import Network

LEAST = 400
"""Cycles of the busiest link, below which a movement goes as it was planned."""
SPREADS = (0.6, 1.0, 1.5)
"""Parts of the busiest link's cycles that are tried, the first of which is enough where it helps."""
FREE, OTHER, CHANGE = 1.1, 1.4, 0.96
"""A movement that takes no more than so many times its load waits for nobody; loads of the other order that are worth a
look; what a change must come to at most."""
Way = tuple[bool, float]
"""By columns; spread, as a part of the busiest link's cycles."""
_Of = tuple[int, int, int]
"""A push: its layer, target and exchange. Those of one layer and target are parts of one movement."""


@dataclass(frozen=True, slots=True)
class Paced:
    """`program` with its movements sent as is best; how many differ (parts of one and equal ones apart), of how many
    the way changed, how many times one was sent through the network."""

    program: Program
    movements: int
    changed: int
    sent: int


def tuned(program: Program, cycles: int) -> tuple[Program, dict[str, int]]:
    """The program, which takes `cycles` by events, with its movements sent as is best where that makes the whole
    faster; and the facts: how many `movements` differ, how many are sent otherwise (`changed`), `tuned_cycles`."""
    found, changed = paced(program), 0
    if found.changed and (sent := Simulator(found.program).cycles()) < cycles:
        program, changed, cycles = found.program, found.changed, sent
    return program, {"movements": found.movements, "changed": changed, "tuned_cycles": cycles}


def paced(program: Program) -> Paced:
    """The program with the ways of its pushes, and over how many cycles their cores begin. Parts of one movement go
    alike, by what is best for the largest."""
    machine = Machine.from_dict(program.machine)
    tried = _Trials(machine)
    parts: dict[tuple[int, int], dict[int, Push]] = {}
    for c in (c for role in program.roles for t in role.threads for c in every(t)):
        if isinstance(c, Push):
            parts.setdefault((c.layer, c.target), {})[c.exchange] = c
    ways: dict[_Of, tuple[bool, int]] = {}
    for movement, pushes in parts.items():
        moves = {x: _Sent.of(program, p) for x, p in pushes.items()}
        loads = {x: tried.loads(m) for x, m in moves.items()}
        largest = max(moves, key=lambda x: min(map(busiest, loads[x].values())))
        by_columns, part = tried.best(moves[largest], pushes[largest].by_columns)
        for x, found in loads.items():
            ways[*movement, x] = by_columns, round(part * busiest(found[by_columns]))
    roles = tuple(
        replace(role, threads=tuple(_changed(t, ways) for t in role.threads)) for role in program.roles
    )  # fmt: skip
    return Paced(replace(program, roles=roles), len(tried.known), tried.changed, tried.sent)


def busiest(x: Load) -> float:
    """Cycles of the busiest port, link or edge."""
    return x.cycles - x.distance


@dataclass(frozen=True, slots=True)
class _Sent:
    """A part of a movement with the bytes of its elements."""

    exchange: Exchange
    width: int

    @classmethod
    def of(cls, program: Program, push: Push) -> _Sent:
        return cls(program.exchanges[push.exchange], dtype(program.buffers[push.source].dtype).bytes)


class _Trials:
    """What movements take that are sent alone, and the best way of each, remembered: layers repeat."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.network = machine, Network(machine)
        self.known: dict[object, Way] = {}
        self.loaded: dict[object, dict[bool, Load]] = {}
        self.keys: dict[int, object] = {}
        self.changed = self.sent = 0
        free = machine.routing == "either" and self.network.fabric.detours is None
        self.orders = (False, True) if free else (False,)

    def key(self, m: _Sent) -> object:
        number = id(m.exchange)
        if number not in self.keys:
            self.keys[number] = fingerprint(m.exchange)
        return self.keys[number], m.width

    def loads(self, m: _Sent) -> dict[bool, Load]:
        """Along rows first, and along columns first where that may be."""
        key = self.key(m)
        if key not in self.loaded:
            everybody = np.ones(m.exchange.mesh.cores, bool)
            flows = pushed(m.exchange, m.width, everybody, self.machine)
            self.loaded[key] = {b: load(flows, self.network.fabric, b) for b in self.orders}
        return self.loaded[key]

    def best(self, m: _Sent, planned: bool) -> Way:
        planned = planned and planned in self.orders  # past dead routers ways are what they are
        key = self.key(m), planned
        if key not in self.known:
            self.known[key] = way = self.search(m, planned)
            self.changed += way != (planned, 0.0)
        return self.known[key]

    def search(self, m: _Sent, planned: bool) -> Way:
        loads = self.loads(m)
        if busiest(loads[planned]) < LEAST:
            return planned, 0.0
        least = min(x.cycles for x in loads.values())
        send = self.sender(m)
        taken: dict[Way, float] = {}
        for order in sorted(loads, key=lambda b: b != planned):
            enough = FREE * loads[order].cycles
            if loads[order].cycles > OTHER * least:
                continue
            for part in (0.0, *SPREADS):
                taken[order, part] = send(order, round(part * busiest(loads[order])))
                if taken[order, part] <= enough:
                    break
            if min(taken.values()) <= FREE * least:
                break
        best = min(taken, key=taken.__getitem__, default=(planned, 0.0))
        stay = planned, 0.0
        return best if stay not in taken or taken[best] < CHANGE * taken[stay] else stay

    def sender(self, m: _Sent) -> Callable[[bool, int], float]:
        """Sends it alone: (by columns, spread) -> cycles until all has come."""
        src, classes, packets, accesses, first, targets = outgoing(Movement(m.exchange), m.width, self.machine)

        def send(by_columns: bool, spread: int) -> float:
            self.network.reset()
            self.sent += 1
            start = turns(spread, m.exchange.mesh.cores)[src]
            arrival = self.network.send(start, src, first, targets, packets, accesses, by_columns, classes)
            return float(arrival.max(initial=0))

        return send


def _changed(body: tuple[Command, ...], ways: dict[_Of, tuple[bool, int]]) -> tuple[Command, ...]:
    out = list[Command]()
    for c in body:
        if isinstance(c, Push):
            by_columns, spread = ways[c.layer, c.target, c.exchange]
            c = replace(c, by_columns=by_columns, spread=spread)
        elif isinstance(c, Loop):
            c = replace(c, body=_changed(c.body, ways))
        out.append(c)
    return tuple(out)
