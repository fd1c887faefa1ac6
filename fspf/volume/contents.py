"""The contents that are open now: which inode has which content tree, and what of it is not in the namespace yet.

Reading and writing go straight to the native tree without the volume's lock; opening, closing and flushing need it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from fspf.core.errors import DamagedFileError, FspfError, ReadOnlyError
from fspf.core.types import HOLE, ContentRoot, Ino
from fspf.volume.entries import now_ns
from fspf_native import ChunkError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from fspf.volume.inodes import InodeVolume
    from fspf.volume.namespace import Namespace, Row
    from fspf_native import Store

log = logging.getLogger(__name__)

MAX_FILE_SIZE: Final = 2**63 - 1  # bytes


class Content:
    """One open content.

    Attributes:
        changed: The tree or the times differ from the namespace's row.
        mtime_ns: Time of the last change of data that the row does not have yet, or None.
        failure: Why the last flush failed, for the next fsync or close that can report it.
    """

    __slots__ = ("changed", "failure", "handles", "ino", "mtime_ns", "stored_size", "tree")

    def __init__(self, ino: Ino, tree: Tree) -> None:
        self.ino = ino
        self.tree = tree
        self.handles = 0
        self.changed = False
        self.mtime_ns: int | None = None
        self.stored_size = tree.size
        self.failure: OSError | FspfError | None = None


class Contents:
    """All open contents of a volume, by inode. Callers hold the volume's lock."""

    def __init__(
        self, store: Store, namespace: Namespace, fail: Callable[[str | FspfError], None], *, overlay: bool = False
    ) -> None:
        self._overlay = overlay  # what is written stays in memory: a log is replayed over what is read only
        self._store = store
        self._namespace = namespace
        self._fail = fail
        self._open: dict[Ino, Content] = {}
        self._changed: set[Content] = set()

    def get(self, ino: Ino) -> Content | None:
        return self._open.get(ino)

    def open(self, row: Row) -> Content:
        """Return the content of *row* with one handle more."""
        content = self._open.get(row.ino)
        if content is None:
            tree = Tree(self._store, row.root, protection=row.protection, allocated=row.chunks, overlay=self._overlay)
            content = Content(row.ino, tree)
            self._open[row.ino] = content
        content.handles += 1
        return content

    def close(self, content: Content) -> None:
        """Give a handle back; with the last one the tree is flushed and let go.

        Raises:
            OSError, FspfError: The flush failed; the content stays open inside and a later commit tries again.
        """
        content.handles -= 1
        if content.handles == 0:
            self.flush(content)
            self._let_go(content)

    def _let_go(self, content: Content) -> None:
        """Drop *content*, unless another has taken its place."""
        if self._open.get(content.ino) is content:
            del self._open[content.ino]

    def forget(self, ino: Ino) -> Content | None:
        """Let go of a content whose inode is being deleted, unflushed."""
        content = self._open.pop(ino, None)
        if content is not None:
            self._changed.discard(content)
        return content

    def note_change(self, content: Content, *, times: bool = True) -> None:
        """Remember that *content* is ahead of its row. The only method that needs no lock."""
        if times:
            content.mtime_ns = now_ns()
        content.changed = True
        self._changed.add(content)

    @property
    def any_changed(self) -> bool:
        return bool(self._changed)

    def flush(self, content: Content) -> None:
        """Seal what is dirty and store the content root in the inode's row."""
        if not content.changed:
            self._changed.discard(content)
            return
        content.changed = False  # before the flush: a write that comes during it sets it again
        self._changed.discard(content)
        mtime_ns, content.mtime_ns = content.mtime_ns, None
        try:
            root = ContentRoot(*content.tree.flush())
        except BaseException:
            self.note_change(content, times=False)
            if content.mtime_ns is None:  # no write came meanwhile
                content.mtime_ns = mtime_ns
            raise
        columns: dict[str, int | bytes | None] = {
            "size": root.size,
            "depth": root.depth,
            "pointer": None if root.pointer == HOLE else root.pointer,
            "chunks": content.tree.allocated,
        }
        try:
            if mtime_ns is not None:
                row = self._namespace.inode(content.ino)
                ctime_ns = mtime_ns if row is None else max(row.ctime_ns, mtime_ns)  # it never goes back
                columns |= {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns}
            self._namespace.change_inode(content.ino, **columns)
        except BaseException as exc:
            # The tree has handed over slots that the row still names: no commit may free them.
            self._fail(f"the content root of inode {content.ino} could not be stored: {exc}")
            raise
        self._namespace.bytes += root.size - content.stored_size
        content.stored_size = root.size
        content.failure = None

    def flush_all(self) -> None:
        """Flush every changed content; one that cannot be flushed keeps its failure and does not stop the others."""
        for content in list(self._changed):
            try:
                self.flush(content)
            except (OSError, FspfError, ChunkError) as exc:
                if content.failure is None:
                    log.error("inode %d: its data could not be written: %s", content.ino, exc)  # noqa: TRY400
                content.failure = exc if isinstance(exc, OSError | FspfError) else OSError(errno.EIO, str(exc))
                continue
            if content.handles == 0:
                self._let_go(content)

    def failures(self) -> list[OSError | FspfError]:
        """Return why contents are still unflushed."""
        return [content.failure for content in self._changed if content.failure is not None]


class OpenFile:
    """A handle to the content of one regular file. Thread-safe.

    Every method raises `DamagedFileError` for a range that does not verify, and OSError as the system call would.
    """

    __slots__ = ("_changing", "_closed", "_content", "_keep_times", "_volume", "_writable")

    def __init__(self, volume: InodeVolume, content: Content, *, writable: bool, preserve_times: bool) -> None:
        self._volume = volume
        self._content = content
        self._writable = writable
        self._keep_times = preserve_times
        self._closed = False
        self._changing = threading.Lock()  # a change ends before a close begins: the next handle may get another tree

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ino(self) -> Ino:
        return self._content.ino

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def size(self) -> int:
        """Bytes."""
        return self._content.tree.size

    def _damaged(self, exc: ChunkError) -> Exception:
        return self._volume.damaged(self._content.ino, exc)

    def _check_open(self) -> Tree:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._content.tree

    def _check_writable(self) -> Tree:
        tree = self._check_open()
        if not self._writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._volume.check_writable()
        return tree

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes; fewer only at the end of the file."""
        tree = self._check_open()
        try:
            return tree.read(offset, length)
        except ChunkError as exc:
            raise self._damaged(exc) from None

    def readinto(self, buffer: Buffer, offset: int) -> int:
        """Fill *buffer* from *offset*; the number of bytes."""
        tree = self._check_open()
        try:
            return tree.readinto(buffer, offset)
        except ChunkError as exc:
            raise self._damaged(exc) from None

    def write(self, offset: int, data: Buffer) -> int:
        """Write all of *data*; a gap before it becomes a hole."""
        with self._changing:
            return self._write(offset, data)

    def _write(self, offset: int, data: Buffer) -> int:
        tree = self._check_writable()
        try:
            return tree.write(data, offset)
        except ChunkError as exc:
            raise self._damaged(exc) from None
        finally:
            self._volume.contents.note_change(self._content, times=not self._keep_times)

    def append(self, data: Buffer) -> int:
        """Write *data* at the end as one step; the offset it went to."""
        with self._changing, self._volume.lock:  # in this order everywhere; the volume's lock excludes other appends
            offset = self._content.tree.size
            self._write(offset, data)
        return offset

    def truncate(self, size: int) -> None:
        """Cut or extend (with a hole) to *size* bytes."""
        if size < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._changing:
            tree = self._check_writable()
            try:
                tree.truncate(size)
            except ChunkError as exc:
                raise self._damaged(exc) from None
            finally:
                self._volume.contents.note_change(self._content, times=not self._keep_times)

    def punch(self, offset: int, length: int) -> None:
        """Make *length* bytes from *offset* a hole; the size stays."""
        with self._changing:
            tree = self._check_writable()
            try:
                tree.punch(offset, length)
            except ChunkError as exc:
                raise self._damaged(exc) from None
            finally:
                self._volume.contents.note_change(self._content, times=not self._keep_times)

    def allocate(self, offset: int, length: int, *, keep_size: bool) -> None:
        """Make room as fallocate(2) does: the size grows; space is taken when data comes, as on any copy-on-write system."""
        if offset < 0 or length <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset + length > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._volume.check_space(length)
        if not keep_size and offset + length > self.size:
            self.truncate(offset + length)
        else:
            self._check_writable()

    def seek_data(self, offset: int) -> int:
        """Return where data begins at or after *offset*; OSError ENXIO if there is none."""
        try:
            return self._check_open().seek_data(offset)
        except ChunkError as exc:
            raise self._damaged(exc) from None

    def seek_hole(self, offset: int) -> int:
        """Return where a hole (or the end) begins at or after *offset*; OSError ENXIO past the end."""
        try:
            return self._check_open().seek_hole(offset)
        except ChunkError as exc:
            raise self._damaged(exc) from None

    def flush(self) -> None:
        """Seal what was written and report what cannot be, as close(2) does; nothing becomes durable by it."""
        self._check_open()
        if self._writable and self._content.changed:
            self._volume.check_writable()
            self._volume.flush_content(self._content)
        failure, self._content.failure = self._content.failure, None
        if failure is not None:
            raise failure

    def fsync(self) -> None:
        """Return when this file is durable and, in strict mode, anchored."""
        self._check_open()
        self._volume.fsync(self._content.ino)

    def close(self) -> None:
        """Give the handle back. Idempotent; raises if the data could not be written."""
        with self._changing:
            closed, self._closed = self._closed, True
        if not closed:
            self._volume.close_content(self._content)


__all__ = ["Content", "Contents", "DamagedFileError", "OpenFile", "ReadOnlyError"]
