"""What a program must keep before anything of it runs: `check` looks at everything that can be seen without running.

References, sizes and types, addresses against SRAM, per-core tables against the mesh, movements, the arguments of
kernel calls, semaphores. What depends on the order of events (credits, uninitialised reads, deadlock) the engines trap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from d1c.errors import LoadError, UsageError
from d1c.target import arrivals, loops, numerics, record_check
from d1c.target.barrier import barrier_axes
from d1c.target.dtypes import DType, dtype
from d1c.target.machine import Machine
from d1c.target.mesh import CoreInt, LayoutError, Mesh
from d1c.target.movement import ComponentExchange, Cut, Exchange
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
    Fetch,
    Fill,
    Free,
    Loop,
    Port,
    Post,
    Program,
    Push,
    Role,
    Send,
    To,
    Wait,
    every,
    numbered,
    place_text,
)

MAX_CORES = 1 << 20
"""More than an ExaPOD has: a bound against absurd files."""
MAX_DEPTH = 8
"""How deep loops may nest."""
MAX_MESSAGES = 1 << 27
KINDS = ("owned", "window", "constant", "table")
REMEDY = "compile the model again with this version of d1c; if that does not help, report this text as a bug of d1c"


def check(program: Program, where: str = "program") -> None:
    """Raises LoadError for the first rule that `program` breaks: what, where, and what to do."""
    _Check(program, where).run()


def role_cores(role: Role, mesh: Mesh) -> np.ndarray:
    """Numbers of the role's cores, ascending."""
    inside = np.ones(mesh.cores, bool)
    for axis, lo, hi in role.cores:
        c = mesh.coords[:, mesh.index[axis]]
        inside &= (c >= lo) & (c < hi)
    return np.flatnonzero(inside)


class _Check:
    def __init__(self, program: Program, where: str) -> None:
        self.p, self.mesh, self.where = program, program.mesh, where
        self.at = ""
        self.checked: set[int] = set()  # components: a file may have one many times

    def bad(self, what: str, rule: str = "", **amounts: int) -> NoReturn:
        raise LoadError(
            f"{self.at}: {what}" if self.at else what, where=self.where, rule=rule, amounts=amounts, remedy=REMEDY
        )

    def run(self) -> None:
        self.machine()
        for i, b in enumerate(self.p.buffers):
            self.buffer(i, b)
        for n, x in enumerate(self.p.exchanges):
            self.at = f"exchange {n}"
            self.exchange(x)
        self.placements()
        for kind, ports in (("input", self.p.inputs), ("output", self.p.outputs)):
            names: set[str] = set()
            for port in ports:
                self.at = f"{kind} {port.name!r}"
                self.port(port, kind)
                if port.name in names:
                    self.bad("occurs twice")
                names.add(port.name)
            self.counts(kind, ports)
        self.roles()
        self.at = ""
        if broken := loops.broken(self.p):
            self.bad(*broken)
        if wrong := arrivals.broken(self.p):
            self.bad(*wrong)

    # ---- the machine and data ---------------------------------------------------------------------------------------

    def machine(self) -> None:
        self.at = "machine"
        m = self.p.machine
        for name in ("sram_bytes", "semaphores", "threads"):
            if type(m.get(name)) is not int or not 0 < m[name] < 2**48:
                self.bad(f"{name} is {m.get(name)!r}, expected a positive integer")
        self.sram, self.semaphores, self.threads = m["sram_bytes"], m["semaphores"], m["threads"]
        if len(set(self.mesh.names)) != len(self.mesh.names) or any(s < 1 for s in self.mesh.sizes):
            self.bad(f"mesh {self.mesh.axes}: factors must have different names and positive sizes")
        if self.mesh.cores > MAX_CORES:
            self.bad(f"mesh of {self.mesh.cores:,} cores, more than {MAX_CORES:,}")
        if "die_rows" in m:
            try:
                axes = Machine.from_dict(m).axes
            except (UsageError, TypeError, ValueError) as e:
                self.bad(f"no machine description: {getattr(e, 'message', e)}")
            if axes != self.mesh.axes:
                self.bad(f"its factors are {axes}, the program's mesh has {self.mesh.axes}")
        self.at = "info"
        version = self.p.info.get("numerics", numerics.VERSION)
        if version != numerics.VERSION:
            self.bad(
                f"numerics version {version!r}, this runtime computes version {numerics.VERSION}",
                rule="results keep their bits only under the version that the program was compiled for",
            )
        if wrong := record_check.broken(self.p):
            self.at = wrong[0]
            self.bad(wrong[1], rule="reports read numbers, names and shapes there")

    def dtype(self, name: str) -> DType:
        try:
            return dtype(name)
        except ValueError as e:
            self.bad(str(e))

    def buffer(self, number: int, b: Buffer) -> None:
        self.at = f"buffer {number} ({b.name})"
        width = self.dtype(b.dtype).bytes
        if b.kind not in KINDS:
            self.bad(f"kind {b.kind!r}; kinds are {', '.join(KINDS)}")
        if b.elements < 1:
            self.bad(f"{b.elements} elements")
        if b.address < 0 or b.address % width or b.address + b.bytes > self.sram:
            self.bad(
                "does not lie in SRAM on a multiple of its element size",
                rule="0 <= address, address + bytes <= sram_bytes",
                address=b.address, bytes=b.bytes, sram_bytes=self.sram,
            )  # fmt: skip

    def of(self, number: int, what: str) -> Buffer:
        if not 0 <= number < len(self.p.buffers):
            self.bad(f"{what} is buffer {number}, the program has {len(self.p.buffers)}")
        return self.p.buffers[number]

    def axes(self, names: Iterable[str], what: str) -> None:
        names = list(names)
        for a in names:
            if a not in self.mesh.index:
                self.bad(f"{what} names factor {a!r}, the mesh has {' '.join(self.mesh.names)}")
        if len(set(names)) != len(names):
            self.bad(f"{what} names a factor twice: {' '.join(names)}")

    def core_int(self, value: CoreInt, what: str, low: int | None = 0, high: int | None = None) -> None:
        self.axes(value.axes, what)
        parts = self.mesh.parts(value.axes)
        if len(value.values) != parts:
            self.bad(f"{what} has {len(value.values)} values for {parts} positions along its factors")
        for v in (min(value.values), max(value.values)):
            if (low is not None and v < low) or (high is not None and v > high):
                self.bad(f"{what} is {v}, expected {low} to {'any' if high is None else high}")

    def placements(self) -> None:
        for i, p in enumerate(self.p.placements):
            self.at = f"placement {i} ({p.array})"
            self.rows(self.of(p.buffer, "its target"), p.array, p.index)
            self.axes(p.held, "held")

    def rows(self, b: Buffer, name: str, index: CoreInt) -> None:
        """Rows of weight tensor `name` go to buffer `b`."""
        array = self.p.weights.get(name)
        if array is None:
            self.bad("there is no weight tensor of that name")
        if array.ndim != 2 or array.dtype != self.dtype(b.dtype).numpy:
            self.bad(f"weights are {array.dtype} of rank {array.ndim}, buffer {b.name} needs rows of {b.dtype}")
        if array.shape[1] > b.elements:
            self.bad(f"does not fit buffer {b.name}", row_elements=array.shape[1], buffer_elements=b.elements)
        self.core_int(index, "index", -1, array.shape[0] - 1)

    def port(self, port: Port, kind: str) -> None:
        b = self.of(port.buffer, "its buffer")
        if any(n < 0 for n in port.shape):
            self.bad(f"shape {port.shape}")
        if self.dtype(port.dtype) != self.dtype(b.dtype):
            self.bad(f"is {port.dtype}, its buffer {b.name} {b.dtype}")
        try:
            port.layout.check(port.shape, self.mesh)
        except LayoutError as e:
            self.bad(str(e))
        if any(g.block < 1 for g in port.layout.groups if g.axes):
            self.bad(f"layout {port.layout} has a block below 1")
        size = math.prod(port.layout.local_shape(port.shape))
        if size > b.elements:
            self.bad(f"a core's share does not fit buffer {b.name}", share_elements=size, buffer_elements=b.elements)

    def counts(self, kind: str, ports: tuple[Port, ...]) -> None:
        """Extents that are known at run time only: outputs have them, and other outputs, of one i64, hold them."""
        named = {p.name: p for p in ports}
        hidden = {name for p in ports for _, name in p.counts}
        for port in ports:
            self.at = f"{kind} {port.name!r}"
            dims = [dim for dim, _ in port.counts]
            if port.counts and (kind == "input" or port.name in hidden):
                self.bad("has extents of run time", "outputs have them that hold none themselves")
            if len(set(dims)) < len(dims) or any(not 0 <= dim < len(port.shape) for dim in dims):
                self.bad(f"counts dims {dims} of shape {list(port.shape)}")
            for _, name in port.counts:
                count = named.get(name)
                if count is None or count.dtype != "i64" or math.prod(count.shape) != 1:
                    self.bad(f"its extent is to be in {name!r}", "which must be an output of one i64")

    # ---- movements --------------------------------------------------------------------------------------------------

    def exchange(self, x: Exchange) -> None:
        if x.mesh != self.mesh:
            self.bad("is laid over another mesh")
        for what, names in (("source_held", x.source_held), ("target_held", x.target_held), ("plan_axes", x.plan_axes)):
            self.axes(names, what)
        if set(x.target_held) & set(x.plan_axes):
            self.bad("a factor both cuts the plan and is held at 0")
        name = self.at
        for k, c in enumerate(x.components):
            self.at = f"{name} component {k}"
            if id(c) not in self.checked:
                self.component(c)
                self.checked.add(id(c))
        self.at = name
        sources = [a for c in x.components for a in c.source_axes]
        self.axes([*sources, *x.source_held], "the source")
        if not set(x.keyed) <= set(x.plan_axes):
            self.bad(f"windows depend on {' '.join(x.keyed)}, the plan has only {' '.join(x.plan_axes)}")
        if x.cut is not None:
            self.cut(x, x.cut)
        if not x.covers():
            self.bad("pieces do not deliver every needed element exactly once")
        classes = self.mesh.core_offset(x.keyed, np.arange(self.mesh.parts(x.keyed)))
        count = np.ones(len(classes))
        for c in x.components:
            count *= np.diff(c.first)[self.mesh.position(c.target_axes, classes)]
        if count.sum() > MAX_MESSAGES:
            self.bad(f"{count.sum():.3g} messages, more than {MAX_MESSAGES:,}")

    def cut(self, x: Exchange, cut: Cut) -> None:
        """A part brings nothing from or to elsewhere: what has come is known from what its parts are."""
        for k, (lo, hi), name in zip(x.rows, (cut.owned, cut.window), ("owned", "window"), strict=True):
            p = x.components[k].pieces if k < len(x.components) else None
            if not 0 <= lo < hi:
                self.bad(f"{name} part {lo} to {hi}")
            if p is None or not len(p):
                continue
            first, step = (p.soff, p.sstep) if name == "owned" else (p.doff, p.dstep)
            last = first + (p.count - 1) * step
            if np.minimum(first, last).min() < lo or (np.maximum(first, last) + p.length).max() > hi:
                self.bad(f"a piece leaves the {name} part {lo} to {hi}")

    def component(self, c: ComponentExchange) -> None:
        self.axes(c.target_axes, "target_axes")
        self.axes(c.source_axes, "source_axes")
        p, targets = c.pieces, self.mesh.parts(c.target_axes)
        if not len(c.real) == len(c.length) == targets:
            self.bad(f"real and length have {len(c.real)} and {len(c.length)} entries for {targets} target positions")
        if np.any(c.real < 0) or np.any(c.real > c.length) or np.any(c.length > c.window):
            self.bad(f"needs must satisfy 0 <= real <= length <= window {c.window}")
        fields = (p.t, p.s, p.soff, p.doff, p.length, p.count, p.sstep, p.dstep)
        if any(f.ndim != 1 or len(f) != len(p) for f in fields):
            self.bad("arrays of pieces differ in length")
        if not len(p):
            return
        if np.any(np.diff(p.t) < 0):
            self.bad("pieces are not sorted by target position")
        inside = _range(p.t, targets) & _range(p.s, self.mesh.parts(c.source_axes)) & (p.length >= 1) & (p.count >= 1)
        inside &= p.length * p.count <= c.window  # before anything is expanded
        for off, step, extent in ((p.soff, p.sstep, c.owned), (p.doff, p.dstep, c.window)):
            last = off + (p.count - 1) * step
            inside &= (np.minimum(off, last) >= 0) & (np.maximum(off, last) + p.length <= extent)
        if not inside.all():
            self.bad(f"piece {int(np.argmin(inside))} leaves its window of {c.window} or owned extent of {c.owned}")

    # ---- roles and commands -----------------------------------------------------------------------------------------

    def roles(self) -> None:
        self.at = ""
        taken = np.full(self.mesh.cores, -1)
        barriers = set()
        for number, r in enumerate(self.p.roles):
            self.at = f"role {r.name!r}"
            self.axes([a for a, _, _ in r.cores], "its range of cores")
            for a, lo, hi in r.cores:
                if not 0 <= lo < hi <= self.mesh.sizes[self.mesh.index[a]]:
                    self.bad(f"cores {lo} to {hi} of factor {a}, which has {self.mesh.sizes[self.mesh.index[a]]}")
            cores = role_cores(r, self.mesh)
            if np.any(taken[cores] >= 0):
                self.bad(f"shares cores with role {self.p.roles[int(taken[cores].max())].name!r}")
            taken[cores] = number
            if len(r.threads) > self.threads:
                self.bad(f"{len(r.threads)} threads", threads=self.threads)
            meeting = [t for t in r.threads if any(isinstance(c, Barrier) for c in every(t))]
            if len(meeting) > 1:
                self.bad("more than one of its threads meets at barriers", rule="one thread of a core speaks for it")
            where = loops.places(meeting[0] if meeting else ())
            barriers.add(tuple(at for at, _, c in where if isinstance(c, Barrier)))
            for t, thread in enumerate(r.threads):
                for path, c in numbered(thread):
                    name = ", ".join(filter(None, (type(c).__name__, c.origin)))
                    self.at = f"role {r.name!r} thread {t} command {place_text(path)} ({name})"
                    if isinstance(c, Loop) and len(path) > MAX_DEPTH:
                        self.bad(f"loops nest deeper than {MAX_DEPTH}")
                    self.command(c)
        self.at = "roles"
        if len(barriers) > 1 or (any(barriers) and np.any(taken < 0)):
            self.bad("not all cores meet at equally many barriers", rule="all cores of the mesh meet at a barrier")

    def semaphore(self, *numbers: int) -> None:
        for n in numbers:
            if not 0 <= n < self.semaphores:
                self.bad(f"semaphore {n}, a core has {self.semaphores}")

    def movement(self, number: int) -> Exchange:
        if not 0 <= number < len(self.p.exchanges):
            self.bad(f"exchange {number}, the program has {len(self.p.exchanges)}")
        return self.p.exchanges[number]

    def to(self, to: tuple[To, ...]) -> None:
        self.axes([t.axis for t in to], "its destination")
        for t in to:
            if t.mode not in ("+", "=", "*"):
                self.bad(f"destination mode {t.mode!r}; modes are + = *")

    def command(self, c: Command) -> None:
        if not -1 <= c.layer < len(self.p.layers):
            self.bad(f"layer {c.layer}, the program has {len(self.p.layers)}")
        match c:
            case Call():
                self.call(c)
            case Push():
                source, target = self.of(c.source, "source"), self.of(c.target, "target")
                self.window(self.movement(c.exchange), target)
                if c.by_columns and self.p.machine.get("routing") == "rows":
                    self.bad("goes along columns first, the machine's routing is rows")
                if not 0 <= c.spread < 1 << 31:
                    self.bad(f"begins over {c.spread} cycles, not 0 to 2^31 - 1")
                owned = math.prod(k.owned for k in self.movement(c.exchange).components)
                if owned > source.elements:
                    self.bad(f"reads more than buffer {source.name} has", owned=owned, buffer_elements=source.elements)
                if source.dtype != target.dtype:
                    self.bad(f"moves {source.dtype} of {source.name} to {target.dtype} of {target.name}")
                self.semaphore(c.semaphore)
            case Arrive():
                self.movement(c.exchange)
                self.semaphore(c.semaphore)
            case Send():
                source, target = self.of(c.source, "source"), self.of(c.target, "target")
                if source.dtype != target.dtype:
                    self.bad(f"moves {source.dtype} of {source.name} to {target.dtype} of {target.name}")
                self.core_int(c.source_offset, "source_offset", 0, source.elements)
                self.core_int(c.target_offset, "target_offset", 0, target.elements)
                self.core_int(c.elements, "elements", 0, min(source.elements, target.elements))
                n = c.elements.of(self.mesh)
                for b, offset in ((source, c.source_offset), (target, c.target_offset)):
                    if np.any(offset.of(self.mesh) + n > b.elements):
                        self.bad(f"reaches behind the {b.elements} elements of buffer {b.name}")
                self.to(c.to)
                self.semaphore(c.semaphore)
            case Fetch():
                target = self.of(c.target, "its target")
                self.rows(target, c.array, c.index)
                if target.kind not in ("owned", "window"):
                    self.bad(f"writes {target.kind} {target.name}")
                if not self.p.machine.get("dip_count", 1):
                    self.bad("the machine has no interface processor")
                self.semaphore(c.semaphore)
            case Wait():
                self.core_int(c.count, "count", 0, 2**32 - 1)
                self.semaphore(c.semaphore)
            case Post():
                self.to(c.to)
                self.semaphore(c.semaphore)
            case Free():
                for number in c.buffers:
                    if self.of(number, "one to be freed").kind not in ("owned", "window"):
                        self.bad(f"frees {self.p.buffers[number].kind} {self.p.buffers[number].name}")
            case Fill():
                target = self.of(c.buffer, "its target")
                if c.exchange != -1:
                    self.window(self.movement(c.exchange), target)
            case Barrier():
                axes = barrier_axes(self.mesh)
                self.semaphore(*c.up, c.release)
                if len(c.up) != len(axes) or len({*c.up, c.release}) != len(axes) + 1:
                    self.bad(f"needs {len(axes)} semaphores for the mesh's axes and one more, all different")
            case Loop():
                if not 0 <= c.trips < 2**63:
                    self.bad(f"{c.trips} trips")
                if c.condition != -1 and self.dtype(self.of(c.condition, "its condition").dtype).name != "bool":
                    b = self.p.buffers[c.condition]
                    self.bad(f"its condition {b.name} is {b.dtype}", rule="a loop's condition is a buffer of bool")

    def window(self, x: Exchange, target: Buffer) -> None:
        if x.window_elements > target.elements:
            self.bad(f"does not fit buffer {target.name}", window=x.window_elements, buffer_elements=target.elements)

    def call(self, c: Call) -> None:
        if not 0 <= c.kernel < len(self.p.kernels):
            self.bad(f"kernel {c.kernel}, the program has {len(self.p.kernels)}")
        name, nest = self.p.kernels[c.kernel]
        counts = (
            ("operands", len(c.operands), len(nest.operands)), ("bases", len(c.bases), len(nest.operands)),
            ("tables", len(c.tables), nest.tables), ("trips", len(c.trips), len(nest.loops)),
            ("scalars", len(c.scalars), nest.scalars),
        )  # fmt: skip
        for what, given, wanted in counts:
            if given != wanted:
                self.bad(f"{given} {what}, kernel {name} takes {wanted}")
        for k, (number, operand) in enumerate(zip((c.out, *c.operands), (nest.out, *nest.operands), strict=True)):
            what = f"operand {k - 1}" if k else "out"
            b = self.of(number, what)
            if self.dtype(b.dtype).bytes != dtype(operand.dtype).bytes:
                self.bad(f"{what} is buffer {b.name} of {b.dtype}, kernel {name} takes {operand.dtype}")
            if k:
                self.core_int(c.bases[k - 1], f"base of {what}", 0, b.elements - 1)
            elif not 0 <= c.out_base < b.elements:
                self.bad(f"base of {what} is {c.out_base}, buffer {b.name} has {b.elements} elements")
        if self.of(c.out, "out").kind not in ("owned", "window"):
            self.bad(f"writes {self.p.buffers[c.out].kind} {self.p.buffers[c.out].name}")
        for number in c.tables:
            if self.dtype(self.of(number, "a table").dtype).name != "u32":
                self.bad(f"table {self.p.buffers[number].name} is {self.p.buffers[number].dtype}, not u32")
        for loop, trip in zip(nest.loops, c.trips, strict=True):
            self.core_int(trip, f"trips of loop {loop.name}", 0, loop.extent)
        for k, scalar in enumerate(c.scalars):
            self.core_int(scalar, f"scalar {k}", None)
        self.axes(c.held, "held")


def _range(values: np.ndarray, end: int) -> np.ndarray:
    return (values >= 0) & (values < end)
