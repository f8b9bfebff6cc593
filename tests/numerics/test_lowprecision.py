"""Minifloats against ml_dtypes: every code decoded, dense samples with ties encoded; f16 and bf16 rounding."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.numpy_helper import to_float8e8m0

from d1c.ops.graph.cast import BitcastAttrs, cast_array, cast_attrs
from d1c.ops.opdef import opdef
from d1c.target.dtypes import NARROW, dtype, from_numpy
from d1c.target.kernel import COMPUTE_TYPE, Loop, Nest, Operand
from d1c.target.lowprecision import FORMATS, ROUND_MODES, SCALE, decode, encode, round_bf16, round_f16
from d1c.target.numerics import run_nest
from d1c.target.vector import NumpyBuilder, Recorder, round_to, widen

B = NumpyBuilder()
MINIFLOATS = [n for n in FORMATS if n != "f16"]


def codes(name: str) -> np.ndarray:
    """Every code, as storage."""
    t = dtype(name)
    return np.arange(1 << t.bits).astype(f"u{t.bytes}").view(t.numpy)


def samples(name: str, rng: np.random.Generator) -> np.ndarray:
    """Values, ties and their neighbours, ends of the range, specials, random bits, random exponents."""
    finite = codes(name).astype(np.float32)
    finite = np.unique(finite[np.isfinite(finite)]).astype(np.float64)
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(s * np.inf)) for s in (1, -1)]
    top = finite.max() * np.array(
        [1.001, 1.03, 1.0312, 1.0313, 1.0625, 1.0626, 1.124, 1.125, 1.126, 1.249, 1.25, 1.5, 2, 9]
    )
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, 1e-45, 1e-39, -1e-44])
    random = rng.integers(0, 2**32, 20000).astype(np.uint32).view(np.float32)
    near = np.ldexp(rng.normal(size=20000), rng.integers(-30, 20, 20000))
    parts = [finite, ties, *beside, top, -top, special, random[np.isfinite(random)], near]
    with np.errstate(over="ignore"):
        return np.concatenate([p.astype(np.float32) for p in parts])


def same_or_nan(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits but for NaN."""
    assert got.dtype == want.dtype
    kind = f"u{got.dtype.itemsize}"
    nan = np.isnan(got.astype(np.float32)) & np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.where(nan, 0, got.view(kind)), np.where(nan, 0, want.view(kind)))


@pytest.mark.parametrize("name", [*MINIFLOATS, SCALE, "f16"])
def test_every_code_decodes(name: str) -> None:
    given = codes(name)
    bits = given.view(f"u{given.dtype.itemsize}").astype(np.int32)
    same_or_nan(decode(B, bits, name), given.astype(np.float32))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", [*MINIFLOATS, "f16"])
def test_encoding_is_ml_dtypes(name: str, saturate: bool, rng: np.random.Generator) -> None:
    x, t = samples(name, rng), dtype(name)
    got = encode(B, x, name, saturate).astype(f"u{t.bytes}").view(t.numpy)
    with np.errstate(over="ignore"):
        info = ml_dtypes.finfo(t.numpy)
        want = (np.clip(x, np.float32(info.min), np.float32(info.max)) if saturate else x).astype(t.numpy)
    same_or_nan(got, want)


@pytest.mark.parametrize("mode", ROUND_MODES)
def test_scales_round_as_asked(mode: str, rng: np.random.Generator) -> None:
    x = np.abs(samples(SCALE, rng))
    x = x[~np.isinf(x)]
    got = cast_array(x, dtype(SCALE), True, mode)
    np.testing.assert_array_equal(got.view(np.uint8), to_float8e8m0(x, True, mode).view(np.uint8))
    ends = np.array([0, 2.0**-128, np.inf, np.nan, 3.4e38], np.float32)
    assert cast_array(ends, dtype(SCALE), True, mode).view(np.uint8).tolist()[2:4] == [254, 255]
    assert cast_array(ends, dtype(SCALE), False, mode).view(np.uint8).tolist()[:4] == [255, 255, 255, 255]


@pytest.mark.parametrize("t", [np.float16, ml_dtypes.bfloat16])
def test_rounding_in_f32(t: Any, rng: np.random.Generator) -> None:
    x = samples("f16", rng)
    if t is ml_dtypes.bfloat16:
        x = x[(np.abs(x) >= 2.0**-126) | (x == 0) | np.isnan(x)]
    with np.errstate(over="ignore"):
        same_or_nan((round_f16 if t is np.float16 else round_bf16)(B, x), x.astype(t).astype(np.float32))


@pytest.mark.parametrize("to", [d.name for d in NARROW] + ["u8", "i8", "i16", "u32", "u64", "bool", "f16", "bf16"])
@pytest.mark.parametrize("source", ["i32", "u8", "i4", "u2", "bool", "f16", "bf16", "f8e4m3fn", "f4e2m1"])
def test_casts_among_all_types(source: str, to: str, rng: np.random.Generator) -> None:
    """Values that every type can be asked for: small, so that no float is out of an integer's range."""
    low = 0 if source[0] in "ub" or to[0] == "u" or to == SCALE else -2
    x = rng.integers(low, 2, 64).astype(dtype(source).numpy)
    if to == SCALE:
        x = np.maximum(x.astype(np.int8), 1).astype(x.dtype)
    got, want = cast_array(x, dtype(to)), x.astype(np.float32).astype(dtype(to).numpy)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


def test_integers_wrap_and_floats_saturate_at_their_compute_type() -> None:
    def to(name: str, *values: float) -> list[int]:
        return cast_array(np.array(values, np.float32), dtype(name)).astype(np.int64).tolist()

    assert cast_array(np.array([200, -129, 300], np.int16), dtype("i8")).tolist() == [-56, 127, 44]
    assert cast_array(np.array([-9, 8, 15], np.int32), dtype("i4")).astype(int).tolist() == [7, -8, -1]
    assert to("i32", 1e20, -1e20, np.nan) == [2**31 - 1, -(2**31), 0]
    assert to("i4", -9, 8, 15.9) == [7, -8, -1]
    big = cast_array(np.array([2.0**63, 1.8e19, 1e30], np.float32), dtype("u64"))
    assert big.tolist() == [2**63, int(np.float32(1.8e19)), 2**64 - 1]
    back = np.array([2**64 - 1, 2**63 + 2**39, 2**63 + 2**39 + 1, 5], np.uint64)
    np.testing.assert_array_equal(cast_array(back, dtype("f32")), back.astype(np.float32))


PAIRS = (
    ("f16", "i16"), ("i16", "bf16"), ("bf16", "u16"), ("i32", "f32"), ("u32", "f32"), ("f8e5m2", "i8"),
    ("u8", "f8e4m3fn"), ("u4", "i4"), ("i4", "f4e2m1"),
)  # fmt: skip


@pytest.mark.parametrize("source,to", PAIRS)
def test_bits_stay_where_types_change(source: str, to: str, rng: np.random.Generator) -> None:
    a, b = dtype(source), dtype(to)
    raw = rng.integers(0, 1 << min(a.bits, 30), 500).astype(f"u{a.bytes}")
    x = raw.view(a.numpy)
    body = opdef("graph.bitcast").body
    assert body is not None
    got = round_to(body(B, BitcastAttrs(source, to), widen(x)), b)
    if a.is_float or b.is_float:
        same_or_nan(got, raw.view(b.numpy)) if b.is_float else None
        keep = ~np.isnan((x if a.is_float else raw.view(b.numpy)).astype(np.float32))
        np.testing.assert_array_equal(got.view(raw.dtype)[keep], raw[keep])
    else:
        assert got.tobytes() == raw.tobytes()


@pytest.mark.parametrize("name", ["f8e4m3fnuz", "f8e5m2", "f6e3m2", "f4e2m1", SCALE, "i4", "u2"])
def test_kernels_load_and_store_narrow_types(name: str, rng: np.random.Generator) -> None:
    """A cast to the type and one back as kernels, numpy's and LLVM's."""
    from d1rt.jit_nest import build

    x = rng.normal(scale=3, size=37).astype(np.float32)
    x = np.abs(x) if name[0] in "u" or name == SCALE else x

    def kernel(source: str, to: str) -> Nest:
        attrs = cast_attrs(dtype(source), dtype(to))
        r = Recorder(COMPUTE_TYPE[source])
        row = opdef("graph.cast").body
        assert row is not None
        body = r.body(row(r, attrs, *r.inputs))
        operands = (Operand(source, (1,), (None,)),)
        return Nest("map", (Loop("i", 37),), 1, operands, Operand(to, (1,), (None,)), 0, epilogue=body)

    nests = {"there": kernel("f32", name), "back": kernel(name, "f32")}
    code, wide = np.zeros(37, dtype(name).numpy), np.zeros(37, np.float32)
    run_nest(nests["there"], code, [x], [], [37], [])
    run_nest(nests["back"], wide, [code], [], [37], [])
    assert code.tobytes() == cast_array(x, dtype(name)).tobytes()
    kernels = build(nests)
    got, got_wide = np.zeros_like(code), np.zeros_like(wide)
    for kernel_name, out, operand in (("there", got, x), ("back", got_wide, got)):
        kernels.call(kernel_name, np.array([out.ctypes.data, operand.ctypes.data, 37], np.int64))
    assert (got.tobytes(), got_wide.tobytes()) == (code.tobytes(), wide.tobytes())
    assert from_numpy(code.dtype).name == name


@pytest.mark.parametrize("name", ["f16", "bf16", "f8e4m3fn", "f8e5m2"])
def test_f64_is_rounded_once(name: str) -> None:
    """Values a hair beside ties, which f32 would round onto them (as ml_dtypes does but for f16)."""
    with np.errstate(invalid="ignore"):
        finite = codes(name).astype(np.float64)
    finite = np.unique(finite[np.isfinite(finite) & (finite > 2.0**-120)])
    ties = (finite[1:] + finite[:-1]) / 2
    above, below = (cast_array(ties * (1 + s * 2.0**-40), dtype(name)).astype(np.float64) for s in (1, -1))
    np.testing.assert_array_equal(above, finite[1:])
    np.testing.assert_array_equal(below, finite[:-1])
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e300, 0.1])
    with np.errstate(over="ignore"):
        same_or_nan(cast_array(special, dtype(name), False), special.astype(dtype(name).numpy))
