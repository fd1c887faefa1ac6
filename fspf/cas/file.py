"""The SQLite file of the embedded CAS: making, opening, unlocking it, and transactions on it.

What its rows mean is left to `fspf.cas.embedded`; how the master key is kept to `fspf.cas.unlock`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import apsw

from fspf.cas.sealing import Sealer
from fspf.cas.unlock import Unlock, half_made_key_files, place_new, read_key_file, sync_directory, write_key_file
from fspf.core.errors import CasError, CasUnreachableError, UnsupportedFormatError, WrongKeyError
from fspf.core.keys import AuthenticationError, SecretKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLICATION_ID: Final = 0x46535043  # "FSPC"; PRAGMA application_id
SCHEMA_VERSION: Final = 1  # PRAGMA user_version
BUSY_TIMEOUT_S: Final = 5.0  # how long another process may keep the file locked
_FIRST_PAUSE_S: Final = 0.0005
_LONGEST_PAUSE_S: Final = 0.01
_CHECK_LABEL: Final = b"fspf cas 1 check"

_SCHEMA: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE volume (
    id BLOB PRIMARY KEY,      -- volume id, sealed
    version INTEGER NOT NULL, -- counts the changes of this row
    state BLOB NOT NULL,      -- anchor, epoch, lease, freshness; sealed
    fixed BLOB NOT NULL       -- name, wrapped volume key; sealed
) STRICT, WITHOUT ROWID;
"""

# SQLite's locks belong to a process and are lost in a fork, while the library goes on to believe in them. So nothing
# is open while the process forks. The set is needed since hooks for forks cannot be taken back; it and the order of
# locks (this one first, then those of the objects) are the only state of this module.
_fork_lock: Final = threading.RLock()
_instances: Final[weakref.WeakSet[CasFile]] = weakref.WeakSet()
_forking: Final[list[CasFile]] = []


class CasFile:
    """One SQLite file with sealed rows, its key file, and the one connection to it.

    Thread-safe: one connection, one lock, never held while another lock is taken. A transaction that changes
    something ends in one fsync.

    Attributes:
        path: Absolute path of the file.
        key_path: Path of its key file.
    """

    def __init__(
        self, path: str, *, passphrase: Callable[[], bytes] | None, create: bool, busy_timeout_s: float, vfs: str | None
    ) -> None:
        """Open and unlock the file. If there is none, nothing happens before `make`.

        Args:
            path: The file; its key file is beside it, with `.key` added.
            passphrase: Asked only if the file is locked with a passphrase.
            create: Whether the file may be made.
            busy_timeout_s: How long to wait for another process.
            vfs: SQLite VFS, for tests that inject faults.

        Raises:
            CasError: There is no file (and none may be made), or it is not a CAS, or damaged.
            CasUnreachableError: The file cannot be read.
            WrongKeyError: Key file or passphrase are missing or wrong.
        """
        self.path: Final = os.path.abspath(path)
        self.key_path: Final = self.path + ".key"
        self._pending_path: Final = self.key_path + ".new"
        self.lock: Final = threading.RLock()
        self.may_create: Final = create
        self._passphrase = passphrase
        self._busy_timeout_s = busy_timeout_s
        self._vfs = vfs
        self._connection: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None  # device and inode that the connection has open
        self._pid = os.getpid()
        self._frozen = ""  # why the file cannot be written, if it was opened as an image
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._master: SecretKey | None = None
        self._sealer: Sealer | None = None
        self._in_use = 0  # how deep in `_translated`; a fork from there leaves the connection alone
        self._closed = False
        with _fork_lock:
            _instances.add(self)
        try:
            with self.lock, self._translated():
                if self.exists():
                    self._connect()
                elif not create:
                    raise self._missing()
        except BaseException:
            self.close()
            raise

    @property
    def sealer(self) -> Sealer:
        """What seals and opens rows; there once a connection was given out."""
        assert self._sealer is not None
        return self._sealer

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the file that is open, None if it is an image."""
        return None if self._frozen or self._connection is None else self._identity

    def close(self) -> None:
        """Let go of the file and the master key. Idempotent."""
        with self.lock:
            self._closed = True
            self._master = self._sealer = None
            with contextlib.suppress(apsw.Error):
                self._disconnect()
        with _fork_lock:
            _instances.discard(self)

    def change_passphrase(self, new: bytes | None) -> None:
        """Wrap the master key anew: under the passphrase *new*, or (None) under a fresh key file.

        Interrupted at any point, either the old way opens the CAS or the new one does: a new key file is complete
        under another name before the store changes, and gets its name after. Key files change only within a
        transaction, so that two who do this at once do not remove each other's.

        Raises:
            UsageError: *new* is empty.
        """
        with self.lock, self._translated():
            self.make()
            with self.transaction() as connection:
                self._settle_key_files(connection)
                assert self._master is not None
                if new is None:
                    unlock = Unlock.by_key_file(self._master, write_key_file(self._pending_path))
                else:
                    unlock = Unlock.by_passphrase(self._master, new)
                connection.execute("UPDATE meta SET value = ? WHERE name = 'unlock'", (unlock.pack(),))
            with self.transaction() as connection:
                self._settle_key_files(connection)
            with contextlib.suppress(apsw.Error):  # the master key under the old key stays no longer than it must
                self._live().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def has_passphrase(self) -> bool:
        """Whether a passphrase, not a key file, unlocks this CAS."""
        with self.lock:
            if not self.exists():
                return False
            with self.reading() as connection:
                return self._stored_unlock(connection).argon2 is not None

    # -- transactions

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Give a connection on which one statement is run."""
        with self.lock, self._translated():
            yield self._live()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """Give a connection within a transaction that may write; commit it at the end."""
        with self.lock, self._translated():
            connection = self._live()
            if self._frozen or connection.readonly("main"):
                reason = self._frozen or "the file cannot be written"
                raise CasError(f"the CAS {self.path} is read-only ({reason}): only reading a volume is possible")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                self._roll_back(connection)
                raise
            try:
                connection.execute("COMMIT")
            except BaseException:
                self._roll_back(connection)
                raise

    @staticmethod
    def _roll_back(connection: apsw.Connection) -> None:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite and the kernel say into errors of FSPF."""
        self._in_use += 1
        try:
            yield
        except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError):
            raise CasUnreachableError(
                f"the CAS {self.path} was locked by another process for {self._busy_timeout_s:g} s"
            ) from None
        except apsw.FullError:
            raise CasUnreachableError(f"the CAS {self.path} cannot be written: no space left on its disk") from None
        except apsw.IOError as exc:
            raise CasUnreachableError(f"the CAS {self.path}: input/output error on its disk ({exc})") from None
        except apsw.CantOpenError:
            raise CasUnreachableError(
                f"the CAS {self.path} cannot be opened: check that file and directory are there and may be read and written"
            ) from None
        except (apsw.ReadOnlyError, apsw.PermissionsError):
            raise CasError(f"the CAS {self.path} is read-only: only reading a volume is possible") from None
        except apsw.NotADBError:
            raise CasError(f"{self.path} is not a CAS file of fspf") from None
        except apsw.CorruptError:
            raise CasError(f"the CAS {self.path} is damaged: restore it from a backup") from None
        except apsw.Error as exc:
            raise CasError(f"the CAS {self.path}: {exc}") from None
        except OSError as exc:
            raise CasUnreachableError(f"the CAS {self.path}: {exc.strerror or exc}") from None
        finally:
            self._in_use -= 1

    # -- connections

    def _live(self) -> apsw.Connection:
        """Return a connection to the file that now has the name; unlocked."""
        if self._closed:
            raise CasError(f"the CAS {self.path} was closed")
        if self._connection is not None and (
            self._frozen  # an image shows one instant only
            or self._identity != self._stat()  # moved away, or put back from a backup
            or self._pid != os.getpid()
        ):
            if not self._frozen and self._pid == os.getpid():
                # SQLite leaves the log of a file that lost its name where it is, for the next file of that name.
                with contextlib.suppress(apsw.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._disconnect()
        self._pid = os.getpid()
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        return self._connection

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino

    def exists(self) -> bool:
        return self._stat() is not None

    def _connect(self) -> None:
        """Open the file, as an image if it (or its directory) cannot be written, and unlock it."""
        self._identity = self._stat()
        if self._identity is None:
            raise self._missing()
        if os.path.isdir(self.path):
            raise CasError(f"{self.path} is a directory: name the CAS file itself, such as {self.path}/cas.sqlite")
        if os.path.getsize(self.path) == 0:
            raise CasError(f"the CAS {self.path} is empty: it was cut off; restore it from a backup")
        self._frozen = ""
        try:
            try:
                if self._may_connect():
                    self._try_connect(self.path, apsw.SQLITE_OPEN_READWRITE)
                else:
                    self._connect_to_image()
            except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.IOError):
                # A file in WAL mode needs files beside it even for reading. Where they cannot be made, nobody
                # writes, or only somebody who will not mind being read at an instant between two commits.
                self._disconnect()
                self._connect_to_image()
            self._unlock()
        except BaseException:
            self._disconnect()
            raise

    def _may_connect(self) -> bool:
        """Tell whether SQLite may open the file itself, and mend what an earlier reader left beside it.

        What SQLite makes beside a file gets the file's mode, and is left behind by a connection that cannot write:
        made for a read-only file, it would keep everybody from writing after the file is writable again.
        """
        beside = [self.path + suffix for suffix in ("-wal", "-shm")]
        if not os.access(self.path, os.W_OK, effective_ids=True):
            return all(map(os.path.exists, beside))  # a writer's, to be read with it; nothing is made
        mode = stat.S_IMODE(os.stat(self.path).st_mode)
        for path in beside:
            with contextlib.suppress(OSError):  # gone, or another's: SQLite will say so
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWUSR:
                    os.chmod(path, mode)
        return True

    def _try_connect(self, name: str, flags: int) -> None:
        connection = apsw.Connection(name, flags=flags, vfs=self._vfs)
        self._connection = connection
        connection.set_busy_handler(_Patience(self._busy_timeout_s))
        # One fsync per commit; removed rows are overwritten; a damaged file is noticed early.
        connection.execute(
            "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF"
        )
        application_id = connection.execute("PRAGMA application_id").get
        version = connection.execute("PRAGMA user_version").get
        if application_id != APPLICATION_ID:
            raise CasError(f"{self.path} is not a CAS file of fspf")
        if version != SCHEMA_VERSION:
            raise UnsupportedFormatError(
                f"the CAS {self.path} is of version {version}, this program knows {SCHEMA_VERSION}: use a newer fspf"
            )

    def _connect_to_image(self) -> None:
        path = self.path
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(self.path + "-wal") > 0:
                # The last writer died here: its log must be read too, which SQLite does on a copy (sealed, as always).
                self._copy = tempfile.TemporaryDirectory(prefix="fspf-cas-")
                path = os.path.join(self._copy.name, "cas.sqlite")
                for suffix in ("", "-wal"):
                    shutil.copyfile(self.path + suffix, path + suffix)
        if self._copy is None:
            self._try_connect(f"file:{quote(path)}?immutable=1", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        else:
            self._try_connect(path, apsw.SQLITE_OPEN_READWRITE)
        self._frozen = "the file, its directory or its disk cannot be written"

    def _disconnect(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        copy, self._copy = self._copy, None
        if connection is not None and self._pid != os.getpid():
            # Forked without the hooks below (by C code, or from inside a call): the parent's connection must be
            # neither used nor closed nor collected.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
            return
        try:
            if connection is not None:
                connection.close()
        finally:
            if copy is not None:
                copy.cleanup()

    # -- locking and unlocking

    def _meta(self, connection: apsw.Connection, name: str) -> bytes:
        value = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
        if not isinstance(value, bytes):
            raise CasError(f"the CAS {self.path} is damaged: it lacks its entry {name!r}; restore it from a backup")
        return value

    def _stored_unlock(self, connection: apsw.Connection) -> Unlock:
        return Unlock.parse(self._meta(connection, "unlock"))

    def _unlock(self) -> None:
        """Have the master key of the file that is open now."""
        connection = self._connection
        assert connection is not None
        check = self._meta(connection, "check")
        if self._master is not None and not _fits(self._master, check):
            self._master = None  # another file has the name now
        if self._master is None:
            master = self._ask(self._stored_unlock(connection))
            if not _fits(master, check):
                raise CasError(
                    f"the CAS {self.path} is damaged: its master key fails its check; restore it from a backup"
                )
            self._master = master
            self._sealer = Sealer(master)

    def _ask(self, unlock: Unlock) -> SecretKey:
        """Get the master key from the passphrase or the key file."""
        if unlock.argon2 is not None:
            if self._passphrase is None:
                raise WrongKeyError(f"the CAS {self.path} is locked with a passphrase, and none was given")
            return unlock.open_with_passphrase(self._passphrase())
        # `change_passphrase` may have been interrupted before its last step: then only the pending one fits.
        keys = [read_key_file(path) for path in (self.key_path, self._pending_path)]
        for file_key in keys:
            if file_key is not None:
                with contextlib.suppress(WrongKeyError):
                    return unlock.open_with_key(file_key)
        if keys[0] is None:
            raise WrongKeyError(f"key file {self.key_path} is missing: the CAS cannot be opened until it is put back")
        raise WrongKeyError(f"key file {self.key_path} is not the one of this CAS: put the right one back")

    def _settle_key_files(self, connection: apsw.Connection) -> None:
        """Make the key files fit what is stored; within a transaction that may write."""
        unlock = self._stored_unlock(connection)
        if unlock.argon2 is not None:
            stale: tuple[str, ...] = (self.key_path, self._pending_path)
        else:
            pending = read_key_file(self._pending_path)
            if pending is not None and unlock.fits(pending):
                os.replace(self._pending_path, self.key_path)
            stale = (self._pending_path,)
        for path in (*stale, *half_made_key_files(self.key_path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        sync_directory(self.key_path)

    # -- a new file

    def make(self) -> None:
        """Make key file and store if there is no store: complete under another name first, so that two may try."""
        if self._closed:
            raise CasError(f"the CAS {self.path} was closed")
        if self.exists():
            return
        if not self.may_create:
            raise self._missing()
        with self._translated():
            directory = os.path.dirname(self.path)
            if not os.path.isdir(directory):
                raise CasError(f"no CAS can be made in {directory}: there is no such directory")
            try:
                file_key: SecretKey | None = write_key_file(self.key_path)
            except FileExistsError:
                # Of an attempt that was interrupted here, or of another process that is doing the same.
                file_key = read_key_file(self.key_path)
            if file_key is None:
                raise CasUnreachableError(f"key file {self.key_path} came and went: try again")
            part = f"{self.path}.{secrets.token_hex(4)}"
            try:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                self._fill(part, SecretKey.generate(), file_key)
                _sync(part)
                with contextlib.suppress(FileExistsError):
                    place_new(part, self.path)
            finally:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    with contextlib.suppress(OSError):
                        os.unlink(part + suffix)

    def _fill(self, part: str, master: SecretKey, file_key: SecretKey) -> None:
        connection = apsw.Connection(part, flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._vfs)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            unlock = Unlock.by_key_file(master, file_key).pack()
            check = master.siv_seal(_CHECK_LABEL, _CHECK_LABEL)
            connection.execute(f"BEGIN IMMEDIATE; {_SCHEMA}")
            connection.executemany("INSERT INTO meta VALUES (?, ?)", (("unlock", unlock), ("check", check)))
            connection.execute("COMMIT")
            # Last: so that all is in the file itself, and no log has to come with it.
            mode = connection.execute("PRAGMA journal_mode = WAL").get
            if mode != "wal":
                raise CasUnreachableError(
                    f"the CAS {self.path} cannot be made: its file system does not do for SQLite's log"
                )
        finally:
            connection.close()

    def _missing(self) -> CasError:
        return CasError(f"there is no CAS file {self.path}: put it back, or name another with --cas or FSPF_CAS")

    # -- forks

    def _before_fork(self) -> None:
        self.lock.acquire()
        if not self._in_use:
            with contextlib.suppress(apsw.Error):
                self._disconnect()

    def _after_fork(self) -> None:
        self.lock.release()


def _before_fork() -> None:
    _fork_lock.acquire()
    for cas in list(_instances):
        cas._before_fork()  # noqa: SLF001 - same module
        _forking.append(cas)


def _after_fork() -> None:
    while _forking:
        _forking.pop()._after_fork()  # noqa: SLF001 - same module
    _fork_lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class _Patience:
    """Wait for another process's lock: often at first, so that many writers of one file hardly delay each other."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since = 0.0

    def __call__(self, attempt: int) -> bool:
        """Tell SQLite whether to try again."""
        now = time.monotonic()
        if attempt == 0:
            self._since = now
        if now - self._since >= self._timeout_s:
            return False
        time.sleep(min(_FIRST_PAUSE_S * 2 ** min(attempt, 16), _LONGEST_PAUSE_S))
        return True


def _fits(master: SecretKey, check: bytes) -> bool:
    try:
        return master.siv_open(check, _CHECK_LABEL) == _CHECK_LABEL
    except (AuthenticationError, ValueError):
        return False


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
