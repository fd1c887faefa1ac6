"""utimensat(2) and the range of timestamps (pjdfstest utimensat/; generic/221, 258, 402, 407)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ALICE,
    AT_SYMLINK_NOFOLLOW,
    BOB,
    KINDS,
    REALTIME_COARSE,
    ROOT,
    UTIME_NOW,
    UTIME_OMIT,
    changes,
    make,
    opened,
    sync,
    tick,
    times,
    utimens,
)

S = 10**9
NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)


def set_times(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    utimens(path, atime, mtime, AT_SYMLINK_NOFOLLOW)


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_set(d: Path, kind: str) -> None:
    path = make(kind, d / "x")
    tick()
    before = times(path)
    set_times(path, (1_000_000_000, 123_456_789), (1_500_000_000, 987_654_321))
    now = times(path)
    assert now[:2] == (1_000_000_000_123_456_789, 1_500_000_000_987_654_321)
    assert now.ctime > before.ctime
    set_times(path, OMIT, (7, 8))
    assert times(path)[:2] == (1_000_000_000_123_456_789, 7 * S + 8)
    set_times(path, (9, 10), OMIT)
    assert times(path)[:2] == (9 * S + 10, 7 * S + 8)
    with changes((path, "")):
        set_times(path, OMIT, OMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_now(d: Path, kind: str) -> None:
    path = make(kind, d / "x")
    set_times(path, (1, 0), (2, 0))
    tick()
    begin = _coarse()
    set_times(path, NOW, OMIT)
    now = times(path)
    assert begin <= now.atime <= now.ctime <= _fine()
    assert now.mtime == 2 * S
    set_times(path, OMIT, NOW)
    assert begin <= times(path).mtime <= _fine()
    set_times(path, (1, 0), NOW)
    assert times(path).atime == S
    set_times(path, NOW, NOW)
    assert times(path).atime == times(path).mtime


def _coarse() -> int:
    import time

    return time.clock_gettime_ns(REALTIME_COARSE)


def _fine() -> int:
    import time

    return time.time_ns()


def test_links(d: Path) -> None:
    make("file", d / "x")
    (d / "link").symlink_to("x")
    utimens(d / "link", (1, 0), (2, 0))
    assert times(d / "x")[:2] == (S, 2 * S)
    assert times(d / "link").mtime != 2 * S
    utimens(d / "link", (3, 0), (4, 0), AT_SYMLINK_NOFOLLOW)
    assert times(d / "link").mtime == 4 * S
    assert times(d / "x").mtime == 2 * S


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_who_may(d: Path, kind: str) -> None:
    """generic/087: now needs writing, any other time ownership."""
    path = make(kind, d / "x", 0o644, ALICE)
    for who in (ALICE, ROOT):
        who(set_times, path, (1, 0), (2, 0))
        who(set_times, path, NOW, NOW)
    with changes((path, "")):
        BOB.gets(errno.EACCES, set_times, path, NOW, NOW)
        BOB.gets(errno.EPERM, set_times, path, (1, 0), (2, 0))
        BOB.gets(errno.EPERM, set_times, path, OMIT, (2, 0))
        BOB.gets(errno.EPERM, set_times, path, OMIT, NOW)
        BOB.gets(errno.EPERM, set_times, path, NOW, OMIT)
    path.chmod(0o666)
    BOB(set_times, path, NOW, NOW)
    BOB.gets(errno.EPERM, set_times, path, (1, 0), NOW)
    BOB.gets(errno.EPERM, set_times, path, NOW, OMIT)
    path.chmod(0o444)
    ALICE(set_times, path, NOW, NOW)


@pytest.mark.parametrize("nanoseconds", [10**9, -1, UTIME_NOW + 1])
def test_impossible_nanoseconds(d: Path, nanoseconds: int) -> None:
    make("file", d / "x")
    ROOT.gets(errno.EINVAL, set_times, d / "x", (0, nanoseconds), (0, 0))
    ROOT.gets(errno.EINVAL, set_times, d / "x", (0, 0), (0, nanoseconds))


# What ext4 keeps: -2^31 … 2^34 - 2^31 - 1 s since 1970. Ours is 64-bit nanoseconds: 1677 to 2262.
INSTANTS = {
    "1901": -(2**31) + 1,
    "before 1970": -1,
    "1970": 0,
    "2038": 2**31 - 1,
    "after 2038": 2**31,
    "2106": 2**32 - 1,
    "after 2106": 2**32,
    "2242": 2**33,
    "2261": 9_190_000_000,
}


@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_instants_survive_remounting(d: Path, fs: Place, instant: str, kind: str) -> None:
    path = make(kind, d / "x")
    seconds = INSTANTS[instant]
    set_times(path, (seconds, 999_999_999), (seconds, 1))
    wanted = (seconds * S + 999_999_999, seconds * S + 1)
    assert times(path)[:2] == wanted
    if kind == "file" and instant in {"1901", "2261"}:
        fs.remount()
        assert times(path).mtime == wanted[1]
        assert times(path).atime == wanted[0]


@pytest.mark.parametrize("seconds", [2**34 - 2**31 - 1, 2**34, 2**62, -(2**40), -(2**62)])
def test_instants_out_of_range_are_clamped(d: Path, fs: Place, seconds: int) -> None:
    """generic/402: the nearest time that can be kept, and the same one after remounting."""
    path = make("file", d / "x")
    set_times(path, (seconds, 5), (seconds, 5))
    seen = os.stat(path).st_mtime_ns // S
    limits = (-(2**63) // S, 2**63 // S) if fs.is_fspf else (-(2**31), 2**34 - 2**31 - 1)
    with fs.may_differ(
        "FUSE cannot tell the kernel the range of its timestamps: it is clamped when the inode is read again"
    ):
        assert limits[0] <= seen <= limits[1]
    fs.remount()
    assert limits[0] <= os.stat(path).st_mtime_ns // S <= limits[1]
    assert (os.stat(path).st_mtime_ns > 0) == (seconds > 0)


def test_by_descriptor(d: Path) -> None:
    make("file", d / "x", 0o666)
    with opened(d / "x", os.O_RDONLY) as descriptor:
        utimens(descriptor, (5, 6), (7, 8))
        assert times(d / "x")[:2] == (5 * S + 6, 7 * S + 8)
        BOB.gets(errno.EPERM, utimens, descriptor, (5, 6), (7, 8))
        BOB(utimens, descriptor, NOW, NOW)
        (d / "x").unlink()
        utimens(descriptor, (5, 6), (7, 8))
        assert os.fstat(descriptor).st_mtime_ns == 7 * S + 8


def test_a_set_time_survives_pending_data(d: Path, fs: Place) -> None:
    """Writing, setting the time, closing (as cp -p, tar, rsync do): the data must not bring its own time later."""
    for number in range(5):
        with opened(d / str(number), os.O_CREAT | os.O_RDWR) as descriptor:
            os.write(descriptor, b"x" * 100_000)
            utimens(descriptor, (11, 0), (22, 33))
        assert times(d / str(number)).mtime == 22 * S + 33
    sync(d)
    fs.remount()
    for number in range(5):
        assert times(d / str(number)).mtime == 22 * S + 33
        assert times(d / str(number)).atime == 11 * S
