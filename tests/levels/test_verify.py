"""Every rule of the verifier, and the rewriting helpers that passes are made of."""

from dataclasses import replace

import numpy as np
import pytest

from d1c.errors import VerifyError
from d1c.ir.core import Block, Function, Module, Op, Value
from d1c.ir.rewrite import dead_code
from d1c.ir.text import parse
from d1c.ir.types import TensorType
from d1c.ir.verify import verify
from d1c.ops.opdef import REGISTRY, OpDef, load_all
from d1c.target.dtypes import F32

T = TensorType((2,), F32)


def _same(types, attrs):
    if len(types) != 2 or types[0] != types[1]:
        raise ValueError("t_add takes two operands of one type")
    return (types[0],)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    load_all()
    for name in ("graph.t_add", "dist.t_add"):
        monkeypatch.setitem(REGISTRY, name, OpDef(name, "elementwise", _same))
    for name in ("graph.t_group", "dist.t_group"):
        infer_op = {"infer_op": lambda op: tuple(v.type for v in op.regions[0].ops[-1].operands)}
        monkeypatch.setitem(REGISTRY, name, OpDef(name, "structural", lambda t, a: (), facts=infer_op))
    for name in ("dist.yield", "dist.return"):
        monkeypatch.setitem(REGISTRY, name, OpDef(name, "structural", lambda t, a: ()))


def text(*lines, level="graph"):
    body = "\n".join(lines)
    return f"d1c.module {level} {{\nfunc @main(%x: tensor<2xf32>, %s: tensor<3xf32>) {{\n{body}\n}}\n}}\n"


def refusal(module, after=""):
    with pytest.raises(VerifyError) as caught:
        verify(module, after)
    return caught.value


GOOD = '%0 = graph.t_add(%x, %x) : tensor<2xf32> loc("Add_0")'


def test_accepts_regions_and_borrowed_ops():
    verify(parse(text(GOOD, "%1 = graph.t_group ({ graph.yield(%0) }) : tensor<2xf32>", "graph.return(%1)")))
    inner = "%2 = graph.t_add(%a, %a) : tensor<2xf32> graph.yield(%2)"
    group = f"%1 = dist.t_group ({{ ^(%a: tensor<2xf32>): {inner} }}) : tensor<2xf32>"
    verify(parse(text(group, "dist.return(%1)", level="dist")))


@pytest.mark.parametrize(
    ("lines", "message", "rule"),
    [
        (["%0 = graph.t_add(%x, %s) : tensor<2xf32>", "graph.return(%0)"],
         "graph.t_add: does not accept (tensor<2xf32>, tensor<3xf32>)", "t_add takes two operands of one type"),
        (["%0 = graph.t_add(%x) : tensor<2xf32>", "graph.return(%0)"],
         "graph.t_add: does not accept (tensor<2xf32>)", "t_add takes two operands of one type"),
        (["%0 = graph.t_add(%x, %x) : tensor<3xf32>", "graph.return(%0)"],
         "graph.t_add: has results (tensor<3xf32>)", "its operands and attributes give (tensor<2xf32>)"),
        (["%0 = graph.t_group ({ graph.yield(%x) }) : tensor<3xf32>", "graph.return(%0)"],
         "graph.t_group: has results (tensor<3xf32>)", "its operands and attributes give (tensor<2xf32>)"),
        (["%0 = dist.t_add(%x, %x) : tensor<2xf32>", "graph.return(%0)"],
         "dist.t_add: not an op of level graph", "a module holds ops of its own level"),
        ([GOOD], "func @main does not end in graph.return", "every block ends in its terminator"),
        ([], "func @main does not end in graph.return", "every block ends in its terminator"),
        (["%0 = graph.t_group ({ graph.return(%x) }) : tensor<2xf32>", "graph.return(%0)"],
         "a region of @main does not end in graph.yield", "every block ends in its terminator"),
        (["graph.return(%x)", "graph.return(%x)"], "graph.return: a terminator inside a block",
         "terminators stand last"),
        (['%c = graph.const {name = "c"} : tensor<2xf32>', "graph.return(%c)"],
         "graph.const: has type tensor<2xf32>", "the data of constant c is tensor<1xf32>"),
    ],
)  # fmt: skip
def test_refusals_of_text(lines, message, rule):
    module = replace(parse(text(*lines)), constants={"c": np.zeros(1, np.float32)})
    error = refusal(module)
    assert (error.message, error.rule) == (message, rule)
    assert error.exit_code == 8


def test_names_op_origin_and_pass():
    module = parse(text(GOOD.replace("2xf32> loc", "3xf32> loc"), "graph.return(%0)"))
    error = refusal(module, after="fuse")
    assert error.where == "Add_0"
    assert str(error) == (
        "invalid IR: graph.t_add: has results (tensor<3xf32>)\n"
        "  where:   Add_0\n"
        '  op:      %0 = graph.t_add(%x, %x) : tensor<3xf32> loc("Add_0")\n'
        "  after:   fuse\n"
        "  rule:    its operands and attributes give (tensor<2xf32>)\n"
        "  remedy:  this is a bug of d1c, in pass fuse, not of the model: report it with this text"
    )


def module_of(*ops, args=()):
    return Module("graph", (Function("main", Block(args, ops)),))


def test_ssa():
    x, y = Value(T, "x"), Value(T, "y")
    add, end = Op("graph.t_add", (x, x), results=(y,)), Op("graph.return", (y,))
    verify(module_of(add, end, args=(x,)))
    late = refusal(module_of(Op("graph.t_add", (y, x), results=(Value(T),)), add, end, args=(x,)))
    assert late.message == "graph.t_add: operand 0 (%y) is not defined before this op"
    assert refusal(module_of(add, add, end, args=(x,))).message == "graph.t_add: result %y is defined twice"
    assert refusal(module_of(end, args=(y, y))).message == "argument %y of @main is defined twice"
    inner = Op("graph.t_group", results=(Value(T),), regions=(Block((), (add, Op("graph.yield", (y,)))),))
    leak = refusal(module_of(inner, end, args=(x,)))
    assert leak.message == "graph.return: operand 0 (%y) is not defined before this op"


def test_rows_and_attributes():
    assert refusal(module_of(Op("graph.t_no"), Op("graph.return"))).message == "graph.t_no: unknown op"
    wrong = refusal(module_of(Op("graph.t_add", attrs=3), Op("graph.return")))
    assert wrong.message == "graph.t_add: attributes are a int, not a NoAttrs"
    twice = Module("graph", (Function("f", Block((), (Op("graph.return"),))),) * 2)
    assert refusal(twice).message == "function @f is defined twice"
    assert refusal(Module("test", ())).message == "unknown level test"


def test_dead_code():
    main = parse(text(
        "%a = graph.t_add(%x, %x) : tensor<2xf32>", "%b = graph.t_add(%a, %x) : tensor<2xf32>",
        "%c = graph.t_group ({ %d = graph.t_add(%a, %a) : tensor<2xf32> graph.yield(%x) }) : tensor<2xf32>",
        "graph.return(%c)",
    )).function()  # fmt: skip
    live = dead_code(main)
    assert [op.name for op in live.block.walk()] == ["graph.t_group", "graph.yield", "graph.return"]
