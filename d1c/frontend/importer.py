"""ONNX -> graph: bind the shapes, evaluate what is constant, lower every other node by its rule."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import d1c.frontend
from d1c.errors import D1Error, ImportFailed, UnsupportedOp
from d1c.frontend import consteval
from d1c.frontend.context import ImportContext, tensor
from d1c.frontend.load import attribute, load_model, outer_names, sort_nodes, tensor_array
from d1c.frontend.shapes import input_types
from d1c.ir.core import Module, Value
from d1c.ops.opdef import Importer, OnnxRule, load_all

Rules = Mapping[tuple[str, str], Sequence[tuple[int, Importer]]]

_SHAPE_OPS = ("Shape", "Size")


def import_onnx(
    model: str | Path | bytes | onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]] = {},
    dims: Mapping[str, int] = {},
    freeze: Mapping[str, np.ndarray] = {},
) -> Module:
    """The model as a module of level graph, every shape static.

    shapes  whole input shapes by name, which win over the file. dims: values of symbolic dimensions.
    freeze  inputs that become constants (shapes, axes or scales that the model takes as inputs).
    Module.attrs: "outputs" names of the results, "folded" how many nodes were evaluated at import, "folded_bytes" the
    size of what they gave. main's arguments carry the names of the model's inputs.
    Raises ImportFailed, UnsupportedOp (all unknown nodes at once), ShapeUnbound (all dimensions at once), TypeMismatch.
    """
    loaded = load_model(model)
    graph = loaded.graph
    fixed = set(loaded.initializers) | set(freeze)
    inputs = [i for i in graph.input if i.name not in fixed]
    types = input_types(inputs, shapes, dims)
    read = frozenset(n for node in loaded.nodes for n in outer_names(node)) | {o.name for o in graph.output}
    run = _Import(ImportContext(loaded.opsets[""], read), dict(loaded.opsets), collect_rules(), loaded.folder)
    run.refuse_unknown(loaded.nodes, fixed)
    args = [Value(types[i.name], i.name) for i in inputs]
    for arg in args:
        run.cx.bind(arg.name, arg)
    for name, array in {**loaded.initializers, **freeze}.items():
        if name in read:
            run.cx.bind(name, run.cx.const(np.asarray(array), name))
    run.lower(loaded.nodes)
    names = tuple(o.name for o in graph.output)
    if not names:
        raise ImportFailed("the graph has no outputs", rule="a model computes something")
    run.cx.origin = ""
    results = [run.cx.bound(n) for n in names]
    return run.cx.module(args, results, {"outputs": names, "folded": run.folded, "folded_bytes": run.folded_bytes})


def collect_rules() -> Rules:
    """(domain, op) -> [(first opset, rule)], ascending. Those of d1c.frontend.rules_* win over those of the op rows."""
    rules: dict[tuple[str, str], dict[int, Importer]] = {}

    def add(rule: OnnxRule) -> None:
        rules.setdefault((_domain(rule.domain), rule.op_type), {})[rule.since] = rule.build

    for row in load_all().values():
        for rule in row.onnx:
            add(rule)
    for info in pkgutil.iter_modules(d1c.frontend.__path__):
        if info.name.startswith("rules_"):
            for rule in importlib.import_module(f"d1c.frontend.{info.name}").RULES:
                add(rule)
    return {key: sorted(by_opset.items()) for key, by_opset in rules.items()}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class _Import:
    """One import under way: the context, the rules, and what has been folded so far."""

    def __init__(self, cx: ImportContext, opsets: dict[str, int], rules: Rules, folder: Path | None) -> None:
        self.cx = cx
        self.opsets = opsets
        self.rules = rules
        self.folder = folder
        self.folded = 0
        self.folded_bytes = 0
        self.count = 0

    def rule(self, node: onnx.NodeProto) -> Importer | None:
        """The newest rule that is not newer than the model's opset."""
        domain = _domain(node.domain)
        version = self.opsets.get(domain, 1)
        fitting = [build for since, build in self.rules.get((domain, node.op_type), ()) if since <= version]
        return fitting[-1] if fitting else None

    def refuse_unknown(self, nodes: Sequence[onnx.NodeProto], known: set[str]) -> None:
        """Raise one UnsupportedOp naming every node that has no rule and cannot be constant."""
        constant = set(known)
        unknown = []
        for node in nodes:
            reads = list(outer_names(node))
            if node.op_type in _SHAPE_OPS or (consteval.foldable(node) and constant.issuperset(reads)):
                constant.update(node.output)
            elif node.op_type == "If" and node.input[0] in constant:
                continue
            elif self.rule(node) is None or _old_broadcast(node):
                unknown.append(node)
        if unknown:
            shown = [f"{n.name or '(no name)'}: {_described(n, self.opsets)}" for n in unknown]
            kinds = sorted({_described(n, self.opsets) for n in unknown})
            raise UnsupportedOp(
                f"{len(unknown)} node{'s' * (len(unknown) > 1)} of {len(kinds)} kind{'s' * (len(kinds) > 1)} "
                f"that d1c has no rule for: {'; '.join(shown)}",
                where=unknown[0].name or unknown[0].op_type,
                rule="every node lowers by a rule or is constant",
                amounts={"nodes": len(unknown), "kinds": len(kinds)},
                remedy="`d1c ops` lists what is supported; docs/adding-an-op.md shows how to add an op in one file",
            )

    def lower(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Fold or lower each node; the values are bound in the context."""
        cx = self.cx
        for node in nodes:
            cx.origin = node.name or f"{node.op_type}_{self.count}"
            self.count += 1
            operands = cx.inputs(node)
            if node.op_type == "If" and cx.is_const(operands[0]):
                self.branch(node, bool(cx.array(_some(operands[0])).item()))
            elif (folded := self.fold(node, operands)) is not None:
                for name, array in zip(node.output, folded, strict=False):
                    if name:
                        cx.bind(name, cx.const(array, name))
            else:
                self.by_rule(node)

    def fold(self, node: onnx.NodeProto, operands: Sequence[Value | None]) -> tuple[np.ndarray, ...] | None:
        """The outputs as arrays if they are constant, else None."""
        cx = self.cx
        if node.op_type == "Identity" and cx.is_const(operands[0]):
            self.folded += 1
            return None
        if node.op_type in _SHAPE_OPS:
            shape = tensor(_some(operands[0])).shape
            arrays: tuple[np.ndarray, ...] = (
                consteval.shape_value(node, shape)
                if node.op_type == "Shape"
                else np.array(np.prod(shape, dtype=np.int64)),
            )
        elif consteval.foldable(node) and all(v is None or cx.is_const(v) for v in operands) and not _has_graph(node):
            arrays = consteval.evaluate(node, [None if v is None else cx.array(v) for v in operands], self.opsets)
        else:
            return None
        if node.op_type != "Constant":
            self.folded += 1
            self.folded_bytes += sum(a.nbytes for a in arrays)
        return arrays

    def by_rule(self, node: onnx.NodeProto) -> None:
        """Lower one node by its rule."""
        cx = self.cx
        build = self.rule(node)
        if build is None:
            raise UnsupportedOp(f"no rule for {_described(node, self.opsets)}", where=cx.origin)
        try:
            built: Any = build(cx, node)
        except D1Error:
            raise
        except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise ImportFailed(
                f"{_described(node, self.opsets)} is not as ONNX defines it: {type(error).__name__}: {error}",
                where=cx.origin,
                remedy="check --shape and --dim, and the model with onnx.checker; "
                "if all is right, this is a bug of d1c's rule",
            ) from error
        results = (built,) if isinstance(built, Value) else tuple(built)
        for i, name in enumerate(node.output):
            if not name:
                continue
            if i < len(results) and results[i] is not None:
                cx.bind(name, results[i])
            elif cx.wants(node, i):
                raise cx.refuse(f"output {i} ({name!r}) of {_described(node, self.opsets)} is not supported")

    def branch(self, node: onnx.NodeProto, condition: bool) -> None:
        """Lower the branch of an If whose condition is constant, in place."""
        cx = self.cx
        graph: onnx.GraphProto = attribute(node, "then_branch" if condition else "else_branch")
        initializers = {t.name: tensor_array(t, self.folder) for t in graph.initializer}
        for name, array in initializers.items():
            cx.bind(name, cx.const(array, name))
        nodes = sort_nodes(graph, cx.known())
        self.refuse_unknown(nodes, {n for n in cx.known() if cx.is_const(cx.bound(n))})
        self.lower(nodes)
        self.folded += 1
        for name, output in zip(node.output, graph.output, strict=True):
            if name:
                cx.bind(name, cx.bound(output.name))


def _some(value: Value | None) -> Value:
    if value is None:
        raise ImportFailed("a required input is left out")
    return value


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def _old_broadcast(node: onnx.NodeProto) -> bool:
    """Whether the node asks for the broadcasting of opsets below 7, which no rule implements."""
    return bool(attribute(node, "broadcast", 0)) and attribute(node, "axis") is not None


def _described(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str:
    domain = _domain(node.domain)
    return f"{domain + '.' if domain else ''}{node.op_type} (opset {opsets.get(domain, 1)})"
