"""rename(2) and renameat2(2): every pair of kinds, times, counts, sticky directories (pjdfstest rename/; generic/023-025, 078, 245, 309, 398, 626)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ALICE,
    BOB,
    KINDS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT,
    changes,
    make,
    opened,
    renameat2,
)


def identity(path: Path) -> tuple[int, int, int]:
    info = os.lstat(path)
    return info.st_ino, info.st_mode, info.st_nlink


def names(d: Path) -> list[str]:
    return sorted(os.listdir(d))


@pytest.mark.parametrize("kind", KINDS)
def test_to_a_new_name(d: Path, kind: str) -> None:
    make(kind, d / "a")
    (d / "dir").mkdir()
    before = identity(d / "a")
    with changes((d, "mc")):
        (d / "a").rename(d / "b")
    with changes((d, "mc"), (d / "dir", "mc")):
        (d / "b").rename(d / "dir" / "c")
    assert (names(d), identity(d / "dir" / "c")) == (["dir"], before)
    assert (d / "dir").stat().st_nlink == (3 if kind == "dir" else 2)
    (d / "dir" / "c").rename(d / "a")
    assert (d / "dir").stat().st_nlink == 2


@pytest.mark.parametrize("kind", KINDS)
def test_ctime_of_what_is_moved(d: Path, kind: str) -> None:
    """POSIX leaves it open; ext4 sets it."""
    make(kind, d / "a")
    with opened(d / "a", os.O_PATH | os.O_NOFOLLOW) as descriptor, changes((descriptor, "c")):
        (d / "a").rename(d / "b")


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_onto_something_else(d: Path, old: str, new: str) -> None:
    make(old, d / "a")
    make(new, d / "b")
    before = identity(d / "a")
    wanted = 0
    if old != "dir" and new == "dir":
        wanted = errno.EISDIR
    elif old == "dir" and new != "dir":
        wanted = errno.ENOTDIR
    if wanted:
        with changes((d, ""), (d / "a", ""), (d / "b", "")):
            ROOT.gets(wanted, os.rename, d / "a", d / "b")
        assert names(d) == ["a", "b"]
        return
    with opened(d / "b", os.O_PATH | os.O_NOFOLLOW) as gone, changes((d, "mc"), (gone, "c")):
        (d / "a").rename(d / "b")
        assert os.fstat(gone).st_nlink == 0
    assert (names(d), identity(d / "b")) == (["b"], before)
    assert d.stat().st_nlink == (3 if old == "dir" else 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dir"])
def test_two_names_of_one_inode_stay(d: Path, kind: str) -> None:
    make(kind, d / "a")
    os.link(d / "a", d / "b", follow_symlinks=False)
    with changes((d, ""), (d / "a", "")):
        (d / "a").rename(d / "b")
    assert names(d) == ["a", "b"]
    assert os.lstat(d / "a").st_nlink == 2
    (d / "a").rename(d / "a")
    renameat2(d / "a", d / "b", RENAME_EXCHANGE)
    ROOT.gets(errno.EEXIST, renameat2, d / "a", d / "b", RENAME_NOREPLACE)


def test_replacing_one_of_two_names(d: Path) -> None:
    make("file", d / "a")
    make("file", d / "b")
    os.link(d / "b", d / "c")
    with changes((d / "c", "c")):
        (d / "a").rename(d / "b")
    assert (d / "c").stat().st_nlink == 1


def test_directories(d: Path) -> None:
    (d / "a" / "below" / "deeper").mkdir(parents=True)
    (d / "b").mkdir()
    (d / "full").mkdir()
    make("file", d / "full" / "x")
    with changes((d, ""), (d / "a", ""), (d / "full", "")):
        ROOT.gets((errno.ENOTEMPTY, errno.EEXIST), os.rename, d / "a", d / "full")
        ROOT.gets(errno.EINVAL, os.rename, d / "a", d / "a" / "new")
        ROOT.gets(errno.EINVAL, os.rename, d / "a", d / "a" / "below" / "new")
        ROOT.gets((errno.ENOTEMPTY, errno.EEXIST), os.rename, d / "a" / "below", d / "a")
        ROOT.gets((errno.EINVAL, errno.EBUSY), os.rename, f"{d}/a/below/.", d / "new")
        ROOT.gets((errno.EINVAL, errno.EBUSY), os.rename, f"{d}/a/below/..", d / "new")
        ROOT.gets(errno.ENOTDIR, os.rename, f"{d}/full/x/", d / "new")
    (d / "a").rename(d / "b")  # b is empty
    assert names(d) == ["b", "full"]
    assert d.stat().st_nlink == 4
    (d / "b" / "below").rename(d / "full" / "below")
    assert ((d / "b").stat().st_nlink, (d / "full").stat().st_nlink) == (2, 3)
    with opened(d / "full" / "below", os.O_RDONLY) as descriptor:
        assert os.stat("..", dir_fd=descriptor).st_ino == (d / "full").stat().st_ino
    os.rename(f"{d}/full/below/", f"{d}/again/")
    assert names(d / "again") == ["deeper"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_system(d: Path, elsewhere: Path, kind: str) -> None:
    make(kind, d / "a")
    ROOT.gets(errno.EXDEV, os.rename, d / "a", elsewhere / "a")
    ROOT.gets(errno.EXDEV, renameat2, d / "a", elsewhere / "a", RENAME_NOREPLACE)


def test_an_open_file_outlives_being_replaced(d: Path) -> None:
    (d / "a").write_text("new")
    (d / "b").write_text("old")
    with opened(d / "b") as descriptor:
        (d / "a").rename(d / "b")
        assert os.pread(descriptor, 10, 0) == b"old"
        os.pwrite(descriptor, b"OLD", 0)
        os.fsync(descriptor)
        assert os.pread(descriptor, 10, 0) == b"OLD"
        assert os.fstat(descriptor).st_nlink == 0
    assert (d / "b").read_text() == "new"


# -- flags


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_exchange(d: Path, old: str, new: str) -> None:
    make(old, d / "a")
    (d / "dir").mkdir()
    make(new, d / "dir" / "b")
    before = identity(d / "a"), identity(d / "dir" / "b")
    with changes((d, "mc"), (d / "dir", "mc")):
        renameat2(d / "a", d / "dir" / "b", RENAME_EXCHANGE)
    assert (identity(d / "dir" / "b"), identity(d / "a")) == before
    assert d.stat().st_nlink == 3 + (new == "dir")
    assert (d / "dir").stat().st_nlink == 2 + (old == "dir")
    make("file", d / "x")
    renameat2(d / "x", d / "a", RENAME_EXCHANGE)  # in one directory
    assert identity(d / "x") == before[1]


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", [*KINDS, None])
def test_noreplace(d: Path, old: str, new: str | None) -> None:
    make(old, d / "a")
    before = identity(d / "a")
    if new is None:
        renameat2(d / "a", d / "b", RENAME_NOREPLACE)
        assert (names(d), identity(d / "b")) == (["b"], before)
        return
    make(new, d / "b")
    with changes((d, ""), (d / "a", ""), (d / "b", "")):
        ROOT.gets(errno.EEXIST, renameat2, d / "a", d / "b", RENAME_NOREPLACE)


def test_flags_that_are_refused(d: Path) -> None:
    make("file", d / "a")
    make("file", d / "b")
    (d / "dir" / "below").mkdir(parents=True)
    ROOT.gets(errno.EINVAL, renameat2, d / "a", d / "b", RENAME_NOREPLACE | RENAME_EXCHANGE)
    ROOT.gets(errno.EINVAL, renameat2, d / "a", d / "b", 8)
    ROOT.gets(errno.EINVAL, renameat2, d / "a", d / "b", RENAME_WHITEOUT | RENAME_EXCHANGE)
    ROOT.gets(errno.ENOENT, renameat2, d / "a", d / "absent", RENAME_EXCHANGE)
    ROOT.gets(errno.ENOENT, renameat2, d / "absent", d / "a", RENAME_EXCHANGE)
    ROOT.gets(errno.EINVAL, renameat2, d / "dir", d / "dir" / "below", RENAME_EXCHANGE)
    ROOT.gets(errno.EINVAL, renameat2, d / "dir" / "below", d / "dir", RENAME_EXCHANGE)
    assert names(d) == ["a", "b", "dir"]


@pytest.mark.parametrize("where", ["new", "replaced", "another directory"])
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_whiteout(d: Path, fs: Place, kind: str, where: str) -> None:
    """What overlayfs asks of an upper layer (generic/078)."""
    make(kind, d / "a")
    (d / "dir").mkdir()
    target = {"new": d / "b", "replaced": d / "b", "another directory": d / "dir" / "b"}[where]
    if where == "replaced":
        make(kind, target)
    before = identity(d / "a")
    if fs.kind == "nonative":
        ROOT.gets(errno.EINVAL, renameat2, d / "a", target, RENAME_WHITEOUT)
        assert identity(d / "a") == before
        return
    with changes((d, "mc")):
        renameat2(d / "a", target, RENAME_WHITEOUT)
    for _ in range(2):
        assert identity(target) == before
        info = os.lstat(d / "a")
        assert (info.st_mode, info.st_rdev, info.st_nlink) == (stat.S_IFCHR, 0, 1)
        assert names(d) == sorted({"a", "dir", *(["b"] if where != "another directory" else [])})
        if where != "new":
            break
        fs.remount()
    assert d.stat().st_nlink == 3 + (kind == "dir" and where != "another directory")
    make("file", d / "c")
    renameat2(d / "c", d / "a", 0)
    assert stat.S_ISREG(os.lstat(d / "a").st_mode)
    make("file", d / "e")
    ROOT.gets(errno.EEXIST, renameat2, d / "e", d / "a", RENAME_WHITEOUT | RENAME_NOREPLACE)


# -- permissions


def test_moving_a_directory_of_another_owner_needs_writing_to_it(d: Path) -> None:
    """Its ".." changes (rename/21)."""
    for name in ("from", "to"):
        make("dir", d / name, 0o777)
    make("dir", d / "from" / "x", 0o755, BOB)
    ALICE.gets(errno.EACCES, os.rename, d / "from" / "x", d / "to" / "x")
    ALICE(os.rename, d / "from" / "x", d / "from" / "y")
    (d / "from" / "y").chmod(0o777)
    ALICE(os.rename, d / "from" / "y", d / "to" / "y")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directory_owner", [ALICE, BOB, ROOT], ids=["own", "other", "root"])
@pytest.mark.parametrize("file_owner", [ALICE, BOB, ROOT], ids=["own", "other", "root"])
def test_sticky_directories(d: Path, kind: str, directory_owner: object, file_owner: object) -> None:
    """rename/09, 10, rmdir/11, unlink/11: only who owns the directory or the file takes a name away or replaces it."""
    sticky = make("dir", d / "sticky", 0o1777, directory_owner)  # type: ignore[arg-type]
    free = make("dir", d / "free", 0o777)
    make(kind, sticky / "x", 0o777, file_owner)  # type: ignore[arg-type]
    remove = Path.rmdir if kind == "dir" else Path.unlink
    like = "dir" if kind == "dir" else "file"
    make(like, free / "mine", 0o777, ALICE)
    if ALICE in (directory_owner, file_owner):
        ALICE(os.rename, sticky / "x", sticky / "y")
        ALICE(os.rename, free / "mine", sticky / "y")
        ALICE(remove if like == kind or kind != "dir" else Path.unlink, sticky / "y")
        return
    before = identity(sticky / "x")
    with changes((sticky, ""), (free, "")):
        ALICE.gets((errno.EPERM, errno.EACCES), os.rename, sticky / "x", sticky / "y")
        ALICE.gets((errno.EPERM, errno.EACCES), os.rename, sticky / "x", free / "y")
        ALICE.gets((errno.EPERM, errno.EACCES), os.rename, free / "mine", sticky / "x")
        ALICE.gets((errno.EPERM, errno.EACCES), remove, sticky / "x")
        ALICE.gets((errno.EPERM, errno.EACCES), renameat2, free / "mine", sticky / "x", RENAME_EXCHANGE)
    assert identity(sticky / "x") == before
    ROOT(remove, sticky / "x")
