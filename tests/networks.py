"""Networks built in memory with seeded weights: the tool for it, and the standard large ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Inputs = dict[str, np.ndarray]


class Net:
    """Collects nodes and seeded weights; every method returns the name of what it adds.

    Weights are normal with variance 1 / `fan`.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, **attrs: object) -> str:
        out = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attrs))
        return out

    def const(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def random(self, *shape: int, fan: float = 1) -> str:
        return self.const((self.rng.normal(size=shape) / fan**0.5).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.const(np.array(value, np.float32))

    def conv(self, x: str, c: int, o: int, *kernel: int, groups: int = 1, bias: bool = False, **attrs: object) -> str:
        w = self.random(o, c // groups, *kernel, fan=c // groups * int(np.prod(kernel)))
        return self("Conv", x, w, *([self.random(o)] if bias else []), group=groups, **attrs)

    def norm(self, x: str, c: int) -> str:
        scale, bias, mean = (self.random(c) for _ in range(3))
        variance = self.const((self.rng.random(c) + 0.5).astype(np.float32))
        return self("BatchNormalization", x, scale, bias, mean, variance)

    def linear(self, x: str, k: int, n: int) -> str:
        return self("Add", self("MatMul", x, self.random(k, n, fan=k)), self.random(n))

    def model(self, inputs: Inputs, *outputs: str) -> tuple[onnx.ModelProto, Inputs]:
        def info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        graph = helper.make_graph(
            self.nodes, "net", [info(n, a) for n, a in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs], self.weights,
        )  # fmt: skip
        opset = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opset, ir_version=9), inputs

    def data(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)


def resnet50(batch: int = 1) -> onnx.ModelProto:
    """ResNet-50 v1.5: stride on the 3x3, normalisations apart. `image` [batch, 3, 224, 224] to [batch, 1000]."""
    f = Net(50)

    def unit(x: str, c: int, o: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        w = f.random(o, c, kernel, kernel, fan=c * kernel * kernel / 2)
        pads = [kernel // 2] * 4
        x = f("Conv", x, w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        scale = f.const((gain * (1 + 0.1 * f.rng.normal(size=o))).astype(np.float32))
        variance = f.const((f.rng.random(o) + 0.5).astype(np.float32))
        return f("BatchNormalization", x, scale, f.random(o, fan=100), f.random(o, fan=100), variance)

    x = f("Relu", unit("image", 3, 64, 7, 2))
    x = f("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            stride = 2 if i == 0 and width > 64 else 1
            y = f("Relu", unit(x, c, width, 1))
            y = f("Relu", unit(y, width, width, 3, stride))
            y = unit(y, width, 4 * width, 1, gain=0.3)
            x = f("Relu", f("Add", y, unit(x, c, 4 * width, 1, stride) if i == 0 else x))
            c = 4 * width
    x = f("Gemm", f("Flatten", f("GlobalAveragePool", x)), f.random(c, 1000, fan=c), f.random(1000, fan=100))
    return f.model({"image": np.zeros((batch, 3, 224, 224), np.float32)}, x)[0]


def vit_b16(batch: int = 1) -> onnx.ModelProto:
    """ViT-B/16 with a class token. `image` [batch, 3, 224, 224] to [batch, 1000]."""
    f, t, d, heads = Net(16), 197, 768, 12

    def norm(x: str) -> str:
        return f("LayerNormalization", x, f.const(np.ones(d, np.float32)), f.random(d, fan=100))

    def split(x: str) -> str:
        return f("Transpose", f("Reshape", x, f.ints(0, t, heads, d // heads)), perm=[0, 2, 1, 3])

    x = f.conv("image", 3, d, 16, 16, bias=True, strides=[16, 16])
    x = f("Transpose", f("Reshape", x, f.ints(0, d, t - 1)), perm=[0, 2, 1])
    token = f("Expand", f.random(1, 1, d, fan=2500), f.ints(batch, 1, d))
    x = f("Add", f("Concat", token, x, axis=1), f.random(1, t, d, fan=2500))
    for _ in range(12):
        n = norm(x)
        q, k, v = (split(f.linear(n, d, d)) for _ in range(3))
        scores = f("Mul", f("MatMul", q, f("Transpose", k, perm=[0, 1, 3, 2])), f.scalar((d // heads) ** -0.5))
        o = f("MatMul", f("Softmax", scores, axis=-1), v)
        x = f("Add", x, f.linear(f("Reshape", f("Transpose", o, perm=[0, 2, 1, 3]), f.ints(0, t, d)), d, d))
        x = f("Add", x, f.linear(f("Gelu", f.linear(norm(x), d, 4 * d)), 4 * d, d))
    x = f("Gather", norm(x), f.const(np.array(0)), axis=1)
    return f.model({"image": np.zeros((batch, 3, 224, 224), np.float32)}, f.linear(x, d, 1000))[0]


NETWORKS = {"resnet50": resnet50, "vit_b16": vit_b16}
