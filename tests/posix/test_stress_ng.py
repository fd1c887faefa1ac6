"""stress-ng's file stressors, which check themselves, on one mount: a test for each group of them.

Whatever they find shows as a failed stressor, a complaint in the daemon's log, or a volume that does not verify.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Site, make_site

SECONDS = 12 if os.environ.get("FSPF_NIGHTLY") else 1

GROUPS = {
    "names": ("dentry", "filename", "link", "mknod", "rename", "symlink", "touch"),
    "directories": ("chdir", "dir", "dirdeep", "dirmany", "getdent"),
    "attributes": ("access", "chattr", "chmod", "chown", "fstat", "inode-flags", "utime", "xattr"),
    "locks": ("flock", "lease", "locka", "lockf", "lockofd"),
    "descriptors": ("dnotify", "dup", "fanotify", "fcntl", "handle", "inotify", "open"),
    "allocation": ("fallocate", "fiemap", "file-ioctl", "fpunch", "fsize", "seek", "verity"),
    "contents": ("aio", "copy-file", "hdd", "io", "iomix", "readahead", "revio", "sendfile", "splice", "sync-file"),
}


@pytest.fixture(scope="module")
def mounted(scratch_root: Path) -> Iterator[Site]:
    base = scratch_root / "stress"
    base.mkdir()
    for site in make_site(base):
        site.mount("allow_other", "suid", "dev")
        yield site
        site.umount()
        site.run("verify", site.volume)


@pytest.mark.parametrize("group", GROUPS)
def test_group(mounted: Site, group: str) -> None:
    words = ["stress-ng", "--temp-path", str(mounted.mountpoint), "--timeout", str(SECONDS), "--verify", "--oomable"]
    for name in GROUPS[group]:
        words += [f"--{name}", "1"]
    words += ["--hdd-bytes", "8M", "--iomix-bytes", "8M", "--fallocate-bytes", "8M", "--filename-opts", "posix"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, cwd="/")
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert not re.search(r"\bfail:", report), report
    assert mounted.complaints() == []
    assert os.listdir(mounted.mountpoint) == [], "a stressor could not clean up"
