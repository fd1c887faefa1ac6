"""A real volume and its model, driven together: each operation on both, each outcome compared.

Which operations, in which order, is for the state machine and for the crash workload.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import fspf.volume.contents
import fspf.volume.inodes
from fspf.core.types import Ino, Protection
from fspf.volume.contents import OpenFile
from fspf.volume.volume import Volume
from tests.property.model import Clock, Model, differences, seen_in, tree_in

T = TypeVar("T")

CHUNK = 4096


@contextmanager
def engine_clock(clock: Clock) -> Iterator[None]:
    """Let the engine's inode layer tell the time by *clock*."""
    modules: list[Any] = [fspf.volume.contents, fspf.volume.inodes]
    before = [module.now_ns for module in modules]
    for module in modules:
        module.now_ns = clock.time_ns
    try:
        yield
    finally:
        for module, now_ns in zip(modules, before, strict=True):
            module.now_ns = now_ns


@dataclass(slots=True)
class Handle:
    ino: int
    file: OpenFile


class Pair:
    """The volume, the model and the handles that are open on both."""

    def __init__(self, volume: Volume, clock: Clock) -> None:
        self.volume = volume
        self.clock = clock
        self.model = Model(clock, seen_in(volume, Ino(1)))
        self.handles: list[Handle] = []
        self.holds: list[int] = []

    def both(self, what: str, real: Callable[[], Any], model: Callable[[], T]) -> T | None:
        """Run both; the same errno or success. Returns the model's result, None after an error."""
        self.clock.step()
        expected: OSError | None = None
        actual: OSError | None = None
        result: T | None = None
        try:
            result = model()
        except OSError as exc:
            expected = exc
        try:
            real()
        except OSError as exc:
            actual = exc
        assert (expected and expected.errno) == (actual and actual.errno), (
            f"{what}: {expected or 'success'} expected, {actual or 'success'} found"
        )
        return result

    # -- comparing

    def check_inode(self, ino: int) -> None:
        if ino in self.model.nodes:
            expected = self.model.seen(ino, content=False)
            actual = seen_in(self.volume, Ino(ino), content=False)
            assert actual == expected, differences({b"": expected}, {b"": actual})

    def check_tree(self) -> None:
        problems = differences(self.model.tree(), tree_in(self.volume))
        assert not problems, problems
        for ino, node in self.model.nodes.items():
            if node.is_dir and node.nlink:
                names = [entry.name for entry in self.volume.readdir(Ino(ino))]
                assert names == self.model.readdir(ino)

    def check_handles(self) -> None:
        for handle in self.handles:
            data = self.model.live[handle.ino].data
            assert handle.file.size == len(data)
            assert handle.file.read(0, len(data) + 1) == data

    # -- choosing

    def inode(self, number: int, kind: int | None = None) -> int:
        """Pick an existing inode with a name; the root if there is none of that kind."""
        inodes = self.model.named_inodes(kind)
        return inodes[number % len(inodes)] if inodes else 1

    def directory(self, number: int) -> int:
        return self.inode(number, stat.S_IFDIR)

    def entry(self, number: int) -> tuple[int, bytes]:
        """Pick an existing name; one that does not exist if there is none."""
        entries = [(i, name) for i, n in self.model.nodes.items() if n.is_dir and n.nlink for name in n.entries]
        return entries[number % len(entries)] if entries else (1, b"none")

    # -- the operations

    def mknod(self, parent: int, name: bytes, mode: int, *, uid: int = 0, gid: int = 0, rdev: int = 0) -> int | None:
        return self.both(
            "mknod",
            lambda: self.volume.mknod(Ino(parent), name, mode, uid=uid, gid=gid, rdev=rdev),
            lambda: self.model.mknod(parent, name, mode, uid=uid, gid=gid, rdev=rdev),
        )

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> int | None:
        return self.both(
            "mkdir",
            lambda: self.volume.mkdir(Ino(parent), name, mode),
            lambda: self.model.mkdir(parent, name, mode),
        )

    def symlink(self, parent: int, name: bytes, target: bytes) -> int | None:
        return self.both(
            "symlink",
            lambda: self.volume.symlink(Ino(parent), name, target),
            lambda: self.model.symlink(parent, name, target),
        )

    def link(self, ino: int, parent: int, name: bytes) -> None:
        self.both(
            "link",
            lambda: self.volume.link(Ino(ino), Ino(parent), name),
            lambda: self.model.link(ino, parent, name),
        )

    def unlink(self, parent: int, name: bytes) -> None:
        self.both("unlink", lambda: self.volume.unlink(Ino(parent), name), lambda: self.model.unlink(parent, name))

    def rmdir(self, parent: int, name: bytes) -> None:
        self.both("rmdir", lambda: self.volume.rmdir(Ino(parent), name), lambda: self.model.rmdir(parent, name))

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int = 0) -> None:
        self.both(
            f"rename {flags}",
            lambda: self.volume.rename(Ino(old[0]), old[1], Ino(new[0]), new[1], flags),
            lambda: self.model.rename(old[0], old[1], new[0], new[1], flags),
        )

    def setattr(self, ino: int, **values: int) -> None:
        self.both(
            f"setattr {sorted(values)}",
            lambda: self.volume.setattr(Ino(ino), **values),
            lambda: self.model.setattr(ino, **values),
        )

    def set_protection(self, ino: int, protection: int) -> None:
        self.both(
            "set_protection",
            lambda: self.volume.set_protection(Ino(ino), Protection(protection)),
            lambda: self.model.set_protection(ino, protection),
        )

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self.both(
            "setxattr",
            lambda: self.volume.setxattr(Ino(ino), name, value, flags),
            lambda: self.model.setxattr(ino, name, value, flags),
        )

    def removexattr(self, ino: int, name: bytes) -> None:
        self.both(
            "removexattr",
            lambda: self.volume.removexattr(Ino(ino), name),
            lambda: self.model.removexattr(ino, name),
        )

    def open(self, ino: int) -> Handle | None:
        opened: list[OpenFile] = []
        self.both(
            "open",
            lambda: opened.append(self.volume.open_file(Ino(ino), write=True)),
            lambda: self.model.open(ino),
        )
        if not opened:
            return None
        self.handles.append(Handle(ino, opened[0]))
        return self.handles[-1]

    def close(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self.both("close", handle.file.close, lambda: self.model.close(handle.ino))

    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        self.both("write", lambda: handle.file.write(offset, data), lambda: self.model.write(handle.ino, offset, data))

    def truncate(self, handle: Handle, size: int) -> None:
        self.both("truncate", lambda: handle.file.truncate(size), lambda: self.model.truncate(handle.ino, size))

    def punch(self, handle: Handle, offset: int, length: int) -> None:
        self.both(
            "punch", lambda: handle.file.punch(offset, length), lambda: self.model.punch(handle.ino, offset, length)
        )

    def hold(self, ino: int) -> None:
        self.both("hold", lambda: self.volume.hold(Ino(ino)), lambda: self.model.hold(ino))
        self.holds.append(ino)

    def drop(self, ino: int) -> None:
        self.holds.remove(ino)
        self.both("drop", lambda: self.volume.drop(Ino(ino)), lambda: self.model.drop(ino))

    def fsync(self, ino: int | None = None) -> None:
        self.both(
            "fsync",
            lambda: self.volume.fsync(None if ino is None else Ino(ino)),
            lambda: self.model.fsync(ino),
        )

    def commit(self) -> None:
        self.both("commit", self.volume.commit, self.model.commit)

    def close_all(self) -> None:
        while self.handles:
            self.close(self.handles[-1])
        while self.holds:
            self.drop(self.holds[-1])

    def forget_handles(self) -> None:
        """After a crash: nobody has anything open."""
        self.handles.clear()
        self.holds.clear()


NAMES = [b"a", b"b", b"c", b"d", b"e", "ümlaut".encode(), b"\xff\xfe", b"n" * 255]


def random_data(random: Random) -> bytes:
    length = random.choice((1, 100, 511, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 7, 9 * CHUNK))
    return random.choice((b"", b"", b"\0" * length)) or random.randbytes(length)


def random_offset(random: Random) -> int:
    return random.choice((0, 0, 1, CHUNK - 1, CHUNK, 3 * CHUNK, random.randrange(20 * CHUNK), 130 * CHUNK))


def random_step(pair: Pair, random: Random) -> None:
    """Do one operation that changes something, mostly with success."""
    number = random.randrange(1 << 30)
    new = (pair.directory(random.randrange(1 << 30)), random.choice(NAMES))
    match random.choices(range(16), (8, 3, 1, 3, 5, 2, 8, 4, 16, 4, 4, 3, 2, 6, 2, 1))[0]:
        case 0:
            pair.mknod(*new, 0o100644, uid=random.randrange(3))
        case 1:
            pair.mkdir(*new)
        case 2:
            pair.symlink(*new, random.randbytes(random.randrange(1, 60)).replace(b"\0", b"x"))
        case 3:
            pair.link(pair.inode(number, stat.S_IFREG), *new)
        case 4:
            pair.unlink(*pair.entry(number))
        case 5:
            pair.rmdir(*pair.entry(number))
        case 6:
            old, other = pair.entry(number), pair.entry(random.randrange(1 << 30))
            pair.rename(old, random.choice((new, new, other)), random.choice((0, 0, 0, 1, 2)))
        case 7:
            if len(pair.handles) < 6:
                pair.open(pair.inode(number, stat.S_IFREG))
        case 8 if pair.handles:
            pair.write(random.choice(pair.handles), random_offset(random), random_data(random))
        case 9 if pair.handles:
            pair.truncate(random.choice(pair.handles), random_offset(random))
        case 10 if pair.handles:
            pair.punch(random.choice(pair.handles), random_offset(random), random.choice((10, CHUNK, 5 * CHUNK)))
        case 11:
            ino = pair.inode(number)
            pair.setattr(ino, mode=random.randrange(0o1000), mtime_ns=random.randrange(-(10**18), 10**18))
        case 12:
            pair.setattr(pair.inode(number, stat.S_IFREG), size=random_offset(random))
        case 13 if pair.handles:
            pair.close(random.choice(pair.handles))
        case 14:
            pair.setxattr(pair.inode(number), b"user." + random.choice(NAMES)[:20], random.randbytes(50))
        case 15:
            pair.set_protection(pair.inode(number), random.randrange(2))
        case _:
            pair.mknod(*new, 0o100600)


def seed_of(name: str, default: int) -> int:
    """Read a seed from the environment, so that a failure can be repeated."""
    return int(os.environ.get(name, default))
