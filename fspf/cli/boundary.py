"""Turn every way in which a command can end into one line and one exit code.

What the codes mean to scripts is in docs/CLI.md; which error has which, in `fspf.core.errors`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import Console, OutputError, ReaderGoneError, json_name, printable
from fspf.core.errors import DamagedFileError, FreshnessError, FspfError, LeaseHeldError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTEGRITY: Final = 20
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwind, clean up, leave. Like KeyboardInterrupt, not an error."""


def guard(console: Console, action: Callable[[], int]) -> int:
    """Run *action* and return the exit code; nothing but `SystemExit` comes out unless --debug is set."""
    reserve_standard_files()
    try:
        with _ending_signals():
            code = action()
            console.flush()
    except ReaderGoneError as exc:
        return exc.exit_code
    except SystemExit as exc:  # --help and --version
        return exc.code if isinstance(exc.code, int) else EXIT_OK
    except FspfError as exc:
        _trace(console)
        _report(console, exc, exc.exit_code)
        if exc.retryable:
            console.complain("hint", "nothing was changed, the command can be repeated")
        return exc.exit_code
    except OSError as exc:
        _trace(console)
        _report(console, exc, EXIT_ERROR)
        return EXIT_ERROR
    except MemoryError as exc:
        _trace(console)
        _report(console, exc, EXIT_ERROR, "not enough memory")
        return EXIT_ERROR
    except KeyboardInterrupt as exc:
        _report(console, exc, EXIT_INTERRUPTED, "interrupted")
        return EXIT_INTERRUPTED
    except Terminated as exc:
        _report(console, exc, EXIT_TERMINATED, "ended by a signal")
        return EXIT_TERMINATED
    except Exception as exc:  # noqa: BLE001 - one of the three boundaries (style 2.11)
        _trace(console)
        text = f"internal error: {type(exc).__name__}: {exc}; --debug shows where, please report it"
        _report(console, exc, EXIT_ERROR, text)
        return EXIT_ERROR
    return code


def error_document(exc: BaseException, exit_code: int, message: str) -> dict[str, Any]:
    """Return the members of an error in JSON."""
    members: dict[str, Any] = {"type": type(exc).__name__, "message": message, "exit_code": exit_code}
    if isinstance(exc, FspfError):
        members["retryable"] = exc.retryable
    if isinstance(exc, OSError) and exc.errno is not None:
        members["errno"] = exc.errno
    if isinstance(exc, FreshnessError):
        members |= {"expected_generation": exc.expected_generation, "found_generation": exc.found_generation}
    if isinstance(exc, LeaseHeldError):
        members["holder"] = str(exc.holder)
    if isinstance(exc, DamagedFileError):
        members |= {**json_name("path", exc.path), "offset": exc.offset, "length": exc.length, "kind": exc.kind}
    return {"error": members}


def os_error_text(exc: OSError) -> str:
    """Say what the system said, and about which file."""
    reason = exc.strerror or str(exc) or type(exc).__name__
    names = [name for name in (exc.filename, exc.filename2) if isinstance(name, str | bytes | os.PathLike)]
    return ": ".join([*(printable(os.fspath(name)) for name in names), reason[0].lower() + reason[1:]])


def _report(console: Console, exc: BaseException, exit_code: int, message: str | None = None) -> None:
    if message is None:
        message = os_error_text(exc) if isinstance(exc, OSError) else " ".join(str(exc).split("\n"))
    if console.as_json:
        console.complain_json(error_document(exc, exit_code, message))
    else:
        console.complain("error", message)


def _trace(console: Console) -> None:
    if console.debug and sys.stderr is not None:
        traceback.print_exc()


@contextmanager
def _ending_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind like Ctrl-C does. A second one ends the process at once."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)
        raise Terminated

    try:
        previous = {each: signal.getsignal(each) for each in _ENDING}
        for each, handler in previous.items():
            if handler is signal.SIG_DFL:  # SIGHUP is ignored under nohup, and stays so
                signal.signal(each, end)
    except ValueError:  # not the main thread: somebody else's process
        yield
        return
    try:
        yield
    finally:
        for each, handler in previous.items():
            if handler is signal.SIG_DFL:
                signal.signal(each, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the end of the block; for short steps that must not be torn."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *_ENDING))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reserve_standard_files() -> None:
    """Occupy the numbers of closed standard files, lest a volume's file be opened as number 1 and printed into."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:  # cannot be: open takes the lowest free number, and the lower ones are taken
                os.dup2(null, number)
                os.close(null)


__all__ = [
    "EXIT_ERROR",
    "EXIT_INTEGRITY",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_TERMINATED",
    "EXIT_USAGE",
    "OutputError",
    "Terminated",
    "error_document",
    "guard",
    "os_error_text",
    "reserve_standard_files",
    "uninterrupted",
]
