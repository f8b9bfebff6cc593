"""What d1c refuses, found before anything is lowered, all of it at once: nodes without a rule, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from d1c.errors import ImportFailed, UnsupportedOp
from d1c.frontend import consteval
from d1c.frontend.functions import Functions, body, has_body, plain_domain, schema_of
from d1c.frontend.load import graphs_of, outer_names
from d1c.ops.opdef import OnnxRule

Rules = Mapping[tuple[str, str], Sequence[OnnxRule]]


def newest(rules: Rules, node: onnx.NodeProto, opsets: Mapping[str, int]) -> OnnxRule | None:
    """The newest rule for the node that is not newer than its op set."""
    domain = plain_domain(node.domain)
    version = opsets.get(domain, 1)
    fitting = [rule for rule in rules.get((domain, node.op_type), ()) if rule.since <= version]
    return fitting[-1] if fitting else None


def described(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str:
    """The node's op with its domain and op set, for messages."""
    domain = plain_domain(node.domain)
    return f"{domain + '.' if domain else ''}{node.op_type} (opset {opsets.get(domain, 1)})"


def label(node: onnx.NodeProto) -> str:
    """The node's name, or what it gives."""
    return node.name or f"(no name, gives {', '.join(map(repr, node.output[:1])) or 'nothing'})"


def is_known(node: onnx.NodeProto, constant: set[str]) -> bool:
    """Whether the node's results are known at import if those tensors are."""
    return node.op_type in ("Shape", "Size") or (consteval.foldable(node) and constant.issuperset(outer_names(node)))


def unknown_nodes(
    nodes: Sequence[onnx.NodeProto],
    known: set[str],
    rules: Rules,
    opsets: Mapping[str, int],
    own: Functions,
    prefix: str = "",
    inside: frozenset[tuple[str, str, str]] = frozenset(),
) -> Iterator[tuple[str, str, str]]:
    """(where, op with op set, reason or '') of every node that has no rule and no function and cannot be constant.

    known   the names that stand for constants. Subgraphs and function bodies are looked through; branches of an If
            whose condition is constant are not, as only one of them will be lowered.
    """
    constant = set(known)
    for node in nodes:
        where = f"{prefix}{label(node)}"
        if reason := _refused(node):
            yield where, described(node, opsets), reason
            continue
        if is_known(node, constant):
            constant.update(node.output)
            continue
        if node.op_type == "If" and constant.issuperset(node.input):
            continue
        rule = newest(rules, node, opsets)
        key = (plain_domain(node.domain), node.op_type, node.overload)
        if rule is not None:
            wrong = rule.check(node, opsets.get(key[0], 1)) if rule.check is not None else None
            if wrong:
                yield where, described(node, opsets), wrong
            for graph in graphs_of(node):
                names = constant | {t.name for t in graph.initializer}
                yield from unknown_nodes(
                    graph.node, names - {i.name for i in graph.input}, rules, opsets, own, f"{where}/", inside
                )
        elif not has_body(node, opsets, own):
            yield where, described(node, opsets), ""
        elif key in inside:
            yield where, described(node, opsets), "the function calls itself"
        elif (inner := body(node, opsets, own, None)) is not None:
            formal = zip(inner.inputs, node.input, strict=False)
            passed = {name for name, actual in formal if actual in constant} | set(inner.inputs[len(node.input) :])
            yield from unknown_nodes(inner.nodes, passed, rules, inner.opsets, own, f"{where}/", inside | {key})


def check_form(node: onnx.NodeProto, opsets: Mapping[str, int], where: str) -> None:
    """Raise ImportFailed if a node of ONNX's own ops lacks operands or attributes that it must have, or has attributes
    that the op does not know: whoever wrote them expects something of them."""
    schema = schema_of(node, opsets)
    if schema is None:
        return
    wrong = ""
    if len(node.input) < schema.min_input:
        wrong = f"has {len(node.input)} operands, takes {schema.min_input} or more"
    elif schema.min_input and schema.inputs[0].option != _OPTIONAL and not node.input[0]:
        wrong = f"lacks its first operand, {schema.inputs[0].name!r}"
    names = {a.name for a in node.attribute}
    if missing := [name for name, a in schema.attributes.items() if a.required and name not in names]:
        wrong = f"lacks the attribute {missing[0]!r}"
    elif foreign := sorted(names - set(schema.attributes)):
        wrong = f"has an attribute {foreign[0]!r}, which ONNX does not define for it"
    if wrong:
        raise ImportFailed(
            f"{described(node, opsets)} {wrong}", where=where, remedy="the file is damaged: export it again",
            rule="a node has the operands and attributes that ONNX defines for its op set",
        )  # fmt: skip


_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_TEXT = "text has no form on the machine: do this on the host, before or behind the program"
_REASONS = {
    **dict.fromkeys(
        ("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "CategoryMapper", "DictVectorizer"), _TEXT
    ),
    "ImageDecoder": "files are decoded on the host: give the program the pixels",
    **dict.fromkeys(("ZipMap", "CastMap"), "maps have no form on the machine: take their operand as the output"),
}
"""What to do about some ops that no rule will ever take."""


def _refused(node: onnx.NodeProto) -> str:
    """Why a node of known or unknown op is refused whatever its operands are; '' if it is not."""
    for a in node.attribute:
        strings = a.t.data_type == onnx.TensorProto.STRING or a.name in ("value_string", "value_strings")
        if strings or (a.name in ("to", "dtype") and a.i == onnx.TensorProto.STRING):
            return _TEXT
    return _REASONS.get(node.op_type, "")


def refuse_unknown(
    nodes: Sequence[onnx.NodeProto],
    known: set[str],
    rules: Rules,
    opsets: Mapping[str, int],
    own: Functions,
    prefix: str = "",
    strings: Sequence[str] = (),
) -> None:
    """Raise one UnsupportedOp that names every node of `unknown_nodes`, if there is one.

    strings  the names of the model's inputs and initializers that are string tensors, which are refused likewise.
    """
    found = list(unknown_nodes(nodes, known, rules, opsets, own, prefix))
    if not found and not strings:
        return
    kinds = len({op for _, op, _ in found})
    messages = []
    if found:
        shown = "; ".join(f"{where}: {op}{f', {reason}' if reason else ''}" for where, op, reason in found)
        messages.append(
            f"{len(found)} node{'s' * (len(found) > 1)} of {kinds} kind{'s' * (kinds > 1)} "
            f"that d1c has no rule for: {shown}"
        )
    if strings:
        messages.append(f"string tensors have no form on the machine: {', '.join(strings)}")
    raise UnsupportedOp(
        "; ".join(messages),
        where=", ".join(strings) if not found else found[0][0] if "(no name" not in found[0][0] else found[0][1],
        rule="every node lowers by a rule, by ONNX's definition as a function, or is constant"
        if found
        else "tensors hold numbers",
        amounts={"nodes": len(found), "kinds": kinds} if found else {},
        remedy="`d1c ops` lists what is supported: export the model with such ops, or give it functions made of them; "
        "docs/adding-an-op.md shows how to add an op in one file"
        if found
        else "turn text into numbers on the host, and make those the model's inputs",
    )
