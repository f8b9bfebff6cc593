"""Which cores compute, and how long: the cycles of one call or fill on every core, and on which pipes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.isa import nest_pipes
from d1c.target.machine import Machine
from d1c.target.mesh import Mesh
from d1c.target.movement import Exchange
from d1c.target.program import Call, Fill, Program

PIPES = ("matrix", "vector", "load", "store", "scalar")


@dataclass(frozen=True, slots=True)
class Work:
    """`active` [cores]: who has work in a command; of those: `cycles` [n] from start to end, `busy` [pipes, n] cycles
    of each pipe, `trips` [n, loops] of a call."""

    active: np.ndarray
    cycles: np.ndarray
    busy: np.ndarray
    trips: np.ndarray


def held(mask: np.ndarray, axes: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """`mask` without the cores whose coordinate along one of `axes` is not 0."""
    for axis in axes:
        mask = mask & (mesh.coords[:, mesh.index[axis]] == 0)
    return mask


def participants(exchange: Exchange) -> np.ndarray:
    """[cores] which cores a movement may send anything to."""
    mesh = exchange.mesh
    still = tuple(a for a in mesh.names if a not in exchange.keyed and a not in exchange.fan_axes)
    return held(np.ones(mesh.cores, bool), still, mesh)


def active(call: Call, mesh: Mesh) -> np.ndarray:
    """[cores] which cores have work in a call."""
    on = held(np.ones(mesh.cores, bool), call.held, mesh)
    for t in call.trips:
        on &= t.of(mesh) > 0
    return on


def call_work(program: Program, call: Call, cores: np.ndarray, machine: Machine) -> Work:
    """The busiest pipe, and the start of the call."""
    mesh, nest = program.mesh, program.kernels[call.kernel][1]
    at_work = cores & active(call, mesh)
    trips = np.stack([t.of(mesh) for t in call.trips], -1) if call.trips else np.ones((mesh.cores, 0), np.int64)
    trips = trips[at_work]
    pipes = nest_pipes(nest, trips, machine)
    none = np.zeros(len(trips))
    busy = np.stack([none + getattr(pipes, name) for name in PIPES])
    return Work(at_work, np.ceil(pipes.binding + none) + machine.call_cycles, busy, trips)


def fill_work(program: Program, fill: Fill, cores: np.ndarray, machine: Machine) -> Work:
    """Padding is written at the store port's width."""
    mesh, buffer = program.mesh, program.buffers[fill.buffer]
    elements = np.full(mesh.cores, buffer.elements, np.int64)
    if fill.exchange >= 0:
        exchange = program.exchanges[fill.exchange]
        elements = elements - exchange.real_elements(np.arange(mesh.cores))
        cores = held(cores, exchange.target_held, mesh)
    at_work = cores & (elements > 0)
    store = elements[at_work] * dtype(buffer.dtype).bytes / machine.store_bytes_per_cycle
    busy = np.zeros((len(PIPES), len(store)))
    busy[PIPES.index("store")] = store
    return Work(at_work, np.ceil(store) + machine.call_cycles, busy, np.zeros((len(store), 0), np.int64))
