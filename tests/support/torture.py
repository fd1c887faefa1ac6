"""Make a directory tree of everything that is odd but legal.

Deterministic for one seed. What the file system below or the user's rights do not allow is left out and listed, so a
test can insist on it.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import stat
import sys
from collections.abc import Callable
from typing import Any, Final

# Around the borders of chunks (4 KiB), of trees of depth 1 (512 KiB) and of depth 2 (64 MiB).
SIZES: Final = (
    *(0, 1, 2, 511, 512, 513),
    *(border + delta for border in (4096, 8192, 65536, 524288, 1048576) for delta in (-1, 0, 1)),
)
SPARSE_SIZES: Final = (64 << 20, (64 << 20) + 1, (4 << 30) - 1, 4 << 30, (4 << 30) + 1)
DEEP_PATH: Final = 3800  # bytes relative to the root: leaves 295 of PATH_MAX to wherever the tree is
TIMES_NS: Final = {
    "1901": -(2**31) * 10**9,
    "before-1970": -1_000_000_001,
    "just-before-1970": -1,
    "1970": 0,
    "one-ns": 1,
    "nanoseconds": 1_234_567_890_123_456_789,
    "2038-last": (2**31 - 1) * 10**9 + 999_999_999,
    "2038-after": 2**31 * 10**9 + 1,
    "2106-after": 2**32 * 10**9 + 5,
    "2400": 13_569_465_600 * 10**9 + 7,
}
NAMES: Final = (
    b"x" * 255,
    "ü".encode() * 127 + b"y",  # 255 bytes, 128 characters
    "\N{FACE WITH TEARS OF JOY}".encode() * 63,
    b"\xff\xfe not utf-8 \x80",
    b"\xc3",  # half a character
    "e\N{COMBINING ACUTE ACCENT}".encode(),
    "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    b"new\nline",
    b"\n",
    b"carriage\rreturn",
    b"tab\tbell\a\x1b[31mred\x1b[0m",
    b"\x01\x02\x7f",
    b" ",
    b"  leading and trailing  ",
    b"...",
    b"..x",
    b"-rf",
    b"--help",
    b"*",
    b"a:b",
    b"back\\slash",
    b"quote'\"`$(touch oops)",
    b"%s%n%x",
    b"CON",
    b"Case",
    b"case",
    b"header",  # the names that a volume itself uses
    b"root.a",
    b".fuse_hidden0000000100000001",
)


class Torture:
    """The maker of one tree.

    Attributes:
        left_out: What could not be made, and why: "device nodes: Operation not permitted".
    """

    def __init__(self, root: str | bytes | os.PathLike[str], *, seed: int = 1, all_modes: bool = True) -> None:
        """Args:
        root: Directory to make; must not exist.
        all_modes: 4096 files, one of each mode; otherwise 64. Files that their owner cannot read are made by root only.
        """
        self.root = os.fsencode(root)
        self.left_out: list[str] = []
        self._random = random.Random(seed)
        self._root_user = os.geteuid() == 0
        self._all_modes = all_modes
        self._times: list[tuple[bytes, int]] = []

    def make(self) -> list[str]:
        """Make the tree; what was left out."""
        os.mkdir(self.root)
        for part in (
            self._sizes, self._sparse, self._names, self._links, self._symlinks, self._xattrs, self._special, self._modes,
            self._stamps, self._owners, self._deep, self._wide,
        ):  # fmt: skip
            part()
        self._stamp_everything()
        return self.left_out

    # --------------------------------------------------------------------- helpers

    def _path(self, *parts: bytes) -> bytes:
        return os.path.join(self.root, *parts)

    def _directory(self, name: bytes) -> bytes:
        path = self._path(name)
        os.mkdir(path)
        return path

    def _file(self, path: bytes, content: bytes = b"") -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _try(self, what: str, action: Callable[..., object], *arguments: Any, **options: Any) -> bool:
        """Do what the file system or our rights may not allow."""
        refusals = {
            errno.EPERM,
            errno.EACCES,
            errno.ENOTSUP,
            errno.EINVAL,
            errno.ENOSPC,
            errno.E2BIG,
            errno.ERANGE,
            errno.EFBIG,
        }
        try:
            action(*arguments, **options)
        except OSError as exc:
            if exc.errno not in refusals | {errno.ENAMETOOLONG}:
                raise
            self.left_out.append(f"{what}: {exc.strerror}")
            return False
        return True

    # --------------------------------------------------------------------- parts

    def _sizes(self) -> None:
        base = self._directory(b"sizes")
        for size in SIZES:
            self._file(os.path.join(base, b"random-%d" % size), self._random.randbytes(size))
        self._file(os.path.join(base, b"zeros"), bytes(100_000))  # allocated zeros
        self._file(os.path.join(base, b"same"), self._random.randbytes(4096) * 40)

    def _sparse(self) -> None:
        base = self._directory(b"sparse")
        for size in SPARSE_SIZES:
            self._try(f"sparse file of {size} bytes", self._sparse_file, base, size)
        self._file(os.path.join(base, b"hole-only"))
        os.truncate(os.path.join(base, b"hole-only"), 10_000_000)
        self._file(os.path.join(base, b"hole-at-end"), b"data")
        os.truncate(os.path.join(base, b"hole-at-end"), 1_000_001)

    def _sparse_file(self, base: bytes, size: int) -> None:
        fd = os.open(os.path.join(base, b"sparse-%d" % size), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, b"begin", 0)
            for _ in range(5):
                os.pwrite(fd, self._random.randbytes(5000), self._random.randrange(size - 5000))
            os.pwrite(fd, b"end", size - 3)
        finally:
            os.close(fd)

    def _names(self) -> None:
        base = self._directory(b"names")
        directories = self._directory(b"names-of-directories")
        for name in NAMES:
            self._try(f"name {name[:20]!r}", self._file, os.path.join(base, name), name)
            self._try(f"name {name[:20]!r}", os.mkdir, os.path.join(directories, name))

    def _links(self) -> None:
        base = self._directory(b"links")
        other = self._directory(b"links-elsewhere")
        self._file(os.path.join(base, b"two"), b"two names")
        os.link(os.path.join(base, b"two"), os.path.join(base, b"two-again"))
        self._file(os.path.join(base, b"many"), self._random.randbytes(9000))
        for number in range(100):
            os.link(os.path.join(base, b"many"), os.path.join(base if number % 2 else other, b"many-%d" % number))
        self._file(os.path.join(base, b"empty"))
        os.link(os.path.join(base, b"empty"), os.path.join(other, b"empty"))
        os.symlink(b"x", os.path.join(base, b"symlink"))
        os.link(os.path.join(base, b"symlink"), os.path.join(base, b"symlink-again"), follow_symlinks=False)
        os.mkfifo(os.path.join(base, b"fifo"))
        os.link(os.path.join(base, b"fifo"), os.path.join(other, b"fifo"))
        self._file(os.path.join(base, b"equal-but-not-linked"), b"two names")

    def _symlinks(self) -> None:
        base = self._directory(b"symlinks")
        targets = {
            b"dangling": b"no/such/thing",
            b"absolute": b"/etc/passwd",
            b"self": b"self",
            b"loop-a": b"loop-b",
            b"loop-b": b"loop-a",
            b"up": b"../../../../../../..",
            b"directory": b"../names",
            b"not-utf8": b"\xff\xfe",
            b"newline": b"a\nb",
            b"60": b"t" * 60,  # ext4 keeps shorter ones in the inode
            b"4094": b"t/" * 2047,
            b"4095": b"t/" * 2047 + b"t",
        }
        for name, target in targets.items():
            self._try(f"symlink target of {len(target)} bytes", os.symlink, target, os.path.join(base, name))

    def _xattrs(self) -> None:
        base = self._directory(b"xattrs")
        values = {
            b"user.empty": b"",
            b"user.one": b"1",
            b"user.binary": bytes(range(256)),
            b"user." + b"n" * 250: b"longest name",
            "user.ümläut".encode(): b"name in UTF-8",
            b"user.\xff": b"name not in UTF-8",
            b"user.newline\n": b"a\nb\0c",
        }
        if self._root_user:
            values |= {b"trusted.fspf": b"for root", b"security.fspf": b"for a security module"}
            # Version 2, effective, cap_net_bind_service: what setcap writes.
            values[b"security.capability"] = bytes.fromhex("0100000200040000000000000000000000000000")
        for name, value in values.items():
            path = os.path.join(base, b"file-%d" % len(name))
            if not os.path.exists(path):
                self._file(path, b"x")
            self._try(f"xattr {name[:24]!r}", os.setxattr, path, name, value)
        self._file(os.path.join(base, b"many"), b"x")
        for number in range(40):
            self._try("40 xattrs", os.setxattr, os.path.join(base, b"many"), b"user.%03d" % number, b"v" * number)
        self._file(os.path.join(base, b"large"), b"x")
        large = self._random.randbytes(3000)
        self._try("xattr of 3000 bytes", os.setxattr, os.path.join(base, b"large"), b"user.large", large)
        self._try("xattr of a directory", os.setxattr, base, b"user.directory", b"yes")
        if self._root_user:
            os.symlink(b"x", os.path.join(base, b"symlink"))
            target = os.path.join(base, b"symlink")
            self._try("xattr of a symlink", os.setxattr, target, b"trusted.s", b"link", follow_symlinks=False)

    def _special(self) -> None:
        base = self._directory(b"special")
        os.mkfifo(os.path.join(base, b"fifo"), 0o640)
        nodes = {
            b"null": (stat.S_IFCHR, 1, 3),
            b"large-numbers": (stat.S_IFCHR, 4095, 1048575),
            b"zero-numbers": (stat.S_IFCHR, 0, 0),  # as whiteouts of overlayfs
            b"disk": (stat.S_IFBLK, 8, 17),
        }
        for name, (kind, major, minor) in nodes.items():
            path = os.path.join(base, name)
            self._try("device nodes", os.mknod, path, kind | 0o600, os.makedev(major, minor))

    def _modes(self) -> None:
        base = self._directory(b"modes")
        for mode in range(0, 4096, 1 if self._all_modes else 67):
            if not self._root_user and not mode & 0o400:
                continue
            path = os.path.join(base, b"%04o" % mode)
            self._file(path)
            os.chmod(path, mode)
        for mode in (0o700, 0o755, 0o1777, 0o2775, 0o4700, 0o7777):
            path = os.path.join(base, b"directory-%04o" % mode)
            os.mkdir(path)
            os.chmod(path, mode)
        if self._root_user:
            os.mkdir(os.path.join(base, b"directory-0000"), 0)
            os.chmod(os.path.join(base, b"directory-0000"), 0)

    def _stamps(self) -> None:
        base = self._directory(b"times")
        for name, time_ns in TIMES_NS.items():
            path = os.path.join(base, name.encode())
            self._file(path)
            self._times.append((path, time_ns))
            os.symlink(b"x", path + b"-symlink")
            self._times.append((path + b"-symlink", time_ns))
            os.mkdir(path + b"-directory")
            self._times.append((path + b"-directory", time_ns))

    def _owners(self) -> None:
        if not self._root_user:
            self.left_out.append("odd owners: not root")
            return
        base = self._directory(b"owners")
        for uid, gid in (
            (1, 2),
            (1000, 1000),
            (65534, 65534),
            (65536, 99999),
            (2**31, 2**31 + 1),
            (2**32 - 2, 2**32 - 2),
        ):
            path = os.path.join(base, b"%d-%d" % (uid, gid))
            self._file(path)
            os.symlink(b"x", path + b"-symlink")
            for one in (path, path + b"-symlink"):
                self._try(f"owner {uid}", os.chown, one, uid, gid, follow_symlinks=False)
        path = os.path.join(base, b"setuid")  # the mode after the owner: chown clears it
        self._file(path, b"x")
        os.chown(path, 1, 2)
        os.chmod(path, 0o6755)

    def _deep(self) -> None:
        """Directories in directories until the path relative to the root is nearly PATH_MAX long."""
        self._directory(b"deep")
        left = DEEP_PATH - len(b"deep")
        fd = os.open(self._path(b"deep"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            while left > 60:
                name = b"d" * min(50, left - 60)
                os.mkdir(name, dir_fd=fd)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
                left -= len(name) + 1
            leaf = os.open(b"f" * (left - 1), os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
            os.write(leaf, b"at the bottom")
            os.close(leaf)
        finally:
            os.close(fd)

    def _wide(self) -> None:
        os.mkdir(self._path(b"empty"))
        base = self._directory(b"wide")
        for number in range(1500):  # more than one page of readdir
            self._file(os.path.join(base, b"%d" % number), b"%d" % number if number % 3 else b"")

    def _stamp_everything(self) -> None:
        """Give everything a time of its own, directories last and deepest first: making their entries changed theirs."""
        chosen = dict(self._times)
        directories = []
        for here, below, files in os.walk(self.root):
            directories.append(here)
            for name in files + [name for name in below if os.path.islink(os.path.join(here, name))]:
                path = os.path.join(here, name)
                if path not in chosen:
                    self._stamp(path, self._random.randrange(10**18, 2 * 10**18))
        for path in sorted(chosen, key=len, reverse=True):
            if not os.path.isdir(path) or os.path.islink(path):
                self._try(f"time {chosen[path]}", self._stamp, path, chosen[path])
        for path in sorted(directories, key=len, reverse=True):
            self._stamp(path, chosen.get(path, self._random.randrange(10**18, 2 * 10**18)))

    @staticmethod
    def _stamp(path: bytes, time_ns: int) -> None:
        # One file has many names; the last one's time stays, which is as good as any.
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def make(root: str | bytes | os.PathLike[str], *, seed: int = 1, all_modes: bool = True) -> list[str]:
    """Make the tree at *root*, which must not exist; what had to be left out."""
    return Torture(root, seed=seed, all_modes=all_modes).make()


def main() -> int:
    """Make a tree by hand: python -m tests.support.torture DIRECTORY."""
    parser = argparse.ArgumentParser(prog="torture", description="Make a directory tree of everything odd but legal.")
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for line in make(given.directory, seed=given.seed):
        print("left out:", line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
