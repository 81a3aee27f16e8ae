"""A pytest plugin: with BACKY_NO_SKIP=1 a skipped test is a failure.

A test skips where the machine lacks what it needs, which is kind to a newcomer.  On a machine
that can have everything it would only hide that the test no longer runs.
"""

import os
from collections.abc import Generator

import pytest

SWITCH = "BACKY_NO_SKIP"


# Tried first and wrapping, so that this looks last, at what all other plugins made of the report.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what was skipped by a mark, in a fixture, in a test or in a subtest."""
    report = yield
    # An expected failure is reported as skipped too, but it ran.
    if not hasattr(report, "wasxfail"):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module or class that was skipped as a whole, while tests were collected."""
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn `report` into one of a failure where it tells of a skip and the switch is on."""
    if os.environ.get(SWITCH) == "1" and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{SWITCH}=1 and {skip_text(report.longrepr)}"


def skip_text(longrepr: object) -> str:
    """What pytest tells of a skip: file, line and reason."""
    if isinstance(longrepr, tuple):
        path, line, reason = longrepr
        return f"{path}:{line}: {reason}"
    return f"skipped: {longrepr}"
