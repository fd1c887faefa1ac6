"""chown(2): who may give what to whom, set-id bits, and times (pjdfstest chown/)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.posix import ALICE, BOB, ROOT, User, changes, make, mode_of, opened

KINDS = ("file", "dir", "fifo", "char", "block", "socket", "symlink")


def owner(path: Path) -> tuple[int, int]:
    info = os.lstat(path)
    return info.st_uid, info.st_gid


@pytest.mark.parametrize("kind", KINDS)
def test_root_may_everything(d: Path, kind: str) -> None:
    path = make(kind, d / "x")
    for uid, gid, wanted in (
        (123, 456, (123, 456)),
        (0, -1, (0, 456)),
        (-1, 7, (0, 7)),
        (-1, -1, (0, 7)),
        (2**32 - 2, 2**32 - 2, (2**32 - 2, 2**32 - 2)),
    ):
        with changes((path, "c"), (d, "")):
            os.lchown(path, uid, gid)
        assert owner(path) == wanted


def test_links_are_followed_or_not(d: Path) -> None:
    make("file", d / "x")
    (d / "link").symlink_to("x")
    with changes((d / "x", "c"), (d / "link", "")):
        os.chown(d / "link", 1, 2)
    with changes((d / "x", ""), (d / "link", "c")):
        os.lchown(d / "link", 3, 4)
    assert (owner(d / "x"), owner(d / "link")) == ((1, 2), (3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_may_choose_among_own_groups(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o644, ALICE)
    member = User(ALICE.uid, ALICE.gid, (BOB.gid, 500))
    with changes((path, "c")):
        member(os.lchown, path, -1, BOB.gid)
    member(os.lchown, path, ALICE.uid, 500)
    with changes((path, "")):
        member.gets(errno.EPERM, os.lchown, path, -1, 501)
        member.gets(errno.EPERM, os.lchown, path, BOB.uid, -1)
        member.gets(errno.EPERM, os.lchown, path, 0, 0)
        BOB.gets(errno.EPERM, os.lchown, path, BOB.uid, BOB.gid)
        BOB.gets(errno.EPERM, os.lchown, path, -1, BOB.gid)
    assert owner(path) == (ALICE.uid, 500)


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_at_all(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o644, ALICE)
    ALICE(os.lchown, path, -1, -1)
    BOB(os.lchown, path, -1, -1)
    assert owner(path) == (ALICE.uid, ALICE.gid)


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6777, 0o777), (0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o6745, 0o2745), (0o1755, 0o1755)],
)
@pytest.mark.parametrize("who", [ROOT, User(ALICE.uid, ALICE.gid, (BOB.gid,))], ids=["root", "owner"])
@pytest.mark.parametrize("uid", [-1, ALICE.uid], ids=["same owner", "owner"])
def test_set_id_bits_fall(d: Path, before: int, after: int, who: User, uid: int) -> None:
    """chown/00: also when root does it. A set-group-id bit without group execution marks mandatory locking."""
    path = make("file", d / "x", before, ALICE)
    path.chmod(before)
    who(os.chown, path, uid, BOB.gid)
    assert oct(mode_of(path)) == oct(after)


def test_set_id_bits_of_directories_stay(d: Path) -> None:
    path = make("dir", d / "x", 0o755, ALICE)
    path.chmod(0o6755)
    os.chown(path, 1, 1)
    assert mode_of(path) == 0o6755


def test_set_group_id_without_execution_falls_for_strangers(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    os.chown(path, ALICE.uid, 500)
    path.chmod(0o2644)
    ALICE(os.chown, path, -1, ALICE.gid)
    assert oct(mode_of(path)) == oct(0o644)


def test_fchown_of_something_unlinked(d: Path) -> None:
    path = make("file", d / "x", 0o644)
    with opened(path) as descriptor:
        path.unlink()
        os.fchown(descriptor, 5, 6)
        info = os.fstat(descriptor)
        assert (info.st_uid, info.st_gid, info.st_nlink) == (5, 6, 0)
