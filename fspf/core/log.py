"""The intent log: records that make an fsync durable without flushing the namespace, as docs/FORMAT.md 4.1 has them.

What goes into a record is `fspf.volume.intent`'s business, and which state counts that of `fspf.core.freshness`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgpack
import xxhash

from fspf.core.errors import FormatError, IntegrityError, TornError, UnsupportedFormatError
from fspf.core.keys import AuthenticationError, SecretKey
from fspf.core.types import MAX_EPOCH, NO_TAG, POINTER_LEN, TAG_LEN, VOLUME_ID_LEN

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_MAGIC: Final = b"FSPF-LOG"
LOG_LEN: Final = 8 << 20  # bytes of the file `log`
LOG_PAGE: Final = 4096  # frames begin and end at multiples of it: a torn write harms no other frame
LOG_HEADER_LEN: Final = 64
NONCE_LEN: Final = 12
MAX_FRAME_LEN: Final = LOG_LEN

_HEADER: Final = struct.Struct("<8sIII12s16s8xQ")
_PREFIX: Final = struct.Struct("<8sIII")  # what the AAD covers
assert _HEADER.size == LOG_HEADER_LEN

RECORD_VERSION: Final = 1
_RECORD_ELEMENTS: Final = 11
_BATCH_ELEMENTS: Final = 9
_ROW_ELEMENTS: Final = 17
_MAX_INT: Final = 2**63 - 1
_MAX_SLOT: Final = 2**40


class Batch(NamedTuple):
    """Rows that the namespace's database does not have yet, as of one instant. The form of `fspf_native.Drained`."""

    inodes: list[tuple[Any, ...]]  # whole rows, to be inserted or replaced
    names: list[tuple[int, int, bytes, int]]  # (parent, cookie, name, ino), likewise
    removed: list[tuple[int, int]]  # (parent, cookie)
    deleted: list[tuple[int, bool]]  # (ino, perhaps it has xattrs)
    files: int  # change of the number of inodes
    size: int  # change of the sum of all sizes, bytes
    next_ino: int
    next_cookie: int
    reflushed: list[int]  # inodes whose content root in `inodes` is a new one: what the log had of them is in it


class Piece(NamedTuple):
    """What was written to one content since its root, or since the record before."""

    ino: int
    size: int  # bytes, after it
    cut: int | None  # least size it was cut to before the chunks were written
    chunks: tuple[int | bytes, ...]  # offset, data, offset, data, ...


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record; authentic, since only `LogFrame.open` makes one from bytes. Whether it is the newest, the CAS knows."""

    volume_id: bytes
    generation: int
    epoch: int
    previous_tag: bytes  # root tag of the state before: of a root record, or of the record before
    anchor_generation: int  # hint, for messages: last acknowledged by the CAS when this was written
    anchor_tag: bytes  # hint, likewise
    end_of_slots: int
    batches: tuple[Batch, ...]  # to be applied in this order
    pieces: tuple[Piece, ...]  # then these
    created_ns: int  # hint, UTC ns since 1970: for people
    tag: bytes = NO_TAG  # the root tag; zeros until it was sealed and opened

    def seal_frame(
        self, log_key: SecretKey, key_version: int, header_bytes: bytes, nonce: bytes
    ) -> tuple[bytes, bytes]:
        """Encode and seal.

        Args:
            log_key: `fspf.core.keys.log_key` of the record's epoch.
            key_version: Version of the volume key that it was made from.
            header_bytes: The volume's header, all 4096 bytes.
            nonce: 12 fresh random bytes.

        Returns:
            The frame's bytes (a multiple of `LOG_PAGE`), and the tag: the root tag of this state.
        """
        plain = self._pack_plain()
        prefix = _PREFIX.pack(LOG_MAGIC, key_version, self.epoch, len(plain))
        sealed, tag = log_key.gcm_seal(nonce, plain, header_bytes + prefix)
        return _frame(key_version, self.epoch, nonce, tag, sealed), tag

    def _pack_plain(self) -> bytes:
        packed: bytes = msgpack.packb(
            (
                RECORD_VERSION,
                self.volume_id,
                self.generation,
                self.epoch,
                self.previous_tag,
                self.anchor_generation,
                self.anchor_tag,
                self.end_of_slots,
                self.batches,
                self.pieces,
                self.created_ns,
            ),
            use_bin_type=True,
        )
        return packed


def _frame(key_version: int, epoch: int, nonce: bytes, tag: bytes, sealed: bytes) -> bytes:
    head = _HEADER.pack(LOG_MAGIC, key_version, epoch, len(sealed), nonce, tag, 0)
    check = xxhash.xxh3_64_intdigest(head[:-8] + sealed)
    padding = bytes(-(LOG_HEADER_LEN + len(sealed)) % LOG_PAGE)
    return b"".join((head[:-8], check.to_bytes(8, "little"), sealed, padding))


@dataclass(frozen=True, slots=True)
class LogFrame:
    """The sealed form of a record. All of it is a claim until it opened."""

    key_version: int
    epoch: int
    nonce: bytes
    tag: bytes
    sealed: bytes

    @property
    def length(self) -> int:
        """Bytes in the file, a multiple of `LOG_PAGE`."""
        return -(-(LOG_HEADER_LEN + len(self.sealed)) // LOG_PAGE) * LOG_PAGE

    @classmethod
    def parse(cls, claimed: bytes, offset: int) -> Self:
        """Decode the frame that begins at *offset* of the log file's bytes; no key is needed.

        Raises:
            TornError: There is no whole frame: the end of the log, the crash of a writer, or a bad disk.
            FormatError: The checksum is right, but nothing that `seal_frame` writes.
        """
        head = claimed[offset : offset + LOG_HEADER_LEN]
        if len(head) < LOG_HEADER_LEN or not head.startswith(LOG_MAGIC):
            message = f"log: no record at byte {offset}"
            raise TornError(message)
        magic, key_version, epoch, sealed_len, nonce, tag, check = _HEADER.unpack(head)
        sealed = claimed[offset + LOG_HEADER_LEN : offset + LOG_HEADER_LEN + sealed_len]
        if len(sealed) != sealed_len or xxhash.xxh3_64_intdigest(head[:-8] + sealed) != check:
            message = f"log: the record at byte {offset} is torn or rotten, not tampered with"
            raise TornError(message)
        frame = cls(key_version, epoch, nonce, tag, sealed)
        whole = _frame(key_version, epoch, nonce, tag, sealed)
        known = magic == LOG_MAGIC and sealed_len and 1 <= epoch <= MAX_EPOCH and key_version >= 1
        if not known or not whole.startswith(head):  # reserved bytes
            message = f"log: the record at byte {offset} is impossible though its checksum is right: tampered"
            raise FormatError(message)
        if claimed[offset : offset + len(whole)] != whole:
            message = f"log: the record at byte {offset}: padding is not zero"
            raise TornError(message)  # of a write that did not end
        return frame

    def open(self, log_key: SecretKey, header_bytes: bytes) -> LogRecord:
        """Verify and decode the record.

        Raises:
            IntegrityError: The tag is wrong: record, frame or header were tampered with, or belong to another volume.
            UnsupportedFormatError: The record is of a newer format.
            FormatError: The record is no encoding of any value.
        """
        prefix = _PREFIX.pack(LOG_MAGIC, self.key_version, self.epoch, len(self.sealed))
        try:
            plain = log_key.gcm_open(self.nonce, self.sealed, self.tag, header_bytes + prefix)
        except AuthenticationError:
            message = (
                f"log record of epoch {self.epoch}: checksum right, tag wrong: log or header were tampered with, "
                "or it is another volume's"
            )
            raise IntegrityError(message) from None
        return replace(_decode(plain, self.epoch), tag=self.tag)


def _refuse(why: str) -> FormatError:
    return FormatError(f"log record: {why}")


def _integer(what: str, value: object, low: int = 0, high: int = _MAX_INT) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _refuse(f"{what} {value!r} is no number from {low} to {high}")
    return value


def _binary(what: str, value: object, length: int | None = None) -> bytes:
    if type(value) is not bytes or (length is not None and len(value) != length):
        raise _refuse(f"{what} is not {length if length is not None else 'some'} bytes")
    return value


def _array(what: str, value: object, length: int | None = None) -> tuple[Any, ...]:
    if type(value) is not tuple or (length is not None and len(value) != length):
        raise _refuse(f"{what} is no array{f' of {length}' if length is not None else ''}")
    return value


def _row(value: object) -> tuple[Any, ...]:
    row = _array("inode", value, _ROW_ELEMENTS)
    _integer("inode", row[0], 1)
    for number in row[1:6] + row[10:13] + row[14:15]:
        _integer("of an inode", number)
    for time_ns in row[6:10]:
        _integer("time of an inode", time_ns, -_MAX_INT - 1)
    if row[13] is not None:
        _binary("pointer", row[13], POINTER_LEN)
    if row[15] is not None:
        _integer("parent", row[15], 1)
    if row[16] is not None:
        _binary("target", row[16])
    return row


def _batch(value: object) -> Batch:
    inodes, names, removed, deleted, files, size, next_ino, next_cookie, reflushed = _array(
        "batch", value, _BATCH_ELEMENTS
    )
    for name in _array("names", names):
        parent, cookie, text, ino = _array("name", name, 4)
        _binary("name", text)
        for number in (parent, cookie, ino):
            _integer("of a name", number, 1)
    for pair in _array("removed", removed):
        for number in _array("removed name", pair, 2):
            _integer("of a removed name", number, 1)
    for pair in _array("deleted", deleted):
        ino, xattrs = _array("deleted inode", pair, 2)
        _integer("deleted inode", ino, 1)
        if type(xattrs) is not bool:
            raise _refuse("xattrs of a deleted inode: neither true nor false")
    return Batch(
        [_row(row) for row in _array("inodes", inodes)],
        list(names),
        list(removed),
        list(deleted),
        _integer("files", files, -_MAX_INT),
        _integer("size", size, -_MAX_INT),
        _integer("next inode", next_ino, 1),
        _integer("next cookie", next_cookie, 1),
        [_integer("reflushed inode", ino, 1) for ino in _array("reflushed", reflushed)],
    )


def _piece(value: object) -> Piece:
    ino, size, cut, chunks = _array("piece", value, 4)
    _array("chunks", chunks)
    if len(chunks) % 2:
        raise _refuse("offset without data")
    for offset, data in zip(chunks[::2], chunks[1::2], strict=True):
        _integer("offset", offset)
        _binary("data", data)
    return Piece(
        _integer("inode of a piece", ino, 1),
        _integer("size of a piece", size),
        None if cut is None else _integer("cut of a piece", cut),
        chunks,
    )


def _decode(plain: bytes, frame_epoch: int) -> LogRecord:
    """Decode the array of FORMAT.md 4.1; `FormatError` or `UnsupportedFormatError` for all that is never sealed."""
    try:
        elements = msgpack.unpackb(plain, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as exc:
        raise _refuse(f"not msgpack: {exc}") from None
    if type(elements) is not tuple or not elements:
        raise _refuse("not an array")
    if _integer("record version", elements[0], 1) > RECORD_VERSION:
        message = f"log record: version {elements[0]} is newer than {RECORD_VERSION}: use a newer fspf"
        raise UnsupportedFormatError(message)
    _array("record", elements, _RECORD_ELEMENTS)
    record = LogRecord(
        volume_id=_binary("volume id", elements[1], VOLUME_ID_LEN),
        generation=_integer("generation", elements[2], 2),
        epoch=_integer("epoch", elements[3], 1, MAX_EPOCH),
        previous_tag=_binary("previous tag", elements[4], TAG_LEN),
        anchor_generation=_integer("anchor generation", elements[5]),
        anchor_tag=_binary("anchor tag", elements[6], TAG_LEN),
        end_of_slots=_integer("end of slots", elements[7], 0, _MAX_SLOT),
        batches=tuple(_batch(each) for each in _array("batches", elements[8])),
        pieces=tuple(_piece(each) for each in _array("pieces", elements[9])),
        created_ns=_integer("created", elements[10]),
    )
    if record.epoch != frame_epoch:
        raise _refuse(f"epoch {record.epoch} is not the frame's {frame_epoch}")
    if record._pack_plain() != plain:  # noqa: SLF001 - same module
        raise _refuse("not in the shortest encoding")
    return record


class Chain(NamedTuple):
    """Records that continue a root record, in order.

    Attributes:
        problem: What is wrong with the next, if it looks like one.
        missing: (number of the record, offset, frame) of those that the log file does not have.
    """

    records: tuple[LogRecord, ...]
    problem: str
    missing: tuple[tuple[int, int, bytes], ...] = ()


def follow(
    claimed: bytes,
    log_key: SecretKey,
    *,
    key_version: int,
    header_bytes: bytes,
    volume_id: bytes,
    epoch: int,
    generation: int,
    tag: bytes,
    kept: Sequence[bytes] = (),
) -> Chain:
    """Return the records that continue one state.

    Behind the last record lies what is left of earlier rounds through the file: not of this chain, so it ends it.

    Args:
        claimed: The log file's bytes.
        log_key: Of the root record's epoch.
        generation, tag: Of the root record that the chain begins at.
        kept: Frames that something else than the volume kept, in any order: claims like those of the file. COMMIT.md 9.
    """
    found: list[LogRecord] = []
    missing: list[tuple[int, int, bytes]] = []
    elsewhere: dict[bytes, tuple[LogRecord, bytes]] | None = None
    offset = 0

    def continues(record: LogRecord) -> bool:
        return record.previous_tag == tag and record.generation == generation + 1 and record.volume_id == volume_id

    while True:
        record, length, problem = _claimed(claimed, offset, log_key, key_version, header_bytes, epoch)
        if record is None or not continues(record):
            if elsewhere is None:
                elsewhere = _by_previous(kept, log_key, key_version, header_bytes, epoch)
            record, frame = elsewhere.get(tag, (None, b""))
            length = len(frame)
            if record is None or not continues(record) or offset + length > LOG_LEN:
                return Chain(tuple(found), problem, tuple(missing))
            missing.append((len(found), offset, frame))
        found.append(record)
        generation, tag = record.generation, record.tag
        offset += length


def _claimed(
    claimed: bytes, offset: int, log_key: SecretKey, key_version: int, header_bytes: bytes, epoch: int
) -> tuple[LogRecord | None, int, str]:
    """Open the record at *offset*: it, the length of its frame, and what is wrong if something looks like one."""
    try:
        frame = LogFrame.parse(claimed, offset)
        if frame.epoch != epoch or frame.key_version != key_version:
            return None, 0, ""  # another writer's, from before
        return frame.open(log_key, header_bytes), frame.length, ""
    except TornError as exc:
        return None, 0, str(exc) if claimed[offset : offset + len(LOG_MAGIC)] == LOG_MAGIC else ""
    except (FormatError, IntegrityError, UnsupportedFormatError) as exc:
        return None, 0, str(exc)


def _by_previous(
    kept: Sequence[bytes], log_key: SecretKey, key_version: int, header_bytes: bytes, epoch: int
) -> dict[bytes, tuple[LogRecord, bytes]]:
    """Open all that can be opened, by the tag of the state before."""
    found: dict[bytes, tuple[LogRecord, bytes]] = {}
    for frame in kept:
        record, length, _ = _claimed(frame, 0, log_key, key_version, header_bytes, epoch)
        if record is not None and length == len(frame):
            found[record.previous_tag] = record, frame
    return found
