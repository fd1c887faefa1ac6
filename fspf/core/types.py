"""The units that FSPF counts in, as types.

What they look like on disk is in `fspf.core.format`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, NewType

Ino = NewType("Ino", int)  # inode number within one volume; the root directory is 1
Generation = NewType("Generation", int)  # number of commits in a volume's life; 0 = never written
Epoch = NewType("Epoch", int)  # one writing session with its own key; the CAS's fencing token
Slot = NewType("Slot", int)  # place of one chunk in the segments
ChunkIndex = NewType("ChunkIndex", int)  # 0-based, within one file
PlainOffset = NewType("PlainOffset", int)  # bytes, as the application sees the file
SealedOffset = NewType("SealedOffset", int)  # bytes, as the host sees the file
Tag = NewType("Tag", bytes)  # 16-byte AES-GCM tag; never called a hash
VolumeId = NewType("VolumeId", bytes)  # 16 random bytes; public

ROOT_INO: Final = Ino(1)
TAG_LEN: Final = 16
VOLUME_ID_LEN: Final = 16
POINTER_LEN: Final = 32
HOLE: Final = bytes(POINTER_LEN)
NO_TAG: Final = Tag(bytes(TAG_LEN))  # instead of the tag of a record that does not exist
MAX_EPOCH: Final = Epoch(2**24 - 1)  # FORMAT.md 3: three bytes in a pointer


class Protection(IntEnum):
    """What a region's content gets. The numbers are those of `fspf_native` and of the namespace."""

    ENCRYPTED = 0
    AUTHENTICATED = 1


class ContentRoot(NamedTuple):
    """Where a content tree starts: all that is needed to read and verify it."""

    size: int  # bytes
    depth: int  # levels of nodes above the chunks
    pointer: bytes  # 32 bytes; zeros = hole


EMPTY_ROOT: Final = ContentRoot(0, 0, HOLE)
