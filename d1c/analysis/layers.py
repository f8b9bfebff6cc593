"""The layers of a graph: every op that does work, as one structured op over stored tensors, views composed away.

Views (reshape, transpose, slice, ...) move no data: they become part of their consumers' index maps. Where a chain does
not compose, or would break a rule of the consumer, a copying layer stores the viewed tensor first. Nothing here sees a
machine or a plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from d1c.errors import TypeMismatch
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.structured import Dim, Entry, Map, Outside, Structured
from d1c.ir.types import TensorType
from d1c.ops.graph.attention import AttentionAttrs, keys_of, region_map
from d1c.ops.graph.loop import LoopAttrs
from d1c.ops.opdef import opdef
from d1c.target.dtypes import DType


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that exists in SRAM: a function argument, a constant or a layer's result, in its stored shape."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    constant: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """How a graph value is read: `entries` address the stored tensor's dims by the value's own dims."""

    base: Stored
    shape: tuple[int, ...]
    entries: Map


@dataclass(frozen=True, slots=True)
class Layer:
    """One structured op. `operands` follow `nest.maps`; `term` and `epilogue` are blocks of elementwise graph ops over
    scalars (rank-0 tensors), empty where there is none: term over operands[:n_term], epilogue over (accumulator, the
    others)."""

    result: Stored
    nest: Structured
    operands: tuple[Stored, ...]
    term: Block
    epilogue: Block
    origin: str


@dataclass(frozen=True, slots=True)
class Again:
    """A loop: an opaque step that reads stored tensors, none of them a constant, and stores `results`."""

    results: tuple[Stored, ...]
    operands: tuple[Stored, ...]
    attrs: LoopAttrs
    origin: str


@dataclass(frozen=True, slots=True)
class Layers:
    """All steps in order, the stored inputs and constants, and which stored tensors are the function's results."""

    inputs: tuple[Stored, ...]
    constants: tuple[Stored, ...]
    steps: tuple[Layer | Again, ...]
    outputs: tuple[Stored, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(s for s in self.steps if isinstance(s, Layer))


BRANCH = "branch"
"""The first dim of layers of several branches (d1c.analysis.branches)."""
Operand = tuple[Value, Map, Outside]
"""A graph value, the map through which a nest reads it, and what the nest sees outside it."""


def identity(shape: Sequence[int]) -> Map:
    """Every dim by itself. Dims of size 1 too: a window may reach outside them."""
    return tuple(Entry(((i, 1),)) for i in range(len(shape)))


def copying(result: Stored, source: Stored, entries: Map, origin: str) -> Layer:
    """A layer that stores what is read of `source` through `entries`."""
    dims = tuple(Dim(f"d{i}", n) for i, n in enumerate(result.shape))
    return Layer(result, Structured(dims, "map", (entries,), (None,), 0), (source,), Block(), Block(), origin)


def merging(parts: tuple[Value, ...], dtype: DType, origin: str) -> Block:
    """The body of a map of whose operands one is inside its tensor."""
    merge = Op("dist.merge", parts, results=(Value(TensorType((), dtype)),), origin=origin)
    return Block(parts, (merge, Op("dist.yield", merge.results)))


def _trim(e: Entry, shape: Sequence[int]) -> Entry:
    """Without the terms that are always 0."""
    return replace(e, terms=tuple((d, c) for d, c in e.terms if shape[d] != 1))


def _is_identity(view: Map, shape: Sequence[int]) -> bool:
    return [_trim(e, shape) for e in view] == [_trim(e, shape) for e in identity(shape)]


def substitute(entry: Entry, inner: Sequence[Entry]) -> Entry:
    """`entry` over dims that are themselves affine (`inner`, span 1) in other dims."""
    terms: dict[int, int] = {}
    offset = entry.offset
    for d, c in entry.terms:
        offset += c * inner[d].offset
        for e, f in inner[d].terms:
            terms[e] = terms.get(e, 0) + c * f
    return Entry(tuple(sorted((d, c) for d, c in terms.items() if c)), offset, entry.span)


def compose(outer: Map, shape: tuple[int, ...], inner: Map, base: tuple[int, ...]) -> Map | None:
    """The map that reads a stored tensor through a view: `outer` addresses the view's dims (of extents `shape`),
    `inner` the stored tensor's dims (of extents `base`) by the view's. None where the result is not affine."""
    by_dim: dict[int, Entry] = {}
    spans: dict[int, tuple[int, Entry]] = {}  # first dim -> (span, entry)
    k = 0
    for e in outer:
        if e.span == 1:
            by_dim[k] = e
        else:
            spans[k] = (e.span, e)
        k += e.span
    if not spans:
        dims = [by_dim[i] for i in range(len(shape))]
        return tuple(substitute(e, dims) for e in inner)
    out: list[Entry] = []
    i = 0
    while i < len(inner):
        e = inner[i]
        joint = next(((k, n, s) for k, (n, s) in spans.items() if any(k <= d < k + n for d, _ in e.terms)), None)
        if joint is None:
            if any(d not in by_dim for d, _ in e.terms):
                return None
            out.append(substitute(e, [by_dim.get(d, Entry()) for d in range(len(shape))]))
            i += 1
            continue
        k, n, s = joint
        strides = [math.prod(shape[k + j + 1 : k + n]) for j in range(n)]
        coefs = dict(_trim(e, shape).terms)
        unit = next((coefs[k + j] // strides[j] for j in range(n) if k + j in coefs), 0)
        if (
            e.span == 1
            and set(coefs) == {k + j for j in range(n) if shape[k + j] != 1}
            and all(coefs.get(k + j, unit * strides[j]) == unit * strides[j] for j in range(n))
        ):  # the spanned dims are one stored dim, row-major
            out.append(substitute(Entry(((0, unit),), e.offset), [replace(s, span=1)]))
            i += 1
            continue
        wanted = [Entry(((k + j, 1),)) if shape[k + j] != 1 else Entry() for j in range(n)]
        at = sum(x.span for x in inner[:i])
        whole = base[at + 1 : at + n] == shape[k + 1 : k + n]  # else a slice: its rows are not adjacent
        if whole and [_trim(x, shape) for x in inner[i : i + n]] == wanted:  # the spanned dims are stored just so
            out.append(s)
            i += n
            continue
        return None
    return tuple(out)


def layers_of(module: Module, function: str = "main") -> Layers:
    """The layers of a graph module's function. Raises TypeMismatch where a tensor that is stored or read is empty."""
    _refuse_empty(module, module.function(function))
    return _Builder(module.function(function)).run()


def _refuse_empty(module: Module, function: Function) -> None:
    """No core could own a share of it, and no kernel has a trip."""
    outputs = module.attrs.get("outputs", ()) if function.name == "main" else ()
    named = [(v, f"input {v.name!r}", "") for v in function.block.args]
    for op in function.block.ops:
        if opdef(op.name).kind not in ("constant", "view"):
            known = [f"output {name!r}" for name in outputs] if op.name == "graph.return" else []
            for v, what in zip_longest((*op.operands, *op.results), known):
                named.append((v, what or f"{v.name or 'a tensor'!r} of {op.name}", op.origin))
    for v, what, origin in named:
        if 0 in _tensor(v).shape:
            raise TypeMismatch(
                f"{what} is empty: its shape is {list(_tensor(v).shape)}",
                where=origin,
                rule="tensors of the program have at least one element",
                remedy="give the dimension another value (--dim), or take the node out of the model",
            )


class _Builder:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.views: dict[Value, View] = {}
        self.steps: list[Layer | Again] = []
        self.constants: list[Stored] = []
        # Values are told apart by name from here on: those of constants are taken, and inputs keep theirs.
        constants = {op.attrs.name for op in function.block.ops if opdef(op.name).kind == "constant"}
        self.names: set[str] = constants - {v.name for v in function.block.args}
        self.copies: dict[tuple[str, Map, tuple[int, ...]], Stored] = {}

    def run(self) -> Layers:
        inputs = []
        for v in self.function.block.args:
            s = Stored(self.name(v.name), _tensor(v).shape, _tensor(v).dtype)
            inputs.append(s)
            self.views[v] = View(s, s.shape, identity(s.shape))
        outputs: tuple[Stored, ...] = ()
        for op in self.function.block.ops:
            row = opdef(op.name)
            if op.name == "graph.return":
                outputs = tuple(self.output(v, op, i) for i, v in enumerate(op.operands))
            elif row.kind == "constant":
                s = Stored(op.attrs.name, _tensor(op.result).shape, _tensor(op.result).dtype, constant=True)
                self.constants.append(s)
                self.views[op.result] = View(s, s.shape, identity(s.shape))
            elif row.kind == "view":
                self.views[op.result] = self.view(op)
            elif isinstance(op.attrs, LoopAttrs):
                self.again(op, op.attrs)
            else:
                self.layer(op)
        return Layers(tuple(inputs), tuple(self.constants), tuple(self.steps), outputs)

    def name(self, wish: str) -> str:
        base = wish or f"t{len(self.names)}"
        name, k = base, 1
        while name in self.names:
            k += 1
            name = f"{base}_{k}"
        self.names.add(name)
        return name

    def view(self, op: Op) -> View:
        (x,) = op.operands
        have = self.views[x]
        row = opdef(op.name)
        assert row.view is not None
        shape = _tensor(op.result).shape
        step = row.view((x.type,), op.attrs, (op.result.type,))
        made = compose(step.entries, have.shape, have.entries, have.base.shape) if step is not None else None
        if made is None:
            have = self.copy(have, x.name, op.origin)
            made = compose(step.entries, have.shape, have.entries, have.base.shape) if step is not None else None
        if made is None:
            raise ValueError(f"{op.name} at {op.origin or 'unknown place'} is not an affine view")
        return View(have.base, shape, made)

    def copy(self, view: View, wish: str, origin: str) -> View:
        """A layer that stores the viewed tensor in its own shape."""
        key = (view.base.name, view.entries, view.shape)
        if key not in self.copies:
            stored = Stored(self.name(wish), view.shape or (1,), view.base.dtype)
            self.steps.append(copying(stored, view.base, view.entries, origin))
            self.copies[key] = stored
        stored = self.copies[key]
        return View(stored, view.shape, identity(stored.shape) if view.shape else (Entry(),))

    def output(self, v: Value, op: Op, number: int) -> Stored:
        view = self.views[v]
        made = any(view.base in (s.results if isinstance(s, Again) else (s.result,)) for s in self.steps)
        if self.function.name != "main":  # a body may return what it captured, and a carried value in its own place
            carried = self.function.block.args[: len(op.operands)]
            made = made or self.views[carried[number]].base is view.base
            made = made or all(self.views[x].base is not view.base for x in carried)
        if made and _whole(view) and not view.base.constant:
            return view.base
        return self.copy(view, v.name or f"out{number}", op.origin).base

    def again(self, op: Op, attrs: LoopAttrs) -> None:
        """A loop: its operands are stored as they are."""
        operands = []
        for v in op.operands:
            view = self.views[v]
            view = view if _whole(view) and not view.base.constant else self.copy(view, v.name, op.origin)
            operands.append(view.base)
        results = tuple(Stored(self.name(r.name), _tensor(r).shape, _tensor(r).dtype) for r in op.results)
        self.views.update((r, View(s, s.shape, identity(s.shape))) for r, s in zip(op.results, results, strict=True))
        self.steps.append(Again(results, tuple(operands), attrs, op.origin))

    def layer(self, op: Op) -> None:
        body = op.regions[0] if op.regions else None
        inner = list(body.ops[:-1]) if body else [op]
        anchor = next((o for o in inner if opdef(o.name).kind not in ("elementwise",)), None)
        result = _tensor(op.result)
        if isinstance(op.attrs, AttentionAttrs):
            self.attention(op, op.attrs)
            return
        outer = dict(zip(body.args, op.operands, strict=True)) if body else {v: v for v in op.operands}
        value = body.ops[-1].operands[0] if body else op.result
        if anchor is None:
            shape = _tensor(op.result).shape
            nest = Structured(tuple(Dim(f"d{i}", n) for i, n in enumerate(shape)), "map", (), (), 0)
            self.finish(op, nest, [], Block(), inner, value, None, shape, identity(shape), outer, result.dtype)
            return
        row = opdef(anchor.name)
        assert row.structure is not None
        types = tuple(v.type for v in anchor.operands)
        nest = row.structure(types, anchor.attrs, tuple(v.type for v in anchor.results))
        shape = _tensor(anchor.result).shape
        reach = _result_entries(shape, nest)
        before = [o for o in inner if o is not anchor and _feeds(o, anchor, inner)]
        after = [o for o in inner if o is not anchor and o not in before]
        if row.kind == "map" or (anchor is op and nest.kind == "map"):
            self.map_layer(op, anchor, nest, outer, result)
            return
        if not before:
            reads = [(outer[v], m, f) for v, m, f in zip(anchor.operands, nest.maps, nest.fills, strict=True)]
            term = _combining(anchor)
            self.finish(op, nest, reads, term, after, value, anchor.result, shape, reach, outer, result.dtype)
            return
        # elementwise ops in front of a reduction: the term reads their operands through the reduction's map
        (read,), base = nest.maps, _tensor(anchor.operands[0]).shape
        args: dict[Value, Value] = {}
        reads = []
        for o in before:
            for v in o.operands:
                if v in outer and v not in args:
                    args[v] = Value(TensorType((), _tensor(v).dtype), v.name)
                    index = _broadcast(_tensor(v).shape, read, len(base))
                    reads.append((outer[v], index, None))
        ops, env = _scalars(before, dict(args))
        term = Block(tuple(args.values()), (*ops, Op("dist.yield", (env[anchor.operands[0]],))))
        nest = replace(nest, n_term=len(reads))
        self.finish(op, nest, reads, term, after, value, anchor.result, shape, reach, outer, result.dtype)

    def attention(self, op: Op, attrs: AttentionAttrs) -> None:
        """An attention; its region is the epilogue, over a product of queries and keys and the operands behind."""
        (region,), structure = op.regions, opdef(op.name).structure
        assert structure is not None
        nest = structure(tuple(v.type for v in op.operands), attrs, (op.result.type,))
        reads: list[Operand] = list(zip(op.operands, nest.maps, nest.fills, strict=False))
        odd = math.prod(d.extent for d in nest.dims[nest.parallel : nest.parallel + 2]) > keys_of(nest)
        args = {region.args[0]: Value(TensorType((), _tensor(region.args[0]).dtype), "acc")}
        for a, v in zip(region.args[1:], op.operands[nest.n_term :], strict=True):
            args[a] = Value(TensorType((), _tensor(a).dtype), a.name)
            reads.append((v, region_map(_tensor(v).shape, nest, attrs.order), 0.0 if odd else None))
        ops, env = _scalars(list(region.ops[:-1]), dict(args))
        block = Block(tuple(args.values()), (*ops, Op("dist.yield", (env[region.ops[-1].operands[0]],))))
        self.store(op, nest, reads, Block(), block if ops else Block(), _tensor(op.result))

    def map_layer(self, op: Op, anchor: Op, nest: Structured, outer: dict[Value, Value], result: TensorType) -> None:
        """pad, concat, pack, copy: a map with fills; its body, if any, joins the operands."""
        reads = [(outer[v], m, f) for v, m, f in zip(anchor.operands, nest.maps, nest.fills, strict=True)]
        args = tuple(Value(TensorType((), _tensor(v).dtype), v.name) for v, _, _ in reads)
        body = Block()
        if opdef(anchor.name).body is not None and len(args) > 1:
            body = merging(args, result.dtype, op.origin)
        self.store(op, nest, reads, Block(), body, result)

    def finish(
        self, op: Op, nest: Structured, reads: Sequence[Operand], term: Block, after: list[Op], value: Value,
        anchor: Value | None, shape: tuple[int, ...], reach: Map, outer: dict[Value, Value], out: DType,
    ) -> None:  # fmt: skip
        """Add the epilogue's operands and store the layer. `reach`: the anchor result's dims over the nest's dims."""
        args: dict[Value, Value] = {}
        if anchor is not None:
            args[anchor] = Value(TensorType((), _tensor(anchor).dtype), "acc")
        reads = [*reads]
        for o in after:
            for v in o.operands:
                if v in outer and v not in args:
                    args[v] = Value(TensorType((), _tensor(v).dtype), v.name)
                    reads.append((outer[v], _broadcast(_tensor(v).shape, reach, len(shape)), None))
        epilogue = Block()
        if after:
            ops, env = _scalars(after, dict(args))
            epilogue = Block(tuple(args.values()), (*ops, Op("dist.yield", (env[value],))))
        elif anchor is None and value in outer:  # an empty group: a plain copy
            reads.append((outer[value], reach, None))
        self.store(op, nest, reads, term, epilogue, TensorType(shape, out))

    def store(
        self, op: Op, nest: Structured, reads: Sequence[Operand], term: Block, epilogue: Block, result: TensorType
    ) -> None:
        nest = replace(nest, maps=tuple(m for _, m, _ in reads), fills=tuple(f for _, _, f in reads))
        if nest.parallel == 0:  # a scalar result: one iteration
            up = [tuple(Entry(tuple((d + 1, c) for d, c in e.terms), e.offset, e.span) for e in m) for m in nest.maps]
            nest = replace(
                nest, dims=(Dim("u", 1), *nest.dims), maps=tuple(up), cut=None if nest.cut is None else nest.cut + 1
            )
        maps: list[Map] = []
        bases: list[Stored] = []
        for (v, _, fill), direct in zip(reads, nest.maps, strict=True):
            view = self.views[v]
            made = compose(direct, view.shape, view.entries, view.base.shape)
            if made is None or not _allowed(nest, len(maps), fill, made, direct, view):
                view = self.copy(view, v.name, op.origin)
                made = compose(direct, view.shape, view.entries, view.base.shape)
            assert made is not None
            maps.append(made)
            bases.append(view.base)
        nest = replace(nest, maps=tuple(maps))
        shape = _tensor(op.result).shape
        stored = Stored(self.name(op.result.name), nest.out_shape, result.dtype)
        self.steps.append(Layer(stored, nest, tuple(bases), term, epilogue, op.origin))
        if stored.shape == shape:
            entries: Map = identity(shape)
        elif not shape:
            entries = (Entry(),)
        else:  # grouped convolution: the last dim is stored as (group, channel)
            last = len(shape) - 1
            entries = (*identity(stored.shape[:-2]), Entry(((last, 1),), 0, 2))
        self.views[op.result] = View(stored, shape, entries)


def _whole(view: View) -> bool:
    """Whether a view is its stored tensor."""
    return view.base.shape == view.shape and _is_identity(view.entries, view.shape)


def _tensor(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def _combining(anchor: Op) -> Block:
    """How a scatter's update (argument 1) joins what its row holds (argument 0); empty where it takes its place."""
    combine = opdef(anchor.name).facts.get("combine")
    name = combine(anchor.attrs) if combine else None
    if name is None:
        return Block()
    held, update = (Value(TensorType((), _tensor(v).dtype), v.name) for v in (anchor.operands[0], anchor.operands[2]))
    row = opdef(name)
    made = Op(name, (held, update), row.attrs(), (Value(row.infer((held.type, update.type), row.attrs())[0]),))
    return Block((held, update), (made, Op("dist.yield", made.results)))


def _feeds(op: Op, anchor: Op, ops: list[Op]) -> bool:
    """Whether the anchor needs `op`'s result."""
    wanted = set(anchor.operands)
    for o in reversed(ops):
        if any(r in wanted for r in o.results):
            wanted |= set(o.operands)
    return any(r in wanted for r in op.results)


def _result_entries(shape: tuple[int, ...], nest: Structured) -> Map:
    """The anchor result's dims over the iteration dims: the identity, or (g, o) joined."""
    if nest.out_shape == shape or not shape:
        return identity(shape)
    last = len(shape) - 1
    return (*identity(shape[:-1]), Entry(((last, nest.dims[last + 1].extent), (last + 1, 1))))


def _broadcast(shape: tuple[int, ...], reach: Map, rank: int) -> Map:
    """How an operand of `shape` is read where the full-rank value is read through `reach`."""
    skip = rank - len(shape)
    return tuple(Entry() if n == 1 else reach[skip + i] for i, n in enumerate(shape))


def _scalars(ops: list[Op], env: dict[Value, Value]) -> tuple[tuple[Op, ...], dict[Value, Value]]:
    """The elementwise ops over scalars instead of tensors."""
    out = []
    for o in ops:
        results = tuple(Value(TensorType((), _tensor(r).dtype), r.name) for r in o.results)
        out.append(Op(o.name, tuple(env[v] for v in o.operands), o.attrs, results, (), o.origin))
        env.update(zip(o.results, results, strict=True))
    return tuple(out), env


def _allowed(nest: Structured, number: int, fill: float | None, made: Map, direct: Map, view: View) -> bool:
    """Whether an operand may be read through its view: padding must stay outside the stored tensor too, and the matrix
    unit wants the reduce dim of its rows, and its packed operand, contiguous."""
    if fill is not None:
        for k, e in enumerate(direct):
            lo = e.offset + sum(min(0, c * (nest.dims[d].extent - 1)) for d, c in e.terms)
            hi = e.offset + sum(max(0, c * (nest.dims[d].extent - 1)) for d, c in e.terms)
            if lo >= 0 and hi < view.shape[k]:
                continue
            alone = Entry(((k, 1),))
            at = [i for i, x in enumerate(view.entries) if any(d == k for d, _ in x.terms)]
            if [view.entries[i] for i in at] != [alone] or _stored_extent(view, at[0]) != view.shape[k]:
                return False
    if (nest.kind, number) in (("mac", 0), ("attention", 0), ("attention", 1)):
        if not made:  # a stored scalar has no dim for the channels
            return False
        channel, pair = len(nest.dims) - 2, len(nest.dims) - 1
        width = nest.dims[pair].extent
        last = dict(made[-1].terms)
        others = any(d in (channel, pair) for x in made[:-1] for d, _ in x.terms)
        return not others and last.get(channel, width) == width and last.get(pair, 1) == 1
    if (nest.kind, number) in (("mac", 1), ("attention", 2)):
        return view.base.shape == view.shape and _is_identity(view.entries, view.shape)
    return True


def _stored_extent(view: View, entry: int) -> int:
    k = sum(e.span for e in view.entries[:entry])
    return math.prod(view.base.shape[k : k + view.entries[entry].span])
