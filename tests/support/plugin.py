"""The pytest plugin of this repository: levels by folder, skips that must be justified, a report for tools/test.

Fixtures are in tests/conftest.py. Which skips are allowed is said in tests/support/skips.py.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator
from typing import Any, Final

import hypothesis
import pytest

from tests.support import leftovers, skips

LEVELS: Final = ("unit", "property", "native", "tamper", "fault", "cas", "e2e", "posix", "real")
CI: Final = os.environ.get("CI", "") not in {"", "0", "false"}
NIGHTLY: Final = os.environ.get("FSPF_NIGHTLY", "") not in {"", "0"}
REPORT_ENV: Final = "FSPF_TEST_REPORT"  # where tools/test wants the numbers of one level


class _Report:
    """Counts for tools/test, written when the session ends."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.skips: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.collect_errors: list[str] = []

    def add(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        before = self.outcomes.get(report.nodeid)
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.skipped and before is None:
            if hasattr(report, "wasxfail"):
                self.outcomes[report.nodeid] = "passed"  # strict: an expected failure that happened
            else:
                self.outcomes[report.nodeid] = "skipped"
                self.skips[report.nodeid] = _reason(report)
        elif report.passed and report.when == "call" and before is None:
            self.outcomes[report.nodeid] = "passed"

    def write(self, path: str) -> None:
        outcomes = list(self.outcomes.values())
        slowest = sorted(self.seconds.items(), key=lambda item: -item[1])[:5]
        document = {
            "passed": outcomes.count("passed"),
            "failed": outcomes.count("failed") + len(self.collect_errors),
            "skipped": outcomes.count("skipped"),
            "failures": [*self.collect_errors, *(name for name, got in self.outcomes.items() if got == "failed")],
            "skips": self.skips,
            "slowest": slowest,
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file)


_REPORT: Final = pytest.StashKey[_Report]()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def pytest_configure(config: pytest.Config) -> None:
    leftovers.mark_this_run()
    config.stash[_REPORT] = _Report()
    common: dict[str, Any] = {"deadline": None, "print_blob": True}  # a busy machine is not a bug
    too_slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
    hypothesis.settings.register_profile("dev", max_examples=50, stateful_step_count=30, **common)
    hypothesis.settings.register_profile(
        "ci", max_examples=150, stateful_step_count=50, derandomize=True, suppress_health_check=too_slow, **common
    )
    hypothesis.settings.register_profile(
        "nightly", max_examples=3000, stateful_step_count=200, suppress_health_check=too_slow, **common
    )
    profile = os.environ.get("FSPF_HYPOTHESIS", "nightly" if NIGHTLY else "ci" if CI else "dev")
    hypothesis.settings.load_profile(profile)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fspf: ci={CI} nightly={NIGHTLY} uid={os.getuid()}"


def level_of(path: os.PathLike[str]) -> str | None:
    """The folder right below tests/, if it is a level."""
    parts = os.fspath(path).split(os.sep)
    for here, below in itertools.pairwise(parts):
        if here == "tests" and below in LEVELS:
            return below
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        level = level_of(item.path)
        if level is not None:
            item.add_marker(getattr(pytest.mark, level))
        nightly = item.get_closest_marker("nightly") is not None and not NIGHTLY
        (left_out if nightly else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        problem = skips.complaint(_reason(report), ci=CI)
        if problem is not None:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: {problem}"
    item.config.stash[_REPORT].add(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        problem = skips.complaint(_reason(report), ci=CI)
        if problem is not None:
            report.outcome = "failed"
            report.longrepr = f"{collector.nodeid}: {problem}"
        else:
            collector.config.stash[_REPORT].outcomes[collector.nodeid] = "skipped"
            collector.config.stash[_REPORT].skips[collector.nodeid] = _reason(report)
    if report.failed:
        collector.config.stash[_REPORT].collect_errors.append(report.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(REPORT_ENV)
    if path:
        session.config.stash[_REPORT].write(path)
