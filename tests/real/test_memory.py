"""Memory and descriptors of the daemon: bounded by the cache however large the tree, and flat over time.

What the bound is made of: docs/MOUNT.md, "Memory".
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Final

import pytest

from fspf.core.types import ROOT_INO
from tests.support.mounted import Site

MIB: Final = 1 << 20
# Above the cache: interpreter and libraries, buffers of requests in flight, SQLite, what malloc keeps.
CONSTANT: Final = 160 * MIB
PER_DIRECTORY: Final = 1000

pytestmark = pytest.mark.timeout(3600)


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(
    ("inodes", "cache"),
    [
        pytest.param(20_000, 16, id="twenty thousand, little memory"),
        pytest.param(1_000_000, 128, id="a million", marks=pytest.mark.nightly),
    ],
)
def test_walking_many_inodes(site: Site, inodes: int, cache: int) -> None:
    with site.library() as volume:
        for number in range(inodes // PER_DIRECTORY):
            directory = volume.create_inode(ROOT_INO, b"%d" % number, stat.S_IFDIR | 0o755, uid=0, gid=0)
            for file in range(PER_DIRECTORY - 1):
                volume.create_inode(directory, b"file-%06d" % file, stat.S_IFREG | 0o644, uid=0, gid=0)
            if number % 50 == 49:
                volume.commit()
    site.mount(f"cache={cache}M")
    pid = site.pid
    before = resident(pid)
    found = subprocess.run(
        ["find", site.mountpoint, "-type", "f", "-size", "0", "-printf", "."], capture_output=True, check=True
    )
    assert len(found.stdout) == inodes // PER_DIRECTORY * (PER_DIRECTORY - 1)
    after = resident(pid)
    print(f"{inodes} inodes, cache {cache} MiB: {before / MIB:.0f} MiB before, {after / MIB:.0f} MiB after")
    assert after < cache * MIB + CONSTANT


def test_rounds_leave_nothing_behind(site: Site) -> None:
    site.mount("cache=16M", "commit=100ms")
    pid = site.pid
    seen = []
    for _ in range(5):
        for number in range(1500):
            path = site.mountpoint / f"file-{number}"
            path.write_bytes(b"x" * 5000)
            os.setxattr(path, "user.a", b"1")
        for number in range(1500):
            (site.mountpoint / f"file-{number}").unlink()
        seen.append((resident(pid), descriptors(pid)))
    print([(round(memory / MIB, 1), count) for memory, count in seen])
    # The first rounds fill the caches; threads that were busy at once keep a buffer each.
    assert seen[-1][0] < seen[2][0] + 16 * MIB
    assert seen[-1][1] <= seen[2][1] + 4
