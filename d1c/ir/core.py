"""The one data structure of every level: values, generic operations, blocks, functions, modules.

All are immutable and compared by identity; a pass builds new ones. An `Op` has no class of its own per operation:
its name finds the row in the op registry (d1c.ops.opdef), its `attrs` are that row's typed attribute dataclass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d1c.ir.types import Type

LEVELS = ("graph", "dist", "tile", "kern")


@dataclass(frozen=True, slots=True)
class NoAttrs:
    """The attributes of an op that has none."""


NO_ATTRS = NoAttrs()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An SSA value; `name` is a wish, the printer makes it unique within the function."""

    type: Type
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation. `origin` is the ONNX node's name or `file:line`, and travels to the emulator's traps."""

    name: str
    operands: tuple[Value, ...] = ()
    attrs: Any = NO_ATTRS
    results: tuple[Value, ...] = ()
    regions: tuple[Block, ...] = ()
    origin: str = ""

    @property
    def result(self) -> Value:
        """The only result; an op with several must be asked for `results`."""
        (value,) = self.results
        return value

    @property
    def level(self) -> str:
        return self.name.split(".", 1)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Arguments and straight-line operations; the last is the terminator (`LEVEL.return` or `LEVEL.yield`)."""

    args: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()

    def walk(self) -> Iterator[Op]:
        """Every op, outer before inner."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A named block. Graph and dist modules have `main`, whose arguments and results are the model's, and the bodies of
    loops."""

    name: str
    block: Block
    attrs: Any = NO_ATTRS


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """A program at one level. `constants` holds the data that `const` ops name; `attrs` facts (policy, target)."""

    level: str
    functions: tuple[Function, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def function(self, name: str = "main") -> Function:
        for f in self.functions:
            if f.name == name:
                return f
        raise KeyError(name)

    def __str__(self) -> str:
        from d1c.ir.text import print_module  # the printer needs the registry, which needs this module

        return print_module(self)
