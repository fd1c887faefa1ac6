"""Many processes make, move, link and remove names at once; afterwards everything adds up, and stays so when it is read
from the volume again (LTP fsstress, generic/013, 051, 068, 070, 076, 127, 269, 475-like; stress-ng's dentry and rename).
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import REPO, make_site
from tests.support.posix import (
    ACL_ACCESS,
    ACL_DEFAULT,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    acl,
    linkat,
    renameat2,
    run_all,
    tmpfile,
)

PROCESSES = 4
EXPECTED = {  # what may happen when others do the same at once
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EPERM,
    errno.ENODATA, errno.EOPNOTSUPP, errno.ENXIO, errno.EBUSY, errno.EACCES, errno.EXDEV, errno.ESTALE,
}  # fmt: skip


class Churner:
    """One of the processes; its steps follow from the seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.root = root
        self.held: list[int] = []
        self.steps: list[Callable[[], object]] = [
            self.create, self.create, self.create, self.mkdir, self.mkdir, self.symlink, self.mknod, self.link, self.unlink,
            self.unlink, self.rmdir, self.rename, self.rename, self.rename, self.exchange, self.whiteout, self.write,
            self.write, self.truncate, self.chmod, self.chown, self.xattr, self.no_xattr, self.access_list, self.default_list,
            self.unnamed, self.hold, self.let_go, self.list, self.utime, self.sync,
        ]  # fmt: skip

    def path(self) -> Path:
        """One of few, so that processes meet."""
        path = self.root
        for _ in range(self.random.choice((0, 1, 1, 2))):
            path = path / f"d{self.random.randrange(4)}"
        return path / f"{self.random.choice('fd')}{self.random.randrange(4 if self.random.random() < 0.5 else 30)}"

    def run(self, count: int) -> None:
        for _ in range(count):
            step = self.random.choice(self.steps)
            try:
                step()
            except OSError as exc:
                if exc.errno not in EXPECTED:
                    raise
        while self.held:
            os.close(self.held.pop())

    def create(self) -> None:
        descriptor = os.open(self.path(), os.O_CREAT | os.O_RDWR | self.random.choice((0, os.O_EXCL, os.O_TRUNC)))
        os.write(descriptor, self.random.randbytes(self.random.choice((0, 10, 5000))))
        os.close(descriptor)

    def mkdir(self) -> None:
        self.path().mkdir()

    def symlink(self) -> None:
        self.path().symlink_to("t" * self.random.randrange(1, 250))

    def mknod(self) -> None:
        os.mknod(self.path(), self.random.choice((stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK)) | 0o644)

    def link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def unlink(self) -> None:
        self.path().unlink()

    def rmdir(self) -> None:
        self.path().rmdir()

    def rename(self) -> None:
        renameat2(self.path(), self.path(), self.random.choice((0, 0, RENAME_NOREPLACE)))

    def exchange(self) -> None:
        renameat2(self.path(), self.path(), RENAME_EXCHANGE)

    def whiteout(self) -> None:
        renameat2(self.path(), self.path(), RENAME_WHITEOUT)

    def write(self) -> None:
        descriptor = os.open(self.path(), os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.pwrite(descriptor, self.random.randbytes(100), self.random.randrange(20_000))
            if self.random.random() < 0.05:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self) -> None:
        os.truncate(self.path(), self.random.randrange(10_000))

    def chmod(self) -> None:
        self.path().chmod(self.random.choice((0o755, 0o700, 0o2777, 0o644)))

    def chown(self) -> None:
        os.lchown(self.path(), self.random.randrange(3), self.random.randrange(3))

    def xattr(self) -> None:
        name = self.random.choice(("user.a", "trusted.b"))
        os.setxattr(self.path(), name, self.random.randbytes(self.random.randrange(50)), follow_symlinks=False)

    def no_xattr(self) -> None:
        os.removexattr(self.path(), self.random.choice(("user.a", ACL_ACCESS, ACL_DEFAULT)), follow_symlinks=False)

    def access_list(self) -> None:
        os.setxattr(self.path(), ACL_ACCESS, acl("u::rwx,u:5:r-x,g::r-x,m::rwx,o::r-x"), follow_symlinks=False)

    def default_list(self) -> None:
        os.setxattr(self.path(), ACL_DEFAULT, acl("u::rwx,u:5:r-x,g::r-x,m::rwx,o::r-x"), follow_symlinks=False)

    def unnamed(self) -> None:
        descriptor = tmpfile(self.path().parent)
        try:
            os.write(descriptor, b"unnamed")
            if self.random.random() < 0.6:
                linkat(AT_FDCWD, b"/proc/self/fd/%d" % descriptor, AT_FDCWD, self.path(), AT_SYMLINK_FOLLOW)
        finally:
            os.close(descriptor)

    def hold(self) -> None:
        self.held.append(os.open(self.path(), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW))

    def let_go(self) -> None:
        if self.held:
            descriptor = self.held.pop(self.random.randrange(len(self.held)))
            os.pwrite(descriptor, b"held", 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
            os.close(descriptor)

    def list(self) -> None:
        with os.scandir(self.path().parent) as found:
            for entry in found:
                entry.stat(follow_symlinks=False)

    def utime(self) -> None:
        os.utime(self.path(), ns=(5, self.random.randrange(10**18)), follow_symlinks=False)

    def sync(self) -> None:
        if self.random.random() < 0.1:
            descriptor = os.open(self.root, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def snapshot(root: Path, *, with_times: bool) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, but access times; also that names and counts fit."""
    seen: dict[str, tuple[object, ...]] = {}
    names: Counter[int] = Counter()
    counts: dict[int, int] = {}
    for folder, directories, files in os.walk(root):
        for name in (".", *files, *(each for each in directories if os.path.islink(os.path.join(folder, each)))):
            path = folder if name == "." else os.path.join(folder, name)
            info = os.lstat(path)
            times = (info.st_mtime_ns, info.st_ctime_ns) if with_times else ()
            content = ""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            attributes = {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
            }
            seen[path] = (
                *info[:2], *info[3:7], times, info.st_rdev, content, tuple(attributes.items()),
            )  # fmt: skip
            if name == ".":
                assert info.st_nlink == 2 + sum(not os.path.islink(os.path.join(path, each)) for each in directories), (
                    path
                )
            else:
                names[info.st_ino] += 1
                counts[info.st_ino] = info.st_nlink
    assert names == counts
    return seen


def churn(root: Path, seed: int, count: int) -> None:
    program = "import sys; from pathlib import Path; from tests.posix.test_churn import Churner; "
    program += f"Churner(Path({os.fspath(root)!r}), int(sys.argv[1])).run({count})"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(seed * 100 + number)], cwd=REPO, stderr=subprocess.PIPE)
        for number in range(PROCESSES)
    ]
    codes = run_all(processes)
    said = "".join(process.stderr.read().decode() for process in processes if process.stderr)
    for process in processes:
        if process.stderr:
            process.stderr.close()
    assert codes == [0] * PROCESSES, said


@pytest.mark.parametrize(
    ("options", "seed", "count"),
    [
        (("cache=1M",), 1, 250),
        (("nouring", "commit=200ms"), 1, 250),
        *(
            pytest.param(options, seed, 3000, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])
            for options in (("cache=128M",), ("cache=1M",), ("nouring", "commit=200ms"), ("nonative",))
            for seed in range(2, 6)
        ),
    ],
    ids=str,
)
def test_everything_adds_up(scratch: Path, options: tuple[str, ...], seed: int, count: int) -> None:
    with_times = options != ("nonative",)  # there the server stamps what the page cache had stamped before
    for site in make_site(scratch):
        for round_number in range(2):
            site.mount("allow_other", "dev", *options)
            churn(site.mountpoint, seed * 10 + round_number, count)
            before = snapshot(site.mountpoint, with_times=with_times)
            site.umount()
            site.mount("allow_other", "dev", *options)
            after = snapshot(site.mountpoint, with_times=with_times)
            different = [
                f"{path}: {was}, then {after.get(path)}" for path, was in before.items() if was != after.get(path)
            ]
            assert not different, "\n".join(different)
            assert after.keys() == before.keys()
            site.umount()
            site.run("verify", site.volume)
