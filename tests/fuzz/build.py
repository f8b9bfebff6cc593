"""Makes graphs node by node: every tensor's expected value is known at once, so that only defined graphs come out."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.fuzz import oracle
from tests.fuzz.oracle import Reject, Versions
from tests.fuzz.spec import Graph, Node

F = ("f4", "f4", "f4", "f4", "f2", "f8")
INTS = ("i4", "i8", "i8", "i4", "u1", "i1", "i2", "u2", "u4", "u8")
EXTENTS = (1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 9, 13, 16, 17, 33)
LIMIT = 4096
"""Elements of the largest tensor."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph under way. `static`: its value is known at compile time, or may become so."""

    name: str
    versions: Versions

    @property
    def array(self) -> np.ndarray:
        return self.versions[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def kind(self) -> str:
        return str(self.array.dtype.str[1:])


class Build:
    """A graph under way. `rng` decides everything."""

    def __init__(self, rng: random.Random, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.numbers = np.random.default_rng(rng.randrange(2**32))
        self.nodes: list[Node] = []
        self.inputs: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.pool: list[Tensor] = []
        self.count = 0

    # ---- choices ----

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def choice(self, values: Sequence[Any]) -> Any:
        return self.rng.choice(values)

    def some(self, values: Sequence[Any], least: int = 0) -> list[Any]:
        """Some of them, in the given order."""
        count = self.rng.randint(least, len(values)) if len(values) >= least else len(values)
        keep = set(self.rng.sample(range(len(values)), count))
        return [v for i, v in enumerate(values) if i in keep]

    def axis(self, rank: int, *, negative: bool = True) -> int:
        """A legal axis, sometimes counted from the end."""
        return self.rng.randrange(-rank if negative else 0, rank)

    def extent(self) -> int:
        return 0 if self.chance(0.02) else int(self.choice(EXTENTS))

    def shape(self, rank: int | None = None, least: int = 0) -> tuple[int, ...]:
        rank = max(least, self.choice((0, 1, 1, 2, 2, 2, 3, 3, 4, 5))) if rank is None else rank
        out: list[int] = []
        for _ in range(rank):
            out.append(self.extent() if int(np.prod(out or [1])) <= LIMIT // 33 else int(self.choice((1, 2, 3))))
        return tuple(out)

    # ---- data ----

    def data(self, kind: str, shape: Sequence[int], style: str | None = None) -> np.ndarray:
        """Values: mostly tame ones, sometimes extreme ones."""
        dtype, n = np.dtype(kind), self.numbers
        style = style or self.choice(("tame",) * 6 + ("extreme", "small", "same"))
        if kind == "b1":
            return n.random(shape) < 0.5
        if dtype.kind == "f":
            x = n.standard_normal(shape)
            if style == "small":
                x = n.integers(-3, 4, shape).astype(np.float64)
            elif style == "same":
                x = np.full(shape, float(self.choice((0.0, -0.0, 1.0, -1.5, 0.1))))
            elif style == "positive":
                x = np.abs(x) + 0.05
            elif style == "unit":
                x = n.random(shape) * 1.9 - 0.95
            elif style == "extreme":
                top, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
                odd = [np.inf, -np.inf, np.nan, 0.0, -0.0, top, -top, tiny, -tiny, tiny / 4, 1e-30, 1e30, 88.7, -87.3]
                x = np.where(n.random(shape) < 0.4, np.asarray(odd)[n.integers(0, len(odd), shape)], x * 4)
            with np.errstate(all="ignore"):
                return np.asarray(x, dtype)
        info = np.iinfo(dtype)
        low, high = max(info.min, -9), min(info.max, 10)
        x = n.integers(low, high, shape)
        if style == "extreme":
            odd = np.asarray([info.min, info.max, 0, 1, info.max - 1, info.min + 1], dtype)
            return np.asarray(np.where(n.random(shape) < 0.3, odd[n.integers(0, 6, shape)], x.astype(dtype)), dtype)
        if style == "positive":
            x = np.abs(x) + 1
        elif style == "same":
            x = np.full(shape, self.choice((0, 1, 2)))
        return np.asarray(x).astype(dtype)

    def tensor(self, name: str, array: np.ndarray) -> Tensor:
        made = Tensor(name, oracle.given(array))
        self.pool.append(made)
        return made

    def fresh(self, kind: str, shape: Sequence[int], style: str | None = None, *, constant: float = 0.25) -> Tensor:
        """A new input, or with this chance an initializer."""
        return self.given(self.data(kind, shape, style), constant=constant)

    def given(self, array: np.ndarray, *, constant: float = 0.25) -> Tensor:
        """A new input with this data, or an initializer."""
        self.count += 1
        array = np.asarray(array, order="C")
        if self.chance(constant):
            self.constants[f"c{self.count}"] = array
            return self.tensor(f"c{self.count}", array)
        self.inputs[f"x{self.count}"] = array
        return self.tensor(f"x{self.count}", array)

    def ints(self, values: Sequence[int], kind: str = "i8") -> Tensor:
        """A static operand: an initializer, sometimes an input that is frozen at the first run."""
        self.count += 1
        array = np.asarray(values, kind)
        fixed = self.chance(0.85)
        name = f"{'c' if fixed else 's'}{self.count}"
        (self.constants if fixed else self.inputs)[name] = array
        return Tensor(name, [array] * oracle.VERSIONS)

    def operand(
        self,
        kinds: Sequence[str],
        rank: Callable[[int], bool] = lambda r: True,
        where: Callable[[Tensor], bool] = lambda t: True,
        style: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """A tensor that fits: one of the pool, or a new one. `style` is that of new ones only."""
        fitting = [t for t in self.pool if t.kind in kinds and rank(t.rank) and where(t)]
        if fitting and self.chance(0.75):
            weight = [3 if t.name.startswith("t") else 1 for t in fitting]
            return self.rng.choices(fitting, weight)[0]
        for _ in range(20):
            wanted = self.shape() if shape is None else tuple(shape)
            if rank(len(wanted)):
                made = Tensor("", [self.data(str(self.choice(list(kinds))), wanted, style)])
                if where(made):
                    return self.given(made.array)
        raise Reject("nothing fits")

    def partner(self, other: Tensor, kind: str | None = None, style: str | None = None) -> Tensor:
        """A tensor that broadcasts with `other`."""
        kind = kind or other.kind
        fitting = [
            t for t in self.pool if t.kind == kind and _broadcasts(t.shape, other.shape) and t.name != other.name
        ]
        if fitting and self.chance(0.6):
            return self.rng.choice(fitting)
        return self.fresh(kind, self.broadcastable(other.shape), style)

    def broadcastable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts with this one."""
        if self.chance(0.4):
            return tuple(shape)
        out = [1 if self.chance(0.3) else self.choice((1, 2, 5)) if d == 1 and self.chance(0.2) else d for d in shape]
        cut = self.rng.randint(0, len(out)) if self.chance(0.4) else 0
        out = out[cut:]
        if not cut and len(out) < 4 and int(np.prod(out or [1])) < LIMIT // 8 and self.chance(0.15):
            out = [self.choice((1, 2, 3)), *out]
        return tuple(out if int(np.prod(out or [1])) <= LIMIT else shape)

    # ---- nodes ----

    def node(
        self,
        op: str,
        operands: Sequence[Tensor | None],
        attrs: Mapping[str, Any] | None = None,
        *,
        outputs: int = 1,
        noise: float = 0.0,
    ) -> list[Tensor]:
        """Append a node. Raises Reject where no oracle takes it or its result is too large."""
        if not _takes(op, self.opset, tuple(t.array.dtype if t else None for t in operands)):
            raise Reject("not in this opset")
        self.count += 1
        names = tuple(f"t{self.count}" if i == 0 else f"t{self.count}_{i}" for i in range(outputs))
        node = Node(op, tuple(t.name if t else "" for t in operands), names, attrs or {}, noise)
        results = oracle.evaluate(node, [t.versions if t else None for t in operands], self.opset, self.numbers)
        made = []
        for name, versions in zip(names, results, strict=True):
            array = versions[0]
            if array.size > 8 * LIMIT or array.ndim > 6:
                raise Reject("too large")
            if array.dtype == np.float16 and not all(np.abs(v[np.isfinite(v)]).max(initial=0) < 3e4 for v in versions):
                raise Reject("next to the limits of f16, which values inside a group do not have")
            made.append(Tensor(name, versions))
        self.nodes.append(node)
        self.pool += made
        return made

    def graph(self) -> Graph:
        """What has been made; the outputs are what nothing reads, and now and then something else too."""
        read = {name for n in self.nodes for name in n.inputs}
        made = [name for n in self.nodes for name in n.outputs]
        outputs = tuple(name for name in made if name not in read or self.chance(0.1))
        return Graph(self.opset, tuple(self.nodes), self.inputs, self.constants, outputs).live()


@functools.cache
def _takes(op: str, opset: int, types: tuple[np.dtype | None, ...]) -> bool:
    """Whether the opset has the op, with operands of these types (onnxruntime takes more)."""
    if not onnx.defs.has(op, opset, ""):
        return False
    formal = onnx.defs.get_schema(op, opset, "").inputs
    for i, dtype in enumerate(types):
        place = formal[min(i, len(formal) - 1)]
        if dtype is not None and f"tensor({_WORDS.get(dtype.name, dtype.name)})" not in place.types:
            return False
    return True


_WORDS = {"float32": "float", "float64": "double"}


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(x == y or 1 in (x, y) for x, y in pairs)
