"""A small graph as plain data, easy to make, cut down, and turn into an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

IR_VERSION = 10


@dataclass(frozen=True)
class Node:
    """One node. `noise`: the relative error that an implementation may make (see oracle.py)."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    noise: float = 0.0
    domain: str = ""

    def proto(self) -> onnx.NodeProto:
        return helper.make_node(self.op, list(self.inputs), list(self.outputs), domain=self.domain, **self.attrs)


@dataclass(frozen=True)
class Graph:
    """Nodes in order, the data of inputs and initializers by name, the names of the outputs."""

    opset: int
    nodes: tuple[Node, ...]
    inputs: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]

    def live(self) -> Graph:
        """Without what the outputs do not need."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        return replace(
            self,
            nodes=tuple(reversed(kept)),
            inputs={k: v for k, v in self.inputs.items() if k in needed},
            constants={k: v for k, v in self.constants.items() if k in needed},
        )

    def model(self, results: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """As an ONNX model; `results`: arrays of the outputs' types and ranks (sizes are left open)."""
        graph = helper.make_graph(
            [n.proto() for n in self.nodes],
            "fuzz",
            [_info(name, array, array.shape) for name, array in self.inputs.items()],
            [_info(name, results[name], [None] * results[name].ndim) for name in self.outputs],
            [numpy_helper.from_array(np.asarray(a, order="C"), name) for name, a in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSION)

    def __str__(self) -> str:
        lines = [f"opset {self.opset}"]
        lines += [f"input {n}: {_text(a)}" for n, a in self.inputs.items()]
        lines += [f"const {n}: {_text(a)}" for n, a in self.constants.items()]
        for n in self.nodes:
            attrs = f" {dict(n.attrs)}" if n.attrs else ""
            lines.append(f"{', '.join(n.outputs)} = {n.op}({', '.join(n.inputs)}){attrs}")
        return "\n".join([*lines, f"output {', '.join(self.outputs)}"])


def _text(array: np.ndarray) -> str:
    values = " ".join(str(v) for v in array.reshape(-1)[:12])
    return f"{array.dtype}{list(array.shape)} = {values}{' ...' if array.size > 12 else ''}"


def _info(name: str, array: np.ndarray, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(shape))
