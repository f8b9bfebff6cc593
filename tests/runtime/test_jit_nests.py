"""Compiled kernels against their numpy definition, bit for bit, on random nests of every kind."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest

from d1c.target.dtypes import dtype
from d1c.target.kernel import COMPUTE_TYPE, INSTRUCTIONS, Body, Instr, Loop, Nest, Operand
from d1c.target.numerics import Recorder, exp, run_nest, tanh
from d1rt.jit_nest import Kernels, aligned, build, dot_agrees, dot_text, dot_works

GUARD = 64
"""Bytes around every buffer that a kernel must leave alone."""
FLOAT = ("add", "sub", "mul", "div", "fma", "sqrt", "min", "max", "rint", "floor", "ceil", "neg", "abs")
INTEGER = ("add", "sub", "mul", "div", "rem", "min", "max", "neg", "abs", "and", "or", "xor", "shl", "shr", "sar")
STORAGE = ("bf16", "f32", "i32", "i64", "bool", "u8", "f16", "i8", "u32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


def data(rng: np.random.Generator, name: str, n: int, special: bool = True) -> np.ndarray:
    """n storage elements: wide-range, subnormal, signed-zero, inf and nan floats; small and extreme integers."""
    t = dtype(name)
    if name == "f64":
        x = np.ldexp(rng.standard_normal(n), rng.choice([0, 0, 0, 0, 300, -300, -520, -1030, 200], n) if special else 0)
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 2.0**-1022, 1e300, 2.0**63, -(2.0**31)])
        return np.where(rng.random(n) < (0.08 if special and rng.random() < 0.6 else 0.0), rng.choice(odd, n), x)
    if t.is_float:
        x = rng.standard_normal(n).astype(np.float32)
        if special:
            scale = rng.choice([0, 0, 0, 0, 30, -30, 63, -63, -75, 100], n)
            x = np.ldexp(x, scale)
            odd = np.array(
                [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 2.0**-126, -(2.0**-126)], np.float32
            )
            x = np.where(rng.random(n) < 0.08, rng.choice(odd, n), x).astype(np.float32)
            if rng.random() < 0.6:  # most sums should not end as NaN
                x = np.where(np.isfinite(x), x, np.float32(1.5))
        with np.errstate(all="ignore"):
            return x.astype(t.numpy)
    if name == "bool":
        return rng.random(n) < 0.5
    info = np.iinfo(t.numpy)
    small = rng.integers(max(-9, info.min), 9, n)
    wide = rng.integers(info.min, info.max, n, dtype=t.numpy, endpoint=True)
    return np.where(rng.random(n) < 0.6, small, wide).astype(t.numpy)


def guarded(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `array` between guard bytes, at an odd multiple of the element size: (whole buffer, view)."""
    skip = GUARD + array.itemsize
    whole = aligned(array.nbytes + 2 * GUARD + array.itemsize)
    whole[:] = 0xA5
    view = whole[skip : skip + array.nbytes].view(array.dtype)
    view[:] = array
    return whole, view


def reach(operand: Operand, loops: tuple[Loop, ...], tables: list[np.ndarray]) -> int:
    """Elements that an operand may address."""
    most = 1
    for loop, stride, table in zip(loops, operand.strides, operand.tables, strict=True):
        most += int(tables[table].max(initial=0)) if table is not None else stride * max(0, loop.extent - 1)
    return most


def check(
    kernels: Kernels, name: str, nest: Nest, rng: np.random.Generator, trips: list[int], scalars: list[int],
    tables: list[np.ndarray], special: bool = True, index: np.ndarray | None = None,
) -> None:  # fmt: skip
    """One call, compared with run_nest including everything that must not be written."""
    arrays = [data(rng, o.dtype, reach(o, nest.loops, tables), special) for o in nest.operands]
    if index is not None:
        k = 1 if nest.kind == "scatter" else 0
        arrays[k] = rng.choice(index, arrays[k].size).astype(arrays[k].dtype)
    out = data(rng, nest.out.dtype, reach(nest.out, nest.loops, tables))
    expected_whole, expected = guarded(out)
    actual_whole, actual = guarded(out)
    inputs = [guarded(a) for a in arrays]
    held = [guarded(t.astype(np.uint32)) for t in tables]
    run_nest(nest, expected, [v for _, v in inputs], [v for _, v in held], trips, scalars)
    pointers = [actual.ctypes.data, *(v.ctypes.data for _, v in inputs), *(v.ctypes.data for _, v in held)]
    kernels.call(name, np.array([*pointers, *trips, *scalars], np.int64))
    if not np.array_equal(expected_whole, actual_whole):
        bad = np.nonzero(expected_whole != actual_whole)[0]
        where = (int(bad[0]) - GUARD - out.itemsize) // out.itemsize
        shown = f"{expected[where]} != {actual[where]}" if 0 <= where < out.size else "outside"
        raise AssertionError(f"{name} {nest} trips {trips}: {bad.size} bytes differ, first at element {where}: {shown}")


def fewer(rnd: random.Random, loops: tuple[Loop, ...], pair: bool = False) -> list[int]:
    """Trip counts up to the extents, sometimes zero; the pair loop always has all."""
    trips = [rnd.choice([n.extent, n.extent, rnd.randint(1, max(1, n.extent))]) for n in loops]
    if rnd.random() < 0.1:
        trips[rnd.randrange(len(trips))] = 0
    if pair:
        trips[-1] = loops[-1].extent
    return trips


def run_all(folder: Path, cases: list[tuple[Nest, list[np.ndarray]]], pair: bool = False, **options: object) -> None:
    """Build all nests at once and call each a few times."""
    kernels = build({str(i): n for i, (n, _) in enumerate(cases)}, folder=folder, **options)  # type: ignore[arg-type]
    for i, (nest, tables) in enumerate(cases):
        rnd, rng = random.Random(i), np.random.default_rng(i)
        for turn in range(4):
            trips = [n.extent for n in nest.loops] if turn == 0 else fewer(rnd, nest.loops, pair)
            scalars = [rnd.choice([0, 3])] * nest.scalars
            rows = {"lookup": nest.loops[-1].extent, "scatter": nest.loops[0].extent}.get(nest.kind)
            index = np.arange(-2, rows + 5) if rows is not None else None
            check(kernels, str(i), nest, rng, trips, scalars, tables, turn != 1, index)


def operand(
    rnd: random.Random, name: str, loops: tuple[Loop, ...], use: list[int], tables: list[np.ndarray], *,
    broadcast: float = 0.2, dense: bool = True, table: float = 0.1, ties: bool = True,
) -> Operand:  # fmt: skip
    """A random operand over the loops `use` (outer to inner): strides of a padded array, tables, permutations."""
    strides, used = [0] * len(loops), [None] * len(loops)
    order = list(use) if dense else rnd.sample(use, len(use))
    step = 1
    for i in reversed(order):
        if ties and rnd.random() < broadcast:
            continue
        strides[i] = step
        if rnd.random() < table:
            used[i] = len(tables)  # type: ignore[call-overload]
            tables.append(np.array(rnd.sample(range(loops[i].extent + 2), loops[i].extent), np.uint32) * step)
            step *= 2
        step *= loops[i].extent + rnd.choice([0, 0, 1])
    return Operand(name, tuple(strides), tuple(used))


def random_body(rnd: random.Random, inputs: list[str], result: str) -> Body:
    """Straight-line code over the inputs: a few random instructions of every type."""
    r = Recorder(*inputs)
    values: dict[str, list[int]] = {"f32": [], "i32": [], "i64": [], "mask": []}
    for v, t in zip(r.inputs, inputs, strict=True):
        values[t].append(v)
    for t, v in (("f32", 0.75), ("i32", 3), ("i64", -5), ("mask", 1)):
        values[t].append(r.const(v, t))
    pick = lambda t: rnd.choice(values[t][-4:])  # noqa: E731
    for _ in range(8):
        t = rnd.choice(["f32", "f32", "i32", "i64", "mask", result])
        op = rnd.choice(["arith", "arith", "cvt", "select"])
        if op == "arith" and t == "f32":
            name = rnd.choice(FLOAT)
            values[t].append(r.emit(name, tuple(pick(t) for _ in range(INSTRUCTIONS[name][0])), t))
        elif op == "arith" and t in ("i32", "i64"):
            name = rnd.choice(INTEGER)
            values[t].append(r.emit(name, tuple(pick(t) for _ in range(INSTRUCTIONS[name][0])), t))
        elif op == "arith":
            s = rnd.choice(["f32", "i32", "i64"])
            values[t].append(r.emit(rnd.choice(["eq", "ne", "lt", "le"]), (pick(s), pick(s)), "mask"))
        elif op == "cvt":
            values[t].append(r.cvt(pick(rnd.choice(list(values))), t))
        else:
            values[t].append(r.select(pick("mask"), pick(t), pick(t)))
    return r.body(values[result][-1])


def random_map(rnd: random.Random) -> tuple[Nest, list[np.ndarray]]:
    depth = rnd.randint(1, 3)
    loops = tuple(Loop(f"l{i}", rnd.choice([1, 2, 3, 5])) for i in range(depth - 1))
    loops += (Loop("n", rnd.choice([1, 2, 3, 7, 16, 17, 31, 40])),)
    tables: list[np.ndarray] = []
    names = [rnd.choice(STORAGE) for _ in range(rnd.randint(1, 3))]
    use = list(range(depth))
    dense = rnd.random() < 0.7
    operands = tuple(operand(rnd, n, loops, use, tables, dense=dense) for n in names)
    to = rnd.choice(STORAGE)
    out = operand(rnd, to, loops, use, tables, ties=False, dense=rnd.random() < 0.8, table=0.05)
    body = random_body(rnd, [COMPUTE_TYPE[n] for n in names], rnd.choice([COMPUTE_TYPE[to], COMPUTE_TYPE[to], "f32"]))
    return Nest("map", loops, depth, operands, out, 0, epilogue=body), tables


def test_map(folder: Path) -> None:
    rnd = random.Random(1)
    run_all(folder, [random_map(rnd) for _ in range(30)])


def _one(type_: str) -> float | int:
    return 1.1 if type_ == "f64" else 1


@pytest.mark.parametrize("name", sorted(INSTRUCTIONS))
def test_every_instruction(folder: Path, name: str) -> None:
    """Each instruction on each type that it has, on special values."""
    storage = {"f32": "f32", "f64": "f64", "i32": "i32", "i64": "i64", "mask": "bool"}
    compared = {"eq", "ne", "select", "const"}
    has = {
        "f32": {*FLOAT, *compared, "lt", "le"},
        "f64": {*FLOAT, *compared, "lt", "le"},
        "i32": {*INTEGER, *compared, "lt", "le"},
        "i64": {*INTEGER, *compared, "lt", "le"},
        "mask": {"and", "or", "xor", *compared},
    }
    pairs = [(t, "mask" if name in ("eq", "ne", "lt", "le") else t) for t in storage if name in has[t]]
    if name == "cvt":
        pairs = [(t, to) for t in storage for to in storage if t != to]
    elif name == "bits":
        pairs = [("f32", "i32"), ("i32", "f32"), ("f64", "i64"), ("i64", "f64")]
    cases: list[tuple[Nest, list[np.ndarray]]] = []
    for t, result in pairs:
        inputs = ["mask", t, t] if name == "select" else [t] * INSTRUCTIONS[name][0] or [t]
        args = () if name == "const" else tuple(range(len(inputs)))
        body = Body(tuple(inputs), (Instr(name, args, result, _one(result) if name == "const" else None),), len(inputs))
        operands = tuple(Operand(storage[i], (1,), (None,)) for i in inputs)
        out = Operand(storage[result], (1,), (None,))
        cases.append((Nest("map", (Loop("n", 333),), 1, operands, out, 0, epilogue=body), []))
    assert cases
    run_all(folder, cases)


def test_polynomials(folder: Path) -> None:
    cases = []
    for f in (exp, tanh):
        r = Recorder("f32")
        body = r.body(f(r, r.inputs[0]))
        one = (Operand("f32", (1,), (None,)),)
        cases.append((Nest("map", (Loop("n", 1000),), 1, one, Operand("bf16", (1,), (None,)), 0, epilogue=body), []))
        cases.append((Nest("map", (Loop("n", 1000),), 1, one, one[0], 0, epilogue=body), []))
    run_all(folder, cases)


@pytest.mark.parametrize("limit", [0.0, -0.0, 6.0, -2.0, float("inf"), 1e-40])
def test_limits(folder: Path, limit: float) -> None:
    """max and min with a constant, on either side."""
    cases: list[tuple[Nest, list[np.ndarray]]] = []
    for name in ("max", "min"):
        for swap in (False, True):
            r = Recorder("f32")
            args = (r.inputs[0], r.const(limit))
            body = r.body(r.emit(name, args[::-1] if swap else args, "f32"))
            io = Operand("f32", (1,), (None,))
            cases.append((Nest("map", (Loop("n", 999),), 1, (io,), io, 0, epilogue=body), []))
    run_all(folder, cases)


def test_compared_and_selected(folder: Path) -> None:
    """Selections that look like a minimum or a maximum keep subnormals."""
    cases: list[tuple[Nest, list[np.ndarray]]] = []
    io = Operand("f32", (1,), (None,))
    for op, swapped, other in itertools.product(("lt", "le", "eq", "ne"), (0, 1), (0, 1)):
        r = Recorder("f32", "f32")
        a, b = r.inputs[:: -1 if swapped else 1]
        zero = r.const(0.0)
        nonzero = r.select(r.emit(op, (a, zero) if other else (zero, a), "mask"), a, zero)
        for result in (r.select(r.emit(op, (a, b), "mask"), *r.inputs), nonzero, r.select(r.lt(a, 0.0), r.neg(a), a)):
            cases.append((Nest("map", (Loop("n", 999),), 1, (io, io), io, 0, epilogue=r.body(result)), []))
    run_all(folder, cases)


def test_moves_and_casts(folder: Path) -> None:
    """Maps without a body: dense, transposed, with tables, pairs; equal types move NaN payloads unchanged."""
    rnd, cases = random.Random(2), []
    for i in range(40):
        depth = rnd.randint(1, 4)
        loops = tuple(Loop(f"l{j}", rnd.choice([1, 2, 3, 5])) for j in range(depth - 1))
        loops += (Loop("n", rnd.choice([1, 2, 2, 3, 16, 19, 35])),)
        tables: list[np.ndarray] = []
        names = [rnd.choice(STORAGE)] * 2 if i % 3 else [rnd.choice(STORAGE), rnd.choice(STORAGE)]
        use = list(range(depth))
        source = operand(rnd, names[0], loops, use, tables, dense=rnd.random() < 0.6)
        out = operand(rnd, names[1], loops, use, tables, ties=False, dense=rnd.random() < 0.6)
        cases.append((Nest("map", loops, depth, (source,), out, 0), tables))
    run_all(folder, cases)


def random_reduce(rnd: random.Random, kind: str, name: str = "") -> tuple[Nest, list[np.ndarray]]:
    parallel, reduce = rnd.randint(1, 3), rnd.randint(1, 2)
    loops = tuple(Loop(f"p{i}", rnd.choice([1, 2, 3])) for i in range(parallel - 1))
    loops += (Loop("n", rnd.choice([1, 3, 16, 21, 64, 75])),)
    lanes = kind in ("sum", "prod", "max", "min") and rnd.random() < 0.5
    loops += tuple(Loop(f"r{i}", rnd.choice([1, 2, 5])) for i in range(reduce - 1))
    loops += (Loop("k", rnd.choice([1, 4, 9, 16, 33, 100])),)
    cut, length = None, 0
    if rnd.random() < 0.6:
        cut = len(loops) - 1 if lanes else rnd.randrange(parallel, len(loops))
        length = 16 * rnd.randint(1, 2) if lanes else rnd.choice([1, 4, 8])
    tables: list[np.ndarray] = []
    everything = list(range(len(loops)))
    order = everything if lanes else [*(i for i in everything if i != parallel - 1), parallel - 1]
    names = [rnd.choice(["f32", "bf16"])] * 2
    if rnd.random() < 0.25:
        names = [rnd.choice(["i32", "i64", "u8"])] * 2
    if name:
        names = [name] * 2
    terms = 2 if kind == "fma" or (kind != "or" and rnd.random() < 0.3) else 1
    operands = [
        operand(rnd, names[i], loops, order, tables, dense=rnd.random() < 0.8, table=0.08) for i in range(terms)
    ]
    compute = COMPUTE_TYPE[names[0]]
    term = None
    if kind != "fma" and terms == 2:
        r = Recorder(compute, compute)
        term = r.body(r.mul(r.sub(*r.inputs), r.inputs[0]))
    epilogue, to = None, rnd.choice([names[0], "f32", "bf16"])
    if rnd.random() < 0.5:
        other = operand(rnd, rnd.choice(["f32", "bf16"]), loops, list(range(parallel)), tables)
        operands.append(other)
        r = Recorder(compute, "f32")
        wide = "f64" if compute == "f64" else "f32"
        epilogue = r.body(r.mul(r.cvt(r.inputs[0], wide), r.cvt(r.inputs[1], wide)))
    out = operand(rnd, to, loops, list(range(parallel)), tables, ties=False, table=0.05)
    nest = Nest(kind, loops, parallel, tuple(operands), out, terms, term, epilogue, cut, length, lanes)
    return nest, tables


@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min", "or", "fma"])
def test_reductions(folder: Path, kind: str) -> None:
    rnd = random.Random(kind)
    run_all(folder, [random_reduce(rnd, kind) for _ in range(30)])


def test_lookup(folder: Path) -> None:
    rnd, cases = random.Random(3), []
    for _ in range(40):
        depth = rnd.randint(1, 3)
        loops = tuple(Loop(f"p{i}", rnd.choice([1, 2, 5, 19])) for i in range(depth)) + (
            Loop("v", rnd.choice([1, 4, 9])),
        )
        tables: list[np.ndarray] = []
        indexed = rnd.randint(1, depth)
        name = rnd.choice(STORAGE)
        index = operand(rnd, rnd.choice(["i32", "i64"]), loops, list(range(indexed)), tables, broadcast=0)
        table = operand(rnd, name, loops, [depth, *range(indexed, depth)], tables, broadcast=0)
        to = rnd.choice([name, name, "f32"])
        operands, epilogue = (index, table), None
        if rnd.random() < 0.3:
            operands += (operand(rnd, "f32", loops, list(range(depth)), tables),)
            r = Recorder(COMPUTE_TYPE[name], "f32")
            epilogue = r.body(r.add(r.cvt(r.inputs[0], "f32"), r.inputs[1]))
        out = operand(rnd, to, loops, list(range(depth)), tables, ties=False)
        cases.append((Nest("lookup", loops, depth, operands, out, 2, epilogue=epilogue), tables))
    run_all(folder, cases)


def random_mac(rnd: random.Random, wanted: str = "") -> tuple[Nest, list[np.ndarray]]:
    """A product like those of matmul and conv: rows of one or two loops, maybe batch loops, taps, a cut channel."""
    batch, rows, taps = rnd.choice([0, 0, 1]), rnd.randint(0, 2), rnd.choice([0, 0, 1])
    name = wanted or rnd.choice(["bf16", "bf16", "bf16", "f32", "i32"])
    pair = 2 if name == "bf16" and rnd.random() < 0.85 else 1
    loops = tuple(Loop(f"b{i}", rnd.choice([1, 2])) for i in range(batch))
    loops += tuple(Loop(f"m{i}", rnd.choice([1, 2, 3, 5, 7])) for i in range(rows))
    if rnd.random() < 0.3:  # the order of the parallel loops is free
        loops = tuple(rnd.sample(loops, len(loops)))
    loops += (Loop("n", rnd.choice([1, 5, 16, 23, 32, 53, 64, 80, 130])),)
    parallel = len(loops)
    loops += tuple(Loop(f"t{i}", rnd.choice([1, 3])) for i in range(taps))
    loops += (Loop("c", rnd.choice([1, 2, 5, 8, 17])), Loop("e", pair))
    tables: list[np.ndarray] = []
    last = len(loops) - 1
    in_a = [i for i in range(len(loops)) if i != parallel - 1 and i != last]
    in_b = [i for i in range(len(loops)) if not loops[i].name.startswith("m")]
    a = operand(rnd, name, loops, [*in_a, last], tables, broadcast=0, table=0.15)
    in_b = [*(i for i in in_b if i not in (parallel - 1, last)), parallel - 1, last]
    b = operand(rnd, name, loops, in_b, tables, broadcast=0, table=0)
    if rnd.random() < 0.8:  # as packed operands are: no gaps inside
        flat = {last: 1, parallel - 1: pair}
        scale = pair * loops[parallel - 1].extent
        strides = [flat.get(i, s) for i, s in enumerate(b.strides)]
        for i in reversed([i for i in in_b if i not in flat]):
            strides[i], scale = scale, scale * loops[i].extent
        b = Operand(name, tuple(strides), (None,) * len(loops))
        a_strides, a_tables = list(a.strides), list(a.tables)
        if a_tables[last] is None and pair == 2:
            a_strides = [s * 2 if t is None else s for s, t in zip(a_strides, a_tables, strict=True)]
            a_strides[last] = 1
        a = Operand(name, tuple(a_strides), tuple(a_tables))
    elif b.strides[parallel - 1] not in (1,):
        b = Operand(name, tuple(1 if i == parallel - 1 else s * 97 for i, s in enumerate(b.strides)), b.tables)
    operands, epilogue, to = [a, b], None, rnd.choice(["f32", name])
    if name != "i32" and rnd.random() < 0.6:
        to = rnd.choice(["bf16", "f32"])
        bias = Operand("f32", tuple(int(i == parallel - 1) for i in range(len(loops))), (None,) * len(loops))
        residual = operand(rnd, to, loops, list(range(parallel)), tables, table=0.1)
        operands += [bias, residual]
        r = Recorder("f32", "f32", "f32")
        epilogue = r.body(r.max(r.add(r.add(r.inputs[0], r.inputs[1]), r.inputs[2]), 0.0))
    out = operand(rnd, to, loops, list(range(parallel)), tables, ties=False, table=0.1)
    cut = last - 1 if rnd.random() < 0.7 else None
    length = rnd.choice([2, 4, 6]) if cut is not None else 0
    return Nest("mac", loops, parallel, tuple(operands), out, 2, None, epilogue, cut, length), tables


@pytest.mark.parametrize("wide", [False, True])
def test_mac(folder: Path, wide: bool) -> None:
    rnd = random.Random(4 + wide)
    run_all(folder, [random_mac(rnd) for _ in range(30)], pair=True, use_dot=False, wide=wide)


@pytest.mark.skipif(not dot_works(), reason="the host has no bf16 dot product")
def test_mac_with_the_dot_product(folder: Path) -> None:
    rnd = random.Random(4)
    run_all(folder, [random_mac(rnd) for _ in range(30)], pair=True, use_dot=True)


def rows_by_rows(m: int, n: int, k: int, gap: int = 0) -> Nest:
    """Products of the rows of both operands: as queries with keys."""
    none = (None,) * 4
    loops = (Loop("m", m), Loop("n", n), Loop("k", k // 2), Loop("e", 2))
    a, b = Operand("bf16", (k + gap, 0, 2, 1), none), Operand("bf16", (0, k + 2 * gap, 2, 1), none)
    return Nest("mac", loops, 2, (a, b), Operand("f32", (n, 1, 0, 0), none), 2, cut=2, slice=16)


@pytest.mark.parametrize(("wide", "dot"), [(False, False), (True, False), (True, True)])
def test_mac_of_rows_by_rows(folder: Path, wide: bool, dot: bool) -> None:
    if dot and not dot_works():
        pytest.skip("the host has no bf16 dot product")
    shapes = [(1, 5, 64), (3, 16, 8), (7, 69, 64), (8, 128, 40), (17, 130, 6), (2, 33, 96)]
    cases: list[tuple[Nest, list[np.ndarray]]] = [(rows_by_rows(*s, gap=i % 3), []) for i, s in enumerate(shapes)]
    run_all(folder, cases, pair=True, use_dot=dot, wide=wide)


def test_the_dot_products_own_test() -> None:
    """The test at start accepts the definition and refuses another order."""
    assert dot_agrees(dot_text("odd first"))
    assert not dot_agrees(dot_text("even first"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect by libc")
def test_nothing_beyond_the_operands_is_touched(folder: Path) -> None:
    """Operands that end at an unmapped page: a read beyond them ends the process."""
    none, page = (None,) * 4, mmap.PAGESIZE
    r = Recorder("f32", "f32")
    add = r.body(r.add(*r.inputs))
    nests: dict[str, Nest] = {"product": matmul(5, 23, 34, 8), "one row": matmul(1, 23, 34, 8)}
    for name in ("bf16", "f32", "u8"):
        row = Operand(name, (23, 1), none[:2])
        loops = (Loop("m", 3), Loop("n", 23))
        nests[f"move {name}"] = Nest("map", loops, 2, (row,), row, 0)
        nests[f"sum {name}"] = Nest("sum", loops, 1, (row,), Operand("f32", (1, 0), none[:2]), 1, lanes=True)
        nests[f"max {name}"] = Nest(
            "max", loops[::-1], 1, (Operand(name, (1, 23), none[:2]),), Operand(name, (1, 0), none[:2]), 1
        )
        if name != "u8":
            nests[f"map {name}"] = Nest("map", loops, 2, (row, row), row, 0, epilogue=add)
    kernels = build(nests, folder=folder)
    libc = ctypes.CDLL(None)
    for name, nest in nests.items():
        pointers, keep = [], []
        for o in (nest.out, *nest.operands):
            size = reach(o, nest.loops, []) * dtype(o.dtype).bytes
            memory = mmap.mmap(-1, 3 * page + size // page * page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            end = start + len(memory) - page
            assert libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(page), 0) == 0
            pointers.append(end - size)
            keep.append(memory)
        kernels.call(name, np.array([*pointers, *(loop.extent for loop in nest.loops)], np.int64))


def matmul(m: int, n: int, k: int, length: int) -> Nest:
    none = (None,) * 4
    loops = (Loop("m", m), Loop("n", n), Loop("k", k // 2), Loop("e", 2))
    a, b = Operand("bf16", (k, 0, 2, 1), none), Operand("bf16", (0, 2, 2 * n, 1), none)
    return Nest("mac", loops, 2, (a, b), Operand("f32", (n, 1, 0, 0), none), 2, cut=2, slice=length)


def test_extents_are_no_part_of_the_code(folder: Path) -> None:
    """Kernels that differ by extents of the same class share their code."""
    none = (None,) * 2

    def relu(m: int) -> Nest:
        r = Recorder("f32")
        io = Operand("f32", (40, 1), none)
        return Nest("map", (Loop("m", m), Loop("n", 40)), 2, (io,), io, 0, epilogue=r.body(r.max(r.inputs[0], 0.0)))

    kernels = build({"a": relu(3), "b": relu(9)}, folder=folder)
    assert kernels.address("a") == kernels.address("b")


def test_float_state_is_restored(folder: Path) -> None:
    kernels = build({"x": matmul(3, 16, 32, 16)}, folder=folder)
    before = kernels.enter()
    kernels.leave(before)
    check(kernels, "x", matmul(3, 16, 32, 16), np.random.default_rng(0), [3, 16, 16, 2], [], [])
    assert kernels.enter() & 0xFFC0 == before & 0xFFC0  # without the sticky exception flags
    kernels.leave(before)
    assert prod((np.float32(1e-40), np.float32(1.0))) != 0
