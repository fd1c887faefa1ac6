"""Walk paths through a volume's inodes, by the rules of Linux (path_resolution(7)).

Permissions are not looked at: who has the volume's key may read all of it. What is done at the end of the walk is left to
`fspf.volume.files`.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fspf.core.types import ROOT_INO

if TYPE_CHECKING:
    from fspf.core.types import Ino
    from fspf.volume.inodes import Attr

PATH_MAX: Final = 4096  # bytes, with the terminating zero
NAME_MAX: Final = 255  # bytes
MAX_LINKS: Final = 40  # symbolic links followed in one walk

type_of = stat.S_IFMT


class Inodes(Protocol):
    """What a walk needs of a volume."""

    def lookup(self, parent: Ino, name: bytes) -> Attr: ...
    def getattr(self, ino: Ino) -> Attr: ...
    def readlink(self, ino: Ino) -> bytes: ...


class Last(Enum):
    """What to do with the last component of a path."""

    FOLLOW = auto()  # it exists; follow it if it is a symbolic link
    NOFOLLOW = auto()  # it exists; a symbolic link is what is meant, unless a slash follows
    PARENT = auto()  # do not look at it
    CREATE = auto()  # as O_CREAT: follow a symbolic link, also one to a name that does not exist
    CREATE_EXCL = auto()  # as O_CREAT|O_EXCL: follow nothing


class Found(NamedTuple):
    """The end of a walk."""

    parent: Ino  # directory that the last component is in (itself if `name` is empty)
    name: bytes  # last component; empty if the path ends in the root, "." or ".."
    attr: Attr | None  # what it names; None: not looked at (PARENT), or not there (CREATE)
    slash: bool  # a slash follows the last component
    dots: bytes  # b".", b".." or b"" for the root, when `name` is empty


def failure(code: int) -> OSError:
    """Make the OSError that the kernel would give."""
    return OSError(code, os.strerror(code))


def encode(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """Turn a path of any accepted type into bytes.

    Raises:
        ValueError: There is a null byte in it.
        OSError: ENAMETOOLONG.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if len(raw) >= PATH_MAX:
        raise failure(errno.ENAMETOOLONG)
    return raw


def resolve(inodes: Inodes, path: bytes, last: Last) -> Found:
    """Walk *path* from the root.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG; EISDIR for CREATE with a trailing slash.
    """
    if not path:
        raise failure(errno.ENOENT)
    creating = last in {Last.CREATE, Last.CREATE_EXCL}
    trail = [inodes.getattr(ROOT_INO)]
    todo = [part for part in reversed(path.split(b"/")) if part]
    slash = path.endswith(b"/")
    links = 0
    final: tuple[bytes, bytes] = (b"", b"")  # name, dots
    holder = trail[0].ino
    while todo:
        name = todo.pop()
        here = trail[-1]
        if not stat.S_ISDIR(here.mode):
            raise failure(errno.ENOTDIR)
        if name in {b".", b".."}:
            if name == b".." and len(trail) > 1:
                trail.pop()
            final, holder = (b"", name), trail[-1].ino
            continue
        final, holder = (name, b""), here.ino
        if not todo and last is Last.PARENT:
            return Found(here.ino, name, None, slash, b"")
        if not todo and creating and slash:
            raise failure(errno.EISDIR)
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        try:
            attr = inodes.lookup(here.ino, name)
        except FileNotFoundError:
            if not todo and creating:
                return Found(here.ino, name, None, slash, b"")
            raise
        if stat.S_ISLNK(attr.mode) and (todo or slash or last in {Last.FOLLOW, Last.CREATE}):
            links += 1
            if links > MAX_LINKS:
                raise failure(errno.ELOOP)
            target = inodes.readlink(attr.ino)
            if target.startswith(b"/"):
                del trail[1:]
                final, holder = (b"", b""), trail[0].ino
            if not todo:
                slash = slash or target.endswith(b"/")
            todo.extend(part for part in reversed(target.split(b"/")) if part)
            continue
        trail.append(attr)
    if slash and not stat.S_ISDIR(trail[-1].mode):
        raise failure(errno.ENOTDIR)
    name, dots = final
    return Found(holder, name, trail[-1], slash, dots)
