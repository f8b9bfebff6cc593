"""One core's blocks that are packed, and small reductions that are written out: against the definition, bit for bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.numerics import Recorder
from d1rt.jit_joint_shape import alone, uneven
from d1rt.jit_loops import unrolled
from d1rt.jit_nest import build
from tests.runtime.test_jit_nests import check, fewer, matmul, random_reduce, rows_by_rows, run_all


def conv(h: int, w: int, o: int, c: int, dtype: str) -> Nest:
    """3 x 3 taps over a window of h + 2 by w + 2, c words deep (pairs of bf16, or f32), bias and relu."""
    e = 2 if dtype == "bf16" else 1
    loops = tuple(Loop(n, x) for n, x in zip("hwoyxce", (h, w, o, 3, 3, c, e), strict=True))
    none = (None,) * 7
    row, column, one = (w + 2) * c * e, c * e, int(e == 2)
    a = Operand(dtype, (row, column, 0, row, column, e, one), none)
    b = Operand(dtype, (0, 0, e, 3 * c * o * e, c * o * e, o * e, one), none)
    bias = Operand("f32", (0, 0, 1, 0, 0, 0, 0), none)
    r = Recorder("f32", "f32")
    out = Operand(dtype, (w * o, o, 1, 0, 0, 0, 0), none)
    body = r.body(r.max(r.add(*r.inputs), 0.0))
    return Nest("mac", loops, 3, (a, b, bias), out, 2, None, body, 5, 4)


@pytest.mark.parametrize("wide", [False, True])
def test_blocks_of_one_core_are_packed(folder: Path, wide: bool) -> None:
    nests = [
        matmul(49, 40, 64, 8), matmul(56, 16, 96, 64), matmul(25, 69, 130, 24), rows_by_rows(64, 50, 64, gap=1),
        conv(5, 6, 24, 8, "bf16"), conv(7, 7, 48, 5, "f32"), conv(4, 8, 20, 3, "bf16"),
    ]  # fmt: skip
    assert all(alone(n, wide, False) is not None for n in nests)
    assert {alone(n, wide, False).uneven for n in nests} == {False, True}  # type: ignore[union-attr]
    run_all(folder, [(n, []) for n in nests], pair=True, use_dot=False, wide=wide)


def test_which_blocks_are_packed() -> None:
    assert alone(matmul(12, 64, 512, 8), False, False) is None  # few rows
    assert alone(matmul(64, 64, 64, 8), False, True) is None  # the dot product reads pairs as they lie
    assert alone(matmul(64, 600, 64, 8), False, False) is None
    assert [uneven(n, 6) for n in (20, 48, 49, 64, 196, 128)] == [False, False, True, True, False, True]


@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min", "or", "fma"])
def test_reductions_written_out(folder: Path, kind: str) -> None:
    """Calls that make all iterations of some loops, and any number of the others."""
    rnd, cases = random.Random(f"{kind} small"), []
    while len(cases) < 25:
        nest, tables = random_reduce(rnd, kind)
        small = tuple(
            replace(n, extent=min(n.extent, 3)) if i >= nest.parallel else n for i, n in enumerate(nest.loops)
        )
        nest = replace(nest, loops=small)
        fixed = {i for i in range(len(small)) if rnd.random() < 0.8}
        if unrolled(nest, fixed):
            cases.append((nest, tables, fixed))
    kernels = build(
        {str(i): n for i, (n, _, _) in enumerate(cases)}, folder=folder,
        fixed={str(i): f for i, (_, _, f) in enumerate(cases)},
    )  # fmt: skip
    for i, (nest, tables, fixed) in enumerate(cases):
        rnd, rng = random.Random(i), np.random.default_rng(i)
        for turn in range(4):
            trips = fewer(rnd, nest.loops)
            for k in fixed:
                trips[k] = nest.loops[k].extent
            check(kernels, str(i), nest, rng, trips, [0] * nest.scalars, tables, turn != 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")
