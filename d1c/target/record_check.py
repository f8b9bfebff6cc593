"""Whether what reports say of a program can be read: its `info` and the records of its layers (docs/binary.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from d1c.target.dtypes import dtype
from d1c.target.program import Program

MOST = 2**62


def _text(v: object) -> bool:
    return isinstance(v, str)


def _count(v: object) -> bool:
    return type(v) is int and 0 <= v < MOST


def _amount(v: object) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < MOST  # NaN and infinity are not


def _rows(v: object, row: Callable[[Sequence[object]], bool]) -> bool:
    def sequence(x: object) -> bool:
        return isinstance(x, Sequence) and not isinstance(x, str)

    return sequence(v) and all(sequence(r) and row(r) for r in v)  # type: ignore[attr-defined]


def _shape(v: object) -> bool:
    return isinstance(v, Sequence) and not isinstance(v, str) and all(map(_count, v))


def _texts(v: object) -> bool:
    return isinstance(v, Sequence) and not isinstance(v, str) and all(map(_text, v))


def _bounds(v: object) -> bool:
    return isinstance(v, Mapping) and all((_text if k == "binds" else _amount)(x) for k, x in v.items())


def _tuned(v: object) -> bool:
    known = {"plans", "movements", "changed", "planned_cycles", "tuned_cycles"}
    return isinstance(v, Mapping) and known == set(v) and all(map(_count, v.values()))


def _lists(v: object) -> bool:
    return _rows(v, lambda r: len(r) == 2 and _text(r[0]) and type(r[1]) is int and -1 <= r[1] < 2**20)


def _without_elements(v: object) -> bool:
    def row(r: Sequence[object]) -> bool:
        if len(r) < 3 or not (_text(r[0]) and _text(r[1]) and _shape(r[2:]) and 0 in r[2:]):
            return False
        try:
            dtype(str(r[1]))
        except ValueError:
            return False
        return True

    return _rows(v, row)


_NUMBERS = dict.fromkeys(
    ("batch", "epochs", "folded", "folded_bytes", "folded_ops", "sram_code_bytes", "sram_data_bytes", "sram_live_bytes",
     "sram_peak_bytes"), _count,
)  # fmt: skip
INFO: Mapping[str, Callable[[object], bool]] = {
    **_NUMBERS, "model": _text, "precision": _text, "bounds": _bounds, "lists": _lists, "tuned": _tuned,
    "empty_inputs": _without_elements, "empty_outputs": _without_elements,
}  # fmt: skip
LAYER: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("name", "origin", "kind", "plan", "layout", "nest", "dtype"), _text),
    "flops": _amount, "shape": _shape, "buffer": _count, "branches": _texts,
}  # fmt: skip


def broken(program: Program) -> tuple[str, str] | None:
    """(where, what) of the first record that no report can read; None where all can be. Unknown keys may be there."""
    records = [("info", program.info, INFO), *((f"layer {i}", r, LAYER) for i, r in enumerate(program.layers))]
    for where, record, kinds in records:
        for key, readable in kinds.items():
            if key in record and not readable(record[key]):
                shown = repr(record[key])
                return where, f"{key} is {shown if len(shown) < 60 else shown[:57] + '...'}"
    return None
