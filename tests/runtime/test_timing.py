"""The timing model against routes walked link by link, and against programs small enough to work out by hand."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from d1c.analysis.exchange import exchange
from d1c.ir.layout import need_of
from d1c.ir.structured import Entry
from d1c.target.kernel import Loop as Extent
from d1c.target.kernel import Nest, Operand
from d1c.target.machine import PRESETS, Machine, random_mask
from d1c.target.mesh import CoreInt, Group, Layout, Mesh
from d1c.target.movement import Exchange, packed
from d1c.target.program import (
    Arrive,
    Barrier,
    Buffer,
    Call,
    Command,
    Fill,
    Loop,
    Placement,
    Port,
    Program,
    Push,
    Role,
    Send,
    To,
)
from d1rt.linkload import Fabric, Flows, Load, load
from d1rt.timing import Times, layer_times

# One die of 4 x 4 sites, all alive: logical and physical coordinates agree.
SQUARE = dataclasses.replace(
    PRESETS["test"], name="square", die_rows=1, die_cols=1, site_rows=4, site_cols=4, dead=(), grid_rows=4, grid_cols=4,
    row_factors=(4,), col_factors=(4,),
)  # fmt: skip
# Four dies of 3 x 4 sites with a dead one each: rows and columns bend, edges count.
BENT = dataclasses.replace(
    PRESETS["test"], name="bent", die_rows=2, die_cols=2, site_rows=3, site_cols=4, dead=random_mask(7, 4, 3, 4, 1),
    grid_rows=2, grid_cols=4, row_factors=(2,), col_factors=(2, 2),
)  # fmt: skip


# ---- link loads ---------------------------------------------------------------------------------------------------


def walked(flows: Flows, machine: Machine, fabric: Fabric) -> tuple[Counter, int]:
    """Packets over each directed link (from site, to site), every route walked site by site, and the longest way."""
    links: Counter = Counter()
    longest = 0
    for src, cls, packets in zip(flows.src, flows.cls, flows.packets, strict=True):
        tree: Counter = Counter()
        for target in flows.targets[flows.classes == cls]:
            r, c = int(fabric.row[src]), int(fabric.col[src])
            to_r, to_c = int(fabric.row[target]), int(fabric.col[target])
            cycles = machine.inject_cycles + machine.eject_cycles
            while (r, c) != (to_r, to_c):
                step = (r, c + (1 if to_c > c else -1)) if c != to_c else (r + (1 if to_r > r else -1), c)
                dies = [(a // machine.site_rows, b // machine.site_cols) for a, b in ((r, c), step)]
                cycles += machine.hop_cycles + (machine.die_crossing_cycles if dies[0] != dies[1] else 0)
                tree[(r, c), step] += 1
                r, c = step
            longest = max(longest, cycles)
        for link, copies in tree.items():
            links[link] += int(packets) * (1 if machine.multicast == "tree" else copies)
    return links, longest


def loaded(found: Load) -> Counter:
    """The same links from the difference arrays."""
    links: Counter = Counter()
    for array, dr, dc, back in (
        (found.right, 0, 1, False), (found.left, 0, 1, True), (found.down, 1, 0, False), (found.up, 1, 0, True),
    ):  # fmt: skip
        for r, c in zip(*np.nonzero(array), strict=True):
            a, b = (int(r), int(c)), (int(r) + dr, int(c) + dc)
            links[(b, a) if back else (a, b)] = int(array[r, c])
    return links


def some_flows(rng: np.random.Generator, cores: int, messages: int, classes: int, fan: int) -> Flows:
    targets = np.concatenate([rng.choice(cores, fan, replace=False) for _ in range(classes)])
    packets = rng.integers(1, 9, messages)
    return Flows(
        rng.integers(0, cores, messages), rng.integers(0, classes, messages), packets, packets + messages % 3,
        packets * 64 - 3, targets, np.repeat(np.arange(classes), fan),
    )  # fmt: skip


@pytest.mark.parametrize("multicast", ["tree", "none"])
@pytest.mark.parametrize("fan", [1, 3, 16])
def test_links_carry_what_a_router_would_send(rng, fan, multicast):
    for base in (SQUARE, BENT):
        machine = dataclasses.replace(base, multicast=multicast)
        fabric = Fabric.of(machine)
        flows = some_flows(rng, machine.cores, 40, 6, fan)
        found = load(flows, fabric)
        links, longest = walked(flows, machine, fabric)
        assert loaded(found) == links
        assert found.distance == longest
        sent = np.zeros(machine.cores)
        received = np.zeros(machine.cores)
        payload = 0
        for src, cls, cycles, size in zip(flows.src, flows.cls, flows.accesses, flows.payload, strict=True):
            to = flows.targets[flows.classes == cls]
            sent[src] += cycles * (1 if multicast == "tree" else len(to))
            received[to] += cycles
            away = sum(t != src for t in to)
            payload += size * (min(1, away) if multicast == "tree" else away)
        assert np.array_equal(found.sent, sent) and np.array_equal(found.received, received)
        assert found.bytes == payload
        edges: Counter = Counter()
        for (a, b), packets in links.items():
            dies = [(r // machine.site_rows, c // machine.site_cols) for r, c in (a, b)]
            if dies[0] != dies[1]:
                edges[tuple(dies)] += packets
        assert found.edge_packets == max(edges.values(), default=0)


def test_more_packets_never_take_less_time(rng):
    flows = some_flows(rng, BENT.cores, 30, 5, 4)
    fabric = Fabric.of(BENT)
    first = load(flows, fabric)
    for at in range(0, 30, 7):
        packets = flows.packets.copy()
        packets[at] += 5
        more = load(dataclasses.replace(flows, packets=packets), fabric)
        assert more.cycles >= first.cycles and more.packets > first.packets
    both = first + first
    assert both.row_cycles == 2 * first.row_cycles and both.distance == first.distance


# ---- programs -----------------------------------------------------------------------------------------------------

ROW = Entry(((0, 1),))
COL = Entry(((1, 1),))
COPY = Nest("map", (Extent("i", 64), Extent("j", 64)), 2, (Operand("f32", (64, 1), (None, None)),),
            Operand("f32", (64, 1), (None, None)), 1)  # fmt: skip
ADD = Nest("sum", (Extent("i", 64), Extent("j", 64)), 1, (Operand("f32", (64, 1), (None, None)),),
           Operand("f32", (1, 0), (None, None)), 1)  # fmt: skip
PRODUCT = Nest(
    "mac", (Extent("m", 64), Extent("n", 64), Extent("k", 64)), 2,
    (Operand("bf16", (64, 0, 1), (None,) * 3), Operand("bf16", (0, 2, 128), (None,) * 3)),
    Operand("f32", (64, 1, 0), (None,) * 3), 2,
)  # fmt: skip


def call(kernel: int, *trips: int, held: tuple[str, ...] = (), layer: int = 0) -> Call:
    return Call(kernel, 1, (0,), (), (), tuple(CoreInt.const(t) for t in trips), (), held, layer)


def program(
    *commands: Command, machine: Machine = SQUARE, exchanges: tuple[Exchange, ...] = (), layers: int = 1
) -> Program:
    buffers = (Buffer("a", "f32", 4096, 0, "owned"), Buffer("b", "f32", 4096, 16384, "window"))
    return Program(
        machine.to_dict(), Mesh(machine.axes), buffers, (("copy", COPY), ("add", ADD), ("product", PRODUCT)), exchanges,
        (Role("main", (), (commands,)),), (), (), (), layers=tuple({"name": f"l{i}"} for i in range(layers)),
    )  # fmt: skip


def movement(
    shape: tuple[int, ...], source: Layout, index: tuple[Entry, ...], dims: tuple[int, ...], plan: Layout
) -> Exchange:
    return exchange(source, shape, need_of(dims, index, shape, plan), Mesh(SQUARE.axes))


def only(times: Times) -> dict:
    (record,) = times.layers
    return record


def test_neighbour_shift():
    # Every core sends 100 f32 to the core on its right: 400 B are 7 packets. Columns 0 to 2 have a right neighbour: 12
    # messages. Ports and row links each carry 7; the way is 4 to inject + 1 hop + 4 to eject. 7 + 9; nothing computes,
    # nothing is launched.
    send = Send(0, 1, (To("nc", "+", 1),), CoreInt.const(0), CoreInt.const(0), CoreInt.const(100), 3, 0)
    r = only(layer_times(program(send)))
    assert (r["messages"], r["packets"], r["noc_bytes"]) == (12, 84, 4800)
    assert r["terms"]["SRAM port"] == r["terms"]["row link"] == 7
    assert r["terms"]["column link"] == r["terms"]["die edge"] == 0
    assert r["terms"]["distance"] == 9
    assert (r["move_cycles"], r["cycles"], r["binds"], r["kind"]) == (16, 16, "distance", "move")


def test_transpose():
    # A 64 x 64 f32 matrix, 16 x 16 on each core; core (c, r) then needs the block of core (r, c). A block is one run
    # of 1,024 B, 16 packets. Core (r, c) sends along row r to column r, then along that column to row c. Over the link
    # from column r + 1 to column r pass all blocks of row r with c > r: 3 where r = 0, so 48 packets; the columns
    # mirror that. The longest way is (0, 3) -> (3, 0): 6 hops, 14 cycles.
    source = Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 16)))
    x = movement((64, 64), source, (COL, ROW), (64, 64), source)
    r = only(layer_times(program(Push(0, 1, 0, 3, 0), exchanges=(x,))))
    assert r["messages"] == 16 and r["packets"] == 16 * 16
    assert r["noc_bytes"] == 12 * 1024  # the diagonal keeps its blocks
    assert r["terms"]["SRAM port"] == 16
    assert r["terms"]["row link"] == r["terms"]["column link"] == 48
    assert r["terms"]["distance"] == 14
    assert r["move_cycles"] == 62


def test_row_multicast():
    # Each core owns 4 rows' worth of a vector of 256 f32 (16 elements, one packet); along a row of cores everybody
    # needs the row's 64 elements. Each packet is one tree over its row. Right over link c -> c + 1 pass the packets
    # of columns 0..c: 3 over the last link; left likewise. Each core receives 4 packets, sends 1. 3 hops at most: 11
    # cycles.
    source = Layout((Group(1, ("nr", "nc"), 16),))
    plan = Layout((Group(1, ("nr",), 64), Group(1, ("nc",), 1)))
    x = movement((256,), source, (ROW,), (256, 4), plan)
    r = only(layer_times(program(Push(0, 1, 0, 3, 0), exchanges=(x,))))
    assert (r["messages"], r["packets"], r["noc_bytes"]) == (16, 16, 16 * 64)
    assert r["terms"]["SRAM port"] == 4 and r["terms"]["row link"] == 3 and r["terms"]["column link"] == 0
    assert r["terms"]["distance"] == 11 and r["move_cycles"] == 15
    # Without trees a core sends 4 packets, and link 1 -> 2 carries 2 senders x 2 receivers.
    alone = dataclasses.replace(SQUARE, multicast="none")
    r = only(layer_times(program(Push(0, 1, 0, 3, 0), exchanges=(x,), machine=alone)))
    assert r["terms"]["SRAM port"] == 4 and r["terms"]["row link"] == 4 and r["noc_bytes"] == 3 * 16 * 64


def test_runs_join_what_is_contiguous_on_both_sides():
    # A whole row-major block is one run; a block out of wider rows is a run per row.
    whole = Layout((Group(1, ("nr", "nc"), 4), Group()))
    x = movement((64, 64), whole, (ROW, COL), (64, 64), Layout((Group(1, ("nr",), 16), Group())))
    assert set(x.messages().run) == {4 * 64}
    cut = movement((64, 64), whole, (ROW, COL), (64, 64), Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 16))))
    assert set(cut.messages().run) == {16}


@pytest.mark.parametrize("header, packets", [(0, 2), (8, 2), (9, 3), (24, 3), (41, 4), (64, 4)])
def test_short_runs_share_packets(header, packets):
    # 4 rows of 24 f32 on each core; then core (r, c) needs columns 6c to 6c + 5 of the rows of all four cores of its
    # row: messages of 4 runs of 24 B. With a header of 8 B that is 128 B, two packets instead of four; never more than
    # four. Over the middle link of a row pass 2 x 2 messages each way; a port handles a run a cycle, 4 x 4 of them.
    rows = Layout((Group(1, ("nr", "nc"), 4), Group()))
    x = movement((64, 24), rows, (ROW, COL), (64, 24), Layout((Group(1, ("nr",), 16), Group(1, ("nc",), 6))))
    machine = dataclasses.replace(SQUARE, run_header_bytes=header)
    r = only(layer_times(program(Push(0, 1, 0, 3, 0), exchanges=(x,), machine=machine)))
    assert (r["messages"], r["packets"], r["noc_bytes"]) == (64, 64 * packets, 48 * 96)
    assert r["terms"]["SRAM port"] == 16 and r["terms"]["row link"] == 4 * packets
    assert r["terms"]["column link"] == 0 and r["move_cycles"] == 16 + 11


def test_packets_of_runs_laid_one_behind_the_other(rng):
    for _ in range(300):
        run, count, header = int(rng.integers(1, 300)), int(rng.integers(1, 40)), int(rng.integers(0, 40))
        machine = dataclasses.replace(SQUARE, run_header_bytes=header)
        at = alone = 0
        for _ in range(count):
            at += header + run
            left = run
            while left > 0:
                alone, left = alone + 1, left - 64
        stream = {byte // 64 for byte in range(at)}
        packets, accesses = packed(np.array([run * count]), np.array([run]), machine)
        assert accesses == alone and packets == min(alone, len(stream))


def test_compute_of_uneven_cores():
    # 64 x 64 x 64 on row 0 only (the others are held out), m = 16 on column 0, 8 elsewhere: 2 (1) x 8 blocks of 16
    # steps are 256 (128) matrix cycles + 20 to call. Mean over 4 cores: (276 + 3 x 148) / 4 = 180.
    m = CoreInt(("nc",), (16, 8, 8, 8))
    c = dataclasses.replace(
        call(2, 1, 64, 64, held=("nr",)), trips=(m, CoreInt.const(64), CoreInt.const(64)), operands=(0, 0)
    )
    t = layer_times(program(c))
    r = only(t)
    assert (r["cores_used"], r["compute_cycles"], r["compute_cycles_mean"]) == (4, 276, 180.0)
    assert r["binds"] == "compute/matrix" and r["cycles"] == 376
    assert r["flops"] == 2 * (16 + 3 * 8) * 64 * 64
    # 163,840 MAC over 16 nodes at 256 a cycle: 40 cycles, less than a launch.
    assert r["lower_bound_cycles"] == 100
    assert t.total["peak_share"] == pytest.approx(r["flops"] / (376 * 16 * 512))


def test_lower_bound_is_the_work_spread_evenly():
    # 64 x 4096 x 64 MAC on every core: 65,536 cycles, no rounding anywhere.
    r = only(layer_times(program(dataclasses.replace(call(2, 64, 4096, 64), operands=(0, 0)))))
    assert r["lower_bound_cycles"] == 65536 and r["compute_cycles"] == 65536 + 20
    # The compiler counts one of 16 equal replicas.
    p = program(dataclasses.replace(call(2, 64, 4096, 64), operands=(0, 0)))
    r = only(layer_times(dataclasses.replace(p, layers=({"name": "x", "flops": 2 * 64 * 4096 * 64},))))
    assert r["lower_bound_cycles"] == 4096 and r["flops"] == 2 * 64 * 4096 * 64


def test_pushes_go_together_until_a_call_separates_them():
    send = Send(0, 1, (To("nc", "+", 1),), CoreInt.const(0), CoreInt.const(0), CoreInt.const(160), 3, 0)
    # Two at once: 10 + 10 packets over a link, one way of 9. One after the other: (10 + 9) twice. A copy that has
    # waited for nobody is no launch.
    together = only(layer_times(program(send, send, call(0, 4, 64))))
    assert together["move_cycles"] == 29 and together["launch_cycles"] == 0
    apart = only(layer_times(program(send, call(0, 4, 64), send, call(0, 4, 64))))
    assert apart["move_cycles"] == 38 and apart["launch_cycles"] == 0
    assert apart["compute_cycles"] == 2 * together["compute_cycles"]


def test_roles_work_side_by_side():
    p = program()
    halves = tuple(Role(f"r{i}", (("nr", 2 * i, 2 * i + 2),), ((call(1, 8 * (i + 1), 64),),)) for i in range(2))
    r = only(layer_times(dataclasses.replace(p, roles=halves)))
    slow = only(layer_times(program(call(1, 16, 64))))
    assert r["cores_used"] == 16 and r["compute_cycles"] == slow["compute_cycles"] > r["compute_cycles_mean"]


def test_barrier():
    # 4 x 4 cores, a hop of 1, 8 to inject and eject: to column 2 2 + 8 and 3 posts more to take in, to row 2 the
    # same, then 4 + 8 for the release: 13 + 13 + 12. It opens the layer of the next command.
    t = layer_times(program(call(0, 1, 64), Barrier((0, 1), 2), call(0, 1, 64, layer=1), layers=2))
    assert [(r["layer"], r["kind"]) for r in t.layers] == [(0, "map"), (1, "barrier"), (1, "map")]
    assert t.layers[1]["cycles"] == t.total["barrier_cycles"] == 38
    assert t.total["cycles"] == sum(r["cycles"] for r in t.layers)


def test_a_loop_counts_all_of_its_rounds():
    send = Send(0, 1, (To("nc", "+", 1),), CoreInt.const(0), CoreInt.const(0), CoreInt.const(160), 3, 0)
    body = (send, Barrier((0, 1), 2, 0), call(0, 4, 64))
    once = layer_times(program(*body))
    work = ("compute_cycles", "compute_cycles_mean", "move_cycles", "packets", "messages", "noc_bytes", "flops")
    for loop, rounds in ((Loop(body, 7), 7), (Loop((Loop(body, 3),), 5), 15), (Loop(body, 1, 0), 1)):
        t = layer_times(program(loop))
        assert [r["kind"] for r in t.layers] == [r["kind"] for r in once.layers] == ["barrier", "map"]
        for r, o in zip(t.layers, once.layers, strict=True):
            assert (r["rounds"], r["at_most"], o["rounds"], o["at_most"]) == (rounds, loop.condition == 0, 1, False)
            assert {k: r[k] for k in work} == {k: rounds * o[k] for k in work}
            # Every call continues the layer of the call before it: one launch in all.
            assert r["terms"] == {k: (1 if k == "launch" else rounds) * v for k, v in o["terms"].items()}
        cycles = rounds * (once.total["cycles"] - 100) + 100
        assert t.total["cycles"] == cycles and t.total["at_most"] == (loop.condition == 0)
    other = (*body, dataclasses.replace(body[2], layer=1), body[1])
    assert layer_times(program(Loop(other, 7), layers=2)).total["launch_cycles"] == 7 * 100
    # Half of a layer in a loop of two: its commands count as often as they run. No rounds cost nothing.
    part = only(layer_times(program(call(0, 4, 64), Loop((call(0, 4, 64),), 2))))
    assert part["rounds"] == 2 and part["compute_cycles"] == 3 * once.layers[1]["compute_cycles"]
    assert layer_times(program(Loop(body, 0))).total["cycles"] == 0


def test_a_loop_that_only_its_condition_ends_counts_one_round():
    once = layer_times(program(call(0, 4, 64)))
    for trips, rounds in ((2**31, 1), (2**62 - 1, 1), (2**31 - 1, 2**31 - 1)):
        t = layer_times(program(Loop((call(0, 4, 64),), trips, 0)))
        (r,) = t.layers
        assert r["rounds"] == rounds and r["cycles"] == rounds * once.layers[0]["cycles"]
        assert r["open"] == t.total["open"] == (rounds == 1) and r["at_most"] == (rounds > 1)
    assert only(layer_times(program(Loop((call(0, 4, 64),), 2**40))))["rounds"] == 2**40  # counted, however long


def test_padding_is_filled_at_the_store_port():
    # A 3-tap window over 64 f32 in blocks of 4: 6 elements, 1 of them padding on the first and last core: 4 B of a 64
    # B port.
    plan = Layout((Group(1, ("nr", "nc"), 4), Group()))
    x = movement((64,), Layout((Group(1, ("nr", "nc"), 4),)), (Entry(((0, 1), (1, 1)), -1),), (64, 3), plan)
    assert x.padded
    p = program(Fill(1, 0, 0.0, 0), Push(0, 1, 0, 3, 0), Arrive(0, 3, 0), exchanges=(x,))
    small = (p.buffers[0], dataclasses.replace(p.buffers[1], elements=x.window_elements))
    r = only(layer_times(dataclasses.replace(p, buffers=small)))
    assert r["compute_cycles"] == 1 + SQUARE.call_cycles and r["kind"] == "move"


def test_totals_and_json():
    p = program(call(0, 16, 64))
    p = dataclasses.replace(
        p, placements=(Placement(0, "w", CoreInt(("nr",), (0, 1, 0, -1))),),
        inputs=(Port("x", 0, (2, 2048), "f32", Layout((Group(1, ("nr", "nc"), 1), Group()))),),
    )  # fmt: skip
    t = layer_times(p).total
    # Two different rows of 16,384 B at 400 B a cycle, then 400 for the way and 300 for the memory; the input has
    # 16,384 B.
    assert t["weight_bytes"] == 32768 and t["weight_load_cycles"] == 82 + 700
    assert t["input_load_cycles"] == 41 + 700 and t["output_store_cycles"] == 0
    assert t["batch"] == 2 and t["inferences_per_second"] == pytest.approx(2 * 2e9 / t["cycles"])
    json.dumps([*layer_times(p).layers, t])


def test_a_mesh_of_another_machine_is_refused():
    with pytest.raises(ValueError, match="16 cores"):
        layer_times(dataclasses.replace(program(), machine=PRESETS["d1-die"].to_dict()))


def test_slower_machines_take_longer():
    send = Send(0, 1, (To("nr", "*"), To("nc", "*")), CoreInt.const(0), CoreInt.const(0), CoreInt.const(500), 3, 0)
    commands = (send, Barrier((0, 1), 2), call(1, 32, 64))
    base = layer_times(program(*commands)).total["cycles"]
    for name, value in (
        ("hop_cycles", 3),
        ("link_bytes_per_cycle", 16),
        ("launch_cycles", 500),
        ("gather_per_cycle", 1),
    ):
        slow = dataclasses.replace(SQUARE, **{name: value})
        assert layer_times(program(*commands, machine=slow)).total["cycles"] > base, name
