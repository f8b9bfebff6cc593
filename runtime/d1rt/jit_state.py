"""How the host's floating point treats subnormal numbers: code that reads and sets it, per architecture.

The machine flushes them, inputs and results; so kernels run with FTZ and DAZ on x86-64 (in MXCSR), with FZ on aarch64
(in FPCR). A state is an i64 here.
"""

from __future__ import annotations

import platform

from d1rt.jit_ir import Function, Module, Value

ARCHITECTURE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
FLUSHING = {"x86_64": 0x9FC0, "aarch64": 1 << 24}
"""Subnormal numbers count as 0; all exceptions masked, rounding to nearest."""
PLAIN = {"x86_64": 0x1F80, "aarch64": 0}
"""The same without flushing."""


def read_state(fn: Function, architecture: str) -> Value:
    """The state of the calling thread."""
    if architecture == "aarch64":
        return fn.call("i64", "llvm.aarch64.get.fpcr")
    p = fn.op("ptr", "alloca i32")
    fn.call("void", "llvm.x86.sse.stmxcsr", p)
    return fn.load("i32", p).cast("zext", "i64")


def write_state(fn: Function, state: Value, architecture: str) -> None:
    """Set it. Code that depends on it belongs in another block: within one LLVM may move it."""
    if architecture == "aarch64":
        fn.call("void", "llvm.aarch64.set.fpcr", state)
        return
    p = fn.op("ptr", "alloca i32")
    fn.store(state.cast("trunc", "i32"), p)
    fn.call("void", "llvm.x86.sse.ldmxcsr", p)


def relax(fn: Function, architecture: str) -> None:
    """Tell the processor that this thread spins."""
    if architecture == "aarch64":
        fn.call("void", "llvm.aarch64.hint", fn.const("i32", 1))
    else:
        fn.call("void", "llvm.x86.sse2.pause")


def state_text(architecture: str = ARCHITECTURE) -> str:
    """The module of `state_get` and `state_set`, for the runtime."""
    module = Module()
    get = Function(module, "state_get", [], "i64")
    get.raw(f"ret {read_state(get, architecture)}")
    put = Function(module, "state_set", ["i64"])
    write_state(put, put.args[0], architecture)
    put.raw("ret void")
    return str(module)
