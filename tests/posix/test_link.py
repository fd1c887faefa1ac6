"""link(2) and linkat(2): counts, times, and what cannot be linked (pjdfstest link/)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.posix import (
    ALICE,
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    BOB,
    ROOT,
    changes,
    linkat,
    make,
    opened,
    tick,
    times,
)


@pytest.mark.parametrize("kind", ["file", "fifo", "char", "block", "socket", "symlink"])
def test_names_of_one_inode(d: Path, kind: str) -> None:
    make(kind, d / "a")
    (d / "dir").mkdir()
    for number, name in enumerate(("b", "dir/c"), start=2):
        parent = (d / name).parent
        with changes((d / "a", "c"), (parent, "mc")):
            os.link(d / "a", d / name, follow_symlinks=False)
        assert {os.lstat(d / each).st_nlink for each in ("a", name)} == {number}
        assert os.lstat(d / "a") == os.lstat(d / name)
    if kind != "symlink":
        (d / "dir" / "c").chmod(0o600)
        assert os.lstat(d / "a") == os.lstat(d / "b")
    with changes((d / "b", "c"), (d, "mc"), (d / "dir", "")):
        (d / "a").unlink()
    assert os.lstat(d / "b").st_nlink == 2
    (d / "dir" / "c").unlink()
    assert os.lstat(d / "b").st_nlink == 1


def test_failure_changes_no_time(d: Path) -> None:
    make("file", d / "a", 0o644, ALICE)
    make("file", d / "b")
    with changes((d / "a", ""), (d / "b", ""), (d, "")):
        ROOT.gets(errno.EEXIST, os.link, d / "a", d / "b")
        ALICE.gets(errno.EACCES, os.link, d / "a", d / "c")


def test_directories_have_one_name(d: Path) -> None:
    (d / "dir").mkdir()
    ROOT.gets(errno.EPERM, os.link, d / "dir", d / "other")
    d.chmod(0o777)
    ALICE.gets(errno.EPERM, os.link, d / "dir", d / "other")


def test_another_file_system(d: Path, elsewhere: Path) -> None:
    make("file", d / "a")
    make("file", elsewhere / "a")
    ROOT.gets(errno.EXDEV, os.link, d / "a", elsewhere / "b")
    ROOT.gets(errno.EXDEV, os.link, elsewhere / "a", d / "b")


def test_links_are_linked_or_followed(d: Path) -> None:
    make("file", d / "a")
    (d / "link").symlink_to("a")
    linkat(AT_FDCWD, os.fsencode(d / "link"), AT_FDCWD, d / "same", 0)
    assert (d / "same").is_symlink()
    linkat(AT_FDCWD, os.fsencode(d / "link"), AT_FDCWD, d / "followed", AT_SYMLINK_FOLLOW)
    assert not (d / "followed").is_symlink()
    assert (d / "a").stat().st_nlink == 2


def test_by_descriptor(d: Path) -> None:
    make("file", d / "a")
    with opened(d / "a", os.O_RDONLY) as descriptor:
        linkat(descriptor, b"", AT_FDCWD, d / "empty", AT_EMPTY_PATH)
        linkat(AT_FDCWD, b"/proc/self/fd/%d" % descriptor, AT_FDCWD, d / "proc", AT_SYMLINK_FOLLOW)
        assert os.fstat(descriptor).st_nlink == 3
        for name in ("a", "empty", "proc"):
            (d / name).unlink()
        ROOT.gets(errno.ENOENT, linkat, descriptor, b"", AT_FDCWD, d / "again", AT_EMPTY_PATH)
        proc = b"/proc/self/fd/%d" % descriptor
        ROOT.gets(errno.ENOENT, linkat, AT_FDCWD, proc, AT_FDCWD, d / "again", AT_SYMLINK_FOLLOW)


def test_into_a_removed_directory(d: Path) -> None:
    make("file", d / "a")
    (d / "dir").mkdir()
    with opened(d / "dir", os.O_RDONLY) as descriptor:
        (d / "dir").rmdir()
        with changes((d / "a", "")):
            ROOT.gets(errno.ENOENT, linkat, AT_FDCWD, os.fsencode(d / "a"), descriptor, "b", 0)


def test_protected_hardlinks(d: Path) -> None:
    """Linux's own rule: no links to what one may not write, where fs.protected_hardlinks is set."""
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("kernel: fs.protected_hardlinks is off")
    d.chmod(0o777)
    make("file", d / "a", 0o644, ALICE)
    BOB.gets(errno.EPERM, os.link, d / "a", d / "b")
    ALICE(os.link, d / "a", d / "b")


def test_many_names(d: Path) -> None:
    make("file", d / "a")
    for number in range(300):
        os.link(d / "a", d / str(number))
    assert (d / "a").stat().st_nlink == 301
    before = times(d / "a").ctime
    tick()
    for number in range(300):
        (d / str(number)).unlink()
    assert (d / "a").stat().st_nlink == 1
    assert times(d / "a").ctime > before
