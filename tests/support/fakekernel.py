"""The kernel's side of /dev/fuse over a socket pair: sends requests, checks that each is answered once, counts lookups.

What the relay answers is for the tests to judge; volume, plane and control plane around it are `fakemount`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fspf.mount.plane import control_pair
from tests.support import fusewire as w
from tests.support.fusewire import Attr, Entry, Flag, Name, Op

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST: Final = 2 << 20
_PATIENCE_S: Final = 60.0
ROOT: Final = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; *error* is a positive errno, or 0."""

    error: int
    body: bytes

    def check(self, what: str) -> bytes:
        if self.error:
            raise OSError(self.error, os.strerror(self.error), what)
        return self.body


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What the answer to INIT says."""

    minor: int
    max_readahead: int
    flags: Flag
    max_write: int
    max_pages: int
    length: int


@dataclass(slots=True)
class _Pending:
    opcode: int
    nodeid: int
    done: Future[Reply]


class FakeKernel:
    """A kernel that has one file system mounted.

    Attributes:
        device: The other end, for the relay, which takes it over.
        lookups: inode → how often it was looked up and not yet forgotten.
        violations: What a kernel would not have put up with; `close` raises when there are any.
        requests: opcode → how many were sent.
        uid, gid, pid: Who asks.
        no_open, no_opendir, no_create, no_flush: The file system said once that it needs none.
    """

    def __init__(self) -> None:
        self._socket, other = control_pair()  # as large as the relay's own
        self.device = other.detach()
        self.lookups: Counter[int] = Counter()
        self.violations: list[str] = []
        self.requests: Counter[int] = Counter()
        self.notifications: list[tuple[int, bytes]] = []
        self.on_notification: Callable[[int, bytes], None] | None = None
        self.uid = self.gid = 0
        self.pid = 1
        self.umask = 0o022
        self.no_open = self.no_opendir = self.no_create = self.no_flush = False
        self.negotiated: Negotiated | None = None
        self._pending: dict[int, _Pending] = {}
        self._answered: set[int] = set()
        self._unique = 0
        self._lock = threading.Lock()
        self._gone = False
        self._receiver = threading.Thread(target=self._receive, name="fake-kernel", daemon=True)
        self._receiver.start()

    # -- messages

    def send(self, message: bytes) -> None:
        """Send whatever it is."""
        self._socket.send(message)

    def take_unique(self) -> int:
        with self._lock:
            self._unique += 2  # odd ones are interrupts
            return self._unique

    def submit(self, opcode: int, nodeid: int = ROOT, body: bytes = b"", **who: int) -> Future[Reply]:
        """Send a request; the reply comes later. With the relay gone it is ENODEV."""
        unique = self.take_unique()
        done: Future[Reply] = Future()
        self.expect(unique, opcode, nodeid, done)
        caller = {"uid": self.uid, "gid": self.gid, "pid": self.pid} | who
        try:
            self.send(w.request(opcode, unique, nodeid, body, **caller))
        except OSError:
            with self._lock:
                given_up = self._pending.pop(unique, None)
            if given_up is not None:
                done.set_result(Reply(errno.ENODEV, b""))
        return done

    def expect(self, unique: int, opcode: int, nodeid: int, done: Future[Reply]) -> None:
        """Expect one reply with this number."""
        with self._lock:
            self.requests[opcode] += 1
            if self._gone:
                done.set_result(Reply(errno.ENODEV, b""))
            else:
                self._pending[unique] = _Pending(opcode, nodeid, done)

    def call(self, opcode: int, nodeid: int = ROOT, body: bytes = b"", **who: int) -> Reply:
        """Send a request and wait."""
        return self.submit(opcode, nodeid, body, **who).result(_PATIENCE_S)

    def ask(self, opcode: Op, nodeid: int = ROOT, body: bytes = b"", **who: int) -> bytes:
        """Send a request, wait, and raise OSError if it failed."""
        return self.call(opcode, nodeid, body, **who).check(opcode.name.lower())

    def tell(self, opcode: int, nodeid: int, body: bytes, unique: int = 0) -> None:
        """Send what has no reply."""
        with self._lock:
            self.requests[opcode] += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(w.request(opcode, unique, nodeid, body))

    @property
    def waiting(self) -> int:
        """How many requests have no reply yet."""
        with self._lock:
            return len(self._pending)

    def _receive(self) -> None:
        while True:
            try:
                message = self._socket.recv(_MOST)
            except OSError:
                message = b""
            if not message:
                break
            self._take(message)
        with self._lock:
            self._gone = True
            left, self._pending = list(self._pending.values()), {}
        for pending in left:
            pending.done.set_result(Reply(errno.ENODEV, b""))

    def _take(self, message: bytes) -> None:
        if len(message) < w.OUT_HEADER.size:
            self.violations.append(f"a reply of {len(message)} bytes")
            return
        length, error, unique = w.OUT_HEADER.unpack_from(message)
        body = message[w.OUT_HEADER.size :]
        if length != len(message):
            self.violations.append(f"a reply of {len(message)} bytes that says {length}")
        if unique == 0:
            self.notifications.append((error, body))
            if self.on_notification is not None:
                self.on_notification(error, body)
            return
        with self._lock:
            pending = self._pending.pop(unique, None)
            again = unique in self._answered
            self._answered.add(unique)
        if pending is None:
            self.violations.append(f"request {unique} answered {'twice' if again else 'but never sent'}")
            return
        if error > 0 or error < -4095 or (error and body):
            self.violations.append(f"opcode {pending.opcode}: error {error} with {len(body)} bytes")
        if not error:
            self._count_lookups(pending, body)
        pending.done.set_result(Reply(-error, body))

    def _count_lookups(self, pending: _Pending, body: bytes) -> None:
        found: list[int] = []
        try:
            if pending.opcode in w.MAKES_ENTRY:
                found = [Entry.parse(body).ino]
            elif pending.opcode == Op.READDIRPLUS:
                names = w.parse_names(body, plus=True)
                found = [n.entry.ino for n in names if n.entry is not None and n.name not in {b".", b".."}]
        except Exception as exc:  # noqa: BLE001 - told with the other violations
            self.violations.append(f"opcode {pending.opcode}: {exc}")
        with self._lock:
            self.lookups.update(ino for ino in found if ino)

    # -- life

    def init(
        self, *, minor: int = w.MINOR, flags: Flag = w.LINUX_6_18, max_readahead: int = 131072, short: bool = False
    ) -> Negotiated:
        """Negotiate as Linux 6.18 does.

        Args:
            short: Send the 16 bytes that kernels before 7.36 sent.
        """
        body = w.INIT_IN.pack(7, minor, max_readahead, flags & 0xFFFFFFFF, flags >> 32)
        raw = self.ask(Op.INIT, 0, body[:16] if short else body)
        length = len(raw)
        raw = raw.ljust(w.INIT_OUT.size, b"\0")
        f = w.INIT_OUT.unpack(raw)
        self.negotiated = Negotiated(f[1], f[2], Flag(f[3] | f[10] << 32), f[6], f[8], length)
        return self.negotiated

    def close(self) -> None:
        """Go away in the middle of whatever there is, and raise if the other side broke the rules."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        self._socket.close()
        assert not self.violations, self.violations

    def destroy(self) -> None:
        """Unmount: forget everything, say so, wait for all replies."""
        self.forget_all()
        self.call(Op.DESTROY, 0)

    # -- lookups given back

    def _take_lookups(self, ino: int, count: int | None) -> int:
        with self._lock:
            known = self.lookups[ino]
            count = known if count is None else count
            assert count <= known, f"inode {ino} was looked up {known} times"
            self.lookups[ino] -= count
            if not self.lookups[ino]:
                del self.lookups[ino]
            return count

    def forget(self, ino: int, count: int | None = None) -> None:
        """Give back *count* lookups of an inode, or all."""
        taken = self._take_lookups(ino, count)
        if taken:
            self.tell(Op.FORGET, ino, w.FORGET_IN.pack(taken))

    def forget_many(self, inos: list[int]) -> None:
        """Give all lookups of these inodes back in one message."""
        pairs = [(ino, self._take_lookups(ino, None)) for ino in inos]
        body = w.BATCH_FORGET_IN.pack(len(pairs), 0) + b"".join(w.FORGET_ONE.pack(*pair) for pair in pairs)
        self.tell(Op.BATCH_FORGET, 0, body)

    def forget_all(self) -> None:
        inos = list(self.lookups)
        for start in range(0, len(inos), 1000):
            self.forget_many(inos[start : start + 1000])

    def interrupt(self, unique: int) -> None:
        """Ask that a request be given up."""
        self.tell(Op.INTERRUPT, 0, w.INTERRUPT_IN.pack(unique), unique | 1)

    # -- names

    def _entry(self, opcode: Op, parent: int, body: bytes) -> Entry:
        return Entry.parse(self.ask(opcode, parent, body))

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Raises FileNotFoundError, also for a name that is known not to exist."""
        entry = self._entry(Op.LOOKUP, parent, name + b"\0")
        if not entry.ino:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return entry

    def walk(self, path: bytes) -> Entry:
        """Look a path up from the root, name by name."""
        at = ROOT
        entry = None
        for name in path.strip(b"/").split(b"/"):
            entry = self.lookup(at, name)
            at = entry.ino
        assert entry is not None
        return entry

    def create(self, parent: int, name: bytes, mode: int = 0o644) -> Entry:
        """Make a regular file, as open(2) with O_CREAT does after a LOOKUP that found nothing."""
        if not self.no_create:
            body = w.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, stat.S_IFREG | mode, self.umask, 0) + name + b"\0"
            reply = self.call(Op.CREATE, parent, body)
            if reply.error != errno.ENOSYS:
                return Entry.parse(reply.check("create"))
            self.no_create = True
        return self.mknod(parent, name, stat.S_IFREG | mode)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Entry:
        return self._entry(Op.MKNOD, parent, w.MKNOD_IN.pack(mode, rdev, self.umask, 0) + name + b"\0")

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Entry:
        return self._entry(Op.MKDIR, parent, w.MKDIR_IN.pack(mode, self.umask) + name + b"\0")

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        return self._entry(Op.SYMLINK, parent, name + b"\0" + target + b"\0")

    def link(self, ino: int, parent: int, name: bytes) -> Entry:
        return self._entry(Op.LINK, parent, w.LINK_IN.pack(ino) + name + b"\0")

    def tmpfile(self, parent: int, mode: int = 0o600) -> Entry:
        body = w.CREATE_IN.pack(os.O_RDWR | os.O_TMPFILE, stat.S_IFREG | mode, self.umask, 0)
        return self._entry(Op.TMPFILE, parent, body + b"/\0")

    def unlink(self, parent: int, name: bytes) -> None:
        self.ask(Op.UNLINK, parent, name + b"\0")

    def rmdir(self, parent: int, name: bytes) -> None:
        self.ask(Op.RMDIR, parent, name + b"\0")

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        names = name + b"\0" + new_name + b"\0"
        if flags:
            self.ask(Op.RENAME2, parent, w.RENAME2_IN.pack(new_parent, flags, 0) + names)
        else:
            self.ask(Op.RENAME, parent, w.RENAME_IN.pack(new_parent) + names)

    def readlink(self, ino: int) -> bytes:
        return self.ask(Op.READLINK, ino)

    # -- attributes

    def getattr(self, ino: int) -> Attr:
        raw = self.ask(Op.GETATTR, ino, w.GETATTR_IN.pack(0, 0, 0))
        return Attr.parse(raw[w.ATTR_HEAD.size :])

    def statx(self, ino: int) -> bytes:
        return self.ask(Op.STATX, ino, w.STATX_IN.pack(0, 0, 0, 0, 0xFFF))

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        valid: int = 0,
    ) -> Attr:
        given = (
            (w.FATTR_MODE, mode),
            (w.FATTR_UID, uid),
            (w.FATTR_GID, gid),
            (w.FATTR_SIZE, size),
            (w.FATTR_ATIME, atime_ns),
            (w.FATTR_MTIME, mtime_ns),
            (w.FATTR_CTIME, ctime_ns),
        )
        for bit, value in given:
            valid |= bit if value is not None else 0
        times = [divmod(t or 0, 10**9) for t in (atime_ns, mtime_ns, ctime_ns)]
        seconds = [s & (1 << 64) - 1 for s, _ in times]
        body = w.SETATTR_IN.pack(
            valid, 0, 0, size or 0, 0, *seconds, *(n for _, n in times), mode or 0, 0, uid or 0, gid or 0, 0
        )
        raw = self.ask(Op.SETATTR, ino, body)
        return Attr.parse(raw[w.ATTR_HEAD.size :])

    def truncate(self, ino: int, size: int) -> None:
        self.setattr(ino, size=size)

    def statfs(self) -> tuple[Any, ...]:
        return w.STATFS_OUT.unpack(self.ask(Op.STATFS))

    def getxattr(self, ino: int, name: bytes, size: int = 65536) -> bytes:
        return self.ask(Op.GETXATTR, ino, w.GETXATTR_IN.pack(size, 0) + name + b"\0")

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self.ask(Op.SETXATTR, ino, w.SETXATTR_IN.pack(len(value), flags) + name + b"\0" + value)

    def listxattr(self, ino: int, size: int = 65536) -> list[bytes]:
        raw = self.ask(Op.LISTXATTR, ino, w.GETXATTR_IN.pack(size, 0))
        return raw.split(b"\0")[:-1]

    def removexattr(self, ino: int, name: bytes) -> None:
        self.ask(Op.REMOVEXATTR, ino, name + b"\0")

    # -- contents

    def open(self, ino: int, flags: int = os.O_RDWR) -> int:
        """The handle; 0 where the file system needs none."""
        if not self.no_open:
            reply = self.call(Op.OPEN, ino, w.OPEN_IN.pack(flags, 0))
            if reply.error != errno.ENOSYS:
                handle, _, _ = w.OPEN_OUT.unpack(reply.check("open"))
                return int(handle)
            self.no_open = True
        return 0

    def close_file(self, ino: int, handle: int = 0) -> None:
        """FLUSH and RELEASE, where they are wanted."""
        if not self.no_flush:
            reply = self.call(Op.FLUSH, ino, w.FLUSH_IN.pack(handle, 0, 0, 0))
            self.no_flush = reply.error == errno.ENOSYS
            if not self.no_flush:
                reply.check("flush")
        if not self.no_open:
            self.ask(Op.RELEASE, ino, w.RELEASE_IN.pack(handle, 0, 0, 0))

    def read(self, ino: int, offset: int, size: int) -> bytes:
        return self.ask(Op.READ, ino, w.READ_IN.pack(0, offset, size, 0, 0, 0, 0))

    def write(self, ino: int, offset: int, data: bytes, *, cached: bool = False, kill: bool = False) -> int:
        """One WRITE; *cached*: it comes from the page cache, times follow by SETATTR."""
        flags = (w.WRITE_CACHE if cached else 0) | (w.WRITE_KILL_SUIDGID if kill else 0)
        raw = self.ask(Op.WRITE, ino, w.WRITE_IN.pack(0, offset, len(data), flags, 0, 0, 0) + data)
        return int(w.WRITE_OUT.unpack(raw)[0])

    def fsync(self, ino: int, *, data_only: bool = False) -> None:
        self.ask(Op.FSYNC, ino, w.FSYNC_IN.pack(0, int(data_only), 0))

    def fsyncdir(self, ino: int) -> None:
        self.ask(Op.FSYNCDIR, ino, w.FSYNC_IN.pack(0, 0, 0))

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        self.ask(Op.FALLOCATE, ino, w.FALLOCATE_IN.pack(0, offset, length, mode, 0))

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        return int(w.LSEEK_OUT.unpack(self.ask(Op.LSEEK, ino, w.LSEEK_IN.pack(0, offset, whence, 0)))[0])

    def copy_file_range(self, ino: int, offset: int, target: int, target_offset: int, length: int) -> int:
        raw = self.ask(Op.COPY_FILE_RANGE, ino, w.COPY_IN.pack(0, offset, target, 0, target_offset, length, 0))
        return int(w.WRITE_OUT.unpack(raw)[0])

    # -- directories

    def read_directory(self, ino: int, offset: int = 0, size: int = 32768, *, plus: bool = True) -> list[Name]:
        """One READDIRPLUS or READDIR."""
        opcode = Op.READDIRPLUS if plus else Op.READDIR
        raw = self.ask(opcode, ino, w.READ_IN.pack(0, offset, size, 0, 0, 0, 0))
        return w.parse_names(raw, plus=plus)

    def listdir(self, ino: int, size: int = 32768, *, plus: bool = True) -> dict[bytes, Name]:
        """All names but . and .., read as ls does."""
        found: dict[bytes, Name] = {}
        offset = 0
        while names := self.read_directory(ino, offset, size, plus=plus):
            for name in names:
                assert name.name not in found, f"{name.name!r} twice in one listing"
                if name.name not in {b".", b".."}:
                    found[name.name] = name
            offset = names[-1].offset
        return found
