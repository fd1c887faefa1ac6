"""Every operation of the mount, by the system calls that ordinary programs make.

Who may do what is in test_mount_rights.py, the daemon in test_mount_daemon.py.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.mounted import Site

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda exc: exc.errno == number)


# -- names


def test_a_file_is_written_read_and_survives_remounting(site: Site, mnt: Path) -> None:
    data = os.urandom(1_000_003)
    (mnt / "file").write_bytes(data)
    assert (mnt / "file").read_bytes() == data
    site.umount()
    assert os.listdir(mnt) == []
    site.mount()
    assert (mnt / "file").read_bytes() == data


def test_absent_names_stay_absent_and_appear_when_made(mnt: Path) -> None:
    for _ in range(3):
        assert not (mnt / "name").exists()
    (mnt / "name").touch()
    assert (mnt / "name").exists()
    (mnt / "name").unlink()
    assert not (mnt / "name").exists()
    (mnt / "other").touch()
    (mnt / "other").rename(mnt / "name")
    assert (mnt / "name").exists()
    assert not (mnt / "other").exists()


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe", b"a" * 255, "ü€𝄞".encode(), b"new\nline", b" ", b"-rf", b"%s%n", b"\\"],
    ids=["not UTF-8", "255 bytes", "unicode", "newline", "blank", "dash", "format", "backslash"],
)
def test_any_name_is_kept(site: Site, mnt: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(mnt), name)
    with open(path, "xb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(mnt)) == [name]
    site.umount()
    site.mount()
    assert os.listdir(os.fsencode(mnt)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name


def test_a_name_of_256_bytes_is_too_long(mnt: Path) -> None:
    with refused(errno.ENAMETOOLONG):
        (mnt / ("a" * 256)).touch()
    with refused(errno.ENAMETOOLONG):
        (mnt / ("a" * 256)).stat()


def test_directories(mnt: Path) -> None:
    links = mnt.stat().st_nlink
    (mnt / "d").mkdir(mode=0o750)
    assert stat.S_IMODE((mnt / "d").stat().st_mode) == 0o750 & ~_umask()
    assert mnt.stat().st_nlink == links + 1
    with refused(errno.EEXIST):
        (mnt / "d").mkdir()
    (mnt / "d" / "f").touch()
    with refused(errno.ENOTEMPTY):
        (mnt / "d").rmdir()
    (mnt / "d" / "f").unlink()
    (mnt / "d").rmdir()
    assert mnt.stat().st_nlink == links
    with refused(errno.ENOENT):
        (mnt / "d").rmdir()
    (mnt / "f").touch()
    with refused(errno.ENOTDIR):
        (mnt / "f").rmdir()
    with refused(errno.ENOTDIR):
        (mnt / "f" / "x").touch()
    with refused(errno.EISDIR):
        os.unlink(mnt)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_deep_path(mnt: Path) -> None:
    descriptor = os.open(mnt, os.O_RDONLY)
    try:
        for _ in range(200):
            os.mkdir("d" * 60, dir_fd=descriptor)
            below = os.open("d" * 60, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        with open(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "w", encoding="ascii") as file:
            file.write("deep")
    finally:
        os.close(descriptor)
    subprocess.run(["rm", "-rf", str(mnt / ("d" * 60))], check=True)
    assert os.listdir(mnt) == []


def test_symbolic_links(mnt: Path) -> None:
    (mnt / "target").write_text("there")
    (mnt / "link").symlink_to("target")
    assert (mnt / "link").read_text() == "there"
    assert os.readlink(mnt / "link") == "target"
    assert os.lstat(mnt / "link").st_size == len("target")
    long = "x" * 4095
    os.symlink(long, mnt / "long")
    assert os.readlink(mnt / "long") == long
    (mnt / "loop").symlink_to("loop")
    with refused(errno.ELOOP):
        (mnt / "loop").stat()
    with refused(errno.EINVAL):
        os.readlink(mnt / "target")


def test_hard_links(mnt: Path) -> None:
    (mnt / "a").write_text("one")
    os.link(mnt / "a", mnt / "b")
    assert (mnt / "a").stat().st_nlink == 2
    assert (mnt / "a").stat().st_ino == (mnt / "b").stat().st_ino
    with (mnt / "b").open("a") as file:
        file.write(" two")
    assert (mnt / "a").read_text() == "one two"
    (mnt / "a").unlink()
    assert (mnt / "b").stat().st_nlink == 1
    with refused(errno.EPERM):
        os.link(mnt, mnt / "d")
    with refused(errno.EEXIST):
        os.link(mnt / "b", mnt / "b")


def test_special_files(mnt: Path) -> None:
    os.mkfifo(mnt / "fifo", 0o600)
    os.mknod(mnt / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(mnt / "disk", 0o600 | stat.S_IFBLK, os.makedev(300, 70000))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mnt / "socket"))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(mnt / "socket"))
    assert stat.S_ISFIFO((mnt / "fifo").stat().st_mode)
    assert (mnt / "null").stat().st_rdev == os.makedev(1, 3)
    assert (mnt / "disk").stat().st_rdev == os.makedev(300, 70000)
    assert stat.S_ISSOCK((mnt / "socket").stat().st_mode)
    with refused(errno.EACCES):  # nodev
        (mnt / "null").open("rb")
    reader = os.open(mnt / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(mnt / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


# -- rename


def test_rename_replaces(mnt: Path) -> None:
    (mnt / "a").write_text("a")
    (mnt / "b").write_text("b")
    with (mnt / "b").open() as old:
        (mnt / "a").rename(mnt / "b")
        assert old.read() == "b"  # a file that is open outlives its name
        assert os.fstat(old.fileno()).st_nlink == 0
    assert (mnt / "b").read_text() == "a"
    assert os.listdir(mnt) == ["b"]


def test_rename_flags(mnt: Path) -> None:
    (mnt / "a").write_text("a")
    (mnt / "b").write_text("b")
    with refused(errno.EEXIST):
        renameat2(mnt / "a", mnt / "b", 1)
    renameat2(mnt / "a", mnt / "b", 2)
    assert ((mnt / "a").read_text(), (mnt / "b").read_text()) == ("b", "a")
    renameat2(mnt / "a", mnt / "c", 1)
    assert sorted(os.listdir(mnt)) == ["b", "c"]
    with refused(errno.ENOENT):
        renameat2(mnt / "b", mnt / "nowhere", 2)
    with refused(errno.EINVAL):
        renameat2(mnt / "b", mnt / "c", 3)


def test_directories_move(mnt: Path) -> None:
    (mnt / "x" / "y").mkdir(parents=True)
    (mnt / "z").mkdir()
    (mnt / "x" / "y" / "f").write_text("moved")
    (mnt / "x" / "y").rename(mnt / "z" / "y")
    assert (mnt / "z" / "y" / "f").read_text() == "moved"
    assert (mnt / "z" / "y" / ".." / "y" / "f").read_text() == "moved"
    assert ((mnt / "x").stat().st_nlink, (mnt / "z").stat().st_nlink) == (2, 3)
    with refused(errno.EINVAL):
        (mnt / "z").rename(mnt / "z" / "y" / "below")
    with refused(errno.ENOTEMPTY):
        (mnt / "x").rename(mnt / "z")
    (mnt / "f").touch()
    with refused(errno.EISDIR):
        (mnt / "f").rename(mnt / "x")
    with refused(errno.ENOTDIR):
        (mnt / "x").rename(mnt / "f")
    renameat2(mnt / "f", mnt / "z", 2)
    assert (mnt / "f" / "y" / "f").read_text() == "moved"


# -- data


def test_unlinked_but_open(site: Site, mnt: Path) -> None:
    with (mnt / "gone").open("w+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        (mnt / "gone").unlink()
        assert os.listdir(mnt) == []
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"x" * 100_000
        file.truncate(10)
        assert os.fstat(file.fileno()).st_size == 10
        assert site.status()["files"] == 2
    subprocess.run(["sync", "-f", str(mnt)], check=True)
    assert site.status()["files"] == 1


def test_an_unlinked_directory_that_is_open(mnt: Path) -> None:
    (mnt / "d").mkdir()
    descriptor = os.open(mnt / "d", os.O_RDONLY)
    (mnt / "d").rmdir()
    assert os.listdir(descriptor) == []
    with refused(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)


def test_sparse_files(mnt: Path) -> None:
    with (mnt / "sparse").open("w+b") as file:
        file.seek(1 << 40)
        file.write(b"end")
        file.seek(1 << 30)
        file.write(b"middle")
        file.flush()
        assert os.fstat(file.fileno()).st_size == (1 << 40) + 3
        file.seek(0)
        assert file.read(10000) == bytes(10000)
        os.fsync(file.fileno())
        assert os.stat(mnt / "sparse").st_blocks <= 64
        file.seek((1 << 30) - 2)
        assert file.read(10) == b"\0\0middle\0\0"
        file.truncate((1 << 30) + 3)
        file.seek(1 << 30)
        assert file.read() == b"mid"
        file.truncate((1 << 30) + 6)
        file.seek(1 << 30)
        assert file.read() == b"mid\0\0\0"


def test_truncating_on_open(mnt: Path) -> None:
    (mnt / "f").write_text("long text")
    with (mnt / "f").open("w") as file:
        assert os.fstat(file.fileno()).st_size == 0
        file.write("new")
    assert (mnt / "f").read_text() == "new"
    os.truncate(mnt / "f", 1)
    assert (mnt / "f").read_text() == "n"


def test_exclusive_creation(mnt: Path) -> None:
    os.close(os.open(mnt / "f", os.O_CREAT | os.O_EXCL))
    with refused(errno.EEXIST):
        os.open(mnt / "f", os.O_CREAT | os.O_EXCL)


def test_direct_io(mnt: Path) -> None:
    page = mmap.mmap(-1, 1 << 20)
    page.write(os.urandom(1 << 20))
    descriptor = os.open(mnt / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwritev(descriptor, [page], 0) == 1 << 20
        assert os.pwritev(descriptor, [memoryview(page)[:4096]], 3 << 20) == 4096
        assert (mnt / "direct").stat().st_size == (3 << 20) + 4096
        with (mnt / "direct").open("rb") as buffered:  # the other way is the same file
            assert buffered.read(1 << 20) == page[:]
        with (mnt / "direct").open("r+b") as buffered:
            buffered.write(b"B" * 4096)
        back = mmap.mmap(-1, 1 << 20)
        assert os.preadv(descriptor, [back], 0) == 1 << 20
        assert back[:4096] == b"B" * 4096
        assert back[4096:] == page[4096:]
    finally:
        os.close(descriptor)


def test_shared_mappings(mnt: Path) -> None:
    with (mnt / "mapped").open("w+b") as file:
        file.truncate(1 << 20)
        with mmap.mmap(file.fileno(), 1 << 20) as first, mmap.mmap(file.fileno(), 1 << 20) as second:
            first[5000:5005] = b"hello"
            assert second[5000:5005] == b"hello"
            os.pwrite(file.fileno(), b"there", 9000)
            assert first[9000:9005] == b"there"
            first.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"hello"


APPEND = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(300):
    os.write(descriptor, b"%s %05d\\n" % (sys.argv[2].encode(), number))
"""


def test_appending_from_several_processes(mnt: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(mnt / "log"), name]) for name in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = (mnt / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {number:05}" for name in "abcd" for number in range(300))


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        (fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks(mnt: Path, kind: str) -> None:
    def try_lock() -> int:
        return subprocess.run([sys.executable, "-c", LOCK, str(mnt / "f"), kind]).returncode

    (mnt / "f").touch()
    with (mnt / "f").open("r+b") as file:
        (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
        assert try_lock() == 7
    assert try_lock() == 0


# -- attributes


@pytest.mark.parametrize("nanoseconds", [0, 1, 1_700_000_000_123_456_789, 4_102_444_800_999_999_999, -1_000_000_001])
def test_times_are_kept_to_the_nanosecond(site: Site, mnt: Path, nanoseconds: int) -> None:
    (mnt / "d").mkdir()
    (mnt / "f").write_text("x")
    os.symlink("x", mnt / "l")
    for name in ("f", "d", "l"):
        os.utime(mnt / name, ns=(nanoseconds, nanoseconds + 7), follow_symlinks=False)
    site.umount()
    site.mount()
    for name in ("f", "d", "l"):
        info = os.lstat(mnt / name)
        assert (info.st_atime_ns, info.st_mtime_ns) == (nanoseconds, nanoseconds + 7), name


def test_what_changes_which_time(mnt: Path) -> None:
    path = mnt / "f"
    path.write_text("x")
    (mnt / "d").mkdir()

    def times() -> tuple[int, int]:
        time.sleep(0.02)  # the kernel's clock for files has ticks of up to 10 ms
        info = path.stat()
        return info.st_mtime_ns, info.st_ctime_ns

    old = 10**18
    os.utime(path, ns=(old, old))
    assert times()[0] == old
    assert times()[1] > old
    before = times()
    path.chmod(0o600)
    assert times()[0] == before[0]
    assert times()[1] > before[1]
    before = times()
    with path.open("r+") as file:
        file.write("y")
    assert times()[0] > before[0]
    assert times()[1] > before[1]
    written = times()
    with path.open() as file:
        file.read()
        assert times() == written
    before = times()
    os.link(path, mnt / "g")
    assert times()[0] == before[0]
    assert times()[1] > before[1]
    before = times()
    path.rename(mnt / "d" / "f")
    (mnt / "d" / "f").rename(path)
    assert times()[0] == before[0]
    directory = mnt.stat().st_mtime_ns
    (mnt / "new").touch()
    assert mnt.stat().st_mtime_ns > directory
    changed = (mnt / "d").stat().st_ctime_ns
    os.utime(mnt / "d", ns=(1, 2))
    assert (mnt / "d").stat().st_ctime_ns > changed


def test_written_times_survive_remounting(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("x")
    seen = (mnt / "f").stat()
    site.umount()
    site.mount()
    now = (mnt / "f").stat()
    assert (now.st_mtime_ns, now.st_ctime_ns, now.st_size) == (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size)


def test_access_times_follow_relatime(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("x")
    os.utime(mnt / "f", ns=(1, 2))
    site.umount()
    site.mount()  # the page cache is gone, so the read arrives
    subprocess.run(["cat", str(mnt / "f")], check=True, capture_output=True)
    first = (mnt / "f").stat().st_atime_ns
    assert first > 2
    site.umount()
    site.mount()
    subprocess.run(["cat", str(mnt / "f")], check=True, capture_output=True)
    assert (mnt / "f").stat().st_atime_ns == first
    os.utime(mnt / "f", ns=(1, 2))
    site.umount()
    site.mount("noatime")
    subprocess.run(["cat", str(mnt / "f")], check=True, capture_output=True)
    assert (mnt / "f").stat().st_atime_ns == 1


def test_statfs(site: Site, mnt: Path) -> None:
    space = os.statvfs(mnt)
    assert space.f_namemax == 255
    assert 0 < space.f_bavail <= space.f_blocks
    below = os.statvfs(site.volume)
    assert space.f_bavail * space.f_frsize == pytest.approx(below.f_bavail * below.f_frsize, rel=0.05)


# -- extended attributes


def test_extended_attributes(site: Site, mnt: Path) -> None:
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    os.symlink("f", mnt / "l")
    for name in ("f", "d"):
        os.setxattr(mnt / name, "user.one", b"\0binary\xff")
        os.setxattr(mnt / name, "user.empty", b"")
    os.setxattr(mnt / "f", "user.large", b"v" * 65536)
    os.setxattr(mnt / "l", "trusted.link", b"own", follow_symlinks=False)
    with refused(errno.EEXIST):
        os.setxattr(mnt / "f", "user.one", b"", os.XATTR_CREATE)
    with refused(errno.ENODATA):
        os.setxattr(mnt / "f", "user.two", b"", os.XATTR_REPLACE)
    os.setxattr(mnt / "d", "user.one", b"new", os.XATTR_REPLACE)
    with refused(errno.E2BIG):
        os.setxattr(mnt / "f", "user.larger", b"v" * 65537)
    site.umount()
    site.mount()
    assert sorted(os.listxattr(mnt / "f")) == ["user.empty", "user.large", "user.one"]
    assert os.getxattr(mnt / "f", "user.one") == b"\0binary\xff"
    assert os.getxattr(mnt / "f", "user.large") == b"v" * 65536
    assert os.getxattr(mnt / "d", "user.one") == b"new"
    assert os.getxattr(mnt / "d", "user.empty") == b""
    assert os.getxattr(mnt / "l", "trusted.link", follow_symlinks=False) == b"own"
    os.removexattr(mnt / "f", "user.one")
    with refused(errno.ENODATA):
        os.getxattr(mnt / "f", "user.one")
    with refused(errno.ENODATA):
        os.removexattr(mnt / "f", "user.one")


def test_file_capabilities(site: Site, mnt: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
    (mnt / "program").write_text("x")
    with refused(errno.ENODATA):
        os.getxattr(mnt / "program", "security.capability")
    os.setxattr(mnt / "program", "security.capability", capability)
    assert os.getxattr(mnt / "program", "security.capability") == capability
    site.umount()
    site.mount()
    assert os.getxattr(mnt / "program", "security.capability") == capability
    with (mnt / "program").open("a") as file:
        file.write("changed")
    with refused(errno.ENODATA):  # a program that was changed has no rights any more
        os.getxattr(mnt / "program", "security.capability")


# -- directories


def test_a_large_directory_is_listed_whole(mnt: Path) -> None:
    names = {f"{number:06}-{'n' * (number % 200)}" for number in range(5000)}
    for name in names:
        os.close(os.open(mnt / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(mnt)) == names
    listed = subprocess.run(["ls", "-a", "-U", str(mnt)], check=True, capture_output=True, text=True).stdout.split("\n")
    assert listed.count(".") == listed.count("..") == 1
    seen = []
    with os.scandir(mnt) as entries:  # what is removed while reading must not hide others
        for position, entry in enumerate(entries):
            seen.append(entry.name)
            if position % 2:
                os.unlink(entry.path)
    assert sorted(seen) == sorted(names)
    assert len(os.listdir(mnt)) == 2500


def test_the_inode_numbers_of_dot_and_dotdot(mnt: Path) -> None:
    (mnt / "d" / "e").mkdir(parents=True)
    text = subprocess.run(["ls", "-ai", str(mnt / "d" / "e")], check=True, capture_output=True, text=True).stdout
    numbers = {line.split()[1]: int(line.split()[0]) for line in text.splitlines()}
    assert numbers == {".": (mnt / "d" / "e").stat().st_ino, "..": (mnt / "d").stat().st_ino}


def test_fsync_of_files_and_directories(site: Site, mnt: Path) -> None:
    before = site.status()["anchored_generation"]
    with (mnt / "f").open("wb") as file:
        file.write(b"durable")
        file.flush()
        os.fsync(file.fileno())
    between = site.status()["anchored_generation"]
    assert between > before
    (mnt / "d").mkdir()
    descriptor = os.open(mnt, os.O_RDONLY)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)
    assert site.status()["anchored_generation"] > between


def test_many_threads_at_once(mnt: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            directory = mnt / f"thread{number}"
            directory.mkdir()
            for step in range(40):
                path = directory / str(step)
                data = os.urandom(1 + step * 997)
                with path.open("wb") as file:
                    file.write(data)
                    if step % 5 == 0:
                        file.flush()
                        os.fsync(file.fileno())
                assert path.read_bytes() == data
                if step % 3 == 0:
                    path.rename(directory / f"moved{step}")
                elif step % 3 == 1:
                    path.unlink()
        except BaseException as exc:
            failures.append(exc)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(mnt.rglob("moved*"))) == 8 * 14


def test_a_read_only_mount(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("x")
    site.umount()
    site.mount("ro")
    assert (mnt / "f").read_text() == "x"
    for action in (
        lambda: (mnt / "f").write_text("y"),
        (mnt / "g").touch,
        (mnt / "f").unlink,
        lambda: os.setxattr(mnt / "f", "user.x", b""),
        lambda: (mnt / "f").chmod(0o600),
    ):
        with refused(errno.EROFS):
            action()
    assert site.status()["read_only"]
