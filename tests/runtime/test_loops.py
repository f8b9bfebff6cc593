"""Loops in programs: both engines against numpy, in several orders; broken loops are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import d1rt
from d1c.emit.modules import from_modules, to_modules
from d1c.emit.tile_program import TileProgram
from d1c.errors import D1Error, Deadlock, LoadError, Trap
from d1c.ir.text import parse_modules, print_module
from d1c.ir.verify import verify
from d1c.target import binary, program_io
from d1c.target.program import Command, Free, Loop, Post, Program, Role, Wait
from d1rt import engine_jit
from tests.runtime.loop_programs import (
    call,
    doubling,
    doubling_reference,
    halo_loop,
    nested,
    nested_reference,
    ring,
    stage,
)
from tests.runtime.programs import ONE, halo_reference, program

X = np.random.default_rng(0).normal(size=16).astype(np.float32)
ENGINES = [("numpy", None), ("numpy", 1), ("numpy", 2), ("jit", None), ("jit", 1), ("jit", 2)]


def run(p: Program, engine: str, shuffle: int | None, threads: int | None = None, **inputs: np.ndarray) -> np.ndarray:
    with d1rt.load(p) as loaded:
        return loaded.run(inputs, engine=engine, shuffle=shuffle, threads=threads)["y"]


def shifted(x: np.ndarray, rounds: int) -> np.ndarray:
    return np.roll(x.reshape(2, 2, 4), rounds, axis=1).reshape(16)


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_counted_loops(engine: str, shuffle: int | None, rounds: int) -> None:
    threads = 1 + (shuffle is not None)
    np.testing.assert_array_equal(run(ring(rounds), engine, shuffle, threads, x=X), shifted(X, rounds))
    np.testing.assert_array_equal(run(halo_loop(rounds), engine, shuffle, threads, x=X), halo_reference(X, rounds))
    back = X.reshape(4, 4)[:: -1 if rounds % 2 else 1].reshape(-1)
    np.testing.assert_array_equal(run(stage(rounds), engine, shuffle, threads, x=X), back)


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize("trips", [0, 1, 3, 100])
@pytest.mark.parametrize("first", [1.0, 600.0, 5000.0])
def test_the_data_says_how_many_rounds(engine: str, shuffle: int | None, trips: int, first: float) -> None:
    x = np.array([first, 2, 3, 4], np.float32)
    np.testing.assert_array_equal(run(doubling(trips), engine, shuffle, x=x), doubling_reference(x, trips))


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("trips", "first", "rounds"), [(1, 1, 1), (1, 1000, 0), (9, 300, 2), (4, 1, 4), (9, 1000, 0)])
def test_two_threads_look_at_one_condition(
    engine: str, shuffle: int | None, tail: bool, trips: int, first: float, rounds: int
) -> None:
    p = halo_loop(trips, data=True, tail=tail)
    c = np.array([first, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(run(p, engine, shuffle, x=X, c=c), halo_reference(X, rounds + tail))


@pytest.mark.parametrize(("engine", "shuffle"), ENGINES)
@pytest.mark.parametrize(("outer", "inner"), [(0, 3), (3, 0), (1, 1), (3, 2), (2, 4)])
def test_nested_loops(engine: str, shuffle: int | None, outer: int, inner: int) -> None:
    np.testing.assert_array_equal(run(nested(outer, inner), engine, shuffle, x=X), nested_reference(X, outer, inner))


def test_memory_is_kept_once_per_class_and_as_it_is() -> None:
    for p, want in ((stage(3), X.reshape(4, 4)[::-1].reshape(-1)), (halo_loop(3), halo_reference(X, 3))):
        for alias in (True, False):
            engine = engine_jit.Engine(p, threads=2, alias=alias)
            assert engine.memory.plain is not alias
            assert (engine.memory.rooms[1].classes is not None) is alias
            for _ in range(2):  # every run starts anew
                np.testing.assert_array_equal(engine.run({"x": X}).outputs["y"], want)
            engine.close()


@pytest.mark.parametrize("alone", [0, 1 << 60])
def test_short_stretches_run_on_one_thread(alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_jit, "ALONE", alone)
    for shuffle in (None, 1):
        np.testing.assert_array_equal(run(nested(3, 2), "jit", shuffle, 3, x=X), nested_reference(X, 3, 2))
        np.testing.assert_array_equal(run(halo_loop(4), "jit", shuffle, 3, x=X), halo_reference(X, 4))


@pytest.mark.parametrize("at", [1, 2, 7])
def test_an_interrupt_leaves_no_thread_waiting(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_jit, "ALONE", 0)
    engine = engine_jit.Engine(nested(3, 2), threads=3)
    run, calls = engine._job.run, 0

    def interrupted(thread: int, part: int = 0) -> None:
        nonlocal calls
        calls += thread == 0
        if thread == 0 and calls == at:
            raise KeyboardInterrupt  # after the other threads have started
        run(thread, part)

    monkeypatch.setattr(engine._job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run({"x": X})
    np.testing.assert_array_equal(engine.run({"x": X}).outputs["y"], nested_reference(X, 3, 2))
    engine.close()


def test_large_programs_are_followed_by_whole_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_jit, "SMALL_EVENTS", 0)
    c = np.array([300, 0, 0, 0], np.float32)
    for x, rounds in ((c, 2), (c * 4, 0)):
        got = run(halo_loop(9, data=True, tail=True), "jit", None, x=X, c=x)
        np.testing.assert_array_equal(got, halo_reference(X, rounds + 1))
    np.testing.assert_array_equal(run(nested(3, 2), "jit", 5, x=X), nested_reference(X, 3, 2))


@pytest.mark.parametrize("engine", ["numpy", "jit"])
@pytest.mark.parametrize("first", [1.0, 400.0, 600.0])
def test_kept_is_the_last_round(engine: str, first: float) -> None:
    x = np.array([first, 2, 3, 4], np.float32)
    with d1rt.load(doubling()) as loaded:
        for value in (np.ones(4, np.float32), x):
            y = loaded.run({"x": value}, engine=engine, keep=True)["y"]
            np.testing.assert_array_equal(loaded.layer_value(loaded.kept, 0), y)


# ---- text and file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [ring(3), doubling(), nested(2, 3)], ids=["ring", "doubling", "nested"])
def test_text_and_file_keep_a_program(p: Program, tmp_path: Path) -> None:
    modules = to_modules(TileProgram(p))
    for m in modules:
        verify(m)
    text = "\n".join(map(print_module, modules))
    parsed = parse_modules(text, constants=modules[0].constants)
    assert "\n".join(map(print_module, parsed)) == text, "print, parse, print is a fixed point"
    assert from_modules(*parsed).program.roles == p.roles
    for name in ("a", "b"):
        program_io.save(p, tmp_path / f"{name}.d1x")
        assert program_io.load(tmp_path / f"{name}.d1x").roles == p.roles
    assert (tmp_path / "a.d1x").read_bytes() == (tmp_path / "b.d1x").read_bytes()


def deep(levels: int) -> dict[str, object]:
    body: list[object] = []
    for _ in range(levels):
        body = [{"do": "Loop", "body": body, "trips": 1, "condition": -1, "layer": -1, "origin": ""}]
    return body[0]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"trips": "9"}, "'9' is no integer"),
        ({"body": 3}, "not a list"),
        ({"body": [{"do": "Nothing"}]}, r"thread 0 command 1\.0: unknown command"),
        ({"body": [{"do": "Free", "buffers": [0], "layer": 0}]}, "Free needs exactly"),
        ({"body": [deep(20)]}, "nest deeper than 8"),
        ({"more": 1}, "Loop needs exactly"),
    ],
    ids=["trips", "body", "command", "fields", "depth", "extra"],
)
def test_damaged_loops_do_not_load(changed: dict[str, object], words: str, tmp_path: Path) -> None:
    program_io.save(ring(3), tmp_path / "a.d1x")
    content = binary.read(tmp_path / "a.d1x")
    content.manifest["roles"][0]["threads"][0][1].update(changed)
    binary.write(tmp_path / "b.d1x", content.manifest, content.arrays, content.weights, content.blobs)
    with pytest.raises(LoadError, match=words):
        program_io.load(tmp_path / "b.d1x")


# ---- broken programs ------------------------------------------------------------------------------------------------


def threads(p: Program, *new: tuple[Command, ...]) -> Program:
    return replace(p, roles=(replace(p.roles[0], threads=new), *p.roles[1:]))


def one(p: Program, **changes: object) -> Program:
    """The program with its first loop changed."""
    first = p.roles[0].threads[0]
    at = next(i for i, c in enumerate(first) if isinstance(c, Loop))
    return threads(p, (*first[:at], replace(first[at], **changes), *first[at + 1 :]), *p.roles[0].threads[1:])


def body(p: Program) -> tuple[Command, ...]:
    return next(c.body for c in p.roles[0].threads[0] if isinstance(c, Loop))


HALO = halo_loop(3)
DEEP = Loop((), 1)
for _ in range(8):
    DEEP = Loop((DEEP,), 1)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (one(HALO, trips=4), "has no counterpart in role 'all' thread"),
        (
            threads(HALO, HALO.roles[0].threads[0], ()),
            r"thread 0 command 0 \(Loop\): has no counterpart in .* thread 1",
        ),
        (threads(ring(3), ()), "command 1 .* has no counterpart in role 'nc0' thread 0"),
        (one(doubling(), condition=0), "condition x is f32"),
        (one(doubling(), condition=9), "its condition is buffer 9, the program has 4"),
        (one(doubling(), trips=-1), "-1 trips"),
        (threads(doubling(), (DEEP,)), "nest deeper than 8"),
        (one(HALO, body=(*body(HALO), Wait(5, ONE))), "waits for a count of semaphore 5, which"),
        (one(HALO, body=(Free((9,)),)), r"command 0\.0 \(Free\): one to be freed is buffer 9"),
    ],
    ids=["trips", "none", "role", "type", "number", "negative", "deep", "absolute", "inside"],
)
def test_broken_loops_do_not_load(p: Program, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        d1rt.load(p)


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_barriers_stand_in_the_same_loops(engine: str) -> None:
    p = stage(2)
    loop, copy = p.roles[0].threads[0]
    assert isinstance(loop, Loop)
    outside = (replace(loop, body=loop.body[:-1]), loop.body[-1], copy)
    halves = [replace(p.roles[0], name=n, cores=(("nr", i, i + 1),)) for i, n in enumerate("ab")]
    bad = replace(p, roles=(halves[0], replace(halves[1], threads=(outside,))))
    with pytest.raises(LoadError, match="not all cores meet at equally many barriers"):
        d1rt.load(bad)
    np.testing.assert_array_equal(run(replace(p, roles=tuple(halves)), engine, None, x=X), X)


@pytest.mark.parametrize("engine", ["numpy", "jit"])
@pytest.mark.parametrize(
    ("p", "kind", "words"),
    [
        (one(doubling(), body=(Free((1,)),)), Trap, "uninitialised read: element 0 of go is free"),
        (threads(doubling(), doubling().roles[0].threads[0][1:]), Trap, "uninitialised read: element 0 of go is free"),
        (one(doubling(), body=(call("double", 2, 0),)), Trap, "missing credit: element 0 of t is full"),
        (threads(ring(3), ring(3).roles[0].threads[0][1:]), Deadlock, "4 threads wait for ever"),
    ],
    ids=["freed", "unwritten", "credit", "post"],
)
def test_faults_in_loops(engine: str, p: Program, kind: type[D1Error], words: str) -> None:
    inputs = {"x": np.ones(p.inputs[0].shape, np.float32)}
    with d1rt.load(p) as loaded, pytest.raises(kind, match=words):
        loaded.run(inputs, engine=engine)


@pytest.mark.parametrize(("engine", "words"), [("numpy", "command 1.3 (round 1)"), ("jit", "command 1.0 (round 1)")])
def test_a_deadlock_names_the_round(engine: str, words: str) -> None:
    p = ring(3)
    with d1rt.load(threads(p, p.roles[0].threads[0][1:])) as loaded, pytest.raises(Deadlock) as caught:
        loaded.run({"x": X}, engine=engine)
    assert any("(round 1" in line for line in caught.value.waits), caught.value.waits


def test_the_fast_engine_refuses_rounds_that_differ() -> None:
    go = doubling()
    more = one(go, body=(Post(0), *body(go)))
    grown = one(nested(3, 1), body=(call("double", 1, 0),))
    late = (Loop((Wait(0, ONE, relative=True),), 2),)
    for p, words in ((more, "semaphore 0 is .1 counts off after a round"), (grown, "missing credit")):
        with d1rt.load(p) as loaded, pytest.raises(Trap, match=words):
            loaded.run({"x": np.ones(p.inputs[0].shape, np.float32)})
    waiting = program((), (Role("all", (), ((Post(0), Post(0), *late),)),))
    d1rt.load(waiting).run({}, engine="numpy")
    with d1rt.load(waiting) as loaded, pytest.raises(Trap, match="semaphore 0 is -1 counts off"):
        loaded.run({})


def test_the_fast_engine_looks_whether_all_cores_agree() -> None:
    p = doubling()
    layout = p.inputs[0].layout
    first = p.roles[0].threads[0]
    quarters = replace(p.inputs[0], shape=(16,), layout=type(layout).parse("[0: nr nc / 4]"))
    p = replace(p, inputs=(quarters,), outputs=(replace(p.outputs[0], shape=(16,), layout=quarters.layout),))
    x = np.ones(16, np.float32)
    x[4:] = 2
    with d1rt.load(threads(p, first)) as loaded, pytest.raises(Trap, match="go is not the same on all cores"):
        loaded.run({"x": x})
