"""What a file system tells of itself, and calls about the whole of it: statfs, statx, sync, mounts, user namespaces,
ioctl (generic/120, 423, 528, 645-656; LTP statx, statfs, syncfs, fsync, ioctl, mount_setattr).

Also pins what a mount refuses: docs/POSIX.md, "What cannot hold".
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.mounted import as_nobody
from tests.support.posix import (
    ALICE,
    AT_EMPTY_PATH,
    AT_FDCWD,
    KINDS,
    LIBC,
    REALTIME_COARSE,
    RENAME_EXCHANGE,
    ROOT,
    STATX_BTIME,
    User,
    changes,
    check,
    copy_file_range,
    fallocate,
    make,
    opened,
    renameat2,
    statx,
    sync,
    tick,
)

# -- statfs


def test_statfs(d: Path) -> None:
    info = os.statvfs(d)
    assert (info.f_namemax, info.f_frsize) == (255, info.f_bsize)
    assert info.f_bsize in {1024, 2048, 4096}
    assert 0 < info.f_bavail <= info.f_bfree <= info.f_blocks
    assert 0 < info.f_favail <= info.f_ffree <= info.f_files
    with opened(make("file", d / "x"), os.O_RDONLY) as descriptor:
        assert os.fstatvfs(descriptor)[:2] == info[:2]
    subprocess.run(["df", "-i", d], check=True, capture_output=True)


def test_statfs_counts(d: Path, fs: Place) -> None:
    (d / "x").write_bytes(os.urandom(4 << 20))
    sync(d)
    before = os.statvfs(d)
    make("dir", d / "many")
    for number in range(100):
        make("file", d / "many" / str(number))
    (d / "x").unlink()
    sync(d)
    if fs.is_fspf:  # on ext4 others make and remove files meanwhile
        fs.remount()
        after = os.statvfs(d)
        assert after.f_files - after.f_ffree == before.f_files - before.f_ffree + 100
        assert (after.f_blocks - after.f_bfree) * after.f_frsize < (before.f_blocks - before.f_bfree) * before.f_frsize


def test_blocks_are_counted(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 100_000)
    sync(d)
    info = path.stat()
    assert info.st_blksize in {4096, 131072}
    assert 100_000 <= info.st_blocks * 512 <= 110_000 + 8192
    with opened(path) as descriptor:
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, 1 << 40)
        os.fsync(descriptor)
    assert path.stat().st_blocks <= 8


# -- statx


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_of_birth(d: Path, fs: Place, kind: str) -> None:
    """generic/528."""
    begin = time.clock_gettime_ns(REALTIME_COARSE)
    path = make(kind, d / "x")
    born = statx(path)
    if fs.kind == "nonative":
        assert not born.mask & STATX_BTIME  # pyfuse3 has no statx
        return
    assert begin - 10**7 <= born.btime_ns <= time.time_ns()
    tick()
    if kind != "symlink":
        path.chmod(0o600)
    os.utime(path, ns=(1, 1), follow_symlinks=False)
    os.rename(path, d / "y")
    assert statx(d / "y").btime_ns == born.btime_ns
    if kind == "file":
        fs.remount()
        assert statx(d / "y").btime_ns == born.btime_ns


def test_statx_agrees_with_stat(d: Path) -> None:
    for kind in KINDS:
        path = make(kind, d / kind)
        new, old = statx(path), os.lstat(path)
        assert (new.mode, new.nlink, new.ino, new.size, new.blocks, new.mtime_ns) == (
            old.st_mode, old.st_nlink, old.st_ino, old.st_size, old.st_blocks, old.st_mtime_ns,
        )  # fmt: skip


# -- sync


def test_syncing(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 10_000)
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with opened(path, flags) as descriptor, changes((path, "")):
            os.fsync(descriptor)
            os.fdatasync(descriptor)
            check(LIBC.syncfs(descriptor))
    with opened(path) as descriptor:
        for mode in (1, 2, 4, 7):
            check(LIBC.sync_file_range(descriptor, 0, 0, mode))
        ROOT.gets(errno.EINVAL, lambda: check(LIBC.sync_file_range(descriptor, -1, 0, 2)))
        ROOT.gets(errno.EINVAL, lambda: check(LIBC.sync_file_range(descriptor, 0, 0, 64)))
    with opened(d, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    make("fifo", d / "fifo")
    with opened(d / "fifo", os.O_RDWR) as descriptor:
        ROOT.gets(errno.EINVAL, os.fsync, descriptor)
    with opened(path, os.O_PATH) as descriptor:
        ROOT.gets(errno.EBADF, os.fsync, descriptor)
    sync(d)


# -- mounts


def test_a_mountpoint_inside_is_busy(d: Path) -> None:
    """pjdfstest rmdir/13, rename/20, unlink/13 (EBUSY)."""
    (d / "mnt").mkdir()
    (d / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", d / "mnt"], check=True)
    try:
        ROOT.gets(errno.EBUSY, os.rmdir, d / "mnt")
        ROOT.gets(errno.EBUSY, os.rename, d / "mnt", d / "new")
        ROOT.gets(errno.EBUSY, os.rename, d / "other", d / "mnt")
        ROOT.gets(errno.EBUSY, renameat2, d / "other", d / "mnt", RENAME_EXCHANGE)
        make("file", d / "file")
        ROOT.gets(errno.EXDEV, os.rename, d / "file", d / "mnt" / "file")
        ROOT.gets(errno.EXDEV, os.link, d / "file", d / "mnt" / "file")
    finally:
        subprocess.run(["umount", d / "mnt"], check=True)
    (d / "mnt").rmdir()


def test_bind_mounts(d: Path) -> None:
    (d / "x").mkdir()
    (d / "y").mkdir()
    make("file", d / "x" / "file")
    subprocess.run(["mount", "--bind", d / "x", d / "y"], check=True)
    try:
        assert (d / "y" / "file").stat() == (d / "x" / "file").stat()
        ROOT.gets(errno.EXDEV, os.rename, d / "y" / "file", d / "file")  # two mounts
        subprocess.run(["mount", "-o", "remount,bind,ro", d / "y"], check=True)
        ROOT.gets(errno.EROFS, os.unlink, d / "y" / "file")
        (d / "x" / "file").write_text("x")
        assert (d / "y" / "file").read_text() == "x"
    finally:
        subprocess.run(["umount", d / "y"], check=True)


def test_an_upper_layer_of_overlayfs(d: Path, elsewhere: Path, fs: Place) -> None:
    """generic/overlay: what containers do. It needs whiteouts, trusted attributes, file types and exchange."""
    if fs.kind == "nonative":
        return  # no RENAME_WHITEOUT and no O_TMPFILE: docs/POSIX.md
    for name in ("lower", "upper", "work", "merged"):
        (d / name).mkdir()
    lower = elsewhere / "lower"
    lower.mkdir()
    (lower / "dir").mkdir()
    for name in ("kept", "removed", "renamed", "dir/changed"):
        (lower / name).write_text(name)
    merged = d / "merged"
    options = f"lowerdir={lower},upperdir={d / 'upper'},workdir={d / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, merged], check=True)
    try:
        (merged / "removed").unlink()
        (merged / "renamed").rename(merged / "new")
        (merged / "dir" / "changed").write_text("changed")
        shutil_rmtree(merged / "dir")
        (merged / "dir").mkdir()
        (merged / "dir" / "again").write_text("again")
        assert sorted(os.listdir(merged)) == ["dir", "kept", "new"]
        assert os.listdir(merged / "dir") == ["again"]
    finally:
        subprocess.run(["umount", merged], check=True)
    assert stat.S_ISCHR(os.lstat(d / "upper" / "removed").st_mode)
    assert (d / "upper" / "new").read_text() == "renamed"
    shutil_rmtree(d / "work")


def shutil_rmtree(path: Path) -> None:
    subprocess.run(["rm", "-rf", path], check=True)


# -- user namespaces


def test_inside_a_user_namespace(d: Path) -> None:
    """Owners outside of the map look like nobody, and cannot be given files."""
    make("file", d / "x", 0o666)
    os.chown(d / "x", 1234, 1234)
    seen = subprocess.run(
        ["unshare", "-U", "--map-root-user", "stat", "-c", "%u %g", d / "x"], capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == ["65534", "65534"]
    done = subprocess.run(["unshare", "-U", "--map-root-user", "chown", "77", d / "x"], capture_output=True, text=True)
    assert done.returncode != 0
    d.chmod(0o777)
    subprocess.run(["unshare", "-U", "--map-root-user", "touch", d / "made"], check=True)
    assert os.stat(d / "made").st_uid == 0


def test_supplementary_groups(d: Path) -> None:
    """More groups than fit a request of FUSE: the kernel checks them itself."""
    make("file", d / "x", 0o640)
    os.chown(d / "x", 1, 4242)
    many = tuple(range(3000, 3100))
    User(ALICE.uid, ALICE.gid, (*many, 4242))((d / "x").read_bytes)
    User(ALICE.uid, ALICE.gid, many).gets(errno.EACCES, (d / "x").read_bytes)
    assert as_nobody("open(sys.argv[1]).read()", d / "x", groups=(4242,)) == 0
    make("file", d / "set", 0o755)
    os.chown(d / "set", ALICE.uid, 3050)
    User(ALICE.uid, ALICE.gid, many)((d / "set").chmod, 0o2755)
    assert (d / "set").stat().st_mode & stat.S_ISGID


# -- what FUSE cannot


def _ioctl(number: int, argument: bytes) -> Callable[[Path], object]:
    def call(path: Path) -> object:
        with opened(path, os.O_RDWR) as descriptor:
            return fcntl.ioctl(descriptor, number, argument)

    return call


def _idmapped(path: Path) -> None:
    """mount_setattr(MOUNT_ATTR_IDMAP) of a detached copy of the mount."""
    holder = subprocess.Popen(["unshare", "-U", "--map-root-user", "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        tree = check(LIBC.syscall(428, AT_FDCWD, os.fsencode(path.parent), 1 | os.O_CLOEXEC))
        with opened(f"/proc/{holder.pid}/ns/user", os.O_RDONLY) as namespace:
            try:
                check(LIBC.syscall(442, tree, b"", AT_EMPTY_PATH, struct.pack("QQQQ", 0x00100000, 0, 0, namespace), 32))
            finally:
                os.close(tree)
    finally:
        for pipe in (holder.stdin, holder.stdout):
            if pipe is not None:
                pipe.close()
        holder.wait()


def _clone(path: Path) -> None:
    with opened(path) as source, opened(path.parent / "clone", os.O_CREAT | os.O_RDWR) as target:
        fcntl.ioctl(target, 0x40049409, source)


def _falloc(mode: int) -> Callable[[Path], object]:
    def call(path: Path) -> None:
        with opened(path) as descriptor:
            fallocate(descriptor, mode, 0, 4096)

    return call


def _swap(path: Path) -> None:
    path.write_bytes(bytes(40960))
    path.chmod(0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    check(LIBC.swapon(os.fsencode(path), 0))
    check(LIBC.swapoff(os.fsencode(path)))


def _quota(path: Path) -> None:
    with opened(path, os.O_RDONLY) as descriptor:  # quotactl_fd(2), Q_GETFMT
        check(LIBC.syscall(443, descriptor, 0x800004 << 8, 0, ctypes.create_string_buffer(256)))


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[int, ...]]] = {
    "FS_IOC_GETFLAGS (lsattr)": (_ioctl(0x80086601, bytes(8)), (errno.ENOTTY,)),
    "FS_IOC_SETFLAGS (chattr)": (_ioctl(0x40086602, bytes(8)), (errno.ENOTTY,)),
    "FS_IOC_FIEMAP": (_ioctl(0xC020660B, bytes(32)), (errno.EOPNOTSUPP,)),
    "FICLONE (cp --reflink=always)": (_clone, (errno.EOPNOTSUPP,)),
    "idmapped mount": (_idmapped, (errno.EINVAL,)),
    "COLLAPSE_RANGE": (_falloc(8), (errno.EOPNOTSUPP,)),
    "INSERT_RANGE": (_falloc(32), (errno.EOPNOTSUPP,)),
    "quotactl": (_quota, (errno.ENOSYS, errno.ESRCH, errno.ENODEV)),
    "swapon": (_swap, (errno.EINVAL, errno.EPERM)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_mount_refuses(d: Path, fs: Place, what: str) -> None:
    """Each with an error that programs expect; nothing is logged, nothing changes."""
    if not fs.is_fspf:
        return
    path = d / "x"
    path.write_bytes(b"x" * 8192)
    call, numbers = REFUSED[what]
    ROOT.gets(numbers, call, path)


@pytest.mark.parametrize("what", ["fallocate", "PUNCH_HOLE"])
def test_what_needs_the_data_plane(d: Path, fs: Place, what: str) -> None:
    """copy_file_range falls back to reading and writing inside the kernel, posix_fallocate inside the C library."""
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x" * 8192)
        wanted = fs.kind != "nonative"
        assert fs.can(fallocate, descriptor, 3 if what == "PUNCH_HOLE" else 0, 0, 4096) == wanted
        os.posix_fallocate(descriptor, 0, 20_000)
        assert os.fstat(descriptor).st_size == 20_000
        assert copy_file_range(descriptor, 4096, descriptor, 30_000, 4096) == 4096


def test_a_descriptor_table_of_many(d: Path) -> None:
    """LTP fs/openfile: a thousand open files at once."""
    for number in range(1000):
        make("file", d / str(number))
    descriptors = [os.open(d / str(number), os.O_RDWR) for number in range(1000)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    for number, descriptor in enumerate(descriptors):
        assert os.pread(descriptor, 10, 0) == b"%d" % number
        os.close(descriptor)


def test_posix_fallocate(d: Path) -> None:
    """pjdfstest posix_fallocate/00."""
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as descriptor:
        with changes((d / "x", "mc")):
            os.posix_fallocate(descriptor, 0, 567)
        assert os.fstat(descriptor).st_size == 567
        os.write(descriptor, b"x" * 100)
        os.posix_fallocate(descriptor, 20_000, 3210)
        assert os.fstat(descriptor).st_size == 23_210
        assert os.pread(descriptor, 200, 0) == b"x" * 100 + bytes(100)
        for offset, length in ((-1, 10), (0, 0), (0, -1)):
            ROOT.gets(errno.EINVAL, os.posix_fallocate, descriptor, offset, length)
        ROOT.gets(errno.EFBIG, os.posix_fallocate, descriptor, 2**63 - 10, 20)
    with opened(d / "x", os.O_RDONLY) as descriptor:
        ROOT.gets(errno.EBADF, os.posix_fallocate, descriptor, 0, 10)
    make("fifo", d / "fifo")
    with opened(d / "fifo", os.O_RDWR) as descriptor:
        ROOT.gets(errno.ESPIPE, os.posix_fallocate, descriptor, 0, 10)


def test_a_running_program_is_not_written(d: Path) -> None:
    path = d / "sleep"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    with opened(path, os.O_RDWR):
        with pytest.raises(OSError) as caught:
            subprocess.run([path, "0"], check=True)
        assert caught.value.errno == errno.ETXTBSY
    subprocess.run([path, "0"], check=True)
    assert ctypes.sizeof(ctypes.c_long) == 8
