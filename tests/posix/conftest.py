"""Two places to run each test: plain ext4, which says what is right, and a mounted volume.

A test that fails on ext4 is a wrong test. How a mount is made and ended is in tests/support/mounted.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import leftovers
from tests.support.mounted import Site, make_site, need_fuse

SET_ID_AND_DEVICES = ("allow_other", "suid", "dev")  # as ext4 is mounted


@dataclass
class Place:
    """A file system under test. `root` is open to everybody."""

    kind: str
    root: Path
    site: Site | None = None
    options: tuple[str, ...] = ()

    @property
    def is_fspf(self) -> bool:
        return self.site is not None

    def can(self, call: Callable[..., object], *args: Any) -> bool:
        """Make a call; False when it is one of those that need the data plane and there is none."""
        try:
            call(*args)
        except OSError as exc:
            if self.kind == "nonative" and exc.errno in {errno.EOPNOTSUPP, errno.ENODEV}:
                return False
            raise
        return True

    @contextlib.contextmanager
    def may_differ(self, why: str) -> Iterator[None]:
        """What ext4 does and a mount need not: docs/POSIX.md, "What cannot hold", says *why*, too."""
        try:
            yield
        except (AssertionError, OSError):
            if not self.is_fspf:
                raise

    def remount(self) -> None:
        """Forget all that is only in memory. Nothing may be open. Of ext4 nobody doubts it."""
        if self.site is not None:
            self.site.umount()
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv(leftovers.MARK)  # the new daemon is not this test's, but the session's
                self.site.mount(*SET_ID_AND_DEVICES, *self.options)


def _on_ext4() -> Iterator[Place]:
    need_fuse()
    root = Path(tempfile.mkdtemp(prefix="fspf-posix-", dir="/var/tmp"))
    root.chmod(0o777)
    kind = subprocess.run(["stat", "-f", "-c", "%T", root], check=True, capture_output=True, text=True).stdout.strip()
    try:
        if kind != "ext2/ext3":
            pytest.skip(f"filesystem: /var/tmp is {kind}, not ext4")
        yield Place("ext4", root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _on_fspf(scratch_root: Path, kind: str, *options: str) -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(dir=scratch_root))
    for each in make_site(base):
        each.open_to_others()
        each.mount(*SET_ID_AND_DEVICES, *options)
        each.mountpoint.chmod(0o777)
        yield Place(kind, each.mountpoint, each, options)


@pytest.fixture(scope="session", params=["ext4", "fspf", "nonative"])
def fs(request: pytest.FixtureRequest, scratch_root: Path) -> Iterator[Place]:
    """The file system under test; "nonative": every request is answered in Python."""
    if request.param == "ext4":
        yield from _on_ext4()
    else:
        yield from _on_fspf(scratch_root, request.param, *(["nonative"] if request.param == "nonative" else []))


@pytest.fixture
def d(fs: Place) -> Iterator[Path]:
    """An empty directory of root's, mode 0755, gone after the test."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir=fs.root))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
    assert os.geteuid() == 0, "the test did not come back from another user"


@pytest.fixture
def elsewhere(scratch: Path) -> Path:
    """A directory on a third file system."""
    return scratch
