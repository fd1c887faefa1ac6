"""Which times reading and writing move, and that no clock runs ahead of another (generic/003, 192, 215, 221, 309, 336, 552).

The times that names and attributes move are with their calls.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import changes, copy_file_range, make, opened, sync, tick, times


def _map(descriptor: int) -> None:
    with mmap.mmap(descriptor, 4096) as mapped:
        mapped[10] = 77
        mapped.flush()


WRITES: dict[str, Callable[[int], object]] = {
    "write": lambda f: os.write(f, b"x"),
    "pwrite beyond the end": lambda f: os.pwrite(f, b"x", 100_000),
    "writev": lambda f: os.writev(f, [b"x", b"y"]),
    "shared mapping": _map,
    "sendfile": lambda f: os.sendfile(f, f, 0, 10),
    "copy_file_range": lambda f: copy_file_range(f, 0, f, 20_000, 4096),
    "fallocate": lambda f: os.posix_fallocate(f, 0, 200_000),
}


@pytest.mark.parametrize("how", WRITES)
def test_changing_data(d: Path, how: str) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10_000)
    with opened(path) as descriptor:
        os.fsync(descriptor)
        before = times(path)
        tick()
        WRITES[how](descriptor)
        now = times(path)
        assert now.mtime > before.mtime
        assert now.ctime >= now.mtime
        os.fsync(descriptor)
        assert times(path)[1:] == now[1:]  # reaching the disk changes nothing more


@pytest.mark.parametrize("how", ["write", "pwrite beyond the end", "shared mapping"])
def test_what_was_seen_is_what_is_kept(d: Path, fs: Place, how: str) -> None:
    """Times that the kernel gave out do not change when the inode is forgotten."""
    path = d / "x"
    path.write_bytes(b"x" * 10_000)
    sync(d)
    tick()
    with opened(path) as descriptor:
        WRITES[how](descriptor)
    seen = times(path)
    fs.remount()
    assert times(path)[1:] == seen[1:]


def test_what_changes_no_data(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10_000)
    with opened(path) as descriptor:
        os.fsync(descriptor)
        with changes((path, ""), (d, "")):
            os.write(descriptor, b"")
            os.pread(descriptor, 0, 0)
            os.lseek(descriptor, 5, os.SEEK_SET)
            os.fsync(descriptor)
            os.stat(path)
            os.close(os.open(path, os.O_RDWR))
            os.access(path, os.R_OK)
            os.listxattr(path)


def test_reading_renews_the_access_time_as_relatime_does(d: Path, fs: Place) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(10**18, 10**18 + 5))
    fs.remount()
    tick()
    path.read_bytes()
    now = times(path)
    assert now.atime > now.mtime
    assert now.mtime == 10**18 + 5


def test_reading_from_the_page_cache(d: Path, fs: Place) -> None:
    """generic/003-like. The kernel leaves access times of FUSE to the server, which does not see such a read."""
    path = d / "x"
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(10**18, 10**18 + 5))
    tick()
    path.read_bytes()
    assert (times(path).atime == 10**18) == fs.is_fspf


def test_listing_renews_the_access_time_of_a_directory(d: Path) -> None:
    (d / "x").mkdir()
    make("file", d / "x" / "y")
    os.utime(d / "x", ns=(10**18, 10**18 + 5))
    tick()
    before = times(d / "x")
    os.listdir(d / "x")
    now = times(d / "x")
    assert now.atime > before.atime
    assert now[1:] == before[1:]


def test_o_noatime(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(10**18, 10**18 + 5))
    with opened(path, os.O_RDONLY | os.O_NOATIME) as descriptor:
        os.read(descriptor, 10)
    assert times(path).atime == 10**18


def test_one_clock(d: Path) -> None:
    """What happens later never has an earlier time, whoever stamped it: the kernel, the page cache or the server."""
    last = 0
    for number in range(200):
        path = d / str(number % 7)
        for step in (
            lambda p=path: p.write_bytes(b"x"),
            lambda p=path: p.chmod(0o600),
            lambda p=path: os.setxattr(p, "user.x", b"y"),
            lambda p=path: os.truncate(p, 100),
            lambda p=path: os.utime(p),
            lambda p=path: os.rename(p, f"{p}r"),
            lambda p=path: os.rename(f"{p}r", p),
        ):
            step()
            if path.exists():
                ctime = times(path).ctime
                assert ctime >= last, f"{step}: {(last - ctime) / 1e6} ms back"
                last = ctime
        directory = times(d).ctime
        assert directory <= time.time_ns()


def test_written_after_made(d: Path) -> None:
    for number in range(300):
        with opened(d / str(number), os.O_CREAT | os.O_RDWR) as descriptor:
            made = os.fstat(descriptor)
            os.write(descriptor, b"x")
            written = os.fstat(descriptor)
            assert written.st_mtime_ns >= made.st_mtime_ns, (made.st_mtime_ns - written.st_mtime_ns) / 1e6


def test_a_directory_changes_not_before_what_was_made_in_it(d: Path) -> None:
    for number in range(100):
        path = d / str(number)
        path.write_bytes(b"x")
        path.unlink()
        make("file", d / "y")
        assert times(d).mtime >= times(d / "y").ctime - 1
        (d / "y").unlink()
