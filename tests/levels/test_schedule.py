"""What the threads of a core tell each other is enough: any order of events gives the same bits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import onnx.helper
import onnx.numpy_helper
import pytest

import d1c
import d1rt
from d1c.errors import DoesNotFit, LoadError
from d1c.interp import evaluate
from d1c.passes import distribute, lower_tile
from d1c.target.machine import Machine, machine
from d1c.target.program import Arrive, Barrier, Call, Command, Fill, Free, Program, Push, Role, Wait
from d1c.target.program_check import check
from d1rt.events import simulate
from tests.levels.nets import graph_of

NET = "residual"


@cache
def lowered(
    saved: int, semaphores: int = 16, threads: int = 4, seed: int | None = 3
) -> tuple[Program, tuple[bool, ...]]:
    """The network for `saved` bytes less than it takes, its constants in shares, and per epoch whether it waits."""
    module, _ = graph_of(NET, "f32")
    target: Machine = replace(machine("test"), semaphores=semaphores, threads=threads)
    dist = distribute.run(module, target, seed=seed, resident=distribute.RESIDENT_SHARES[-1])
    if saved:
        peak = lowered(0, semaphores, threads, seed)[0].info["sram_peak_bytes"]
        target = replace(target, sram_bytes=peak - saved, code_reserve_bytes=0)
    lowering = lower_tile._Lowering(dist, target)
    return lowering.run().program, lowering.sync


@cache
def smaller() -> tuple[int, int]:
    """How much memory the network can do without: some, and all of that."""
    out = []
    for saved in range(64, 1 << 16, 128):
        try:
            lowered(saved)
        except DoesNotFit:
            break
        out.append(saved)
    return out[len(out) // 2], out[-1]


def commands(program: Program, kind: type) -> list[tuple[int, Command]]:
    return [(t, c) for t, thread in enumerate(program.roles[0].threads) for c in thread if isinstance(c, kind)]


def without(program: Program, thread: int, number: int) -> Program:
    threads = [list(t) for t in program.roles[0].threads]
    del threads[thread][number]
    return replace(program, roles=(Role("main", (), tuple(map(tuple, threads))),))


def test_memory_for_all_needs_no_barrier() -> None:
    """Padding alone is no reason to meet: nobody's messages bring it."""
    program, sync = lowered(0, 64)
    assert sync == (True,) and commands(program, Fill) and not commands(program, Barrier)


def test_any_order_of_events_gives_the_same_bits() -> None:
    module, inputs = graph_of(NET, "f32")
    want = evaluate(module, inputs)
    kinds = set()
    for k, saved in enumerate((0, *smaller())):
        program, sync = lowered(saved)
        kinds |= {*sync[1:]}
        assert {t for t, _ in commands(program, Barrier)} == {2} and {t for t, _ in commands(program, Call)} == {0}
        constants = {p.buffer for p in program.placements}
        assert {t for t, c in commands(program, Push) if c.source in constants} == {3}
        with d1rt.load(program) as loaded:
            for engine, shuffle in (("numpy", k), ("jit", None), ("jit", k)):
                got = loaded.run(inputs, engine=engine, shuffle=shuffle)
                for name in want:
                    np.testing.assert_array_equal(got[name], want[name])
    assert kinds == {True, False}


def test_three_threads_are_enough() -> None:
    module, inputs = graph_of(NET, "f32")
    program, _ = lowered(0, threads=3)
    assert len(program.roles[0].threads) == 3
    with d1rt.load(program) as loaded:
        for name, want in evaluate(module, inputs).items():
            np.testing.assert_array_equal(loaded.run(inputs, engine="numpy", shuffle=5)[name], want)


def test_credit_is_seen_when_a_program_is_loaded() -> None:
    """A thread that sends without the barrier's credit takes semaphores that still count."""
    program, _ = lowered(smaller()[0])
    signals = {c.semaphore for t, c in commands(program, Wait) if t == 1}
    found = 0
    for number, c in enumerate(program.roles[0].threads[1]):
        if isinstance(c, Wait) and c.semaphore == max(signals):
            found += 1
            with pytest.raises(LoadError, match="semaphore shared"):
                check(without(program, 1, number))
    assert found


def test_movements_of_one_layer_share_a_semaphore() -> None:
    """Only while nothing stands between their Arrives: else one of them might go on by the other's messages."""
    program, _ = lowered(smaller()[0])
    thread, found = program.roles[0].threads[0], 0
    for k, (a, b) in enumerate(pairwise(thread)):
        if isinstance(a, Arrive) and isinstance(b, Arrive) and a.semaphore == b.semaphore:
            found += 1
            threads = ((*thread[: k + 1], Free(()), *thread[k + 1 :]), *program.roles[0].threads[1:])
            with pytest.raises(LoadError, match="semaphore shared"):
                check(replace(program, roles=(Role("main", (), threads),)))
    assert found


def mlp(rows: int, columns: int, hidden: int, layers: int) -> onnx.ModelProto:
    """Products with a relu behind each, from `columns` to `hidden` and back."""
    rng, nodes, weights, names = np.random.default_rng(0), [], [], ["x"]
    for i in range(layers):
        k, n = (columns, hidden) if i % 2 == 0 else (hidden, columns)
        w = rng.standard_normal((k, n)).astype(np.float32) / np.float32(np.sqrt(k))
        weights.append(onnx.numpy_helper.from_array(w, f"w{i}"))
        nodes.append(onnx.helper.make_node("MatMul", [names[-1], f"w{i}"], [f"p{i}"]))
        names.append("y" if i == layers - 1 else f"h{i}")
        nodes.append(onnx.helper.make_node("Relu", [f"p{i}"], [names[-1]]))
    x, y = (onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [rows, columns]) for v in "xy")
    graph = onnx.helper.make_graph(nodes, "mlp", [x], [y], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def waiting(model: onnx.ModelProto, target: Machine, ways: tuple[tuple[float, float], ...]) -> tuple[int, d1c.Program]:
    """The program made in the first of `ways` that suits, and how many of its epochs wait for memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribute, "ATTEMPTS", ways)
        program = d1c.compile(model, target=target)
    assert program.compiled is not None
    return program.compiled.waits, program


@pytest.mark.parametrize(("shape", "fits"), [((128, 96, 192, 6), 1), ((512, 64, 128, 6), 2)])
def test_fewer_constants_stay_where_epochs_would_wait(shape: tuple[int, int, int, int], fits: int) -> None:
    """What waits for memory takes longer than gathering some constants; the bits are the same. `fits`: the number of
    the first attempt that fits."""
    model, target = mlp(*shape), replace(machine("test"), sram_bytes=80 << 10)
    waits, early = waiting(model, target, distribute.ATTEMPTS[:fits])
    none, chosen = waiting(model, target, distribute.ATTEMPTS)
    assert waits > 0 == none
    assert simulate(chosen.target).total["cycles"] < simulate(early.target).total["cycles"]
    x = {"x": np.random.default_rng(1).standard_normal(shape[:2]).astype(np.float32)}
    got = [d1rt.load(p.target).run(x)["y"].tobytes() for p in (early, chosen)]
    assert got[0] == got[1]
