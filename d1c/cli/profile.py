"""`d1c compile --profile`: where the time of a compilation went, pass by pass, and within passes by sampling.

A thread looks at the compiling thread's stack some hundred times a second. What lies between two looks counts for the
function calls of d1c that it finds there; a pass's own seconds are measured, not sampled.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL = 0.004
"""Seconds between two looks: some hundred a second cost less than a hundredth."""
SHARE, OF_ALL, DEPTH = 0.1, 0.01, 4
"""Steps are shown down to this share of their pass, this share of everything, and this deep."""
_ROOT = str(Path(__file__).resolve().parents[1]) + "/"


@dataclass(slots=True)
class Node:
    """A call path's seconds, its callees' included."""

    seconds: float = 0.0
    below: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], seconds: float) -> None:
        self.seconds += seconds
        if path:
            self.below.setdefault(path[0], Node()).add(path[1:], seconds)

    def steps(self, least: float, depth: int = 0) -> Iterator[tuple[int, str, float]]:
        """(depth, name, seconds) of the larger callees, largest first. One that is nearly all of its caller stands in
        its place."""
        for name, node in sorted(self.below.items(), key=lambda x: -x[1].seconds):
            if node.seconds < least:
                break
            only = max((n.seconds for n in node.below.values()), default=0.0) > 0.9 * node.seconds
            if not only:
                yield depth, name, node.seconds
            if depth < DEPTH:
                yield from node.steps(least, depth + (not only))


class Sampler:
    """Samples the calling thread between `with` and its end. `tree`: by the frames of d1c, the outermost first."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.tree = Node()
        self._interval, self._of = interval, threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        last = time.perf_counter()
        while not self._end.wait(self._interval):
            frame = sys._current_frames().get(self._of)
            now = time.perf_counter()
            self.tree.add(_path(frame), now - last)
            last = now


def _path(frame: FrameType | None) -> list[str]:
    """The frames of d1c in a stack, from a pass's `run` (or the importer) on: that one as the pass's name."""
    path: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_ROOT):
            module = code.co_filename[len(_ROOT) : -len(".py")].replace("/", ".")
            if code.co_name == "run" and module.startswith("passes."):
                return [module.removeprefix("passes.").replace("_", "-"), *reversed(path)]
            if module.startswith("frontend.") and code.co_name == "import_onnx":
                return ["import", *reversed(path)]
            path.append(f"{module}.{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}")
        frame = frame.f_back
    return []


def profile(tree: Node, passes: Sequence[Mapping[str, Any]], more: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per pass (one that ran more than once: in all) and for `more` (names and seconds): `name`, `seconds`,
    `verify_seconds`, and `steps`: `depth`, `name`, `seconds` of what was seen in it."""
    rows: dict[str, dict[str, Any]] = {}
    for p in passes:
        row = rows.setdefault(p["name"], {"name": p["name"], "runs": 0, "seconds": 0.0, "verify_seconds": 0.0})
        row["runs"] += 1
        row["seconds"] += p["seconds"]
        row["verify_seconds"] += p.get("verify_seconds", 0.0)
    for name, seconds in more.items():
        rows[name] = {"name": name, "runs": 1, "seconds": seconds, "verify_seconds": 0.0}
    whole = sum(r["seconds"] for r in rows.values())
    for row in rows.values():
        node = tree.below.get(row["name"], Node())
        found = node.steps(max(SHARE * row["seconds"], OF_ALL * whole))
        row["steps"] = [{"depth": d, "name": n, "seconds": s} for d, n, s in found]
    return list(rows.values())


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The profile as a table."""
    whole = sum(r["seconds"] + r["verify_seconds"] for r in rows)
    out = [f"{'pass':58} {'seconds':>9} {'verifier':>9} {'share':>6}"]
    for r in rows:
        name = r["name"] + (f" ({r['runs']} times)" if r["runs"] > 1 else "")
        share = (r["seconds"] + r["verify_seconds"]) / whole if whole else 0.0
        out.append(f"{name:58} {r['seconds']:9.3f} {r['verify_seconds']:9.3f} {share:6.1%}")
        out += [f"{'  ' * (s['depth'] + 1) + s['name']:58} {s['seconds']:9.3f}" for s in r["steps"]]
    out.append(f"{'all':58} {whole:9.3f}")
    return "\n".join(out)
