"""What a structured op computes, free of any plan: iteration dimensions, operand maps, how terms combine.

The bits of every result follow from this description alone (docs/numerics.md): `dims` are in canonical order, parallel
ones first in the order of the output, then the reduce ones in their order of accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass

Outside = float | None

KINDS = ("map", "mac", "fma", "sum", "max", "min", "or", "lookup")


@dataclass(frozen=True, slots=True)
class Dim:
    """One iteration dimension."""

    name: str
    extent: int
    reduce: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An affine expression over iteration dims: sum(coef * dim) + offset, addressing `span` adjacent operand dims by their
    row-major linear index. `terms` are (dim number, coef), ascending by dim, no zero coef."""

    terms: tuple[tuple[int, int], ...] = ()
    offset: int = 0
    span: int = 1


Map = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Structured:
    """out[parallel dims] = epilogue(combine over reduce dims of term(operands)).

    kind     map: no reduce dims. mac: operands 0 (rows) and 1 (packed) multiplied on the matrix unit, reduce dims end in the
             pair dim (extent 2, or 1 for f32). fma: the same product accumulated on the vector unit, lanes on the last
             parallel dim. sum, max, min, or: reduce of the term. lookup: operand 0 is an index, operand 1 a table whose
             first dim is the one reduce dim.
    maps     one Map per operand. fills: the value of an operand outside its tensor, None where it never leaves it.
    cut      the reduce dim (number) that a plan may split, in canonical slices of `slice` iterations; None: never split.
             Slices are combined in the aligned binary tree of N6 also inside one core.
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

    @property
    def parallel(self) -> int:
        """How many of `dims` are parallel."""
        return sum(not d.reduce for d in self.dims)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(d.extent for d in self.dims if not d.reduce)
