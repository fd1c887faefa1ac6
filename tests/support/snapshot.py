"""Everything that system calls tell of a tree, to be compared with what they tell later, or elsewhere.

Unlike compare.py it keeps what only the same file system can give again: inode numbers, link counts, times of change,
access lists, the space taken. Reading changes access times, which are left out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Seen:
    """One name. `content`: hash of a file's data, a link's target, or a directory's names."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: bytes


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))


def extents(descriptor: int) -> list[tuple[int, int]]:
    """Return where an open file has data: begin and end of each stretch."""
    found: list[tuple[int, int]] = []
    at = 0
    while True:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return found
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, at))


def _content(path: bytes, size: int) -> bytes:
    """Hash what is not a hole and not zero, with where it is."""
    digest = hashlib.blake2b(digest_size=16)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        for begin, end in extents(descriptor):
            at = begin - begin % BLOCK
            while at < end:
                piece = os.pread(descriptor, min(_PIECE, size - at), at)
                assert piece, f"{path!r} ends at {at} instead of {size}"
                for low in range(0, len(piece), BLOCK):
                    block = piece[low : low + BLOCK]
                    if block.strip(b"\0"):
                        digest.update((at + low).to_bytes(8, "little") + block)
                at += len(piece)
    finally:
        os.close(descriptor)
    return digest.digest()


def snapshot(root: Path) -> dict[bytes, Seen]:
    """Look at all that is below *root*, and at it itself as b"."."""
    found: dict[bytes, Seen] = {}
    top = os.fsencode(root)
    waiting = [b"."]
    while waiting:
        name = waiting.pop()
        path = os.path.join(top, name)
        info = os.lstat(path)
        content = b""
        if stat.S_ISDIR(info.st_mode):
            names = sorted(os.listdir(path))
            waiting += [os.path.join(name, below) if name != b"." else below for below in names]
            content = b"\0".join(names)
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            content = _content(path, info.st_size)
        found[name] = Seen(
            info.st_ino, info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_rdev, info.st_size,
            info.st_blocks, info.st_mtime_ns, info.st_ctime_ns, _xattrs(path), content,
        )  # fmt: skip
    return found


def differences(one: dict[bytes, Seen], other: dict[bytes, Seen], *ignored: str) -> list[str]:
    """List what differs, one line each."""
    lines = []
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if left is None or right is None:
            lines.append(f"{name!r} is only {'there' if left is None else 'here'}: {left or right}")
            continue
        lines += [
            f"{name!r}: {field.name} {getattr(left, field.name)!r}, {getattr(right, field.name)!r}"
            for field in fields(Seen)
            if field.name not in ignored and getattr(left, field.name) != getattr(right, field.name)
        ]
    return lines


def space_problems(root: Path) -> list[str]:
    """Compare the space that files say they take with where they have data."""
    problems = []
    for name, seen in snapshot(root).items():
        if stat.S_ISREG(seen.mode):
            descriptor = os.open(os.path.join(os.fsencode(root), name), os.O_RDONLY)
            try:
                data = sum(-(-end // BLOCK) - begin // BLOCK for begin, end in extents(descriptor)) * BLOCK
            finally:
                os.close(descriptor)
            if data != seen.blocks * 512:
                problems.append(f"{name!r}: {seen.blocks * 512} bytes taken, {data} of data")
    return problems
