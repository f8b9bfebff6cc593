"""One case of the suite through import, all passes and the emulator: `run_case(case, machine, engine) -> Outcome`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from d1c import api, backend
from d1c.errors import D1Error, VerifyError
from tests.conformance import distribution, recomputed
from tests.conformance.cases import Case
from tests.conformance.frozen import unjustified

STATUSES = ("passed", "folded", "refused", "wrong", "crash", "timeout")
TIME_LIMIT = 60.0
"""Seconds for a case of the suite; the real networks get ten times as much."""

LARGER = ("d1-die", "jit")

_NOTHING = {"graph.const", "graph.return"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    status   passed: the expected values, computed on the cores. folded: the expected values, but the program computes
             nothing, since every node was constant once the shapes and the static operands were known. refused: one
             of d1c's typed refusals. wrong: other values, or another type or shape. crash: any other exception, and
             invalid IR behind a pass. timeout: more than TIME_LIMIT.
    reason   for all but passed and folded: the refusal's message, or what differs.
    frozen   inputs that became constants at the first run.
    host     nodes that were evaluated at compile time from frozen inputs that no row's static operand needs.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    frozen: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    machine: str = "test"
    engine: str = "numpy"
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_json(row: dict[str, Any]) -> Outcome:
        return Outcome(**{**row, "frozen": tuple(row["frozen"]), "host": tuple(row["host"])})


class TimeLimit(BaseException):
    """Not an Exception: nothing between here and the alarm may swallow it."""


def run_case(case: Case, machine: str = "test", engine: str = "numpy") -> Outcome:
    """Compile `case` (f32 policy: values are stored in the model's own types) and run it on all of its data.

    A case that is too large for the 64 KiB of a core of `test` runs on LARGER; `extra` says so."""
    outcome = run_on(case, machine, engine)
    if machine == "test" and outcome.status == "refused" and outcome.reason.startswith("DoesNotFit"):
        larger = run_on(case, *LARGER)
        if larger.status != "refused":
            return replace(larger, machine=machine, engine=engine, extra={"ran_on": ", ".join(LARGER)})
    return outcome


def run_on(case: Case, machine: str, engine: str) -> Outcome:
    """`run_case` on this machine."""
    started = time.perf_counter()
    model, data = case.load()
    rep = backend.D1Rep(model, machine, "f32", engine)
    status, reason = "passed", ""
    try:
        with _limit(TIME_LIMIT * (10 if case.kind == "real" else 1)):
            for inputs, expected in data:
                got = rep.run(inputs)
                if recomputed.recomputed(case.name):
                    expected = recomputed.expected(inputs, expected)
                text = distribution.check(case, model, rep, inputs, got, expected)
                if text is None:
                    text = compare(got, expected, rep.outputs, case.rtol, case.atol)
                reason = reason or text
        status = "wrong" if reason else "folded" if computes_nothing(rep) else "passed"
    except TimeLimit:
        status, reason = "timeout", "longer than the limit"
    except VerifyError as error:
        status, reason = "crash", _first(error)
    except D1Error as error:
        status, reason = "refused", _first(error)
    except Exception as error:
        status, reason = "crash", f"{type(error).__name__}: {error}".split("\n")[0][:300]
    frozen = tuple(sorted(rep.frozen))
    host = unjustified(model, frozen) if status in ("passed", "folded", "wrong") else ()
    return Outcome(
        case.node, status, reason, round(time.perf_counter() - started, 3), frozen, host, machine, engine
    )  # fmt: skip


def _first(error: D1Error) -> str:
    return f"{type(error).__name__}: {error.message}"[:400]


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def computes_nothing(rep: backend.D1Rep) -> bool:
    """Whether the graph behind the passes has constants only: the cores have nothing to compute or move."""
    programs: list[api.Program] = list(rep.programs.values())
    for program in programs:
        function = program.module("graph").function()
        constants = {op.results[0] for op in function.block.ops if op.name == "graph.const"}
        results = function.block.ops[-1].operands
        if any(op.name not in _NOTHING for op in function.block.ops) or not constants.issuperset(results):
            return False
    return True


# ---- values ----------------------------------------------------------------------------------------------------------


def compare(got: Sequence[Any], expected: Sequence[Any], names: Sequence[str], rtol: float, atol: float) -> str:
    """What differs, or nothing."""
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    for name, g, e in zip(names, got, expected, strict=True):
        if text := difference(g, e, rtol, atol):
            return f"{name}: {text}"
    return ""


def difference(got: Any, expected: Any, rtol: float, atol: float) -> str:
    """What differs between two arrays, sequences or empty optionals: types and shapes must agree, and integers,
    booleans and strings to the bit; floats as numpy's allclose has it."""
    if expected is None or got is None:
        return "" if got is expected else f"{_shown(got)} instead of {_shown(expected)}"
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            return f"{_shown(got)} instead of a sequence of {len(expected)}"
        parts = (difference(g, e, rtol, atol) for g, e in zip(got, expected, strict=True))
        return next((f"[{i}] {text}" for i, text in enumerate(parts) if text), "")
    g, e = np.asarray(got), np.asarray(expected)
    if g.shape != e.shape or g.dtype != e.dtype:
        return f"{_shown(g)} instead of {_shown(e)}"
    if e.dtype.kind in "biuSOU" or "int" in e.dtype.name:
        bad = g != e
    else:
        if e.dtype.name == "bfloat16":
            rtol = max(rtol, 2**-6)  # as the suite's own runner does: two units in the last place
        bad = ~np.isclose(_wide(g), _wide(e), rtol=rtol, atol=atol, equal_nan=True)
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
    return (
        f"{int(bad.sum())} of {bad.size} values of {_shown(e)}, first at {list(at)}: "
        f"{np.atleast_1d(g)[at]} instead of {np.atleast_1d(e)[at]}"
    )


def _wide(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value.dtype.name}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
