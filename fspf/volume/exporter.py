"""Decrypt a volume, or a part of it, to the host.

A file appears under its name only after all of it was verified, written and synced: each is written to a temporary name in its
directory; when a batch of them is complete one syncfs(2) makes the batch durable, and only then are they renamed. So after a
crash of the machine at any instant a name stands for the whole file or is not there. (fsync of each file gives the same, at
a flush of the disk per file.) What is left of an interrupted run are names like `.fspf-0123456789abcdef.part`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fspf.core.errors import IntegrityError, UsageError
from fspf.volume.fileio import data_ranges
from fspf.volume.paths import Last, encode, resolve
from fspf.volume.transfer import HostDirectory, HostTree, Progress, Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.types import Ino
    from fspf.volume.contents import OpenFile
    from fspf.volume.inodes import Attr
    from fspf.volume.volume import Volume

DEFAULT_THREADS: Final = 2
_PIECE: Final = 1 << 20  # bytes copied at once
_UNIT_FILES: Final = 64  # files that a thread is given at once
_UNIT_BYTES: Final = 8 << 20
_BATCH_FILES: Final = 8192  # files that one syncfs makes durable
_BATCH_BYTES: Final = 512 << 20
_FATAL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}  # of the host: more of the same would follow
_REFUSED: Final = {errno.EPERM, errno.EACCES, errno.EINVAL}  # an owner that the host does not let us give
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _UnreadableError(Exception):
    """The volume's storage gave an I/O error; the host that is written to is well."""


@dataclass(slots=True, eq=False)
class _Output:
    """One name to be made that is no directory."""

    directory: HostDirectory
    name: bytes
    attr: Attr
    temporary: bytes | None = None  # made and complete if there is no error
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def path(self) -> bytes:
        return _join(self.directory.path, self.name)


@dataclass(slots=True, eq=False)
class _Link:
    """A further name of an output."""

    directory: HostDirectory
    name: bytes
    first: _Output


@dataclass(slots=True, eq=False)
class _Finish:
    """A directory in which all is made: it gets its attributes."""

    directory: HostDirectory
    attr: Attr
    xattrs: dict[bytes, bytes]


def decrypt_tree(
    volume: Volume,
    dest: str | bytes | os.PathLike[str],
    *,
    path: str | bytes = "/",
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Write what is below *path* to *dest*.

    A damaged file is left out and is in the summary; all else is there. What the host refuses (owners, attributes) is in
    the summary's warnings, devices that it refuses in the errors.

    Args:
        volume: Where from.
        dest: A name that does not exist, or an empty directory. For a file, its new name.
        path: A directory or file of the volume.
        threads: Writers.
        progress: Called often.

    Raises:
        UsageError: There is something at *dest*.
        OSError: The host cannot store it; temporary files are removed.
    """
    place = os.fsencode(dest)
    attr = resolve(volume, encode(path), Last.FOLLOW).attr
    assert attr is not None  # FOLLOW finds or raises
    if not stat.S_ISDIR(attr.mode):
        head, name = os.path.split(place)
        if not name or os.path.lexists(place):
            raise UsageError(f"{os.fsdecode(place)!r} exists; a new name is expected")
        with HostTree(head or b".", HostDirectory(None, b"")) as tree:
            return _Exporter(tree, volume, progress, threads or 1).run_file(name, attr)
    if not os.path.lexists(place):
        os.mkdir(place, 0o700)
    elif not os.path.isdir(place) or os.listdir(place):
        raise UsageError(f"{os.fsdecode(place)!r} exists; a new name or an empty directory is expected")
    with HostTree(place, HostDirectory(None, b"")) as tree:
        return _Exporter(tree, volume, progress, threads or DEFAULT_THREADS).run_tree(attr)


class _Exporter:
    """One run. The thread that calls `run_tree` walks the volume and gives names; others write contents."""

    def __init__(
        self,
        tree: HostTree[HostDirectory],
        volume: Volume,
        progress: Callable[[Progress], None] | None,
        threads: int,
    ) -> None:
        self.summary = Summary()
        self._tree = tree
        self._volume = volume
        self._progress = progress
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "fspf-export") if threads > 1 else None
        self._running: deque[Future[None]] = deque()
        self._unit: list[_Output] = []
        self._unit_bytes = 0
        self._pending: list[_Output | _Link | _Finish] = []  # to be done, in this order, after the next sync
        self._pending_bytes = 0
        self._links: dict[Ino, _Output] = {}
        self._buffers = threading.local()
        self._entries = 0
        self._bytes = 0

    def run_tree(self, top: Attr) -> Summary:
        try:
            self._walk(top)
            self._settle()
            _syncfs(self._tree)  # the renames
        except BaseException:
            self._discard_all()
            raise
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
        return self.summary

    def run_file(self, name: bytes, attr: Attr) -> Summary:
        try:
            self._add(_Output(self._tree.root, name, attr))
            self._settle()
            _syncfs(self._tree)
        except BaseException:
            self._discard_all()
            raise
        return self.summary

    # -- walking

    def _walk(self, top: Attr) -> None:
        stack: list[tuple[HostDirectory, Attr, bool]] = [(self._tree.root, top, False)]
        while stack:
            directory, attr, done = stack.pop()
            if done:
                self._pending.append(_Finish(directory, attr, self._xattrs(attr.ino, directory.path)))
                continue
            stack.append((directory, attr, True))
            after = 0
            try:
                while page := self._volume.readdir(attr.ino, after, 512):
                    after = page[-1].cookie
                    for entry in page:
                        if not stat.S_ISDIR(entry.attr.mode):
                            self._add(_Output(directory, entry.name, entry.attr))
                        elif self._make_directory(directory, entry.name):
                            stack.append((HostDirectory(directory, entry.name), entry.attr, False))
            except IntegrityError as exc:
                self.summary.damage(directory.path, exc)
            self._report(directory.path)

    def _make_directory(self, parent: HostDirectory, name: bytes) -> bool:
        try:
            with self._tree.opened(parent) as fd:
                os.mkdir(_harmless(name), 0o700, dir_fd=fd)
        except OSError as exc:
            if exc.errno in _FATAL:
                raise
            self.summary.error(_join(parent.path, name), exc)
            return False
        return True

    def _xattrs(self, ino: Ino, path: bytes) -> dict[bytes, bytes]:
        try:
            return {name: self._volume.getxattr(ino, name) for name in self._volume.listxattr(ino)}
        except IntegrityError as exc:
            self.summary.damage(path, exc)
            return {}

    def _add(self, output: _Output) -> None:
        if output.attr.nlink > 1:
            first = self._links.setdefault(output.attr.ino, output)
            if first is not output:
                self._pending.append(_Link(output.directory, output.name, first))
                return
        if self._unit and self._unit[0].directory is not output.directory:
            self._submit()
        self._pending.append(output)
        self._unit.append(output)
        self._unit_bytes += output.attr.size
        if len(self._unit) >= _UNIT_FILES or self._unit_bytes >= _UNIT_BYTES:
            self._submit()

    def _submit(self) -> None:
        """Give the collected unit to a thread; settle when a batch is full."""
        unit, self._unit = self._unit, []
        self._pending_bytes += self._unit_bytes
        self._unit_bytes = 0
        if self._pool is None:
            self._write_unit(unit)
        else:
            self._running.append(self._pool.submit(self._write_unit, unit))
            while len(self._running) > 4 * self._threads:
                self._running.popleft().result()
        if len(self._pending) >= _BATCH_FILES or self._pending_bytes >= _BATCH_BYTES:
            self._settle()

    def _report(self, path: bytes) -> None:
        if self._progress is not None:
            self._progress(Progress(self._entries, self._bytes, path))

    # -- writing, in any thread

    def _write_unit(self, unit: list[_Output]) -> None:
        with self._tree.opened(unit[0].directory) as fd:
            for output in unit:
                temporary = b".fspf-%s.part" % os.urandom(8).hex().encode()
                try:
                    _harmless(output.name)
                    self._write(output, temporary, fd)
                    output.temporary = temporary
                except (IntegrityError, _UnreadableError, OSError) as exc:
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=fd)
                    if isinstance(exc, OSError) and exc.errno in _FATAL:
                        raise
                    output.error = exc
                self._entries += 1
                self._bytes += output.attr.size

    def _write(self, output: _Output, temporary: bytes, directory_fd: int) -> None:
        attr = output.attr
        xattrs = {name: self._volume.getxattr(attr.ino, name) for name in self._volume.listxattr(attr.ino)}
        if stat.S_ISREG(attr.mode):
            fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory_fd)
            try:
                with self._volume.open_file(attr.ino) as file:
                    self._copy(file, fd, attr)
                _dress(fd, attr, xattrs, output.warnings)
            finally:
                os.close(fd)
            return
        if stat.S_ISLNK(attr.mode):
            os.symlink(self._volume.readlink(attr.ino), temporary, dir_fd=directory_fd)
        else:
            os.mknod(temporary, attr.mode, attr.rdev, dir_fd=directory_fd)
        _dress_by_name(temporary, directory_fd, attr, xattrs, output.warnings)

    def _copy(self, file: OpenFile, fd: int, attr: Attr) -> None:
        """Copy verified content, holes as holes."""
        size = file.size
        if 0 < size <= _PIECE and attr.blocks * 512 >= size:
            data = bytearray(size)
            _read(file, memoryview(data), 0)
            _write_all(fd, memoryview(data), 0)
            return
        buffer = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = memoryview(bytearray(_PIECE))
        for start, length in data_ranges(file):
            offset, end = start, start + length
            while offset < end:
                piece = buffer[: min(_PIECE, end - offset)]
                _read(file, piece, offset)
                _write_all(fd, piece, offset)
                offset += len(piece)
        os.ftruncate(fd, size)

    # -- giving names, in the thread that walks

    def _settle(self) -> None:
        """Wait for what is being written, make it durable, give it its names."""
        if self._unit:
            unit, self._unit, self._unit_bytes = self._unit, [], 0
            self._write_unit(unit)
        while self._running:
            self._running.popleft().result()
        _syncfs(self._tree)
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for number, step in enumerate(pending):
            try:
                if isinstance(step, _Output):
                    self._name(step)
                elif isinstance(step, _Link):
                    self._link(step)
                else:
                    self._finish(step)
            except BaseException:
                self._pending = pending[number:]  # their temporary names are still to be removed
                raise

    def _name(self, output: _Output) -> None:
        summary, path = self.summary, output.path
        for warning in output.warnings:
            summary.warn(path, warning)
        if output.error is None and output.temporary is not None:
            try:
                with self._tree.opened(output.directory) as fd:
                    os.rename(output.temporary, output.name, src_dir_fd=fd, dst_dir_fd=fd)
                output.temporary = None
            except OSError as exc:
                output.error = exc
                self._discard(output)
        if output.error is not None:
            self._complain(path, output.error)
            return
        if stat.S_ISREG(output.attr.mode):
            summary.files += 1
            summary.bytes += output.attr.size
            summary.data_bytes += min(output.attr.blocks * 512, output.attr.size)
        elif stat.S_ISLNK(output.attr.mode):
            summary.symlinks += 1
        else:
            summary.special += 1

    def _complain(self, path: bytes, error: Exception) -> None:
        if isinstance(error, IntegrityError):
            self.summary.damage(path, error)
        else:
            self.summary.error(path, error)

    def _link(self, link: _Link) -> None:
        path = _join(link.directory.path, link.name)
        first = link.first
        if first.error is not None:
            self._complain(path, first.error)
            return
        try:
            with self._tree.opened(first.directory) as source, self._tree.opened(link.directory) as target:
                os.link(
                    first.name,
                    _harmless(link.name),
                    src_dir_fd=source,
                    dst_dir_fd=target,
                    follow_symlinks=False,
                )
        except OSError as exc:
            self.summary.error(path, exc)
            return
        self.summary.hard_links += 1

    def _finish(self, step: _Finish) -> None:
        warnings: list[str] = []
        try:
            with self._tree.opened(step.directory) as fd:
                _dress(fd, step.attr, step.xattrs, warnings)
        except OSError as exc:
            self.summary.error(step.directory.path, exc)
        for warning in warnings:
            self.summary.warn(step.directory.path, warning)
        self.summary.directories += 1
        self._tree.release(step.directory)

    def _discard(self, output: _Output) -> None:
        if output.temporary is not None:
            with suppress(OSError), self._tree.opened(output.directory) as fd:
                os.unlink(output.temporary, dir_fd=fd)
            output.temporary = None

    def _discard_all(self) -> None:
        """Remove every temporary file after an error that ends the run."""
        for future in self._running:
            future.cancel()
        for future in self._running:
            with suppress(BaseException):
                future.exception()
        for step in self._pending:
            if isinstance(step, _Output):
                self._discard(step)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _harmless(name: bytes) -> bytes:
    """Refuse a name that would lead elsewhere; no volume that we wrote has one."""
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"{name!r} is no name")
    return name


def _read(file: OpenFile, piece: memoryview, offset: int) -> None:
    """Fill *piece*, or raise IntegrityError or _UnreadableError."""
    try:
        count = file.readinto(piece, offset)
    except OSError as exc:
        raise _UnreadableError(f"the volume's storage cannot be read: {exc.strerror}") from exc
    if count != len(piece):
        raise _UnreadableError(f"{len(piece)} bytes expected at {offset}, {count} found")


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _syncfs(tree: HostTree[HostDirectory]) -> None:
    """Make everything durable that was written to the file system of *tree*.

    Raises:
        OSError: Something of it could not be written (Linux 5.8 and newer tell).
    """
    library = ctypes.CDLL(None, use_errno=True)
    with tree.opened(tree.root) as fd:
        if library.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def _dress(fd: int, attr: Attr, xattrs: dict[bytes, bytes], warnings: list[str]) -> None:
    """Give an open file or directory its attributes: owner first (it clears suid bits and capabilities), times last."""
    mode = stat.S_IMODE(attr.mode)
    try:
        os.fchown(fd, attr.uid, attr.gid)
    except OSError as exc:
        mode = _without_owner(attr, mode, exc, warnings)
    _set_xattrs(fd, xattrs, warnings)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(attr.atime_ns, attr.mtime_ns))


def _dress_by_name(name: bytes, directory_fd: int, attr: Attr, xattrs: dict[bytes, bytes], warnings: list[str]) -> None:
    """As `_dress` for what is not opened: links, devices, fifos."""
    mode = stat.S_IMODE(attr.mode)
    try:
        os.chown(name, attr.uid, attr.gid, dir_fd=directory_fd, follow_symlinks=False)
    except OSError as exc:
        mode = _without_owner(attr, mode, exc, warnings)
    _set_xattrs(b"/proc/self/fd/%d/%s" % (directory_fd, name), xattrs, warnings)
    if not stat.S_ISLNK(attr.mode):
        os.chmod(name, mode, dir_fd=directory_fd)
    os.utime(name, ns=(attr.atime_ns, attr.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)


def _without_owner(attr: Attr, mode: int, exc: OSError, warnings: list[str]) -> int:
    """Note that the owner was refused; the mode without suid and sgid, which would speak for the wrong owner."""
    if exc.errno not in _REFUSED:
        raise exc
    warnings.append(f"owner {attr.uid}:{attr.gid} was refused: {exc.strerror}")
    return mode & ~(stat.S_ISUID | stat.S_ISGID)


def _set_xattrs(place: int | bytes, xattrs: dict[bytes, bytes], warnings: list[str]) -> None:
    for name, value in xattrs.items():
        try:
            os.setxattr(place, name, value, follow_symlinks=isinstance(place, int))
        except OSError as exc:
            if exc.errno in _FATAL - {errno.ENOSPC}:
                raise
            warnings.append(f"extended attribute {os.fsdecode(name)!r} was refused: {exc.strerror}")
