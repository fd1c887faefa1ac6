"""What the POSIX tests need beyond `os`: other users, system calls without a wrapper, and what changed on a file.

Which file system a test runs on is decided by tests/posix/conftest.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

LIBC: Final = ctypes.CDLL(None, use_errno=True)
REALTIME_COARSE: Final = 5  # the clock that the kernel stamps files with
AT_FDCWD: Final = -100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
STATX_BTIME: Final = 0x800
STATX_BASIC_STATS: Final = 0x7FF

LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
LIBC.copy_file_range.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint,
]  # fmt: skip
LIBC.copy_file_range.restype = ctypes.c_ssize_t
LIBC.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def check(result: int) -> int:
    """Return what a system call gave, or raise its error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# -- users


@dataclass(frozen=True)
class User:
    """Somebody who makes system calls: ``with user: …`` or ``user(os.chmod, path, 0o644)``."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __enter__(self) -> None:
        os.setgroups(list(self.groups))
        os.setresgid(self.gid, self.gid, 0)
        os.setresuid(self.uid, self.uid, 0)  # the saved 0 is the way back

    def __exit__(self, *_: object) -> None:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])

    def __call__(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with self:
            return function(*args, **named)

    def gets(self, wanted: int | tuple[int, ...], function: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Expect that the call is refused with *wanted*, or one of them."""
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        names = "/".join(errno.errorcode[each] for each in wanted)
        try:
            with self:
                result = function(*args, **named)
        except OSError as exc:
            assert exc.errno in wanted, f"{errno.errorcode.get(exc.errno or 0)} instead of {names}"  # noqa: PT017
        else:
            if isinstance(result, int) and function in {os.open, tmpfile}:
                os.close(result)
            raise AssertionError(f"success instead of {names}")


ROOT: Final = User(0, 0)
ALICE: Final = User(65534, 65534)
BOB: Final = User(65533, 65533)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def opened(path: os.PathLike[str] | str | bytes, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# -- making things

KINDS: Final = ("file", "dir", "fifo", "char", "block", "socket", "symlink")
PLAIN_KINDS: Final = ("file", "fifo", "char", "block", "socket")
_NODES: Final = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK, "socket": stat.S_IFSOCK}


def make(kind: str, path: Path, mode: int | None = None, user: User | None = None) -> Path:
    """Make something of *kind*, with exactly this mode, owned by *user*."""
    if kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    elif kind == "dir":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("nowhere")
    else:
        os.mknod(path, _NODES[kind] | 0o644, os.makedev(1, 3) if kind in {"char", "block"} else 0)
    if user is not None:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    if mode is not None and kind != "symlink":
        path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# -- what changed


class Times(NamedTuple):
    """The times of a file, ns."""

    atime: int
    mtime: int
    ctime: int


def times(path: Path | int) -> Times:
    info = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return Times(info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)


def tick() -> None:
    """Wait until the kernel's clock for files has gone on.

    Since Linux 6.13 its stamps may be ahead of the coarse clock, though never of the fine one.
    """
    begin = time.time_ns()
    while time.clock_gettime_ns(REALTIME_COARSE) <= begin:
        time.sleep(0.001)


@contextlib.contextmanager
def changes(*expected: tuple[Path | int, str]) -> Iterator[None]:
    """Expect that of each path exactly the times in a word such as "mc" go on; "" none."""
    before = [times(path) for path, _ in expected]
    tick()
    yield
    for (path, which), old in zip(expected, before, strict=True):
        new = times(path)
        changed = "".join(letter for letter, a, b in zip("amc", old, new, strict=True) if a != b)
        if isinstance(path, Path) and path.is_symlink():
            changed = changed.replace("a", "")  # following it is an access
        assert changed == which, f"{path}: {changed!r} changed instead of {which!r}"
        assert new.ctime >= old.ctime


# -- system calls


def renameat2(old: os.PathLike[str], new: os.PathLike[str], flags: int) -> None:
    check(LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    check(LIBC.fallocate(descriptor, mode, offset, length))


def sync(path: Path) -> None:
    """syncfs(2): sync(2) would wait for every file system of the machine."""
    with opened(path, os.O_RDONLY) as descriptor:
        check(LIBC.syncfs(descriptor))


def linkat(old_dir: int, old: bytes, new_dir: int, new: os.PathLike[str] | str, flags: int) -> None:
    check(LIBC.linkat(old_dir, old, new_dir, os.fsencode(new), flags))


def copy_file_range(source: int, at: int | None, target: int, to: int | None, length: int) -> int:
    where = [ctypes.c_int64(each) if each is not None else None for each in (at, to)]
    first, second = (ctypes.byref(each) if each is not None else None for each in where)
    return check(LIBC.copy_file_range(source, first, target, second, length, 0))


def tmpfile(directory: Path, flags: int = os.O_RDWR, mode: int = 0o600) -> int:
    return os.open(directory, os.O_TMPFILE | flags, mode)


def utimens(path: Path | int, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds), where nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    raw = struct.pack("qqqq", *atime, *mtime)
    if isinstance(path, int):
        check(LIBC.futimens(path, raw))
    else:
        check(LIBC.utimensat(AT_FDCWD, os.fsencode(path), raw, flags))


class Statx(NamedTuple):
    mask: int
    nlink: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes: int
    attributes_mask: int
    btime_ns: int
    mtime_ns: int


def statx(path: Path, mask: int = STATX_BASIC_STATS | STATX_BTIME, flags: int = AT_SYMLINK_NOFOLLOW) -> Statx:
    raw = ctypes.create_string_buffer(256)
    check(LIBC.statx(AT_FDCWD, os.fsencode(path), flags, mask, raw))
    got = struct.unpack_from("<IIQIIIHxxQQQQ", raw)
    moments = [struct.unpack_from("<qI", raw, 64 + 16 * index) for index in range(4)]  # a, b, c, m
    btime, mtime = (seconds * 10**9 + part for seconds, part in (moments[1], moments[3]))
    return Statx(got[0], got[3], got[6], got[7], got[8], got[9], got[2], got[10], btime, mtime)


# -- access control lists

ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
_TAGS: Final = {"u": (1, 2), "g": (4, 8), "m": (16, 16), "o": (32, 32)}


def acl(text: str) -> bytes:
    """Pack ``u::rwx,u:100:r-x,g::r-x,m::rwx,o::---``."""
    entries = []
    for word in text.split(","):
        kind, name, permissions = word.split(":")
        bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in permissions)
        entries.append((_TAGS[kind][bool(name)], bits, int(name) if name else 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry) for entry in sorted(entries, key=lambda e: (e[0], e[2]))
    )


def acl_text(raw: bytes) -> str:
    """Read what `acl` packs."""
    names = {tag: letter for letter, tags in _TAGS.items() for tag in tags}
    words = []
    for tag, bits, identity in struct.iter_unpack("<HHI", raw[4:]):
        name = str(identity) if tag in {2, 8} else ""
        words.append(
            f"{names[tag]}:{name}:{''.join(c if bits & b else '-' for c, b in (('r', 4), ('w', 2), ('x', 1)))}"
        )
    return ",".join(words)


def get_acl(path: Path, name: str = ACL_ACCESS) -> str | None:
    try:
        return acl_text(os.getxattr(path, name))
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return None


def run_all(processes: Sequence[Any]) -> list[int]:
    """Wait for each; their exit codes."""
    return [process.wait(120) for process in processes]
