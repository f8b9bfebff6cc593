"""The suite's cases as parameters, what an interrupted run has left, and the report of a complete one."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.conformance import report, results
from tests.conformance.cases import Case, collect
from tests.conformance.run import Outcome


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "suite(tenth=None, real=False): which cases of the ONNX suite a test takes")


def _folder(config: pytest.Config) -> Path:
    """Beside pytest's own cache: it stays between runs."""
    return config.cache.mkdir("conformance")  # type: ignore[union-attr]


def tenth(case: Case) -> int:
    """Which tenth of the suite the case belongs to, by its name."""
    return zlib.crc32(case.node.encode()) % 10


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("suite")
    if mark is None:
        return
    number, real = mark.kwargs.get("tenth"), mark.kwargs.get("real", False)
    cases = [
        c for c in collect(_folder(metafunc.config))
        if (c.kind == "real") == real and number in (None, tenth(c))
    ]  # fmt: skip
    metafunc.parametrize("case", cases, ids=[c.node for c in cases])


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> tuple[Case, ...]:
    """All cases."""
    return collect(_folder(pytestconfig))


@pytest.fixture(scope="session")
def cache_folder(pytestconfig: pytest.Config) -> Path:
    return _folder(pytestconfig)


@pytest.fixture(scope="session")
def known(pytestconfig: pytest.Config) -> dict[str, Outcome]:
    """Outcomes that need no second run."""
    return results.read(_folder(pytestconfig)) if pytestconfig.getoption("--conformance-resume") else {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workerinput"):
        return
    results.compact(_folder(config))
    if config.getoption("--conformance-report", False):
        print("\n" + report.write(_folder(config)))
