"""Mesh, layouts and needs: who owns which part of a tensor, and which part a core must hold to compute its share.

docs/layouts.md has the definitions. A layout covers a tensor's dimensions, in order, by groups of adjacent dimensions; a
group is cut by its row-major linear index in equal blocks over an ordered list of mesh factors. The same class, laid over
an op's iteration dims, is a plan. A need is what falls out of a plan and an operand map: per component of the operand's
dims one linear interval for every position along the factors that it depends on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from d1c.ir.structured import Entry, Map


class LayoutError(ValueError):
    """A layout or plan that the rules do not allow; says which rule."""


@dataclass(frozen=True)
class Mesh:
    """The logical mesh: ordered factors (name, size), major to minor. A core's number is the mixed radix of its coordinates."""

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
        return math.prod(self.sizes[self.index[a]] for a in axes)

    def position(self, axes: tuple[str, ...], cores: np.ndarray | None = None) -> np.ndarray:
        """Mixed-radix position of each core (all, or those numbered `cores`) along `axes`."""
        coords = self.coords if cores is None else self.coords[cores]
        p = np.zeros(len(coords), np.int64)
        for a in axes:
            i = self.index[a]
            p = p * self.sizes[i] + coords[:, i]
        return p

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
    """`span` adjacent dims, cut by linear index in blocks of `block` over `axes` (major to minor); no axes: whole (block 0)."""

    span: int = 1
    axes: tuple[str, ...] = ()
    block: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups covering the dims in order; `held`: factors along which only coordinate 0 holds (computes) anything. Factors that
    are named nowhere are replicated: all their coordinates hold equal bits."""

    groups: tuple[Group, ...]
    held: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """All factors that cut something."""
        return tuple(a for g in self.groups for a in g.axes)

    def spans(self, shape: tuple[int, ...]) -> list[tuple[int, int, Group, int]]:
        """Per group: first dim, last dim + 1, the group, its extent in elements."""
        out, k = [], 0
        for g in self.groups:
            out.append((k, k + g.span, g, math.prod(shape[k : k + g.span])))
            k += g.span
        return out

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Elements per group that the largest share takes: the buffer's dims on every core."""
        return tuple((g.block if g.axes else n) for _, _, g, n in self.spans(shape))

    def check(self, shape: tuple[int, ...], mesh: Mesh) -> None:
        """Raises LayoutError where a rule of docs/layouts.md is broken."""
        if sum(g.span for g in self.groups) != len(shape):
            raise LayoutError(f"layout {self} covers {sum(g.span for g in self.groups)} dims, the tensor has {len(shape)}")
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
            parts.append(f"{dims}: {_axes_text(g.axes)} / {g.block}" if g.axes else dims)
            k += g.span
        return f"[{', '.join(parts)}{' | ' + _axes_text(self.held) if self.held else ''}]"

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
            groups.append(Group(len(dims), _parse_axes(m[2] or ""), int(m[3] or 0)))
        return cls(tuple(groups), _parse_axes(held))


def _axes_text(axes: tuple[str, ...]) -> str:
    """`nr.0 nr.1 nr.2` is written `nr.0-2`."""
    out: list[list[str]] = []
    for a in axes:
        base, _, n = a.partition(".")
        if n and out and out[-1][0] == base and int(out[-1][-1]) + 1 == int(n):
            out[-1][2:] = [n]
        else:
            out.append([base, n] if n else [a])
    return " ".join(o[0] if len(o) == 1 else f"{o[0]}.{'-'.join(o[1:])}" for o in out)


def _parse_axes(text: str) -> tuple[str, ...]:
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


@dataclass(frozen=True, slots=True)
class Part:
    """A plan group's share of a component: iteration extents, the coefficients of its dims in the component's (padded) linear
    space, its factors and block."""

    extents: tuple[int, ...]
    coefs: tuple[int, ...]
    axes: tuple[str, ...]
    block: int

    def value(self, linear: np.ndarray) -> np.ndarray:
        """The component offset of the share's element with this linear index."""
        out, rest = np.zeros_like(linear), linear
        for n, c in zip(reversed(self.extents), reversed(self.coefs), strict=True):
            out = out + (rest % n) * c
            rest = rest // n
        return out


@dataclass(frozen=True, slots=True)
class Component:
    """One linear interval per position, over `span` adjacent operand dims of extents `shape`.

    `pads` holds per dim (elements before index 0, padded extent): the linear space is row-major over the padded extents. For
    a single dim the space is the raw index itself (which may be negative). The interval at a position is
    [sum of the parts' first values + rest_lo, sum of their last values + rest_hi + 1).
    """

    shape: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...]
    rest_lo: int
    rest_hi: int

    @property
    def span(self) -> int:
        return len(self.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """Factors that the interval depends on, in the order of its positions."""
        return tuple(a for p in self.parts for a in p.axes)

    def intervals(self, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
        """(lo, hi) at every joint position along `axes`; empty ones are (0, 0)."""
        lo, hi = np.array([self.rest_lo]), np.array([self.rest_hi + 1])
        alive = np.array([True])
        for p in self.parts:
            start = np.arange(mesh.parts(p.axes)) * p.block
            stop = np.minimum(start + p.block, math.prod(p.extents))
            ok = start < stop
            first = p.value(np.where(ok, start, 0))
            last = p.value(np.where(ok, stop - 1, 0))
            first, last = np.minimum(first, last), np.maximum(first, last)
            lo = (lo[:, None] + first).ravel()
            hi = (hi[:, None] + last).ravel()
            alive = (alive[:, None] & ok).ravel()
        return np.where(alive, lo, 0), np.where(alive, hi, 0)

    def __str__(self) -> str:
        pads = "" if self.span == 1 else " pad " + " ".join(f"{b}+{e}" for b, e in self.pads)
        parts = "".join(
            f" by {_axes_text(p.axes)} / {p.block} of {'x'.join(map(str, p.extents))} at {' '.join(map(str, p.coefs))}" for p in self.parts
        )
        return f"{'x'.join(map(str, self.shape))}{pads} rest {self.rest_lo} {self.rest_hi}{parts}"

    @classmethod
    def parse(cls, text: str) -> Component:
        m = re.fullmatch(r"([\dx]+)(?: pad ([\d+ ]+))? rest (-?\d+) (-?\d+)((?: by .*)?)", text.strip())
        if not m:
            raise LayoutError(f"cannot read need component {text!r}")
        shape = tuple(int(n) for n in m[1].split("x"))
        pads = tuple((int(b), int(e)) for b, e in (w.split("+") for w in (m[2] or "").split())) or ((0, shape[0]),)
        parts = []
        for piece in filter(None, m[5].split(" by ")):
            q = re.fullmatch(r"(.*?) / (\d+) of ([\dx]+) at ([-\d ]+)", piece.strip())
            if not q:
                raise LayoutError(f"cannot read need part {piece!r}")
            parts.append(Part(tuple(map(int, q[3].split("x"))), tuple(map(int, q[4].split())), _parse_axes(q[1]), int(q[2])))
        return cls(shape, pads, tuple(parts), int(m[3]), int(m[4]))


@dataclass(frozen=True, slots=True)
class Need:
    """What every core of a plan holds of one operand: components covering the operand's dims in order. `held` are the plan's."""

    components: tuple[Component, ...]
    plan_axes: tuple[str, ...]
    held: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The factors that the content depends on; along the plan's other factors it is the same (multicast)."""
        return tuple(dict.fromkeys(a for c in self.components for a in c.axes))

    def local_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """The longest interval per component: the window's dims on every core."""
        return tuple(int((hi - lo).max()) for lo, hi in (c.intervals(mesh) for c in self.components))

    def __str__(self) -> str:
        held = f" held {_axes_text(self.held)}" if self.held else ""
        return f"[{', '.join(map(str, self.components))} | {_axes_text(self.plan_axes)}{held}]"

    @classmethod
    def parse(cls, text: str) -> Need:
        body = text.strip()
        if not (body.startswith("[") and body.endswith("]") and "|" in body):
            raise LayoutError(f"a need is written [components | factors], not {text!r}")
        comps, _, tail = body[1:-1].partition("|")
        axes, _, held = tail.partition("held")
        return cls(tuple(Component.parse(c) for c in comps.split(",") if c.strip()), _parse_axes(axes), _parse_axes(held))


def need_of(dims: tuple[int, ...], index: Map, shape: tuple[int, ...], plan: Layout) -> Need:
    """The need of an operand of `shape`, read through `index` by an op with iteration extents `dims`, under `plan`.

    Raises LayoutError where the plan's flat group is not monotone in the operand (its hull would not be an interval).
    """
    groups = [(a, b, g) for a, b, g, _ in plan.spans(dims) if g.axes]
    group_of = {d: i for i, (a, b, _) in enumerate(groups) for d in range(a, b)}
    flat = {i for i, (a, b, _) in enumerate(groups) if b - a > 1}
    bounds, k = [], 0  # operand dims of each entry
    for e in index:
        bounds.append((k, k + e.span))
        k += e.span
    if k != len(shape):
        raise LayoutError(f"an operand map covers {k} dims of a tensor of rank {len(shape)}")
    runs: list[list[int]] = []  # entries joined in one component: those that share a flat group, and what lies between
    for i, e in enumerate(index):
        mine = {group_of[d] for d, _ in e.terms if d in group_of} & flat
        join = next((j for j, r in enumerate(runs) if mine & {group_of[d] for q in r for d, _ in index[q].terms if d in group_of}), None)
        if join is None:
            runs.append([i])
        else:
            runs[join:] = [[q for r in runs[join:] for q in r] + [i]]
    comps = tuple(_component(dims, [index[i] for i in r], shape[bounds[r[0]][0] : bounds[r[-1]][1]], groups, group_of) for r in runs)
    return Need(comps, plan.axes, plan.held)


def linear(entries: Sequence[Entry], pads: tuple[tuple[int, int], ...]) -> tuple[int, dict[int, int]]:
    """A component's offset in its (padded) linear space as constant and coefficient per iteration dim."""
    const, coefs, k, stride = 0, dict[int, int](), len(pads), 1
    for e in reversed(entries):
        before = pads[k - e.span][0] if e.span == 1 else 0
        const += (e.offset + before) * stride
        for d, c in e.terms:
            coefs[d] = coefs.get(d, 0) + c * stride
        stride *= math.prod(x for _, x in pads[k - e.span : k])
        k -= e.span
    return const, coefs


def _component(dims: tuple[int, ...], entries: list[Entry], shape: tuple[int, ...], groups: list[tuple[int, int, Group]], group_of: dict[int, int]) -> Component:
    pads: list[tuple[int, int]] = []
    k = 0
    for e in entries:
        if e.span == 1 and len(entries) > 1:
            lo = e.offset + sum(min(0, c * (dims[d] - 1)) for d, c in e.terms)
            hi = e.offset + sum(max(0, c * (dims[d] - 1)) for d, c in e.terms)
            before = max(0, -lo)
            pads.append((before, max(shape[k], hi + 1) + before))
        else:
            pads += [(0, n) for n in shape[k : k + e.span]]
        k += e.span
    const, coefs = linear(entries, tuple(pads))
    parts, lo, hi = [], const, const
    for gi in sorted({group_of[d] for d in coefs if d in group_of}):
        a, b, g = groups[gi]
        part = Part(dims[a:b], tuple(coefs.get(d, 0) for d in range(a, b)), g.axes, g.block)
        if b - a > 1:
            reach = 0
            for n, c in zip(reversed(part.extents), reversed(part.coefs), strict=True):
                if c < reach or c < 0:
                    raise LayoutError(f"flat dims {a}..{b - 1} are not monotone in an operand (coefficients {part.coefs})")
                reach += c * (n - 1)
        parts.append(part)
    for d, c in coefs.items():
        if d not in group_of:
            lo += min(0, c * (dims[d] - 1))
            hi += max(0, c * (dims[d] - 1))
    return Component(shape, tuple(pads), tuple(parts), lo, hi)
