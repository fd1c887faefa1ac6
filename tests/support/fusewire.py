"""The messages of /dev/fuse as a kernel builds and reads them: numbers and structures of <linux/fuse.h> 7.45.

Who sends them, and what is counted, is `fakekernel`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final


class Op(IntEnum):
    """Opcodes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Flag(IntFlag):
    """Flags of INIT; from bit 32 on they travel in flags2."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


LINUX_6_18: Final = Flag(sum(Flag)) & ~Flag.OVER_IO_URING  # what that kernel offers; rings only when root lets it
MINOR: Final = 45

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("<IiQ")
ATTR: Final = struct.Struct("<6Q10I")
ENTRY_HEAD: Final = struct.Struct("<4Q2I")
ENTRY_LEN: Final = ENTRY_HEAD.size + ATTR.size
ATTR_HEAD: Final = struct.Struct("<QII")
INIT_IN: Final = struct.Struct("<5I44x")
INIT_OUT: Final = struct.Struct("<4I2HII2HI28x")
GETATTR_IN: Final = struct.Struct("<IIQ")
SETATTR_IN: Final = struct.Struct("<II6Q8I")
MKNOD_IN: Final = struct.Struct("<IIII")
MKDIR_IN: Final = struct.Struct("<II")
RENAME_IN: Final = struct.Struct("<Q")
RENAME2_IN: Final = struct.Struct("<QII")
LINK_IN: Final = struct.Struct("<Q")
OPEN_IN: Final = struct.Struct("<II")
CREATE_IN: Final = struct.Struct("<IIII")
OPEN_OUT: Final = struct.Struct("<QII")
RELEASE_IN: Final = struct.Struct("<QIIQ")
FLUSH_IN: Final = struct.Struct("<QIIQ")
READ_IN: Final = struct.Struct("<QQIIQII")
WRITE_IN: Final = struct.Struct("<QQIIQII")
WRITE_OUT: Final = struct.Struct("<II")
STATFS_OUT: Final = struct.Struct("<5Q4I24x")
FSYNC_IN: Final = struct.Struct("<QII")
SETXATTR_IN: Final = struct.Struct("<II")  # without SETXATTR_EXT
GETXATTR_IN: Final = struct.Struct("<II")
FORGET_IN: Final = struct.Struct("<Q")
FORGET_ONE: Final = struct.Struct("<QQ")
BATCH_FORGET_IN: Final = struct.Struct("<II")
INTERRUPT_IN: Final = struct.Struct("<Q")
FALLOCATE_IN: Final = struct.Struct("<QQQII")
LSEEK_IN: Final = struct.Struct("<QQII")
LSEEK_OUT: Final = struct.Struct("<Q")
COPY_IN: Final = struct.Struct("<7Q")
DIRENT: Final = struct.Struct("<QQII")
STATX_IN: Final = struct.Struct("<IIQII")

assert (IN_HEADER.size, OUT_HEADER.size, ATTR.size, ENTRY_LEN, INIT_IN.size, INIT_OUT.size) == (40, 16, 88, 128, 64, 64)
assert (SETATTR_IN.size, READ_IN.size, WRITE_IN.size, STATFS_OUT.size) == (88, 40, 40, 80)

WRITE_CACHE: Final = 1  # write_flags: from the page cache
WRITE_KILL_SUIDGID: Final = 4
FATTR_MODE: Final = 1
FATTR_UID: Final = 2
FATTR_GID: Final = 4
FATTR_SIZE: Final = 8
FATTR_ATIME: Final = 16
FATTR_MTIME: Final = 32
FATTR_CTIME: Final = 1 << 10

MAKES_ENTRY: Final = frozenset(
    {Op.LOOKUP, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.LINK, Op.CREATE, Op.TMPFILE}
)  # a successful reply counts as a lookup
NO_REPLY: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})


@dataclass(frozen=True, slots=True)
class Attr:
    """fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int

    @classmethod
    def parse(cls, raw: bytes) -> Attr:
        f = ATTR.unpack(raw)
        seconds = [s - (1 << 64) if s >> 63 else s for s in f[3:6]]
        times = [s * 10**9 + n for s, n in zip(seconds, f[6:9], strict=True)]
        return cls(f[0], f[1], f[2], *times, *f[9:15])

    def pack(self) -> bytes:
        times = [divmod(t, 10**9) for t in (self.atime_ns, self.mtime_ns, self.ctime_ns)]
        return ATTR.pack(
            self.ino,
            self.size,
            self.blocks,
            *(s & (1 << 64) - 1 for s, _ in times),
            *(n for _, n in times),
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.blksize,
            0,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """fuse_entry_out; an inode number of 0 says that the name is known not to exist."""

    ino: int
    entry_valid: int
    attr_valid: int
    attr: Attr

    @classmethod
    def parse(cls, raw: bytes) -> Entry:
        head = ENTRY_HEAD.unpack_from(raw)
        return cls(head[0], head[2], head[3], Attr.parse(raw[ENTRY_HEAD.size : ENTRY_LEN]))


@dataclass(frozen=True, slots=True)
class Name:
    """One entry of a directory, as READDIR and READDIRPLUS tell it."""

    ino: int
    offset: int
    kind: int
    name: bytes
    entry: Entry | None


def parse_names(raw: bytes, *, plus: bool) -> list[Name]:
    """Take the reply of READDIR(PLUS) apart; what does not fit together is an AssertionError."""
    names: list[Name] = []
    at = 0
    head = ENTRY_LEN if plus else 0
    while at < len(raw):
        entry = Entry.parse(raw[at : at + ENTRY_LEN]) if plus else None
        ino, offset, length, kind = DIRENT.unpack_from(raw, at + head)
        start = at + head + DIRENT.size
        name = raw[start : start + length]
        assert len(name) == length, "an entry that goes beyond the reply"
        assert name, "a name without a letter"
        names.append(Name(ino, offset, kind, name, entry))
        at = (start + length + 7) & ~7
    assert at == len(raw), f"{len(raw)} bytes of entries end at {at}"
    return names


def request(opcode: int, unique: int, nodeid: int, body: bytes, *, uid: int = 0, gid: int = 0, pid: int = 1) -> bytes:
    """Return a whole message of the kernel's."""
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, nodeid, uid, gid, pid, 0, 0) + body


def reply(unique: int, error: int = 0, body: bytes = b"") -> bytes:
    """Return a whole message to the kernel; *error* is a positive errno or 0."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), -error, unique) + body
