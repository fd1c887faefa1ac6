"""Turn a mount into a daemon that its caller can rely on: started, or an error; and nothing of the caller kept.

The mount itself is `session`; what the command line prints, `fspf.cli.mount`.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fspf.core.errors import FspfError
from fspf.mount import utab
from fspf.mount.logs import LogWriter
from fspf.mount.protocol import ReportedError, describe
from fspf.mount.system import harden
from fspf.mount.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Cas
    from fspf.mount.place import Plan

log = logging.getLogger(__name__)

_MAX_MESSAGE: Final = 65536  # bytes
_EXIT_BROKEN: Final = 1


@dataclass(frozen=True, slots=True)
class Daemon:
    """What is to be run.

    Attributes:
        open_cas: Opens the CAS in the daemon, given a function that gets its passphrase.
        passphrase: Gets the passphrase in the caller's process, where the terminal is.
        log_file: None: syslog.
    """

    plan: Plan
    open_cas: Callable[[Callable[[], bytes]], Cas]
    passphrase: Callable[[], bytes]
    log_file: str | None = None
    debug: bool = False

    def run_in_foreground(self) -> int:
        """Serve the mount in this process; log to stderr unless a file is given."""
        return self._serve(
            lambda: self.open_cas(self.passphrase), on_live=lambda: None, to_stderr=self.log_file is None, on_error=None
        )

    def start(self) -> int:
        """Fork the daemon and return its process id when the mount answers.

        Raises:
            ReportedError: It could not start; nothing is mounted.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        between = os.fork()
        if between == 0:
            os._exit(self._fork_again(ours, theirs))
        theirs.close()
        with ours:
            os.waitpid(between, 0)
            return self._wait(ours)

    def _wait(self, channel: socket.socket) -> int:
        """Serve the starting daemon's questions until it is live."""
        while True:
            raw = channel.recv(_MAX_MESSAGE)
            if not raw:
                raise ReportedError("the daemon ended before the mount was live; its log may say more")
            message = json.loads(raw)
            if error := message.get("error"):
                raise ReportedError(error["message"], exit_code=error["exit_code"], retryable=error["retryable"])
            if "live" in message:
                return int(message["live"])
            channel.send(base64.b64encode(self.passphrase()))

    # -- in the child

    def _fork_again(self, ours: socket.socket, theirs: socket.socket) -> int:
        """Leave the caller's session and terminal behind; return the exit code of whichever process this is."""
        ours.close()
        os.setsid()
        if os.fork():
            return 0
        try:
            _detach(theirs.fileno())
            return self._run(theirs)
        except BaseException as exc:  # noqa: BLE001 - the last frame of a process without stderr
            with suppress(OSError):
                theirs.send(json.dumps({"error": describe(exc)}).encode())
            return _EXIT_BROKEN

    def _run(self, channel: socket.socket) -> int:
        def ask_passphrase() -> bytes:
            channel.send(json.dumps({"ask": "passphrase"}).encode())
            answer = channel.recv(_MAX_MESSAGE)
            if not answer:
                raise ReportedError("the caller has gone")
            return base64.b64decode(answer)

        def on_live() -> None:
            channel.send(json.dumps({"live": os.getpid()}).encode())  # BrokenPipeError: the caller has gone, so do we
            channel.close()

        def on_error(exc: BaseException) -> None:
            with suppress(OSError):
                channel.send(json.dumps({"error": describe(exc)}).encode())

        return self._serve(lambda: self.open_cas(ask_passphrase), on_live=on_live, to_stderr=False, on_error=on_error)

    def _serve(
        self,
        open_cas: Callable[[], Cas],
        *,
        on_live: Callable[[], None],
        to_stderr: bool,
        on_error: Callable[[BaseException], None] | None,
    ) -> int:
        """Run the mount to its end; the exit code. Errors go to *on_error*, or are raised, and to the log."""
        import trio

        from fspf.mount.session import serve, single

        watcher = Watcher.start(self.plan.mountpoint) if self.plan.options.auto_unmount else None

        def live() -> None:
            if watcher is not None:
                watcher.arm(self.plan.mountpoint)
            utab.register(self.plan.source, self.plan.mountpoint)
            on_live()

        try:
            harden()
            writer = LogWriter(file=self.log_file, to_stderr=to_stderr, tag=self.plan.mountpoint, debug=self.debug)
        except OSError as exc:
            if on_error is None:
                raise
            on_error(exc)
            return 1
        try:
            trio.run(serve, self.plan, open_cas, live)
        except (Exception, BaseExceptionGroup) as caught:  # logged or raised; nobody else would hear of it
            problem = single(caught)
            expected = isinstance(problem, FspfError | OSError)
            log.critical("the mount ended badly: %s", problem, exc_info=None if expected else problem)
            if on_error is None:
                raise problem from None
            on_error(problem)
            return problem.exit_code if isinstance(problem, FspfError) else 1
        finally:
            utab.unregister(self.plan.source, self.plan.mountpoint)
            writer.close()
            if watcher is not None:
                watcher.close()
        return 0


def _detach(channel: int) -> None:
    """Keep nothing of the caller: no standard files, no other open files, no signal dispositions."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    keep = {0, 1, 2, channel}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))
    os.umask(0o077)  # what it creates is ciphertext and logs; files of the mount never pass through it
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # until the mount is live, a signal ends it
