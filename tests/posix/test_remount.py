"""What was made by one mount stays what it is in the next.

Each test ends with remounting: what only memory knew is gone.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import ACL_DEFAULT, ALICE, acl, make


@pytest.mark.parametrize("last", ["symlink", "file below a list", "directory below a list"])
def test_numbers_are_not_used_again(d: Path, fs: Place, last: str) -> None:
    """What Python made last had a number that the next mount gave to the next file: one of the two was lost."""
    (d / "x").mkdir()
    if "list" in last:
        os.setxattr(d / "x", ACL_DEFAULT, acl("u::rwx,u:5:rwx,g::r-x,m::rwx,o::---"))
    fs.remount()
    made = d / "x" / "last"
    if last == "symlink":
        made.symlink_to("target")
    elif last.startswith("file"):
        make("file", made)
    else:
        made.mkdir()
    before = os.lstat(made)
    fs.remount()
    os.close(os.open(d / "next", os.O_CREAT | os.O_RDWR))
    os.close(os.open(d / "x" / "another", os.O_CREAT | os.O_RDWR))
    fs.remount()
    numbers = [os.lstat(path).st_ino for path in (made, d / "next", d / "x" / "another", d / "x")]
    assert len(set(numbers)) == 4
    assert os.lstat(made).st_mode == before.st_mode
    assert sorted(os.listdir(d / "x")) == ["another", "last"]


def test_owners_and_times(d: Path, fs: Place) -> None:
    for kind in ("file", "dir", "fifo", "char", "socket", "symlink"):
        make(kind, d / kind, 0o2751, ALICE)
    before = {path: _seen(path) for path in d.iterdir()}
    fs.remount()
    assert {path: _seen(path) for path in d.iterdir()} == before


def _seen(path: Path) -> tuple[int, ...]:
    info = os.lstat(path)
    return (*info[:2], *info[3:7], info.st_mtime_ns, info.st_ctime_ns, info.st_rdev)
