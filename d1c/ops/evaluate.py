"""One graph op on constants: what the emulator's vector instructions would give, so that folding changes no bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d1c.ir.core import Op
from d1c.ir.types import TensorType
from d1c.ops.opdef import opdef
from d1c.target.numerics import NumpyBuilder, round_to, widen


def evaluate(op: Op, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an operation with one result on storage arrays; None where its row has no meaning in numpy."""
    row, result = opdef(op.name), op.result.type
    assert isinstance(result, TensorType)
    if row.eval is not None:
        out = np.asarray(row.eval(op.attrs, tuple(r.type for r in op.results), *arrays))
    elif row.body is not None:
        out = round_to(row.body(NumpyBuilder(), op.attrs, *[widen(a) for a in arrays]), result.dtype)
    else:
        return None
    return np.array(np.broadcast_to(out, result.shape)).astype(result.dtype.numpy, copy=False)
