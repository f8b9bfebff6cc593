"""Constants read from interface processors while a program runs: what cores get, what is refused, how long it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import d1rt
from d1c.emit.assemble import assemble
from d1c.emit.modules import to_modules
from d1c.emit.tile_program import TileProgram
from d1c.errors import D1Error, LoadError, Trap
from d1c.target import program_io
from d1c.target.machine import PRESETS, Machine
from d1c.target.mesh import CoreInt
from d1c.target.program import Command, Fetch, Post, Program, Wait
from d1c.target.program_check import check
from d1rt.events import Simulator, simulate
from d1rt.trace import trace_events

X = np.random.default_rng(0).normal(size=(16, 1024)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 1024)).astype(np.float32)

TEXT = """
d1c.module tile {machine = "test"} {
  func @main() {
    %x = tile.buffer : buffer<1024xf32 @ 0>
    %w = tile.buffer {kind = "window"} : buffer<1024xf32 @ 4096>
    %y = tile.buffer : buffer<1024xf32 @ 8192>
    %z = tile.buffer : buffer<1024xf32 @ 12288>
    tile.input(%x) {name = "x", shape = [16, 1024], layout = #layout"[0: dc nr nc.0-1 / 1, 1]"}
    tile.output(%z) {name = "z", shape = [16, 1024], layout = #layout"[0: dc nr nc.0-1 / 1, 1]"}
    tile.role {name = "main"} ({
      tile.wait {semaphore = 0, count = 1, relative = true}
      tile.call(%y, %x, %w) {kernel = "add"}
      tile.free(%w)
      tile.post {semaphore = 1}
      tile.wait {semaphore = 0, count = #int"nc.1: 1 0", relative = true}
      tile.call(%z, %y, %x) {kernel = "add", trips = [#int"nc.1: 0 1024"]}
      tile.call(%z, %y, %w) {kernel = "add", trips = [#int"nc.1: 1024 0"]}
      tile.yield
    }, {
      tile.fetch(%w) {array = "w", index = #int"nr: 0 1", semaphore = 0}
      tile.wait {semaphore = 1, count = 1}
      tile.fetch(%w) {array = "w", index = #int"nc.1: 3 -1", semaphore = 0}
      tile.yield
    })
    tile.return
  }
}
d1c.module kern {
  func @add() {
    kern.nest {kind = "map", loops = [["i", 1024]], parallel = 1, out = "f32[i]", operands = ["f32[i]", "f32[i]"],
               n_term = 0, bodies = ["epilogue"]} ({
      ^(%a: f32, %b: f32):
      %sum = kern.add(%a, %b) : f32
      kern.yield(%sum)
    })
    kern.return
  }
}
"""


def program(text: str = TEXT) -> Program:
    return assemble(text, "mine.d1", weights={"w": W})


def expected() -> np.ndarray:
    """Row nr of W, then row 3 on cores with nc.1 = 0; the others add x again."""
    core = np.arange(16)
    nr, last = core // 4 % 2, core % 2
    y = X + W[nr]
    return np.where(last[:, None] == 0, y + W[3], y + X)


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_cores_get_their_rows(engine: str) -> None:
    with d1rt.load(program()) as loaded:
        for _ in range(2):
            np.testing.assert_array_equal(loaded.run({"x": X}, engine=engine)["z"], expected())


def test_the_order_of_events_does_not_matter() -> None:
    for seed in range(4):
        with d1rt.load(program()) as loaded:
            np.testing.assert_array_equal(loaded.run({"x": X}, engine="numpy", shuffle=seed)["z"], expected())
            np.testing.assert_array_equal(loaded.run({"x": X}, engine="jit", shuffle=seed)["z"], expected())


def test_text_and_binary_come_back(tmp_path: Path) -> None:
    p = program()
    program_io.save(p, tmp_path / "p.d1x")
    back = program_io.load(tmp_path / "p.d1x")
    assert back.roles == p.roles
    np.testing.assert_array_equal(back.weights["w"], W)
    tile, kern = to_modules(TileProgram(back, ()))
    again = assemble(f"{tile}\n{kern}", weights={"w": W})
    first, second = ([c for t in x.roles[0].threads for c in t] for x in (p, again))
    assert [replace(c, origin="") for c in second] == [replace(c, origin="") for c in first]


def refused(*pairs: tuple[str, str]) -> D1Error:
    text = TEXT
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    with pytest.raises(D1Error) as caught:
        program(text)
    return caught.value


FETCH = 'tile.fetch(%w) {array = "w", index = #int"nr: 0 1", semaphore = 0}'


def test_what_is_wrong_is_refused() -> None:
    assert "no constant 'v'" in refused(('array = "w"', 'array = "v"')).message
    assert "index is 4, expected -1 to 3" in refused(("nr: 0 1", "nr: 0 4")).message
    other = ("    %y = tile.buffer :", "    %v = tile.buffer {kind = \"window\"} : buffer<1024xf32 @ 16384>\n"
             "    %y = tile.buffer :")  # fmt: skip
    error = refused(other, (FETCH, FETCH + "\n      " + FETCH.replace("%w", "%v")))
    assert "semaphore 0 is shared" in error.message
    assert error.where == "mine.d1:22"


def test_rows_fit_their_buffer() -> None:
    p = program()
    with pytest.raises(LoadError, match="does not fit buffer w"):
        d1rt.load(replace(p, weights={"w": np.tile(W, 2)}))


def test_one_semaphore_does_not_tell_two_buffers_apart() -> None:
    """Two Fetches are told apart by the wait for the first: before the second is asked for, or for both together."""
    p = program()
    role, w = p.roles[0], p.buffers[1]
    other = replace(w, name="v", address=16384)
    fetch, wait = role.threads[1][0], role.threads[0][0]
    assert isinstance(fetch, Fetch) and isinstance(wait, Wait)
    second = replace(fetch, target=len(p.buffers))

    def made(compute: tuple[Command, ...], asks: tuple[Command, ...]) -> Program:
        return replace(p, buffers=(*p.buffers, other), outputs=(), roles=(replace(role, threads=(compute, asks)),))

    check(made((wait, Post(1), wait), (fetch, Wait(1, CoreInt.const(1)), second)))
    check(made((replace(wait, count=CoreInt.const(2)),), (fetch, second)))
    with pytest.raises(LoadError, match="semaphore shared: 0 counts arrivals for buffers w and v"):
        check(made((wait, wait), (fetch, second)))


def test_a_machine_without_interface_processors_is_refused() -> None:
    p = program()
    with pytest.raises(LoadError, match="no interface processor"):
        d1rt.load(replace(p, machine={**p.machine, "dip_count": 0}))


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_a_slot_that_is_not_free_traps(engine: str) -> None:
    p = program(TEXT.replace("tile.free(%w)", "tile.free(%z)", 1))
    with d1rt.load(p) as loaded, pytest.raises(Trap, match=r"missing credit: .*w is"):
        loaded.run({"x": X}, engine=engine)


def alone(machine: Machine, cores: int) -> Program:
    """One Fetch by the first `cores` cores, and the wait for it."""
    rest, axes = 16 - cores, "dc nr nc.0-1"
    text = (
        TEXT[: TEXT.index("    tile.role")]
        + f"""    tile.role {{name = "main"}} ({{
      tile.fetch(%w) {{array = "w", index = #int"{axes}: 0*{cores} -1*{rest}", semaphore = 0}}
      tile.wait {{semaphore = 0, count = #int"{axes}: 1*{cores} 0*{rest}"}}
      tile.yield
    }})
    tile.return
  }}
}}
"""
    )
    p = assemble(text, weights={"w": W}, machine=machine)
    return replace(p, outputs=())


MACHINE = PRESETS["test"]


def way(machine: Machine, core: int) -> int:
    """Cycles from the west end of a core's row to the core."""
    from d1c.target.embedding import global_position

    _, column = global_position(machine).reshape(-1, 2)[core]
    crossings = int(column) // machine.site_cols
    hops = int(column) * machine.hop_cycles + crossings * machine.die_crossing_cycles
    return hops + machine.inject_cycles + machine.eject_cycles


@pytest.mark.parametrize("slow", [64, 16])
def test_time_of_one_fetch(slow: int) -> None:
    m = replace(MACHINE, dip_bytes_per_cycle=slow)
    p = alone(m, 1)
    packets = 4096 // m.packet_bytes
    sends = packets * m.packet_bytes // min(slow, m.link_bytes_per_cycle)
    latency = 2 * m.dip_latency_cycles + m.hbm_latency_cycles
    there_and_back = 2 * way(m, 0) - m.inject_cycles  # what comes back needs no core's port to leave
    assert Simulator(p).cycles() == latency + there_and_back + sends


def test_cores_share_an_interface_processor() -> None:
    m = replace(MACHINE, dip_bytes_per_cycle=32)
    cycles = Simulator(alone(m, 16)).cycles()
    queue = 16 * 4096 // 32
    assert queue < cycles < queue + 2 * m.dip_latency_cycles + m.hbm_latency_cycles + 2 * way(m, 15) + 100
    found = simulate(alone(m, 16))
    assert found.resources["DIPs"]["max"] == pytest.approx(queue / cycles)
    assert {s.what for s in found.path} == {"DIP"}
    sent = [
        e for e in trace_events(found.outcome.program, found)["traceEvents"] if e.get("cat") == "memory" and e["args"]
    ]
    assert len(sent) == 1  # all cores ask for the same layer, one after the other
    assert sent[0]["dur"] == pytest.approx(queue / m.clock_hz * 1e6)
    fast = replace(MACHINE, dip_bytes_per_cycle=800, dip_edge_bytes_per_cycle=900)
    assert Simulator(alone(fast, 16)).cycles() < Simulator(alone(MACHINE, 16)).cycles()
