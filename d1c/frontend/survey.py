"""What a model asks of the compiler, found without importing it: ops, refusals, open dimensions, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from d1c.errors import ShapeUnbound, UnsupportedOp
from d1c.frontend.functions import has_body, plain_domain
from d1c.frontend.importer import collect_rules
from d1c.frontend.load import Loaded, graphs_of, load_model, outer_names
from d1c.frontend.refusals import Rules, described, is_known, label, newest, unknown_nodes
from d1c.frontend.shapes import frozen_inputs, input_types
from d1c.ir.types import TensorType

PLACES = ("cores", "function", "constant", "refused")
"""Where the work of a node is done: on the cores by a rule; on the cores as the ops of its function; at compile time,
because its operands are constants or shapes; nowhere, as d1c refuses it."""

_SMALL = 1024
"""Elements up to which an initializer is kept for shape inference: it may be a shape."""


@dataclass(frozen=True, slots=True)
class OpUse:
    """The nodes of one op at the top level of the graph: how many, and how many of them in each of PLACES."""

    op: str
    domain: str
    opset: int
    nodes: int
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A node that d1c has no rule for."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class Static:
    """An operand that decides shapes and depends on inputs of the run: these must be frozen."""

    node: str
    op: str
    operand: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """The findings. Bytes are those of the file's types; `weight_float_bytes` are those of f32 tensors.

    unbound     what is said of dimensions without a value, or ''; `flags` binds them (with 1: put your numbers in).
    largest     name, shape and bytes of the largest tensor that a node gives; None where shapes are open.
    uninferred  tensors of which ONNX's shape inference does not say the size.
    """

    nodes: int
    ops: tuple[OpUse, ...]
    refused: tuple[Refused, ...]
    strings: tuple[str, ...]
    unbound: str
    flags: str
    static: tuple[Static, ...]
    weight_bytes: int
    weight_float_bytes: int
    largest: tuple[str, tuple[int, ...], str, int] | None
    uninferred: int


def survey(
    model: str | Path | bytes | onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...] | None] = {},
    dims: Mapping[str, int] = {},
    freeze: Mapping[str, Any] = {},
) -> Survey:
    """Look through the model. Raises ImportFailed for what is no model, UsageError for flags that fit no input."""
    loaded = load_model(model)
    frozen = frozen_inputs(loaded.graph.input, freeze)
    fixed = set(loaded.initializers) | set(frozen)
    rules = collect_rules()
    refused = [Refused(*found) for found in unknown_nodes(loaded.nodes, fixed, rules, loaded.opsets, loaded.functions)]
    inputs = [i for i in loaded.graph.input if i.name not in fixed and i.name not in loaded.strings]
    bound: dict[str, TensorType] | None = None
    unbound, flags = "", ""
    try:
        types = input_types(inputs, shapes, dims)
        bound = {name: t for name, t in types.items() if isinstance(t, TensorType)}
    except ShapeUnbound as error:
        unbound, flags = error.message, error.remedy.removeprefix("add ").removesuffix(" (with your own numbers)")
    except UnsupportedOp as error:
        refused.append(Refused(error.where, "input", error.message))
    weights = [(a.nbytes, a.dtype == np.float32) for a in (*loaded.initializers.values(), *frozen.values())]
    nodes = [node for _, node in _every(loaded.nodes)]
    inner = [t for node in nodes for graph in graphs_of(node) for t in graph.initializer]
    for tensor in (*inner, *filter(None, map(_weight, nodes))):
        if tensor.data_type != TensorProto.STRING:
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            weights.append((math.prod(tensor.dims) * element.itemsize, element == np.float32))
    largest, uninferred = _largest(loaded, frozen, bound) if bound is not None else (None, 0)
    return Survey(
        len(nodes),
        _uses(loaded, fixed, rules, refused),
        tuple(refused),
        loaded.strings,
        unbound,
        flags,
        _static(loaded, fixed, rules),
        sum(size for size, _ in weights),
        sum(size for size, float32 in weights if float32),
        largest,
        uninferred,
    )


def _every(nodes: Iterable[onnx.NodeProto], prefix: str = "") -> Iterator[tuple[str, onnx.NodeProto]]:
    """The nodes, and those of the graphs that they hold (branches, bodies of loops), each behind where it is."""
    for node in nodes:
        where = f"{prefix}{label(node)}"
        yield where, node
        for graph in graphs_of(node):
            yield from _every(graph.node, f"{where}/")


def _uses(loaded: Loaded, fixed: set[str], rules: Rules, refused: Sequence[Refused]) -> tuple[OpUse, ...]:
    constant = _constants(loaded, fixed)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for where, node in _every(loaded.nodes):
        function = newest(rules, node, loaded.opsets) is None and has_body(node, loaded.opsets, loaded.functions)
        holds = function or graphs_of(node)  # names have slashes of their own
        if any(r.node == where or (holds and r.node.startswith(f"{where}/")) for r in refused):
            place = "refused"
        elif is_known(node, constant):
            place = "constant"
            constant.update(filter(None, node.output))
        else:
            place = "function" if function else "cores"
        row = counts.setdefault((plain_domain(node.domain), node.op_type), dict.fromkeys(PLACES, 0))
        row[place] += 1
    return tuple(
        OpUse(op, domain, loaded.opsets.get(domain, 1), sum(row.values()), row)
        for (domain, op), row in sorted(counts.items())
    )


def _constants(loaded: Loaded, fixed: set[str]) -> set[str]:
    """The tensors that are known at compile time."""
    constant = set(fixed)
    for node in loaded.nodes:
        if is_known(node, constant):
            constant.update(filter(None, node.output))
    return constant


def _static(loaded: Loaded, fixed: set[str], rules: Rules) -> tuple[Static, ...]:
    """Operands that rules want constant, and that inputs of the run reach by their values (not by their shapes)."""
    inputs = {i.name for i in loaded.graph.input} - fixed
    reach: dict[str, frozenset[str]] = {name: frozenset([name]) for name in inputs}
    found = []
    for node in loaded.nodes:
        rule = newest(rules, node, loaded.opsets)
        for i in rule.static if rule is not None else ():
            if i < len(node.input) and reach.get(node.input[i]):
                names = tuple(sorted(reach[node.input[i]]))
                found.append(Static(node.name or node.op_type, described(node, loaded.opsets), node.input[i], names))
        made = frozenset[str]()
        if node.op_type not in ("Shape", "Size"):
            made = made.union(*(reach.get(name, frozenset()) for name in outer_names(node)))
        reach |= {name: made for name in node.output if name}
    return tuple(found)


def _largest(
    loaded: Loaded, frozen: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> tuple[tuple[str, tuple[int, ...], str, int] | None, int]:
    """The largest tensor of the top level by ONNX's shape inference, and how many have no size after it."""
    infos = _inferred(loaded, frozen, types)
    constant = _constants(loaded, set(loaded.initializers) | set(frozen))
    sizes = []
    for name, info in infos.items():
        tensor = info.type.tensor_type
        dims = tensor.shape.dim
        if (
            name not in constant
            and tensor.HasField("shape")
            and all(d.HasField("dim_value") for d in dims)
            and tensor.elem_type
        ):
            shape = tuple(d.dim_value for d in dims)
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            sizes.append((name, shape, element.name, math.prod(shape) * element.itemsize))
    outputs = {o for n in loaded.nodes for o in n.output if o} - constant
    known = {name for name, *_ in sizes}
    return max(sizes, key=lambda s: (s[3], s[0]), default=None), len(outputs - known)


def _inferred(
    loaded: Loaded, frozen: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> dict[str, onnx.ValueInfoProto]:
    """Name -> type of inputs and of what nodes give, with the inputs' shapes bound and large weights as inputs."""
    graph = onnx.GraphProto(name="survey")
    heavy = {n.output[0]: w for n in loaded.nodes if (w := _weight(n)) is not None and math.prod(w.dims) > _SMALL}
    graph.node.extend(n for n in loaded.nodes if n.output[0] not in heavy)
    ports = {name: onnx.helper.make_tensor_value_info(name, w.data_type, w.dims) for name, w in heavy.items()}
    for name, array in {**loaded.initializers, **frozen}.items():
        if array.size <= _SMALL:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        else:
            code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, code, array.shape))
    for info in loaded.graph.input:
        if info.name in types:
            code = info.type.tensor_type.elem_type
            ports[info.name] = onnx.helper.make_tensor_value_info(info.name, code, types[info.name].shape)
        elif info.name not in frozen and info.name not in loaded.initializers:
            ports[info.name] = info
    graph.input.extend(ports.values())
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in loaded.graph.output)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in loaded.opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=list(loaded.functions.values()))
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        done = graph
    return {i.name: i for i in (*ports.values(), *done.value_info, *done.output)}


def _weight(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant."""
    tensors = (a.t for a in node.attribute if a.type == AttributeProto.TENSOR)
    return next(tensors, None) if node.op_type == "Constant" else None
