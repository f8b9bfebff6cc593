"""Rules that read and write by index, sums along an axis, and Einsum, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from d1c.errors import UnsupportedOp

Build = Callable[..., onnx.ModelProto]
Compare = Callable[..., list[np.ndarray]]
RNG = np.random.default_rng(3)
I = np.int64  # noqa: E741


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(lo: int, hi: int, *shape: int) -> np.ndarray:
    return RNG.integers(lo, hi, shape)


def unlike(n: int, count: int) -> np.ndarray:
    """Different indices, negative and not."""
    at = RNG.permutation(n)[:count]
    return np.where(RNG.integers(0, 2, count) > 0, at, at - n)


X = rand(4, 5, 3)
POSITIONS = np.stack([unlike(4, 3), ints(-5, 5, 3)], 1)
# (op, run-time inputs, initializers, attributes, opset)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "gather_elements": ("GatherElements", {"x": X, "i": ints(-4, 4, 6, 5, 3)}, {}, {"axis": 0}, 13),
    "gather_elements_middle": ("GatherElements", {"x": X, "i": ints(-5, 5, 4, 2, 3)}, {}, {"axis": -2}, 13),
    "gather_elements_smaller": ("GatherElements", {"x": X, "i": ints(-3, 3, 2, 3, 7)}, {}, {"axis": 2}, 13),
    "gather_elements_int32": (
        "GatherElements",
        {"x": X, "i": ints(-3, 3, 4, 5, 1).astype(np.int32)},
        {},
        {"axis": 2},
        11,
    ),
    "gather_nd": ("GatherND", {"x": X, "i": np.stack([ints(-4, 4, 2, 6), ints(-5, 5, 2, 6)], -1)}, {}, {}, 13),
    "gather_nd_elements": ("GatherND", {"x": X, "i": ints(-3, 3, 7, 3)}, {}, {}, 13),
    "gather_nd_batch": ("GatherND", {"x": X, "i": ints(-5, 5, 4, 2, 1)}, {}, {"batch_dims": 1}, 13),
    "gather_nd_batches": ("GatherND", {"x": X, "i": ints(-3, 3, 4, 5, 1)}, {}, {"batch_dims": 2}, 13),
    "gather_nd_bool": ("GatherND", {"x": X > 0, "i": ints(-4, 4, 3, 1)}, {}, {}, 13),
    "scatter": (
        "Scatter",
        {"x": X, "i": unlike(5, 3)[None, :, None] + np.zeros((4, 3, 3), I), "u": rand(4, 3, 3)},
        {},
        {"axis": 1},
        10,
    ),
    "scatter_elements": (
        "ScatterElements",
        {"x": X, "i": unlike(4, 2)[:, None, None] + np.zeros((2, 4, 2), I), "u": rand(2, 4, 2)},
        {},
        {},
        13,
    ),
    "scatter_elements_whole": (
        "ScatterElements",
        {"x": X, "i": unlike(3, 2) + np.zeros((4, 5, 2), I), "u": rand(4, 5, 2)},
        {},
        {"axis": -1},
        13,
    ),
    **{
        f"scatter_elements_{how}": (
            "ScatterElements",
            {"x": X, "i": ints(-5, 5, 4, 7, 3), "u": rand(4, 7, 3)},
            {},
            {"axis": 1, "reduction": how},
            18,
        )
        for how in ("add", "mul", "max", "min")
    },
    "scatter_nd": ("ScatterND", {"x": X, "i": POSITIONS, "u": rand(3, 3)}, {}, {}, 13),
    "scatter_nd_rows": ("ScatterND", {"x": X, "i": unlike(4, 3)[:, None], "u": rand(3, 5, 3)}, {}, {}, 13),
    **{
        f"scatter_nd_{how}": (
            "ScatterND",
            {"x": X, "i": ints(-4, 4, 2, 6, 1), "u": rand(2, 6, 5, 3)},
            {},
            {"reduction": how},
            18,
        )
        for how in ("add", "mul", "max", "min")
    },
    "scatter_nd_ints": (
        "ScatterND",
        {"x": ints(0, 9, 6), "i": ints(-6, 6, 9, 1), "u": ints(0, 9, 9)},
        {},
        {"reduction": "add"},
        18,
    ),
    "one_hot": (
        "OneHot",
        {"i": ints(-7, 7, 2, 3)},
        {"depth": np.array(5), "values": np.array([2, 7], np.float32)},
        {},
        11,
    ),
    "one_hot_axis": ("OneHot", {"i": ints(-5, 5, 2, 3), "v": np.array([-1, 1])}, {}, {"axis": 1}, 11),
    "one_hot_floats": ("OneHot", {"i": ints(-5, 5, 4).astype(np.float32), "v": np.array([0, 3])}, {}, {"axis": 0}, 11),
    "eye_like": ("EyeLike", {"x": rand(3, 5)}, {}, {"k": 1}, 9),
    "eye_like_int": ("EyeLike", {"x": rand(5, 3)}, {}, {"k": -2, "dtype": onnx.TensorProto.INT64}, 9),
    "reverse_sequence": ("ReverseSequence", {"x": rand(6, 3, 2), "lens": np.array([1, 6, 4])}, {}, {}, 10),
    "reverse_sequence_batch": (
        "ReverseSequence",
        {"x": rand(3, 6, 2), "lens": np.array([2, 3, 1])},
        {},
        {"batch_axis": 0, "time_axis": 1},
        10,
    ),
    "triu": ("Trilu", {"x": rand(2, 4, 5), "k": np.array(1)}, {}, {}, 14),
    "tril": ("Trilu", {"x": ints(0, 9, 5, 3), "k": np.array(-2)}, {}, {"upper": 0}, 14),
    "tril_far": ("Trilu", {"x": rand(3, 3), "k": np.array(-7)}, {}, {"upper": 0}, 14),
    "arg_max": ("ArgMax", {"x": ints(0, 4, 3, 6, 2).astype(np.float32)}, {}, {"axis": 1}, 13),
    "arg_max_last": (
        "ArgMax",
        {"x": ints(0, 4, 3, 6).astype(np.float32)},
        {},
        {"axis": -1, "select_last_index": 1, "keepdims": 0},
        13,
    ),
    "arg_max_int": ("ArgMax", {"x": ints(-4, 4, 3, 6).astype(np.int32)}, {}, {"axis": 0}, 13),
    "arg_min": ("ArgMin", {"x": ints(0, 4, 6, 4).astype(np.float32)}, {}, {}, 13),
    "arg_min_last": ("ArgMin", {"x": ints(0, 3, 6, 4).astype(np.float32)}, {}, {"select_last_index": 1}, 13),
    "arg_max_infinite": ("ArgMax", {"x": np.array([[-np.inf, -np.inf], [1, np.inf]], np.float32)}, {}, {"axis": 1}, 13),
    "hardmax": ("Hardmax", {"x": ints(0, 3, 2, 3, 5).astype(np.float32)}, {}, {"axis": 1}, 13),
    "hardmax_11": ("Hardmax", {"x": ints(0, 3, 2, 3, 5).astype(np.float32)}, {}, {}, 11),
    "cum_sum": ("CumSum", {"x": rand(3, 9)}, {"axis": np.array(1)}, {}, 14),
    "cum_sum_exclusive": ("CumSum", {"x": rand(3, 9)}, {"axis": np.array(-2)}, {"exclusive": 1}, 14),
    "cum_sum_reverse": ("CumSum", {"x": ints(-9, 9, 3, 9)}, {"axis": np.array(1)}, {"reverse": 1}, 14),
    "cum_sum_both": (
        "CumSum",
        {"x": ints(-9, 9, 3, 9).astype(np.int32)},
        {"axis": np.array(1)},
        {"reverse": 1, "exclusive": 1},
        11,
    ),
    "cum_sum_blocks": ("CumSum", {"x": ints(-9, 9, 2, 200)}, {"axis": np.array(1)}, {}, 14),
    "cum_sum_blocks_back": (
        "CumSum",
        {"x": ints(-9, 9, 4200, 2)},
        {"axis": np.array(0)},
        {"reverse": 1, "exclusive": 1},
        14,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, model: Build, against_ort: Compare) -> None:
    op, inputs, constants, attributes, opset = CASES[name]
    names = [*inputs, *constants]
    if op == "OneHot" and "depth" not in constants:
        constants, names = {"depth": np.array([6])}, ["i", "depth", "v"]
    proto = model([helper.make_node(op, names, ["y"], **attributes)], inputs, ["y"], constants, opset)
    exact = op not in ("CumSum",) and attributes.get("reduction") not in ("add", "mul")
    against_ort(proto, {n: np.asarray(a) for n, a in inputs.items()}, 0.0 if exact else 3e-6)


EQUATIONS = {
    "ij,jk->ik": ((3, 4), (4, 5)),
    "ij,jk": ((3, 4), (4, 5)),
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
    "...ij,...jk->...ik": ((2, 1, 3, 4), (6, 4, 5)),
    "...ii->...i": ((2, 3, 3),),
    "ii": ((4, 4),),
    "ij->": ((3, 4),),
    "ba": ((3, 4),),
    "i,j->ij": ((3,), (4,)),
    "i,i": ((5,), (5,)),
    "bhwc,hkc->bhwk": ((2, 3, 4, 5), (3, 6, 5)),
    "ab,bc,cd->da": ((2, 3), (3, 4), (4, 5)),
    "iij,jkk->ik": ((3, 3, 4), (4, 5, 5)),
    "i...,j...->...ij": ((2, 3), (4, 3)),
    "ij,kl->jl": ((2, 3), (4, 5)),
    "ab...,b...->a...": ((2, 3, 4), (3, 4)),
    "aB,Bc->ac": ((2, 3), (3, 4)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str, model: Build, against_ort: Compare) -> None:
    feeds = {f"x{i}": rand(*shape) for i, shape in enumerate(EQUATIONS[equation])}
    node = helper.make_node("Einsum", list(feeds), ["y"], equation=equation)
    want = [np.asarray(np.einsum(equation, *feeds.values()))]
    against_ort(model([node], feeds, ["y"], {}, 13), feeds, 3e-6, want=want)


def test_einsum_of_integers(model: Build, against_ort: Compare) -> None:
    feeds = {"a": ints(-9, 9, 3, 4), "b": ints(-9, 9, 4, 2)}
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation="ij,jk->k")
    against_ort(model([node], feeds, ["y"], {}, 13), feeds)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_determinant(n: int, model: Build, against_ort: Compare) -> None:
    """Singular matrices and those that need exchanges of rows included."""
    x = rand(2, 3, n, n)
    x[0, 1] = 1.0
    x[1, 0] = np.eye(n)[::-1]
    x[1, 1, 0] = 0.0
    node = helper.make_node("Det", ["x"], ["y"])
    want = [np.linalg.det(x.astype(np.float64)).astype(np.float32)]
    against_ort(model([node], {"x": x}, ["y"], {}, 11), {"x": x}, 1e-5, want=want)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_product(exclusive: int, reverse: int, model: Build, against_ort: Compare) -> None:
    x = (1 + rand(2, 150) / 50).astype(np.float32)
    flipped = x[:, ::-1] if reverse else x
    want = np.cumprod(flipped.astype(np.float64), 1)
    if exclusive:
        want = np.concatenate([np.ones((2, 1)), want[:, :-1]], 1)
    want = (want[:, ::-1] if reverse else want).astype(np.float32)
    node = helper.make_node("CumProd", ["x", "axis"], ["y"], exclusive=exclusive, reverse=reverse)
    against_ort(model([node], {"x": x}, ["y"], {"axis": np.array(1)}, 26), {"x": x}, 1e-5, want=[want])


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_cache_update(mode: str, model: Build, against_ort: Compare) -> None:
    cache, update, begin = rand(2, 3, 6, 4), rand(2, 3, 3, 4), np.array([3, 1] if mode == "linear" else [5, 4])
    want = cache.copy()
    for b in range(2):
        for i in range(3):
            want[b, :, (begin[b] + i) % 6] = update[b, :, i]
    node = helper.make_node("TensorScatter", ["c", "u", "i"], ["y"], mode=mode)
    feeds = {"c": cache, "u": update, "i": begin}
    against_ort(model([node], feeds, ["y"], {}, 24), feeds, want=[want])


def test_nan_counts_as_largest_and_smallest(model: Build, against_ort: Compare) -> None:
    x = np.array([[1, np.nan, 3, np.nan], [4, 2, 9, 9]], np.float32)
    nodes = [helper.make_node(op, ["x"], [op], axis=1, keepdims=0) for op in ("ArgMax", "ArgMin")]
    want = [np.argmax(x, 1), np.argmin(x, 1)]
    against_ort(model(nodes, {"x": x}, ["ArgMax", "ArgMin"], {}, 13), {"x": x}, want=want)


def test_what_decides_shapes_is_constant(model: Build) -> None:
    from d1c.frontend.importer import import_onnx

    proto = model([helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": np.array([2, 3])}, ["y"], {}, 9)
    with pytest.raises(UnsupportedOp, match=r"ConstantOfShape.*run time only"):
        import_onnx(proto)
    nodes = [helper.make_node("Range", ["a", "b", "c"], ["y"])]
    with pytest.raises(UnsupportedOp, match=r"Range.*run time only"):
        import_onnx(model(nodes, {n: np.array(1) for n in "abc"}, ["y"], {}, 11))


def test_on_the_machine(model: Build, against_ort: Compare) -> None:
    """A chain on the emulated cores: what ArgMax finds is gathered, and scattered elsewhere."""
    x, table = rand(6, 9), rand(9, 4)
    nodes = [
        helper.make_node("ArgMax", ["x"], ["at"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "at"], ["rows"]),
        helper.make_node("Unsqueeze", ["at", "one"], ["places"]),
        helper.make_node("ScatterND", ["table", "places", "rows"], ["sums"], reduction="add"),
        helper.make_node("CumSum", ["sums", "zero"], ["y"]),
    ]
    constants = {"one": np.array([1]), "zero": np.array(0)}
    proto = model(nodes, {"x": x, "table": table}, ["at", "y"], constants, 18)
    against_ort(proto, {"x": x, "table": table}, 3e-6, emulate=True)


@pytest.mark.parametrize("how", ["max", "min"])
def test_scatter_of_large_unsigned_integers(how: str, model: Build, against_ort: Compare) -> None:
    x, updates = np.array([1, 2**63 + 5, 7], np.uint64), np.array([2**64 - 1, 3, 2**63], np.uint64)
    at = np.array([[0], [1], [1]])
    want = x.copy()
    getattr(np, f"{how}imum").at(want, at[:, 0], updates)
    node = helper.make_node("ScatterND", ["x", "at", "u"], ["y"], reduction=how)
    feeds = {"x": x, "at": at, "u": updates}
    against_ort(model([node], feeds, ["y"], {}, 18), feeds, want=[want])
