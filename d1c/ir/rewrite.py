"""Rebuilding functions: what most passes are made of. Everything returns new IR, nothing is changed in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from d1c.ir.core import Block, Function, Op, Value

Replacement = Op | Sequence[Op | Value] | None
"""What a rewrite says of an op, given its operands in the new function:

None          keep it (with the new operands).
an Op         it stands instead; its results replace the old ones, one for one.
a sequence    ops are appended in order; if it ends in values, these replace the old results (they may be operands or
              results of the ops before), otherwise the results of its last op do. An empty one drops an op that has no
              results.
"""

Rewrite = Callable[[Op, tuple[Value, ...]], Replacement]


def rebuild(function: Function, fn: Rewrite, regions: bool = False) -> Function:
    """The function with every op of its block rewritten by `fn`, in order; with `regions`, in regions too, inner first.

    ValueError when a replacement has another number of results than the op.
    """
    return replace(function, block=rebuild_block(function.block, fn, {}, regions))


def rebuild_block(block: Block, fn: Rewrite, values: dict[Value, Value], regions: bool = False) -> Block:
    """As `rebuild`, for a block; `values` maps old values of the enclosing scope to new ones and is extended."""
    ops: list[Op] = []
    for op in block.ops:
        operands = tuple([values.get(v, v) for v in op.operands])
        kept = op
        if op.regions:
            inner = fn if regions else _keep
            kept = replace(op, regions=tuple([rebuild_block(r, inner, values, regions) for r in op.regions]))
        made = fn(kept, operands)
        if made is None:
            made = kept if operands == kept.operands else replace(kept, operands=operands)
        sequence: Sequence[Op | Value] = (made,) if isinstance(made, Op) else made
        new = [item for item in sequence if isinstance(item, Op)]
        results = tuple([item for item in sequence if isinstance(item, Value)])
        if not results and new:
            results = new[-1].results
        if len(results) != len(op.results):
            raise ValueError(f"{op.name} has {len(op.results)} results, its replacement {len(results)}")
        ops += new
        values.update((old, now) for old, now in zip(op.results, results, strict=True) if old is not now)
    return Block(block.args, tuple(ops))


def _keep(op: Op, operands: tuple[Value, ...]) -> Replacement:
    return None


def uses(block: Block) -> dict[Value, list[Op]]:
    """The ops that read each value, in order, regions included; a value read twice by an op lists it twice."""
    readers: dict[Value, list[Op]] = {}
    for op in block.walk():
        for value in op.operands:
            readers.setdefault(value, []).append(op)
    return readers


def dead_code(function: Function) -> Function:
    """The function without the ops that have results, none of them read. Ops without results are effects and stay."""
    return replace(function, block=_live(function.block, set()))


def _live(block: Block, needed: set[Value]) -> Block:
    kept: list[Op] = []
    for op in reversed(block.ops):
        if op.results and not any(r in needed for r in op.results):
            continue
        if op.regions:
            op = replace(op, regions=tuple([_live(r, needed) for r in op.regions]))
        needed.update(op.operands)
        kept.append(op)
    return Block(block.args, tuple(reversed(kept)))
