"""Where interface processors (DIPs) meet the mesh, and what they are asked for.

They are on the west edge (docs/machine.md). Assumed: each serves an equal share of the rows of sites, and what a core
fetches enters the mesh at the west end of the core's row, or of the nearest row whose first router is alive.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.machine import Machine
from d1c.target.mesh import Mesh
from d1c.target.program import Fetch, Program, every
from d1rt.linkload import Fabric


def fetches(program: Program) -> bool:
    """Whether a program reads the memories of interface processors while it runs."""
    return any(isinstance(c, Fetch) for r in program.roles for t in r.threads for c in every(t))


def gated(fabric: Fabric) -> Fabric:
    """The same places, and behind those of the cores one per row of sites: the gate by which what its cores fetch comes
    in."""
    rows, m = fabric.shape[0], fabric.machine
    at = np.arange(rows)
    if not m.dead_router_forwards:
        dead = {
            die // m.die_cols * m.site_rows + r for die, sites in enumerate(m.dead) for r, c in sites
            if c == 0 and die % m.die_cols == 0
        }  # fmt: skip
        live = np.array([r for r in range(rows) if r not in dead])
        at = live[np.abs(live - at[:, None]).argmin(1)]
    return replace(fabric, row=np.concatenate([fabric.row, at]), col=np.concatenate([fabric.col, np.zeros_like(at)]))


def gates(fabric: Fabric, cores: np.ndarray) -> np.ndarray:
    """Where what `cores` fetch enters: places of a gated fabric."""
    return np.asarray(len(fabric.row) - fabric.shape[0] + fabric.row[cores])


def dip_of(machine: Machine) -> np.ndarray:
    """[rows of sites] the interface processor that serves a row."""
    rows = machine.die_rows * machine.site_rows
    return np.arange(rows) * max(machine.dip_count, 1) // rows


def rate(machine: Machine) -> float:
    """Bytes that one interface processor hands over in a cycle."""
    return min(machine.dip_bytes_per_cycle, machine.dip_edge_bytes_per_cycle)


def asked(program: Program, c: Fetch, mesh: Mesh) -> tuple[np.ndarray, int]:
    """(the cores that read something, the bytes of each)."""
    width = dtype(program.buffers[c.target].dtype).bytes
    return np.flatnonzero(c.index.of(mesh) >= 0), program.weights[c.array].shape[1] * width
