"""The longer runs of tests/runtime/test_same_bits.py: a network of the field, more seeds, the plain engine on a die."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest

import d1c
import d1rt
from d1c.interp import evaluate
from d1c.target.embedding import embed
from d1c.target.machine import PRESETS, Machine
from d1c.target.program import Program
from d1rt.engine_jit import Engine
from d1rt.jit_nest import build, dot_works
from tests.all_networks import NAMES, network
from tests.runtime.calls import different_bytes, distinct_calls
from tests.runtime.test_same_bits import grid

pytestmark = pytest.mark.slow

TEST, DIE, TILE = PRESETS["test"], PRESETS["d1-die"], PRESETS["d1-tile"]
MACHINES = {
    # mtcnn_onet's weights do not fit 16 cores of 64 KiB
    "test": dataclasses.replace(TEST, sram_bytes=TILE.sram_bytes, code_reserve_bytes=TILE.code_reserve_bytes),
    "d1-die": DIE,
    "d1-tile": TILE,
    "die of 18 x 19": grid(DIE, (2, 9), (19,)),
    "die of 16 x 20": grid(DIE, (4, 4), (5, 4)),
    "die, mask 1": DIE.masked(1),
    "die, mask 2": DIE.masked(2),
    "tile of 18 x 19 a die": grid(TILE, (2, 9), (19,)),
    "tile of 16 x 20 a die": grid(TILE, (4, 4), (5, 4)),
    "tile, mask 1": TILE.masked(1),
    "tile, mask 2": TILE.masked(2),
}
BATCH = 1
SHOWN = [name for name in NAMES if name != "gpt2_small"]  # its layers are vit_b16's, and it takes minutes


@cache
def compiled(network_name: str, machine: str) -> tuple[d1c.Program, dict[str, np.ndarray]]:
    got = network(network_name, BATCH)
    if got is None:
        pytest.skip(f"MISSING: the package with {network_name} cannot be had here")
    model, inputs = got
    shapes = {k: v.shape for k, v in inputs.items()}
    return d1c.compile(model, target=MACHINES[machine], precision="bf16", shapes=shapes), inputs


@cache
def expected(network_name: str) -> dict[str, np.ndarray]:
    program, inputs = compiled(network_name, "test")
    return evaluate(program.module("graph"), inputs)


def assert_expected(network_name: str, outputs: dict[str, np.ndarray]) -> None:
    assert outputs.keys() == expected(network_name).keys()
    for name, want in expected(network_name).items():
        assert outputs[name].dtype == want.dtype and outputs[name].tobytes() == want.tobytes(), name


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["digits", "mtcnn_onet"])
def test_jit_engine(name: str, machine: str) -> None:
    """The presets with 1 and 2 threads and three seeds each, grids and masks once."""
    program, inputs = compiled(name, machine)
    runs = [(1, None), (2, 1), (1, 2), (2, 3)] if machine in PRESETS else [(2, 1)]
    for threads, shuffle in runs:
        with d1rt.load(program.target) as loaded:
            assert_expected(name, loaded.run(inputs, threads=threads, shuffle=shuffle))


@pytest.mark.parametrize("machine", ["test", "d1-die"])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
@pytest.mark.parametrize("name", ["digits", "mtcnn_onet"])
def test_numpy_engine(name: str, machine: str, shuffle: int) -> None:
    program, inputs = compiled(name, machine)
    with d1rt.load(program.target) as loaded:
        assert_expected(name, loaded.run(inputs, engine="numpy", shuffle=shuffle))


def test_all_images_on_the_tile() -> None:
    """360 images at once: the bits of the graph interpreter, with three seeds."""
    got = network("digits")
    assert got is not None
    model, inputs = got
    program = d1c.compile(model, target="d1-tile", shapes={k: v.shape for k, v in inputs.items()})
    want = evaluate(program.module("graph"), inputs)
    for threads, shuffle in [(1, None), (2, 1), (1, 2), (2, 3)]:
        with d1rt.load(program.target) as loaded:
            found = loaded.run(inputs, threads=threads, shuffle=shuffle)
        assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in want.items()}


@pytest.mark.parametrize("use_dot", [False, pytest.param(True, marks=pytest.mark.skipif(
    not dot_works(), reason="MISSING: the host has no bf16 dot product (avx512bf16)"))])  # fmt: skip
@pytest.mark.parametrize("machine", ["d1-die", "d1-tile"])
def test_the_hosts_dot_product(machine: str, use_dot: bool) -> None:
    program, inputs = compiled("mtcnn_onet", machine)
    engine = Engine(program.target, 2, use_dot=use_dot)
    assert engine.kernels.dot == use_dot
    assert_expected("mtcnn_onet", engine.run(inputs).outputs)
    engine.close()


@pytest.mark.parametrize("machine", [name for name in MACHINES if "mask" not in name])
@pytest.mark.parametrize("name", ["digits", "mtcnn_onet"])
def test_every_kernel_with_its_trip_counts(name: str, machine: str, rng: np.random.Generator) -> None:
    program = compiled(name, machine)[0].target
    cases = list(distinct_calls(program))
    assert {c.kernel for c in cases} == {k for k, _ in program.kernels}
    print(f"{name} on {machine}: {len(program.kernels)} kernels, {len(cases)} different calls")
    kernels = build(dict(program.kernels))
    assert [(c.kernel, c.trips) for c in cases if different_bytes(kernels, c, rng)] == []


@cache
def on_the_tile(name: str) -> d1c.Program:
    got = network(name, 1)
    if got is None:
        pytest.skip(f"MISSING: the package with {name} cannot be had here")
    model, inputs = got
    return d1c.compile(model, target="d1-tile", precision="bf16", shapes={k: v.shape for k, v in inputs.items()})


def end_of_sram(engine: Engine, program: Program) -> int:
    """Behind the last byte of any core's SRAM that holds anything but 0 after a run. Constants are not copied there:
    they are read where the program has them."""
    constants = max((program.buffers[i].address + program.buffers[i].bytes for i in engine.memory.fixed), default=0)
    every = engine.memory.view[: engine.memory.stride * program.mesh.cores].reshape(-1, engine.memory.stride)
    for low in range(engine.memory.stride // 4096 * 4096, constants // 4096 * 4096 - 1, -4096):
        used = np.flatnonzero(every[:, low : low + 4096].any(axis=0))
        if len(used):
            return max(constants, low + int(used[-1]) + 1)
    return constants


@pytest.mark.parametrize("name", NAMES)
def test_how_the_engine_works_changes_no_bit(name: str) -> None:
    """Threads, the host's dot product and calls of many cores, against every core's SRAM as it is and core by core, in
    which the last byte that is written is the last that the compiler has given away."""
    program = on_the_tile(name).target
    got = network(name, 1)
    assert got is not None
    with d1rt.load(program) as loaded:
        inputs = loaded.check_inputs(got[1])

    def bits(**options: Any) -> dict[str, bytes]:
        engine = Engine(program, **options)
        found = {k: v.tobytes() for k, v in engine.run(inputs).outputs.items()}
        if not options.get("alias", True):
            ends.append(end_of_sram(engine, program))
        engine.close()
        return found

    ends: list[int] = []

    plain = bits(threads=1, use_dot=False, alias=False)
    assert [bits(threads=1), bits(threads=2), bits(threads=2, use_dot=False)] == [plain] * 3
    given = max(b.address + b.bytes for b in program.buffers)
    assert ends == [given] and 0 <= program.info["sram_data_bytes"] - given < 64  # whole lines


@pytest.mark.parametrize("level", ["graph", "dist", "tile", "kern"])
@pytest.mark.parametrize("name", SHOWN)
def test_text_is_a_fixed_point(name: str, level: str) -> None:
    module = on_the_tile(name).module(level)
    text = str(module)
    assert str(d1c.parse(text, constants=module.constants)) == text


@pytest.mark.parametrize("name", SHOWN)
def test_no_dead_node_is_used_and_sram_suffices(name: str) -> None:
    program = on_the_tile(name).target
    machine = Machine.from_dict(program.machine)
    sites = embed(machine).reshape(machine.dies, -1, 2)
    assert program.mesh.cores == sites.shape[0] * sites.shape[1]
    for die, dead in enumerate(machine.dead):
        assert len(dead) == 6 and not set(dead) & {(int(r), int(c)) for r, c in sites[die]}
    assert max(b.address + b.bytes for b in program.buffers) <= program.info["sram_data_bytes"]
    assert program.info["sram_data_bytes"] + program.info["sram_code_bytes"] == program.info["sram_peak_bytes"]
    assert program.info["sram_data_bytes"] <= 1.05 * program.info["sram_live_bytes"]
    print(f"{name}: SRAM peak {program.info['sram_peak_bytes']:,} B")
    assert program.info["sram_peak_bytes"] <= 1_310_720
