"""The `dist` level evaluated as it says: a buffer per core, every exchange performed, every share computed by its own call.

An element that arrives twice, or not at all, traps. The result equals the `graph` level bit for bit under every plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d1c.analysis.exchange import Messages, exchange
from d1c.analysis.shares import Call, Read, call_of
from d1c.errors import Trap
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.layout import Layout, Mesh, Need
from d1c.ir.types import TensorType, WindowType
from d1c.target.numerics import run_nest


@dataclass
class Held:
    """What cores hold of a value: per core number one flat buffer; `classes` maps every core to the one whose buffer it shares
    (windows that are equal along multicast factors are stored once)."""

    buffers: dict[int, np.ndarray]


def place(array: np.ndarray, layout: Layout, mesh: Mesh) -> dict[int, np.ndarray]:
    """The owned buffers of a whole array."""
    shape = array.shape
    local = layout.local_shape(shape)
    cores = mesh.core_offset(layout.axes, np.arange(mesh.parts(layout.axes)))
    flat = array.reshape([n for _, _, _, n in layout.spans(shape)]) if shape else array
    out = {}
    for core in cores:
        parts = []
        for _, _, g, n in layout.spans(shape):
            p = int(mesh.position(g.axes, np.array([core]))[0]) if g.axes else 0
            parts.append(slice(min(p * g.block, n), min(p * g.block + g.block, n)) if g.axes else slice(0, n))
        block = flat[tuple(parts)]
        if block.size:
            buf = np.zeros(local, array.dtype)
            buf[tuple(slice(0, s) for s in block.shape)] = block
            out[int(core)] = buf.reshape(-1)
    return out


def whole(held: Mapping[int, np.ndarray], type: TensorType, mesh: Mesh) -> np.ndarray:
    """The array that the owned buffers make up; KeyError where a share is missing."""
    layout, shape = type.layout, type.shape
    assert layout is not None
    spans = layout.spans(shape)
    out = np.zeros([n for _, _, _, n in spans], type.dtype.numpy)
    local = layout.local_shape(shape)
    for core in mesh.core_offset(layout.axes, np.arange(mesh.parts(layout.axes))):
        parts = []
        for _, _, g, n in spans:
            p = int(mesh.position(g.axes, np.array([core]))[0]) if g.axes else 0
            parts.append(slice(min(p * g.block, n), min(p * g.block + g.block, n)) if g.axes else slice(0, n))
        view = out[tuple(parts)]
        if view.size:
            view[...] = held[int(core)].reshape(local)[tuple(slice(0, s) for s in view.shape)]
    return out.reshape(shape)


def read_of(value: Value, need: Need) -> Read:
    """How a compute reads this operand."""
    t = value.type
    if isinstance(t, WindowType):
        return Read(t.shape, t.dtype, t.need)
    assert isinstance(t, TensorType) and t.layout is not None
    return Read(t.shape, t.dtype, need, t.layout)


def compute_call(op: Op, mesh: Mesh) -> Call:
    """The kernel calls of a dist.compute."""
    from d1c.ir.layout import need_of

    a = op.attrs
    extents = tuple(d.extent for d in a.nest.dims)
    regions = dict(zip(a.regions, op.regions, strict=True))
    reads = [read_of(v, need_of(extents, m, v.type.shape, a.plan)) for v, m in zip(op.operands, a.nest.maps, strict=True)]  # type: ignore[union-attr]
    return call_of(a.nest, a.plan, op.result.type.dtype, reads, regions.get("term", Block()), regions.get("epilogue", Block()), mesh)  # type: ignore[union-attr]


def fill_windows(array: np.ndarray, need: Need, fill: float, mesh: Mesh) -> dict[int, np.ndarray]:
    """Windows of a constant, cut from the whole array."""
    layout = Layout(tuple(_whole_groups(array.shape)), mesh.names)
    return deliver({0: np.ascontiguousarray(array).reshape(-1)}, layout, array.shape, need, fill, array.dtype, mesh, "constant")


def _whole_groups(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    from d1c.ir.layout import Group

    return [Group() for _ in shape]


def deliver(
    held: Mapping[int, np.ndarray], layout: Layout, shape: tuple[int, ...], need: Need, fill: float, dtype: np.dtype, mesh: Mesh, origin: str
) -> dict[int, np.ndarray]:  # fmt: skip
    """Perform an exchange: the window of every class of cores. Traps unless every real element arrives exactly once."""
    x = exchange(layout, shape, need, mesh)
    if not x.covers():
        raise Trap(f"exchange at {origin} does not cover its windows")
    m: Messages = x.messages()
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
                out[name] = whole(held[v], v.type, mesh)
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
            held[op.result] = deliver(held[x], x.type.layout, x.type.shape, w.need, op.attrs.fill, w.dtype.numpy, mesh, op.origin)
        else:
            held[op.result] = _compute(op, held, mesh)
            t = op.result.type
            assert isinstance(t, TensorType)
            out[op.result.name] = whole(held[op.result], t, mesh)
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
        run_nest(call.nest, result, operands, tables, [int(n) for n in call.trips[i]], [int(s) for s in call.scalars[i]])
        out[int(core)] = result
    return out
