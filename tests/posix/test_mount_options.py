"""What the options of a mount do to calls: ro, nosuid, nodev, noexec, noatime, nodiratime, uid, gid, umask, sync
(pjdfstest's EROFS files; LTP mount03, statvfs01, and EROFS in the others; generic/003).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Site, make_site
from tests.support.posix import (
    ACL_ACCESS,
    ALICE,
    LIBC,
    RENAME_EXCHANGE,
    ROOT,
    acl,
    check,
    make,
    mode_of,
    opened,
    renameat2,
    tick,
    times,
    tmpfile,
    utimens,
)


@pytest.fixture
def site(scratch: Path) -> Iterator[Site]:
    for each in make_site(scratch):
        each.open_to_others()
        yield each


@pytest.fixture(params=["native", "nonative"])
def plane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prepare(site: Site) -> Path:
    site.mount("allow_other", "suid", "dev")
    root = site.mountpoint
    root.chmod(0o777)
    make("file", root / "file", 0o666)
    (root / "file").write_text("text")
    (root / "dir").mkdir()
    (root / "link").symlink_to("file")
    make("char", root / "null", 0o666)
    os.setxattr(root / "file", "user.x", b"y")
    site.umount()
    return root


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda r: (r / "file").chmod(0o600),
    "chown": lambda r: os.chown(r / "file", 1, 1),
    "lchown": lambda r: os.lchown(r / "link", 1, 1),
    "link": lambda r: os.link(r / "file", r / "new"),
    "mkdir": lambda r: (r / "new").mkdir(),
    "mkfifo": lambda r: os.mkfifo(r / "new"),
    "mknod": lambda r: os.mknod(r / "new", stat.S_IFREG | 0o644),
    "open for writing": lambda r: os.open(r / "file", os.O_RDWR),
    "open O_TRUNC": lambda r: os.open(r / "file", os.O_RDONLY | os.O_TRUNC),
    "open O_CREAT": lambda r: os.open(r / "new", os.O_RDONLY | os.O_CREAT),
    "O_TMPFILE": tmpfile,
    "rename": lambda r: os.rename(r / "file", r / "new"),
    "rename exchange": lambda r: renameat2(r / "file", r / "dir", RENAME_EXCHANGE),
    "rmdir": lambda r: (r / "dir").rmdir(),
    "symlink": lambda r: (r / "new").symlink_to("x"),
    "truncate": lambda r: os.truncate(r / "file", 0),
    "unlink": lambda r: (r / "file").unlink(),
    "utimensat": lambda r: utimens(r / "file", (1, 1), (1, 1)),
    "setxattr": lambda r: os.setxattr(r / "file", "user.x", b"z"),
    "setxattr CREATE": lambda r: os.setxattr(r / "file", "user.x", b"z", os.XATTR_CREATE),
    "removexattr": lambda r: os.removexattr(r / "file", "user.x"),
    "access list": lambda r: os.setxattr(r / "file", ACL_ACCESS, acl("u::rwx,u:5:rwx,g::r-x,m::rwx,o::---")),
    "access W_OK": lambda r: check(LIBC.access(os.fsencode(r / "file"), os.W_OK)),
}


def test_read_only(site: Site, plane: str) -> None:
    root = prepare(site)
    site.mount("allow_other", "ro", plane)
    for name, change in CHANGES.items():
        wanted = (errno.EROFS, errno.EOPNOTSUPP) if name == "O_TMPFILE" else (errno.EROFS,)
        ROOT.gets(wanted, change, root)
        ALICE.gets((*wanted, errno.EACCES, errno.EPERM), change, root)
    ROOT.gets(errno.EEXIST, os.mkdir, root / "dir")  # what exists is said first
    os.close(os.open(root / "file", os.O_RDONLY | os.O_CREAT))
    before = times(root / "file")
    assert (root / "file").read_text() == "text"
    assert os.getxattr(root / "file", "user.x") == b"y"
    assert sorted(os.listdir(root)) == ["dir", "file", "link", "null"]
    assert times(root / "file") == before
    with opened(root / "file", os.O_RDONLY) as file:
        os.fsync(file)
    assert os.statvfs(root).f_flag & os.ST_RDONLY


def test_set_user_id(site: Site, plane: str) -> None:
    root = prepare(site)
    for options, wanted in ((("suid",), 0), ((), ALICE.uid)):
        site.mount("allow_other", plane, *options)
        if not (root / "id").exists():
            shutil.copy("/usr/bin/id", root / "id")
            (root / "id").chmod(0o4755)
        done = subprocess.run(
            [root / "id", "-u"],
            user=ALICE.uid,
            group=ALICE.gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == wanted
        assert bool(os.statvfs(root).f_flag & os.ST_NOSUID) == (not options)
        site.umount()


def test_devices(site: Site, plane: str) -> None:
    root = prepare(site)
    for options in (("dev",), ()):
        site.mount("allow_other", plane, *options)
        if options:
            with opened(root / "null", os.O_WRONLY) as null:
                assert os.write(null, b"gone") == 4
        else:
            ROOT.gets(errno.EACCES, os.open, root / "null", os.O_WRONLY)
            assert os.lstat(root / "null").st_rdev == os.makedev(1, 3)
        site.umount()


def test_execution(site: Site, plane: str) -> None:
    root = prepare(site)
    for options in ((), ("noexec",)):
        site.mount("allow_other", plane, *options)
        if not (root / "true").exists():
            shutil.copy("/bin/true", root / "true")
        if options:
            with pytest.raises(PermissionError):
                subprocess.run([root / "true"], check=True)
            assert not os.access(root / "true", os.X_OK)
        else:
            subprocess.run([root / "true"], check=True)
        site.umount()


@pytest.mark.parametrize("option", ["relatime", "noatime", "nodiratime"])
def test_access_times(site: Site, plane: str, option: str) -> None:
    root = prepare(site)
    site.mount("allow_other", plane, option)
    for name in ("file", "dir"):
        os.utime(root / name, ns=(5, 10**18))
    site.umount()
    site.mount("allow_other", plane, option)
    tick()
    (root / "file").read_text()
    os.listdir(root / "dir")
    assert (times(root / "file").atime == 5) == (option == "noatime")
    assert (times(root / "dir").atime == 5) == (option != "relatime")


def test_whose_and_how_it_looks(site: Site) -> None:
    """uid=, gid= and umask= hold for everything, however it was made, and change nothing that is stored."""
    root = prepare(site)
    site.mount("allow_other", "uid=1234", "gid=2345", "umask=027")
    (root / "new link").symlink_to("file")
    (root / "new").write_text("x")
    (root / "new dir").mkdir()
    os.setxattr(root / "new", "user.x", b"y")
    (root / "new").chmod(0o600)
    seen = {path.name: os.lstat(path) for path in root.iterdir()}
    assert {(info.st_uid, info.st_gid) for info in seen.values()} == {(1234, 2345)}
    assert {oct(info.st_mode & 0o7777) for name, info in seen.items() if "link" not in name} == {"0o750"}
    site.umount()
    site.mount("allow_other")
    assert {os.lstat(path).st_uid for path in root.iterdir()} == {0}
    assert mode_of(root / "new") == 0o600


def test_every_write_is_synced(site: Site) -> None:
    root = prepare(site)
    site.mount("allow_other", "sync", "commit=1h")
    (root / "new").write_text("kept")
    site.kill()
    site.allow("")
    site.detach_dead()
    site.mount("allow_other")
    assert (root / "new").read_text() == "kept"
