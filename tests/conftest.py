"""Shared fixtures: a seeded generator, the examples folder; and the hypothesis profile."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # only property tests need it, and they import it themselves
    pass
else:
    # A shared machine pauses now and then: a deadline would report that as a failure.
    settings.register_profile(
        "default", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "the ONNX suite (tests/conformance)")
    group.addoption("--conformance-resume", action="store_true", help="take outcomes of earlier runs of these sources")
    group.addoption("--conformance-report", action="store_true", help="write docs/conformance.md after a complete run")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name: each test has its own data, the same in every run and order."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of examples."""
    return Path(__file__).resolve().parents[1] / "examples"

