"""What a new inode looks like: mkdir, mkfifo, mknod, symlink, open(O_CREAT) (pjdfstest mkdir/ mkfifo/ mknod/ symlink/ open/)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import ALICE, BOB, ROOT, User, changes, make, mode_of, opened, tick, times, umask


def _create(path: Path, mode: int = 0o777) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod file": lambda p, mode: os.mknod(p, stat.S_IFREG | mode),
    "mknod socket": lambda p, mode: os.mknod(p, stat.S_IFSOCK | mode),
    "open": _create,
}
ALL_MAKERS: dict[str, Callable[[Path, int], None]] = {
    **MAKERS,
    "mknod char": lambda p, mode: os.mknod(p, stat.S_IFCHR | mode, os.makedev(1, 3)),
    "mknod block": lambda p, mode: os.mknod(p, stat.S_IFBLK | mode, os.makedev(250, 300_000)),
    "symlink": lambda p, _mode: p.symlink_to("there"),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("mask", "asked", "wanted"),
    [(0o022, 0o777, 0o755), (0, 0o777, 0o777), (0o070, 0o345, 0o305), (0o501, 0o345, 0o244), (0o777, 0o777, 0), (0o77, 0o151, 0o100)],
)  # fmt: skip
def test_the_mode_follows_the_umask(d: Path, maker: str, mask: int, asked: int, wanted: int) -> None:
    with umask(mask):
        MAKERS[maker](d / "x", asked)
    assert oct(mode_of(d / "x")) == oct(wanted)


@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_times_and_links(d: Path, maker: str) -> None:
    (d / "sub").mkdir()
    links = d.stat().st_nlink
    tick()
    with changes((d, "mc")):
        ALL_MAKERS[maker](d / "x", 0o644)
    now = times(d / "x")
    assert now.atime == now.mtime == now.ctime == times(d).mtime
    assert os.lstat(d / "x").st_nlink == (2 if maker == "mkdir" else 1)
    assert d.stat().st_nlink == links + (maker == "mkdir")


@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_failure_changes_no_time(d: Path, maker: str) -> None:
    ALL_MAKERS[maker](d / "x", 0o644)
    if maker == "open":
        return
    with changes((d, ""), (d / "x", "")):
        ROOT.gets(errno.EEXIST, ALL_MAKERS[maker], d / "x", 0o644)
        ALICE.gets((errno.EACCES, errno.EPERM), ALL_MAKERS[maker], d / "y", 0o644)


@pytest.mark.parametrize("maker", [*MAKERS, "symlink"])
def test_owner_and_group(d: Path, maker: str) -> None:
    """The maker's own, and the directory's group where that has the set-group-id bit."""
    d.chmod(0o777)
    os.chown(d, 0, 700)
    User(ALICE.uid, BOB.gid)(ALL_MAKERS[maker], d / "x", 0o755)
    info = os.lstat(d / "x")
    assert (info.st_uid, info.st_gid) == (ALICE.uid, BOB.gid)
    d.chmod(0o2777)
    User(ALICE.uid, BOB.gid)(ALL_MAKERS[maker], d / "y", 0o755)
    info = os.lstat(d / "y")
    assert (info.st_uid, info.st_gid) == (ALICE.uid, 700)
    assert bool(info.st_mode & stat.S_ISGID) == (maker == "mkdir")


@pytest.mark.parametrize("maker", ["open", "mknod file", "mkfifo"])
@pytest.mark.parametrize("executable", [0o010, 0])
def test_set_group_id_files_in_set_group_id_directories(d: Path, maker: str, executable: int) -> None:
    """generic/633, 696, 697: nobody gets a program of a group to which he does not belong."""
    d.chmod(0o2777)
    os.chown(d, 0, 700)
    with umask(0):
        ALICE(MAKERS[maker], d / "x", 0o2740 | executable)
        User(ALICE.uid, ALICE.gid, (700,))(MAKERS[maker], d / "y", 0o2740 | executable)
        ROOT(MAKERS[maker], d / "z", 0o2740 | executable)
    assert oct(mode_of(d / "x")) == oct(0o740 | executable if executable else 0o2740)
    assert oct(mode_of(d / "y")) == oct(0o2740 | executable)
    assert oct(mode_of(d / "z")) == oct(0o2740 | executable)


@pytest.mark.parametrize("maker", ["open", "mknod file", "mkfifo"])
def test_special_bits_are_kept_at_creation(d: Path, maker: str) -> None:
    d.chmod(0o777)
    with umask(0):
        ALICE(MAKERS[maker], d / "x", 0o6755)
    assert oct(mode_of(d / "x")) == oct(0o6755)


@pytest.mark.parametrize("rdev", [(0, 0), (1, 3), (255, 255), (4095, 1048575), (8, 65536)])
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_numbers(d: Path, rdev: tuple[int, int], kind: int) -> None:
    os.mknod(d / "x", kind | 0o600, os.makedev(*rdev))
    info = os.lstat(d / "x")
    assert (os.major(info.st_rdev), os.minor(info.st_rdev)) == rdev
    assert stat.S_IFMT(info.st_mode) == kind
    d.chmod(0o777)
    ALICE.gets(errno.EPERM, os.mknod, d / "y", kind | 0o600, os.makedev(1, 3))


def test_whiteouts_need_no_right(d: Path) -> None:
    """A character device 0:0 is overlayfs' whiteout; Linux lets everybody make one."""
    d.chmod(0o777)
    ALICE(os.mknod, d / "x", stat.S_IFCHR | 0o600, 0)
    assert os.lstat(d / "x").st_rdev == 0


def test_devices_work(d: Path) -> None:
    os.mknod(d / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with opened(d / "zero") as descriptor:
        assert os.read(descriptor, 10) == bytes(10)


@pytest.mark.parametrize("length", [1, 59, 60, 255, 256, 1023, 4095])
def test_link_targets(d: Path, length: int) -> None:
    """generic/360: what readlink gives back is exactly what was put in."""
    target = ("ab/" * 1366)[:length]
    os.symlink(target, d / "x")
    assert os.readlink(d / "x") == target
    assert os.lstat(d / "x").st_size == length


def test_link_targets_that_are_refused(d: Path) -> None:
    ROOT.gets(errno.ENAMETOOLONG, os.symlink, "x" * 4096, d / "x")
    ROOT.gets(errno.ENOENT, os.symlink, "", d / "x")
    assert os.listdir(d) == []


@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_nothing_is_made_in_a_removed_directory(d: Path, maker: str) -> None:
    (d / "dir").mkdir()
    with opened(d / "dir", os.O_RDONLY) as descriptor:
        (d / "dir").rmdir()
        ROOT.gets(errno.ENOENT, ALL_MAKERS[maker], Path(f"/proc/self/fd/{descriptor}/x"), 0o755)
        assert os.fstat(descriptor).st_nlink == 0


def test_many_directories_count(d: Path) -> None:
    for number in range(200):
        (d / str(number)).mkdir()
    assert d.stat().st_nlink == 202
    for number in range(0, 200, 2):
        (d / str(number)).rmdir()
    assert d.stat().st_nlink == 102
    make("file", d / "f")
    assert d.stat().st_nlink == 102


def test_sticky_directories_keep_the_bit(d: Path) -> None:
    with umask(0):
        os.mkdir(d / "x", 0o1777)
    assert oct(mode_of(d / "x")) == oct(0o1777)
