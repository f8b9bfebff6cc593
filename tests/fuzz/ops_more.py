"""Recurrent layers, attention, transforms, detection: ops with many operands and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.build import Build, Tensor
from tests.fuzz.ops import SOME, SUM, op, tame
from tests.fuzz.oracle import Reject


@op("RNN", "GRU", "LSTM")
def recurrent(b: Build, name: str) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[name]
    t, n, i, h = b.choice((1, 2, 4)), b.choice((1, 2, 3)), b.choice((1, 3, 4)), b.choice((1, 2, 5))
    direction = b.choice(("forward", "reverse", "bidirectional"))
    d = 2 if direction == "bidirectional" else 1

    def part(shape: tuple[int, ...], chance: float = 1.0) -> Tensor | None:
        return b.given((b.numbers.standard_normal(shape) * 0.5).astype("f4")) if b.chance(chance) else None

    operands: list[Tensor | None] = [part((t, n, i)), part((d, gates * h, i)), part((d, gates * h, h))]
    operands.append(part((d, 2 * gates * h), 0.6))
    # onnxruntime sets the outputs of sequences without a step to other values than ONNX says.
    lengths = b.numbers.integers(1, t + 1, n).astype("i4")
    operands.append(b.given(lengths) if b.chance(0.4) else None)
    operands.append(part((d, n, h), 0.5))
    attrs: dict[str, Any] = {"hidden_size": h, "direction": direction}
    if name == "LSTM":
        operands += [part((d, n, h), 0.5), part((d, 3 * h), 0.4)]
    if name == "GRU":
        attrs["linear_before_reset"] = int(b.chance(0.5))
    while operands[-1] is None:
        operands.pop()
    b.node(name, operands, attrs, outputs=3 if name == "LSTM" else 2, noise=200)


@op("Attention")
def attention(b: Build, name: str) -> None:
    n, heads, kv = b.choice((1, 2)), 4, b.choice((1, 2, 4))
    q, k, e = b.choice((1, 2, 5)), b.choice((1, 3, 5)), b.choice((2, 4))
    x = [b.fresh("f4", s, "tame") for s in ((n, heads, q, e), (n, kv, k, e), (n, kv, k, e))]
    attrs: dict[str, Any] = {}
    if b.chance(0.4) and q <= k:
        attrs["is_causal"] = 1
    if b.chance(0.3):
        attrs["softcap"] = 2.0
    if b.chance(0.3):
        attrs["scale"] = 0.3
    if b.chance(0.5):
        x.append(b.fresh("f4", (q, k), "tame"))
    b.node(name, x, attrs, noise=400)


@op("ConstantOfShape")
def constant_of_shape(b: Build, name: str) -> None:
    b.node(name, [b.ints(list(b.shape(b.choice((0, 1, 2)))))])


@op("Range")
def range_(b: Build, name: str) -> None:
    kind = b.choice(("i8", "i4", "f4"))
    start, count, step = b.rng.randint(-5, 5), b.rng.randint(0, 9), b.choice((1, 2, -1, -3))
    values = (start, start + count * step, step)
    b.node(name, [b.ints(v, kind) for v in values])  # type: ignore[arg-type]


@op("EyeLike")
def eye_like(b: Build, name: str) -> None:
    x = b.operand(("f4", "i4"), lambda r: r == 2)
    b.node(name, [x], {"k": b.rng.randint(-2, 2)})


@op("GroupNormalization")
def group_norm(b: Build, name: str) -> None:
    groups, each = b.choice((1, 2, 3)), b.choice((1, 2))
    x = b.fresh("f4", (b.choice((1, 2)), groups * each, *b.shape(b.choice((1, 2)))), "tame")
    if not SOME(x):
        raise Reject("empty")
    size = groups * each if b.opset >= 21 else groups
    attrs = {"num_groups": groups, "epsilon": 1e-3}
    b.node(name, [x, b.fresh("f4", (size,), "tame"), b.fresh("f4", (size,), "tame")], attrs, noise=400)


@op("LpNormalization")
def lp_norm(b: Build, name: str) -> None:
    x = b.operand(("f4",), lambda r: r > 0, lambda t: SOME(t) and tame(1e4)(t) and (t.array != 0).all(), "tame")
    b.node(name, [x], {"axis": b.axis(x.rank), "p": b.choice((1, 2))}, noise=100)


@op("LpPool")
def lp_pool(b: Build, name: str) -> None:
    x = b.fresh("f4", (1, 2, b.choice((3, 5)), b.choice((3, 4))), "tame")
    attrs = {"kernel_shape": [2, b.choice((1, 2))], "p": b.choice((1, 2, 3)), "strides": [b.choice((1, 2)), 1]}
    b.node(name, [x], attrs, noise=200)


@op("Det")
def det(b: Build, name: str) -> None:
    n = b.choice((1, 2, 3, 4))
    x = b.fresh("f4", (*b.shape(b.choice((0, 0, 1))), n, n), "tame")
    b.node(name, [x], noise=2000)


@op("Col2Im")
def col2im(b: Build, name: str) -> None:
    h, w, kh, kw = b.choice((3, 4)), b.choice((3, 5)), b.choice((1, 2)), b.choice((1, 2, 3))
    blocks = (h - kh + 1) * (w - kw + 1)
    x = b.fresh("f4", (1, b.choice((1, 2)) * kh * kw, blocks), "tame")
    b.node(name, [x, b.ints((h, w)), b.ints((kh, kw))], noise=SUM)


@op("ConvInteger")
def conv_integer(b: Build, name: str) -> None:
    c, k = b.choice((1, 2, 3)), b.choice((1, 2, 3))
    x = b.fresh("u1", (1, c, b.choice((3, 5)), 4))
    w = b.fresh(b.choice(("u1", "u1", "i1")), (b.choice((1, 4)), c, k, k), "positive")
    zeros = [b.given(np.asarray(3, "u1")), b.given(np.asarray(1, w.kind))] if b.chance(0.6) else []
    attrs = {"pads": [1, 0, 1, 0]} if b.chance(0.4) and not zeros else {}
    b.node(name, [x, w, *zeros], attrs)


@op("QLinearMatMul")
def qlinear_matmul(b: Build, name: str) -> None:
    m, k, n = b.choice((1, 3)), b.choice((1, 4, 9)), b.choice((1, 5))
    scale = [b.given(np.asarray(v, "f4")) for v in (0.05, 0.1, 0.2)]
    zero = [b.given(np.asarray(v, "u1")) for v in (3, 120, 128)]
    x, y = b.fresh("u1", (m, k), "positive"), b.given(b.numbers.integers(0, 255, (k, n)).astype("u1"))
    b.node(name, [x, scale[0], zero[0], y, scale[1], zero[1], scale[2], zero[2]])


@op("DFT")
def dft(b: Build, name: str) -> None:
    if b.opset < 20:
        raise Reject("axis is an attribute")
    n = b.choice((1, 2, 3, 4, 5, 8, 12))
    x = b.fresh("f4", (b.choice((1, 2)), n, b.choice((1, 2))), "tame")
    inverse = b.chance(0.4)
    attrs = {"inverse": int(inverse), "onesided": int(not inverse and x.shape[-1] == 1 and b.chance(0.4))}
    b.node(name, [x, None, b.ints(1)], attrs, noise=200)  # type: ignore[arg-type]


@op("NonMaxSuppression")
def nms(b: Build, name: str) -> None:
    n = b.choice((1, 3, 6))
    corner = b.numbers.random((1, n, 2)) * 4
    boxes = np.concatenate([corner, corner + 0.5 + b.numbers.random((1, n, 2)) * 3], -1).astype("f4")
    scores = b.numbers.random((1, b.choice((1, 2)), n)).astype("f4")
    operands = [b.given(boxes), b.given(scores), b.ints([b.choice((1, 2, 9))])]
    b.node(name, [*operands, b.given(np.asarray([0.4], "f4")), b.given(np.asarray([0.2], "f4"))])


@op("RoiAlign")
def roi_align(b: Build, name: str) -> None:
    x = b.fresh("f4", (1, b.choice((1, 2)), 6, 5), "tame")
    low = b.numbers.random((2, 2)) * 2
    rois = np.concatenate([low, low + 1 + b.numbers.random((2, 2)) * 2], -1).astype("f4")
    attrs = {
        "output_height": 2, "output_width": b.choice((1, 3)), "sampling_ratio": b.choice((0, 2)),
        "mode": "avg", "coordinate_transformation_mode": b.choice(("half_pixel", "output_half_pixel")),
    }  # fmt: skip
    b.node(name, [x, b.given(rois), b.given(np.zeros(2, "i8"))], attrs, noise=2000)
