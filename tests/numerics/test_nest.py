"""run_nest against plain nested loops over exact scalar arithmetic (tests/numerics/scalar.py), for every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d1c.target.dtypes import dtype
from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.numerics import Recorder, mac_pairs, round_to, run_nest, slices, sum_axes, tree, widen
from tests.numerics.scalar import bits32, combine_tree, hard_floats, reduce_nest, to_bf16

RNG = np.random.default_rng(0)


def data(name: str, n: int, hard: bool) -> np.ndarray:
    x = hard_floats(RNG, n) if hard else (RNG.standard_normal(n) * np.exp2(RNG.integers(-20, 20, n))).astype(np.float32)
    if hard:  # few specials, or every sum is NaN
        x = np.where(np.isfinite(x) | (RNG.random(n) < 0.02), x, np.float32(2.0**-120))
    return round_to(x.astype(np.float32), name)


def operand(name: str, strides: tuple[int, ...], tables: tuple[int | None, ...] | None = None) -> Operand:
    return Operand(name, strides, tables or (None,) * len(strides))


def loops(*extents: int) -> tuple[Loop, ...]:
    return tuple(Loop(f"l{i}", n) for i, n in enumerate(extents))


def check(nest: Nest, operands: list[np.ndarray], tables: list[np.ndarray], trips: list[int], size: int) -> None:
    """Every output has the bits of the scalar reference, and no other element is written."""
    storage = dtype(nest.out.dtype).numpy
    before = np.full(size, 7, storage)
    out = before.copy()
    run_nest(nest, out, operands, tables, trips, [])
    with np.errstate(all="ignore"):
        plain = [widen(o).tolist() for o in operands]
    want = reduce_nest(nest, plain, [t.tolist() for t in tables], trips)
    unsigned = f"u{storage.itemsize}"
    for place in range(size):
        if place in want:
            bits = to_bf16(want[place]) if nest.out.dtype == "bf16" else bits32(want[place])
            assert out.view(unsigned)[place] == bits, (place, out[place], want[place])
        else:
            assert out.view(unsigned)[place] == before.view(unsigned)[place]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("k", "cut"), [(9, None), (16, 4), (14, 4), (3, 4)])
def test_bf16_mac_pairs_in_slices(k, cut, hard):
    m, n = 3, 5
    nest = Nest(
        "mac", loops(m, n, k, 2), 2, (operand("bf16", (2 * k, 0, 2, 1)), operand("bf16", (0, 2, 2 * n, 1))),
        operand("bf16", (n, 1, 0, 0)), 2, cut=None if cut is None else 2, slice=cut or 0,
    )  # fmt: skip
    check(nest, [data("bf16", m * k * 2, hard), data("bf16", k * n * 2, hard)], [], [m, n, k, 2], m * n + 2)


def test_mac_of_a_window_with_tables_runs_taps_outside_the_cut_channels():
    w, o, taps, c = 4, 3, 3, 6  # out[w, o], taps of stride-2 windows by a table, channels cut in slices of 4
    table = np.array([5, 0, 40, 17], np.uint32)
    nest = Nest(
        "mac", loops(w, o, taps, c, 2), 2,
        (operand("bf16", (9, 0, 12, 2, 1), (0, None, None, None, None)), operand("bf16", (0, 2, 36, 6, 1))),
        operand("f32", (o, 1, 0, 0, 0)), 2, cut=3, slice=4,
    )  # fmt: skip
    check(nest, [data("bf16", 100, False), data("bf16", 120, True)], [table], [w, o, taps, c, 2], w * o)


def test_f32_mac_is_one_ascending_fma_chain_a_slice():
    k = 11
    nest = Nest(
        "mac", loops(2, 3, k, 1), 2, (operand("f32", (k, 0, 1, 0)), operand("f32", (0, 1, 3, 0))),
        operand("f32", (3, 1, 0, 0)), 2, cut=2, slice=4,
    )  # fmt: skip
    for hard in (False, True):
        check(nest, [data("f32", 2 * k, hard), data("f32", k * 3, hard)], [], [2, 3, k, 1], 6)


def test_fma_kind():
    nest = Nest("fma", loops(4, 3, 5), 1, (operand("bf16", (1, 8, 4)), operand("f32", (1, 20, 4))),
                operand("f32", (1, 0, 0)), 2)  # fmt: skip
    check(nest, [data("bf16", 60, False), data("f32", 64, True)], [], [4, 3, 5], 4)


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("cut", [None, 4])
def test_reductions_over_two_loops(kind, cut, hard):
    nest = Nest(kind, loops(3, 9, 4), 1, (operand("f32", (1, 12, 3)),), operand("f32", (2, 0, 0)), 1,
                cut=None if cut is None else 1, slice=cut or 0)  # fmt: skip
    check(nest, [data("f32", 108, hard)], [], [3, 9, 4], 6)


@pytest.mark.parametrize("length", [1, 5, 16, 40, 71])
@pytest.mark.parametrize("cut", [None, 32])
@pytest.mark.parametrize("outer", [1, 3])
def test_sums_in_lanes(length, cut, outer):
    nest = Nest("sum", loops(2, outer, length), 1, (operand("f32", (outer * length, length, 1)),),
                operand("f32", (1, 0, 0)), 1, cut=None if cut is None else 2, slice=cut or 0, lanes=True)  # fmt: skip
    for hard in (False, True):
        check(nest, [data("f32", 2 * outer * length, hard)], [], [2, outer, length], 2)


def test_lanes_with_another_loop_cut():
    nest = Nest("sum", loops(2, 6, 20), 1, (operand("f32", (120, 20, 1)),), operand("bf16", (1, 0, 0)), 1,
                cut=1, slice=4, lanes=True)  # fmt: skip
    check(nest, [data("f32", 240, False)], [], [2, 6, 20], 2)


def test_parts_of_a_reduction_combine_to_the_whole():
    """Cores that hold aligned blocks of slices, combined by the same tree, give the bits of one core (N6)."""
    k, length = 7 * 16 - 5, 16
    x = data("f32", k, False)
    nest = Nest(
        "sum", loops(1, k), 1, (operand("f32", (0, 1)),), operand("f32", (0, 0)), 1, cut=1, slice=length, lanes=True
    )

    def run(lo: int, hi: int) -> np.ndarray:
        out = np.zeros(1, np.float32)
        run_nest(nest, out, [x[lo:hi]], [], [1, hi - lo], [])
        return out

    for block in (1, 2, 4, 8):
        starts = range(0, k, block * length)
        parts = {i: run(lo, min(lo + block * length, k)) for i, lo in enumerate(starts)}
        assert tree(parts, lambda a, b: a + b) == run(0, k)


def test_zero_trip_counts():
    out = np.full(4, 9, np.float32)
    a = np.ones(8, np.float32)
    for kind, want in (("mac", 0.0), ("fma", 0.0), ("sum", -0.0), ("max", -math.inf), ("min", math.inf)):
        count = 2 if kind in ("mac", "fma") else 1
        nest = Nest(kind, loops(4, 3, 1), 1, (operand("f32", (1, 0, 0)),) * count, operand("f32", (1, 0, 0)), count)
        out[:] = 9
        run_nest(nest, out, [a] * count, [], [0, 3, 1], [])
        assert (out == 9).all()
        run_nest(nest, out, [a] * count, [], [4, 0, 1], [])
        assert out.view(np.uint32).tolist() == [bits32(want)] * 4


def test_a_plain_map_moves_bits_and_a_converting_one_stores_one_nan():
    bits = np.array([0x7F81, 0xFFC1, 0x0001, 0x8000, 0x3F80, 0xFF80], np.uint16)
    move = Nest("map", loops(2, 3), 2, (operand("bf16", (1, 2)),), operand("bf16", (3, 1)), 0)
    out = np.zeros(6, np.uint16)
    run_nest(move, out, [bits], [], [2, 3], [])
    assert np.array_equal(out.reshape(2, 3), bits.reshape(3, 2).T)
    widened = Nest("map", loops(6), 1, (operand("bf16", (1,)),), operand("f32", (1,)), 0)
    wide = np.zeros(6, np.uint32)
    run_nest(widened, wide, [bits], [], [6], [])
    assert wide.tolist() == [0x7FC00000, 0x7FC00000, 0x10000, 0x80000000, 0x3F800000, 0xFF800000]


def test_maps_and_epilogues_run_bodies_over_broadcast_operands_and_tables():
    r = Recorder("f32", "f32", "i32")
    x, y, z = r.inputs
    body = r.body(r.max(r.fma(x, y, r.cvt(z, "f32")), 0.0))
    nest = Nest(
        "map", loops(3, 4), 2, (operand("f32", (4, 1)), operand("bf16", (0, 1)), operand("u8", (0, 0), (0, None))),
        operand("bf16", (1, 0), (None, 1)), 0, epilogue=body,
    )  # fmt: skip
    a, b = data("f32", 12, False), data("bf16", 4, False)
    c = np.arange(250, 256, dtype=np.uint8)
    out = np.zeros(40, dtype("bf16").numpy)
    run_nest(nest, out, [a, b, c], [np.array([5, 0, 2], np.uint32), np.array([30, 0, 20, 10], np.uint32)], [3, 4], [])
    for i in range(3):
        for j in range(4):
            want = max(float(a[4 * i + j]) * float(b[j]) + float(c[[5, 0, 2][i]]), 0.0)
            assert float(out[i + [30, 0, 20, 10][j]]) == pytest.approx(want, rel=2.0**-8)


def test_a_term_and_an_epilogue_around_a_sum():
    r = Recorder("f32", "f32")
    term = r.body(r.mul(r.sub(r.inputs[0], r.inputs[1]), r.sub(r.inputs[0], r.inputs[1])))
    e = Recorder("f32", "f32")
    nest = Nest("sum", loops(3, 8), 1, (operand("f32", (8, 1)), operand("f32", (1, 0)), operand("f32", (0, 0))),
                operand("f32", (1, 0)), 2, term=term, epilogue=e.body(e.div(*e.inputs)))  # fmt: skip
    x = RNG.integers(-8, 8, (3, 8)).astype(np.float32)
    mean = np.float32([1, 2, 3])
    out = np.zeros(3, np.float32)
    run_nest(nest, out, [x.reshape(-1), mean, np.float32([8])], [], [3, 8], [])
    assert np.array_equal(out, ((x - mean[:, None]) ** 2).sum(1) / 8)


def test_integer_kinds_wrap():
    a = RNG.integers(-128, 128, 40).astype(np.int8)
    b = RNG.integers(-128, 128, 40).astype(np.int8)
    mac = Nest("mac", loops(1, 2, 10, 2), 2, (operand("i8", (0, 20, 2, 1)), operand("i8", (0, 20, 2, 1))),
               operand("i32", (0, 1, 0, 0)), 2, cut=2, slice=4)  # fmt: skip
    out = np.zeros(2, np.int32)
    run_nest(mac, out, [a, b], [], [1, 2, 10, 2], [])
    assert np.array_equal(out, (a.astype(np.int32) * b).reshape(2, 20).sum(1))
    total = Nest("sum", loops(1, 5), 1, (operand("i32", (0, 1)),), operand("i32", (0, 0)), 1)
    run_nest(total, out[:1], [np.full(5, 2**30, np.int32)], [], [1, 5], [])
    assert out[0] == 2**30
    largest = Nest("max", loops(2, 5), 1, (operand("i64", (5, 1)),), operand("i64", (1, 0)), 1)
    big = RNG.integers(-(2**62), 2**62, 10)
    wide = np.zeros(2, np.int64)
    run_nest(largest, wide, [big], [], [2, 5], [])
    assert np.array_equal(wide, big.reshape(2, 5).max(1))


def test_or_and_lookup_move_storage_bits():
    x = RNG.integers(0, 2**16, 12).astype(np.uint16)
    either = Nest("or", loops(3, 4), 1, (operand("bf16", (1, 3)),), operand("bf16", (1, 0)), 1)
    out = np.zeros(3, np.uint16)
    run_nest(either, out, [x], [], [3, 4], [])
    assert np.array_equal(out, np.bitwise_or.reduce(x.reshape(4, 3), axis=0))
    table = RNG.integers(0, 2**16, (10, 4)).astype(np.uint16)
    indices = np.array([0, 12, 20, 29, 13, -1], np.int64)
    lookup = Nest("lookup", loops(6, 4, 10), 2, (operand("i64", (1, 0, 0)), operand("bf16", (0, 1, 4))),
                  operand("bf16", (4, 1, 0)), 2)  # fmt: skip
    shares = []
    for first in (0, 10, 20):
        part = np.zeros(24, np.uint16)
        run_nest(lookup, part, [indices, table.reshape(-1)], [], [6, 4, 10], [first])
        held = (indices >= first) & (indices < first + 10)
        want = np.where(held[:, None], table[np.where(held, indices - first, 0)], 0)
        assert np.array_equal(part.reshape(6, 4), want)
        shares.append(part)
    assert (shares[0] != 0).any()


def test_addresses_outside_an_operand_are_errors():
    nest = Nest("map", loops(4), 1, (operand("f32", (-1,)),), operand("f32", (1,)), 0)
    with pytest.raises(IndexError):
        run_nest(nest, np.zeros(4, np.float32), [np.zeros(4, np.float32)], [], [4], [])


def test_slices_follow_the_table_of_n5():
    counts = [slices(k, k)[0] for k in (27, 64, 576, 768, 1024, 2304, 3072, 4608)]
    assert counts == [1, 1, 8, 8, 16, 16, 16, 16]
    assert slices(147, 3) == (1, 4) and slices(4608, 512) == (16, 32) and slices(100, 100) == (1, 100)
    assert slices(1000, 1000, 16) == (8, 128)


def test_tree_is_aligned_and_skips_missing_nodes():
    assert tree(dict(enumerate("abcde")), lambda x, y: f"({x}{y})") == "(((ab)(cd))e)"
    assert tree({1: "b", 2: "c", 3: "d"}, lambda x, y: f"({x}{y})") == "(b(cd))"
    values = [float(v) for v in data("f32", 13, False)]
    got = tree({i: np.float32(v) for i, v in enumerate(values)}, lambda x, y: x + y)
    assert got == combine_tree(list(values))


def test_whole_array_functions_agree_with_kernels():
    x = data("f32", 2 * 5 * 70, False).reshape(2, 5, 70)
    nest = Nest("sum", loops(2, 5, 70), 2, (operand("f32", (350, 70, 1)),), operand("f32", (5, 1, 0)), 1,
                cut=2, slice=slices(70, 70, 16)[1], lanes=True)  # fmt: skip
    out = np.zeros(10, np.float32)
    run_nest(nest, out, [x.reshape(-1)], [], [2, 5, 70], [])
    assert np.array_equal(sum_axes(x, (2,)).reshape(-1), out)
    assert np.allclose(sum_axes(x, (0, 1)), x.sum((0, 1)), rtol=1e-4, atol=1e-3)
    assert np.array_equal(sum_axes(x, (0, 2), "max"), x.max((0, 2)))
    a, b = data("f32", 6, False).reshape(3, 2), data("f32", 8, False).reshape(4, 2)
    got = mac_pairs(np.float32(1), a[:, None], b)
    assert np.allclose(got, 1 + a @ b.T, rtol=1e-5)
