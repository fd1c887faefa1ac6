"""A store in one SQLite file: group commits by one thread, reads beside them.

Sealing of values is left to `fspf.cas.sealed_store`, the counter that tells an old copy to `fspf.cas.counter`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import apsw

from fspf.cas.store import ABSENT, Compare, Entry, Put, check_key, check_transaction
from fspf.cas.unlock import sync_directory
from fspf.core.errors import CasError, CasUnreachableError, FspfError, RolledBackError, UnsupportedFormatError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable, Iterator, Sequence

log = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION_ID: Final = 0x46535053  # "FSPS"; PRAGMA application_id
SCHEMA_VERSION: Final = 1  # PRAGMA user_version
MAX_BATCH: Final = 512  # transactions in one commit: bounds what one answer waits for
_CACHE_KIB: Final = 16384
_RESTORE: Final = "restore it from a backup"

_SCHEMA: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('revision', 0);
"""  # noqa: S608 - numbers of our own
_ENTRY: Final = "SELECT value, revision FROM entry WHERE key = ?"
# BINARY collation compares UTF-8 bytes, which is the order of code points: Python's own order of strings.
_RANGE: Final = "SELECT key, value, revision FROM entry WHERE key >= ? ORDER BY key"


class Row(NamedTuple):
    """One stored value, as the guard sees it."""

    key: str
    value: bytes
    revision: int


class Guard(Protocol):
    """Watches what is stored, so that an older copy of the file shows. Called by the store's thread only."""

    @property
    def settled(self) -> bool:
        """Whether all that was committed may be shown."""

    def open(self, state: bytes | None, rows: Iterable[Row], *, begin: bool) -> None:
        """Check a file that was just opened; with *begin*, one that was not watched so far. Raises `RolledBackError`."""

    def write(self, removed: Iterable[Row], added: Iterable[Row]) -> bytes:
        """Return the state to be stored with this change."""

    def committed(self) -> None:
        """Note that what `write` returned last is on the disk."""

    def abandoned(self) -> None:
        """Note that it is not, and never will be."""

    def settle(self, commit: Callable[[], None], *, final: bool) -> None:
        """Do what is due before the next commit is made and the last one answered; *commit* stores an empty change."""

    def due_s(self) -> float | None:
        """Return in how many seconds `settle` has something to do without any change, None for never."""


class _Transaction(NamedTuple):
    compare: Sequence[Compare]
    put: Sequence[Put]
    answer: asyncio.Future[int | None]


class SqliteStore:
    """Implements `fspf.cas.store.Store` for one process: another one is refused the file.

    A thread takes all transactions that wait, does each for itself (its own compares; one that fails changes nothing),
    and commits them together: one fsync for as many as came during the last. Reads run on the event loop, over a
    connection that sees what was committed.

    After an error of the disk in the middle of a commit nobody knows whether it happened; the file is then opened anew
    before anything else is answered, so that what a read tells stays true.
    """

    def __init__(self, path: str, *, create: bool = True, vfs: str | None = None) -> None:
        """Open the file, or make it.

        Args:
            path: The file; `path.lock`, `path-wal` and `path-shm` come beside it.
            create: Whether the file may be made.
            vfs: SQLite VFS, for tests that inject faults.

        Raises:
            CasError: Another process serves from it, there is none, or it is something else or damaged.
            CasUnreachableError: It cannot be read or written.
        """
        self.path: Final = os.path.realpath(path)
        self._vfs = vfs
        self._guard: Guard | None = None
        self._reader: apsw.Connection | None = None
        self._writer: apsw.Connection | None = None
        self._revision = 0
        self._fatal: FspfError | None = None  # nothing is answered any more, for this reason
        self._pending: deque[_Transaction] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._broken = ""  # an error of the disk, until the file could be opened anew
        self._unsettled = False  # a commit was made that may not be shown yet
        self._thread: threading.Thread | None = None
        self._waiting: list[asyncio.Future[None]] = []  # reads that wait for the guard
        self._loop: asyncio.AbstractEventLoop | None = None
        self.commits = 0  # for metrics
        self.transactions = 0
        with self._translated():
            self._lock = self._take_lock(create=create)
            try:
                if not os.path.exists(self.path):
                    if not create:
                        raise CasError(f"there is no store {self.path}: make it with fspf cas init, or put it back")
                    self._make()
                self._connect()
            except BaseException:
                self._disconnect()
                os.close(self._lock)
                raise

    @property
    def url(self) -> str:
        return f"sqlite://{self.path}"

    async def watch(self, guard: Guard, *, begin: bool = False) -> None:
        """Have *guard* check the file, and every change from here on. Before anything else is done with the store's values.

        Args:
            guard: See `fspf.cas.counter`.
            begin: Whether the file may be one that was not watched so far, as a new one is.

        Raises:
            RolledBackError: It is older than the guard remembers: the store serves nothing.
        """
        self._check_open()
        assert self._guard is None
        assert self._thread is None
        self._guard = guard
        try:
            await asyncio.to_thread(self._open_guard, guard, begin=begin)
        except FspfError as exc:
            self._fatal = exc
            raise

    # -- reads: on the event loop

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        with self._translated():
            row = (await self._reading()).execute(_ENTRY, (key,)).fetchone()
        await self._shown()
        return None if row is None else Entry(*row)

    async def list(self, prefix: str) -> builtins.list[tuple[str, Entry]]:
        found = []
        with self._translated():
            # One statement is one instant, and nothing else runs on this thread meanwhile.
            for key, value, revision in (await self._reading()).execute(_RANGE, (prefix,)):
                if not key.startswith(prefix):
                    break
                found.append((key, Entry(value, revision)))
        await self._shown()
        return found

    async def _shown(self) -> None:
        """Wait until what was just read may be shown: it may have been committed since `_reading` returned."""
        if self._guard is not None:
            await self._reading()

    async def _reading(self) -> apsw.Connection:
        """Return the connection for reading, once nothing is stored that a copied-back file could take away again."""
        loop = asyncio.get_running_loop()
        with self._wake:
            self._check_open()
            if not self._unsettled and not self._broken:
                assert self._reader is not None
                return self._reader
            self._start(loop)
            settled: asyncio.Future[None] = loop.create_future()
            self._waiting.append(settled)
            self._wake.notify()
        await settled
        with self._wake:
            self._check_open()
        assert self._reader is not None
        return self._reader

    # -- transactions

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        check_transaction(compare, put)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int | None] = loop.create_future()
        with self._wake:
            self._check_open()
            self._start(loop)
            self._pending.append(_Transaction(compare, put, answer))
            self._wake.notify()
        return await answer

    def _check_open(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self._closing:
            raise CasError(f"the store {self.path} was closed")

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None:
            self._loop = loop
            self._thread = threading.Thread(target=self._run, name="fspf-store", daemon=True)
            self._thread.start()
        assert loop is self._loop, "a store serves one event loop"

    async def close(self) -> None:
        """Finish what was asked for, write the log home, let go of the file. Idempotent."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        thread = self._thread
        if thread is not None:
            await asyncio.to_thread(thread.join)
        else:
            self._finish()

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                idle_s = None if self._guard is None else self._guard.due_s()
                if not self._pending and not self._waiting and not self._closing:
                    self._wake.wait(idle_s)
                batch = [self._pending.popleft() for _ in range(min(len(self._pending), MAX_BATCH))]
                waiting, self._waiting = self._waiting, []
                ending = self._closing and not self._pending
            self._serve(batch, waiting)
            if ending:
                self._finish()
                return

    def _serve(self, batch: builtins.list[_Transaction], waiting: builtins.list[asyncio.Future[None]]) -> None:
        """Do *batch* as one commit, and answer it; let *waiting* go on."""
        results: builtins.list[int | None] = []
        failure: FspfError | None = None
        try:
            with self._translated():
                self._prepare()
                if batch:
                    results = self._commit(batch)
                self._settle()
        except RolledBackError as exc:
            log.critical("%s", exc)
            self._fatal = failure = exc
        except FspfError as exc:
            failure = exc
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed without closing the store: nobody waits
            self._loop.call_soon_threadsafe(_answer, batch, results, waiting, failure)

    def _prepare(self) -> None:
        """Be sure of what is stored before anything else is: open the file anew, let the guard catch up."""
        if self._fatal is not None:
            raise self._fatal
        if self._broken:
            self._disconnect()
            self._connect()
            assert self._writer is not None
            # What an interrupted commit left in the log counts from here on: have it on the disk before it is shown.
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if self._guard is not None:
                self._guard.open(self._guard_state(), self._rows(), begin=False)
            with self._wake:
                self._broken = ""
        self._settle()

    def _settle(self, *, final: bool = False) -> None:
        if self._guard is not None:
            self._guard.settle(self._commit_nothing, final=final)
            with self._wake:
                self._unsettled = not self._guard.settled

    def _commit(self, batch: builtins.list[_Transaction]) -> builtins.list[int | None]:
        """Do all of *batch* durably; the revision of each, None where a compare failed."""
        writer = self._writer
        assert writer is not None
        before = self._revision
        removed: dict[str, Row | None] = {}  # what the changed keys held before, for the guard
        try:
            writer.execute("BEGIN IMMEDIATE")
            results = [self._apply(writer, one, removed) for one in batch]
            if self._revision == before:
                writer.execute("ROLLBACK")  # nothing was changed: nothing to sync
                return results
            writer.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (self._revision,))
            if self._guard is not None:
                added = (Row(key, *row) for key in removed if (row := writer.execute(_ENTRY, (key,)).fetchone()))
                self._store_guard(writer, self._guard.write((row for row in removed.values() if row), added))
            with self._wake:
                self._unsettled = self._guard is not None  # from the commit on, readers could see it
            writer.execute("COMMIT")
        except BaseException as exc:
            self._revision = before
            self._undo(writer, exc)
            raise
        if self._guard is not None:
            self._guard.committed()
        self.commits += 1
        self.transactions += len(batch)
        return results

    def _apply(self, writer: apsw.Connection, one: _Transaction, removed: dict[str, Row | None]) -> int | None:
        for key, expected in one.compare:
            row = writer.execute("SELECT revision FROM entry WHERE key = ?", (key,)).fetchone()
            if (ABSENT if row is None else row[0]) != expected:
                return None
        if not one.put:
            return max(self._revision, 1)
        self._revision += 1
        for key, value in one.put:
            if self._guard is not None and key not in removed:
                row = writer.execute(_ENTRY, (key,)).fetchone()
                removed[key] = None if row is None else Row(key, *row)
            if value is None:
                writer.execute("DELETE FROM entry WHERE key = ?", (key,))
            else:
                writer.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", (key, value, self._revision))
        return self._revision

    def _commit_nothing(self) -> None:
        """Store what the guard wants stored, and nothing else."""
        writer, guard = self._writer, self._guard
        assert writer is not None
        assert guard is not None
        try:
            writer.execute("BEGIN IMMEDIATE")
            self._store_guard(writer, guard.write((), ()))
            writer.execute("COMMIT")
        except BaseException as exc:
            self._undo(writer, exc)
            raise
        guard.committed()

    @staticmethod
    def _store_guard(writer: apsw.Connection, state: bytes) -> None:
        writer.execute("INSERT OR REPLACE INTO meta VALUES ('guard', ?)", (state,))

    def _undo(self, writer: apsw.Connection, exc: BaseException) -> None:
        """Take back a commit that failed; where nobody can tell whether it did, open the file anew."""
        if not writer.in_transaction or not isinstance(exc, apsw.FullError):
            with self._wake:
                self._broken = str(exc) or type(exc).__name__
        with contextlib.suppress(apsw.Error):
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        if self._guard is not None:
            self._guard.abandoned()

    def _finish(self) -> None:
        """End: settle, write the log home."""
        try:
            with self._translated():
                if self._fatal is None and not self._broken and self._writer is not None:
                    self._settle(final=True)
                    self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except FspfError as exc:
            log.warning("closing: %s", exc)  # everything that was answered is in the log
        self._disconnect()
        os.close(self._lock)

    # -- the file

    def _take_lock(self, *, create: bool) -> int:
        """Keep other processes from the file. A file of its own: closing it must not end SQLite's locks."""
        path = self.path + ".lock"
        if not create and not os.path.exists(self.path):
            raise CasError(f"there is no store {self.path}: make it with fspf cas init, or put it back")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        except BlockingIOError:
            pid = os.pread(lock, 16, 0).decode(errors="replace").strip()
            os.close(lock)
            raise CasError(
                f"the store {self.path} is served by process {pid or '?'}: stop it first, "
                "or use a store that several processes can share (etcd, PostgreSQL)"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _make(self) -> None:
        """Make the file, complete under another name first: a process that dies here leaves no half of a store."""
        part = self.path + ".new"  # ours alone: we hold the lock
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part + suffix)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(part, flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._vfs)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            if connection.execute("PRAGMA journal_mode = WAL").get != "wal":
                raise CasUnreachableError(
                    f"no store can be made at {self.path}: its file system does not do for SQLite's log"
                )
        finally:
            connection.close()
        os.rename(part, self.path)
        sync_directory(self.path)

    def _connect(self) -> None:
        status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise CasError(
                f"{self.path} is not a file: name the store itself, such as sqlite:///var/lib/fspf/cas.sqlite"
            )
        if status.st_size == 0:
            raise CasError(f"the store {self.path} is empty: it was cut off; {_RESTORE}")
        self._writer = self._open_connection(apsw.SQLITE_OPEN_READWRITE)
        application_id = self._writer.execute("PRAGMA application_id").get
        version = self._writer.execute("PRAGMA user_version").get
        if application_id != APPLICATION_ID:
            raise CasError(f"{self.path} is not a store of a CAS server of fspf")
        if version != SCHEMA_VERSION:
            raise UnsupportedFormatError(
                f"the store {self.path} is of version {version}, this program knows {SCHEMA_VERSION}: use a newer fspf"
            )
        self._revision = self._meta("revision", int)
        self._reader = self._open_connection(apsw.SQLITE_OPEN_READWRITE)
        self._reader.execute("PRAGMA query_only = ON")

    def _open_connection(self, flags: int) -> apsw.Connection:
        connection = apsw.Connection(self.path, flags=flags, vfs=self._vfs)
        # One fsync per commit; removed rows are overwritten; a damaged file is noticed early.
        connection.execute(
            "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA cell_size_check = ON;"
            f"PRAGMA trusted_schema = OFF; PRAGMA cache_size = -{_CACHE_KIB}"
        )
        return connection

    def _meta(self, name: str, kind: type[T]) -> T:
        assert self._writer is not None
        value = self._writer.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
        if not isinstance(value, kind):
            raise CasError(f"the store {self.path} is damaged: its entry {name!r} is no {kind.__name__}; {_RESTORE}")
        return value

    def _guard_state(self) -> bytes | None:
        assert self._writer is not None
        found = self._writer.execute("SELECT 1 FROM meta WHERE name = 'guard'").fetchone()
        return None if found is None else self._meta("guard", bytes)

    def _rows(self) -> Iterator[Row]:
        assert self._writer is not None
        for row in self._writer.execute("SELECT key, value, revision FROM entry"):
            yield Row(*row)

    def _open_guard(self, guard: Guard, *, begin: bool) -> None:
        with self._translated():
            guard.open(self._guard_state(), self._rows(), begin=begin)
            guard.settle(self._commit_nothing, final=False)

    def _disconnect(self) -> None:
        writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
        for connection in (reader, writer):
            if connection is not None:
                with contextlib.suppress(apsw.Error):
                    connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite and the kernel say into errors of FSPF."""
        try:
            yield
        except apsw.ConnectionClosedError:
            raise CasUnreachableError(f"the store {self.path} is being opened anew after an error: try again") from None
        except (apsw.BusyError, apsw.LockedError):
            raise CasUnreachableError(f"the store {self.path} is locked by another program") from None
        except apsw.FullError:
            raise CasUnreachableError(f"the store {self.path} cannot be written: no space left on its disk") from None
        except (apsw.IOError, apsw.CantOpenError) as exc:
            with self._wake:
                self._broken = self._broken or str(exc)
            raise CasUnreachableError(f"the store {self.path}: input/output error on its disk ({exc})") from None
        except (apsw.ReadOnlyError, apsw.PermissionsError):
            raise CasUnreachableError(
                f"the store {self.path} is read-only: make its file, directory and disk writable"
            ) from None
        except apsw.NotADBError:
            raise CasError(f"{self.path} is not a store of a CAS server of fspf") from None
        except (apsw.CorruptError, UnicodeDecodeError):
            raise CasError(f"the store {self.path} is damaged: {_RESTORE}") from None
        except apsw.Error as exc:
            raise CasError(f"the store {self.path}: {exc}") from None
        except OSError as exc:
            raise CasUnreachableError(f"the store {self.path}: {exc.strerror or exc}") from None


def _answer(
    batch: list[_Transaction],
    results: list[int | None],
    waiting: list[asyncio.Future[None]],
    failure: FspfError | None,
) -> None:
    """Tell the tasks; on the event loop. Those that were cancelled meanwhile are not told."""
    for index, one in enumerate(batch):
        if not one.answer.done():
            if failure is None:
                one.answer.set_result(results[index])
            else:
                one.answer.set_exception(_again(failure))
    for future in waiting:
        if not future.done():
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(_again(failure))


def _again(failure: FspfError) -> FspfError:
    """Make an exception of its own for each task: tracebacks are added to what is raised."""
    return type(failure)(*failure.args)
