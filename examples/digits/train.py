"""Trains the digits network and writes digits.onnx, heldout.npz and heldout_labels.npy beside this file.

Needs torch, scikit-learn and onnxruntime (`pip install '.[train]'`); about a minute on one core. The files it
writes are committed, so nobody needs to run it to use the example.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
SEED = 7
HELD_OUT = 360
EPOCHS = 40
BATCH = 64


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 projection where shape or stride change."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=nn.BatchNorm2d(channels_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def network() -> nn.Module:
    """[batch, 1, 8, 8] in 0..1 to [batch, 10] logits; 56 k parameters."""
    layers = {
        "stem": nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 32, 3, 1, 1, bias=False), norm=nn.BatchNorm2d(32))),
        "relu": nn.ReLU(),
        "block1": Residual(32, 32),
        "block2": Residual(32, 48, stride=2),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(48, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel in each direction, zeros moved in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, dy : dy + 8, dx : dx + 8] for image, (dy, dx) in zip(padded, moves, strict=True)])


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Fixed schedule, no selection on the held-out images."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=EPOCHS * -(-len(images) // BATCH))
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(shifted(images[index], generator)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        print(f"epoch {epoch + 1:2d}  mean loss {total / len(images):.4f}")


def export(model: nn.Module, path: Path) -> None:
    """ONNX opset 17 with a symbolic batch; batch normalisation stays a node of its own, for the compiler to fold."""
    model = copy.deepcopy(model).eval()
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        path,
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    seen, held_out, seen_labels, held_out_labels = train_test_split(
        images, digits.target, test_size=HELD_OUT, random_state=SEED, stratify=digits.target
    )
    model = network()
    train(model, torch.from_numpy(seen), torch.from_numpy(seen_labels))

    export(model, HERE / "digits.onnx")
    np.savez_compressed(HERE / "heldout.npz", image=held_out)
    np.save(HERE / "heldout_labels.npy", held_out_labels.astype(np.int64))
    session = onnxruntime.InferenceSession(HERE / "digits.onnx")
    (logits,) = session.run(["logits"], {"image": held_out})
    right = int((logits.argmax(axis=1) == held_out_labels).sum())
    print(f"held out: {right} of {len(held_out)} right ({right / len(held_out):.2%})")


if __name__ == "__main__":
    main()
