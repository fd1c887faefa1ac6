"""Evidence `tpm` without a TPM: structures put together here, by the specification, and signed with keys of ours.

Quotes of a TPM, made by the maker, are in `tests/cas/test_tpm_quotes.py`.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

import pytest

from fspf.attestation import AttestationError, Trust, key_id, verify
from fspf.attestation.signatures import spki_of
from fspf.attestation.tpm import parse_attest, parse_public
from tests.support.tpmwire import ATTRIBUTES, P256, P384, PCRS, RSA, attest_of, b64, evidence, public_of, sign, sized

KEYS = pytest.mark.parametrize(
    ("key", "hash_name", "pss"),
    [
        (P256, "sha256", False),
        (P384, "sha384", False),
        (P256, "sha512", False),
        (RSA, "sha256", False),
        (RSA, "sha256", True),
        (RSA, "sha384", True),
    ],
    ids=["P-256", "P-384", "P-256 with SHA-512", "RSASSA", "RSAPSS", "RSAPSS with SHA-384"],
)


@KEYS
def test_quote_is_verified(key: Any, hash_name: str, pss: bool, binding: bytes) -> None:
    claims = verify(evidence(binding, key, hash_name, pss=pss), binding, Trust(), 0)
    assert claims.values["ak"] == key_id(spki_of(key.public_key()))
    assert claims.values["ak_known"] is False
    assert claims.values["pcrs"] == {("sha256", 0): "00" * 32, ("sha256", 11): "ab" * 32, ("sha384", 3): "cd" * 48}
    assert (claims.values["reset_count"], claims.values["restart_count"]) == (7, 2)
    area = public_of(key)[2:]
    assert claims.values["ak_name"] == "000b" + hashlib.sha256(area).hexdigest()


def test_enrolled_key_is_known(binding: bytes) -> None:
    trust = Trust(aks=frozenset({key_id(spki_of(P256.public_key()))}))
    assert verify(evidence(binding), binding, trust, 0).values["ak_known"] is True


@KEYS
def test_other_challenge_is_refused(key: Any, hash_name: str, pss: bool, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=r"^tpm.nonce: (00)+ is expected, seen"):
        verify(evidence(binding, key, hash_name, pss=pss), bytes(32), Trust(), 0)


@pytest.mark.parametrize("key", [P256, RSA], ids=["P-256", "RSA"])
@pytest.mark.parametrize("field", ["public", "attest", "signature"])
def test_any_flipped_byte_is_refused_or_names_another_key(key: Any, field: str, binding: bytes) -> None:
    """In the public area, attributes that do not matter and the name's hash are nobody's promise: the key is the same."""
    good = evidence(binding, key)
    expected = verify(good, binding, Trust(), 0)
    data = base64.b64decode(good[field])
    for position in range(len(data)):
        altered = good | {field: b64(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])}
        try:
            claims = verify(altered, binding, Trust(), 0)
        except AttestationError:
            continue
        assert field == "public"
        assert claims.values["ak"] == expected.values["ak"]
        assert claims.values["ak_name"] != expected.values["ak_name"]


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        (ATTRIBUTES & ~(1 << 1), "fixedTPM"),
        (ATTRIBUTES & ~(1 << 4), "fixedParent"),
        (ATTRIBUTES & ~(1 << 5), "sensitiveDataOrigin"),
        (ATTRIBUTES & ~(1 << 16), "restricted"),
        (ATTRIBUTES & ~(1 << 18), "sign"),
        (ATTRIBUTES | 1 << 17, "not decrypt"),
        (0, "fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign"),
    ],
)
def test_key_that_signs_anything_is_refused(attributes: int, missing: str, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=f"^tpm.public: .*missing: {missing}$"):
        verify(evidence(binding) | {"public": b64(public_of(P256, attributes))}, binding, Trust(), 0)


def with_attest(binding: bytes, attest: bytes, **change: Any) -> dict[str, Any]:
    return evidence(binding) | {"attest": b64(attest), "signature": b64(sign(P256, attest))} | change


def test_other_statements_of_a_tpm_are_no_quotes(binding: bytes) -> None:
    with pytest.raises(AttestationError, match=r"^tpm.attest: a quote .0x8018. is expected, seen 0x8017"):
        verify(with_attest(binding, attest_of(binding, kind=0x8017)), binding, Trust(), 0)
    with pytest.raises(AttestationError, match=r"^tpm.attest: a structure that a TPM made"):
        verify(with_attest(binding, b"\0" + attest_of(binding)[1:]), binding, Trust(), 0)


def test_what_follows_is_refused(binding: bytes) -> None:
    with pytest.raises(AttestationError, match="1 more bytes follow"):
        verify(with_attest(binding, attest_of(binding) + b"\0"), binding, Trust(), 0)


@pytest.mark.parametrize(
    ("pcrs", "message"),
    [
        (PCRS | {"sha256": {"11": "ab" * 32}}, "values of exactly the registers"),
        (PCRS | {"sha256": {"11": "ab" * 32, "0": "00" * 32, "1": "00" * 32}}, "values of exactly the registers"),
        (PCRS | {"sha256": {"11": "ab" * 32, "1": "00" * 32}}, "values of exactly the registers"),
        (PCRS | {"sha256": {"0": "ab" * 32, "11": "00" * 32}}, "values with the quoted digest"),
        (PCRS | {"sha256": {"0": "ab", "11": "00" * 32}}, r"^tpm.pcrs.0: 64 hex digits"),
        (PCRS | {"sha256": {"24": "ab" * 32}}, "a number from 0 to 23"),
        (PCRS | {"sha256": {"011": "ab" * 32}}, "a number from 0 to 23"),
        (PCRS | {"sha1": {}}, "one of sha256, sha384, sha512"),
        (PCRS | {"sha256": []}, "an object of banks"),
        ([], "an object of banks"),
        ({}, "values of exactly the registers"),
    ],
)
def test_other_register_values_are_refused(pcrs: Any, message: str, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=message) as caught:
        verify(evidence(binding) | {"pcrs": pcrs}, binding, Trust(), 0)
    assert caught.value.factor.startswith("tpm.pcrs")


def test_quote_of_nothing_is_refused(binding: bytes) -> None:
    with pytest.raises(AttestationError, match="exactly the registers"):
        verify(with_attest(binding, attest_of(binding, {}), pcrs={}), binding, Trust(), 0)


def test_sha1_is_refused(binding: bytes) -> None:
    attest = attest_of(binding).replace(struct.pack(">HB", 0x0B, 3), struct.pack(">HB", 0x04, 3))
    with pytest.raises(
        AttestationError, match=r"^tpm.attest: one of sha256, sha384, sha512 is expected, seen hash 0x4"
    ):
        parse_attest(attest)
    signature = b"\0\x18\0\x04" + base64.b64decode(evidence(binding)["signature"])[4:]
    with pytest.raises(AttestationError, match=r"^tpm.signature: one of sha256"):
        verify(evidence(binding) | {"signature": b64(signature)}, binding, Trust(), 0)


def test_register_selected_twice_is_refused(binding: bytes) -> None:
    once = attest_of(binding, {"sha256": {"11": "ab" * 32}})
    part = struct.pack(">HB", 0x0B, 3) + (1 << 11).to_bytes(3, "little")
    twice = once.replace(struct.pack(">I", 1) + part, struct.pack(">I", 2) + part + part)
    with pytest.raises(AttestationError, match="none of them twice"):
        parse_attest(twice)


def test_more_registers_than_there_are_is_refused(binding: bytes) -> None:
    part = struct.pack(">HB", 0x0B, 3) + (1 << 11).to_bytes(3, "little")
    wide = struct.pack(">HB", 0x0B, 4) + (1 << 24).to_bytes(4, "little")
    with pytest.raises(AttestationError, match="a selection of 24 registers"):
        parse_attest(attest_of(binding, {"sha256": {"11": "ab" * 32}}).replace(part, wide))


@pytest.mark.parametrize("key", [P256, RSA], ids=["P-256", "RSA"])
def test_every_shortened_structure_is_refused(key: Any, binding: bytes) -> None:
    public, attest, good = public_of(key), attest_of(binding), evidence(binding, key)
    for length in range(len(public)):
        with pytest.raises(AttestationError):
            parse_public(public[:length])
        with pytest.raises(AttestationError):
            parse_public(sized(public[2:][:length]) if length < len(public) - 2 else b"")
    for length in range(len(attest)):
        with pytest.raises(AttestationError):
            parse_attest(attest[:length])
    signature = base64.b64decode(good["signature"])
    for length in range(0, len(signature), 7):
        with pytest.raises(AttestationError):
            verify(good | {"signature": b64(signature[:length])}, binding, Trust(), 0)


def test_scheme_of_another_kind_of_key_is_refused(binding: bytes) -> None:
    rsa_evidence, ec_evidence = evidence(binding, RSA), evidence(binding, P256)
    for one, other in ((rsa_evidence, ec_evidence), (ec_evidence, rsa_evidence)):
        with pytest.raises(AttestationError, match=r"^tpm.signature"):
            verify(one | {"signature": other["signature"]}, binding, Trust(), 0)


def test_symmetric_key_is_refused() -> None:
    with pytest.raises(AttestationError, match="without a symmetric algorithm"):
        parse_public(public_of(P256, symmetric=0x06))
