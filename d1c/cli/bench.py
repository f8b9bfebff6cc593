"""`d1c bench`: a model on the emulator and on onnxruntime, turn by turn.

Each side has a process of its own, so that neither sees the other's threads or memory; this one compiles, and says
whose turn it is. One run at a time, in turns: all sides see the same load of the host.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d1c.cli.bench_sides import Emulated, Peer, Side, available
from d1c.cli.shell import (
    check_outputs,
    dims_of,
    freeze_of,
    peak_memory,
    progress,
    read_npz,
    shapes_of,
    timed,
    write_json,
)  # fmt: skip
from d1c.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from d1c.target.program import Port

PEERS = ("onnxruntime",)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `d1c bench`."""

    model: Path
    inputs: Path | None
    program: Path | None
    target: str
    precision: str
    shapes: tuple[str, ...]
    dims: tuple[str, ...]
    freeze: tuple[str, ...]
    threads: int | None
    rounds: int
    against: str | None
    json: Path | None


def bench(o: Options) -> None:
    """Compile (or load), run in turns, print the figures."""
    _check(o)
    given = read_npz(o.inputs) if o.inputs is not None else None
    threads = o.threads or available()
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = o.program or _compiled(o, Path(folder) / "model.d1x", facts)
        facts |= _ready(path, given, Path(folder) / "inputs.npz")
        frozen = {} if o.program is not None else freeze_of(o.freeze)
        result = measure(path, o.model, Path(folder) / "inputs.npz", frozen, threads, o.rounds, o.against)
    result = {"model": o.model.name, **facts, **result}
    print("\n".join(lines(result)))
    if o.json is not None:
        write_json(o.json, result)


def _check(o: Options) -> None:
    if o.model.suffix == ".d1x":
        raise UsageError(
            f"{o.model} is a compiled program",
            rule="d1c bench takes an ONNX model, which onnxruntime can read too",
            remedy=f"d1c bench MODEL.onnx --program {o.model}",
        )
    if o.against is not None and o.against not in PEERS:
        raise UsageError(f"--against {o.against}: there is no such peer", remedy=f"peers are {', '.join(PEERS)}")
    if o.against is not None and importlib.util.find_spec(o.against) is None:
        raise UsageError(
            f"--against {o.against}: it is not installed", remedy="pip install 'd1c[bench]', or leave --against out"
        )
    if o.program is not None and (o.shapes or o.dims or o.freeze):
        raise UsageError(
            "--shape, --dim and --freeze say how to compile, but --program is compiled already",
            rule="both sides run with the shapes that the program was compiled for",
            remedy="leave --shape, --dim and --freeze out, or --program",
        )
    check_outputs(o.json, inputs=(o.model, o.inputs, o.program))


def _compiled(o: Options, path: Path, facts: dict[str, Any]) -> Path:
    """The model compiled into `path`; `facts` gets what that took."""
    import d1c.api as api

    with progress("compiling", len(api.STAGES)) as tell, timed(facts, "compile_seconds"):
        program = api.compile(
            o.model, target=o.target, precision=o.precision, shapes=shapes_of(o.shapes), dims=dims_of(o.dims),
            freeze=freeze_of(o.freeze), progress=tell,
        )  # fmt: skip
    with progress("writing"):
        program.save(path)
    facts["compile_peak_rss_bytes"] = peak_memory()
    return path


def _ready(path: Path, given: dict[str, np.ndarray] | None, place: Path) -> dict[str, Any]:
    """Check the inputs against the program in `path`, or make some, and write them where both sides read them."""
    import numpy as np

    import d1rt

    with progress("loading"):
        loaded = d1rt.load(path)
    inputs = made_up(loaded.inputs) if given is None else given
    loaded.check_inputs(inputs)
    np.savez(place, **inputs)  # type: ignore[arg-type]
    info, machine = loaded.program.info, loaded.program.machine
    batch = next((p.shape[0] for p in loaded.inputs.values() if p.shape), 1)
    return {
        "target": str(machine["name"]),
        "precision": str(info.get("precision", "")),
        "batch": int(batch),
        "inputs_made_up": given is None,
    }


def made_up(ports: Mapping[str, Port]) -> dict[str, np.ndarray]:
    """Inputs for ports: normally distributed floats, zeros of all else, which every index and length allows."""
    import numpy as np

    from d1c.target.dtypes import dtype

    rng = np.random.default_rng(0)
    out = {}
    for name, p in ports.items():
        kind = dtype(p.dtype).numpy
        floats = dtype(p.dtype).kind == "float"
        out[name] = rng.standard_normal(p.shape).astype(kind) if floats else np.zeros(p.shape, kind)
    return out


def measure(
    program: Path, model: Path, inputs: Path, frozen: Mapping[str, Any], threads: int, rounds: int, against: str | None
) -> dict[str, Any]:
    """The JSON's figures: `rounds` rounds of one run of each side, behind one run of each that is told apart."""
    sides: list[Side] = []
    try:
        with progress("warming up"):
            ours = Side(Emulated(program, inputs, threads))
            sides.append(ours)
            peer = Side(Peer(model, inputs, frozen, threads)) if against else None
            sides += [peer] if peer is not None else []
            for side in sides:
                side.start()
        turns = [(ours, "run"), *([(peer, "run")] if peer else []), *([(ours, "alone")] if ours.facts["alone"] else [])]
        seconds: list[list[float]] = [[] for _ in turns]
        with progress("running", rounds) as tell:
            for i in range(rounds):
                tell(f"round {i + 1} of {rounds}")
                for taken, (side, what) in zip(seconds, turns, strict=True):
                    taken.append(side.turn(what))
        ends = [side.stop() for side in sides]
    finally:
        for side in sides:
            side.kill()
    figures = {(s is peer, what): taken for taken, (s, what) in zip(seconds, turns, strict=True)}
    out: dict[str, Any] = {"threads": threads, "rounds": rounds, "host": ours.facts["host"]}
    out |= _spread("d1c", figures[False, "run"]) | _spread("bound", figures.get((False, "alone")))
    out |= _spread("peer", figures.get((True, "run")))
    theirs, mine = out["peer_ms"], out["d1c_ms"]
    out |= {
        "ratio": theirs / mine if theirs else None,
        "bound_ratio": theirs / out["bound_ms"] if theirs and out["bound_ms"] else None,
        "peak_rss_bytes": ends[0],
        "load_seconds": ours.facts["load_seconds"],
        "engine_seconds": ours.facts["engine_seconds"],
        "warm_up_ms": ours.facts["warm_up_seconds"] * 1e3,
        "kernels": ours.facts["kernels"],
        "kernels_compiled": ours.facts["compiled"],
        "peer": against and f"{against} {peer.facts['version']}" if peer else None,
        "peer_peak_rss_bytes": ends[1] if peer else None,
        "peer_warm_up_ms": peer.facts["warm_up_seconds"] * 1e3 if peer else None,
    }
    return out


def _spread(name: str, seconds: list[float] | None) -> dict[str, float | None]:
    """Median, least and greatest in milliseconds."""
    if not seconds:
        return {f"{name}_ms": None, f"{name}_ms_min": None, f"{name}_ms_max": None}
    ms = [s * 1e3 for s in seconds]
    return {f"{name}_ms": statistics.median(ms), f"{name}_ms_min": min(ms), f"{name}_ms_max": max(ms)}


def lines(r: Mapping[str, Any]) -> list[str]:
    """The report, a line each."""
    host, count = r["host"], "1 thread" if r["threads"] == 1 else f"{r['threads']} threads"
    out = [
        f"{r['model']} on {r['target']}, {r['precision'] or 'as written'}, batch {r['batch']}"
        + (", inputs made up" if r["inputs_made_up"] else ""),
        f"host: {host['cpu']} ({', '.join(host['features']) or 'no vector units known'}), {host['processors']} "
        f"processors, {count}, {r['rounds']} rounds in turns",
        f"{'milliseconds':24} {'median':>10} {'least':>10} {'most':>10}",
    ]
    rows = [("d1c", "emulator"), ("bound", "its kernels alone"), ("peer", str(r["peer"]))]
    for key, title in rows:
        if r[f"{key}_ms"] is not None:
            figures = (r[f"{key}_ms{end}"] for end in ("", "_min", "_max"))
            out.append(f"{title:24} " + " ".join(f"{x:10,.2f}" for x in figures))
    if r["ratio"] is not None:
        bound = f"; {r['bound_ratio']:.2f} if only kernels took time" if r["bound_ratio"] is not None else ""
        types = "" if r["precision"] == "f32" else f" ({r['precision'] or 'types as written'} here, the model's there)"
        out.append(f"ratio {r['ratio']:.2f}: {r['peer']}'s time over the emulator's, above 1 is faster{types}{bound}")
    compiled = f"compiled in {r['compile_seconds']:.1f} s, " if "compile_seconds" in r else ""
    out.append(
        f"{compiled}loaded in {r['load_seconds']:.2f} s, engine made in {r['engine_seconds']:.2f} s "
        f"({r['kernels']} kernels, {r['kernels_compiled']} not from the cache), first run {r['warm_up_ms']:,.1f} ms"
    )
    theirs = f", {r['peer_peak_rss_bytes'] / 1e6:,.0f} MB of {r['peer']}" if r["peer"] else ""
    made = f", {r['compile_peak_rss_bytes'] / 1e6:,.0f} MB while compiling" if "compile_peak_rss_bytes" in r else ""
    out.append(f"peak memory: {r['peak_rss_bytes'] / 1e6:,.0f} MB to load and run{made}{theirs}")
    return out
