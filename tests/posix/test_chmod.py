"""chmod(2): who may, what is kept, and which times change (pjdfstest chmod/)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.posix import ALICE, BOB, ROOT, User, changes, make, mode_of, opened


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "char", "block", "socket"])
def test_every_mode_is_kept(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o644)
    for mode in (0, 0o111, 0o777, 0o4755, 0o2755, 0o1755, 0o7777, 0o6000, 0o644):
        path.chmod(mode)
        assert mode_of(path) == mode


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "char", "block", "socket"])
def test_times(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o644)
    with changes((path, "c"), (d, "")):
        path.chmod(0o640)
    with changes((path, "c")):
        path.chmod(0o640)  # nothing new, and yet a change
    os.chown(path, ALICE.uid, ALICE.gid)
    with changes((path, "")):
        BOB.gets(errno.EPERM, path.chmod, 0o777)
    with changes((path, "c")):
        ALICE(path.chmod, 0o600)


def test_through_a_link(d: Path) -> None:
    make("file", d / "x", 0o644)
    (d / "link").symlink_to("x")
    with changes((d / "link", ""), (d / "x", "c")):
        (d / "link").chmod(0o600)
    assert mode_of(d / "x") == 0o600
    assert mode_of(d / "link") == 0o777


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_only_the_owner_and_root(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o777, ALICE)
    ALICE(path.chmod, 0o111)
    BOB.gets(errno.EPERM, path.chmod, 0o777)
    User(BOB.uid, ALICE.gid).gets(errno.EPERM, path.chmod, 0o777)
    ROOT(path.chmod, 0o751)
    assert mode_of(path) == 0o751


def test_set_group_id_needs_membership(d: Path) -> None:
    """chmod/12: the bit falls silently for somebody who is not in the group."""
    path = make("file", d / "x", 0o755)
    os.chown(path, ALICE.uid, BOB.gid)
    ALICE(path.chmod, 0o2755)
    assert mode_of(path) == 0o755
    User(ALICE.uid, ALICE.gid, (BOB.gid,))(path.chmod, 0o2755)
    assert mode_of(path) == 0o2755
    ROOT(path.chmod, 0o755)
    ROOT(path.chmod, 0o6755)
    assert mode_of(path) == 0o6755
    User(ALICE.uid, BOB.gid)(path.chmod, 0o2711)
    assert mode_of(path) == 0o2711


def test_set_group_id_of_directories(d: Path) -> None:
    path = make("dir", d / "x", 0o755)
    os.chown(path, ALICE.uid, BOB.gid)
    ALICE(path.chmod, 0o2755)
    assert mode_of(path) == 0o755
    User(ALICE.uid, ALICE.gid, (BOB.gid,))(path.chmod, 0o2755)
    assert mode_of(path) == 0o2755


def test_sticky_on_files_of_users(d: Path) -> None:
    path = make("file", d / "x", 0o644, ALICE)
    ALICE(path.chmod, 0o1644)
    assert mode_of(path) == 0o1644  # Linux lets anybody


def test_fchmod(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    with opened(path, os.O_RDONLY) as descriptor:
        with changes((path, "c")):
            os.fchmod(descriptor, 0o4711)
        assert mode_of(path) == 0o4711
        path.unlink()
        os.fchmod(descriptor, 0o600)
        assert os.fstat(descriptor).st_mode & 0o7777 == 0o600
