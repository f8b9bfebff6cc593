"""Reading an ONNX model: file, bytes or ModelProto, with its external data, into a checked list of sorted nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from d1c.errors import ImportFailed, UnsupportedOp
from d1c.frontend.functions import Functions, functions_of, plain_domain

_IR_VERSION_TAG = b"\x08"  # field 1, varint: what every exporter writes first
_NO_FOLDER = "a model given as bytes or ModelProto has no folder to find external data in; pass the file's path"


@dataclass(frozen=True)
class Loaded:
    """A model ready for import: `graph` sorted topologically, initializers decoded.

    opsets: domain -> version ('' is ONNX's own). folder: where external data of attribute tensors lives, or None.
    functions: the model's own. strings: initializers and inputs that are string tensors; they are no `initializers`.
    """

    graph: onnx.GraphProto
    nodes: tuple[onnx.NodeProto, ...]
    initializers: Mapping[str, np.ndarray]
    opsets: Mapping[str, int]
    folder: Path | None
    functions: Functions
    strings: tuple[str, ...] = ()


def load_model(model: str | Path | bytes | onnx.ModelProto) -> Loaded:
    """Read and check `model`. Raises ImportFailed: no such file, not ONNX, truncated, external data missing or
    outside the folder, a node without a producer, a cycle."""
    folder: Path | None = None
    if isinstance(model, (str, Path)):
        path = Path(model)
        folder = path.parent
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImportFailed(
                f"cannot read {path}: {error.strerror or error}", where=str(path), remedy="check the path"
            ) from error
        proto = _decode(data, str(path))
    elif isinstance(model, onnx.ModelProto):
        proto = model
    else:
        proto = _decode(bytes(model), "the given bytes")
    if not proto.HasField("graph"):
        raise ImportFailed(
            "the file holds no graph", rule="an ONNX model has one graph", remedy="export the model again"
        )
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    opsets.setdefault("", 1)
    _check_opset(opsets[""])
    strings = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.STRING]
    strings += [i.name for i in proto.graph.input if _holds_strings(i.type)]
    initializers = {
        t.name: tensor_array(t, folder) for t in proto.graph.initializer if t.data_type != onnx.TensorProto.STRING
    }
    if proto.graph.sparse_initializer:
        raise ImportFailed(
            "the model has sparse initializers",
            where=proto.graph.sparse_initializer[0].values.name,
            rule="initializers are dense tensors",
            remedy="save the model with dense initializers",
        )
    nodes = sort_nodes(proto.graph, {*initializers, *strings})
    return Loaded(proto.graph, nodes, initializers, opsets, folder, functions_of(proto), tuple(strings))


def _check_opset(version: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise UnsupportedOp(
            f"the model is of opset {version}",
            where="opset_import",
            rule=f"d1c knows what ONNX's ops mean in opsets 1 to {newest}",
            remedy="convert the model with onnx.version_converter, or export it for an older opset",
        )


def _holds_strings(type_: onnx.TypeProto) -> bool:
    """Whether a value of this type holds strings: a tensor, or in a sequence, an optional or a map."""
    match type_.WhichOneof("value"):
        case "sequence_type":
            return _holds_strings(type_.sequence_type.elem_type)
        case "optional_type":
            return _holds_strings(type_.optional_type.elem_type)
        case "map_type":
            return type_.map_type.key_type == onnx.TensorProto.STRING or _holds_strings(type_.map_type.value_type)
    return bool(type_.tensor_type.elem_type == onnx.TensorProto.STRING)


def _decode(data: bytes, what: str) -> onnx.ModelProto:
    not_onnx = ImportFailed(
        f"{what} is not an ONNX file",
        where=what,
        rule="a model is one ModelProto",
        amounts={"file_bytes": len(data)},
        remedy="give a .onnx file; TensorFlow, PyTorch and other models are exported to ONNX first",
    )
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
    except DecodeError as error:
        if data.startswith(_IR_VERSION_TAG):
            raise ImportFailed(
                f"{what} is truncated or damaged: it starts like an ONNX model but does not decode to its end",
                where=what,
                rule="a model is one whole ModelProto",
                amounts={"file_bytes": len(data)},
                remedy="fetch or export the file again",
            ) from error
        raise not_onnx from error
    if not proto.HasField("graph") and not proto.opset_import:
        raise not_onnx
    return proto


def tensor_array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    """The tensor's data, read from its external file where it has one. Raises ImportFailed."""
    where = tensor.name or "(unnamed tensor)"
    if tensor.data_type == onnx.TensorProto.STRING:
        raise UnsupportedOp(
            "string tensors have no form on the machine", where=where, rule="tensors hold numbers",
            remedy="turn text into numbers on the host, and make those the model's inputs",
        )  # fmt: skip
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _external(tensor, folder, where)
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise ImportFailed(
            f"the data of tensor {where!r} does not fill its shape {tuple(tensor.dims)}: {error}",
            where=where,
            rule="a tensor has as many elements as its shape says",
            remedy="the file is truncated or damaged: fetch or export it again",
        ) from error


def _external(tensor: onnx.TensorProto, folder: Path | None, where: str) -> np.ndarray:
    if folder is None:
        raise ImportFailed(
            f"tensor {where!r} lies in an external file", where=where,
            rule="external data lies in the model's folder or below it", remedy=_NO_FOLDER,
        )  # fmt: skip
    fields = {e.key: e.value for e in tensor.external_data}
    root = folder.resolve()
    path = (root / fields.get("location", "")).resolve()
    if not path.is_relative_to(root) or path == root:
        raise ImportFailed(
            f"tensor {where!r} names external data outside the model's folder: {fields.get('location', '')!r}",
            where=where,
            rule="external data lies in the model's folder or below it",
            remedy="move the data beside the model and save the model again",
        )
    offset, size = int(fields.get("offset", 0)), int(fields.get("length", -1))
    try:
        have = path.stat().st_size
        if offset < 0 or (size >= 0 and offset + size > have):
            raise ImportFailed(
                f"the external file of tensor {where!r} is too short: {path.name}",
                where=where,
                amounts={"needed_bytes": offset + size, "file_bytes": have},
                remedy="fetch or export the file again",
            )
        with path.open("rb") as file:
            file.seek(offset)
            raw = file.read(size if size >= 0 else -1)
    except OSError as error:
        raise ImportFailed(
            f"cannot read the external data of tensor {where!r}: {path.name}: {error.strerror}",
            where=where,
            rule="external data lies in the model's folder or below it",
            remedy="put the data file beside the model, or save the model with its data inside",
        ) from error
    inline = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
    return np.asarray(numpy_helper.to_array(inline))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The attribute as a Python value: int, float, str, tuple of them, TensorProto or GraphProto."""
    for a in node.attribute:
        if a.name == name:
            value = onnx.helper.get_attribute_value(a)
            if isinstance(value, bytes):
                return value.decode("utf-8", "replace")
            if isinstance(value, (str, onnx.TensorProto, onnx.GraphProto, int, float)):
                return value
            return tuple(value)
    return default


def graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that the node holds: branches, the body of a loop."""
    return [g for a in node.attribute for g in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]


def outer_names(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor that the node reads, also by name (Gradient) or in its subgraphs; empty names left out."""
    yield from (name for name in node.input if name)
    if node.op_type == "Gradient" and plain_domain(node.domain):
        yield attribute(node, "y", "")
    for graph in graphs_of(node):
        inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        inner |= {o for n in graph.node for o in n.output}
        for n in graph.node:
            yield from (name for name in outer_names(n) if name not in inner)
        yield from (o.name for o in graph.output if o.name not in inner)


def sort_nodes(graph: onnx.GraphProto, known: set[str]) -> tuple[onnx.NodeProto, ...]:
    """The nodes that the outputs depend on, each after its producers, otherwise in the file's order.

    Real files are not always sorted (fp16 converters append their Casts at the end).
    """
    known = known | {i.name for i in graph.input}
    producer: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name and producer.setdefault(name, i) != i:
                raise ImportFailed(
                    f"two nodes produce tensor {name!r}: {graph.node[producer[name]].name} and {node.name}",
                    where=node.name or name,
                    rule="one producer per tensor",
                    remedy="the file is damaged or was merged wrongly: export it again",
                )
    needs: dict[int, list[int]] = {}

    def producers(names: Iterator[str], where: str) -> list[int]:
        out = []
        for name in names:
            if name in producer:
                out.append(producer[name])
            elif name not in known:
                raise ImportFailed(
                    f"nothing produces tensor {name!r}, which {where} reads",
                    where=where,
                    rule="every tensor is an input, an initializer or a node's output",
                    remedy="the file is damaged or was cut wrongly: export it again",
                )
        return out

    wanted = producers((o.name for o in graph.output), "the graph's output")
    while wanted:
        i = wanted.pop()
        if i not in needs:
            needs[i] = producers(outer_names(graph.node[i]), f"node {graph.node[i].name or graph.node[i].op_type}")
            wanted += needs[i]
    done: set[int] = set()
    order: list[int] = []
    for root in sorted(needs):
        stack = [(root, False)]
        open_: set[int] = set()
        while stack:
            i, left = stack.pop()
            if left:
                open_.discard(i)
                if i not in done:
                    done.add(i)
                    order.append(i)
                continue
            if i in done:
                continue
            if i in open_:
                name = graph.node[i].name or graph.node[i].op_type
                raise ImportFailed(
                    f"node {name} depends on itself", where=name, rule="a graph has no cycles",
                    remedy="write feedback as a Loop, or as an output that the next run takes as input",
                )  # fmt: skip
            open_.add(i)
            stack.append((i, True))
            stack += [(j, False) for j in reversed(needs[i]) if j not in done]
    return tuple(graph.node[i] for i in order)
