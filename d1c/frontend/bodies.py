"""The end of an import with loops: a module of `main` and the bodies that it needs, without what nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from d1c.ir.core import Block, Function, Module, Op, Value

LOOP = "graph.loop"


def with_bodies(module: Module, bodies: Mapping[str, Function], constants: Mapping[str, np.ndarray]) -> Module:
    """`module`, whose only function is `main`, with the bodies of its loops. Carried and captured values on which no
    result depends are dropped. `constants`: the data that constants of bodies name; they are renamed where `main`
    calls others so."""
    shrink = _Shrink(bodies)
    (main,) = module.functions
    functions = [replace(main, block=shrink.block(main.block)), *reversed(shrink.done)]
    used = {op.attrs.name for op in functions[0].block.ops if op.name == "graph.const"}
    known = {name: data for name, data in module.constants.items() if name in used}
    for i, f in enumerate(functions[1:], 1):
        ops = []
        for op in f.block.ops:
            if op.name == "graph.const":
                data, name, k = constants[op.attrs.name], op.attrs.name, 1
                while name in known and known[name] is not data:
                    name, k = f"{op.attrs.name}_{k}", k + 1
                known[name] = data
                op = replace(op, attrs=replace(op.attrs, name=name))
            ops.append(op)
        functions[i] = replace(f, block=Block(f.block.args, tuple(ops)))
    return replace(module, functions=tuple(functions), constants=known)


class _Shrink:
    """`done`: the bodies of the blocks seen so far, inner ones first."""

    def __init__(self, bodies: Mapping[str, Function]) -> None:
        self.bodies = bodies
        self.done: list[Function] = []

    def block(self, block: Block) -> Block:
        """The block without ops whose results nobody reads, its loops without values that nobody reads."""
        live = set(block.ops[-1].operands)
        kept = [block.ops[-1]]
        for op in reversed(block.ops[:-1]):
            if live.isdisjoint(op.results):
                continue
            if op.name == LOOP:
                op = self.loop(op, live)
            live.update(op.operands)
            kept.append(op)
        return Block(block.args, tuple(reversed(kept)))

    def loop(self, op: Op, live: set[Value]) -> Op:
        """The loop with only those carried values on which a result in `live`, or the condition, depends."""
        a, body = op.attrs, self.bodies[op.attrs.body]
        args, new = body.block.args, body.block.ops[-1].operands
        keep = {i for i in range(a.carried) if op.results[i] in live or (a.condition and i == 0)}
        while True:
            needed = {new[i] for i in keep}
            for inner in reversed(body.block.ops[:-1]):
                if not needed.isdisjoint(inner.results):
                    needed.update(inner.operands)
            more = {i for i in range(a.carried) if args[i] in needed} | keep
            if more == keep:
                break
            keep = more
        carried = sorted(keep)
        chosen = [*carried, *(i for i in range(a.carried, len(args)) if args[i] in needed)]
        end = replace(body.block.ops[-1], operands=tuple(new[i] for i in carried))
        block = Block(tuple(args[i] for i in chosen), (*body.block.ops[:-1], end))
        self.done.append(replace(body, block=self.block(block)))
        return replace(
            op, operands=tuple(op.operands[i] for i in chosen), attrs=replace(a, carried=len(carried)),
            results=tuple(op.results[i] for i in carried),
        )  # fmt: skip
