"""The embedding uses live sites once each and keeps logical neighbours near."""

import dataclasses

import numpy as np
import pytest

from d1c.target.embedding import embed, global_position, neighbour_distances
from d1c.target.machine import PRESETS, Machine, machine

TILE = machine("d1-tile")
DIE = machine("d1-die")


def grid(base: Machine, rows: int, cols: int) -> Machine:
    return dataclasses.replace(base, grid_rows=rows, grid_cols=cols, row_factors=(rows,), col_factors=(cols,))


def spread_in_one_column(m: Machine) -> Machine:
    return dataclasses.replace(m, dead=tuple(tuple((r, die % 20) for r in range(6)) for die in range(m.dies)))


MACHINES = [
    *PRESETS.values(),
    TILE.masked(1),
    TILE.masked(2, 8),
    TILE.masked(0, 0),
    spread_in_one_column(TILE),
    grid(DIE, 4, 4),
    grid(DIE, 18, 19),
    grid(DIE, 1, 354),
    grid(DIE, 354, 1),
    grid(DIE, 22, 16),
    grid(machine("test"), 4, 2),
]


@pytest.mark.parametrize("m", MACHINES, ids=lambda m: f"{m.name}-{m.grid_rows}x{m.grid_cols}")
def test_injective_into_live_sites(m: Machine) -> None:
    table = embed(m)
    assert table.shape == (m.die_rows, m.die_cols, m.grid_rows, m.grid_cols, 2) and table.dtype == np.int16
    for die, sites in enumerate(table.reshape(m.dies, -1, 2).tolist()):
        used = {tuple(s) for s in sites}
        assert len(used) == m.grid_rows * m.grid_cols and not used & set(m.dead[die])
        assert all(0 <= r < m.site_rows and 0 <= c < m.site_cols for r, c in used)


def test_neighbours_are_near() -> None:
    for m in (TILE, TILE.masked(1), TILE.masked(9)):
        hops = neighbour_distances(embed(m))
        assert hops.mean() < 1.3 and hops.max() <= 5
    live = [(r, c) for r in range(18) for c in range(20) if (r, c) not in DIE.dead[0]]
    row_major = neighbour_distances(np.array(live[:352]).reshape(16, 22, 2))
    assert row_major.mean() > 2.5 * neighbour_distances(embed(DIE)).mean()
    assert neighbour_distances(embed(spread_in_one_column(TILE))).mean() < 1.5
    small = neighbour_distances(embed(grid(dataclasses.replace(DIE, dead=()), 4, 4)))
    assert small.max() == 1  # a small grid stays a rectangle


def test_deterministic_and_read_only() -> None:
    first = embed(TILE).copy()
    embed.cache_clear()
    assert np.array_equal(first, embed(dataclasses.replace(TILE)))
    assert not embed(TILE).flags.writeable


def test_global_position() -> None:
    table, everywhere = embed(TILE), global_position(TILE)
    assert everywhere[3, 2, 5, 7].tolist() == [3 * 18 + table[3, 2, 5, 7, 0], 2 * 20 + table[3, 2, 5, 7, 1]]
    assert len({tuple(p) for p in everywhere.reshape(-1, 2).tolist()}) == TILE.cores
    assert everywhere.max(axis=(0, 1, 2, 3)).tolist() <= [89, 99]
