"""The committed digits network is what its page says: shapes, held-out images, accuracy with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest


@pytest.fixture(scope="module")
def held_out(examples: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(examples / "digits/heldout.npz")["image"], np.load(examples / "digits/heldout_labels.npy")


def test_the_network_is_valid_onnx_with_a_symbolic_batch(examples: Path) -> None:
    model = onnx.load(examples / "digits/digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    shape = image.type.tensor_type.shape.dim
    assert (shape[0].dim_param, [d.dim_value for d in shape[1:]]) == ("batch", [1, 8, 8])
    assert "BatchNormalization" in {n.op_type for n in model.graph.node}, "folding it is the compiler's work"
    assert (examples / "digits/digits.onnx").stat().st_size < 300_000


def test_the_held_out_images_are_360_of_all_classes(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = held_out
    assert images.shape == (360, 1, 8, 8) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.shape == (360,) and np.bincount(labels).min() >= 35
    assert len(np.unique(images.reshape(360, -1), axis=0)) == 360


def test_onnxruntime_gets_357_right(examples: Path, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    ort = pytest.importorskip("onnxruntime")
    images, labels = held_out
    (logits,) = ort.InferenceSession(examples / "digits/digits.onnx").run(["logits"], {"image": images})
    assert int((logits.argmax(axis=1) == labels).sum()) == 357
