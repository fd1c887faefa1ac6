"""Frames and records of the intent log: only what was sealed for this very place opens, and a chain ends where it ends."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import msgpack
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fspf.core import log as logs
from fspf.core.errors import FormatError, FspfError, IntegrityError, TornError, UnsupportedFormatError
from fspf.core.format import Header
from fspf.core.keys import SecretKey, log_key
from fspf.core.log import LOG_LEN, LOG_PAGE, Batch, LogFrame, LogRecord, Piece, follow

VOLUME_ID: Final = bytes(range(16))
HEADER: Final = Header(VOLUME_ID, 4096, 16384).pack()
VOLUME_KEY: Final = SecretKey.from_bytes(bytes(range(32)))
EPOCH: Final = 3
KEY: Final = log_key(VOLUME_KEY, VOLUME_ID, EPOCH)
ROOT_TAG: Final = b"\xaa" * 16
NONCE: Final = bytes(range(12))

# Every byte of a frame, as docs/FORMAT.md 4.1 names it.
FIELDS: Final = {
    "magic": (0, 8),
    "key_version": (8, 12),
    "epoch": (12, 16),
    "sealed_len": (16, 20),
    "nonce": (20, 32),
    "tag": (32, 48),
    "reserved": (48, 56),
    "checksum": (56, 64),
}


def row(ino: int = 2, **changes: Any) -> tuple[Any, ...]:
    columns = {
        "ino": ino, "mode": 0o100644, "uid": 0, "gid": 0, "rdev": 0, "nlink": 1, "atime_ns": 1, "mtime_ns": -2, "ctime_ns": 3,
        "btime_ns": 4, "protection": 0, "size": 0, "depth": 0, "pointer": None, "chunks": 0, "parent": None, "target": None,
    }  # fmt: skip
    return tuple((columns | changes).values())


def batch(number: int = 0) -> Batch:
    return Batch([row(2 + number)], [(1, 1 + number, b"name%d" % number, 2 + number)], [], [], 1, 0, 3 + number, 2, [])


def record(generation: int = 8, previous_tag: bytes = ROOT_TAG, **changes: Any) -> LogRecord:
    made = LogRecord(
        volume_id=VOLUME_ID,
        generation=generation,
        epoch=EPOCH,
        previous_tag=previous_tag,
        anchor_generation=generation - 1,
        anchor_tag=previous_tag,
        end_of_slots=100,
        batches=(batch(generation),),
        pieces=(Piece(2, 5, None, (0, b"hello")),),
        created_ns=generation,
    )
    return replace(made, **changes)


def seal(made: LogRecord, *, key: SecretKey = KEY, version: int = 1, nonce: bytes = NONCE) -> tuple[bytes, bytes]:
    return made.seal_frame(key, version, HEADER, nonce)


def opened(raw: bytes, offset: int = 0) -> LogRecord:
    return LogFrame.parse(raw, offset).open(KEY, HEADER)


def resummed(raw: bytes) -> bytes:
    """What an attacker writes who repairs the checksum."""
    length = int.from_bytes(raw[16:20], "little")
    check = xxhash.xxh3_64_intdigest(raw[:56] + raw[64 : 64 + length])
    return raw[:56] + check.to_bytes(8, "little") + raw[64:]


def flip(raw: bytes, place: int, bit: int = 1) -> bytes:
    return raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]


def fields(raw: bytes) -> dict[str, tuple[int, int]]:
    end = 64 + int.from_bytes(raw[16:20], "little")
    return {**FIELDS, "sealed": (64, end), "padding": (end, len(raw))}


GOOD, TAG = seal(record())
NAMES: Final = list(fields(GOOD))


def test_what_was_sealed_is_opened() -> None:
    assert opened(GOOD) == replace(record(), tag=TAG)
    assert len(GOOD) % LOG_PAGE == 0
    assert opened(bytes(LOG_PAGE) + GOOD, LOG_PAGE).tag == TAG


def test_every_byte_is_named() -> None:
    covered = [byte for low, high in fields(GOOD).values() for byte in range(low, high)]
    assert sorted(covered) == list(range(len(GOOD)))


@pytest.mark.parametrize("repaired", [False, True], ids=["as it is", "checksum repaired"])
@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize("field", NAMES)
def test_tampered_field_is_refused(field: str, end: str, repaired: bool) -> None:
    low, high = fields(GOOD)[field]
    for bit in (0x01, 0x80):
        raw = flip(GOOD, low if end == "first" else high - 1, bit)
        if repaired and field == "checksum":
            assert resummed(raw) == GOOD
            continue
        with pytest.raises(FspfError) as info:
            opened(resummed(raw) if repaired else raw)
        if not repaired or field in {"magic", "padding"}:  # not the work of an attacker, or as good as none
            assert type(info.value) is TornError
        else:
            assert type(info.value) in {FormatError, IntegrityError, TornError}
            assert type(info.value) is not TornError or field == "sealed_len"  # longer than the file is


def test_any_flipped_byte_is_refused() -> None:
    for place in range(fields(GOOD)["padding"][0] + 1):
        with pytest.raises(TornError):
            opened(flip(GOOD, place))


def test_a_frame_that_is_cut_off_is_torn() -> None:
    for length in (*range(70), 512, len(GOOD) - 512, len(GOOD) - 1):
        with pytest.raises(TornError):
            LogFrame.parse(GOOD[:length], 0)


@pytest.mark.parametrize("behind", [b"\0", b"\xff"], ids=["over nothing", "over an older round"])
def test_a_write_that_was_torn_at_a_sector_is_torn(behind: bytes) -> None:
    data = bytes(range(256)) * 60  # nothing repeats within a sector
    raw, _ = seal(record(pieces=(Piece(2, len(data), None, (0, data)),)))
    for cut in range(512, fields(raw)["padding"][0], 512):
        for torn in (raw[:cut].ljust(len(raw), behind), (behind * cut) + raw[cut:]):
            with pytest.raises(TornError):
                LogFrame.parse(torn, 0)


def test_it_opens_only_with_its_key_and_its_header() -> None:
    frame = LogFrame.parse(GOOD, 0)
    for key in (
        log_key(VOLUME_KEY, VOLUME_ID, EPOCH + 1),
        log_key(VOLUME_KEY, bytes(16), EPOCH),
        log_key(SecretKey.generate(), VOLUME_ID, EPOCH),
    ):
        with pytest.raises(IntegrityError, match="tag wrong"):
            frame.open(key, HEADER)
    with pytest.raises(IntegrityError, match="tag wrong"):
        frame.open(KEY, Header(VOLUME_ID, 8192, 16384).pack())


# -- one encoding per value


def sealed_plain(plain: bytes) -> bytes:
    """Seal what our own code would never write."""
    prefix = struct.pack("<8sIII", logs.LOG_MAGIC, 1, EPOCH, len(plain))
    sealed, tag = KEY.gcm_seal(NONCE, plain, HEADER + prefix)
    return logs._frame(1, EPOCH, NONCE, tag, sealed)


def elements() -> list[Any]:
    found: list[Any] = msgpack.unpackb(record()._pack_plain(), use_list=True)
    return found


def test_the_way_the_forgeries_are_sealed_is_right() -> None:
    assert opened(sealed_plain(msgpack.packb(elements()))) == replace(record(), tag=TAG)


def _wide_integer(plain: bytes) -> bytes:
    assert plain[0] == 0x9B
    assert plain[1] == 0x01
    return plain[:1] + b"\xcc\x01" + plain[2:]


def _wide_binary(plain: bytes) -> bytes:
    assert plain[2:4] == b"\xc4\x10"
    return plain[:2] + b"\xc5\x00\x10" + plain[4:]


def _wide_array(plain: bytes) -> bytes:
    return b"\xdc\x00\x0b" + plain[1:]


def _text_for_binary(plain: bytes) -> bytes:
    return plain.replace(msgpack.packb(b"hello"), msgpack.packb("hello"))


def _more(plain: bytes) -> bytes:
    return plain + b"\0"


@pytest.mark.parametrize("change", [_wide_integer, _wide_binary, _wide_array, _text_for_binary, _more])
def test_another_encoding_of_the_same_value_is_refused(change: Callable[[bytes], bytes]) -> None:
    plain = record()._pack_plain()
    assert change(plain) != plain
    with pytest.raises(FormatError):
        opened(sealed_plain(change(plain)))


def _floats(value: object) -> Iterator[Any]:
    """Yield *value* with each number and bool in it, at any depth, made a float."""
    if isinstance(value, int):
        yield float(value)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            for changed in _floats(each):
                yield [*value[:place], changed, *value[place + 1 :]]


def test_no_number_may_be_a_float() -> None:
    forged = list(_floats(elements()))
    assert len(forged) >= 30
    for each in forged:
        with pytest.raises(FormatError):
            opened(sealed_plain(msgpack.packb(each)))


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(FormatError):
        opened(sealed_plain(b"\x91" * 100_000))


# -- chains


def chain(count: int, generation: int = 8, tag: bytes = ROOT_TAG, **changes: Any) -> tuple[list[bytes], list[bytes]]:
    """Return the frames of some records that follow each other, and their tags."""
    frames, tags = [], []
    for number in range(generation, generation + count):
        raw, tag = seal(record(number, tag, **changes), nonce=number.to_bytes(12, "big"))
        frames.append(raw)
        tags.append(tag)
    return frames, tags


def found(claimed: bytes, **changes: Any) -> tuple[list[int], str]:
    arguments: dict[str, Any] = {
        "key_version": 1,
        "header_bytes": HEADER,
        "volume_id": VOLUME_ID,
        "epoch": EPOCH,
        "generation": 7,
        "tag": ROOT_TAG,
    }
    records, problem, _ = follow(claimed, changes.pop("key", KEY), **(arguments | changes))
    return [each.generation for each in records], problem


def test_a_chain_is_followed_to_its_end() -> None:
    frames, tags = chain(3)
    whole = b"".join(frames)
    assert found(whole) == ([8, 9, 10], "")
    assert found(whole + bytes(LOG_PAGE)) == ([8, 9, 10], "")
    assert found(whole.ljust(LOG_LEN, b"\0")) == ([8, 9, 10], "")
    assert found(b"") == found(bytes(LOG_LEN)) == ([], "")
    records, _, _ = follow(
        whole, KEY, key_version=1, header_bytes=HEADER, volume_id=VOLUME_ID, epoch=EPOCH, generation=7, tag=ROOT_TAG
    )
    assert [each.tag for each in records] == tags


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tag": b"\xbb" * 16}, id="of another root record"),
        pytest.param({"generation": 6}, id="a gap"),
        pytest.param({"generation": 8}, id="a generation twice"),
        pytest.param({"epoch": EPOCH + 1}, id="of another epoch"),
        pytest.param({"key_version": 2}, id="under another key version"),
        pytest.param({"volume_id": bytes(16)}, id="of another volume"),
    ],
)
def test_what_does_not_continue_the_root_is_no_part_of_it(changes: dict[str, Any]) -> None:
    frames, _ = chain(2)
    assert found(b"".join(frames), **changes) == ([], "")


def test_a_chain_ends_at_a_wrong_previous_tag_and_at_a_gap() -> None:
    frames, tags = chain(2)
    other, _ = seal(record(10, b"\xcc" * 16))
    assert found(b"".join(frames) + other) == ([8, 9], "")
    gap, _ = seal(record(11, tags[1]))
    assert found(b"".join(frames) + gap) == ([8, 9], "")
    assert found(frames[0] + frames[0] + frames[1]) == ([8], "")
    assert found(frames[1] + frames[0]) == ([], "")
    assert found(frames[0] + bytes(LOG_PAGE) + frames[1]) == ([8], "")


def test_what_an_earlier_round_left_is_no_part_of_the_chain() -> None:
    earlier, tags = chain(6)
    for count in range(4):
        now, _ = chain(count, 15, tags[-1])
        left = b"".join(earlier)
        claimed = b"".join(now) + left[len(b"".join(now)) :]
        assert found(claimed, generation=14, tag=tags[-1]) == ([15 + number for number in range(count)], "")


def test_a_large_record_of_an_earlier_round_is_cut_through() -> None:
    large = bytes(range(256)) * 256
    earlier, tags = chain(2, pieces=(Piece(2, len(large), None, (0, large)),))
    now, _ = chain(1, 10, tags[-1])
    left = b"".join(earlier)
    assert found(now[0] + left[len(now[0]) :], generation=9, tag=tags[-1]) == ([10], "")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_altered_record_ends_the_chain_and_is_told(place: int) -> None:
    frames, _ = chain(3)
    expected = [8, 9, 10][:place]
    for offset in (20, 32, 64):
        changed = [*frames]
        changed[place] = resummed(flip(frames[place], offset))
        generations, problem = found(b"".join(changed))
        assert generations == expected
        assert "tampered" in problem
        changed[place] = flip(frames[place], offset)
        generations, problem = found(b"".join(changed))
        assert generations == expected
        assert "torn or rotten, not tampered with" in problem


# -- round trip

I63: Final = 2**63 - 1
NUMBERS: Final = st.integers(0, I63)
INOS: Final = st.integers(1, I63)
TIMES: Final = st.integers(-I63 - 1, I63)
ROWS: Final = st.tuples(
    INOS, *[NUMBERS] * 5, *[TIMES] * 4, *[NUMBERS] * 3, st.none() | st.binary(min_size=32, max_size=32), NUMBERS,
    st.none() | INOS, st.none() | st.binary(max_size=300),
)  # fmt: skip
SIGNED: Final = st.integers(-I63, I63)
BATCHES: Final = st.builds(
    Batch,
    st.lists(ROWS, max_size=3),
    st.lists(st.tuples(INOS, INOS, st.binary(max_size=255), INOS), max_size=3),
    st.lists(st.tuples(INOS, INOS), max_size=3),
    st.lists(st.tuples(INOS, st.booleans()), max_size=3),
    SIGNED,
    SIGNED,
    INOS,
    INOS,
    st.lists(INOS, max_size=3),
)
CHUNKS: Final = st.lists(st.tuples(NUMBERS, st.binary(max_size=5000)), max_size=3)
PIECES: Final = st.builds(
    lambda ino, size, cut, chunks: Piece(ino, size, cut, tuple(part for pair in chunks for part in pair)),
    INOS,
    NUMBERS,
    st.none() | NUMBERS,
    CHUNKS,
)


@given(
    st.lists(BATCHES, max_size=3),
    st.lists(PIECES, max_size=3),
    st.integers(2, I63),
    st.binary(min_size=12, max_size=12),
    st.integers(1, 2**32 - 1),
)
def test_any_record_comes_back(
    batches: list[Batch], pieces: list[Piece], generation: int, nonce: bytes, version: int
) -> None:
    made = record(generation, batches=tuple(batches), pieces=tuple(pieces))
    raw, tag = seal(made, version=version, nonce=nonce)
    frame = LogFrame.parse(raw, 0)
    assert frame.length == len(raw)
    assert frame.key_version == version
    assert frame.open(KEY, HEADER) == replace(made, tag=tag)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_a_format_error_at_worst(plain: bytes, of_a_frame: bool) -> None:
    with pytest.raises((FormatError, TornError, UnsupportedFormatError)):
        if of_a_frame and plain:
            opened(sealed_plain(plain))
        else:
            LogFrame.parse(logs.LOG_MAGIC + plain, 0)
