"""Check and test everything, level by level, and close with one line of numbers.

What a level contains is decided by the folders below tests/; which skips count, by tests/support/plugin.py.

    tools/test                      lint, types, then every level in order
    tools/test --fast               lint, types, unit, property, native, tamper
    tools/test --nightly            every level, with the tests marked nightly and many more examples
    tools/test --level fault        only this level (may be repeated), no lint
    tools/test --level unit -- -k keyring -x      what follows -- goes to pytest

Levels run one after the other, each in a pytest of its own. Not in parallel: a level that mounts already has two
processes for the two cores of a small machine, and the leftover checks need to know whose process it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

REPO: Final = Path(__file__).resolve().parents[2]

# Level -> the minutes after which it has hung (CI has 90 for everything; pytest-timeout ends single tests earlier).
LEVELS: Final = {
    "unit": 8,
    "property": 12,
    "native": 8,
    "tamper": 8,
    "fault": 15,
    "cas": 15,
    "e2e": 15,
    "posix": 10,
    "real": 15,
}
FAST: Final = ("unit", "property", "native", "tamper")
NIGHTLY_FACTOR: Final = 12
NO_TESTS: Final = 5  # pytest's exit code

CHECKS: Final = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
}


@dataclass
class Outcome:
    """How one check or level went."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def say(text: str = "") -> None:
    print(text, flush=True)


def run(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """Run *command* as a process group of its own; its exit code, or nothing when it had to be ended."""
    with subprocess.Popen(command, cwd=REPO, env=environment, process_group=0, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            return None
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


def check(name: str) -> Outcome:
    say(f"--- {name}")
    begin = time.monotonic()
    code = run(CHECKS[name], dict(os.environ), 600)
    outcome = Outcome(name, seconds=time.monotonic() - begin)
    if code != 0:
        outcome.failed = 1
        outcome.notes.append("found something" if code is not None else "had not ended after 600 s")
    return outcome


def level(name: str, extra: list[str], *, nightly: bool) -> Outcome:
    folder = REPO / "tests" / name
    if not any(folder.rglob("test_*.py")):
        return Outcome(name, notes=[f"tests/{name} has no tests yet"])
    say(f"--- {name}")
    minutes = LEVELS[name] * (NIGHTLY_FACTOR if nightly else 1)
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        environment = dict(os.environ, FSPF_TEST_REPORT=file.name, FSPF_WERROR="1")
        if nightly:
            environment["FSPF_NIGHTLY"] = "1"
        command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", f"tests/{name}", *extra]
        code = run(command, environment, minutes * 60)
        text = file.read()
    outcome = Outcome(name, seconds=time.monotonic() - begin)
    report: dict[str, Any] = json.loads(text) if text else {}
    outcome.passed = report.get("passed", 0)
    outcome.failed = report.get("failed", 0)
    outcome.skipped = report.get("skipped", 0)
    outcome.notes += [f"failed: {failure}" for failure in report.get("failures", [])[:20]]
    outcome.notes += [f"skipped: {test}: {reason}" for test, reason in report.get("skips", {}).items()]
    outcome.notes += [f"slow: {seconds:.1f} s {test}" for test, seconds in report.get("slowest", []) if seconds > 10]
    if code is None:
        outcome.notes.append(f"had not ended after {minutes} minutes")
    elif code == NO_TESTS and not extra:
        outcome.notes.append("no test was collected")
    elif code < 0:
        outcome.notes.append(f"pytest was ended by {signal.Signals(-code).name}")
    elif not report:
        outcome.notes.append(f"pytest ended with {code} before it could report")
    if code != 0 and outcome.failed == 0 and not (code == NO_TESTS and extra):
        outcome.failed = 1
    return outcome


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="the levels without mounts and crashes")
    which.add_argument("--nightly", action="store_true", help="everything, for hours")
    which.add_argument("--level", action="append", choices=list(LEVELS), default=[], help="only this level")
    parser.add_argument("--no-lint", action="store_true", help="leave out ruff and mypy")
    parser.add_argument("pytest", nargs="*", help="after --: arguments for pytest")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    names = given.level or (FAST if given.fast else LEVELS)
    outcomes = []
    if not given.level and not given.no_lint:
        outcomes += [check(name) for name in CHECKS]
    outcomes += [level(name, given.pytest, nightly=given.nightly) for name in names]

    say("\n--- summary")
    for outcome in outcomes:
        numbers = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        if outcome.name in CHECKS:
            numbers = "failed" if outcome.failed else "clean"
        say(f"{outcome.name:12} {outcome.seconds:7.1f} s  {numbers}")
        for note in outcome.notes:
            say(f"{'':12}   {note}")
    passed, failed, skipped = (sum(getattr(o, key) for o in outcomes) for key in ("passed", "failed", "skipped"))
    if passed + failed == 0:
        say("no test ran at all")
        failed = 1
    say(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
