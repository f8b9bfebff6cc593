"""One graph through compile and emulator, against the oracle; and its cutting down to what still fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

import d1rt  # noqa: F401  (imported late by d1c: a missing runtime should fail here)
from d1c import backend
from d1c.errors import D1Error, VerifyError
from tests.fuzz import ops_contract, ops_more, ops_move  # noqa: F401  (their ops register themselves)
from tests.fuzz.build import Build
from tests.fuzz.ops import OPS
from tests.fuzz.oracle import REFERENCE_FROM, Expected, Reject, by_reference, evaluate_graph, mismatch
from tests.fuzz.spec import Graph

OPSETS = (13, 17, 18, 21, 21, 21, 22, 23, 24, 25, 26)
WEIGHTS = {
    "Transpose": 6, "Reshape": 5, "Add": 5, "Mul": 4, "MatMul": 5, "Conv": 5, "Concat": 4, "Slice": 4, "Sub": 2,
    "Pad": 2, "ReduceSum": 2, "ReduceMax": 2, "ReduceMean": 2, "Softmax": 2, "Relu": 2, "Gather": 2, "Split": 2,
    "Expand": 2, "Where": 2, "Cast": 2, "Gemm": 2, "MaxPool": 2, "AveragePool": 2, "Unsqueeze": 2, "Flatten": 2,
}  # fmt: skip
"""How often an op is drawn: those from which fusion and layout make the most."""
BAD = ("wrong", "crash")


@dataclass(frozen=True, slots=True)
class Verdict:
    """status: same, wrong, refused, crash, invalid (no oracle) or disputed (the oracles differ, and d1c agrees with
    onnx's reference). reason: the refusal, or what differs and where."""

    status: str
    reason: str = ""
    output: str = ""


def make(rng: random.Random, ops: tuple[str, ...] = ()) -> Graph:
    """A graph of one to six nodes. `ops`: only these. All choices are the generator's."""
    names = [name for name in sorted(ops or OPS) for _ in range(WEIGHTS.get(name, 1))]
    while True:
        b = Build(rng, rng.choice(OPSETS))
        wanted, tries = rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6)), 0
        while len(b.nodes) < wanted and tries < 20:
            tries += 1
            try:
                OPS[rng.choice(names)](b)
            except Reject:
                continue
        graph = b.graph()
        if graph.nodes:
            return graph


def check(graph: Graph, seed: int = 0, engine: str = "numpy") -> Verdict:
    """Compile and run the graph, and compare every output. A difference is looked at again with more versions."""
    try:
        want = evaluate_graph(graph, seed)
    except Reject as error:
        return Verdict("invalid", str(error)[:200])
    verdict = against(graph, want, engine)
    if verdict.status != "wrong":
        return verdict
    try:
        want = evaluate_graph(graph, seed, versions=24, slack=12.0)
    except Reject as error:
        return Verdict("invalid", str(error)[:200])
    verdict = against(graph, want, engine)
    if verdict.status == "wrong" and graph.opset >= REFERENCE_FROM:
        try:
            model = graph.model({name: e.value for name, e in want.items()})
            second = by_reference(model, {**graph.inputs})
        except Reject:
            return verdict
        allowed = {n: replace(want[n], value=v) for n, v in zip(graph.outputs, second, strict=True)}
        if all(v.shape == want[n].value.shape for n, v in zip(graph.outputs, second, strict=True)):
            if against(graph, allowed, engine).status == "same":
                return replace(verdict, status="disputed")
    return verdict


def against(graph: Graph, want: dict[str, Expected], engine: str) -> Verdict:
    """The graph's outputs beside what they should be."""
    model = graph.model({name: e.value for name, e in want.items()})
    try:
        got = backend.D1Rep(model, "test", "f32", engine).run(list(graph.inputs.values()))
    except VerifyError as error:
        return Verdict("crash", f"{error.message}"[:300])
    except D1Error as error:
        return Verdict("refused", f"{type(error).__name__}: {error.message}"[:300])
    except Exception as error:
        return Verdict("crash", f"{type(error).__name__}: {error}".split("\n")[0][:300])
    for name, array in zip(graph.outputs, got, strict=True):
        if text := mismatch(np.asarray(array), want[name]):
            return Verdict("wrong", text, name)
    return Verdict("same")


# ---- shrinking -------------------------------------------------------------------------------------------------------


def shrink(graph: Graph, fails: Callable[[Graph], bool], budget: int = 400) -> Graph:
    """A smaller graph that still fails."""
    done = False
    while not done and budget > 0:
        done = True
        for candidate in smaller(graph):
            budget -= 1
            if budget <= 0:
                break
            if fails(candidate):
                graph, done = candidate, False
                break
    return graph


def smaller(graph: Graph) -> Iterator[Graph]:
    """Steps towards less, the large ones first."""
    if len(graph.outputs) > 1:
        for name in graph.outputs:
            yield replace(graph, outputs=(name,)).live()
    made = [o for n in graph.nodes for o in n.outputs if o]
    for name in made:
        if (name,) != graph.outputs and len(graph.nodes) > 1:
            cut = replace(graph, outputs=(name,)).live()
            if len(cut.nodes) < len(graph.nodes):
                yield cut
    try:
        values = evaluate_graph(graph, 0, versions=2)
    except Reject:
        return
    for node in graph.nodes:  # its outputs become inputs
        if len(graph.nodes) > 1:
            given = {o: values[o].value for o in node.outputs if o}
            yield replace(
                graph, nodes=tuple(n for n in graph.nodes if n is not node), inputs={**graph.inputs, **given}
            ).live()
    for name, array in graph.inputs.items():  # an input becomes a constant
        rest = {k: v for k, v in graph.inputs.items() if k != name}
        if rest:
            yield replace(graph, inputs=rest, constants={**graph.constants, name: array})
    for group in ("inputs", "constants"):
        data = getattr(graph, group)
        for name, array in data.items():
            for simpler in _simpler(array):
                yield replace(graph, **{group: {**data, name: simpler}})
    for i, node in enumerate(graph.nodes):
        for key in node.attrs:
            attrs = {k: v for k, v in node.attrs.items() if k != key}
            yield replace(graph, nodes=(*graph.nodes[:i], replace(node, attrs=attrs), *graph.nodes[i + 1 :]))


def _simpler(array: np.ndarray) -> Iterator[np.ndarray]:
    """Rounder values, then smaller extents."""
    if array.dtype.kind == "f" and array.size:
        with np.errstate(all="ignore"):
            for option in (np.ones_like(array), np.round(array), np.round(array, 1)):
                if not np.array_equal(option, array, equal_nan=True):
                    yield option.astype(array.dtype)
    for axis, extent in enumerate(array.shape):
        for size in sorted({1, extent // 2, extent - 1} - {0, extent}):
            if 0 < size < extent:
                yield np.take(array, range(size), axis=axis)
