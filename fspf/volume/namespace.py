"""Directory entries, attributes and xattrs as rows of the namespace database.

It knows SQL and nothing of POSIX rules; those are in `fspf.volume.inodes`. Callers hold the volume's lock.
"""

from __future__ import annotations

import errno
import logging
import stat
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import apsw

from fspf.core.errors import FspfError, IntegrityError, UnsupportedFormatError
from fspf.core.types import HOLE, ROOT_INO, ContentRoot, Ino, Protection
from fspf.volume.vfs import TreeDatabase
from fspf_native import ChunkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from fspf.core.log import Batch
    from fspf.volume.mirror import Mirror
    from fspf_native import Tree

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
_COUNTERS: Final = ("next_ino", "next_cookie", "files", "bytes", "capabilities")
CAPABILITY: Final = b"security.capability"


class Row(NamedTuple):
    """One inode as the database has it; a content that is open may be ahead of it."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    protection: int
    size: int
    depth: int
    pointer: bytes | None
    chunks: int
    parent: Ino | None
    target: bytes | None

    @property
    def root(self) -> ContentRoot:
        """Content root of a regular file."""
        return ContentRoot(self.size, self.depth, self.pointer or HOLE)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Entry(NamedTuple):
    """One directory entry with the inode it names."""

    cookie: int
    name: bytes
    row: Row


_ROW_COLUMNS: Final = (
    "i.ino, i.mode, i.uid, i.gid, i.rdev, i.nlink, i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns, i.protection,"
    " i.size, i.depth, i.pointer, i.chunks, i.parent, i.target"
)
_SELECT_INODE: Final = f"SELECT {_ROW_COLUMNS} FROM inode i WHERE i.ino = ?"  # noqa: S608  # constants only
_SELECT_ENTRY: Final = (
    f"SELECT {_ROW_COLUMNS} FROM dirent d JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.name = ?"  # noqa: S608
)
_SELECT_ENTRIES: Final = (
    f"SELECT d.cookie, d.name, {_ROW_COLUMNS} FROM dirent d JOIN inode i ON i.ino = d.ino"  # noqa: S608
    " WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?"
)
_SELECT_FILLING: Final = (  # also whether the inode has xattrs
    f"SELECT d.cookie, d.name, {_ROW_COLUMNS}, (SELECT 1 FROM xattr x WHERE x.ino = i.ino LIMIT 1)"  # noqa: S608
    " FROM dirent d JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?"
)
_INSERT_ENTRY: Final = "INSERT INTO dirent VALUES (?, ?, ?, ?)"
_UPSERT_ENTRY: Final = "INSERT OR REPLACE INTO dirent VALUES (?, ?, ?, ?)"
_UPSERT_INODE: Final = "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_INODE: Final = "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

_MAX_CACHED_ROWS: Final = 8192  # about 5 MB


class _Translation(AbstractContextManager[None]):
    """What `Namespace.translated` returns; an object, since a generator would cost as much as the statement inside."""

    __slots__ = ("_namespace",)

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, apsw.Error):
            raise self._namespace.translate(value) from value


class Namespace:
    """The namespace database and its counters.

    Raises from every method: `IntegrityError` when pages of it are damaged, OSError for an
    I/O error of the host.

    Attributes:
        dirty: Something changed since the last `commit`.
        operations: Changes since the last `commit`.
    """

    def __init__(self, tree: Tree, *, chunk_size: int, read_only: bool, cache_bytes: int) -> None:
        self._tree = tree
        self._translation = _Translation(self)
        self.dirty = False
        self.unlogged = False  # there are changes since the last commit that came by no batch
        self.operations = 0
        self.broken: str | None = None
        self.on_broken: Callable[[str], None] = log.error
        self.mirror: Mirror | None = None  # a mount's data plane
        self._untold: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None  # inside `change`, for `mirror`
        self.xattrs_were_set = False  # since opening
        self._touched: dict[Ino, int] = {}
        self._rows: dict[
            Ino, Row
        ] = {}  # rows as the database has them; a statement costs more than the rest of a lookup
        with self._translated_open():
            self._database = TreeDatabase(tree, page_size=chunk_size, read_only=read_only, cache_bytes=cache_bytes)
        self.connection: apsw.Connection = self._database.connection
        self._execute = self.connection.execute
        self.next_ino = int(ROOT_INO)
        self.next_cookie = 1
        self.files = 0
        self.bytes = 0
        self.capabilities = 0  # number of security.capability xattrs ever set: 0 lets the mount answer at once
        self._stored: dict[str, int] = {}

    @contextmanager
    def _translated_open(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as exc:
            message = f"the namespace cannot be opened: {exc}; run fspf verify"
            raise IntegrityError(message) from exc

    @classmethod
    def open(cls, tree: Tree, *, chunk_size: int, read_only: bool, cache_bytes: int) -> Self:
        """Open the namespace in *tree*."""
        namespace = cls(tree, chunk_size=chunk_size, read_only=read_only, cache_bytes=cache_bytes)
        try:
            with namespace.translated():
                rows: list[Any] = namespace._execute("SELECT key, value FROM meta").fetchall()
            found: dict[str, int] = dict(rows)
            if found.get("schema") != SCHEMA_VERSION:
                message = f"namespace: schema {found.get('schema')} found, {SCHEMA_VERSION} expected: use a newer fspf"
                raise UnsupportedFormatError(message)
            namespace._stored = found
            for name in _COUNTERS:
                setattr(namespace, name, found[name])
        except BaseException:
            namespace.close()
            raise
        return namespace

    @classmethod
    def create(cls, tree: Tree, *, chunk_size: int, cache_bytes: int, root: Row) -> Self:
        """Make the namespace of a new volume, with its root directory."""
        namespace = cls(tree, chunk_size=chunk_size, read_only=False, cache_bytes=cache_bytes)
        schema = files("fspf.volume").joinpath("schema.sql").read_text(encoding="utf-8")
        with namespace.translated():
            namespace._execute("BEGIN IMMEDIATE")
            namespace._execute(schema)
            namespace._execute("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        namespace.dirty = True
        namespace.next_ino = int(ROOT_INO) + 1
        namespace.files = 1
        namespace.insert(root)
        return namespace

    def close(self) -> None:
        """Drop what was not committed and close."""
        self._rows.clear()
        self._database.close()

    # -- transactions and errors

    def translated(self) -> AbstractContextManager[None]:
        """Turn apsw's errors into ours, with the damaged bytes as the cause."""
        return self._translation

    def translate(self, exc: apsw.Error) -> Exception:
        """Return the error of ours that *exc* stands for."""
        if isinstance(exc, apsw.ConnectionClosedError):
            return ValueError("the volume is closed")
        failure = self._database.file.failure
        self._database.file.failure = None
        if self.dirty and not self.connection.in_transaction:
            self._break(f"the namespace's open transaction was lost: {exc}")
        if isinstance(failure, ChunkError):
            return IntegrityError(
                f"namespace: bytes {failure.offset} to {failure.offset + failure.length - 1} are {failure.kind} "
                f"(slot {failure.slot}); names and attributes kept there cannot be read, run fspf verify"
            )
        if isinstance(failure, OSError):
            return OSError(failure.errno or errno.EIO, f"namespace: {failure.strerror or failure}")
        if isinstance(exc, apsw.NoMemError):
            return OSError(errno.ENOMEM, "namespace: out of memory")
        return IntegrityError(f"namespace: {exc}; run fspf verify")

    def _break(self, reason: str) -> None:
        """Allow no commit any more: what is in memory is not what the callers were told."""
        self.broken = self.broken or reason
        self.on_broken(reason)

    def _begin(self) -> None:
        """Count a change, and begin SQLite's transaction with the first one after a commit."""
        if not self.dirty:
            self._execute("BEGIN IMMEDIATE")
            self.dirty = True
        self.unlogged = True
        self.operations += 1

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make the changes of one operation together: all of them, or none when an exception leaves the block."""
        execute = self._execute
        outer, self._untold = self._untold, []
        try:
            self._begin()
            execute("SAVEPOINT op")
            try:
                yield
            except BaseException:
                self._untold.clear()
                self._rows.clear()
                if self.connection.in_transaction:
                    execute("ROLLBACK TO op")
                    execute("RELEASE op")
                raise
            execute("RELEASE op")
        except apsw.Error as exc:
            self._untold.clear()
            raise self.translate(exc) from exc
        finally:
            told, self._untold = self._untold, outer
            for tell, arguments in told:
                self._tell(tell, *arguments)

    def _tell(self, tell: Callable[..., None], *arguments: Any) -> None:
        """Tell the data plane of a change; of one that may be taken back, only when it is made."""
        if self._untold is None:
            tell(*arguments)
        else:
            self._untold.append((tell, arguments))

    def change_inode(self, ino: Ino, **columns: int | bytes | None) -> None:
        """Make a change that is one `update`: it reads the pages it needs before it changes one."""
        with self.translated():
            self._begin()
        self.update(ino, **columns)

    def add_inode(self, row: Row, parent: Ino, name: bytes) -> bool:
        """Add an inode and its first name, both or nothing; False if the name is taken.

        The same as `change` with `insert` and `add_entry`, in two statements instead of five.
        """
        cookie = self._take_cookie()
        with self.translated():
            self._begin()
            try:
                self._execute(_INSERT_ENTRY, (parent, cookie, name, row.ino))
                self.insert(row)
            except apsw.ConstraintError:
                return False  # of the entry: a number is never used twice
            except (apsw.Error, IntegrityError, OSError) as exc:
                self._break(f"half of a new file may be in the namespace: {exc}")
                raise
        if self.mirror is not None:
            self._tell(self.mirror.put_name, parent, cookie, name, row.ino, row.mode)
        return True

    def take_ino(self) -> Ino:
        """Return a number that no inode has or had."""
        ino = self.next_ino if self.mirror is None else self.mirror.take_ino()
        self.next_ino = ino + 1  # for the next commit: a drain, which tells it too, comes only if rows wait
        return Ino(ino)

    def give_back_ino(self, ino: Ino) -> None:
        """Take back `take_ino`: its inode was not made. With a data plane the number is lost, which does no harm."""
        if self.mirror is None and self.next_ino == ino + 1:
            self.next_ino = ino

    def _take_cookie(self) -> int:
        cookie = self.next_cookie if self.mirror is None else self.mirror.take_cookie()
        self.next_cookie = cookie + 1
        return cookie

    def commit(self) -> None:
        """Write counters and postponed times, end SQLite's transaction: everything is in the tree."""
        if self.broken:
            raise FspfError(self.broken)
        if not self.dirty:
            return
        with self.translated():
            self._write_touched()
            self.write_counters()
            self._execute("COMMIT")
        self.dirty = self.unlogged = False
        self.operations = 0

    def write_counters(self) -> None:
        """Store the counters for whoever reads the database itself. In a transaction."""
        with self.translated():
            for name in _COUNTERS:
                value = getattr(self, name)
                if self._stored.get(name) != value:
                    self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
                    self._stored[name] = value

    # -- the data plane of a mount

    def filling(self, parent: Ino, after: int, limit: int) -> list[Any]:
        """Return entries as `Relay.fill_directory` takes them."""
        with self.translated():
            self._write_touched()
            return list(self._execute(_SELECT_FILLING, (parent, after, limit)).fetchall())

    def has_xattrs(self, ino: Ino) -> bool:
        with self.translated():
            return self._execute("SELECT 1 FROM xattr WHERE ino = ? LIMIT 1", (ino,)).fetchone() is not None

    def any_xattrs(self) -> bool:
        with self.translated():
            return self._execute("SELECT 1 FROM xattr LIMIT 1").fetchone() is not None

    def apply(self, batch: Batch) -> None:
        """Store what the data plane has answered: whole rows, in the state of one instant.

        Raises:
            FspfError, OSError: Half of it may be stored; nothing can be committed any more.
        """
        inodes, names, removed, deleted, files, size, self.next_ino, self.next_cookie, _ = batch
        changes = len(inodes) + len(names) + len(removed) + len(deleted)
        self.files += files
        self.bytes += size
        if not changes:
            return
        many = self.connection.executemany
        rows, touched = self._rows, self._touched
        unlogged = self.unlogged
        try:
            with self.translated():
                self._begin()
                if removed:
                    many("DELETE FROM dirent WHERE parent = ? AND cookie = ?", removed)
                if deleted:
                    many("DELETE FROM inode WHERE ino = ?", [(ino,) for ino, _ in deleted])
                    if with_xattrs := [(ino,) for ino, xattrs in deleted if xattrs]:
                        many("DELETE FROM xattr WHERE ino = ?", with_xattrs)
                    for ino, _ in deleted:
                        rows.pop(Ino(ino), None)
                        touched.pop(Ino(ino), None)
                if inodes:
                    many(_UPSERT_INODE, sorted(inodes))
                    for row in inodes:
                        rows.pop(Ino(row[0]), None)
                        touched.pop(Ino(row[0]), None)
                if names:
                    many(_UPSERT_ENTRY, sorted(names))
        except BaseException as exc:
            self._break(f"what the mount had answered could not be stored: {exc}")
            raise
        self.unlogged = unlogged
        self.operations += changes

    # -- inodes

    def _row(self, found: Sequence[Any]) -> Row:
        row = Row._make(found)
        self._keep(row)
        return self._with_touch(row)

    def _keep(self, row: Row) -> None:
        if len(self._rows) >= _MAX_CACHED_ROWS:
            self._rows.clear()
        self._rows[row.ino] = row

    def _with_touch(self, row: Row) -> Row:
        """Return *row*, which stays as it is, with a time that the database does not have yet."""
        touched = self._touched.get(row.ino)
        return row if touched is None else row._replace(mtime_ns=touched, ctime_ns=touched)

    def inode(self, ino: Ino) -> Row | None:
        row = self._rows.get(ino)
        if row is not None:
            return self._with_touch(row)
        with self.translated():
            found = self._execute(_SELECT_INODE, (ino,)).fetchone()
        return self._row(found) if found is not None else None

    def insert(self, row: Row) -> None:
        """Add an inode. Inside `change`, or at creation."""
        with self.translated():
            self._execute(_INSERT_INODE, row)
        self._keep(row)

    def update(self, ino: Ino, **columns: int | bytes | None) -> None:
        """Set columns of one inode. The names are the code's own, never a caller's text."""
        if "mtime_ns" in columns or "ctime_ns" in columns:
            touched = self._touched.pop(ino, None)
            if touched is not None:
                columns.setdefault("mtime_ns", touched)
                columns.setdefault("ctime_ns", touched)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        row = self._rows.pop(ino, None)
        with self.translated():
            self._execute(f"UPDATE inode SET {assignments} WHERE ino = ?", (*columns.values(), ino))  # noqa: S608
        if row is not None:
            self._rows[ino] = row._replace(**columns)  # type: ignore[arg-type]  # the columns are the fields
        if self.mirror is not None:
            self._tell(self.mirror.changed, ino, columns)

    def _write_touched(self) -> None:
        for ino, now in self._touched.items():
            self._rows.pop(ino, None)
            self._execute("UPDATE inode SET mtime_ns = ?, ctime_ns = ? WHERE ino = ?", (now, now, ino))
        self._touched.clear()

    def touch(self, ino: Ino, now_ns: int) -> None:
        """Set mtime and ctime of a directory at the next commit: one row write however many entries change."""
        self._touched[ino] = now_ns
        self.unlogged = True
        if self.mirror is not None:
            self._tell(self.mirror.changed, ino, {"mtime_ns": now_ns, "ctime_ns": now_ns})
        if len(self._touched) > 4096:  # bounded memory
            with self.translated():
                self._write_touched()

    def delete(self, ino: Ino) -> None:
        """Remove an inode and its xattrs; its content is the caller's to free."""
        self._touched.pop(ino, None)
        self._rows.pop(ino, None)
        with self.translated():
            self._execute("DELETE FROM xattr WHERE ino = ?", (ino,))
            self._execute("DELETE FROM inode WHERE ino = ?", (ino,))

    def unlinked(self) -> list[Row]:
        """Return inodes without a name: left by a crash while they were open."""
        with self.translated():
            found = self._execute(
                f"SELECT {_ROW_COLUMNS} FROM inode i WHERE i.nlink = 0"  # noqa: S608
            ).fetchall()
        return [self._row(each) for each in found]

    # -- entries

    def lookup(self, parent: Ino, name: bytes) -> Row | None:
        with self.translated():
            found = self._execute(_SELECT_ENTRY, (parent, name)).fetchone()
        return self._row(found) if found is not None else None

    def entries(self, parent: Ino, after: int, limit: int) -> list[Entry]:
        """Return entries whose cookie is above *after*, in the order of their cookies."""
        with self.translated():
            found: list[Any] = self._execute(_SELECT_ENTRIES, (parent, after, limit)).fetchall()
        return [Entry(each[0], each[1], self._row(each[2:])) for each in found]

    def is_empty(self, parent: Ino) -> bool:
        with self.translated():
            return self._execute("SELECT 1 FROM dirent WHERE parent = ? LIMIT 1", (parent,)).fetchone() is None

    def add_entry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        cookie = self._take_cookie()
        with self.translated():
            self._execute(_INSERT_ENTRY, (parent, cookie, name, ino))

    def set_entry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """Let an existing name mean another inode, keeping its place in the directory."""
        with self.translated():
            self._execute("UPDATE dirent SET ino = ? WHERE parent = ? AND name = ?", (ino, parent, name))

    def rename_entry(self, parent: Ino, old: bytes, new: bytes) -> None:
        """Give an entry another name in its place, so that who reads the directory meanwhile meets it once."""
        with self.translated():
            self._execute("UPDATE dirent SET name = ? WHERE parent = ? AND name = ?", (new, parent, old))

    def remove_entry(self, parent: Ino, name: bytes) -> None:
        with self.translated():
            self._execute("DELETE FROM dirent WHERE parent = ? AND name = ?", (parent, name))

    def path_of(self, ino: Ino) -> bytes:
        """Return one path of *ino*, for messages; b"" if it has none or it cannot be read."""
        parts: list[bytes] = []
        here = ino
        try:
            while here != ROOT_INO and len(parts) < 4096:
                row = self.inode(here)
                if row is None:
                    return b""
                if row.is_dir and row.parent is not None:
                    within, values = "parent = ? AND ino = ?", [row.parent, here]
                else:
                    within, values = "ino = ?", [here]
                with self.translated():
                    found = self._execute(
                        f"SELECT parent, name FROM dirent WHERE {within} LIMIT 1",  # noqa: S608
                        values,
                    ).fetchone()
                if found is None:
                    return b""
                here = found[0]
                parts.append(found[1])
        except (IntegrityError, OSError):
            return b""
        return b"/" + b"/".join(reversed(parts))

    # -- xattrs

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        with self.translated():
            found = self._execute("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name)).fetchone()
        return found[0] if found is not None else None

    def xattrs(self, ino: Ino) -> list[bytes]:
        with self.translated():
            return [name for (name,) in self._execute("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))]

    def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        if name == CAPABILITY:
            self.capabilities += 1
        self.xattrs_were_set = True
        if self.mirror is not None:
            self._tell(self.mirror.has_xattrs, ino)
        with self.translated():
            self._execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (ino, name, value))

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        with self.translated():
            self._execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name))

    def free_pages(self) -> int:
        """Return the pages that deleting has left inside the database."""
        with self.translated():
            return int(self.connection.pragma("freelist_count"))

    def contents(self) -> Iterator[tuple[Ino, ContentRoot, Protection]]:
        """Return the content roots of all regular files that have chunks; for the rebuild of the space map."""
        with self.translated():
            rows = self._execute(
                "SELECT ino, size, depth, pointer, protection FROM inode WHERE pointer IS NOT NULL ORDER BY ino"
            )
            for ino, size, depth, pointer, protection in rows:
                yield ino, ContentRoot(size, depth, pointer), Protection(protection)
