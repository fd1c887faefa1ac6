"""The Python side of the native data plane: what its threads ask for, and its life beside pyfuse3.

Requests are answered in `fspf_native` (docs/DATAPLANE.md); what only pyfuse3 can answer is `operations`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any, Final

from fspf.core.errors import FspfError
from fspf.core.types import Ino
from fspf.mount.operations import CAPABILITY
from fspf.volume.inodes import XATTR_CREATE, XATTR_REPLACE
from fspf_native import ChunkError, Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.mount.operations import Operations
    from fspf.volume.volume import Volume

log = logging.getLogger(__name__)

_PAGE: Final = 4096  # directory entries read at a time; the volume's lock is free between
_THREADS: Final = 2  # more start when all are busy
_APPLY_AT: Final = 8192  # rows and names that wait before they are stored in the background
_RELIEVE_BYTES: Final = 16 << 20  # dirty data that is left in memory by the background thread
_LOOK_EVERY_S: Final = 0.25
_SOCKET_BYTES: Final = 4 << 20
_SNDBUFFORCE: Final = 32  # <asm-generic/socket.h>; the socket module does not have them
_RCVBUFFORCE: Final = 33


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Make the socket between relay and pyfuse3, whose messages are whole requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        for forced, plain in ((_SNDBUFFORCE, socket.SO_SNDBUF), (_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                end.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BYTES)
            except OSError:  # not root
                end.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
    return ours, theirs


class Plane:
    """One mount's native data plane.

    Methods that the native threads call return an errno and let nothing out.

    Args:
        volume: Open; its lock is entered by native threads too.
        operations: The control plane, for rules that only it knows.
        device: The kernel's descriptor; taken over.
        control: The relay's end of `control_pair`; taken over.
    """

    def __init__(
        self,
        volume: Volume,
        operations: Operations,
        device: int,
        control: int,
        *,
        atime: bool,
        cache_bytes: int,
        diratime: bool = True,
        uring: bool = False,
        spin: bool = False,
        uid: int = -1,
        gid: int = -1,
        umask: int = -1,
    ) -> None:
        self._volume = volume
        self._operations = operations
        self._boundary = operations.boundary
        self._had_xattrs = self._find_xattrs()
        self._stopping = threading.Event()
        self.relay = Relay(
            volume.store,
            device,
            control,
            self,
            cache_bytes=cache_bytes,
            atime=atime,
            diratime=diratime,
            read_only=volume.read_only,
            threads=_THREADS,
            uring=uring,
            spin=spin,
            uid=uid,
            gid=gid,
            umask=umask,
        )
        with volume.lock:
            self.relay.set_numbers(volume.namespace.next_ino, volume.namespace.next_cookie)
        if volume.no_space:
            self.relay.set_no_space(True)  # the native method's signature
        volume.attach_mirror(self.relay)
        self._background = threading.Thread(target=self._run, name="fspf-apply", daemon=True)

    def _find_xattrs(self) -> bool:
        """Tell whether there may be any; damage where they are is met by whoever asks for one, and hinders nobody else."""
        try:
            with self._volume.lock:
                return self._volume.namespace.any_xattrs()
        except (FspfError, OSError) as exc:
            self._boundary.errno_of("mount", exc)
            return True

    def start(self) -> None:
        """Begin to answer."""
        self.relay.start()
        if not self._volume.read_only:
            self._background.start()

    def stop(self) -> None:
        """Answer nothing any more, and give the volume what it does not have yet. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.relay.stop()
        if self._background.is_alive():
            self._background.join()
        try:
            self._volume.detach_mirror()
        except (OSError, FspfError) as exc:
            self._boundary.errno_of("unmount", exc)

    def _run(self) -> None:
        """Store and seal in the background, so that neither piles up in memory until the next commit."""
        while not self._stopping.is_set() and self._volume.failed is None:
            due = self.relay.wait_dirty(_APPLY_AT, _LOOK_EVERY_S)
            self.relay.relieve(_RELIEVE_BYTES)
            if due:
                self.apply()

    # -- called by native threads

    def _guarded(self, handler: str, action: Callable[[], object]) -> int:
        try:
            action()
        except Exception as exc:  # noqa: BLE001 - a boundary (style 2.11)
            return self._boundary.errno_of(handler, exc)
        return 0

    def _no_xattrs(self) -> bool:
        """Tell whether there is none in the whole volume, which spares asking for each inode."""
        return not self._had_xattrs and not self._volume.namespace.xattrs_were_set

    def load_inode(self, ino: int) -> int:
        """Tell the relay an inode's row."""
        return self._guarded("getattr", lambda: self._load_inode(Ino(ino)))

    def _load_inode(self, ino: Ino) -> None:
        volume = self._volume
        with volume.lock:
            row = volume.namespace.inode(ino)
            if row is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.relay.fill_inode(tuple(row), self._no_xattrs() or not volume.namespace.has_xattrs(ino))

    def load_directory(self, ino: int) -> int:
        """Tell the relay all names of a directory."""
        return self._guarded("readdir", lambda: self._load_directory(Ino(ino)))

    def _load_directory(self, ino: Ino) -> None:
        volume = self._volume
        with volume.lock:  # the whole of it: nothing may come between that the relay does not learn of
            row = volume.namespace.inode(ino)
            if row is None or not stat.S_ISDIR(row.mode):
                number = errno.ENOENT if row is None else errno.ENOTDIR
                raise OSError(number, os.strerror(number))
            after = 0
            while True:
                entries = volume.namespace.filling(ino, after, _PAGE)
                last = len(entries) < _PAGE
                self.relay.fill_directory(ino, entries, self._no_xattrs(), last)
                if last:
                    return
                after = entries[-1][0]

    def make(self, parent: int, name: bytes, mode: int, rdev: int, umask: int, uid: int, gid: int, pid: int) -> int:
        """Make an inode in a directory whose access list has a say."""
        ctx = _Caller(uid, gid, pid, umask)
        return self._guarded(
            "create", lambda: self._operations.make(parent, name, mode, ctx, rdev=rdev if not stat.S_ISREG(mode) else 0)
        )

    def inherit(self, parent: int, ino: int, mode: int) -> int:
        """Give a file without a name the access list that its directory's default list wants."""
        return self._guarded("tmpfile", lambda: self._operations.inherit(parent, ino, mode))

    def apply(self) -> int:
        """Store what was answered ahead of the namespace."""

        def enter() -> None:
            with self._volume.lock:
                pass

        return self._guarded("apply", enter)

    def grow(self) -> int:
        """Tell whether the namespace may become larger."""

        def check() -> None:
            with self._volume.lock:
                self._volume.check_growth()
                self.relay.set_no_space(self._volume.no_space)

        return self._guarded("create", check)

    def fsync(self, ino: int, may_return: bool, /) -> int:  # noqa: FBT001  # called by native code
        """Commit: the content of *ino* (0: none), which may be left to the intent log, and all rows.

        Args:
            may_return: Return -1 if another's commit was waited for and the lane can do this one now.
        """
        done = [True]

        def commit() -> None:
            done[0] = self._volume.fsync_or_return(Ino(ino) if ino else None, may_return=may_return)

        return self._guarded("fsync", commit) or (0 if done[0] else -1)

    def drop_capability(self, ino: int) -> int:
        """Take security.capability from a file that was changed."""
        return self._guarded("write", lambda: self._drop_capability(Ino(ino)))

    def _drop_capability(self, ino: Ino) -> None:
        volume = self._volume
        if not volume.namespace.capabilities:
            return
        with volume.lock:
            if volume.namespace.xattr(ino, CAPABILITY) is not None:
                volume.removexattr(ino, CAPABILITY)

    def check_xattr(self, ino: int, name: bytes, flags: int) -> int:
        """Tell whether an attribute may be set with the flags of setxattr(2)."""

        def check() -> None:
            self._volume.check_xattr(name, b"")
            with self._volume.lock:
                exists = self._volume.namespace.xattr(Ino(ino), name) is not None
            if exists and flags & XATTR_CREATE:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if not exists and flags & XATTR_REPLACE:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

        return self._guarded("setxattr", check)

    def failed(self, handler: str, ino: int, exc: Exception) -> int:
        """Turn what happened to a content into an errno, and tell the log in the user's words."""
        if isinstance(exc, ChunkError):
            return self._boundary.errno_of(handler, self._volume.damaged(Ino(ino), exc))
        return self._boundary.errno_of(handler, exc)

    # -- for status and tests

    def counters(self) -> dict[str, Any]:
        """Return what `Control.add_counters` takes."""
        stats = self.relay.stats()
        return {
            **stats,
            "read_bytes": stats["bytes_read"],
            "written_bytes": stats["bytes_written"],
        }


class _Caller:
    """Who asks: what pyfuse3's RequestContext tells a handler."""

    __slots__ = ("gid", "pid", "uid", "umask")

    def __init__(self, uid: int, gid: int, pid: int, umask: int) -> None:
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.umask = umask
