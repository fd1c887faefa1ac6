"""Locks between processes, leases and notification (generic/131, 478, 504, 571; LTP flock, fcntl, inotify).

The kernel keeps locks on a mount itself: one machine has the volume. Byte ranges, whole files, and who frees what.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.posix import LIBC, ROOT, check, make, opened

OFD_GETLK, OFD_SETLK = 36, 37
_FLOCK = "hhqqi4x"


def ofd(descriptor: int, kind: int, start: int = 0, length: int = 0) -> None:
    fcntl.fcntl(descriptor, OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))


def holder(descriptor: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, int, int, int]:
    """F_GETLK: type, start, length and process of the lock in the way."""
    raw = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))
    found = struct.unpack(_FLOCK, raw)
    return found[0], found[2], found[3], found[4]


class Other:
    """Another process, which does one line of Python at a time with `path`."""

    def __init__(self, path: Path) -> None:
        program = (
            "import fcntl, os, struct, sys\n"
            f"path = {os.fspath(path)!r}\n"
            "f = os.open(path, os.O_RDWR)\n"
            "for line in sys.stdin:\n"
            "    try:\n"
            "        exec(line)\n"
            "        print(0, flush=True)\n"
            "    except OSError as exc:\n"
            "        print(exc.errno, flush=True)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self("pass")  # it has opened the file

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def result(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def waits(self) -> bool:
        """Tell whether it sleeps in a lock and not for us."""
        with open(f"/proc/{self.process.pid}/syscall", encoding="ascii") as file:
            number = file.read().split()[0]
        return number in {"72", "73"}  # fcntl, flock on x86-64

    def __call__(self, line: str) -> int:
        self.begin(line)
        return self.result()

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def another(path: Path) -> Iterator[Other]:
    other = Other(path)
    try:
        yield other
    finally:
        other.end()


@pytest.fixture
def file(d: Path) -> Path:
    path = d / "x"
    path.write_bytes(b"x" * 1000)
    return path


def test_flock(file: Path) -> None:
    with opened(file) as mine, another(file) as other:
        fcntl.flock(mine, fcntl.LOCK_SH)
        assert other("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)") == 0
        ROOT.gets(errno.EAGAIN, fcntl.flock, mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert other("fcntl.flock(f, fcntl.LOCK_UN)") == 0
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert other("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)") == errno.EAGAIN
        with opened(file) as second:
            ROOT.gets(errno.EAGAIN, fcntl.flock, second, fcntl.LOCK_SH | fcntl.LOCK_NB)  # of descriptors, not processes
        twin = os.dup(mine)
        os.close(twin)
        assert other("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)") == errno.EAGAIN
        other.begin("fcntl.flock(f, fcntl.LOCK_EX)")
        fcntl.flock(mine, fcntl.LOCK_UN)
        assert other.result() == 0
        other.end()
        fcntl.flock(mine, fcntl.LOCK_EX)  # the end of a process frees its locks


def test_record_locks(file: Path) -> None:
    with opened(file) as mine, another(file) as other:
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
        fcntl.lockf(mine, fcntl.LOCK_SH | fcntl.LOCK_NB, 100, 200)
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)") in {errno.EAGAIN, errno.EACCES}
        assert other("fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 250)") == 0
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 100)") == 0
        assert holder(mine, fcntl.F_WRLCK, 90, 20)[:3] == (fcntl.F_WRLCK, 100, 100)
        assert holder(mine, fcntl.F_WRLCK, 90, 20)[3] == other.process.pid
        assert holder(mine, fcntl.F_RDLCK, 0, 100)[0] == fcntl.F_UNLCK
        fcntl.lockf(mine, fcntl.LOCK_UN, 10, 45)  # splits it
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 45)") == 0
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 44)") in {errno.EAGAIN, errno.EACCES}
        with opened(file):
            pass  # closing any descriptor of the file frees the process's locks
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)") == 0
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)") == 0
        other.end()
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_deadlocks_are_seen(file: Path) -> None:
    with opened(file) as mine, another(file) as other:
        fcntl.lockf(mine, fcntl.LOCK_EX, 10, 0)
        assert other("fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)") == 0
        other.begin("fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)")
        while not other.waits():
            os.sched_yield()
        ROOT.gets(errno.EDEADLK, fcntl.lockf, mine, fcntl.LOCK_EX, 10, 20)
        fcntl.lockf(mine, fcntl.LOCK_UN)
        assert other.result() == 0


def test_locks_of_descriptions(file: Path) -> None:
    """F_OFD_SETLK (generic/478): kept by dup, freed with the last close, unlike record locks."""
    with opened(file) as mine, another(file) as other:
        ofd(mine, fcntl.F_WRLCK, 0, 100)
        with opened(file) as second:
            ROOT.gets(errno.EAGAIN, ofd, second, fcntl.F_RDLCK, 50, 10)
            ofd(second, fcntl.F_WRLCK, 100, 10)
        os.close(os.dup(mine))
        assert other("fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 0)") in {errno.EAGAIN, errno.EACCES}
        assert holder(mine, fcntl.F_RDLCK, 0, 10)[3] == -1
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)") == 0
        ofd(mine, fcntl.F_UNLCK)
        assert other("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)") == 0


def test_locks_need_the_access_mode(file: Path) -> None:
    with opened(file, os.O_RDONLY) as reader, opened(file, os.O_WRONLY) as writer:
        ROOT.gets(errno.EBADF, fcntl.lockf, reader, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ROOT.gets(errno.EBADF, fcntl.lockf, writer, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(reader, fcntl.LOCK_EX)  # has no such rule


def test_locks_outlive_names(file: Path) -> None:
    with opened(file) as mine, another(file) as other:
        fcntl.flock(mine, fcntl.LOCK_EX)
        os.rename(file, file.parent / "y")
        (file.parent / "y").unlink()
        assert other("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)") == errno.EAGAIN
        make("file", file)
        with opened(file) as fresh:
            fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_directories_can_be_locked(d: Path) -> None:
    with opened(d, os.O_RDONLY) as one, opened(d, os.O_RDONLY) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        ROOT.gets(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_one_file_counts_under_all_its_names(file: Path) -> None:
    os.link(file, file.parent / "again")
    with opened(file) as one, opened(file.parent / "again") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        ROOT.gets(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_leases(file: Path) -> None:
    """generic/131, 571: who has one is told of the next opening, which waits."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with opened(file, os.O_RDONLY) as mine:
            fcntl.fcntl(mine, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            assert fcntl.fcntl(mine, fcntl.F_GETLEASE) == fcntl.F_RDLCK
            os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
            ROOT.gets(errno.EAGAIN, os.open, file, os.O_RDWR | os.O_NONBLOCK)
            fcntl.fcntl(mine, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))
        with opened(file, os.O_RDWR) as mine:
            fcntl.fcntl(mine, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            ROOT.gets(errno.EAGAIN, os.open, file, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(mine, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        signal.signal(signal.SIGIO, before)


# -- notification

CREATE, DELETE, MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, ATTRIB, DELETE_SELF = (
    0x100, 0x200, 0x2, 0x8, 0x40, 0x80, 0x4, 0x400,
)  # fmt: skip


def test_inotify(d: Path) -> None:
    (d / "x").write_text("x")
    queue = check(LIBC.inotify_init1(os.O_NONBLOCK))
    check(LIBC.inotify_add_watch(queue, os.fsencode(d), 0xFFF & ~0x31))
    (d / "new").write_text("text")
    (d / "new").chmod(0o600)
    (d / "new").rename(d / "newer")
    (d / "newer").unlink()
    (d / "dir").mkdir()
    (d / "dir").rmdir()
    assert select.select([queue], [], [], 10)[0]
    raw = os.read(queue, 65536)
    os.close(queue)
    events = []
    while raw:
        _, mask, _, length = struct.unpack_from("iIII", raw)
        events.append((mask & 0xFFF, raw[16 : 16 + length].rstrip(b"\0").decode()))
        raw = raw[16 + length :]
    for wanted in (
        (CREATE, "new"), (MODIFY, "new"), (CLOSE_WRITE, "new"), (ATTRIB, "new"), (MOVED_FROM, "new"),
        (MOVED_TO, "newer"), (DELETE, "newer"), (CREATE, "dir"), (DELETE, "dir"),
    ):  # fmt: skip
        assert wanted in events, events


def test_fanotify(d: Path) -> None:
    """Marks on a directory and on the whole mount, with descriptors of what happened."""
    (d / "x").write_text("x")
    for flags, where in ((1, d), (1 | 0x100, d)):  # FAN_MARK_ADD; FAN_MARK_FILESYSTEM
        queue = check(LIBC.fanotify_init(2 | 1, os.O_RDONLY))  # FAN_NONBLOCK, FAN_CLOEXEC
        mask = 0x2 | 0x8 | 0x08000000  # FAN_MODIFY, FAN_CLOSE_WRITE, FAN_EVENT_ON_CHILD
        try:
            check(LIBC.fanotify_mark(queue, flags, ctypes.c_uint64(mask), -100, os.fsencode(where)))
            (d / "x").write_text("changed")
            assert select.select([queue], [], [], 10)[0]
            raw = os.read(queue, 4096)
        finally:
            os.close(queue)
        names = set()
        while raw:
            length, _, _, _, _, descriptor, _ = struct.unpack_from("IBBHQii", raw)
            names.add(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.close(descriptor)
            raw = raw[length:]
        assert os.fspath((d / "x").resolve()) in names


def test_unix_sockets_and_fifos_carry_data(d: Path) -> None:
    """generic/423-like: what a name stands for is the kernel's."""
    here = os.getcwd()
    os.chdir(d)
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("socket")
            listener.listen()
            client.connect("socket")
            client.send(b"hello")
            served, _ = listener.accept()
            with served:
                assert served.recv(10) == b"hello"
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect("socket")
    finally:
        os.chdir(here)
    os.mkfifo(d / "fifo")
    with opened(d / "fifo", os.O_RDWR | os.O_NONBLOCK) as fifo:
        os.write(fifo, b"hello")
        assert os.read(fifo, 10) == b"hello"
    assert os.lstat(d / "fifo").st_size == 0


def test_more_than_one_machine_word(d: Path) -> None:
    with opened(make("file", d / "x")) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 2**62)
        assert holder(descriptor, fcntl.F_RDLCK, 2**62)[0] == fcntl.F_UNLCK
        value = ctypes.c_int64(2**63 - 1).value
        fcntl.fcntl(descriptor, fcntl.F_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, value, 1, 0))
        ROOT.gets(
            (errno.EOVERFLOW, errno.EINVAL),
            fcntl.fcntl, descriptor, fcntl.F_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, value, 2, 0),
        )  # fmt: skip
