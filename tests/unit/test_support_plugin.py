"""The checks that watch all other tests do speak.

Each case runs a small test file in a pytest of its own, in a tests/unit folder with this repository's conftest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]


@dataclass
class Ran:
    returncode: int
    output: str
    report: dict[str, Any]


def run(folder: Path, *sources: str, ci: bool = False, level: str = "unit", nightly: bool = False) -> Ran:
    """Run each of *sources* as tests/LEVEL/test_N.py, all in one pytest."""
    below = folder / "tests" / level
    below.mkdir(parents=True)
    shutil.copy(REPO / "pyproject.toml", folder / "pyproject.toml")
    shutil.copy(REPO / "tests" / "conftest.py", folder / "tests" / "conftest.py")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "tests" / "support", folder / "tests" / "support", ignore=ignored)
    for number, source in enumerate(sources):
        text = "from __future__ import annotations\n" + textwrap.dedent(source)
        (below / f"test_{number}.py").write_text(text, encoding="utf-8")
    environment = dict(os.environ, CI="true" if ci else "", FSPF_NIGHTLY="1" if nightly else "")
    environment["FSPF_TEST_REPORT"] = str(folder / "report.json")
    environment.pop("FSPF_TEST_RUN", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "tests",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Ran(done.returncode, done.stdout + done.stderr, report)


CASES = {
    "unannounced warning": (
        "import logging\ndef test_x(): logging.getLogger('fspf.x').warning('oh %s', 1)",
        "fspf.x: WARNING: oh 1",
    ),
    "required but silent": ("def test_x(quiet): quiet.require('never')", "never logged: 'never'"),
    "open file": ("KEEP = []\ndef test_x(scratch): KEEP.append(open(scratch / 'f', 'w'))", "still open: "),
    "child": (
        "import subprocess\nP = []\ndef test_x(): P.append(subprocess.Popen(['sleep', '60']))",
        "still running: ",
    ),
    "daemon": (
        "import subprocess\ndef test_x(): subprocess.run(['setsid', '-f', 'sleep', '62'], check=True)",
        " sleep 62",
    ),
    "python warning": ("import warnings\ndef test_x(): warnings.warn('x', DeprecationWarning)", "DeprecationWarning"),
    "skip without key": ("import pytest\ndef test_x(): pytest.skip('just so')", "a skip says 'key: detail'"),
    "module skip without key": (
        "import pytest\npytest.importorskip('no_such_module')\ndef test_x(): pass",
        "a skip says",
    ),
    "strict xfail": ("import pytest\n@pytest.mark.xfail\ndef test_x(): pass", "XPASS(strict)"),
    "unknown marker": ("import pytest\n@pytest.mark.unti\ndef test_x(): pass", "unti"),
    "broken module": ("import no_such_module", "no_such_module"),
}


@pytest.fixture(scope="module")
def bad_habits(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("bad"), *(source for source, _ in CASES.values()))


@pytest.mark.parametrize("name", CASES)
def test_bad_habit_fails(bad_habits: Ran, name: str) -> None:
    module = f"test_{list(CASES).index(name)}.py"
    assert any(module in failure for failure in bad_habits.report["failures"]), bad_habits.output
    assert CASES[name][1] in bad_habits.output


def test_every_bad_habit_is_counted(bad_habits: Ran) -> None:
    assert bad_habits.returncode != 0
    counts = [bad_habits.report[key] for key in ("passed", "failed", "skipped")]
    assert counts == [0, len(CASES), 0], bad_habits.output


def test_leftover_mount_fails_and_is_taken_away(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("no-root: mounting a tmpfs")
    source = (
        "import subprocess\ndef test_x(tmp_path): subprocess.run(['mount', '-t', 'tmpfs', 'x', tmp_path], check=True)"
    )
    ran = run(tmp_path, source)
    assert "still mounted: " in ran.output
    point = ran.output.partition("still mounted: ")[2].split()[0]
    assert not os.path.ismount(point)


def test_good_habits_pass(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import logging, os, subprocess
        import pytest
        from hypothesis import given, strategies as st

        log = logging.getLogger("fspf.x")

        @pytest.fixture(scope="module")
        def held(scratch_root):
            with open(scratch_root / "held", "w") as file:
                yield file

        def test_announced(quiet):
            quiet.require("oh \\\\d")
            log.warning("oh 1")

        def test_wide_fixture_may_hold_a_file(held): held.write("x")

        def test_child_that_ended(): subprocess.run(["true"], check=True)

        @given(st.integers())
        def test_property(n): assert isinstance(n, int)

        @pytest.mark.xfail
        def test_expected_failure(): assert False

        def test_skipped(): pytest.skip("no-space: 99 TB")
        """,
    )
    assert ran.returncode == 0, ran.output
    assert (ran.report["passed"], ran.report["failed"], ran.report["skipped"]) == (5, 0, 1)


def test_ci_insists_on_what_set_up_installs(tmp_path: Path) -> None:
    sources = [f"import pytest\ndef test_x(): pytest.skip('{key}: detail')" for key in ("no-fuse", "kernel")]
    ran = run(tmp_path, *sources, ci=True)
    assert (ran.report["failed"], ran.report["skipped"]) == (1, 1), ran.output


@pytest.mark.parametrize(("nightly", "passed"), [(False, 1), (True, 2)])
def test_nightly_tests_run_at_night(tmp_path: Path, nightly: bool, passed: int) -> None:
    source = "import pytest\ndef test_x(): pass\n@pytest.mark.nightly\ndef test_y(): pass"
    assert run(tmp_path, source, nightly=nightly).report["passed"] == passed


def test_level_is_marked_by_folder(tmp_path: Path) -> None:
    source = "def test_x(request): assert request.node.get_closest_marker('tamper')"
    assert run(tmp_path, source, level="tamper").report["passed"] == 1
