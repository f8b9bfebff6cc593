"""print -> parse -> print is a fixed point, and every fault names line, column and a way out."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from d1c.errors import ParseError
from d1c.ir.attributes import ATTRIBUTES
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.text import parse, print_module
from d1c.ir.types import ScalarType, TensorType
from d1c.ops.opdef import REGISTRY, OpDef, load_all
from d1c.target.dtypes import BF16, F32, I64, DType, dtype


@dataclass(frozen=True)
class Point:
    x: int

    def __str__(self) -> str:
        return f'at "{self.x}"'

    @classmethod
    def parse(cls, text: str) -> "Point":
        if not text.startswith('at "'):
            raise ValueError(f"{text!r} is not a point")
        return cls(int(text[4:-1]))


@dataclass(frozen=True, slots=True)
class AllKinds:
    axes: tuple[int, ...]
    alpha: float = 0.0
    lo: float | None = None
    name: str = ""
    flag: bool = False
    pair: tuple[str, int] = ("", 0)
    nested: tuple[tuple[int, ...], ...] = ()
    point: Point | None = None
    to: DType = F32
    number: float | int = 0


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    load_all()
    monkeypatch.setitem(ATTRIBUTES, "point", Point)
    for name, attrs in (("graph.t_any", AllKinds), ("graph.t_bare", None), ("graph.t_region", None)):
        extra = {"attrs": attrs} if attrs else {}
        monkeypatch.setitem(REGISTRY, name, OpDef(name, "structural", lambda types, attrs: (), **extra))
    yield


def fixed_point(module: Module) -> Module:
    text = print_module(module)
    again = parse(text, constants=module.constants)
    assert print_module(again) == text
    return again


GOLDEN = """\
d1c.module graph {policy = "bf16", outputs = ["y"], "func" = {a = 1, "b c" = []}} {
  func @main(%x: tensor<1x4x4x8xf32>, %"in:0": tensor<bf16>, %"3": tensor<0x2xi64>) {
    %w = graph.t_any {axes = [1, -2], alpha = -0.0, lo = inf} : tensor<3x3x4x8x2xbf16>
    %0, %1 = graph.t_bare(%x, %w) : (tensor<1x4x4x8xf32>, tensor<2xcf8_143<7>>) loc("Conv \\"0\\" 卷")
    %2 = graph.t_region(%0) ({
      ^(%a: f32, %3: f32):
      %4 = graph.t_bare(%a, %3) : f32
      graph.t_bare(%4)
    }, {
      ^(%a: f32):
      graph.t_bare(%a)
    }) : tensor<f32> loc("g")
    %a = graph.t_bare : tensor<f32>
    %3 = graph.t_any {axes = [], pair = ["q", 2], point = #point"at \\"7\\"", to = "bf16", number = 1.0} : f32
    graph.t_bare(%2, %"in:0", %a)
  }
  constants {
    "a" = dense<[1.0, -0.0, 0.1, inf, 1e-45, 16777216.0]> : 2x3xf32
    "b" = dense<[true, false]> : 2xbool
    "n" = raw<0000c0ff> : f32
    "z" = dense<[]> : 0xbf16
  }
}
"""


def test_golden() -> None:
    module = parse(GOLDEN)
    assert print_module(module) == GOLDEN
    main = module.function()
    assert [a.name for a in main.block.args] == ["x", "in:0", "3"]
    assert main.block.ops[0].attrs == AllKinds((1, -2), alpha=-0.0, lo=math.inf)
    assert math.copysign(1, main.block.ops[0].attrs.alpha) == -1
    assert main.block.ops[1].results[1].type == TensorType((2,), dtype("cf8_143<7>"))
    assert main.block.ops[1].origin == 'Conv "0" 卷'
    assert main.block.ops[2].regions[0].ops[0].operands == main.block.ops[2].regions[0].args
    assert main.block.ops[4].attrs == AllKinds((), pair=("q", 2), point=Point(7), to=BF16, number=1.0)
    assert module.attrs == {"policy": "bf16", "outputs": ("y",), "func": {"a": 1, "b c": ()}}
    expected = np.array([1, -0.0, 0.1, np.inf, 1e-45, 2**24], np.float32).reshape(2, 3)
    assert module.constants["a"].tobytes() == expected.tobytes()
    assert module.constants["n"].tobytes() == bytes.fromhex("0000c0ff")
    assert module.constants["z"].shape == (0,)


def test_comments_and_free_form() -> None:
    text = 'd1c.module graph{func@main(){// c\n%long_name=graph.t_any{axes=[ 1 ,2 ],}:f32'.replace(",}", "}")
    module = parse(text + "\n graph.t_bare}} // end")
    assert print_module(module).splitlines()[2] == "    %long_name = graph.t_any {axes = [1, 2]} : f32"


def test_names_are_unique_and_wishes_are_kept() -> None:
    x, y, bad = (Value(ScalarType(F32), n) for n in ("v", "v", "a/b"))
    makers = Op("graph.t_bare", (), results=(x,)), Op("graph.t_bare", (), results=(y, bad))
    ops = (*makers, Op("graph.t_bare", (y, x, bad)))
    module = Module("graph", (Function("main", Block((), ops)),))
    assert "graph.t_bare(%0, %v, %1)" in print_module(module)
    fixed_point(module)


def test_external_constants() -> None:
    data = np.arange(40, dtype=np.float32).reshape(5, 8)
    module = Module("graph", (), {"w": data, "i": np.array(7, np.int64)})
    text = print_module(module)
    assert '"i" = dense<[7]> : i64' in text
    assert fixed_point(module).constants["w"] is data
    bare = parse(text)
    assert dict(bare.constants) == {"i": 7}
    assert print_module(bare) == text
    with pytest.raises(ParseError, match="the data given for constant \"w\" is not what the text names"):
        parse(text, constants={"w": data + 1})


@pytest.mark.parametrize("numpy_type", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64])
def test_inline_constants_are_exact(numpy_type: type) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = int(rng.integers(0, 17))
        array = np.frombuffer(rng.bytes(size * np.dtype(numpy_type).itemsize), numpy_type)
        again = fixed_point(Module("graph", (), {"c": array})).constants["c"]
        assert again.dtype == array.dtype and again.tobytes() == array.tobytes()


@pytest.mark.parametrize("seed", range(30))
def test_random_modules(seed: int) -> None:
    rng = random.Random(seed)
    names = ["", "a", "b", "x y", "0", "a.1"]

    def value() -> Value:
        shape = tuple(rng.randrange(5) for _ in range(rng.randrange(4)))
        return Value(rng.choice([ScalarType(F32), TensorType(shape, BF16), TensorType(shape, I64)]), rng.choice(names))

    def block(outer: list[Value], depth: int) -> Block:
        args = tuple(value() for _ in range(rng.randrange(3)))
        known, ops = [*outer, *args], []
        for _ in range(rng.randrange(5)):
            operands = tuple(rng.choice(known) for _ in range(rng.randrange(3))) if known else ()
            regions = tuple(block(known, depth + 1) for _ in range(rng.randrange(3))) if depth < 2 else ()
            results = tuple(value() for _ in range(rng.randrange(3)))
            floats = [0.1, 1e300, -0.0, math.inf, math.nan, 5e-324, 3]
            attrs = AllKinds((1, 2)[: rng.randrange(3)], rng.choice(floats), rng.choice([None, 1.5]), rng.choice(names))
            name = rng.choice(["graph.t_any", "graph.t_bare"])
            extra = {"attrs": attrs} if name == "graph.t_any" else {}
            ops.append(Op(name, operands, results=results, regions=regions, origin=rng.choice(names), **extra))
            known += results
        return Block(args, tuple(ops))

    module = Module("graph", tuple(Function(f"f{i}", block([], 0)) for i in range(2)))
    again = fixed_point(module)
    for ours, theirs in zip(module.functions, again.functions, strict=True):
        for a, b in zip(ours.block.walk(), theirs.block.walk(), strict=True):
            assert (a.name, repr(a.attrs).replace("=3,", "=3.0,"), a.origin) == (b.name, repr(b.attrs), b.origin)
            assert [v.type for v in (*a.operands, *a.results)] == [v.type for v in (*b.operands, *b.results)]


BODY = "d1c.module graph {\n  func @main(%x: tensor<2xf32>) {\n    HERE\n    graph.t_bare(%x)\n  }\n}\n"


@pytest.mark.parametrize(
    ("line", "at", "message", "remedy"),
    [
        ("graph.t_bear(%x)", "graph.t_bear", "unknown op graph.t_bear", "did you mean graph.t_bare?"),
        ("graph.t_bare(%x, %y)", "%y", "undefined value %y", ""),
        ("%x = graph.t_bare : f32", "%x", "value %x is defined twice, first in line 2", ""),
        ("%a, %a = graph.t_bare : (f32, f32)", "%a = ", "value %a is defined twice, first in line 3", ""),
        ("%a = graph.t_bare : (f32, f32)", "graph.t_bare", "graph.t_bare has 1 results but 2 result types", ""),
        ("%a = graph.t_bare", "graph.t_bare", "graph.t_bare has 1 results but 0 result types", ""),
        ("graph.t_any", "graph.t_any", "graph.t_any needs attribute axes, of type tuple[int, ...]", ""),
        ("graph.t_any {axis = [1]}", "axis", "graph.t_any has no attribute axis", "did you mean axes?"),
        ("graph.t_bare {q = 1}", "q =", "graph.t_bare has no attribute q", "it has no attributes"),
        ("graph.t_any {axes = [1.5]}", "axes", "attribute axes of graph.t_any must be tuple[int, ...], not [1.5]", ""),
        ("graph.t_any {axes = [1], flag = 1}", "flag", "attribute flag of graph.t_any must be bool, not 1", ""),
        ("graph.t_any {axes = [], axes = []}", "axes = []}", "attribute axes of graph.t_any is given twice", ""),
        ("graph.t_any {axes = [], to = \"f99\"}", "to", "attribute to of graph.t_any must be DType, not \"f99\"", ""),
        ("graph.t_any {axes = [], point = #point\"q\"}", "#point", "attribute #point: 'q' is not a point", ""),
        ("graph.t_any {axes = [], point = #pint\"q\"}", "#pint", "attribute #pint: unknown kind", ""),
        ("%a = graph.t_bare : tensor<2xf99>", "tensor<", "bad type: unknown element type 'f99'", ""),
        ("%a = graph.t_bare : tensor<2,f32>", "tensor<", "bad type: 2 is not DIMxDIMx...ELEMENT", ""),
        ("%a = graph.t_bare : window<2xf32>", "window<", "bad type: a window needs a second part, [need]", ""),
        ("graph.t_bare(%x", "graph.t_bare(%x)", None, "expected ')' or ','"),
        ("graph.t_bare(?)", "?", "unexpected character '?'", "expected %value or '{'"),
        ("%a = : f32", ": f32", "unexpected :", "expected an op"),
    ],
)
def test_faults_say_where(line: str, at: str, message: str | None, remedy: str) -> None:
    text = BODY.replace("HERE", line)
    with pytest.raises(ParseError) as caught:
        parse(text, "model.d1")
    error = caught.value
    if message is None:  # the fault shows only in the next line
        assert (error.line, error.column) == (4, 5)
        return
    assert error.message == message
    assert (error.line, error.column) == (3, 5 + line.rindex(at))
    assert error.source == "    " + line
    assert str(error).splitlines()[2] == "      | " + " " * (4 + line.rindex(at)) + "^"
    assert f"where:   model.d1:3:{5 + line.rindex(at)}" in str(error)
    assert not remedy or error.remedy == remedy
    assert error.exit_code == 7 and error.to_json()["line"] == 3


CONSTANTS = 'd1c.module graph {\nconstants {\n"a" = '


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "unexpected end of the text", 1),
        ("d1c.module graph {\n  func @main() {\n", "unexpected end of the text", 3),
        ("d1c.module grph {\n}", "unknown level grph", 1),
        ("d1c.module graph {\n func @f() {}\n func @f() {}\n}", "function @f is defined twice", 3),
        (CONSTANTS + 'dense<[1]> : 2xf32\n}}', 'data of constant "a" does not fit its type', 3),
        (CONSTANTS + 'dense<[300]> : 1xi8\n}}', 'data of constant "a" does not fit its type', 3),
        (CONSTANTS + 'dense<[1]> : 1xf32\n"a" = raw<00> : i8}}', 'constant "a" is given twice', 4),
    ],
)
def test_module_faults(text: str, message: str, line: int) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.message.startswith(message)
    assert caught.value.line == line


def test_values_of_a_region_end_with_it() -> None:
    with pytest.raises(ParseError, match="undefined value %a"):
        parse(BODY.replace("HERE", "graph.t_region ({ %a = graph.t_bare : f32 })  graph.t_bare(%a)"))


def test_origins_of_programs_written_by_hand() -> None:
    module = parse(BODY.replace("HERE", 'graph.t_bare loc("n")'), "a.d1", origins=True)
    assert [op.origin for op in module.function().block.ops] == ["n", "a.d1:4"]


def test_printing_refuses_unregistered_attributes() -> None:
    with pytest.raises(TypeError, match="no text form for complex: register it"):
        print_module(Module("graph", (), attrs={"a": 1j}))
