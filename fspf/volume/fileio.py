"""Real `io` objects over an open file of a volume.

Finding and creating the file is left to `fspf.volume.files`.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from fspf.volume.paths import failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer

_COPY_SIZE: Final = 1 << 20  # bytes copied at once
BUFFER_SIZE: Final = 1 << 16  # bytes; a call into the engine costs as much as sealing some KiB


class Handle(Protocol):
    """What a stream needs of the engine's `OpenFile`."""

    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int, /) -> bytes: ...
    def readinto(self, buf: WriteableBuffer, offset: int, /) -> int: ...
    def write(self, offset: int, data: ReadableBuffer, /) -> int: ...
    def append(self, data: ReadableBuffer, /) -> int: ...
    def truncate(self, size: int, /) -> None: ...
    def seek_data(self, offset: int, /) -> int: ...
    def seek_hole(self, offset: int, /) -> int: ...
    def fsync(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Mode:
    """A parsed mode string of `open`."""

    kind: str  # one of r w a x
    updating: bool
    binary: bool
    text: str  # as given

    @property
    def readable(self) -> bool:
        return self.kind == "r" or self.updating

    @property
    def writable(self) -> bool:
        return self.kind != "r" or self.updating

    @classmethod
    def parse(cls, mode: str) -> Mode:
        """Parse as the built-in `open` does.

        Raises:
            ValueError: As the built-in `open` raises it.
        """
        if not isinstance(mode, str):
            raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
        given = set(mode)
        if given - set("axrwb+t") or len(mode) > len(given):
            raise ValueError(f"invalid mode: {mode!r}")
        if {"t", "b"} <= given:
            raise ValueError("can't have text and binary mode at once")
        kinds = given & set("rwax")
        if len(kinds) != 1:
            raise ValueError("must have exactly one of create/read/write/append mode")
        return cls(kinds.pop(), "+" in given, "b" in given, mode)


class RawFile(io.RawIOBase):
    """The unbuffered stream: what `io.FileIO` is for a file of the host.

    Attributes:
        name: Path as it was given to `open`.
        warns: Whether it is a mistake to forget to close it.
    """

    def __init__(self, handle: Handle, name: str | bytes, mode: Mode) -> None:
        super().__init__()
        self._handle = handle
        self._mode = mode
        self._position = handle.size if mode.kind == "a" else 0
        self.name = name
        self.warns = True

    def __repr__(self) -> str:
        state = "[closed]" if self.closed else f"name={self.name!r} mode={self.mode!r}"
        return f"<{type(self).__module__}.{type(self).__qualname__} {state}>"

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and not self.closed:
            self._dealloc_warn(self)
            self.close()

    def _dealloc_warn(self, source: object) -> None:
        """Warn as `io.FileIO` does; the buffers around this call it by this name."""
        if self.warns and not self.closed:
            warnings.warn(f"unclosed file {source!r}", ResourceWarning, stacklevel=2, source=source)

    @property
    def handle(self) -> Handle:
        """The engine's open file."""
        return self._handle

    @property
    def mode(self) -> str:
        if self._mode.kind in "xa":
            return self._mode.kind + ("b+" if self._mode.updating else "b")
        if self._mode.readable:
            return "rb+" if self._mode.writable else "rb"
        return "wb"

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        self._check()
        if not self._mode.readable:
            raise io.UnsupportedOperation("File not open for reading")

    def _check_writable(self) -> None:
        self._check()
        if not self._mode.writable:
            raise io.UnsupportedOperation("File not open for writing")

    def readable(self) -> bool:
        self._check()
        return self._mode.readable

    def writable(self) -> bool:
        self._check()
        return self._mode.writable

    def seekable(self) -> bool:
        self._check()
        return True

    def isatty(self) -> bool:
        self._check()
        return False

    def fileno(self) -> int:
        """Refuse: there is no descriptor of the host behind a file of a volume."""
        self._check()
        raise io.UnsupportedOperation("a file in a volume has no file descriptor")

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._check_readable()
        count = self._handle.readinto(buffer, self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_readable()
        if size is None or size < 0:
            return self.readall()
        data = self._handle.read(self._position, size)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        self._check_readable()
        data = self._handle.read(self._position, max(self._handle.size - self._position, 0))
        self._position += len(data)
        return data

    def write(self, data: ReadableBuffer, /) -> int:
        self._check_writable()
        count = memoryview(data).nbytes
        if not count:
            return 0  # as write(2): nothing moves
        if self._mode.kind == "a":
            self._position = self._handle.append(data) + count
        else:
            count = self._handle.write(self._position, data)
            self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        if whence == os.SEEK_SET:
            target = offset
        elif whence == os.SEEK_CUR:
            target = self._position + offset
        elif whence == os.SEEK_END:
            target = self._handle.size + offset
        elif whence in {os.SEEK_DATA, os.SEEK_HOLE}:
            if offset < 0 or offset >= self._handle.size:
                raise failure(errno.ENXIO)
            target = self._handle.seek_data(offset) if whence == os.SEEK_DATA else self._handle.seek_hole(offset)
        else:
            raise failure(errno.EINVAL)
        if target < 0:
            raise failure(errno.EINVAL)
        self._position = target
        return target

    def tell(self) -> int:
        self._check()
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        self._check_writable()
        if size is None:
            size = self._position
        if size < 0:
            raise failure(errno.EINVAL)
        self._handle.truncate(size)
        return size

    def fsync(self) -> None:
        """Return when all that was written here is committed; flush the buffers around this first."""
        self._check()
        self._handle.fsync()

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()
        finally:
            self._handle.close()


def check_arguments(mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """Refuse what the built-in `open` refuses, before anything is created or truncated.

    Raises:
        ValueError: As the built-in `open` raises it.
    """
    if mode.binary:
        for value, what in ((encoding, "encoding"), (errors, "errors"), (newline, "newline")):
            if value is not None:
                raise ValueError(f"binary mode doesn't take an {what} argument".replace("an newline", "a newline"))
    elif buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    elif newline not in {None, "", "\n", "\r", "\r\n"}:
        raise ValueError(f"illegal newline value: {newline!r}")
    if mode.binary and buffering == 1:
        warnings.warn(
            "line buffering (buffering=1) isn't supported in binary mode, the default buffer size will be used",
            RuntimeWarning,
            stacklevel=4,
        )


def wrap(
    raw: RawFile, mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> IO[Any]:
    """Put the buffers and the text layer around *raw* that the built-in `open` would; closes *raw* if that fails."""
    result: IO[Any] = raw  # type: ignore[assignment]  # typeshed: no RawIOBase is an IO
    try:
        if mode.binary and buffering == 0:
            return result
        size = buffering if buffering > 1 else BUFFER_SIZE
        if mode.updating:
            result = io.BufferedRandom(raw, size)
        elif mode.writable:
            result = io.BufferedWriter(raw, size)
        else:
            result = io.BufferedReader(raw, size)
        if mode.binary:
            return result
        text = io.TextIOWrapper(result, io.text_encoding(encoding, 4), errors, newline, line_buffering=buffering == 1)
        text.mode = mode.text  # type: ignore[misc]  # as the built-in open does
    except BaseException:
        result.close()
        raise
    return text


def copy_content(source: Handle, target: Handle) -> None:
    """Make *target* equal to *source*: data is copied, holes stay holes."""
    target.truncate(0)
    for start, length in data_ranges(source):
        for offset in range(start, start + length, _COPY_SIZE):
            target.write(offset, source.read(offset, min(_COPY_SIZE, start + length - offset)))
    target.truncate(source.size)


def data_ranges(handle: Handle) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is no hole."""
    here, size = 0, handle.size
    while here < size:
        try:
            start = handle.seek_data(here)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        here = handle.seek_hole(start)
        yield start, here - start
