"""Which slots a committed state reaches, found without the store: the truth that its bitmap is compared with."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from fspf.core.format import Keyring, RootFrame, RootRecord
from fspf.core.types import HOLE, ContentRoot
from fspf.volume.layout import Layout
from fspf.volume.namespace import Namespace
from fspf.volume.volume import Volume
from fspf_native import SecretKey, Store, Tree, open_chunks

_POINTER = struct.Struct("<5s3sQ16s")  # FORMAT.md 6


class Truth:
    """Reads nodes of one volume directory with the keys that an open volume has."""

    def __init__(self, volume: Volume) -> None:
        self._layout = Layout(volume.path)
        self._header = volume.header
        self._header_bytes = self._layout.read_header()[1]
        self._key: SecretKey = volume.record.key
        copies = [(volume.path / name).read_bytes() for name in ("keyring", "keyring.bak")]
        records = Keyring.parse(*copies).of_version(volume.record.key_version)
        self._keys = {epoch: record.unwrap(self._key, volume.header.volume_id) for epoch, record in records.items()}

    def newest(self) -> RootRecord:
        """Return the newest root record that opens."""
        found = []
        for raw in self._layout.read_roots().values():
            if isinstance(raw, bytes) and any(raw):
                try:
                    found.append(RootFrame.parse(raw).open(self._key, self._header_bytes))
                except Exception:  # noqa: BLE001  # torn by the crash before
                    continue
        return max(found, key=lambda record: record.generation)

    def _slots(self, root: ContentRoot, protection: int = 0) -> Iterator[int]:
        if root.pointer != HOLE:
            yield from self._below(root.pointer, root.depth, protection)

    def _below(self, pointers: bytes, depth: int, protection: int) -> Iterator[int]:
        for raw_slot, raw_epoch, counter, tag in _POINTER.iter_unpack(pointers):
            epoch = int.from_bytes(raw_epoch, "little")
            if not epoch:
                continue
            slot = int.from_bytes(raw_slot, "little")
            yield slot
            if depth:
                yield from self._below(self._open(slot, epoch, counter, tag, protection), depth - 1, protection)

    def _open(self, slot: int, epoch: int, counter: int, tag: bytes, protection: int) -> bytes:
        size = self._header.chunk_size
        segment, place = divmod(slot, self._header.segment_slots)
        with (self._layout.segments / f"{segment:08x}").open("rb") as file:
            sealed = os.pread(file.fileno(), size, place * size)
        plain = bytearray(size)
        open_chunks(self._keys[epoch], counter, sealed, tag, plain, size, protection)
        return bytes(plain)

    def reached(self, record: RootRecord) -> list[int]:
        """Return the slots of namespace and files, sorted; one that is reached twice is there twice."""
        found = list(self._slots(record.namespace))
        store = self._store()
        try:
            namespace = Namespace.open(
                Tree(store, record.namespace, metadata=True),
                chunk_size=self._header.chunk_size,
                read_only=True,
                cache_bytes=1 << 20,
            )
            try:
                for _, root, protection in namespace.contents():
                    found += self._slots(root, protection)
            finally:
                namespace.close()
        finally:
            store.close()
        return sorted(found)

    def mapped(self, record: RootRecord) -> list[int]:
        """Return the slots that the saved space map says are in use, sorted."""
        assert record.space_map is not None
        store = self._store()
        try:
            bits = Tree(store, record.space_map, metadata=True).read(0, record.space_map.size)
        finally:
            store.close()
        return [index * 8 + bit for index, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]

    def _store(self) -> Store:
        store = Store(
            str(self._layout.segments),
            chunk_size=self._header.chunk_size,
            segment_slots=self._header.segment_slots,
        )
        for epoch, key in self._keys.items():
            store.add_epoch(epoch, key)
        return store


def slot_problems(volume_closed_cleanly: Volume) -> list[str]:
    """Compare the map that a clean close saved with what is reachable."""
    truth = Truth(volume_closed_cleanly)
    record = truth.newest()
    if record.space_map is None:
        return ["a clean close saved no space map"]
    reached, mapped = truth.reached(record), truth.mapped(record)
    problems = []
    twice = sorted({a for a, b in itertools.pairwise(reached) if a == b})
    if twice:
        problems.append(f"slots reached twice: {twice[:8]}")
    if missing := sorted(set(reached) - set(mapped)):
        problems.append(f"{len(missing)} slots in use are free in the map: {missing[:8]}")
    if leaked := sorted(set(mapped) - set(reached)):
        problems.append(f"{len(leaked)} slots are leaked: {leaked[:8]} of {len(mapped)}")
    if reached and record.end_of_slots <= reached[-1]:
        problems.append(f"slot {reached[-1]} is not below end_of_slots {record.end_of_slots}")
    return problems


def segment_files(volume_path: Path) -> int:
    return len(list((volume_path / "segments").iterdir()))
