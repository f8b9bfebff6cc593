"""The types of a model's inputs: what the file says, with `--shape` and `--dim` bound in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
}  # fmt: skip


def element_type(code: int, where: str) -> DType:
    """The element type of ONNX's number `code`. Raises UnsupportedOp naming `where`."""
    if code not in ELEMENT_TYPES:
        names = {v: k for k, v in onnx.TensorProto.DataType.items()}
        raise UnsupportedOp(f"element type {names.get(code, code)} has no form on the machine", where=where)
    return dtype(ELEMENT_TYPES[code])


def type_proto(type_: Type) -> onnx.TypeProto:
    """A tensor type as ONNX says it."""
    assert isinstance(type_, TensorType)
    codes = {name: code for code, name in ELEMENT_TYPES.items()}
    return onnx.helper.make_tensor_type_proto(codes[type_.dtype.name], type_.shape)


def input_types(
    inputs: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, tuple[int, ...]],
    dims: Mapping[str, int],
) -> dict[str, TensorType]:
    """Input name -> static type. `shapes` (whole inputs) wins over `dims` (symbols), both over the file.

    Raises ShapeUnbound listing every dimension without a value and the flags to add, UsageError for a name in `shapes`
    or `dims` that the model does not have.
    """
    names = [i.name for i in inputs]
    for name in shapes:
        if name not in names:
            raise UsageError(f"--shape names {name!r}, which is no input", remedy=f"inputs: {', '.join(names)}")
    for symbol, value in dims.items():
        if value < 1:
            raise UsageError(
                f"--dim {symbol}={value}: dimensions are at least 1", remedy=f"for example --dim {symbol}=8"
            )
    types: dict[str, TensorType] = {}
    open_inputs: list[str] = []
    flags: dict[str, None] = {}
    symbols: dict[str, None] = {}
    for info in inputs:
        if info.type.WhichOneof("value") != "tensor_type":
            raise UnsupportedOp(f"input {info.name!r} is not a tensor", where=info.name, rule="inputs are tensors")
        tensor = info.type.tensor_type
        element = element_type(tensor.elem_type, f"input {info.name}")
        if info.name in shapes:
            shape = tuple(shapes[info.name])
            if any(d < 1 for d in shape):
                raise UsageError(f"--shape {info.name}={_commas(shape)}: dimensions are at least 1")
            if tensor.HasField("shape") and len(shape) != len(tensor.shape.dim):
                raise UsageError(
                    f"--shape {info.name}={_commas(shape)} has {len(shape)} dimensions, the model's input has "
                    f"{len(tensor.shape.dim)}: {_commas([_symbol(d) or d.dim_value or '?' for d in tensor.shape.dim])}",
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


def _symbol(dim: onnx.TensorShapeProto.Dimension) -> str:
    """The dimension's usable name, '' if none: '?' and the like name nothing."""
    name = dim.dim_param.strip() if dim.HasField("dim_param") else ""
    return "" if name in ("?", "-1", "None") else name


def _commas(values: Sequence[int | str]) -> str:
    return ",".join(str(v) for v in values)
