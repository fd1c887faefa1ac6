"""Files and directories by inode number: POSIX rules on top of the namespace and the open contents.

Paths are for `fspf.volume.files`, FUSE for `fspf.mount`; permissions are checked by the kernel, not here.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from fspf.core.errors import DamagedFileError, FspfError, ReadOnlyError
from fspf.core.types import HOLE, ROOT_INO, Ino, Protection
from fspf.volume.contents import MAX_FILE_SIZE, Content, Contents, OpenFile
from fspf.volume.entries import now_ns
from fspf.volume.intent import Intent
from fspf.volume.mirror import VolumeLock
from fspf.volume.namespace import Namespace, Row
from fspf_native import ChunkError, Tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fspf.volume.mirror import Mirror
    from fspf_native import Store

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
NAME_MAX: Final = 255  # bytes
SYMLINK_MAX: Final = 4095  # bytes
XATTR_SIZE_MAX: Final = 65536  # bytes, as Linux has it
XATTR_LIST_MAX: Final = 65536  # bytes of all names of one inode together
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")
_MAX_OPERATIONS: Final = 100_000  # changes after which a commit is due however young: bounds SQLite's journal in memory
_MAX_OPERATIONS_IN_NEED: Final = 50  # the same when space is low: what a commit writes must fit the reserve


class Attr(NamedTuple):
    """What stat(2) tells. Times are ns since 1970; blocks are of 512 bytes."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    protection: Protection


class DirEntry(NamedTuple):
    """One name in a directory. `cookie` is where reading goes on after it."""

    cookie: int
    name: bytes
    attr: Attr


@dataclass(frozen=True, slots=True)
class StatFs:
    """Space in blocks of `block_size` bytes."""

    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    block_size: int
    name_max: int


def error(number: int, name: bytes | None = None) -> OSError:
    """Make the OSError that a system call would give."""
    if name is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fsdecode(name))


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise error(errno.ENAMETOOLONG, name)
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL, name)


class InodeVolume:
    """The inode layer of one open volume.

    One re-entrant lock guards the namespace and the table of open contents. Reads and writes of open files do
    not take it. docs/CONCURRENCY.md has the order of all locks.
    """

    store: Store
    namespace: Namespace
    contents: Contents
    read_only: bool

    def __init__(self) -> None:
        self.lock = VolumeLock()
        self.mirror: Mirror | None = None  # a mount's data plane, see `attach_mirror`
        self.intent = Intent()
        self.failed: str | None = None
        self.failure: FspfError | None = None  # the error behind `failed`
        self.opened_by = os.getpid()
        self.streams: WeakSet[IO[Any]] = WeakSet()  # opened for writing: closing the volume closes them
        self.ended = False  # the last commit is done; nothing may follow it
        self.low_on_space = False  # as of the last commit
        self.no_space = False  # the last commit had no room for the namespace: nothing new until one has
        self._held: dict[Ino, int] = {}
        self._orphans: set[Ino] = set()  # inodes without a name that something still holds
        self.mirror_errno = 0  # why the data plane could not seal some content at the last commit

    # -- to be given by the volume

    def fsync(self, ino: Ino | None = None) -> None:
        raise NotImplementedError

    def commit_soon(self) -> None:
        raise NotImplementedError

    def fail(self, reason: str | FspfError) -> None:
        raise NotImplementedError

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` when nothing can be changed (any more)."""
        if self.read_only:
            message = "the volume was opened for reading"
            raise ReadOnlyError(message)
        if self.opened_by != os.getpid():  # a child has its parent's lease, and would repeat its nonces
            message = "the volume was opened before a fork: only the process that opened it can change it"
            raise ReadOnlyError(message)
        if self.ended:
            message = "the volume is closed"
            raise ReadOnlyError(message)
        if self.failed is not None:
            message = f"the volume turned read-only: {self.failed}"
            raise ReadOnlyError(message)

    def check_growth(self) -> None:
        """Raise ENOSPC when only the reserve is left."""
        raise NotImplementedError

    def check_space(self, length: int) -> None:
        """Raise ENOSPC when *length* more bytes cannot fit."""
        raise NotImplementedError

    def damaged(self, ino: Ino, exc: ChunkError) -> FspfError:
        """Say in the user's terms what a damaged chunk means."""
        with self.lock:
            path = self.namespace.path_of(ino)
        return DamagedFileError(path, exc.offset, exc.length, exc.kind, ino=ino)

    # -- the data plane of a mount

    def attach_mirror(self, mirror: Mirror) -> None:
        """Let a data plane answer ahead of the namespace; its contents and numbers count from now on."""
        with self.lock:
            self.mirror = self.namespace.mirror = mirror
            self.lock.on_enter = self._drain
            if self.failed is not None:
                mirror.set_blocked(errno.EROFS)

    def detach_mirror(self) -> None:
        """Take over what the data plane still has; it answers nothing any more.

        What cannot be sealed now is lost: `close` raises why.
        """
        with self.lock:
            mirror = self.mirror
            if mirror is None:
                return
            try:
                if not self.read_only:
                    self.mirror_errno = mirror.flush_all()
                    self._drain()
            finally:
                mirror.end_marks()
                self.mirror = self.namespace.mirror = None
                self.lock.on_enter = None
            if not self.read_only and self.failed is None:
                self.purge_unlinked()  # the kernel need not forget what it knew

    def _drain(self) -> None:
        """Store what the data plane has answered. It runs whenever the lock is entered from outside."""
        mirror, intent = self.mirror, self.intent
        if mirror is not None:
            mirror.lane_pause()  # what is changed now, it would not know of
        if mirror is None or self.failed is not None or self.ended or not (intent.backlog or mirror.pending):
            return
        try:
            backlog, intent.backlog = intent.backlog, []
            if mirror.pending:
                recorded, drained = mirror.drain()
                backlog += [intent.note_recorded(each) for each in recorded]
                backlog.append(intent.note(drained))
            for batch in backlog:
                self.namespace.apply(batch)
        except (OSError, FspfError) as exc:
            self.fail(f"what the mount had answered could not be stored: {exc}")
            raise
        self._bound_memory()

    # -- attributes

    def _attr(self, row: Row) -> Attr:
        size, chunks, mtime_ns, ctime_ns = row.size, row.chunks, row.mtime_ns, row.ctime_ns
        content = self.contents.get(row.ino)
        if content is not None:
            size, chunks = content.tree.size, content.tree.allocated
            changed_ns = content.mtime_ns
            if changed_ns is not None:
                mtime_ns, ctime_ns = changed_ns, max(ctime_ns, changed_ns)  # a later rename or link changed ctime only
        elif row.target is not None:
            size = len(row.target)
        return Attr(
            row.ino, row.mode, row.uid, row.gid, row.rdev, row.nlink, size, chunks * (self.chunk_size // 512),
            row.atime_ns, mtime_ns, ctime_ns, row.btime_ns, Protection(row.protection),
        )  # fmt: skip

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk."""
        raise NotImplementedError

    def _row(self, ino: Ino) -> Row:
        row = self.namespace.inode(ino)
        if row is None:
            raise error(errno.ENOENT)
        return row

    def _directory(self, ino: Ino) -> Row:
        row = self._row(ino)
        if not row.is_dir:
            raise error(errno.ENOTDIR)
        return row

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        """Return what *name* in *parent* is. OSError ENOENT, ENOTDIR, ENAMETOOLONG."""
        with self.lock:
            row = self.namespace.lookup(parent, name)
            if row is None:
                self._directory(parent)
                raise error(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT, name)
            return self._attr(row)

    def getattr(self, ino: Ino) -> Attr:
        """Return the attributes. OSError ENOENT."""
        with self.lock:
            return self._attr(self._row(ino))

    def parent(self, ino: Ino) -> Ino:
        """Return the directory that holds directory *ino*; the root's is the root."""
        with self.lock:
            return self._directory(ino).parent or ROOT_INO

    def setattr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Attr:
        """Change attributes; *mode* sets permission bits, *size* truncates or extends. ctime becomes now unless given."""
        with self.lock:
            self.check_writable()
            row = self._row(ino)
            now = now_ns()
            if size is not None:
                if stat.S_ISDIR(row.mode):
                    raise error(errno.EISDIR)
                if not row.is_file or size < 0:
                    raise error(errno.EINVAL)
                with self.open_file(ino, write=True) as file:
                    file.truncate(size)
            content = self.contents.get(ino)
            columns: dict[str, int | bytes | None] = {"ctime_ns": now if ctime_ns is None else ctime_ns}
            if content is not None and content.mtime_ns is not None:
                columns["mtime_ns"] = content.mtime_ns
                content.mtime_ns = None
            if mode is not None:
                columns["mode"] = stat.S_IFMT(row.mode) | stat.S_IMODE(mode)
            if uid is not None:
                columns["uid"] = uid
            if gid is not None:
                columns["gid"] = gid
            if atime_ns is not None:
                columns["atime_ns"] = atime_ns
            if mtime_ns is not None:
                columns["mtime_ns"] = mtime_ns
            with self.namespace.change():
                self.namespace.update(ino, **columns)
            attr = self._attr(self._row(ino))
        self._bound_memory()
        return attr

    def set_protection(self, ino: Ino, protection: Protection) -> None:
        """Choose what new content gets, below a directory or in a file; both must be empty (ENOTEMPTY)."""
        with self.lock:
            self.check_writable()
            row = self._row(ino)
            if row.is_dir and not self.namespace.is_empty(ino):
                raise error(errno.ENOTEMPTY)
            if row.is_file and (row.size or self.contents.get(ino) is not None):
                raise error(errno.ENOTEMPTY)
            with self.namespace.change():
                self.namespace.update(ino, protection=int(protection), ctime_ns=now_ns())

    # -- making

    def create_inode(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        *,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        xattrs: Mapping[bytes, bytes] | None = None,
        protection: Protection | None = None,
    ) -> Ino:
        """Make a directory entry and its inode with exactly these attributes, in one step; returns the inode's number."""
        _check_name(name)
        if target is not None and not 0 < len(target) <= SYMLINK_MAX:
            raise error(errno.ENAMETOOLONG if target else errno.ENOENT, name)
        with self.lock:
            self.check_writable()
            namespace = self.namespace
            directory = self._directory(parent)
            if directory.nlink == 0:
                raise error(errno.ENOENT, name)
            self.check_growth()
            for key, value in (xattrs or {}).items():
                self.check_xattr(key, value)
            now = now_ns()
            ino = namespace.take_ino()
            is_dir = stat.S_ISDIR(mode)
            row = Row(
                ino=ino, mode=mode, uid=uid, gid=gid, rdev=rdev, nlink=2 if is_dir else 1,
                atime_ns=now if atime_ns is None else atime_ns, mtime_ns=now if mtime_ns is None else mtime_ns,
                ctime_ns=now, btime_ns=now, protection=int(directory.protection if protection is None else protection),
                size=0, depth=0, pointer=None, chunks=0, parent=parent if is_dir else None, target=target,
            )  # fmt: skip
            if xattrs or is_dir:
                with namespace.change():
                    if not namespace.add_inode(row, parent, name):
                        namespace.give_back_ino(ino)
                        raise error(errno.EEXIST, name)
                    for key, value in (xattrs or {}).items():
                        namespace.set_xattr(ino, key, value)
                    if is_dir:
                        namespace.update(parent, nlink=directory.nlink + 1)
            elif not namespace.add_inode(row, parent, name):
                namespace.give_back_ino(ino)
                raise error(errno.EEXIST, name)
            namespace.files += 1
            namespace.touch(parent, now)
        self._bound_memory()
        return ino

    def mknod(self, parent: Ino, name: bytes, mode: int, *, uid: int = 0, gid: int = 0, rdev: int = 0) -> Attr:
        """Make a regular file, fifo, socket or device node."""
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        if stat.S_IFMT(mode) not in {stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR}:
            raise error(errno.EPERM if stat.S_ISDIR(mode) else errno.EINVAL, name)
        return self.getattr(self.create_inode(parent, name, mode, uid=uid, gid=gid, rdev=rdev))

    def mkdir(self, parent: Ino, name: bytes, mode: int, *, uid: int = 0, gid: int = 0) -> Attr:
        """Make a directory."""
        return self.getattr(self.create_inode(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid=uid, gid=gid))

    def symlink(self, parent: Ino, name: bytes, target: bytes, *, uid: int = 0, gid: int = 0) -> Attr:
        """Make a symbolic link to *target*, up to 4095 bytes of anything but NUL."""
        return self.getattr(self.create_inode(parent, name, stat.S_IFLNK | 0o777, uid=uid, gid=gid, target=target))

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        """Give an inode another name. EPERM for a directory, EXDEV into another protection."""
        _check_name(name)
        with self.lock:
            self.check_writable()
            row = self._row(ino)
            if row.is_dir:
                raise error(errno.EPERM, name)
            if row.nlink == 0:
                raise error(errno.ENOENT, name)
            directory = self._directory(parent)
            if directory.nlink == 0:
                raise error(errno.ENOENT, name)
            if self.namespace.lookup(parent, name) is not None:
                raise error(errno.EEXIST, name)
            self._check_region(row, directory, name)
            now = now_ns()
            with self.namespace.change():
                self.namespace.add_entry(parent, name, ino)
                self.namespace.update(ino, nlink=row.nlink + 1, ctime_ns=now)
                self.namespace.touch(parent, now)
            attr = self._attr(self._row(ino))
        self._bound_memory()
        return attr

    @staticmethod
    def _check_region(row: Row, directory: Row, name: bytes) -> None:
        """Refuse that content of one protection gets a name where another is promised."""
        if row.protection != directory.protection and (row.is_file or row.is_dir):
            raise error(errno.EXDEV, name)

    def readlink(self, ino: Ino) -> bytes:
        """Return where a symbolic link points. EINVAL for anything else."""
        with self.lock:
            target = self._row(ino).target
        if target is None:
            raise error(errno.EINVAL)
        return target

    # -- removing

    def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name that is no directory; the content goes with the last name, handle and hold."""
        with self.lock:
            self.check_writable()
            row = self._named(parent, name)
            if row.is_dir:
                raise error(errno.EISDIR, name)
            now = now_ns()
            with self.namespace.change():
                self.namespace.remove_entry(parent, name)
                self.namespace.touch(parent, now)
                self._drop_name(row, now)
            self._purge_if_unused(row, row.nlink - 1)
        self._bound_memory()

    def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory."""
        with self.lock:
            self.check_writable()
            row = self._named(parent, name)
            if not row.is_dir:
                raise error(errno.ENOTDIR, name)
            if not self.namespace.is_empty(row.ino):
                raise error(errno.ENOTEMPTY, name)
            directory = self._row(parent)
            now = now_ns()
            with self.namespace.change():
                self.namespace.remove_entry(parent, name)
                self.namespace.update(parent, nlink=directory.nlink - 1)
                self.namespace.touch(parent, now)
                self._drop_name(row, now)
            self._purge_if_unused(row, 0)
        self._bound_memory()

    def _named(self, parent: Ino, name: bytes) -> Row:
        row = self.namespace.lookup(parent, name)
        if row is None:
            self._directory(parent)
            raise error(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT, name)
        return row

    def _in_use(self, ino: Ino) -> bool:
        content = self.contents.get(ino)
        if self.mirror is not None and self.mirror.in_use(ino):
            return True
        return self._held.get(ino, 0) > 0 or (content is not None and content.handles > 0)

    def _drop_name(self, row: Row, now_ns: int) -> None:
        """Count one name less; inside `change`. A directory has no second name."""
        left = 0 if row.is_dir else row.nlink - 1
        if left == 0 and not self._in_use(row.ino):
            self.namespace.delete(row.ino)
        else:
            self.namespace.update(row.ino, nlink=left, ctime_ns=now_ns)

    def _purge_if_unused(self, row: Row, left: int) -> None:
        """Free the content of an inode whose row `_drop_name` deleted; remember one that is still in use."""
        if left > 0:
            return
        if self._in_use(row.ino):
            self._orphans.add(row.ino)
            return
        self._free_content(row)

    def _free_content(self, row: Row) -> None:
        """Hand the slots of a deleted inode to the next commit."""
        self.namespace.files -= 1
        self._orphans.discard(row.ino)
        if not row.is_file:
            return
        content = self.contents.forget(row.ino)
        self.namespace.bytes -= content.stored_size if content is not None else row.size
        if content is not None:
            content.tree.destroy()
        elif row.pointer is not None:
            Tree(self.store, row.root, protection=row.protection, allocated=row.chunks).destroy()

    def _purge_orphan(self, ino: Ino) -> None:
        """Delete an inode that had no name any more and has just lost its last handle or hold."""
        if ino not in self._orphans or self._in_use(ino) or self.read_only or self.failed is not None:
            return
        row = self._row(ino)
        with self.namespace.change():
            self.namespace.delete(ino)
        self._free_content(row)

    def purge_unlinked(self) -> int:
        """Delete what a crash, or the kernel of a mount that has ended, left without a name; how many."""
        count = 0
        with self.lock:
            for row in self.namespace.unlinked():
                if self._in_use(row.ino):
                    self._orphans.add(row.ino)
                    continue
                with self.namespace.change():
                    self.namespace.delete(row.ino)
                self._free_content(row)
                count += 1
        return count

    def hold(self, ino: Ino) -> None:
        """Keep an inode alive without a handle: the kernel knows its number."""
        with self.lock:
            self._held[ino] = self._held.get(ino, 0) + 1

    def drop(self, ino: Ino, count: int = 1) -> None:
        """Give *count* holds back."""
        with self.lock:
            left = self._held.get(ino, 0) - count
            if left > 0:
                self._held[ino] = left
                return
            self._held.pop(ino, None)
            self._purge_orphan(ino)

    # -- rename

    def rename(self, old_parent: Ino, old_name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> None:
        """Rename as renameat2(2) does, with NOREPLACE and EXCHANGE."""
        _check_name(new_name)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise error(errno.EINVAL, new_name)
        with self.lock:
            self.check_writable()
            row = self._named(old_parent, old_name)
            new_directory = self._directory(new_parent)
            if new_directory.nlink == 0:
                raise error(errno.ENOENT, new_name)
            replaced = self.namespace.lookup(new_parent, new_name)
            if flags == RENAME_EXCHANGE:
                self._exchange(old_parent, old_name, row, new_parent, new_name, replaced)
            else:
                if flags == RENAME_NOREPLACE and replaced is not None:
                    raise error(errno.EEXIST, new_name)
                self._move(old_parent, old_name, row, new_parent, new_name, replaced)
        self._bound_memory()

    def _check_no_loop(self, row: Row, new_parent: Ino, name: bytes) -> None:
        """Refuse to put a directory below itself."""
        if not row.is_dir:
            return
        here = new_parent
        while True:
            if here == row.ino:
                raise error(errno.EINVAL, name)
            if here == ROOT_INO:
                return
            here = self._row(here).parent or ROOT_INO

    def _move(
        self, old_parent: Ino, old_name: bytes, row: Row, new_parent: Ino, new_name: bytes, replaced: Row | None
    ) -> None:
        if replaced is not None and replaced.ino == row.ino:
            return  # POSIX: two names of one file stay
        self._check_region(row, self._row(new_parent), new_name)
        self._check_no_loop(row, new_parent, new_name)
        if replaced is not None:
            if replaced.is_dir and not row.is_dir:
                raise error(errno.EISDIR, new_name)
            if row.is_dir and not replaced.is_dir:
                raise error(errno.ENOTDIR, new_name)
            if replaced.is_dir and not self.namespace.is_empty(replaced.ino):
                raise error(errno.ENOTEMPTY, new_name)
            self._flush_before_replacing(row)
        now = now_ns()
        namespace = self.namespace
        with namespace.change():
            if replaced is None and old_parent == new_parent:
                namespace.rename_entry(old_parent, old_name, new_name)
            elif replaced is None:
                namespace.remove_entry(old_parent, old_name)
                namespace.add_entry(new_parent, new_name, row.ino)
            else:
                namespace.remove_entry(old_parent, old_name)
                namespace.set_entry(new_parent, new_name, row.ino)
                self._drop_name(replaced, now)
            if row.is_dir:
                namespace.update(row.ino, parent=new_parent, ctime_ns=now)
                self._count_subdirectories(old_parent, -1)
                if replaced is None:
                    self._count_subdirectories(new_parent, 1)
            else:
                namespace.update(row.ino, ctime_ns=now)
            namespace.touch(old_parent, now)
            namespace.touch(new_parent, now)
        if replaced is not None:
            self._purge_if_unused(replaced, 0 if replaced.is_dir else replaced.nlink - 1)

    def _flush_before_replacing(self, row: Row) -> None:
        """Let no commit have the new name without the new data: programs replace files by rename without fsync."""
        content = self.contents.get(row.ino)
        if content is not None:
            self.flush_content(content)

    def _exchange(
        self, old_parent: Ino, old_name: bytes, row: Row, new_parent: Ino, new_name: bytes, other: Row | None
    ) -> None:
        if other is None:
            raise error(errno.ENOENT, new_name)
        if other.ino == row.ino:
            return
        self._check_region(row, self._row(new_parent), new_name)
        self._check_region(other, self._row(old_parent), old_name)
        self._check_no_loop(row, new_parent, new_name)
        self._check_no_loop(other, old_parent, old_name)
        self._flush_before_replacing(row)
        self._flush_before_replacing(other)
        now = now_ns()
        namespace = self.namespace
        with namespace.change():
            namespace.set_entry(old_parent, old_name, other.ino)
            namespace.set_entry(new_parent, new_name, row.ino)
            for moved, source, target in ((row, old_parent, new_parent), (other, new_parent, old_parent)):
                if moved.is_dir:
                    namespace.update(moved.ino, parent=target, ctime_ns=now)
                    if source != target:
                        self._count_subdirectories(source, -1)
                        self._count_subdirectories(target, 1)
                else:
                    namespace.update(moved.ino, ctime_ns=now)
            namespace.touch(old_parent, now)
            namespace.touch(new_parent, now)

    def _count_subdirectories(self, ino: Ino, change: int) -> None:
        self.namespace.update(ino, nlink=self._row(ino).nlink + change)

    # -- reading directories

    def readdir(self, ino: Ino, after: int = 0, limit: int = 1024) -> list[DirEntry]:
        """Return up to *limit* entries whose cookie is above *after*, without . and .."""
        with self.lock:
            entries = self.namespace.entries(ino, after, limit)
            if not entries and after == 0:
                self._directory(ino)
            return [DirEntry(entry.cookie, entry.name, self._attr(entry.row)) for entry in entries]

    def path_of(self, ino: Ino) -> bytes:
        """Return one path of an inode for messages; b"" if there is none."""
        with self.lock:
            return self.namespace.path_of(ino)

    # -- xattrs

    @staticmethod
    def check_xattr(name: bytes, value: bytes) -> None:
        if not name.startswith(_XATTR_NAMESPACES):
            raise error(errno.EOPNOTSUPP, name)
        if len(name) > NAME_MAX:
            raise error(errno.ERANGE, name)
        if len(value) > XATTR_SIZE_MAX:
            raise error(errno.E2BIG, name)

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return a value. OSError ENODATA if there is none."""
        with self.lock:
            value = self.namespace.xattr(ino, name)
            if value is None:
                self._row(ino)
                raise error(errno.ENODATA, name)
            return value

    def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names, sorted."""
        with self.lock:
            names = self.namespace.xattrs(ino)
            if not names:
                self._row(ino)
            return names

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value, with the flags of that system call. OSError EEXIST, ENODATA, E2BIG, ENOSPC, EOPNOTSUPP."""
        self.check_xattr(name, value)
        with self.lock:
            self.check_writable()
            self._row(ino)
            exists = self.namespace.xattr(ino, name) is not None
            if exists and flags & XATTR_CREATE:
                raise error(errno.EEXIST, name)
            if not exists and flags & XATTR_REPLACE:
                raise error(errno.ENODATA, name)
            self.check_growth()
            names = self.namespace.xattrs(ino)
            if not exists and sum(map(len, names)) + len(names) + len(name) + 1 > XATTR_LIST_MAX:
                raise error(errno.ENOSPC, name)
            with self.namespace.change():
                self.namespace.set_xattr(ino, name, value)
                self.namespace.update(ino, ctime_ns=now_ns())
        self._bound_memory()

    def removexattr(self, ino: Ino, name: bytes) -> None:
        """Remove a value. OSError ENODATA if there is none."""
        with self.lock:
            self.check_writable()
            self.getxattr(ino, name)
            with self.namespace.change():
                self.namespace.remove_xattr(ino, name)
                self.namespace.update(ino, ctime_ns=now_ns())

    # -- contents

    def open_file(self, ino: Ino, *, write: bool = False, preserve_times: bool = False) -> OpenFile:
        """Open the content of a regular file; it lives until the handle is closed, whatever happens to its names.

        Args:
            write: Changes are allowed.
            preserve_times: Changes do not touch mtime and ctime.
        """
        with self.lock:
            if write:
                self.check_writable()
            row = self._row(ino)
            if row.is_dir:
                raise error(errno.EISDIR)
            if not row.is_file:
                raise error(errno.EINVAL)
            return OpenFile(self, self.contents.open(row), writable=write, preserve_times=preserve_times)

    def flush_content(self, content: Content) -> None:
        """Seal what is dirty of *content* and store its root; for `OpenFile.flush`."""
        with self.lock:
            try:
                self.contents.flush(content)
            except ChunkError as exc:
                raise self.damaged(content.ino, exc) from None

    def close_content(self, content: Content) -> None:
        """Give a handle of *content* back; for `OpenFile.close`."""
        with self.lock:
            if content.ino in self._orphans and content.handles == 1 and content.ino not in self._held:
                content.handles = 0
                self._purge_orphan(content.ino)
                return
            try:
                self.contents.close(content)
            except ChunkError as exc:
                raise self.damaged(content.ino, exc) from None
        self._bound_memory()

    def _bound_memory(self) -> None:
        """Ask for a commit when very many changes wait: it must not run here, where the caller may have the lock."""
        if self.namespace.operations > (_MAX_OPERATIONS_IN_NEED if self.low_on_space else _MAX_OPERATIONS):
            self.commit_soon()

    def new_root_row(self, mode: int, uid: int, gid: int) -> Row:
        """Return the root directory's row for a new volume."""
        now = now_ns()
        return Row(
            ino=ROOT_INO, mode=stat.S_IFDIR | mode, uid=uid, gid=gid, rdev=0, nlink=2, atime_ns=now, mtime_ns=now,
            ctime_ns=now, btime_ns=now, protection=int(Protection.ENCRYPTED), size=0, depth=0, pointer=None, chunks=0,
            parent=ROOT_INO, target=None,
        )  # fmt: skip


__all__ = ["HOLE", "MAX_FILE_SIZE", "Attr", "DirEntry", "InodeVolume", "OpenFile", "StatFs"]
