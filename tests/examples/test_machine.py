"""The example of a machine description: a valid machine that says what its comments say, and runs a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import d1c
from d1c.interp import evaluate
from d1c.target.machine import PRESETS, machine


def test_the_example_machine_loads(examples: Path) -> None:
    own = machine(examples / "machine.toml")
    assert own.name == "quarter-wafer"
    assert (own.dies, own.cores) == (4, 4 * 8 * 10)
    assert own.node_count == 4 * 9 * 10 - 7
    assert own.sram_bytes == 2 * 1024 * 1024
    assert own.axes == (("dr", 2), ("dc", 2), ("nr.0", 2), ("nr.1", 2), ("nr.2", 2), ("nc.0", 2), ("nc.1", 5))
    assert own.clock_hz == PRESETS["d1-tile"].clock_hz


def test_digits_on_the_example_machine_have_the_bits_of_the_graph(examples: Path) -> None:
    program = d1c.compile(examples / "digits/digits.onnx", dims={"batch": 2}, target=examples / "machine.toml")
    assert program.summary()["target"] == "quarter-wafer"
    images = np.load(examples / "digits/heldout.npz")["image"][:2]
    expected = evaluate(program.module("graph"), {"image": images})["logits"]
    assert program.run({"image": images})["logits"].tobytes() == expected.tobytes()
