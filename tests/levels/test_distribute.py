"""Distribution keeps every bit: `dist`, evaluated box by box, equals `graph` under priced and random plans."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import d1rt
from d1c.analysis import delivery
from d1c.analysis.candidates import Like, cycles_of, kernel_of, signature
from d1c.analysis.exchange import exchange_of
from d1c.analysis.layers import Layer, Stored, identity
from d1c.analysis.price import places
from d1c.api import compile as compile_program
from d1c.errors import DoesNotFit, Trap
from d1c.interp import evaluate_all
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.structured import Dim, Structured
from d1c.ir.text import parse
from d1c.ir.types import TensorType
from d1c.ir.verify import verify
from d1c.ops.opdef import REGISTRY, opdef
from d1c.passes import distribute, lower_tile
from d1c.target.dtypes import F32
from d1c.target.machine import Machine, machine
from d1c.target.mesh import Mesh
from d1c.target.movement import Exchange, Messages
from d1c.target.numerics import Builder
from d1c.target.program import Buffer, Call, Program, Push
from tests.levels.nets import NETS, graph_of

POLICIES = ("f32", "bf16")
SEEDS = {"f32": range(16), "bf16": range(16, 32)}
"""Random plans of every run: 32 for each network."""


@cache
def meaning(name: str, policy: str) -> dict[str, np.ndarray]:
    """What `graph` says: every stored value by name, and the outputs under theirs."""
    module, inputs = graph_of(name, policy)
    block = module.function().block
    values = evaluate_all(module, inputs)
    moved = [op.result for op in block.ops[:-1] if opdef(op.name).kind not in ("view", "constant")]
    names = Counter(v.name for v in moved)
    out = {v.name: values[v] for v in moved if v.name and names[v.name] == 1}
    outputs = zip(module.attrs["outputs"], block.ops[-1].operands, strict=True)
    return out | {n: values[v] for n, v in outputs}


def same_bits(name: str, policy: str, target: Machine, seed: int | None) -> Module:
    """Checks that the network under this seed's plans (None: priced ones) has graph's bits; returns the dist module."""
    module, inputs = graph_of(name, policy)
    resident = distribute.RESIDENT_SHARES[-1 if seed is not None and seed % 2 else 0]  # odd seeds: gather all constants
    dist = distribute.run(module, target, seed=seed, resident=resident)
    got = evaluate_dist(dist, inputs)
    for value, want in meaning(name, policy).items():
        assert got[value].size == want.size, (
            value,
            seed,
        )  # a grouped convolution keeps its groups as a dim of their own
        assert got[value].tobytes() == want.tobytes(), f"{value} differs under seed {seed}"
    return dist


def check_text(dist: Module) -> None:
    verify(dist)
    text = str(dist)
    assert str(parse(text, constants=dist.constants)) == text


def check_program(program: Program, target: Machine) -> None:
    """Buffers that live at the same time do not share a byte; all of them, code and lists fit SRAM.

    Lives are taken from the commands, not from the lowering's own epochs: a buffer lives from the first to the last
    command that names it; inputs from the start, outputs to the end, constants and tables always.
    """
    lives = {i: [0, 1 << 30] for i, b in enumerate(program.buffers) if b.kind in ("constant", "table")}

    def use(buffer: int, time: int) -> None:
        life = lives.setdefault(buffer, [time, time])
        life[:] = min(life[0], time), max(life[1], time)

    for port in program.inputs:
        use(port.buffer, -1)
    for thread in program.roles[0].threads:
        for command in thread:
            if isinstance(command, Call):
                for b in (command.out, *command.operands, *command.tables):
                    use(b, command.layer)
            elif isinstance(command, Push):
                use(command.source, command.layer)
                use(command.target, command.layer)
    for port in program.outputs:
        use(port.buffer, 1 << 30)

    def bytes_of(b: Buffer) -> range:
        return range(b.address, b.address + b.bytes)

    for i, b in enumerate(program.buffers):
        assert b.address % 64 == 0 and b.address + b.bytes <= program.info["sram_data_bytes"]
        for j in range(i):
            a = program.buffers[j]
            meet = i in lives and j in lives and lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]
            apart = bytes_of(a).stop <= b.address or bytes_of(b).stop <= a.address
            assert apart or not meet, f"{a.name} and {b.name} share bytes"
    assert program.info["sram_peak_bytes"] <= target.sram_bytes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETS)
def test_random_plans_on_the_test_machine(name: str, policy: str) -> None:
    target = machine("test")
    for seed in SEEDS[policy]:
        dist = same_bits(name, policy, target, seed)
        verify(dist)
        if seed % 5 == 0:  # parsing takes longer than all the rest
            check_text(dist)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETS)
def test_a_random_plan_on_a_die(name: str, policy: str) -> None:
    check_text(same_bits(name, policy, machine("d1-die"), 0))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETS)
def test_many_random_plans(name: str, policy: str) -> None:
    for seed in range(150):
        check_text(same_bits(name, policy, machine("test"), seed))
    for seed in range(1, 31):
        check_text(same_bits(name, policy, machine("d1-die"), seed))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("target", [machine("test"), machine("d1-die")], ids=lambda m: m.name)
def test_priced_plans_become_programs(target: Machine, name: str, policy: str) -> None:
    dist = same_bits(name, policy, target, None)
    check_text(dist)
    check_program(lower_tile.run(dist, target).program, target)


@pytest.mark.parametrize("name", NETS)
def test_random_plans_become_programs(name: str) -> None:
    target = machine("test")
    module, _ = graph_of(name, "bf16")
    for seed in range(5):
        check_program(lower_tile.run(distribute.run(module, target, seed=seed), target).program, target)


def test_little_sram_makes_epochs() -> None:
    """With less SRAM buffers share addresses at different times; still no two that live at once."""
    module, _ = graph_of("residual", "f32")
    target = machine("test")
    whole = lower_tile.run(distribute.run(module, target), target).program
    need, data = whole.info["sram_peak_bytes"], whole.info["sram_data_bytes"]
    small = replace(target, sram_bytes=(need - data // 10) // 64 * 64, code_reserve_bytes=0)
    program = compile_program(module, target=small).target
    assert program.info["epochs"] > 1
    check_program(program, small)


def test_too_few_semaphores_are_named() -> None:
    module, few = graph_of("residual", "bf16")[0], replace(machine("test"), semaphores=6)
    dist = distribute.run(module, few, seed=0)
    with pytest.raises(DoesNotFit, match=r"too few semaphores(.|\n)*semaphores of a core = 6"):
        lower_tile.run(dist, few)


def test_plans_are_random() -> None:
    """The seeds reach what they are for: flat groups, idle factors, copies, split reductions, blocks too large."""
    seen: Counter[str] = Counter()
    for name in NETS:
        for seed in range(5):
            for op in distribute.run(graph_of(name, "bf16")[0], machine("test"), seed=seed).function().block.ops:
                if op.name == "dist.compute":
                    plan, nest = op.attrs.plan, op.attrs.nest
                    extents = tuple(d.extent for d in nest.dims)
                    seen["flat"] += any(g.span > 1 and g.axes for g in plan.groups)
                    seen["idle"] += bool(plan.held)
                    seen["copies"] += bool(plan.copied(Mesh(machine("test").axes)))
                    seen["split"] += any(n.name == "slot" and n.extent > 1 for n in nest.dims)
                    seen["spare"] += any(g.axes and g.block > n // 2 + 1 for _, _, g, n in plan.spans(extents))
    assert min(seen[k] for k in ("flat", "idle", "copies", "split", "spare")) > 10, seen


@pytest.mark.parametrize("change", ["drop", "twice"])
def test_a_broken_exchange_traps(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message too few or too many, in any exchange of the network, is found."""
    module, inputs = graph_of("residual", "f32")
    dist = distribute.run(module, machine("test"), seed=0)
    whole, calls = Exchange.messages, Counter[str]()

    def broken(number: int, row: int):
        def messages(self: Exchange) -> Messages:
            m = whole(self)
            calls["all"] += 1
            if calls["all"] - 1 != number:
                return m
            rows = np.delete(np.arange(len(m)), row % len(m)) if change == "drop" else [*range(len(m)), row % len(m)]
            fields = {n: getattr(m, n)[rows] for n in ("cls", "src", "soff", "doff")}
            return Messages(m.classes, **fields, **{n: getattr(m, n)[:, rows] for n in ("sizes", "sstride", "dstride")})

        return messages

    monkeypatch.setattr(Exchange, "messages", broken(-1, 0))
    evaluate_dist(dist, inputs)
    exchanges = calls["all"]
    assert exchanges > 10
    for number in range(0, exchanges, 4):
        calls["all"] = 0
        monkeypatch.setattr(Exchange, "messages", broken(number, 5 * number))
        with pytest.raises(Trap, match="twice" if change == "twice" else "does not arrive"):
            evaluate_dist(dist, inputs)


def test_pieces_that_leave_a_gap_do_not_cover() -> None:
    """The interval proof sees what is changed in the pieces: one run shorter, moved, or listed again."""
    module, _ = graph_of("residual", "f32")
    checked = 0
    for op in distribute.run(module, machine("test"), seed=1).function().block.ops:
        if op.name != "dist.exchange":
            continue
        (x,), need = op.operands, op.results[0].type.need
        made = exchange_of(x.type.layout, x.type.shape, need, Mesh(machine("test").axes))
        for component in made.components:
            p = component.pieces
            if not len(p):
                continue
            shorter, moved = p.length.copy(), p.doff.copy()
            shorter[-1] -= 1
            moved[0] += 1
            again = {n: np.concatenate((getattr(p, n), getattr(p, n)[-1:])) for n in p.__dataclass_fields__}
            wrong = [replace(p, length=shorter), replace(p, **again)]
            if np.array_equal(component.real, component.length):  # else it may have moved into the padding
                wrong.append(replace(p, doff=moved))
            for broken in wrong:
                assert not replace(component, pieces=broken).covers()
                checked += 1
    assert checked > 30


def test_a_missing_share_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that should hold an operand, and does not, is named."""
    module, inputs = graph_of("residual", "f32")
    dist = distribute.run(module, machine("test"), seed=0)
    whole = delivery.receive

    def one_less(*args: object) -> dict[int, np.ndarray]:
        windows = whole(*args)
        del windows[max(windows)]
        return windows

    monkeypatch.setattr(delivery, "receive", one_less)
    with pytest.raises(Trap, match="holds nothing"):
        evaluate_dist(dist, inputs)


def test_a_window_that_is_too_short_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading past the end of a core's buffer is found, though the next core's bytes would lie there."""
    module, inputs = graph_of("residual", "f32")
    dist = distribute.run(module, machine("test"), seed=0)
    whole = delivery.receive
    monkeypatch.setattr(delivery, "receive", lambda *args: {c: w[:-1] for c, w in whole(*args).items()})
    with pytest.raises(Trap, match="read outside its buffer"):
        evaluate_dist(dist, inputs)


POOL = """
d1c.module graph {outputs = ["y"]} {
  func @main(%x: tensor<1x9x9x4xf32>) {
    %w = graph.const {name = "w"} : tensor<1x9x9x4xf32>
    %p = graph.max_pool(%w) {kernel = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1]}
        : tensor<1x9x9x4xf32>
    %y = graph.add(%p, %x) : tensor<1x9x9x4xf32>
    graph.return(%y)
  }
}"""


@pytest.mark.parametrize("resident", [distribute.RESIDENT_SHARES[0], 0.0])
def test_windows_of_a_constant_are_padded_with_what_their_reader_wants(
    rng: np.random.Generator, resident: float
) -> None:
    """The border of a maximum is -inf, also where the pooled tensor is a constant that stays in its windows."""
    data = -1 - rng.random((1, 9, 9, 4), np.float32)
    target, x = machine("test"), np.zeros((1, 9, 9, 4), np.float32)
    dist = distribute.run(replace(parse(POOL), constants={"w": data}), target, resident=resident)
    padded = np.pad(data, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    want = np.max([padded[:, i : i + 9, j : j + 9] for i in range(3) for j in range(3)], axis=0)
    again = parse(str(dist), constants={"w": data})
    assert ("fill = -inf" in str(dist)) and str(again) == str(dist)
    np.testing.assert_array_equal(evaluate_dist(again, {"x": x})["y"], want)
    program = lower_tile.run(dist, target).program
    for engine in ("jit", "numpy"):
        np.testing.assert_array_equal(d1rt.load(program).run({"x": x}, engine=engine)["y"], want)


def test_an_op_is_priced_by_the_body_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of names: an op that is new in the registry, here ten additions, costs plans what its body issues."""

    def ten(b: Builder, attrs: object, x: Any) -> Any:
        for _ in range(10):
            x = b.add(x, 1.5)
        return x

    monkeypatch.setitem(REGISTRY, "graph.t_ten", replace(opdef("graph.neg"), name="graph.t_ten", body=ten))
    where = places(machine("d1-tile"))

    def cycles(name: str, attrs: object = None) -> float:
        """Of a map over 100 rows of 16 lanes with this op behind it, above what starting the call takes."""
        a, r = Value(TensorType((), F32)), Value(TensorType((), F32))
        block = Block((a,), (Op(name, (a,), attrs, (r,)), Op("dist.yield", (r,))))
        nest = Structured((Dim("m", 100), Dim("n", 16)), "map", (identity((100, 16)),), (None,), 0)
        layer = Layer(Stored("y", (100, 16), F32), nest, (Stored("x", (100, 16), F32),), Block(), block, "")
        kernel, dims = kernel_of(Like(signature(layer), layer))
        return float(cycles_of(kernel, dims, np.array([[100, 16]]), where)[0]) - where.machine.call_cycles

    assert cycles("graph.t_ten") == 100 * 10
    assert cycles("graph.sqrt") == 100 / where.machine.special_function_rate
