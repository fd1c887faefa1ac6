"""Reading directories that change meanwhile, positions in them, and large ones (generic/006, 007, 011, 013, 257, 285,
310, 471, 637, 676, 736, 748; LTP getdents, seekdir).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.posix.conftest import Place
from tests.support.mounted import make_site
from tests.support.posix import KINDS, LIBC, ROOT, make, mode_of, opened, sync

LIBC.fdopendir.restype = ctypes.c_void_p
LIBC.readdir.argtypes = LIBC.closedir.argtypes = LIBC.rewinddir.argtypes = LIBC.telldir.argtypes = [ctypes.c_void_p]
LIBC.telldir.restype = ctypes.c_long
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


LIBC.readdir.restype = ctypes.POINTER(_Dirent)


class Seen(NamedTuple):
    name: str
    ino: int
    type: int


class Stream:
    """A DIR of the C library."""

    def __init__(self, path: Path) -> None:
        self._stream = LIBC.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        assert self._stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        LIBC.closedir(self._stream)

    def next(self) -> Seen | None:
        found = LIBC.readdir(self._stream)
        if not found:
            return None
        entry = found.contents
        return Seen(os.fsdecode(entry.name), entry.ino, entry.type)

    def __iter__(self) -> Iterator[Seen]:
        while (entry := self.next()) is not None:
            if entry.name not in {".", ".."}:
                yield entry

    def tell(self) -> int:
        return int(LIBC.telldir(self._stream))

    def seek(self, where: int) -> None:
        LIBC.seekdir(self._stream, where)

    def rewind(self) -> None:
        LIBC.rewinddir(self._stream)


def fill(path: Path, count: int, prefix: str = "n") -> list[str]:
    names = [f"{prefix}{number:06}" for number in range(count)]
    with opened(path, os.O_RDONLY) as directory:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
    return names


def few(fs: Place, count: int) -> int:
    """Without the data plane every request takes its time."""
    return count // 10 if fs.kind == "nonative" else count


def test_types_and_numbers(d: Path) -> None:
    for kind in KINDS:
        make(kind, d / kind)
    with Stream(d) as stream:
        while (entry := stream.next()) is not None:
            info = os.lstat(d / entry.name)
            assert (entry.ino, entry.type) == (info.st_ino, stat.S_IFMT(info.st_mode) >> 12)


def test_the_root_is_its_own_parent_inside(fs: Place) -> None:
    with Stream(fs.root) as stream:
        names = []
        while (entry := stream.next()) is not None:
            names.append(entry.name)
    assert names.count(".") == names.count("..") == 1


def test_any_bytes_in_names(d: Path) -> None:
    """generic/453: only / and NUL are special, nothing is normalised or folded."""
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    names += [
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"CAFE",
        b"cafe",
        b" ",
        b"...",
        b"\xff" * 255,
        b"a\nb",
        b"-rf",
        b"~",
        b".x",
    ]
    for name in set(names):
        os.close(os.open(os.path.join(os.fsencode(d), name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert set(os.listdir(os.fsencode(d))) == set(names)
    for name in set(names):
        os.unlink(os.path.join(os.fsencode(d), name))


@pytest.mark.parametrize("count", [0, 1, 100, 3000])
def test_positions(d: Path, fs: Place, count: int) -> None:
    """generic/257, 676: from every position, reading goes on with what followed it."""
    count = few(fs, count)
    fill(d, count)
    with Stream(d) as stream:
        places = []
        while True:
            where = stream.tell()
            entry = stream.next()
            places.append((where, entry))
            if entry is None:
                break
        assert len(places) == count + 3
        order = list(range(0, len(places), 7)) + list(range(len(places) - 1, -1, -11))
        for at in order:
            stream.seek(places[at][0])
            assert stream.next() == places[at][1]
            if at + 1 < len(places):
                assert stream.next() == places[at + 1][1]
        stream.rewind()
        assert stream.next() == places[0][1]


def test_positions_survive_what_happens_to_others(d: Path) -> None:
    names = fill(d, 2000)
    with Stream(d) as stream:
        order = [(stream.tell(), entry.name) for entry in stream]
        seen = [name for _, name in order]
        assert sorted(seen) == names
        stream.rewind()
        for _ in range(500):
            stream.next()
        where = stream.tell()
        rest = {entry.name for entry in stream}
        for name in seen[:400]:
            (d / name).unlink()
        fill(d, 300, "later")
        stream.seek(where)
        again = [entry.name for entry in stream]
        assert len(again) == len(set(again))
        assert rest <= set(again)
        assert set(again) - rest <= set(os.listdir(d)) - set(seen[400:500]) | set()


@pytest.mark.parametrize("count", [200, 2000])
def test_what_stays_is_met_once(d: Path, fs: Place, count: int) -> None:
    """generic/310-like: names come, go and change while the directory is read."""
    count = few(fs, count)
    names = fill(d, count)
    met = []
    with Stream(d) as stream:
        for step, entry in enumerate(stream):
            met.append(entry.name)
            if step % 10 == 0 and step // 10 < count // 20:
                (d / names[-1 - step // 10]).unlink(missing_ok=True)
                make("file", d / f"new{step}")
            if step > count * 3:
                break
    assert len(met) == len(set(met))
    untouched = set(names[: count - count // 20 - 1])
    assert untouched <= set(met)


def test_removing_while_reading(d: Path) -> None:
    """What rm -r does: read some, remove them, read on."""
    fill(d, 2000)
    with Stream(d) as stream:
        for entry in stream:
            (d / entry.name).unlink()
    assert os.listdir(d) == []
    d.chmod(0o755)


@pytest.mark.parametrize("count", [100, 1500])
def test_renaming_while_reading_comes_to_an_end(d: Path, fs: Place, count: int) -> None:
    """generic/736: the renamed entry must not always wait further on."""
    count = few(fs, count)
    names = fill(d, count)
    met = 0
    with Stream(d) as stream:
        for entry in stream:
            met += 1
            assert met <= count * 2, "it goes on for ever"
            (d / entry.name).rename(d / "temporary")
            (d / "temporary").rename(d / entry.name)
    assert met >= count
    assert sorted(os.listdir(d)) == names


def test_renamed_names_keep_their_content(d: Path, fs: Place) -> None:
    """Names change their text in their place, also crosswise, and also in what is stored."""
    for number in range(60):
        (d / str(number)).write_text(str(number))
    fs.remount()
    for number in range(0, 60, 2):  # crosswise
        (d / str(number)).rename(d / "temporary")
        (d / str(number + 1)).rename(d / str(number))
        (d / "temporary").rename(d / str(number + 1))
    for number in range(0, 60, 6):
        (d / str(number)).rename(d / f"moved{number}")
        (d / f"moved{number}").unlink()
    for number in range(0, 60, 10):
        (d / str(number + 1)).rename(d / "x")
        (d / "x").rename(d / "y")
        (d / "y").rename(d / str(number + 1))
    wanted = {str(number): str(number ^ 1) for number in range(60) if number % 6}
    for _ in range(2):
        assert {path.name: path.read_text() for path in d.iterdir()} == wanted
        fs.remount()
    for path in list(d.iterdir()):
        path.rename(d / f"again{path.name}")
    sync(d)
    for path in list(d.iterdir()):
        path.rename(d / path.name.removeprefix("again"))
    fs.remount()
    assert {path.name: path.read_text() for path in d.iterdir()} == wanted


def test_an_open_directory_sees_what_was_made_later(d: Path) -> None:
    """generic/637."""
    fill(d, 10)
    with Stream(d) as stream:
        assert len(list(stream)) == 10
        fill(d, 20, "later")
        stream.rewind()
        assert len(list(stream)) == 30
        for path in list(d.iterdir())[:15]:
            path.unlink()
        stream.rewind()
        assert len(list(stream)) == 15


def test_two_readers(d: Path) -> None:
    names = fill(d, 3000)
    with Stream(d) as one, Stream(d) as other:
        first = [entry.name for _, entry in zip(range(1000), one, strict=False)]
        assert sorted(entry.name for entry in other) == names
        assert sorted(first + [entry.name for entry in one]) == names


def test_counting_subdirectories(d: Path) -> None:
    for number in range(300):
        (d / f"{number}").mkdir()
        make("file", d / f"f{number}")
    assert d.stat().st_nlink == 302
    for number in range(0, 300, 3):
        (d / f"{number}").rmdir()
    assert d.stat().st_nlink == 202


def test_deep_trees(d: Path, fs: Place) -> None:
    """LTP, fsstress: deeper than PATH_MAX, by relative steps."""
    here = os.getcwd()
    os.chdir(d)
    try:
        for _ in range(300):
            os.mkdir("n" * 50)
            os.chdir("n" * 50)
        with open("bottom", "w", encoding="utf-8") as file:
            file.write("x")
        assert os.stat("bottom").st_size == 1
        for _ in range(300):
            os.chdir("..")
        assert os.stat(".").st_ino == d.stat().st_ino
    finally:
        os.chdir(here)
    shutil.rmtree(d / ("n" * 50))


# -- large ones


def _large(path: Path, count: int) -> None:
    names = fill(path, count)
    assert sorted(os.listdir(path)) == names
    with os.scandir(path) as found:
        assert sum(entry.stat(follow_symlinks=False).st_size == 0 for entry in found) == count
    assert (path / names[count // 2]).exists()
    assert not (path / "absent").exists()
    (path / names[3]).rename(path / "renamed")
    (path / "renamed").unlink()
    assert len(os.listdir(path)) == count - 1


@pytest.mark.parametrize(
    "count", [5_000, pytest.param(200_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])]
)
def test_large_directories(d: Path, fs: Place, count: int) -> None:
    count = few(fs, count)
    (d / "x").mkdir()
    _large(d / "x", count)
    fs.remount()
    assert len(os.listdir(d / "x")) == count - 1
    assert mode_of(d / "x" / f"n{count - 1:06}") == 0o600
    with opened(d / "x", os.O_RDONLY) as directory:
        for name in os.listdir(d / "x"):
            os.unlink(name, dir_fd=directory)
    (d / "x").rmdir()


@pytest.mark.parametrize(
    "count", [5_000, pytest.param(200_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])]
)
def test_large_directories_in_little_memory(scratch: Path, count: int) -> None:
    """The cache holds less than the directory."""
    for site in make_site(scratch):
        site.mount("cache=1M")
        (site.mountpoint / "x").mkdir()
        _large(site.mountpoint / "x", count)
        site.umount()
        site.mount("cache=1M")
        assert len(os.listdir(site.mountpoint / "x")) == count - 1
        with Stream(site.mountpoint / "x") as stream:
            for entry in stream:
                (site.mountpoint / "x" / entry.name).unlink()
        (site.mountpoint / "x").rmdir()
    ROOT.gets(2, os.stat, scratch / "absent")
