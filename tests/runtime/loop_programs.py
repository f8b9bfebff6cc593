"""Small programs with loops, written by hand, on a mesh of 2 x 2 cores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from d1c.analysis.exchange import exchange
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.target.kernel import Body, Instr, Nest, Operand
from d1c.target.kernel import Loop as Extent
from d1c.target.mesh import CoreInt, Layout
from d1c.target.numerics import VERSION
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
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
from tests.runtime.programs import COPY, MESH, ONE, QUARTERS, SUM3, N, const, copy_call, program

WHOLE = Layout.parse("[0]")
_LINE = Operand("f32", (1,), (None,))
DOUBLE = Nest(
    "map", (Extent("i", 4),), 1, (_LINE,), _LINE, 1, epilogue=Body(("f32",), (Instr("add", (0, 0), "f32"),), 1)
)
"""out[i] = a[i] + a[i]"""
BELOW = Nest(
    "map", (Extent("i", 1),), 1, (_LINE,), Operand("bool", (1,), (None,)), 1,
    epilogue=Body(("f32",), (Instr("const", (), "f32", 1000.0), Instr("lt", (0, 1), "mask")), 2),
)  # fmt: skip
"""out[i] = a[i] < 1000"""
ADD = Nest(
    "map", (Extent("i", 4),), 1, (_LINE, _LINE), _LINE, 2,
    epilogue=Body(("f32", "f32"), (Instr("add", (0, 1), "f32"),), 2),
)  # fmt: skip
"""out[i] = a[i] + b[i]"""
KERNELS = (("copy", COPY), ("sum3", SUM3), ("double", DOUBLE), ("below", BELOW), ("add", ADD))


def call(kernel: str, out: int, *operands: int, n: int = 4, layer: int = -1) -> Call:
    number = [name for name, _ in KERNELS].index(kernel)
    return Call(number, out, operands, const(*(0 for _ in operands)), (), const(n), (), (), layer, f"{kernel}{out}")


def made(buffers: tuple[Buffer, ...], roles: tuple[Role, ...], *ports: tuple[Port, ...], **more: object) -> Program:
    return replace(program(buffers, roles, *ports), kernels=KERNELS, **more)  # type: ignore[arg-type]


def halo_loop(rounds: int, data: bool = False, tail: bool = False) -> Program:
    """y = the sum of three neighbours, `rounds` times over: a window with padding, rewritten in every round, behind a
    barrier; the transfer thread pushes when the compute thread says so. `data`: only while c[0] (an input that all
    cores hold), doubled in every round, is below 1000. `tail`: once more behind the loop."""
    need = need_of((N, 3), (Entry(((0, 1), (1, 1)), -1, 1),), (N,), Layout.parse("[0: nr nc / 4, 1]"))
    move = exchange(QUARTERS, (N,), need, MESH)
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("w", "f32", 6, 64, "window"), Buffer("y", "f32", 4, 128, "owned"),
        Buffer("c", "f32", 4, 192, "owned"), Buffer("go", "bool", 1, 256, "owned"), Buffer("t", "f32", 4, 320, "owned"),
    )  # fmt: skip
    ready, sent = 3, 5
    compute: tuple[Command, ...] = (
        Wait(sent, ONE, 0, "pushed", True),
        Free((1,), 0),
        Fill(1, 0, 0.0, 0, "pad"),
        Barrier((0, 1), 2, 0),
        Post(ready, (), 0),
        Arrive(0, 4, 0, "conv"),
        Free((0,), 0),
        Call(1, 0, (1,), const(0), (), const(4, 3), (), (), 0, "conv"),
    )
    end = (Post(ready, (), 0),)
    below = call("below", 4, 3, n=1)
    counter = (call("double", 5, 3), Free((3,)), copy_call(5, 3), Free((5, 4)), below) if data else ()
    transfer: tuple[Command, ...] = (
        Post(sent, (), 0),
        Wait(ready, ONE, 0, "credit", True),
        Push(0, 1, 0, 4, 0, "conv"),
        Wait(ready, ONE, 0, "computed", True),
    )
    condition = 4 if data else -1
    first = (below, Post(ready)) if data else ()
    last = (*(compute + end if tail else ()), copy_call(0, 2))
    threads = (
        (*first, Loop((*compute, *counter, *end), rounds, condition, 0), *last),
        (
            *((Wait(ready, ONE, relative=True),) if data else ()),
            Loop(transfer, rounds, condition),
            *(transfer if tail else ()),
        ),
    )
    layer = {"name": "x", "buffer": 0, "shape": [N], "dtype": "f32", "layout": str(QUARTERS), "origin": "conv"}
    ports = (Port("x", 0, (N,), "f32", QUARTERS), *((Port("c", 3, (4,), "f32", WHOLE),) if data else ()))
    return made(
        buffers, (Role("all", (), threads),), ports, (Port("y", 2, (N,), "f32", QUARTERS),),
        exchanges=(move,), layers=(layer,), info={"model": "halo", "numerics": VERSION},
    )  # fmt: skip


def ring(rounds: int) -> Program:
    """Every row of cores shifts its quarters by one core along nc, `rounds` times, through slots with credits."""
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("slot", "f32", 4, 64, "window"), Buffer("y", "f32", 4, 128, "owned"),
    )  # fmt: skip

    def role(nc: int) -> Role:
        to = (To("nc", "=", 1 - nc),)
        body = (
            Wait(1, ONE, relative=True, origin="credit"),
            Send(0, 1, to, *const(0, 0, 4), 0, origin="shift"),
            Free((0,)),
            Wait(0, ONE, relative=True),
            copy_call(1, 0),
            Free((1,)),
            Post(1, to),
        )
        return Role(f"nc{nc}", (("nc", nc, nc + 1),), ((Post(1, to), Loop(body, rounds), copy_call(0, 2)),))

    return made(
        buffers, (role(0), role(1)), (Port("x", 0, (N,), "f32", QUARTERS),), (Port("y", 2, (N,), "f32", QUARTERS),)
    )


def doubling(trips: int = 100) -> Program:
    """x (4 elements, on every core) doubled until x[0] >= 1000: every core computes the condition."""
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("go", "bool", 1, 64, "owned"), Buffer("t", "f32", 4, 128, "owned"),
        Buffer("y", "f32", 4, 192, "owned"),
    )  # fmt: skip
    body: tuple[Command, ...] = (
        call("double", 2, 0, layer=0), Free((0,)), copy_call(2, 0), Free((2, 1)), call("below", 1, 0, n=1),
    )  # fmt: skip
    thread = (call("below", 1, 0, n=1), Loop(body, trips, 1, 0, "while"), copy_call(0, 3))
    layer = {"name": "t", "buffer": 2, "shape": [4], "dtype": "f32", "layout": str(WHOLE), "origin": "double"}
    return made(
        buffers, (Role("all", (), (thread,)),), (Port("x", 0, (4,), "f32", WHOLE),),
        (Port("y", 3, (4,), "f32", WHOLE),), layers=(layer,),
    )  # fmt: skip


def doubling_reference(x: np.ndarray, trips: int = 100) -> np.ndarray:
    for _ in range(trips):
        if not x[0] < 1000:
            break
        x = x + x
    return x


def nested(outer: int, inner: int) -> Program:
    """`outer` times: x is doubled `inner` times, then x += 1 (a constant); x is kept at home on every core."""
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("t", "f32", 4, 64, "owned"), Buffer("y", "f32", 4, 128, "owned"),
        Buffer("one", "f32", 4, 192, "constant"),
    )  # fmt: skip
    twice = (call("double", 1, 0), Free((0,)), copy_call(1, 0), Free((1,)))
    plus = (call("add", 1, 0, 3), Free((0,)), copy_call(1, 0), Free((1,)))
    thread = (Loop((Loop(twice, inner), *plus), outer), copy_call(0, 2))
    return made(
        buffers, (Role("all", (), (thread,)),), (Port("x", 0, (N,), "f32", QUARTERS),),
        (Port("y", 2, (N,), "f32", QUARTERS),),
        placements=(Placement(3, "one", CoreInt.const(0)),), weights={"one": np.ones((1, 4), np.float32)},
    )  # fmt: skip


def nested_reference(x: np.ndarray, outer: int, inner: int) -> np.ndarray:
    for _ in range(outer):
        x = x * np.float32(2**inner) + np.float32(1)
    return x


def stage(rounds: int) -> Program:
    """Every round: window w of all cores receives x of every core (16 elements, one row for all: a multicast), each
    core takes back the quarter of the core on the other side."""
    need = need_of((4, N), (Entry(((1, 1),), 0, 1),), (N,), Layout.parse("[0: nr nc / 1, 1]"))
    move = exchange(QUARTERS, (N,), need, MESH)
    buffers = (
        Buffer("x", "f32", 4, 0, "owned"), Buffer("w", "f32", N, 64, "window"), Buffer("y", "f32", 4, 128, "owned"),
    )  # fmt: skip
    other = CoreInt(("nr", "nc"), (12, 8, 4, 0))
    body = (
        Push(0, 1, 0, 4, 0, "all"),
        Arrive(0, 4, 0, "all"),
        Barrier((0, 1), 2, 0),
        Free((0,), 0),
        Call(0, 0, (1,), (other,), (), const(4), (), (), 0, "back"),
        Free((1,), 0),
        Barrier((0, 1), 2, 0),
    )
    layer = {"name": "x", "buffer": 0, "shape": [N], "dtype": "f32", "layout": str(QUARTERS), "origin": "conv"}
    return made(
        buffers, (Role("all", (), ((Loop(body, rounds, layer=0), copy_call(0, 2)),)),),
        (Port("x", 0, (N,), "f32", QUARTERS),), (Port("y", 2, (N,), "f32", QUARTERS),),
        exchanges=(move,), layers=(layer,),
    )  # fmt: skip
