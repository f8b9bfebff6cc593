"""Ops that move data, or find it: views, slices, pads, gathers, scatters, sorts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.build import INTS, LIMIT, Build, F, Tensor
from tests.fuzz.ops import NO_NAN, SOME, axes_of, op, tame
from tests.fuzz.oracle import Reject

ANY = (*F, "f4", "f4", *INTS, "b1")


def any_tensor(b: Build, least: int = 0, most: int = 6, *, some: bool = False) -> Tensor:
    return b.operand(ANY, lambda r: least <= r <= most, SOME if some else lambda t: True)


@op("Reshape")
def reshape(b: Build, name: str) -> None:
    x = any_tensor(b)
    rest, shape = list(range(2, 40)), []
    size = x.array.size
    if size == 0:
        shape = list(x.shape)
        b.rng.shuffle(shape)
        b.node(name, [x, b.ints(shape)], {"allowzero": 1} if b.opset >= 14 else {})
        return
    while size > 1 and len(shape) < 4:
        divisors = [d for d in rest if size % d == 0]
        d = b.choice(divisors) if divisors and b.chance(0.7) else size
        shape.append(d)
        size //= d
    if size > 1:
        shape.append(size)
    for _ in range(b.choice((0, 0, 1, 2))):
        shape.insert(b.rng.randint(0, len(shape)), 1)
    if shape and b.chance(0.4):
        shape[b.rng.randrange(len(shape))] = -1
    shape = [0 if i < x.rank and d == x.shape[i] and d > 0 and b.chance(0.2) else d for i, d in enumerate(shape)]
    b.node(name, [x, b.ints(shape)])


@op("Flatten")
def flatten(b: Build, name: str) -> None:
    x = any_tensor(b)
    b.node(name, [x], {"axis": b.rng.randint(-x.rank, x.rank)})


@op("Transpose")
def transpose(b: Build, name: str) -> None:
    x = any_tensor(b)
    perm = list(range(x.rank))
    b.rng.shuffle(perm)
    b.node(name, [x], {"perm": perm} if perm and b.chance(0.9) else {})


@op("Unsqueeze")
def unsqueeze(b: Build, name: str) -> None:
    x = any_tensor(b, most=4)
    n = b.choice((1, 1, 2))
    axes = b.rng.sample(range(x.rank + n), n)
    b.node(name, [x, b.ints([a - x.rank - n if b.chance(0.4) else a for a in axes])])


@op("Squeeze")
def squeeze(b: Build, name: str) -> None:
    x = any_tensor(b)
    ones = [i for i, d in enumerate(x.shape) if d == 1]
    axes = [a - x.rank if b.chance(0.4) else a for a in b.some(ones, min(1, len(ones)))]
    b.node(name, [x, b.ints(axes)] if axes else [x])


@op("Concat")
def concat(b: Build, name: str) -> None:
    x = any_tensor(b, 1)
    axis = b.axis(x.rank)
    parts = [x]
    for _ in range(b.choice((0, 1, 1, 2, 3))):
        fitting = [
            t for t in b.pool
            if t.kind == x.kind and t.rank == x.rank
            and all(i == axis % x.rank or d == e for i, (d, e) in enumerate(zip(t.shape, x.shape, strict=True)))
        ]  # fmt: skip
        shape = [b.extent() if i == axis % x.rank else d for i, d in enumerate(x.shape)]
        parts.append(b.choice(fitting) if fitting and b.chance(0.6) else b.fresh(x.kind, shape))
    b.rng.shuffle(parts)
    b.node(name, parts, {"axis": axis})


@op("Split")
def split(b: Build, name: str) -> None:
    x = any_tensor(b, 1)
    axis = b.axis(x.rank)
    extent = x.shape[axis % x.rank]
    count = b.choice((1, 2, 2, 3))
    cuts = sorted(b.rng.randint(0, extent) for _ in range(count - 1))
    sizes = [j - i for i, j in zip([0, *cuts], [*cuts, extent], strict=True)]
    if b.opset >= 18 and extent >= count and b.chance(0.3):
        b.node(name, [x], {"axis": axis, "num_outputs": count}, outputs=count)
    else:
        b.node(name, [x, b.ints(sizes)], {"axis": axis}, outputs=count)


@op("Slice")
def slice_(b: Build, name: str) -> None:
    x = any_tensor(b, 1)
    axes = [a % x.rank for a in axes_of(b, x.rank)]
    starts, ends, steps = [], [], []
    for a in axes:
        d = x.shape[a]
        starts.append(b.choice((b.rng.randint(-d - 1, d), 0, -1, 2**31 - 1)) if b.chance(0.9) else -(2**31))
        steps.append(b.choice((1, 1, 1, -1, 2, -2, 3)))
        # With a negative step onnxruntime takes the largest end for "to the start", which ONNX does not say.
        far = 2**63 - 1 if steps[-1] > 0 else -(2**62)
        ends.append(b.choice((b.rng.randint(-d - 1, d + 2), d, far)))
    operands = [x, b.ints(starts), b.ints(ends)]
    named = [a - x.rank if b.chance(0.3) else a for a in axes]
    operands.append(b.ints(named))
    if any(s != 1 for s in steps) or b.chance(0.3):
        operands.append(b.ints(steps))
    b.node(name, operands)


@op("Pad")
def pad(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "f8", "i4", "i8", "u1", "i1"), lambda r: 1 <= r <= 4, SOME)
    modes = ("constant", "constant", "edge", "reflect", *(("wrap",) if b.opset >= 19 else ()))
    mode = b.choice(modes)
    low, high = [], []
    for d in x.shape:
        most = min(d - 1, 4) if mode == "reflect" else min(d, 3) if mode == "wrap" else 3
        least = -min(1, d - 1) if mode == "constant" and b.chance(0.2) else 0
        low.append(b.rng.randint(least, most) if b.chance(0.6) else 0)
        high.append(b.rng.randint(least, most) if b.chance(0.6) else 0)
    operands: list[Tensor | None] = [x, b.ints([*low, *high])]
    if mode == "constant" and b.chance(0.6):
        operands.append(b.given(b.data(x.kind, ())))
    b.node(name, operands, {"mode": mode})


@op("Expand")
def expand(b: Build, name: str) -> None:
    x = any_tensor(b, most=4)
    shape = list(np.broadcast_shapes(x.shape, b.broadcastable(x.shape)))
    if shape and b.chance(0.3):
        shape[-1] = 1 if x.rank else shape[-1]
    b.node(name, [x, b.ints(shape)])


@op("Tile")
def tile(b: Build, name: str) -> None:
    x = any_tensor(b, most=4)
    b.node(name, [x, b.ints([b.choice((1, 1, 2, 3)) if b.chance(0.95) else 0 for _ in x.shape])])


@op("Trilu")
def trilu(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "f8", "i8", "i4", "b1"), lambda r: r >= 2)
    operands = [x] if b.chance(0.4) else [x, b.ints(b.rng.randint(-4, 4))]  # type: ignore[arg-type]
    b.node(name, operands, {"upper": int(b.chance(0.5))})


@op("DepthToSpace", "SpaceToDepth")
def depth(b: Build, name: str) -> None:
    s = b.choice((1, 2, 3))
    n, c, h, w = (b.choice((1, 2, 3)) for _ in range(4))
    shape = (n, c * s * s, h, w) if name == "DepthToSpace" else (n, c, h * s, w * s)
    attrs: dict[str, Any] = {"blocksize": s}
    if name == "DepthToSpace":
        attrs["mode"] = b.choice(("DCR", "CRD"))
    b.node(name, [b.fresh("f4", shape)], attrs)


# ---- indices ---------------------------------------------------------------------------------------------------------


def indices(b: Build, extent: int, shape: tuple[int, ...], kind: str | None = None) -> Tensor:
    """Run-time indices below the extent, some counted from the end."""
    if extent == 0 and int(np.prod(shape)):
        raise Reject("nothing to index")
    low = -extent if b.chance(0.5) else 0
    array = b.numbers.integers(low, extent, shape) if int(np.prod(shape)) else np.zeros(shape)
    return b.given(array.astype(kind or b.choice(("i8", "i8", "i4"))))


@op("Gather")
def gather(b: Build, name: str) -> None:
    x = any_tensor(b, 1, 4)
    axis = b.axis(x.rank)
    b.node(name, [x, indices(b, x.shape[axis % x.rank], b.shape(b.choice((0, 1, 1, 2))))], {"axis": axis})


@op("GatherElements")
def gather_elements(b: Build, name: str) -> None:
    x = any_tensor(b, 1, 4, some=True)
    axis = b.axis(x.rank)
    shape = tuple(b.choice((1, 2, 5)) if i == axis % x.rank else b.rng.randint(1, d) for i, d in enumerate(x.shape))
    b.node(name, [x, indices(b, x.shape[axis % x.rank], shape)], {"axis": axis})


@op("GatherND")
def gather_nd(b: Build, name: str) -> None:
    x = any_tensor(b, 1, 4, some=True)
    batch = b.rng.randint(0, x.rank - 1) if b.chance(0.4) else 0
    depth = b.rng.randint(1, x.rank - batch)
    shape = (*x.shape[:batch], *b.shape(b.choice((0, 1, 2))), depth)
    if int(np.prod(shape)) == 0 or int(np.prod(shape)) > LIMIT:
        raise Reject("size")
    index = np.stack([b.numbers.integers(-d, d, shape[:-1]) for d in x.shape[batch : batch + depth]], -1)
    b.node(name, [x, b.given(index.astype("i8"))], {"batch_dims": batch})


@op("ScatterElements")
def scatter_elements(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "i4", "i8", "f8"), lambda r: 1 <= r <= 4, lambda t: SOME(t) and tame(1e6)(t))
    axis = b.axis(x.rank)
    shape = tuple(b.rng.randint(1, d) for d in x.shape)
    reduction = b.choice(("none", "none", "add", "mul", *(("max", "min") if b.opset >= 18 else ())))
    if b.opset < 16:
        reduction = "none"
    extent = x.shape[axis % x.rank]
    if reduction == "none":  # each target once
        order = np.argsort(b.numbers.random((*shape[: axis % x.rank], extent, *shape[axis % x.rank + 1 :])), axis=axis)
        index = np.take(order, np.arange(shape[axis % x.rank]), axis=axis)
        given = b.given(np.where(b.numbers.random(shape) < 0.3, index - extent, index).astype("i8"))
    else:
        given = indices(b, extent, shape, "i8")
    attrs: dict[str, Any] = {"axis": axis}
    if reduction != "none":
        attrs["reduction"] = reduction
    b.node(
        name, [x, given, b.fresh(x.kind, shape, "tame")], attrs, noise=0 if reduction in ("none", "max", "min") else 40
    )


@op("ScatterND")
def scatter_nd(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "i4", "i8"), lambda r: 1 <= r <= 3, lambda t: SOME(t) and tame(1e6)(t))
    depth = b.rng.randint(1, x.rank)
    count = b.rng.randint(1, 5)
    reduction = b.choice(("none", "none", "add", "mul", "max", "min")) if b.opset >= 18 else "none"
    index = np.stack([b.numbers.integers(-d, d, count) for d in x.shape[:depth]], -1)
    if reduction == "none":
        whole = {tuple(int(i) % d for i, d in zip(row, x.shape, strict=False)) for row in index}
        index = np.asarray(sorted(whole))
    updates = b.fresh(x.kind, (len(index), *x.shape[depth:]), "tame")
    attrs = {} if reduction == "none" else {"reduction": reduction}
    b.node(
        name, [x, b.given(index.astype("i8")), updates], attrs, noise=0 if reduction in ("none", "max", "min") else 40
    )


@op("OneHot")
def one_hot(b: Build, name: str) -> None:
    depth = b.choice((1, 2, 5))
    index = b.given(b.numbers.integers(-depth - 1, depth + 1, b.shape(b.choice((0, 1, 2)))).astype("i8"))
    values = b.given(b.data(b.choice(("f4", "i8")), (2,), "tame"))
    # onnxruntime adds the difference of the two values to the first.
    axis = b.rng.randint(-index.rank - 1, index.rank)
    b.node(name, [index, b.ints(depth), values], {"axis": axis}, noise=20)  # type: ignore[arg-type]


@op("TopK")
def top_k(b: Build, name: str) -> None:
    x = b.operand(("f4", "f4", "i8", "f8"), lambda r: 1 <= r <= 3, lambda t: SOME(t) and NO_NAN(t))
    axis = b.axis(x.rank)
    k = b.ints([b.rng.randint(0 if b.chance(0.1) else 1, x.shape[axis % x.rank])])
    b.node(name, [x, k], {"axis": axis, "largest": int(b.chance(0.5)), "sorted": 1}, outputs=2)


@op("ReverseSequence")
def reverse_sequence(b: Build, name: str) -> None:
    x = b.operand(("f4", "i8"), lambda r: 2 <= r <= 3, SOME)
    time = b.choice((0, 1))
    lengths = b.given(b.numbers.integers(0, x.shape[time] + 1, x.shape[1 - time]).astype("i8"))
    b.node(name, [x, lengths], {"time_axis": time, "batch_axis": 1 - time})


@op("NonZero")
def non_zero(b: Build, name: str) -> None:
    # Whether a computed number is exactly 0 is rounding's to say.
    x = b.operand(("f4", "i8", "b1", "i4"), lambda r: 1 <= r <= 3, lambda t: NO_NAN(t) and _exact(t))
    b.node(name, [x])


def _exact(t: Tensor) -> bool:
    return all(np.array_equal(v, t.array) for v in t.versions)


@op("Compress")
def compress(b: Build, name: str) -> None:
    x = b.operand(("f4", "i8", "i4"), lambda r: 1 <= r <= 3, SOME)
    axis = b.axis(x.rank) if b.chance(0.7) else None
    extent = x.array.size if axis is None else x.shape[axis % x.rank]
    mask = b.fresh("b1", (b.rng.randint(1, extent) if b.chance(0.3) else extent,))
    b.node(name, [x, mask], {} if axis is None else {"axis": axis})


@op("Shape", "Size")
def shape_of(b: Build, name: str) -> None:
    x = any_tensor(b)
    attrs = {"start": -1} if name == "Shape" and x.rank and b.opset >= 15 and b.chance(0.3) else {}
    b.node(name, [x], attrs)
