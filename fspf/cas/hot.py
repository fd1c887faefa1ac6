"""The newest states of one busy volume beside the CAS's database, so that an fsync waits for one write and one sync.

It also holds records of the volume's intent log; what they are good for is docs/COMMIT.md's subject (9): here they are bytes. Which state counts is decided by `fspf.cas.embedded`; how it is sealed, by `fspf.cas.sealing`. A row of the database and
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

_PAGE: Final = 4096  # entries begin and end at multiples of it: a torn write harms no other entry
RING_LEN: Final = 1 << 20  # bytes of the file: a head of one page, then entries
_LEAST_IN_A_RING: Final = 4  # versions: a larger one is not taken
_SUFFIX: Final = "-hot-"
_NEW: Final = ".new"

_HEAD: Final = struct.Struct("<8sQQ")  # magic, changes of the row, settled version
_HEAD_MAGIC: Final = b"FSPC-RNG"
_ENTRY: Final = struct.Struct("<8sQQIIQ")  # magic, version, settled version, lengths of state and record, checksum
_ENTRY_MAGIC: Final = b"FSPC-ENT"

_OLD: Final = struct.Struct("<8sQI")  # ADR 10: two places of a sector each, no records
_OLD_MAGIC: Final = b"FSPC-HOT"
_OLD_PLACE: Final = 512


class Version(NamedTuple):
    """One version of a volume's state.

    Attributes:
        settled: Records that came with this version or one before are not needed any more.
        record: What the volume's log may have lost; empty: none came with it.
    """

    number: int
    sealed: bytes
    settled: int = 0
    record: bytes = b""

    def pack(self) -> bytes:
        """Encode it, filled up to whole pages."""
        parts = (self.number, self.settled, len(self.sealed), len(self.record))
        check = xxhash.xxh3_64(_ENTRY.pack(_ENTRY_MAGIC, *parts, 0)[:-8])
        check.update(self.sealed)
        check.update(self.record)
        head = _ENTRY.pack(_ENTRY_MAGIC, *parts, check.intdigest())
        length = _ENTRY.size + len(self.sealed) + len(self.record)
        return b"".join((head, self.sealed, self.record, bytes(-length % _PAGE)))

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return -(-(_ENTRY.size + len(self.sealed) + len(self.record)) // _PAGE) * _PAGE


class HotFile:
    """The file of one volume. Changes only while it is locked.

    Attributes:
        is_outdated: It is of the form that ADR 10 had: to be read, not to be written.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int = fd
        self.is_outdated = os.pread(fd, len(_HEAD_MAGIC), 0) != _HEAD_MAGIC

    @staticmethod
    def path_of(database: str, row_id: bytes) -> str:
        """Return where the file of a row is. The row id is sealed: the name shows nothing."""
        return f"{database}{_SUFFIX}{row_id[:16].hex()}"

    @classmethod
    def open(cls, path: str) -> HotFile | None:
        """Open the file without its lock; None if there is none.

        Raises:
            OSError: It cannot be opened.
        """
        try:
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: str) -> Iterator[HotFile | None]:
        """Open the file and keep others from changing the volume's state; nothing if there is no file.

        Raises:
            OSError: It cannot be opened.
        """
        while True:
            hot = cls.open(path)
            if hot is None:
                yield None
                return
            try:
                with hot.lock():
                    if not hot.is_at(path):  # its last user removed it meanwhile
                        continue
                    yield hot
                return
            finally:
                hot.close()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from changing the volume's state."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Whoever forgets a CAS without closing it leaves no file open, as it is with its database."""
        self.close()

    @classmethod
    @contextlib.contextmanager
    def made(cls, path: str) -> Iterator[None]:
        """Make the file, with its blocks, so that writing a version needs one sync and no metadata; and keep it locked.

        Only within a transaction of the database: whoever changes a row looks for this file within his. The lock must
        outlast the transaction: who finds the file before its end would take the row as it was before.
        """
        new = path + _NEW
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        hot = cls(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        try:
            with hot.lock():
                os.pwrite(hot.descriptor, _HEAD.pack(_HEAD_MAGIC, 0, 0).ljust(RING_LEN, b"\0"), 0)
                os.fsync(hot.descriptor)
                os.rename(new, path)
                directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                yield
        finally:
            hot.close()
            with contextlib.suppress(OSError):
                os.unlink(new)

    def is_at(self, path: str) -> bool:
        """Tell whether it still has that name."""
        try:
            there = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._fd

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    @property
    def changes(self) -> int:
        """How often somebody was about to change the row, or to remove this file: what one knows of both holds while it is the same."""
        found: int = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))[1]
        return found

    def note_change(self) -> None:
        """Tell whoever has this file open that the row changes, or the file goes. Only those of this boot need to hear it."""
        if not self.is_outdated:
            magic, changes, settled = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))
            os.pwrite(self._fd, _HEAD.pack(magic, changes + 1, settled), 0)

    def settle(self, version: int) -> None:
        """Note that no record that came with *version* or before is needed any more."""
        if not self.is_outdated:
            magic, changes, settled = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))
            os.pwrite(self._fd, _HEAD.pack(magic, changes, max(settled, version)), 0)

    def sync(self) -> None:
        """Make durable what a killed process may have left in the host's memory."""
        os.fdatasync(self._fd)

    def versions(self) -> list[tuple[int, Version]]:
        """Return all whole versions with their places, oldest first."""
        return _versions(_read(self._fd))

    def has_unsettled(self) -> bool:
        """Tell whether there are records that may still be needed."""
        raw = _read(self._fd)
        found = [version for _, version in _versions(raw)]
        settled = max(
            [version.settled for version in found] + ([] if self.is_outdated else [_HEAD.unpack_from(raw)[2]])
        )
        return any(version.record and version.number > settled for version in found)

    def write(self, place: int, version: Version) -> None:
        """Write a version at its place, durably."""
        os.pwrite(self._fd, version.pack(), place)
        os.fdatasync(self._fd)


class Ring:
    """Where the next version goes in a file: never over one that may be needed. Memory of one who advances, no I/O.

    Args:
        hot: The file; read once.
    """

    def __init__(self, hot: HotFile) -> None:
        found = hot.versions()
        self._len = hot.length
        self._newest = found[-1][0] if found else None
        self._end = found[-1][0] + found[-1][1].length if found else _PAGE
        self._kept: list[tuple[int, int, int]] = []  # (generation, version, place), oldest first

    def lend(self) -> tuple[int, int, int, list[tuple[int, int, int]]]:
        """Return length, end, place of the newest version (-1: none) and records that are needed."""
        return self._len, self._end, -1 if self._newest is None else self._newest, list(self._kept)

    def take_back(self, end: int, newest: int, kept: list[tuple[int, int, int]]) -> None:
        """Go on from what somebody else has made of it."""
        self._end, self._newest, self._kept = end, None if newest < 0 else newest, kept

    def settle(self, generation: int) -> None:
        """Forget records up to *generation*: the volume has them."""
        while self._kept and self._kept[0][0] <= generation:
            del self._kept[0]

    def settle_all(self) -> None:
        """Forget all records."""
        self._kept.clear()

    def settled_before(self, version: int) -> int:
        """Return the version up to which no record is needed once *version* is written."""
        return self._kept[0][1] - 1 if self._kept else version - 1

    def place(self, length: int) -> int | None:
        """Return where *length* bytes fit, None if something there may be needed."""
        if length > self._len // _LEAST_IN_A_RING:
            return None
        limit = self._kept[0][2] if self._kept else self._newest
        if limit is not None and limit >= self._end:
            return self._end if self._end + length <= limit else None
        if self._end + length <= self._len:
            return self._end
        return _PAGE if limit is None or _PAGE + length <= limit else None

    def written(self, place: int, version: Version, generation: int) -> None:
        """Note that a version was written at *place*."""
        self._newest = place
        self._end = place + version.length
        if version.record:
            self._kept.append((generation, version.number, place))


def read_hot(path: str) -> list[Version]:
    """Return all whole versions without a lock, oldest first: a reader may come a moment before or after a change."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    try:
        raw = _read(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return [version for _, version in _versions(raw)]


def read_newest(path: str) -> Version | None:
    """Return the newest whole version, likewise."""
    found = read_hot(path)
    return found[-1] if found else None


def _read(fd: int) -> bytes:
    return os.pread(fd, RING_LEN, 0)


def _versions(raw: bytes) -> list[tuple[int, Version]]:
    is_ring = raw.startswith(_HEAD_MAGIC)
    places = range(_PAGE, len(raw), _PAGE) if is_ring else (0, _PAGE)
    parse = _parse if is_ring else _parse_old
    found = [(place, version) for place in places if (version := parse(raw, place)) is not None]
    return sorted(found, key=lambda each: each[1].number)


def _parse(raw: bytes, place: int) -> Version | None:
    if not raw.startswith(_ENTRY_MAGIC, place):
        return None
    head = raw[place : place + _ENTRY.size]
    _, number, settled, sealed_len, record_len, check = _ENTRY.unpack(head)
    begin = place + _ENTRY.size
    body = raw[begin : begin + sealed_len + record_len]
    digest = xxhash.xxh3_64(head[:-8])
    digest.update(body)
    if len(body) != sealed_len + record_len or digest.intdigest() != check:
        return None
    return Version(number, body[:sealed_len], settled, body[sealed_len:])


def _parse_old(raw: bytes, at: int) -> Version | None:
    place = raw[at : at + _OLD_PLACE]
    if len(place) != _OLD_PLACE or not place.startswith(_OLD_MAGIC):
        return None
    if xxhash.xxh3_64_intdigest(place[:-8]) != int.from_bytes(place[-8:], "little"):
        return None
    _, number, length = _OLD.unpack_from(place)
    return Version(number, place[_OLD.size : _OLD.size + length]) if length <= _OLD_PLACE - _OLD.size - 8 else None
