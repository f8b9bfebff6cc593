"""The passes by name and the order in which they run: the only place where order is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from d1c.errors import UsageError
from d1c.ir.core import Block, Function, Module
from d1c.ir.verify import verify

if TYPE_CHECKING:
    import numpy as np

    from d1c.emit.tile_program import TileProgram


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass. `run` is (module, **options) -> Module, for level tile -> TileProgram (which to_modules says as a tile
    and a kern module); `options`: what it takes, of which `machine` must be given; `doc`: its module's docstring."""

    name: str
    level_in: str
    level_out: str
    options: tuple[str, ...] = ()

    @property
    def run(self) -> Callable[..., Any]:
        run: Callable[..., Any] = self._module.run
        return run

    @property
    def doc(self) -> str:
        return (self._module.__doc__ or "").strip()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def _module(self) -> Any:
        return import_module("d1c.passes." + self.name.replace("-", "_"))


PASSES: dict[str, Pass] = {
    p.name: p
    for p in (
        Pass("fold-constants", "graph", "graph"),
        Pass("round-declared", "graph", "graph", ("policy",)),
        Pass("simplify-views", "graph", "graph"),
        Pass("sink-transposes", "graph", "graph"),
        Pass("fold-pads", "graph", "graph"),
        Pass("fold-batchnorm", "graph", "graph"),
        Pass("hoist-scales", "graph", "graph"),
        Pass("fuse-attention", "graph", "graph"),
        Pass("fuse", "graph", "graph"),
        Pass("precision", "graph", "graph", ("policy",)),
        Pass("pack-operands", "graph", "graph"),
        Pass(
            "distribute", "graph", "dist",
            ("machine", "seed", "resident", "window", "stream", "branches", "idle", "planners"),
        ),
        Pass("lower-tile", "dist", "tile", ("machine",)),
    )
}

PIPELINE: tuple[str, ...] = (
    "fold-constants",
    "round-declared",  # before passes that make one op of several nodes'
    "simplify-views",
    "sink-transposes",  # before fold-batchnorm, which looks for channels in the last dim
    "fold-pads",
    "hoist-scales",  # before fold-batchnorm, which may find the scale a place in weights
    "fold-batchnorm",
    "fuse-attention",  # before fuse, which would put parts of it into groups
    "fuse",
    "precision",  # after fuse: what a group stores is rounded, what stays inside is not
    "pack-operands",  # after precision: pairs are bf16's
    "distribute",
    "lower-tile",
)

GRAPH_PASSES: tuple[str, ...] = tuple(n for n in PIPELINE if PASSES[n].level_out == "graph")
LOWERINGS: tuple[str, ...] = tuple(n for n in PIPELINE if PASSES[n].level_out != "graph")
"""The pipeline's two parts: what does not need the machine, and what does."""


@dataclass(frozen=True, slots=True)
class PassReport:
    """`seconds` of the pass, `verify_seconds` of the verifier behind it (and before the first), `ops` of main."""

    name: str
    seconds: float
    verify_seconds: float
    ops: int


@dataclass(frozen=True, slots=True)
class Lowered:
    """The last module above level tile, and the program where the passes came to one."""

    module: Module
    reports: tuple[PassReport, ...] = field(default=())
    program: TileProgram | None = None

    def modules(self) -> tuple[Module, ...]:
        """What the passes end in: the module, or the tile and the kern module of the program."""
        return (self.module,) if self.program is None else _modules(self.program)


def run_pipeline(
    module: Module,
    names: Sequence[str] = PIPELINE,
    *,
    options: Mapping[str, Any] | None = None,
    stop_after: str | None = None,
    print_after: Collection[str] = (),
    on_print: Callable[[str, Module], None] | None = None,
    on_start: Callable[[str], None] | None = None,
) -> Lowered:
    """Run passes in order, the verifier before the first and after each.

    options      for every pass that names them, e.g. {"policy": "bf16", "machine": machine("d1-tile")}.
    stop_after   the last pass to run.
    print_after  passes (or "all") after which `on_print` gets (pass name, module).
    on_start     gets each pass's name before it runs (progress).
    Raises UsageError for an unknown pass, one at the wrong level or one that lacks the machine, VerifyError where a
    module is not valid, and what the passes raise.
    """
    asked = (*names, *([stop_after] if stop_after else []), *(n for n in print_after if n != "all"))
    unknown = [n for n in asked if n not in PASSES]
    if unknown:
        raise UsageError(f"unknown pass {unknown[0]!r}", rule=f"passes are {', '.join(PASSES)}")
    started = time.perf_counter()
    verify(module)
    verified = time.perf_counter() - started
    reports = []
    program: TileProgram | None = None
    for name in names:
        chosen = PASSES[name]
        level = module.level if program is None else "tile"
        if level != chosen.level_in:
            raise UsageError(
                f"pass {name} takes a {chosen.level_in} module, this one is at level {level}",
                remedy=f"order: {', '.join(names)}",
            )
        if "machine" in chosen.options and "machine" not in (options or {}):
            raise UsageError(f"pass {name} needs a machine", remedy='give options={"machine": ...}')
        if on_start:
            on_start(name)
        run = partial(chosen.run, **{k: v for k, v in (options or {}).items() if k in chosen.options})
        started = time.perf_counter()
        made = on_functions(run, module) if chosen.level_out == "graph" else run(module)
        done = time.perf_counter()
        if isinstance(made, Module):
            module = made
            verify(module, after=name)
        else:  # its modules are made where they are asked for: a program has many commands
            program = made
        verified += time.perf_counter() - done
        reports.append(PassReport(name, done - started, verified, len(module.functions[0].block.ops)))
        verified = 0.0
        if on_print and (name in print_after or "all" in print_after):
            for shown in (module,) if program is None else _modules(program):
                on_print(name, shown)
        if name == stop_after:
            break
    return Lowered(module, tuple(reports), program)


def on_functions(run: Callable[[Module], Module], module: Module) -> Module:
    """A graph pass, which sees `main` alone, on every function of the module: main and the bodies of loops. A body
    whose loop the pass drops goes with it."""
    if len(module.functions) == 1:
        return run(module)
    from d1c.ops.graph.loop import loops

    functions: list[Function] = []
    constants: dict[str, np.ndarray] = {}
    attrs = module.attrs
    called = ["main"]
    for f in map(module.function, called):
        made = run(replace(module, functions=(replace(f, name="main"),), attrs=attrs))
        attrs, new, names = made.attrs, made.function(), dict[str, str]()
        for name, array in made.constants.items():
            unique, k = name, 1
            while unique in constants and constants[unique] is not array:
                unique, k = f"{name}_{k}", k + 1
            constants[unique] = array
            names[name] = unique
        functions.append(replace(new, name=f.name, block=_renamed(new.block, names)))
        called += [op.attrs.body for op in loops(new)]
    return replace(module, functions=tuple(functions), constants=constants, attrs=attrs)


def _renamed(block: Block, names: Mapping[str, str]) -> Block:
    """The block with the constants that its ops name called otherwise."""
    ops = tuple(
        replace(op, attrs=replace(op.attrs, name=names.get(op.attrs.name, op.attrs.name)))
        if op.name == "graph.const" and names.get(op.attrs.name, op.attrs.name) != op.attrs.name
        else op
        for op in block.ops
    )
    return replace(block, ops=ops)


def _modules(program: TileProgram) -> tuple[Module, Module]:
    from d1c.emit.modules import to_modules

    return to_modules(program)
