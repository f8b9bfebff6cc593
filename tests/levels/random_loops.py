"""Random graph modules with nested loops: every kind of carried, captured and stacked value, conditions on data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from d1c.ir.core import Module
from d1c.ir.text import parse

N = 6
TENSOR, NUMBER, FLAG, STACK = "tensor<6x6xf32>", "tensor<1xi64>", "tensor<1xbool>", "tensor<5x6x6xf32>"
Env = list[tuple[str, str]]


class RandomLoops:
    """Builds one module; `text` says it, `constants` has the data that it names."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values = 0
        self.functions: list[str] = []
        self.constants: dict[str, np.ndarray] = {}

    def module(self) -> Module:
        env: Env = [("%x", TENSOR), ("%y", TENSOR), ("%i", NUMBER), ("%s", STACK)]
        params = ", ".join(f"{v}: {t}" for v, t in env)
        lines: list[str] = []
        self.ops(env, lines, 0, 3)
        self.loop(env, lines, 0)
        self.ops(env, lines, 0, 3)
        results = [v for v, _ in env[-6:]]
        names = ", ".join(f'"o{k}"' for k in range(len(results)))
        main = f"func @main({params}) {{\n{chr(10).join(lines)}\ngraph.return({', '.join(results)})\n}}"
        text = "\n".join([f"d1c.module graph {{outputs = [{names}]}} {{", main, *self.functions, "}"])
        return replace(parse(text), constants=dict(self.constants))

    def inputs(self) -> dict[str, np.ndarray]:
        def data(*shape: int) -> np.ndarray:
            return self.rng.standard_normal(shape).astype(np.float32)

        return {"x": data(N, N), "y": data(N, N), "i": self.rng.integers(0, 4, 1), "s": data(5, N, N)}

    def emit(self, lines: list[str], op: str, kind: str) -> str:
        self.values += 1
        lines.append(f"%v{self.values} = {op} : {kind}")
        return f"%v{self.values}"

    def const(self, lines: list[str], data: np.ndarray, kind: str) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = data
        return self.emit(lines, f'graph.const {{name = "{name}"}}', kind)

    def pick(self, env: Env, kind: str) -> str:
        found = [v for v, t in env if t == kind]
        return found[int(self.rng.integers(len(found)))]

    def has(self, env: Env, kind: str) -> bool:
        return any(t == kind for _, t in env)

    def ops(self, env: Env, lines: list[str], depth: int, count: int) -> None:
        """Some ops on values of `env`, which gets their results."""
        row = "tensor<1x6x6xf32>"
        for _ in range(count):
            t, i = self.pick(env, TENSOR), self.pick(env, NUMBER)
            match int(self.rng.integers(0, 10)):
                case 0:
                    name = ("add", "sub", "mul", "max")[int(self.rng.integers(4))]
                    env.append((self.emit(lines, f"graph.{name}({t}, {self.pick(env, TENSOR)})", TENSOR), TENSOR))
                case 1:
                    product = self.emit(lines, f"graph.matmul({t}, {self.pick(env, TENSOR)})", TENSOR)
                    env.append((self.emit(lines, f"graph.tanh({product})", TENSOR), TENSOR))
                case 2:
                    env.append((self.emit(lines, f"graph.transpose({t}) {{perm = [1, 0]}}", TENSOR), TENSOR))
                case 3:
                    turned = f"graph.slice({t}) {{starts = [5, 0], steps = [-1, 1], sizes = [6, 6]}}"
                    env.append((self.emit(lines, turned, TENSOR), TENSOR))
                case 4:
                    weights = self.const(lines, self.rng.standard_normal((N, N)).astype(np.float32), TENSOR)
                    env.append((self.emit(lines, f"graph.add({t}, {weights})", TENSOR), TENSOR))
                case 5:
                    one = self.const(lines, np.array([1]), NUMBER)
                    env.append((self.emit(lines, f"graph.add({i}, {one})", NUMBER), NUMBER))
                case 6:
                    limit = self.const(lines, self.rng.integers(0, 6, 1), NUMBER)
                    env.append((self.emit(lines, f"graph.less({i}, {limit})", FLAG), FLAG))
                case 7:
                    found = self.emit(lines, f"graph.lookup({i}, {self.pick(env, STACK)})", row)
                    env.append((self.emit(lines, f"graph.reshape({found}) {{shape = [6, 6]}}", TENSOR), TENSOR))
                case 8:
                    update = self.emit(lines, f"graph.reshape({t}) {{shape = [1, 6, 6]}}", row)
                    stack = f"graph.scatter({self.pick(env, STACK)}, {i}, {update})"
                    env.append((self.emit(lines, stack, STACK), STACK))
                case _ if depth < 3 and len(self.functions) < 4:
                    self.loop(env, lines, depth)

    def loop(self, env: Env, lines: list[str], depth: int) -> None:
        """A loop that carries and captures some values of `env`, which gets its results."""
        condition = self.has(env, FLAG) and self.rng.random() < 0.6
        kinds = [*([FLAG] if condition else []), *[TENSOR] * int(self.rng.integers(1, 4)), NUMBER, STACK]
        start = [self.pick(env, t) for t in kinds]
        captured = [env[k] for k in self.rng.permutation(len(env))[: self.rng.integers(0, 4)]]
        types = [*kinds, *(t for _, t in captured)]
        args = []
        for t in types:
            self.values += 1
            args.append((f"%v{self.values}", t))
        inner, body = list(args), list[str]()
        if not self.has(inner, FLAG):
            limit = self.const(body, np.array([3]), NUMBER)
            inner.append((self.emit(body, f"graph.less({self.pick(inner, NUMBER)}, {limit})", FLAG), FLAG))
        name = f"body{len(self.functions)}"
        self.functions.append("")
        place = len(self.functions) - 1
        self.ops(inner, body, depth + 1, int(self.rng.integers(2, 9)))
        last = {t: v for v, t in inner}
        new = [last[t] if self.rng.random() < 0.6 else self.pick(inner, t) for t in kinds]
        params = ", ".join(f"{v}: {t}" for v, t in args)
        code = "\n".join(body)
        self.functions[place] = f"func @{name}({params}) {{\n{code}\ngraph.return({', '.join(new)})\n}}"
        operands = ", ".join([*start, *(v for v, _ in captured)])
        results = []
        for t in kinds:
            self.values += 1
            results.append((f"%v{self.values}", t))
        attrs = f'body = "{name}", trips = {self.rng.integers(0, 4)}, carried = {len(kinds)}'
        attrs += ", condition = true" if condition else ""
        names = ", ".join(v for v, _ in results)
        lines.append(f"{names} = graph.loop({operands}) {{{attrs}}} : ({', '.join(kinds)})")
        env += results
