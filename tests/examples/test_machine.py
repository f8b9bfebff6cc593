"""The example of a machine description is a valid machine and says what its comments say."""

from __future__ import annotations

from pathlib import Path

from d1c.target.machine import PRESETS, machine


def test_the_example_machine_loads(examples: Path) -> None:
    own = machine(examples / "machine.toml")
    assert own.name == "quarter-wafer"
    assert (own.dies, own.cores) == (4, 4 * 8 * 10)
    assert own.node_count == 4 * 9 * 10 - 7
    assert own.sram_bytes == 2 * 1024 * 1024
    assert own.axes == (("dr", 2), ("dc", 2), ("nr.0", 2), ("nr.1", 2), ("nr.2", 2), ("nc.0", 2), ("nc.1", 5))
    assert own.clock_hz == PRESETS["d1-tile"].clock_hz
