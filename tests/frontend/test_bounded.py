"""Results whose extent data decides: chains behind NonZero, Compress and Unique, outputs cut to size, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import d1c
import d1rt
from d1c import backend
from d1c.check import check_program
from d1c.emit.modules import from_modules, to_modules
from d1c.errors import LoadError, NotStatic, UnsupportedOp
from d1c.frontend.importer import import_onnx
from d1c.interp_dist import evaluate_dist
from d1c.ir.text import parse

Build = Callable[..., onnx.ModelProto]
Compare = Callable[..., list[np.ndarray]]
RNG = np.random.default_rng(11)
node = helper.make_node

MASKS = {
    "some": np.array([1, 0, 0, 1, 1, 0, 1, 0], np.float32),
    "none": np.zeros(8, np.float32),
    "all": np.ones(8, np.float32),
    "last": np.eye(8, dtype=np.float32)[7],
}
TABLE = RNG.standard_normal((8, 3)).astype(np.float32)
ONE, ZERO, OPEN = np.array([1]), np.array([0]), np.array([-1])

# What follows `rows` = the rows [count, 3] of a table where the mask is not 0, and `at` = their numbers [1, count].
CHAINS: dict[str, list[onnx.NodeProto]] = {
    "places": [node("Identity", ["at"], ["y"])],
    "transpose": [node("Transpose", ["rows"], ["y"], perm=[1, 0])],
    "relu_sum": [node("Relu", ["rows"], ["r"]), node("ReduceSum", ["r", "zero"], ["y"], keepdims=0)],
    "sum_all": [node("Exp", ["rows"], ["r"]), node("ReduceSum", ["r"], ["y"])],
    "sum_other": [node("Exp", ["rows"], ["r"]), node("ReduceSum", ["r", "one"], ["y"], keepdims=0)],
    "broadcast": [node("Add", ["rows", "row"], ["a"]), node("Mul", ["a", "rows"], ["y"])],
    "unsqueeze": [node("Unsqueeze", ["rows", "zero"], ["u"]), node("Sigmoid", ["u"], ["y"])],
    "squeeze": [node("Squeeze", ["at", "zero"], ["s"]), node("Cast", ["s"], ["y"], to=1)],
    "reshape": [node("Reshape", ["rows", "open"], ["f"]), node("Neg", ["f"], ["y"])],
    "reshape_back": [node("Reshape", ["at", "open"], ["f"]), node("Gather", ["table", "f"], ["y"])],
    "slice_other": [node("Slice", ["rows", "one", "three", "one"], ["y"])],
    "slice_first": [node("Slice", ["rows", "one", "three", "zero"], ["y"])],
    "split": [node("Split", ["rows", "parts"], ["y", "b"], axis=1)],
    "concat": [node("Concat", ["rows", "rows"], ["y"], axis=1)],
    "shape": [node("Shape", ["rows"], ["y"])],
    "shape_part": [node("Shape", ["rows"], ["y"], start=0, end=1)],
    "size": [node("Size", ["rows"], ["y"])],
    "softmax": [node("Softmax", ["rows"], ["y"], axis=1)],
    "matmul": [node("MatMul", ["rows", "square"], ["y"])],
    "where": [node("Greater", ["rows", "row"], ["c"]), node("Where", ["c", "rows", "row"], ["y"])],
    "clip": [node("Clip", ["rows", "low"], ["y"])],
    "gelu": [node("Gelu", ["rows"], ["y"])],
    "arg_other": [node("ArgMax", ["rows"], ["y"], axis=1, keepdims=0)],
    "gather_columns": [node("Gather", ["rows", "one"], ["y"], axis=1)],
    "gather_nd": [node("Transpose", ["at"], ["p"]), node("GatherND", ["table", "p"], ["y"])],
    "scatter_nd": [
        node("Transpose", ["at"], ["p"]), node("Exp", ["rows"], ["e"]), node("ScatterND", ["table", "p", "e"], ["y"])],
    "nonzero": [node("Greater", ["rows", "row"], ["c"]), node("NonZero", ["c"], ["y"])],
    "expand": [node("Shape", ["rows"], ["s"]), node("Expand", ["row", "s"], ["y"])],
    "expand_in_front": [node("Expand", ["rows", "front"], ["y"])],
    "constant_of_shape": [
        node("Shape", ["rows"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("ConstantOfShape", ["n"], ["c"]),
        node("Squeeze", ["at", "zero"], ["a"]), node("Cast", ["a"], ["f"], to=1), node("Add", ["c", "f"], ["y"])],
    "concat_along": [node("Neg", ["rows"], ["n"]), node("Concat", ["rows", "table", "n"], ["y"], axis=0)],
    "concat_columns": [node("Concat", ["at", "at"], ["y"], axis=1)],
    "one_hot": [node("Squeeze", ["at", "zero"], ["s"]), node("OneHot", ["s", "eight", "values"], ["y"], axis=0)],
}  # fmt: skip
# These are not defined where nothing is left.
FULL: dict[str, list[onnx.NodeProto]] = {
    "max": [node("ReduceMax", ["rows", "zero"], ["y"])],
    "min": [node("ReduceMin", ["rows", "zero"], ["y"])],
    "mean": [node("ReduceMean", ["rows", "zero"], ["y"])],
    "mean_all": [node("ReduceMean", ["rows"], ["y"], keepdims=0)],
    "prod": [node("ReduceProd", ["rows", "zero"], ["y"])],
    "l2": [node("ReduceL2", ["rows", "zero"], ["y"])],
    "arg": [node("ArgMax", ["rows"], ["y"], axis=0)],
    "arg_min": [node("ArgMin", ["rows"], ["y"], axis=0, keepdims=0)],
    "top": [node("TopK", ["rows", "one"], ["v", "y"], axis=0)],
    "bottom": [node("TopK", ["rows", "one"], ["y", "i"], axis=0, largest=0)],
    "gather_own": [node("Gather", ["rows", "ends"], ["y"])],
    "gather_run_time": [node("ArgMax", ["rows"], ["a"], axis=0, keepdims=0), node("Gather", ["rows", "a"], ["y"])],
    "softmax_along": [node("Softmax", ["rows"], ["y"], axis=0)],
}
CONSTANTS = {
    "table": TABLE, "row": TABLE[:1] / 2, "one": ONE, "zero": ZERO, "open": OPEN, "three": np.array([3]),
    "parts": np.array([2, 1]), "square": TABLE[:3], "low": np.array(0.1, np.float32),
    "front": np.array([2, 1, 1]), "ends": np.array([0, -1]),
    "most": np.array([5]), "eight": np.array(8),
    "values": np.array([0, 1], np.float32),
}  # fmt: skip


def rows(model: Build, chain: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    start = [
        node("NonZero", ["mask"], ["at"]),
        node("Squeeze", ["at", "zero"], ["numbers"]),
        node("Gather", ["table", "numbers"], ["rows"]),
    ]
    return model([*start, *chain], {"mask": MASKS["some"]}, outputs, CONSTANTS, 20)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chain", CHAINS)
def test_chain(chain: str, mask: str, model: Build, against_ort: Compare) -> None:
    against_ort(rows(model, CHAINS[chain]), {"mask": MASKS[mask]}, 3e-6)


@pytest.mark.parametrize("mask", ["some", "all", "last"])
@pytest.mark.parametrize("chain", FULL)
def test_reduction_along_the_bounded_dim(chain: str, mask: str, model: Build, against_ort: Compare) -> None:
    against_ort(rows(model, FULL[chain]), {"mask": MASKS[mask]}, 3e-6)


def test_an_empty_maximum_is_the_lowest_value(model: Build, against_ort: Compare) -> None:
    want = [np.full((1, 3), -np.inf, np.float32)]
    against_ort(rows(model, FULL["max"]), {"mask": MASKS["none"]}, want=want)


@pytest.mark.parametrize("mask", MASKS)
def test_on_the_machine(mask: str, model: Build, against_ort: Compare) -> None:
    """Counts of several outputs, one of which is a count itself."""
    chain = [*CHAINS["broadcast"], node("ReduceMean", ["y", "one"], ["m"]), node("Shape", ["rows"], ["shape"])]
    proto = rows(model, chain, ("y", "m", "at", "shape"))
    against_ort(proto, {"mask": MASKS[mask]}, 3e-6, emulate=True)


def test_every_evaluator_cuts(model: Build) -> None:
    proto = rows(model, CHAINS["broadcast"], ("at", "y"))
    program = d1c.compile(proto, target="test", precision="f32")
    feeds = {"mask": MASKS["some"]}
    runs = [program.run(feeds, engine=engine) for engine in ("numpy", "jit")]
    runs.append(evaluate_dist(program.module("dist"), feeds))
    graph = program.module("graph")
    again = dataclasses.replace(parse(str(graph)), constants=graph.constants)
    runs.append(d1c.compile(again, target="test").run(feeds, engine="numpy"))
    for results in runs:
        assert results["at"].shape == (1, 4) and results["y"].shape == (4, 3)
        assert results["y"].tobytes() == runs[0]["y"].tobytes()
    assert set(runs[0]) == {"at", "y"}
    assert program.summary()["outputs"] == [
        {"name": "at", "shape": [1, 8], "dtype": "i64", "bounded": [1]},
        {"name": "y", "shape": [8, 3], "dtype": "f32", "bounded": [0]},
    ]
    assert backend.prepare(proto, target="test").run(feeds)[1].shape == (4, 3)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("condition", [[1, 0, 1], [0, 0, 0], [1, 1, 1, 1], [0, 1]])
def test_compress(axis: int | None, condition: list[int], model: Build, against_ort: Compare) -> None:
    x = RNG.standard_normal((4, 5)).astype(np.float32)
    feeds = {"x": x, "c": np.array(condition, np.bool_)}
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    against_ort(model([node("Compress", ["x", "c"], ["y"], **attributes)], feeds, ["y"], {}, 11), feeds)
    fixed = model([node("Compress", ["x", "c"], ["y"], **attributes)], {"x": x}, ["y"], {"c": feeds["c"]}, 11)
    if any(condition):
        against_ort(fixed, {"x": x})


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.float32])
def test_nonzero_of_every_type(kind: Any, model: Build, against_ort: Compare) -> None:
    x = RNG.integers(0, 2, (3, 4, 2)).astype(kind)
    against_ort(model([node("NonZero", ["x"], ["y"])], {"x": x}, ["y"], {}, 13), {"x": x})


def test_long_nonzero(model: Build, against_ort: Compare) -> None:
    x = RNG.integers(0, 2, (9, 50)).astype(np.float32)
    against_ort(model([node("NonZero", ["x"], ["y"])], {"x": x}, ["y"], {}, 13), {"x": x}, emulate=True)


def test_counts_of_different_origin_do_not_meet(model: Build) -> None:
    chain = [
        node("Neg", ["mask"], ["n"]),
        node("NonZero", ["n"], ["other"]),
        node("Add", ["at", "other"], ["y"]),
    ]
    with pytest.raises(UnsupportedOp, match="same count"):
        import_onnx(rows(model, chain))


def test_subgraphs_read_what_is_bounded(model: Build, against_ort: Compare) -> None:
    """A loop's body sums rows that it captures, as many as there are."""
    made = [
        node("Add", ["rows", "old"], ["moved"]), node("ReduceMean", ["moved", "zero"], ["new"], keepdims=1),
        node("Identity", ["go"], ["again"]),
    ]  # fmt: skip
    tensor = helper.make_tensor_value_info
    taken = [tensor("i", 7, []), tensor("go", 9, []), tensor("old", 1, [1, 3])]
    body = helper.make_graph(made, "body", taken, [tensor("again", 9, []), tensor("new", 1, [1, 3])])
    proto = rows(model, [node("Loop", ["three", "", "row"], ["y"], body=body)])
    against_ort(proto, {"mask": MASKS["some"]}, 3e-6, emulate=True)


def test_a_loop_does_not_carry_what_is_bounded(model: Build) -> None:
    tensor = helper.make_tensor_value_info
    taken = [tensor("i", 7, []), tensor("go", 9, []), tensor("old", 1, None)]
    body = helper.make_graph([node("Neg", ["old"], ["new"])], "body", taken, [taken[1], tensor("new", 1, None)])
    with pytest.raises(UnsupportedOp, match="Loop of 'rows'"):
        import_onnx(rows(model, [node("Loop", ["three", "", "rows"], ["y"], body=body)]))


REFUSED = {
    "Conv": ([node("Conv", ["u", "w"], ["y"])], "not known"),
    "Concat": ([node("Concat", ["rows", "table"], ["y"], axis=1)], "bounded alike"),
    "CumSum": ([node("CumSum", ["rows", "nought"], ["y"])], "not known"),
    "GatherND": ([node("GatherND", ["rows", "one"], ["y"])], "known extent"),
    "Slice": ([node("Slice", ["rows", "open", "three", "zero"], ["y"])], "not negative"),
    "Reshape": ([node("Reshape", ["rows", "fixed"], ["y"])], "leaves it open"),
    "Add": ([node("Add", ["rows", "table"], ["y"])], "broadcast"),
    "Expand": ([node("Expand", ["rows", "fixed"], ["y"])], "as it is"),
    "MatMul": ([node("MatMul", ["narrow", "rows"], ["y"])], "known extent"),
    "Split": ([node("Split", ["rows"], ["y", "b"], axis=0, num_outputs=2)], "another axis"),
}


@pytest.mark.parametrize("op", REFUSED)
def test_what_is_not_known_is_refused(op: str, model: Build) -> None:
    chain, why = REFUSED[op]
    proto = rows(model, [node("Unsqueeze", ["rows", "zero"], ["u"]), *chain])
    more = {
        "w": np.ones((2, 8, 1), np.float32), "nought": np.array(0), "fixed": np.array([8, 3]), "narrow": TABLE.T,
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in more.items())
    with pytest.raises(UnsupportedOp) as caught:
        import_onnx(proto)
    error = caught.value
    assert error.message.startswith(op) and "known at run time only" in error.message
    assert why in error.rule and error.remedy


def test_text_keeps_counts(model: Build) -> None:
    compiled = d1c.compile(rows(model, [], ("rows", "at")), target="test", precision="f32").compiled
    assert compiled is not None
    tile, kern = to_modules(compiled)
    module = dataclasses.replace(parse(str(tile)), constants=tile.constants)
    again = from_modules(module, parse(str(kern)))
    assert [p.counts for p in again.program.outputs] == [((0, "rows.count"),), ((1, "rows.count"),), ()]


def test_an_extent_that_data_decides_is_no_parameter(model: Build) -> None:
    """The input behind it is not frozen: that would be to compute the model at compile time."""
    chain = [node("Size", ["rows"], ["s"]), node("Range", ["none", "s", "step"], ["y"])]
    proto = rows(model, chain)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(i), n) for i, n in enumerate(("none", "step")))
    with pytest.raises(NotStatic, match="Range: limit") as caught:
        import_onnx(proto)
    assert caught.value.inputs == () and "NonZero" in caught.value.remedy
    with pytest.raises(NotStatic):
        backend.prepare(proto, target="test", precision="f32").run([MASKS["some"]])


@pytest.mark.parametrize("emulate", [False, True])
@pytest.mark.parametrize("least", [-9.0, 0.2, 0.6, 9.0])
def test_detection(least: float, emulate: bool, model: Build, against_ort: Compare) -> None:
    """Boxes above a threshold, the best (at most 5) of two classes, what suppression leaves, and their data."""
    scores = RNG.uniform(0, 1, (2, 8)).astype(np.float32)
    corners = RNG.uniform(0, 2, (8, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 1], 1)
    nodes = []
    for c, at in enumerate(("zero", "one")):
        nodes += [
            node("Gather", ["scores", at], [f"row{c}"]), node("Squeeze", [f"row{c}", "zero"], [f"scores{c}"]),
            node("Greater", [f"scores{c}", "least"], [f"good{c}"]), node("NonZero", [f"good{c}"], [f"where{c}"]),
            node("Squeeze", [f"where{c}", "zero"], [f"at{c}"]), node("Gather", [f"scores{c}", f"at{c}"], [f"left{c}"]),
            node("Shape", [f"left{c}"], [f"n{c}"]), node("Min", [f"n{c}", "most"], [f"k{c}"]),
            node("TopK", [f"left{c}", f"k{c}"], [f"best{c}", f"order{c}"]),
            node("Gather", [f"at{c}", f"order{c}"], [f"chosen{c}"]),
            node("Gather", ["boxes", f"chosen{c}"], [f"boxes{c}"]),
        ]  # fmt: skip
    nodes += [
        node("Concat", ["boxes0", "boxes1"], ["all"], axis=0), node("Concat", ["best0", "best1"], ["marks"], axis=0),
        node("Unsqueeze", ["all", "zero"], ["all3"]), node("Unsqueeze", ["marks", "both"], ["marks3"]),
        node("NonMaxSuppression", ["all3", "marks3", "eight", "overlap"], ["selected"]),
        node("Gather", ["selected", "two"], ["numbers"], axis=1),
        node("Gather", ["all", "numbers"], ["found"]), node("Gather", ["marks", "numbers"], ["with"]),
    ]  # fmt: skip
    constants = CONSTANTS | {
        "overlap": np.array([0.3], np.float32), "both": np.array([0, 1]), "two": np.array(2),
    }  # fmt: skip
    feeds = {"scores": scores, "boxes": boxes, "least": np.array(least, np.float32)}
    proto = model(nodes, feeds, ["selected", "found", "with", "marks"], constants, 13)
    against_ort(proto, feeds, emulate=emulate)


def test_file_keeps_counts(tmp_path: Path, model: Build) -> None:
    program = d1c.compile(rows(model, CHAINS["relu_sum"][:1], ("rows", "at")), target="test", precision="f32")
    path = tmp_path / "rows.d1x"
    program.save(path)
    with d1rt.load(path) as loaded:
        assert [p.counts for p in loaded.program.outputs] == [p.counts for p in program.target.outputs]
        assert list(loaded.outputs) == ["rows", "at"]
        results = loaded.run({"mask": MASKS["last"]}, engine="numpy")
    assert results["rows"].shape == (1, 3) and results["at"].tolist() == [[7]]


@pytest.mark.parametrize(
    "counts",
    [((2, "rows.count"),), ((-1, "rows.count"),), ((0, "at"),), ((0, "gone"),), ((0, "rows.count"), (0, "rows.count"))],
)
def test_corrupt_counts_are_refused(counts: tuple[tuple[int, str], ...], tmp_path: Path, model: Build) -> None:
    program = d1c.compile(rows(model, [], ("rows", "at")), target="test", precision="f32").target
    first, *others = program.outputs
    assert first.counts == ((0, "rows.count"),)
    with pytest.raises(LoadError):
        d1rt.load(dataclasses.replace(program, outputs=(dataclasses.replace(first, counts=counts), *others)))
    with pytest.raises(LoadError):
        port = dataclasses.replace(program.inputs[0], counts=((0, "rows.count"),))
        d1rt.load(dataclasses.replace(program, inputs=(port,)))


def test_check_compares_what_is_real(tmp_path: Path, model: Build) -> None:
    path = tmp_path / "rows.onnx"
    onnx.save(rows(model, CHAINS["relu_sum"][:1], ("r", "at")), str(path))
    program = d1c.compile(path, target="test", precision="f32")
    report = check_program(program.target, path, {"mask": MASKS["some"]}, engine="numpy")
    checked = {x.name: x.accumulated for x in report.layers if x.accumulated is not None}
    assert "r" in checked and all(d.error < 1e-6 for d in checked.values())
    assert not any(x.diverges for x in report.layers)


def test_a_branch_keeps_what_it_broadcasts() -> None:
    """`whole`, as large as a bounded shape is at most, is the operand of Expand and stays whole for the others."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4] x, bool[1] c, bool p) => (float y) {
            y = If (p) <then_branch = a () => (float s) {
                whole = Abs(x)
                some = Compress <axis = 0> (x, c)
                shape = Shape(some)
                cut = Expand(whole, shape)
                first = ReduceSum <keepdims = 0> (cut)
                second = ReduceSum <keepdims = 0> (whole)
                s = Sub(second, first)
            }, else_branch = b () => (float t) { t = ReduceMin <keepdims = 0> (x) }>
        }"""
    x = np.array([[1, -2, 3, -4]], np.float32)
    for chosen, want in ((False, 10), (True, 0)):
        (y,) = backend.prepare(onnx.parser.parse_model(text), target="test", engine="numpy").run(
            [x, np.array([chosen]), np.array(True)]
        )
        assert y == want
