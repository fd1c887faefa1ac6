"""The files of a volume directory: read them as claims, write them so that a crash leaves the old or the new.

What the bytes mean is in `fspf.core.format`; segments belong to `fspf_native`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fspf.core.errors import IntegrityError, LeaseHeldError, NotAVolumeError, TornError, VolumeExistsError
from fspf.core.format import HEADER_LEN, HEADER_MAGIC, KEYRING_RECORD_LEN, ROOT_LEN, ROOT_NAMES, Header, Keyring
from fspf.core.log import LOG_LEN
from fspf.core.types import MAX_EPOCH
from fspf.volume.holder import this_process

if TYPE_CHECKING:
    from fspf.core.format import KeyringRecord

HEADER: Final = "header"
KEYRING: Final = "keyring"
KEYRING_BACKUP: Final = "keyring.bak"
SEGMENTS: Final = "segments"
LOCK: Final = "lock"
LOG: Final = "log"
_NEW: Final = ".new"
_OWN_NAMES: Final = frozenset(
    {
        HEADER,
        HEADER + _NEW,
        KEYRING,
        KEYRING + _NEW,
        KEYRING_BACKUP,
        KEYRING_BACKUP + _NEW,
        SEGMENTS,
        LOCK,
        LOG,
        LOG + _NEW,
        *ROOT_NAMES,
    }
)
# What open(2) says where a symbolic link, a socket or a device without a driver lies in a file's place.
_NO_FILE: Final = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
_SPARE_RECORDS: Final = 2  # of the keyring: one of an epoch granted just now, one cut off


def is_volume(path: str | bytes | os.PathLike[str]) -> bool:
    """Tell whether *path* is a directory whose header begins with the magic; a look, not a check."""
    try:
        with (Path(os.fsdecode(path)) / HEADER).open("rb") as file:
            return file.read(len(HEADER_MAGIC)) == HEADER_MAGIC
    except OSError:
        return False


def open_regular(path: Path) -> FileIO:
    """Open a file that the host keeps for us, for reading, unbuffered.

    The host may have put a fifo, a device or a link in its place: none of them is waited for, followed or read.

    Raises:
        FileNotFoundError: It is not there, or something else is.
        OSError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno in _NO_FILE:
            raise FileNotFoundError(errno.ENOENT, f"no regular file: {exc.strerror}", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    return FileIO(fd)


def sync_directory(path: Path) -> None:
    """Make renames and new names in *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_foreign(path: Path) -> None:
    """Remove what lies in the place of a file of ours and is none: a link, a fifo, an empty directory."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.rmdir()
        elif not stat.S_ISREG(mode):
            path.unlink()


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


class Layout:
    """One volume directory.

    Reading methods return claims; nothing here verifies more than a checksum.
    """

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self.path = Path(os.fsdecode(path)).absolute()
        self.segments = self.path / SEGMENTS
        self._lock_fd: int | None = None
        self._root_fds: dict[str, int] = {}
        self._log_fd: int | None = None

    def close(self) -> None:
        """Close files and end the lock on this machine. Idempotent."""
        for fd in self._root_fds.values():
            os.close(fd)
        self._root_fds.clear()
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def lock(self) -> None:
        """Exclude other writers on this machine.

        Raises:
            LeaseHeldError: Another process (or another `Volume` of this one) has the volume open for writing.
        """
        fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            if exc.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise
            message = f"{self.path} is open for writing by another process on this machine: close or unmount it there"
            raise LeaseHeldError(this_process("unknown"), message) from None
        self._lock_fd = fd

    # -- making a volume

    def prepare(self) -> None:
        """Make the directory, or take an empty one or what an interrupted creation left.

        Raises:
            VolumeExistsError: There is a volume, or something else, in the directory.
        """
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            if not self.path.is_dir():
                message = f"{self.path} exists and is no directory: choose another name"
                raise VolumeExistsError(message) from None
            names = {entry.name for entry in os.scandir(self.path)}
            if HEADER in names:
                message = f"{self.path} holds a volume already: choose another name, or delete it first"
                raise VolumeExistsError(message) from None
            if foreign := sorted(names - _OWN_NAMES):
                message = (
                    f"{self.path} is not empty ({foreign[0]!r} is in it): choose another name or an empty directory"
                )
                raise VolumeExistsError(message) from None
            self.lock()
            self._clear()
        else:
            self.lock()
        self.segments.mkdir(mode=0o700)

    def _clear(self) -> None:
        """Remove what an interrupted creation left; without a header none of it was ever in use."""
        if self.segments.is_dir():
            for entry in os.scandir(self.segments):
                os.unlink(entry.path)
            self.segments.rmdir()
        for name in _OWN_NAMES - {SEGMENTS, LOCK}:
            (self.path / name).unlink(missing_ok=True)

    def discard(self, *, made_directory: bool) -> None:
        """Remove what a failed creation made."""
        self._clear()
        (self.path / LOCK).unlink(missing_ok=True)
        if made_directory:
            self.path.rmdir()

    def write_header(self, packed: bytes) -> None:
        """Write the header last of all: from now on this is a volume."""
        self._replace(HEADER, packed)
        sync_directory(self.path.parent)

    # -- reading

    def read_header(self) -> tuple[Header, bytes]:
        """Return the header and its bytes.

        Raises:
            NotAVolumeError: The directory is missing or holds nothing of a volume.
            FormatError: As `Header.parse`; also a header that is gone while the rest is there.
        """
        try:
            raw = self._read(HEADER, HEADER_LEN)
        except (FileNotFoundError, NotADirectoryError):
            if not self.path.exists():
                message = f"{self.path}: no such directory"
                raise NotAVolumeError(message) from None
            if any((self.path / name).exists() for name in (KEYRING, KEYRING_BACKUP, *ROOT_NAMES)):
                message = (
                    f"{self.path}: header is missing though other files of a volume are there: "
                    "restore it from a backup, or delete the rest of an interrupted creation"
                )
                raise IntegrityError(message) from None
            message = f"{self.path} is not a volume: it has no header"
            raise NotAVolumeError(message) from None
        if raw[:8] != HEADER_MAGIC and not (self.path / ROOT_NAMES[0]).exists() and not (self.path / KEYRING).exists():
            message = f"{self.path} is not a volume: header does not begin with fspf's magic"
            raise NotAVolumeError(message)
        return Header.parse(raw), raw

    def check_segments(self) -> None:
        """Refuse a volume whose segments directory is gone, or is no directory of its own.

        Raises:
            IntegrityError: So it is.
        """
        try:
            found = stat.S_ISDIR(self.segments.lstat().st_mode)
        except FileNotFoundError:
            found = False
        if not found:
            message = (
                f"{self.path}: the directory of the segments is missing: restore it from the newest copy of the volume"
            )
            raise IntegrityError(message)

    def read_keyring(self, epochs: int = MAX_EPOCH) -> Keyring:
        """Return what both copies of the keyring say together. Raises `FormatError`.

        Args:
            epochs: Number of epochs that the CAS has granted; more than two records of each fspf does not write,
                and nothing behind that is read.
        """
        copies = []
        for name in (KEYRING, KEYRING_BACKUP):
            try:
                copies.append(self._read(name, KEYRING_RECORD_LEN * (2 * epochs + _SPARE_RECORDS)))
            except FileNotFoundError:
                copies.append(b"")
        return Keyring.parse(*copies)

    def read_roots(self) -> dict[str, bytes | IntegrityError]:
        """Return the bytes of both root files, or why there are none."""
        found: dict[str, bytes | IntegrityError] = {}
        for name in ROOT_NAMES:
            try:
                found[name] = self._read(name, ROOT_LEN)
            except FileNotFoundError:
                found[name] = TornError("file is missing")
        return found

    def read_log(self) -> bytes:
        """Return the bytes of the intent log; none if it is missing."""
        try:
            return self._read(LOG, LOG_LEN)[:LOG_LEN]
        except FileNotFoundError:
            return b""

    def _read(self, name: str, limit: int) -> bytes:
        with BufferedReader(open_regular(self.path / name)) as file:
            return file.read(limit + 1)  # one byte more, so that a file that is too long is noticed

    # -- writing

    def _keyring_sizes(self) -> set[int]:
        return {(self.path / name).lstat().st_size for name in (KEYRING, KEYRING_BACKUP)}

    def append_keyring(self, records: list[KeyringRecord], known: Keyring) -> None:
        """Add *records* to both copies, durably, one copy after the other; mend copies that differ.

        What names an epoch that is only now granted was forged, and gives way: else it would contradict ours.
        """
        new = {(record.epoch, record.key_version) for record in records}
        kept = [record for record in known.records if (record.epoch, record.key_version) not in new]
        length = len(known.records) * KEYRING_RECORD_LEN
        if known.repair or len(kept) != len(known.records) or self._keyring_sizes() != {length}:
            self.replace_keyring([*kept, *records])
            return
        added = b"".join(record.pack() for record in records)
        for name in (KEYRING, KEYRING_BACKUP):
            fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                _write_all(fd, added, length)
                os.fsync(fd)
            finally:
                os.close(fd)

    def replace_keyring(self, records: list[KeyringRecord]) -> None:
        """Write both copies anew, each by rename."""
        packed = b"".join(record.pack() for record in records)
        for name in (KEYRING, KEYRING_BACKUP):
            self._replace(name, packed)

    def write_root(self, generation: int, frame: bytes) -> None:
        """Write a root record in place and make it durable. COMMIT.md: the other root file is not touched."""
        if self._lock_fd is None:
            message = "a root record is written only under the volume's lock"
            raise RuntimeError(message)
        name = ROOT_NAMES[generation % 2]
        fd = self._root_fds.get(name)
        if fd is None:
            _remove_foreign(self.path / name)
            fd = os.open(
                self.path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
            )
            self._root_fds[name] = fd
            sync_directory(self.path)
        _write_all(fd, frame, 0)
        if os.fstat(fd).st_size != ROOT_LEN:
            os.ftruncate(fd, ROOT_LEN)
        os.fdatasync(fd)

    def prepare_log(self) -> None:
        """Make the intent log if it is not there, with all its blocks: later syncs then have no metadata to write.

        Raises:
            OSError: It cannot be made; nothing is there then.
        """
        path = self.path / LOG
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size == LOG_LEN and status.st_blocks * 512 >= LOG_LEN:
                self._log_fd = fd
                return
            os.close(fd)
        except OSError as exc:
            if exc.errno != errno.ENOENT and exc.errno not in _NO_FILE:
                raise
        try:
            self._replace(LOG, bytes(LOG_LEN))
        except OSError:
            with suppress(OSError):
                (self.path / (LOG + _NEW)).unlink(missing_ok=True)
            raise
        self._log_fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    @property
    def log_is_ready(self) -> bool:
        return self._log_fd is not None

    @property
    def log_descriptor(self) -> int | None:
        """Of the open log, if it is ready."""
        return self._log_fd

    def write_log(self, offset: int, frame: bytes) -> None:
        """Write a record of the intent log; `sync_log` makes it durable."""
        if self._lock_fd is None or self._log_fd is None:
            message = "the log is written only under the volume's lock, after `prepare_log`"
            raise RuntimeError(message)
        _write_all(self._log_fd, frame, offset)

    def sync_log(self) -> None:
        """Make the log durable: what we wrote, or what another writer may have left in the host's memory."""
        if self._log_fd is not None:
            os.fdatasync(self._log_fd)
            return
        fd = os.open(self.path / LOG, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _replace(self, name: str, data: bytes) -> None:
        new = self.path / (name + _NEW)
        new.unlink(missing_ok=True)  # of an interrupted attempt, or the host's: never written through
        _remove_foreign(self.path / name)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(self.path / name)
        sync_directory(self.path)
