"""`SecretKey` against `cryptography`, and what it must not give away."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fspf_native import AuthenticationError, SecretKey

keys = st.binary(min_size=32, max_size=32)


def hkdf(key: bytes, info: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(key)


def siv(key: bytes) -> AESSIV:
    return AESSIV(hkdf(key, b"fspf 1 siv", length=64))


@given(keys, st.binary(max_size=2000), st.binary(max_size=200))
def test_derive_is_hkdf_sha256(key: bytes, info: bytes, salt: bytes) -> None:
    assert SecretKey.from_bytes(key).derive(info, salt) == SecretKey.from_bytes(hkdf(key, info, salt))


@given(keys, keys, st.binary(max_size=100))
def test_wrap_is_siv(key: bytes, other: bytes, aad: bytes) -> None:
    wrapped = SecretKey.from_bytes(key).wrap(SecretKey.from_bytes(other), aad)
    assert wrapped == siv(key).encrypt(other, [aad])
    assert SecretKey.from_bytes(key).unwrap(wrapped, aad) == SecretKey.from_bytes(other)


@given(keys, st.binary(min_size=1, max_size=5000), st.binary(max_size=100))
def test_siv_seal_is_siv(key: bytes, plain: bytes, aad: bytes) -> None:
    sealed = SecretKey.from_bytes(key).siv_seal(plain, aad)
    assert sealed == siv(key).encrypt(plain, [aad])
    assert SecretKey.from_bytes(key).siv_open(sealed, aad) == plain


def test_siv_of_nothing_is_refused() -> None:
    key = SecretKey.generate()
    with pytest.raises(ValueError, match="out of range"):
        key.siv_seal(b"", b"aad")
    for length in (0, 15, 16):
        with pytest.raises(AuthenticationError):
            key.siv_open(bytes(length), b"aad")


@given(keys, st.binary(min_size=12, max_size=12), st.binary(max_size=5000), st.binary(max_size=5000))
def test_gcm_is_gcm(key: bytes, nonce: bytes, plain: bytes, aad: bytes) -> None:
    secret = SecretKey.from_bytes(key)
    sealed, tag = secret.gcm_seal(nonce, plain, aad)
    assert sealed + tag == AESGCM(key).encrypt(nonce, plain, aad)
    assert secret.gcm_open(nonce, sealed, tag, aad) == plain


@pytest.mark.parametrize("part", ["sealed", "tag", "aad", "nonce"])
def test_gcm_refuses_a_flipped_bit(part: str) -> None:
    secret = SecretKey.generate()
    parts = {"nonce": os.urandom(12), "aad": b"associated"}
    parts["sealed"], parts["tag"] = secret.gcm_seal(parts["nonce"], b"plain text", parts["aad"])
    for bit in range(len(parts[part]) * 8):
        broken = bytearray(parts[part])
        broken[bit // 8] ^= 1 << bit % 8
        changed = parts | {part: bytes(broken)}
        with pytest.raises(AuthenticationError):
            secret.gcm_open(changed["nonce"], changed["sealed"], changed["tag"], changed["aad"])


def test_unwrap_refuses_any_flipped_bit() -> None:
    secret = SecretKey.generate()
    wrapped = secret.wrap(SecretKey.generate(), b"aad")
    assert len(wrapped) == 48
    for bit in range(48 * 8):
        broken = bytearray(wrapped)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthenticationError):
            secret.unwrap(broken, b"aad")
    with pytest.raises(AuthenticationError):
        secret.unwrap(wrapped, b"bad")
    with pytest.raises(AuthenticationError):
        SecretKey.generate().unwrap(wrapped, b"aad")


@pytest.mark.parametrize("length", [0, 47, 49, 64])
def test_unwrap_needs_48_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        SecretKey.generate().unwrap(bytes(length), b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretKey.from_bytes(bytes(length))


def test_nothing_gives_the_key_away() -> None:
    raw = os.urandom(32)
    secret = SecretKey.from_bytes(raw)
    assert raw.hex()[:8] not in repr(secret)
    assert secret.fingerprint in repr(secret)
    assert secret.fingerprint == hkdf(raw, b"fspf 1 fingerprint")[:8].hex()
    leaks: list[Callable[[Any], object]] = [bytes, memoryview, pickle.dumps, copy.copy, copy.deepcopy]
    for leak in leaks:
        with pytest.raises(TypeError):
            leak(secret)
    with pytest.raises(TypeError):
        SecretKey()
    with pytest.raises(AttributeError):
        secret.key = 1  # type: ignore[attr-defined]


def test_equality_and_hash() -> None:
    raw = os.urandom(32)
    assert SecretKey.from_bytes(raw) == SecretKey.from_bytes(bytearray(raw))
    assert hash(SecretKey.from_bytes(raw)) == hash(SecretKey.from_bytes(raw))
    assert SecretKey.generate() != SecretKey.generate()
    assert SecretKey.from_bytes(raw) != raw
    with pytest.raises(TypeError):
        assert SecretKey.generate() < SecretKey.generate()  # type: ignore[operator]


def test_many_keys_at_once_from_many_threads() -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            held = [SecretKey.generate() for _ in range(300)]
            assert len({key.fingerprint for key in held}) == len(held)
            aads = [os.urandom(4) for _ in held]
            assert all(held[0].unwrap(held[0].wrap(key, aad), aad) == key for key, aad in zip(held, aads, strict=True))
        except Exception as exc:  # noqa: BLE001  # a thread cannot fail a test by itself
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_key_memory_is_kept_out_of_core_dumps() -> None:
    key = SecretKey.generate()
    with open("/proc/self/smaps", encoding="ascii") as file:
        flags = [line.split()[1:] for line in file if line.startswith("VmFlags")]
    assert any("dd" in line for line in flags), key
