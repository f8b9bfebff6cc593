"""The official ONNX suite through the compiler and the emulator.

The default run takes a seeded tenth of the cases. `pytest tests/conformance -m slow` takes all of them on the machine
`test` with the plain engine, a tenth with native code, another tenth on a die, and the real networks on the whole tile.
`--conformance-resume` goes on where an interrupted run stopped; `--conformance-report` writes docs/conformance.md and
the counts behind it (d1c/frontend/conformance.json) at the end of a complete run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import report, results
from tests.conformance.cases import CATEGORIES, Case
from tests.conformance.exceptions import PLAIN_LIMIT, exceptions, exempt
from tests.conformance.run import Outcome, run_case


def judge(case: Case, outcome: Outcome) -> None:
    """Fail on everything but a pass and a refusal that is listed."""
    listed = exempt(case.name)
    assert not outcome.host, f"nodes on the host, from frozen inputs {', '.join(outcome.host)}"
    if outcome.status in ("passed", "folded"):
        assert listed is None, f"the case passes: remove it from exceptions.toml ({listed and listed.reason})"
    elif outcome.status == "refused":
        assert listed is not None, f"refused, and not listed in exceptions.toml: {outcome.reason}"
    else:
        pytest.fail(f"{outcome.status}: {outcome.reason}")


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest,
    case: Case,
    machine: str,
    engine: str,
    cache_folder: Path,
    known: dict[str, Outcome],
) -> Outcome:
    """Of this run, or of an earlier one with the same sources where --conformance-resume asks for it. Slow runs leave
    their outcomes for the report and for the next run."""
    found = known.get(results.key(case, machine, engine))
    if found is None:
        found = run_case(case, machine, engine)
        if request.node.get_closest_marker("slow"):
            results.append(cache_folder, case, found)
    return found


@pytest.mark.parametrize(("machine", "engine"), [("test", "numpy")])
@pytest.mark.suite(tenth=0)
def test_a_tenth(case: Case, outcome: Outcome) -> None:
    judge(case, outcome)
    recorded = report.recorded_status(case)
    assert recorded in (None, outcome.status), f"conformance.json says {recorded}, which is stale"


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "engine"), [("test", "numpy")])
@pytest.mark.suite
def test_all(case: Case, outcome: Outcome) -> None:
    judge(case, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "engine"), [("test", "jit")])
@pytest.mark.suite(tenth=1)
def test_native_code(case: Case, outcome: Outcome) -> None:
    judge(case, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "engine"), [("d1-die", "jit")])
@pytest.mark.suite(tenth=2)
def test_on_a_die(case: Case, outcome: Outcome) -> None:
    judge(case, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "engine"), [("d1-tile", "jit")])
@pytest.mark.suite(real=True)
def test_real_networks_on_a_tile(case: Case, outcome: Outcome) -> None:
    """The weights of the largest, VGG-19, need 575 MB: more than the SRAM of a die."""
    judge(case, outcome)


def test_the_suite_is_whole(suite: tuple[Case, ...]) -> None:
    counts = {name: sum(c.category == name for c in suite) for name in CATEGORIES}
    assert sum(counts.values()) == len(suite) > 2000
    assert len({c.node for c in suite}) == len(suite)
    assert min(counts.values()) > 0


def test_every_exception_has_cases_of_its_category(suite: tuple[Case, ...]) -> None:
    for entry in exceptions():
        covered = [c for c in suite if entry.covers(c.name)]
        assert covered and {c.category for c in covered} == {entry.category}, entry
        assert entry.reason
        for pattern in entry.cases:
            assert any(type(entry)((pattern,), "", "").covers(c.name) for c in covered), f"{pattern} covers nothing"
    assert all(sum(e.covers(c.name) for e in exceptions()) <= 1 for c in suite)


def test_few_plain_cases_are_exempt(suite: tuple[Case, ...]) -> None:
    assert sum(c.category == "plain" and exempt(c.name) is not None for c in suite) <= PLAIN_LIMIT


def test_the_page_follows_from_the_counts() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.recorded())
