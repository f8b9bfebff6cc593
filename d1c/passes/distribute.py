"""Every layer gets a plan, every movement becomes an exchange.

Before:
    d1c.module graph {outputs = ["y"]} {
      func @main(%x: tensor<64x12xf32>, %w: tensor<12x4xf32>) {
        %y = graph.fused(%x, %w) {out = "f32"} ({
          ^(%0: tensor<64x12xf32>, %1: tensor<12x4xf32>):
          %p = graph.matmul(%0, %1) : tensor<64x4xf32>
          %r = graph.relu(%p) : tensor<64x4xf32>
          graph.yield(%r)
        }) : tensor<64x4xf32>
        graph.return(%y)
      }
    }

After:
    d1c.module dist {outputs = ["y"], target = "test", mesh = [["dc", 2], ["nr", 2], ["nc.0", 2], ["nc.1", 2]]} {
      func @main(%x: tensor<64x12xf32, [0: dc nr nc.0-1 / 4, 1]>, %w: tensor<12x4xf32, [0: dc nr nc.0-1 / 1, 1]>) {
        %w.w = dist.exchange(%w) : window<12x4xf32, [12 rest 0 11, 4 rest 0 3 | dc nr nc.0-1]>
        %y = dist.compute(%x, %w.w)
            {nest = #nest"mac (m 64, n 4 | k 12, e 1) cut k / 12 term 2 [m, k+e : 0.0] [k, n]",
             plan = #layout"[0: dc nr nc.0-1 / 4, 1, 2, 3]", out = "f32", regions = ["epilogue"]} ({
          ^(%acc: tensor<f32>):
          %r = graph.relu(%acc) : tensor<f32>
          dist.yield(%r)
        }) : tensor<64x4xf32, [0: dc nr nc.0-1 / 4, 1]>
        dist.return(%y)
      }
    }

All 16 cores of the machine `test` take 4 rows each, which they own; every core receives all of `w`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from d1c.analysis.exchange import exchange_of, in_place
from d1c.analysis.layers import Again, Layer, Layers, Stored, identity, layers_of
from d1c.analysis.plans import Plan, accumulator_type, choose, spread
from d1c.analysis.random_plans import random_plan
from d1c.errors import DoesNotFit
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.layout import Need, need_of
from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, WindowType
from d1c.ops.dist.compute import ComputeAttrs, DistConstAttrs, ExchangeAttrs, compute_type
from d1c.target.machine import Machine
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

RESIDENT_SHARES = (0.45, 0.3, 0.15, 0.0)
"""Shares of a core's SRAM that constants may take for good, tried in this order until the program fits; the rest is for
activations and for constants that are gathered for each use."""

WINDOW_SHARES = (0.55, 0.35, 0.2)
"""How much of a core's SRAM the windows and the result of one layer may take, if that is possible at all; tried in this
order behind the last of RESIDENT_SHARES."""

ATTEMPTS = (*((r, WINDOW_SHARES[0]) for r in RESIDENT_SHARES), *((0.0, w) for w in WINDOW_SHARES[1:]))
"""(resident, window) in the order in which they are tried."""

Chooser = Callable[[Layer, Sequence[Layout | None]], Plan]


def run(
    module: Module, machine: Machine, seed: int | None = None, resident: float = RESIDENT_SHARES[0],
    window: float = WINDOW_SHARES[0],
) -> Module:  # fmt: skip
    """The distributed module. `seed`: random plans instead of priced ones (tests). `resident`, `window`: see
    RESIDENT_SHARES and WINDOW_SHARES.

    The attribute `scalars` names the outputs of shape (), which are stored as [1]. Results whose names the attribute
    `outputs` does not give (hand-written modules) go by the names of their values. Raises TypeMismatch for an empty
    tensor, DoesNotFit where no plan of a layer fits SRAM."""
    if "outputs" not in module.attrs:
        names = tuple(v.name for v in module.function().block.ops[-1].operands)
        module = replace(module, attrs={**module.attrs, "outputs": names})
    results = zip(module.attrs["outputs"], module.function().block.ops[-1].operands, strict=True)
    if scalars := tuple(n for n, v in results if _tensor(v).shape == ()):
        module = replace(module, attrs={**module.attrs, "scalars": scalars})
    mesh = Mesh(machine.axes)
    layers = {f.name: layers_of(module, f.name) for f in module.functions}
    rng = np.random.default_rng(seed)
    budget = resident * machine.data_bytes
    users = sum(any(o.constant for o in x.operands) for f in layers.values() for x in f.layers)

    def chooser(layer: Layer, layouts: Sequence[Layout | None]) -> Plan:
        if seed is not None:
            return random_plan(layer, rng, mesh)
        try:
            return choose(layer, layouts, machine, mesh, budget / max(users, 1), window)
        except LayoutError as e:
            size = sum(math.prod(o.shape) * o.dtype.bytes for o in (*layer.operands, layer.result))
            raise DoesNotFit(
                f"layer {layer.origin or layer.result.name} does not fit the machine {machine.name}",
                where=layer.origin, rule=str(e),
                amounts={"operands and result, bytes": size, "SRAM for data of a core, bytes": machine.data_bytes},
                remedy="use a larger --target, a smaller batch, or --precision bf16",
            ) from e  # fmt: skip

    whole = _Whole(layers, mesh, chooser, budget)
    _Distributor(whole, layers["main"]).run("main")
    functions = tuple(whole.functions[f.name] for f in module.functions)
    used = {op.attrs.name for f in functions for op in f.block.ops if op.name == "dist.const"}
    return Module(
        "dist", functions, {k: v for k, v in module.constants.items() if k in used},
        {**module.attrs, "target": machine.name, "mesh": tuple(mesh.axes)},
    )  # fmt: skip


@dataclass
class _Whole:
    """What the functions of a module share: the layers of all, and how many bytes of constants are resident."""

    layers: Mapping[str, Layers]
    mesh: Mesh
    choose: Chooser
    budget: float
    resident: float = 0.0
    functions: dict[str, Function] = field(default_factory=dict)


class _Distributor:
    """One function."""

    def __init__(self, whole: _Whole, layers: Layers) -> None:
        self.whole, self.layers, self.mesh, self.choose = whole, layers, whole.mesh, whole.choose
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.gathered: dict[str, Value] = {}  # constants that are not resident where they are read
        self.windows: dict[tuple[str, bool, Need, float | None], Value] = {}

    def run(self, name: str, layouts: Sequence[Layout | None] = ()) -> list[Layout | None]:
        """Distribute function `name`. `layouts`: of its arguments, None (and what is missing) as inputs are spread; a
        body's results come to be where its first arguments are. The layouts that the results have had before."""
        args = []
        for i, s in enumerate(self.layers.inputs):
            given = layouts[i] if i < len(layouts) else None
            v = Value(TensorType(s.shape, s.dtype, given or spread(s.shape, self.mesh)), s.name)
            args.append(v)
            self.values[s.name] = v
        for step in self.layers.steps:
            if isinstance(step, Again):
                self.loop(step)
            else:
                self.place(step)
        found = [_tensor(self.values[s.name]).layout for s in self.layers.outputs]
        if name == "main":
            outputs = tuple(self.values[s.name] for s in self.layers.outputs)
        else:
            outputs = tuple(self.placed(s, _tensor(v).layout) for s, v in zip(self.layers.outputs, args, strict=False))
        self.ops.append(Op("dist.return", outputs))
        self.whole.functions[name] = Function(name, Block(tuple(args), tuple(self.ops)))
        return found

    def loop(self, step: Again) -> None:
        """A loop carries its values where its body computes them from values that are spread as inputs are: the body
        is distributed twice. What it captures stays where it is."""
        a, body = step.attrs, self.whole.layers[step.attrs.body]
        layouts = [None if i < a.carried else _tensor(self.values[o.name]).layout for i, o in enumerate(step.operands)]
        trial = replace(self.whole, functions={})
        layouts[: a.carried] = _Distributor(trial, body).run(a.body, layouts)
        operands = [self.placed(o, layout) for o, layout in zip(step.operands, layouts, strict=True)]
        results = tuple(Value(v.type, s.name) for s, v in zip(step.results, operands, strict=False))
        self.ops.append(Op("dist.loop", tuple(operands), a, results, (), step.origin))
        self.values.update((s.name, v) for s, v in zip(step.results, results, strict=True))
        _Distributor(self.whole, body).run(a.body, layouts)

    def placed(self, s: Stored, layout: Layout | None) -> Value:
        """The tensor with this layout: itself, or a copy."""
        value = self.values[s.name]
        if _tensor(value).layout == layout:
            return value
        assert layout is not None
        dims = tuple(Dim(f"d{i}", n) for i, n in enumerate(s.shape))
        nest = Structured(dims, "map", (identity(s.shape),), (None,), 0)
        result = replace(s, name=self.name(f"{s.name}.s"))
        return self.compute(Layer(result, nest, (s,), Block(), Block(), ""), layout, result)

    def name(self, wish: str) -> str:
        """`wish`, with a number where another tensor has that name."""
        taken, name, k = {*self.values, *(x.result.name for x in self.layers.layers)}, wish, 1
        while name in taken:
            name, k = f"{wish}{k}", k + 1
        return name

    def place(self, layer: Layer) -> None:
        layouts = [None if o.constant else _tensor(self.values[o.name]).layout for o in layer.operands]
        plan = self.choose(layer, layouts)
        nest = layer.nest
        if plan.combine is None:
            self.compute(layer, plan.plan, layer.result)
            return
        nodes = Stored(f"{layer.result.name}.nodes", (), accumulator_type(layer))
        first = replace(nest, maps=nest.maps[: nest.n_term], fills=nest.fills[: nest.n_term])
        made = self.compute(
            replace(layer, nest=first, operands=layer.operands[: nest.n_term], epilogue=Block()), plan.plan, nodes
        )
        shape = _tensor(made).shape
        slot = nest.parallel
        own = tuple(Entry(((d, 1),)) for d in range(nest.parallel))
        stage = Structured(
            (*nest.dims[: nest.parallel], Dim("slot", shape[0], True)),
            {"mac": "sum", "lookup": "or"}.get(nest.kind, nest.kind),
            ((Entry(((slot, 1),)), *own), *nest.maps[nest.n_term :]), (None, *nest.fills[nest.n_term :]), 1, slot, 1,
        )  # fmt: skip
        operands = (Stored(nodes.name, shape, nodes.dtype), *layer.operands[nest.n_term :])
        self.compute(replace(layer, nest=stage, operands=operands, term=Block()), plan.combine, layer.result)

    def compute(self, layer: Layer, plan: Layout, result: Stored) -> Value:
        extents = tuple(d.extent for d in layer.nest.dims)
        plan.check(extents, self.mesh)
        operands = []
        for o, index, fill in zip(layer.operands, layer.nest.maps, layer.nest.fills, strict=True):
            need = need_of(extents, index, o.shape, plan)
            operands.append(
                self.constant(o, need, fill, layer.origin) if o.constant else self.fetch(o, need, fill, layer.origin)
            )
        regions = [(n, b) for n, b in (("term", layer.term), ("epilogue", layer.epilogue)) if b.ops]
        attrs = ComputeAttrs(layer.nest, plan, result.dtype.name, tuple(n for n, _ in regions))
        value = Value(compute_type(attrs), result.name)
        self.ops.append(
            Op("dist.compute", tuple(operands), attrs, (value,), tuple(b for _, b in regions), layer.origin)
        )
        self.values[result.name] = value
        return value

    def fetch(self, o: Stored, need: Need, fill: float | None, origin: str) -> Value:
        """The tensor itself where every core owns what it needs; else a window, delivered by an exchange."""
        source = self.gathered[o.name] if o.constant else self.values[o.name]
        layout = _tensor(source).layout
        assert layout is not None
        x = exchange_of(layout, o.shape, need, self.mesh)
        if in_place(x, layout, need):
            return source
        key = (o.name, o.constant, need, fill if x.padded else None)
        if key not in self.windows:
            w = Value(WindowType(o.shape, o.dtype, need), f"{o.name}.w")
            attrs = ExchangeAttrs(fill if x.padded and fill is not None else 0.0)
            self.ops.append(Op("dist.exchange", (source,), attrs, (w,), (), origin))
            self.windows[key] = w
        return self.windows[key]

    def constant(self, o: Stored, need: Need, fill: float | None, origin: str) -> Value:
        """A constant stays resident in its window while the budget lasts; larger ones are gathered for each use."""
        key = (o.name, o.constant, need, fill)
        if key in self.windows:
            return self.windows[key]
        size = math.prod(need.local_shape(self.mesh)) * o.dtype.bytes
        if self.whole.resident + size <= self.whole.budget:
            self.whole.resident += size
            w = Value(WindowType(o.shape, o.dtype, need), o.name)
            self.ops.append(Op("dist.const", (), DistConstAttrs(o.name, fill or 0.0), (w,), (), origin))
            self.windows[key] = w
            return w
        if o.name not in self.gathered:
            v = Value(TensorType(o.shape, o.dtype, shard(o.shape, need, self.mesh)), o.name)
            self.ops.append(Op("dist.const", (), DistConstAttrs(o.name), (v,), (), origin))
            self.gathered[o.name] = v
        return self.fetch(o, need, fill, origin)


def _tensor(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def shard(shape: tuple[int, ...], need: Need, mesh: Mesh) -> Layout:
    """A home for a gathered constant, as evenly spread as its extents allow: the last dim that its user cuts stays cut
    so, the dims in front of it are flattened over the other factors, and what is left refines the cut."""
    if not shape:
        return Layout((), mesh.names)
    column, axes, k = len(shape) - 1, list[str](), 0
    for c in need.components:
        if c.span == 1 and len(c.parts) == 1 and len(c.parts[0].extents) == 1 and c.shape[0] > 1:
            column, axes = k, list(c.parts[0].axes)
        k += c.span
    rows, take = math.prod(shape[:column]), list[str]()
    for a in (a for a in mesh.names if a not in axes):
        if mesh.parts((*take, a)) <= rows:
            take.append(a)
        elif mesh.parts((*axes, a)) <= shape[column]:
            axes.append(a)
    groups = [Group(column, tuple(take), -(-rows // mesh.parts(tuple(take))))] if take else [Group()] * column
    groups.append(Group(1, tuple(axes), -(-shape[column] // mesh.parts(tuple(axes)))) if axes else Group())
    groups += [Group()] * (len(shape) - column - 1)
    return Layout(tuple(groups), tuple(a for a in mesh.names if a not in (*take, *axes)))
