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


def resnet18(batch: int = 1) -> onnx.ModelProto:
    """ResNet-18 with folded normalisations. `image` [batch, 3, 224, 224] to [batch, 1000]."""
    f = Net(18)

    def unit(x: str, c: int, o: int, kernel: int, stride: int = 1) -> str:
        return f.conv(x, c, o, kernel, kernel, bias=True, strides=[stride] * 2, pads=[kernel // 2] * 4)

    x = f("Relu", unit("image", 3, 64, 7, 2))
    x = f("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c = 64
    for o in (64, 128, 256, 512):
        for i in range(2):
            stride = 2 if i == 0 and o > 64 else 1
            y = unit(f("Relu", unit(x, c, o, 3, stride)), o, o, 3)
            x, c = f("Relu", f("Add", y, x if c == o else unit(x, c, o, 1, stride))), o
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


def gpt2_small(batch: int = 1, tokens: int = 64, last: bool = False) -> onnx.ModelProto:
    """GPT-2's decoder stack, embedding and head tied. `ids` [batch, tokens] (i64) to logits [batch, tokens, 50257];
    `last`: of the last token alone, [batch, 50257], as in prefill."""
    f, d, heads, words = Net(2), 768, 12, 50257

    def norm(x: str) -> str:
        return f("LayerNormalization", x, f.const(np.ones(d, np.float32)), f.random(d, fan=100))

    embedding = (f.rng.normal(size=(words, d)) * 0.02).astype(np.float32)
    x = f("Add", f("Gather", f.const(embedding), "ids"), f.random(tokens, d, fan=2500))
    mask = f.const(np.where(np.tri(tokens, dtype=bool), 0, -np.inf).astype(np.float32))
    for _ in range(12):
        qkv = f("Reshape", f.linear(norm(x), d, 3 * d), f.ints(0, tokens, 3, heads, d // heads))
        q, k, v = (
            f("Gather", f("Transpose", qkv, perm=[2, 0, 3, 1, 4]), f.const(np.array(i)), axis=0) for i in range(3)
        )
        scores = f("Mul", f("MatMul", q, f("Transpose", k, perm=[0, 1, 3, 2])), f.scalar((d // heads) ** -0.5))
        o = f("MatMul", f("Softmax", f("Add", scores, mask), axis=-1), v)
        x = f("Add", x, f.linear(f("Reshape", f("Transpose", o, perm=[0, 2, 1, 3]), f.ints(0, tokens, d)), d, d))
        x = f("Add", x, f.linear(f("Gelu", f.linear(norm(x), d, 4 * d), approximate="tanh"), 4 * d, d))
    x = f("Gather", norm(x), f.const(np.array(tokens - 1)), axis=1) if last else norm(x)
    logits = f("MatMul", x, f.const(embedding.T))
    return f.model({"ids": np.zeros((batch, tokens), np.int64)}, logits)[0]


def bevocc(batch: int = 1) -> onnx.ModelProto:
    """Driving: `image` of 8 cameras [8, 3, 192, 320] to a bird's-eye view, joined with the last step's `hidden` state
    [1, 64, 16, 16] aligned by `grid` [1, 16, 16, 2]; to occupancy, flow, the new state, the ten best lane scores and
    their cells. One vehicle: `batch` is 1."""
    f, c, cells = Net(8), 64, 16

    def unit(x: str, i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        y = f.conv(x, i, o, kernel, kernel, groups=groups, strides=[stride] * 2, pads=[kernel // 2] * 4, bias=True)
        return f.norm(y, o)

    def block(x: str, i: int, o: int, stride: int) -> str:
        y = f("Relu", unit(x, i, o, 1))
        y = f("Relu", unit(y, o, o, 3, stride, max(1, o // 16)))
        squeezed = f("Relu", f.conv(f("GlobalAveragePool", y), o, o // 4, 1, 1, bias=True))
        y = f("Mul", y, f("Sigmoid", f.conv(squeezed, o // 4, o, 1, 1, bias=True)))
        same = stride == 1 and i == o
        return f("Relu", f("Add", unit(y, o, o, 1), x if same else f.conv(x, i, o, 1, 1, strides=[stride] * 2)))

    def smooth(x: str, i: int = c, o: int = c) -> str:
        return f.conv(x, i, o, 3, 3, pads=[1] * 4, bias=True)

    def join(fine: str, coarse: str, height: int, width: int, **attrs: object) -> str:
        up = f("Resize", coarse, "", "", f.ints(8, c, height, width), **attrs)
        both = f("Add", f("Mul", fine, f.scalar(0.6)), f("Mul", up, f.scalar(0.4)))
        return smooth(f("Div", both, f.scalar(1.0001)))

    x, i, levels = f("Relu", f.conv("image", 3, 32, 3, 3, strides=[2, 2], pads=[1] * 4, bias=True)), 32, []
    for o in (32, 64, 96, 128):
        x = block(block(x, i, o, 2), o, o, 1)
        levels.append(f.conv(x, o, c, 1, 1, bias=True))
        i = o
    _, high, middle, low = levels
    middle = join(middle, low, 12, 20, mode="nearest", coordinate_transformation_mode="asymmetric",
                  nearest_mode="floor")  # fmt: skip
    high = join(high, middle, 24, 40, mode="linear", coordinate_transformation_mode="half_pixel")
    k = f("MaxPool", high, kernel_shape=[4, 4], strides=[4, 4])
    k = f("Transpose", f("Reshape", k, f.ints(1, 8, c, 6, 10)), perm=[0, 1, 3, 4, 2])
    k = f("Add", f("Reshape", k, f.ints(1, 480, c)), f.random(1, 480, c, fan=100))

    def normed(x: str) -> str:
        return f("LayerNormalization", x, f.const(np.ones(c, np.float32)), f.random(c, fan=100))

    def heads(x: str) -> str:
        return f("Transpose", f("Reshape", f.linear(x, c, c), f.ints(1, -1, 4, c // 4)), perm=[0, 2, 1, 3])

    query = f.random(1, cells * cells, c, fan=100)
    q, keys, values = heads(normed(query)), heads(k), heads(k)
    scores = f("Mul", f("MatMul", q, f("Transpose", keys, perm=[0, 1, 3, 2])), f.scalar(0.25))
    o = f("Transpose", f("MatMul", f("Softmax", scores, axis=-1), values), perm=[0, 2, 1, 3])
    query = f("Add", query, f.linear(f("Reshape", o, f.ints(1, cells * cells, c)), c, c))
    query = f("Add", query, f.linear(f("Gelu", f.linear(normed(query), c, 4 * c)), 4 * c, c))
    bev = f("Reshape", f("Transpose", query, perm=[0, 2, 1]), f.ints(1, c, cells, cells))
    old = f("GridSample", "hidden", "grid", mode="linear", align_corners=0)
    both = f("Concat", bev, old, axis=1)
    z, r = (f("Sigmoid", smooth(both, 2 * c)) for _ in range(2))
    new = f("Tanh", smooth(f("Concat", bev, f("Mul", r, old), axis=1), 2 * c))
    hidden = f("Add", f("Mul", f("Sub", f.scalar(1.0), z), old), f("Mul", z, new))
    v = f("Reshape", hidden, f.ints(1, 16, 4, cells, cells))
    for a, b in ((16, 16), (16, 8)):
        w = f.random(a, b, 4, 4, 4, fan=a * 8)
        v = f("Relu", f("ConvTranspose", v, w, f.random(b, fan=100), strides=[2] * 3, pads=[1] * 6))
    v = f.conv(v, 8, 4, 3, 3, 3, pads=[1] * 6, bias=True)
    occupancy = f("Sigmoid", f("Slice", v, f.ints(0), f.ints(1), f.ints(1)))
    flow = f("Slice", v, f.ints(1), f.ints(4), f.ints(1))
    lanes = f.linear(f("Transpose", f("Reshape", hidden, f.ints(1, c, -1)), perm=[0, 2, 1]), c, 32)
    best = f("ReduceMax", lanes, f.ints(-1), keepdims=0)
    f.nodes.append(helper.make_node("TopK", [best, f.ints(10)], ["best", "cell"]))
    inputs = {"image": np.zeros((8, 3, 192, 320), np.float32), "hidden": np.zeros((1, c, cells, cells), np.float32),
              "grid": np.zeros((1, cells, cells, 2), np.float32)}  # fmt: skip
    model = f.model(inputs, occupancy, flow, hidden, "best")[0]
    model.graph.output.append(helper.make_tensor_value_info("cell", TensorProto.INT64, None))
    return model


NETWORKS = {"resnet50": resnet50, "vit_b16": vit_b16}
"""Of images, of any batch."""


def gpt2_inputs() -> Inputs:
    return {"ids": np.random.default_rng(1).integers(0, 50257, (1, 64))}


def bevocc_inputs() -> Inputs:
    """Cameras and state are normal; the grid reaches a little beyond the old view's border."""
    rng = np.random.default_rng(1)
    shapes = {"image": (8, 3, 192, 320), "hidden": (1, 64, 16, 16)}
    noise: Inputs = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
    return {**noise, "grid": rng.uniform(-1.1, 1.1, (1, 16, 16, 2)).astype(np.float32)}


OTHERS = {"gpt2_small": (gpt2_small, gpt2_inputs), "bevocc": (bevocc, bevocc_inputs)}
"""Their inputs have one batch."""
