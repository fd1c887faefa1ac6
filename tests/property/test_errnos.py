"""What each operation refuses, and with which errno: a volume beside a real directory in memory, in the same situations.

Where the volume differs on purpose, the table says so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from fspf.core.types import ROOT_INO, Ino
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas

Step = Callable[["Inodes | Host"], object]
_RENAME_FLAGS: Final = {"NOREPLACE": 1, "EXCHANGE": 2}


class Inodes:
    """The inode layer, by path: each path is looked up as a kernel would."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def _ino(self, path: str) -> Ino:
        ino = ROOT_INO
        for name in path.split("/") if path else ():
            ino = self.volume.lookup(ino, os.fsencode(name)).ino
        return ino

    def _place(self, path: str) -> tuple[Ino, bytes]:
        above, _, name = path.rpartition("/")
        return self._ino(above), os.fsencode(name)

    def mknod(self, path: str, mode: int) -> None:
        self.volume.mknod(*self._place(path), mode)

    def mkdir(self, path: str) -> None:
        self.volume.mkdir(*self._place(path), 0o755)

    def symlink(self, target: str, path: str) -> None:
        self.volume.symlink(*self._place(path), os.fsencode(target))

    def link(self, old: str, new: str) -> None:
        self.volume.link(self._ino(old), *self._place(new))

    def unlink(self, path: str) -> None:
        self.volume.unlink(*self._place(path))

    def rmdir(self, path: str) -> None:
        self.volume.rmdir(*self._place(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.volume.rename(*self._place(old), *self._place(new), flags)

    def readlink(self, path: str) -> bytes:
        return self.volume.readlink(self._ino(path))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.fsdecode(entry.name) for entry in self.volume.readdir(self._ino(path)))

    def truncate(self, path: str, size: int) -> None:
        self.volume.setattr(self._ino(path), size=size)

    def stat(self, path: str) -> tuple[int, int]:
        attr = self.volume.getattr(self._ino(path))
        return stat.S_IFMT(attr.mode), attr.nlink

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        self.volume.setxattr(self._ino(path), os.fsencode(name), value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return self.volume.getxattr(self._ino(path), os.fsencode(name))

    def removexattr(self, path: str, name: str) -> None:
        self.volume.removexattr(self._ino(path), os.fsencode(name))

    def open_write(self, path: str) -> None:
        self.volume.open_file(self._ino(path), write=True).close()

    def write(self, path: str, offset: int) -> None:
        with self.volume.open_file(self._ino(path), write=True) as file:
            file.write(offset, b"x")

    def make_in_removed(self) -> None:
        """Create in a directory that was removed while somebody was in it."""
        ino = self._ino("empty")
        self.volume.hold(ino)
        try:
            self.rmdir("empty")
            self.volume.mknod(ino, b"x", 0o100600)
        finally:
            self.volume.drop(ino)


class Host:
    """A real directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, path: str) -> str:
        return os.path.join(self.root, path) if path else str(self.root)

    def mknod(self, path: str, mode: int) -> None:
        os.mknod(self._path(path), mode)

    def mkdir(self, path: str) -> None:
        os.mkdir(self._path(path))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._path(path))

    def link(self, old: str, new: str) -> None:
        os.link(self._path(old), self._path(new), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if not flags:
            os.rename(self._path(old), self._path(new))
            return
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(-100, os.fsencode(self._path(old)), -100, os.fsencode(self._path(new)), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def readlink(self, path: str) -> bytes:
        return os.fsencode(os.readlink(self._path(path)))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._path(path)))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._path(path), size)

    def stat(self, path: str) -> tuple[int, int]:
        found = os.lstat(self._path(path))
        return stat.S_IFMT(found.st_mode), found.st_nlink

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self._path(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._path(path), name, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._path(path), name, follow_symlinks=False)

    def open_write(self, path: str) -> None:
        os.close(os.open(self._path(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))

    def write(self, path: str, offset: int) -> None:
        fd = os.open(self._path(path), os.O_WRONLY)
        try:
            os.pwrite(fd, b"x", offset)
        finally:
            os.close(fd)

    def make_in_removed(self) -> None:
        fd = os.open(self._path("empty"), os.O_RDONLY)
        try:
            self.rmdir("empty")
            os.mknod("x", 0o100600, dir_fd=fd)
        finally:
            os.close(fd)


def furnish(system: Inodes | Host) -> None:
    """Make the situation that every row starts from."""
    for directory in ("dir", "dir/sub", "dir/sub/deep", "full", "empty"):
        system.mkdir(directory)
    for file in ("file", "other", "dir/file", "full/file"):
        system.mknod(file, 0o100644)
    system.symlink("nowhere", "link")
    system.mknod("fifo", stat.S_IFIFO | 0o600)
    system.link("file", "hard")
    system.setxattr("file", "user.a", b"1")


LONG = "n" * 256
TABLE: Final[dict[str, Step]] = {
    "create over a file": lambda s: s.mknod("file", 0o100600),
    "create over a directory": lambda s: s.mknod("dir", 0o100600),
    "create in a file": lambda s: s.mknod("file/x", 0o100600),
    "create in nothing": lambda s: s.mknod("none/x", 0o100600),
    "create with a long name": lambda s: s.mknod(LONG, 0o100600),
    "create with the longest name": lambda s: s.mknod(LONG[1:], 0o100600),
    "create in a removed directory": lambda s: s.make_in_removed(),
    "mkdir over a file": lambda s: s.mkdir("file"),
    "mkdir over a directory": lambda s: s.mkdir("dir"),
    "mkdir over a dangling link": lambda s: s.mkdir("link"),
    "mkdir in a file": lambda s: s.mkdir("file/x"),
    "mkdir with a long name": lambda s: s.mkdir(LONG),
    "symlink over a file": lambda s: s.symlink("x", "file"),
    "symlink to nothing": lambda s: s.symlink("", "new"),
    "symlink with a long target": lambda s: s.symlink("x" * 4096, "new"),
    "symlink with the longest target": lambda s: s.symlink("x" * 4095, "new"),
    "link a directory": lambda s: s.link("dir", "new"),
    "link over a file": lambda s: s.link("file", "other"),
    "link over itself": lambda s: s.link("file", "hard"),
    "link of nothing": lambda s: s.link("none", "new"),
    "link into a file": lambda s: s.link("file", "other/x"),
    "link a symlink": lambda s: s.link("link", "new"),
    "link a fifo": lambda s: s.link("fifo", "new"),
    "link with a long name": lambda s: s.link("file", LONG),
    "unlink": lambda s: s.unlink("file"),
    "unlink a directory": lambda s: s.unlink("dir"),
    "unlink nothing": lambda s: s.unlink("none"),
    "unlink in a file": lambda s: s.unlink("file/x"),
    "unlink a long name": lambda s: s.unlink(LONG),
    "rmdir": lambda s: s.rmdir("empty"),
    "rmdir a full directory": lambda s: s.rmdir("full"),
    "rmdir a file": lambda s: s.rmdir("file"),
    "rmdir a symlink": lambda s: s.rmdir("link"),
    "rmdir nothing": lambda s: s.rmdir("none"),
    "rename a file over a directory": lambda s: s.rename("file", "empty"),
    "rename a directory over a file": lambda s: s.rename("dir", "file"),
    "rename a directory over a full one": lambda s: s.rename("dir", "full"),
    "rename a directory over an empty one": lambda s: s.rename("dir", "empty"),
    "rename a directory below itself": lambda s: s.rename("dir", "dir/sub/x"),
    "rename a directory onto its child": lambda s: s.rename("dir", "dir/sub"),
    "rename a directory onto itself": lambda s: s.rename("dir", "dir"),
    "rename onto a directory above": lambda s: s.rename("dir/sub/deep", "dir"),
    "rename a file onto a directory above": lambda s: s.rename("full/file", "full"),
    "rename onto another name of the same file": lambda s: s.rename("file", "hard"),
    "rename nothing": lambda s: s.rename("none", "new"),
    "rename nothing over a file": lambda s: s.rename("none", "file"),
    "rename into nothing": lambda s: s.rename("file", "none/x"),
    "rename into a file": lambda s: s.rename("other", "file/x"),
    "rename to a long name": lambda s: s.rename("file", LONG),
    "rename a symlink over a file": lambda s: s.rename("link", "file"),
    "rename over a fifo": lambda s: s.rename("file", "fifo"),
    "noreplace": lambda s: s.rename("file", "new", 1),
    "noreplace over a file": lambda s: s.rename("file", "other", 1),
    "noreplace over itself": lambda s: s.rename("file", "hard", 1),
    "noreplace over a directory": lambda s: s.rename("file", "dir", 1),
    "exchange": lambda s: s.rename("file", "other", 2),
    "exchange a file and a full directory": lambda s: s.rename("file", "full", 2),
    "exchange with nothing": lambda s: s.rename("file", "none", 2),
    "exchange with a directory below": lambda s: s.rename("dir", "dir/sub", 2),
    "exchange with a directory above": lambda s: s.rename("dir/sub", "dir", 2),
    "exchange two names of one file": lambda s: s.rename("file", "hard", 2),
    "noreplace and exchange": lambda s: s.rename("file", "other", 3),
    "unknown rename flag": lambda s: s.rename("file", "other", 64),
    "readlink": lambda s: s.readlink("link"),
    "readlink of a file": lambda s: s.readlink("file"),
    "readlink of a directory": lambda s: s.readlink("dir"),
    "list a file": lambda s: s.listdir("file"),
    "list nothing": lambda s: s.listdir("none"),
    "stat nothing": lambda s: s.stat("none"),
    "stat below a file": lambda s: s.stat("file/x"),
    "stat a long name": lambda s: s.stat(LONG),
    "truncate": lambda s: s.truncate("file", 1 << 20),
    "truncate a directory": lambda s: s.truncate("dir", 0),
    "truncate a fifo": lambda s: s.truncate("fifo", 0),
    "truncate to less than nothing": lambda s: s.truncate("file", -1),
    "truncate to the largest size": lambda s: s.truncate("file", 2**63 - 1),
    "write at the end of all offsets": lambda s: s.write("file", 2**63 - 1),
    "write a directory": lambda s: s.open_write("dir"),
    "getxattr": lambda s: s.getxattr("file", "user.a"),
    "getxattr that is not there": lambda s: s.getxattr("file", "user.b"),
    "setxattr that must be new": lambda s: s.setxattr("file", "user.a", b"", 1),
    "setxattr that must be there": lambda s: s.setxattr("file", "user.b", b"", 2),
    "setxattr without a namespace": lambda s: s.setxattr("file", "a", b""),
    "setxattr with a long name": lambda s: s.setxattr("file", "user." + "x" * 251, b""),
    "setxattr with a large value": lambda s: s.setxattr("file", "user.c", bytes(65537)),
    "removexattr": lambda s: s.removexattr("file", "user.a"),
    "removexattr that is not there": lambda s: s.removexattr("file", "user.b"),
}  # fmt: skip
ON_PURPOSE: Final = {
    "truncate to the largest size": "tmpfs has a smaller limit than the format",
    "rename a file onto a directory above": "EISDIR, as POSIX says; in a mount the kernel answers, ENOTEMPTY, by itself",
    "write at the end of all offsets": "EFBIG, as POSIX says; in a mount the kernel answers, EINVAL, by itself",
}


def outcome(system: Inodes | Host, step: Step) -> tuple[str, object]:
    """Return the errno's name, or the result; and what the root looks like afterwards."""
    result: object
    try:
        result = step(system)
    except OSError as exc:
        result = errno.errorcode[exc.errno or 0]
    after = {name: system.stat(name) for name in system.listdir("")}
    return str(result), after


@pytest.fixture
def volume(scratch: Path) -> Iterator[Volume]:
    volume = Volume.create(scratch / "volume", MemoryCas(), commit_interval=None, segment_slots=64)
    yield volume
    volume.abandon()


@pytest.mark.parametrize("situation", [name for name in TABLE if name not in ON_PURPOSE])
def test_errno_is_that_of_a_real_directory(situation: str, volume: Volume, scratch: Path) -> None:
    real = scratch / "real"
    real.mkdir(mode=0o755)
    inodes, host = Inodes(volume), Host(real)
    furnish(inodes)
    furnish(host)
    try:
        expected = outcome(host, TABLE[situation])
    except OSError as exc:
        pytest.skip(f"filesystem: {exc}")
    if expected[0] in {"EOPNOTSUPP", "ENOTSUP"} and "namespace" not in situation:
        pytest.skip("filesystem: user xattrs in /dev/shm need Linux 6.6")
    assert outcome(inodes, TABLE[situation]) == expected


def test_exceptions_are_in_the_table() -> None:
    assert ON_PURPOSE.keys() <= TABLE.keys()
