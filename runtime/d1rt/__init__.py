"""Runs .d1x programs on an emulated wafer; importing this package loads nothing heavy, its modules do so on use.

with d1rt.load("digits.d1x") as program:
    outputs = program.run({"x": x})
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d1c.target.program import Program
    from d1rt.loader import Loaded

__all__ = ["load"]


def load(path_or_program: str | Path | Program) -> Loaded:
    """A program ready to run: from a .d1x, or one in memory. LoadError where it is not well-formed."""
    from d1rt.loader import load as run

    return run(path_or_program)
