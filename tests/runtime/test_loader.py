"""Programs as files, the checks before a program runs, and the checks of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import d1rt
from d1c.errors import InputError, LoadError, UsageError
from d1c.target import binary, program_io
from d1c.target.kernel import Nest
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.movement import ComponentExchange
from d1c.target.program import Arrive, Barrier, Call, Command, Fill, Free, Program, Push, Role, Send, To, Wait
from d1c.target.program_check import check
from tests.runtime.programs import const, copy_call, halo, halo_reference, stream, weights

X = np.linspace(-3, 4, 16, dtype=np.float32)
SAMPLES: dict[str, Callable[[], Program]] = {"halo": lambda: halo(2), "stream": stream, "weights": weights}


# ---- files ----------------------------------------------------------------------------------------------------------


def equal(a: Program, b: Program) -> bool:
    fields = ("machine", "mesh", "buffers", "kernels", "roles", "placements", "inputs", "outputs", "layers", "info")
    arrays = ("t", "s", "soff", "doff", "length", "count", "sstep", "dstep")
    same = all(getattr(a, f) == getattr(b, f) for f in fields) and len(a.exchanges) == len(b.exchanges)
    for x, y in zip(a.exchanges, b.exchanges, strict=True):
        same &= (x.source_held, x.target_held, x.plan_axes) == (y.source_held, y.target_held, y.plan_axes)
        for c, d in zip(x.components, y.components, strict=True):
            same &= (c.target_axes, c.source_axes, c.window, c.owned) == (
                d.target_axes,
                d.source_axes,
                d.window,
                d.owned,
            )
            same &= all(np.array_equal(getattr(c.pieces, f), getattr(d.pieces, f)) for f in arrays)
            same &= np.array_equal(c.real, d.real) and np.array_equal(c.length, d.length)
    same &= a.weights.keys() == b.weights.keys()
    return bool(same and all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights))


@pytest.mark.parametrize("name", SAMPLES)
def test_round_trip_is_exact_and_deterministic(name: str, tmp_path: Path) -> None:
    p = SAMPLES[name]()
    program_io.save(p, tmp_path / "a.d1x")
    q = program_io.load(tmp_path / "a.d1x")
    assert equal(p, q)
    program_io.save(q, tmp_path / "b.d1x")
    assert (tmp_path / "a.d1x").read_bytes() == (tmp_path / "b.d1x").read_bytes()


def test_equal_components_are_stored_once(tmp_path: Path) -> None:
    p = halo(2)
    p = replace(p, exchanges=(*p.exchanges, replace(p.exchanges[0])))
    program_io.save(p, tmp_path / "a.d1x")
    (x, y), arrays = binary.read(tmp_path / "a.d1x").manifest["exchanges"], binary.read(tmp_path / "a.d1x").arrays
    assert y["components"] == [{"like": [0, k]} for k in range(len(x["components"]))]
    assert all(name.startswith("exchange0.") for name in arrays)
    q = program_io.load(tmp_path / "a.d1x")
    assert equal(p, q) and all(
        c is d for c, d in zip(q.exchanges[0].components, q.exchanges[1].components, strict=True)
    )


def test_a_loaded_file_runs_and_weights_are_views_of_it(tmp_path: Path) -> None:
    program_io.save(halo(2), tmp_path / "a.d1x")
    with d1rt.load(tmp_path / "a.d1x") as loaded:
        np.testing.assert_array_equal(loaded.run({"x": X}, engine="numpy")["y"], halo_reference(X, 2))
    program_io.save(weights(), tmp_path / "b.d1x")
    array = program_io.load(tmp_path / "b.d1x").weights["table"]
    assert not array.flags.writeable and not array.flags.owndata


def test_every_fill_value_survives(tmp_path: Path) -> None:
    for value in (-math.inf, math.nan, -0.0, 1e-40, 0.1):
        p = halo()
        r = p.roles[0]
        thread = (Fill(1, 0, value), *r.threads[0][1:])
        p = replace(p, roles=(replace(r, threads=(thread, r.threads[1])),))
        program_io.save(p, tmp_path / "a.d1x")
        fill = program_io.load(tmp_path / "a.d1x").roles[0].threads[0][0]
        assert isinstance(fill, Fill) and np.array([fill.value]).tobytes() == np.array([value]).tobytes()


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray], dict[str, bytes]], None]) -> None:
    c = binary.read(path)
    manifest, arrays, blobs = dict(c.manifest), {k: v.copy() for k, v in c.arrays.items()}, dict(c.blobs)
    change(manifest, arrays, blobs)
    binary.write(path, manifest, arrays, c.weights, blobs)


def _cut_kernels(m: dict[str, Any], a: dict[str, np.ndarray], b: dict[str, bytes]) -> None:
    b["kernels"] = b["kernels"][:-8]


FILES: dict[str, tuple[Callable[..., None], str]] = {
    "missing key": (lambda m, a, b: m.pop("roles"), "missing key 'roles'"),
    "unknown key": (lambda m, a, b: m.update(extra=1), "unknown key 'extra'"),
    "buffer field": (lambda m, a, b: m["buffers"][1].pop("address"), "buffer 1: Buffer needs exactly"),
    "type": (lambda m, a, b: m["buffers"][0].update(elements="4"), "buffer 0: Buffer.elements: '4' is no integer"),
    "bool": (lambda m, a, b: m["buffers"][0].update(address=True), "Buffer.address: True is no integer"),
    "layout": (lambda m, a, b: m["inputs"][0].update(layout="[0: nr"), "input 0: Port.layout"),
    "huge layout": (lambda m, a, b: m["inputs"][0].update(layout="[0: nr.0-999999999 / 1]"), "out of bounds"),
    "huge integer": (
        lambda m, a, b: m["roles"][0]["threads"][1][1].update(count="nr: 1*99999999999"), "Wait.count: .* out of bounds"
    ),
    "command": (lambda m, a, b: m["roles"][0]["threads"][0][0].update(do="Jump"), "command 0: unknown command"),
    "threads": (lambda m, a, b: m["roles"][0].update(threads=[5]), "role 0 thread 0: not a list"),
    "mesh": (lambda m, a, b: m.update(mesh=[["nr", 1 << 40]]), "mesh: more than 1,048,576 cores"),
    "mesh name": (lambda m, a, b: m.update(mesh=[["nr", 2], ["nr", 2]]), "occurs twice"),
    "kernels": (_cut_kernels, r"kernel 1 \(sum3\)"),
    "fewer kernels": (lambda m, a, b: m.update(kernels=["copy"]), "bytes after the last of 1 kernels"),
    "array gone": (lambda m, a, b: a.pop("exchange0.0.soff"), "lacks exchange0.0.soff"),
    "array type": (lambda m, a, b: a.update({"exchange0.0.t": np.zeros(9)}), "lacks exchange0.0.t of type I32"),
    "array odd": (lambda m, a, b: a.update(odd=np.zeros(9)), "unknown tensor 'odd'"),
    "like later": (lambda m, a, b: m["exchanges"][0].update(components=[{"like": [0, 0]}]), "not come before"),
    "like what": (lambda m, a, b: m["exchanges"][0].update(components=[{"like": [-1, 0]}]), "extent -1"),
    "like nothing": (lambda m, a, b: m["exchanges"][0].update(components=[{"like": 0}]), "a component like 0"),
    "piece": (lambda m, a, b: a["exchange0.0.soff"].fill(3), "leaves its window"),
    "uncovered": (lambda m, a, b: a["exchange0.0.real"].fill(5), "exactly once"),
    "run length": (lambda m, a, b: a["exchange0.0.count"].fill(2**31 - 1), "leaves its window"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    change, message = FILES[name]
    path = tmp_path / "a.d1x"
    program_io.save(halo(2), path)
    rewrite(path, change)
    with pytest.raises(LoadError, match=message) as e:
        d1rt.load(path)
    assert e.value.where == str(path) and e.value.remedy


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        d1rt.load(tmp_path / "none.d1x")


# ---- the checks of a program ----------------------------------------------------------------------------------------


def command(at: int, new: Command, thread: int = 0) -> Callable[[Program], Program]:
    def change(p: Program) -> Program:
        threads = list(p.roles[0].threads)
        threads[thread] = (*threads[thread][:at], new, *threads[thread][at + 1 :])
        return replace(p, roles=(replace(p.roles[0], threads=tuple(threads)), *p.roles[1:]))

    return change


def role(**fields: Any) -> Callable[[Program], Program]:
    return lambda p: replace(p, roles=(replace(p.roles[0], **fields), *p.roles[1:]))


def buffer(number: int, **fields: Any) -> Callable[[Program], Program]:
    def change(p: Program) -> Program:
        return replace(p, buffers=tuple(replace(b, **fields) if i == number else b for i, b in enumerate(p.buffers)))

    return change


def component(**fields: Any) -> Callable[[Program], Program]:
    def change(p: Program) -> Program:
        c: ComponentExchange = replace(p.exchanges[0].components[0], **fields)
        return replace(p, exchanges=(replace(p.exchanges[0], components=(c,)),))

    return change


SUM = Call(1, 2, (1,), const(0), (), const(4, 3), (), ())
BAD: dict[str, tuple[Callable[[Program], Program], str]] = {
    "sram": (buffer(2, address=4092), "buffer 2 .y0.: does not lie in SRAM"),
    "alignment": (buffer(2, address=130), "does not lie in SRAM on a multiple"),
    "dtype": (buffer(2, dtype="f33"), "unknown element type"),
    "kind": (buffer(2, kind="heap"), "kind 'heap'"),
    "semaphores": (command(0, Wait(16, CoreInt.const(1)), 1), "semaphore 16, a core has 16"),
    "machine": (lambda p: replace(p, machine={"sram_bytes": 0}), "machine: sram_bytes is 0"),
    "numerics": (lambda p: replace(p, info={"numerics": 99}), "numerics version 99"),
    "threads": (role(threads=((),) * 5), "5 threads"),
    "role range": (role(cores=(("nr", 0, 3),)), "cores 0 to 3 of factor nr"),
    "role axis": (role(cores=(("dx", 0, 1),)), "names factor 'dx'"),
    "two roles": (lambda p: replace(p, roles=(*p.roles, Role("b", (), ()))), "shares cores with role 'all'"),
    "barriers": (role(cores=(("nr", 0, 1),)), "equally many barriers"),
    "barrier arity": (command(6, Barrier((0,), 2, 1)), "needs 2 semaphores"),
    "push window": (buffer(1, elements=5), "does not fit buffer w"),
    "push owned": (buffer(0, elements=3), "share does not fit|reads more than buffer x"),
    "push dtype": (buffer(1, dtype="f16"), "moves f32 of x to f16 of w|takes f32"),
    "push exchange": (command(0, Push(0, 1, 7, 4), 1), "exchange 7, the program has 1"),
    "push before": (command(0, Push(0, 1, 0, 4, spread=-1), 1), "begins over -1 cycles, not 0 to"),
    "push for ever": (command(0, Push(0, 1, 0, 4, spread=1 << 31), 1), "begins over 2147483648 cycles"),
    "push order": (
        lambda p: replace(
            command(0, Push(0, 1, 0, 4, by_columns=True), 1)(p), machine={**p.machine, "routing": "rows"}
        ),
        "goes along columns first, the machine's routing is rows",
    ),
    "arrive": (command(1, Arrive(0, 5)), "nobody pushes exchange 0 by semaphore 5"),
    "fill": (command(0, Fill(9, -1, 0.0)), "its target is buffer 9"),
    "free": (lambda p: buffer(1, kind="constant")(p), "frees constant w"),
    "layer": (command(0, Free((1,), 2)), "layer 2, the program has 2"),
    "kernel": (command(2, replace(SUM, kernel=2)), "kernel 2, the program has 2"),
    "operands": (command(2, replace(SUM, operands=(1, 1))), "2 operands, kernel sum3 takes 1"),
    "bases": (command(2, replace(SUM, bases=())), "0 bases, kernel sum3 takes 1"),
    "base": (command(2, replace(SUM, bases=const(6))), "base of operand 0 is 6, expected 0 to 5"),
    "trips": (command(2, replace(SUM, trips=const(4))), "1 trips, kernel sum3 takes 2"),
    "extent": (command(2, replace(SUM, trips=const(5, 3))), "trips of loop i is 5, expected 0 to 4"),
    "tables": (command(2, replace(SUM, tables=(0,))), "1 tables, kernel sum3 takes 0"),
    "scalars": (command(2, replace(SUM, scalars=const(0))), "1 scalars, kernel sum3 takes 0"),
    "held": (command(2, replace(SUM, held=("dr",))), "held names factor 'dr'"),
    "core table": (command(2, replace(SUM, bases=(CoreInt(("nr",), (0, 0, 0)),))), "3 values for 2 positions"),
    "send": (command(0, Send(0, 1, (), *const(2, 0, 3), 9), 1), "reaches behind the 4 elements of buffer x"),
    "to mode": (command(0, Send(0, 1, (To("nr", "-"),), *const(0, 0, 1), 9), 1), "destination mode '-'"),
    "window": (component(window=5), "leaves its window|0 <= real"),
    "owned": (component(owned=3), "leaves its window of 6 or owned extent of 3"),
    "real": (component(real=np.array([5, 6, 6, 6])), "exactly once"),
    "targets": (component(real=np.array([5, 6])), "2 and 4 entries for 4 target positions"),
    "port layout": (
        lambda p: replace(p, inputs=(replace(p.inputs[0], layout=Layout.parse("[0: nr nc / 3]")),)), "do not cover"
    ),
    "port dtype": (lambda p: replace(p, inputs=(replace(p.inputs[0], dtype="i32"),)), "is i32, its buffer x f32"),
    "port twice": (lambda p: replace(p, outputs=p.outputs * 2), "output 'y': occurs twice"),
    "mesh": (lambda p: replace(p, mesh=Mesh((("nr", 2), ("nc", 3)))), "another mesh"),
    "bounds": (lambda p: replace(p, info={"bounds": {"hbm": "x"}}), "info: bounds is {'hbm': 'x'}"),
    "bound": (lambda p: replace(p, info={"bounds": {"cycles": float("nan")}}), "info: bounds is"),
    "batch": (lambda p: replace(p, info={"batch": -1}), "info: batch is -1"),
    "branches": (lambda p: replace(p, layers=({**p.layers[0], "branches": 3}, *p.layers[1:])), "branches is 3"),
    "tuned": (lambda p: replace(p, info={"tuned": {"plans": 1, "movements": -3}}), "info: tuned is"),
    "lists": (lambda p: replace(p, info={"lists": [["y", 10**9]]}), "info: lists is"),
    "without elements": (lambda p: replace(p, info={"empty_inputs": [["x", "f32", 2**40]]}), "info: empty_inputs is"),
    "record": (lambda p: replace(p, layers=({}, {"shape": 4})), "layer 1: shape is 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_programs_that_break_a_rule_are_refused(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    p = halo(2)
    check(p)
    with pytest.raises(LoadError, match=message) as e:
        d1rt.load(change(p))
    assert e.value.where and e.value.remedy
    with pytest.raises(LoadError):
        program_io.save(change(p), tmp_path / "a.d1x")
    assert not list(tmp_path.iterdir())


def test_placements_are_checked() -> None:
    p = weights()
    check(p)
    row = p.placements[0]
    cases: list[tuple[Program, str]] = [
        (replace(p, weights={}), "there is no weight tensor"),
        (replace(p, weights={"table": np.zeros((2, 4), np.int32)}), "weights are int32 of rank 2"),
        (replace(p, weights={"table": np.zeros((2, 5), np.float32)}), "does not fit buffer c"),
        (replace(p, placements=(replace(row, index=CoreInt.const(2)),)), "index is 2, expected -1 to 1"),
        (replace(p, placements=(replace(row, buffer=5),)), "its target is buffer 5"),
    ]
    for bad, message in cases:
        with pytest.raises(LoadError, match=message):
            check(bad)


def test_a_semaphore_counts_for_one_buffer_between_barriers() -> None:
    p = stream(2)
    second = Send(0, 2, (To("nc", "=", 1),), *const(0, 0, 2), 0)
    bad = replace(p, roles=(replace(p.roles[0], threads=((*p.roles[0].threads[0], second), ())), p.roles[1]))
    with pytest.raises(LoadError, match="semaphore shared: 0 counts arrivals for buffers slot and y0"):
        check(bad)


def test_kernels_are_checked_on_saving(tmp_path: Path) -> None:
    nest: Nest = replace(halo().kernels[0][1], kind="odd")
    with pytest.raises(ValueError, match="kind 'odd'"):
        program_io.save(replace(halo(), kernels=(("copy", nest), halo().kernels[1])), tmp_path / "a.d1x")


# ---- running --------------------------------------------------------------------------------------------------------


def test_inputs_are_checked() -> None:
    with d1rt.load(halo()) as loaded:
        cases: list[tuple[dict[str, np.ndarray], str]] = [
            ({}, "input 'x' is missing"),
            ({"x": X, "z": X}, "no input 'z'"),
            ({"x": X[:8]}, r"shape \[8\], expected \[16\]"),
            ({"x": X.astype(np.float64)}, "type float64, expected float32"),
            ({"x": X.astype(ml_dtypes.bfloat16)}, "type bfloat16, expected float32"),
        ]
        for inputs, message in cases:
            with pytest.raises(InputError, match=message) as e:
                loaded.run(inputs, engine="numpy")
            assert e.value.remedy
        assert loaded.inputs["x"].shape == (16,) and list(loaded.outputs) == ["y"]
        with pytest.raises(UsageError, match="unknown engine 'gpu'"):
            loaded.run({"x": X}, engine="gpu")


def test_inputs_may_be_strided() -> None:
    with d1rt.load(halo()) as loaded:
        got = loaded.run({"x": np.repeat(X, 2)[::2]}, engine="numpy")
        np.testing.assert_array_equal(got["y"], halo_reference(X))


def test_values_of_layers() -> None:
    with d1rt.load(halo(3)) as loaded:
        loaded.run({"x": X}, engine="numpy", keep=True)
        for layer in range(3):
            np.testing.assert_array_equal(loaded.layer_value(loaded.kept, layer), halo_reference(X, layer + 1))
        loaded.run({"x": X}, engine="numpy", keep=[1])
        assert set(loaded.kept) == {1}
        with pytest.raises(UsageError, match="layer 0 was not kept"):
            loaded.layer_value(loaded.kept, 0)


def test_a_call_that_writes_a_constant_is_refused() -> None:
    p = weights()
    role = replace(p.roles[0], threads=((copy_call(1, 0),),))
    with pytest.raises(LoadError, match="writes constant c"):
        check(replace(p, roles=(role,)))
