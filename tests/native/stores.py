"""Stores and trees for the tests of `fspf_native`, and a reader of segments that shares no code with it.

The reader opens blocks with `cryptography`, so what it says about a volume is a second opinion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fspf_native import ContentRoot, SecretKey, Store, Tree

KEY = bytes(range(32))
EPOCH = 1
EMPTY: ContentRoot = (0, 0, bytes(32))
POINTER_LEN = 32
TAG_LEN = 16
ENTRY_LEN = 16


@dataclass(frozen=True, slots=True)
class Pointer:
    slot: int
    epoch: int
    counter: int
    tag: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Pointer:
        return cls(
            int.from_bytes(raw[:5], "little"),
            int.from_bytes(raw[5:8], "little"),
            int.from_bytes(raw[8:16], "little"),
            raw[16:],
        )


@dataclass(slots=True)
class Disk:
    """A segments directory, and how to make sense of it without the native code."""

    path: Path
    chunk_size: int = 4096
    segment_slots: int = 64
    key: bytes = KEY
    keys: dict[int, bytes] = field(default_factory=dict)

    def store(
        self,
        *,
        epoch: int = EPOCH,
        writable: bool = True,
        start: bool = True,
        cache_bytes: int = 1 << 20,
        max_slots: int = 0,
        reserve_slots: int = 512,
    ) -> Store:
        """A store with a fresh epoch, all earlier ones readable."""
        store = Store(
            self.path,
            chunk_size=self.chunk_size,
            segment_slots=self.segment_slots,
            writable=writable,
            cache_bytes=cache_bytes,
            max_slots=max_slots,
            reserve_slots=reserve_slots,
        )
        for number, key in self.keys.items():
            store.add_epoch(number, SecretKey.from_bytes(key))
        if writable:
            self.keys[epoch] = bytes(byte ^ epoch & 0xFF for byte in self.key)
            store.begin_epoch(epoch, SecretKey.from_bytes(self.keys[epoch]))
            if start:
                store.start_empty()
        return store

    @property
    def arity(self) -> int:
        return self.chunk_size // POINTER_LEN

    def segment_of(self, slot: int) -> Path:
        return self.path / f"{slot // self.segment_slots:08x}"

    def slot_offset(self, slot: int) -> int:
        return slot % self.segment_slots * self.chunk_size

    def entry_offset(self, slot: int) -> int:
        return self.segment_slots * self.chunk_size + slot % self.segment_slots * ENTRY_LEN

    def read_slot(self, slot: int) -> bytes:
        with self.segment_of(slot).open("rb") as file:
            return os.pread(file.fileno(), self.chunk_size, self.slot_offset(slot))

    def write_slot(self, slot: int, data: bytes | bytearray) -> None:
        with self.segment_of(slot).open("r+b") as file:
            os.pwrite(file.fileno(), data, self.slot_offset(slot))

    def read_entry(self, slot: int) -> bytes:
        with self.segment_of(slot).open("rb") as file:
            return os.pread(file.fileno(), ENTRY_LEN, self.entry_offset(slot))

    def write_entry(self, slot: int, data: bytes) -> None:
        with self.segment_of(slot).open("r+b") as file:
            os.pwrite(file.fileno(), data, self.entry_offset(slot))

    def seal_entry(self, slot: int, epoch: int, counter: int) -> None:
        """Make the entry say that the slot is whole, as an attacker would."""
        checksum = xxhash.xxh3_64_intdigest(self.read_slot(slot))
        self.write_entry(
            slot, checksum.to_bytes(8, "little") + epoch.to_bytes(3, "little") + counter.to_bytes(5, "little")
        )

    def open_block(self, pointer: Pointer, protection: int = 0) -> bytes:
        """FORMAT.md 6, said again."""
        sealed = self.read_slot(pointer.slot)
        nonce = pointer.counter.to_bytes(8, "little") + bytes(4)
        cipher = AESGCM(self.keys[pointer.epoch])
        if protection:
            cipher.decrypt(nonce, pointer.tag, sealed)
            return sealed
        return cipher.decrypt(nonce, sealed + pointer.tag, None)

    def blocks(self, root: ContentRoot, protection: int = 0) -> Iterator[tuple[int, int, Pointer, bytes]]:
        """Every block that a root reaches: (level, index, pointer, plaintext)."""
        yield from self._blocks(root[1], 0, root[2], protection)

    def _blocks(self, level: int, index: int, raw: bytes, protection: int) -> Iterator[tuple[int, int, Pointer, bytes]]:
        if not any(raw):
            return
        pointer = Pointer.parse(raw)
        plain = self.open_block(pointer, protection)
        yield level, index, pointer, plain
        for child in range(self.arity if level else 0):
            start = child * POINTER_LEN
            yield from self._blocks(
                level - 1, index * self.arity + child, plain[start : start + POINTER_LEN], protection
            )

    def slots(self, root: ContentRoot, protection: int = 0) -> set[int]:
        return {pointer.slot for _, _, pointer, _ in self.blocks(root, protection)}

    def content(self, root: ContentRoot, protection: int = 0) -> bytes:
        out = bytearray(-(-root[0] // self.chunk_size) * self.chunk_size)
        for level, index, _, plain in self.blocks(root, protection):
            if level == 0:
                out[index * self.chunk_size : (index + 1) * self.chunk_size] = plain
        assert not any(out[root[0] :]), "bytes beyond the size are zero"
        return bytes(out[: root[0]])


def commit(store: Store, *trees: Tree) -> list[ContentRoot]:
    """Flush, sync and anchor."""
    roots = [tree.flush() for tree in trees]
    number = store.commit_begin()
    store.sync()
    store.commit_anchored(number)
    return roots
