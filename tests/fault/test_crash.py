"""The crash explorer: every state that a crash of a workload may leave opens, with everything that was promised.

CI checks some thousands of states, the nightly run many more. Replay a failing one with tools/crash.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fault.explorer import Report, explore_in_processes, record_workload
from tests.fault.plane_sabotage import KEPT_SABOTAGES, PLANE_SABOTAGES
from tests.fault.sabotage import SABOTAGES
from tests.support.plugin import NIGHTLY

KEPT = Path(os.environ.get("FSPF_CRASH_KEEP", "/tmp/fspf-crash"))

CI_LEVEL = [  # workload, seed, freshness, share of the states (None: all), fewest states that this must be
    pytest.param("creation", 1, "strict", None, 60, id="creation"),
    pytest.param("scripted", 1, "strict", None, 700, id="each kind of change"),
    pytest.param("mixed", 1, "strict", 500, 900, id="random operations"),
    pytest.param("busy", 1, "strict", 500, 900, id="others write while a commit waits"),
    pytest.param("rekeys", 1, "strict", None, 400, id="rekey"),
    pytest.param("busy", 2, "bounded:50ms,3", 600, 500, id="bounded"),
    pytest.param("mixed", 3, "none", 600, 500, id="no freshness"),
]


PLANE_LEVEL = [  # the same for workloads through the native data plane, whose threads no seed repeats
    pytest.param("plane_scripted", None, 500, 10, id="each kind of request"),
    pytest.param("plane_mixed", 300, 500, 15, id="random requests, commits by the clock"),
    pytest.param("plane_churn", 300, 500, 15, id="others write, cut and flush within every commit"),
    pytest.param("plane_clients", 300, 500, 10, id="clients fsync at once"),
]

KEPT_LEVEL = [  # again, with a CAS that keeps records of the log
    pytest.param("plane_fsyncs", "keeping", 400, id="fsyncs"),
    pytest.param("plane_fsyncs", "embedded", 400, id="fsyncs, embedded"),
    pytest.param("plane_scripted", "embedded", 300, id="each kind of request, embedded"),
    pytest.param("plane_mixed", "keeping", 300, id="random requests"),
    pytest.param("plane_mixed", "embedded", 300, id="random requests, embedded"),
    pytest.param("plane_churn", "embedded", 300, id="others write within every commit, embedded"),
    pytest.param("plane_clients", "embedded", 300, id="clients fsync at once, embedded"),
]


def _explore(
    scratch: Path, name: str, seed: int, freshness: str, options: list[str], *, broken: str = "", cas: str = "memory"
) -> Report:
    recording = record_workload(name, seed, scratch, freshness=freshness, broken=broken, cas=cas)
    report = explore_in_processes(recording, scratch, options)
    print(f"{name} (seed {seed}, {freshness}): {report.states} states at {report.cuts} cuts in {report.seconds:.1f} s")
    return report


def _fail_on(report: Report) -> None:
    assert not report.violations, "\n".join(
        [*report.violations, "replay with tools/crash.py --replay FILE:", *report.kept]
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "seed", "freshness", "most", "fewest"), CI_LEVEL)
def test_every_crash_leaves_a_committed_state(
    scratch: Path, name: str, seed: int, freshness: str, most: int | None, fewest: int
) -> None:
    options = ["--keep", str(KEPT)]
    if most is not None and not NIGHTLY:
        options += ["--sample", str(2 * most)]
    report = _explore(scratch, name, seed, freshness, options)
    _fail_on(report)
    assert report.states >= fewest
    generations = report.generations
    assert generations == list(range(generations[-1] + 1)), "some generation was never recovered to"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "most", "fewest", "generations"), PLANE_LEVEL)
def test_every_crash_under_the_data_plane_leaves_what_was_promised(
    scratch: Path, name: str, most: int | None, fewest: int, generations: int
) -> None:
    options = ["--keep", str(KEPT)]
    if most is not None and not NIGHTLY:
        options += ["--sample", str(2 * most)]
    report = _explore(scratch, name, 1, "strict", options)
    _fail_on(report)
    assert report.states >= fewest
    assert len(report.generations) >= generations


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "cas", "most"), KEPT_LEVEL)
def test_every_crash_leaves_what_the_cas_has_kept(scratch: Path, name: str, cas: str, most: int) -> None:
    """Record and anchor are one write to the CAS; either disk may lose all that it had not synced, and the other nothing."""
    options = ["--keep", str(KEPT)]
    if not NIGHTLY:
        options += ["--sample", str(2 * most)]
    report = _explore(scratch, name, 1, "strict", options, cas=cas)
    _fail_on(report)
    assert report.states >= most
    assert len(report.generations) >= 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "cas"),
    [
        ("scripted", "memory"),
        ("churn", "memory"),
        ("rekeys", "memory"),
        ("plane_mixed", "memory"),
        ("plane_fsyncs", "keeping"),
    ],
)
def test_a_crash_during_recovery_leaves_a_committed_state(scratch: Path, name: str, cas: str) -> None:
    """Killed processes leave unsynced writes that a power cut during the next process's recovery may yet lose."""
    count = 60 if NIGHTLY else 10
    options = ["--only-recoveries", "--recoveries", str(count), "--recovery-states", "60", "--keep", str(KEPT)]
    options += ["--random", "3" if NIGHTLY else "1"]
    report = _explore(scratch, name, 5, "strict", options, cas=cas)
    _fail_on(report)
    assert report.states >= 10 * count


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["scripted", "rekeys"])
def test_the_embedded_cas_crashes_along(scratch: Path, name: str) -> None:
    """Volume and CAS on one machine: the CAS's file loses what it had not synced, too."""
    options = ["--keep", str(KEPT)] if NIGHTLY else ["--keep", str(KEPT), "--sample", "600"]
    report = _explore(scratch, name, 1, "strict", options, cas="embedded")
    _fail_on(report)
    assert report.states >= 500


@pytest.mark.parametrize("broken", SABOTAGES)
def test_a_broken_commit_is_noticed(scratch: Path, broken: str) -> None:
    report = _explore(scratch, "busy", 1, "strict", ["--stop-after", "1"], broken=broken)
    assert report.violations


@pytest.mark.parametrize("broken", KEPT_SABOTAGES)
def test_a_broken_keeping_of_records_is_noticed(scratch: Path, broken: str) -> None:
    workload, cas = KEPT_SABOTAGES[broken]
    report = _explore(scratch, workload, 1, "strict", ["--stop-after", "1"], broken=broken, cas=cas)
    assert report.violations


@pytest.mark.parametrize(
    "broken",
    [
        *(name for name in PLANE_SABOTAGES if name not in KEPT_SABOTAGES),
        "segments_not_synced",
        "root_before_sync",
        "freed_too_early",
    ],
)
def test_a_broken_commit_under_the_data_plane_is_noticed(scratch: Path, broken: str) -> None:
    """Threads decide which slots a life uses, so a life may happen to use none that the fault spoils: then another one is lived."""
    assert any(_is_noticed(scratch, broken, seed) for seed in range(1, 5))


def _is_noticed(scratch: Path, broken: str, seed: int) -> bool:
    life = scratch / str(seed)
    life.mkdir()
    try:
        report = _explore(life, "plane_churn", seed, "strict", ["--stop-after", "1"], broken=broken)
    except RuntimeError as exc:  # by chance before any crash: the volume itself found what was broken
        if "are missing" not in str(exc):
            raise
        return True
    return bool(report.violations)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["plane_mixed", "plane_churn", "plane_clients"])
def test_many_random_lives_under_the_data_plane(scratch: Path, seed: int, name: str) -> None:
    options = ["--keep", str(KEPT), "--seed", str(seed), "--random", "6", "--recoveries", "5"]
    _fail_on(_explore(scratch, name, 1000 + seed, "strict", options))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("freshness", ["strict", "bounded:20ms,2", "none"])
def test_many_random_lives(scratch: Path, seed: int, freshness: str) -> None:
    options = ["--keep", str(KEPT), "--seed", str(seed), "--random", "6", "--recoveries", "10"]
    _fail_on(_explore(scratch, "mixed", 1000 + seed, freshness, options))
