"""The machine description: the published totals follow from the fields, and contradictions are refused by name."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from d1c.errors import UsageError
from d1c.target.machine import PRESETS, Machine, machine, random_mask


def test_published_totals() -> None:
    tile, die, node = machine("d1-tile"), machine("d1-die"), machine("d1-node")
    assert node.peak_flops_bf16 == 1.024e12
    assert node.peak_flops_f32 == 64e9
    assert (
        die.node_count == 354 and round(die.peak_flops_bf16 / 1e12) == 362 and round(die.peak_flops_f32 / 1e11) == 227
    )
    assert tile.node_count == 8850 and round(tile.peak_flops_bf16 / 1e15) == 9
    assert tile.cores == 8800 == math.prod(n for _, n in tile.axes)
    assert tile.dip_bytes_per_cycle * tile.clock_hz == 800e9


def test_axes() -> None:
    assert machine("d1-tile").axes == (
        ("dr", 5), ("dc", 5), ("nr.0", 2), ("nr.1", 2), ("nr.2", 2), ("nr.3", 2), ("nc.0", 2), ("nc.1", 11)
    )  # fmt: skip
    assert machine("test").axes == (("dc", 2), ("nr", 2), ("nc.0", 2), ("nc.1", 2))
    assert machine("d1-node").axes == () and machine("d1-node").cores == 1


def test_default_mask_differs_from_die_to_die_and_is_fixed() -> None:
    tile = machine("d1-tile")
    assert {len(sites) for sites in tile.dead} == {6} and len(set(tile.dead)) == 25
    assert tile.dead == random_mask(0, 25, 18, 20, 6) != tile.masked(1).dead
    assert tile.dead[0] == ((6, 1), (7, 19), (10, 5), (12, 19), (13, 1), (16, 17))
    assert tile.masked(3) == tile.masked(3) and tile.masked(3, 8).node_count == 25 * 352


@pytest.mark.parametrize("name", PRESETS)
def test_dictionary_round_trip_through_json(name: str) -> None:
    m = machine(name)
    assert Machine.from_dict(json.loads(json.dumps(m.to_dict()))) == m


def test_every_field_has_meaning_and_source() -> None:
    for f in dataclasses.fields(Machine):
        assert f.metadata["doc"] and f.metadata["source"] and "unit" in f.metadata, f.name
        assert ".md" not in f.metadata["source"]


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "d1-die"\nhop_cycles = 2\ngrid_rows = 4\ngrid_cols = 4\nrow_factors = [4]\ncol_factors = [2, 2]\n'
    )
    m = machine(path)
    assert (m.name, m.hop_cycles, m.cores, m.node_count) == ("mine", 2, 16, 354)
    assert m.axes == (("nr", 4), ("nc.0", 2), ("nc.1", 2))
    path.write_text('base = "d1-die"\ndie_cols = 2\n')
    assert machine(path).node_count == 708
    path.write_text('base = "test"\ndead = [[[0, 0]], []]\n')
    assert machine(path).dead == (((0, 0),), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hop_cycle = 2", "unknown field 'hop_cycle'"),
        ("hop_cycles = -1", "hop_cycles must be an integer from 0"),
        ("hop_cycles = true", "hop_cycles must be"),
        ("sram_bytes = 1.5", "sram_bytes must be an integer"),
        ("special_function_rate = 'a'", "special_function_rate must be a positive number"),
        ("grid_rows = 18\nrow_factors = [18]", "needs 396 live nodes, die 0 has 354"),
        ("row_factors = [2, 2]", "product of row_factors [2, 2] is not grid_rows 16"),
        ("row_factors = []", "product of row_factors [] is not grid_rows 16"),
        ("dead = [[[1, 1]]]", "dead has 1 masks for 25 dies"),
        ("dead = 3", "dead must be one list"),
        ("base = 'x'", "base 'x' is no preset"),
        ("base = [1]", "base [1] is no preset"),
        ("base = 'test'\ndead = [[[3, 0]], []]", "die 0 has no site (3, 0)"),
        ("base = 'test'\ndead = [[], [[1, 1], [1, 1]]]", "die 1 names a site twice"),
        ("base = 'test'\ndead = [[], [[1, 1], [1, 2]]]\ngrid_rows = 2", "die 1 has 7"),
        ("code_reserve_bytes = 1310720", "leaves nothing"),
        ("multicast = 'star'", "choose none, row or tree"),
        ("base = 'test'\ndead_router_forwards = false\nvirtual_channels = 2", "need 3 virtual_channels, not 2"),
        ("die_rows = 10000", "die_rows must be"),
        ("die_rows = 'a'", "die_rows must be"),
        ("name = ''", "name must be a non-empty string"),
        ("hop_cycles = ", "not TOML"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as e:
        machine(path)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("dies", "dead", "message"),
    [
        (
            (1, 1),
            [[[0, 1], [1, 0]]],
            "cut die 0 in two: from (0, 0) no way leads to its other sites; the dead ones are",
        ),
        (
            (1, 2),
            [[], [[1, 0], [1, 1], [1, 2], [1, 3]]],
            "cut die 1 in two: from (0, 0), (0, 1), (0, 2), (0, 3) no way",
        ),
        ((2, 1), [[], [[0, 1], [1, 2], [2, 3]]], "cut die 1 in two: from (0, 2), (0, 3), (1, 3) no way"),
        ((2, 2), [[], [[0, 3], [1, 3], [2, 3]], [], []], None),
        ((2, 2), [[[0, 3], [1, 3]], [[2, 0]], [], []], "cut die 0 from die 1: every link between them ends at one"),
        ((2, 2), [[[2, 0], [2, 2]], [], [[0, 1], [0, 3]], []], "cut die 0 from die 2: every link"),
    ],
)
def test_dead_routers_that_cut(dies: tuple[int, int], dead: list[list[list[int]]], message: str | None) -> None:
    fields = {
        "name": "cut", "die_rows": dies[0], "die_cols": dies[1], "site_rows": 3, "site_cols": 4, "grid_rows": 2,
        "grid_cols": 4, "row_factors": [2], "col_factors": [4], "dead": dead,
    }  # fmt: skip
    Machine.from_dict(fields, machine("test"))  # as long as they forward they cut nothing
    fields["dead_router_forwards"] = False
    if message is None:
        Machine.from_dict(fields, machine("test"))
        return
    with pytest.raises(UsageError) as e:
        Machine.from_dict(fields, machine("test"))
    assert "machine cut: dead routers" in str(e.value) and message in str(e.value)


@pytest.mark.parametrize("dead", [9, 12, 25, 40, 200, 359])
def test_a_mask_that_leaves_too_few_nodes_gets_the_largest_grid_that_fits(dead: int) -> None:
    m = machine("d1-die").masked(1, dead)
    fits = [r * c for r in range(1, 17) for c in range(1, 23) if r * c <= 360 - dead]
    assert m.cores == max(fits) and m.wanted_grid == (16, 22) and m.node_count == 360 - dead
    assert math.prod(m.row_factors) == m.grid_rows <= 16 and math.prod(m.col_factors) == m.grid_cols <= 22
    assert Machine.from_dict(m.to_dict()) == m == Machine.from_dict({"dead": m.dead}, machine("d1-die"))
    assert m.masked(2, 8).wanted_grid == (16, 22)  # does not grow again
    assert not machine("d1-die").masked(1, 8).wanted_grid


def test_missing() -> None:
    with pytest.raises(UsageError, match="presets are d1-node, d1-die, d1-tile, test"):
        machine("d2")
    with pytest.raises(UsageError, match="cannot read"):
        machine("/nowhere/x.toml")
    with pytest.raises(UsageError, match="'name' is missing"):
        Machine.from_dict({k: v for k, v in machine("test").to_dict().items() if k != "name"})


def test_the_page_lists_every_number_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "machine.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for f in dataclasses.fields(Machine):
        assert f.metadata["doc"] in rows[f.name] and f.metadata["source"] in rows[f.name], f.name
        if type(f.default) is int:
            assert f"| {f.default:,} |" in rows[f.name], f.name
