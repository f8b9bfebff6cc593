"""d1c: compiles neural networks (ONNX) to programs for a Tesla Dojo D1 training tile.

Importing the package is cheap; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d1c.api import Program, compile, import_onnx, lower
    from d1c.ir.text import parse

__version__ = "0.1.0"
__all__ = ["Program", "__version__", "compile", "import_onnx", "lower", "parse"]


def __getattr__(name: str) -> Any:
    """The public functions at their first use; compiling needs no parser."""
    if name in __all__:
        value = getattr(importlib.import_module("d1c.ir.text" if name == "parse" else "d1c.api"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'd1c' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
