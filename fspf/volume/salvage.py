"""Write what verifies of a damaged volume into an ordinary directory.

What is damaged was found by `fspf.volume.check`; nothing is ever written here that did not verify: lost ranges are holes.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from fspf.core.errors import VolumeExistsError
from fspf_native import ChunkError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from fspf.volume.volume import Volume
    from fspf.volume.walk import Inode
    from fspf_native import Tree

DAMAGED_SUFFIX: Final = b".fspf-damaged"
REPORT_SUFFIX: Final = ".fspf-damage.json"
_BLOCK: Final = 1 << 20  # bytes
_HOLE_BLOCK: Final = 1 << 16
_NAME_MAX: Final = 255
_HOPELESS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # of the destination: no file will fare better

Range = tuple[int, int, str]  # offset, length, kind


class Salvage:
    """A directory that receives files, and a report beside it that says what is not whole.

    Whole files get their own names; a damaged one gets `DAMAGED_SUFFIX` and zeros where bytes are lost. Used by several
    threads for `file`, by one for everything else.
    """

    def __init__(self, destination: Path, volume: Volume) -> None:
        self._root = os.fsencode(destination)
        self._report_path = os.fsencode(destination) + REPORT_SUFFIX.encode()
        self._volume = volume
        self._lock = threading.Lock()
        self._directories: list[tuple[bytes, Inode, list[tuple[bytes, bytes]]]] = []
        self._first_names: dict[
            int, tuple[bytes, bool]
        ] = {}  # inodes with several names: where written, whether damaged
        self._written = 0
        self._damaged = 0
        self._failures = 0
        self._entries = 0

    def __enter__(self) -> Self:
        if os.path.lexists(self._report_path):
            message = f"{os.fsdecode(self._report_path)!r} exists: choose another destination"
            raise VolumeExistsError(message)
        try:
            os.mkdir(self._root, 0o700)
        except FileExistsError:
            if not os.path.isdir(self._root) or os.listdir(self._root):
                message = (
                    f"{os.fsdecode(self._root)!r} exists and is not an empty directory: choose another destination"
                )
                raise VolumeExistsError(message) from None
        self._report = open(self._report_path, "x", encoding="ascii")
        head = {
            "volume": self._volume.header.volume_id.hex(),
            "generation": self._volume.root_record.generation if self._volume.root_record else 0,
            "stale": str(self._volume.stale) if self._volume.stale is not None else None,
        }
        self._report.write(json.dumps(head)[:-1] + ', "damaged": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        tail = {"whole": self._written, "incomplete": self._damaged, "failed": self._failures, "complete": kind is None}
        self._report.write("\n], " + json.dumps(tail)[1:] + "\n")
        self._report.flush()
        os.fsync(self._report.fileno())
        self._report.close()

    # -- what the check calls

    def other(self, path: bytes, inode: Inode, xattrs: list[tuple[bytes, bytes]]) -> None:
        """Make a directory, symbolic link, fifo, socket or device node."""
        target = self._root + path
        try:
            if inode.is_dir:
                os.mkdir(target, 0o700)
                self._directories.append((target, inode, xattrs))
                return
            if inode.target is not None:
                os.symlink(inode.target, target)
            else:
                os.mknod(target, inode.mode, inode.rdev)
            _set_attributes(target, inode, xattrs)
        except OSError as exc:
            self._tell(path, {"reason": exc.strerror}, failed=True)
            return
        with self._lock:
            self._written += 1
            self._remember(inode, target, damaged=False)

    def file(
        self, path: bytes, inode: Inode, xattrs: list[tuple[bytes, bytes]], tree: Tree, damage: list[Range]
    ) -> None:
        """Write a regular file: under its name if *damage* is empty."""
        part = self._root + os.path.dirname(path) + b"/" + f".fspf-salvage-{inode.ino}".encode()
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                lost = _copy(tree, fd, inode.size, damage)
            except BaseException:
                os.unlink(part)
                raise
            finally:
                os.close(fd)
            name = self._name_for(path, damaged=bool(lost))
            _set_attributes(part, inode, xattrs)
            os.rename(part, name)
        except OSError as exc:
            if exc.errno in _HOPELESS:
                raise
            self._tell(path, {"reason": exc.strerror, "size": inode.size}, failed=True)
            return
        if lost:
            ranges = [{"offset": offset, "length": length, "kind": kind} for offset, length, kind in lost]
            self._tell(path, {"written_as": os.fsdecode(name), "size": inode.size, "lost": ranges}, failed=False)
        with self._lock:
            self._written += not lost
            self._remember(inode, name, damaged=bool(lost))

    def link(self, inode: Inode, path: bytes) -> None:
        """Give an inode that was written under another name this one too."""
        with self._lock:
            first, damaged = self._first_names.get(inode.ino, (b"", False))
        if not first:
            self._tell(path, {"reason": "another name of a file that could not be written"}, failed=True)
            return
        try:
            name = self._name_for(path, damaged=damaged)
            os.link(first, name, follow_symlinks=False)
        except OSError as exc:
            self._tell(path, {"reason": exc.strerror}, failed=True)
            return
        if damaged:
            members = {"written_as": os.fsdecode(name), "size": inode.size, "link_to": os.fsdecode(first)}
            self._tell(path, members, failed=False)

    def prepare_lost(self) -> None:
        """Make the directory for files whose names are lost."""
        with suppress(FileExistsError):
            os.mkdir(self._root + b"/lost+found", 0o700)

    def finish_directories(self) -> None:
        """Give directories their attributes, now that nothing is written into them any more."""
        for target, inode, xattrs in reversed(self._directories):
            try:
                _set_attributes(target, inode, xattrs)
            except OSError as exc:
                self._tell(target[len(self._root) :], {"reason": exc.strerror}, failed=True)
        self._directories.clear()

    # -- inside

    def _remember(self, inode: Inode, name: bytes, *, damaged: bool) -> None:
        if inode.nlink > 1:
            self._first_names[inode.ino] = (name, damaged)

    def _name_for(self, path: bytes, *, damaged: bool) -> bytes:
        if not damaged:
            return self._root + path
        directory, name = os.path.split(self._root + path)
        for number in range(1000):
            suffix = DAMAGED_SUFFIX + (f".{number}".encode() if number else b"")
            candidate = directory + b"/" + name[: _NAME_MAX - len(suffix)] + suffix
            if not os.path.lexists(candidate):
                return candidate
        message = "no name is left for it"
        raise OSError(0, message)

    def _tell(self, path: bytes, members: dict[str, Any], *, failed: bool) -> None:
        with self._lock:
            self._failures += failed
            self._damaged += not failed
            document = json.dumps({"path": os.fsdecode(path), **members})
            self._report.write((",\n" if self._entries else "\n") + document)
            self._entries += 1


def _copy(tree: Tree, fd: int, size: int, damage: list[Range]) -> list[Range]:
    """Write all ranges that verify; return what is lost. The destination is sparse wherever the source is zero."""
    os.ftruncate(fd, size)
    lost = sorted(damage)
    pending = list(lost)
    position = 0
    while position < size:
        if pending and pending[0][0] <= position:
            offset, length, _ = pending.pop(0)
            position = max(position, offset + length)
            continue
        end = min(pending[0][0] if pending else size, position + _BLOCK)
        try:
            data_at = tree.seek_data(position)
        except OSError:  # no data any more
            break
        except ChunkError:  # a damaged node does not say where data is; reading goes around it
            data_at = position
        if data_at > position:
            position = min(data_at, pending[0][0] if pending else size)
            continue
        try:
            block = tree.read(position, end - position)
        except ChunkError as exc:  # beyond what one verification lists
            lost.append((exc.offset, exc.length, exc.kind))
            pending.insert(0, (exc.offset, exc.length, exc.kind))
            if exc.offset > position:
                _write(fd, tree.read(position, exc.offset - position), position)
                position = exc.offset
            continue
        _write(fd, block, position)
        position += len(block) or end - position
    return sorted(lost)


def _write(fd: int, block: bytes, offset: int) -> None:
    for start in range(0, len(block), _HOLE_BLOCK):
        piece = block[start : start + _HOLE_BLOCK]
        if piece.count(0) != len(piece):
            done = 0
            while done < len(piece):
                done += os.pwrite(fd, piece[done:], offset + start + done)


def _set_attributes(target: bytes, inode: Inode, xattrs: list[tuple[bytes, bytes]]) -> None:
    """Set owner, mode, times and xattrs, as far as this user may."""
    if os.geteuid() == 0:
        os.chown(target, inode.uid, inode.gid, follow_symlinks=False)
    for name, value in xattrs:
        with suppress(OSError):
            os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(inode.mode):
        os.chmod(target, stat.S_IMODE(inode.mode))
    os.utime(target, ns=(inode.atime_ns, inode.mtime_ns), follow_symlinks=False)
