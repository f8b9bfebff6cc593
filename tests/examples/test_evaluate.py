"""The digits example on the emulator, whole: compiled for a die, 360 images, within one answer of onnxruntime."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "d1c/api.py").exists(), reason="the compiler is not whole yet")
def test_evaluate_prints_the_accuracy(examples: Path) -> None:
    pytest.importorskip("onnxruntime")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    command = [sys.executable, str(examples / "digits/evaluate.py"), "--target", "d1-die"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+) of 360 right", done.stdout, re.MULTILINE)}
    assert right["onnxruntime"] == 357
    assert abs(right["d1rt"] - right["onnxruntime"]) <= 1
