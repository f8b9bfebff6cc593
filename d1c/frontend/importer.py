"""ONNX -> graph: bind the shapes, evaluate what is constant, lower every other node by its rule or its function."""

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
from d1c.frontend import bounded, bounded_ops, consteval, functions
from d1c.frontend.context import MISFIT, ImportContext, Item, tensor
from d1c.frontend.interface import bind_inputs, results_of
from d1c.frontend.load import attribute, graphs_of, load_model, outer_names, sort_nodes, tensor_array
from d1c.frontend.refusals import Rules, check_form, described, newest, refuse_unknown
from d1c.frontend.shapes import frozen_inputs, input_types, type_proto
from d1c.ir.core import Module, Value
from d1c.ops.opdef import OnnxRule, load_all

_SHAPE_OPS = ("Shape", "Size")


def import_onnx(
    model: str | Path | bytes | onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...] | None] = {},
    dims: Mapping[str, int] = {},
    freeze: Mapping[str, Any] = {},
) -> Module:
    """The model as a module of level graph, every shape static.

    shapes  whole input shapes by name, which win over the file (`s.0`, `s.1`, ... for the elements of a sequence s;
            None: an empty one, or an optional that is not given). dims: values of symbolic dimensions.
    freeze  inputs that become constants (shapes, axes or scales that the model takes as inputs).
    Module.attrs: "outputs" names of the results, "folded" how many nodes were evaluated at import, "folded_bytes" the
    size of what they gave, "frozen" the frozen inputs; d1c.frontend.interface has those of inputs and outputs that are
    no plain tensors. main's arguments carry the names of the model's inputs.
    Raises ImportFailed, UnsupportedOp (all unknown nodes at once), ShapeUnbound (all dimensions at once), TypeMismatch.
    """
    loaded = load_model(model)
    graph = loaded.graph
    freeze = frozen_inputs(graph.input, freeze)
    fixed = set(loaded.initializers) | set(freeze)
    rules = collect_rules()
    refuse_unknown(loaded.nodes, fixed, rules, loaded.opsets, loaded.functions, strings=loaded.strings)
    inputs = [i for i in graph.input if i.name not in fixed]
    types = input_types(inputs, shapes, dims)
    read = frozenset(n for node in loaded.nodes for n in outer_names(node)) | {o.name for o in graph.output}
    run = Importer(ImportContext(loaded.opsets, read), rules, loaded.functions, loaded.folder)
    args, interface = bind_inputs(run.cx, types)
    for name, array in {**loaded.initializers, **freeze}.items():
        if name in read:
            run.cx.bind(name, run.cx.const(np.asarray(array), name))
    run.lower(loaded.nodes)
    names = tuple(o.name for o in graph.output)
    if not names:
        raise ImportFailed(
            "the graph has no outputs", rule="a model computes something", remedy="list its results as outputs"
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ImportFailed(
            f"output {twice[0]!r} occurs twice", where=twice[0], rule="outputs have names of their own",
            remedy="list it once, or give its second name to an Identity of it",
        )  # fmt: skip
    run.cx.origin = ""
    results, attrs = results_of(run.cx, names)
    attrs |= {"folded": run.folded, "folded_bytes": run.folded_bytes, **interface}
    if freeze:
        attrs["frozen"] = tuple(sorted(freeze))
    return run.cx.module(args, results, attrs)


def collect_rules() -> Rules:
    """(domain, op) -> its rules, oldest first. Those of d1c.frontend.rules_* win over those of the op rows."""
    rules: dict[tuple[str, str], dict[int, OnnxRule]] = {}

    def add(rule: OnnxRule) -> None:
        rules.setdefault((functions.plain_domain(rule.domain), rule.op_type), {})[rule.since] = rule

    for row in load_all().values():
        for rule in row.onnx:
            add(rule)
    for info in pkgutil.iter_modules(d1c.frontend.__path__):
        if info.name.startswith("rules_"):
            for rule in importlib.import_module(f"d1c.frontend.{info.name}").RULES:
                add(rule)
    return {key: [rule for _, rule in sorted(by_opset.items())] for key, by_opset in rules.items()}


class Importer:
    """One import under way: the context, the rules, and what has been folded so far."""

    def __init__(self, cx: ImportContext, rules: Rules, own: functions.Functions, folder: Path | None) -> None:
        self.cx = cx
        self.rules = rules
        self.functions = own
        self.folder = folder
        self.folded = 0
        self.folded_bytes = 0
        self.count = 0
        cx.subgraph = self.subgraph

    def lower(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Fold or lower each node; the values are bound in the context."""
        cx = self.cx
        for node in nodes:
            cx.origin = f"{cx.prefix}{node.name or f'{node.op_type}_{self.count}'}"
            self.count += 1
            if (functions.plain_domain(node.domain), node.op_type, node.overload) not in self.functions:
                check_form(node, cx.opsets, cx.origin)
            if cx.opset < 7 and attribute(node, "broadcast", 0) and attribute(node, "axis") is not None:
                node = self.aligned(node)
            operands = cx.inputs(node)
            if node.op_type == "If" and (cx.is_const(operands[0]) or _gives_lists(node)):
                condition = cx.known(_some(operands[0]), "If: the condition of branches that give sequences")
                self.branch(node, bool(condition.all()))
            elif (folded := self.fold(node, operands)) is not None:
                for name, array in zip(node.output, folded, strict=False):
                    if name:
                        cx.bind(name, cx.const(array, name))
            else:
                if (rule := newest(self.rules, node, cx.opsets)) is not None:
                    self.by_rule(node, rule)
                else:
                    self.by_function(node)
                if consteval.foldable(node) and operands and self.constant(operands):
                    self.settle(node)

    def aligned(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with operand 1 given dims of size 1 behind it, so that numpy's broadcasting puts its dims where
        `axis` says. Below opset 7 broadcasting was asked for, and its place given."""
        cx = self.cx
        a, b = (_some(v) for v in cx.inputs(node))
        rank, own, axis = len(tensor(a).shape), len(tensor(b).shape), attribute(node, "axis")
        axis += rank if axis < 0 else 0
        name = f"{node.input[1]}.aligned"
        cx.bind(name, cx.reshape(b, (*tensor(b).shape, *(1,) * (rank - axis - own))))
        out = onnx.NodeProto()
        out.CopyFrom(node)
        out.input[1] = name
        return out

    def fold(self, node: onnx.NodeProto, operands: Sequence[Any]) -> tuple[np.ndarray, ...] | None:
        """The outputs as arrays if they are constant, else None."""
        cx = self.cx
        if node.op_type in _SHAPE_OPS and isinstance(operands[0], Value) and not cx.counts(operands[0]):
            shape = tensor(operands[0]).shape
            arrays: tuple[np.ndarray, ...] = (
                consteval.shape_value(node, shape)
                if node.op_type == "Shape"
                else np.array(np.prod(shape, dtype=np.int64)),
            )
        elif self.folds(node) and self.constant(operands):
            try:
                arrays = consteval.evaluate(node, [None if v is None else cx.array(v) for v in operands], cx.opsets)
            except ImportFailed as error:
                error.where = cx.origin  # which has a name for every node
                raise
        else:
            return None
        if node.op_type != "Constant":
            self.folded += 1
            self.folded_bytes += sum(a.nbytes for a in arrays)
        return arrays

    def folds(self, node: onnx.NodeProto) -> bool:
        """Whether the node is evaluated as it is once its operands are known: others are lowered, then evaluated."""
        if not consteval.foldable(node) or graphs_of(node):
            return False
        lowered = newest(self.rules, node, self.cx.opsets) or functions.has_body(node, self.cx.opsets, self.functions)
        return consteval.direct(node) or not lowered

    def constant(self, operands: Sequence[Any]) -> bool:
        """Whether all operands are known."""
        return all(v is None or self.cx.is_const(v) for v in operands)

    def settle(self, node: onnx.NodeProto) -> None:
        """Bind what a lowered node with constant operands gives to constants, as far as it can be evaluated."""
        cx = self.cx
        values = {name: v for name in node.output if name and isinstance(v := cx.find(name), Value)}
        made = {name for name, v in values.items() if not cx.is_const(v)}  # Identity's operand stays one constant
        known = {name: a for name, v in values.items() if (a := cx.evaluated(v)) is not None}
        for name, array in known.items():
            if name in made:
                cx.bind(name, cx.const(array, name))
        if known:
            self.folded += 1
            self.folded_bytes += sum(a.nbytes for a in known.values())

    def by_rule(self, node: onnx.NodeProto, rule: OnnxRule) -> None:
        """Lower one node by its rule."""
        cx = self.cx
        cx.rule = rule
        try:
            reads = bounded.touched(cx, node)
            built: Any = bounded_ops.lower(cx, node, rule.build) if reads else rule.build(cx, node)
        except D1Error:
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
            raise ImportFailed(
                f"{described(node, cx.opsets)} is not as ONNX defines it: {type(error).__name__}: {error}",
                where=cx.origin,
                rule="a node has the operands and attributes that ONNX defines for its op set",
                remedy=f"{MISFIT}; if all is right, this is a bug of d1c's rule",
            ) from error
        results = (built,) if isinstance(built, Item) else tuple(built)
        for i, name in enumerate(node.output):
            if not name:
                continue
            if i < len(results) and results[i] is not None:
                cx.bind(name, results[i])
            elif cx.wants(node, i):
                raise cx.refuse(f"output {i} ({name!r}) of {described(node, cx.opsets)} is not supported")

    def by_function(self, node: onnx.NodeProto) -> None:
        """Lower one node by lowering the nodes of its function's body, in a scope of their own."""
        cx = self.cx
        operands = cx.inputs(node)
        types = [type_proto(v.type) if isinstance(v, Value) else None for v in operands]
        body = functions.body(node, cx.opsets, self.functions, types)
        if body is None:
            raise UnsupportedOp(
                f"no rule for {described(node, cx.opsets)}",
                where=cx.origin,
                rule="every node lowers by a rule or by ONNX's definition of the op as a function",
                remedy=MISFIT,
            )
        if len(operands) > len(body.inputs):
            raise cx.refuse(f"{described(node, cx.opsets)} has {len(operands)} operands, takes {len(body.inputs)}")
        formal = dict(zip(body.inputs, operands, strict=False))
        names = {name: formal.get(name) for name in body.inputs}
        read = {n for inner in body.nodes for n in outer_names(inner)}
        wanted = [i for i, name in enumerate(node.output) if name]
        read |= {body.outputs[i] for i in wanted if cx.wants(node, i)}
        graph = onnx.GraphProto(node=body.nodes)
        graph.output.extend(onnx.ValueInfoProto(name=body.outputs[i]) for i in wanted)
        with cx.scope(names, frozenset(read), body.opsets):
            inner = sort_nodes(graph, set(body.inputs))
            refuse_unknown(inner, self.constants(), self.rules, cx.opsets, self.functions, cx.prefix)
            self.lower(inner)
            results = [cx.bound(body.outputs[i]) for i in wanted]
        for i, result in zip(wanted, results, strict=True):
            cx.bind(node.output[i], result)

    def constants(self) -> set[str]:
        """The names in scope that stand for constants, those of operands left out included."""
        cx = self.cx
        return {n for n in cx.names() if cx.bound(n) is None or cx.is_const(cx.bound(n))}

    def branch(self, node: onnx.NodeProto, condition: bool) -> None:
        """Lower the branch of an If whose condition is constant, in place."""
        results = self.subgraph(attribute(node, "then_branch" if condition else "else_branch"), ())
        self.folded += 1
        for name, result in zip(node.output, results, strict=True):
            if name:
                self.cx.bind(name, result)

    def subgraph(self, graph: onnx.GraphProto, items: Sequence[Item]) -> list[Item]:
        """Lower a subgraph in place with `items` for its inputs; the items of its outputs."""
        cx = self.cx
        names: dict[str, Any] = {i.name: item for i, item in zip(graph.input, items, strict=True)}
        names |= {t.name: cx.const(tensor_array(t, self.folder), t.name) for t in graph.initializer}
        nodes = sort_nodes(graph, cx.names() | set(names))
        read = frozenset(n for node in nodes for n in outer_names(node)) | {o.name for o in graph.output}
        with cx.scope(names, read):
            refuse_unknown(nodes, self.constants(), self.rules, cx.opsets, self.functions, cx.prefix)
            self.lower(nodes)
            return [cx.bound(o.name) for o in graph.output]


def _some(value: Any) -> Any:
    if value is None:
        raise ImportFailed("a required input is left out", rule="operands that ONNX requires are given", remedy=MISFIT)
    return value


def _gives_lists(node: onnx.NodeProto) -> bool:
    """Whether a branch of an If gives a sequence or an optional, of which the compiler must know which it is."""
    outputs = (o for a in node.attribute for o in a.g.output)
    return any(o.type.WhichOneof("value") in ("sequence_type", "optional_type") for o in outputs)
