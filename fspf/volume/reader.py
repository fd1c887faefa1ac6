"""Read a tree of the host in a few threads and hand it over in batches, parents before what is in them.

Putting it into a volume is left to `fspf.volume.importer`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from contextlib import contextmanager
from itertools import islice
from operator import methodcaller
from typing import TYPE_CHECKING, Final, NamedTuple

from fspf.volume.transfer import ACL_OR_KNOWN, HostDirectory, HostTree

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL: Final = 1 << 20  # bytes; larger files are streamed by whoever takes the batches
_BATCH_BYTES: Final = 1 << 20
_BATCH_ENTRIES: Final = 128
_SORTED_AT_ONCE: Final = 4096  # entries of one directory sorted by inode: ext4 reads them faster so
_AHEAD_BYTES: Final = 4 << 20  # bytes of batches that wait
_ENTRY_WEIGHT: Final = 1 << 10  # bytes of memory that an entry takes beside its content
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CHANGED: Final = "it changed while it was read; what the volume has of it may be a mixture"
_GONE: Final = {errno.ENODATA, errno.ENOENT}
_NO_XATTRS: Final = {errno.EOPNOTSUPP, errno.ENOSYS}


class Item(NamedTuple):
    """One entry of a directory.

    `content` is the whole content of a small regular file; None if there is none or it is to be streamed.
    """

    name: bytes
    status: os.stat_result | None  # None: it could not even be looked at
    xattrs: dict[bytes, bytes]
    content: bytes | None
    target: bytes | None
    error: str | None  # why it cannot be taken over, or (with content) what is wrong with it
    directory: SourceDirectory | None  # for a directory
    warnings: tuple[str, ...] = ()


class SourceDirectory(HostDirectory):
    """A directory of the source, with what the importer knows about it."""

    __slots__ = ("existing", "ino", "protection", "status", "unread")

    def __init__(self, parent: HostDirectory | None, name: bytes) -> None:
        super().__init__(parent, name)
        self.ino = 0
        self.protection = 0
        self.status: os.stat_result | None = None
        self.existing: dict[bytes, object] | None = None
        self.unread = False


class Batch(NamedTuple):
    """Some entries of one directory; `last` if no more of it follow."""

    directory: SourceDirectory
    items: list[Item]
    last: bool
    error: OSError | None  # the directory could not be read (to its end)


def same_state(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was not changed between two looks."""
    return (
        before.st_ino == after.st_ino
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
    )


def is_sparse(status: os.stat_result) -> bool:
    return status.st_blocks * 512 < status.st_size


def open_for_reading(name: bytes, directory_fd: int) -> int:
    """Open a file without following a link, waiting for a fifo's writer, or touching atime where that is allowed."""
    try:
        return os.open(name, _OPEN_FILE | os.O_NOATIME, dir_fd=directory_fd)
    except PermissionError:
        return os.open(name, _OPEN_FILE, dir_fd=directory_fd)


def read_xattrs(place: int | bytes, warnings: list[str]) -> dict[bytes, bytes]:
    """Read the xattrs of a descriptor, or of a path whose last component is not followed."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno not in _NO_XATTRS | _GONE:
            warnings.append(f"extended attributes cannot be read: {exc.strerror}")
        return {}
    found: dict[bytes, bytes] = {}
    for name in names:
        if not name.startswith(ACL_OR_KNOWN):
            warnings.append(f"extended attribute {name!r} is of no namespace that a volume keeps")
            continue
        try:
            found[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follow)
        except OSError as exc:
            if exc.errno not in _GONE:
                warnings.append(f"extended attribute {name!r} cannot be read: {exc.strerror}")
    return found


def read_whole(fd: int, size: int) -> bytes:
    """Read to the end of a file that seems to have *size* bytes."""
    data = os.read(fd, size + 1)
    if len(data) == size:  # a short read of a regular file is its end
        return data
    pieces = [data]
    while piece := os.read(fd, SMALL):
        pieces.append(piece)
    return b"".join(pieces)


class _Channel:
    """A queue bounded by the memory of what waits in it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._waiting: deque[tuple[Batch | BaseException | None, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Batch | BaseException | None, weight: int) -> None:
        with self._changed:
            while self._weight > self._budget and not self._closed:
                self._changed.wait()
            self._waiting.append((item, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self) -> Batch | BaseException | None:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            item, weight = self._waiting.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class TreeReader:
    """Walks a tree depth first with some threads.

    A batch that names a directory is handed over before the batches of what is in that directory.

    Args:
        tree: Where to read.
        contents: Whether to read small files at once; without, all content is left to be streamed.
        threads: How many readers.
    """

    def __init__(self, tree: HostTree[SourceDirectory], *, contents: bool, threads: int) -> None:
        self._tree = tree
        self._contents = contents
        self._channel = _Channel(_AHEAD_BYTES)
        self._todo: list[SourceDirectory] = [tree.root]
        self._working = 0
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"fspf-reader-{number}", daemon=True) for number in range(threads)
        ]

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """Start the threads; they have ended when the block is left, however it is left."""
        for thread in self._threads:
            thread.start()
        try:
            yield self._take()
        finally:
            self._channel.close()
            with self._changed:
                self._todo.clear()
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def _take(self) -> Iterator[Batch]:
        while True:
            item = self._channel.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._todo and self._working:
                    self._changed.wait()
                if not self._todo:
                    self._changed.notify_all()
                    return
                directory = self._todo.pop()
                self._working += 1
            try:
                self._read_directory(directory)
            except BaseException as exc:  # noqa: BLE001  # handed to the thread that takes the batches
                self._channel.put(exc, 0)
                self._channel.close()
            finally:
                with self._changed:
                    self._working -= 1
                    finished = not self._todo and not self._working
                    self._changed.notify_all()
            if finished:
                self._channel.put(None, 0)

    def _read_directory(self, directory: SourceDirectory) -> None:
        """Read one directory; its subdirectories are put on the stack after the batches that name them."""
        if self._channel.is_closed():
            return
        error: OSError | None = None
        items: list[Item] = []
        below: list[SourceDirectory] = []
        weight = 0
        try:
            with self._tree.opened(directory) as fd, os.scandir(fd) as scan:
                while entries := sorted(islice(scan, _SORTED_AT_ONCE), key=methodcaller("inode")):
                    for entry in entries:
                        item = self._read_entry(directory, entry, fd)
                        items.append(item)
                        weight += _ENTRY_WEIGHT + len(item.content or b"")
                        if item.directory is not None:
                            below.append(item.directory)
                        if len(items) >= _BATCH_ENTRIES or weight >= _BATCH_BYTES:
                            self._channel.put(Batch(directory, items, last=False, error=None), weight)
                            items, weight = [], 0
                            if self._channel.is_closed():
                                return
        except OSError as exc:
            error = exc
        self._channel.put(Batch(directory, items, last=True, error=error), weight)
        if not below:
            self._tree.release(directory)
        with self._changed:
            if not self._channel.is_closed():
                self._todo.extend(reversed(below))
                self._changed.notify_all()

    def _read_entry(self, directory: SourceDirectory, entry: os.DirEntry[str], fd: int) -> Item:
        name = os.fsencode(entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG and self._reads_at_once(status):
                return self._read_file(name, status, fd)
            if kind == stat.S_IFSOCK:
                return Item(name, status, {}, None, None, None, None)
            warnings: list[str] = []
            place = b"/proc/self/fd/%d/%s" % (fd, name)
            xattrs = read_xattrs(place, warnings)
            target = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else None
            child = None
            if kind == stat.S_IFDIR:
                child = SourceDirectory(directory, name)
                child.status = status
            return Item(name, status, xattrs, None, target, None, child, tuple(warnings))
        except OSError as exc:
            return Item(name, None, {}, None, None, exc.strerror or str(exc), None)

    def _reads_at_once(self, status: os.stat_result) -> bool:
        return self._contents and status.st_size <= SMALL and status.st_nlink == 1 and not is_sparse(status)

    @staticmethod
    def _read_file(name: bytes, status: os.stat_result, directory_fd: int) -> Item:
        """Read a small file whole; once more if it changed meanwhile."""
        fd = open_for_reading(name, directory_fd)
        try:
            data = read_whole(fd, status.st_size)
            after = os.fstat(fd)
            error = None
            if not same_state(status, after):
                os.lseek(fd, 0, os.SEEK_SET)
                status = after
                data = read_whole(fd, status.st_size)
                after = os.fstat(fd)
                if not same_state(status, after):
                    error, status = CHANGED, after
            warnings: list[str] = []
            xattrs = read_xattrs(fd, warnings)
        finally:
            os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            return Item(name, None, {}, None, None, "it became something else while it was read", None)
        return Item(name, status, xattrs, data, None, error, None, tuple(warnings))
