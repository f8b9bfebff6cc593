"""Rules that a program written by hand keeps before it runs; every fault names the line.

d1c.target.program_check has the rules of every program, and is asked last. Here are those whose faults deserve a line,
and two more that make faults visible before a run:

- buffers that overlap in SRAM are an error, unless a tile.free somewhere names one of the two;
- a semaphore that counts arrivals (push, send, fetch) belongs to one target buffer (in programs with barriers: between
  two of them), and nobody posts to it.

What only a run can tell (a push into bytes that are not free, a read of bytes that nothing has written, a deadlock) the
engines find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from d1c.errors import DoesNotFit, LoadError, VerifyError
from d1c.target import program_check
from d1c.target.encoding import code_bytes
from d1c.target.kernel import Nest, Operand
from d1c.target.mesh import CoreInt
from d1c.target.program import Barrier, Call, Command, Fetch, Free, Post, Program, Push, Send, To, every


def check(program: Program, lines: Mapping[str, str]) -> None:
    """Raise VerifyError or DoesNotFit for the first rule that `program` breaks. `lines`: `file:line` of what is
    declared, by `buffer 'NAME'`, `role 'NAME'`, `input 'NAME'`, `output 'NAME'`; commands carry theirs as origin."""
    _Check(program, lines).run()


@dataclass
class _Check:
    p: Program
    lines: Mapping[str, str]
    arrivals: dict[int, tuple[int, str]] = field(default_factory=dict)
    posts: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        self.memory()
        commands = [(r, c) for r in self.p.roles for t in r.threads for c in every(t)]
        self.staged = any(isinstance(c, Barrier) for _, c in commands)
        for role, c in commands:
            for axis, _, _ in role.cores:
                self.factors((axis,), f"role {role.name}")
            self.command(c, program_check.role_cores(role, self.p.mesh))
        for number, where in self.posts.items():
            if number in self.arrivals:
                target, line = self.arrivals[number]
                raise self.fail(
                    where, f"posts to semaphore {number}, which counts arrivals in {self.name(target)} at {line}",
                    "an arrival semaphore counts arrivals only", "post to another semaphore",
                )  # fmt: skip
        try:
            program_check.check(self.p)
        except LoadError as error:
            said = error.message
            where = next((c.origin for _, c in commands if c.origin and f", {c.origin})" in said), "")
            where = where or next((line for what, line in self.lines.items() if said.startswith(what)), "")
            raise VerifyError(error.message, rule=error.rule, where=where, amounts=error.amounts) from error

    def fail(self, where: str, message: str, rule: str = "", remedy: str = "") -> VerifyError:
        return VerifyError(message, rule=rule, where=where, remedy=remedy)

    def name(self, buffer: int) -> str:
        return f"%{self.p.buffers[buffer].name}"

    def number(self, value: CoreInt, where: str) -> np.ndarray:
        """[cores] the value on every core."""
        self.factors(value.axes, where)
        if len(value.values) != (parts := self.p.mesh.parts(value.axes)):
            message = f"a per-core integer has {len(value.values)} values for {parts} positions along its factors"
            raise self.fail(where, message, f'it is #int"{value}"', "give one value for every position")
        return value.of(self.p.mesh)

    def factors(self, axes: tuple[str, ...], where: str) -> None:
        for a in axes:
            if a not in self.p.mesh.index:
                raise self.fail(where, f"the mesh has no factor {a}", f"its factors are {' '.join(self.p.mesh.names)}")

    def semaphore(self, number: int, where: str) -> None:
        count = int(self.p.machine["semaphores"])
        if number >= count:
            raise self.fail(where, f"there is no semaphore {number}", f"a core has {count}, from 0 to {count - 1}")

    def arrival(self, semaphore: int, target: int, where: str) -> None:
        other, line = self.arrivals.setdefault(semaphore, (target, where))
        if other != target and not self.staged:
            raise self.fail(
                where,
                f"semaphore {semaphore} is shared: it counts arrivals in {self.name(target)}, "
                f"and in {self.name(other)} at {line}",
                "one arrival semaphore per slot: a count cannot tell which sender's message has come",
                "give every target buffer a semaphore of its own",
            )

    def reach(self, to: tuple[To, ...], where: str) -> None:
        self.factors(tuple(t.axis for t in to), where)
        for t in to:
            size = self.p.mesh.sizes[self.p.mesh.index[t.axis]]
            if t.mode == "=" and t.value >= size:
                raise self.fail(where, f"{t.axis}={t.value} is outside the mesh", f"factor {t.axis} has size {size}")

    def inside(self, buffer: int, lo: int, hi: int, where: str, what: str) -> None:
        """Elements lo..hi-1 of a buffer."""
        elements = self.p.buffers[buffer].elements
        if lo < 0 or hi > elements:
            message = f"{what} elements {lo} to {hi - 1} of {self.name(buffer)}, which has {elements}"
            raise self.fail(where, message, "accesses stay inside their buffer")

    def memory(self) -> None:
        """Every buffer lies in SRAM beside the code, and no two share bytes without a tile.free."""
        sram, code = int(self.p.machine["sram_bytes"]), sum(code_bytes(n) for _, n in self.p.kernels)
        for b in self.p.buffers:
            if (over := b.address + b.bytes + code - sram) > 0:
                raise DoesNotFit(
                    f"buffer %{b.name} reaches {over:,} B beyond a core's SRAM",
                    rule="address + bytes of every buffer, and the kernels' code, fit a core's SRAM",
                    where=self.lines.get(f"buffer {b.name!r}", ""),
                    amounts={"address": b.address, "bytes": b.bytes, "code_bytes": code, "sram_bytes": sram},
                    remedy="lower the address, make the buffer smaller, or reuse bytes that a tile.free frees",
                )
        freed = {b for r in self.p.roles for t in r.threads for c in every(t) if isinstance(c, Free) for b in c.buffers}
        order = sorted(range(len(self.p.buffers)), key=lambda i: self.p.buffers[i].address)
        for k, i in enumerate(order):
            a = self.p.buffers[i]
            for j in order[k + 1 :]:
                b = self.p.buffers[j]
                if b.address >= a.address + a.bytes:
                    break
                if i not in freed and j not in freed:
                    raise DoesNotFit(
                        f"buffers %{a.name} and %{b.name} overlap",
                        rule="two buffers share bytes only where a tile.free names one of them",
                        where=self.lines.get(f"buffer {b.name!r}", ""),
                        amounts={
                            "first_address": a.address, "first_bytes": a.bytes, "second_address": b.address,
                            "shared_bytes": min(a.address + a.bytes, b.address + b.bytes) - b.address,
                        },
                        remedy=f"put %{b.name} at {a.address + a.bytes} or behind",
                    )  # fmt: skip

    def command(self, c: Command, cores: np.ndarray) -> None:
        """What the row of the op cannot see: machine, mesh, kernels."""
        where = c.origin
        for name in ("semaphore", "release"):
            if hasattr(c, name):
                self.semaphore(getattr(c, name), where)
        match c:
            case Call():
                self.call(c, cores)
            case Push():
                self.arrival(c.semaphore, c.target, where)
            case Send():
                self.arrival(c.semaphore, c.target, where)
                self.reach(c.to, where)
                n = self.number(c.elements, where)[cores]
                for buffer, at, what in ((c.source, c.source_offset, "reads"), (c.target, c.target_offset, "writes")):
                    lo = self.number(at, where)[cores]
                    self.inside(buffer, int(lo.min()), int((lo + n).max()), where, what)
            case Fetch():
                self.arrival(c.semaphore, c.target, where)
                self.number(c.index, where)
            case Post():
                self.reach(c.to, where)
                self.posts.setdefault(c.semaphore, where)
            case _:
                pass

    def call(self, c: Call, cores: np.ndarray) -> None:
        where = c.origin
        name, nest = self.p.kernels[c.kernel]
        self.factors(c.held, where)
        for what, given, wanted in (
            ("operands", len(c.operands), len(nest.operands)), ("tables", len(c.tables), nest.tables),
            ("trip counts", len(c.trips), len(nest.loops)), ("scalars", len(c.scalars), nest.scalars),
        ):  # fmt: skip
            if given != wanted:
                raise self.fail(where, f"the call passes {given} {what}", f"kernel @{name} takes {wanted}")
        names = ["the result", *(f"operand {i}" for i in range(len(c.operands)))]
        accesses = list(zip(names, (c.out, *c.operands), (nest.out, *nest.operands), strict=True))
        for what, buffer, operand in accesses:
            found = self.p.buffers[buffer].dtype
            if found != operand.dtype:
                message = f"{what} {self.name(buffer)} holds {found}, kernel @{name} takes {operand.dtype} there"
                rule = "buffers have the element types of the kernel's operands"
                raise self.fail(where, message, rule, "change the buffer's type or the kernel's")
        for axis in c.held:
            cores = cores[self.p.mesh.coords[cores, self.p.mesh.index[axis]] == 0]
        trips = np.array([self.number(t, where)[cores] for t in c.trips]).reshape(len(nest.loops), len(cores))
        for loop, n in zip(nest.loops, trips, strict=True):
            if n.max(initial=0) > loop.extent:
                rule = f"kernel @{name} has at most {loop.extent}"
                raise self.fail(where, f"loop {loop.name} makes {n.max()} trips", rule)
        runs = (trips > 0).all(axis=0)
        bases = [np.zeros(len(cores), np.int64), *(self.number(b, where)[cores] for b in c.bases)]
        for (what, buffer, operand), base in zip(accesses, bases, strict=True):
            if runs.any() and not _indirect(operand, nest, what):
                lo, hi = _extent(operand, trips[:, runs], base[runs])
                self.inside(buffer, lo, hi, where, f"{what} of kernel @{name} takes")


def _indirect(operand: Operand, nest: Nest, what: str) -> bool:
    """Whether data decides the address: a table's entries, the rows of a lookup."""
    return any(t is not None for t in operand.tables) or (nest.kind == "lookup" and what == "operand 1")


def _extent(operand: Operand, trips: np.ndarray, base: np.ndarray) -> tuple[int, int]:
    """First element and last + 1, over all cores."""
    span = np.array(operand.strides, np.int64)[:, None] * (trips - 1)
    lo, hi = base + np.minimum(span, 0).sum(axis=0), base + np.maximum(span, 0).sum(axis=0) + 1
    return int(lo.min()), int(hi.max())
