"""What users of a mount see when the host's storage is altered, rotten, full or broken.

Every kind of damage, without a mount, is in tests/tamper.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fspf.core.types import Ino, Protection
from tests.support.mounted import Site, make_site, need_fuse

CHUNK = 4096


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda exc: exc.errno == number)


def marked(number: int) -> bytes:
    """A chunk that can be found again in a segment of a volume whose content is authenticated, not encrypted."""
    return (b"<chunk %06d>" % number).ljust(CHUNK, b".")


def make_findable(site: Site) -> None:
    """Let new content be stored in plain (authenticated), so that a test finds the slot it wants to hit."""
    with site.library() as volume:
        volume.set_protection(Ino(1), Protection.AUTHENTICATED)


def hit(site: Site, chunk: bytes) -> None:
    """Alter one byte of the slot that holds *chunk*."""
    for segment in sorted((site.volume / "segments").iterdir()):
        raw = segment.read_bytes()
        position = raw.find(chunk)
        if position >= 0:
            with segment.open("r+b") as file:
                file.seek(position + 100)
                file.write(b"!")
            return
    raise AssertionError("the chunk is in no segment")


@pytest.fixture
def damaged(site: Site) -> Path:
    """A mounted volume whose file `f` of 300 chunks has damage in chunks 100 and 200."""
    make_findable(site)
    site.mount()
    (site.mountpoint / "f").write_bytes(b"".join(map(marked, range(300))))
    (site.mountpoint / "other").write_bytes(marked(1000))
    site.umount()
    for number in (100, 200):
        hit(site, marked(number))
    site.mount()
    site.allow("chunk|bytes .* are tampered|bytes .* are torn")
    return site.mountpoint


def test_damage_is_an_io_error_for_that_range_only(site: Site, damaged: Path) -> None:
    descriptor = os.open(damaged / "f", os.O_RDONLY)
    try:
        bad = []
        for number in range(300):
            try:
                assert os.pread(descriptor, CHUNK, number * CHUNK) == marked(number)
            except OSError as exc:
                bad.append((number, exc.errno))
        assert bad == [(100, errno.EIO), (200, errno.EIO)]
        assert os.pread(descriptor, CHUNK, 50 * CHUNK) == marked(50)
    finally:
        os.close(descriptor)
    assert (damaged / "other").read_bytes() == marked(1000)
    lines = [line for line in site.read_log().splitlines() if "ERROR" in line]
    assert any(f"'/f': bytes {100 * CHUNK} to {101 * CHUNK - 1}" in line for line in lines)
    assert 2 <= len(lines) <= 4  # repeats are counted, not written
    shown = json.loads(site.run("status", "--json", site.mountpoint).stdout)["errors"]
    assert any(f"'/f': bytes {100 * CHUNK} to {101 * CHUNK - 1}" in line for line in shown)


def test_reading_stops_at_the_damage_and_never_gives_wrong_bytes(damaged: Path) -> None:
    with refused(errno.EIO):
        (damaged / "f").read_bytes()
    with (damaged / "f").open("rb", buffering=0) as file:
        got = b""
        with refused(errno.EIO):
            while part := file.read(65536):
                got += part
        assert got == b"".join(map(marked, range(100)))[: len(got)]
        assert len(got) == 100 * CHUNK
    done = subprocess.run(["cp", str(damaged / "f"), "/dev/null"], capture_output=True)
    assert done.returncode != 0


def test_direct_reads_of_damage(damaged: Path) -> None:
    import mmap

    page = mmap.mmap(-1, CHUNK)
    descriptor = os.open(damaged / "f", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(descriptor, [page], 99 * CHUNK) == CHUNK
        assert page[:] == marked(99)
        with refused(errno.EIO):
            os.preadv(descriptor, [page], 100 * CHUNK)
    finally:
        os.close(descriptor)


def test_a_damaged_range_can_be_overwritten(site: Site, damaged: Path) -> None:
    with (damaged / "f").open("r+b") as file:
        file.seek(100 * CHUNK)
        file.write(marked(100))
        file.flush()
        os.fsync(file.fileno())
    site.umount()
    site.mount()
    with (damaged / "f").open("rb") as file:
        file.seek(100 * CHUNK)
        assert file.read(CHUNK) == marked(100)


def test_a_damaged_file_can_be_deleted(site: Site, damaged: Path) -> None:
    (damaged / "f").unlink()
    (damaged / "new").write_bytes(b"x" * 100_000)
    site.umount()
    assert site.run("verify", site.volume).returncode == 0
    site.mount()
    assert sorted(os.listdir(damaged)) == ["new", "other"]


def test_damage_below_many_files_hits_only_those(site: Site) -> None:
    make_findable(site)
    site.mount()
    for number in range(50):
        (site.mountpoint / f"{number}").write_bytes(marked(number) * 3)
    site.umount()
    hit(site, marked(7))
    site.allow("bytes .* are")
    site.mount()
    for number in range(50):
        if number == 7:
            with refused(errno.EIO):
                (site.mountpoint / "7").read_bytes()
        else:
            assert (site.mountpoint / f"{number}").read_bytes() == marked(number) * 3
    names = os.listdir(site.mountpoint)
    assert len(names) == 50


def test_an_old_copy_is_refused(site: Site) -> None:
    site.mount()
    (site.mountpoint / "f").write_text("old")
    site.umount()
    subprocess.run(["cp", "-a", str(site.volume), str(site.root / "old")], check=True)
    site.mount()
    (site.mountpoint / "f").write_text("new")
    site.umount()
    subprocess.run(["rm", "-r", str(site.volume)], check=True)
    (site.root / "old").rename(site.volume)
    done = site.mount(check=21)
    assert "generation" in done.stderr
    assert not site.is_mounted()
    site.allow("CRITICAL")


# -- a full disk


@pytest.fixture
def small(scratch: Path) -> Iterator[Site]:
    """A site whose volume has a file system of 96 MB for itself."""
    need_fuse()
    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "fspf-test", str(disk)], check=True)
    try:
        yield from make_site(scratch, disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> int:
    """Write until the disk is full; how many bytes were accepted."""
    written = 0
    block = os.urandom(1 << 20)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        with refused(errno.ENOSPC):
            while True:
                written += os.write(descriptor, block)
                os.fsync(descriptor)
    finally:
        try:
            os.close(descriptor)
        except OSError as exc:
            assert exc.errno in {errno.ENOSPC, errno.EIO}  # noqa: PT017
    return written


def wait_for_space(site: Site, size: int) -> None:
    """Wait until a commit by the clock has given freed space back to the host."""
    deadline = time.monotonic() + 20
    while True:
        space = os.statvfs(site.volume)
        if space.f_bavail * space.f_frsize >= size:
            return
        assert time.monotonic() < deadline, "freed space does not come back"
        time.sleep(0.05)


def test_a_full_disk_is_told_and_survived(small: Site) -> None:
    small.allow("No space left|ENOSPC|could not be written|fsync")
    small.mount("commit=0.2")
    mnt = small.mountpoint
    (mnt / "kept").write_bytes(b"k" * 100_000)
    with (mnt / "kept").open("rb") as file:
        os.fsync(file.fileno())
    assert 20 << 20 < fill(mnt / "large") < 96 << 20
    assert (mnt / "kept").read_bytes() == b"k" * 100_000
    (mnt / "large").unlink()
    wait_for_space(small, 50 << 20)
    (mnt / "after").write_bytes(os.urandom(10 << 20))
    with (mnt / "after").open("rb") as file:
        os.fsync(file.fileno())
    small.umount()
    assert small.run("verify", small.volume).returncode == 0
    small.mount()
    assert (mnt / "kept").read_bytes() == b"k" * 100_000
    assert (mnt / "after").stat().st_size == 10 << 20


def test_metadata_still_works_on_a_full_disk(small: Site) -> None:
    small.allow("No space left|ENOSPC|could not be written|fsync")
    small.mount("commit=0.2")
    mnt = small.mountpoint
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_text("x")
    fill(mnt / "large")
    (mnt / "d" / "f").rename(mnt / "moved")
    (mnt / "d").rmdir()
    descriptor = os.open(mnt, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    (mnt / "large").unlink()
    wait_for_space(small, 50 << 20)
    small.umount()
    small.mount()
    assert sorted(os.listdir(mnt)) == ["moved"]
