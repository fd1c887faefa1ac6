"""Checks signatures with the public keys that evidence comes with.

Which key may sign what is left to the callers; every failure is an `AttestationError` of the factor that they name.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from fspf.core.errors import AttestationError

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_EC_HASHES: Final = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384}
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192  # a larger key only costs time


def load_key(spki: bytes, factor: str) -> PublicKey:
    """Return the public key of a DER SubjectPublicKeyInfo: Ed25519, P-256, P-384 or RSA.

    Its encoding must be the only one, since key ids are hashes of it.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AttestationError(factor, "a public key in DER is expected") from None
    checked = check_key(key, factor)
    if spki_of(checked) != spki:
        raise AttestationError(factor, "the public key is not in its canonical encoding")
    return checked


def check_key(key: object, factor: str) -> PublicKey:
    """Return *key* if it is of a kind that counts."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _EC_HASHES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        return key
    raise AttestationError(factor, "an Ed25519, P-256, P-384 or RSA key of 2048 to 8192 bits is expected")


def spki_of(key: PublicKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo of a key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_signature(key: PublicKey, signature: bytes, message: bytes, factor: str) -> None:
    """Check an Ed25519 signature, or an ECDSA signature in DER with the hash of the curve's size.

    Raises:
        AttestationError: Another key, another message, or no signature.
    """
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(_EC_HASHES[key.curve.name]()))
        else:
            raise AttestationError(factor, "an Ed25519, P-256 or P-384 key is expected")
    except (InvalidSignature, ValueError):
        raise AttestationError(factor, "the signature is not that of this key over this message") from None


def check_ecdsa(
    key: PublicKey, r: int, s: int, message: bytes, factor: str, algorithm: hashes.HashAlgorithm | None = None
) -> None:
    """Check an ECDSA signature that is given as two numbers.

    Raises:
        AttestationError: Another key, another message, or no signature.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AttestationError(factor, "an ECDSA signature needs a key of an elliptic curve")
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm or _EC_HASHES[key.curve.name]()))
    except (InvalidSignature, ValueError):
        raise AttestationError(factor, "the signature is not that of this key over this message") from None


def check_raw_p256(raw_key: bytes, signature: bytes, message: bytes, factor: str) -> None:
    """Check a P-256 signature where key (x, y) and signature (r, s) are 64 bytes each, big-endian."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw_key)
    except ValueError:
        raise AttestationError(factor, "the key is no point of the curve") from None
    check_ecdsa(key, int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"), message, factor)


def check_rsa(
    key: PublicKey, signature: bytes, message: bytes, factor: str, algorithm: hashes.HashAlgorithm, *, pss: bool
) -> None:
    """Check an RSA signature with PSS or PKCS #1 v1.5 padding.

    Raises:
        AttestationError: Another key, another message, or no signature.
    """
    if not isinstance(key, rsa.RSAPublicKey):
        raise AttestationError(factor, "an RSA signature needs an RSA key")
    # TPMs choose the length of the salt, the specification allows two; the signature itself says which.
    scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO) if pss else padding.PKCS1v15()
    try:
        key.verify(signature, message, scheme, algorithm)
    except (InvalidSignature, ValueError):
        raise AttestationError(factor, "the signature is not that of this key over this message") from None
