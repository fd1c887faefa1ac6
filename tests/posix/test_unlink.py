"""unlink(2), rmdir(2), and what lives on without a name (pjdfstest unlink/ rmdir/; generic/035, 184, 245, 341)."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.posix import ALICE, KINDS, ROOT, changes, make, opened


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dir"])
def test_unlink(d: Path, kind: str) -> None:
    make(kind, d / "x")
    with opened(d / "x", os.O_PATH | os.O_NOFOLLOW) as gone:
        with changes((d, "mc"), (gone, "c")):
            (d / "x").unlink()
        assert os.fstat(gone).st_nlink == 0
    ROOT.gets(errno.ENOENT, os.lstat, d / "x")
    ROOT.gets(errno.ENOENT, os.unlink, d / "x")


def test_unlink_refuses_directories(d: Path) -> None:
    (d / "x").mkdir()
    with changes((d, ""), (d / "x", "")):
        ROOT.gets((errno.EISDIR, errno.EPERM), os.unlink, d / "x")
        ROOT.gets((errno.ENOTDIR), os.unlink, f"{make('file', d.parent / (d.name + 'f'))}/")
    (d.parent / (d.name + "f")).unlink()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dir"])
def test_rmdir_refuses_the_rest(d: Path, kind: str) -> None:
    make(kind, d / "x")
    with changes((d, ""), (d / "x", "")):
        ROOT.gets(errno.ENOTDIR, os.rmdir, d / "x")


def test_rmdir(d: Path) -> None:
    (d / "x").mkdir()
    with opened(d / "x", os.O_RDONLY) as gone:
        with changes((d, "mc"), (gone, "c")):
            (d / "x").rmdir()
        assert os.fstat(gone).st_nlink == 0
        assert [name for name in os.listdir(gone) if name not in {".", ".."}] == []
        ROOT.gets(errno.ENOENT, os.open, f"/proc/self/fd/{gone}/new", os.O_CREAT | os.O_RDWR)
    assert d.stat().st_nlink == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_is_not_empty(d: Path, kind: str) -> None:
    (d / "x").mkdir()
    make(kind, d / "x" / "y")
    with changes((d, ""), (d / "x", "")):
        ROOT.gets((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, d / "x")
    ROOT.gets(errno.EINVAL, os.rmdir, f"{d}/x/.")
    ROOT.gets((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, f"{d}/x/y/.." if kind == "dir" else d / "x")


def test_a_directory_that_was_emptied(d: Path) -> None:
    (d / "x").mkdir()
    for number in range(300):
        make("file", d / "x" / str(number))
    for number in range(300):
        (d / "x" / str(number)).unlink()
    (d / "x").rmdir()


def test_failed_removal_changes_no_time(d: Path) -> None:
    make("file", d / "x", 0o666)
    make("dir", d / "y", 0o777)
    with changes((d, ""), (d / "x", ""), (d / "y", "")):
        ALICE.gets(errno.EACCES, os.unlink, d / "x")
        ALICE.gets(errno.EACCES, os.rmdir, d / "y")


# -- without a name


def test_everything_works_without_a_name(d: Path) -> None:
    """generic/184-like; pjdfstest unlink/14."""
    (d / "x").write_bytes(b"x" * 10_000)
    os.setxattr(d / "x", "user.kept", b"value")
    with opened(d / "x") as descriptor:
        (d / "x").unlink()
        info = os.fstat(descriptor)
        assert (info.st_nlink, info.st_size) == (0, 10_000)
        assert os.pread(descriptor, 20_000, 0) == b"x" * 10_000
        assert os.pwrite(descriptor, b"new", 20_000) == 3
        assert os.fstat(descriptor).st_size == 20_003
        os.ftruncate(descriptor, 5)
        os.fsync(descriptor)
        os.ftruncate(descriptor, 9)
        assert os.pread(descriptor, 100, 0) == b"xxxxx\0\0\0\0"
        os.fchmod(descriptor, 0o400)
        os.fchown(descriptor, 1, 2)
        os.utime(descriptor, ns=(5, 6))
        os.setxattr(descriptor, "user.more", b"m")
        assert sorted(os.listxattr(descriptor)) == ["user.kept", "user.more"]
        info = os.fstat(descriptor)
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_nlink) == (0o400, 1, 2, 6, 0)
        with opened(f"/proc/self/fd/{descriptor}", os.O_RDWR) as second:
            assert os.pread(second, 100, 0) == b"xxxxx\0\0\0\0"
        with mmap.mmap(descriptor, 9) as mapped:
            mapped[:3] = b"MAP"
        assert os.pread(descriptor, 5, 0) == b"MAPxx"
        assert (d / "x").exists() is False
        make("file", d / "x")
        assert (d / "x").stat().st_ino != info.st_ino


def test_a_mapping_outlives_name_and_descriptor(d: Path) -> None:
    (d / "x").write_bytes(b"x" * 8192)
    with opened(d / "x") as descriptor:
        mapped = mmap.mmap(descriptor, 8192)
    (d / "x").unlink()
    assert mapped[:] == b"x" * 8192
    mapped[5000:5003] = b"new"
    mapped.flush()
    assert mapped[5000:5003] == b"new"
    mapped.close()


def test_a_running_program_outlives_its_name(d: Path) -> None:
    program = d / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "100"]) as process:
        try:
            ROOT.gets(errno.ETXTBSY, os.open, program, os.O_WRONLY)
            ROOT.gets(errno.ETXTBSY, os.truncate, program, 0)
            program.unlink()
            assert process.poll() is None
            assert os.readlink(f"/proc/{process.pid}/exe").endswith("(deleted)")
        finally:
            process.kill()


def test_many_files_without_names(d: Path) -> None:
    """generic/488-like: nothing is lost or mixed up among many."""
    held = []
    for number in range(200):
        path = d / str(number)
        held.append(os.open(path, os.O_CREAT | os.O_RDWR))
        os.write(held[-1], b"%d" % number)
        path.unlink()
    for number, descriptor in enumerate(held):
        assert os.pread(descriptor, 10, 0) == b"%d" % number
        os.close(descriptor)
    assert os.listdir(d) == []


def test_the_working_directory_may_be_removed(d: Path) -> None:
    (d / "x").mkdir()
    before = os.getcwd()
    os.chdir(d / "x")
    try:
        (d / "x").rmdir()
        ROOT.gets(errno.ENOENT, os.getcwd)
        ROOT.gets(errno.ENOENT, os.mkdir, "new")
        ROOT.gets(errno.ENOENT, os.open, "new", os.O_CREAT)
        assert os.stat(".").st_nlink == 0
    finally:
        os.chdir(before)


def test_the_root_of_the_mount(d: Path) -> None:
    ROOT.gets((errno.EINVAL, errno.EBUSY), os.rmdir, f"{d}/.")
    ROOT.gets((errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY), os.rmdir, f"{d}/..")
