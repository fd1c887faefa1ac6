"""A tree that was encrypted is in the volume as it is on the host, and an update makes it so again."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fspf.cas import open_cas
from fspf.core.errors import UsageError
from fspf.core.types import Protection
from fspf.volume import reader
from fspf.volume import source as source_module
from fspf.volume.exporter import decrypt_tree
from fspf.volume.importer import encrypt_tree
from fspf.volume.transfer import Progress
from fspf.volume.volume import Volume
from tests.support import torture
from tests.support.compare import assert_same

SMALL: dict[str, Any] = {"segment_slots": 64, "commit_interval": None}


@pytest.fixture
def volume(scratch: Path) -> Iterator[Volume]:
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, **SMALL) as made:
        yield made
    cas.close()


@pytest.fixture
def source(scratch: Path) -> Path:
    path = scratch / "source"
    path.mkdir()
    return path


def assert_equal(source: Path, volume: Volume, scratch: Path) -> None:
    out = scratch / "out"
    assert decrypt_tree(volume, out).exit_code == 0
    assert_same(source, out)
    shutil.rmtree(out)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_torture_tree_comes_back(volume: Volume, scratch: Path, threads: int) -> None:
    torture.make(scratch / "tree", all_modes=threads == 1)
    for late in (scratch / "tree" / "times").glob("2400*"):  # see test_times_beyond
        os.utime(late, ns=(0, 2**63 - 1), follow_symlinks=False)
    wait_out_the_clock()
    summary = encrypt_tree(scratch / "tree", volume, threads=threads)
    assert summary.errors == []
    assert summary.warnings == []
    assert_equal(scratch / "tree", volume, scratch)
    again = encrypt_tree(scratch / "tree", volume, update=True, threads=threads)
    assert again.exit_code == 0
    assert (again.updated, again.removed) == (0, 0)
    assert_equal(scratch / "tree", volume, scratch)


def test_times_beyond_2262_become_the_last(source: Path, volume: Volume) -> None:
    late = 13_569_465_600 * 10**9
    for path in (source / "f", source / "d"):
        path.touch() if path.name == "f" else path.mkdir()
        os.utime(path, ns=(late, late))
    summary = encrypt_tree(source, volume)
    assert sorted(each.path for each in summary.warnings) == [b"d", b"f"]
    assert volume.stat("/f").st_mtime_ns == volume.stat("/d").st_mtime_ns == 2**63 - 1


def test_it_is_committed(source: Path, scratch: Path) -> None:
    (source / "f").write_bytes(b"1")
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    made = Volume.create(scratch / "volume", cas, **SMALL)
    encrypt_tree(source, made)
    made.abandon()  # as if killed
    with Volume.open(scratch / "volume", cas, read_only=True) as found:
        assert found.read_bytes("/f") == b"1"
        assert found.stat("/").st_mtime_ns == source.stat().st_mtime_ns
    cas.close()


def test_commits_on_the_way(source: Path, volume: Volume, scratch: Path) -> None:
    for number in range(300):
        (source / str(number)).write_bytes(os.urandom(1000))
    before = volume.status()["generation"]
    encrypt_tree(source, volume, commit_entries=50)
    assert volume.status()["generation"] >= before + 3
    assert_equal(source, volume, scratch)


def test_progress_is_told(source: Path, volume: Volume) -> None:
    (source / "f").write_bytes(b"x" * 3_000_000)
    told: list[Progress] = []
    encrypt_tree(source, volume, progress=told.append)
    assert told[-1].entries == 2
    assert told[-1].bytes == 3_000_000


def test_sockets_are_left_out_with_a_warning(source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        summary = encrypt_tree(source, volume)
    assert [each.path for each in summary.warnings] == [b"socket"]
    assert summary.exit_code == 0
    assert volume.listdir("/") == []


def deny(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """Make one name unreadable, also for root."""
    real = reader.open_for_reading

    def refuse(called: bytes, directory_fd: int) -> int:
        if called == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(called, directory_fd)

    monkeypatch.setattr(reader, "open_for_reading", refuse)
    monkeypatch.setattr(source_module, "open_for_reading", refuse)


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_an_unreadable_file_is_an_error_and_all_else_goes_on(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    for name in ("a", "secret", "z"):
        (source / name).write_bytes(b"x" * size)
    deny(monkeypatch, b"secret")
    summary = encrypt_tree(source, volume)
    assert [str(each) for each in summary.errors] == ["'secret': Permission denied"]
    assert summary.exit_code == 1
    assert sorted(volume.listdir("/")) == ["a", "z"]


@pytest.mark.parametrize("update", [False, True])
def test_a_bad_sector_of_the_source_costs_one_file(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, *, update: bool
) -> None:
    (source / "a").write_bytes(b"x" * 3_000_000)
    (source / "z").write_bytes(b"x" * 4_000_000)
    if update:
        encrypt_tree(source, volume)
        for name in "az":
            (source / name).write_bytes(b"y" * (source / name).stat().st_size)
    real = os.preadv

    def bad(fd: int, buffers: Any, offset: int) -> int:
        if offset >= 2_000_000 and os.fstat(fd).st_size == 3_000_000:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", bad)
    summary = encrypt_tree(source, volume, update=update)
    assert [str(each) for each in summary.errors] == ["'a': Input/output error"]
    assert volume.listdir("/") == ["z"]  # half a file is none


def test_an_unreadable_directory_is_an_error(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    (source / "d").mkdir()
    (source / "d" / "f").touch()
    encrypt_tree(source, volume)
    real = os.scandir
    closed = (source / "d").stat().st_ino

    def refuse(fd: Any) -> Any:
        if isinstance(fd, int) and os.fstat(fd).st_ino == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(fd)

    monkeypatch.setattr(os, "scandir", refuse)
    summary = encrypt_tree(source, volume, update=True)
    assert [each.path for each in summary.errors] == [b"d"]
    assert volume.listdir("/d") == ["f"]  # not seen is not gone


def change_while_read(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> None:
    real = reader.read_whole
    left = iter(range(times))

    def change(fd: int, size: int) -> bytes:
        data = real(fd, size)
        if os.path.samestat(os.fstat(fd), path.stat()) and next(left, None) is not None:
            path.write_bytes(path.read_bytes() + b"+")
        return data

    monkeypatch.setattr(reader, "read_whole", change)


@pytest.mark.parametrize(("times", "exit_code", "content"), [(1, 0, b"x+"), (9, 1, b"x+")])
def test_a_file_that_changes_is_read_again_once(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, times: int, exit_code: int, content: bytes
) -> None:
    (source / "f").write_bytes(b"x")
    change_while_read(monkeypatch, source / "f", times)
    summary = encrypt_tree(source, volume)
    assert summary.exit_code == exit_code
    assert volume.read_bytes("/f") == content


@pytest.mark.parametrize(("times", "exit_code"), [(1, 0), (9, 1)])
def test_a_large_file_that_changes_is_read_again_once(
    source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, scratch: Path, times: int, exit_code: int
) -> None:
    path = source / "f"
    path.write_bytes(os.urandom(2_500_000))
    real = os.preadv
    left = iter(range(times))

    def change(fd: int, buffers: Any, offset: int) -> int:
        if offset > 2_000_000 and next(left, None) is not None:
            path.write_bytes(os.urandom(2_400_000))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", change)
    summary = encrypt_tree(source, volume)
    assert summary.exit_code == exit_code
    if times == 1:
        assert_equal(source, volume, scratch)


def test_a_file_that_vanishes_is_an_error(source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "f").write_bytes(b"x")
    (source / "g").write_bytes(b"x")
    real = reader.open_for_reading

    def vanish(name: bytes, directory_fd: int) -> int:
        if name == b"f":
            (source / "f").unlink()
        return real(name, directory_fd)

    monkeypatch.setattr(reader, "open_for_reading", vanish)
    summary = encrypt_tree(source, volume)
    assert [str(each) for each in summary.errors] == ["'f': No such file or directory"]
    assert volume.listdir("/") == ["g"]


def test_deeper_than_path_max(volume: Volume, scratch: Path, source: Path) -> None:
    fd = os.open(source, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    summary = encrypt_tree(source, volume)
    assert summary.exit_code == 0
    assert (summary.directories, summary.files) == (401, 1)
    assert decrypt_tree(volume, scratch / "out").entries == summary.entries
    for tree in (source, scratch / "out"):
        os.system(f"rm -rf {tree}")  # shutil.rmtree takes paths


# -- regions


def protections(volume: Volume) -> dict[str, Protection]:
    found = {}
    for here, directories, files in volume.walk("/"):
        for name in [".", *directories, *files]:
            path = os.path.normpath(os.path.join(here, name))
            found[path] = volume.getattr(volume.stat(path).st_ino).protection  # type: ignore[arg-type]
    return found


def test_authenticated_places(source: Path, volume: Volume) -> None:
    for name in ("plain", "public", "public/deeper"):
        (source / name).mkdir()
        (source / name / "f").write_bytes(b"x" * 5000)
    (source / "one").write_bytes(b"x" * 5000)
    encrypt_tree(source, volume, authenticated=["public", source / "one"])
    yes = {path for path, protection in protections(volume).items() if protection is Protection.AUTHENTICATED}
    assert yes == {"/public", "/public/f", "/public/deeper", "/public/deeper/f", "/one"}
    encrypt_tree(source, volume, authenticated=["plain"], update=True)
    yes = {path for path, protection in protections(volume).items() if protection is Protection.AUTHENTICATED}
    assert yes == {"/plain", "/plain/f"}


def test_the_whole_volume_authenticated(source: Path, volume: Volume) -> None:
    (source / "f").write_bytes(b"x" * 5000)
    encrypt_tree(source, volume, authenticated=["."])
    assert set(protections(volume).values()) == {Protection.AUTHENTICATED}


def test_a_hard_link_into_a_region_is_copied(source: Path, volume: Volume) -> None:
    (source / "public").mkdir()
    (source / "a").write_bytes(b"x")
    os.link(source / "a", source / "public" / "a")
    summary = encrypt_tree(source, volume, authenticated=["public"])
    assert summary.exit_code == 0
    assert len(summary.warnings) == 1
    assert volume.read_bytes("/public/a") == volume.read_bytes("/a") == b"x"


@pytest.mark.parametrize("given_path", ["nothing", "../source", "/etc"])
def test_an_authenticated_place_must_be_in_the_source(source: Path, volume: Volume, given_path: str) -> None:
    with pytest.raises(UsageError):
        encrypt_tree(source, volume, authenticated=[given_path])


# -- refused before anything is done


def test_places_that_are_refused(source: Path, volume: Volume, scratch: Path) -> None:
    (source / "f").touch()
    with pytest.raises(UsageError, match="inside each other"):
        encrypt_tree(scratch, volume)
    with pytest.raises(UsageError, match="inside each other"):
        encrypt_tree(scratch / "volume" / "segments", volume)
    with pytest.raises(UsageError, match="no directory"):
        encrypt_tree(source / "f", volume)
    encrypt_tree(source, volume)
    with pytest.raises(UsageError, match="not empty"):
        encrypt_tree(source, volume)


def test_a_full_volume_ends_the_run_and_its_threads(source: Path, scratch: Path) -> None:
    for number in range(40):
        (source / str(number)).write_bytes(os.urandom(200_000))
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, max_bytes=5 << 20, **SMALL) as small:
        before = threading.active_count()
        with pytest.raises(OSError, match=r".") as caught:
            encrypt_tree(source, small)
        assert caught.value.errno == errno.ENOSPC
        assert threading.active_count() == before
    cas.close()


# -- update


def tree(source: Path) -> None:
    for name in ("d", "d/e", "gone", "swap"):
        (source / name).mkdir()
    for name in ("f", "d/f", "d/e/f", "gone/f", "swap/f", "big"):
        (source / name).write_bytes(name.encode() * (500_000 if name == "big" else 3))
    os.link(source / "f", source / "d" / "link")
    os.link(source / "f", source / "d" / "link2")
    (source / "l").symlink_to("f")
    os.mkfifo(source / "p")


def to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"was a directory")


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "new").write_bytes(b"1")


def relink(path: Path) -> None:
    (path / "l").unlink()
    (path / "l").symlink_to("elsewhere")


def unlink_one(path: Path) -> None:
    content = (path / "d/link").read_bytes()
    (path / "d/link").unlink()
    (path / "d/link").write_bytes(content)


def join(path: Path) -> None:
    (path / "d/f").unlink()
    os.link(path / "f", path / "d/f")


def same_size_and_time(path: Path) -> None:
    before = (path / "big").stat()
    with open(path / "big", "r+b") as file:
        file.write(b"B")
    os.utime(path / "big", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "content": lambda path: (path / "d/e/f").write_bytes(b"more than there was"),
    "content of several names": lambda path: (path / "d/link").write_bytes(b"!"),
    "content of equal size and mtime": same_size_and_time,
    "new": lambda path: (path / "d/new").write_bytes(b"1"),
    "gone": lambda path: shutil.rmtree(path / "gone"),
    "gone name of several": lambda path: (path / "f").unlink(),
    "name of its own": unlink_one,
    "one name more": join,
    "file to directory": lambda path: to_directory(path / "f"),
    "directory to file": lambda path: to_file(path / "swap"),
    "target": relink,
    "mode": lambda path: (path / "d").chmod(0o1700),
    "owner": lambda path: os.chown(path / "d/f", 5, 6),
    "time": lambda path: os.utime(path / "p", ns=(5, 6)),
    "time of a directory": lambda path: os.utime(path / "d/e", ns=(5, 6)),
    "time of the top": lambda path: os.utime(path, ns=(5, 6)),
    "xattr": lambda path: os.setxattr(path / "f", "user.a", b"1"),
    "to a hole": lambda path: os.truncate(path / "f", 1 << 30),
    "renamed": lambda path: (path / "d").rename(path / "dd"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_update_makes_the_volume_equal(source: Path, volume: Volume, scratch: Path, change: str) -> None:
    tree(source)
    os.setxattr(source / "d", "user.old", b"1")
    encrypt_tree(source, volume)
    os.removexattr(source / "d", "user.old")
    CHANGES[change](source)
    summary = encrypt_tree(source, volume, update=True)
    assert summary.errors == []
    assert_equal(source, volume, scratch)


def test_an_update_writes_only_what_differs(source: Path, volume: Volume) -> None:
    tree(source)
    for path in [*source.rglob("*")]:
        os.utime(path, ns=(1, 10**18), follow_symlinks=False)
    wait_out_the_clock()
    encrypt_tree(source, volume)
    inode = volume.stat("/big").st_ino
    (source / "d/f").write_bytes(b"other")
    shutil.rmtree(source / "gone")
    summary = encrypt_tree(source, volume, update=True)
    assert (summary.data_bytes, summary.updated, summary.removed) == (5, 1, 1)
    assert volume.stat("/big").st_ino == inode


def wait_out_the_clock() -> None:
    """Wait until a file is older than the slack that an update allows the kernel's clock."""
    threading.Event().wait(0.03)


def test_checksums_see_what_the_times_hide(source: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "f").write_bytes(b"old")
    os.utime(source / "f", ns=(1, 1))
    encrypt_tree(source, volume)
    volume.setattr(volume.stat("/f").st_ino, ctime_ns=2**62)  # type: ignore[arg-type]  # a clock that was wrong
    (source / "f").write_bytes(b"new")
    os.utime(source / "f", ns=(1, 1))
    encrypt_tree(source, volume, update=True)
    assert volume.read_bytes("/f") == b"old"
    encrypt_tree(source, volume, update=True, checksum=True)
    assert volume.read_bytes("/f") == b"new"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(min_value=0))
def test_any_tree_becomes_any_other(source: Path, volume: Volume, scratch: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(30)):
        stir(source, chance)
    summary = encrypt_tree(source, volume, update=True, threads=chance.choice([1, 3]))
    assert summary.errors == []
    assert_equal(source, volume, scratch)


def stir(source: Path, chance: random.Random) -> None:
    """Do one thing to a tree of few names."""
    every = [source, *sorted(source.rglob("*"))]
    directories = [path for path in every if path.is_dir() and not path.is_symlink()]
    files = [path for path in every if path.is_file() and not path.is_symlink()]
    new = chance.choice(directories) / chance.choice("abcd")
    action = chance.choice(["file", "file", "directory", "link", "symlink", "remove", "move", "mode", "write", "fifo"])
    try:
        if action == "file":
            if new.exists() and not new.is_file():
                return
            new.write_bytes(chance.randbytes(chance.choice([0, 10, 5000])))
        elif action == "directory":
            new.mkdir()
        elif action == "link" and files:
            os.link(chance.choice(files), new)
        elif action == "symlink":
            new.symlink_to(chance.choice(["a", "b"]))
        elif action == "fifo":
            os.mkfifo(new)
        elif action == "remove" and len(every) > 1:
            victim = chance.choice(every[1:])
            shutil.rmtree(victim) if victim in directories else victim.unlink()
        elif action == "move" and len(every) > 1:
            chance.choice(every[1:]).rename(new)
        elif action == "mode":
            chance.choice(directories + files).chmod(chance.choice([0o700, 0o755, 0o600]) | stat.S_IXUSR)
        elif action == "write" and files:
            with open(chance.choice(files), "r+b") as file:
                file.write(b"!")
    except OSError:
        return
