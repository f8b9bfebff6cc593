"""What a core holds when it holds most: for the refusal of a program that does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from d1c.analysis.epochs import Buffer, Step, last_uses

KINDS = {"constant": "constant", "table": "table", "window": "window", "owned": "result"}


def fullest(
    steps: Sequence[Step], buffers: Sequence[Buffer], inputs: Iterable[int], outputs: Iterable[int]
) -> tuple[str, int, tuple[dict[str, Any], ...]]:
    """The layer during which most bytes must be held at once, how many, and the buffers, largest first: name, kind
    (constant, table, window, result), bytes of a core, and the layers `from` and `to` which it is needed."""
    last = last_uses(steps, outputs)
    always = {b for b, x in enumerate(buffers) if x.kind in ("constant", "table")}
    made = {b: _name(s) for s in reversed(steps) for b in s.new}
    live = set(inputs)
    most, where, held = -1, "", set[int]()
    for i, s in enumerate(steps):
        live |= set(s.new) - always
        used = sum(buffers[b].bytes for b in live)
        if used > most:
            most, where, held = used, _name(s), set(live)
        live = {b for b in live if last.get(b, -1) > i}
    held |= always
    rows = []
    for b in sorted(held, key=lambda b: (-buffers[b].bytes, b)):
        end = last.get(b, -1)
        to = "the end" if end >= len(steps) or b in always else _name(steps[end]) if end >= 0 else where
        start = "the start" if b in always else made.get(b, "the start")
        kind = KINDS[buffers[b].kind]
        rows.append({"name": buffers[b].name, "kind": kind, "bytes": buffers[b].bytes, "from": start, "to": to})
    return where, sum(buffers[b].bytes for b in held), tuple(rows)


def _name(s: Step) -> str:
    return s.op.origin or (s.op.results[0].name if s.op.results else s.op.name)
