"""Loops written by hand as tile text: assembled, disassembled, executed; broken ones name their line."""

from __future__ import annotations

import numpy as np
import pytest

import d1rt
from d1c.cli.dis import core_text, program_text
from d1c.emit.assemble import assemble
from d1c.errors import VerifyError
from d1c.ir.printer import print_module
from d1c.ops.kern.nest import to_module as kern_module
from d1c.target.program import Loop, Program
from tests.runtime.loop_programs import BELOW, DOUBLE

TEXT = """\
d1c.module tile {machine = "test"} {
  func @main() {
    %x = tile.buffer : buffer<4xf32 @ 0>
    %t = tile.buffer : buffer<4xf32 @ 64>
    %go = tile.buffer : buffer<1xbool @ 128>
    tile.input(%x) {name = "x", shape = [64], layout = #layout"[0: dc nr nc.0-1 / 4]"}
    tile.output(%x) {name = "y", shape = [64], layout = #layout"[0: dc nr nc.0-1 / 4]"}
    tile.role {name = "all"} ({
      tile.post {semaphore = 0}
      tile.call(%go, %x) {kernel = "below"}
      tile.loop(%go) {trips = 20} ({
        tile.wait {semaphore = 0, count = 1, relative = true}
        tile.call(%t, %x) {kernel = "double"}
        tile.free(%x)
        tile.loop {trips = 3} ({
          tile.call(%x, %t) {kernel = "double"}
          tile.free(%t)
          tile.call(%t, %x) {kernel = "double"}
          tile.free(%x)
          tile.yield
        })
        tile.call(%x, %t) {kernel = "double"}
        tile.free(%t, %go)
        tile.call(%go, %x) {kernel = "below"}
        tile.post {semaphore = 0}
        tile.yield
      })
      tile.yield
    })
    tile.return
  }
}
"""


def text(*pairs: tuple[str, str]) -> str:
    out = TEXT
    for old, new in pairs:
        assert old in out, old
        out = out.replace(old, new, 1)
    return out + print_module(kern_module({"double": DOUBLE, "below": BELOW}))


def rows(core: str, program: Program) -> list[str]:
    return [line.partition(";")[0].strip() for line in core_text(program, 0) if core in line]


@pytest.mark.parametrize(("engine", "shuffle"), [("numpy", None), ("numpy", 1), ("jit", None), ("jit", 1)])
def test_the_text_runs(engine: str, shuffle: int | None) -> None:
    program = assemble(text(), "mine.d1")
    loop = program.roles[0].threads[0][2]
    assert isinstance(loop, Loop) and loop.origin == "mine.d1:11" and loop.body[0].origin == "mine.d1:12"
    for first in (3.0, 1000.0):  # 2 ** 8 a round: 768, 196608
        x = np.full(64, first, np.float32)
        y = d1rt.load(program).run({"x": x}, engine=engine, shuffle=shuffle)["y"]
        np.testing.assert_array_equal(y, x * (2.0**16 if first == 3 else 1))


def test_dis_shows_bodies() -> None:
    program = assemble(text())
    again = assemble(program_text(program))
    assert [type(c) for c in again.roles[0].threads[0]] == [type(c) for c in program.roles[0].threads[0]]
    assert program_text(again) == program_text(program)
    (outer, inner), (wait,) = rows("loop of", program), rows("wait", program)
    assert outer == "2 loop of 8 commands, at most 20 rounds while go@0x000080"
    assert inner == "2.3   loop of 4 commands, 3 rounds"
    assert wait == "2.0   wait for 1 more on semaphore 0"
    assert sum("2.3." in line for line in core_text(program, 0)) == 4


@pytest.mark.parametrize(
    ("pairs", "words", "line"),
    [
        ([("tile.loop {trips = 3} (", "tile.loop(%x) {trips = 3} (")], "one buffer of bool", 15),
        ([("trips = 20", "trips = -20")], "no negative number of rounds", 11),
        ([(", relative = true", "")], "every Wait on a semaphore that a loop counts is relative", 12),
        ([("    })\n    tile.return", "    }, {\n      tile.yield\n    })\n    tile.return")],
         "no counterpart in role 'all' thread 1", 11),
        ([('(%t, %x) {kernel = "double"}', '(%t, %x) {kernel = "double", trips = [5]}')], "makes 5 trips", 13),
        ([("semaphore = 0, count = 1", "semaphore = 99, count = 1")], "no semaphore 99", 12),
    ],
)  # fmt: skip
def test_broken_text_names_the_line(pairs: list[tuple[str, str]], words: str, line: int) -> None:
    with pytest.raises(VerifyError) as caught:
        assemble(text(*pairs), "mine.d1")
    assert words in str(caught.value)
    assert caught.value.where == f"mine.d1:{line}"
