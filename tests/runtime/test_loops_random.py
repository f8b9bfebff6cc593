"""Random programs of nested loops, with and without conditions, around messages and arithmetic: every engine, every way
of keeping memory, against a plain interpreter of what was drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

import d1rt
from d1c.analysis.exchange import exchange
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.target.mesh import CoreInt, Layout
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
    Fill,
    Free,
    Loop,
    Port,
    Post,
    Program,
    Push,
    Role,
    Wait,
)
from d1rt import engine_jit
from tests.runtime.loop_programs import WHOLE, call, made
from tests.runtime.programs import MESH, ONE, QUARTERS, N, const, copy_call, halo_reference

X = np.random.default_rng(3).normal(size=N).astype(np.float32)
BARRIER = Barrier((0, 1), 2)
READY, SENT = 3, 5
XB, W, Y, C, GO, T, D = range(7)


@dataclass
class Drawn:
    """A program and what it means, drawn together. `compute`, `transfer`: the threads so far; `plan`: nested lists of
    "halo" (x = sums of three neighbours), "tick" (c += c), "whole" (x = x turned by one core), ("loop", trips,
    data, plan)."""

    rnd: random.Random
    compute: list[Command] = field(default_factory=list)
    transfer: list[Command] = field(default_factory=list)
    plan: list[object] = field(default_factory=list)

    def ready(self) -> None:
        self.compute.append(Post(READY))
        self.transfer.append(Wait(READY, ONE, relative=True))

    def sent(self) -> None:
        self.transfer.append(Post(SENT))
        self.compute.append(Wait(SENT, ONE, relative=True))

    def halo(self) -> None:
        self.plan.append("halo")
        self.sent()
        self.compute += [Free((W,)), Fill(W, 0, 0.0, 0, "pad"), BARRIER]
        self.ready()
        self.transfer.append(Push(XB, W, 0, 4, 0, "halo"))
        self.compute += [Arrive(0, 4, 0, "halo")]
        self.sent()
        self.compute += [Free((XB,)), Call(1, XB, (W,), const(0), (), const(4, 3), (), (), 0, "halo")]

    def whole(self) -> None:
        """Through a window that all cores have alike."""
        self.plan.append("whole")
        self.sent()
        self.compute += [Free((D,)), BARRIER]
        self.ready()
        self.transfer.append(Push(XB, D, 1, 6, 1, "whole"))
        self.compute += [Arrive(1, 6, 1, "whole")]
        self.sent()
        base = CoreInt(("nr", "nc"), (4, 8, 12, 0))
        self.compute += [Free((XB,)), Call(0, XB, (D,), (base,), (), const(4), (), (), 1, "whole")]

    def tick(self) -> None:
        self.plan.append("tick")
        self.sent()
        self.compute += [call("double", T, C), Free((C,)), copy_call(T, C), Free((T, GO)), call("below", GO, C, n=1)]
        self.ready()

    def loop(self, depth: int) -> None:
        trips, data = self.rnd.choice([0, 1, 2, 3]), self.rnd.random() < 0.6
        body = Drawn(self.rnd)
        body.sent()
        body.draw(depth + 1)
        if data and self.rnd.random() < 0.8:
            body.tick()
        self.ready()
        for mine, inner in ((self.compute, body.compute), (self.transfer, body.transfer)):
            mine.append(Loop(tuple(inner), trips, GO if data else -1))
        self.sent()
        self.plan.append(("loop", trips, data, body.plan))

    def draw(self, depth: int) -> None:
        for _ in range(self.rnd.randint(1, 3)):
            kinds = [self.halo, self.whole, self.tick]
            if depth < 3:
                kinds += [lambda: self.loop(depth)] * 3
            self.rnd.choice(kinds)()

    def program(self) -> Program:
        halo = need_of((N, 3), (Entry(((0, 1), (1, 1)), -1, 1),), (N,), Layout.parse("[0: nr nc / 4, 1]"))
        whole = need_of((4, N), (Entry(((1, 1),), 0, 1),), (N,), Layout.parse("[0: nr nc / 1, 1]"))
        buffers = (
            Buffer("x", "f32", 4, 0, "owned"), Buffer("w", "f32", 6, 64, "window"), Buffer("y", "f32", 4, 128, "owned"),
            Buffer("c", "f32", 4, 192, "owned"), Buffer("go", "bool", 1, 256, "owned"),
            Buffer("t", "f32", 4, 320, "owned"), Buffer("d", "f32", N, 384, "window"),
        )  # fmt: skip
        threads = (
            (call("below", GO, C, n=1), *self.compute, copy_call(XB, Y)),
            tuple(self.transfer),
        )
        layers = tuple({"name": n} for n in ("halo", "whole"))
        inputs = (Port("x", XB, (N,), "f32", QUARTERS), Port("c", C, (4,), "f32", WHOLE))
        return made(
            buffers, (Role("all", (), threads),), inputs,
            (Port("y", Y, (N,), "f32", QUARTERS),), layers=layers,
            exchanges=tuple(exchange(QUARTERS, (N,), n, MESH) for n in (halo, whole)),
        )  # fmt: skip


def reference(plan: list[object], x: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    for item in plan:
        if item == "halo":
            x = halo_reference(x)
        elif item == "whole":
            x = np.roll(x, -4)
        elif item == "tick":
            c += c
        else:
            assert isinstance(item, tuple)
            _, trips, data, body = item
            for _ in range(trips):
                if data and not c < 1000:
                    break
                x, c = reference(body, x, c)
    return x, c


@pytest.mark.parametrize("seed", range(12))
def test_random_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(random.Random(seed))
    drawn.loop(0)
    drawn.draw(0)
    p = drawn.program()
    with d1rt.load(p) as loaded:
        engines = [("numpy", None), ("numpy", seed), ("jit", None), ("jit", seed)]
        for first in (1.0, 300.0, 2000.0):
            c = np.array([first, 0, 0, 0], np.float32)
            want, _ = reference(drawn.plan, X, first)
            for engine, shuffle in engines:
                got = loaded.run({"x": X, "c": c}, engine=engine, threads=1 + seed % 2, shuffle=shuffle)["y"]
                np.testing.assert_array_equal(got, want, f"{engine} {shuffle} {first}")
            engines = engines[2:]  # the plain engine is slow
    monkeypatch.setattr(engine_jit, "SMALL_EVENTS", 0)
    monkeypatch.setattr(engine_jit, "ALONE", 0)
    for alias in (True, False):
        engine = engine_jit.Engine(p, threads=1 + seed % 2, alias=alias)
        assert engine.failure is None and engine.memory.plain is not alias
        np.testing.assert_array_equal(engine.run({"x": X, "c": c}).outputs["y"], want)
        engine.close()
