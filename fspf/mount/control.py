"""What can be asked of a live mount: two virtual extended attributes of its root directory.

Neither is listed. Their names are in `protocol`, the other side in `client`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from fspf._version import __version__
from fspf.core.errors import FspfError
from fspf.mount.protocol import describe
from fspf.mount.system import resident_bytes, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fspf.volume.volume import Volume

log = logging.getLogger(__name__)

_MAX_STATUS: Final = 60_000  # bytes; the kernel allows 65536


class Control:
    """Answers questions about one mount, to its owner and to root.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        mountpoint: str,
        options: tuple[str, ...] = (),
        cache_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._clock = clock
        self._started = clock()
        self._owner = os.geteuid()
        self._last_error: dict[str, Any] | None = None
        self.committing = False  # somebody, perhaps systemd, waits for a commit that was asked for
        self._waiting: list[int] = []  # write ends of pipes: who wants to hear how it ended
        self._counters: list[Callable[[], Mapping[str, int]]] = [self._cache_counters]
        self._asked = 0  # requests that were for us
        self._constant: dict[str, Any] = {
            "mountpoint": mountpoint,
            "options": list(options),
            "cache_limit_bytes": cache_limit_bytes,
            "pid": os.getpid(),
            "pid_start": start_of(os.getpid()),
            "version": __version__,
        }

    def add_counters(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Let `fspf status` show what *source* counts; a later source replaces names of an earlier one."""
        self._counters.append(source)

    def _cache_counters(self) -> dict[str, int]:
        stats = self._volume.store.stats()
        return {name: stats[name] for name in ("cache_hits", "cache_misses", "cache_bytes")}

    def counters(self) -> dict[str, int]:
        """Return what all sources have counted since the mount began."""
        found: dict[str, int] = {}
        for source in self._counters:
            found.update(source())
        return found

    def activity(self) -> int:
        """Return a number that grows with use; looking at status or free space is none."""
        counters = self.counters()
        return counters.get("requests", 0) - counters.get("statfs", 0) - self._asked

    def open_files(self) -> int:
        """Return how many file handles the kernel holds."""
        return self.counters().get("open_files", 0)

    def document(self) -> dict[str, Any]:
        """Return the state of volume and mount; JSON-able."""
        status = self._volume.status()
        return {
            **status,
            **self._constant,
            "anchor_lag": max(status["generation"] - status["anchored_generation"], 0),
            "counters": self.counters(),
            "memory_bytes": resident_bytes(),
            "cpu_s": round(time.process_time(), 2),
            "uptime_s": round(self._clock() - self._started, 1),
            "last_error": self._last_error,
        }

    def status(self, uid: int) -> bytes:
        """Return the value of `user.fspf.status`. OSError EPERM for others than owner and root."""
        self._asked += 1
        self._check(uid)
        document = self.document()
        raw = json.dumps(document).encode("ascii")
        while len(raw) > _MAX_STATUS and (document["errors"] or document["problems"]):
            document["errors"], document["problems"] = document["errors"][1:], document["problems"][1:]
            raw = json.dumps(document).encode("ascii")
        return raw

    async def command(self, uid: int, pid: int, value: bytes) -> None:
        """Carry out what was written to `user.fspf.control`.

        ``commit``: commit everything; returns when it is anchored.
        ``farewell N``: write one JSON line about the end to the caller's file descriptor N when it has come.
        ``farewell @NAME``: write it to the abstract Unix socket NAME.

        Raises:
            OSError: EPERM for others than owner and root; EINVAL for another command.
            FspfError: The commit failed.
        """
        self._asked += 1
        self._check(uid)
        verb, _, argument = value.strip().partition(b" ")
        if verb == b"commit" and not argument:
            if not self._volume.read_only:
                self.committing = True
                try:
                    await trio.to_thread.run_sync(self._commit)
                finally:
                    self.committing = False
        elif verb == b"farewell" and argument.isdigit():
            self._waiting.append(os.open(f"/proc/{pid}/fd/{int(argument)}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        elif verb == b"farewell" and argument.startswith(b"@"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.connect(b"\0" + argument[1:])
                self._waiting.append(channel.detach())
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _check(self, uid: int) -> None:
        if uid not in {0, self._owner}:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _commit(self) -> None:
        try:
            self._volume.commit()
        except (OSError, FspfError) as exc:
            self.note_error(exc)
            raise
        self._last_error = None

    def note_error(self, exc: BaseException) -> None:
        """Remember why something failed, in the words that a user shall read."""
        self._last_error = describe(exc)

    def say_farewell(self, document: dict[str, Any]) -> None:
        """Tell everybody who asked how the mount ended."""
        line = json.dumps(document).encode("ascii") + b"\n"
        for descriptor in self._waiting:
            with suppress(OSError):
                os.write(descriptor, line)
            with suppress(OSError):
                os.close(descriptor)
        self._waiting.clear()
