"""graph.loop and dist.loop: a function of the module, run again and again on values that it carries along.

    %n, %h = graph.loop(%n0, %h0, %x) {body = "step", trips = 5, carried = 2} : (tensor<1xi64>, tensor<4x8xf32>)

    func @step(%n: tensor<1xi64>, %h: tensor<4x8xf32>, %x: tensor<5x4x8xf32>) { ... graph.return(%n1, %h1) }

The first `carried` operands are initial values, the others are captured: the body gets them unchanged in every round.
The body is closed: it reads its arguments and constants of its own. An iteration number is a carried value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d1c.ir.core import Function, Module, Op
from d1c.ir.types import TensorType, Type
from d1c.ops.opdef import OpDef, register


@dataclass(frozen=True, slots=True)
class LoopAttrs:
    """`body`: the function's name. `trips`: rounds, or with `condition` the most rounds: it then goes on only while
    carried value 0 (bool, shape [1]) is true, looked at before every round. `carried`: how many values are carried."""

    body: str
    trips: int
    carried: int
    condition: bool = False


def _infer(types: tuple[Type, ...], attrs: LoopAttrs) -> tuple[Type, ...]:
    if not 0 < attrs.carried <= len(types):
        raise ValueError(f"carries {attrs.carried} of {len(types)} values")
    if attrs.trips < 0:
        raise ValueError(f"has {attrs.trips} trips")
    if any(not isinstance(t, TensorType) or not t.shape for t in types):
        raise ValueError("takes tensors of rank 1 or more")
    if attrs.condition:
        first = types[0]
        assert isinstance(first, TensorType)
        if (first.shape, first.dtype.name) != ((1,), "bool"):
            raise ValueError("its condition, carried value 0, is a bool of shape [1]")
    return types[: attrs.carried]


def _infer_op(op: Op) -> tuple[Type, ...]:
    return _infer(tuple(v.type for v in op.operands), op.attrs)


def check_body(op: Op, module: Module) -> None:
    """ValueError unless the body takes what the loop gives and returns what it carries."""
    try:
        body = module.function(op.attrs.body)
    except KeyError:
        raise ValueError(f"there is no function @{op.attrs.body}") from None
    if [v.type for v in op.operands] != [v.type for v in body.block.args]:
        raise ValueError(f"the body @{body.name} takes other types than the loop's {len(op.operands)} operands")
    if [v.type for v in body.block.ops[-1].operands] != [v.type for v in op.operands[: op.attrs.carried]]:
        raise ValueError(f"the body @{body.name} does not return the {op.attrs.carried} carried values in their types")
    carried = body.block.args[: op.attrs.carried]
    mixed = any(v in carried and v is not x for v, x in zip(body.block.ops[-1].operands, carried, strict=True))
    if module.level == "dist" and mixed:
        raise ValueError(f"the body @{body.name} returns one carried value in the place of another without a copy")


def loops(function: Function) -> list[Op]:
    """The loops of a function, those of their bodies not included."""
    return [op for op in function.block.ops if isinstance(op.attrs, LoopAttrs)]


def evaluate(op: Op, module: Module, values: Sequence[Any], run: Any, truth: Any) -> list[Any]:
    """What the loop leaves of `values`, of any kind. `run`: (function, arguments) -> its results; `truth`: whether a
    condition holds."""
    a: LoopAttrs = op.attrs
    carried, captured = list(values[: a.carried]), list(values[a.carried :])
    body = module.function(a.body)
    for _ in range(a.trips):
        if a.condition and not truth(carried[0]):
            break
        carried = list(run(body, [*carried, *captured]))
    return carried


for _level, _doc in (
    ("graph", "Runs a function `trips` times, or while carried value 0 is true."),
    ("dist", "As graph.loop; values keep their layouts."),
):
    register(OpDef(
        f"{_level}.loop", "loop", _infer, LoopAttrs, doc=_doc,
        facts={"infer_op": _infer_op, "check_in": check_body, "callee": lambda op: op.attrs.body},
    ))  # fmt: skip
