"""FUSE requests of one mounted volume: translate, delegate to the `Volume`, translate back.

Mounting, signals and the order of shutdown are left to `session`; status and commands for the mount to `control`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from fspf.core.errors import FspfError
from fspf.core.types import ROOT_INO, Ino
from fspf.mount import acl
from fspf.mount.attributes import (
    PRIVILEGES,
    SHORT_CACHE_S,
    absent_entry,
    entry_attributes,
    in_group,
    statvfs_data,
    without_privileges,
)
from fspf.mount.boundary import Boundary, guarded
from fspf.mount.protocol import CONTROL, STATUS
from fspf.volume.entries import clamp_time, now_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyfuse3 import ReaddirToken, RequestContext, SetattrFields, StatvfsData

    from fspf.mount.control import Control
    from fspf.volume.inodes import Attr, OpenFile
    from fspf.volume.volume import Volume

log = logging.getLogger(__name__)

CAPABILITY: Final = b"security.capability"
_TRUSTED: Final = b"trusted."  # attributes that only root is told of
_PREFIXES: Final = {b"user.", _TRUSTED, b"security."}
_SYSTEM: Final = b"system."  # those that mean something to the kernel
_MAX_INO: Final = 2**63 - 1
_RELATIME_NS: Final = 24 * 3600 * 10**9  # an access time older than this is renewed in any case
_FIRST_BATCH: Final = 128  # directory entries read for the first request; then as many as the last one took
_OWN_COOKIES: Final = 2  # offsets 1 and 2 are . and ..; the volume's cookies follow
_MAX_COMMIT_THREADS: Final = 32  # waiting for commits; they share them
_REMEMBERED_XATTRS: Final = {CAPABILITY: 1, acl.ACCESS: 2, acl.DEFAULT: 4}  # bits in `_absent`


class Caller(Protocol):
    """Who asks; pyfuse3's RequestContext is one."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class _OpenedFile:
    """A file handle of the kernel.

    Attributes:
        unprivileged: Whoever opened it for writing is not root: what is written through it drops set-id bits.
        atime_due: The first read still has to renew the access time.
    """

    __slots__ = ("atime_due", "file", "ino", "unprivileged")

    def __init__(self, file: OpenFile, ino: Ino, *, unprivileged: bool, atime_due: bool) -> None:
        self.file = file
        self.ino = ino
        self.unprivileged = unprivileged
        self.atime_due = atime_due


class _OpenedDirectory:
    """A directory handle of the kernel."""

    __slots__ = ("atime_due", "batch", "ino")

    def __init__(self, ino: Ino, *, atime_due: bool) -> None:
        self.ino = ino
        self.batch = _FIRST_BATCH
        self.atime_due = atime_due


class Operations(pyfuse3.Operations):
    """The control plane of one mounted volume.

    Handlers run on one trio thread and call the blocking `Volume` directly: a thread hop costs more than the call.
    State changes only between two ``await``s, so it needs no lock. Only commits leave the thread
    (docs/CONCURRENCY.md).

    Args:
        volume: Open; closed by somebody else, after `forget_all`.
        control: Answers the virtual attributes of the root directory.
        atime: Keep access times as relatime does.
        diratime: Those of directories, too.
    """

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True
    native = False  # the data plane answers most requests: what is remembered here of attributes is not complete

    def __init__(
        self,
        volume: Volume,
        control: Control,
        *,
        atime: bool = True,
        diratime: bool = True,
        boundary: Boundary | None = None,
    ) -> None:
        super().__init__()
        self.boundary = boundary or Boundary()
        self.boundary.on_error = volume.note_error
        self._volume = volume
        self._control = control
        self._atime = atime and not volume.read_only
        self._diratime = self._atime and diratime
        self._known: dict[int, int] = {}  # inode → how often the kernel looked it up
        self._files: dict[int, _OpenedFile] = {}
        self._directories: dict[int, _OpenedDirectory] = {}
        self._last_handle = 0
        self._set_id: set[int] = set()  # known inodes with a set-user-id or set-group-id bit
        self._unprivileged_writers: dict[int, int] = {}  # inode → open handles of that kind
        self._absent: dict[int, int] = {}  # known inode → which of _REMEMBERED_XATTRS it does not have
        self._nothing = absent_entry()
        self._commit_threads = trio.CapacityLimiter(_MAX_COMMIT_THREADS)
        self._entry(volume.getattr(ROOT_INO))

    # -- what the kernel knows

    def _entry(self, attr: Attr) -> EntryAttributes:
        """Return attributes for the kernel, and remember whether the set-id rules concern the inode."""
        if attr.mode & PRIVILEGES:
            self._set_id.add(attr.ino)
        elif attr.ino in self._set_id:
            self._set_id.discard(attr.ino)
        entry = entry_attributes(attr)
        if not self.native and stat.S_ISDIR(attr.mode):
            entry.attr_timeout = SHORT_CACHE_S
        return entry

    def _looked_up(self, attr: Attr) -> EntryAttributes:
        """Return attributes in a reply that counts as a lookup."""
        self._hold(attr.ino)
        return self._entry(attr)

    def _hold(self, ino: Ino) -> None:
        count = self._known.get(ino, 0)
        if count == 0:
            self._volume.hold(ino)
        self._known[ino] = count + 1

    def _forget(self, ino: int, count: int) -> None:
        left = self._known.get(ino, 0) - count
        if left > 0:
            self._known[ino] = left
            return
        if self._known.pop(ino, None) is not None:
            self._absent.pop(ino, None)
            if ino != ROOT_INO:
                self._set_id.discard(ino)
            self._volume.drop(Ino(ino))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            try:
                self._forget(ino, count)
            except Exception as exc:  # noqa: BLE001 - nobody waits for an answer
                self.boundary.errno_of("forget", exc)

    def forget_all(self) -> None:
        """Give back everything that the kernel held when the mount ended."""
        for number in list(self._files):
            self._settle("release", self._release, number)
        for number in list(self._directories):
            self._settle("releasedir", self._release_directory, number)
        for ino, count in list(self._known.items()):
            self._settle("forget", self._forget, ino, count)

    def _settle(self, handler: str, action: Any, *args: Any) -> None:
        try:
            action(*args)
        except Exception as exc:  # noqa: BLE001 - the mount has ended: the others are to be given back too
            self.boundary.errno_of(handler, exc)

    # -- names and attributes

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        volume = self._volume
        parent = Ino(parent_inode)
        if name in {b".", b".."} and parent_inode > _MAX_INO:  # a file handle that somebody made up
            raise FUSEError(errno.ESTALE)
        if name == b".":
            attr = volume.getattr(parent)
            if attr.nlink == 0:  # it is about to be forgotten: the kernel asks of what it does not know itself
                raise FUSEError(errno.ESTALE)
            return self._looked_up(attr)
        if name == b"..":
            return self._looked_up(volume.getattr(volume.parent(parent)))
        try:
            attr = volume.lookup(parent, name)
        except FileNotFoundError:
            return self._nothing
        return self._looked_up(attr)

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._volume.getattr(Ino(inode)))

    @guarded
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        volume, ino = self._volume, Ino(inode)
        changes: dict[str, int] = {}
        if fields.update_mode:
            changes["mode"] = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            changes["uid"] = attr.st_uid
        if fields.update_gid:
            changes["gid"] = attr.st_gid
        if fields.update_size:
            changes["size"] = attr.st_size
        if fields.update_atime:
            changes["atime_ns"] = clamp_time(attr.st_atime_ns)
        if fields.update_mtime:
            changes["mtime_ns"] = clamp_time(attr.st_mtime_ns)
        if fields.update_ctime:
            changes["ctime_ns"] = clamp_time(attr.st_ctime_ns)
        with volume.lock:  # one step for the commit
            if "mode" in changes:
                if (access := self._xattr(ino, acl.ACCESS)) is not None:
                    volume.setxattr(ino, acl.ACCESS, acl.pack(acl.with_mode(acl.parse(access), changes["mode"])))
            elif inode in self._set_id and ({"uid", "gid"} & changes.keys() or ("size" in changes and ctx.uid != 0)):
                before = volume.getattr(ino)
                if not stat.S_ISDIR(before.mode):
                    changes["mode"] = stat.S_IMODE(
                        without_privileges(
                            before.mode, keeps_group=ctx.uid == 0 or in_group(ctx.pid, ctx.gid, before.gid)
                        )
                    )
            return self._entry(volume.setattr(ino, **changes))

    @guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        target = self._volume.readlink(Ino(inode))
        if self._atime:
            self._renew_atime(Ino(inode))
        return target

    # -- making names

    def make(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        ctx: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Attr:
        """Make an inode with the owner, mode and access list that POSIX gives it."""
        volume, parent = self._volume, Ino(parent_inode)
        gid = ctx.gid
        xattrs: dict[bytes, bytes] = {}
        if self.native or parent_inode in self._set_id:
            directory = volume.getattr(parent)
            if directory.mode & stat.S_ISGID:
                gid = directory.gid
                if stat.S_ISDIR(mode):
                    mode |= stat.S_ISGID
        if target is None:
            default = self._xattr(parent, acl.DEFAULT)
            if default is None:
                mode &= ~ctx.umask  # nothing to do where the kernel has done it
            else:
                xattrs, mode = _inherited(default, mode)
        ino = volume.create_inode(
            parent, name, mode, uid=ctx.uid, gid=gid, rdev=rdev, target=target, xattrs=xattrs or None
        )
        attr = volume.getattr(ino)
        if not xattrs and not self.native:  # the data plane keeps its forgetting to itself
            self._absent[ino] = sum(_REMEMBERED_XATTRS.values())
        return attr

    def inherit(self, parent_inode: int, inode: int, mode: int) -> None:
        """Do for a file that the data plane made without a name what `make` does for others."""
        volume, ino = self._volume, Ino(inode)
        default = self._xattr(Ino(parent_inode), acl.DEFAULT)
        if default is None:
            return
        xattrs, mode = _inherited(default, stat.S_IFREG | mode)
        with volume.lock:  # one step for the commit
            volume.setattr(ino, mode=stat.S_IMODE(mode))
            for name, value in xattrs.items():
                volume.setxattr(ino, name, value)

    @guarded
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            rdev = 0
        return self._looked_up(self.make(parent_inode, name, mode, ctx, rdev=rdev))

    @guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._looked_up(self.make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx))

    @guarded
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._looked_up(self.make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target))

    @guarded
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._looked_up(self._volume.link(Ino(inode), Ino(new_parent_inode), new_name))

    # -- removing and renaming

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._volume.unlink(Ino(parent_inode), name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._volume.rmdir(Ino(parent_inode), name)

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._volume.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)

    # -- files

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    def _opened(self, ino: Ino, flags: int, ctx: RequestContext) -> FileInfo:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        # Set-id bits fall with the first write that reaches us: it must not wait in the page cache.
        direct = writes and ino in self._set_id
        # In the page cache the kernel stamps what is written, when it is written, and hands the times over by setattr.
        file = self._volume.open_file(ino, write=writes, preserve_times=not direct)
        unprivileged = writes and ctx.uid != 0
        try:
            if flags & os.O_TRUNC and writes:
                file.truncate(0)
                if ctx.uid != 0:
                    self._drop_set_id(ino)
        except BaseException:
            file.close()
            raise
        number = self._new_handle()
        self._files[number] = _OpenedFile(
            file, ino, unprivileged=unprivileged, atime_due=self._atime and not flags & os.O_NOATIME
        )
        if unprivileged:
            self._unprivileged_writers[ino] = self._unprivileged_writers.get(ino, 0) + 1
        return FileInfo(fh=number, keep_cache=True, direct_io=direct)

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return self._opened(Ino(inode), flags, ctx)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        attr = self.make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        entry = self._looked_up(attr)
        try:
            return self._opened(attr.ino, flags & ~os.O_TRUNC, ctx), entry
        except BaseException:
            self._forget(attr.ino, 1)  # no reply, no lookup
            raise

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        opened = self._files[fh]
        data = opened.file.read(off, size)
        if opened.atime_due:
            opened.atime_due = False
            self._renew_atime(opened.ino)
        return data

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        opened = self._files[fh]
        written = opened.file.write(off, buf)
        if opened.ino in self._set_id and (opened.unprivileged or opened.ino in self._unprivileged_writers):
            self._drop_set_id(opened.ino)
        return written

    @guarded
    async def flush(self, fh: int) -> None:
        self._files[fh].file.flush()

    @guarded
    async def release(self, fh: int) -> None:
        self._release(fh)

    def _release(self, fh: int) -> None:
        opened = self._files.pop(fh)
        if opened.unprivileged:
            left = self._unprivileged_writers.pop(opened.ino) - 1
            if left:
                self._unprivileged_writers[opened.ino] = left
        opened.file.close()

    def _drop_set_id(self, ino: Ino) -> None:
        """Take set-user-id and set-group-id from a file that somebody without privileges has changed."""
        if ino not in self._set_id:
            return
        attr = self._volume.getattr(ino)
        mode = without_privileges(attr.mode, keeps_group=True)
        if mode != attr.mode and not stat.S_ISDIR(attr.mode):
            self._entry(self._volume.setattr(ino, mode=stat.S_IMODE(mode), ctime_ns=attr.ctime_ns))

    def _renew_atime(self, ino: Ino) -> None:
        """Set the access time, if it is older than the last change or than a day."""
        volume = self._volume
        if volume.failed is not None:
            return
        with suppress(OSError, FspfError):  # a read that worked is not to fail for it
            attr = volume.getattr(ino)
            now = now_ns()
            if attr.atime_ns <= max(attr.mtime_ns, attr.ctime_ns) or now - attr.atime_ns > _RELATIME_NS:
                volume.setattr(ino, atime_ns=now, ctime_ns=attr.ctime_ns)

    # -- committing: the only handlers that leave the thread

    async def _commit(self, ino: Ino | None) -> None:
        """Wait for a commit, as the volume's freshness mode promises it; other requests go on meanwhile."""
        await trio.to_thread.run_sync(self._volume.fsync, ino, limiter=self._commit_threads)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001  # pyfuse3's signature
        if not self._volume.read_only:
            await self._commit(self._files[fh].ino)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001  # pyfuse3's signature
        if not self._volume.read_only:
            await self._commit(None)

    # -- directories

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        ino = Ino(inode)
        if not stat.S_ISDIR(self._volume.getattr(ino).mode):
            raise FUSEError(errno.ENOTDIR)
        number = self._new_handle()
        self._volume.hold(ino)
        self._directories[number] = _OpenedDirectory(ino, atime_due=self._diratime)
        return number

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        volume, opened = self._volume, self._directories[fh]
        if start_id < _OWN_COOKIES and not self._reply_own(opened.ino, start_id, token):
            return
        after = max(start_id - _OWN_COOKIES, 0)
        replied = 0
        while True:
            limit = opened.batch
            try:
                entries = volume.readdir(opened.ino, after, limit)
            except (OSError, FspfError):
                if replied or start_id < _OWN_COOKIES:
                    return  # what is in the reply counts; the next request gets the error
                raise
            for entry in entries:
                if not pyfuse3.readdir_reply(token, entry.name, self._entry(entry.attr), entry.cookie + _OWN_COOKIES):
                    opened.batch = max(replied + 1, 16)
                    return
                self._hold(entry.attr.ino)
                after = entry.cookie
                replied += 1
            if len(entries) < limit:
                break
        if opened.atime_due:
            opened.atime_due = False
            self._renew_atime(opened.ino)

    def _reply_own(self, ino: Ino, start_id: int, token: ReaddirToken) -> bool:
        """Reply . and ..; they are no lookups."""
        volume = self._volume
        for offset, name in ((1, b"."), (2, b"..")):
            if start_id < offset:
                attr = volume.getattr(ino if offset == 1 else volume.parent(ino))
                if not pyfuse3.readdir_reply(token, name, self._entry(attr), offset):
                    return False
        return True

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._release_directory(fh)

    def _release_directory(self, fh: int) -> None:
        self._volume.drop(self._directories.pop(fh).ino)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statvfs_data(self._volume.statfs())

    # -- extended attributes

    def _xattr(self, ino: Ino, name: bytes) -> bytes | None:
        """Return one of _REMEMBERED_XATTRS; None, without asking the volume, where we know that there is none."""
        bit = _REMEMBERED_XATTRS[name]
        known_absent = self._absent.get(ino, 0)
        if known_absent & bit or (name == CAPABILITY and not self._volume.namespace.capabilities):
            return None
        try:
            return self._volume.getxattr(ino, name)
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
        if ino in self._known or ino == ROOT_INO:
            self._absent[ino] = known_absent | bit
        return None

    def _xattr_appears(self, ino: Ino, name: bytes) -> None:
        if name in _REMEMBERED_XATTRS and ino in self._absent:
            self._absent[ino] &= ~_REMEMBERED_XATTRS[name]

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        ino = Ino(inode)
        if name in _REMEMBERED_XATTRS:  # the kernel asks for the capability at every write(2)
            value = self._xattr(ino, name)
            if value is None:
                raise FUSEError(errno.ENODATA)
            return value
        if inode == ROOT_INO and name == STATUS:
            return self._control.status(ctx.uid)
        return self._volume.getxattr(ino, name)

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = self._volume.listxattr(Ino(inode))
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(_TRUSTED)]

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        ino = Ino(inode)
        if inode == ROOT_INO and name in {STATUS, CONTROL}:
            if name == STATUS:
                raise FUSEError(errno.EPERM)
            await self._control.command(ctx.uid, ctx.pid, value)
            return
        if name in {acl.ACCESS, acl.DEFAULT}:
            self._set_acl(ino, name, value, ctx)
            return
        if name.startswith(_SYSTEM):
            raise FUSEError(errno.EOPNOTSUPP)
        if name in _PREFIXES:
            raise FUSEError(errno.EINVAL)
        try:
            self._volume.setxattr(ino, name, value)
        except OSError as exc:
            if exc.errno == errno.ENOSPC and exc.filename is not None:
                raise FUSEError(errno.ENOSPC) from exc  # no room in the list of this inode: nothing for the log
            raise
        self._xattr_appears(ino, name)

    def _set_acl(self, ino: Ino, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Store an access list and let the mode follow it."""
        volume = self._volume
        entries = acl.parse(value)
        with volume.lock:  # one step for the commit
            if name == acl.ACCESS:
                attr = volume.getattr(ino)
                mode = acl.mode_of(entries, attr.mode)
                if mode & stat.S_ISGID and ctx.uid != 0 and not in_group(ctx.pid, ctx.gid, attr.gid):
                    mode &= ~stat.S_ISGID
                self._entry(volume.setattr(ino, mode=stat.S_IMODE(mode)))
                if acl.is_minimal(entries):
                    if self._xattr(ino, name) is not None:
                        volume.removexattr(ino, name)
                    return
            volume.setxattr(ino, name, acl.pack(entries))
            self._xattr_appears(ino, name)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        ino = Ino(inode)
        if name in {acl.ACCESS, acl.DEFAULT} and self._xattr(ino, name) is None:
            return  # other file systems do not mind, and the kernel removes a list so when it is set to an empty one
        self._volume.removexattr(ino, name)


def _inherited(default: bytes, mode: int) -> tuple[dict[bytes, bytes], int]:
    """Return lists and mode of something new in a directory with this default list."""
    access, mode = acl.inherit(acl.parse(default), mode)
    xattrs = {} if acl.is_minimal(access) else {acl.ACCESS: acl.pack(access)}
    if stat.S_ISDIR(mode):
        xattrs[acl.DEFAULT] = default
    return xattrs, mode
