"""Extended attributes: namespaces, rights, limits, flags and times (generic/020, 062, 097, 103, 300, 337, 377, 454, 486,
523, 533, 556, 618, 728; LTP setxattr, getxattr, listxattr, removexattr and their l- and f- kin).

Access lists are in test_acl.py, capabilities in test_killpriv.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import ALICE, BOB, LIBC, ROOT, changes, check, make, opened, times

SPECIAL = ("fifo", "char", "block", "socket")


def size_of(path: Path, name: str, room: int) -> int:
    buffer = ctypes.create_string_buffer(room) if room else None
    return check(LIBC.getxattr(os.fsencode(path), name.encode(), buffer, room))


def list_size(path: Path, room: int) -> int:
    buffer = ctypes.create_string_buffer(room) if room else None
    return check(LIBC.listxattr(os.fsencode(path), buffer, room))


def set_link(path: Path, name: str, value: bytes) -> None:
    os.setxattr(path, name, value, follow_symlinks=False)


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("name", ["user.x", "trusted.x", "security.x"])
def test_values_come_back(d: Path, kind: str, name: str) -> None:
    path = make(kind, d / "x", 0o644)
    for value in (b"value", b"", b"\0\1\2" * 100, bytes(range(256)), b"v" * 2000):
        with changes((path, "c"), (d, "")):
            os.setxattr(path, name, value)
        with changes((path, "")):
            assert os.getxattr(path, name) == value
            assert os.listxattr(path) == [name]
    with changes((path, "c"), (d, "")):
        os.removexattr(path, name)
    with changes((path, "")):
        ROOT.gets(errno.ENODATA, os.getxattr, path, name)
        ROOT.gets(errno.ENODATA, os.removexattr, path, name)
        assert os.listxattr(path) == []


@pytest.mark.parametrize("kind", SPECIAL)
def test_user_attributes_are_for_files_and_directories(d: Path, kind: str) -> None:
    """generic/062: others have modes that say something else."""
    path = make(kind, d / "x", 0o666)
    ROOT.gets(errno.EPERM, os.setxattr, path, "user.x", b"y")
    ROOT.gets((errno.ENODATA, errno.EPERM), os.getxattr, path, "user.x")
    ROOT.gets((errno.ENODATA, errno.EPERM), os.removexattr, path, "user.x")
    os.setxattr(path, "trusted.x", b"y")
    os.setxattr(path, "security.x", b"y")
    assert sorted(os.listxattr(path)) == ["security.x", "trusted.x"]


def test_links_have_their_own(d: Path) -> None:
    make("file", d / "x", 0o644)
    (d / "link").symlink_to("x")
    ROOT.gets(errno.EPERM, set_link, d / "link", "user.x", b"y")
    set_link(d / "link", "trusted.x", b"link")
    os.setxattr(d / "link", "trusted.x", b"file")
    os.setxattr(d / "link", "user.x", b"file")
    assert os.listxattr(d / "link", follow_symlinks=False) == ["trusted.x"]
    assert os.getxattr(d / "link", "trusted.x", follow_symlinks=False) == b"link"
    assert os.getxattr(d / "x", "trusted.x") == b"file"
    os.removexattr(d / "link", "trusted.x", follow_symlinks=False)
    assert os.getxattr(d / "link", "trusted.x") == b"file"
    (d / "dangling").symlink_to("nowhere")
    ROOT.gets(errno.ENOENT, os.setxattr, d / "dangling", "trusted.x", b"y")
    set_link(d / "dangling", "trusted.x", b"y")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("nonsense.x", errno.EOPNOTSUPP),
        ("x", errno.EOPNOTSUPP),
        ("system.x", errno.EOPNOTSUPP),
        ("user.", errno.EINVAL),
        ("trusted.", errno.EINVAL),
        ("user." + "n" * 251, errno.ERANGE),
        ("n" * 300, errno.ERANGE),
    ],
)
def test_names_that_are_refused(d: Path, name: str, number: int) -> None:
    path = make("file", d / "x", 0o644)
    with changes((path, "")):
        ROOT.gets(number, os.setxattr, path, name, b"y")
    assert os.listxattr(path) == []


def test_the_longest_name(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    for prefix in ("user.", "trusted."):
        os.setxattr(path, prefix + "n" * (255 - len(prefix)), b"y")
    assert sorted(map(len, os.listxattr(path))) == [255, 255]


def test_any_bytes_in_names(d: Path) -> None:
    """generic/454: nothing is normalised."""
    path = make("file", d / "x", 0o644)
    names = [b"user." + tail for tail in (b"\xff\xfe", b"\xc3\xa9", b"e\xcc\x81", b"a b", b"\n", b"\\", b"/", b"..")]
    for name in names:
        os.setxattr(path, name, name)
    assert sorted(map(os.fsencode, os.listxattr(path))) == sorted(names)
    assert [os.getxattr(path, name) for name in names] == names


def test_flags(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    with changes((path, "")):
        ROOT.gets(errno.ENODATA, os.setxattr, path, "user.x", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    with changes((path, "")):
        ROOT.gets(errno.EEXIST, os.setxattr, path, "user.x", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.x") == b"3"
    ROOT.gets(errno.EINVAL, os.setxattr, path, "user.x", b"4", 4)
    ROOT.gets(errno.EEXIST, os.setxattr, path, "user.x", b"4", os.XATTR_CREATE | os.XATTR_REPLACE)


def test_room(d: Path) -> None:
    """Size 0 asks, too little is ERANGE, and there are limits."""
    path = make("file", d / "x", 0o644)
    assert list_size(path, 0) == list_size(path, 10) == 0
    os.setxattr(path, "user.x", b"v" * 100)
    assert size_of(path, "user.x", 0) == size_of(path, "user.x", 100) == size_of(path, "user.x", 5000) == 100
    ROOT.gets(errno.ERANGE, size_of, path, "user.x", 99)
    assert list_size(path, 0) == list_size(path, 7) == list_size(path, 65536) == 7
    ROOT.gets(errno.ERANGE, list_size, path, 6)
    with changes((path, "")):
        ROOT.gets(errno.E2BIG, os.setxattr, path, "user.x", b"v" * 65537)
    os.setxattr(path, "user.empty", b"")
    assert size_of(path, "user.empty", 0) == 0


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_the_largest_value(d: Path, fs: Place, kind: str) -> None:
    """generic/486, 523-like. ext4 has room for a block, we for what Linux allows."""
    path = make(kind, d / "x", 0o755)
    value = os.urandom(65536)
    if not fs.is_fspf:
        ROOT.gets(errno.ENOSPC, os.setxattr, path, "user.x", value)
        return
    os.setxattr(path, "user.x", value)
    os.setxattr(path, "user.y", value[::-1])
    assert (os.getxattr(path, "user.x"), os.getxattr(path, "user.y")) == (value, value[::-1])
    fs.remount()
    assert (os.getxattr(path, "user.x"), os.getxattr(path, "user.y")) == (value, value[::-1])


def test_many(d: Path, fs: Place) -> None:
    """generic/103, 377: as many as their names fit into what listxattr(2) can tell, then ENOSPC."""
    path = make("file", d / "x", 0o644)
    number = 0
    try:
        while number < 5000:
            os.setxattr(path, f"user.{number:04}" + "n" * 100, b"v%d" % number)
            number += 1
    except OSError as exc:
        assert exc.errno == errno.ENOSPC  # noqa: PT017  # how many fit is the file system's choice
    assert number == (65536 // 110 if fs.is_fspf else number) > 20
    assert sorted(os.listxattr(path)) == [f"user.{each:04}" + "n" * 100 for each in range(number)]
    for each in range(0, number, 2):
        os.removexattr(path, f"user.{each:04}" + "n" * 100)
    assert len(os.listxattr(path)) == number // 2
    for each in range(1, number, 2):
        assert os.getxattr(path, f"user.{each:04}" + "n" * 100) == b"v%d" % each


# -- rights


def test_user_attributes_follow_the_mode(d: Path) -> None:
    path = make("file", d / "x", 0o640, ALICE)
    os.setxattr(path, "user.x", b"y")
    for refused in (
        lambda: os.setxattr(path, "user.x", b"z"),
        lambda: os.getxattr(path, "user.x"),
        lambda: os.removexattr(path, "user.x"),
    ):
        BOB.gets(errno.EACCES, refused)
    assert BOB(os.listxattr, path) == ["user.x"]  # the names are no secret
    path.chmod(0o444)
    assert BOB(os.getxattr, path, "user.x") == b"y"
    BOB.gets(errno.EACCES, os.setxattr, path, "user.x", b"z")
    ALICE.gets(errno.EACCES, os.setxattr, path, "user.x", b"z")
    path.chmod(0o222)
    BOB(os.setxattr, path, "user.x", b"z")
    BOB.gets(errno.EACCES, os.getxattr, path, "user.x")


def test_sticky_directories_are_their_owners(d: Path) -> None:
    path = make("dir", d / "x", 0o1777, ALICE)
    BOB.gets(errno.EPERM, os.setxattr, path, "user.x", b"y")
    ALICE(os.setxattr, path, "user.x", b"y")
    path.chmod(0o777)
    BOB(os.setxattr, path, "user.x", b"z")


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_trusted_attributes_are_roots(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o777, ALICE)
    os.setxattr(path, "trusted.x", b"y")
    ALICE.gets(errno.EPERM, os.setxattr, path, "trusted.x", b"z")
    ALICE.gets((errno.EPERM, errno.ENODATA), os.removexattr, path, "trusted.x")
    ALICE.gets(errno.ENODATA, os.getxattr, path, "trusted.x")
    assert os.listxattr(path) == ["trusted.x"]
    assert ALICE(os.listxattr, path) == []
    assert ALICE(list_size, path, 0) == 0


def test_security_attributes_are_set_by_root(d: Path) -> None:
    path = make("file", d / "x", 0o777, ALICE)
    ALICE.gets(errno.EPERM, os.setxattr, path, "security.x", b"y")
    os.setxattr(path, "security.x", b"y")
    assert ALICE(os.getxattr, path, "security.x") == b"y"
    ALICE.gets(errno.EPERM, os.removexattr, path, "security.x")


# -- with names and descriptors


def test_they_belong_to_the_inode(d: Path, fs: Place) -> None:
    """generic/300-like: names come and go, the next file of the same name has none."""
    path = make("file", d / "x", 0o644)
    os.setxattr(path, "user.x", b"y")
    os.link(path, d / "again")
    os.rename(path, d / "moved")
    assert os.getxattr(d / "again", "user.x") == os.getxattr(d / "moved", "user.x") == b"y"
    make("file", path)
    assert os.listxattr(path) == []
    os.rename(d / "moved", path)
    assert os.listxattr(path) == ["user.x"]
    (d / "again").unlink()
    fs.remount()
    assert os.getxattr(path, "user.x") == b"y"
    path.unlink()
    make("file", path)
    assert os.listxattr(path) == []


def test_by_descriptor(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    with opened(path, os.O_RDONLY) as descriptor:  # reading is enough
        os.setxattr(descriptor, "user.x", b"y")
        path.unlink()
        assert os.getxattr(descriptor, "user.x") == b"y"
        os.setxattr(descriptor, "trusted.more", b"z" * 1000)
        assert sorted(os.listxattr(descriptor)) == ["trusted.more", "user.x"]
        os.removexattr(descriptor, "user.x")
        assert os.listxattr(descriptor) == ["trusted.more"]
    with opened(d, os.O_PATH) as descriptor:
        ROOT.gets(errno.EBADF, os.setxattr, descriptor, "user.x", b"y")
        ROOT.gets(errno.EBADF, os.listxattr, descriptor)


def test_times_of_data_stay(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 5000)
    before = times(path)
    os.setxattr(path, "user.x", b"y")
    os.removexattr(path, "user.x")
    assert times(path)[:2] == before[:2]
    assert path.read_bytes() == b"x" * 5000


def run(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)


def test_programs_carry_them(d: Path) -> None:
    path = make("dir", d / "x", 0o755)
    make("file", path / "y", 0o644)
    for each in (path, path / "y"):
        os.setxattr(each, "user.text", b"some text")
        os.setxattr(each, "user.bytes", bytes(range(200)))
    run("cp", "-a", path, d / "copy")
    run("rsync", "-aX", f"{path}/", d / "synced")
    (d / "tar").mkdir()
    run("tar", "--xattrs", "-cf", d / "t", "-C", path, ".")
    run("tar", "--xattrs", "-xpf", d / "t", "-C", d / "tar")
    for name in ("copy", "synced", "tar"):
        for each in (d / name, d / name / "y"):
            assert os.getxattr(each, "user.text") == b"some text"
            assert os.getxattr(each, "user.bytes") == bytes(range(200))
