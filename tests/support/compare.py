"""Compare two directory trees in everything that a file system keeps, and say in words where they differ.

Only reads; walks by directory descriptor, so no depth and no name is too much. Times of access and change are not
compared: nobody can preserve them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

BLOCK: Final = 4096
_READ: Final = 1 << 20
_ZEROS: Final = bytes(_READ)
_IGNORED_XATTRS: Final = (b"security.selinux", b"system.")
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(slots=True)
class Entry:
    """What is compared of one name."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    allocated: int
    inode: tuple[int, int]
    links: int
    device: int = 0
    content: str = ""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def content_hash(fd: int) -> str:
    """Hash what an open file holds. Blocks of zeros count as holes, so only what is not zero costs time."""
    digest = hashlib.blake2b(digest_size=20)
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                break
            if exc.errno != errno.EINVAL:
                raise
            end = size
        at -= at % BLOCK
        while at < end:
            piece = os.pread(fd, min(_READ, size - at), at)
            if not piece:
                raise OSError(errno.EIO, f"the file ends at {at}, its size is {size}")
            if piece != _ZEROS[: len(piece)]:
                for low in range(0, len(piece), BLOCK):
                    block = piece[low : low + BLOCK]
                    if block.strip(b"\0"):
                        digest.update((at + low).to_bytes(8, "little") + block)
            at += len(piece)
    digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


def _xattrs(path: str | int | bytes, *, follow: bool) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return {}
        raise
    found = {}
    for name in map(os.fsencode, names):
        if not name.startswith(_IGNORED_XATTRS):
            found[name] = os.getxattr(path, name, follow_symlinks=follow)
    return found


def _entry(directory: int, name: bytes) -> Entry:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    entry = Entry(
        _KINDS.get(kind, oct(kind)),
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        status.st_size,
        status.st_blocks * 512,
        (status.st_dev, status.st_ino),
        status.st_nlink,
    )
    if kind in {stat.S_IFCHR, stat.S_IFBLK}:
        entry.device = status.st_rdev
    # Through /proc: xattr calls take no directory descriptor, and nothing may be opened that blocks or acts.
    here = b"/proc/self/fd/%d/%s" % (directory, name)
    entry.xattrs = _xattrs(here, follow=False)
    if kind == stat.S_IFLNK:
        entry.target = os.readlink(name, dir_fd=directory)
    elif kind == stat.S_IFREG:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            entry.content = content_hash(fd)
        except OSError as exc:  # a damaged file is a difference, not the end
            entry.content = f"unreadable: {exc}"
        finally:
            os.close(fd)
    return entry


def read_tree(root: str | bytes | os.PathLike[str]) -> dict[bytes, Entry]:
    """Read everything below *root*, by path relative to it; b"" is the root itself (its own mtime too)."""
    found: dict[bytes, Entry] = {}
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found[b""] = _entry(top, b".")
    finally:
        os.close(top)
    # One descriptor at a time: each directory is opened from its parent, which is remembered by a path in pieces.
    pending: list[list[bytes]] = [[]]
    while pending:
        parts = pending.pop()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for step in _steps(parts):
                below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            for name in map(os.fsencode, sorted(os.listdir(fd))):
                entry = found[b"/".join([*parts, name])] = _entry(fd, name)
                if entry.kind == "directory":
                    pending.append([*parts, name])
        finally:
            os.close(fd)
    return found


def _steps(parts: list[bytes]) -> Iterable[bytes]:
    """Join path components into as few relative paths as PATH_MAX allows."""
    step = b""
    for part in parts:
        if len(step) + len(part) > 3000:
            yield step
            step = part
        else:
            step = step + b"/" + part if step else part
    if step:
        yield step


def _show(path: bytes) -> str:
    text = ascii(os.fsdecode(path))[1:-1] or "."
    return text if len(text) <= 160 else f"{text[:70]}…{text[-80:]} ({len(path)} bytes)"


def _groups(tree: dict[bytes, Entry]) -> set[frozenset[bytes]]:
    groups: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, entry in tree.items():
        if entry.kind != "directory":
            groups[entry.inode].add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def _differences(path: bytes, one: Entry, two: Entry, ignore: frozenset[str], slack: float) -> Iterable[str]:
    where = _show(path)
    if one.kind != two.kind:
        yield f"{where}: {one.kind} expected, {two.kind} found"
        return
    if one.mode != two.mode and one.kind != "symlink" and "mode" not in ignore:
        yield f"{where}: mode {one.mode:04o} expected, {two.mode:04o} found"
    if one.owner != two.owner and "owner" not in ignore:
        yield f"{where}: owner {one.owner[0]}:{one.owner[1]} expected, {two.owner[0]}:{two.owner[1]} found"
    if one.mtime_ns != two.mtime_ns and "mtime" not in ignore:
        yield f"{where}: mtime {one.mtime_ns} ns expected, {two.mtime_ns} ns found ({two.mtime_ns - one.mtime_ns:+} ns)"
    if one.device != two.device:
        yield f"{where}: device {one.device:#x} expected, {two.device:#x} found"
    if one.target != two.target:
        yield f"{where}: target {_show(one.target)!r} expected, {_show(two.target)!r} found"
    if one.kind == "file":
        if one.size != two.size:
            yield f"{where}: size {one.size} expected, {two.size} found"
        elif one.content != two.content:
            yield f"{where}: other content{' (' + two.content + ')' if 'unreadable' in two.content else ''}"
        if "allocated" not in ignore and abs(one.allocated - two.allocated) > slack * one.allocated + (1 << 20):
            yield f"{where}: {one.allocated} bytes allocated, {two.allocated} found"
    if "xattrs" not in ignore:
        for name in sorted(one.xattrs.keys() | two.xattrs.keys()):
            if one.xattrs.get(name) != two.xattrs.get(name):
                sides = [_value(entry.xattrs.get(name)) for entry in (one, two)]
                yield f"{where}: xattr {_show(name)}: {sides[0]} expected, {sides[1]} found"


def _value(value: bytes | None) -> str:
    if value is None:
        return "none"
    return repr(value) if len(value) <= 24 else f"{len(value)} bytes {value[:12]!r}…"


def compare(
    expected: str | bytes | os.PathLike[str] | dict[bytes, Entry],
    actual: str | bytes | os.PathLike[str] | dict[bytes, Entry],
    *,
    ignore: Iterable[str] = (),
    slack: float = 0.1,
) -> list[str]:
    """List the differences, one line each, sorted by path; empty if the trees are equal.

    Args:
        expected, actual: Directories, or what `read_tree` made of them.
        ignore: Any of mode, owner, mtime, xattrs, allocated, links.
        slack: How far the allocated size may differ, besides 1 MiB: file systems count differently.
    """
    ignored = frozenset(ignore)
    assert ignored <= {"mode", "owner", "mtime", "xattrs", "allocated", "links"}, ignored
    one = expected if isinstance(expected, dict) else read_tree(expected)
    two = actual if isinstance(actual, dict) else read_tree(actual)
    found: list[str] = []
    for path in sorted(one.keys() | two.keys()):
        if path not in two:
            found.append(f"{_show(path)}: {one[path].kind} missing")
        elif path not in one:
            found.append(f"{_show(path)}: {two[path].kind} not expected")
        else:
            found += _differences(path, one[path], two[path], ignored, slack)
    if "links" not in ignored:
        before, after = _groups(one), _groups(two)
        found += [f"hard links missing: {_names(group)}" for group in sorted(before - after, key=sorted)]
        found += [f"hard links not expected: {_names(group)}" for group in sorted(after - before, key=sorted)]
    return found


def _names(group: frozenset[bytes]) -> str:
    names = [_show(path) for path in sorted(group)]
    return " = ".join(names[:5]) + (f" = … ({len(names)} names)" if len(names) > 5 else "")


def assert_same(
    expected: str | bytes | os.PathLike[str] | dict[bytes, Entry],
    actual: str | bytes | os.PathLike[str] | dict[bytes, Entry],
    *,
    ignore: Iterable[str] = (),
    slack: float = 0.1,
) -> None:
    """Raise AssertionError with the first 40 differences."""
    found = compare(expected, actual, ignore=ignore, slack=slack)
    if found:
        raise AssertionError(
            "\n".join([f"{len(found)} differences:", *found[:40], *(["…"] if len(found) > 40 else [])])
        )
