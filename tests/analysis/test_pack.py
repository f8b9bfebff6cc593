"""Addresses: no overlap, the least peak where that can be counted out, and what a program uses when it runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from d1c.analysis.epochs import ALIGN
from d1c.analysis.pack import live_bytes, pack
from d1c.errors import D1Error
from d1c.passes import distribute, lower_tile
from d1c.target.machine import Machine, machine
from d1c.target.program import Buffer, Program
from d1rt import engine_numpy
from d1rt.state import Core
from tests.levels.nets import NETS, graph_of


@dataclass(frozen=True)
class Box:
    bytes: int
    first: int
    last: int


def check(boxes: list[Box]) -> int:
    """The peak, after a look at every pair of boxes."""
    at, peak = pack(boxes)
    assert (at, peak) == pack(boxes)
    assert peak == max((a + b.bytes for a, b in zip(at, boxes, strict=True)), default=0)
    assert live_bytes(boxes) <= peak
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert at[i] + a.bytes <= at[j] or at[j] + b.bytes <= at[i]
    return peak


def least_peak(boxes: list[Box]) -> int:
    """By trying all addresses of all boxes."""

    def fits(taken: np.ndarray, rest: list[Box]) -> bool:
        if not rest:
            return True
        b = rest[0]
        for at in range(taken.shape[0] - b.bytes + 1):
            part = taken[at : at + b.bytes, b.first : b.last + 1]
            if not part.any():
                part[:] = True
                if fits(taken, rest[1:]):
                    return True
                part[:] = False
        return False

    peak = max(sum(b.bytes for b in boxes if b.first <= e <= b.last) for e in range(9))
    while not fits(np.zeros((peak, 1 + max(b.last for b in boxes)), bool), boxes):
        peak += 1
    return peak


def random_boxes(rng: random.Random, count: int, epochs: int, most: int) -> list[Box]:
    out = []
    for _ in range(count):
        first = rng.randrange(epochs)
        out.append(Box(rng.randint(1, most), first, min(epochs - 1, first + int(rng.expovariate(4 / epochs)))))
    return out


def test_small_ones_are_exact() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        boxes = random_boxes(rng, rng.randint(1, 6), rng.randint(1, 4), 3)
        assert check(boxes) == least_peak(boxes), seed


@pytest.mark.parametrize("count, epochs", [(30, 6), (120, 20), (300, 8)])
def test_large_ones_are_near_the_bound(count: int, epochs: int) -> None:
    for seed in range(2):
        boxes = random_boxes(random.Random(seed), count, epochs, 1000)
        assert check(boxes) <= 1.05 * live_bytes(boxes)


def test_nothing_and_what_always_lives() -> None:
    assert pack([]) == ([], 0)
    assert pack([Box(5, 0, 3), Box(7, 0, 3), Box(0, 1, 2)]) == ([0, 5, 12], 12)


class Watched(Core):
    """A core that remembers the buffers that were ever in use, and how many bytes were at once."""

    used: dict[int, int]

    def __init__(self, number: int, sram_bytes: int) -> None:
        super().__init__(number, sram_bytes)
        self.live: dict[str, int] = {}
        self.end, self.most = 0, 0

    def mark(self, b: Buffer, offsets: np.ndarray, state: int) -> None:
        super().mark(b, offsets, state)
        if offsets.size:
            self.live[b.name] = -(-b.bytes // ALIGN) * ALIGN
            self.end = max(self.end, b.address + self.live[b.name])
            self.most = max(self.most, sum(self.live.values()))

    def free(self, b: Buffer) -> None:
        super().free(b)
        self.live.pop(b.name, None)


def small(module: object, target: Machine) -> list[Program]:
    """The program with all SRAM that it wants and, if that compiles, with less: then addresses are used again."""
    out = [lower_tile.run(distribute.run(module, target), target).program]  # type: ignore[arg-type]
    less = replace(target, sram_bytes=out[0].info["sram_peak_bytes"] * 3 // 4 // ALIGN * ALIGN, code_reserve_bytes=0)
    try:
        out.append(lower_tile.run(distribute.run(module, less), less).program)  # type: ignore[arg-type]
    except D1Error:
        pass
    return out


@pytest.mark.parametrize("policy", ["f32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_the_peak_is_that_of_the_run(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte; and near the liveness bound, which no moment of the run exceeds."""
    monkeypatch.setattr(engine_numpy, "Core", Watched)
    module, inputs = graph_of(name, policy)
    for program in small(module, machine("test")):
        run = engine_numpy._Run(engine_numpy.Engine(program), inputs)
        run.run()
        cores = [c for c in run.cores if isinstance(c, Watched)]
        assert max(c.end for c in cores) == program.info["sram_data_bytes"]
        assert max(c.most for c in cores) <= program.info["sram_live_bytes"]
        assert program.info["sram_data_bytes"] <= 1.05 * program.info["sram_live_bytes"]
