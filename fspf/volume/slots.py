"""Follow content trees to their slots, to see that no slot belongs to two of them.

That the content is right is `Tree.verify`'s business; this looks at where it lies.
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fspf.core.errors import WrongKeyError
from fspf.core.types import HOLE, POINTER_LEN, ContentRoot
from fspf.volume.layout import Layout
from fspf_native import AuthenticationError, open_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fspf.volume.volume import Volume
    from fspf_native import SecretKey

# FORMAT.md 6: slot in 5 bytes, epoch in 3, counter, tag.
_POINTER: Final = struct.Struct("<IBHBQ16s")
assert _POINTER.size == POINTER_LEN
_MAX_CONFLICTS: Final = 100
_MAX_FILES: Final = 64  # segments kept open


class SlotMap:
    """Which slots are reached so far. Thread-safe.

    Attributes:
        conflicts: (slot, what is wrong with it), at most 100.
        used: Number of slots reached.
        lock: Guards everything here.
    """

    def __init__(self, end_of_slots: int) -> None:
        self._bits = bytearray((end_of_slots >> 3) + 1)
        self._end = end_of_slots
        self.conflicts: list[tuple[int, str]] = []
        self.used = 0
        self.lock = threading.Lock()
        self._nodes: _Nodes | None = None

    def add(self, volume: Volume, root: ContentRoot, what: str, protection: int = 0) -> None:
        """Mark all that the tree at *root* reaches. Below a node that cannot be opened nothing is marked."""
        if root.pointer == HOLE:
            return
        with self.lock:
            if self._nodes is None:
                self._nodes = _Nodes(volume)
            self._mark(self._nodes, root.pointer, root.depth, what, protection)

    def _mark(self, nodes: _Nodes, pointers: bytes, depth: int, what: str, protection: int) -> None:
        bits, end = self._bits, self._end
        for low, high, epoch_low, epoch_high, counter, tag in _POINTER.iter_unpack(pointers):
            epoch = epoch_low | epoch_high << 16
            if not epoch:  # a hole: the first epoch is 1
                continue
            slot = low | high << 32
            if slot >= end:
                self._conflict(slot, f"slot {slot} of {what} lies behind the end of all slots, {end}")
                continue
            mask = 1 << (slot & 7)
            if bits[slot >> 3] & mask:
                self._conflict(slot, f"slot {slot} is used by {what} and by something else")
                continue
            bits[slot >> 3] |= mask
            self.used += 1
            if depth:
                try:
                    node = nodes.open(slot, epoch, counter, tag, protection)
                except (AuthenticationError, OSError, KeyError):
                    continue  # Tree.verify has said so
                self._mark(nodes, node, depth - 1, what, protection)

    def _conflict(self, slot: int, text: str) -> None:
        if len(self.conflicts) < _MAX_CONFLICTS:
            self.conflicts.append((slot, text))

    def close(self) -> None:
        """Close the segments."""
        if self._nodes is not None:
            self._nodes.close()


class _Nodes:
    """Reads and opens single nodes."""

    def __init__(self, volume: Volume) -> None:
        self._segments = Layout(volume.path).segments
        self._chunk_size = volume.header.chunk_size
        self._segment_slots = volume.header.segment_slots
        self._keys = dict(_epoch_keys(volume))
        self._files: dict[int, int] = {}

    def open(self, slot: int, epoch: int, counter: int, tag: bytes, protection: int) -> bytes:
        segment, place = divmod(slot, self._segment_slots)
        sealed = os.pread(self._file(segment), self._chunk_size, place * self._chunk_size)
        if len(sealed) != self._chunk_size:
            raise AuthenticationError
        plain = bytearray(self._chunk_size)
        open_chunks(self._keys[epoch], counter, sealed, tag, plain, self._chunk_size, protection)
        return bytes(plain)

    def _file(self, segment: int) -> int:
        fd = self._files.get(segment)
        if fd is None:
            if len(self._files) >= _MAX_FILES:
                self.close()
            fd = os.open(self._segments / f"{segment:08x}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._files[segment] = fd
        return fd

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def _epoch_keys(volume: Volume) -> Iterator[tuple[int, SecretKey]]:
    keyring = Layout(volume.path).read_keyring()
    for epoch, entry in keyring.of_version(volume.record.key_version).items():
        with suppress(WrongKeyError):  # a forged one that the state does not need: opening has said so
            yield epoch, entry.unwrap(volume.record.key, volume.header.volume_id)
