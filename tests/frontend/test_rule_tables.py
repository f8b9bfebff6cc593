"""The tables of rules: one rule for an op and opset, of an op that ONNX has."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict

import onnx

import d1c.frontend
from d1c.ops.opdef import OnnxRule

MODULES = [m.name for m in pkgutil.iter_modules(d1c.frontend.__path__) if m.name.startswith("rules_")]
RULES: dict[str, tuple[OnnxRule, ...]] = {m: importlib.import_module(f"d1c.frontend.{m}").RULES for m in MODULES}


def test_every_op_and_opset_has_one_rule() -> None:
    places = defaultdict(list)
    for module, rules in RULES.items():
        for r in rules:
            places[r.domain, r.op_type, r.since].append(module)
    assert {k: v for k, v in places.items() if len(v) > 1} == {}


def test_every_rule_is_of_an_op_that_onnx_has_at_that_opset() -> None:
    known = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        known[schema.domain, schema.name].add(schema.since_version)
    for rules in RULES.values():
        for r in rules:
            if r.domain in ("", "ai.onnx.ml", "ai.onnx.preview.training"):
                assert known[r.domain, r.op_type], r.op_type
                assert r.since == 1 or r.since >= min(known[r.domain, r.op_type]), (r.op_type, r.since)
