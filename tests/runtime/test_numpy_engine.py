"""The plain engine: every command against numpy, every trap, deadlock reports, orders of events that change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1rt
from d1c.errors import Deadlock, Trap
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.passes import distribute
from d1c.passes.lower_tile import run as lower
from d1c.pipeline import PASSES, PIPELINE, run_pipeline
from d1c.target.machine import machine
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.program import Barrier, Buffer, Call, Command, Fill, Free, Port, Post, Program, Role, Send, To, Wait
from d1rt.engine_numpy import reach
from d1rt.traps import core_text
from tests.runtime.programs import COPY, QUARTERS, const, copy_call, halo, halo_reference, program, stream, weights

X = np.random.default_rng(0).normal(size=16).astype(np.float32)


def run(p: Program, shuffle: int | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    with d1rt.load(p) as loaded:
        return loaded.run(inputs, engine="numpy", shuffle=shuffle)


def edit(p: Program, role: int, thread: int, at: int, *new: Command) -> Program:
    """The program with command `at` replaced by `new`."""
    r = p.roles[role]
    threads = list(r.threads)
    threads[thread] = (*threads[thread][:at], *new, *threads[thread][at + 1 :])
    roles = list(p.roles)
    roles[role] = replace(r, threads=tuple(threads))
    return replace(p, roles=tuple(roles))


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 3])
def test_fill_push_arrive_call_free_and_barrier(rounds: int) -> None:
    np.testing.assert_array_equal(run(halo(rounds), x=X)["y"], halo_reference(X, rounds))


def test_every_run_starts_anew() -> None:
    with d1rt.load(halo(2)) as loaded:
        for x in (X, X[::-1].copy()):
            np.testing.assert_array_equal(loaded.run({"x": x}, engine="numpy")["y"], halo_reference(x, 2))


@pytest.mark.parametrize("seed", range(12))
def test_order_of_events_changes_nothing(seed: int) -> None:
    assert run(halo(3), seed, x=X)["y"].tobytes() == halo_reference(X, 3).tobytes()
    got = run(stream(), seed, x=X[:6])
    for g in range(3):
        np.testing.assert_array_equal(got[f"y{g}"], np.concatenate([X[:2], X[2 * g : 2 * g + 2]]))


def test_placed_rows_and_held_cores() -> None:
    np.testing.assert_array_equal(run(weights())["y"], [4, 5, 6, 7, 0, 1, 2, 3])


def test_destinations() -> None:
    mesh = Mesh((("dr", 2), ("nc", 3)))
    assert reach(mesh, 4, ()) == [4]
    assert reach(mesh, 4, (To("nc", "+", 1),)) == [5]
    assert reach(mesh, 4, (To("nc", "+", 2),)) == [] == reach(mesh, 4, (To("dr", "=", 2),))
    assert reach(mesh, 4, (To("dr", "=", 0), To("nc", "*"))) == [0, 1, 2]
    assert core_text(Mesh((("dr", 2), ("nc.0", 2), ("nc.1", 3))), 10) == "dr 1 nc 4"


def test_multicast_reaches_every_core_and_sender() -> None:
    send = Send(0, 1, (To("nr", "*"), To("nc", "*")), *const(1, 0, 3), 0)
    role = (Role("one", (("nr", 0, 1), ("nc", 0, 1)), ((send, Wait(0, CoreInt.const(1)), copy_call(1, 2, 3)),)),)
    rest = tuple(
        Role(f"r{r}{c}", (("nr", r, r + 1), ("nc", c, c + 1)), ((Wait(0, CoreInt.const(1)), copy_call(1, 2, 3)),))
        for r, c in ((0, 1), (1, 0), (1, 1))
    )
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"),
        Buffer("w", "f32", 3, 64, "window"),
        Buffer("y", "f32", 3, 128, "owned"),
    )
    p = program(
        buffers, role + rest, (Port("x", 0, (4,), "f32", Layout.parse("[0 | nr nc]")),),
        (Port("y", 2, (12,), "f32", Layout.parse("[0: nr nc / 3]")),),
    )  # fmt: skip
    np.testing.assert_array_equal(run(p, x=X[:4])["y"], np.tile(X[1:4], 4))


def test_replicated_input_reaches_every_replica() -> None:
    everywhere = Layout.parse("[0]")
    p = program(
        (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((copy_call(0, 1, 4),),)),), (Port("x", 0, (4,), "f32", everywhere),),
        (Port("y", 1, (16,), "f32", QUARTERS),),
    )  # fmt: skip
    np.testing.assert_array_equal(run(p, x=X[:4])["y"], np.tile(X[:4], 4))


def test_trip_count_zero_skips_a_core() -> None:
    some = CoreInt(("nr", "nc"), (4, 4, 4, 1))
    p = program(
        (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((copy_call(0, 1, some),),)),), (Port("x", 0, (13,), "f32", QUARTERS),),
        (Port("y", 1, (13,), "f32", QUARTERS),),
    )  # fmt: skip
    np.testing.assert_array_equal(run(p, x=X[:13])["y"], X[:13])
    p = edit(p, 0, 0, 0, copy_call(0, 1, CoreInt(("nr", "nc"), (4, 4, 4, 0))))
    with pytest.raises(Trap, match="output 'y' is not written"):
        run(p, x=X[:13])


def test_negative_strides_and_tables() -> None:
    flip = replace(COPY, operands=(replace(COPY.operands[0], strides=(-1,)),))
    p = program(
        (Buffer("x", "f32", 4, 0, "owned"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((copy_call(0, 1, 4, base=3),),)),), (Port("x", 0, (16,), "f32", QUARTERS),),
        (Port("y", 1, (16,), "f32", QUARTERS),), kernels=(("flip", flip),),
    )  # fmt: skip
    np.testing.assert_array_equal(run(p, x=X)["y"], X.reshape(4, 4)[:, ::-1].ravel())


def test_barrier_waits_for_the_last_core() -> None:
    """Without the barrier, some order of events lets a push meet a window that is still in use."""
    p = halo(2)
    at = next(i for i, c in enumerate(p.roles[0].threads[0]) if isinstance(c, Barrier))
    loose = edit(p, 0, 0, at)
    failed = 0
    for seed in range(20):
        try:
            run(loose, seed, x=X)
        except Trap as e:
            assert e.buffer == "w"
            failed += 1
    assert failed


# ---- traps ----------------------------------------------------------------------------------------------------------


def test_read_of_padding_that_nobody_filled() -> None:
    with pytest.raises(Trap, match="uninitialised read: element 0 of w is free") as e:
        run(halo(fill=False), x=X)
    assert (e.value.core, e.value.buffer, e.value.address) == ("nr 0 nc 0", "w", 64)
    assert e.value.where == "conv0" and e.value.op == "Call sum3 -> y0" and "remedy" in str(e.value)


def test_reading_before_arrival() -> None:
    """A race: some order of events shows it."""
    with pytest.raises(Trap, match="uninitialised read"):
        for seed in range(20):
            run(edit(halo(), 0, 0, 1), seed, x=X)


def test_missing_credit_of_a_message() -> None:
    with pytest.raises(Trap, match=r"missing credit: element 0 of slot is (full|being filled)") as e:
        for seed in range(20):
            run(stream(credit=False), seed, x=X[:6])
    assert e.value.core == "nr 0 nc 1" and e.value.where.startswith("send")


def test_missing_credit_of_a_result_and_of_a_fill() -> None:
    p = halo()
    call = p.roles[0].threads[0][2]
    with pytest.raises(Trap, match="missing credit: element 0 of y0 is full"):
        run(edit(p, 0, 0, 2, call, call), x=X)
    assert isinstance(call, Call)
    np.testing.assert_array_equal(run(edit(p, 0, 0, 2, call, Free((2,)), call), x=X)["y"], halo_reference(X))
    with pytest.raises(Trap, match="missing credit"):
        run(edit(p, 0, 0, 0, Fill(1, -1, 0.0)), x=X)


def test_out_of_bounds() -> None:
    p = halo()
    call = p.roles[0].threads[0][2]
    assert isinstance(call, Call)
    with pytest.raises(Trap, match="out of bounds: element 6 of w is read, it has 6"):
        run(edit(p, 0, 0, 2, replace(call, bases=const(1))), x=X)
    small = replace(p.buffers[2], elements=3)
    with pytest.raises(Trap, match="out of bounds: element 3 of y0 is written"):
        run(replace(p, buffers=(*p.buffers[:2], small), outputs=()), x=X)


def test_free_under_a_message_on_its_way() -> None:
    p = stream(1)
    p = edit(p, 1, 0, 0, Free((1,)), Wait(0, CoreInt.const(1)))
    messages = set()
    for seed in range(30):
        try:
            run(p, seed, x=X[:2])
        except Trap as e:
            messages.add(e.message)
    assert "buffer slot is freed while a message is on its way to it" in messages


# ---- deadlock -------------------------------------------------------------------------------------------------------


def test_deadlock_says_who_waits_on_whom() -> None:
    left = (Wait(0, CoreInt.const(1), origin="a"), Post(1, (To("nc", "+", 1),)))
    right = (Wait(1, CoreInt.const(1), origin="b"), Post(0, (To("nc", "+", -1),)))
    roles = (
        Role("left", (("nr", 0, 1), ("nc", 0, 1)), (left,)),
        Role("right", (("nr", 0, 1), ("nc", 1, 2)), (right,)),
        Role("rest", (("nr", 1, 2),), ((Wait(5, CoreInt.const(2)),),)),
    )
    with pytest.raises(Deadlock, match="4 threads wait for ever") as e:
        run(program((), roles))
    assert len(e.value.waits) == 4
    assert "core nr 0 nc 0, role left, thread 0, command 0 Wait semaphore 0" in e.value.waits[0]
    assert "semaphore 0 has 0, needs 1 (for a)" in e.value.waits[0]
    assert "could be posted by core nr 0 nc 1 thread 0 (now at 0) by command 1 Post semaphore 0" in e.value.waits[0]
    assert "nobody will post it" in e.value.waits[2]


def test_deadlock_lists_ten_threads_at_most() -> None:
    thread: tuple[Command, ...] = (Wait(0, CoreInt.const(1)),)
    with pytest.raises(Deadlock, match="16 threads") as e:
        run(program((), (Role("all", (), (thread,) * 4),)))
    assert len(e.value.waits) == 10


# ---- whole networks -------------------------------------------------------------------------------------------------


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    w = {
        "w": rng.normal(size=(6, 4, 3, 3)).astype(np.float32), "b": rng.normal(size=6).astype(np.float32),
        "m": rng.normal(size=(54, 5)).astype(np.float32), "at": np.array([-1]), "end": np.array([-100]),
        "ax": np.array([2]), "st": np.array([-1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["x", "at", "end", "ax", "st"], ["f"]),
        helper.make_node("Conv", ["f", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["v"]),
        helper.make_node("MatMul", ["v", "m"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(v, k) for k, v in w.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("policy", ["f32", "bf16"])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_compiled_network_has_the_bits_of_the_graph(policy: str, seed: int | None) -> None:
    steps = [n for n in PIPELINE if PASSES[n].level_out == "graph"]
    graph = run_pipeline(import_onnx(network()), steps, options={"policy": policy}).module
    x = np.random.default_rng(6).normal(size=(2, 4, 6, 5)).astype(np.float32)
    want = evaluate(graph, {"x": x})["y"]
    target = machine("test")
    p = lower(distribute.run(graph, target, seed), target).program
    for shuffle in (None, 0):
        assert run(p, shuffle, x=x)["y"].tobytes() == want.tobytes()
    with d1rt.load(p) as loaded:
        loaded.run({"x": x}, engine="numpy", keep=True)
        for i, record in enumerate(p.layers):
            assert list(loaded.layer_value(loaded.kept, i).shape) == record["shape"]
