"""Attention: one op from queries, keys and values to the weighted values, without the scores ever stored whole (N10).

Scores come in chunks of CHUNK keys. A chunk has per row its largest score m, the sum l of p = exp(score - m), and the
product o of p, rounded to the values' storage type, with the values. Chunks join in N6's tree, each scaled by
exp(m of its own - m of both); at the end the result is o / l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d1c.ir.core import Op
from d1c.ir.structured import Dim, Entry, Structured
from d1c.ir.types import TensorType, Type
from d1c.ops.graph.contract import with_pair
from d1c.ops.graph.family import accumulator, broadcast_map, broadcast_shape, tensors
from d1c.ops.opdef import OpDef, opdef, register
from d1c.target.dtypes import F32, dtype

CHUNK = 128
"""Keys of a chunk."""
LEAST = -3.4028234663852886e38
"""The least finite f32: scores are taken relative to max(m, LEAST), so that exp(-inf - m) is 0 where all are -inf."""
OPERANDS = 3
"""Queries, keys, values; what follows is read by the region."""


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """`out`: the element type to which the result is rounded. `order`: how the result's dims follow from (batch...,
    rows, columns); columns stay last. `packed`: whether values have their pair dim."""

    out: str
    order: tuple[int, ...]
    packed: bool = False


def scores_type(types: tuple[Type, ...], attrs: AttentionAttrs) -> TensorType:
    """The f32 products of queries [..., M, D] and keys [..., N, D]."""
    q, k = tensors(types[:2], 2)
    if min(len(q.shape), len(k.shape)) < 2 or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"queries {list(q.shape)} and keys {list(k.shape)} do not fit")
    if accumulator([q.dtype, k.dtype]) != F32:
        raise ValueError(f"takes floats of at most 32 bits, has {q.dtype} and {k.dtype}")
    batch = broadcast_shape([q.shape[:-2], k.shape[:-2]])
    return TensorType((*batch, q.shape[-2], k.shape[-2]), F32)


def attention_type(types: tuple[Type, ...], attrs: AttentionAttrs) -> TensorType:
    """The result: [..., M, columns of the values] with its dims in `order`."""
    s, v = scores_type(types, attrs), with_pair(tensors(types)[2], attrs.packed)
    if len(v.shape) < 3 or v.shape[-3] != -(-s.shape[-1] // v.shape[-1]):
        raise ValueError(f"values {list(v.shape)} do not fit {s.shape[-1]} keys")
    if broadcast_shape([s.shape[:-2], v.shape[:-3]]) != s.shape[:-2]:
        raise ValueError("values have batch dims that the scores have not")
    shape = (*s.shape[:-1], v.shape[-2])
    rank = len(shape)
    if sorted(attrs.order) != list(range(rank)) or attrs.order[-1] != rank - 1:
        raise ValueError(f"order {list(attrs.order)} is none of {rank} dims with the last one last")
    return TensorType(tuple(shape[i] for i in attrs.order), dtype(attrs.out))


def _check(op: Op) -> None:
    if len(op.operands) < OPERANDS or len(op.regions) != 1:
        raise ValueError("takes queries, keys, values, and one region")
    types = tuple(v.type for v in op.operands)
    scores, (block,) = scores_type(types, op.attrs), op.regions
    if tuple(a.type for a in block.args) != (scores, *types[OPERANDS:]):
        raise ValueError("the region's arguments have the types of the scores and of the operands behind the values")
    inside = set(block.args)
    for inner in block.ops[:-1]:
        if opdef(inner.name).kind != "elementwise" or not inside.issuperset(inner.operands):
            raise ValueError(f"{inner.name}: the region has elementwise ops on its own values")
        inside.update(inner.results)
    last = block.ops[-1].operands
    if len(last) != 1 or last[0] not in inside or last[0].type != scores:
        raise ValueError("the region yields the scores that count, of the type of its first argument")


def _structure(types: tuple[Type, ...], attrs: AttentionAttrs, results: tuple[Type, ...]) -> Structured:
    """Reduce dims: chunks c of keys n, an odd number of them rounded up to pairs (j, f); depth as pairs (k, e). Chunks
    are the cut where there are several and all are whole; else all keys count as one. Queries have a fill where their
    depth is odd, keys where depth or number is."""
    s, (q, k, v) = scores_type(types, attrs), tensors(types[:OPERANDS])
    v = with_pair(v, attrs.packed)
    r, width, pairs = len(s.shape) - 2, v.shape[-1], v.shape[-3]
    extents = (*s.shape[:-1], v.shape[-2])
    names = (*(f"b{i}" for i in range(r)), "m", "v")
    place = {d: i for i, d in enumerate(attrs.order)}
    keys = s.shape[-1]
    chunks = keys // CHUNK if keys % CHUNK == 0 else 1
    dims = (
        *(Dim(names[d], extents[d]) for d in attrs.order), Dim("c", chunks, True),
        Dim("n", pairs * width // chunks, True), Dim("j", pairs // chunks, True), Dim("f", width, True),
        Dim("k", -(-q.shape[-1] // width), True), Dim("e", width, True),
    )  # fmt: skip
    c, n, j, f, d, e = range(r + 2, r + 8)

    def batch(shape: tuple[int, ...]) -> tuple[Entry, ...]:
        return tuple(
            Entry(tuple((place[d], w) for d, w in x.terms)) for x in broadcast_map(shape, r)
        )  # fmt: skip

    one = [Entry(((d, 1),)) for d in range(r + 8)]
    depth = Entry(((d, width), (e, 1)))
    key, pair = one[n], one[j]
    if chunks > 1:
        key, pair = Entry(((c, CHUNK), (n, 1))), Entry(((c, CHUNK // width), (j, 1)))
    rows, keyed = (*batch(q.shape[:-2]), one[place[r]], depth), (*batch(k.shape[:-2]), key, depth)
    values = (*batch(v.shape[:-3]), pair, one[place[r + 1]], *([one[f]] if attrs.packed else []))
    odd = q.shape[-1] % width, keys % width
    fills = (0.0 if odd[0] else None, 0.0 if any(odd) else None, None)
    cut = (c, 1) if chunks > 1 else (None, keys)
    return Structured(dims, "attention", (rows, keyed, values), fills, OPERANDS, *cut)


def keys_of(nest: Structured) -> int:
    """The number of keys of an attention's nest."""
    return nest.slice if nest.cut is None else nest.dims[nest.cut].extent * CHUNK


def region_map(shape: tuple[int, ...], nest: Structured, order: tuple[int, ...]) -> tuple[Entry, ...]:
    """How an operand of the region, which broadcasts to the scores, is read over the iteration dims."""
    rank = len(order)
    place = {d: i for i, d in enumerate(order)}
    place[rank - 1] = nest.parallel + 1  # the scores' last dim: keys

    def entry(x: Entry) -> Entry:
        terms = {place[d]: w for d, w in x.terms}
        if nest.cut is not None and nest.cut + 1 in terms:
            terms[nest.cut] = CHUNK * terms[nest.cut + 1]
        return Entry(tuple(sorted(terms.items())))

    return tuple(entry(x) for x in broadcast_map(shape, rank))


def infer_op(op: Op) -> tuple[Type, ...]:
    """The result types of a graph.attention."""
    return (attention_type(tuple(v.type for v in op.operands), op.attrs),)


def _infer(types: tuple[Type, ...], attrs: Any) -> tuple[Type, ...]:
    return (attention_type(types, attrs),)


register(OpDef(
    "graph.attention", "attention", _infer, AttentionAttrs, structure=_structure,
    doc="softmax(region(q k)) v for queries [..., M, D], keys [..., N, D], values [..., N, V], by chunks of 128 keys "
    "with a running maximum (N10). The region, elementwise, makes the scores of the f32 products and of the operands "
    "behind the values, which broadcast: scale, mask.",
    facts={"infer_op": infer_op, "check": _check},
))  # fmt: skip
