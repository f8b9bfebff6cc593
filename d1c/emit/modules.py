"""A program as text: the tile and the kern module that say it, and back."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from d1c.emit.tile_program import Movement, TileProgram
from d1c.errors import UsageError, VerifyError
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.printer import is_plain_name, print_op
from d1c.ir.types import BufferType
from d1c.ops.kern.nest import nest_of
from d1c.ops.kern.nest import to_module as kern_module
from d1c.ops.tile import commands as c
from d1c.ops.tile import declare as d
from d1c.target.dtypes import dtype
from d1c.target.kernel import Nest
from d1c.target.machine import PRESETS, Machine, machine
from d1c.target.mesh import CoreInt, LayoutError, Mesh, axes_text, parse_axes
from d1c.target.movement import Cut
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
    Fetch,
    Fill,
    Free,
    Loop,
    Placement,
    Port,
    Post,
    Program,
    Push,
    Role,
    Send,
    Wait,
)

# ---- program -> modules ---------------------------------------------------------------------------------------------


def to_modules(tile: TileProgram) -> tuple[Module, Module]:
    """(tile module, kern module) of a program; the weights are the tile module's constants."""
    p = tile.program
    seen: set[str] = set()
    values: list[Value] = []
    ops: list[Op] = []
    if p.info:
        ops.append(Op("tile.info", attrs=d.RecordAttrs(p.info)))
    ops += [Op("tile.layer", attrs=d.RecordAttrs(layer)) for layer in p.layers]
    for b in p.buffers:
        value = Value(BufferType(dtype(b.dtype), b.elements, b.address), b.name)
        named = is_plain_name(b.name) and b.name not in seen
        seen.add(b.name)
        values.append(value)
        ops.append(Op("tile.buffer", (), d.BufferAttrs(b.kind, "" if named else b.name), (value,)))  # type: ignore[arg-type]
    for i, m in enumerate(tile.movements):
        cut = () if m.cut is None else (*m.cut.owned, *m.cut.window)
        ops.append(Op("tile.movement", attrs=d.MovementDecl(f"m{i}", m.source, m.shape, m.need, cut)))
    for place in p.placements:
        attrs = d.PlaceAttrs(place.array, _short(place.index), axes_text(place.held))
        ops.append(Op("tile.place", (values[place.buffer],), attrs))
    for kind, ports in (("input", p.inputs), ("output", p.outputs)):
        for port in ports:
            same = port.dtype == p.buffers[port.buffer].dtype
            a = d.PortAttrs(port.name, port.shape, port.layout, "" if same else port.dtype, port.counts)
            ops.append(Op(f"tile.{kind}", (values[port.buffer],), a))
    for role in p.roles:
        threads = tuple(_block(thread, values, p) for thread in role.threads)
        ops.append(Op("tile.role", (), d.RoleAttrs(role.name, d.cores_text(role.cores)), (), threads))
    ops.append(Op("tile.return"))
    module_attrs = {"machine": _machine_text(p.machine), "mesh": dict(p.mesh.axes)}
    main = Function("main", Block((), tuple(ops)))
    return Module("tile", (main,), dict(p.weights), module_attrs), kern_module(dict(p.kernels))


def _short(value: CoreInt) -> c.PerCore:
    return value if value.axes else value.values[0]


def _shorts(values: tuple[CoreInt, ...]) -> tuple[c.PerCore, ...]:
    return tuple(map(_short, values))


def _machine_text(description: Mapping[str, Any]) -> Any:
    """A preset's name, or what differs from the preset `base`, or everything where that would not say the same."""
    for name, preset in PRESETS.items():
        if preset.to_dict() == description:
            return name
    base = PRESETS["d1-tile"].to_dict()
    if set(base) == set(description):
        changed = {k: v for k, v in description.items() if v != base[k]}
        return {"base": "d1-tile", **changed, "dead": description["dead"]}
    return dict(description)


def _command_op(x: Command, values: list[Value], p: Program) -> Op:
    used: tuple[int, ...] = ()
    regions: tuple[Block, ...] = ()
    attrs: Any
    match x:
        case Call():
            name, nest = p.kernels[x.kernel]
            used = (x.out, *x.operands, *x.tables)
            extents = tuple(CoreInt.const(loop.extent) for loop in nest.loops)
            bases = _shorts(x.bases) if any(b != CoreInt() for b in x.bases) else ()
            trips = None if x.trips == extents else _shorts(x.trips)
            attrs = c.CallAttrs(
                name, bases, len(x.tables), trips, _shorts(x.scalars), axes_text(x.held), x.layer, x.out_base
            )  # fmt: skip
        case Push():
            used = (x.source, x.target)
            attrs = c.PushAttrs(f"m{x.exchange}", x.semaphore, x.layer, x.by_columns, x.spread)
        case Arrive():
            attrs = c.MovementAttrs(f"m{x.exchange}", x.semaphore, x.layer)
        case Send():
            used = (x.source, x.target)
            attrs = c.SendAttrs(
                c.reach_text(x.to), _short(x.elements), x.semaphore, _short(x.source_offset), _short(x.target_offset),
                x.layer,
            )  # fmt: skip
        case Fetch():
            used = (x.target,)
            attrs = c.FetchAttrs(x.array, x.semaphore, _short(x.index), x.layer)
        case Wait():
            attrs = c.WaitAttrs(x.semaphore, _short(x.count), x.layer, x.relative)
        case Post():
            attrs = c.PostAttrs(x.semaphore, c.reach_text(x.to), x.layer)
        case Free():
            used = x.buffers
            attrs = c.FreeAttrs(x.layer)
        case Fill():
            used = (x.buffer,)
            attrs = c.FillAttrs(f"m{x.exchange}" if x.exchange >= 0 else "", x.value, x.layer)
        case Barrier():
            attrs = c.BarrierAttrs(x.up, x.release, x.layer)
        case Loop():
            used = (x.condition,) if x.condition >= 0 else ()
            regions = (_block(x.body, values, p),)
            attrs = c.LoopAttrs(x.trips, x.layer)
    return Op(f"tile.{type(x).__name__.lower()}", tuple(values[i] for i in used), attrs, (), regions, x.origin)


def _block(commands: tuple[Command, ...], values: list[Value], p: Program) -> Block:
    return Block((), (*(_command_op(x, values, p) for x in commands), Op("tile.yield")))


# ---- modules -> program ---------------------------------------------------------------------------------------------


def from_modules(
    tile: Module, kern: Module | None, weights: Mapping[str, np.ndarray] | None = None, target: Machine | None = None
) -> TileProgram:
    """The program of verified modules, the exact inverse of `to_modules`.

    weights  data of constants that the text names by digest only. target: instead of the machine that the text names.
    Raises VerifyError, with the op's origin, where names or movements do not resolve.
    """
    return _Reader(tile, kern, weights or {}, target).read()


class _Reader:
    def __init__(
        self, tile: Module, kern: Module | None, weights: Mapping[str, np.ndarray], target: Machine | None
    ) -> None:
        self.tile = tile
        self.weights = {**tile.constants, **weights}
        self.kernels: dict[str, tuple[int, Nest]] = {}
        for i, f in enumerate(kern.functions if kern else ()):
            nests = [op for op in f.block.ops if op.name == "kern.nest"]
            if len(nests) != 1:
                raise VerifyError(f"kernel @{f.name} is not one kern.nest", rule="a kernel is one nest")
            self.kernels[f.name] = (i, nest_of(nests[0]))
        self.machine = target.to_dict() if target else _machine(tile.attrs.get("machine"))
        self.mesh = self.read_mesh(target)
        self.of: dict[Value, int] = {}
        self.movements: dict[str, int] = {}
        self.moves: list[Movement] = []

    def fail(self, op: Op, message: str, rule: str = "", remedy: str = "") -> VerifyError:
        return VerifyError(f"{op.name}: {message}", op=print_op(op), rule=rule, where=op.origin, remedy=remedy)

    def read_mesh(self, target: Machine | None) -> Mesh:
        given = self.tile.attrs.get("mesh")
        if given is None:
            return Mesh((target or Machine.from_dict(self.machine)).axes)
        if not isinstance(given, Mapping) or not all(isinstance(n, int) and n > 0 for n in given.values()):
            raise VerifyError("mesh is a list of factors and their sizes", rule="e.g. {mesh = {nr = 2, nc = 4}}")
        mesh = Mesh(tuple(given.items()))
        if target is not None and mesh.axes != target.axes:
            raise VerifyError(
                f"the program is for the mesh {_sizes(mesh)}, machine {target.name} has {_sizes(Mesh(target.axes))}",
                rule="a program's mesh is its machine's", remedy="choose the machine that the program names",
            )  # fmt: skip
        return mesh

    def read(self) -> TileProgram:
        if [f.name for f in self.tile.functions] != ["main"]:
            raise VerifyError("a tile module has one function, @main", rule="declarations and roles stand in @main")
        by_name: dict[str, list[Op]] = {}
        for op in self.tile.function().block.ops:
            if op.name.removeprefix("tile.") in _COMMANDS:
                raise self.fail(op, "a command outside a thread", "commands stand in the threads of a tile.role")
            by_name.setdefault(op.name, []).append(op)
        buffers = self.buffers(by_name.get("tile.buffer", ()))
        exchanges = []
        for op in by_name.get("tile.movement", ()):
            a: d.MovementDecl = op.attrs
            if a.name in self.movements:
                raise self.fail(op, f"movement {a.name} is declared twice")
            self.movements[a.name] = len(self.moves)
            if len(a.cut) not in (0, 4):
                raise self.fail(op, f"cut = {list(a.cut)}", "a cut has two ranges, four numbers")
            cut = Cut((a.cut[0], a.cut[1]), (a.cut[2], a.cut[3])) if a.cut else None
            self.moves.append(Movement(a.source, a.shape, a.need, cut))
            try:
                a.source.check(a.shape, self.mesh)
                exchanges.append(self.moves[-1].exchange(self.mesh))
            except (LayoutError, KeyError) as error:
                raise self.fail(op, "source and need do not fit together", str(error)) from error
        placements = tuple(self.placement(op) for op in by_name.get("tile.place", ()))
        ports = [tuple(self.port(op, buffers) for op in by_name.get(f"tile.{k}", ())) for k in ("input", "output")]
        roles = tuple(
            Role(
                op.attrs.name,
                d.parse_cores(op.attrs.cores),
                tuple(map(self.commands, op.regions)),
            )
            for op in by_name.get("tile.role", ())
        )
        info: dict[str, Any] = {}
        for op in by_name.get("tile.info", ()):
            info |= _thaw(op.attrs.record)
        layers = tuple(_thaw(op.attrs.record) for op in by_name.get("tile.layer", ()))
        kernels = tuple((name, nest) for name, (_, nest) in self.kernels.items())
        program = Program(
            self.machine, self.mesh, buffers, kernels, tuple(exchanges), roles, placements, ports[0], ports[1],
            self.weights, layers, info,
        )  # fmt: skip
        return TileProgram(program, tuple(self.moves))

    def buffers(self, ops: Iterable[Op]) -> tuple[Buffer, ...]:
        out: list[Buffer] = []
        free = (f"b{i}" for i in itertools.count())
        for op in ops:
            t = op.result.type
            assert isinstance(t, BufferType)
            self.of[op.result] = len(out)
            name = op.attrs.name or op.result.name or next(free)
            out.append(Buffer(name, t.dtype.name, t.elements, t.address, op.attrs.kind))
        return tuple(out)

    def number(self, value: Value) -> int:
        return self.of[value]

    def placement(self, op: Op) -> Placement:
        a: d.PlaceAttrs = op.attrs
        return Placement(self.number(op.operands[0]), self.array(op, a.array), _long(a.index), parse_axes(a.held))

    def array(self, op: Op, name: str) -> str:
        """`name`, if it is one of a constant."""
        if name not in self.weights and name not in getattr(self.tile.constants, "missing", {}):
            rule, remedy = "it stands in the module's constants", _near(name, self.weights)
            raise self.fail(op, f"no constant {name!r}", rule, remedy)
        return name

    def port(self, op: Op, buffers: tuple[Buffer, ...]) -> Port:
        a: d.PortAttrs = op.attrs
        number = self.number(op.operands[0])
        return Port(a.name, number, a.shape, a.dtype or buffers[number].dtype, a.layout, a.counts)

    def movement(self, op: Op, name: str) -> int:
        if name not in self.movements:
            rule, remedy = "it is declared by a tile.movement", _near(name, self.movements)
            raise self.fail(op, f"no movement {name!r}", rule, remedy)
        return self.movements[name]

    def commands(self, block: Block) -> tuple[Command, ...]:
        return tuple(self.command(op) for op in block.ops[:-1])

    def command(self, op: Op) -> Command:
        a: Any = op.attrs
        used = tuple(map(self.number, op.operands))
        end: dict[str, Any] = {"layer": a.layer, "origin": op.origin}
        match op.name:
            case "tile.call":
                return self.call(op, used)
            case "tile.push":
                movement = self.movement(op, a.movement)
                return Push(used[0], used[1], movement, a.semaphore, **end, by_columns=a.by_columns, spread=a.spread)
            case "tile.arrive":
                return Arrive(self.movement(op, a.movement), a.semaphore, **end)
            case "tile.send":
                offsets = (_long(a.source_offset), _long(a.target_offset))
                to, elements = c.parse_reach(a.to), _long(a.elements)
                return Send(used[0], used[1], to, *offsets, elements, a.semaphore, **end)
            case "tile.fetch":
                return Fetch(used[0], self.array(op, a.array), _long(a.index), a.semaphore, **end)
            case "tile.wait":
                return Wait(a.semaphore, _long(a.count), **end, relative=a.relative)
            case "tile.post":
                return Post(a.semaphore, c.parse_reach(a.to), **end)
            case "tile.free":
                return Free(used, **end)
            case "tile.fill":
                return Fill(used[0], self.movement(op, a.movement) if a.movement else -1, a.value, **end)
            case "tile.barrier":
                return Barrier(a.up, a.release, **end)
            case "tile.loop":
                return Loop(self.commands(op.regions[0]), a.trips, used[0] if used else -1, **end)
        raise self.fail(op, "unknown command")

    def call(self, op: Op, used: tuple[int, ...]) -> Call:
        a: c.CallAttrs = op.attrs
        if a.kernel not in self.kernels:
            rule, remedy = "it is a function of the kern module", _near(a.kernel, self.kernels)
            raise self.fail(op, f"no kernel {a.kernel!r}", rule, remedy)
        number, nest = self.kernels[a.kernel]
        split = len(used) - a.tables
        bases = a.bases or (0,) * (split - 1)
        trips = tuple(loop.extent for loop in nest.loops) if a.trips is None else a.trips
        return Call(
            number, used[0], used[1:split], tuple(map(_long, bases)), used[split:], tuple(map(_long, trips)),
            tuple(map(_long, a.scalars)), parse_axes(a.held), a.layer, op.origin, a.out_base,
        )  # fmt: skip


_COMMANDS = ("call", "push", "arrive", "send", "fetch", "wait", "post", "free", "fill", "barrier", "loop")


def _long(value: c.PerCore) -> CoreInt:
    return value if isinstance(value, CoreInt) else CoreInt.const(value)


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


def _sizes(mesh: Mesh) -> str:
    return " ".join(f"{name} {size}" for name, size in mesh.axes)


def _thaw(value: Any) -> Any:
    """JSON values as json gives them: text has tuples where JSON has lists."""
    if isinstance(value, Mapping):
        return {k: _thaw(v) for k, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, (tuple, list)) else value


def _machine(text: Any) -> dict[str, Any]:
    if text is None:
        raise VerifyError(
            "the program names no machine", rule='d1c.module tile {machine = "test"} or an argument says it',
            remedy="give a machine",
        )  # fmt: skip
    if isinstance(text, str):
        return machine(text).to_dict()
    fields = dict(text)
    base = fields.pop("base", None)
    if base is None:
        return dict(_thaw(fields))
    if base not in PRESETS:
        raise UsageError(f"machine base {base!r} is no preset", remedy=f"presets: {', '.join(PRESETS)}")
    return Machine.from_dict(fields, PRESETS[base]).to_dict()
