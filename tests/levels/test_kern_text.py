"""The kern level's text is one to one with the kernel records."""

import math
import random

import pytest

from d1c.errors import ParseError, VerifyError
from d1c.ir.text import parse, print_module
from d1c.ir.verify import verify
from d1c.ops.kern.nest import from_module, to_module
from d1c.target.kernel import INSTRUCTIONS, Body, Instr, Loop, Nest, Operand

MAC = Nest(
    "mac",
    (Loop("m", 4), Loop("n", 8), Loop("k", 16), Loop("e", 2)),
    2,
    (
        Operand("bf16", (32, 0, 2, 1), (None, None, None, None)),
        Operand("bf16", (0, 2, 16, 1), (None, None, None, None)),
        Operand("f32", (0, 1, 0, 0), (0, None, None, None)),
    ),
    Operand("bf16", (8, 1, 0, 0), (None, None, None, None)),
    2,
    epilogue=Body(
        ("f32", "f32"),
        (
            Instr("add", (0, 1), "f32"),
            Instr("const", (), "f32", -0.0),
            Instr("lt", (2, 3), "mask"),
            Instr("select", (4, 3, 2), "f32"),
        ),
        5,
    ),
    cut=2,
    slice=16,
)
GOLDEN = """\
d1c.module kern {
  func @k0() {
    kern.nest {kind = "mac", loops = [["m", 4], ["n", 8], ["k", 16], ["e", 2]], parallel = 2, out = "bf16[8*m + n]", \
operands = ["bf16[32*m + 2*k + e]", "bf16[2*n + 16*k + e]", "f32[n + t0[m]]"], n_term = 2, cut = "k", slice = 16, \
bodies = ["epilogue"]} ({
      ^(%acc: f32, %x2: f32):
      %0 = kern.add(%acc, %x2) : f32
      %1 = kern.const {value = -0.0} : f32
      %2 = kern.lt(%0, %1) : bool
      %3 = kern.select(%2, %1, %0) : f32
      kern.yield(%3)
    })
    kern.return
  }
}
"""


def test_golden_and_inverse() -> None:
    module = to_module({"k0": MAC})
    verify(module)
    assert print_module(module) == GOLDEN
    read = parse(GOLDEN)
    verify(read)
    (nest,) = from_module(read).values()
    assert nest == MAC
    assert math.copysign(1, nest.epilogue.instrs[1].imm) == -1


def random_body(rng: random.Random, inputs: int) -> Body:
    types = ["f32"] * inputs
    instrs: list[Instr] = []
    for _ in range(rng.randrange(6)):
        floats = [i for i, t in enumerate(types) if t == "f32"]
        op = rng.choice(["add", "fma", "lt", "const", "bits", "cvt", "sqrt"])
        if op == "const":
            kind, imm = rng.choice([("f32", 0.1), ("f32", math.inf), ("i32", 3), ("i64", -(2**40)), ("f32", 1e-45)])
            instrs.append(Instr(op, (), kind, imm))
        else:
            kind = {"lt": "mask", "bits": "i32", "cvt": rng.choice(["i32", "i64", "mask"])}.get(op, "f32")
            instrs.append(Instr(op, tuple(rng.choice(floats) for _ in range(INSTRUCTIONS[op][0])), kind))
        types.append(kind)
    return Body(("f32",) * inputs, tuple(instrs), rng.randrange(len(types)))


@pytest.mark.parametrize("seed", range(60))
def test_random_kernels_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 5)
    names = [rng.choice(["m", "n", "d0", "", "a b", "m"]) for _ in range(count)]

    def operand() -> Operand:
        return Operand(
            rng.choice(["bf16", "f32", "u8", "bool"]),
            tuple(rng.choice([0, 1, -3, 64]) for _ in range(count)),
            tuple(rng.choice([None, None, 0, 11]) for _ in range(count)),
        )

    operands = tuple(operand() for _ in range(rng.randint(1, 3)))
    n_term = rng.randint(1, len(operands))
    nest = Nest(
        rng.choice(["sum", "fma", "map", "lookup"]),
        tuple(Loop(n, rng.randint(1, 99)) for n in names),
        rng.randint(0, count),
        operands,
        operand(),
        n_term,
        random_body(rng, n_term) if rng.random() < 0.5 else None,
        random_body(rng, 1 + len(operands) - n_term) if rng.random() < 0.5 else None,
        rng.choice([None, rng.randrange(count)]),
        rng.randrange(64),
        rng.random() < 0.5,
    )
    kernels = {"a/b": nest, "k": MAC}
    module = to_module(kernels)
    verify(module)
    assert from_module(module) == kernels
    text = print_module(module)
    assert from_module(parse(text)) == kernels
    assert print_module(parse(text)) == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("32*m + 2*k", "32*m + 2*q", "'2*q' in 'bf16[32*m + 2*q + e]' is not STRIDE*LOOP or tN[LOOP] over loops m, n,"),
        ('cut = "k"', 'cut = "z"', "cut 'z' is none of the loops m, n, k, e"),
        ('kind = "mac"', 'kind = "mad"', "kind 'mad' is none of map, mac, fma"),
        ('"epilogue"]', '"prologue"]', "must name the 1 regions, as term or epilogue"),
        ("kern.add(%acc, %x2)", "kern.add(%acc)", "add takes 2 operands, not 1"),
        ("kern.lt(%0, %1) : bool", "kern.lt(%0, %1) : f32", "kern.lt: has results (f32)"),
        ("kern.select(%2, %1, %0)", "kern.select(%0, %1, %0)", "select takes a mask and two values of one type"),
    ],
)
def test_refusals(old: str, new: str, message: str) -> None:
    assert old in GOLDEN
    module = parse(GOLDEN.replace(old, new))
    with pytest.raises(VerifyError) as caught:
        verify(module)
    assert message in str(caught.value)


def test_unknown_instruction_is_a_parse_error() -> None:
    with pytest.raises(ParseError) as caught:
        parse(GOLDEN.replace("kern.select", "kern.selekt"))
    assert caught.value.line == 8
    assert caught.value.remedy == "did you mean kern.select?"
