"""Compiled loops called without numba: what they compute, and where they are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d1c.analysis import native
from d1c.analysis.native import Native
from d1c.analysis.price import places
from d1c.analysis.price_forms import Source
from d1c.target.machine import machine

SCRIPT = """
import sys
import numpy as np
from d1c.analysis.native import Native
from d1c.analysis.price import places
from d1c.analysis.price_forms import Source
from d1c.target.machine import machine
where = places(machine("d1-die"))
source = Source(np.array([[0, 1, 5, 0, 3]]), np.arange(3), np.zeros(0, np.int64))
out = np.empty(where.machine.die_rows)
Native("price_lines", "rows_to")(source, np.array([38]), where.grid, 4096, out)
print("numba" in sys.modules, *out)
"""


def share(block: int, extent: int, axes: tuple[int, ...]) -> list[float]:
    """The share of the busiest row of sites of each row of dies, core by core."""
    where = places(machine("d1-die"))
    g, m = where.grid, where.machine
    rows = np.zeros((m.die_rows, m.site_rows))
    for position in range(-(-extent // block)):
        rest, core = position, 0
        for a in reversed(axes):
            core += rest % int(g.size[a]) * int(g.stride[a])
            rest //= int(g.size[a])
        y = int(g.row[core])
        rows[y // m.site_rows, y % m.site_rows] += min(block, extent - position * block)
    return [float(r.max() / max(r.sum(), 1)) for r in rows]


def run(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "XDG_CACHE_HOME": str(folder)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_a_later_process_needs_no_numba(tmp_path: Path) -> None:
    expected = [str(x) for x in share(5, 38, (0, 1, 2))]
    assert run(tmp_path) == ["True", *expected]
    assert run(tmp_path) == ["False", *expected]
    (kept,) = (tmp_path / "d1c" / "planner").glob("*.o")
    kept.write_bytes(kept.read_bytes()[:-1])  # a damaged file counts as missing
    assert run(tmp_path) == ["True", *expected]


@pytest.mark.parametrize("fault", ["refused", "wrong"])
def test_numba_does_it_where_its_code_cannot_be_taken(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if fault == "refused":
        monkeypatch.setattr(native, "_MEMORY", "this is no code")
    else:
        monkeypatch.setattr(native, "_called", lambda call, args: args[-1].fill(-1.0) or 0)
    where = places(machine("d1-die"))
    source = Source(np.array([[0, 1, 5, 0, 3]]), np.arange(3), np.zeros(0, np.int64))
    out = np.empty(where.machine.die_rows)
    Native("price_lines", "rows_to")(source, np.array([38]), where.grid, 4096, out)
    assert out.tolist() == share(5, 38, (0, 1, 2))
    assert not list(tmp_path.rglob("*.o"))


def test_arrays_are_contiguous() -> None:
    where = places(machine("d1-die"))
    source = Source(np.array([[0, 1, 5, 0, 3]]), np.arange(3), np.zeros(0, np.int64))
    out = np.empty((5, 2))[:, 0]
    rows = Native("price_lines", "rows_to")
    rows(source, np.array([38]), where.grid, 4096, np.empty(where.machine.die_rows))
    with pytest.raises(ValueError, match="not contiguous"):
        rows(source, np.array([38]), where.grid, 4096, out)
