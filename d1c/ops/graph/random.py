"""Random bits, as a function of a counter and a key (Philox4x32-10): the same on every plan, engine and host.

J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from d1c.ir.types import TensorType, Type
from d1c.ops.graph.family import elementwise, tensors
from d1c.target.dtypes import I64

ROUNDS = 10
_LOW = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class PhiloxAttrs:
    """`seed`: the key, 64 bits. `stream`: the counter's upper 64 bits. `word`: which of the four results, 0 to 3."""

    seed: int
    stream: int
    word: int = 0


def _infer(types: tuple[Type, ...], attrs: PhiloxAttrs) -> tuple[Type, ...]:
    (counter,) = tensors(types, 1)
    if counter.dtype != I64:
        raise ValueError(f"takes i64 counters, has {counter.dtype}")
    if not 0 <= attrs.word < 4:
        raise ValueError(f"has words 0 to 3, not {attrs.word}")
    return (TensorType(counter.shape, I64),)


def philox(b: Any, attrs: PhiloxAttrs, counter: Any) -> Any:
    """32 bits in an i64, from the counter's 64."""
    zero = b.xor(counter, counter)
    c = [b.and_(counter, _LOW), b.shr(counter, 32)]
    c += [b.or_(zero, attrs.stream & _LOW), b.or_(zero, attrs.stream >> 32 & _LOW)]
    key = [attrs.seed & _LOW, attrs.seed >> 32 & _LOW]
    for _ in range(ROUNDS):
        # Factors are below 2^32, so the product's 64 bits are exact whatever their sign is called.
        p, q = b.mul(c[0], 0xD2511F53), b.mul(c[2], 0xCD9E8D57)
        c = [b.xor(b.xor(b.shr(q, 32), c[1]), key[0]), b.and_(q, _LOW),
             b.xor(b.xor(b.shr(p, 32), c[3]), key[1]), b.and_(p, _LOW)]  # fmt: skip
        key = [key[0] + 0x9E3779B9 & _LOW, key[1] + 0xBB67AE85 & _LOW]
    return c[attrs.word]


def _case(counter: int, seed: int, stream: int, words: tuple[int, ...], word: int) -> Any:
    """One of the known answers that come with the authors' Random123."""
    x = np.array([counter], np.uint64).view(np.int64)
    return lambda rng: (PhiloxAttrs(seed, stream, word), [x], np.array([words[word]], np.int64))


_KNOWN = (
    (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, 2**64 - 1, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (0x85A308D3243F6A88, 0x299F31D0A4093822, 0x0370734413198A2E, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)
elementwise(
    "graph.philox", philox, 1, attrs=PhiloxAttrs, infer=_infer, facts={"fold": False},
    doc="Random bits of Philox4x32-10: word `word` for the counter (i64), in the low 32 bits.",
    cases=tuple(_case(c, k, s, words, w) for c, k, s, words in _KNOWN for w in range(4)),
)  # fmt: skip
