"""The assembler: .d1 text of a tile and a kern module becomes a program.

examples/handwritten has a program and the commands to run it. The text holds one `d1c.module tile` and at most one
`d1c.module kern`; small constants stand in the tile module's `constants { }`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from d1c.emit.check import check
from d1c.emit.modules import from_modules
from d1c.errors import UsageError, VerifyError
from d1c.ir.core import Block, Op
from d1c.ir.text import parse_modules
from d1c.ir.verify import verify
from d1c.target.machine import Machine
from d1c.target.program import Program


def assemble(
    text: str,
    filename: str = "<text>",
    machine: Machine | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> Program:
    """The program that `text` says; commands without loc(...) have the origin `filename:line`.

    machine  instead of the one that the text names (`d1c.module tile {machine = "test"}`); the mesh must be the same.
    weights  data of constants that the text names by digest only.
    Raises ParseError (line, column, caret), VerifyError (type errors and broken rules, with the line), DoesNotFit (a
    buffer outside SRAM, or on another's bytes) and UsageError (a constant without data).
    """
    try:
        return _assemble(text, filename, machine, weights)
    except VerifyError as error:
        error.where = error.where or filename
        error.remedy = error.remedy or "change that line so that the rule holds"
        raise


def _named(block: Block) -> Iterator[Op]:
    """The ops that name a constant."""
    for op in block.ops:
        if op.name in ("tile.place", "tile.fetch"):
            yield op
        for inner in op.regions:
            yield from _named(inner)


def _assemble(text: str, filename: str, machine: Machine | None, weights: Mapping[str, np.ndarray] | None) -> Program:
    modules = parse_modules(text, filename, weights, origins=True)
    for module in modules:
        verify(module)
    levels = [m.level for m in modules]
    if levels not in (["tile"], ["tile", "kern"], ["kern", "tile"]):
        raise VerifyError(
            f"the text has modules of level {', '.join(levels)}", where=filename,
            rule="a program is one tile module and at most one kern module",
        )  # fmt: skip
    by_level = dict(zip(levels, modules, strict=True))
    tile = by_level["tile"]
    program = from_modules(tile, by_level.get("kern"), weights, machine).program
    buffers = iter(program.buffers)
    lines: dict[str, str] = {}
    for op in tile.function().block.ops:
        kind = op.name.removeprefix("tile.")
        if kind in ("buffer", "role", "input", "output"):
            name = next(buffers).name if kind == "buffer" else op.attrs.name
            lines[f"{kind} {name!r}"] = op.origin
    for op in _named(tile.function().block):
        if op.attrs.array not in program.weights:
            raise UsageError(
                f"the data of constant {op.attrs.array!r} is not in the text", where=op.origin,
                rule="large constants are printed as a digest",
                remedy="give the data: --weights FILE.npz, or --weights PROGRAM.d1x",
            )  # fmt: skip
    check(program, lines)
    return program
