"""The tamper explorer through the native data plane: what is altered is EIO for each kind of request, never wrong bytes.

A sample in CI, all of them nightly. What a real kernel makes of it is in tests/e2e/test_mount_damage.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.plugin import NIGHTLY
from tests.tamper.plane import PlaneTally, explore_changing, explore_reading
from tests.tamper.specimens import Specimen
from tools.lib.tampering.blocks import block_cases, segment_cases
from tools.lib.tampering.cases import Case


def _chosen(specimen: Specimen, most: int) -> list[Case]:
    """Return cases of every kind of block, as many of each; all of them nightly."""
    cases = [
        *block_cases(specimen.anatomy, specimen.material),
        *segment_cases(specimen.anatomy, specimen.material),
    ]
    if NIGHTLY:
        return cases
    groups = Counter(case.group for case in cases)
    kept: list[Case] = []
    seen: Counter[str] = Counter()
    each = max(1, most // len(groups))
    for case in cases:
        step = max(1, groups[case.group] // each)
        if seen[case.group] % step == 0:
            kept.append(case)
        seen[case.group] += 1
    return kept


def _assert_right(tally: PlaneTally, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n  {what}: {tally.cases} cases; refused {dict(tally.refused)}; right {dict(tally.right)}")
    assert not tally.faults, "\n".join(tally.faults[:30])


@pytest.mark.timeout(7200 if NIGHTLY else 180)
@pytest.mark.parametrize(("name", "most"), [("closed", 200), ("crashed", 60), ("spread", 30)])
def test_reading_gives_what_was_written_or_eio(
    specimens: dict[str, Specimen], capsys: pytest.CaptureFixture[str], name: str, most: int
) -> None:
    specimen = specimens[name]
    tally = explore_reading(specimen, _chosen(specimen, most), PlaneTally())
    _assert_right(tally, f"{name}, read through the data plane", capsys)
    assert tally.cases >= most // 3
    if name == "closed":
        assert {"read", "lookup", "readdir", "lseek"} <= set(tally.refused)


@pytest.mark.timeout(7200 if NIGHTLY else 180)
@pytest.mark.parametrize(("name", "most"), [("closed", 90), ("crashed", 30)])
def test_changing_what_is_altered_is_refused(
    specimens: dict[str, Specimen], capsys: pytest.CaptureFixture[str], scratch: Path, name: str, most: int
) -> None:
    specimen = specimens[name]
    cases = [case for case in _chosen(specimen, most) if "namespace" not in case.group]
    tally = explore_changing(specimen, cases, PlaneTally(), scratch)
    _assert_right(tally, f"{name}, changed through the data plane", capsys)
    assert {"write", "truncate", "fallocate", "copy_file_range"} <= set(tally.refused)
