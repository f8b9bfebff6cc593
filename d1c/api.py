"""The Python interface: compile a model, look at its levels, save and run the program.

import d1c
program = d1c.compile("model.onnx", dims={"batch": 8})
print(program)                       # the compile summary
print(program.module("dist"))        # any level as text
program.save("model.d1x")
outputs = program.run({"image": images})
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d1c.errors import DoesNotFit, UsageError
from d1c.ir.core import LEVELS, Module
from d1c.ir.verify import verify
from d1c.pipeline import GRAPH_PASSES, LOWERINGS, PASSES, PIPELINE, Lowered, run_pipeline
from d1c.target.machine import Machine, machine

if TYPE_CHECKING:
    import onnx

    from d1c.analysis.planner import Planner
    from d1c.emit.tile_program import TileProgram
    from d1rt.loader import Loaded

__all__ = ["STAGES", "Program", "compile", "import_onnx", "lower"]

STAGES = ("import", *PIPELINE)
"""What `compile` does, in order: names for `stop_after` and `print_after`."""
PRECISIONS = ("bf16", "f32")
IDLE_LESS, FAR = 0.2, 4
"""Part of the price of idle cores that counts in the plans that `tune` tries beside the others. Fewer dies are tried if
the others take at least so many times as long as these compute at their peak."""

FEWER = (0.5, 0.25)
"""Shares of SRAM that constants may take in other plans that `tune` tries."""

Model = "str | Path | bytes | onnx.ModelProto | Module"
OnPrint = Callable[[str, Module], None]


def import_onnx(
    model: str | Path | bytes | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int] | None] | None = None,
    dims: Mapping[str, int] | None = None,
    freeze: Mapping[str, Any] | None = None,
) -> Module:
    """The model as a module of level graph, every shape static.

    shapes  whole input shapes by name; dims: values of symbolic dimensions; freeze: inputs that become
            constants, as arrays or plain numbers and lists. The elements of a sequence `s` are `s.0`, `s.1`, ...;
            None: an empty one, or an optional that is not given.
    Raises ImportFailed, UnsupportedOp, ShapeUnbound, TypeMismatch.
    """
    from d1c.frontend.importer import import_onnx as run

    return run(model, {k: None if v is None else tuple(v) for k, v in (shapes or {}).items()}, dims or {}, freeze or {})


def lower(
    module: Module, to: str = "kern", *, target: str | Path | Machine = "d1-tile", precision: str = "bf16"
) -> Module:
    """The module of level `to` (graph, dist, tile or kern) that `module` (graph or dist) becomes on `target`.

    A graph module goes through the graph passes first, unless it has been through them (it then knows its precision).
    Raises UsageError for a level that is not below the module's, and what the passes raise.
    """
    if to not in LEVELS:
        raise UsageError(f"no level {to!r}", rule=f"levels are {', '.join(LEVELS)}")
    if module.level not in ("graph", "dist") or LEVELS.index(to) < LEVELS.index(module.level):
        raise UsageError(
            f"a {module.level} module does not become a {to} module",
            rule="lowering goes " + " -> ".join(LEVELS) + " and starts at graph or dist",
        )
    return compile(module, target=target, precision=precision, stop_after=_LAST_STAGE[to]).module(to)


_LAST_STAGE = {PASSES[name].level_out: name for name in PIPELINE}
_LAST_STAGE["kern"] = _LAST_STAGE["tile"]


def compile(
    model: str | Path | bytes | onnx.ModelProto | Module,
    *,
    target: str | Path | Machine = "d1-tile",
    precision: str = "bf16",
    shapes: Mapping[str, Sequence[int] | None] | None = None,
    dims: Mapping[str, int] | None = None,
    freeze: Mapping[str, Any] | None = None,
    tune: bool = False,
    stop_after: str | None = None,
    print_after: Collection[str] = (),
    on_print: OnPrint | None = None,
    progress: Callable[[str], None] | None = None,
) -> Program:
    """Compile `model` (an ONNX file, its bytes, a ModelProto, or a graph or dist module) for `target`.

    target      a preset's name, a .toml file, or a Machine.
    precision   how values are stored: "bf16" or "f32"; arithmetic between them is f32 either way (docs/numerics.md).
    shapes, dims, freeze  as for `import_onnx`.
    tune        try plans for which idle cores count less, and plans on fewer dies (1 x 1, 2 x 2, ...) where computing
                is little of the time, and keep what is fastest by events; send every movement of it that takes long
                alone through the timing engine's network, choose by that in which order its messages go and over how
                many cycles they begin, and keep this where the whole is faster then (d1rt.pace): seconds, or some
                minutes for large networks.
    stop_after  the last of STAGES to run. print_after: stages (or "all") after which `on_print` gets (stage, module);
                without `on_print` the module is printed.
    progress    gets each stage's name as it starts.
    Raises the typed refusals of d1c.errors: among others ImportFailed, UnsupportedOp, ShapeUnbound, DoesNotFit, whose
    `try_remedies` compiles again to find what fits.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", rule=f"precisions are {', '.join(PRECISIONS)}")
    for name in (*([stop_after] if stop_after else []), *print_after):
        if name not in STAGES and name != "all":
            raise UsageError(f"no pass {name!r}", rule=f"passes are {', '.join(STAGES)}")
    chosen = target if isinstance(target, Machine) else machine(target)
    run = _Run(
        chosen, precision, tune, stop_after, frozenset(print_after), on_print or _print,
        progress or (lambda name: None),
    )  # fmt: skip
    try:
        return run.all(model, shapes, dims, freeze)
    except DoesNotFit as error:
        from d1c.remedies import Trials

        if not isinstance(model, Module) or model.level == "graph":
            error.trials = Trials(model, chosen, precision, dict(shapes or {}), dict(dims or {}), dict(freeze or {}))
        raise


def _print(name: str, module: Module) -> None:
    print(f"// after {name}\n{module}")


_Way = tuple[float, float, bool, bool]
"""How a module is lowered: resident, window, stream, branches of d1c.passes.distribute."""


def _quietly(module: Module, names: Sequence[str], **options: Any) -> Lowered:
    return run_pipeline(module, names, options=options)


def _others(machine: Machine, ways: Sequence[_Way]) -> list[tuple[Machine, float, Sequence[_Way]]]:
    """What `tune` tries beside the usual plans: the machine, the part of the price of idle cores that counts, and how
    the module is lowered: at last with fewer constants resident."""
    squares = range(1, min(machine.die_rows, machine.die_cols))
    fewer = [[w for w in ways if w[0] <= resident] for resident in FEWER]
    return [
        (machine, IDLE_LESS, ways), *((machine.part(k, k), 1.0, ways) for k in squares),
        *((machine, 1.0, f) for f in fewer if f),
    ]  # fmt: skip


@dataclass
class _Run:
    """One compilation: the stages one after another, timed."""

    machine: Machine
    precision: str
    tune: bool
    stop_after: str | None
    print_after: frozenset[str]
    on_print: OnPrint
    progress: Callable[[str], None]

    def all(
        self,
        model: str | Path | bytes | onnx.ModelProto | Module,
        shapes: Mapping[str, Sequence[int] | None] | None,
        dims: Mapping[str, int] | None,
        freeze: Mapping[str, Any] | None,
    ) -> Program:
        self.passes: list[dict[str, Any]] = []
        self.modules: dict[str, Module] = {}
        self.compiled: TileProgram | None = None
        if isinstance(model, Module):
            if shapes or dims or freeze:
                raise UsageError("a module has its shapes already", remedy="give shapes, dims, freeze to import_onnx")
            module = model
        else:
            module = self.stage("import", lambda: import_onnx(model, shapes=shapes, dims=dims, freeze=freeze))
            if isinstance(model, (str, Path)):
                module = replace(module, attrs={**module.attrs, "model": Path(model).name})
        if module.level not in ("graph", "dist"):
            raise UsageError(f"compile takes a graph or dist module, this one is at level {module.level}")
        self.modules[module.level] = module
        if module.level == "graph" and "precision" not in module.attrs and not self.done("import"):
            module = self.graph_passes(module)
        self.precision = str(module.attrs.get("precision", self.precision))
        if not self.done("import", *GRAPH_PASSES) and not (module.level == "dist" and self.done("distribute")):
            self.lower(module)
        return Program(self.machine, self.precision, self.modules, self.compiled, tuple(self.passes))

    def done(self, *names: str) -> bool:
        """Whether the last stage to run is one of these."""
        return self.stop_after in names

    def stage(self, name: str, run: Callable[[], Module]) -> Module:
        self.progress(name)
        started = time.perf_counter()
        module = run()
        self.passes.append({"name": name, "seconds": time.perf_counter() - started})
        verify(module, after=name)
        self.print(name, module)
        return module

    def print(self, name: str, module: Module) -> None:
        if name in self.print_after or "all" in self.print_after:
            self.on_print(name, module)

    def passes_over(self, module: Module, names: Sequence[str], **options: Any) -> Lowered:
        done = run_pipeline(
            module,
            names,
            options=options,
            stop_after=self.stop_after if self.stop_after in names else None,
            print_after=self.print_after & {"all", *names},
            on_print=self.on_print,
            on_start=self.progress,
        )
        self.passes += [
            {"name": r.name, "seconds": r.seconds, "verify_seconds": r.verify_seconds} for r in done.reports
        ]
        return done

    def graph_passes(self, module: Module) -> Module:
        module = self.passes_over(module, GRAPH_PASSES, policy=self.precision).module
        self.modules["graph"] = module
        return module

    def lower(self, module: Module) -> None:
        """Distribute and lower: with fewer and fewer constants resident and smaller windows until the program fits.
        Constants are streamed where the SRAM of all cores together does not hold them, or nothing else fits."""
        from d1c.analysis.branches import has_branches
        from d1c.analysis.die_order import with_order
        from d1c.analysis.layers import layers_of
        from d1c.passes.distribute import ATTEMPTS, STREAM_FROM, STREAM_SHARES

        can_stream = self.machine.dip_count > 0 and self.machine.threads > 3
        part = self.whole_constants(module, can_stream)
        beside: tuple[bool, ...] = (False,)
        if module.level == "graph":
            module = self.bounded(module)
            layers = [layers_of(module, f.name) for f in module.functions]
            self.machine = with_order(self.machine, layers[0].layers)
            if any(map(has_branches, layers)):  # all at once hold more than one after the other
                beside = (True, False)
        ways = [(*a, False) for a in ATTEMPTS if part <= 1]
        ways += [(*a, True) for a in STREAM_SHARES if can_stream and part >= STREAM_FROM]
        tries = [(*w, b) for w in ways for b in beside]
        tries = tries if module.level == "graph" else tries[-1:]
        done = self.first_that_fits(module, tries, self.passes_over, self.machine)
        if self.tune and done.program is not None:
            done = self.tuned(module, tries, done)
        self.modules[done.module.level] = done.module
        self.compiled = done.program

    def first_that_fits(
        self, module: Module, tries: Sequence[_Way], lower: Callable[..., Lowered], machine: Machine, idle: float = 1.0
    ) -> Lowered:
        """The module lowered in the first of these ways (resident, window, stream, branches) that fits. Where epochs
        wait for memory, movements do not go on beside computing: with fewer constants resident (but not none) if no
        epoch waits then. Raises what the last of them said that does not stream."""
        names = [n for n in LOWERINGS if module.level == "graph" or PASSES[n].level_in != "graph"]
        planners: dict[tuple[float, bool, float], Planner] = {}
        refused: DoesNotFit | None = None
        fits: Lowered | None = None
        like: tuple[float, bool, bool] | None = None
        for resident, window, stream, branches in tries:
            if fits is not None and ((window, stream, branches) != like or not resident):
                continue
            try:
                done = lower(
                    module, names, machine=machine, resident=resident, window=window, stream=stream,
                    branches=branches, idle=idle, planners=planners,
                )  # fmt: skip
            except DoesNotFit as error:
                refused = error if refused is None or not stream else refused
                continue
            if done.program is None or not done.program.waits:
                return done
            fits, like = fits or done, (window, stream, branches)
        if fits is not None:
            return fits
        assert refused is not None
        raise refused from None

    def tuned(self, module: Module, tries: Sequence[_Way], planned: Lowered) -> Lowered:
        """The fastest by events: as planned, or with plans for which idle cores count less, or on fewer dies, where
        ways are shorter; then with its movements sent as is best."""
        from d1rt.events import Simulator
        from d1rt.pace import tuned

        self.progress("tune")
        started = time.perf_counter()
        assert planned.program is not None
        best, best_program, plans, whole = planned, planned.program, 0, self.machine
        cycles = least = Simulator(planned.program.program).cycles()
        compute = dict(module.attrs.get("bounds", ())).get("compute", 0)
        for number, (m, idle, ways) in enumerate(_others(whole, tries) if module.level == "graph" else (), 1):
            if FAR * compute * whole.dies / m.dies > least and m.dies < whole.dies:
                continue
            try:
                found = self.first_that_fits(module, ways, _quietly, m, idle)
            except DoesNotFit:
                continue
            assert found.program is not None
            if found.program.program.buffers != planned.program.program.buffers:
                taken = Simulator(found.program.program).cycles()
                if taken < least:
                    best, best_program, plans, least, self.machine = found, found.program, number, taken, m
        program, facts = tuned(best_program.program, least)
        facts |= {"plans": plans, "planned_cycles": cycles}
        self.passes.append({"name": "tune", "seconds": time.perf_counter() - started})
        program = replace(program, info={**program.info, "tuned": facts})
        return replace(best, program=replace(best_program, program=program))

    def bounded(self, module: Module) -> Module:
        """The graph module with its lower bounds on the machine as the attribute `bounds`: (name, value) pairs."""
        from d1c.analysis.bounds import lower_bounds

        found = lower_bounds(module, self.machine)
        return replace(module, attrs={**module.attrs, "bounds": tuple(found.items())})

    def whole_constants(self, module: Module, can_stream: bool) -> float:
        """The part of the SRAM of all cores together that the constants take. Refused before any work if that is more
        than all of it, unless they can be streamed."""
        ops = [op for f in module.functions for op in f.block.ops]
        values = {op.result: op.attrs.name for op in ops if op.name.endswith(".const")}
        sizes = {name: module.constants[name].nbytes for name in values.values() if name in module.constants}
        have, need = self.machine.cores * self.machine.data_bytes, sum(sizes.values())
        if need > have and not can_stream:
            rows = sorted(sizes.items(), key=lambda x: (-x[1], x[0]))
            readers = {values[v]: op.origin for op in reversed(ops) for v in op.operands if v in values}
            raise DoesNotFit(
                f"the constants of the model do not fit the SRAM of {self.machine.name}",
                where=readers.get(rows[0][0], ""),
                rule="every constant is in some core's SRAM while the program runs",
                tensors=tuple(
                    {"name": n, "kind": "constant", "bytes": b, "from": readers.get(n, ""), "to": "all cores together"}
                    for n, b in rows
                ),
                amounts={
                    "constants, bytes": need,
                    "SRAM for data of all cores, bytes": have,
                    "cores": self.machine.cores,
                },
                remedy="use a larger --target, or --precision bf16",
            )
        return need / have


@dataclass(frozen=True)
class Program:
    """A compiled model: its module at every level, and the program for the machine.

    modules   by level, graph and dist; those of tile and kern are made when `module` asks for them.
    compiled  the program with the movements that it was made of; None where compilation stopped earlier.
    passes    per pass its name and seconds.
    """

    machine: Machine
    precision: str
    modules: Mapping[str, Module]
    compiled: TileProgram | None = None
    passes: tuple[Mapping[str, Any], ...] = ()

    @property
    def target(self) -> Any:
        """The d1c.target.program.Program. UsageError where compilation stopped earlier."""
        if self.compiled is None:
            last = self.passes[-1]["name"] if self.passes else "import"
            raise UsageError(
                f"there is no program: compilation stopped after {last}", remedy="compile without stop_after"
            )
        return self.compiled.program

    def module(self, level: str | None = None) -> Module:
        """The module of a level; without one, of the lowest level that compilation reached as a module."""
        if level is None:
            level = list(self.modules)[-1]
        if level in self.modules:
            return self.modules[level]
        if level not in LEVELS:
            raise UsageError(f"no level {level!r}", rule=f"levels are {', '.join(LEVELS)}")
        if level in ("tile", "kern") and self.compiled is not None:
            return self._lowest[level]
        raise UsageError(f"there is no {level} module", rule=f"this program has {', '.join(self.modules)}")

    @cached_property
    def _lowest(self) -> dict[str, Module]:
        from d1c.emit.modules import to_modules

        assert self.compiled is not None
        tile, kern = to_modules(self.compiled)
        return {"tile": tile, "kern": kern}

    def save(self, path: str | Path) -> None:
        """Write the .d1x: beside its place, then renamed. The same model and options give the same bytes."""
        from d1c.target import program_io

        program_io.save(self.target, Path(path))

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        engine: str = "jit",
        threads: int | None = None,
        shuffle: int | None = None,
    ) -> dict[str, Any]:
        """Execute on the emulator: outputs by name, in the model's shapes. Raises InputError, Deadlock, Trap.

        Sequences are lists of arrays, here and in the outputs; an optional without a value is None. To the program
        itself (a .d1x, `d1c run`) the elements of a sequence `s` are `s.0`, `s.1`, ...
        """
        ports: dict[str, Any] = dict(
            self._loaded.run(ports_of(inputs), engine=engine, threads=threads, shuffle=shuffle)
        )
        for name, length in self.target.info.get("lists", ()):
            ports[name] = None if length < 0 else [ports.pop(f"{name}.{i}") for i in range(length)]
        return ports

    @property
    def frozen(self) -> tuple[str, ...]:
        """The inputs that were frozen to constants."""
        return tuple(self._attrs.get("frozen", ()))

    @property
    def folded(self) -> bool:
        """Whether every result is a constant of compile time, so that the cores compute nothing."""
        graph = self.modules.get("graph")
        if graph is None:
            return False
        main = graph.function().block
        return all(op.name in _NO_WORK for op in main.ops) and not set(main.ops[-1].operands) & set(main.args)

    @property
    def _attrs(self) -> Mapping[str, Any]:
        return next(iter(self.modules.values())).attrs

    @cached_property
    def _loaded(self) -> Loaded:
        import d1rt

        return d1rt.load(self.target)

    def summary(self) -> dict[str, Any]:
        """The compile summary as plain JSON values (docs/cli.md has the keys)."""
        from d1c.report import summarize
        from d1rt.timing import layer_times

        return summarize(self.target, layer_times(self.target), self.passes)

    def __str__(self) -> str:
        if self.compiled is None:
            return str(self.module())
        from d1c.report import text

        return text(self.summary())


_NO_WORK = ("graph.const", "graph.return")


def ports_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by port: a list `s` of arrays is `s.0`, `s.1`, ...; None is nothing."""
    out: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, (list, tuple)) and all(hasattr(v, "shape") for v in value):
            out |= {f"{name}.{i}": v for i, v in enumerate(value)}
        elif value is not None:
            out[name] = value
    return out
