"""Attributes and directory entries in the form that `os` gives them.

Resolving paths is left to `fspf.volume.files`.
"""

from __future__ import annotations

import os
import posixpath
import stat
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from fspf.core.types import Ino
    from fspf.volume.files import Files
    from fspf.volume.inodes import Attr

_PAGE: Final = 512  # entries fetched at once
_MIN_TIME: Final = -(2**63)  # ns since 1970
_MAX_TIME: Final = 2**63 - 1
_REALTIME_COARSE: Final = 5  # <linux/time.h>; the time module does not have it
_STAT_BLOCK: Final = 4096  # bytes; st_blksize


def now_ns() -> int:
    """Return the time that files are stamped with, by the kernel's own clock for that.

    With its writeback cache the kernel stamps what is written; a finer clock here would be ahead of it by some ms.
    """
    return time.clock_gettime_ns(_REALTIME_COARSE)


def clamp_time(ns: int) -> int:
    """Return the nearest time that a volume can keep (1677 to 2262), as the kernel does for any file system."""
    return min(max(ns, _MIN_TIME), _MAX_TIME)


def stat_result(attr: Attr, device: int) -> os.stat_result:
    """Return *attr* in the form of `os.stat`."""
    times = (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
    return os.stat_result(
        (attr.mode, attr.ino, device, attr.nlink, attr.uid, attr.gid, attr.size, *(ns // 10**9 for ns in times)),
        {
            "st_atime": times[0] / 1e9,
            "st_mtime": times[1] / 1e9,
            "st_ctime": times[2] / 1e9,
            "st_atime_ns": times[0],
            "st_mtime_ns": times[1],
            "st_ctime_ns": times[2],
            "st_blksize": _STAT_BLOCK,
            "st_blocks": attr.blocks,
            "st_rdev": attr.rdev,
        },
    )


class DirEntry:
    """One entry of a directory, as `os.DirEntry`; name and path are bytes if the directory was given so."""

    __slots__ = ("_attr", "_files", "_followed", "name", "path")

    def __init__(self, files: Files, name: Any, path: Any, attr: Attr) -> None:
        self._files = files
        self._attr = attr
        self._followed: os.stat_result | None = None
        self.name = name
        self.path = path

    def __fspath__(self) -> Any:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"

    def inode(self) -> int:
        return self._attr.ino

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self._attr.mode)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_IFDIR, follow_symlinks=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_IFREG, follow_symlinks=follow_symlinks)

    def _is(self, kind: int, *, follow_symlinks: bool) -> bool:
        if follow_symlinks and self.is_symlink():
            try:
                return stat.S_IFMT(self.stat().st_mode) == kind
            except FileNotFoundError:
                return False
        return stat.S_IFMT(self._attr.mode) == kind

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if follow_symlinks and self.is_symlink():
            if self._followed is None:
                self._followed = self._files.stat(self.path)
            return self._followed
        return stat_result(self._attr, self._files.device)


class ScandirIterator:
    """What `Files.scandir` returns; holds nothing open, so that closing it is a courtesy."""

    def __init__(self, files: Files, path: Any, ino: Ino) -> None:
        self._entries = self._generate(files, path, ino)

    @staticmethod
    def _generate(files: Files, path: Any, ino: Ino) -> Iterator[DirEntry]:
        after = 0
        while page := files.readdir(ino, after, _PAGE):
            for each in page:
                name = os.fsdecode(each.name) if isinstance(path, str) else each.name
                yield DirEntry(files, name, posixpath.join(path, name), each.attr)
            after = page[-1].cookie

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DirEntry:
        return next(self._entries)

    def close(self) -> None:
        self._entries = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
