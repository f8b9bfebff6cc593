"""Constants that SRAM does not hold come from the interface processors' memories: the same bits, behind compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import d1c
import d1rt
from d1c.analysis.layers import layers_of
from d1c.analysis.segments import segmented
from d1c.errors import DoesNotFit
from d1c.interp import evaluate_all
from d1c.interp_dist import evaluate_dist
from d1c.ir.text import parse
from d1c.passes import distribute, lower_tile
from d1c.target import program_io
from d1c.target.machine import machine
from d1c.target.program import Fetch, Program, every
from d1c.target.program_check import check
from d1rt.events import Simulator, simulate
from tests.levels.nets import NETS, graph_of

TEST = replace(machine("test"), sram_bytes=32_768)
"""Its 16 cores hold 393,216 bytes beside their code."""


def model(nodes: list[onnx.NodeProto], x: np.ndarray, weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(seed: int, *shape: int) -> np.ndarray:
    scale = 1 / np.sqrt(shape[-2] if len(shape) > 1 else 1)
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, np.float32)


def stack(depth: int, rows: int, size: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """`depth` products with a bias and relu."""
    nodes, h = [], "x"
    weights: dict[str, np.ndarray] = {}
    for i in range(depth):
        weights |= {f"w{i}": normal(i, size, size), f"b{i}": normal(50 + i, size)}
        last = "y" if i == depth - 1 else f"h{i}"
        nodes += [
            helper.make_node("MatMul", [h, f"w{i}"], [f"p{i}"], f"product{i}"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [last]),
        ]
        h = last
    x = normal(99, rows, size)
    return model(nodes, x, weights, (rows, size)), x


def fetches(program: Program) -> list[Fetch]:
    return [c for r in program.roles for t in r.threads for c in every(t) if isinstance(c, Fetch)]


def same_bits(net: onnx.ModelProto, x: np.ndarray) -> d1c.api.Program:
    """Compiles, streams, and computes what a machine that holds everything computes, on both engines."""
    made = d1c.compile(net, target=TEST)
    assert fetches(made.target)
    want = d1c.compile(net, target="d1-die").run({"x": x})["y"]
    for seed in (None, 1):
        np.testing.assert_array_equal(made.run({"x": x}, shuffle=seed)["y"], want, strict=True)
    return made


def test_one_constant_whole() -> None:
    """By hand: one layer, its constant streamed, the rest as it is."""
    net, x = stack(1, 16, 64)
    graph = d1c.lower(d1c.import_onnx(net), "graph")
    dist = distribute.run(graph, TEST, resident=0.0, stream=True)
    consts = [op for op in dist.function().block.ops if op.name == "dist.const"]
    assert [op.attrs.name for op in consts if op.attrs.streamed] == ["w0", "b0"]
    assert "streamed = true" in str(dist)
    assert str(parse(str(dist), constants=dist.constants)) == str(dist)
    program = lower_tile.run(dist, TEST).program
    assert [c.array for c in fetches(program)] == ["w0", "b0"]
    assert not any(p.array in ("w0", "b0") for p in program.placements)
    whole = evaluate_dist(dist, {"x": x})["y"]
    for engine in ("numpy", "jit"):
        with d1rt.load(program) as loaded:
            np.testing.assert_array_equal(loaded.run({"x": x}, engine=engine)["y"], whole)


def test_layers_in_turn(tmp_path: Any) -> None:
    net, x = stack(4, 16, 256)
    made = same_bits(net, x)
    assert {c.array for c in fetches(made.target)} >= {"w0", "w1", "w2", "w3"}
    program_io.save(made.target, tmp_path / "p.d1x")
    assert program_io.load(tmp_path / "p.d1x").roles == made.target.roles


def test_the_next_layer_comes_while_this_one_computes() -> None:
    """Rows enough that computing takes longer than fetching: most of that is hidden."""
    near = replace(
        TEST, sram_bytes=98_304, semaphores=64, dip_latency_cycles=100, hbm_latency_cycles=100,
        link_bytes_per_cycle=640,
    )  # fmt: skip
    made = d1c.compile(stack(12, 64, 256)[0], target=near)
    assert {f"w{i}" for i in range(12)} <= {c.array for c in fetches(made.target)}
    found = simulate(made.target)
    assert found.total["streamed_bytes"] >= 12 * 256 * 256 * 2
    busy = found.resources["DIPs"]["max"] * found.total["cycles"]
    assert busy == pytest.approx(found.total["streamed_bytes"] / near.dip_bytes_per_cycle)
    at_once = replace(
        near, dip_latency_cycles=0, hbm_latency_cycles=0, dip_bytes_per_cycle=1 << 20, dip_edge_bytes_per_cycle=1 << 20
    )
    shown = found.total["cycles"] - Simulator(made.target).cycles(at_once)
    assert shown < busy / 3


def test_closed_form_where_fetching_takes_longer() -> None:
    slow = replace(TEST, dip_bytes_per_cycle=16, dip_latency_cycles=50, hbm_latency_cycles=50)
    found = simulate(d1c.compile(stack(4, 16, 256)[0], target=slow).target)
    assert found.total["cycles"] > found.total["streamed_bytes"] / 16
    assert found.total["closed_form_cycles"] == pytest.approx(found.total["cycles"], rel=0.1)


SEGMENTS: dict[str, tuple[list[onnx.NodeProto], np.ndarray, dict[str, np.ndarray], tuple[int, ...]]] = {
    "product": (
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        normal(0, 4, 520), {"w": normal(1, 520, 500), "b": normal(2, 500)}, (4, 500),
    ),
    "convolution": (
        [helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["r"]),
         helper.make_node("Add", ["r", "x"], ["y"])],
        normal(3, 1, 160, 3, 5), {"w": normal(4, 160, 160, 3, 3), "b": normal(5, 160)}, (1, 160, 3, 5),
    ),
    "groups": (
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        normal(6, 1, 256, 2, 2), {"w": normal(7, 512, 128, 2, 2)}, (1, 512, 1, 1),
    ),
    "lookup": (
        [helper.make_node("Gather", ["w", "x"], ["y"])],
        np.random.default_rng(8).integers(0, 900, (3, 5)), {"w": normal(9, 900, 260)}, (3, 5, 260),
    ),
}  # fmt: skip
"""Networks whose one constant is larger than the SRAM of all cores."""


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_of_one_constant(name: str) -> None:
    net = model(*SEGMENTS[name])
    made = same_bits(net, SEGMENTS[name][1])
    largest = max(made.target.weights[c.array].nbytes for c in fetches(made.target))
    assert len([c for c in fetches(made.target) if made.target.weights[c.array].nbytes * 2 > largest]) > 1


def test_segments_tile_the_columns() -> None:
    net, _ = stack(1, 8, 500)
    layers = layers_of(d1c.lower(d1c.import_onnx(net), "graph"), "main")
    same = segmented(layers, 500 * 500 * 2, 32)
    assert same == layers
    cut = segmented(layers, 500 * 500 * 2 / 3, 32).layers
    products = [x for x in cut if x.nest.kind == "mac"]
    assert [x.result.shape for x in products] == [(8, 192), (8, 192), (8, 116)]
    assert [x.nest.maps[1][1].offset for x in products] == [0, 192, 384]
    assert len({x.result.name for x in cut}) == len(cut)
    assert cut[-1].result == layers.layers[-1].result and cut[-1].operands == tuple(x.result for x in products)


def test_in_a_loop() -> None:
    """The body's constants are fetched again in every round."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("MatMul", ["h", "w0"], ["p"]),
            helper.make_node("Relu", ["p"], ["q"]),
            helper.make_node("MatMul", ["q", "w1"], ["next"]),
        ],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("more", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, [8, 320])],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", TensorProto.FLOAT, [8, 320])],
    )  # fmt: skip
    x = normal(1, 8, 320)
    weights = {"w0": normal(2, 320, 320), "w1": normal(3, 320, 320), "n": np.array(3), "yes": np.array(True)}
    net = model([helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)], x, weights, (8, 320))
    same_bits(net, x)


@pytest.mark.parametrize("name", NETS)
def test_a_random_plan_with_everything_streamed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every constant is streamed, to cores that any plan chooses, larger ones in segments, in many epochs (semaphores
    are few) and in few."""
    module, inputs = graph_of(name, "bf16")
    block = module.function().block
    want = dict(zip(module.attrs["outputs"], block.ops[-1].operands, strict=True))
    values = evaluate_all(module, inputs)
    target, seed = machine("test"), 5
    whole = distribute.run(module, target, seed=seed, resident=0.0, stream=True)
    monkeypatch.setattr(distribute, "SEGMENT", 0.0007)
    dist = distribute.run(module, target, seed=seed, resident=0.0, stream=True)
    count, more = (sum(op.name == "dist.compute" for op in x.function().block.ops) for x in (whole, dist))
    assert more > count or name in ("odd", "transformer")  # their constants are small
    epochs = []
    for semaphores in (16, 128):
        program = lower_tile.run(dist, replace(target, sram_bytes=1 << 20, semaphores=semaphores)).program
        epochs.append(program.info["epochs"])
        assert not [p for p in program.placements if program.buffers[p.buffer].kind == "constant"]
        check(program)
        with d1rt.load(program) as loaded:
            got = loaded.run(inputs, shuffle=seed)
        for output, value in want.items():
            assert got[output].tobytes() == values[value].tobytes(), output
    assert epochs[0] > 3 > epochs[1]


def test_refused_without_a_thread_for_it() -> None:
    net, _ = stack(2, 8, 256)
    graph = d1c.lower(d1c.import_onnx(net), "graph")
    dist = distribute.run(graph, TEST, stream=True)
    for less in (replace(TEST, threads=3), replace(TEST, dip_count=0)):
        with pytest.raises(DoesNotFit, match="cannot stream"):
            lower_tile.run(dist, less)
        with pytest.raises(DoesNotFit, match="constants of the model"):
            d1c.compile(stack(4, 8, 256)[0], target=less)
