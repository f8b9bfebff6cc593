"""Every distinct kernel call of a program, run by itself: the compiled kernel against its numpy definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from d1c.target.dtypes import dtype
from d1c.target.kernel import Nest, Operand
from d1c.target.numerics import run_nest
from d1c.target.program import Call, Program
from d1rt.engine_numpy import ascending, reading_loops
from d1rt.engine_schedule import active
from d1rt.jit_nest import Kernels
from tests.runtime.test_jit_nests import data, guarded


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel with the trip counts, tables and scalars that it has on some core."""

    kernel: str
    nest: Nest
    trips: tuple[int, ...]
    tables: tuple[np.ndarray, ...]
    scalars: tuple[int, ...]


def distinct_calls(program: Program) -> Iterator[Case]:
    """All (kernel, trip counts, tables, scalars) that occur on any core, each once."""
    mesh = program.mesh
    rows = {p.buffer: (program.weights[p.array], p.index.of(mesh)) for p in program.placements}
    seen = set()
    for c in (c for role in program.roles for thread in role.threads for c in thread if isinstance(c, Call)):
        cores = np.flatnonzero(active(c, mesh))
        integers = [v.of(mesh) for v in (*c.trips, *c.scalars)] + [rows[b][1] for b in c.tables]
        if not len(cores):
            continue
        _, first = np.unique(np.stack(integers, axis=1)[cores], axis=0, return_index=True)
        name, nest = program.kernels[c.kernel]
        for core in cores[first]:
            trips, scalars = (tuple(int(v.of(mesh)[core]) for v in x) for x in (c.trips, c.scalars))
            tables = tuple(rows[b][0][rows[b][1][core]].view(np.uint32) for b in c.tables)
            key = (nest, trips, scalars, tuple(t.tobytes() for t in tables))
            if key not in seen:
                seen.add(key)
                yield Case(name, nest, trips, tables, scalars)


def span(o: Operand, loops: int, case: Case) -> tuple[int, int]:
    """Least and greatest element, from the operand's base, that it addresses over the first `loops` loops; the base is
    one of them or lies between them."""
    lo = hi = 0
    for stride, table, n in zip(o.strides[:loops], o.tables[:loops], case.trips, strict=False):
        if table is not None:
            entries = case.tables[table][:n].astype(np.int64)
            lo, hi = lo + int(entries.min()), hi + int(entries.max())
        else:
            lo, hi = lo + min(0, stride * (n - 1)), hi + max(0, stride * (n - 1))
    return min(lo, 0), max(hi, 0)  # tables of a later part begin behind the base


def different_bytes(kernels: Kernels, case: Case, rng: np.random.Generator) -> int:
    """How many bytes of the result, with what lies round it, the two make differently on random operands."""
    nest = case.nest
    arrays, bases = [], []
    for k, o in enumerate(nest.operands):
        if (nest.kind, k) in (("lookup", 0), ("scatter", 1)):
            lo, hi = span(o, reading_loops(nest, k), case)
            rows = nest.loops[-1 if k == 0 else 0].extent
            index = rng.integers(-2, rows + 3, hi - lo + 1) + case.scalars[0]
            arrays.append(index.astype(dtype(o.dtype).numpy))
        else:
            lo, hi = span(o, reading_loops(nest, k), case)
            arrays.append(data(rng, o.dtype, hi - lo + 1))
        bases.append(-lo)
    lo, hi = span(nest.out, nest.parallel, case)
    before = data(rng, nest.out.dtype, hi + 1)
    expected_whole, expected = guarded(before)
    found_whole, found = guarded(before)
    held = [guarded(a)[1] for a in arrays]
    tables = [guarded(t)[1] for t in case.tables]
    plain, all_tables, shifts = ascending(nest, case.trips, tables)
    operands = [a[base + shift :] for a, base, shift in zip(held, bases, shifts, strict=True)]
    run_nest(plain, expected, operands, all_tables, case.trips, list(case.scalars))
    starts = [a.ctypes.data + base * a.itemsize for a, base in zip(held, bases, strict=True)]
    pointers = [found.ctypes.data, *starts, *(t.ctypes.data for t in tables)]
    kernels.call(case.kernel, np.array([*pointers, *case.trips, *case.scalars], np.int64))
    return int(np.count_nonzero(expected_whole != found_whole))
