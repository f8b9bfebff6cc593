"""Speed of compiled kernels, one thread: python tests/bench/bench_nests.py (needs the packages on PYTHONPATH).

Products are given in GFLOP/s (2 per multiply-add) and as a fraction of what this host's FMA unit (or its bf16 dot
product, where it is used) reaches in the same run; other kinds in Gelem/s. Medians of interleaved rounds.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.numerics import Recorder, erf, exp
from d1rt.jit_ir import Function, Module, Value, vec
from d1rt.jit_nest import Kernels, aligned, build
from d1rt.jit_object import Library, ObjectCache, compile_all, host

ROUNDS = 9
PEAK_STEPS = 12


def helpers(dot: bool) -> Library:
    """repeat(kernel, args, scratch, n): n calls; peak(n, out): n times PEAK_STEPS independent FMAs (or dots)."""
    module = Module()
    repeat = Function(module, "repeat", ["ptr", "ptr", "ptr", "i64"])

    def once(_: Value) -> None:
        repeat.raw(f"call void {repeat.args[0].name}({repeat.args[1]}, {repeat.args[2]})")

    repeat.loop(0, repeat.args[3], 1, [], once)
    repeat.raw("ret void")
    peak = Function(module, "peak", ["i64", "ptr"])
    lanes = 16 if dot or host().has("avx512f") else 8
    t = vec(lanes, "float")
    x = peak.load(t, peak.args[1])
    brain = x.bitcast(vec(2 * lanes, "bfloat"))

    def step(_: Value, *acc: Value) -> list[Value]:
        if dot:
            return [peak.call(t, "llvm.x86.avx512bf16.dpbf16ps.512", a, brain, brain) for a in acc]
        return [peak.intrinsic("fma", x, x, a) for a in acc]

    out = peak.loop(0, peak.args[0], 1, [x] * PEAK_STEPS, step)
    total = out[0]
    for o in out[1:]:
        total = total + o
    peak.store(total, peak.args[1])
    peak.raw("ret void")
    (data,) = compile_all([str(module)], host(), ObjectCache(None))
    return Library({n: (n, data) for n in ("repeat", "peak")})


def operand(name: str, *strides: int) -> Operand:
    return Operand(name, strides, (None,) * len(strides))


def matmul(m: int, n: int, k: int, name: str = "bf16", slice_: int = 0, relu: bool = True) -> Nest:
    """m x n x k with bias and relu, as a matmul or a 1x1 convolution is lowered."""
    e = 2 if name == "bf16" else 1
    loops = (Loop("m", m), Loop("n", n), Loop("k", k // e), Loop("e", e))
    operands = (operand(name, k, 0, e, 1), operand(name, 0, e, e * n, 1), operand("f32", 0, 1, 0, 0))
    r = Recorder("f32", "f32")
    biased = r.add(*r.inputs)
    epilogue = r.body(r.max(biased, 0.0) if relu else biased)
    cut = 2 if slice_ else None
    return Nest("mac", loops, 2, operands, operand(name, n, 1, 0, 0), 2, None, epilogue, cut, slice_ // e)


def conv(rows: int, cols: int, o: int, c: int) -> Nest:
    """3x3 convolution of rows x cols pixels, c -> o channels, over a padded buffer; slices of c."""
    wide = (cols + 2) * c
    loops = tuple(Loop(n, x) for n, x in zip("hwoyxce", (rows, cols, o, 3, 3, c // 2, 2), strict=True))
    a = operand("bf16", wide, c, 0, wide, c, 2, 1)
    b = operand("bf16", 0, 0, 2, 3 * c * o, c * o, 2 * o, 1)
    slice_ = max(4, c // 8) // 2
    r = Recorder("f32", "f32")
    epilogue = r.body(r.max(r.add(*r.inputs), 0.0))
    bias = operand("f32", 0, 0, 1, 0, 0, 0, 0)
    return Nest(
        "mac", loops, 3, (a, b, bias), operand("bf16", cols * o, o, 1, 0, 0, 0, 0), 2, None, epilogue, 5, slice_
    )


def elementwise(kind: str) -> Nest:
    n = 32768
    io = operand("bf16", 1)
    r = Recorder("f32")
    x = r.inputs[0]
    result = {
        "relu": lambda: r.max(x, 0.0),
        "exp": lambda: exp(r, x),
        "gelu": lambda: r.mul(r.mul(x, 0.5), r.add(erf(r, r.mul(x, 0.70710678)), 1.0)),
        "div": lambda: r.div(1.0, x),
    }[kind]()
    return Nest("map", (Loop("n", n),), 1, (io,), io, 0, epilogue=r.body(result))


def others() -> dict[str, Nest]:
    """Copies and reductions of a core's size."""
    rows = (Loop("m", 64), Loop("n", 256))
    transposed = Nest("map", rows, 2, (operand("bf16", 1, 64),), operand("bf16", 256, 1), 0)
    copy = Nest("map", rows, 2, (operand("bf16", 260, 1),), operand("bf16", 256, 1), 0)
    lanes = Nest("sum", rows, 1, (operand("f32", 256, 1),), operand("f32", 1, 0), 1, cut=1, slice=64, lanes=True)
    pool = tuple(Loop(n, x) for n, x in zip("hwcyx", (8, 8, 64, 3, 3), strict=True))
    taps = operand("bf16", 10 * 64, 64, 1, 10 * 64, 64)
    out = operand("bf16", 8 * 64, 64, 1, 0, 0)
    best = Nest("max", pool, 3, (taps,), out, 1)
    depthwise = Nest("fma", pool, 3, (taps, operand("bf16", 0, 0, 1, 192, 64)), out, 2)
    return {
        "copy 64x256": copy, "transpose 64x256": transposed, "row sum 64x256 f32": lanes,
        "max pool 3x3 8x8x64": best, "depthwise 3x3 8x8x64": depthwise,
    }  # fmt: skip


def work(nest: Nest) -> float:
    """Multiply-adds (times 2) of a product, elements read of another kind."""
    total = 1.0
    for loop in nest.loops:
        total *= loop.extent
    return 2 * total if nest.kind == "mac" else total


def arguments(nest: Nest, keep: list[np.ndarray]) -> np.ndarray:
    """Arguments of a call on random data, 64-byte aligned as SRAM buffers are."""
    rng = np.random.default_rng(0)
    pointers = []
    for o in (nest.out, *nest.operands):
        n = 1 + sum(s * (loop.extent - 1) for s, loop in zip(o.strides, nest.loops, strict=True))
        storage = np.dtype(ml_dtypes.bfloat16 if o.dtype == "bf16" else np.float32)
        array = aligned(n * storage.itemsize).view(storage)
        array[:] = rng.standard_normal(n).astype(storage)
        keep.append(array)
        pointers.append(array.ctypes.data)
    return np.array([*pointers, *(loop.extent for loop in nest.loops)], np.int64)


def measure(kernels: Kernels, nests: dict[str, Nest], library: Library, peak_flops: float) -> None:
    keep: list[np.ndarray] = []
    repeat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        library.address("repeat")
    )
    peak = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(library.address("peak"))
    scratch, ones = aligned(kernels.scratch_bytes), aligned(64).view(np.float32)
    ones[:] = 1e-3
    runs: dict[str, tuple[Callable[[int], None], float]] = {}
    runs["peak"] = (lambda n: peak(n * 1000, ones.ctypes.data), 1000 * PEAK_STEPS * peak_flops)
    for name, nest in nests.items():
        args = arguments(nest, keep)
        keep.append(args)
        address, at, buffer = kernels.address(name), args.ctypes.data, scratch.ctypes.data
        runs[name] = (lambda n, f=address, a=at, s=buffer: repeat(f, a, s, n), work(nest))
    before = kernels.enter()
    counts = {}
    for name, (run, _) in runs.items():
        run(2)
        start = time.process_time()
        run(20)
        counts[name] = max(1, int(20 * 0.01 / max(1e-6, time.process_time() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (run, _) in runs.items():
            start = time.process_time()
            run(counts[name])
            seconds[name].append((time.process_time() - start) / counts[name])
    kernels.leave(before)
    top = runs["peak"][1] / statistics.median(seconds["peak"])
    for name, (_, amount) in runs.items():
        t = statistics.median(seconds[name])
        share = f" {amount / t / top:6.1%} of peak" if name == "peak" or nests[name].kind == "mac" else ""
        print(f"{name:32s} {t * 1e6:10.3f} us {amount / t / 1e9:8.1f} G/s{share}")


def main() -> None:
    nests = {
        "mac 8x16x576": matmul(8, 16, 576), "mac 8x32x64": matmul(8, 32, 64), "mac 56x64x576": matmul(56, 64, 576),
        "mac 56x64x576 8 slices": matmul(56, 64, 576, slice_=72), "mac 128x128x512": matmul(128, 128, 512),
        "mac 64x64x64": matmul(64, 64, 64), "mac 6x16x256": matmul(6, 16, 256), "mac 1x64x512": matmul(1, 64, 512),
        "mac f32 56x64x576": matmul(56, 64, 576, "f32"), "mac 13x40x200": matmul(13, 40, 200),
        "conv 3x3 4x14x64 c64": conv(4, 14, 64, 64), "mac 1x1x2 (overhead)": matmul(1, 1, 2),
    }  # fmt: skip
    nests |= {f"{k} bf16 32768": elementwise(k) for k in ("relu", "exp", "gelu", "div")}
    nests |= others()
    start = time.process_time()
    kernels = build(nests, folder=Path("unused"), cached=False)
    print(f"{host().cpu}, dot {kernels.dot}, {len(nests)} kernels compiled in {time.process_time() - start:.2f} s CPU")
    lanes = 16 if host().has("avx512f") else 8
    measure(kernels, nests, helpers(kernels.dot), 64 if kernels.dot else 2 * lanes)


if __name__ == "__main__":
    main()
