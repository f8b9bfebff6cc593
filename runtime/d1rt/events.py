"""How long a program takes, event by event: every thread of every core, every message over every link.

Works on the program as it is shipped. docs/timing.md says what is modelled and what is not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.target.machine import Machine
from d1c.target.program import Barrier, Call, Fetch, Fill, Program
from d1rt import event_data as ev
from d1rt.closed import finished
from d1rt.command_cycles import PIPES
from d1rt.dips import fetches
from d1rt.event_loop import start_threads
from d1rt.event_program import Bodies, Expanded, Key, Prepared, prepare
from d1rt.linkload import Fabric
from d1rt.network import empty, handle, new_queue
from d1rt.timing import Times, layer_times
from d1rt.traps import command_text, core_text, deadlock

WAITS = {ev.PORT: "SRAM port", ev.ROW: "row link", ev.COLUMN: "column link", ev.DIE_EDGE: "die edge", ev.DIP: "DIP"}
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the critical path, from cycle `begin` to `end`: `core` computes (`what`: launch, compute/PIPE), sends
    (SRAM port), or waits for a message from core `source` (distance, then SRAM port, row link, column link, die edge:
    what it met longest). `layer` and `name` of the command."""

    begin: int
    end: int
    core: int
    source: int
    what: str
    layer: int
    barrier: bool
    origin: str


@dataclass(frozen=True)
class Events:
    """`layers`: a record per layer, in order; `total`; `resources`: mean and greatest busy share of each kind; `path`:
    the critical path, first to last. Plain JSON values but for `path` and what the trace needs."""

    layers: tuple[dict[str, Any], ...]
    total: dict[str, Any]
    resources: dict[str, dict[str, float]]
    path: tuple[Segment, ...]
    prepared: Prepared
    closed: Times
    outcome: _Outcome


class Simulator:
    """Times one program, also on machines with other rates than its own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.machine = Machine.from_dict(program.machine)
        if program.mesh.cores != self.machine.cores:
            raise ValueError(
                f"the mesh has {program.mesh.cores} cores, machine {self.machine.name} has {self.machine.cores}"
            )
        self.expanded = Expanded(program)

    def cycles(self, machine: Machine | None = None) -> int:
        """Only the sum."""
        return int(self._simulate(machine or self.machine, False).total)

    def run(self) -> Events:
        """Everything. Raises Deadlock."""
        found = self._simulate(self.machine, True)
        return found.events(layer_times(self.program), put_off(found.made, *finished(found.made)))

    def _simulate(self, machine: Machine, logs: bool) -> _Outcome:
        fabric = Fabric.of(machine)
        made = prepare(self.expanded, machine, fabric, logs)
        code, net = made.code, empty(made.fabric)
        contexts = len(code.context)
        queue = new_queue(2 * contexts + int(code.options[ev.MOST]) + 1024)
        start_threads(queue, contexts)
        queue, code = handle(queue, net, made.routes, code, np.zeros(0, np.int64))
        if not code.context[:, ev.FINISHED].all():
            raise _deadlock(self.program, made, code)
        return _Outcome(self.program, machine, fabric, made, code, net, queue.state)


def simulate(program: Program) -> Events:
    """See Simulator."""
    return Simulator(program).run()


def _deadlock(program: Program, made: Prepared, code: ev.Code) -> Exception:
    stuck = np.flatnonzero(code.context[:, ev.FINISHED] == 0)
    lines = []
    for x in stuck[:SHOWN]:
        context = code.context[x]
        t = made.threads[int(made.thread[context[ev.PC]])]
        command = made.of[int(context[ev.PC])]
        assert command is not None
        core, semaphore = int(context[ev.CORE]), int(context[ev.BLOCKED])
        lines.append(
            f"core {core_text(program.mesh, core)}, role {program.roles[t.role].name}, thread {t.number}, "
            f"{command_text(program, command)}: semaphore {semaphore} has {code.counts[core, semaphore]}, "
            f"needs {context[ev.NEED]}" + (f" (for {command.origin})" if command.origin else "")
        )
    return deadlock(tuple(lines), len(stuck))


def _steps(
    bodies: Bodies, path: tuple[int, ...] = (), round_: int = 0, weight: float = 1.0
) -> Iterator[tuple[Key, int, float]]:
    """Keys in the order in which they happen, with the number of the round and how many rounds it stands for."""
    for stretch in range(max([*bodies.stretches, *bodies.loops], default=-1) + 1):
        for layer in sorted(bodies.stretches.get(stretch, ())):
            yield (path, stretch, layer), round_, weight
        inner = bodies.loops.get(stretch)
        for r in range(inner.rounds if inner is not None else 0):
            assert inner is not None
            more = inner.trips - inner.rounds
            last = min(2, inner.rounds)  # what is not simulated goes like the last rounds
            stands = weight * (1 + (more / last if r >= inner.rounds - last else 0))
            yield from _steps(inner, (*path, stretch), round_ * inner.rounds + r, stands)


def put_off(made: Prepared, done: np.ndarray, end: float) -> dict[int, float]:
    """Per layer by how much it puts off the end. `done` [places]: when each is over, -1: nothing is done there."""
    out: dict[int, float] = defaultdict(float)
    now = 0.0
    for key, round_, weight in _steps(made.bodies):
        over = float(done[made.places[key] + round_])
        if over >= 0:
            out[key[2]] += weight * max(0.0, over - now)
            now = max(now, over)
    if end > now:  # what nobody computes with any more
        out[next(reversed(out), -1)] += end - now
    return out


class _Outcome:
    def __init__(
        self, program: Program, machine: Machine, fabric: Fabric, made: Prepared, code: ev.Code, net: ev.Net,
        state: np.ndarray,
    ) -> None:  # fmt: skip
        self.program, self.machine, self.fabric = program, machine, fabric
        self.made, self.code, self.net = made, code, net
        self.end = int(state[ev.END])  # of what is simulated
        self.handled, self.logged = int(state[ev.EVENTS]), int(state[ev.LOGGED])
        self.history = _History(code)
        self.spent = put_off(made, self.code.done, self.end)
        self.spans: dict[int, tuple[int, int]] = {}
        for key, round_, _ in _steps(made.bodies):
            place, layer = made.places[key] + round_, key[2]
            begun, done = int(code.begun[place]), int(code.done[place])
            if done >= 0:
                before = self.spans.get(layer, (begun, done))
                self.spans[layer] = min(before[0], begun), max(before[1], done)

    @property
    def total(self) -> float:
        return round(sum(self.spent.values()))

    @property
    def extrapolated(self) -> bool:
        def cut(bodies: Bodies) -> bool:
            return bodies.trips > bodies.rounds or any(map(cut, bodies.loops.values()))

        return cut(self.made.bodies)

    # ---- what binds -------------------------------------------------------------------------------------------------

    def path(self) -> list[Segment]:
        """From the end backwards: who computed, and who waited for whom."""
        log, context, threads = self.code.log, self.code.context, self.made.threads
        last = np.where(context[:, ev.LOG] >= 0, log[context[:, ev.LOG], 3], -1)
        if not len(last) or last.max() < 0:
            return []
        x = int(last.argmax())
        time, limit, history = int(last[x]), len(log), self.history
        found: list[Segment] = []
        while time > 0:
            core, entry = int(context[x, ev.CORE]), history.before(x, time, limit)
            if entry < 0 or log[entry, 3] < time:  # it has waited for the kernel of another thread
                x, entry = history.neighbour(core, time, limit)
                if entry < 0:
                    break
            limit = entry
            _, number, begin, end, by, wait, sent = (int(v) for v in log[entry])
            command = self.made.of[number]
            assert command is not None
            about = self.made.layer[number], isinstance(command, Barrier), command.origin
            if by >= 0:
                source = by & 0xFFFFFFFF
                way = int(self.fabric.distance(np.array([source]), np.array([core]))[0])
                parts = [
                    (max(sent, end - way), end, "distance"),
                    (sent, max(sent, end - way), WAITS[wait & 7] if wait >> 3 else "SRAM port"),
                ]
                if isinstance(self.made.of[by >> 32], Fetch):
                    parts = [(sent, end, "DIP")]
                t = threads[int(self.made.thread[by >> 32])]
                x, time = t.base + int(np.searchsorted(t.cores, source)), sent
            else:
                source, time = -1, begin
                if isinstance(command, Call):
                    what = f"compute/{PIPES[int(self.made.pipe[number][core])]}"
                    parts = [(begin + wait, end, what), (begin, begin + wait, "launch")]
                else:
                    kinds = {Fill: "compute/store", Fetch: "DIP"}
                    what = "spread" if self.code.commands[number, ev.OP] == ev.PAUSE else "SRAM port"
                    parts = [(begin, end, kinds.get(type(command), what))]
            found += [Segment(a, b, core, source, what, *about) for a, b, what in parts if b > a]
        found.reverse()
        return found

    def resources(self) -> dict[str, dict[str, float]]:
        """Busy shares of the time that was simulated: mean and greatest."""
        net, m, (rows, cols) = self.net, self.machine, self.fabric.shape
        links = net.links[:, ev.BUSY].reshape(2, 6, rows, cols)[0] * net.rates[0]
        at = net.place[net.gate == 0]
        kinds = {name: self.made.busy[i] for i, name in enumerate(PIPES)}
        for name, way in (("SRAM port out", ev.OUT_OF), ("SRAM port in", ev.INTO)):
            kinds[name] = links[way, at[:, 0], at[:, 1]] / net.rates[0]
        if cols > 1:
            kinds["row links"] = np.concatenate([links[0, :, :-1].ravel(), links[1, :, 1:].ravel()])
        if rows > 1:
            kinds["column links"] = np.concatenate([links[2, :-1].ravel(), links[3, 1:].ravel()])
        if m.dies > 1:
            kinds["die edges"] = net.edges[:, 1] * net.rates[1]
        if fetches(self.program):
            kinds["DIPs"] = net.dips[:, 1] * net.rates[2]
        end = max(self.end, 1)
        return {k: {"mean": float(v.mean() / end), "max": float(v.max() / end)} for k, v in kinds.items()}

    def events(self, closed: Times, formula_spent: dict[int, float]) -> Events:
        """The records. `closed`: those of each layer alone; `formula_spent`: by how much it puts off the end in closed
        form."""
        path = self.path()
        parts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        met: dict[int, int] = defaultdict(int)
        for x in path:
            parts[x.layer][x.what] += x.end - x.begin
            met[x.layer] += x.barrier * (x.end - x.begin)
        formula: dict[int, dict[str, Any]] = {}
        extra: dict[int, int] = defaultdict(int)
        for r in closed.layers:
            if r["kind"] == "barrier":
                extra[r["layer"]] += r["cycles"]
            else:
                formula[r["layer"]] = r
        layers = []
        for layer in sorted({*formula, *extra, *self.spent, *formula_spent}):
            f = formula.get(layer, {})
            begun, done = self.spans.get(layer, (0, 0))
            binding = parts.get(layer, {})
            cycles, want = round(self.spent.get(layer, 0.0)), round(formula_spent.get(layer, 0.0))
            layers.append(
                {
                    "layer": layer, "name": f.get("name", f"layer {layer}"), "origin": f.get("origin", ""),
                    "kind": f.get("kind", "move"), "plan": f.get("plan", ""), "cycles": cycles,
                    "barrier_cycles": met[layer], "closed_form_cycles": want, "difference_cycles": cycles - want,
                    "alone_cycles": f.get("cycles", 0) + extra[layer],
                    "lower_bound_cycles": f.get("lower_bound_cycles", 0), "begin": begun, "end": done,
                    "binds": max(binding, key=lambda k: binding[k], default="nothing"), "path": dict(binding),
                    "closed_form_terms": {**f.get("terms", {}), **({"barrier": extra[layer]} if extra[layer] else {})},
                    "cores_used": f.get("cores_used", 0), "rounds": f.get("rounds", 1),
                }
            )  # fmt: skip
        total = self.summary(closed, path)
        total["closed_form_cycles"] = round(sum(formula_spent.values()))
        return Events(tuple(layers), total, self.resources(), tuple(path), self.made, closed, self)

    def summary(self, closed: Times, path: list[Segment]) -> dict[str, Any]:
        """The whole program."""
        cycles, seconds = int(self.total), self.machine.seconds(self.total)
        flops, peak, batch = closed.total["flops"], closed.total["peak_flops"], closed.total["batch"]
        bounds = dict(self.program.info.get("bounds", {}))
        bound = round(bounds["cycles"]) if "cycles" in bounds else closed.total["lower_bound_cycles"]
        parts: dict[str, int] = defaultdict(int)
        for x in path:
            parts[x.what] += x.end - x.begin
        return {
            "cycles": cycles, "closed_form_cycles": 0, "alone_cycles": closed.total["cycles"],
            "lower_bound_cycles": bound,
            "bounds": bounds, "bound_share": bound / cycles if cycles else 0.0,
            "microseconds": round(seconds * 1e6, 3), "batch": batch,
            "inferences_per_second": batch / seconds if seconds else 0.0,
            "peak_share": flops / (seconds * peak) if seconds else 0.0, "at_most": closed.total["at_most"],
            "open": closed.total["open"], "extrapolated": self.extrapolated, "critical_path": dict(parts),
            "streamed_bytes": closed.total["streamed_bytes"], "weight_load_cycles": closed.total["weight_load_cycles"],
            "input_load_cycles": closed.total["input_load_cycles"],
            "output_store_cycles": closed.total["output_store_cycles"], "simulated_events": self.handled,
        }  # fmt: skip


class _History:
    """What the log says of each context, in order."""

    def __init__(self, code: ev.Code) -> None:
        self.code = code
        self.known: dict[int, list[int]] = {}

    def of(self, x: int) -> list[int]:
        """The entries of a context, first to last."""
        if x not in self.known:
            found, entry = [], int(self.code.context[x, ev.LOG])
            while entry >= 0:
                found.append(entry)
                entry = int(self.code.log[entry, 0])
            self.known[x] = found[::-1]
        return self.known[x]

    def before(self, x: int, time: int, limit: int) -> int:
        """The last entry of a context that ends by `time` and was made before entry `limit`; -1: none."""
        mine = self.of(x)
        at = bisect_left(mine, limit)
        while at and self.code.log[mine[at - 1], 3] > time:
            at -= 1
        return mine[at - 1] if at else -1

    def neighbour(self, core: int, time: int, limit: int) -> tuple[int, int]:
        """A context of the same core with an entry that ends at `time`, and that entry; -1: none."""
        for i in range(self.code.core_first[core], self.code.core_first[core + 1]):
            x = int(self.code.by_core[i])
            entry = self.before(x, time, limit)
            if entry >= 0 and self.code.log[entry, 3] == time:
                return x, entry
        return -1, -1
