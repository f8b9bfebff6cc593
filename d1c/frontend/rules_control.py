"""Control flow: If, Loop and Scan, as loops whose bodies are functions of the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from d1c.frontend.consteval import normal_axis
from d1c.frontend.context import ImportContext, Item, ValueList, tensor
from d1c.frontend.loops import FOREVER, UNROLLED, Round, either, loop, row
from d1c.ir.core import Value
from d1c.ops.opdef import OnnxRule


def if_(cx: ImportContext, node: onnx.NodeProto) -> list[Item]:
    """The results of one branch; the condition is looked at on the cores, unless the branches' shapes differ."""
    condition = _one(cx, cx.inputs(node)[0], "If: the condition")
    graphs = [cx.attr(node, name) for name in ("then_branch", "else_branch")]
    if not cx.is_const(condition):
        lengths: list[list[int]] = []

        def branch(graph: onnx.GraphProto) -> list[Value]:
            values, found = _flattened(cx.subgraph(graph, ()))
            lengths.append(found)
            return values

        values = either(cx, condition, lambda: branch(graphs[0]), lambda: branch(graphs[1]))
        if values is not None and lengths[0] == lengths[1]:
            return _grouped(values, lengths[0])
    known = cx.known(condition, f"If: the condition ({node.input[0]!r}) between results of different shapes")
    return cx.subgraph(graphs[0 if known.item() else 1], ())


def _flattened(items: Sequence[Item]) -> tuple[list[Value], list[int]]:
    """The tensors of all items, and how many each has: -1 for a tensor that is no sequence, -2 for no value."""
    values, lengths = list[Value](), list[int]()
    for item in items:
        if isinstance(item, Value):
            values.append(item)
            lengths.append(-1)
        elif isinstance(item, ValueList):
            values += item.items
            lengths.append(len(item.items))
        else:
            lengths.append(-2)
    return values, lengths


def _grouped(values: Sequence[Value], lengths: Sequence[int]) -> list[Any]:
    """The opposite of `_flattened`."""
    rest, out = list(values), list[Any]()
    for n in lengths:
        count = 1 if n == -1 else max(n, 0)
        head, rest = rest[:count], rest[count:]
        out.append(head[0] if n == -1 else ValueList(tuple(head)) if n >= 0 else None)
    return out


def _one(cx: ImportContext, value: Any, what: str) -> Value:
    if not isinstance(value, Value) or tensor(value).size != 1:
        raise cx.refuse(f"{what} is not a tensor of one element")
    return value


def loop_(cx: ImportContext, node: onnx.NodeProto) -> list[Item]:
    """Rounds of the body until the trip count is reached or the condition is false, which the cores look at.

    A trip count of the run is part of the condition. Outputs that stack values of the rounds have as many rows as the
    trip count, which must be known then; where a condition ends the loop, so many are real as there were rounds.
    """
    body: onnx.GraphProto = cx.attr(node, "body")
    limit, go = cx.input(node, 0), cx.input(node, 1)
    state = cx.inputs(node)[2:]
    count = len(state)
    if not all(isinstance(v, Value) for v in state):
        return _over_sequences(cx, node, body, limit, go, state)
    go = None if go is None else cx.reshape(_one(cx, go, "Loop: the condition"), ())
    trips, most = FOREVER, None
    if limit is not None:
        limit = _one(cx, limit, "Loop: the trip count")
        if cx.is_const(limit) or any(cx.wants(node, i) for i in range(count, len(node.output))):
            trips = max(int(cx.known(limit, f"Loop: the trip count ({node.input[0]!r})").item()), 0)
        else:
            most = cx.reshape(cx.cast(limit, "i64"), (1,))
            go = _both(cx, go, cx.emit("graph.less", [cx.const(np.zeros(1, np.int64)), most]))
    wanted = [i for i in range(count, len(body.output) - 1) if cx.wants(node, i)]

    def step(number: Value, carried: list[Value]) -> Round:
        true = cx.const(np.array(True))
        again, *made = cx.subgraph(body, [cx.reshape(number, ()), true, *carried])
        stop: Value | None = cx.reshape(_one(cx, again, "Loop: the condition"), ())
        stop = None if cx.is_const(stop) and cx.array(_one(cx, stop, "")).item() else stop
        if most is not None:
            following = cx.emit("graph.add", [number, cx.const(np.ones(1, np.int64))])
            stop = _both(cx, stop, cx.emit("graph.less", [following, most]))
        return Round([_tensor(cx, v) for v in made[:count]], [_tensor(cx, made[i]) for i in wanted], stop)

    result = loop(cx, trips, state, step, go)
    return _placed(result.carried, result.stacked, wanted, len(node.output))


def _placed(carried: Sequence[Value], stacked: Sequence[Value], wanted: Sequence[int], count: int) -> list[Any]:
    """Results by output number."""
    out: list[Any] = [None] * max(count, len(carried))
    out[: len(carried)] = carried
    for i, v in zip(wanted, stacked, strict=True):
        out[i] = v
    return out


def _both(cx: ImportContext, a: Value | None, b: Value) -> Value:
    """a and b, of one element each."""
    b = cx.reshape(b, ())
    return b if a is None else cx.reshape(cx.emit("graph.and", [cx.reshape(a, ()), b]), ())


def _tensor(cx: ImportContext, item: Any) -> Value:
    if not isinstance(item, Value):
        raise cx.refuse("a sequence among the values of a loop that carries tensors")
    return item


def _over_sequences(
    cx: ImportContext, node: onnx.NodeProto, body: onnx.GraphProto, limit: Any, go: Any, state: Sequence[Item]
) -> list[Item]:
    """A loop that carries sequences exists at compile time only: it is unrolled."""
    trips = UNROLLED + 1 if limit is None else int(cx.known(limit, f"Loop: the trip count ({node.input[0]!r})").item())
    more = go is None or bool(cx.known(go, f"Loop: the condition ({node.input[1]!r})").item())
    rows: list[list[Value]] = []
    i = 0
    while more and i < trips:
        if i == UNROLLED:
            raise cx.refuse(
                f"a Loop of more than {UNROLLED} rounds carries a sequence",
                rule=f"sequences exist at compile time only: their loops are unrolled, {UNROLLED} rounds at most",
            )
        number, true = cx.const(np.array(i, np.int64)), cx.const(np.array(True))
        again, *made = cx.subgraph(body, [number, true, *state])
        state = made[: len(state)]
        rows.append([_tensor(cx, v) for v in made[len(state) :]])
        i += 1
        more = i == trips or bool(cx.known(_one(cx, again, "Loop: the condition"), "Loop: its condition").item())
    out: list[Item] = list(state)
    for k in range(len(state), len(node.output)):
        if not rows:
            raise cx.refuse("a Loop without a round stacks values of unknown shape")
        column = [r[k - len(state)] for r in rows]
        out.append(cx.concat([cx.reshape(v, (1, *tensor(v).shape)) for v in column], 0))
    return out


def scan(cx: ImportContext, node: onnx.NodeProto) -> list[Item]:
    """A round for every row of the scanned inputs; axes and directions are the node's."""
    body: onnx.GraphProto = cx.attr(node, "body")
    scanned = cx.attr(node, "num_scan_inputs")
    operands = [_tensor(cx, v) for v in cx.inputs(node)]
    return _scan(
        cx, node, body, operands[: len(operands) - scanned], operands[len(operands) - scanned :],
        cx.attr(node, "scan_input_axes"), cx.attr(node, "scan_input_directions"),
        cx.attr(node, "scan_output_axes"), cx.attr(node, "scan_output_directions"),
    )  # fmt: skip


def _scan(
    cx: ImportContext, node: onnx.NodeProto, body: onnx.GraphProto, state: Sequence[Value], inputs: Sequence[Value],
    axes: Any = None, directions: Any = None, out_axes: Any = None, out_directions: Any = None,
) -> list[Any]:  # fmt: skip
    fronts, count = [], len(state)
    for x, axis in zip(inputs, axes or (0,) * len(inputs), strict=True):
        rank = len(tensor(x).shape)
        axis = normal_axis(axis, rank, cx.origin)
        if cx.counts(x):
            raise cx.refuse("Scan of a tensor whose extent is known at run time only")
        fronts.append(cx.transpose(x, (axis, *(d for d in range(rank) if d != axis))))
    lengths = {tensor(x).shape[0] for x in fronts}
    if len(lengths) != 1:
        raise cx.refuse(f"Scan over axes of different lengths {sorted(lengths)}")
    (trips,) = lengths
    back = directions or (0,) * len(inputs)
    outputs = len(body.output) - count
    wanted = [i for i in range(count, len(body.output)) if cx.wants(node, i)]
    turned = out_directions or (0,) * outputs

    def step(number: Value, carried: list[Value]) -> Round:
        reverse = cx.emit("graph.sub", [cx.const(np.array([trips - 1])), number]) if any(back) else number
        rows = [row(cx, x, reverse if b else number) for x, b in zip(fronts, back, strict=True)]
        made = [_tensor(cx, v) for v in cx.subgraph(body, [*carried, *rows])]
        return Round(made[:count], [made[i] for i in wanted])

    result = loop(cx, trips, state, step, None, [k for k, i in enumerate(wanted) if turned[i - count]])
    stacked = []
    for i, v in zip(wanted, result.stacked, strict=True):
        rank = len(tensor(v).shape)
        axis = normal_axis((out_axes or (0,) * outputs)[i - count], rank, cx.origin)
        stacked.append(cx.transpose(v, (*range(1, axis + 1), 0, *range(axis + 1, rank))))
    return _placed(result.carried, stacked, wanted, len(node.output))


def scan_batches(cx: ImportContext, node: onnx.NodeProto) -> list[Item]:
    """Scan of opset 8: every sample of the batch (dim 0) by itself, along dim 1, up to its own length."""
    body: onnx.GraphProto = cx.attr(node, "body")
    lengths, *rest = cx.inputs(node)
    operands = [_tensor(cx, v) for v in rest]
    scanned = cx.attr(node, "num_scan_inputs")
    state, inputs = operands[: len(operands) - scanned], operands[len(operands) - scanned :]
    batch, most = tensor(inputs[0]).shape[:2]
    known = cx.static(node, 0, "sequence_lens") if lengths is not None else None
    rows: list[list[Any]] = []
    for b in range(batch):
        n = most if known is None else int(known.reshape(-1)[b])
        initial, sequences = ([_sample(cx, v, b) for v in vs] for vs in (state, inputs))
        made = _scan(
            cx, node, body, initial, [cx.part(x, 0, 0, n) for x in sequences], None, cx.attr(node, "directions")
        )
        rows.append([_padded(cx, v, most - n) if i >= len(state) else v for i, v in enumerate(made)])
    out: list[Any] = []
    for column in zip(*rows, strict=True):
        some = [cx.reshape(v, (1, *tensor(v).shape)) for v in column if v is not None]
        out.append(cx.concat(some, 0) if some else None)
    return out


def _sample(cx: ImportContext, value: Value, number: int) -> Value:
    return cx.reshape(cx.part(value, 0, number, 1), tensor(value).shape[1:])


def _padded(cx: ImportContext, value: Value | None, more: int) -> Value | None:
    """`more` rows of zeros behind it."""
    if value is None or not more:
        return value
    zeros = cx.const(np.zeros((more, *tensor(value).shape[1:]), tensor(value).dtype.numpy))
    return cx.concat([value, zeros], 0)


# The condition of an If whose branches give other shapes or sequences; trip count and condition of a Loop that carries
# or collects such. The rules ask for them with `known`.
RULES = (
    OnnxRule("If", if_, sometimes=(0,)), OnnxRule("Loop", loop_, sometimes=(0, 1)),
    OnnxRule("Scan", scan_batches, since=8, static=(0,)), OnnxRule("Scan", scan, since=9),
)  # fmt: skip
