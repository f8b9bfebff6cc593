"""Random ops: the suite's expected values are one draw and cannot be met. Checked are type, shape and distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from d1c import api, backend
from tests.conformance.cases import Case

DRAWS = 16_384
SIGMAS = 5.0


def check(
    case: Case,
    model: onnx.ModelProto,
    rep: backend.D1Rep,
    inputs: Sequence[Any],
    got: Sequence[Any],
    expected: Sequence[Any],
) -> str | None:
    """What is wrong with a case that draws numbers, or nothing; None where the case draws none."""
    if case.category == "random":
        return _bernoulli(model, rep, inputs, got, expected)
    node = model.graph.node[0]
    given = dict(zip(rep.inputs, inputs, strict=True))
    if node.op_type != "Dropout" or len(node.input) < 3 or not given.get(node.input[2]):
        return None
    ratio = float(given.get(node.input[1], 0.5))
    return _dropout(model, rep, given, ratio, got, expected) if ratio > 0 else None


def _bernoulli(
    model: onnx.ModelProto, rep: backend.D1Rep, inputs: Sequence[Any], got: Sequence[Any], expected: Sequence[Any]
) -> str:
    """What is wrong with a case whose output is Bernoulli in the probabilities of its only input, or nothing.

    Besides the case itself, the same model runs with an input of DRAWS elements: the relative frequency in each tenth
    of the probabilities lies within five standard deviations, and a second run of the program gives the same bits.
    ONNX's body of Bernoulli, which the expanded cases spell out, compares a uniform number with the probability by
    Greater: there it is the probability of a 0.
    """
    for name, g, e in zip(rep.outputs, got, expected, strict=True):
        if g.dtype != e.dtype or g.shape != e.shape:
            return f"{name}: {g.dtype}{list(g.shape)} instead of {e.dtype}{list(e.shape)}"
        if not np.isin(g, [0, 1]).all():
            return f"{name}: values other than 0 and 1"
    p = np.random.default_rng(0).random(DRAWS).astype(inputs[0].dtype)
    if inputs[0].ndim != 1:
        p = p.reshape(-1, *(1,) * (inputs[0].ndim - 1))
    program = api.compile(
        _open(model), target=rep.target, precision="f32", shapes={rep.inputs[0]: p.shape}
    )  # fmt: skip
    first, again = (program.run({rep.inputs[0]: p}, engine="jit")[rep.outputs[0]] for _ in range(2))
    if not np.array_equal(first, again):
        return "two runs of one program differ"
    if not np.isin(first, [0, 1]).all():
        return "values other than 0 and 1"
    greater = any(node.op_type == "Greater" for node in model.graph.node)
    tenth = np.minimum((p * 10).astype(int), 9).reshape(-1)
    for i in range(10):
        chance = p.reshape(-1)[tenth == i].astype(np.float64)
        chance = 1 - chance if greater else chance
        deviation = first.reshape(-1)[tenth == i].astype(np.float64).sum() - chance.sum()
        if abs(deviation) > SIGMAS * np.sqrt((chance * (1 - chance)).sum()):
            return f"probabilities from {i / 10} on: {deviation / len(chance):+.3f} from the frequency expected"
    return ""


def _dropout(
    model: onnx.ModelProto,
    rep: backend.D1Rep,
    given: Mapping[str, Any],
    ratio: float,
    got: Sequence[Any],
    expected: Sequence[Any],
) -> str:
    """Every element is 0 or that of the operand over 1 - ratio, the mask says which, and so many of DRAWS elements are
    0 as the ratio says."""
    for name, g, e in zip(rep.outputs, got, expected, strict=True):
        if g.dtype != e.dtype or g.shape != e.shape:
            return f"{name}: {g.dtype}{list(g.shape)} instead of {e.dtype}{list(e.shape)}"
    node = model.graph.node[0]
    x = given[node.input[0]]
    kept = got[0] != 0
    if not np.allclose(got[0][kept], x[kept] / (1 - ratio), rtol=1e-5):
        return "what is kept is not the operand over 1 - ratio"
    if len(got) > 1 and not np.array_equal(got[1], kept):
        return "the mask differs from what is kept"
    ones = np.ones((DRAWS, *(1,) * (x.ndim - 1)), x.dtype)
    frozen = {name: value for name, value in given.items() if name in rep.frozen}
    program = api.compile(
        _open(model), target=rep.target, precision="f32", shapes={node.input[0]: ones.shape}, freeze=frozen
    )
    rest = {name: value for name, value in given.items() if name not in frozen}
    share = float((program.run({**rest, node.input[0]: ones}, engine="jit")[rep.outputs[0]] == 0).mean())
    if abs(share - ratio) > SIGMAS * np.sqrt(ratio * (1 - ratio) / DRAWS):
        return f"{share:.4f} of the elements are dropped, the ratio is {ratio}"
    return ""


def _open(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what it says about sizes: --shape gives that of the input."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy
