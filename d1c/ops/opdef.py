"""The op registry: one row per operation, and everything that follows from it.

An op is one row in one file: attributes, type inference, numpy meaning, iteration space, vector body, ONNX importers
and small cases. Tests, docs/ops.md and the support list follow from the rows. A row states facts and takes no decision:
no layout, tile size, placement or fusion.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d1c.ir.core import NoAttrs
from d1c.ir.structured import Entry, Structured
from d1c.ir.types import Type

Infer = Callable[[tuple[Type, ...], Any], tuple[Type, ...]]
Importer = Callable[..., Any]  # (importer context, node) -> value or values; see d1c.frontend.importer


@dataclass(frozen=True)
class OnnxRule:
    """How an ONNX op of `domain`, from opset `since` on, becomes ops of this level. The newest that fits wins.

    static   the operands (by number) that must be known at compile time, because they decide shapes; all others are
             computed on the cores. Where such an operand is an input of the model, it is frozen at the first run.
    sometimes  operands that must be known for some nodes only, as the condition of an If whose branches give tensors
             of different shapes.
    check    (node, opset) -> why a node is refused, as far as its attributes say; None: it is not. Such refusals are
             found before anything is lowered, all at once.
    """

    op_type: str
    build: Importer
    since: int = 1
    domain: str = ""
    static: tuple[int, ...] = ()
    sometimes: tuple[int, ...] = ()
    check: Callable[[Any, int], str | None] | None = None


@dataclass(frozen=True)
class ViewMap:
    """A view: per operand dim (or group of `span` adjacent ones) an affine expression over the *result's* dims."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class OpDef:
    """One row.

    kind       elementwise (broadcasting, has `body`), contract, reduce (have `structure`), view (has `view`), constant,
               structural (return, yield, fused), or lower-level kinds that only the level's own passes look at.
    infer      result types from operand types and attributes; raises ValueError with the rule that is broken.
    eval       numpy meaning on whole arrays: (attrs, result types, *arrays) -> array or tuple of arrays. Elementwise
               ops need none: it is the body, run by d1c.target.numerics.
    body       elementwise: (builder, attrs, *values) -> value, straight-line vector code (d1c.target.numerics.Builder).
    structure  (operand types, attrs, result types) -> Structured.
    view       (operand types, attrs, result types) -> ViewMap, or None where the view does not compose.
    cases      small cases for the generated tests: callables rng -> (attrs, list of arrays, numpy/ONNX expected array).
    """

    name: str
    kind: str
    infer: Infer
    attrs: type = NoAttrs
    eval: Callable[..., Any] | None = None
    body: Callable[..., Any] | None = None
    structure: Callable[[tuple[Type, ...], Any, tuple[Type, ...]], Structured] | None = None
    view: Callable[[tuple[Type, ...], Any, tuple[Type, ...]], ViewMap | None] | None = None
    onnx: tuple[OnnxRule, ...] = ()
    cases: tuple[Callable[[np.random.Generator], Any], ...] = ()
    doc: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


REGISTRY: dict[str, OpDef] = {}
_LOADED = False


def register(row: OpDef) -> OpDef:
    """Add a row; a second row of the same name is an error."""
    if row.name in REGISTRY:
        raise ValueError(f"op {row.name} is registered twice")
    REGISTRY[row.name] = row
    return row


def load_all() -> dict[str, OpDef]:
    """Import every module of d1c.ops, once, and return the registry."""
    global _LOADED
    if not _LOADED:
        import d1c.ops

        for info in pkgutil.walk_packages(d1c.ops.__path__, "d1c.ops."):
            importlib.import_module(info.name)
        _LOADED = True
    return REGISTRY


def opdef(name: str) -> OpDef:
    """The row called `name`, e.g. `graph.add`."""
    if name not in REGISTRY:
        load_all()
    return REGISTRY[name]
