"""Take a volume apart: which slot holds which block of what, found by following pointers from the anchored root.

Independent of the native trees and stores on purpose; only single blocks are opened with native code. It trusts the
volume that it is given: what is altered later is compared with it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from fspf.core.format import ROOT_NAMES, Header, Keyring, RootFrame, RootRecord
from fspf_native import open_chunks
from tools.lib.tampering.fields import ENTRY_LEN

if TYPE_CHECKING:
    from fspf.core.anchor import CasRecord
    from fspf.core.types import ContentRoot
    from fspf_native import SecretKey

NAMESPACE: Final = "namespace"
SPACE_MAP: Final = "map"
_POINTER_LEN: Final = 32
_S_IFREG: Final = stat.S_IFREG


@dataclass(frozen=True, slots=True)
class Block:
    """One sealed block and what it is for."""

    tree: str  # NAMESPACE, SPACE_MAP or "ino N"
    kind: str  # "file chunk", "authenticated leaf node", "namespace inner node", …
    level: int  # 0: chunk
    offset: int  # plain bytes of the tree that are lost without it
    length: int
    slot: int
    nonce: tuple[int, int]  # epoch, counter
    sealed: bytes
    entry: bytes  # of the checksum table


@dataclass(slots=True)
class Anatomy:
    """A volume, taken apart."""

    path: Path
    header: Header
    state: RootRecord
    newest_root: str  # file name
    older_root: str
    epochs: int  # keyring records
    sizes: dict[str, int] = field(default_factory=dict)  # of each tree
    blocks: list[Block] = field(default_factory=list)
    inodes: dict[int, tuple[int, int]] = field(default_factory=dict)  # ino -> mode, size

    def segment_of(self, slot: int) -> str:
        return f"segments/{slot // self.header.segment_slots:08x}"

    def slot_offset(self, slot: int) -> int:
        return (slot % self.header.segment_slots) * self.header.chunk_size

    def entry_offset(self, slot: int) -> int:
        return self.header.segment_slots * self.header.chunk_size + (slot % self.header.segment_slots) * ENTRY_LEN

    @property
    def segment_length(self) -> int:
        return self.header.segment_slots * (self.header.chunk_size + ENTRY_LEN)

    def kinds(self) -> dict[str, list[Block]]:
        """Return the blocks by kind, in the order of their trees."""
        found: dict[str, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(block.kind, []).append(block)
        return found


class _Dissector:
    def __init__(self, anatomy: Anatomy, keys: dict[int, SecretKey]) -> None:
        self._anatomy = anatomy
        self._keys = keys
        self._files: dict[str, bytes] = {}

    def tree(self, name: str, kind: str, root: ContentRoot, protection: int) -> dict[int, bytes]:
        """Follow one tree; returns its plain chunks by index, holes left out."""
        self._anatomy.sizes[name] = root.size
        chunks: dict[int, bytes] = {}
        if any(root.pointer):
            self._follow(name, kind, root.pointer, root.depth, 0, root.size, protection, chunks)
        return chunks

    def _follow(
        self,
        name: str,
        kind: str,
        pointer: bytes,
        level: int,
        index: int,
        size: int,
        protection: int,
        chunks: dict[int, bytes],
    ) -> None:
        header = self._anatomy.header
        arity = header.chunk_size // _POINTER_LEN
        slot = int.from_bytes(pointer[:5], "little")
        epoch = int.from_bytes(pointer[5:8], "little")
        counter = int.from_bytes(pointer[8:16], "little")
        sealed, entry = self._read(slot)
        plain = bytearray(header.chunk_size)
        open_chunks(self._keys[epoch], counter, sealed, pointer[16:], plain, header.chunk_size, protection)
        span = header.chunk_size * arity**level
        what = {0: "chunk", 1: "leaf node"}.get(level, "inner node")
        self._anatomy.blocks.append(
            Block(
                tree=name,
                kind=f"{kind} {what}",
                level=level,
                offset=index * span,
                length=min(span, size - index * span),
                slot=slot,
                nonce=(epoch, counter),
                sealed=sealed,
                entry=entry,
            )
        )
        if level == 0:
            chunks[index] = bytes(plain)
            return
        for place in range(arity):
            below = bytes(plain[place * _POINTER_LEN : (place + 1) * _POINTER_LEN])
            if any(below):
                self._follow(name, kind, below, level - 1, index * arity + place, size, protection, chunks)

    def _read(self, slot: int) -> tuple[bytes, bytes]:
        anatomy = self._anatomy
        with (anatomy.path / anatomy.segment_of(slot)).open("rb") as file:
            file.seek(anatomy.slot_offset(slot))
            sealed = file.read(anatomy.header.chunk_size)
            file.seek(anatomy.entry_offset(slot))
            return sealed, file.read(ENTRY_LEN)


def dissect(path: Path, record: CasRecord, *, generation: int | None = None) -> Anatomy:
    """Take the volume at *path* apart, in the state that *record* anchors (or of *generation*, for a recovered one)."""
    header_bytes = (path / "header").read_bytes()
    header = Header.parse(header_bytes)
    wanted = record.anchor.generation if generation is None else generation
    newest = ROOT_NAMES[wanted % 2]
    state = RootFrame.parse((path / newest).read_bytes()).open(record.key, header_bytes)
    assert state.generation == wanted, f"{newest} holds generation {state.generation}, not {wanted}"
    keyring = Keyring.parse((path / "keyring").read_bytes(), (path / "keyring.bak").read_bytes())
    keys = {
        epoch: entry.unwrap(record.key, header.volume_id)
        for epoch, entry in keyring.of_version(record.key_version).items()
    }
    anatomy = Anatomy(path, header, state, newest, ROOT_NAMES[(wanted + 1) % 2], len(keyring.records))
    dissector = _Dissector(anatomy, keys)
    pages = dissector.tree(NAMESPACE, NAMESPACE, state.namespace, 0)
    if state.space_map is not None:
        dissector.tree(SPACE_MAP, "space map", state.space_map, 0)
    empty = bytes(header.chunk_size)
    image = b"".join(pages.get(index, empty) for index in range(-(-state.namespace.size // header.chunk_size)))
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", image[: state.namespace.size])
    from fspf.core.types import HOLE, ContentRoot

    for ino, mode, size, depth, pointer, protection in connection.execute(
        "SELECT ino, mode, size, depth, pointer, protection FROM inode ORDER BY ino"
    ):
        anatomy.inodes[ino] = (mode, size)
        if stat.S_IFMT(mode) == _S_IFREG:
            kind = "authenticated" if protection else "file"
            dissector.tree(f"ino {ino}", kind, ContentRoot(size, depth, pointer or HOLE), protection)
    connection.close()
    return anatomy
