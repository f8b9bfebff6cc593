"""ONNX's own backend interface: `onnx.backend.test` and other tools drive d1c through it.

    rep = d1c.backend.prepare(model)          # device "D1" or "CPU": the emulator runs on the host
    outputs = rep.run([x])

Programs are compiled for one emulated node with f32 storage, unless `target` and `precision` are given. Models with
symbolic dimensions are compiled at `run`, for the shapes of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from d1c import api
from d1c.errors import InputError, NotStatic, ShapeUnbound
from d1c.target.machine import Machine

__all__ = ["D1Backend", "D1Rep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class D1Rep(BackendRep):
    """A prepared model; compiled once per set of input shapes, and of values of frozen inputs.

    Inputs that decide shapes (axes, shapes, k, pads) must be known to the compiler: the first run freezes them to the
    values that they have then, and one with other values compiles again. `frozen`: their names; `program`: that of the
    last run. Sequences are lists of arrays; None is an optional without a value.
    """

    auto = True
    """Inputs that must be known are frozen without being asked for."""

    def __init__(self, model: onnx.ModelProto, target: str | Machine, precision: str, engine: str) -> None:
        self.model, self.target, self.precision, self.engine = model, target, precision, engine
        fixed = {t.name for t in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in fixed]
        self.outputs = [o.name for o in model.graph.output]
        self.frozen: tuple[str, ...] = ()
        self.programs: dict[Any, api.Program] = {}
        self.program: api.Program | None = None

    def compile(
        self, shapes: Mapping[str, tuple[int, ...] | None], values: Mapping[str, np.ndarray] | None = None
    ) -> api.Program:
        """The program for these input shapes. `values`: arrays of which those are frozen that must be known."""
        values = values or {}
        while True:
            frozen = {name: values[name] for name in self.frozen if name in values}
            bound = {name: shape for name, shape in shapes.items() if name not in frozen}
            key = (tuple(bound.items()), *((n, a.shape, a.dtype.str, a.tobytes()) for n, a in frozen.items()))
            if key in self.programs:
                return self.programs[key]
            try:
                program = api.compile(
                    self.model, target=self.target, precision=self.precision, shapes=bound, freeze=frozen
                )
            except NotStatic as error:
                new = [name for name in error.inputs if name in values and name not in frozen]
                if not new:
                    raise
                self.frozen = (*self.frozen, *new)
            else:
                self.programs[key] = program
                return program

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs as a named tuple of arrays. `inputs`: a sequence in the model's order, or a mapping by name."""
        if isinstance(inputs, Mapping):
            named = {str(k): _plain(v) for k, v in inputs.items()}
        else:
            values = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(values) != len(self.inputs):
                raise InputError(
                    f"{len(values)} inputs given, the model has {len(self.inputs)}", rule=", ".join(self.inputs)
                )
            named = dict(zip(self.inputs, map(_plain, values), strict=True))
        missing = [name for name in self.inputs if name not in named]
        if missing:
            raise InputError(f"input {missing[0]!r} is missing", rule=f"the model's inputs: {', '.join(self.inputs)}")
        shapes: dict[str, tuple[int, ...] | None] = {n: a.shape for n, a in api.ports_of(named).items()}
        shapes |= {name: None for name in self.inputs if named[name] is None or _no_elements(named[name])}
        arrays = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
        program = self.program = self.compile(shapes, arrays)
        results = program.run({n: v for n, v in named.items() if n not in program.frozen}, engine=self.engine)
        out: tuple[Any, ...] = namedtupledict("Outputs", self.outputs)(*(results[name] for name in self.outputs))
        return out


def _no_elements(value: Any) -> bool:
    return isinstance(value, list) and not value


def _plain(value: Any) -> Any:
    """An input as an array, a list of arrays, or None."""
    if isinstance(value, (list, tuple)):
        return [np.asarray(v) for v in value]
    return None if value is None else np.asarray(value)


class D1Backend(Backend):
    """d1c and d1rt as an ONNX backend."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every op is known (shapes are looked at when the model is compiled)."""
        try:
            api.import_onnx(model)
        except (ShapeUnbound, NotStatic):  # shapes and what decides them come with the inputs
            return True
        except Exception:  # the interface asks a yes-or-no question
            return False
        return True

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto,
        device: str = "CPU",
        *,
        target: str | Machine = "d1-node",
        precision: str = "f32",
        engine: str = "jit",
        **kwargs: Any,
    ) -> D1Rep:
        """Compile what can be compiled now. Raises the refusals of d1c.errors."""
        if not cls.supports_device(device):
            raise InputError(f"no device {device!r}", rule="devices are D1 and CPU (the emulator on the host)")
        rep = D1Rep(model, target, precision, engine)
        shapes = {name: shape for name in rep.inputs if (shape := _static(model, name)) is not None}
        if len(shapes) == len(rep.inputs):
            with suppress(NotStatic):  # the first run knows the values
                rep.compile(shapes)
        return rep

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """`prepare`, then `run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node as a model of its own, of the newest opset (`opset_version` to change it)."""
        values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        names = [name for name in node.input if name]
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype), np.asarray(v).shape
            )
            for name, v in zip(names, values, strict=True)
        ]
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", infos, results)
        opset = int(kwargs.pop("opset_version", onnx.defs.onnx_opset_version()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, values, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """The emulated D1, which runs on the CPU."""
        return str(device).partition(":")[0] in ("D1", "CPU")


def _static(model: onnx.ModelProto, name: str) -> tuple[int, ...] | None:
    for info in model.graph.input:
        if info.name == name and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None
    return None


prepare = D1Backend.prepare
run_model = D1Backend.run_model
run_node = D1Backend.run_node
supports_device = D1Backend.supports_device
is_compatible = D1Backend.is_compatible
