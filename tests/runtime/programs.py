"""Small programs written by hand, on a mesh of 2 x 2 cores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from d1c.analysis.exchange import exchange
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.numerics import VERSION
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
    Fill,
    Free,
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

MESH = Mesh((("nr", 2), ("nc", 2)))
MACHINE = {"sram_bytes": 4096, "semaphores": 16, "threads": 4}
N = 16
QUARTERS = Layout.parse("[0: nr nc / 4]")
ONE = CoreInt.const(1)

COPY = Nest("map", (Loop("i", 4),), 1, (Operand("f32", (1,), (None,)),), Operand("f32", (1,), (None,)), 1)
"""out[i] = a[i]"""
SUM3 = Nest(
    "sum", (Loop("i", 4), Loop("k", 3)), 1, (Operand("f32", (1, 1), (None, None)),),
    Operand("f32", (1, 0), (None, None)), 1,
)  # fmt: skip
"""out[i] = a[i] + a[i + 1] + a[i + 2]"""


def const(*values: int) -> tuple[CoreInt, ...]:
    return tuple(CoreInt.const(v) for v in values)


def copy_call(source: int, out: int, n: CoreInt | int = 4, base: int = 0, layer: int = -1) -> Call:
    trips = n if isinstance(n, CoreInt) else CoreInt.const(n)
    return Call(0, out, (source,), const(base), (), (trips,), (), (), layer, f"copy{out}")


def program(
    buffers: tuple[Buffer, ...],
    roles: tuple[Role, ...],
    inputs: tuple[Port, ...] = (),
    outputs: tuple[Port, ...] = (),
    **more: object,
) -> Program:
    made = Program(
        MACHINE, MESH, buffers, (("copy", COPY), ("sum3", SUM3)), (), roles, (), inputs, outputs,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def halo(rounds: int = 1, fill: bool = True) -> Program:
    """y[i] = x[i - 1] + x[i] + x[i + 1], `rounds` times over, with +0 outside: windows with a halo of one element.

    All rounds but the first find the same window and arrival semaphore again, after Free, Fill and a barrier."""
    need = need_of((N, 3), (Entry(((0, 1), (1, 1)), -1, 1),), (N,), Layout.parse("[0: nr nc / 4, 1]"))
    move = exchange(QUARTERS, (N,), need, MESH)
    buffers = [Buffer("x", "f32", 4, 0, "owned"), Buffer("w", "f32", 6, 64, "window")]
    buffers += [Buffer(f"y{r}", "f32", 4, 128 + 64 * r, "owned") for r in range(rounds)]
    compute: list[Command] = []
    send: list[Command] = []
    for r in range(rounds):
        if r:
            compute.append(Free((1,), r))
        if fill:
            compute.append(Fill(1, 0, 0.0, r, "pad"))
        if r:
            compute += [Barrier((0, 1), 2, r), Post(3)]
            send.append(Wait(3, CoreInt.const(r), r))
        source = 0 if r == 0 else 1 + r
        send.append(Push(source, 1, 0, 4, r, f"conv{r}"))
        compute += [
            Arrive(0, 4, r, f"conv{r}"),
            Call(1, 2 + r, (1,), const(0), (), const(4, 3), (), (), r, f"conv{r}"),
        ]
    layers = tuple(
        {"name": f"y{r}", "buffer": 2 + r, "shape": [N], "dtype": "f32", "layout": str(QUARTERS), "origin": f"conv{r}"}
        for r in range(rounds)
    )
    return program(
        tuple(buffers), (Role("all", (), (tuple(compute), tuple(send))),),
        (Port("x", 0, (N,), "f32", QUARTERS),), (Port("y", 1 + rounds, (N,), "f32", QUARTERS),),
        exchanges=(move,), layers=layers, info={"model": "halo", "numerics": VERSION},
    )  # fmt: skip


def halo_reference(x: np.ndarray, rounds: int = 1) -> np.ndarray:
    for _ in range(rounds):
        p = np.pad(x, 1)
        x = (p[:-2] + p[1:-1]) + p[2:]
    return x


def stream(generations: int = 3, credit: bool = True) -> Program:
    """Core 0 keeps x[:2] as its half of every y[g]; the other halves it sends through one slot of core 1."""
    x = Port("x", 0, (2 * generations,), "f32", Layout.parse("[0 | nr nc]"))
    buffers = [Buffer("x", "f32", 2 * generations, 0, "owned"), Buffer("slot", "f32", 2, 64, "window")]
    buffers += [Buffer(f"y{g}", "f32", 2, 128 + 64 * g, "owned") for g in range(generations)]
    produce: list[Command] = []
    consume: list[Command] = []
    for g in range(generations):
        if g and credit:
            produce.append(Wait(1, CoreInt.const(g), origin="credit"))
        to = (To("nc", "=", 1),)
        produce.append(Send(0, 1, to, CoreInt.const(2 * g), CoreInt.const(0), CoreInt.const(2), 0, origin=f"send{g}"))
        consume += [Wait(0, CoreInt.const(g + 1)), copy_call(1, 2 + g, 2), Free((1,)), Post(1, (To("nc", "+", -1),))]
    halves = Layout.parse("[0: nc / 2 | nr]")
    outputs = tuple(Port(f"y{g}", 2 + g, (4,), "f32", halves) for g in range(generations))
    keep = tuple(copy_call(0, 2 + g, 2) for g in range(generations))
    return program(
        tuple(buffers),
        (Role("producer", (("nr", 0, 1), ("nc", 0, 1)), (tuple(produce), keep)),
         Role("consumer", (("nr", 0, 1), ("nc", 1, 2)), (tuple(consume),))),
        (x,), outputs,
    )  # fmt: skip


def weights() -> Program:
    """y = a row of `table` per core: a placed constant, another row along nr, nothing on held cores; copied to y."""
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    index = CoreInt(("nr",), (1, 0))
    return program(
        (Buffer("c", "f32", 4, 0, "constant"), Buffer("y", "f32", 4, 64, "owned")),
        (Role("all", (), ((Call(0, 1, (0,), const(0), (), const(4), (), ("nc",)),),)),),
        (), (Port("y", 1, (8,), "f32", Layout.parse("[0: nr / 4 | nc]")),),
        placements=(Placement(0, "table", index, ("nc",)),), weights={"table": rows},
    )  # fmt: skip
