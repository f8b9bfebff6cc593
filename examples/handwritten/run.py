"""Assemble double_buffer.d1, run it on the emulator, and check the result against numpy.

    python examples/handwritten/run.py [numpy|jit]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import d1rt
from d1c.emit.assemble import assemble

FILE = Path(__file__).parent / "double_buffer.d1"


def expected(x: np.ndarray) -> np.ndarray:
    """[8, 64] -> [8, 16]: what the program computes, its four chunks added in order."""
    scale = np.array([2.0, -0.5] * 4, np.float32)[:, None]  # by nc.0, the last factor of the row number
    total = np.zeros((8, 16), np.float32)
    for chunk in x.reshape(8, 4, 16).swapaxes(0, 1):
        total += scale * chunk + np.float32(1)
    return total


def main(engine: str = "numpy") -> None:
    program = assemble(FILE.read_text(encoding="utf-8"), FILE.name)
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    result = d1rt.load(program).run({"x": x}, engine=engine)["sum"]
    if not np.array_equal(result, expected(x)):
        sys.exit("the emulator and numpy disagree")
    commands = sum(len(thread) for role in program.roles for thread in role.threads)
    print(f"{commands} commands in {len(program.roles)} roles, on {program.mesh.cores} cores")
    print(f"sum[0] = {np.array2string(result[0, :6], precision=4)} ...: the same bits as numpy")


if __name__ == "__main__":
    main(*sys.argv[1:])
