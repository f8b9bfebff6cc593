"""A distributed module becomes what the cores do: buffers with addresses, commands of their threads, kernels.

All cores share one role. Thread 0 computes: it waits for its windows, calls the layer's kernel, says that the result is
ready. Thread 1 sends: it waits until a tensor is ready and pushes it to where it is needed. Memory is recycled by
epochs: within an epoch no byte is used twice. Behind an epoch thread 2 frees what is dead and meets the other cores at
a barrier, which is the credit for everybody's pushes, not of the next epoch but of the one after it, so that nobody
waits for the barrier; where memory is too short for that, the next epoch waits. Thread 3 sends weights to where they
are needed, some layers ahead, and asks for those that are streamed from the interface processors' memories, as soon as
there is space.

Where it pays, a layer comes in two parts (d1c.passes.chunks): thread 0 computes the first half of every core's rows as
soon as the rows are there that they read, and thread 1 sends them while the others are computed.

All threads run a loop's body as often; each of its rounds begins like an epoch that waits. Carried values have a buffer
each, to which a call copies the new value when the round is over and thread 1 has sent what reads the old one. A
condition is sent to a window on all cores, before the loop and at the end of every round; the other threads look at it
once thread 0 has posted that it is there, and thread 2 frees it once they have posted that they are in the next round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from d1c.analysis import epochs as memory
from d1c.analysis.delivery import fill_windows
from d1c.analysis.epochs import Step
from d1c.analysis.exchange import exchange_of
from d1c.analysis.footprint import fullest
from d1c.analysis.pack import live_bytes, pack
from d1c.analysis.scratch import Scratch
from d1c.analysis.shares import Shares, compute_call
from d1c.emit.tile_program import Movement, TileProgram
from d1c.errors import DoesNotFit, UsageError
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.layout import Component, Need
from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, WindowType
from d1c.ops.dist.compute import ComputeAttrs, ExchangeAttrs
from d1c.passes.chunks import arrival, bounds, parts, pays, split
from d1c.passes.tile_threads import Signals, Threads
from d1c.target.barrier import barrier_axes
from d1c.target.counts import Counts, by_output
from d1c.target.dtypes import BOOL, U32, DType
from d1c.target.encoding import code_bytes
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import CoreInt, Layout, Mesh, place
from d1c.target.movement import Exchange
from d1c.target.numerics import VERSION
from d1c.target.program import Buffer, Call, Placement, Port, Program, Role, every

LIST_BYTES = 32
"""SRAM that one message or command of a thread's list takes: assumed, d1c's own list format."""
FLOPS = {"mac": 2, "fma": 2, "map": 0, "lookup": 0, "or": 0, "scatter": 0}
"""Operations per iteration that reports count; 1 for the kinds that are not named."""


def run(module: Module, machine: Machine, chunks: int | None = None) -> TileProgram:
    """The program of a dist module. `chunks`: in so many parts all layers are computed and moved that can be (default:
    in two those where it pays, in one all where cores cannot hold it otherwise: tables, lists and semaphores are more).
    DoesNotFit where a core cannot hold it, or has too few threads."""
    if machine.threads < 3:
        raise DoesNotFit(
            f"programs need 3 threads on a core, and machine {machine.name} has {machine.threads}",
            rule="one thread computes, one sends, one meets the other cores",
            amounts={"threads": machine.threads},
            remedy="give the machine threads = 3 or more",
        )
    lowering = _Lowering(module, machine, chunks)
    try:
        return lowering.run()
    except DoesNotFit:
        if chunks is not None or all(x.cut is None for x in lowering.exchanges):
            raise
    return _Lowering(module, machine, 1).run()


class _Lowering:
    def __init__(self, module: Module, machine: Machine, chunks: int | None = None) -> None:
        self.module, self.machine, self.mesh, self.chunks = module, machine, Mesh(machine.axes), chunks
        self.buffers: list[memory.Buffer] = []
        self.steps: list[Step] = []
        self.of: dict[Value, int] = {}
        self.kernels: dict[Nest, int] = {}
        self.names: dict[int, str] = {}
        self.placements: list[Placement] = []
        self.weights: dict[str, np.ndarray] = {}
        self.movements: dict[Value, int] = {}
        self.moves: list[Movement] = []
        self.exchanges: list[Exchange] = []
        self.layers: list[dict[str, Any]] = []
        self.branches = dict(module.attrs.get("branches", ()))
        self.part = ""  # the layer to which the last compute belongs
        self.conditions: dict[Op, int] = {}
        self.streamed: dict[Op, tuple[str, CoreInt]] = {}
        self.parts: dict[Value, list[tuple[int, int, int]]] = {}
        self.unsent: set[int] = set()
        self.readers: dict[Value, list[Op]] = {}
        self.sync: tuple[bool, ...] = ()
        self.signals = Signals.of(0, False, False, False)
        self.fetches = False

    def run(self) -> TileProgram:
        main = self.module.function()
        self.streams()
        for v in main.block.args:
            self.add(v, "owned")
        outputs = self.walk(main.block)
        shares = [compute_call(s.op, self.mesh) if s.op.name == "dist.compute" else None for s in self.steps]
        for f in (f for s in self.steps for f in s.fetch):
            self.readers.setdefault(f.operands[0], []).append(f)
        rows = [(0,) if c is None else self.rows(s, c) for s, c in zip(self.steps, shares, strict=True)]
        self.cut(shares, rows)
        tables = [
            [] if c is None else self.tables(s.op, c, r) for s, c, r in zip(self.steps, shares, rows, strict=True)
        ]
        least, commands = self.overhead([c for c in shares if c is not None]), 4 * len(self.steps) + 3 * len(self.moves)
        calls = [
            () if c is None else split(self.call(s.op, c, s.layer), c, r, tab, s.op.attrs.plan.axes, self.mesh)
            for s, c, r, tab in zip(self.steps, shares, rows, tables, strict=True)
        ]
        while True:
            overhead = least + LIST_BYTES * commands
            addresses, peak = self.schedule(outputs, overhead)
            threads = Threads(self, self.machine.semaphores, self.fetches).run(calls)
            need = sum(1 for t in threads for _ in every(t))
            if need <= commands:
                break
            commands = need
        buffers = tuple(
            Buffer(b.name, b.dtype.name, b.elements, a, b.kind) for b, a in zip(self.buffers, addresses, strict=True)
        )
        info = {
            "precision": self.module.attrs.get("precision", "f32"), "numerics": VERSION, "epochs": len(self.sync),
            "sram_data_bytes": peak, "sram_live_bytes": live_bytes(self.buffers), "sram_code_bytes": overhead,
            "sram_peak_bytes": peak + overhead,
            **{k: v for k, v in self.module.attrs.items()
               if k.startswith(("folded", "empty_")) or k in ("model", "frozen", "lists")},
            **{k: dict(v) for k, v in self.module.attrs.items() if k == "bounds"},
        }  # fmt: skip
        scalars = self.module.attrs.get("scalars", ())
        counts = by_output(self.module.attrs.get("counts", ()))
        program = Program(
            self.machine.to_dict(), self.mesh, buffers, tuple((self.names[i], n) for n, i in self.kernels.items()),
            tuple(self.exchanges), (Role("main", (), threads),), tuple(self.placements),
            tuple(self.port(v.name, v) for v in main.block.args),
            tuple(
                self.port(n, v, n in scalars, counts.get(n, ()))
                for n, v in zip(self.module.attrs["outputs"], outputs, strict=True)
            ),
            self.weights, tuple(self.layers), info,
        )  # fmt: skip
        borders = sum(s.kind in ("begin", "end") for s in self.steps)
        return TileProgram(program, tuple(self.moves), max(0, sum(self.sync) - 1 - borders))

    def streams(self) -> None:
        """Refuse what only a machine with interface processors and a thread for them can run."""
        ops = (op for f in self.module.functions for op in f.block.ops)
        if (self.machine.threads < 4 or not self.machine.dip_count) and (
            op := next((op for op in ops if op.name == "dist.const" and op.attrs.streamed), None)
        ):
            raise DoesNotFit(
                f"machine {self.machine.name} cannot stream constant {op.attrs.name}", where=op.origin,
                rule="streaming takes a fourth thread on every core, and an interface processor",
                amounts={"threads": self.machine.threads, "interface processors": self.machine.dip_count},
                remedy="use a larger --target",
            )  # fmt: skip

    def add(self, v: Value, kind: str) -> int:
        t = v.type
        if isinstance(t, WindowType):
            elements = math.prod(t.need.local_shape())
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
        self.buffers.append(memory.Buffer(name, dtype, max(elements, 1), kind))
        return len(self.buffers) - 1

    def port(self, name: str, v: Value, scalar: bool = False, counts: Counts = ()) -> Port:
        t = v.type
        assert isinstance(t, TensorType) and t.layout is not None
        if scalar:  # one element: whoever is first along its factors has it
            return Port(name, self.of[v], (), t.dtype.name, Layout((), (*t.layout.axes, *t.layout.held)))
        return Port(name, self.of[v], t.shape, t.dtype.name, t.layout, counts)

    def walk(self, block: Block) -> tuple[Value, ...]:
        """Add a function's steps, with buffers, constants and movements of everything on the way; its results."""
        fetch: list[Op] = []
        streams: list[Op] = []
        scratch = Scratch(block)
        for i, op in enumerate(block.ops):
            if op.name == "dist.return":
                return op.operands
            if op.name == "dist.const":
                self.constant(op)
                streams += [op] if op.attrs.streamed else []
            elif op.name == "dist.exchange":
                self.exchange(op)
                fetch.append(op)
            elif op.name == "dist.loop":
                self.loop(op)
            else:
                used = scratch.take(op, self.buffers)
                self.of[op.result] = self.add(op.result, "owned") if used is None else used
                scratch.give(i, op, self.of)
                self.compute(op, "compute", fetch, streams, used is not None)
                fetch, streams = [], []
        raise AssertionError("a dist function ends in dist.return")

    def exchange(self, op: Op, window: int | None = None) -> None:
        """Add a movement, to buffer `window` where that is given."""
        (x,), w = op.operands, op.result.type
        assert isinstance(x.type, TensorType) and x.type.layout is not None and isinstance(w, WindowType)
        self.of[op.result] = self.add(op.result, "window") if window is None else window
        self.movements[op.result] = len(self.exchanges)
        self.exchanges.append(exchange_of(x.type.layout, x.type.shape, w.need, self.mesh))
        self.moves.append(Movement(x.type.layout, x.type.shape, w.need))

    def compute(
        self, op: Op, kind: Literal["compute", "start", "carry"], fetch: list[Op], streams: Sequence[Op] = (),
        again: bool = False,
    ) -> None:  # fmt: skip
        record = self.record(op)
        if op.attrs.of and op.attrs.of == self.part:
            record["flops"] += self.layers.pop()["flops"]
        self.layers.append(record)
        self.part = op.attrs.of
        new = (self.of[op.result], *(self.of[f.result] for f in (*fetch, *streams)))
        reads = (*(self.of[v] for v in op.operands), *(self.of[f.operands[0]] for f in fetch))
        self.steps.append(Step(op, kind, fetch, list(streams), new, reads, len(self.layers) - 1, again=again))

    def loop(self, op: Op) -> None:
        """The steps of a loop. Its carried values, which are its results, have buffers of their own."""
        a, body = op.attrs, self.module.function(op.attrs.body).block
        for i, (arg, v) in enumerate(zip(body.args, op.operands, strict=True)):
            if i < a.carried:
                self.of[op.results[i]] = self.add(arg, "owned")
                self.compute(_copy(v, arg, op), "start", [])
            else:
                self.of[arg] = self.of[v]
        around = [self.of[v] for v in body.args]

        def step(kind: Literal["test", "begin", "end"]) -> None:
            fetch = []
            if kind == "test":
                need = Need((Component((1,), ((0, 1),), (), 0, 0),), self.mesh.names)
                window = Value(WindowType((1,), BOOL, need), f"{op.results[0].name or 'loop'}.test")
                fetch.append(Op("dist.exchange", (body.args[0],), ExchangeAttrs(), (window,), (), op.origin))
                self.exchange(fetch[0], self.conditions.get(op))
                self.conditions[op] = self.of[window]
                around.append(self.of[window])
            new = tuple(self.of[f.result] for f in fetch)
            self.steps.append(Step(op, kind, fetch, [], new, tuple(around), len(self.layers) - 1))

        if a.condition:
            step("test")
        step("begin")
        for new, arg in zip(self.walk(body), body.args, strict=False):
            if new is not arg:
                self.compute(_copy(new, arg, op), "carry", [])
        if a.condition:
            step("test")
        step("end")

    def record(self, op: Op) -> dict[str, Any]:
        a, t = op.attrs, op.result.type
        assert isinstance(t, TensorType) and t.layout is not None
        work = math.prod(d.extent for d in a.nest.dims)
        beside = self.branches.get(op.result.name)
        return {
            "name": op.result.name, "origin": op.origin, "kind": a.nest.kind, "nest": str(a.nest), "plan": str(a.plan),
            "buffer": self.of[op.result], "shape": list(t.shape), "dtype": t.dtype.name, "layout": str(t.layout),
            "flops": work * FLOPS.get(a.nest.kind, 1), **({"branches": list(beside)} if beside else {}),
        }  # fmt: skip

    def constant(self, op: Op) -> None:
        """Place a constant, or have it streamed: a row of its array for every different window or share."""
        if op.attrs.name not in self.module.constants:
            raise UsageError(
                f"the data of constant {op.attrs.name!r} is not in the module",
                rule="a program holds its weights; printed text has large constants as a digest only",
                remedy="lower the model itself: d1c compile MODEL.onnx --emit tile",
            )
        array, t = self.module.constants[op.attrs.name], op.result.type
        number = self.add(op.result, "window" if op.attrs.streamed else "constant")
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
        if op.attrs.streamed:
            name = self.buffers[number].name
            self.weights[name] = data
            self.streamed[op] = name, CoreInt.over(axes, index, self.mesh)
        else:
            self.put(number, data, CoreInt.over(axes, index, self.mesh), held)

    def put(self, number: int, data: np.ndarray, index: CoreInt, held: tuple[str, ...]) -> None:
        name = self.buffers[number].name
        self.weights[name] = data
        self.placements.append(Placement(number, name, index, held))

    def rows(self, s: Step, c: Shares) -> tuple[int, ...]:
        """Where the rows of a call are cut: from 0 to how many there are."""
        cut = bounds(c, (self.chunks or 2) if s.kind == "compute" else 1, self.machine)
        if self.chunks is not None or len(cut) == 2:
            return cut
        here = [(f.result, f) for f in s.fetch if self.buffers[self.of[f.operands[0]]].kind != "constant"]
        windows = [(k, self.arrival(f)) for v, f in here for k, o in enumerate(s.op.operands) if o is v]
        sent = [self.arrival(f) for f in self.readers.get(s.op.result, ())]
        return cut if pays(c, cut, windows, sent, self.machine) else (0, cut[-1])

    def arrival(self, f: Op) -> float:
        """Cycles that a movement takes at the least."""
        return arrival(self.exchanges[self.movements[f.result]], f.result.type.dtype.bytes, self.machine)

    def cut(self, shares: Sequence[Shares | None], rows: Sequence[tuple[int, ...]]) -> None:
        """Cut the movements from and to the calls that are cut."""
        calls = [None if c is None else (c, r) for c, r in zip(shares, rows, strict=True)]
        made = {s.op.result: call for s, call in zip(self.steps, calls, strict=True) if call is not None}
        for s, call in zip(self.steps, calls, strict=True):
            for f in s.fetch:
                m = self.movements[f.result]
                x, move = self.exchanges[m], self.moves[m]
                operands = [k for k, v in enumerate(s.op.operands) if v is f.result]
                found = parts(x, made.get(f.operands[0]), call, operands)
                numbers = [m, *range(len(self.exchanges), len(self.exchanges) + len(found) - 1)]
                if len(found) > 1 and x.padded:  # the whole stays: it says what is padding
                    numbers = [*range(len(self.exchanges), len(self.exchanges) + len(found))]
                    self.unsent.add(m)
                self.parts[f.result] = [(n, p.after, p.before) for n, p in zip(numbers, found, strict=True)]
                for n, p in zip(numbers, found, strict=True):
                    self.exchanges[n : n + 1] = [p.exchange]
                    self.moves[n : n + 1] = [replace(move, cut=p.exchange.cut)]
            s.parts = [1 + max(before for _, _, before in self.parts[f.result]) for f in s.fetch]

    def tables(self, op: Op, c: Shares, rows: Sequence[int]) -> list[tuple[int, ...]]:
        """The buffers of a call's offset tables, for each part of its rows."""
        whole: list[int] = []
        out = []
        plan: Layout = op.attrs.plan
        along = {o.tables[0] for o in c.nest.operands}
        for a, b in pairwise(rows):
            here = []
            for k, values in enumerate(c.tables):
                if a and k not in along:
                    here.append(whole[k])
                    continue
                entries = values[:, a:b] if k in along else values
                number = self.new(f"{op.result.name or 'v'}.rows{k}", U32, entries.shape[1], "table")
                index = np.full(self.mesh.parts(plan.axes), -1)
                index[c.positions] = c.table_rows[:, k]
                self.put(number, entries.astype(np.uint32), CoreInt.over(plan.axes, index, self.mesh), plan.held)
                here.append(number)
            whole = whole or here
            out.append(tuple(here))
        return out

    def overhead(self, shares: list[Shares]) -> int:
        """SRAM of code and of the messages' lists, on the core that has most."""
        for c in shares:
            if c.nest not in self.kernels:
                number = len(self.kernels)
                self.kernels[c.nest] = number
                self.names[number] = f"k{number}_{c.nest.kind}"
        code = sum(code_bytes(n) for n in self.kernels)
        messages = np.zeros(self.mesh.cores, np.int64)
        for x in (x for m, x in enumerate(self.exchanges) if m not in self.unsent):
            messages += np.bincount(x.messages().src, minlength=self.mesh.cores)
        return int(code + LIST_BYTES * messages.max(initial=0))

    # ---- epochs and addresses ---------------------------------------------------------------------------------------

    def schedule(self, outputs: tuple[Value, ...], overhead: int) -> tuple[list[int], int]:
        """Epochs of all steps and addresses of all buffers: (addresses, peak bytes)."""
        capacity = self.machine.sram_bytes - overhead
        fixed = sum(b.bytes for b in self.buffers if b.kind in ("constant", "table"))
        axes, loops = len(barrier_axes(self.mesh)), any(s.kind != "compute" for s in self.steps)
        weights = any(self.buffers[self.of[f.operands[0]]].kind == "constant" for s in self.steps for f in s.fetch)
        self.fetches = bool(self.streamed) or (weights and self.machine.threads > 3)
        inputs, results = ([self.of[v] for v in vs] for vs in (self.module.function().block.args, outputs))
        for share in (1.0, 0.95, 0.8, 0.65, 0.5):
            for meets in (False, True):
                self.signals = Signals.of(axes, meets, loops, self.fetches)
                pool = self.machine.semaphores - self.signals.arrival
                sync = memory.cut(self.steps, self.buffers, inputs, results, (capacity - fixed) * share, pool, meets)
                if sync is not None and (meets or len(sync) == 1):
                    break
            if sync is None:
                continue
            addresses, peak = pack(self.buffers)
            if peak <= capacity:
                self.sync = sync
                return addresses, peak
        if pool < 1:
            raise DoesNotFit(
                f"a core of {self.machine.name} has too few semaphores",
                rule="threads and barriers of a program that uses memory again, and every layer's movements, need some",
                amounts={"semaphores of a core": self.machine.semaphores,
                         "of these for barriers and threads": self.signals.arrival},
                remedy="use a target with more semaphores",
            )  # fmt: skip
        where, need, tensors = fullest(self.steps, self.buffers, inputs, results)
        raise DoesNotFit(
            f"the program does not fit {capacity:,} B of a core's SRAM", where=where, tensors=tensors,
            rule="constants, one layer's windows and the tensors that are alive across it must fit together",
            amounts={
                "SRAM of a core": self.machine.sram_bytes, "code and lists": overhead, "constants and tables": fixed,
                "data at the fullest layer": need,
            },
            remedy="use a larger --target, a smaller batch, or --precision bf16",
        )  # fmt: skip

    # ---- commands ---------------------------------------------------------------------------------------------------

    def call(self, op: Op, c: Shares, layer: int) -> Call:
        plan: Layout = op.attrs.plan
        every = self.mesh.parts(plan.axes)

        def table(values: np.ndarray) -> CoreInt:
            full = np.zeros(every, np.int64)
            full[c.positions] = values
            return CoreInt.over(plan.axes, full, self.mesh)

        return Call(
            self.kernels[c.nest], self.of[op.result], tuple(self.of[v] for v in op.operands),
            tuple(table(c.bases[:, i]) for i in range(c.bases.shape[1])), (),
            tuple(CoreInt.over(plan.axes, c.all_trips[:, i], self.mesh) for i in range(c.all_trips.shape[1])),
            tuple(table(c.scalars[:, i]) for i in range(c.scalars.shape[1])), plan.held, layer, op.origin,
        )  # fmt: skip


def _copy(source: Value, target: Value, like: Op) -> Op:
    """A compute that copies a tensor on every core, into one of the same layout."""
    t = target.type
    assert isinstance(t, TensorType) and t.layout is not None
    dims = tuple(Dim(f"d{i}", n) for i, n in enumerate(t.shape))
    nest = Structured(dims, "map", (tuple(Entry(((i, 1),)) for i in range(len(dims))),), (None,), 0)
    return Op("dist.compute", (source,), ComputeAttrs(nest, t.layout, t.dtype.name), (target,), (), like.origin)
