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
      func @main(%x: tensor<64x12xf32, [0: nr nc.0-1 / 8, 1 | dc]>, %w: tensor<12x4xf32, [0, 1 | dc nr nc.0-1]>) {
        %w.w = dist.exchange(%w) : window<12x4xf32, [12 rest 0 11, 4 rest 0 3 | nr nc.0-1 held dc]>
        %y = dist.compute(%x, %w.w)
            {nest = #nest"mac (m 64, n 4 | k 12, e 1) cut k / 12 term 2 [m, k+e : 0.0] [k, n]",
             plan = #layout"[0: nr nc.0-1 / 8, 1, 2, 3 | dc]", out = "f32", regions = ["epilogue"]} ({
          ^(%acc: tensor<f32>):
          %r = graph.relu(%acc) : tensor<f32>
          dist.yield(%r)
        }) : tensor<64x4xf32, [0: nr nc.0-1 / 8, 1 | dc]>
        dist.return(%y)
      }
    }

The 8 cores of the first die take 8 rows each, which they own; they all receive `w` from the core that has it. On both
dies of the machine `test` the work would take half as long, but the way to the second die costs more than that.

Branches of the graph that are alike become one layer per step, with a dim `branch` that a plan may cut, so that each
runs in a region of its own (d1c.analysis.branches), where that costs less than one branch after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from d1c.analysis import attention
from d1c.analysis.branches import Beside, beside
from d1c.analysis.exchange import exchange_of, in_place
from d1c.analysis.homes import homes
from d1c.analysis.layers import Again, Layer, Layers, Stored, copying, identity, layers_of
from d1c.analysis.planner import Planner
from d1c.analysis.plans import Plan, operand_need, spread, stages
from d1c.analysis.price import places
from d1c.analysis.random_plans import random_plan
from d1c.analysis.segments import segmented
from d1c.errors import DoesNotFit
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.layout import Need
from d1c.ir.types import TensorType, WindowType
from d1c.ops.dist.compute import ComputeAttrs, DistConstAttrs, ExchangeAttrs, compute_type
from d1c.target.machine import Machine
from d1c.target.mesh import Layout, Mesh

RESIDENT_SHARES = (0.75, 0.6, 0.5, 0.25, 0.0)
"""Shares of a core's SRAM that constants may take for good, tried in this order until the program fits and no epoch
waits for memory; the rest is for activations and for constants that are gathered for each use."""

WINDOW_SHARES = (0.55, 0.35, 0.2)
"""How much of a core's SRAM the windows and the result of one layer may take, if that is possible at all; tried in this
order behind the last of RESIDENT_SHARES."""

STREAM_SHARES = ((0.1, 0.4), (0.05, 0.25), (0.0, 0.15))
"""(resident, window) where constants that are not resident are streamed. Two layers' windows must fit beside each other
if the next one's are to come while one computes."""

STREAM_FROM = 1 / 16
"""Streaming is tried where constants take this part of the SRAM of all cores, or more: with less it frees little."""

SEGMENT = 0.6
"""Part of a layer's windows that a streamed constant may take, spread over all cores."""

ATTEMPTS = (*((r, WINDOW_SHARES[0]) for r in RESIDENT_SHARES), *((0.0, w) for w in WINDOW_SHARES[1:]))
"""(resident, window) in the order in which they are tried."""


def run(
    module: Module, machine: Machine, seed: int | None = None, resident: float = RESIDENT_SHARES[0],
    window: float = WINDOW_SHARES[0], stream: bool = False, branches: bool = True, idle: float = 1.0,
    planners: dict[tuple[float, bool, float], Planner] | None = None,
) -> Module:  # fmt: skip
    """The distributed module. `seed`: random plans instead of priced ones (tests). `resident`, `window`: see
    RESIDENT_SHARES and WINDOW_SHARES. `stream`: constants that are not resident are read from the interface processors'
    memories for their use, instead of being gathered from other cores. `branches`: branches that are alike run side by
    side (d1c.analysis.branches) where that is the cheaper plan, or where plans are random. `idle`: part of the price of
    idle cores that counts. `planners`: what is known from earlier runs for the same machine, by (window, stream, idle).

    The attribute `scalars` names the outputs of shape (), which are stored as [1], `branches` per result of branches
    side by side the results that they have alone. Results whose names the attribute `outputs` does not give
    (hand-written modules) go by the names of their values. Raises TypeMismatch for an empty tensor, DoesNotFit where no
    plan of a layer fits SRAM."""
    if "outputs" not in module.attrs:
        names = tuple(v.name for v in module.function().block.ops[-1].operands)
        module = replace(module, attrs={**module.attrs, "outputs": names})
    results = zip(module.attrs["outputs"], module.function().block.ops[-1].operands, strict=True)
    if scalars := tuple(n for n, v in results if _tensor(v).shape == ()):
        module = replace(module, attrs={**module.attrs, "scalars": scalars})
    known = {} if planners is None else planners
    room = window * machine.data_bytes
    planner = known.setdefault((window, stream, idle), Planner(places(machine), room, stream, idle))
    apart = Beside({f.name: layers_of(module, f.name) for f in module.functions}, module.constants)
    joined = beside(apart) if branches else None
    found: list[tuple[float, Module]] = []
    refused: DoesNotFit | None = None
    for made in (apart,) if joined is None else (joined,) if seed is not None else (apart, joined):
        try:
            found.append(_distributed(module, made, machine, planner, seed, resident))
        except DoesNotFit as error:
            refused = refused or error
    if refused is not None and not found:
        raise refused
    return min(found, key=lambda x: x[0])[1]


def _distributed(
    module: Module, of: Beside, machine: Machine, planner: Planner, seed: int | None, resident: float
) -> tuple[float, Module]:
    """The price of the plans (0: none), and the distributed module."""
    mesh, layers = Mesh(machine.axes), of.layers
    if planner.stream:
        most = SEGMENT * planner.room * mesh.cores
        layers = {k: segmented(x, most, machine.mma_n * mesh.cores) for k, x in layers.items()}
    rng = None if seed is None else np.random.default_rng(seed)
    whole = _Whole(layers, mesh, planner, rng, resident * machine.data_bytes)
    _Distributor(whole, layers["main"]).run("main")
    functions = tuple(whole.functions[f.name] for f in module.functions)
    used = {op.attrs.name for f in functions for op in f.block.ops if op.name == "dist.const"}
    attrs = {**module.attrs, "target": machine.name, "mesh": tuple(mesh.axes)}
    if of.branches:
        attrs["branches"] = tuple(of.branches.items())
    constants = {k: v for k, v in of.constants.items() if k in used}
    return whole.price, Module("dist", functions, constants, attrs)


@dataclass
class _Whole:
    """What the functions of a module share: the layers of all, who plans them (`rng`: plans are drawn), how many bytes
    of constants are resident and may be, and the price of all plans."""

    layers: Mapping[str, Layers]
    mesh: Mesh
    planner: Planner
    rng: np.random.Generator | None
    budget: float
    resident: float = 0.0
    price: float = 0.0
    functions: dict[str, Function] = field(default_factory=dict)


class _Distributor:
    """One function."""

    def __init__(self, whole: _Whole, layers: Layers) -> None:
        self.whole, self.layers, self.mesh = whole, layers, whole.mesh
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.gathered: dict[str, Value] = {}  # constants that are not resident where they are read
        self.windows: dict[tuple[str, bool, Need, float | None], Value] = {}
        self.away: dict[tuple[str, Need], Layout] = {}  # constants that the plans want gathered, and from where

    def run(self, name: str, layouts: Sequence[Layout | None] = ()) -> list[Layout | None]:
        """Distribute function `name`. `layouts`: of its arguments, None (and what is missing) as inputs are spread; a
        body's results come to be where its first arguments are. The layouts that the results have had before."""
        parts: list[tuple[list[Layer], Again | None]] = [([], None)]
        for step in self.layers.steps:
            if isinstance(step, Again):
                parts[-1] = parts[-1][0], step
                parts.append(([], None))
            else:
                parts[-1][0].append(step)
        given = {s.name: x for s, x in zip(self.layers.inputs, layouts, strict=False) if x is not None}
        free = [s for s in self.layers.inputs if name == "main" and self.whole.rng is None]
        lies = {s.name: given.get(s.name) or spread(s.shape, self.mesh) for s in self.layers.inputs}
        plans, inputs = self.plan(parts[0][0], lies, free)
        args = [Value(TensorType(s.shape, s.dtype, {**lies, **inputs}[s.name]), s.name) for s in self.layers.inputs]
        self.values.update((v.name, v) for v in args)
        for number, (layers, loop) in enumerate(parts):
            if number:
                plans, _ = self.plan(layers, {n: _layout(v) for n, v in self.values.items()}, ())
            for layer, plan in zip(layers, plans, strict=True):
                self.place(layer, plan)
            if loop is not None:
                self.loop(loop)
        found = [_tensor(self.values[s.name]).layout for s in self.layers.outputs]
        if name == "main":
            outputs = tuple(self.values[s.name] for s in self.layers.outputs)
        else:
            outputs = tuple(self.placed(s, _tensor(v).layout) for s, v in zip(self.layers.outputs, args, strict=False))
        self.ops.append(Op("dist.return", outputs))
        self.whole.functions[name] = Function(name, Block(tuple(args), tuple(self.ops)))
        return found

    def plan(
        self, layers: Sequence[Layer], lies: Mapping[str, Layout], free: Sequence[Stored]
    ) -> tuple[list[Plan], Mapping[str, Layout]]:
        """The plans of layers that follow each other, and the layouts of the inputs that are `free`."""
        whole = self.whole
        if whole.rng is not None:
            return [random_plan(x, whole.rng, self.mesh) for x in layers], {}
        chosen = whole.planner.plan(layers, lies, free, whole.budget - whole.resident)
        self.away |= chosen.gathered
        whole.price += chosen.cycles
        return [Plan(c.plan, c.combine) for c in chosen.plans], chosen.inputs

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
        result = replace(s, name=self.name(f"{s.name}.s"))
        return self.compute(copying(result, s, identity(s.shape), ""), layout, result)

    def name(self, wish: str) -> str:
        """`wish`, with a number where another tensor has that name."""
        taken, name, k = {*self.values, *(x.result.name for x in self.layers.layers)}, wish, 1
        while name in taken:
            name, k = f"{wish}{k}", k + 1
        return name

    def place(self, layer: Layer, plan: Plan) -> None:
        if layer.nest.kind == "attention":
            for part in attention.parts(layer, attention.shape_of(layer, plan.plan), self.name):
                of = layer.result.name if part.joins or plan.combine is None else f"{layer.result.name}.nodes"
                self.compute(part.layer, part.plan(plan), part.layer.result, of)
            return
        if plan.combine is None:
            self.compute(layer, plan.plan, layer.result)
            return
        slots = compute_type(ComputeAttrs(layer.nest, plan.plan, "f32")).shape[0]
        nodes, combine = stages(layer, slots)
        self.compute(nodes, plan.plan, nodes.result)
        self.compute(combine, plan.combine, layer.result)

    def compute(self, layer: Layer, plan: Layout, result: Stored, of: str = "") -> Value:
        extents = tuple(d.extent for d in layer.nest.dims)
        plan.check(extents, self.mesh)
        operands = []
        for o, index, fill in zip(layer.operands, layer.nest.maps, layer.nest.fills, strict=True):
            need = operand_need(extents, index, o, plan)
            operands.append(
                self.constant(o, need, fill, layer.origin) if o.constant else self.fetch(o, need, fill, layer.origin)
            )
        regions = [(n, b) for n, b in (("term", layer.term), ("epilogue", layer.epilogue)) if b.ops]
        attrs = ComputeAttrs(layer.nest, plan, result.dtype.name, tuple(n for n, _ in regions), of)
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
        if in_place(exchange_of(layout, o.shape, need, self.mesh), layout, need):
            return source
        need = need.moved
        x = exchange_of(layout, o.shape, need, self.mesh)
        key = (o.name, o.constant, need, fill if x.padded else None)
        if key not in self.windows:
            w = Value(WindowType(o.shape, o.dtype, need), f"{o.name}.w")
            [[way]] = self.whole.planner.moves([layout], [need], o.shape, o.dtype.bytes)
            attrs = ExchangeAttrs(fill if x.padded and fill is not None else 0.0, way.by_columns)
            self.ops.append(Op("dist.exchange", (source,), attrs, (w,), (), origin))
            self.windows[key] = w
        return self.windows[key]

    def constant(self, o: Stored, need: Need, fill: float | None, origin: str) -> Value:
        """A constant stays resident in its window while the budget lasts; larger ones are gathered or streamed for each
        use."""
        key = (o.name, o.constant, need, fill)
        if key in self.windows:
            return self.windows[key]
        size = math.prod(need.local_shape()) * o.dtype.bytes
        if self.whole.resident + size <= self.whole.budget and (o.name, need) not in self.away:
            self.whole.resident += size
            return self.window(o, need, fill, origin)
        if self.whole.planner.stream:
            return self.window(o, need, fill, origin, streamed=True)
        if o.name not in self.gathered:
            home = self.away.get((o.name, need)) or self.home(o, need)
            self.whole.resident += math.prod(home.local_shape(o.shape)) * o.dtype.bytes
            v = Value(TensorType(o.shape, o.dtype, home), o.name)
            self.ops.append(Op("dist.const", (), DistConstAttrs(o.name), (v,), (), origin))
            self.gathered[o.name] = v
        return self.fetch(o, need, fill, origin)

    def home(self, o: Stored, need: Need) -> Layout:
        """Where a constant lies that nobody has planned a home for: spread over all cores, or drawn as plans are."""
        rng, known = self.whole.rng, homes(o.shape, need, self.mesh)
        return known[-1] if rng is None else known[int(rng.integers(len(known)))]

    def window(self, o: Stored, need: Need, fill: float | None, origin: str, streamed: bool = False) -> Value:
        """A constant where it is read."""
        w = Value(WindowType(o.shape, o.dtype, need), o.name)
        self.ops.append(Op("dist.const", (), DistConstAttrs(o.name, fill or 0.0, streamed), (w,), (), origin))
        if not streamed:
            self.windows[o.name, o.constant, need, fill] = w
        return w


def _layout(v: Value) -> Layout:
    layout = _tensor(v).layout
    assert layout is not None
    return layout


def _tensor(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type
