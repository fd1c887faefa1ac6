"""Read a namespace whose pages may be damaged: everything that SQLite can still reach, each row once.

What the rows mean and whether they agree is left to `fspf.volume.check`.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from fspf.core.types import HOLE, ROOT_INO, ContentRoot

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FAILURES: Final = 20_000  # queries into damaged pages, per scan
_INODE: Final = (
    "SELECT ino, mode, uid, gid, nlink, rdev, atime_ns, mtime_ns, protection, size, depth, pointer, chunks, parent, target"
    " FROM inode WHERE ino {} ? "
)
_INODES: Final = _INODE.format(">") + "AND ino < ? ORDER BY ino"
_ENTRIES: Final = "SELECT cookie, name, ino FROM dirent WHERE parent = {} AND cookie > ? AND cookie < ? ORDER BY cookie"


class Inode(NamedTuple):
    """One row of the namespace."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    protection: int
    size: int
    depth: int
    pointer: bytes | None
    chunks: int
    parent: int | None
    target: bytes | None

    @property
    def root(self) -> ContentRoot:
        return ContentRoot(self.size, self.depth, self.pointer or HOLE)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Entry(NamedTuple):
    """One name in a directory."""

    cookie: int
    name: bytes
    ino: int


class Reader:
    """Reads rows, around damaged pages.

    Attributes:
        losses: How many times a page could not be read; 0 means that nothing is missing.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._execute = connection.execute
        self.losses = 0
        self.next_ino = self._counter("next_ino")
        self.next_cookie = self._counter("next_cookie")

    def _counter(self, name: str) -> int:
        row = self._execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
        return int(row[0]) if row is not None else 0

    def inode(self, ino: int) -> Inode | None:
        """Return one inode; None if it is not there or cannot be read (then `losses` grows)."""
        try:
            row = self._execute(_INODE.format("="), (ino,)).fetchone()
        except apsw.Error:
            self.losses += 1
            return None
        return Inode(*row) if row is not None else None

    def inodes(self) -> Iterator[Inode]:
        """Return all inodes that can be read, in no order where pages are damaged."""
        for row in self._scan(_INODES, 0, self.next_ino):
            yield Inode(*row)

    def entries(self, directory: int) -> Iterator[Entry]:
        """Return the entries of one directory that can be read."""
        for row in self._scan(_ENTRIES.format(int(directory)), 0, self.next_cookie):
            yield Entry(*row)

    def xattrs(self, ino: int) -> list[tuple[bytes, bytes]]:
        """Return the extended attributes that can be read."""
        found: list[tuple[bytes, bytes]] = []
        try:
            found.extend(self._execute("SELECT name, value FROM xattr WHERE ino = ?", (ino,)))
        except apsw.Error:
            self.losses += 1
        return found

    def _scan(self, ascending: str, low: int, high: int) -> Iterator[tuple[Any, ...]]:
        """Return rows whose key (their first column) lies between *low* and *high*, both excluded.

        From both ends to the damaged page, then by halves in between.
        """
        ranges = [(low, high)]
        failures = 0
        while ranges and failures < _MAX_FAILURES:
            low, high = ranges.pop()
            try:
                for row in self._execute(ascending, (low, high)):
                    low = row[0]
                    yield row
                continue
            except apsw.Error:
                failures += 1
                self.losses += 1
            try:
                for row in self._execute(ascending + " DESC", (low, high)):
                    high = row[0]
                    yield row
                continue
            except apsw.Error:
                failures += 1
            if high - low > 2:  # more than one key left
                middle = (low + high) // 2
                ranges += [(low, middle + 1), (middle, high)]


class Place(NamedTuple):
    """One name of one inode, found by walking down from the root."""

    path: bytes  # absolute; empty for the root directory
    entry: Entry
    inode: Inode | None  # None: missing or unreadable
    directory: Inode


class Listed(NamedTuple):
    """A directory whose entries have all been given."""

    path: bytes
    inode: Inode
    subdirectories: int


def walk(reader: Reader) -> Iterator[Place | Listed]:
    """Walk all directories from the root. A directory is entered once, whatever names it has."""
    root = reader.inode(ROOT_INO)
    if root is None:
        return
    todo: list[tuple[bytes, Inode]] = [(b"", root)]
    entered = {int(ROOT_INO)}
    while todo:
        path, directory = todo.pop()
        subdirectories = 0
        for entry in reader.entries(directory.ino):
            inode = reader.inode(entry.ino)
            place = Place(path + b"/" + entry.name, entry, inode, directory)
            yield place
            if inode is not None and inode.is_dir:
                subdirectories += 1
                if inode.ino not in entered:
                    entered.add(inode.ino)
                    todo.append((place.path, inode))
        yield Listed(path, directory, subdirectories)
