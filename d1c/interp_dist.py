"""The `dist` level evaluated as it says: a buffer per core, every exchange performed, every share computed by its call.

An element that arrives twice, or not at all, traps. The result equals the `graph` level bit for bit under every plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from d1c.analysis.delivery import deliver, fill_windows
from d1c.analysis.shares import Shares, compute_call
from d1c.errors import Trap
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.types import TensorType, WindowType
from d1c.ops.graph.loop import evaluate
from d1c.target.counts import by_output, trim
from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.mesh import Layout, Mesh, place, whole
from d1c.target.numerics import run_nest

Held = Mapping[int, np.ndarray]
"""What cores hold of a value: core (of a window: the first core that holds the same) -> elements."""


def _whole(held: Mapping[int, np.ndarray], t: TensorType, mesh: Mesh) -> np.ndarray:
    assert t.layout is not None
    return whole(held, t.layout, t.shape, t.dtype.numpy, mesh)


def evaluate_dist(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of `main` as a whole array, by value name, and the results under their output names; of branches side
    by side the results that they have alone, too."""
    mesh = Mesh(tuple((str(n), int(s)) for n, s in module.attrs["mesh"]))
    held: dict[Value, Held] = {}
    main = module.function().block
    for v in main.args:
        assert isinstance(v.type, TensorType) and v.type.layout is not None
        held[v] = place(np.asarray(inputs[v.name], v.type.dtype.numpy).reshape(v.type.shape), v.type.layout, mesh)
    outputs = _run(module, main, held, mesh)
    out: dict[str, np.ndarray] = {}
    for op in main.ops:
        if op.name == "dist.compute":
            assert isinstance(op.result.type, TensorType)
            out[op.result.name] = _whole(held[op.result], op.result.type, mesh)
    for name, members in module.attrs.get("branches", ()):
        out.update(zip(members, out.get(name, ()), strict=False))  # none of a loop's body
    for name, v, share in zip(module.attrs["outputs"], main.ops[-1].operands, outputs, strict=True):
        assert isinstance(v.type, TensorType)
        value = _whole(share, v.type, mesh)
        out[name] = value.reshape(()) if name in module.attrs.get("scalars", ()) else value
    return trim(out, by_output(module.attrs.get("counts", ())))


def _run(module: Module, block: Block, held: dict[Value, Held], mesh: Mesh) -> list[Held]:
    """What every core holds of a function's results, given its arguments in `held`, which gets all its values."""
    for op in block.ops[:-1]:
        if op.name == "dist.const":
            array, t = module.constants[op.attrs.name], op.result.type
            if isinstance(t, WindowType):
                held[op.result] = fill_windows(array, t.need, op.attrs.fill, mesh)
            else:
                assert isinstance(t, TensorType) and t.layout is not None
                held[op.result] = _everywhere(place(array, t.layout, mesh), t.layout, mesh)
        elif op.name == "dist.exchange":
            (x,), w = op.operands, op.result.type
            assert isinstance(x.type, TensorType) and x.type.layout is not None and isinstance(w, WindowType)
            held[op.result] = deliver(
                held[x], x.type.layout, x.type.shape, w.need, op.attrs.fill, w.dtype.numpy, mesh, op.origin
            )
        elif op.name == "dist.loop":
            first = op.operands[0].type
            assert isinstance(first, TensorType)

            def again(body: Function, args: list[Held]) -> list[Held]:
                return _run(module, body.block, dict(zip(body.block.args, args, strict=True)), mesh)

            def truth(share: Held, t: TensorType = first) -> bool:
                return bool(_whole(share, t, mesh).item())

            held.update(
                zip(op.results, evaluate(op, module, [held[v] for v in op.operands], again, truth), strict=True)
            )
        else:
            held[op.result] = _compute(op, held, mesh)
    return [held[v] for v in block.ops[-1].operands]


def _everywhere(first: Held, layout: Layout, mesh: Mesh) -> dict[int, np.ndarray]:
    """What the first replicas own, on all cores that own it."""
    copied = layout.copied(mesh)
    apart = mesh.core_offset(copied, np.arange(mesh.parts(copied)))
    return {core + int(offset): buffer for core, buffer in first.items() for offset in apart}


def _compute(op: Op, held: Mapping[Value, Mapping[int, np.ndarray]], mesh: Mesh) -> dict[int, np.ndarray]:
    """The owned buffer of every active core. Cores whose calls differ only in where their operands lie are evaluated
    together, as one more parallel loop: numpy pays per call, not per element."""
    call = compute_call(op, mesh)
    t = op.result.type
    assert isinstance(t, TensorType) and t.layout is not None
    memory: list[np.ndarray] = []  # per operand the buffers of all cores, one after another
    starts: list[np.ndarray] = []  # and where each core's call finds its first element
    for j, v in enumerate(op.operands):
        cores = call.cores
        if isinstance(v.type, WindowType):
            keyed = tuple(a for a in mesh.names if a in v.type.need.axes)
            cores = mesh.core_offset(keyed, mesh.position(keyed, cores))
        owners, row = np.unique(cores, return_inverse=True)
        if missing := [int(c) for c in owners if int(c) not in held[v]]:
            raise Trap(f"compute at {op.origin}: core {missing[0]} holds nothing of operand {j}")
        buffers = np.stack([held[v][int(c)] for c in owners])
        _check_reach(call, j, buffers.shape[1], op.origin)
        memory.append(buffers.reshape(-1))
        starts.append(row.reshape(-1) * buffers.shape[1] + call.bases[:, j])
    size = math.prod(t.layout.local_shape(t.shape))
    out = np.zeros((len(call.cores), size), t.dtype.numpy)
    alike = np.unique(np.concatenate((call.trips, call.scalars, call.table_rows), axis=1), axis=0, return_inverse=True)
    for k in range(len(alike[0])):
        at = np.flatnonzero(alike[1].reshape(-1) == k)
        one = at[0]
        tables = [rows[n] for rows, n in zip(call.tables, call.table_rows[one], strict=True)]
        tables = [x.astype(np.uint32) for x in (*tables, *(s[at] for s in starts))]
        result = np.zeros(len(at) * size, out.dtype)
        nest = _side_by_side(call.nest, len(at), size, len(call.tables))
        trips, scalars = [int(x) for x in call.trips[one]], [int(x) for x in call.scalars[one]]
        trips.insert(_place(nest), len(at))
        run_nest(nest, result, memory, tables, trips, scalars)
        out[at] = result.reshape(len(at), size)
    return _everywhere({int(c): out[i] for i, c in enumerate(call.cores)}, t.layout, mesh)


def _side_by_side(nest: Nest, cores: int, size: int, tables: int) -> Nest:
    """The nest on several cores: an outer loop over cores, whose results lie `size` elements apart and whose operands
    start where tables number `tables` and on say."""
    k = _place(nest)

    def moved(o: Operand, stride: int, table: int | None) -> Operand:
        strides, tables = (*o.strides[:k], stride, *o.strides[k:]), (*o.tables[:k], table, *o.tables[k:])
        return replace(o, strides=strides, tables=tables)

    return replace(
        nest, loops=(*nest.loops[:k], Loop("core", cores), *nest.loops[k:]), parallel=nest.parallel + 1,
        operands=tuple(moved(o, 0, tables + j) for j, o in enumerate(nest.operands)), out=moved(nest.out, size, None),
        cut=None if nest.cut is None else nest.cut + 1,
    )  # fmt: skip


def _place(nest: Nest) -> int:
    """Where the loop over cores goes: outermost, but the first loop of a scatter counts its rows."""
    return 1 if nest.kind == "scatter" else 0


def _check_reach(call: Shares, number: int, elements: int, origin: str) -> None:
    """Traps where a core's call would leave its own buffer of operand `number`, which has `elements`."""
    lowest, highest = call.bases[:, number].copy(), call.bases[:, number].copy()
    operand = call.nest.operands[number]
    for loop, (stride, table) in enumerate(zip(operand.strides, operand.tables, strict=True)):
        if table is not None:
            inside = np.arange(call.tables[table].shape[1]) < call.trips[:, loop, None]
            offsets = np.where(inside, call.tables[table][call.table_rows[:, table]], 0)
            lowest, highest = lowest + offsets.min(axis=1), highest + offsets.max(axis=1)
        else:
            last = stride * (call.trips[:, loop] - 1)
            lowest, highest = lowest + np.minimum(last, 0), highest + np.maximum(last, 0)
    if lowest.min(initial=0) < 0 or highest.max(initial=0) >= elements:
        raise Trap(f"compute at {origin}: operand {number} is read outside its buffer of {elements} elements")
