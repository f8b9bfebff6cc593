"""Issue costs against counts made by hand."""

import dataclasses

import numpy as np
import pytest

from d1c.target.isa import COST, body_cycles, nest_cycles, nest_pipes
from d1c.target.kernel import INSTRUCTIONS, Loop, Nest, Operand
from d1c.target.machine import machine
from d1c.target.numerics import Recorder

M = machine("d1-tile")


def operand(dtype: str, *strides: int) -> Operand:
    return Operand(dtype, strides, (None,) * len(strides))


def mac(dtype: str, batch: bool = False) -> Nest:
    loops = tuple(Loop(n, 99) for n in ("b", "m", "n", "k", "e"))
    pair = 2 if dtype == "bf16" else 1
    b = operand(dtype, 4096 if batch else 0, 0, pair, 64, 1)
    return Nest("mac", loops, 3, (operand(dtype, 512, 32, 0, pair, 1), b), operand(dtype, 512, 32, 1, 0, 0), 2)


def test_matrix_steps_run_at_peak_when_tiles_are_full() -> None:
    pipes = nest_pipes(mac("bf16"), [4, 64, 32, 128, 2], M)
    steps = (4 * 64 // 8) * (32 // 8) * (256 // 4)
    assert pipes.matrix == pipes.binding == steps == pipes.load  # two 64-byte operands a step are exactly the load port
    flops = 2 * 4 * 64 * 32 * 256
    assert flops / float(pipes.binding) == M.mma_flops_per_cycle == 512
    assert nest_cycles(mac("bf16"), [4, 64, 32, 128, 2], M) == steps + M.call_cycles


def test_partial_tiles_cost_whole_steps_and_batches_do_not_share_rows() -> None:
    assert nest_pipes(mac("bf16"), [3, 3, 9, 5, 2], M).matrix == 2 * 2 * 3  # 9 rows, 9 columns, depth 10
    assert nest_pipes(mac("bf16", batch=True), [3, 3, 9, 5, 2], M).matrix == 3 * 1 * 2 * 3


def test_f32_products_run_on_sixteen_lanes() -> None:
    pipes = nest_pipes(mac("f32"), [1, 8, 32, 64, 1], M)
    assert pipes.matrix == 0 and pipes.vector == 8 * 2 * 64 == pipes.binding
    assert 2 * 8 * 32 * 64 / float(pipes.binding) == 32  # FLOP a cycle, the published f32 rate


def test_elementwise_binds_on_its_busiest_pipe() -> None:
    loops = (Loop("r", 9), Loop("c", 999))
    r = Recorder("f32", "f32")
    body = r.body(r.add(r.inputs[0], r.inputs[1]))
    f32 = operand("f32", 640, 1)
    add = Nest("map", loops, 2, (f32, f32), f32, 0, epilogue=body)
    pipes = nest_pipes(add, [10, 640], M)
    assert (pipes.vector, pipes.load, pipes.store) == (10 * 40, 10 * 640 * 8 / 128, 10 * 640 * 4 / 64)
    copy = nest_pipes(Nest("map", loops, 2, (operand("bf16", 640, 1),), operand("bf16", 640, 1), 0), [10, 640], M)
    assert (copy.vector, copy.load, copy.store) == (10 * 20, 10 * 10, 10 * 20)
    turned = nest_pipes(Nest("map", loops, 2, (operand("bf16", 1, 9),), operand("bf16", 640, 1), 0), [10, 640], M)
    assert turned.load == 6400 / M.gather_per_cycle
    r = Recorder("f32", "f32")
    slow = dataclasses.replace(add, epilogue=r.body(r.div(r.inputs[0], r.inputs[1])))
    assert nest_pipes(slow, [10, 640], M).vector == 4 * pipes.vector


def test_sums_along_and_across_lanes() -> None:
    across = Nest("sum", (Loop("c", 64), Loop("r", 99)), 1, (operand("f32", 1, 64),), operand("f32", 1, 0), 1)
    assert nest_pipes(across, [64, 50], M).vector == 4 * 50
    along = Nest(
        "sum", (Loop("r", 9), Loop("c", 99)), 1, (operand("f32", 100, 1),), operand("f32", 1, 0), 1, lanes=True
    )
    assert nest_pipes(along, [8, 100], M).vector == 8 * 7 + 8 * 4
    cut = dataclasses.replace(across, cut=1, slice=10)
    assert nest_pipes(cut, [64, 50], M).vector == 4 * 50 + 4 * 4


def test_vectorised_over_trips_and_empty_calls() -> None:
    trips = np.array([[[4, 64, 32, 128, 2], [3, 3, 9, 5, 2]], [[0, 1, 1, 1, 2], [1, 1, 1, 0, 2]]])
    together = nest_cycles(mac("bf16"), trips, M)
    assert together.shape == (2, 2) and together.dtype == np.int64 and together[1, 0] == M.call_cycles
    for index in np.ndindex(2, 2):
        assert together[index] == nest_cycles(mac("bf16"), trips[index], M)
    with pytest.raises(ValueError, match="2 trip counts for 5 loops"):
        nest_cycles(mac("bf16"), [1, 2], M)


def test_more_work_never_costs_less() -> None:
    rng = np.random.default_rng(0)
    for nest in (mac("bf16"), mac("f32"), mac("bf16", True)):
        trips = rng.integers(0, 40, (200, 5))
        assert (nest_cycles(nest, trips + rng.integers(0, 3, (200, 5)), M) >= nest_cycles(nest, trips, M)).all()


def test_every_instruction_has_a_cost() -> None:
    assert set(COST) == set(INSTRUCTIONS)
    assert body_cycles(None, M) == 0


def test_f64_is_integer_code_for_two_vectors() -> None:
    assert nest_pipes(mac("f64"), [1, 8, 32, 64, 1], M).vector == 8 * 2 * 64 * 2 * M.f64_slots * 2  # multiply, add
    r = Recorder("f64", "f64")
    a, b = r.inputs
    assert body_cycles(r.body(r.add(a, b)), M) == 2 * M.f64_slots
    assert body_cycles(r.body(r.abs(a)), M) == 2 * M.f64_slots + 2  # the addition is still there
    assert body_cycles(Recorder("f64").body(Recorder("f64").inputs[0]), M) == 0


def test_a_scatter_costs_as_if_the_core_held_every_row() -> None:
    loops = (Loop("v", 99), Loop("d", 99), Loop("u", 99))
    io = operand("f32", 64, 1, 0)
    r = Recorder("f32", "f32")
    nest = Nest("scatter", loops, 2, (io, operand("i64", 0, 0, 1), operand("f32", 0, 1, 64)), io, 3)
    plain = nest_pipes(nest, [10, 64, 7], M)
    assert plain.vector == 10 * 4 + 7 * 4 and plain.store == (10 + 7) * 64 * 4 / M.store_bytes_per_cycle
    added = nest_pipes(dataclasses.replace(nest, term=r.body(r.add(*r.inputs))), [10, 64, 7], M)
    assert added.vector == 10 * 4 + 7 * 4 * 2 and added.scalar == plain.scalar
