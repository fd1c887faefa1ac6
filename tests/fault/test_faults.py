"""Full disks, I/O errors, short writes: at every call of every kind that a volume's life has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import iotrace

FAULTS = [  # where, kind of call and error, fewest calls that there must be
    ("run", "op=write,errno=ENOSPC", 30),
    ("run", "op=write,errno=EIO", 30),
    ("run", "op=write,errno=ENOSPC,sticky", 30),
    ("run", "op=write,errno=EIO,sticky", 30),
    ("run", "op=write,short=100", 30),
    ("run", "op=write,short=5000,path=segments", 20),
    ("run", "op=fsync,errno=EIO", 15),
    ("run", "op=fsync,errno=ENOSPC", 15),
    ("run", "op=fsync,errno=EIO,sticky", 15),
    ("run", "op=truncate,errno=ENOSPC", 1),
    ("run", "op=truncate,errno=EIO,sticky", 1),
    ("run", "op=fallocate,errno=ENOSPC", 2),
    ("run", "op=fallocate,errno=EIO", 2),
    ("run", "op=fallocate,errno=EOPNOTSUPP,sticky", 1),
    ("run", "op=create,errno=ENOSPC", 2),
    ("run", "op=create,errno=EMFILE", 2),
    ("run", "op=any,errno=EIO,sticky", 60),
    ("run_create", "op=any,errno=EIO", 30),
    ("run_create", "op=any,errno=ENOSPC", 30),
    ("run_create", "op=write,errno=ENOSPC,sticky", 8),
    ("run_open", "op=any,errno=EIO", 5),
    ("run_open", "op=any,errno=ENOSPC,sticky", 5),
    ("run_open", "op=read,errno=EIO", 5),
]


def run_faulty(root: Path, *arguments: str) -> Any:
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.faulty", str(root), *arguments],
        env=iotrace.environment(root),
        cwd=iotrace.REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("what", "fault", "fewest"), FAULTS, ids=[f"{what} {fault}" for what, fault, _ in FAULTS])
def test_fault_at_every_call(scratch: Path, what: str, fault: str, fewest: int) -> None:
    report = run_faulty(scratch / "root", what, fault)
    print(f"{report['calls']} calls: {report['outcomes']}")
    assert not report["problems"], "\n".join(report["problems"][:12])
    assert report["calls"] >= fewest


def test_a_short_write_is_no_error(scratch: Path) -> None:
    report = run_faulty(scratch / "root", "run", "op=write,short=100")
    assert set(report["outcomes"]) == {"not noticed"}


def test_a_failed_sync_of_a_commit_is_final(scratch: Path) -> None:
    report = run_faulty(scratch / "root", "run", "op=fsync,errno=EIO,path=segments")
    assert not any("goes on" in outcome for outcome in report["outcomes"]), report["outcomes"]
