"""Small networks that together reach every kind of layer: ONNX models built in memory, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx

from d1c.frontend.importer import import_onnx
from d1c.ir.core import Module
from d1c.pipeline import PASSES, PIPELINE, run_pipeline
from tests.networks import Inputs, Net

GRAPH = tuple(n for n in PIPELINE if PASSES[n].level_out == "graph")


def residual() -> tuple[onnx.ModelProto, Inputs]:
    """Convolutions of stride 1 and 2, folded normalisation, max pool, a 1x1 projection, global average, linear."""
    f = Net(1)
    x = f("Relu", f.norm(f.conv("x", 3, 4, 3, 3, pads=[1, 1, 1, 1]), 4))
    x = f("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = f("Relu", f.norm(f.conv(x, 4, 6, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]), 6))
    y = f.norm(f.conv(y, 6, 12, 3, 3, pads=[1, 1, 1, 1]), 12)
    x = f("Relu", f("Add", y, f.norm(f.conv(x, 4, 12, 1, 1, strides=[2, 2]), 12)))
    x = f("Flatten", f("GlobalAveragePool", x))
    return f.model({"x": f.data(2, 3, 9, 7)}, f("Gemm", x, f.random(12, 5), f.random(5)))


def separable() -> tuple[onnx.ModelProto, Inputs]:
    """Depthwise and grouped convolutions, concatenation, padding, average pool that counts, squeeze and excite."""
    f = Net(2)
    x = f("Clip", f.conv("x", 4, 6, 1, 1, bias=True), f.scalar(0.0), f.scalar(6.0))
    a = f("HardSwish", f.conv(x, 6, 6, 3, 3, groups=6, pads=[1, 0, 1, 2], strides=[1, 2], bias=True))
    b = f("Relu", f.conv(x, 6, 8, 3, 3, groups=2, pads=[1, 0, 1, 2], strides=[1, 2]))
    x = f("Pad", f("Concat", a, b, axis=1), f.ints(0, 0, 1, 0, 0, 0, 0, 2), f.scalar(-1.0))
    x = f("AveragePool", x, kernel_shape=[2, 2], strides=[2, 1], count_include_pad=0, pads=[0, 1, 1, 0])
    gate = f("Sigmoid", f.conv(f("GlobalAveragePool", x), 14, 14, 1, 1))
    return f.model({"x": f.data(1, 4, 5, 6)}, f.conv(f("Mul", x, gate), 14, 4, 1, 1))


def transformer() -> tuple[onnx.ModelProto, Inputs]:
    """Embedding, layer norm, masked attention with packs at run time, softmax, exact gelu."""
    f, t, d, heads = Net(3), 5, 8, 2

    def split(x: str) -> str:
        return f("Transpose", f("Reshape", x, f.ints(0, t, heads, d // heads)), perm=[0, 2, 1, 3])

    def layer_norm(x: str) -> str:
        return f("LayerNormalization", x, f.random(d), f.random(d))

    x = f("Add", f("Gather", f.random(11, d), "ids"), f.random(t, d))
    n = layer_norm(x)
    q, k, v = (split(f.linear(n, d, d)) for _ in range(3))
    scores = f("Mul", f("MatMul", q, f("Transpose", k, perm=[0, 1, 3, 2])), f.scalar(0.5))
    mask = f("Unsqueeze", f("Mul", f("Sub", f.scalar(1.0), f("Cast", "mask", to=1)), f.scalar(-1e4)), f.ints(1, 2))
    p = f("Softmax", f("Add", scores, mask), axis=-1)
    o = f("Reshape", f("Transpose", f("MatMul", p, v), perm=[0, 2, 1, 3]), f.ints(0, t, d))
    x = f("Add", x, f.linear(o, d, d))
    x = f("Add", x, f.linear(f("Gelu", f.linear(layer_norm(x), d, 12)), 12, d))
    ids = f.rng.integers(0, 11, (2, t))
    attend = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int64)
    return f.model({"ids": ids, "mask": attend}, layer_norm(x))


def odd() -> tuple[onnx.ModelProto, Inputs]:
    """Channel counts that nothing divides, convolution along one dimension, dilation, reductions of either order."""
    f = Net(4)
    x = f("Relu", f.conv("x", 3, 5, 3, strides=[2], pads=[1, 1], bias=True))
    x = f("Tanh", f.conv(x, 5, 7, 3, dilations=[2], pads=[2, 2]))
    most = f("ReduceMax", x, f.ints(2), keepdims=0)
    mean = f("ReduceMean", x, f.ints(1), keepdims=1)
    y = f("Softmax", f("Gemm", most, f.random(7, 3), f.random(3)))
    z = f("Slice", f("Mul", x, mean), f.ints(5), f.ints(-100), f.ints(1), f.ints(-2))
    return f.model({"x": f.data(3, 3, 11)}, y, z)


def deep() -> tuple[onnx.ModelProto, Inputs]:
    """Reductions that are long enough to be cut in slices, some with a last one that is short."""
    f = Net(5)
    x = f("Relu", f.conv("x", 15, 11, 3, 3, pads=[1, 1, 1, 1], bias=True))
    a = f("Relu", f.linear(f("Flatten", x), 11 * 12, 9))
    b = f("ReduceL1", f("Flatten", "x"), f.ints(1), keepdims=1)
    c = f("ReduceSum", x, f.ints(2, 3), keepdims=0)
    return f.model({"x": f.data(2, 15, 3, 4)}, f("Mul", a, b), f("Relu", c))


NETS: dict[str, Callable[[], tuple[onnx.ModelProto, Inputs]]] = {
    n.__name__: n for n in (residual, separable, transformer, odd, deep)
}


@cache
def graph_of(name: str, policy: str) -> tuple[Module, Inputs]:
    """The network after all graph passes, and its inputs."""
    proto, inputs = NETS[name]()
    return run_pipeline(import_onnx(proto), GRAPH, options={"policy": policy}).module, inputs
