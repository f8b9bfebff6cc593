"""Lower bounds: those of the published layer tables, and of products whose bound is known."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import d1c.api as api
from d1c.analysis.bounds import Product, lower_bounds, moved_bytes
from d1c.target.machine import machine
from tests import networks

TILE = machine("d1-tile")
US = TILE.clock_hz / 1e6


def bounds(model: onnx.ModelProto, precision: str = "bf16") -> dict[str, float]:
    graph = api.compile(model, precision=precision, stop_after="pack-operands").module("graph")
    return lower_bounds(graph, TILE)


def conv(c: int, o: int, h: int, kernel: int, stride: int = 1) -> int:
    """Multiply-adds of a padded convolution that gives h x h pixels."""
    return h * h * o * c * kernel * kernel


def resnet18_macs() -> int:
    total = conv(3, 64, 112, 7) + 4 * conv(64, 64, 56, 3) + 512 * 1000
    for c, h in ((64, 28), (128, 14), (256, 7)):
        total += conv(c, 2 * c, h, 3) + 3 * conv(2 * c, 2 * c, h, 3) + conv(c, 2 * c, h, 1)
    return total


def test_resnet18_counts_every_convolution() -> None:
    found = bounds(networks.resnet18())
    assert found["compute"] == pytest.approx(resnet18_macs() / 256 / TILE.node_count, rel=1e-3)
    assert found["chain"] == 18  # shortcuts run beside the way through the block
    assert (found["cycles"], found["binds"]) == (1800, "depth")


def test_another_batch_by_shape_is_that_many_times_the_work() -> None:
    given = {"image": (16, 3, 224, 224)}
    graph = api.compile(networks.resnet18(), shapes=given, stop_after="pack-operands").module("graph")
    found = lower_bounds(graph, TILE)
    assert found["compute"] == pytest.approx(16 * resnet18_macs() / 256 / TILE.node_count, rel=1e-3)
    assert (found["chain"], found["binds"]) == (18, "compute")


def test_f32_counts_on_the_vector_unit() -> None:
    f = networks.Net(0)
    found = bounds(f.model({"x": f.data(1, 64, 32)}, f("MatMul", "x", f.random(32, 48)))[0], "f32")
    assert found["compute"] == pytest.approx(64 * 32 * 48 / 16 / TILE.node_count, abs=0.1)


@pytest.mark.parametrize(("images", "channels"), [(4, 3), (8, 3), (32, 1)])
def test_odd_channels_are_not_padded(images: int, channels: int) -> None:
    """From a million elements on there is a channel of zeros in the graph itself."""
    f = networks.Net(0)
    net = f.model({"x": f.data(images, channels, 256, 256)}, f.conv("x", channels, 512, 7, 7, pads=[3] * 4))[0]
    macs = images * 256 * 256 * 512 * 49 * channels
    assert bounds(net)["compute"] == pytest.approx(macs / 256 / TILE.node_count, rel=1e-3)


def attention(tokens: int, mask: np.ndarray) -> onnx.ModelProto:
    f = networks.Net(0)
    scores = f("Add", f("MatMul", "q", "k"), f.const(mask))
    out = f("MatMul", f("Softmax", scores, axis=-1), "v")
    inputs = {"q": f.data(1, 4, tokens, 64), "k": f.data(1, 4, 64, tokens), "v": f.data(1, 4, tokens, 64)}
    return f.model(inputs, out)[0]


def test_masked_scores_do_not_count() -> None:
    t = 512
    open_, causal = np.zeros((t, t), np.float32), np.where(np.tri(t, dtype=bool), 0, -np.inf).astype(np.float32)
    whole, half = bounds(attention(t, open_)), bounds(attention(t, causal))
    assert whole["compute"] == pytest.approx(2 * 4 * t * t * 64 / 256 / TILE.node_count, abs=0.1)
    assert half["compute"] == pytest.approx(whole["compute"] * (t + 1) / (2 * t), abs=0.1)
    assert half["chain"] == 2


def test_chains_through_loops_count_their_rounds() -> None:
    f = networks.Net(0)
    x = f("LSTM", "x", f.random(1, 64, 16), f.random(1, 64, 16), hidden_size=16)
    f.nodes[-1].output[:] = [x, "h"]
    found = bounds(f.model({"x": f.data(40, 2, 16)}, x)[0])
    assert found["chain"] >= 40


def least_moved(m: int, n: int, k: int, nodes: int) -> float:
    """The bound's optimisation by brute force: x + y + z on a grid, x y z >= w^2, none below its least."""
    w = m * n * k / nodes
    low = (w / n, w / m, w / k)
    x = low[0] * np.geomspace(1, 1e4, 1500)[:, None]
    y = low[1] * np.geomspace(1, 1e4, 1500)[None, :]
    touched = float((x + y + np.maximum(low[2], w * w / (x * y))).min())
    return max(0.0, touched - (m * n + n * k + m * k) / nodes)


@pytest.mark.parametrize(
    ("m", "n", "k", "nodes"),
    [(1000, 1000, 1000, 64), (100_000, 64, 64, 16), (5000, 3000, 20, 100), (12544, 64, 147, 8850), (1, 4000, 3000, 50)],
)
def test_moved_bytes_is_the_least(m: int, n: int, k: int, nodes: int) -> None:
    found = moved_bytes(Product(1, m, n, k, 1.0, True, 1.0, m * k, 2), nodes)
    assert found == pytest.approx(2 * least_moved(m, n, k, nodes), rel=0.02, abs=1)
    assert moved_bytes(Product(1, m, n, k, 1.0, True, 9.0, m * k / 9, 2), nodes) <= found + 1e-6
    assert moved_bytes(Product(nodes, m, n, k, 1.0, True, 1.0, m * k, 2), nodes) == 0


def test_no_exact_algorithm_beats_it() -> None:
    """A p x p grid that gathers rows and columns moves more."""
    d, p = 1024, 8
    found = moved_bytes(Product(1, d, d, d, 1.0, True, 1.0, d * d, 2), p * p)
    assert 0 < found <= 2 * 2 * d * d / p * (1 - 1 / p)
    assert found == pytest.approx(2 * (3 * (d**3 / p**2) ** (2 / 3) - 3 * d * d / p**2))


def test_weights_beyond_sram_come_with_every_run() -> None:
    f = networks.Net(0)
    model = f.model({"x": f.data(4, 1024)}, f("MatMul", "x", f.random(1024, 1024)))[0]
    graph = api.compile(model, stop_after="pack-operands").module("graph")
    small = machine("test")
    found, rate = lower_bounds(graph, small), small.dip_count * small.dip_bytes_per_cycle
    assert found["hbm"] == pytest.approx((4 * 4096 + 2 * 1024**2 - small.node_count * small.sram_bytes) / rate, abs=0.1)


def test_the_program_holds_them() -> None:
    f = networks.Net(0)
    model = f.model({"x": f.data(8, 16)}, f.linear("x", 16, 32))[0]
    found = api.compile(model, target="test").target.info["bounds"]
    assert found["cycles"] == 100 and found["binds"] == "depth" and found["chain"] == 1
    assert found["cycles"] == max(math.ceil(found[k]) for k in ("compute", "sram", "noc", "hbm", "depth"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "compute", "depth"),
    [
        ("resnet50", (1,), 0.902, 2.5), ("resnet50", (16,), 14.44, 2.5), ("resnet50", (256,), 231.03, 2.5),
        ("vit_b16", (1,), 3.88, 3.65), ("vit_b16", (16,), 62.02, 3.65), ("vit_b16", (256,), 992.3, 3.65),
        ("gpt2_small", (1, 1024, True), 21.34, 3.65),
    ],
)  # fmt: skip
def test_the_tables_of_known_networks(name: str, args: tuple[int, ...], compute: float, depth: float) -> None:
    """Microseconds from layer tables written by hand (C0 of 50 ns; one head product more than ViT's has here)."""
    found = bounds(getattr(networks, name)(*args))
    assert found["compute"] / US == pytest.approx(compute, rel=0.02)
    assert found["depth"] / US == pytest.approx(depth, rel=0.02)
    assert found["cycles"] / US == pytest.approx(max(compute, depth), rel=0.02)
