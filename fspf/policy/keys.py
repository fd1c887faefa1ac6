"""Public keys of people and programs: their ids, and signatures made with them.

What is signed is said by whoever asks: `approval` for policies.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fspf.core.errors import PolicyError

MAX_SPKI: Final = 512  # bytes
MAX_SIGNATURE: Final = 256  # bytes
_CURVES: Final = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}


def spki_of(key: Any) -> bytes:
    """Return the DER SubjectPublicKeyInfo of a public key.

    Raises:
        ValueError: It is none of Ed25519, P-256, P-384.
    """
    usual = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    if not (usual or isinstance(key, ed25519.Ed25519PublicKey)):
        raise ValueError("Ed25519, P-256 or P-384 is expected")
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der


def key_id_of(spki: bytes) -> str:
    """Return the key id: hex SHA-256 of the DER SubjectPublicKeyInfo."""
    return hashlib.sha256(spki).hexdigest()


def check_signature(spki: bytes, signature: bytes, message: bytes) -> None:
    """Verify *signature* of *message* by the key *spki*: Ed25519, or ECDSA (DER) with the curve's hash.

    Raises:
        PolicyError: The key is of another kind, not in its one encoding, or has not signed this.
    """
    try:
        if len(spki) > MAX_SPKI or len(signature) > MAX_SIGNATURE:
            raise ValueError
        key = serialization.load_der_public_key(spki)
        if spki_of(key) != spki:  # one encoding per key: else one person had several ids
            raise ValueError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PolicyError("the signer's key is no public key of Ed25519, P-256 or P-384 in DER") from None
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(signature, message, ec.ECDSA(_CURVES[key.curve.name]))
    except InvalidSignature:
        raise PolicyError(f"the signature is not one by key {key_id_of(spki)[:16]} of this statement") from None


def sign(private_key: Any, message: bytes) -> bytes:
    """Sign *message* as `check_signature` expects it.

    Raises:
        PolicyError: The key is none of Ed25519, P-256, P-384.
    """
    if isinstance(private_key, ed25519.Ed25519PrivateKey):
        return private_key.sign(message)
    if isinstance(private_key, ec.EllipticCurvePrivateKey) and private_key.curve.name in _CURVES:
        return private_key.sign(message, ec.ECDSA(_CURVES[private_key.curve.name]))
    raise PolicyError("the key to sign with is none of Ed25519, P-256 and P-384")
