"""Outcomes on disk: one JSON line each, with the digest of everything that an outcome depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import d1c
import d1rt
from tests.conformance.cases import Case
from tests.conformance.run import Outcome

FILE = "results.jsonl"


@functools.cache
def sources_digest() -> str:
    """Of the compiler, the runtime and the code that judges."""
    digest = hashlib.sha256()
    for root in (Path(d1c.__file__).parent, Path(d1rt.__file__).parent, Path(__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def key(case: Case, machine: str, engine: str) -> str:
    """The run's identity, and that of what it was made with."""
    return f"{machine}/{engine}/{case.node}/{case.digest}/{sources_digest()}"


def append(folder: Path, case: Case, outcome: Outcome) -> None:
    """One line, in one write: workers share the file."""
    line = json.dumps({"key": key(case, outcome.machine, outcome.engine), **outcome.to_json()}) + "\n"
    handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read(folder: Path) -> dict[str, Outcome]:
    """Key -> the newest outcome."""
    return {k: Outcome.of_json(row) for k, row in _rows(folder / FILE)}


def compact(folder: Path) -> None:
    """Drop the outcomes of other sources, and all but the newest of each run. Only when no test is running."""
    rows = {k: row for k, row in _rows(folder / FILE) if k.endswith(sources_digest())}
    lines = (json.dumps({"key": k, **row}) + "\n" for k, row in rows.items())
    if rows:
        (folder / FILE).write_text("".join(lines), encoding="utf-8")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # an interrupted run
            continue
        yield row.pop("key"), row
