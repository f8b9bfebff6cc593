"""Layers in parts: the same bits in any order of events, whatever is cut; and nothing that is missing goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

import d1c
from d1c.cli.dis import core_text
from d1c.emit.modules import from_modules, to_modules
from d1c.emit.tile_program import TileProgram
from d1c.errors import DoesNotFit, LoadError, Trap
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.ir.text import parse
from d1c.passes import distribute, lower_tile
from d1c.pipeline import run_pipeline
from d1c.target.machine import machine
from d1c.target.movement import Cut, Exchange
from d1c.target.program import Arrive, Call, Command, Program, Push, Role, every
from d1c.target.program_check import check
from d1c.target.program_io import load, save
from d1rt import engine_jit, engine_numpy
from d1rt.events import Simulator
from tests.levels.nets import GRAPH, graph_of
from tests.networks import Net

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
TEST = machine("test")
C = TypeVar("C", bound=Command)
CASES = [("residual", "bf16", 0, 2), ("separable", "f32", 1, 3), ("transformer", "bf16", 2, 2), ("deep", "f32", 0, 4)]


@cache
def lowered(name: str, policy: str, seed: int, chunks: int) -> TileProgram:
    module, _ = graph_of(name, policy)
    return lower_tile.run(distribute.run(module, TEST, seed=seed), TEST, chunks)


def commands(program: Program, kind: type[C]) -> list[C]:
    return [c for t in program.roles[0].threads for c in every(t) if isinstance(c, kind)]


def in_parts(program: Program) -> bool:
    return any(c.out_base for c in commands(program, Call))


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in CASES[2:]), id=c[0]) for c in CASES])
def test_random_plans_in_parts_have_the_same_bits(
    case: tuple[str, str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, inputs = graph_of(*case[:2])
    want, program = evaluate(module, inputs), lowered(*case).program
    check(program)
    assert in_parts(program)
    assert any(program.exchanges[c.exchange].cut for c in commands(program, Push))
    for seed in (None, 1, 2):
        same(engine_numpy.Engine(program, shuffle=seed).run(inputs).outputs, want)
    same(engine_jit.Engine(program, threads=1, shuffle=1, alias=False).run(inputs).outputs, want)
    monkeypatch.setattr(engine_jit, "SMALL_EVENTS", 0)  # by rows of buffers, not byte by byte
    same(engine_jit.Engine(program, threads=1).run(inputs).outputs, want)


def edited(program: Program, thread: int, change: Callable[[Command], Command | None]) -> Program:
    threads = list(program.roles[0].threads)
    threads[thread] = tuple(c for c in map(change, threads[thread]) if c is not None)
    return replace(program, roles=(Role("main", (), tuple(threads)),))


def last_part(program: Program) -> int:
    """A part of a movement that brings the last rows of windows, and whose first rows are in others."""
    return next(n for n, x in reversed(list(enumerate(program.exchanges))) if x.cut is not None and x.cut.window[0])


def test_rows_that_are_not_waited_for_are_missed() -> None:
    """Nobody waits for the last rows of a window: some order of events reads them before they have come."""
    program = lowered(*CASES[0]).program
    part = last_part(program)
    short = edited(program, 0, lambda c: None if isinstance(c, Arrive) and c.exchange == part else c)
    with pytest.raises(Trap, match="uninitialised read"):
        for seed in range(40):
            engine_numpy.Engine(short, shuffle=seed).run(graph_of("residual", "bf16")[1])


def test_rows_that_are_not_sent_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows, as large programs are proved: without the Push and its Arrive the call finds its rows unwritten."""
    monkeypatch.setattr(engine_jit, "SMALL_EVENTS", 0)
    program = lowered(*CASES[0]).program
    part = last_part(program)
    for t in range(len(program.roles[0].threads)):
        program = edited(program, t, lambda c: None if getattr(c, "exchange", -1) == part else c)
    with pytest.raises(Trap, match="uninitialised read"):
        engine_jit.Engine(program, threads=1).run(graph_of("residual", "bf16")[1])


def test_the_first_rows_must_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls on rows in another order are not followed, and a part that leaves its rows is refused."""
    monkeypatch.setattr(engine_jit, "SMALL_EVENTS", 0)
    program = lowered(*CASES[0]).program
    later = next(c for c in commands(program, Call) if c.out_base)
    twice = edited(program, 0, lambda c: replace(c, out_base=0) if c is later else c)
    with pytest.raises(Trap, match="missing credit"):
        engine_jit.Engine(twice, threads=1).run(graph_of("residual", "bf16")[1])
    part = last_part(program)
    exchanges = list(program.exchanges)
    cut = exchanges[part].cut
    assert cut is not None
    exchanges[part] = replace(exchanges[part], cut=Cut(cut.owned, (cut.window[0] + 1, cut.window[1])))
    with pytest.raises(LoadError, match="leaves the window part"):
        check(replace(program, exchanges=tuple(exchanges)))


def test_parts_survive_text_and_file(tmp_path: Path) -> None:
    tile = lowered(*CASES[0])
    tile_module, kern = to_modules(tile)
    again = from_modules(parse(str(tile_module)), parse(str(kern)), tile.program.weights)
    assert again.program.roles == tile.program.roles and again.movements == tile.movements
    for a, b in zip(again.program.exchanges, tile.program.exchanges, strict=True):
        assert a.cut == b.cut and a.window_elements == b.window_elements
        assert all(
            np.array_equal(p.pieces.doff, q.pieces.doff) for p, q in zip(a.components, b.components, strict=True)
        )
    save(tile.program, tmp_path / "parts.d1x")
    assert load(tmp_path / "parts.d1x").roles == tile.program.roles


def test_a_listing_names_parts() -> None:
    program = lowered(*CASES[0]).program
    text = "\n".join(core_text(program, 0))
    later = next(c for c in commands(program, Call) if c.out_base)
    out = program.buffers[later.out]
    assert f"{out.name}@0x{out.address:06x}+{later.out_base} <-" in text


def test_the_parts_of_a_movement_are_the_movement() -> None:
    """Every element that the whole brings is brought by one of its parts, to the same place from the same place."""
    whole, parts = lowered("residual", "bf16", 0, 1), lowered(*CASES[0])
    pushed = {c.exchange: c for c in commands(parts.program, Push)}
    for c in commands(whole.program, Push):
        x = whole.program.exchanges[c.exchange]
        alike = [
            n for n, p in pushed.items()
            if parts.program.buffers[p.target].name == whole.program.buffers[c.target].name
        ]  # fmt: skip
        brought = np.concatenate([moved(parts.program.exchanges[n]) for n in alike])
        assert np.array_equal(np.unique(brought, axis=0), np.unique(moved(x), axis=0))
        assert len(brought) == len(moved(x))


def moved(x: Exchange) -> np.ndarray:
    """[elements, 4] sender, class, offsets of every element that a movement brings."""
    m, out = x.messages(), []
    for i in range(len(m)):
        source, target = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for n, s, d in zip(m.sizes[:, i], m.sstride[:, i], m.dstride[:, i], strict=True):
            source = (np.arange(n)[:, None] * s + source).ravel()
            target = (np.arange(n)[:, None] * d + target).ravel()
        ends = np.broadcast_to([m.src[i], m.cls[i]], (len(source), 2))
        out.append(np.column_stack([ends, source + m.soff[i], target + m.doff[i]]))
    return np.concatenate(out)


def test_the_example_in_parts() -> None:
    inputs = {name: x[:2] for name, x in np.load(DIGITS / "heldout.npz").items()}
    shapes = {k: v.shape for k, v in inputs.items()}
    compiled = d1c.compile(DIGITS / "digits.onnx", target="test", precision="bf16", shapes=shapes)
    program = lower_tile.run(compiled.module("dist"), TEST, 2).program
    assert sum(c.out_base > 0 for c in commands(program, Call)) > 3
    same(
        engine_jit.Engine(program, threads=2, shuffle=3).run(inputs).outputs, evaluate(compiled.module("graph"), inputs)
    )


def test_movements_hide_where_that_pays() -> None:
    """By the events of a layer whose windows take long: two parts are faster; the default takes them."""
    f = Net(7)
    x = f("Relu", f.linear("x", 64, 64))
    proto, _ = f.model({"x": f.data(512, 64)}, f.linear(f("Relu", f.linear(x, 64, 64)), 64, 64))
    target = replace(machine("test"), sram_bytes=1 << 20)
    module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": "bf16"}).module
    dist = distribute.run(module, target, seed=3)
    cycles = {n: Simulator(lower_tile.run(dist, target, n).program).cycles() for n in (1, 2, None)}
    assert cycles[2] < cycles[1] and cycles[None] <= cycles[2]


@pytest.mark.parametrize("seed", [4, 7, 15, 19])
def test_padding_is_written_where_one_part_of_a_movement_is_left(seed: int) -> None:
    """A reader of a half of the rows gets all that it reads from one part of the call that makes them."""
    f = Net(3)
    a = f("MatMul", "x", f.random(8, 8))
    halves = [f("Slice", a, f.ints(k), f.ints(k + 1), f.ints(0)) for k in range(2)]
    proto, _ = f.model({"x": f.data(2, 4, 8)}, f("Concat", *halves, axis=2))
    module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": "f32"}).module
    inputs = {"x": f.data(2, 4, 8)}
    program = lower_tile.run(distribute.run(module, TEST, seed=seed), TEST, 2).program
    assert in_parts(program)
    same(engine_numpy.Engine(program).run(inputs).outputs, evaluate(module, inputs))


def test_layers_stay_whole_where_parts_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts take tables, lists and semaphores: where there is no room for them they are given up."""
    monkeypatch.setattr(lower_tile, "pays", lambda *_: True)
    module, inputs = graph_of("residual", "bf16")
    dist = distribute.run(module, TEST, seed=0)
    peak = lower_tile.run(dist, TEST, 1).program.info["sram_peak_bytes"]
    for saved in range(0, peak, 512):
        tight = replace(TEST, sram_bytes=peak - saved, code_reserve_bytes=0)
        whole = lower_tile.run(dist, tight, 1).program
        try:
            assert in_parts(lower_tile.run(dist, tight, 2).program)
        except DoesNotFit:
            break
        assert in_parts(lower_tile.run(dist, tight).program)
    program = lower_tile.run(dist, tight).program
    assert program.roles == whole.roles and not in_parts(program)
    same(engine_numpy.Engine(program).run(inputs).outputs, evaluate(module, inputs))
