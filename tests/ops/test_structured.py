"""Iteration spaces: what they say equals numpy's meaning, and any split along slices leaves every bit alone."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from d1c.interp import combiner, dense, eval_box, reduce_structured, whole
from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType
from d1c.ops.graph.contract import ConvAttrs, MatmulAttrs, pack, pack_conv
from d1c.ops.graph.reduce import PoolAttrs, ReduceAttrs
from d1c.ops.opdef import load_all, opdef
from d1c.target.dtypes import BF16, from_numpy
from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.numerics import round_to, run_nest, tree, widen

ROWS = [row for row in load_all().values() if row.structure and row.kind in ("contract", "reduce", "map", "lookup")]


def structured(name: str, attrs: Any, *arrays: np.ndarray) -> Structured:
    row = opdef(name)
    types = tuple(TensorType(x.shape, from_numpy(x.dtype)) for x in arrays)
    assert row.structure is not None
    return row.structure(types, attrs, row.infer(types, attrs))


def brute_force(st: Structured, arrays: list[np.ndarray]) -> np.ndarray:
    """The maps read literally, point by point, in float64."""

    def read(i: int, point: tuple[int, ...]) -> float:
        at, d = [], 0
        for e in st.maps[i]:
            linear = e.offset + sum(c * point[k] for k, c in e.terms)
            shape = arrays[i].shape[d : d + e.span]
            if not 0 <= linear < math.prod(shape):
                fill = st.fills[i]
                assert fill is not None
                return fill
            at += [int(k) for k in np.unravel_index(linear, shape)]
            d += e.span
        return float(arrays[i][tuple(at)])

    start = {"max": -np.inf, "min": np.inf, "prod": 1.0}.get(st.kind, 0.0)
    out = np.full(st.out_shape, start)
    for point in product(*(range(d.extent) for d in st.dims)):
        p = point[: st.parallel]
        if st.kind in ("mac", "fma"):
            out[p] += read(0, point) * read(1, point)
        elif st.kind in ("max", "min"):
            out[p] = (max if st.kind == "max" else min)(out[p], read(0, point))
        elif st.kind == "prod":
            out[p] *= read(0, point)
        elif st.kind == "lookup":
            out[p] += read(1, point) if read(0, point) == point[-1] else 0
        else:
            out[p] += sum(read(i, point) for i in range(len(arrays)))
    return out


SMALL: list[tuple[str, Any, list[tuple[int, ...]]]] = [
    ("graph.matmul", MatmulAttrs(True), [(2, 1, 3, 5), (2, 3, 4, 2)]),
    ("graph.matmul", MatmulAttrs(False), [(3, 5), (5, 4)]),
    ("graph.conv", ConvAttrs((2, 1), (1, 0, 1, 2), (1, 2), 1, True), [(1, 5, 4, 3), (2, 2, 2, 4, 2)]),
    ("graph.conv", ConvAttrs((1,), (1, 1), (1,), 2, True), [(2, 4, 8), (2, 3, 2, 3, 2)]),
    ("graph.conv", ConvAttrs((2,), (1, 1), (1,), 4), [(2, 5, 4), (3, 4)]),
    ("graph.reduce_sum", ReduceAttrs((0, 2), True), [(3, 4, 5)]),
    ("graph.reduce_max", ReduceAttrs((1,)), [(3, 4, 5)]),
    ("graph.reduce_prod", ReduceAttrs((1,)), [(3, 4, 5)]),
    ("graph.max_pool", PoolAttrs((2, 3), (2, 1), (0, 1, 1, 1), (1, 1)), [(1, 4, 5, 2)]),
    ("graph.sum_pool", PoolAttrs((3,), (2,), (1, 0), (1,)), [(2, 6, 2)]),
]


@pytest.mark.parametrize(("name", "attrs", "shapes"), SMALL)
def test_maps_say_what_the_op_computes(name: str, attrs: Any, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    st = structured(name, attrs, *arrays)
    np.testing.assert_allclose(reduce_structured(st, arrays), brute_force(st, arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("row", "i"), [(r, i) for r in ROWS for i in range(len(r.cases))])
def test_structures_give_the_expected_values(row: Any, i: int) -> None:
    """Against the row's own reference, which is numpy; concat and lookup included."""
    attrs, arrays, expected = row.cases[i](np.random.default_rng(2))
    st = structured(row.name, attrs, *arrays)
    if st.kind == "map" and np.prod([d.extent for d in st.dims]) < 500:
        np.testing.assert_allclose(brute_force(st, arrays), expected, rtol=1e-6)
    elif st.kind != "map":
        np.testing.assert_allclose(
            reduce_structured(st, arrays).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4
        )


def data(rng: np.random.Generator, shape: tuple[int, ...], bf16: bool) -> np.ndarray:
    """Values of very different sizes, so that another order of additions gives other bits."""
    x = (rng.normal(size=shape) * 2.0 ** rng.integers(-12, 12, shape)).astype(np.float32)
    return round_to(x, BF16) if bf16 else x


SPLIT: list[tuple[str, Any, list[tuple[int, ...]], bool]] = [
    ("graph.matmul", MatmulAttrs(True), [(3, 701), (351, 4, 2)], True),
    ("graph.matmul", MatmulAttrs(True), [(2, 3, 512), (512, 3, 1)], False),
    ("graph.conv", ConvAttrs((1, 2), (1, 1, 1, 1), (1, 1), 1, True), [(1, 4, 5, 66), (3, 3, 33, 3, 2)], True),
    ("graph.conv", ConvAttrs((1, 1), (1, 1, 1, 1), (1, 1), 1, True), [(1, 3, 3, 50), (3, 3, 50, 3, 1)], False),
    ("graph.conv", ConvAttrs((1,), (1, 1), (1,), 2, True), [(1, 6, 240), (2, 3, 60, 3, 2)], True),
    ("graph.conv", ConvAttrs((2, 2), (1, 1, 1, 1), (1, 1), 5), [(1, 5, 5, 5), (3, 3, 5)], True),
    ("graph.reduce_sum", ReduceAttrs((1,)), [(3, 1003)], False),
    ("graph.reduce_sum", ReduceAttrs((1, 2), True), [(2, 41, 9, 3)], False),
    ("graph.reduce_sum", ReduceAttrs((0, 2)), [(5, 3, 300)], True),
    ("graph.reduce_max", ReduceAttrs((1,)), [(3, 1003)], True),
    ("graph.reduce_prod", ReduceAttrs((0, 1)), [(140, 3, 5)], False),
    ("graph.reduce_prod", ReduceAttrs((1,)), [(3, 150)], True),
    ("graph.sum_pool", PoolAttrs((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), [(1, 6, 6, 3)], False),
]


@pytest.mark.parametrize(("name", "attrs", "shapes", "bf16"), SPLIT)
def test_any_split_along_slices_gives_the_same_bytes(
    name: str, attrs: Any, shapes: list[tuple[int, ...]], bf16: bool
) -> None:
    rng = np.random.default_rng(7)
    arrays = [data(rng, s, bf16) for s in shapes]
    st = structured(name, attrs, *arrays)
    want = reduce_structured(st, arrays)
    for _ in range(3):
        cuts = [_cuts(rng, d.extent) if k < st.parallel else [0, d.extent] for k, d in enumerate(st.dims)]
        blocks = 1
        if st.cut is not None:
            extent, blocks = st.dims[st.cut].extent, st.slice * 2 ** int(rng.integers(0, 4))
            cuts[st.cut] = [*range(0, extent, blocks), extent]
        got = np.full_like(want, np.nan)
        inner = [list(pairwise(c)) for c in cuts]
        for parallel in product(*inner[: st.parallel]):
            parts = {}
            for reduce in product(*inner[st.parallel :]):
                box = (*parallel, *reduce)
                read = [dense(st, i, box, x) for i, x in enumerate(arrays)]
                acc = eval_box(st, box, [x for x, _ in read], [s for _, s in read])
                parts[box[st.cut][0] // blocks if st.cut is not None else 0] = acc
            got[tuple(slice(lo, hi) for lo, hi in parallel)] = tree(parts, combiner(st.kind))
        assert got.tobytes() == want.tobytes()


def _cuts(rng: np.random.Generator, extent: int) -> list[int]:
    inner = rng.integers(1, extent, 2) if extent > 1 else []
    return sorted({0, extent, *(int(i) for i in inner)})


@pytest.mark.parametrize(("name", "attrs", "shapes", "bf16"), SPLIT)
def test_same_bytes_as_the_kernel(name: str, attrs: Any, shapes: list[tuple[int, ...]], bf16: bool) -> None:
    """The graph's evaluator and run_nest, written apart, on one core."""
    rng = np.random.default_rng(8)
    arrays = [data(rng, s, bf16) for s in shapes]
    st = structured(name, attrs, *arrays)
    box, none = whole(st), (None,) * len(st.dims)
    operands, memory = [], []
    for i, x in enumerate(arrays):
        raw, start = dense(st, i, box, x)
        strides, base, step = [0] * len(box), 0, 1
        for e, first, n in reversed(list(zip(st.maps[i], start, raw.shape, strict=True))):
            base += (e.offset - first) * step
            for d, c in e.terms:
                strides[d] += c * step
            step *= n
        assert base == 0
        memory.append(np.ascontiguousarray(raw).reshape(-1))
        operands.append(Operand(from_numpy(x.dtype).name, tuple(strides), none))
    out_strides = [math.prod(st.out_shape[k + 1 :]) for k in range(st.parallel)] + [0] * (len(box) - st.parallel)
    loops = tuple(Loop(d.name, d.extent) for d in st.dims)
    out = Operand("f32", tuple(out_strides), none)
    nest = Nest(
        st.kind, loops, st.parallel, tuple(operands), out, st.n_term, cut=st.cut, slice=st.slice, lanes=st.lanes
    )
    result = np.zeros(math.prod(st.out_shape), np.float32)
    run_nest(nest, result, memory, [], [d.extent for d in st.dims], [])
    assert result.tobytes() == round_to(reduce_structured(st, arrays), "f32").tobytes()


def test_slices_follow_the_rule() -> None:
    """N5's table: number of slices for K terms."""
    table = {27: 1, 64: 1, 147: 2, 576: 8, 768: 8, 1024: 16, 2304: 16, 3072: 16, 4608: 16}
    for k, slices in table.items():
        w = np.zeros((k, 1, 1), np.float32)
        st = structured("graph.matmul", MatmulAttrs(True), np.zeros((1, k), np.float32), w)
        assert -(-k // st.slice) == slices and st.slice % 4 == 0


def test_term_and_lookup_on_a_box() -> None:
    rng = np.random.default_rng(9)
    x, y = (rng.normal(size=(4, 40)).astype(np.float32) for _ in range(2))
    st = structured("graph.reduce_sum", ReduceAttrs((1,)), x)
    both = Structured(
        st.dims, "sum", (st.maps[0], (Entry(((0, 1),)), Entry())), (None, None), 2, st.cut, st.slice, True
    )
    mean = y[:, :1]
    got = reduce_structured(both, [x, mean], lambda a, m: (a - m) * (a - m))
    np.testing.assert_allclose(got, ((x - mean) ** 2).sum(1), rtol=1e-5)

    table, index = rng.normal(size=(9, 5)).astype(np.float32), np.array([3, 0, 8, 5])
    look = structured("graph.lookup", opdef("graph.lookup").attrs(), index, table)
    parts = {}
    for k, (lo, hi) in enumerate(((0, 4), (4, 9))):
        parts[k] = eval_box(look, ((0, 4), (0, 5), (lo, hi)), [index, table[lo:hi]], [(0,), (lo, 0)])
    assert tree(parts, combiner("lookup")).tobytes() == table[index].tobytes()


def test_dense_reads_spans_and_fills() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    st = Structured((Dim("d0", 5),), "map", ((Entry(((0, 1),), 9, 2),),), (0.5,), 0)
    raw, start = dense(st, 0, ((0, 5),), x)
    assert raw.tolist() == [9, 10, 11, 0.5, 0.5] and start == (9,)
    assert eval_box(st, ((1, 4),), [raw], [start]).tolist() == [10, 11, 0.5]


def test_packed_order() -> None:
    w = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert pack(w, True).tolist() == [[[0, 2], [1, 3]], [[4, 6], [5, 7]], [[8, 0], [9, 0]]]
    assert pack_conv(np.zeros((3, 3, 4, 6)), 2, True).shape == (2, 3, 3, 2, 3, 2)
    assert widen(round_to(w, BF16)).tolist() == w.tolist()
