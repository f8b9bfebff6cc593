"""A distributed module becomes what the cores do: buffers with addresses, commands of two threads, kernels.

All cores share one role. Thread 0 computes: it waits for its windows, calls the layer's kernel, says that the result is
ready. Thread 1 sends: it waits until a tensor is ready and pushes it to where it is needed. Memory is recycled by
epochs: within an epoch no byte is used twice; between epochs a core frees what is dead, fills the padding of the
windows to come, and all cores meet at a barrier, which is the credit for everybody's next pushes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d1c.analysis.exchange import exchange_of
from d1c.analysis.shares import Shares
from d1c.emit.tile_program import Movement, TileProgram
from d1c.errors import DoesNotFit, UsageError
from d1c.interp_dist import compute_call, fill_windows
from d1c.ir.core import Module, Op, Value
from d1c.ir.types import TensorType, WindowType
from d1c.target.dtypes import U32, DType
from d1c.target.encoding import code_bytes
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import CoreInt, Layout, Mesh, place
from d1c.target.movement import Exchange
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
    Wait,
)

ALIGN = 64
READY, SENT = 0, 1
LIST_BYTES = 32
"""SRAM that one message or command of a thread's list takes: assumed, d1c's own list format."""
FLOPS = {"mac": 2, "fma": 2, "map": 0, "lookup": 0, "or": 0, "scatter": 0}
"""Operations per iteration that reports count; 1 for the kinds that are not named."""


@dataclass
class _Buffer:
    """A buffer before it has an address: it lives from epoch `first` to epoch `last`."""

    name: str
    dtype: DType
    elements: int
    kind: str
    first: int = 0
    last: int = 0

    @property
    def bytes(self) -> int:
        return -(-self.elements * self.dtype.bytes // ALIGN) * ALIGN


@dataclass
class _Step:
    """One compute with the exchanges that it is the first to wait for."""

    op: Op
    fetch: list[Op] = field(default_factory=list)
    epoch: int = 0


def run(module: Module, machine: Machine) -> TileProgram:
    """The program of a dist module. DoesNotFit where a core cannot hold it, or has one thread only."""
    if machine.threads < 2:
        raise DoesNotFit(
            f"programs need 2 threads on a core, and machine {machine.name} has {machine.threads}",
            rule="one thread computes, one sends",
            amounts={"threads": machine.threads},
            remedy="give the machine threads = 2 or more",
        )
    return _Lowering(module, machine).run()


class _Lowering:
    def __init__(self, module: Module, machine: Machine) -> None:
        self.module, self.machine, self.mesh = module, machine, Mesh(machine.axes)
        self.buffers: list[_Buffer] = []
        self.of: dict[Value, int] = {}
        self.kernels: dict[Nest, int] = {}
        self.names: dict[int, str] = {}
        self.placements: list[Placement] = []
        self.weights: dict[str, np.ndarray] = {}
        self.movements: dict[Value, int] = {}
        self.moves: list[Movement] = []
        self.exchanges: list[Exchange] = []
        self.layers: list[dict[str, Any]] = []

    def run(self) -> TileProgram:
        main = self.module.function()
        for v in main.block.args:
            self.add(v, "owned")
        steps, outputs = self.steps(main.block.ops)
        shares = [compute_call(s.op, self.mesh) for s in steps]
        tables = [self.tables(s.op, c) for s, c in zip(steps, shares, strict=True)]
        overhead = self.overhead(steps, shares)
        epochs, addresses, peak = self.schedule(steps, outputs, overhead)
        threads = self.threads(steps, shares, tables, epochs)
        buffers = tuple(
            Buffer(b.name, b.dtype.name, b.elements, a, b.kind) for b, a in zip(self.buffers, addresses, strict=True)
        )
        info = {
            "precision": self.module.attrs.get("precision", "f32"), "numerics": VERSION, "epochs": epochs,
            "sram_data_bytes": peak, "sram_code_bytes": overhead, "sram_peak_bytes": peak + overhead,
            **{k: v for k, v in self.module.attrs.items() if k.startswith("folded") or k == "model"},
        }  # fmt: skip
        scalars = self.module.attrs.get("scalars", ())
        program = Program(
            self.machine.to_dict(), self.mesh, buffers, tuple((self.names[i], n) for n, i in self.kernels.items()),
            tuple(self.exchanges), (Role("main", (), threads),), tuple(self.placements),
            tuple(self.port(v.name, v) for v in main.block.args),
            tuple(self.port(n, v, n in scalars) for n, v in zip(self.module.attrs["outputs"], outputs, strict=True)),
            self.weights, tuple(self.layers), info,
        )  # fmt: skip
        return TileProgram(program, tuple(self.moves))

    def add(self, v: Value, kind: str) -> int:
        t = v.type
        if isinstance(t, WindowType):
            elements = math.prod(t.need.local_shape(self.mesh))
        else:
            assert isinstance(t, TensorType) and t.layout is not None
            elements = math.prod(t.layout.local_shape(t.shape))
        self.of[v] = self.new(v.name or f"v{len(self.buffers)}", t.dtype, elements, kind)
        return self.of[v]

    def new(self, name: str, dtype: DType, elements: int, kind: str) -> int:
        taken = {b.name for b in self.buffers}
        wish, k = name, 1
        while name in taken:
            k += 1
            name = f"{wish}.{k}"
        self.buffers.append(_Buffer(name, dtype, max(elements, 1), kind))
        return len(self.buffers) - 1

    def port(self, name: str, v: Value, scalar: bool = False) -> Port:
        t = v.type
        assert isinstance(t, TensorType) and t.layout is not None
        if scalar:  # one element: whoever is first along its factors has it
            return Port(name, self.of[v], (), t.dtype.name, Layout((), (*t.layout.axes, *t.layout.held)))
        return Port(name, self.of[v], t.shape, t.dtype.name, t.layout)

    def steps(self, ops: tuple[Op, ...]) -> tuple[list[_Step], tuple[Value, ...]]:
        """The computes in order; buffers, constants and movements of everything on the way."""
        steps: list[_Step] = []
        fetch: list[Op] = []
        for op in ops:
            if op.name == "dist.return":
                return steps, op.operands
            if op.name == "dist.const":
                self.constant(op)
            elif op.name == "dist.exchange":
                (x,), w = op.operands, op.result.type
                assert isinstance(x.type, TensorType) and x.type.layout is not None and isinstance(w, WindowType)
                self.add(op.result, "window")
                self.movements[op.result] = len(self.exchanges)
                self.exchanges.append(exchange_of(x.type.layout, x.type.shape, w.need, self.mesh))
                self.moves.append(Movement(x.type.layout, x.type.shape, w.need))
                fetch.append(op)
            else:
                self.add(op.result, "owned")
                steps.append(_Step(op, fetch))
                self.layers.append(self.record(op))
                fetch = []
        raise AssertionError("a dist function ends in dist.return")

    def record(self, op: Op) -> dict[str, Any]:
        a, t = op.attrs, op.result.type
        assert isinstance(t, TensorType) and t.layout is not None
        work = math.prod(d.extent for d in a.nest.dims)
        return {
            "name": op.result.name, "origin": op.origin, "kind": a.nest.kind, "nest": str(a.nest), "plan": str(a.plan),
            "buffer": self.of[op.result], "shape": list(t.shape), "dtype": t.dtype.name, "layout": str(t.layout),
            "flops": work * FLOPS.get(a.nest.kind, 1),
        }  # fmt: skip

    def constant(self, op: Op) -> None:
        """Place a constant: a row of its array for every different window or share."""
        if op.attrs.name not in self.module.constants:
            raise UsageError(
                f"the data of constant {op.attrs.name!r} is not in the module",
                rule="a program holds its weights; printed text has large constants as a digest only",
                remedy="lower the model itself: d1c compile MODEL.onnx --emit tile",
            )
        array, t = self.module.constants[op.attrs.name], op.result.type
        number = self.add(op.result, "constant")
        size = self.buffers[number].elements
        if isinstance(t, WindowType):
            axes = tuple(a for a in self.mesh.names if a in t.need.axes)
            rows = fill_windows(array, t.need, op.attrs.fill, self.mesh)
        else:
            assert isinstance(t, TensorType) and t.layout is not None
            axes = t.layout.axes
            rows = place(array, t.layout, self.mesh)
        cores = self.mesh.core_offset(axes, np.arange(self.mesh.parts(axes)))
        index = np.full(len(cores), -1)
        data = np.zeros((len(rows), size), array.dtype)
        position = {int(core): i for i, core in enumerate(cores)}
        for row, (core, values) in enumerate(rows.items()):
            data[row] = values
            index[position[core]] = row
        held = t.layout.held if isinstance(t, TensorType) and t.layout is not None else ()
        self.put(number, data, CoreInt.over(axes, index, self.mesh), held)

    def put(self, number: int, data: np.ndarray, index: CoreInt, held: tuple[str, ...]) -> None:
        name = self.buffers[number].name
        self.weights[name] = data
        self.placements.append(Placement(number, name, index, held))

    def tables(self, op: Op, c: Shares) -> tuple[int, ...]:
        """The buffers of a call's offset tables."""
        out = []
        plan: Layout = op.attrs.plan
        for k, rows in enumerate(c.tables):
            number = self.new(f"{op.result.name or 'v'}.rows{k}", U32, rows.shape[1], "table")
            index = np.full(self.mesh.parts(plan.axes), -1)
            index[c.positions] = c.table_rows[:, k]
            self.put(number, rows.astype(np.uint32), CoreInt.over(plan.axes, index, self.mesh), plan.held)
            out.append(number)
        return tuple(out)

    def overhead(self, steps: list[_Step], shares: list[Shares]) -> int:
        """SRAM of code and of the threads' lists, on the core that has most."""
        for c in shares:
            if c.nest not in self.kernels:
                number = len(self.kernels)
                self.kernels[c.nest] = number
                self.names[number] = f"k{number}_{c.nest.kind}"
        code = sum(code_bytes(n) for n in self.kernels)
        messages = np.zeros(self.mesh.cores, np.int64)
        for x in self.exchanges:
            messages += np.bincount(x.messages().src, minlength=self.mesh.cores)
        commands = 4 * len(steps) + 3 * len(self.exchanges)
        return int(code + LIST_BYTES * (commands + messages.max(initial=0)))

    # ---- epochs and addresses ---------------------------------------------------------------------------------------

    def schedule(self, steps: list[_Step], outputs: tuple[Value, ...], overhead: int) -> tuple[int, list[int], int]:
        """Epochs of all steps and addresses of all buffers: (epochs, addresses, peak bytes)."""
        capacity = self.machine.sram_bytes - overhead
        fixed = sum(b.bytes for b in self.buffers if b.kind in ("constant", "table"))
        pool = self.machine.semaphores - self.first_arrival
        most = max(steps, key=lambda s: len(s.fetch), default=None)
        if most is not None and len(most.fetch) > pool:
            raise DoesNotFit(
                f"a core of {self.machine.name} has too few semaphores for {most.op.origin or most.op.result.name}",
                rule="every movement that a layer waits for counts its messages on a semaphore of its own",
                amounts={"movements of the layer": len(most.fetch), "semaphores of a core": self.machine.semaphores,
                         "of these for barriers and threads": self.first_arrival},
                remedy="use a target with more semaphores",
            )  # fmt: skip
        for share in (0.95, 0.8, 0.65, 0.5):
            epochs = self.epochs(steps, outputs, (capacity - fixed) * share, pool)
            if epochs is None:
                continue
            addresses, peak = pack(self.buffers)
            if peak <= capacity:
                return epochs, addresses, peak
        sizes = sorted(self.buffers, key=lambda b: -b.bytes)[:6]
        raise DoesNotFit(
            f"the program does not fit {capacity:,} B of a core's SRAM",
            rule="constants, one layer's windows and the tensors that are alive across it must fit together",
            amounts={
                "SRAM of a core": self.machine.sram_bytes, "code and lists": overhead, "constants and tables": fixed,
                **{f"buffer {b.name}": b.bytes for b in sizes},
            },
            remedy="use a larger --target, a smaller batch, or --precision bf16",
        )  # fmt: skip

    @property
    def first_arrival(self) -> int:
        return 2 + len({a.split(".")[0] for a in self.mesh.names}) + 1

    def epochs(self, steps: list[_Step], outputs: tuple[Value, ...], capacity: float, pool: int) -> int | None:
        """Cut the steps into epochs that fit; None where one step alone does not."""
        last: dict[int, int] = {self.of[v]: len(steps) for v in outputs}
        for i, s in enumerate(steps):
            for v in (*s.op.operands, *(f.operands[0] for f in s.fetch)):
                last[self.of[v]] = max(last.get(self.of[v], 0), i)
        live = {self.of[v] for v in self.module.function().block.args}
        epoch, used, arrivals = 0, sum(self.buffers[b].bytes for b in live), 0
        if used > capacity:
            return None
        born = dict.fromkeys(live, 0)
        for i, s in enumerate(steps):
            new = {self.of[s.op.result], *(self.of[f.result] for f in s.fetch)}
            size = sum(self.buffers[b].bytes for b in new)
            if used + size > capacity or arrivals + len(s.fetch) > pool:
                live = {b for b in live if last.get(b, -1) >= i}
                epoch, used, arrivals = epoch + 1, sum(self.buffers[b].bytes for b in live), 0
                if used + size > capacity or len(s.fetch) > pool:
                    return None
            live |= new
            born.update(dict.fromkeys(new, epoch))
            used, arrivals, s.epoch = used + size, arrivals + len(s.fetch), epoch
        for b, buffer in enumerate(self.buffers):
            if buffer.kind in ("constant", "table"):
                buffer.first, buffer.last = 0, epoch
            else:
                end = last.get(b, -1)
                buffer.first = born.get(b, 0)
                buffer.last = epoch if end >= len(steps) else steps[end].epoch if end >= 0 else buffer.first
        return epoch + 1

    # ---- commands ---------------------------------------------------------------------------------------------------

    def threads(
        self, steps: list[_Step], shares: list[Shares], tables: list[tuple[int, ...]], epochs: int
    ) -> tuple[tuple[Command, ...], ...]:
        compute: list[Command] = []
        send: list[Command] = []
        axes = len({a.split(".")[0] for a in self.mesh.names})
        barrier = Barrier(tuple(range(2, 2 + axes)), 2 + axes)
        sources = {f.operands[0] for s in steps for f in s.fetch}
        ready, sent, waited = 0, 0, 0
        ready_at: dict[Value, int] = {}
        epoch, arrival, pushes = -1, self.first_arrival, 0
        for layer, (s, c, tab) in enumerate(zip(steps, shares, tables, strict=True)):
            if s.epoch != epoch:
                if pushes:
                    send.append(Post(SENT, layer=layer))
                    sent += 1
                    compute.append(Wait(SENT, CoreInt.const(sent), layer))
                dead = tuple(b for b, x in enumerate(self.buffers) if x.last == epoch and x.kind in ("owned", "window"))
                if dead and epoch >= 0:
                    compute.append(Free(dead, layer))
                epoch, arrival, pushes = s.epoch, self.first_arrival, 0
                fills = self.fills(steps, epoch, layer)
                compute += fills
                if epoch or fills:
                    compute += [barrier, Post(READY, layer=layer)]
                    ready += 1
                start = ready
            for f in s.fetch:
                x, w = f.operands[0], f.result
                need = max(ready_at.get(x, 0), start)
                if need > waited:
                    send.append(Wait(READY, CoreInt.const(need), layer, s.op.origin))
                    waited = need
                send.append(Push(self.of[x], self.of[w], self.movements[w], arrival, layer, s.op.origin))
                compute.append(Arrive(self.movements[w], arrival, layer, s.op.origin))
                arrival += 1
                pushes += 1
            compute.append(self.call(s.op, c, tab, layer))
            if s.op.result in sources:
                compute.append(Post(READY, layer=layer, origin=s.op.origin))
                ready += 1
                ready_at[s.op.result] = ready
        return (tuple(compute), tuple(send)) if send else (tuple(compute),)

    def fills(self, steps: list[_Step], epoch: int, layer: int) -> list[Command]:
        out: list[Command] = []
        for s in steps:
            if s.epoch == epoch:
                for f in s.fetch:
                    m = self.movements[f.result]
                    if self.exchanges[m].padded:
                        out.append(Fill(self.of[f.result], m, f.attrs.fill, layer, s.op.origin))
        return out

    def call(self, op: Op, c: Shares, tables: tuple[int, ...], layer: int) -> Call:
        plan: Layout = op.attrs.plan
        every = self.mesh.parts(plan.axes)

        def table(values: np.ndarray) -> CoreInt:
            full = np.zeros(every, np.int64)
            full[c.positions] = values
            return CoreInt.over(plan.axes, full, self.mesh)

        return Call(
            self.kernels[c.nest], self.of[op.result], tuple(self.of[v] for v in op.operands),
            tuple(table(c.bases[:, i]) for i in range(c.bases.shape[1])), tables,
            tuple(CoreInt.over(plan.axes, c.all_trips[:, i], self.mesh) for i in range(c.all_trips.shape[1])),
            tuple(table(c.scalars[:, i]) for i in range(c.scalars.shape[1])), plan.held, layer, op.origin,
        )  # fmt: skip


def pack(buffers: list[_Buffer]) -> tuple[list[int], int]:
    """Addresses by size, largest first, each in the lowest gap that is free over its epochs; and the peak."""
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].bytes * (buffers[i].last - buffers[i].first + 1), i))
    address = [0] * len(buffers)
    done: list[int] = []
    for i in order:
        b = buffers[i]
        busy = sorted(
            (address[j], address[j] + buffers[j].bytes)
            for j in done
            if buffers[j].first <= b.last and b.first <= buffers[j].last
        )
        at = 0
        for lo, hi in busy:
            if at + b.bytes <= lo:
                break
            at = max(at, hi)
        address[i] = at
        done.append(i)
    return address, max((address[i] + b.bytes for i, b in enumerate(buffers)), default=0)
