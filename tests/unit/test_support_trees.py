"""The torture tree holds what it promises, and the comparer finds every kind of difference.

A comparer that overlooks something would let a broken round trip pass.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import torture
from tests.support.compare import assert_same, compare, read_tree

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On the disk's file system: tmpfs knows fewer xattrs."""
    path = tmp_path_factory.mktemp("torture") / "tree"
    torture.make(path, all_modes=False)
    yield path
    shutil.rmtree(path)


def test_everything_odd_is_there(tree: Path) -> None:
    entries = read_tree(tree)
    kinds = {entry.kind for entry in entries.values()}
    assert {"file", "directory", "symlink", "fifo"} <= kinds
    assert max(len(path) for path in entries) == torture.DEEP_PATH
    assert any(len(path.rpartition(b"/")[2]) == 255 for path in entries)
    assert any(b"\n" in path for path in entries)
    assert any(len(entry.target) == 4095 for entry in entries.values())
    assert any(entry.size == 4 << 30 and entry.allocated < 1 << 20 for entry in entries.values())
    assert any(entry.mtime_ns < 0 for entry in entries.values())
    assert any(entry.mtime_ns > 2**32 * 10**9 and entry.mtime_ns % 10**9 for entry in entries.values())
    assert set(torture.SIZES) <= {entry.size for entry in entries.values()}
    assert max(entry.links for entry in entries.values() if entry.kind == "file") == 101
    with pytest.raises(UnicodeDecodeError):
        b"".join(entries).decode()


def test_everything_that_root_may_make_is_there(tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("no-root: device nodes, owners, trusted xattrs")
    left_out = torture.make(tmp_path / "tree")
    if any("xattr" in line for line in left_out):
        pytest.skip(f"filesystem: {left_out}")
    assert left_out == []
    entries = read_tree(tmp_path / "tree")
    assert {entry.mode for entry in entries.values() if entry.kind == "file"} == set(range(4096))
    assert {"character device", "block device"} <= {entry.kind for entry in entries.values()}
    names = {name.partition(b".")[0] for entry in entries.values() for name in entry.xattrs}
    assert names == {b"user", b"trusted", b"security"}
    assert {entry.owner for entry in entries.values()} >= {(1, 2), (2**32 - 2, 2**32 - 2)}


def test_same_seed_same_tree(tree: Path, tmp_path: Path) -> None:
    torture.make(tmp_path / "again", all_modes=False)
    assert_same(tree, tmp_path / "again")
    torture.make(tmp_path / "other", all_modes=False, seed=2)
    assert compare(tree, tmp_path / "other")


def test_faithful_copy_is_equal(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", tree, tmp_path / "copy"], check=True)
    assert_same(tree, tmp_path / "copy")


@pytest.fixture
def pair(scratch: Path) -> tuple[Path, Path]:
    for side in ("one", "two"):
        root = scratch / side
        root.mkdir()
        (root / "file").write_bytes(b"content" * 1000)
        (root / "other").write_bytes(b"other")
        (root / "linked").write_bytes(b"linked")
        os.link(root / "linked", root / "also")
        (root / "d").mkdir()
        (root / "d" / "inner").write_bytes(b"")
        os.symlink("target", root / "symlink")
        os.mkfifo(root / "fifo")
        fd = os.open(root / "sparse", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, b"x", 8 << 20)
        os.close(fd)
        for path in [*root.rglob("*"), root]:
            os.utime(path, ns=(5, 5), follow_symlinks=False)
    assert compare(scratch / "one", scratch / "two") == []
    return scratch / "one", scratch / "two"


def overwrite(path: Path, content: bytes) -> None:
    status = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def keep_times(path: Path, action: Callable[[Path], object]) -> None:
    action(path)
    for changed in (path, path.parent):
        if os.path.lexists(changed):
            os.utime(changed, ns=(5, 5), follow_symlinks=False)


def relink(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def replace_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("targeT")


def become_link(path: Path) -> None:
    path.unlink()
    os.link(path.parent / "file", path)


def become_file(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"")


DIFFERENCES: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "one byte": ("file", lambda p: p.write_bytes(b"content" * 999 + b"contenT"), ["file: other content"]),
    "size": ("file", lambda p: p.write_bytes(b"content"), ["file: size 7000 expected, 7 found"]),
    "zeros appended": ("file", lambda p: os.truncate(p, 7001), ["file: size 7000 expected, 7001 found"]),
    "mode": ("file", lambda p: p.chmod(0o4755), ["file: mode 0644 expected, 4755 found"]),
    "mode of a directory": ("d", lambda p: p.chmod(0o700), ["d: mode 0755 expected, 0700 found"]),
    "missing": ("other", lambda p: p.unlink(), ["other: file missing"]),
    "more": ("new", lambda p: p.write_bytes(b""), ["new: file not expected"]),
    "target": ("symlink", replace_symlink, ["symlink: target 'target' expected, 'targeT' found"]),
    "type": ("fifo", become_file, ["fifo: fifo expected, file found"]),
    "link lost": ("also", relink, ["hard links missing: also = linked"]),
    "link too many": (
        "other",
        become_link,
        ["other: size 5 expected, 7000 found", "hard links not expected: file = other"],
    ),
    "holes filled": ("sparse", lambda p: p.write_bytes(p.read_bytes()), ["sparse: 4096 bytes allocated, 8392704 found"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference_is_found(pair: tuple[Path, Path], name: str) -> None:
    where, action, expected = DIFFERENCES[name]
    keep_times(pair[1] / where, action)
    assert compare(*pair) == expected


def test_time_is_compared_to_the_nanosecond(pair: tuple[Path, Path]) -> None:
    os.utime(pair[1] / "symlink", ns=(5, 6), follow_symlinks=False)
    assert compare(*pair) == ["symlink: mtime 5 ns expected, 6 ns found (+1 ns)"]
    assert compare(*pair, ignore=["mtime"]) == []


def test_root_itself_is_compared(pair: tuple[Path, Path]) -> None:
    pair[1].chmod(0o700)
    assert compare(*pair) == [".: mode 0755 expected, 0700 found"]


def test_owner_device_and_xattr_are_compared(pair: tuple[Path, Path]) -> None:
    if not ROOT:
        pytest.skip("no-root: chown, mknod")
    os.chown(pair[1] / "file", 3, 4)
    for side, minor in zip(pair, (5, 6), strict=True):
        os.mknod(side / "null", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        os.setxattr(side / "d", "trusted.x", b"%d" % minor)
        for path in (side / "null", side, side / "d"):
            os.utime(path, ns=(5, 5))
    assert compare(*pair) == [
        "d: xattr trusted.x: b'5' expected, b'6' found",
        "file: owner 0:0 expected, 3:4 found",
        "null: device 0x105 expected, 0x106 found",
    ]
    assert compare(*pair, ignore=["owner", "xattrs"]) == ["null: device 0x105 expected, 0x106 found"]


def test_message_names_what_differs(pair: tuple[Path, Path]) -> None:
    (pair[1] / b"\xff\n".decode("utf-8", "surrogateescape")).write_bytes(b"")
    with pytest.raises(AssertionError, match=r"\\udcff\\n: file not expected"):
        assert_same(*pair)
