"""`fspf ls`: list files in a volume.

Paths are found by `fspf.volume.files`; this is about how they look.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import json_name
from fspf.cli.location import parse_location
from fspf.cli.options import opened
from fspf.core.types import Ino

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from fspf.cli.console import Console, Listing
    from fspf.volume.inodes import Attr
    from fspf.volume.volume import Volume

_MOST_SORTED: Final = 100_000  # names; larger directories are listed in their own order, to bound memory
_BATCH: Final = 1024
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
}
_PROTECTIONS: Final = ("encrypted", "authenticated")


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ls",
        description="List files in a volume, sorted by name. Names are written as they are; "
        "on a terminal, what is not printable is shown escaped.",
    )
    parser.add_argument(
        "location", metavar="VOLUME[:PATH]", type=parse_location, help="what to list (default: the root)"
    )
    parser.add_argument("-l", "--long", action="store_true", help="mode, links, owner, size and time of each file")
    parser.add_argument("-R", "--recursive", action="store_true", help="directories below, too")
    parser.add_argument("-a", "--all", action="store_true", help="also names that begin with a dot")


def run(args: Namespace, console: Console) -> int:
    """List."""
    location = args.location
    with opened(args, location.volume, "fspf ls") as volume:
        ino = Ino(volume.lstat(location.inside).st_ino)
        attr = volume.getattr(ino)
        head = {"volume": str(volume.path), **json_name("path", location.inside)}
        with console.listing(head, "entries") as listing:
            _List(args, console, volume, listing).run(location.inside, attr)
    return 0


class _List:
    """One listing."""

    def __init__(self, args: Namespace, console: Console, volume: Volume, listing: Listing) -> None:
        self._long = args.long
        self._recursive = args.recursive
        self._all = args.all
        self._console = console
        self._volume = volume
        self._listing = listing
        self._now = time.time()

    def run(self, path: bytes, attr: Attr) -> None:
        if not stat.S_ISDIR(attr.mode):
            self._show(path, path, attr)
            return
        todo = [(path, attr.ino)]
        first = True
        while todo:
            path, ino = todo.pop()
            if self._recursive:
                self._console.line(("" if first else "\n") + self._console.name(path) + ":")
            first = False
            below: list[tuple[bytes, Ino]] = []
            for name, each in self._entries(ino):
                full = path.rstrip(b"/") + b"/" + name
                self._show(name, full, each)
                if self._recursive and stat.S_ISDIR(each.mode):
                    below.append((full, each.ino))
            todo.extend(reversed(below))

    def _entries(self, ino: Ino) -> Iterator[tuple[bytes, Attr]]:
        """Return names and attributes, sorted unless there are too many."""
        held: list[tuple[bytes, Attr]] = []
        cookie, many = 0, False
        while batch := self._volume.readdir(ino, cookie, _BATCH):
            cookie = batch[-1].cookie
            visible = [(each.name, each.attr) for each in batch if self._all or not each.name.startswith(b".")]
            if many:
                yield from visible
                continue
            held += visible
            if len(held) > _MOST_SORTED:
                many = True
                yield from held
                held.clear()
        if not many:
            held.sort(key=lambda each: each[0])
            yield from held

    def _show(self, name: bytes, path: bytes, attr: Attr) -> None:
        target = self._volume.readlink(attr.ino) if stat.S_ISLNK(attr.mode) else None
        if self._console.as_json:
            self._listing.add(self._document(path, attr, target))
            return
        text = self._console.name(name)
        if self._long:
            if target is not None:
                text += " -> " + self._console.name(target)
            text = f"{self._columns(attr)} {text}"
        self._console.line(text)

    def _columns(self, attr: Attr) -> str:
        if stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode):
            size = f"{os.major(attr.rdev)}, {os.minor(attr.rdev)}"
        else:
            size = str(attr.size)
        try:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attr.mtime_ns // 1_000_000_000))
        except (OverflowError, OSError, ValueError):
            when = f"@{attr.mtime_ns // 1_000_000_000}"
        return f"{stat.filemode(attr.mode)} {attr.nlink:>3} {attr.uid:>6} {attr.gid:>6} {size:>12} {when}"

    def _document(self, path: bytes, attr: Attr, target: bytes | None) -> dict[str, Any]:
        kind = _TYPES.get(stat.S_IFMT(attr.mode), "unknown")
        document: dict[str, Any] = {
            **json_name("path", path),
            "type": kind,
            "ino": attr.ino,
            "mode": f"{stat.S_IMODE(attr.mode):04o}",
            "nlink": attr.nlink,
            "uid": attr.uid,
            "gid": attr.gid,
            "size": attr.size,
            "allocated": attr.blocks * 512,
            "atime_ns": attr.atime_ns,
            "mtime_ns": attr.mtime_ns,
            "ctime_ns": attr.ctime_ns,
            "protection": _PROTECTIONS[attr.protection],
        }
        if target is not None:
            document |= json_name("target", target)
        if kind in {"block", "character"}:
            document |= {"major": os.major(attr.rdev), "minor": os.minor(attr.rdev)}
        return document
