"""Who may do what on a mount: permissions, groups, set-id bits, access control lists, the umask.

The arithmetic of access control lists alone is in tests/unit/mount.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.mounted import Site, as_nobody, need_fuse

NOBODY = 65534
SOMEONE = 1234


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda exc: exc.errno == number)


@pytest.fixture
def shared(site: Site, mnt: Path) -> Path:
    """A mount that other users reach and may write to."""
    site.open_to_others()
    mnt.chmod(0o777)
    return mnt


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_only_the_owner_reaches_a_mount_without_allow_other(site: Site) -> None:
    site.mount()
    site.open_to_others()
    assert as_nobody("os.stat(sys.argv[1])", site.mountpoint) == errno.EACCES


def test_permissions_are_enforced(shared: Path) -> None:
    (shared / "private").write_text("x")
    (shared / "private").chmod(0o600)
    (shared / "closed").mkdir(mode=0o700)
    assert as_nobody("open(sys.argv[1])", shared / "private") == errno.EACCES
    assert as_nobody("os.listdir(sys.argv[1])", shared / "closed") == errno.EACCES
    assert as_nobody("os.chmod(sys.argv[1], 0o777)", shared / "private") == errno.EPERM
    assert as_nobody("os.chown(sys.argv[1], 65534, 65534)", shared / "private") == errno.EPERM
    assert as_nobody("os.mknod(sys.argv[1], 0o20600, 0x103)", shared / "null") == errno.EPERM
    (shared / "private").chmod(0o604)
    assert as_nobody("open(sys.argv[1])", shared / "private") == 0
    assert as_nobody("sys.exit(0 if not os.access(sys.argv[1], os.W_OK) else 1)", shared / "private") == 0


def test_what_is_made_belongs_to_its_maker(shared: Path) -> None:
    code = "os.umask(0o027); open(sys.argv[1] + '/f', 'x'); os.mkdir(sys.argv[1] + '/d'); os.symlink('f', sys.argv[1] + '/l')"
    assert as_nobody(code, shared) == 0
    for name, expected in (("f", 0o640), ("d", 0o750), ("l", 0o777)):
        info = os.lstat(shared / name)
        assert (info.st_uid, info.st_gid, mode(shared / name)) == (NOBODY, NOBODY, expected), name


def test_supplementary_groups_count(shared: Path) -> None:
    (shared / "f").write_text("x")
    os.chown(shared / "f", 0, SOMEONE)
    (shared / "f").chmod(0o640)
    assert as_nobody("open(sys.argv[1])", shared / "f") == errno.EACCES
    assert as_nobody("open(sys.argv[1])", shared / "f", groups=[SOMEONE]) == 0


def test_sticky_directories(shared: Path) -> None:
    (shared / "tmp").mkdir()
    (shared / "tmp").chmod(0o1777)
    (shared / "tmp" / "f").touch()
    assert as_nobody("os.unlink(sys.argv[1])", shared / "tmp" / "f") == errno.EPERM
    assert as_nobody("os.rename(sys.argv[1], sys.argv[1] + 'x')", shared / "tmp" / "f") == errno.EPERM


def test_set_group_id_directories_pass_the_group_on(shared: Path) -> None:
    (shared / "team").mkdir()
    os.chown(shared / "team", 0, SOMEONE)
    (shared / "team").chmod(0o2777)
    code = "os.umask(0); open(sys.argv[1] + '/f', 'x'); os.mkdir(sys.argv[1] + '/d')"
    assert as_nobody(code, shared / "team") == 0
    assert (shared / "team" / "f").stat().st_gid == SOMEONE
    assert (shared / "team" / "d").stat().st_gid == SOMEONE
    assert mode(shared / "team" / "d") == 0o2777
    assert mode(shared / "team" / "f") == 0o666


@pytest.mark.parametrize("before", [0o4777, 0o2777, 0o6777])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("f = os.open(sys.argv[1], os.O_WRONLY); os.write(f, b'new')", id="write"),
        pytest.param(
            "f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND); os.write(f, b'new'); os.close(f)", id="append"
        ),
        pytest.param("os.truncate(sys.argv[1], 1)", id="truncate"),
        pytest.param("open(sys.argv[1], 'wb')", id="truncate on open"),
    ],
)
def test_changing_a_file_takes_its_set_id_bits(shared: Path, before: int, change: str) -> None:
    (shared / "f").write_text("program")
    (shared / "f").chmod(before)
    assert mode(shared / "f") == before
    assert as_nobody("open(sys.argv[1]).read()", shared / "f") == 0
    assert mode(shared / "f") == before
    code = f"{change}; mode = os.stat(sys.argv[1]).st_mode & 0o7777; sys.exit(mode & 0o6000 and 99)"
    assert as_nobody(code, shared / "f") == 0
    assert mode(shared / "f") == 0o777


def test_set_id_bits_that_came_after_opening_fall_too(shared: Path) -> None:
    (shared / "f").write_text("program")
    (shared / "f").chmod(0o777)
    os.chown(shared / "f", NOBODY, NOBODY)
    code = (
        "f = os.open(sys.argv[1], os.O_WRONLY); os.chmod(sys.argv[1], 0o4777); os.write(f, b'new'); os.close(f); "
        "sys.exit(os.stat(sys.argv[1]).st_mode & 0o6000 and 99)"
    )
    assert as_nobody(code, shared / "f") == 0


def test_changing_the_owner_takes_set_id_bits(shared: Path) -> None:
    (shared / "f").touch()
    (shared / "f").chmod(0o6755)
    os.chown(shared / "f", 1, 1)
    assert mode(shared / "f") == 0o755
    (shared / "d").mkdir()
    (shared / "d").chmod(0o6755)
    os.chown(shared / "d", 1, 1)
    assert mode(shared / "d") == 0o6755


def test_chmod_drops_set_group_id_for_strangers_to_the_group(shared: Path) -> None:
    (shared / "f").touch()
    os.chown(shared / "f", NOBODY, SOMEONE)
    assert as_nobody("os.chmod(sys.argv[1], 0o2755)", shared / "f") == 0
    assert mode(shared / "f") == 0o755
    assert as_nobody("os.chmod(sys.argv[1], 0o2755)", shared / "f", groups=[SOMEONE]) == 0
    assert mode(shared / "f") == 0o2755


def test_root_installs_set_id_programs(shared: Path) -> None:
    source = shared / "source"
    source.write_bytes(b"x" * 100_000)
    subprocess.run(["install", "-m", "4755", str(source), str(shared / "installed")], check=True)
    assert mode(shared / "installed") == 0o4755
    subprocess.run(["cp", "-p", str(shared / "installed"), str(shared / "copied")], check=True)
    assert mode(shared / "copied") == 0o4755


def test_programs_run_and_nosuid_holds(shared: Path) -> None:
    (shared / "script").write_text("#!/bin/sh\nid -u\n")
    (shared / "script").chmod(0o755)
    assert subprocess.run([shared / "script"], capture_output=True, check=True).stdout == b"0\n"
    subprocess.run(["cp", "/usr/bin/id", str(shared / "id")], check=True)
    (shared / "id").chmod(0o4755)
    code = "import subprocess; sys.exit(subprocess.check_output([sys.argv[1], '-u']) != b'65534\\n')"
    assert as_nobody(code, shared / "id") == 0


# -- access control lists


def setfacl(*words: str | Path) -> None:
    try:
        subprocess.run(["setfacl", *map(str, words)], check=True)
    except FileNotFoundError:
        pytest.skip("no-program: setfacl (Debian package acl)")


def getfacl(path: Path) -> list[str]:
    done = subprocess.run(["getfacl", "-cEpn", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_access_lists_are_enforced_and_kept(site: Site, shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "f").chmod(0o600)
    setfacl("-m", f"u:{NOBODY}:r", shared / "f")
    assert as_nobody("open(sys.argv[1])", shared / "f") == 0
    assert as_nobody("open(sys.argv[1], 'r+')", shared / "f") == errno.EACCES
    assert mode(shared / "f") == 0o640
    site.umount()
    site.mount("allow_other")
    assert getfacl(shared / "f") == ["user::rw-", f"user:{NOBODY}:r--", "group::---", "mask::r--", "other::---"]
    (shared / "f").chmod(0o600)  # the mask follows the group bits
    assert as_nobody("open(sys.argv[1])", shared / "f") == errno.EACCES
    (shared / "f").chmod(0o660)
    assert as_nobody("open(sys.argv[1])", shared / "f") == 0
    setfacl("-b", shared / "f")
    assert getfacl(shared / "f") == ["user::rw-", "group::---", "other::---"]
    assert mode(shared / "f") == 0o600
    assert as_nobody("open(sys.argv[1])", shared / "f") == errno.EACCES


def test_default_lists_are_inherited_without_the_umask(shared: Path) -> None:
    (shared / "d").mkdir()
    setfacl("-d", "-m", f"u:{SOMEONE}:rwx,g::rwx,o::-", shared / "d")
    (shared / "d").chmod(0o777)
    code = "os.umask(0o077); os.close(os.open(sys.argv[1] + '/f', os.O_CREAT, 0o666)); os.mkdir(sys.argv[1] + '/sub', 0o777)"
    assert as_nobody(code, shared / "d") == 0
    assert getfacl(shared / "d" / "f") == ["user::rw-", f"user:{SOMEONE}:rwx", "group::rwx", "mask::rw-", "other::---"]
    assert mode(shared / "d" / "f") == 0o660
    entries = ["user::rwx", f"user:{SOMEONE}:rwx", "group::rwx", "mask::rwx", "other::---"]
    assert getfacl(shared / "d" / "sub") == [*entries, *(f"default:{entry}" for entry in entries)]
    assert as_nobody("open(sys.argv[1], 'r+')", shared / "d" / "f", uid=SOMEONE, gid=SOMEONE) == 0
    os.symlink("f", shared / "d" / "l")
    assert mode(shared / "d" / "l") == 0o777


def test_invalid_lists_are_refused(shared: Path) -> None:
    (shared / "f").touch()
    for raw in (b"\x02\0", b"\x02\0\0\0" + b"\xff" * 8, b"\x02\0\0\0" + bytes(24)):
        with refused(errno.EINVAL):
            os.setxattr(shared / "f", "system.posix_acl_access", raw)
    os.setxattr(shared / "f", "system.posix_acl_access", b"\x02\0\0\0")  # an empty one means none
    assert mode(shared / "f") == 0o644


def test_lists_agree_with_those_of_another_file_system(shared: Path, tmp_path: Path) -> None:
    """The same commands on the disk's own file system give the same lists and modes."""
    need_fuse()
    results = []
    for place in (shared / "here", tmp_path / "there"):
        place.mkdir()
        try:
            subprocess.run(["setfacl", "-m", "u:1:r", str(place)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("filesystem: no access control lists on the disk to compare with")
        found = []
        umask = os.umask(0o022)
        try:
            for number, commands in enumerate(
                [
                    [["-m", "u:5:rwx,g:6:r"]],
                    [["-m", "u:5:rwx,g:6:r,m::r"], ["-x", "u:5"]],
                    [["-d", "-m", "u:5:rw,g::r,o::r"]],
                    [["-d", "-m", "g:7:rwx"], ["-m", "g:7:rwx,o::r"]],
                    [["-m", "u::rwx,g::-,o::x"]],
                ]
            ):
                directory = place / str(number)
                directory.mkdir(mode=0o755)
                for command in commands:
                    subprocess.run(["setfacl", *command, str(directory)], check=True)
                os.close(os.open(directory / "file", os.O_CREAT, 0o664))
                (directory / "sub").mkdir(mode=0o2751)
                os.mkfifo(directory / "fifo", 0o622)
                made = (directory, directory / "file", directory / "sub", directory / "fifo")
                found += [(number, path.name, oct(mode(path)), getfacl(path)) for path in made]
                for bits in (0o600, 0o777, 0o671):
                    (directory / "file").chmod(bits)
                    found.append((number, "chmod", oct(mode(directory / "file")), getfacl(directory / "file")))
        finally:
            os.umask(umask)
        results.append(found)
    assert results[0] == results[1]
