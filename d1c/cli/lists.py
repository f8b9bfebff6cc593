"""`d1c targets` and `d1c ops`: what there is."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from d1c.target.machine import PRESETS, Machine, machine


def print_targets(name: str | None) -> None:
    """The presets, a line each; or every field of one machine with its unit, source and meaning.

    Sources are those of d1-tile's numbers: what another machine changes is its own."""
    if name is None:
        for m in PRESETS.values():
            print(
                f"{m.name:8} {m.dies:2} dies x {m.grid_rows} x {m.grid_cols} = {m.cores:,} cores "
                f"of {m.node_count:,} live nodes, {m.sram_bytes:,} B SRAM each, "
                f"{m.peak_flops_bf16 / 1e12:,.1f} TFLOP/s bf16, {m.peak_flops_f32 / 1e12:,.1f} f32"
            )
        print(
            "\nd1c targets NAME shows every number with its source; a .toml file changes any of them (docs/machine.md)"
        )
        return
    m = machine(name)
    for field in dataclasses.fields(Machine):
        meta = field.metadata
        unit = f" {meta['unit']}" if meta["unit"] else ""
        print(f"{field.name} = {_value(getattr(m, field.name))}{unit}")
        own = getattr(m, field.name) != getattr(PRESETS["d1-tile"], field.name)
        print(f"    {meta['doc']}; {f'{m.name} has its own' if own else meta['source']}")


def _value(value: Any) -> str:
    text = str(list(value)) if isinstance(value, tuple) else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def print_ops(names: list[str]) -> None:
    """Everything about the ONNX ops `names`; without names, ONNX ops with the first opset that a rule knows and the
    suite's cases that pass, then the registry by level."""
    from d1c.frontend.support import by_function, onnx_ops, suite_cases
    from d1c.ops.opdef import load_all

    known, cases = onnx_ops(), suite_cases()
    if names:
        _print_each(names)
        return
    suite = ", and the cases of ONNX's suite that pass" if cases else ""
    print(f"{len(known)} ONNX ops (with the first opset of the rule{suite}):")
    words = []
    for op in known:
        passed, _, count = cases.get(op.full_name, (0, 0, 0))
        words.append(f"{op.full_name} {op.since}" + (f" ({passed}/{count})" if count else ""))
    print(_columns(words))
    print("\nd1c ops NAME ... tells more about an op: element types, where it runs, what must be known.")
    functions = by_function()
    print(f"\n{len(functions)} more by ONNX's definition as functions:")
    print(_columns([f"{domain}.{function}" if domain else function for domain, function in functions]))
    levels: dict[str, list[str]] = defaultdict(list)
    for row in load_all().values():
        level, _, name = row.name.partition(".")
        levels[level].append(name)
    for level, ops in levels.items():
        print(f"\n{len(ops)} ops of level {level}:")
        print(_columns(sorted(ops)))


def _print_each(names: list[str]) -> None:
    from d1c.errors import UsageError
    from d1c.frontend.support import by_function, element_types, onnx_ops, suite_cases

    rules = {op.full_name: op for op in onnx_ops()}
    functions = {f"{domain}.{name}" if domain else name: (name, domain) for domain, name in by_function()}
    if unknown := [n for n in names if n not in rules and n not in functions]:
        raise UsageError(
            f"no ONNX op {unknown[0]!r} can be compiled", rule="names as ONNX has them, with the domain if not ai.onnx",
            remedy="d1c ops lists all; docs/adding-an-op.md shows how to add one",
        )  # fmt: skip
    for name in names:
        passed, folded, count = suite_cases().get(name, (0, 0, 0))
        suite = f"; suite: {passed} of {count} cases pass on the cores, {folded} fold" if count else ""
        if name in functions:
            types = ", ".join(element_types(*functions[name]))
            print(f"{name}: on the cores, as the nodes of ONNX's own definition; {types}{suite}")
            continue
        op = rules[name]
        place = "on the cores" if op.where == "cores" else "resolved at import"
        how = f"graph op {op.row}" if op.row else f"rule in d1c.{op.module}"
        print(f"{name}: from opset {op.since}, {place}; {how}; {', '.join(op.dtypes) or 'any type'}{suite}")
        if op.static:
            print(f"    must be known at compile time: {', '.join(op.static)}")
        if op.doc:
            print(f"    {op.doc}")


def _columns(words: list[str], width: int = 110) -> str:
    lines, line = [], ""
    for word in words:
        if line and len(line) + 2 + len(word) > width:
            lines.append(line)
            line = ""
        line += f"  {word}"
    return "\n".join([*lines, line])
