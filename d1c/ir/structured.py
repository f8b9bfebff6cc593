"""What a structured op computes, free of any plan: iteration dimensions, operand maps, how terms combine.

The bits of every result follow from this description alone (docs/numerics.md): `dims` are in canonical order, parallel
ones first in the order of the output, then the reduce ones in their order of accumulation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from d1c.target.keys import hashed_once

Outside = float | None

KINDS = ("map", "mac", "fma", "sum", "max", "min", "or", "lookup", "scatter", "prod", "attention")


@dataclass(frozen=True, slots=True)
class Dim:
    """One iteration dimension."""

    name: str
    extent: int
    reduce: bool = False


@hashed_once
@dataclass(frozen=True)
class Entry:
    """An affine expression over iteration dims: sum(coef * dim) + offset, addressing `span` adjacent operand dims by
    their row-major linear index. `terms` are (dim number, coef), ascending by dim, no zero coef."""

    terms: tuple[tuple[int, int], ...] = ()
    offset: int = 0
    span: int = 1


Map = tuple[Entry, ...]


@hashed_once
@dataclass(frozen=True)
class Structured:
    """out[parallel dims] = epilogue(combine over reduce dims of term(operands)).

    kind     map: no reduce dims. mac: operands 0 (rows) and 1 (packed) multiplied on the matrix unit, reduce dims end
             in the pair dim (extent 2, or 1 for f32). fma: the same product accumulated on the vector unit, lanes on
             the last parallel dim. sum, prod, max, min, or: reduce of the term. lookup: operand 0 is an index, operand
             1 a table with a dim for the one reduce dim. scatter: the result starts as operand 0; then, for every
             iteration of the one reduce dim, the term of the result's row that operand 1 names and operand 2 is stored
             there (no term: operand 2 itself). Rows are dim 0. attention: graph.attention; no nest of loops, but a
             layer that d1c.analysis.attention makes computes of. Only plans see it.
    maps     one Map per operand. fills: the value of an operand outside its tensor, None where it never leaves it.
    cut      the reduce dim (number) that a plan may split, in canonical slices of `slice` iterations; None: never
             split. Slices are combined in the aligned binary tree of N6 also inside one core.
             For an attention that has no cut, `slice` is the number of its keys.
    lanes    the sum runs along its innermost reduce dim with 16 interleaved lanes (N7).
    n_term   how many leading operands the term reads inside the reduction; the others belong to the epilogue, and their
             maps name parallel dims only.
    """

    dims: tuple[Dim, ...]
    kind: str
    maps: tuple[Map, ...]
    fills: tuple[Outside, ...]
    n_term: int
    cut: int | None = None
    slice: int = 0
    lanes: bool = False

    @cached_property
    def parallel(self) -> int:
        """How many of `dims` are parallel."""
        return sum(not d.reduce for d in self.dims)

    @property
    def alone(self) -> tuple[int, ...]:
        """Dims that no plan may flatten with their neighbours: run-time numbers address them, or they are those of
        several computes."""
        if self.kind == "attention":
            return tuple(range(self.parallel))
        return (0,) if self.kind == "scatter" else ()

    def flat(self, first: int, end: int) -> bool:
        """Whether a plan may flatten the dims from `first` to before `end`. The columns of a product are a loop of
        their own: its rows do not follow them."""
        dims = range(first, end)
        columns = self.parallel - 1
        joined = self.kind == "mac" and columns in dims and any(self.dims[d].extent > 1 for d in dims if d != columns)
        return len(dims) < 2 or not (joined or any(d in dims for d in self.alone))

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(d.extent for d in self.dims if not d.reduce)

    def __str__(self) -> str:
        par = ", ".join(f"{d.name} {d.extent}" for d in self.dims if not d.reduce)
        red = ", ".join(f"{d.name} {d.extent}" for d in self.dims if d.reduce)
        cut = "" if self.cut is None else f" cut {self.dims[self.cut].name} / {self.slice}"
        maps = " ".join(
            f"[{', '.join(self._entry(e) for e in m)}{'' if f is None else f' : {f!r}'}]"
            for m, f in zip(self.maps, self.fills, strict=True)
        )
        dims = f"{par} | {red}" if red else par
        lanes = " lanes" if self.lanes else ""
        return f"{self.kind} ({dims}){cut}{lanes} term {self.n_term} {maps}".strip()

    def _entry(self, e: Entry) -> str:
        parts = [self.dims[d].name if c == 1 else f"{c}*{self.dims[d].name}" for d, c in e.terms]
        if e.offset or not parts:
            parts.append(str(e.offset))
        return "+".join(parts).replace("+-", "-") + (f"~{e.span}" if e.span > 1 else "")

    @classmethod
    def parse(cls, text: str) -> Structured:
        """The structured op that prints as `text`; ValueError with the piece that cannot be read."""
        m = re.fullmatch(
            r"(\w+) \(([^)|]*)(?:\|([^)]*))?\)(?: cut (\w+) / (\d+))?( lanes)? term (\d+)((?: \[[^\]]*\])*)",
            text.strip(),
        )
        if not m:
            raise ValueError(f"cannot read structured op {text!r}")
        dims = []
        for part, reduce in ((m[2], False), (m[3] or "", True)):
            for word in filter(None, (w.strip() for w in part.split(","))):
                name, _, extent = word.partition(" ")
                dims.append(Dim(name, int(extent), reduce))
        number = {d.name: i for i, d in enumerate(dims)}
        maps, fills = [], []
        for body in re.findall(r"\[([^\]]*)\]", m[8]):
            entries, _, fill = body.partition(" : ")
            maps.append(tuple(_parse_entry(e, number) for e in filter(None, (w.strip() for w in entries.split(",")))))
            fills.append(float(fill) if fill else None)
        cut = number[m[4]] if m[4] else None
        return cls(tuple(dims), m[1], tuple(maps), tuple(fills), int(m[7]), cut, int(m[5] or 0), bool(m[6]))


def _parse_entry(text: str, number: dict[str, int]) -> Entry:
    body, _, span = text.partition("~")
    terms, offset = [], 0
    for word in filter(None, body.replace("-", "+-").split("+")):
        coef, star, name = word.rpartition("*")
        sign = 1
        if not star and name.startswith("-") and not name[1:].isdigit():
            sign, name = -1, name[1:]
        if name in number:
            terms.append((number[name], int(coef) if star else sign))
        else:
            offset += int(name)
    return Entry(tuple(sorted(terms)), offset, int(span or 1))
