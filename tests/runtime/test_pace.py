"""Movements sent as is best: over how many cycles their cores begin, and in which order their messages go."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

import d1c
import d1rt
from d1c.analysis.exchange import exchange
from d1c.emit.modules import from_modules, to_modules
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.ir.text import parse
from d1c.target.machine import PRESETS, Machine
from d1c.target.mesh import Group, Layout, Mesh
from d1c.target.movement import Cut, Exchange, turns
from d1c.target.program import Arrive, Buffer, Command, Loop, Program, Push, Role, every
from d1c.target.program_io import save
from d1rt.events import simulate
from d1rt.linkload import Fabric, load, pushed
from d1rt.pace import Paced, paced, tuned
from tests.levels.test_branches import NETS, feeds
from tests.runtime.slow_events import slow_cycles
from tests.runtime.test_events import product, roles, transposed
from tests.runtime.test_timing import COL, ROW, movement, program

TILE = PRESETS["d1-tile"]


def test_turns_are_the_golden_ratios():
    for spread in (0, 1, 700, 123_456):
        found = turns(spread, 8800)
        assert found.tolist() == [(c * 40503 % 65536) * spread // 65536 for c in range(8800)]
    assert abs(40503 / 65536 - (5**0.5 - 1) / 2) < 1e-5
    # Any hundred neighbours begin evenly: no gap is longer than three hundredths of the spread.
    for first in (0, 1234, 8000):
        some = np.sort(turns(100_000, 8800)[first : first + 100])
        assert np.diff(np.concatenate([[0], some, [100_000]])).max() < 3000


def test_cores_begin_at_their_turn():
    p = transposed()
    first, *rest = p.roles[0].threads[0]
    late = dataclasses.replace(p, roles=(Role("main", (), ((dataclasses.replace(first, spread=5000), *rest),)),))
    found, plain = simulate(late).total["cycles"], simulate(p).total["cycles"]
    assert found == slow_cycles(late)
    # Core 8 begins last, 5,000 x (8 x 40503 mod 65536) / 65536 = 4,721 cycles late, and all others wait for it; without
    # the spread the whole movement took less than 200.
    assert 4721 - 200 < found - plain <= 4721


@pytest.mark.parametrize("spreads", [(300, 0, 0), (300, 200, 0), (0, 900, 900), (1, 65_536, 7)])
def test_a_plain_simulation_agrees(spreads: tuple[int, int, int]):
    """Pushes right behind each other, with something between them, and in a loop."""
    source = Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 16)))
    moves = tuple(movement((64, 64), source, needs, (64, 64), source) for needs in ((COL, ROW), (ROW, COL)))
    a, b, c = spreads
    threads = (
        (Push(0, 1, 0, 3, 0, spread=a), Push(0, 1, 1, 5, 1, spread=b), Arrive(0, 3, 0), product(),
         Loop((Push(0, 1, 0, 4, 1, spread=c), Arrive(0, 4, 1)), 3), Arrive(1, 5, 1)),
        (product(), Push(0, 1, 1, 6, 0, by_columns=True, spread=b), Arrive(1, 6, 0)),
    )  # fmt: skip
    p = roles(program(exchanges=moves, layers=2), threads)
    assert simulate(p).total["cycles"] == slow_cycles(p)


@lru_cache
def packed(machine: Machine = TILE) -> Program:
    """Keys of 256 images that lie by images, tokens and columns are packed in pairs of tokens by other images, tokens
    and columns, so that every core has something for 12 others, most of them on other dies."""
    mesh, shape = Mesh(machine.axes), (256, 196, 768)
    source = Layout((
        Group(1, ("dr", "nr.0", "nr.1"), 13), Group(1, ("dc", "nc.0", "nr.2", "nr.3"), 5), Group(1, ("nc.1",), 72)
    ))  # fmt: skip
    images, pairs, depth = Group(1, ("dr", "nr.0", "nr.1", "nc.0"), 7), Group(1, ("dc", "nc.1"), 2), ("nr.2", "nr.3")
    plan = Layout((images, Group(), pairs, Group(1, depth, 16), Group()))
    index = (Entry(((0, 1),)), Entry(((2, 2), (4, 1))), Entry(((1, 64), (3, 1))))
    x = exchange(source, shape, need_of((256, 12, 98, 64, 2), index, shape, plan), mesh)
    owned, window = (math.prod(getattr(c, k) for c in x.components) for k in ("owned", "window"))
    buffers = (Buffer("a", "bf16", owned, 0, "owned"), Buffer("b", "bf16", window, 65536, "window"))
    role = Role("main", (), ((Push(0, 1, 0, 3, 0), Arrive(0, 3, 0)),))
    return Program(machine.to_dict(), mesh, buffers, (), (x,), (role,), (), (), (), layers=({"name": "l0"},))


@lru_cache
def sent_well() -> Paced:
    return paced(packed())


def test_what_jams_begins_over_some_cycles():
    p, found = packed(), sent_well()
    (push, arrive) = found.program.roles[0].threads[0]
    assert isinstance(push, Push) and isinstance(arrive, Arrive)
    assert (found.movements, found.changed) == (1, 1) and found.sent > 1
    flows = pushed(p.exchanges[0], 2, np.ones(p.mesh.cores, bool), TILE)
    bound = load(flows, Fabric.of(TILE), push.by_columns)
    assert 0 < push.spread <= 1.5 * (bound.cycles - bound.distance)
    before, after = (simulate(x).total["cycles"] for x in (p, found.program))
    assert before > 5 * bound.cycles
    assert after < 0.35 * before
    # Who begins last has waited for its turn, in the layer that sends.
    times = simulate(found.program)
    assert times.total["critical_path"]["spread"] > 0.5 * after
    assert {s.layer for s in times.path} == {0} and times.path[0].what == "spread"


def test_the_faster_program_is_kept(monkeypatch: pytest.MonkeyPatch):
    p = packed()
    planned = simulate(p).total["cycles"]
    found, facts = tuned(p, planned)
    assert found == sent_well().program != p and facts["changed"] == 1
    assert facts["tuned_cycles"] == simulate(found).total["cycles"] < planned
    # Where what is best alone is not best in the whole, nothing changes.
    worse = dataclasses.replace(sent_well(), program=late_by(p, 200_000))
    monkeypatch.setattr("d1rt.pace.paced", lambda program: worse)
    found, facts = tuned(p, planned)
    assert found == p and facts["changed"] == 0 and facts["tuned_cycles"] == planned


def turned() -> Exchange:
    """A transpose within a row of cores."""
    source = Layout((Group(1, ("nr",), 64), Group(1, ("nc",), 64)))
    return movement((256, 256), source, (COL, ROW), (256, 256), source)


def test_what_does_not_jam_stays():
    """A transpose within a row of cores is through as soon as the links can."""
    p = program(Push(0, 1, 0, 3, 0), Arrive(0, 3, 0), exchanges=(turned(),))
    found = paced(p)
    assert found.program == p and (found.movements, found.changed, found.sent) == (1, 0, 1)
    assert simulate(p).total["cycles"] > 400  # else nothing would have been tried


def test_the_machine_says_which_orders_there_are():
    rows = dataclasses.replace(TILE, routing="rows")
    found = paced(packed(rows))
    assert not found.program.roles[0].threads[0][0].by_columns


def test_equal_movements_stay_as_each_was_planned():
    rows, columns = (
        (Push(0, 1, 0, 3, k, by_columns=k == 1), Arrive(0, 3, k)) for k in range(2)
    )  # fmt: skip
    p = program(*rows, *columns, exchanges=(turned(),), layers=2)
    found = paced(p)
    assert found.program == p and found.changed == 0


def test_round_dead_routers_there_is_one_order():
    """A push along columns first goes there like any other."""
    m = dataclasses.replace(TILE, dead_router_forwards=False)
    p = packed(m)
    push, arrive = p.roles[0].threads[0]
    found = paced(roles(p, ((dataclasses.replace(push, by_columns=True), arrive),)))
    assert not found.program.roles[0].threads[0][0].by_columns


def test_parts_of_a_movement_go_alike():
    """A sixth of the rows goes apart: it begins over fewer cycles, in the order that is best for the others."""
    p = packed()
    (push, arrive), x = p.roles[0].threads[0], p.exchanges[0]
    size = x.components[x.rows[0]].owned
    cuts = [Cut(bounds, (0, 1 << 62)) for bounds in ((0, size * 5 // 6), (size * 5 // 6, size))]
    thread = (push, dataclasses.replace(push, exchange=1), arrive, dataclasses.replace(arrive, exchange=1))
    found = paced(dataclasses.replace(roles(p, (thread,)), exchanges=tuple(x.part(c) for c in cuts)))
    large, small = found.program.roles[0].threads[0][:2]
    assert large.by_columns == small.by_columns and large.spread > 2 * small.spread > 0


CONV = """
<ir_version: 8, opset_import: ["" : 18]>
f (float[1, 4, 16, 16] x, float[8, 4, 3, 3] w, float[4, 8, 3, 3] v) => (float[1, 4, 16, 16] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu (a)
    y = Conv <pads = [1, 1, 1, 1]> (b, v)
}
"""


def pushes(p: Program) -> list[Push]:
    return [c for role in p.roles for thread in role.threads for c in every(thread) if isinstance(c, Push)]


def late_by(p: Program, spread: int) -> Program:
    def late(c: Command) -> Command:
        if isinstance(c, Loop):
            return dataclasses.replace(c, body=tuple(map(late, c.body)))
        return dataclasses.replace(c, spread=spread) if isinstance(c, Push) else c

    made = (dataclasses.replace(r, threads=tuple(tuple(map(late, t)) for t in r.threads)) for r in p.roles)
    return dataclasses.replace(p, roles=tuple(made))


def test_fewer_dies_are_taken_where_ways_are_all(tmp_path: Path):
    """A little work on a tile: on some dies it is over earlier. The bound stays the tile's, the values the same."""
    model, _ = NETS["nothing follows"]
    plain, tuned = (d1c.compile(model, tune=t) for t in (False, True))
    facts, m = tuned.target.info["tuned"], tuned.machine
    assert facts["plans"] > 1 and m.dies < TILE.dies and m.name == f"d1-tile, {m.die_rows} x {m.die_cols} of 5 x 5 dies"
    assert facts["planned_cycles"] == simulate(plain.target).total["cycles"] > facts["tuned_cycles"]
    assert facts["tuned_cycles"] == simulate(tuned.target).total["cycles"]
    assert tuned.target.info["bounds"] == plain.target.info["bounds"] and m.name in str(tuned)
    tuned.save(tmp_path / "a.d1x")
    x = feeds(model)
    assert np.array_equal(d1rt.load(tmp_path / "a.d1x").run(x)["y"], d1rt.load(plain.target).run(x)["y"])


def test_a_part_of_a_machine():
    """The west of the tile, with its own dead sites and the interface processors of its rows."""
    m = TILE.part(2, 3)
    assert (m.die_rows, m.die_cols, m.dies, m.dip_count) == (2, 3, 6, 2)
    assert m.dead == tuple(TILE.dead[d] for d in (0, 1, 2, 5, 6, 7))
    assert dataclasses.replace(m, name=TILE.name, die_rows=5, die_cols=5, dead=TILE.dead, dip_count=5) == TILE


def test_a_tuned_network_says_what_it_said_before(tmp_path: Path):
    """The whole way: option, program, file, text, values. What the cores compute does not depend on when it is sent."""
    rng = np.random.default_rng(2)
    shapes = {"w": (8, 4, 3, 3), "v": (4, 8, 3, 3), "x": (1, 4, 16, 16)}
    values = {k: rng.standard_normal(n).astype(np.float32) for k, n in shapes.items()}
    image = {"x": values.pop("x")}
    model = onnx.parser.parse_model(CONV)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    plain, tuned = (d1c.compile(model, target="test", tune=t) for t in (False, True))
    assert "tuned" not in plain.target.info and tuned.target.info["tuned"]["movements"] > 0
    told = tuned.summary()["tuned"]
    assert told["planned_cycles"] == simulate(plain.target).total["cycles"] >= told["tuned_cycles"]
    assert told["tuned_cycles"] == simulate(tuned.target).total["cycles"]
    assert f"tuned: {told['tuned_cycles']:,} cycles by events" in str(tuned) and "tuned:" not in str(plain)
    assert tuned.compiled is not None
    late = dataclasses.replace(tuned.compiled, program=late_by(tuned.target, 321))
    tile, kern = to_modules(late)
    again = from_modules(parse(str(tile), constants=tile.constants), parse(str(kern)), late.program.weights)
    assert len(pushes(again.program)) == len(pushes(plain.target)) > 0
    assert {c.spread for c in pushes(again.program)} == {321}
    save(again.program, tmp_path / "a.d1x")
    want = d1rt.load(plain.target).run(image)
    for got in (d1rt.load(tuned.target).run(image), d1rt.load(tmp_path / "a.d1x").run(image)):
        assert all(np.array_equal(got[k], want[k]) for k in want)
