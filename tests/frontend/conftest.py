"""Tiny ONNX models for the front end's tests: the fixture `model` builds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


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


@pytest.fixture
def model() -> Callable[..., onnx.ModelProto]:
    """`build`: (nodes, inputs, outputs, constants, opset) -> ModelProto."""
    return build
