"""The choice of plans: where constants are short of SRAM, and those that no kernel computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import d1c
from d1c.analysis.layers import layers_of
from d1c.analysis.planner import Chosen, Planner
from d1c.analysis.plans import inherited
from d1c.analysis.price import places
from d1c.ir.structured import Structured
from d1c.ir.text import parse
from d1c.ops.dist.compute import ComputeAttrs, compute_type
from d1c.target.machine import machine
from d1c.target.mesh import Group, Layout
from tests.networks import Net

DEPTH, M, K = 6, 384, 256
CHAIN = (
    'd1c.module graph {outputs = ["y"]} {\n'
    f"  func @main(%h0: tensor<{M}x{K}xf32>) {{\n"
    + "".join(
        f'    %w{i} = graph.const {{name = "w{i}"}} : tensor<{K}x{K}x1xf32>\n'
        f"    %{'y' if i == DEPTH - 1 else f'h{i + 1}'} = graph.matmul(%h{i}, %w{i}) : tensor<{M}x{K}xf32>\n"
        for i in range(DEPTH)
    )
    + "    graph.return(%y)\n  }\n}\n"
)
"""Matmuls of one shape, one behind the other."""


def _chosen(budget: float) -> tuple[Chosen, list[int]]:
    """The choice, and bytes of the constants of every layer that stay on the fullest core."""
    layers = layers_of(parse(CHAIN), "main")
    target = machine("d1-die")
    where = places(target)
    chosen = Planner(where, 0.55 * target.data_bytes).plan(layers.layers, {}, layers.inputs, budget)
    stay = []
    for layer, c in zip(layers.layers, chosen.plans, strict=True):
        stay.append(0)
        for o, need in zip(layer.operands, c.needs, strict=True):
            if o.constant and (o.name, need) not in chosen.gathered:
                stay[-1] += 4 * int(np.prod(need.local_shape()))
    return chosen, stay


def test_equal_layers_share_sram_unequally() -> None:
    """A price of a byte changes the plans of all equal layers at once; what there is room for is used nevertheless."""
    most = sum(_chosen(1e9)[1])
    cycles = []
    for share in (1.0, 0.85, 0.7, 0.55, 0.4):
        chosen, stay = _chosen(share * most)
        assert (share - 1 / DEPTH) * most < sum(stay) <= share * most
        cycles.append(chosen.cycles)
    assert all(a < b for a, b in itertools.pairwise(cycles))


def test_threads_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, most = [], sum(_chosen(1e9)[1])
    for processors in (1, 8):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)), raising=False)
        chosen.append(_chosen(0.4 * most)[0])
    assert chosen[0] == chosen[1] and chosen[0].gathered


def product(batch: int, rows: int, columns: int) -> Structured:
    return Structured.parse(
        f"mac (b {batch}, m {rows}, n {columns} | k 5, e 1) cut k / 8 term 2 [b, m, k+e : 0.0] [b, k, n, e]"
    )


@pytest.mark.parametrize("extents", [(1, 5, 1), (4, 1, 3), (2, 3, 1)])
def test_no_plan_flattens_rows_with_the_columns_of_a_product(extents: tuple[int, int, int]) -> None:
    """A layout of the first operand may; kernels take columns as a loop of their own, which rows do not follow."""
    nest, flat = product(*extents), Layout((Group(3, ("nr", "nc"), 4),))
    assert inherited(nest, flat) is None
    plan = Layout((*flat.groups, Group(), Group()))
    with pytest.raises(ValueError, match="flattens dims 0 to 2"):
        compute_type(ComputeAttrs(nest, plan, "f32"))
    assert inherited(nest, Layout((Group(2, ("nr", "nc"), 4), Group()))) is not None
    assert inherited(product(1, 1, 9), flat) is not None


def test_sums_are_where_they_are_read() -> None:
    """All cores that share a row of a layer norm add it up, or join its nodes, alike: no mean, no variance moves."""
    f = Net(5)
    y = f("LayerNormalization", "x", f.random(768), f.random(768), axis=-1)
    module = d1c.lower(d1c.import_onnx(f.model({"x": f.data(64, 768)}, y)[0]), "dist", target="d1-die")
    ops = module.function().block.ops
    sums = {op.result for op in ops if op.name == "dist.compute" and op.result.type.shape == (64, 1)}
    assert len(sums) == 2 and not [op for op in ops if op.name == "dist.exchange" and op.operands[0] in sums]
