"""Every layer of a program beside onnxruntime's tensor of the same name: where do they part?

Two comparisons. *Isolated*: each graph operation is evaluated (by the reference interpreter) on onnxruntime's own
operands, so that its error is its own. *Accumulated*: the emulator runs the program, and what each layer stored is
compared, errors of the layers before it included. Tensors are matched by name, or by the ONNX node that a layer ends
with; a layer that has no counterpart (a fused or decomposed step, a changed layout) is listed as not comparable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from d1c import api
from d1c.analysis.layers import layers_of
from d1c.errors import D1Error, UsageError
from d1c.frontend.load import load_model
from d1c.interp import eval_loop, eval_op
from d1c.ir.core import Block, Module, Op, Value
from d1c.ir.types import TensorType
from d1c.ops.opdef import opdef
from d1c.target.numerics import round_to
from d1c.target.program import Program

__all__ = ["LIMITS", "Difference", "LayerCheck", "Report", "check_program", "compare", "reference_tensors"]

LIMITS: Mapping[str, Mapping[str, float]] = {
    "f32": {"isolated": 1e-4, "accumulated": 1e-4},
    "bf16": {"isolated": 2.0**-6, "accumulated": 2.0**-3},
}
"""Largest |difference| that still counts as the same, as a share of the reference's largest magnitude, per precision.
bf16 rounds each stored value by up to 2^-9; accumulated errors grow with depth, where a correlation of 0.99
is enough."""
CORRELATION = 0.99


@dataclass(frozen=True, slots=True)
class Difference:
    """How far x is from the reference.

    error        max |x - reference| / max |reference|.
    correlation  Pearson's, nan where a side is constant.
    finite       both sides are infinite or NaN at the same places.
    factor       standard deviation of x over the reference's.
    """

    error: float
    correlation: float
    finite: bool
    factor: float = 1.0

    @property
    def scaled(self) -> bool:
        """x is the reference times a constant: a pass has moved a factor (a mean's division, say) to another layer."""
        return self.finite and self.correlation > 0.999 and not 0.9 < self.factor < 1.1


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """One tensor. `isolated`, `accumulated`: None where not comparable (`note` says why). `diverges`: too far."""

    name: str
    origin: str
    isolated: Difference | None
    accumulated: Difference | None
    diverges: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All tensors in program order."""

    layers: tuple[LayerCheck, ...]
    precision: str

    def first(self, kind: str) -> LayerCheck | None:
        """The first layer that diverges in "isolated" or "accumulated"."""
        return next((x for x in self.layers if kind in x.diverges), None)

    @property
    def compared(self) -> int:
        return sum(x.isolated is not None or x.accumulated is not None for x in self.layers)

    def to_json(self) -> dict[str, Any]:
        first = {kind: (x.name if (x := self.first(kind)) else None) for kind in ("isolated", "accumulated")}
        return {
            "precision": self.precision,
            "limits": dict(LIMITS[self.precision]),
            "compared": self.compared,
            "first_divergence": first,
            "layers": [
                {
                    "name": x.name,
                    "origin": x.origin,
                    "isolated": _json(x.isolated),
                    "accumulated": _json(x.accumulated),
                    "diverges": list(x.diverges),
                    "note": x.note,
                }
                for x in self.layers
            ],
        }

    def text(self, all_layers: bool = False) -> str:
        """A line per layer (of long networks only those that diverge) and the verdict."""
        lines = [f"{'layer':50} {'isolated':>10} {'accumulated':>12}  largest |difference| / largest |reference|"]
        shown = [x for x in self.layers if all_layers or len(self.layers) <= 60 or x.diverges]
        for x in shown:
            values = [f"{d.error:.1e}" if d else "-" for d in (x.isolated, x.accumulated)]
            tail = f"  DIVERGES ({', '.join(x.diverges)})" if x.diverges else f"  {x.note}" if x.note else ""
            lines.append(f"{x.name[-50:]:50} {values[0]:>10} {values[1]:>12}{tail}")
        if len(shown) < len(self.layers):
            lines.append(f"{len(self.layers) - len(shown)} layers that agree or have no counterpart are left out")
        for kind in ("isolated", "accumulated"):
            at = self.first(kind)
            verdict = f"first divergence at {at.name} (node {at.origin})" if at else "no layer diverges"
            lines.append(f"{kind}: {verdict}; limit {LIMITS[self.precision][kind]:.1e}")
        lines.append(f"{self.compared} of {len(self.layers)} layers have a counterpart in onnxruntime")
        return "\n".join(lines)

    def raise_for_divergence(self) -> None:
        """D1Error that names the first layer that diverges, isolated before accumulated; nothing where none does."""
        for kind in ("isolated", "accumulated"):
            at = self.first(kind)
            if at is not None:
                difference = at.isolated if kind == "isolated" else at.accumulated
                assert difference is not None
                raise D1Error(
                    f"layer {at.name} diverges from onnxruntime ({kind})",
                    where=at.origin,
                    rule=f"largest |difference| at most {LIMITS[self.precision][kind]:.1e} of the largest value",
                    amounts={"error": difference.error, "correlation": difference.correlation},
                    remedy="bf16 rounds more: compare --precision f32; if that diverges too, report it as a bug",
                )


def _json(d: Difference | None) -> dict[str, Any] | None:
    return None if d is None else {"error": d.error, "correlation": d.correlation, "same_non_finite": d.finite}


def compare(x: np.ndarray, reference: np.ndarray) -> Difference:
    """The difference of two arrays of equal shape, in float64."""
    a, b = np.asarray(x).astype(np.float64).reshape(-1), np.asarray(reference).astype(np.float64).reshape(-1)
    good = np.isfinite(b) & np.isfinite(a)
    same = bool(np.array_equal(a[~good], b[~good], equal_nan=True))
    a, b = a[good], b[good]
    if not len(b):
        return Difference(0.0, float("nan"), same)
    scale = float(np.abs(b).max())
    largest = float(np.abs(a - b).max())
    deviation = float(a.std() * b.std())
    factor = float(a.std() / b.std()) if b.std() > 0 else 1.0
    correlation = float(((a - a.mean()) * (b - b.mean())).mean() / deviation) if deviation > 0 else float("nan")
    return Difference(largest / scale if scale else largest, correlation, same, factor)


def reference_tensors(model: str | Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the model as onnxruntime computes it, without graph optimisations.

    UsageError: it is not installed, or does not run the model on these inputs. ImportFailed: no model."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise UsageError(
            "--check compares with onnxruntime, which is not installed",
            remedy="pip install 'd1c[test]', or pip install onnxruntime",
        ) from None
    load_model(model)  # refuses what is no model, by name
    proto = onnx.load(str(model))
    have = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in have:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
                have.add(name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        missing = [i.name for i in session.get_inputs() if i.name not in inputs]
        names = [o.name for o in session.get_outputs()]
        values = [] if missing else session.run(names, dict(inputs))
    except Exception as error:  # its own classes, of no common base, and ValueError for inputs
        raise UsageError(
            f"onnxruntime does not run {model} on these inputs: {' '.join(str(error).split())[:300]}",
            remedy="--check wants the model that the program was compiled from",
        ) from None
    if missing:
        raise UsageError(
            f"--check cannot run {model}: the program has no input {', '.join(missing)}",
            rule="onnxruntime gets the inputs of the run, of which frozen ones and sequences are none",
            remedy="give the model that the program was compiled from; make frozen inputs initializers before that",
        )
    tensors = {n: np.asarray(v) for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
    return {**{k: np.asarray(v) for k, v in inputs.items()}, **tensors}


def check_program(
    program: Program,
    model: str | Path,
    inputs: Mapping[str, np.ndarray],
    *,
    engine: str = "jit",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compare a compiled program with the model that it was compiled from, on `inputs` (by name, as for a run)."""
    tell = progress or (lambda step: None)
    tell("onnxruntime")
    tensors = reference_tensors(model, inputs)
    names = _Names(onnx.load(str(model), load_external_data=False), tensors)
    precision = str(program.info.get("precision", "f32"))
    shapes = {p.name: p.shape for p in program.inputs}
    last = "pack-operands"
    module = api.compile(Path(model), precision=precision, shapes=shapes, target="test", stop_after=last).module(
        "graph"
    )
    tell("isolated")
    isolated = _isolated(module, names, tensors, inputs)
    tell("accumulated")
    accumulated = _accumulated(program, module, names, tensors, inputs, engine)
    return Report(tuple(_merge(isolated, accumulated, precision)), precision)


@dataclass(frozen=True, slots=True)
class _Names:
    """Which of onnxruntime's tensors a value of ours is."""

    model: onnx.ModelProto
    tensors: Mapping[str, np.ndarray]

    def by_name(self, name: str) -> str | None:
        """Value names are the tensors' with everything odd replaced, and the front end's numbering left off."""
        if not name:
            return None
        if name in self.tensors:
            return name
        return next((t for t in self.tensors if _identifier(t) == name), None)

    def by_node(self, origin: str) -> str | None:
        """The first output of the node called `origin`."""
        for node in self.model.graph.node:
            if origin and node.name == origin and node.output and node.output[0] in self.tensors:
                return str(node.output[0])
        return None


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")


def _last_origin(block: Block, default: str) -> str:
    """The origin of the operation whose value a block yields."""
    if not block.ops or not block.ops[-1].operands:
        return default
    value = block.ops[-1].operands[0]
    return next((op.origin for op in block.ops if value in op.results), default)


def _orders(reference: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The reference as a value of `shape` may hold it: as it is, or channels last; dims of size 1 anywhere."""
    candidates = [reference]
    if reference.ndim > 2:
        candidates.append(np.moveaxis(reference, 1, -1))
    bare = [n for n in shape if n != 1]
    return [c.reshape(shape) for c in candidates if [n for n in c.shape if n != 1] == bare]


def _nearest(x: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """The order of the reference that is closest to x; None where no order fits."""
    orders = _orders(reference, x.shape)
    return min(orders, key=lambda r: compare(x, r).error) if orders else None


Found = dict[str, tuple[str, Difference]]
"""Tensor name -> (origin, difference), in order."""


def _isolated(
    module: Module, names: _Names, tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> Found:
    block = module.function().block
    ends: dict[str, Op] = {}
    for op in block.ops:
        ends[_origin_of(op)] = op
    env: dict[Value, np.ndarray] = {arg: np.asarray(inputs[arg.name]) for arg in block.args}
    found: Found = {}
    for op in block.ops[:-1]:
        if opdef(op.name).kind == "loop":
            env.update(zip(op.results, eval_loop(op, [env[v] for v in op.operands], module), strict=True))
            continue
        result = eval_op(op, [env[v] for v in op.operands], module.constants)[0]
        env[op.result] = result
        if op.name == "graph.const":
            continue
        tensor = names.by_name(op.result.name)
        origin = _origin_of(op)
        if tensor is None and not op.result.name and ends.get(origin) is op:
            tensor = names.by_node(origin)
        reference = _nearest(result, tensors[tensor]) if tensor is not None else None
        if tensor is not None and reference is not None:
            difference = compare(result, reference)
            if difference.scaled:
                continue
            found[tensor] = (origin or op.origin, difference)
            t = op.result.type
            assert isinstance(t, TensorType)
            # from here on the reference's own value, so that errors do not add up
            env[op.result] = (
                round_to(reference, t.dtype) if reference.dtype == np.float32 else reference.astype(t.dtype.numpy)
            )
    return found


def _origin_of(op: Op) -> str:
    fused = op.regions and op.name != "graph.attention"  # whose region has what comes before its end
    return _last_origin(op.regions[0], op.origin) if fused else op.origin


def _accumulated(
    program: Program,
    module: Module,
    names: _Names,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    engine: str,
) -> dict[str, tuple[str, Difference] | str]:
    """Per layer: its tensor's name, origin and difference; or why there is none."""
    import d1rt

    loaded = d1rt.load(program)
    results = loaded.run(inputs, engine=engine, keep=True)
    cut = {p.name: [dim for dim, _ in p.counts] for p in program.outputs if p.counts}
    ends = {
        x.result.name: x.origin
        if x.nest.kind == "attention"
        else _last_origin(x.epilogue, _last_origin(x.term, x.origin))
        for x in layers_of(module).layers
    }
    last = {origin: name for name, origin in ends.items()}
    out: dict[str, tuple[str, Difference] | str] = {}
    for number, part, name, origin in _results(program):
        tensor = names.by_name(name)
        end = ends.get(name, "")
        if tensor is None and re.fullmatch(r"t\d+(_\d+)?", name) and last.get(end) == name:
            tensor = names.by_node(end)
        if tensor is None:
            out[name] = "no tensor of the model"
            continue
        value = loaded.layer_value(loaded.kept, number)
        value = value if part is None else value[part]
        if tensor in cut:
            if results[tensor].shape != tensors[tensor].shape:
                out[tensor] = (origin, Difference(math.inf, math.nan, False))
                continue
            value = _real(value, tensors[tensor], cut[tensor])
        reference = _nearest(value, tensors[tensor])
        if reference is None:
            out[tensor] = "stored in another order"
            continue
        difference = compare(value, reference)
        out[tensor] = (
            f"times {difference.factor:.4g}: a factor moved elsewhere" if difference.scaled else (origin, difference)
        )
    return out


def _results(program: Program) -> Iterator[tuple[int, int | None, str, str]]:
    """Number, branch (None: it has one only), name and origin of every layer's results."""
    for number, layer in enumerate(program.layers):
        origin, branches = str(layer.get("origin", "")), layer.get("branches", ())
        if branches:
            parts = range(int(layer["shape"][0]))
            yield from ((number, part, str(name), origin) for part, name in zip(parts, branches, strict=False))
        else:
            yield number, None, str(layer["name"]), origin


def _real(value: np.ndarray, reference: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """A layer's value without what stands behind its run-time extents; as it is where its dims are in another order."""
    if value.ndim == reference.ndim:
        for dim in dims:
            value = value[(slice(None),) * dim + (slice(0, reference.shape[dim]),)]
    return value


def _merge(
    isolated: Found, accumulated: Mapping[str, tuple[str, Difference] | str], precision: str
) -> Iterable[LayerCheck]:
    limits = LIMITS[precision]
    for name, entry in accumulated.items():
        alone = isolated.get(name)
        if isinstance(entry, str):
            yield LayerCheck(name, alone[0] if alone else "", alone[1] if alone else None, None, (), entry)
            continue
        origin, total = entry
        diverges = []
        if alone is not None and _far(alone[1], limits["isolated"], exact=True):
            diverges.append("isolated")
        if _far(total, limits["accumulated"], exact=precision == "f32"):
            diverges.append("accumulated")
        yield LayerCheck(name, origin, alone[1] if alone else None, total, tuple(diverges))


def _far(d: Difference, limit: float, exact: bool) -> bool:
    if not d.finite:
        return True
    return d.error > limit and (exact or not d.correlation >= CORRELATION)
