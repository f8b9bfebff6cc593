"""Layers that do the same to other tensors, as branches for several cameras or heads on one map do, side by side.

Side by side they are one layer with one more dim, `branch`. A plan that gives that dim factors of the mesh runs every
branch in a region of its own, all at once; one that does not runs them after each other in one call. The constants of
the branches lie behind each other, and who reads a branch reads a slice. No bit depends on it: what a branch adds up
it adds up in the order in which it did alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter

import numpy as np

from d1c.analysis.candidates import signature
from d1c.analysis.layers import BRANCH, Again, Layer, Layers, Stored, copying, identity
from d1c.analysis.segments import copied, joined, unused
from d1c.ir.structured import Dim, Entry, Map

KINDS = ("map", "mac", "fma", "sum", "prod", "max", "min", "or")
"""Kinds of layers that may have the dim. The others know their dims by number."""


@dataclass(frozen=True, slots=True)
class _Read:
    """How layers side by side read an operand: branch i is in the results of `side`, or in a tensor that all read, the
    branches `step` apart in entry `entry` of the map, or (`own`) in a tensor of its own."""

    side: _Side | None = None
    own: bool = False
    entry: int = 0
    step: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class _Side:
    """Layers that become one, by branch; how their operands are read; the results of all."""

    members: tuple[Layer, ...]
    reads: tuple[_Read, ...]
    result: Stored


@dataclass(frozen=True, slots=True)
class Beside:
    """The layers of a module by function, its constants, and per result of layers side by side, by name, the names of
    the results that they have alone."""

    layers: Mapping[str, Layers]
    constants: Mapping[str, np.ndarray]
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def beside(apart: Beside) -> Beside | None:
    """The same with layers side by side where that can be. None where it cannot be anywhere."""
    layers, constants, branches = dict(apart.layers), dict(apart.constants), dict(apart.branches)
    for function, one in apart.layers.items():
        found = _Finder(one, set(constants))
        if found.sides:
            layers[function] = _Builder(found, constants).run()
            branches |= {s.result.name: tuple(x.result.name for x in s.members) for s in found.sides}
    return Beside(layers, constants, branches) if branches else None


def has_branches(layers: Layers) -> bool:
    """Whether some of a function's layers could be side by side."""
    return bool(_Finder(layers, set()).sides)


class _Finder:
    """What can be side by side: layers that are alike and read one tensor, or an input of the graph each; and those
    behind them that are alike and read, each in its branch, what such layers have made."""

    def __init__(self, layers: Layers, names: set[str]) -> None:
        self.layers = layers
        self.names = names | {s.name for s in layers.inputs} | {s.name for x in layers.steps for s in _results(x)}
        self.inputs = {s.name for s in layers.inputs}
        self.at: dict[str, tuple[_Side, int]] = {}  # of a result: its side and branch
        self.sides: list[_Side] = []
        outputs = {s.name for s in layers.outputs}  # a copy to one of them would be copied once more
        self.kinds = {
            x.result.name: _kind(x) for x in layers.layers
            if x.nest.kind in KINDS and (x.epilogue.ops or x.nest.kind != "map" or x.result.name not in outputs)
        }  # fmt: skip
        first: dict[object, list[Layer]] = {}
        for x in layers.layers:
            if x.result.name in self.kinds:
                reads = tuple((o.constant or o.name in self.inputs) or o.name for o in x.operands)
                same = tuple(o.name for o in x.operands if not o.constant)
                for key in (reads, same):
                    first.setdefault((self.kinds[x.result.name], key), []).append(x)
        for alike in first.values():
            left = tuple(x for x in alike if x.result.name not in self.at)
            before = self.at
            if len(left) > 1 and self.take(left):
                if not self.more():  # no branches: nothing follows
                    self.at = before
                    self.sides.pop()
                while self.more():
                    pass

    def more(self) -> bool:
        """Take what is behind what has been taken. Whether there was any."""
        alike: dict[object, dict[int, list[Layer]]] = {}
        for x in self.layers.layers:
            if x.result.name not in self.kinds or x.result.name in self.at:
                continue
            reads = [self.at.get(o.name) for o in x.operands if not o.constant]
            branches = {r[1] for r in reads if r}
            if len(branches) == 1:
                pairs = zip(reads, _variables(x), strict=True)
                of = tuple(id(r[0]) if r else o.name in self.inputs or o.name for r, o in pairs)
                by_branch = alike.setdefault((self.kinds[x.result.name], of), {})
                by_branch.setdefault(branches.pop(), []).append(x)
        taken = False
        for by_branch in alike.values():
            (x, *_) = next(iter(by_branch.values()))
            count = len(next(self.at[o.name][0] for o in _variables(x) if o.name in self.at).members)
            if len(by_branch) == count and all(len(b) == 1 for b in by_branch.values()):
                taken |= self.take(tuple(by_branch[i][0] for i in range(count)))
        return taken

    def take(self, members: tuple[Layer, ...]) -> bool:
        """Put layers that are alike side by side, if their operands allow it. None waits for another: they read the
        same tensors, inputs, or what layers side by side have made."""
        reads = [self.read(i, members) for i in range(len(members[0].operands))]
        known = tuple(r for r in reads if r is not None)
        if len(known) < len(reads) or all(r == _Read() for r in known):
            return False
        first = members[0].result
        name = unused(f"{first.name}.x{len(members)}", self.names)
        side = _Side(members, known, replace(first, name=name, shape=(len(members), *first.shape)))
        self.at = {**self.at, **{x.result.name: (side, i) for i, x in enumerate(members)}}
        self.sides.append(side)
        return True

    def read(self, i: int, members: Sequence[Layer]) -> _Read | None:
        """How operand `i` is read; None: not in a way that one layer can have."""
        operands, maps = [x.operands[i] for x in members], [x.nest.maps[i] for x in members]
        offsets = np.array([[e.offset for e in m] for m in maps])
        if len({(o.name, o.constant) for o in operands}) == 1:
            steps = np.diff(offsets, axis=0)
            entries = np.flatnonzero(steps[0])
            if (steps != steps[0]).any() or len(entries) > 1 or (len(entries) and _packed(members[0], i)):
                return None
            return _Read(entry=int(entries[0]), step=int(steps[0, entries[0]])) if len(entries) else _Read()
        if (offsets != offsets[0]).any():
            return None
        at = [self.at.get(o.name) for o in operands]
        if not operands[0].constant and at[0] is not None:
            whole = [(at[0][0], k) for k in range(len(members))]
            return _Read(at[0][0]) if at == whole and len(members) == len(at[0][0].members) else None
        own = all(o.constant or o.name in self.inputs for o in operands)
        return _Read(own=True) if own and len({o.name for o in operands}) == len(operands) else None


class _Builder:
    """The layers with what has been found side by side. `constants` gets those of the branches."""

    def __init__(self, found: _Finder, constants: dict[str, np.ndarray]) -> None:
        self.found, self.constants = found, constants
        self.stored: dict[tuple[str, ...], Stored] = {}
        self.steps: list[Layer | Again] = []

    def run(self) -> Layers:
        layers = self.found.layers
        for step in ordered(layers, self.found.at):
            if isinstance(step, _Side):
                self.side(step)
            elif isinstance(step, Again):
                self.steps.append(replace(step, operands=tuple(map(self.whole, step.operands))))
            else:
                self.alone(step)
        outputs = tuple(map(self.whole, layers.outputs))
        made = tuple(s for s in self.stored.values() if s.constant)
        return Layers(layers.inputs, (*layers.constants, *made), tuple(self.steps), outputs)

    def alone(self, layer: Layer) -> None:
        """A layer of one branch or none: it reads slices."""
        read = [self.slice(layer, i, m) for i, m in enumerate(layer.nest.maps)]
        nest = replace(layer.nest, maps=tuple(m for _, m in read))
        self.steps.append(replace(layer, nest=nest, operands=tuple(o for o, _ in read)))

    def slice(self, layer: Layer, i: int, index: Map) -> tuple[Stored, Map]:
        """Operand `i` of a layer, and the map by which it is read, `index` being that of the branch by itself."""
        o = layer.operands[i]
        if o.constant or o.name not in self.found.at:
            return o, index
        if _packed(layer, i):
            return self.whole(o), index
        side, branch = self.found.at[o.name]
        return side.result, (Entry((), branch), *index)

    def whole(self, s: Stored) -> Stored:
        """A branch as a tensor of its own."""
        if s.name not in self.found.at:
            return s
        if (s.name,) not in self.stored:
            side, branch = self.found.at[s.name]
            entries = (Entry((), branch), *identity(s.shape))
            self.steps.append(copying(s, side.result, entries, side.members[branch].origin))
            self.stored[s.name,] = s
        return self.stored[s.name,]

    def side(self, side: _Side) -> None:
        layer, count = side.members[0], len(side.members)
        nest = layer.nest
        operands, maps = list[Stored](), list[Map]()
        for i, (read, index) in enumerate(zip(side.reads, nest.maps, strict=True)):
            later = tuple(replace(e, terms=tuple((d + 1, c) for d, c in e.terms)) for e in index)
            branch = Entry(((0, 1),))
            if read.side is not None:
                operands.append(read.side.result)
                maps.append((branch, *later))
            elif read.own:
                operands.append(self.together([x.operands[i] for x in side.members], layer.origin))
                maps.append((branch, *later))
            else:
                if read.step:
                    e = later[read.entry]
                    e = replace(e, terms=((0, read.step), *e.terms))
                    later = (*later[: read.entry], e, *later[read.entry + 1 :])
                operand, found = self.slice(layer, i, later)
                operands.append(operand)
                maps.append(found)
        cut = None if nest.cut is None else nest.cut + 1
        nest = replace(nest, dims=(Dim(BRANCH, count), *nest.dims), maps=tuple(maps), cut=cut)
        origin = f"{layer.origin} and {count - 1} like it"
        self.steps.append(
            Layer(side.result, nest, tuple(operands), copied(layer.term), copied(layer.epilogue), origin)
        )  # fmt: skip

    def together(self, parts: Sequence[Stored], origin: str) -> Stored:
        """Constants or inputs of the graph behind each other."""
        key, first = tuple(p.name for p in parts), parts[0]
        if key not in self.stored:
            name = unused(f"{first.name}.x{len(parts)}", self.found.names)
            s = self.stored[key] = replace(first, name=name, shape=(len(parts), *first.shape))
            if first.constant:
                self.constants[name] = np.stack([self.constants[p.name] for p in parts])
            else:  # branch i is inside part i only where `branch` is i
                own, rows = identity(s.shape)[1:], first.shape[0]
                maps = tuple((Entry(((0, rows), (1, 1)), -i * rows), *own[1:]) for i in range(len(parts)))
                self.steps.append(joined(s, parts, maps, origin))
        return self.stored[key]


def ordered(layers: Layers, at: Mapping[str, tuple[_Side, int]]) -> Iterator[Layer | Again | _Side]:
    """The steps, those of `at` side by side, none before what it reads."""
    made: dict[str, Layer | Again | _Side] = {}
    for step in layers.steps:
        for s in _results(step):
            made[s.name] = at[s.name][0] if s.name in at else step
    number = {id(x): i for i, x in reversed(list(enumerate(made.values())))}
    nodes = {number[id(x)]: x for x in made.values()}
    graph = TopologicalSorter({i: set[int]() for i in nodes})
    for step in layers.steps:
        here = number[id(made[_results(step)[0].name])]
        graph.add(here, *(number[id(made[o.name])] for o in _variables(step) if o.name in made))
    graph.prepare()
    ready = list[int]()
    out = list[Layer | Again | _Side]()
    while graph.is_active():
        ready = sorted([*ready, *graph.get_ready()])
        out.append(nodes[ready[0]])
        graph.done(ready.pop(0))
    return iter(out)


def _results(step: Layer | Again) -> tuple[Stored, ...]:
    return step.results if isinstance(step, Again) else (step.result,)


def _variables(step: Layer | Again) -> tuple[Stored, ...]:
    return tuple(o for o in step.operands if not o.constant)


def _packed(layer: Layer, i: int) -> bool:
    """Whether a kernel wants operand `i` as it is stored, whole."""
    return (layer.nest.kind, i) in (("mac", 1), ("attention", 2))


def _kind(layer: Layer) -> object:
    """Equal for layers that differ in names, and in where in a tensor they begin to read."""
    maps = tuple(tuple(replace(e, offset=0) for e in m) for m in layer.nest.maps)
    return signature(replace(layer, nest=replace(layer.nest, maps=maps)))
