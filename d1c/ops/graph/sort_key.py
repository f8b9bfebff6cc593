"""graph.sort_key: floats as integers in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np

from d1c.ir.core import NO_ATTRS
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import elementwise, tensors
from d1c.target.dtypes import I32, I64


def _infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    (x,) = tensors(types, 1)
    if not x.dtype.is_float:
        raise ValueError(f"takes floats, has {x.dtype}")
    return (TensorType(x.shape, I64 if x.dtype.bits == 64 else I32),)


def _body(b: Any, attrs: Any, x: Any) -> Any:
    """The bits, of negative numbers with all but the sign turned; -0 is 0, every NaN the largest integer."""
    wide = b.type_of(x) == "f64"
    kind, sign, most = ("i64", 63, 2**63 - 1) if wide else ("i32", 31, 2**31 - 1)
    bits = b.bits(b.add(x, 0.0), kind)
    key = b.xor(bits, b.and_(b.sar(bits, sign), most))
    return b.select(b.eq(x, x), key, b.const(most, kind))


def _case(kind: Any) -> Any:
    def case(rng: np.random.Generator) -> Any:
        x = rng.normal(size=(4, 9)).astype(kind)
        x[0, :5] = np.inf, -np.inf, 0.0, -0.0, np.nan
        whole, most = (np.int64, 2**63 - 1) if kind == np.float64 else (np.int32, 2**31 - 1)
        bits = (np.abs(x)).view(whole)
        return NO_ATTRS, [x], np.where(np.isnan(x), most, np.where(x < 0, -bits - 1, bits)).astype(whole)

    return case


elementwise(
    "graph.sort_key", _body, 1, infer=_infer, cases=(_case(np.float32), _case(np.float64)),
    doc="Integers (i32; of f64 i64) in the order of floats; NaN is the largest.",
)  # fmt: skip
