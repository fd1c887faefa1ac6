"""How a client learns how a mount ended: the daemon's last word, over a pipe or a socket of the client.

The daemon's side is `control`; when to ask and what to make of the answer, `client`.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Self

from fspf.mount.owner import as_owner, is_foreign
from fspf.mount.protocol import CONTROL

if TYPE_CHECKING:
    from types import TracebackType

    from fspf.mount.system import MountEntry

_MAX_MESSAGE = 65536  # bytes


class Farewell:
    """One client's place to hear the end.

    The daemon takes a pipe from us through /proc, also when it lives in another network namespace. Another user's daemon
    may not look at us there; it gets the name of a socket instead.

    Attributes:
        expected: The daemon has promised to tell.
    """

    def __init__(self, entry: MountEntry, pid: int) -> None:
        self._entry = entry
        self._pid = pid
        self._reader = -1
        self.expected = False

    def __enter__(self) -> Self:
        return self

    def ask(self) -> None:
        """Ask the daemon to tell us how it ended."""
        self.expected = self._ask_by_socket() if is_foreign(self._entry) else self._ask_by_pipe()

    def _ask_by_pipe(self) -> bool:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.setxattr(self._entry.path, CONTROL, b"farewell %d" % writer)
        except OSError:  # a read-only mount, or a daemon that may not look at us
            return False
        finally:
            os.close(writer)
        return True

    def _ask_by_socket(self) -> bool:
        name = f"fspf-farewell-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(f"\0{name}")
            listener.listen(1)
            listener.settimeout(5.0)
            try:
                as_owner(self._entry, lambda: os.setxattr(self._entry.path, CONTROL, f"farewell @{name}".encode()))
                channel, _ = listener.accept()
            except OSError:
                return False
            with channel:
                raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                if struct.unpack("3i", raw)[0] != self._pid:
                    return False
                self._reader = os.dup(channel.fileno())
        return True

    def wait(self, deadline: float) -> bytes | None:
        """Return what the daemon said, b"" if it ended without a word, None if it goes on."""
        said = b""
        while select.select([self._reader], [], [], max(deadline - time.monotonic(), 0))[0]:
            part = os.read(self._reader, _MAX_MESSAGE)
            if not part:
                return said
            said += part
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader >= 0:
            os.close(self._reader)
