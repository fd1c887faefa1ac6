"""Files without a name: O_TMPFILE and what links them (generic/004, 389, 509, 530, 531, 604, 732; LTP open14, openat03)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ALICE,
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    BOB,
    ROOT,
    changes,
    linkat,
    mode_of,
    tmpfile,
    umask,
)


@pytest.fixture(autouse=True)
def _without_data_plane(fs: Place, d: Path) -> None:
    """pyfuse3 cannot make them."""
    if fs.kind == "nonative":
        ROOT.gets(errno.EOPNOTSUPP, tmpfile, d)
        pytest.skip("filesystem: without the data plane there is no O_TMPFILE: docs/POSIX.md")


def named(descriptor: int, path: Path) -> None:
    linkat(AT_FDCWD, b"/proc/self/fd/%d" % descriptor, AT_FDCWD, path, AT_SYMLINK_FOLLOW)


def test_a_file_without_a_name(d: Path) -> None:
    with umask(0o027), changes((d, "")):
        descriptor = tmpfile(d, os.O_RDWR, 0o6777)
    info = os.fstat(descriptor)
    assert (info.st_nlink, info.st_size, info.st_mode & 0o7777) == (0, 0, 0o6750)
    assert os.listdir(d) == []
    assert os.write(descriptor, b"x" * 10_000) == 10_000
    os.fsync(descriptor)
    os.setxattr(descriptor, "user.x", b"y")
    with changes((d, "mc"), (descriptor, "c")):
        named(descriptor, d / "named")
    assert os.fstat(descriptor).st_nlink == 1
    os.close(descriptor)
    assert (d / "named").read_bytes() == b"x" * 10_000
    assert os.getxattr(d / "named", "user.x") == b"y"
    assert mode_of(d / "named") == 0o6750
    (d / "named").unlink()


def test_by_empty_path(d: Path) -> None:
    descriptor = tmpfile(d)
    linkat(descriptor, b"", AT_FDCWD, d / "named", AT_EMPTY_PATH)
    linkat(descriptor, b"", AT_FDCWD, d / "again", AT_EMPTY_PATH)
    assert os.fstat(descriptor).st_nlink == 2
    os.close(descriptor)


def test_exclusive_ones_never_get_a_name(d: Path) -> None:
    descriptor = tmpfile(d, os.O_RDWR | os.O_EXCL)
    ROOT.gets(errno.ENOENT, named, descriptor, d / "named")
    ROOT.gets(errno.ENOENT, linkat, descriptor, b"", AT_FDCWD, d / "named", AT_EMPTY_PATH)
    os.close(descriptor)
    assert os.listdir(d) == []


def test_a_name_that_was_taken_away_again(d: Path) -> None:
    """It can be linked while it is open, and then like any other file that has no name any more: never again."""
    descriptor = tmpfile(d)
    named(descriptor, d / "named")
    (d / "named").unlink()
    ROOT.gets(errno.ENOENT, named, descriptor, d / "again")
    os.write(descriptor, b"x")
    assert os.pread(descriptor, 2, 0) == b"x"
    os.close(descriptor)


def test_refusals(d: Path) -> None:
    (d / "file").write_text("x")
    ROOT.gets(errno.ENOTDIR, tmpfile, d / "file")
    ROOT.gets(errno.ENOENT, tmpfile, d / "absent")
    ROOT.gets(errno.EINVAL, tmpfile, d, os.O_RDONLY)
    ALICE.gets(errno.EACCES, tmpfile, d)
    descriptor = tmpfile(d)
    ROOT.gets(errno.EEXIST, named, descriptor, d / "file")
    os.close(descriptor)


def test_owner_and_group(d: Path) -> None:
    d.chmod(0o777)
    descriptor = ALICE(tmpfile, d)
    assert (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid) == (ALICE.uid, ALICE.gid)
    os.close(descriptor)
    os.chown(d, -1, 500)
    d.chmod(0o2777)
    descriptor = ALICE(tmpfile, d, os.O_RDWR, 0o2755)
    assert os.fstat(descriptor).st_gid == 500
    assert os.fstat(descriptor).st_mode & 0o7777 == 0o755  # Alice is not in the group (generic/697)
    os.close(descriptor)


def test_rights_are_those_of_opening(d: Path) -> None:
    d.chmod(0o777)
    descriptor = ALICE(tmpfile, d, os.O_RDWR, 0)
    assert os.write(descriptor, b"x") == 1
    BOB.gets(errno.EACCES, os.open, f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)


def test_many_at_once(d: Path, fs: Place) -> None:
    """generic/530, 531: all of them work, and nothing of them stays."""
    before = os.statvfs(d).f_files - os.statvfs(d).f_ffree
    descriptors = [tmpfile(d) for _ in range(500)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    for number, descriptor in enumerate(descriptors):
        assert os.pread(descriptor, 10, 0) == b"%d" % number
        os.close(descriptor)
    assert os.listdir(d) == []
    fs.remount()
    if fs.is_fspf:
        assert os.statvfs(d).f_files - os.statvfs(d).f_ffree <= before


def test_named_ones_survive_remounting(d: Path, fs: Place) -> None:
    for number in range(20):
        descriptor = tmpfile(d)
        os.write(descriptor, b"%d" % number)
        if number % 2:
            named(descriptor, d / str(number))
        os.close(descriptor)
    fs.remount()
    assert sorted(map(int, os.listdir(d))) == list(range(1, 20, 2))
    assert [(d / str(number)).read_text() for number in range(1, 20, 2)] == [str(n) for n in range(1, 20, 2)]


def test_in_a_removed_directory(d: Path) -> None:
    (d / "x").mkdir()
    inside = os.open(d / "x", os.O_RDONLY)
    (d / "x").rmdir()
    try:
        descriptor = os.open(f"/proc/self/fd/{inside}", os.O_TMPFILE | os.O_RDWR, 0o600)
    except (FileNotFoundError, PermissionError):
        pass
    else:
        os.write(descriptor, b"x")
        os.close(descriptor)
    os.close(inside)
