"""The program written by hand: its own check against numpy, with both engines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("engine", ["numpy", "jit"])
def test_run_agrees_with_numpy(examples: Path, engine: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    command = [sys.executable, str(examples / "handwritten/run.py"), engine]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 16 cores" in done.stdout and "the same bits as numpy" in done.stdout
