"""A volume mounted in this process without a mount: the native data plane between a `FakeKernel` and a control plane.

The control plane is `Operations`, called as pyfuse3 would (the real pyfuse3 is what tests/e2e has), or a script.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import trio
from pyfuse3 import FUSEError

from fspf.mount.control import Control
from fspf.mount.operations import Operations
from fspf.mount.plane import Plane, control_pair
from tests.support import fusewire as w
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fusewire import Flag, Op

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from pyfuse3 import EntryAttributes

    from fspf.volume.volume import Volume

_MOST: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that reached the control plane."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: bytes
    umask: int = 0

    @classmethod
    def parse(cls, message: bytes) -> Asked:
        length, opcode, unique, nodeid, uid, gid, pid, _, _ = w.IN_HEADER.unpack_from(message)
        assert length == len(message), "the relay passed on a message that is not whole"
        return cls(opcode, unique, nodeid, uid, gid, pid, message[w.IN_HEADER.size :])


Answer = bytes | int | None  # a body, a positive errno, or nothing at all


class Scripted:
    """The control plane's end of the socket, on a thread of its own.

    Args:
        answer: Called for each request but INIT; None: it stays unanswered, for `reply`.
        serve: Answer at all; otherwise another process does, at `descriptor`.

    Attributes:
        asked: All that came, in order.
    """

    def __init__(self, answer: Callable[[Asked], Answer] | None = None, *, serve: bool = True) -> None:
        ours, theirs = control_pair()
        self.relay_end = ours.detach()
        self._socket = theirs
        self._answer = answer or (lambda _asked: errno.ENOSYS)
        self.asked: list[Asked] = []
        self.counts: Counter[int] = Counter()
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        if serve:
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                message = self._socket.recv(_MOST)
            except OSError:
                break
            if not message:
                break
            asked = Asked.parse(message)
            answer = self._init(asked) if asked.opcode == Op.INIT else self._answer(asked)
            with self._came:
                self.asked.append(asked)
                self.counts[asked.opcode] += 1
                self._came.notify_all()
            if asked.opcode in w.NO_REPLY or answer is None:
                continue
            if isinstance(answer, int):
                self.reply(asked.unique, answer)
            else:
                self.reply(asked.unique, 0, answer)

    def _init(self, asked: Asked) -> bytes:
        major, minor, read_ahead, _ = struct.unpack_from("<4I", asked.body)
        assert major == 7
        return w.INIT_OUT.pack(7, min(minor, 34), read_ahead, 0, 12, 9, 131072, 1, 32, 0, 0)

    def wait_for(self, opcode: int, count: int = 1) -> None:
        """Wait until so many requests of a kind have come."""
        with self._came:
            assert self._came.wait_for(lambda: self.counts[opcode] >= count, 60), f"{Op(opcode).name} never came"

    def reply(self, unique: int, error: int = 0, body: bytes = b"") -> None:
        self.send(w.reply(unique, error, body))

    def send(self, message: bytes) -> None:
        """Send whatever it is."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(message)

    @property
    def descriptor(self) -> int:
        """The control plane's end, for a process that answers in our place."""
        return self._socket.fileno()

    def die(self) -> None:
        """End as a process does that crashed."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Close our descriptor only; whoever has another one goes on."""
        self._socket.close()

    def close(self) -> None:
        self.die()
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()


def _split(body: bytes, count: int) -> list[bytes]:
    parts = body.split(b"\0", count)
    assert len(parts) == count + 1, "a name without an end"
    return parts


def _pack_attr(entry: EntryAttributes) -> bytes:
    return w.Attr(
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        entry.st_atime_ns,
        entry.st_mtime_ns,
        entry.st_ctime_ns,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev,
        entry.st_blksize,
    ).pack()


def _pack_entry(entry: EntryAttributes) -> bytes:
    valid = (int(entry.entry_timeout), int(entry.attr_timeout))
    return w.ENTRY_HEAD.pack(entry.st_ino, 0, *valid, 0, 0) + _pack_attr(entry)


class _Fields:
    """What pyfuse3 passes as SetattrFields."""

    def __init__(self, valid: int) -> None:
        self.update_mode = bool(valid & w.FATTR_MODE)
        self.update_uid = bool(valid & w.FATTR_UID)
        self.update_gid = bool(valid & w.FATTR_GID)
        self.update_size = bool(valid & w.FATTR_SIZE)
        self.update_atime = bool(valid & w.FATTR_ATIME)
        self.update_mtime = bool(valid & w.FATTR_MTIME)
        self.update_ctime = bool(valid & w.FATTR_CTIME)


class _Changed:
    """What pyfuse3 passes as the attributes of setattr."""

    def __init__(self, f: tuple[int, ...]) -> None:
        self.st_size = f[3]
        times = [(s - (1 << 64) if s >> 63 else s) * 10**9 + n for s, n in zip(f[5:8], f[8:11], strict=True)]
        self.st_atime_ns, self.st_mtime_ns, self.st_ctime_ns = times
        self.st_mode = f[11]
        self.st_uid, self.st_gid = f[13], f[14]


class ThroughOperations:
    """Answers what the data plane passes on by calling `Operations`, one request after the other as pyfuse3 does."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def __call__(self, asked: Asked) -> Answer:
        handler = getattr(self, f"_{Op(asked.opcode).name.lower()}", None)
        if handler is None:
            return errno.ENOSYS
        try:
            answer: Answer = handler(asked)
        except FUSEError as exc:
            return int(exc.errno)
        return answer

    @staticmethod
    def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a handler that awaits nothing."""
        try:
            coroutine.send(None)
        except StopIteration as exc:
            return exc.value
        raise AssertionError("a handler that waits")

    def _lookup(self, asked: Asked) -> Answer:
        name, _ = _split(asked.body, 1)
        return _pack_entry(self._run(self._operations.lookup(asked.nodeid, name, asked)))  # type: ignore[arg-type]

    def _symlink(self, asked: Asked) -> Answer:
        name, target, _ = _split(asked.body, 2)
        return _pack_entry(self._run(self._operations.symlink(asked.nodeid, name, target, asked)))  # type: ignore[arg-type]

    def _forget(self, asked: Asked) -> Answer:
        (count,) = w.FORGET_IN.unpack_from(asked.body)
        self._run(self._operations.forget([(asked.nodeid, count)]))
        return None

    def _statfs(self, asked: Asked) -> Answer:
        d = self._run(self._operations.statfs(asked))  # type: ignore[arg-type]
        return w.STATFS_OUT.pack(
            d.f_blocks, d.f_bfree, d.f_bavail, d.f_files, d.f_ffree, d.f_bsize, d.f_namemax, d.f_frsize, 0
        )

    def _setattr(self, asked: Asked) -> Answer:
        f = w.SETATTR_IN.unpack_from(asked.body)
        fields: Any = _Fields(f[0])
        changed: Any = _Changed(f)
        who: Any = asked
        entry = self._run(self._operations.setattr(asked.nodeid, changed, fields, None, who))
        return w.ATTR_HEAD.pack(int(entry.attr_timeout), 0, 0) + _pack_attr(entry)

    def _getxattr(self, asked: Asked) -> Answer:
        size, _ = w.GETXATTR_IN.unpack_from(asked.body)
        name, _ = _split(asked.body[w.GETXATTR_IN.size :], 1)
        value = self._run(self._operations.getxattr(asked.nodeid, name, asked))  # type: ignore[arg-type]
        return self._sized(value, size)

    def _listxattr(self, asked: Asked) -> Answer:
        size, _ = w.GETXATTR_IN.unpack_from(asked.body)
        names = self._run(self._operations.listxattr(asked.nodeid, asked))  # type: ignore[arg-type]
        return self._sized(b"".join(name + b"\0" for name in names), size)

    @staticmethod
    def _sized(value: bytes, size: int) -> Answer:
        if size == 0:
            return w.GETXATTR_IN.pack(len(value), 0)
        return value if len(value) <= size else errno.ERANGE

    def _setxattr(self, asked: Asked) -> Answer:
        size, _ = w.SETXATTR_IN.unpack_from(asked.body)
        name, value = _split(asked.body[w.SETXATTR_IN.size :], 1)
        handler = self._operations.setxattr
        if name.startswith(b"user.fspf."):
            who: Any = asked
            trio.run(handler, asked.nodeid, name, value[:size], who)  # it may commit, which leaves the thread
        else:
            self._run(handler(asked.nodeid, name, value[:size], asked))  # type: ignore[arg-type]
        return b""

    def _removexattr(self, asked: Asked) -> Answer:
        name, _ = _split(asked.body, 1)
        self._run(self._operations.removexattr(asked.nodeid, name, asked))  # type: ignore[arg-type]
        return b""


class FakeMount:
    """A volume, its data plane, its control plane, and the kernel. As a context manager: unmounted at the end.

    Args:
        volume: Open, and closed by somebody else afterwards.
        script: The control plane, in place of `Operations`.
        started: Start, and negotiate INIT.
        serve: Answer as the control plane; otherwise another process does.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        atime: bool = False,
        cache_bytes: int = 32 << 20,
        minor: int = w.MINOR,
        flags: Flag = w.LINUX_6_18,
        script: Callable[[Asked], Answer] | None = None,
        started: bool = True,
        serve: bool = True,
    ) -> None:
        self.volume = volume
        self.operations = Operations(volume, Control(volume, mountpoint="/nowhere"), atime=atime)
        self.operations.native = True
        self.kernel = FakeKernel()
        self.control = Scripted(script or ThroughOperations(self.operations), serve=serve)
        self.plane = Plane(
            volume, self.operations, self.kernel.device, self.control.relay_end, atime=atime, cache_bytes=cache_bytes
        )
        self._ended = False
        if started:
            self.plane.start()
            self.kernel.init(minor=minor, flags=flags)

    def unmount(self) -> None:
        """End in order: what the kernel knew is given back, the volume has everything (uncommitted)."""
        if self._ended:
            return
        self._ended = True
        try:
            self.kernel.destroy()
        finally:
            self._stop()

    def break_off(self) -> None:
        """End as with a kernel that goes away: nothing is given back first."""
        if self._ended:
            return
        self._ended = True
        self._stop()

    def _stop(self) -> None:
        self.plane.stop()
        self.control.close()
        self.operations.forget_all()
        self.kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.unmount()
        else:
            self.break_off()


__all__ = ["ROOT", "Answer", "Asked", "FakeKernel", "FakeMount", "Scripted", "ThroughOperations"]
