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
    SecretKey,
    Store,
    Tree,
    open_chunks,
    seal_chunks,
    xxh3,
)

ContentRoot = tuple[int, int, bytes]  # (size in bytes, depth, 32-byte pointer)

__all__ = [
    "AUTHENTICATED",
    "ENCRYPTED",
    "HOLE",
    "AuthenticationError",
    "ChunkError",
    "ContentRoot",
    "SecretKey",
    "Store",
    "Tree",
    "open_chunks",
    "seal_chunks",
    "xxh3",
]
