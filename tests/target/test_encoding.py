"""Kernel records: bytes assembled by hand from docs/binary.md, exact inverse, and refusals."""

import dataclasses
import math
import random
import struct

import pytest

from d1c.target import encoding
from d1c.target.encoding import EncodingError, code_bytes, decode, encode
from d1c.target.kernel import INSTRUCTIONS, Body, Instr, Loop, Nest, Operand
from d1c.target.numerics import Recorder, erf, exp


def words(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts).replace(" ", ""))


COPY = Nest("map", (Loop("d0", 5),), 1, (Operand("bf16", (2,), (None,)),), Operand("bf16", (1,), (None,)), 0)
COPY_BYTES = words(
    "01 00 01 01 01 00 ff 00", "00000000 38000000",  # version, map, 1 loop, 1 parallel, 1 operand, no cut; code 56
    "05000000 02000000",  # loop: extent 5, name of 2 characters
    "02 00 0000 00000000", "01000000 ffff 0000",  # out: bf16; stride 1, no table
    "02 00 0000 00000000", "02000000 ffff 0000",  # operand 0: stride 2
    "64 30 00 00 00 00 00 00",  # "d0"
)  # fmt: skip

RELU = Nest(
    "map", (Loop("n", 2), Loop("c", 3)), 2, (Operand("f32", (0, -1), (0, None)),),
    Operand("bf16", (3, 1), (None, None)), 0,
    epilogue=Body(("f32",), (Instr("const", (), "f32", 0.5), Instr("max", (0, 1), "f32")), 2),
)  # fmt: skip
RELU_BYTES = words(
    "01 00 02 02 01 00 ff 04", "00000000 78000000",  # flags: epilogue; code 120
    "02000000 01000000", "03000000 01000000",
    "02 00 0000 00000000", "03000000 ffff 0000", "01000000 ffff 0000",
    "01 00 0000 00000000", "00000000 0000 0000", "ffffffff ffff 0000",  # table 0 along n; stride -1 along c
    "0100 0200 0200 0000", "00 00000000000000",  # body: 1 input, 2 instructions, result value 2; input f32
    "00 00 ffff ffff ffff", "000000000000e03f",  # const f32 0.5
    "09 00 0000 0100 ffff",  # max of values 0 and 1
    "6e 63 000000000000",
)  # fmt: skip

MAC = Nest(
    "mac", (Loop("m", 8), Loop("n", 16), Loop("k", 64), Loop("e", 2)), 2,
    (Operand("bf16", (128, 0, 2, 1), (None,) * 4), Operand("bf16", (0, 2, 32, 1), (None,) * 4)),
    Operand("f32", (16, 1, 0, 0), (None,) * 4), 2, cut=2, slice=16,
)  # fmt: skip
MAC_BYTES = words(
    "01 01 04 02 02 02 02 00", "10000000 a8000000",  # mac, cut loop 2, slice 16, code 168
    "08000000 01000000", "10000000 01000000", "40000000 01000000", "02000000 01000000",
    "01 00 0000 00000000", "10000000ffff0000", "01000000ffff0000", "00000000ffff0000", "00000000ffff0000",
    "02 00 0000 00000000", "80000000ffff0000", "00000000ffff0000", "02000000ffff0000", "01000000ffff0000",
    "02 00 0000 00000000", "00000000ffff0000", "02000000ffff0000", "20000000ffff0000", "01000000ffff0000",
    "6d 6e 6b 65 00000000",
)  # fmt: skip


@pytest.mark.parametrize(("nest", "data"), [(COPY, COPY_BYTES), (RELU, RELU_BYTES), (MAC, MAC_BYTES)])
def test_bytes_by_hand(nest: Nest, data: bytes) -> None:
    assert encode(nest) == data
    assert decode(data) == (nest, len(data))
    assert decode(b"\0" * 8 + data + b"\1", 8) == (nest, len(data) + 8)
    assert code_bytes(nest) == struct.unpack_from("<I", data, 12)[0]


def test_every_instruction_has_a_number() -> None:
    assert set(encoding.OPCODES) == set(INSTRUCTIONS) and len(encoding.OPCODES) == len(INSTRUCTIONS)


def random_body(draw: random.Random, inputs: tuple[str, ...]) -> Body:
    r = Recorder(*inputs)
    values = list(r.inputs)
    for _ in range(draw.randrange(12)):
        floats = [v for v in values if v.type == "f32"] or [r.const(draw.choice([0.1, -0.0, math.inf, math.nan, 3]))]
        ints = [v for v in values if v.type == "i32"] or [r.const(-7, "i32")]
        a, b, i = draw.choice(floats), draw.choice(floats), draw.choice(ints)
        made = draw.choice(
            [
                lambda a=a, b=b: r.add(a, b), lambda a=a, b=b: r.select(r.lt(a, b), a, b), lambda a=a: r.bits(a, "i32"),
                lambda a=a: exp(r, a), lambda a=a, b=b: r.fma(a, b, a), lambda a=a: erf(r, a), lambda i=i: r.shl(i, 3),
                lambda i=i: r.cvt(i, "i64"), lambda i=i: r.cvt(r.and_(r.eq(i, 2), r.ne(i, 3)), "f32"),
                lambda a=a: r.sqrt(a),
            ]
        )()  # fmt: skip
        values.append(made)
    return r.body(draw.choice(values))


def random_nest(draw: random.Random) -> Nest:
    loops = tuple(Loop(f"l{i}", draw.randrange(0, 99)) for i in range(draw.randrange(2, 7)))
    parallel = draw.randrange(0, len(loops))
    kind = draw.choice(["map", "fma", "sum", "mac"])
    if kind == "map":
        parallel = len(loops)

    def operand(is_out: bool) -> Operand:
        live = [not is_out or i < parallel for i in range(len(loops))]
        strides = tuple(draw.randrange(-(2**31) + 1, 2**31) if x else 0 for x in live)
        return Operand(
            draw.choice(["f32", "bf16"]), strides, tuple(draw.choice([None, None, 0, 200]) if x else None for x in live)
        )

    n_term = {"map": 0, "sum": draw.choice([1, 2])}.get(kind, 2)
    extra = draw.randrange(1, 3)
    operands = tuple(operand(False) for _ in range(n_term + extra))
    term = random_body(draw, ("f32",) * n_term) if kind in ("sum", "fma") and draw.random() < 0.6 else None
    if term is not None:
        r = Recorder(*term.inputs)
        term = r.body(r.add(r.inputs[0], 1.5)) if kind == "sum" else None
    epilogue = random_body(draw, ("f32",) * (len(operands) if kind == "map" else 1 + extra))
    cut = draw.choice([None, *range(parallel, len(loops))])
    lanes = kind == "sum" and draw.random() < 0.5
    return Nest(
        kind, loops, parallel, operands, operand(True), n_term, term, epilogue, cut, 4 if cut is not None else 0, lanes
    )


def test_exact_inverse_on_random_kernels() -> None:
    draw = random.Random(11)
    for _ in range(200):
        nest = random_nest(draw)
        data = encode(nest)
        assert decode(data) == (nest, len(data)) and encode(decode(data)[0]) == data and len(data) % 8 == 0


def test_damage_is_an_error_or_another_valid_kernel() -> None:
    draw = random.Random(12)
    for _ in range(60):
        data = encode(random_nest(draw))
        for size in range(0, len(data), 8):
            with pytest.raises(EncodingError):
                decode(data[:size])
        for _ in range(30):
            damaged = bytearray(data)
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            try:
                nest, end = decode(bytes(damaged))
            except EncodingError:
                continue
            assert encode(nest) == damaged[:end]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "kernel header at 0 is cut off"),
        (patched(RELU_BYTES, 0, b"\2"), "version 2"),
        (patched(RELU_BYTES, 1, b"\x63"), "kind number 99"),
        (patched(RELU_BYTES, 2, b"\xff"), "255 loops"),
        (patched(RELU_BYTES, 3, b"\1"), "map with 1 parallel of 2 loops"),
        (patched(RELU_BYTES, 5, b"\2"), "term of 2 operands of 1"),
        (patched(RELU_BYTES, 6, b"\1"), "cut of loop 1"),
        (patched(RELU_BYTES, 7, b"\x0c"), "flags 12"),
        (patched(RELU_BYTES, 7, b"\x05"), "lanes without"),
        (patched(RELU_BYTES, 12, b"\0"), "code of 120 bytes"),
        (patched(RELU_BYTES, 32, b"\x63"), "element type number 99"),
        (patched(RELU_BYTES, 33, b"\1"), "reserved bytes"),
        (patched(RELU_BYTES, 68, b"\0\1"), "table 256"),
        (patched(RELU_BYTES, 72, b"\0\0\0\x80"), "stride -2147483648"),
        (patched(RELU_BYTES, 80, b"\2"), "2 inputs where the kernel gives 1"),
        (patched(RELU_BYTES, 84, b"\3"), "result 3 of 3 values"),
        (patched(RELU_BYTES, 88, b"\1"), "input 0 is i32"),
        (patched(RELU_BYTES, 96, b"\x63"), "opcode number 99"),
        (patched(RELU_BYTES, 97, b"\x09"), "type number 9"),
        (patched(RELU_BYTES, 98, b"\0\0"), "const: takes 0 arguments"),
        (patched(RELU_BYTES, 114, b"\2"), "not all earlier values"),
        (patched(RELU_BYTES, 112, b"\x09\1"), "no max from f32, f32 to i32"),
        (patched(RELU_BYTES, 112, b"\x15"), "no eq from f32, f32 to f32"),
        (patched(RELU_BYTES, 120, b"/"), "loop '/'"),
        (patched(RELU_BYTES, 127, b"\1"), "filler"),
        (patched(MAC_BYTES, 72, b"\1"), "out moves"),
        (patched(MAC_BYTES, 5, b"\1"), "mac needs two operands"),
        (patched(MAC_BYTES, 8, b"\0"), "no slice length"),
        (patched(MAC_BYTES, 4, b"\1"), ""),
    ],
)  # fmt: skip
def test_refusals(data: bytes, message: str) -> None:
    with pytest.raises(ValueError) as e:
        decode(data)
    assert message in str(e.value)


def test_encode_refuses_what_decode_would() -> None:
    bad_const = Body(("f32",), (Instr("const", (), "mask", 2),), 1)
    for nest in (
        dataclasses.replace(COPY, kind="tap"),
        dataclasses.replace(COPY, loops=(Loop("d" * 300, 5),)),
        dataclasses.replace(COPY, operands=(Operand("bf16", (1, 1), (None, None)),)),
        dataclasses.replace(COPY, operands=(*COPY.operands, *COPY.operands)),
        dataclasses.replace(RELU, epilogue=bad_const),
        dataclasses.replace(RELU, epilogue=Body(("f32",), (Instr("const", (), "f32", 0.1),), 1)),
        dataclasses.replace(RELU, epilogue=Body(("f32",), (Instr("const", (), "i32", 2**31),), 1)),
        dataclasses.replace(RELU, epilogue=Body(("f32",), (Instr("neg", (0,), "f32", 1.0),), 1)),
        dataclasses.replace(MAC, operands=(*MAC.operands, MAC.operands[0])),
    ):
        with pytest.raises(EncodingError):
            encode(nest)
