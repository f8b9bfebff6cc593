"""`d1c time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d1c.cli.shell import check_outputs, progress, timed, write_json
from d1c.errors import UsageError

if TYPE_CHECKING:
    from d1c.target.machine import Machine
    from d1rt.events import Events, Simulator

SWEEPS = {
    "c0": "launch_cycles", "launch": "launch_cycles", "call": "call_cycles", "hop": "hop_cycles",
    "die_crossing": "die_crossing_cycles", "link": "link_bytes_per_cycle", "die_edge": "die_edge_bytes_per_cycle",
    "inject": "inject_cycles", "eject": "eject_cycles", "load": "load_bytes_per_cycle",
    "store": "store_bytes_per_cycle", "loop": "loop_cycles",
}  # fmt: skip
"""What --sweep may vary: names of its own, and the machine's fields."""
RATES = ("_cycles", "_cycle", "_rate", "_bytes_per_cycle", "_lanes", "_slots")
"""How the names of such fields end."""
SHOWN = 24
"""Layers of a long network that are shown: those that take longest."""
EXPLAINED = 0.01
"""A difference to the closed form is explained where the layer takes this share of the time."""


def time_program(
    path: Path, json: Path | None, trace: Path | None, sweeps: Sequence[str], all_layers: bool
) -> None:  # fmt: skip
    """Time the program in `path` event by event, beside the closed form."""
    check_outputs(json, trace, inputs=(path,))
    wanted = [sweep_of(s) for s in sweeps]
    from d1c.target import program_io

    with progress("reading"):
        program = program_io.load(path)
    from d1rt.events import Simulator

    seconds: dict[str, float] = {}
    with progress("timing") as tell, timed(seconds, "simulate_seconds"):
        simulator = Simulator(program)
        machines = [(name, value, machine_with(simulator.machine, name, value)) for name, vs in wanted for value in vs]
        found = simulator.run()
        swept = swept_cycles(simulator, machines, tell)
    result = {**as_json(found), "sweep": swept, **seconds}
    if trace is not None:
        from d1rt.trace import trace_events

        write_json(trace, trace_events(program, found))
    print(text(result, all_layers))
    if json is not None:
        write_json(json, result)


def sweep_of(flag: str) -> tuple[str, tuple[float, ...]]:
    """`c0=50,100` as the field's name and its values. UsageError for anything else."""
    name, equals, numbers = flag.partition("=")
    try:
        values = tuple(float(n) for n in numbers.split(","))
    except ValueError:
        values = ()
    if not equals or not values:
        raise UsageError(f"--sweep {flag!r} is not NAME=NUMBERS", remedy="for example --sweep c0=50,100,200,500")
    import dataclasses

    from d1c.target.machine import Machine

    field = SWEEPS.get(name, name)
    kinds = {f.name: str(f.type) for f in dataclasses.fields(Machine)}
    if kinds.get(field) not in ("int", "float") or not field.endswith(RATES):
        raise UsageError(
            f"--sweep {flag!r}: {name!r} cannot be varied",
            rule=f"a sweep varies {', '.join(SWEEPS)}, or a rate or latency of the machine by its field's name",
            remedy="`d1c targets NAME` lists the fields",
        )
    return field, values


def machine_with(machine: Machine, field: str, value: float) -> Machine:
    """The machine with another value of a field; UsageError where it is out of range."""
    fields: dict[str, Any] = {field: int(value) if int(value) == value else value}
    return replace(machine, **fields)


def swept_cycles(
    simulator: Simulator, machines: Sequence[tuple[str, float, Machine]], tell: Any
) -> list[dict[str, Any]]:
    """A record per point: the same program on another machine."""
    out = []
    for name, value, machine in machines:
        tell(f"{name} {value:g}")
        out.append({"field": name, "value": value, "cycles": simulator.cycles(machine)})
    return out


def as_json(found: Events) -> dict[str, Any]:
    """The keys that docs/timing.md lists."""
    path = [
        {
            "begin": s.begin, "end": s.end, "core": s.core, "from_core": s.source if s.source >= 0 else None,
            "what": s.what, "layer": s.layer, "barrier": s.barrier, "origin": s.origin,
        }
        for s in found.path
    ]  # fmt: skip
    return {**found.total, "layers": list(found.layers), "resources": found.resources, "path": path}


def why(layers: Sequence[Mapping[str, Any]], i: int) -> str:
    """Why a layer puts off the end more or less than the closed form says, as far as the critical path and its
    neighbours show."""
    layer = layers[i]
    d, path = layer["difference_cycles"], layer["path"]
    if abs(d) <= max(1, 0.05 * layer["closed_form_cycles"]):
        return ""
    for other in (*layers[max(0, i - 1) : i], *layers[i + 1 : i + 2]):
        if other["difference_cycles"] * d < 0 and abs(other["difference_cycles"]) >= abs(d) / 2:
            return f"it overlaps with layer {other['layer']}, which makes up for it"
    waits = {k: v for k, v in path.items() if k in ("SRAM port", "row link", "column link", "die edge")}
    longest = max(waits, key=lambda k: waits[k], default="")
    if d > 0:
        return f"messages wait, most for {longest}" if waits.get(longest, 0) > d / 4 else "it waits for slower cores"
    return f"what {longest or 'ports'} carries is not all before the last message"


def text(result: Mapping[str, Any], all_layers: bool) -> str:
    """The report: layers, totals, resources, the critical path in brief, the sweep."""
    lines = [
        f"{'layer':>5}  {'name':<28} {'cycles':>9} {'closed form':>11} {'difference':>10} {'bound':>8}  "
        f"{'binds':<15} why the closed form differs"
    ]
    layers = [x for x in result["layers"] if x["cycles"] or x["closed_form_cycles"]]
    shown = layers
    if not all_layers and len(layers) > SHOWN:
        least = sorted(x["cycles"] for x in layers)[-SHOWN]
        shown = [x for x in layers if x["cycles"] >= least][:SHOWN]
    at = {x["layer"]: i for i, x in enumerate(result["layers"])}
    for x in shown:
        share = x["difference_cycles"] / x["closed_form_cycles"] if x["closed_form_cycles"] else 0.0
        lines.append(
            f"{x['layer']:>5}  {x['name'][:28]:<28} {x['cycles']:>9,} {x['closed_form_cycles']:>11,} {share:>+10.0%} "
            f"{x['lower_bound_cycles']:>8,}  {x['binds']:<15} {why(result['layers'], at[x['layer']])}".rstrip()
        )
    if len(shown) < len(layers):
        rest = [x for x in layers if x not in shown]
        lines.append(
            f"{'':>5}  {f'{len(rest)} other layers':<28} {sum(x['cycles'] for x in rest):>9,} "
            f"{sum(x['closed_form_cycles'] for x in rest):>11,}    (--all-layers shows them)"
        )
    total, closed, bound = result["cycles"], result["closed_form_cycles"], result["lower_bound_cycles"]
    more = "at most " * bool(result["at_most"])
    lines += [
        "",
        f"event-driven {more}{total:,} cycles ({result['microseconds']:,.1f} us), closed form {closed:,} "
        f"({(closed - total) / total if total else 0:+.1%}), each layer alone {result['alone_cycles']:,}, "
        f"lower bound {bound:,} ({result['bound_share']:.1%} reached)",
        f"{result['inferences_per_second']:,.0f} inferences/s, {result['peak_share']:.2%} of peak"
        + "; the rounds of long loops are extrapolated" * bool(result["extrapolated"])
        + "; loops that only their condition ends count with one round" * bool(result["open"]),
        f"cold load apart (closed form): weights {result['weight_load_cycles']:,}, inputs "
        f"{result['input_load_cycles']:,}, outputs {result['output_store_cycles']:,} cycles",
    ]
    if result["bounds"]:
        numbers = {k: v for k, v in result["bounds"].items() if k not in ("cycles", "binds", "chain")}
        lines.append("bounds: " + ", ".join(f"{k} {v:,.0f}" for k, v in numbers.items()))
    lines += ["", f"{'busy':<15} {'mean':>7} {'most':>7}"]
    lines += [f"{k:<15} {v['mean']:>7.1%} {v['max']:>7.1%}" for k, v in result["resources"].items()]
    parts = sorted(result["critical_path"].items(), key=lambda kv: -kv[1])
    lines += ["", "critical path: " + ", ".join(f"{k} {v:,}" for k, v in parts)]
    longest = sorted(result["path"], key=lambda s: s["begin"] - s["end"])[:8]
    for s in sorted(longest, key=lambda s: int(s["begin"])):
        source = f" from core {s['from_core']}" if s["from_core"] is not None else ""
        place = "barrier before" if s["barrier"] else "layer"
        lines.append(
            f"  {s['begin']:>9,} + {s['end'] - s['begin']:<7,} {s['what']:<15} core {s['core']}{source}, {place} "
            f"{s['layer']} {s['origin']}".rstrip()
        )
    if result["sweep"]:
        lines += ["", f"{'sweep':<28} {'value':>8} {'cycles':>10} {'against':>8}"]
        for s in result["sweep"]:
            ratio = s["cycles"] / total - 1 if total else 0.0
            lines.append(f"{s['field']:<28} {s['value']:>8g} {s['cycles']:>10,} {ratio:>+8.1%}")
    return "\n".join(lines)
