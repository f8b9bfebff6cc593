"""What a tile program consists of: buffers, movements, placements, ports, layers, and roles with their threads.

    %x = tile.buffer : buffer<1024xbf16 @ 4096>
    tile.movement {name = "m0", source = #layout"[0: nr / 4, 1]", shape = [8, 16], need = #need"..."}
    tile.place(%w) {array = "w", index = #int"nr: 0 1"}
    tile.input(%x) {name = "x", shape = [8, 16], layout = #layout"[0: nr / 4, 1]"}
    tile.role {name = "main", cores = "nr 0..2"} ({
      ...                                                thread 0
      tile.yield
    }, {
      ...                                                thread 1
      tile.yield
    })

A function `main` holds them all. d1c.emit.modules turns a module into a program and back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from d1c.ir.core import Op
from d1c.ir.layout import Need
from d1c.ir.types import BufferType, Type
from d1c.ops.opdef import OpDef, opdef, register
from d1c.ops.tile.commands import PerCore, buffers
from d1c.target.dtypes import dtype
from d1c.target.mesh import Layout, parse_axes


@dataclass(frozen=True, slots=True)
class BufferAttrs:
    """`kind`: as d1c.target.program.Buffer. `name`: where the value's own name cannot say it."""

    kind: Literal["owned", "window", "constant", "table"] = "owned"
    name: str = ""


@dataclass(frozen=True, slots=True)
class MovementDecl:
    """A tensor of `shape`, owned as `source`, becomes the windows of `need`. `cut`: only a part of them, by rows of
    what is owned, from the first number to before the second, and rows of the windows, from the third to before the
    fourth."""

    name: str
    source: Layout
    shape: tuple[int, ...]
    need: Need
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PlaceAttrs:
    """Row `index` of constant `array` stands in the buffer before the program starts; -1: nothing. `held`: factors
    along which only coordinate 0 holds it."""

    array: str
    index: PerCore = 0
    held: str = ""


@dataclass(frozen=True, slots=True)
class PortAttrs:
    """`name`, `shape` and `dtype` (default: the buffer's) as the model has them; `layout`: who owns which part;
    `counts`: dims whose extent another output holds at run time."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    dtype: str = ""
    counts: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RecordAttrs:
    """Plain JSON values, for reports."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RoleAttrs:
    """`cores`: half-open ranges of factors, `nr 0..2 nc.0 1..2`; factors that are not named: all."""

    name: str
    cores: str = ""


def cores_text(cores: tuple[tuple[str, int, int], ...]) -> str:
    return " ".join(f"{axis} {lo}..{hi}" for axis, lo, hi in cores)


_CORES = re.compile(r"([a-z]+(?:\.\d+)?)\s+(\d+)\.\.(\d+)\s*")


def parse_cores(text: str) -> tuple[tuple[str, int, int], ...]:
    """What `cores_text` prints; ValueError for anything else."""
    found = list(_CORES.finditer(text.strip()))
    if "".join(m[0] for m in found) != text.strip():
        raise ValueError(f"cannot read cores {text!r}; expected e.g. 'nr 0..2 nc.0 1..2'")
    cores = tuple((m[1], int(m[2]), int(m[3])) for m in found)
    if len({axis for axis, _, _ in cores}) != len(cores) or any(lo >= hi for _, lo, hi in cores):
        raise ValueError(f"cores {text!r} names a factor twice or has an empty range")
    return cores


def _check_buffer(op: Op) -> None:
    t = op.results[0].type if len(op.results) == 1 else None
    if op.operands or not isinstance(t, BufferType):
        raise ValueError("makes one buffer<ELEMENTSxDTYPE @ ADDRESS>")
    if t.elements < 1 or t.address % t.dtype.bytes:
        raise ValueError(f"a buffer has elements, and its address is a multiple of the {t.dtype.bytes} B of one")


def _check_one(op: Op) -> None:
    types = buffers(op)
    if len(types) != 1:
        raise ValueError(f"takes one buffer, not {len(types)}")
    if isinstance(op.attrs, PlaceAttrs):
        parse_axes(op.attrs.held)
    elif op.attrs.dtype and dtype(op.attrs.dtype) is None:
        raise ValueError(f"no element type {op.attrs.dtype}")


def _check_none(op: Op) -> None:
    if op.operands:
        raise ValueError("takes no buffers")


def _check_role(op: Op) -> None:
    _check_none(op)
    parse_cores(op.attrs.cores)
    if not op.regions:
        raise ValueError("a role has at least one thread: ({ ... tile.yield })")
    for number, region in enumerate(op.regions):
        if region.args:
            raise ValueError(f"thread {number} takes no arguments")
        for inner in region.ops[:-1]:
            if opdef(inner.name).kind != "command":
                raise ValueError(f"thread {number}: {inner.name} is no command")
        if region.ops[-1].operands:
            raise ValueError(f"thread {number} yields nothing")


def _nothing(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    if types:
        raise ValueError("takes no operands")
    return ()


def _ports(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    return ()


register(OpDef(
    "tile.buffer", "declaration", _nothing, BufferAttrs, doc="A range of SRAM, at one address on every core.",
    facts={"check": _check_buffer, "infer_op": lambda op: tuple(v.type for v in op.results)},
))  # fmt: skip
register(OpDef("tile.movement", "declaration", _nothing, MovementDecl, doc="A tensor's way from owners to windows."))
register(OpDef("tile.layer", "declaration", _nothing, RecordAttrs, doc="What reports say of the next layer."))
register(OpDef("tile.info", "declaration", _nothing, RecordAttrs, doc="What reports say of the program."))
for _name, _attrs, _doc in (
    ("place", PlaceAttrs, "What a buffer holds before the program starts."),
    ("input", PortAttrs, "An input of the model: the buffer that owns it."),
    ("output", PortAttrs, "An output of the model: the buffer that owns it."),
):
    register(OpDef(f"tile.{_name}", "declaration", _ports, _attrs, doc=_doc, facts={"check": _check_one}))
register(OpDef(
    "tile.role", "declaration", _nothing, RoleAttrs, doc="A set of cores and what their threads do, a region each.",
    facts={"check": _check_role, "infer_op": lambda op: ()},
))  # fmt: skip
register(OpDef("tile.yield", "structural", _nothing, doc="The end of a thread."))
register(OpDef("tile.return", "structural", _nothing, doc="The end of the program's declarations."))
