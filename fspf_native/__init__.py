"""The C library of FSPF: sealing, content trees, slots.

What it offers is described in `_native.pyi`; it holds no policy and knows no names.
"""

from __future__ import annotations

from fspf_native._native import (
    AUTHENTICATED,
    ENCRYPTED,
    HOLE,
    AuthenticationError,
    ChunkError,
    Relay,
    SecretKey,
    Store,
    Tree,
    open_chunks,
    seal_chunks,
    xxh3,
)

ContentRoot = tuple[int, int, bytes]  # (size in bytes, depth, 32-byte pointer)
# The columns of the namespace's inode table, in their order.
InodeRow = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, bytes | None, int, int | None, bytes | None
]
# Rows and (parent, cookie, name, ino) to be stored, (parent, cookie) to be removed, (ino, perhaps has xattrs) to be
# deleted, change of files and bytes, next free numbers, inodes whose content root is a new one. Captured: size, least
# size that it was cut to or None, (offset, data, ...).
Drained = tuple[
    list[InodeRow],
    list[tuple[int, int, bytes, int]],
    list[tuple[int, int]],
    list[tuple[int, bool]],
    int,
    int,
    int,
    int,
    list[int],
]
LaneEnd = tuple[
    tuple[
        int, int, int, bytes, int, int, bytes, int, int, int
    ],  # outcome, errno, generation, tag, end of the log, anchor's
    # generation and tag, generation up to which the log was synced, records written, when the CAS was reached
    tuple[
        int, int, int, int, list[tuple[int, int, int]]
    ],  # of the ring: version, end of the lease, end, newest, records kept
    list[int],  # inodes whose contents are in records
]
Captured = tuple[int, int | None, tuple[int | bytes, ...]]

__all__ = [
    "AUTHENTICATED",
    "ENCRYPTED",
    "HOLE",
    "AuthenticationError",
    "Captured",
    "ChunkError",
    "ContentRoot",
    "Drained",
    "InodeRow",
    "LaneEnd",
    "Relay",
    "SecretKey",
    "Store",
    "Tree",
    "open_chunks",
    "seal_chunks",
    "xxh3",
]
