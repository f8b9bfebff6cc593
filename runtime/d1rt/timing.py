"""How long a program takes, in closed form per layer: what its cores compute, what ports, links and die edges carry.

Works on the program as it is shipped: trip counts, messages, places of its cores. Movement and compute of a layer do
not overlap here. docs/timing.md says what is modelled and what is not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d1c.target import barrier, order
from d1c.target.dtypes import dtype
from d1c.target.isa import body_cycles
from d1c.target.kernel import Nest
from d1c.target.machine import Machine
from d1c.target.mesh import Mesh
from d1c.target.program import Arrive, Barrier, Call, Command, Fill, Loop, Port, Program, Push, Send, every
from d1c.target.program_check import role_cores
from d1rt.command_cycles import PIPES, call_work, fill_work
from d1rt.dips import fetches
from d1rt.launches import counted, is_open, launches
from d1rt.linkload import Fabric, Flows, Load, fingerprint, load, pushed
from d1rt.streams import Streamed, streamed

__all__ = ["Times", "layer_times"]


@dataclass(frozen=True, slots=True)
class Times:
    """`layers`: a record per layer and per barrier, in order of the layer numbers, a barrier before the layer that it
    opens; `total`: the whole program. Plain JSON values; cycles are core clocks; docs/timing.md lists the fields."""

    layers: tuple[dict[str, Any], ...]
    total: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a command stands: `loops` around it, by number per level; `rounds`: how often they make it run, at most if
    data decides it (`limit`). A loop that nothing but its condition ends (`open`) counts with one round."""

    loops: tuple[int, ...] = ()
    rounds: int = 1
    limit: bool = False
    open: bool = False


@dataclass(slots=True)
class _Stage:
    """Pushes that nothing separates, then the calls that follow them. `busy` [pipes, cores] and `cycles` [cores]."""

    cores: int
    place: _Place = _Place()
    load: Load | None = None
    cycles: np.ndarray = field(init=False)
    busy: np.ndarray = field(init=False)
    active: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.cycles = np.zeros(self.cores)
        self.busy = np.zeros((len(PIPES), self.cores))
        self.active = np.zeros(self.cores, bool)


@dataclass(slots=True)
class _Layer:
    """What the commands of one layer add up to. `work`: cycles of all cores together on matrix and vector unit, without
    rounding to steps or lanes; `kinds`: cycles per kind of kernel."""

    stages: dict[tuple[tuple[int, ...], int], _Stage] = field(default_factory=dict)
    buffers: set[int] = field(default_factory=set)
    kinds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    early: Load | None = None
    origin: str = ""
    flops: float = 0.0
    matrix_flops: float = 0.0
    work: np.ndarray = field(default_factory=lambda: np.zeros(2))


def layer_times(program: Program) -> Times:
    """Cycles of every layer that commands name, and of the whole.

    ValueError where the mesh has not as many cores as the machine; UsageError where the machine's fields are bad.
    """
    machine = Machine.from_dict(program.machine)
    mesh = program.mesh
    if mesh.cores != machine.cores:
        raise ValueError(f"the mesh has {mesh.cores} cores, machine {machine.name} has {machine.cores}")
    fabric = Fabric.of(machine)
    found = _collect(program, machine, fabric)
    launch = launches(program, machine)
    records = [
        _record(program, i, found.get(i, _Layer()), launch[i], machine)
        for i in sorted({*found, *range(len(program.layers))})
    ]
    _early(records, found)
    if fetches(program):
        _stream(records, streamed(program, machine, fabric, records))
    latency, behind, layers = _barrier_cycles(mesh, fabric), _behind(program), records[:]
    for number, place in _barriers(program):
        hidden = 0
        if not place.loops and (end := behind.pop(0)) is not None:
            before = [r for r in layers if number <= r["layer"] <= end]
            hidden = sum(r["cycles"] if r["layer"] < end else r["terms"].get("DIP", 0.0) for r in before)
        records.append(_barrier_record(number, place, max(0, latency - int(hidden)), mesh.cores))
    records.sort(key=lambda r: (r["layer"], r["kind"] != "barrier"))
    return Times(tuple(records), _total(program, machine, records, found))


def _collect(program: Program, machine: Machine, fabric: Fabric) -> dict[int, _Layer]:
    """Walk every thread once; a loop's body counts for all of its rounds. A push that follows a call or an arrival of
    its own layer starts the layer's next stage; stages of equal number in different roles and threads happen side by
    side. Waits and barriers do not count: what they wait for belongs to earlier layers."""
    layers: dict[int, _Layer] = defaultdict(_Layer)
    loads: dict[tuple[object, ...], Load] = {}
    for role in program.roles:
        cores = np.zeros(program.mesh.cores, bool)
        cores[role_cores(role, program.mesh)] = True
        for thread in role.threads:
            computes = any(isinstance(c, Call) for c in every(thread))
            at: dict[int, int] = defaultdict(int)
            closed: set[int] = set()
            for command, place in _placed(thread):
                number = command.layer
                if isinstance(command, Push | Send):
                    if number in closed:
                        at[number] += 1
                        closed.discard(number)
                elif isinstance(command, Call | Fill | Arrive):
                    closed.add(number)
                if not isinstance(command, Call | Fill | Push | Send):
                    continue
                layer = layers[number]
                layer.origin = layer.origin or command.origin
                layer.buffers.update(_buffers(command))
                stage = layer.stages.setdefault((place.loops, at[number]), _Stage(program.mesh.cores, place))
                if isinstance(command, Call):
                    _call(program, command, cores, layer, stage, machine)
                elif isinstance(command, Fill):
                    _fill(program, command, cores, stage, machine)
                elif isinstance(command, Push):
                    width = dtype(program.buffers[command.source].dtype).bytes
                    exchange = program.exchanges[command.exchange]
                    key = (*fingerprint(exchange), width, cores.tobytes(), command.by_columns)
                    if key not in loads:
                        loads[key] = load(pushed(exchange, width, cores, machine), fabric, command.by_columns)
                    if not computes and not place.loops and program.buffers[command.source].kind == "constant":
                        layer.early = loads[key] if layer.early is None else layer.early + loads[key]
                    else:
                        stage.load = loads[key] if stage.load is None else stage.load + loads[key]
                else:
                    sent = load(_sent(program, command, cores, machine), fabric)
                    stage.load = sent if stage.load is None else stage.load + sent
    return dict(layers)


EARLY = 2
"""So many layers ahead of their own constants are sent, by a thread that does not compute."""


def _early(records: list[dict[str, Any]], found: Mapping[int, _Layer]) -> None:
    """Add what the layers before leave of the movement of constants, as the term `weights`."""
    for i, r in enumerate(records):
        early = found[r["layer"]].early if r["layer"] in found else None
        if early is None or not early.messages:
            continue
        r["noc_bytes"] += early.bytes
        r["packets"] += early.packets
        r["messages"] += early.messages
        late = math.ceil(max(0.0, early.cycles - sum(x["cycles"] for x in records[max(0, i - EARLY) : i])))
        _wait(r, "weights", max(0, late - r["move_cycles"]))


def _stream(records: list[dict[str, Any]], found: Mapping[int, Streamed]) -> None:
    """Add what layers wait for constants from outside, as the term `DIP`."""
    for r in (r for r in records if r["layer"] in found):
        r["streamed_bytes"] = found[r["layer"]].bytes
        _wait(r, "DIP", math.ceil(found[r["layer"]].cycles))


def _wait(r: dict[str, Any], term: str, cycles: int) -> None:
    if cycles:
        r["terms"][term] = float(cycles)
        r["move_cycles"] += cycles
        r["cycles"] += cycles
        r["binds"] = _binds(r["terms"])


def _placed(commands: Iterable[Command], place: _Place = _Place()) -> Iterator[tuple[Command, _Place]]:
    """All commands but loops, those in loops once; none of loops without rounds."""
    passed = 0
    for c in commands:
        if not isinstance(c, Loop):
            yield c, place
        elif c.trips:
            open_ = is_open(c)
            rounds, limit = place.rounds * counted(c), place.limit or (c.condition >= 0 and not open_)
            yield from _placed(c.body, _Place((*place.loops, passed), rounds, limit, place.open or open_))
            passed += 1


def _buffers(command: Command) -> Iterator[int]:
    if isinstance(command, Call):
        yield command.out
        yield from command.operands
        yield from command.tables
    elif isinstance(command, Push | Send):
        yield command.source
        yield command.target
    elif isinstance(command, Fill):
        yield command.buffer


def _call(program: Program, call: Call, cores: np.ndarray, layer: _Layer, stage: _Stage, machine: Machine) -> None:
    nest, work = program.kernels[call.kernel][1], call_work(program, call, cores, machine)
    active, trips, cycles = work.active, work.trips, work.cycles
    stage.cycles[active] += cycles
    stage.busy[:, active] += work.busy
    stage.active |= active
    rounds = stage.place.rounds
    layer.kinds[nest.kind] += rounds * float(cycles.max(initial=0))
    points = rounds * float(trips.astype(np.float64).prod(-1).sum())
    elements = rounds * float(trips[:, : nest.parallel].astype(np.float64).prod(-1).sum())
    if nest.kind in ("mac", "fma"):
        layer.flops += 2 * points
    if _on_matrix_unit(nest):
        layer.matrix_flops += 2 * points
        layer.work[0] += 2 * points / machine.mma_flops_per_cycle
    elif nest.kind not in ("map", "lookup", "scatter"):
        layer.work[1] += points * (1 + body_cycles(nest.term, machine)) / machine.f32_lanes
    layer.work[1] += elements * body_cycles(nest.epilogue, machine) / machine.f32_lanes


def _on_matrix_unit(nest: Nest) -> bool:
    types = [dtype(o.dtype) for o in nest.operands[:2]]
    return nest.kind == "mac" and all(t.bits == 16 and t.is_float for t in types)


def _fill(program: Program, fill: Fill, cores: np.ndarray, stage: _Stage, machine: Machine) -> None:
    """Padding is written at the store port's width."""
    work = fill_work(program, fill, cores, machine)
    stage.cycles[work.active] += work.cycles
    stage.busy[:, work.active] += work.busy


def _sent(program: Program, send: Send, cores: np.ndarray, machine: Machine) -> Flows:
    """One message from each of `cores` that has anything to send and reaches anybody."""
    mesh = program.mesh
    elements = send.elements.of(mesh)
    base, fan, keep = np.arange(mesh.cores), np.zeros(1, np.int64), cores & (elements > 0)
    for to in send.to:
        i = mesh.index[to.axis]
        stride, size, own = mesh.stride[to.axis], mesh.sizes[i], mesh.coords[:, i]
        if to.mode == "*":
            base = base - own * stride
            fan = (fan[:, None] + np.arange(size) * stride).reshape(-1)
        else:
            at = own + to.value if to.mode == "+" else np.full_like(own, to.value)
            keep = keep & (at >= 0) & (at < size)
            base = base + (at - own) * stride
    src = np.flatnonzero(keep)
    size_bytes = elements[src] * dtype(program.buffers[send.source].dtype).bytes
    targets = (base[src][:, None] + fan).reshape(-1)
    cls = np.arange(len(src))
    packets = -(-size_bytes // machine.packet_bytes)
    return Flows(src, cls, packets, packets, size_bytes, targets, np.repeat(cls, len(fan)))


def _barriers(program: Program) -> list[tuple[int, _Place]]:
    """The layer of each barrier, or of the next command that has one. Every role passes all of them: any shows them."""
    most: list[tuple[int, _Place]] = []
    for role in program.roles:
        found: list[tuple[int, _Place]] = []
        for thread in role.threads:
            layer = -1
            here: list[tuple[int, _Place]] = []
            for command, place in reversed(list(_placed(thread))):
                layer = command.layer if command.layer >= 0 else layer
                if isinstance(command, Barrier):
                    here.append((layer, place))
            found += reversed(here)
        most = max(most, found, key=len)
    return most


def _behind(program: Program) -> list[float | None]:
    """Per barrier outside of loops the layer of the first push behind it: so long the cores go on without it. None
    where they do not: the barrier's thread is one that computes."""
    found: list[list[float | None]] = []
    for role in program.roles:
        events = list(order.events(role, [r for r in program.roles if r is not role]))
        computing = {e.thread for e in events if isinstance(e.command, Call)}
        here: list[float | None] = []
        met = [e for e in events if isinstance(e.command, Barrier)]
        for k, e in enumerate(met):
            if len(e.path) == 1:
                pushes = [x.command.layer for x in events if isinstance(x.command, Push | Send) and x.after > k]
                here.append(None if e.thread in computing else min(pushes, default=math.inf))
        found.append(here)
    known = [[x for x in column if x is not None] for column in zip(*found, strict=True)]
    return [min(column) if len(column) == len(found) else None for column in known]


def _barrier_cycles(mesh: Mesh, fabric: Fabric) -> int:
    """Latency of a barrier's tree: up along each axis in turn, last axis first, then the release from its root to all.
    A core takes in one post a cycle."""
    cycles, axes = 0, barrier.barrier_axes(mesh)
    for axis, cores, to in barrier.levels(mesh):
        cycles += int(fabric.distance(cores, to).max()) + mesh.parts(axes[axis]) - 1
    release = fabric.distance(np.full(mesh.cores, barrier.root(mesh)), np.arange(mesh.cores))
    return cycles + int(release.max()) if mesh.cores > 1 else 0


def _record(program: Program, number: int, layer: _Layer, launch: float, machine: Machine) -> dict[str, Any]:
    told = program.layers[number] if 0 <= number < len(program.layers) else {}
    terms: dict[str, float] = defaultdict(float)
    cycles = move = compute = mean = 0.0
    noc_bytes = packets = messages = 0
    used = np.zeros(program.mesh.cores, bool)
    rounds = max((s.place.rounds for s in layer.stages.values()), default=1)
    terms["launch"] = launch
    for stage in layer.stages.values():
        used |= stage.active
        times = stage.place.rounds
        slowest = int(stage.cycles.argmax())
        longest = float(stage.cycles[slowest])
        busy = stage.cycles > 0
        if longest:
            terms[f"compute/{PIPES[int(stage.busy[:, slowest].argmax())]}"] += times * longest
            mean += times * float(stage.cycles[busy].mean())
        compute += times * longest
        if stage.load is not None and stage.load.messages:
            moved = stage.load
            terms["SRAM port"] += times * moved.port_cycles
            terms["row link"] += times * moved.row_cycles
            terms["column link"] += times * moved.column_cycles
            terms["die edge"] += times * moved.edge_cycles
            terms["distance"] += times * moved.distance
            move += times * moved.cycles
            noc_bytes, packets = noc_bytes + times * moved.bytes, packets + times * moved.packets
            messages += times * moved.messages
            if not stage.active.any():
                used |= moved.sent > 0
    cycles = move + compute + terms["launch"]
    flops = float(rounds * told["flops"] if told.get("flops") else layer.flops)
    # Replicas of a result count once in the compiler's flops, but each of them in the calls.
    share = min(1.0, flops / layer.flops) if layer.flops else 1.0
    ideal = float(layer.work.max()) * share / machine.node_count
    kind = max(layer.kinds, key=lambda k: layer.kinds[k], default="move")
    return {
        "layer": number,
        "name": str(told.get("name", f"layer {number}")),
        "origin": str(told.get("origin", layer.origin)),
        "kind": kind,
        "plan": str(told.get("plan", "")),
        "cores_used": int(used.sum()),
        "flops": int(flops),
        "compute_cycles": math.ceil(compute),
        "compute_cycles_mean": round(mean, 1),
        "move_cycles": math.ceil(move),
        "launch_cycles": int(terms["launch"]),
        "cycles": math.ceil(cycles),
        "rounds": rounds,
        "at_most": any(s.place.limit for s in layer.stages.values()),
        "open": any(s.place.open for s in layer.stages.values()),
        "lower_bound_cycles": math.ceil(max(ideal, launch)) if layer.stages else 0,
        "binds": _binds(terms),
        "terms": {k: round(v, 1) for k, v in terms.items()},
        "noc_bytes": int(noc_bytes),
        "packets": int(packets),
        "messages": int(messages),
        "sram_bytes": sum(program.buffers[b].bytes for b in layer.buffers),
        "streamed_bytes": 0,
    }


def _binds(terms: dict[str, float]) -> str:
    """The largest term; computing counts whole, under the pipe that is busy longest."""
    computing = {k: v for k, v in terms.items() if k.startswith("compute/")}
    merged = {k: v for k, v in terms.items() if k not in computing}
    if computing:
        merged[max(computing, key=lambda k: computing[k])] = sum(computing.values())
    return max(merged, key=lambda k: merged[k], default="nothing")


def _barrier_record(layer: int, place: _Place, latency: int, cores: int) -> dict[str, Any]:
    cycles, posts = place.rounds * latency, place.rounds * 2 * (cores - 1)
    return {
        "layer": layer,
        "name": "barrier",
        "origin": "",
        "kind": "barrier",
        "plan": "",
        "cores_used": cores,
        "flops": 0,
        "compute_cycles": 0,
        "compute_cycles_mean": 0.0,
        "move_cycles": cycles,
        "launch_cycles": 0,
        "cycles": cycles,
        "rounds": place.rounds,
        "at_most": place.limit,
        "open": place.open,
        "lower_bound_cycles": 0,
        "binds": "distance",
        "terms": {"distance": float(cycles)},
        "noc_bytes": 0,
        "packets": posts,
        "messages": posts,
        "sram_bytes": 0,
        "streamed_bytes": 0,
    }


def _total(
    program: Program, machine: Machine, records: list[dict[str, Any]], found: dict[int, _Layer]
) -> dict[str, Any]:
    cycles = sum(r["cycles"] for r in records)
    bound = sum(r["lower_bound_cycles"] for r in records)
    flops = sum(r["flops"] for r in records)
    seconds = machine.seconds(cycles)
    on_matrix = any(layer.matrix_flops for layer in found.values())
    peak = machine.peak_flops_bf16 if on_matrix else machine.peak_flops_f32
    batch = int(program.info.get("batch", 0)) or ((program.inputs[0].shape or (1,))[0] if program.inputs else 1)
    weights = sum(
        program.buffers[p.buffer].bytes * len({v for v in p.index.values if v >= 0}) for p in program.placements
    )
    used = np.zeros(program.mesh.cores, bool)
    for layer in found.values():
        for stage in layer.stages.values():
            used |= stage.active
    return {
        "cycles": cycles,
        "at_most": any(r["at_most"] for r in records),
        "open": any(r["open"] for r in records),
        "microseconds": round(seconds * 1e6, 3),
        "batch": batch,
        "inferences_per_second": batch / seconds if seconds else 0.0,
        "flops": flops,
        "peak_flops": peak,
        "peak_share": flops / (seconds * peak) if seconds else 0.0,
        "lower_bound_cycles": bound,
        "bound_share": bound / cycles if cycles else 0.0,
        "compute_cycles": sum(r["compute_cycles"] for r in records),
        "move_cycles": sum(r["move_cycles"] for r in records if r["kind"] != "barrier"),
        "launch_cycles": sum(r["launch_cycles"] for r in records),
        "barrier_cycles": sum(r["cycles"] for r in records if r["kind"] == "barrier"),
        "cores_used": int(used.sum()),
        "noc_bytes": sum(r["noc_bytes"] for r in records),
        "packets": sum(r["packets"] for r in records),
        "weight_bytes": weights,
        "streamed_bytes": sum(r["streamed_bytes"] for r in records),
        "weight_load_cycles": _hbm_cycles(weights, machine),
        "weight_load_microseconds": round(machine.seconds(_hbm_cycles(weights, machine)) * 1e6, 3),
        "input_load_cycles": _hbm_cycles(_port_bytes(program.inputs), machine),
        "output_store_cycles": _hbm_cycles(_port_bytes(program.outputs), machine),
    }


def _port_bytes(ports: tuple[Port, ...]) -> int:
    return sum(math.prod(p.shape) * dtype(p.dtype).bytes for p in ports)


def _hbm_cycles(size: int, machine: Machine) -> int:
    """Between the interface processors' memories and the tile's edge; 0 on a machine without any."""
    rate = machine.dip_count * min(machine.dip_bytes_per_cycle, machine.dip_edge_bytes_per_cycle)
    if not rate or not size:
        return 0
    return math.ceil(size / rate) + machine.dip_latency_cycles + machine.hbm_latency_cycles
