"""`d1c dis`: a program as text. Whole, by role, or what one core does, with its own numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from d1c.errors import UsageError
from d1c.ir.core import Block, Function, Module
from d1c.target.embedding import die_column, global_position
from d1c.target.machine import Machine
from d1c.target.mesh import CoreInt, Mesh
from d1c.target.movement import Exchange, turns
from d1c.target.program import (
    Arrive,
    Barrier,
    Call,
    Command,
    Fetch,
    Fill,
    Free,
    Loop,
    Post,
    Program,
    Push,
    Role,
    Send,
    To,
    Wait,
    numbered,
    place_text,
)

__all__ = ["core_number", "core_text", "print_program", "program_text"]


def print_program(path: Path, core: str | None, role: str | None) -> None:
    """Print the program in `path`. `core`: "X,Y", `role`: a role's name."""
    from d1c.target import program_io

    program = program_io.load(path)
    names = [r.name for r in program.roles]
    if role is not None and role not in names:
        raise UsageError(f"no role {role!r}", rule=f"roles of this program: {', '.join(names)}")
    if core is None:
        print(program_text(program, role))
        return
    for line in core_text(program, core_number(core, Machine.from_dict(program.machine)), role):
        print(line)


def core_number(text: str, machine: Machine) -> int:
    """The core at "X,Y": column and row of the dies' grids side by side, counted from the north-west corner."""
    columns, rows = machine.die_cols * machine.grid_cols, machine.die_rows * machine.grid_rows
    try:
        x, y = (int(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"--core {text!r} is not X,Y", remedy="column, row; for example --core 0,0") from None
    if not (0 <= x < columns and 0 <= y < rows):
        raise UsageError(
            f"machine {machine.name} has no core {x},{y}", rule=f"columns 0 to {columns - 1}, rows 0 to {rows - 1}"
        )
    dr = y // machine.grid_rows
    die = dr * machine.die_cols + int(die_column(machine, dr, x // machine.grid_cols))
    return (die * machine.grid_rows + y % machine.grid_rows) * machine.grid_cols + x % machine.grid_cols


def program_text(program: Program, role: str | None = None) -> str:
    """The tile and the kern module, movements as comments: the needs that they were made of are not in the binary."""
    from d1c.emit.modules import to_modules
    from d1c.emit.tile_program import TileProgram

    tile, kern = to_modules(TileProgram(replace(program, exchanges=(), weights={})))
    if role is not None:
        main = tile.function()
        ops = tuple(op for op in main.block.ops if op.name != "tile.role" or op.attrs.name == role)
        tile = Module("tile", (Function("main", Block(main.block.args, ops)),), {}, tile.attrs)
    movements = (f"// m{i}: {_movement(x)}" for i, x in enumerate(program.exchanges))
    return "\n".join([str(tile).rstrip("\n"), *movements, str(kern).rstrip("\n")])


def _movement(x: Exchange) -> str:
    m = x.messages()
    windows = f"{len(m.classes):,} windows of up to {x.window_elements:,} elements"
    if x.cut is not None:
        windows = f"rows from {x.cut.window[0]:,} on, made of rows from {x.cut.owned[0]:,} on, of {windows}"
    return f"{windows}, in {len(m.src):,} messages"


def core_text(program: Program, core: int, role: str | None = None) -> Iterator[str]:
    """What one core does, line by line: trip counts, addresses, messages and counts are its own."""
    mesh, machine = program.mesh, Machine.from_dict(program.machine)
    at = " ".join(f"{n} {int(c)}" for n, c in zip(mesh.names, mesh.coords[core], strict=True))
    y, x = global_position(machine).reshape(-1, 2)[core]
    yield f"core {core}: {at or 'the only one'}; node at row {y}, column {x} of the machine's sites"
    yield "memory before the program starts"
    for p in program.placements:
        row = int(p.index.of(mesh)[core])
        if row >= 0 and _holds(p.held, core, mesh):
            b = program.buffers[p.buffer]
            yield f"  0x{b.address:06x} {b.bytes:8,} B  {b.name}: row {row} of {p.array}"
    for r in program.roles:
        if (role is None or r.name == role) and _plays(r, core, mesh):
            for number, thread in enumerate(r.threads):
                yield f"role {r.name}, thread {number}"
                for path, command in numbered(thread):
                    indent = "  " * (len(path) - 1)
                    yield f"  {place_text(path):>4} {indent}{_command(program, command, core)}" + (
                        f"  ; {command.origin}" if command.origin else ""
                    )


def _plays(role: Role, core: int, mesh: Mesh) -> bool:
    return all(lo <= mesh.coords[core, mesh.index[axis]] < hi for axis, lo, hi in role.cores)


def _holds(held: tuple[str, ...], core: int, mesh: Mesh) -> bool:
    return all(mesh.coords[core, mesh.index[axis]] == 0 for axis in held)


def _command(program: Program, c: Command, core: int) -> str:
    mesh = program.mesh

    def own(value: CoreInt) -> int:
        return int(value.of(mesh)[core])

    def name(buffer: int) -> str:
        b = program.buffers[buffer]
        return f"{b.name}@0x{b.address:06x}"

    match c:
        case Call():
            trips = [own(t) for t in c.trips]
            kernel, nest = program.kernels[c.kernel]
            if not _holds(c.held, core, mesh) or 0 in trips:
                return f"call {kernel}: skipped, no share"
            operands = (f"{name(b)}+{own(o)}" for b, o in zip(c.operands, c.bases, strict=True))
            loops = " ".join(f"{loop.name}={t}" for loop, t in zip(nest.loops, trips, strict=True))
            rest = [*(f"table {name(t)}" for t in c.tables), *(f"scalar {own(s)}" for s in c.scalars)]
            out = name(c.out) + (f"+{c.out_base}" if c.out_base else "")
            return f"call {kernel} {out} <- {', '.join([*operands, *rest])}; trips {loops}"
        case Push():
            m = program.exchanges[c.exchange].messages()
            mine = np.flatnonzero(m.src == core)
            size = int(m.elements[mine].sum())
            what = f"m{c.exchange}: {len(mine)} messages, {size:,} elements; semaphore {c.semaphore}"
            what += "; columns first" if c.by_columns else ""
            what += f"; after {turns(c.spread, program.mesh.cores)[core]:,} cycles" if c.spread else ""
            return f"push {name(c.source)} -> {name(c.target)} {what}"
        case Arrive():
            count = _arrivals(program.exchanges[c.exchange], core)
            return f"arrive m{c.exchange}: {count} messages on semaphore {c.semaphore}"
        case Send():
            return (
                f"send {own(c.elements)} elements {name(c.source)}+{own(c.source_offset)} -> "
                f"{name(c.target)}+{own(c.target_offset)} of {_reach(c.to)}; semaphore {c.semaphore}"
            )
        case Fetch():
            row = own(c.index)
            what = f"row {row} of {c.array}; semaphore {c.semaphore}" if row >= 0 else "nothing"
            return f"fetch {name(c.target)} <- {what}"
        case Wait():
            if c.relative:
                return f"wait for {own(c.count)} more on semaphore {c.semaphore}"
            return f"wait semaphore {c.semaphore} >= {own(c.count)}"
        case Post():
            return f"post semaphore {c.semaphore} of {_reach(c.to)}"
        case Free():
            return f"free {', '.join(name(b) for b in c.buffers)}"
        case Fill():
            what = f"padding of m{c.exchange}" if c.exchange >= 0 else "whole"
            return f"fill {name(c.buffer)} with {c.value:g} ({what})"
        case Barrier():
            return f"barrier: up on semaphores {', '.join(map(str, c.up))}, release on {c.release}"
        case Loop():
            rounds = f"{c.trips} rounds" if c.condition < 0 else f"at most {c.trips} rounds while {name(c.condition)}"
            return f"loop of {len(c.body)} commands, {rounds}"


def _reach(to: tuple[To, ...]) -> str:
    if not to:
        return "this core"
    return " ".join(
        t.axis + ("*" if t.mode == "*" else f"{t.value:+d}" if t.mode == "+" else f"={t.value}") for t in to
    )


def _arrivals(x: Exchange, core: int) -> int:
    """How many messages of the movement this core waits for."""
    m, mesh = x.messages(), x.mesh
    if not _holds(x.target_held, core, mesh):
        return 0
    coords = mesh.coords[core].copy()
    for axis in x.fan_axes:
        coords[mesh.index[axis]] = 0
    for axis in mesh.names:
        if axis not in x.keyed:
            coords[mesh.index[axis]] = 0
    first = sum(int(c) * mesh.stride[n] for n, c in zip(mesh.names, coords, strict=True))
    return int(np.count_nonzero(m.classes[m.cls] == first))
