"""Every network of docs/evidence.md by name, with seeded inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests import networks
from tests.slow import packaged

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
NAMES = ("digits", *packaged.PACKAGED, "minilm", "transnetv2", *networks.NETWORKS, *networks.OTHERS)


def network(name: str, batch: int | None = None) -> tuple[Path | onnx.ModelProto, dict[str, np.ndarray]] | None:
    """The model and its inputs, or None where the package that has it cannot be had.

    batch  of digits (default: all 360 images), resnet50 and vit_b16 (default 1), and mtcnn_onet (default 4, the most);
           the others have batch 1.
    """
    if name == "digits":
        return DIGITS / "digits.onnx", {k: x[:batch] for k, x in np.load(DIGITS / "heldout.npz").items()}
    if name in networks.NETWORKS:
        image = np.random.default_rng(1).standard_normal((batch or 1, 3, 224, 224)).astype(np.float32)
        return networks.NETWORKS[name](batch or 1), {"image": image}
    if name in networks.OTHERS:
        build, inputs = networks.OTHERS[name]
        return build(), inputs()
    got = packaged.fetch(name)
    return got and (got[0], {k: x[:batch] if name == "mtcnn_onet" else x for k, x in got[1].items()})
