"""The arithmetic of tools/bench: medians, shares, targets, who is behind whom, and what is said about what failed.

Whether the figures come from real file systems is shown by tests/e2e/test_bench.py.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.macro import catalog, chart, report, store
from benchmarks.macro.catalog import BY_KEY, DEFAULT, LINES, QUICK, SYSTEM_NAMES
from benchmarks.macro.engine import VISITS, Run
from benchmarks.macro.report import BEGIN, END, Measured, Results

REPO = Path(__file__).resolve().parents[2]
RATE = BY_KEY["rand-read-cold"]  # /s: more is better; target 90 % of ext4
TIME = BY_KEY["untar"]  # s: less is better; targets 25 % of ext4 and three times gocryptfs
MACHINE = {"processor": "one, 2 cores", "disk": "/dev/x, ext4"}


def results(lines: dict[str, Measured], *, quick: bool = False) -> Results:
    return Results(MACHINE, {"ext4": "of Linux", "fspf": "0.1"}, lines, quick=quick)


# ---------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("line", "ours", "theirs", "expected"),
    [
        pytest.param(RATE, 50.0, 100.0, 0.5, id="half the rate"),
        pytest.param(RATE, 300.0, 100.0, 3.0, id="three times the rate"),
        pytest.param(TIME, 4.0, 2.0, 0.5, id="twice the time"),
        pytest.param(TIME, 1.0, 3.0, 3.0, id="a third of the time"),
        pytest.param(BY_KEY["memory"], 200.0, 100.0, 0.5, id="twice the memory"),
        pytest.param(BY_KEY["mount-0"], 10.0, 20.0, 2.0, id="mounts in half the time"),
    ],
)
def test_above_one_is_better_whatever_the_unit(line: catalog.Line, ours: float, theirs: float, expected: float) -> None:
    assert report.speed_ratio(line, ours, theirs) == pytest.approx(expected)


def test_median_is_not_moved_by_one_slow_round() -> None:
    measured = Measured({"fspf": [100.0, 101.0, 5.0], "ext4": [200.0, 204.0]})
    assert measured.median("fspf") == 100.0
    assert measured.median("ext4") == 202.0
    assert measured.median("gocryptfs") is None


def test_spread_is_of_all_rounds() -> None:
    measured = Measured({"fspf": [90.0, 100.0, 120.0], "ext4": [7.0]})
    assert measured.spread("fspf") == pytest.approx(0.3)
    assert measured.spread("ext4") is None
    assert measured.spread("null") is None


@pytest.mark.parametrize(
    ("key", "figures", "expected"),
    [
        pytest.param("rand-read-cold", {"fspf": [90.0], "ext4": [100.0]}, [("ext4", 0.9, True)], id="just met"),
        pytest.param("rand-read-cold", {"fspf": [89.0], "ext4": [100.0]}, [("ext4", 0.89, False)], id="just missed"),
        pytest.param(
            "untar",
            {"fspf": [4.0], "ext4": [1.0], "gocryptfs": [8.0]},
            [("ext4", 0.25, True), ("gocryptfs", 2.0, False)],
            id="one of two",
        ),
        pytest.param("untar", {"fspf": [4.0]}, [], id="nothing to compare with"),
        pytest.param("untar", {"ext4": [4.0], "gocryptfs": [9.0]}, [], id="ours is missing"),
        pytest.param("seq-read-backing", {"fspf": [74.0], "null": [100.0]}, [("null", 0.74, False)], id="of null"),
        pytest.param(
            "app-mariadb",
            {"fspf": [10.0], "fspf-bounded": [80.0], "ext4": [100.0]},
            [("ext4, bounded", 0.8, True)],
            id="a database is judged in bounded mode",
        ),
        pytest.param("seq4-read-warm", {"fspf": [1.0], "ext4": [100.0]}, [], id="no target"),
    ],
)
def test_targets(key: str, figures: dict[str, list[float]], expected: list[tuple[str, float, bool]]) -> None:
    found = report.checks(BY_KEY[key], Measured(figures))
    assert [(check.against, check.met) for check in found] == [(name, met) for name, _, met in expected]
    assert [check.reached for check in found] == pytest.approx([reached for _, reached, _ in expected])


def test_every_peer_that_is_ahead_is_named_the_furthest_first() -> None:
    figures = {"fspf": [100.0, 110.0], "gocryptfs": [150.0, 160.0], "securefs": [90.0, 130.0], "encfs": [50.0, 60.0]}
    found = report.behind(RATE, Measured(figures))
    assert [(entry.peer, entry.clear) for entry in found] == [("gocryptfs", True), ("securefs", False)]
    assert found[0].ratio == pytest.approx(105 / 155)


def test_behind_in_time_is_being_slower() -> None:
    found = report.behind(TIME, Measured({"fspf": [3.0], "gocryptfs": [2.0], "cryfs": [4.0]}))
    assert [(entry.peer, entry.clear) for entry in found] == [("gocryptfs", True)]


def test_plain_ext4_is_no_peer() -> None:
    assert report.behind(RATE, Measured({"fspf": [1.0], "ext4": [2.0], "null": [9.0], "fspf-bounded": [3.0]})) == []


# --------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234567.0, "1 234 567")],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_verdicts_name_what_was_missed_and_what_failed() -> None:
    text = report.verdicts(
        results(
            {
                "rand-read-cold": Measured({"fspf": [50.0], "ext4": [100.0], "gocryptfs": [60.0]}),
                "untar": Measured(
                    {"fspf": [1.0], "ext4": [1.0]}, {"cryfs": "cryfs is not installed", "encfs": "died\nbadly"}
                ),
            }
        )
    )
    assert "1 of 2 are met" in text
    assert "missed: rand-read-cold: 50 % of ext4, target 90 %" in text
    assert "behind a peer: rand-read-cold: 0.83 x gocryptfs\n" in text
    assert "cryfs: untar: cryfs is not installed" in text
    assert "encfs: untar: died badly" in text
    assert "* file systems not asked for: null, fspf-bounded, securefs\n" in text
    assert "* gocryptfs: not asked for: untar\n" in text
    assert "lines not asked for: seq-write," in text


def test_nothing_behind_is_said_of_what_was_measured_only() -> None:
    assert "on no line that was measured" in report.verdicts(
        results({"untar": Measured({"fspf": [1.0], "ext4": [1.0]})})
    )


def test_section_has_a_row_for_each_line() -> None:
    lines = {
        "untar": Measured({"fspf": [3.0, 5.0], "ext4": [1.0, 1.0]}, {"gocryptfs": "why | not"}, "abc123", "2026-11-25"),
        "app-gcc": Measured({"fspf": [21.0], "ext4": [20.0]}, {}, "abc123", "2026-11-25"),
    }
    text = report.section(results(lines), "picture.png")
    assert f"| {TIME.title} | s | 1.00 ±0% | 4.00 ±25% |" in text
    assert f"| {TIME.title} | untar | 25 % | 25 %, 3 x gocryptfs |" in text
    assert text.index("Lines against peers") < text.index(TIME.title) < text.index("Real applications: medians")
    assert "| app-gcc | 95 % | 90 % |" in text
    assert "one, 2 cores" in text
    assert "2026-11-25 at abc123" in text
    assert "(picture.png)" in text
    assert "quick run" not in text
    assert "quick run" in report.section(results(lines, quick=True), "")
    rows = [row for row in text.splitlines() if row.startswith("|")]
    widths = {row.count("|") for row in rows}
    assert len(widths) == 2, "each table has rows of one width"


def test_section_is_replaced_and_the_rest_stays() -> None:
    first = f"{BEGIN}\nold\n{END}"
    new = f"{BEGIN}\nnew\n{END}"
    document = "# Results\n\nother\n"
    once = report.replace_section(document, first)
    assert once == f"# Results\n\nother\n\n{first}\n"
    longer = once + "\n## Later\n\nstays\n"
    assert report.replace_section(longer, new) == f"# Results\n\nother\n\n{new}\n\n## Later\n\nstays\n"
    assert report.replace_section(once, first) == once


@pytest.mark.parametrize("damaged", [BEGIN, END, f"{END}\n{BEGIN}"])
def test_damaged_markers_are_refused(damaged: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        report.replace_section(f"text\n{damaged}\nmore\n", "new")


# ----------------------------------------------------------------------------------------- between runs, selecting


def test_figures_survive_being_stored(tmp_path: Path) -> None:
    made = results({"untar": Measured({"fspf": [1.5, 2.0]}, {"cryfs": "no"}, "abc", "2026-11-25")}, quick=True)
    path = tmp_path / "results.json"
    assert store.load(path) is None
    store.save(made, path)
    assert store.load(path) == made


def test_merging_keeps_lines_that_were_not_measured_again() -> None:
    old = results({"untar": Measured({"fspf": [1.0]}), "rm": Measured({"fspf": [2.0]})})
    new = results({"rm": Measured({"fspf": [3.0]})})
    assert {key: line.figures for key, line in store.merged(old, new).lines.items()} == {
        "untar": {"fspf": [1.0]},
        "rm": {"fspf": [3.0]},
    }
    assert store.merged(None, new) == new
    for other in (replace(old, machine={"processor": "another"}), replace(old, quick=True)):
        assert store.merged(other, new) == new, "figures of another machine or size must not mix"


def test_lines_are_selected_by_key_group_and_as_applications() -> None:
    assert catalog.select([]) == [line.key for line in LINES]
    assert catalog.select(["rm", "untar"]) == ["untar", "rm"]
    assert catalog.select(["git"]) == ["git-clone", "git-status-cold", "git-status", "git-checkout"]
    assert catalog.select(["apps"]) == [key for key in BY_KEY if key.startswith("app-")]
    with pytest.raises(ValueError, match="'nonsense'"):
        catalog.select(["untar", "nonsense"])


def test_catalogue_is_whole() -> None:
    assert len(BY_KEY) == len(LINES)
    assert {line.group for line in LINES} == set(VISITS)
    assert {name for line in LINES for name in line.systems} <= set(SYSTEM_NAMES)
    assert all({"fspf"} < set(line.systems) for line in LINES)


# The issue's own numbers: line -> share of plain ext4, and what gocryptfs had.
TARGETS = {
    "seq-write-fsync": (50, 15), "seq-read-cold": (90, 43), "seq-read-warm": (95, 9), "rand-read-cold": (90, 78),
    "rand-write": (50, 14), "rand-write-fsync": (50, 55), "write-512": (80, 10), "untar": (25, 13), "find-cold": (50, 26),
    "read-cold": (60, 32), "rm": (100, 44), "sqlite-commits": (60, 42),
}  # fmt: skip


def test_targets_are_those_of_the_issue() -> None:
    found = {line.key: (round((line.target or 0) * 100), line.issue) for line in LINES if line.issue is not None}
    assert found == TARGETS


# ------------------------------------------------------------------------------------------------------ the engine


def test_a_missing_peer_is_named_on_each_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run(["untar", "rm"], ["ext4", "fspf", "gocryptfs", "cryfs"], QUICK, 1, tmp_path)
    run.note_missing()
    assert run.systems == ["ext4", "fspf"]
    assert run.failures == {
        (key, name): f"{name} is not installed" for key in ("untar", "rm") for name in ("gocryptfs", "cryfs")
    }


@pytest.mark.parametrize(("full", "wanted"), [(False, set()), (True, {"mount-1m"})])
def test_a_million_files_in_a_peer_only_if_asked_for(*, full: bool, wanted: set[str], tmp_path: Path) -> None:
    run = Run(["mount-1m"], ["fspf", "gocryptfs"], DEFAULT, 1, tmp_path, full=full)
    assert run.wanted("million", "gocryptfs") == wanted
    assert run.wanted("million", "fspf") == {"mount-1m"}


# ------------------------------------------------------------------------------------------------------- the chart


def test_chart_has_a_row_for_each_line_in_one_panel() -> None:
    figures = {name: [float(number + 2)] for number, name in enumerate(SYSTEM_NAMES)}
    made = results({line.key: Measured({name: figures[name] for name in line.systems}) for line in LINES})
    rows = [chart.rows_against(made, against) for against in ("ext4", "null", "gocryptfs")]
    shown = {line.key for lines in rows for line in lines}
    assert shown == set(BY_KEY)


def test_chart_is_a_picture(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps its fonts open."""
    rng = random.Random(3)
    made = results({line.key: Measured({name: [rng.uniform(1, 50)] for name in line.systems}) for line in LINES})
    for name, drawn in (("all", made), ("none", results({}))):
        store.save(drawn, tmp_path / f"{name}.json")
        program = (
            "import pathlib, sys; from benchmarks.macro import chart, store; place = pathlib.Path(sys.argv[1]);"
            "print(chart.draw(store.load(place.with_suffix('.json')), place.with_suffix('.png')))"
        )
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=60)
        assert (done.stdout, done.stderr) == (f"{name == 'all'}\n", "")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none.png").exists()
