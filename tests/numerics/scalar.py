"""Exact scalar arithmetic in Python rationals, and kernels as plain nested loops: what numpy is held to."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from itertools import product

import numpy as np

from d1c.target.kernel import Nest


def daz(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def round32(x: Fraction, significant: int = 24) -> float:
    """RNE with an unbounded exponent, then flush, then overflow. x is not 0."""
    a = abs(x)
    e = a.numerator.bit_length() - a.denominator.bit_length()
    while Fraction(2) ** e > a:
        e -= 1
    while Fraction(2) ** (e + 1) <= a:
        e += 1
    quantum = Fraction(2) ** (e - significant + 1)
    r = round(a / quantum) * quantum  # Python rounds ties of a Fraction to even
    y = 0.0 if r < Fraction(2) ** -126 else math.inf if r >= Fraction(2) ** 128 else float(r)
    return -y if x < 0 else y


def add(a: float, b: float) -> float:
    a, b = daz(a), daz(b)
    if not (math.isfinite(a) and math.isfinite(b)) or a + b == 0:
        return a + b
    return round32(Fraction(a) + Fraction(b))


def mul(a: float, b: float) -> float:
    a, b = daz(a), daz(b)
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
        return a * b
    return round32(Fraction(a) * Fraction(b))


def div(a: float, b: float) -> float:
    a, b = daz(a), daz(b)
    if b == 0:
        sign = math.copysign(1, a) * math.copysign(1, b)
        return math.nan if a == 0 or a != a else sign * math.inf
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0:
        return a / b
    return round32(Fraction(a) / Fraction(b))


def fma(a: float, b: float, c: float) -> float:
    a, b, c = daz(a), daz(b), daz(c)
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        zero = math.copysign(0.0, a) * math.copysign(1.0, b) if a == 0 or b == 0 else math.nan
        return zero + c if zero == 0 else 0.0
    return round32(exact)


def bits32(x: float) -> int:
    """The bits that a store writes: one NaN."""
    return 0x7FC00000 if x != x else struct.unpack("<I", struct.pack("<f", x))[0]


def value32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def to_bf16(x: float) -> int:
    """bf16 bits by RNE, subnormal results kept."""
    if x != x:
        return 0x7FC0
    u = bits32(x)
    low, kept = u & 0xFFFF, u >> 16
    return kept + (low > 0x8000 or (low == 0x8000 and kept & 1 == 1))


def larger(a: float, b: float) -> float:
    if a != a or b != b:
        return math.nan
    if a == b == 0:
        return a if math.copysign(1, a) > 0 else b
    return max(a, b)


def smaller(a: float, b: float) -> float:
    return -larger(-a, -b)


def combine_tree(nodes: list[float | None]) -> float:
    """N6 by recursion over a power-of-two aligned range; None is a missing leaf."""
    while len(nodes) & (len(nodes) - 1):
        nodes = [*nodes, None]
    if len(nodes) == 1:
        assert nodes[0] is not None
        return nodes[0]
    half = len(nodes) // 2
    right = nodes[half:]
    left = combine_tree(nodes[:half])
    return left if all(n is None for n in right) else add(left, combine_tree(right))


def reduce_nest(nest: Nest, operands: list, tables: list, trips: list[int]) -> dict[int, float]:  # type: ignore[type-arg]
    """Accumulators by output offset, of a nest of kind mac, fma, sum, max or min over float operands given as lists of
    Python floats, its term the default one. Every loop is a Python loop."""
    parallel = nest.parallel
    out: dict[int, float] = {}

    def address(o, point) -> int:  # type: ignore[no-untyped-def]
        return sum(s * i if t is None else tables[t][i] for s, t, i in zip(o.strides, o.tables, point, strict=True))

    reduce = list(range(parallel, len(nest.loops)))
    last = reduce[-1]
    for base in product(*(range(t) for t in trips[:parallel])):

        def read(k: int, at: dict[int, int], base: tuple[int, ...] = base) -> float:
            return operands[k][address(nest.operands[k], (*base, *(at[i] for i in reduce)))]

        def chain(points: list[dict[int, int]]) -> float:
            acc = {"mac": 0.0, "fma": 0.0, "sum": -0.0, "max": -math.inf, "min": math.inf}[nest.kind]
            for at in points:
                if nest.kind in ("mac", "fma"):
                    acc = fma(read(0, at), read(1, at), acc)
                else:
                    f = {"sum": add, "max": larger, "min": smaller}[nest.kind]
                    acc = f(acc, read(0, at))
            return acc

        parts: list[float | None] = []
        extent = 1 if nest.cut is None else trips[nest.cut]
        step = nest.slice if nest.cut is not None else 1
        for lo in range(0, max(extent, 1), step):
            hi = min(lo + step, extent)
            inner = ([] if nest.cut is None else [nest.cut]) + ([last] if nest.kind == "mac" else [])
            order = [i for i in reduce if i not in inner] + inner
            ranges = [range(lo, hi) if i == nest.cut else range(trips[i]) for i in order]
            if nest.kind == "mac":
                ranges[-1] = range(trips[last] - 1, -1, -1)
            points = [dict(zip(order, p, strict=True)) for p in product(*ranges)]
            if nest.lanes:
                first = lo if nest.cut == last else 0
                order = sorted(order, key=lambda i: i == last)  # the lane loop innermost, as always
                ranges = [range(lo, hi) if i == nest.cut else range(trips[i]) for i in order]
                points = [dict(zip(order, p, strict=True)) for p in product(*ranges)]
                lanes = [[p for p in points if (p[last] - first) % 16 == lane] for lane in range(16)]
                parts.append(combine_tree([chain(p) if p else None for p in lanes]))
            else:
                parts.append(chain(points))
        if nest.kind in ("max", "min"):
            total = parts[0]
            for p in parts[1:]:
                total = {"max": larger, "min": smaller}[nest.kind](total, p)  # type: ignore[arg-type]
        else:
            total = combine_tree(parts)
        assert total is not None
        out[address(nest.out, (*base, *(0 for _ in reduce)))] = total
    return out


_SPECIAL = (
    0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x80800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001,
    0x7F7FFFFF, 0x3F800000, 0xBF800000,
)  # fmt: skip


def hard_floats(rng: np.random.Generator, n: int) -> np.ndarray:
    """f32 data that meets every corner: random bits, near powers of two, subnormals, zeros, infinities, NaN."""
    bits = rng.integers(0, 2**32, n, np.uint64).astype(np.uint32)
    near = (
        ((rng.integers(0, 255, n) << 23) + rng.integers(-2, 3, n))
        .astype(np.int64)
        .clip(0, 0x7F800000)
        .astype(np.uint32)
    )
    small = rng.integers(0, 0x01000000, n).astype(np.uint32)
    plain = rng.standard_normal(n).astype(np.float32).view(np.uint32)
    special = rng.choice(np.array(_SPECIAL, np.uint32), n)
    sign = rng.integers(0, 2, n).astype(np.uint32) << np.uint32(31)
    chosen = np.choose(rng.integers(0, 5, n), [bits, near ^ sign, small ^ sign, plain, special])
    return chosen.astype(np.uint32).view(np.float32)
