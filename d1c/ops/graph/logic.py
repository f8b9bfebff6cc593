"""Comparisons, logic and selection, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from d1c.ir.core import NO_ATTRS
from d1c.ir.types import Type
from d1c.ops.graph.family import (
    binary_case,
    bool_case,
    broadcast_infer,
    elementwise,
    integer_case,
    tensors,
)
from d1c.ops.opdef import Infer
from d1c.target.dtypes import BOOL


def _bool_infer(arity: int) -> Infer:
    def infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
        for i, t in enumerate(tensors(types, arity)):
            if t.dtype != BOOL:
                raise ValueError(f"operand {i} must be bool, is {t.dtype}")
        return broadcast_infer(arity, BOOL)(types, attrs)

    return infer


def _where_case(rng: np.random.Generator) -> Any:
    c = rng.integers(0, 2, (4, 1)).astype(np.bool_)
    x, y = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.normal(size=(5,)).astype(np.float32)
    return NO_ATTRS, [c, x, y], np.where(c, x, y)


elementwise("graph.equal", lambda b, a, x, y: b.eq(x, y), 2, onnx="Equal", result=BOOL, doc="x == y.",
            cases=(binary_case(np.equal), integer_case(np.equal, 0, 3)))  # fmt: skip
elementwise("graph.less", lambda b, a, x, y: b.lt(x, y), 2, onnx="Less", result=BOOL, doc="x < y.",
            cases=(binary_case(np.less), integer_case(np.less, 0, 3)))  # fmt: skip
elementwise("graph.less_equal", lambda b, a, x, y: b.le(x, y), 2, onnx="LessOrEqual", result=BOOL, doc="x <= y.",
            cases=(binary_case(np.less_equal), integer_case(np.less_equal, 0, 3)))  # fmt: skip
elementwise("graph.greater", lambda b, a, x, y: b.lt(y, x), 2, onnx="Greater", result=BOOL, doc="x > y.",
            cases=(binary_case(np.greater), integer_case(np.greater, 0, 3)))  # fmt: skip
elementwise("graph.greater_equal", lambda b, a, x, y: b.le(y, x), 2, onnx="GreaterOrEqual", result=BOOL, doc="x >= y.",
            cases=(binary_case(np.greater_equal), integer_case(np.greater_equal, 0, 3)))  # fmt: skip
elementwise("graph.not", lambda b, a, x: b.xor(x, b.const(1, "mask")), 1, onnx="Not", infer=_bool_infer(1),
            doc="Not x.", cases=(bool_case(np.logical_not, 1),))  # fmt: skip
elementwise("graph.and", lambda b, a, x, y: b.and_(x, y), 2, onnx="And", infer=_bool_infer(2), doc="x and y.",
            cases=(bool_case(np.logical_and),))  # fmt: skip
elementwise("graph.or", lambda b, a, x, y: b.or_(x, y), 2, onnx="Or", infer=_bool_infer(2), doc="x or y.",
            cases=(bool_case(np.logical_or),))  # fmt: skip
elementwise("graph.xor", lambda b, a, x, y: b.xor(x, y), 2, onnx="Xor", infer=_bool_infer(2), doc="Either x or y.",
            cases=(bool_case(np.logical_xor),))  # fmt: skip
elementwise("graph.where", lambda b, a, c, x, y: b.select(c, x, y), 3, onnx="Where",
            infer=broadcast_infer(3, first_bool=True), doc="c ? x : y.", cases=(_where_case,))  # fmt: skip
