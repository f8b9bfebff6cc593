"""The machine that programs are compiled for and that the emulator is: every number with its unit and source.

Nothing about Dojo beyond slides, papers and patents is public: a number whose source says "assumed" is this project's
own choice. docs/machine.md lists them with the reasons and the conflicts between sources. All rates are per core clock.

    machine("d1-tile")       a preset: d1-node, d1-die, d1-tile, test
    machine("mine.toml")     base = "d1-tile" and any fields by name
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from d1c.errors import UsageError

# ruff: noqa: RUF009  (a row of the field table is one call of field() with its metadata)

Site = tuple[int, int]
Mask = tuple[tuple[Site, ...], ...]

_UARCH = "Hot Chips 34 uarch deck (Tesla)"
_SYSTEM = "Hot Chips 34 system deck (Tesla)"
_MICRO = "IEEE Micro 43(3), The Microarchitecture of DOJO (Tesla)"
_CHIPS = "Chips and Cheese on Hot Chips 34"
_NOTES = "Hot Chips 34 slides, through public notes"
_AIDAY = "SemiAnalysis on Tesla AI Day 2021"


def _fail(message: str) -> NoReturn:
    raise UsageError(message)


def _n(default: Any, unit: str, source: str, doc: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source, "doc": doc})


def _mask_of_die(seed: int, die: int, rows: int, cols: int, count: int) -> tuple[Site, ...]:
    """`count` of the die's sites, chosen by a hash so that no library's generator decides what a preset is."""
    sites = [(r, c) for r in range(rows) for c in range(cols)]
    sites.sort(key=lambda s: hashlib.sha256(f"{seed}:{die}:{s[0]}:{s[1]}".encode()).digest())
    return tuple(sorted(sites[:count]))


def random_mask(seed: int, dies: int, rows: int, cols: int, count: int) -> Mask:
    """Per die, `count` dead sites out of rows x cols; every seed gives the same mask everywhere and for ever."""
    return tuple(_mask_of_die(seed, die, rows, cols, count) for die in range(dies))


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine; every field's `metadata` has its unit, source and meaning.

    Raises UsageError for values out of range and for numbers that contradict each other.
    """

    name: str = _n("d1-tile", "", "assumed: own name", "the machine's name")

    # Geometry: physical sites below, the regular logical grid above (embedding.py maps one to the other).
    die_rows: int = _n(5, "dies", _SYSTEM, "rows of dies")
    die_cols: int = _n(5, "dies", _SYSTEM, "columns of dies")
    die_order: str = _n(
        "any", "", "assumed: numbers are ours", "numbers of dies: by rows, snake, or any: the compiler may take a snake"
    )
    site_rows: int = _n(18, "sites", "assumed: nearest rectangle to 354 nodes", "rows of sites of a die")
    site_cols: int = _n(20, "sites", "assumed: nearest rectangle to 354 nodes", "columns of sites of a die")
    dead: Mask = _n(
        random_mask(0, 25, 18, 20, 6), "sites", f"count: {_MICRO} (354 usable); which: assumed, seeded",
        "per die (row-major) the (row, col) sites without a working node",
    )  # fmt: skip
    grid_rows: int = _n(
        16, "nodes", "assumed: 16 x 22 <= 354 and both divide channel counts", "logical node rows of a die"
    )
    grid_cols: int = _n(
        22, "nodes", "assumed: 16 x 22 <= 354 and both divide channel counts", "logical node columns of a die"
    )
    row_factors: tuple[int, ...] = _n(
        (2, 2, 2, 2), "", "assumed: powers of two", "ordered factors of grid_rows, major first"
    )
    col_factors: tuple[int, ...] = _n((2, 11), "", "assumed: 22 = 2 x 11", "ordered factors of grid_cols, major first")
    wanted_grid: tuple[int, ...] = _n(
        (),
        "nodes",
        "none: a record",
        "rows and columns of the grid that did not fit the live nodes; empty where it did",
    )

    # Node
    clock_hz: int = _n(2_000_000_000, "Hz", _CHIPS, "core and mesh clock")
    threads: int = _n(4, "threads", _UARCH, "hardware threads of a node")
    sram_bytes: int = _n(1_310_720, "B", f"{_UARCH}: 1.25 MB; MiB reading assumed", "SRAM of a node, data and code")
    code_reserve_bytes: int = _n(
        65_536, "B", "assumed: code and transfer lists live in SRAM", "SRAM kept for code and lists"
    )
    semaphores: int = _n(64, "", "assumed: primitives are stated, counts not", "counting semaphores of a node")
    mma_m: int = _n(8, "", _UARCH, "rows of one bf16 matrix step")
    mma_n: int = _n(8, "", _UARCH, "columns of one bf16 matrix step")
    mma_k: int = _n(4, "", _UARCH, "depth of one bf16 matrix step")
    mma_cycles: int = _n(1, "cycles", f"{_CHIPS}: 1.024 TFLOP/s a node = one step a cycle", "issue of one matrix step")
    mma_latency_cycles: int = _n(8, "cycles", "assumed", "result latency of a matrix step")
    mma_accumulators: int = _n(4, "", "assumed: the patent names several", "8x8 f32 accumulator sets of a node")
    simd_bytes: int = _n(64, "B", _UARCH, "width of the SIMD pipe and of a vector register")
    f32_lanes: int = _n(
        16, "lanes", f"{_AIDAY}: 64 GFLOP/s f32 a node", "f32 and i32 operations a cycle (fma counts one)"
    )
    bf16_lanes: int = _n(32, "lanes", "assumed: 64 B width", "bf16 elements moved or converted a cycle")
    i64_lanes: int = _n(8, "lanes", "assumed: 64 B width", "64-bit integer operations a cycle")
    f64_slots: float = _n(
        32.0,
        "instructions",
        "assumed: software, as integer code on the SIMD pipe",
        "issue slots of one f64 operation on a vector of 64-bit lanes",
    )
    special_function_rate: float = _n(
        0.25,
        "vectors/cycle",
        "assumed: a quarter of the SIMD rate",
        "issue rate of division, remainder and square root",
    )
    simd_latency_cycles: int = _n(
        4, "cycles", "assumed: ordinary 2 GHz pipeline", "result latency of a SIMD instruction"
    )
    load_latency_cycles: int = _n(7, "cycles", f"assumed, from {_CHIPS}'s estimate", "SRAM to vector register")
    branch_cycles: int = _n(10, "cycles", "assumed: ordinary 2 GHz pipeline", "mispredicted branch (loop exit)")
    gather_per_cycle: int = _n(
        2, "elements/cycle", "assumed: the engine is stated, its rate not", "elements gathered a cycle"
    )
    load_bytes_per_cycle: int = _n(128, "B/cycle", f"{_UARCH}: 400 GB/s, ports by arithmetic", "SRAM to core")
    store_bytes_per_cycle: int = _n(64, "B/cycle", f"{_UARCH}: 270 GB/s, ports by arithmetic", "core to SRAM")
    icache_bytes: int = _n(16_384, "B", "assumed: only 'small, not coherent' is known", "instruction cache of a node")
    icache_line_bytes: int = _n(64, "B", "assumed", "line of the instruction cache")
    icache_miss_cycles: int = _n(8, "cycles", "assumed", "one miss of the instruction cache")
    launch_cycles: int = _n(
        100, "cycles", "assumed: sweep 50 to 500", "launch, drain and semaphore of one dependent operation"
    )
    call_cycles: int = _n(20, "cycles", "assumed: argument list parsed in the front end", "start of one kernel call")
    loop_cycles: int = _n(
        2, "cycles", "assumed: addresses by the scalar side", "one iteration of a loop round the inner block"
    )

    # Network
    link_bytes_per_cycle: int = _n(64, "B/cycle", f"{_NOTES}: 64 B packets; conflict noted", "one mesh link, each way")
    packet_bytes: int = _n(64, "B", _NOTES, "payload of one packet")
    run_header_bytes: int = _n(
        8, "B", "assumed: one 8 B granule of the gather engine", "place and length of a run in a packet of several runs"
    )
    hop_cycles: int = _n(1, "cycles", _AIDAY, "one router to the next")
    inject_cycles: int = _n(4, "cycles", "assumed", "SRAM to the first router")
    eject_cycles: int = _n(4, "cycles", "assumed", "last router to SRAM")
    die_crossing_cycles: int = _n(200, "cycles", f"{_CHIPS}: about 100 ns", "added by one die boundary")
    die_edge_bytes_per_cycle: int = _n(960, "B/cycle", f"{_NOTES}: 2 TB/s; 15 links assumed", "one die edge, each way")
    virtual_channels: int = _n(3, "", "Tesla Transport Protocol specification 2.0", "virtual channels of a link")
    channel_packets: int = _n(8, "packets", "assumed", "buffer of one virtual channel of one input")
    multicast: str = _n("tree", "", "assumed: none, row or tree", "how one packet reaches several nodes")
    routing: str = _n(
        "either", "", "assumed: rows or either", "ways: rows first; or either first, on as many virtual channels again"
    )
    dead_router_forwards: bool = _n(
        True, "", "assumed: harvesting is stated, its grain not", "a dead site's router still routes"
    )

    # Memory beyond the tile
    dip_count: int = _n(5, "", _SYSTEM, "interface processors on the machine's west edge")
    dip_memory_bytes: int = _n(32_000_000_000, "B", _SYSTEM, "HBM of one interface processor")
    dip_bytes_per_cycle: int = _n(400, "B/cycle", f"{_SYSTEM}: 800 GB/s", "HBM of one interface processor")
    dip_edge_bytes_per_cycle: int = _n(
        448, "B/cycle", f"{_SYSTEM}: 900 GB/s; 7 links assumed", "interface processor to a die edge"
    )
    dip_latency_cycles: int = _n(400, "cycles", "assumed: 200 ns", "interface processor to the tile's edge, each way")
    hbm_latency_cycles: int = _n(300, "cycles", "assumed: 150 ns, generic HBM2", "one access of the HBM")
    host_bytes_per_cycle: int = _n(16, "B/cycle", f"{_SYSTEM}: PCIe 4 x16, 32 GB/s", "host to one interface processor")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check_field(self.name, f.name, str(f.type), getattr(self, f.name))
        dies = self.die_rows * self.die_cols
        if not self.dead:
            object.__setattr__(self, "dead", ((),) * dies)
        object.__setattr__(self, "dead", tuple(tuple(sorted(sites)) for sites in self.dead))
        if len(self.dead) != dies:
            _fail(
                f"machine {self.name}: dead has {len(self.dead)} masks for {dies} dies; give one list of sites per die"
            )
        for die, sites in enumerate(self.dead):
            if len(set(sites)) != len(sites):
                _fail(f"machine {self.name}: dead: die {die} names a site twice")
            for r, c in sites:
                if not (0 <= r < self.site_rows and 0 <= c < self.site_cols):
                    _fail(
                        f"machine {self.name}: dead: die {die} has no site ({r}, {c}); "
                        f"sites are {self.site_rows} x {self.site_cols}"
                    )
            live = self.site_rows * self.site_cols - len(sites)
            if live < self.grid_rows * self.grid_cols:
                _fail(
                    f"machine {self.name}: grid {self.grid_rows} x {self.grid_cols} needs "
                    f"{self.grid_rows * self.grid_cols} live nodes, die {die} has {live}; "
                    "choose smaller grid_rows, grid_cols"
                )
        for name, factors, size in (
            ("row", self.row_factors, self.grid_rows),
            ("col", self.col_factors, self.grid_cols),
        ):
            if math.prod(factors) != size:
                _fail(f"machine {self.name}: product of {name}_factors {list(factors)} is not grid_{name}s {size}")
        if self.code_reserve_bytes >= self.sram_bytes:
            _fail(
                f"machine {self.name}: code_reserve_bytes {self.code_reserve_bytes} leaves nothing of "
                f"sram_bytes {self.sram_bytes}"
            )
        if self.multicast not in ("none", "row", "tree"):
            _fail(f"machine {self.name}: multicast is {self.multicast!r}; choose none, row or tree")
        if self.routing not in ("rows", "either"):
            _fail(f"machine {self.name}: routing is {self.routing!r}; choose rows or either")
        if self.die_order not in ("any", "rows", "snake"):
            _fail(f"machine {self.name}: die_order is {self.die_order!r}; choose any, rows or snake")
        if any(self.dead) and not self.dead_router_forwards:
            _check_routers(self)

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """(name, size) of the mesh factors, major to minor; factors of size 1 are left out."""
        named = [("dr", self.die_rows), ("dc", self.die_cols)]
        for axis, factors in (("nr", self.row_factors), ("nc", self.col_factors)):
            real = [f for f in factors if f > 1]
            named += [(axis if len(real) == 1 else f"{axis}.{i}", f) for i, f in enumerate(real)]
        return tuple((n, s) for n, s in named if s > 1)

    @property
    def dies(self) -> int:
        return self.die_rows * self.die_cols

    @property
    def cores(self) -> int:
        """Logical cores: dies x grid."""
        return self.dies * self.grid_rows * self.grid_cols

    @property
    def node_count(self) -> int:
        """Live physical nodes."""
        return self.dies * self.site_rows * self.site_cols - sum(map(len, self.dead))

    @property
    def data_bytes(self) -> int:
        """SRAM of a node left for data."""
        return self.sram_bytes - self.code_reserve_bytes

    @property
    def mma_flops_per_cycle(self) -> float:
        """bf16 FLOP of one node in one cycle."""
        return 2 * self.mma_m * self.mma_n * self.mma_k / self.mma_cycles

    @property
    def peak_flops_bf16(self) -> float:
        """FLOP/s of all live nodes on the matrix unit."""
        return self.node_count * self.mma_flops_per_cycle * self.clock_hz

    @property
    def peak_flops_f32(self) -> float:
        """FLOP/s of all live nodes on the SIMD pipe."""
        return self.node_count * 2.0 * self.f32_lanes * self.clock_hz

    def seconds(self, cycles: float) -> float:
        return cycles / self.clock_hz

    def masked(self, seed: int, count: int | None = None) -> Machine:
        """The same machine with other dead sites, `count` per die (default: as many as die 0 has now)."""
        n = len(self.dead[0]) if count is None else count
        return self.with_dead(random_mask(seed, self.dies, self.site_rows, self.site_cols, n))

    def part(self, rows: int, cols: int) -> Machine:
        """The first rows and columns of dies, from the interface processors on, as a machine of its own, with those of
        the processors that are beside these rows. The other dies stay free."""
        dead = tuple(self.dead[r * self.die_cols + c] for r in range(rows) for c in range(cols))
        return dataclasses.replace(
            self, name=f"{self.name}, {rows} x {cols} of {self.die_rows} x {self.die_cols} dies", die_rows=rows,
            die_cols=cols, dead=dead, dip_count=self.dip_count * rows // self.die_rows,
        )  # fmt: skip

    def with_dead(self, dead: Mask) -> Machine:
        """The same machine with these dead sites, and, where they leave some die fewer nodes than its grid has, with
        the largest grid within the present one that fits; `wanted_grid` then says which was wanted."""
        live = self.site_rows * self.site_cols - max((len(set(sites)) for sites in dead), default=0)
        if live >= self.grid_rows * self.grid_cols or live <= 0:
            return dataclasses.replace(self, dead=dead)
        _, rows, cols = max((r * min(self.grid_cols, live // r), r, min(self.grid_cols, live // r))
                            for r in range(1, min(self.grid_rows, live) + 1))  # fmt: skip
        return dataclasses.replace(
            self, dead=dead, grid_rows=rows, grid_cols=cols, row_factors=_primes(rows), col_factors=_primes(cols),
            wanted_grid=self.wanted_grid or (self.grid_rows, self.grid_cols),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON and TOML hold them (tuples become lists)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any], base: Machine | None = None) -> Machine:
        """The machine with these fields, the others from `base` (default: all must be there).

        When `data` changes how many dies or sites there are and gives no `dead`: with the same sites per die the base's
        count of dead ones is drawn anew per die, otherwise every site is live. Where `data` gives dead sites and no
        grid, the base's grid gets as much smaller as it must (`with_dead`). UsageError names the culprit.
        """
        known = {f.name for f in dataclasses.fields(Machine)}
        unknown = sorted(set(data) - known)
        if unknown:
            _fail(f"machine description: unknown field {unknown[0]!r}; `d1c targets` lists the fields")
        if base is None:
            missing = sorted(known - set(data))
            if missing:
                _fail(f"machine description: field {missing[0]!r} is missing")
            base = PRESETS["d1-tile"]
        values = {k: _tuples(v) for k, v in data.items()}
        if "dead" not in values:
            rows, cols = values.get("die_rows", base.die_rows), values.get("die_cols", base.die_cols)
            sites = (values.get("site_rows", base.site_rows), values.get("site_cols", base.site_cols))
            if sites != (base.site_rows, base.site_cols):
                values["dead"] = ()
            elif (rows, cols) != (base.die_rows, base.die_cols) and all(type(v) is int and v > 0 for v in (rows, cols)):
                values["dead"] = random_mask(0, min(rows * cols, MAX_DIES), *sites, len(base.dead[0]))
        if "dead" in values and not {"grid_rows", "grid_cols", "row_factors", "col_factors"} & set(values):
            dead = values.pop("dead")
            plain = dataclasses.replace(base, **values, dead=())
            _check_field(plain.name, "dead", "Mask", dead)
            return plain.with_dead(dead)
        return dataclasses.replace(base, **values)


def _primes(n: int) -> tuple[int, ...]:
    """The prime factors of n, ascending; (1,) of 1."""
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return tuple(found) or (1,)


def _check_routers(machine: Machine) -> None:
    """Dead routers leave every die in one piece and joined to its neighbours, and there are channels for detours."""
    rows, cols = machine.site_rows, machine.site_cols
    if machine.virtual_channels < 3:
        _fail(
            f"machine {machine.name}: ways round dead routers need 3 virtual_channels, not {machine.virtual_channels}"
        )
    live = [{(r, c) for r in range(rows) for c in range(cols)} - set(sites) for sites in machine.dead]
    for die, sites in enumerate(live):
        front = [min(sites)]
        seen = set(front)
        while front:
            r, c = front.pop()
            near = {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)} & (sites - seen)
            seen |= near
            front += near
        part = min(seen, sites - seen, key=lambda s: (len(s), sorted(s)))
        if part:
            _fail(
                f"machine {machine.name}: dead routers cut die {die} in two: from {_named(part)} no way leads to its "
                f"other sites; the dead ones are {_named(machine.dead[die])}"
            )
    for die, sites in enumerate(live):
        beside, below = (die + 1, die % machine.die_cols + 1 < machine.die_cols), (die + machine.die_cols, True)
        lanes = ([((r, cols - 1), (r, 0)) for r in range(rows)], [((rows - 1, c), (0, c)) for c in range(cols)])
        for (other, is_one), pairs in zip((beside, below), lanes, strict=True):
            if is_one and other < len(live) and not any(a in sites and b in live[other] for a, b in pairs):
                _fail(
                    f"machine {machine.name}: dead routers cut die {die} from die {other}: every link between them "
                    "ends at one"
                )


def _named(sites: Iterable[Site]) -> str:
    shown = [f"({r}, {c})" for r, c in sorted(sites)]
    return ", ".join(shown if len(shown) < 9 else [*shown[:8], f"{len(shown) - 8} more"])


MAX_DIES = 4096
"""More dies than an ExaPOD has: a bound against absurd descriptions, not a number of the machine."""
_MAX = 2**48
_MAX_SIDE = 1024
_SIDES = ("die_rows", "die_cols", "site_rows", "site_cols", "grid_rows", "grid_cols")
_MAY_BE_ZERO = ("hop_cycles", "inject_cycles", "eject_cycles", "launch_cycles", "call_cycles", "loop_cycles",
                "die_crossing_cycles", "code_reserve_bytes", "icache_miss_cycles", "branch_cycles", "dip_count",
                "dip_latency_cycles", "hbm_latency_cycles", "run_header_bytes")  # fmt: skip


def _check_field(machine: str, name: str, kind: str, value: object) -> None:
    def bad(want: str) -> NoReturn:
        shown = repr(value)
        _fail(f"machine {machine}: {name} must be {want}, not {shown if len(shown) < 60 else shown[:57] + '...'}")

    if kind == "int":
        low = 0 if name in _MAY_BE_ZERO else 1
        high = _MAX_SIDE if name in _SIDES else _MAX
        if type(value) is not int or not low <= value <= high:
            bad(f"an integer from {low} to {high}")
    elif kind == "float":
        if type(value) not in (int, float) or not 0 < value <= _MAX:  # type: ignore[operator]
            bad("a positive number")
    elif kind == "bool":
        if type(value) is not bool:
            bad("true or false")
    elif kind == "str":
        if not isinstance(value, str) or not value:
            bad("a non-empty string")
    elif kind == "Mask":
        if (
            not isinstance(value, tuple)
            or len(value) > MAX_DIES
            or not all(isinstance(die, tuple) and all(_is_site(s) for s in die) for die in value)
        ):
            bad("one list of [row, col] sites per die")
    elif not isinstance(value, tuple) or not all(type(f) is int and f > 0 for f in value) or len(value) > 16:
        bad("a list of positive integers")


def _is_site(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(v) is int for v in value)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_TILE = Machine()
PRESETS: dict[str, Machine] = {
    m.name: m
    for m in (
        dataclasses.replace(
            _TILE, name="d1-node", die_rows=1, die_cols=1, site_rows=1, site_cols=1, dead=(), grid_rows=1, grid_cols=1,
            row_factors=(1,), col_factors=(1,), dip_count=1,
        ),
        dataclasses.replace(_TILE, name="d1-die", die_rows=1, die_cols=1, dead=_TILE.dead[:1], dip_count=1),
        _TILE,
        dataclasses.replace(
            _TILE, name="test", die_rows=1, die_cols=2, site_rows=3, site_cols=3, dead=(((1, 1),), ((2, 0),)),
            grid_rows=2, grid_cols=4, row_factors=(2,), col_factors=(2, 2), sram_bytes=65_536, code_reserve_bytes=8_192,
            semaphores=16, dip_count=1,
        ),
    )
}  # fmt: skip
"""The machines that have a name. `test` is assumed throughout: small enough to read every core's program."""


def machine(name_or_path: str | Path) -> Machine:
    """The preset of that name, or the machine of a TOML file (`base = "d1-tile"`, then fields by name).

    Raises UsageError: no such preset or file, not TOML, unknown field, bad value, grid larger than the live nodes,
    factors whose product is not the grid.
    """
    text = str(name_or_path)
    if text in PRESETS:
        return PRESETS[text]
    path = Path(name_or_path)
    if path.suffix != ".toml":
        _fail(f"no machine {text!r}; presets are {', '.join(PRESETS)}, or give a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        _fail(f"machine {text}: cannot read: {e.strerror or e}")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        _fail(f"machine {text}: not TOML: {e}")
    base = data.pop("base", "d1-tile")
    if not isinstance(base, str) or base not in PRESETS:
        _fail(f"machine {text}: base {base!r} is no preset; presets are {', '.join(PRESETS)}")
    return Machine.from_dict({"name": path.stem, **data}, PRESETS[base])
