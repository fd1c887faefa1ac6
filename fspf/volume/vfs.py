"""Let SQLite keep a database inside a content tree.

Atomicity is not its business: SQLite journals in memory, and the volume's commit makes the pages durable.
"""

# ruff: noqa: N802  # apsw names the methods
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import apsw

from fspf_native import ChunkError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fspf_native import Tree

_NUMBERS: Final = itertools.count(1)
DATABASE_NAME: Final = "namespace"


class TreeFile:
    """One SQLite file whose bytes are a content tree (the methods are apsw's VFSFile interface).

    apsw turns an exception into a result code of SQLite; the cause is kept in `failure` so that
    the caller can report which bytes of the volume are damaged.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.failure: ChunkError | OSError | None = None

    def xRead(self, amount: int, offset: int) -> bytes:
        try:
            return self._tree.read(offset, amount)
        except (ChunkError, OSError) as exc:
            self.failure = exc
            # Not SQLITE_IOERR: that would roll back all that is not committed, also for a SELECT elsewhere.
            raise apsw.SQLError(str(exc)) from exc

    def xWrite(self, data: Buffer, offset: int) -> None:
        try:
            self._tree.write(data, offset)
        except (ChunkError, OSError) as exc:
            self.failure = exc
            raise apsw.IOError(str(exc)) from exc

    def xTruncate(self, size: int) -> None:
        try:
            self._tree.truncate(size)
        except (ChunkError, OSError) as exc:
            self.failure = exc
            raise apsw.IOError(str(exc)) from exc

    def xFileSize(self) -> int:
        return self._tree.size

    def xSync(self, flags: int) -> None:
        """Do nothing: the volume's commit syncs."""

    def xClose(self) -> None:
        """Do nothing: the tree belongs to the volume."""

    def xLock(self, level: int) -> None:
        """Do nothing: the volume's lock and lease exclude other writers."""

    def xUnlock(self, level: int) -> None:
        """Do nothing, as for `xLock`."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return int(apsw.SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN)


class _TreeVfs(apsw.VFS):
    """A VFS that knows one file."""

    def __init__(self, name: str, file: TreeFile) -> None:
        super().__init__(name, base="", exclude={"xDlOpen", "xDlSym", "xDlClose", "xDlError"})
        self._file = file

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> TreeFile:  # type: ignore[override]  # duck-typed by apsw
        if str(name if not isinstance(name, apsw.URIFilename) else name.filename()) != DATABASE_NAME:
            message = (
                "the namespace keeps everything in one file"  # no journal, no temporary file: no plaintext outside
            )
            raise apsw.CantOpenError(message)
        flags[1] = flags[0]
        return self._file

    def xAccess(self, pathname: str, flags: int) -> bool:
        return False

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001  # apsw's signature
        """Do nothing: there is no journal."""

    def xFullPathname(self, name: str) -> str:
        return name


class TreeDatabase:
    """A SQLite connection on a content tree.

    Attributes:
        connection: The apsw connection; exclusive, nothing of it reaches a disk outside the tree.
        file: Where the cause of an SQLITE_IOERR is found.
    """

    def __init__(self, tree: Tree, *, page_size: int, read_only: bool, cache_bytes: int) -> None:
        self.file = TreeFile(tree)
        name = f"fspf-{next(_NUMBERS)}"
        self._vfs = _TreeVfs(name, self.file)
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self.connection = apsw.Connection(DATABASE_NAME, flags=flags, vfs=name)
        try:
            for pragma in (
                f"page_size = {page_size}",
                "locking_mode = EXCLUSIVE",
                "journal_mode = MEMORY",
                "synchronous = OFF",
                "temp_store = MEMORY",
                "mmap_size = 0",
                "trusted_schema = OFF",
                "cell_size_check = ON",
                f"cache_size = -{max(cache_bytes // 1024, 256)}",
            ):
                self.connection.pragma(*pragma.split(" = "))
        except BaseException as exc:
            self.close()
            if isinstance(self.file.failure, OSError):  # the host's disk, not an attacker
                raise self.file.failure from exc
            raise

    def close(self) -> None:
        """Close the connection; changes that were not committed are dropped."""
        self.connection.close(True)  # apsw takes it by position
        self._vfs.unregister()
