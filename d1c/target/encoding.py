"""Kernels as bytes: little-endian records of 8-byte words, in preorder. docs/binary.md has the layout.

`decode` is the exact inverse of `encode` and checks everything that a reader of the Nest relies on, types of bodies
included, so that a translator needs no checks of its own.
"""

from __future__ import annotations

import math
import re
import struct
from typing import NoReturn

from d1c.target.dtypes import NARROW, PLAIN
from d1c.target.kernel import COMPUTE_TYPE, INSTRUCTIONS, Body, Instr, Loop, Nest, Operand

VERSION = 1
KINDS = ("map", "mac", "fma", "sum", "max", "min", "or", "lookup", "scatter", "prod")
TYPES = ("f32", "i32", "i64", "mask", "f64")
DTYPES = tuple(d.name for d in (*PLAIN, *NARROW))
OPCODES = (
    "const", "add", "sub", "mul", "div", "rem", "fma", "sqrt", "min", "max", "rint", "floor", "ceil", "neg", "abs",
    "and", "or", "xor", "shl", "shr", "sar", "eq", "ne", "lt", "le", "select", "bits", "cvt",
)  # fmt: skip
"""Numbers in the file are positions in these tuples: append only, and raise VERSION for anything else."""

MAX_LOOPS, MAX_OPERANDS, MAX_TABLES, MAX_INSTRS = 24, 64, 256, 4096
MAX_EXTENT, MAX_STRIDE = 2**31 - 1, 2**31 - 1
_NONE16, _NONE8 = 0xFFFF, 0xFF
_HEADER = struct.Struct("<BBBBBBBBII")
_LOOP = struct.Struct("<II")
_OPERAND = struct.Struct("<BBHI")
_AXIS = struct.Struct("<iHH")
_BODY = struct.Struct("<HHHH")
_INSTR = struct.Struct("<BBHHH")
_LANES, _TERM, _EPILOGUE = 1, 2, 4
_LOOP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")

_INT = ("i32", "i64")
_FLOAT = ("f32", "f64")
_NUMBER = (*_FLOAT, *_INT)
# op: (types that the result may have, types of the arguments: None: as the result, "=": all alike and free)
_RULES: dict[str, tuple[tuple[str, ...], object]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "min", "max", "neg", "abs"), (_NUMBER, None)),
    "rem": (_INT, None),
    **dict.fromkeys(("fma", "sqrt", "rint", "floor", "ceil"), (_FLOAT, None)),
    **dict.fromkeys(("and", "or", "xor"), ((*_INT, "mask"), None)),
    **dict.fromkeys(("shl", "shr", "sar"), (_INT, None)),
    **dict.fromkeys(("eq", "ne", "lt", "le"), (("mask",), "=")),
}


class EncodingError(ValueError):
    """A kernel that breaks the rules of its record, or bytes that are no kernel."""


def _fail(message: str) -> NoReturn:
    raise EncodingError(message)


def encode(nest: Nest) -> bytes:
    """The record of `nest`, a multiple of 8 bytes. Raises EncodingError (a ValueError) when check(nest) does."""
    check(nest)
    out = bytearray(_HEADER.size)
    flags = _LANES * nest.lanes | _TERM * (nest.term is not None) | _EPILOGUE * (nest.epilogue is not None)
    for loop in nest.loops:
        out += _LOOP.pack(loop.extent, len(loop.name))
    for operand in (nest.out, *nest.operands):
        out += _OPERAND.pack(DTYPES.index(operand.dtype), 0, 0, 0)
        for stride, table in zip(operand.strides, operand.tables, strict=True):
            out += _AXIS.pack(stride, _NONE16 if table is None else table, 0)
    for body in (nest.term, nest.epilogue):
        if body is not None:
            out += _encode_body(body)
    code = len(out)
    out += "".join(loop.name for loop in nest.loops).encode()
    out += bytes(-len(out) % 8)
    cut = _NONE8 if nest.cut is None else nest.cut
    counts = (len(nest.loops), nest.parallel, len(nest.operands), nest.n_term)
    _HEADER.pack_into(out, 0, VERSION, KINDS.index(nest.kind), *counts, cut, flags, nest.slice, code)
    return bytes(out)


def _encode_body(body: Body) -> bytes:
    out = bytearray(_BODY.pack(len(body.inputs), len(body.instrs), body.result, 0))
    out += bytes(TYPES.index(t) for t in body.inputs)
    out += bytes(-len(body.inputs) % 8)
    for i in body.instrs:
        args = (*i.args, _NONE16, _NONE16, _NONE16)[:3]
        out += _INSTR.pack(OPCODES.index(i.op), TYPES.index(i.type), *args)
        if i.op == "const":
            assert i.imm is not None
            out += struct.pack("<d", i.imm) if i.type in _FLOAT else struct.pack("<q", int(i.imm))
    return bytes(out)


def code_bytes(nest: Nest) -> int:
    """Bytes of SRAM that the kernel's code takes: the record without its loop names."""
    bodies = [b for b in (nest.term, nest.epilogue) if b is not None]
    size = _HEADER.size + 8 * len(nest.loops) + (len(nest.operands) + 1) * (8 + 8 * len(nest.loops))
    for b in bodies:
        size += 8 + -(-len(b.inputs) // 8) * 8 + 8 * len(b.instrs) + 8 * sum(i.op == "const" for i in b.instrs)
    return size


class _Reader:
    """A cursor that refuses to leave its bytes."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def take(self, record: struct.Struct, what: str) -> tuple[int, ...]:
        if self.at + record.size > self.end:
            _fail(f"{what} at {self.at} is cut off")
        fields = record.unpack_from(self.data, self.at)
        self.at += record.size
        return fields

    def raw(self, size: int, what: str) -> bytes:
        if self.at + size > self.end:
            _fail(f"{what} at {self.at} is cut off")
        self.at += size
        return self.data[self.at - size : self.at]


def _pick(names: tuple[str, ...], number: int, what: str) -> str:
    if number >= len(names):
        _fail(f"{what} number {number} is unknown")
    return names[number]


def decode(data: bytes, start: int = 0) -> tuple[Nest, int]:
    """The nest whose record starts at `start`, and where the record ends. Raises EncodingError (a ValueError)."""
    r = _Reader(data, start, len(data))
    version, kind, n_loops, parallel, n_operands, n_term, cut, flags, slice_, code = r.take(_HEADER, "kernel header")
    if version != VERSION:
        _fail(f"kernel version {version} where this build reads {VERSION}")
    if n_loops > MAX_LOOPS or n_operands > MAX_OPERANDS or flags > 7:
        _fail(f"kernel header at {start}: {n_loops} loops, {n_operands} operands, flags {flags}")
    loops = [r.take(_LOOP, "loop") for _ in range(n_loops)]
    out, *operands = [_decode_operand(r, n_loops) for _ in range(n_operands + 1)]
    term = _decode_body(r) if flags & _TERM else None
    epilogue = _decode_body(r) if flags & _EPILOGUE else None
    if r.at != start + code:
        _fail(f"kernel at {start}: code of {r.at - start} bytes where the header says {code}")
    names = [r.raw(length, "loop name").decode("ascii", "replace") for _, length in loops]
    if any(r.raw(-(r.at - start) % 8, "filler")):
        _fail(f"kernel at {start}: filler is not zero")
    nest = Nest(
        _pick(KINDS, kind, "kind"),
        tuple(Loop(name, extent) for name, (extent, _) in zip(names, loops, strict=True)),
        parallel, tuple(operands), out, n_term, term, epilogue, None if cut == _NONE8 else cut, slice_,
        bool(flags & _LANES),
    )  # fmt: skip
    check(nest)
    return nest, r.at


def _decode_operand(r: _Reader, n_loops: int) -> Operand:
    number, *zeros = r.take(_OPERAND, "operand")
    axes = [r.take(_AXIS, "stride") for _ in range(n_loops)]
    if any(zeros) or any(zero for _, _, zero in axes):
        _fail("operand: reserved bytes are not zero")
    tables = tuple(None if table == _NONE16 else table for _, table, _ in axes)
    return Operand(_pick(DTYPES, number, "element type"), tuple(stride for stride, _, _ in axes), tables)


def _decode_body(r: _Reader) -> Body:
    n_inputs, n_instrs, result, zero = r.take(_BODY, "body")
    if zero or n_inputs > MAX_OPERANDS + 1 or n_instrs > MAX_INSTRS:
        _fail(f"body of {n_inputs} inputs and {n_instrs} instructions")
    inputs = tuple(_pick(TYPES, t, "type") for t in r.raw(n_inputs, "body"))
    if any(r.raw(-n_inputs % 8, "filler")):
        _fail("body: filler is not zero")
    instrs = []
    for _ in range(n_instrs):
        opcode, kind, *args = r.take(_INSTR, "instruction")
        op, type_ = _pick(OPCODES, opcode, "opcode"), _pick(TYPES, kind, "type")
        n = INSTRUCTIONS[op][0]
        if any(a != _NONE16 for a in args[n:]):
            _fail(f"{op}: takes {n} arguments")
        imm: float | int | None = None
        if op == "const":
            raw = r.raw(8, "constant")
            imm = struct.unpack("<d" if type_ in _FLOAT else "<q", raw)[0]
            if imm != imm:
                imm = math.nan  # the one NaN object: records stay equal to what was encoded
                if raw != struct.pack("<d", math.nan):
                    _fail("const: not the canonical NaN")
        instrs.append(Instr(op, tuple(args[:n]), type_, imm))
    return Body(inputs, tuple(instrs), result)


def check(nest: Nest) -> None:
    """Raises EncodingError unless the nest keeps every rule of kernel.Nest, with bodies whose types fit."""
    loops, parallel = len(nest.loops), nest.parallel
    if nest.kind not in KINDS:
        _fail(f"kind {nest.kind!r} is unknown")
    if loops > MAX_LOOPS or len(nest.operands) > MAX_OPERANDS:
        _fail(f"{loops} loops and {len(nest.operands)} operands; at most {MAX_LOOPS} and {MAX_OPERANDS}")
    if not 0 <= parallel <= loops or (nest.kind == "map" and parallel != loops):
        _fail(f"{nest.kind} with {parallel} parallel of {loops} loops")
    for loop in nest.loops:
        if not _LOOP_NAME.fullmatch(loop.name) or not 0 <= loop.extent <= MAX_EXTENT:
            _fail(f"loop {loop.name[:40]!r} of extent {loop.extent}")
    if not 0 <= nest.n_term <= len(nest.operands):
        _fail(f"term of {nest.n_term} operands of {len(nest.operands)}")
    if nest.kind in ("mac", "fma", "lookup") and nest.n_term != 2:
        _fail(f"{nest.kind} needs two operands in its term, not {nest.n_term}")
    if nest.kind in ("sum", "prod", "max", "min", "or") and nest.n_term < 1:
        _fail(f"{nest.kind} without an operand")
    if nest.kind == "scatter":
        _check_scatter(nest)
    if nest.kind in ("mac", "lookup") and parallel == loops:
        _fail(f"{nest.kind} without a reduce loop")
    if nest.cut is not None and (not parallel <= nest.cut < loops or nest.slice < 1):
        _fail(f"cut of loop {nest.cut} in slices of {nest.slice}: not a reduce loop, or no slice length")
    if not 0 <= nest.slice < 2**32:
        _fail(f"slice of {nest.slice}")
    if nest.lanes and parallel == loops:
        _fail("lanes without a reduce loop")
    for number, operand in enumerate((nest.out, *nest.operands)):
        _check_operand(nest, operand, "out" if number == 0 else f"operand {number - 1}", number == 0)
    compute = [COMPUTE_TYPE[o.dtype] for o in nest.operands]
    if nest.kind == "map":
        if nest.term is not None:
            _fail("map with a term")
        if nest.epilogue is None and len(nest.operands) != 1:
            _fail(f"map of {len(nest.operands)} operands without a body")
        given: list[str | None] = list(compute)
    else:
        if nest.term is not None:
            if nest.kind in ("mac", "or", "lookup"):
                _fail(f"{nest.kind} with a term")
            joined = [COMPUTE_TYPE[nest.out.dtype], compute[2]] if nest.kind == "scatter" else compute[: nest.n_term]
            _check_body(nest.term, list(joined), "term")
        given = [_accumulator(nest), *compute[nest.n_term :]]
        if nest.epilogue is None and len(given) != 1:
            _fail("operands after the term, but no epilogue")
    if nest.epilogue is not None:
        _check_body(nest.epilogue, given, "epilogue")
    _check_f64(nest)


def _check_f64(nest: Nest) -> None:
    """Engines run kernels with f64 without flushing, so f32 arithmetic, which flushes, has no place there."""
    bodies = [b for b in (nest.term, nest.epilogue) if b is not None]
    types = {t for b in bodies for t in (*b.inputs, *(i.type for i in b.instrs))}
    wide = "f64" in types or any(o.dtype == "f64" for o in (nest.out, *nest.operands))
    if not wide:
        return
    if nest.kind in ("mac", "fma", "sum", "prod") and _accumulator(nest) == "f32":
        _fail(f"{nest.kind} in f32 beside f64")
    if nest.kind == "mac" and nest.loops[-1].extent > 1:
        _fail("f64 products have no pairs")
    for b in bodies:
        kinds = list(b.inputs)
        for i in b.instrs:
            seen = {i.type, *(kinds[a] for a in i.args)}
            if "f32" in seen and (i.op not in _KEEPING or (i.op == "cvt" and i.type == "mask")):
                _fail(f"{i.op} of f32 beside f64")
            kinds.append(i.type)


_KEEPING = frozenset(("const", "bits", "select", "cvt", "neg", "abs", "min", "max"))
"""Instructions of floats that neither flush nor read subnormals as zeros."""


def _check_scatter(nest: Nest) -> None:
    p = nest.parallel
    if len(nest.loops) != p + 1 or p < 1 or nest.n_term != 3 or len(nest.operands) != 3:
        _fail("scatter needs a loop of rows, one reduce loop and three operands")
    if nest.epilogue is not None or nest.cut is not None or nest.lanes:
        _fail("scatter with an epilogue, a cut or lanes")
    data, index, update = nest.operands
    if data.dtype != nest.out.dtype or COMPUTE_TYPE.get(index.dtype) not in _INT:
        _fail(f"scatter of {data.dtype} to {nest.out.dtype} at {index.dtype}")
    for o, loops in ((data, (p,)), (index, range(p)), (update, (0,))):
        if any(o.strides[i] or o.tables[i] is not None for i in loops if i < len(o.strides) == len(o.tables)):
            _fail("scatter: data moves with the updates, its rows' numbers or updates with the rows")


def _accumulator(nest: Nest) -> str | None:
    """The type of the accumulator; None where the kind leaves it open."""
    if nest.term is not None:
        types = [*nest.term.inputs, *(i.type for i in nest.term.instrs)]
        return types[nest.term.result]
    return COMPUTE_TYPE[nest.operands[1 if nest.kind == "lookup" else 0].dtype]


def _check_operand(nest: Nest, o: Operand, where: str, is_out: bool) -> None:
    if o.dtype not in COMPUTE_TYPE:
        _fail(f"{where}: no kernel computes with {o.dtype!r}")
    if len(o.strides) != len(nest.loops) or len(o.tables) != len(nest.loops):
        _fail(f"{where}: {len(o.strides)} strides and {len(o.tables)} tables for {len(nest.loops)} loops")
    for loop, (stride, table) in enumerate(zip(o.strides, o.tables, strict=True)):
        if not -MAX_STRIDE <= stride <= MAX_STRIDE:
            _fail(f"{where}: stride {stride}")
        if table is not None and not 0 <= table < MAX_TABLES:
            _fail(f"{where}: table {table}")
        if is_out and loop >= nest.parallel and (stride or table is not None):
            _fail(f"out moves with reduce loop {loop}")


def _check_body(body: Body, given: list[str | None], where: str) -> None:
    if len(body.inputs) != len(given):
        _fail(f"{where}: {len(body.inputs)} inputs where the kernel gives {len(given)}")
    for number, (have, want) in enumerate(zip(body.inputs, given, strict=True)):
        if have not in TYPES or (want is not None and have != want):
            _fail(f"{where}: input {number} is {have}, the kernel gives {want}")
    if len(body.instrs) > MAX_INSTRS:
        _fail(f"{where}: {len(body.instrs)} instructions, more than {MAX_INSTRS}")
    types = list(body.inputs)
    for i in body.instrs:
        label = f"{where}: value {len(types)}, {i.op}"
        if i.op not in OPCODES or i.type not in TYPES:
            _fail(f"{label}: unknown instruction or type {i.type!r}")
        if len(i.args) != INSTRUCTIONS[i.op][0]:
            _fail(f"{label}: {len(i.args)} arguments, takes {INSTRUCTIONS[i.op][0]}")
        if not all(0 <= a < len(types) for a in i.args):
            _fail(f"{label}: arguments {i.args} are not all earlier values")
        _check_types(label, i, [types[a] for a in i.args])
        types.append(i.type)
    if not 0 <= body.result < len(types):
        _fail(f"{where}: result {body.result} of {len(types)} values")


_RANGE = {"i32": range(-(2**31), 2**31), "i64": range(-(2**63), 2**63), "mask": range(2)}


def _is_f32(value: float | int) -> bool:
    try:
        return value != value or struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False


def _check_types(label: str, i: Instr, args: list[str]) -> None:
    if (i.imm is None) == (i.op == "const"):
        _fail(f"{label}: a constant, and nothing else, has an immediate")
    if i.op == "const":
        assert i.imm is not None
        if i.type == "f64":
            fits = isinstance(i.imm, float)
        else:
            fits = _is_f32(i.imm) if i.type == "f32" else isinstance(i.imm, int) and i.imm in _RANGE[i.type]
        if not fits:
            _fail(f"{label}: {i.imm} is no {i.type}")
        good = True
    elif i.op == "select":
        good = args == ["mask", i.type, i.type]
    elif i.op == "bits":
        good = {i.type, args[0]} in ({"f32", "i32"}, {"f64", "i64"})
    elif i.op == "cvt":
        good = True
    else:
        results, rule = _RULES[i.op]
        good = i.type in results and len(set(args)) == 1 and (rule == "=" or args[0] == i.type)
    if not good:
        _fail(f"{label}: no {i.op} from {', '.join(args)} to {i.type}")
