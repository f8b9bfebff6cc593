"""The native loop of the fast engine: phases of work units on a few threads; copies of strided boxes, kernel calls.

A unit is ten int64: the address of its function, then that function's words (`COPY`, `CALLS`). Units of a phase may run
in any order and at the same time; a phase starts when the one before is done on all threads.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d1rt.jit_ir import Function, Module, Value, vec
from d1rt.jit_object import Library, ObjectCache, compile_made, default_folder, generator, host
from d1rt.jit_state import ARCHITECTURE, FLUSHING, read_state, relax, write_state

UNIT = 10
"""int64 words of a unit."""
COPY = ("function", "records", "count", "repeat", "source_step", "target_step", "source", "target", "bytes")
"""Words of a copy: `count` records of two byte offsets (from `source` and from `target`); each moves `repeat` runs of
`bytes`, the steps (bytes) apart."""
CALLS = ("function", "kernel", "arguments", "count", "stride")
"""Words of kernel calls: `count` argument arrays, `stride` bytes apart."""
LINE = 64
WORDS = (1, 2, 4, 8, 16, 32, 64)


def _name(w: int, many: bool, wide: bool) -> str:
    return f"d1_copy_{w}_{'many' if many else 'one'}_{64 if wide else 32}"


_COPIES = [(w, many, wide) for wide in (False, True) for w in WORDS for many in (False, True)]
_NAMES = ["d1_calls", "d1_run", *(_name(*c) for c in _COPIES)]


class Native:
    """The compiled loop. `copy(bytes, wide)`: the address of the copy function for runs of that many bytes, with
    offsets of 64 (wide) or 32 bits; `calls`: that of the one for kernel calls."""

    def __init__(self) -> None:
        told = f"native loop {generator()} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
        ((_, data),) = compile_made([(told, native_text)], host(), ObjectCache(default_folder()))
        self._library = Library({"table": ("d1_table", data)})  # holds the code
        table = np.zeros(len(_NAMES), np.int64)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._library.address("table"))(table.ctypes.data)
        self._address = dict(zip(_NAMES, table.tolist(), strict=True))
        self.calls = self._address["d1_calls"]
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._address["d1_run"])

    def copy(self, size: int, wide: bool) -> int:
        w = max(w for w in WORDS if w <= size)
        return self._address[_name(w, size != w, wide)]


def native_text(architecture: str = ARCHITECTURE) -> str:
    """The LLVM module of the loop and of all copies."""
    module = Module()
    _calls(module, _NAMES[0])
    for c in _COPIES:
        _copy(module, _name(*c), *c)
    _run(module, _NAMES[1], architecture)
    _table(module, _NAMES)
    return str(module)


def _table(module: Module, names: Sequence[str]) -> None:
    """void d1_table(ptr out): the addresses of the other functions; a library exports one name an object."""
    fn = Function(module, "d1_table", ["ptr"])
    for i, n in enumerate(names):
        fn.store(Value(fn, "ptr", f"@{n}"), fn.args[0] + 8 * i)
    fn.raw("ret void")


def _words(fn: Function, count: int, pointers: Sequence[int]) -> list[Value]:
    return [fn.load("ptr" if i in pointers else "i64", fn.args[0] + 8 * i) for i in range(1, count)]


def _copy(module: Module, name: str, w: int, many: bool, wide: bool) -> None:
    """Runs of `w` bytes, or (many) of w to 2w bytes by two moves that overlap; above 128 with moves in between."""
    fn = Function(module, name, ["ptr", "ptr"])
    records, count, repeat, sstep, tstep, source, target, size = _words(fn, len(COPY), (1, 6, 7))
    t = f"i{8 * w}" if w <= 8 else vec(w, "i8")
    index = "i64" if wide else "i32"
    step = 16 if wide else 8
    last = size - w

    def record(i: Value) -> None:
        r = records + i * step
        offsets = [fn.load(index, r + k * (step // 2)) for k in (0, 1)]
        s, d = (b + (o if wide else o.cast("zext", "i64")) for b, o in zip((source, target), offsets, strict=True))

        def run(_: Value, s: Value, d: Value) -> Sequence[Value]:
            if many and w == WORDS[-1]:

                def part(at: Value) -> None:
                    fn.store(fn.load(t, s + at), d + at)

                fn.loop(0, last, w, [], part)
                fn.store(fn.load(t, s + last), d + last)
            elif many:
                head, tail = fn.load(t, s), fn.load(t, s + last)
                fn.store(head, d)
                fn.store(tail, d + last)
            else:
                fn.store(fn.load(t, s), d)
            return [s + sstep, d + tstep]

        fn.loop(0, repeat, 1, [s, d], run)

    fn.loop(0, count, 1, [], record)
    fn.raw("ret void")


def _calls(module: Module, name: str) -> None:
    fn = Function(module, name, ["ptr", "ptr"])
    kernel, arguments, count, stride = _words(fn, len(CALLS), (1, 2))

    def call(_: Value, at: Value) -> Sequence[Value]:
        fn.raw(f"call void {kernel.name}({at}, {fn.args[1]})")
        return [at + stride]

    fn.loop(0, count, 1, [arguments], call)
    fn.raw("ret void")


def _run(module: Module, name: str, architecture: str) -> None:
    """void run(ptr job, i64 thread); job: see `Job`. Every thread of the job calls it once."""
    fn = Function(module, name, ["ptr", "i64"])
    job, me = fn.args
    units, starts, phases, threads, counters, scratches, stride = (
        fn.load(t, job + 8 * i) for i, t in enumerate(("ptr", "ptr", "i64", "i64", "ptr", "ptr", "i64"))
    )
    scratch = scratches + me * stride
    saved = read_state(fn, architecture)
    write_state(fn, fn.const("i64", FLUSHING[architecture]), architecture)
    row = (threads + fn.const("i64", 1)) * LINE

    def phase(p: Value) -> None:
        lines = counters + p * row

        def part(k: Value) -> None:
            mine = (me + k).binary("urem", threads)
            at = starts + (p * threads + mine) * 8
            lo, hi, counter = fn.load("i64", at), fn.load("i64", at + 8), lines + mine * LINE

            def grab() -> tuple[Value, Sequence[Value]]:
                i = lo + fn.op("i64", f"atomicrmw add {counter}, i64 1 monotonic")
                some = i.compare("slt", hi)

                def work() -> None:
                    unit = units + i * (8 * UNIT)
                    fn.raw(f"call void {fn.load('ptr', unit).name}({unit}, {scratch})")

                fn.if_(some, work)
                return some, []

            fn.while_(fn.const("i1", 1), [], grab)

        fn.loop(0, threads, 1, [], part)
        done = lines + threads * LINE
        fn.op("i64", f"atomicrmw add {done}, i64 1 acq_rel")

        def spin(n: Value) -> tuple[Value, Sequence[Value]]:
            seen = fn.op("i64", f"load atomic i64, {done} acquire, align 8")
            waiting = seen.compare("slt", threads)
            relax(fn, architecture)

            def rest() -> None:  # the other thread may have lost its processor
                fn.call("i32", "sched_yield")

            fn.if_((n & 255).compare("eq", 255), rest)
            return waiting, [n + fn.const("i64", 1)]

        fn.while_(fn.const("i1", 1), [fn.const("i64", 0)], spin)

    fn.loop(0, phases, 1, [], phase)
    write_state(fn, saved, architecture)
    fn.raw("ret void")


class Job:
    """Units in phases, ready to run on `threads` threads, part by part. `units` [n, UNIT] int64; `starts` [phases *
    threads + 1]: where each thread's share of each phase begins; a thread that is done with its own takes from the
    others. `parts`: ranges of phases, and whether the first thread alone runs them (default: one of all, by all)."""

    def __init__(
        self, native: Native, units: np.ndarray, starts: np.ndarray, threads: int, scratch_bytes: int,
        parts: Sequence[tuple[int, int, bool]] | None = None,
    ) -> None:  # fmt: skip
        self.native, self.threads = native, threads
        self._units, self._starts = np.ascontiguousarray(units, np.int64), np.ascontiguousarray(starts, np.int64)
        phases = (len(starts) - 1) // threads
        self._counters = _aligned(phases * (threads + 1) * LINE)
        stride = -(-scratch_bytes // 4096) * 4096 + 2 * LINE
        self._scratch = _aligned(threads * stride)
        self._alone = np.ascontiguousarray(self._starts[::threads])
        self._stride = stride
        self._parts = [self._part(lo, hi, alone) for lo, hi, alone in parts or [(0, phases, False)]]

    def _part(self, lo: int, hi: int, alone: bool) -> tuple[np.ndarray, np.ndarray]:
        """The job of phases `lo` to `hi`, and their counters."""
        threads, starts = (1, self._alone) if alone else (self.threads, self._starts)
        row = (threads + 1) * LINE
        counters = self._counters[lo * row : hi * row]
        first = starts.ctypes.data + lo * threads * starts.itemsize
        addresses = [self._units.ctypes.data, first, hi - lo, threads, self._counters.ctypes.data + lo * row]
        return np.array([*addresses, self._scratch.ctypes.data, self._stride], np.int64), counters

    def reset(self, part: int = 0) -> int:
        """To be called before a part runs, again or for the first time; how many threads must run it: 0, 1 or all."""
        job, counters = self._parts[part]
        counters[:] = 0
        return int(job[3]) if job[2] else 0

    def abandon(self, part: int = 0) -> None:
        """Let the threads that run a part find neither work nor anybody to wait for."""
        self._parts[part][1][:] = 0x3F

    def run(self, thread: int, part: int = 0) -> None:
        """One thread's share of a part; returns when all of the part is done. Releases the interpreter lock."""
        self.native.run(self._parts[part][0].ctypes.data, thread)


def _aligned(size: int) -> np.ndarray:
    raw = np.zeros(size + LINE, np.uint8)
    at = -raw.ctypes.data % LINE
    return raw[at : at + size]
