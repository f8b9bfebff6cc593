"""What the benchmark scripts ask of the timing engines."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def event_cycles(program: Any) -> int | None:
    """The event-driven time of a program, None where the engine is not there."""
    if importlib.util.find_spec("d1rt.events") is None:
        return None
    return int(importlib.import_module("d1rt.events").run(program).cycles)
