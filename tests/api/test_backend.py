"""ONNX's backend interface, driven as ONNX's own tools drive it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from d1c import backend
from d1c.errors import InputError, UnsupportedOp

from .test_api import chain, exact


def test_prepare_and_run(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 12)).astype(np.float32)
    rep = backend.prepare(chain(), engine="numpy")
    for inputs in ([x], x, {"x": x}):
        outputs = rep.run(inputs)
        assert outputs[0].dtype == np.float32 and outputs.y is outputs[0]
        np.testing.assert_allclose(outputs[0], exact(x), atol=1e-6)


def test_symbolic_models_are_compiled_for_the_inputs_they_get(rng: np.random.Generator) -> None:
    rep = backend.prepare(chain("n"), engine="numpy")
    for n in (1, 3, 1):
        x = rng.standard_normal((n, 12)).astype(np.float32)
        np.testing.assert_allclose(rep.run([x])[0], exact(x), atol=1e-6)
    assert len(rep.programs) == 2


@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("Add", [(2, 3), (3,)], {}),
        ("Gemm", [(2, 3), (4, 3), (4,)], {"transB": 1, "alpha": 0.5}),
        ("Sigmoid", [(5,)], {}),
        ("MatMul", [(3,), (3,)], {}),
        ("Transpose", [(2, 3, 4)], {"perm": [2, 0, 1]}),
        ("Concat", [(2, 3), (2, 1)], {"axis": 1}),
        ("Conv", [(1, 2, 5, 5), (3, 2, 3, 3)], {"pads": [1, 1, 1, 1]}),
        ("MaxPool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ],
)
def test_run_node(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, object], rng: np.random.Generator
) -> None:
    names = [f"x{i}" for i in range(len(shapes))]
    node = helper.make_node(op, names, ["y"], **attributes)
    values = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "g", infos, [result]), opset_imports=[helper.make_opsetid("", 17)]
    )
    (expected,) = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    (y,) = backend.run_node(node, values, opset_version=17, engine="numpy")
    assert y.shape == expected.shape and y.dtype == np.float32
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_devices_and_refusals(rng: np.random.Generator) -> None:
    assert backend.supports_device("CPU") and backend.supports_device("D1") and backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA")
    assert backend.is_compatible(chain()) and backend.is_compatible(chain("n"))
    with pytest.raises(InputError, match="CUDA"):
        backend.prepare(chain(), "CUDA")
    with pytest.raises(InputError, match="2 inputs"):
        backend.prepare(chain(), engine="numpy").run([np.zeros((4, 12), np.float32)] * 2)
    odd = chain()
    odd.graph.node[1].op_type = "Frobnicate"
    assert not backend.is_compatible(odd)
    with pytest.raises(UnsupportedOp):
        backend.prepare(odd)
