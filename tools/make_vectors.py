#!/usr/bin/env python3
"""Compute the test vectors of format 1 (tests/vectors/format1.json) without any code of FSPF.

Follows docs/FORMAT.md with `cryptography`, `struct`, `xxhash` and a msgpack encoder of its own, so that a mistake in
the product cannot hide in its vectors. `--check` compares with the file that is there instead of writing it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any, Final

import xxhash
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

OUTPUT: Final = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "format1.json"

# FORMAT.md 2, 3, 4, 4.1
HEADER_MAGIC: Final = bytes.fromhex("8946535046 0D0A1A")
ROOT_MAGIC: Final = b"FSPFROOT"
LOG_MAGIC: Final = b"FSPF-LOG"
PAGE: Final = 4096


# -- fixed inputs


def pattern(label: str, length: int) -> bytes:
    """Bytes that look random and are the same everywhere: SHA-256(label + u32 block number), cut."""
    blocks = (hashlib.sha256(label.encode() + struct.pack("<I", n)).digest() for n in range(-(-length // 32)))
    return b"".join(blocks)[:length]


VOLUME_KEY: Final = bytes(range(32))
OTHER_KEY: Final = pattern("another volume key", 32)
VOLUME_ID: Final = bytes.fromhex("00112233445566778899aabbccddeeff")
OTHER_ID: Final = pattern("another volume", 16)
EPOCH_KEY: Final = pattern("epoch key", 32)
ROOT_NONCE: Final = pattern("nonce of a root record", 12)
LOG_NONCE: Final = pattern("nonce of a log record", 12)


# -- FORMAT.md 1


def xxh3(data: bytes) -> bytes:
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def hkdf(key: bytes, info: bytes, salt: bytes, length: int = 32) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt or None, info=info).derive(key)


def wrapping_key(volume_key: bytes, volume_id: bytes) -> bytes:
    return hkdf(volume_key, b"fspf 1 keyring", volume_id)


def root_key(volume_key: bytes, volume_id: bytes, epoch: int) -> bytes:
    return hkdf(volume_key, b"fspf 1 root " + struct.pack("<I", epoch), volume_id)


def log_key(volume_key: bytes, volume_id: bytes, epoch: int) -> bytes:
    return hkdf(volume_key, b"fspf 1 log " + struct.pack("<I", epoch), volume_id)


def siv(key: bytes, aad: bytes, plain: bytes) -> bytes:
    return AESSIV(hkdf(key, b"fspf 1 siv", b"", 64)).encrypt(plain, [aad])


# -- FORMAT.md 2 to 4


def header(
    *,
    magic: bytes = HEADER_MAGIC,
    version: int = 1,
    flags: int = 0,
    chunk_size: int = 4096,
    segment_slots: int = 16384,
    reserved: int = 0,
    volume_id: bytes = VOLUME_ID,
    tail: bytes = b"",
) -> bytes:
    body = magic + struct.pack("<HHIII", version, flags, chunk_size, segment_slots, reserved) + volume_id
    body = body.ljust(4088 - len(tail), b"\0") + tail
    assert len(body) == 4088
    return body + xxh3(body)


def keyring_aad(epoch: int, key_version: int, volume_id: bytes = VOLUME_ID) -> bytes:
    return b"fspf 1 keyring" + volume_id + struct.pack("<II", epoch, key_version)


def keyring_record(epoch: int, key_version: int, *, volume_key: bytes = VOLUME_KEY, key: bytes = EPOCH_KEY) -> bytes:
    wrapped = siv(wrapping_key(volume_key, VOLUME_ID), keyring_aad(epoch, key_version), key)
    assert len(wrapped) == 48
    body = struct.pack("<II", epoch, key_version) + wrapped
    return body + xxh3(body)


def _negative(value: int) -> bytes:
    if value >= -(2**5):
        return struct.pack(">b", value)
    for code, form, limit in ((0xD0, ">b", 2**7), (0xD1, ">h", 2**15), (0xD2, ">i", 2**31)):
        if value >= -limit:
            return bytes([code]) + struct.pack(form, value)
    return b"\xd3" + struct.pack(">q", value)


def msgpack(value: object, *, widest: bool = False) -> bytes:
    """Encode in the shortest form, or (for a negative vector) integers in the widest."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if value < 0:
            return _negative(value)
        if widest:
            return b"\xcf" + struct.pack(">Q", value)
        if value < 2**7:
            return bytes([value])
        for code, form, limit in ((0xCC, ">B", 2**8), (0xCD, ">H", 2**16), (0xCE, ">I", 2**32)):
            if value < limit:
                return bytes([code]) + struct.pack(form, value)
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, bytes):
        start = b"\xc4" + bytes([len(value)]) if len(value) < 2**8 else b"\xc5" + struct.pack(">H", len(value))
        return start + value
    assert isinstance(value, tuple)
    start = bytes([0x90 + len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
    return start + b"".join(msgpack(element, widest=widest) for element in value)


RECORD: Final[dict[str, Any]] = {
    "record_version": 1,
    "volume_id": VOLUME_ID,
    "generation": 300,
    "epoch": 2,
    "previous_tag": pattern("previous tag", 16),
    "anchor_generation": 299,
    "anchor_tag": pattern("previous tag", 16),
    "namespace_size": 1228800,
    "namespace_depth": 2,
    "namespace_pointer": pattern("namespace pointer", 32),
    "space_map": (8192, 1, pattern("space map pointer", 32)),
    "end_of_slots": 70000,
    "files": 12,
    "bytes": 5000000000,
    "keyring_epochs": 2,
    "created_ns": 1700000000123456789,
    "log": None,
}
FIRST_RECORD: Final = RECORD | {
    "generation": 1,
    "epoch": 1,
    "previous_tag": bytes(16),
    "anchor_generation": 0,
    "anchor_tag": bytes(16),
    "namespace_size": 65536,
    "namespace_depth": 1,
    "space_map": None,
    "end_of_slots": 17,
    "files": 1,
    "bytes": 0,
    "keyring_epochs": 1,
}


def root(
    plain: bytes,
    *,
    key_version: int = 1,
    epoch: int = 2,
    magic: bytes = ROOT_MAGIC,
    volume_key: bytes = VOLUME_KEY,
    header_bytes: bytes | None = None,
    padding_end: bytes = b"",
    sealed_len: int | None = None,
) -> bytes:
    prefix = magic + struct.pack("<III", key_version, epoch, len(plain) if sealed_len is None else sealed_len)
    aad = (header() if header_bytes is None else header_bytes) + prefix
    assert len(aad) == 4096 + 20
    sealed = AESGCM(root_key(volume_key, VOLUME_ID, epoch)).encrypt(ROOT_NONCE, plain, aad)
    body = prefix + ROOT_NONCE + sealed[-16:] + sealed[:-16]
    body = body.ljust(4088 - len(padding_end), b"\0") + padding_end
    assert len(body) == 4088
    return body + xxh3(body)


def record(**changes: object) -> bytes:
    return msgpack(tuple((RECORD | changes).values()))


# -- FORMAT.md 4.1

INODE: Final[dict[str, Any]] = {
    "ino": 17,
    "mode": 0o100640,
    "uid": 1000,
    "gid": 100,
    "rdev": 0,
    "nlink": 1,
    "atime_ns": 1700000000000000000,
    "mtime_ns": -1500000001,
    "ctime_ns": 1700000000000000001,
    "btime_ns": 1700000000000000002,
    "protection": 0,
    "size": 5000,
    "depth": 1,
    "pointer": pattern("pointer of an inode", 32),
    "chunks": 2,
    "parent": 1,
    "target": None,
}
LINK: Final = INODE | {
    "ino": 18,
    "mode": 0o120777,
    "size": 0,
    "depth": 0,
    "pointer": None,
    "chunks": 0,
    "target": b"to",
}
BATCH: Final[dict[str, Any]] = {
    "inodes": (tuple(INODE.values()), tuple(LINK.values())),
    "names": ((1, 9, b"name", 17), (1, 10, b"\xff link", 18)),
    "removed": ((1, 4),),
    "deleted": ((5, True), (6, False)),
    "files": -1,
    "size": -70000,
    "next_ino": 19,
    "next_cookie": 11,
    "reflushed": (17,),
}
PIECE: Final[dict[str, Any]] = {
    "ino": 17,
    "size": 300,
    "cut": 100,
    "chunks": (0, pattern("piece", 300)),
}
LOG_RECORD: Final[dict[str, Any]] = {
    "record_version": 1,
    "volume_id": VOLUME_ID,
    "generation": 301,
    "epoch": 2,
    "previous_tag": pattern("root tag before", 16),
    "anchor_generation": 300,
    "anchor_tag": pattern("root tag before", 16),
    "end_of_slots": 70001,
    "batches": (tuple(BATCH.values()),),
    "pieces": (tuple(PIECE.values()), (18, 0, None, ())),
    "created_ns": 1700000000123456790,
}


def log_frame(
    plain: bytes,
    *,
    key_version: int = 1,
    epoch: int = 2,
    magic: bytes = LOG_MAGIC,
    volume_key: bytes = VOLUME_KEY,
    header_bytes: bytes | None = None,
    reserved: bytes = bytes(8),
    padding_end: bytes = b"",
) -> bytes:
    prefix = magic + struct.pack("<III", key_version, epoch, len(plain))
    aad = (header() if header_bytes is None else header_bytes) + prefix
    assert len(aad) == 4096 + 20
    sealed = AESGCM(log_key(volume_key, VOLUME_ID, epoch)).encrypt(LOG_NONCE, plain, aad)
    return log_summed(prefix + LOG_NONCE + sealed[-16:] + reserved, sealed[:-16], padding_end)


def log_summed(head: bytes, sealed: bytes, padding_end: bytes = b"") -> bytes:
    """Put a frame together: its checksum is in the middle, behind the head, and covers both sides."""
    assert len(head) == 56
    frame = head + xxh3(head + sealed) + sealed
    return frame.ljust(-(-len(frame) // PAGE) * PAGE - len(padding_end), b"\0") + padding_end


def log_changed(raw: bytes, offset: int, value: bytes) -> bytes:
    """Change bytes of the head, or of what is sealed, and repair the checksum."""
    changed = raw[:offset] + value + raw[offset + len(value) :]
    length = int.from_bytes(changed[16:20], "little")
    return log_summed(changed[:56], changed[64 : 64 + length])


def log_record(**changes: object) -> bytes:
    return msgpack(tuple((LOG_RECORD | changes).values()))


def with_batch(**changes: object) -> bytes:
    return log_record(batches=(tuple((BATCH | changes).values()),))


def with_inode(**changes: object) -> bytes:
    return with_batch(inodes=(tuple((INODE | changes).values()),))


def with_piece(**changes: object) -> bytes:
    return log_record(pieces=(tuple((PIECE | changes).values()),))


def flipped(raw: bytes, offset: int) -> bytes:
    """Change one bit and leave the checksum as it was."""
    return raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]


def resummed(raw: bytes, offset: int, value: bytes) -> bytes:
    """Change bytes as somebody does who then repairs the checksum."""
    body = raw[:offset] + value + raw[offset + len(value) : -8]
    return body + xxh3(body)


# -- FORMAT.md 6


def nonce(counter: int) -> bytes:
    return struct.pack("<Q", counter) + bytes(4)


def pointer(slot: int, epoch: int, counter: int, tag: bytes) -> bytes:
    return slot.to_bytes(5, "little") + epoch.to_bytes(3, "little") + struct.pack("<Q", counter) + tag


def table_entry(stored: bytes, epoch: int, counter: int) -> bytes:
    return xxh3(stored) + epoch.to_bytes(3, "little") + counter.to_bytes(5, "little")


def block(
    name: str, plain: bytes, *, slot: int, epoch: int, counter: int, authenticated: bool = False
) -> dict[str, Any]:
    if authenticated:
        stored, tag = plain, AESGCM(EPOCH_KEY).encrypt(nonce(counter), b"", plain)
    else:
        sealed = AESGCM(EPOCH_KEY).encrypt(nonce(counter), plain, None)
        stored, tag = sealed[:-16], sealed[-16:]
    return {
        "name": name,
        "protection": 1 if authenticated else 0,
        "slot": slot,
        "epoch": epoch,
        "counter": counter,
        "nonce": nonce(counter).hex(),
        "plain": plain.hex(),
        "stored": stored.hex(),
        "tag": tag.hex(),
        "pointer": pointer(slot, epoch, counter, tag).hex(),
        "checksum_entry": table_entry(stored, epoch, counter).hex(),
    }


# -- the document


def page(raw: bytes) -> dict[str, Any]:
    """Write bytes as their length and the runs that are not zero (runs of fewer than 16 zeros are not left out)."""
    runs: dict[str, str] = {}
    offset = 0
    while offset < len(raw):
        if raw[offset] == 0:
            offset += 1
            continue
        end = raw.find(bytes(16), offset)
        end = len(raw) if end < 0 else end
        runs[str(offset)] = raw[offset:end].hex()
        offset = end
    return {"length": len(raw), "runs": runs}


def plain_record(fields: dict[str, Any]) -> dict[str, Any]:
    def show(value: object) -> object:
        if isinstance(value, bytes):
            return value.hex()
        return [show(element) for element in value] if isinstance(value, tuple) else value

    return {name: show(value) for name, value in fields.items()}


def good_root(name: str, fields: dict[str, Any], key_version: int) -> dict[str, Any]:
    plain = msgpack(tuple(fields.values()))
    raw = root(plain, key_version=key_version, epoch=fields["epoch"])
    return {
        "name": name,
        "key_version": key_version,
        "nonce": ROOT_NONCE.hex(),
        "record": plain_record(fields),
        "plain": plain.hex(),
        "tag": raw[32:48].hex(),
        "bytes": page(raw),
    }


def negative_headers() -> list[tuple[str, str, bytes]]:
    good = header()
    return [
        ("empty file", "TornError", b""),
        ("one byte short", "TornError", good[:-1]),
        ("one byte long", "TornError", good + b"\0"),
        ("bit flipped, checksum not repaired", "TornError", flipped(good, 24)),
        ("checksum flipped", "TornError", flipped(good, 4095)),
        ("all zeros", "TornError", bytes(PAGE)),
        ("another magic", "FormatError", header(magic=b"\x89FSPG\r\n\x1a")),
        ("magic after a text-mode transfer", "FormatError", header(magic=b"\x89FSPF\n\x1a\0")),
        ("version 0", "FormatError", header(version=0)),
        ("version 2: newer", "UnsupportedFormatError", header(version=2)),
        ("unknown flag", "UnsupportedFormatError", header(flags=0x8000)),
        ("chunk size too small", "FormatError", header(chunk_size=2048)),
        ("chunk size too large", "FormatError", header(chunk_size=131072)),
        ("chunk size not a power of two", "FormatError", header(chunk_size=12288)),
        ("too few slots a segment", "FormatError", header(segment_slots=32)),
        ("too many slots a segment", "FormatError", header(segment_slots=2097152)),
        ("slots a segment not a power of two", "FormatError", header(segment_slots=100)),
        ("reserved field not zero", "FormatError", header(reserved=1)),
        ("last reserved byte not zero", "FormatError", header(tail=b"\x01")),
    ]


def negative_keyring() -> list[tuple[str, str, bytes]]:
    good = keyring_record(1, 1)
    return [
        ("cut off", "TornError", good[:-1]),
        ("bit flipped, checksum not repaired", "TornError", flipped(good, 8)),
        ("all zeros", "TornError", bytes(64)),
        ("epoch 0", "FormatError", resummed(good, 0, struct.pack("<I", 0))),
        ("epoch 2^24", "FormatError", resummed(good, 0, struct.pack("<I", 2**24))),
        ("key version 0", "FormatError", resummed(good, 4, struct.pack("<I", 0))),
        ("wrapped bit flipped, checksum repaired", "WrongKeyError", resummed(good, 8, bytes([good[8] ^ 1]))),
        ("another epoch, checksum repaired", "WrongKeyError", resummed(good, 0, struct.pack("<I", 3))),
        ("another key version, checksum repaired", "WrongKeyError", resummed(good, 4, struct.pack("<I", 2))),
        ("wrapped under another volume key", "WrongKeyError", keyring_record(1, 1, volume_key=OTHER_KEY)),
    ]


def negative_roots() -> list[tuple[str, str, bytes]]:
    plain = record()
    good = root(plain)
    shorter = tuple(RECORD.values())[:-1]
    longer = (*RECORD.values(), None)
    wide = msgpack(tuple(RECORD.values()), widest=True)
    return [
        ("empty file", "TornError", b""),
        ("first half only", "TornError", good[:2048]),
        ("half of it zeros", "TornError", good[:2048] + bytes(2048)),
        ("bit flipped, checksum not repaired", "TornError", flipped(good, 48)),
        ("another magic", "FormatError", root(plain, magic=b"FSPFROOU")),
        ("key version 0", "FormatError", root(plain, key_version=0)),
        ("epoch 0", "FormatError", root(record(epoch=0), epoch=0)),
        ("epoch 2^24", "FormatError", root(record(epoch=2**24), epoch=2**24)),
        ("sealed length 0", "FormatError", root(plain, sealed_len=0)),
        ("sealed length 4041", "FormatError", root(plain, sealed_len=4041)),
        ("padding not zero", "FormatError", root(plain, padding_end=b"\x01")),
        ("sealed bit flipped, checksum repaired", "IntegrityError", resummed(good, 48, bytes([good[48] ^ 1]))),
        ("tag flipped, checksum repaired", "IntegrityError", resummed(good, 32, bytes([good[32] ^ 1]))),
        ("nonce flipped, checksum repaired", "IntegrityError", resummed(good, 20, bytes([good[20] ^ 1]))),
        ("another epoch, checksum repaired", "IntegrityError", resummed(good, 12, struct.pack("<I", 3))),
        ("another key version, checksum repaired", "IntegrityError", resummed(good, 8, struct.pack("<I", 2))),
        (
            "one sealed byte more, checksum repaired",
            "IntegrityError",
            resummed(good, 16, struct.pack("<I", len(plain) + 1)),
        ),
        ("under another volume key", "IntegrityError", root(plain, volume_key=OTHER_KEY)),
        ("with another header", "IntegrityError", root(plain, header_bytes=header(segment_slots=8192))),
        ("of another volume", "FormatError", root(record(volume_id=OTHER_ID))),
        ("record of another epoch than the frame", "FormatError", root(record(epoch=1))),
        ("record version 0", "FormatError", root(record(record_version=0))),
        ("record version 2: newer", "UnsupportedFormatError", root(record(record_version=2))),
        ("with a log of an unknown form", "UnsupportedFormatError", root(record(log=2))),
        ("with a log of form 0", "UnsupportedFormatError", root(record(log=0))),
        ("with a log of form true", "UnsupportedFormatError", root(record(log=True))),
        ("with a log that is bytes", "UnsupportedFormatError", root(record(log=b"x" * 16))),
        ("16 elements", "FormatError", root(msgpack(shorter))),
        ("18 elements", "FormatError", root(msgpack(longer))),
        ("integers not in the shortest form", "FormatError", root(wide)),
        ("bytes behind the array", "FormatError", root(plain + b"\xc0")),
        ("array cut off", "FormatError", root(plain[:-1])),
        ("not msgpack", "FormatError", root(b"\xc1")),
        ("an integer instead of the array", "FormatError", root(b"\x01")),
        ("an empty array", "FormatError", root(b"\x90")),
        ("true instead of 1 as record version", "FormatError", root(plain[:3] + b"\xc3" + plain[4:])),
        ("generation 0", "FormatError", root(record(generation=0))),
        ("generation 1 with a previous tag", "FormatError", root(record(generation=1))),
        ("no previous tag though generation 300", "FormatError", root(record(previous_tag=bytes(16)))),
        ("previous tag of 15 bytes", "FormatError", root(record(previous_tag=bytes(15)))),
        ("generation above 2^63 - 1", "FormatError", root(record(generation=2**63))),
        ("namespace depth 9", "FormatError", root(record(namespace_depth=9))),
        ("namespace pointer of 31 bytes", "FormatError", root(record(namespace_pointer=bytes(31)))),
        ("space map is an integer", "FormatError", root(record(space_map=0))),
        ("space map of two elements", "FormatError", root(record(space_map=(0, 0)))),
        ("bytes instead of an integer", "FormatError", root(record(files=b"1"))),
        ("nil instead of an integer", "FormatError", root(record(end_of_slots=None))),
        ("end of slots above 2^40", "FormatError", root(record(end_of_slots=2**40 + 1))),
        (
            "a map instead of the space map",
            "FormatError",
            root(record().replace(msgpack(RECORD["space_map"]), b"\x80")),
        ),
    ]


def good_log(name: str, fields: dict[str, Any], key_version: int) -> dict[str, Any]:
    plain = msgpack(tuple(fields.values()))
    raw = log_frame(plain, key_version=key_version, epoch=fields["epoch"])
    return {
        "name": name,
        "key_version": key_version,
        "nonce": LOG_NONCE.hex(),
        "record": plain_record(fields),
        "plain": plain.hex(),
        "tag": raw[32:48].hex(),
        "bytes": page(raw),
    }


def negative_logs() -> list[tuple[str, str, bytes]]:
    plain = log_record()
    good = log_frame(plain)
    large = log_frame(log_record(pieces=((17, 5000, None, (0, pattern("large piece", 5000))),)))
    shorter = tuple(LOG_RECORD.values())[:-1]
    longer = (*LOG_RECORD.values(), None)
    wide = msgpack(tuple((LOG_RECORD | {"batches": ()}).values()), widest=True)
    return [
        ("empty file", "TornError", b""),
        ("zeros", "TornError", bytes(PAGE)),
        ("head cut off", "TornError", good[:63]),
        ("sealed cut off", "TornError", good[:100]),
        ("padding cut off", "TornError", good[:-1]),
        ("first sector only", "TornError", large[:512] + bytes(len(large) - 512)),
        ("last sectors lost", "TornError", large[:4096] + bytes(len(large) - 4096)),
        ("bit flipped, checksum not repaired", "TornError", flipped(good, 64)),
        ("checksum flipped", "TornError", flipped(good, 56)),
        ("another magic", "TornError", log_frame(plain, magic=b"FSPF-LOH")),
        ("key version 0", "FormatError", log_frame(plain, key_version=0)),
        ("epoch 0", "FormatError", log_frame(log_record(epoch=0), epoch=0)),
        ("epoch 2^24", "FormatError", log_frame(log_record(epoch=2**24), epoch=2**24)),
        ("sealed length 0", "FormatError", log_frame(b"")),
        ("reserved byte not zero", "FormatError", log_frame(plain, reserved=bytes(7) + b"\x01")),
        ("padding not zero", "TornError", log_frame(plain, padding_end=b"\x01")),
        ("sealed bit flipped, checksum repaired", "IntegrityError", log_changed(good, 64, bytes([good[64] ^ 1]))),
        ("tag flipped, checksum repaired", "IntegrityError", log_changed(good, 32, bytes([good[32] ^ 1]))),
        ("nonce flipped, checksum repaired", "IntegrityError", log_changed(good, 20, bytes([good[20] ^ 1]))),
        ("another epoch, checksum repaired", "IntegrityError", log_changed(good, 12, struct.pack("<I", 3))),
        ("another key version, checksum repaired", "IntegrityError", log_changed(good, 8, struct.pack("<I", 2))),
        (
            "one sealed byte more, checksum repaired",
            "IntegrityError",
            log_changed(good, 16, struct.pack("<I", len(plain) + 1)),
        ),
        ("under another volume key", "IntegrityError", log_frame(plain, volume_key=OTHER_KEY)),
        ("with another header", "IntegrityError", log_frame(plain, header_bytes=header(segment_slots=8192))),
        ("record of another epoch than the frame", "FormatError", log_frame(log_record(epoch=1))),
        ("record version 0", "FormatError", log_frame(log_record(record_version=0))),
        ("record version 2: newer", "UnsupportedFormatError", log_frame(log_record(record_version=2))),
        ("10 elements", "FormatError", log_frame(msgpack(shorter))),
        ("12 elements", "FormatError", log_frame(msgpack(longer))),
        ("integers not in the shortest form", "FormatError", log_frame(wide)),
        ("bytes behind the array", "FormatError", log_frame(plain + b"\xc0")),
        ("array cut off", "FormatError", log_frame(plain[:-1])),
        ("not msgpack", "FormatError", log_frame(b"\xc1")),
        ("an integer instead of the array", "FormatError", log_frame(b"\x01")),
        ("a map instead of the array", "FormatError", log_frame(b"\x80")),
        ("an extension instead of the array", "FormatError", log_frame(b"\xd4\x01\x00")),
        ("an empty array", "FormatError", log_frame(b"\x90")),
        ("volume id of 15 bytes", "FormatError", log_frame(log_record(volume_id=bytes(15)))),
        ("generation 1", "FormatError", log_frame(log_record(generation=1))),
        ("generation above 2^63 - 1", "FormatError", log_frame(log_record(generation=2**63))),
        ("previous tag of 15 bytes", "FormatError", log_frame(log_record(previous_tag=bytes(15)))),
        ("anchor tag is nil", "FormatError", log_frame(log_record(anchor_tag=None))),
        ("end of slots above 2^40", "FormatError", log_frame(log_record(end_of_slots=2**40 + 1))),
        ("batches are an integer", "FormatError", log_frame(log_record(batches=0))),
        ("a batch of 8 elements", "FormatError", log_frame(log_record(batches=(tuple(BATCH.values())[:-1],)))),
        ("an inode of 16 columns", "FormatError", log_frame(with_batch(inodes=(tuple(INODE.values())[:-1],)))),
        ("size of an inode is nil", "FormatError", log_frame(with_inode(size=None))),
        ("size of an inode below 0", "FormatError", log_frame(with_inode(size=-1))),
        ("inode 0", "FormatError", log_frame(with_inode(ino=0))),
        ("pointer of 31 bytes", "FormatError", log_frame(with_inode(pointer=bytes(31)))),
        ("parent 0", "FormatError", log_frame(with_inode(parent=0))),
        ("target is an integer", "FormatError", log_frame(with_inode(target=1))),
        ("a name that is an integer", "FormatError", log_frame(with_batch(names=((1, 9, 3, 17),)))),
        ("a name of inode 0", "FormatError", log_frame(with_batch(names=((1, 9, b"n", 0),)))),
        ("a removed name of 3 elements", "FormatError", log_frame(with_batch(removed=((1, 2, 3),)))),
        ("xattrs of a deleted inode are 1", "FormatError", log_frame(with_batch(deleted=((5, 1),)))),
        ("next inode 0", "FormatError", log_frame(with_batch(next_ino=0))),
        ("files is true", "FormatError", log_frame(with_batch(files=True))),
        ("reflushed inode is bytes", "FormatError", log_frame(with_batch(reflushed=(b"17",)))),
        ("a piece of 3 elements", "FormatError", log_frame(log_record(pieces=((17, 300, None),)))),
        ("a piece of inode 0", "FormatError", log_frame(with_piece(ino=0))),
        ("cut below 0", "FormatError", log_frame(with_piece(cut=-1))),
        ("an offset without data", "FormatError", log_frame(with_piece(chunks=(0,)))),
        ("data and offset exchanged", "FormatError", log_frame(with_piece(chunks=(b"data", 0)))),
    ]


def document() -> dict[str, Any]:
    epochs = (1, 2, 0x010203)
    siv_plain = [(length, pattern(f"siv {length}", length)) for length in (1, 15, 16, 17, 31, 32, 33, 100)]
    first = pattern("chunk", PAGE)
    chunks = [
        block("chunk", first, slot=5, epoch=2, counter=0),
        block("the same chunk again: another nonce", first, slot=6, epoch=2, counter=1),
        block("zeros", bytes(PAGE), slot=2**40 - 1, epoch=2**24 - 1, counter=2**40 - 1),
        block("authenticated chunk", first, slot=7, epoch=2, counter=2, authenticated=True),
    ]
    node = b"".join(bytes.fromhex(chunk["pointer"]) for chunk in chunks[:2]).ljust(PAGE, b"\0")
    chunks.append(block("node: two chunks, 126 holes", node, slot=8, epoch=2, counter=3))
    headers: list[tuple[str, dict[str, Any]]] = [
        ("default", {}),
        ("large chunks", {"chunk_size": 65536, "segment_slots": 64}),
    ]
    negatives = [("header", *case) for case in negative_headers()]
    negatives += [("keyring", *case) for case in negative_keyring()]
    negatives += [("root", *case) for case in negative_roots()]
    negatives += [("log", *case) for case in negative_logs()]
    return {
        "about": "Test vectors of FSPF format 1; made by tools/make_vectors.py without code of FSPF. Bytes are hexadecimal; "
        "a page is its length and its runs that are not zero, by offset.",
        "volume_key": VOLUME_KEY.hex(),
        "volume_id": VOLUME_ID.hex(),
        "epoch_key": EPOCH_KEY.hex(),
        "hkdf": [
            {
                "key": VOLUME_KEY.hex(),
                "salt": VOLUME_ID.hex(),
                "info": info.hex(),
                "derived": hkdf(VOLUME_KEY, info, VOLUME_ID).hex(),
            }
            for info in (
                b"fspf 1 keyring",
                *(b"fspf 1 root " + struct.pack("<I", epoch) for epoch in epochs),
                *(b"fspf 1 log " + struct.pack("<I", epoch) for epoch in epochs),
            )
        ]
        + [
            {
                "key": VOLUME_KEY.hex(),
                "salt": "",
                "info": b"no salt".hex(),
                "derived": hkdf(VOLUME_KEY, b"no salt", b"").hex(),
            }
        ],
        "siv": [
            {
                "key": VOLUME_KEY.hex(),
                "aad": b"aad".hex(),
                "plain": plain.hex(),
                "sealed": siv(VOLUME_KEY, b"aad", plain).hex(),
            }
            for _, plain in siv_plain
        ],
        "headers": [
            {
                "name": name,
                "volume_id": VOLUME_ID.hex(),
                "chunk_size": 4096,
                "segment_slots": 16384,
                **sizes,
                "bytes": page(header(**sizes)),
            }
            for name, sizes in headers
        ],
        "keyring": [
            {
                "epoch": epoch,
                "key_version": version,
                "aad": keyring_aad(epoch, version).hex(),
                "bytes": keyring_record(epoch, version).hex(),
            }
            for epoch, version in ((1, 1), (2, 1), (2**24 - 1, 2**32 - 1))
        ],
        "roots": [
            good_root("first commit", FIRST_RECORD, 1),
            good_root("with a space map", RECORD, 7),
            good_root("with a log", RECORD | {"space_map": None, "log": 1}, 1),
        ],
        "logs": [
            good_log("of everything", LOG_RECORD, 7),
            good_log("of nothing", LOG_RECORD | {"batches": (), "pieces": ()}, 1),
            good_log(
                "of two pages", LOG_RECORD | {"pieces": ((17, 5000, None, (0, pattern("large piece", 5000))),)}, 1
            ),
        ],
        "blocks": chunks,
        "negative": [
            {"what": what, "why": why, "error": error, "bytes": page(raw)} for what, why, error, raw in negatives
        ],
    }


def main() -> int:
    """Write the file, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the file that is there, change nothing")
    options = parser.parse_args()
    text = json.dumps(document(), indent=1) + "\n"
    if options.check:
        if not OUTPUT.exists() or OUTPUT.read_text(encoding="ascii") != text:
            print(f"{OUTPUT} is not what tools/make_vectors.py computes", file=sys.stderr)
            return 1
        return 0
    OUTPUT.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
