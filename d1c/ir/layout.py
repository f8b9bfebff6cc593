"""Mesh, layouts and needs: who owns which part of a tensor, and which part a core must hold to compute its share.

docs/layouts.md has the definitions. A layout covers a tensor's dimensions, in order, by groups of adjacent dimensions;
a group is cut by its row-major linear index in equal blocks over an ordered list of mesh factors. The same class, laid
over an op's iteration dims, is a plan. A need is what falls out of a plan and an operand map: per component of the
operand's dims one linear interval for every position along the factors that it depends on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from d1c.ir.structured import Entry, Map
from d1c.target.keys import hashed_once
from d1c.target.mesh import Group, Layout, LayoutError, Mesh, axes_text, parse_axes


@hashed_once
@dataclass(frozen=True)
class Part:
    """A plan group's share of a component: iteration extents, the coefficients of its dims in the component's (padded)
    linear space, its factors and block."""

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


@hashed_once
@dataclass(frozen=True)
class Component:
    """One linear interval per position, over `span` adjacent operand dims of extents `shape`.

    `pads` holds per dim (elements before index 0, padded extent): the linear space is row-major over the padded
    extents. For a single dim the space is the raw index itself (which may be negative). The interval at a position is
    [sum of the parts' first values + rest_lo, sum of their last values + rest_hi + 1).
    `every`: the space is that of some elements only, per dim the `first` and every `step`-th behind it; () where it is
    that of all. The tensor then has more elements than `shape` says.
    """

    shape: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...]
    rest_lo: int
    rest_hi: int
    every: tuple[tuple[int, int], ...] = ()

    @property
    def span(self) -> int:
        return len(self.shape)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Factors that the interval depends on, in the order of its positions."""
        return tuple(a for p in self.parts for a in p.axes)

    @cached_property
    def widest(self) -> int:
        """The longest interval."""
        return self.rest_hi - self.rest_lo + 1 + sum(reach(p.extents, p.coefs, p.block) for p in self.parts)

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
            f" by {axes_text(p.axes)} / {p.block} of {'x'.join(map(str, p.extents))} at {' '.join(map(str, p.coefs))}"
            for p in self.parts
        )
        every = " every " + " ".join(f"{first}+{step}" for first, step in self.every) if self.every else ""
        return f"{'x'.join(map(str, self.shape))}{every}{pads} rest {self.rest_lo} {self.rest_hi}{parts}"

    @classmethod
    def parse(cls, text: str) -> Component:
        m = re.fullmatch(
            r"([\dx]+)(?: every ([\d+ ]+?))?(?: pad ([\d+ ]+))? rest (-?\d+) (-?\d+)((?: by .*)?)", text.strip()
        )
        if not m:
            raise LayoutError(f"cannot read need component {text!r}")
        shape = tuple(int(n) for n in m[1].split("x"))
        every, pads = (tuple((int(b), int(e)) for b, e in (w.split("+") for w in (m[k] or "").split())) for k in (2, 3))
        parts = []
        for piece in filter(None, m[6].split(" by ")):
            q = re.fullmatch(r"(.*?) / (\d+) of ([\dx]+) at ([-\d ]+)", piece.strip())
            if not q:
                raise LayoutError(f"cannot read need part {piece!r}")
            parts.append(
                Part(tuple(map(int, q[3].split("x"))), tuple(map(int, q[4].split())), parse_axes(q[1]), int(q[2]))
            )
        return cls(shape, pads or ((0, shape[0]),), tuple(parts), int(m[4]), int(m[5]), every)


@hashed_once
@dataclass(frozen=True)
class Need:
    """What every core of a plan holds of one operand: components cover its dims in order. `held`: the plan's. `thin`:
    the same without the elements between those that are read, None where there are none (see `reading`)."""

    components: tuple[Component, ...]
    plan_axes: tuple[str, ...]
    held: tuple[str, ...] = ()
    thin: Need | None = None

    @property
    def moved(self) -> Need:
        """What a movement brings."""
        return self.thin or self

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The factors that the content depends on; along the plan's other factors it is the same (multicast)."""
        return tuple(dict.fromkeys(a for c in self.components for a in c.axes))

    def local_shape(self) -> tuple[int, ...]:
        """The longest interval per component: the window's dims on every core."""
        return tuple(c.widest for c in self.components)

    def __str__(self) -> str:
        held = f" held {axes_text(self.held)}" if self.held else ""
        return f"[{', '.join(map(str, self.components))} | {axes_text(self.plan_axes)}{held}]"

    @classmethod
    def parse(cls, text: str) -> Need:
        body = text.strip()
        if not (body.startswith("[") and body.endswith("]") and "|" in body):
            raise LayoutError(f"a need is written [components | factors], not {text!r}")
        comps, _, tail = body[1:-1].partition("|")
        axes, _, held = tail.partition("held")
        return cls(tuple(Component.parse(c) for c in comps.split(",") if c.strip()), parse_axes(axes), parse_axes(held))


@lru_cache(maxsize=1 << 14)
def reach(extents: tuple[int, ...], coefs: tuple[int, ...], block: int) -> int:
    """How far apart the first and the last element of a share of `block` are in the component, at most."""
    n = math.prod(extents)
    if len(extents) == 1:
        return (min(block, n) - 1) * abs(coefs[0])
    start = np.arange(-(-n // block)) * block
    share = Part(extents, coefs, (), block)
    return int(np.abs(share.value(np.minimum(start + block, n) - 1) - share.value(start)).max())


def need_of(dims: tuple[int, ...], index: Map, shape: tuple[int, ...], plan: Layout) -> Need:
    """The need of an operand of `shape`, read through `index` by an op with iteration extents `dims`, under `plan`.

    Raises LayoutError where the plan's flat group is not monotone in the operand (its hull would not be an interval).
    """
    groups = [(a, b, g) for a, b, g, _ in plan.spans(dims) if g.axes]
    outlines = _outlines(dims, index, shape, tuple([(a, b) for a, b, _ in groups]))
    return Need(tuple([x.component([g for _, _, g in groups]) for x in outlines]), plan.axes, plan.held)


def thin_of(dims: tuple[int, ...], index: Map, shape: tuple[int, ...], plan: Layout) -> Need | None:
    """`need_of` without the elements that lie between those that are read: of windows with steps, None without."""
    found = thinned(dims, index, shape)
    if found is None:
        return None
    entries, extents, every = found
    need, k, components = need_of(dims, entries, extents, plan), 0, []
    for c in need.components:
        mine = every[k : k + c.span]
        components.append(replace(c, every=mine) if any(step > 1 for _, step in mine) else c)
        k += c.span
    return replace(need, components=tuple(components))


def reading(dims: tuple[int, ...], index: Map, shape: tuple[int, ...], plan: Layout) -> Need:
    """The need of an operand that may be moved: `need_of` with what a movement brings in its place."""
    need, thin = need_of(dims, index, shape, plan), thin_of(dims, index, shape, plan)
    return need if thin is None else replace(need, thin=thin)


@lru_cache(maxsize=1 << 12)
def thinned(
    dims: tuple[int, ...], index: Map, shape: tuple[int, ...]
) -> tuple[Map, tuple[int, ...], tuple[tuple[int, int], ...]] | None:
    """The map by which an operand is read of which only those elements are left that lie in the steps of its map; its
    extents, and per dim the first and the step of what is left. None where all are left."""
    entries, extents, every = list[Entry](), list[int](), list[tuple[int, int]]()
    for e in index:
        k = len(extents)
        coefs = [c for d, c in e.terms if dims[d] > 1]
        step = math.gcd(*coefs) if e.span == 1 and min(coefs, default=0) > 0 else 1
        first = e.offset % step
        if step == 1 or first >= shape[k]:
            entries.append(e)
            extents += shape[k : k + e.span]
            every += [(0, 1)] * e.span
            continue
        terms = tuple((d, c // step) for d, c in e.terms if dims[d] > 1)
        entries.append(Entry(terms, e.offset // step))
        extents.append(-(-(shape[k] - first) // step))
        every.append((first, step))
    return (tuple(entries), tuple(extents), tuple(every)) if any(step > 1 for _, step in every) else None


@dataclass(frozen=True)
class _Outline:
    """A component whose groups have no factors yet. `parts`: number of the group, extents, coefficients. `made`: the
    components that came of it, by how the groups of its parts are cut; plans share most of them."""

    shape: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    parts: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    rest_lo: int
    rest_hi: int
    made: dict[tuple[tuple[tuple[str, ...], int], ...], Component] = field(default_factory=dict, compare=False)

    def component(self, groups: Sequence[Group]) -> Component:
        cuts = tuple([(groups[k].axes, groups[k].block) for k, _, _ in self.parts])
        known = self.made.get(cuts)
        if known is None:
            parts = tuple(Part(n, c, *cut) for (_, n, c), cut in zip(self.parts, cuts, strict=True))
            known = self.made[cuts] = Component(self.shape, self.pads, parts, self.rest_lo, self.rest_hi)
        return known


@lru_cache(maxsize=1 << 12)
def _outlines(
    dims: tuple[int, ...], index: Map, shape: tuple[int, ...], groups: tuple[tuple[int, int], ...]
) -> tuple[_Outline, ...]:
    """A need's components where a plan cuts `groups` (first dim, last + 1), over any factors. Raises LayoutError."""
    group_of = {d: i for i, (a, b) in enumerate(groups) for d in range(a, b)}
    flat = {i for i, (a, b) in enumerate(groups) if b - a > 1}
    bounds, k = [], 0  # operand dims of each entry
    for e in index:
        bounds.append((k, k + e.span))
        k += e.span
    if k != len(shape):
        raise LayoutError(f"an operand map covers {k} dims of a tensor of rank {len(shape)}")
    runs: list[list[int]] = []  # entries joined in one component: those that share a flat group, and what lies between
    for i, e in enumerate(index):
        mine = {group_of[d] for d, _ in e.terms if d in group_of} & flat
        join = next(
            (
                j
                for j, r in enumerate(runs)
                if mine & {group_of[d] for q in r for d, _ in index[q].terms if d in group_of}
            ),
            None,
        )
        if join is None:
            runs.append([i])
        else:
            runs[join:] = [[q for r in runs[join:] for q in r] + [i]]
    return tuple(
        _outline(dims, [index[i] for i in r], shape[bounds[r[0]][0] : bounds[r[-1]][1]], groups, group_of) for r in runs
    )


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


def _outline(
    dims: tuple[int, ...],
    entries: list[Entry],
    shape: tuple[int, ...],
    groups: tuple[tuple[int, int], ...],
    group_of: dict[int, int],
) -> _Outline:
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
        a, b = groups[gi]
        extents, steps = dims[a:b], tuple(coefs.get(d, 0) for d in range(a, b))
        if b - a > 1:
            reach = 0
            for n, c in zip(reversed(extents), reversed(steps), strict=True):
                if c < reach or c < 0:
                    raise LayoutError(f"flat dims {a}..{b - 1} are not monotone in an operand (coefficients {steps})")
                reach += c * (n - 1)
        parts.append((gi, extents, steps))
    for d, c in coefs.items():
        if d not in group_of:
            lo += min(0, c * (dims[d] - 1))
            hi += max(0, c * (dims[d] - 1))
    return _Outline(shape, tuple(pads), tuple(parts), lo, hi)
