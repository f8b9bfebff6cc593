"""Vector code of kernels in LLVM IR: storage types, loads and stores of up to 16 lanes, the instructions of bodies.

Every thread that runs this code has FTZ and DAZ set (MXCSR 0x9FC0), so the float instructions of the host mean what
d1c.target.vector says of them; where the host differs (max, min, conversions, stored NaNs) it is integer code.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from d1c.target.dtypes import NARROW
from d1c.target.kernel import COMPUTE_TYPE, Body
from d1rt.jit_ir import FLOATS, Function, Module, Value, element, like, mangle, vec, width

LANES = 16
SIZE = {
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "i64": 8,
    "u64": 8,
    "bool": 1,
    **{d.name: 1 for d in NARROW},
}
"""Bytes of one element in SRAM."""
LLVM = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "mask": "i1"}
"""LLVM element types of the types of bodies."""
_NARROW = {d.name: d for d in NARROW}


# ---- memory ---------------------------------------------------------------------------------------------------------


def load_raw(
    fn: Function, size: int, p: Value, stride: int | Sequence[Value], w: int, n: Value | None, volatile: bool = False
) -> Value:
    """w elements of `size` bytes as integers, `stride` bytes apart (or at the byte offsets of a list). With `n`: only
    the first n (0 < n <= w) are read, the others are 0; then the stride must be `size` or 0."""
    scalar = f"i{8 * size}"
    if not isinstance(stride, int) or stride not in (0, size):
        v = fn.zero(vec(w, scalar))
        for i in range(w):
            v = fn.insert(v, fn.load(scalar, p + (i * stride if isinstance(stride, int) else stride[i])), i)
        return v
    if stride == 0:
        return fn.splat(fn.load(scalar, p), w)
    if n is None:
        return fn.load(vec(w, scalar), p, volatile)
    if size >= 4:
        t = vec(w, scalar)
        return fn.call(t, f"llvm.masked.load.v{w}{scalar}.p0", p_align(p), first(fn, n, w), fn.zero(t))
    return fn.call(vec(w, scalar), _tail(fn.module, size, True), p, n)


def store_raw(fn: Function, v: Value, p: Value, stride: int, n: Value | None) -> None:
    """Store the lanes of an integer vector `stride` bytes apart; with `n` only the first n, then densely."""
    w, size = width(v.type), int(element(v.type)[1:]) // 8
    if stride != size and w > 1:
        for i in range(w):
            fn.store(fn.extract(v, i), p + i * stride)
    elif n is None:
        fn.store(v, p)
    elif size >= 4:
        fn.call("void", f"llvm.masked.store.v{w}i{8 * size}.p0", v, p_align(p), first(fn, n, w))
    else:
        fn.call("void", _tail(fn.module, size, False), v, p, n)


def p_align(p: Value) -> Value:
    """A pointer argument of a masked intrinsic: elements may lie at any byte."""
    return Value(p.fn, "ptr align 1", p.name)


def first(fn: Function, n: Value, w: int) -> Value:
    """The mask of the lanes below n."""
    index = fn.vector(vec(w, "i32"), range(w))
    return index.compare("slt", fn.splat(n.cast("trunc", "i32"), w))


def _tail(module: Module, size: int, load: bool) -> str:
    """A local function that moves n <= 16 small elements by halves: AVX2 has no masked moves for them."""
    name = f"{'load' if load else 'store'}_tail_{size}"
    if any(f.name == name for f in module.functions):
        return name
    t = vec(LANES, f"i{8 * size}")
    fn = Function(module, name, ["ptr", "i64"] if load else [t, "ptr", "i64"], t if load else "void", local=True)
    p, n = fn.args[-2:]
    buffer = fn.op("ptr", f"alloca {t}, align 64")
    fn.store(fn.zero(t) if load else fn.args[0], buffer)
    at = fn.const("i64", 0)
    for part in (16, 8, 4, 2, 1):
        moved = f"i{8 * size * part}"
        done = at

        def move(moved: str = moved, done: Value = done, part: int = part) -> Sequence[Value]:
            here, there = p + done, buffer + done
            fn.store(fn.load(moved, here if load else there), there if load else here)
            return [done + fn.const("i64", part * size)]

        (at,) = fn.if_((n & part).compare("ne", 0), move, [done])
    fn.raw(f"ret {fn.load(t, buffer)}" if load else "ret void")
    return name


# ---- storage and compute types --------------------------------------------------------------------------------------


def widen(fn: Function, raw: Value, dtype: str) -> Value:
    """Storage bits to the compute type of `dtype`."""
    w, size = width(raw.type), SIZE[dtype]
    if dtype == "bf16":
        return (raw.cast("zext", vec(w, "i32")) << 16).bitcast(vec(w, "float"))
    if dtype == "f16":
        return raw.bitcast(vec(w, "half")).cast("fpext", vec(w, "float"))
    if dtype in ("f32", "f64"):
        return raw.bitcast(vec(w, LLVM[dtype]))
    if dtype == "bool":
        return raw.compare("ne", 0)
    to = LLVM[COMPUTE_TYPE[dtype]]
    if dtype in _NARROW:
        d = _NARROW[dtype]
        low = raw.cast("zext", vec(w, to)) & ((1 << d.bits) - 1)
        return (low << (32 - d.bits)).binary("ashr", 32 - d.bits) if d.kind == "int" else low
    return raw if to == f"i{8 * size}" else raw.cast("sext" if dtype[0] == "i" else "zext", vec(w, to))


def narrow(fn: Function, v: Value, dtype: str) -> Value:
    """A value of a body to storage bits: one RNE rounding, the canonical NaN, low bits of integers."""
    w, want = width(v.type), COMPUTE_TYPE[dtype]
    v = convert(fn, v, want)
    if dtype in ("f32", "f64"):
        return v.compare("uno", v).select(fn.const(v.type, float("nan")), v).bitcast(bits_of(v.type))
    if dtype == "bf16":
        bits = v.bitcast(vec(w, "i32"))
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return v.compare("uno", v).select(fn.const(bits.type, 0x7FC0), rounded).cast("trunc", vec(w, "i16"))
    if dtype == "f16":
        half = v.cast("fptrunc", vec(w, "half")).bitcast(vec(w, "i16"))
        return v.compare("uno", v).select(fn.const(half.type, 0x7E00), half)
    storage = f"i{8 * SIZE[dtype]}"
    if dtype in _NARROW:
        v = v & ((1 << _NARROW[dtype].bits) - 1)
    if want == "mask":
        return v.cast("zext", vec(w, storage))
    return v if element(v.type) == storage else v.cast("trunc", vec(w, storage))


def convert(fn: Function, x: Value, to: str) -> Value:
    """`cvt` of the bodies: by value."""
    have, t = element(x.type), like(x.type, LLVM[to])
    if have == LLVM[to]:
        return x
    if to == "mask":
        return x.compare("une" if have in FLOATS else "ne", 0)
    if have == "i1":
        return x.cast("uitofp" if to in ("f32", "f64") else "zext", t)
    if have in FLOATS and to in ("f32", "f64"):
        return x.cast("fpext" if to == "f64" else "fptrunc", t)
    if to in ("f32", "f64"):
        return x.cast("sitofp", t)
    if have in FLOATS:
        return fn.call(t, f"llvm.fptosi.sat.{mangle(t)}.{mangle(x.type)}", x)
    return x.cast("sext" if to == "i64" else "trunc", t)


# ---- instructions ---------------------------------------------------------------------------------------------------


def bits_of(type_: str) -> str:
    """The integer type as wide as a float (or integer) type."""
    return like(type_, {"float": "i32", "double": "i64"}.get(element(type_), element(type_)))


def key(x: Value) -> Value:
    """Integers that order like the floats do, -0 below +0; of such integers the floats' bits."""
    bits = x.bitcast(bits_of(x.type))
    size = int(element(bits.type)[1:])
    return bits ^ (bits.binary("ashr", size - 1) & ((1 << (size - 1)) - 1))


def extremum(fn: Function, a: Value, b: Value, greatest: bool) -> Value:
    """max or min; for floats NaN wins, -0 < +0 and the bits of the chosen one are kept."""
    order = "sge" if greatest else "sle"
    if element(a.type) == "i1":
        return a | b if greatest else a & b
    if element(a.type) not in FLOATS:
        return a.compare(order, b).select(a, b)
    chosen = key(a).compare(order, key(b)).select(a, b)
    return a.compare("uno", b).select(fn.const(a.type, float("nan")), chosen)


def bound(fn: Function, x: Value, c: float, greatest: bool) -> Value | None:
    """max(x, +0) or min(x, c >= +0) by one test of the bits, None for another constant."""
    if not math.copysign(1, c) > 0 or math.isnan(c) or (greatest and c != 0):
        return None
    bits = x.bitcast(like(x.type, "i32"))
    if greatest:  # 0x80000000 (-0) to 0xFF800000 (-inf) give way; the NaNs above and the positive stay
        keep = bits.compare("sgt", -(1 << 23))
    else:  # above c to 0x7F800000 (inf)
        low = struct.unpack("<i", struct.pack("<f", c))[0]
        keep = (bits - (low + 1)).compare("uge", 0x7F800000 - low)
    return keep.select(x, fn.const(x.type, c))


def _divide(fn: Function, a: Value, b: Value, op: str) -> Value:
    if element(a.type) in FLOATS:
        return a.binary("fdiv", b)
    # The host traps on x / 0 and MIN / -1: divide by 1 there and put the right result in its place.
    zero, minus = b.compare("eq", 0), b.compare("eq", -1)
    safe = (zero | minus).select(fn.const(b.type, 1), b)
    if op == "rem":
        return a.binary("srem", safe)  # by 1: 0, which is right for both
    return zero.select(fn.const(a.type, 0), minus.select(fn.const(a.type, 0) - a, a.binary("sdiv", safe)))


def _shift(fn: Function, a: Value, n: Value, how: str) -> Value:
    return a.binary(how, n & (int(element(a.type)[1:]) - 1))


def _top_bit(a: Value) -> int:
    """The sign bit of a float, as a signed integer."""
    return -(1 << (63 if element(a.type) == "double" else 31))


def multiply_add(fn: Function, a: Value, b: Value, c: Value) -> Value:
    """a * b + c: of f32 rounded once, of f64 and integers a product and a sum."""
    return fn.intrinsic("fma", a, b, c) if element(a.type) == "float" else a * b + c


def _negate(fn: Function, a: Value) -> Value:
    if element(a.type) in FLOATS:
        return (a.bitcast(bits_of(a.type)) ^ _top_bit(a)).bitcast(a.type)
    return fn.const(a.type, 0) - a


def _absolute(fn: Function, a: Value) -> Value:
    if element(a.type) in FLOATS:
        return (a.bitcast(bits_of(a.type)) & ~_top_bit(a)).bitcast(a.type)
    return a.compare("slt", 0).select(fn.const(a.type, 0) - a, a)


def _select(mask: Value, a: Value, b: Value) -> Value:
    """Chosen as integers: LLVM makes of a float comparison and selection a minps, which flushes what it returns."""
    if element(a.type) not in FLOATS:
        return mask.select(a, b)
    t = bits_of(a.type)
    return mask.select(a.bitcast(t), b.bitcast(t)).bitcast(a.type)


def _compare(a: Value, b: Value, op: str) -> Value:
    if element(a.type) in FLOATS:
        return a.compare({"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole"}[op], b)
    if element(a.type) == "i1":  # false < true, as numbers
        return a.compare({"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule"}[op], b)
    return a.compare({"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle"}[op], b)


_EMIT: dict[str, Callable[..., Value]] = {
    "add": lambda f, a, b: a + b, "sub": lambda f, a, b: a - b, "mul": lambda f, a, b: a * b,
    "div": lambda f, a, b: _divide(f, a, b, "div"), "rem": lambda f, a, b: _divide(f, a, b, "rem"),
    "fma": multiply_add, "sqrt": lambda f, a: f.intrinsic("sqrt", a),
    "min": lambda f, a, b: extremum(f, a, b, False), "max": lambda f, a, b: extremum(f, a, b, True),
    "rint": lambda f, a: f.intrinsic("roundeven", a), "floor": lambda f, a: f.intrinsic("floor", a),
    "ceil": lambda f, a: f.intrinsic("ceil", a), "neg": _negate, "abs": _absolute,
    "and": lambda f, a, b: a & b, "or": lambda f, a, b: a | b, "xor": lambda f, a, b: a ^ b,
    "shl": lambda f, a, n: _shift(f, a, n, "shl"), "shr": lambda f, a, n: _shift(f, a, n, "lshr"),
    "sar": lambda f, a, n: _shift(f, a, n, "ashr"),
    "eq": lambda f, a, b: _compare(a, b, "eq"), "ne": lambda f, a, b: _compare(a, b, "ne"),
    "lt": lambda f, a, b: _compare(a, b, "lt"), "le": lambda f, a, b: _compare(a, b, "le"),
    "select": lambda f, m, a, b: _select(m, a, b),
}  # fmt: skip


def _delicate(c: float) -> bool:
    """Constants with which LLVM simplifies arithmetic as if subnormals were kept."""
    return abs(c) == 1 or abs(c) < 2.0**-126


def emit_body(fn: Function, body: Body, inputs: Sequence[Value], w: int) -> Value:
    """The instructions of a body on vectors of width w; returns its result."""
    values = list(inputs)
    constants: dict[int, float] = {}
    for i in body.instrs:
        t = vec(w, LLVM[i.type])
        if i.op == "const" and i.imm is not None:
            constants[len(values)] = i.imm
        elif i.op == "bits" and constants.get(i.args[0]) == -(2**31):
            constants[len(values)] = -0.0
        if i.op == "const":
            assert i.imm is not None
            values.append(fn.const(t, i.imm))
        elif i.op == "bits":
            values.append(values[i.args[0]].bitcast(t))
        elif i.op == "cvt":
            values.append(convert(fn, values[i.args[0]], i.type))
        else:
            args = [values[a] for a in i.args]
            if i.type == "f32" and i.op in ("add", "sub", "mul", "div", "fma"):
                all_known = all(a in constants for a in i.args)
                args = [
                    fn.opaque(fn.const(t, constants[a]))
                    if a in constants and (all_known or _delicate(constants[a]))
                    else v
                    for a, v in zip(i.args, args, strict=True)
                ]
            short = None
            if i.type == "f32" and i.op in ("max", "min"):
                known = [a in constants for a in i.args]
                if known[0] != known[1]:
                    short = bound(fn, args[known[0]], constants[i.args[known[1]]], i.op == "max")
            values.append(short or _EMIT[i.op](fn, *args))
    return values[body.result]
