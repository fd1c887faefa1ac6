"""A file system in memory that knows what survives a crash: the reference for model tests and the crash explorer.

It says nothing about storage. Methods are those of the inode layer, with its errnos; time comes from a clock that the
caller moves.
"""

from __future__ import annotations

import errno
import os
import stat
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fspf.core.types import Ino
    from fspf.volume.volume import Volume

NOREPLACE, EXCHANGE = 1, 2
CREATE, REPLACE = 1, 2


class Clock:
    """Stands in for the module `time` in the engine: nobody but the test moves it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * 10**9

    def step(self) -> int:
        self.now += 1_000_003
        return self.now

    def time_ns(self) -> int:
        return self.now


class Seen(NamedTuple):
    """All that a user can see of one name."""

    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    protection: int
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes | None


Seens = dict[bytes, Seen]  # by path; the root is b""


@dataclass(slots=True)
class Node:
    """One inode as a commit stores it. `stored` is the data as of its last flush."""

    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    protection: int
    parent: int
    target: bytes | None = None
    stored: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def duplicate(self) -> Node:
        other = copy(self)
        other.xattrs = dict(self.xattrs)
        other.entries = dict(self.entries)
        return other


@dataclass(slots=True)
class Live:
    """Data of a file that is open, ahead of its node."""

    data: bytearray
    handles: int = 0
    changed: bool = False
    pending: int | None = None  # time of the last change of data that the node does not have


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def check_name(name: bytes) -> None:
    if len(name) > 255:
        raise fail(errno.ENAMETOOLONG)
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise fail(errno.EINVAL)


class Model:
    """The live state, and `committed`: what a crash leaves."""

    def __init__(self, clock: Clock, root: Seen) -> None:
        self.clock = clock
        self.nodes: dict[int, Node] = {
            1: Node(
                1, root.mode, root.uid, root.gid, 0, 2, root.atime_ns, root.mtime_ns, root.ctime_ns, root.btime_ns,
                root.protection, 1,
            )
        }  # fmt: skip
        self.live: dict[int, Live] = {}
        self.held: dict[int, int] = {}
        self.next_ino = 2
        self.committed: dict[int, Node] = {}
        self.committed_next = 2
        self._remember()

    # -- commits and crashes

    def _remember(self) -> None:
        self.committed = {ino: node.duplicate() for ino, node in self.nodes.items()}
        self.committed_next = self.next_ino

    def commit(self) -> None:
        for ino in list(self.live):
            self._flush(ino)
        self._remember()

    def fsync(self, ino: int | None) -> None:
        if ino is not None:
            self._flush(ino)
        self._remember()

    def crash(self) -> None:
        """Go back to the last commit; what was open without a name is gone."""
        self.nodes = {ino: node.duplicate() for ino, node in self.committed.items() if node.nlink}
        self.next_ino = self.committed_next
        self.live.clear()
        self.held.clear()
        self._remember()

    def _flush(self, ino: int) -> None:
        live, node = self.live.get(ino), self.nodes.get(ino)
        if live is None or node is None or not live.changed:
            return
        live.changed = False
        node.stored = bytes(live.data)
        if live.pending is not None:
            node.mtime = live.pending
            node.ctime = max(node.ctime, live.pending)
            live.pending = None

    # -- looking

    def node(self, ino: int) -> Node:
        node = self.nodes.get(ino)
        if node is None:
            raise fail(errno.ENOENT)
        return node

    def directory(self, ino: int) -> Node:
        node = self.node(ino)
        if not node.is_dir:
            raise fail(errno.ENOTDIR)
        return node

    def named(self, parent: int, name: bytes) -> Node:
        entries = self.directory(parent).entries
        if name not in entries:
            raise fail(errno.ENAMETOOLONG if len(name) > 255 else errno.ENOENT)
        return self.nodes[entries[name]]

    def seen(self, ino: int, *, content: bool = True) -> Seen:
        node = self.node(ino)
        live = self.live.get(ino)
        data = bytes(live.data) if live is not None else node.stored
        mtime, ctime = node.mtime, node.ctime
        if live is not None and live.pending is not None:
            mtime, ctime = live.pending, max(ctime, live.pending)
        return see(node, data, mtime, ctime, content=content)

    def tree(self) -> Seens:
        """Return the live state by path."""
        return tree_of_nodes(self.nodes, self.seen)

    def committed_tree(self) -> Seens:
        """Return what a crash now would leave, by path."""
        return tree_of_nodes(self.committed, self._seen_committed)

    def _seen_committed(self, ino: int) -> Seen:
        node = self.committed[ino]
        return see(node, node.stored, node.mtime, node.ctime)

    def readdir(self, ino: int) -> list[bytes]:
        return list(self.directory(ino).entries)

    def readlink(self, ino: int) -> bytes:
        target = self.node(ino).target
        if target is None:
            raise fail(errno.EINVAL)
        return target

    def named_inodes(self, kind: int | None = None) -> list[int]:
        return [i for i, n in self.nodes.items() if n.nlink and (kind is None or stat.S_IFMT(n.mode) == kind)]

    # -- making

    def _touch(self, node: Node) -> None:
        node.mtime = node.ctime = self.clock.now

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        *,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> int:
        check_name(name)
        if target is not None and not 0 < len(target) <= 4095:
            raise fail(errno.ENAMETOOLONG if target else errno.ENOENT)
        directory = self.directory(parent)
        if directory.nlink == 0:
            raise fail(errno.ENOENT)
        if name in directory.entries:
            raise fail(errno.EEXIST)
        now, ino, is_dir = self.clock.now, self.next_ino, stat.S_ISDIR(mode)
        self.next_ino += 1
        self.nodes[ino] = Node(
            ino, mode, uid, gid, rdev, 2 if is_dir else 1, now, now, now, now, directory.protection, parent, target
        )
        directory.entries[name] = ino
        directory.nlink += is_dir
        self._touch(directory)
        return ino

    def mknod(self, parent: int, name: bytes, mode: int, *, uid: int = 0, gid: int = 0, rdev: int = 0) -> int:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        return self.make(parent, name, mode, uid=uid, gid=gid, rdev=rdev)

    def mkdir(self, parent: int, name: bytes, mode: int) -> int:
        return self.make(parent, name, stat.S_IFDIR | mode)

    def symlink(self, parent: int, name: bytes, target: bytes) -> int:
        return self.make(parent, name, stat.S_IFLNK | 0o777, target=target)

    def link(self, ino: int, parent: int, name: bytes) -> None:
        check_name(name)
        node = self.node(ino)
        if node.is_dir:
            raise fail(errno.EPERM)
        directory = self.directory(parent)
        if node.nlink == 0 or directory.nlink == 0:
            raise fail(errno.ENOENT)
        if name in directory.entries:
            raise fail(errno.EEXIST)
        self._check_region(node, directory)
        directory.entries[name] = ino
        node.nlink += 1
        node.ctime = self.clock.now
        self._touch(directory)

    @staticmethod
    def _check_region(node: Node, directory: Node) -> None:
        if node.protection != directory.protection and (node.is_file or node.is_dir):
            raise fail(errno.EXDEV)

    # -- removing

    def unlink(self, parent: int, name: bytes) -> None:
        node = self.named(parent, name)
        if node.is_dir:
            raise fail(errno.EISDIR)
        directory = self.nodes[parent]
        del directory.entries[name]
        self._touch(directory)
        self._drop_name(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        node = self.named(parent, name)
        if not node.is_dir:
            raise fail(errno.ENOTDIR)
        if node.entries:
            raise fail(errno.ENOTEMPTY)
        directory = self.nodes[parent]
        del directory.entries[name]
        directory.nlink -= 1
        self._touch(directory)
        self._drop_name(node)

    def _in_use(self, ino: int) -> bool:
        live = self.live.get(ino)
        return bool(self.held.get(ino)) or (live is not None and live.handles > 0)

    def _drop_name(self, node: Node) -> None:
        node.nlink = 0 if node.is_dir else node.nlink - 1
        node.ctime = self.clock.now
        self._purge(node.ino)

    def _purge(self, ino: int) -> None:
        node = self.nodes.get(ino)
        if node is not None and node.nlink == 0 and not self._in_use(ino):
            del self.nodes[ino]
            self.live.pop(ino, None)

    def hold(self, ino: int) -> None:
        self.held[ino] = self.held.get(ino, 0) + 1

    def drop(self, ino: int) -> None:
        self.held[ino] -= 1
        if not self.held[ino]:
            del self.held[ino]
        self._purge(ino)

    # -- rename

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        check_name(new_name)
        if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
            raise fail(errno.EINVAL)
        node = self.named(old_parent, old_name)
        target = self.directory(new_parent)
        source = self.nodes[old_parent]
        if target.nlink == 0:
            raise fail(errno.ENOENT)
        other = self.nodes[target.entries[new_name]] if new_name in target.entries else None
        if flags == EXCHANGE:
            if other is None:
                raise fail(errno.ENOENT)
            if other is node:
                return
            self._check_region(node, target)
            self._check_region(other, source)
            self._check_loop(node, new_parent)
            self._check_loop(other, old_parent)
            source.entries[old_name], target.entries[new_name] = other.ino, node.ino
            for moved, before, after in ((node, source, target), (other, target, source)):
                moved.ctime = self.clock.now
                if moved.is_dir:
                    moved.parent = after.ino
                    before.nlink -= 1
                    after.nlink += 1
        else:
            if other is not None and flags == NOREPLACE:
                raise fail(errno.EEXIST)
            if other is node:
                return
            self._check_region(node, target)
            self._check_loop(node, new_parent)
            if other is not None:
                if other.is_dir and not node.is_dir:
                    raise fail(errno.EISDIR)
                if node.is_dir and not other.is_dir:
                    raise fail(errno.ENOTDIR)
                if other.entries:
                    raise fail(errno.ENOTEMPTY)
                self._flush(node.ino)  # no commit has the new name without the new data
            if other is None and source is target:  # the name keeps its place: who reads the directory meets it once
                entries = {new_name if name == old_name else name: ino for name, ino in source.entries.items()}
                source.entries.clear()
                source.entries.update(entries)
            else:
                del source.entries[old_name]
                target.entries[new_name] = node.ino
            node.ctime = self.clock.now
            if node.is_dir:
                node.parent = target.ino
                source.nlink -= 1
                target.nlink += 1
            if other is not None:
                if other.is_dir:
                    target.nlink -= 1
                self._drop_name(other)
        self._touch(source)
        self._touch(target)

    def _check_loop(self, node: Node, new_parent: int) -> None:
        here = new_parent
        while node.is_dir:
            if here == node.ino:
                raise fail(errno.EINVAL)
            if here == 1:
                return
            here = self.nodes[here].parent

    # -- attributes

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        node = self.node(ino)
        if size is not None:
            if node.is_dir:
                raise fail(errno.EISDIR)
            if not node.is_file or size < 0:
                raise fail(errno.EINVAL)
            self.open(ino)
            self.truncate(ino, size)
            self.close(ino)
        live = self.live.get(ino)
        if live is not None and live.pending is not None:
            node.mtime, live.pending = live.pending, None
        node.ctime = self.clock.now
        if mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        node.atime = node.atime if atime_ns is None else atime_ns
        node.mtime = node.mtime if mtime_ns is None else mtime_ns

    def set_protection(self, ino: int, protection: int) -> None:
        node = self.node(ino)
        if node.entries or (node.is_file and (node.stored or ino in self.live)):
            raise fail(errno.ENOTEMPTY)
        node.protection = protection
        node.ctime = self.clock.now

    # -- xattrs

    @staticmethod
    def _check_xattr(name: bytes, value: bytes) -> None:
        if not name.startswith((b"user.", b"trusted.", b"security.", b"system.")):
            raise fail(errno.EOPNOTSUPP)
        if len(name) > 255:
            raise fail(errno.ERANGE)
        if len(value) > 65536:
            raise fail(errno.E2BIG)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._check_xattr(name, value)
        node = self.node(ino)
        if name in node.xattrs and flags & CREATE:
            raise fail(errno.EEXIST)
        if name not in node.xattrs and flags & REPLACE:
            raise fail(errno.ENODATA)
        node.xattrs[name] = value
        node.ctime = self.clock.now

    def getxattr(self, ino: int, name: bytes) -> bytes:
        node = self.node(ino)
        if name not in node.xattrs:
            raise fail(errno.ENODATA)
        return node.xattrs[name]

    def removexattr(self, ino: int, name: bytes) -> None:
        self.getxattr(ino, name)
        node = self.node(ino)
        del node.xattrs[name]
        node.ctime = self.clock.now

    # -- contents

    def open(self, ino: int) -> None:
        node = self.node(ino)
        if node.is_dir:
            raise fail(errno.EISDIR)
        if not node.is_file:
            raise fail(errno.EINVAL)
        live = self.live.setdefault(ino, Live(bytearray(node.stored)))
        live.handles += 1

    def close(self, ino: int) -> None:
        live = self.live[ino]
        live.handles -= 1
        if live.handles:
            return
        self._purge(ino)
        if ino in self.nodes:
            self._flush(ino)
            self.live.pop(ino, None)

    def _changed(self, live: Live) -> None:
        live.changed = True
        live.pending = self.clock.now

    def read(self, ino: int, offset: int, length: int) -> bytes:
        return bytes(self.live[ino].data[offset : offset + length])

    def write(self, ino: int, offset: int, data: bytes) -> None:
        live = self.live[ino]
        if offset > len(live.data):
            live.data.extend(bytes(offset - len(live.data)))
        live.data[offset : offset + len(data)] = data
        self._changed(live)

    def truncate(self, ino: int, size: int) -> None:
        live = self.live[ino]
        if size < len(live.data):
            del live.data[size:]
        else:
            live.data.extend(bytes(size - len(live.data)))
        self._changed(live)

    def punch(self, ino: int, offset: int, length: int) -> None:
        live = self.live[ino]
        end = min(offset + length, len(live.data))
        if end > offset:
            live.data[offset:end] = bytes(end - offset)
        self._changed(live)


def see(node: Node, data: bytes, mtime: int, ctime: int, *, content: bool = True) -> Seen:
    size = len(data) if node.is_file else len(node.target) if node.target is not None else 0
    return Seen(
        node.ino, node.mode, node.uid, node.gid, node.rdev, node.nlink, size, node.atime, mtime, ctime, node.btime,
        node.protection, node.target, tuple(sorted(node.xattrs.items())),
        data if content and node.is_file else None,
    )  # fmt: skip


def tree_of_nodes(nodes: dict[int, Node], look: object) -> Seens:
    assert callable(look)
    found: Seens = {}
    todo = [(b"", 1)]
    while todo:
        path, ino = todo.pop()
        found[path] = look(ino)
        todo += [(path + b"/" + name, below) for name, below in nodes[ino].entries.items()]
    return found


def seen_in(volume: Volume, ino: Ino, *, content: bool = True) -> Seen:
    """Read everything about one inode of a real volume."""
    attr = volume.getattr(ino)
    data: bytes | None = None
    if content and stat.S_ISREG(attr.mode):
        with volume.open_file(ino) as file:
            data = file.read(0, attr.size + 1)
    return Seen(
        attr.ino, attr.mode, attr.uid, attr.gid, attr.rdev, attr.nlink, attr.size, attr.atime_ns, attr.mtime_ns,
        attr.ctime_ns, attr.btime_ns, int(attr.protection),
        volume.readlink(ino) if stat.S_ISLNK(attr.mode) else None,
        tuple((name, volume.getxattr(ino, name)) for name in volume.listxattr(ino)),
        data,
    )  # fmt: skip


def tree_in(volume: Volume) -> Seens:
    """Read a whole volume, by path."""
    from fspf.core.types import ROOT_INO

    found: Seens = {}
    known: dict[int, Seen] = {}
    todo: list[tuple[bytes, Ino]] = [(b"", ROOT_INO)]
    while todo:
        path, ino = todo.pop()
        if ino not in known:
            known[ino] = seen_in(volume, ino)
        found[path] = known[ino]
        if stat.S_ISDIR(known[ino].mode):
            after = 0
            while page := volume.readdir(ino, after, 64):
                todo += [(path + b"/" + entry.name, entry.attr.ino) for entry in page]
                after = page[-1].cookie
    return found


def differences(expected: Seens, actual: Seens, limit: int = 8) -> list[str]:
    """Say in a few lines how two trees differ; empty if they do not."""
    lines: list[str] = []
    for path in sorted(expected.keys() | actual.keys()):
        want, got = expected.get(path), actual.get(path)
        if want == got:
            continue
        if want is None or got is None:
            lines.append(f"{path!r}: {'not expected' if want is None else 'missing'}")
            continue
        for name, a, b in zip(Seen._fields, want, got, strict=True):
            if a == b:
                continue
            if name == "content" and isinstance(a, bytes) and isinstance(b, bytes):
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                lines.append(
                    f"{path!r}: content differs from byte {at}: {a[at : at + 8]!r} expected, {b[at : at + 8]!r} found"
                )
            else:
                lines.append(f"{path!r}: {name}: {a!r} expected, {b!r} found")
    return lines[:limit]
