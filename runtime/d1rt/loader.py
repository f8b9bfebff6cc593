"""Loading a program and running it: names, shapes and types of inputs are checked here, once for all engines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from d1c.errors import InputError, UsageError
from d1c.target import program_io
from d1c.target.counts import trim
from d1c.target.dtypes import dtype, from_numpy
from d1c.target.mesh import Layout, whole
from d1c.target.program import Port, Program
from d1c.target.program_check import check

ENGINES = ("jit", "numpy")
Kept = dict[int, dict[int, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gives. `outputs`: whole arrays by output name. `kept`: per layer that was asked for, per core that
    computed a share of it, a copy of its result buffer (all elements, in storage form) after the layer's last call."""

    outputs: dict[str, np.ndarray]
    kept: Kept = field(default_factory=dict)


class Engine(Protocol):
    """What executes a program; made for one program, runs it any number of times, each time from its initial state.

    Engines are built as Engine(program, threads, shuffle, keep): host threads, seed of the order of events, whether the
    results of layers are kept."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Result:
        """`inputs` are checked: every name, with its port's shape and type. Raises Trap and Deadlock."""

    def close(self) -> None:
        """Give memory back; the engine does not run again."""


def load(path_or_program: str | Path | Program) -> Loaded:
    """A program ready to run. Raises LoadError where it is not well-formed, UsageError where there is no such file."""
    if isinstance(path_or_program, Program):
        check(path_or_program)
        return Loaded(path_or_program)
    return Loaded(program_io.load(path_or_program))


class Loaded:
    """A checked program with its engines. `inputs` and `outputs`: its ports by name, without those that only hold the
    extents of others; `kept`: of the last run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.inputs: dict[str, Port] = {p.name: p for p in program.inputs}
        hidden = {name for p in program.outputs for _, name in p.counts}
        self.outputs: dict[str, Port] = {p.name: p for p in program.outputs if p.name not in hidden}
        self.kept: Kept = {}
        self._engines: dict[tuple[str, int | None, int | None, bool], Engine] = {}
        self._empty_inputs = _without_elements(program.info.get("empty_inputs", ()))
        self._empty_outputs = _without_elements(program.info.get("empty_outputs", ()))

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        engine: str = "jit",
        threads: int | None = None,
        shuffle: int | None = None,
        keep: bool | Collection[int] = (),
    ) -> dict[str, np.ndarray]:
        """The outputs by name.

        engine   "jit", or "numpy": slow, and the definition of what a program means.
        threads  host threads of the jit engine (default: as many as the host has).
        shuffle  seed of the order in which cores, threads and messages take their turns (default: round robin); results
                 never depend on it.
        keep     layers (numbers, or True for all) whose values `layer_value(loaded.kept, layer)` gives afterwards.
        Raises InputError for a wrong input, Trap and Deadlock from the emulated machine, UsageError for an unknown
        engine.
        """
        checked = self.check_inputs(inputs)
        result = self.engine(engine, threads, shuffle, bool(keep)).run(checked)
        self.kept = {n: v for n, v in result.kept.items() if keep is True or (keep and n in keep)}
        whole_outputs = trim(result.outputs, {p.name: p.counts for p in self.program.outputs if p.counts})
        return {**whole_outputs, **{name: a.copy() for name, a in self._empty_outputs.items()}}

    def engine(self, name: str, threads: int | None = None, shuffle: int | None = None, keep: bool = False) -> Engine:
        """The engine of that name for this program; made once, since making one may mean compiling kernels."""
        key = (name, threads, shuffle, keep)
        if key not in self._engines:
            if name == "jit":
                from d1rt import engine_jit

                self._engines[key] = engine_jit.Engine(self.program, threads, shuffle, keep)
            elif name == "numpy":
                from d1rt import engine_numpy

                self._engines[key] = engine_numpy.Engine(self.program, threads, shuffle, keep)
            else:
                raise UsageError(f"unknown engine {name!r}", rule=f"engines are {', '.join(ENGINES)}")
        return self._engines[key]

    def check_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs as arrays in row-major order; InputError where names, shapes or types are not the program's.

        Inputs without elements are checked too and left out: the program has no place for them."""
        wanted = {name: (p.shape, dtype(p.dtype).numpy) for name, p in self.inputs.items()}
        wanted |= {name: (a.shape, a.dtype) for name, a in self._empty_inputs.items()}
        listed = ", ".join(f"{name} {from_numpy(t)}{list(shape)}" for name, (shape, t) in wanted.items()) or "none"
        for name in inputs:
            if name not in wanted:
                raise InputError(
                    f"the program has no input {name!r}", rule=f"its inputs are: {listed}", remedy="rename or remove it"
                )
        out = {}
        for name, (shape, want) in wanted.items():
            if name not in inputs:
                raise InputError(
                    f"input {name!r} is missing", rule=f"the inputs are: {listed}", remedy="give every input"
                )
            array = np.asarray(inputs[name])
            if array.shape != shape:
                raise InputError(
                    f"input {name!r} has shape {list(array.shape)}, expected {list(shape)}",
                    rule="shapes are fixed when a model is compiled",
                    remedy="reshape or pad the input, or compile the model for this shape",
                )
            if array.dtype != want:
                raise InputError(
                    f"input {name!r} has type {array.dtype}, expected {want}",
                    rule="types are never converted silently",
                    remedy=f"convert it with .astype({str(want)!r}) if that is what you want",
                )
            if name in self.inputs:
                out[name] = np.ascontiguousarray(array).reshape(shape)
        return out

    def layer_value(self, kept: Kept, layer: int) -> np.ndarray:
        """The whole result of a layer that a run has kept. UsageError where it was not kept."""
        if layer not in kept:
            raise UsageError(f"layer {layer} was not kept", remedy=f"run with keep=True or keep=[{layer}]")
        record = self.program.layers[layer]
        try:
            layout, shape = Layout.parse(str(record["layout"])), tuple(int(n) for n in record["shape"])
            layout.check(shape, self.program.mesh)
            size = int(np.prod(layout.local_shape(shape), dtype=np.int64))
            shares = {core: values[:size] for core, values in kept[layer].items()}
            return whole(shares, layout, shape, dtype(str(record["dtype"])).numpy, self.program.mesh)
        except (KeyError, TypeError, ValueError) as e:
            raise UsageError(
                f"layer {layer} cannot be put together: {e!r}",
                rule="its record has shape, dtype and layout of the result",
            ) from None

    def close(self) -> None:
        """Close the engines and drop what they hold."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self.kept = {}

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _without_elements(records: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    """The arrays that (name, type, dims...) describe."""
    return {str(name): np.zeros(tuple(dims), dtype(str(kind)).numpy) for name, kind, *dims in records}
