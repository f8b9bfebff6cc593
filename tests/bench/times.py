"""What the benchmark scripts ask of the timing engines."""

from __future__ import annotations

from typing import Any

from d1rt.events import Segment, Simulator, simulate


def event_cycles(program: Any) -> int:
    """The event-driven time of a program."""
    return Simulator(program).cycles()


def critical_path(program: Any) -> tuple[int, list[str]]:
    """The event-driven time, and its critical path as lines: neighbours of one layer and kind are one line."""
    found = simulate(program)
    merged: list[Segment] = []
    lines = []
    for s in [*found.path, None]:
        if merged and (s is None or (s.layer, s.what) != (merged[0].layer, merged[0].what)):
            a, b = merged[0], merged[-1]
            name = program.layers[a.layer]["name"] if 0 <= a.layer < len(program.layers) else a.origin
            lines.append(f"{a.begin:8,} to {b.end:8,}: {a.what}, {name}, core {b.core}")
            merged = []
        if s is not None:
            merged.append(s)
    return int(found.total["cycles"]), lines
