"""Loops for rules: a Python function emits one round, and what it reads of the values outside becomes captured.

`loop` runs a round again and again on values that it carries along, and stacks values of all rounds; `either` runs one
of two functions. Constants that a body reads are its own. Values of rank 0 travel as [1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from d1c.errors import NotStatic, TypeMismatch
from d1c.frontend.context import ImportContext, tensor
from d1c.ir.core import Block, Op, Value
from d1c.ir.types import TensorType
from d1c.ops.graph.loop import LoopAttrs
from d1c.ops.opdef import opdef
from d1c.target.dtypes import BOOL

FOREVER = (1 << 62) - 1
"""The trips of a loop that only its condition ends."""
UNROLLED = 64
"""The most rounds of a loop that is unrolled, because what a round computes depends on its number or changes shape."""
SELECTED = 16
"""The most ops of two branches that are both computed, to select between them."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round makes: the carried values, values to stack, and whether there is another one (None: there is)."""

    carried: Sequence[Value]
    stacked: Sequence[Value] = ()
    go: Value | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The carried values after the last round, [trips, ...] stacks, and where a condition may have ended the loop the
    number of rounds, i64 [1]."""

    carried: list[Value]
    stacked: list[Value]
    rounds: Value | None = None


Step = Callable[[Value, list[Value]], Round]
"""(number of the round, i64 [1]; carried values) -> what the round makes."""


class _Changes(Exception):
    """A carried value that does not keep its type."""


def loop(
    cx: ImportContext, trips: int, initial: Sequence[Value], step: Step, go: Value | None = None,
    backwards: Collection[int] = (),
) -> Result:  # fmt: skip
    """Run `step` `trips` times, or while `go` (bool of one element; None: true) and then what the rounds say is true.

    backwards   the stacks whose first row the last round makes.
    One round is emitted in place; so are up to UNROLLED ones where no body can be made of them. UnsupportedOp where
    that is not possible, NotStatic where something in a round must be known.
    """
    if go is not None and cx.is_const(go):
        trips, go = trips if cx.array(go).item() else 0, None
    if trips == 0:
        return _never(cx, initial, step)
    if trips == 1 and go is None:
        return _unrolled(cx, 1, initial, step, backwards)
    try:
        return _rolled(cx, trips, initial, step, go, backwards)
    except (_Changes, NotStatic, TypeMismatch) as error:
        if trips <= UNROLLED:
            if go is not None:
                cx.known(go, f"the condition of a loop that must be unrolled ({error.args[0]})")
            try:
                return _unrolled(cx, trips, initial, step, backwards)
            except _Changes:
                pass
        if isinstance(error, _Changes):
            raise cx.refuse(
                f"a loop of {'many' if trips == FOREVER else trips} rounds {error.args[0]}",
                rule=f"carried values keep shape and type, except in loops of at most {UNROLLED} rounds that no data "
                "ends: these are unrolled",
            ) from error
        raise


def either(
    cx: ImportContext, go: Value, then: Callable[[], list[Value]], other: Callable[[], list[Value]]
) -> list[Value] | None:  # fmt: skip
    """The values of `then` where `go` (bool of one element) is true, else those of `other`; None where their types
    differ. Each is a loop of at most one round, unless both are so small that a selection is cheaper."""
    go = cx.reshape(go, (1,))
    with cx.apart({}) as first:
        yes = then()
    with cx.apart({}) as second:
        no = other()
    if [v.type for v in yes] != [v.type for v in no]:
        return None
    if any(cx.counts(v) for v in (*yes, *no)):
        raise cx.refuse("a branch whose result has an extent that is known at run time only")
    kinds = [opdef(op.name).kind for op in (*first, *second)]
    work = [k for k in kinds if k not in ("constant", "view")]
    if all(k == "elementwise" for k in work) and len(work) <= SELECTED:
        cx.include(first)
        cx.include(second)
        return [_select(cx, go, a, b) for a, b in zip(yes, no, strict=True)]
    empty = [cx.const(np.zeros(tensor(v).shape, tensor(v).dtype.numpy)) for v in yes]
    some = [i for i, v in enumerate(yes) if tensor(v).size]
    values = [_flat(cx, empty[i]) for i in some]
    for flag, ops, results in ((go, first, yes), (cx.emit("graph.not", [go]), second, no)):
        args = [Value(v.type) for v in (flag, *values)]
        with cx.apart({}) as tail:
            new = [cx.const(np.zeros(1, np.bool_)), *(_flat(cx, results[i]) for i in some)]
        _, *values = _close(cx, args, [flag, *values], [*ops, *tail], new, 1, True)
    for i, v in zip(some, values, strict=True):
        empty[i] = cx.reshape(v, tensor(yes[i]).shape)
    return empty


def row(cx: ImportContext, table: Value, number: Value) -> Value:
    """table[number] for a number of the run, i64 [1]."""
    found: Value = cx.emit("graph.lookup", [number, table])
    return cx.reshape(found, tensor(table).shape[1:])


def _select(cx: ImportContext, go: Value, a: Value, b: Value) -> Value:
    if a is b:
        return a
    value: Value = cx.emit("graph.where", [cx.reshape(go, ()), a, b])
    return value


def _flat(cx: ImportContext, value: Value) -> Value:
    return cx.reshape(value, tensor(value).shape or (1,))


def _never(cx: ImportContext, initial: Sequence[Value], step: Step) -> Result:
    with cx.apart({}):
        made = step(cx.const(np.zeros(1, np.int64)), list(initial))
        types = [tensor(v) for v in made.stacked]
    return Result(list(initial), [cx.const(np.zeros((0, *t.shape), t.dtype.numpy)) for t in types])


def _unrolled(
    cx: ImportContext, trips: int, initial: Sequence[Value], step: Step, backwards: Collection[int]
) -> Result:  # fmt: skip
    values, rows = list(initial), list[Sequence[Value]]()
    for i in range(trips):
        made = step(cx.const(np.array([i], np.int64)), values)
        values = list(made.carried)
        rows.append(made.stacked)
        if made.go is None:
            continue
        if not cx.is_const(made.go) and i + 1 < trips:
            raise _Changes("may end early")
        if cx.is_const(made.go) and not cx.array(made.go).item():
            break
    stacks = []
    for k, column in enumerate(zip(*rows, strict=True)):
        if len({tensor(v).shape for v in column}) > 1:
            raise _Changes("stacks tensors of different shapes")
        column = column[::-1] if k in backwards else column
        stacks.append(cx.concat([cx.reshape(v, (1, *tensor(v).shape)) for v in column], 0))
    return Result(values, stacks)


def _rolled(
    cx: ImportContext, trips: int, initial: Sequence[Value], step: Step, go: Value | None, backwards: Collection[int]
) -> Result:  # fmt: skip
    for v in initial:
        if cx.counts(v):
            raise cx.refuse("a loop that carries a tensor whose extent is known at run time only")
        if not tensor(v).size:
            raise _Changes("carries a tensor without elements")
    outer = [cx.const(np.zeros(1, np.int64)), *(_flat(cx, v) for v in initial)]
    flag = cx.const(np.ones(1, np.bool_)) if go is None else cx.reshape(go, (1,))
    args = [Value(v.type) for v in outer]
    with cx.apart(dict(zip(args, outer, strict=True))) as ops:
        number = args[0]
        made = step(number, [cx.reshape(a, tensor(v).shape) for a, v in zip(args[1:], initial, strict=True)])
        for v, old in zip(made.carried, initial, strict=True):
            if v.type != old.type:
                raise _Changes(f"carries {_text(old)}, then {_text(v)}")
            if cx.counts(v):
                raise cx.refuse("a loop that carries a tensor whose extent is known at run time only")
        new = [cx.emit("graph.add", [number, cx.const(np.ones(1, np.int64))]), *(_flat(cx, v) for v in made.carried)]
        rows = list(made.stacked)
        if rows and trips == FOREVER:
            raise cx.refuse(
                "a loop without a trip count that is known stacks values of its rounds",
                rule="what decides shapes is constant at compile time", remedy="give the loop a constant trip count",
            )  # fmt: skip
        starts = []
        for k, v in enumerate(rows):
            if cx.counts(v) or not tensor(v).size:
                raise _Changes("stacks tensors without a fixed extent")
            shape = (trips, *tensor(v).shape)
            at = cx.emit("graph.sub", [cx.const(np.array([trips - 1])), number]) if k in backwards else number
            arg = Value(TensorType(shape, tensor(v).dtype))
            args.append(arg)
            new.append(cx.emit("graph.scatter", [arg, at, cx.reshape(v, (1, *shape[1:]))]))
            starts.append(np.zeros(shape, tensor(v).dtype.numpy))
        stop = made.go
        if stop is not None and cx.is_const(stop) and cx.array(stop).item():
            stop = None
        conditional = go is not None or stop is not None
        if conditional:
            args.insert(0, Value(TensorType((1,), BOOL)))
            new.insert(0, cx.const(np.ones(1, np.bool_)) if stop is None else cx.reshape(stop, (1,)))
    outer += [cx.const(a) for a in starts]
    results = _close(cx, args, [flag, *outer] if conditional else outer, ops, new, trips, conditional)
    results = results[1:] if conditional else results
    count, results = results[0], results[1:]
    carried = [cx.reshape(v, tensor(old).shape) for v, old in zip(results, initial, strict=False)]
    stacked = results[len(initial) :]
    if conditional:
        stacked = [cx.limit(v, 0, count) for v in stacked]
    return Result(carried, stacked, count if conditional else None)


def _text(value: Value) -> str:
    return f"{tensor(value).dtype}{list(tensor(value).shape)}"


def _close(
    cx: ImportContext, args: Sequence[Value], initial: Sequence[Value], ops: Sequence[Op], new: Sequence[Value],
    trips: int, condition: bool,
) -> list[Value]:  # fmt: skip
    """The results of a loop over a body of `ops`, whose values from outside become its constants or are captured."""
    inside = {*args, *(r for op in ops for r in op.results)}
    renamed: dict[Value, Value] = {}
    head: list[Op] = []
    captured: list[Value] = []
    taken: list[Value] = []
    for v in dict.fromkeys(v for vs in (*(op.operands for op in ops), new) for v in vs):
        if v in inside:
            continue
        made = cx.producer(v)
        if cx.is_const(v) and made is not None:
            renamed[v] = Value(v.type, v.name)
            head.append(replace(made, results=(renamed[v],)))
            continue
        shape = tensor(v).shape
        outside = _flat(cx, v)
        arg = Value(outside.type, v.name)
        captured.append(outside)
        taken.append(arg)
        renamed[v] = arg
        if not shape:
            renamed[v] = Value(v.type, v.name)
            row = opdef("graph.reshape")
            head.append(Op("graph.reshape", (arg,), row.attrs(shape=shape), (renamed[v],), (), cx.origin))
    body = [replace(op, operands=tuple(renamed.get(v, v) for v in op.operands)) for op in ops]
    end = Op("graph.return", tuple(renamed.get(v, v) for v in new))
    name = cx.function(Block((*args, *taken), (*head, *body, end)))
    made_by = cx.emit("graph.loop", [*initial, *captured], LoopAttrs(name, trips, len(args), condition))
    return list(made_by) if isinstance(made_by, tuple) else [made_by]
