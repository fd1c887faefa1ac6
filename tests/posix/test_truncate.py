"""truncate(2), ftruncate(2) and what lies beyond the end (pjdfstest truncate/ ftruncate/; generic/029, 030, 393, 394, 406, 563)."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import ALICE, KINDS, ROOT, changes, make, opened, sync


def _ftruncate(path: Path, size: int) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, size)


BOTH: dict[str, Callable[[Path, int], None]] = {"truncate": os.truncate, "ftruncate": _ftruncate}


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("size", [0, 1, 567, 4096, 123_456])
def test_sizes_and_times(d: Path, how: str, size: int) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 1234)
    sync(d)
    with changes((path, "mc"), (d, "")):
        BOTH[how](path, size)
    assert path.stat().st_size == size
    assert path.read_bytes() == (b"x" * min(size, 1234)).ljust(size, b"\0")


@pytest.mark.parametrize("how", BOTH)
def test_the_size_that_it_has(d: Path, fs: Place, how: str) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 1234)
    sync(d)
    with (
        fs.may_differ("the kernel leaves the times of a file alone that truncate(2) does not change"),
        changes((path, "mc")),
    ):
        BOTH[how](path, 1234)
    assert path.stat().st_size == 1234


@pytest.mark.parametrize("how", BOTH)
def test_refusals_change_nothing(d: Path, how: str) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 100)
    path.chmod(0o444)
    with changes((path, "")):
        ALICE.gets(errno.EACCES, os.truncate, path, 5)
        ROOT.gets(errno.EINVAL, BOTH[how], path, -1)
    assert path.stat().st_size == 100


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"file", "symlink"}])
def test_what_is_no_file(d: Path, kind: str) -> None:
    make(kind, d / "x")
    ROOT.gets(errno.EISDIR if kind == "dir" else errno.EINVAL, os.truncate, d / "x", 0)


def test_the_largest_file(d: Path) -> None:
    path = make("file", d / "x")
    for size in (2**31, 2**32, 2**40 + 5, 2**43):
        os.truncate(path, size)
        assert path.stat().st_size == size
        assert path.stat().st_blocks < 100
    os.truncate(path, 3)
    assert path.read_bytes() == bytes(3)


def test_a_limit_on_sizes(d: Path) -> None:
    """RLIMIT_FSIZE (truncate/12, ftruncate/12)."""
    path = make("file", d / "x")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with opened(path) as descriptor:
            ROOT.gets(errno.EFBIG, os.truncate, path, 10_001)
            ROOT.gets(errno.EFBIG, os.ftruncate, descriptor, 10_001)
            ROOT.gets(errno.EFBIG, os.posix_fallocate, descriptor, 0, 10_001)
            os.truncate(path, 10_000)
            assert os.pwrite(descriptor, b"x" * 100, 9_950) == 50
            ROOT.gets(errno.EFBIG, os.pwrite, descriptor, b"x", 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.stat().st_size == 10_000


# -- beyond the end


@pytest.mark.parametrize("sync", [False, True], ids=["cached", "synced"])
@pytest.mark.parametrize("cut", [1, 500, 4095, 4096, 4097, 10_000, 65_536])
def test_what_was_cut_off_never_comes_back(d: Path, cut: int, sync: bool) -> None:
    path = d / "x"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"s" * 200_000)
        if sync:
            os.fsync(descriptor)
        os.ftruncate(descriptor, cut)
        if sync:
            os.fsync(descriptor)
        os.ftruncate(descriptor, 200_000)
        assert os.pread(descriptor, 200_000, 0) == (b"s" * cut).ljust(200_000, b"\0")
        os.ftruncate(descriptor, cut)
        os.pwrite(descriptor, b"e", 150_000)
        if sync:
            os.fsync(descriptor)
        assert os.pread(descriptor, 200_000, 0) == (b"s" * cut).ljust(150_000, b"\0") + b"e"


def test_what_a_mapping_wrote_beyond_the_end_never_shows(d: Path) -> None:
    """generic/029, 030: the rest of the last page is nobody's."""
    path = d / "x"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x" * 1000)
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            address = memoryview(mapped)
            assert len(address) == 1000
            address.release()
        with mmap.mmap(-1, 4096):
            pass
        os.ftruncate(descriptor, 4096)
        with mmap.mmap(descriptor, 4096) as mapped:
            mapped[:] = b"m" * 4096
            os.ftruncate(descriptor, 1000)
            mapped[1000:4096] = b"S" * 3096  # beyond the end: allowed, and lost
            mapped.flush()
            os.ftruncate(descriptor, 3000)
            assert mapped[:3000] == b"m" * 1000 + bytes(2000)
        os.fsync(descriptor)
        os.ftruncate(descriptor, 8192)
        assert os.pread(descriptor, 8192, 0) == (b"m" * 1000).ljust(8192, b"\0")


def test_cutting_while_mapped(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 20_000)
    with opened(path) as descriptor, mmap.mmap(descriptor, 20_000) as mapped:
        assert mapped[19_999] == ord("x")
        os.ftruncate(descriptor, 5_000)
        os.ftruncate(descriptor, 20_000)
        assert mapped[:] == (b"x" * 5_000).ljust(20_000, b"\0")
        mapped[12_000] = 1
        assert os.pread(descriptor, 1, 12_000) == b"\1"


def test_reading_at_and_beyond_the_end(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10)
    with opened(path) as descriptor:
        assert os.pread(descriptor, 10, 10) == b""
        assert os.pread(descriptor, 10, 10_000_000) == b""
        assert os.pread(descriptor, 100, 5) == b"x" * 5
        assert os.lseek(descriptor, 0, os.SEEK_END) == 10
        ROOT.gets(errno.EINVAL, os.lseek, descriptor, -11, os.SEEK_END)
