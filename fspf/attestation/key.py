"""Evidence `key`: the holder of a named key signed this challenge. Maker and verifier.

Where keys are kept, and which are named where, is left to callers.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fspf.attestation.claims import Claims
from fspf.attestation.reading import Fields, key_id
from fspf.attestation.signatures import check_signature, load_key, spki_of
from fspf.core.errors import UsageError

KIND: Final = "key"
_LABEL: Final = b"fspf key evidence 1\0"  # a signature over evidence is one over nothing else

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def verify(fields: Fields, binding: bytes) -> Claims:
    """Check that the key signed *binding*.

    Raises:
        AttestationError: It did not, or it is no Ed25519, P-256 or P-384 key.
    """
    fields.only("public_key", "signature")
    spki = fields.data("public_key")
    key = load_key(spki, "key.public_key")
    check_signature(key, fields.data("signature"), _LABEL + binding, "key.signature")
    return Claims(KIND, {"key": key_id(spki)})


def make(private_key: PrivateKey, binding: bytes) -> dict[str, Any]:
    """Return the evidence that the holder of *private_key* answers this challenge."""
    return {
        "type": KIND,
        "public_key": base64.b64encode(spki_of(private_key.public_key())).decode(),
        "signature": base64.b64encode(sign(private_key, _LABEL + binding)).decode(),
    }


def sign(private_key: PrivateKey, message: bytes) -> bytes:
    """Sign as `check_signature` checks it.

    Raises:
        UsageError: It is another kind of key.
    """
    if isinstance(private_key, ed25519.Ed25519PrivateKey):
        return private_key.sign(message)
    if private_key.curve.name in {"secp256r1", "secp384r1"}:
        algorithm = hashes.SHA256() if private_key.curve.name == "secp256r1" else hashes.SHA384()
        return private_key.sign(message, ec.ECDSA(algorithm))
    raise UsageError("an Ed25519, P-256 or P-384 key is expected")
