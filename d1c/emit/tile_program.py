"""A program together with what its movements are made of: what the lowering returns, and what the tile level prints."""

from __future__ import annotations

from dataclasses import dataclass

from d1c.analysis.exchange import exchange
from d1c.ir.layout import Need
from d1c.target.mesh import Layout, Mesh
from d1c.target.movement import Cut, Exchange
from d1c.target.program import Program


@dataclass(frozen=True, slots=True)
class Movement:
    """A movement as it is written: a tensor of `shape`, owned as `source`, becomes the windows of `need`, or the part
    `cut` of them."""

    source: Layout
    shape: tuple[int, ...]
    need: Need
    cut: Cut | None = None

    def exchange(self, mesh: Mesh) -> Exchange:
        """The pieces; LayoutError where source and need do not cover the same dims."""
        whole = exchange(self.source, self.shape, self.need, mesh)
        return whole if self.cut is None else whole.part(self.cut)


@dataclass(frozen=True, slots=True)
class TileProgram:
    """`movements[i]` is what `program.exchanges[i]` was made of. `waits`: so many epochs begin only when the memory of
    all before them has been given back, because there is too little of it."""

    program: Program
    movements: tuple[Movement, ...] = ()
    waits: int = 0

    def __post_init__(self) -> None:
        if len(self.movements) != len(self.program.exchanges):
            raise ValueError(f"{len(self.program.exchanges)} exchanges but {len(self.movements)} movements")
