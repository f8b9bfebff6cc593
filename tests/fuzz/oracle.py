"""What a graph should give, and how far an implementation may be from it.

Nodes are evaluated one by one, each by onnxruntime (graph optimisations off), or by onnx's reference evaluator where
onnxruntime has no kernel and the opset is a new one. Each tensor has several *versions*: the first is the expected
value; in the others every computed float is disturbed by the error that its op may make, subnormals are zeros, and
zeros have the other sign. What the versions do not agree on is not defined well enough to compare: that is how chains
through exp, differences of nearly equal numbers, comparisons of nearly equal numbers and flushed subnormals get their
tolerance, without a rule for each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.fuzz.spec import IR_VERSION, Graph, Node

VERSIONS = 4
REFERENCE_FROM = 21
"""onnx.reference is wrong on old opsets."""
SUMS = {
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "ReduceSum", "ReduceMean", "CumSum", "AveragePool",
    "GlobalAveragePool", "Sum", "Mean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Resize", "GridSample",
}  # fmt: skip
"""Ops whose error is relative to the sum of the terms' magnitudes."""


ABSOLUTE = {
    "LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization", "LogSoftmax", "Sin", "Cos",
    "Sigmoid", "Tan", "Gelu", "Mish", "OneHot", "ReduceLogSum", "ReduceLogSumExp", "GridSample", "Resize", "RNN",
    "Elu", "Celu", "Selu", "GRU", "LSTM", "Attention", "GroupNormalization", "Det", "DFT", "RoiAlign",
}  # fmt: skip
PARAMETERS = {
    "Erf",
    "Gelu",
    "HardSwish",
    "Mish",
    "HardSigmoid",
    "LeakyRelu",
    "ThresholdedRelu",
    "Shrink",
    "Elu",
    "Celu",
    "Selu",
    "PRelu",
}
"""Ops that onnxruntime evaluates with f32 constants for f64 operands too."""
"""Ops whose error, or that of the oracles, is relative to 1 where the result is smaller: differences of two such."""


class Reject(Exception):
    """No oracle takes the node, or it has no defined value: the generator tries another one."""


Versions = list[np.ndarray]


@dataclass(frozen=True)
class Expected:
    """A tensor: its value, the tolerance of every element, and where it cannot be compared at all."""

    value: np.ndarray
    tolerance: np.ndarray
    undefined: np.ndarray


def session_model(node: Node, arrays: Sequence[np.ndarray | None], opset: int) -> onnx.ModelProto:
    """The node alone, its operands as inputs of open sizes."""
    inputs = {
        name: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for name, a in zip(node.inputs, arrays, strict=True)
        if a is not None
    }
    outputs = [onnx.ValueInfoProto(name=o) for o in node.outputs if o]
    graph = helper.make_graph([node.proto()], "node", list(inputs.values()), outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


@functools.lru_cache(512)
def _session(model: bytes) -> onnxruntime.InferenceSession | None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # no kernel, or an op that it does not know: its exceptions have no common class
        return None


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """None where it has no kernel. Reject where it refuses the values."""
    session = _session(model.SerializeToString())
    if session is None:
        return None
    try:
        return [np.asarray(x) for x in session.run(None, dict(feeds))]
    except Exception as error:
        raise Reject(str(error)) from None


def by_reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Reject where it refuses."""
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(x) for x in ReferenceEvaluator(model).run(None, dict(feeds))]
    except Exception as error:
        raise Reject(str(error)) from None


def run_node(node: Node, arrays: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """The node's outputs. Raises Reject."""
    model = session_model(node, arrays, opset)
    feeds = {name: a for name, a in zip(node.inputs, arrays, strict=True) if a is not None}
    out = (
        None
        if any(a.dtype.kind == "V" or a.dtype.name == "bfloat16" for a in feeds.values())
        else by_onnxruntime(model, feeds)
    )
    if out is None:
        if opset < REFERENCE_FROM:
            raise Reject("no oracle")
        out = by_reference(model, feeds)
    return out


def evaluate(node: Node, operands: Sequence[Versions | None], opset: int, rng: np.random.Generator) -> list[Versions]:
    """Every output's versions."""
    count = max((len(v) for v in operands if v is not None), default=VERSIONS)
    same = all(v is None or all(x is v[0] for x in v) for v in operands)
    results: list[list[np.ndarray]] = []
    for k in range(count):
        if k and same:
            results.append(results[0])
        else:
            results.append(run_node(node, [None if v is None else v[k] for v in operands], opset))
    scale: list[np.ndarray] | None = None
    if node.op in SUMS and node.noise:
        magnitudes = [None if v is None else _magnitude(v[0]) for v in operands]
        try:
            scale = run_node(node, magnitudes, opset)
        except Reject:
            scale = None
    noise = node.noise
    if node.op in PARAMETERS and noise and results[0][0].dtype == np.float64:
        noise *= 2.0**29
    out: list[Versions] = []
    for i, exact in enumerate(results[0]):
        versions = [exact]
        for k in range(1, count):
            mine = results[k][i]
            if mine.shape != exact.shape:
                raise Reject("the shape depends on rounding")
            size = np.abs(mine) if scale is None else np.maximum(scale[i], np.abs(mine))
            if node.op in ABSOLUTE:
                size = np.maximum(size, 1)
            versions.append(_disturbed(mine, size, noise, rng, flushed=k == count - 1, near=k == 1))
        if scale is not None and exact.dtype.kind == "f":  # which partial sums overflow depends on the order
            versions[-1] = np.where(np.isinf(scale[i]), exact.dtype.type(np.nan), versions[-1])
            versions[1] = np.where(np.isinf(scale[i]), exact.dtype.type(0), versions[1])
        if exact.dtype.kind == "f" and node.noise == 0 and same:
            versions = [exact] * count
        out.append(versions)
    return out


def _magnitude(array: np.ndarray) -> np.ndarray:
    """Absolute values of floats, without infinities: a sum of them is infinite where it overflows."""
    return np.where(np.isinf(array), array.dtype.type(0), np.abs(array)) if array.dtype.kind == "f" else array


def given(array: np.ndarray, versions: int = VERSIONS) -> Versions:
    """The versions of an input: arithmetic reads its subnormals as zeros."""
    if array.dtype != np.float32 or not (tiny := np.abs(array) < np.float32(1.1754944e-38)).any():
        return [array] * versions
    flushed = np.where(tiny, np.copysign(np.float32(0), array), array)
    return [array] * (versions - 1) + [flushed] if (flushed != array).any() else [array] * versions


def _disturbed(
    array: np.ndarray, size: np.ndarray, noise: float, rng: np.random.Generator, *, flushed: bool, near: bool
) -> np.ndarray:
    """`near`: what the error may make 0 is 0, so that nobody divides by it."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(all="ignore"):
        if noise:
            eps = noise * _unit(array.dtype)
            wide = array.astype(np.float64)
            step = eps * np.where(np.isfinite(size), size, 0).astype(np.float64)
            moved = wide + rng.choice((-1.0, 1.0), array.shape) * step
            if near:
                moved = np.where(np.abs(wide) <= step, 0.0, moved)
            array = np.where(np.isfinite(wide), moved, wide).astype(array.dtype)
        if flushed and array.dtype == np.float32:
            tiny = np.abs(array) < np.float32(1.1754944e-38)
            array = np.where(tiny, np.copysign(np.float32(0), -array) if noise else np.float32(0) * array, array)
    return array


def _unit(dtype: np.dtype) -> float:
    """A unit in the last place of 1, of what the emulator computes in: f16 values may stay f32 inside a group."""
    return {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}.get(dtype.name, 2.0**-7)


def expected(versions: Versions, slack: float = 8.0) -> Expected:
    """What the versions allow."""
    value = versions[0]
    if value.dtype.kind != "f":
        undefined = np.zeros(value.shape, bool)
        for v in versions[1:]:
            undefined |= v != value
        return Expected(value, np.zeros(value.shape), undefined)
    with np.errstate(all="ignore"):
        wide = value.astype(np.float64)
        tolerance = np.zeros(value.shape)
        undefined = np.zeros(value.shape, bool)
        for v in versions[1:]:
            other = v.astype(np.float64)
            undefined |= (np.isnan(other) != np.isnan(wide)) | (np.isinf(other) != np.isinf(wide))
            undefined |= np.isinf(other) & np.isinf(wide) & (np.sign(other) != np.sign(wide))
            apart = np.abs(other - wide)
            tolerance = np.maximum(tolerance, np.where(np.isfinite(apart), apart, 0))
        # A result next to the largest number may be infinite in one and not in the other.
        undefined |= np.isfinite(wide) & (np.abs(wide) + slack * tolerance > float(np.finfo(value.dtype).max))
    floor = 1.2e-38 if value.dtype == np.float32 else float(np.finfo(value.dtype).tiny)
    return Expected(value, slack * tolerance + floor, undefined)


def evaluate_graph(graph: Graph, seed: int, versions: int = VERSIONS, slack: float = 8.0) -> dict[str, Expected]:
    """Name of every tensor -> what it should be. Raises Reject."""
    rng = np.random.default_rng(seed)
    values: dict[str, Versions] = {k: given(v, versions) for k, v in {**graph.inputs, **graph.constants}.items()}
    for node in graph.nodes:
        operands = [values[name] if name else None for name in node.inputs]
        for name, result in zip(
            (o for o in node.outputs if o), evaluate(node, operands, graph.opset, rng), strict=False
        ):
            values[name] = result
    return {name: expected(v, slack) for name, v in values.items()}


def mismatch(got: np.ndarray, want: Expected) -> str:
    """What is wrong with a tensor, or nothing."""
    if got.shape != want.value.shape or got.dtype != want.value.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {want.value.dtype}{list(want.value.shape)}"
    with np.errstate(all="ignore"):
        if got.dtype.kind == "f":
            a, b = got.astype(np.float64), want.value.astype(np.float64)
            good = (np.isnan(a) & np.isnan(b)) | (a == b) | (np.abs(a - b) <= want.tolerance)
        else:
            good = got == want.value
    bad = ~(good | want.undefined)
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
    return (
        f"{int(bad.sum())} of {bad.size} values wrong, first at {list(at)}: {np.atleast_1d(got)[at]} "
        f"instead of {np.atleast_1d(want.value)[at]} (tolerance {np.atleast_1d(want.tolerance)[at]:.3g})"
    )
