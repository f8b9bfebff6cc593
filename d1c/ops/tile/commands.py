"""The commands of threads, one to one with the dataclasses of d1c.target.program, where their meaning is.

    tile.call(%y, %x, %w) {kernel = "k0", trips = [4, #int"nr: 8 7"], layer = 0}     result, operands, then tables
    tile.push(%x, %x.w) {movement = "m0", semaphore = 9}                            source, target
    tile.send(%x, %slot) {to = "nc+1", elements = 64, semaphore = 3}
    tile.fetch(%w) {array = "w", index = #int"nr: 0 1", semaphore = 4}              from an interface processor's memory
    tile.loop(%go) {trips = 8} ({                                                   a condition, or none
      ...
      tile.yield
    })

An integer that differs between cores is written `#int"nr nc: 7*3 1"`: a table over the positions along the factors,
here 7 three times, then 1. Whom a command reaches is written factor by factor: `nc+1` (the next one), `dr=0`, `nc=*`
(all of them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from d1c.ir.attributes import register_attribute
from d1c.ir.core import Op
from d1c.ir.types import BufferType, Type
from d1c.ops.opdef import OpDef, opdef, register
from d1c.target.mesh import CoreInt, parse_axes
from d1c.target.program import To

register_attribute("int", CoreInt)

PerCore = int | CoreInt
"""A plain integer where all cores have the same."""


def reach_text(to: tuple[To, ...]) -> str:
    """`nc+1 dr=0 nr=*`."""
    words = []
    for t in to:
        if t.mode == "+":
            words.append(f"{t.axis}{t.value:+d}")
        else:
            words.append(f"{t.axis}=" + ("*" if t.mode == "*" else str(t.value)))
    return " ".join(words)


_REACH = re.compile(r"([a-z]+(?:\.\d+)?)(?:([+-]\d+)|=(\d+)|=\*)")


def parse_reach(text: str) -> tuple[To, ...]:
    """What `reach_text` prints; ValueError names the word that is none."""
    out: list[To] = []
    for word in text.split():
        m = _REACH.fullmatch(word)
        if not m:
            raise ValueError(f"cannot read {word!r} in to = {text!r}; expected e.g. 'nc+1', 'dr=0' or 'nc=*'")
        if any(t.axis == m[1] for t in out):
            raise ValueError(f"to = {text!r} names factor {m[1]} twice")
        mode = "+" if m[2] else "=" if m[3] else "*"
        out.append(To(m[1], mode, int(m[2] or m[3] or 0)))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class CallAttrs:
    """`kernel`: a function of the kern module. `tables`: how many of the buffers, at the end, are tables. `bases`: per
    operand the element at which it starts (default: 0), `out_base` that of the result. `trips`: per loop (default: the
    kernel's extents). `held`: factors along which only coordinate 0 makes the call."""

    kernel: str
    bases: tuple[PerCore, ...] = ()
    tables: int = 0
    trips: tuple[PerCore, ...] | None = None
    scalars: tuple[PerCore, ...] = ()
    held: str = ""
    layer: int = -1
    out_base: int = 0


@dataclass(frozen=True, slots=True)
class MovementAttrs:
    """`movement`: the name of a tile.movement. `semaphore`: counts the messages at the receivers."""

    movement: str
    semaphore: int
    layer: int = -1


@dataclass(frozen=True, slots=True)
class PushAttrs:
    """As MovementAttrs; `by_columns`: the messages go along columns first, then along rows. `spread`: cycles over which
    the cores begin."""

    movement: str
    semaphore: int
    layer: int = -1
    by_columns: bool = False
    spread: int = 0


@dataclass(frozen=True, slots=True)
class SendAttrs:
    """`to`: the receivers. `elements`: how many, from the offsets (elements) on."""

    to: str
    elements: PerCore
    semaphore: int
    source_offset: PerCore = 0
    target_offset: PerCore = 0
    layer: int = -1


@dataclass(frozen=True, slots=True)
class FetchAttrs:
    """Row `index` of constant `array`, -1: nothing. `semaphore`: counts that it has come."""

    array: str
    semaphore: int
    index: PerCore = 0
    layer: int = -1


@dataclass(frozen=True, slots=True)
class WaitAttrs:
    """Goes on when `semaphore` has reached `count`; counts never go down. `relative`: on top of what this core has
    waited for there."""

    semaphore: int
    count: PerCore
    layer: int = -1
    relative: bool = False


@dataclass(frozen=True, slots=True)
class PostAttrs:
    """`to`: whose `semaphore` counts one more; empty: the core's own."""

    semaphore: int
    to: str = ""
    layer: int = -1


@dataclass(frozen=True, slots=True)
class FreeAttrs:
    layer: int = -1


@dataclass(frozen=True, slots=True)
class FillAttrs:
    """`movement`: whose padding; empty: the whole buffer."""

    movement: str = ""
    value: float = 0.0
    layer: int = -1


@dataclass(frozen=True, slots=True)
class BarrierAttrs:
    """`up`: one semaphore per axis of the mesh. `release`: the one of the way back."""

    up: tuple[int, ...]
    release: int
    layer: int = -1


@dataclass(frozen=True, slots=True)
class LoopAttrs:
    """`trips`: rounds, at most; the operand, if there is one, holds whether there is another."""

    trips: int
    layer: int = -1


def buffers(op: Op) -> tuple[BufferType, ...]:
    """The types of the operands; ValueError where one is no buffer."""
    types = tuple(v.type for v in op.operands if isinstance(v.type, BufferType))
    if len(types) != len(op.operands):
        raise ValueError("operands are buffers")
    return types


def _semaphores(op: Op) -> None:
    numbers = (*getattr(op.attrs, "up", ()), getattr(op.attrs, "semaphore", 0), getattr(op.attrs, "release", 0))
    if min(numbers) < 0:
        raise ValueError("semaphores are numbered from 0")


def _count(op: Op, count: int, what: str) -> tuple[BufferType, ...]:
    types = buffers(op)
    if len(types) != count:
        raise ValueError(f"takes {count} buffers ({what}), not {len(types)}" if count else "takes no buffers")
    return types


def _check_call(op: Op) -> None:
    a: CallAttrs = op.attrs
    operands = len(buffers(op)) - 1 - a.tables
    if a.tables < 0 or operands < 0:
        raise ValueError(f"takes the result, the operands and {a.tables} tables")
    if a.bases and len(a.bases) != operands:
        raise ValueError(f"has {len(a.bases)} bases for {operands} operands")
    parse_axes(a.held)


def _check_pair(op: Op) -> None:
    source, target = _count(op, 2, "source, target")
    if source.dtype != target.dtype:
        raise ValueError(f"source and target have one element type, not {source.dtype} and {target.dtype}")
    if isinstance(op.attrs, SendAttrs):
        parse_reach(op.attrs.to)
    _semaphores(op)


def _check_none(op: Op) -> None:
    _count(op, 0, "")
    if isinstance(op.attrs, PostAttrs):
        parse_reach(op.attrs.to)
    _semaphores(op)


def _check_free(op: Op) -> None:
    if not buffers(op):
        raise ValueError("takes the buffers whose bytes become free")


def _check_fill(op: Op) -> None:
    _count(op, 1, "the window")


def _check_fetch(op: Op) -> None:
    _count(op, 1, "the target")
    _semaphores(op)


def _check_loop(op: Op) -> None:
    types = buffers(op)
    if len(types) > 1 or any(t.dtype.name != "bool" for t in types):
        raise ValueError("takes nothing, or one buffer of bool: whether there is another round")
    if op.attrs.trips < 0:
        raise ValueError("makes no negative number of rounds")
    if len(op.regions) != 1:
        raise ValueError("has one body: ({ ... tile.yield })")
    body = op.regions[0]
    if body.args or body.ops[-1].operands:
        raise ValueError("its body takes no arguments and yields nothing")
    for inner in body.ops[:-1]:
        if opdef(inner.name).kind != "command":
            raise ValueError(f"its body: {inner.name} is no command")


def _nothing(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    return ()


for _name, _attrs, _check, _doc in (
    ("call", CallAttrs, _check_call, "Run a kernel on this core's share."),
    ("push", PushAttrs, _check_pair, "Send this core's part of a movement."),
    ("arrive", MovementAttrs, _check_none, "Wait for all messages of a movement to this core."),
    ("send", SendAttrs, _check_pair, "Send one message to other cores."),
    ("fetch", FetchAttrs, _check_fetch, "Read a constant's row from an interface processor's memory."),
    ("wait", WaitAttrs, _check_none, "Wait for a count of a semaphore."),
    ("post", PostAttrs, _check_none, "Add 1 to a semaphore, here or elsewhere."),
    ("free", FreeAttrs, _check_free, "Make the bytes of buffers free for the next message."),
    ("fill", FillAttrs, _check_fill, "Write what a movement does not deliver."),
    ("barrier", BarrierAttrs, _check_none, "All cores meet."),
    ("loop", LoopAttrs, _check_loop, "Run the commands of the region again and again."),
):
    _facts = {"check": _check, **({"infer_op": lambda op: ()} if _name == "loop" else {})}
    register(OpDef(f"tile.{_name}", "command", _nothing, _attrs, doc=_doc, facts=_facts))
