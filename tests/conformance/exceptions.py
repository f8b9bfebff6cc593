"""The one list of cases that may be refused: exceptions.toml."""

from __future__ import annotations

import fnmatch
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

PLAIN_LIMIT = 15
"""Plain-tensor cases that the list may have."""


@dataclass(frozen=True, slots=True)
class Exempt:
    """`cases`: patterns of case names. `category`: one of cases.CATEGORIES, that of all of them."""

    cases: tuple[str, ...]
    category: str
    reason: str

    def covers(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.cases)


@functools.cache
def exceptions() -> tuple[Exempt, ...]:
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Exempt(tuple(e["cases"]), e["category"], e["reason"]) for e in data["exception"])


def exempt(name: str) -> Exempt | None:
    """The entry for a case, if it has one."""
    return next((e for e in exceptions() if e.covers(name)), None)
