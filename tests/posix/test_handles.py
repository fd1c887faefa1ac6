"""File handles: name_to_handle_at(2), open_by_handle_at(2) (generic/426, 467, 477, 756; LTP name_to_handle_at,
open_by_handle_at). NFS servers and backup programs use them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ALICE,
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    LIBC,
    ROOT,
    check,
    make,
    opened,
)

ROOM = 128


def handle(path: Path, flags: int = 0, room: int = ROOM) -> bytes:
    raw = ctypes.create_string_buffer(struct.pack("Ii", room, 0) + bytes(ROOM))
    mount = ctypes.c_int()
    check(LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), raw, ctypes.byref(mount), flags))
    size, _ = struct.unpack_from("Ii", raw)
    return raw.raw[: 8 + size]


def open_handle(root: Path, raw: bytes, flags: int = os.O_RDONLY) -> int:
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as mount:
        return check(LIBC.open_by_handle_at(mount, raw, flags))


def read(root: Path, raw: bytes) -> bytes:
    descriptor = open_handle(root, raw)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_a_file(d: Path) -> None:
    (d / "x").write_bytes(b"text")
    raw = handle(d / "x")
    assert read(d, raw) == b"text"
    assert handle(d / "x") == raw
    (d / "dir").mkdir()
    (d / "x").rename(d / "dir" / "y")
    assert read(d, raw) == b"text"
    descriptor = open_handle(d, raw, os.O_RDWR)
    os.pwrite(descriptor, b"TEXT", 0)
    assert os.readlink(f"/proc/self/fd/{descriptor}").endswith("/y")
    os.close(descriptor)
    assert (d / "dir" / "y").read_bytes() == b"TEXT"


@pytest.mark.parametrize("kind", ["dir", "fifo", "symlink"])
def test_other_kinds(d: Path, kind: str) -> None:
    path = make(kind, d / "x")
    raw = handle(path)
    descriptor = open_handle(d, raw, os.O_PATH | os.O_NOFOLLOW)
    assert os.fstat(descriptor).st_ino == os.lstat(path).st_ino
    os.close(descriptor)
    if kind == "dir":
        make("file", path / "y")
        descriptor = open_handle(d, raw)
        assert os.listdir(descriptor) == ["y"]
        assert os.stat("..", dir_fd=descriptor).st_ino == d.stat().st_ino
        os.close(descriptor)


def test_links_are_followed_when_asked(d: Path) -> None:
    make("file", d / "x")
    (d / "link").symlink_to("x")
    assert handle(d / "link") != handle(d / "x")
    assert handle(d / "link", AT_SYMLINK_FOLLOW) == handle(d / "x")


def test_across_remounting(d: Path, fs: Place) -> None:
    """generic/477: also what nobody has looked up since, and what lies deep."""
    deep = d / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(b"text")
    raws = [handle(path) for path in (deep / "x", deep, d / "a", fs.root)]
    gone = handle(make("file", d / "gone"))
    (d / "gone").unlink()
    fs.remount()
    assert read(fs.root, raws[0]) == b"text"
    for raw, names in zip(raws[1:], (["x"], ["b"]), strict=False):
        descriptor = open_handle(fs.root, raw)
        assert os.listdir(descriptor) == names
        os.close(descriptor)
    make("file", d / "gone")
    ROOT.gets(errno.ESTALE, read, fs.root, gone)


def test_what_was_removed_is_stale(d: Path) -> None:
    """generic/467, 756."""
    path = make("file", d / "x")
    raw = handle(path)
    with opened(path) as descriptor:
        path.unlink()
        os.write(descriptor, b"still here")
        assert read(d, raw) == b"still here"
        assert handle(Path(f"/proc/self/fd/{descriptor}"), AT_SYMLINK_FOLLOW) == raw
    ROOT.gets(errno.ESTALE, read, d, raw)
    make("file", path)
    ROOT.gets(errno.ESTALE, read, d, raw)
    (d / "dir").mkdir()
    raw = handle(d / "dir")
    (d / "dir").rmdir()
    ROOT.gets(errno.ESTALE, open_handle, d, raw)


def test_made_up_handles(d: Path) -> None:
    raw = handle(make("file", d / "x"))
    size, kind = struct.unpack_from("Ii", raw)
    ROOT.gets(errno.ESTALE, read, d, struct.pack("Ii", size, kind) + b"\xfe" * size)
    ROOT.gets(errno.ESTALE, read, d, struct.pack("Ii", size, 0x77) + raw[8:])
    ROOT.gets(errno.EINVAL, read, d, struct.pack("Ii", 0, kind))
    ROOT.gets(errno.EINVAL, read, d, struct.pack("Ii", ROOM + 1, kind) + bytes(ROOM))


def test_errors(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    ROOT.gets(errno.EOVERFLOW, handle, path, 0, 0)
    ROOT.gets(errno.EINVAL, handle, path, 0x8000)
    ROOT.gets(errno.ENOENT, handle, d / "absent")
    raw = handle(path)
    ALICE.gets(errno.EPERM, open_handle, d, raw)
    with opened(path, os.O_RDONLY) as descriptor:
        assert handle(Path(f"/proc/self/fd/{descriptor}"), AT_SYMLINK_FOLLOW) == raw
    assert AT_EMPTY_PATH


def test_many(d: Path, fs: Place) -> None:
    paths = [d / str(number % 10) / str(number) for number in range(300)]
    for number in range(10):
        (d / str(number)).mkdir()
    for path in paths:
        path.write_text(path.name)
    raws = [handle(path) for path in paths]
    assert len(set(raws)) == len(raws)
    shutil.rmtree(d / "3")
    fs.remount()
    for path, raw in zip(paths, raws, strict=True):
        if path.parent.name == "3":
            ROOT.gets(errno.ESTALE, read, fs.root, raw)
        else:
            assert read(fs.root, raw) == path.name.encode()
