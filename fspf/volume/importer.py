"""Encrypt a tree of the host into a volume, or make a volume equal to a tree.

Reading small files ahead is left to `fspf.volume.reader`; this module is the one thread that changes the volume.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from fspf.core.errors import UsageError
from fspf.core.types import ROOT_INO, Ino, Protection
from fspf.volume.entries import clamp_time
from fspf.volume.reader import (
    CHANGED,
    Item,
    SourceDirectory,
    TreeReader,
    read_xattrs,
    same_state,
)
from fspf.volume.source import SourceError, check_places, open_source, pieces, pread, regions_of
from fspf.volume.transfer import HostTree, Progress, Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fspf.volume.inodes import Attr
    from fspf.volume.reader import Batch
    from fspf.volume.volume import Volume

COMMIT_BYTES: Final = 256 << 20  # of content between two commits
COMMIT_ENTRIES: Final = 20_000
DEFAULT_THREADS: Final = 1  # beside the one that writes; a second costs 1.4 times the processor time and gains nothing
_CTIME_SLACK_NS: Final = 20_000_000  # the kernel stamps files with a clock that is up to one tick (10 ms) old
_FATAL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}  # more of the same would follow


def encrypt_tree(
    source: str | bytes | os.PathLike[str],
    volume: Volume,
    *,
    authenticated: Sequence[str | PurePath] = (),
    update: bool = False,
    checksum: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    commit_bytes: int = COMMIT_BYTES,
    commit_entries: int = COMMIT_ENTRIES,
) -> Summary:
    """Copy everything of *source* into the root of *volume*, and commit.

    Kept are content with its holes, hard links, symbolic links, devices and fifos, modes, owners, atime and mtime in
    nanoseconds, and extended attributes with ACLs. Sockets are left out with a warning. What cannot be read is in the
    summary's errors; all else goes on.

    Args:
        source: A directory.
        volume: Open for writing; empty unless *update*.
        authenticated: Paths below *source* whose content is authenticated but not encrypted.
        update: Make the volume equal to *source*: delete what is gone, rewrite what differs (in more than atime).
        checksum: With *update*, compare contents instead of size, mtime and ctime.
        threads: Readers ahead of the thread that writes.
        progress: Called often.
        commit_bytes: Bytes of content after which a commit is made on the way.
        commit_entries: Entries after which a commit is made on the way.

    Raises:
        UsageError: *source* is no directory, holds the volume, or the volume is not empty.
        OSError: The volume's storage is full or fails; all that was committed on the way stays.
        FspfError: As `Volume.commit` raises it.
    """
    top = Path(os.fsdecode(source))
    check_places(top, volume, update=update)
    with HostTree(top, SourceDirectory(None, b"")) as tree:
        importer = _Importer(tree, volume, update=update, checksum=checksum, progress=progress)
        importer.regions = regions_of(top, authenticated)
        importer.commit_bytes, importer.commit_entries = commit_bytes, commit_entries
        importer.run(max(1, threads or DEFAULT_THREADS))
    return importer.summary


class _Importer:
    """One run. Used by one thread; only the commits on the way have their own."""

    def __init__(
        self,
        tree: HostTree[SourceDirectory],
        volume: Volume,
        *,
        update: bool,
        checksum: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.summary = Summary()
        self.regions: set[bytes] = set()
        self.commit_bytes = COMMIT_BYTES
        self.commit_entries = COMMIT_ENTRIES
        self._tree = tree
        self._volume = volume
        self._update = update
        self._checksum = checksum
        self._progress = progress
        self._links: dict[tuple[int, int], Ino] = {}  # (st_dev, st_ino) of what has several names -> its inode here
        self._claimed: dict[Ino, tuple[int, int]] = {}  # inodes that were there before and are whose now
        self._committing: threading.Thread | None = None
        self._commit_failure: BaseException | None = None
        self._bytes_committed = 0
        self._entries_committed = 0

    # -- the run

    def run(self, threads: int) -> None:
        root = self._tree.root
        root.ino = ROOT_INO
        with self._tree.opened(root) as fd:
            root.status = os.fstat(fd)
            warnings: list[str] = []
            xattrs = read_xattrs(fd, warnings)
        self._set_root(root, xattrs)
        for warning in warnings:
            self.summary.warn(b"", warning)
        reader = TreeReader(self._tree, contents=not self._update, threads=threads)
        try:
            with reader.batches() as batches:
                for batch in batches:
                    self._take(batch)
                    self._commit_sometimes()
        finally:
            self._end_commit()
        if self._commit_failure is not None:
            raise self._commit_failure
        self._volume.commit()
        self._report(b"")

    def _set_root(self, root: SourceDirectory, xattrs: dict[bytes, bytes]) -> None:
        volume, status = self._volume, root.status
        assert status is not None  # set by the caller
        attr = volume.getattr(ROOT_INO)
        wanted = self._protection_of(b"", attr.protection if self._update else Protection.ENCRYPTED)
        if attr.protection != wanted:
            if volume.readdir(ROOT_INO, 0, 1):
                raise UsageError("the protection of the whole volume cannot change while something is in it")
            volume.set_protection(ROOT_INO, wanted)
        root.protection = wanted
        if self._update:
            root.existing = self._entries(ROOT_INO)
        volume.setattr(ROOT_INO, mode=status.st_mode, uid=status.st_uid, gid=status.st_gid)
        self._set_xattrs(ROOT_INO, xattrs)

    def _protection_of(self, path: bytes, inherited: int) -> Protection:
        return Protection.AUTHENTICATED if path in self.regions else Protection(inherited)

    def _entries(self, ino: Ino) -> dict[bytes, object]:
        found: dict[bytes, object] = {}
        after = 0
        while page := self._volume.readdir(ino, after, 1024):
            found.update((entry.name, entry.attr) for entry in page)
            after = page[-1].cookie
        return found

    def _take(self, batch: Batch) -> None:
        directory = batch.directory
        if directory.unread:  # its own entry could not be made
            return
        for item in batch.items:
            try:
                self._take_item(directory, item)
            except (OSError, SourceError) as exc:
                if isinstance(exc, OSError) and exc.errno in _FATAL:
                    raise
                self.summary.error(_join(directory.path, item.name), exc)
                if item.directory is not None:
                    item.directory.unread = True
        if batch.error is not None:
            self.summary.error(directory.path, batch.error)
            directory.existing = None  # not seen is not gone
        if batch.last:
            self._finish(directory)
            self._report(directory.path)

    def _finish(self, directory: SourceDirectory) -> None:
        """Delete what is gone, then set the times that all the changes in the directory have moved."""
        for name, attr in (directory.existing or {}).items():
            self._remove(directory, name, attr)  # type: ignore[arg-type]  # the reader does not know Attr
            self.summary.removed += 1
        directory.existing = None
        status = directory.status
        assert status is not None  # every directory that is read was looked at
        self._warn_of_time(directory.path, status)
        self._volume.setattr(
            Ino(directory.ino), atime_ns=clamp_time(status.st_atime_ns), mtime_ns=clamp_time(status.st_mtime_ns)
        )
        self.summary.directories += 1

    def _warn_of_time(self, path: bytes, status: os.stat_result) -> None:
        if clamp_time(status.st_mtime_ns) != status.st_mtime_ns:
            self.summary.warn(path, "its time is beyond what a volume keeps (1677 to 2262); the nearest is taken")

    def _report(self, path: bytes) -> None:
        if self._progress is not None:
            self._progress(Progress(self.summary.entries, self.summary.bytes, path))

    # -- commits on the way

    def _commit_sometimes(self) -> None:
        summary = self.summary
        if (
            summary.data_bytes - self._bytes_committed < self.commit_bytes
            and summary.entries + summary.removed - self._entries_committed < self.commit_entries
        ):
            return
        self._end_commit()
        if self._commit_failure is not None:
            raise self._commit_failure
        self._bytes_committed = summary.data_bytes
        self._entries_committed = summary.entries + summary.removed
        self._committing = threading.Thread(target=self._commit, name="fspf-import-commit")
        self._committing.start()

    def _commit(self) -> None:
        try:
            self._volume.commit()
        except BaseException as exc:  # noqa: BLE001  # raised again by the thread that imports
            self._commit_failure = exc

    def _end_commit(self) -> None:
        if self._committing is not None:
            self._committing.join()
            self._committing = None

    # -- one entry

    def _take_item(self, directory: SourceDirectory, item: Item) -> None:
        path = _join(directory.path, item.name)
        existing: Attr | None = None
        if directory.existing is not None:
            existing = directory.existing.pop(item.name, None)  # type: ignore[assignment]  # an Attr
        for warning in item.warnings:
            self.summary.warn(path, warning)
        status = item.status
        if status is None:
            self.summary.error(path, item.error or "it cannot be read")
            return
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            self.summary.warn(path, "a socket; left out")
            if existing is not None:
                self._remove(directory, item.name, existing)
                self.summary.removed += 1
            return
        if item.directory is None:
            self._warn_of_time(path, status)
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and kind != stat.S_IFDIR:
            known = self._links.get(key)
            if known is not None and self._link(directory, item, known, existing):
                return
        if existing is not None:
            if self._can_stay(directory, item, existing, key):
                self._refresh(directory, item, existing, path)
                self._remember(key, existing.ino, status)
                return
            self._remove(directory, item.name, existing)
        ino = self._create(directory, item, path)
        if ino is not None:
            self._remember(key, ino, status)

    def _remember(self, key: tuple[int, int], ino: Ino, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            self._links.setdefault(key, ino)

    def _link(self, directory: SourceDirectory, item: Item, known: Ino, existing: Attr | None) -> bool:
        """Make a further name of *known*; False if its region forbids that, so that a copy is needed."""
        if existing is not None:
            if existing.ino == known:
                self.summary.hard_links += 1
                return True
            self._remove(directory, item.name, existing)
        try:
            self._volume.link(known, Ino(directory.ino), item.name)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            self.summary.warn(
                _join(directory.path, item.name), "a hard link between differently protected places; copied"
            )
            return False
        self.summary.hard_links += 1
        return True

    def _create(self, directory: SourceDirectory, item: Item, path: bytes) -> Ino | None:
        status = item.status
        assert status is not None  # checked by the caller
        if stat.S_ISREG(status.st_mode) and item.content is None:
            return self._stream_new(directory, item, path)
        protection = self._protection_of(path, directory.protection)
        ino = self._insert(directory, item.name, status, item.xattrs, item.target, protection)
        if item.directory is not None:
            item.directory.ino = ino
            item.directory.protection = protection
        elif item.content is not None:
            if item.content:
                with self._volume.open_file(ino, write=True, preserve_times=True) as file:
                    file.write(0, item.content)
            self._count_file(path, len(item.content), len(item.content), item.error)
        elif item.target is not None:
            self.summary.symlinks += 1
        else:
            self.summary.special += 1
        return ino

    def _insert(
        self,
        directory: SourceDirectory,
        name: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        target: bytes | None,
        protection: Protection,
    ) -> Ino:
        return self._volume.create_inode(
            Ino(directory.ino),
            name,
            status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            rdev=status.st_rdev,
            target=target,
            atime_ns=clamp_time(status.st_atime_ns),
            mtime_ns=clamp_time(status.st_mtime_ns),
            xattrs=xattrs,
            protection=protection,
        )

    def _count_file(self, path: bytes, size: int, copied: int, error: str | None) -> None:
        self.summary.files += 1
        self.summary.bytes += size
        self.summary.data_bytes += copied
        if error is not None:
            self.summary.error(path, error)

    # -- streamed files

    def _stream_new(self, directory: SourceDirectory, item: Item, path: bytes) -> Ino | None:
        """Create a file whose content is read here: large, sparse, of several names, or any in an update."""
        source, status = open_source(self._tree, directory, item.name)
        try:
            warnings: list[str] = []
            xattrs = read_xattrs(source, warnings)
            for warning in warnings:
                self.summary.warn(path, warning)
            protection = self._protection_of(path, directory.protection)
            ino = self._insert(directory, item.name, status, xattrs, None, protection)
            try:
                self._stream(source, ino, status, path)
            except SourceError:
                self._volume.unlink(Ino(directory.ino), item.name)  # half a file is none
                raise
            return ino
        finally:
            os.close(source)

    def _stream(self, source: int, ino: Ino, status: os.stat_result, path: bytes) -> None:
        """Copy the content of *source*, whose attributes are in the volume already; once more if it changed meanwhile."""
        error = None
        copied = 0
        with self._volume.open_file(ino, write=True, preserve_times=True) as file:
            for attempt in (1, 2):
                copied = 0
                file.truncate(0)
                try:
                    for offset, data in pieces(source):
                        copied += file.write(offset, data)
                        self._report(path)
                except SourceError:
                    file.truncate(0)  # also for other names of it
                    raise
                after = os.fstat(source)
                file.truncate(max(after.st_size, file.size))
                if same_state(status, after):
                    break
                status = after
                if attempt == 2:
                    error = CHANGED
        if error is not None or self._differs(ino, status):
            self._set_attributes(ino, status)
        self._count_file(path, status.st_size, copied, error)

    # -- update

    def _can_stay(self, directory: SourceDirectory, item: Item, existing: Attr, key: tuple[int, int]) -> bool:
        """Tell whether the inode under this name can become what the source has there."""
        status = item.status
        assert status is not None  # checked by the caller
        path = _join(directory.path, item.name)
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(existing.mode):
            return False
        if existing.protection != self._protection_of(path, directory.protection) and (
            stat.S_ISREG(existing.mode) or stat.S_ISDIR(existing.mode)
        ):
            return False
        if existing.rdev != status.st_rdev and (stat.S_ISBLK(existing.mode) or stat.S_ISCHR(existing.mode)):
            return False
        if stat.S_ISLNK(existing.mode) and self._volume.readlink(existing.ino) != item.target:
            return False
        if existing.nlink > 1 and not stat.S_ISDIR(existing.mode):
            return self._claimed.setdefault(existing.ino, key) == key
        return True

    def _refresh(self, directory: SourceDirectory, item: Item, existing: Attr, path: bytes) -> None:
        """Make an inode that stays equal to the source's."""
        status = item.status
        assert status is not None  # checked by the caller
        ino = existing.ino
        changed = False
        if stat.S_ISREG(status.st_mode):
            source, status = open_source(self._tree, directory, item.name)
            try:
                if self._content_differs(source, status, existing):
                    self._set_attributes(ino, status)
                    try:
                        self._stream(source, ino, status, path)
                    except SourceError:
                        self._volume.unlink(Ino(directory.ino), item.name)
                        raise
                    changed = True
                else:
                    self._count_file(path, status.st_size, 0, None)
            finally:
                os.close(source)
        elif item.directory is not None:
            item.directory.ino = ino
            item.directory.protection = existing.protection
            item.directory.existing = self._entries(ino)
        elif stat.S_ISLNK(status.st_mode):
            self.summary.symlinks += 1
        else:
            self.summary.special += 1
        changed |= self._set_xattrs(ino, item.xattrs)
        if self._differs(ino, status):
            self._set_attributes(ino, status)
            changed = True
        if changed:
            self.summary.updated += 1
        else:
            self.summary.unchanged += 1

    def _differs(self, ino: Ino, status: os.stat_result) -> bool:
        attr = self._volume.getattr(ino)
        here = (attr.mode, attr.uid, attr.gid)
        there = (status.st_mode, status.st_uid, status.st_gid)
        if stat.S_ISDIR(status.st_mode):  # its times are set when all is in it
            return here != there
        return (*here, attr.mtime_ns) != (*there, clamp_time(status.st_mtime_ns))  # reading alone moves atime

    def _set_attributes(self, ino: Ino, status: os.stat_result) -> None:
        self._volume.setattr(
            ino,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            atime_ns=clamp_time(status.st_atime_ns),
            mtime_ns=clamp_time(status.st_mtime_ns),
        )

    def _set_xattrs(self, ino: Ino, wanted: dict[bytes, bytes]) -> bool:
        volume = self._volume
        changed = False
        for name in volume.listxattr(ino):
            if name not in wanted:
                volume.removexattr(ino, name)
                changed = True
            elif volume.getxattr(ino, name) != wanted[name]:
                volume.setxattr(ino, name, wanted[name])
                changed = True
        for name in wanted.keys() - set(volume.listxattr(ino)):
            volume.setxattr(ino, name, wanted[name])
            changed = True
        return changed

    def _content_differs(self, source: int, status: os.stat_result, existing: Attr) -> bool:
        """Decide by size, mtime and whether the source's ctime is older than ours; or by the bytes."""
        if status.st_size != existing.size:
            return True
        if self._checksum:
            return self._bytes_differ(source, existing)
        return (
            clamp_time(status.st_mtime_ns) != existing.mtime_ns
            or status.st_ctime_ns > existing.ctime_ns - _CTIME_SLACK_NS
        )

    def _bytes_differ(self, source: int, existing: Attr) -> bool:
        offset = 0
        with self._volume.open_file(existing.ino) as file:
            while data := pread(source, offset):
                if file.read(offset, len(data)) != data:
                    return True
                offset += len(data)
        return False

    def _remove(self, directory: SourceDirectory, name: bytes, attr: Attr) -> None:
        parent = Ino(directory.ino)
        if not stat.S_ISDIR(attr.mode):
            self._volume.unlink(parent, name)
            return

        def fail(_: bytes, exc: OSError) -> None:
            raise exc

        self._volume.remove_tree(parent, name, attr.ino, _join(directory.path, name), fail)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
