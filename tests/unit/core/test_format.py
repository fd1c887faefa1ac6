"""Header, keyring and root records: every byte is named, and nothing but what `pack` writes is read.

The same against bytes that were computed without this code: test_vectors.py.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fspf.core import format as fmt
from fspf.core.errors import FormatError, IntegrityError, TornError, UnsupportedFormatError, WrongKeyError
from fspf.core.format import Header, Keyring, KeyringRecord, RootFrame, RootRecord
from fspf.core.keys import SecretKey
from fspf.core.types import HOLE, MAX_EPOCH, NO_TAG, ContentRoot

VOLUME_KEY: Final = SecretKey.from_bytes(bytes(range(32)))
OTHER_KEY: Final = SecretKey.from_bytes(bytes(range(1, 33)))
VOLUME_ID: Final = b"volume id 16 byt"
HEADER: Final = Header(VOLUME_ID)
NONCE: Final = b"twelve bytes"
RECORD: Final = RootRecord(
    volume_id=VOLUME_ID,
    generation=300,
    epoch=5,
    previous_tag=b"p" * 16,
    anchor_generation=299,
    anchor_tag=b"p" * 16,
    namespace=ContentRoot(1_000_000, 2, b"n" * 32),
    space_map=ContentRoot(8192, 1, b"m" * 32),
    end_of_slots=70_000,
    files=12,
    total_bytes=5_000_000_000,
    keyring_epochs=5,
    created_ns=1_700_000_000_123_456_789,
)
SEALED_LEN: Final = struct.unpack_from("<I", RECORD.seal(VOLUME_KEY, 1, HEADER.pack(), NONCE), 16)[0]

HEADER_FIELDS: Final = {
    "magic": (0, 8),
    "version": (8, 10),
    "flags": (10, 12),
    "chunk_size": (12, 16),
    "segment_slots": (16, 20),
    "reserved": (20, 24),
    "rest": (40, 4088),
}
HEADER_UNCHECKED: Final = {
    "volume_id": (24, 40),  # any 16 bytes are an id; the root record's AAD binds it
    "checksum": (4088, 4096),  # what the others are checked with; always repaired here
}
KEYRING_FIELDS: Final = {"wrapped": (8, 56)}
KEYRING_UNCHECKED: Final = {
    "epoch": (0, 4),  # the first byte gives another valid epoch; the wrapped key's AAD binds it
    "key_version": (4, 8),  # likewise
    "checksum": (56, 64),
}
ROOT_FIELDS: Final = {
    "magic": (0, 8),
    "key_version": (8, 12),
    "epoch": (12, 16),
    "sealed_len": (16, 20),
    "nonce": (20, 32),
    "tag": (32, 48),
    "sealed": (48, 48 + SEALED_LEN),
    "padding": (48 + SEALED_LEN, 4088),
}
ROOT_UNCHECKED: Final = {"checksum": (4088, 4096)}

Ranges = dict[str, tuple[int, int]]


def resummed(raw: bytes, offset: int) -> bytes:
    """Flip a bit and repair the checksum, as an attacker does."""
    body = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 : -8]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def flipped(raw: bytes, offset: int) -> bytes:
    return raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]


def sealed(record: RootRecord = RECORD) -> bytes:
    return record.seal(VOLUME_KEY, 1, HEADER.pack(), NONCE)


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        pytest.param(HEADER_FIELDS | HEADER_UNCHECKED, fmt.HEADER_LEN, id="header"),
        pytest.param(KEYRING_FIELDS | KEYRING_UNCHECKED, fmt.KEYRING_RECORD_LEN, id="keyring"),
        pytest.param(ROOT_FIELDS | ROOT_UNCHECKED, fmt.ROOT_LEN, id="root"),
    ],
)
def test_every_byte_is_named(fields: Ranges, length: int) -> None:  # a new field cannot be forgotten
    assert sorted(i for low, high in fields.values() for i in range(low, high)) == list(range(length))


@pytest.mark.parametrize("field", HEADER_FIELDS)
@pytest.mark.parametrize("end", [0, -1])
def test_tampered_header_field_is_refused(field: str, end: int) -> None:
    with pytest.raises((FormatError, UnsupportedFormatError)) as caught:
        Header.parse(resummed(HEADER.pack(), range(*HEADER_FIELDS[field])[end]))
    assert not isinstance(caught.value, TornError)


@pytest.mark.parametrize("end", [0, -1])
def test_another_volume_id_is_another_volume(end: int) -> None:
    changed = resummed(HEADER.pack(), range(*HEADER_UNCHECKED["volume_id"])[end])
    assert Header.parse(changed).volume_id != VOLUME_ID
    with pytest.raises(IntegrityError):
        RootFrame.parse(sealed()).open(VOLUME_KEY, changed)


@pytest.mark.parametrize("field", KEYRING_FIELDS | KEYRING_UNCHECKED)
@pytest.mark.parametrize("end", [0, -1])
def test_tampered_keyring_field_is_refused(field: str, end: int) -> None:
    raw = KeyringRecord.wrap(VOLUME_KEY, 1, VOLUME_ID, 2, OTHER_KEY).pack()
    offset = range(*(KEYRING_FIELDS | KEYRING_UNCHECKED)[field])[end]
    changed = flipped(raw, offset) if field == "checksum" else resummed(raw, offset)
    with pytest.raises((FormatError, WrongKeyError)) as caught:
        KeyringRecord.parse(changed).unwrap(VOLUME_KEY, VOLUME_ID)
    assert isinstance(caught.value, TornError) == (field == "checksum")


@pytest.mark.parametrize("field", ROOT_FIELDS)
@pytest.mark.parametrize("end", [0, -1])
def test_tampered_root_field_is_refused(field: str, end: int) -> None:
    changed = resummed(sealed(), range(*ROOT_FIELDS[field])[end])
    with pytest.raises(IntegrityError) as caught:
        RootFrame.parse(changed).open(VOLUME_KEY, HEADER.pack())
    assert not isinstance(caught.value, TornError)


@pytest.mark.parametrize("raw", [HEADER.pack(), sealed(), KeyringRecord(1, 1, bytes(48)).pack()])
def test_any_flipped_bit_without_the_checksum_is_torn(raw: bytes) -> None:
    parse = {64: KeyringRecord.parse}.get(len(raw), Header.parse if raw[0] == 0x89 else RootFrame.parse)
    for offset in {*range(0, len(raw), 97), len(raw) - 1}:
        with pytest.raises(TornError, match="torn or rotten"):
            parse(flipped(raw, offset))
    for length in (0, 1, len(raw) - 1, len(raw) + 1):
        with pytest.raises(TornError, match=f"{length} found"):
            parse((raw + b"\0")[:length])


def test_newer_format_is_named_as_such() -> None:
    body = bytearray(HEADER.pack()[:-8])
    body[8] = 2
    with pytest.raises(UnsupportedFormatError, match=r"format 2 is newer than 1.*use a newer fspf"):
        Header.parse(bytes(body) + xxhash.xxh3_64_intdigest(bytes(body)).to_bytes(8, "little"))


@given(
    volume_id=st.binary(min_size=16, max_size=16),
    chunk_size=st.sampled_from([4096, 8192, 16384, 32768, 65536]),
    segment_slots=st.integers(6, 20).map(lambda bits: 1 << bits),
)
def test_header_round_trip(volume_id: bytes, chunk_size: int, segment_slots: int) -> None:
    header = Header(volume_id, chunk_size, segment_slots)
    assert Header.parse(header.pack()) == header


numbers = st.integers(0, 2**63 - 1)
tags = st.binary(min_size=16, max_size=16).filter(any)
content_roots = st.builds(ContentRoot, numbers, st.integers(0, 8), st.binary(min_size=32, max_size=32))
records = st.builds(
    RootRecord,
    volume_id=st.just(VOLUME_ID),
    generation=st.integers(2, 2**63 - 1),
    epoch=st.integers(1, MAX_EPOCH),
    previous_tag=tags,
    anchor_generation=numbers,
    anchor_tag=tags,
    namespace=content_roots,
    space_map=st.none() | content_roots,
    end_of_slots=st.integers(0, 2**40),
    files=numbers,
    total_bytes=numbers,
    keyring_epochs=st.integers(0, MAX_EPOCH),
    created_ns=numbers,
)


@given(record=records, key_version=st.integers(1, 2**32 - 1))
def test_root_round_trip(record: RootRecord, key_version: int) -> None:
    raw = record.seal(VOLUME_KEY, key_version, HEADER.pack(), NONCE)
    frame = RootFrame.parse(raw)
    assert frame.pack() == raw
    assert frame.tag == fmt.frame_tag(raw)
    opened = frame.open(VOLUME_KEY, HEADER.pack())
    assert opened == replace(record, tag=frame.tag, key_version=key_version)
    assert opened.seal(VOLUME_KEY, key_version, HEADER.pack(), NONCE) == raw


@given(claimed=st.binary(max_size=200) | st.binary(min_size=4096, max_size=4096))
def test_garbage_raises_format_errors_only(claimed: bytes) -> None:
    for parse in (Header.parse, KeyringRecord.parse, RootFrame.parse):
        with pytest.raises(FormatError):
            parse(claimed)


@given(plain=st.binary(min_size=1, max_size=300))
def test_garbage_inside_the_seal_raises_format_errors_only(plain: bytes) -> None:
    with pytest.raises((FormatError, UnsupportedFormatError)):
        fmt._decode(plain, 5)


def test_own_mistakes_are_not_sealed() -> None:
    for wrong in (
        replace(RECORD, generation=0),
        replace(RECORD, previous_tag=NO_TAG),
        replace(RECORD, namespace=ContentRoot(0, 0, HOLE[1:])),
        replace(RECORD, epoch=0),
    ):
        with pytest.raises((FormatError, AssertionError)):
            sealed(wrong)


class TestKeyring:
    ONE = KeyringRecord(1, 1, b"1" * 48)
    TWO = KeyringRecord(2, 1, b"2" * 48)
    THREE = KeyringRecord(3, 1, b"3" * 48)

    @pytest.mark.parametrize("file", [0, 1])
    def test_torn_record_is_taken_from_the_other_copy(self, file: int) -> None:
        whole = self.ONE.pack() + self.TWO.pack()
        copies = [whole, whole]
        copies[file] = flipped(whole, 70)
        keyring = Keyring.parse(*copies)
        assert keyring == Keyring((self.ONE, self.TWO), (), repair=True)
        assert keyring.pack() == whole

    @pytest.mark.parametrize("file", [0, 1])
    def test_missing_copy_is_made_up_for(self, file: int) -> None:
        copies = [self.ONE.pack(), self.ONE.pack()]
        copies[file] = b""
        assert Keyring.parse(*copies) == Keyring((self.ONE,), (), repair=True)

    def test_equal_copies_need_no_repair(self) -> None:
        assert Keyring.parse(self.ONE.pack(), self.ONE.pack()) == Keyring((self.ONE,), (), repair=False)

    def test_each_copy_torn_elsewhere(self) -> None:
        whole = self.ONE.pack() + self.TWO.pack() + self.THREE.pack()
        keyring = Keyring.parse(flipped(whole, 0), flipped(whole, 190))
        assert set(keyring.records) == {self.ONE, self.TWO, self.THREE}
        assert keyring.torn == ()

    def test_torn_in_both_is_ignored_and_said(self) -> None:
        whole = self.ONE.pack() + self.TWO.pack()
        assert Keyring.parse(whole[:100], whole[:100]) == Keyring((self.ONE,), (1,), repair=True)
        assert Keyring.parse(flipped(whole, 0), flipped(whole, 0)) == Keyring((self.TWO,), (0,), repair=True)

    def test_record_cut_off_in_one_is_taken_from_the_other(self) -> None:
        whole = self.ONE.pack() + self.TWO.pack()
        assert Keyring.parse(whole[:80], whole).records == (self.ONE, self.TWO)
        assert Keyring.parse(whole, whole[:80]).records == (self.ONE, self.TWO)

    def test_copies_of_different_ages_are_joined(self) -> None:
        keyring = Keyring.parse(self.ONE.pack() + self.TWO.pack(), self.ONE.pack())
        assert keyring == Keyring((self.ONE, self.TWO), (), repair=True)

    def test_two_keys_of_one_epoch_are_refused(self) -> None:
        other = replace(self.TWO, wrapped=b"x" * 48)
        for first, second in (
            (self.TWO.pack() + other.pack(), b""),
            (self.TWO.pack(), other.pack()),
        ):
            with pytest.raises(FormatError, match="two different keys of epoch 2"):
                Keyring.parse(first, second)

    def test_versions_of_the_volume_key_are_kept_apart(self) -> None:
        again = replace(self.ONE, key_version=2, wrapped=b"x" * 48)
        raw = self.ONE.pack() + again.pack()
        keyring = Keyring.parse(raw, raw)
        assert keyring.of_version(1) == {1: self.ONE}
        assert keyring.of_version(2) == {1: again}
        assert keyring.of_version(3) == {}

    def test_impossible_record_with_right_checksum_is_refused(self) -> None:
        body = struct.pack("<II48s", 0, 1, b"")
        raw = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
        with pytest.raises(FormatError, match="epoch 0"):
            Keyring.parse(raw, raw)

    def test_wrapped_key_round_trip(self) -> None:
        record = KeyringRecord.wrap(VOLUME_KEY, 3, VOLUME_ID, 7, OTHER_KEY)
        assert KeyringRecord.parse(record.pack()).unwrap(VOLUME_KEY, VOLUME_ID) == OTHER_KEY
