"""Set-id bits and capabilities fall when a file changes (generic/193, 355, 673, 683-687, 314).

What chown(2) takes is in test_chown.py.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ALICE,
    BOB,
    KEEP_SIZE,
    LIBC,
    PUNCH_HOLE,
    ROOT,
    ZERO_RANGE,
    copy_file_range,
    fallocate,
    make,
    mode_of,
    opened,
)

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep


def _map(descriptor: int) -> None:
    with mmap.mmap(descriptor, 4096) as mapped:
        mapped[0] = 1
        mapped.flush()


def _direct(descriptor: int) -> None:
    with opened(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_DIRECT) as direct, mmap.mmap(-1, 4096) as page:
        os.pwritev(direct, [page], 0)


def _splice(descriptor: int) -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    os.splice(read, descriptor, 1, offset_dst=0) if hasattr(os, "splice") else os.pwrite(descriptor, b"x", 0)
    os.close(read)
    os.close(write)


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda f: os.pwrite(f, b"x", 0),
    "write at the end": lambda f: os.pwrite(f, b"x", 20_000),
    "direct write": _direct,
    "splice": _splice,
    "ftruncate down": lambda f: os.ftruncate(f, 5),
    "ftruncate up": lambda f: os.ftruncate(f, 50_000),
    "truncate": lambda f: os.truncate(f"/proc/self/fd/{f}", 5),
    "O_TRUNC": lambda f: os.close(os.open(f"/proc/self/fd/{f}", os.O_WRONLY | os.O_TRUNC)),
    "fallocate": lambda f: fallocate(f, 0, 0, 50_000),
    "fallocate KEEP_SIZE": lambda f: fallocate(f, KEEP_SIZE, 0, 50_000),
    "PUNCH_HOLE": lambda f: fallocate(f, KEEP_SIZE | PUNCH_HOLE, 0, 4096),
    "ZERO_RANGE": lambda f: fallocate(f, ZERO_RANGE, 0, 4096),
    "copy_file_range": lambda f: copy_file_range(f, 0, f, 8192, 4096),
}


@pytest.fixture
def program(d: Path) -> Path:
    path = make("file", d / "x")
    path.write_bytes(b"x" * 16_384)
    os.chown(path, BOB.uid, BOB.gid)
    path.chmod(0o777)
    return path


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("before", "after"),
    [(0o4777, 0o777), (0o2777, 0o777), (0o6777, 0o777), (0o6766, 0o2766), (0o2766, 0o2766), (0o6666, 0o2666), (0o1777, 0o1777)],
)  # fmt: skip
def test_changes_by_a_user(program: Path, fs: Place, change: str, before: int, after: int) -> None:
    """A set-group-id bit without group execution stays (mandatory locking), unless the caller is a stranger to the group.

    Alice is one, so newer kernels let it fall; both are right (generic/683 knows both).
    """
    program.chmod(before)
    with ALICE, opened(program) as descriptor:
        if not fs.can(CHANGES[change], descriptor):
            return
    assert oct(mode_of(program)) in {oct(after), oct(after & ~0o2000)}
    if after & 0o2000:
        return
    fs_mode = mode_of(program)
    with opened(program) as descriptor:
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_mode & 0o7777 == fs_mode


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [0o6777, 0o6766])
def test_changes_by_root(program: Path, fs: Place, change: str, before: int) -> None:
    """Root keeps them: CAP_FSETID."""
    program.chmod(before)
    with opened(program) as descriptor:
        fs.can(CHANGES[change], descriptor)
    assert oct(mode_of(program)) == oct(before)


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "copy_file_range"])
def test_capabilities_fall_for_everybody(program: Path, fs: Place, change: str) -> None:
    for who in (ALICE, ROOT):
        os.setxattr(program, "security.capability", CAPABILITY)
        with who, opened(program) as descriptor:
            if not fs.can(CHANGES[change], descriptor):
                return
        assert "security.capability" not in os.listxattr(program)


def test_chown_takes_capabilities(program: Path) -> None:
    os.setxattr(program, "security.capability", CAPABILITY)
    os.chown(program, 1, -1)
    assert "security.capability" not in os.listxattr(program)


def test_mapped_writes_take_bits(program: Path, fs: Place) -> None:
    """Linux leaves the bits when a page is written through a mapping of a descriptor (ext4 does so, too)."""
    program.chmod(0o4777)
    with ALICE, opened(program) as descriptor:
        fs.can(_map, descriptor)
    assert mode_of(program) in {0o777, 0o4777}


def test_after_remounting(program: Path, fs: Place) -> None:
    program.chmod(0o6777)
    with ALICE, opened(program) as descriptor:
        os.pwrite(descriptor, b"x", 0)
    fs.remount()
    assert oct(mode_of(program)) == oct(0o777)
    os.chown(program, BOB.uid, BOB.gid)
    program.chmod(0o6777)
    fs.remount()
    assert oct(mode_of(program)) == oct(0o6777)
    with ALICE, opened(program) as descriptor:
        os.pwrite(descriptor, b"x", 0)
    assert oct(mode_of(program)) == oct(0o777)


def test_a_user_keeps_bits_of_what_is_not_changed(program: Path) -> None:
    program.chmod(0o6777)
    with ALICE, opened(program) as descriptor:
        os.pread(descriptor, 100, 0)
        os.fsync(descriptor)
        LIBC.posix_fadvise(descriptor, 0, 0, 4)
        os.write(descriptor, b"")
    assert oct(mode_of(program)) == oct(0o6777)
