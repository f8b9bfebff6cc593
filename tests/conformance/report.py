"""docs/conformance.md, and the counts that it and docs/ops.md follow from: d1c/frontend/conformance.json.

`python -m tests.conformance.report` writes both from the outcomes of a complete slow run with the sources as they are;
`pytest tests/conformance -m slow --conformance-report` does so at its end.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from tests.conformance import results
from tests.conformance.cases import CATEGORIES, Case, collect
from tests.conformance.exceptions import exceptions, exempt
from tests.conformance.recomputed import reasons
from tests.conformance.run import STATUSES, Outcome

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "d1c" / "frontend" / "conformance.json"
PAGE = ROOT / "docs" / "conformance.md"
CACHE = ROOT / ".pytest_cache" / "d" / "conformance"

PEERS = ("reference", "onnxruntime", "openvino", "tinygrad", "IREE", "TVM")
PEER_PASSES = {
    "plain": (1861, 1512, 1530, 1436, 1235, 869),
    "control": (23, 28, 9, 1, 4, 1),
    "dynamic": (23, 11, 20, 5, 8, 13),
    "sequence": (41, 31, 8, 13, 6, 11),
    "text": (44, 27, 0, 0, 7, 0),
    "ml": (8, 8, 0, 2, 0, 0),
    "optimizer": (7, 0, 0, 9, 0, 0),
    "training": (8, 4, 2, 8, 2, 1),
    "random": (0, 0, 0, 0, 0, 0),
    "low": (164, 48, 32, 0, 20, 2),
    "wrong": (13, 22, 136, 39, 32, 129),
}
"""Passed cases per category, measured with onnx 1.23.2, onnxruntime 1.31.1, openvino 2026.4.1, tinygrad 0.14.0,
iree-base-compiler 3.13.0, apache-tvm 0.27.0.post1. "low": those with low-precision types; "wrong": false answers."""


# ---- counts ----------------------------------------------------------------------------------------------------------


def setting(case: Case) -> tuple[str, str]:
    """Machine and engine of the run that counts for the case."""
    return ("d1-tile", "jit") if case.kind == "real" else ("test", "numpy")


def gather(cases: Sequence[Case], known: dict[str, Outcome]) -> dict[str, Any]:
    """The data of conformance.json. ValueError where outcomes are missing."""
    found = {c: known.get(results.key(c, *setting(c))) for c in cases}
    missing = [c.node for c, o in found.items() if o is None]
    if missing:
        raise ValueError(f"{len(missing)} of {len(cases)} cases have not run with these sources, as {missing[0]}")
    outcomes = {c: o for c, o in found.items() if o is not None}
    ops: dict[str, list[int]] = {}
    for c, o in outcomes.items():
        for domain, op in c.ops:
            row = ops.setdefault(f"{domain}.{op}" if domain not in ("", "ai.onnx") else op, [0, 0, 0])
            row[0] += o.status == "passed"
            row[1] += o.status == "folded"
            row[2] += 1
    samples = {}
    for machine, engine in (("test", "jit"), ("d1-die", "jit")):
        rows = [o for c in cases if (o := known.get(results.key(c, machine, engine))) is not None]
        samples[f"{machine}, {engine}"] = _counts(rows)
    return {
        "onnx": onnx.__version__,
        "categories": {name: _counts(o for c, o in outcomes.items() if c.category == name) for name in CATEGORIES},
        "low_precision": _counts(o for c, o in outcomes.items() if c.low_precision),
        "real": _counts(o for c, o in outcomes.items() if c.kind == "real"),
        "larger": sorted(c.node for c, o in outcomes.items() if o.extra.get("ran_on")),
        "frozen": sum(bool(o.frozen) for o in outcomes.values()),
        "samples": samples,
        "not_passed": {c.node: o.status for c, o in outcomes.items() if o.status != "passed"},
        "ops": dict(sorted(ops.items())),
    }


def _counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    rows = list(outcomes)
    status = Counter(o.status for o in rows)
    return {"cases": len(rows), **{s: status[s] for s in STATUSES}, "host": sum(bool(o.host) for o in rows)}


@functools.cache
def recorded() -> dict[str, Any]:
    """What conformance.json says."""
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def recorded_status(case: Case) -> str | None:
    """The status of a case in the committed counts; None without them, or where they are of another onnx."""
    if not DATA.exists() or recorded()["onnx"] != onnx.__version__:
        return None
    return str(recorded()["not_passed"].get(case.node, "passed"))


def write(folder: Path) -> str:
    """Write both files; what was done, or why not."""
    try:
        data = gather(collect(folder), results.read(folder))
    except ValueError as error:
        return f"conformance report not written: {error}"
    DATA.write_text(_json(data), encoding="utf-8")
    PAGE.write_text(page(data), encoding="utf-8")
    return f"wrote {PAGE.relative_to(ROOT)} and {DATA.relative_to(ROOT)}"


def _json(data: dict[str, Any]) -> str:
    """JSON with one line per case and op."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        elif isinstance(value, list):
            lines.append(f" {json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


# ---- the page --------------------------------------------------------------------------------------------------------


def page(data: dict[str, Any]) -> str:
    """The text of docs/conformance.md."""
    categories = data["categories"]
    total = {k: sum(row[k] for row in categories.values()) for k in next(iter(categories.values()))}
    head = ("category", "cases", "d1c: passed on cores", "folded", "refused", "wrong", "host", *PEERS)
    rows = [_row(CATEGORIES[name], counts, PEER_PASSES[name]) for name, counts in categories.items()]
    sums = [sum(PEER_PASSES[name][i] for name in CATEGORIES) for i in range(len(PEERS))]
    rows.append(_row("**all**", total, sums))
    rows.append(_row("of these low-precision types", data["low_precision"], PEER_PASSES["low"]))
    wrong = ["**wrong values** (answers, but false)", "", "", "", "", str(total["wrong"]), ""]
    rows.append([*wrong, *map(str, PEER_PASSES["wrong"])])
    parts = [
        "# Conformance",
        "Generated by `pytest tests/conformance -m slow --conformance-report`; edits here are lost.",
        f"The official suite inside onnx {data['onnx']}: {total['cases']} cases with inputs and expected outputs. Each "
        "one is imported, compiled for the machine `test` (16 cores of 64 KiB; the real networks for the whole tile, "
        f"and {len(data['larger'])} cases that need more memory for a die) with values stored in the model's own "
        "types, and executed core by core on the emulator. Tolerances are the "
        "suite's own; types and shapes must be the same, integers and booleans to the bit.",
        _table(head, rows),
        "- *passed on cores*: the expected values, computed by the emulated cores.\n"
        "- *folded*: the expected values, but nothing is left to compute: all nodes are constant once the shapes and "
        "the operands that decide shapes are known. Never counted as passed.\n"
        "- *refused*: one typed refusal, with the node and the reason, before anything runs.\n"
        "- *host*: cases in which a node ran at compile time on the values of a run-time input that decides no shape. "
        f"In {data['frozen']} cases inputs that decide shapes (axes, shapes, pads, repeats ...) became constants at "
        "the first run, as the rows of their ops say (`static` in docs/ops.md).\n"
        f"- Crashes: {total['crash']}; cases over the time limit: {total['timeout']}.",
        "Random ops and Dropout in training mode draw other numbers than the suite's expected ones: checked are type, "
        "shape and the relative frequencies over 16,384 draws; of random ops also that the same program gives the same "
        "bits again. "
        f"The {data['real']['cases']} "
        f"real networks ({data['real']['passed']} pass) are those of the suite with constants for weights.",
        "Of the peers, the numbers of passed cases on the same suite. The compiler with the highest number that we "
        "know of is emx-onnx-cgen 1.4.0 (ONNX to C for CPUs, values within 100 ULP) with 1,914.",
        "## Samples on other engines and machines",
        _table(("machine, engine", "cases", "passed", "folded", "refused", "wrong"), (
            [name, *(str(row[k]) for k in ("cases", "passed", "folded", "refused", "wrong"))]
            for name, row in data["samples"].items()
        )),
        "## What is refused, and why",
        _table(("cases", "category", "reason"), (
            [", ".join(f"`{p}`" for p in e.cases), CATEGORIES[e.category].split(" (")[0], e.reason]
            for e in exceptions()
        )),
    ]  # fmt: skip
    parts += [
        "## Expected values that are noise",
        "These cases are judged by values computed anew in double precision, with the suite's tolerances.",
        _table(("cases", "reason"), ([", ".join(f"`{p}`" for p in cases), why] for cases, why in reasons())),
    ]
    unlisted = {n: s for n, s in data["not_passed"].items() if s != "folded" and not exempt(n.partition("/")[2])}
    if unlisted:
        parts += ["## Failures that are not listed", "\n".join(f"- `{n}`: {s}" for n, s in unlisted.items())]
    folded = sorted(n.partition("/")[2] for n, s in data["not_passed"].items() if s == "folded")
    parts += ["## Folded cases", ", ".join(f"`{n}`" for n in folded) or "None."]
    return "\n\n".join(parts) + "\n"


def _row(name: str, counts: dict[str, int], peers: Sequence[int]) -> list[str]:
    return [
        name,
        *(str(counts[k]) for k in ("cases", "passed", "folded", "refused", "wrong", "host")),
        *map(str, peers),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(r)} |" for r in rows)])


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE))
