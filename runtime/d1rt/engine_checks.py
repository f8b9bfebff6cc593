"""What can be proved of kernel calls before a program runs: no operand leaves its buffer. Raises Trap."""

from __future__ import annotations

import numpy as np

from d1c.target.kernel import Operand
from d1c.target.mesh import CoreInt, Mesh
from d1c.target.program import Call, Program, every
from d1rt.command_cycles import active
from d1rt.engine_numpy import reading_loops
from d1rt.traps import INSIDE, Fault, trap


def check_calls(program: Program) -> None:
    """Every operand of every call on every core against its buffer. The program has passed program_check."""
    tables = placed_tables(program)
    for role in program.roles:
        for thread in role.threads:
            for c in every(thread):
                if isinstance(c, Call):
                    _call(program, c, tables)


class Table:
    """Least and greatest entry of every prefix of a table's rows."""

    def __init__(self, rows: np.ndarray, index: CoreInt) -> None:
        self.rows, self.index = rows, index
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None

    def bounds(self, mesh: Mesh, cores: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._bounds is None:
            entries = self.rows.view(np.uint32).astype(np.int64)
            self._bounds = np.minimum.accumulate(entries, axis=1), np.maximum.accumulate(entries, axis=1)
        row = np.maximum(self.index.of(mesh)[cores], 0)
        return self._bounds[0][row, count - 1], self._bounds[1][row, count - 1]


def placed_tables(program: Program) -> dict[int, Table]:
    """Per buffer what is placed in it."""
    return {p.buffer: Table(program.weights[p.array], p.index) for p in program.placements}


def _call(program: Program, c: Call, tables: dict[int, Table]) -> None:
    nest, mesh = program.kernels[c.kernel][1], program.mesh
    cores = np.flatnonzero(active(c, mesh))
    if not len(cores):
        return
    trips = np.stack([t.of(mesh)[cores] for t in c.trips], axis=1) if c.trips else np.zeros((len(cores), 0), np.int64)
    slots = [(nest.out, c.out, np.full(len(cores), c.out_base), nest.parallel, "written")]
    for k, (o, number, integer) in enumerate(zip(nest.operands, c.operands, c.bases, strict=True)):
        slots.append((o, number, integer.of(mesh)[cores], reading_loops(nest, k), "read"))
    for operand, buffer, base, loops, verb in slots:
        lo, hi = reach(operand, loops, base, trips, c, tables, mesh, cores)
        b = program.buffers[buffer]
        outside = (lo < 0) | (hi >= b.elements)
        if outside.any():
            i = int(np.argmax(outside))
            element = int(lo[i] if lo[i] < 0 else hi[i])
            text = f"out of bounds: element {element} of {b.name} is {verb}, it has {b.elements}"
            raise trap(program, int(cores[i]), c, Fault(text, b.address, b.name, INSIDE))


def reach(
    operand: Operand, loops: int, base: np.ndarray, trips: np.ndarray, c: Call, tables: dict[int, Table], mesh: Mesh,
    cores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Least and greatest element that an operand addresses over the first `loops` loops, per core."""
    lo, hi = base, base
    for j, (stride, table) in enumerate(zip(operand.strides[:loops], operand.tables[:loops], strict=True)):
        if table is not None:
            if c.tables[table] not in tables:  # filled at run time: what it holds is not known
                continue
            least, most = tables[c.tables[table]].bounds(mesh, cores, trips[:, j])
            lo, hi = lo + least, hi + most
        elif stride:
            far = stride * (trips[:, j] - 1)
            lo, hi = lo + np.minimum(far, 0), hi + np.maximum(far, 0)
    return lo, hi
