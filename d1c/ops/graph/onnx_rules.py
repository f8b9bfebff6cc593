"""Ready-made ONNX rules for ops that are one ONNX node for one graph op."""

from __future__ import annotations

from typing import Any

from d1c.ops.opdef import Importer


def simple(name: str) -> Importer:
    """A rule that turns a node into the op `name` on the node's inputs, without attributes."""

    def build(cx: Any, node: Any) -> Any:
        return cx.emit(name, cx.inputs(node))

    return build
