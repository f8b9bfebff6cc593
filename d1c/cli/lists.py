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


def print_ops() -> None:
    """ONNX ops with the first opset that a rule knows, then the rows of the registry by level."""
    from d1c.frontend.importer import collect_rules
    from d1c.ops.opdef import load_all

    rules = collect_rules()
    names = [(f"{domain}.{op}" if domain else op, since[0].since) for (domain, op), since in sorted(rules.items())]
    print(f"{len(names)} ONNX ops (with the first opset of the rule):")
    print(_columns([f"{name} {since}" for name, since in names]))
    levels: dict[str, list[str]] = defaultdict(list)
    for row in load_all().values():
        level, _, op = row.name.partition(".")
        levels[level].append(op)
    for level, ops in levels.items():
        print(f"\n{len(ops)} ops of level {level}:")
        print(_columns(sorted(ops)))


def _columns(words: list[str], width: int = 110) -> str:
    lines, line = [], ""
    for word in words:
        if line and len(line) + 2 + len(word) > width:
            lines.append(line)
            line = ""
        line += f"  {word}"
    return "\n".join([*lines, line])
