"""Nests to native functions `void k(ptr args, ptr scratch)`: the fast engine's kernels.

`args` is an int64 array: the addresses of the output, the operands and the tables, then the trip counts of the loops,
then the scalars (the order of d1c.target.kernel). `scratch` is a buffer of the calling thread, which must
flush subnormal numbers: `Kernels.enter` and `Kernels.leave` see to it. d1c.target.numerics.run_nest has the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from d1c.errors import UsageError
from d1c.target.kernel import Nest
from d1rt.jit_ir import Function, Module, vec
from d1rt.jit_joint import joint_scratch, joint_text
from d1rt.jit_joint_shape import Joint, alone
from d1rt.jit_loops import Frame, levels, unrolled
from d1rt.jit_mac import Blocking, blocking, emit_mac, scratch_layout
from d1rt.jit_map import emit_lookup, emit_map, emit_scatter
from d1rt.jit_object import Host, Library, ObjectCache, compile_all, compile_made, default_folder, generator, host
from d1rt.jit_reduce import WIDE, emit_reduce
from d1rt.jit_state import ARCHITECTURE, FLUSHING, PLAIN, read_state, state_text, write_state
from d1rt.jit_vector import LANES


class Kernels:
    """Compiled nests. The code lives as long as this object.

    scratch_bytes   what the scratch buffer of a thread must hold (64-byte aligned), for any of the kernels
    hits, misses    kernels that came from the object cache, and that were compiled
    dot             whether the host's bf16 dot product is used
    """

    def __init__(self, library: Library, symbols: Mapping[str, str], scratch_bytes: int, dot: bool) -> None:
        self._library, self._symbols = library, dict(symbols)
        self.scratch_bytes, self.dot = scratch_bytes, dot
        self.hits = self.misses = 0
        self._get = ctypes.CFUNCTYPE(ctypes.c_uint64)(library.address("state_get"))
        self._set = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(library.address("state_set"))
        self._scratch = aligned(scratch_bytes)

    def address(self, name: str) -> int:
        """The address of a kernel's function."""
        return self._library.address(self._symbols[name])

    def enter(self) -> int:
        """Flush subnormal numbers in this thread; returns the state for `leave`."""
        before: int = self._get()
        self._set(FLUSHING[ARCHITECTURE])
        return before

    def leave(self, before: int) -> None:
        """Restore what `enter` returned."""
        self._set(before)

    def call(self, name: str, args: np.ndarray) -> None:
        """Run one kernel, subnormal numbers being flushed. Not for two threads at a time: the scratch is shared."""
        assert args.dtype == np.int64 and args.flags.c_contiguous
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(self.address(name))
        before = self.enter()
        try:
            run(args.ctypes.data, self._scratch.ctypes.data)
        finally:
            self.leave(before)


def aligned(size: int) -> np.ndarray:
    """A byte array of `size` at an address divisible by 64."""
    raw = np.zeros(size + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + size]


def scratch_bytes(nest: Nest) -> int:
    """The scratch that one kernel needs, in bytes."""
    if blocked(nest):
        return scratch_layout(nest)[2]
    return levels(nest) * WIDE * LANES * 8


def nest_text(nest: Nest, blocks: Blocking, fixed: Collection[int] = (), architecture: str = ARCHITECTURE) -> str:
    """The LLVM module of one nest; its function is called `kernel`. `fixed`: loops of which every call makes all
    iterations."""
    module = Module()
    fn = Function(module, "kernel", ["ptr noalias", "ptr noalias"])
    args, scratch = fn.args
    frame = Frame(fn, nest, args, scratch, fixed=fixed)
    if wide := computes_f64(nest):
        before = read_state(fn, architecture)
        write_state(fn, fn.const("i64", PLAIN[architecture]), architecture)
        fn.block("start")
    if nest.kind == "map":
        emit_map(frame)
    elif nest.kind == "lookup":
        emit_lookup(frame)
    elif nest.kind == "scatter":
        emit_scatter(frame)
    elif blocked(nest):
        emit_mac(frame, blocks)
    elif nest.kind in ("fma", "mac", "sum", "prod", "max", "min", "or"):
        emit_reduce(frame)
    else:
        raise ValueError(f"unknown kernel kind {nest.kind!r}")
    if wide:
        fn.block("done")
        write_state(fn, before, architecture)
    fn.raw("ret void")
    return str(module)


def unrolls(nest: Nest) -> bool:
    """Whether the code is better for loops of which every call makes all iterations: small reductions."""
    return not blocked(nest) and bool(unrolled(nest, range(len(nest.loops))))


def blocked(nest: Nest) -> bool:
    """Whether the nest runs in blocks of rows and columns: a mac, but f64's, which is rare."""
    return nest.kind == "mac" and nest.operands[0].dtype != "f64"


def computes_f64(nest: Nest) -> bool:
    """Whether an f64 occurs: then no f32 arithmetic does (d1c.target.kernel.Nest)."""
    bodies = [b for b in (nest.term, nest.epilogue) if b is not None]
    inside = (t for b in bodies for t in (*b.inputs, *(i.type for i in b.instrs)))
    return "f64" in inside or any(o.dtype == "f64" for o in (nest.out, *nest.operands))


def units_of(use_dot: bool | None = None, cpu: str | None = None, wide: bool | None = None) -> tuple[bool, bool]:
    """Whether kernels are made for AVX-512, and whether with the bf16 dot product: as `build` takes these."""
    if use_dot and cpu is None and not dot_works():
        # LLVM aborts the process when it meets the instruction without the feature
        raise UsageError("this host has no bf16 dot product", remedy="leave use_dot out, or say False")
    dot = (cpu is None and dot_works()) if use_dot is None else use_dot
    if wide is None:
        target = host() if cpu is None else Host(cpu, "")
        wide = target.has("avx512f") or cpu in ("skylake-avx512", "sapphirerapids", "znver4", "znver5")
    return wide, dot


def build(
    nests: Mapping[str, Nest], cpu: str | None = None, use_dot: bool | None = None, wide: bool | None = None,
    folder: Path | None = None, cached: bool = True, joint: Mapping[str, Joint] | None = None,
    fixed: Mapping[str, Collection[int]] | None = None,
) -> Kernels:  # fmt: skip
    """Compile nests by name. `cpu`: an LLVM cpu name instead of the host's; `use_dot`: whether to use the bf16 dot
    product (default: where the host has it and it passes its test); `wide`: blocks for AVX-512 (default: by the cpu);
    `folder`: the object cache (default: the user's). No choice changes any bit of the results. `joint`: kernels for
    many cores at a time, by names of their own; `fixed`: per name, loops of which every call makes all iterations."""
    target = host() if cpu is None else Host(cpu, "")
    cache_ = ObjectCache((folder or default_folder()) if cached else None)
    wide, dot = units_of(use_dot, cpu, wide)
    blocks = blocking(wide, dot)
    made: dict[str, tuple[str, Callable[[], str]]] = {}
    packed = dict(joint or {}) | {n: j for n, x in nests.items() if (j := alone(x, wide, dot)) is not None}
    plain = {n: x for n, x in nests.items() if n not in packed}
    for n, x in plain.items():
        whole = tuple(sorted((fixed or {}).get(n, ()))) if unrolls(x) else ()
        made[n] = repr((generator(), blocks, x, whole)), partial(nest_text, x, blocks, whole)
    made |= {n: (repr((generator(), x)), partial(joint_text, x)) for n, x in packed.items()}
    made["state"] = state_text(), state_text
    objects = dict(zip(made, compile_made(made.values(), target, cache_), strict=True))
    state = objects.pop("state")[1]
    symbols = {name: f"kernel{key}" for name, (key, _) in objects.items()}
    exports = {symbols[name]: ("kernel", o) for name, (_, o) in objects.items()}
    exports |= {s: (s, state) for s in ("state_get", "state_set")}
    scratch = [64, *map(scratch_bytes, plain.values()), *(joint_scratch(x)[3] for x in packed.values())]
    kernels = Kernels(Library(exports), symbols, max(scratch), dot)
    kernels.hits, kernels.misses = cache_.hits, cache_.misses
    return kernels


# ---- the host's dot product -----------------------------------------------------------------------------------------


def dot_text(how: str) -> str:
    """void dot(ptr acc, ptr a, ptr b): one step of 16 accumulators. `how`: "instruction" of the host, "odd first" as
    the step is defined, or "even first", which is something else."""
    module = Module()
    fn = Function(module, "dot", ["ptr"] * 3)
    f32, i32 = vec(LANES, "float"), vec(LANES, "i32")
    acc = fn.load(f32, fn.args[0])
    a, b = (fn.load(i32, p) for p in fn.args[1:])
    if how == "instruction":
        t = vec(2 * LANES, "bfloat")
        acc = fn.call(f32, "llvm.x86.avx512bf16.dpbf16ps.512", acc, a.bitcast(t), b.bitcast(t))
    else:
        halves = [(a & -65536, b & -65536), (a << 16, b << 16)]
        for x, y in halves if how == "odd first" else reversed(halves):
            acc = fn.intrinsic("fma", x.bitcast(f32), y.bitcast(f32), acc)
    fn.store(acc, fn.args[0])
    fn.raw("ret void")
    return str(module)


@cache
def dot_works() -> bool:
    """Whether the host has a bf16 dot product that is fma of the odd elements, then of the even ones, RNE with FTZ and
    DAZ."""
    return host().has("avx512bf16") and dot_agrees(dot_text("instruction"))


def dot_agrees(text: str) -> bool:
    """Whether a module's `dot` gives the defined bits on random, subnormal, cancelling and special values."""
    texts = [text, dot_text("odd first"), state_text()]
    objects = compile_all(texts, host(), ObjectCache(None))
    library = Library(
        {"tested": ("dot", objects[0]), "defined": ("dot", objects[1])}
        | {s: (s, objects[2]) for s in ("state_get", "state_set")}
    )
    kernels = Kernels(library, {}, 64, False)
    proto = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    tested, defined = proto(library.address("tested")), proto(library.address("defined"))
    rng = np.random.default_rng(1)
    before = kernels.enter()
    try:
        for i in range(600):
            acc, a, b = rng.integers(0, 2**32, (3, LANES), np.uint32)
            if i % 3:  # exponents near each other: sums that cancel, products near the smallest normal
                low, high = (0x3F803F80, 0x3F000000) if i % 3 == 1 else (0x20002000, 0x00400000)
                a, b = ((x & 0x807F807F) + np.uint32(low) for x in (a, b))
                acc = (acc & 0x80FFFFFF) + np.uint32(high)
            same = acc.copy()
            tested(acc.ctypes.data, a.ctypes.data, b.ctypes.data)
            defined(same.ctypes.data, a.ctypes.data, b.ctypes.data)
            nan, expected_nan = np.isnan(acc.view(np.float32)), np.isnan(same.view(np.float32))
            if not (np.array_equal(nan, expected_nan) and np.array_equal(acc[~nan], same[~nan])):
                return False
    finally:
        kernels.leave(before)
    return True
