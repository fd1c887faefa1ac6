"""`tools/bench` as it is run, over a few lines: the document that comes out, and that nothing stays behind.

How fast anything is, is not asked here. The arithmetic is in tests/unit/test_bench_report.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import leftovers
from tests.support.mounted import REPO

LINES: Final = "seq-write,seq-read-warm,rand-write-fsync,untar,rm,mount-0,memory,git-status,sqlite-commits,app-sqlite"
BOTH: Final = [
    "seq-write",
    "seq-read-warm",
    "rand-write-fsync",
    "untar",
    "rm",
    "git-status",
    "sqlite-commits",
    "app-sqlite",
]
PATIENCE_S: Final = 60.0


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("no-root: the benchmark drops the machine's caches")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no-fuse: the benchmark mounts file systems")


def command(scratch: Path, *words: str) -> list[str]:
    work = scratch / "work"
    work.mkdir()
    fixed = ["--quick", "--no-install", "--rounds", "1", "--work", str(work), "--results", str(scratch / "results.md")]
    return [str(REPO / "tools" / "bench"), *fixed, *words]


def test_quick_run_writes_a_report(scratch: Path) -> None:
    document = scratch / "results.md"
    document.write_text("# Results\n\n## Of old\n\nstays\n", encoding="utf-8")
    words = command(scratch, "--systems", "ext4,fspf", "--lines", LINES)
    done = subprocess.run(words, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "**Failed or skipped**: nothing." in done.stdout, done.stdout

    figures = json.loads((scratch / "results.json").read_text(encoding="utf-8"))["lines"]
    assert set(figures) == set(LINES.split(","))
    for key in BOTH:
        assert set(figures[key]["figures"]) == {"ext4", "fspf"}
        assert all(value > 0 for values in figures[key]["figures"].values() for value in values)
    assert 5 < figures["memory"]["figures"]["fspf"][0] < 2000  # MB

    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\n## Of old\n\nstays\n")
    judged = {row.split(" | ")[1]: row for row in text.splitlines() if row.startswith("| ") and " % " in row}
    assert set(BOTH) <= set(judged)
    assert "2 cores" in text or f"{os.cpu_count()} cores" in text
    commit = subprocess.run(
        ["git", "-C", REPO, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    assert commit in text
    assert os.listdir(scratch / "work") == []
    assert not leftovers.mounts_below(str(scratch))


@contextmanager
def benchmark_with_a_mount(scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run tools/bench until it has mounted an FSPF volume."""
    words = command(scratch, "--systems", "fspf", "--lines", "untar,rm")
    with open(scratch / "log", "wb") as log, open("/proc/self/mountinfo", "rb") as mounts:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            watch = select.poll()
            watch.register(mounts, select.POLLPRI | select.POLLERR)
            end = time.monotonic() + PATIENCE_S
            while not leftovers.mounts_below(str(scratch)):
                assert process.poll() is None, (scratch / "log").read_text()
                assert time.monotonic() < end
                watch.poll(1000)
            yield process
            end = time.monotonic() + PATIENCE_S
            while leftovers.mounts_below(str(scratch)):
                assert time.monotonic() < end, "still mounted"
                watch.poll(1000)
        finally:
            process.kill()
            process.wait()


def test_interrupted_run_leaves_nothing(scratch: Path) -> None:
    with benchmark_with_a_mount(scratch) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 130
    assert os.listdir(scratch / "work") == []


def test_daemon_does_not_outlive_a_killed_benchmark(scratch: Path) -> None:
    """Processes are looked for by the fixture that looks after every test."""
    with benchmark_with_a_mount(scratch) as process:
        process.kill()
        process.wait()
