"""`d1c run`, and the running half of `d1c compile --run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from d1c.cli.shell import check_outputs, peak_memory, progress, read_npz, timed, write_json, write_npz
from d1c.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from d1c.target.program import Program

ENGINES = ("jit", "numpy")


def check_engine(engine: str) -> None:
    """UsageError where there is no such engine."""
    if engine not in ENGINES:
        raise UsageError(f"no engine {engine!r}", rule=f"engines are {', '.join(ENGINES)}")


def execute(
    program: Program,
    inputs: dict[str, np.ndarray],
    engine: str,
    threads: int | None,
    shuffle: int | None,
    seconds: dict[str, float],
) -> dict[str, np.ndarray]:
    """Load and run; `seconds` gets "load_seconds" and "run_seconds"."""
    import d1rt

    with progress("loading"), timed(seconds, "load_seconds"):
        loaded = d1rt.load(program)
    with progress("running"), timed(seconds, "run_seconds"):
        outputs: dict[str, np.ndarray] = loaded.run(inputs, engine=engine, threads=threads, shuffle=shuffle)
    return outputs


def run_program(
    path: Path,
    inputs: Path | None,
    outputs: Path | None,
    engine: str,
    threads: int | None,
    shuffle: int | None,
    check: Path | None,
    json: Path | None,
    all_layers: bool,
) -> None:
    """Run the program in `path`; compare its layers with onnxruntime where `check` names the model."""
    if path.suffix == ".onnx":
        raise UsageError(
            f"{path} is a model, not a compiled program",
            rule="d1c run takes a .d1x",
            remedy=f"compile it first: d1c compile {path} -o OUT.d1x, or both at once: "
            f"d1c compile {path} --run --inputs IN.npz",
        )
    if inputs is None:
        raise UsageError("d1c run needs --inputs IN.npz", remedy="one array per input of the model, by name")
    check_engine(engine)
    check_outputs(outputs, json, inputs=(path, inputs, check))
    if check is not None and not check.is_file():
        raise UsageError(
            f"--check: there is no file {check}", remedy="give the model that the program was compiled from"
        )
    given = read_npz(inputs)
    from d1c.target import program_io

    seconds: dict[str, float] = {}
    with progress("reading"), timed(seconds, "read_seconds"):
        program = program_io.load(path)
    results = execute(program, given, engine, threads, shuffle, seconds)
    if outputs is not None:
        write_npz(outputs, results)
    show_outputs(results, outputs, seconds)
    if not (json or check):
        return
    from d1c.report import summarize
    from d1rt.timing import layer_times

    summary: dict[str, Any] = summarize(program, layer_times(program))
    summary["run"] = {
        "engine": engine,
        "threads": threads,
        "shuffle": shuffle,
        **seconds,
        "peak_memory_bytes": peak_memory(),
    }
    if check is not None:
        from d1c.check import check_program

        with progress("checking") as tell:
            report = check_program(program, check, given, engine=engine, progress=tell)
        print(report.text(all_layers))
        summary["check"] = report.to_json()
    if json is not None:
        write_json(json, summary)
    if check is not None:
        report.raise_for_divergence()


def show_outputs(outputs: dict[str, np.ndarray], path: Path | None, seconds: dict[str, float]) -> None:
    """A line per output on stdout, with its first values."""
    for name, array in outputs.items():
        values = " ".join(
            f"{v:.6g}" if array.dtype.kind not in "biu" else str(v) for v in array.reshape(-1)[:6].tolist()
        )
        more = " ..." if array.size > 6 else ""
        print(f"{name} {list(array.shape)} {array.dtype}: {values}{more}")
    place = f", outputs in {path}" if path is not None else ""
    print(f"loaded in {seconds['load_seconds']:.2f} s, emulated in {seconds['run_seconds']:.2f} s{place}")
