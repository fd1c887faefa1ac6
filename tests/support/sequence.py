"""A random but repeatable sequence of system calls, and what each of them answers.

The same seed gives the same calls on every file system, so that answers can be compared; who compares knows which
may differ.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.posix import (
    ACL_ACCESS,
    ACL_DEFAULT,
    ALICE,
    BOB,
    KEEP_SIZE,
    LIBC,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT,
    UTIME_NOW,
    UTIME_OMIT,
    ZERO_RANGE,
    User,
    acl,
    copy_file_range,
    fallocate,
    linkat,
    renameat2,
    tmpfile,
    utimens,
)

DIRECTORIES: Final = (".", "a", "a/b", "c", "sticky", "setgid")
LONG: Final = "n" * 255
FILES: Final = ("f0", "f1", "f2", "f3", LONG, LONG + "n", "d/e", ".", "..")
USERS: Final = (ROOT, ROOT, User(65534, 65534, (65533,)), ALICE, BOB)
HELD: Final = 4
NOT_IN_PYFUSE3: Final = frozenset({"allocate", "seek", "unnamed", "setxattr_if"})
ACLS: Final = (
    "u::rwx,u:65533:rw-,g::r-x,m::rwx,o::---",
    "u::rw-,g::r--,g:65534:-w-,m::rw-,o::r--",
    "u::rwx,g::r-x,o::r-x",
)
Answer = tuple[str, object]


class Sequence:
    """One run of a sequence below *root*, which must be empty.

    Args:
        without: Kinds of calls that are replaced by others.
    """

    def __init__(self, root: Path, seed: int, *, without: frozenset[str] = frozenset()) -> None:
        self._root = root
        self._rng = random.Random(seed)
        self._held: list[int] = [-1] * HELD
        self._kinds = [
            (name.removeprefix("_do_"), getattr(self, name))
            for name in sorted(dir(self))
            if name.startswith("_do_") and name.removeprefix("_do_") not in without
        ]
        for directory in DIRECTORIES[1:]:
            (root / directory).mkdir()
        root.chmod(0o777)
        (root / "c").chmod(0o777)
        (root / "sticky").chmod(0o1777)
        (root / "setgid").chmod(0o777)
        os.chown(root / "setgid", 0, 65533)
        (root / "setgid").chmod(0o2777)

    def run(self, steps: int) -> list[Answer]:
        """Make *steps* calls; a line for each that says what it was, and its answer."""
        answers: list[Answer] = []
        for _ in range(steps):
            kind, action = self._rng.choice(self._kinds)
            call = action()  # all choices are made here, so that an answer cannot change the next
            user = self._rng.choice(USERS)
            text, do, path = call
            try:
                with user:
                    answer = do()
            except OSError as exc:
                answer = errno.errorcode.get(exc.errno or 0, str(exc.errno))
            answers.append((f"{kind} {text} as {user.uid}", (answer, self._look(path))))
        for descriptor in self._held:
            if descriptor >= 0:
                os.close(descriptor)
        return answers

    # -- choosing

    def _path(self) -> tuple[str, Path]:
        name = f"{self._rng.choice(DIRECTORIES)}/{self._rng.choice(FILES[:4] if self._rng.random() < 0.85 else FILES)}"
        return name if len(name) < 40 else f"{name[:20]}…{len(name)}", self._root / name

    def _any(self) -> tuple[str, Path]:
        if self._rng.random() < 0.25:
            name = self._rng.choice(DIRECTORIES[1:])
            return name, self._root / name
        return self._path()

    def _look(self, path: Path | None) -> object:
        if path is None:
            return None
        try:
            info = os.lstat(path)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        return (oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, info.st_rdev)

    def _with_file(self, flags: int, do: Callable[[int], object]) -> tuple[str, Callable[[], object], Path | None]:
        """Let a call have a file: one that is open, or one that is opened for it."""
        if self._rng.random() < 0.3:
            slot = self._rng.randrange(HELD)
            # Who opened it is by chance root or not; what may be done with it was decided then.
            return f"held {slot}", lambda: do(self._held[slot]) if self._held[slot] >= 0 else "not open", None
        name, path = self._path()

        def run() -> object:
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return "no file"
                return do(descriptor)
            finally:
                os.close(descriptor)

        return name, run, path

    # -- calls; each returns what it is, how to make it, and which path to look at afterwards

    def _do_open(self) -> Any:
        name, path = self._path()
        flags = self._rng.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
        for flag in (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW):
            flags |= flag if self._rng.random() < (0.7 if flag == os.O_CREAT else 0.2) else 0
        if flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT
        mode = self._rng.choice([0o644, 0o600, 0o777, 0o4755, 0o2666, 0])
        slot = self._rng.randrange(HELD)

        def run() -> object:
            descriptor = os.open(path, flags | os.O_NONBLOCK, mode)
            if self._held[slot] >= 0:
                os.close(self._held[slot])
                self._held[slot] = -1
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._held[slot] = descriptor
            else:
                os.close(descriptor)
            return 0

        return f"{name} {flags:#o} {mode:04o}", run, path

    def _do_mkdir(self) -> Any:
        name, path = self._any()
        mode = self._rng.choice([0o755, 0o777, 0o700, 0o2777, 0o1777])
        return f"{name} {mode:o}", lambda: os.mkdir(path, mode), path

    def _do_mknod(self) -> Any:
        name, path = self._path()
        kind = self._rng.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFREG])
        number = os.makedev(7, 200) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
        return f"{name} {kind:o}", lambda: os.mknod(path, kind | 0o640, number), path

    def _do_symlink(self) -> Any:
        name, path = self._path()
        target = self._rng.choice(["f0", "../c/f1", "nowhere", "x" * 4095, "x" * 60, str(self._rng.random())])
        return f"{name} → {target[:9]}", lambda: os.symlink(target, path), path

    def _do_readlink(self) -> Any:
        name, path = self._path()
        return name, lambda: os.readlink(path), None

    def _do_link(self) -> Any:
        (one, first), (two, second) = self._any(), self._path()
        return f"{one} {two}", lambda: os.link(first, second, follow_symlinks=False), second

    def _do_rename(self) -> Any:
        (one, first), (two, second) = self._any(), self._any()
        flags = self._rng.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_NOREPLACE])
        return f"{one} {two} {flags}", lambda: renameat2(first, second, flags), second

    def _do_unlink(self) -> Any:
        name, path = self._any()
        return name, lambda: os.unlink(path), path

    def _do_rmdir(self) -> Any:
        name, path = self._any()
        return name, lambda: os.rmdir(path), path

    def _do_chmod(self) -> Any:
        name, path = self._any()
        mode = self._rng.choice([0o644, 0o777, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777, 0o500])
        return f"{name} {mode:o}", lambda: os.chmod(path, mode), path

    def _do_chown(self) -> Any:
        name, path = self._any()
        uid, gid = self._rng.choice([-1, 0, 65534, 65533]), self._rng.choice([-1, 0, 65534, 65533])
        return f"{name} {uid} {gid}", lambda: os.chown(path, uid, gid, follow_symlinks=False), path

    def _do_truncate(self) -> Any:
        name, path = self._any()
        size = self._rng.choice([0, 1, 4096, 5000, 70000, 2**21])
        return f"{name} {size}", lambda: os.truncate(path, size), path

    def _do_utimens(self) -> Any:
        name, path = self._any()
        when = self._rng.choice([(-5, 7), (2**33, 1), (0, UTIME_NOW), (0, UTIME_OMIT), (1000, 10**9)])

        def run() -> object:
            utimens(path, (0, UTIME_OMIT), when, 0x100)
            return os.lstat(path).st_mtime_ns if when[1] < 10**9 else 0

        return f"{name} {when}", run, path

    def _do_access(self) -> Any:
        name, path = self._any()
        return name, lambda: [os.access(path, mode, effective_ids=True) for mode in (4, 2, 1)], None

    def _do_list(self) -> Any:
        name, path = self._any()
        return name, lambda: os.listdir(path), None

    def _do_stat(self) -> Any:
        name, path = self._path()
        return name, lambda: oct(path.stat().st_mode), None

    def _do_setxattr(self) -> Any:
        name, path = self._any()
        key = self._rng.choice(
            ["user.a", "user.b", "trusted.a", "security.x", "user." + "l" * 250, "user." + "l" * 251, "odd"]
        )
        value = self._rng.choice([b"", b"1", b"v" * 300])
        return f"{name} {key[:12]} {len(value)}", lambda: _setxattr(path, key, value, 0), path

    def _do_setxattr_if(self) -> Any:
        name, path = self._any()
        key = self._rng.choice(["user.a", "user.b", "trusted.a", "odd"])
        flags = self._rng.choice([os.XATTR_CREATE, os.XATTR_REPLACE])
        return f"{name} {key} {flags}", lambda: _setxattr(path, key, b"", flags), path

    def _do_getxattr(self) -> Any:
        name, path = self._any()
        key = self._rng.choice(["user.a", "user.b", "trusted.a", "security.x", ACL_ACCESS, ACL_DEFAULT])
        return f"{name} {key}", lambda: os.getxattr(path, key, follow_symlinks=False), None

    def _do_listxattr(self) -> Any:
        name, path = self._any()
        return name, lambda: sorted(os.listxattr(path, follow_symlinks=False)), None

    def _do_removexattr(self) -> Any:
        name, path = self._any()
        key = self._rng.choice(["user.a", "user.b", "trusted.a", ACL_ACCESS, ACL_DEFAULT])
        return f"{name} {key}", lambda: os.removexattr(path, key, follow_symlinks=False), path

    def _do_acl(self) -> Any:
        name, path = self._any()
        key, text = self._rng.choice([ACL_ACCESS, ACL_DEFAULT]), self._rng.choice(ACLS)
        return f"{name} {key} {text}", lambda: os.setxattr(path, key, acl(text)), path

    def _do_write(self) -> Any:
        data = self._rng.randbytes(self._rng.choice([1, 100, 4096, 9000]))
        at = self._rng.choice([0, 0, 100, 4096, 50_000, 2**21])
        name, run, path = self._with_file(
            self._rng.choice([os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC]),
            lambda descriptor: os.pwrite(descriptor, data, at),
        )
        return f"{name} {len(data)} at {at}", run, path

    def _do_append(self) -> Any:
        data = self._rng.randbytes(self._rng.randrange(1, 6000))
        name, run, path = self._with_file(os.O_WRONLY | os.O_APPEND, lambda descriptor: os.write(descriptor, data))
        return f"{name} {len(data)}", run, path

    def _do_read(self) -> Any:
        at = self._rng.choice([0, 100, 4096, 50_000, 2**21])
        name, run, path = self._with_file(os.O_RDONLY, lambda descriptor: os.pread(descriptor, 20_000, at))
        return f"{name} at {at}", run, path

    def _do_fsync(self) -> Any:
        return self._with_file(os.O_RDWR, os.fsync)

    def _do_fstat(self) -> Any:
        def run(descriptor: int) -> object:
            info = os.fstat(descriptor)
            return (oct(info.st_mode), info.st_nlink, info.st_size, info.st_uid, info.st_gid)

        return self._with_file(os.O_RDONLY, run)

    def _do_ftruncate(self) -> Any:
        size = self._rng.choice([0, 10, 8192, 100_000])
        name, run, path = self._with_file(os.O_RDWR, lambda descriptor: os.ftruncate(descriptor, size))
        return f"{name} {size}", run, path

    def _do_copy(self) -> Any:
        (one, first), (two, second) = self._path(), self._path()
        at, to = self._rng.choice([0, 100, 4096]), self._rng.choice([0, 50, 8192])

        def run() -> object:
            source = os.open(first, os.O_RDONLY | os.O_NONBLOCK)
            try:
                target = os.open(second, os.O_WRONLY | os.O_NONBLOCK)
                try:
                    return copy_file_range(source, at, target, to, 30_000)
                finally:
                    os.close(target)
            finally:
                os.close(source)

        return f"{one}+{at} {two}+{to}", run, second

    def _do_allocate(self) -> Any:
        mode = self._rng.choice([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE])
        at, length = self._rng.choice([0, 100, 4096, 2**50]), self._rng.choice([0, 1, 4096, 10_000])
        name, run, path = self._with_file(os.O_RDWR, lambda descriptor: fallocate(descriptor, mode, at, length))
        return f"{name} {mode} {at}+{length}", run, path

    def _do_seek(self) -> Any:
        """Where data is may differ; that it is past the end may not."""
        at = self._rng.choice([0, 4096, 10**7])
        whence = self._rng.choice([os.SEEK_HOLE, os.SEEK_DATA])

        def run(descriptor: int) -> object:
            found = os.lseek(descriptor, at, whence)
            size = os.fstat(descriptor).st_size
            return at <= found <= size

        name, call, path = self._with_file(os.O_RDONLY, run)
        return f"{name} {at} {whence}", call, path

    def _do_unnamed(self) -> Any:
        directory = self._rng.choice(DIRECTORIES)
        name, path = self._path()
        data = self._rng.randbytes(5000)

        def run() -> object:
            descriptor = tmpfile(self._root / directory, os.O_RDWR, 0o666)
            try:
                os.write(descriptor, data)
                linkat(-100, b"/proc/self/fd/%d" % descriptor, -100, path, 0x400)
                return oct(os.fstat(descriptor).st_mode)
            finally:
                os.close(descriptor)

        return f"{directory} {name}", run, path


def _setxattr(path: Path, key: str, value: bytes, flags: int) -> None:
    if len(key) > 255:  # Python refuses such a name by itself
        if LIBC.lsetxattr(os.fsencode(path), key.encode(), value, len(value), flags) < 0:
            raise OSError(ctypes.get_errno(), "lsetxattr")
    else:
        os.setxattr(path, key, value, flags, follow_symlinks=False)
