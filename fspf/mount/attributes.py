"""Translate the volume's attributes into pyfuse3's, and the rules of POSIX about mode bits that FUSE leaves to us.

Which operation needs which rule is left to `operations`.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

import pyfuse3
from pyfuse3 import EntryAttributes, StatvfsData

if TYPE_CHECKING:
    from fspf.volume.inodes import Attr, StatFs

CACHE_S: Final = 3600.0  # we are the only writer: what the kernel knows stays true
# A thread that asked for a directory's attributes may take them over after another thread changed it. The data plane
# notices (DATAPLANE.md); without it they are soon asked for again.
SHORT_CACHE_S: Final = 1.0
PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID
BLOCK_SIZE: Final = 4096  # bytes; st_blksize


def entry_attributes(attr: Attr) -> EntryAttributes:
    """Return *attr* as the kernel wants it."""
    entry = EntryAttributes()
    entry.st_ino = attr.ino
    mode = attr.mode
    entry.st_mode = mode
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_rdev = attr.rdev
    entry.st_size = attr.size
    entry.st_blocks = attr.blocks
    entry.st_blksize = BLOCK_SIZE
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    entry.entry_timeout = CACHE_S
    # A write drops these bits when it reaches us, not when the kernel caches it: never let it trust an old mode.
    entry.attr_timeout = 0.0 if mode & PRIVILEGES and stat.S_ISREG(mode) else CACHE_S
    return entry


def absent_entry() -> EntryAttributes:
    """Return the answer that lets the kernel remember that a name does not exist."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_S
    return entry


def statvfs_data(space: StatFs) -> StatvfsData:
    """Return *space* as the kernel wants it."""
    data = StatvfsData()
    data.f_bsize = data.f_frsize = space.block_size
    data.f_blocks, data.f_bfree, data.f_bavail = space.blocks, space.free, space.available
    data.f_files, data.f_ffree, data.f_favail = space.files, space.files_free, space.files_free
    data.f_namemax = space.name_max
    return data


def in_group(pid: int, gid: int, group: int) -> bool:
    """Tell whether process *pid*, running as *gid*, belongs to *group*."""
    if gid == group:
        return True
    try:
        return group in pyfuse3.get_sup_groups(pid)
    except (OSError, RuntimeError):  # gone, or of another pid namespace
        return False


def without_privileges(mode: int, *, keeps_group: bool) -> int:
    """Drop what a write, a truncation or a change of owner takes from a file.

    Args:
        mode: Of a file that is no directory.
        keeps_group: The caller belongs to the file's group, or is root; a set-group-id bit without group execution
            then stays, for it marks mandatory locking.
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not keeps_group):
        mode &= ~stat.S_ISGID
    return mode
