"""Loops at every level: graph, dist under random plans, and both engines agree, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import d1rt
from d1c.errors import DoesNotFit, VerifyError
from d1c.interp import evaluate
from d1c.interp_dist import evaluate_dist
from d1c.ir.core import Module
from d1c.ir.text import parse, print_module
from d1c.ir.verify import verify
from d1c.passes import distribute, lower_tile
from d1c.pipeline import GRAPH_PASSES, run_pipeline
from d1c.target.machine import machine
from tests.levels.random_loops import RandomLoops

WHILE = """
  func @main(%x: tensor<4x8xf32>, %most: tensor<1xi64>) {
    %i = graph.const {name = "zero"} : tensor<1xi64>
    %t = graph.less(%i, %most) : tensor<1xbool>
    %h = graph.neg(%x) : tensor<4x8xf32>
    %a, %n, %y = graph.loop(%t, %i, %h, %x, %most) {body = "step", trips = 10, carried = 3, condition = true}
      : (tensor<1xbool>, tensor<1xi64>, tensor<4x8xf32>)
    %z = graph.add(%y, %h) : tensor<4x8xf32>
    graph.return(%z, %n)
  }
  func @step(%c: tensor<1xbool>, %i: tensor<1xi64>, %h: tensor<4x8xf32>, %x: tensor<4x8xf32>, %most: tensor<1xi64>) {
    %one = graph.const {name = "one"} : tensor<1xi64>
    %w = graph.const {name = "w"} : tensor<8x8xf32>
    %n = graph.add(%i, %one) : tensor<1xi64>
    %p = graph.matmul(%h, %w) : tensor<4x8xf32>
    %q = graph.add(%p, %x) : tensor<4x8xf32>
    %l = graph.less(%n, %most) : tensor<1xbool>
    graph.return(%l, %n, %q)
  }
  constants { "zero" = dense<[0]> : 1xi64  "one" = dense<[1]> : 1xi64 "w" = W : 8x8xf32 }
"""
"""Ended by the data, at most 10 rounds: h = h w + x."""

NESTED = """
  func @main(%x: tensor<6x5xf32>, %y: tensor<6x5xf32>) {
    %t = graph.transpose(%x) {perm = [1, 0]} : tensor<5x6xf32>
    %v = graph.transpose(%y) {perm = [1, 0]} : tensor<5x6xf32>
    %a, %b, %n = graph.loop(%t, %v, %v, %x) {body = "outer", trips = 3, carried = 3}
      : (tensor<5x6xf32>, tensor<5x6xf32>, tensor<5x6xf32>)
    graph.return(%a, %b, %n)
  }
  func @outer(%a: tensor<5x6xf32>, %b: tensor<5x6xf32>, %n: tensor<5x6xf32>, %x: tensor<6x5xf32>) {
    %m = graph.matmul(%a, %x) : tensor<5x5xf32>
    %s = graph.reduce_max(%m) {axes = [0, 1], keepdims = false} : tensor<f32>
    %s1 = graph.reshape(%s) {shape = [1]} : tensor<1xf32>
    %k, %c = graph.loop(%s1, %a, %b) {body = "inner", trips = 2, carried = 2} : (tensor<1xf32>, tensor<5x6xf32>)
    %d = graph.mul(%c, %k) : tensor<5x6xf32>
    graph.return(%b, %d, %n)
  }
  func @inner(%k: tensor<1xf32>, %a: tensor<5x6xf32>, %b: tensor<5x6xf32>) {
    %half = graph.const {name = "half"} : tensor<1xf32>
    %l = graph.mul(%k, %half) : tensor<1xf32>
    %f = graph.slice(%a) {starts = [4, 0], steps = [-1, 1], sizes = [5, 6]} : tensor<5x6xf32>
    %c = graph.sub(%f, %b) : tensor<5x6xf32>
    graph.return(%l, %c)
  }
  constants { "half" = dense<[0.125]> : 1xf32 }
"""
"""Values that change places, one that stays, one that is captured by both loops."""


@cache
def module_of(text: str) -> Module:
    weights = np.random.default_rng(3).standard_normal((8, 8)) * 0.3
    numbers = ", ".join(f"{w:.4f}" for w in weights.reshape(-1))
    names = "y, n" if text is WHILE else "a, b, n"
    outputs = ", ".join(f'"{n}"' for n in names.split(", "))
    return parse(f"d1c.module graph {{outputs = [{outputs}]}} {{{text.replace('W :', f'dense<[{numbers}]> :')}}}")


def inputs_of(text: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    if text is WHILE:
        return {"x": rng.standard_normal((4, 8)).astype(np.float32), "most": np.array([4])}
    return {n: rng.standard_normal((6, 5)).astype(np.float32) for n in "xy"}


@cache
def graph_of(text: str, policy: str) -> Module:
    return run_pipeline(module_of(text), GRAPH_PASSES, options={"policy": policy}).module


@pytest.mark.parametrize("rounds", [-1, 0, 1, 4, 30])
def test_a_while_loop_means_what_numpy_says(rounds: int) -> None:
    x = inputs_of(WHILE)["x"]
    w, h = module_of(WHILE).constants["w"], -x
    for _ in range(min(max(rounds, 0), 10)):
        h = h @ w + x
    got = evaluate(module_of(WHILE), {"x": x, "most": np.array([rounds])})
    np.testing.assert_allclose(got["y"], h - x, rtol=1e-5, atol=1e-5)
    assert got["n"] == min(max(rounds, 0), 10)


def test_nested_loops_mean_what_numpy_says() -> None:
    x, y = inputs_of(NESTED).values()
    a, b = x.T, y.T
    for _ in range(3):
        k, c = (a @ x).max(), a
        for _ in range(2):
            k, c = k * np.float32(0.125), c[::-1] - b
        a, b = b, c * k
    got = evaluate(module_of(NESTED), {"x": x, "y": y})
    np.testing.assert_allclose(got["a"], a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["b"], b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["n"], y.T)


@pytest.mark.parametrize(("text", "policy"), [(WHILE, "bf16"), (NESTED, "f32")], ids=["while", "nested"])
def test_all_levels_agree_under_any_plan(text: str, policy: str) -> None:
    module, inputs, target = graph_of(text, policy), inputs_of(text), machine("test")
    want = evaluate(module, inputs)
    for seed in (None, 0, 1):
        dist = distribute.run(module, target, seed=seed)
        verify(dist)
        printed = print_module(dist)
        assert print_module(parse(printed, constants=dist.constants)) == printed
        values = evaluate_dist(dist, inputs)
        for engine in ("numpy", "jit")[: 2 if seed is None else 1]:
            with d1rt.load(lower_tile.run(dist, target).program) as loaded:
                got = loaded.run(inputs, engine=engine, shuffle=seed)
            for name in want:
                np.testing.assert_array_equal(values[name], want[name])
                np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("rounds", [0, 1, 2, 10])
@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_data_ends_the_loop_on_the_cores(engine: str, rounds: int) -> None:
    module, target = graph_of(WHILE, "f32"), machine("test")
    inputs = {**inputs_of(WHILE), "most": np.array([rounds])}
    want = evaluate(module, inputs)
    with d1rt.load(lower_tile.run(distribute.run(module, target), target).program) as loaded:
        for shuffle in (None, 1):
            got = loaded.run(inputs, engine=engine, shuffle=shuffle)
            np.testing.assert_array_equal(got["y"], want["y"])
            assert got["n"] == rounds


@pytest.mark.parametrize("text", [WHILE, NESTED], ids=["while", "nested"])
def test_little_memory_makes_epochs_inside_a_body(text: str) -> None:
    module, inputs, target = graph_of(text, "f32"), inputs_of(text), machine("test")
    want = evaluate(module, inputs)
    tried = 0
    dist = distribute.run(module, target, seed=0)
    whole = lower_tile.run(dist, target).program.info
    for saved in range(64, 1024, 64):
        small = replace(target, sram_bytes=whole["sram_peak_bytes"] - saved, code_reserve_bytes=0)
        try:
            program = lower_tile.run(dist, small).program
        except DoesNotFit:
            break
        if program.info["epochs"] > whole["epochs"] and tried < 2:
            tried += 1
            with d1rt.load(program) as loaded:
                got = loaded.run(inputs, engine="numpy", shuffle=saved)
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])
    assert tried


def test_bodies_keep_their_rules() -> None:
    good = module_of(NESTED)
    verify(good)
    text = print_module(good)
    for old, new, message in (
        ('body = "inner", trips = 2', 'body = "other", trips = 2', "no function @other"),
        ('body = "inner", trips = 2, carried = 2', 'body = "inner", trips = 2, carried = 1', "does not return the 1"),
        ('body = "inner"', 'body = "outer"', "takes other types"),
        ("trips = 3, carried = 3", "trips = -3, carried = 3", "has -3 trips"),
        ("trips = 2, carried = 2", "trips = 2, carried = 2, condition = true", "is a bool of shape"),
    ):
        assert old in text
        with pytest.raises(VerifyError, match=message):
            verify(parse(text.replace(old, new)))
    with pytest.raises(VerifyError, match="no loop runs function @idle"):
        idle = "func @idle(%q: tensor<2xf32>) {\n graph.return(%q)\n }\n  func @inner"
        verify(parse(text.replace("func @inner", idle)))
    with pytest.raises(VerifyError, match="body of two loops"):
        verify(parse(text.replace("%d = graph.mul(%c, %k)", 
            '%k2, %c2 = graph.loop(%k, %c, %b) {body = "inner", trips = 2, carried = 2} '
            ": (tensor<1xf32>, tensor<5x6xf32>)\n    %d = graph.mul(%c, %k)")))  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_random_loops_agree(seed: int) -> None:
    made, target = RandomLoops(seed), machine("test")
    module, inputs = made.module(), made.inputs()
    verify(module)
    low = run_pipeline(module, GRAPH_PASSES, options={"policy": "f32"}).module
    plain, want = evaluate(module, inputs), evaluate(low, inputs)
    dist = distribute.run(low, target, seed=seed)
    values = evaluate_dist(dist, inputs)
    with d1rt.load(lower_tile.run(dist, target).program) as loaded:
        got = loaded.run(inputs, engine="numpy" if seed else "jit", shuffle=seed)
    for name in want:
        np.testing.assert_allclose(want[name], plain[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(values[name], want[name])
        np.testing.assert_array_equal(got[name], want[name])
