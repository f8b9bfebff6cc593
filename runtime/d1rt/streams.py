"""In closed form: how long layers wait for what they fetch from interface processors' memories.

One queue for all of them, as long as the busiest of interface processors, rows of links and ports takes. A Fetch is
asked for when the last call is over that its thread has been told of; it hides behind the layers from there on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.target import order
from d1c.target.machine import Machine
from d1c.target.program import Call, Fetch, Program, Role
from d1rt.dips import asked, dip_of, gated, gates, rate
from d1rt.linkload import Fabric


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a layer fetches: `bytes` of all cores, and cycles that it waits for the rest of them."""

    bytes: int
    cycles: float


def streamed(
    program: Program, machine: Machine, fabric: Fabric, records: Sequence[Mapping[str, Any]]
) -> dict[int, Streamed]:
    """Per layer that fetches. `records`: all layers, with their cycles without this."""
    out: dict[int, Streamed] = {}
    places = gated(fabric)
    for role in program.roles:
        for layer, x in _of_role(program, role, machine, places, records).items():
            old = out.get(layer, Streamed(0, 0.0))
            out[layer] = Streamed(old.bytes + x.bytes, max(old.cycles, x.cycles))
    return out


@dataclass(frozen=True, slots=True)
class _Ask:
    """A Fetch: behind which layer it is asked for (-1: none), what it takes, how far it comes."""

    behind: int
    bytes: int
    cycles: float
    way: int


def _of_role(
    program: Program, role: Role, machine: Machine, places: Fabric, records: Sequence[Mapping[str, Any]]
) -> dict[int, Streamed]:
    asks = _asks(program, role, machine, places)
    ends: dict[int, float] = {-1: 0.0}
    now = free = 0.0
    out: dict[int, Streamed] = {}
    there = machine.dip_latency_cycles
    for r in sorted(records, key=lambda r: int(r["layer"])):
        layer, size, come = int(r["layer"]), 0, 0.0
        for ask in asks.get(layer, ()):
            begun = max(free, ends.get(ask.behind, now) + ask.way + there + machine.hbm_latency_cycles)
            free = begun + ask.cycles
            come = max(come, free + there + ask.way)
            size += ask.bytes
        late = max(0.0, come - now - r["move_cycles"])
        if size:
            out[layer] = Streamed(size * r["rounds"], late * r["rounds"])
        now += r["cycles"] / r["rounds"] + late
        ends[layer] = now
    return out


def _asks(program: Program, role: Role, machine: Machine, places: Fabric) -> dict[int, list[_Ask]]:
    """By layer, in order."""
    events = list(order.events(role, [r for r in program.roles if r is not role]))
    # Per thread the layer of the last call among its first commands.
    called: dict[int, list[int]] = defaultdict(lambda: [-1])
    for e in events:
        called[e.thread].append(e.command.layer if isinstance(e.command, Call) else called[e.thread][-1])
    out: dict[int, list[_Ask]] = defaultdict(list)
    seen: set[int] = set()
    for e in events:
        if isinstance(e.command, Fetch) and id(e.command) not in seen:
            seen.add(id(e.command))
            behind = max(called[t][n] for t, n in enumerate(e.clock) if n < len(called[t]))
            out[e.command.layer].append(_ask(program, e.command, behind, machine, places))
    return out


def _ask(program: Program, c: Fetch, behind: int, machine: Machine, places: Fabric) -> _Ask:
    cores, size = asked(program, c, program.mesh)
    if not len(cores):
        return _Ask(behind, 0, 0.0, 0)
    rows = places.row[cores]
    packets = -(-size // machine.packet_bytes) * machine.packet_bytes
    busiest = max(
        packets * np.bincount(dip_of(machine)[rows]).max() / rate(machine),
        packets * np.bincount(rows).max() / machine.link_bytes_per_cycle,
    )
    return _Ask(behind, size * len(cores), float(busiest), int(places.distance(cores, gates(places, cores)).max()))
