"""Where a mount's log goes: syslog, a file, or stderr; never in the way of a request.

What is worth a line is decided by whoever logs.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
from contextlib import suppress
from typing import Final

_SYSLOG: Final = "/dev/log"
_MAX_WAITING: Final = 10_000  # records; beyond that they are dropped
_LOGGERS: Final = ("fspf", "pyfuse3", "trio")


class LogWriter:
    """Writes log records from a thread of its own, so that a stuck syslog cannot stop the file system.

    Args:
        file: Log to this file; None: to syslog, or to a default file where there is none.
        to_stderr: Log to stderr instead.
        tag: Stands in each line; says which mount.

    Raises:
        OSError: *file* cannot be opened.
    """

    def __init__(self, *, file: str | None = None, to_stderr: bool = False, tag: str = "", debug: bool = False) -> None:
        logging.raiseExceptions = False
        handler = _handler(file, to_stderr=to_stderr)
        stamp = "" if isinstance(handler, logging.handlers.SysLogHandler) else "%(asctime)s "
        tag = tag.replace("%", "%%")
        handler.setFormatter(logging.Formatter(f"{stamp}fspf[{os.getpid()}] %(levelname)s {tag}: %(message)s"))
        records: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_WAITING)
        self._front = logging.handlers.QueueHandler(records)
        self._listener = logging.handlers.QueueListener(records, handler)
        self._listener.start()
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self._front)
            logger.setLevel(logging.DEBUG if debug else logging.INFO)
            logger.propagate = False

    def close(self) -> None:
        """Write what waits, and end."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._front)
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()


def _handler(file: str | None, *, to_stderr: bool) -> logging.Handler:
    if to_stderr:
        return logging.StreamHandler(sys.stderr)
    if file is not None:
        return _file_handler(file)
    if os.path.exists(_SYSLOG):
        with suppress(OSError):
            return logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    with suppress(OSError):
        path = default_file()
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return _file_handler(path)
    return logging.NullHandler()


def _file_handler(path: str) -> logging.Handler:
    """Return a handler that goes on in a new file when the old one was rotated away."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    return logging.handlers.WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")


def default_file() -> str:
    """Return where the log goes when there is neither --log nor syslog."""
    if os.geteuid() == 0:
        return "/var/log/fspf.log"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "fspf", "fspf.log")
