"""`d1c compile`."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import d1c.api as api
from d1c.cli import profile
from d1c.cli.profile import Sampler
from d1c.cli.run import check_engine, execute, show_outputs
from d1c.cli.shell import check_outputs, dims_of, freeze_of, progress, read_npz, shapes_of, timed, write_json, write_npz
from d1c.errors import DoesNotFit, UsageError
from d1c.ir.core import LEVELS, Module


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `d1c compile`."""

    model: Path
    output: Path | None
    target: str
    precision: str
    shapes: tuple[str, ...]
    dims: tuple[str, ...]
    freeze: tuple[str, ...]
    json: Path | None
    run: bool
    inputs: Path | None
    outputs: Path | None
    engine: str
    threads: int | None
    stop_after: str | None
    print_after: tuple[str, ...]
    emit: str | None
    all_layers: bool
    remedies: bool = True
    profile: bool = False
    tune: bool = False


def compile_model(o: Options) -> None:
    """Compile, write what was asked for, run where asked to, print the summary (or the IR that was asked for)."""
    _check(o)
    inputs = read_npz(o.inputs) if o.inputs is not None else None
    printed = False
    sampler = Sampler() if o.profile else None
    more = {"start": time.process_time()} if o.profile else {}

    def show(name: str, module: Module) -> None:
        nonlocal printed
        printed = True
        print(f"// after {name}\n{module}")

    try:
        with progress("compiling", len(api.STAGES) + o.tune) as tell, sampler or nullcontext():
            program = api.compile(
                o.model,
                target=o.target,
                precision=o.precision,
                shapes=shapes_of(o.shapes),
                dims=dims_of(o.dims),
                freeze=freeze_of(o.freeze),
                tune=o.tune,
                stop_after=o.stop_after,
                print_after=o.print_after,
                on_print=show,
                progress=tell,
            )
    except DoesNotFit as error:
        if o.remedies:
            _try_remedies(error)
        raise
    if o.emit is not None:
        print(program.module(o.emit))
    elif o.stop_after is not None and not printed:
        for level in (None,) if program.compiled is None else ("tile", "kern"):
            print(program.module(level))
    if program.compiled is None:
        stopped: dict[str, Any] = {
            "version": d1c_version(),
            "stopped_after": o.stop_after,
            "passes": list(program.passes),
        }
        if sampler is not None:
            stopped["profile"] = profile.profile(sampler.tree, program.passes, more)
            print(profile.text(stopped["profile"]))
        if o.json is not None:
            write_json(o.json, stopped)
        return
    if o.output is not None:
        with progress(f"writing {o.output.name}"), timed(more, "write"):
            program.save(o.output)
    with timed(more, "summary"):
        summary = program.summary()
    if o.emit is None and o.stop_after is None and not printed:
        print_summary(summary, o.all_layers)
    if sampler is not None:
        summary["profile"] = profile.profile(sampler.tree, program.passes, more)
        print(profile.text(summary["profile"]))
    if o.run and inputs is not None:
        seconds: dict[str, float] = {}
        outputs = execute(program.target, inputs, o.engine, o.threads, None, seconds)
        show_outputs(outputs, o.outputs, seconds)
        summary["run"] = {"engine": o.engine, **seconds}
        if o.outputs is not None:
            write_npz(o.outputs, outputs)
    if o.json is not None:
        write_json(o.json, summary)


def _try_remedies(error: DoesNotFit) -> None:
    """Look for what fits, to be printed with the refusal. Ctrl-C ends the search; what was found stays."""
    try:
        with progress("does not fit; trying (Ctrl-C: enough)") as tell:
            error.try_remedies(tell)
    except KeyboardInterrupt:
        print("interrupted: not every remedy was tried", file=sys.stderr)


def d1c_version() -> str:
    """The package's version."""
    from d1c import __version__

    return __version__


def _check(o: Options) -> None:
    if o.model.suffix == ".d1x":
        raise UsageError(
            f"{o.model} is a compiled program",
            rule="d1c compile takes an ONNX model",
            remedy=f"run it with d1c run {o.model} --inputs IN.npz, look at it with d1c dis {o.model}",
        )
    if o.emit is not None and o.emit not in LEVELS:
        raise UsageError(f"no level {o.emit!r}", rule=f"--emit takes one of {', '.join(LEVELS)}")
    if o.run and o.inputs is None:
        raise UsageError("--run needs --inputs IN.npz", remedy="one array per input of the model, by name")
    if not o.run and (o.inputs is not None or o.outputs is not None):
        raise UsageError("--inputs and --outputs go with --run", remedy="add --run, or leave them out")
    if o.stop_after is not None and o.stop_after != api.STAGES[-1] and (o.run or o.tune or o.output is not None):
        raise UsageError(
            f"--stop-after {o.stop_after} leaves no program to write, tune or run", remedy="leave --stop-after out"
        )
    check_engine(o.engine)
    check_outputs(o.output, o.json, o.outputs, inputs=(o.model, o.inputs))


def print_summary(summary: dict[str, Any], all_layers: bool) -> None:
    """On stdout: as wide as the terminal, or 160 columns where there is none."""
    from rich.console import Console

    from d1c import report

    if sys.stdout.isatty():
        report.write(Console(highlight=False), summary, all_layers)
    else:
        print(report.text(summary, all_layers))
