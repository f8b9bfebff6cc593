"""Which calls pay for a launch (docs/timing.md, C0), in closed form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from d1c.target.machine import Machine
from d1c.target.movement import Exchange
from d1c.target.program import Arrive, Barrier, Call, Command, Fetch, Loop, Post, Program, Push, Send, Wait, every
from d1c.target.program_check import role_cores
from d1rt.command_cycles import active, participants

OPEN_TRIPS = 2**31
"""Of so many trips a loop with a condition has no limit."""


def is_open(c: Loop) -> bool:
    """Whether nothing but its condition ends a loop."""
    return c.condition >= 0 and c.trips >= OPEN_TRIPS


def counted(c: Loop) -> int:
    """The rounds with which a loop counts: one if it is open."""
    return 1 if is_open(c) else c.trips


def launches(program: Program, machine: Machine) -> dict[int, float]:
    """Per layer the cycles that launches take on the core that has most. A call pays for one where its layer is not
    that of the thread's call before it on this core, and its kernel is a product or the thread has waited for another
    core since. Rounds of a loop after the second go like the second."""
    mesh = program.mesh
    out: dict[int, float] = defaultdict(float)
    posted = posted_semaphores(program)

    def walk(commands: Iterable[Command], weight: int) -> None:
        for c in commands:
            if isinstance(c, Loop):
                rounds = counted(c)
                for times in (min(rounds, 1), rounds - 1):
                    if times > 0:
                        walk(c.body, weight * times)
            elif isinstance(c, Arrive):
                waited[_receivers(program.exchanges[c.exchange])] = True
            elif isinstance(c, Barrier):
                waited[:] = True
            elif isinstance(c, Wait) and c.semaphore in posted:
                waited[c.count.of(mesh) > 0] = True
            elif isinstance(c, Call):
                on = active(c, mesh)
                product = program.kernels[c.kernel][1].kind in ("mac", "fma")
                pays = on & (last != c.layer) & (waited | product)
                paid.setdefault(c.layer, np.zeros(mesh.cores))[pays] += weight * machine.launch_cycles
                last[on], waited[on] = c.layer, False

    for role in program.roles:
        cores = role_cores(role, mesh)
        for thread in role.threads:
            last, waited = np.full(mesh.cores, -2), np.zeros(mesh.cores, bool)
            paid: dict[int, np.ndarray] = {}
            walk(thread, 1)
            for layer, cycles in paid.items():
                out[layer] = max(out[layer], float(cycles[cores].max(initial=0)))
    return out


def posted_semaphores(program: Program) -> set[int]:
    """Those that other cores or interface processors count, but for barriers'."""
    threads = (every(t) for role in program.roles for t in role.threads)
    sent = (c for t in threads for c in t if isinstance(c, Push | Send | Fetch) or (isinstance(c, Post) and c.to))
    return {c.semaphore for c in sent}


def _receivers(exchange: Exchange) -> np.ndarray:
    """[cores] who gets a message."""
    return participants(exchange) & (exchange.real_elements(np.arange(exchange.mesh.cores)) > 0)
