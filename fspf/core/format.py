"""Format 1: header, keyring and root records, as docs/FORMAT.md names every byte of them.

Segments, nodes and pointers are written by `fspf_native`; which root record counts is decided in `fspf.core.freshness`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, Self

import msgpack
import xxhash

from fspf.core import keys
from fspf.core.errors import FormatError, IntegrityError, TornError, UnsupportedFormatError
from fspf.core.keys import AuthenticationError, SecretKey
from fspf.core.types import MAX_EPOCH, NO_TAG, POINTER_LEN, TAG_LEN, VOLUME_ID_LEN, ContentRoot, Tag

FORMAT_VERSION: Final = 1

HEADER_MAGIC: Final = b"\x89FSPF\r\n\x1a"
HEADER_LEN: Final = 4096
KEYRING_RECORD_LEN: Final = 64
ROOT_MAGIC: Final = b"FSPFROOT"
ROOT_LEN: Final = 4096
ROOT_NAMES: Final = ("root.a", "root.b")  # generation g is in ROOT_NAMES[g % 2]

MIN_CHUNK_SIZE: Final = 4096
MAX_CHUNK_SIZE: Final = 65536
DEFAULT_CHUNK_SIZE: Final = 4096
MIN_SEGMENT_SLOTS: Final = 64
MAX_SEGMENT_SLOTS: Final = 1048576
DEFAULT_SEGMENT_SLOTS: Final = 16384
CHECKSUM_ENTRY_LEN: Final = 16  # FORMAT.md 5: bytes per slot behind the slots of a segment
NONCE_LEN: Final = 12

# FORMAT.md 2
_HEADER: Final = struct.Struct("<8sHHIII16s4048xQ")
assert _HEADER.size == HEADER_LEN

# FORMAT.md 3
_KEYRING: Final = struct.Struct("<II48sQ")
assert _KEYRING.size == KEYRING_RECORD_LEN

# FORMAT.md 4
_ROOT_PREFIX: Final = struct.Struct("<8sIII")  # what the AAD covers
_ROOT: Final = struct.Struct("<8sIII12s16s4040sQ")
_ROOT_SEALED_OFFSET: Final = 48
MAX_SEALED_LEN: Final = 4040
assert _ROOT_PREFIX.size == 20
assert _ROOT.size == ROOT_LEN
assert _ROOT_SEALED_OFFSET + MAX_SEALED_LEN == ROOT_LEN - 8

RECORD_VERSION: Final = 1
_RECORD_ELEMENTS: Final = 17
_CONTENT_ROOT_ELEMENTS: Final = 3
_MAX_INT: Final = 2**63 - 1
_MAX_U32: Final = 2**32 - 1
_MAX_DEPTH: Final = 8  # 4096 * 128**8 is above 2**63
_MAX_SLOT: Final = 2**40  # five bytes in a pointer; one above the highest


def _is_power_of_two(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _checked_body(what: str, raw: bytes, length: int) -> None:
    """Raise `TornError` unless *raw* is *length* bytes that end in their own XXH3."""
    if len(raw) != length:
        message = f"{what}: {length} bytes expected, {len(raw)} found: torn or cut off"
        raise TornError(message)
    if xxhash.xxh3_64_intdigest(raw[:-8]) != int.from_bytes(raw[-8:], "little"):
        message = f"{what}: checksum is wrong: torn or rotten, not tampered with"
        raise TornError(message)


def _with_checksum(body: bytes) -> bytes:
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def _refuse(what: str, why: str) -> FormatError:
    return FormatError(f"{what}: {why}, though the checksum is right: tampered, or not written by fspf")


@dataclass(frozen=True, slots=True)
class Header:
    """The public page of a volume. All of it is a claim until a root record opened with it as AAD."""

    volume_id: bytes
    chunk_size: int = DEFAULT_CHUNK_SIZE  # bytes
    segment_slots: int = DEFAULT_SEGMENT_SLOTS

    def pack(self) -> bytes:
        """Encode; 4096 bytes."""
        assert len(self.volume_id) == VOLUME_ID_LEN
        assert _is_power_of_two(self.chunk_size, MIN_CHUNK_SIZE, MAX_CHUNK_SIZE)
        assert _is_power_of_two(self.segment_slots, MIN_SEGMENT_SLOTS, MAX_SEGMENT_SLOTS)
        fields = (HEADER_MAGIC, FORMAT_VERSION, 0, self.chunk_size, self.segment_slots, 0, self.volume_id, 0)
        return _with_checksum(_HEADER.pack(*fields)[:-8])

    @classmethod
    def parse(cls, claimed: bytes) -> Self:
        """Decode and refuse everything that `pack` does not write.

        Raises:
            TornError: Length or checksum is wrong.
            UnsupportedFormatError: Checksum and magic are right; version or flags are not of format 1.
            FormatError: Anything else.
        """
        _checked_body("header", claimed, HEADER_LEN)
        magic, version, flags, chunk_size, segment_slots, _, volume_id, _ = _HEADER.unpack(claimed)
        if magic != HEADER_MAGIC:
            raise _refuse("header", f"magic {magic!r} is not fspf's")
        if version > FORMAT_VERSION:
            message = f"header: format {version} is newer than {FORMAT_VERSION}, the newest this program knows: use a newer fspf"
            raise UnsupportedFormatError(message)
        if version != FORMAT_VERSION:
            raise _refuse("header", f"there is no format {version}")
        if flags:
            message = f"header: flags {flags:#06x} are unknown to this program: use a newer fspf"
            raise UnsupportedFormatError(message)
        if not _is_power_of_two(chunk_size, MIN_CHUNK_SIZE, MAX_CHUNK_SIZE):
            raise _refuse(
                "header", f"chunk size {chunk_size} is no power of two from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}"
            )
        if not _is_power_of_two(segment_slots, MIN_SEGMENT_SLOTS, MAX_SEGMENT_SLOTS):
            raise _refuse(
                "header",
                f"{segment_slots} slots a segment is no power of two from {MIN_SEGMENT_SLOTS} to {MAX_SEGMENT_SLOTS}",
            )
        header = cls(volume_id, chunk_size, segment_slots)
        if header.pack() != claimed:
            raise _refuse("header", "reserved bytes are not zero")
        return header


@dataclass(frozen=True, slots=True)
class KeyringRecord:
    """One wrapped epoch key. A claim until it unwrapped; that it is missing is seen from the root record."""

    epoch: int
    key_version: int
    wrapped: bytes  # 48 bytes

    def pack(self) -> bytes:
        """Encode; 64 bytes."""
        assert 1 <= self.epoch <= MAX_EPOCH
        assert 1 <= self.key_version <= _MAX_U32
        assert len(self.wrapped) == keys.WRAPPED_LEN
        return _with_checksum(_KEYRING.pack(self.epoch, self.key_version, self.wrapped, 0)[:-8])

    @classmethod
    def parse(cls, claimed: bytes) -> Self:
        """Decode one record.

        Raises:
            TornError: Length or checksum is wrong.
            FormatError: Epoch or key version is out of range.
        """
        _checked_body("keyring record", claimed, KEYRING_RECORD_LEN)
        epoch, key_version, wrapped, _ = _KEYRING.unpack(claimed)
        if not 1 <= epoch <= MAX_EPOCH:
            raise _refuse("keyring record", f"epoch {epoch} is not in 1 to {MAX_EPOCH}")
        if key_version < 1:
            raise _refuse("keyring record", "key version 0 does not exist")
        return cls(epoch, key_version, wrapped)

    @classmethod
    def wrap(cls, volume_key: SecretKey, key_version: int, volume_id: bytes, epoch: int, epoch_key: SecretKey) -> Self:
        """Make the record that keeps *epoch_key*."""
        return cls(epoch, key_version, keys.wrap_epoch_key(volume_key, volume_id, epoch, key_version, epoch_key))

    def unwrap(self, volume_key: SecretKey, volume_id: bytes) -> SecretKey:
        """Open the epoch key.

        Raises:
            WrongKeyError: It was not wrapped so under this key.
        """
        return keys.unwrap_epoch_key(volume_key, volume_id, self.epoch, self.key_version, self.wrapped)


@dataclass(frozen=True, slots=True)
class Keyring:
    """What the two copies of the keyring say together."""

    records: tuple[KeyringRecord, ...]  # no two of one epoch and version; in the order of the file
    torn: tuple[int, ...]  # places that are whole in neither copy
    repair: bool  # the copies differ: both are to be written anew

    def pack(self) -> bytes:
        """Encode the records that are whole, as a file."""
        return b"".join(record.pack() for record in self.records)

    @classmethod
    def parse(cls, claimed: bytes, claimed_backup: bytes) -> Self:
        """Take each record from the copy in which it is whole. FORMAT.md 3.

        Args:
            claimed: Content of `keyring`; empty if it is missing.
            claimed_backup: Content of `keyring.bak`; empty if it is missing.

        Raises:
            FormatError: A checksum is right but the record impossible, or two records of one epoch and version differ.
        """
        found: dict[tuple[int, int], KeyringRecord] = {}
        torn = []
        longest = max(len(claimed), len(claimed_backup))
        for place, offset in enumerate(range(0, longest, KEYRING_RECORD_LEN)):
            whole = False
            for copy in (claimed, claimed_backup):
                try:
                    record = KeyringRecord.parse(copy[offset : offset + KEYRING_RECORD_LEN])
                except TornError:
                    continue
                whole = True
                if found.setdefault((record.epoch, record.key_version), record) != record:
                    raise _refuse(
                        "keyring", f"two different keys of epoch {record.epoch}, key version {record.key_version}"
                    )
            if not whole:
                torn.append(place)
        return cls(tuple(found.values()), tuple(torn), repair=claimed != claimed_backup or bool(torn))

    def of_version(self, key_version: int) -> dict[int, KeyringRecord]:
        """Return the records wrapped under that version of the volume key, by epoch."""
        return {record.epoch: record for record in self.records if record.key_version == key_version}


@dataclass(frozen=True, slots=True)
class RootRecord:
    """The state of a volume after one commit; authentic, since only `RootFrame.open` makes one from bytes.

    Whether it is the newest is decided by `fspf.core.freshness.choose_root`.
    """

    volume_id: bytes
    generation: int  # the first commit is 1
    epoch: int
    previous_tag: bytes  # root tag of generation - 1; zeros for generation 1
    anchor_generation: int  # hint, for messages: last acknowledged by the CAS when this was written
    anchor_tag: bytes  # hint, likewise
    namespace: ContentRoot
    space_map: ContentRoot | None
    end_of_slots: int
    files: int  # inodes in the namespace
    total_bytes: int  # sum of the sizes of regular files
    keyring_epochs: int  # distinct epochs <= epoch in the keyring
    created_ns: int  # hint, UTC ns since 1970: for people, never trusted for order
    log_follows: bool = False  # records of the intent log may continue this state
    tag: bytes = NO_TAG  # the root tag; zeros until the record was sealed and opened
    key_version: int = 0  # of the volume key it was sealed under; 0 likewise

    def seal(self, volume_key: SecretKey, key_version: int, header_bytes: bytes, nonce: bytes) -> bytes:
        """Encode and seal; 4096 bytes for ``ROOT_NAMES[generation % 2]``. The tag is `RootFrame.parse(...).tag`.

        Args:
            volume_key: From the CAS.
            key_version: Its version.
            header_bytes: The header file, all 4096 bytes.
            nonce: 12 fresh random bytes.
        """
        return self.seal_frame(volume_key, key_version, header_bytes, nonce).pack()

    def seal_frame(self, volume_key: SecretKey, key_version: int, header_bytes: bytes, nonce: bytes) -> RootFrame:
        """Seal as `seal` does, and return the frame: `.pack()` goes to disk, `.tag` to the CAS."""
        plain = self._pack_plain()
        assert _decode(plain, self.epoch) == replace(self, tag=NO_TAG, key_version=0), "own record is not canonical"
        key = keys.root_key(volume_key, self.volume_id, self.epoch)
        aad = _root_aad(header_bytes, key_version, self.epoch, len(plain))
        sealed, tag = key.gcm_seal(nonce, plain, aad)
        return RootFrame(key_version, self.epoch, nonce, tag, sealed)

    def _pack_plain(self) -> bytes:
        elements = (
            RECORD_VERSION,
            self.volume_id,
            self.generation,
            self.epoch,
            self.previous_tag,
            self.anchor_generation,
            self.anchor_tag,
            *self.namespace,
            None if self.space_map is None else tuple(self.space_map),
            self.end_of_slots,
            self.files,
            self.total_bytes,
            self.keyring_epochs,
            self.created_ns,
            1 if self.log_follows else None,
        )
        packed: bytes = msgpack.packb(elements, use_bin_type=True)
        return packed


@dataclass(frozen=True, slots=True)
class RootFrame:
    """The sealed form of a root record, as `root.a` and `root.b` hold it. All of it is a claim until it opened."""

    key_version: int
    epoch: int
    nonce: bytes  # 12 bytes
    tag: bytes  # 16 bytes: the root tag
    sealed: bytes

    def pack(self) -> bytes:
        """Encode; 4096 bytes."""
        assert 1 <= len(self.sealed) <= MAX_SEALED_LEN
        assert len(self.nonce) == NONCE_LEN
        assert len(self.tag) == TAG_LEN
        fields = (ROOT_MAGIC, self.key_version, self.epoch, len(self.sealed), self.nonce, self.tag, self.sealed, 0)
        return _with_checksum(_ROOT.pack(*fields)[:-8])

    @classmethod
    def parse(cls, claimed: bytes) -> Self:
        """Decode the frame; no key is needed.

        Raises:
            TornError: Length or checksum is wrong: the crash of a writer, or a bad disk.
            FormatError: Anything else that `pack` does not write.
        """
        _checked_body("root record", claimed, ROOT_LEN)
        magic, key_version, epoch, sealed_len, nonce, tag, sealed, _ = _ROOT.unpack(claimed)
        if magic != ROOT_MAGIC:
            raise _refuse("root record", f"magic {magic!r} is not fspf's")
        if key_version < 1:
            raise _refuse("root record", "key version 0 does not exist")
        if not 1 <= epoch <= MAX_EPOCH:
            raise _refuse("root record", f"epoch {epoch} is not in 1 to {MAX_EPOCH}")
        if not 1 <= sealed_len <= MAX_SEALED_LEN:
            raise _refuse("root record", f"{sealed_len} sealed bytes are not in 1 to {MAX_SEALED_LEN}")
        frame = cls(key_version, epoch, nonce, tag, sealed[:sealed_len])
        if frame.pack() != claimed:
            raise _refuse("root record", "padding is not zero")
        return frame

    def open(self, volume_key: SecretKey, header_bytes: bytes) -> RootRecord:
        """Verify and decode the record.

        Args:
            volume_key: From the CAS, of the version that the frame names.
            header_bytes: The header file, all 4096 bytes; a changed header is noticed here.

        Raises:
            IntegrityError: The tag is wrong: record, frame or header were tampered with, or belong to another volume.
            UnsupportedFormatError: The record is of a newer format.
            FormatError: The record is no encoding of any value.
        """
        volume_id = Header.parse(header_bytes).volume_id
        key = keys.root_key(volume_key, volume_id, self.epoch)
        aad = _root_aad(header_bytes, self.key_version, self.epoch, len(self.sealed))
        try:
            plain = key.gcm_open(self.nonce, self.sealed, self.tag, aad)
        except AuthenticationError:
            message = (
                f"root record of epoch {self.epoch}: checksum right, tag wrong: root or header were tampered with, "
                "or belong to another volume or volume key"
            )
            raise IntegrityError(message) from None
        record = _decode(plain, self.epoch)
        if record.volume_id != volume_id:
            raise _refuse("root record", f"volume id {record.volume_id.hex()} is not the header's {volume_id.hex()}")
        return replace(record, tag=self.tag, key_version=self.key_version)


def _root_aad(header_bytes: bytes, key_version: int, epoch: int, sealed_len: int) -> bytes:
    assert len(header_bytes) == HEADER_LEN
    return header_bytes + _ROOT_PREFIX.pack(ROOT_MAGIC, key_version, epoch, sealed_len)


# -- the msgpack array inside the seal


def _integer(name: str, value: object, low: int = 0, high: int = _MAX_INT) -> int:
    if type(value) is not int or not low <= value <= high:
        message = f"root record: {name} is not an integer from {low} to {high}"
        raise FormatError(message)
    return value


def _binary(name: str, value: object, length: int) -> bytes:
    if type(value) is not bytes or len(value) != length:
        message = f"root record: {name} is not {length} bytes"
        raise FormatError(message)
    return value


def _content_root(name: str, value: tuple[object, ...]) -> ContentRoot:
    if len(value) != _CONTENT_ROOT_ELEMENTS:
        message = f"root record: {name} has {len(value)} elements, {_CONTENT_ROOT_ELEMENTS} expected"
        raise FormatError(message)
    size, depth, pointer = value
    return ContentRoot(
        _integer(f"{name} size", size),
        _integer(f"{name} depth", depth, 0, _MAX_DEPTH),
        _binary(f"{name} pointer", pointer, POINTER_LEN),
    )


def _decode(plain: bytes, frame_epoch: int) -> RootRecord:
    """Decode the array of FORMAT.md 4; `FormatError` or `UnsupportedFormatError` for all that `seal` does not write."""
    try:
        elements = msgpack.unpackb(plain, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as exc:
        message = f"root record: not msgpack: {exc}"
        raise FormatError(message) from None
    if type(elements) is not tuple or not elements:
        message = "root record: not an array"
        raise FormatError(message)
    version = _integer("record version", elements[0], 1)
    if version > RECORD_VERSION:
        message = f"root record: version {version} is newer than {RECORD_VERSION}, the newest this program knows: use a newer fspf"
        raise UnsupportedFormatError(message)
    if len(elements) != _RECORD_ELEMENTS:
        message = f"root record: {len(elements)} elements, {_RECORD_ELEMENTS} expected"
        raise FormatError(message)
    if elements[16] is not None and not (type(elements[16]) is int and elements[16] == 1):
        message = (
            f"root record: has an intent log of form {elements[16]}, which this program does not know: use a newer fspf"
        )
        raise UnsupportedFormatError(message)
    space_map = elements[10]
    if space_map is not None and type(space_map) is not tuple:
        message = "root record: space map is neither nil nor an array"
        raise FormatError(message)
    record = RootRecord(
        volume_id=_binary("volume id", elements[1], VOLUME_ID_LEN),
        generation=_integer("generation", elements[2], 1),
        epoch=_integer("epoch", elements[3], 1, MAX_EPOCH),
        previous_tag=_binary("previous tag", elements[4], TAG_LEN),
        anchor_generation=_integer("anchor generation", elements[5]),
        anchor_tag=_binary("anchor tag", elements[6], TAG_LEN),
        namespace=_content_root("namespace", elements[7:10]),
        space_map=None if space_map is None else _content_root("space map", space_map),
        end_of_slots=_integer("end of slots", elements[11], 0, _MAX_SLOT),
        files=_integer("files", elements[12]),
        total_bytes=_integer("bytes", elements[13]),
        keyring_epochs=_integer("keyring epochs", elements[14], 0, MAX_EPOCH),
        created_ns=_integer("created", elements[15]),
        log_follows=elements[16] is not None,
    )
    if record.epoch != frame_epoch:
        message = f"root record: epoch {record.epoch} is not the frame's {frame_epoch}"
        raise FormatError(message)
    if (record.generation == 1) != (record.previous_tag == NO_TAG):
        message = f"root record: previous tag of generation {record.generation} is {'not ' if record.generation == 1 else ''}zero"
        raise FormatError(message)
    if record._pack_plain() != plain:  # noqa: SLF001 - same module
        message = "root record: not in the shortest encoding"
        raise FormatError(message)
    return record


def frame_tag(frame_bytes: bytes) -> Tag:
    """Return the root tag inside the 4096 bytes that `RootRecord.seal` returned."""
    return Tag(frame_bytes[32:48])
