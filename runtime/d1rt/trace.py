"""A timed program as a trace that Perfetto and chrome://tracing show: sampled cores, the network's parts, the DIPs.

Times are microseconds. What is loaded before the program starts and stored behind it stands where it would be, in
closed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from d1c.target.program import Arrive, Barrier, Call, Fetch, Fill, Program, Wait
from d1rt import event_data as ev
from d1rt.dips import dip_of
from d1rt.events import Events
from d1rt.traps import core_text

SAMPLES = 4
"""Cores that have tracks."""
_NETWORK, _MEMORY, _CORES = 1, 2, 10
_CLASSES = ("SRAM port", "row link", "column link", "die edge")


def trace_events(program: Program, found: Events) -> dict[str, Any]:
    """The trace-event JSON object: complete events (ph X), named tracks (ph M). One process per sampled core with a
    track per thread; one for the network, a track per class; one for the interface processors."""
    machine = found.outcome.machine
    scale = 1e6 / machine.clock_hz
    loads = found.total["weight_load_cycles"] + found.total["input_load_cycles"]
    events: list[dict[str, Any]] = []

    def track(pid: int, tid: int, process: str, name: str) -> None:
        for kind, at, value in (("process_name", 0, process), ("thread_name", tid, name)):
            events.append({"ph": "M", "name": kind, "pid": pid, "tid": at, "ts": 0, "args": {"name": value}})

    def slice_(pid: int, tid: int, name: str, begin: int, end: int, **args: Any) -> None:
        events.append(
            {
                "ph": "X", "name": name or "?", "pid": pid, "tid": tid, "ts": (loads + begin) * scale,
                "dur": (end - begin) * scale, "cat": str(args.pop("cat", "core")), "args": args,
            }
        )  # fmt: skip

    for core in sampled(found):
        for x, thread in _contexts(found, core):
            track(_CORES + core, thread, f"core {core} ({core_text(program.mesh, core)})", f"thread {thread}")
            for number, begin, end, extra in _entries(found, x):
                command = found.prepared.of[number]
                layer = found.prepared.layer[number]
                origin = getattr(command, "origin", "")
                pauses = found.prepared.code.commands[number, ev.OP] == ev.PAUSE
                waits = pauses or isinstance(command, Arrive | Wait | Barrier)
                kind = "" if isinstance(command, Call) else "turn " if pauses else f"{type(command).__name__.lower()} "
                args = {"cat": "wait" if waits else "core", "layer": layer, "cycles": end - begin}
                if isinstance(command, Call):
                    args |= {"kernel": program.kernels[command.kernel][0], "launch_cycles": extra}
                slice_(_CORES + core, thread, f"{kind}{origin or f'layer {layer}'}", begin, end, **args)
    names = {r["layer"]: r for r in found.layers}
    for tid, what in enumerate(_CLASSES):
        track(_NETWORK, tid, "network", f"{what}s")
        free = 0
        for layer, (begin, end) in sorted(_windows(found).items(), key=lambda kv: kv[1]):
            record = names.get(layer, {})
            busy = record.get("closed_form_terms", {}).get(what, 0)
            begin = max(begin, free)  # slices of a track do not cross
            if not busy or end <= begin:
                continue
            free = end
            slice_(
                _NETWORK, tid, record.get("origin") or record.get("name", ""), begin, end, cat="network", layer=layer,
                busiest_cycles=busy, busy_share=min(1.0, busy / (end - begin)),
            )  # fmt: skip
    for dip in range(machine.dip_count):
        track(_MEMORY, dip, "interface processors", f"DIP {dip}")
        weights, inputs = found.total["weight_load_cycles"], found.total["input_load_cycles"]
        if weights:
            slice_(_MEMORY, dip, "load weights", -loads, -inputs, cat="memory")
        if inputs:
            slice_(_MEMORY, dip, "load inputs", -inputs, 0, cat="memory")
        for begin, end, layer, origin in _fetched(found, dip):
            slice_(_MEMORY, dip, origin or f"layer {layer}", begin, end, cat="memory", layer=layer)
        if found.total["output_store_cycles"]:
            end = found.outcome.end
            slice_(_MEMORY, dip, "store outputs", end, end + found.total["output_store_cycles"], cat="memory")
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"machine": machine.name, "cycles_per_us": 1 / scale},
    }


def sampled(found: Events) -> list[int]:
    """Core 0, the one that is on the critical path for longest, the one that ends it, the one that computes most."""
    on_path: dict[int, int] = {}
    for s in found.path:
        on_path[s.core] = on_path.get(s.core, 0) + s.end - s.begin
    cores = [0, int(found.prepared.busy.sum(0).argmax())]
    if on_path:
        cores += [max(on_path, key=lambda c: on_path[c]), found.path[-1].core]
    return sorted(set(cores))[:SAMPLES]


def _contexts(found: Events, core: int) -> Iterator[tuple[int, int]]:
    """(context, thread number) of a core."""
    for t in found.prepared.threads:
        at = int(np.searchsorted(t.cores, core))
        if at < len(t.cores) and t.cores[at] == core:
            yield t.base + at, t.number


def _entries(found: Events, x: int) -> Iterator[tuple[int, int, int, int]]:
    """(command, begin, end, launch cycles of a call) of what a context did and waited for, first to last."""
    for entry in found.outcome.history.of(x):
        _, number, begin, end, by, extra, _ = (int(v) for v in found.outcome.code.log[entry])
        if end > begin:
            yield number, begin, end, extra if by < 0 else 0


def _fetched(found: Events, dip: int) -> list[tuple[int, int, int, str]]:
    """What an interface processor sends, in order: from when to when, for which layer, of which node. Fetches of one
    layer that follow each other are one."""
    outcome, of = found.outcome, found.prepared.of
    serves = dip_of(outcome.machine)
    sent = []
    for t in found.prepared.threads:
        if not any(isinstance(c, Fetch) for c in of[t.first : t.last]):
            continue
        for i in np.flatnonzero(serves[outcome.fabric.row[t.cores]] == dip).tolist():
            for entry in outcome.history.of(t.base + i):
                _, number, asked, _, by, wait, end = (int(v) for v in outcome.code.log[entry])
                if by < 0 and isinstance(of[number], Fetch):
                    sent.append((asked + wait, end, found.prepared.layer[number], getattr(of[number], "origin", "")))
    out: list[tuple[int, int, int, str]] = []
    for begin, end, layer, origin in sorted(sent):
        if out and out[-1][2] == layer and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]), layer, origin)
        else:
            out.append((max(begin, out[-1][1]) if out else begin, end, layer, origin))
    return out


def _windows(found: Events) -> dict[int, tuple[int, int]]:
    """Per layer from the first message that is sent for it to the last that is waited for."""
    log = found.outcome.code.log[: found.outcome.logged]
    layer = np.array(found.prepared.layer)[log[:, 1]]
    moves = np.array([not isinstance(c, Call | Fill) for c in found.prepared.of])[log[:, 1]]
    sends = np.array(found.outcome.code.commands[:, ev.OP] == ev.SEND)[log[:, 1]]
    out = {}
    for number in np.unique(layer[sends]):
        here = layer == number
        out[int(number)] = (int(log[here & sends, 2].min()), int(log[here & moves, 3].max()))
    return out
