"""Products and windows: matrix products, convolutions, pools, resizing; quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.build import LIMIT, Build, Tensor
from tests.fuzz.ops import NO_NAN, SOME, SUM, op, tame
from tests.fuzz.oracle import Reject

CALM = tame(1e4)


def calm(b: Build, rank: int | None = None, kind: str = "f4") -> Tensor:
    return b.operand((kind,), (lambda r: r >= 1) if rank is None else (lambda r: r == rank), CALM, "tame")


@op("MatMul")
def matmul(b: Build, name: str) -> None:
    kind = b.choice(("f4", "f4", "f4", "f8", "i4"))
    x = b.operand((kind,), lambda r: 1 <= r <= 4, CALM, "tame")
    k = x.shape[-1]
    batch = b.broadcastable(x.shape[:-2]) if x.rank > 2 and b.chance(0.5) else ()
    shape = (k,) if b.chance(0.15) else (*batch, k, b.extent())
    fitting = [t for t in b.pool if t.kind == kind and t.rank == 2 and t.shape[0] == k and CALM(t)]
    y = b.choice(fitting) if fitting and b.chance(0.4) else b.fresh(kind, shape, "tame")
    if x.array.size * y.array.size > 64 * LIMIT:
        raise Reject("size")
    b.node(name, [x, y], noise=SUM)


@op("Gemm")
def gemm(b: Build, name: str) -> None:
    x = calm(b, 2)
    if not SOME(x):
        raise Reject("onnxruntime forgets beta")
    ta, tb = b.chance(0.4), b.chance(0.4)
    m, k = x.shape[::-1] if ta else x.shape
    n = b.extent()
    operands = [x, b.fresh("f4", (n, k) if tb else (k, n), "tame")]
    if b.chance(0.7):
        shape = b.choice(((n,), (m, n), (1, n), (m, 1), (1,), ()))
        operands.append(b.fresh("f4", shape, "tame"))
    attrs = {"transA": int(ta), "transB": int(tb)}
    if b.chance(0.5):
        attrs |= {"alpha": 0.5, "beta": -2.0}
    b.node(name, operands, attrs, noise=SUM)


@op("Einsum")
def einsum(b: Build, name: str) -> None:
    equation = b.choice(
        ("ij,jk->ik", "bij,bjk->bik", "ij->ji", "ij->i", "i,j->ij", "ij,ij->", "bhid,bhjd->bhij", "ii->i")
    )
    sizes = {c: b.choice((1, 2, 3, 5)) for c in "ijkbhd"}
    terms = equation.partition("->")[0].split(",")
    b.node(name, [b.fresh("f4", [sizes[c] for c in t], "tame") for t in terms], {"equation": equation}, noise=SUM)


def window(b: Build, extents: tuple[int, ...], *, pool: bool) -> dict[str, Any]:
    """Attributes of a window that fits these extents."""
    attrs: dict[str, Any] = {}
    kernel = [b.rng.randint(1, min(3, d)) for d in extents]
    attrs["kernel_shape"] = kernel
    if b.chance(0.6):
        attrs["strides"] = [b.choice((1, 2, 3)) for _ in extents]
    dilations = [b.choice((1, 2)) if (k - 1) * 2 + 1 <= d else 1 for k, d in zip(kernel, extents, strict=True)]
    if b.chance(0.3) and any(d > 1 for d in dilations):
        attrs["dilations"] = dilations
    if b.chance(0.3):
        attrs["auto_pad"] = b.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        span = [(k - 1) * d + 1 for k, d in zip(kernel, attrs.get("dilations", [1] * len(kernel)), strict=True)]
        steps = attrs.get("strides", [1] * len(kernel))
        if any((-(-n // s) - 1) * s + k - n < -1 for n, s, k in zip(extents, steps, span, strict=True)):
            raise Reject("SAME with strides beyond the window: no two oracles agree where it starts")
        attrs.pop("dilations", None)
    elif b.chance(0.6):
        most = [k - 1 for k in kernel] if pool else [2] * len(kernel)
        attrs["pads"] = [b.rng.randint(0, m) for m in (*most, *most)]
    return attrs


def image(b: Build, kind: str = "f4", channels: int | None = None) -> Tensor:
    spatial = b.choice((1, 2, 2, 2, 3))
    fitting = [t for t in b.pool if t.kind == kind and t.rank in (3, 4, 5) and SOME(t) and CALM(t)]
    if channels is None and fitting and b.chance(0.6):
        return b.choice(fitting)
    extents = [b.choice((1, 2, 3, 5, 7, 8)) for _ in range(spatial)]
    return b.fresh(kind, (b.choice((1, 1, 2)), channels or b.choice((1, 2, 3, 4, 6)), *extents), "tame", constant=0.05)


@op("Conv")
def conv(b: Build, name: str) -> None:
    x = image(b)
    c = x.shape[1]
    group = b.choice([g for g in range(1, c + 1) if c % g == 0])
    out = group * b.choice((1, 2, 3))
    attrs = window(b, x.shape[2:], pool=False)
    w = b.fresh("f4", (out, c // group, *attrs["kernel_shape"]), "tame", constant=0.8)
    operands = [x, w, *([b.fresh("f4", (out,), "tame")] if b.chance(0.6) else [])]
    b.node(name, operands, {**attrs, "group": group}, noise=SUM)


@op("ConvTranspose")
def conv_transpose(b: Build, name: str) -> None:
    x = image(b)
    c = x.shape[1]
    group = b.choice([g for g in range(1, c + 1) if c % g == 0])
    out = b.choice((1, 2, 3))
    attrs = window(b, x.shape[2:], pool=True)
    attrs.pop("auto_pad", None)
    if "strides" in attrs and b.chance(0.4):
        attrs["output_padding"] = [b.rng.randint(0, s - 1) for s in attrs["strides"]]
    w = b.fresh("f4", (c, out, *attrs["kernel_shape"]), "tame", constant=0.8)
    operands = [x, w, *([b.fresh("f4", (out * group,), "tame")] if b.chance(0.6) else [])]
    b.node(name, operands, {**attrs, "group": group}, noise=SUM)


@op("MaxPool", "AveragePool")
def pool(b: Build, name: str) -> None:
    x = image(b)
    attrs = window(b, x.shape[2:], pool=True)
    if name == "AveragePool":
        attrs["count_include_pad"] = int(b.chance(0.5))
        if b.opset < 19:
            attrs.pop("dilations", None)
    if b.chance(0.3) and "auto_pad" not in attrs:
        attrs["ceil_mode"] = 1
    b.node(name, [x], attrs, noise=0 if name == "MaxPool" else SUM)


@op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(b: Build, name: str) -> None:
    b.node(name, [image(b)], noise=0 if name == "GlobalMaxPool" else SUM)


@op("LRN")
def lrn(b: Build, name: str) -> None:
    x = b.fresh("f4", (1, b.choice((1, 3, 5)), 2, 3), "tame")
    b.node(name, [x], {"size": b.choice((1, 3, 5)), "alpha": 0.1, "beta": 0.75, "bias": 1.0}, noise=100)


@op("Resize")
def resize(b: Build, name: str) -> None:
    x = b.fresh("f4", (1, b.choice((1, 2)), b.choice((1, 2, 3, 5)), b.choice((2, 3, 4))), "tame")
    mode = b.choice(("nearest", "linear", "cubic"))
    attrs: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": b.choice(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")),
    }
    if mode == "nearest":
        attrs["nearest_mode"] = b.choice(("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"))
    factors = [1.0, 1.0, *(b.choice((0.5, 1.0, 2.0, 3.0, 1.5)) for _ in range(2))]
    sizes = [int(d * f) for d, f in zip(x.shape, factors, strict=True)]
    if min(sizes) < 1 or any(d * f != n for d, f, n in zip(x.shape, factors, sizes, strict=True)):
        raise Reject("whether the coordinates follow from the factors or from the sizes is not said")
    if mode == "cubic" and attrs["coordinate_transformation_mode"] == "pytorch_half_pixel" and 1 in sizes[2:]:
        raise Reject("onnx's reference evaluator forgets that a single pixel is at 0")
    if b.chance(0.5):
        operands = [x, None, b.ints(factors, "f4")]  # type: ignore[arg-type]
    else:
        operands = [x, None, None, b.ints(sizes)]
    b.node(name, operands, attrs, noise=100 if mode != "nearest" else 0)


@op("GridSample")
def grid_sample(b: Build, name: str) -> None:
    n, h, w = b.choice((1, 2)), b.choice((2, 3, 5)), b.choice((2, 4))
    x = b.fresh("f4", (n, b.choice((1, 3)), h, w), "tame")
    grid = b.given((b.numbers.random((n, 3, 2, 2)) * 2.6 - 1.3).astype("f4"))
    modes = ("linear", "nearest", "cubic") if b.opset >= 20 else ("bilinear", "nearest", "bicubic")
    attrs = {
        "mode": b.choice(modes), "padding_mode": b.choice(("zeros", "border", "reflection")),
        "align_corners": int(b.chance(0.5)),
    }  # fmt: skip
    b.node(name, [x, grid], attrs, noise=2000)


# ---- quantised -------------------------------------------------------------------------------------------------------


def scale_and_zero(b: Build, kind: str, shape: tuple[int, ...]) -> list[Tensor]:
    scale = b.given((b.numbers.random(shape) + 0.1).astype("f4") * np.float32(0.25))
    return [scale, b.given(b.numbers.integers(0, 5, shape).astype(kind))]


@op("QuantizeLinear")
def quantize(b: Build, name: str) -> None:
    x = b.operand(("f4",), lambda r: 1 <= r <= 4, lambda t: NO_NAN(t) and tame(1e6)(t), "tame")
    axis = b.axis(x.rank)
    shape = () if b.chance(0.5) else (x.shape[axis % x.rank],)
    b.node(name, [x, *scale_and_zero(b, b.choice(("u1", "i1")), shape)], {"axis": axis} if shape else {})


@op("DequantizeLinear")
def dequantize(b: Build, name: str) -> None:
    x = b.operand(("u1", "i1"), lambda r: 1 <= r <= 4)
    axis = b.axis(x.rank)
    shape = () if b.chance(0.5) else (x.shape[axis % x.rank],)
    b.node(name, [x, *scale_and_zero(b, x.kind, shape)], {"axis": axis} if shape else {}, noise=1.0)


@op("DynamicQuantizeLinear")
def dynamic_quantize(b: Build, name: str) -> None:
    x = b.operand(("f4",), lambda r: 1 <= r <= 3, lambda t: SOME(t) and CALM(t), "tame")
    if any(0 < np.abs(v).max() < 1e-30 for v in x.versions):
        raise Reject("the scale is subnormal")
    b.node(name, [x], outputs=3, noise=2.0)


@op("MatMulInteger")
def matmul_integer(b: Build, name: str) -> None:
    x = b.operand(("u1",), lambda r: r == 2, SOME)
    y = b.fresh(b.choice(("u1", "i1")), (x.shape[1], b.choice((1, 3, 8))))
    zeros = [b.given(np.asarray(3, "u1")), b.given(np.asarray(2, y.kind))] if b.chance(0.6) else []
    b.node(name, [x, y, *zeros])
