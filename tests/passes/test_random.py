"""Random graphs: passes that move and group operations change no value."""

from __future__ import annotations

import numpy as np
import pytest

from d1c.interp import evaluate
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.types import TensorType
from d1c.ir.verify import verify
from d1c.ops.opdef import opdef
from d1c.pipeline import PASSES
from d1c.target.dtypes import F32


class Grower:
    """Appends random operations; sums of small integers and maxima are exact in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        shapes = [(2, 3, 4), (2, 3, 4), (4, 1), (1, 2, 1, 3)]
        self.args = tuple(Value(TensorType(s, F32), f"x{i}") for i, s in enumerate(shapes))
        self.values = list(self.args)
        self.ops: list[Op] = []
        self.constants: dict[str, np.ndarray] = {}

    def emit(self, name: str, *operands: Value, **attrs: object) -> None:
        row = opdef(name)
        made = row.attrs(**attrs)
        (t,) = row.infer(tuple(v.type for v in operands), made)
        if t.size > 4096:
            return
        result = Value(t)
        self.ops.append(Op(name, operands, made, (result,)))
        self.values.append(result)

    def pick(self) -> Value:
        recent = self.values[-6:] if self.rng.random() < 0.7 else self.values
        return recent[self.rng.integers(len(recent))]

    def step(self) -> None:
        rng, x = self.rng, self.pick()
        shape = x.type.shape
        rank = len(shape)
        match rng.integers(10):
            case 0 | 1:
                self.emit("graph.transpose", x, perm=tuple(int(i) for i in rng.permutation(rank)))
            case 2:
                self.emit("graph.reshape", x, shape=self.factored(int(np.prod(shape))))
            case 3:
                axes = (
                    tuple(sorted(int(a) for a in rng.choice(rank, rng.integers(1, rank + 1), replace=False)))
                    if rank
                    else ()
                )
                if axes:
                    self.emit("graph.reduce_max", x, axes=axes, keepdims=bool(rng.integers(2)))
            case 4:
                n = tuple(int(rng.integers(1, d + 1)) for d in shape)
                starts = tuple(int(rng.integers(0, d - k + 1)) for d, k in zip(shape, n, strict=True))
                self.emit("graph.slice", x, starts=starts, steps=(1,) * rank, sizes=n)
            case 5 if rank:
                axis = int(rng.integers(rank))
                same = [v for v in self.values if v.type.shape == shape]
                self.emit("graph.concat", x, same[rng.integers(len(same))], axis=axis)
            case 6 if rank:
                lo, hi = (tuple(int(i) for i in rng.integers(0, 2, rank)) for _ in range(2))
                self.emit("graph.pad", x, lo=lo, hi=hi, value=1.0)
            case 7:
                name = f"c{len(self.constants)}"
                cut = shape[int(rng.integers(rank + 1)) :]
                cut = tuple(1 if rng.random() < 0.5 else n for n in cut)
                self.constants[name] = rng.integers(-3, 4, cut).astype(np.float32)
                value = Value(TensorType(cut, F32), name)
                self.ops.append(Op("graph.const", (), opdef("graph.const").attrs(name=name), (value,)))
                self.emit("graph.sub", x, value)
            case _:
                for y in (self.pick(), x):
                    try:
                        self.emit(str(rng.choice(["graph.add", "graph.max", "graph.sub"])), x, y)
                        return
                    except ValueError:
                        self.emit("graph.neg", x)

    def factored(self, n: int) -> tuple[int, ...]:
        out = [1] * int(self.rng.integers(0, 2))
        while n > 1:
            divisors = [d for d in range(2, n + 1) if n % d == 0]
            out.append(int(self.rng.choice(divisors)))
            n //= out[-1]
        return tuple(out) if self.rng.random() < 0.5 else (*out, 1)

    def module(self) -> Module:
        used = {v for op in self.ops for v in op.operands}
        results = tuple(v for v in self.values if v not in used and v not in self.args)[-4:] or (self.values[-1],)
        block = Block(self.args, (*self.ops, Op("graph.return", results)))
        names = tuple(f"y{i}" for i in range(len(results)))
        return Module("graph", (Function("main", block),), self.constants, {"outputs": names})


CHAINS = (
    ["simplify-views"],
    ["sink-transposes"],
    ["fuse"],
    ["fold-constants"],
    ["sink-transposes", "fuse", "precision", "pack-operands"],
)


@pytest.mark.parametrize("names", CHAINS, ids="+".join)
def test_random_graphs_keep_their_values(names: list[str]) -> None:
    for seed in range(60):
        grower = Grower(seed)
        for _ in range(25):
            grower.step()
        module = after = grower.module()
        verify(module)
        for name in names:
            after = PASSES[name].run(after)
            verify(after, after=name)
        inputs = {a.name: grower.rng.integers(-8, 9, a.type.shape).astype(np.float32) for a in grower.args}
        want, got = evaluate(module, inputs), evaluate(after, inputs)
        for key, value in want.items():
            np.testing.assert_array_equal(got[key], value, err_msg=f"seed {seed}")
