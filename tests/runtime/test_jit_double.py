"""Compiled kernels in f64, and scatters, against their numpy definition, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from d1c.target.encoding import EncodingError, check
from d1c.target.kernel import COMPUTE_TYPE, INSTRUCTIONS, Body, Loop, Nest
from d1c.target.numerics import Recorder
from tests.runtime.test_jit_nests import FLOAT, STORAGE, operand, random_body, random_mac, random_reduce, run_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


def double_body(rnd: random.Random, inputs: list[str]) -> Body:
    """Straight-line code that computes in f64 on inputs of any type, f32 converted."""
    r = Recorder(*inputs)
    values = [r.cvt(v, "f64") for v in r.inputs] + [r.const(0.75, "f64"), r.const(-0.0, "f64")]
    for _ in range(6):
        name = rnd.choice(FLOAT)
        values.append(r.emit(name, tuple(rnd.choice(values[-4:]) for _ in range(INSTRUCTIONS[name][0])), "f64"))
    return r.body(r.select(r.lt(values[-2], values[-1]), values[-1], r.bits(r.bits(values[-2], "i64"), "f64")))


def test_double(folder: Path) -> None:
    """Maps, moves and every reduction in f64, with subnormals; f32 beside it is converted only."""
    rnd, cases = random.Random(7), []
    for i in range(30):
        depth = rnd.randint(1, 3)
        loops = tuple(Loop(f"l{j}", rnd.choice([1, 2, 5])) for j in range(depth - 1))
        loops += (Loop("n", rnd.choice([3, 35])),)
        tables: list[np.ndarray] = []
        count = 1 if i % 3 == 0 else rnd.randint(1, 3)
        names = [rnd.choice(["f64", "f64", "f32", "i64", "bool"]) for _ in range(count)]
        operands = tuple(operand(rnd, n, loops, list(range(depth)), tables) for n in names)
        out = operand(rnd, rnd.choice(["f64", "f64", "f32", "i32"]), loops, list(range(depth)), tables, ties=False)
        body = double_body(rnd, [COMPUTE_TYPE[n] for n in names])
        cases.append((Nest("map", loops, depth, operands, out, 0, epilogue=body if i % 3 else None), tables))
    for kind in ("sum", "prod", "max", "min", "fma"):
        cases += [random_reduce(rnd, kind, "f64") for _ in range(12)]
    cases += [random_mac(rnd, "f64") for _ in range(12)]
    cases = [(n, t) for n, t in cases if not _refused(n)]
    assert len(cases) > 80
    run_all(folder, cases)


def _refused(nest: Nest) -> bool:
    try:
        check(nest)
    except EncodingError as e:
        assert "f32" in str(e)
        return True
    return False


def random_scatter(rnd: random.Random) -> tuple[Nest, list[np.ndarray]]:
    """Rows of zero to two loops; updates of the same or another type; with and without arithmetic."""
    depth = rnd.randint(1, 3)
    loops = (Loop("v", rnd.choice([1, 4, 9])),)
    loops += tuple(Loop(f"p{i}", rnd.choice([1, 2, 5, 19, 40])) for i in range(depth - 1))
    loops += (Loop("u", rnd.choice([1, 7, 30])),)
    tables: list[np.ndarray] = []
    name = rnd.choice([*STORAGE, "f64"])
    other = name if name == "f64" else rnd.choice([name, name, "f32", "i32"])
    rows, inner = list(range(depth)), list(range(1, depth))
    data = operand(rnd, name, loops, rows, tables, dense=rnd.random() < 0.8)
    index = operand(rnd, rnd.choice(["i32", "i64", "u8"]), loops, [depth], tables, broadcast=0)
    update = operand(rnd, other, loops, [depth, *inner], tables, broadcast=0.1)
    out = operand(rnd, name, loops, rows, tables, ties=False, table=0.05, dense=rnd.random() < 0.8)
    term = None
    if rnd.random() < 0.6:
        if name != "f64":
            term = random_body(rnd, [COMPUTE_TYPE[name], COMPUTE_TYPE[other]], COMPUTE_TYPE[name])
        if name != "bool" and COMPUTE_TYPE[name] == COMPUTE_TYPE[other] and rnd.random() < 0.6:
            r = Recorder(COMPUTE_TYPE[name], COMPUTE_TYPE[other])
            term = r.body(r.emit(rnd.choice(["add", "mul", "max", "min"]), r.inputs, r.inputs[0].type))
    return Nest("scatter", loops, depth, (data, index, update), out, 3, term), tables


def test_scatter(folder: Path) -> None:
    rnd = random.Random(4)
    cases = [random_scatter(rnd) for _ in range(50)]
    for nest, _ in cases:
        check(nest)
    run_all(folder, cases)
