"""Graphs that once failed: NAME.onnx, and NAME.npz with its inputs (`in.*`), expected outputs (`out.*`), tolerances
(`tol.*`) and elements that are not compared (`undefined.*`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx

from tests.fuzz.check import Verdict
from tests.fuzz.oracle import Expected, Reject, evaluate_graph
from tests.fuzz.spec import Graph

FOLDER = Path(__file__).parent


def save(graph: Graph, seed: int, verdict: Verdict, folder: Path = FOLDER) -> str:
    """Write the graph; its name: the ops and a digest."""
    try:
        want = evaluate_graph(graph, seed, versions=24, slack=12.0)
    except Reject:
        return ""
    model = graph.model({name: e.value for name, e in want.items()})
    model.doc_string = f"{verdict.status}: {verdict.reason}"
    arrays = {f"in.{k}": v for k, v in graph.inputs.items()}
    for name in graph.outputs:
        e = want[name]
        arrays |= {f"out.{name}": e.value, f"tol.{name}": e.tolerance, f"undefined.{name}": e.undefined}
    digest = hashlib.sha256(str(graph).encode()).hexdigest()[:8]
    name = "_".join([*dict.fromkeys(n.op for n in graph.nodes)][:4] + [digest]).lower()
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / f"{name}.onnx")
    np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return name


def load(path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, Expected]]:
    """Model, inputs and what its outputs should be."""
    data = np.load(path.with_suffix(".npz"))
    inputs = {k.removeprefix("in."): data[k] for k in data.files if k.startswith("in.")}
    names = [k.removeprefix("out.") for k in data.files if k.startswith("out.")]
    want = {n: Expected(data[f"out.{n}"], data[f"tol.{n}"], data[f"undefined.{n}"]) for n in names}
    return onnx.load(path), inputs, want
