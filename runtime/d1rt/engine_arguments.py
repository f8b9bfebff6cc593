"""The argument arrays of a step's kernel calls, as d1rt.jit_nest has them."""

from __future__ import annotations

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.program import Call, Program
from d1rt.engine_memory import Memory


def arguments(program: Program, memory: Memory, c: Call, cores: np.ndarray) -> np.ndarray:
    """[cores, words] int64: addresses of the output, the operands and the tables, trip counts, scalars."""
    nest, rooms = program.kernels[c.kernel][1], memory.rooms
    columns = [rooms[c.out].at(cores) + c.out_base * dtype(nest.out.dtype).bytes]
    for b, base, operand in zip(c.operands, c.bases, nest.operands, strict=True):
        columns.append(rooms[b].at(cores) + base.of(program.mesh)[cores] * dtype(operand.dtype).bytes)
    columns += [rooms[b].at(cores) for b in c.tables]
    columns += [v.of(program.mesh)[cores] for v in (*c.trips, *c.scalars)]
    return np.ascontiguousarray(np.stack(columns, axis=1))
