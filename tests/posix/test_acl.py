"""Access control lists: who may, inheritance, and how list and mode follow each other (generic/053, 099, 105, 237, 307,
318, 319, 375, 389, 444, 449, 697-699).

The lists' binary form is packed by tests/support/posix.py.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import (
    ACL_ACCESS,
    ACL_DEFAULT,
    ALICE,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    BOB,
    RENAME_EXCHANGE,
    ROOT,
    User,
    acl,
    acl_text,
    changes,
    get_acl,
    linkat,
    make,
    mode_of,
    opened,
    renameat2,
    tmpfile,
    umask,
)

FULL = f"u::rwx,u:{BOB.uid}:r-x,g::r--,g:500:rw-,m::rwx,o::---"
MEMBER = User(65000, 65000, (500,))
STRANGER = User(65000, 65000)


def give(path: Path | int, text: str, name: str = ACL_ACCESS) -> None:
    os.setxattr(path, name, acl(text))


def listed(path: Path) -> list[str]:
    """What getfacl says of everything below, whatever the order of the directory."""
    return sorted(run("getfacl", "-R", "-n", ".", cwd=path).split("\n\n"))


def run(*words: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, cwd=cwd).stdout


# -- list and mode


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "char", "socket"])
def test_mode_and_mask_are_one(d: Path, kind: str) -> None:
    """generic/099, 319: the group bits of the mode are the mask."""
    path = make(kind, d / "x", 0o640)
    with changes((path, "c"), (d, "")):
        give(path, FULL)
    assert (mode_of(path), get_acl(path)) == (0o770, FULL)
    with changes((path, "c")):
        path.chmod(0o651)
    assert get_acl(path) == FULL.replace("u::rwx", "u::rw-").replace("m::rwx", "m::r-x").replace("o::---", "o::--x")
    path.chmod(0o000)
    assert get_acl(path) == f"u::---,u:{BOB.uid}:r-x,g::r--,g:500:rw-,m::---,o::---"
    path.chmod(0o7777 if kind == "dir" else 0o777)
    assert get_acl(path) == f"u::rwx,u:{BOB.uid}:r-x,g::r--,g:500:rw-,m::rwx,o::rwx"


def test_a_minimal_list_is_a_mode(d: Path) -> None:
    """generic/449-like: nothing is stored that the mode says already."""
    path = make("file", d / "x", 0o644)
    with changes((path, "c")):
        give(path, "u::r-x,g::-w-,o::--x")
    assert mode_of(path) == 0o521
    assert get_acl(path) is None
    assert os.listxattr(path) == []
    give(path, FULL)
    give(path, "u::rw-,g::r--,o::r--")
    assert (mode_of(path), os.listxattr(path)) == (0o644, [])


def test_a_mask_alone_is_kept(d: Path) -> None:
    path = make("file", d / "x", 0o664)
    give(path, "u::rw-,g::rw-,m::r--,o::r--")
    assert mode_of(path) == 0o644
    assert get_acl(path) == "u::rw-,g::rw-,m::r--,o::r--"
    path.chmod(0o666)
    assert get_acl(path) == "u::rw-,g::rw-,m::rw-,o::rw-"


def test_removing(d: Path) -> None:
    """The mode stays as the mask had made it (getfacl would show the mask as the group)."""
    path = make("file", d / "x", 0o640)
    give(path, FULL)
    with changes((path, "c")):
        os.removexattr(path, ACL_ACCESS)
    assert (mode_of(path), get_acl(path)) == (0o770, None)
    make("dir", d / "dir", 0o755)
    give(d / "dir", FULL, ACL_DEFAULT)
    assert os.listxattr(d / "dir") == [ACL_DEFAULT]
    with changes((d / "dir", "c")):
        os.removexattr(d / "dir", ACL_DEFAULT)
    assert os.listxattr(d / "dir") == []
    os.removexattr(d / "dir", ACL_DEFAULT)  # what is not there is removed without complaint
    os.removexattr(path, ACL_ACCESS)


def test_an_empty_list_removes(d: Path) -> None:
    make("dir", d / "x", 0o755)
    give(d / "x", FULL, ACL_DEFAULT)
    os.setxattr(d / "x", ACL_DEFAULT, struct.pack("<I", 2))
    assert get_acl(d / "x", ACL_DEFAULT) is None
    give(d / "x", FULL)
    os.setxattr(d / "x", ACL_ACCESS, struct.pack("<I", 2))
    assert get_acl(d / "x") is None


def test_default_lists_are_for_directories(d: Path) -> None:
    """generic/318-like; the list does not change the mode of the directory itself."""
    path = make("dir", d / "x", 0o710)
    with changes((path, "c")):
        give(path, FULL, ACL_DEFAULT)
    assert (mode_of(path), get_acl(path), get_acl(path, ACL_DEFAULT)) == (0o710, None, FULL)
    for kind in ("file", "fifo", "socket", "char"):
        make(kind, d / kind)
        ROOT.gets(errno.EACCES, give, d / kind, FULL, ACL_DEFAULT)


def test_links_have_none(d: Path) -> None:
    (d / "link").symlink_to("nowhere")
    ROOT.gets(errno.EOPNOTSUPP, os.setxattr, d / "link", ACL_ACCESS, acl(FULL), follow_symlinks=False)
    ROOT.gets(errno.EOPNOTSUPP, os.getxattr, d / "link", ACL_ACCESS, follow_symlinks=False)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\2\0\0",
        acl(FULL)[:-1],
        acl("u::rwx,g::rwx"),  # nothing for others
        acl(f"u::rwx,u:{BOB.uid}:rwx,g::rwx,o::rwx"),  # a named user without a mask
        acl("u::rwx,u::rwx,g::rwx,o::rwx"),
        acl("u::rwx,g::rwx,o::rwx")[:4] + b"".join(reversed([acl("u::rwx,g::rwx,o::rwx")[4 + 8 * i :][:8] for i in range(3)])),
        struct.pack("<I", 2) + struct.pack("<HHI", 0x40, 7, 0) * 3,
        struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 0o17, 2**32 - 1) for tag in (1, 4, 32)),
    ],
)  # fmt: skip
def test_nonsense_is_refused(d: Path, raw: bytes) -> None:
    path = make("file", d / "x", 0o640)
    if raw:
        ROOT.gets((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, path, ACL_ACCESS, raw)
    else:
        os.setxattr(path, ACL_ACCESS, raw)  # removes
    assert (mode_of(path), os.listxattr(path)) == (0o640, [])


def test_another_version_is_refused(d: Path) -> None:
    path = make("file", d / "x", 0o640)
    ROOT.gets(errno.EOPNOTSUPP, os.setxattr, path, ACL_ACCESS, struct.pack("<I", 3) + acl(FULL)[4:])


def test_a_long_list(d: Path) -> None:
    """generic/026: as many entries as fit in a page; FUSE and ext4 stop there."""
    path = make("file", d / "x", 0o640)
    count = 480
    text = "u::rw-," + ",".join(f"u:{1000 + n}:r--" for n in range(count)) + ",g::r--,m::r--,o::---"
    give(path, text)
    assert get_acl(path) == text
    assert User(1000 + count - 1, 7)(os.access, path, os.R_OK)
    assert not User(1000 + count, 7)(os.access, path, os.R_OK)
    path.chmod(0o600)
    assert not User(1000 + count - 1, 7)(os.access, path, os.R_OK)
    assert get_acl(path) == text.replace("m::r--", "m::---")


# -- who may


def may(path: Path, who: User) -> str:
    return "".join(letter if who(os.access, path, bit) else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_who_may(d: Path, kind: str) -> None:
    """generic/105, 237: named users before groups, one fitting group is enough, the mask limits both."""
    path = make(kind, d / "x", 0o600, ALICE)
    give(path, f"u::rw-,u:{BOB.uid}:r-x,g::r--,g:500:-w-,g:501:--x,m::rwx,o::--x")
    assert may(path, ALICE) == "rw-"
    assert may(path, BOB) == "r-x"
    assert may(path, User(BOB.uid, BOB.gid, (500,))) == "r-x"  # a named user is no member
    assert may(path, User(7, ALICE.gid)) == "r--"
    assert may(path, User(7, 7, (500, 501))) == "-wx"
    assert may(path, User(7, 7, (500, 501, ALICE.gid))) == "rwx"
    assert may(path, User(7, 7)) == "--x"
    assert may(path, User(7, 500)) == "-w-"
    path.chmod(0o650)  # mask r-x
    assert may(path, BOB) == "r-x"
    assert may(path, MEMBER) == "---"  # its group has only w, and others is not asked any more
    path.chmod(0o600)
    assert may(path, BOB) == "---"
    assert may(path, ALICE) == "rw-"
    os.removexattr(path, ACL_ACCESS)
    path.chmod(0o604)
    assert (may(path, BOB), may(path, User(7, ALICE.gid))) == ("r--", "---")


def test_rights_count_when_opening(d: Path) -> None:
    path = make("file", d / "x", 0o600, ALICE)
    path.write_text("secret")
    BOB.gets(errno.EACCES, os.open, path, os.O_RDONLY)
    give(path, f"u::rw-,u:{BOB.uid}:r--,g::---,m::r--,o::---")
    BOB(path.read_text)
    BOB.gets(errno.EACCES, os.open, path, os.O_WRONLY)
    give(path, f"u::rw-,u:{BOB.uid}:rw-,g::---,m::rw-,o::---")
    BOB(path.write_text, "changed")
    BOB.gets(errno.EPERM, path.chmod, 0o777)
    path.chmod(0o644)
    BOB.gets(errno.EACCES, os.open, path, os.O_WRONLY)
    BOB(path.read_text)


def test_rights_count_in_directories(d: Path) -> None:
    path = make("dir", d / "x", 0o700, ALICE)
    make("file", path / "y", 0o644)
    BOB.gets(errno.EACCES, os.stat, path / "y")
    give(path, f"u::rwx,u:{BOB.uid}:--x,g::---,m::--x,o::---")
    BOB(os.stat, path / "y")
    BOB.gets(errno.EACCES, os.listdir, path)
    BOB.gets(errno.EACCES, os.mkdir, path / "new")
    give(path, f"u::rwx,u:{BOB.uid}:rwx,g::---,m::rwx,o::---")
    BOB(os.mkdir, path / "new")
    BOB(os.unlink, path / "y")
    assert BOB(os.listdir, path) == ["new"]


def test_only_the_owner_sets_lists(d: Path) -> None:
    """generic/318, 444."""
    path = make("dir", d / "x", 0o777, ALICE)
    for name in (ACL_ACCESS, ACL_DEFAULT):
        BOB.gets(errno.EPERM, give, path, FULL, name)
        ALICE(give, path, FULL, name)
        assert ALICE(get_acl, path, name) == FULL
        BOB.gets(errno.EPERM, os.removexattr, path, name)
        ROOT(give, path, FULL, name)
        ALICE(os.removexattr, path, name)
    with changes((path, "")):
        BOB.gets(errno.EPERM, give, path, FULL)


def test_everybody_who_finds_it_reads_the_list(d: Path) -> None:
    path = make("file", d / "x", 0o600)
    give(path, FULL)
    assert STRANGER(get_acl, path) == FULL


# -- set-group-id


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_setting_a_list_clears_set_group_id_for_strangers(d: Path, kind: str) -> None:
    """generic/375: like chmod."""
    path = make(kind, d / "x", 0o755)
    os.chown(path, ALICE.uid, 500)
    for text in (FULL, "u::rwx,g::rwx,o::r-x"):
        path.chmod(0o2755)
        ALICE(give, path, text)
        assert not mode_of(path) & stat.S_ISGID
        path.chmod(0o2755)
        User(ALICE.uid, ALICE.gid, (500,))(give, path, text)
        assert mode_of(path) & stat.S_ISGID
        ROOT(give, path, text)
        assert mode_of(path) & stat.S_ISGID
    path.chmod(0o4755)
    ALICE(give, path, FULL)
    assert mode_of(path) & stat.S_ISUID


@pytest.mark.parametrize("kind", ["dir"])
def test_a_default_list_leaves_set_group_id(d: Path, kind: str) -> None:
    path = make(kind, d / "x", 0o755)
    os.chown(path, ALICE.uid, 500)
    path.chmod(0o2755)
    ALICE(give, path, FULL, ACL_DEFAULT)
    assert mode_of(path) == 0o2755


def test_set_group_id_directories_with_lists(d: Path) -> None:
    """generic/314, 389, 697: the group is inherited, the bit by directories, and both beside the list."""
    path = make("dir", d / "x", 0o777)
    os.chown(path, ALICE.uid, 500)
    path.chmod(0o2777)
    give(path, f"u::rwx,u:{BOB.uid}:rwx,g::rwx,m::rwx,o::rwx", ACL_DEFAULT)
    with umask(0o077), BOB:
        os.mkdir(path / "dir", 0o755)
        os.close(os.open(path / "file", os.O_CREAT | os.O_WRONLY, 0o2755))
        os.mkfifo(path / "fifo", 0o644)
        os.close(os.open(path / "plain", os.O_CREAT | os.O_WRONLY, 0o644))
    assert {os.lstat(path / name).st_gid for name in os.listdir(path)} == {500}
    assert mode_of(path / "dir") == 0o2755
    assert mode_of(path / "file") == 0o755  # Bob is not in the group
    assert mode_of(path / "fifo") == mode_of(path / "plain") == 0o644
    assert get_acl(path / "dir", ACL_DEFAULT) == f"u::rwx,u:{BOB.uid}:rwx,g::rwx,m::rwx,o::rwx"
    with umask(0o077), User(BOB.uid, BOB.gid, (500,)):
        os.close(os.open(path / "member", os.O_CREAT | os.O_WRONLY, 0o2755))
    assert mode_of(path / "member") == 0o2755


# -- inheriting


def _bound(path: Path, mode: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)
    assert mode >= 0  # has no say here


def _unnamed(path: Path, mode: int) -> None:
    descriptor = tmpfile(path.parent, os.O_RDWR, mode)
    try:
        wanted = os.fstat(descriptor)
        names = os.listxattr(descriptor)
        linkat(AT_FDCWD, b"/proc/self/fd/%d" % descriptor, AT_FDCWD, path, AT_SYMLINK_FOLLOW)
        assert os.listxattr(path) == names
        assert os.stat(path).st_mode == wanted.st_mode
    finally:
        os.close(descriptor)


MAKERS: dict[str, Callable[[Path, int], object]] = {
    "open": lambda path, mode: os.close(os.open(path, os.O_CREAT | os.O_RDWR, mode)),
    "mknod": lambda path, mode: os.mknod(path, mode | stat.S_IFREG),
    "fifo": os.mkfifo,
    "whiteout": lambda path, mode: os.mknod(path, mode | stat.S_IFCHR, 0),
    "socket": lambda path, mode: os.mknod(path, mode | stat.S_IFSOCK),
    "bind": _bound,
    "mkdir": os.mkdir,
    "O_TMPFILE": _unnamed,
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("asked", [0o666, 0o777, 0o600, 0o007, 0])
@pytest.mark.parametrize("who", [ALICE, ROOT], ids=["user", "root"])
def test_inheriting(d: Path, fs: Place, maker: str, asked: int, who: User) -> None:
    """generic/099, 318: the default list becomes the access list, cut by the mode asked for; the umask has no say."""
    d.chmod(0o777)
    text = f"u::rwx,u:{BOB.uid}:rwx,g::r-x,g:500:rw-,m::rwx,o::r-x"
    give(d, text, ACL_DEFAULT)
    with umask(0o077), who:
        if not fs.can(MAKERS[maker], d / "x", asked):
            return
    mode = 0o700 if maker == "bind" else asked  # bind(2) heeds the umask by itself
    info = os.lstat(d / "x")
    assert (info.st_uid, info.st_gid) == (who.uid, who.gid)
    assert oct(mode_of(d / "x")) == oct(mode & 0o775)

    def cut(bits: int, given: str) -> str:
        return "".join(letter if mode >> bits & bit else "-" for letter, bit in zip(given, (4, 2, 1), strict=True))

    wanted = f"u::{cut(6, 'rwx')},u:{BOB.uid}:rwx,g::r-x,g:500:rw-,m::{cut(3, 'rwx')},o::{cut(0, 'r-x')}"
    assert get_acl(d / "x") == wanted
    assert (get_acl(d / "x", ACL_DEFAULT) if maker == "mkdir" else text) == text
    if maker != "mkdir":
        assert os.listxattr(d / "x") == [ACL_ACCESS]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_minimal_default_list_replaces_the_umask(d: Path, fs: Place, maker: str) -> None:
    d.chmod(0o777)
    give(d, "u::rwx,g::rw-,o::r--", ACL_DEFAULT)
    with umask(0o077), ALICE:
        if not fs.can(MAKERS[maker], d / "x", 0o777):
            return
    assert mode_of(d / "x") == (0o700 if maker == "bind" else 0o764)
    assert get_acl(d / "x") is None
    assert os.listxattr(d / "x") == ([ACL_DEFAULT] if maker == "mkdir" else [])


@pytest.mark.parametrize("maker", MAKERS)
def test_other_attributes_do_not_replace_the_umask(d: Path, fs: Place, maker: str) -> None:
    d.chmod(0o777)
    os.setxattr(d, "user.x", b"y")
    give(d, FULL.replace("o::---", "o::rwx"))
    with umask(0o027), ALICE:
        if not fs.can(MAKERS[maker], d / "x", 0o777):
            return
    assert mode_of(d / "x") == 0o750
    assert os.listxattr(d / "x") == []


@pytest.mark.parametrize("maker", MAKERS)
def test_a_list_that_was_removed_is_not_inherited(d: Path, fs: Place, maker: str) -> None:
    d.chmod(0o777)
    give(d, FULL, ACL_DEFAULT)
    os.removexattr(d, ACL_DEFAULT)
    with umask(0o022), ALICE:
        if not fs.can(MAKERS[maker], d / "x", 0o777):
            return
    assert mode_of(d / "x") == 0o755
    assert os.listxattr(d / "x") == []


def test_links_do_not_inherit(d: Path) -> None:
    give(d, FULL, ACL_DEFAULT)
    with umask(0o077):
        (d / "link").symlink_to("nowhere")
    assert mode_of(d / "link") == 0o777
    assert os.listxattr(d / "link", follow_symlinks=False) == []


def test_inheriting_through_levels(d: Path) -> None:
    give(d, FULL, ACL_DEFAULT)
    deep = d
    with umask(0o077):
        for name in ("a", "b", "c"):
            deep = deep / name
            deep.mkdir(0o777)
        make("file", deep / "x")
    assert {get_acl(each, ACL_DEFAULT) for each in (d, d / "a", d / "a" / "b", deep)} == {FULL}
    assert get_acl(deep / "x") == f"u::rw-,u:{BOB.uid}:r-x,g::r--,g:500:rw-,m::r--,o::---"
    give(d / "a", FULL.replace("r-x", "---"), ACL_DEFAULT)
    make("file", deep / "y")  # what exists already keeps its own list
    assert get_acl(deep / "y") == get_acl(deep / "x")
    make("dir", d / "a" / "new")
    assert get_acl(d / "a" / "new", ACL_DEFAULT) == FULL.replace("r-x", "---")


def test_moving_and_linking_keep_lists(d: Path) -> None:
    """Only what is made inherits."""
    give(d, FULL, ACL_DEFAULT)
    make("dir", d / "plain")
    os.removexattr(d / "plain", ACL_DEFAULT)
    make("file", d / "listed")
    inherited = get_acl(d / "listed")
    os.removexattr(d / "listed", ACL_ACCESS)
    make("file", d / "other")
    os.rename(d / "other", d / "plain" / "other")
    assert get_acl(d / "plain" / "other") == inherited
    make("file", d / "plain" / "bare", 0o640)
    os.rename(d / "plain" / "bare", d / "bare")
    os.link(d / "bare", d / "again")
    assert (get_acl(d / "bare"), get_acl(d / "again"), mode_of(d / "bare")) == (None, None, 0o640)
    renameat2(d / "bare", d / "plain" / "other", RENAME_EXCHANGE)
    assert (get_acl(d / "bare"), get_acl(d / "plain" / "other")) == (inherited, None)
    os.rename(d / "bare", d / "plain" / "other")
    assert get_acl(d / "plain" / "other") == inherited


def test_lists_survive_remounting(d: Path, fs: Place) -> None:
    give(d, FULL, ACL_DEFAULT)
    make("file", d / "x", 0o640)
    make("dir", d / "dir")
    before = [(get_acl(d / name), mode_of(d / name)) for name in ("x", "dir")]
    fs.remount()
    assert [(get_acl(d / name), mode_of(d / name)) for name in ("x", "dir")] == before
    assert get_acl(d / "dir", ACL_DEFAULT) == get_acl(d, ACL_DEFAULT) == FULL
    make("file", d / "dir" / "y")
    assert get_acl(d / "dir" / "y") is not None
    d.chmod(0o755)
    (d / "x").chmod(0o614)
    fs.remount()
    assert may(d / "x", BOB) == "--x"
    assert mode_of(d / "x") == 0o614


def test_on_something_unlinked(d: Path) -> None:
    path = make("file", d / "x", 0o640)
    with opened(path) as descriptor:
        path.unlink()
        give(descriptor, FULL)
        assert os.fstat(descriptor).st_mode & 0o7777 == 0o770
        os.fchmod(descriptor, 0o700)
        assert acl_text(os.getxattr(descriptor, ACL_ACCESS)) == FULL.replace("m::rwx", "m::---")
        os.removexattr(descriptor, ACL_ACCESS)
        assert os.listxattr(descriptor) == []


def test_the_owner_changes_with_the_list(d: Path) -> None:
    """chown leaves the list alone, and set-id bits fall in spite of it."""
    path = make("file", d / "x", 0o640, ALICE)
    give(path, FULL)
    path.chmod(0o6770)
    os.chown(path, BOB.uid, 500)
    assert get_acl(path) == FULL
    assert oct(mode_of(path)) == oct(0o770)


# -- programs


def test_setfacl_and_getfacl(d: Path) -> None:
    path = make("dir", d / "x", 0o755)
    make("file", path / "y", 0o644)
    run("setfacl", "-R", "-m", "u:1234:rwX,g:500:r-X", path)
    run("setfacl", "-d", "-m", "u:1234:rwX,o::-", path)
    before = run("getfacl", "-R", "-n", "-p", "x", cwd=d)
    assert "user:1234:rw-" in before
    assert "default:user:1234:rwx" in before
    run("setfacl", "-R", "-b", path)
    assert os.listxattr(path) == os.listxattr(path / "y") == []
    subprocess.run(["setfacl", "--restore=-"], input=before, text=True, check=True, cwd=d)
    assert run("getfacl", "-R", "-n", "-p", "x", cwd=d) == before
    run("setfacl", "-k", path)
    assert get_acl(path, ACL_DEFAULT) is None
    run("setfacl", "-x", "u:1234", path)
    assert "1234" not in (get_acl(path) or "")


def test_copies_keep_lists(d: Path) -> None:
    """cp -a, rsync -A and tar --acls bring them along, also below a directory whose list would be inherited."""
    path = make("dir", d / "x", 0o755)
    make("file", path / "y", 0o644)
    give(path, FULL)
    give(path, FULL, ACL_DEFAULT)
    give(path / "y", FULL)
    make("file", path / "bare", 0o600)
    os.removexattr(path / "bare", ACL_ACCESS)
    (path / "bare").chmod(0o600)
    give(d, "u::rwx,u:4321:rwx,g::rwx,m::rwx,o::rwx", ACL_DEFAULT)
    before = listed(path)
    run("cp", "-a", path, d / "copy")
    assert listed(d / "copy") == before
    run("rsync", "-aAX", f"{path}/", d / "synced")
    assert listed(d / "synced") == before
    run("mv", d / "copy", d / "moved")
    assert listed(d / "moved") == before
    (d / "tar").mkdir()
    run("tar", "--acls", "-cf", d / "x.tar", "-C", path, ".")
    run("tar", "--acls", "-xpf", d / "x.tar", "-C", d / "tar")
    assert listed(d / "tar") == before
