"""Where the lines of the audit log go: a file that is only ever appended to.

What is written, and where lines are kept while a sink is dead, is left to `fspf.cas.audit`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Protocol


class Sink(Protocol):
    """Takes lines. Called by one thread at a time."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def write(self, lines: bytes) -> None:
        """Take whole lines, all or none, durably.

        Raises:
            OSError: They were not taken, or perhaps in part; they will be written again.
        """

    def close(self) -> None:
        """Let go of what is open. Idempotent."""


class FileSink:
    """One file. Rotation is for others to do, by renaming it: the next write makes a new one.

    A write is one `write` at the end of the file, under a lock that other CAS processes with the same file honour, and
    one fdatasync. What a failing write left is cut off again; where that is not possible (an append-only file), a line
    feed is put behind it, and `audit verify` tells that the beginning of a line is no line.
    """

    def __init__(self, path: str, *, sync: bool = True) -> None:
        """Name the file; it is opened with the first write.

        Args:
            path: Absolute.
            sync: Wait for the disk after each write. Without, a power failure may take acknowledged lines.
        """
        self._path = path
        self._sync = sync
        self._fd = -1

    @property
    def name(self) -> str:
        """The path."""
        return self._path

    def write(self, lines: bytes) -> None:
        """Append *lines*."""
        fd = self._opened()
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                lines = b"\n" + lines
            try:
                left = memoryview(lines)
                while left:
                    left = left[os.write(fd, left) :]
                if self._sync:
                    os.fdatasync(fd)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(fd, size)
                raise
        except OSError:
            self.close()  # the next try looks at the path again
            raise
        finally:
            if self._fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _opened(self) -> int:
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                here, there = os.fstat(self._fd), os.stat(self._path)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    return self._fd
            self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags)
        except FileNotFoundError:
            fd = os.open(self._path, flags | os.O_CREAT, 0o640)
            try:
                self._sync_directory()
            except OSError:
                os.close(fd)
                raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", self._path)
        self._fd = fd
        return fd

    def _sync_directory(self) -> None:
        if not self._sync:
            return
        directory = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
