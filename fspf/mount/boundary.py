"""The one place where exceptions become errno values for the kernel, and the log lines that go with them.

What each error means is defined in `fspf.core.errors`; what a handler does, in `operations`.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from pyfuse3 import FUSEError

from fspf.core.errors import FspfError, IntegrityError, LeaseLostError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)

_QUIET_S: Final = 60.0  # seconds during which a message that was logged is only counted
_MAX_REMEMBERED: Final = 1000


class Repeats:
    """Decides which of many equal messages are worth a line.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}  # message → (when it was logged, how often since)

    def admit(self, message: str) -> str | None:
        """Return the line to log for *message*, or None."""
        now = self._clock()
        logged_at, missed = self._seen.get(message, (None, 0))
        if logged_at is not None and now - logged_at < _QUIET_S:
            self._seen[message] = (logged_at, missed + 1)
            return None
        if len(self._seen) >= _MAX_REMEMBERED:
            self._seen = {key: value for key, value in self._seen.items() if now - value[0] < _QUIET_S}
            if len(self._seen) >= _MAX_REMEMBERED:
                self._seen.clear()
        self._seen[message] = (now, 0)
        return f"{message} ({missed} times more since the last line)" if missed else message


class Boundary:
    """Turns whatever a handler raises into the errno that the caller gets."""

    def __init__(self, repeats: Repeats | None = None) -> None:
        self._repeats = repeats or Repeats()
        self.on_error: Callable[[str], None] | None = None  # told what is logged at ERROR; `fspf status` shows it
        self.begun: Counter[str] = Counter()  # handler → how often it was called
        self.done: Counter[str] = Counter()  # … and how often it succeeded
        self.bytes: Counter[str] = Counter()  # moved by read and write
        self.failures = 0  # requests that ended with an errno that somebody logged

    def counters(self) -> dict[str, int]:
        """Return what `Control.add_counters` takes, of the requests that reached Python."""
        done = self.done
        return {
            "requests": self.begun.total(),
            "request_errors": self.failures,
            "statfs": self.begun["statfs"],
            "read_bytes": self.bytes["read"],
            "written_bytes": self.bytes["write"],
            "open_files": done["open"] + done["create"] - self.begun["release"],
        }

    def errno_of(self, handler: str, exc: Exception) -> int:
        """Return the errno for *exc*, and log what somebody should know of."""
        if isinstance(exc, IntegrityError):
            self._log(logging.ERROR, f"{handler}: {exc}")
            return exc.errno
        if isinstance(exc, LeaseLostError | ReadOnlyError):
            self._log(logging.WARNING, f"{handler}: {exc}")
            return errno.EROFS
        if isinstance(exc, FspfError):
            self._log(logging.WARNING, f"{handler}: {exc}")
            return exc.errno
        if isinstance(exc, OSError) and exc.errno:
            if exc.errno in {errno.EIO, errno.ENOSPC, errno.EDQUOT}:  # the host's disk, not the caller's mistake
                self._log(logging.ERROR, f"{handler}: {exc}")
            return exc.errno
        if isinstance(exc, MemoryError):
            self._log(logging.ERROR, f"{handler}: out of memory")
            return errno.ENOMEM
        self.failures += 1
        line = self._repeats.admit(f"{handler}: internal error: {type(exc).__name__}: {exc}")
        if line is not None:
            log.error(line, exc_info=exc)
        return errno.EIO

    def _log(self, level: int, message: str) -> None:
        self.failures += 1
        line = self._repeats.admit(message)
        if line is not None:
            log.log(level, "%s", line)
            if level >= logging.ERROR and self.on_error is not None:
                self.on_error(line)


class Guarded(Protocol):
    """What an object with guarded handlers has."""

    boundary: Boundary


_MEASURES: Final[dict[str, Callable[[Any], int]]] = {"read": len, "write": int}
_Handler = TypeVar("_Handler", bound="Callable[..., Coroutine[Any, Any, Any]]")


def guarded(handler: _Handler) -> _Handler:
    """Let nothing but `FUSEError` out of a handler: anything else ends the mount for everyone."""
    name = handler.__name__
    measure = _MEASURES.get(name)

    @functools.wraps(handler)
    async def wrapper(self: Guarded, *args: Any) -> Any:
        boundary = self.boundary
        boundary.begun[name] += 1
        try:
            result = await handler(self, *args)
        except FUSEError:
            raise
        except Exception as exc:  # one of the three boundaries (style 2.11)
            raise FUSEError(boundary.errno_of(name, exc)) from exc
        boundary.done[name] += 1
        if measure is not None:
            boundary.bytes[name] += measure(result)
        return result

    wrapper.is_guarded = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def errno_name(number: int) -> str:
    """Return EIO for 5, for messages."""
    return errno.errorcode.get(number, os.strerror(number))
