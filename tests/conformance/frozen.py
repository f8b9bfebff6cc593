"""Which inputs of a case may become constants: those that end in an operand that decides shapes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from d1c.errors import D1Error
from d1c.frontend.importer import collect_rules
from d1c.frontend.load import load_model, outer_names


def unjustified(model: onnx.ModelProto, frozen: Sequence[str]) -> tuple[str, ...]:
    """Of the frozen inputs those that reach no static operand of any node, by nodes that read nothing but frozen
    inputs and constants. Freezing them would have put work of the model on the host."""
    if not frozen:
        return ()
    try:
        loaded = load_model(model)
    except D1Error:
        return ()
    rules = collect_rules()
    # Tensor -> the frozen inputs that it is made of; only tensors that are made of nothing else.
    made: dict[str, frozenset[str]] = {name: frozenset() for name in loaded.initializers}
    made |= {name: frozenset([name]) for name in frozen}
    needed: set[str] = set()
    for node in loaded.nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        fitting = [r for r in rules.get((domain, node.op_type), ()) if r.since <= loaded.opsets.get(domain, 1)]
        if not fitting:  # a node that d1c expands into its function's body: the body's nodes decide
            needed.update(*(made.get(name, frozenset()) for name in node.input))
        else:
            places = (*fitting[-1].static, *fitting[-1].sometimes)
            static = (node.input[i] for i in places if i < len(node.input))
            needed.update(*(made.get(name, frozenset()) for name in static))
        reads = list(outer_names(node))
        if all(name in made for name in reads):
            together = frozenset().union(*(made[name] for name in reads))
            made |= {name: together for name in node.output if name}
        elif node.op_type in ("Shape", "Size"):
            made |= {name: frozenset() for name in node.output if name}
    return tuple(name for name in frozen if name not in needed)
