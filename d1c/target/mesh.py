"""The logical mesh and layouts over it: the part of docs/layouts.md that compiler and runtime share.

A layout covers a tensor's dimensions, in order, by groups of adjacent dimensions; a group is cut by its row-major
linear index in equal blocks over an ordered list of mesh factors. Laid over an op's iteration dims it is a plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from d1c.target.keys import hashed_once


class LayoutError(ValueError):
    """A layout or plan that the rules do not allow; says which rule."""


@hashed_once
@dataclass(frozen=True)
class Mesh:
    """The logical mesh: ordered factors (name, size), major to minor. A core's number: its coordinates' mixed radix."""

    axes: tuple[tuple[str, int], ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(n for n, _ in self.axes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(s for _, s in self.axes)

    @cached_property
    def index(self) -> dict[str, int]:
        return {n: i for i, n in enumerate(self.names)}

    @cached_property
    def cores(self) -> int:
        return math.prod(self.sizes)

    @cached_property
    def stride(self) -> dict[str, int]:
        """Per factor, how far apart in core numbers its neighbours are."""
        return {n: math.prod(self.sizes[i + 1 :]) for i, n in enumerate(self.names)}

    @cached_property
    def coords(self) -> np.ndarray:
        """[cores, factors] coordinates of every core."""
        return np.indices(self.sizes, np.int64).reshape(len(self.sizes), self.cores).T

    def parts(self, axes: tuple[str, ...]) -> int:
        """How many positions an ordered factor list has."""
        known = self._parts.get(axes)
        if known is None:
            known = self._parts[axes] = math.prod(self.sizes[self.index[a]] for a in axes)
        return known

    def position(self, axes: tuple[str, ...], cores: np.ndarray | None = None) -> np.ndarray:
        """Mixed-radix position of each core (all, or those numbered `cores`) along `axes`. Read only."""
        if axes not in self._positions:
            p = np.zeros(self.cores, np.int64)
            for a in axes:
                i = self.index[a]
                p = p * self.sizes[i] + self.coords[:, i]
            p.flags.writeable = False
            self._positions[axes] = p
        return self._positions[axes] if cores is None else self._positions[axes][cores]

    @cached_property
    def known(self) -> dict[CoreInt, np.ndarray]:
        """Per-core integers of this mesh that have been asked for."""
        return {}

    @cached_property
    def _parts(self) -> dict[tuple[str, ...], int]:
        """Those of the lists that have been asked for; a mesh has few factors."""
        return {}

    @cached_property
    def _positions(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}

    def core_offset(self, axes: tuple[str, ...], position: np.ndarray) -> np.ndarray:
        """Core number of the core at `position` along `axes` and at 0 along all other factors."""
        out, p = np.zeros_like(position), position
        for a in reversed(axes):
            n = self.sizes[self.index[a]]
            out = out + (p % n) * self.stride[a]
            p = p // n
        return out


@dataclass(frozen=True, slots=True)
class Group:
    """`span` adjacent dims, cut by linear index in blocks of `block` over `axes` (major to minor); no axes: whole."""

    span: int = 1
    axes: tuple[str, ...] = ()
    block: int = 0


@hashed_once
@dataclass(frozen=True)
class Layout:
    """Groups covering the dims in order; `held`: factors along which only coordinate 0 holds (computes) anything.
    Factors that are named nowhere are replicated: all their coordinates hold equal bits."""

    groups: tuple[Group, ...]
    held: tuple[str, ...] = ()

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """All factors that cut something."""
        return tuple(a for g in self.groups for a in g.axes)

    def copied(self, mesh: Mesh) -> tuple[str, ...]:
        """Factors along which all cores hold the same: those that are named nowhere, in mesh order."""
        named = {*self.axes, *self.held}
        return tuple(a for a in mesh.names if a not in named)

    def spans(self, shape: tuple[int, ...]) -> tuple[tuple[int, int, Group, int], ...]:
        """Per group: first dim, last dim + 1, the group, its extent in elements."""
        known = self._spans.get(shape)
        if known is None:
            out, k = [], 0
            for g in self.groups:
                out.append((k, k + g.span, g, math.prod(shape[k : k + g.span])))
                k += g.span
            known = self._spans[shape] = tuple(out)
        return known

    @cached_property
    def _spans(self) -> dict[tuple[int, ...], tuple[tuple[int, int, Group, int], ...]]:
        """Those of the few shapes that have been asked for."""
        return {}

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Elements per group that the largest share takes: the buffer's dims on every core."""
        return tuple((g.block if g.axes else n) for _, _, g, n in self.spans(shape))

    def check(self, shape: tuple[int, ...], mesh: Mesh) -> None:
        """Raises LayoutError where a rule of docs/layouts.md is broken."""
        if sum(g.span for g in self.groups) != len(shape):
            raise LayoutError(
                f"layout {self} covers {sum(g.span for g in self.groups)} dims, the tensor has {len(shape)}"
            )
        used = [*self.axes, *self.held]
        for a in used:
            if a not in mesh.index:
                raise LayoutError(f"layout {self} names factor {a}, the mesh has {' '.join(mesh.names)}")
            if used.count(a) > 1:
                raise LayoutError(f"layout {self} uses factor {a} twice")
        for _, _, g, n in self.spans(shape):
            if g.axes and g.block * mesh.parts(g.axes) < n:
                raise LayoutError(f"layout {self}: {mesh.parts(g.axes)} blocks of {g.block} do not cover {n} elements")

    def __str__(self) -> str:
        parts, k = [], 0
        for g in self.groups:
            dims = " ".join(str(d) for d in range(k, k + g.span))
            parts.append(f"{dims}: {axes_text(g.axes)} / {g.block}" if g.axes else dims)
            k += g.span
        return f"[{', '.join(parts)}{' | ' + axes_text(self.held) if self.held else ''}]"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout that prints as `text`; LayoutError with the offending piece."""
        body = text.strip()
        if not (body.startswith("[") and body.endswith("]")):
            raise LayoutError(f"a layout is written in [ ], not {text!r}")
        body, _, held = body[1:-1].partition("|")
        groups: list[Group] = []
        k = 0
        for part in filter(None, (p.strip() for p in body.split(","))):
            m = re.fullmatch(r"([\d ]+?)\s*(?::\s*([a-z][\w. -]*?)\s*/\s*(\d+))?", part)
            if not m:
                raise LayoutError(f"cannot read layout group {part!r}; expected e.g. '0 1: dr nr.0-1 / 126'")
            dims = [int(d) for d in m[1].split()]
            if dims != list(range(k, k + len(dims))):
                raise LayoutError(f"layout group {part!r} must cover dims from {k} on, in order")
            k += len(dims)
            groups.append(Group(len(dims), parse_axes(m[2] or ""), int(m[3] or 0)))
        return cls(tuple(groups), parse_axes(held))


def axes_text(axes: tuple[str, ...]) -> str:
    """`nr.0 nr.1 nr.2` is written `nr.0-2`."""
    out: list[list[str]] = []
    for a in axes:
        base, _, n = a.partition(".")
        if n and out and out[-1][0] == base and int(out[-1][-1]) + 1 == int(n):
            out[-1][2:] = [n]
        else:
            out.append([base, n] if n else [a])
    return " ".join(o[0] if len(o) == 1 else f"{o[0]}.{'-'.join(o[1:])}" for o in out)


def parse_axes(text: str) -> tuple[str, ...]:
    out: list[str] = []
    for word in text.split():
        m = re.fullmatch(r"([a-z]+)(?:\.(\d+)(?:-(\d+))?)?", word)
        if not m:
            raise LayoutError(f"cannot read factor {word!r}; expected e.g. 'dr' or 'nr.0-2'")
        if m[2] is None:
            out.append(m[1])
        else:
            out += [f"{m[1]}.{i}" for i in range(int(m[2]), int(m[3] or m[2]) + 1)]
    return tuple(out)


def place(array: np.ndarray, layout: Layout, mesh: Mesh) -> dict[int, np.ndarray]:
    """The owned buffers of a whole array: per core that owns anything its flat buffer (short shares padded with 0)."""
    local = layout.local_shape(array.shape)
    flat = array.reshape([n for _, _, _, n in layout.spans(array.shape)])
    out = {}
    for core, part in shares(layout, array.shape, mesh):
        buf = np.zeros(local, array.dtype)
        block = flat[part]
        buf[tuple(slice(0, s) for s in block.shape)] = block
        out[core] = buf.reshape(-1)
    return out


def whole(
    held: Mapping[int, np.ndarray], layout: Layout, shape: tuple[int, ...], dtype: np.dtype, mesh: Mesh
) -> np.ndarray:
    """The array that the owned buffers (by core) make up; KeyError where a share is missing."""
    out = np.zeros([n for _, _, _, n in layout.spans(shape)], dtype)
    local = layout.local_shape(shape)
    for core, part in shares(layout, shape, mesh):
        index: tuple[Any, ...] = (*part, ...)  # a view for rank 0 too
        view = out[index]
        view[...] = held[core].reshape(local)[tuple(slice(0, s) for s in view.shape)]
    return out.reshape(shape)


def shares(layout: Layout, shape: tuple[int, ...], mesh: Mesh) -> list[tuple[int, tuple[slice, ...]]]:
    """(core, slices of the tensor with its groups flattened) for every core that owns anything, by core number of the
    first replica."""
    cores = mesh.core_offset(layout.axes, np.arange(mesh.parts(layout.axes)))
    bounds = []
    for _, _, g, n in layout.spans(shape):
        lo = np.minimum(mesh.position(g.axes, cores) * g.block, n)
        bounds.append((lo, np.minimum(lo + g.block, n)) if g.axes else (lo * 0, lo * 0 + n))
    out = []
    for i, core in enumerate(cores):
        part = tuple(slice(int(lo[i]), int(hi[i])) for lo, hi in bounds)
        if all(p.start < p.stop for p in part):
            out.append((int(core), part))
    return out


@hashed_once
@dataclass(frozen=True)
class CoreInt:
    """An integer that each core has: a table over its position along `axes` (one value where it depends on none)."""

    axes: tuple[str, ...] = ()
    values: tuple[int, ...] = (0,)

    def of(self, mesh: Mesh) -> np.ndarray:
        """[cores] the value of every core. Read only."""
        known = mesh.known
        if self not in known:
            known[self] = np.array(self.values, np.int64)[mesh.position(self.axes)]
            known[self].flags.writeable = False
        return known[self]

    @classmethod
    def const(cls, value: int) -> CoreInt:
        return cls((), (int(value),))

    @classmethod
    def over(cls, axes: tuple[str, ...], values: np.ndarray, mesh: Mesh) -> CoreInt:
        """The table `values` (one per position along `axes`), without the factors on which it does not depend."""
        sizes = [mesh.sizes[mesh.index[a]] for a in axes]
        table, keep = np.asarray(values, np.int64).reshape(sizes), list(axes)
        for i in reversed(range(len(axes))):
            first = table.take([0], axis=i)
            if np.array_equal(np.broadcast_to(first, table.shape), table):
                table = first.squeeze(axis=i)
                del keep[i]
        return cls(tuple(keep), tuple(int(v) for v in table.reshape(-1)))

    def __str__(self) -> str:
        if not self.axes:
            return str(self.values[0])
        runs: list[list[int]] = []
        for v in self.values:
            if runs and runs[-1][0] == v:
                runs[-1][1] += 1
            else:
                runs.append([v, 1])
        return f"{axes_text(self.axes)}: " + " ".join(f"{v}*{n}" if n > 1 else str(v) for v, n in runs)

    @classmethod
    def parse(cls, text: str) -> CoreInt:
        """The value that prints as `text`; ValueError for anything else."""
        axes, colon, body = text.rpartition(":")
        values: list[int] = []
        for word in body.split():
            v, star, n = word.partition("*")
            values += [int(v)] * (int(n) if star else 1)
        if not values or (not colon and len(values) > 1):
            raise ValueError(f"cannot read per-core integer {text!r}; expected e.g. '5' or 'nr nc: 3*7 1'")
        return cls(parse_axes(axes), tuple(values))
