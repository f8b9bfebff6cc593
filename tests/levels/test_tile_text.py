"""The tile level's text is one to one with the program."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from d1c.emit.assemble import assemble
from d1c.emit.modules import from_modules, to_modules
from d1c.emit.tile_program import Movement, TileProgram
from d1c.errors import ParseError, UsageError, VerifyError
from d1c.frontend.importer import import_onnx
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.ir.text import parse, parse_modules, print_module
from d1c.ir.verify import verify
from d1c.pipeline import run_pipeline
from d1c.target.kernel import Loop as Extent
from d1c.target.kernel import Nest, Operand
from d1c.target.machine import PRESETS, Machine
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Fill,
    Free,
    Loop,
    Placement,
    Port,
    Post,
    Program,
    Push,
    Role,
    Send,
    To,
    Wait,
)

TEST = PRESETS["test"]
MESH = Mesh(TEST.axes)
ADD_ROWS = Nest(
    "map",
    (Extent("m", 2), Extent("n", 8)),
    2,
    (Operand("bf16", (8, 1), (None, None)), Operand("bf16", (0, 1), (0, None))),
    Operand("bf16", (8, 1), (None, None)),
    0,
)


def everything() -> TileProgram:
    """A program with every kind of declaration, command and field; it is well-formed, not sensible."""
    source = Layout.parse("[0: dc / 2, 1]")
    plan = Layout.parse("[0: nr / 2, 1]")
    need = need_of((4, 8), (Entry(((0, 1),), 0, 1), Entry(((1, 1),), 0, 1)), (4, 8), plan)
    movement = Movement(source, (4, 8), need)
    per_core = CoreInt(("nr", "nc.0", "nc.1"), (0, 1, 1, 1, 0, 0, 2, 3))
    eight = CoreInt.const(8)
    compute = (
        Fill(1, 0, -0.0, 0, "/conv 1"),
        Fill(1, -1, float("inf")),
        Arrive(0, 6, 0),
        Call(
            0,
            0,
            (1, 2),
            (CoreInt(), per_core),
            (3,),
            (CoreInt(("nr",), (2, 1)), eight),
            (),
            ("nc.0", "nc.1"),
            0,
            'a "b"',
        ),
        Call(0, 0, (1, 2), (CoreInt(), CoreInt()), (3,), (CoreInt.const(2), eight), (), ()),
        Wait(3, CoreInt(("dc",), (1, 2)), 0),
        Free((0, 1), 0),
        Barrier((0, 1, 2), 5, 0),
        Post(7),
    )
    send = (
        Push(0, 1, 0, 6, 0),
        Send(0, 1, (To("dc", "+", -1), To("nr", "=", 0), To("nc.0", "*")), per_core, eight, CoreInt.const(4), 8),
        Post(3, (To("nc.1", "+", 1),), 0, "here"),
        Loop((Wait(9, CoreInt.const(1), 0, "", True), Loop((), 2)), 5, 4, 0, "while"),
    )
    program = Program(
        TEST.to_dict(),
        MESH,
        (
            Buffer("x", "bf16", 16, 0, "owned"), Buffer("x.w", "bf16", 16, 64, "window"),
            Buffer("/conv/w:0", "bf16", 8, 128, "constant"), Buffer("x", "u32", 2, 192, "table"),
            Buffer("go", "bool", 1, 256, "owned"),
        ),
        (("k0", ADD_ROWS),),
        (movement.exchange(MESH),),
        (Role("main", (("nr", 0, 1), ("nc.0", 1, 2)), (compute, send)), Role("idle", (("nr", 1, 2),), ((),))),
        (Placement(2, "w", per_core, ("dc",)), Placement(3, "rows", CoreInt())),
        (Port("input:0", 0, (4, 8), "bf16", source),),
        (Port("y", 0, (4, 8), "f32", source),),
        {"w": np.zeros((4, 8), ml_dtypes.bfloat16), "rows": np.array([[0, 8]], np.uint32)},
        ({"name": "l0", "shape": [4, 8], "deep": {"a b": None, "c": [1.5, True, "x"]}},),
        {"precision": "bf16", "empty": [], "none": {}},
    )  # fmt: skip
    return TileProgram(program, (movement,))


def same(a: Program, b: Program) -> None:
    for f in dataclasses.fields(Program):
        if f.name not in ("exchanges", "weights"):
            assert getattr(a, f.name) == getattr(b, f.name), f.name
    assert a.weights.keys() == b.weights.keys()
    assert all(a.weights[k].tobytes() == b.weights[k].tobytes() for k in a.weights)
    assert len(a.exchanges) == len(b.exchanges)
    for x, y in zip(a.exchanges, b.exchanges, strict=True):
        m, n = x.messages(), y.messages()
        assert all(np.array_equal(getattr(m, f.name), getattr(n, f.name)) for f in dataclasses.fields(m))
        assert (x.fan_axes, x.source_held, x.target_held) == (y.fan_axes, y.source_held, y.target_held)


def through_text(tile: TileProgram) -> TileProgram:
    modules = to_modules(tile)
    for module in modules:
        verify(module)
    text = "\n".join(map(print_module, modules))
    parsed = parse_modules(text, constants=modules[0].constants)
    for module in parsed:
        verify(module)
    assert "\n".join(map(print_module, parsed)) == text, "print, parse, print is a fixed point"
    return from_modules(*parsed)


GOLDEN = """\
d1c.module tile {machine = "test", mesh = {dc = 2, nr = 2, "nc.0" = 2, "nc.1" = 2}} {
  func @main() {
    tile.info {record = {precision = "bf16", empty = [], none = {}}}
    tile.layer {record = {name = "l0", shape = [4, 8], deep = {"a b" = none, c = [1.5, true, "x"]}}}
    %x = tile.buffer : buffer<16xbf16 @ 0>
    %x.w = tile.buffer {kind = "window"} : buffer<16xbf16 @ 64>
    %0 = tile.buffer {kind = "constant", name = "/conv/w:0"} : buffer<8xbf16 @ 128>
    %1 = tile.buffer {kind = "table", name = "x"} : buffer<2xu32 @ 192>
    %go = tile.buffer : buffer<1xbool @ 256>
    tile.movement {name = "m0", source = #layout"[0: dc / 2, 1]", shape = [4, 8], \
need = #need"[4 rest 0 0 by nr / 2 of 4 at 1, 8 rest 0 7 | nr]"}
    tile.place(%0) {array = "w", index = #int"nr nc.0-1: 0 1*3 0*2 2 3", held = "dc"}
    tile.place(%1) {array = "rows"}
    tile.input(%x) {name = "input:0", shape = [4, 8], layout = #layout"[0: dc / 2, 1]"}
    tile.output(%x) {name = "y", shape = [4, 8], layout = #layout"[0: dc / 2, 1]", dtype = "f32"}
    tile.role {name = "main", cores = "nr 0..1 nc.0 1..2"} ({
      tile.fill(%x.w) {movement = "m0", value = -0.0, layer = 0} loc("/conv 1")
      tile.fill(%x.w) {value = inf}
      tile.arrive {movement = "m0", semaphore = 6, layer = 0}
      tile.call(%x, %x.w, %0, %1) {kernel = "k0", bases = [0, #int"nr nc.0-1: 0 1*3 0*2 2 3"], tables = 1, \
trips = [#int"nr: 2 1", 8], held = "nc.0-1", layer = 0} loc("a \\"b\\"")
      tile.call(%x, %x.w, %0, %1) {kernel = "k0", tables = 1}
      tile.wait {semaphore = 3, count = #int"dc: 1 2", layer = 0}
      tile.free(%x, %x.w) {layer = 0}
      tile.barrier {up = [0, 1, 2], release = 5, layer = 0}
      tile.post {semaphore = 7}
      tile.yield
    }, {
      tile.push(%x, %x.w) {movement = "m0", semaphore = 6, layer = 0}
      tile.send(%x, %x.w) {to = "dc-1 nr=0 nc.0=*", elements = 4, semaphore = 8, \
source_offset = #int"nr nc.0-1: 0 1*3 0*2 2 3", target_offset = 8}
      tile.post {semaphore = 3, to = "nc.1+1", layer = 0} loc("here")
      tile.loop(%go) {trips = 5, layer = 0} ({
        tile.wait {semaphore = 9, count = 1, layer = 0, relative = true}
        tile.loop {trips = 2} ({
          tile.yield
        })
        tile.yield
      }) loc("while")
      tile.yield
    })
    tile.role {name = "idle", cores = "nr 1..2"} ({
      tile.yield
    })
    tile.return
  }
"""


def test_golden_text_and_exact_inverse() -> None:
    tile = everything()
    assert print_module(to_modules(tile)[0]).startswith(GOLDEN)
    back = through_text(tile)
    same(tile.program, back.program)
    assert back.movements == tile.movements


@pytest.mark.parametrize("target", ["test", "d1-die", "d1-tile"])
def test_a_compiled_network(target: str, examples: object) -> None:
    model = import_onnx(f"{examples}/digits/digits.onnx", dims={"batch": 2})
    tile = run_pipeline(model, options={"policy": "bf16", "machine": PRESETS[target]}).program
    assert tile is not None
    back = through_text(tile)
    same(tile.program, back.program)
    assert back.movements == tile.movements
    tile_module, kern = to_modules(tile)
    text = print_module(tile_module) + print_module(kern)
    assembled = assemble(text, "digits.d1", weights=tile_module.constants)
    assert assembled.buffers == tile.program.buffers and assembled.placements == tile.program.placements


@pytest.mark.parametrize(
    "target",
    [
        dataclasses.replace(TEST, name="mine", sram_bytes=70_000),
        Machine.from_dict({"die_rows": 2, "die_cols": 2, "name": "four"}, PRESETS["d1-tile"]),
    ],
    ids=lambda m: m.name,
)
def test_other_machines_are_written_out(target: Machine) -> None:
    program = Program(target.to_dict(), Mesh(target.axes), (), (), (), (), (), (), ())
    same(through_text(TileProgram(program)).program, program)


def test_movements_belong_to_exchanges() -> None:
    with pytest.raises(ValueError, match="1 exchanges but 0 movements"):
        TileProgram(everything().program, ())


def tile_text(body: str) -> str:
    return (
        'd1c.module tile {machine = "test"} {\n  func @main() {\n'
        "    %a = tile.buffer : buffer<16xf32 @ 0>\n    %b = tile.buffer : buffer<16xbf16 @ 64>\n"
        f"    {body}\n    tile.return\n  }}\n}}\n"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("%c = tile.buffer : buffer<16xf32 @ 66>", "multiple of the 4 B"),
        ("%c = tile.buffer : tensor<16xf32>", "makes one buffer"),
        ('tile.role {name = "r"}', "at least one thread"),
        ('tile.role {name = "r", cores = "nr 0-2"} ({ tile.yield })', "cannot read cores 'nr 0-2'"),
        ('tile.role {name = "r"} ({ ^(%z: f32): tile.yield })', "takes no arguments"),
        ('tile.role {name = "r"} ({ tile.free(%a) })', "does not end in tile.yield"),
        ('tile.role {name = "r"} ({ tile.info {record = {}} tile.yield })', "tile.info is no command"),
        ('tile.role {name = "r"} ({ tile.free tile.yield })', "whose bytes become free"),
        ('tile.role {name = "r"} ({ tile.wait {semaphore = -1, count = 1} tile.yield })', "numbered from 0"),
        ('tile.role {name = "r"} ({ tile.wait(%a) {semaphore = 1, count = 1} tile.yield })', "takes no buffers"),
        ('tile.role {name = "r"} ({ tile.fill(%a, %b) tile.yield })', "takes 1 buffers"),
        ('tile.role {name = "r"} ({ tile.call(%a) {kernel = "k", tables = 2} tile.yield })', "2 tables"),
        ('tile.role {name = "r"} ({ tile.loop {trips = 1} tile.yield })', "has one body"),
        ('tile.role {name = "r"} ({ tile.loop {trips = -1} ({ tile.yield }) tile.yield })', "no negative number"),
        ('tile.role {name = "r"} ({ tile.loop(%a) {trips = 1} ({ tile.yield }) tile.yield })', "one buffer of bool"),
        (
            'tile.role {name = "r"} ({ tile.loop {trips = 1} ({ tile.return }) tile.yield })',
            "does not end in tile.yield",
        ),
        (
            'tile.role {name = "r"} ({ tile.loop {trips = 1} ({ tile.info {record = {}} tile.yield }) tile.yield })',
            "tile.info is no command",
        ),
        (
            'tile.role {name = "r"} ({ tile.send(%a, %b) {to = "nr+1", elements = 1, semaphore = 0} tile.yield })',
            "one element type, not f32 and bf16",
        ),
        (
            'tile.role {name = "r"} ({ tile.post {to = "nr+1 nr=0", semaphore = 0} tile.yield })',
            "names factor nr twice",
        ),
    ],
)
def test_rules_of_rows(body: str, words: str) -> None:
    module = parse(tile_text(body), "t.d1", origins=True)
    with pytest.raises(VerifyError) as caught:
        verify(module)
    assert words in str(caught.value)
    assert caught.value.where.startswith("t.d1:5")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("tile.free(%a)", "a command outside a thread"),
        ('tile.role {name = "r"} ({ tile.fill(%a) {movement = "m"} tile.yield })', "no movement 'm'"),
        ('tile.role {name = "r"} ({ tile.call(%a) {kernel = "k"} tile.yield })', "no kernel 'k'"),
        ('tile.place(%a) {array = "w"}', "no constant 'w'"),
        (
            'tile.movement {name = "m", source = #layout"[0: up / 2]", shape = [4], need = #need"[4 rest 0 3 | nr]"}',
            "names factor up",
        ),
        (
            'tile.movement {name = "m", source = #layout"[0: nr / 2]", shape = [4], need = #need"[2x2 rest 0 3 | nr]"}',
            "source and need do not fit together",
        ),
    ],
)
def test_names_that_do_not_resolve(body: str, words: str) -> None:
    with pytest.raises(VerifyError) as caught:
        assemble(tile_text(body), "t.d1")
    assert words in str(caught.value)
    assert caught.value.where == "t.d1:5"


def test_data_that_the_text_does_not_have() -> None:
    text = tile_text('tile.place(%a) {array = "w"}').replace(
        "  }\n}",
        """  }
  constants { "w" = external<640eda111fc864cd> : 1x16xf32 }\n}""",
    )
    with pytest.raises(UsageError, match="data of constant 'w' is not in the text"):
        assemble(text, "t.d1")


def test_several_modules_in_one_text() -> None:
    text = tile_text("") + "d1c.module kern {\n}\n"
    assert [m.level for m in parse_modules(text)] == ["tile", "kern"]
    with pytest.raises(ParseError, match="one module is expected") as caught:
        parse(text, "t.d1")
    assert caught.value.line == text.count("\n", 0, text.index("d1c.module kern")) + 1
    with pytest.raises(ParseError, match="bad type"):
        parse(tile_text("%c = tile.buffer : buffer<16xf32>"))
