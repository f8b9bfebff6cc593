"""Values that are computed alike: two counts of the same mask are one count."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from d1c.ir.core import Op, Value

SMALL_BYTES = 256
"""Constants up to this size are compared by their data."""
DEPTH = 50
"""How many ops one after another are looked at."""


class Alike:
    """Finds, for a value, the first one asked for that is computed by the same ops from the same values."""

    def __init__(self, producers: Mapping[Value, Op], arrays: Mapping[Value, np.ndarray]) -> None:
        self._producers, self._arrays = producers, arrays
        self._found: dict[Value, Value] = {}
        self._first: dict[Hashable, Value] = {}

    def copy(self) -> Alike:
        """One that goes on from here by itself: for the body of a loop, whose values do not exist outside."""
        other = Alike(self._producers, self._arrays)
        other._found, other._first = dict(self._found), dict(self._first)
        return other

    def of(self, value: Value, depth: int = DEPTH) -> Value:
        """That first value; `value` itself where there is none."""
        if value in self._found:
            return self._found[value]
        op = self._producers.get(value)
        key: Hashable = value
        if value in self._arrays and self._arrays[value].nbytes <= SMALL_BYTES:
            array = self._arrays[value]
            key = (array.dtype.name, array.shape, array.tobytes())
        elif depth and op is not None and op.name != "graph.const" and len(op.results) == 1 and not op.regions:
            key = (op.name, repr(op.attrs), *(self.of(v, depth - 1) for v in op.operands))
        self._found[value] = self._first.setdefault(key, value)
        return self._found[value]
