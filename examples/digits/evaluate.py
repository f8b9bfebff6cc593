"""Classifies the held-out digits on the emulated machine and counts the right answers.

    python examples/digits/evaluate.py [PROGRAM.d1x] [--target d1-tile] [--precision bf16]

Without a compiled program it compiles digits.onnx first. Where onnxruntime is installed, its answers stand beside.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import d1c
import d1rt

HERE = Path(__file__).parent


def emulated(program: Path | None, target: str, precision: str, images: np.ndarray) -> np.ndarray:
    """Logits [batch, 10] of `images` [batch, 1, 8, 8] from a compiled program, or from one compiled for this call."""
    if program is not None:
        return d1rt.load(program).run({"image": images})["logits"]
    compiled = d1c.compile(HERE / "digits.onnx", dims={"batch": len(images)}, target=target, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.d1x"
        compiled.save(path)
        return d1rt.load(path).run({"image": images})["logits"]


def report(name: str, logits: np.ndarray, labels: np.ndarray) -> None:
    right = int((logits.argmax(axis=1) == labels).sum())
    print(f"{name:12s} {right} of {len(labels)} right ({right / len(labels):.2%})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify the held-out digits on the emulated machine.")
    parser.add_argument("program", type=Path, nargs="?", help="a program that `d1c compile` wrote for batch=360")
    parser.add_argument("--target", default="d1-tile")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
    args = parser.parse_args()

    images = np.load(HERE / "heldout.npz")["image"]
    labels = np.load(HERE / "heldout_labels.npy")
    logits = emulated(args.program, args.target, args.precision, images)
    report("d1rt", logits, labels)
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return
    (expected,) = onnxruntime.InferenceSession(HERE / "digits.onnx").run(["logits"], {"image": images})
    report("onnxruntime", expected, labels)
    same = int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum())
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"same answer for {same} of {len(labels)}; largest difference {error:.1e} of the largest logit")


if __name__ == "__main__":
    main()
