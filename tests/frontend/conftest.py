"""Tiny ONNX models for the front end's tests: the fixture `model` builds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1c
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; `inputs` are arrays (for their types) or shapes of f32 tensors, constants are initializers."""
    infos = []
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            infos.append(helper.make_tensor_value_info(name, kind, value.shape))
        else:
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value))
    graph = helper.make_graph(
        list(nodes),
        "g",
        infos,
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def present(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds without those whose names begin with "_": they stand for operands that are left out."""
    return {name: a for name, a in feeds.items() if not name.startswith("_")}


def node_model(
    op: str, feeds: Mapping[str, np.ndarray], opset: int, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one node that reads the feeds in order (`present` says which are left out) and gives y0, y1, ..."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["" if n.startswith("_") else n for n in feeds], names, name="n", **attributes)
    return build([node], present(feeds), names, opset=opset)


@pytest.fixture
def model() -> Callable[..., onnx.ModelProto]:
    """`build`: (nodes, inputs, outputs, constants, opset) -> ModelProto."""
    return build


def run_ort(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The model's outputs as onnxruntime computes them."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def compare(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    tolerance: float = 0.0,
    emulate: bool = False,
    want: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Evaluate the imported graph, or with `emulate` run the compiled program, and compare types, shapes and values
    with `want`, by default onnxruntime's; `tolerance` is a share of the largest value."""
    shapes = {n: a.shape for n, a in feeds.items()}
    if emulate:
        results = d1c.compile(proto, target="test", precision="f32", shapes=shapes).run(feeds, engine="numpy")
    else:
        results = evaluate(import_onnx(proto, shapes), feeds)
    got = [results[o.name] for o in proto.graph.output]
    for ours, theirs in zip(got, run_ort(proto, feeds) if want is None else want, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        bound = tolerance * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    return got


@pytest.fixture
def against_ort() -> Callable[..., list[np.ndarray]]:
    """`compare`: (proto, feeds, tolerance, emulate, want) -> our outputs."""
    return compare
