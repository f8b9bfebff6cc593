"""The cases of the official ONNX suite, which ships inside the onnx package: models with inputs and expected outputs.

`collect(folder)` gives the list of `Case`s. Building it takes onnx a while (it computes every expected output with
numpy), so that the cases are written once into `folder`: an index, and one file with a blob per case that `Case.load`
reads. Both carry onnx's version in their names.
"""

from __future__ import annotations

import fcntl
import hashlib
import pickle
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
CATEGORIES = {
    "plain": "plain tensors",
    "control": "control flow (If, Loop, Scan)",
    "dynamic": "data-dependent shape (NonZero, Unique, Compress, NMS)",
    "sequence": "sequence, optional, map",
    "text": "strings, text, ImageDecoder",
    "ml": "ai.onnx.ml",
    "optimizer": "preview.training (Adam, Adagrad, Momentum)",
    "training": "training-mode BatchNorm, Dropout",
    "random": "random ops (shape, type and distribution are checked)",
}
FORMAT = 2
"""Of the files; a new one when what they hold changes."""

_TEXT = {"ImageDecoder", "StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"}
_SEQUENCE = {
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
}  # fmt: skip
_RANDOM = {"Bernoulli", "RandomUniformLike", "RandomNormalLike", "RandomUniform", "RandomNormal", "Multinomial"}
_LOW = {
    code for name, code in TensorProto.DataType.items()
    if name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the suite.

    ops            (domain, op) of every node, those of subgraphs and local functions too, sorted, each once.
    low_precision  whether a tensor of 8-bit float, or of 4 or 2 bits, occurs.
    rtol, atol     the suite's own tolerances. digest: of the model and its data.
    """

    name: str
    kind: str
    category: str
    low_precision: bool
    ops: tuple[tuple[str, str], ...]
    opset: int
    rtol: float
    atol: float
    digest: str
    path: Path
    offset: int
    size: int

    def load(self) -> tuple[ModelProto, list[tuple[list[Any], list[Any]]]]:
        """The model, and its data sets: (inputs, expected outputs), each an array, a list of them (a sequence), or
        None (an empty optional)."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            model, data = pickle.loads(file.read(self.size))
        return onnx.load_from_string(model), data

    @property
    def node(self) -> str:
        """A name that is unique in the suite (the kinds have names in common)."""
        return f"{self.kind}/{self.name}"


def collect(folder: Path) -> tuple[Case, ...]:
    """All cases, by kind and name. Written into `folder` at the first call, by one process while others wait."""
    stem = folder / f"onnx-{onnx.__version__}-{FORMAT}"
    index = stem.with_name(stem.name + ".index")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not index.exists():
            _write(stem.with_name(stem.name + ".cases"), index)
    return tuple(
        Case(*row[:-2], stem.with_name(stem.name + ".cases"), *row[-2:]) for row in pickle.loads(index.read_bytes())
    )


def _write(blobs: Path, index: Path) -> None:
    rows = []
    part = blobs.with_suffix(".part")
    with warnings.catch_warnings(), part.open("wb") as file:
        warnings.simplefilter("ignore", RuntimeWarning)  # of the suite's own arithmetic on infinities
        for kind in KINDS:
            for test in sorted(load_model_tests(kind=kind), key=lambda t: t.name):
                model, data = _read(test)
                blob = pickle.dumps((model.SerializeToString(), data))
                nodes = list(_nodes(model))
                ops = tuple(sorted({(n.domain, n.op_type) for n in nodes}))
                opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
                low = any(t in _LOW for t in _types(model))
                rows.append((
                    test.name, kind, _category(model, nodes), low, ops, opset, test.rtol, test.atol,
                    hashlib.sha256(blob).hexdigest()[:16], file.tell(), len(blob),
                ))  # fmt: skip
                file.write(blob)
    part.rename(blobs)
    index.write_bytes(pickle.dumps(rows))


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(test: Any) -> tuple[ModelProto, list[tuple[list[Any], list[Any]]]]:
    if test.model is not None:
        return test.model, [([_plain(x) for x in ins], [_plain(x) for x in outs]) for ins, outs in test.data_sets]
    if test.model_dir is None:  # "light": a real network with constants for weights
        return _light(Path(onnx.__file__).parent / str(test.url).removeprefix("onnx/"), test.model_name)
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        ins = [_proto(data / f"input_{i}.pb", info) for i, info in enumerate(model.graph.input)]
        outs = [_proto(data / f"output_{i}.pb", info) for i, info in enumerate(model.graph.output)]
        sets.append(([x for x in ins if x is not _ABSENT], outs))
    return model, sets


def _light(path: Path, name: str) -> tuple[ModelProto, list[tuple[list[Any], list[Any]]]]:
    model = onnx.load(path)
    fixed = {t.name for t in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(i, seed=0, name=name) for i in model.graph.input if i.name not in fixed]
    expected = [path.with_name(f"{path.stem}_output_{i}.pb") for i in range(len(model.graph.output))]
    return model, [(inputs, [_proto(p, o) for p, o in zip(expected, model.graph.output, strict=True)])]


_ABSENT = object()


def _proto(path: Path, info: onnx.ValueInfoProto) -> Any:
    if not path.exists():
        return _ABSENT
    form = info.type.WhichOneof("value")
    proto = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(form, TensorProto)()
    proto.ParseFromString(path.read_bytes())
    return _plain(proto)


def _plain(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if value is None else np.asarray(value)


# ---- what a case is about --------------------------------------------------------------------------------------------


def _nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _walk(model.graph.node)
    for function in model.functions:
        yield from _walk(function.node)


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from _walk(a.g.node)


def _types(model: ModelProto) -> Iterator[int]:
    infos = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    yield from (i.type.tensor_type.elem_type for i in infos if i.type.WhichOneof("value") == "tensor_type")
    yield from (t.data_type for t in model.graph.initializer)


def _category(model: ModelProto, nodes: list[onnx.NodeProto]) -> str:
    ops, domains = {n.op_type for n in nodes}, {n.domain for n in nodes}
    ports = (*model.graph.input, *model.graph.output)
    if "ai.onnx.preview.training" in domains:
        return "optimizer"
    if "ai.onnx.ml" in domains:
        return "ml"
    if ops & _RANDOM:
        return "random"
    if ops & _TEXT or TensorProto.STRING in _types(model):
        return "text"
    if ops & _SEQUENCE or any(i.type.WhichOneof("value") != "tensor_type" for i in ports):
        return "sequence"
    if ops & {"If", "Loop", "Scan"}:
        return "control"
    if ops & {"NonZero", "Unique", "Compress", "NonMaxSuppression"}:
        return "dynamic"
    modes = [n for n in nodes if n.op_type == "BatchNormalization"]
    if any(a.name == "training_mode" and a.i for n in modes for a in n.attribute):
        return "training"
    # A Dropout in training mode has its mode as a third operand.
    return "training" if any(n.op_type == "Dropout" and len(n.input) > 2 for n in nodes) else "plain"
