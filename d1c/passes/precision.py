"""Give every value its storage type by the precision policy, so that each rounding is one visible step.

Before:
    d1c.module graph {
      func @main(%x: tensor<4x2xf32>) {
        %w = graph.const {name = "w"} : tensor<2x3xf32>
        %b = graph.const {name = "b"} : tensor<3xf32>
        %h = graph.fused(%x, %w, %b) {out = "f32"} ({
        ^(%x_1: tensor<4x2xf32>, %w_1: tensor<2x3xf32>, %b_1: tensor<3xf32>):
          %i = graph.matmul(%x_1, %w_1) : tensor<4x3xf32>
          %j = graph.add(%i, %b_1) : tensor<4x3xf32>
          graph.yield(%j)
        }) : tensor<4x3xf32>
        graph.return(%h)
      }
      constants {
        "b" = dense<[0.5, 0.0, -0.5]> : 3xf32
        "w" = dense<[1.0, 2.0, 3.001, 4.0, 5.0, 6.0]> : 2x3xf32
      }
    }

After:
    d1c.module graph {precision = "bf16"} {
      func @main(%x: tensor<4x2xf32>) {
        %b = graph.const {name = "b"} : tensor<3xf32>
        %x_bf16 = graph.fused(%x) {out = "bf16"} ({
          ^(%0: tensor<4x2xf32>):
          %1 = graph.cast(%0) {to = "bf16"} : tensor<4x2xbf16>
          graph.yield(%1)
        }) : tensor<4x2xbf16>
        %w = graph.const {name = "w"} : tensor<2x3xbf16>
        %h = graph.fused(%x_bf16, %w, %b) {out = "f32"} ({
          ^(%x_1: tensor<4x2xbf16>, %w_1: tensor<2x3xbf16>, %b_1: tensor<3xf32>):
          %i = graph.matmul(%x_1, %w_1) : tensor<4x3xf32>
          %j = graph.add(%i, %b_1) : tensor<4x3xf32>
          graph.yield(%j)
        }) : tensor<4x3xf32>
        graph.return(%h)
      }
      constants {
        "b" = dense<[0.5, 0.0, -0.5]> : 3xf32
        "w" = dense<[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> : 2x3xbf16
      }
    }

Policy f32 stores floats as f32. Policy bf16, after `fuse`:

- weights of the matrix unit and lookup tables become bf16 constants (RNE); other constants stay f32, also the weights
  of depthwise convolutions, which are few and which the vector unit reads;
- a group's result is stored as bf16, but f32 where it is a result of the model (no second rounding), comes from a
  reduction (sums, maxima) that anything but contractions reads, or is a position of which others make indices (by
  floor, or conversion to i32 or i64); an attention's likewise, and its queries, keys and values are bf16;
- copies (pad, concat, pack, lookup, scatter) keep their operands' type, but a scatter that adds, multiplies or compares
  stores its steps as f32;
- a contraction that would read f32 gets a group of one `graph.cast` in front, which is the rounding of an input;
- inside a group values are f32: bf16 operands of elementwise operations are widened by a `graph.cast`, exactly;
- results of the model have the type that it says, inputs as well.

Under both policies f16 values of the model are computed in f32. f64, integers and booleans are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d1c.errors import UsageError
from d1c.ir.core import Block, Module, Op, Value
from d1c.ops.graph.attention import OPERANDS, attention_type
from d1c.ops.graph.structural import FusedAttrs, fused_type
from d1c.ops.opdef import opdef
from d1c.passes.rebuild import CONST, RETURN, Rebuild, main_ops, tensor
from d1c.target.dtypes import BF16, F32, F64
from d1c.target.numerics import round_to, widen

POLICIES = ("f32", "bf16")
KEPT = (F32, BF16, F64)
"""Float types of the graph that stay as they are."""
COPIES = ("map", "view")
ATTENTION = "graph.attention"


def anchor(op: Op) -> Op | None:
    """The contraction, reduction or pool of a fused group."""
    inner = op.regions[0].ops if op.regions else ()
    return next((o for o in inner if opdef(o.name).kind in ("contract", "reduce")), None)


def contracted(op: Op) -> list[int]:
    """The operands of a fused group that its contraction reads; of an attention, queries, keys and values."""
    if op.name == ATTENTION:
        return list(range(OPERANDS))
    a = anchor(op)
    if a is None or opdef(a.name).kind != "contract":
        return []
    return [i for i, v in enumerate(op.regions[0].args) if v in a.operands]


def places(op: Op) -> bool:
    """Whether a fused group makes indices of floats: what it reads are positions, of which bf16 keeps too little."""
    inner = op.regions[0].ops if op.regions else ()
    return any(
        o.name == "graph.floor"
        or (o.name == "graph.cast" and o.attrs.to in ("i32", "i64") and tensor(o.operands[0]).dtype.is_float)
        for o in inner
    )


def on_vector_unit(op: Op) -> bool:
    """Whether a group's contraction accumulates there (a depthwise convolution), not on the matrix unit."""
    a = anchor(op)
    structure = opdef(a.name).structure if a is not None else None
    if a is None or structure is None:
        return False
    types, results = (tuple(v.type for v in values) for values in (a.operands, a.results))
    return structure(types, a.attrs, results).kind == "fma"


def demands(ops: Sequence[Op]) -> dict[Value, set[str]]:
    """Who reads each value, through views and copies: contract, output, place (through elementwise groups), other."""
    out: dict[Value, set[str]] = {}
    for op in reversed(ops):
        if op.name == RETURN or opdef(op.name).kind == "loop":
            for v in op.operands:
                out.setdefault(v, set()).add("output")
        elif opdef(op.name).kind in COPIES:
            for v in op.operands:
                out.setdefault(v, set()).update(out.get(op.result, ()))
        else:
            by_contraction = contracted(op)
            place = places(op) or (anchor(op) is None and "place" in out.get(op.result, ()))
            for i, v in enumerate(op.operands):
                out.setdefault(v, set()).add("contract" if i in by_contraction else "other")
                if place and i not in by_contraction:
                    out[v].add("place")
    return out


def retyped(block: Block, types: Sequence[Value]) -> Block:
    """A region whose arguments have the types of these operands; elementwise operations read bf16 through a cast."""
    args = tuple(Value(v.type, a.name) for v, a in zip(types, block.args, strict=True))
    new = dict(zip(block.args, args, strict=True))
    wide: dict[Value, Value] = {}
    ops: list[Op] = []

    def widened(value: Value) -> Value:
        if tensor(value).dtype != BF16:
            return value
        if value not in wide:
            row = opdef("graph.cast")
            made = row.attrs(to="f32")
            wide[value] = Value(row.infer((value.type,), made)[0], value.name)
            ops.append(Op("graph.cast", (value,), made, (wide[value],)))
        return wide[value]

    for op in block.ops:
        row = opdef(op.name)
        attrs, operands = op.attrs, tuple(new[v] for v in op.operands)
        if row.kind == "elementwise" and op.name != "graph.cast":
            operands = tuple(widened(v) for v in operands)
        if op.name == "graph.cast" and attrs.to == "f16":
            attrs = replace(attrs, to="f32")
        found = row.infer(tuple(v.type for v in operands), attrs)
        results = tuple(Value(t, r.name) for t, r in zip(found, op.results, strict=True))
        new.update(zip(op.results, results, strict=True))
        ops.append(replace(op, operands=operands, attrs=attrs, results=results))
    return Block(args, tuple(ops))


class Assign:
    def __init__(self, module: Module, policy: str) -> None:
        self.to = Rebuild(module)
        self.ops = main_ops(module)
        self.half = policy == "bf16"
        self.demands = demands(self.ops)
        self.rounded: dict[Value, Value] = {}

    def cast(self, value: Value, to: str, like: Op) -> Value:
        """A group that only converts."""
        x = Value(value.type, value.name)
        row = opdef("graph.cast")
        attrs = row.attrs(to=to)
        name = f"{value.name}_{to}"
        y = Value(row.infer((x.type,), attrs)[0], name)
        block = Block((x,), (Op("graph.cast", (x,), attrs, (y,), (), like.origin), Op("graph.yield", (y,))))
        made = Value(fused_type(block, FusedAttrs(to)), name)
        self.to.append(Op("graph.fused", (value,), FusedAttrs(to), (made,), (block,), like.origin))
        return made

    def narrow(self, value: Value, like: Op) -> Value:
        """The value as bf16: a rounded constant, or one rounding group for all that read it."""
        if not tensor(value).dtype.is_float or tensor(value).dtype in (BF16, F64):
            return value
        if value not in self.rounded:
            data = self.to.data(value)
            if data is not None:
                self.rounded[value] = self.to.const(round_to(widen(data), BF16), value.name)
            else:
                self.rounded[value] = self.cast(value, "bf16", like)
        return self.rounded[value]

    def constant(self, op: Op) -> None:
        """Floats of less than f32 become f32. Weights and tables are rounded where they are read."""
        if (t := tensor(op.result)).dtype.is_float and t.dtype not in KEPT:
            data = self.to.constants[op.attrs.name].astype("float32")
            self.to.new[op.result] = self.to.const(data, op.result.name)
        else:
            self.to.copy(op)

    def fused(self, op: Op) -> None:
        operands = list(self.to.values(op.operands))
        if self.half:
            vector = on_vector_unit(op)
            for i in contracted(op):
                if not vector or self.to.data(operands[i]) is None:
                    operands[i] = self.narrow(operands[i], op)
        block = retyped(op.regions[0], operands)
        (result,) = block.ops[-1].operands
        out = tensor(result).dtype.name
        if self.half and tensor(result).dtype.is_float and tensor(result).dtype != F64:
            readers, first = self.demands.get(op.result, set()), anchor(op)
            sums = first is not None and hasattr(first.attrs, "axes") and readers != {"contract"}
            out = "f32" if readers & {"output", "place"} or sums else "bf16"
        elif out != op.attrs.out and not tensor(op.result).dtype.is_float:
            out = op.attrs.out
        attrs = FusedAttrs(out)
        made = Value(fused_type(block, attrs), op.result.name)
        self.to.append(replace(op, operands=tuple(operands), attrs=attrs, results=(made,), regions=(block,)))
        self.to.new[op.result] = made

    def attention(self, op: Op) -> None:
        """Queries, keys and values as a contraction's operands; scores and sums are f32 inside."""
        operands = list(self.to.values(op.operands))
        out = "f32"
        if self.half:
            operands[:OPERANDS] = [self.narrow(v, op) for v in operands[:OPERANDS]]
            out = "f32" if self.demands.get(op.result, set()) & {"output", "place"} else "bf16"
        block = retyped(op.regions[0], [op.regions[0].args[0], *operands[OPERANDS:]])
        attrs = replace(op.attrs, out=out)
        made = Value(attention_type(tuple(v.type for v in operands), attrs), op.result.name)
        self.to.append(replace(op, operands=tuple(operands), attrs=attrs, results=(made,), regions=(block,)))
        self.to.new[op.result] = made

    def copy(self, op: Op) -> None:
        """Copies keep the storage type; of operands with several types the one that their reader wants."""
        operands = list(self.to.values(op.operands))
        if self.half:
            row = opdef(op.name)
            mixed = len({tensor(v).dtype for v in operands if tensor(v).dtype.is_float}) > 1
            if row.kind == "lookup":
                operands[1] = self.narrow(operands[1], op)
            elif "combine" in row.facts and row.facts["combine"](op.attrs):
                operands = [self.cast(v, "f32", op) if tensor(v).dtype == BF16 else v for v in operands]
            elif mixed and "output" not in self.demands.get(op.result, set()):
                operands = [self.narrow(v, op) for v in operands]
            elif mixed:
                operands = [self.cast(v, "f32", op) if tensor(v).dtype == BF16 else v for v in operands]
        self.to.append(replace(op, operands=tuple(operands), results=self.infer(op, operands)))

    def infer(self, op: Op, operands: Sequence[Value]) -> tuple[Value, ...]:
        types = opdef(op.name).infer(tuple(v.type for v in operands), op.attrs)
        results = tuple(Value(t, r.name) for t, r in zip(types, op.results, strict=True))
        self.to.new.update(zip(op.results, results, strict=True))
        return results

    def returned(self, op: Op) -> None:
        """Results as the model declares them."""
        values = []
        for old in op.operands:
            new, want = self.to.value(old), tensor(old).dtype
            if want.is_float and tensor(new).dtype != want:
                new = self.cast(new, want.name, op)
            values.append(new)
        self.to.append(replace(op, operands=tuple(values)))

    def loop(self, op: Op) -> None:
        """A loop takes and gives values in the types that its body states."""
        operands = []
        for old in op.operands:
            new, want = self.to.value(old), tensor(old).dtype
            operands.append(new if tensor(new).dtype == want else self.cast(new, want.name, op))
        self.to.append(replace(op, operands=tuple(operands)))
        self.widen(op.results)

    def widen(self, values: Sequence[Value]) -> None:
        """Values in types that the graph does not compute in are converted once."""
        for x in values:
            if tensor(x).dtype.is_float and tensor(x).dtype not in KEPT:
                self.to.new[x] = self.cast(x, "f32", Op("", (), results=(x,)))

    def run(self) -> None:
        self.widen(self.to.module.function().block.args)
        for op in self.ops:
            if op.name == CONST:
                self.constant(op)
            elif op.name == RETURN:
                self.returned(op)
            elif opdef(op.name).kind == "loop":
                self.loop(op)
            elif op.name == ATTENTION:
                self.attention(op)
            elif op.regions:
                self.fused(op)
            else:
                self.copy(op)


def run(module: Module, policy: str = "f32") -> Module:
    """Assign storage types. `policy`: f32 or bf16; Module.attrs["precision"] says which."""
    if policy not in POLICIES:
        raise UsageError(f"unknown precision {policy!r}", rule=f"precisions are {', '.join(POLICIES)}")
    assign = Assign(module, policy)
    assign.run()
    return assign.to.finish({"precision": policy})
