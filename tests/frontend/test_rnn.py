"""RNN, GRU and LSTM against onnxruntime: all forms, compiled and run on the machine `test`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import d1c

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, SIZE, HIDDEN = 4, 3, 5, 6
Model = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def net(
    kind: str, outs: tuple[str, ...] = (), steps: int = STEPS, bias: bool = True, lengths: bool = False,
    initial: bool = True, peepholes: bool = False, element: int = TensorProto.FLOAT, **attrs: Any,
) -> Model:  # fmt: skip
    rng = np.random.default_rng(7)
    d, g = 1 + (attrs.get("direction") == "bidirectional"), GATES[kind]
    turned = attrs.get("layout", 0)

    def data(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(helper.tensor_dtype_to_np_dtype(element))

    feeds = {"x": data(BATCH, steps, SIZE) if turned else data(steps, BATCH, SIZE)}
    weights = {"w": data(d, g * HIDDEN, SIZE), "r": data(d, g * HIDDEN, HIDDEN)}
    names = ["x", "w", "r", "", "", ""]
    if bias:
        weights["b"], names[3] = data(d, 2 * g * HIDDEN), "b"
    if lengths:
        feeds["lengths"], names[4] = np.array([2, steps, 1], np.int32), "lengths"
    for i, start in enumerate(("h0", "c0")[: 1 + (kind == "LSTM")]):
        names += [""] * i
        if initial:
            feeds[start], names[5 + i] = data(BATCH, d, HIDDEN) if turned else data(d, BATCH, HIDDEN), start
    if peepholes:
        weights["p"] = data(d, 3 * HIDDEN)
        names.append("p")
    outs = outs or ("y", "yh", "yc")[: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, names, outs, hidden_size=HIDDEN, **attrs)
    types = {k: TensorProto.INT32 if k == "lengths" else element for k in feeds}
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(k, types[k], v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(o, element, None) for o in outs if o],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), feeds


def check(model: Model, engine: str = "numpy", reference: Model | None = None) -> None:
    proto, feeds = model
    other, given = reference or model
    session = onnxruntime.InferenceSession(other.SerializeToString(), providers=["CPUExecutionProvider"])
    got = d1c.compile(proto, target="test", precision="f32").run(feeds, engine=engine)
    for info, want in zip(proto.graph.output, session.run(None, given), strict=True):
        assert got[info.name].shape == want.shape
        assert got[info.name].dtype == helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        np.testing.assert_allclose(got[info.name], want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_and_lengths(kind: str, direction: str) -> None:
    check(net(kind, direction=direction, lengths=True))


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "reset behind the product": ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
    "the same without biases": ("GRU", {"linear_before_reset": 1, "bias": False}),
    "peepholes": ("LSTM", {"peepholes": True, "direction": "bidirectional", "lengths": True}),
    "coupled gates": ("LSTM", {"peepholes": True, "input_forget": 1}),
    "clipped RNN": ("RNN", {"clip": 0.2}),
    "clipped GRU": ("GRU", {"clip": 0.2}),
    "clipped LSTM": ("LSTM", {"clip": 0.2}),
    "nothing optional": ("LSTM", {"initial": False, "bias": False}),
    "only the last output": ("LSTM", {"outs": ("", "yh")}),
    "only the last cell": ("LSTM", {"outs": ("", "", "yc")}),
    "only all outputs": ("GRU", {"outs": ("y",)}),
    "one step": ("LSTM", {"steps": 1, "direction": "bidirectional"}),
    "two functions": ("RNN", {"direction": "bidirectional", "activations": ["Tanh", "HardSigmoid"],
                              "activation_alpha": [0.3], "activation_beta": [0.4]}),
    "three functions": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Elu"], "activation_alpha": [0.3, 2.0]}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    kind, options = FORMS[form]
    check(net(kind, **options))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("Affine", (0.5, 0.1)), ("LeakyRelu", (0.1,)), ("ThresholdedRelu", (0.3,)), ("ScaledTanh", (0.7, 1.3)),
     ("HardSigmoid", ()), ("Elu", (0.7,)), ("Softsign", ()), ("Softplus", ()), ("Relu", ()), ("Sigmoid", ())],
)  # fmt: skip
def test_activations(name: str, numbers: tuple[float, ...]) -> None:
    given: dict[str, Any] = {f"activation_{k}": [n] for k, n in zip(("alpha", "beta"), numbers, strict=False)}
    check(net("RNN", activations=[name], **given))


def test_both_engines_run_many_steps() -> None:
    check(net("LSTM", steps=9, direction="bidirectional"), "jit")


def test_doubles_and_batch_first() -> None:
    """onnxruntime has neither: against the same in f32, and with the batch moved."""
    for kind in GATES:
        check(net(kind, element=TensorProto.DOUBLE), reference=net(kind))
    turned, plain = net("GRU", layout=1, lengths=True), net("GRU", lengths=True)
    feeds = {k: v if k == "lengths" else v.transpose(1, 0, 2) for k, v in turned[1].items()}
    got = d1c.compile(turned[0], target="test", precision="f32").run(turned[1], engine="numpy")
    want = onnxruntime.InferenceSession(plain[0].SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(got["y"], want[0].transpose(2, 0, 1, 3), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(got["yh"], want[1].transpose(1, 0, 2), rtol=1e-5, atol=2e-6)


def test_the_body_is_one_function_and_weights_are_its_own() -> None:
    module = d1c.import_onnx(net("LSTM", steps=100)[0])
    main, body = module.functions
    assert [op.attrs.trips for op in main.block.ops if op.name == "graph.loop"] == [100]
    assert sum(op.name == "graph.matmul" for op in main.block.ops) == 1
    assert sum(op.name == "graph.const" for op in body.block.ops) > 0
