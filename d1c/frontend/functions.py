"""Functions: what an op without a rule is made of, by ONNX's own definition or by the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from d1c.errors import ImportFailed

Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]
"""The model's own functions by (domain, name, overload)."""


@dataclass(frozen=True)
class Body:
    """A function's body for one node: formal names, nodes with the node's attributes put in, their op sets."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    opsets: Mapping[str, int]


def plain_domain(domain: str) -> str:
    """'' for both spellings of ONNX's own domain."""
    return "" if domain == "ai.onnx" else domain


def functions_of(model: onnx.ModelProto) -> Functions:
    """The model's functions."""
    return {(plain_domain(f.domain), f.name, f.overload): f for f in model.functions}


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Any:
    """ONNX's definition of the node's op in the model's op sets; None where ONNX has none."""
    domain = plain_domain(node.domain)
    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return None


def has_body(node: onnx.NodeProto, opsets: Mapping[str, int], functions: Functions) -> bool:
    """Whether `body` gives one, for some types of its operands."""
    if (plain_domain(node.domain), node.op_type, node.overload) in functions:
        return True
    schema = schema_of(node, opsets)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def body(
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    functions: Functions,
    types: Sequence[onnx.TypeProto | None] | None,
) -> Body | None:
    """The body of the node's op: of the model's function of that name, or of ONNX's own.

    types   those of the node's operands (None: left out), on which some of ONNX's bodies depend; without them such
            an op gives None.
    Raises ImportFailed where the node does not say an attribute that the function needs.
    """
    domain = plain_domain(node.domain)
    function = functions.get((domain, node.op_type, node.overload))
    defaults: dict[str, onnx.AttributeProto] = {}
    if function is not None:
        defaults = {a.name: a for a in function.attribute_proto}
    else:
        schema = schema_of(node, opsets)
        if schema is None:
            return None
        version = opsets.get(domain, 1)
        function = onnx.FunctionProto()
        if schema.has_function:
            chosen = _newest(schema.function_opset_versions, version)
            function.ParseFromString(schema.get_function_with_opset_version(chosen))
        elif schema.has_context_dependent_function and types is not None:
            chosen = _newest(schema.context_dependent_function_opset_versions, version)
            text = [(onnx.TypeProto() if t is None else t).SerializeToString() for t in types]
            function.ParseFromString(
                schema.get_context_dependent_function_with_opset_version(chosen, node.SerializeToString(), text)
            )
        if not function.node:
            return None
        defaults = {
            name: a.default_value for name, a in schema.attributes.items() if a.default_value.type and not a.required
        }
    given = defaults | {a.name: a for a in node.attribute}
    opsets_inside = {plain_domain(o.domain): o.version for o in function.opset_import}
    return Body(
        tuple(function.input),
        tuple(function.output),
        tuple(_substituted(n, given) for n in function.node),
        {**opsets, **opsets_inside},
    )


def _newest(versions: Sequence[int], version: int) -> int:
    """Of the op sets for which there is a body the newest that is not newer than `version`, or else the oldest: a body
    says what the op means since its own version, in newer ops."""
    return max([v for v in versions if v <= version] or [min(versions)])


def _substituted(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with its references to the function's attributes replaced; one that nobody gives is left out."""
    refers = any(a.ref_attr_name or a.g.node or a.graphs for a in node.attribute)
    if not refers:
        return node
    out = onnx.NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for a in node.attribute:
        if a.ref_attr_name:
            if a.ref_attr_name in given:
                put = out.attribute.add()
                put.CopyFrom(given[a.ref_attr_name])
                put.name = a.name
            continue
        put = out.attribute.add()
        put.CopyFrom(a)
        for graph in [put.g] if a.g.node else put.graphs:
            inner = [_substituted(n, given) for n in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    if out.op_type == "Constant" and not out.attribute:
        wanted = ", ".join(a.ref_attr_name for a in node.attribute)
        raise ImportFailed(
            f"attribute {wanted} is not given", where=node.name, rule="the function's body needs it",
            remedy="give the node the attribute, or the function a default for it",
        )  # fmt: skip
    return out
