"""Refusals: every one is typed, names the place, the rule, the amounts and the way out. Imports nothing of d1c.

| exit code | class          | when                                                             |
|-----------|----------------|------------------------------------------------------------------|
| 0         |                | done                                                             |
| 1         | `D1Error`      | any other refusal                                                |
| 2         | `UsageError`   | wrong command line or call                                       |
| 3         | `ImportFailed` | not an ONNX file, truncated, refused by the checker              |
| 4         | `UnsupportedOp`| an ONNX op, attribute or opset that d1c does not know            |
| 5         | `ShapeUnbound` | a symbolic dimension without a value                             |
| 6         | `TypeMismatch` | shapes or element types that do not fit together                 |
| 7         | `ParseError`   | a syntax or name error in IR text                                |
| 8         | `VerifyError`  | IR that breaks a rule of its level                               |
| 9         | `DoesNotFit`   | more memory or cores needed than the machine has                 |
| 10        | `PlanError`    | no legal plan, or a plan file that does not fit the module       |
| 11        | `LoadError`    | a corrupt or truncated .d1x                                      |
| 12        | `InputError`   | wrong input name, shape or element type at run                   |
| 13        | `Deadlock`     | threads that wait for each other for ever                        |
| 14        | `Trap`         | SRAM bounds, uninitialised read, missing credit, semaphore misuse |
| 130       |                | interrupted                                                      |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar


class D1Error(Exception):
    """A refusal.

    message  what failed, one sentence.
    rule     the rule that is broken.
    where    an ONNX node's name, or `file:line`.
    amounts  numbers that decide it, by name and with the unit in the name, e.g. {"needed_bytes": 10, "sram_bytes": 8}.
    remedy   what to try.
    """

    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        rule: str = "",
        where: str = "",
        amounts: Mapping[str, Any] | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule
        self.where = where
        self.amounts: dict[str, Any] = dict(amounts or {})
        self.remedy = remedy

    def details(self) -> dict[str, Any]:
        """What a subclass knows besides the five common fields; printed and in the JSON, empty values left out."""
        return {}

    def excerpt(self) -> str:
        """Source lines shown under the message, or nothing."""
        return ""

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.message}"]
        if excerpt := self.excerpt():
            lines += excerpt.split("\n")
        rows = {"where": self.where, **self.details(), "rule": self.rule}
        lines += [f"  {name + ':':<8} {value}" for name, value in rows.items() if value not in (None, "")]
        if self.amounts:
            amounts = (f"{name} = {_amount(value)}" for name, value in self.amounts.items())
            lines.append("  amounts: " + ", ".join(amounts))
        if self.remedy:
            lines.append(f"  remedy:  {self.remedy}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON values."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "where": self.where,
            "rule": self.rule,
            "amounts": self.amounts,
            "remedy": self.remedy,
            **{name: value for name, value in self.details().items() if value not in (None, "")},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by positional arguments; ours are keywords, and worker processes must send them home.
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(kind: type[D1Error], args: tuple[Any, ...], fields: dict[str, Any]) -> D1Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def _amount(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


class UsageError(D1Error):
    """A wrong command line, option or call."""

    exit_code = 2
    title = "usage error"


class ImportFailed(D1Error):
    """The model is not an ONNX file, is truncated, or the ONNX checker refuses it."""

    exit_code = 3
    title = "import failed"


class UnsupportedOp(D1Error):
    """An op, an attribute value or an opset version that d1c does not know."""

    exit_code = 4
    title = "unsupported op"


class NotStatic(UnsupportedOp):
    """A value that decides shapes is computed at run time. `inputs`: the model's inputs on which it depends."""

    def __init__(self, message: str, *, inputs: tuple[str, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.inputs = inputs

    def details(self) -> dict[str, Any]:
        return {"inputs": ", ".join(self.inputs)}


class ShapeUnbound(D1Error):
    """A symbolic dimension that no flag gives a value to."""

    exit_code = 5
    title = "unbound shape"


class TypeMismatch(D1Error):
    """Operand shapes or element types that an op does not accept."""

    exit_code = 6
    title = "type mismatch"


class ParseError(D1Error):
    """IR text that does not parse. `line` and `column` count from 1; `source` is the text of that line."""

    exit_code = 7
    title = "parse error"

    def __init__(
        self,
        message: str,
        *,
        filename: str = "<text>",
        line: int = 0,
        column: int = 0,
        source: str = "",
        rule: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(message, rule=rule, where=f"{filename}:{line}:{column}", remedy=remedy)
        self.filename = filename
        self.line = line
        self.column = column
        self.source = source

    def excerpt(self) -> str:
        if not self.source:
            return ""
        margin = f"{self.line:>5} | "
        return f"{margin}{self.source}\n{' ' * (len(margin) - 2)}| {' ' * (self.column - 1)}^"

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "line": self.line, "column": self.column, "source": self.source}


class VerifyError(D1Error):
    """IR that breaks a rule of its level. `after`: the pass that left it so, which is then a bug of the compiler."""

    exit_code = 8
    title = "invalid IR"

    def __init__(
        self,
        message: str,
        *,
        op: str = "",
        after: str = "",
        rule: str = "",
        where: str = "",
        amounts: Mapping[str, Any] | None = None,
        remedy: str = "",
    ) -> None:
        if after and not remedy:
            remedy = f"this is a bug of d1c, in pass {after}, not of the model: report it with this text"
        super().__init__(message, rule=rule, where=where, amounts=amounts, remedy=remedy)
        self.op = op
        self.after = after

    def details(self) -> dict[str, Any]:
        return {"op": self.op, "after": self.after}


class DoesNotFit(D1Error):
    """More SRAM, HBM, cores or semaphores needed than the machine has; `amounts` say demand and bound.

    tensors   what a core holds where it holds most, largest first: name, kind (constant, table, window, result), bytes
              of a core, and the layers `from` and `to` which it is needed. Where the constants alone are too much:
              those, with the bytes of all cores together.
    remedies  what `try_remedies` found: compilations that fit, with their cost; None before.
    tried     the changes that it tried.
    """

    exit_code = 9
    title = "does not fit"
    trials: Callable[[DoesNotFit, Callable[[str], None]], None] | None = None

    def __init__(self, message: str, *, tensors: tuple[Mapping[str, Any], ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.tensors = tensors
        self.remedies: tuple[Mapping[str, Any], ...] | None = None
        self.tried: tuple[str, ...] = ()

    def try_remedies(self, progress: Callable[[str], None] | None = None) -> tuple[Mapping[str, Any], ...]:
        """Compile the model otherwise (bf16, a smaller batch, a larger target) and return what fits: the `change`, and
        its `cycles`, `time_us`, `sram_peak_bytes`. `progress` gets each change before it is tried. Takes as long as
        the compilations do; what was found before an interruption is in `remedies`."""
        if self.remedies is None:
            self.remedies = ()
            if self.trials is not None:
                self.trials(self, progress or (lambda change: None))
        return self.remedies

    def excerpt(self) -> str:
        if not self.tensors:
            return ""
        shown = self.tensors[:TENSORS]
        width = max(len(str(t["name"])) for t in shown)
        lines = [f"  {t['bytes']:>11,} B  {t['kind']:8} {t['name']:{width}}  {t['from']} .. {t['to']}" for t in shown]
        if rest := self.tensors[TENSORS:]:
            lines.append(f"  {sum(t['bytes'] for t in rest):>11,} B  in {len(rest):,} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [super().__str__()]
        for r in self.remedies or ():
            lines.append(
                f"  fits:    {r['change']}: {r['cycles']:,} cycles ({r['time_us']:,.1f} us), "
                f"SRAM peak {r['sram_peak_bytes']:,} of {r['sram_bytes']:,} B"
            )
        if self.tried and not self.remedies:
            lines.append(f"  tried:   {'; '.join(self.tried)}: none fits")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        tensors, remedies = [dict(t) for t in self.tensors], [dict(r) for r in self.remedies or ()]
        return {**super().to_json(), "tensors": tensors, "remedies": remedies, "tried": list(self.tried)}


TENSORS = 12
"""Tensors that a refusal prints."""


class PlanError(D1Error):
    """No legal plan for an op, or a given plan that the op or the machine does not allow."""

    exit_code = 10
    title = "no plan"


class LoadError(D1Error):
    """A .d1x that is corrupt, truncated or of another version."""

    exit_code = 11
    title = "cannot load"


class InputError(D1Error):
    """A wrong input name, shape or element type at run."""

    exit_code = 12
    title = "wrong input"


class Deadlock(D1Error):
    """No thread can go on. `waits`: one line per waiting thread, who waits on whom for what."""

    exit_code = 13
    title = "deadlock"

    def __init__(
        self,
        message: str,
        *,
        waits: tuple[str, ...] = (),
        rule: str = "",
        where: str = "",
        amounts: Mapping[str, Any] | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message, rule=rule, where=where, amounts=amounts, remedy=remedy)
        self.waits = waits

    def excerpt(self) -> str:
        return "\n".join(f"  {wait}" for wait in self.waits)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "waits": list(self.waits)}


class Trap(D1Error):
    """The emulated machine stopped a core: SRAM bounds, uninitialised read, missing credit, semaphore misuse.

    core     printable core id. address: SRAM byte address or None. buffer: its name. op: the instruction.
    `where` is the op's origin: the ONNX node or `file:line`.
    """

    exit_code = 14
    title = "trap"

    def __init__(
        self,
        message: str,
        *,
        core: str = "",
        address: int | None = None,
        buffer: str = "",
        op: str = "",
        where: str = "",
        rule: str = "",
        amounts: Mapping[str, Any] | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message, rule=rule, where=where, amounts=amounts, remedy=remedy)
        self.core = core
        self.address = address
        self.buffer = buffer
        self.op = op

    def details(self) -> dict[str, Any]:
        return {"core": self.core, "address": self.address, "buffer": self.buffer, "op": self.op}


EXIT_OK = 0
EXIT_INTERRUPTED = 130
EXIT_CODES = {
    kind.__name__: kind.exit_code
    for kind in (
        D1Error, UsageError, ImportFailed, UnsupportedOp, ShapeUnbound, TypeMismatch, ParseError, VerifyError,
        DoesNotFit, PlanError, LoadError, InputError, Deadlock, Trap,
    )
}  # fmt: skip
"""Exit code of the command line per class; 0 is done, 130 interrupted."""
