"""Calls of many cores made as one: which cores go together, how columns are packed, and the bits of the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.passes import distribute
from d1c.passes.lower_tile import run as lower
from d1c.pipeline import PASSES, PIPELINE, run_pipeline
from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.machine import machine
from d1rt import engine_jit
from d1rt.engine_jit import Engine
from d1rt.engine_joint import _cuts, _runs, grouped, ranks
from d1rt.jit_joint_shape import Matrix, matrix
from tests import networks

GRAPH = [n for n in PIPELINE if PASSES[n].level_out == "graph"]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_all_pairs_of_windows_and_columns(seed: int) -> None:
    """Against the definition: every core once; a set has one window; a segment has one kind of column."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    window = rng.integers(0, rng.integers(1, 9), (n, 2))
    columns = rng.integers(0, rng.integers(1, 5), (n, 2))
    rows, lanes = window[:, 0] + 1, columns[:, 1] + 1
    groups = grouped(window, columns, rows, lanes)
    assert sorted(itertools.chain(*(g.cores.reshape(-1).tolist() for g in groups))) == list(range(n))
    for g in groups:
        for row, cores in zip(g.rows, g.cores, strict=True):
            assert len(np.unique(window[cores], axis=0)) == 1 and (rows[cores] == row).all()
            assert len(np.unique(columns[cores], axis=0)) == len(cores)
        for lane, cores in zip(g.lanes, g.cores.T, strict=True):
            assert len(np.unique(columns[cores], axis=0)) == 1 and (lanes[cores] == lane).all()
    whole = {tuple(map(tuple, np.unique(columns[g.cores[0]], axis=0).tolist())) for g in groups}
    assert len(whole) == len(groups)  # sets with the same columns are in one group


def test_ranks_are_those_of_whole_rows() -> None:
    rows = np.random.default_rng(2).integers(-3, 3, (200, 3)) << 60
    rows[:, 1] = 7
    np.testing.assert_array_equal(ranks(rows), np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1))
    assert ranks(np.array([[5, 5]] * 3)).tolist() == [0, 0, 0]


def test_a_full_grid_is_one_group() -> None:
    a, b = np.divmod(np.random.default_rng(0).permutation(12), 4)
    (g,) = grouped(a[:, None], b[:, None], a + 1, b + 1)
    assert g.cores.shape == (3, 4) and g.rows.tolist() == [1, 2, 3] and g.lanes.tolist() == [1, 2, 3, 4]


def test_runs_of_sets_have_at_most_so_many_rows() -> None:
    assert _cuts(np.array([3, 3, 3, 9, 1, 1]), 6) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert _cuts(np.array([2]), 1) == [(0, 1)]


def test_runs_of_segments_fill_panels() -> None:
    assert _runs(np.array([24] * 8), 64, 80) == ([(0, 2), (2, 4), (4, 6), (6, 8)], 256)  # 48 of 64, not 72 of 128
    assert _runs(np.array([24] * 8), 64, 192) == ([(0, 8)], 192)
    assert _runs(np.array([100, 10]), 16, 64) == ([(0, 1), (1, 2)], 128)  # one core has more than the limit


def product(b: tuple[int, ...], a: tuple[int, ...] = (8, 0, 2, 1), dtype: str = "bf16", n: int = 3) -> Nest:
    """m x n x 4 x pair."""
    loops = tuple(Loop(x, e) for x, e in zip("mnke", (5, n, 4, 2), strict=True))
    out = Operand("bf16", (n, 1, 0, 0), (None,) * 4)
    return Nest("mac", loops, 2, tuple(Operand(dtype, s, (None,) * 4) for s in (a, b)), out, 2)


def test_which_matrices_can_be_packed() -> None:
    assert matrix(product((0, 2, 6, 1))) == Matrix(4, 3, (0, 0, 1, 0), ())
    assert matrix(product((0, 2, 12, 1))) == Matrix(4, 6, (0, 0, 1, 0), ())  # columns of a wider matrix
    assert matrix(product((30, 2, 6, 1))) == Matrix(4, 3, (0, 0, 1, 0), (0,))  # a matrix for every row
    assert matrix(product((0, 8, 2, 1))) == Matrix(4, 1, (0, 0, 1, 0), (), 4)  # columns, each by itself
    assert matrix(product((30, 10, 2, 1))) == Matrix(4, 1, (0, 0, 1, 0), (0,), 5)
    for b in ((0, 1, 6, 3), (0, 2, 7, 1), (0, 2, -6, 1), (0, 2, 4, 1), (0, 6, 2, 1), (0, 9, 2, 1), (0, 8, 4, 1)):
        assert matrix(product(b)) is None
    assert matrix(product((0, 2, 6, 1), (8, 1, 2, 1))) is None  # rows that depend on the column
    assert matrix(product((0, 2, 6, 1), dtype="i8")) is None


def convolutions() -> onnx.ModelProto:
    """A convolution with a residual, a pointwise one with few columns, a product with many."""
    f = networks.Net(3)
    x = f("Relu", f.conv("x", 6, 10, 3, 3, bias=True, pads=[1] * 4))
    y = f("Add", f.conv(x, 10, 10, 3, 3, bias=True, pads=[1] * 4), x)
    y = f("Relu", f.conv(y, 10, 5, 1, 1, bias=True, strides=[2, 2]))
    y = f("MatMul", f("Flatten", y), f.random(5 * 12, 70, fan=60))
    return f.model({"x": np.zeros((2, 6, 6, 7), np.float32)}, y)[0]


def attention() -> onnx.ModelProto:
    """Three heads of products of two activations, and a convolution of groups."""
    f = networks.Net(4)
    q, k, v = (f("MatMul", "x", f.random(36, 36, fan=36)) for _ in range(3))
    heads = [f("Transpose", f("Reshape", x, f.ints(2, 26, 3, 12)), perm=[0, 2, 1, 3]) for x in (q, k, v)]
    s = f("Softmax", f("MatMul", heads[0], f("Transpose", heads[1], perm=[0, 1, 3, 2])))
    y = f("Reshape", f("Transpose", f("MatMul", s, heads[2]), perm=[0, 1, 3, 2]), f.ints(2, 36, 13, 2))
    return f.model({"x": np.zeros((2, 26, 36), np.float32)}, f.conv(y, 36, 12, 3, 1, groups=3, pads=[1, 0, 1, 0]))[0]


def deep() -> onnx.ModelProto:
    """Convolutions with so many channels that rows are taken to f32; some plans cut both spatial dims together."""
    f = networks.Net(5)
    y = f.conv(f("Relu", f.conv("x", 32, 64, 3, 3, bias=True, pads=[1] * 4)), 64, 52, 1, 1)
    return f.model({"x": np.zeros((1, 32, 5, 7), np.float32)}, y)[0]


CASES = [
    *((n, p, s) for n in (convolutions, attention) for p in ("f32", "bf16") for s in (None, 1, 2)),
    (deep, "bf16", 2), (deep, "bf16", 5),
]  # fmt: skip


@pytest.mark.parametrize(("network", "policy", "seed"), CASES)
def test_the_bits_are_the_graphs(
    network: Callable[[], onnx.ModelProto], policy: str, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    graph = run_pipeline(import_onnx(model), GRAPH, options={"policy": policy}).module
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = {"x": np.random.default_rng(6).standard_normal(shape).astype(np.float32)}
    want = next(iter(evaluate(graph, x).values())).tobytes()
    p = lower(distribute.run(graph, machine("test"), seed), machine("test")).program
    for wide, threads, shuffle in ((False, 1, None), (True, 2, 4)):
        monkeypatch.setattr(engine_jit, "units_of", lambda _, w=wide: (w, False))
        engine = Engine(p, threads, shuffle, use_dot=False)
        assert engine._joints[1]
        for _ in range(2):
            assert next(iter(engine.run(x).outputs.values())).tobytes() == want
        engine.close()
