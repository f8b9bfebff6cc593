"""What could be done about a model that does not fit, found out by doing it.

The model is compiled again in bf16, with a smaller batch, for larger targets, and with two changes at once where no
single one is enough; of those only what fits is offered, with its cost. A trial starts only within SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d1c.errors import D1Error, DoesNotFit
from d1c.ir.core import Module
from d1c.target.machine import PRESETS, Machine

SECONDS = 60.0
"""No trial starts later than this after the first."""


@dataclass(frozen=True)
class Trials:
    """What was compiled, and what it was compiled for: see `d1c.api.compile`."""

    model: Any
    machine: Machine
    precision: str
    shapes: Mapping[str, Sequence[int] | None]
    dims: Mapping[str, int]
    freeze: Mapping[str, Any]

    def __call__(self, error: DoesNotFit, progress: Callable[[str], None]) -> None:
        """Fill in the error's `remedies` and `tried`, one by one."""
        started = time.monotonic()

        def fits(change: str, trial: Trials) -> bool:
            if time.monotonic() - started > SECONDS:
                return False
            progress(change)
            error.tried = (*error.tried, change)
            found = trial.cost()
            if found is not None:
                error.remedies = (*(error.remedies or ()), {"change": change, **found})
            return found is not None

        narrow = list(self.narrower())
        small = list(self.smaller())
        large = list(self.larger())
        any(fits(c, t) for c, t in narrow)
        if small and fits(*small[0]):  # the smallest batch fits: how much of it does?
            any(fits(c, t) for c, t in reversed(small[1:]))
        any(fits(c, t) for c, t in large)
        if not error.remedies:
            both = ((f"{a}, {b}", u) for a, t in narrow for b, u in (*list(t.smaller())[:1], *t.larger()))
            any(fits(c, t) for c, t in both)
        if not error.remedies:
            any(fits(f"{a}, {b}", u) for a, t in small[:1] for b, u in t.larger())

    def narrower(self) -> Iterator[tuple[str, Trials]]:
        """In bf16."""
        if self.precision == "f32" and not (isinstance(self.model, Module) and "precision" in self.model.attrs):
            yield "--precision bf16", replace(self, precision="bf16")

    def smaller(self) -> Iterator[tuple[str, Trials]]:
        """With batch 1, a quarter and half of the batch, if the first dim of inputs is the caller's to choose."""
        if isinstance(self.model, Module):
            return
        names = self.batch_names()
        sizes = [*(v for n, v in self.dims.items() if n in names), *(s[0] for s in self.shapes.values() if s)]
        batch = max(sizes, default=1)
        for size in sorted({1, batch // 4, batch // 2} - {0, batch}):
            if batch > 1:
                dims = {n: size if n in names and v == batch else v for n, v in self.dims.items()}
                shapes = {n: (size, *s[1:]) if s and s[0] == batch else s for n, s in self.shapes.items()}
                yield f"batch {size}", replace(self, dims=dims, shapes=shapes)

    def batch_names(self) -> set[str]:
        """The symbols that stand first in an input's shape."""
        from d1c.frontend.load import load_model

        inputs = load_model(self.model).graph.input
        first = (i.type.tensor_type.shape.dim[0] for i in inputs if i.type.tensor_type.shape.dim)
        return {d.dim_param for d in first if d.dim_param}

    def larger(self) -> Iterator[tuple[str, Trials]]:
        """For the presets with more SRAM, the smallest first."""
        have = self.machine.cores * self.machine.sram_bytes
        for m in sorted(PRESETS.values(), key=lambda m: m.cores * m.sram_bytes):
            if m.cores * m.sram_bytes > have:
                yield f"--target {m.name}", replace(self, machine=m)

    def cost(self) -> dict[str, Any] | None:
        """What the compiled program costs; None where it does not fit, or cannot be compiled so."""
        from d1c.api import compile

        try:
            made = compile(
                self.model, target=self.machine, precision=self.precision, shapes=self.shapes, dims=self.dims,
                freeze=self.freeze,
            )  # fmt: skip
        except D1Error:
            return None
        cycles = int(made.summary()["cycles"])
        return {
            "target": self.machine.name,
            "precision": made.precision,
            "cycles": cycles,
            "time_us": self.machine.seconds(cycles) * 1e6,
            "sram_peak_bytes": int(made.target.info["sram_peak_bytes"]),
            "sram_bytes": self.machine.sram_bytes,
        }
