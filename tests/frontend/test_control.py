"""If, Loop and Scan against onnxruntime, run on the machine `test`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import d1c
from d1c.errors import NotStatic, UnsupportedOp

HEAD = '<ir_version: 8, opset_import: ["" : 16]>'
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def check(text: str, feeds: dict[str, Any], freeze: Collection[str] = (), engine: str = "numpy") -> None:
    """`freeze`: inputs that are given when compiling."""
    model = onnx.parser.parse_model(HEAD + text)
    feeds = {k: np.asarray(v) for k, v in feeds.items()}
    want = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    program = d1c.compile(model, target="test", precision="f32", freeze={k: feeds[k] for k in freeze})
    got = program.run({k: v for k, v in feeds.items() if k not in freeze}, engine=engine)
    for info, expected in zip(model.graph.output, want, strict=True):
        assert (got[info.name].shape, got[info.name].dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(got[info.name], expected, rtol=1e-4, atol=1e-5)


LOOP = """
agraph (float[3,4] x, int64 m, bool c, float lim) => (float[3,4] y, float[k,3,4] all, int64 cnt)
<int64 zero={0}> {
  y, cnt, all = Loop (m, c, x, zero) <body = body (int64 i, bool ci, float[3,4] h, int64 k) =>
      (bool co, float[3,4] hn, int64 kn, float[3,4] so) <int64 one={1}, float half={1.5}> {
    hn = Mul(h, half)
    kn = Add(k, one)
    so = Add(hn, x)
    mx = ReduceMax <keepdims=0> (hn)
    co = Less(mx, lim)
  }>
}
"""
"""Carries a tensor and a count, stacks a value of every round; ended by the trip count or by the data."""


@pytest.mark.parametrize("limit", [0.1, 4, 20, 1e9])
def test_data_ends_a_loop_that_stacks(limit: float) -> None:
    check(LOOP, {"x": X, "m": 7, "c": True, "lim": np.float32(limit)}, ["m"])


@pytest.mark.parametrize(("trips", "go"), [(0, True), (1, True), (5, True), (7, False)])
def test_loops_known_at_compile_time(trips: int, go: bool) -> None:
    check(LOOP, {"x": X, "m": trips, "c": go, "lim": np.float32(1e9)}, ["m", "c"])


UNSTACKED = LOOP.replace(", float[k,3,4] all", "")
UNCOUNTED = UNSTACKED.replace("Loop (m, c,", "Loop (, c,").replace("int64 m, ", "")
UNTIL = UNSTACKED.replace("Loop (m, c,", "Loop (m, ,").replace("bool c, ", "").replace("Less(mx, lim)", "Identity(ci)")


@pytest.mark.parametrize("trips", [-1, 0, 1, 3, 9])
@pytest.mark.parametrize("go", [True, False])
def test_a_trip_count_of_the_run(trips: int, go: bool) -> None:
    check(UNSTACKED, {"x": X, "m": trips, "c": go, "lim": np.float32(20)})


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_loops_without_trip_count_or_condition(engine: str) -> None:
    check(UNCOUNTED, {"x": X, "c": True, "lim": np.float32(50)}, engine=engine)
    check(UNTIL, {"x": X, "m": 6, "lim": np.float32(50)}, engine=engine)
    check(UNTIL, {"x": X, "m": 6, "lim": np.float32(50)}, ["m"], engine)


GROWS = """
agraph (float[2] x, int64 m) => (float[k] y) <bool t={1}> {
  y = Loop (m, t, x) <body = b (int64 i, bool ci, float[n] h) => (bool co, float[p] hn) <int64[1] ax={0}> {
    fi = Cast<to=1>(i)
    u = Unsqueeze(fi, ax)
    hn = Concat<axis=0>(h, u)
    co = Identity(ci)
  }>
}
"""


def test_shapes_that_change_are_unrolled() -> None:
    check(GROWS, {"x": data(2), "m": 4}, ["m"])
    model = onnx.parser.parse_model(HEAD + GROWS)
    with pytest.raises(UnsupportedOp, match=r"a loop of 65 rounds carries f32\[2\], then f32\[3\]"):
        d1c.import_onnx(model, freeze={"m": np.array(65)})
    with pytest.raises(UnsupportedOp, match="carries f32"):
        d1c.import_onnx(model)


def test_stacks_need_a_trip_count() -> None:
    model = onnx.parser.parse_model(HEAD + LOOP)
    with pytest.raises(NotStatic, match="the trip count") as refusal:
        d1c.import_onnx(model)
    assert refusal.value.inputs == ("m",)


BRANCHES = """
agraph (float[3,4] x, bool c, float[4,5] w, float[4,5] w2) => (float[3,5] y, float[3,4] z) {
  y, z = If (c) <then_branch = a () => (float[3,5] a1, float[3,4] a2) {
      a1 = MatMul(x, w)  a2 = Relu(x) }, else_branch = b () => (float[3,5] b1, float[3,4] b2) { s = Neg(x)
      b1 = MatMul(s, w2) b2 = Identity(x) }>
}
"""
SMALL = """
agraph (float[3,4] x, bool[1] c) => (float[3,4] y) <float one={1}> {
  y = If (c) <then_branch = a () => (float[3,4] a1) { a1 = Relu(x) }, else_branch = b () => (float[3,4] b1) {
      b1 = Add(x, one) }>
}
"""


@pytest.mark.parametrize("go", [True, False])
def test_branches(go: bool) -> None:
    for engine in ("numpy", "jit"):
        check(BRANCHES, {"x": X, "c": go, "w": data(4, 5), "w2": data(4, 5) + 1}, engine=engine)
    check(BRANCHES, {"x": X, "c": go, "w": data(4, 5), "w2": data(4, 5) + 1}, ["c"])
    check(SMALL, {"x": X, "c": [go]})


def test_large_branches_are_loops_and_small_ones_are_selected() -> None:
    def ops(text: str) -> list[str]:
        return [op.name for op in d1c.import_onnx(onnx.parser.parse_model(HEAD + text)).function().block.ops]

    assert ops(BRANCHES).count("graph.loop") == 2
    assert ops(SMALL).count("graph.where") == 1
    assert "graph.loop" not in ops(SMALL)


def test_branches_of_different_shapes_need_to_know() -> None:
    text = SMALL.replace("b1 = Add(x, one)", "b1 = ReduceMax<keepdims=0>(x)").replace("float[3,4] b1", "float b1")
    with pytest.raises(NotStatic, match="between results of different shapes"):
        d1c.import_onnx(onnx.parser.parse_model(HEAD + text))


BRANCH_IN_LOOP = """
agraph (float[3,4] x, float[4,4] w, int64 m) => (float[3,4] y, float[k,3] st) <bool t={1}, float five={5}> {
  y, st = Loop (m, t, x) <body = b (int64 i, bool ci, float[3,4] h) =>
      (bool co, float[3,4] hn, float[3] row) <int64 two={2}, int64 z={0}> {
    r = Mod(i, two)
    even = Equal(r, z)
    hn = If (even) <then_branch = a () => (float[3,4] a1) { q = MatMul(h, w) a1 = Add(q, x) },
      else_branch = bb () => (float[3,4] b1) { b1 = Div(h, five) }>
    row = ReduceMean<keepdims=0, axes=[1]>(hn)
    co = Identity(ci)
  }>
}
"""
NESTED = """
agraph (float[3,4] x, int64 m) => (float[3,4] y, float[k] st) <bool t={1}> {
  y, st = Loop (m, t, x) <body = b (int64 i, bool ci, float[3,4] h) =>
      (bool co, float[3,4] hn, float s) <int64 three={3}, bool tt={1}> {
    hn, sums = Loop (three, tt, h) <body = b2 (int64 j, bool cj, float[3,4] g) =>
      (bool cp, float[3,4] gn, float q) { ij = Add(i, j) f = Cast<to=1>(ij) gx = Add(g, x) gs = Tanh(gx)
      gr = Sigmoid(f) gn = Mul(gs, gr) q = ReduceMax<keepdims=0>(gn) cp = Identity(cj) }>
    s = ReduceSum<keepdims=0>(sums)
    co = Identity(ci)
  }>
}
"""


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_control_flow_nests(engine: str) -> None:
    check(BRANCH_IN_LOOP, {"x": X, "w": data(4, 4) * 0.4, "m": 5}, ["m"], engine)
    check(NESTED, {"x": X, "m": 4}, ["m"], engine)


SCAN = """
agraph (float[3,4] s0, float[2,5,4] a, float[6,5] b) => (float[3,4] s, float[4,5] o1, float[3,5,2] o2) {
  s, o1, o2 = Scan (s0, a, b) <num_scan_inputs=2, scan_input_axes=[1,-1],
      scan_input_directions=[1,0], scan_output_axes=[1,1], scan_output_directions=[0,1],
      body = b (float[3,4] h, float[2,4] u, float[6] v) =>
      (float[3,4] hn, float[4] p, float[3,2] q) {
     m = ReduceMean<keepdims=0>(v) p = ReduceMean<axes=[0],keepdims=0>(u)
     hm = Mul(h, m) hn = Add(hm, p)
     ut = Transpose<perm=[1,0]>(u) q = MatMul(hn, ut)
  }>
}
"""


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_scan_has_axes_and_directions(engine: str) -> None:
    check(SCAN, {"s0": X, "a": data(2, 5, 4), "b": data(6, 5)}, engine=engine)
