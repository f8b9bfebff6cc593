"""The types of a model's inputs: what the file says, with `--shape` and `--dim` bound in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from d1c.errors import ShapeUnbound, UnsupportedOp, UsageError
from d1c.ir.types import TensorType, Type
from d1c.target.dtypes import DType, dtype

ELEMENT_TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.DOUBLE: "f64", onnx.TensorProto.FLOAT16: "f16",
    onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT64: "i64", onnx.TensorProto.INT32: "i32", onnx.TensorProto.INT16: "i16",
    onnx.TensorProto.INT8: "i8",
    onnx.TensorProto.UINT64: "u64", onnx.TensorProto.UINT32: "u32", onnx.TensorProto.UINT16: "u16",
    onnx.TensorProto.UINT8: "u8",
    onnx.TensorProto.INT4: "i4", onnx.TensorProto.UINT4: "u4", onnx.TensorProto.INT2: "i2",
    onnx.TensorProto.UINT2: "u2", onnx.TensorProto.FLOAT8E4M3FN: "f8e4m3fn",
    onnx.TensorProto.FLOAT8E4M3FNUZ: "f8e4m3fnuz", onnx.TensorProto.FLOAT8E5M2: "f8e5m2",
    onnx.TensorProto.FLOAT8E5M2FNUZ: "f8e5m2fnuz", onnx.TensorProto.FLOAT8E8M0: "f8e8m0",
    onnx.TensorProto.FLOAT4E2M1: "f4e2m1",
    **{code: label.lower().replace("float", "f") for label, code in onnx.TensorProto.DataType.items()
       if label.startswith("FLOAT6")},
}  # fmt: skip


def element_type(code: int, where: str) -> DType:
    """The element type of ONNX's number `code`. Raises UnsupportedOp naming `where`."""
    if code not in ELEMENT_TYPES:
        names = {v: k for k, v in onnx.TensorProto.DataType.items()}
        raise UnsupportedOp(
            f"element type {names.get(code, code)} has no form on the machine", where=where,
            rule="tensors have element types of the machine: " + ", ".join(ELEMENT_TYPES.values()),
            remedy="export the model with another type (complex numbers as a dim of two floats)",
        )  # fmt: skip
    return dtype(ELEMENT_TYPES[code])


def type_proto(type_: Type) -> onnx.TypeProto:
    """A tensor type as ONNX says it."""
    assert isinstance(type_, TensorType)
    codes = {name: code for code, name in ELEMENT_TYPES.items()}
    return onnx.helper.make_tensor_type_proto(codes[type_.dtype.name], type_.shape)


@dataclass(frozen=True)
class ListType:
    """The types of a sequence's elements; `dtype` their element type, also where there is none."""

    items: tuple[TensorType, ...]
    dtype: DType


Declared = TensorType | ListType | None
"""What an input is: a tensor, a sequence of tensors, or None: an optional that is not given."""


def frozen_inputs(inputs: Sequence[onnx.ValueInfoProto], freeze: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`freeze` checked: names of inputs, arrays of their element type; plain numbers and lists get it. UsageError."""
    types = {i.name: i.type.tensor_type for i in inputs}
    out = {}
    for name, value in freeze.items():
        if name not in types:
            raise UsageError(f"--freeze names {name!r}, which is no input", remedy=f"inputs: {', '.join(types)}")
        want = element_type(types[name].elem_type, f"input {name}").numpy
        if isinstance(value, np.ndarray):
            array = value
        else:
            try:
                array = np.asarray(value, want)
                if want.kind in "iub" and not np.array_equal(array, np.asarray(value)):
                    raise ValueError(f"{value} is not")
            except (ValueError, TypeError, OverflowError) as error:
                raise UsageError(f"the frozen input {name!r} is {want}: {error}") from None
            if array.size == 1 and types[name].HasField("shape"):
                array = array.reshape((1,) * len(types[name].shape.dim))
        if array.dtype != want:
            raise UsageError(
                f"the frozen input {name!r} has elements of type {array.dtype}, the model's input {want}",
                rule="types are never converted silently",
            )
        dims = types[name].shape.dim
        if types[name].HasField("shape") and len(dims) != array.ndim:
            raise UsageError(
                f"the frozen input {name!r} has {array.ndim} dimensions, the model's input has {_dims(dims)}",
                where=name, remedy=f"give it as that, for example --freeze {name}=[[1,2]] for two dimensions",
            )  # fmt: skip
        out[name] = array
    return out


def input_types(
    inputs: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, tuple[int, ...] | None],
    dims: Mapping[str, int],
) -> dict[str, Declared]:
    """Input name -> static type. `shapes` (whole inputs) wins over `dims` (symbols), both over the file.

    The elements of a sequence `s` are bound as `s.0`, `s.1`, ...; None for an empty one, or an optional without value.
    Raises ShapeUnbound listing every dimension without a value and the flags to add, UsageError for a name in `shapes`
    or `dims` that the model does not have.
    """
    names = [i.name for i in inputs]
    lists = {i.name for i in inputs if _is_list(i.type)}
    for name in shapes:
        if name not in names and _element(name) not in lists:
            raise UsageError(f"--shape names {name!r}, which is no input", remedy=f"inputs: {', '.join(names)}")
    for symbol, value in dims.items():
        if value < 0:
            raise UsageError(
                f"--dim {symbol}={value}: dimensions are at least 0", remedy=f"for example --dim {symbol}=8"
            )
    types: dict[str, Declared] = {}
    open_inputs: list[str] = []
    flags: dict[str, None] = {}
    symbols: dict[str, None] = {}
    for info in inputs:
        kind = info.type
        optional = kind.WhichOneof("value") == "optional_type"
        if optional:
            kind = kind.optional_type.elem_type
        listed = kind.WhichOneof("value") == "sequence_type"
        if listed:
            kind = kind.sequence_type.elem_type
        if kind.WhichOneof("value") != "tensor_type":
            raise UnsupportedOp(
                f"input {info.name!r} is neither a tensor nor a sequence of tensors",
                where=info.name,
                rule="maps, sparse tensors and nested sequences have no form on the machine",
                remedy="make the tensors in it inputs of their own",
            )
        tensor = kind.tensor_type
        element = element_type(tensor.elem_type, f"input {info.name}")
        if (optional or listed) and info.name in shapes and shapes[info.name] is None:
            types[info.name] = ListType((), element) if listed and not optional else None
            continue
        if listed:
            found: list[TensorType] = []
            while (key := f"{info.name}.{len(found)}") in shapes:
                found.append(TensorType(_checked(key, shapes[key]), element))
            if sum(_element(name) == info.name for name in shapes) > len(found):
                raise UsageError(
                    f"--shape names elements of {info.name!r}, but not {info.name}.{len(found)}",
                    rule="elements of a sequence count from 0", where=info.name,
                )  # fmt: skip
            if found:
                types[info.name] = ListType(tuple(found), element)
            else:
                open_inputs.append(f"{info.name} (a sequence: one shape for each of its elements)")
                flags[f"--shape {info.name}.0=1,3"] = None
            continue
        if optional and info.name not in shapes:
            open_inputs.append(f"{info.name} (optional)")
            flags[f"--shape {info.name}=1,3"] = None
            continue
        if info.name in shapes:
            shape = _checked(info.name, shapes[info.name])
            if tensor.HasField("shape") and len(shape) != len(tensor.shape.dim):
                raise UsageError(
                    f"--shape {info.name}={_commas(shape)} has {len(shape)} dimensions, the model's input has "
                    f"{_dims(tensor.shape.dim)}",
                    where=info.name,
                    remedy="give every dimension of the input, the batch too",
                )
            symbols |= {s: None for d in tensor.shape.dim if (s := _symbol(d))}
            types[info.name] = TensorType(shape, element)
            continue
        if not tensor.HasField("shape"):
            open_inputs.append(f"{info.name} (no shape in the file)")
            flags[f"--shape {info.name}=1,3,224,224"] = None
            continue
        bound: list[int | str] = []
        named = True
        for d in tensor.shape.dim:
            symbol = _symbol(d)
            if symbol:
                symbols[symbol] = None
            if symbol in dims:
                bound.append(dims[symbol])
            elif d.HasField("dim_value") and d.dim_value >= 0:
                bound.append(d.dim_value)
            else:
                bound.append(symbol or "?")
                named = named and bool(symbol)
        if any(isinstance(b, str) for b in bound):
            open_inputs.append(f"{info.name}[{_commas(bound)}]")
            if named:
                flags |= {f"--dim {b}=1": None for b in bound if isinstance(b, str)}
            else:
                flags[f"--shape {info.name}={_commas([b if isinstance(b, int) else 1 for b in bound])}"] = None
        else:
            types[info.name] = TensorType(tuple(int(b) for b in bound), element)
    for symbol in dims:
        if symbol not in symbols:
            known = f"symbols: {', '.join(symbols)}" if symbols else "the model has no symbolic dimension"
            raise UsageError(f"--dim names {symbol!r}, which no input has", remedy=known)
    if open_inputs:
        raise ShapeUnbound(
            f"{len(open_inputs)} input{'s have' if len(open_inputs) > 1 else ' has'} dimensions without a value: "
            + "; ".join(open_inputs),
            where=", ".join(o.split("[")[0].split(" (")[0] for o in open_inputs),
            rule="every shape is static at compile time",
            remedy="add " + " ".join(flags) + " (with your own numbers)",
        )
    return types


def _is_list(type_: onnx.TypeProto) -> bool:
    """Whether it is a sequence, or an optional one."""
    if type_.WhichOneof("value") == "optional_type":
        type_ = type_.optional_type.elem_type
    return bool(type_.WhichOneof("value") == "sequence_type")


def _symbol(dim: onnx.TensorShapeProto.Dimension) -> str:
    """The dimension's usable name, '' if none: '?' and the like name nothing."""
    name = dim.dim_param.strip() if dim.HasField("dim_param") else ""
    return "" if name in ("?", "-1", "None") else name


def _dims(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    """How many there are, and what the file says of each."""
    return f"{len(dims)}: {_commas([_symbol(d) or d.dim_value or '?' for d in dims])}"


def _element(name: str) -> str:
    """`s` for `s.3`; '' for other names."""
    base, _, number = name.rpartition(".")
    return base if number.isdigit() else ""


def _checked(name: str, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None:
        raise UsageError(f"input {name!r} is a tensor and must have a shape", remedy=f"--shape {name}=1,3")
    if any(d < 0 for d in shape):
        raise UsageError(f"--shape {name}={_commas(shape)}: dimensions are at least 0")
    return tuple(shape)


def _commas(values: Sequence[int | str]) -> str:
    return ",".join(str(v) for v in values)
