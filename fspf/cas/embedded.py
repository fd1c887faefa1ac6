"""The embedded CAS: records in one sealed SQLite file on trusted storage; no server needed.

What is granted is decided in `fspf.cas.rules`, how rows are sealed in `fspf.cas.sealing`, how the master key is kept in
`fspf.cas.unlock`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import apsw

from fspf.cas import rules
from fspf.cas.liveness import holder_is_gone
from fspf.cas.sealing import Fixed, Sealer, checked_volume_id, to_record
from fspf.cas.unlock import Unlock, place_new, read_key_file, sync_directory, write_key_file
from fspf.core.errors import (
    CasError,
    CasUnreachableError,
    UnknownVolumeError,
    UnsupportedFormatError,
    VolumeExistsError,
    WrongKeyError,
)
from fspf.core.keys import AuthenticationError, SecretKey

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator, Sequence

    from fspf.cas.rules import State
    from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
    from fspf.core.freshness import Freshness

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
_instances: Final[weakref.WeakSet[EmbeddedCas]] = weakref.WeakSet()
_forking: Final[list[EmbeddedCas]] = []


class EmbeddedCas:
    """A CAS in one SQLite file. Implements `fspf.core.anchor.Cas`.

    Thread-safe: one connection, one lock, never held while another lock is taken. Each method is one transaction,
    and one that changes something ends in one fsync.

    Attributes:
        url: ``sqlite:///path``, as `open_cas` reads it.
        path: Absolute path of the file.
    """

    def __init__(
        self,
        path: str,
        *,
        passphrase: Callable[[], bytes] | None = None,
        create: bool = True,
        clock: Callable[[], int] = time.time_ns,
        is_gone: Callable[[Holder], bool] = holder_is_gone,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        vfs: str | None = None,
    ) -> None:
        """Open and unlock the file. If there is none, it is made with the first record.

        Args:
            path: The file; its key file is beside it, with `.key` added.
            passphrase: Asked only if the file is locked with a passphrase.
            create: Whether the file may be made.
            clock: UTC ns since 1970; dates leases.
            is_gone: Whether a lease's holder certainly no longer runs.
            busy_timeout_s: How long to wait for another process.
            vfs: SQLite VFS, for tests that inject faults.

        Raises:
            CasError: There is no file (and none may be made), or it is not a CAS, or damaged.
            CasUnreachableError: The file cannot be read.
            WrongKeyError: Key file or passphrase are missing or wrong.
        """
        self.path: Final = os.path.abspath(path)
        self.key_path: Final = self.path + ".key"
        self.url: Final = "sqlite://" + quote(self.path)
        self._passphrase = passphrase
        self._may_create = create
        self._clock = clock
        self._is_gone = is_gone
        self._busy_timeout_s = busy_timeout_s
        self._vfs = vfs
        self._lock = threading.RLock()
        self._connection: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None  # device and inode that the connection has open
        self._pid = os.getpid()
        self._frozen: str = ""  # why the file cannot be written, if it was opened as an image
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._master: SecretKey | None = None
        self._sealer: Sealer | None = None
        self._in_use = 0  # how deep in `_translated`; a fork from there leaves the connection alone
        self._closed = False
        with _fork_lock:
            _instances.add(self)
        try:
            with self._lock, self._translated():
                if self._exists():
                    self._connect()
                elif not create:
                    raise self._missing()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        """Name the file."""
        return f"EmbeddedCas({self.path!r})"

    # -- the Protocol

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        """Make a key and a record for a new volume."""
        checked_volume_id(volume_id)
        with self._lock:
            self._make_file()
            with self._transaction() as connection:
                sealer = self._unlocked()
                if self._select(connection, volume_id) is not None:
                    raise VolumeExistsError(f"the CAS {self.path} has a record of volume {volume_id.hex()} already")
                fixed = Fixed(name, SecretKey.generate())
                state = rules.State(freshness)
                self._insert(connection, sealer, volume_id, fixed, state)
        return to_record(volume_id, fixed, state)

    def fetch(self, volume_id: bytes) -> CasRecord:
        """Return the record."""
        with self._reading() as connection:
            row = self._row(connection, volume_id)
            return self._open_row(volume_id, row)

    def list(self) -> builtins.list[CasRecord]:
        """Return all records, by name."""
        with self._lock:
            if not self._exists() and self._may_create:
                return []
            with self._reading() as connection:
                sealer = self._unlocked()
                rows: builtins.list[tuple[Any, ...]] = connection.execute(
                    "SELECT id, version, state, fixed FROM volume"
                ).fetchall()
                records = [self._open_row(sealer.open_row_id(row_id), tuple(row)) for row_id, *row in rows]
        return sorted(records, key=lambda record: (record.name, record.volume_id))

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        """Grant the right to write and make *adopt* the anchor, in one transaction."""

        def rule(state: State) -> State:
            return rules.acquire(
                state,
                expected=expected,
                expected_epoch=expected_epoch,
                adopt=adopt,
                holder=holder,
                now_ns=self._clock(),
                is_gone=self._is_gone,
            )

        lease = self._change(volume_id, rule).lease
        assert lease is not None
        return lease

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        """Prolong *lease*."""
        renewed = self._change(volume_id, lambda state: rules.renew(state, lease, now_ns=self._clock())).lease
        assert renewed is not None
        return renewed

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        """Move the anchor from *expected* to *new*; also renews the lease."""
        self._change(volume_id, lambda state: rules.advance(state, lease, expected, new, now_ns=self._clock()))

    def release(self, volume_id: bytes, lease: Lease) -> None:
        """End *lease*. Idempotent; the lease of another is left alone."""
        self._change(volume_id, lambda state: rules.release(state, lease))

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        """Replace the volume key, count its version up and move the anchor, in one transaction."""
        self._change(
            volume_id, lambda state: rules.rekey(state, lease, expected, new, now_ns=self._clock()), new_key=key
        )

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        """Change the freshness mode."""
        self._change(volume_id, lambda state: rules.set_freshness(state, freshness))

    def remove(self, volume_id: bytes) -> None:
        """Forget the volume, and its key with it."""
        with self._transaction() as connection:
            self._row(connection, volume_id)
            connection.execute("DELETE FROM volume WHERE id = ?", (self._unlocked().row_id(volume_id),))

    def close(self) -> None:
        """Let go of the file and the master key. Idempotent."""
        with self._lock:
            self._closed = True
            self._master = self._sealer = None
            with contextlib.suppress(apsw.Error):
                self._disconnect()
        with _fork_lock:
            _instances.discard(self)

    # -- beyond the Protocol

    def import_records(self, records: Sequence[CasRecord], *, override: bool) -> None:
        """Take over *records*, all or none.

        Raises:
            FspfError: As `fspf.cas.rules.merge` says.
        """
        with self._lock:
            self._make_file()
            with self._transaction() as connection:
                sealer = self._unlocked()
                for record in records:
                    volume_id = checked_volume_id(record.volume_id)
                    row = self._select(connection, volume_id)
                    existing = None if row is None else self._open_row(volume_id, row)
                    state = rules.merge(
                        None if existing is None else _state(existing),
                        _state(record),
                        same_key=existing is not None
                        and (existing.key, existing.key_version) == (record.key, record.key_version),
                        override=override,
                        now_ns=self._clock(),
                        is_gone=self._is_gone,
                    )
                    fixed = Fixed(record.name, record.key)
                    if row is None:
                        self._insert(connection, sealer, volume_id, fixed, state)
                    else:
                        self._update(connection, sealer, volume_id, row, state, fixed)

    def change_passphrase(self, new: bytes | None) -> None:
        """Wrap the master key anew: under the passphrase *new*, or (None) under a fresh key file.

        Interrupted at any point, either the old way opens the CAS or the new one does: the new key file is complete
        under another name before the store changes, and gets its name after.

        Raises:
            UsageError: *new* is empty.
        """
        pending = self.key_path + ".new"
        with self._lock, self._translated():
            self._make_file()
            with self._transaction() as connection:
                self._unlocked()
                assert self._master is not None
                if new is None:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(pending)  # of an earlier attempt; the transaction keeps others out
                    unlock = Unlock.by_key_file(self._master, write_key_file(pending))
                else:
                    unlock = Unlock.by_passphrase(self._master, new)
                connection.execute("UPDATE meta SET value = ? WHERE name = 'unlock'", (unlock.pack(),))
            # The master key under the old key must not be found in the log.
            self._live().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if new is None:
                os.replace(pending, self.key_path)
            else:
                for path in (self.key_path, pending):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            sync_directory(self.key_path)

    @property
    def has_passphrase(self) -> bool:
        """Whether a passphrase, not a key file, unlocks this CAS."""
        with self._lock:
            if not self._exists():
                return False
            with self._reading() as connection:
                return self._stored_unlock(connection).argon2 is not None

    # -- rows

    def _change(self, volume_id: bytes, rule: Callable[[State], State], new_key: SecretKey | None = None) -> State:
        """Replace the state of one volume by what *rule* makes of it, in one transaction."""
        with self._transaction() as connection:
            sealer = self._unlocked()
            row = self._row(connection, volume_id)
            version, sealed_state, sealed_fixed = row
            state = sealer.open_state(volume_id, sealed_state, sealed_fixed, version)
            changed = rule(state)
            if changed is not state:
                fixed = None
                if new_key is not None:
                    fixed = Fixed(sealer.open_fixed(volume_id, sealed_fixed, state.key_version).name, new_key)
                self._update(connection, sealer, volume_id, row, changed, fixed)
        return changed

    def _select(self, connection: apsw.Connection, volume_id: bytes) -> tuple[Any, ...] | None:
        query = "SELECT version, state, fixed FROM volume WHERE id = ?"
        row = connection.execute(query, (self._unlocked().row_id(volume_id),)).fetchone()
        return None if row is None else tuple(row)

    def _row(self, connection: apsw.Connection, volume_id: bytes) -> tuple[Any, ...]:
        row = self._select(connection, checked_volume_id(volume_id))
        if row is None:
            raise self._unknown(volume_id)
        return row

    def _open_row(self, volume_id: bytes, row: tuple[Any, ...]) -> CasRecord:
        version, sealed_state, sealed_fixed = row
        sealer = self._unlocked()
        state = sealer.open_state(volume_id, sealed_state, sealed_fixed, version)
        return to_record(volume_id, sealer.open_fixed(volume_id, sealed_fixed, state.key_version), state)

    @staticmethod
    def _insert(connection: apsw.Connection, sealer: Sealer, volume_id: bytes, fixed: Fixed, state: State) -> None:
        sealed_fixed = sealer.seal_fixed(volume_id, fixed, state.key_version)
        sealed_state = sealer.seal_state(volume_id, state, sealed_fixed, 1)
        values = (sealer.row_id(volume_id), 1, sealed_state, sealed_fixed)
        connection.execute("INSERT INTO volume (id, version, state, fixed) VALUES (?, ?, ?, ?)", values)

    @staticmethod
    def _update(
        connection: apsw.Connection,
        sealer: Sealer,
        volume_id: bytes,
        row: tuple[Any, ...],
        state: State,
        fixed: Fixed | None,
    ) -> None:
        """Store *state* and, if given, *fixed* over *row*."""
        version, _, sealed_fixed = row
        if fixed is not None:
            sealed_fixed = sealer.seal_fixed(volume_id, fixed, state.key_version)
        sealed_state = sealer.seal_state(volume_id, state, sealed_fixed, version + 1)
        if fixed is None:
            query = "UPDATE volume SET version = ?, state = ? WHERE id = ?"
            connection.execute(query, (version + 1, sealed_state, sealer.row_id(volume_id)))
        else:
            query = "UPDATE volume SET version = ?, state = ?, fixed = ? WHERE id = ?"
            connection.execute(query, (version + 1, sealed_state, sealed_fixed, sealer.row_id(volume_id)))

    # -- transactions

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """Give a connection on which one statement is run."""
        with self._lock, self._translated():
            yield self._live()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """Give a connection within a transaction that may write; commit it at the end."""
        with self._lock, self._translated():
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

    def _exists(self) -> bool:
        return self._stat() is not None

    def _connect(self) -> None:
        """Open the file, as an image if it (or its directory) cannot be written, and unlock it."""
        self._identity = self._stat()
        if self._identity is None:
            raise self._missing()
        if os.path.getsize(self.path) == 0:
            raise CasError(f"the CAS {self.path} is empty: it was cut off; restore it from a backup")
        self._frozen = ""
        try:
            try:
                self._try_connect(self.path, apsw.SQLITE_OPEN_READWRITE)
            except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.IOError):
                # A file in WAL mode needs files beside it even for reading. Where they cannot be made, nobody
                # writes, or only somebody who will not mind being read at an instant between two commits.
                self._disconnect()
                self._connect_to_image()
            self._unlock()
        except BaseException:
            self._disconnect()
            raise

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
        self._frozen = "its directory or disk cannot be written"

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

    def _unlocked(self) -> Sealer:
        assert self._sealer is not None
        return self._sealer

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
        pending = self.key_path + ".new"
        file_key = read_key_file(self.key_path)
        if file_key is not None:
            try:
                return unlock.open_with_key(file_key)
            except WrongKeyError as exc:
                if not os.path.exists(pending):
                    raise WrongKeyError(f"{self.key_path}: {exc}") from None
        # `change_passphrase` may have been interrupted before its last step.
        file_key = read_key_file(pending)
        if file_key is None:
            raise WrongKeyError(f"key file {self.key_path} is missing: the CAS cannot be opened until it is put back")
        master = unlock.open_with_key(file_key)
        with contextlib.suppress(OSError):
            os.replace(pending, self.key_path)
            sync_directory(self.key_path)
        return master

    # -- a new file

    def _make_file(self) -> None:
        """Make key file and store if there is no store: complete under another name first, so that two may try."""
        if self._closed:
            raise CasError(f"the CAS {self.path} was closed")
        if self._exists():
            return
        if not self._may_create:
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
            connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            with connection:
                connection.execute(_SCHEMA)
                unlock = Unlock.by_key_file(master, file_key).pack()
                check = master.siv_seal(_CHECK_LABEL, _CHECK_LABEL)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", (("unlock", unlock), ("check", check)))
        finally:
            connection.close()

    def _missing(self) -> CasError:
        return CasError(f"there is no CAS file {self.path}: put it back, or name another with --cas or FSPF_CAS")

    def _unknown(self, volume_id: bytes) -> UnknownVolumeError:
        return UnknownVolumeError(
            f"the CAS {self.path} does not know volume {volume_id.hex()}: name the right CAS with --cas or FSPF_CAS"
        )

    # -- forks

    def _before_fork(self) -> None:
        self._lock.acquire()
        if not self._in_use:
            with contextlib.suppress(apsw.Error):
                self._disconnect()

    def _after_fork(self) -> None:
        self._lock.release()


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


def default_path() -> str:
    """Return where the embedded CAS is unless it is told: in the user's data directory."""
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):  # the XDG specification: relative ones are to be ignored
        data = os.path.expanduser("~/.local/share")
    return os.path.join(data, "fspf", "cas.sqlite")


def make_default_directory() -> None:
    """Make the directory of `default_path`, for its owner only."""
    directory = os.path.dirname(default_path())
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as exc:
        raise CasUnreachableError(f"the directory {directory} for the CAS cannot be made: {exc.strerror}") from None


def _state(record: CasRecord) -> State:
    return rules.State(record.freshness, record.anchor, record.epoch, record.lease, record.key_version)


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
