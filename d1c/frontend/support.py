"""Which ONNX ops can be imported, as data: for `d1c ops`, docs/ops.md and reports."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    static   the operands that must be known at compile time in some opset, by their names in ONNX's newest definition.
    dtypes   the element types of its first operand (without operands: of its result) in ONNX's newest definition, as
             names of groups; strings and complex numbers have no form on the machine.
    where    "cores", or "import" where nothing is left to compute once shapes are known.
    """

    name: str
    domain: str
    since: int
    row: str
    module: str
    doc: str
    static: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    where: str = "cores"

    @property
    def full_name(self) -> str:
        """With the domain, unless it is ONNX's own."""
        return f"{self.domain}.{self.name}" if self.domain else self.name


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
        static = _names(name, domain, sorted({i for rule in rules for i in rule.static}))
        some = _names(name, domain, sorted({i for rule in rules for i in rule.sometimes}))
        static += tuple(f"{n} (some nodes)" for n in some)
        module = build.__module__.removeprefix("d1c.")
        where = "import" if (module, name) in _AT_IMPORT or module == "frontend.rules_sequence" else "cores"
        row = rows.get(id(build), "")
        out.append(OnnxOp(name, domain, first, row, module, doc, static, element_types(name, domain), where))
    return tuple(out)


_AT_IMPORT = {("frontend.rules_shape", name) for name in ("Shape", "Size", "Identity")}
_GROUPS = {
    "floats": ("float16", "bfloat16", "float"), "f64": ("double",),
    "integers": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), "bool": ("bool",),
    "4 and 2 bits": ("int4", "uint4", "int2", "uint2"),
    "f8, f4": ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0", "float4e2m1"),
}  # fmt: skip
"""ONNX's names of element types. A group of which a definition has some members only is listed member by member."""


def element_types(op: str, domain: str) -> tuple[str, ...]:
    """See OnnxOp.dtypes; empty for ops of other domains than ONNX's."""
    if not onnx.defs.has(op, domain):
        return ()
    schema = onnx.defs.get_schema(op, domain=domain)
    formal = [*schema.inputs, *schema.outputs]
    names = {t.removeprefix("tensor(").removesuffix(")") for t in (formal[0].types if formal else ())}
    out: list[str] = []
    for group, members in _GROUPS.items():
        has = [m for m in members if m in names]
        out += [group] if len(has) == len(members) or (group in ("4 and 2 bits", "f8, f4") and has) else has
    return tuple(out)


def _names(op: str, domain: str, operands: Sequence[int]) -> tuple[str, ...]:
    formal = onnx.defs.get_schema(op, domain=domain).inputs if onnx.defs.has(op, domain) else ()
    return tuple(formal[i].name if i < len(formal) else f"operand {i}" for i in operands)


def by_function() -> tuple[tuple[str, str], ...]:
    """(domain, op) of the ops without a rule that ONNX defines as functions of other ops: d1c lowers their bodies."""
    rules = collect_rules()
    schemas: Sequence[Any] = onnx.defs.get_all_schemas()  # whose stubs lack two of the attributes
    found = {
        (s.domain, s.name)
        for s in schemas
        if (s.has_function or s.has_context_dependent_function) and (s.domain, s.name) not in rules
    }
    return tuple(sorted(found))


@functools.cache
def suite_cases() -> Mapping[str, tuple[int, int, int]]:
    """Full name of an op -> cases of ONNX's suite in which it occurs that passed on the cores, that folded, and all of
    them, as of the last recorded run (tests/conformance). Empty where none is recorded."""
    path = Path(__file__).with_name("conformance.json")
    if not path.exists():
        return {}
    ops = json.loads(path.read_text(encoding="utf-8"))["ops"]
    return {name: (row[0], row[1], row[2]) for name, row in ops.items()}
