"""docs/AUDIT.md and the code name the same kinds, findings and files."""

from __future__ import annotations

import re
from pathlib import Path

from fspf.core.audit import KINDS
from fspf.core.audit_check import NOTES, PROBLEMS

REPO = Path(__file__).resolve().parents[3]
DOCUMENT = (REPO / "docs" / "AUDIT.md").read_text(encoding="utf-8")


def section(number: int) -> str:
    return DOCUMENT.split(f"\n## {number}. ")[1].split("\n## ")[0]


def test_kinds_are_those_of_the_code() -> None:
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", section(2), re.MULTILINE)) == dict(KINDS)


def test_findings_are_those_of_the_code() -> None:
    text = section(4)
    assert set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)) == set(PROBLEMS)
    assert set(NOTES) <= set(re.findall(r"`([a-z]+)`", text))


def test_files_and_tests_that_are_named_exist() -> None:
    for name in ("AUDIT.md", "SECRETS.md"):
        text = (REPO / "docs" / name).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:fspf|tests)/[\w/]+\.py)", text):
            assert (REPO / path).exists(), f"{name}: {path}"
        for test in re.findall(r"`(?:tests/[\w/]+\.py::)?(test_\w+)`", text):
            assert any(
                f"def {test}(" in each.read_text(encoding="utf-8") for each in (REPO / "tests").rglob("test_*.py")
            ), test


def test_kinds_that_the_code_writes_are_in_the_table() -> None:
    written = set()
    for path in (REPO / "fspf" / "cas").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        written |= set(re.findall(r'(?:_tell|audit\.append|audit\.note|self\.note)\(\s*"([a-z-]+)"', text))
    assert {"policy-approval", "sink-lost"} <= written
    assert written <= set(KINDS)
