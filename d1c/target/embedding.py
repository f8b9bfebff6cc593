"""Logical grid to physical sites: everything above sees a regular grid, this table alone knows which nodes are dead.

The grid (say 16 x 22) is bent into the die's live sites (18 x 20 less the dead ones). Each physical column takes a
quota of nodes; each logical row crosses the columns from left to right, and where it doubles up inside one column is
staggered from row to row, so that every column's quota is met exactly. Inside a column the rows keep their order.
Logical neighbours on d1-tile are 1.2 hops apart in the mean and 4 at most (docs/machine.md compares simpler schemes).

Dies are numbered row by row, or like a snake: every second row of dies from right to left. Then dies whose numbers
(dr, dc) follow each other are always neighbours, and a plan that cuts pixels flat over both has its halos one crossing
away, not one row; but those above each other may be far apart. analysis/die_order.py chooses.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from d1c.errors import UsageError
from d1c.target.machine import Machine, Site


@lru_cache(maxsize=32)
def embed(machine: Machine) -> np.ndarray:
    """[die_rows, die_cols, grid_rows, grid_cols, 2] int16, read-only, by place of the die: (row, col) of the site.

    Injective into live sites, the same for equal machines. All dies use the scheme (bent along rows or columns, how
    many lines of sites, stagger) whose logical neighbours are nearest in sum. Raises UsageError when the grid has more
    nodes than a die has live ones.
    """
    best: tuple[int, np.ndarray] | None = None
    for across in (False, True):
        for lines in range(1, (machine.site_rows if across else machine.site_cols) + 1):
            for stagger in (1, -1):
                table = _scheme(machine, across, lines, stagger)
                if table is not None:
                    distance = int(neighbour_distances(table).sum())
                    if best is None or distance < best[0]:
                        best = distance, table
    if best is None:
        raise UsageError(
            f"machine {machine.name}: a grid of {machine.grid_rows} x {machine.grid_cols} does not fit the live sites",
            remedy="choose smaller grid_rows, grid_cols",
        )
    best[1].flags.writeable = False
    return best[1]


def die_column(machine: Machine, dr: np.ndarray | int, dc: np.ndarray | int) -> np.ndarray:
    """The column of dies in which the logical die (dr, dc) is; its row is dr. Its own inverse."""
    turned = np.asarray(dr) % 2 * (machine.die_order == "snake")
    return np.where(turned, machine.die_cols - 1 - np.asarray(dc), dc)


def global_position(machine: Machine) -> np.ndarray:
    """[die_rows, die_cols, grid_rows, grid_cols, 2] int32, read-only: (row, col) of logical nodes in coordinates of the
    whole machine, die_row * site_rows + row, die_col * site_cols + col."""
    rows, cols = np.indices((machine.die_rows, machine.die_cols))
    cols = die_column(machine, rows, cols)
    table = embed(machine)[rows, cols].astype(np.int32)
    table[..., 0] += machine.site_rows * rows[:, :, None, None]
    table[..., 1] += machine.site_cols * cols[:, :, None, None]
    table.flags.writeable = False
    return table


def neighbour_distances(table: np.ndarray) -> np.ndarray:
    """Hops between the sites of logical neighbours inside a die, for a table [..., rows, cols, 2]; flat."""
    sites = table.astype(np.int64)
    down = np.abs(np.diff(sites, axis=-3)).sum(-1)
    right = np.abs(np.diff(sites, axis=-2)).sum(-1)
    return np.concatenate([down.ravel(), right.ravel()])


def _scheme(machine: Machine, across: bool, lines: int, stagger: int) -> np.ndarray | None:
    """The table of one scheme; None where `lines` columns (across: rows) of sites hold too few live ones."""
    rows, cols = machine.grid_rows, machine.grid_cols
    shape = (machine.die_rows, machine.die_cols, rows, cols, 2)
    table = np.empty((machine.dies, rows, cols, 2), np.int16)
    for die in range(machine.dies):
        columns = _live_columns(machine, machine.dead[die], across)[:lines]
        bent = _bend(columns, cols if across else rows, rows if across else cols, stagger)
        if bent is None:
            return None
        table[die] = bent.transpose(1, 0, 2)[..., ::-1] if across else bent
    return table.reshape(shape)


def _live_columns(machine: Machine, dead: tuple[Site, ...], across: bool) -> list[list[Site]]:
    """Live sites column by column, from top to bottom; `across`: of the transposed die."""
    gone = {(c, r) for r, c in dead} if across else set(dead)
    rows, cols = (machine.site_cols, machine.site_rows) if across else (machine.site_rows, machine.site_cols)
    return [[(r, c) for r in range(rows) if (r, c) not in gone] for c in range(cols)]


def _bend(columns: list[list[Site]], rows: int, cols: int, stagger: int) -> np.ndarray | None:
    """A grid rows x cols onto the columns' sites: [rows, cols, 2], or None where they are too few.

    With quotas q_j and their running sum Q_j, row r reaches column j after floor((Q_j + r) / rows) of its nodes: summed
    over the rows that is exactly Q_j (Hermite's identity); after the last column every row has placed all its nodes.
    """
    quotas = [len(c) for c in columns]
    spare = sum(quotas) - rows * cols
    if spare < 0:
        return None
    for _ in range(spare):
        quotas[quotas.index(max(quotas))] -= 1
    sites = np.array([s for c, n in zip(columns, quotas, strict=True) for s in c[:n]], np.int16)
    reached = np.concatenate([[0], np.cumsum(quotas)])
    phase = np.arange(rows) if stagger > 0 else np.arange(rows)[::-1]
    starts = (reached[:, None] + phase) // rows  # [columns + 1, rows]: nodes of each row before each column
    counts = np.diff(starts, axis=0).ravel()
    row = np.repeat(np.tile(np.arange(rows), len(columns)), counts)
    col = np.arange(len(sites)) - np.repeat(np.cumsum(counts) - counts - starts[:-1].ravel(), counts)
    table = np.empty((rows, cols, 2), np.int16)
    table[row, col] = sites
    return table
