"""The plans of all layers of a graph, chosen together.

Variables are layers (and inputs whose place is free), their values are candidates; a layer costs what its candidate
takes, and two layers of which one reads the other cost the movement between them. `choose` finds the least sum. It
starts with the most different candidates of every layer and takes in those others that would pay beside the plans just
chosen, until none does. Constants stay where they are used while they fit; if they do not, a price on their bytes,
found by bisection, decides which plans replicate them less and which constants are gathered for every use; where equal
layers would all change their plans at one price, only some of them do.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from d1c.analysis.candidates import Candidate, Like, idle_price, priced, signature, used_cores
from d1c.analysis.choose import cheapest
from d1c.analysis.homes import Home, homes, hull, rate, resting
from d1c.analysis.layers import Layer, Stored
from d1c.analysis.plans import inherited, spread
from d1c.analysis.pools import Pool, pool_of
from d1c.analysis.price import Moved, Places, all_moves, places
from d1c.analysis.threads import at_a_time
from d1c.errors import DoesNotFit
from d1c.ir.layout import Need
from d1c.target.mesh import Layout, LayoutError

MORE, ROUNDS = 4, 3
"""Candidates of a layer that are added per round, and rounds at most; `Places.first` is how many there are at first."""
STEPS, CHEAP = 7, 2.0**-16
"""Steps of the bisection of the price of a byte, and where it starts, in cycles: to within some 10%."""
BEHIND = 1 / 16
"""Part of the time of a constant that comes while a layer computes that is priced: it takes links from others."""
CROWDED = 2.0
"""How many times as long as its estimate the gathering of constants counts: all cores of a neighbourhood send to all
others at once, beside what else moves, and trees wait for each other (gpt2: 16,900 cycles by events for 8,500)."""
CROSSING = 1.25
"""How many times its cycles a way over a die edge counts. Messages that cross wait for each other more than others do,
by events plans are faster so: 6% vit_b16, 3% gpt2_small; twice makes minilm a fifth slower (docs/mapping.md)."""
BESIDE = 0.5
"""`Places.beside`: what waits for copies that leave a trunk (docs/mapping.md)."""
SMALL = 2048
"""Bytes of a constant's window that always stays: gathering it would cost its distance and save nothing."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Per layer its candidate; layouts of the free inputs; where those constants lie (by name and need) that are
    gathered for every use; the price of all, and whether no other choice of the candidates seen is cheaper."""

    plans: tuple[Candidate, ...]
    inputs: Mapping[str, Layout]
    gathered: Mapping[tuple[str, Need], Layout]
    cycles: float
    exact: bool


@dataclass(slots=True)
class _Read:
    """Operand `number` of a layer: read from variable `source`, or from where it lies (`layout`)."""

    number: int
    operand: Stored
    source: int
    layout: Layout | None


@dataclass(slots=True)
class _Variable:
    """A layer, or a free input; `use`: the candidates of `pool` that are in the choice. `own`: cycles per candidate of
    the pool."""

    layer: Layer | None
    pool: list[Candidate]
    use: list[int]
    reads: list[_Read] = field(default_factory=list)
    readers: list[tuple[int, _Read]] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    numbers: dict[tuple[Layout, Layout | None], int] = field(default_factory=dict)
    costs: dict[tuple[float, tuple[int, ...]], np.ndarray] = field(default_factory=dict)


class Planner:
    """Prices are remembered: layers of equal shapes ask the same. `room`: bytes of SRAM that the windows and the result
    of a layer may take. `stream`: constants that do not stay come from the interface processors' memories. `idle`: part
    of the price of idle cores that counts."""

    def __init__(self, where: Places, room: float, stream: bool = False, idle: float = 1.0) -> None:
        far = round(CROSSING * where.machine.die_crossing_cycles)
        self.where = places(replace(where.machine, die_crossing_cycles=far), BESIDE)
        self.room, self.stream, self.idle = room, stream, idle
        self.pools: dict[Like, Pool] = {}
        self.picked: dict[tuple[Like, float], list[Candidate]] = {}
        self.settled: dict[int, float] = {}
        self.held: dict[int, list[tuple[Home, ...]]] = {}
        self.layouts: dict[Layout, int] = {}
        self.count = itertools.count()  # layouts are numbered by several threads
        self.moved: dict[tuple[Need, int], dict[int, Moved]] = {}
        self.gathers: dict[tuple[Need, int], tuple[Home, ...]] = {}
        self.tables: dict[tuple[object, ...], np.ndarray] = {}
        self.priced: list[Candidate] = []  # tables name candidates by their ids: all stay alive
        # What lives is never overwritten before all cores have met, so every byte brings the next meeting nearer.
        self.byte_cycles = where.across / where.machine.data_bytes if where.machine.cores > 1 else 0.0

    def plan(
        self, layers: Sequence[Layer], lies: Mapping[str, Layout], free: Sequence[Stored], budget: float
    ) -> Chosen:
        """`lies`: layouts of tensors that are there. `free`: inputs whose layouts are to be chosen. `budget`: bytes of
        constants that may stay. Raises DoesNotFit where a layer has no plan."""
        graph = _Graph(self, layers, lies, free)
        prices, chosen = graph.affordable(budget)
        if prices.any():
            graph.spare(prices)
            prices, chosen = graph.affordable(budget)
        for _ in range(ROUNDS):
            if not graph.widened(chosen[0], prices.tolist()):
                break
            prices, found = graph.affordable(budget)
            better = found[1] < chosen[1] - 1
            if found[1] <= chosen[1]:
                chosen = found
            if not better:
                break
        return graph.result(*chosen, budget)

    def prepare(self, layers: Sequence[Layer]) -> None:
        """Make the pools of all layers, and their candidates where bytes cost nothing."""

        def make(like: Like) -> None:
            with contextlib.suppress(LayoutError):  # `pool` tells which
                pool = pool_of(like.layer, self.where, self.room)
                self.picked[like, 0.0] = pool.at(0.0)
                self.pools[like] = pool

        new = {like: None for x in layers if (like := Like(signature(x), x)) not in self.pools}
        at_a_time([partial(make, like) for like in new])

    def pool(self, layer: Layer, byte: float = 0.0) -> list[Candidate]:
        """The candidates of a layer where a byte of constants counts `byte` cycles."""
        like = Like(signature(layer), layer)
        if (like, byte) in self.picked:
            return self.picked[like, byte]
        if like not in self.pools:
            try:
                self.pools[like] = pool_of(layer, self.where, self.room)
            except LayoutError as e:
                m = self.where.machine
                size = sum(math.prod(o.shape) * o.dtype.bytes for o in (*layer.operands, layer.result))
                raise DoesNotFit(
                    f"layer {layer.origin or layer.result.name} does not fit the machine {m.name}",
                    where=layer.origin, rule=str(e),
                    amounts={"operands and result, bytes": size, "SRAM for data of a core, bytes": m.data_bytes},
                    remedy="use a larger --target, a smaller batch, or --precision bf16",
                ) from e  # fmt: skip
        self.picked[like, byte] = self.pools[like].at(byte)
        return self.picked[like, byte]

    def moves(
        self, sources: Sequence[Layout], needs: Sequence[Need], shape: tuple[int, ...], width: int
    ) -> list[list[Moved]]:
        """Per need and source what the movement takes."""
        numbers = [self.layouts.setdefault(s, next(self.count)) for s in sources]
        known = [self.moved.setdefault((need, width), {}) for need in needs]
        asked = list[tuple[Need, list[int]]]()
        for need, mine in zip(needs, known, strict=True):
            if missing := {n: k for k, n in enumerate(numbers) if n not in mine}:
                asked.append((need, list(missing.values())))
        if asked:
            found = all_moves(sources, asked, shape, width, self.where)
            columns = found.cycles, found.in_place == 0, found.by_columns > 0
            told = map(Moved, *(x.tolist() for x in columns))
            for need, new in asked:
                self.moved[need, width].update((numbers[k], x) for k, x in zip(new, told, strict=False))
        return [[mine[n] for n in numbers] for mine in known]

    def homes(self, o: Stored, need: Need) -> tuple[Home, ...]:
        """The ways to keep a constant that are worth it, from that with most bytes on a core to that with least."""
        key = need, o.dtype.bytes
        if key not in self.gathers:
            mesh, width = self.where.mesh, o.dtype.bytes
            layouts = homes(o.shape, need, mesh)
            found = self.moves(layouts, [need], o.shape, width)[0]
            ways = [Home(self.whole(o, need), 0.0, None)]
            ways += [
                Home(math.prod(x.local_shape(o.shape)) * width, c * CROWDED, x)
                for x, (c, _, _) in zip(layouts, found, strict=True)
            ]
            self.gathers[key] = hull(ways)
        return self.gathers[key]

    def whole(self, o: Stored, need: Need) -> int:
        """Bytes of a constant's window."""
        return math.prod(need.local_shape()) * o.dtype.bytes

    def stream_cycles(self, o: Stored, need: Need) -> float:
        """For how long the memories outside are busy with a constant's windows."""
        m = self.where.machine
        rate = m.dip_count * min(m.dip_bytes_per_cycle, m.dip_edge_bytes_per_cycle)
        return self.whole(o, need) * m.cores / rate


class _Graph:
    def __init__(
        self, planner: Planner, layers: Sequence[Layer], lies: Mapping[str, Layout], free: Sequence[Stored]
    ) -> None:
        self.planner, self.layers, self.free = planner, layers, free
        self.variables: list[_Variable] = []
        at: dict[str, int] = {}
        for s in free:
            at[s.name] = len(self.variables)
            self.variables.append(_Variable(None, [], []))
            self.add(self.variables[-1], _lying(spread(s.shape, planner.where.mesh), s))
        planner.prepare(layers)
        for layer in layers:
            number = len(self.variables)
            v = _Variable(layer, [], [])
            for k, o in enumerate(layer.operands):
                if not o.constant:
                    read = _Read(k, o, at.get(o.name, -1), None if o.name in at else lies[o.name])
                    v.reads.append(read)
                    if read.source >= 0:
                        self.variables[read.source].readers.append((number, read))
            at[layer.result.name] = number
            pool = planner.pool(layer)
            for c in pool:
                self.take(v, c)
            v.use = _varied(pool, planner.where.first)
            self.variables.append(v)
        for s in free:
            self.place(at[s.name])

    def spare(self, prices: np.ndarray) -> None:
        """Take in the candidates that are good at these prices of a byte of constants."""
        for v in self.variables:
            if v.layer is not None and any(o.constant for o in v.layer.operands):
                for price in sorted({*prices.tolist()}):
                    pool = self.planner.pool(v.layer, price)
                    for i in _varied(pool, self.planner.where.first):
                        self.add(v, pool[i])
                    for c in pool:
                        self.number(v, c)

    def take(self, v: _Variable, c: Candidate) -> int:
        """Put a candidate in the pool; its number."""
        self.planner.priced.append(c)
        v.numbers.setdefault((c.plan, c.combine), len(v.pool))
        v.pool.append(c)
        v.own.append(math.nan)
        return len(v.pool) - 1

    def settle(self, v: _Variable, i: int) -> float:
        """The cost of a candidate without its constants; worked out when it is first wanted."""
        if math.isnan(v.own[i]):
            c = v.pool[i]
            if id(c) not in self.planner.settled:  # equal layers have the same candidates
                self.planner.settled[id(c)] = self.alone(v.layer, c)
            v.own[i] = self.planner.settled[id(c)] + sum(
                self.move(read.layout, v, read, i) for read in v.reads if read.layout is not None
            )
        return v.own[i]

    def alone(self, layer: Layer | None, c: Candidate) -> float:
        """What `settle` says of a candidate, whatever lies where."""
        own = c.cycles + c.bytes * self.planner.byte_cycles
        if layer is None:
            return own
        own += self.planner.idle * float(idle_price(c.cycles, used_cores(layer, c.plan), self.planner.where))
        if not self.planner.stream:
            return own
        come = sum(self.planner.stream_cycles(o, need) for o, need in _large(layer, c))  # while the one before computes
        return own + max(0.0, come - c.cycles) + BEHIND * come

    def held(self, v: _Variable, i: int) -> list[tuple[Home, ...]]:
        """How each of the constants of a candidate may be kept; worked out where not all can be kept whole."""
        c, p = v.pool[i], self.planner
        if v.layer is None or p.stream:
            return []
        if id(c) not in p.held:  # equal layers have the same candidates
            p.held[id(c)] = [p.homes(o, need) for o, need in _large(v.layer, c)]
        return p.held[id(c)]

    def place(self, number: int) -> None:
        """An input may lie as its readers' candidates need it."""
        v = self.variables[number]
        for j, read in v.readers:
            reader = self.variables[j]
            for i in reader.use:
                layout = resting(reader.pool[i].needs[read.number], read.operand.shape, self.planner.where.mesh)
                if layout is not None:
                    lying = _lying(layout, read.operand)
                    if lying.bytes <= self.planner.room / 4:  # its readers' windows must fit beside it
                        self.add(v, lying)

    def number(self, v: _Variable, c: Candidate) -> int:
        """The number of a candidate, which is put in the pool unless it is there."""
        i = v.numbers.get((c.plan, c.combine))
        return self.take(v, c) if i is None else i

    def add(self, v: _Variable, c: Candidate) -> None:
        """Put a candidate in the choice, unless it is there."""
        i = self.number(v, c)
        if i not in v.use:
            v.use.append(i)

    def move(self, source: Layout, reader: _Variable, read: _Read, i: int) -> float:
        """Cycles of the movement to candidate `i`, with the launch of a reader that would not wait otherwise."""
        assert reader.layer is not None
        need, o = reader.pool[i].needs[read.number], read.operand
        [[(cycles, moved, _)]] = self.planner.moves([source], [need], o.shape, o.dtype.bytes)
        return cycles + self.launch(reader) * moved

    def launch(self, reader: _Variable) -> int:
        assert reader.layer is not None
        return 0 if reader.layer.nest.kind in ("mac", "fma", "attention") else self.planner.where.machine.launch_cycles

    def table(self, j: int, read: _Read, sources: Sequence[int], picks: Sequence[int]) -> np.ndarray:
        """[sources, candidates] cycles of the movement to variable j."""
        before, v = self.variables[read.source], self.variables[j]
        o, launch = read.operand, self.launch(v)
        key = (
            o.shape, o.dtype.bytes, launch, read.number,
            tuple(id(before.pool[s]) for s in sources), tuple(id(v.pool[i]) for i in picks),
        )  # fmt: skip
        if key not in self.planner.tables:
            layouts = [before.pool[s].result for s in sources]
            needs = [v.pool[i].needs[read.number] for i in picks]
            different = list(dict.fromkeys(needs))
            found = self.planner.moves(layouts, different, o.shape, o.dtype.bytes)
            columns = {n: [c + launch * moved for c, moved, _ in x] for n, x in zip(different, found, strict=True)}
            self.planner.tables[key] = np.array([columns[n] for n in needs]).T
        return self.planner.tables[key]

    def costs(self, v: _Variable, picks: Sequence[int], price: float) -> np.ndarray:
        """Costs of candidates by themselves. `price`: of a byte of constants that stay."""
        key = price, tuple(picks)
        if key not in v.costs:
            own = [self.settle(v, i) for i in picks]
            if price:
                own = [
                    c + sum(min(w.bytes * price + w.cycles for w in ways) for ways in self.held(v, i))
                    for c, i in zip(own, picks, strict=True)
                ]
            v.costs[key] = np.array(own)
        return v.costs[key]

    def kept(self, picks: Sequence[int], prices: np.ndarray) -> np.ndarray:
        """[variables] bytes that constants take on every core at these prices."""
        out = np.zeros(len(picks))
        for j, (v, i, price) in enumerate(zip(self.variables, picks, prices.tolist(), strict=True)):
            if price:
                out[j] = sum(min(w, key=lambda w: w.bytes * price + w.cycles).bytes for w in self.held(v, i))
            elif v.layer is not None and not self.planner.stream:
                out[j] = sum(self.planner.whole(o, need) for o, need in _large(v.layer, v.pool[i]))
        return out

    def affordable(self, budget: float) -> tuple[np.ndarray, tuple[list[int], float, bool]]:
        """[variables] the least price of a byte at which what stays fits, and the choice at that price. Equal layers
        change their plans at one price, and what stays can drop to little: then as many of the first layers as there is
        room for pay the highest price at which all would not fit."""
        edges = [(j, read) for j, v in enumerate(self.variables) for read in v.reads if read.source >= 0]
        made = at_a_time(
            [partial(self.table, j, x, self.variables[x.source].use, self.variables[j].use) for j, x in edges]
        )
        tables: dict[tuple[int, int], np.ndarray] = {}
        for (j, read), table in zip(edges, made, strict=True):
            key = (read.source, j)
            tables[key] = tables[key] + table if key in tables else table
        count = len(self.variables)

        def choose(prices: np.ndarray) -> tuple[bool, tuple[list[int], float, bool]]:
            """Whether what stays fits, and the choice; its cost without the price of what stays."""
            priced = zip(self.variables, prices.tolist(), strict=True)
            found = cheapest([self.costs(v, v.use, price) for v, price in priced], tables)
            picks = [v.use[p] for v, p in zip(self.variables, found.picks, strict=True)]
            kept = self.kept(picks, prices)
            return kept.sum() <= budget, (picks, found.cost - float(prices @ kept), found.exact)

        prices = np.zeros(count)
        fits, chosen = choose(prices)
        if fits:
            return prices, chosen
        # At the highest price every constant takes the least it can.
        held = [ways for v in self.variables for i in v.use for ways in self.held(v, i) if len(ways) > 1]
        low, high = CHEAP, max([rate(*ways[-2:]) for ways in held], default=1.0) + 2 * CHEAP
        prices[:] = high
        _, chosen = choose(prices)
        for _ in range(STEPS):
            middle = math.sqrt(low * high)
            fits, found = choose(np.full(count, middle))
            if fits:
                high, chosen = middle, found
            else:
                low = middle
        prices[:], fit, over = high, 0, count
        while over - fit > 1:
            middle = (fit + over) // 2
            mixed = np.where(np.arange(count) < middle, low, high)
            fits, found = choose(mixed)
            if fits:
                fit = middle
                if found[1] < chosen[1]:
                    prices, chosen = mixed, found
            else:
                over = middle
        return prices, chosen

    def widened(self, picks: Sequence[int], prices: Sequence[float]) -> bool:
        """`widen` all variables: first the inputs, which look at what their readers have."""
        inputs = [self.widen(j, picks, prices[j]) for j in range(len(self.free))]
        layers = range(len(self.free), len(self.variables))
        return any(inputs + at_a_time([partial(self.widen, j, picks, prices[j]) for j in layers]))

    def widen(self, j: int, picks: Sequence[int], price: float) -> bool:
        """Take in the candidates of a variable that would cost no more than its choice, its neighbours staying as they
        are, or little more. Whether any was new."""
        v = self.variables[j]
        before = len(v.use)
        if v.layer is None:
            self.place(j)
            return len(v.use) > before
        for read in v.reads:
            layout = read.layout or self.variables[read.source].pool[picks[read.source]].result
            plan = inherited(v.layer.nest, layout)
            if plan is not None and not any(c.plan == plan for c in v.pool):
                try:
                    made = priced(v.layer, plan, self.planner.where)
                except LayoutError:
                    continue
                if made.bytes + sum(made.constants) <= self.planner.room:
                    self.take(v, made)

        def cost(of: Sequence[int]) -> np.ndarray:
            out = self.costs(v, of, price)
            for read in v.reads:
                if read.source >= 0:
                    out = out + self.table(j, read, [picks[read.source]], of)[0]
            for k, read in v.readers:
                out = out + self.table(k, read, of, [picks[k]])[:, 0]
            return out

        limit = float(cost([picks[j]])[0]) + self.planner.where.machine.launch_cycles
        others = [i for i in range(len(v.pool)) if i not in v.use]
        others = [i for i, own in zip(others, self.costs(v, others, price), strict=True) if own < limit]
        if others:
            found = cost(others)
            v.use += [others[at] for at in np.argsort(found, kind="stable")[:MORE] if found[at] < limit]
        return len(v.use) > before

    def result(self, picks: Sequence[int], cycles: float, exact: bool, budget: float) -> Chosen:
        """What SRAM there is goes where it saves most cycles per byte."""
        constants: dict[tuple[str, Need], Stored] = {}
        for v, i in zip(self.variables, picks, strict=True):
            if v.layer is not None:
                constants |= {(o.name, need): o for o, need in _large(v.layer, v.pool[i])}
        plans = [v.pool[i] for v, i in zip(self.variables, picks, strict=True)]
        inputs = {s.name: plans[k].result for k, s in enumerate(self.free)}
        chosen = Chosen(tuple(plans[len(self.free) :]), inputs, {}, cycles, exact)
        if sum(self.planner.whole(o, need) for (_, need), o in constants.items()) <= budget:
            return chosen
        uses = {(n, need): self.planner.homes(o, need) for (n, need), o in constants.items()}
        least = {k: len(ways) - 1 for k, ways in uses.items()}
        left = budget - sum(ways[-1].bytes for ways in uses.values())
        steps = [(rate(a, b), k, i) for k, ways in uses.items() for i, (a, b) in enumerate(itertools.pairwise(ways))]
        for _, k, i in sorted(steps, key=lambda s: -s[0]):  # a constant's own steps: ever dearer, so in their order
            more = uses[k][i].bytes - uses[k][i + 1].bytes
            if least[k] == i + 1 and more <= left:
                left, least[k] = left - more, i
        gathered = {k: x for k, i in least.items() if (x := uses[k][i].layout) is not None}
        return replace(chosen, gathered=gathered)


def _large(layer: Layer, c: Candidate) -> list[tuple[Stored, Need]]:
    """A candidate's constants that may be gathered."""
    sizes = zip(layer.operands, c.needs, c.constants, strict=True)
    return [(o, need) for o, need, size in sizes if size > SMALL]


def _lying(layout: Layout, s: Stored) -> Candidate:
    """An input that lies so."""
    size = math.prod(layout.local_shape(s.shape)) * s.dtype.bytes
    return Candidate(layout, None, (), layout, 0.0, size, ())


def _varied(pool: Sequence[Candidate], count: int) -> list[int]:
    """The first `count` candidates of a pool, one of every kind before the second of any: kinds cut by dies
    differently."""
    kinds: dict[object, int] = {}
    order = []
    for i, c in enumerate(pool):
        dies = [(k, tuple(a for a in g.axes if a[0] == "d"), g.block) for k, g in enumerate(c.plan.groups)]
        key = tuple(x for x in dies if x[1])
        order.append((kinds.get(key, 0), i))
        kinds[key] = kinds.get(key, 0) + 1
    return sorted(i for _, i in sorted(order)[:count])
