"""`seal_chunks`, `open_chunks`, `xxh3` against their references."""

from __future__ import annotations

import os

import pytest
import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fspf_native import AUTHENTICATED, ENCRYPTED, AuthenticationError, SecretKey, open_chunks, seal_chunks, xxh3

KEY = os.urandom(32)


@given(
    st.integers(min_value=0, max_value=5),
    st.sampled_from([16, 48, 512, 4096, 16384]),
    st.integers(min_value=0, max_value=2**40 - 5),
    st.sampled_from([ENCRYPTED, AUTHENTICATED]),
)
def test_batch_equals_reference(chunks: int, chunk_size: int, counter: int, protection: int) -> None:
    plain = os.urandom(chunks * chunk_size)
    sealed, tags, opened = bytearray(len(plain)), bytearray(16 * chunks), bytearray(len(plain))
    secret = SecretKey.from_bytes(KEY)
    seal_chunks(secret, counter, plain, sealed, tags, chunk_size, protection)
    for i in range(chunks):
        nonce = (counter + i).to_bytes(8, "little") + bytes(4)
        part = plain[i * chunk_size : (i + 1) * chunk_size]
        if protection == AUTHENTICATED:
            expected, expected_tag = part, AESGCM(KEY).encrypt(nonce, b"", part)
        else:
            both = AESGCM(KEY).encrypt(nonce, part, None)
            expected, expected_tag = both[:-16], both[-16:]
        assert sealed[i * chunk_size : (i + 1) * chunk_size] == expected
        assert tags[i * 16 : i * 16 + 16] == expected_tag
    open_chunks(secret, counter, sealed, tags, opened, chunk_size, protection)
    assert opened == plain


@given(st.data(), st.sampled_from([ENCRYPTED, AUTHENTICATED]))
def test_any_flipped_bit_is_refused_and_nothing_released(data: st.DataObject, protection: int) -> None:
    secret = SecretKey.from_bytes(KEY)
    plain = os.urandom(3 * 512)
    sealed, tags = bytearray(len(plain)), bytearray(48)
    seal_chunks(secret, 7, plain, sealed, tags, 512, protection)
    target = data.draw(st.sampled_from([sealed, tags]))
    bit = data.draw(st.integers(0, len(target) * 8 - 1))
    target[bit // 8] ^= 1 << bit % 8
    opened = bytearray(b"\xaa" * len(plain))
    with pytest.raises(AuthenticationError):
        open_chunks(secret, 7, sealed, tags, opened, 512, protection)
    assert opened == bytes(len(plain))


def test_wrong_counter_key_or_protection_is_refused() -> None:
    secret = SecretKey.from_bytes(KEY)
    sealed, tags, opened = bytearray(4096), bytearray(16), bytearray(4096)
    seal_chunks(secret, 1, os.urandom(4096), sealed, tags, 4096)
    for key, counter, protection in ((secret, 2, 0), (SecretKey.generate(), 1, 0), (secret, 1, 1)):
        with pytest.raises(AuthenticationError):
            open_chunks(key, counter, sealed, tags, opened, 4096, protection)
        assert opened == bytes(4096)


def test_in_place() -> None:
    secret = SecretKey.from_bytes(KEY)
    data, tags = bytearray(b"x" * 8192), bytearray(32)
    seal_chunks(secret, 0, data, data, tags, 4096)
    assert data != b"x" * 8192
    open_chunks(secret, 0, data, tags, data, 4096)
    assert data == b"x" * 8192


@pytest.mark.parametrize(
    ("plain", "sealed", "tags", "chunk_size", "counter", "protection"),
    [
        pytest.param(4096, 4095, 16, 4096, 0, 0, id="short output"),
        pytest.param(4096, 4096, 15, 4096, 0, 0, id="short tags"),
        pytest.param(4096, 4096, 32, 4096, 0, 0, id="long tags"),
        pytest.param(4097, 4097, 16, 4096, 0, 0, id="not whole chunks"),
        pytest.param(4096, 4096, 16, 0, 0, 0, id="no chunk size"),
        pytest.param(4096, 4096, 16, -1, 0, 0, id="negative chunk size"),
        pytest.param(4096, 4096, 16, 4096, -1, 0, id="negative counter"),
        pytest.param(8192, 8192, 32, 4096, 2**40 - 1, 0, id="counters run out"),
        pytest.param(4096, 4096, 16, 4096, 2**64, 0, id="counter beyond 64 bits"),
        pytest.param(4096, 4096, 16, 4096, 0, 2, id="unknown protection"),
    ],
)
def test_bad_arguments(plain: int, sealed: int, tags: int, chunk_size: int, counter: int, protection: int) -> None:
    with pytest.raises(ValueError, match=r"expected|fit"):
        seal_chunks(
            SecretKey.generate(), counter, bytes(plain), bytearray(sealed), bytearray(tags), chunk_size, protection
        )


def test_bad_types() -> None:
    with pytest.raises(TypeError):
        seal_chunks(b"k" * 32, 0, b"", bytearray(), bytearray(), 4096)  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        seal_chunks(SecretKey.generate(), 0, bytes(4096), bytes(4096), bytearray(16), 4096)


@given(st.binary(max_size=5000))
def test_xxh3(data: bytes) -> None:
    assert xxh3(data) == xxhash.xxh3_64_intdigest(data)


@pytest.mark.parametrize("length", [0, 1, 16, 240, 241, 512, 513, 4088, 65536, 1 << 20])
def test_xxh3_of_long_data(length: int) -> None:
    data = os.urandom(length)
    assert xxh3(data) == xxhash.xxh3_64_intdigest(data)
    assert xxh3(memoryview(data)[1:]) == xxhash.xxh3_64_intdigest(data[1:])
