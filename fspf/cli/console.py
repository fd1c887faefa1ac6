"""What the command line writes, and where: results on stdout, everything else on stderr.

What the results are is left to the commands; which exit code an error gets, to `boundary`.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, Self

from fspf.core.errors import FspfError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from rich.progress import Progress

_BACKSLASH: Final = ord("\\")


class OutputError(FspfError):
    """Results cannot be written: stdout is closed, or what it leads to is full."""


class ReaderGoneError(OutputError):
    """Whoever read our stdout has stopped reading. No message: the user knows."""

    exit_code = 141  # as if SIGPIPE had ended us


def printable(text: str | bytes) -> str:
    r"""Make a name safe to show: one line, no escape sequences, bytes that are not UTF-8 as ``\xNN``.

    Backslashes are doubled, so that two different names never look alike.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_shown(char) for char in text)


def quoted(text: str | bytes) -> str:
    """Make a name safe to show, and set it off from the rest of a message."""
    return f"'{printable(text)}'"


def _shown(char: str) -> str:
    code = ord(char)
    if code == _BACKSLASH:
        return "\\\\"
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _message(text: str) -> str:
    """Keep a message on one line and free of escape sequences; its backslashes are its own."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _shown(c) for c in text)


def json_name(key: str, name: bytes) -> dict[str, str]:
    """Return *name* as JSON members: ``key``, and ``key_base64`` when it is not UTF-8."""
    members = {key: os.fsdecode(name)}
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        members[f"{key}_base64"] = base64.b64encode(name).decode("ascii")
    return members


def human_size(size: int) -> str:
    """Write a number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


class Console:
    """Where one command's output goes.

    Attributes:
        as_json: stdout gets one JSON document; each line on stderr is one, too.
        quiet: No notes, no progress.
        debug: Errors come with a traceback.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        debug: bool = False,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.debug = debug
        self._stdout = stdout if stdout is not None else _binary(sys.stdout)
        self._stderr = stderr if stderr is not None else _binary(sys.stderr)
        self._bar: ProgressBar | None = None

    # -- results

    @property
    def on_terminal(self) -> bool:
        """Results go to a person's terminal."""
        return self._stdout is not None and self._stdout.isatty()

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes to stdout as they are.

        Raises:
            OutputError: They cannot be written.
        """
        if self._stdout is None:
            message = "cannot write the result: stdout is closed"
            raise OutputError(message)
        try:
            self._stdout.write(data)
        except BrokenPipeError as exc:
            self._discard_stdout()
            raise ReaderGoneError from exc
        except OSError as exc:
            self._discard_stdout()
            message = f"cannot write the result: {exc.strerror}"
            raise OutputError(message) from exc

    def flush(self) -> None:
        """Bring what was written to its reader.

        Raises:
            OutputError: That is not possible.
        """
        if self._stdout is None:
            return
        try:
            self._stdout.flush()
        except BrokenPipeError as exc:
            self._discard_stdout()
            raise ReaderGoneError from exc
        except OSError as exc:
            self._discard_stdout()
            message = f"cannot write the result: {exc.strerror}"
            raise OutputError(message) from exc

    def line(self, text: str = "") -> None:
        """Write one line of result for people; nothing with --json."""
        if not self.as_json:
            if self._bar is not None and self.on_terminal:
                self._bar.pause()
            self.write(text.encode("utf-8", "surrogateescape") + b"\n")

    def name(self, name: bytes) -> str:
        """Return a name as it belongs into `line`: safe on a terminal, the exact bytes elsewhere."""
        return printable(name) if self.on_terminal else os.fsdecode(name)

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document that is the result; nothing without --json."""
        if self.as_json:
            self.write(json.dumps(document).encode("ascii") + b"\n")

    def listing(self, head: Mapping[str, Any], key: str) -> Listing:
        """Return a writer for a JSON document with one long array, which is written as it comes."""
        return Listing(self, head, key)

    def _discard_stdout(self) -> None:
        """Let what is still buffered go nowhere, so that the interpreter's own flush at exit stays silent."""
        if self._stdout is _binary(sys.stdout) and sys.stdout is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)

    # -- messages

    def note(self, text: str) -> None:
        """Tell something useful; not with --quiet."""
        if not self.quiet:
            self.complain("note", text)

    def warn(self, text: str) -> None:
        """Tell something that needs attention but does not fail the command."""
        self.complain("warning", text)

    def complain(self, level: str, text: str) -> None:
        """Write one line to stderr: `fspf: error: …`, or a JSON document with --json."""
        if self.as_json:
            self.complain_json({level: text})
        else:
            self._to_stderr(f"fspf: {level}: {_message(text)}\n".encode("utf-8", "backslashreplace"))

    def give_up(self, kind: str, text: str, exit_code: int) -> None:
        """Write why the command ends in *exit_code* though no exception does it; with --json as the error object."""
        if self.as_json:
            self.complain_json({"error": {"type": kind, "message": text, "exit_code": exit_code}})
        else:
            self.complain("error", text)

    def complain_json(self, document: Mapping[str, Any]) -> None:
        """Write one JSON document to stderr."""
        self._to_stderr(json.dumps(document).encode("ascii") + b"\n")

    def _to_stderr(self, data: bytes) -> None:
        if self._bar is not None:
            self._bar.pause()
        try:
            if self._stdout is not None:
                self._stdout.flush()
        except OSError:
            pass  # said when the result is written or flushed
        if self._stderr is None:
            return
        try:
            self._stderr.write(data)
            self._stderr.flush()
        except OSError:
            pass  # nowhere left to say it; the exit code does

    # -- progress and questions

    @contextmanager
    def progress(self, label: str) -> Iterator[ProgressBar]:
        """Show a progress bar on stderr if that is a terminal."""
        shown = (
            not self.quiet
            and not self.as_json
            and self._stderr is not None
            and self._stderr is _binary(sys.stderr)
            and self._stderr.isatty()
        )
        with ProgressBar(label, shown=shown) as bar:
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None

    def confirm(self, question: str) -> bool:
        """Ask a person; False when there is no terminal to ask on."""
        if not (sys.stdin and sys.stdin.isatty() and self._stderr is not None and self._stderr.isatty()):
            return False
        self._to_stderr(f"{_message(question)} [y/N] ".encode("utf-8", "backslashreplace"))
        return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _binary(stream: Any) -> IO[bytes] | None:
    return getattr(stream, "buffer", None)


class LogHandler(logging.Handler):
    """Shows what the engine logs as messages of the command."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG if console.debug else logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if record.levelno >= logging.ERROR:
            level = "warning" if self._console.as_json else "error"  # "error" is how a command ends, an object
        else:
            level = "warning" if record.levelno >= logging.WARNING else "debug"
        self._console.complain(level, " ".join(record.getMessage().split("\n")))


@contextmanager
def logged(console: Console) -> Iterator[None]:
    """Show what `fspf` logs within the block."""
    logger, handler = logging.getLogger("fspf"), LogHandler(console)
    level = logger.level
    logger.addHandler(handler)
    if console.debug:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Listing:
    """One JSON document whose array is written item by item. Without --json it writes nothing.

    The document ends with ``"complete": true``, or false when an exception ended the command; members given to
    `close_with` come before it.
    """

    def __init__(self, console: Console, head: Mapping[str, Any], key: str) -> None:
        self._console = console
        self._head = head
        self._key = key
        self._count = 0
        self._tail: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._console.as_json:
            head = json.dumps(self._head)[:-1]
            self._write(f"{head}{', ' if self._head else ''}{json.dumps(self._key)}: [")
        return self

    def add(self, item: Mapping[str, Any]) -> None:
        """Write one item."""
        if self._console.as_json:
            self._write((",\n" if self._count else "\n") + json.dumps(item))
            self._count += 1

    def close_with(self, **members: Any) -> None:
        """Set members that follow the array."""
        self._tail.update(members)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.as_json and not isinstance(exc, OutputError):
            tail = json.dumps({**self._tail, "complete": exc is None})[1:]
            self._write(f"{chr(10) if self._count else ''}], {tail}\n")

    def _write(self, text: str) -> None:
        self._console.write(text.encode("ascii"))


class ProgressBar:
    """Bytes done of bytes expected. Call it with both; cheap when nothing is shown, and safe from any thread."""

    def __init__(self, label: str, *, shown: bool) -> None:
        self._label = label
        self._shown = shown
        self._rich: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            text, detail = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}")
            columns = (text, BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn(), detail)
            self._rich = Progress(*columns, console=RichConsole(stderr=True), transient=True)
            self._task = self._rich.add_task(self._label, total=None, detail="")
            self._rich.start()
        return self

    def __call__(self, done: int, total: int | None = None, detail: str = "") -> None:
        """Show that *done* bytes of *total* are finished."""
        if self._rich is not None:
            self._rich.update(self._task, completed=done, total=total, detail=detail)

    def pause(self) -> None:
        """Take the bar away so that a message gets a clean line; it comes back with the next update."""
        if self._rich is not None:
            self._rich.stop()
            self._rich.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None
