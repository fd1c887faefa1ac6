"""open(2): permissions by class, flags, truncation (pjdfstest open/; generic/003, 126, 131)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.posix import (
    ALICE,
    BOB,
    PLAIN_KINDS,
    ROOT,
    User,
    changes,
    make,
    mode_of,
    opened,
    renameat2,
    sync,
    umask,
)


def _try(path: Path, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
@pytest.mark.parametrize(
    ("who", "shift"),
    [(ALICE, 6), (User(BOB.uid, ALICE.gid), 3), (User(BOB.uid, BOB.gid, (ALICE.gid,)), 3), (BOB, 0)],
    ids=["owner", "group", "member", "others"],
)
def test_permission_by_class(d: Path, kind: str, who: User, shift: int) -> None:
    """open/06, generic/126: the first class that fits decides alone, even when another would allow more."""
    path = make(kind, d / "x", 0o644, ALICE)
    extra = os.O_NONBLOCK
    for bits in range(8):
        for rest in (0, 0o777 & ~(7 << shift)):
            path.chmod(bits << shift | rest)
            if kind == "file":
                assert who(_try, path, os.O_RDONLY) == bool(bits & 4), oct(mode_of(path))
                assert who(_try, path, os.O_WRONLY) == bool(bits & 2)
                assert who(_try, path, os.O_RDWR) == (bits & 6 == 6)
            elif kind == "dir":
                assert who(_try, path, os.O_RDONLY | os.O_DIRECTORY) == bool(bits & 4)
            else:
                assert who(_try, path, os.O_RDONLY | extra) == bool(bits & 4)
                assert who(_try, path, os.O_RDWR | extra) == (bits & 6 == 6)
            for mask, bit in ((os.R_OK, 4), (os.W_OK, 2), (os.X_OK, 1)):
                assert who(os.access, path, mask) == bool(bits & bit)


def test_root_may_everything_but_execute_what_nobody_may(d: Path) -> None:
    path = make("file", d / "x", 0)
    assert _try(path, os.O_RDWR)
    assert not os.access(path, os.X_OK)
    path.chmod(0o001)
    assert os.access(path, os.X_OK)


def test_execution(d: Path) -> None:
    path = d / "program"
    path.write_text("#!/bin/sh\nexit 3\n")
    for mode, wanted in ((0o755, 3), (0o644, errno.EACCES), (0o711, None)):
        path.chmod(mode)
        if wanted is not None:
            assert _exec(path) == wanted
    (d / "true").write_bytes(Path("/bin/true").read_bytes())
    (d / "true").chmod(0o711)  # a program may run without being readable
    assert ALICE(_exec, d / "true") == 0
    (d / "true").chmod(0o744)
    assert ALICE(_exec, d / "true") == errno.EACCES


def _exec(path: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.execv(path, [os.fspath(path)])
        except OSError as exc:
            os._exit(exc.errno or 255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- O_CREAT, O_EXCL, O_TRUNC


def test_creating_follows_links_and_exclusive_creating_does_not(d: Path) -> None:
    (d / "link").symlink_to("new")
    ROOT.gets(errno.EEXIST, os.open, d / "link", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.close(os.open(d / "link", os.O_CREAT | os.O_RDWR))
    assert stat.S_ISREG(os.lstat(d / "new").st_mode)


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "char", "block", "socket", "symlink"])
def test_exclusive_creation_of_what_exists(d: Path, kind: str) -> None:
    make(kind, d / "x")
    with changes((d, ""), (d / "x", "")):
        ROOT.gets(errno.EEXIST, os.open, d / "x", os.O_CREAT | os.O_EXCL)


def test_creating_with_a_mode_that_forbids_writing(d: Path) -> None:
    d.chmod(0o777)
    with umask(0), ALICE:
        descriptor = os.open(d / "x", os.O_CREAT | os.O_RDWR, 0o400)
        assert os.write(descriptor, b"x") == 1
        os.close(descriptor)
    ALICE.gets(errno.EACCES, os.open, d / "x", os.O_WRONLY)
    assert mode_of(d / "x") == 0o400


def test_opening_what_exists_with_creat_changes_nothing(d: Path) -> None:
    path = make("file", d / "x", 0o640)
    with changes((path, ""), (d, "")):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o777))
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("size", [0, 5, 5000])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_APPEND])
def test_truncating(d: Path, size: int, flags: int) -> None:
    """open/00: times change also when nothing was there to be cut."""
    path = d / "x"
    path.write_bytes(b"x" * size)
    sync(d)
    with changes((path, "mc"), (d, "")):
        os.close(os.open(path, flags | os.O_TRUNC))
    assert path.stat().st_size == 0


def test_truncating_needs_permission(d: Path) -> None:
    path = d / "x"
    path.write_text("kept")
    with changes((path, "")):
        ALICE.gets(errno.EACCES, os.open, path, os.O_WRONLY | os.O_TRUNC)
        ALICE.gets(errno.EACCES, os.open, path, os.O_RDONLY | os.O_TRUNC)
    assert path.read_text() == "kept"


# -- other flags


def test_directories_are_not_written(d: Path) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC):
        ROOT.gets(errno.EISDIR, os.open, d, flags)
    ROOT.gets(errno.EISDIR, os.open, d, os.O_CREAT | os.O_RDWR)
    with opened(d, os.O_RDONLY) as descriptor:
        ROOT.gets(errno.EISDIR, os.read, descriptor, 10)
        ROOT.gets((errno.EINVAL, errno.EBADF), os.ftruncate, descriptor, 0)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_o_directory(d: Path, kind: str) -> None:
    make(kind, d / "x")
    ROOT.gets(errno.ENOTDIR, os.open, d / "x", os.O_DIRECTORY | os.O_RDONLY)


def test_o_nofollow(d: Path) -> None:
    make("file", d / "x")
    (d / "link").symlink_to("x")
    ROOT.gets(errno.ELOOP, os.open, d / "link", os.O_NOFOLLOW)
    ROOT.gets(errno.ELOOP, os.open, d / "link", os.O_NOFOLLOW | os.O_CREAT | os.O_RDWR)
    os.close(os.open(d / "x", os.O_NOFOLLOW))


def test_sockets_and_fifos(d: Path) -> None:
    make("socket", d / "socket")
    ROOT.gets(errno.ENXIO, os.open, d / "socket", os.O_RDONLY)
    make("fifo", d / "fifo")
    ROOT.gets(errno.ENXIO, os.open, d / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    make("char", d / "none", 0o666)
    (d / "none").unlink()
    os.mknod(d / "none", stat.S_IFCHR | 0o666, os.makedev(241, 241))
    ROOT.gets((errno.ENXIO, errno.ENODEV), os.open, d / "none", os.O_RDONLY)


def test_o_path(d: Path) -> None:
    (d / "x").write_text("x")
    (d / "x").chmod(0)
    with ALICE, opened(d / "x", os.O_PATH) as descriptor:
        assert os.fstat(descriptor).st_size == 1
        for call in (
            lambda: os.read(descriptor, 1),
            lambda: os.fchmod(descriptor, 0o777),
            lambda: os.ftruncate(descriptor, 0),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
    (d / "link").symlink_to("x")
    with opened(d / "link", os.O_PATH | os.O_NOFOLLOW) as descriptor:
        assert stat.S_ISLNK(os.fstat(descriptor).st_mode)
        assert os.readlink("", dir_fd=descriptor) == "x"


def test_o_noatime_is_for_owners(d: Path) -> None:
    make("file", d / "x", 0o666)
    ALICE.gets(errno.EPERM, os.open, d / "x", os.O_NOATIME)
    os.close(os.open(d / "x", os.O_NOATIME))


def test_access_mode_is_kept(d: Path) -> None:
    (d / "x").write_text("x")
    with opened(d / "x", os.O_WRONLY) as descriptor:
        ROOT.gets(errno.EBADF, os.read, descriptor, 1)
    with opened(d / "x", os.O_RDONLY) as descriptor:
        ROOT.gets(errno.EBADF, os.write, descriptor, b"x")
        ROOT.gets((errno.EINVAL, errno.EBADF), os.ftruncate, descriptor, 0)


def test_a_descriptor_keeps_its_right(d: Path) -> None:
    make("file", d / "x", 0o666, ALICE)
    with opened(d / "x") as descriptor:
        (d / "x").chmod(0)
        with BOB:
            assert os.write(descriptor, b"data") == 4
            assert os.pread(descriptor, 4, 0) == b"data"


def test_o_sync_and_o_dsync(d: Path) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(d / "x", os.O_CREAT | os.O_WRONLY | flag) as descriptor:
            for _ in range(5):
                os.write(descriptor, b"line\n")
    assert (d / "x").read_bytes() == b"line\n" * 5


def test_missing_directories(d: Path) -> None:
    ROOT.gets(errno.ENOENT, os.open, d / "absent" / "x", os.O_CREAT | os.O_RDWR)
    ROOT.gets(errno.ENOENT, os.open, d / "absent", os.O_RDWR)
    ROOT.gets(errno.EISDIR, os.open, f"{d}/absent/", os.O_CREAT | os.O_RDWR)


def test_open_creates_once(d: Path) -> None:
    """A name that was looked up in vain may be made by somebody else in between."""
    for number in range(50):
        path = d / str(number)
        assert not path.exists()
        make("file", d / "new")
        renameat2(d / "new", path, 0)
        ROOT.gets(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
