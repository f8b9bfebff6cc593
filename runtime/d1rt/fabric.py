"""The network of a machine, with the ways round its dead routers."""

from __future__ import annotations

from dataclasses import replace

from d1c.target.linkload import Fabric
from d1c.target.machine import Machine


def fabric_of(machine: Machine) -> Fabric:
    """Where the cores are, and the detours where routers are dead."""
    fabric = Fabric.of(machine)
    if machine.dead_router_forwards or not any(machine.dead):
        return fabric
    from d1rt.detours import Detours  # compiles

    return replace(fabric, detours=Detours(machine, fabric.row * fabric.shape[1] + fabric.col))
