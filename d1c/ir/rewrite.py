"""Rewriting at any level. Everything returns new IR, nothing is changed in place."""

from __future__ import annotations

from dataclasses import replace

from d1c.ir.core import Block, Function, Op, Value


def dead_code(function: Function) -> Function:
    """The function without the ops that have results, none of them read. Ops without results are effects and stay;
    what does not change is shared."""
    return replace(function, block=_live(function.block, set()))


def _live(block: Block, needed: set[Value]) -> Block:
    kept: list[Op] = []
    for op in reversed(block.ops):
        if op.results and not any(r in needed for r in op.results):
            continue
        if op.regions:
            regions = tuple([_live(r, needed) for r in op.regions])
            if [r.ops for r in regions] != [r.ops for r in op.regions]:
                op = replace(op, regions=regions)
        needed.update(op.operands)
        kept.append(op)
    return Block(block.args, tuple(reversed(kept)))
