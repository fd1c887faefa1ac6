"""Format 1 against vectors that tools/make_vectors.py computed without code of FSPF."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import xxhash

import fspf_native
from fspf.core import errors, keys
from fspf.core.format import Header, KeyringRecord, RootFrame, RootRecord
from fspf.core.keys import SecretKey
from fspf.core.log import Batch, LogFrame, LogRecord, Piece
from fspf.core.types import ContentRoot

ROOT: Final = Path(__file__).resolve().parents[3]
VECTORS: Final[dict[str, Any]] = json.loads((ROOT / "tests/vectors/format1.json").read_text(encoding="ascii"))
VOLUME_KEY: Final = SecretKey.from_bytes(bytes.fromhex(VECTORS["volume_key"]))
VOLUME_ID: Final = bytes.fromhex(VECTORS["volume_id"])
EPOCH_KEY: Final = SecretKey.from_bytes(bytes.fromhex(VECTORS["epoch_key"]))


def page(entry: dict[str, Any]) -> bytes:
    raw = bytearray(entry["length"])
    for offset, run in entry["runs"].items():
        raw[int(offset) : int(offset) + len(run) // 2] = bytes.fromhex(run)
    return bytes(raw)


def named(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector.get("name"))


HEADER: Final = page(VECTORS["headers"][0]["bytes"])


def test_vectors_are_what_the_independent_code_computes() -> None:
    subprocess.run([sys.executable, ROOT / "tools/make_vectors.py", "--check"], check=True)


@named("hkdf")
def test_derivation(vector: dict[str, str]) -> None:
    derived = SecretKey.from_bytes(bytes.fromhex(vector["key"])).derive(
        bytes.fromhex(vector["info"]), bytes.fromhex(vector["salt"])
    )
    assert derived == SecretKey.from_bytes(bytes.fromhex(vector["derived"]))


def test_derivation_labels_are_those_of_the_vectors() -> None:
    derived = [SecretKey.from_bytes(bytes.fromhex(vector["derived"])) for vector in VECTORS["hkdf"]]
    assert keys.wrapping_key(VOLUME_KEY, VOLUME_ID) == derived[0]
    assert [keys.root_key(VOLUME_KEY, VOLUME_ID, epoch) for epoch in (1, 2, 0x010203)] == derived[1:4]
    assert [keys.log_key(VOLUME_KEY, VOLUME_ID, epoch) for epoch in (1, 2, 0x010203)] == derived[4:7]


@named("siv")
def test_siv(vector: dict[str, str]) -> None:
    key = SecretKey.from_bytes(bytes.fromhex(vector["key"]))
    plain, sealed, aad = (bytes.fromhex(vector[name]) for name in ("plain", "sealed", "aad"))
    assert key.siv_seal(plain, aad) == sealed
    assert key.siv_open(sealed, aad) == plain
    if len(plain) == 32:
        assert key.wrap(SecretKey.from_bytes(plain), aad) == sealed
        assert key.unwrap(sealed, aad) == SecretKey.from_bytes(plain)


@named("headers")
def test_header(vector: dict[str, Any]) -> None:
    header = Header(bytes.fromhex(vector["volume_id"]), vector["chunk_size"], vector["segment_slots"])
    assert header.pack() == page(vector["bytes"])
    assert Header.parse(page(vector["bytes"])) == header


@named("keyring")
def test_keyring_record(vector: dict[str, Any]) -> None:
    raw, epoch, version = bytes.fromhex(vector["bytes"]), vector["epoch"], vector["key_version"]
    assert keys.keyring_aad(VOLUME_ID, epoch, version) == bytes.fromhex(vector["aad"])
    assert KeyringRecord.wrap(VOLUME_KEY, version, VOLUME_ID, epoch, EPOCH_KEY).pack() == raw
    assert KeyringRecord.parse(raw).unwrap(VOLUME_KEY, VOLUME_ID) == EPOCH_KEY


@named("roots")
def test_root_record(vector: dict[str, Any]) -> None:
    fields, raw = vector["record"], page(vector["bytes"])
    space_map = fields["space_map"]
    record = RootRecord(
        volume_id=bytes.fromhex(fields["volume_id"]),
        generation=fields["generation"],
        epoch=fields["epoch"],
        previous_tag=bytes.fromhex(fields["previous_tag"]),
        anchor_generation=fields["anchor_generation"],
        anchor_tag=bytes.fromhex(fields["anchor_tag"]),
        namespace=ContentRoot(
            fields["namespace_size"], fields["namespace_depth"], bytes.fromhex(fields["namespace_pointer"])
        ),
        space_map=space_map and ContentRoot(space_map[0], space_map[1], bytes.fromhex(space_map[2])),
        end_of_slots=fields["end_of_slots"],
        files=fields["files"],
        total_bytes=fields["bytes"],
        keyring_epochs=fields["keyring_epochs"],
        created_ns=fields["created_ns"],
        log_follows=fields["log"] == 1,
        tag=bytes.fromhex(vector["tag"]),
        key_version=vector["key_version"],
    )
    assert RootFrame.parse(raw).open(VOLUME_KEY, HEADER) == record
    assert record.seal(VOLUME_KEY, vector["key_version"], HEADER, bytes.fromhex(vector["nonce"])) == raw


def _inode(row: list[Any]) -> tuple[Any, ...]:
    *numbers, pointer, chunks, parent, target = row
    binary = [None if value is None else bytes.fromhex(value) for value in (pointer, target)]
    return (*numbers, binary[0], chunks, parent, binary[1])


def _batch(fields: list[Any]) -> Batch:
    inodes, names, removed, deleted, *rest = fields
    return Batch(
        [_inode(row) for row in inodes],
        [(parent, cookie, bytes.fromhex(name), ino) for parent, cookie, name, ino in names],
        [(parent, cookie) for parent, cookie in removed],
        [(ino, xattrs) for ino, xattrs in deleted],
        *rest,
    )


def _piece(fields: list[Any]) -> Piece:
    ino, size, cut, chunks = fields
    return Piece(ino, size, cut, tuple(bytes.fromhex(each) if isinstance(each, str) else each for each in chunks))


@named("logs")
def test_log_record(vector: dict[str, Any]) -> None:
    fields, raw = vector["record"], page(vector["bytes"])
    record = LogRecord(
        volume_id=bytes.fromhex(fields["volume_id"]),
        generation=fields["generation"],
        epoch=fields["epoch"],
        previous_tag=bytes.fromhex(fields["previous_tag"]),
        anchor_generation=fields["anchor_generation"],
        anchor_tag=bytes.fromhex(fields["anchor_tag"]),
        end_of_slots=fields["end_of_slots"],
        batches=tuple(map(_batch, fields["batches"])),
        pieces=tuple(map(_piece, fields["pieces"])),
        created_ns=fields["created_ns"],
        tag=bytes.fromhex(vector["tag"]),
    )
    key = keys.log_key(VOLUME_KEY, VOLUME_ID, record.epoch)
    frame = LogFrame.parse(raw, 0)
    assert frame.length == len(raw)
    assert frame.open(key, HEADER) == record
    assert record.seal_frame(key, vector["key_version"], HEADER, bytes.fromhex(vector["nonce"])) == (raw, record.tag)
    assert LogFrame.parse(raw * 2, len(raw)) == frame, "wherever it lies"


@named("blocks")
def test_sealed_block(vector: dict[str, Any]) -> None:
    plain, stored, tag = (bytes.fromhex(vector[name]) for name in ("plain", "stored", "tag"))
    protection, counter = vector["protection"], vector["counter"]
    sealed, tags = bytearray(len(plain)), bytearray(16)
    fspf_native.seal_chunks(EPOCH_KEY, counter, plain, sealed, tags, len(plain), protection)
    assert bytes(sealed) == stored
    assert bytes(tags) == tag
    opened = bytearray(len(plain))
    fspf_native.open_chunks(EPOCH_KEY, counter, stored, tag, opened, len(plain), protection)
    assert opened == plain
    entry = bytes.fromhex(vector["checksum_entry"])
    assert int.from_bytes(entry[:8], "little") == fspf_native.xxh3(stored) == xxhash.xxh3_64_intdigest(stored)


@pytest.mark.parametrize(
    "vector", VECTORS["negative"], ids=lambda vector: f"{vector['what']}: {vector['why']}".replace(" ", "-")
)
def test_negative_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    raw = page(vector["bytes"])
    with pytest.raises(errors.FspfError) as caught:
        match vector["what"]:
            case "header":
                Header.parse(raw)
            case "keyring":
                KeyringRecord.parse(raw).unwrap(VOLUME_KEY, VOLUME_ID)
            case "root":
                RootFrame.parse(raw).open(VOLUME_KEY, HEADER)
            case "log":
                frame = LogFrame.parse(raw, 0)
                frame.open(keys.log_key(VOLUME_KEY, VOLUME_ID, frame.epoch), HEADER)
    assert type(caught.value).__name__ == vector["error"]
