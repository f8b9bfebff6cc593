"""Loading, binding of shapes, folding, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from d1c.errors import ImportFailed, ShapeUnbound, TypeMismatch, UnsupportedOp, UsageError
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate
from d1c.ir.core import Module
from d1c.ir.text import parse
from d1c.ir.verify import verify

Build = Callable[..., onnx.ModelProto]


def op_names(module: Module) -> list[str]:
    return [op.name for op in module.function().block.ops]


def relu(model: Build, shape: Any = (2, 3)) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": shape}, ["y"])


def test_file_bytes_and_proto_give_the_same(model: Build, tmp_path: Path) -> None:
    proto = relu(model)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    texts = {str(import_onnx(m)) for m in (path, str(path), path.read_bytes(), proto)}
    assert len(texts) == 1


def test_names_origins_and_attributes(model: Build) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a:0"], name="first"), helper.make_node("Relu", ["a:0"], ["y"])]
    module = import_onnx(model(nodes, {"x": (2, 3)}, ["y", "a:0"]))
    verify(module)
    assert module.level == "graph"
    assert module.attrs == {"outputs": ("y", "a:0"), "folded": 0, "folded_bytes": 0}
    block = module.function().block
    assert [a.name for a in block.args] == ["x"]
    assert [op.origin for op in block.ops[:-1]] == ["first", "Relu_1"]
    assert [op.result.name for op in block.ops[:-1]] == ["a_0", "y"]


def test_print_parse_print(model: Build) -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    module = import_onnx(model([helper.make_node("MatMul", ["x", "w"], ["y/out"])], {"x": (2, 3)}, ["y/out"], {"w": w}))
    text = str(module)
    assert str(parse(text, constants=module.constants)) == text


def test_nodes_in_any_order(model: Build) -> None:
    nodes = [
        helper.make_node("Neg", ["b"], ["y"]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    module = import_onnx(model(nodes, {"x": (2,)}, ["y"]))
    assert op_names(module) == ["graph.relu", "graph.abs", "graph.neg", "graph.return"]


def test_what_no_output_needs_is_not_imported(model: Build) -> None:
    nodes = [helper.make_node("NoSuchOp", ["x"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    module = import_onnx(model(nodes, {"x": (2,)}, ["y"], {"w": np.zeros(9, np.float32)}))
    assert op_names(module) == ["graph.relu", "graph.return"]
    assert not module.constants


def test_unused_vendor_domains_are_ignored(model: Build) -> None:
    proto = relu(model)
    proto.opset_import.append(helper.make_opsetid("com.example.fast", 7))
    assert import_onnx(proto)


def test_initializers_that_are_inputs_too_are_constants(model: Build) -> None:
    w = np.ones(3, np.float32)
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (2, 3), "w": w}, ["y"], {"w": w})
    module = import_onnx(proto)
    assert [a.name for a in module.function().block.args] == ["x"]
    assert list(module.constants) == ["w"]


def test_shape_arithmetic_folds(model: Build) -> None:
    """Flatten spelled Shape, Gather, Mul, Concat, Reshape, as exporters do; a count of what was folded."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Slice", ["s", "one", "four"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["m"], keepdims=1),
        helper.make_node("Unsqueeze", ["n", "zero1"], ["n1"]),
        helper.make_node("Concat", ["n1", "m"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    constants = {"zero": np.array(0), "zero1": np.array([0]), "one": np.array([1]), "four": np.array([4])}
    module = import_onnx(model(nodes, {"x": ("N", 3, 4, 5)}, ["y"], constants), dims={"N": 2})
    assert op_names(module) == ["graph.reshape", "graph.return"]
    assert module.function().block.ops[0].attrs.shape == (2, 60)
    assert module.attrs["folded"] == 6 and module.attrs["folded_bytes"] == 8 * (4 + 1 + 3 + 1 + 1 + 2)


def test_a_shape_is_known_without_the_tensor(model: Build) -> None:
    """What only Shape reads is not computed."""
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Shape", ["e"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["z"]),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    assert op_names(import_onnx(model(nodes, {"x": (2,)}, ["y"]))) == ["graph.const", "graph.add", "graph.return"]


def test_decoded_weights_fold(model: Build) -> None:
    q = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    nodes = [
        helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "zero"], ["c"]),
        helper.make_node("Mul", ["c", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    module = import_onnx(model(nodes, {"x": (2, 3)}, ["y"], {"q": q, "zero": np.float32(2), "scale": np.float32(0.5)}))
    assert op_names(module) == ["graph.const", "graph.matmul", "graph.return"]
    np.testing.assert_array_equal(module.constants["w"], (q.astype(np.float32) - 2) * np.float32(0.5))


def test_constant_folding_follows_onnx(model: Build) -> None:
    """Division truncates, Range counts, a slice walks backwards, ops beyond numpy's go to the reference evaluator."""
    a, b = np.array([-7, 7, 5]), np.array([2, -2, 5])
    nodes = [
        helper.make_node("Div", ["a", "b"], ["q"]),
        helper.make_node("Range", ["c0", "c7", "c3"], ["r"]),
        helper.make_node("Slice", ["a", "s", "e", "ax", "st"], ["back"]),
        helper.make_node("CumSum", ["a", "c0"], ["sum"]),
    ]
    constants = {"a": a, "b": b, "c0": np.array(0), "c7": np.array(7), "c3": np.array(3)}
    constants |= {"s": np.array([-1]), "e": np.array([-9]), "ax": np.array([0]), "st": np.array([-1])}
    module = import_onnx(model(nodes, {}, ["q", "r", "back", "sum"], constants))
    got = evaluate(module, {})
    assert {n: v.tolist() for n, v in got.items()} == {
        "q": [-3, -3, 1], "r": [0, 3, 6], "back": [5, 7, -7], "sum": [-7, 0, 5],
    }  # fmt: skip


def test_frozen_inputs_are_constants(model: Build) -> None:
    proto = model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": (2, 3), "s": np.array([6])}, ["y"])
    module = import_onnx(proto, freeze={"s": np.array([6])})
    assert op_names(module) == ["graph.reshape", "graph.return"]
    with pytest.raises(UnsupportedOp, match="run time only"):
        import_onnx(proto)


def test_constant_if_takes_its_branch(model: Build) -> None:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"b_{op}"])], op, [], [onnx.ValueInfoProto(name=f"b_{op}")]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("NoSuchOp"))
    module = import_onnx(model([node], {"x": (2,)}, ["y"], {"c": np.array(True)}))
    assert op_names(module) == ["graph.relu", "graph.return"]
    with pytest.raises(UnsupportedOp, match="NoSuchOp"):
        import_onnx(model([node], {"x": (2,)}, ["y"], {"c": np.array(False)}))


# ---- shapes


def test_dims_and_shapes_bind(model: Build) -> None:
    proto = relu(model, ("batch", 3, "h"))
    for given in ({"dims": {"batch": 2, "h": 5}}, {"shapes": {"x": (2, 3, 5)}}):
        assert import_onnx(proto, **given).function().block.args[0].type.shape == (2, 3, 5)  # type: ignore[union-attr]


def test_shapes_win_over_the_file(model: Build) -> None:
    module = import_onnx(relu(model, (1, 3)), shapes={"x": (4, 5)})
    assert module.function().block.args[0].type.shape == (4, 5)  # type: ignore[union-attr]


def test_every_unbound_dimension_is_listed(model: Build) -> None:
    proto = model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": (-1, 3, "?"), "z": ("batch", 3, 4)}, ["y"])
    with pytest.raises(ShapeUnbound) as caught:
        import_onnx(proto)
    text = str(caught.value)
    assert "x[?,3,?]" in text and "z[batch,3,4]" in text
    assert "--shape x=1,3,1" in text and "--dim batch=" in text


@pytest.mark.parametrize("given", [{"shapes": {"q": (1,)}}, {"dims": {"q": 1}}])
def test_unknown_names_in_bindings(model: Build, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="'q'"):
        import_onnx(relu(model, ("n", 3)), **given)


# ---- refusals


def test_all_unsupported_nodes_at_once(model: Build) -> None:
    nodes = [
        helper.make_node("StringSplit", ["x"], ["a"], name="n1"),
        helper.make_node("Foo", ["x"], ["b"], name="n2", domain="vendor"),
        helper.make_node("StringSplit", ["x"], ["c"]),
    ]
    with pytest.raises(UnsupportedOp) as caught:
        import_onnx(model(nodes, {"x": (2,)}, ["a", "b", "c"]))
    text = str(caught.value)
    assert "3 nodes of 2 kinds" in text
    assert "n1: StringSplit (opset 17)" in text and "n2: vendor.Foo" in text


def test_unsupported_form_names_the_node(model: Build) -> None:
    constants = {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    node = helper.make_node("Resize", ["x", *constants], ["y"], mode="quintic", name="up")
    with pytest.raises(UnsupportedOp, match=r"quintic[\s\S]*up"):
        import_onnx(model([node], {"x": (1, 1, 4, 4)}, ["y"], constants))


def test_an_output_that_no_rule_gives(model: Build) -> None:
    node = helper.make_node("Relu", ["x"], ["y", "i"], name="pool")
    with pytest.raises(UnsupportedOp, match="output 1"):
        import_onnx(model([node], {"x": (1, 1, 4, 4)}, ["y", "i"]))


def test_type_mismatch_names_the_node(model: Build) -> None:
    with pytest.raises(TypeMismatch, match=r"plus"):
        import_onnx(model([helper.make_node("Add", ["x", "z"], ["y"], name="plus")], {"x": (2, 3), "z": (4,)}, ["y"]))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a model", b"hello world", bytes(range(256))])
def test_not_an_onnx_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ImportFailed, match=r"not an ONNX file"):
        import_onnx(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match=r"none\.onnx"):
        import_onnx(tmp_path / "none.onnx")


def test_every_truncation_is_refused(model: Build) -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 3)}, ["y"], {"w": w})
    data = proto.SerializeToString()
    graph_ends = len(data) - len(proto.opset_import[0].SerializeToString()) - 2
    for length in range(graph_ends):
        with pytest.raises(ImportFailed):
            import_onnx(data[:length])


def test_initializer_with_too_little_data(model: Build) -> None:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (4,)}, ["y"], {"w": np.zeros(4, np.float32)})
    proto.graph.initializer[0].raw_data = b"\0" * 8
    with pytest.raises(ImportFailed, match="'w'"):
        import_onnx(proto)


def test_a_cycle_and_a_missing_producer(model: Build) -> None:
    loop = [helper.make_node("Relu", ["b"], ["a"], name="ra"), helper.make_node("Relu", ["a"], ["b"], name="rb")]
    with pytest.raises(ImportFailed, match="depends on itself"):
        import_onnx(model(loop, {}, ["b"]))
    with pytest.raises(ImportFailed, match="'nowhere'"):
        import_onnx(model([helper.make_node("Relu", ["nowhere"], ["y"])], {}, ["y"]))


# ---- external data


def external(model: Build, path: Path, location: str) -> None:
    """Save a model whose weights w stand in the file `location`."""
    w = np.arange(6, dtype=np.float32)
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (6,)}, ["y"], {"w": w})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "8", "length": "24"}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read(model: Build, tmp_path: Path) -> None:
    external(model, tmp_path / "m.onnx", "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\xff" * 8 + np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(import_onnx(tmp_path / "m.onnx").constants["w"], np.arange(6, dtype=np.float32))
    with pytest.raises(ImportFailed, match="no folder"):
        import_onnx((tmp_path / "m.onnx").read_bytes())


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "", "link.bin"])
def test_external_data_outside_the_folder_is_refused(model: Build, tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 64)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    external(model, folder / "m.onnx", location)
    with pytest.raises(ImportFailed, match="outside the model's folder"):
        import_onnx(folder / "m.onnx")


def test_short_or_missing_external_data(model: Build, tmp_path: Path) -> None:
    external(model, tmp_path / "m.onnx", "w.bin")
    with pytest.raises(ImportFailed, match=r"w\.bin"):
        import_onnx(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ImportFailed, match="too short"):
        import_onnx(tmp_path / "m.onnx")


def test_local_functions_are_inlined(model: Build) -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    function = helper.make_function("mine", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = model([helper.make_node("F", ["x"], ["y"], domain="mine")], {"x": (2,)}, ["y"])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function)
    assert op_names(import_onnx(proto)) == ["graph.relu", "graph.neg", "graph.return"]


def test_weights_as_constant_nodes(model: Build) -> None:
    value = numpy_helper.from_array(np.ones(3, np.float32))
    nodes = [helper.make_node("Constant", [], ["w"], value=value), helper.make_node("Add", ["x", "w"], ["y"])]
    module = import_onnx(model(nodes, {"x": (2, 3)}, ["y"]))
    assert op_names(module) == ["graph.const", "graph.add", "graph.return"]
    assert module.attrs["folded"] == 0
