"""Models of one node with something left out or changed: imported, or refused with rule and remedy; never a crash."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper

import d1c
from d1c.errors import D1Error

from .conftest import build
from .test_past_opsets import CASES


def damage(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """One change of the node, of an attribute or of an input's type."""
    node = model.graph.node[0]
    kind = int(rng.integers(7))
    at = int(rng.integers(len(node.input)))
    tensor = model.graph.input[0].type.tensor_type if model.graph.input else None
    if kind == 0:
        del node.input[at]
    elif kind == 1:
        node.input[at] = ""
    elif kind == 2:
        node.input[at] = node.input[int(rng.integers(len(node.input)))]
    elif kind == 3 and node.attribute:
        del node.attribute[int(rng.integers(len(node.attribute)))]
    elif kind == 4 and node.attribute:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        values = rng.choice([-99, -1, 0, 1, 2, 99], int(rng.integers(4))).tolist()
        if attribute.type == AttributeProto.INTS:
            attribute.ints[:] = values
        elif attribute.type == AttributeProto.INT:
            attribute.i = int(rng.choice([-99, -1, 0, 99]))
        elif attribute.type == AttributeProto.STRING:
            attribute.s = b"bogus"
    elif kind == 5 and tensor is not None:
        tensor.elem_type = int(rng.choice([1, 2, 6, 7, 9, 10, 11]))
    elif tensor is not None:
        if rng.integers(2) or not tensor.shape.dim:
            tensor.shape.dim.add().dim_value = 2
        else:
            tensor.shape.dim[int(rng.integers(len(tensor.shape.dim)))].dim_value = int(rng.choice([0, 1, 7]))


@pytest.mark.parametrize("name", CASES)
def test_imported_or_refused(name: str) -> None:
    op, opset, attributes, constants, x = CASES[name]
    rng = np.random.default_rng(list(CASES).index(name))
    for _ in range(20):
        node = helper.make_node(op, ["x", *constants], ["y"], name="node", **attributes)
        model = build([node], {"x": x}, ["y"], constants, opset)
        damage(model, rng)
        try:
            d1c.import_onnx(model)
        except D1Error as error:
            assert error.rule and error.remedy, str(error)
