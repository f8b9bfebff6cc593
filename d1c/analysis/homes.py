"""Where constants lie that are gathered for every use: over few neighbours, many times, or over all cores, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from d1c.ir.layout import Need
from d1c.target.mesh import Group, Layout, LayoutError, Mesh

LEAST = 4
"""The next larger home spreads a window over so many times as many cores."""


@dataclass(frozen=True, slots=True)
class Home:
    """A way to keep a constant: bytes on every core, and cycles of its gathering for a use (0: it is where it is read,
    and `layout` is None)."""

    bytes: int
    cycles: float
    layout: Layout | None


def hull(ways: Sequence[Home]) -> tuple[Home, ...]:
    """Those of which one is the cheapest at some price of a byte, most bytes first; the first of `ways` always."""
    out: list[Home] = [ways[0]]
    for w in sorted(ways[1:], key=lambda w: (-w.bytes, w.cycles)):
        if w.bytes >= out[-1].bytes:
            continue
        while len(out) > 1 and rate(out[-2], w) <= rate(out[-2], out[-1]):
            out.pop()
        out.append(w)
    return tuple(out)


def rate(more: Home, less: Home) -> float:
    """Cycles that a byte costs which the second way saves."""
    return (less.cycles - more.cycles) / (more.bytes - less.bytes)


def homes(shape: tuple[int, ...], need: Need, mesh: Mesh) -> list[Layout]:
    """Layouts of a constant of `shape` in which every core owns a part of its window, and the other parts are as near
    as may be: along the innermost of the factors on which the window does not depend. The last one has every element
    once."""
    last = shard(shape, need, mesh)
    cuts = _cuts(need)
    if cuts is None:
        return [last]
    free = [a for a in mesh.names if a not in need.axes]
    window, out, before = need.local_shape(), list[Layout](), 1
    for k in reversed(range(len(free))):
        over = tuple(free[k:])
        parts = mesh.parts(over)
        layout = _spread(shape, window, cuts, over, mesh) if parts >= LEAST * before or not out else None
        if layout is not None:
            out.append(layout)
            before = parts
    return [*out, last]


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


def _cuts(need: Need) -> list[tuple[tuple[str, ...], int]] | None:
    """Per dim how the windows cut it: axes and block; None where they are not shares of a layout."""
    out: list[tuple[tuple[str, ...], int]] = []
    for c in need.components:
        if not c.parts:
            out += [((), n) for n in c.shape]
        elif c.span == len(c.parts) == 1 and c.parts[0].coefs == (1,) and (c.rest_lo, c.rest_hi) == (0, 0):
            if c.parts[0].extents != c.shape:  # a segment of the constant's columns
                return None
            out.append((c.parts[0].axes, c.parts[0].block))
        else:
            return None
    return out


def _spread(
    shape: tuple[int, ...], window: Sequence[int], cuts: Sequence[tuple[tuple[str, ...], int]], over: tuple[str, ...],
    mesh: Mesh,
) -> Layout | None:  # fmt: skip
    """The windows' own cuts, and one dim of them (the outermost that suits: long runs) cut once more over `over`; None
    where no dim has enough elements."""
    parts, best, waste = mesh.parts(over), -1, math.inf
    for d, (axes, block) in enumerate(cuts):
        if (axes and block % parts) or min(block, shape[d]) < parts:
            continue
        rounded = -(-block // parts) * parts / block
        if rounded < waste:
            best, waste = d, rounded
    if best < 0:
        return None
    groups = []
    for d, (axes, block) in enumerate(cuts):
        axes = (*axes, *over) if d == best else axes
        groups.append(Group(1, axes, -(-block // parts) if d == best else block) if axes else Group())
    return Layout(tuple(groups))


def resting(need: Need, shape: tuple[int, ...], mesh: Mesh) -> Layout | None:
    """A layout in which every core owns a part of what it needs; None where the need does not say one."""
    groups: list[Group] = []
    used: list[str] = []
    k = 0
    for c in need.components:
        n = math.prod(shape[k : k + c.span])
        axes = c.parts[0].axes if len(c.parts) == 1 else ()
        if len(c.parts) > 1 or set(axes) & set(used):
            return None
        if axes:
            part = c.parts[0]
            positions = -(-math.prod(part.extents) // part.block)
            groups.append(Group(c.span, axes, -(-n // min(positions, n))))
        else:
            groups += [Group()] * c.span
        used += axes
        k += c.span
    layout = Layout(tuple(groups), tuple(a for a in mesh.names if a not in used))
    try:
        layout.check(shape, mesh)
    except LayoutError:
        return None
    return layout
