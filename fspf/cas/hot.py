"""The newest state of one volume beside the CAS's database: what an fsync waits for is one write in place and one sync.

Which state counts is decided by `fspf.cas.embedded`; how it is sealed, by `fspf.cas.sealing`. A row of the database and
this file hold versions of one sealed state, and the higher version counts. Whoever changes either holds the lock of this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC: Final = b"FSPC-HOT"
_HEAD: Final = struct.Struct("<8sQI")
_PLACE_LEN: Final = 512  # bytes: a sector, which is written whole or not at all
_STRIDE: Final = 4096  # two places never share a page
FILE_LEN: Final = 2 * _STRIDE
MAX_STATE_LEN: Final = _PLACE_LEN - _HEAD.size - 8
_SUFFIX: Final = "-hot-"


class Version(NamedTuple):
    """One version of a volume's state."""

    number: int
    sealed: bytes


class HotFile:
    """The file of one volume, open and locked for as long as `HotFile.locked` lasts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @staticmethod
    def path_of(database: str, row_id: bytes) -> str:
        """Return where the file of a row is. The row id is sealed: the name shows nothing."""
        return f"{database}{_SUFFIX}{row_id[:16].hex()}"

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: str) -> Iterator[HotFile | None]:
        """Open the file and keep others from changing the volume's state; nothing if there is no file.

        Raises:
            OSError: It cannot be opened.
        """
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                yield None
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not _is_at(path, fd):  # its last user removed it meanwhile
                    continue
                yield cls(fd)
                return
            finally:
                os.close(fd)

    @staticmethod
    def make(path: str) -> None:
        """Make the file, with its blocks, so that writing a version needs one sync and no metadata.

        Only within a transaction of the database: whoever changes a row looks for this file within his.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(fd, bytes(FILE_LEN), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def newest(self) -> Version | None:
        """Return the newest version that is whole."""
        return _newest(os.pread(self._fd, FILE_LEN, 0))

    def write(self, version: Version) -> None:
        """Write a version over the one before the last, durably: a torn write leaves the last one."""
        assert len(version.sealed) <= MAX_STATE_LEN
        body = _HEAD.pack(_MAGIC, version.number, len(version.sealed)) + version.sealed
        body += bytes(_PLACE_LEN - 8 - len(body))
        place = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
        os.pwrite(self._fd, place, version.number % 2 * _STRIDE)
        os.fdatasync(self._fd)


def read_hot(path: str) -> Version | None:
    """Return the newest version without a lock: a reader may come a moment before or after a change."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _newest(os.pread(fd, FILE_LEN, 0)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _newest(raw: bytes) -> Version | None:
    found = [_parse(raw[at : at + _PLACE_LEN]) for at in (0, _STRIDE)]
    return max((version for version in found if version is not None), default=None)


def _parse(place: bytes) -> Version | None:
    if len(place) != _PLACE_LEN or not place.startswith(_MAGIC):
        return None
    if xxhash.xxh3_64_intdigest(place[:-8]) != int.from_bytes(place[-8:], "little"):
        return None
    _, number, length = _HEAD.unpack_from(place)
    return Version(number, place[_HEAD.size : _HEAD.size + length]) if length <= MAX_STATE_LEN else None


def _is_at(path: str, fd: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))
