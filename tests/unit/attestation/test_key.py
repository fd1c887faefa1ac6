"""Evidence of kinds `key` and `measured-process`, made and verified.

What a policy asks of them is in `test_matching.py`.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.attestation import AttestationError, Trust, key_id, measured, verify
from fspf.attestation import key as key_evidence
from fspf.attestation.key import PrivateKey
from fspf.attestation.signatures import spki_of
from fspf.core.errors import UsageError

NOW = 0
KEYS: dict[str, PrivateKey] = {
    "Ed25519": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
    "P-256": ec.derive_private_key(4711, ec.SECP256R1()),
    "P-384": ec.derive_private_key(4712, ec.SECP384R1()),
}
each_key = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
EXECUTABLE, TAG = "ab" * 32, "cd" * 16


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def flipped(text: str, position: int) -> str:
    data = bytearray(base64.b64decode(text))
    data[position] ^= 1
    return b64(bytes(data))


@each_key
def test_key_is_shown(key: PrivateKey, binding: bytes) -> None:
    claims = verify(key_evidence.make(key, binding), binding, Trust(), NOW)
    assert claims.type == "key"
    assert claims.values == {"key": key_id(spki_of(key.public_key()))}


@each_key
def test_other_binding_is_refused(key: PrivateKey, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=r"^key.signature: the signature is not that of this key"):
        verify(key_evidence.make(key, binding), bytes(32), Trust(), NOW)


@each_key
def test_bare_signature_over_the_binding_is_none(key: PrivateKey, binding: bytes) -> None:
    evidence = key_evidence.make(key, binding) | {"signature": b64(key_evidence.sign(key, binding))}
    with pytest.raises(AttestationError, match=r"key.signature"):
        verify(evidence, binding, Trust(), NOW)


@each_key
@pytest.mark.parametrize("field", ["public_key", "signature"])
@pytest.mark.parametrize("position", [0, 12, 30, -1])
def test_flipped_bit_is_refused(key: PrivateKey, binding: bytes, field: str, position: int) -> None:
    evidence = key_evidence.make(key, binding)
    evidence[field] = flipped(evidence[field], position)
    with pytest.raises(AttestationError, match=r"^key."):
        verify(evidence, binding, Trust(), NOW)


def test_swapped_key_is_refused(binding: bytes) -> None:
    one, other = (key_evidence.make(KEYS[name], binding) for name in ("Ed25519", "P-256"))
    with pytest.raises(AttestationError, match=r"key.signature"):
        verify(one | {"public_key": other["public_key"]}, binding, Trust(), NOW)


@pytest.mark.parametrize(
    "key",
    [ec.derive_private_key(3, ec.SECP521R1()), ec.derive_private_key(3, ec.SECP256K1()), rsa.generate_private_key(65537, 1024)],
    ids=["P-521", "secp256k1", "RSA-1024"],
)  # fmt: skip
def test_other_kinds_of_key_are_refused(key: Any, binding: bytes) -> None:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(AttestationError, match=r"key.public_key: an Ed25519, P-256"):
        verify({"type": "key", "public_key": b64(spki), "signature": b64(bytes(64))}, binding, Trust(), NOW)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        with pytest.raises(UsageError):
            key_evidence.make(key, binding)


def test_rsa_signs_no_key_evidence(binding: bytes) -> None:
    key = rsa.generate_private_key(65537, 2048)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(AttestationError, match=r"key.signature: an Ed25519, P-256 or P-384 key is expected"):
        verify({"type": "key", "public_key": b64(spki), "signature": b64(bytes(256))}, binding, Trust(), NOW)


def test_second_encoding_of_a_key_is_refused(binding: bytes) -> None:
    """A compressed point is the same key with another hash: it would have two ids."""
    key = KEYS["P-256"]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    evidence = key_evidence.make(key, binding) | {"public_key": b64(prefix + point)}
    with pytest.raises(AttestationError, match="not in its canonical encoding"):
        verify(evidence, binding, Trust(), NOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "quote"}, "evidence.type: one of key, .* is expected, seen 'quote'"),
        ({"type": None}, "evidence.type: the field is missing"),
        ({"type": ["key"]}, "evidence.type: a text is expected"),
        ({"signature": None}, "key.signature: the field is missing"),
        ({"signature": 5}, "key.signature: a text is expected"),
        ({"signature": "a?"}, "key.signature: base64 is expected"),
        ({"signature": "é" * 8}, "key.signature: base64 is expected"),
        ({"signature": "A" * (1 << 18)}, "key.signature: a text is expected"),
        ({"signature": ""}, "key.signature: the signature is not"),
        ({"public_key": b64(b"\x30\x80\x00")}, "key.public_key: a public key in DER"),
        ({"comment": "hello"}, "key: the fields public_key, signature are expected, found 'comment'"),
    ],
)
def test_malformed_evidence_is_refused(change: dict[str, Any], message: str, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=message):
        verify(key_evidence.make(KEYS["Ed25519"], binding) | change, binding, Trust(), NOW)


@pytest.mark.parametrize("evidence", [None, [], "key", 3])
def test_evidence_is_an_object(evidence: Any, binding: bytes) -> None:
    with pytest.raises(AttestationError, match="a JSON object is expected"):
        verify(evidence, binding, Trust(), NOW)


# ------------------------------------------------------------------------------------------- measured-process

NODE = KEYS["P-256"]
NODES = Trust(node_keys=frozenset({key_id(spki_of(NODE.public_key()))}))


def measured_evidence(binding: bytes, tag: str | None = TAG) -> dict[str, Any]:
    return measured.make(NODE, binding, EXECUTABLE, [b"--port", b"80", b"", b"\xff"], tag)


@pytest.mark.parametrize("tag", [TAG, None])
def test_measured_process_is_shown(binding: bytes, tag: str | None) -> None:
    claims = verify(measured_evidence(binding, tag), binding, NODES, NOW)
    assert claims.values == {
        "node": next(iter(NODES.node_keys)),
        "executable": EXECUTABLE,
        "arguments": ("--port", "80", "", "\udcff"),
        "volume_tag": tag,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"executable": "ac" + EXECUTABLE[2:]}, "signature"),
        ({"executable": EXECUTABLE[2:]}, "executable: 64 hex digits"),
        ({"executable": None}, "executable: the field is missing"),
        ({"arguments": [b64(b"--port"), b64(b"81"), "", b64(b"\xff")]}, "signature"),
        ({"arguments": [b64(b"--port80"), "", "", b64(b"\xff")]}, "signature"),
        ({"arguments": [b64(b"--port"), b64(b"80"), "", b64(b"\xff"), ""]}, "signature"),
        ({"arguments": b64(b"--port")}, "arguments: a list"),
        ({"arguments": [None]}, "arguments: a list"),
        ({"arguments": [""] * 65}, "arguments: a list of at most 64"),
        ({"volume_tag": None}, "signature"),
        ({"volume_tag": "00" * 16}, "signature"),
        ({"volume_tag": "00"}, "volume_tag: 32 hex digits"),
    ],
)
def test_altered_statement_is_refused(change: dict[str, Any], message: str, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=f"^measured-process.{message}"):
        verify(measured_evidence(binding) | change, binding, NODES, NOW)


def test_statement_for_another_challenge_is_refused(binding: bytes) -> None:
    with pytest.raises(AttestationError, match=r"^measured-process.signature"):
        verify(measured_evidence(binding), bytes(32), NODES, NOW)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "and this CAS knows none"),
        (("ab" * 32,), "the key of one of 1 known nodes is expected, seen [0-9a-f]{64}$"),
    ],
)
def test_unknown_node_is_refused(nodes: tuple[str, ...], message: str, binding: bytes) -> None:
    with pytest.raises(AttestationError, match=message):
        verify(measured_evidence(binding), binding, Trust(node_keys=frozenset(nodes)), NOW)
