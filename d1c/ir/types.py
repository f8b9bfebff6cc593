"""Types of values: tensors (with a layout from `dist` on), local operand windows, buffers in SRAM, scalars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d1c.target.dtypes import DType

if TYPE_CHECKING:
    from d1c.ir.layout import Need
    from d1c.target.mesh import Layout


@dataclass(frozen=True, slots=True)
class TensorType:
    """`tensor<2x3xbf16>`, and with a layout `tensor<2x3xbf16, [0: nr / 1, 1]>`."""

    shape: tuple[int, ...]
    dtype: DType
    layout: Layout | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WindowType:
    """`window<2x3xbf16, NEED>`: what each core holds of a tensor for one consumer, with padding (docs/layouts.md)."""

    shape: tuple[int, ...]
    dtype: DType
    need: Need


@dataclass(frozen=True, slots=True)
class ScalarType:
    """`f32`: one element, in the body of a fused group or a kernel (each stands for a vector of lanes)."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class BufferType:
    """`buffer<1024xbf16 @ 4096>`: `elements` of SRAM from byte `address` on, the same on every core (level tile)."""

    dtype: DType
    elements: int
    address: int

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


Type = TensorType | WindowType | ScalarType | BufferType
