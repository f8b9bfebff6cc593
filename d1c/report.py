"""The compile summary: what every layer costs, what bounds it, and the totals. As plain JSON values, and as a table.

Units: `cycles` are core clocks, `*_bytes` bytes, `flops` floating-point operations of the whole layer (a multiply-add
counts two), `*_us` microseconds. docs/cli.md lists the keys.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import d1c
from d1c.target.machine import Machine
from d1c.target.program import Arrive, Call, Fetch, Fill, Free, Port, Program, Push, every

__all__ = ["ROWS", "Times", "left_out", "short_plan", "sram_of", "summarize", "table", "text", "totals", "write"]


class Times(Protocol):
    """What d1rt.timing.layer_times returns."""

    @property
    def layers(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def total(self) -> Mapping[str, Any]: ...


ROWS = 40
"""Layers that the table shows before it leaves the cheap ones out."""


def summarize(program: Program, times: Times, passes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The summary of a program. `times`: what d1rt.timing.layer_times says of it. `passes`: name, seconds of each."""
    machine = Machine.from_dict(program.machine)
    sram = sram_of(program)
    info, total = program.info, times.total
    layers = []
    for t in times.layers:
        told = program.layers[t["layer"]] if 0 <= t["layer"] < len(program.layers) else {}
        barrier = t["kind"] == "barrier"
        layers.append(
            {
                "layer": t["layer"],
                "name": t["name"],
                "origin": t["origin"],
                "op": t["kind"],
                "plan": t["plan"],
                "shape": [] if barrier else list(told.get("shape", ())),
                "dtype": "" if barrier else told.get("dtype", ""),
                "branches": 1 if barrier else max(1, len(told.get("branches", ()))),
                "nodes_used": t["cores_used"],
                "sram_peak_bytes": sram.get(t["layer"], 0),
                "flops": t["flops"],
                "cycles": t["cycles"],
                "rounds": t["rounds"],
                "at_most": t["at_most"],
                "open": t["open"],
                "bound_cycles": t["lower_bound_cycles"],
                "binds": t["binds"],
                "noc_bytes": t["noc_bytes"],
                "compute_cycles": t["compute_cycles"],
                "move_cycles": t["move_cycles"],
                "launch_cycles": t["launch_cycles"],
                "terms": t["terms"],
            }
        )
    hidden = {name for p in program.outputs for _, name in p.counts}
    host = "nowhere: the machine has no interface processor" if not machine.dip_count else "DIP HBM"
    return {
        "version": d1c.__version__,
        "model": info.get("model", ""),
        "target": machine.name,
        "grid": [machine.grid_rows, machine.grid_cols],
        "wanted_grid": list(machine.wanted_grid),
        "precision": info.get("precision", ""),
        "batch": total["batch"],
        "nodes_used": total["cores_used"],
        "nodes": machine.cores,
        "tuned": dict(info.get("tuned", {})),
        "host_ops": [],
        "folded": {
            "nodes": int(info.get("folded", 0)) + int(info.get("folded_ops", 0)),
            "bytes": int(info.get("folded_bytes", 0)),
        },
        "sram_peak_bytes": int(info.get("sram_peak_bytes", max(sram.values(), default=0))),
        "sram_data_bytes": int(info.get("sram_data_bytes", 0)),
        "sram_live_bytes": int(info.get("sram_live_bytes", 0)),
        "sram_bytes": machine.sram_bytes,
        "flops": total["flops"],
        "cycles": total["cycles"],
        "at_most": total["at_most"],
        "open": total["open"],
        "time_us": machine.seconds(total["cycles"]) * 1e6,
        "inferences_per_second": total["inferences_per_second"],
        "percent_of_peak": 100 * total["peak_share"],
        "bound_cycles": total["lower_bound_cycles"],
        "percent_of_bound": 100 * total["bound_share"],
        "compute_cycles": total["compute_cycles"],
        "move_cycles": total["move_cycles"],
        "launch_cycles": total["launch_cycles"],
        "barrier_cycles": total["barrier_cycles"],
        "noc_bytes": total["noc_bytes"],
        "weight_bytes": total["weight_bytes"],
        "streamed_bytes": total["streamed_bytes"],
        "weight_load_cycles": total["weight_load_cycles"],
        "weight_load_us": total["weight_load_microseconds"],
        "input_load_cycles": total["input_load_cycles"],
        "output_store_cycles": total["output_store_cycles"],
        "inputs_start": host,
        "outputs_end": host,
        "inputs": [_port(p) for p in program.inputs],
        "outputs": [_port(p) for p in program.outputs if p.name not in hidden],
        "layers": layers,
        "passes": [dict(p) for p in passes],
    }


def _port(port: Port) -> dict[str, Any]:
    """Dims whose extent is known at run time only are listed as `bounded`; `shape` has their largest extents."""
    bounded = {"bounded": [dim for dim, _ in port.counts]} if port.counts else {}
    return {"name": port.name, "shape": list(port.shape), "dtype": port.dtype, **bounded}


def sram_of(program: Program) -> dict[int, int]:
    """Per layer the bytes of SRAM in use on a core while its kernel runs.

    These are code and lists, constants, and every buffer that has been handed out and not yet freed."""
    base = int(program.info.get("sram_code_bytes", 0))
    base += sum(b.bytes for b in program.buffers if b.kind in ("constant", "table"))
    out: dict[int, int] = {}
    freed: dict[int, set[int]] = defaultdict(set)  # by threads that do not compute, before they are given out again
    threads = [tuple(every(thread)) for role in program.roles for thread in role.threads]
    windows = {c.exchange: c.target for thread in threads for c in thread if isinstance(c, Push)}
    fetched = {c.target for thread in threads for c in thread if isinstance(c, Fetch)}
    computing = [t for t in threads if any(isinstance(c, Call) for c in t)]
    for free in (c for t in threads if t not in computing for c in t if isinstance(c, Free)):
        freed[free.layer] |= set(free.buffers)
    for thread in computing:
        late = dict(freed)
        live = {p.buffer for p in program.inputs}
        used = sum(program.buffers[b].bytes for b in live)
        for c in thread:
            new: set[int] = set()
            dead = late.pop(c.layer, set()) & live
            used -= sum(program.buffers[b].bytes for b in dead)
            live -= dead
            if isinstance(c, Call):
                new = {c.out, *fetched.intersection(c.operands)}
            elif isinstance(c, Arrive) and c.exchange in windows:
                new = {windows[c.exchange]}
            elif isinstance(c, Fill):
                new = {c.buffer}
            elif isinstance(c, Free):
                used -= sum(program.buffers[b].bytes for b in live & set(c.buffers))
                live -= set(c.buffers)
            used += sum(program.buffers[b].bytes for b in new - live)
            live |= new
            if isinstance(c, Call):
                out[c.layer] = max(out.get(c.layer, 0), base + used)
    return out


# ---- text ---------------------------------------------------------------------------------------------------------


def table(summary: Mapping[str, Any], all_layers: bool = False) -> Any:
    """The layers as a rich Table: all, or the ROWS most expensive ones in program order."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layer", "op", "plan"):
        out.add_column(name, overflow="fold", max_width=36 if name != "op" else 8)
    for name in ("nodes", "SRAM KB", "cycles", "bound", "binds", "NoC KB"):
        out.add_column(name, justify="left" if name == "binds" else "right", no_wrap=True)
    layers = summary["layers"]
    shown = range(len(layers))
    if not all_layers and len(layers) > ROWS:
        shown = sorted(sorted(range(len(layers)), key=lambda i: -layers[i]["cycles"])[:ROWS])  # type: ignore[assignment]
    for i in shown:
        x = layers[i]
        out.add_row(
            escape((x["origin"] or x["name"]) + _rounds(x)),
            x["op"],
            "" if x["op"] == "barrier" else escape(short_plan(x["plan"])),
            f"{x['nodes_used']:,}",
            f"{x['sram_peak_bytes'] / 1024:,.0f}",
            f"{x['cycles']:,}",
            f"{x['bound_cycles']:,}",
            x["binds"],
            f"{x['noc_bytes'] / 1024:,.0f}",
        )
    return out


def _rounds(layer: Mapping[str, Any]) -> str:
    """Behind a layer's name: how often it runs, if it is in a loop."""
    rounds = layer.get("rounds", 1)
    if layer.get("open"):
        return " (each round)" if rounds == 1 else f" ({rounds:,} x each round)"
    return f" (at most {rounds:,} x)" if layer.get("at_most") else f" ({rounds:,} x)" if rounds != 1 else ""


def short_plan(plan: str) -> str:
    """The plan without the dims that are not cut: `[0 1 2: dr dc / 1, 3, 4]` -> `0 1 2: dr dc / 1`."""
    body, _, held = plan.strip("[]").partition("|")
    cut = [p.strip() for p in body.split(",") if ":" in p]
    return (", ".join(cut) or "one core") + (f" | {held.strip()}" if held else "")


def totals(summary: Mapping[str, Any]) -> list[str]:
    """The totals, a line each."""
    s = summary
    layers, folded = sum(x["op"] != "barrier" for x in s["layers"]), s["folded"]
    lines = [
        f"{s['model'] or 'program'} on {s['target']}, {s['precision'] or 'as written'}, batch {s['batch']}: "
        f"{layers} layers, {s['nodes_used']:,} of {s['nodes']:,} nodes used, "
        f"SRAM peak {s['sram_peak_bytes']:,} of {s['sram_bytes']:,} B{_packed(s)}",
        f"time {'at most ' * bool(s.get('at_most'))}{s['time_us']:,.1f} us ({s['cycles']:,} cycles), "
        f"{s['inferences_per_second']:,.0f} inferences/s, "
        f"{s['percent_of_peak']:.2f} % of peak, {s['percent_of_bound']:.1f} % of the bound; "
        "closed form, d1c time gives event-driven"
        + "; loops that only their condition ends count with one round"
        * bool(s.get("open")),
        (f"streamed while it runs: {streamed:,} B of weights; " if (streamed := s.get("streamed_bytes", 0)) else "")
        + f"cold weight load apart: {_us(s['weight_load_us'])} for {s['weight_bytes']:,} B; "
        f"inputs start in {s['inputs_start']}, outputs end in {s['outputs_end']}",
        f"host ops: {', '.join(s['host_ops']) or 'none'}; "
        f"folded at compile time: {folded['nodes']} {'node' if folded['nodes'] == 1 else 'nodes'}, "
        f"{folded['bytes']:,} B",
    ]
    if t := s.get("tuned"):
        plans = "other" if t["plans"] else "the same"
        lines.append(
            f"tuned: {t['tuned_cycles']:,} cycles by events, {t['planned_cycles']:,} as planned; "
            f"{plans} plans, {t['changed']} of {t['movements']} movements sent otherwise"
        )
    beside = Counter(x["branches"] for x in s["layers"] if x.get("branches", 1) > 1)
    if beside:
        each = ", ".join(f"{n} of {k} branches" for k, n in sorted(beside.items()))
        lines.append(f"layers side by side: {each}")
    if s.get("wanted_grid"):
        (rows, cols), (wanted_rows, wanted_cols) = s["grid"], s["wanted_grid"]
        lines.append(
            f"compiled for a grid of {rows} x {cols} nodes a die: some die has fewer live ones than the "
            f"{wanted_rows * wanted_cols} of {wanted_rows} x {wanted_cols}"
        )
    if s["passes"]:
        seconds = sum(p["seconds"] + p.get("verify_seconds", 0.0) for p in s["passes"])
        slow = sorted(s["passes"], key=lambda p: -p["seconds"])[:3]
        lines.append(
            f"compiled in {seconds:.2f} s: " + ", ".join(f"{p['name']} {p['seconds']:.2f}" for p in slow) + ", ..."
        )
    return lines


def _packed(s: Mapping[str, Any]) -> str:
    """How near the addresses of the data come to the bytes that live at once."""
    live = s.get("sram_live_bytes", 0)
    return f" (data {s['sram_data_bytes'] / live:.2f}x what lives at once)" if live else ""


def _us(value: float | None) -> str:
    return "not modelled" if value is None else f"{value:,.1f} us"


def left_out(summary: Mapping[str, Any]) -> str:
    """The note under a table that does not show every layer, or nothing."""
    layers = summary["layers"]
    if len(layers) <= ROWS:
        return ""
    rest = sorted((x["cycles"] for x in layers), reverse=True)[ROWS:]
    return f"{len(rest)} cheap layers with {sum(rest):,} cycles together are left out; --all-layers shows them"


def text(summary: Mapping[str, Any], all_layers: bool = False, width: int = 160) -> str:
    """The whole summary as plain text."""
    from rich.console import Console

    console = Console(width=width, no_color=True, highlight=False, record=False, force_terminal=False)
    with console.capture() as captured:
        write(console, summary, all_layers)
    return captured.get().rstrip("\n")


def write(console: Any, summary: Mapping[str, Any], all_layers: bool = False) -> None:
    """The whole summary on a rich Console."""
    if summary["layers"]:
        console.print(table(summary, all_layers))
        note = "" if all_layers else left_out(summary)
        if note:
            console.print(note, markup=False)
        console.print()
    for line in totals(summary):
        console.print(line, markup=False, highlight=False)
