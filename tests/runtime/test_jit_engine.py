"""The fast engine against references and the plain engine: memory, aliasing, orders, traps, deadlock, native copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import d1rt
from d1c.errors import Deadlock, Trap
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.passes import distribute
from d1c.passes.lower_tile import run as lower
from d1c.pipeline import PASSES, PIPELINE, run_pipeline
from d1c.target.machine import machine
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.movement import Messages
from d1c.target.program import Barrier, Buffer, Call, Command, Fill, Free, Port, Post, Program, Role, Send, To, Wait
from d1rt import engine_numpy
from d1rt.engine_jit import Engine
from d1rt.engine_memory import first_fit
from d1rt.engine_native import COPY, UNIT, Job, Native
from d1rt.engine_records import boxes, groups
from tests.runtime.programs import (
    COPY as COPY_NEST,
)
from tests.runtime.programs import (
    QUARTERS,
    const,
    copy_call,
    halo,
    halo_reference,
    program,
    stream,
    weights,
)
from tests.runtime.test_numpy_engine import edit, network

X = np.random.default_rng(0).normal(size=16).astype(np.float32)
HOW: list[dict[str, Any]] = [
    {"threads": 1},
    {"threads": 2},
    {"threads": 3, "keep": True},
    {"threads": 2, "alias": False},
    {"threads": 1, "shuffle": 1},
    {"threads": 2, "shuffle": 2, "alias": False},
]


def run(p: Program, how: dict[str, Any] | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    engine = Engine(p, **(how or {"threads": 1}))
    engine.run(inputs)
    outputs = engine.run(inputs).outputs  # the second run finds what the first left
    engine.close()
    return outputs


@pytest.mark.parametrize("how", HOW, ids=str)
def test_programs_by_hand(how: dict[str, Any]) -> None:
    for rounds in (1, 3):
        assert run(halo(rounds), how, x=X)["y"].tobytes() == halo_reference(X, rounds).tobytes()
    got = run(stream(), how, x=X[:6])
    for g in range(3):
        np.testing.assert_array_equal(got[f"y{g}"], np.concatenate([X[:2], X[2 * g : 2 * g + 2]]))
    np.testing.assert_array_equal(run(weights(), how)["y"], [4, 5, 6, 7, 0, 1, 2, 3])


@pytest.mark.parametrize("policy", ["f32", "bf16"])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_compiled_networks_have_the_bits_of_the_graph(policy: str, seed: int | None) -> None:
    names = [n for n in PIPELINE if PASSES[n].level_out == "graph"]
    graph = run_pipeline(import_onnx(network()), names, options={"policy": policy}).module
    x = np.random.default_rng(6).normal(size=(2, 4, 6, 5)).astype(np.float32)
    want = evaluate(graph, {"x": x})["y"].tobytes()
    target = machine("test")
    p = lower(distribute.run(graph, target, seed), target).program
    for how in HOW:
        assert run(p, how, x=x)["y"].tobytes() == want, how
    mine, plain = (e(p, keep=True).run({"x": x}).kept for e in (Engine, engine_numpy.Engine))
    assert mine.keys() == plain.keys()
    with d1rt.load(p) as loaded:
        for i in range(len(p.layers)):
            assert mine[i].keys() == plain[i].keys()
            assert loaded.layer_value(mine, i).tobytes() == loaded.layer_value(plain, i).tobytes()


def test_windows_of_a_class_are_kept_once() -> None:
    """Cores along `nc` need the same: with alias one copy serves them, and the program needs less memory."""
    names = [n for n in PIPELINE if PASSES[n].level_out == "graph"]
    graph = run_pipeline(import_onnx(network()), names, options={"policy": "f32"}).module
    target = machine("test")
    p = lower(distribute.run(graph, target), target).program
    shared, own = Engine(p, threads=1), Engine(p, threads=1, alias=False)
    assert any(r.classes is not None for r in shared.memory.rooms)
    assert shared.memory.bytes < own.memory.bytes
    assert own.memory.bytes >= target.sram_bytes * target.cores


def test_thousands_of_cores_in_one_step() -> None:
    """A ring of messages on every row of a tile-sized mesh: x of the left neighbour."""
    mesh = Mesh((("nr", 80), ("nc", 110)))
    owned = Layout.parse("[0: nr nc / 4]")
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("w", "f32", 4, 64, "window"), Buffer("y", "f32", 4, 128, "owned"),
    )  # fmt: skip
    edge = CoreInt(("nc",), (0,) + (1,) * 109)  # the first of a row receives nothing
    trips = CoreInt(("nc",), (0,) + (4,) * 109)
    first = CoreInt(("nc",), (4,) + (0,) * 109)
    thread = (
        Send(0, 1, (To("nc", "+", 1),), *const(0, 0, 4), 0), Wait(0, edge),
        copy_call(1, 2, trips), copy_call(0, 2, first),
    )  # fmt: skip
    p = program(
        buffers, (Role("all", (), (thread,)),), (Port("x", 0, (35_200,), "f32", owned),),
        (Port("y", 2, (35_200,), "f32", owned),), mesh=mesh,
    )  # fmt: skip
    x = np.arange(35_200, dtype=np.float32)
    want = x.reshape(80, 110, 4).copy()
    want[:, 1:] = x.reshape(80, 110, 4)[:, :-1]
    np.testing.assert_array_equal(run(p, {"threads": 2}, x=x)["y"], want.ravel())


def test_overlapping_buffers_share_bytes_where_that_is_legal() -> None:
    """Two buffers at one address: what is written by one name is read by the other."""
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("a", "f32", 4, 64, "owned"), Buffer("b", "f32", 2, 72, "owned"),
        Buffer("y", "f32", 2, 128, "owned"),
    )  # fmt: skip
    thread = (copy_call(0, 1, 4), copy_call(2, 3, 2))
    halves = Layout.parse("[0: nr nc / 2]")
    p = program(
        buffers, (Role("all", (), (thread,)),), (Port("x", 0, (16,), "f32", QUARTERS),),
        (Port("y", 3, (8,), "f32", halves),),
    )  # fmt: skip
    engine = Engine(p, threads=1)
    assert engine.memory.plain
    np.testing.assert_array_equal(engine.run({"x": X}).outputs["y"], X.reshape(4, 4)[:, 2:].ravel())


# ---- what must not run ----------------------------------------------------------------------------------------------


def same_trap(p: Program, **inputs: np.ndarray) -> Trap:
    """Both engines trap alike."""
    with pytest.raises(Trap) as mine:
        Engine(p, threads=1).run(inputs)
    with pytest.raises(Trap) as plain:
        engine_numpy.Engine(p).run(inputs)
    for name in ("message", "core", "address", "buffer", "op", "where"):
        assert getattr(mine.value, name) == getattr(plain.value, name)
    return mine.value


def test_traps_are_those_of_the_plain_engine() -> None:
    assert "uninitialised read: element 0 of w is free" in same_trap(halo(fill=False), x=X).message
    p = halo()
    call = p.roles[0].threads[0][2]
    assert isinstance(call, Call)
    assert "missing credit: element 0 of y0 is full" in same_trap(edit(p, 0, 0, 2, call, call), x=X).message
    assert "missing credit" in same_trap(edit(p, 0, 0, 0, Fill(1, -1, 0.0)), x=X).message
    with pytest.raises(Trap, match="out of bounds: element 6 of w is read, it has 6"):
        Engine(edit(p, 0, 0, 2, replace(call, bases=const(1))))
    some = program(
        (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((copy_call(0, 1, CoreInt(("nr", "nc"), (4, 4, 4, 0))),),)),),
        (Port("x", 0, (16,), "f32", QUARTERS),), (Port("y", 1, (16,), "f32", QUARTERS),),
    )  # fmt: skip
    assert same_trap(some, x=X).message.startswith("output 'y' is not written")


def test_some_order_shows_a_missing_credit() -> None:
    with pytest.raises(Trap, match="missing credit: element 0 of slot"):
        for seed in range(20):
            Engine(stream(credit=False), 1, seed).run({"x": X[:6]})
    p = halo(2)
    at = next(i for i, c in enumerate(p.roles[0].threads[0]) if isinstance(c, Barrier))
    with pytest.raises(Trap):
        for seed in range(20):
            Engine(edit(p, 0, 0, at), 1, seed).run({"x": X})


def test_large_programs_are_followed_by_whole_buffers() -> None:
    """With 8,800 cores a double write is found without following bytes."""
    mesh = Mesh((("nr", 80), ("nc", 110)))
    owned = Layout.parse("[0: nr nc / 4]")
    buffers = (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned"))
    ports = (Port("x", 0, (35_200,), "f32", owned),), (Port("y", 1, (35_200,), "f32", owned),)
    x = np.zeros(35_200, np.float32)

    def of(*commands: Command) -> Program:
        return program(buffers, (Role("all", (), (commands,)),), *ports, mesh=mesh)

    copy = copy_call(0, 1, 4)
    for commands, text in (
        ((copy, copy), "missing credit: y is not free"),
        ((Free((0,)), copy), "uninitialised read: x is not wholly written"),
        ((Free((1,)), Free((1,)), Free((1,))), "output 'y' is not written"),
    ):
        many = (*commands, *[Post(1)] * 4)  # enough commands to be large
        with pytest.raises(Trap, match=text):
            Engine(of(*many), threads=1).run({"x": x})


def test_deadlock_reads_like_the_plain_engines() -> None:
    left = (Wait(0, CoreInt.const(1), origin="a"), Post(1, (To("nc", "+", 1),)))
    right = (Wait(1, CoreInt.const(1), origin="b"), Post(0, (To("nc", "+", -1),)))
    p = program(
        (),
        (
            Role("left", (("nr", 0, 1), ("nc", 0, 1)), (left,)), Role("right", (("nr", 0, 1), ("nc", 1, 2)), (right,)),
            Role("rest", (("nr", 1, 2),), ((Wait(5, CoreInt.const(2)),),)),
        ),
    )  # fmt: skip
    with pytest.raises(Deadlock) as mine:
        Engine(p).run({})
    with pytest.raises(Deadlock) as plain:
        engine_numpy.Engine(p).run({})
    assert mine.value.waits == plain.value.waits and mine.value.message == plain.value.message


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_native_copies_of_every_size(wide: bool) -> None:
    native = Native()
    rng = np.random.default_rng(3)
    source = rng.integers(0, 256, 1 << 16, np.uint8)
    for size in [*range(1, 140), 500, 4097]:
        target = np.zeros(1 << 16, np.uint8)
        want = target.copy()
        records = np.array([[5, 3], [16_000, 30_000]], np.int64 if wide else np.uint32)
        unit = np.zeros((1, UNIT), np.int64)
        unit[0, : len(COPY)] = (
            native.copy(size, wide), records.ctypes.data, 2, 3, size + 2, size + 1, source.ctypes.data,
            target.ctypes.data, size,
        )  # fmt: skip
        job = Job(native, unit, np.array([0, 1]), 1, 64)
        job.run(0)
        for s, t in records.tolist():
            for i in range(3):
                want[t + i * (size + 1) : t + i * (size + 1) + size] = source[
                    s + i * (size + 2) : s + i * (size + 2) + size
                ]
        np.testing.assert_array_equal(target, want)


def test_boxes_move_the_elements_of_their_messages() -> None:
    rng = np.random.default_rng(4)
    n, dims = 200, 5
    sizes = rng.choice([1, 1, 2, 3], (dims, n))
    # contiguous, strided and interleaved dims on either side
    sstride, dstride = (
        np.cumprod(np.vstack([np.ones((1, n), np.int64), sizes[:-1] * rng.choice([1, 1, 2], (dims - 1, n))]), axis=0)
        for _ in range(2)
    )
    zero = np.zeros(n, np.int64)
    soff, doff = rng.integers(0, 50, (2, n))
    m = Messages(np.zeros(1, np.int64), zero, zero, soff, doff, sizes, sstride, dstride)
    for picks in (None, np.arange(0, n, 3)):
        b = boxes(m, picks)
        moved: list[set[tuple[int, int]]] = [set() for _ in range(n)]
        for o, s, t, inner, times, ss, ts in zip(
            b.owner, b.soff, b.toff, b.inner, b.repeat, b.sstep, b.tstep, strict=True
        ):
            number = o if picks is None else picks[o]
            moved[number] |= {(s + i * ss + k, t + i * ts + k) for i in range(times) for k in range(inner)}
        for i in range(n) if picks is None else picks:
            index = np.indices(sizes[:, i]).reshape(dims, -1)
            want = zip(
                (soff[i] + sstride[:, i] @ index).tolist(), (doff[i] + dstride[:, i] @ index).tolist(), strict=True
            )
            assert moved[i] == set(want)
        made = groups(b.soff, b.toff, b.inner, b.repeat, b.sstep, b.tstep)
        assert sum(len(g.records) for g in made) == len(b.owner)
        assert len({(g.bytes, g.repeat, g.sstep, g.tstep) for g in made}) == len(made)


def test_memory_is_used_again_but_never_twice_at_a_time() -> None:
    rng = np.random.default_rng(5)
    first = rng.integers(0, 40, 60)
    spans = {i: (int(f), int(f + rng.integers(0, 8))) for i, f in enumerate(first)}
    size = {i: int(rng.integers(1, 100)) * 64 for i in spans}
    at, total = first_fit(spans, size)
    assert total < sum(size.values())
    for a in spans:
        for b in spans:
            if a < b and spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]:
                assert at[a] + size[a] <= at[b] or at[b] + size[b] <= at[a]


def test_negative_strides() -> None:
    flip = replace(COPY_NEST, operands=(replace(COPY_NEST.operands[0], strides=(-1,)),))
    p = program(
        (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((copy_call(0, 1, 4, base=3),),)),), (Port("x", 0, (16,), "f32", QUARTERS),),
        (Port("y", 1, (16,), "f32", QUARTERS),), kernels=(("flip", flip),),
    )  # fmt: skip
    np.testing.assert_array_equal(run(p, x=X)["y"], X.reshape(4, 4)[:, ::-1].ravel())
