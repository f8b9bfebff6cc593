"""Whole graph pipelines on small networks: values against onnxruntime, and the structure that the passes promise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.ir.core import Module
from d1c.ir.text import parse
from d1c.ir.types import TensorType
from d1c.pipeline import PASSES, PIPELINE, run_pipeline

GRAPH = tuple(n for n in PIPELINE if PASSES[n].level_out == "graph")


def model(
    nodes: list, inputs: dict, outputs: list[str], weights: dict[str, np.ndarray], opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def residual() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    f = lambda *s: rng.normal(size=s).astype(np.float32)  # noqa: E731
    weights = {"w1": f(8, 4, 3, 3) / 6, "w2": f(8, 8, 3, 3) / 8, "w3": f(8, 4, 1, 1) / 2, "b3": f(8)}
    nodes = []

    def norm(x: str, y: str) -> None:
        weights.update({y + "_s": f(8), y + "_b": f(8), y + "_m": f(8), y + "_v": np.abs(f(8)) + 0.5})
        nodes.append(helper.make_node("BatchNormalization", [x, *(f"{y}_{k}" for k in "sbmv")], [y]))

    nodes.append(helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]))
    norm("c1", "n1")
    nodes.append(helper.make_node("Relu", ["n1"], ["r1"]))
    nodes.append(helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]))
    norm("c2", "n2")
    nodes.append(helper.make_node("Conv", ["x", "w3", "b3"], ["c3"], strides=[2, 2]))
    norm("c3", "n3")
    nodes.append(helper.make_node("Add", ["n2", "n3"], ["a"]))
    nodes.append(helper.make_node("Relu", ["a"], ["y"]))
    return model(nodes, {"x": [1, 4, 8, 6]}, ["y"], weights), {"x": f(1, 4, 8, 6)}


def squeeze_excite() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    f = lambda *s: rng.normal(size=s).astype(np.float32)  # noqa: E731
    weights = {"d": f(6, 1, 3, 3), "s1": f(3, 6, 1, 1), "s2": f(6, 3, 1, 1), "w": f(6, 5), "b": f(5), "pb": f(3, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "d"], ["h"], group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["h"], ["hs"]),
        helper.make_node("Mul", ["h", "hs"], ["h2"]),
        helper.make_node("GlobalAveragePool", ["h2"], ["g"]),
        helper.make_node("Conv", ["g", "s1"], ["g1"]),
        helper.make_node("Add", ["g1", "pb"], ["g1b"]),
        helper.make_node("Relu", ["g1b"], ["g2"]),
        helper.make_node("Conv", ["g2", "s2"], ["g3"]),
        helper.make_node("HardSigmoid", ["g3"], ["g4"]),
        helper.make_node("Mul", ["h2", "g4"], ["h3"]),
        helper.make_node("MaxPool", ["h3"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["q"]),
        helper.make_node("Flatten", ["q"], ["fl"]),
        helper.make_node("Gemm", ["fl", "w", "b"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    return model(nodes, {"x": [2, 6, 6, 8]}, ["y"], weights), {"x": f(2, 6, 6, 8)}


def attention() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    f = lambda *s: rng.normal(size=s).astype(np.float32)  # noqa: E731
    weights = {
        "wqkv": f(8, 24) / 3, "bqkv": f(24), "wo": f(8, 8) / 3, "g": f(8), "b": f(8), "s": np.array(0.7, np.float32),
        "sh": np.array([1, 5, 3, 2, 4]), "back": np.array([1, 5, 8]), "sq": np.array([0]),
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32), "rt": np.array(2**0.5, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]),
        helper.make_node("MatMul", ["n", "wqkv"], ["m"]),
        helper.make_node("Add", ["m", "bqkv"], ["qkv"]),
        helper.make_node("Reshape", ["qkv", "sh"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
        helper.make_node("Split", ["t"], ["q0", "k0", "v0"], axis=0),
        *(helper.make_node("Squeeze", [c + "0", "sq"], [c]) for c in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("Mul", ["q", "s"], ["qs"]),
        helper.make_node("Mul", ["kt", "s"], ["ks"]),
        helper.make_node("MatMul", ["qs", "ks"], ["sc"]),
        helper.make_node("Softmax", ["sc"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "back"], ["or"]),
        helper.make_node("MatMul", ["or", "wo"], ["z"]),
        helper.make_node("Div", ["z", "rt"], ["e1"]),
        helper.make_node("Erf", ["e1"], ["e2"]),
        helper.make_node("Add", ["e2", "one"], ["e3"]),
        helper.make_node("Mul", ["z", "e3"], ["e4"]),
        helper.make_node("Mul", ["e4", "half"], ["e5"]),
        helper.make_node("Add", ["x", "e5"], ["y"]),
    ]
    return model(nodes, {"x": [1, 5, 8]}, ["y"], weights), {"x": f(1, 5, 8)}


NETWORKS = {"residual": residual, "squeeze_excite": squeeze_excite, "attention": attention}


def reference(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def layers(module: Module) -> Counter:
    """How many groups there are by anchor, and other operations by name (constants and the terminator left out)."""
    out: Counter = Counter()
    for op in module.function().block.ops[:-1]:
        inner = [o.name for r in op.regions for o in r.ops]
        anchors = [n for n in inner if n.startswith(("graph.conv", "graph.matmul", "graph.reduce", "graph.max_pool"))]
        out[(anchors or ["map"])[0] if op.regions else op.name] += 1
    del out["graph.const"]
    return out


@pytest.mark.parametrize("name", NETWORKS)
def test_values_after_every_pass(name: str) -> None:
    proto, inputs = NETWORKS[name]()
    want = reference(proto, inputs)
    module = import_onnx(proto)
    for step in GRAPH:
        module = run_pipeline(module, [step]).module
        (got,) = evaluate(module, inputs).values()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=step)


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_is_close_and_stores_bf16(name: str) -> None:
    proto, inputs = NETWORKS[name]()
    module = run_pipeline(import_onnx(proto), GRAPH, options={"policy": "bf16"}).module
    (got,) = evaluate(module, inputs).values()
    assert got.dtype == np.float32
    assert np.corrcoef(got.ravel(), reference(proto, inputs).ravel())[0, 1] > 0.999
    for op in module.function().block.ops:
        for inner in (o for r in op.regions for o in r.ops):
            if inner.name in ("graph.conv", "graph.matmul"):
                x, w = (v.type for v in inner.operands)
                assert isinstance(x, TensorType) and isinstance(w, TensorType) and x.dtype.name == "bf16"
                depthwise = getattr(inner.attrs, "groups", 1) == x.shape[-1] > 1
                assert w.dtype.name == ("f32" if depthwise else "bf16")
                assert inner.attrs.packed


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("policy", ["f32", "bf16"])
def test_every_pass_is_idempotent(name: str, policy: str) -> None:
    module = import_onnx(NETWORKS[name]()[0])
    for step in GRAPH:
        once = run_pipeline(module, [step], options={"policy": policy}).module
        again = run_pipeline(once, [step], options={"policy": policy}).module
        assert str(again) == str(once), step
        module = once


def test_residual_block_is_three_groups() -> None:
    module = run_pipeline(import_onnx(residual()[0]), GRAPH).module
    found = layers(module)
    assert found.pop("graph.transpose") == 2  # of the input and of the result, which are channels first
    found.pop("graph.copy", None)
    assert found == {"graph.conv": 3}


def test_squeeze_and_excite_needs_no_transpose_inside() -> None:
    found = layers(run_pipeline(import_onnx(squeeze_excite()[0]), GRAPH).module)
    assert (
        found["graph.transpose"] == 1 and found["graph.conv"] == 3 and found["map"] == 2
    )  # the gate; softmax's quotient


def test_attention() -> None:
    found = layers(run_pipeline(import_onnx(attention()[0]), GRAPH, options={"policy": "bf16"}).module)
    assert found["graph.matmul"] == 4 and found["graph.reduce_sum"] == 3 and found["graph.reduce_max"] == 1
    assert found["map"] == 2  # the last steps of layernorm and of softmax
    assert found["graph.pack"] == 2 and found["graph.copy"] == 1


SOFTMAX = """d1c.module graph { func @main(%x: tensor<4x8xf32>) {
    %m = graph.reduce_max(%x) {axes = [1], keepdims = true} : tensor<4x1xf32>
    %d = graph.sub(%x, %m) : tensor<4x8xf32>
    %e = graph.exp(%d) : tensor<4x8xf32>
    %s = graph.reduce_sum(%e) {axes = [1], keepdims = true} : tensor<4x1xf32>
    %y = graph.div(%e, %s) : tensor<4x8xf32>
    graph.return(%y) } }"""


def test_softmax_is_three_groups_of_the_same_bits() -> None:
    module = parse(SOFTMAX)
    fused = run_pipeline(module, ["fuse"]).module
    assert layers(fused) == {"graph.reduce_max": 1, "graph.reduce_sum": 1, "map": 1}
    x = {"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}
    before, after = evaluate(module, x), evaluate(fused, x)
    assert [a.tobytes() for a in before.values()] == [a.tobytes() for a in after.values()]
