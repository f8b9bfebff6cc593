"""Temporary: freezing at the first run, until d1c.backend does it by itself."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from d1c import api, backend
from d1c.errors import D1Error


class Rep:
    def __init__(self, model: Any, target: str, precision: str, engine: str) -> None:
        self.real = backend.D1Rep(model, target, precision, engine)
        self.model, self.target, self.engine = model, target, engine
        self.inputs, self.outputs = self.real.inputs, self.real.outputs
        self.programs: dict[Any, api.Program] = {}
        self.frozen: dict[str, np.ndarray] = {}

    def run(self, inputs: Any) -> list[Any]:
        named = dict(zip(self.inputs, [np.asarray(x) for x in inputs], strict=True))
        while True:
            shapes = {k: v.shape for k, v in named.items() if k not in self.frozen}
            try:
                p = api.compile(self.model, target=self.target, precision="f32", shapes=shapes, freeze=self.frozen)
                break
            except D1Error as e:
                names = getattr(e, "inputs", ()) or re.findall(r"\('([^']*)'\) is known at run time only", str(e))
                names = [n for n in names if n in named and n not in self.frozen]
                if not names:
                    raise
                self.frozen |= {n: named[n] for n in names}
        self.programs[len(self.programs)] = p
        out = p.run({k: v for k, v in named.items() if k not in self.frozen}, engine=self.engine)
        return [out[n] for n in self.outputs]
