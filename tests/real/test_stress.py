"""Many processes do random things to one tree (tests/support/stress.c); what they leave must be there after remounting.

Also that nothing is left over: counts, slots, space. What single calls must do is in tests/posix.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import pytest

from tests.fault.slots_truth import slot_problems
from tests.support.mounted import Site
from tests.support.plugin import NIGHTLY
from tests.support.programs import compiled, on_ext4
from tests.support.snapshot import Seen, differences, snapshot, space_problems

pytestmark = pytest.mark.timeout(3600 if NIGHTLY else 300)

STEPS: Final = 100_000 if NIGHTLY else 2000
ROUNDS: Final = 5 if NIGHTLY else 2
MOMENT_NS: Final = 10**9
OPTIONS: Final = {
    "native": (),
    "often committed": ("commit=20ms",),
    "little memory": ("cache=16M", "commit=100ms"),
    "nouring": ("nouring",),
    "nonative": ("nonative",),
}


@pytest.fixture
def stress(scratch_root: Path) -> Path:
    return compiled("stress", scratch_root)


def run(stress: Path, root: Path, seed: int, *flags: str, steps: int = STEPS, processes: int = 4) -> None:
    command = [stress, "-s", str(seed), "-n", str(steps), "-p", str(processes), *flags, root]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, umask=0o022)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_on_ext4(stress: Path) -> None:
    if not on_ext4():
        pytest.skip("filesystem: /var/tmp is not ext4")
    with tempfile.TemporaryDirectory(prefix="fspf-stress-", dir="/var/tmp") as root:
        run(stress, Path(root), 1)


def wait_for_inodes(root: Path, expected: int) -> None:
    """Wait until statfs(2) counts no more inodes than there are: the kernel lets go of deleted ones in its own time."""
    deadline = time.monotonic() + 30
    while True:
        space = os.statvfs(root)
        used = space.f_files - space.f_ffree
        if used == expected:
            return
        assert time.monotonic() < deadline, f"{used} inodes instead of {expected}"
        time.sleep(0.01)


def times_hold(before: Seen, after: Seen) -> bool:
    """Compare the times of change, which a mount may show a moment later when it is mounted again.

    Kernel and mount both take the time of a direct write or a fallocate(2), and the kernel may have handed its own
    over just before. Never earlier: a backup would miss the change.
    """
    return all(
        old <= new < old + MOMENT_NS
        for old, new in ((before.mtime_ns, after.mtime_ns), (before.ctime_ns, after.ctime_ns))
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_on_a_mount(stress: Path, site: Site, options: str) -> None:
    words = ("suid", "dev", *OPTIONS[options])
    seed = sum(map(ord, options))
    for number in range(ROUNDS):
        site.mount(*words)
        root = site.mountpoint / "tree"
        root.mkdir(exist_ok=True)
        if options == "nonative":  # slow, and holes have to be read
            run(stress, root, seed + number, "-h", steps=STEPS // 4)
        else:
            run(stress, root, seed + number)
        before = snapshot(root)
        wait_for_inodes(root, len({seen.ino for seen in before.values()}) + 1)
        site.umount()
        site.run("verify", site.volume)
        with site.library(read_only=True) as volume:
            assert slot_problems(volume) == []
            counts = volume.status()
        site.mount(*words, "ro")
        after = snapshot(root)
        # What is only in the page cache takes no space yet.
        assert differences(before, after, "blocks", "mtime_ns", "ctime_ns") == []
        if (
            options != "nonative"
        ):  # many files have set-id bits, and pyfuse3 does not tell who keeps the time of a write
            assert [name for name in before if not times_hold(before[name], after[name])] == []
        assert space_problems(root) == [] or options == "nonative"  # pyfuse3 cannot tell where data is
        site.umount()
        inodes = {seen.ino: seen for seen in after.values()}
        assert counts["files"] == len(inodes) + 1  # the root of the volume
        assert counts["bytes"] == sum(seen.size for seen in inodes.values() if stat.S_ISREG(seen.mode))
    site.mount(*words)
    subprocess.run(["rm", "-rf", site.mountpoint / "tree"], check=True)
    site.umount()
    with site.library(read_only=True) as volume:
        assert slot_problems(volume) == []
        assert volume.status()["files"] == 1
        assert volume.status()["bytes"] == 0


def test_times_of_new_files_stay_on_a_slow_mount(site: Site) -> None:
    """What is written in the moment of creation arrives at the mount later, and is not to be stamped with that time."""
    site.mount("nonative")
    files = [site.mountpoint / str(number) for number in range(200)]
    for file in files:
        file.write_bytes(b"x" * 5000)
    before = [file.stat().st_mtime_ns for file in files]
    site.umount()
    site.mount("nonative")
    assert [file.stat().st_mtime_ns for file in files] == before
