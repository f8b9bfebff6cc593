"""The `dist` level evaluated as it says: a buffer per core, every exchange performed, every share computed by its call.

An element that arrives twice, or not at all, traps. The result equals the `graph` level bit for bit under every plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from d1c.analysis.exchange import exchange
from d1c.analysis.shares import Read, Shares, call_of
from d1c.errors import Trap
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.layout import Need, need_of
from d1c.ir.types import TensorType, WindowType
from d1c.target.mesh import Group, Layout, Mesh, place, whole
from d1c.target.numerics import run_nest


def read_of(value: Value, need: Need) -> Read:
    """How a compute reads this operand."""
    t = value.type
    if isinstance(t, WindowType):
        return Read(t.shape, t.dtype, t.need)
    assert isinstance(t, TensorType) and t.layout is not None
    return Read(t.shape, t.dtype, need, t.layout)


def compute_call(op: Op, mesh: Mesh) -> Shares:
    """The kernel calls of a dist.compute."""
    a = op.attrs
    extents = tuple(d.extent for d in a.nest.dims)
    regions = dict(zip(a.regions, op.regions, strict=True))
    reads = []
    for v, m in zip(op.operands, a.nest.maps, strict=True):
        assert isinstance(v.type, TensorType | WindowType)
        reads.append(read_of(v, need_of(extents, m, v.type.shape, a.plan)))
    term, epilogue = (regions.get(n, Block()) for n in ("term", "epilogue"))
    return call_of(a.nest, a.plan, op.result.type.dtype, reads, term, epilogue, mesh)


def fill_windows(array: np.ndarray, need: Need, fill: float, mesh: Mesh) -> dict[int, np.ndarray]:
    """Windows of a constant, cut from the whole array."""
    layout = Layout(tuple(Group() for _ in array.shape), mesh.names)
    return deliver(
        {0: np.ascontiguousarray(array).reshape(-1)}, layout, array.shape, need, fill, array.dtype, mesh, "constant"
    )


def _whole(held: Mapping[int, np.ndarray], t: TensorType, mesh: Mesh) -> np.ndarray:
    assert t.layout is not None
    return whole(held, t.layout, t.shape, t.dtype.numpy, mesh)


def deliver(
    held: Mapping[int, np.ndarray], layout: Layout, shape: tuple[int, ...], need: Need, fill: float, dtype: np.dtype,
    mesh: Mesh, origin: str,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Perform an exchange: the window of every class of cores. Traps unless every real element arrives exactly once."""
    x = exchange(layout, shape, need, mesh)
    if not x.covers():
        raise Trap(f"exchange at {origin} does not cover its windows")
    m = x.messages()
    windows = {int(c): np.full(x.window_elements, fill, dtype) for c in m.classes}
    count = {c: np.zeros(x.window_elements, np.int8) for c in windows}
    for i in range(len(m)):
        c = int(m.classes[m.cls[i]])
        so, do = np.array([m.soff[i]]), np.array([m.doff[i]])
        for n, s, d in zip(m.sizes[:, i], m.sstride[:, i], m.dstride[:, i], strict=True):
            step = np.arange(n)
            so, do = (step[:, None] * s + so).ravel(), (step[:, None] * d + do).ravel()
        count[c][do] += 1
        windows[c][do] = held[int(m.src[i])][so]
    for c, n in count.items():
        if n.max(initial=0) > 1:
            raise Trap(f"exchange at {origin}: core {c} receives an element twice")
    return windows


def evaluate_dist(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of `main` as a whole array, by value name, and the results under their output names."""
    mesh = Mesh(tuple((str(n), int(s)) for n, s in module.attrs["mesh"]))
    held: dict[Value, dict[int, np.ndarray]] = {}
    out: dict[str, np.ndarray] = {}
    main = module.function()
    for v in main.block.args:
        assert isinstance(v.type, TensorType) and v.type.layout is not None
        held[v] = place(np.asarray(inputs[v.name], v.type.dtype.numpy).reshape(v.type.shape), v.type.layout, mesh)
    for op in main.block.ops:
        if op.name == "dist.return":
            for name, v in zip(module.attrs["outputs"], op.operands, strict=True):
                assert isinstance(v.type, TensorType)
                out[name] = _whole(held[v], v.type, mesh)
        elif op.name == "dist.const":
            array, t = module.constants[op.attrs.name], op.result.type
            if isinstance(t, WindowType):
                held[op.result] = fill_windows(array, t.need, 0.0, mesh)
            else:
                assert isinstance(t, TensorType) and t.layout is not None
                held[op.result] = place(array, t.layout, mesh)
        elif op.name == "dist.exchange":
            (x,), w = op.operands, op.result.type
            assert isinstance(x.type, TensorType) and x.type.layout is not None and isinstance(w, WindowType)
            held[op.result] = deliver(
                held[x], x.type.layout, x.type.shape, w.need, op.attrs.fill, w.dtype.numpy, mesh, op.origin
            )
        else:
            held[op.result] = _compute(op, held, mesh)
            t = op.result.type
            assert isinstance(t, TensorType)
            out[op.result.name] = _whole(held[op.result], t, mesh)
    return out


def _compute(op: Op, held: Mapping[Value, Mapping[int, np.ndarray]], mesh: Mesh) -> dict[int, np.ndarray]:
    call = compute_call(op, mesh)
    t = op.result.type
    assert isinstance(t, TensorType) and t.layout is not None
    size = math.prod(t.layout.local_shape(t.shape))
    out = {}
    for i, core in enumerate(call.cores):
        operands = []
        for j, v in enumerate(op.operands):
            c = int(core)
            if isinstance(v.type, WindowType):
                keyed = tuple(a for a in mesh.names if a in v.type.need.axes)
                c = int(mesh.core_offset(keyed, mesh.position(keyed, np.array([core])))[0])
            operands.append(held[v][c][int(call.bases[i, j]) :])
        tables = [t[call.table_rows[i, k]].astype(np.uint32) for k, t in enumerate(call.tables)]
        result = np.zeros(size, t.dtype.numpy)
        run_nest(
            call.nest, result, operands, tables, [int(n) for n in call.trips[i]], [int(s) for s in call.scalars[i]]
        )
        out[int(core)] = result
    return out
