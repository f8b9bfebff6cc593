"""The summary's arithmetic, and how a table of a long network is shortened."""

from __future__ import annotations

import pytest

from d1c import report


def test_short_plans_show_what_is_cut() -> None:
    assert report.short_plan("[0 1 2: dr dc nr.0-3 / 1, 3, 4, 5]") == "0 1 2: dr dc nr.0-3 / 1"
    assert report.short_plan("[0, 1]") == "one core"
    assert report.short_plan("[0: nr / 2, 1 | dr dc]") == "0: nr / 2 | dr dc"


def summary(layers: int) -> dict[str, object]:
    rows = [
        {
            "name": f"v{i}", "origin": f"/node{i}/[x]", "op": "mac", "plan": "[0: nr / 1]", "nodes_used": 16,
            "sram_peak_bytes": 2048, "cycles": 1000 + i, "bound_cycles": 100, "binds": "launch", "noc_bytes": 64,
        }
        for i in range(layers)
    ]  # fmt: skip
    cycles = sum(1000 + i for i in range(layers))
    return {
        "model": "m", "target": "test", "precision": "bf16", "batch": 2, "nodes_used": 16, "nodes": 16,
        "sram_peak_bytes": 2048, "sram_bytes": 65536, "time_us": cycles / 2e3, "cycles": cycles,
        "inferences_per_second": 2e9 * 2 / cycles, "percent_of_peak": 1.0, "percent_of_bound": 10.0,
        "weight_load_us": None, "weight_bytes": 0, "inputs_start": "DIP HBM", "outputs_end": "DIP HBM", "host_ops": [],
        "folded": {"nodes": 0, "bytes": 0}, "layers": rows, "passes": [],
    }  # fmt: skip


def test_short_networks_are_shown_whole_with_names_as_they_are() -> None:
    shown = report.text(summary(5))
    assert all(f"/node{i}/[x]" in shown for i in range(5)), "brackets are no markup"
    assert "left out" not in shown


def test_long_networks_show_the_dearest_layers_in_order_and_say_so() -> None:
    layers = report.ROWS + 10
    shown = report.text(summary(layers))
    assert "/node9/" not in shown and "/node10/" in shown and f"/node{layers - 1}/" in shown
    assert shown.index("/node10/") < shown.index("/node11/")
    assert f"10 cheap layers with {sum(1000 + i for i in range(10)):,} cycles together are left out" in shown
    assert "/node0/" in report.text(summary(layers), all_layers=True)


@pytest.mark.parametrize("target", ["d1-node", "test"])
def test_sram_per_layer_is_at_most_the_peak(target: str) -> None:
    import d1c

    from .test_api import chain

    s = d1c.compile(chain(), target=target).summary()
    assert 0 < max(x["sram_peak_bytes"] for x in s["layers"]) <= s["sram_peak_bytes"] + 64 * len(s["layers"])
    assert s["percent_of_bound"] == pytest.approx(100 * s["bound_cycles"] / s["cycles"])
    assert s["inferences_per_second"] == pytest.approx(4 / (s["time_us"] * 1e-6))
