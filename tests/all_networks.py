"""Every network of docs/evidence.md by name, with seeded inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests import networks
from tests.slow import packaged

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
NAMES = ("digits", *packaged.PACKAGED, "minilm", *networks.NETWORKS)


def network(name: str, batch: int | None = None) -> tuple[Path | onnx.ModelProto, dict[str, np.ndarray]] | None:
    """The model and its inputs, or None where the package that has it cannot be had.

    batch  of digits (default: all 360 images), resnet50 and vit_b16 (default 1), and of the packaged image networks as
           far as their inputs go; minilm has batch 1.
    """
    if name == "digits":
        return DIGITS / "digits.onnx", {k: x[:batch] for k, x in np.load(DIGITS / "heldout.npz").items()}
    if name in networks.NETWORKS:
        image = np.random.default_rng(1).standard_normal((batch or 1, 3, 224, 224)).astype(np.float32)
        return networks.NETWORKS[name](batch or 1), {"image": image}
    got = packaged.fetch(name)
    return got and (got[0], {k: x[:batch] for k, x in got[1].items()})
