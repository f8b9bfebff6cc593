"""Which ONNX ops can be imported, as data: for `d1c ops`, docs/ops.md and reports."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import onnx

from d1c.frontend.importer import collect_rules
from d1c.ops.opdef import load_all


@dataclass(frozen=True, slots=True)
class OnnxOp:
    """An ONNX op with a rule.

    since    the first opset of its domain whose node the rule takes: that of the rule, or the op's own if later.
    row      the graph op of which it is the one-to-one image; empty where a rule builds it from several.
    module   where the rule is, without `d1c.`.
    doc      the first paragraph of the rule's docstring, if it has one.
    """

    name: str
    domain: str
    since: int
    row: str
    module: str
    doc: str


def onnx_ops() -> tuple[OnnxOp, ...]:
    """All of them, by domain and name."""
    rows = {id(rule.build): row.name for row in load_all().values() for rule in row.onnx}
    born: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (schema.domain, schema.name)
        born[key] = min(born.get(key, schema.since_version), schema.since_version)
    out = []
    for (domain, name), rules in sorted(collect_rules().items()):
        since, build = rules[0].since, rules[0].build
        # The rules of simple ops are closures over the row's name: what they are is said by the row.
        doc = "" if id(build) in rows else " ".join((inspect.getdoc(build) or "").partition("\n\n")[0].split())
        first = max(since, born.get((domain, name), 1))
        out.append(OnnxOp(name, domain, first, rows.get(id(build), ""), build.__module__.removeprefix("d1c."), doc))
    return tuple(out)
