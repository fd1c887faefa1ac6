"""Errors of path resolution, for every call that takes a path (pjdfstest: the tables that all its folders share).

What each call does with a path that resolves is in the file named after it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import NamedTuple

import pytest

from tests.support.posix import ALICE, KINDS, LIBC, ROOT, User, check, make, utimens


class Call(NamedTuple):
    """One use of a path. `makes`: the name is to be new; `removes`: it takes a name away; `follows` a last link."""

    run: Callable[[Path, Path], object]  # the path in question, and a good one beside the directory under test
    makes: bool = False
    removes: bool = False
    follows: bool = True
    needs: str = "file"  # kind of what has to be there


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


CALLS = {
    "access": Call(lambda p, _: check(LIBC.access(os.fsencode(p), os.F_OK))),
    "chdir": Call(lambda p, _: _chdir(p), needs="dir"),
    "chmod": Call(lambda p, _: p.chmod(0o644)),
    "chown": Call(lambda p, _: os.chown(p, -1, -1)),
    "getxattr": Call(lambda p, _: os.listxattr(p)),
    "lchown": Call(lambda p, _: os.lchown(p, -1, -1), follows=False),
    "link from": Call(lambda p, good: os.link(p, good / "new"), follows=False),
    "link to": Call(lambda p, good: os.link(good / "file", p), makes=True, follows=False),
    "lstat": Call(lambda p, _: os.lstat(p), follows=False),
    "mkdir": Call(lambda p, _: p.mkdir(), makes=True, follows=False),
    "mkfifo": Call(lambda p, _: os.mkfifo(p), makes=True, follows=False),
    "mknod": Call(lambda p, _: os.mknod(p, 0o100644), makes=True, follows=False),
    "open": Call(lambda p, _: _open(p, os.O_RDONLY)),
    "open O_CREAT": Call(lambda p, _: _open(p, os.O_RDWR | os.O_CREAT), makes=True),
    "readlink": Call(lambda p, _: os.readlink(p), needs="symlink", follows=False),
    "rename from": Call(lambda p, good: p.rename(good / "new"), removes=True, follows=False),
    "rename to": Call(lambda p, good: make("file", _new(good), 0o666, ALICE).rename(p), makes=True, follows=False),
    "rmdir": Call(lambda p, _: p.rmdir(), removes=True, needs="dir", follows=False),
    "setxattr": Call(lambda p, _: os.setxattr(p, "user.x", b"y")),
    "stat": Call(lambda p, _: os.stat(p)),
    "statfs": Call(lambda p, _: os.statvfs(p)),
    "symlink": Call(lambda p, _: p.symlink_to("there"), makes=True, follows=False),
    "truncate": Call(lambda p, _: os.truncate(p, 0)),
    "unlink": Call(lambda p, _: p.unlink(), removes=True, follows=False),
    "utimensat": Call(lambda p, _: utimens(p, (1, 2), (3, 4))),
}


def _new(directory: Path) -> Path:
    return directory / f"file{len(os.listdir(directory))}"


def _chdir(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path)
    os.chdir(before)


@pytest.fixture
def good(d: Path) -> Path:
    """Everybody's directory with a file, for calls that need a second path."""
    path = d / "good"
    path.mkdir()
    path.chmod(0o777)
    make("file", path / "file", 0o666, ALICE)
    return path


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["file", "fifo", "char", "block", "socket"])
def test_a_component_that_is_no_directory(d: Path, good: Path, call: str, kind: str) -> None:
    make(kind, d / "plain")
    ROOT.gets(errno.ENOTDIR, CALLS[call].run, d / "plain" / "below", good)


@pytest.mark.parametrize("call", CALLS)
def test_a_component_that_is_absent(d: Path, good: Path, call: str) -> None:
    ROOT.gets(errno.ENOENT, CALLS[call].run, d / "absent" / "below", good)


@pytest.mark.parametrize("call", [name for name, call in CALLS.items() if not call.makes])
def test_a_last_component_that_is_absent(d: Path, good: Path, call: str) -> None:
    ROOT.gets(errno.ENOENT, CALLS[call].run, d / "absent", good)


@pytest.mark.parametrize("call", [name for name, call in CALLS.items() if call.follows])
def test_a_link_to_nowhere(d: Path, good: Path, call: str) -> None:
    (d / "link").symlink_to("absent")
    if CALLS[call].makes:
        CALLS[call].run(d / "link", good)
        assert (d / "absent").exists()
    else:
        ROOT.gets(errno.ENOENT, CALLS[call].run, d / "link", good)


def prepared(call: Call, path: Path, mode: int | None = None, user: User | None = None) -> None:
    if not call.makes:
        make(call.needs, path, mode, user)


@pytest.mark.parametrize("call", CALLS)
def test_a_name_may_have_255_bytes_and_no_more(d: Path, good: Path, call: str) -> None:
    prepared(CALLS[call], d / ("n" * 255))
    CALLS[call].run(d / ("n" * 255), good)
    ROOT.gets(errno.ENAMETOOLONG, CALLS[call].run, d / ("n" * 256), good)
    ROOT.gets(errno.ENAMETOOLONG, CALLS[call].run, d / ("n" * 256) / "below", good)


@pytest.mark.parametrize("call", CALLS)
def test_a_path_may_have_4095_bytes_and_no_more(d: Path, good: Path, call: str) -> None:
    deep = str(d)
    while len(deep) + 201 < 4000:
        deep += "/" + "n" * 200
    os.makedirs(deep)
    longest = Path(deep + "/" + "m" * (4095 - len(deep) - 1))
    prepared(CALLS[call], longest)
    CALLS[call].run(longest, good)
    ROOT.gets(errno.ENAMETOOLONG, CALLS[call].run, Path(f"{longest}m"), good)


@pytest.mark.parametrize("call", CALLS)
def test_a_loop_of_links(d: Path, good: Path, call: str) -> None:
    (d / "one").symlink_to("two")
    (d / "two").symlink_to("one")
    ROOT.gets(errno.ELOOP, CALLS[call].run, d / "one" / "below", good)
    if CALLS[call].follows:
        ROOT.gets(errno.ELOOP, CALLS[call].run, d / "one", good)


@pytest.mark.parametrize("call", CALLS)
def test_a_chain_of_40_links_is_followed(d: Path, good: Path, call: str) -> None:
    (d / "real").mkdir()
    prepared(CALLS[call], d / "real" / "x")
    previous = "real"
    for number in range(41):
        (d / f"{number}").symlink_to(previous)
        previous = str(number)
    ROOT.gets(errno.ELOOP, CALLS[call].run, d / "40" / "x", good)
    CALLS[call].run(d / "39" / "x", good)


@pytest.mark.parametrize("call", CALLS)
def test_a_directory_without_search_permission(d: Path, good: Path, call: str) -> None:
    make("dir", d / "closed", 0o777, ALICE)
    prepared(CALLS[call], d / "closed" / "x", 0o777, ALICE)
    (d / "closed").chmod(0o666)
    ALICE.gets(errno.EACCES, CALLS[call].run, d / "closed" / "x", good)
    (d / "closed").chmod(0o777)
    ALICE(CALLS[call].run, d / "closed" / "x", good)


@pytest.mark.parametrize("call", [name for name, call in CALLS.items() if call.makes or call.removes])
def test_a_directory_without_write_permission(d: Path, good: Path, call: str) -> None:
    make("dir", d / "closed", 0o777, ALICE)
    prepared(CALLS[call], d / "closed" / "x", 0o777, ALICE)
    (d / "closed").chmod(0o555)
    ALICE.gets(errno.EACCES, CALLS[call].run, d / "closed" / "x", good)
    ROOT(CALLS[call].run, d / "closed" / "x", good)


@pytest.mark.parametrize(
    "call", [name for name, call in CALLS.items() if call.makes and "open" not in name and "rename" not in name]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_taken(d: Path, good: Path, call: str, kind: str) -> None:
    make(kind, d / "x")
    before = os.lstat(d / "x")
    ROOT.gets(errno.EEXIST, CALLS[call].run, d / "x", good)
    assert os.lstat(d / "x") == before


@pytest.mark.parametrize(
    "call", [name for name, call in CALLS.items() if call.makes and "open" not in name and "rename" not in name]
)
def test_dot_is_always_taken(d: Path, good: Path, call: str) -> None:
    for name in (".", ".."):
        ROOT.gets(errno.EEXIST, CALLS[call].run, _Raw.of(f"{d}/{name}"), good)


class _Raw(PosixPath):
    """A path that keeps its dots."""

    def __fspath__(self) -> str:
        return self.text

    text: str

    @classmethod
    def of(cls, text: str) -> _Raw:
        path = cls("raw")
        path.text = text
        return path


@pytest.mark.parametrize(
    "name", ["open", "mkdir", "chmod", "unlink", "rmdir", "mkfifo", "truncate", "stat", "link", "rename", "symlink"]
)
def test_a_bad_address(d: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        check(getattr(LIBC, name)(None, None, 0))
    assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize("name", ["open", "mkdir", "chmod", "unlink", "rmdir", "mkfifo", "truncate"])
def test_an_empty_path(d: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        check(getattr(LIBC, name)(b"", 0, 0))
    assert caught.value.errno == errno.ENOENT
